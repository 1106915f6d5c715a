//! Listing through the client: F31, F135 to F137, C11, N3, N10.

use crate::help::*;
use crate::world::{World, create, decision, object};
use casebook::pb;
use pb::field_condition::Op;
use pb::filter::Expr;
use pb::value::Kind;
use std::time::{Duration, SystemTime};

fn listed(page: pb::PageRequest) -> pb::ListDecisionsRequest {
    pb::ListDecisionsRequest { page: Some(page), ..Default::default() }
}

/// All pages of a listing, with what happens between two of them.
async fn all(
    world: &World,
    request: pb::ListDecisionsRequest,
    mut between: impl AsyncFnMut(usize),
) -> (Vec<pb::Decision>, Vec<pb::PageInfo>) {
    let mut client = world.decisions();
    let (mut found, mut infos) = (Vec::new(), Vec::new());
    let mut request = request;
    loop {
        let answer = ok!(client.list_decisions(request.clone()));
        let info = answer.page.unwrap();
        found.extend(answer.decisions);
        let page = request.page.get_or_insert_default();
        page.page_token = info.next_page_token.clone();
        page.skip = 0;
        infos.push(info);
        if request.page.as_ref().unwrap().page_token.is_empty() {
            return (found, infos);
        }
        between(infos.len()).await;
    }
}

fn ids(decisions: &[pb::Decision]) -> Vec<String> {
    decisions.iter().map(|d| d.id.clone()).collect()
}

async fn record(world: &World, n: usize) {
    let requests = (0..n)
        .map(|i| {
            let given = pb::Decision {
                // Many are alike, so that the order has ties; some have none.
                avg_confidence: (i % 4 != 0).then_some((i % 5) as f64 / 4.0),
                labels: labels(&[("parity", ["even", "odd"][i % 2]), ("a.b", "x")]),
                metadata: Some(object(&[("n", &i.to_string())])),
                model_version: format!("m_{}%", i % 3),
                ..decision(["ALLOW", "DENY", "REVIEW"][i % 3], 0.5)
            };
            create(&format!("d-{i:03}"), given)
        })
        .collect();
    let batch = pb::BatchCreateDecisionsRequest { requests, options: None };
    ok!(world.decisions().batch_create_decisions(batch));
}

#[tokio::test]
async fn paging_to_the_end_gives_every_row_once_in_order() {
    let world = World::new().await;
    record(&world, 60).await;
    let mut expected: Vec<String> = (0..60).map(|i| format!("d-{i:03}")).collect();
    for order_by in ["id", "avg_confidence, id desc", "avg_confidence desc", "final_verdict", ""] {
        for page_size in [1, 7, 59, 60, 61] {
            if page_size == 1 && order_by != "avg_confidence desc" {
                continue;
            }
            let page =
                pb::PageRequest { page_size, order_by: order_by.into(), ..Default::default() };
            let (found, infos) = all(&world, listed(page), async |_| {}).await;
            assert_eq!(infos.len(), 60usize.div_ceil(page_size as usize));
            let mut ids = ids(&found);
            if order_by == "id" {
                assert_eq!(ids, expected);
            }
            if order_by.starts_with("avg_confidence") {
                let values: Vec<f64> = found.iter().filter_map(|d| d.avg_confidence).collect();
                let desc = order_by.ends_with("avg_confidence desc");
                assert!(values.windows(2).all(|w| if desc { w[0] >= w[1] } else { w[0] <= w[1] }));
                // Those without one come last either way.
                assert!(found[values.len()..].iter().all(|d| d.avg_confidence.is_none()));
            }
            ids.sort();
            assert_eq!(ids, expected, "{order_by} {page_size}");
        }
    }
    expected.reverse();
    let page = pb::PageRequest { page_size: 9, order_by: "id desc".into(), ..Default::default() };
    assert_eq!(ids(&all(&world, listed(page), async |_| {}).await.0), expected);
    world.close().await;
}

#[tokio::test]
async fn every_page_is_the_snapshot_of_the_first() {
    let world = World::new().await;
    record(&world, 40).await;
    let page = pb::PageRequest {
        page_size: 6,
        order_by: "retention_class, id".into(),
        ..Default::default()
    };
    let request = listed(page);
    let before = all(&world, request.clone(), async |_| {}).await.0;
    assert_eq!(before.len(), 40);
    // Between two pages: one is deleted, one moved to the front, one to the end, and one is new.
    let (found, infos) = all(&world, request.clone(), async |n: usize| {
        let mut client = world.decisions();
        ok!(client.delete_decision(delete(&format!("d-{:03}", 39 - n))));
        let class = pb::Decision { retention_class: "z".into(), ..Default::default() };
        ok!(client.update_decision(update(
            &format!("d-{:03}", 20 + n),
            &["retention_class"],
            class
        )));
        let class = pb::Decision { retention_class: "0".into(), ..Default::default() };
        ok!(client.update_decision(update(
            &format!("d-{:03}", 10 + n),
            &["retention_class"],
            class
        )));
        ok!(client.create_decision(create(&format!("d-{n:03}-new"), decision("ALLOW", 0.5))));
        // Deleted and made anew under the same id.
        ok!(client.delete_decision(delete(&format!("d-{:03}", 30 - n))));
        ok!(client.create_decision(create(&format!("d-{:03}", 30 - n), decision("DENY", 0.25))));
    })
    .await;
    assert_eq!(found, before);
    assert!(infos.windows(2).all(|pair| pair[0].read_at == pair[1].read_at));
    // A listing at that revision, begun only now, is the same.
    let requirement =
        pb::consistency::Requirement::AtExactSnapshot(infos[0].read_at.clone().unwrap());
    let then = pb::ListDecisionsRequest {
        consistency: Some(pb::Consistency { requirement: Some(requirement) }),
        ..request.clone()
    };
    assert_eq!(all(&world, then, async |_| {}).await.0, before);
    let now = all(&world, request, async |_| {}).await.0;
    assert_eq!(now.len(), 40);
    assert_ne!(now, before);
    world.close().await;
}

fn text(value: &str) -> pb::Value {
    pb::Value { kind: Some(Kind::StringValue(value.into())) }
}

fn number(value: f64) -> pb::Value {
    pb::Value { kind: Some(Kind::DoubleValue(value)) }
}

fn on(path: &str, op: Op) -> pb::Filter {
    pb::Filter { expr: Some(Expr::Field(pb::FieldCondition { path: path.into(), op: Some(op) })) }
}

fn all_of(filters: Vec<pb::Filter>) -> pb::Filter {
    pb::Filter { expr: Some(Expr::AllOf(pb::FilterList { filters })) }
}

fn any_of(filters: Vec<pb::Filter>) -> pb::Filter {
    pb::Filter { expr: Some(Expr::AnyOf(pb::FilterList { filters })) }
}

fn none_of(filter: pb::Filter) -> pb::Filter {
    pb::Filter { expr: Some(Expr::NoneOf(Box::new(filter))) }
}

fn below(value: pb::Value) -> Op {
    Op::Range(pb::Range { lt: Some(value), ..Default::default() })
}

#[tokio::test]
async fn an_expression_and_its_tree_select_the_same() {
    let world = World::new().await;
    record(&world, 60).await;
    let equals = |value| Op::Equals(text(value));
    let everything = all(&world, listed(pb::PageRequest::default()), async |_| {}).await.0;
    type Test = fn(&pb::Decision) -> bool;
    let cases: Vec<(&str, pb::Filter, Test)> = vec![
        (
            "final_verdict = \"DENY\" AND avg_confidence < 0.6",
            all_of(vec![
                on("final_verdict", equals("DENY")),
                on("avg_confidence", below(number(0.6))),
            ]),
            |d| d.final_verdict == "DENY" && d.avg_confidence.is_some_and(|c| c < 0.6),
        ),
        ("NOT avg_confidence < 0.6", none_of(on("avg_confidence", below(number(0.6)))), |d| {
            d.avg_confidence.is_none_or(|c| c >= 0.6)
        }),
        (
            "labels.parity = odd (final_verdict = ALLOW OR final_verdict = REVIEW)",
            all_of(vec![
                on("labels.parity", equals("odd")),
                any_of(vec![
                    on("final_verdict", equals("ALLOW")),
                    on("final_verdict", equals("REVIEW")),
                ]),
            ]),
            |d| d.labels["parity"] == "odd" && d.final_verdict != "DENY",
        ),
        (
            "labels.\"a.b\" = x metadata.n = \"7\"",
            all_of(vec![on("labels.a.b", equals("x")), on("metadata.n", equals("7"))]),
            |d| d.id == "d-007",
        ),
        // % and _ are only letters.
        ("model_version = \"m_*\"", on("model_version", Op::Prefix("m_".into())), |_| true),
        ("model_version = \"m%*\"", on("model_version", Op::Prefix("m%".into())), |_| false),
        ("model_version = \"m_0%\"", on("model_version", equals("m_0%")), |d| {
            d.model_version == "m_0%"
        }),
        ("avg_confidence:*", on("avg_confidence", Op::Exists(true)), |d| {
            d.avg_confidence.is_some()
        }),
        ("final_verdict != DENY", on("final_verdict", Op::NotEquals(text("DENY"))), |d| {
            d.final_verdict != "DENY"
        }),
        (
            "id >= d-010 id < \"d-012\"",
            on(
                "id",
                Op::Range(pb::Range {
                    gte: Some(text("d-010")),
                    lt: Some(text("d-012")),
                    ..Default::default()
                }),
            ),
            |d| ["d-010", "d-011"].contains(&d.id.as_str()),
        ),
        (
            "id = d-001 OR id = d-002",
            on(
                "id",
                Op::In(pb::ValueList { values: vec![text("d-001"), text("d-002"), text("none")] }),
            ),
            |d| ["d-001", "d-002"].contains(&d.id.as_str()),
        ),
        ("state = FINAL", on("state", equals("DECISION_STATE_FINAL")), |_| true),
        ("id = \"' OR TRUE --\"", on("id", equals("' OR TRUE --")), |_| false),
    ];
    for (expression_text, filter, wanted) in cases {
        let mut expected: Vec<_> =
            everything.iter().filter(|d| wanted(d)).map(|d| d.id.clone()).collect();
        // 50 is the default size of a page.
        let page =
            pb::PageRequest { page_size: 1000, include_total_size: true, ..Default::default() };
        let by = |selector| pb::ListDecisionsRequest { r#where: selector, ..listed(page.clone()) };
        let (one, info) = all(&world, by(expression(expression_text)), async |_| {}).await;
        let tree = Some(pb::Selector { filter: Some(filter), expression: String::new() });
        let (other, _) = all(&world, by(tree), async |_| {}).await;
        assert_eq!(one, other, "{expression_text}");
        assert_eq!(info[0].total_size, expected.len() as i64);
        let mut found = ids(&one);
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{expression_text}");
    }
    let both =
        pb::Selector { filter: Some(on("id", equals("d-001"))), expression: "id = d-001".into() };
    let both = pb::ListDecisionsRequest { r#where: Some(both), ..Default::default() };
    fails!(world.decisions().list_decisions(both), InvalidArgument, "FILTER_INVALID");
    world.close().await;
}

#[tokio::test]
async fn sizes_skips_and_totals_are_as_documented() {
    let world = World::new().await;
    record(&world, 1000).await;
    ok!(world.decisions().create_decision(create("d-last", decision("ALLOW", 0.5))));
    let mut client = world.decisions();
    let mut list = async |page_size, skip| {
        let page = pb::PageRequest {
            page_size,
            skip,
            order_by: "id".into(),
            include_total_size: true,
            ..Default::default()
        };
        let answer = ok!(client.list_decisions(listed(page)));
        let info = answer.page.unwrap();
        assert_eq!((info.total_size, info.total_size_is_estimate), (1001, false));
        (ids(&answer.decisions), !info.next_page_token.is_empty())
    };
    assert_eq!(list(0, 0).await.0.len(), 50);
    let (found, more) = list(5000, 0).await;
    assert_eq!((found.len(), more), (1000, true));
    assert_eq!(list(2, 998).await, (vec!["d-998".into(), "d-999".into()], true));
    assert_eq!(list(5, 999).await, (vec!["d-999".into(), "d-last".into()], false));
    assert_eq!(list(5, 10_000).await, (vec![], false));
    // Skipping happens once: the next page goes on where this one ended.
    let page =
        pb::PageRequest { page_size: 3, skip: 10, order_by: "id".into(), ..Default::default() };
    let (found, _) = all(&world, listed(page), async |_| {}).await;
    assert_eq!(found.len(), 991);
    assert_eq!(found[0].id, "d-010");
    // Without being asked for, a total is not counted.
    let plain = ok!(world.decisions().list_decisions(pb::ListDecisionsRequest::default()));
    assert_eq!(plain.page.unwrap().total_size, 0);
    world.close().await;
}

#[tokio::test]
async fn a_window_takes_its_start_and_leaves_its_end() {
    let world = World::new().await;
    let mut client = world.decisions();
    let hour = Duration::from_secs(3600);
    let now = SystemTime::now();
    for (id, age) in [("new", 0), ("young", 23), ("old", 25), ("older", 100)] {
        let given =
            pb::Decision { decide_time: Some((now - hour * age).into()), ..decision("ALLOW", 0.5) };
        ok!(client.create_decision(create(id, given)));
    }
    let span = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let mut list = async |window| {
        let request = pb::ListDecisionsRequest { window: Some(window), ..Default::default() };
        ids(&ok!(client.list_decisions(request)).decisions)
    };
    let newer = pb::TimeWindow { newer_than: span(24 * 3600), ..Default::default() };
    assert_eq!(list(newer).await, ["new", "young"]);
    let between = pb::TimeWindow {
        start_time: Some((now - hour * 100).into()),
        end_time: Some((now - hour * 23).into()),
        newer_than: None,
    };
    // decide_time is kept in microseconds, so the start is rounded down like it.
    assert_eq!(list(between).await, ["old", "older"]);
    for (window, field) in [
        (pb::TimeWindow { newer_than: span(0), ..Default::default() }, "window.newer_than"),
        (pb::TimeWindow { newer_than: span(-1), ..Default::default() }, "window.newer_than"),
        (
            pb::TimeWindow {
                start_time: Some(now.into()),
                newer_than: span(1),
                ..Default::default()
            },
            "window.newer_than",
        ),
        (
            pb::TimeWindow {
                start_time: Some(now.into()),
                end_time: Some(now.into()),
                newer_than: None,
            },
            "window.end_time",
        ),
    ] {
        let request = pb::ListDecisionsRequest { window: Some(window), ..Default::default() };
        let mut client = world.decisions();
        let status = fails!(client.list_decisions(request), InvalidArgument, "FIELD_INVALID");
        assert_eq!(crate::world::wrong_fields(&status), [field]);
    }
    world.close().await;
}

#[tokio::test]
async fn pages_about_a_decision_go_on_when_another_has_its_id() {
    let world = World::new().await;
    let mut client = world.decisions();
    ok!(client.create_decision(create("d", decision("DENY", 0.5))));
    let outputs = ["c-1", "c-2", "c-3"].map(|id| critic(id, "legal", "DENY", 0.5));
    ok!(client.add_critic_outputs(add("d", outputs.into())));
    for id in ["o-1", "o-2", "o-3"] {
        ok!(client.create_override(overrule(id, "d", "ALLOW")));
        let class = pb::Decision { retention_class: id.into(), ..Default::default() };
        ok!(client.update_decision(update("d", &["retention_class"], class)));
    }
    let (mut critics, mut overrides, mut versions) = (Vec::new(), Vec::new(), Vec::new());
    let [mut a, mut b, mut c] = [(); 3].map(|()| pb::PageInfo::default());
    for n in 0..3 {
        let next = |info: &pb::PageInfo, order_by: &str| {
            let (page_token, order_by) = (info.next_page_token.clone(), order_by.to_owned());
            Some(pb::PageRequest { page_size: 1, page_token, order_by, ..Default::default() })
        };
        let (decision_id, r#where) = ("d".to_owned(), None);
        let page = next(&a, "id");
        let call =
            pb::ListCriticOutputsRequest { decision_id, page, r#where, ..Default::default() };
        let found = ok!(client.list_critic_outputs(call));
        critics.extend(found.critic_outputs.into_iter().map(|output| output.id));
        a = found.page.unwrap();
        let (decision_id, r#where) = ("d".to_owned(), None);
        let page = next(&b, "id");
        let call = pb::ListOverridesRequest { decision_id, page, r#where, ..Default::default() };
        let found = ok!(client.list_overrides(call));
        overrides.extend(found.overrides.into_iter().map(|one| one.id));
        b = found.page.unwrap();
        let page = next(&c, "");
        let call = pb::ListDecisionRevisionsRequest { decision_id: "d".into(), page };
        let found = ok!(client.list_decision_revisions(call));
        let found_versions = found.revisions.into_iter().map(|one| one.decision.unwrap());
        versions.extend(found_versions.map(|one| one.meta.unwrap().version));
        c = found.page.unwrap();
        match n {
            0 => drop(ok!(client.delete_decision(delete("d")))),
            _ => drop(client.create_decision(create("d", decision("ALLOW", 0.5))).await),
        }
    }
    assert_eq!(critics, ["c-1", "c-2", "c-3"]);
    assert_eq!(overrides, ["o-1", "o-2", "o-3"]);
    assert_eq!(versions, [5, 4, 3]);
    // A listing that begins now is about the new one.
    let call = pb::ListOverridesRequest { decision_id: "d".into(), ..Default::default() };
    assert!(ok!(client.list_overrides(call)).overrides.is_empty());
    world.close().await;
}
