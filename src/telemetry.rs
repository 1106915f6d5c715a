//! What the server says about itself: its log, its metrics, and the pages an operator's tools read.

pub mod metrics;
pub mod pages;

pub use metrics::Metrics;

use crate::error::{Error, Result};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal as _};
use std::panic;
use tracing::{Level, Subscriber};
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    #[default]
    Json,
    /// For a person at a terminal.
    Pretty,
}

/// Starts logging to standard error, panics included. `filter` is tracing's: `info,casebook=debug`.
pub fn init_log(format: LogFormat, filter: &str) -> Result<()> {
    subscriber(format, filter, io::stderr)?
        .try_init()
        .map_err(|error| Error::internal(format!("the log is already set up: {error}")))?;
    log_panics();
    Ok(())
}

fn subscriber<W>(
    format: LogFormat,
    filter: &str,
    writer: W,
) -> Result<impl Subscriber + Send + Sync + 'static>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| Error::invalid("log.filter", format!("does not parse: {error}")))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
        LogFormat::Pretty => lines.with_ansi(io::stderr().is_terminal()).boxed(),
    };
    // tokio-postgres logs parameter values at debug, whatever the filter asks for.
    let no_parameters = filter_fn(|metadata| {
        !metadata.target().starts_with("tokio_postgres") || *metadata.level() <= Level::WARN
    });
    // We say ourselves what was migrated.
    let no_refinery = filter_fn(|metadata| {
        !metadata.target().starts_with("refinery") || *metadata.level() <= Level::WARN
    });
    // All of them global, the user's own outermost: its "never" is then remembered for each place in the code. With a
    // filter on the layer of lines, every trace span in h2 would be looked at again each time it is passed.
    Ok(Registry::default().with(lines).with(no_parameters).with(no_refinery).with(filter))
}

/// A panic is a log line like any other, with the span of the call it happened in.
fn log_panics() {
    panic::set_hook(Box::new(|info| {
        let location = info.location().map(ToString::to_string).unwrap_or_default();
        let backtrace = Backtrace::capture();
        let backtrace =
            (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
        let message = panic_text(info.payload());
        tracing::error!(location, backtrace, panic = message, "panicked");
    }));
}

/// What a panic said.
pub fn panic_text(payload: &(dyn std::any::Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without text")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tracing::subscriber::DefaultGuard;

    /// What was logged, as JSON lines.
    #[derive(Clone, Default)]
    pub struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        pub fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    /// Keeps what this thread logs, until the guard is dropped.
    pub fn capture(filter: &str) -> (Lines, DefaultGuard) {
        // Whether an event is of interest to anybody is remembered for all threads, and another thread's end may have it
        // forgotten that this one listens. With a listener that stays, each thread is asked every time.
        static STAYS: std::sync::Once = std::sync::Once::new();
        STAYS.call_once(|| {
            tracing::subscriber::set_global_default(tracing_subscriber::registry())
                .expect("no other global subscriber in tests");
        });
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = subscriber(LogFormat::Json, filter, move || writer.clone()).unwrap();
        (lines, tracing::subscriber::set_default(subscriber))
    }

    fn logged(filter: &str, log: impl FnOnce()) -> String {
        let (lines, _guard) = capture(filter);
        log();
        lines.text()
    }

    #[test]
    fn parameters_never_reach_the_log() {
        for filter in
            ["trace", "tokio_postgres=trace", "tokio_postgres::prepare=debug,debug", "[call]=trace"]
        {
            let text = logged(filter, || {
                let span = tracing::error_span!("call");
                let _entered = span.enter();
                tracing::debug!(target: "tokio_postgres::query", "parameters: secret");
                tracing::info!(target: "tokio_postgres", "secret");
                tracing::warn!(target: "tokio_postgres::connection", "a warning");
            });
            assert!(!text.contains("secret"), "{filter}: {text}");
        }
        let text = logged("info", || tracing::warn!(target: "tokio_postgres", "a warning"));
        assert!(text.contains("a warning"), "{text}");
    }

    #[test]
    fn lines_carry_their_span() {
        let text = logged("info", || {
            let span = tracing::error_span!("call", request_id = "r1", trace_id = None::<&str>);
            span.in_scope(|| tracing::info!(code = "NOT_FOUND", "call failed"));
            tracing::debug!("unseen");
        });
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(line["spans"][0]["request_id"], "r1");
        assert_eq!(line["code"], "NOT_FOUND");
    }

    #[test]
    fn a_bad_filter_is_named() {
        let error = subscriber(LogFormat::Pretty, "casebook=loud", io::sink).err().unwrap();
        assert!(error.to_string().starts_with("log.filter does not parse"), "{error}");
    }
}
