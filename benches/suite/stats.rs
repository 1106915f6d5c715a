//! Medians, a seeded bootstrap, and what a figure with its interval says about a target.

use serde::Serialize;

const RESAMPLES: usize = 10_000;
/// An interval that reaches further than this from its median proves nothing.
const WIDTH_MAX: f64 = 0.15;

/// A small generator (xorshift64*), so that the same samples always give the same interval.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // Zero would stay zero.
        Self(seed.max(1))
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Below `n`, as evenly as the high bits are.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }
}

/// The middle of the values; of none, NaN.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    match n {
        0 => f64::NAN,
        _ if n % 2 == 1 => sorted[n / 2],
        _ => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The value below which a share of the sorted values lies.
pub fn quantile(sorted: &[u32], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).map_or(f64::NAN, |value| f64::from(*value))
}

/// A median with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Estimate {
    /// By percentile bootstrap of the median.
    pub fn of(values: &[f64]) -> Self {
        let mut random = Random::new(0x0CA5_EB00_C0DE_5EED);
        let mut medians: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                let again: Vec<f64> = values
                    .iter()
                    .map(|_| values[random.below(values.len() as u64) as usize])
                    .collect();
                median(&again)
            })
            .collect();
        medians.sort_by(f64::total_cmp);
        let at = |share: f64| medians[((RESAMPLES - 1) as f64 * share).round() as usize];
        Self { median: median(values), low: at(0.025), high: at(0.975) }
    }
}

/// Which way a figure has to lie from its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    AtLeast,
    AtMost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Verdict {
    #[serde(rename = "pass")]
    Pass,
    #[serde(rename = "fall short")]
    FallShort,
    #[serde(rename = "inconclusive")]
    Inconclusive,
    #[serde(rename = "skipped")]
    Skipped,
}

impl Verdict {
    /// A pass or a failure only when the whole interval says so, and when it is narrow: `scale` is what its width is
    /// compared with, the median of a ratio or the target of a difference (which may be about zero).
    pub fn of(estimate: Estimate, wanted: Wanted, target: f64, scale: f64) -> Self {
        let Estimate { median, low, high } = estimate;
        let width = (high - median).max(median - low) / scale.abs();
        // NaN is wide, too.
        if width.is_nan() || width > WIDTH_MAX {
            return Self::Inconclusive;
        }
        let (all_good, all_bad) = match wanted {
            Wanted::AtLeast => (low >= target, high < target),
            Wanted::AtMost => (high <= target, low > target),
        };
        match (all_good, all_bad) {
            (true, _) => Self::Pass,
            (_, true) => Self::FallShort,
            _ => Self::Inconclusive,
        }
    }

    pub fn text(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::FallShort => "fall short",
            Self::Inconclusive => "inconclusive",
            Self::Skipped => "skipped",
        }
    }
}
