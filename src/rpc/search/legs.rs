//! The legs of a search: what a caller says of them, and what is told of how they were made.

use crate::pb;
use crate::rpc::Parts;
use crate::rpc::embedding::read_vector;
use crate::rpc::embedding::search::{read_params, word_method};
use crate::rpc::wire::{self, Fields};
use crate::store::caller::Caller;
use crate::store::embedding::in_space;
use crate::store::embedding::nearest::Method;
use crate::store::filter::Filter;
use crate::store::search::hybrid::{Fused, Fusion, LEG_MAX, LegFound, Near, RRF_K};
use crate::store::vector::score;
use crate::store::vector_space::VectorSpace;
use crate::{Error, Result};
use std::sync::Arc;
use uuid::Uuid;

const WEIGHT_MAX: f64 = 1000.0;
const RRF_K_MAX: i64 = 1000;

/// What a search that is made again is held to; nothing where it is made for the first time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Again {
    /// The log number to be read at; none means now.
    pub seq: Option<i64>,
    /// The space that was searched.
    pub space: Option<Uuid>,
    /// The embedding that was named instead of a vector.
    pub like: Option<Uuid>,
    /// Looking at every embedding.
    pub exactly: bool,
}

impl Again {
    /// Whether nothing is made again: the search is one of now.
    pub fn is_plain(&self) -> bool {
        let Self { seq, space, like, exactly } = self;
        seq.is_none() && space.is_none() && like.is_none() && !exactly
    }
}

/// Which legs a search has.
#[derive(Clone, Copy)]
pub struct Asked {
    pub exact: bool,
    pub text: bool,
    pub vector: bool,
}

/// How ranks are fused, for so many hits.
pub fn read_fusion(
    fields: &mut Fields,
    fusion: Option<pb::Fusion>,
    top_k: i64,
    asked: Asked,
) -> Fusion {
    let usual = if asked.vector { (4 * top_k).clamp(50, LEG_MAX) } else { LEG_MAX };
    let Some(fusion) = fusion else { return Fusion { leg_limit: usual, ..Fusion::default() } };
    let pb::Fusion { rrf_k, text_weight, vector_weight, leg_limit, exact_weight } = fusion;
    fields.within("fusion", |fields| {
        let k = match i64::from(rrf_k) {
            0 => RRF_K,
            k if (1..=RRF_K_MAX).contains(&k) => k,
            _ => {
                let range = format!("must be 1 to {RRF_K_MAX}, or 0 for {RRF_K}");
                fields.wrong("rrf_k", format!("{range}, and is {rrf_k}"));
                RRF_K
            }
        };
        let leg_limit = match i64::from(leg_limit) {
            0 => usual,
            limit if (top_k..=LEG_MAX).contains(&limit) => limit,
            _ => {
                let range = format!("must be {top_k} to {LEG_MAX}, or 0 for {usual}");
                fields.wrong("leg_limit", format!("{range}, and is {leg_limit}"));
                usual
            }
        };
        let mut weight = |name: &str, given: Option<f64>| {
            given.map_or(1.0, |given| fields.number(name, given, 0.0, WEIGHT_MAX))
        };
        let exact_weight = weight("exact_weight", exact_weight);
        let text_weight = weight("text_weight", text_weight);
        let vector_weight = weight("vector_weight", vector_weight);
        let counts =
            [(asked.exact, exact_weight), (asked.text, text_weight), (asked.vector, vector_weight)];
        let mut of_legs = counts.into_iter().filter(|(is_asked, _)| *is_asked).peekable();
        if of_legs.peek().is_some() && of_legs.all(|(_, weight)| weight == 0.0) {
            fields.wrong("", "must leave one of the legs that are asked for a weight above 0");
        }
        Fusion { k, exact_weight, text_weight, vector_weight, leg_limit }
    })
}

impl Parts {
    /// The vector leg as the store makes it, of at least so many rows. Its fields are named below `near`.
    pub(super) async fn read_near(
        &self,
        caller: &Caller,
        near: Option<pb::VectorLeg>,
        leg_limit: i64,
        again: Again,
    ) -> Result<Option<Near>> {
        let Some(near) = near else { return Ok(None) };
        let pb::VectorLeg { vector_space_id, vector, like_embedding_id, params } = near;
        let field = "near.vector_space_id";
        let space = again.hold(self.space(caller, field, vector_space_id, again.seq).await?)?;
        let mut fields = Fields::default();
        let (target, but) = match (vector, like_embedding_id.is_empty()) {
            (Some(_), false) => {
                fields.wrong("near.like_embedding_id", "must not be set together with near.vector");
                (None, None)
            }
            (Some(vector), true) => {
                let read = |fields: &mut Fields| read_vector(fields, Some(vector), &space);
                (fields.within("near", read), again.like)
            }
            (None, false) => {
                let id = wire::id("near.like_embedding_id", like_embedding_id)?;
                let (numbers, uid) = self.vector_of(caller, &space, id, None).await?;
                (Some(numbers), Some(uid))
            }
            (None, true) => {
                fields.wrong("near.vector", "or near.like_embedding_id must be set");
                (None, None)
            }
        };
        let most = i32::try_from(leg_limit).unwrap_or(i32::MAX);
        let mut how = fields.within("near", |fields| {
            fields.within("params", |fields| read_params(fields, params, ("leg_limit", most)))
        });
        how.exact |= again.exactly;
        let Some(target) = fields.finish(target)? else {
            return Err(Error::internal("a vector leg without a vector"));
        };
        let in_space = in_space(&space, Filter::default())?;
        Ok(Some(Near { space: Arc::new(space), in_space, target, but, how }))
    }
}

/// The distance of a hit's nearest embedding, and its score.
pub fn word_distance(space: Option<&VectorSpace>, hit: &Fused) -> (Option<f64>, Option<f64>) {
    (hit.distance, space.zip(hit.distance).map(|(space, distance)| score(space, distance)))
}

/// What is told of the legs of a search.
pub fn word_legs(
    legs: &[LegFound],
    leg_limit: i64,
    space: Option<&VectorSpace>,
) -> Vec<pb::SearchLeg> {
    let space = space.map_or("", |space| &space.id);
    let word = |leg: &LegFound| {
        let LegFound { name, method, hits, candidates } = *leg;
        let found = match (name, method) {
            ("exact", _) => "precedents with the same input, newest first".to_owned(),
            ("vector", Method::Exact) => format!(
                "all {candidates} embeddings of vector_space \"{space}\" that the filter leaves were looked at, and \
                 what they are of ranks by its nearest one"
            ),
            ("vector", method) => format!(
                "{candidates} candidates came from the {} index of vector_space \"{space}\" and from what it does not \
                 have yet; they were ordered by their vectors, and what they are of ranks by its nearest one",
                word_method(method).as_str_name().trim_start_matches("SEARCH_METHOD_")
            ),
            _ => "all that has the words, by how near they are to each other and where they stand"
                .to_owned(),
        };
        pb::SearchLeg {
            leg: name.into(),
            method: word_method(method).into(),
            // At most as many as a leg has rows.
            limit: leg_limit as i32,
            hits: hits as i32,
            candidates,
            description: format!("{found}; {hits} of at most {leg_limit}."),
        }
    };
    legs.iter().map(word).collect()
}
