//! Evidence: F106 to F114, C19: what a decision rests on is kept with its bytes, and comes back as it was.

mod bad;
mod crash;
mod damage;
mod removal;
mod share;

use crate::blob::{bytes, digest, download, hex, upload, whole};
use crate::help::*;
use crate::world::{As, World, create, decision, object, request, tree};
use casebook::pb;
use casebook::rpc::json_object::Object;
use pb::OnConflict;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

fn value(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

/// What a decision rests on, as such systems write it.
pub fn data() -> Object {
    let critic =
        |name: &str| value(Kind::StructValue(tree(&[("critic", name), ("verdict", "DENY")])));
    let critics = ListValue { values: vec![critic("legal"), critic("risk")] };
    let fields = [
        ("verdict", value(Kind::StringValue("DENY".into()))),
        ("confidence", value(Kind::NumberValue(0.85))),
        ("critics", value(Kind::ListValue(critics))),
    ];
    Struct { fields: fields.map(|(key, value)| (key.to_owned(), value)).into() }.into()
}

/// Its canonical form.
pub const CANONICAL: &str = concat!(
    r#"{"confidence":0.85,"critics":[{"critic":"legal","verdict":"DENY"},"#,
    r#"{"critic":"risk","verdict":"DENY"}],"verdict":"DENY"}"#
);

pub fn bundle(id: &str, decision_id: &str) -> pb::CreateEvidenceBundleRequest {
    pb::CreateEvidenceBundleRequest {
        evidence_bundle_id: id.into(),
        evidence_bundle: Some(pb::EvidenceBundle {
            decision_id: decision_id.into(),
            evidence_data: Some(data()),
            ..Default::default()
        }),
        options: None,
    }
}

/// A bundle whose data no other has.
pub fn other(id: &str, decision_id: &str, note: &str) -> pb::CreateEvidenceBundleRequest {
    let mut request = bundle(id, decision_id);
    request.evidence_bundle.as_mut().unwrap().evidence_data = Some(object(&[("note", note)]));
    request
}

pub fn attach(id: &str, decision_id: &str, name: &str, bytes: &[u8]) -> pb::AttachBlobRequest {
    pb::AttachBlobRequest {
        attachment_id: id.into(),
        decision_id: decision_id.into(),
        name: name.into(),
        digest: Some(digest(bytes)),
        ..Default::default()
    }
}

pub fn get_bundle(id: &str) -> pb::GetEvidenceBundleRequest {
    pb::GetEvidenceBundleRequest { evidence_bundle_id: id.into(), ..Default::default() }
}

pub fn of(decision_id: &str) -> pb::GetDecisionEvidenceRequest {
    pb::GetDecisionEvidenceRequest { decision_id: decision_id.into(), ..Default::default() }
}

pub fn verify(decision_id: &str, rehash_bytes: bool) -> pb::VerifyEvidenceRequest {
    pb::VerifyEvidenceRequest { decision_id: decision_id.into(), rehash_bytes }
}

pub async fn decide(who: &As, id: &str) {
    ok!(who.decisions().create_decision(create(id, decision("DENY", 0.85))));
}

/// How many things refer to a blob.
pub async fn references(who: &As, bytes: &[u8]) -> i64 {
    let request = pb::GetBlobRequest { digest: Some(digest(bytes)) };
    ok!(who.blobs().get_blob(request)).blob.unwrap().reference_count
}

async fn bundles(who: &As, request: pb::ListEvidenceBundlesRequest) -> Vec<String> {
    let found = ok!(who.evidence().list_evidence_bundles(request)).evidence_bundles;
    found.into_iter().map(|bundle| bundle.id).collect()
}

pub async fn bundles_of(who: &As, decision_id: &str) -> Vec<String> {
    let page = Some(pb::PageRequest { order_by: "id".into(), ..Default::default() });
    let decision_id = decision_id.into();
    bundles(who, pb::ListEvidenceBundlesRequest { decision_id, page, ..Default::default() }).await
}

pub async fn attachments_of(who: &As, decision_id: &str) -> Vec<String> {
    let page = Some(pb::PageRequest { order_by: "id".into(), ..Default::default() });
    let decision_id = decision_id.into();
    let request = pb::ListAttachmentsRequest { decision_id, page, ..Default::default() };
    let found = ok!(who.evidence().list_attachments(request)).attachments;
    found.into_iter().map(|attachment| attachment.id).collect()
}

/// `2026/11` of a resource's creation.
fn month(meta: Option<&pb::Meta>) -> String {
    let time = meta.unwrap().create_time.unwrap();
    let time = time::OffsetDateTime::from_unix_timestamp(time.seconds).unwrap();
    format!("{:04}/{:02}", time.year(), u8::from(time.month()))
}

/// F109 to F114, as a system uses it that kept bundles and files in S3.
#[tokio::test]
async fn a_bundle_and_a_file_are_stored_for_a_decision_and_come_back() {
    let world = World::new().await;
    let me = world.anonymous();
    decide(&me, "dec-123").await;
    let stored = ok!(me.evidence().create_evidence_bundle(bundle("", "dec-123")));
    let receipt = stored.receipt.unwrap();
    assert_eq!((receipt.audit_seq, receipt.unchanged, receipt.replayed), (3, false, false));
    let stored = stored.evidence_bundle.unwrap();
    let file = bytes(1, 100_000);
    upload(&me, &file).await;
    let attached = ok!(me.evidence().attach_blob(pb::AttachBlobRequest {
        content_type: "image/png".into(),
        metadata: Some(object(&[("page", "1")])),
        ..attach("", "dec-123", "scan 1.png", &file)
    }));
    let attached = attached.attachment.unwrap();

    let found = ok!(me.evidence().get_decision_evidence(of("dec-123")));
    assert!(found.verified);
    let there = found.bundle.unwrap();
    assert_eq!(there, stored);
    let expected = pb::EvidenceBundle {
        id: stored.meta.as_ref().unwrap().uid.clone(),
        etag: stored.etag.clone(),
        meta: stored.meta.clone(),
        decision_id: "dec-123".into(),
        evidence_type: "decision".into(),
        bundle_version: "1.0".into(),
        evidence_data: Some(data()),
        digest: Some(digest(CANONICAL.as_bytes())),
        metadata: None,
        object_key: format!("evidence/decision/{}/dec-123.json", month(stored.meta.as_ref())),
        size_bytes: CANONICAL.len() as i64,
    };
    assert_eq!(there, expected);
    assert_eq!(found.attachments, std::slice::from_ref(&attached));
    let expected = pb::Attachment {
        id: attached.meta.as_ref().unwrap().uid.clone(),
        etag: attached.etag.clone(),
        meta: attached.meta.clone(),
        decision_id: "dec-123".into(),
        name: "scan 1.png".into(),
        content_type: "image/png".into(),
        size_bytes: 100_000,
        digest: Some(digest(&file)),
        metadata: Some(object(&[("page", "1")])),
        object_key: format!("attachments/{}/dec-123/scan 1.png", month(attached.meta.as_ref())),
    };
    assert_eq!(attached, expected);

    // The canonical bytes are a blob like any other.
    let (blob, content) = download(&me, whole(there.digest.unwrap())).await.unwrap();
    assert_eq!(String::from_utf8(content).unwrap(), CANONICAL);
    assert_eq!(blob.content_type, "application/json");
    let (_, content) = download(&me, whole(attached.digest.unwrap())).await.unwrap();
    assert!(content == file);
    for bytes in [CANONICAL.as_bytes(), &file] {
        assert_eq!(references(&me, bytes).await, 1);
        let delete = pb::DeleteBlobRequest {
            digest: Some(digest(bytes)),
            force: true,
            ..Default::default()
        };
        fails!(me.blobs().delete_blob(delete), FailedPrecondition, "REFERENCED");
    }
    for rehash in [false, true] {
        let verified = ok!(me.evidence().verify_evidence(verify("dec-123", rehash)));
        assert_eq!((verified.checked, verified.findings.len()), (2, 0), "{verified:?}");
    }
    // Each stands in the log: the bundle with its blob in one transaction. That both blobs were read whole does, too.
    let log = entries(&me, 9).await;
    assert!(log[..2].iter().all(|entry| entry.action == "VERIFY"), "{log:?}");
    let of_create: Vec<_> = log.iter().filter(|entry| entry.action == "CREATE").collect();
    let kinds: Vec<_> =
        of_create.iter().map(|entry| entry.target.clone().unwrap().kind()).collect();
    use pb::ResourceKind::{Attachment, Blob, Decision, EvidenceBundle};
    assert_eq!(kinds, [Attachment, Blob, Blob, EvidenceBundle, Decision]);
    assert_eq!(of_create[2].event_time, of_create[3].event_time);
    world.close().await;
}

#[tokio::test]
async fn the_newest_bundle_of_a_type_is_the_decisions_evidence() {
    let world = World::new().await;
    let me = world.anonymous();
    for id in ["d", "e"] {
        decide(&me, id).await;
    }
    fails!(me.evidence().get_decision_evidence(of("d")), NotFound, "NOT_FOUND");
    for id in ["b-2", "b-1"] {
        ok!(me.evidence().create_evidence_bundle(other(id, "d", id)));
    }
    let mut audit = other("b-0", "d", "audit");
    audit.evidence_bundle.as_mut().unwrap().evidence_type = "audit.2".into();
    ok!(me.evidence().create_evidence_bundle(audit));
    ok!(me.evidence().create_evidence_bundle(other("b-9", "e", "e")));
    let newest = async |evidence_type: &str| {
        let request =
            pb::GetDecisionEvidenceRequest { evidence_type: evidence_type.into(), ..of("d") };
        ok!(me.evidence().get_decision_evidence(request)).bundle.unwrap().id
    };
    assert_eq!(newest("").await, "b-1");
    assert_eq!(newest("decision").await, "b-1");
    assert_eq!(newest("audit.2").await, "b-0");
    let delete =
        pb::DeleteEvidenceBundleRequest { evidence_bundle_id: "b-1".into(), ..Default::default() };
    ok!(me.evidence().delete_evidence_bundle(delete));
    assert_eq!(newest("").await, "b-2");
    let skipped = pb::GetDecisionEvidenceRequest { skip_verification: true, ..of("d") };
    assert!(!ok!(me.evidence().get_decision_evidence(skipped)).verified);
    world.close().await;
}

#[tokio::test]
async fn evidence_is_listed_filtered_paged_and_read_as_it_was() {
    let world = World::new().await;
    let me = world.anonymous();
    for id in ["d", "e"] {
        decide(&me, id).await;
    }
    upload(&me, b"file").await;
    let mut revision = None;
    for n in 0..6 {
        let mut request = other(&format!("b-{n}"), if n < 4 { "d" } else { "e" }, &n.to_string());
        let given = request.evidence_bundle.as_mut().unwrap();
        given.evidence_type = if n % 2 == 0 { "even" } else { "odd" }.into();
        given.bundle_version = format!("{n}.0");
        given.metadata = Some(object(&[("n", &n.to_string())]));
        let made = ok!(me.evidence().create_evidence_bundle(request));
        ok!(me.evidence().attach_blob(attach(
            &format!("a-{n}"),
            "d",
            &format!("{n}.txt"),
            b"file"
        )));
        if n == 2 {
            revision = made.receipt.unwrap().revision;
        }
    }
    let asked = |text: &str| pb::ListEvidenceBundlesRequest {
        decision_id: "-".into(),
        r#where: expression(text),
        page: Some(pb::PageRequest { order_by: "id".into(), ..Default::default() }),
        ..Default::default()
    };
    assert_eq!(bundles_of(&me, "d").await, ["b-0", "b-1", "b-2", "b-3"]);
    assert_eq!(bundles(&me, asked("evidence_type = even")).await, ["b-0", "b-2", "b-4"]);
    assert_eq!(
        bundles(&me, asked("metadata.n = \"5\" OR bundle_version = \"1.0\"")).await,
        ["b-1", "b-5"]
    );
    let third = ok!(me.evidence().get_evidence_bundle(get_bundle("b-2"))).evidence_bundle.unwrap();
    let of_digest = format!("digest = \"{}\"", hex(&third.digest.as_ref().unwrap().value));
    assert_eq!(bundles(&me, asked(&of_digest)).await, ["b-2"]);
    assert_eq!(
        bundles(&me, asked(&format!("object_key = \"{}\"", third.object_key))).await,
        ["b-0", "b-2"]
    );
    // As it was: at a revision, page by page while more comes, newest first by default.
    let at = pb::Consistency {
        requirement: revision.map(pb::consistency::Requirement::AtExactSnapshot),
    };
    let then = pb::ListEvidenceBundlesRequest { consistency: Some(at.clone()), ..asked("") };
    assert_eq!(bundles(&me, then).await, ["b-0", "b-1", "b-2"]);
    let early = pb::GetEvidenceBundleRequest { consistency: Some(at), ..get_bundle("b-3") };
    fails!(me.evidence().get_evidence_bundle(early), NotFound, "NOT_FOUND");
    let mut all = Vec::new();
    let mut token = String::new();
    loop {
        let page = Some(pb::PageRequest { page_size: 4, page_token: token, ..Default::default() });
        let request = pb::ListEvidenceBundlesRequest {
            decision_id: "-".into(),
            read_mask: mask(&["id"]),
            page,
            ..Default::default()
        };
        let found = ok!(me.evidence().list_evidence_bundles(request));
        assert!(found.evidence_bundles.iter().all(|one| one.evidence_data.is_none()));
        all.extend(found.evidence_bundles.into_iter().map(|one| one.id));
        token = found.page.unwrap().next_page_token;
        if token.is_empty() {
            break;
        }
        ok!(me.evidence().create_evidence_bundle(other("", "e", "later")));
    }
    assert_eq!(all, ["b-5", "b-4", "b-3", "b-2", "b-1", "b-0"]);
    let request = pb::ListAttachmentsRequest {
        decision_id: "d".into(),
        r#where: expression("name = \"3.txt\" OR size_bytes > 4"),
        ..Default::default()
    };
    let found = ok!(me.evidence().list_attachments(request)).attachments;
    assert_eq!(found.iter().map(|one| &*one.id).collect::<Vec<_>>(), ["a-3"]);
    let get = pb::GetAttachmentRequest { attachment_id: "a-3".into(), ..Default::default() };
    assert_eq!(ok!(me.evidence().get_attachment(get)).attachment, found.into_iter().next());
    assert_eq!(attachments_of(&me, "e").await, [""; 0]);
    let none = pb::ListAttachmentsRequest { decision_id: "none".into(), ..Default::default() };
    fails!(me.evidence().list_attachments(none), NotFound, "NOT_FOUND");
    world.close().await;
}

#[tokio::test]
async fn what_is_asked_again_is_answered_as_the_caller_says() {
    let (world, folder) = crate::blob::on_disk(&[]).await;
    let me = world.anonymous();
    decide(&me, "d").await;
    let on = |conflict: OnConflict| pb::CreateEvidenceBundleRequest {
        options: on_conflict(conflict),
        ..bundle("b", "d")
    };
    // A rehearsal checks everything and keeps nothing, neither a row nor bytes.
    let rehearsal = pb::WriteOptions { validate_only: true, ..Default::default() };
    let rehearsed =
        pb::CreateEvidenceBundleRequest { options: Some(rehearsal.clone()), ..bundle("b", "d") };
    let answer = ok!(me.evidence().create_evidence_bundle(rehearsed));
    assert_eq!((answer.receipt, answer.evidence_bundle.unwrap().id), (None, "b".into()));
    let of_none =
        pb::CreateEvidenceBundleRequest { options: Some(rehearsal), ..bundle("b", "none") };
    fails!(me.evidence().create_evidence_bundle(of_none), NotFound, "NOT_FOUND");
    assert_eq!(crate::blob::files(folder.path()).len(), 0);

    let once =
        pb::CreateEvidenceBundleRequest { options: Some(request("r-1")), ..bundle("b", "d") };
    let first = ok!(me.evidence().create_evidence_bundle(once.clone()));
    let again = ok!(me.evidence().create_evidence_bundle(once.clone()));
    assert!(again.receipt.unwrap().replayed);
    assert_eq!(again.evidence_bundle, first.evidence_bundle);
    let reused = pb::CreateEvidenceBundleRequest { evidence_bundle_id: "c".into(), ..once.clone() };
    fails!(me.evidence().create_evidence_bundle(reused), InvalidArgument, "REQUEST_ID_REUSED");
    let before = head(&me).await;
    fails!(me.evidence().create_evidence_bundle(bundle("b", "d")), AlreadyExists, "EXISTS");
    let equal = ok!(me.evidence().create_evidence_bundle(on(OnConflict::ReturnIfEqual)));
    assert!(equal.receipt.unwrap().unchanged);
    assert_eq!(equal.evidence_bundle, first.evidence_bundle);
    let mut differs = other("b", "d", "else");
    differs.options = on_conflict(OnConflict::ReturnIfEqual);
    let status =
        fails!(me.evidence().create_evidence_bundle(differs), AlreadyExists, "EXISTS_DIFFERENT");
    assert!(status.message().contains("evidence_data"), "{status:?}");
    fails!(
        me.evidence().create_evidence_bundle(on(OnConflict::Replace)),
        InvalidArgument,
        "FIELD_INVALID"
    );
    assert_eq!(head(&me).await, before);
    // Of what was refused no bytes stay.
    let database = world.superuser().await;
    crate::blob::is_settled(&database).await;
    assert_eq!(crate::blob::files(folder.path()).len(), 1);

    // Equal data is one blob, which two refer to.
    ok!(me.evidence().create_evidence_bundle(bundle("b-2", "d")));
    assert_eq!(references(&me, CANONICAL.as_bytes()).await, 2);
    assert_eq!(crate::blob::files(folder.path()).len(), 1);

    upload(&me, b"file").await;
    let once =
        pb::AttachBlobRequest { options: Some(request("r-2")), ..attach("a", "d", "f", b"file") };
    let first = ok!(me.evidence().attach_blob(once.clone()));
    let again = ok!(me.evidence().attach_blob(once));
    assert!(again.receipt.unwrap().replayed);
    assert_eq!(again.attachment, first.attachment);
    let equal = pb::AttachBlobRequest {
        options: on_conflict(OnConflict::ReturnIfEqual),
        ..attach("a", "d", "f", b"file")
    };
    assert!(ok!(me.evidence().attach_blob(equal)).receipt.unwrap().unchanged);
    fails!(me.evidence().attach_blob(attach("a", "d", "g", b"file")), AlreadyExists, "EXISTS");
    // Another of the same name.
    fails!(me.evidence().attach_blob(attach("", "d", "f", b"file")), AlreadyExists, "EXISTS");
    assert_eq!(references(&me, b"file").await, 1);
    crate::blob::is_settled(&database).await;
    crate::blob::is_consistent(&database, folder.path()).await;
    drop(database);
    world.close().await;
}

/// Many at once, of few contents and few decisions: each has its blob, and none has one too many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundles_of_equal_data_at_once_are_kept_once() {
    let (world, folder) = crate::blob::on_disk(&[]).await;
    let me = world.anonymous();
    for id in ["d", "e", "f"] {
        decide(&me, id).await;
    }
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..60usize {
        let me = me.clone();
        calls.spawn(async move {
            let of = ["d", "e", "f"][n % 3];
            let request = other(&format!("b-{n}"), of, &format!("{}", n % 4));
            ok!(me.evidence().create_evidence_bundle(request));
        });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
    let database = world.superuser().await;
    crate::blob::is_settled(&database).await;
    crate::blob::is_consistent(&database, folder.path()).await;
    assert_eq!(crate::blob::files(folder.path()).len(), 4);
    let count = "SELECT count(*) FROM casebook.blob_reference";
    assert_eq!(database.query_one(count, &[]).await.unwrap().get::<_, i64>(0), 60);
    for n in 0..4 {
        let canonical = format!(r#"{{"note":"{n}"}}"#);
        assert_eq!(references(&me, canonical.as_bytes()).await, 15);
    }
    for id in ["d", "e", "f"] {
        let verified = ok!(me.evidence().verify_evidence(verify(id, true)));
        assert_eq!((verified.checked, verified.findings.len()), (20, 0));
    }
    crate::fault::log_is_gap_free(&database).await;
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn a_server_without_a_store_of_blobs_reads_records_and_keeps_nothing() {
    let world = World::new().await;
    let me = world.anonymous();
    decide(&me, "d").await;
    upload(&me, b"file").await;
    ok!(me.evidence().create_evidence_bundle(bundle("b", "d")));
    ok!(me.evidence().attach_blob(attach("a", "d", "f", b"file")));
    let url = crate::world::url_of(&crate::world::config_of(&world.database).await);
    let mut without = World::on(&world.database, &url, &[("blob_store_url", "")]).await;
    let they = without.anonymous();
    let before = head(&they).await;
    let mut evidence = they.evidence();
    let create = evidence.create_evidence_bundle(other("c", "d", "c"));
    let status = fails!(create, FailedPrecondition, "NOT_CONFIGURED");
    assert_eq!(info(&status)["setting"], "blob_store_url");
    fails!(evidence.get_decision_evidence(of("d")), FailedPrecondition, "NOT_CONFIGURED");
    fails!(evidence.verify_evidence(verify("d", false)), FailedPrecondition, "NOT_CONFIGURED");
    assert_eq!(head(&they).await, before);
    ok!(evidence.get_evidence_bundle(get_bundle("b")));
    assert_eq!(bundles_of(&they, "d").await, ["b"]);
    assert_eq!(attachments_of(&they, "d").await, ["a"]);
    let skipped = pb::GetDecisionEvidenceRequest { skip_verification: true, ..of("d") };
    let found = ok!(evidence.get_decision_evidence(skipped));
    assert_eq!((found.bundle.unwrap().id, found.attachments.len()), ("b".into(), 1));
    drop((they, evidence));
    without.stop().await;
    world.close().await;
}

#[tokio::test]
async fn tenants_see_and_use_only_their_own() {
    let world = World::new().await;
    for id in ["acme", "other"] {
        world.tenant(id).await;
    }
    let (mine, theirs) = (world.as_tenant("acme"), world.as_tenant("other"));
    for who in [&mine, &theirs] {
        decide(who, "d").await;
    }
    upload(&theirs, b"theirs").await;
    ok!(theirs.evidence().create_evidence_bundle(bundle("b", "d")));
    ok!(theirs.evidence().attach_blob(attach("a", "d", "f", b"theirs")));
    let mut evidence = mine.evidence();
    fails!(evidence.get_evidence_bundle(get_bundle("b")), NotFound, "NOT_FOUND");
    fails!(evidence.get_decision_evidence(of("d")), NotFound, "NOT_FOUND");
    let delete =
        pb::DeleteEvidenceBundleRequest { evidence_bundle_id: "b".into(), ..Default::default() };
    fails!(evidence.delete_evidence_bundle(delete), NotFound, "NOT_FOUND");
    let detach = pb::DetachBlobRequest { attachment_id: "a".into(), ..Default::default() };
    fails!(evidence.detach_blob(detach), NotFound, "NOT_FOUND");
    // The other's blob is none here, though the digest is known.
    let status =
        fails!(evidence.attach_blob(attach("", "d", "f", b"theirs")), NotFound, "NOT_FOUND");
    assert!(status.message().starts_with("blob "), "{status:?}");
    assert_eq!(bundles_of(&mine, "-").await, [""; 0]);
    assert_eq!(attachments_of(&mine, "-").await, [""; 0]);
    let verified = ok!(evidence.verify_evidence(verify("d", true)));
    assert_eq!((verified.checked, verified.findings.len()), (0, 0));
    // Their own, under the same ids and of the same bytes, is another.
    ok!(evidence.create_evidence_bundle(bundle("b", "d")));
    for who in [&mine, &theirs] {
        assert_eq!(references(who, CANONICAL.as_bytes()).await, 1);
        assert!(ok!(who.evidence().get_decision_evidence(of("d"))).verified);
    }
    world.close().await;
}
