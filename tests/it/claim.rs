//! Claims with what was found about them: F155 to F184, F235 to F240, C3, C28.

use crate::help::*;
use crate::world::{World, create, decision, object, request, wrong_fields};
use casebook::pb;
use pb::OnConflict::{Fail, Replace, ReturnIfEqual};

pub fn claim(content: &str) -> pb::Claim {
    pb::Claim {
        content: content.into(),
        claim_type: "factual".into(),
        source: "news".into(),
        metadata: Some(object(&[("lang", "en")])),
        labels: labels(&[("env", "prod")]),
        ..Default::default()
    }
}

pub fn verification(claim_id: &str, framework: &str, confidence: f64) -> pb::Verification {
    pb::Verification {
        claim_id: claim_id.into(),
        framework: framework.into(),
        result: Some(object(&[("valid", "yes")])),
        evidence: Some(object(&[("sources", "two")])),
        confidence,
        ..Default::default()
    }
}

pub fn consensus(claim_id: &str, kind: &str) -> pb::Consensus {
    pb::Consensus {
        claim_id: claim_id.into(),
        consensus_result: Some(object(&[("valid", "yes")])),
        participating_frameworks: vec!["empirical".into(), "logical".into()],
        consensus_type: kind.into(),
        consensus_confidence: 0.9,
        verification_ids: vec!["v-1".into()],
        ..Default::default()
    }
}

pub fn create_claim(id: &str) -> pb::CreateClaimRequest {
    pb::CreateClaimRequest {
        claim_id: id.into(),
        claim: Some(claim("the earth is round")),
        ..Default::default()
    }
}

fn verify(id: &str, row: pb::Verification) -> pb::CreateVerificationRequest {
    pb::CreateVerificationRequest {
        verification_id: id.into(),
        verification: Some(row),
        options: None,
    }
}

fn agree(id: &str, row: pb::Consensus, how: pb::OnConflict) -> pb::CreateConsensusRequest {
    pb::CreateConsensusRequest {
        consensus_id: id.into(),
        consensus: Some(row),
        options: Some(pb::WriteOptions { on_conflict: how.into(), ..Default::default() }),
    }
}

fn of_claim(id: &str) -> pb::ListVerificationsRequest {
    pb::ListVerificationsRequest { claim_id: id.into(), ..Default::default() }
}

fn agreed_on(id: &str) -> pb::ListConsensusesRequest {
    pb::ListConsensusesRequest { claim_id: id.into(), ..Default::default() }
}

fn current(id: &str) -> pb::GetCurrentConsensusRequest {
    pb::GetCurrentConsensusRequest { claim_id: id.into(), ..Default::default() }
}

#[tokio::test]
async fn a_claim_comes_back_as_given_and_changes_field_by_field() {
    let world = World::new().await;
    let mut client = world.anonymous().claims();
    let made = ok!(client.create_claim(create_claim("claim-123"))).claim.unwrap();
    let expected = pb::Claim {
        id: "claim-123".into(),
        etag: made.etag.clone(),
        meta: made.meta.clone(),
        ..claim("the earth is round")
    };
    assert_eq!(made, expected);
    let get = pb::GetClaimRequest { claim_id: "claim-123".into(), ..Default::default() };
    assert_eq!(ok!(client.get_claim(get.clone())).claim, Some(made.clone()));
    let masked = pb::GetClaimRequest { read_mask: mask(&["source"]), ..get.clone() };
    let masked = ok!(client.get_claim(masked)).claim.unwrap();
    let only = pb::Claim { id: "claim-123".into(), source: "news".into(), ..Default::default() };
    assert_eq!(masked, only);
    let given = pb::Claim { id: "claim-123".into(), source: "book".into(), ..Default::default() };
    // The content is not named by the mask, so that it is missing is no fault.
    let request = pb::UpdateClaimRequest {
        claim: Some(given),
        update_mask: mask(&["source", "labels.env"]),
        options: None,
    };
    let changed = ok!(client.update_claim(request)).claim.unwrap();
    assert_eq!((changed.source.as_str(), changed.labels.len()), ("book", 0));
    assert_eq!((changed.content, changed.metadata), (made.content.clone(), made.metadata.clone()));
    let request = pb::UpdateClaimRequest {
        claim: Some(pb::Claim { id: "claim-123".into(), ..Default::default() }),
        update_mask: mask(&["content"]),
        options: None,
    };
    let status = fails!(client.update_claim(request), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["claim.content"]);
    let first = pb::GetClaimRequest { version: 1, ..get };
    assert_eq!(ok!(client.get_claim(first)).claim, Some(made));
    world.close().await;
}

/// F238 to F240: a claim and what every framework found, in one commit.
#[tokio::test]
async fn a_claim_is_recorded_with_its_results_or_not_at_all() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.claims();
    let request = pb::CreateClaimRequest {
        options: Some(request("claim-with-results")),
        verifications: vec![
            verification("", "empirical", 0.75),
            pb::Verification { id: "v-2".into(), ..verification("c", "logical", 0.25) },
        ],
        consensus: Some(consensus("", "majority")),
        ..create_claim("c")
    };
    let made = ok!(client.create_claim(request.clone()));
    assert_eq!(made.verifications.len(), 2);
    assert!(made.verifications.iter().all(|row| row.claim_id == "c"), "{made:?}");
    assert_eq!(made.verifications[1].id, "v-2");
    let agreed = made.consensus.clone().unwrap();
    assert!(agreed.current && agreed.claim_id == "c", "{agreed:?}");
    assert_eq!(head(&who).await, 4);
    let again = ok!(client.create_claim(request.clone()));
    assert!(again.receipt.as_ref().unwrap().replayed);
    assert_eq!(
        (&again.claim, &again.verifications, &again.consensus),
        (&made.claim, &made.verifications, &made.consensus)
    );
    // The second one's id is taken, and so nothing of it is there.
    let request = pb::CreateClaimRequest {
        verifications: vec![
            verification("", "empirical", 0.5),
            pb::Verification { id: "v-2".into(), ..verification("", "logical", 0.5) },
        ],
        ..create_claim("d")
    };
    fails!(client.create_claim(request), AlreadyExists, "EXISTS");
    let get = pb::GetClaimRequest { claim_id: "d".into(), ..Default::default() };
    fails!(client.get_claim(get), NotFound, "NOT_FOUND");
    assert!(ok!(client.list_verifications(of_claim("d"))).verifications.is_empty());
    let wrong = pb::CreateClaimRequest {
        verifications: vec![
            verification("", "empirical", f64::NAN),
            verification("other", "", 0.5),
        ],
        consensus: Some(pb::Consensus { consensus_type: String::new(), ..consensus("", "") }),
        ..create_claim("d")
    };
    let status = fails!(client.create_claim(wrong), InvalidArgument, "FIELD_INVALID");
    let fields = [
        "verifications[0].confidence",
        "verifications[1].claim_id",
        "verifications[1].framework",
        "consensus.consensus_type",
    ];
    assert_eq!(wrong_fields(&status), fields);
    assert_eq!(head(&who).await, 4);
    world.close().await;
}

#[tokio::test]
async fn returning_an_equal_claim_compares_its_results() {
    let world = World::new().await;
    let mut client = world.anonymous().claims();
    let request = |n: usize, how: pb::OnConflict| pb::CreateClaimRequest {
        options: Some(pb::WriteOptions { on_conflict: how.into(), ..Default::default() }),
        verifications: vec![verification("", "empirical", n as f64 / 10.0)],
        consensus: Some(consensus("", "majority")),
        ..create_claim("c")
    };
    let made = ok!(client.create_claim(request(1, Fail)));
    let equal = ok!(client.create_claim(request(1, ReturnIfEqual)));
    assert!(equal.receipt.unwrap().unchanged);
    assert_eq!(equal.consensus, made.consensus);
    let status =
        fails!(client.create_claim(request(2, ReturnIfEqual)), AlreadyExists, "EXISTS_DIFFERENT");
    assert_eq!(info(&status)["fields"], "verifications");
    assert_eq!(ok!(client.list_verifications(of_claim("c"))).verifications.len(), 1);
    world.close().await;
}

/// C3: what is found may be recorded before the claim, and is hidden and shown with it.
#[tokio::test]
async fn results_may_come_first_and_go_with_the_claim() {
    let world = World::new().await;
    let mut client = world.anonymous().claims();
    ok!(client.create_verification(verify("v-1", verification("c", "empirical", 0.5))));
    ok!(client.create_consensus(agree("k-1", consensus("c", "majority"), Fail)));
    let summary = pb::GetClaimSummaryRequest { claim_id: "c".into(), consistency: None };
    let before = ok!(client.get_claim_summary(summary.clone()));
    assert_eq!((before.claim, before.verification_count), (None, 1));
    assert_eq!(unresolved(&world).await, [true, true]);
    ok!(client.create_claim(create_claim("c")));
    assert_eq!(unresolved(&world).await, [false, false]);
    ok!(client.create_verification(verify("v-2", verification("c", "logical", 0.5))));
    ok!(client.create_verification(verify("v-3", verification("c", "logical", 0.6))));
    let after = ok!(client.get_claim_summary(summary.clone()));
    assert_eq!((after.claim.unwrap().id.as_str(), after.verification_count), ("c", 3));
    let latest: Vec<_> = after.latest_verifications.iter().map(|row| row.id.as_str()).collect();
    assert_eq!(latest, ["v-1", "v-3"]);
    assert_eq!(after.consensus.unwrap().id, "k-1");

    let delete = pb::DeleteClaimRequest { claim_id: "c".into(), ..Default::default() };
    ok!(client.delete_claim(delete));
    assert!(ok!(client.list_verifications(of_claim("c"))).verifications.is_empty());
    fails!(client.get_current_consensus(current("c")), NotFound, "NOT_FOUND");
    fails!(client.get_claim_summary(summary), NotFound, "NOT_FOUND");
    let get = pb::GetVerificationRequest { verification_id: "v-1".into(), ..Default::default() };
    fails!(client.get_verification(get.clone()), NotFound, "NOT_FOUND");
    let undelete = pb::UndeleteClaimRequest { claim_id: "c".into(), options: None };
    ok!(client.undelete_claim(undelete));
    assert_eq!(ok!(client.list_verifications(of_claim("c"))).verifications.len(), 3);
    assert_eq!(ok!(client.get_verification(get)).verification.unwrap().id, "v-1");
    assert_eq!(ok!(client.get_current_consensus(current("c"))).consensus.unwrap().id, "k-1");
    world.close().await;
}

#[tokio::test]
async fn a_consensus_that_comes_back_steps_behind_the_current_one() {
    let world = World::new().await;
    let mut client = world.anonymous().claims();
    ok!(client.create_claim(create_claim("c")));
    ok!(client.create_consensus(agree("old", consensus("c", "majority"), Fail)));
    ok!(client.delete_claim(pb::DeleteClaimRequest { claim_id: "c".into(), ..Default::default() }));
    ok!(client.create_consensus(agree("new", consensus("c", "unanimous"), Fail)));
    ok!(client.undelete_claim(pb::UndeleteClaimRequest { claim_id: "c".into(), options: None }));
    assert_eq!(ok!(client.get_current_consensus(current("c"))).consensus.unwrap().id, "new");
    let get = pb::GetConsensusRequest { consensus_id: "old".into(), ..Default::default() };
    let old = ok!(client.get_consensus(get)).consensus.unwrap();
    assert_eq!((old.current, old.superseded_by_id.as_str()), (false, "new"));
    world.close().await;
}

/// Whether a verification and a consensus still wait for their claim.
async fn unresolved(world: &World) -> [bool; 2] {
    let superuser = crate::world::connect(&crate::world::config_of(&world.database).await).await;
    let sql = "SELECT (SELECT bool_and(claim_uid IS NULL) FROM casebook.verification),
      (SELECT bool_and(claim_uid IS NULL) FROM casebook.consensus)";
    let row = superuser.query_one(sql, &[]).await.unwrap();
    [row.get(0), row.get(1)]
}

#[tokio::test]
async fn strict_tenants_want_what_is_referred_to() {
    let world = World::new().await;
    let tenant = pb::UpdateTenantRequest {
        tenant: Some(pb::Tenant {
            id: "default".into(),
            strict_references: true,
            ..Default::default()
        }),
        update_mask: mask(&["strict_references"]),
        options: None,
    };
    ok!(world.as_tenant("system").tenants().update_tenant(tenant));
    let mut client = world.anonymous().claims();
    let row = verification("c", "empirical", 0.5);
    let call = client.create_verification(verify("v-1", row.clone()));
    let status = fails!(call, FailedPrecondition, "REFERENCE_MISSING");
    assert_eq!((info(&status)["kind"].as_str(), info(&status)["id"].as_str()), ("claim", "c"));
    let call = client.create_consensus(agree("k", consensus("c", "majority"), Fail));
    fails!(call, FailedPrecondition, "REFERENCE_MISSING");
    // What comes in the same call is there.
    let together = pb::CreateClaimRequest {
        verifications: vec![row.clone()],
        consensus: Some(consensus("", "majority")),
        ..create_claim("c")
    };
    ok!(client.create_claim(together));
    ok!(client.create_verification(verify("v-1", row.clone())));
    let mut decided = consensus("c", "unanimous");
    decided.decision_id = "dec-123".into();
    let status = fails!(
        client.create_consensus(agree("k", decided.clone(), Replace)),
        FailedPrecondition,
        "REFERENCE_MISSING"
    );
    assert_eq!(info(&status)["field"], "decision_id");
    ok!(world.decisions().create_decision(create("dec-123", decision("ALLOW", 0.5))));
    ok!(client.create_consensus(agree("k", decided, Replace)));
    // Deleted is not there.
    let delete = pb::DeleteClaimRequest { claim_id: "c".into(), ..Default::default() };
    ok!(client.delete_claim(delete));
    fails!(client.create_verification(verify("v-9", row)), FailedPrecondition, "REFERENCE_MISSING");
    world.close().await;
}

/// C28: one current consensus per claim, and the history of those before.
#[tokio::test]
async fn a_newer_consensus_supersedes_the_current_one() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.claims();
    let first = ok!(client.create_consensus(agree("k-1", consensus("c", "majority"), Fail)));
    let first = first.consensus.unwrap();
    assert!(first.current && first.supersedes_id.is_empty());
    let call = client.create_consensus(agree("k-2", consensus("c", "unanimous"), Fail));
    fails!(call, AlreadyExists, "EXISTS");
    let equal = agree("", consensus("c", "majority"), ReturnIfEqual);
    let equal = ok!(client.create_consensus(equal));
    assert_eq!((equal.consensus, equal.receipt.unwrap().unchanged), (Some(first.clone()), true));
    let other = agree("", consensus("c", "unanimous"), ReturnIfEqual);
    let status = fails!(client.create_consensus(other), AlreadyExists, "EXISTS_DIFFERENT");
    assert_eq!(info(&status)["fields"], "consensus_type");
    let mut replace = agree("k-2", consensus("c", "unanimous"), Replace);
    replace.options.as_mut().unwrap().request_id = "supersede".into();
    let second = ok!(client.create_consensus(replace.clone()));
    assert_eq!(ok!(client.create_consensus(replace)).consensus, second.consensus);
    let second = second.consensus.unwrap();
    assert_eq!((second.current, second.supersedes_id.as_str()), (true, "k-1"));
    let get = pb::GetConsensusRequest { consensus_id: "k-1".into(), ..Default::default() };
    let before = ok!(client.get_consensus(get)).consensus.unwrap();
    assert_eq!((before.current, before.superseded_by_id.as_str()), (false, "k-2"));
    assert_eq!(ok!(client.get_current_consensus(current("c"))).consensus, Some(second));
    let all = ok!(client.list_consensuses(agreed_on("c"))).consensuses;
    assert_eq!(all.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["k-2", "k-1"]);
    let of = pb::ListConsensusesRequest {
        r#where: expression("current = true AND participating_frameworks:logical"),
        ..agreed_on("-")
    };
    assert_eq!(ok!(client.list_consensuses(of)).consensuses.len(), 1);
    // An id that is taken fails the call, and the current one stays.
    let call = client.create_consensus(agree("k-1", consensus("c", "weighted"), Replace));
    fails!(call, AlreadyExists, "EXISTS");
    assert_eq!(ok!(client.get_current_consensus(current("c"))).consensus.unwrap().id, "k-2");
    world.close().await;
}

/// Whoever comes when: one is current, and the others make one chain behind it.
#[tokio::test(flavor = "multi_thread")]
async fn thirty_two_callers_leave_one_chain_of_consensuses() {
    let world = World::new().await;
    let mut calls = tokio::task::JoinSet::new();
    for caller in 0..32 {
        let mut client = world.anonymous().claims();
        calls.spawn(async move {
            for n in 0..8 {
                let claim = format!("c-{}", (caller + n) % 3);
                let row = consensus(&claim, "majority");
                ok!(client.create_consensus(agree(&format!("k-{caller}-{n}"), row, Replace)));
            }
        });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
    let mut client = world.anonymous().claims();
    let mut found = 0;
    for claim in ["c-0", "c-1", "c-2"] {
        let request = pb::ListConsensusesRequest { page: page(1000), ..agreed_on(claim) };
        let all = ok!(client.list_consensuses(request)).consensuses;
        let of = |id: &str| all.iter().find(|row| row.id == id).expect("a link of the chain");
        assert_eq!(all.iter().filter(|row| row.current).count(), 1, "{claim}");
        let mut link = all.iter().find(|row| row.current).unwrap();
        assert_eq!(link.superseded_by_id, "");
        let mut length = 1;
        while !link.supersedes_id.is_empty() {
            let before = of(&link.supersedes_id);
            assert_eq!((before.superseded_by_id.as_str(), before.current), (&*link.id, false));
            (link, length) = (before, length + 1);
        }
        assert_eq!(length, all.len(), "{claim}: all hang together");
        found += length;
    }
    assert_eq!(found, 32 * 8);
    world.close().await;
}

#[tokio::test]
async fn recent_verifications_and_figures_by_framework() {
    let world = World::new().await;
    let mut client = world.anonymous().claims();
    let mut requests = Vec::new();
    for n in 0..10 {
        let framework = if n % 2 == 0 { "empirical" } else { "logical" };
        let row = pb::Verification {
            processing_time: Some(prost_types::Duration { seconds: n, nanos: 0 }),
            ..verification(&format!("c-{}", n % 3), framework, n as f64 / 10.0)
        };
        requests.push(verify(&format!("v-{n}"), row));
    }
    let batch = pb::BatchCreateVerificationsRequest { requests, options: None };
    let made = ok!(client.batch_create_verifications(batch)).verifications;
    assert_eq!(made.len(), 10);
    // F237: the most recent of all.
    let recent = pb::ListVerificationsRequest { page: page(3), ..Default::default() };
    assert_eq!(ok!(client.list_verifications(recent)).verifications.len(), 3);
    // F236: those of one claim.
    assert_eq!(ok!(client.list_verifications(of_claim("c-0"))).verifications.len(), 4);
    let figures =
        ok!(client.get_framework_statistics(pb::GetFrameworkStatisticsRequest::default()));
    let total = figures.total.unwrap();
    assert_eq!((total.count, total.claim_count, total.min_confidence), (10, 3, Some(0.0)));
    let [empirical, logical] = &figures.groups[..] else { panic!("{:?}", figures.groups) };
    assert_eq!((empirical.framework.as_str(), empirical.count), ("empirical", 5));
    assert!((empirical.avg_confidence.unwrap() - 0.4).abs() < 1e-9);
    assert_eq!(empirical.p50_processing_time, Some(prost_types::Duration { seconds: 4, nanos: 0 }));
    assert_eq!((logical.min_confidence, logical.max_confidence), (Some(0.1), Some(0.9)));
    let some = pb::GetFrameworkStatisticsRequest {
        r#where: expression("framework = logical AND confidence > 0.6"),
        window: None,
    };
    let figures = ok!(client.get_framework_statistics(some));
    assert_eq!((figures.total.unwrap().count, figures.groups.len()), (2, 1));
    let none = pb::GetFrameworkStatisticsRequest {
        r#where: expression("framework = nobody"),
        window: None,
    };
    let figures = ok!(client.get_framework_statistics(none));
    let total = figures.total.unwrap();
    assert_eq!((total.count, total.avg_confidence, figures.groups.len()), (0, None, 0));
    world.close().await;
}

#[tokio::test]
async fn another_tenant_has_none_of_it() {
    let world = World::new().await;
    world.tenant("other").await;
    let (mut ours, mut theirs) = (world.anonymous().claims(), world.as_tenant("other").claims());
    let all = pb::CreateClaimRequest {
        verifications: vec![verification("", "empirical", 0.5)],
        consensus: Some(consensus("", "majority")),
        ..create_claim("c")
    };
    ok!(ours.create_claim(all.clone()));
    let summary = pb::GetClaimSummaryRequest { claim_id: "c".into(), consistency: None };
    fails!(theirs.get_claim_summary(summary.clone()), NotFound, "NOT_FOUND");
    fails!(theirs.get_current_consensus(current("c")), NotFound, "NOT_FOUND");
    assert!(ok!(theirs.list_verifications(of_claim("-"))).verifications.is_empty());
    // The same ids are free for them, and their consensus supersedes nobody's.
    let made = ok!(theirs.create_claim(all)).consensus.unwrap();
    assert_eq!(made.supersedes_id, "");
    let delete = pb::DeleteClaimRequest { claim_id: "c".into(), ..Default::default() };
    ok!(theirs.delete_claim(delete));
    assert_eq!(ok!(ours.get_claim_summary(summary)).verification_count, 1);
    world.close().await;
}
