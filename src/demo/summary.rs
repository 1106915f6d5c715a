//! What the demonstration recorded, and how to look at it.

use super::Options;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// The widest bar of the histogram.
const BAR: usize = 32;

/// What one run did. "Present" is what an earlier run had recorded.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub decisions_created: usize,
    pub decisions_present: usize,
    pub overrides_created: usize,
    pub overrides_present: usize,
    /// Overrides whose decision is there in another form, or was deleted since.
    pub overrides_skipped: usize,
    pub rules_created: usize,
    pub rules_present: usize,
    pub elapsed: Duration,
    /// How many decisions ended with which verdict.
    pub verdicts: BTreeMap<String, usize>,
    /// Where and as whom, as grpcurl takes it. Never the token itself.
    target: String,
}

impl Summary {
    pub(super) fn new(options: &Options) -> Self {
        let address = options.address.rsplit("://").next().unwrap_or_default();
        let mut target = String::new();
        if options.token.is_some() {
            target.push_str("-H \"authorization: Bearer $CASEBOOK_TOKEN\" ");
        }
        if let Some(tenant) = &options.tenant {
            target.push_str(&format!("-H 'x-casebook-tenant: {tenant}' "));
        }
        Self {
            target: format!("{target}-d DATA {}", address.trim_end_matches('/')),
            ..Self::default()
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.decisions_created += other.decisions_created;
        self.decisions_present += other.decisions_present;
        self.overrides_created += other.overrides_created;
        self.overrides_present += other.overrides_present;
        self.overrides_skipped += other.overrides_skipped;
        self.rules_created += other.rules_created;
        self.rules_present += other.rules_present;
        for (verdict, count) in other.verdicts {
            *self.verdicts.entry(verdict).or_default() += count;
        }
    }

    /// Decisions handled in a second of this run.
    pub fn per_second(&self) -> f64 {
        let decisions = (self.decisions_created + self.decisions_present) as f64;
        decisions / self.elapsed.as_secs_f64().max(0.001)
    }

    /// Commands to copy: numbers by domain, the least certain refusals, and what people overruled.
    pub fn commands(&self) -> [String; 3] {
        [
            (
                "GetDecisionStatistics",
                r#"{"window":{"newerThan":"86400s"},"groupBy":["labels.domain","final_verdict"]}"#,
            ),
            (
                "ListDecisions",
                r#"{"page":{"pageSize":3,"orderBy":"ambiguity desc"},"where":{"expression":"final_verdict = \"DENY\" AND avg_confidence < 0.8"}}"#,
            ),
            ("ListOverrides", r#"{"decisionId":"-","page":{"pageSize":3}}"#),
        ]
        .map(|(method, data)| {
            let target = self.target.replacen("DATA", &format!("'{data}'"), 1);
            format!("grpcurl -plaintext {target} casebook.v1.DecisionService/{method}")
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{:14} {:>8} {:>14}", "", "created", "already there")?;
        for (noun, created, present) in [
            ("policy rules", self.rules_created, self.rules_present),
            ("decisions", self.decisions_created, self.decisions_present),
            ("overrides", self.overrides_created, self.overrides_present),
        ] {
            writeln!(out, "{noun:14} {created:>8} {present:>14}")?;
        }
        if self.overrides_skipped > 0 {
            writeln!(
                out,
                "{} overrides were left out: their decisions are there in another form, or deleted.",
                self.overrides_skipped
            )?;
        }
        let seconds = self.elapsed.as_secs_f64();
        writeln!(out, "\n{seconds:.1} s, {:.0} decisions per second\n", self.per_second())?;

        let most = self.verdicts.values().copied().max().unwrap_or(1).max(1);
        let mut verdicts: Vec<_> = self.verdicts.iter().collect();
        verdicts.sort_by_key(|(verdict, count)| (std::cmp::Reverse(**count), *verdict));
        for (verdict, count) in verdicts {
            let bar = "#".repeat((count * BAR).div_ceil(most));
            writeln!(out, "{verdict:<20} {count:>6} {bar}")?;
        }
        writeln!(out, "\nTo look at it:")?;
        for command in self.commands() {
            writeln!(out, "  {command}")?;
        }
        Ok(())
    }
}
