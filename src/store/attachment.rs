//! Attachments: blobs that belong to a decision, each under a name.

use super::blob::reference::{hold, refer};
use super::blob::{Blob, READY};
use super::canonical::Json;
use super::change::OnConflict;
use super::child::Parent;
use super::decision::Decision;
use super::evidence::{Added, Evidence, add_all, dated, only_row};
use super::filter::{Field, FieldKind};
use super::list::Listing;
use super::log::{Entry, LogRow};
use super::noun::Noun;
use super::query::Query;
use super::write::{Applied, Change, Outcome, RowKey, Shown, Tx};
use crate::{Error, Reason, Result, child, noun, queries};
use futures_util::future::BoxFuture;
use std::time::SystemTime;
use uuid::Uuid;

noun! {
    pub struct Attachment in "attachment" as attachment + [children::QUERIES, QUERIES]
    within "decision" by decision_id
    {
        pub decision_uid: Uuid,
        pub decision_id: String,
        pub name: String,
        /// Empty stands for the blob's, until it is written.
        pub content_type: String,
        /// The blob's.
        pub size_bytes: i64,
        /// The id of the blob.
        pub digest: String,
        pub metadata: Json,
        /// A name for people; the store's own key is the blob's.
        pub object_key: String,
    }

    const ALSO_UNIQUE: &'static [&'static str] = &["decision_id", "name"];

    fn is_given(&self, field: &str) -> bool {
        !matches!(field, "decision_uid" | "size_bytes" | "object_key")
    }

    fn stamp(&mut self, now: SystemTime) {
        self.object_key = format!("{}/{}/{}", dated("attachments", now), self.decision_id, self.name);
    }

    fn size_bytes(&self) -> usize {
        1024 + self.metadata.text().len()
    }
}

impl Parent for Attachment {}

pub static LISTING: Listing = Listing {
    kind: "attachment",
    table: "attachment",
    op: "attachment.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("decision_id", "d.decision_id", FieldKind::Text),
        Field::new("name", "d.name", FieldKind::Text),
        Field::new("content_type", "d.content_type", FieldKind::Text),
        Field::new("size_bytes", "d.size_bytes", FieldKind::Int),
        Field::new("digest", "d.digest", FieldKind::Text),
        Field::new("object_key", "d.object_key", FieldKind::Text),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("update_time", "d.update_time", FieldKind::Time),
        Field::new("metadata", "d.metadata", FieldKind::Json),
    ],
};

child!(Attachment in "attachment" of decision_id);

queries! { "attachment" {
    AFTER(String, Uuid, i64) -> Attachment =
        "SELECT {*} FROM attachment WHERE decision_id = $1 AND uid > $2 AND delete_time IS NULL ORDER BY uid LIMIT $3";
    /// Those of a decision in the order of attaching.
    OF_DECISION(String) -> Attachment =
        "SELECT {*} FROM attachment WHERE decision_id = $1 AND delete_time IS NULL ORDER BY create_time, uid LIMIT 1000";
} }

impl Evidence for Attachment {
    fn join(&mut self, decision: &Decision) {
        self.decision_uid = decision.meta.uid;
    }

    fn digest(&self) -> &str {
        &self.digest
    }

    fn after() -> &'static Query<(String, Uuid, i64), Self> {
        &AFTER
    }
}

/// Gives a blob a name within a decision.
pub struct AttachBlob {
    pub row: Attachment,
    pub on_conflict: OnConflict,
}

impl Change for AttachBlob {
    type Answer = Attachment;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        // The decision's key keeps it away from the decision's deletion, and from others of the same name.
        rows.push(RowKey::new(&[Decision::KIND, &self.row.decision_id]));
        rows.push(RowKey::new(&[Attachment::KIND, &self.row.id]));
    }

    fn size_bytes(&self) -> usize {
        self.row.size_bytes()
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        vec![(Attachment::KIND, &self.row.id)]
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Attachment>>>> {
        Box::pin(async move {
            let ids = changes.iter().map(|a| a.change.row.decision_id.clone()).collect();
            let decisions = tx.lock::<Decision>(ids).await?;
            let digests = changes.iter().map(|a| a.change.row.digest.clone()).collect();
            let blobs = hold(tx, digests).await?;
            let given = changes.iter().map(|Applied { change, caller }| {
                let AttachBlob { row, on_conflict } = change;
                let row = match blobs.get(&row.digest) {
                    None => Err(Error::not_found(Blob::KIND, &row.digest)),
                    Some(blob) if blob.state != READY => Err(corrupt(&row.digest)),
                    Some(blob) => {
                        let mut row = row.clone();
                        row.size_bytes = blob.size_bytes;
                        if row.content_type.is_empty() {
                            row.content_type.clone_from(&blob.content_type);
                        }
                        Ok(row)
                    }
                };
                (row, *on_conflict, *caller)
            });
            let added = add_all(tx, &decisions, given.collect()).await?;
            let referring = added.iter().filter_map(|added| match added {
                Added::New(row) => Some((blobs.get(&row.digest)?.meta.uid, row.meta.uid)),
                Added::Failed(_) | Added::Equal(_) => None,
            });
            refer(tx, Attachment::KIND, referring.collect()).await?;
            let outcome = |added| match added {
                Added::Failed(error) => Outcome::Failed(error),
                Added::Equal(row) => {
                    let shown = vec![Shown::of(&row)];
                    Outcome::Done { answer: row, entries: Vec::new(), shown }
                }
                Added::New(row) => {
                    let entries = vec![Entry::of(&row, "CREATE")];
                    Outcome::Done { answer: row, entries, shown: Vec::new() }
                }
            };
            Ok(added.into_iter().map(outcome).collect())
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Attachment> {
        only_row(entries)
    }
}

fn corrupt(digest: &str) -> Error {
    Error::DataLoss {
        reason: Reason::BlobCorrupt,
        message: format!(
            "the stored bytes of the blob \"{digest}\" are damaged; upload the right ones again"
        ),
        metadata: vec![("digest", digest.to_owned())],
    }
}
