//! PostgreSQL: connections by lane, and what its errors mean to a caller.

use super::query::{FromRow, Params, Query};
use crate::{Error, Reason, Result};
use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, QueueMode, RecyclingMethod,
    Runtime, TimeoutType,
};
use futures_util::future::maybe_done;
use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Duration;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls, Row};

/// The role that the service works as: it owns nothing and sees only the views of the schema `wall`.
pub const SERVICE_ROLE: &str = "casebook_app";

/// A connection that was handed out this long ago need not be asked whether it is alive: that would cost every search a
/// round trip.
const FRESH: Duration = Duration::from_secs(1);

/// Which connections a piece of work runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Batched point reads.
    Read,
    /// Batched writes: the only connections that may write records.
    Write,
    /// Lists, statistics and anything slow.
    Work,
    /// Health, credentials and status, so that exhaustion elsewhere never fails liveness.
    Admin,
    /// Building indexes and keeping them up to date, by functions of the owner.
    Upkeep,
}

impl Lane {
    pub const ALL: [Lane; 5] = [Lane::Read, Lane::Write, Lane::Work, Lane::Admin, Lane::Upkeep];

    pub fn name(self) -> &'static str {
        match self {
            Lane::Read => "read",
            Lane::Write => "write",
            Lane::Work => "work",
            Lane::Admin => "admin",
            Lane::Upkeep => "upkeep",
        }
    }
}

/// How to reach PostgreSQL, and with how many connections.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    pub connect: Config,
    pub work_size_max: usize,
    pub read_lanes: usize,
    pub write_lanes: usize,
    pub admin_size_max: usize,
    pub upkeep_size_max: usize,
    pub wait_timeout: Duration,
    pub lifetime_max: Duration,
    /// Ask a pooled connection for a sign of life before using it (the lanes notice a closed socket by themselves).
    pub verify: bool,
    pub statement_timeout: Duration,
}

/// What one pool looks like at this moment.
#[derive(Clone, Debug)]
pub struct PoolState {
    pub lane: Lane,
    pub size_max: usize,
    pub size: usize,
    pub in_use: usize,
    pub waiting: usize,
}

pub struct Pools {
    read: Pool,
    write: Pool,
    work: Pool,
    admin: Pool,
    upkeep: Pool,
}

impl Pools {
    pub fn new(settings: &PoolSettings) -> Result<Self> {
        let pool = |lane: Lane, size: usize, verify: bool| {
            // One that is known to be closed is never handed out.
            let recycling_method = RecyclingMethod::Fast;
            let manager = Manager::from_config(
                session(settings, lane),
                NoTls,
                ManagerConfig { recycling_method },
            );
            let lifetime_max = settings.lifetime_max;
            Pool::builder(manager)
                .max_size(size)
                .runtime(Runtime::Tokio1)
                // The one last used has PostgreSQL's process for it warm: its caches and its memory's pages.
                .queue_mode(QueueMode::Lifo)
                .wait_timeout(Some(settings.wait_timeout))
                .create_timeout(Some(Duration::from_secs(10)))
                .pre_recycle(Hook::sync_fn(move |_, metrics| {
                    if metrics.age() > lifetime_max {
                        return Err(HookError::message("older than pool_max_lifetime_ms"));
                    }
                    Ok(())
                }))
                .pre_recycle(Hook::async_fn(move |client, metrics| {
                    let is_asked = verify && metrics.last_used() > FRESH;
                    Box::pin(async move {
                        if is_asked {
                            client.simple_query("").await.map_err(HookError::Backend)?;
                        }
                        Ok(())
                    })
                }))
                .build()
                .map_err(Error::internal)
        };
        Ok(Self {
            read: pool(Lane::Read, settings.read_lanes, false)?,
            write: pool(Lane::Write, settings.write_lanes, false)?,
            work: pool(Lane::Work, settings.work_size_max, settings.verify)?,
            admin: pool(Lane::Admin, settings.admin_size_max, settings.verify)?,
            upkeep: pool(Lane::Upkeep, settings.upkeep_size_max, settings.verify)?,
        })
    }

    fn pool(&self, lane: Lane) -> &Pool {
        match lane {
            Lane::Read => &self.read,
            Lane::Write => &self.write,
            Lane::Work => &self.work,
            Lane::Admin => &self.admin,
            Lane::Upkeep => &self.upkeep,
        }
    }

    /// A connection of the lane. Waiting is bounded: `POOL_TIMEOUT` when none becomes free in time.
    pub async fn get(&self, lane: Lane) -> Result<Conn> {
        Ok(Conn(Some(self.pool(lane).get().await?)))
    }

    pub fn states(&self) -> Vec<PoolState> {
        let state = |lane| {
            let status = self.pool(lane).status();
            PoolState {
                lane,
                size_max: status.max_size,
                size: status.size,
                in_use: status.size.saturating_sub(status.available),
                waiting: status.waiting,
            }
        };
        Lane::ALL.map(state).into()
    }

    pub fn close(&self) {
        for lane in Lane::ALL {
            self.pool(lane).close();
        }
    }
}

/// The settings of a session, all given at connection start so that no statement has to set them.
fn session(settings: &PoolSettings, lane: Lane) -> Config {
    let mut connect = settings.connect.clone();
    let mut options = connect.get_options().unwrap_or_default().to_owned();
    options.push_str(" -c search_path=wall,pg_catalog");
    options.push_str(&format!(" -c statement_timeout={}", settings.statement_timeout.as_millis()));
    // A word that is too long to be searched for is worth no notice on each write.
    options.push_str(" -c client_min_messages=warning");
    // Statements of one transaction must see what others have committed meanwhile, whatever the database's default is.
    options.push_str(" -c default_transaction_isolation=read\\ committed");
    options.push_str(" -c idle_in_transaction_session_timeout=60000");
    // A statement whose caller has gone away is ended, not finished.
    options.push_str(" -c client_connection_check_interval=1000");
    // Only the one writer may write, whatever a statement elsewhere tries.
    if !matches!(lane, Lane::Write | Lane::Upkeep) {
        options.push_str(" -c default_transaction_read_only=on");
    }
    if lane == Lane::Work {
        // Lists and statistics have parameters of very different selectivity.
        options.push_str(" -c plan_cache_mode=force_custom_plan");
    }
    if lane == Lane::Read || lane == Lane::Write {
        // The batched statements are worth planning once (their arrays differ only in length) and always go by an
        // index; without this a plan made while a table was empty scans it until the next ANALYZE.
        options.push_str(" -c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c jit=off");
    }
    if connect.get_user() != Some(SERVICE_ROLE) {
        options.push_str(&format!(" -c role={SERVICE_ROLE}"));
    }
    connect.options(options);
    connect.application_name(format!("casebook-{}", lane.name()));
    if connect.get_connect_timeout().is_none() {
        connect.connect_timeout(Duration::from_secs(5));
    }
    connect
}

/// A connection that goes back to its pool only when its user says that it is clean. Dropped otherwise (an error, a
/// cancelled call) it is closed, so that no half-done transaction is ever handed on.
pub struct Conn(Option<Object>);

impl Conn {
    pub fn client(&self) -> &Client {
        // Only `done` takes the object, and it consumes self.
        match &self.0 {
            Some(object) => object,
            None => unreachable!("a connection in use has its object"),
        }
    }

    pub async fn prepare(&self, sql: &str) -> Result<tokio_postgres::Statement> {
        match &self.0 {
            Some(object) => Ok(object.prepare_cached(sql).await?),
            None => unreachable!("a connection in use has its object"),
        }
    }

    /// Runs a typed statement.
    pub async fn all<P: Params, R: FromRow>(
        &self,
        query: &Query<P, R>,
        params: &P,
    ) -> Result<Vec<R>> {
        let statement = self.prepare(query.sql()).await?;
        let rows = self.client().query(&statement, &params.as_sql()).await?;
        read_rows(&rows)
    }

    /// Puts the connection back: it is outside any transaction.
    pub fn done(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            drop(Object::take(object));
        }
    }
}

/// Runs futures on one connection so that what each sends on its first poll is sent in their order, before anything
/// that is polled after this. The ready-made joins promise no order beyond a few futures.
pub async fn in_order<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> =
        futures.into_iter().map(|future| Box::pin(maybe_done(future))).collect();
    poll_fn(|cx| {
        let mut all = Poll::Ready(());
        for future in &mut running {
            if future.as_mut().poll(cx).is_pending() {
                all = Poll::Pending;
            }
        }
        all
    })
    .await;
    running.into_iter().filter_map(|mut future| future.as_mut().take_output()).collect()
}

pub fn read_rows<R: FromRow>(rows: &[Row]) -> Result<Vec<R>> {
    Ok(rows.iter().map(R::from_row).collect::<Result<_, _>>()?)
}

/// Whether a message of PostgreSQL, in whatever language, names the table of a vector index.
fn names_an_index(message: &str) -> bool {
    let mut words = message.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.any(|word| {
        let number = word.strip_prefix("sealed_").unwrap_or_default();
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

impl From<tokio_postgres::Error> for Error {
    /// The one reading of SQLSTATE. Constraint violations are not expected here, since the edge validates and the
    /// statements use ON CONFLICT: where one still comes up, it is a fault of ours.
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(code) = error.code() else {
            // No SQLSTATE: the connection is gone, or could not be made.
            return if error.is_closed()
                || std::error::Error::source(&error).is_some_and(|s| s.is::<std::io::Error>())
            {
                Self::unavailable(error)
            } else {
                Self::internal(error)
            };
        };
        match *code {
            // Ids are looked at before they are taken, so one that is taken nevertheless was taken at this moment by
            // another transaction: the next attempt sees it.
            SqlState::T_R_SERIALIZATION_FAILURE
            | SqlState::T_R_DEADLOCK_DETECTED
            | SqlState::LOCK_NOT_AVAILABLE
            | SqlState::UNIQUE_VIOLATION => Self::Conflict(std::sync::Arc::new(error)),
            SqlState::QUERY_CANCELED => Self::DeadlineExceeded(" while the database was working"),
            SqlState::TOO_MANY_CONNECTIONS
            | SqlState::CANNOT_CONNECT_NOW
            | SqlState::ADMIN_SHUTDOWN
            | SqlState::CRASH_SHUTDOWN
            | SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT
            | SqlState::IDLE_SESSION_TIMEOUT
            | SqlState::READ_ONLY_SQL_TRANSACTION => Self::unavailable(error),
            // An index is a table of its own, and another has taken its place: whoever searched it looks for that one.
            SqlState::UNDEFINED_TABLE
                if error.as_db_error().is_some_and(|error| names_an_index(error.message())) =>
            {
                tracing::debug!(%error, "an index was replaced");
                Self::Refused {
                    reason: Reason::SchemaOutdated,
                    message: "an index was replaced while it was searched: search again".into(),
                    metadata: Vec::new(),
                }
            }
            // Our statements are held against the schema by a test, so it is the schema that is another.
            SqlState::UNDEFINED_TABLE
            | SqlState::UNDEFINED_COLUMN
            | SqlState::UNDEFINED_FUNCTION
            | SqlState::INVALID_SCHEMA_NAME
            | SqlState::UNDEFINED_OBJECT => {
                tracing::warn!(error = %error, "the database schema does not fit");
                Self::Refused {
                    reason: Reason::SchemaOutdated,
                    message:
                        "the database schema does not fit this server: run `casebook migrate up`"
                            .into(),
                    metadata: Vec::new(),
                }
            }
            _ if code.code().starts_with("08") => Self::unavailable(error),
            _ => Self::internal(error),
        }
    }
}

impl From<PoolError> for Error {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Timeout(TimeoutType::Wait) => Self::Exhausted {
                reason: Reason::PoolTimeout,
                message: "no database connection became free in time".into(),
                retry_after: Some(Duration::from_millis(500)),
            },
            PoolError::Closed => Self::ShuttingDown,
            // Whatever keeps us from having a connection, nothing was sent on it.
            other => Self::unavailable(other),
        }
    }
}
