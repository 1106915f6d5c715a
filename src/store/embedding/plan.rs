//! How a search for the nearest is made: by a walk over an index, by the codes or by the vectors of what filters leave,
//! and under which settings.

use super::nearest::How;
use crate::store::snapshot::Setting;
use crate::store::vector_index::BINARY;
use crate::{Error, Reason};

/// Codes in a sample: so few that it takes 2 ms, so many that a filter for one in a hundred is told from one for ten.
const SAMPLE_ROWS: i64 = 500;
/// Slices that samples may have: see `slice` in the migration.
const SLICES: i64 = 65_536;
const SAMPLED_SLICES: i64 = 4_096;

/// What a step costs, in microseconds, with 1536 dimensions and all in memory: a point that a walk comes by, an
/// embedding that the filter leaves with its code, one with its vector, and one that it does not leave. The last is a
/// guess: next to nothing where an index of PostgreSQL serves the filter, several times as much where none does.
const POINT_US: f64 = 14.0;
const CODE_US: f64 = 1.5;
const VECTOR_US: f64 = 8.0;
const ROW_US: f64 = 0.1;
/// Up to so many codes a graph stays in the processor's caches; four times as many make a point twice as dear.
const CACHED_ROWS: f64 = 250_000.0;

/// More keys than that are not brought together for a scan of their codes: they take 16 bytes each.
const SCAN_MAX: f64 = 2_000_000.0;

/// pgvector's own most.
const EF_SEARCH_MAX: i64 = 1000;
const EF_SEARCH_MIN: i64 = 200;
/// Beyond this an indexed search takes longer than one that looks at every embedding.
const SCAN_TUPLES_MAX: i32 = 200_000;

/// The way that a search goes by an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Over its points, nearest first, until enough of them fulfil the filter.
    Walk,
    /// Over the codes of all that the filter leaves.
    Scan,
}

/// The plan that looks at every embedding; PostgreSQL chooses how to find them.
pub(in crate::store) fn exact() -> Vec<Setting> {
    plan("on")
}

/// The plan that looks at the codes of what the filter leaves. One process: the others have searches of their own to do,
/// and starting them takes as long as they save.
pub(super) fn scanned() -> Vec<Setting> {
    let mut settings = plan("on");
    settings.push(("max_parallel_workers_per_gather", "0".to_owned()));
    // So that a bitmap of a large table keeps to rows; with the default of 4 MB it falls back to whole pages.
    settings.push(("work_mem", "16MB".to_owned()));
    settings
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
        // Under a strict order, a walk that goes on throws away what it should have met before. Candidates are ordered by
        // their vectors anyway.
        ("hnsw.iterative_scan", "relaxed_order".to_owned()),
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
/// the points that it comes by. `rows` are those that are searched for. Measured: see benches/vectors.rs.
pub(in crate::store) fn candidates(codes: i16, rows: f64, top_k: i64, is_filtered: bool) -> i64 {
    match codes {
        BINARY => {
            let more = crowding(rows) * if is_filtered { 1.25 } else { 1.0 };
            let least = (200.0 * more) as i64;
            ((top_k as f64 * 20.0 * more) as i64).clamp(least.min(1_000), 1_000).max(top_k * 4)
        }
        _ => {
            let wider = if is_filtered { 3 } else { 1 };
            (top_k * 4 * wider).clamp(40 * wider, 1_000).max(top_k + top_k / 2)
        }
    }
}

/// How many times as many candidates it takes where there are more codes: the more vectors, the more of them have nearly
/// the same code. Twice as many for ten times the vectors, beyond those that were measured first.
fn crowding(rows: f64) -> f64 {
    (rows / 100_000.0).powf(0.3).max(1.0)
}

/// The slices of a sample of so many codes.
pub(in crate::store) fn sample_slices(rows: i64) -> i64 {
    (SLICES * SAMPLE_ROWS / rows.max(1)).clamp(1, SAMPLED_SLICES)
}

/// The part of a space that a filter leaves, by a sample; more than nothing and less than all.
pub(super) fn selectivity(seen: i64, matching: i64) -> f64 {
    (matching as f64 + 0.5) / (seen as f64 + 1.0)
}

/// The way by an index that finds so many candidates soonest; `None` where looking at the vectors of all that the filter
/// leaves is as soon done.
pub(super) fn way(codes: i16, rows: i64, selectivity: f64, candidates: i64) -> Option<Way> {
    let left = rows as f64 * selectivity;
    let looked_at = left.min(candidates as f64);
    let scan_us = rows as f64 * ROW_US + left * CODE_US + looked_at * VECTOR_US;
    let walk_us = walk_us(rows, selectivity, candidates);
    // Of other codes there is as much to read as of vectors.
    let (way, us) = match codes == BINARY && left <= SCAN_MAX && scan_us < walk_us {
        true => (Way::Scan, scan_us),
        false => (Way::Walk, walk_us),
    };
    (us < exact_us(rows, selectivity)).then_some(way)
}

/// Whether a walk over an index finds so many candidates sooner than looking at all that the filter leaves.
pub(in crate::store) fn is_walk_better(rows: i64, selectivity: f64, candidates: i64) -> bool {
    walk_us(rows, selectivity, candidates) < exact_us(rows, selectivity)
}

fn walk_us(rows: i64, selectivity: f64, candidates: i64) -> f64 {
    let points = candidates as f64 / selectivity;
    // It would end before it has them.
    if points >= f64::from(SCAN_TUPLES_MAX) {
        return f64::INFINITY;
    }
    points * POINT_US * (rows as f64 / CACHED_ROWS).sqrt().max(1.0)
}

fn exact_us(rows: i64, selectivity: f64) -> f64 {
    rows as f64 * (ROW_US + selectivity * VECTOR_US)
}

/// Whether a search failed because its index is gone: another has taken its place.
pub(in crate::store) fn is_gone(error: &Error) -> bool {
    error.reason() == Reason::SchemaOutdated
}

#[cfg(test)]
mod tests {
    use super::{Way, candidates, is_walk_better, way};
    use crate::store::vector_index::{BINARY, FLOAT16};

    fn way_for(codes: i16, rows: i64, part: f64) -> Option<Way> {
        way(codes, rows, part, candidates(codes, rows as f64 * part, 10, true))
    }

    #[test]
    fn what_a_filter_leaves_decides_the_way() {
        let ways = |codes, rows| [0.5, 0.1, 0.01, 0.0001].map(|part| way_for(codes, rows, part));
        let (walk, scan) = (Some(Way::Walk), Some(Way::Scan));
        assert_eq!(ways(BINARY, 1_000_000), [walk, walk, scan, None]);
        assert_eq!(ways(BINARY, 250_000), [walk, walk, scan, None]);
        assert_eq!(ways(BINARY, 20_000), [walk, scan, None, None]);
        // There is no less to read of these codes than of the vectors.
        assert_eq!(ways(FLOAT16, 1_000_000), [walk, walk, None, None]);
        assert_eq!(ways(FLOAT16, 2_000), [walk, None, None, None]);
    }

    #[test]
    fn a_walk_that_would_end_early_is_not_begun() {
        assert!(is_walk_better(i64::MAX, 0.01, 1_000));
        assert!(!is_walk_better(i64::MAX, 0.0001, 1_000));
        assert_eq!(way(BINARY, 1_000_000_000, 0.001, 1_000), Some(Way::Scan));
        assert_eq!(way(BINARY, 10_000_000_000, 0.001, 1_000), None);
    }

    #[test]
    fn more_codes_take_more_candidates_up_to_a_thousand_or_four_times_the_hits() {
        let binary = |rows, top_k| candidates(BINARY, rows, top_k, false);
        assert_eq!([binary(1e3, 10), binary(1e5, 10), binary(1e6, 10)], [200, 200, 399]);
        assert_eq!([binary(1e3, 30), binary(1e12, 10), binary(1e3, 500)], [600, 1000, 2000]);
        assert_eq!(candidates(BINARY, 1e5, 10, true), 250);
    }
}
