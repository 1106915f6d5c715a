//! Critic outputs: F18, each critic's part in a decision.

use crate::help::*;
use crate::world::{World, create, decision, object, wrong_fields};
use casebook::pb;

fn of(decision_id: &str, order_by: &str) -> pb::ListCriticOutputsRequest {
    pb::ListCriticOutputsRequest {
        decision_id: decision_id.into(),
        page: Some(pb::PageRequest { order_by: order_by.into(), ..Default::default() }),
        ..Default::default()
    }
}

fn full() -> pb::CriticOutput {
    pb::CriticOutput {
        justification: "Income is below the line.".into(),
        weight: Some(2.5),
        priority: "veto".into(),
        config_version: "c-7".into(),
        evaluate_time: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 1_000 }),
        evidence_sources: vec![
            pb::EvidenceSource {
                r#type: "url".into(),
                reference: "https://example.com/a".into(),
                relevance: Some(0.5),
            },
            pb::EvidenceSource {
                r#type: "document".into(),
                reference: "p. 3".into(),
                relevance: None,
            },
        ],
        details: Some(object(&[("k", "v")])),
        ..critic("c-1", "legal", "DENY", 0.25)
    }
}

#[tokio::test]
async fn critic_outputs_come_back_as_given_with_the_decision_or_later() {
    let world = World::new().await;
    let mut client = world.decisions();
    let mut given = decision("DENY", 0.5);
    given.critic_outputs = vec![full()];
    let made = ok!(client.create_decision(create("d", given))).decision.unwrap();
    // Read back with ListCriticOutputs only.
    assert!(made.critic_outputs.is_empty());
    let later = pb::CriticOutput { id: "c-2".into(), ..full() };
    let added = ok!(client.add_critic_outputs(add("d", vec![later])));
    assert_eq!(added.receipt.unwrap().audit_seq, 3);
    let list = ok!(client.list_critic_outputs(of("d", "id"))).critic_outputs;
    assert_eq!(list.len(), 2);
    assert_eq!(list[1], added.critic_outputs[0]);
    for (row, id) in list.iter().zip(["c-1", "c-2"]) {
        let expected = pb::CriticOutput {
            id: id.into(),
            decision_id: "d".into(),
            etag: row.etag.clone(),
            meta: row.meta.clone(),
            ..full()
        };
        assert_eq!(*row, expected);
        assert_eq!(row.meta.as_ref().unwrap().version, 1);
    }
    // Adding one makes no version of the decision.
    let decision = ok!(client.get_decision(crate::world::get("d"))).decision.unwrap();
    assert_eq!(decision.etag, made.etag);
    world.close().await;
}

#[tokio::test]
async fn critic_outputs_are_added_all_or_none_and_in_order() {
    let world = World::new().await;
    let mut client = world.decisions();
    ok!(client.create_decision(create("d", decision("DENY", 0.5))));
    let many: Vec<_> =
        (0..1000).map(|n| critic("", &format!("critic-{n}"), "ALLOW", 0.5)).collect();
    let added = ok!(client.add_critic_outputs(add("d", many))).critic_outputs;
    assert_eq!(added.len(), 1000);
    assert!(added.iter().enumerate().all(|(n, row)| row.critic == format!("critic-{n}")));
    ok!(client.add_critic_outputs(add("d", vec![critic("taken", "a", "ALLOW", 0.5)])));
    let before = head(&world.anonymous()).await;
    let some = vec![critic("free", "a", "ALLOW", 0.5), critic("taken", "a", "ALLOW", 0.5)];
    let status = fails!(client.add_critic_outputs(add("d", some)), AlreadyExists, "EXISTS");
    assert!(status.message().contains("taken"));
    let missing = add("none", vec![critic("", "a", "ALLOW", 0.5)]);
    fails!(client.add_critic_outputs(missing), NotFound, "NOT_FOUND");
    for count in [0, 1001] {
        let some = vec![critic("", "a", "ALLOW", 0.5); count];
        let call = client.add_critic_outputs(add("d", some));
        fails!(call, InvalidArgument, "FIELD_INVALID");
    }
    let wrong = vec![critic("", "a", "ALLOW", 0.5), critic("", "", "allow", 1.5)];
    let status =
        fails!(client.add_critic_outputs(add("d", wrong)), InvalidArgument, "FIELD_INVALID");
    let mut fields = wrong_fields(&status);
    fields.sort();
    let at = "critic_outputs[1]";
    assert_eq!(
        fields,
        [format!("{at}.confidence"), format!("{at}.critic"), format!("{at}.verdict")]
    );
    assert_eq!(head(&world.anonymous()).await, before);
    world.close().await;
}

#[tokio::test]
async fn critic_outputs_are_listed_by_decision_by_filter_and_in_order() {
    let world = World::new().await;
    let mut client = world.decisions();
    for (id, confidence) in [("d", 0.25), ("e", 0.75)] {
        let mut given = decision("DENY", 0.5);
        given.critic_outputs = vec![
            critic(&format!("{id}-1"), "legal", "DENY", confidence),
            critic(&format!("{id}-2"), "risk", "ALLOW", confidence / 2.0),
        ];
        ok!(client.create_decision(create(id, given)));
    }
    let mut ids = async |request| {
        let found = ok!(client.list_critic_outputs(request)).critic_outputs;
        found.into_iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(of("d", "id")).await, ["d-1", "d-2"]);
    assert_eq!(ids(of("-", "confidence desc")).await, ["e-1", "e-2", "d-1", "d-2"]);
    let filtered = pb::ListCriticOutputsRequest {
        r#where: expression("critic = legal AND confidence > 0.5"),
        ..of("-", "id")
    };
    assert_eq!(ids(filtered).await, ["e-1"]);
    fails!(client.list_critic_outputs(of("none", "")), NotFound, "NOT_FOUND");
    fails!(client.list_critic_outputs(of("", "")), InvalidArgument, "FIELD_INVALID");
    fails!(client.list_critic_outputs(of("d", "nope")), InvalidArgument, "FIELD_INVALID");
    world.close().await;
}

#[tokio::test]
async fn the_same_critic_output_id_may_stand_in_two_decisions() {
    let world = World::new().await;
    let mut client = world.decisions();
    for id in ["d", "e"] {
        let mut given = decision("DENY", 0.5);
        given.critic_outputs = vec![critic("c", "legal", "DENY", 0.5)];
        ok!(client.create_decision(create(id, given)));
    }
    let list = ok!(client.list_critic_outputs(of("-", "decision_id"))).critic_outputs;
    let ids: Vec<_> = list.iter().map(|row| (&*row.decision_id, &*row.id)).collect();
    assert_eq!(ids, [("d", "c"), ("e", "c")]);
    // Deleting one decision hides its own only.
    ok!(client.delete_decision(delete("d")));
    let list = ok!(client.list_critic_outputs(of("-", "decision_id"))).critic_outputs;
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].decision_id, "e");
    world.close().await;
}
