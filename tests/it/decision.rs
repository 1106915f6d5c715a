//! Decisions one by one: F13 to F18, F30, F39, C2, C12, C29, C30, through the client.

use crate::help::*;
use crate::world::{World, create, create_once, decision, get, object, wrong_fields};
use casebook::pb;

/// A decision with every field that a caller may give.
fn full() -> pb::Decision {
    pb::Decision {
        final_verdict: "DENY".into(),
        input_data: Some(object(&[("text", "hello"), ("amount", "12")])),
        reason: "Too little income.".into(),
        avg_confidence: Some(0.95),
        ambiguity: Some(0.0),
        verdict_scores: [("ALLOW".to_owned(), 0.25), ("DENY".to_owned(), -3.5)].into(),
        citations: vec![pb::Citation {
            precedent_id: "prec-001".into(),
            similarity: Some(-1.0),
            influence: Some(1.0),
            search_receipt_id: "receipt-1".into(),
        }],
        evidence: vec![reference(pb::ResourceKind::Decision, "dec-0", 3)],
        policy_rules: vec![reference(pb::ResourceKind::PolicyRule, "rule-1", 0)],
        model_version: "m-1".into(),
        trace_id: "t-1".into(),
        decide_time: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 123_456_000 }),
        processing_time: Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }),
        metadata: Some(object(&[("source", "web")])),
        labels: labels(&[("env", "prod")]),
        retention_class: "credit".into(),
        subject_id: "person-1".into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn every_field_of_a_decision_comes_back_as_given() {
    let world = World::new().await;
    let mut client = world.decisions();
    let created = ok!(client.create_decision(create("dec-123", full())));
    let read = ok!(client.get_decision(get("dec-123"))).decision.unwrap();
    assert_eq!(Some(&read), created.decision.as_ref());
    assert_eq!(created.receipt.unwrap().audit_seq, 1);
    let meta = read.meta.clone().unwrap();
    assert_eq!((meta.version, meta.created_by.as_str()), (1, "anonymous"));
    assert_eq!(meta.create_time, meta.update_time);
    assert_eq!(read.state(), pb::DecisionState::Final);
    // SHA-256 of {"amount":"12","text":"hello"}
    use sha2::Digest;
    let digest = sha2::Sha256::digest(br#"{"amount":"12","text":"hello"}"#);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(read.case_hash, hex);
    let given = pb::Decision {
        id: "dec-123".into(),
        etag: read.etag.clone(),
        meta: read.meta.clone(),
        state: read.state,
        case_hash: hex,
        ..full()
    };
    assert_eq!(read, given);

    fails!(client.create_decision(create("dec-123", full())), AlreadyExists, "EXISTS");
    fails!(client.get_decision(get("dec-124")), NotFound, "NOT_FOUND");
    world.close().await;
}

#[tokio::test]
async fn the_time_of_a_decision_is_as_given_whichever_it_is() {
    let world = World::new().await;
    let mut client = world.decisions();
    // The epoch, and the first and the last time there is.
    let times = [(0, 0), (-62_135_596_800, 0), (-1, 999_999_000), (253_402_300_799, 999_999_000)];
    for (n, (seconds, nanos)) in times.into_iter().enumerate() {
        let id = format!("d-{n}");
        let decide_time = Some(prost_types::Timestamp { seconds, nanos });
        let given = pb::Decision { decide_time, ..decision("ALLOW", 0.5) };
        let made = ok!(client.create_decision(create(&id, given.clone()))).decision.unwrap();
        assert_eq!(made.decide_time, decide_time);
        assert_eq!(ok!(client.get_decision(get(&id))).decision, Some(made.clone()));
        let again = pb::CreateDecisionRequest {
            options: on_conflict(pb::OnConflict::ReturnIfEqual),
            ..create(&id, given)
        };
        assert_eq!(ok!(client.create_decision(again)).decision, Some(made));
    }
    world.close().await;
}

#[tokio::test]
async fn ids_are_the_callers_or_else_the_servers() {
    let world = World::new().await;
    let mut client = world.decisions();
    let made = ok!(client.create_decision(create("", decision("ALLOW", 0.5)))).decision.unwrap();
    assert_eq!(made.id, made.meta.as_ref().unwrap().uid);
    // Unset on create means create_time.
    assert_eq!(made.decide_time, made.meta.unwrap().create_time);
    let long = "a".repeat(255);
    for id in ["a", "9", "dec-123", "a/b:c@d+e=f~g.h_i-j", &long, "CASE", "case"] {
        let made = ok!(client.create_decision(create(id, decision("ALLOW", 0.5))));
        assert_eq!(made.decision.unwrap().id, id);
        ok!(client.get_decision(get(id)));
    }
    // The id may stand in the resource instead, but not be two.
    let inside = pb::Decision { id: "inside".into(), ..decision("ALLOW", 0.5) };
    let made = ok!(client.create_decision(create("", inside.clone()))).decision.unwrap();
    assert_eq!(made.id, "inside");
    let two = fails!(client.create_decision(create("x", inside)), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&two), ["decision.id"]);
    world.close().await;
}

#[tokio::test]
async fn reads_are_of_now_of_a_version_or_of_a_revision() {
    let world = World::new().await;
    let mut client = world.decisions();
    let first = ok!(client.create_decision(create("d", decision("ALLOW", 0.5))));
    let labelled = pb::Decision { labels: labels(&[("a", "1")]), ..Default::default() };
    let second = ok!(client.update_decision(update("d", &["labels"], labelled)));
    let (one, two) = (first.decision.unwrap(), second.decision.unwrap());
    assert_eq!(two.meta.as_ref().unwrap().version, 2);
    assert_ne!(one.etag, two.etag);
    let at = |revision: &pb::Revision| {
        let requirement = pb::consistency::Requirement::AtExactSnapshot(revision.clone());
        Some(pb::Consistency { requirement: Some(requirement) })
    };
    let (r1, r2) =
        (first.receipt.unwrap().revision.unwrap(), second.receipt.unwrap().revision.unwrap());
    let read = |version, consistency| pb::GetDecisionRequest { version, consistency, ..get("d") };
    for (request, expected) in [
        (read(0, None), &two),
        (read(1, None), &one),
        (read(2, None), &two),
        (read(0, at(&r1)), &one),
        (read(0, at(&r2)), &two),
    ] {
        assert_eq!(ok!(client.get_decision(request)).decision.as_ref(), Some(expected));
    }
    let fresh = pb::consistency::Requirement::AtLeastAsFresh(r2.clone());
    let fresh = Some(pb::Consistency { requirement: Some(fresh) });
    assert_eq!(ok!(client.get_decision(read(0, fresh))).decision, Some(two.clone()));
    fails!(client.get_decision(read(3, None)), NotFound, "NOT_FOUND");
    fails!(client.get_decision(read(-1, None)), InvalidArgument, "FIELD_INVALID");
    fails!(client.get_decision(read(1, at(&r1))), InvalidArgument, "FIELD_INVALID");

    // Deleted now, but there at the revisions before; not there at the first of another id.
    let gone = ok!(client.delete_decision(delete("d")));
    fails!(client.get_decision(get("d")), NotFound, "NOT_FOUND");
    assert_eq!(ok!(client.get_decision(read(0, at(&r2)))).decision, Some(two));
    let after = gone.receipt.unwrap().revision.unwrap();
    fails!(client.get_decision(read(0, at(&after))), NotFound, "NOT_FOUND");
    ok!(client.create_decision(create("later", decision("ALLOW", 0.5))));
    let request = pb::GetDecisionRequest { consistency: at(&r1), ..get("later") };
    fails!(client.get_decision(request), NotFound, "NOT_FOUND");
    let batch = pb::BatchGetDecisionsRequest {
        decision_ids: vec!["later".into(), "d".into()],
        consistency: at(&r1),
        allow_missing: true,
        ..Default::default()
    };
    let found = ok!(client.batch_get_decisions(batch));
    assert_eq!((found.decisions, found.missing_ids), (vec![one], vec!["later".to_owned()]));
    world.close().await;
}

#[tokio::test]
async fn a_read_mask_gives_the_named_fields_and_the_id() {
    let world = World::new().await;
    let mut client = world.decisions();
    ok!(client.create_decision(create("d", full())));
    let masked =
        pb::GetDecisionRequest { read_mask: mask(&["final_verdict", "labels"]), ..get("d") };
    let expected = pb::Decision {
        id: "d".into(),
        final_verdict: "DENY".into(),
        labels: labels(&[("env", "prod")]),
        ..Default::default()
    };
    assert_eq!(ok!(client.get_decision(masked)).decision, Some(expected.clone()));
    let list = pb::ListDecisionsRequest {
        read_mask: mask(&["final_verdict", "labels"]),
        ..Default::default()
    };
    assert_eq!(ok!(client.list_decisions(list)).decisions, std::slice::from_ref(&expected));
    let batch = pb::BatchGetDecisionsRequest {
        decision_ids: vec!["d".into()],
        read_mask: mask(&["final_verdict", "labels"]),
        ..Default::default()
    };
    assert_eq!(ok!(client.batch_get_decisions(batch)).decisions, [expected]);
    let all = pb::GetDecisionRequest { read_mask: mask(&["*"]), ..get("d") };
    let whole = ok!(client.get_decision(get("d"))).decision;
    assert_eq!(ok!(client.get_decision(all)).decision, whole);
    for path in ["nope", "final_verdict.x", ""] {
        let wrong = pb::GetDecisionRequest { read_mask: mask(&[path]), ..get("d") };
        let status = fails!(client.get_decision(wrong), InvalidArgument, "UNKNOWN_FIELD");
        assert_eq!(wrong_fields(&status), ["read_mask"]);
    }
    world.close().await;
}

#[tokio::test]
async fn a_repeated_request_gives_the_first_answer() {
    let world = World::new().await;
    let mut client = world.decisions();
    let once = |verdict| create_once("r-1", "", decision(verdict, 0.9));
    let first = ok!(client.create_decision(once("ALLOW")));
    let again = ok!(client.create_decision(once("ALLOW")));
    assert_eq!(again.decision, first.decision);
    assert!(again.receipt.unwrap().replayed && !first.receipt.unwrap().replayed);
    let other = fails!(client.create_decision(once("DENY")), InvalidArgument, "REQUEST_ID_REUSED");
    assert_eq!(wrong_fields(&other), ["options.request_id"]);
    assert_eq!(head(&world.anonymous()).await, 1);
    world.close().await;
}

#[tokio::test]
async fn an_update_changes_what_its_mask_names_and_nothing_else() {
    let world = World::new().await;
    let mut client = world.decisions();
    let made = ok!(client.create_decision(create("d", full()))).decision.unwrap();
    // What the mask does not name is passed over.
    let given = pb::Decision {
        final_verdict: "ALLOW".into(),
        labels: labels(&[("env", "test"), ("team", "a")]),
        metadata: Some(object(&[("k", "v")])),
        retention_class: "long".into(),
        ..Default::default()
    };
    let one = ok!(client.update_decision(update("d", &["labels"], given.clone())));
    let one = one.decision.unwrap();
    let expected = pb::Decision {
        labels: given.labels.clone(),
        etag: one.etag.clone(),
        meta: one.meta.clone(),
        ..made.clone()
    };
    assert_eq!(one, expected);
    let paths = ["metadata", "retention_class"];
    let two = ok!(client.update_decision(update("d", &paths, given.clone()))).decision.unwrap();
    assert_eq!((two.metadata, two.retention_class.as_str()), (given.metadata.clone(), "long"));

    // One label: set, then taken away; the others stay.
    let label = pb::Decision { labels: labels(&[("team", "b"), ("x", "1")]), ..Default::default() };
    let three = ok!(client.update_decision(update("d", &["labels.team"], label)));
    assert_eq!(three.decision.unwrap().labels, labels(&[("env", "test"), ("team", "b")]));
    let none = pb::Decision::default();
    let four = ok!(client.update_decision(update("d", &["labels.team"], none.clone())));
    assert_eq!(four.decision.unwrap().labels, labels(&[("env", "test")]));
    let five = ok!(client.update_decision(update("d", &["labels", "metadata"], none)));
    let five = five.decision.unwrap();
    assert_eq!((five.labels.len(), &five.metadata, five.meta.unwrap().version), (0, &None, 6));
    world.close().await;
}

#[tokio::test]
async fn a_mask_that_names_a_field_twice_says_it_once() {
    let world = World::new().await;
    let mut client = world.decisions();
    ok!(client.create_decision(create("d", decision("ALLOW", 0.5))));
    let given = pb::Decision {
        labels: labels(&[("env", "prod")]),
        metadata: Some(object(&[("k", "v")])),
        retention_class: "long".into(),
        ..Default::default()
    };
    let paths = ["labels", "labels", "labels.env", "metadata", "metadata", "retention_class"];
    let paths = [&paths[..], &["retention_class"]].concat();
    let updated = ok!(client.update_decision(update("d", &paths, given.clone())));
    let updated = updated.decision.unwrap();
    assert_eq!(updated.labels, given.labels);
    assert_eq!((updated.metadata, updated.retention_class), (given.metadata, "long".to_owned()));
    world.close().await;
}

#[tokio::test]
async fn masks_name_only_what_can_change() {
    let world = World::new().await;
    let mut client = world.decisions();
    ok!(client.create_decision(create("d", full())));
    let given = || pb::Decision { labels: labels(&[("", "x")]), ..full() };
    for (paths, reason) in [
        (&[][..], "FIELD_INVALID"),
        (&["*"], "FIELD_INVALID"),
        (&["final_verdict"], "FIELD_IMMUTABLE"),
        (&["input_data.text"], "FIELD_IMMUTABLE"),
        (&["id"], "FIELD_IMMUTABLE"),
        (&["etag"], "FIELD_IMMUTABLE"),
        (&["meta.version"], "FIELD_IMMUTABLE"),
        (&["state"], "FIELD_IMMUTABLE"),
        (&["case_hash"], "FIELD_IMMUTABLE"),
        (&["nope"], "UNKNOWN_FIELD"),
        (&["labels", "nope.x"], "FIELD_INVALID"),
        (&["labels."], "FIELD_INVALID"),
    ] {
        fails!(client.update_decision(update("d", paths, given())), InvalidArgument, reason);
    }
    let missing = update("other", &["retention_class"], full());
    fails!(client.update_decision(missing), NotFound, "NOT_FOUND");
    assert_eq!(head(&world.anonymous()).await, 1);
    world.close().await;
}

#[tokio::test]
async fn a_stale_etag_is_refused_with_the_current_one() {
    let world = World::new().await;
    let mut client = world.decisions();
    let made = ok!(client.create_decision(create("d", decision("ALLOW", 0.5)))).decision.unwrap();
    let class = |etag: &str, class: &str| {
        let given =
            pb::Decision { etag: etag.into(), retention_class: class.into(), ..Default::default() };
        update("d", &["retention_class"], given)
    };
    let second = ok!(client.update_decision(class(&made.etag, "a"))).decision.unwrap();
    let stale = fails!(client.update_decision(class(&made.etag, "b")), Aborted, "ETAG_MISMATCH");
    assert_eq!(info(&stale)["current_etag"], second.etag);
    let stale = pb::DeleteDecisionRequest { etag: made.etag.clone(), ..delete("d") };
    fails!(client.delete_decision(stale), Aborted, "ETAG_MISMATCH");
    let stale =
        pb::CreateOverrideRequest { decision_etag: made.etag, ..overrule("o", "d", "DENY") };
    fails!(client.create_override(stale), Aborted, "ETAG_MISMATCH");
    let current = pb::DeleteDecisionRequest { etag: second.etag, ..delete("d") };
    ok!(client.delete_decision(current));
    world.close().await;
}

#[tokio::test]
async fn an_update_that_changes_nothing_makes_no_version() {
    let world = World::new().await;
    let mut client = world.decisions();
    let made = ok!(client.create_decision(create("d", full()))).decision.unwrap();
    let answer = ok!(client.update_decision(update("d", &["labels", "metadata"], full())));
    assert_eq!(answer.decision, Some(made));
    let receipt = answer.receipt.unwrap();
    assert!(receipt.unchanged && !receipt.replayed);
    assert_eq!(receipt.audit_seq, 1);
    assert_eq!(head(&world.anonymous()).await, 1);
    // Taking away a label that is not there changes nothing either.
    let none = pb::Decision::default();
    let answer = ok!(client.update_decision(update("d", &["labels.nope"], none)));
    assert!(answer.receipt.unwrap().unchanged);
    world.close().await;
}

#[tokio::test]
async fn revisions_are_every_version_newest_first() {
    let world = World::new().await;
    let mut client = world.decisions();
    let actor = world.anonymous().header("x-casebook-actor", "ann");
    ok!(client.create_decision(create("d", decision("ALLOW", 0.5))));
    ok!(client.create_decision(create("noise", decision("ALLOW", 0.5))));
    let class = pb::Decision { retention_class: "a".into(), ..Default::default() };
    ok!(actor.decisions().update_decision(update("d", &["retention_class"], class)));
    ok!(client.create_override(overrule("o", "d", "DENY")));
    ok!(client.delete_decision(delete("d")));
    let back = ok!(client.undelete_decision(undelete("d"))).decision.unwrap();
    let list = |page| pb::ListDecisionRevisionsRequest { decision_id: "d".into(), page };
    let all = ok!(client.list_decision_revisions(list(None)));
    let actions: Vec<_> = all.revisions.iter().map(|r| r.action.as_str()).collect();
    assert_eq!(actions, ["UNDELETE", "DELETE", "OVERRIDE", "UPDATE", "CREATE"]);
    let versions: Vec<_> = all
        .revisions
        .iter()
        .map(|r| r.decision.as_ref().unwrap().meta.as_ref().unwrap().version)
        .collect();
    assert_eq!(versions, [5, 4, 3, 2, 1]);
    assert_eq!(all.revisions[0].decision, Some(back));
    assert!(all.revisions.windows(2).all(|pair| pair[0].audit_seq > pair[1].audit_seq));
    let second = all.revisions[3].decision.as_ref().unwrap();
    assert_eq!(second.meta.as_ref().unwrap().updated_by, "ann");

    // In pages of two: the same.
    let (mut paged, mut next) = (Vec::new(), String::new());
    loop {
        let page = pb::PageRequest { page_size: 2, page_token: next, ..Default::default() };
        let answer = ok!(client.list_decision_revisions(list(Some(page))));
        paged.extend(answer.revisions);
        next = answer.page.unwrap().next_page_token;
        if next.is_empty() {
            break;
        }
    }
    assert_eq!(paged, all.revisions);
    let ordered = pb::PageRequest { order_by: "seq".into(), ..Default::default() };
    let ordered = client.list_decision_revisions(list(Some(ordered)));
    fails!(ordered, InvalidArgument, "FIELD_INVALID");
    let missing =
        pb::ListDecisionRevisionsRequest { decision_id: "none".into(), ..Default::default() };
    fails!(client.list_decision_revisions(missing), NotFound, "NOT_FOUND");
    world.close().await;
}
