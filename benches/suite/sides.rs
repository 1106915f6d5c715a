//! The servers that are measured, each a process of its own, and the client process that drives them.

use crate::database::Database;
use crate::load::{Look, Plan, Sample};
use crate::process::Watched;
use crate::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A server that takes calls.
pub struct Running {
    child: Child,
    pub pid: u32,
    pub address: String,
}

impl Running {
    /// `casebook serve` as it comes, but for where it listens, its database and `auth`.
    pub async fn casebook(folder: &Path, service_url: &str, owner_url: &str) -> Result<Self> {
        Self::casebook_with(folder, service_url, owner_url, &[]).await
    }

    /// The same, with further flags.
    pub async fn casebook_with(
        folder: &Path,
        service_url: &str,
        owner_url: &str,
        flags: &[&str],
    ) -> Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_casebook"));
        // Settings of the developer's environment would change what is measured.
        command.env_clear().current_dir(folder).arg("serve");
        command.args([
            "--listen",
            "127.0.0.1:0",
            "--metrics-listen",
            "127.0.0.1:0",
            "--auth",
            "none",
        ]);
        command.args(["--log-format", "json", "--drain-delay-ms", "0"]);
        command.args(flags);
        command.arg("--database-url").arg(service_url);
        command.arg("--owner-database-url").arg(owner_url);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn()?;
        let said = child.stderr.take().with(|| "no standard error")?;
        let serving = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            let is_it = line.get("message")?.as_str()? == "serving";
            is_it.then(|| line.get("address")?.as_str().map(str::to_owned)).flatten()
        };
        Self::when(child, said, folder.join("casebook.log"), serving).await
    }

    /// This program as the echo server, which answers with the message in the file.
    pub async fn echo(folder: &Path, answer: &Path) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("echo").arg(answer);
        Self::listening(command, folder.join("echo.log")).await
    }

    pub async fn python(folder: &Path, python: &Path, database: &Database) -> Result<Self> {
        let mut command = Command::new(python);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/baseline/server.py"));
        command.arg("--database-url").arg(database.owner_url());
        Self::listening(command, folder.join("python.log")).await
    }

    async fn listening(mut command: Command, log: PathBuf) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let said = child.stdout.take().with(|| "no standard output")?;
        let listening =
            |line: &str| Some(format!("http://{}", line.strip_prefix("listening on ")?));
        Self::when(child, said, log, listening).await
    }

    /// Waits for the line that holds the address; keeps what is said afterwards in the log.
    async fn when(
        child: Child,
        said: impl AsyncRead + Send + Unpin + 'static,
        log: PathBuf,
        address: impl Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let pid = child.id().with(|| "a server ended at once")?;
        let mut lines = BufReader::new(said).lines();
        let mut before = Vec::new();
        let found = tokio::time::timeout(START_TIMEOUT, async {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(address) = address(&line) {
                    return Some(address);
                }
                before.push(line);
            }
            None
        });
        let Ok(Some(address)) = found.await else {
            return Err(format!("a server did not start: {}", before.join("; ")).into());
        };
        tokio::spawn(async move {
            let mut log = tokio::fs::File::create(log).await?;
            while let Some(line) = lines.next_line().await? {
                log.write_all(format!("{line}\n").as_bytes()).await?;
            }
            log.flush().await
        });
        Ok(Self { child, pid, address })
    }

    /// Asks it to stop and waits, so that it is not in the way of what is measured next.
    pub async fn stop(mut self) -> Result<()> {
        // The standard library can only kill.
        Command::new("kill").arg("-TERM").arg(self.pid.to_string()).status().await?;
        if tokio::time::timeout(Duration::from_secs(20), self.child.wait()).await.is_err() {
            self.child.kill().await?;
        }
        Ok(())
    }
}

/// Runs a plan in a client process.
pub async fn drive(folder: &Path, plan: &Plan) -> Result<Sample> {
    let file = folder.join("plan.json");
    tokio::fs::write(&file, serde_json::to_vec(plan)?).await?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("load").arg(&file).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("the client failed: {}", said.trim()).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A program of the baseline's that works by itself and says on each line how many rows it has committed.
#[derive(Clone, Debug)]
pub struct Script {
    pub python: PathBuf,
    pub file: PathBuf,
    pub arguments: Vec<String>,
}

/// Runs a script and measures it from the first line behind the time that does not count.
pub async fn script(
    script: &Script,
    warm_s: u64,
    measured_s: u64,
    watched: &[Watched],
) -> Result<Sample> {
    let mut command = Command::new(&script.python);
    command.arg(&script.file).args(&script.arguments).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let mut watched = watched.to_vec();
    watched.push(Watched::one("client", child.id().with(|| "the script ended at once")?));
    let said = child.stdout.take().with(|| "no standard output")?;
    let mut lines = BufReader::new(said).lines();
    let mut line = async || -> Result<u64> {
        let line = lines.next_line().await?.with(|| "the script ended early")?;
        Ok(line.parse()?)
    };
    line().await?;
    let warm = Instant::now() + Duration::from_secs(warm_s);
    while Instant::now() < warm {
        line().await?;
    }
    let begin = Look::take(&watched)?;
    let end = Instant::now() + Duration::from_secs(measured_s);
    let mut operations = 0;
    while Instant::now() < end {
        operations += line().await?;
    }
    let mut sample = Look::take(&watched)?.since(&begin);
    child.kill().await?;
    sample.operations = operations;
    sample.p50_us = f64::NAN;
    sample.p95_us = f64::NAN;
    sample.p99_us = f64::NAN;
    sample.mean_us = sample.seconds * 1e6 / operations as f64;
    Ok(sample)
}

/// The interpreter of the baseline's own environment, made on first use. The error says why there is none.
pub async fn python() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let requirements = root.join("benches/baseline/requirements.txt");
    // target/tmp/.. is the target folder, wherever that is.
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("baseline-venv");
    let (python, stamp) = (venv.join("bin/python"), venv.join("requirements.txt"));
    let wanted = tokio::fs::read(&requirements).await?;
    if tokio::fs::read(&stamp).await.is_ok_and(|made| made == wanted) {
        return Ok(python);
    }
    let run = async |command: &mut Command| -> Result<()> {
        let output = command.stdin(Stdio::null()).output().await?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(()) } else { Err(said.into()) }
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv)).await?;
    let mut pip = Command::new(venv.join("bin/pip"));
    run(pip.args(["install", "--quiet", "--disable-pip-version-check", "-r"]).arg(&requirements))
        .await?;
    tokio::fs::write(&stamp, wanted).await?;
    Ok(python)
}
