//! How much of what is nearest an index finds, measured on the space's own embeddings.

use super::Index;
use crate::store::Store;
use crate::store::caller::Caller;
use crate::store::embedding::in_space;
use crate::store::embedding::nearest::{Found, How, Method, Nearest};
use crate::store::embedding::plan::{is_gone, sample_slices};
use crate::store::filter::{Filter, Params};
use crate::store::postgres::read_rows;
use crate::store::snapshot::{Glance, Look};
use crate::store::vector::Numbers;
use crate::store::vector_space::VectorSpace;
use crate::{Error, Result, queries, row};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

row! {
    /// An embedding to search for.
    pub struct Sampled {
        pub uid: Uuid,
        pub digest: String,
    }
}

queries! { "vector_index" {
    /// The newest embeddings of a space: (space, how many).
    NEWEST(Uuid, i64) -> Sampled =
        "SELECT d.uid, d.vector_digest AS digest FROM embedding AS d \
         WHERE d.space_uid = $1 AND d.delete_time IS NULL ORDER BY d.create_time DESC, d.uid DESC LIMIT $2";
} }

/// What is measured, and until when.
#[derive(Clone, Copy)]
struct Asked {
    sample: usize,
    top_k: i64,
    how: How,
    until: Instant,
}

/// Vectors of a sample that are held at once.
const PIECE: usize = 50;

/// What an index finds, and how long that takes.
#[derive(Clone, Debug)]
pub struct Recall {
    /// Of the nearest, the part that was found: 0 to 1.
    pub part: f64,
    /// Embeddings searched for.
    pub sample: usize,
    pub method: Method,
    /// Searches that the index left short although there was enough to find.
    pub fallbacks: usize,
    pub exact: Latencies,
    pub indexed: Latencies,
}

/// How long searches took.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// What so many of a hundred stay within, in milliseconds; 0 of none.
    pub fn percentile_ms(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(place).map_or(0.0, |took| took.as_secs_f64() * 1000.0)
    }
}

impl Store {
    /// Searches for embeddings of a space through its index and exactly. Ends early, with a smaller sample, rather than
    /// to miss the caller's deadline. Where the index is replaced meanwhile, the new one is measured.
    pub async fn measure_recall(
        &self,
        caller: &Caller,
        space: &Arc<VectorSpace>,
        sample: usize,
        top_k: i64,
        how: How,
    ) -> Result<Recall> {
        let left = caller.deadline.saturating_duration_since(tokio::time::Instant::now());
        let asked = Asked { sample, top_k, how, until: Instant::now() + left.mul_f64(0.7) };
        loop {
            let index = self.index_of(caller, space);
            if let Some(recall) = self.measure(caller, space, index.as_deref(), asked).await? {
                return Ok(recall);
            }
        }
    }

    /// Whether a space is searched by this index still, or still by none.
    fn is_searched_by(&self, caller: &Caller, space: &VectorSpace, index: Option<&Index>) -> bool {
        self.index_of(caller, space).map(|index| index.uid) == index.map(|index| index.uid)
    }

    /// `None` where the index is no longer the same: figures of two say nothing of either.
    async fn measure(
        &self,
        caller: &Caller,
        space: &Arc<VectorSpace>,
        index: Option<&Index>,
        Asked { sample, top_k, how, until }: Asked,
    ) -> Result<Option<Recall>> {
        let sampled = match self.sample_of(caller, space, index, sample).await {
            Err(error) if is_gone(&error) => {
                self.refresh_indexes().await?;
                return if self.is_searched_by(caller, space, index) {
                    Err(error)
                } else {
                    Ok(None)
                };
            }
            sampled => sampled?,
        };
        let filter = in_space(space, Filter::default())?;
        let (mut exact, mut indexed) = (Latencies::default(), Latencies::default());
        let (mut there, mut found, mut searched, mut fallbacks) = (0, 0, 0, 0);
        let mut method = Method::Exact;
        'all: for piece in sampled.chunks(PIECE) {
            let pairs = piece.iter().map(|one| (one.uid, one.digest.clone())).collect();
            for ((uid, _), values) in self.numbers(caller, pairs).await? {
                if searched > 0 && Instant::now() > until {
                    break 'all;
                }
                let target = Numbers::of(space, values).map_err(|(_, why)| Error::internal(why))?;
                let search = |how| Nearest {
                    space: Arc::clone(space),
                    target: target.clone(),
                    top_k,
                    filter: filter.clone(),
                    is_filtered: false,
                    but: Some(uid),
                    how,
                    guess: None,
                };
                let all =
                    self.timed(caller, search(How { exact: true, ..how }), &mut exact).await?;
                let some =
                    self.timed(caller, search(How { exact: false, ..how }), &mut indexed).await?;
                if !self.is_searched_by(caller, space, index) {
                    return Ok(None);
                }
                searched += 1;
                if some.method != Method::Exact {
                    method = some.method;
                } else if index.is_some() && all.near.len() as i64 == top_k {
                    fallbacks += 1;
                }
                let Some(last) = all.near.last() else { continue };
                // Another one at the same distance is as near.
                let far = last.distance + last.distance.abs() * 1e-6 + 1e-9;
                there += all.near.len();
                found += some.near.iter().filter(|near| near.distance <= far).count();
            }
        }
        let part = if there == 0 { 1.0 } else { found as f64 / there as f64 };
        Ok(Some(Recall { part, sample: searched, method, fallbacks, exact, indexed }))
    }

    async fn timed(&self, caller: &Caller, search: Nearest, took: &mut Latencies) -> Result<Found> {
        let began = Instant::now();
        let (mut found, _) = self.nearest(caller, vec![search], None).await?;
        took.0.push(began.elapsed());
        found.pop().ok_or_else(|| Error::internal("a search without an answer"))
    }

    /// Embeddings of a space: from an index at random, else the newest.
    async fn sample_of(
        &self,
        caller: &Caller,
        space: &VectorSpace,
        index: Option<&Index>,
        most: usize,
    ) -> Result<Vec<Sampled>> {
        let most = i64::try_from(most).map_err(Error::internal)?;
        if let Some(index) = index {
            let mut random = [0; 2];
            getrandom::fill(&mut random).map_err(Error::internal)?;
            let mut params = Params::default();
            let from = params.push(i64::from(u16::from_le_bytes(random) % 4096));
            let limit = params.push(most);
            // From a place on, and then from the beginning.
            let sql = format!(
                "SELECT s.embedding_uid AS uid, s.digest FROM {} AS s \
                 CROSS JOIN LATERAL (SELECT * FROM embedding AS e WHERE e.uid = s.embedding_uid OFFSET 0) AS d \
                 WHERE s.slice < 4096 AND d.vector_digest = s.digest AND d.delete_time IS NULL ORDER BY s.slice < {from}, s.slice, s.embedding_uid LIMIT {limit}",
                index.table()
            );
            let look = Look { sql, params, ..Look::default() };
            let Glance { rows, .. } = self.glance(caller, "vector_index.SAMPLE", look).await?;
            if !rows.is_empty() {
                return read_rows(&rows);
            }
        }
        let uid = space.meta.uid;
        self.snapshot(caller, NEWEST.name, move |at| {
            Box::pin(async move {
                let newest = at.all(&NEWEST, &(uid, most)).await?;
                at.end(newest).await
            })
        })
        .await
    }

    /// How many of a sample of an index's codes still count: (seen, live).
    pub(super) async fn live_codes(&self, caller: &Caller, index: &Index) -> Result<(i64, i64)> {
        let mut params = Params::default();
        let slices = params.push(sample_slices(index.rows));
        let sql = format!(
            "SELECT count(*) AS seen, \
             count(*) FILTER (WHERE d.vector_digest = s.digest AND d.delete_time IS NULL) AS live FROM {} AS s \
             LEFT JOIN LATERAL (SELECT * FROM embedding AS e WHERE e.uid = s.embedding_uid OFFSET 0) AS d ON true \
             WHERE s.slice < 4096 AND s.slice < {slices}",
            index.table()
        );
        let look = Look { sql, params, ..Look::default() };
        let Glance { rows, .. } = self.glance(caller, "vector_index.SAMPLE", look).await?;
        let row = rows.first().ok_or_else(|| Error::internal("a count without a row"))?;
        Ok((row.try_get("seen")?, row.try_get("live")?))
    }
}
