//! Training examples: claims and whether they hold, each of which trains a model once.

use super::canonical::Json;
use super::change::{advance, rows_of};
use super::child::Parent;
use super::filter::{Field, FieldKind, Filter, Params as Dynamic};
use super::list::{ListQuery, Listing};
use super::log::{Entry, LogRow};
use super::postgres::read_rows;
use super::write::{Applied, Change, Outcome, RowKey, Tx};
use crate::{Result, noun, queries, row};
use futures_util::future::BoxFuture;
use std::collections::HashMap;
use uuid::Uuid;

noun! {
    pub struct TrainingExample in "training_example" as training_example + [QUERIES]
    refers [claim_id -> "claim" as claim_uid]
    {
        pub framework: String,
        pub claim_id: String,
        pub claim_text: String,
        pub evidence: Json,
        pub validity: bool,
        pub confidence: Option<f64>,
        pub metadata: Json,
        pub used_in_training: bool,
        pub training_batch_id: String,
    }

    fn is_given(&self, field: &str) -> bool {
        !matches!(field, "used_in_training" | "training_batch_id")
    }

    fn size_bytes(&self) -> usize {
        512 + self.claim_text.len() + self.evidence.text().len() + self.metadata.text().len()
    }
}

impl Parent for TrainingExample {}

pub static LISTING: Listing = Listing {
    kind: "training_example",
    table: "training_example",
    op: "training_example.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("framework", "d.framework", FieldKind::Text),
        Field::new("claim_id", "d.claim_id", FieldKind::Text),
        Field::new("validity", "d.validity", FieldKind::Bool),
        Field::new("confidence", "d.confidence", FieldKind::Float).nullable(),
        Field::new("used_in_training", "d.used_in_training", FieldKind::Bool),
        Field::new("training_batch_id", "d.training_batch_id", FieldKind::Text),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("update_time", "d.update_time", FieldKind::Time),
        Field::new("metadata", "d.metadata", FieldKind::Json),
    ],
};

queries! { "training_example" {
    BY_UID(Vec<Uuid>) -> TrainingExample = "SELECT {*} FROM training_example WHERE uid = ANY($1)";
} }

row! {
    /// An example that is there for the taking, and about how much it adds to an answer.
    pub struct Free {
        pub uid: Uuid,
        pub size_bytes: i64,
    }
}

/// About how much the examples of one answer have together: it fits into the 4 MiB that clients take by default.
pub const TAKEN_BYTES_MAX: i64 = 3 << 20;

/// Marks unused examples of a framework as used by a batch, oldest first.
pub struct ClaimTrainingBatch {
    pub framework: String,
    pub training_batch_id: String,
    pub max_examples: i64,
    pub filter: Filter,
}

impl ClaimTrainingBatch {
    /// The oldest that nobody has or is about to take, locked.
    pub fn free(&self) -> (String, Dynamic) {
        let query = ListQuery {
            filter: self.filter.clone(),
            parent: Some(("d.framework", self.framework.clone())),
            ..ListQuery::default()
        };
        let mut params = Dynamic::default();
        let conditions = query.conditions(&mut params).join("\n  AND ");
        let limit = params.push(self.max_examples);
        let sql = format!(
            "SELECT d.uid, octet_length(d.claim_text)::int8 \
             + 2 * (octet_length(d.evidence::text)::int8 + octet_length(d.metadata::text)) AS size_bytes\n\
             FROM training_example AS d\nWHERE {conditions}\n  AND NOT d.used_in_training\n\
             ORDER BY d.create_time, d.uid\nLIMIT {limit}\nFOR UPDATE SKIP LOCKED"
        );
        (sql, params)
    }
}

/// The first of them, as many as an answer holds, and one at least.
fn as_many_as_fit(free: Vec<Free>) -> Vec<Uuid> {
    let mut room = TAKEN_BYTES_MAX;
    let mut uids = Vec::with_capacity(free.len());
    for Free { uid, size_bytes } in free {
        room -= size_bytes;
        if room < 0 && !uids.is_empty() {
            break;
        }
        uids.push(uid);
    }
    uids
}

impl Change for ClaimTrainingBatch {
    type Answer = Vec<TrainingExample>;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        // On one server one after the other, so that what one only looks at is not passed over by the next.
        rows.push(RowKey::new(&["training batch of", &self.framework]));
    }

    fn size_bytes(&self) -> usize {
        // It brings nothing, but writes what it finds.
        usize::try_from(self.max_examples).unwrap_or_default() * 512
    }

    /// Which examples it will be, only the table knows.
    fn is_alone(&self) -> bool {
        true
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Vec<TrainingExample>>>>> {
        Box::pin(async move {
            let mut outcomes = Vec::with_capacity(changes.len());
            // One after the other: what one has marked, the next does not find.
            for Applied { change, caller } in changes {
                let (sql, params) = change.free();
                let uids = as_many_as_fit(read_rows(&tx.dynamic(&sql, &params).await?)?);
                let mut found: HashMap<Uuid, TrainingExample> = HashMap::new();
                if !uids.is_empty() {
                    let rows = tx.run(&BY_UID, &(uids.clone(),)).await?;
                    found.extend(rows.into_iter().map(|row| (row.meta.uid, row)));
                }
                let mut answer: Vec<_> = uids.iter().filter_map(|uid| found.remove(uid)).collect();
                for row in &mut answer {
                    row.used_in_training = true;
                    row.training_batch_id.clone_from(&change.training_batch_id);
                    advance(row, caller.acting(), tx.now);
                }
                tx.save(&answer).await?;
                let entries = answer.iter().map(|row| Entry::of(row, "CLAIM")).collect();
                outcomes.push(Outcome::Done { answer, entries, shown: Vec::new() });
            }
            Ok(outcomes)
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Vec<TrainingExample>> {
        rows_of(entries)
    }
}
