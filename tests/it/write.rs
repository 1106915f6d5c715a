//! What every write offers: replay, rehearsal, conflicts, preconditions, audit context (F29, F39, N11).

use crate::help::*;
use crate::world::{World, create, create_once, decision, get, object, request, wrong_fields};
use casebook::pb;
use pb::ResourceKind as Kind;

/// Makes a call twice under one request id: the second answers as the first and writes nothing.
macro_rules! replays {
    ($who:expr, $service:ident.$method:ident($request:expr)) => {{
        let who = $who;
        let mut request = $request;
        let id = format!("{} {}", stringify!($method), line!());
        request.options.get_or_insert_default().request_id = id;
        let first = ok!(who.$service().$method(request.clone()));
        let before = head(&who).await;
        let mut again = ok!(who.$service().$method(request));
        let receipt = again.receipt.as_mut().unwrap();
        assert!(receipt.replayed, "{}", stringify!($method));
        receipt.replayed = false;
        assert_eq!(again, first);
        assert_eq!(head(&who).await, before);
        first
    }};
}

#[tokio::test]
async fn every_kind_of_write_is_replayed() {
    let world = World::new().await;
    let me = world.anonymous();
    let mut given = decision("DENY", 0.5);
    given.critic_outputs = vec![critic("", "legal", "DENY", 0.25)];
    // Nothing to do, in a tenant without a log.
    let nothing = || pb::DeleteDecisionRequest { allow_missing: true, ..delete("nothing") };
    replays!(me.clone(), decisions.delete_decision(nothing()));
    let first = replays!(me.clone(), decisions.create_decision(create("", given.clone())));
    let id = first.decision.unwrap().id;
    let requests = (0..30)
        .map(|n| create(&if n % 2 == 0 { format!("b-{n}") } else { "".into() }, given.clone()))
        .collect();
    let batch = pb::BatchCreateDecisionsRequest { requests, options: None };
    replays!(me.clone(), decisions.batch_create_decisions(batch));
    let class = pb::Decision { retention_class: "long".into(), ..Default::default() };
    let paths = ["retention_class"];
    replays!(me.clone(), decisions.update_decision(update(&id, &paths, class.clone())));
    let same = replays!(me.clone(), decisions.update_decision(update(&id, &paths, class)));
    assert!(same.receipt.unwrap().unchanged);
    let critics = (0..5).map(|n| critic("", &format!("critic-{n}"), "ALLOW", 0.5)).collect();
    replays!(me.clone(), decisions.add_critic_outputs(add(&id, critics)));
    replays!(me.clone(), decisions.create_override(overrule("", &id, "ALLOW")));
    // The second finds the decision marked already.
    replays!(me.clone(), decisions.create_override(overrule("", &id, "REVIEW")));
    replays!(me.clone(), decisions.delete_decision(delete(&id)));
    replays!(me.clone(), decisions.delete_decision(nothing()));
    replays!(me.clone(), decisions.undelete_decision(undelete(&id)));

    replays!(me.clone(), policies.create_policy_rule(rule("", "one")));
    replays!(me.clone(), policies.create_policy_rule(rule("r", "two")));
    let mut again = rule("r", "two");
    again.options.get_or_insert_default().on_conflict = pb::OnConflict::ReturnIfEqual.into();
    let same = replays!(me.clone(), policies.create_policy_rule(again.clone()));
    assert!(same.receipt.unwrap().unchanged);
    again.policy_rule.as_mut().unwrap().name = "three".into();
    again.options.get_or_insert_default().on_conflict = pb::OnConflict::Replace.into();
    replays!(me.clone(), policies.create_policy_rule(again));
    let update = pb::UpdatePolicyRuleRequest {
        policy_rule: Some(pb::PolicyRule { id: "r".into(), active: true, ..Default::default() }),
        update_mask: mask(&["active"]),
        options: None,
    };
    replays!(me.clone(), policies.update_policy_rule(update));
    let gone = pb::DeletePolicyRuleRequest { policy_rule_id: "r".into(), ..Default::default() };
    replays!(me.clone(), policies.delete_policy_rule(gone));

    let system = world.as_tenant("system");
    let tenant = pb::CreateTenantRequest { tenant_id: "acme".into(), ..Default::default() };
    replays!(system.clone(), tenants.create_tenant(tenant));
    let update = pb::UpdateTenantRequest {
        tenant: Some(pb::Tenant {
            id: "acme".into(),
            display_name: "Acme".into(),
            ..Default::default()
        }),
        update_mask: mask(&["display_name"]),
        options: None,
    };
    replays!(system.clone(), tenants.update_tenant(update));
    let (made, _) = token(&me, &[pb::Role::Reader]).await;
    let revoke = pb::RevokeApiTokenRequest { api_token_id: made.id, options: None };
    replays!(me.clone(), tenants.revoke_api_token(revoke));
    world.close().await;
}

#[tokio::test]
async fn a_replay_shows_what_was_then_not_what_is_now() {
    let world = World::new().await;
    let mut client = world.decisions();
    let first = ok!(client.create_decision(create_once("r", "d", decision("ALLOW", 0.5))));
    let class = pb::Decision { retention_class: "long".into(), ..Default::default() };
    ok!(client.update_decision(update("d", &["retention_class"], class)));
    ok!(client.delete_decision(delete("d")));
    let again = ok!(client.create_decision(create_once("r", "d", decision("ALLOW", 0.5))));
    assert_eq!(again.decision, first.decision);
    assert_eq!(again.receipt.as_ref().unwrap().audit_seq, 1);
    assert_eq!(again.receipt.unwrap().revision, first.receipt.unwrap().revision);
    fails!(client.get_decision(get("d")), NotFound, "NOT_FOUND");
    world.close().await;
}

#[tokio::test]
async fn a_request_id_is_of_one_tenant_and_method_and_kept_only_after_success() {
    let world = World::new().await;
    let mut client = world.decisions();
    world.tenant("acme").await;
    ok!(client.create_decision(create_once("r", "d", decision("ALLOW", 0.5))));
    let other = ok!(world.as_tenant("acme").decisions().create_decision(create_once(
        "r",
        "d",
        decision("DENY", 0.5)
    )));
    assert!(!other.receipt.unwrap().replayed);
    let removed = pb::DeleteDecisionRequest { options: Some(request("r")), ..delete("d") };
    assert!(!ok!(client.delete_decision(removed)).receipt.unwrap().replayed);

    // A failed call leaves its id free; a refused reuse does not.
    ok!(client.create_decision(create("taken", decision("ALLOW", 0.5))));
    let taken = create_once("f", "taken", decision("ALLOW", 0.5));
    fails!(client.create_decision(taken), AlreadyExists, "EXISTS");
    let free = create_once("f", "free", decision("ALLOW", 0.5));
    assert!(!ok!(client.create_decision(free.clone())).receipt.unwrap().replayed);
    let reused = create_once("f", "other", decision("ALLOW", 0.5));
    for _ in 0..2 {
        fails!(client.create_decision(reused.clone()), InvalidArgument, "REQUEST_ID_REUSED");
    }
    assert!(ok!(client.create_decision(free)).receipt.unwrap().replayed);
    world.close().await;
}

#[tokio::test]
async fn of_equal_calls_at_the_same_time_one_writes() {
    let world = World::new().await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let mut client = world.decisions();
        calls.spawn(async move {
            ok!(client.create_decision(create_once("r", "", decision("ALLOW", 0.5))))
        });
    }
    let answers = calls.join_all().await;
    assert!(answers.iter().all(|answer| answer.decision == answers[0].decision));
    let replayed = answers.iter().filter(|a| a.receipt.as_ref().unwrap().replayed).count();
    assert_eq!(replayed, 31);
    assert_eq!(head(&world.anonymous()).await, 1);
    world.close().await;
}

/// Makes a call as a rehearsal: it must answer without a receipt and write nothing.
macro_rules! rehearses {
    ($who:expr, $service:ident.$method:ident($request:expr)) => {{
        let who = $who;
        let mut request = $request;
        request.options.get_or_insert_default().validate_only = true;
        let before = head(&who).await;
        let answer = ok!(who.$service().$method(request));
        assert_eq!(answer.receipt, None, "{}", stringify!($method));
        assert_eq!(head(&who).await, before);
        answer
    }};
}

#[tokio::test]
async fn a_rehearsal_writes_nothing() {
    let world = World::new().await;
    let me = world.anonymous();
    let mut client = world.decisions();
    let mut given = decision("DENY", 0.5);
    given.critic_outputs = vec![critic("", "legal", "DENY", 0.25)];
    rehearses!(me.clone(), decisions.create_decision(create("d", given.clone())));
    // Under a request id, which stays free.
    let once = create_once("r", "d", given.clone());
    let shown = rehearses!(me.clone(), decisions.create_decision(once.clone()));
    assert_eq!(shown.decision.unwrap().final_verdict, "DENY");
    fails!(client.get_decision(get("d")), NotFound, "NOT_FOUND");
    let batch = pb::BatchCreateDecisionsRequest {
        requests: vec![create("x", given.clone()), create("y", given)],
        options: None,
    };
    rehearses!(me.clone(), decisions.batch_create_decisions(batch));
    let made = ok!(client.create_decision(once)).decision.unwrap();

    let class = pb::Decision { retention_class: "long".into(), ..Default::default() };
    let would = update("d", &["retention_class"], class);
    let would = rehearses!(me.clone(), decisions.update_decision(would)).decision.unwrap();
    assert_eq!(would.retention_class, "long");
    let more = vec![critic("c", "risk", "ALLOW", 0.5)];
    rehearses!(me.clone(), decisions.add_critic_outputs(add("d", more)));
    rehearses!(me.clone(), decisions.create_override(overrule("o", "d", "ALLOW")));
    rehearses!(me.clone(), decisions.delete_decision(delete("d")));
    assert_eq!(ok!(client.get_decision(get("d"))).decision, Some(made));
    ok!(client.delete_decision(delete("d")));
    rehearses!(me.clone(), decisions.undelete_decision(undelete("d")));
    fails!(client.get_decision(get("d")), NotFound, "NOT_FOUND");
    rehearses!(me.clone(), policies.create_policy_rule(rule("r", "one")));
    let system = world.as_tenant("system");
    let tenant = pb::CreateTenantRequest { tenant_id: "acme".into(), ..Default::default() };
    rehearses!(system, tenants.create_tenant(tenant));
    let wanted = pb::CreateApiTokenRequest {
        api_token: Some(pb::ApiToken { roles: vec![1], ..Default::default() }),
        options: None,
    };
    let token = rehearses!(me.clone(), tenants.create_api_token(wanted));
    assert_eq!(token.secret, "", "the secret of a token that does not exist");
    let list = ok!(me.tenants().list_api_tokens(pb::ListApiTokensRequest::default()));
    assert!(list.api_tokens.is_empty());
    world.close().await;
}

#[tokio::test]
async fn a_rehearsal_fails_as_the_call_would() {
    let world = World::new().await;
    let mut client = world.decisions();
    ok!(client.create_decision(create("d", decision("ALLOW", 0.5))));
    let before = head(&world.anonymous()).await;
    let options = || Some(pb::WriteOptions { validate_only: true, ..Default::default() });
    let create = |id: &str, confidence| pb::CreateDecisionRequest {
        options: options(),
        ..create(id, decision("ALLOW", confidence))
    };
    fails!(client.create_decision(create("d", 0.5)), AlreadyExists, "EXISTS");
    fails!(client.create_decision(create("e", 1.5)), InvalidArgument, "FIELD_INVALID");
    let stale = pb::Decision { etag: "\"0-1\"".into(), ..Default::default() };
    let stale = pb::UpdateDecisionRequest { options: options(), ..update("d", &["labels"], stale) };
    fails!(client.update_decision(stale), Aborted, "ETAG_MISMATCH");
    let same = pb::CreateOverrideRequest { options: options(), ..overrule("o", "d", "ALLOW") };
    fails!(client.create_override(same), InvalidArgument, "FIELD_INVALID");
    let missing = pb::DeleteDecisionRequest { options: options(), ..delete("none") };
    fails!(client.delete_decision(missing), NotFound, "NOT_FOUND");
    let mut wanting = create("e", 0.5);
    wanting.options.as_mut().unwrap().preconditions = vec![must_exist(Kind::Decision, "none")];
    fails!(client.create_decision(wanting), FailedPrecondition, "PRECONDITION_FAILED");
    assert_eq!(head(&world.anonymous()).await, before);
    world.close().await;
}

fn on_conflict(on_conflict: pb::OnConflict) -> Option<pb::WriteOptions> {
    Some(pb::WriteOptions { on_conflict: on_conflict.into(), ..Default::default() })
}

#[tokio::test]
async fn an_id_that_is_taken_is_settled_as_the_caller_asks() {
    let world = World::new().await;
    let mut client = world.decisions();
    let with = |decision, how| pb::CreateDecisionRequest {
        options: on_conflict(how),
        ..create("d", decision)
    };
    let first = ok!(client.create_decision(create("d", decision("ALLOW", 0.5))));
    let equal = with(decision("ALLOW", 0.5), pb::OnConflict::ReturnIfEqual);
    let equal = ok!(client.create_decision(equal));
    assert_eq!(equal.decision, first.decision);
    assert!(equal.receipt.unwrap().unchanged);
    let mut other = decision("DENY", 0.75);
    other.labels = labels(&[("a", "b")]);
    let different = with(other.clone(), pb::OnConflict::ReturnIfEqual);
    let status = fails!(client.create_decision(different), AlreadyExists, "EXISTS_DIFFERENT");
    let metadata = info(&status);
    let mut fields: Vec<_> = metadata["fields"].split(',').collect();
    fields.sort_unstable();
    assert_eq!(fields, ["avg_confidence", "final_verdict", "labels"]);
    for how in [pb::OnConflict::Unspecified, pb::OnConflict::Fail] {
        let call = client.create_decision(with(decision("ALLOW", 0.5), how));
        fails!(call, AlreadyExists, "EXISTS");
    }
    let replace = client.create_decision(with(other, pb::OnConflict::Replace));
    let status = fails!(replace, InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["options.on_conflict"]);
    // A time that was given is content; one that the server filled in is not.
    let mut timed = decision("ALLOW", 0.5);
    timed.decide_time = Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 });
    let timed = with(timed, pb::OnConflict::ReturnIfEqual);
    let status = fails!(client.create_decision(timed), AlreadyExists, "EXISTS_DIFFERENT");
    assert_eq!(info(&status)["fields"], "decide_time");
    assert_eq!(head(&world.anonymous()).await, 1);
    // So are the critic outputs; those that were added later do not matter.
    let critics = |names: &[&str]| {
        let critic_outputs = names.iter().map(|name| critic("", name, "DENY", 0.5)).collect();
        let content = pb::Decision { critic_outputs, ..decision("DENY", 0.5) };
        let options = on_conflict(pb::OnConflict::ReturnIfEqual);
        pb::CreateDecisionRequest { options, ..create("c", content) }
    };
    ok!(client.create_decision(critics(&["one", "two"])));
    for names in [&["one", "two"][..], &["two", "one"], &["two"], &[]] {
        let equal = ok!(client.create_decision(critics(names)));
        assert!(equal.receipt.unwrap().unchanged, "{names:?}");
    }
    for names in [&["one", "one"][..], &["three"], &["one", "two", "three"]] {
        let call = client.create_decision(critics(names));
        let status = fails!(call, AlreadyExists, "EXISTS_DIFFERENT");
        assert_eq!(info(&status)["fields"], "critic_outputs", "{names:?}");
    }
    assert_eq!(head(&world.anonymous()).await, 4);

    // In a batch: what is there and equal is given back, what is new is made.
    let batch = pb::BatchCreateDecisionsRequest {
        requests: vec![create("d", decision("ALLOW", 0.5)), create("e", decision("ALLOW", 0.5))],
        options: on_conflict(pb::OnConflict::ReturnIfEqual),
    };
    let answer = ok!(client.batch_create_decisions(batch.clone()));
    assert_eq!(Some(&answer.decisions[0]), first.decision.as_ref());
    assert!(!answer.receipt.unwrap().unchanged);
    assert!(ok!(client.batch_create_decisions(batch)).receipt.unwrap().unchanged);
    assert_eq!(head(&world.anonymous()).await, 5);
    world.close().await;
}

#[tokio::test]
async fn what_cannot_be_settled_otherwise_takes_no_on_conflict() {
    let world = World::new().await;
    let me = world.anonymous();
    ok!(me.decisions().create_decision(create("d", decision("ALLOW", 0.5))));
    for how in [pb::OnConflict::ReturnIfEqual, pb::OnConflict::Replace] {
        macro_rules! refused {
            ($service:ident.$method:ident($request:expr)) => {{
                let mut request = $request;
                request.options = on_conflict(how);
                let call = me.$service();
                let status = fails!({ call }.$method(request), InvalidArgument, "FIELD_INVALID");
                assert_eq!(wrong_fields(&status), ["options.on_conflict"]);
            }};
        }
        let critics = vec![critic("", "a", "ALLOW", 0.5)];
        refused!(decisions.add_critic_outputs(add("d", critics)));
        refused!(decisions.create_override(overrule("", "d", "DENY")));
        refused!(decisions.update_decision(update("d", &["labels"], Default::default())));
        refused!(decisions.delete_decision(delete("d")));
        refused!(decisions.undelete_decision(undelete("d")));
        refused!(tenants.create_api_token(pb::CreateApiTokenRequest {
            api_token: Some(pb::ApiToken { roles: vec![1], ..Default::default() }),
            options: None,
        }));
    }
    assert_eq!(head(&me).await, 1);
    world.close().await;
}

fn must_exist(kind: Kind, id: &str) -> pb::Precondition {
    pb::Precondition { check: Some(pb::precondition::Check::MustExist(reference(kind, id, 0))) }
}

pub fn must_not_exist(kind: Kind, id: &str) -> pb::Precondition {
    pb::Precondition { check: Some(pb::precondition::Check::MustNotExist(reference(kind, id, 0))) }
}

fn unchanged_since(kind: Kind, id: &str, version: i64) -> pb::Precondition {
    let reference = reference(kind, id, version);
    pb::Precondition { check: Some(pb::precondition::Check::UnchangedSince(reference)) }
}

fn under(id: &str, preconditions: Vec<pb::Precondition>) -> pb::CreateDecisionRequest {
    let options = pb::WriteOptions { preconditions, ..Default::default() };
    pb::CreateDecisionRequest { options: Some(options), ..create(id, decision("ALLOW", 0.5)) }
}

#[tokio::test]
async fn preconditions_hold_when_the_write_commits() {
    let world = World::new().await;
    let me = world.anonymous();
    let mut client = world.decisions();
    ok!(client.create_decision(create("d", decision("ALLOW", 0.5))));
    ok!(client.create_override(overrule("o", "d", "DENY")));
    ok!(me.policies().create_policy_rule(rule("r", "one")));
    let (api_token, _) = token(&me, &[pb::Role::Reader]).await;
    ok!(client.create_decision(create("gone", decision("ALLOW", 0.5))));
    ok!(client.delete_decision(delete("gone")));
    let there = [
        (Kind::Decision, "d", 2),
        (Kind::Override, "o", 1),
        (Kind::PolicyRule, "r", 1),
        (Kind::ApiToken, api_token.id.as_str(), 1),
    ];
    let mut all = vec![must_not_exist(Kind::Decision, "gone")];
    for (kind, id, version) in there {
        all.push(must_exist(kind, id));
        all.push(unchanged_since(kind, id, version));
        all.push(must_not_exist(kind, "none"));
    }
    ok!(client.create_decision(under("all", all)));
    let before = head(&me).await;
    let mut broken = vec![must_exist(Kind::Decision, "gone")];
    for (kind, id, version) in there {
        broken.push(must_not_exist(kind, id));
        broken.push(unchanged_since(kind, id, version + 1));
        broken.push(unchanged_since(kind, "none", 1));
        broken.push(must_exist(kind, "none"));
    }
    for condition in broken {
        let holds = must_exist(Kind::Decision, "d");
        let request = under("x", vec![holds.clone(), holds, condition]);
        let status =
            fails!(client.create_decision(request), FailedPrecondition, "PRECONDITION_FAILED");
        assert_eq!(info(&status)["index"], "2");
    }
    assert_eq!(head(&me).await, before);

    // Tenants are the system's.
    let system = world.as_tenant("system");
    let tenant = |id: &str, preconditions| pb::CreateTenantRequest {
        tenant_id: id.into(),
        options: Some(pb::WriteOptions { preconditions, ..Default::default() }),
        ..Default::default()
    };
    let wanting = vec![must_exist(Kind::Tenant, "default"), must_not_exist(Kind::Tenant, "acme")];
    ok!(system.tenants().create_tenant(tenant("acme", wanting.clone())));
    let status = fails!(
        system.tenants().create_tenant(tenant("acme-2", wanting)),
        FailedPrecondition,
        "PRECONDITION_FAILED"
    );
    assert_eq!(info(&status)["index"], "1");
    world.close().await;
}

#[tokio::test]
async fn preconditions_are_checked_for_sense() {
    let world = World::new().await;
    let mut client = world.decisions();
    let at = "options.preconditions[0]";
    for (condition, field) in [
        (pb::Precondition { check: None }, at.to_owned()),
        (must_exist(Kind::Unspecified, "d"), format!("{at}.must_exist.kind")),
        (must_exist(Kind::CriticOutput, "d"), format!("{at}.must_exist.kind")),
        (must_not_exist(Kind::Decision, ""), format!("{at}.must_not_exist.id")),
        (unchanged_since(Kind::Decision, "d", 0), format!("{at}.unchanged_since.version")),
    ] {
        let call = client.create_decision(under("x", vec![condition]));
        let status = fails!(call, InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), [field]);
    }
    let many = |n| vec![must_not_exist(Kind::Decision, "none"); n];
    fails!(client.create_decision(under("x", many(101))), InvalidArgument, "FIELD_INVALID");
    ok!(client.create_decision(under("x", many(100))));
    world.close().await;
}

#[tokio::test]
async fn of_writes_that_depend_on_one_version_one_wins() {
    let world = World::new().await;
    ok!(world.decisions().create_decision(create("d", decision("ALLOW", 0.5))));
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..16 {
        let mut client = world.decisions();
        calls.spawn(async move {
            let class = pb::Decision { retention_class: n.to_string(), ..Default::default() };
            let options = pb::WriteOptions {
                preconditions: vec![unchanged_since(Kind::Decision, "d", 1)],
                ..Default::default()
            };
            let update = update("d", &["retention_class"], class);
            let update = pb::UpdateDecisionRequest { options: Some(options), ..update };
            client.update_decision(update).await.is_ok()
        });
    }
    let won = calls.join_all().await.into_iter().filter(|won| *won).count();
    assert_eq!(won, 1);
    assert_eq!(head(&world.anonymous()).await, 2);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_writes_on_two_servers_that_exclude_each_other_one_wins() {
    let world = World::new().await;
    let url = crate::world::url_of(&crate::world::config_of(&world.database).await);
    let mut other = World::on(&world.database, &url, &[]).await;
    for round in 0..40 {
        let (x, y) = (format!("x-{round}"), format!("y-{round}"));
        let (mut here, mut there) = (world.decisions(), other.decisions());
        let (one, two) = tokio::join!(
            here.create_decision(under(&x, vec![must_not_exist(Kind::Decision, &y)])),
            there.create_decision(under(&y, vec![must_not_exist(Kind::Decision, &x)])),
        );
        assert!(one.is_ok() != two.is_ok(), "round {round}: {one:?} {two:?}");
    }
    assert_eq!(head(&world.anonymous()).await, 40);
    other.stop().await;
    world.close().await;
}

#[tokio::test]
async fn the_audit_context_stands_beside_each_entry() {
    let world = World::new().await;
    let mut client = world.decisions();
    let context = object(&[("ticket", "T-1")]);
    let with = |context| pb::WriteOptions { audit_context: Some(context), ..Default::default() };
    let mut given = decision("ALLOW", 0.5);
    given.critic_outputs = vec![critic("c", "legal", "ALLOW", 0.5)];
    let request = pb::CreateDecisionRequest {
        options: Some(with(context.clone())),
        ..create("d", given.clone())
    };
    ok!(client.create_decision(request));
    let log = entries(&world.anonymous(), 10).await;
    assert_eq!(log.len(), 2);
    assert!(log.iter().all(|entry| entry.context.as_ref() == Some(&context)));
    // 4 KiB of JSON: {"k":"..."} is 8 bytes and the text.
    let of = |bytes: usize| object(&[("k", &"x".repeat(bytes - 8))]);
    let large = |id: &str, bytes| pb::CreateDecisionRequest {
        options: Some(with(of(bytes))),
        ..create(id, decision("ALLOW", 0.5))
    };
    ok!(client.create_decision(large("e", 4096)));
    let call = client.create_decision(large("f", 4097));
    let status = fails!(call, InvalidArgument, "JSON_TOO_LARGE");
    assert_eq!(wrong_fields(&status), ["options.audit_context"]);
    world.close().await;
}
