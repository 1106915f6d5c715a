//! How many bytes of blobs are in memory at once, whatever the number of streams.

use crate::{Error, Reason, Result};
use prometheus_client::metrics::gauge::Gauge;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The unit that is counted in.
const UNIT_BYTES: u64 = 1024;
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The bytes that may be in memory; clones share them.
///
/// Whoever holds a share must not wait for a further one unless the first is certain to be given back meanwhile, or all
/// could wait for each other.
#[derive(Clone)]
pub struct Budget {
    free: Arc<Semaphore>,
    total_units: u32,
    wait_max: Duration,
    waiting: Arc<AtomicUsize>,
    in_flight_bytes: Gauge,
}

/// Counts who waits for a share, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn of(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A part of the budget, until it is dropped.
pub struct Share {
    permit: OwnedSemaphorePermit,
    size_bytes: i64,
    in_flight_bytes: Gauge,
}

impl Budget {
    /// `wait_max` is how long anybody waits for a share.
    pub fn new(total_bytes: usize, wait_max: Duration, in_flight_bytes: Gauge) -> Self {
        let total_units = u32::try_from(total_bytes as u64 / UNIT_BYTES).unwrap_or(u32::MAX).max(1);
        let free = Arc::new(Semaphore::new(total_units as usize));
        Self { free, total_units, wait_max, waiting: Arc::default(), in_flight_bytes }
    }

    /// For an upload that begins. It waits for less long: what its caller sends meanwhile fills the window of its
    /// connection, and so may keep back what another upload waits for that has its share.
    pub async fn begin(&self, size_bytes: u64) -> Result<Share> {
        self.take_within(size_bytes, self.wait_max / 4).await
    }

    /// Waits in turn until so many bytes are free. More than there are in all counts as all of them.
    pub async fn take(&self, size_bytes: u64) -> Result<Share> {
        self.take_within(size_bytes, self.wait_max).await
    }

    /// Whether anybody waits for a share.
    pub fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    async fn take_within(&self, size_bytes: u64, wait_max: Duration) -> Result<Share> {
        let units = u32::try_from(size_bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        let units = units.min(self.total_units);
        let permit = Arc::clone(&self.free).acquire_many_owned(units);
        let waiting = Waiting::of(&self.waiting);
        let permit = tokio::time::timeout(wait_max, permit).await;
        drop(waiting);
        let permit = match permit {
            Ok(permit) => permit.map_err(Error::internal)?,
            Err(_) => {
                return Err(Error::Exhausted {
                    reason: Reason::Overloaded,
                    message: "the server has as many bytes of blobs in memory as it takes".into(),
                    retry_after: Some(RETRY_AFTER),
                });
            }
        };
        let size_bytes = i64::from(units) * UNIT_BYTES as i64;
        self.in_flight_bytes.inc_by(size_bytes);
        let in_flight_bytes = self.in_flight_bytes.clone();
        Ok(Share { permit, size_bytes, in_flight_bytes })
    }
}

impl Share {
    /// So many bytes of it as a share of their own, or as many as there are.
    pub fn split(&mut self, size_bytes: u64) -> Option<Self> {
        let most = self.permit.num_permits();
        let units = usize::try_from(size_bytes.div_ceil(UNIT_BYTES)).unwrap_or(most).min(most);
        let permit = self.permit.split(units)?;
        let size_bytes = units as i64 * UNIT_BYTES as i64;
        self.size_bytes -= size_bytes;
        Some(Self { permit, size_bytes, in_flight_bytes: self.in_flight_bytes.clone() })
    }

    /// Takes back what was split off it. A share of another budget goes back to that.
    pub fn merge(&mut self, mut other: Self) {
        if !Arc::ptr_eq(self.permit.semaphore(), other.permit.semaphore()) {
            return;
        }
        if let Some(permit) = other.permit.split(other.permit.num_permits()) {
            self.permit.merge(permit);
            self.size_bytes += std::mem::take(&mut other.size_bytes);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.in_flight_bytes.dec_by(self.size_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn shares_are_waited_for_in_turn_and_given_back() {
        let gauge = Gauge::default();
        let budget = Budget::new(8 << 10, Duration::from_millis(50), gauge.clone());
        let all = budget.take(1 << 20).await.unwrap();
        assert_eq!(gauge.get(), 8 << 10);
        let error = budget.take(1).await.map(|_| ()).unwrap_err();
        assert_eq!(error.reason(), Reason::Overloaded);
        drop(all);
        assert_eq!(gauge.get(), 0);
        let (_one, _two) = (budget.take(1).await.unwrap(), budget.take(7 << 10).await.unwrap());
        assert!(budget.take(1).await.is_err());
    }

    #[tokio::test]
    async fn a_share_is_given_back_piece_by_piece() {
        let gauge = Gauge::default();
        let budget = Budget::new(8 << 10, Duration::from_millis(50), gauge.clone());
        let mut rest = budget.take(8 << 10).await.unwrap();
        let piece = rest.split(3000).unwrap();
        assert_eq!(gauge.get(), 8 << 10);
        assert!(budget.take(1).await.is_err());
        drop(piece);
        assert_eq!(gauge.get(), 5 << 10);
        let all = rest.split(1 << 20).unwrap();
        drop(rest);
        assert_eq!(gauge.get(), 5 << 10);
        assert!(budget.take(4 << 10).await.is_err());
        drop(all);
        assert_eq!(gauge.get(), 0);
    }

    #[tokio::test]
    async fn what_was_split_off_is_taken_back() {
        let gauge = Gauge::default();
        let budget = Budget::new(8 << 10, Duration::from_millis(50), gauge.clone());
        let mut rest = budget.take(6 << 10).await.unwrap();
        let piece = rest.split(2 << 10).unwrap();
        rest.merge(piece);
        assert_eq!(gauge.get(), 6 << 10);
        let piece = rest.split(6 << 10).unwrap();
        drop(rest);
        assert_eq!(gauge.get(), 6 << 10, "all of it was there to be split again");
        let elsewhere = Budget::new(8 << 10, Duration::from_millis(50), gauge.clone());
        let mut other = elsewhere.take(1 << 10).await.unwrap();
        other.merge(piece);
        assert_eq!(gauge.get(), 1 << 10);
        let _all = budget.take(8 << 10).await.unwrap();
    }

    #[tokio::test]
    async fn who_waits_is_seen_by_those_who_have() {
        let budget = Budget::new(8 << 10, Duration::from_millis(50), Gauge::default());
        let share = budget.take(8 << 10).await.unwrap();
        assert!(!budget.is_wanted(), "all is taken, and nobody wants more");
        let (waited, is_wanted) = tokio::join!(budget.take(1), async {
            tokio::task::yield_now().await;
            budget.is_wanted()
        });
        assert!(waited.is_err() && is_wanted);
        assert!(!budget.is_wanted(), "it has given up");
        drop(share);
        let _all = budget.take(8 << 10).await.unwrap();
        assert!(!budget.is_wanted());
    }
}
