//! Precedents: historical cases, to be found again and referred to.

use super::canonical::Json;
use super::change::when_recorded;
use super::child::{self, Move, Moved, Parent};
use super::filter::{Field, FieldKind};
use super::list::Listing;
use super::noun::Noun;
use super::precedent_reference::{self, PrecedentReference};
use super::write::Tx;
use crate::{Error, Result, noun, queries};
use futures_util::future::BoxFuture;
use std::time::SystemTime;
use uuid::Uuid;

noun! {
    pub struct Precedent in "precedent" as precedent + [QUERIES]
    resolved by RESOLVE
    refers [decision_id -> "decision" as decision_uid]
    {
        pub decision_id: String,
        /// Empty without an input.
        pub case_hash: String,
        pub input: Json,
        pub summary: String,
        pub final_verdict: String,
        pub final_reason: String,
        pub avg_confidence: Option<f64>,
        pub ambiguity: Option<f64>,
        pub tags: Json,
        pub context: String,
        pub metadata: Json,
        pub labels: Json,
        /// [`when_recorded`] until it is.
        pub occur_time: SystemTime,
        /// 1 active, 2 superseded, 3 withdrawn.
        pub status: i16,
        pub superseded_by_id: String,
        pub retention_class: String,
        pub subject_id: String,
    }

    fn is_given(&self, field: &str) -> bool {
        match field {
            "case_hash" => false,
            "occur_time" => self.occur_time != self.meta.create_time,
            _ => true,
        }
    }

    /// The hash follows the input.
    fn stays(&self, field: &str) -> bool {
        field != "case_hash" && !self.is_given(field)
    }

    fn stamp(&mut self, now: SystemTime) {
        if self.occur_time == when_recorded() {
            self.occur_time = now;
        }
    }

    fn size_bytes(&self) -> usize {
        512 + self.input.text().len()
            + self.summary.len()
            + self.final_reason.len()
            + self.context.len()
            + self.metadata.text().len()
    }
}

pub const ACTIVE: i16 = 1;
pub const SUPERSEDED: i16 = 2;
pub const WITHDRAWN: i16 = 3;

const STATUSES: FieldKind = FieldKind::Enum {
    prefix: "PRECEDENT_STATUS_",
    names: &[("ACTIVE", ACTIVE), ("SUPERSEDED", SUPERSEDED), ("WITHDRAWN", WITHDRAWN)],
};

pub static LISTING: Listing = Listing {
    kind: "precedent",
    table: "precedent",
    op: "precedent.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("decision_id", "d.decision_id", FieldKind::Text),
        Field::new("case_hash", "d.case_hash", FieldKind::Text),
        Field::new("final_verdict", "d.final_verdict", FieldKind::Text),
        Field::new("avg_confidence", "d.avg_confidence", FieldKind::Float).nullable(),
        Field::new("ambiguity", "d.ambiguity", FieldKind::Float).nullable(),
        Field::new("occur_time", "d.occur_time", FieldKind::Time),
        Field::new("status", "d.status", STATUSES),
        Field::new("superseded_by_id", "d.superseded_by_id", FieldKind::Text),
        Field::new("retention_class", "d.retention_class", FieldKind::Text),
        Field::new("subject_id", "d.subject_id", FieldKind::Text),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("update_time", "d.update_time", FieldKind::Time),
        Field::new("tags", "d.tags", FieldKind::Texts),
        Field::new("labels", "d.labels", FieldKind::Labels),
        Field::new("metadata", "d.metadata", FieldKind::Json),
    ],
};

queries! { "precedent" {
    /// Tells references what the uids of new precedents are. One reference may have been waiting for both of its ends,
    /// and one statement changes a row once, so this is one UPDATE and not one for each column: (ids, uids).
    RESOLVE(Vec<String>, Vec<Uuid>) -> () =
        "WITH target (id, uid) AS (SELECT * FROM unnest($1::text[], $2::uuid[])), waiting AS ( \
           SELECT uid FROM precedent_reference WHERE from_precedent_id = ANY($1) \
           AND from_precedent_uid IS NULL AND from_precedent_id <> '' AND delete_time IS NULL \
           UNION SELECT uid FROM precedent_reference WHERE to_precedent_id = ANY($1) \
           AND to_precedent_uid IS NULL AND to_precedent_id <> '' AND delete_time IS NULL) \
         UPDATE precedent_reference AS w SET \
           from_precedent_uid = COALESCE(w.from_precedent_uid, (SELECT t.uid FROM target AS t WHERE t.id = w.from_precedent_id)), \
           to_precedent_uid = COALESCE(w.to_precedent_uid, (SELECT t.uid FROM target AS t WHERE t.id = w.to_precedent_id)) \
         FROM waiting WHERE w.uid = waiting.uid";
} }

impl Parent for Precedent {
    const PARTS_COME_ALONE: bool = true;

    fn move_children<'a>(tx: &'a Tx<'a>, moves: &'a [Move<'a>]) -> BoxFuture<'a, Result<Moved>> {
        Box::pin(async move {
            // A reference that was hidden may have been made again meanwhile. Then it cannot come back.
            let (ids, since): (Vec<String>, Vec<SystemTime>) = moves
                .iter()
                .filter(|m| m.delete_time.is_none())
                .filter_map(|m| Some((m.id.to_owned(), m.hidden_since?)))
                .unzip();
            let again = match ids.is_empty() {
                true => Vec::new(),
                false => tx.run(&precedent_reference::MADE_AGAIN, &(ids, since)).await?,
            };
            let is_barred = |m: &&Move<'_>| !again.iter().any(|row| row.from_precedent_id == m.id);
            let free: Vec<Move<'_>> = moves.iter().filter(is_barred).copied().collect();
            let mut moved = child::move_children::<PrecedentReference>(tx, &free).await?;
            for row in again {
                let fields = PrecedentReference::ALSO_UNIQUE;
                let error = Error::Occupied { kind: PrecedentReference::KIND, fields };
                moved.refuse(row.from_precedent_id, error);
            }
            Ok(moved)
        })
    }
}
