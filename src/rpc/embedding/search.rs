//! The search for the nearest embeddings, checked and worded.

use super::{Mask, in_own_words, read_vector};
use crate::pb;
use crate::rpc::search::legs::Again;
use crate::rpc::search_receipt::{Keep, KeptHit, kept_vector};
use crate::rpc::wire::{self, Fields};
use crate::rpc::{Parts, filter};
use crate::store::caller::Caller;
use crate::store::embedding::nearest::{Found, How, Method, Near, Nearest};
use crate::store::embedding::{self, Embedding, full_id, in_space};
use crate::store::filter::Filter;
use crate::store::vector::{Numbers, score};
use crate::store::vector_space::{Guess, VectorSpace};
use crate::{Error, Result};
use prost::Message as _;
use std::sync::Arc;
use uuid::Uuid;

pub(super) const TOP_K: i32 = 10;
pub(super) const TOP_K_MAX: i32 = 1000;

/// What one query found, worded.
pub(in crate::rpc) struct Hits {
    pub space: Arc<VectorSpace>,
    pub target: Numbers,
    /// The embedding that was named instead of a vector.
    pub like: Option<Uuid>,
    pub hits: Vec<pb::VectorHit>,
    /// A `pb::SearchMethod`.
    pub method: i32,
    pub incomplete: bool,
}

impl Hits {
    /// What a receipt is made of.
    pub(super) fn to_keep(&self, query: pb::VectorQuery, seq: i64) -> Keep {
        let query = pb::VectorQuery {
            vector_space_id: self.space.id.clone(),
            target: Some(pb::vector_query::Target::Vector(kept_vector(&self.target))),
            ..query
        };
        let request = pb::SearchVectorsRequest { query: Some(query), ..Default::default() };
        Keep {
            request: request.encode_to_vec(),
            hits: KeptHit::of_vectors(self),
            seq,
            exact: self.method == i32::from(pb::SearchMethod::Exact),
            space: Some((self.space.meta.uid, self.space.id.clone())),
            like: self.like,
        }
    }
}

pub(in crate::rpc) fn word_method(method: Method) -> pb::SearchMethod {
    match method {
        Method::Exact => pb::SearchMethod::Exact,
        Method::Hnsw => pb::SearchMethod::Hnsw,
        Method::Ivfflat => pb::SearchMethod::Ivfflat,
        Method::Codes => pb::SearchMethod::Codes,
    }
}

/// How a caller wants a search to be made, of which so many hits are asked by that name. Paths are those of the parameters.
pub(in crate::rpc) fn read_params(
    fields: &mut Fields,
    params: Option<pb::SearchParams>,
    (name, least): (&str, i32),
) -> How {
    let Some(params) = params else { return How::default() };
    let pb::SearchParams { exact, ef_search, probes, candidates, max_scan_tuples } = params;
    let mut number = |name: &str, value: i32, most: i32| match value {
        0 => None,
        _ if (1..=most).contains(&value) => Some(value),
        _ => {
            fields.wrong(
                name,
                format!("must be 1 to {most}, or 0 for the server's choice, and is {value}"),
            );
            None
        }
    };
    let how = How {
        exact,
        ef_search: number("ef_search", ef_search, 1_000),
        probes: number("probes", probes, 32_768),
        candidates: number("candidates", candidates, 10_000).map(i64::from),
        max_scan_tuples: number("max_scan_tuples", max_scan_tuples, 10_000_000),
    };
    if how.candidates.is_some_and(|candidates| candidates < i64::from(least)) {
        fields
            .wrong("candidates", format!("must be at least {name}, {least}, and is {candidates}"));
    }
    how
}

impl Parts {
    /// The hits of each query, all at one moment. A query comes with its place in the request.
    pub(in crate::rpc) async fn search_spaces(
        &self,
        caller: &Caller,
        queries: Vec<(String, pb::VectorQuery)>,
        again: Again,
        read_mask: Option<prost_types::FieldMask>,
    ) -> Result<(Vec<Hits>, i64)> {
        let mask = Mask::new(read_mask)?;
        if let ([(_, query)], true) = (&queries[..], again.is_plain())
            && let Some(guess) = self.store.guess_space(caller, &query.vector_space_id)
        {
            let guessed = self.search_in(caller, queries.clone(), again, &mask, Some(guess)).await;
            match guessed {
                // The space may be another one now.
                Err(Error::NotFound { .. } | Error::Invalid { .. }) => {}
                found => return found,
            }
        }
        self.search_in(caller, queries, again, &mask, None).await
    }

    async fn search_in(
        &self,
        caller: &Caller,
        queries: Vec<(String, pb::VectorQuery)>,
        again: Again,
        mask: &Mask,
        guess: Option<Guess>,
    ) -> Result<(Vec<Hits>, i64)> {
        let seq = again.seq;
        let mut searches = Vec::with_capacity(queries.len());
        let mut limits = Vec::with_capacity(queries.len());
        for (at, query) in queries {
            let pb::VectorQuery {
                vector_space_id,
                target,
                top_k,
                min_score,
                max_distance,
                r#where,
                params,
            } = query;
            let guess = guess.clone();
            let space = match &guess {
                Some(guess) => Arc::clone(&guess.space),
                None => {
                    let field = format!("{at}.vector_space_id");
                    let space = self.space(caller, &field, vector_space_id.clone(), seq).await?;
                    let space = Arc::new(again.hold(space)?);
                    if again.is_plain() {
                        self.store.keep_space(caller, vector_space_id, &space);
                    }
                    space
                }
            };
            let is_filtered = r#where.is_some();
            let asked =
                filter::selector(embedding::LISTING.fields, r#where, &format!("{at}.where"))?;
            let mut fields = Fields::default();
            let (target, but) = match target {
                Some(pb::vector_query::Target::LikeEmbeddingId(id)) => {
                    let id = wire::id(&format!("{at}.like_embedding_id"), id)?;
                    let (numbers, uid) = self.vector_of(caller, &space, id, seq).await?;
                    (Some(numbers), Some(uid))
                }
                Some(pb::vector_query::Target::Vector(vector)) => (
                    fields.within(&at, |fields| read_vector(fields, Some(vector), &space)),
                    again.like,
                ),
                None => {
                    fields.wrong(&at, "must have a vector or a like_embedding_id");
                    (None, None)
                }
            };
            let top_k = fields.within(&at, |fields| {
                let finite = |fields: &mut Fields, name, limit: Option<f64>| {
                    if limit.is_some_and(|limit| !limit.is_finite()) {
                        fields.wrong(name, "must be finite");
                    }
                };
                finite(fields, "min_score", min_score);
                finite(fields, "max_distance", max_distance);
                match top_k {
                    0 => TOP_K,
                    1..=TOP_K_MAX => top_k,
                    _ => {
                        let range = format!("must be 1 to {TOP_K_MAX}, or 0 for {TOP_K}");
                        fields.wrong("top_k", format!("{range}, and is {top_k}"));
                        TOP_K
                    }
                }
            });
            let mut how = fields.within(&at, |fields| {
                fields.within("params", |fields| read_params(fields, params, ("top_k", top_k)))
            });
            let Some(target) = fields.finish(target)? else {
                return Err(Error::internal("a query without a target"));
            };
            how.exact |= again.exactly;
            let filter: Filter = in_space(&space, asked)?;
            let top_k = top_k.into();
            searches.push(Nearest { space, target, top_k, filter, is_filtered, but, how, guess });
            limits.push((min_score.unwrap_or(f64::MIN), max_distance.unwrap_or(f64::MAX)));
        }
        let of = |search: &Nearest| (Arc::clone(&search.space), search.target.clone(), search.but);
        let spaces: Vec<_> = searches.iter().map(of).collect();
        let (found, seq) = self.store.nearest(caller, searches, seq).await?;
        let mut worded = Vec::with_capacity(found.len());
        let found = found.into_iter().zip(spaces).zip(limits);
        for ((found, (space, target, like)), (min_score, max_distance)) in found {
            let Found { near, method, incomplete } = found;
            // They come nearest first, so the limits cut off the end.
            let near = near.into_iter().take_while(|Near { distance, .. }| {
                *distance <= max_distance && score(&space, *distance) >= min_score
            });
            let (rows, distances): (Vec<Embedding>, Vec<f64>) =
                near.map(|Near { row, distance }| (row, distance)).unzip();
            let embeddings = self.embeddings(caller, rows, mask).await?;
            let hits = embeddings.into_iter().zip(distances);
            let hits = hits.map(|(embedding, distance)| pb::VectorHit {
                embedding: Some(embedding),
                score: score(&space, distance),
                distance,
            });
            worded.push(Hits {
                hits: hits.collect(),
                target,
                like,
                space: Arc::clone(&space),
                method: word_method(method).into(),
                incomplete,
            });
        }
        Ok((worded, seq))
    }

    /// The vector of an embedding, and its uid.
    pub(in crate::rpc) async fn vector_of(
        &self,
        caller: &Caller,
        space: &VectorSpace,
        id: String,
        seq: Option<i64>,
    ) -> Result<(Numbers, Uuid)> {
        let id = full_id(space.meta.uid, &id);
        let row: Embedding = self.get_at(caller, id, seq).await.map_err(in_own_words)?;
        let uid = row.meta.uid;
        let vector = self.store.vectors(caller, &[row]).await?.into_values().next();
        let vector = vector.ok_or_else(|| Error::internal("an embedding without its vector"))?;
        let numbers = Numbers::of(space, vector).map_err(|(_, why)| Error::internal(why))?;
        Ok((numbers, uid))
    }
}
