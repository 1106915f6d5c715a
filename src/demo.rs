//! Records the demonstration cases through the public API.

mod assemble;
mod cases;
mod client;
mod random;
mod summary;
mod template;
#[cfg(test)]
mod tests;

use crate::pb;
use cases::{Case, Cases};
use client::{Client, Recorded};
use futures_util::{StreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write as _};
use std::time::Instant;
use time::OffsetDateTime;
use tonic::{Code, Status};

pub use summary::Summary;
pub use template::CasesError;

/// How many decisions one batch holds.
const BATCH: usize = 50;
/// Every 20th decision goes by itself, as those of an online service do.
const SINGLE_EVERY: usize = 20;

/// Where to record the demonstration, and how much of it.
#[derive(Clone)]
pub struct Options {
    /// `127.0.0.1:50051` or `http://127.0.0.1:50051`.
    pub address: String,
    pub token: Option<String>,
    /// For tokens that may act in more than one tenant.
    pub tenant: Option<String>,
    /// Decisions to record, at least 1.
    pub count: usize,
    /// Calls in flight at once, at least 1.
    pub concurrency: usize,
}

impl Default for Options {
    fn default() -> Self {
        let address = "http://127.0.0.1:50051".into();
        Self { address, token: None, tenant: None, count: 2_000, concurrency: 16 }
    }
}

/// Why the demonstration stopped. What was recorded until then stays; a second run goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("{0}")]
    Options(&'static str),
    #[error("the address {address:?} is not of the form 127.0.0.1:50051 or http://host:port")]
    Address { address: String },
    #[error("the {0} holds characters that a header cannot carry")]
    Header(&'static str),
    #[error(
        "no Casebook server answers at {address}: start one with `make run`, or name another address"
    )]
    Unreachable {
        address: String,
        #[source]
        cause: tonic::transport::Error,
    },
    #[error(
        "the server at {address} does not let these credentials record decisions ({}): give a token with the role writer",
        .status.message()
    )]
    Refused { address: String, status: Box<Status> },
    #[error("{what} could not be recorded: {} ({})", .status.message(), .status.code().description())]
    Call { what: String, status: Box<Status> },
    #[error(transparent)]
    Cases(#[from] CasesError),
}

/// Records policy rules, decisions with their critic outputs, and overrides, and prints a summary. What an earlier
/// run has recorded is left as it is and counted as already there.
pub async fn run(options: Options) -> Result<Summary, DemoError> {
    let summary = record(&options, OffsetDateTime::now_utc()).await?;
    // A reader that has gone away, such as `head`, is not an error.
    let _ = writeln!(std::io::stdout(), "{summary}");
    Ok(summary)
}

/// What [`run`] does, as of another moment, and without printing.
pub async fn record(options: &Options, now: OffsetDateTime) -> Result<Summary, DemoError> {
    if options.count == 0 || options.concurrency == 0 {
        return Err(DemoError::Options("the count and the concurrency must be at least 1"));
    }
    let cases = Cases::load(now)?;
    let client = Client::connect(options, cases.key()).await?;
    let started = Instant::now();
    let mut summary = Summary::new(options);
    for (index, rule) in cases.rules().into_iter().enumerate() {
        match client.create_rule(index, rule).await? {
            Recorded::Created => summary.rules_created += 1,
            Recorded::Present => summary.rules_present += 1,
        }
    }

    let progress = Progress::new(options.count);
    let work = work(options.count);
    let mut done = stream::iter(&work)
        .map(|indices| record_cases(&client, &cases, indices))
        .buffer_unordered(options.concurrency);
    while let Some(tally) = done.next().await {
        let tally = tally?;
        progress.advance(tally.decisions_created + tally.decisions_present);
        summary.add(tally);
    }
    progress.finish();
    summary.elapsed = started.elapsed();
    Ok(summary)
}

/// The numbers of the decisions that go together, each list one call.
fn work(count: usize) -> Vec<Vec<usize>> {
    let (singles, batched): (Vec<usize>, Vec<usize>) =
        (0..count).partition(|index| index % SINGLE_EVERY == SINGLE_EVERY - 1);
    let batches = batched.chunks(BATCH).map(<[usize]>::to_vec);
    batches.chain(singles.into_iter().map(|index| vec![index])).collect()
}

/// Records these decisions in one call if none is there, one by one otherwise, and then what people said about them.
async fn record_cases(
    client: &Client,
    cases: &Cases,
    indices: &[usize],
) -> Result<Summary, DemoError> {
    let mut tally = Summary::default();
    let mut expanded: Vec<(usize, Case)> = Vec::with_capacity(indices.len());
    for &index in indices {
        expanded.push((index, cases.case(index)?));
    }
    let recorded = match expanded.as_slice() {
        [(index, case)] => vec![client.create_decision(*index, case).await?],
        batch => match client.create_batch(batch).await? {
            Some(recorded) => recorded,
            // A batch is all or nothing: with one id taken by other content, each has to be asked for by itself.
            None => {
                let mut recorded = Vec::with_capacity(batch.len());
                for (index, case) in batch {
                    recorded.push(client.create_decision(*index, case).await?);
                }
                recorded
            }
        },
    };
    for ((index, case), recorded) in expanded.into_iter().zip(recorded) {
        match recorded {
            Recorded::Created => tally.decisions_created += 1,
            Recorded::Present => tally.decisions_present += 1,
        }
        *tally.verdicts.entry(case.decision.final_verdict.clone()).or_default() += 1;
        let Some((id, overruling)) = case.overruled else { continue };
        match client.create_override(index, &case.id, id, overruling).await {
            Ok(Recorded::Created) => tally.overrides_created += 1,
            Ok(Recorded::Present) => tally.overrides_present += 1,
            // The decision is an older release's, or was deleted: this override does not belong to it.
            Err(DemoError::Call { status, .. })
                if recorded == Recorded::Present && misses_its_decision(&status) =>
            {
                tally.overrides_skipped += 1;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(tally)
}

fn misses_its_decision(status: &Status) -> bool {
    matches!(status.code(), Code::InvalidArgument | Code::FailedPrecondition | Code::NotFound)
}

/// A bar on a terminal, and a line every 10 % in a log.
struct Progress {
    bar: ProgressBar,
    plain: bool,
}

impl Progress {
    fn new(count: usize) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let bar = if plain {
            ProgressBar::with_draw_target(
                Some(count as u64),
                indicatif::ProgressDrawTarget::hidden(),
            )
        } else {
            ProgressBar::new(count as u64)
        };
        let template = "{bar:40} {pos}/{len} decisions, {per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar, plain }
    }

    fn advance(&self, by: usize) {
        let count = self.bar.length().unwrap_or_default().max(1);
        let before = self.bar.position() * 10 / count;
        self.bar.inc(by as u64);
        let tenths = self.bar.position() * 10 / count;
        if self.plain && tenths > before {
            eprintln!("{} % of {count} decisions recorded", tenths * 10);
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// The reason that the server gave, if it is one of ours.
fn reason(status: &Status) -> Option<String> {
    use tonic_types::StatusExt;
    status.get_details_error_info().map(|info| info.reason)
}

/// The request that records one case.
fn request(case: &Case, options: Option<pb::WriteOptions>) -> pb::CreateDecisionRequest {
    pb::CreateDecisionRequest {
        decision_id: case.id.clone(),
        decision: Some(case.decision.clone()),
        options,
    }
}
