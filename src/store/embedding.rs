//! Embeddings: what a vector in a space stands for. The vector itself is kept once, beside them, by its digest.

use super::Store;
use super::caller::Caller;
use super::canonical::Json;
use super::change::{
    Created, Modify, OnConflict, Placed, create_all, in_order_of, modify_all, rows_of, stamp,
};
use super::child::Parent;
use super::filter::{Condition, Field, FieldKind, Filter, Op, Params, Value};
use super::list::{ListQuery, Listing};
use super::log::{Entry, LogRow};
use super::noun::Noun;
use super::postgres::read_rows;
use super::snapshot::{Glance, Look, Snapshot, in_the_future};
use super::vector::{Metric, Numbers, keep};
use super::vector_space::VectorSpace;
use super::write::{Applied, Change, Foreseen, Insert, Outcome, RowKey, Tx};
use crate::{Result, noun};
use futures_util::future::BoxFuture;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;
use tokio_postgres::Row;
use uuid::Uuid;

noun! {
    pub struct Embedding in "embedding" as embedding + [super::vector::QUERIES] {
        pub space_uid: Uuid,
        pub space_id: String,
        /// Its id in its space.
        pub embedding_id: String,
        pub embedding_model: String,
        pub dimensions: i32,
        /// As the log names it; empty for what is not recorded here.
        pub subject_kind: String,
        pub subject_id: String,
        /// 0 for whatever version there is.
        pub subject_version: i64,
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
        Field::new("subject_kind", "d.subject_kind", FieldKind::Text),
        Field::new("subject_id", "d.subject_id", FieldKind::Text),
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
pub fn full_id(space: &VectorSpace, id: &str) -> String {
    format!("{}/{id}", space.meta.uid)
}

/// What is in a space.
pub fn in_space(space: &VectorSpace, filter: Filter) -> Result<Filter> {
    let is_it = Op::Equals(Value::Text(space.meta.uid.to_string()));
    Ok(Filter::All(vec![filter, Filter::Field(Condition::new(&SPACE, Vec::new(), is_it)?)]))
}

/// Writes embeddings of a space with their vectors, all or none.
pub struct WriteEmbeddings {
    pub space: Arc<VectorSpace>,
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
        Some(foresee);

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
            let creates: Vec<_> = changes
                .iter()
                .map(|a| (a.change.rows.as_slice(), a.change.on_conflict, a.caller))
                .collect();
            let results: Vec<Result<Created<Embedding>, _>> = create_all(tx, &creates).await?;
            let mut outcomes = Vec::with_capacity(results.len());
            for (result, Applied { change, .. }) in results.into_iter().zip(changes) {
                let created = match result {
                    Ok(created) => created,
                    Err((error, true)) => {
                        outcomes.push(Outcome::Spoiled(error));
                        continue;
                    }
                    Err((error, false)) => {
                        outcomes.push(Outcome::Failed(error));
                        continue;
                    }
                };
                let pairs = created.rows.iter().zip(&change.vectors);
                let new = pairs.filter(|((_, placed), _)| *placed != Placed::Equal);
                let new: Vec<&Numbers> = new.map(|(_, vector)| vector).collect();
                let written = new.len();
                if written > 0 {
                    let (statement, params) = keep(&change.space, new.into_iter());
                    tx.run(statement, &params).await?;
                }
                let (entries, shown) = created.traces();
                let rows = created.rows.into_iter().map(|(row, _)| row).collect();
                let answer = WrittenEmbeddings { rows, written };
                outcomes.push(Outcome::Done { answer, entries, shown });
            }
            Ok(outcomes)
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<WrittenEmbeddings> {
        let rows = in_order_of(&self.rows, rows_of(entries)?)?;
        // The call's own entries are the last ones; if it made none, its receipt says that nothing was written.
        let is_own = |entry: &&LogRow| {
            entries.last().is_some_and(|last| {
                (entry.time, &entry.request_id) == (last.time, &last.request_id)
            })
        };
        Ok(WrittenEmbeddings { rows, written: entries.iter().filter(is_own).count() })
    }
}

fn foresee(
    changes: &[Applied<'_, WriteEmbeddings>],
    now: SystemTime,
) -> Foreseen<WrittenEmbeddings> {
    let mut outcomes: Vec<(WrittenEmbeddings, _)> = Vec::with_capacity(changes.len());
    let mut inserts = Vec::new();
    for Applied { change, caller } in changes {
        let rows: Vec<Embedding> =
            change.rows.iter().map(|row| stamp(row, caller.acting(), now)).collect();
        let entries = rows.iter().map(|row| Entry::of(row, "CREATE")).collect();
        let written = rows.len();
        outcomes.push((WrittenEmbeddings { rows, written }, entries));
        let (statement, params) = keep(&change.space, change.vectors.iter());
        inserts.push(Insert::beside(statement, params));
    }
    let rows: Vec<&Embedding> = outcomes.iter().flat_map(|(answer, _)| &answer.rows).collect();
    let mut all = Insert::all_of(&rows);
    all.extend(inserts);
    Foreseen { inserts: all, outcomes }
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

/// A search for the embeddings nearest to a vector, by looking at every one.
#[derive(Clone)]
pub struct Nearest {
    pub space: Arc<VectorSpace>,
    pub target: Numbers,
    pub top_k: i64,
    /// Also holds them to the space: see [`in_space`].
    pub filter: Filter,
    /// An embedding that is no hit.
    pub but: Option<Uuid>,
}

/// A hit, and how far away it is.
#[derive(Clone, Debug)]
pub struct Near {
    pub row: Embedding,
    pub distance: f64,
}

impl Nearest {
    /// As the space stood at a number of the log; `None` means now.
    fn statement(&self, snapshot: Option<i64>) -> (String, Params) {
        let Metric { operator, column, sql_type } = Metric::of(&self.space);
        let mut params = Params::default();
        let query = ListQuery { filter: self.filter.clone(), snapshot, ..ListQuery::default() };
        let sources = LISTING.sources(&query, &mut params);
        let mut conditions = query.conditions(&mut params);
        conditions.extend(self.but.map(|uid| format!("d.uid <> {}", params.push(uid))));
        let target = params.push(self.target.values().to_vec());
        let limit = params.push(self.top_k);
        let columns = <Embedding as super::query::FromRow>::columns();
        let columns: Vec<_> =
            columns.iter().map(|column| format!("d.\"{}\"", column.name)).collect();
        let select = format!(
            "{}, x.{column} {operator} {target}::{sql_type} AS distance",
            columns.join(", ")
        );
        let branches: Vec<String> = sources
            .into_iter()
            .map(|mut source| {
                source.from.push_str(
                    "\nJOIN embedding_vector AS x ON x.space_uid = d.space_uid AND x.digest = d.vector_digest",
                );
                let rows = source.rows(&select, &[&conditions]);
                format!("({rows}\nORDER BY distance, d.uid\nLIMIT {limit})")
            })
            .collect();
        let all = branches.join("\nUNION ALL\n");
        (
            format!("SELECT * FROM (\n{all}\n) AS near\nORDER BY distance, uid\nLIMIT {limit}"),
            params,
        )
    }
}

fn read_near(rows: &[Row]) -> Result<Vec<Near>> {
    let embeddings: Vec<Embedding> = read_rows(rows)?;
    embeddings
        .into_iter()
        .zip(rows)
        .map(|(row, found)| Ok(Near { row, distance: found.try_get("distance")? }))
        .collect()
}

const SEARCH: &str = "embedding.SEARCH";

impl Store {
    /// The nearest of each search, all at one moment, and the log number of that moment.
    pub async fn nearest(
        &self,
        caller: &Caller,
        searches: Vec<Nearest>,
        snapshot: Option<i64>,
    ) -> Result<(Vec<Vec<Near>>, i64)> {
        if let ([search], None) = (&searches[..], snapshot) {
            let (sql, params) = search.statement(None);
            let look = Look { sql, params, common: false, since: None };
            let Glance { rows, head, .. } = self.glance(caller, SEARCH, look).await?;
            return Ok((vec![read_near(&rows)?], head));
        }
        let searches = Arc::new(searches);
        self.snapshot(caller, SEARCH, move |at: Snapshot| {
            let searches = Arc::clone(&searches);
            Box::pin(async move {
                let seq = snapshot.unwrap_or(at.head);
                if seq > at.head {
                    return Err(in_the_future());
                }
                // Where nothing was written since, the tables are as they were.
                let since = snapshot.filter(|seq| *seq < at.head);
                if let Some(seq) = since {
                    at.reaches_back(seq).await?;
                }
                let mut found = Vec::with_capacity(searches.len());
                for search in searches.iter() {
                    let (sql, params) = search.statement(since);
                    found.push(read_near(&at.dynamic(&sql, &params).await?)?);
                }
                at.end((found, seq)).await
            })
        })
        .await
    }

    /// Vectors of a space by their digests, as they are kept.
    pub async fn vectors(
        &self,
        caller: &Caller,
        space_uid: Uuid,
        digests: Vec<String>,
    ) -> Result<HashMap<String, Vec<f32>>> {
        let mut params = Params::default();
        let (space, digests) = (params.push(space_uid), params.push(digests));
        let sql = format!(
            "SELECT digest, COALESCE(vector::real[], half::real[]) AS numbers FROM embedding_vector \
             WHERE space_uid = {space} AND digest = ANY({digests})"
        );
        let look = Look { sql, params, common: false, since: None };
        let Glance { rows, .. } = self.glance(caller, "embedding_vector.READ", look).await?;
        rows.iter().map(|row| Ok((row.try_get("digest")?, row.try_get("numbers")?))).collect()
    }
}
