//! How a search for the nearest is made: by an index or by looking at every embedding, and under which settings.

use super::nearest::How;
use crate::store::snapshot::Setting;
use crate::store::vector_index::{BINARY, Index};
use crate::{Error, Reason};

/// Codes in a sample: so few that it takes 2 ms, so many that a filter for one in a hundred is told from one for ten.
const SAMPLE_ROWS: i64 = 500;
/// Slices that samples may have: see `slice` in the migration.
const SLICES: i64 = 65_536;
const SAMPLED_SLICES: i64 = 4_096;

/// What a step costs, in microseconds: a point of an index with its embedding, an embedding that the filter leaves with
/// its vector, and one that it does not leave.
const POINT_US: f64 = 15.0;
const VECTOR_US: f64 = 8.0;
const ROW_US: f64 = 0.5;

/// pgvector's own most.
const EF_SEARCH_MAX: i64 = 1000;
const EF_SEARCH_MIN: i64 = 200;
/// Beyond this an indexed search takes longer than one that looks at every embedding.
const SCAN_TUPLES_MAX: i32 = 200_000;

/// The plan that looks at every embedding; PostgreSQL chooses how to find them.
pub(in crate::store) fn exact() -> Vec<Setting> {
    plan("on")
}

/// The plan that goes by the index. Every other one is ruled out, because PostgreSQL guesses what filters leave.
pub(super) fn indexed(how: &How, candidates: i64) -> Vec<Setting> {
    let ef_search = match how.ef_search {
        Some(given) => given.into(),
        None => candidates.clamp(EF_SEARCH_MIN, EF_SEARCH_MAX),
    };
    let most = how.max_scan_tuples.unwrap_or(SCAN_TUPLES_MAX);
    let mut settings = plan("off");
    settings.extend([
        ("hnsw.ef_search", ef_search.to_string()),
        ("hnsw.iterative_scan", "strict_order".to_owned()),
        ("hnsw.max_scan_tuples", most.to_string()),
        // Of work_mem, 4 MB by default: what a long scan may remember.
        ("hnsw.scan_mem_multiplier", "16".to_owned()),
        ("ivfflat.probes", how.probes.unwrap_or(IVFFLAT_PROBES).to_string()),
        ("ivfflat.iterative_scan", "relaxed_order".to_owned()),
    ]);
    settings
}

/// The same for a statement that also looks for words, whose indexes PostgreSQL only knows to scan by bitmaps.
pub(in crate::store) fn indexed_beside_words(how: &How, candidates: i64) -> Vec<Setting> {
    let mut settings = indexed(how, candidates);
    settings.retain(|(name, _)| *name != "enable_bitmapscan");
    settings
}

/// Lists that are looked into at first; an iterative scan goes on from there.
const IVFFLAT_PROBES: i32 = 60;

fn plan(others: &str) -> Vec<Setting> {
    let names = [
        "enable_sort",
        "enable_seqscan",
        "enable_hashjoin",
        "enable_mergejoin",
        "enable_bitmapscan",
    ];
    let mut settings: Vec<Setting> =
        names.into_iter().map(|name| (name, others.to_owned())).collect();
    // It takes longer than it saves.
    settings.push(("jit", "off".to_owned()));
    settings
}

/// How many candidates make up for what codes lose, and for what a walk over a graph misses where a filter leaves few of
/// the points that it comes by. Measured on real embeddings: see benches/vectors.rs.
pub(in crate::store) fn candidates(index: &Index, top_k: i64, is_filtered: bool) -> i64 {
    let wider = if is_filtered { FILTERED } else { 1 };
    match index.codes {
        BINARY => {
            let more = crowding(index.rows) * wider as f64;
            let least = (200.0 * more) as i64;
            ((top_k as f64 * 20.0 * more) as i64).clamp(least.min(1_000), 1_000).max(top_k * 4)
        }
        _ => (top_k * 4 * wider).clamp(40 * wider, 1_000).max(top_k + top_k / 2),
    }
}

const FILTERED: i64 = 3;

/// How many times as many candidates it takes where there are more codes: the more vectors, the more of them have nearly
/// the same code. Twice as many for ten times the vectors, beyond those that were measured first.
fn crowding(rows: i64) -> f64 {
    (rows as f64 / 100_000.0).powf(0.3).max(1.0)
}

/// The slices of a sample of so many codes.
pub(in crate::store) fn sample_slices(rows: i64) -> i64 {
    (SLICES * SAMPLE_ROWS / rows.max(1)).clamp(1, SAMPLED_SLICES)
}

/// The part of a space that a filter leaves, by a sample; more than nothing and less than all.
pub(super) fn selectivity(seen: i64, matching: i64) -> f64 {
    (matching as f64 + 0.5) / (seen as f64 + 1.0)
}

/// Whether an index finds so many candidates sooner than looking at all that the filter leaves.
pub(in crate::store) fn is_index_better(rows: i64, selectivity: f64, candidates: i64) -> bool {
    let points = candidates as f64 / selectivity;
    let rows = rows as f64;
    let exact_us = rows * ROW_US + rows * selectivity * VECTOR_US;
    points < f64::from(SCAN_TUPLES_MAX) && points * POINT_US < exact_us
}

/// Whether a search failed because its index is gone: another has taken its place.
pub(in crate::store) fn is_gone(error: &Error) -> bool {
    error.reason() == Reason::SchemaOutdated
}
