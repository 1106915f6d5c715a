//! What is written down: a page for people and one object for each scenario for programs.

use crate::Result;
use crate::measure::{Extent, Medians, Outcome, WARM_S};
use crate::process::Machine;
use crate::stats::{Verdict, Wanted};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;
use std::time::SystemTime;

/// What both sides worked on.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    pub postgresql: String,
    pub pgbench: String,
    pub settings: [(&'static str, &'static str); 5],
    pub in_flight: usize,
    pub connections: usize,
}

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    date: String,
    machine: Machine,
    about: About,
    seconds_per_side: u64,
    scenarios: Vec<Outcome>,
}

impl Report {
    pub fn new(machine: Machine, about: About, extent: Extent, scenarios: Vec<Outcome>) -> Self {
        let date = casebook::store::canonical::rfc3339(SystemTime::now());
        // To the second.
        let date = date.split('.').next().unwrap_or_default().replace('T', " ");
        let date = format!("{} UTC", date.trim_end_matches('Z'));
        Self { date, machine, about, seconds_per_side: extent.seconds, scenarios }
    }

    /// The results as a table of Markdown.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "| Scenario | Figure | Median | 95 % interval | Pairs | Target | Verdict |\n\
             |---|---|---|---|---|---|---|\n",
        );
        for outcome in &self.scenarios {
            let sign = match outcome.wanted {
                Wanted::AtLeast => "at least",
                Wanted::AtMost => "at most",
            };
            let unit = match outcome.unit {
                "ratio" => String::new(),
                unit => format!(" {unit}"),
            };
            let (median, interval) = match outcome.verdict {
                Verdict::Skipped => ("-".to_owned(), "-".to_owned()),
                _ => (
                    format!("{:.2}{unit}", outcome.ratio),
                    format!("{:.2} to {:.2}", outcome.low, outcome.high),
                ),
            };
            let _ = writeln!(
                text,
                "| `{}`: {} | {} | {median} | {interval} | {} | {sign} {}{unit} | **{}** |",
                outcome.name,
                outcome.title,
                outcome.meaning,
                outcome.pairs,
                outcome.target,
                outcome.verdict.text()
            );
        }
        text.push('\n');
        text.push_str(&self.costs());
        text
    }

    /// Throughput, latency and processor time, side by side.
    fn costs(&self) -> String {
        let mut text = String::from(
            "| Scenario | Side | Operations/s | Mean us | p50 us | p99 us | Server CPU us/op | Client CPU us/op | \
             PostgreSQL CPU us/op | CPU elsewhere |\n|---|---|---|---|---|---|---|---|---|---|\n",
        );
        for outcome in &self.scenarios {
            for (side, medians) in [("Casebook", &outcome.ours), ("other", &outcome.theirs)] {
                let Some(medians) = medians else { continue };
                let Medians { per_second, mean_us, p50_us, p99_us, .. } = medians;
                let known = |value: Option<f64>| value.map_or("-".into(), |us| format!("{us:.0}"));
                let cpu = |process: &str| {
                    let used = medians.cpu_us_per_operation.get(process);
                    used.map_or("-".into(), |us| format!("{us:.1}"))
                };
                let _ = writeln!(
                    text,
                    "| `{}` | {side} | {per_second:.0} | {mean_us:.0} | {} | {} | {} | {} | {} | {:.0} % |",
                    outcome.name,
                    known(*p50_us),
                    known(*p99_us),
                    cpu("server"),
                    cpu("client"),
                    cpu("postgres"),
                    outcome.cpu_elsewhere * 100.0
                );
            }
        }
        for outcome in &self.scenarios {
            if let Some(note) = &outcome.note {
                let _ = writeln!(text, "\n`{}`: {note}.", outcome.name);
            }
        }
        text
    }

    /// Writes RESULTS.md and results.json.
    pub fn write(&self, folder: &Path) -> Result<()> {
        std::fs::write(folder.join("RESULTS.md"), self.page())?;
        let mut json = serde_json::to_string_pretty(self)?;
        json.push('\n');
        std::fs::write(folder.join("results.json"), json)?;
        Ok(())
    }

    fn page(&self) -> String {
        let Self { date, machine, about, seconds_per_side, .. } = self;
        let mut text = format!(
            "# Results\n\n\
             Written by `make bench`, `make bench-vectors`, `make bench-blobs` or `make bench-blobs-s3`; do not edit. The same figures for programs are in `results.json`.\n\n\
             Taken {date} on {} cores ({}, {} GiB, Linux {}), PostgreSQL {}. Load average before {}, after {}.\n\n{}\n",
            machine.cores,
            machine.processor,
            machine.memory_gib,
            machine.kernel,
            about.postgresql,
            machine.load_average_before,
            machine.load_average_after,
            self.table(),
        );
        let settings = about.settings.map(|(name, value)| format!("`{name} = {value}`")).join(", ");
        let _ = write!(
            text,
            "## How it was measured\n\n\
             Only ratios of two sides taken in one run count: both work on one private PostgreSQL on a disk, with fsync \
             on and {settings}. The sides alternate A B B A; each is measured for {seconds_per_side} s after {WARM_S} s \
             that do not count, and a first pair does not count. The figure is the median over the pairs; the interval \
             is a percentile bootstrap with 10,000 resamples. An interval that reaches further than 15 % from the median \
             (for a difference or an amount: 15 % of the target), or that holds the target inside it, is inconclusive.\n\n\
             `casebook serve` is a process of its own with its defaults and `auth = none`, and reaches PostgreSQL through \
             its socket, as pgbench does. The client is a process of its own as well: a closed loop of callers on one \
             thread, over {} HTTP/2 connection(s), with requests prepared as bytes and answers counted but not read (as \
             pgbench does not look into its rows). It is the same for Casebook, echo and Python. Processor time is user and \
             system time from /proc over the measured time; PostgreSQL's is that of all its processes. \"CPU elsewhere\" is \
             the share of the cores that no process of either side used, most of it the kernel's and other people's work; \
             when it is large, so is the noise. What is recorded is the same on both sides: 289 bytes of input, metadata, \
             three labels, a verdict and a confidence, under a new random id of 16 digits.\n\n\
             ## What each side does\n\n",
            about.connections,
        );
        for outcome in self.scenarios.iter().filter(|outcome| outcome.ours.is_some()) {
            let _ = writeln!(text, "### `{}`: {}\n", outcome.name, outcome.title);
            for (side, medians) in [("Casebook", &outcome.ours), ("Other", &outcome.theirs)] {
                if let Some(medians) = medians {
                    let _ = writeln!(text, "- {side}: {}.", medians.what);
                }
            }
            text.push('\n');
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    }
}
