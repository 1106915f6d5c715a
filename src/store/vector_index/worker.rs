//! Working at indexes: what an operation or the upkeep has done to one, a transaction at a time.

use super::upkeep::{ITERATIVE_SINCE, UpkeepSettings, is_at_least};
use super::{HNSW, IVFFLAT, Index, IndexSpec, READY, lists_for};
use crate::store::Store;
use crate::store::caller::Caller;
use crate::store::operation::{BUILD, CANCELLED, DONE, DROP, End, Operation, RUNNING};
use crate::store::postgres::Lane;
use crate::store::query::{FromRow, Params, Query};
use crate::store::snapshot::ENTER;
use crate::store::vector_space::VectorSpace;
use crate::store::write::WriteOptions;
use crate::{Error, Reason, Result, queries, row};
use std::time::{Duration, Instant};
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
    /// How many codes were swept, and where to go on; nothing at the end, or if another server is at it.
    pub struct Swept {
        pub swept: i64,
        pub last_uid: Option<Uuid>,
        pub last_digest: Option<String>,
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
    /// Removes codes that no longer count, behind a key: (uid, embedding, digest, most).
    SWEEP(Uuid, Uuid, String, i32) -> Swept = "SELECT {*} FROM wall.sweep_vector_index($1, $2, $3, $4)";
    /// Removes from the list what no longer counts: (uid, most).
    SWEEP_LIST(Uuid, i32) -> Moved = "SELECT wall.sweep_vector_list($1, $2) AS moved";
    /// Removes lists of indexes that are gone, of all tenants: (most).
    SWEEP_GONE(i32) -> Moved = "SELECT wall.sweep_gone_lists($1) AS moved";
    /// Notes what a look found: (uid, recall, state).
    NOTE(Uuid, f64, i16) -> () = "SELECT FROM wall.note_vector_probe($1, $2, $3)";
} }

/// Vectors that one transaction fills in.
const FILL_ROWS: i32 = 2_000;
/// Vectors that one transaction seals before an index is used, and how often, so that it comes to an end under whatever
/// load.
const SEAL_ROWS_BEFORE_USE: i32 = 200;
const SEALS_BEFORE_USE: usize = 5_000;
/// Rows that one transaction of sweeping looks at.
const SWEEP_ROWS: i32 = 5_000;
/// How often a build looks whether it was cancelled.
const CANCEL_EVERY: Duration = Duration::from_secs(1);

/// Does the work, a transaction at a time.
pub(super) struct Worker {
    pub store: Store,
    pub settings: UpkeepSettings,
}

impl Worker {
    pub fn caller(&self, tenant: &str) -> Caller {
        (self.settings.caller)(tenant)
    }

    /// Runs one statement as a transaction of its own in a tenant, however long it takes.
    pub async fn ask<P: Params, R: FromRow>(
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

    pub async fn remove(&self, tenant: &str, space: Uuid, only: Option<Uuid>) -> Result<()> {
        self.run(tenant, &DROP_INDEXES, (space, only)).await?;
        Ok(())
    }

    /// Goes once through the codes of an index, and removes those that no longer count. Says how many.
    pub async fn sweep(&self, index: &Index) -> Result<i64> {
        let (mut swept, mut next) = (0, Some((Uuid::nil(), String::new())));
        while let Some((uid, digest)) = next {
            let params = (index.uid, uid, digest, SWEEP_ROWS);
            let done = self.ask(&index.tenant_id, &SWEEP, params).await?;
            swept += done.swept;
            next = done.last_uid.zip(done.last_digest);
        }
        Ok(swept)
    }

    /// Removes from the list of an index what no longer counts.
    pub async fn sweep_list(&self, index: &Index) -> Result<()> {
        self.until_few(&index.tenant_id, &SWEEP_LIST, (index.uid, SWEEP_ROWS)).await
    }

    /// Removes the lists of indexes that are gone, of all tenants.
    pub async fn sweep_gone(&self) -> Result<()> {
        self.until_few("", &SWEEP_GONE, (SWEEP_ROWS,)).await
    }

    async fn until_few<P: Params + Clone>(
        &self,
        tenant: &str,
        query: &Query<P, Moved>,
        params: P,
    ) -> Result<()> {
        while let Some(moved) = self.ask(tenant, query, params.clone()).await?.moved
            && moved >= i64::from(SWEEP_ROWS)
        {}
        Ok(())
    }

    pub async fn note(&self, index: &Index, recall: f64, state: i16) -> Result<()> {
        self.run(&index.tenant_id, &NOTE, (index.uid, recall, state)).await?;
        Ok(())
    }

    pub async fn space_of(&self, caller: &Caller, uid: Uuid) -> Result<Option<VectorSpace>> {
        self.store.space_by_uid(caller, uid).await
    }

    async fn turn(&self, tenant: &str, id: &str, state: i16) -> Result<()> {
        let change = Operation::turn(id.to_owned(), state);
        self.store.write(self.caller(tenant), WriteOptions::default(), change).await?;
        Ok(())
    }

    /// Carries an operation on. An error says that it is to be tried again.
    pub async fn carry_on(&self, tenant: &str, id: &str) -> Result<()> {
        let caller = self.caller(tenant);
        let operation: Operation = match self.store.get(&caller, id).await {
            Ok(operation) => operation,
            Err(Error::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        if operation.is_over() {
            return Ok(());
        }
        self.turn(tenant, id, RUNNING).await?;
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
                self.turn(tenant, id, DONE).await?;
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
                let change = End { id: id.to_owned(), error: Some(why(&error)) };
                self.store.write(self.caller(tenant), WriteOptions::default(), change).await?;
                Ok(())
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
