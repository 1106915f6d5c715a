//! Precedents: F4, F19, F20, historical cases with their place in time, their standing and their input's hash.

use crate::help::*;
use crate::world::{World, create, decision, object, request, wrong_fields};
use casebook::pb;

pub fn time(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds, nanos: 0 })
}

fn full() -> pb::Precedent {
    use pb::PrecedentStatus::Superseded;
    pb::Precedent {
        decision_id: "dec-1".into(),
        input: Some(object(&[("income", "900"), ("age", "40")])),
        summary: "A loan below the line.".into(),
        final_verdict: "DENY".into(),
        final_reason: "Income is too low.".into(),
        avg_confidence: Some(0.75),
        ambiguity: Some(0.25),
        tags: vec!["loan".into(), "critical".into()],
        context: "Branch 7".into(),
        metadata: Some(object(&[("k", "v")])),
        labels: labels(&[("team", "red")]),
        occur_time: time(1_700_000_000),
        status: Superseded.into(),
        superseded_by_id: "prec-2".into(),
        retention_class: "credit".into(),
        subject_id: "person-1".into(),
        ..Default::default()
    }
}

/// The smallest one that is complete.
pub fn small() -> pb::Precedent {
    pb::Precedent { final_verdict: "ALLOW".into(), ..Default::default() }
}

pub fn record(id: &str, precedent: pb::Precedent) -> pb::CreatePrecedentRequest {
    pb::CreatePrecedentRequest {
        precedent_id: id.into(),
        precedent: Some(precedent),
        options: None,
        embeddings: Vec::new(),
    }
}

pub fn get(id: &str) -> pb::GetPrecedentRequest {
    pb::GetPrecedentRequest { precedent_id: id.into(), ..Default::default() }
}

pub fn remove(id: &str) -> pb::DeletePrecedentRequest {
    pb::DeletePrecedentRequest { precedent_id: id.into(), ..Default::default() }
}

pub fn restore(id: &str) -> pb::UndeletePrecedentRequest {
    pb::UndeletePrecedentRequest { precedent_id: id.into(), ..Default::default() }
}

pub fn change(id: &str, paths: &[&str], precedent: pb::Precedent) -> pb::UpdatePrecedentRequest {
    pb::UpdatePrecedentRequest {
        precedent: Some(pb::Precedent { id: id.into(), ..precedent }),
        update_mask: mask(paths),
        options: None,
    }
}

pub fn on_conflict(how: pb::OnConflict) -> Option<pb::WriteOptions> {
    Some(pb::WriteOptions { on_conflict: how.into(), ..Default::default() })
}

#[tokio::test]
async fn a_precedent_comes_back_as_given_and_keeps_every_version() {
    let world = World::new().await;
    let mut client = world.anonymous().precedents();
    let made = ok!(client.create_precedent(record("prec-001", full()))).precedent.unwrap();
    let expected = pb::Precedent {
        id: "prec-001".into(),
        etag: made.etag.clone(),
        meta: made.meta.clone(),
        case_hash: made.case_hash.clone(),
        ..full()
    };
    assert_eq!(made, expected);
    assert_eq!(ok!(client.get_precedent(get("prec-001"))).precedent.as_ref(), Some(&made));

    // The same input has the same hash as a decision's, in whatever order it came.
    let mut decided = decision("DENY", 0.5);
    decided.input_data = Some(object(&[("age", "40"), ("income", "900")]));
    let decided = ok!(world.decisions().create_decision(create("dec-1", decided)));
    assert_eq!(made.case_hash, decided.decision.unwrap().case_hash);
    assert_eq!(made.case_hash.len(), 64);

    // Its time is when it is recorded, unless it is told.
    let least = ok!(client.create_precedent(record("", small()))).precedent.unwrap();
    let meta = least.meta.clone().unwrap();
    assert_eq!((least.occur_time, &least.id), (meta.create_time, &meta.uid));
    assert_eq!((least.status(), least.case_hash.as_str()), (pb::PrecedentStatus::Active, ""));
    let epoch = pb::Precedent { occur_time: time(0), ..small() };
    let epoch = ok!(client.create_precedent(record("", epoch))).precedent.unwrap();
    assert_eq!(epoch.occur_time, time(0));

    // The hash follows the input, and nothing else.
    let other = pb::Precedent { input: Some(object(&[("a", "b")])), ..full() };
    let two = ok!(client.update_precedent(change("prec-001", &["summary"], other.clone())));
    assert!(two.receipt.unwrap().unchanged);
    let two = ok!(client.update_precedent(change("prec-001", &["input"], other))).precedent;
    let two = two.unwrap();
    assert_ne!(two.case_hash, made.case_hash);
    assert_eq!(two.input, Some(object(&[("a", "b")])));
    let none = ok!(client.update_precedent(change("prec-001", &["input"], small())));
    assert_eq!((none.precedent.as_ref().unwrap().case_hash.as_str()), "");
    for (version, expected) in [(1, &made), (2, &two), (0, none.precedent.as_ref().unwrap())] {
        let asked = pb::GetPrecedentRequest { version, ..get("prec-001") };
        assert_eq!(ok!(client.get_precedent(asked)).precedent.as_ref(), Some(expected));
    }
    let all = [
        "decision_id",
        "input",
        "summary",
        "final_verdict",
        "final_reason",
        "avg_confidence",
        "ambiguity",
        "tags",
        "context",
        "metadata",
        "labels",
        "occur_time",
        "status",
        "superseded_by_id",
        "retention_class",
        "subject_id",
    ];
    let back = ok!(client.update_precedent(change("prec-001", &all, full()))).precedent.unwrap();
    let expected = pb::Precedent { etag: back.etag.clone(), meta: back.meta.clone(), ..made };
    assert_eq!(back, expected);
    world.close().await;
}

#[tokio::test]
async fn a_precedent_stands_until_it_is_superseded_or_withdrawn() {
    use pb::PrecedentStatus::{Active, Superseded, Withdrawn};
    let world = World::new().await;
    let mut client = world.anonymous().precedents();
    ok!(client.create_precedent(record("p", small())));
    let standing = |status: pb::PrecedentStatus, by: &str| pb::Precedent {
        status: status.into(),
        superseded_by_id: by.into(),
        ..small()
    };
    let both = &["status", "superseded_by_id"][..];
    let by = ["precedent.superseded_by_id"];
    for (paths, given) in [
        (both, standing(Active, "q")),
        (both, standing(Withdrawn, "q")),
        (both, standing(Superseded, "p")),
        (&both[1..], standing(Superseded, "q")),
    ] {
        let call = client.update_precedent(change("p", paths, given.clone()));
        assert_eq!(wrong_fields(&fails!(call, InvalidArgument, "FIELD_INVALID")), by);
    }
    for (paths, given) in [
        (both, standing(Superseded, "q")),
        // What the mask does not name is as it was, not as the message has it.
        (&both[1..], standing(Active, "r")),
        (&both[1..], standing(Active, "")),
        (&both[..1], standing(Withdrawn, "")),
        (&both[..1], standing(pb::PrecedentStatus::Unspecified, "")),
    ] {
        let changed = ok!(client.update_precedent(change("p", paths, given.clone())));
        let changed = changed.precedent.unwrap();
        if paths.contains(&"superseded_by_id") {
            assert_eq!(changed.superseded_by_id, given.superseded_by_id);
            assert_eq!(changed.status(), Superseded);
        }
    }
    let now = ok!(client.get_precedent(get("p"))).precedent.unwrap();
    assert_eq!(now.status(), Active);
    world.close().await;
}

#[tokio::test]
async fn precedents_that_make_no_sense_are_refused() {
    let world = World::new().await;
    let mut client = world.anonymous().precedents();
    let with = |change: fn(&mut pb::Precedent)| {
        let mut precedent = full();
        change(&mut precedent);
        precedent
    };
    for (given, field) in [
        (with(|p| p.decision_id = "no good".into()), "decision_id"),
        (with(|p| p.summary = "x".repeat(65_537)), "summary"),
        (with(|p| p.final_verdict = "deny".into()), "final_verdict"),
        (with(|p| p.final_verdict = "".into()), "final_verdict"),
        (with(|p| p.final_reason = "x".repeat(65_537)), "final_reason"),
        (with(|p| p.context = "x".repeat(65_537)), "context"),
        (with(|p| p.avg_confidence = Some(f64::NAN)), "avg_confidence"),
        (with(|p| p.ambiguity = Some(1.5)), "ambiguity"),
        (with(|p| p.tags = vec!["".into()]), "tags[0]"),
        (with(|p| p.tags = vec!["x".repeat(129)]), "tags[0]"),
        (with(|p| p.status = 9), "status"),
        (with(|p| p.superseded_by_id = "prec".into()), "superseded_by_id"),
        (with(|p| p.occur_time = time(1 << 60)), "occur_time"),
        (with(|p| p.occur_time = time(253_402_300_800)), "occur_time"),
        (with(|p| p.retention_class = "x".repeat(64)), "retention_class"),
        (with(|p| p.subject_id = "x".repeat(256)), "subject_id"),
        (with(|p| p.id = "other".into()), "id"),
    ] {
        let status = fails!(
            client.create_precedent(record("prec", given)),
            InvalidArgument,
            "FIELD_INVALID"
        );
        let wanted = format!("precedent.{field}");
        assert!(wrong_fields(&status).contains(&wanted), "{wanted}: {status:?}");
    }
    let twice = with(|p| p.tags = vec!["a".into(), "a".into()]);
    let call = client.create_precedent(record("p", twice));
    fails!(call, InvalidArgument, "DUPLICATE_IN_BATCH");
    ok!(client.create_precedent(record("p", full())));
    for (paths, reason) in [
        (&[][..], "FIELD_INVALID"),
        (&["case_hash"], "FIELD_IMMUTABLE"),
        (&["meta"], "FIELD_IMMUTABLE"),
        (&["nope"], "UNKNOWN_FIELD"),
    ] {
        fails!(client.update_precedent(change("p", paths, full())), InvalidArgument, reason);
    }
    let timeless = pb::Precedent { occur_time: None, ..full() };
    let call = client.update_precedent(change("p", &["occur_time"], timeless));
    let status = fails!(call, InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["precedent.occur_time"]);
    let stale = pb::Precedent { etag: "\"0-1\"".into(), ..full() };
    fails!(client.update_precedent(change("p", &["summary"], stale)), Aborted, "ETAG_MISMATCH");
    fails!(client.update_precedent(change("q", &["summary"], full())), NotFound, "NOT_FOUND");
    fails!(client.get_precedent(get("q")), NotFound, "NOT_FOUND");
    fails!(client.delete_precedent(remove("q")), NotFound, "NOT_FOUND");
    fails!(client.undelete_precedent(restore("p")), AlreadyExists, "EXISTS");
    fails!(client.undelete_precedent(restore("q")), NotFound, "NOT_FOUND");
    assert_eq!(head(&world.anonymous()).await, 1);
    world.close().await;
}

#[tokio::test]
async fn an_id_that_is_taken_is_settled_as_asked_and_a_batch_is_all_or_nothing() {
    let world = World::new().await;
    let mut client = world.anonymous().precedents();
    let once = |id: &str, precedent| pb::CreatePrecedentRequest {
        options: Some(request("r-1")),
        ..record(id, precedent)
    };
    let made = ok!(client.create_precedent(once("p", full())));
    let again = ok!(client.create_precedent(once("p", full())));
    assert_eq!(again.precedent, made.precedent);
    assert!(again.receipt.unwrap().replayed);
    fails!(client.create_precedent(once("p", small())), InvalidArgument, "REQUEST_ID_REUSED");
    fails!(client.create_precedent(record("p", full())), AlreadyExists, "EXISTS");
    let how = |precedent, how| pb::CreatePrecedentRequest {
        options: on_conflict(how),
        ..record("p", precedent)
    };
    use pb::OnConflict::{Replace, ReturnIfEqual};
    let equal = ok!(client.create_precedent(how(full(), ReturnIfEqual)));
    assert!(equal.receipt.unwrap().unchanged && equal.precedent == made.precedent);
    let other = pb::Precedent { input: None, tags: Vec::new(), ..full() };
    let call = client.create_precedent(how(other.clone(), ReturnIfEqual));
    let status = fails!(call, AlreadyExists, "EXISTS_DIFFERENT");
    assert_eq!(info(&status)["fields"], "input,tags");
    let replaced = ok!(client.create_precedent(how(other, Replace))).precedent.unwrap();
    assert_eq!((replaced.meta.unwrap().version, replaced.case_hash.as_str()), (2, ""));

    let before = head(&world.anonymous()).await;
    let batch = |ids: &[&str]| pb::BatchCreatePrecedentsRequest {
        requests: ids.iter().map(|id| record(id, small())).collect(),
        options: None,
    };
    fails!(client.batch_create_precedents(batch(&["a", "p"])), AlreadyExists, "EXISTS");
    let twice = client.batch_create_precedents(batch(&["a", "a"]));
    fails!(twice, InvalidArgument, "DUPLICATE_IN_BATCH");
    fails!(client.batch_create_precedents(batch(&[])), InvalidArgument, "FIELD_INVALID");
    assert_eq!(head(&world.anonymous()).await, before);
    let made = ok!(client.batch_create_precedents(batch(&["b", "a", ""])));
    assert_eq!(made.receipt.unwrap().audit_seq, before + 3);
    let several = |ids: &[&str], allow_missing| pb::BatchGetPrecedentsRequest {
        precedent_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        allow_missing,
        ..Default::default()
    };
    let found = ok!(client.batch_get_precedents(several(&["a", "no", "b"], true)));
    assert_eq!(found.precedents, [made.precedents[1].clone(), made.precedents[0].clone()]);
    assert_eq!(found.missing_ids, ["no"]);
    fails!(client.batch_get_precedents(several(&["a", "no"], false)), NotFound, "NOT_FOUND");
    world.close().await;
}

#[tokio::test]
async fn precedents_are_listed_by_filter_in_order_and_by_their_own_time() {
    let world = World::new().await;
    let mut client = world.anonymous().precedents();
    for (n, (id, verdict, tags)) in [
        ("a", "ALLOW", &["loan", "critical"][..]),
        ("b", "DENY", &["loan"]),
        ("c", "DENY", &["rent"]),
    ]
    .into_iter()
    .enumerate()
    {
        let precedent = pb::Precedent {
            final_verdict: verdict.into(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            occur_time: time(1_700_000_000 - n as i64),
            status: 0,
            superseded_by_id: String::new(),
            ..full()
        };
        ok!(client.create_precedent(record(id, precedent)));
    }
    let mut ids = async |text: &str, order_by: &str| {
        let request = pb::ListPrecedentsRequest {
            page: Some(pb::PageRequest { order_by: order_by.into(), ..Default::default() }),
            r#where: expression(text),
            ..Default::default()
        };
        let found = ok!(client.list_precedents(request)).precedents;
        found.into_iter().map(|precedent| precedent.id).collect::<String>()
    };
    assert_eq!(ids("", "").await, "abc");
    assert_eq!(ids("tags:loan", "").await, "ab");
    assert_eq!(ids("tags:loan AND tags:critical", "").await, "a");
    assert_eq!(ids("final_verdict = DENY AND status = ACTIVE", "id desc").await, "cb");
    assert_eq!(
        ids("metadata.k = v AND labels.team = red AND decision_id = dec-1", "").await,
        "abc"
    );
    let window = pb::TimeWindow { end_time: time(1_700_000_000), ..Default::default() };
    let request = pb::ListPrecedentsRequest { window: Some(window), ..Default::default() };
    assert_eq!(ok!(client.list_precedents(request)).precedents.len(), 2);

    // Pages are of one revision, and a deleted one is shown only if asked for.
    let mut list = pb::ListPrecedentsRequest { page: page(1), ..Default::default() };
    let first = ok!(client.list_precedents(list.clone()));
    ok!(client.update_precedent(change("b", &["summary"], pb::Precedent::default())));
    ok!(client.delete_precedent(remove("c")));
    list.page.as_mut().unwrap().page_size = 10;
    list.page.as_mut().unwrap().page_token = first.page.unwrap().next_page_token;
    let rest = ok!(client.list_precedents(list)).precedents;
    assert_eq!((rest.len(), rest[0].summary.as_str()), (2, "A loan below the line."));
    let deleted = |show_deleted| pb::ListPrecedentsRequest { show_deleted, ..Default::default() };
    assert_eq!(ok!(client.list_precedents(deleted(false))).precedents.len(), 2);
    assert_eq!(ok!(client.list_precedents(deleted(true))).precedents.len(), 3);
    world.close().await;
}

#[tokio::test]
async fn a_precedents_decision_must_exist_only_where_the_tenant_says_so() {
    let world = World::new().await;
    ok!(world.anonymous().precedents().create_precedent(record("p", full())));
    world.tenant("strict").await;
    let strict = pb::UpdateTenantRequest {
        tenant: Some(pb::Tenant {
            id: "strict".into(),
            strict_references: true,
            ..Default::default()
        }),
        update_mask: mask(&["strict_references"]),
        options: None,
    };
    ok!(world.as_tenant("system").tenants().update_tenant(strict));
    let who = world.as_tenant("strict");
    let mut client = who.precedents();
    let call = client.create_precedent(record("p", full()));
    let status = fails!(call, FailedPrecondition, "REFERENCE_MISSING");
    assert_eq!(info(&status)["field"], "decision_id");
    fails!(client.get_precedent(get("p")), NotFound, "NOT_FOUND");
    ok!(client.create_precedent(record("p", small())));
    let call = client.update_precedent(change("p", &["decision_id"], full()));
    fails!(call, FailedPrecondition, "REFERENCE_MISSING");
    ok!(who.decisions().create_decision(create("dec-1", decision("DENY", 0.5))));
    ok!(client.update_precedent(change("p", &["decision_id"], full())));
    ok!(client.create_precedent(record("q", full())));
    world.close().await;
}

#[tokio::test]
async fn a_tenant_sees_its_own_precedents_only() {
    let world = World::new().await;
    world.tenant("alpha").await;
    world.tenant("beta").await;
    let (mut alpha, mut beta) =
        (world.as_tenant("alpha").precedents(), world.as_tenant("beta").precedents());
    let mine = ok!(alpha.create_precedent(record("p", full()))).precedent.unwrap();
    fails!(beta.get_precedent(get("p")), NotFound, "NOT_FOUND");
    fails!(beta.delete_precedent(remove("p")), NotFound, "NOT_FOUND");
    fails!(beta.update_precedent(change("p", &["summary"], full())), NotFound, "NOT_FOUND");
    assert_eq!(ok!(beta.list_precedents(pb::ListPrecedentsRequest::default())).precedents, []);
    ok!(beta.create_precedent(record("p", small())));
    assert_eq!(ok!(alpha.get_precedent(get("p"))).precedent, Some(mine));
    world.close().await;
}
