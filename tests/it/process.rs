//! The real program, run as an operator runs it, and a private PostgreSQL that may be hurt.

use crate::world::{open_folder, postgres_search};
use casebook::embedded::{Embedded, Options};
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};

/// How long anything that must happen may take on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the long form of the tests is asked for.
pub fn long_tests() -> bool {
    std::env::var_os("CASEBOOK_LONG_TESTS").is_some()
}

/// `casebook` with these arguments, and nothing of our environment but where programs are.
pub fn casebook(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_casebook"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    for name in ["PATH", "HOME", "TMPDIR", "LLVM_PROFILE_FILE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// `casebook serve` with these flags. Its log is read as it comes. It dies with this value.
pub struct Served {
    child: Child,
    log: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Served {
    pub fn start(flags: &[&str]) -> Self {
        let mut arguments = vec!["serve", "--log-format", "json"];
        arguments.extend(flags);
        let mut command = casebook(&arguments);
        let mut child =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program runs");
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, kept) = (child.stderr.take().expect("its log"), Arc::clone(&log));
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(lines).lines().map_while(Result::ok) {
                let mut kept = kept.lock().unwrap();
                kept.push_str(&line);
                kept.push('\n');
            }
        });
        Self { child, log, reader }
    }

    /// A server on a data folder of its own, on a port that the system chooses.
    pub fn on_folder(data: &Path, flags: &[&str]) -> Self {
        let mut all = vec!["--data-dir", data.to_str().expect("a path of text")];
        let bin = std::env::var("CASEBOOK_POSTGRES_BIN");
        if let Ok(bin) = &bin {
            all.extend(["--postgres-bin", bin.as_str()]);
        }
        all.extend(["--listen", "127.0.0.1:0", "--metrics-listen", ""]);
        all.extend(flags);
        Self::start(&all)
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A field of the first log line with that message, once it is there.
    pub async fn logged(&mut self, message: &str, field: &str) -> String {
        let began = Instant::now();
        loop {
            let log = self.log();
            let found = log
                .lines()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
                .find(|line| line["message"] == message);
            if let Some(line) = found {
                return line[field].as_str().unwrap_or_default().to_owned();
            }
            if let Some(status) = self.child.try_wait().expect("its state") {
                panic!("the server ended ({status}) before it said {message:?}:\n{log}");
            }
            assert!(began.elapsed() < PATIENCE, "the server never said {message:?}:\n{log}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Where it serves, once it does.
    pub async fn address(&mut self) -> String {
        self.logged("serving", "address").await
    }

    /// A connection to it, once it serves.
    pub async fn connect(&mut self) -> Channel {
        let address = self.address().await;
        Endpoint::from_shared(address).unwrap().connect().await.expect("it serves")
    }

    pub fn signal(&self, signal: &str) {
        kill(self.pid(), signal);
    }

    /// SIGKILL, and gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("SIGKILL");
        let status = self.child.wait().expect("its end");
        assert_eq!(status.signal(), Some(9), "it ended by itself:\n{}", self.log());
    }

    /// Its exit, when it ends by itself; its log is whole then.
    pub async fn ended(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("its state") {
                // What it said last may still be on its way, but a child of its own may hold the other end for longer.
                let ended = Instant::now();
                while !self.reader.is_finished() && ended.elapsed() < Duration::from_secs(2) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "the server does not end:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Whatever it was doing, it must not outlive the test.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn kill(pid: u32, signal: &str) {
    // 0 would be our own process group, the test runner and its caller included.
    assert!(pid > 1, "no process to send {signal} to");
    let status = Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status();
    assert!(status.expect("sh").success(), "kill -{signal} {pid}");
}

/// A PostgreSQL of one test's own that writes to disk as a real one does.
pub struct Postgres {
    pub embedded: Embedded,
    _folder: tempfile::TempDir,
}

impl Postgres {
    pub async fn start() -> Self {
        let folder = open_folder();
        let options = Options {
            data_dir: folder.path().to_owned(),
            bin_dir: std::env::var_os("CASEBOOK_POSTGRES_BIN").map(Into::into),
            search: postgres_search(),
            settings: vec![("fsync".into(), "on".into()), ("shared_buffers".into(), "32MB".into())],
            start_timeout: PATIENCE,
        };
        let embedded = Embedded::start(options).await.unwrap_or_else(|error| panic!("{error}"));
        Self { embedded, _folder: folder }
    }

    /// The postmaster's process id, once it is up: it may be about to be started again.
    pub async fn postmaster(&self) -> u32 {
        for _ in 0..PATIENCE.as_millis() / 10 {
            match self.embedded.pid() {
                0 => tokio::time::sleep(Duration::from_millis(10)).await,
                pid => return pid,
            }
        }
        panic!("PostgreSQL does not come back");
    }

    pub async fn stop(self) {
        self.embedded.stop().await.expect("PostgreSQL stops cleanly");
    }
}
