//! Reads `cases.toml` and says which case, rule and time belongs to which number.

use super::random::Random;
use super::template::{CasesError, to_object};
use crate::pb;
use serde::Deserialize;
use std::collections::BTreeMap;
use time::{Duration, OffsetDateTime};

const FILE: &str = include_str!("cases.toml");

/// Rules were in force before the oldest decision; a fixed day keeps a second run equal to the first.
const RULES_SINCE: i64 = 1_735_689_600; // 2025-01-01T00:00:00Z

pub type PerVerdict<T> = BTreeMap<String, T>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub seed: u64,
    pub vars: toml::Table,
    pub domains: Vec<Domain>,
}

/// One line of business, with what its scenarios share.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Domain {
    pub name: String,
    /// How many of the decisions of one round are its own.
    pub share: usize,
    pub subject: String,
    pub subjects: usize,
    pub retention_class: String,
    pub models: Vec<String>,
    pub reviewers: Vec<String>,
    pub stakeholders: Vec<String>,
    pub rules: Vec<Rule>,
    pub vars: toml::Table,
    pub labels: BTreeMap<String, String>,
    pub input: toml::Table,
    pub metadata: toml::Table,
    pub confidence: PerVerdict<[f64; 2]>,
    pub dissent: PerVerdict<Vec<String>>,
    pub critics: Vec<Critic>,
    pub scenarios: Vec<Scenario>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Critic {
    pub name: String,
    pub weight: f64,
    #[serde(default)]
    pub priority: String,
    pub config: String,
    #[serde(default)]
    pub optional: bool,
    pub evidence: Vec<Evidence>,
    pub says: PerVerdict<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    #[serde(rename = "type")]
    pub kind: String,
    pub reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub id: String,
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub severity: String,
    pub description: String,
    pub definition: serde_json::Map<String, serde_json::Value>,
    #[serde(default = "yes")]
    pub active: bool,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub name: String,
    pub rules: Vec<String>,
    /// Empty means all of the domain that are not optional.
    #[serde(default)]
    pub critics: Vec<String>,
    #[serde(default)]
    pub dissent: PerVerdict<Vec<String>>,
    #[serde(default)]
    pub vars: toml::Table,
    pub input: toml::Table,
    pub outcomes: Vec<Outcome>,
    pub overrides: Vec<Overruling>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    pub verdict: String,
    pub weight: usize,
    pub vars: toml::Table,
    pub reason: Vec<String>,
}

/// How people overrule a verdict of a scenario.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overruling {
    pub from: String,
    pub to: String,
    pub category: String,
    #[serde(default)]
    pub urgent: bool,
    pub why: Vec<String>,
}

/// One decision to record, with what a person said about it later.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    pub id: String,
    pub scenario: String,
    pub decision: pb::Decision,
    /// Its id and itself.
    pub overruled: Option<(String, pb::Override)>,
}

/// Every case there is: case `n` at the same anchor is the same on every machine.
pub struct Cases {
    pub(super) file: File,
    /// Decisions lie in the 30 days before it.
    pub(super) anchor: OffsetDateTime,
}

impl Cases {
    /// The anchor is the start of the hour: a run within the same hour is the same in every byte, and the last 24
    /// hours are full nevertheless.
    pub fn load(now: OffsetDateTime) -> Result<Self, CasesError> {
        let file = toml::from_str(FILE).map_err(|error| CasesError(error.to_string()))?;
        let hour = now.unix_timestamp().div_euclid(3_600) * 3_600;
        let anchor = OffsetDateTime::from_unix_timestamp(hour)
            .map_err(|error| CasesError(error.to_string()))?;
        Ok(Self { file, anchor })
    }

    /// Names this version of the file at this hour: the same key promises the same content.
    pub fn key(&self) -> String {
        let file = Random::keyed(self.file.seed, FILE.len() as u64, FILE).hex(8);
        format!("demo-{file}-{}", self.anchor.unix_timestamp())
    }

    /// The policy rules under which the decisions are made.
    pub fn rules(&self) -> Vec<pb::PolicyRule> {
        let since = Some(prost_types::Timestamp { seconds: RULES_SINCE, nanos: 0 });
        let rules = self.file.domains.iter().flat_map(|domain| &domain.rules);
        rules
            .map(|rule| pb::PolicyRule {
                id: rule.id.clone(),
                name: rule.name.clone(),
                rule_type: rule.kind.clone(),
                severity: rule.severity.clone(),
                description: rule.description.clone(),
                definition: to_object(rule.definition.clone()),
                active: rule.active,
                effective_time: since,
                // Half a year after it came into force, before any decision here.
                retire_time: (!rule.active).then_some(prost_types::Timestamp {
                    seconds: RULES_SINCE + 180 * 86_400,
                    nanos: 0,
                }),
                ..Default::default()
            })
            .collect()
    }

    /// The domain of case `index`, and the number of the case within it, from 1. The domains take turns, so that a
    /// small count shows all of them.
    pub(super) fn place(&self, index: usize) -> Option<(&Domain, usize)> {
        let domains = &self.file.domains;
        let round: usize = domains.iter().map(|domain| domain.share).sum();
        let (rounds, position) = (index.checked_div(round)?, index % round);
        // Like a gear: at each position the domain that lags most behind its share takes its turn.
        let mut taken = vec![0_usize; domains.len()];
        for step in 0..=position {
            let lag = |at: usize| {
                let due = ((step + 1) * domains[at].share) as i64;
                due - (taken[at] * round) as i64
            };
            let next = (0..domains.len()).rev().max_by_key(|&at| lag(at))?;
            taken[next] += 1;
            if step == position {
                let domain = &domains[next];
                return Some((domain, rounds * domain.share + taken[next]));
            }
        }
        None
    }

    /// More than a quarter falls into the last day, the rest thins out over a month, and nights are quiet.
    pub(super) fn decide_time(&self, index: usize) -> OffsetDateTime {
        let mut random = Random::keyed(self.file.seed, index as u64, "decide_time");
        if random.chance(0.28) {
            return self.before(random.between(0.0, 1.0));
        }
        let mut time = self.before(1.0 + 29.0 * random.unit().powf(1.4));
        for _ in 0..3 {
            let busy = match time.hour() {
                0..=5 => 0.2,
                6..=8 | 21..=23 => 0.6,
                _ => 1.0,
            };
            if random.chance(busy) {
                break;
            }
            time = self.before(1.0 + 29.0 * random.unit().powf(1.4));
        }
        time
    }

    fn before(&self, days: f64) -> OffsetDateTime {
        // Whole milliseconds: PostgreSQL keeps microseconds, and a rounded time would differ on a second run.
        self.anchor - Duration::milliseconds((days * 86_400_000.0) as i64)
    }
}
