//! Deleting and bringing back: C25, with what belongs to a decision.

use crate::help::*;
use crate::world::{World, create, decision, get};
use casebook::pb;

async fn critics(world: &World, decision_id: &str) -> Vec<String> {
    let request = pb::ListCriticOutputsRequest {
        decision_id: decision_id.into(),
        page: Some(pb::PageRequest { order_by: "id".into(), ..Default::default() }),
        ..Default::default()
    };
    let found = ok!(world.decisions().list_critic_outputs(request)).critic_outputs;
    found.into_iter().map(|row| row.id).collect()
}

async fn overrides(world: &World, decision_id: &str) -> Vec<String> {
    let request =
        pb::ListOverridesRequest { decision_id: decision_id.into(), ..Default::default() };
    let found = ok!(world.decisions().list_overrides(request)).overrides;
    found.into_iter().map(|row| row.id).collect()
}

#[tokio::test]
async fn a_deleted_decision_takes_its_children_along_and_brings_them_back() {
    let world = World::new().await;
    let mut client = world.decisions();
    let mut given = decision("DENY", 0.5);
    given.critic_outputs = vec![critic("c-1", "legal", "DENY", 0.25)];
    let made = ok!(client.create_decision(create("d", given.clone()))).decision.unwrap();
    given.critic_outputs[0].id = "c-9".into();
    ok!(client.create_decision(create("other", given)));
    ok!(client.add_critic_outputs(add("d", vec![critic("c-2", "risk", "ALLOW", 0.75)])));
    ok!(client.create_override(overrule("o-1", "d", "ALLOW")));

    let gone = ok!(client.delete_decision(delete("d")));
    let gone = gone.decision.unwrap();
    assert!(gone.meta.as_ref().unwrap().delete_time.is_some());
    assert_eq!(gone.meta.unwrap().version, 3);
    fails!(client.get_decision(get("d")), NotFound, "NOT_FOUND");
    assert_eq!(critics(&world, "-").await, ["c-9"]);
    assert!(overrides(&world, "-").await.is_empty());
    let of_it = pb::ListCriticOutputsRequest { decision_id: "d".into(), ..Default::default() };
    fails!(client.list_critic_outputs(of_it), NotFound, "NOT_FOUND");
    let of_it = pb::ListOverridesRequest { decision_id: "d".into(), ..Default::default() };
    fails!(client.list_overrides(of_it), NotFound, "NOT_FOUND");
    let of_it = pb::ListDecisionRevisionsRequest { decision_id: "d".into(), ..Default::default() };
    fails!(client.list_decision_revisions(of_it), NotFound, "NOT_FOUND");
    fails!(
        client.add_critic_outputs(add("d", vec![critic("", "x", "ALLOW", 1.0)])),
        NotFound,
        "NOT_FOUND"
    );
    fails!(client.create_override(overrule("", "d", "ALLOW")), NotFound, "NOT_FOUND");
    fails!(client.update_decision(update("d", &["labels"], made.clone())), NotFound, "NOT_FOUND");

    // Each change stands in the log: the decision and its three children.
    let log = entries(&world.anonymous(), 4).await;
    assert!(log.iter().all(|entry| entry.action == "DELETE"), "{log:?}");
    let mut ids: Vec<_> = log.iter().map(|entry| entry.target.clone().unwrap().id).collect();
    ids.sort();
    assert_eq!(ids, ["c-1", "c-2", "d", "o-1"]);

    let back = ok!(client.undelete_decision(undelete("d"))).decision.unwrap();
    let meta = back.meta.as_ref().unwrap();
    assert_eq!((&meta.uid, meta.version), (&made.meta.unwrap().uid, 4));
    assert_eq!(meta.delete_time, None);
    assert_eq!(back.state(), pb::DecisionState::Overridden);
    assert_eq!(ok!(client.get_decision(get("d"))).decision, Some(back));
    assert_eq!(critics(&world, "d").await, ["c-1", "c-2"]);
    assert_eq!(overrides(&world, "d").await, ["o-1"]);
    world.close().await;
}

#[tokio::test]
async fn deleting_twice_is_not_found_unless_missing_is_allowed() {
    let world = World::new().await;
    let mut client = world.decisions();
    let allowed = || pb::DeleteDecisionRequest { allow_missing: true, ..delete("d") };
    ok!(client.create_decision(create("d", decision("ALLOW", 0.5))));
    ok!(client.delete_decision(delete("d")));
    fails!(client.delete_decision(delete("d")), NotFound, "NOT_FOUND");
    let nothing = ok!(client.delete_decision(allowed()));
    assert_eq!(nothing.decision, None);
    let receipt = nothing.receipt.unwrap();
    assert!(receipt.unchanged);
    assert_eq!(receipt.audit_seq, 2);
    assert_eq!(head(&world.anonymous()).await, 2);
    fails!(client.undelete_decision(undelete("never")), NotFound, "NOT_FOUND");
    world.close().await;
}

#[tokio::test]
async fn deleting_nothing_in_a_new_tenant_has_a_receipt_too() {
    let world = World::new().await;
    let request = pb::DeleteDecisionRequest { allow_missing: true, ..delete("d") };
    let nothing = ok!(world.decisions().delete_decision(request));
    let receipt = nothing.receipt.expect("a receipt, as of every write");
    assert!(receipt.unchanged);
    assert_eq!(receipt.audit_seq, 0);
    world.close().await;
}

#[tokio::test]
async fn a_recreated_id_is_another_decision() {
    let world = World::new().await;
    let mut client = world.decisions();
    let first = ok!(client.create_decision(create("d", decision("ALLOW", 0.5)))).decision.unwrap();
    fails!(client.undelete_decision(undelete("d")), AlreadyExists, "EXISTS");
    ok!(client.delete_decision(delete("d")));
    let second = ok!(client.create_decision(create("d", decision("DENY", 0.5)))).decision.unwrap();
    let uid = |decision: &pb::Decision| decision.meta.as_ref().unwrap().uid.clone();
    assert_ne!(uid(&first), uid(&second));
    assert_ne!(first.etag, second.etag);
    fails!(client.undelete_decision(undelete("d")), AlreadyExists, "EXISTS");
    // The revisions are of the one that is there.
    let list = pb::ListDecisionRevisionsRequest { decision_id: "d".into(), ..Default::default() };
    assert_eq!(ok!(client.list_decision_revisions(list)).revisions.len(), 1);
    // The one deleted last comes back.
    ok!(client.delete_decision(delete("d")));
    let back = ok!(client.undelete_decision(undelete("d"))).decision.unwrap();
    assert_eq!(uid(&back), uid(&second));
    world.close().await;
}

#[tokio::test]
async fn deleted_decisions_are_listed_only_when_asked_for() {
    let world = World::new().await;
    let mut client = world.decisions();
    for id in ["a", "b"] {
        ok!(client.create_decision(create(id, decision("ALLOW", 0.5))));
    }
    ok!(client.delete_decision(delete("a")));
    let mut list = async |show_deleted| {
        let page = Some(pb::PageRequest { order_by: "id".into(), ..Default::default() });
        let request = pb::ListDecisionsRequest { show_deleted, page, ..Default::default() };
        let found = ok!(client.list_decisions(request)).decisions;
        found.into_iter().map(|d| (d.id, d.meta.unwrap().delete_time.is_some())).collect::<Vec<_>>()
    };
    assert_eq!(list(false).await, [("b".to_owned(), false)]);
    assert_eq!(list(true).await, [("a".to_owned(), true), ("b".to_owned(), false)]);
    world.close().await;
}
