//! Tenants as walls, and the tokens that open them (F144, F145, C4, C35).

use crate::help::*;
use crate::world::{As, World, create, decision, get, reason, wrong_fields};
use casebook::pb;
use casebook::rpc::access;
use pb::{Role, TenantState};
use std::time::{Duration, SystemTime};
use tonic::Code;

fn tenant(id: &str) -> pb::CreateTenantRequest {
    pb::CreateTenantRequest { tenant_id: id.into(), ..Default::default() }
}

fn get_tenant(id: &str) -> pb::GetTenantRequest {
    pb::GetTenantRequest { tenant_id: id.into() }
}

fn set_state(id: &str, state: TenantState) -> pb::UpdateTenantRequest {
    pb::UpdateTenantRequest {
        tenant: Some(pb::Tenant { id: id.into(), state: state.into(), ..Default::default() }),
        update_mask: mask(&["state"]),
        options: None,
    }
}

/// Calls a method with an empty message; what it says beyond who may call does not matter.
async fn empty_call(who: &As, path: &'static str) -> Code {
    let mut client = tonic::client::Grpc::new(who.wire());
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let path = http::uri::PathAndQuery::from_static(path);
    match client.unary(tonic::Request::new(()), path, codec).await {
        Ok(_) => Code::Ok,
        Err(status) => {
            if status.code() == Code::PermissionDenied {
                assert_eq!(reason(&status), "ROLE_MISSING", "{status:?}");
            }
            status.code()
        }
    }
}

/// Whom the documentation lets call a method: reader, writer, auditor, admin; then an admin of the tenant "system".
fn expected(service: &str, method: &str) -> [bool; 5] {
    let reads = [
        "Get",
        "List",
        "BatchGet",
        "Find",
        "Search",
        "BatchSearch",
        "Watch",
        "Wait",
        "Measure",
        "Verify",
        "Replay",
        "Download",
        "Read",
        "Compare",
    ];
    let reads = reads.iter().any(|verb| method.starts_with(verb));
    match (service, method) {
        (_, "WhoAmI" | "GetCapabilities") => [true; 5],
        (_, "GetTenant") => [true; 5],
        (_, "CreateTenant" | "ListTenants" | "UpdateTenant") => [false, false, false, false, true],
        ("casebook.v1.TenantService" | "casebook.v1.AdminService", _) => {
            [false, false, false, true, true]
        }
        // Whoever may read bytes may also be led to them.
        (_, "CreateDownloadUrl" | "CreateShareLink") => [true, true, false, true, true],
        (_, "LogEvent") => [false, true, false, true, true],
        // It goes through all there is, and may remove some.
        (_, "VerifyBlobStore") => [false, false, false, true, true],
        (_, "ArchiveAuditEntries") => [false, false, false, true, true],
        ("casebook.v1.AuditService", _) => [false, false, true, true, true],
        ("casebook.v1.RetentionService", _) if !reads => [false, false, false, true, true],
        _ if reads => [true, true, false, true, true],
        _ => [false, true, false, true, true],
    }
}

#[tokio::test]
async fn each_role_opens_the_methods_that_it_should_and_no_others() {
    let (world, mut open) = guarded(&[]).await;
    open.tenant("acme").await;
    let acme = open.as_tenant("acme");
    let mut callers = Vec::new();
    for role in [Role::Reader, Role::Writer, Role::Auditor, Role::Admin] {
        callers.push(world.with_token(&token(&acme, &[role]).await.1));
    }
    callers.push(world.with_token(&token(&open.as_tenant("system"), &[Role::Admin]).await.1));
    let mut checked = 0;
    for method in access::methods() {
        let (service, name) = method.name().split_once('/').unwrap();
        if !service.starts_with("casebook.v1.") {
            continue;
        }
        for (who, allowed) in callers.iter().zip(expected(service, name)) {
            let code = empty_call(who, method.path).await;
            assert_eq!(code != Code::PermissionDenied, allowed, "{name} {code:?}");
            checked += 1;
        }
        let nobody = empty_call(&world.anonymous(), method.path).await;
        assert_eq!(nobody, Code::Unauthenticated, "{name}");
    }
    assert!(checked >= 31 * 5, "{checked}");
    let mut reader = callers[0].decisions();
    let call = reader.create_decision(create("d", decision("ALLOW", 0.5)));
    fails!(call, PermissionDenied, "ROLE_MISSING");
    open.stop().await;
    world.close().await;
}

#[tokio::test]
async fn a_credential_that_is_not_valid_is_refused_with_one_text() {
    let (world, mut open) = guarded(&[]).await;
    let (made, secret) = token(&open.anonymous(), &[Role::Reader]).await;
    let who = |header: &str| world.anonymous().header("authorization", header);
    let missing = pb::WhoAmIRequest {};
    fails!(world.anonymous().tenants().who_am_i(missing), Unauthenticated, "TOKEN_MISSING");
    ok!(who(&format!("Bearer {secret}")).tenants().who_am_i(missing));
    ok!(who(&format!("bearer {secret}")).tenants().who_am_i(missing));
    let other_secret = format!("{}{}", &secret[..secret.len() - 4], "AAAA");
    let other_id = secret.replacen(&made.id, &"0".repeat(32), 1);
    let mut texts = Vec::new();
    for wrong in [
        "Bearer x".to_owned(),
        format!("Basic {secret}"),
        format!("Bearer  {secret}"),
        format!("Bearer {secret} "),
        format!("Bearer {}", secret.to_uppercase()),
        format!("Bearer {other_secret}"),
        format!("Bearer {other_id}"),
    ] {
        let call = who(&wrong);
        // A header's value loses the blanks around it on its way, which is no fault of the token.
        if wrong.ends_with(' ') {
            continue;
        }
        let status = fails!(call.tenants().who_am_i(missing), Unauthenticated, "TOKEN_INVALID");
        texts.push(status.message().to_owned());
    }
    let revoke = pb::RevokeApiTokenRequest { api_token_id: made.id, options: None };
    // On the other server: this one believes it for at most as long as it may remember.
    let revoked = ok!(open.anonymous().tenants().revoke_api_token(revoke)).api_token.unwrap();
    assert!(revoked.revoke_time.is_some());
    let (world_2, url) = (world.database.clone(), crate::world::config_of(&world.database).await);
    let url = crate::world::url_of(&url);
    let mut fresh = World::on(&world_2, &url, &[("auth", "token")]).await;
    let call = fresh.with_token(&secret);
    let status = fails!(call.tenants().who_am_i(missing), Unauthenticated, "TOKEN_INVALID");
    texts.push(status.message().to_owned());
    texts.dedup();
    assert_eq!(texts.len(), 1, "{texts:?}");
    fresh.stop().await;
    open.stop().await;
    world.close().await;
}

#[tokio::test]
async fn a_revoked_token_ends_at_once_here_and_soon_elsewhere() {
    let (world, open) = guarded(&[("credential_cache_ms", "400")]).await;
    let (_, admin) = token(&open.anonymous(), &[Role::Admin]).await;
    let mut open = open;
    open.stop().await;
    let url = crate::world::url_of(&crate::world::config_of(&world.database).await);
    let settings = [("auth", "token"), ("credential_cache_ms", "400")];
    let mut elsewhere = World::on(&world.database, &url, &settings).await;
    let admin = world.with_token(&admin);
    let (made, secret) = token(&admin, &[Role::Reader]).await;
    let (here, there) = (world.with_token(&secret), elsewhere.with_token(&secret));
    let me = pb::WhoAmIRequest {};
    // Both remember it now.
    ok!(here.tenants().who_am_i(me));
    ok!(there.tenants().who_am_i(me));
    let revoke = pb::RevokeApiTokenRequest { api_token_id: made.id.clone(), options: None };
    let revoked = ok!(admin.tenants().revoke_api_token(revoke.clone()));
    fails!(here.tenants().who_am_i(me), Unauthenticated, "TOKEN_INVALID");
    tokio::time::sleep(Duration::from_millis(450)).await;
    fails!(there.tenants().who_am_i(me), Unauthenticated, "TOKEN_INVALID");
    // Again changes nothing.
    let again = ok!(admin.tenants().revoke_api_token(revoke));
    assert_eq!(again.api_token, revoked.api_token);
    assert!(again.receipt.unwrap().unchanged);
    let log = entries(&admin, 1).await;
    assert_eq!(log[0].action, "REVOKE");
    let none = pb::RevokeApiTokenRequest { api_token_id: "none".into(), options: None };
    fails!(admin.tenants().revoke_api_token(none), NotFound, "NOT_FOUND");
    elsewhere.stop().await;
    world.close().await;
}

#[tokio::test]
async fn a_token_expires_on_time_and_says_who_it_is() {
    let (world, mut open) = guarded(&[]).await;
    let wanted = |expire: SystemTime| pb::CreateApiTokenRequest {
        api_token: Some(pb::ApiToken {
            display_name: "ci".into(),
            roles: vec![Role::Writer.into(), Role::Auditor.into()],
            expire_time: Some(expire.into()),
            ..Default::default()
        }),
        options: None,
    };
    let soon = SystemTime::now() + Duration::from_millis(1500);
    let made = ok!(open.anonymous().tenants().create_api_token(wanted(soon)));
    let (shown, secret) = (made.api_token.unwrap(), made.secret);
    assert!(secret.starts_with(&format!("cbk_{}_", shown.id)));
    assert_eq!(secret.len(), 4 + 32 + 1 + 43);
    let who = world.with_token(&secret).header("x-casebook-actor", "ann");
    let me = ok!(who.tenants().who_am_i(pb::WhoAmIRequest {}));
    assert_eq!((me.tenant_id.as_str(), me.actor.as_str()), ("default", "ann"));
    assert_eq!(me.principal, format!("token:{}", shown.id));
    assert_eq!(me.roles, [i32::from(Role::Writer), Role::Auditor.into()]);
    assert_eq!(me.expire_time, shown.expire_time);
    tokio::time::sleep(Duration::from_millis(1600)).await;
    let call = who.tenants();
    fails!({ call }.who_am_i(pb::WhoAmIRequest {}), Unauthenticated, "TOKEN_INVALID");

    let anonymous = ok!(open.anonymous().tenants().who_am_i(pb::WhoAmIRequest {}));
    assert_eq!((anonymous.principal.as_str(), anonymous.roles.len()), ("anonymous", 4));
    let past = SystemTime::now() - Duration::from_secs(1);
    let call = open.anonymous().tenants();
    let status = fails!({ call }.create_api_token(wanted(past)), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["api_token.expire_time"]);
    open.stop().await;
    world.close().await;
}

#[tokio::test]
async fn tokens_are_checked_and_listed_and_their_secret_is_nowhere() {
    let world = World::new().await;
    let mut client = world.anonymous().tenants();
    let wanted = |roles: Vec<i32>, options| pb::CreateApiTokenRequest {
        api_token: Some(pb::ApiToken { roles, ..Default::default() }),
        options,
    };
    for (request, field) in [
        (wanted(vec![], None), "api_token.roles"),
        (wanted(vec![1, 1], None), "api_token.roles[1]"),
        (wanted(vec![0], None), "api_token.roles[0]"),
        (wanted(vec![2, 9], None), "api_token.roles[1]"),
        (wanted(vec![1], Some(crate::world::request("r"))), "options.request_id"),
    ] {
        let status = fails!(client.create_api_token(request), InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), [field]);
    }
    let (first, secret) = token(&world.anonymous(), &[Role::Reader]).await;
    let (second, _) = token(&world.anonymous(), &[Role::Admin]).await;
    ok!(client.revoke_api_token(pb::RevokeApiTokenRequest {
        api_token_id: first.id.clone(),
        options: None,
    }));
    let mut ids = async |text: &str| {
        let request = pb::ListApiTokensRequest { r#where: expression(text), ..Default::default() };
        let found = ok!(client.list_api_tokens(request)).api_tokens;
        found.into_iter().map(|token| token.id).collect::<Vec<_>>()
    };
    assert_eq!(ids("").await, [second.id.clone(), first.id.clone()]);
    assert_eq!(ids("revoke_time:*").await, [first.id.as_str()]);
    assert_eq!(ids("NOT revoke_time:*").await, [second.id]);
    let log = entries(&world.anonymous(), 10).await;
    // Its last 43 characters, which may themselves hold an underscore.
    let tail = &secret[secret.len() - 43..];
    assert!(!format!("{log:?}").contains(tail));
    // Of one tenant only.
    world.tenant("acme").await;
    let theirs =
        ok!(world.as_tenant("acme").tenants().list_api_tokens(pb::ListApiTokensRequest::default()));
    assert!(theirs.api_tokens.is_empty());
    let theirs = pb::RevokeApiTokenRequest { api_token_id: first.id, options: None };
    fails!(world.as_tenant("acme").tenants().revoke_api_token(theirs), NotFound, "NOT_FOUND");
    world.close().await;
}

#[tokio::test]
async fn only_the_system_names_other_tenants() {
    let (world, mut open) = guarded(&[]).await;
    for id in ["acme", "other"] {
        open.tenant(id).await;
    }
    let acme = world.with_token(&token(&open.as_tenant("acme"), &[Role::Admin]).await.1);
    let system = world.with_token(&token(&open.as_tenant("system"), &[Role::Admin]).await.1);
    let named = |who: &As, tenant: &str| who.clone().header("x-casebook-tenant", tenant);
    ok!(acme.decisions().create_decision(create("d", decision("ALLOW", 0.5))));
    ok!(named(&acme, "acme").decisions().get_decision(get("d")));
    for tenant in ["other", "system", "none", "No Tenant"] {
        let who = named(&acme, tenant);
        let call = who.decisions();
        fails!({ call }.get_decision(get("d")), PermissionDenied, "TENANT_MISMATCH");
    }
    ok!(named(&system, "acme").decisions().get_decision(get("d")));
    fails!(system.decisions().get_decision(get("d")), NotFound, "NOT_FOUND");
    for tenant in ["none", "No Tenant"] {
        let who = named(&system, tenant);
        fails!(who.decisions().get_decision(get("d")), PermissionDenied, "TENANT_MISMATCH");
    }
    // What the system writes in a tenant stands in that tenant's log, under the system's principal.
    let who = named(&system, "acme").header("x-casebook-actor", "root");
    ok!(who.decisions().create_decision(create("e", decision("ALLOW", 0.5))));
    let log = entries(&acme, 1).await;
    let me = ok!(system.tenants().who_am_i(pb::WhoAmIRequest {}));
    assert_eq!((log[0].principal.as_str(), log[0].actor.as_str()), (me.principal.as_str(), "root"));

    let own = ok!(acme.tenants().get_tenant(get_tenant(""))).tenant.unwrap();
    assert_eq!(own.id, "acme");
    ok!(acme.tenants().get_tenant(get_tenant("acme")));
    let theirs = fails!(acme.tenants().get_tenant(get_tenant("other")), NotFound, "NOT_FOUND");
    let none = fails!(acme.tenants().get_tenant(get_tenant("nobody")), NotFound, "NOT_FOUND");
    assert_eq!(theirs.message().replace("other", "nobody"), none.message());
    ok!(system.tenants().get_tenant(get_tenant("other")));
    open.stop().await;
    world.close().await;
}

#[tokio::test]
async fn what_another_tenant_has_reads_as_if_it_were_not_there() {
    let world = World::new().await;
    for id in ["acme", "other"] {
        world.tenant(id).await;
    }
    let (mine, theirs) = (world.as_tenant("acme"), world.as_tenant("other"));
    ok!(theirs.decisions().create_decision(create("theirs", decision("ALLOW", 0.5))));
    ok!(theirs.policies().create_policy_rule(rule("theirs", "one")));
    ok!(theirs.decisions().create_override(overrule("theirs", "theirs", "DENY")));
    // The id is of the same length as a missing one, so that the bytes can be compared.
    macro_rules! same {
        ($call:expr) => {{
            let call = $call;
            let (theirs, missing) = (call("theirs").await, call("absent").await);
            let (theirs, missing) = (theirs.unwrap_err(), missing.unwrap_err());
            assert_eq!((theirs.code(), reason(&theirs)), (Code::NotFound, "NOT_FOUND".into()));
            assert_eq!(theirs.message().replace("theirs", "absent"), missing.message());
            let bytes = |status: &tonic::Status| status.details().to_vec();
            let renamed = String::from_utf8_lossy(&bytes(&theirs)).replace("theirs", "absent");
            assert_eq!(renamed, String::from_utf8_lossy(&bytes(&missing)));
        }};
    }
    same!(async |id| mine.decisions().get_decision(get(id)).await.map(drop));
    same!(async |id| mine.decisions().delete_decision(delete(id)).await.map(drop));
    same!(async |id| mine.decisions().undelete_decision(undelete(id)).await.map(drop));
    same!(async |id| {
        let update = update(id, &["retention_class"], Default::default());
        mine.decisions().update_decision(update).await.map(drop)
    });
    same!(async |id| {
        let critics = vec![critic("", "a", "ALLOW", 0.5)];
        mine.decisions().add_critic_outputs(add(id, critics)).await.map(drop)
    });
    same!(async |id| mine.decisions().create_override(overrule("", id, "DENY")).await.map(drop));
    same!(async |id: &str| {
        let ids =
            pb::BatchGetDecisionsRequest { decision_ids: vec![id.into()], ..Default::default() };
        mine.decisions().batch_get_decisions(ids).await.map(drop)
    });
    same!(async |id: &str| {
        let request =
            pb::ListDecisionRevisionsRequest { decision_id: id.into(), ..Default::default() };
        mine.decisions().list_decision_revisions(request).await.map(drop)
    });
    same!(async |id: &str| {
        let request = pb::ListCriticOutputsRequest { decision_id: id.into(), ..Default::default() };
        mine.decisions().list_critic_outputs(request).await.map(drop)
    });
    same!(async |id: &str| {
        let request = pb::GetPolicyRuleRequest { policy_rule_id: id.into(), ..Default::default() };
        mine.policies().get_policy_rule(request).await.map(drop)
    });
    // Nor does it show in lists, counts or the log, and its id is free.
    assert!(
        ok!(mine.decisions().list_decisions(pb::ListDecisionsRequest::default()))
            .decisions
            .is_empty()
    );
    assert_eq!(head(&mine).await, 0);
    let statistics =
        ok!(mine.decisions().get_decision_statistics(pb::GetDecisionStatisticsRequest::default()));
    assert_eq!(statistics.total.unwrap().count, 0);
    ok!(mine.decisions().create_decision(create("theirs", decision("DENY", 0.5))));
    let read = ok!(theirs.decisions().get_decision(get("theirs"))).decision.unwrap();
    assert_eq!(read.final_verdict, "ALLOW");
    world.close().await;
}

#[tokio::test]
async fn a_tenants_state_takes_effect_at_once() {
    let world = World::new().await;
    let system = world.as_tenant("system");
    world.tenant("acme").await;
    let acme = world.as_tenant("acme");
    ok!(acme.decisions().create_decision(create("d", decision("ALLOW", 0.5))));
    ok!(system.tenants().update_tenant(set_state("acme", TenantState::ReadOnly)));
    ok!(acme.decisions().get_decision(get("d")));
    let write = create("e", decision("ALLOW", 0.5));
    fails!(acme.decisions().create_decision(write.clone()), FailedPrecondition, "READ_ONLY");
    ok!(system.tenants().update_tenant(set_state("acme", TenantState::Suspended)));
    fails!(acme.decisions().get_decision(get("d")), FailedPrecondition, "READ_ONLY");
    fails!(acme.tenants().who_am_i(pb::WhoAmIRequest {}), FailedPrecondition, "READ_ONLY");
    ok!(system.tenants().update_tenant(set_state("acme", TenantState::Active)));
    ok!(acme.decisions().create_decision(write));
    // Nobody could ever undo this one.
    for state in [TenantState::ReadOnly, TenantState::Suspended] {
        let call = system.tenants();
        let status = fails!(
            { call }.update_tenant(set_state("system", state)),
            InvalidArgument,
            "FIELD_INVALID"
        );
        assert_eq!(wrong_fields(&status), ["tenant.state"]);
    }
    world.close().await;
}

#[tokio::test]
async fn tenants_are_made_changed_and_listed_by_the_system() {
    let world = World::new().await;
    let mut client = world.as_tenant("system").tenants();
    let request = pb::CreateTenantRequest {
        tenant: Some(pb::Tenant { display_name: "Acme".into(), ..Default::default() }),
        ..tenant("acme")
    };
    let made = ok!(client.create_tenant(request)).tenant.unwrap();
    assert_eq!((made.state(), made.display_name.as_str()), (TenantState::Active, "Acme"));
    assert_eq!(ok!(client.get_tenant(get_tenant("acme"))).tenant, Some(made.clone()));
    fails!(client.create_tenant(tenant("acme")), AlreadyExists, "EXISTS");
    let long = "a".repeat(64);
    for id in ["", "Acme", "2a", "-a", "a_b", "a.b", &long] {
        let status = fails!(client.create_tenant(tenant(id)), InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), ["tenant_id"]);
    }
    let two = pb::CreateTenantRequest {
        tenant: Some(pb::Tenant { id: "other".into(), ..Default::default() }),
        ..tenant("one")
    };
    let status = fails!(client.create_tenant(two), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["tenant.id"]);
    let change = |etag: &str, paths: &[&str]| pb::UpdateTenantRequest {
        tenant: Some(pb::Tenant {
            id: "acme".into(),
            etag: etag.into(),
            display_name: "Acme 2".into(),
            state: 7,
            ..Default::default()
        }),
        update_mask: mask(paths),
        options: None,
    };
    let changed = ok!(client.update_tenant(change(&made.etag, &["display_name"]))).tenant.unwrap();
    assert_eq!((changed.display_name.as_str(), changed.state()), ("Acme 2", TenantState::Active));
    let stale = client.update_tenant(change(&made.etag, &["display_name"]));
    fails!(stale, Aborted, "ETAG_MISMATCH");
    for (paths, reason) in [
        (&[][..], "FIELD_INVALID"),
        (&["state"], "FIELD_INVALID"),
        (&["id"], "FIELD_IMMUTABLE"),
        (&["nope"], "UNKNOWN_FIELD"),
    ] {
        fails!(client.update_tenant(change("", paths)), InvalidArgument, reason);
    }
    let same = ok!(client.update_tenant(change("", &["display_name"])));
    assert!(same.receipt.unwrap().unchanged);
    let mut ids = async |text: &str| {
        let page = Some(pb::PageRequest { order_by: "id".into(), ..Default::default() });
        let request = pb::ListTenantsRequest { page, r#where: expression(text) };
        let found = ok!(client.list_tenants(request)).tenants;
        found.into_iter().map(|tenant| tenant.id).collect::<Vec<_>>()
    };
    assert_eq!(ids("").await, ["acme", "default", "system"]);
    assert_eq!(ids("state = ACTIVE AND display_name = \"Acme*\"").await, ["acme"]);
    // A tenant is there for calls at once.
    ok!(world.as_tenant("acme").decisions().create_decision(create("d", decision("ALLOW", 0.5))));
    world.close().await;
}

#[tokio::test]
async fn the_acting_user_stands_in_the_resource_and_in_the_log() {
    let (world, mut open) = guarded(&[]).await;
    let (made, secret) = token(&open.anonymous(), &[Role::Admin]).await;
    let who = world.with_token(&secret);
    let ann = who.clone().header("x-casebook-actor", "ann");
    let created = ok!(ann.decisions().create_decision(create("d", decision("ALLOW", 0.5))));
    let meta = created.decision.unwrap().meta.unwrap();
    assert_eq!((meta.created_by.as_str(), meta.updated_by.as_str()), ("ann", "ann"));
    let class = pb::Decision { retention_class: "long".into(), ..Default::default() };
    let updated = ok!(who.decisions().update_decision(update("d", &["retention_class"], class)));
    let meta = updated.decision.unwrap().meta.unwrap();
    let principal = format!("token:{}", made.id);
    assert_eq!((meta.created_by.as_str(), meta.updated_by.as_str()), ("ann", principal.as_str()));
    let log = entries(&who, 2).await;
    let who_did: Vec<_> = log.iter().map(|e| (e.principal.as_str(), e.actor.as_str())).collect();
    assert_eq!(who_did, [(principal.as_str(), ""), (principal.as_str(), "ann")]);
    let long = "a".repeat(255);
    ok!(who.clone().header("x-casebook-actor", &long).decisions().get_decision(get("d")));
    let long = "a".repeat(256);
    let call = who.clone().header("x-casebook-actor", &long).decisions();
    let status = fails!({ call }.get_decision(get("d")), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["x-casebook-actor"]);
    open.stop().await;
    world.close().await;
}

/// F576: in a strict tenant nothing names by id what is not there, and the refusal names the field.
#[tokio::test]
async fn a_strict_tenant_has_no_reference_to_nothing() {
    use crate::claim::{consensus, create_claim, verification};
    use crate::precedent::{record, small};
    use crate::transaction::execute;
    use pb::execute_transaction_request::operation::Operation;
    let world = World::new().await;
    let verify = |claim_id: &str| {
        Operation::CreateVerification(pb::CreateVerificationRequest {
            verification: Some(verification(claim_id, "empirical", 0.5)),
            ..Default::default()
        })
    };
    let agree = |claim_id: &str, decision_id: &str| {
        let decision_id = decision_id.to_owned();
        let consensus = pb::Consensus { decision_id, ..consensus(claim_id, "majority") };
        Operation::CreateConsensus(pb::CreateConsensusRequest {
            consensus: Some(consensus),
            ..Default::default()
        })
    };
    let cite = |decision_id: &str| {
        let decision_id = decision_id.to_owned();
        Operation::CreatePrecedent(record("", pb::Precedent { decision_id, ..small() }))
    };
    let link = |from: &str, to: &str| {
        let reference = pb::PrecedentReference {
            from_precedent_id: from.into(),
            to_precedent_id: to.into(),
            reference_type: "cites".into(),
            ..Default::default()
        };
        Operation::LinkPrecedents(pb::LinkPrecedentsRequest {
            precedent_references: vec![reference],
            ..Default::default()
        })
    };
    let learn = |claim_id: &str| {
        let example = pb::TrainingExample {
            claim_id: claim_id.into(),
            claim_text: "Water boils.".into(),
            framework: "empirical".into(),
            confidence: Some(0.5),
            ..Default::default()
        };
        Operation::CreateTrainingExample(pb::CreateTrainingExampleRequest {
            training_example: Some(example),
            ..Default::default()
        })
    };
    let cases = [
        (verify("no"), "claim_id", "claim"),
        (agree("no", ""), "claim_id", "claim"),
        (agree("c", "no"), "decision_id", "decision"),
        (cite("no"), "decision_id", "decision"),
        (link("p", "no"), "to_precedent_id", "precedent"),
        (link("no", "p"), "from_precedent_id", "precedent"),
        (learn("no"), "claim_id", "claim"),
    ];
    for (tenant, strict_references) in [("strict", true), ("lenient", false)] {
        world.tenant(tenant).await;
        let tenant = pb::Tenant { id: tenant.into(), strict_references, ..Default::default() };
        let update = pb::UpdateTenantRequest {
            tenant: Some(tenant.clone()),
            update_mask: mask(&["strict_references"]),
            options: None,
        };
        ok!(world.as_tenant("system").tenants().update_tenant(update));
        let who = world.as_tenant(&tenant.id);
        ok!(who.claims().create_claim(create_claim("c")));
        for id in ["p", "q"] {
            ok!(who.precedents().create_precedent(record(id, small())));
        }
        let before = head(&who).await;
        let mut transactions = who.transactions();
        for (operation, field, kind) in &cases {
            let call = transactions.execute_transaction(execute(vec![operation.clone()]));
            if !strict_references {
                ok!(call);
                continue;
            }
            let status = fails!(call, FailedPrecondition, "REFERENCE_MISSING");
            let told = info(&status);
            let told = (told["field"].as_str(), told["kind"].as_str(), told["id"].as_str());
            assert_eq!(told, (*field, *kind, "no"), "{status:?}");
        }
        if strict_references {
            assert_eq!(head(&who).await, before);
            // What is there may be named.
            ok!(who.decisions().create_decision(create("d", decision("DENY", 0.5))));
            for operation in [verify("c"), agree("c", "d"), cite("d"), link("p", "q"), learn("c")] {
                ok!(transactions.execute_transaction(execute(vec![operation])));
            }
        }
    }
    world.close().await;
}
