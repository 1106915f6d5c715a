//! Bundles of evidence: JSON that a decision rests on, whose canonical bytes are a blob, too.

use super::Store;
use super::attachment::{self, Attachment};
use super::blob::change::{Keep, Kept, keep_all};
use super::blob::reference::{hold, refer};
use super::blob::{Blob, READY};
use super::caller::Caller;
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
use crate::{Error, Result, child, noun, queries};
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::time::SystemTime;
use uuid::Uuid;

noun! {
    pub struct EvidenceBundle in "evidence_bundle" as evidence_bundle + [children::QUERIES, QUERIES]
    within "decision" by decision_id
    {
        pub decision_uid: Uuid,
        pub decision_id: String,
        pub evidence_type: String,
        pub bundle_version: String,
        pub evidence_data: Json,
        /// SHA-256 of the canonical `evidence_data`, 64 hexadecimal digits: the id of the blob.
        pub digest: String,
        pub metadata: Json,
        /// A name for people; the store's own key is the blob's.
        pub object_key: String,
        /// Of the canonical bytes.
        pub size_bytes: i64,
    }

    fn is_given(&self, field: &str) -> bool {
        !matches!(field, "decision_uid" | "object_key")
    }

    fn stamp(&mut self, now: SystemTime) {
        let folder = dated(&format!("evidence/{}", self.evidence_type), now);
        self.object_key = format!("{folder}/{}.json", self.decision_id);
    }

    fn size_bytes(&self) -> usize {
        512 + self.evidence_data.text().len() + self.metadata.text().len()
    }
}

impl Parent for EvidenceBundle {}

pub static LISTING: Listing = Listing {
    kind: "evidence_bundle",
    table: "evidence_bundle",
    op: "evidence_bundle.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("decision_id", "d.decision_id", FieldKind::Text),
        Field::new("evidence_type", "d.evidence_type", FieldKind::Text),
        Field::new("bundle_version", "d.bundle_version", FieldKind::Text),
        Field::new("digest", "d.digest", FieldKind::Text),
        Field::new("object_key", "d.object_key", FieldKind::Text),
        Field::new("size_bytes", "d.size_bytes", FieldKind::Int),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("update_time", "d.update_time", FieldKind::Time),
        Field::new("metadata", "d.metadata", FieldKind::Json),
    ],
};

child!(EvidenceBundle in "evidence_bundle" of decision_id);

queries! { "evidence_bundle" {
    AFTER(String, Uuid, i64) -> EvidenceBundle =
        "SELECT {*} FROM evidence_bundle WHERE decision_id = $1 AND uid > $2 AND delete_time IS NULL \
         ORDER BY uid LIMIT $3";
    /// The newest of a decision and a type.
    NEWEST(String, String) -> EvidenceBundle =
        "SELECT {*} FROM evidence_bundle WHERE decision_id = $1 AND evidence_type = $2 AND delete_time IS NULL \
         ORDER BY create_time DESC, uid DESC LIMIT 1";
} }

impl Evidence for EvidenceBundle {
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

/// Where the bytes of a new bundle are.
#[derive(Clone)]
pub enum Bytes {
    /// In a blob that the tenant has. NOT_FOUND of a blob where it is gone meanwhile.
    There,
    /// In the store, brought by an attempt of our own, or to come into the database: with the bundle they are a blob.
    Brought(Box<Keep>),
    /// Nowhere: it is a rehearsal.
    Spared,
}

/// Adds a bundle to a decision, with the blob of its bytes.
#[derive(Clone)]
pub struct CreateEvidenceBundle {
    pub row: EvidenceBundle,
    pub on_conflict: OnConflict,
    pub bytes: Bytes,
}

/// The bundle, and the key of its blob if it was made just now.
pub struct CreatedBundle {
    pub bundle: EvidenceBundle,
    pub store_key: Option<String>,
}

impl Change for CreateEvidenceBundle {
    type Answer = CreatedBundle;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        // The decision's key keeps it away from the decision's deletion, the blob's from what else makes that blob.
        rows.push(RowKey::new(&[Decision::KIND, &self.row.decision_id]));
        rows.push(RowKey::new(&[EvidenceBundle::KIND, &self.row.id]));
        rows.push(RowKey::new(&[Blob::KIND, &self.row.digest]));
    }

    fn size_bytes(&self) -> usize {
        self.row.size_bytes()
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        vec![(EvidenceBundle::KIND, &self.row.id)]
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<CreatedBundle>>>> {
        Box::pin(async move {
            let ids = changes.iter().map(|a| a.change.row.decision_id.clone()).collect();
            let decisions = tx.lock::<Decision>(ids).await?;
            let given = changes.iter().map(|Applied { change, caller }| {
                (Ok(change.row.clone()), change.on_conflict, *caller)
            });
            let added = add_all(tx, &decisions, given.collect()).await?;

            // Only now, so that what is refused has written nothing.
            let is_new = |(added, _): &(&Added<EvidenceBundle>, &Applied<'_, Self>)| {
                matches!(added, Added::New(_))
            };
            let new = || added.iter().zip(changes).filter(is_new);
            let brought: Vec<(&Keep, &Caller)> = new()
                .filter_map(|(_, a)| match &a.change.bytes {
                    Bytes::Brought(keep) => Some((&**keep, a.caller)),
                    Bytes::There | Bytes::Spared => None,
                })
                .collect();
            let there = new().filter(|(_, a)| matches!(a.change.bytes, Bytes::There));
            let there = there.map(|(_, a)| a.change.row.digest.clone());
            let held = hold(tx, there.collect()).await?;
            let kept = if brought.is_empty() { Vec::new() } else { keep_all(tx, &brought).await? };
            let mut kept = kept.into_iter();

            let mut referring: Vec<(Uuid, Uuid)> = Vec::new();
            let mut outcomes = Vec::with_capacity(changes.len());
            for (added, Applied { change, .. }) in added.into_iter().zip(changes) {
                let bundle = match added {
                    Added::Failed(error) => {
                        outcomes.push(Outcome::Failed(error));
                        continue;
                    }
                    Added::Equal(bundle) => {
                        let shown = vec![Shown::of(&bundle)];
                        let answer = CreatedBundle { bundle, store_key: None };
                        outcomes.push(Outcome::Done { answer, entries: Vec::new(), shown });
                        continue;
                    }
                    Added::New(bundle) => bundle,
                };
                let mut entries = vec![Entry::of(&bundle, "CREATE")];
                let mut store_key = None;
                match &change.bytes {
                    Bytes::Spared => {}
                    Bytes::There => match held.get(&change.row.digest) {
                        Some(blob) if blob.state == READY => {
                            referring.push((blob.meta.uid, bundle.meta.uid));
                        }
                        _ => {
                            let error = Error::not_found(Blob::KIND, &change.row.digest);
                            outcomes.push(Outcome::Spoiled(error));
                            continue;
                        }
                    },
                    Bytes::Brought(_) => match kept.next() {
                        Some(Outcome::Done {
                            answer: Kept { blob, .. }, entries: more, ..
                        }) => {
                            entries.extend(more);
                            referring.push((blob.meta.uid, bundle.meta.uid));
                            store_key = Some(blob.store_key);
                        }
                        Some(Outcome::Failed(error) | Outcome::Spoiled(error)) => {
                            outcomes.push(Outcome::Spoiled(error));
                            continue;
                        }
                        None => return Err(Error::internal("a blob without a result")),
                    },
                }
                let answer = CreatedBundle { bundle, store_key };
                outcomes.push(Outcome::Done { answer, entries, shown: Vec::new() });
            }
            refer(tx, EvidenceBundle::KIND, referring).await?;
            Ok(outcomes)
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<CreatedBundle> {
        Ok(CreatedBundle { bundle: only_row(entries)?, store_key: None })
    }
}

impl Store {
    /// The newest bundle of a decision and a type, and the decision's attachments in the order of attaching.
    pub async fn decision_evidence(
        &self,
        caller: &Caller,
        decision_id: &str,
        evidence_type: &str,
    ) -> Result<(EvidenceBundle, Vec<Attachment>)> {
        let params = Arc::new((decision_id.to_owned(), evidence_type.to_owned()));
        let (bundle, attachments) = self
            .snapshot(caller, NEWEST.name, move |snapshot| {
                let params = Arc::clone(&params);
                Box::pin(async move {
                    let bundle = snapshot.all(&NEWEST, &*params).await?.pop();
                    let of_it = (params.0.clone(),);
                    let attachments = snapshot.all(&attachment::OF_DECISION, &of_it).await?;
                    snapshot.end((bundle, attachments)).await
                })
            })
            .await?;
        let bundle = bundle.ok_or_else(|| Error::not_found("evidence of decision", decision_id))?;
        Ok((bundle, attachments))
    }
}
