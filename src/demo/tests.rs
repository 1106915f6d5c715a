//! Holds every expanded case against the limits of the protocol.

use super::*;
use crate::rpc::json_object::{Object, to_json};
use prost_types::value::Kind;
use std::collections::{BTreeMap, BTreeSet};
use time::Duration;

const COUNT: usize = 2_400;

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap()
}

fn expand(count: usize) -> Vec<Case> {
    let cases = Cases::load(now()).unwrap();
    (0..count).map(|index| cases.case(index).unwrap()).collect()
}

/// As text: the maps of the messages have no order of their own.
fn canonical(message: &Object) -> String {
    String::from_utf8(to_json(message).unwrap().text().to_vec()).unwrap()
}

#[test]
fn expansion_is_deterministic() {
    assert_eq!(expand(600), expand(600));
    // A case does not depend on how many others there are, nor within the hour on when.
    let later = Cases::load(now() + Duration::minutes(9)).unwrap();
    assert_eq!(expand(3)[2], later.case(2).unwrap());
    assert_eq!(Cases::load(now()).unwrap().key(), later.key());
}

#[test]
fn ids_and_inputs_are_distinct_and_every_scenario_comes_up() {
    let cases = expand(COUNT);
    let ids: BTreeSet<_> = cases.iter().map(|case| &case.id).collect();
    assert_eq!(ids.len(), COUNT);
    assert!(ids.contains(&"demo-moderation-0001".to_string()));
    let inputs: BTreeSet<_> =
        cases.iter().map(|case| canonical(case.decision.input_data.as_ref().unwrap())).collect();
    assert_eq!(inputs.len(), COUNT);
    let scenarios: BTreeSet<_> = cases.iter().map(|case| &case.scenario).collect();
    assert!(scenarios.len() >= 40, "{}", scenarios.len());
    let subjects: BTreeSet<_> = cases.iter().map(|case| &case.decision.subject_id).collect();
    assert!((300..2_000).contains(&subjects.len()), "{}", subjects.len());
}

#[test]
fn shares_of_the_domains_are_as_written() {
    let cases = Cases::load(now()).unwrap();
    let mut counts = BTreeMap::new();
    for index in 0..40 {
        let (domain, number) = cases.place(index).unwrap();
        let count = counts.entry(&domain.name).or_insert(0);
        *count += 1;
        assert_eq!(*count, number);
    }
    for domain in &cases.file.domains {
        assert_eq!(counts[&domain.name], 2 * domain.share);
    }
    // The first four already show more than one domain.
    let first: BTreeSet<_> = (0..5).map(|index| &cases.place(index).unwrap().0.name).collect();
    assert!(first.len() >= 3);
}

fn is_id(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._~:@/+=-".contains(&byte);
    (1..=255).contains(&text.len())
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text.bytes().all(allowed)
}

fn is_verdict(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.as_bytes()[0].is_ascii_uppercase()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

/// Sentences that came out of templates: whole, and without a trace of the template.
fn is_sensible(text: &str) -> bool {
    let end = text.chars().last().unwrap_or(' ');
    text.len() > 12
        && text.chars().next().is_some_and(|first| first.is_uppercase() || !first.is_alphabetic())
        && ".?!\"".contains(end)
        && !text.contains(['{', '}', '|', '\0'])
        && !text.contains("  ")
        && !text.contains("..")
        && !text.as_bytes().windows(3).any(|at| at.starts_with(b". ") && at[2].is_ascii_lowercase())
}

#[test]
fn every_decision_keeps_the_limits_of_the_protocol() {
    let known = Cases::load(now()).unwrap();
    let rules: BTreeSet<String> = known.rules().into_iter().map(|rule| rule.id).collect();
    let oldest = known.anchor.unix_timestamp() - 30 * 86_400;
    for Case { id, decision, overruled, .. } in expand(COUNT) {
        assert!(is_id(&id) && id == decision.id, "{id}");
        assert!(is_verdict(&decision.final_verdict), "{id}");
        assert!(is_sensible(&decision.reason), "{id}: {}", decision.reason);
        let unit = 0.0..=1.0;
        assert!(unit.contains(&decision.avg_confidence.unwrap()), "{id}");
        assert!(unit.contains(&decision.ambiguity.unwrap()), "{id}");
        assert!((2..=64).contains(&decision.verdict_scores.len()), "{id}");
        assert!(decision.verdict_scores.keys().all(|verdict| is_verdict(verdict)), "{id}");
        assert!(decision.verdict_scores.values().all(|score| unit.contains(score)), "{id}");
        let best = decision.verdict_scores.iter().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
        assert_eq!(best.0, &decision.final_verdict, "{id}");

        assert!((3..=5).contains(&decision.critic_outputs.len()), "{id}");
        let (mut sum, mut weights) = (0.0, 0.0);
        for output in &decision.critic_outputs {
            assert!((1..=255).contains(&output.critic.len()) && is_verdict(&output.verdict));
            assert!(decision.verdict_scores.contains_key(&output.verdict), "{id}");
            assert!(unit.contains(&output.confidence), "{id}");
            assert!(is_sensible(&output.justification), "{id}: {}", output.justification);
            assert!(["", "override", "veto"].contains(&output.priority.as_str()), "{id}");
            assert!((1..=100).contains(&output.evidence_sources.len()), "{id}");
            for source in &output.evidence_sources {
                assert!((1..=63).contains(&source.r#type.len()), "{id}");
                assert!((1..=1024).contains(&source.reference.len()), "{id}");
                assert!(unit.contains(&source.relevance.unwrap()), "{id}");
            }
            let weight = output.weight.unwrap();
            assert!(weight.is_finite() && weight > 0.0, "{id}");
            sum += weight * output.confidence;
            weights += weight;
        }
        assert!((decision.avg_confidence.unwrap() - sum / weights).abs() < 1e-9, "{id}");

        assert!((1..=100).contains(&decision.policy_rules.len()), "{id}");
        assert!(decision.policy_rules.iter().all(|rule| rules.contains(&rule.id)), "{id}");
        assert!((5..=64).contains(&decision.labels.len()), "{id}");
        for (key, value) in &decision.labels {
            assert!((1..=63).contains(&key.len()) && value.len() <= 255, "{id}");
        }
        for key in ["env", "domain", "region", "channel"] {
            assert!(decision.labels.contains_key(key), "{id} has no label {key}");
        }
        assert!(!decision.model_version.is_empty() && decision.model_version.len() <= 255);
        assert_eq!(decision.trace_id.len(), 32);
        assert!((1..=63).contains(&decision.retention_class.len()), "{id}");
        assert!((1..=255).contains(&decision.subject_id.len()), "{id}");
        let decided = decision.decide_time.unwrap();
        assert!((oldest..=known.anchor.unix_timestamp()).contains(&decided.seconds), "{id}");
        assert_eq!(decided.nanos % 1_000_000, 0, "{id}");
        let taken = decision.processing_time.unwrap();
        assert!(taken.seconds >= 0 && taken.nanos >= 0, "{id}");
        let input = canonical(decision.input_data.as_ref().unwrap());
        let metadata = canonical(decision.metadata.as_ref().unwrap());
        for name in ["text", "claim", "description", "caption", "title", "bio"] {
            let fields = decision.input_data.as_ref().unwrap().fields();
            let Some(Kind::StringValue(text)) = fields.get(name).and_then(|v| v.kind.clone())
            else {
                continue;
            };
            assert!(!text.contains(['{', '}', '|']) && !text.contains("  "), "{id}: {text}");
        }
        for json in [input, metadata] {
            assert!(json.len() < 8_000 && !json.contains("NaN"), "{id}");
            // A placeholder that nothing filled would read {name}.
            assert!(!json.contains("\"{") && !json.contains("|n}"), "{id}: {json}");
        }
        assert!(decision.state == 0 && decision.case_hash.is_empty() && decision.meta.is_none());

        let Some((override_id, overruling)) = overruled else { continue };
        assert!(is_id(&override_id));
        assert_eq!(overruling.original_outcome, decision.final_verdict);
        assert_ne!(overruling.proposed_outcome, decision.final_verdict);
        assert!(is_verdict(&overruling.proposed_outcome));
        assert!((10..=10_000).contains(&overruling.justification.chars().count()));
        assert!(is_sensible(&overruling.justification), "{}", overruling.justification);
        assert!((1..=63).contains(&overruling.reason_category.len()));
        assert!((1..=255).contains(&overruling.reviewer_id.len()));
        assert!((0..=10).contains(&overruling.priority));
    }
}

/// What is drawn rarely is written as carefully: every text of every critic and outcome names known variables.
#[test]
fn every_text_of_every_outcome_can_be_filled() {
    let cases = Cases::load(now()).unwrap();
    for domain in &cases.file.domains {
        assert!(domain.rules.len() >= 12, "{}", domain.name);
        for scenario in &domain.scenarios {
            for rule in &scenario.rules {
                assert!(
                    domain.rules.iter().any(|known| known.id == *rule && known.active),
                    "{rule}"
                );
            }
            for critic in &scenario.critics {
                assert!(domain.critics.iter().any(|known| known.name == *critic), "{critic}");
            }
            for overruling in &scenario.overrides {
                let place = format!("{} {}", scenario.name, overruling.from);
                assert!(scenario.outcomes.iter().any(|o| o.verdict == overruling.from), "{place}");
                assert!(domain.confidence.contains_key(&overruling.to), "{place}");
                assert_ne!(overruling.from, overruling.to, "{place}");
            }
            for outcome in &scenario.outcomes {
                let layers = vec![&outcome.vars, &scenario.vars, &domain.vars, &cases.file.vars];
                let scope = template::Scope::new(1, 1, now(), layers)
                    .given("scenario", "x")
                    .given("subject", "x");
                for reason in &outcome.reason {
                    scope.text(reason).unwrap_or_else(|error| panic!("{}: {error}", scenario.name));
                }
                for critic in &domain.critics {
                    assert_eq!(critic.says.len(), domain.confidence.len(), "{}", critic.name);
                    for says in critic.says.values().flatten() {
                        scope
                            .text(says)
                            .unwrap_or_else(|error| panic!("{}: {error}", scenario.name));
                    }
                }
            }
        }
    }
}

#[test]
fn the_spread_is_that_of_a_live_system() {
    let cases = expand(COUNT);
    let anchor = Cases::load(now()).unwrap().anchor.unix_timestamp();
    let day =
        cases.iter().filter(|case| case.decision.decide_time.unwrap().seconds > anchor - 86_400);
    let day = day.count() as f64 / COUNT as f64;
    assert!((0.22..0.34).contains(&day), "{day} in the last day");
    let overruled = cases.iter().filter(|case| case.overruled.is_some()).count();
    let overruled = overruled as f64 / COUNT as f64;
    assert!((0.02..0.04).contains(&overruled), "{overruled} overruled");
    let ambiguous = cases.iter().filter(|case| case.decision.ambiguity.unwrap() > 0.6).count();
    assert!((COUNT / 20..COUNT / 2).contains(&ambiguous), "{ambiguous} ambiguous");
}

#[test]
fn work_covers_every_case_once() {
    for count in [1, 19, 20, 53, 2_000] {
        let mut indices: Vec<usize> = work(count).concat();
        indices.sort_unstable();
        assert_eq!(indices, (0..count).collect::<Vec<_>>());
        assert!(work(count).iter().all(|list| (1..=BATCH).contains(&list.len())));
    }
}

fn options(address: &str, count: usize) -> Options {
    let token = Some("cbk_secret".into());
    Options { address: address.into(), token, count, ..Options::default() }
}

#[tokio::test]
async fn an_address_without_a_server_is_one_clear_sentence() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = record(&options(&address, 1), now()).await.unwrap_err().to_string();
    assert!(
        error.contains(&format!("http://{address}")) && error.contains("`make run`"),
        "{error}"
    );
    for address in ["", "not an address", "http://"] {
        let error = record(&options(address, 1), now()).await.unwrap_err();
        assert!(matches!(error, DemoError::Address { .. }), "{error}");
    }
    let error = record(&options(&address, 0), now()).await.unwrap_err();
    assert!(matches!(error, DemoError::Options(_)));
}
