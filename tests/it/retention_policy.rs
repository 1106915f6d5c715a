//! Retention policies, and purging what was deleted: C25.

use crate::claim::{claim, consensus, create_claim, verification};
use crate::help::*;
use crate::legal_hold::{hold, reference, release};
use crate::world::{World, config_of, connect, create, decision, request, wrong_fields};
use casebook::pb;
use pb::ResourceKind as Kind;

fn policy(id: &str, class: &str, seconds: i64) -> pb::CreateRetentionPolicyRequest {
    pb::CreateRetentionPolicyRequest {
        retention_policy_id: id.into(),
        retention_policy: Some(pb::RetentionPolicy {
            retention_class: class.into(),
            keep_at_least: Some(prost_types::Duration { seconds, nanos: 0 }),
            description: "by law".into(),
            ..Default::default()
        }),
        options: None,
    }
}

fn of_class(id: &str, class: &str) -> pb::CreateClaimRequest {
    pb::CreateClaimRequest {
        claim: Some(pb::Claim { retention_class: class.into(), ..claim("c") }),
        verifications: vec![verification("", "f", 0.5)],
        consensus: Some(consensus("", "majority")),
        ..create_claim(id)
    }
}

fn delete_claim(id: &str) -> pb::DeleteClaimRequest {
    pb::DeleteClaimRequest { claim_id: id.into(), ..Default::default() }
}

fn purge(kind: Kind) -> pb::PurgeResourcesRequest {
    pb::PurgeResourcesRequest { kind: kind.into(), max_resources: 1000, ..Default::default() }
}

fn counts(answer: &pb::PurgeResourcesResponse) -> (i64, i64, i64) {
    (answer.purged_count, answer.held_count, answer.kept_by_floor_count)
}

#[tokio::test]
async fn a_class_is_kept_for_as_long_as_its_policy_says() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.retention();
    let made = ok!(client.create_retention_policy(policy("p", "credit", 3600)));
    let made = made.retention_policy.unwrap();
    let call = client.create_retention_policy(policy("q", "credit", 1));
    let status = fails!(call, AlreadyExists, "EXISTS");
    assert_eq!(info(&status)["fields"], "retention_class");
    fails!(client.create_retention_policy(policy("p", "other", 1)), AlreadyExists, "EXISTS");
    ok!(who.claims().create_claim(of_class("c", "credit")));
    ok!(who.claims().create_claim(of_class("free", "")));
    let status =
        fails!(who.claims().delete_claim(delete_claim("c")), FailedPrecondition, "RETENTION_FLOOR");
    assert!(info(&status).contains_key("keep_until"), "{status:?}");
    ok!(who.claims().delete_claim(delete_claim("free")));
    let given = pb::RetentionPolicy { id: "p".into(), ..Default::default() };
    let request = pb::UpdateRetentionPolicyRequest {
        retention_policy: Some(given.clone()),
        update_mask: mask(&["keep_at_least"]),
        options: None,
    };
    let changed = ok!(client.update_retention_policy(request.clone())).retention_policy.unwrap();
    assert_eq!(changed.retention_class, made.retention_class);
    let class =
        pb::UpdateRetentionPolicyRequest { update_mask: mask(&["retention_class"]), ..request };
    fails!(client.update_retention_policy(class), InvalidArgument, "FIELD_IMMUTABLE");
    ok!(who.claims().delete_claim(delete_claim("c")));
    let get =
        pb::GetRetentionPolicyRequest { retention_policy_id: "p".into(), ..Default::default() };
    assert_eq!(ok!(client.get_retention_policy(get)).retention_policy, Some(changed));
    let list = pb::ListRetentionPoliciesRequest {
        r#where: expression("retention_class = credit"),
        ..Default::default()
    };
    assert_eq!(ok!(client.list_retention_policies(list)).retention_policies.len(), 1);
    let gone =
        pb::DeleteRetentionPolicyRequest { retention_policy_id: "p".into(), ..Default::default() };
    ok!(client.delete_retention_policy(gone));
    ok!(client.create_retention_policy(policy("q", "credit", 1)));
    let mut wrong = policy("", "", -1);
    wrong.retention_policy.as_mut().unwrap().description = "x".repeat(65_537);
    let status = fails!(client.create_retention_policy(wrong), InvalidArgument, "FIELD_INVALID");
    let fields = ["retention_class", "keep_at_least", "description"];
    assert_eq!(wrong_fields(&status), fields.map(|field| format!("retention_policy.{field}")));
    world.close().await;
}

#[tokio::test]
async fn purged_is_gone_for_good_and_the_log_keeps_its_hashes() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.retention();
    for id in ["a", "b", "held", "live"] {
        ok!(who.claims().create_claim(of_class(id, "")));
    }
    let then = ok!(who.claims().delete_claim(delete_claim("a"))).receipt.unwrap().revision;
    ok!(who.claims().delete_claim(delete_claim("b")));
    ok!(who.claims().delete_claim(delete_claim("held")));
    let refs = vec![reference(Kind::Claim, "held")];
    ok!(client.create_legal_hold(hold("h", refs, "")));
    let before = entries(&who, 1000).await;

    let rehearsal = pb::PurgeResourcesRequest {
        options: Some(pb::WriteOptions { validate_only: true, ..Default::default() }),
        ..purge(Kind::Claim)
    };
    assert_eq!(counts(&ok!(client.purge_resources(rehearsal))), (2, 1, 0));
    let later = pb::PurgeResourcesRequest {
        older_than: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
        ..purge(Kind::Claim)
    };
    let nothing = ok!(client.purge_resources(later));
    assert_eq!((counts(&nothing), nothing.receipt.unwrap().unchanged), ((0, 0, 0), true));
    let mut once =
        pb::PurgeResourcesRequest { r#where: expression("id = b"), ..purge(Kind::Claim) };
    once.options = Some(request("purge-b"));
    assert_eq!(counts(&ok!(client.purge_resources(once.clone()))), (1, 0, 0));
    let again = ok!(client.purge_resources(once));
    assert!(again.receipt.as_ref().unwrap().replayed);
    assert_eq!(counts(&again), (1, 0, 0));
    assert_eq!(counts(&ok!(client.purge_resources(purge(Kind::Claim)))), (1, 1, 0));

    // Not among the deleted, and not to be brought back.
    let list = pb::ListClaimsRequest { show_deleted: true, ..Default::default() };
    let mut ids: Vec<_> =
        ok!(who.claims().list_claims(list)).claims.into_iter().map(|claim| claim.id).collect();
    ids.sort();
    assert_eq!(ids, ["held", "live"]);
    let undelete = pb::UndeleteClaimRequest { claim_id: "a".into(), options: None };
    fails!(who.claims().undelete_claim(undelete), NotFound, "NOT_FOUND");
    // The past has no content of it either.
    let requirement = pb::consistency::Requirement::AtExactSnapshot(then.unwrap());
    let get = pb::GetClaimRequest {
        claim_id: "b".into(),
        consistency: Some(pb::Consistency { requirement: Some(requirement) }),
        ..Default::default()
    };
    fails!(who.claims().get_claim(get), OutOfRange, "REVISION_EXPIRED");
    // Every leaf is as it was, and each removal has one of its own, parts included.
    let after = entries(&who, 1000).await;
    let hashes = |all: &[pb::AuditEntry]| -> Vec<_> {
        all.iter().map(|entry| (entry.seq, entry.leaf.clone(), entry.leaf_hash.clone())).collect()
    };
    assert_eq!(hashes(&after)[6..], hashes(&before)[..]);
    let purged: Vec<_> = after[..6].iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(purged, ["PURGE"; 6]);
    let superuser = connect(&config_of(&world.database).await).await;
    let sql = "SELECT count(*) FROM casebook.log l WHERE l.document IS NOT NULL AND EXISTS
      (SELECT FROM casebook.log p WHERE p.action = 'PURGE' AND p.uid = l.uid)";
    assert_eq!(superuser.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 0);
    let sql = "SELECT (SELECT count(*) FROM casebook.claim), (SELECT count(*) FROM casebook.verification),
      (SELECT count(*) FROM casebook.consensus)";
    let row = superuser.query_one(sql, &[]).await.unwrap();
    assert_eq!([row.get::<_, i64>(0), row.get(1), row.get(2)], [2, 2, 2]);
    drop(superuser);
    // The id is free, and its next resource another one.
    ok!(who.claims().create_claim(create_claim("a")));
    ok!(client.release_legal_hold(release("h")));
    assert_eq!(counts(&ok!(client.purge_resources(purge(Kind::Claim)))), (1, 0, 0));
    world.close().await;
}

#[tokio::test]
async fn what_a_class_keeps_is_not_purged_either() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.retention();
    // The class was kept for no time when they were deleted.
    for (id, class) in [("kept", "credit"), ("held", "credit"), ("free", ""), ("other", "short")] {
        ok!(who.claims().create_claim(of_class(id, class)));
        ok!(who.claims().delete_claim(delete_claim(id)));
    }
    ok!(client.create_retention_policy(policy("p", "credit", 3600)));
    ok!(client.create_retention_policy(policy("q", "short", 0)));
    ok!(client.create_legal_hold(hold("h", vec![reference(Kind::Claim, "held")], "")));
    // What is held counts as that, whatever its class is.
    assert_eq!(counts(&ok!(client.purge_resources(purge(Kind::Claim)))), (2, 1, 1));
    let undelete = |id: &str| pb::UndeleteClaimRequest { claim_id: id.into(), options: None };
    fails!(who.claims().undelete_claim(undelete("free")), NotFound, "NOT_FOUND");
    ok!(who.claims().undelete_claim(undelete("kept")));
    let summary = pb::GetClaimSummaryRequest { claim_id: "kept".into(), consistency: None };
    let summary = ok!(who.claims().get_claim_summary(summary));
    assert_eq!((summary.verification_count, summary.consensus.is_some()), (1, true));
    ok!(client.release_legal_hold(release("h")));
    assert_eq!(counts(&ok!(client.purge_resources(purge(Kind::Claim)))), (0, 0, 1));
    let shorter = pb::UpdateRetentionPolicyRequest {
        retention_policy: Some(pb::RetentionPolicy { id: "p".into(), ..Default::default() }),
        update_mask: mask(&["keep_at_least"]),
        options: None,
    };
    ok!(client.update_retention_policy(shorter));
    assert_eq!(counts(&ok!(client.purge_resources(purge(Kind::Claim)))), (1, 0, 0));
    world.close().await;
}

#[tokio::test]
async fn each_of_an_id_is_purged_with_parts_of_its_own() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut documents = who.documents();
    let remove = || pb::DeleteDocumentRequest { document_id: "doc".into(), ..Default::default() };
    let named = |id: &str, n: i32| pb::Chunk { id: id.into(), ..chunk(n) };
    for (a, b) in [("a1", "b1"), ("a2", "b2")] {
        ok!(documents.create_document(file("doc")));
        ok!(documents.batch_create_chunks(chunks("doc", [named(a, 0), named(b, 1)])));
        // One goes before its document does.
        let chunk = pb::DeleteChunkRequest { chunk_id: b.into(), ..Default::default() };
        ok!(documents.delete_chunk(chunk));
        ok!(documents.delete_document(remove()));
    }
    ok!(documents.create_document(file("doc")));
    ok!(documents.batch_create_chunks(chunks("doc", [named("a3", 0)])));
    let database = world.superuser().await;
    let left = async || {
        let all = "SELECT string_agg(id, ' ' ORDER BY id) FROM casebook.chunk";
        let with_content = "SELECT count(DISTINCT id) FROM casebook.log WHERE kind = 'chunk' AND document IS NOT NULL";
        let all: String = database.query_one(all, &[]).await.unwrap().get(0);
        let with_content: i64 = database.query_one(with_content, &[]).await.unwrap().get(0);
        (all, with_content)
    };
    assert_eq!(left().await, ("a1 a2 a3 b1 b2".into(), 5));
    // The longest deleted first.
    let one = pb::PurgeResourcesRequest { max_resources: 1, ..purge(Kind::Document) };
    let mut client = who.retention();
    assert_eq!(counts(&ok!(client.purge_resources(one.clone()))), (1, 0, 0));
    assert_eq!(left().await, ("a2 a3 b2".into(), 3));
    assert_eq!(counts(&ok!(client.purge_resources(one.clone()))), (1, 0, 0));
    assert_eq!(left().await, ("a3".into(), 1));
    assert_eq!(counts(&ok!(client.purge_resources(one))), (0, 0, 0));
    let live = pb::GetChunkRequest { chunk_id: "a3".into(), ..Default::default() };
    ok!(documents.get_chunk(live));
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn a_decision_goes_with_its_parts_and_live_ones_stay() {
    let world = World::new().await;
    let who = world.anonymous();
    ok!(who.decisions().create_decision(create("d", decision("DENY", 0.5))));
    ok!(who.decisions().create_decision(create("stays", decision("DENY", 0.5))));
    ok!(who.decisions().add_critic_outputs(add("d", vec![critic("c-0", "risk", "ALLOW", 0.5)])));
    ok!(who.decisions().delete_decision(delete("d")));
    // A hold on a part that came later keeps the whole.
    ok!(who.retention().create_legal_hold(hold(
        "c",
        vec![reference(Kind::CriticOutput, "c-0")],
        ""
    )));
    let mut client = who.retention();
    assert_eq!(counts(&ok!(client.purge_resources(purge(Kind::Decision)))), (0, 1, 0));
    ok!(client.release_legal_hold(release("c")));
    assert_eq!(counts(&ok!(client.purge_resources(purge(Kind::Decision)))), (1, 0, 0));
    let list = pb::ListDecisionsRequest { show_deleted: true, ..Default::default() };
    assert_eq!(ok!(who.decisions().list_decisions(list)).decisions.len(), 1);
    for kind in
        [Kind::Unspecified, Kind::Tenant, Kind::ApiToken, Kind::CriticOutput, Kind::LegalHold]
    {
        let status = fails!(client.purge_resources(purge(kind)), InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), ["kind"]);
    }
    let wrong = pb::PurgeResourcesRequest { max_resources: 0, ..purge(Kind::Decision) };
    let status = fails!(client.purge_resources(wrong), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["max_resources"]);
    world.close().await;
}
