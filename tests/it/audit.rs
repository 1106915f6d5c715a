//! The audit trail: F22, F217 to F226, C13, N11: every change, by whom, from where, and what it changed.

use crate::help::*;
use crate::world::{World, create, decision, request, tree, wrong_fields};
use casebook::pb;
use pb::ResourceKind as Kind;
use sha2::{Digest, Sha256};

fn member<'a>(value: &'a prost_types::Struct, name: &str) -> Option<&'a prost_types::Value> {
    value.fields.get(name)
}

fn text(value: Option<&prost_types::Value>) -> String {
    match value.and_then(|value| value.kind.clone()) {
        Some(prost_types::value::Kind::StringValue(text)) => text,
        other => format!("{other:?}"),
    }
}

#[tokio::test]
async fn every_change_has_an_entry_numbered_without_gaps() {
    let world = World::new().await;
    let me = world.anonymous().header("user-agent", "test");
    let mut client = me.decisions();
    let mut given = decision("DENY", 0.5);
    given.critic_outputs = vec![critic("c", "legal", "DENY", 0.5)];
    ok!(client.create_decision(create("d", given)));
    ok!(client.add_critic_outputs(add("d", vec![critic("c-2", "risk", "ALLOW", 0.5)])));
    ok!(client.create_override(overrule("o", "d", "ALLOW")));
    ok!(client.delete_decision(delete("d")));
    ok!(client.undelete_decision(undelete("d")));
    ok!(me.policies().create_policy_rule(rule("r", "one")));
    let (made, _) = token(&me, &[pb::Role::Reader]).await;
    ok!(me.tenants().revoke_api_token(pb::RevokeApiTokenRequest {
        api_token_id: made.id.clone(),
        options: None,
    }));
    // Reads leave nothing.
    ok!(client.get_decision(crate::world::get("d")));
    ok!(client.list_decisions(pb::ListDecisionsRequest::default()));
    let mut log = entries(&world.anonymous(), 100).await;
    log.reverse();
    let seqs: Vec<_> = log.iter().map(|entry| entry.seq).collect();
    assert_eq!(seqs, (1..=seqs.len() as i64).collect::<Vec<_>>());
    let what: Vec<_> = log
        .iter()
        .map(|entry| {
            let target = entry.target.as_ref().unwrap();
            (entry.action.as_str(), target.kind(), target.id.as_str(), target.version)
        })
        .collect();
    assert_eq!(
        what[..5],
        [
            ("CREATE", Kind::Decision, "d", 1),
            ("CREATE", Kind::CriticOutput, "c", 1),
            ("CREATE", Kind::CriticOutput, "c-2", 1),
            ("CREATE", Kind::Override, "o", 1),
            ("OVERRIDE", Kind::Decision, "d", 2),
        ]
    );
    let count = |action| what.iter().filter(|entry| entry.0 == action).count();
    assert_eq!((count("DELETE"), count("UNDELETE")), (4, 4));
    assert_eq!(
        what[13..],
        [
            ("CREATE", Kind::PolicyRule, "r", 1),
            ("CREATE", Kind::ApiToken, made.id.as_str(), 1),
            ("REVOKE", Kind::ApiToken, made.id.as_str(), 2),
        ]
    );
    let entry = &log[4];
    assert_eq!(entry.method, "casebook.v1.DecisionService/CreateOverride");
    assert_eq!((entry.principal.as_str(), entry.ip_address.as_str()), ("anonymous", "127.0.0.1"));
    assert!(entry.user_agent.contains("tonic"), "{}", entry.user_agent);
    assert!(!entry.request_id.is_empty());
    for entry in &log {
        assert_eq!(
            entry.leaf_hash,
            Sha256::new_with_prefix([0]).chain_update(&entry.leaf).finalize().to_vec()
        );
    }
    world.close().await;
}

#[tokio::test]
async fn an_entry_tells_what_changed_and_under_which_ids_it_was_asked() {
    let world = World::new().await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let me = world
        .anonymous()
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .header("x-request-id", "call-7");
    ok!(me.decisions().create_decision(create("d", decision("ALLOW", 0.5))));
    let given = pb::Decision {
        labels: labels(&[("env", "prod")]),
        retention_class: "long".into(),
        ..Default::default()
    };
    let change = update("d", &["labels", "retention_class"], given);
    let change = pb::UpdateDecisionRequest { options: Some(request("key-1")), ..change };
    ok!(me.decisions().update_decision(change));
    let get = |seq| pb::GetAuditEntryRequest { seq };
    let created = ok!(me.audit().get_audit_entry(get(1))).entry.unwrap();
    assert_eq!((created.request_id.as_str(), created.trace_id.as_str()), ("call-7", trace));
    let changes = created.changes.unwrap().to_struct();
    let verdict = member(&changes, "final_verdict").unwrap();
    let Some(prost_types::value::Kind::StructValue(verdict)) = &verdict.kind else { panic!() };
    assert_eq!(text(member(verdict, "new")), "ALLOW");
    let updated = ok!(me.audit().get_audit_entry(get(2))).entry.unwrap();
    assert_eq!(updated.request_id, "key-1");
    let changes = updated.changes.clone().unwrap().to_struct();
    let names =
        |changes: &prost_types::Struct| changes.fields.keys().cloned().collect::<Vec<String>>();
    assert_eq!(names(&changes), ["labels", "retention_class"]);
    let Some(prost_types::value::Kind::StructValue(class)) =
        &member(&changes, "retention_class").unwrap().kind
    else {
        panic!()
    };
    assert_eq!(
        (text(member(class, "old")), text(member(class, "new"))),
        ("".into(), "long".into())
    );
    let Some(prost_types::value::Kind::StructValue(found)) =
        &member(&changes, "labels").unwrap().kind
    else {
        panic!()
    };
    let Some(prost_types::value::Kind::StructValue(new)) = &member(found, "new").unwrap().kind
    else {
        panic!()
    };
    assert_eq!(*new, tree(&[("env", "prod")]));
    // Deleting changes one thing, and bringing back the same; what the entry says anyway is not repeated.
    ok!(me.decisions().delete_decision(delete("d")));
    ok!(me.decisions().undelete_decision(undelete("d")));
    for (seq, key, gone) in [(3, "new", "old"), (4, "old", "new")] {
        let entry = ok!(me.audit().get_audit_entry(get(seq))).entry.unwrap();
        let changes = entry.changes.unwrap().to_struct();
        assert_eq!(names(&changes), ["delete_time"]);
        let Some(prost_types::value::Kind::StructValue(time)) =
            &member(&changes, "delete_time").unwrap().kind
        else {
            panic!()
        };
        assert!(text(member(time, key)).starts_with("20"));
        assert_eq!(text(member(time, gone)), "Some(NullValue(NullValue))");
    }
    let created = ok!(me.audit().get_audit_entry(get(1))).entry.unwrap().changes.unwrap();
    let created = created.to_struct();
    for name in ["id", "uid", "version", "create_time", "update_time", "created_by", "updated_by"] {
        assert!(member(&created, name).is_none(), "{name}");
    }
    // Lists show changes only when asked.
    let list = pb::ListAuditEntriesRequest::default();
    let plain = ok!(me.audit().list_audit_entries(list)).entries;
    assert!(plain.iter().all(|entry| entry.changes.is_none()));
    assert_eq!(entries(&me, 3).await[2], updated);
    fails!(me.audit().get_audit_entry(get(5)), NotFound, "NOT_FOUND");
    fails!(me.audit().get_audit_entry(get(0)), InvalidArgument, "FIELD_INVALID");
    world.close().await;
}

#[tokio::test]
async fn the_trail_is_searched_by_resource_field_and_time() {
    let world = World::new().await;
    let me = world.anonymous();
    for id in ["a", "b", "c"] {
        let who = me.clone().header("x-casebook-actor", id);
        ok!(who.decisions().create_decision(create(id, decision("ALLOW", 0.5))));
    }
    let class = pb::Decision { retention_class: "long".into(), ..Default::default() };
    ok!(me.decisions().update_decision(update("b", &["retention_class"], class)));
    ok!(me.policies().create_policy_rule(rule("b", "one")));
    let seqs = async |request| {
        let found = ok!(me.audit().list_audit_entries(request)).entries;
        found.into_iter().map(|entry| entry.seq).collect::<Vec<_>>()
    };
    let by = |text: &str| pb::ListAuditEntriesRequest {
        r#where: expression(text),
        ..Default::default()
    };
    let of = |kind, id: &str| pb::ListAuditEntriesRequest {
        target: Some(reference(kind, id, 0)),
        ..Default::default()
    };
    assert_eq!(seqs(by("")).await, [5, 4, 3, 2, 1]);
    assert_eq!(seqs(of(Kind::Decision, "b")).await, [4, 2]);
    assert_eq!(seqs(of(Kind::PolicyRule, "b")).await, [5]);
    assert!(seqs(of(Kind::Decision, "none")).await.is_empty());
    assert_eq!(seqs(by("actor = b")).await, [2]);
    assert_eq!(seqs(by("kind = policy_rule OR action = UPDATE")).await, [5, 4]);
    assert_eq!(seqs(by("entity_id = b AND version > 1")).await, [4]);
    assert_eq!(seqs(by("method = \"casebook.v1.DecisionService/Create*\"")).await, [3, 2, 1]);
    assert_eq!(seqs(by("seq >= 2 seq < 4")).await, [3, 2]);
    let page = Some(pb::PageRequest { order_by: "actor desc, seq".into(), ..Default::default() });
    let ordered = pb::ListAuditEntriesRequest { page, ..by("actor != \"\"") };
    assert_eq!(seqs(ordered).await, [3, 2, 1]);
    let third = ok!(me.audit().get_audit_entry(pb::GetAuditEntryRequest { seq: 3 }));
    let window =
        pb::TimeWindow { start_time: third.entry.unwrap().event_time, ..Default::default() };
    let since = pb::ListAuditEntriesRequest { window: Some(window), ..Default::default() };
    assert_eq!(seqs(since).await, [5, 4, 3]);
    let wrong = of(Kind::Unspecified, "b");
    let status = fails!(me.audit().list_audit_entries(wrong), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["target.kind"]);
    // Pages are of the log as it was when the first was read.
    let paged = |token: String| pb::ListAuditEntriesRequest {
        page: Some(pb::PageRequest { page_size: 2, page_token: token, ..Default::default() }),
        ..Default::default()
    };
    let mut next = String::new();
    let mut found = Vec::new();
    loop {
        let answer = ok!(me.audit().list_audit_entries(paged(next)));
        found.extend(answer.entries.iter().map(|entry| entry.seq));
        ok!(me.decisions().create_decision(create("", decision("ALLOW", 0.5))));
        next = answer.page.unwrap().next_page_token;
        if next.is_empty() {
            break;
        }
    }
    assert_eq!(found, [5, 4, 3, 2, 1]);
    world.close().await;
}

#[tokio::test]
async fn entries_that_are_alike_but_for_their_number_are_all_on_some_page() {
    let world = World::new().await;
    let me = world.anonymous();
    ok!(me.decisions().create_decision(create("d", decision("ALLOW", 0.5))));
    for class in ["a", "b", "c", "d", "e", "f"] {
        let class = pb::Decision { retention_class: class.into(), ..Default::default() };
        ok!(me.decisions().update_decision(update("d", &["retention_class"], class)));
    }
    for (order_by, wanted) in [
        ("kind", [1, 2, 3, 4, 5, 6, 7]),
        ("target_uid desc", [7, 6, 5, 4, 3, 2, 1]),
        ("action desc, entity_id", [2, 3, 4, 5, 6, 7, 1]),
    ] {
        let (mut found, mut next) = (Vec::new(), String::new());
        loop {
            let page = pb::PageRequest {
                page_size: 2,
                page_token: next,
                order_by: order_by.into(),
                ..Default::default()
            };
            let request = pb::ListAuditEntriesRequest { page: Some(page), ..Default::default() };
            let answer = ok!(me.audit().list_audit_entries(request));
            found.extend(answer.entries.iter().map(|entry| entry.seq));
            next = answer.page.unwrap().next_page_token;
            if next.is_empty() {
                break;
            }
        }
        assert_eq!(found, wanted, "{order_by}");
    }
    world.close().await;
}
