//! Verifications: what each framework found about a claim, which may be recorded later or never.

use super::Store;
use super::caller::Caller;
use super::canonical::Json;
use super::child::Parent;
use super::filter::{Field, FieldKind, Params as Dynamic};
use super::list::{ListQuery, Listing};
use super::postgres::read_rows;
use crate::{Error, Result, child, noun, row};
use std::sync::Arc;

noun! {
    pub struct Verification in "verification" as verification + [children::QUERIES]
    within "claim" by claim_id
    refers [claim_id -> "claim" as claim_uid]
    {
        pub claim_id: String,
        pub framework: String,
        pub result: Json,
        pub confidence: f64,
        pub evidence: Json,
        pub processing_time_us: Option<i64>,
        pub model_version: String,
        pub trace_id: String,
    }

    fn size_bytes(&self) -> usize {
        512 + self.result.text().len() + self.evidence.text().len()
    }
}

impl Parent for Verification {}

pub static LISTING: Listing = Listing {
    kind: "verification",
    table: "verification",
    op: "verification.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("claim_id", "d.claim_id", FieldKind::Text),
        Field::new("framework", "d.framework", FieldKind::Text),
        Field::new("confidence", "d.confidence", FieldKind::Float),
        Field::new("model_version", "d.model_version", FieldKind::Text),
        Field::new("trace_id", "d.trace_id", FieldKind::Text),
        Field::new("create_time", "d.create_time", FieldKind::Time),
    ],
};

child!(Verification in "verification" of claim_id);

row! {
    /// What one framework found on the whole, or all of them. Times are in microseconds.
    pub struct FrameworkFigures {
        pub framework: String,
        pub count: i64,
        pub avg_confidence: Option<f64>,
        pub min_confidence: Option<f64>,
        pub max_confidence: Option<f64>,
        pub p50_processing_time_us: Option<f64>,
        pub p95_processing_time_us: Option<f64>,
        pub claim_count: i64,
    }
}

pub struct FrameworkStatistics {
    pub total: FrameworkFigures,
    /// Largest first.
    pub groups: Vec<FrameworkFigures>,
    pub truncated: bool,
    pub seq: i64,
}

/// Frameworks in one answer.
pub const FRAMEWORKS_MAX: usize = 1000;

impl Store {
    /// Figures of the selected verifications, all together and by framework.
    pub async fn framework_statistics(
        &self,
        caller: &Caller,
        query: ListQuery,
    ) -> Result<FrameworkStatistics> {
        let query = Arc::new(query);
        self.snapshot(caller, "verification.STATISTICS", move |snapshot| {
            let query = Arc::clone(&query);
            Box::pin(async move {
                let seq = snapshot.head;
                let mut params = Dynamic::default();
                let conditions = query.conditions(&mut params).join(" AND ");
                let conditions = if conditions.is_empty() { "TRUE" } else { &conditions };
                let sql = format!(
                    "SELECT COALESCE(d.framework, '') AS framework, count(*) AS count, \
                     avg(d.confidence) AS avg_confidence, min(d.confidence) AS min_confidence, \
                     max(d.confidence) AS max_confidence, \
                     percentile_cont(0.5) WITHIN GROUP (ORDER BY d.processing_time_us) AS p50_processing_time_us, \
                     percentile_cont(0.95) WITHIN GROUP (ORDER BY d.processing_time_us) AS p95_processing_time_us, \
                     count(DISTINCT d.claim_id) AS claim_count \
                     FROM verification d WHERE {conditions} GROUP BY GROUPING SETS ((), (d.framework)) \
                     ORDER BY GROUPING(d.framework) DESC, count DESC, framework LIMIT {}",
                    FRAMEWORKS_MAX + 2
                );
                let rows = snapshot.dynamic(&sql, &params).await?;
                let mut groups: Vec<FrameworkFigures> = read_rows(&rows)?;
                if groups.is_empty() {
                    return Err(Error::internal("a total without a row"));
                }
                let total = groups.remove(0);
                let truncated = groups.len() > FRAMEWORKS_MAX;
                groups.truncate(FRAMEWORKS_MAX);
                snapshot.end(FrameworkStatistics { total, groups, truncated, seq }).await
            })
        })
        .await
    }
}
