//! Overrides: F23, a person overrules a decision.

use crate::help::*;
use crate::world::{World, create, decision, get, object, wrong_fields};
use casebook::pb;

fn full() -> pb::CreateOverrideRequest {
    let mut request = overrule("o-1", "d", "ALLOW");
    request.r#override = Some(pb::Override {
        original_outcome: "DENY".into(),
        reason_category: "new-facts".into(),
        reviewer_name: "Ann".into(),
        reviewer_role: "senior".into(),
        reviewer_email: "ann@example.com".into(),
        urgent: true,
        priority: 10,
        expire_time: Some(prost_types::Timestamp { seconds: 1_900_000_000, nanos: 0 }),
        stakeholder_input: "They agree.".into(),
        supporting_documents: vec![reference(pb::ResourceKind::Decision, "dec-0", 0)],
        additional_context: Some(object(&[("k", "v")])),
        ..request.r#override.unwrap()
    });
    request
}

fn all() -> pb::ListOverridesRequest {
    pb::ListOverridesRequest { decision_id: "-".into(), ..Default::default() }
}

#[tokio::test]
async fn an_override_comes_back_as_given_and_marks_its_decision() {
    let world = World::new().await;
    let mut client = world.decisions();
    let made = ok!(client.create_decision(create("d", decision("DENY", 0.5)))).decision.unwrap();
    let request = pb::CreateOverrideRequest { decision_etag: made.etag.clone(), ..full() };
    let answer = ok!(client.create_override(request));
    assert_eq!(answer.receipt.unwrap().audit_seq, 3);
    let row = answer.r#override.unwrap();
    let expected = pb::Override {
        id: "o-1".into(),
        etag: row.etag.clone(),
        meta: row.meta.clone(),
        decision_id: "d".into(),
        ..full().r#override.unwrap()
    };
    assert_eq!(row, expected);
    let marked = answer.decision.unwrap();
    assert_eq!(
        (marked.state(), marked.final_verdict.as_str()),
        (pb::DecisionState::Overridden, "DENY")
    );
    assert_eq!(marked.meta.as_ref().unwrap().version, 2);
    assert_eq!(ok!(client.get_decision(get("d"))).decision, Some(marked.clone()));
    assert_eq!(ok!(client.list_overrides(all())).overrides, [row]);
    let log = entries(&world.anonymous(), 2).await;
    let actions: Vec<_> = log.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["OVERRIDE", "CREATE"]);

    // Another one is recorded, too; the decision stays as it is.
    let second = ok!(client.create_override(overrule("o-2", "d", "REVIEW")));
    assert_eq!(second.decision, Some(marked));
    assert_eq!(second.r#override.unwrap().original_outcome, "DENY");
    fails!(client.create_override(overrule("o-2", "d", "REVIEW")), AlreadyExists, "EXISTS");
    world.close().await;
}

#[tokio::test]
async fn an_override_that_fails_leaves_the_decision_alone() {
    let world = World::new().await;
    let mut client = world.decisions();
    ok!(client.create_decision(create("d", decision("DENY", 0.5))));
    ok!(client.create_decision(create("e", decision("DENY", 0.5))));
    ok!(client.create_override(overrule("o", "e", "ALLOW")));
    let before = head(&world.anonymous()).await;
    fails!(client.create_override(overrule("o", "d", "ALLOW")), AlreadyExists, "EXISTS");
    fails!(client.create_override(overrule("x", "none", "ALLOW")), NotFound, "NOT_FOUND");
    let stale = pb::CreateOverrideRequest { decision_etag: "\"0-9\"".into(), ..full() };
    fails!(client.create_override(stale), Aborted, "ETAG_MISMATCH");
    let with = |change: fn(&mut pb::Override)| {
        let mut request = full();
        change(request.r#override.as_mut().unwrap());
        request
    };
    for (request, field) in [
        (with(|o| o.original_outcome = "ALLOW".into()), "override.original_outcome"),
        (with(|o| o.original_outcome = "no".into()), "override.original_outcome"),
        (with(|o| o.proposed_outcome = "DENY".into()), "override.proposed_outcome"),
        (with(|o| o.proposed_outcome = "".into()), "override.proposed_outcome"),
        (with(|o| o.justification = "x".repeat(9)), "override.justification"),
        (with(|o| o.justification = "é".repeat(10_001)), "override.justification"),
        (with(|o| o.priority = 11), "override.priority"),
        (with(|o| o.priority = -1), "override.priority"),
        (with(|o| o.reviewer_id = "".into()), "override.reviewer_id"),
        (with(|o| o.reviewer_id = "x".repeat(256)), "override.reviewer_id"),
        (with(|o| o.reason_category = "x".repeat(64)), "override.reason_category"),
        (with(|o| o.stakeholder_input = "x".repeat(65_537)), "override.stakeholder_input"),
        (
            with(|o| o.supporting_documents = vec![Default::default(); 101]),
            "override.supporting_documents",
        ),
        (with(|o| o.decision_id = "e".into()), "override.decision_id"),
        (with(|o| o.id = "other".into()), "override.id"),
        (pb::CreateOverrideRequest { r#override: None, ..full() }, "override"),
    ] {
        let status = fails!(client.create_override(request), InvalidArgument, "FIELD_INVALID");
        assert!(wrong_fields(&status).iter().any(|found| found == field), "{field}: {status:?}");
    }
    assert_eq!(head(&world.anonymous()).await, before);
    let decision = ok!(client.get_decision(get("d"))).decision.unwrap();
    assert_eq!(decision.state(), pb::DecisionState::Final);
    let longest = with(|o| o.justification = "é".repeat(10_000));
    ok!(client.create_override(longest));
    world.close().await;
}

#[tokio::test]
async fn the_acting_user_is_the_reviewer_unless_one_is_named() {
    let world = World::new().await;
    let mut client = world.anonymous().header("x-casebook-actor", "ann").decisions();
    ok!(client.create_decision(create("d", decision("DENY", 0.5))));
    let mut request = overrule("", "d", "ALLOW");
    request.r#override.as_mut().unwrap().reviewer_id.clear();
    let answer = ok!(client.create_override(request));
    let row = answer.r#override.unwrap();
    assert_eq!((row.reviewer_id.as_str(), row.original_outcome.as_str()), ("ann", "DENY"));
    assert_eq!(row.id, row.meta.as_ref().unwrap().uid);
    assert_eq!(row.meta.unwrap().created_by, "ann");
    let named = ok!(client.create_override(overrule("", "d", "ALLOW"))).r#override.unwrap();
    assert_eq!(named.reviewer_id, "reviewer-7");
    world.close().await;
}

#[tokio::test]
async fn overrides_are_listed_by_decision_by_filter_and_in_order() {
    let world = World::new().await;
    let mut client = world.decisions();
    for (n, (decision_id, urgent)) in
        [("d", true), ("d", false), ("e", true)].into_iter().enumerate()
    {
        let given = pb::CreateDecisionRequest {
            options: Some(pb::WriteOptions {
                on_conflict: pb::OnConflict::ReturnIfEqual.into(),
                ..Default::default()
            }),
            ..create(decision_id, decision("DENY", 0.5))
        };
        let _ = client.create_decision(given).await;
        let mut request = overrule(&format!("o-{n}"), decision_id, "ALLOW");
        let row = request.r#override.as_mut().unwrap();
        (row.urgent, row.priority) = (urgent, n as i32);
        ok!(client.create_override(request));
    }
    let mut ids = async |decision_id: &str, text: &str, order_by: &str| {
        let request = pb::ListOverridesRequest {
            decision_id: decision_id.into(),
            page: Some(pb::PageRequest { order_by: order_by.into(), ..Default::default() }),
            r#where: expression(text),
            ..Default::default()
        };
        let found = ok!(client.list_overrides(request)).overrides;
        found.into_iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(ids("-", "", "").await, ["o-2", "o-1", "o-0"]);
    assert_eq!(ids("d", "", "priority").await, ["o-0", "o-1"]);
    assert_eq!(ids("-", "urgent = true AND priority >= 1", "").await, ["o-2"]);
    let missing = pb::ListOverridesRequest { decision_id: "none".into(), ..Default::default() };
    fails!(client.list_overrides(missing), NotFound, "NOT_FOUND");
    let none = client.list_overrides(pb::ListOverridesRequest::default());
    assert_eq!(wrong_fields(&fails!(none, InvalidArgument, "FIELD_INVALID")), ["decision_id"]);
    world.close().await;
}
