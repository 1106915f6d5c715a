//! What keeps objects and their blobs: references, holds, policies, the wall between tenants.

use super::*;
use crate::legal_hold::{hold, release};
use crate::world::{reason, wrong_fields};
use pb::ResourceKind as Kind;

fn delete_blob(bytes: &[u8]) -> pb::DeleteBlobRequest {
    pb::DeleteBlobRequest { digest: Some(digest(bytes)), ..Default::default() }
}

async fn references(who: &As, bytes: &[u8]) -> i64 {
    let request = pb::GetBlobRequest { digest: Some(digest(bytes)) };
    ok!(who.blobs().get_blob(request)).blob.unwrap().reference_count
}

#[tokio::test]
async fn a_blob_stays_as_long_as_a_version_has_it() {
    let world = World::new().await;
    let me = world.anonymous();
    upload(&me, b"one").await;
    let first = made(&me, put("k", b"one")).await;
    ok!(me.objects().copy_object(pb::CopyObjectRequest {
        source: of("k", ""),
        destination_key: "l".into(),
        ..Default::default()
    }));
    ok!(me.objects().rollback_object(rollback("k", &first)));
    assert_eq!(references(&me, b"one").await, 3);
    let status =
        fails!(me.blobs().delete_blob(delete_blob(b"one")), FailedPrecondition, "REFERENCED");
    assert_eq!(info(&status)["kind"], "object_version");
    // A delete marker takes nothing away.
    ok!(me.objects().delete_object(delete("k")));
    ok!(me.objects().delete_object(delete("l")));
    assert_eq!(references(&me, b"one").await, 3);
    for key in ["k", "l"] {
        for (id, _) in versions(&me, key).await {
            fails!(me.blobs().delete_blob(delete_blob(b"one")), FailedPrecondition, "REFERENCED");
            ok!(me.objects().delete_object(delete_version(key, &id)));
        }
    }
    assert_eq!(references(&me, b"one").await, 0);
    ok!(me.blobs().delete_blob(delete_blob(b"one")));
    fails!(me.objects().put_object(put("k", b"one")), NotFound, "NOT_FOUND");
    world.close().await;
}

#[tokio::test]
async fn of_a_put_and_a_deletion_of_its_blob_at_once_one_wins() {
    let world = World::new().await;
    let mut other = second_server(&world).await;
    let (me, them) = (world.anonymous(), other.anonymous());
    let mut put_won = 0;
    for n in 0..12 {
        let bytes = format!("race {n}").into_bytes();
        upload(&me, &bytes).await;
        let key = format!("race/{n}");
        let (mut objects, mut blobs) = (me.objects(), them.blobs());
        let (put, deleted) = tokio::join!(
            objects.put_object(put(&key, &bytes)),
            blobs.delete_blob(delete_blob(&bytes))
        );
        match (put, deleted) {
            (Ok(_), Err(status)) => {
                assert_eq!(reason(&status), "REFERENCED");
                assert_eq!(references(&me, &bytes).await, 1);
                put_won += 1;
            }
            (Err(status), Ok(_)) => assert_eq!(reason(&status), "NOT_FOUND"),
            both => panic!("{both:?}"),
        }
    }
    eprintln!("the put won {put_won} of 12");
    other.stop().await;
    world.close().await;
}

#[tokio::test]
async fn what_is_held_stays() {
    let world = World::new().await;
    let me = world.anonymous();
    upload(&me, b"one").await;
    let key = "odd keys/can be held, too é";
    let first = made(&me, put(key, b"one")).await;
    let second = made(&me, put(key, b"one")).await;
    let mut retention = me.retention();
    let refs = vec![reference(Kind::Object, key, 0)];
    ok!(retention.create_legal_hold(hold("h", refs, "")));
    // The object and each version of it, alone and with others; puts go on.
    fails!(me.objects().delete_object(delete(key)), FailedPrecondition, "ON_HOLD");
    fails!(me.objects().delete_object(delete_version(key, &first)), FailedPrecondition, "ON_HOLD");
    made(&me, put("free", b"one")).await;
    let both = pb::BatchDeleteObjectsRequest {
        keys: vec!["free".into(), key.into()],
        ..Default::default()
    };
    fails!(me.objects().batch_delete_objects(both.clone()), FailedPrecondition, "ON_HOLD");
    ok!(me.objects().get_object(get("free")));
    made(&me, put(key, b"one")).await;
    ok!(retention.release_legal_hold(release("h")));
    // A hold on one version keeps that one only.
    let refs = vec![reference(Kind::ObjectVersion, &first, 0)];
    ok!(retention.create_legal_hold(hold("v", refs, "")));
    fails!(me.objects().delete_object(delete_version(key, &first)), FailedPrecondition, "ON_HOLD");
    ok!(me.objects().delete_object(delete_version(key, &second)));
    ok!(me.objects().batch_delete_objects(both));
    // And so does one on the person concerned.
    let of_person = pb::PutObjectRequest { subject_id: "person".into(), ..put("p", b"one") };
    let version = made(&me, of_person).await;
    ok!(retention.create_legal_hold(hold("s", Vec::new(), "person")));
    fails!(me.objects().delete_object(delete("p")), FailedPrecondition, "ON_HOLD");
    fails!(
        me.objects().delete_object(delete_version("p", &version)),
        FailedPrecondition,
        "ON_HOLD"
    );
    // A hold names a key, held to the rules of keys.
    let refs = vec![reference(Kind::Object, "../x", 0)];
    let status =
        fails!(retention.create_legal_hold(hold("b", refs, "")), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["legal_hold.refs[0].id"]);
    world.close().await;
}

#[tokio::test]
async fn a_class_is_kept_for_as_long_as_its_policy_says() {
    let world = World::new().await;
    let me = world.anonymous();
    upload(&me, b"one").await;
    let policy = pb::RetentionPolicy {
        retention_class: "credit".into(),
        keep_at_least: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
        ..Default::default()
    };
    ok!(me.retention().create_retention_policy(pb::CreateRetentionPolicyRequest {
        retention_policy: Some(policy),
        ..Default::default()
    }));
    let free = made(&me, put("k", b"one")).await;
    let kept =
        made(&me, pb::PutObjectRequest { retention_class: "credit".into(), ..put("k", b"one") })
            .await;
    let status =
        fails!(me.objects().delete_object(delete("k")), FailedPrecondition, "RETENTION_FLOOR");
    assert!(info(&status).contains_key("keep_until"));
    fails!(
        me.objects().delete_object(delete_version("k", &kept)),
        FailedPrecondition,
        "RETENTION_FLOOR"
    );
    ok!(me.objects().delete_object(delete_version("k", &free)));
    // An old key with new content is as young as its content.
    let database = world.superuser().await;
    let age = "UPDATE casebook.object SET create_time = create_time - interval '2 hours'";
    database.execute(age, &[]).await.unwrap();
    fails!(me.objects().delete_object(delete("k")), FailedPrecondition, "RETENTION_FLOOR");
    let age = "UPDATE casebook.object SET last_modified = last_modified - interval '2 hours'";
    database.execute(age, &[]).await.unwrap();
    ok!(me.objects().delete_object(delete("k")));
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn a_purge_takes_objects_without_versions_and_their_content() {
    let world = World::new().await;
    let me = world.anonymous();
    upload(&me, b"one").await;
    for key in ["marked", "gone"] {
        let secret =
            pb::PutObjectRequest { comment: format!("secret of {key}"), ..put(key, b"one") };
        made(&me, secret).await;
        ok!(me.objects().delete_object(delete(key)));
    }
    for (id, _) in versions(&me, "gone").await {
        ok!(me.objects().delete_object(delete_version("gone", &id)));
    }
    let purge = |kind: Kind| pb::PurgeResourcesRequest {
        kind: kind.into(),
        max_resources: 100,
        ..Default::default()
    };
    let answer = ok!(me.retention().purge_resources(purge(Kind::Object)));
    assert_eq!((answer.purged_count, answer.held_count), (1, 0));
    // Its versions went with it, and what the log had of them.
    let database = world.superuser().await;
    let left = "SELECT count(*) FROM casebook.object_version WHERE object_key = 'gone'";
    assert_eq!(database.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0);
    let left = "SELECT count(*) FROM casebook.log WHERE convert_from(document, 'UTF8') LIKE '%secret of gone%'";
    assert_eq!(database.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0);
    // A delete marker hides; it takes nothing away.
    assert_eq!(versions(&me, "marked").await.len(), 2);
    ok!(me.objects().delete_object(delete_version("marked", &versions(&me, "marked").await[0].0)));
    ok!(me.objects().get_object(get("marked")));
    // Versions go with their object only.
    fails!(
        me.retention().purge_resources(purge(Kind::ObjectVersion)),
        InvalidArgument,
        "FIELD_INVALID"
    );
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn tenants_know_nothing_of_each_others_keys() {
    let world = World::new().await;
    world.tenant("acme").await;
    world.tenant("globex").await;
    let (acme, globex) = (world.as_tenant("acme"), world.as_tenant("globex"));
    upload(&acme, b"acme's").await;
    upload(&globex, b"globex's").await;
    let theirs = made(&acme, put("secret/plan", b"acme's")).await;
    let mut objects = globex.objects();
    fails!(objects.get_object(get("secret/plan")), NotFound, "NOT_FOUND");
    fails!(objects.get_object(get_version("secret/plan", &theirs)), NotFound, "NOT_FOUND");
    fails!(objects.delete_object(delete("secret/plan")), NotFound, "NOT_FOUND");
    fails!(objects.delete_object(delete_version("secret/plan", &theirs)), NotFound, "NOT_FOUND");
    fails!(objects.rollback_object(rollback("secret/plan", &theirs)), NotFound, "NOT_FOUND");
    fails!(objects.put_object(put("mine", b"acme's")), NotFound, "NOT_FOUND");
    let copy = pb::CopyObjectRequest {
        source: of("secret/plan", &theirs),
        destination_key: "mine".into(),
        ..Default::default()
    };
    fails!(objects.copy_object(copy), NotFound, "NOT_FOUND");
    let down = pb::DownloadBlobRequest { object: of("secret/plan", ""), ..Default::default() };
    assert_eq!(reason(&download(&globex, down).await.unwrap_err()), "NOT_FOUND");
    let once = pb::PutObjectRequest { if_none_match: true, ..put("secret/plan", b"globex's") };
    let mine = ok!(objects.put_object(once)).object_version.unwrap().id;
    for (who, id) in [(&acme, &theirs), (&globex, &mine)] {
        let list = pb::ListObjectsRequest { delimiter: "/".into(), ..Default::default() };
        assert_eq!(ok!(who.objects().list_objects(list)).common_prefixes, ["secret/"]);
        let listed = ok!(who.objects().list_objects(pb::ListObjectsRequest::default())).objects;
        assert_eq!(listed.len(), 1);
        assert_eq!(&listed[0].version_id, id);
        let query = pb::SearchObjectsRequest { query: "plan".into(), ..Default::default() };
        let hits = ok!(who.objects().search_objects(query)).hits;
        assert_eq!(hits.len(), 1);
        assert_eq!(&hits[0].object.as_ref().unwrap().version_id, id);
        let found =
            ok!(who.objects().get_object_statistics(pb::GetObjectStatisticsRequest::default()));
        assert_eq!((found.object_count, found.version_count, found.blob_count), (1, 1, 1));
        assert_eq!(found.audit_count_24h, 2);
    }
    ok!(globex.objects().delete_object(delete("secret/plan")));
    ok!(acme.objects().get_object(get("secret/plan")));
    world.close().await;
}

#[tokio::test]
async fn what_has_no_bytes_here_cannot_be_downloaded() {
    let world = World::new().await;
    let me = world.anonymous();
    let there = ok!(me.objects().put_object(put_external("tape/1", 7))).object.unwrap();
    assert_eq!((there.blob, there.storage_backend.as_str()), (None, "tape"));
    assert_eq!((there.location.as_str(), there.size_bytes), ("/vault/tape/1", 7));
    let down =
        |id: &str| pb::DownloadBlobRequest { object: of("tape/1", id), ..Default::default() };
    let status = download(&me, down("")).await.unwrap_err();
    assert_eq!(wrong_fields(&status), ["object"]);
    assert!(status.message().contains("/vault/tape/1"), "{status:?}");
    let marker = ok!(me.objects().delete_object(delete("tape/1"))).object_version.unwrap().id;
    assert_eq!(reason(&download(&me, down("")).await.unwrap_err()), "NOT_FOUND");
    let status = download(&me, down(&marker)).await.unwrap_err();
    assert_eq!(wrong_fields(&status), ["object"]);
    assert!(entries(&me, 20).await.iter().all(|entry| entry.action != "DOWNLOAD"));
    // Copies of it are made without bytes, too.
    ok!(me.objects().copy_object(pb::CopyObjectRequest {
        source: of("tape/1", &there.version_id),
        destination_key: "tape/2".into(),
        ..Default::default()
    }));
    world.close().await;
}

#[tokio::test]
async fn embeddings_of_an_object_go_and_come_back_with_it() {
    let world = World::new().await;
    let me = world.anonymous();
    upload(&me, b"one").await;
    made(&me, put("a b/é", b"one")).await;
    ok!(me.spaces().create_vector_space(pb::CreateVectorSpaceRequest {
        vector_space_id: "s".into(),
        vector_space: Some(pb::VectorSpace {
            embedding_model: "m".into(),
            dimensions: 2,
            ..Default::default()
        }),
        options: None,
    }));
    let floats = pb::FloatList { values: vec![1.0, 2.0] };
    ok!(me.vectors().upsert_embedding(pb::UpsertEmbeddingRequest {
        vector_space_id: "s".into(),
        embedding: Some(pb::Embedding {
            id: "e".into(),
            subject: Some(reference(Kind::Object, "a b/é", 0)),
            vector: Some(pb::Vector { data: Some(pb::vector::Data::Floats(floats)) }),
            ..Default::default()
        }),
        options: None,
    }));
    let there = || async {
        let get = pb::GetEmbeddingRequest {
            vector_space_id: "s".into(),
            embedding_id: "e".into(),
            ..Default::default()
        };
        me.vectors().get_embedding(get).await.is_ok()
    };
    let marker = ok!(me.objects().delete_object(delete("a b/é"))).object_version.unwrap().id;
    assert!(!there().await);
    ok!(me.objects().delete_object(delete_version("a b/é", &marker)));
    assert!(there().await);
    ok!(me.objects().delete_object(delete("a b/é")));
    assert!(!there().await);
    made(&me, put("a b/é", b"one")).await;
    assert!(there().await);
    ok!(me.objects().delete_object(delete("a b/é")));
    assert!(!there().await);
    let requests = vec![put("a", b"one"), put("a b/é", b"one"), put("z", b"one")];
    ok!(me.objects().batch_put_objects(pb::BatchPutObjectsRequest { requests, options: None }));
    assert!(there().await);
    // Its way back stands in the log with the rest.
    let log = entries(&me, 7).await;
    let back = log.iter().filter(|entry| entry.kind == "embedding" && entry.action == "UNDELETE");
    assert_eq!((back.count(), log[6].kind.as_str()), (1, "object"));
    assert!(log.iter().all(|entry| entry.event_time == log[0].event_time));
    world.close().await;
}
