//! Two sides taken in turns, A B B A, and what comes out of the pairs.

use crate::database::{Database, PgBench};
use crate::load::{Call, Plan, Sample};
use crate::process::{Watched, cores};
use crate::stats::{Estimate, Verdict, Wanted, median};
use crate::{Result, sides};
use indicatif::ProgressBar;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub pairs: usize,
    pub seconds: u64,
}

/// Each side begins anew, with cold connections and plans: this long is not counted.
pub const WARM_S: u64 = 1;

/// One of the two things compared.
pub enum Side {
    Client { call: Call, in_flight: usize, watched: Vec<Watched> },
    PgBench(PgBench),
    Script { script: sides::Script, watched: Vec<Watched> },
}

/// What of the two samples is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Operations a second, ours by theirs.
    Throughput,
    /// Processor time of the server for each operation, ours by theirs.
    ServerCpu,
    /// Half of the calls are faster than this: ours less theirs, in ms.
    MedianLatency,
    /// The same, ours by theirs.
    MedianTime,
    /// The same, theirs by ours.
    MedianSpeed,
    /// 95 of 100 calls are faster than this: ours by theirs.
    TailTime,
    /// 99 of 100 calls are faster than this: ours by theirs.
    LastTime,
    /// Processor time of server and PostgreSQL for each operation, ours by theirs.
    Cost,
}

impl Figure {
    fn of(self, ours: &Sample, theirs: &Sample) -> f64 {
        match self {
            Self::Throughput => ours.per_second() / theirs.per_second(),
            Self::ServerCpu => {
                ours.cpu_us_per_operation("server") / theirs.cpu_us_per_operation("server")
            }
            Self::MedianLatency => (ours.p50_us - theirs.p50_us) / 1000.0,
            Self::MedianTime => ours.p50_us / theirs.p50_us,
            Self::MedianSpeed => theirs.p50_us / ours.p50_us,
            Self::TailTime => ours.p95_us / theirs.p95_us,
            Self::LastTime => ours.p99_us / theirs.p99_us,
            Self::Cost => {
                let cost = |sample: &Sample| {
                    sample.cpu_us_per_operation("server") + sample.cpu_us_per_operation("postgres")
                };
                cost(ours) / cost(theirs)
            }
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Throughput
            | Self::ServerCpu
            | Self::MedianTime
            | Self::MedianSpeed
            | Self::TailTime
            | Self::LastTime
            | Self::Cost => "ratio",
            Self::MedianLatency => "ms",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Throughput => "operations per second, ours / theirs",
            Self::ServerCpu => "server CPU per operation, ours / theirs",
            Self::MedianLatency => "median latency, ours - theirs",
            Self::MedianTime => "median latency, ours / theirs",
            Self::MedianSpeed => "median speed, ours / theirs",
            Self::TailTime => "latency of 95 %, ours / theirs",
            Self::LastTime => "latency of 99 %, ours / theirs",
            Self::Cost => "CPU of server and PostgreSQL per operation, ours / theirs",
        }
    }
}

/// A comparison with its target.
pub struct Scenario {
    pub name: &'static str,
    pub title: &'static str,
    pub figure: Figure,
    pub wanted: Wanted,
    pub target: f64,
    pub ours: (String, Side),
    pub theirs: (String, Side),
}

/// What came of a scenario: one object of results.json.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub name: &'static str,
    pub title: &'static str,
    /// What `ratio` is, which is a difference or an amount where `unit` says so.
    pub meaning: &'static str,
    pub unit: &'static str,
    pub ratio: f64,
    pub low: f64,
    pub high: f64,
    pub pairs: usize,
    pub wanted: Wanted,
    pub target: f64,
    pub verdict: Verdict,
    /// Of each pair, in the order taken.
    pub values: Vec<f64>,
    /// Share of the machine's cores used by neither side while it ran: others, the kernel, the bench itself.
    pub cpu_elsewhere: f64,
    pub ours: Option<Medians>,
    pub theirs: Option<Medians>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Outcome {
    /// Of a comparison by throughput with what could not be had here.
    pub fn skipped(
        name: &'static str,
        title: &'static str,
        target: f64,
        error: &dyn std::fmt::Display,
    ) -> Self {
        Self {
            name,
            title,
            meaning: Figure::Throughput.meaning(),
            unit: Figure::Throughput.unit(),
            ratio: f64::NAN,
            low: f64::NAN,
            high: f64::NAN,
            pairs: 0,
            wanted: Wanted::AtLeast,
            target,
            verdict: Verdict::Skipped,
            values: Vec::new(),
            cpu_elsewhere: f64::NAN,
            ours: None,
            theirs: None,
            note: Some(format!(
                "skipped, because the baseline's environment could not be made: {error}"
            )),
        }
    }
}

/// Medians over one side's samples.
#[derive(Clone, Debug, Serialize)]
pub struct Medians {
    pub what: String,
    pub per_second: f64,
    pub mean_us: f64,
    /// Null for pgbench, which tells the mean only.
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    /// Microseconds of processor time for each operation, by process.
    pub cpu_us_per_operation: BTreeMap<String, f64>,
    /// Of each sample.
    #[serde(skip)]
    pub all_per_second: Vec<f64>,
}

impl Medians {
    fn of(what: String, samples: &[Sample]) -> Self {
        let over =
            |value: &dyn Fn(&Sample) -> f64| median(&samples.iter().map(value).collect::<Vec<_>>());
        let processes = samples.iter().flat_map(|sample| sample.cpu_us.keys());
        let cpu = processes
            .map(|name| (name.clone(), over(&|sample| sample.cpu_us_per_operation(name))))
            .collect();
        let known = |value: f64| (!value.is_nan()).then_some(value);
        Self {
            what,
            per_second: over(&Sample::per_second),
            mean_us: over(&|sample| sample.mean_us),
            p50_us: known(over(&|sample| sample.p50_us)),
            p99_us: known(over(&|sample| sample.p99_us)),
            cpu_us_per_operation: cpu,
            all_per_second: samples.iter().map(Sample::per_second).collect(),
        }
    }
}

/// Where sides are run.
pub struct Bench<'a> {
    pub folder: &'a Path,
    pub database: &'a Database,
    pub extent: Extent,
    pub progress: ProgressBar,
}

impl Bench<'_> {
    async fn sample(&self, side: &Side, seconds: u64) -> Result<Sample> {
        let sample = match side {
            Side::PgBench(run) => self.database.pgbench(run, WARM_S, seconds).await?,
            Side::Script { script, watched } => {
                sides::script(script, WARM_S, seconds, watched).await?
            }
            Side::Client { call, in_flight, watched } => {
                let plan = Plan {
                    call: call.clone(),
                    in_flight: *in_flight,
                    warm_s: WARM_S as f64,
                    measured_s: seconds as f64,
                    watched: watched.clone(),
                };
                sides::drive(self.folder, &plan).await?
            }
        };
        self.progress.inc(1);
        if sample.operations == 0 {
            return Err("a side did nothing in its time".into());
        }
        Ok(sample)
    }

    /// How many samples a scenario takes, for the progress shown.
    pub fn samples(&self) -> u64 {
        2 * (self.extent.pairs as u64 + 1)
    }

    /// Takes the pairs, after one that only warms up.
    pub async fn compare(&self, scenario: Scenario) -> Result<Outcome> {
        let Scenario { name, title, figure, wanted, target, ours, theirs } = scenario;
        self.progress.set_message(title);
        self.database.settle().await?;
        let warm = self.extent.seconds.min(2);
        self.sample(&ours.1, warm).await?;
        self.sample(&theirs.1, warm).await?;

        let (mut of_ours, mut of_theirs) = (Vec::new(), Vec::new());
        for pair in 0..self.extent.pairs {
            let seconds = self.extent.seconds;
            // A B, B A, A B...: a drift of the machine or of the tables meets both sides alike.
            let (a, b) = if pair % 2 == 0 {
                let a = self.sample(&ours.1, seconds).await?;
                (a, self.sample(&theirs.1, seconds).await?)
            } else {
                let b = self.sample(&theirs.1, seconds).await?;
                (self.sample(&ours.1, seconds).await?, b)
            };
            of_ours.push(a);
            of_theirs.push(b);
        }

        let values: Vec<f64> =
            of_ours.iter().zip(&of_theirs).map(|(a, b)| figure.of(a, b)).collect();
        let estimate = Estimate::of(&values);
        // A difference may be about zero, so its interval is compared with the target.
        let scale = if figure == Figure::MedianLatency { target } else { estimate.median };
        let elsewhere: Vec<f64> =
            of_ours.iter().chain(&of_theirs).map(|sample| sample.elsewhere(cores())).collect();
        let outcome = Outcome {
            name,
            title,
            meaning: figure.meaning(),
            unit: figure.unit(),
            ratio: estimate.median,
            low: estimate.low,
            high: estimate.high,
            pairs: values.len(),
            wanted,
            target,
            verdict: Verdict::of(estimate, wanted, target, scale),
            values,
            cpu_elsewhere: median(&elsewhere),
            ours: Some(Medians::of(ours.0, &of_ours)),
            theirs: Some(Medians::of(theirs.0, &of_theirs)),
            note: None,
        };
        self.say(&outcome);
        Ok(outcome)
    }

    /// Tries client counts for pgbench and keeps the fastest.
    pub async fn best_clients(&self, mut run: PgBench, counts: &[usize]) -> Result<PgBench> {
        let mut best = (0.0, run.clients);
        for &clients in counts {
            self.progress.set_message(format!("pgbench at {clients} clients"));
            run.clients = clients;
            let seconds = self.extent.seconds.min(3);
            let sample = self.database.pgbench(&run, WARM_S, seconds.max(2)).await?;
            if sample.per_second() > best.0 {
                best = (sample.per_second(), clients);
            }
        }
        run.clients = best.1;
        Ok(run)
    }

    /// One line above the bar as soon as a scenario is done.
    pub fn say(&self, outcome: &Outcome) {
        let Outcome { name, ratio, low, high, unit, verdict, .. } = outcome;
        let line = format!("{name}: {ratio:.3} {unit} [{low:.3}, {high:.3}]: {}", verdict.text());
        if self.progress.is_hidden() {
            println!("{line}");
        } else {
            self.progress.println(line);
        }
    }
}
