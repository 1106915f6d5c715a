//! Embeddings: what a vector in a space stands for. The vectors of their versions stand beside them, by their digests.

pub mod nearest;
pub mod plan;

use super::canonical::Json;
use super::change::{Created, Modify, OnConflict, Placed, create_all, modify_all, rows_of};
use super::child::Parent;
use super::facts;
use super::filter::{Condition, Field, FieldKind, Filter, Op, Value};
use super::list::Listing;
use super::log::{Entry, LogRow};
use super::noun::{Meta, Noun, Reference};
use super::vector::{Numbers, keep};
use super::vector_space::VectorSpace;
use super::write::{Applied, Change, Outcome, RowKey, Tx};
use crate::{Error, Result, noun, queries, row};
use futures_util::future::BoxFuture;
use uuid::Uuid;

noun! {
    pub struct Embedding in "embedding" as embedding + [QUERIES, super::vector::QUERIES] {
        pub space_uid: Uuid,
        pub space_id: String,
        /// Its id in its space.
        pub embedding_id: String,
        pub embedding_model: String,
        pub dimensions: i32,
        /// What is embedded, as the log names it; empty for what is not recorded here.
        pub of_kind: String,
        pub of_id: String,
        /// 0 for whatever version there is.
        pub of_version: i64,
        pub decision_id: String,
        pub owner_id: String,
        /// Of the vector, which stands in `embedding_vector`.
        pub vector_digest: String,
        pub context: String,
        pub tags: Json,
        pub similarity_threshold: Option<f64>,
        pub source: Json,
        pub metadata: Json,
    }

    fn is_given(&self, field: &str) -> bool {
        !matches!(field, "space_uid" | "space_id" | "embedding_model" | "dimensions")
    }

    fn references(&self) -> Vec<Reference<'_>> {
        let decision = ("decision_id", Some("decision"), &self.decision_id);
        let of = ("subject.id", facts(&self.of_kind).map(|facts| facts.kind), &self.of_id);
        let named = [decision, of].into_iter().filter_map(|(field, kind, id)| {
            Some(Reference { field: field.into(), kind: kind?, id: id.into() })
        });
        named.collect()
    }

    fn size_bytes(&self) -> usize {
        let json = self.source.text().len() + self.metadata.text().len();
        512 + 4 * usize::try_from(self.dimensions).unwrap_or_default() + self.context.len() + json
    }
}

impl Parent for Embedding {}

pub static LISTING: Listing = Listing {
    kind: "embedding",
    table: "embedding",
    op: "embedding.LIST",
    fields: &[
        Field::new("id", "d.embedding_id", FieldKind::Text),
        Field::new("subject_kind", "d.of_kind", FieldKind::Text),
        Field::new("subject_id", "d.of_id", FieldKind::Text),
        Field::new("decision_id", "d.decision_id", FieldKind::Text),
        Field::new("owner_id", "d.owner_id", FieldKind::Text),
        Field::new("similarity_threshold", "d.similarity_threshold", FieldKind::Float).nullable(),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("update_time", "d.update_time", FieldKind::Time),
        Field::new("tags", "d.tags", FieldKind::Texts),
        Field::new("metadata", "d.metadata", FieldKind::Json),
    ],
};

/// Not for callers: they name the space.
static SPACE: Field = Field::new("space_uid", "d.space_uid", FieldKind::Uuid);

/// The id by which the store knows an embedding: that of its space first, so that it is unique in the tenant, also
/// against those of a deleted space of the same id.
pub fn full_id(space_uid: Uuid, id: &str) -> String {
    format!("{space_uid}/{id}")
}

row! {
    /// A space that is there.
    pub struct LiveSpace {
        pub uid: Uuid,
    }
}

queries! { "embedding" {
    /// Those of the spaces that are live; they stay so until the transaction ends.
    LIVE_SPACES(Vec<Uuid>) -> LiveSpace =
        "SELECT {*} FROM vector_space WHERE uid = ANY($1) AND delete_time IS NULL FOR KEY SHARE";
} }

impl Embedding {
    /// Stands for one whose answer the ledger has; it is never written.
    pub fn to_be_replayed(embedding_id: String) -> Self {
        let uid = Uuid::nil();
        let embedding_id = if embedding_id.is_empty() { uid.to_string() } else { embedding_id };
        Self {
            id: full_id(uid, &embedding_id),
            meta: Meta::new(uid),
            space_uid: uid,
            space_id: String::new(),
            embedding_id,
            embedding_model: String::new(),
            dimensions: 0,
            of_kind: String::new(),
            of_id: String::new(),
            of_version: 0,
            decision_id: String::new(),
            owner_id: String::new(),
            vector_digest: String::new(),
            context: String::new(),
            tags: Json::array(),
            similarity_threshold: None,
            source: Json::object(),
            metadata: Json::object(),
        }
    }
}

/// What is in a space.
pub fn in_space(space: &VectorSpace, filter: Filter) -> Result<Filter> {
    let is_it = Op::Equals(Value::Text(space.meta.uid.to_string()));
    Ok(Filter::All(vec![filter, Filter::Field(Condition::new(&SPACE, Vec::new(), is_it)?)]))
}

/// Writes embeddings of a space with their vectors, all or none.
pub struct WriteEmbeddings {
    pub space_uid: Uuid,
    /// Its id, for whom it is gone.
    pub space_id: String,
    /// Whether its storage is FLOAT16.
    pub is_half: bool,
    /// No two with one id.
    pub rows: Vec<Embedding>,
    /// Of each row, in the same order.
    pub vectors: Vec<Numbers>,
    pub on_conflict: OnConflict,
}

/// What became of embeddings.
pub struct WrittenEmbeddings {
    /// In the order of the request.
    pub rows: Vec<Embedding>,
    /// How many are new or changed.
    pub written: usize,
}

impl Change for WriteEmbeddings {
    type Answer = WrittenEmbeddings;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.extend(self.rows.iter().map(|row| RowKey::new(&[Embedding::KIND, &row.id])));
    }

    fn size_bytes(&self) -> usize {
        self.rows.iter().map(Embedding::size_bytes).sum()
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        self.rows.iter().map(|row| (Embedding::KIND, row.id.as_str())).collect()
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<WrittenEmbeddings>>>> {
        Box::pin(async move {
            let spaces: Vec<Uuid> = changes.iter().map(|a| a.change.space_uid).collect();
            let live = tx.run(&LIVE_SPACES, &(spaces,)).await?;
            let is_live = |change: &Self| live.iter().any(|space| space.uid == change.space_uid);
            let creates: Vec<_> = changes
                .iter()
                .filter(|a| is_live(a.change))
                .map(|a| (a.change.rows.as_slice(), a.change.on_conflict, a.caller))
                .collect();
            let mut results = create_all(tx, &creates).await?.into_iter();
            let mut outcomes = Vec::with_capacity(changes.len());
            for Applied { change, .. } in changes {
                if !is_live(change) {
                    let gone = Error::not_found(VectorSpace::KIND, &change.space_id);
                    outcomes.push(Outcome::Failed(gone));
                    continue;
                }
                let created: Created<Embedding> = match results.next() {
                    Some(Ok(created)) => created,
                    Some(Err((error, true))) => {
                        outcomes.push(Outcome::Spoiled(error));
                        continue;
                    }
                    Some(Err((error, false))) => {
                        outcomes.push(Outcome::Failed(error));
                        continue;
                    }
                    None => return Err(Error::internal("a create without a result")),
                };
                let pairs = created.rows.iter().zip(&change.vectors);
                let new = pairs.filter(|((_, placed), _)| *placed != Placed::Equal);
                let new: Vec<_> = new.map(|((row, _), vector)| (row.meta.uid, vector)).collect();
                keep(tx, change.space_uid, change.is_half, &new).await?;
                let written = new.len();
                let (entries, shown) = created.traces();
                let rows = created.rows.into_iter().map(|(row, _)| row).collect();
                let answer = WrittenEmbeddings { rows, written };
                outcomes.push(Outcome::Done { answer, entries, shown });
            }
            Ok(outcomes)
        })
    }

    /// By the embeddings' own ids: what the name of the space stands for may have changed since.
    fn rebuild(&self, entries: &[LogRow]) -> Result<WrittenEmbeddings> {
        let mut found: Vec<Embedding> = rows_of(entries)?;
        let mut rows = Vec::with_capacity(self.rows.len());
        for asked in &self.rows {
            let chosen_by_server = asked.embedding_id == asked.meta.uid.to_string();
            let is_it = |row: &Embedding| match chosen_by_server {
                true => row.embedding_id == row.meta.uid.to_string(),
                false => row.embedding_id == asked.embedding_id,
            };
            let place = found.iter().position(is_it);
            let place = place.ok_or_else(|| Error::internal("a replayed answer lacks a row"))?;
            rows.push(found.remove(place));
        }
        // The call's own entries are the last ones; if it made none, its receipt says that nothing was written.
        let is_own = |entry: &&LogRow| {
            entries.last().is_some_and(|last| {
                (entry.time, &entry.request_id) == (last.time, &last.request_id)
            })
        };
        Ok(WrittenEmbeddings { rows, written: entries.iter().filter(is_own).count() })
    }
}

/// Deletes embeddings, all or none.
pub struct DeleteEmbeddings(pub Vec<Modify<Embedding>>);

impl Change for DeleteEmbeddings {
    /// Those that were there.
    type Answer = Vec<Embedding>;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        for delete in &self.0 {
            delete.touches(rows);
        }
    }

    fn size_bytes(&self) -> usize {
        0
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        self.0.iter().map(|delete| (Embedding::KIND, delete.id.as_str())).collect()
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Vec<Embedding>>>>> {
        Box::pin(async move {
            let pairs: Vec<_> = changes
                .iter()
                .flat_map(|a| a.change.0.iter().map(|delete| (delete, a.caller)))
                .collect();
            let mut results = modify_all(tx, &pairs).await?.into_iter();
            let mut outcomes = Vec::with_capacity(changes.len());
            for Applied { change, .. } in changes {
                // Only a replay names none, so the ledger has forgotten its answer this moment.
                if change.0.is_empty() {
                    let gone = Error::not_found(VectorSpace::KIND, "");
                    outcomes.push(Outcome::Failed(gone));
                    continue;
                }
                let (mut gone, mut wrong) = (Vec::new(), None);
                for result in results.by_ref().take(change.0.len()) {
                    match result {
                        Ok(deleted) => gone.extend(deleted.map(|(row, _)| row)),
                        Err(error) => wrong = wrong.or(Some(error)),
                    }
                }
                outcomes.push(match wrong {
                    Some(error) if gone.is_empty() => Outcome::Failed(error),
                    Some(error) => Outcome::Spoiled(error),
                    None => {
                        let entries = gone.iter().map(|row| Entry::of(row, "DELETE")).collect();
                        Outcome::Done { answer: gone, entries, shown: Vec::new() }
                    }
                });
            }
            Ok(outcomes)
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Vec<Embedding>> {
        rows_of(entries)
    }
}
