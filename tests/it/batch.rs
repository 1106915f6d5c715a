//! Batches: F134, F254, all or nothing, in the order of the request.

use crate::help::*;
use crate::world::{World, create, decision, get, request, wrong_fields};
use casebook::pb;

fn batch(requests: Vec<pb::CreateDecisionRequest>) -> pb::BatchCreateDecisionsRequest {
    pb::BatchCreateDecisionsRequest { requests, options: None }
}

fn numbered(n: usize) -> Vec<pb::CreateDecisionRequest> {
    (0..n).map(|i| create(&format!("b-{i}"), decision("ALLOW", 0.5))).collect()
}

#[tokio::test]
async fn a_batch_is_recorded_in_the_order_of_the_request() {
    let world = World::new().await;
    let mut client = world.decisions();
    let mut requests = numbered(1000);
    requests[999].decision.as_mut().unwrap().critic_outputs =
        vec![critic("c", "legal", "DENY", 0.25)];
    for server_chosen in [3, 500] {
        requests[server_chosen].decision_id.clear();
    }
    let answer = ok!(client.batch_create_decisions(batch(requests)));
    assert_eq!(answer.decisions.len(), 1000);
    for (n, made) in answer.decisions.iter().enumerate() {
        if ![3, 500].contains(&n) {
            assert_eq!(made.id, format!("b-{n}"));
        }
    }
    // 1000 decisions and one critic output.
    assert_eq!(answer.receipt.unwrap().audit_seq, 1001);
    let ids: Vec<String> = answer.decisions.iter().rev().map(|d| d.id.clone()).collect();
    let found = ok!(client.batch_get_decisions(pb::BatchGetDecisionsRequest {
        decision_ids: ids.clone(),
        ..Default::default()
    }));
    assert_eq!(found.decisions.iter().map(|d| d.id.clone()).collect::<Vec<_>>(), ids);
    world.close().await;
}

#[tokio::test]
async fn one_wrong_item_fails_the_batch_and_is_named() {
    let world = World::new().await;
    let mut client = world.decisions();
    let mut requests = numbered(20);
    requests[17].decision.as_mut().unwrap().avg_confidence = Some(1.5);
    let status = fails!(
        client.batch_create_decisions(batch(requests.clone())),
        InvalidArgument,
        "FIELD_INVALID"
    );
    assert_eq!(wrong_fields(&status), ["requests[17].decision.avg_confidence"]);
    // Everything that is wrong is named, not only the first.
    requests[3].decision = None;
    requests[5].options = Some(request("r"));
    let status = client.batch_create_decisions(batch(requests)).await.unwrap_err();
    let fields = wrong_fields(&status);
    for field in
        ["requests[3].decision", "requests[5].options", "requests[17].decision.avg_confidence"]
    {
        assert!(fields.iter().any(|found| found == field), "{field} in {fields:?}");
    }
    assert_eq!(head(&world.anonymous()).await, 0);
    world.close().await;
}

#[tokio::test]
async fn a_batch_whose_one_id_is_taken_writes_nothing() {
    let world = World::new().await;
    let mut client = world.decisions();
    ok!(client.create_decision(create("b-7", decision("DENY", 0.5))));
    let status =
        fails!(client.batch_create_decisions(batch(numbered(10))), AlreadyExists, "EXISTS");
    assert!(status.message().contains("b-7"), "{}", status.message());
    assert_eq!(head(&world.anonymous()).await, 1);
    for n in [0, 6, 8, 9] {
        fails!(client.get_decision(get(&format!("b-{n}"))), NotFound, "NOT_FOUND");
    }
    // The same beside other writes that share its transaction: they stay, it goes.
    let mut others = tokio::task::JoinSet::new();
    for n in 0..20 {
        let mut client = world.decisions();
        others.spawn(async move {
            if n == 10 {
                client.batch_create_decisions(batch(numbered(10))).await.map(drop)
            } else {
                let request = create(&format!("other-{n}"), decision("ALLOW", 0.5));
                client.create_decision(request).await.map(drop)
            }
        });
    }
    let failed = others.join_all().await.into_iter().filter(Result::is_err).count();
    assert_eq!(failed, 1);
    assert_eq!(head(&world.anonymous()).await, 20);
    world.close().await;
}

#[tokio::test]
async fn batches_hold_1_to_1000_different_items() {
    let world = World::new().await;
    let mut client = world.decisions();
    for requests in [Vec::new(), numbered(1001)] {
        let status = fails!(
            client.batch_create_decisions(batch(requests)),
            InvalidArgument,
            "FIELD_INVALID"
        );
        assert_eq!(wrong_fields(&status), ["requests"]);
    }
    let mut twice = numbered(3);
    twice[2].decision_id = "b-0".into();
    let status =
        fails!(client.batch_create_decisions(batch(twice)), InvalidArgument, "DUPLICATE_IN_BATCH");
    assert_eq!(wrong_fields(&status), ["requests[2].decision_id"]);
    let twice = pb::BatchGetDecisionsRequest {
        decision_ids: vec!["a".into(), "b".into(), "a".into()],
        allow_missing: true,
        ..Default::default()
    };
    let status = fails!(client.batch_get_decisions(twice), InvalidArgument, "DUPLICATE_IN_BATCH");
    assert_eq!(wrong_fields(&status), ["decision_ids[2]"]);
    for ids in [Vec::new(), (0..1001).map(|n| format!("b-{n}")).collect()] {
        let request = pb::BatchGetDecisionsRequest { decision_ids: ids, ..Default::default() };
        fails!(client.batch_get_decisions(request), InvalidArgument, "FIELD_INVALID");
    }
    let twice = add("d", vec![critic("c", "a", "ALLOW", 1.0), critic("c", "b", "ALLOW", 1.0)]);
    let status = fails!(client.add_critic_outputs(twice), InvalidArgument, "DUPLICATE_IN_BATCH");
    assert_eq!(wrong_fields(&status), ["critic_outputs[1].id"]);
    assert_eq!(head(&world.anonymous()).await, 0);
    world.close().await;
}

#[tokio::test]
async fn a_batch_get_says_what_is_missing_or_fails() {
    let world = World::new().await;
    let mut client = world.decisions();
    ok!(client.batch_create_decisions(batch(numbered(4))));
    ok!(client.delete_decision(delete("b-2")));
    let ids = ["b-3", "none", "b-0", "b-2"].map(str::to_owned).to_vec();
    let request = pb::BatchGetDecisionsRequest { decision_ids: ids, ..Default::default() };
    let status = fails!(client.batch_get_decisions(request.clone()), NotFound, "NOT_FOUND");
    assert!(status.message().contains("none"), "{}", status.message());
    let request = pb::BatchGetDecisionsRequest { allow_missing: true, ..request };
    let found = ok!(client.batch_get_decisions(request));
    assert_eq!(found.decisions.iter().map(|d| d.id.as_str()).collect::<Vec<_>>(), ["b-3", "b-0"]);
    assert_eq!(found.missing_ids, ["none", "b-2"]);
    let wrong = pb::BatchGetDecisionsRequest {
        decision_ids: vec!["a".into(), "no id".into()],
        ..Default::default()
    };
    let status = fails!(client.batch_get_decisions(wrong), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["decision_ids[1]"]);
    world.close().await;
}
