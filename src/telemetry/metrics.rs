//! Every metric of the server, each handle made once so that a call only counts.

use crate::error::{Error, Reason, Result};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// The label of methods and operations that are not in the table, so that labels stay bounded.
pub const OTHER: &str = "other";

const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The name of a gRPC code: `NOT_FOUND`.
pub fn code_name(code: i32) -> &'static str {
    usize::try_from(code).ok().and_then(|code| CODES.get(code)).copied().unwrap_or("UNKNOWN")
}

const SECONDS: [f64; 16] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    10.0, 30.0,
];
const BYTES: [f64; 9] =
    [256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0];
const REQUESTS: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// One list of bucket bounds, as a constructor of histograms in a family.
#[derive(Clone)]
struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

type Histograms<L> = Family<L, Histogram, Buckets>;

macro_rules! labels {
    ($($name:ident { $($label:ident),* })*) => {$(
        #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        struct $name { $($label: &'static str,)* }
    )*};
}

labels! {
    ByMethod { grpc_method }
    ByMethodAndStatus { grpc_method, grpc_status }
    ByOp { op }
    ByOpAndOutcome { op, outcome }
    ByOutcome { outcome }
    ByPool { pool }
    ByReason { reason }
    ByVersion { version }
}

/// What one attempt at a back end came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    /// Failed in a way that is worth another attempt.
    Transient,
    Deadline,
    Failed,
}

impl Outcome {
    pub const ALL: [Outcome; 4] =
        [Outcome::Ok, Outcome::Transient, Outcome::Deadline, Outcome::Failed];

    pub fn of<T>(result: &Result<T>) -> Outcome {
        match result {
            Ok(_) => Outcome::Ok,
            Err(error) if error.is_transient() => Outcome::Transient,
            Err(Error::DeadlineExceeded(_)) => Outcome::Deadline,
            Err(_) => Outcome::Failed,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Transient => "transient",
            Outcome::Deadline => "deadline",
            Outcome::Failed => "failed",
        }
    }
}

/// What became of one write transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxOutcome {
    Commit,
    Abort,
    /// The connection was lost during COMMIT.
    Unknown,
}

/// The metrics of one gRPC method.
#[derive(Debug)]
pub struct CallMetrics {
    method: &'static str,
    pub started: Counter,
    pub in_flight: Gauge,
    families: Arc<CallFamilies>,
    /// By code, made when the first call ends with it.
    ended: [OnceLock<EndedMetrics>; CODES.len()],
}

#[derive(Debug)]
struct EndedMetrics {
    duration_seconds: Histogram,
    sent_bytes: Histogram,
    received_bytes: Histogram,
}

struct CallFamilies {
    duration_seconds: Histograms<ByMethodAndStatus>,
    sent_bytes: Histograms<ByMethodAndStatus>,
    received_bytes: Histograms<ByMethodAndStatus>,
}

impl std::fmt::Debug for CallFamilies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallFamilies").finish_non_exhaustive()
    }
}

impl CallMetrics {
    /// Counts a call that ended with `code`.
    pub fn ended(&self, code: i32, took: Duration, sent_bytes: u64, received_bytes: u64) {
        let index = usize::try_from(code).ok().filter(|code| *code < CODES.len()).unwrap_or(2);
        let ended = self.ended[index].get_or_init(|| {
            let labels = ByMethodAndStatus { grpc_method: self.method, grpc_status: CODES[index] };
            EndedMetrics {
                duration_seconds: self.families.duration_seconds.get_or_create_owned(&labels),
                sent_bytes: self.families.sent_bytes.get_or_create_owned(&labels),
                received_bytes: self.families.received_bytes.get_or_create_owned(&labels),
            }
        });
        ended.duration_seconds.observe(took.as_secs_f64());
        ended.sent_bytes.observe(sent_bytes as f64);
        ended.received_bytes.observe(received_bytes as f64);
    }
}

/// The metrics of one back-end operation: a query, or a step of the write path.
#[derive(Debug)]
pub struct OpMetrics {
    attempts: [Counter; 4],
    pub duration_seconds: Histogram,
}

impl OpMetrics {
    /// Counts one attempt.
    pub fn attempt(&self, outcome: Outcome, took: Duration) {
        self.attempts[outcome as usize].inc();
        self.duration_seconds.observe(took.as_secs_f64());
    }
}

/// The metrics of one pool of connections.
#[derive(Clone, Debug)]
pub struct PoolMetrics {
    pub size: Gauge,
    pub in_use: Gauge,
    pub waiting: Gauge,
    pub max_size: Gauge,
    pub wait_seconds: Histogram,
}

struct PoolFamilies {
    size: Family<ByPool, Gauge>,
    in_use: Family<ByPool, Gauge>,
    waiting: Family<ByPool, Gauge>,
    max_size: Family<ByPool, Gauge>,
    wait_seconds: Histograms<ByPool>,
}

type Refresh = Box<dyn Fn() + Send + Sync>;

/// The registry and all its handles.
pub struct Metrics {
    registry: Registry,
    calls: Vec<Arc<CallMetrics>>,
    other_calls: Arc<CallMetrics>,
    ops: HashMap<&'static str, Arc<OpMetrics>>,
    other_ops: Arc<OpMetrics>,
    pools: PoolFamilies,
    transactions: [Counter; 3],
    auth_failures: Family<ByReason, Counter>,
    /// Requests in one write transaction.
    pub write_batch_requests: Histogram,
    /// Requests answered by one read statement.
    pub read_batch_requests: Histogram,
    /// Writes that wait for a batch.
    pub write_queue: Gauge,
    /// Writes answered from the ledger.
    pub request_replays: Counter,
    /// Bytes of blobs in memory.
    pub blob_in_flight_bytes: Gauge,
    /// Uploads that are under way, or were when a server ended, in all tenants.
    pub blob_pending: Gauge,
    /// Keys of the store whose bytes are to be removed.
    pub blob_orphans: Gauge,
    /// Times that stored bytes were found damaged.
    pub blob_corrupt: Counter,
    /// Bytes of blobs that were read only to see whether they are right.
    pub blob_scrubbed_bytes: Counter,
    /// Embeddings whose vectors were looked at only to see whether they are as recorded.
    pub sync_checked: Counter,
    /// Vectors that were found not to be as recorded.
    pub sync_different: Counter,
    refresh: Mutex<Vec<Refresh>>,
}

impl Metrics {
    /// `methods` are full RPC names, found again by their index; `ops` are the names of all back-end operations.
    pub fn new(
        methods: impl IntoIterator<Item = &'static str>,
        ops: impl IntoIterator<Item = &'static str>,
    ) -> Self {
        let mut registry = Registry::default();
        let r = &mut registry;

        let started = Family::<ByMethod, Counter>::default();
        let in_flight = Family::<ByMethod, Gauge>::default();
        let families = Arc::new(CallFamilies {
            duration_seconds: Family::new_with_constructor(Buckets(&SECONDS)),
            sent_bytes: Family::new_with_constructor(Buckets(&BYTES)),
            received_bytes: Family::new_with_constructor(Buckets(&BYTES)),
        });
        // The counter's suffix _total is the encoder's.
        r.register("grpc_server_calls_started", "Calls begun", started.clone());
        r.register("grpc_server_calls_in_flight", "Calls not yet ended", in_flight.clone());
        r.register(
            "grpc_server_call_duration_seconds",
            "Time from a call's first byte to its last",
            families.duration_seconds.clone(),
        );
        r.register(
            "grpc_server_call_sent_total_compressed_message_size_bytes",
            "Bytes of messages sent in a call, as framed",
            families.sent_bytes.clone(),
        );
        r.register(
            "grpc_server_call_rcvd_total_compressed_message_size_bytes",
            "Bytes of messages received in a call, as framed",
            families.received_bytes.clone(),
        );
        let call = |method| {
            let label = ByMethod { grpc_method: method };
            Arc::new(CallMetrics {
                method,
                started: started.get_or_create_owned(&label),
                in_flight: in_flight.get_or_create_owned(&label),
                families: families.clone(),
                ended: Default::default(),
            })
        };

        let attempts = Family::<ByOpAndOutcome, Counter>::default();
        let durations = Histograms::<ByOp>::new_with_constructor(Buckets(&SECONDS));
        r.register("casebook_backend_attempts", "Attempts at a back end", attempts.clone());
        r.register(
            "casebook_backend_duration_seconds",
            "Time of one attempt at a back end",
            durations.clone(),
        );
        let op = |op| {
            let attempts = Outcome::ALL.map(|outcome| {
                attempts.get_or_create_owned(&ByOpAndOutcome { op, outcome: outcome.name() })
            });
            let duration_seconds = durations.get_or_create_owned(&ByOp { op });
            Arc::new(OpMetrics { attempts, duration_seconds })
        };

        let pools = PoolFamilies {
            size: Family::default(),
            in_use: Family::default(),
            waiting: Family::default(),
            max_size: Family::default(),
            wait_seconds: Family::new_with_constructor(Buckets(&SECONDS)),
        };
        r.register("casebook_pool_size", "Connections open", pools.size.clone());
        r.register("casebook_pool_in_use", "Connections in use", pools.in_use.clone());
        r.register("casebook_pool_waiting", "Callers that wait", pools.waiting.clone());
        r.register("casebook_pool_max_size", "Connections at most", pools.max_size.clone());
        r.register(
            "casebook_pool_wait_seconds",
            "Time a caller waited for a connection",
            pools.wait_seconds.clone(),
        );

        let tx = Family::<ByOutcome, Counter>::default();
        r.register("casebook_tx", "Write transactions ended", tx.clone());
        let transactions = ["commit", "abort", "unknown"]
            .map(|outcome| tx.get_or_create_owned(&ByOutcome { outcome }));

        let write_batch_requests = Buckets(&REQUESTS).new_metric();
        let read_batch_requests = Buckets(&REQUESTS).new_metric();
        let (write_queue, request_replays) = (Gauge::default(), Counter::default());
        let auth_failures = Family::<ByReason, Counter>::default();
        let blob_in_flight_bytes = Gauge::default();
        let (blob_pending, blob_orphans, blob_corrupt) =
            (Gauge::default(), Gauge::default(), Counter::default());
        r.register(
            "casebook_blob_in_flight_bytes",
            "Bytes of blobs in memory",
            blob_in_flight_bytes.clone(),
        );
        r.register("casebook_blob_pending", "Uploads under way or left", blob_pending.clone());
        r.register("casebook_blob_orphans", "Stored bytes to be removed", blob_orphans.clone());
        let blob_scrubbed_bytes = Counter::default();
        r.register(
            "casebook_blob_scrubbed_bytes",
            "Bytes of blobs read to see whether they are right",
            blob_scrubbed_bytes.clone(),
        );
        let (sync_checked, sync_different) = (Counter::default(), Counter::default());
        r.register(
            "casebook_sync_checked",
            "Embeddings held against the record",
            sync_checked.clone(),
        );
        r.register(
            "casebook_sync_different",
            "Vectors found not to be as recorded",
            sync_different.clone(),
        );
        r.register("casebook_blob_corrupt", "Damaged blobs that were found", blob_corrupt.clone());
        r.register(
            "casebook_write_batch_requests",
            "Requests in one write transaction",
            write_batch_requests.clone(),
        );
        r.register(
            "casebook_read_batch_requests",
            "Requests answered by one read statement",
            read_batch_requests.clone(),
        );
        r.register("casebook_write_queue", "Writes that wait for a batch", write_queue.clone());
        r.register(
            "casebook_request_replays",
            "Writes answered from the ledger",
            request_replays.clone(),
        );
        r.register("casebook_auth_failures", "Calls refused at the door", auth_failures.clone());
        let build = Info::new(ByVersion { version: env!("CARGO_PKG_VERSION") });
        r.register("casebook_build", "What is running", build);

        Metrics {
            calls: methods.into_iter().map(call).collect(),
            other_calls: call(OTHER),
            ops: ops.into_iter().map(|name| (name, op(name))).collect(),
            other_ops: op(OTHER),
            registry,
            pools,
            transactions,
            auth_failures,
            write_batch_requests,
            read_batch_requests,
            write_queue,
            request_replays,
            blob_in_flight_bytes,
            blob_pending,
            blob_orphans,
            blob_corrupt,
            blob_scrubbed_bytes,
            sync_checked,
            sync_different,
            refresh: Mutex::default(),
        }
    }

    /// The handles of the method at `index`; None, and what is out of range, are the other methods.
    pub fn call(&self, index: Option<usize>) -> &Arc<CallMetrics> {
        index.and_then(|index| self.calls.get(index)).unwrap_or(&self.other_calls)
    }

    /// The handles of a back-end operation, to be kept by who runs it.
    pub fn op(&self, name: &str) -> Arc<OpMetrics> {
        self.ops.get(name).unwrap_or(&self.other_ops).clone()
    }

    /// The handles of a pool, to be kept by who owns it.
    pub fn pool(&self, pool: &'static str) -> PoolMetrics {
        let label = ByPool { pool };
        PoolMetrics {
            size: self.pools.size.get_or_create_owned(&label),
            in_use: self.pools.in_use.get_or_create_owned(&label),
            waiting: self.pools.waiting.get_or_create_owned(&label),
            max_size: self.pools.max_size.get_or_create_owned(&label),
            wait_seconds: self.pools.wait_seconds.get_or_create_owned(&label),
        }
    }

    /// Counts a write transaction.
    pub fn transaction(&self, outcome: TxOutcome) {
        self.transactions[outcome as usize].inc();
    }

    /// Counts a call refused at the door.
    pub fn auth_failure(&self, reason: Reason) {
        self.auth_failures.get_or_create(&ByReason { reason: reason.as_str() }).inc();
    }

    /// Runs `refresh` before each reading, for gauges that somebody else knows.
    pub fn before_reading(&self, refresh: impl Fn() + Send + Sync + 'static) {
        self.refresh.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(refresh));
    }

    /// All metrics as OpenMetrics text.
    pub fn text(&self) -> String {
        for refresh in self.refresh.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            refresh();
        }
        let mut page = String::with_capacity(64 * 1024);
        if text::encode(&mut page, &self.registry).is_err() {
            // Writing to a string does not fail; a page without its end mark is refused by every reader.
            page.clear();
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(page: &str, line: &str) {
        assert!(page.lines().any(|l| l == line), "{line}\n{page}");
    }

    #[test]
    fn the_page_has_every_metric_by_its_name() {
        let metrics = Metrics::new(["a.B/C"], ["decision.GET"]);
        metrics.call(Some(0)).started.inc();
        metrics.call(Some(0)).in_flight.inc();
        metrics.call(Some(0)).ended(5, Duration::from_millis(3), 10, 20);
        metrics.call(None).started.inc();
        metrics.call(Some(7)).started.inc();
        metrics.op("decision.GET").attempt(Outcome::Ok, Duration::from_millis(1));
        metrics.op("nobody.KNOWS").attempt(Outcome::Failed, Duration::from_millis(1));
        metrics.transaction(TxOutcome::Abort);
        metrics.auth_failure(Reason::TokenInvalid);
        metrics.write_batch_requests.observe(3.0);
        metrics.request_replays.inc();
        let pool = metrics.pool("read");
        metrics.before_reading(move || {
            pool.in_use.set(4);
        });

        let page = metrics.text();
        has(&page, "grpc_server_calls_started_total{grpc_method=\"a.B/C\"} 1");
        has(&page, "grpc_server_calls_started_total{grpc_method=\"other\"} 2");
        has(&page, "grpc_server_calls_in_flight{grpc_method=\"a.B/C\"} 1");
        let labels = "{grpc_method=\"a.B/C\",grpc_status=\"NOT_FOUND\"}";
        has(&page, &format!("grpc_server_call_duration_seconds_count{labels} 1"));
        has(
            &page,
            &format!("grpc_server_call_sent_total_compressed_message_size_bytes_sum{labels} 10.0"),
        );
        has(
            &page,
            &format!("grpc_server_call_rcvd_total_compressed_message_size_bytes_sum{labels} 20.0"),
        );
        has(&page, "casebook_backend_attempts_total{op=\"decision.GET\",outcome=\"ok\"} 1");
        has(&page, "casebook_backend_attempts_total{op=\"other\",outcome=\"failed\"} 1");
        has(&page, "casebook_backend_duration_seconds_count{op=\"decision.GET\"} 1");
        has(&page, "casebook_tx_total{outcome=\"abort\"} 1");
        has(&page, "casebook_tx_total{outcome=\"commit\"} 0");
        has(&page, "casebook_auth_failures_total{reason=\"TOKEN_INVALID\"} 1");
        has(&page, "casebook_write_batch_requests_sum 3.0");
        has(&page, "casebook_read_batch_requests_count 0");
        has(&page, "casebook_write_queue 0");
        has(&page, "casebook_blob_in_flight_bytes 0");
        has(&page, "casebook_blob_pending 0");
        has(&page, "casebook_blob_orphans 0");
        has(&page, "casebook_blob_corrupt_total 0");
        has(&page, "casebook_blob_scrubbed_bytes_total 0");
        has(&page, "casebook_sync_checked_total 0");
        has(&page, "casebook_sync_different_total 0");
        has(&page, "casebook_request_replays_total 1");
        has(&page, "casebook_pool_in_use{pool=\"read\"} 4");
        has(&page, "casebook_pool_wait_seconds_count{pool=\"read\"} 0");
        has(&page, &format!("casebook_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")));
        assert!(page.ends_with("# EOF\n"));
    }

    #[test]
    fn outcomes_and_codes() {
        assert_eq!(Outcome::of(&Ok(())), Outcome::Ok);
        assert_eq!(Outcome::of::<()>(&Err(Error::unavailable("x"))), Outcome::Transient);
        assert_eq!(Outcome::of::<()>(&Err(Error::DeadlineExceeded(""))), Outcome::Deadline);
        assert_eq!(Outcome::of::<()>(&Err(Error::ShuttingDown)), Outcome::Failed);
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index);
        }
        assert_eq!((code_name(0), code_name(16)), ("OK", "UNAUTHENTICATED"));
        assert_eq!((code_name(-1), code_name(99)), ("UNKNOWN", "UNKNOWN"));
    }
}
