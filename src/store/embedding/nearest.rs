//! The nearest embeddings of a space, and the vectors of embeddings.

use super::plan::{self, Way, is_gone};
use super::{Embedding, LISTING};
use crate::Result;
use crate::store::Store;
use crate::store::caller::Caller;
use crate::store::filter::{Filter, Params};
use crate::store::list::ListQuery;
use crate::store::postgres::read_rows;
use crate::store::query::FromRow;
use crate::store::snapshot::{Glance, Look, Setting, Snapshot, in_the_future};
use crate::store::vector::{Metric, Numbers};
use crate::store::vector_index::{BINARY, FLOAT16, IVFFLAT, Index};
use crate::store::vector_space::{COSINE, FLOAT32, Guess, VectorSpace};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::Arc;
use tokio_postgres::Row;
use uuid::Uuid;

/// How to search; what is not given is chosen by what the index needs.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    /// Look at every embedding.
    pub exact: bool,
    pub ef_search: Option<i32>,
    pub probes: Option<i32>,
    pub candidates: Option<i64>,
    /// The most that an index is searched for; then fewer hits than asked for may be an incomplete answer.
    pub max_scan_tuples: Option<i32>,
}

impl How {
    /// Whether going by the index is asked for, by settings of its own.
    pub(in crate::store) fn is_wanted(&self) -> bool {
        let Self { exact: _, ef_search, probes, candidates, max_scan_tuples } = self;
        candidates.is_some() || ef_search.is_some() || probes.is_some() || max_scan_tuples.is_some()
    }
}

/// Whether an index can be asked for a vector: whether it has a code that says enough of it, as `fits` in the migration.
pub(in crate::store) fn has_code_for(index: &Index, space: &VectorSpace, target: &Numbers) -> bool {
    if index.codes != FLOAT16 || space.metric == COSINE || space.storage != FLOAT32 {
        return true;
    }
    let squares = target.values().iter().map(|value| f64::from(*value).powi(2));
    (0.01..=65504.0).contains(&squares.sum::<f64>().sqrt())
}

/// The SQL for the code of a vector, as `vector_code` in the migration.
pub(in crate::store) fn code_of(index: &Index, space: &VectorSpace, target: &str) -> String {
    let (dimensions, (_, code_type)) = (space.dimensions, index.comparison(space));
    match (index.codes, space.storage, space.metric) {
        (BINARY, ..) => {
            format!(
                "public.binary_quantize({target}::public.vector({dimensions}))::bit({dimensions})"
            )
        }
        (FLOAT16, FLOAT32, COSINE) => format!(
            "public.l2_normalize({target}::public.vector({dimensions}))::{code_type}({dimensions})"
        ),
        _ => format!("{target}::{code_type}({dimensions})"),
    }
}

/// A search for the embeddings nearest to a vector.
#[derive(Clone)]
pub struct Nearest {
    pub space: Arc<VectorSpace>,
    pub target: Numbers,
    pub top_k: i64,
    /// Also holds them to the space: see [`in_space`](super::in_space).
    pub filter: Filter,
    /// Whether the caller asks for more than the space.
    pub is_filtered: bool,
    /// An embedding that is no hit.
    pub but: Option<Uuid>,
    pub how: How,
    /// Where the space is only guessed. Such a search is made alone and now.
    pub guess: Option<Guess>,
}

/// A hit, and how far away it is.
#[derive(Clone, Debug)]
pub struct Near {
    pub row: Embedding,
    pub distance: f64,
}

/// How a search was answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    #[default]
    Exact,
    Hnsw,
    Ivfflat,
    /// Over the codes of an index.
    Codes,
}

/// What a search found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Nearest first.
    pub near: Vec<Near>,
    pub method: Method,
    /// Whether there may be more.
    pub incomplete: bool,
}

/// The index that a search goes by, and how.
#[derive(Clone, Debug)]
struct Route {
    index: Arc<Index>,
    way: Way,
    candidates: i64,
}

/// A statement with the settings that it is planned and run under.
pub struct Asked {
    pub sql: String,
    pub params: Params,
    pub settings: Vec<Setting>,
}

impl Nearest {
    fn columns() -> String {
        let columns = <Embedding as FromRow>::columns();
        let columns: Vec<_> =
            columns.iter().map(|column| format!("d.\"{}\"", column.name)).collect();
        columns.join(", ")
    }

    /// What holds for every hit, now.
    fn conditions(&self, params: &mut Params) -> String {
        let query = ListQuery { filter: self.filter.clone(), ..ListQuery::default() };
        let mut conditions = query.conditions(params);
        conditions.extend(self.but.map(|uid| format!("d.uid <> {}", params.push(uid))));
        conditions.join("\n  AND ")
    }

    /// As the space stood at a number of the log; `None` means now.
    fn exactly(&self, snapshot: Option<i64>) -> Asked {
        let Metric { operator, column, sql_type } = Metric::of(&self.space);
        let mut params = Params::default();
        let query = ListQuery { filter: self.filter.clone(), snapshot, ..ListQuery::default() };
        let sources = LISTING.sources(&query, &mut params);
        let mut conditions = query.conditions(&mut params);
        conditions.extend(self.but.map(|uid| format!("d.uid <> {}", params.push(uid))));
        let target = params.push(self.target.values().to_vec());
        let limit = params.push(self.top_k);
        let columns = Self::columns();
        let select = format!("{columns}, x.{column} {operator} {target}::{sql_type} AS distance");
        let branches: Vec<String> = sources
            .into_iter()
            .map(|mut source| {
                source.from.push_str(
                    "\nJOIN embedding_vector AS x ON x.embedding_uid = d.uid AND x.digest = d.vector_digest",
                );
                let rows = source.rows(&select, &[&conditions]);
                format!("({rows}\nORDER BY distance, d.uid\nLIMIT {limit})")
            })
            .collect();
        let all = branches.join("\nUNION ALL\n");
        let sql =
            format!("SELECT * FROM (\n{all}\n) AS near\nORDER BY distance, uid\nLIMIT {limit}");
        Asked { sql, params, settings: plan::exact() }
    }

    fn along(&self, Route { index, way, candidates }: &Route) -> Asked {
        self.through(index, *way, *candidates)
    }

    /// By a walk over an index to so many candidates.
    pub fn by(&self, index: &Index, candidates: i64) -> Asked {
        self.through(index, Way::Walk, candidates)
    }

    /// By an index: so many candidates that it names, and all that it does not have yet, ordered by their vectors. What
    /// an index names counts only while its embedding has that vector, which is what the joins see to. OFFSET 0 makes each
    /// of them a probe of the primary key, before any filter: where statistics lag behind, PostgreSQL would rather go
    /// through all embeddings of the space for each candidate.
    fn through(&self, index: &Index, way: Way, candidates: i64) -> Asked {
        let Metric { operator, column, sql_type } = Metric::of(&self.space);
        let mut params = Params::default();
        let conditions = self.conditions(&mut params);
        let target = params.push(self.target.values().to_vec());
        let (limit, most) = (params.push(self.top_k), params.push(candidates));
        let uid = params.push(index.uid);
        let (compare, _) = index.comparison(&self.space);
        let distance = format!("s.code {compare} {}", code_of(index, &self.space, &target));
        let table = index.table();
        let (sealed, coded, settings) = match way {
            Way::Walk => (
                format!(
                    "sealed AS MATERIALIZED (
SELECT s.embedding_uid AS uid, s.digest FROM {table} AS s
CROSS JOIN LATERAL (SELECT * FROM embedding AS e WHERE e.uid = s.embedding_uid OFFSET 0) AS d
WHERE d.vector_digest = s.digest AND {conditions}
ORDER BY {distance}
LIMIT {most}
)"
                ),
                "sealed",
                plan::indexed(&self.how, candidates),
            ),
            // All that the filter leaves at once, so that the codes' key is gone through once, not for each of them. An
            // embedding that has another vector now may still have its former code: twice as many as are wanted, before
            // they are looked at. A sum keeps the index from being walked over.
            Way::Scan => (
                format!(
                    "coded AS MATERIALIZED (
SELECT s.embedding_uid AS uid, s.digest, ({distance}) + 0 AS distance FROM {table} AS s
WHERE s.embedding_uid = ANY((SELECT array_agg(d.uid) FROM embedding AS d WHERE {conditions})::uuid[])
ORDER BY distance
LIMIT 2 * {most}
), sealed AS MATERIALIZED (
SELECT s.uid, s.digest FROM coded AS s
CROSS JOIN LATERAL (SELECT * FROM embedding AS e WHERE e.uid = s.uid OFFSET 0) AS d
WHERE d.vector_digest = s.digest
ORDER BY s.distance
LIMIT {most}
)"
                ),
                "coded",
                plan::scanned(),
            ),
        };
        let columns = Self::columns();
        let sql = format!(
            "WITH {sealed}, fresh AS MATERIALIZED (
SELECT u.embedding_uid AS uid, u.digest FROM embedding_delta AS u
CROSS JOIN LATERAL (SELECT * FROM embedding AS e WHERE e.uid = u.embedding_uid OFFSET 0) AS d
WHERE u.index_uid = {uid} AND d.vector_digest = u.digest AND {conditions}
), near AS MATERIALIZED (
SELECT c.uid, v.distance FROM (SELECT * FROM sealed UNION SELECT * FROM fresh) AS c
CROSS JOIN LATERAL (SELECT x.{column} {operator} {target}::{sql_type} AS distance FROM embedding_vector AS x
  WHERE x.embedding_uid = c.uid AND x.digest = c.digest OFFSET 0) AS v
ORDER BY v.distance, c.uid
LIMIT {limit}
)
SELECT {columns}, near.distance, (SELECT count(*) FROM sealed) AS candidates, (SELECT count(*) FROM {coded}) AS coded
FROM near CROSS JOIN LATERAL (SELECT * FROM embedding AS e WHERE e.uid = near.uid OFFSET 0) AS d
ORDER BY near.distance, d.uid",
        );
        Asked { sql, params, settings }
    }

    /// Counts, in a sample of an index's codes, those that the search could find.
    fn sample(&self, index: &Index) -> (String, Params) {
        let mut params = Params::default();
        let conditions = self.conditions(&mut params);
        let slices = params.push(plan::sample_slices(index.rows));
        let table = index.table();
        let sql = format!(
            "SELECT count(*) AS seen, count(*) FILTER (WHERE d.vector_digest = s.digest
  AND {conditions}) AS matching FROM {table} AS s
LEFT JOIN LATERAL (SELECT * FROM embedding AS e WHERE e.uid = s.embedding_uid OFFSET 0) AS d ON true
WHERE s.slice < 4096 AND s.slice < {slices}"
        );
        (sql, params)
    }

    /// How many candidates are looked at, where the caller does not say and no sample was taken.
    pub fn candidates(&self, index: &Index) -> i64 {
        self.candidates_of(index, 1.0)
    }

    /// The same where the filter leaves that part.
    fn candidates_of(&self, index: &Index, part: f64) -> i64 {
        let rows = index.rows as f64 * part;
        let chosen = || plan::candidates(index.codes, rows, self.top_k, self.is_filtered);
        self.how.candidates.unwrap_or_else(chosen)
    }

    /// What an indexed search found, or `None` where it found less than there may be and should be made exactly.
    fn judge(&self, route: &Route, rows: &[Row]) -> Result<Option<Found>> {
        let Route { index, way, candidates: asked } = route;
        let (candidates, coded): (i64, i64) = match rows.first() {
            Some(row) => (row.try_get("candidates")?, row.try_get("coded")?),
            None => (0, 0),
        };
        let near = read_near(rows)?;
        let is_short = (near.len() as i64) < self.top_k;
        let method = match way {
            // That was all there is, and each was held against its vector.
            Way::Scan if !near.is_empty() && coded < 2 * asked && candidates < *asked => {
                return Ok(Some(Found { near, ..Found::default() }));
            }
            Way::Scan => Method::Codes,
            Way::Walk if index.method == IVFFLAT => Method::Ivfflat,
            Way::Walk => Method::Hnsw,
        };
        match self.how.max_scan_tuples {
            // The caller wants no more than that looked at.
            Some(most) if index.rows > i64::from(most) => {
                Ok(Some(Found { near, method, incomplete: is_short }))
            }
            // In a small space there are not so many.
            _ if is_short || candidates < (*asked).min(index.rows) / 2 => Ok(None),
            _ => Ok(Some(Found { near, method, incomplete: false })),
        }
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
const SAMPLE: &str = "embedding.SAMPLE";

impl Store {
    /// The nearest of each search, all at one moment, and the log number of that moment. Fails with `NotFound` where the
    /// space was guessed wrongly.
    pub async fn nearest(
        &self,
        caller: &Caller,
        searches: Vec<Nearest>,
        snapshot: Option<i64>,
    ) -> Result<(Vec<Found>, i64)> {
        if let ([search], None) = (&searches[..], snapshot) {
            let (found, seq) = self.nearest_now(caller, search).await?;
            return Ok((vec![found], seq));
        }
        // What filters leave is looked up beforehand: it only decides how to search.
        let mut planned = Vec::with_capacity(searches.len());
        for search in searches {
            let route = match snapshot {
                None => self.route(caller, &search).await?,
                Some(_) => None,
            };
            planned.push((search, route));
        }
        match self.nearest_at_once(caller, Arc::new(planned.clone()), snapshot).await {
            // An index was replaced this moment.
            Err(error) if is_gone(&error) => {
                self.refresh_indexes().await?;
                let exactly: Vec<_> =
                    planned.into_iter().map(|(search, _)| (search, None)).collect();
                self.nearest_at_once(caller, Arc::new(exactly), snapshot).await
            }
            found => found,
        }
    }

    async fn nearest_at_once(
        &self,
        caller: &Caller,
        searches: Arc<Vec<(Nearest, Option<Route>)>>,
        snapshot: Option<i64>,
    ) -> Result<(Vec<Found>, i64)> {
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
                let mut all = Vec::with_capacity(searches.len());
                for (search, route) in searches.iter() {
                    let mut found = None;
                    if let Some(route) = route {
                        let Asked { sql, params, settings } = search.along(route);
                        at.set(&settings).await?;
                        found = search.judge(route, &at.dynamic(&sql, &params).await?)?;
                    }
                    if found.is_none() {
                        let Asked { sql, params, settings } = search.exactly(since);
                        at.set(&settings).await?;
                        let near = read_near(&at.dynamic(&sql, &params).await?)?;
                        found = Some(Found { near, ..Found::default() });
                    }
                    all.extend(found);
                }
                at.end((all, seq)).await
            })
        })
        .await
    }

    async fn nearest_now(&self, caller: &Caller, search: &Nearest) -> Result<(Found, i64)> {
        if let Some(route) = self.route(caller, search).await? {
            // Its text depends on the index only, of which there are few as a rule.
            let common = !search.is_filtered && search.but.is_none() && self.indexes.are_few();
            match self.look(caller, search, search.along(&route), common).await {
                Ok(Glance { rows, head, .. }) => {
                    if let Some(found) = search.judge(&route, &rows)? {
                        return Ok((found, head));
                    }
                }
                // It was replaced this moment.
                Err(error) if is_gone(&error) => {
                    self.refresh_indexes().await?;
                }
                Err(error) => return Err(error),
            }
        }
        let Glance { rows, head, .. } =
            self.look(caller, search, search.exactly(None), false).await?;
        Ok((Found { near: read_near(&rows)?, ..Found::default() }, head))
    }

    async fn look(
        &self,
        caller: &Caller,
        search: &Nearest,
        asked: Asked,
        common: bool,
    ) -> Result<Glance> {
        let Asked { sql, params, settings } = asked;
        let beside = search.guess.as_ref().map(Guess::question);
        let look = Look { sql, params, common, since: None, settings, beside };
        let glance = self.glance(caller, SEARCH, look).await?;
        if let Some(guess) = &search.guess {
            guess.check(&glance.beside)?;
        }
        Ok(glance)
    }

    /// The index to search by and how, if that is better than looking at what the filter leaves.
    async fn route(&self, caller: &Caller, search: &Nearest) -> Result<Option<Route>> {
        let Some(index) = self.index_of(caller, &search.space).filter(|_| !search.how.exact) else {
            return Ok(None);
        };
        if !has_code_for(&index, &search.space, &search.target) {
            return Ok(None);
        }
        if search.how.is_wanted() || !search.is_filtered {
            let candidates = search.candidates(&index);
            return Ok(Some(Route { index, way: Way::Walk, candidates }));
        }
        let (sql, params) = search.sample(&index);
        let Some(part) = self.part_left(caller, sql, params).await? else { return Ok(None) };
        let candidates = search.candidates_of(&index, part);
        let way = plan::way(index.codes, index.rows, part, candidates);
        Ok(way.map(|way| Route { index, way, candidates }))
    }

    /// What part of an index's codes a filter leaves, by a statement that counts those `seen` and those `matching` in a
    /// sample; `None` where the index is gone.
    pub(in crate::store) async fn part_left(
        &self,
        caller: &Caller,
        sql: String,
        params: Params,
    ) -> Result<Option<f64>> {
        let key = Sha256::digest(format!("{sql} {params:?}")).into();
        if let Some(known) = self.selectivities.get(&key) {
            return Ok(Some(known));
        }
        let look = Look { sql, params, settings: plan::exact(), ..Look::default() };
        let rows = match self.glance(caller, SAMPLE, look).await {
            Ok(Glance { rows, .. }) => rows,
            Err(error) if is_gone(&error) => {
                self.refresh_indexes().await?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let (seen, matching): (i64, i64) = match rows.first() {
            Some(row) => (row.try_get("seen")?, row.try_get("matching")?),
            None => (0, 0),
        };
        let part = plan::selectivity(seen, matching);
        self.selectivities.put(key, part);
        Ok(Some(part))
    }

    /// The vectors of these versions of embeddings, by their uids and digests.
    pub async fn vectors(
        &self,
        caller: &Caller,
        rows: &[Embedding],
    ) -> Result<HashMap<(Uuid, String), Vec<f32>>> {
        let pairs = rows.iter().map(|row| (row.meta.uid, row.vector_digest.clone())).collect();
        self.numbers(caller, pairs).await
    }

    /// Vectors by the uids of their embeddings and their digests.
    pub async fn numbers(
        &self,
        caller: &Caller,
        pairs: Vec<(Uuid, String)>,
    ) -> Result<HashMap<(Uuid, String), Vec<f32>>> {
        let mut params = Params::default();
        let (uids, digests): (Vec<Uuid>, Vec<String>) = pairs.into_iter().unzip();
        let (uids, digests) = (params.push(uids), params.push(digests));
        let sql = format!(
            "SELECT x.embedding_uid, x.digest, COALESCE(x.vector::real[], x.half::real[]) AS numbers \
             FROM unnest({uids}, {digests}) AS u (uid, digest) \
             JOIN embedding_vector AS x ON x.embedding_uid = u.uid AND x.digest = u.digest"
        );
        let look = Look { sql, params, ..Look::default() };
        let Glance { rows, .. } = self.glance(caller, "embedding_vector.READ", look).await?;
        let found = rows.iter().map(|row| {
            let key = (row.try_get("embedding_uid")?, row.try_get("digest")?);
            Ok((key, row.try_get("numbers")?))
        });
        found.collect()
    }
}
