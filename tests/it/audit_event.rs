//! Events that callers tell: F146, F305 to F316, F334, F335, F341, C13: they stand in the same log as the changes.

use crate::help::*;
use crate::world::{World, create, decision, object, request, wrong_fields};
use casebook::pb;
use pb::ResourceKind as Kind;

fn told(action: &str, change: impl FnOnce(&mut pb::AuditEvent)) -> pb::LogEventRequest {
    let mut event = pb::AuditEvent { action: action.into(), ..Default::default() };
    change(&mut event);
    pb::LogEventRequest { event: Some(event), options: None }
}

async fn entry(who: &crate::world::As, seq: i64) -> pb::AuditEntry {
    ok!(who.audit().get_audit_entry(pb::GetAuditEntryRequest { seq })).entry.unwrap()
}

#[tokio::test]
async fn an_event_is_an_entry_of_the_one_log_and_comes_back_as_told() {
    let world = World::new().await;
    let me = world.anonymous().header("x-casebook-actor", "gateway");
    ok!(me.decisions().create_decision(create("d", decision("ALLOW", 0.5))));
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let request = told("DOWNLOAD", |event| {
        event.object_key = "reports/2026 Q1 (final).pdf".into();
        event.user_id = "u-7".into();
        event.username = "Ann".into();
        event.ip_address = "2001:db8::7".into();
        event.user_agent = "curl/8".into();
        event.success = Some(false);
        event.error_message = "it is gone".into();
        event.metadata = Some(object(&[("bucket", "b")]));
        event.trace_id = trace.into();
    });
    let receipt = ok!(me.audit().log_event(request)).receipt.unwrap();
    assert_eq!((receipt.audit_seq, receipt.unchanged, receipt.replayed), (2, false, false));
    let found = entry(&me, 2).await;
    let target_uid = found.target_uid.clone();
    uuid::Uuid::parse_str(&target_uid).unwrap();
    let expected = pb::AuditEntry {
        seq: 2,
        event_time: found.event_time,
        action: "DOWNLOAD".into(),
        method: "casebook.v1.AuditService/LogEvent".into(),
        target_uid,
        actor: "u-7".into(),
        principal: "anonymous".into(),
        ip_address: "2001:db8::7".into(),
        user_agent: "curl/8".into(),
        request_id: found.request_id.clone(),
        trace_id: trace.into(),
        success: Some(false),
        error_message: "it is gone".into(),
        metadata: Some(object(&[("bucket", "b")])),
        kind: "event".into(),
        user_id: "u-7".into(),
        username: "Ann".into(),
        object_key: "reports/2026 Q1 (final).pdf".into(),
        leaf: found.leaf.clone(),
        leaf_hash: found.leaf_hash.clone(),
        ..Default::default()
    };
    assert_eq!(found, expected);
    let leaf: serde_json::Value = serde_json::from_slice(&found.leaf).unwrap();
    assert_eq!((&leaf["kind"], &leaf["action"]), (&"event".into(), &"DOWNLOAD".into()));

    // What is not told is the call's own; a word of the server's is told from a change by its kind.
    let request = told("DELETE", |event| event.target = Some(reference(Kind::Decision, "d", 1)));
    let seq = ok!(me.audit().log_event(request)).receipt.unwrap().audit_seq;
    let found = entry(&me, seq).await;
    assert_eq!((found.seq, found.success, found.kind.as_str()), (3, Some(true), "event"));
    assert_eq!(found.target, Some(reference(Kind::Decision, "d", 1)));
    assert_eq!((found.actor.as_str(), found.user_id.as_str()), ("gateway", ""));
    assert_eq!(found.ip_address, "127.0.0.1");
    assert!(found.user_agent.contains("tonic"));
    assert_eq!((found.changes, found.metadata), (None, None));
    // A change says the same of itself in the same words.
    let change = entry(&me, 1).await;
    assert_eq!((change.success, change.kind.as_str()), (Some(true), "decision"));
    assert_eq!((change.user_id.as_str(), change.archived), ("gateway", false));
    world.close().await;
}

#[tokio::test]
async fn events_are_found_by_key_user_and_action_among_the_changes() {
    let world = World::new().await;
    let me = world.anonymous();
    ok!(me.decisions().create_decision(create("d", decision("ALLOW", 0.5))));
    for (action, key, user) in
        [("UPLOAD", "a/1", "ann"), ("DOWNLOAD", "a/1", "bob"), ("LOGIN_FAILED", "", "bob")]
    {
        let request = told(action, |event| {
            event.object_key = key.into();
            event.user_id = user.into();
        });
        ok!(me.audit().log_event(request));
    }
    let request = told("READ", |event| event.target = Some(reference(Kind::Decision, "d", 0)));
    ok!(me.audit().log_event(request));
    for (text, wanted) in [
        ("", vec![5, 4, 3, 2, 1]),
        ("kind = event", vec![5, 4, 3, 2]),
        ("kind = event AND entity_id = \"a/1\"", vec![3, 2]),
        ("entity_id = d", vec![5, 1]),
        ("actor = bob", vec![4, 3]),
        ("action = LOGIN_FAILED", vec![4]),
        ("kind != event", vec![1]),
    ] {
        let request =
            pb::ListAuditEntriesRequest { r#where: expression(text), ..Default::default() };
        let found = ok!(me.audit().list_audit_entries(request)).entries;
        let seqs: Vec<i64> = found.iter().map(|entry| entry.seq).collect();
        assert_eq!(seqs, wanted, "{text}");
    }
    let of_d = pb::ListAuditEntriesRequest {
        target: Some(reference(Kind::Decision, "d", 0)),
        include_changes: true,
        ..Default::default()
    };
    assert_eq!(ok!(me.audit().list_audit_entries(of_d)).entries.len(), 1, "changes only");
    // Events have changed nothing, and lists with changes show them all the same.
    let all = entries(&me, 10).await;
    assert!(all[..4].iter().all(|entry| entry.changes.is_none()) && all[4].changes.is_some());
    let success =
        pb::ListAuditEntriesRequest { r#where: expression("success = true"), ..Default::default() };
    fails!(me.audit().list_audit_entries(success), InvalidArgument, "FILTER_INVALID");
    world.close().await;
}

#[tokio::test]
async fn telling_an_event_is_a_write_like_any_other() {
    let world = World::new().await;
    world.tenant("other").await;
    let me = world.anonymous();
    let once = |n: &str| pb::LogEventRequest {
        options: Some(request("key-1")),
        ..told("LOGIN", |event| event.user_id = n.into())
    };
    let first = ok!(me.audit().log_event(once("ann"))).receipt.unwrap();
    let again = ok!(me.audit().log_event(once("ann"))).receipt.unwrap();
    assert_eq!((first.audit_seq, first.replayed), (1, false));
    assert_eq!((again.audit_seq, again.replayed), (1, true));
    fails!(me.audit().log_event(once("bob")), InvalidArgument, "REQUEST_ID_REUSED");
    let rehearsed = pb::LogEventRequest {
        options: Some(pb::WriteOptions { validate_only: true, ..Default::default() }),
        ..told("LOGIN", |_| {})
    };
    assert_eq!(ok!(me.audit().log_event(rehearsed)).receipt, None);
    let depends = pb::LogEventRequest {
        options: Some(pb::WriteOptions {
            preconditions: vec![pb::Precondition {
                check: Some(pb::precondition::Check::MustExist(reference(
                    Kind::Decision,
                    "none",
                    0,
                ))),
            }],
            ..Default::default()
        }),
        ..told("LOGIN", |_| {})
    };
    fails!(me.audit().log_event(depends), FailedPrecondition, "PRECONDITION_FAILED");
    let remarked = pb::LogEventRequest {
        options: Some(pb::WriteOptions {
            audit_context: Some(object(&[("ticket", "T-1")])),
            ..Default::default()
        }),
        ..told("LOGIN", |_| {})
    };
    assert_eq!(ok!(me.audit().log_event(remarked)).receipt.unwrap().audit_seq, 2);
    assert_eq!(entry(&me, 2).await.context, Some(object(&[("ticket", "T-1")])));
    // Another tenant has a log of its own.
    let other = world.as_tenant("other");
    assert!(entries(&other, 10).await.is_empty());
    assert_eq!(ok!(other.audit().log_event(once("ann"))).receipt.unwrap().audit_seq, 1);
    // Many at once are numbered without gaps.
    let calls = (0..64).map(|n| {
        let mut client = me.audit();
        async move {
            let told = told("TICK", |event| event.object_key = format!("k/{n}"));
            ok!(client.log_event(told)).receipt.unwrap().audit_seq
        }
    });
    let mut seqs = futures_util::future::join_all(calls).await;
    seqs.sort_unstable();
    assert_eq!(seqs, (3..67).collect::<Vec<_>>());
    world.close().await;
}

#[tokio::test]
async fn an_event_that_is_wrong_is_refused_by_field() {
    let world = World::new().await;
    let me = world.anonymous();
    let x = |n: usize| "x".repeat(n);
    for (request, reason, field) in [
        (told("", |_| {}), "FIELD_INVALID", "event.action"),
        (told("download", |_| {}), "FIELD_INVALID", "event.action"),
        (told(&format!("A{}", "B".repeat(64)), |_| {}), "FIELD_INVALID", "event.action"),
        (told("A", |e| e.object_key = x(1025)), "FIELD_INVALID", "event.object_key"),
        (told("A", |e| e.object_key = "a\0".into()), "NUL_BYTE", "event.object_key"),
        (told("A", |e| e.user_id = x(256)), "FIELD_INVALID", "event.user_id"),
        (told("A", |e| e.username = x(256)), "FIELD_INVALID", "event.username"),
        (told("A", |e| e.user_agent = x(256)), "FIELD_INVALID", "event.user_agent"),
        (told("A", |e| e.ip_address = "1.2.3".into()), "FIELD_INVALID", "event.ip_address"),
        (told("A", |e| e.trace_id = x(32)), "FIELD_INVALID", "event.trace_id"),
        (told("A", |e| e.error_message = x(8193)), "FIELD_INVALID", "event.error_message"),
        (
            told("A", |e| e.metadata = Some(object(&[("a", &x(65_536))]))),
            "JSON_TOO_LARGE",
            "event.metadata",
        ),
        (
            told("A", |e| e.target = Some(reference(Kind::Unspecified, "d", 0))),
            "FIELD_INVALID",
            "event.target.kind",
        ),
        (
            told("A", |e| e.target = Some(reference(Kind::Decision, "", 0))),
            "FIELD_INVALID",
            "event.target.id",
        ),
        (
            told("A", |e| e.target = Some(reference(Kind::Decision, "d", -1))),
            "FIELD_INVALID",
            "event.target.version",
        ),
        (
            told("A", |e| {
                e.target = Some(reference(Kind::Decision, "d", 1));
                e.object_key = "k".into();
            }),
            "FIELD_INVALID",
            "event.object_key",
        ),
        (pb::LogEventRequest::default(), "FIELD_INVALID", "event"),
    ] {
        let status = fails!(me.audit().log_event(request), InvalidArgument, reason);
        assert_eq!(wrong_fields(&status), [field], "{status:?}");
    }
    assert!(entries(&me, 10).await.is_empty());
    world.close().await;
}
