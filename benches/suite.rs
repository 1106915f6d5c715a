//! Measures Casebook, as ratios, against what it has to stand beside: `cargo bench --bench suite`.

#![forbid(unsafe_code)]
// What it has measured is its output.
#![allow(clippy::print_stdout)]

#[path = "suite/blobs.rs"]
mod blobs;
#[path = "suite/bulk.rs"]
mod bulk;
#[path = "suite/database.rs"]
mod database;
#[path = "suite/echo.rs"]
mod echo;
#[path = "suite/load.rs"]
mod load;
#[path = "suite/measure.rs"]
mod measure;
#[path = "suite/nearest.rs"]
mod nearest;
#[path = "suite/payload.rs"]
mod payload;
#[path = "suite/process.rs"]
mod process;
#[path = "suite/records.rs"]
mod records;
#[path = "suite/report.rs"]
mod report;
#[path = "suite/s3.rs"]
mod s3;
#[path = "suite/scenarios.rs"]
mod scenarios;
#[path = "suite/search.rs"]
mod search;
#[path = "suite/sides.rs"]
mod sides;
#[path = "suite/stats.rs"]
mod stats;

use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

// The echo server must not differ from Casebook in this.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// Says what was being done when it went wrong.
pub trait Context<T> {
    fn with<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T> Context<T> for Option<T> {
    fn with<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.ok_or_else(|| what().into().into())
    }
}

impl<T, E: std::fmt::Display> Context<T> for Result<T, E> {
    fn with<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| format!("{}: {error}", what().into()).into())
    }
}

/// Measures Casebook, as ratios, against what it has to stand beside, and writes benches/RESULTS.md and
/// benches/results.json.
#[derive(Parser)]
#[command(name = "suite")]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// Three short pairs of everything, to see that it works; writes no results.
    #[arg(long)]
    quick: bool,
    /// Only this scenario, or these; writes no results, unless --out says where.
    #[arg(long, value_name = "NAME", value_parser = scenarios::NAMES)]
    only: Vec<String>,
    /// Pairs of each scenario, at least 9 to be written down.
    #[arg(long, default_value_t = 11)]
    pairs: usize,
    /// How long each side of a pair is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Writes RESULTS.md and results.json into this folder, instead of benches or nowhere.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Where the database is made for the time being; must be on a disk.
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What the program starts itself as.
#[derive(Subcommand)]
#[command(hide = true)]
enum Part {
    Load { plan: PathBuf },
    Echo { answer: PathBuf },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = match &arguments.part {
        Some(Part::Load { plan }) => load::run(plan),
        Some(Part::Echo { answer }) => echo::run(answer),
        None => run(&arguments),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    // It mostly waits: one thread, so that it takes nothing from what is measured.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let plan = match arguments.quick {
        true => measure::Extent { pairs: 3, seconds: 2 },
        false => measure::Extent { pairs: arguments.pairs, seconds: arguments.seconds },
    };
    let whole = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
    let out = match &arguments.out {
        Some(out) => Some(out.clone()),
        None if arguments.quick || !arguments.only.is_empty() => None,
        None => Some(whole),
    };
    if out.is_some() && !arguments.bench {
        // `cargo test --all-targets` runs this program, too, and wants no bench.
        println!("bench: run by `cargo bench --bench suite`, or with --quick or --only");
        return Ok(());
    }
    if out.is_some() && plan.pairs < 9 {
        return Err(
            "results are written from 9 pairs on: use --quick or --only to try fewer".into()
        );
    }
    let folder = folder(arguments.dir.as_deref())?;
    let mut machine = process::Machine::read();
    let (outcomes, about) = runtime.block_on(async {
        tokio::select! {
            ended = scenarios::run(folder.path(), plan, &arguments.only) => ended,
            _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
        }
    })?;
    machine.load_average_after = process::load_average();
    let report = report::Report::new(machine, about, plan, outcomes);
    println!("\n{}", report.table());
    if let Some(out) = out {
        std::fs::create_dir_all(&out)?;
        report.write(&out)?;
        println!("Written to RESULTS.md and results.json in {}.", out.display());
    } else {
        println!("Nothing was written: only a whole run is, or one with --out.");
    }
    Ok(())
}

/// A folder on a disk that the user PostgreSQL runs as can enter, too.
fn folder(wanted: Option<&Path>) -> Result<tempfile::TempDir> {
    use std::os::unix::fs::PermissionsExt;
    let in_memory = |folder: &Path| process::file_system(folder) == "tmpfs";
    let temporary = std::env::temp_dir();
    let parent = match wanted {
        Some(folder) => folder.to_owned(),
        None if in_memory(&temporary) => env!("CARGO_TARGET_TMPDIR").into(),
        None => temporary,
    };
    if in_memory(&parent) {
        return Err(format!(
            "{} is in memory, where a flush costs nothing: name a folder on a disk with --dir",
            parent.display()
        )
        .into());
    }
    let folder = tempfile::Builder::new().prefix("casebook-bench-").tempdir_in(parent)?;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}
