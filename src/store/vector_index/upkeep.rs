//! Building indexes, putting new vectors into them, and seeing that they are sound: what goes on beside the calls.
//!
//! Every server does it. A function that works at an index claims it for its transaction, so two servers take turns. All
//! that is done is in the tables, so whoever is left goes on where another stopped.

use super::advice::{ROWS_MIN, best};
use super::{HNSW, IVFFLAT, Index, IndexSpec, READY, SUSPECT, UNSUITED, lists_for};
use crate::store::Store;
use crate::store::caller::Caller;
use crate::store::embedding::nearest::{How, Method};
use crate::store::operation::{
    BUILD, CANCELLED, DONE, DROP, FAILED, Operation, RUNNING, WantIndex,
};
use crate::store::postgres::Lane;
use crate::store::query::{FromRow, Params, Query};
use crate::store::snapshot::ENTER;
use crate::store::vector_space::VectorSpace;
use crate::store::write::WriteOptions;
use crate::{Error, Reason, Result, queries, row};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

row! {
    /// What a function says; `None` if another server is at it.
    pub struct Said {
        pub said: Option<bool>,
    }
}

row! {
    /// How many; `None` if another server is at it.
    pub struct Moved {
        pub moved: Option<i64>,
    }
}

row! {
    /// A resource of some tenant.
    pub struct Place {
        pub tenant_id: String,
        pub id: String,
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
    /// Opens an index: (uid, space, method, codes, m, ef_construction, lists). False if the space is gone.
    OPEN(Uuid, Uuid, i16, i16, i32, i32, i32) -> Said =
        "SELECT wall.open_vector_index($1, $2, $3, $4, $5, $6, $7) AS said";
    /// Fills it further: (uid, most). Whether there is more to come.
    FILL(Uuid, i32) -> Said = "SELECT wall.fill_vector_index($1, $2) AS said";
    /// Builds it: (uid, memory in kB, workers).
    BUILD_INDEX(Uuid, i32, i32) -> Said = "SELECT wall.build_vector_index($1, $2, $3) AS said";
    /// Has it searched, and removes those before it.
    USE(Uuid) -> Said = "SELECT wall.use_vector_index($1) AS said";
    /// Removes the indexes of a space, or the one named: (space, uid).
    DROP_INDEXES(Uuid, Option<Uuid>) -> () = "SELECT FROM wall.drop_vector_indexes($1, $2)";
    /// Puts fresh vectors into it: (uid, most).
    SEAL(Uuid, i32) -> Moved = "SELECT wall.seal_vectors($1, $2) AS moved";
    /// Removes codes that no longer count: (uid, part, parts).
    SWEEP(Uuid, i32, i32) -> Moved = "SELECT wall.sweep_vector_index($1, $2, $3) AS moved";
    /// Notes what a look found: (uid, recall, state).
    NOTE(Uuid, f64, i16) -> () = "SELECT FROM wall.note_vector_probe($1, $2, $3)";
    /// Operations of all tenants that are not over, the oldest first.
    OPERATIONS() -> Place = "SELECT {*} FROM wall.open_operations()";
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
    /// Pause between two looks at what is to do.
    pub every: Duration,
    /// Pause between two looks at how much an index finds; none: never.
    pub probe_every: Option<Duration>,
    /// Makes the caller that the work is done as, in a tenant.
    pub caller: fn(&str) -> Caller,
}

/// Vectors that one transaction fills in.
const FILL_ROWS: i32 = 2_000;
/// Vectors that one transaction seals: from few, because it is not known how long one takes.
const SEAL_ROWS_MIN: i32 = 20;
const SEAL_ROWS_MAX: i32 = 2_000;
/// The same before an index is used, and how often, so that it comes to an end under whatever load.
const SEAL_ROWS_BEFORE_USE: i32 = 200;
const SEALS_BEFORE_USE: usize = 5_000;
/// How long sealing some may take, so that it neither holds back VACUUM nor makes a shutdown wait.
const SEAL_TIME: Duration = Duration::from_millis(300);
/// Pause where there is more to do at once, so that calls come through.
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// How often a build looks whether it was cancelled.
const CANCEL_EVERY: Duration = Duration::from_secs(1);
/// How often spaces are looked through for want of an index.
const WANTING_EVERY: Duration = Duration::from_secs(10);
/// Searches of a look at an index.
const PROBE_SAMPLE: usize = 20;
const PROBE_TOP_K: i64 = 10;
const PROBE_TIME: Duration = Duration::from_secs(60);
/// Below this, or so far below the last look, an index is not to be trusted.
const PROBE_MIN: f64 = 0.5;
const PROBE_FALL_MAX: f64 = 0.25;
const SWEEP_PARTS: i32 = 64;
/// pgvector's parallel builds of HNSW were unsound before (its issue 945 and others).
const PARALLEL_SINCE: &[u32] = &[0, 8, 2];
/// Searches go on where a filter left too few, so that filters lose nothing.
const ITERATIVE_SINCE: &[u32] = &[0, 8];
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
        building: None,
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
    if let Some(building) = keeper.building {
        // Its session ends with it, and what it did not commit; any server goes on from there.
        building.abort();
        let _ = building.await;
    }
}

struct Keeper {
    store: Store,
    settings: UpkeepSettings,
    building: Option<JoinHandle<()>>,
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
        let operations = self.store.admin_rows(&OPERATIONS, ()).await?;
        if self.building.as_ref().is_none_or(JoinHandle::is_finished)
            && let Some(place) = operations.into_iter().next()
        {
            self.building = Some(self.begin(place).await?);
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
            for wanting in self.store.admin_rows(&WANTING, (ROWS_MIN,)).await? {
                if let Err(error) = self.want(wanting).await {
                    tracing::warn!(%error, "an index that a space should have is not begun");
                }
            }
        }
        self.seal_rows.retain(|uid, _| indexes.iter().any(|index| index.uid == *uid));
        Ok(has_more)
    }

    async fn begin(&mut self, place: Place) -> Result<JoinHandle<()>> {
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
        Ok(tokio::spawn(async move {
            let Place { tenant_id, id } = place;
            if let Err(error) = worker.carry_on(&tenant_id, &id).await {
                tracing::warn!(%error, tenant = tenant_id, operation = id, "an operation goes on later");
                tokio::time::sleep(worker.settings.every).await;
            }
        }))
    }

    /// Sees to one index. Says whether there is more to do at once.
    async fn look_after(&mut self, index: &Index) -> Result<bool> {
        let tenant = &index.tenant_id;
        let worker = Worker { store: self.store.clone(), settings: self.settings.clone() };
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
        let (seen, live) = self.store.live_codes(&caller, index).await?;
        // A fifth is dead.
        if seen > 50 && (seen - live) * 5 > seen {
            for part in 0..SWEEP_PARTS {
                worker.ask(&index.tenant_id, &SWEEP, (index.uid, part, SWEEP_PARTS)).await?;
            }
            tracing::info!(tenant = index.tenant_id, index = %index.uid, "swept an index");
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

/// Does the work, a transaction at a time.
struct Worker {
    store: Store,
    settings: UpkeepSettings,
}

impl Worker {
    fn caller(&self, tenant: &str) -> Caller {
        (self.settings.caller)(tenant)
    }

    /// Runs one statement as a transaction of its own in a tenant, however long it takes.
    async fn ask<P: Params, R: FromRow>(
        &self,
        tenant: &str,
        query: &Query<P, R>,
        params: P,
    ) -> Result<R> {
        let rows = self.run(tenant, query, params).await?;
        rows.into_iter().next().ok_or_else(|| Error::internal("a function without an answer"))
    }

    async fn run<P: Params, R: FromRow>(
        &self,
        tenant: &str,
        query: &Query<P, R>,
        params: P,
    ) -> Result<Vec<R>> {
        let conn = self.store.connection(Lane::Upkeep).await?;
        conn.client().batch_execute("BEGIN").await?;
        conn.all(&ENTER, &(tenant.to_owned(), "0".to_owned())).await?;
        let rows = conn.all(query, &params).await?;
        conn.client().batch_execute("COMMIT").await?;
        conn.done();
        Ok(rows)
    }

    async fn remove(&self, tenant: &str, space: Uuid, only: Option<Uuid>) -> Result<()> {
        self.run(tenant, &DROP_INDEXES, (space, only)).await?;
        Ok(())
    }

    async fn note(&self, index: &Index, recall: f64, state: i16) -> Result<()> {
        self.run(&index.tenant_id, &NOTE, (index.uid, recall, state)).await?;
        Ok(())
    }

    async fn space_of(&self, caller: &Caller, uid: Uuid) -> Result<Option<VectorSpace>> {
        self.store.space_by_uid(caller, uid).await
    }

    async fn turn(&self, tenant: &str, id: &str, state: i16, error: String) -> Result<()> {
        let change = Operation::turn(id.to_owned(), state, error);
        self.store.write(self.caller(tenant), WriteOptions::default(), change).await?;
        Ok(())
    }

    /// Carries an operation on. An error says that it is to be tried again.
    async fn carry_on(&self, tenant: &str, id: &str) -> Result<()> {
        let caller = self.caller(tenant);
        let operation: Operation = match self.store.get(&caller, id).await {
            Ok(operation) => operation,
            Err(Error::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        if operation.is_over() {
            return Ok(());
        }
        self.turn(tenant, id, RUNNING, String::new()).await?;
        let began = Instant::now();
        let work = async {
            match operation.action.as_str() {
                DROP => self.remove(tenant, operation.space_uid, None).await.map(|()| true),
                BUILD => self.build(tenant, &operation).await,
                other => Err(Error::internal(format!("an unknown operation {other}"))),
            }
        };
        let ended = tokio::select! {
            ended = work => ended,
            () = self.cancelled(tenant, id) => {
                self.store.refresh_indexes().await?;
                return self.remove_unfinished(tenant, &operation).await;
            }
        };
        match ended {
            Ok(true) => {
                // So that this server searches by what it says is done.
                self.store.refresh_indexes().await?;
                self.turn(tenant, id, DONE, String::new()).await?;
                let seconds = began.elapsed().as_secs_f32();
                tracing::info!(
                    tenant,
                    operation = id,
                    action = operation.action,
                    seconds,
                    "an operation is done"
                );
                Ok(())
            }
            // Another server is at it.
            Ok(false) => {
                tokio::time::sleep(self.settings.every).await;
                Ok(())
            }
            Err(error) if is_passing(&error) => Err(error),
            Err(error) => {
                tracing::error!(tenant, operation = id, %error, cause = ?std::error::Error::source(&error), "an operation failed");
                self.remove_unfinished(tenant, &operation).await?;
                self.turn(tenant, id, FAILED, why(&error)).await
            }
        }
    }

    async fn remove_unfinished(&self, tenant: &str, operation: &Operation) -> Result<()> {
        let uid = operation.meta.uid;
        let stats = self.store.index_stats(&self.caller(tenant), operation.space_uid).await?;
        if stats.iter().any(|index| index.uid == uid && index.state < READY) {
            self.remove(tenant, operation.space_uid, Some(uid)).await?;
        }
        Ok(())
    }

    /// Returns when an operation was cancelled.
    async fn cancelled(&self, tenant: &str, id: &str) {
        loop {
            tokio::time::sleep(CANCEL_EVERY).await;
            match self.store.get::<Operation>(&self.caller(tenant), id).await {
                Ok(operation) if operation.state == CANCELLED => return,
                Err(Error::NotFound { .. }) => return,
                _ => {}
            }
        }
    }

    /// True when the index is searched; false if another server is at it.
    async fn build(&self, tenant: &str, operation: &Operation) -> Result<bool> {
        let caller = self.caller(tenant);
        let gone = || Error::Refused {
            reason: Reason::NotFound,
            message: "the vector space was deleted".into(),
            metadata: Vec::new(),
        };
        let version = self.store.database_status().await?.pgvector_version;
        if !is_at_least(&version, ITERATIVE_SINCE) {
            return Err(Error::Refused {
                reason: Reason::NotIndexable,
                message: format!(
                    "indexes need pgvector 0.8.0 or newer, and the database has {version}: update the extension"
                ),
                metadata: Vec::new(),
            });
        }
        let uid = operation.meta.uid;
        let space = self.space_of(&caller, operation.space_uid).await?.ok_or_else(gone)?;
        let Some(spec) = IndexSpec::of(&space).filter(|spec| !spec.is_none()) else {
            return Err(gone());
        };
        let lists = match (spec.method, spec.lists) {
            (IVFFLAT, 0) => lists_for(self.store.space_stats(&caller, &space).await?.rows),
            (_, lists) => lists,
        };
        let IndexSpec { method, m, ef_construction, .. } = spec;
        let codes = spec.codes_for(&space);
        let params = (uid, space.meta.uid, method, codes, m, ef_construction, lists);
        match self.ask(tenant, &OPEN, params).await?.said {
            Some(true) => {}
            Some(false) => return Err(gone()),
            None => return Ok(false),
        }
        loop {
            match self.ask(tenant, &FILL, (uid, FILL_ROWS)).await?.said {
                Some(true) => {}
                Some(false) => break,
                None => return Ok(false),
            }
        }
        let memory_kb = i32::try_from(self.settings.build_memory_bytes / 1024).unwrap_or(i32::MAX);
        let workers = if method == HNSW { self.settings.build_workers } else { 0 };
        let mut built = self.ask(tenant, &BUILD_INDEX, (uid, memory_kb, workers as i32)).await;
        if let Err(error) = &built
            && workers > 0
            && !is_passing(error)
        {
            // Several processes share memory of which there may be too little, as in a container.
            tracing::warn!(%error, "an index is built with one process, because with several it failed");
            built = self.ask(tenant, &BUILD_INDEX, (uid, memory_kb, 0)).await;
        }
        match built?.said {
            Some(true) => {}
            Some(false) => return Err(gone()),
            None => return Ok(false),
        }
        // What came while it was built, or the first searches would go through all of it.
        for _ in 0..SEALS_BEFORE_USE {
            match self.ask(tenant, &SEAL, (uid, SEAL_ROWS_BEFORE_USE)).await?.moved {
                Some(moved) if moved >= i64::from(SEAL_ROWS_BEFORE_USE) => {}
                Some(_) => break,
                None => return Ok(false),
            }
        }
        match self.ask(tenant, &USE, (uid,)).await?.said {
            Some(true) => Ok(true),
            Some(false) => Err(Error::internal("an index that was built is not there")),
            None => Ok(false),
        }
    }
}

/// Whether work that failed so will go well later.
fn is_passing(error: &Error) -> bool {
    error.is_transient()
        || matches!(
            error,
            Error::ShuttingDown
                | Error::CommitUnknown(_)
                | Error::DeadlineExceeded(_)
                | Error::Exhausted { .. }
        )
}

/// What an operation says of its failure. What PostgreSQL says is for the log.
fn why(error: &Error) -> String {
    match error {
        Error::Internal(_) => "it could not be built; the server's log says why".into(),
        other => other.to_string(),
    }
}
