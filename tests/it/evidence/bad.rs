//! What is refused, and that nothing of it is kept.

use super::*;
use crate::world::{reason, wrong_fields};
use tonic::Code;

#[tokio::test]
async fn a_bundle_that_is_not_as_it_should_be_is_refused_and_leaves_nothing() {
    let (world, folder) = crate::blob::on_disk(&[]).await;
    let me = world.anonymous();
    decide(&me, "d").await;
    let with = |change: &dyn Fn(&mut pb::EvidenceBundle)| {
        let mut request = bundle("b", "d");
        change(request.evidence_bundle.as_mut().unwrap());
        request
    };
    let text = "x".repeat(1 << 20);
    let invalid = |reason: &'static str, fields: &[&'static str]| {
        (Code::InvalidArgument, reason, fields.to_vec())
    };
    let cases = [
        (
            pb::CreateEvidenceBundleRequest { evidence_bundle: None, ..bundle("b", "d") },
            invalid("FIELD_INVALID", &["evidence_bundle"]),
        ),
        (
            with(&|b| b.decision_id = String::new()),
            invalid("FIELD_INVALID", &["evidence_bundle.decision_id"]),
        ),
        (with(&|b| b.decision_id = "none".into()), (Code::NotFound, "NOT_FOUND", vec![])),
        (
            with(&|b| b.evidence_data = None),
            invalid("FIELD_INVALID", &["evidence_bundle.evidence_data"]),
        ),
        (
            with(&|b| b.evidence_data = Some(object(&[]))),
            invalid("FIELD_INVALID", &["evidence_bundle.evidence_data"]),
        ),
        (
            with(&|b| b.evidence_data = Some(object(&[("text", &text)]))),
            invalid("JSON_TOO_LARGE", &["evidence_bundle.evidence_data"]),
        ),
        (
            with(&|b| b.evidence_data = Some(object(&[("a\0", "b")]))),
            invalid("NUL_BYTE", &["evidence_bundle.evidence_data"]),
        ),
        (
            with(&|b| b.evidence_type = "a/b".into()),
            invalid("FIELD_INVALID", &["evidence_bundle.evidence_type"]),
        ),
        (
            with(&|b| b.evidence_type = "..".into()),
            invalid("FIELD_INVALID", &["evidence_bundle.evidence_type"]),
        ),
        (
            with(&|b| b.evidence_type = "x".repeat(64)),
            invalid("FIELD_INVALID", &["evidence_bundle.evidence_type"]),
        ),
        (
            with(&|b| b.bundle_version = "x".repeat(64)),
            invalid("FIELD_INVALID", &["evidence_bundle.bundle_version"]),
        ),
        (with(&|b| b.id = "other".into()), invalid("FIELD_INVALID", &["evidence_bundle.id"])),
        (
            with(&|b| {
                b.digest = Some(pb::Digest { algorithm: "md5".into(), value: vec![0; 16].into() })
            }),
            invalid(
                "FIELD_INVALID",
                &["evidence_bundle.digest.algorithm", "evidence_bundle.digest.value"],
            ),
        ),
        (
            with(&|b| b.digest = Some(digest(b"{}"))),
            invalid("DIGEST_MISMATCH", &["evidence_bundle.digest"]),
        ),
    ];
    let before = head(&me).await;
    for (n, (request, (code, expected, fields))) in cases.into_iter().enumerate() {
        let status =
            me.evidence().create_evidence_bundle(request).await.expect_err("it is refused");
        assert_eq!((status.code(), reason(&status).as_str()), (code, expected), "{n}: {status:?}");
        assert_eq!(wrong_fields(&status), fields, "{n}: {status:?}");
        if expected == "DIGEST_MISMATCH" {
            for said in [digest(b"{}"), digest(CANONICAL.as_bytes())] {
                assert!(status.message().contains(&hex(&said.value)), "{status:?}");
            }
        }
    }
    assert_eq!(head(&me).await, before);
    let database = world.superuser().await;
    crate::blob::is_settled(&database).await;
    assert_eq!(crate::blob::files(folder.path()).len(), 0);
    // The right digest is taken, and the largest data.
    ok!(me
        .evidence()
        .create_evidence_bundle(with(&|b| b.digest = Some(digest(CANONICAL.as_bytes())))));
    let largest = "x".repeat((1 << 20) - r#"{"note":""}"#.len());
    let made = ok!(me.evidence().create_evidence_bundle(other("large", "d", &largest)));
    assert_eq!(made.evidence_bundle.unwrap().size_bytes, 1 << 20);
    assert!(ok!(me.evidence().get_decision_evidence(of("d"))).verified);
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn an_attachment_that_is_not_as_it_should_be_is_refused() {
    let world = World::new().await;
    let me = world.anonymous();
    decide(&me, "d").await;
    upload(&me, b"file").await;
    let good = || attach("a", "d", "f", b"file");
    let cases = [
        (
            pb::AttachBlobRequest { decision_id: String::new(), ..good() },
            "FIELD_INVALID",
            "decision_id",
        ),
        (pb::AttachBlobRequest { name: String::new(), ..good() }, "FIELD_INVALID", "name"),
        (pb::AttachBlobRequest { name: "x".repeat(256), ..good() }, "FIELD_INVALID", "name"),
        (pb::AttachBlobRequest { name: "a\nb".into(), ..good() }, "FIELD_INVALID", "name"),
        (pb::AttachBlobRequest { name: "a\0b".into(), ..good() }, "NUL_BYTE", "name"),
        (pb::AttachBlobRequest { digest: None, ..good() }, "FIELD_INVALID", "digest"),
        (
            pb::AttachBlobRequest { content_type: "x".repeat(256), ..good() },
            "FIELD_INVALID",
            "content_type",
        ),
        (
            pb::AttachBlobRequest { options: on_conflict(OnConflict::Replace), ..good() },
            "FIELD_INVALID",
            "options.on_conflict",
        ),
    ];
    let before = head(&me).await;
    for (request, expected, field) in cases {
        let status = me.evidence().attach_blob(request).await.expect_err(field);
        assert_eq!(reason(&status), expected, "{status:?}");
        assert!(wrong_fields(&status)[0].starts_with(field), "{status:?}");
    }
    fails!(me.evidence().attach_blob(attach("a", "none", "f", b"file")), NotFound, "NOT_FOUND");
    fails!(me.evidence().attach_blob(attach("a", "d", "f", b"never sent")), NotFound, "NOT_FOUND");
    assert_eq!(head(&me).await, before);
    assert_eq!(references(&me, b"file").await, 0);
    let made = ok!(me.evidence().attach_blob(good())).attachment.unwrap();
    assert_eq!(made.size_bytes, 4);
    for (decision_id, rehash) in [("none", false), ("", true)] {
        assert!(me.evidence().verify_evidence(verify(decision_id, rehash)).await.is_err());
    }
    let wrong = pb::GetDecisionEvidenceRequest { evidence_type: "a b".into(), ..of("") };
    let status =
        fails!(me.evidence().get_decision_evidence(wrong), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["decision_id", "evidence_type"]);
    world.close().await;
}

#[tokio::test]
async fn a_bundle_larger_than_a_blob_may_be_is_refused() {
    let (world, folder) = crate::blob::on_disk(&[("blob_max_bytes", "100")]).await;
    let me = world.anonymous();
    decide(&me, "d").await;
    let status = fails!(
        me.evidence().create_evidence_bundle(bundle("b", "d")),
        ResourceExhausted,
        "BLOB_TOO_LARGE"
    );
    assert_eq!(info(&status)["limit_bytes"], "100");
    fails!(me.evidence().get_evidence_bundle(get_bundle("b")), NotFound, "NOT_FOUND");
    assert_eq!(crate::blob::files(folder.path()).len(), 0);
    world.close().await;
}
