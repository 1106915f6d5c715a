//! Objects: F276 to F351, F363 to F368, C17, C18: keys over blobs, with versions that nothing takes away unasked.

mod bad;
mod batch;
mod chain;
mod crash;
mod guard;
mod list;
mod model;
mod search;

use crate::blob::{digest, download, upload};
use crate::help::*;
use crate::world::{As, World, object as json};
use casebook::pb;
use pb::put_object_request::Content;

/// A put of bytes that are in the store.
pub fn put(key: &str, bytes: &[u8]) -> pb::PutObjectRequest {
    pb::PutObjectRequest {
        key: key.into(),
        content: Some(Content::Blob(digest(bytes))),
        ..Default::default()
    }
}

/// A put of bytes that are elsewhere.
pub fn put_external(key: &str, size_bytes: i64) -> pb::PutObjectRequest {
    let external = pb::ExternalObject {
        storage_backend: "tape".into(),
        location: format!("/vault/{key}"),
        size_bytes,
        ..Default::default()
    };
    pb::PutObjectRequest {
        key: key.into(),
        content: Some(Content::External(external)),
        ..Default::default()
    }
}

pub fn get(key: &str) -> pb::GetObjectRequest {
    pb::GetObjectRequest { key: key.into(), ..Default::default() }
}

pub fn get_version(key: &str, version_id: &str) -> pb::GetObjectRequest {
    pb::GetObjectRequest { version_id: version_id.into(), ..get(key) }
}

pub fn delete(key: &str) -> pb::DeleteObjectRequest {
    pb::DeleteObjectRequest { key: key.into(), ..Default::default() }
}

pub fn delete_version(key: &str, version_id: &str) -> pb::DeleteObjectRequest {
    pb::DeleteObjectRequest { version_id: version_id.into(), ..delete(key) }
}

pub fn rollback(key: &str, version_id: &str) -> pb::RollbackObjectRequest {
    pb::RollbackObjectRequest {
        key: key.into(),
        version_id: version_id.into(),
        ..Default::default()
    }
}

pub fn of(key: &str, version_id: &str) -> Option<pb::ObjectVersionRef> {
    Some(pb::ObjectVersionRef { key: key.into(), version_id: version_id.into() })
}

/// Puts, and gives the new version's id.
pub async fn made(who: &As, request: pb::PutObjectRequest) -> String {
    ok!(who.objects().put_object(request)).object_version.unwrap().id
}

/// The versions of a key, newest first: id, and whether it is on top.
pub async fn versions(who: &As, key: &str) -> Vec<(String, bool)> {
    let request = pb::ListObjectVersionsRequest { key: key.into(), ..Default::default() };
    let found = ok!(who.objects().list_object_versions(request)).object_versions;
    found.into_iter().map(|version| (version.id, version.is_latest)).collect()
}

/// F364, with what S2 names on the way.
#[tokio::test]
async fn the_workflow_of_six_steps() {
    let world = World::new().await;
    let me = world.anonymous().header("x-casebook-actor", "ada");
    let (key, bytes) = ("finance/2024/invoice-17.pdf", b"%PDF invoice".as_slice());

    // Upload with metadata.
    upload(&me, bytes).await;
    let mut given = put(key, bytes);
    given.content_type = "application/pdf".into();
    given.metadata = Some(json(&[("owner", "ada"), ("doc_type", "invoice")]));
    given.tags = labels(&[("team", "finance")]);
    given.comment = "as it came".into();
    let answer = ok!(me.objects().put_object(given.clone()));
    let (object, first) = (answer.object.unwrap(), answer.object_version.unwrap());
    assert_eq!(object.key, key);
    assert_eq!(object.blob, Some(digest(bytes)));
    assert_eq!((object.size_bytes, object.content_type.as_str()), (12, "application/pdf"));
    assert_eq!((object.storage_backend.as_str(), object.version_count), ("memory", 1));
    assert_eq!(object.version_id, first.id);
    assert_eq!(object.meta.as_ref().unwrap().created_by, "ada");
    assert_eq!(object.tags, given.tags);
    assert_eq!(object.metadata, given.metadata);
    assert_eq!(object.last_modified, first.meta.as_ref().unwrap().create_time);
    assert!(first.is_latest && !first.delete_marker);
    assert_eq!((first.comment.as_str(), first.number), ("as it came", 1));
    assert_eq!(first.meta.as_ref().unwrap().created_by, "ada");

    // Search.
    let query =
        pb::SearchObjectsRequest { query: "invoice & finance".into(), ..Default::default() };
    let hits = ok!(me.objects().search_objects(query)).hits;
    assert_eq!(hits.len(), 1);
    assert_eq!(hits[0].object.as_ref(), Some(&object));
    assert!(hits[0].rank > 0.0);

    // Version history.
    upload(&me, b"%PDF second").await;
    let second =
        made(&me, pb::PutObjectRequest { comment: "corrected".into(), ..put(key, b"%PDF second") })
            .await;
    assert_eq!(versions(&me, key).await, [(second.clone(), true), (first.id.clone(), false)]);

    // Audit trail, by the object.
    let target = Some(reference(pb::ResourceKind::Object, key, 0));
    let of_it = pb::ListAuditEntriesRequest { target, ..Default::default() };
    let trail = ok!(me.audit().list_audit_entries(of_it)).entries;
    let actions: Vec<_> = trail.iter().map(|e| (e.action.as_str(), e.actor.as_str())).collect();
    assert_eq!(actions, [("UPDATE", "ada"), ("CREATE", "ada")]);

    // Tracked download, of the latest and of an earlier version.
    let latest = pb::DownloadBlobRequest { object: of(key, ""), ..Default::default() };
    assert_eq!(download(&me, latest).await.unwrap().1, b"%PDF second");
    let earlier = pb::DownloadBlobRequest { object: of(key, &first.id), ..Default::default() };
    assert_eq!(download(&me, earlier).await.unwrap().1, bytes);
    let log = entries(&me, 2).await;
    for (entry, version) in log.iter().zip([&first.id, &second]) {
        assert_eq!((entry.action.as_str(), entry.object_key.as_str()), ("DOWNLOAD", key));
        let target = entry.target.as_ref().unwrap();
        assert_eq!((target.kind(), &target.id), (pb::ResourceKind::ObjectVersion, version));
        assert!(entry.metadata.as_ref().unwrap().fields().contains_key("digest"));
    }
    let by_key = pb::ListAuditEntriesRequest {
        r#where: expression(&format!("entity_id = \"{key}\"")),
        ..Default::default()
    };
    assert_eq!(ok!(me.audit().list_audit_entries(by_key)).entries.len(), 4);

    // Statistics.
    let found = ok!(me.objects().get_object_statistics(pb::GetObjectStatisticsRequest::default()));
    assert_eq!((found.object_count, found.version_count, found.blob_count), (1, 2, 2));
    assert_eq!(found.size_bytes, 11);
    assert_eq!(found.backends[0].storage_backend, "memory");
    // Two puts of two entries each, and two downloads.
    assert_eq!(found.audit_count_24h, 6);
    world.close().await;
}

#[tokio::test]
async fn statistics_count_by_store_and_what_is_shared() {
    let world = World::new().await;
    let me = world.anonymous();
    let empty = ok!(me.objects().get_object_statistics(pb::GetObjectStatisticsRequest::default()));
    assert_eq!((empty.object_count, empty.size_bytes, empty.deduplicated_bytes), (0, 0, 0));
    assert!(empty.backends.is_empty());
    upload(&me, b"12345").await;
    for key in ["a", "b", "c"] {
        made(&me, put(key, b"12345")).await;
    }
    made(&me, put("a", b"12345")).await;
    made(&me, put_external("tape/1", 1000)).await;
    // Sizes that nobody has measured must not break the sum.
    for n in 0..3 {
        made(&me, put_external(&format!("vast/{n}"), i64::MAX)).await;
    }
    ok!(me.objects().delete_object(delete("c")));
    let found = ok!(me.objects().get_object_statistics(pb::GetObjectStatisticsRequest::default()));
    let backends: Vec<_> =
        found.backends.iter().map(|b| (b.storage_backend.as_str(), b.object_count)).collect();
    assert_eq!(backends, [("memory", 2), ("tape", 4)]);
    assert_eq!(found.backends[0].size_bytes, 10);
    assert_eq!((found.backends[1].size_bytes, found.size_bytes), (i64::MAX, i64::MAX));
    assert_eq!((found.object_count, found.version_count), (6, 9));
    // Four versions over one blob.
    assert_eq!((found.blob_count, found.deduplicated_bytes), (1, 15));
    let past = pb::Consistency {
        requirement: Some(pb::consistency::Requirement::AtExactSnapshot(pb::Revision::default())),
    };
    let past = pb::GetObjectStatisticsRequest { consistency: Some(past) };
    fails!(me.objects().get_object_statistics(past), InvalidArgument, "BAD_REVISION");
    world.close().await;
}
