//! Temporary.
use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};
use std::sync::Arc;
use std::time::Duration;

pub struct OpMetrics;
impl OpMetrics {
    pub fn observe(&self, _ok: bool, _elapsed: Duration) {}
}
pub struct Metrics {
    pub write_queue: Gauge,
    pub write_batch_requests: Histogram,
    pub read_batch_requests: Histogram,
    pub tx_committed: Counter,
    pub tx_aborted: Counter,
    pub tx_unknown: Counter,
}
impl Metrics {
    pub fn op(&self, _name: &'static str) -> Arc<OpMetrics> {
        Arc::new(OpMetrics)
    }
}
