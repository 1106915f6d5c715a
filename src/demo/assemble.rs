//! Makes one decision out of its scenario: the facts drawn, the critics' votes and what follows from them.

use super::cases::{Case, Cases, Critic, Domain, Outcome, Scenario};
use super::random::Random;
use super::template::{CasesError, Scope, to_object};
use crate::pb;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use time::{Duration, OffsetDateTime};

type Result<T> = std::result::Result<T, CasesError>;

/// How often people overrule a decision of no ambiguity that can be overruled, and how much more often one that could
/// as well have gone the other way. Together they give about 3 % of all decisions.
const OVERRULED: f64 = 0.010;
const OVERRULED_AMBIGUOUS: f64 = 0.046;

/// One critic's part in a decision.
struct Vote<'a> {
    critic: &'a Critic,
    verdict: &'a str,
    confidence: f64,
}

impl Cases {
    /// Case `index`, counted from 0.
    pub fn case(&self, index: usize) -> Result<Case> {
        let missing = |what: &str| CasesError(format!("case {index} has no {what}"));
        let (domain, number) = self.place(index).ok_or_else(|| missing("domain"))?;
        let draw = |purpose: &str| Random::keyed(self.file.seed, index as u64, purpose);

        let scenario =
            draw("scenario").pick(&domain.scenarios).ok_or_else(|| missing("scenario"))?;
        let outcome = weighted(&mut draw("outcome"), scenario).ok_or_else(|| missing("outcome"))?;
        let decided = self.decide_time(index);
        let subject = self.subject(domain, &mut draw("subject"));
        let layers = vec![&outcome.vars, &scenario.vars, &domain.vars, &self.file.vars];
        let scope = Scope::new(self.file.seed, index as u64, decided, layers)
            .given("scenario", scenario.name.as_str())
            .given("subject", subject.as_str());

        let votes = vote(domain, scenario, outcome, &mut draw("votes"))?;
        let scores = scores(domain, scenario, outcome, &votes);
        let ambiguity = ambiguity(&scores);
        let id = format!("demo-{}-{number:04}", domain.name);
        let mut input = scope.table(&domain.input)?;
        input.extend(scope.table(&scenario.input)?);
        let mut metadata = scope.table(&domain.metadata)?;
        metadata.insert("demonstration".into(), json!({ "case": index, "seed": self.file.seed }));
        let mut labels: BTreeMap<String, String> = domain
            .labels
            .iter()
            .map(|(key, value)| Ok((key.clone(), scope.text(value)?)))
            .collect::<Result<_>>()?;
        labels.insert("domain".into(), domain.name.clone());
        labels.insert("scenario".into(), scenario.name.clone());

        let reason = draw("reason").pick(&outcome.reason).ok_or_else(|| missing("reason"))?.clone();
        let milliseconds = scope.whole("total_ms")?;
        let decision = pb::Decision {
            id: id.clone(),
            input_data: to_object(input),
            final_verdict: outcome.verdict.clone(),
            reason: scope.text(&reason)?,
            avg_confidence: Some(mean_confidence(&votes)),
            ambiguity: Some(ambiguity),
            verdict_scores: scores.into_iter().collect(),
            critic_outputs: outputs(&votes, &scope, &mut draw("outputs"), decided, milliseconds)?,
            policy_rules: scenario.rules.iter().map(|rule| rule_ref(rule)).collect(),
            model_version: self.model(domain, decided),
            trace_id: draw("trace").hex(32),
            decide_time: Some(timestamp(decided)),
            processing_time: Some(prost_types::Duration {
                seconds: milliseconds / 1_000,
                nanos: (milliseconds % 1_000) as i32 * 1_000_000,
            }),
            metadata: to_object(metadata),
            labels,
            retention_class: domain.retention_class.clone(),
            subject_id: subject,
            ..Default::default()
        };
        let overruled = overrule(domain, scenario, outcome, ambiguity, &scope, draw("override"))?
            .map(|overruling| (format!("{id}-override"), overruling));
        Ok(Case { id, scenario: scenario.name.clone(), decision, overruled })
    }

    /// Some people come up often and most of them once or twice.
    fn subject(&self, domain: &Domain, random: &mut Random) -> String {
        let number = (domain.subjects as f64 * random.unit().powf(1.7)) as u64;
        let pseudonym = Random::keyed(self.file.seed, number, &domain.name).hex(8);
        format!("{}-{pseudonym}", domain.subject)
    }

    /// The model in service at the time: the last of the list came 9 days ago, the one before it 21 days ago.
    fn model(&self, domain: &Domain, decided: OffsetDateTime) -> String {
        let age = (self.anchor - decided).whole_days();
        let back = usize::from(age >= 9) + usize::from(age >= 21);
        domain.models.iter().rev().nth(back).cloned().unwrap_or_default()
    }
}

fn weighted<'a>(random: &mut Random, scenario: &'a Scenario) -> Option<&'a Outcome> {
    let total = scenario.outcomes.iter().map(|outcome| outcome.weight).sum();
    let mut left = random.below(total);
    scenario.outcomes.iter().find(|outcome| match left.checked_sub(outcome.weight) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    })
}

/// The verdicts that critics of this outcome may give instead of the final one.
fn dissents<'a>(domain: &'a Domain, scenario: &'a Scenario, verdict: &str) -> &'a [String] {
    let chosen = scenario.dissent.get(verdict).or_else(|| domain.dissent.get(verdict));
    chosen.map_or(&[], Vec::as_slice)
}

/// Who votes, and for what: most for the final verdict, some not, and fewer where the case is clear.
fn vote<'a>(
    domain: &'a Domain,
    scenario: &'a Scenario,
    outcome: &'a Outcome,
    random: &mut Random,
) -> Result<Vec<Vote<'a>>> {
    let Some(&[low, high]) = domain.confidence.get(&outcome.verdict) else {
        return Err(CasesError(format!("no confidence for {}", outcome.verdict)));
    };
    let mut critics: Vec<&Critic> = domain
        .critics
        .iter()
        .filter(|critic| match scenario.critics.as_slice() {
            [] => !critic.optional,
            named => named.contains(&critic.name),
        })
        .collect();
    // Not every critic answers in time, but one that can decide alone always does.
    if critics.len() > 3 && random.chance(0.35) {
        let late = random.below(critics.len());
        if critics[late].priority.is_empty() {
            critics.remove(late);
        }
    }
    let others = dissents(domain, scenario, &outcome.verdict);
    let doubt = (1.0 - (low + high) / 2.0) * 1.1;
    let centre = random.between(low, high);
    let mut votes: Vec<Vote> = Vec::with_capacity(critics.len());
    for critic in critics {
        // A critic that vetoed a verdict would have changed it, so those in priority agree with what came out.
        let other = if critic.priority.is_empty() && random.chance(doubt) {
            random.pick(others)
        } else {
            None
        };
        let confidence = match other {
            Some(_) => centre - random.between(0.04, 0.22),
            None => centre + random.between(-0.06, 0.06),
        };
        votes.push(Vote {
            critic,
            verdict: other.unwrap_or(&outcome.verdict),
            confidence: round(confidence.clamp(0.31, 0.99), 2),
        });
    }
    // The verdict has to follow from the votes: dissenters come round until it does.
    while leader(&scores(domain, scenario, outcome, &votes)) != Some(outcome.verdict.as_str()) {
        match votes.iter_mut().find(|vote| vote.verdict != outcome.verdict) {
            Some(dissenter) => {
                dissenter.verdict = &outcome.verdict;
                dissenter.confidence = round(centre, 2);
            }
            None => break,
        }
    }
    Ok(votes)
}

/// The share of each verdict: a critic's confidence goes to its verdict and its doubt to the others.
fn scores(
    domain: &Domain,
    scenario: &Scenario,
    outcome: &Outcome,
    votes: &[Vote],
) -> BTreeMap<String, f64> {
    let mut verdicts = BTreeSet::from([outcome.verdict.as_str()]);
    verdicts.extend(dissents(domain, scenario, &outcome.verdict).iter().map(String::as_str));
    let total: f64 = votes.iter().map(|vote| vote.critic.weight).sum();
    let score = |verdict: &str| {
        let given = votes.iter().map(|vote| {
            let share = if vote.verdict == verdict {
                vote.confidence
            } else {
                (1.0 - vote.confidence) / (verdicts.len() - 1) as f64
            };
            share * vote.critic.weight
        });
        round(given.sum::<f64>() / total, 4)
    };
    verdicts.iter().map(|verdict| (verdict.to_string(), score(verdict))).collect()
}

fn leader(scores: &BTreeMap<String, f64>) -> Option<&str> {
    let best = scores.iter().max_by(|left, right| left.1.total_cmp(right.1));
    best.map(|(verdict, _)| verdict.as_str())
}

/// 0 where one verdict has it all, 1 where the best two are level.
fn ambiguity(scores: &BTreeMap<String, f64>) -> f64 {
    let mut ranked: Vec<f64> = scores.values().copied().collect();
    ranked.sort_by(|left, right| right.total_cmp(left));
    match ranked.as_slice() {
        [first, second, ..] => round((1.0 - (first - second)).clamp(0.0, 1.0), 4),
        _ => 0.0,
    }
}

/// Weighted, to ten digits: exact enough to compare, short enough to read.
fn mean_confidence(votes: &[Vote]) -> f64 {
    let total: f64 = votes.iter().map(|vote| vote.critic.weight).sum();
    let sum: f64 = votes.iter().map(|vote| vote.confidence * vote.critic.weight).sum();
    round(sum / total, 10)
}

fn outputs(
    votes: &[Vote],
    scope: &Scope,
    random: &mut Random,
    decided: OffsetDateTime,
    milliseconds: i64,
) -> Result<Vec<pb::CriticOutput>> {
    let mut outputs = Vec::with_capacity(votes.len());
    for Vote { critic, verdict, confidence } in votes {
        let says = critic.says.get(*verdict).and_then(|says| random.pick(says));
        let Some(says) = says else {
            return Err(CasesError(format!("{} has no words for {verdict}", critic.name)));
        };
        let mut sources = Vec::new();
        for source in critic.evidence.iter().take(1 + random.below(critic.evidence.len())) {
            sources.push(pb::EvidenceSource {
                r#type: source.kind.clone(),
                reference: scope.text(&source.reference)?,
                relevance: Some(round(random.between(0.42, 1.0), 2)),
            });
        }
        let latency = (milliseconds as f64 * random.between(0.2, 0.8)) as i64;
        let details = json!({ "latency_ms": latency, "attempts": 1 + random.below(20) / 19 });
        outputs.push(pb::CriticOutput {
            critic: critic.name.clone(),
            verdict: verdict.to_string(),
            confidence: *confidence,
            justification: scope.text(says)?,
            weight: Some(critic.weight),
            priority: critic.priority.clone(),
            config_version: critic.config.clone(),
            evaluate_time: Some(timestamp(
                decided - Duration::milliseconds(milliseconds - latency),
            )),
            evidence_sources: sources,
            details: details.as_object().cloned().and_then(to_object),
            ..Default::default()
        });
    }
    Ok(outputs)
}

fn overrule(
    domain: &Domain,
    scenario: &Scenario,
    outcome: &Outcome,
    ambiguity: f64,
    scope: &Scope,
    mut random: Random,
) -> Result<Option<pb::Override>> {
    let fitting: Vec<_> =
        scenario.overrides.iter().filter(|known| known.from == outcome.verdict).collect();
    let Some(known) = random.pick(&fitting) else { return Ok(None) };
    if !random.chance(OVERRULED + OVERRULED_AMBIGUOUS * ambiguity) {
        return Ok(None);
    }
    let why = random.pick(&known.why).cloned().unwrap_or_default();
    let priority = if known.urgent { 8 + random.below(3) } else { 1 + random.below(6) };
    let context = json!({
        "minutes_spent": 3 + random.below(42),
        "second_opinion": random.chance(0.3),
        "seen": ["decision", "critic_outputs", "input_data"],
    });
    Ok(Some(pb::Override {
        original_outcome: outcome.verdict.clone(),
        proposed_outcome: known.to.clone(),
        justification: scope.text(&why)?,
        reason_category: known.category.clone(),
        reviewer_id: format!("reviewer-{:02}", 1 + random.below(24)),
        reviewer_role: random.pick(&domain.reviewers).cloned().unwrap_or_default(),
        urgent: known.urgent,
        priority: priority as i32,
        stakeholder_input: random.pick(&domain.stakeholders).cloned().unwrap_or_default(),
        additional_context: context.as_object().cloned().and_then(to_object),
        ..Default::default()
    }))
}

/// The first version: the rule as it stood when the demonstration began.
fn rule_ref(id: &str) -> pb::ResourceRef {
    pb::ResourceRef { kind: pb::ResourceKind::PolicyRule.into(), id: id.into(), version: 1 }
}

fn timestamp(time: OffsetDateTime) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.unix_timestamp(), nanos: time.nanosecond() as i32 }
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}
