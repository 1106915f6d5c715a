//! Embeddings: what a vector in a space stands for. The vectors of their versions stand beside them, by their digests.

pub mod given;
pub mod nearest;
pub mod plan;
pub mod subject;

use super::caller::Caller;
use super::canonical::Json;
use super::change::{Created, Modify, OnConflict, Placed, create_all, modify_all, rows_of, stamp};
use super::child::Parent;
use super::facts;
use super::filter::{Condition, Field, FieldKind, Filter, Op, Value};
use super::list::Listing;
use super::log::{Entry, LogRow};
use super::noun::{Meta, Noun, Reference};
use super::vector::{Numbers, keep, keep_new};
use super::vector_space::VectorSpace;
use super::write::{Applied, Change, Embeddings, Foreseen, Insert, Outcome, RowKey, Tx};
use crate::{Error, Result, noun, queries, row};
use futures_util::future::BoxFuture;
use std::collections::HashSet;
use std::time::SystemTime;
use uuid::Uuid;

noun! {
    pub struct Embedding in "embedding" as embedding + [QUERIES, subject::QUERIES, super::vector::QUERIES] {
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

/// Bytes of an embedding's id in its space. With the space's uid and a slash before it, it is an id like any other.
pub const ID_BYTES_MAX: usize = 255 - 36 - 1;

/// The id by which the store knows an embedding: that of its space first, so that it is unique in the tenant, also
/// against those of a deleted space of the same id.
pub fn full_id(space_uid: Uuid, id: &str) -> String {
    format!("{space_uid}/{id}")
}

/// The id in its space of an embedding that the store knows by this one.
pub fn own_id(full_id: &str) -> &str {
    full_id.split_once('/').map_or(full_id, |(_, own)| own)
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
    /// Stands for one in a space that is not there: it can only be replayed, because nothing is written into no space.
    pub fn without_space(space_id: String, embedding_id: String, uid: Uuid) -> Self {
        Self {
            id: full_id(Uuid::nil(), &embedding_id),
            meta: Meta::new(uid),
            space_uid: Uuid::nil(),
            space_id,
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

/// Of embeddings the first whose space is not there, as an error. The spaces of the others stay until the transaction ends.
pub(super) async fn homeless<'r>(
    tx: &Tx<'_>,
    changes: Vec<impl Iterator<Item = &'r Embedding>>,
) -> Result<Vec<Option<Error>>> {
    let named: Vec<Vec<(Uuid, &str)>> = changes.into_iter().map(spaces_of).collect();
    let wanted: HashSet<Uuid> = named.iter().flatten().map(|(uid, _)| *uid).collect();
    let mut wanted: Vec<Uuid> = wanted.into_iter().collect();
    if wanted.is_empty() {
        return Ok(named.iter().map(|_| None).collect());
    }
    wanted.sort_unstable();
    let live = tx.run(&LIVE_SPACES, &(wanted,)).await?;
    let is_live = |uid: Uuid| live.iter().any(|space| space.uid == uid);
    let gone = named.into_iter().map(|spaces| {
        let gone = spaces.into_iter().find(|(uid, _)| !is_live(*uid));
        gone.map(|(_, id)| Error::not_found(VectorSpace::KIND, id))
    });
    Ok(gone.collect())
}

/// The spaces of embeddings, each once.
fn spaces_of<'r>(rows: impl Iterator<Item = &'r Embedding>) -> Vec<(Uuid, &'r str)> {
    let mut seen = HashSet::new();
    rows.filter(|row| seen.insert((row.space_uid, &row.space_id)))
        .map(|row| (row.space_uid, row.space_id.as_str()))
        .collect()
}

/// Embeddings, their vectors in the same order, what to do where an id is taken, and for whom.
pub(super) type Written<'a> = (&'a [Embedding], Vec<&'a Numbers>, OnConflict, &'a Caller);

/// Writes the embeddings of several changes into spaces that are there: see [`create_all`].
pub(super) async fn write_all(
    tx: &Tx<'_>,
    changes: &[Written<'_>],
) -> Result<Vec<Result<Created<Embedding>, (Error, bool)>>> {
    if changes.is_empty() {
        return Ok(Vec::new());
    }
    let creates = changes.iter();
    let creates = creates.map(|(rows, _, on_conflict, caller)| (*rows, *on_conflict, *caller));
    let results = create_all(tx, &creates.collect::<Vec<_>>()).await?;
    let mut new = Vec::new();
    for (created, (_, vectors, ..)) in results.iter().zip(changes) {
        let Ok(created) = created else { continue };
        let written = created.rows.iter().zip(vectors);
        let written = written.filter(|((_, placed), _)| *placed != Placed::Equal);
        new.extend(written.map(|((row, _), vector)| (row.meta.uid, *vector)));
    }
    keep(tx, &new).await?;
    Ok(results)
}

/// What new embeddings and their vectors ask for, unseen.
pub(super) fn inserts_of(rows: &[&Embedding], vectors: &[&Numbers]) -> Vec<Insert> {
    let spaces: HashSet<Uuid> = rows.iter().map(|row| row.space_uid).collect();
    let spaces: Vec<Uuid> = spaces.into_iter().collect();
    let kept: Vec<_> = rows.iter().map(|row| row.meta.uid).zip(vectors.iter().copied()).collect();
    let mut inserts = Insert::all_of(rows);
    inserts.extend(keep_new(&kept, &spaces));
    inserts
}

/// Writes embeddings with their vectors, all or none.
pub struct WriteEmbeddings {
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

    const FORESEE: Option<fn(&[Applied<'_, Self>], SystemTime) -> Foreseen<WrittenEmbeddings>> =
        Some(|changes, now| {
            let made = changes.iter().map(|Applied { change, caller }| {
                let rows = change.rows.iter().map(|row| stamp(row, caller.acting(), now));
                let rows: Vec<Embedding> = rows.collect();
                let entries = rows.iter().map(|row| Entry::of(row, "CREATE")).collect();
                (WrittenEmbeddings { written: rows.len(), rows }, entries)
            });
            let outcomes: Vec<(WrittenEmbeddings, Vec<Entry>)> = made.collect();
            let rows: Vec<_> = outcomes.iter().flat_map(|(written, _)| &written.rows).collect();
            let vectors: Vec<_> = changes.iter().flat_map(|a| &a.change.vectors).collect();
            Foreseen { inserts: inserts_of(&rows, &vectors), outcomes }
        });

    fn must_look(&self) -> bool {
        self.rows.iter().any(|row| row.space_uid.is_nil())
    }

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.extend(self.rows.iter().map(|row| RowKey::new(&[Embedding::KIND, &row.id])));
    }

    fn size_bytes(&self) -> usize {
        self.rows.iter().map(Embedding::size_bytes).sum()
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        self.rows.iter().map(|row| (Embedding::KIND, row.id.as_str())).collect()
    }

    fn embeddings(&self) -> Embeddings {
        Embeddings::Written
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<WrittenEmbeddings>>>> {
        Box::pin(async move {
            let homeless =
                homeless(tx, changes.iter().map(|a| a.change.rows.iter()).collect()).await?;
            let housed = changes.iter().zip(&homeless).filter(|(_, gone)| gone.is_none());
            let writes = housed.map(|(Applied { change, caller }, _)| {
                let WriteEmbeddings { rows, vectors, on_conflict } = change;
                (rows.as_slice(), vectors.iter().collect(), *on_conflict, *caller)
            });
            let mut results = write_all(tx, &writes.collect::<Vec<_>>()).await?.into_iter();
            let outcomes = homeless.into_iter().map(|gone| {
                if let Some(gone) = gone {
                    return Ok(Outcome::Failed(gone));
                }
                let missing = || Error::internal("a create without a result");
                Ok(match results.next().ok_or_else(missing)? {
                    Err((error, true)) => Outcome::Spoiled(error),
                    Err((error, false)) => Outcome::Failed(error),
                    Ok(created) => {
                        let (entries, shown) = created.traces();
                        let written = entries.len();
                        let rows = created.rows.into_iter().map(|(row, _)| row).collect();
                        let answer = WrittenEmbeddings { rows, written };
                        Outcome::Done { answer, entries, shown }
                    }
                })
            });
            outcomes.collect()
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

/// Deletes embeddings of a space, all or none.
pub struct DeleteEmbeddings {
    pub deletes: Vec<Modify<Embedding>>,
    /// The name of the space, where there is none of that name: then this can only be replayed.
    pub unknown_space: Option<String>,
}

impl Change for DeleteEmbeddings {
    /// Those that were there.
    type Answer = Vec<Embedding>;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        for delete in &self.deletes {
            delete.touches(rows);
        }
    }

    fn size_bytes(&self) -> usize {
        0
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        self.deletes.iter().map(|delete| (Embedding::KIND, delete.id.as_str())).collect()
    }

    fn embeddings(&self) -> Embeddings {
        Embeddings::Written
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Vec<Embedding>>>>> {
        Box::pin(async move {
            let known = changes.iter().filter(|a| a.change.unknown_space.is_none());
            let pairs: Vec<_> = known
                .flat_map(|a| a.change.deletes.iter().map(|delete| (delete, a.caller)))
                .collect();
            let mut results = modify_all(tx, &pairs).await?.into_iter();
            let mut outcomes = Vec::with_capacity(changes.len());
            for Applied { change, .. } in changes {
                if let Some(name) = &change.unknown_space {
                    outcomes.push(Outcome::Failed(Error::not_found(VectorSpace::KIND, name)));
                    continue;
                }
                let (mut gone, mut wrong) = (Vec::new(), None);
                for result in results.by_ref().take(change.deletes.len()) {
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
