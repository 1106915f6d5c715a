//! Building indexes, putting new vectors into them, and seeing that they are sound: what goes on beside the calls.
//!
//! Every server does it. A function that works at an index claims it for its transaction, so two servers take turns. All
//! that is done is in the tables, so whoever is left goes on where another stopped.

use super::advice::{ROWS_MIN, best};
use super::worker::{SEAL, Worker};
use super::{Index, IndexSpec, READY, SUSPECT, UNSUITED};
use crate::store::Store;
use crate::store::caller::Caller;
use crate::store::embedding::nearest::{How, Method};
use crate::store::embedding::plan::is_gone;
use crate::store::operation::{DROP, Operation, WantIndex};
use crate::store::vector_space::VectorSpace;
use crate::store::write::WriteOptions;
use crate::{Error, Result, queries, row};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

row! {
    /// An operation of some tenant.
    #[derive(Eq, Hash)]
    pub struct Open {
        pub tenant_id: String,
        pub id: String,
        pub action: String,
    }
}

row! {
    /// A space that should have an index and has none.
    pub struct Wanting {
        pub tenant_id: String,
        pub id: String,
        /// Whether it was asked for, or else wished by AUTO.
        pub is_lost: bool,
    }
}

queries! { "vector_index" {
    /// Operations of all tenants that are not over, the oldest first.
    OPERATIONS() -> Open = "SELECT {*} FROM wall.open_operations()";
    /// Spaces of all tenants that should have an index: (embeddings from which on AUTO builds one).
    WANTING(i64) -> Wanting = "SELECT {*} FROM wall.wanting_spaces($1)";
} }

/// How indexes are built and looked after.
#[derive(Clone, Debug)]
pub struct UpkeepSettings {
    /// Memory that building an index may take in PostgreSQL.
    pub build_memory_bytes: u64,
    /// Processes that help it.
    pub build_workers: u32,
    /// Indexes that are built side by side.
    pub builds_max: usize,
    /// Pause between two looks at what is to do.
    pub every: Duration,
    /// Pause between two looks at how much an index finds; none: never.
    pub probe_every: Option<Duration>,
    /// Makes the caller that the work is done as, in a tenant.
    pub caller: fn(&str) -> Caller,
}

/// Indexes that are dropped side by side.
const DROPS_MAX: usize = 2;
/// Vectors that one transaction seals: from few, because it is not known how long one takes.
const SEAL_ROWS_MIN: i32 = 20;
const SEAL_ROWS_MAX: i32 = 2_000;
/// How long sealing some may take, so that it neither holds back VACUUM nor makes a shutdown wait.
const SEAL_TIME: Duration = Duration::from_millis(300);
/// Pause where there is more to do at once, so that calls come through.
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// How often spaces are looked through for want of an index.
const WANTING_EVERY: Duration = Duration::from_secs(10);
/// Searches of a look at an index.
const PROBE_SAMPLE: usize = 20;
const PROBE_TOP_K: i64 = 10;
const PROBE_TIME: Duration = Duration::from_secs(60);
/// Below this, or so far below the last look, an index is not to be trusted.
const PROBE_MIN: f64 = 0.5;
const PROBE_FALL_MAX: f64 = 0.25;
/// pgvector's parallel builds of HNSW were unsound before (its issue 945 and others).
const PARALLEL_SINCE: &[u32] = &[0, 8, 2];
/// Searches go on where a filter left too few, so that filters lose nothing.
pub(super) const ITERATIVE_SINCE: &[u32] = &[0, 8];
/// Indexes could be corrupted by VACUUM and by building before.
pub const SOUND_SINCE: &[u32] = &[0, 8, 4];

/// Whether a version such as "0.8.5" is at least another one. One that cannot be read is not.
pub fn is_at_least(version: &str, least: &[u32]) -> bool {
    let parts: Option<Vec<u32>> = version.split('.').map(|part| part.parse().ok()).collect();
    parts.is_some_and(|parts| *parts >= *least)
}

/// Runs the upkeep until it is told to stop.
pub async fn run(store: Store, settings: UpkeepSettings, mut stopped: watch::Receiver<bool>) {
    let mut keeper = Keeper {
        store,
        settings,
        working: HashMap::new(),
        seal_rows: HashMap::new(),
        looked: None,
        parallel: None,
        stopped: stopped.clone(),
    };
    // Said once, because it is tried every moment.
    let mut is_failing = false;
    loop {
        // What it drops closes its session, and any server goes on from there.
        let turned = tokio::select! {
            turned = keeper.turn() => turned,
            _ = stopped.wait_for(|stop| *stop) => break,
        };
        let pause = if matches!(turned, Ok(true)) { BUSY_PAUSE } else { keeper.settings.every };
        match turned {
            Err(error) if !is_failing => {
                let cause = std::error::Error::source(&error);
                tracing::warn!(%error, ?cause, "vector indexes are not looked after for now");
                is_failing = true;
            }
            Err(_) => {}
            Ok(_) => is_failing = false,
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stopped.wait_for(|stop| *stop) => break,
        }
    }
    for working in keeper.working.into_values() {
        // Its session ends with it, and what it did not commit; any server goes on from there.
        working.abort();
        let _ = working.await;
    }
}

struct Keeper {
    store: Store,
    settings: UpkeepSettings,
    /// The operations that are worked at.
    working: HashMap<Open, JoinHandle<()>>,
    /// How many vectors of each index are sealed at once.
    seal_rows: HashMap<Uuid, i32>,
    looked: Option<Instant>,
    /// Whether pgvector builds HNSW with several processes soundly.
    parallel: Option<bool>,
    stopped: watch::Receiver<bool>,
}

impl Keeper {
    /// One look at what is to do. Says whether there is more to do at once.
    async fn turn(&mut self) -> Result<bool> {
        let indexes = self.store.refresh_indexes().await?;
        // Before the look at what is open, or what ends in between would begin again.
        self.working.retain(|_, working| !working.is_finished());
        let (drops, builds): (Vec<Open>, Vec<Open>) =
            self.store.admin_rows(&OPERATIONS, ()).await?.into_iter().partition(Open::is_drop);
        // The oldest in the whole deployment, so that other servers begin no more than this one does.
        for (open, most) in [(drops, DROPS_MAX), (builds, self.settings.builds_max)] {
            for open in open.into_iter().take(most) {
                let busy = self.working.keys().filter(|other| other.is_drop() == open.is_drop());
                if busy.count() < most && !self.working.contains_key(&open) {
                    let working = self.begin(&open).await?;
                    self.working.insert(open, working);
                }
            }
        }
        let mut has_more = false;
        for index in &indexes {
            if *self.stopped.borrow() {
                return Ok(false);
            }
            has_more |= self.look_after(index).await.unwrap_or_else(|error| {
                tracing::warn!(%error, tenant = index.tenant_id, index = %index.uid, "an index was not looked after");
                false
            });
        }
        if self.looked.is_none_or(|looked| looked.elapsed() > WANTING_EVERY) {
            self.looked = Some(Instant::now());
            self.worker().sweep_gone().await?;
            for wanting in self.store.admin_rows(&WANTING, (ROWS_MIN,)).await? {
                if let Err(error) = self.want(wanting).await {
                    tracing::warn!(%error, "an index that a space should have is not begun");
                }
            }
        }
        self.seal_rows.retain(|uid, _| indexes.iter().any(|index| index.uid == *uid));
        Ok(has_more)
    }

    async fn begin(&mut self, open: &Open) -> Result<JoinHandle<()>> {
        let parallel = match self.parallel {
            Some(parallel) => parallel,
            None => {
                let version = self.store.database_status().await?.pgvector_version;
                let parallel = is_at_least(&version, PARALLEL_SINCE);
                if !parallel && self.settings.build_workers > 0 {
                    tracing::warn!(
                        version,
                        "this pgvector builds HNSW soundly with one process only, so with one it is"
                    );
                }
                *self.parallel.insert(parallel)
            }
        };
        let mut settings = self.settings.clone();
        if !parallel {
            settings.build_workers = 0;
        }
        let worker = Worker { store: self.store.clone(), settings };
        let (tenant_id, id) = (open.tenant_id.clone(), open.id.clone());
        Ok(tokio::spawn(async move {
            if let Err(error) = worker.carry_on(&tenant_id, &id).await {
                tracing::warn!(%error, tenant = tenant_id, operation = id, "an operation goes on later");
                tokio::time::sleep(worker.settings.every).await;
            }
        }))
    }

    fn worker(&self) -> Worker {
        Worker { store: self.store.clone(), settings: self.settings.clone() }
    }

    /// Sees to one index. Says whether there is more to do at once.
    async fn look_after(&mut self, index: &Index) -> Result<bool> {
        let tenant = &index.tenant_id;
        let worker = self.worker();
        if !index.is_space_live {
            // Should the space come back, its index is built anew.
            return worker.remove(tenant, index.space_uid, None).await.map(|()| false);
        }
        if index.is_unfinished() {
            // An operation that is over left it behind.
            let id = index.uid.to_string();
            return match self.store.get::<Operation>(&worker.caller(tenant), &id).await {
                Ok(operation) if !operation.is_over() => Ok(false),
                Ok(_) | Err(Error::NotFound { .. }) => {
                    worker.remove(tenant, index.space_uid, Some(index.uid)).await.map(|()| false)
                }
                Err(error) => Err(error),
            };
        }
        if index.state != READY {
            return Ok(false);
        }
        if !index.is_valid {
            tracing::error!(tenant, index = %index.uid, "an index is missing or invalid; searching exactly until it is built anew");
            worker.note(index, 0.0, SUSPECT).await?;
            self.store.refresh_indexes().await?;
            return Ok(true);
        }
        let mut has_more = false;
        if index.fresh > 0 {
            let rows = self.seal_rows.entry(index.uid).or_insert(SEAL_ROWS_MIN);
            let (began, asked) = (Instant::now(), *rows);
            let moved = worker.ask(tenant, &SEAL, (index.uid, asked)).await?.moved;
            *rows = next_rows(asked, began.elapsed());
            // As long as it was as many as asked for, there may be more.
            has_more = moved.is_some_and(|moved| moved >= i64::from(asked));
        }
        if let Some(every) = self.settings.probe_every
            && is_due(index, every)
        {
            self.probe(index, &worker).await?;
        }
        Ok(has_more)
    }

    /// Compares an index with exact searches, and sweeps it where much of it no longer counts.
    async fn probe(&mut self, index: &Index, worker: &Worker) -> Result<()> {
        worker.sweep_list(index).await?;
        let mut caller = worker.caller(&index.tenant_id);
        caller.deadline = tokio::time::Instant::now() + PROBE_TIME;
        let Some(space) = worker.space_of(&caller, index.space_uid).await? else { return Ok(()) };
        let space = Arc::new(space);
        let how = How::default();
        let recall =
            self.store.measure_recall(&caller, &space, PROBE_SAMPLE, PROBE_TOP_K, how).await?;
        // Where there is too little to compare.
        if recall.sample == 0 || (recall.method == Method::Exact && recall.fallbacks == 0) {
            return worker.note(index, 1.0, READY).await;
        }
        let part = if recall.fallbacks * 2 > recall.sample { 0.0 } else { recall.part };
        let state = match index.probe_recall {
            Some(before) if part < PROBE_MIN || before - part > PROBE_FALL_MAX => SUSPECT,
            // It has been so from the beginning, so making it anew would not help.
            None if part < PROBE_MIN => UNSUITED,
            _ => READY,
        };
        worker.note(index, part, state).await?;
        if state != READY {
            tracing::error!(
                tenant = index.tenant_id, index = %index.uid, recall = part, is_rebuilt = state == SUSPECT,
                "an index misses too much; searching exactly"
            );
            self.store.refresh_indexes().await?;
            return Ok(());
        }
        let (seen, live) = match self.store.live_codes(&caller, index).await {
            // It was replaced meanwhile.
            Err(error) if is_gone(&error) => return Ok(()),
            counted => counted?,
        };
        // A fifth is dead.
        if seen > 50 && (seen - live) * 5 > seen {
            let swept = worker.sweep(index).await?;
            tracing::info!(tenant = index.tenant_id, index = %index.uid, swept, "swept an index");
        }
        Ok(())
    }

    /// Begins building an index that a space should have.
    async fn want(&self, wanting: Wanting) -> Result<()> {
        let Wanting { tenant_id, id, is_lost } = wanting;
        let caller = (self.settings.caller)(&tenant_id);
        let space: VectorSpace = match self.store.get(&caller, &id).await {
            Ok(space) => space,
            Err(Error::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let spec = match IndexSpec::of(&space) {
            Some(spec) if is_lost => spec,
            // Whoever asked for none gets none.
            Some(_) => return Ok(()),
            None => best(&space),
        };
        let change = WantIndex { space_id: id, spec };
        match self.store.write(caller, WriteOptions::default(), change).await {
            Ok((operation, _)) => {
                tracing::info!(tenant = tenant_id, space = operation.space_id, "building an index");
                Ok(())
            }
            // Another server was faster, or the space cannot have one.
            Err(Error::Refused { .. } | Error::NotFound { .. } | Error::Conflict(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Open {
    fn is_drop(&self) -> bool {
        self.action == DROP
    }
}

/// The connections that all this takes: one for each operation, and one that keeps the indexes up to date.
pub fn connections(builds_max: usize) -> usize {
    builds_max + DROPS_MAX + 1
}

fn is_due(index: &Index, every: Duration) -> bool {
    let Some(last) = index.probe_time else { return true };
    SystemTime::now().duration_since(last).is_ok_and(|since| since > every)
}

/// How many to seal next, so that it takes about [`SEAL_TIME`].
fn next_rows(rows: i32, took: Duration) -> i32 {
    let next = if took > SEAL_TIME {
        rows / 2
    } else if took < SEAL_TIME / 3 {
        rows * 2
    } else {
        rows
    };
    next.clamp(SEAL_ROWS_MIN, SEAL_ROWS_MAX)
}
