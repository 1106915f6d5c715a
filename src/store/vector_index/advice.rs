//! What index a space should have, and why, in words.

use super::stats::{Last, SpaceStats};
use super::{FLOAT16, IndexSpec, READY, SUSPECT, UNSUITED};
use crate::store::vector_space::VectorSpace;

/// Up to here a search that looks at every embedding takes a few milliseconds.
pub const ROWS_MIN: i64 = 20_000;
/// Above this a list of fresh embeddings slows searches down.
const FRESH_MAX: i64 = 5_000;
/// Below this an index misses too much.
const RECALL_MIN: f64 = 0.95;

/// What would be better.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Advice {
    /// One sentence each; empty where all is well.
    pub words: Vec<String>,
    /// What to build, if anything.
    pub spec: Option<IndexSpec>,
}

/// The index that suits a space of any size.
pub fn best(space: &VectorSpace) -> IndexSpec {
    IndexSpec { codes: IndexSpec::HNSW.codes_for(space), ..IndexSpec::HNSW }
}

pub fn advise(space: &VectorSpace, stats: &SpaceStats) -> Advice {
    let mut advice = Advice::default();
    let mut say = |words: String| advice.words.push(words);
    let rows = stats.rows;
    if let Some(Last { id, error, .. }) = &stats.failed {
        let wanted = IndexSpec::of(space).is_some_and(|spec| !spec.is_none());
        let stands = stats.indexes.iter().any(|index| matches!(index.state, READY | UNSUITED));
        let then = match (wanted, stands) {
            (true, false) => "it is tried again after an hour",
            (_, true) => "the index from before stays",
            _ => "nothing was changed",
        };
        say(format!("The last operation, \"{id}\", failed: {error}; {then}."));
    }
    let Some(index) = stats.indexes.iter().find(|index| index.state == READY) else {
        if stats.indexes.iter().any(|index| index.state < READY) {
            say("An index is being built; searches look at every embedding until then.".into());
        } else if stats.indexes.iter().any(|index| index.state == SUSPECT) {
            say("The index was found to be damaged or to miss too much, so searches look at every embedding; it is \
                 built anew."
                .into());
        } else if stats.indexes.iter().any(|index| index.state == UNSUITED) {
            say("The index found less than half of the nearest from the beginning, so searches look at every embedding: its \
                 codes tell these vectors apart too little; build one with FLOAT16 or FLOAT32 codes."
                .into());
        } else if rows >= ROWS_MIN {
            let best = best(space);
            let dimensions = space.dimensions;
            let codes = match best.codes {
                FLOAT16 => {
                    format!(
                        "FLOAT16 codes, because {dimensions} dimensions are few for one bit each"
                    )
                }
                _ => format!(
                    "BINARY codes, because one bit for each of {dimensions} dimensions finds the candidates in a \
                     sixteenth of the memory"
                ),
            };
            say(format!(
                "Build an index: each search looks at {rows} embeddings. HNSW with {codes}."
            ));
            advice.spec = Some(best);
        }
        return advice;
    };
    if rows < ROWS_MIN / 4 {
        say(format!(
            "The index could be dropped: looking at all {rows} embeddings takes a few milliseconds and misses none."
        ));
    }
    if index.fresh > FRESH_MAX {
        say(format!(
            "{} embeddings are not in the index yet, and each search looks at all of them: embeddings come faster than \
             they are indexed.",
            index.fresh
        ));
    }
    if let Some(recall) = index.probe_recall.filter(|recall| *recall < RECALL_MIN) {
        let (what, spec) = if index.codes > FLOAT16 && space.dimensions <= 4000 {
            ("with FLOAT16 codes", IndexSpec { codes: FLOAT16, ..IndexSpec::HNSW })
        } else {
            let spec = IndexSpec {
                codes: index.codes,
                m: (index.m.max(16) * 2).min(100),
                ef_construction: (index.ef_construction.max(64) * 2).min(1000),
                ..IndexSpec::HNSW
            };
            ("with twice m and ef_construction", spec)
        };
        say(format!(
            "The index found {} % of the nearest when it was last looked at: build it anew {what}, or search with more \
             candidates.",
            (recall * 100.0).floor()
        ));
        advice.spec = Some(spec);
    }
    advice
}
