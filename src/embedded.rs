//! The embedded default: finds, initialises, starts and stops a private PostgreSQL.
//!
//! Everything lies in one data folder: the cluster in `postgres`, its socket in `postgres-socket`,
//! its log in `postgres.log`, and `casebook.lock`, whose holder alone may use it. PostgreSQL
//! listens on no network. Its only door is the socket, and the wall around that is the mode of the
//! socket's folder (0700), so there is no password to keep: whoever may enter it may read the files
//! of the cluster as well.

mod binaries;
mod folder;
mod identity;
mod server;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_postgres::Config;

use binaries::Binaries;
use identity::Identity;
use server::{Running, Server};

const DATABASE: &str = "casebook";
/// Only a part of the socket's name.
const PORT: u16 = 5432;
/// How long a clean stop (a checkpoint at most) may take before PostgreSQL is told to drop it all.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
const RESTART_PAUSE: Duration = Duration::from_secs(1);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(10);

/// Where the private PostgreSQL lives and how it is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data folder, made when missing.
    pub data_dir: PathBuf,
    /// The folder of the PostgreSQL programs to use; without it they are searched for.
    pub bin_dir: Option<PathBuf>,
    /// Folders in which fetched programs may lie, looked at after the machine's own.
    pub search: Vec<PathBuf>,
    /// Further PostgreSQL settings.
    pub settings: Vec<(String, String)>,
    /// How long to wait for a previous server to end, and then for the new one to answer.
    pub start_timeout: Duration,
}

/// Why there is no private PostgreSQL, in one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    #[error(
        "No PostgreSQL with pgvector was found{reasons}: run `make postgres` to fetch one, set \
         CASEBOOK_POSTGRES_BIN to the folder of its programs, or set CASEBOOK_DATABASE_URL to use \
         a server"
    )]
    Missing { reasons: String },
    #[error(
        "CASEBOOK_POSTGRES_BIN cannot be used, because {} {why}: set it to the folder of a \
         PostgreSQL 15 or newer with pgvector, or leave it unset", bin.display()
    )]
    Explicit { bin: PathBuf, why: String },
    #[error(
        "The database in {} was made by PostgreSQL {major}, which no other version can open, and \
         only {found} was found: set CASEBOOK_POSTGRES_BIN to a PostgreSQL {major}, or move the \
         folder away to begin empty", path.display()
    )]
    Version { path: PathBuf, major: u32, found: String },
    #[error(
        "The data folder {} is in use by another Casebook (pid {pid}): stop that one, or give this \
         one a folder of its own", path.display()
    )]
    InUse { path: PathBuf, pid: String },
    #[error(
        "The database in {} is still in use by PostgreSQL process {pid}, which no Casebook looks \
         after: stop it with `kill -INT {pid}`, then start again", path.display()
    )]
    Orphan { path: PathBuf, pid: u32 },
    #[error(
        "The database in {} belongs to {owner}, but Casebook runs as {own}: run it as {owner} or \
         as root", path.display()
    )]
    Owner { path: PathBuf, owner: String, own: String },
    #[error(
        "PostgreSQL must run as {user}, who owns the database, but {user} cannot enter {} or run \
         the programs in {}: allow others to enter the folders on the way (`chmod o+x`)",
        data.display(), bin.display()
    )]
    Unreachable { user: String, data: PathBuf, bin: PathBuf },
    #[error(
        "PostgreSQL refuses to run as root, and neither the users postgres and nobody nor a user \
         namespace can use {} and {}: run Casebook as an ordinary user, or allow others to enter \
         the folders on the way (`chmod o+x`)", data.display(), bin.display()
    )]
    Root { data: PathBuf, bin: PathBuf },
    #[error(
        "Casebook cannot {action} {} ({source}): give it a data folder that its user can write to",
        path.display()
    )]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{} could not be run: {source}", program.display())]
    Run { program: PathBuf, source: io::Error },
    #[error(
        "The database in {} cannot be used, because {why}: restore it from a backup, or move the \
         folder away to begin empty", path.display()
    )]
    Broken { path: PathBuf, why: String },
    #[error("The database socket's folder {} {why}: remove it, then start again", path.display())]
    Socket { path: PathBuf, why: &'static str },
    #[error("PostgreSQL could not make a new database in {} ({said})", path.display())]
    Init { path: PathBuf, said: String },
    #[error(
        "PostgreSQL did not start on {} ({said}): see {} for more; if files are missing or \
         damaged, restore them from a backup or move the folder away to begin empty",
        path.display(), log.display()
    )]
    Start { path: PathBuf, said: String, log: PathBuf },
    #[error(
        "PostgreSQL on {} did not answer within {seconds} s ({said}): see {} for more, or start \
         again with more time", path.display(), log.display()
    )]
    Timeout { path: PathBuf, seconds: u64, said: String, log: PathBuf },
    #[error("PostgreSQL could not make the database {DATABASE}: {0}")]
    Database(tokio_postgres::Error),
    #[error(
        "PostgreSQL on {} did not stop within {} s and was ended hard: it repairs itself at the \
         next start", path.display(), STOP_TIMEOUT.as_secs()
    )]
    Stop { path: PathBuf },
}

type Result<T> = std::result::Result<T, EmbeddedError>;

/// A running private PostgreSQL, started again if it crashes. Dropping it stops the server without
/// waiting; if this process dies, a guard process stops the server.
#[derive(Debug)]
pub struct Embedded {
    config: Config,
    binaries: Binaries,
    pid: Arc<AtomicU32>,
    stop: oneshot::Sender<()>,
    supervisor: JoinHandle<Result<()>>,
}

impl Embedded {
    /// Starts the server, making the cluster and the database when they do not exist.
    pub async fn start(options: Options) -> Result<Embedded> {
        let began = Instant::now();
        let data = folder::open(&options.data_dir)?;
        let lock = folder::lock(&data).await?;
        let cluster = data.join("postgres");
        let existing = folder::cluster_version(&cluster)?;
        let explicit = options.bin_dir.as_deref();
        let binaries = binaries::find(explicit, &options.search, existing, &cluster).await?;
        let identity = identity::choose(&data, &cluster, &binaries.bin).await?;
        match &identity {
            Identity::Own => {}
            Identity::Other(user) => {
                tracing::info!("PostgreSQL refuses root: running it as {}", user.name);
            }
            Identity::Namespace(user) => tracing::info!(
                "PostgreSQL refuses root: running it in a user namespace, as {}",
                user.name
            ),
        }
        let server = Server {
            socket: folder::socket_dir(&data),
            log: data.join("postgres.log"),
            data,
            cluster,
            binaries,
            identity,
            settings: options.settings,
            start_timeout: options.start_timeout,
        };
        if existing.is_none() {
            server.initialise().await?;
        }
        let (running, client) = server.launch().await?;
        if let Err(error) = server.ensure_database(&client).await {
            running.stop(&server.cluster).await?;
            return Err(error);
        }
        tracing::info!(
            "PostgreSQL {} of {} started in {} ms on {}",
            server.binaries.version,
            server.binaries.bin.display(),
            began.elapsed().as_millis(),
            server.cluster.display(),
        );
        let pid = Arc::new(AtomicU32::new(running.pid));
        let (stop, stopped) = oneshot::channel();
        Ok(Embedded {
            config: server.config(DATABASE),
            binaries: server.binaries.clone(),
            pid: Arc::clone(&pid),
            stop,
            supervisor: tokio::spawn(supervise(server, running, pid, stopped, lock)),
        })
    }

    /// How to connect: as superuser, over the socket.
    pub fn config(&self) -> Config {
        self.config.clone()
    }

    /// The folder of the PostgreSQL programs in use.
    pub fn bin_dir(&self) -> &Path {
        &self.binaries.bin
    }

    /// The process number of the server, or 0 while it is being started again after a crash.
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// The version of PostgreSQL, such as "18.4".
    pub fn version(&self) -> &str {
        &self.binaries.version
    }

    /// Stops the server: sessions are cut, and what they committed is on disk. Bounded: 30 s for a
    /// clean stop, 20 s more for a hard one.
    pub async fn stop(self) -> Result<()> {
        drop(self.stop);
        // The supervisor neither panics nor is cancelled while the runtime lives.
        self.supervisor.await.unwrap_or(Ok(()))
    }
}

/// Keeps the server running until told to stop, and holds the lock for as long.
async fn supervise(
    server: Server,
    mut running: Running,
    pid: Arc<AtomicU32>,
    mut stop: oneshot::Receiver<()>,
    _lock: File,
) -> Result<()> {
    let mut pause = RESTART_PAUSE;
    loop {
        let began = Instant::now();
        let status = tokio::select! {
            _ = &mut stop => return running.stop(&server.cluster).await,
            status = running.child.wait() => status,
        };
        pid.store(0, Ordering::Relaxed);
        running.release().await;
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let log = server.log.display();
        tracing::error!("PostgreSQL ended unexpectedly ({how}), see {log}; starting it again");
        if began.elapsed() > RESTART_PAUSE_MAX {
            pause = RESTART_PAUSE;
        }
        running = loop {
            let launch = async {
                tokio::time::sleep(pause).await;
                server.launch().await
            };
            let launched = tokio::select! {
                // A launch cut short leaves PostgreSQL to its guard; the lock is kept until then.
                _ = &mut stop => return server.settle(STOP_TIMEOUT).await,
                launched = launch => launched,
            };
            pause = (pause * 2).min(RESTART_PAUSE_MAX);
            match launched {
                Ok((running, _)) => break running,
                Err(error) => tracing::error!("{error}"),
            }
        };
        pid.store(running.pid, Ordering::Relaxed);
        tracing::info!("PostgreSQL runs again");
    }
}
