//! F115, C32: links to evidence that is kept in S3, used with a plain HTTP client, and where there are none.

use super::*;
use crate::blob::s3::on_s3;
use crate::s3::server;
use crate::world::wrong_fields;
use pb::create_share_link_request::Target;
use std::time::SystemTime;

fn share(target: Target, seconds: Option<i64>) -> pb::CreateShareLinkRequest {
    pb::CreateShareLinkRequest {
        target: Some(target),
        ttl: seconds.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        ..Default::default()
    }
}

/// What somebody without credentials gets: the bytes, and what they are to be saved as.
async fn follow(url: &str) -> (Vec<u8>, String) {
    let answer = reqwest::Client::new().get(url).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let disposition = answer.headers()["content-disposition"].to_str().unwrap().to_owned();
    (answer.bytes().await.unwrap().to_vec(), disposition)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_leads_anybody_to_the_bytes_of_a_piece_of_evidence() {
    let Some(server) = server().await else { return };
    let (world, _store) = on_s3(server, &[]).await;
    let me = world.anonymous();
    decide(&me, "case/7").await;
    let file = bytes(5, 50_000);
    upload(&me, &file).await;
    ok!(me.evidence().create_evidence_bundle(other("old", "case/7", "old")));
    ok!(me.evidence().create_evidence_bundle(bundle("b", "case/7")));
    let mut audit = other("audit", "case/7", "audit");
    audit.evidence_bundle.as_mut().unwrap().evidence_type = "audit".into();
    ok!(me.evidence().create_evidence_bundle(audit));
    ok!(me.evidence().attach_blob(attach("a", "case/7", "a/scan.pdf", &file)));
    assert!(ok!(me.evidence().get_decision_evidence(of("case/7"))).verified);

    let of_audit = pb::CreateShareLinkRequest {
        evidence_type: "audit".into(),
        ..share(Target::DecisionId("case/7".into()), Some(604_800))
    };
    let json = "attachment; filename=\"case_7.json\"";
    for (request, seconds, content, saved_as) in [
        (share(Target::EvidenceBundleId("b".into()), None), 3600, CANONICAL.as_bytes(), json),
        (share(Target::EvidenceBundleId("b".into()), Some(0)), 3600, CANONICAL.as_bytes(), json),
        (share(Target::DecisionId("case/7".into()), Some(60)), 60, CANONICAL.as_bytes(), json),
        (of_audit, 604_800, br#"{"note":"audit"}"#, json),
        (
            share(Target::AttachmentId("a".into()), Some(1)),
            1,
            &file,
            "attachment; filename=\"a_scan.pdf\"",
        ),
    ] {
        let before = head(&me).await;
        let issued = ok!(me.evidence().create_share_link(request));
        let expires = SystemTime::try_from(issued.expire_time.unwrap()).unwrap();
        let left = expires.duration_since(SystemTime::now()).unwrap_or_default().as_secs();
        assert!((seconds - 10..=seconds).contains(&(left as i64)), "{left}");
        let (found, disposition) = follow(&issued.url).await;
        assert!(found == content);
        assert_eq!(disposition, saved_as);
        assert_eq!(head(&me).await, before + 1);
        let entry = entries(&me, 1).await.remove(0);
        assert_eq!(entry.action, "DOWNLOAD_URL_ISSUED");
        assert_eq!(entry.method, "casebook.v1.EvidenceService/CreateShareLink");
        assert_eq!(entry.target.unwrap().id, hex(&digest(content).value));
    }
    world.close().await;
}

#[tokio::test]
async fn a_link_that_cannot_be_is_refused_and_stands_nowhere() {
    let world = World::new().await;
    world.tenant("other").await;
    let me = world.anonymous();
    decide(&me, "d").await;
    upload(&me, b"file").await;
    ok!(me.evidence().create_evidence_bundle(bundle("b", "d")));
    ok!(me.evidence().attach_blob(attach("a", "d", "f", b"file")));
    let before = head(&me).await;
    let of_bundle = |id: &str| Target::EvidenceBundleId(id.into());
    for seconds in [-1, 604_801] {
        let status = me.evidence().create_share_link(share(of_bundle("b"), Some(seconds))).await;
        assert_eq!(wrong_fields(&status.unwrap_err()), ["ttl"], "{seconds}");
    }
    let nothing = pb::CreateShareLinkRequest::default();
    let status = fails!(me.evidence().create_share_link(nothing), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["target"]);
    let typed =
        pb::CreateShareLinkRequest { evidence_type: "audit".into(), ..share(of_bundle("b"), None) };
    let status = fails!(me.evidence().create_share_link(typed), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["evidence_type"]);
    for target in
        [of_bundle("none"), Target::AttachmentId("none".into()), Target::DecisionId("none".into())]
    {
        fails!(me.evidence().create_share_link(share(target, None)), NotFound, "NOT_FOUND");
    }
    let they = world.as_tenant("other");
    fails!(they.evidence().create_share_link(share(of_bundle("b"), None)), NotFound, "NOT_FOUND");
    for target in [of_bundle("b"), Target::AttachmentId("a".into()), Target::DecisionId("d".into())]
    {
        let call = share(target, None);
        fails!(me.evidence().create_share_link(call), FailedPrecondition, "NOT_SIGNABLE");
    }
    assert_eq!(head(&me).await, before);
    world.close().await;
}

#[tokio::test]
async fn what_is_encrypted_has_no_link() {
    let Some(server) = server().await else { return };
    let (world, _store) = on_s3(server, &[("blob_key", crate::blob::seal::OLD)]).await;
    let me = world.anonymous();
    decide(&me, "d").await;
    ok!(me.evidence().create_evidence_bundle(bundle("b", "d")));
    let call = share(Target::EvidenceBundleId("b".into()), None);
    fails!(me.evidence().create_share_link(call), FailedPrecondition, "BLOB_ENCRYPTED");
    world.close().await;
}
