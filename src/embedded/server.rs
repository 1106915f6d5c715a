//! The PostgreSQL process: making its cluster, starting it under a guard, and ending it.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};
use tokio_postgres::{Client, Config, NoTls};

use super::binaries::Binaries;
use super::folder::{io_error, make_dir, open_log, remove_dir, rename};
use super::identity::{self, Identity};
use super::{DATABASE, EmbeddedError, PORT, Result, STOP_TIMEOUT};

const SUPERUSER: &str = "postgres";
const QUIT_TIMEOUT: Duration = Duration::from_secs(10);
const INIT_TIMEOUT: Duration = Duration::from_secs(300);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server left behind may go on by itself before it is asked to stop.
const GRACE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(25);
const DIGEST_LINES: usize = 4;
const GUARD: &str = include_str!("guard.sh");

/// What suits a small server; `Options::settings` overrides it.
const SETTINGS: [(&str, &str); 6] = [
    ("shared_buffers", "128MB"),
    ("max_connections", "100"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("log_destination", "stderr"),
    ("logging_collector", "off"),
];

/// A PostgreSQL process, and the pipe whose closing tells its guard that we are gone.
pub(super) struct Running {
    pub child: Child,
    pub pid: u32,
    pipe: ChildStdin,
}

impl Running {
    /// Runs a program under the guard, which becomes it: the child's number is the program's own.
    fn spawn(command: &mut Command) -> io::Result<Running> {
        // A group of its own: Ctrl-C in a terminal must reach Casebook only, which drains before it
        // stops PostgreSQL.
        command.stdin(Stdio::piped()).process_group(0).kill_on_drop(false);
        let mut child = command.spawn()?;
        match (child.id(), child.stdin.take()) {
            (Some(pid), Some(pipe)) => Ok(Running { child, pid, pipe }),
            _ => Err(io::Error::other("it ended at once")),
        }
    }

    /// Tells the guard that the process has ended, so that it ends as well.
    pub async fn release(mut self) {
        // A guard that is gone already needs no telling.
        let _ = self.pipe.write_all(b"done\n").await;
    }

    /// Ends the process, cleanly if it can be.
    pub async fn stop(mut self, cluster: &Path) -> Result<()> {
        let began = Instant::now();
        let mut clean = true;
        for (signal, patience) in
            [("INT", STOP_TIMEOUT), ("QUIT", QUIT_TIMEOUT), ("KILL", QUIT_TIMEOUT)]
        {
            // The child is not reaped before `wait` returns, so its number is still its own.
            kill(self.pid, signal).await;
            if tokio::time::timeout(patience, self.child.wait()).await.is_ok() {
                break;
            }
            clean = false;
        }
        self.release().await;
        if !clean {
            return Err(EmbeddedError::Stop { path: cluster.to_owned() });
        }
        tracing::info!("PostgreSQL stopped in {} ms", began.elapsed().as_millis());
        Ok(())
    }
}

/// What it takes to start PostgreSQL, as often as needed.
pub(super) struct Server {
    pub data: PathBuf,
    pub cluster: PathBuf,
    pub socket: PathBuf,
    pub log: PathBuf,
    pub binaries: Binaries,
    pub identity: Identity,
    pub settings: Vec<(String, String)>,
    pub start_timeout: Duration,
}

impl Server {
    pub fn config(&self, database: &str) -> Config {
        let mut config = Config::new();
        config.host_path(&self.socket).port(PORT).user(SUPERUSER).dbname(database);
        config
    }

    /// Makes the cluster. It grows under another name and is renamed when complete, so that what a
    /// kill leaves behind is never taken for a cluster.
    pub async fn initialise(&self) -> Result<()> {
        let began = Instant::now();
        tracing::info!(
            "Initialising a new PostgreSQL {} database in {}",
            self.binaries.version,
            self.cluster.display(),
        );
        let new = self.data.join("postgres.new");
        self.quiet(&new, self.start_timeout).await?;
        // Text is ordered by code point, which does not change with the system's C library: that
        // would damage indexes. From 17 on PostgreSQL knows the letters of Unicode by itself;
        // before, the C library is asked, if it can tell.
        let locales: &[&[&str]] = if self.binaries.major >= 17 {
            &[&["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]]
        } else {
            &[&["--locale=C"], &["--locale=C", "--lc-ctype=C.UTF-8"]]
        };
        // The last is tried first.
        let mut attempts: Vec<(Identity, &[&str])> =
            locales.iter().map(|locale| (self.identity.clone(), *locale)).collect();
        let mut said = String::new();
        while let Some((identity, locale)) = attempts.pop() {
            remove_dir(&new)?;
            make_dir(&new, 0o700)?;
            identity.give(&new).map_err(io_error("hand over", &new))?;
            let Err(complaint) = self.initdb(&identity, &new, locale).await? else {
                rename(&new, &self.cluster)?;
                tracing::info!("Initialised in {} ms", began.elapsed().as_millis());
                return Ok(());
            };
            let nameless = complaint.contains("could not look up effective user ID");
            if nameless && identity == Identity::Own {
                // A container may run us as a number without a name, which initdb alone minds.
                let others = identity::namespaces().into_iter();
                attempts.extend(others.map(|identity| (identity, locale)));
            }
            said = complaint;
        }
        // Useless by now; if it cannot be removed, the next start tries again.
        let _ = remove_dir(&new);
        Err(EmbeddedError::Init { path: self.cluster.clone(), said })
    }

    /// Runs initdb; the inner error is its complaint.
    async fn initdb(
        &self,
        identity: &Identity,
        new: &Path,
        locale: &[&str],
    ) -> Result<std::result::Result<(), String>> {
        let program = self.binaries.bin.join("initdb");
        let run_error = |source| EmbeddedError::Run { program: program.clone(), source };
        let mut command = guarded(identity, &program);
        command.args(["--encoding=UTF8", "--data-checksums", "--username", SUPERUSER]);
        // Trust, because the wall is the socket's folder; see the head of this module.
        command.args(["--auth-local=trust", "--auth-host=reject"]);
        command.args(locale).arg("--pgdata").arg(new).stdout(Stdio::null()).stderr(Stdio::piped());
        let Running { child, mut pipe, .. } = Running::spawn(&mut command).map_err(run_error)?;
        let output = tokio::time::timeout(INIT_TIMEOUT, child.wait_with_output()).await;
        let Ok(output) = output else {
            // The pipe closes here, and the guard ends initdb.
            return Ok(Err(format!("initdb did not end within {} s", INIT_TIMEOUT.as_secs())));
        };
        let output = output.map_err(run_error)?;
        let _ = pipe.write_all(b"done\n").await;
        if output.status.success() {
            return Ok(Ok(()));
        }
        Ok(Err(digest(&String::from_utf8_lossy(&output.stderr))))
    }

    /// Starts PostgreSQL and waits until it answers.
    pub async fn launch(&self) -> Result<(Running, Client)> {
        self.settle(self.start_timeout).await?;
        self.prepare_socket()?;
        let mut log = open_log(&self.log)?;
        let from = log.seek(SeekFrom::End(0)).map_err(io_error("read", &self.log))?;
        let error_log = log.try_clone().map_err(io_error("open", &self.log))?;
        let program = self.binaries.bin.join("postgres");
        let mut command = guarded(&self.identity, &program);
        command.arg("-D").arg(&self.cluster).stdout(log).stderr(error_log);
        for (name, value) in SETTINGS {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        for (name, value) in &self.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        // Last, because the last word wins: these are the wall around a server without passwords.
        let socket = self.socket.to_string_lossy().replace('"', "\"\"");
        command.arg("-c").arg(format!("unix_socket_directories=\"{socket}\""));
        command.args(["-c", "unix_socket_permissions=0700", "-c", "listen_addresses="]);
        command.args(["-c", &format!("port={PORT}"), "-c", "cluster_name=casebook"]);
        let mut running = Running::spawn(&mut command)
            .map_err(|source| EmbeddedError::Run { program: program.clone(), source })?;

        let began = Instant::now();
        loop {
            if let Some(client) = connect(self.config("postgres")).await {
                return Ok((running, client));
            }
            if tokio::time::timeout(POLL, running.child.wait()).await.is_ok() {
                running.release().await;
                return Err(EmbeddedError::Start {
                    path: self.cluster.clone(),
                    said: self.said_since(from),
                    log: self.log.clone(),
                });
            }
            if began.elapsed() > self.start_timeout {
                let said = self.said_since(from);
                running.stop(&self.cluster).await?;
                return Err(EmbeddedError::Timeout {
                    path: self.cluster.clone(),
                    seconds: self.start_timeout.as_secs(),
                    said,
                    log: self.log.clone(),
                });
            }
        }
    }

    /// Makes the database if it does not exist.
    pub async fn ensure_database(&self, client: &Client) -> Result<()> {
        let found = "SELECT 1 FROM pg_database WHERE datname = $1";
        let found = client.query_opt(found, &[&DATABASE]).await.map_err(EmbeddedError::Database)?;
        if found.is_none() {
            let create = format!("CREATE DATABASE {DATABASE}");
            client.batch_execute(&create).await.map_err(EmbeddedError::Database)?;
        }
        Ok(())
    }

    /// Waits until no process of an earlier life works on the cluster, and clears what would keep a
    /// new one from it.
    pub async fn settle(&self, patience: Duration) -> Result<()> {
        self.quiet(&self.cluster, patience).await?;
        // PostgreSQL takes any living process with the number in this file for its predecessor. We
        // know better by now, but leave the file when the number is free: PostgreSQL then uses it
        // to check for shared memory that is still in use.
        let path = self.cluster.join("postmaster.pid");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let pid = text.lines().next().and_then(|line| line.trim().parse::<u32>().ok());
        if pid.is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists()) {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
        Ok(())
    }

    /// Waits until no PostgreSQL process works in a folder. We hold the lock, so whoever does is
    /// left over: its guard is ending it, and if the guard was killed as well, we do.
    async fn quiet(&self, folder: &Path, patience: Duration) -> Result<()> {
        let began = Instant::now();
        let mut told = false;
        let mut asked = false;
        loop {
            let pids = processes(folder);
            let Some(first) = pids.first().copied() else { return Ok(()) };
            if !told {
                tracing::info!("Waiting for PostgreSQL process {first} of an earlier life to end");
                told = true;
            }
            if began.elapsed() > patience {
                return Err(EmbeddedError::Orphan { path: folder.to_owned(), pid: first });
            }
            if !asked && began.elapsed() > GRACE {
                // What someone started by hand is left alone; ours bears the name.
                for pid in
                    pids.into_iter().filter(|pid| has_argument(*pid, b"cluster_name=casebook"))
                {
                    kill(pid, "INT").await;
                }
                asked = true;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Makes the socket folder, and makes sure that nobody else made it: it is the wall.
    fn prepare_socket(&self) -> Result<()> {
        let path = &self.socket;
        let refuse = |why: &'static str| EmbeddedError::Socket { path: path.clone(), why };
        make_dir(path, 0o700)?;
        let meta = fs::symlink_metadata(path).map_err(io_error("read", path))?;
        if !meta.is_dir() {
            return Err(refuse("is not a folder"));
        }
        if ![self.identity.owner(), identity::own_uid()].contains(&meta.uid()) {
            return Err(refuse("belongs to someone else"));
        }
        fs::set_permissions(path, Permissions::from_mode(0o700))
            .map_err(io_error("protect", path))?;
        self.identity.give(path).map_err(io_error("hand over", path))?;
        // Like postmaster.pid, the lock beside an old socket may name a number in use again.
        for entry in fs::read_dir(path).map_err(io_error("read", path))?.flatten() {
            if entry.file_name().as_bytes().starts_with(b".s.PGSQL.") {
                fs::remove_file(entry.path()).map_err(io_error("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// What PostgreSQL said since the given place in the log.
    fn said_since(&self, from: u64) -> String {
        let mut text = Vec::new();
        let read = File::open(&self.log).and_then(|mut file| {
            file.seek(SeekFrom::Start(from))?;
            file.read_to_end(&mut text)
        });
        match read {
            Ok(_) => digest(&String::from_utf8_lossy(&text)),
            Err(error) => error.to_string(),
        }
    }
}

/// A program run under the guard.
fn guarded(identity: &Identity, program: &Path) -> Command {
    let mut command = identity.command(Path::new("/bin/sh"));
    command.arg("-c").arg(GUARD).arg("casebook-guard").arg(program);
    command
}

/// Sends a signal; the standard library can only kill.
async fn kill(pid: u32, signal: &str) {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", r#"kill "-$1" "$2""#, "kill", signal, &pid.to_string()]);
    // A process that is gone is what was wanted.
    let _ = identity::output(&mut command).await;
}

async fn connect(config: Config) -> Option<Client> {
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, config.connect(NoTls));
    let (client, connection) = connecting.await.ok()?.ok()?;
    tokio::spawn(connection);
    Some(client)
}

/// The PostgreSQL processes that work in a folder: they are in it, or name it.
fn processes(folder: &Path) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let ours = |pid: &u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        matches!(name.trim(), "postgres" | "initdb")
            && (fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == folder)
                || has_argument(*pid, folder.as_os_str().as_bytes()))
    };
    pids.filter(ours).collect()
}

fn has_argument(pid: u32, argument: &[u8]) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|one| one == argument)
}

/// What matters of a log, as one line: the first complaints, or else the last lines.
fn digest(text: &str) -> String {
    const COMPLAINTS: [&str; 6] = ["FATAL", "PANIC", "ERROR", "error:", "HINT:", "could not"];
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let complaint = |line: &&&str| COMPLAINTS.iter().any(|word| line.contains(word));
    let mut told: Vec<&str> = lines.iter().filter(complaint).take(DIGEST_LINES).copied().collect();
    if told.is_empty() {
        told = lines[lines.len().saturating_sub(DIGEST_LINES)..].to_vec();
    }
    let bare = told.into_iter().map(|line| match line.split_once("] ") {
        // "2026-01-31 12:00:00.000 UTC [123] FATAL:  ..."
        Some((prefix, rest)) if prefix.starts_with(|c: char| c.is_ascii_digit()) => rest,
        _ => line,
    });
    let text = bare.collect::<Vec<_>>().join("; ").replace("  ", " ");
    if text.is_empty() { "it said nothing".to_owned() } else { text }
}
