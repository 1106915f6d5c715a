//! Deleting evidence and bringing it back, and what keeps it.

use super::*;

fn delete_bundle(id: &str) -> pb::DeleteEvidenceBundleRequest {
    pb::DeleteEvidenceBundleRequest { evidence_bundle_id: id.into(), ..Default::default() }
}

fn undelete_bundle(id: &str) -> pb::UndeleteEvidenceBundleRequest {
    pb::UndeleteEvidenceBundleRequest { evidence_bundle_id: id.into(), options: None }
}

fn detach(id: &str) -> pb::DetachBlobRequest {
    pb::DetachBlobRequest { attachment_id: id.into(), ..Default::default() }
}

fn delete_blob(bytes: &[u8]) -> pb::DeleteBlobRequest {
    pb::DeleteBlobRequest { digest: Some(digest(bytes)), ..Default::default() }
}

/// A decision with a bundle and an attachment.
async fn filled(world: &World) -> As {
    let me = world.anonymous();
    decide(&me, "d").await;
    upload(&me, b"file").await;
    ok!(me.evidence().create_evidence_bundle(bundle("b", "d")));
    ok!(me.evidence().attach_blob(attach("a", "d", "f", b"file")));
    me
}

#[tokio::test]
async fn a_bundle_is_deleted_and_comes_back_with_its_bytes() {
    let world = World::new().await;
    let me = filled(&world).await;
    let mut evidence = me.evidence();
    let made = ok!(evidence.get_evidence_bundle(get_bundle("b"))).evidence_bundle.unwrap();
    let stale = pb::DeleteEvidenceBundleRequest { etag: "\"other\"".into(), ..delete_bundle("b") };
    fails!(evidence.delete_evidence_bundle(stale), Aborted, "ETAG_MISMATCH");
    let by_etag = pb::DeleteEvidenceBundleRequest { etag: made.etag.clone(), ..delete_bundle("b") };
    let gone = ok!(evidence.delete_evidence_bundle(by_etag)).evidence_bundle.unwrap();
    assert!(gone.meta.unwrap().delete_time.is_some());
    fails!(evidence.get_evidence_bundle(get_bundle("b")), NotFound, "NOT_FOUND");
    fails!(evidence.delete_evidence_bundle(delete_bundle("b")), NotFound, "NOT_FOUND");
    let allowed = pb::DeleteEvidenceBundleRequest { allow_missing: true, ..delete_bundle("b") };
    assert_eq!(ok!(evidence.delete_evidence_bundle(allowed)).evidence_bundle, None);
    // It may come back, so its bytes stay.
    fails!(
        me.blobs().delete_blob(delete_blob(CANONICAL.as_bytes())),
        FailedPrecondition,
        "REFERENCED"
    );
    let back =
        ok!(evidence.undelete_evidence_bundle(undelete_bundle("b"))).evidence_bundle.unwrap();
    assert_eq!(back.meta.as_ref().unwrap().version, 3);
    assert_eq!(back.object_key, made.object_key);
    let found = ok!(evidence.get_decision_evidence(of("d")));
    assert!(found.verified && found.bundle == Some(back));
    fails!(evidence.undelete_evidence_bundle(undelete_bundle("b")), AlreadyExists, "EXISTS");
    fails!(evidence.undelete_evidence_bundle(undelete_bundle("never")), NotFound, "NOT_FOUND");
    let first = pb::GetEvidenceBundleRequest { version: 1, ..get_bundle("b") };
    assert_eq!(ok!(evidence.get_evidence_bundle(first)).evidence_bundle, Some(made));
    assert_eq!(ok!(evidence.verify_evidence(verify("d", true))).findings, []);
    world.close().await;
}

#[tokio::test]
async fn a_blob_that_is_detached_can_be_deleted() {
    let world = World::new().await;
    let me = filled(&world).await;
    ok!(me.evidence().attach_blob(attach("a-2", "d", "g", b"file")));
    assert_eq!(references(&me, b"file").await, 2);
    let gone = ok!(me.evidence().detach_blob(detach("a"))).attachment.unwrap();
    assert!(gone.meta.unwrap().delete_time.is_some());
    assert_eq!(references(&me, b"file").await, 1);
    fails!(me.blobs().delete_blob(delete_blob(b"file")), FailedPrecondition, "REFERENCED");
    // Its name is free.
    ok!(me.evidence().attach_blob(attach("a-3", "d", "f", b"file")));
    for id in ["a-2", "a-3"] {
        ok!(me.evidence().detach_blob(detach(id)));
    }
    fails!(me.evidence().detach_blob(detach("a")), NotFound, "NOT_FOUND");
    let allowed = pb::DetachBlobRequest { allow_missing: true, ..detach("a") };
    assert_eq!(ok!(me.evidence().detach_blob(allowed)).attachment, None);
    ok!(me.blobs().delete_blob(delete_blob(b"file")));
    world.close().await;
}

#[tokio::test]
async fn evidence_goes_and_comes_back_with_its_decision() {
    let (world, folder) = crate::blob::on_disk(&[("blob_reap_interval_ms", "20")]).await;
    let me = filled(&world).await;
    for id in ["b-2", "b-3"] {
        ok!(me.evidence().create_evidence_bundle(other(id, "d", id)));
    }
    ok!(me.evidence().delete_evidence_bundle(delete_bundle("b-2")));
    ok!(me.decisions().delete_decision(delete("d")));
    assert_eq!(bundles_of(&me, "-").await, [""; 0]);
    assert_eq!(attachments_of(&me, "-").await, [""; 0]);
    for id in ["b", "b-2"] {
        fails!(me.evidence().get_evidence_bundle(get_bundle(id)), NotFound, "NOT_FOUND");
        let status = fails!(
            me.evidence().undelete_evidence_bundle(undelete_bundle(id)),
            NotFound,
            "NOT_FOUND"
        );
        assert!(status.message().starts_with("decision "), "{status:?}");
    }
    fails!(me.evidence().create_evidence_bundle(other("", "d", "late")), NotFound, "NOT_FOUND");
    fails!(me.evidence().attach_blob(attach("", "d", "late", b"file")), NotFound, "NOT_FOUND");
    fails!(me.blobs().delete_blob(delete_blob(b"file")), FailedPrecondition, "REFERENCED");
    // Another decision under the id is not the one that they belong to.
    decide(&me, "d").await;
    for id in ["b", "b-2"] {
        fails!(me.evidence().undelete_evidence_bundle(undelete_bundle(id)), NotFound, "NOT_FOUND");
    }
    ok!(me.decisions().delete_decision(delete("d")));
    // The one deleted last comes back first; purged, it leaves the id to the one before.
    let purge = |older_us: i64| pb::PurgeResourcesRequest {
        kind: pb::ResourceKind::Decision.into(),
        older_than: Some(prost_types::Duration { seconds: 0, nanos: older_us as i32 * 1000 }),
        max_resources: 10,
        ..Default::default()
    };
    ok!(me.decisions().undelete_decision(undelete("d")));
    assert_eq!(bundles_of(&me, "d").await, [""; 0]);
    ok!(me.decisions().delete_decision(delete("d")));
    ok!(me.retention().purge_resources(purge(0)));
    let database = world.superuser().await;
    for table in ["decision", "evidence_bundle", "attachment", "blob_reference"] {
        let count = format!("SELECT count(*) FROM casebook.{table}");
        let left: i64 = database.query_one(&count, &[]).await.unwrap().get(0);
        assert_eq!(left, 0, "{table}");
    }
    // What the log said of them is gone, too.
    let said = "SELECT count(*) FROM casebook.log WHERE kind IN ('evidence_bundle', 'attachment') \
                AND document IS NOT NULL AND document <> ''";
    assert_eq!(database.query_one(said, &[]).await.unwrap().get::<_, i64>(0), 0);
    // The bytes of bundles went, too. A file is the caller's own.
    let live = "SELECT count(*) FROM casebook.blob WHERE delete_time IS NULL";
    assert_eq!(database.query_one(live, &[]).await.unwrap().get::<_, i64>(0), 1);
    assert_eq!(references(&me, b"file").await, 0);
    crate::blob::is_settled(&database).await;
    assert_eq!(crate::blob::files(folder.path()).len(), 1);
    ok!(me.blobs().delete_blob(delete_blob(b"file")));
    crate::blob::is_consistent(&database, folder.path()).await;
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn a_deleted_decision_brings_its_evidence_back() {
    let world = World::new().await;
    let me = filled(&world).await;
    ok!(me.evidence().create_evidence_bundle(other("b-2", "d", "x")));
    ok!(me.evidence().delete_evidence_bundle(delete_bundle("b-2")));
    ok!(me.evidence().attach_blob(attach("a-2", "d", "g", b"file")));
    ok!(me.evidence().detach_blob(detach("a-2")));
    ok!(me.decisions().delete_decision(delete("d")));
    ok!(me.decisions().undelete_decision(undelete("d")));
    assert_eq!(bundles_of(&me, "d").await, ["b"]);
    assert_eq!(attachments_of(&me, "d").await, ["a"]);
    assert!(ok!(me.evidence().get_decision_evidence(of("d"))).verified);
    let verified = ok!(me.evidence().verify_evidence(verify("d", true)));
    assert_eq!((verified.checked, verified.findings.len()), (2, 0), "{verified:?}");
    // What was deleted by itself comes back by itself.
    ok!(me.evidence().undelete_evidence_bundle(undelete_bundle("b-2")));
    assert_eq!(bundles_of(&me, "d").await, ["b", "b-2"]);
    world.close().await;
}

async fn hold(me: &As, id: &str, refs: Vec<pb::ResourceRef>, subject: &str) {
    let legal_hold = pb::LegalHold {
        reason: "a case".into(),
        refs,
        subject_id: subject.into(),
        ..Default::default()
    };
    let request = pb::CreateLegalHoldRequest {
        legal_hold_id: id.into(),
        legal_hold: Some(legal_hold),
        options: None,
    };
    ok!(me.retention().create_legal_hold(request));
}

async fn release(me: &As, id: &str) {
    let request = pb::ReleaseLegalHoldRequest {
        legal_hold_id: id.into(),
        reason: "over".into(),
        options: None,
    };
    ok!(me.retention().release_legal_hold(request));
}

#[tokio::test]
async fn what_is_held_stays_whatever_force_is_used() {
    let world = World::new().await;
    let me = world.anonymous();
    let given = pb::Decision {
        subject_id: "s".into(),
        retention_class: "long".into(),
        ..decision("DENY", 0.85)
    };
    ok!(me.decisions().create_decision(create("d", given)));
    upload(&me, b"file").await;
    ok!(me.evidence().create_evidence_bundle(bundle("b", "d")));
    ok!(me.evidence().attach_blob(attach("a", "d", "f", b"file")));
    use pb::ResourceKind::{Attachment, Decision, EvidenceBundle};
    let forced = || pb::DeleteEvidenceBundleRequest { force: true, ..delete_bundle("b") };
    let torn = || pb::DetachBlobRequest { force: true, ..detach("a") };
    for (refs, subject, bundle, attachment) in [
        (vec![reference(EvidenceBundle, "b", 0)], "", true, false),
        (vec![reference(Attachment, "a", 0)], "", false, true),
        (vec![reference(Decision, "d", 0)], "", true, true),
        (vec![], "s", true, true),
    ] {
        let id = format!("h-{subject}-{bundle}-{attachment}");
        hold(&me, &id, refs, subject).await;
        if bundle {
            fails!(me.evidence().delete_evidence_bundle(forced()), FailedPrecondition, "ON_HOLD");
        }
        if attachment {
            fails!(me.evidence().detach_blob(torn()), FailedPrecondition, "ON_HOLD");
        }
        // Whatever keeps a part keeps the whole.
        fails!(me.decisions().delete_decision(delete("d")), FailedPrecondition, "ON_HOLD");
        release(&me, &id).await;
    }
    ok!(me.evidence().delete_evidence_bundle(forced()));
    ok!(me.evidence().undelete_evidence_bundle(undelete_bundle("b")));
    ok!(me.evidence().detach_blob(torn()));
    ok!(me.evidence().attach_blob(attach("a", "d", "f", b"file")));
    // What the decision's class keeps, it keeps of its parts, too.
    let policy = pb::RetentionPolicy {
        retention_class: "long".into(),
        keep_at_least: Some(prost_types::Duration { seconds: 86_400, nanos: 0 }),
        ..Default::default()
    };
    let request = pb::CreateRetentionPolicyRequest {
        retention_policy_id: "p".into(),
        retention_policy: Some(policy),
        options: None,
    };
    ok!(me.retention().create_retention_policy(request));
    fails!(me.evidence().delete_evidence_bundle(forced()), FailedPrecondition, "RETENTION_FLOOR");
    fails!(me.evidence().detach_blob(torn()), FailedPrecondition, "RETENTION_FLOOR");
    world.close().await;
}

#[tokio::test]
async fn what_a_decision_cites_is_deleted_only_by_force() {
    let world = World::new().await;
    let me = filled(&world).await;
    upload(&me, b"lone").await;
    let lone = hex(&digest(b"lone").value);
    use pb::ResourceKind::{Attachment, Blob, EvidenceBundle};
    let mut citing = decision("DENY", 0.5);
    citing.evidence = vec![
        reference(EvidenceBundle, "b", 1),
        reference(Attachment, "a", 0),
        reference(Blob, &lone, 0),
    ];
    ok!(me.decisions().create_decision(create("citing", citing)));
    let status = fails!(
        me.evidence().delete_evidence_bundle(delete_bundle("b")),
        FailedPrecondition,
        "REFERENCED"
    );
    assert_eq!((&*info(&status)["kind"], &*info(&status)["id"]), ("decision", "citing"));
    fails!(me.evidence().detach_blob(detach("a")), FailedPrecondition, "REFERENCED");
    // Nor do they go with the decision that has them, in a call of its own or in a transaction.
    let whole =
        fails!(me.decisions().delete_decision(delete("d")), FailedPrecondition, "REFERENCED");
    assert_eq!((&*info(&whole)["kind"], &*info(&whole)["id"]), ("decision", "citing"));
    let one = crate::transaction::execute(vec![
        pb::execute_transaction_request::operation::Operation::DeleteDecision(delete("d")),
    ]);
    fails!(me.transactions().execute_transaction(one), FailedPrecondition, "REFERENCED");
    fails!(me.blobs().delete_blob(delete_blob(b"lone")), FailedPrecondition, "REFERENCED");
    assert!(ok!(me.evidence().get_decision_evidence(of("d"))).verified);
    let forced = pb::DeleteDecisionRequest { force: true, ..delete("d") };
    ok!(me.decisions().delete_decision(forced));
    ok!(me.decisions().undelete_decision(undelete("d")));
    // What cites its own goes with it, and a decision that is gone cites nothing.
    ok!(me.decisions().delete_decision(delete("citing")));
    let mut own = decision("DENY", 0.5);
    own.evidence = vec![reference(EvidenceBundle, "own", 0)];
    ok!(me.decisions().create_decision(create("own", own)));
    ok!(me.evidence().create_evidence_bundle(bundle("own", "own")));
    ok!(me.decisions().delete_decision(delete("own")));
    ok!(me.decisions().delete_decision(delete("d")));
    ok!(me.decisions().undelete_decision(undelete("d")));
    ok!(me.evidence().delete_evidence_bundle(delete_bundle("b")));
    ok!(me.evidence().undelete_evidence_bundle(undelete_bundle("b")));
    ok!(me.decisions().undelete_decision(undelete("citing")));
    let forced = pb::DeleteEvidenceBundleRequest { force: true, ..delete_bundle("b") };
    ok!(me.evidence().delete_evidence_bundle(forced));
    ok!(me.evidence().detach_blob(pb::DetachBlobRequest { force: true, ..detach("a") }));
    ok!(me.blobs().delete_blob(pb::DeleteBlobRequest { force: true, ..delete_blob(b"lone") }));
    world.close().await;
}
