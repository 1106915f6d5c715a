//! Several legs of a search fused in one statement: the same input, words, and the nearest vectors.
//!
//! Each leg has the filter inside and ranks by itself, down to its limit; then ranks, not scores, are added up, because
//! scores of different legs cannot be compared. The vector leg finds embeddings and ranks what they are of, each by its
//! nearest one. Where the space has an index, candidates come from it and from what it does not have yet, and distances
//! from the vectors themselves; where that leaves the leg short, the statement is run again over every embedding.

use super::kinds::Kind;
use super::ranking::{Details, Hidden, Shown, details_of, text_branches};
use super::{Wanted, Words, headline};
use crate::store::Store;
use crate::store::caller::Caller;
use crate::store::embedding::nearest::{How, Method, code_of, has_code_for};
use crate::store::embedding::{self, plan};
use crate::store::filter::{Filter, Params};
use crate::store::list::ListQuery;
use crate::store::precedent::Precedent;
use crate::store::query::FromRow as _;
use crate::store::snapshot::{Snapshot, in_the_future};
use crate::store::vector::{Metric, Numbers};
use crate::store::vector_index::{IVFFLAT, Index};
use crate::store::vector_space::VectorSpace;
use crate::{Error, Result};
use std::sync::Arc;
use tokio_postgres::Row;
use uuid::Uuid;

/// Rows of one leg at most. What ranks lower there adds next to nothing.
pub const LEG_MAX: i64 = 1000;
/// In weight / (k + rank), where the caller does not say: how little the first few ranks differ.
pub const RRF_K: i64 = 60;

/// How ranks are added up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fusion {
    pub k: i64,
    pub exact_weight: f64,
    pub text_weight: f64,
    pub vector_weight: f64,
    /// Rows of each leg, 1 to [`LEG_MAX`].
    pub leg_limit: i64,
}

impl Default for Fusion {
    fn default() -> Self {
        Self {
            k: RRF_K,
            exact_weight: 1.0,
            text_weight: 1.0,
            vector_weight: 1.0,
            leg_limit: LEG_MAX,
        }
    }
}

/// What the vector leg looks for.
#[derive(Clone)]
pub struct Near {
    pub space: Arc<VectorSpace>,
    /// Holds embeddings to the space: see [`in_space`](crate::store::embedding::in_space).
    pub in_space: Filter,
    pub target: Numbers,
    /// An embedding that finds nothing.
    pub but: Option<Uuid>,
    pub how: How,
}

/// A search of one or more legs. One without anything to look for is left out.
#[derive(Clone)]
pub struct Hybrid {
    /// Each once, and each with its filter.
    pub kinds: Vec<(&'static Kind, Filter)>,
    /// The hash of a case, where precedents are the only kind.
    pub case_hash: Option<String>,
    pub words: Option<Words>,
    pub near: Option<Near>,
    pub fusion: Fusion,
    pub min_score: f64,
    /// Hits.
    pub limit: i64,
    /// The log number to be read at; none means now.
    pub snapshot: Option<i64>,
    /// Whether candidates are counted, which takes a little longer.
    pub explain: bool,
}

/// A hit without what is shown of it.
#[derive(Clone, Debug)]
pub struct Fused {
    /// Its place among the kinds asked for.
    pub kind: usize,
    pub id: String,
    pub uid: Uuid,
    pub version: i64,
    /// Whether the version is in the log only.
    pub restored: bool,
    pub score: f64,
    /// From 1; 0 means not in the leg.
    pub exact_rank: i64,
    pub text_rank: i64,
    pub vector_rank: i64,
    /// 0 when not in the text leg.
    pub text_score: f64,
    /// Of the nearest embedding, and its id in its space; none when not in the vector leg.
    pub distance: Option<f64>,
    pub embedding_id: Option<String>,
}

/// What a leg did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LegFound {
    pub name: &'static str,
    pub method: Method,
    pub hits: i64,
    /// Embeddings whose distances were reckoned; counted only where explained.
    pub candidates: i64,
}

/// What was found, best first, with something of the caller's beside each hit.
#[derive(Clone, Debug)]
pub struct Found<T> {
    pub hits: Vec<(Fused, T)>,
    pub legs: Vec<LegFound>,
    /// Whether there may be more.
    pub incomplete: bool,
    pub seq: i64,
}

/// What a statement tells of each hit beside its name and its ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tell {
    Nothing,
    /// The precedent's columns, and `headline`.
    Precedent {
        highlight: bool,
    },
}

/// The columns that every leg has.
const LEG_COLUMNS: &str = "kind, id, uid, version, restored, score, distance, embedding_id, rank";

impl Hybrid {
    /// One statement. Its first columns, which every row has, say how many rows each leg has; where there are no hits,
    /// there is one row with the others NULL.
    pub(super) fn sql(&self, tenant: &str, index: Option<&Index>, tell: Tell) -> (String, Params) {
        let mut params = Params::default();
        let mut with = Vec::new();
        let mut legs = Vec::new();
        if let Some(hash) = &self.case_hash {
            with.push(self.exact_leg(hash, &mut params));
            legs.push(("exact", self.fusion.exact_weight));
        }
        let wanted: Option<Wanted> =
            self.words.as_ref().map(|words| words.bind(tenant, &mut params));
        if let Some(wanted) = &wanted {
            with.push(self.text_leg(wanted, &mut params));
            legs.push(("text", self.fusion.text_weight));
        }
        if let Some(near) = &self.near {
            match index {
                Some(index) => with.push(self.candidates(near, index, &mut params)),
                None => with.push(self.all_near(near, &mut params)),
            }
            with.push(self.vector_leg());
            legs.push(("vector", self.fusion.vector_weight));
        }
        let of = |leg: &str, what: &str| match legs.iter().any(|(name, _)| *name == leg) {
            true => format!("max({what}) FILTER (WHERE leg = '{leg}')"),
            false => "NULL".to_owned(),
        };
        let rank = |leg: &str| format!("COALESCE({}, 0)::int8 AS {leg}_rank", of(leg, "rank"));
        // Added up in one order, so that the same ranks always make the same score.
        let parts: Vec<_> = legs
            .iter()
            .map(|(leg, weight)| {
                let weight = params.push(*weight);
                let k = self.fusion.k;
                format!("COALESCE({weight} / ({k} + {})::float8, 0)", of(leg, "rank"))
            })
            .collect();
        let all: Vec<_> = legs
            .iter()
            .map(|(leg, _)| format!("SELECT '{leg}' AS leg, {LEG_COLUMNS} FROM {leg}_leg"))
            .collect();
        let found = |leg: &str| match legs.iter().any(|(name, _)| *name == leg) {
            true => format!("(SELECT count(*) FROM {leg}_leg) AS {leg}_found"),
            false => format!("0::int8 AS {leg}_found"),
        };
        let looked_at = |what: &str, known: bool| match known {
            true => format!("(SELECT count(*) FROM {what}) AS {what}_found"),
            false => format!("0::int8 AS {what}_found"),
        };
        let (columns, joined) = match tell {
            Tell::Nothing => (String::new(), ""),
            Tell::Precedent { highlight } => {
                let columns = Precedent::columns();
                let columns: Vec<_> =
                    columns.iter().map(|column| format!("d.{}", column.name)).collect();
                let texts = super::kinds::kind("precedent").map(|kind| kind.texts);
                let headline = match &wanted {
                    Some(wanted) if highlight => headline(&wanted.query, texts.unwrap_or_default()),
                    _ => "''".into(),
                };
                // These first: a row is read by the places of its columns.
                let columns = format!("{}, {headline} AS headline, ", columns.join(", "));
                (columns, "\nLEFT JOIN precedent AS d ON d.uid = b.uid")
            }
        };
        let sql = format!(
            "WITH {with},\nfused AS (\n\
             SELECT kind, id, uid, version, restored, {parts} AS score, {exact}, {text}, {vector},\n  \
             COALESCE({text_score}, 0)::float8 AS text_score, {distance}::float8 AS distance,\n  \
             {embedding}::text AS embedding_id\n\
             FROM (\n{all}\n) AS found GROUP BY kind, id, uid, version, restored),\n\
             best AS MATERIALIZED (SELECT * FROM fused WHERE score >= {least}\n\
             ORDER BY exact_rank = 0, score DESC, uid LIMIT {limit}),\n\
             counts AS (SELECT {counts})\n\
             SELECT {columns}b.kind AS hit_kind, b.id AS hit_id, b.uid AS hit_uid, b.version AS hit_version, b.restored, b.score, b.exact_rank,\n  \
             b.text_rank, b.vector_rank, b.text_score, b.distance, b.embedding_id, counts.*\n\
             FROM counts LEFT JOIN best AS b ON TRUE{joined}\n\
             ORDER BY b.exact_rank = 0, b.score DESC, b.uid",
            with = with.join(",\n"),
            parts = parts.join(" + "),
            exact = rank("exact"),
            text = rank("text"),
            vector = rank("vector"),
            text_score = of("text", "score"),
            distance = of("vector", "distance"),
            embedding = of("vector", "embedding_id"),
            all = all.join("\nUNION ALL\n"),
            least = params.push(self.min_score),
            limit = params.push(self.limit),
            counts = [
                found("exact"),
                found("text"),
                found("vector"),
                looked_at("sealed", self.near.is_some() && index.is_some()),
                looked_at("near", self.near.is_some() && self.explain),
            ]
            .join(", "),
        );
        (sql, params)
    }

    /// A leg: the best of its rows, with their ranks.
    fn leg(&self, name: &str, order: &str, rows: &str) -> String {
        format!(
            "{name}_leg AS MATERIALIZED (\n\
             SELECT kind, id, uid, version, restored, score, distance, embedding_id,\n  \
             row_number() OVER (ORDER BY {order}) AS rank\nFROM (\n{rows}\n) AS hit\n\
             ORDER BY {order} LIMIT {})",
            self.fusion.leg_limit
        )
    }

    /// What of a kind fulfils its filter.
    fn query(&self, filter: &Filter) -> ListQuery {
        ListQuery { filter: filter.clone(), snapshot: self.snapshot, ..ListQuery::default() }
    }

    fn exact_leg(&self, hash: &str, params: &mut Params) -> String {
        let mut branches = Vec::new();
        for (n, (kind, filter)) in self.kinds.iter().enumerate() {
            let query = self.query(filter);
            let sources = kind.listing.sources(&query, params);
            let common = query.conditions(params);
            let same = format!("d.case_hash = {}", params.push(hash.to_owned()));
            for (place, source) in sources.into_iter().enumerate() {
                let select = format!(
                    "{n} AS kind, d.id, d.uid, d.version, {} AS restored, NULL::float8 AS score, \
                     NULL::float8 AS distance, NULL::text COLLATE \"C\" AS embedding_id, d.occur_time",
                    place > 0
                );
                let conditions = [same.clone(), "d.case_hash <> ''".into()];
                branches.push(source.rows(&select, &[&common, &conditions]));
            }
        }
        self.leg("exact", "occur_time DESC, uid DESC", &branches.join("\nUNION ALL\n"))
    }

    fn text_leg(&self, wanted: &Wanted, params: &mut Params) -> String {
        let more = ", NULL::float8 AS distance, NULL::text COLLATE \"C\" AS embedding_id";
        let branches =
            text_branches(&self.kinds, wanted, self.snapshot, Hidden::Shown, more, params);
        self.leg("text", "score DESC, uid", &branches.join("\nUNION ALL\n"))
    }

    /// Of each hit the embedding that is nearest.
    fn vector_leg(&self) -> String {
        let rows = "SELECT DISTINCT ON (uid) kind, id, uid, version, restored, NULL::float8 AS score, distance, \
                    embedding_id FROM near ORDER BY uid, distance, embedding_uid";
        self.leg("vector", "distance, uid", rows)
    }

    /// `near`: every embedding of the space with what it is of and how far away it is.
    fn all_near(&self, near: &Near, params: &mut Params) -> String {
        let Metric { operator, column, sql_type } = Metric::of(&near.space);
        let target = params.push(near.target.values().to_vec());
        // That it is in the space is a condition like any other, because the past is asked for by documents.
        let query = self.query(&near.in_space);
        let sources = embedding::LISTING.sources(&query, params);
        let mut common = query.conditions(params);
        common.extend(near.but.map(|uid| format!("d.uid <> {}", params.push(uid))));
        let embeddings: Vec<_> = sources
            .into_iter()
            .map(|source| {
                source
                    .rows("d.uid, d.embedding_id, d.of_kind, d.of_id, d.vector_digest", &[&common])
            })
            .collect();
        let embeddings = embeddings.join("\nUNION ALL\n");
        let mut branches = Vec::new();
        for (n, (kind, filter)) in self.kinds.iter().enumerate() {
            let query = self.query(filter);
            let sources = kind.listing.sources(&query, params);
            let common = query.conditions(params);
            for (place, mut source) in sources.into_iter().enumerate() {
                source.from.push_str(&format!(
                    "\nJOIN (\n{embeddings}\n) AS e ON e.of_kind = '{}' AND e.of_id = d.id\n\
                     JOIN embedding_vector AS x ON x.embedding_uid = e.uid AND x.digest = e.vector_digest",
                    kind.name()
                ));
                let select = format!(
                    "{n} AS kind, d.id, d.uid, d.version, {} AS restored, \
                     x.{column} {operator} {target}::{sql_type} AS distance, e.uid AS embedding_uid, \
                     e.embedding_id",
                    place > 0
                );
                branches.push(source.rows(&select, &[&common]));
            }
        }
        format!("near AS (\n{}\n)", branches.join("\nUNION ALL\n"))
    }

    /// What an embedding `e` is of, if it fulfils the filter: looked up for each, so that an index can be followed as far
    /// as need be.
    fn subjects(&self, params: &mut Params) -> String {
        let branches: Vec<_> = self
            .kinds
            .iter()
            .enumerate()
            .map(|(n, (kind, filter))| {
                let query = self.query(filter);
                let sources = kind.listing.sources(&query, params);
                let common = query.conditions(params);
                let of = [format!("e.of_kind = '{}'", kind.name()), "d.id = e.of_id".to_owned()];
                let select = format!("{n} AS kind, d.id, d.uid, d.version");
                let rows = sources.iter().map(|source| source.rows(&select, &[&of, &common]));
                rows.collect::<Vec<_>>().join("\nUNION ALL\n")
            })
            .collect();
        branches.join("\nUNION ALL\n")
    }

    /// That an embedding `e` is there to be found.
    fn is_there(near: &Near, params: &mut Params) -> String {
        let space = params.push(near.space.meta.uid);
        let but = near.but.map(|uid| format!(" AND e.uid <> {}", params.push(uid)));
        format!("e.delete_time IS NULL AND e.space_uid = {space}{}", but.unwrap_or_default())
    }

    /// `near`: so many candidates as an index names, and all that it does not have yet.
    fn candidates(&self, near: &Near, index: &Index, params: &mut Params) -> String {
        let Metric { operator, column, sql_type } = Metric::of(&near.space);
        let (compare, _) = index.comparison(&near.space);
        let target = params.push(near.target.values().to_vec());
        let most = params.push(self.most(near, index));
        let uid = params.push(index.uid);
        let code = code_of(index, &near.space, &target);
        let (there, subjects) = (Self::is_there(near, params), self.subjects(params));
        let select = "t.kind, t.id, t.uid, t.version, e.uid AS embedding_uid, e.embedding_id, \
                      e.vector_digest AS digest";
        format!(
            "sealed AS MATERIALIZED (
SELECT {select} FROM {table} AS s
CROSS JOIN LATERAL (SELECT * FROM embedding AS f WHERE f.uid = s.embedding_uid OFFSET 0) AS e
CROSS JOIN LATERAL (\n{subjects}\n) AS t
WHERE e.vector_digest = s.digest AND {there}
ORDER BY s.code {compare} {code}
LIMIT {most}
), fresh AS MATERIALIZED (
SELECT {select} FROM embedding_delta AS u
CROSS JOIN LATERAL (SELECT * FROM embedding AS f WHERE f.uid = u.embedding_uid OFFSET 0) AS e
CROSS JOIN LATERAL (\n{subjects}\n) AS t
WHERE u.index_uid = {uid} AND e.vector_digest = u.digest AND {there}
), near AS (
SELECT c.kind, c.id, c.uid, c.version, FALSE AS restored, v.distance, c.embedding_uid, c.embedding_id
FROM (SELECT * FROM sealed UNION SELECT * FROM fresh) AS c
CROSS JOIN LATERAL (SELECT x.{column} {operator} {target}::{sql_type} AS distance FROM embedding_vector AS x
  WHERE x.embedding_uid = c.embedding_uid AND x.digest = c.digest OFFSET 0) AS v
)",
            table = index.table(),
        )
    }

    /// Counts, in a sample of an index's codes, those that the vector leg could find.
    fn sample(&self, near: &Near, index: &Index) -> (String, Params) {
        let mut params = Params::default();
        let slices = params.push(plan::sample_slices(index.rows));
        let (there, subjects) = (Self::is_there(near, &mut params), self.subjects(&mut params));
        let sql = format!(
            "SELECT count(*) AS seen, count(m.uid) AS matching FROM {} AS s
LEFT JOIN LATERAL (SELECT e.uid FROM (SELECT * FROM embedding AS f WHERE f.uid = s.embedding_uid OFFSET 0) AS e
CROSS JOIN LATERAL (\n{subjects}\n) AS t
WHERE e.vector_digest = s.digest AND {there} LIMIT 1) AS m ON TRUE
WHERE s.slice < 4096 AND s.slice < {slices}",
            index.table()
        );
        (sql, params)
    }

    /// How many candidates an index is asked for. Several may be of one hit, so twice as many as for that many
    /// embeddings.
    fn most(&self, near: &Near, index: &Index) -> i64 {
        near.how.candidates.unwrap_or_else(|| {
            plan::candidates(index.codes, index.rows as f64, 2 * self.fusion.leg_limit, false)
        })
    }

    /// What an indexed statement found, or `None` where its vector leg has less than there may be.
    fn judge(&self, near: &Near, index: &Index, rows: &[Row]) -> Result<Option<bool>> {
        let first = rows.first().ok_or_else(|| Error::internal("a search without counts"))?;
        let (found, sealed): (i64, i64) =
            (first.try_get("vector_found")?, first.try_get("sealed_found")?);
        let is_few = found < self.fusion.leg_limit;
        Ok(match near.how.max_scan_tuples {
            // The caller wants no more than that looked at.
            Some(most) if index.rows > i64::from(most) => Some(is_few),
            _ if is_few || sealed < self.most(near, index).min(index.rows) / 2 => None,
            _ => Some(false),
        })
    }

    fn legs(&self, rows: &[Row], method: Method) -> Result<Vec<LegFound>> {
        let first = rows.first().ok_or_else(|| Error::internal("a search without counts"))?;
        let all = [
            ("exact", self.case_hash.is_some()),
            ("text", self.words.is_some()),
            ("vector", self.near.is_some()),
        ];
        let asked = all.into_iter().filter(|(_, is_asked)| *is_asked);
        let legs = asked.map(|(name, _)| {
            let hits = first.try_get(&*format!("{name}_found"))?;
            Ok(match name {
                "vector" => {
                    LegFound { name, method, hits, candidates: first.try_get("near_found")? }
                }
                _ => LegFound { name, method: Method::Exact, hits, candidates: 0 },
            })
        });
        legs.collect()
    }
}

/// The hit of a row; `None` where the row only has the counts.
fn read_fused(row: &Row) -> Result<Option<Fused>> {
    let Some(uid) = row.try_get("hit_uid")? else { return Ok(None) };
    let kind: i32 = row.try_get("hit_kind")?;
    Ok(Some(Fused {
        kind: usize::try_from(kind).map_err(Error::internal)?,
        id: row.try_get("hit_id")?,
        uid,
        version: row.try_get("hit_version")?,
        restored: row.try_get("restored")?,
        score: row.try_get("score")?,
        exact_rank: row.try_get("exact_rank")?,
        text_rank: row.try_get("text_rank")?,
        vector_rank: row.try_get("vector_rank")?,
        text_score: row.try_get("text_score")?,
        distance: row.try_get("distance")?,
        embedding_id: row.try_get("embedding_id")?,
    }))
}

/// Rows of a statement, how its vector leg was made, and whether there may be more.
struct Answer {
    rows: Vec<Row>,
    method: Method,
    incomplete: bool,
}

impl Hybrid {
    /// Runs the statement at a moment; by the index first, if there is one.
    async fn ask(
        &self,
        at: &Snapshot,
        tenant: &str,
        index: Option<&Index>,
        tell: Tell,
    ) -> Result<Answer> {
        if let (Some(index), Some(near)) = (index, &self.near) {
            at.set(&plan::indexed_beside_words(&near.how, self.most(near, index))).await?;
            let (sql, params) = self.sql(tenant, Some(index), tell);
            let rows = at.dynamic(&sql, &params).await?;
            if let Some(incomplete) = self.judge(near, index, &rows)? {
                let method = if index.method == IVFFLAT { Method::Ivfflat } else { Method::Hnsw };
                return Ok(Answer { rows, method, incomplete });
            }
        }
        if self.near.is_some() {
            at.set(&plan::exact()).await?;
        }
        let (sql, params) = self.sql(tenant, None, tell);
        let rows = at.dynamic(&sql, &params).await?;
        Ok(Answer { rows, method: Method::Exact, incomplete: false })
    }
}

/// What a search tells of its hits beside their names.
pub(super) trait Telling: Clone + Send + Sync + 'static {
    type Told: Send + 'static;

    fn tell(&self) -> Tell;

    /// Reads it of all hits, in their order, from the rows or from what else there is at that moment.
    fn read(
        &self,
        hybrid: &Hybrid,
        at: &Snapshot,
        found: Vec<(Fused, Row)>,
    ) -> impl Future<Output = Result<Vec<(Fused, Self::Told)>>> + Send;
}

/// Nothing but names and ranks.
#[derive(Clone, Copy)]
struct Names;

impl Telling for Names {
    type Told = ();

    fn tell(&self) -> Tell {
        Tell::Nothing
    }

    async fn read(
        &self,
        _: &Hybrid,
        _: &Snapshot,
        found: Vec<(Fused, Row)>,
    ) -> Result<Vec<(Fused, ())>> {
        Ok(found.into_iter().map(|(fused, _)| (fused, ())).collect())
    }
}

impl Telling for Shown {
    type Told = Details;

    fn tell(&self) -> Tell {
        Tell::Nothing
    }

    async fn read(
        &self,
        hybrid: &Hybrid,
        at: &Snapshot,
        found: Vec<(Fused, Row)>,
    ) -> Result<Vec<(Fused, Details)>> {
        let hits: Vec<_> = found.iter().map(|(fused, _)| fused.into()).collect();
        let mut details = details_of(at, &hybrid.kinds, hybrid.words.as_ref(), self, &hits).await?;
        let told = found.into_iter().map(|(fused, _)| {
            let told = details.remove(&fused.uid).unwrap_or_default();
            (fused, told)
        });
        Ok(told.collect())
    }
}

impl Store {
    /// The best hits of several legs with what is shown of them.
    pub async fn fuse(
        &self,
        caller: &Caller,
        hybrid: Hybrid,
        shown: Shown,
    ) -> Result<Found<Details>> {
        self.fuse_telling(caller, "search.FUSE", hybrid, shown).await
    }

    /// The best hits of several legs, by name.
    pub async fn fuse_names(&self, caller: &Caller, hybrid: Hybrid) -> Result<Found<()>> {
        self.fuse_telling(caller, "search.FUSE", hybrid, Names).await
    }

    pub(super) async fn fuse_telling<T: Telling>(
        &self,
        caller: &Caller,
        op: &'static str,
        hybrid: Hybrid,
        telling: T,
    ) -> Result<Found<T::Told>> {
        let Hybrid { case_hash, words, near, .. } = &hybrid;
        if case_hash.is_none() && words.is_none() && near.is_none() {
            return Err(Error::internal("a search for nothing"));
        }
        let index = self.leg_index(caller, &hybrid).await?;
        let hybrid = Arc::new(hybrid);
        let found =
            self.fuse_by(caller, op, Arc::clone(&hybrid), telling.clone(), index.clone()).await;
        match found {
            // It was replaced this moment.
            Err(error) if index.is_some() && plan::is_gone(&error) => {
                self.refresh_indexes().await?;
                self.fuse_by(caller, op, hybrid, telling, None).await
            }
            found => found,
        }
    }

    async fn fuse_by<T: Telling>(
        &self,
        caller: &Caller,
        op: &'static str,
        hybrid: Arc<Hybrid>,
        telling: T,
        index: Option<Arc<Index>>,
    ) -> Result<Found<T::Told>> {
        let tenant: Arc<str> = Arc::clone(&caller.tenant);
        self.snapshot(caller, op, move |at| {
            let (hybrid, telling) = (Arc::clone(&hybrid), telling.clone());
            let (index, tenant) = (index.clone(), Arc::clone(&tenant));
            Box::pin(async move {
                let seq = hybrid.snapshot.unwrap_or(at.head);
                if seq > at.head {
                    return Err(in_the_future());
                }
                let mut hybrid = Hybrid::clone(&hybrid);
                // Where nothing was written since, the tables are as they were.
                hybrid.snapshot = hybrid.snapshot.filter(|seq| *seq < at.head);
                if let Some(seq) = hybrid.snapshot {
                    at.reaches_back(seq).await?;
                }
                let Answer { rows, method, incomplete } =
                    hybrid.ask(&at, &tenant, index.as_deref(), telling.tell()).await?;
                let legs = hybrid.legs(&rows, method)?;
                let mut found = Vec::with_capacity(rows.len());
                for row in rows {
                    if let Some(fused) = read_fused(&row)? {
                        found.push((fused, row));
                    }
                }
                let hits = telling.read(&hybrid, &at, found).await?;
                at.end(Found { hits, legs, incomplete, seq }).await
            })
        })
        .await
    }

    /// The index for the vector leg, if going by it is better than looking at what the filters leave.
    async fn leg_index(&self, caller: &Caller, hybrid: &Hybrid) -> Result<Option<Arc<Index>>> {
        let Some(near) = &hybrid.near else { return Ok(None) };
        if hybrid.snapshot.is_some() || near.how.exact {
            return Ok(None);
        }
        let index = self.index_of(caller, &near.space);
        let Some(index) = index.filter(|index| has_code_for(index, &near.space, &near.target))
        else {
            return Ok(None);
        };
        if near.how.is_wanted() {
            return Ok(Some(index));
        }
        let (sql, params) = hybrid.sample(near, &index);
        let Some(part) = self.part_left(caller, sql, params).await? else { return Ok(None) };
        let most = hybrid.most(near, &index);
        Ok(plan::is_walk_better(index.rows, part, most).then_some(index))
    }
}
