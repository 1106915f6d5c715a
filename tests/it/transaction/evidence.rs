//! Decisions with their evidence, files and objects in one transaction: all of them are there with their bytes, or none.

use super::{Item, execute};
use crate::blob::{bytes, digest, files, is_consistent, is_settled, on_disk, upload};
use crate::evidence::{
    CANONICAL, attach, bundle, bundles_of, decide, of, other, references, verify,
};
use crate::help::*;
use crate::object::{delete as delete_object, get, put, put_external, rollback};
use crate::world::{World, create, decision, object, reason, request};
use casebook::pb;
use pb::execute_transaction_request::operation::Operation;
use tonic::Code;

/// A bundle that lies in the store even where small ones lie in the database.
fn long(id: &str, decision_id: &str, note: &str) -> pb::CreateEvidenceBundleRequest {
    let mut request = bundle(id, decision_id);
    let text = note.repeat(100_000 / note.len());
    request.evidence_bundle.as_mut().unwrap().evidence_data = Some(object(&[("text", &text)]));
    request
}

fn copy(from: &str, to: &str) -> Operation {
    Operation::CopyObject(pb::CopyObjectRequest {
        source: crate::object::of(from, ""),
        destination_key: to.into(),
        ..Default::default()
    })
}

#[tokio::test]
async fn a_decision_comes_with_its_evidence_files_and_objects() {
    for inline_max in ["0", "16384"] {
        let (world, folder) = on_disk(&[("blob_inline_max_bytes", inline_max)]).await;
        let me = world.anonymous();
        let scan = bytes(1, 100_000);
        upload(&me, &scan).await;
        let before = head(&me).await;
        let operations = vec![
            Operation::CreateDecision(create("", decision("DENY", 0.85))),
            Operation::CreateEvidenceBundle(bundle("b", "$0.id")),
            Operation::CreateEvidenceBundle(long("", "$0.id", "long ")),
            // The same bytes once more: one blob for both.
            Operation::CreateEvidenceBundle(bundle("again", "$0.id")),
            Operation::AttachBlob(attach("", "$0.id", "scan.png", &scan)),
            Operation::PutObject(put("cases/1/scan.png", &scan)),
            copy("cases/1/scan.png", "archive/scan.png"),
            Operation::PutObject(put_external("cases/1/tape", 7)),
        ];
        let mut once = execute(operations);
        once.options = Some(request("with-evidence"));
        let made = ok!(me.transactions().execute_transaction(once.clone()));
        use pb::ResourceKind::{Attachment, Decision, EvidenceBundle, Object};
        let kinds: Vec<_> = made.results.iter().map(|one| (one.kind(), one.version)).collect();
        let expected = [
            (Decision, 1),
            (EvidenceBundle, 1),
            (EvidenceBundle, 1),
            (EvidenceBundle, 1),
            (Attachment, 1),
            (Object, 1),
            (Object, 1),
            (Object, 1),
        ];
        assert_eq!(kinds, expected, "{inline_max}");
        let decision_id = &made.results[0].id;
        assert!(ok!(me.evidence().get_decision_evidence(of(decision_id))).verified);
        let verified = ok!(me.evidence().verify_evidence(verify(decision_id, true)));
        assert_eq!((verified.checked, verified.findings.len()), (4, 0), "{verified:?}");
        assert_eq!(references(&me, CANONICAL.as_bytes()).await, 2);
        assert_eq!(references(&me, &scan).await, 3);
        let copied = ok!(me.objects().get_object(get("archive/scan.png")));
        assert_eq!(copied.object_version.unwrap().blob, Some(digest(&scan)));

        // All of it is one transaction of the log: eight things, two blobs and a version for each object.
        let receipt = made.receipt.unwrap();
        let of_it = entries(&me, 100).await.into_iter().filter(|entry| {
            entry.action != "VERIFY" && entry.seq > before && entry.seq <= receipt.audit_seq
        });
        let of_it: Vec<_> = of_it.collect();
        assert_eq!(of_it.len() as i64, receipt.audit_seq - before);
        assert!(of_it.iter().all(|entry| entry.event_time == of_it[0].event_time), "{of_it:?}");

        // Asked for again it is told again, and nothing is brought that stays.
        let database = world.superuser().await;
        let now = head(&me).await;
        let again = ok!(me.transactions().execute_transaction(once));
        assert!(again.receipt.unwrap().replayed);
        assert_eq!((again.results, head(&me).await), (made.results, now));
        is_settled(&database).await;
        is_consistent(&database, folder.path()).await;
        let in_store = if inline_max == "0" { 3 } else { 2 };
        assert_eq!(files(folder.path()).len(), in_store);
        crate::fault::log_is_gap_free(&database).await;
        drop(database);
        world.close().await;
    }
}

#[tokio::test]
async fn what_is_refused_or_only_rehearsed_leaves_no_bytes() {
    let (world, folder) = on_disk(&[]).await;
    let me = world.anonymous();
    decide(&me, "d").await;
    upload(&me, b"file").await;
    ok!(me.evidence().attach_blob(attach("taken", "d", "taken", b"file")));
    let before = (head(&me).await, files(folder.path()).len());
    let mut client = me.transactions();
    let with = |last: Operation| {
        execute(vec![
            Operation::CreateEvidenceBundle(other("b", "d", "bytes that nobody has")),
            Operation::CreateEvidenceBundle(long("c", "d", "long ")),
            last,
        ])
    };
    let at = |name: &str| format!("operations[2].{name}");
    let wrong = [
        (
            Operation::AttachBlob(attach("a", "d", "taken", b"file")),
            (Code::AlreadyExists, "EXISTS", at("attach_blob")),
        ),
        (
            Operation::AttachBlob(attach("a", "d", "f", b"nobody has uploaded this")),
            (Code::NotFound, "NOT_FOUND", at("attach_blob")),
        ),
        (
            Operation::CreateEvidenceBundle(other("e", "nowhere", "e")),
            (Code::NotFound, "NOT_FOUND", at("create_evidence_bundle")),
        ),
        (
            Operation::CreateEvidenceBundle(other("b", "d", "the id is taken before")),
            (Code::AlreadyExists, "EXISTS", at("create_evidence_bundle")),
        ),
        (
            Operation::PutObject(put("k", b"nobody has uploaded this")),
            (Code::NotFound, "NOT_FOUND", at("put_object")),
        ),
        (copy("nowhere", "k"), (Code::NotFound, "NOT_FOUND", at("copy_object"))),
        (
            Operation::DeleteObject(delete_object("nowhere")),
            (Code::NotFound, "NOT_FOUND", at("delete_object")),
        ),
        (
            Operation::DetachBlob(pb::DetachBlobRequest {
                attachment_id: "nowhere".into(),
                ..Default::default()
            }),
            (Code::NotFound, "NOT_FOUND", at("detach_blob")),
        ),
    ];
    for (last, (code, why, at)) in wrong {
        let status = client.execute_transaction(with(last)).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (code, why), "{at}: {status:?}");
        assert!(status.message().starts_with(&at), "{at}: {status:?}");
    }
    let traversal = with(Operation::PutObject(put("../k", b"file")));
    let status = fails!(client.execute_transaction(traversal), InvalidArgument, "FIELD_INVALID");
    assert_eq!(crate::world::wrong_fields(&status), [at("put_object.key")]);
    let mut rehearsed = with(Operation::AttachBlob(attach("a", "d", "f", b"file")));
    rehearsed.options = Some(pb::WriteOptions { validate_only: true, ..Default::default() });
    let rehearsal = ok!(client.execute_transaction(rehearsed));
    assert!(rehearsal.receipt.is_none() && rehearsal.results.len() == 3, "{rehearsal:?}");

    let database = world.superuser().await;
    is_settled(&database).await;
    is_consistent(&database, folder.path()).await;
    assert_eq!((head(&me).await, files(folder.path()).len()), before);
    assert_eq!(bundles_of(&me, "d").await, [""; 0]);
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn objects_and_evidence_change_and_go_in_order() {
    let world = World::new().await;
    let me = world.anonymous();
    decide(&me, "d").await;
    for file in [b"one", b"two"] {
        upload(&me, file).await;
    }
    let first = crate::object::made(&me, put("k", b"one")).await;
    ok!(me.evidence().create_evidence_bundle(bundle("b", "d")));
    let delete_bundle = || {
        Operation::DeleteEvidenceBundle(pb::DeleteEvidenceBundleRequest {
            evidence_bundle_id: "b".into(),
            ..Default::default()
        })
    };
    let made = ok!(me.transactions().execute_transaction(execute(vec![
        Operation::PutObject(put("k", b"two")),
        Operation::DeleteObject(delete_object("k")),
        Operation::RollbackObject(rollback("k", &first)),
        delete_bundle(),
        // Known bytes, which nothing needs to bring.
        Operation::CreateEvidenceBundle(bundle("c", "d")),
        Operation::AttachBlob(attach("a", "d", "f", b"two")),
        Operation::DetachBlob(pb::DetachBlobRequest {
            attachment_id: "$5.id".into(),
            ..Default::default()
        }),
    ])));
    let versions: Vec<_> = made.results.iter().map(|one| (one.id.as_str(), one.version)).collect();
    let expected = [("k", 2), ("k", 3), ("k", 4), ("b", 2), ("c", 1), ("a", 1), ("a", 2)];
    assert_eq!(versions, expected);
    let found = ok!(me.objects().get_object(get("k"))).object_version.unwrap();
    assert_eq!(found.blob, Some(digest(b"one")));
    assert_eq!(crate::object::versions(&me, "k").await.len(), 4);
    assert_eq!(bundles_of(&me, "d").await, ["c"]);
    assert_eq!(crate::evidence::attachments_of(&me, "d").await, [""; 0]);
    world.close().await;
}

#[tokio::test]
async fn without_a_store_of_blobs_only_bundles_are_refused() {
    let world = World::with(&[("blob_store_url", "")]).await;
    let me = world.anonymous();
    let with = |last: Operation| pb::ExecuteTransactionRequest {
        operations: vec![
            Item { operation: Some(Operation::CreateDecision(create("d", decision("DENY", 0.5)))) },
            Item { operation: Some(last) },
        ],
        options: None,
    };
    let bundled = with(Operation::CreateEvidenceBundle(bundle("b", "$0.id")));
    let mut client = me.transactions();
    let refused = client.execute_transaction(bundled);
    assert_eq!(
        info(&fails!(refused, FailedPrecondition, "NOT_CONFIGURED"))["setting"],
        "blob_store_url"
    );
    assert_eq!(head(&me).await, 0);
    ok!(client.execute_transaction(with(Operation::PutObject(put_external("k", 1)))));
    world.close().await;
}
