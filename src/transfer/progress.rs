//! How far a transfer is: a line on a terminal, and one now and then in a log.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

const LOG_EVERY: Duration = Duration::from_secs(10);

pub struct Progress {
    /// Unset where nobody watches.
    bar: Option<ProgressBar>,
    done: u64,
    total: Option<u64>,
    told: Instant,
}

impl Progress {
    /// `total` is unset where it is not known.
    pub fn new(total: Option<u64>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let (bar, template) = match total {
                Some(total) => {
                    (ProgressBar::new(total), "{bar:30} {pos}/{len} {msg}, {per_sec}, {eta} left")
                }
                None => (ProgressBar::new_spinner(), "{pos} {msg}, {per_sec}"),
            };
            match ProgressStyle::with_template(template) {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        Self { bar, done: 0, total, told: Instant::now() }
    }

    pub fn advance(&mut self, kind: &str, by: u64) {
        self.done += by;
        match (&self.bar, self.total) {
            (Some(bar), _) => {
                bar.set_message(kind.to_owned());
                bar.set_position(self.done);
            }
            (None, _) if self.told.elapsed() < LOG_EVERY => {}
            (None, total) => {
                let of = total.map(|total| format!(" of {total}")).unwrap_or_default();
                eprintln!("{}{of} lines, at {kind}", self.done);
                self.told = Instant::now();
            }
        }
    }

    /// Says something above the bar.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
