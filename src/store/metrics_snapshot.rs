//! Metrics snapshots: what was measured, and each metric over time.

use super::Store;
use super::caller::Caller;
use super::canonical::Json;
use super::change::when_recorded;
use super::child::Parent;
use super::filter::{Field, FieldKind, Params as Dynamic};
use super::list::{ListQuery, Listing};
use super::postgres::read_rows;
use crate::{Result, noun, row};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

noun! {
    pub struct MetricsSnapshot in "metrics_snapshot" as metrics_snapshot {
        pub source: String,
        pub metrics: Json,
        pub labels: Json,
        /// [`when_recorded`] until it is.
        pub snapshot_time: SystemTime,
    }

    fn is_given(&self, field: &str) -> bool {
        field != "snapshot_time" || self.snapshot_time != self.meta.create_time
    }

    fn stamp(&mut self, now: SystemTime) {
        if self.snapshot_time == when_recorded() {
            self.snapshot_time = now;
        }
    }

    fn size_bytes(&self) -> usize {
        512 + self.metrics.text().len() + self.labels.text().len()
    }
}

impl Parent for MetricsSnapshot {}

pub static LISTING: Listing = Listing {
    kind: "metrics_snapshot",
    table: "metrics_snapshot",
    op: "metrics_snapshot.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("source", "d.source", FieldKind::Text),
        Field::new("snapshot_time", "d.snapshot_time", FieldKind::Time),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("labels", "d.labels", FieldKind::Labels),
    ],
};

row! {
    /// One metric within one span of time.
    pub struct Bucket {
        pub start_time: SystemTime,
        pub count: i64,
        pub min: f64,
        pub max: f64,
        /// As text: what lies between tiny numbers may be too small for PostgreSQL to call it a double.
        pub avg: String,
        pub last: f64,
    }
}

/// Buckets in one answer.
pub const BUCKETS_MAX: u64 = 1000;

/// What to make a series of.
pub struct Series {
    pub metric: String,
    pub start: SystemTime,
    pub bucket: Duration,
    /// Which snapshots; from `start` on.
    pub query: ListQuery,
}

const DAY_S: u64 = 86_400;

impl Series {
    /// The buckets that are not empty, oldest first.
    ///
    /// Nothing here raises on what a row holds, be it another tenant's: the path passes over what is no double, and of
    /// the rest sums are exact, where those of doubles may overflow.
    pub fn sql(&self) -> (String, Dynamic) {
        let mut params = Dynamic::default();
        let conditions = self.query.conditions(&mut params).join("\n  AND ");
        let (start, metric) = (params.push(self.start), params.push(self.metric.clone()));
        // In days and the rest, because a double does not tell the microseconds of centuries.
        let seconds = self.bucket.as_secs();
        let rest = Duration::new(seconds % DAY_S, self.bucket.subsec_nanos());
        let days = params.push(i64::try_from(seconds / DAY_S).unwrap_or(i64::MAX));
        let rest = params.push(rest.as_secs_f64());
        let sql = format!(
            "SELECT date_bin(make_interval(days => {days}::int4, secs => {rest}), d.snapshot_time, {start}) AS start_time, \
             count(*) AS count, min(v.value)::float8 AS min, max(v.value)::float8 AS max, avg(v.value)::text AS avg, \
             ((array_agg(v.value ORDER BY d.snapshot_time DESC, d.uid DESC))[1])::float8 AS last\n\
             FROM metrics_snapshot AS d\n\
             CROSS JOIN LATERAL (SELECT jsonb_path_query_first(d.metrics -> {metric}, 'strict $.double()', '{{}}', true)\
             ::numeric AS value) AS v\n\
             WHERE {conditions}\n  AND v.value IS NOT NULL\nGROUP BY 1\nORDER BY 1\nLIMIT {}",
            BUCKETS_MAX + 1
        );
        (sql, params)
    }
}

impl Store {
    /// One metric over time, and the log number it was read at.
    pub async fn metrics_series(
        &self,
        caller: &Caller,
        series: Series,
    ) -> Result<(Vec<Bucket>, i64)> {
        let series = Arc::new(series);
        self.snapshot(caller, "metrics_snapshot.SERIES", move |snapshot| {
            let series = Arc::clone(&series);
            Box::pin(async move {
                let seq = snapshot.head;
                let (sql, params) = series.sql();
                let rows = snapshot.dynamic(&sql, &params).await?;
                let buckets = read_rows(&rows)?;
                snapshot.end((buckets, seq)).await
            })
        })
        .await
    }
}
