//! Statistics: F32, the numbers against a count by hand.

use crate::help::*;
use crate::world::{World, create, decision, wrong_fields};
use casebook::pb;
use pb::get_decision_statistics_response::Group;
use std::collections::BTreeMap;

const DAY: i64 = 24 * 60 * 60;
/// 2026-03-01T00:00:00Z
const MARCH: i64 = 1_772_323_200;

struct Known {
    verdict: &'static str,
    confidence: Option<f64>,
    model: &'static str,
    team: Option<&'static str>,
    seconds: i64,
    overridden: bool,
}

fn known() -> Vec<Known> {
    (0..40)
        .map(|n| Known {
            verdict: ["ALLOW", "DENY", "REVIEW"][n % 3],
            confidence: (n % 5 != 0).then_some(n as f64 / 64.0),
            model: ["m-1", "m-2"][n % 2],
            team: [Some("a"), None, Some("b"), Some("a")][n % 4],
            // The last second of one day, the first of the next.
            seconds: MARCH + (n as i64 % 3) * DAY - (n as i64 % 2),
            overridden: n % 7 == 0,
        })
        .collect()
}

async fn record(world: &World) {
    let mut client = world.decisions();
    for (n, known) in known().into_iter().enumerate() {
        let id = format!("d-{n}");
        let given = pb::Decision {
            avg_confidence: known.confidence,
            model_version: known.model.into(),
            labels: known
                .team
                .map(|team| ("team".to_owned(), team.to_owned()))
                .into_iter()
                .collect(),
            decide_time: Some(prost_types::Timestamp { seconds: known.seconds, nanos: 0 }),
            ..decision(known.verdict, 0.5)
        };
        ok!(client.create_decision(create(&id, given)));
        if known.overridden {
            ok!(client.create_override(overrule("", &id, "OTHER")));
        }
    }
    // A deleted one does not count.
    ok!(client.create_decision(create("gone", decision("ALLOW", 1.0))));
    ok!(client.delete_decision(delete("gone")));
}

/// Count, confidence and override rate, by hand.
fn count(of: &[&Known]) -> (i64, Option<f64>, f64) {
    let confident: Vec<f64> = of.iter().filter_map(|known| known.confidence).collect();
    let mean =
        (!confident.is_empty()).then(|| confident.iter().sum::<f64>() / confident.len() as f64);
    let overridden = of.iter().filter(|known| known.overridden).count() as f64;
    (of.len() as i64, mean, overridden / (of.len().max(1)) as f64)
}

fn near(group: &Group, expected: (i64, Option<f64>, f64)) {
    let (n, mean, rate) = expected;
    assert_eq!(group.count, n, "{group:?}");
    assert_eq!(group.avg_confidence.is_some(), mean.is_some(), "{group:?}");
    let off = (group.avg_confidence.unwrap_or(0.0) - mean.unwrap_or(0.0)).abs();
    assert!(off < 1e-9 && (group.override_rate - rate).abs() < 1e-9, "{group:?} {expected:?}");
}

type Keys = BTreeMap<String, String>;

fn key_of(known: &Known, group_by: &[&str]) -> Keys {
    let value = |name: &str| match name {
        "final_verdict" => known.verdict.to_owned(),
        "state" => (if known.overridden { "OVERRIDDEN" } else { "FINAL" }).to_owned(),
        "model_version" => known.model.to_owned(),
        "retention_class" => String::new(),
        "labels.team" => known.team.unwrap_or_default().to_owned(),
        "day" | "hour" => {
            let day = known.seconds.div_euclid(DAY) - MARCH / DAY;
            let hour = known.seconds.rem_euclid(DAY) / 3600;
            let date =
                if day < 0 { "2026-02-28".to_owned() } else { format!("2026-03-{:02}", day + 1) };
            if name == "day" { date } else { format!("{date}T{hour:02}") }
        }
        other => panic!("{other}"),
    };
    group_by.iter().map(|name| ((*name).to_owned(), value(name))).collect()
}

#[tokio::test]
async fn the_numbers_are_those_of_a_count_by_hand() {
    let world = World::new().await;
    record(&world).await;
    let all = known();
    let mut client = world.decisions();
    for (group_by, text, wanted) in [
        (&[][..], "", (|_| true) as fn(&Known) -> bool),
        (&["final_verdict"], "", |_| true),
        (&["state"], "", |_| true),
        (&["model_version", "final_verdict"], "", |_| true),
        (&["retention_class", "labels.team", "state"], "", |_| true),
        (&["day"], "", |_| true),
        (&["hour", "final_verdict"], "", |_| true),
        (&["labels.team"], "final_verdict = \"DENY\" AND avg_confidence < 0.3", |known| {
            known.verdict == "DENY" && known.confidence.is_some_and(|c| c < 0.3)
        }),
        (&["final_verdict"], "final_verdict = NONE", |_| false),
    ] {
        let request = pb::GetDecisionStatisticsRequest {
            r#where: expression(text),
            group_by: group_by.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        };
        let answer = ok!(client.get_decision_statistics(request));
        let selected: Vec<&Known> = all.iter().filter(|known| wanted(known)).collect();
        near(answer.total.as_ref().unwrap(), count(&selected));
        let mut groups: BTreeMap<Keys, Vec<&Known>> = BTreeMap::new();
        if !group_by.is_empty() {
            for known in &selected {
                groups.entry(key_of(known, group_by)).or_default().push(known);
            }
        }
        assert_eq!(answer.groups.len(), groups.len(), "{group_by:?} {:?}", answer.groups);
        for group in &answer.groups {
            let key: Keys = group.key.clone().into_iter().collect();
            near(group, count(groups.get(&key).unwrap_or_else(|| panic!("{key:?}"))));
        }
        assert!(answer.groups.windows(2).all(|pair| pair[0].count >= pair[1].count));
        assert!(!answer.truncated);
        assert!(answer.read_at.is_some());
    }
    let window = pb::TimeWindow {
        start_time: Some(prost_types::Timestamp { seconds: MARCH, nanos: 0 }),
        end_time: Some(prost_types::Timestamp { seconds: MARCH + DAY, nanos: 0 }),
        newer_than: None,
    };
    let request = pb::GetDecisionStatisticsRequest { window: Some(window), ..Default::default() };
    let answer = ok!(client.get_decision_statistics(request));
    let inside: Vec<&Known> =
        all.iter().filter(|known| (MARCH..MARCH + DAY).contains(&known.seconds)).collect();
    near(&answer.total.unwrap(), count(&inside));
    world.close().await;
}

#[tokio::test]
async fn groups_are_1_to_3_known_ones_and_at_most_a_thousand() {
    let world = World::new().await;
    let mut client = world.decisions();
    for (group_by, field, reason) in [
        (&["nope"][..], "group_by[0]", "FIELD_INVALID"),
        (&["state", "labels."], "group_by[1]", "FIELD_INVALID"),
        (&["metadata.k"], "group_by[0]", "FIELD_INVALID"),
        (&["day", "day"], "group_by[1]", "DUPLICATE_IN_BATCH"),
        (&["day", "hour", "state", "final_verdict"], "group_by", "FIELD_INVALID"),
    ] {
        let request = pb::GetDecisionStatisticsRequest {
            group_by: group_by.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        };
        let status = fails!(client.get_decision_statistics(request), InvalidArgument, reason);
        assert_eq!(wrong_fields(&status), [field]);
    }
    for batch in 0..2 {
        let requests = (0..501)
            .map(|n| {
                let given = pb::Decision {
                    labels: labels(&[("k", &format!("{batch}-{n}"))]),
                    ..decision("ALLOW", 0.5)
                };
                create("", given)
            })
            .collect();
        let batch = pb::BatchCreateDecisionsRequest { requests, options: None };
        ok!(client.batch_create_decisions(batch));
    }
    let request = pb::GetDecisionStatisticsRequest {
        group_by: vec!["labels.k".into()],
        ..Default::default()
    };
    let answer = ok!(client.get_decision_statistics(request));
    assert_eq!((answer.groups.len(), answer.truncated), (1000, true));
    assert_eq!(answer.total.unwrap().count, 1002);
    world.close().await;
}
