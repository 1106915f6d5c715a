//! F367: puts under several keys in one transaction: all or none, however they meet others.

use super::*;
use crate::world::{reason, request, wrong_fields};
use std::collections::BTreeMap;
use tonic::{Code, Status};

fn batch(requests: Vec<pb::PutObjectRequest>) -> pb::BatchPutObjectsRequest {
    pb::BatchPutObjectsRequest { requests, options: None }
}

async fn refusal(who: &As, requests: Vec<pb::PutObjectRequest>) -> Status {
    who.objects().batch_put_objects(batch(requests)).await.unwrap_err()
}

/// The keys that are there.
async fn keys(who: &As) -> Vec<String> {
    let list = pb::ListObjectsRequest { page: page(1000), ..Default::default() };
    ok!(who.objects().list_objects(list)).objects.into_iter().map(|object| object.key).collect()
}

/// What the audit log says of the newest entries, oldest first.
async fn actions(who: &As, n: i32) -> Vec<(String, String)> {
    let log = entries(who, n).await.into_iter().rev();
    log.map(|entry| (entry.kind, entry.action)).collect()
}

#[tokio::test]
async fn several_keys_are_put_in_one_transaction() {
    let world = World::new().await;
    let me = world.anonymous().header("x-casebook-actor", "ada");
    for bytes in [b"one".as_slice(), b"two", b"three"] {
        upload(&me, bytes).await;
    }
    let before = made(&me, put("there", b"one")).await;
    made(&me, put("gone", b"one")).await;
    ok!(me.objects().delete_object(delete("gone")));
    let start = head(&me).await;
    let mut given = put("z/new", b"two");
    given.metadata = Some(json(&[("owner", "ada")]));
    given.tags = labels(&[("team", "a")]);
    given.comment = "first".into();
    given.content_type = "text/plain".into();
    // In no order, over the same bytes and others, as an object that is new, one more version, and a way back.
    let requests = vec![
        given.clone(),
        put_external("tape", 7),
        put("there", b"three"),
        put("gone", b"two"),
        put("a/new", b"two"),
    ];
    let answer = ok!(me.objects().batch_put_objects(batch(requests.clone())));
    let receipt = answer.receipt.unwrap();
    assert_eq!(
        (receipt.audit_seq, receipt.replayed, receipt.unchanged),
        (start + 10, false, false)
    );
    let answered: Vec<_> = answer.items.iter().map(|item| item.key.as_str()).collect();
    assert_eq!(answered, ["z/new", "tape", "there", "gone", "a/new"]);
    for (item, request) in answer.items.iter().zip(&requests) {
        let found = ok!(me.objects().get_object(get(&item.key)));
        let (object, version) = (found.object.unwrap(), found.object_version.unwrap());
        assert_eq!((&object.etag, &object.version_id), (&item.etag, &item.version_id));
        assert_eq!(version.id, item.version_id);
        assert_eq!(object.meta.unwrap().updated_by, "ada");
        match &request.content {
            Some(Content::Blob(digest)) => assert_eq!(object.blob.as_ref(), Some(digest)),
            _ => assert_eq!((object.blob, object.size_bytes), (None, 7)),
        }
    }
    let found = ok!(me.objects().get_object(get("z/new")));
    let (object, version) = (found.object.unwrap(), found.object_version.unwrap());
    assert_eq!((object.metadata, object.tags), (given.metadata, given.tags));
    assert_eq!((object.content_type.as_str(), version.comment.as_str()), ("text/plain", "first"));
    let of_there: Vec<_> = versions(&me, "there").await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(of_there, [answer.items[2].version_id.clone(), before]);
    assert_eq!(versions(&me, "gone").await.len(), 3);
    assert_eq!(keys(&me).await, ["a/new", "gone", "tape", "there", "z/new"]);

    // One transaction, in the order of the request.
    let expected = ["CREATE", "CREATE", "UPDATE", "UNDELETE", "CREATE"];
    let expected = expected.iter().flat_map(|action| {
        [("object", *action), ("object_version", "CREATE")]
            .map(|(kind, action)| (kind.to_owned(), action.to_owned()))
    });
    assert_eq!(actions(&me, 10).await, expected.collect::<Vec<_>>());
    let log = entries(&me, 10).await;
    assert!(log.iter().all(|entry| entry.event_time == log[0].event_time));
    assert!(log.iter().all(|entry| entry.method == "casebook.v1.ObjectService/BatchPutObjects"));
    // Each version refers to its blob.
    for (bytes, references) in [(b"one".as_slice(), 2), (b"two", 3), (b"three", 1)] {
        let get = pb::GetBlobRequest { digest: Some(digest(bytes)) };
        assert_eq!(ok!(me.blobs().get_blob(get)).blob.unwrap().reference_count, references);
    }
    world.close().await;
}

#[tokio::test]
async fn one_put_that_cannot_be_leaves_nothing_of_the_others() {
    let world = World::new().await;
    let me = world.anonymous();
    for bytes in [b"one".as_slice(), b"damaged"] {
        upload(&me, bytes).await;
    }
    let etag = ok!(me.objects().put_object(put("there", b"one"))).object.unwrap().etag;
    made(&me, put("there", b"one")).await;
    let database = world.superuser().await;
    let damage = "UPDATE casebook.blob SET state = 3 WHERE id = $1";
    let id = crate::blob::hex(&digest(b"damaged").value);
    assert_eq!(database.execute(damage, &[&id]).await.unwrap(), 1);
    drop(database);
    let before = head(&me).await;
    let once = pb::PutObjectRequest { if_none_match: true, ..put("there", b"one") };
    let stale = pb::PutObjectRequest { if_match: etag, ..put("there", b"one") };
    let absent = pb::PutObjectRequest { if_match: "*".into(), ..put("absent", b"one") };
    for (bad, code, why) in [
        (put("x", b"nobody's"), Code::NotFound, "NOT_FOUND"),
        (once, Code::AlreadyExists, "EXISTS"),
        (stale, Code::Aborted, "ETAG_MISMATCH"),
        (absent, Code::NotFound, "NOT_FOUND"),
    ] {
        for at in [0, 1, 2] {
            let mut requests = vec![put("a", b"one"), put_external("b", 1)];
            requests.insert(at, bad.clone());
            let status = refusal(&me, requests).await;
            assert_eq!((status.code(), reason(&status).as_str()), (code, why), "{status:?}");
            assert_eq!(info(&status)["at"], format!("requests[{at}]"));
        }
    }
    // Of two that cannot be the first is told; what is wrong with a request names its field.
    let both = vec![put("a", b"one"), put("b", b"damaged"), put("c", b"nobody's")];
    let status = refusal(&me, both).await;
    assert_eq!(
        (status.code(), wrong_fields(&status)),
        (Code::InvalidArgument, vec!["requests[1].blob".into()])
    );
    assert_eq!((head(&me).await, keys(&me).await), (before, vec!["there".to_owned()]));
    let get = pb::GetBlobRequest { digest: Some(digest(b"one")) };
    assert_eq!(ok!(me.blobs().get_blob(get)).blob.unwrap().reference_count, 2);
    world.close().await;
}

#[tokio::test]
async fn batches_that_are_none_are_refused_with_the_field_at_fault() {
    let world = World::new().await;
    let me = world.anonymous();
    let before = head(&me).await;
    let many =
        |n: usize| (0..n).map(|n| put_external(&format!("many/{n:04}"), 1)).collect::<Vec<_>>();
    for (requests, why, fields) in [
        (Vec::new(), "FIELD_INVALID", vec!["requests"]),
        (many(1001), "FIELD_INVALID", vec!["requests"]),
        (
            vec![put_external("k", 1), put_external("l", 1), put_external("k", 2)],
            "DUPLICATE_IN_BATCH",
            vec!["requests[2].key"],
        ),
        (
            vec![put_external("k", 1), put_external("../k", -1)],
            "FIELD_INVALID",
            vec!["requests[1].key", "requests[1].external.size_bytes"],
        ),
        (
            vec![pb::PutObjectRequest { options: Some(request("one")), ..put_external("k", 1) }],
            "FIELD_INVALID",
            vec!["requests[0].options"],
        ),
        (
            vec![
                put_external("k", 1),
                pb::PutObjectRequest { key: "l".into(), ..Default::default() },
            ],
            "FIELD_INVALID",
            vec!["requests[1].content"],
        ),
    ] {
        let status = refusal(&me, requests).await;
        let mut found = wrong_fields(&status);
        found.sort();
        let mut fields = fields;
        fields.sort_unstable();
        assert_eq!(
            (reason(&status).as_str(), found),
            (why, fields.iter().map(|f| f.to_string()).collect())
        );
    }
    let replace = pb::BatchPutObjectsRequest {
        options: on_conflict(pb::OnConflict::Replace),
        ..batch(many(2))
    };
    let status = me.objects().batch_put_objects(replace).await.unwrap_err();
    assert_eq!(wrong_fields(&status), ["options.on_conflict"]);
    assert_eq!(head(&me).await, before);

    // As many as there may be, and more bytes of metadata than one put may have.
    let answer = ok!(me.objects().batch_put_objects(batch(many(1000))));
    assert_eq!(answer.items.len(), 1000);
    assert_eq!(answer.receipt.unwrap().audit_seq, before + 2000);
    assert_eq!(keys(&me).await, answer.items.into_iter().map(|item| item.key).collect::<Vec<_>>());
    let large = |n: usize| pb::PutObjectRequest {
        metadata: Some(json(&[("k", &"x".repeat(1_000_000))])),
        ..put_external(&format!("large/{n}"), 1)
    };
    let requests: Vec<_> = (0..15).map(large).collect();
    assert_eq!(ok!(me.objects().batch_put_objects(batch(requests))).items.len(), 15);
    world.close().await;
}

#[tokio::test]
async fn a_batch_that_is_repeated_gets_the_first_answer() {
    let world = World::new().await;
    let me = world.anonymous();
    upload(&me, b"one").await;
    upload(&me, b"two").await;
    let once = pb::BatchPutObjectsRequest {
        options: Some(request("once")),
        ..batch(vec![put("l", b"one"), put("k", b"two"), put_external("tape", 1)])
    };
    let rehearsal = pb::WriteOptions { validate_only: true, ..Default::default() };
    let would = pb::BatchPutObjectsRequest { options: Some(rehearsal), ..once.clone() };
    let before = head(&me).await;
    let would = ok!(me.objects().batch_put_objects(would));
    assert!(would.receipt.is_none() && would.items.len() == 3);
    assert_eq!((head(&me).await, keys(&me).await.len()), (before, 0));

    let first = ok!(me.objects().batch_put_objects(once.clone()));
    made(&me, put("k", b"one")).await;
    ok!(me.objects().delete_object(delete("l")));
    let after = head(&me).await;
    let again = ok!(me.objects().batch_put_objects(once.clone()));
    assert_eq!(again.items, first.items);
    assert!(again.receipt.unwrap().replayed && !first.receipt.unwrap().replayed);
    assert_eq!((head(&me).await, versions(&me, "k").await.len()), (after, 2));
    let mut other = once;
    other.requests.swap(0, 1);
    fails!(me.objects().batch_put_objects(other), InvalidArgument, "REQUEST_ID_REUSED");
    // A call that failed can be made again under its id.
    let mut failed = pb::BatchPutObjectsRequest {
        options: Some(request("failed")),
        ..batch(vec![put("m", b"one"), put("n", b"three")])
    };
    fails!(me.objects().batch_put_objects(failed.clone()), NotFound, "NOT_FOUND");
    failed.requests.pop();
    assert_eq!(ok!(me.objects().batch_put_objects(failed)).items.len(), 1);
    world.close().await;
}

#[tokio::test]
async fn a_batch_stays_on_its_side_of_the_wall() {
    let world = World::new().await;
    world.tenant("a").await;
    world.tenant("b").await;
    let (a, b) = (world.as_tenant("a"), world.as_tenant("b"));
    upload(&a, b"a's").await;
    let requests = vec![put_external("k", 1), put("l", b"a's")];
    let answer = ok!(a.objects().batch_put_objects(batch(requests.clone())));
    let before = head(&b).await;
    let status = refusal(&b, requests).await;
    assert_eq!((status.code(), info(&status)["at"].as_str()), (Code::NotFound, "requests[1]"));
    assert_eq!((head(&b).await, keys(&b).await.len()), (before, 0));
    // The same keys are others there.
    let once = |key: &str| pb::PutObjectRequest { if_none_match: true, ..put_external(key, 2) };
    ok!(b.objects().batch_put_objects(batch(vec![once("k"), once("l")])));
    let found = ok!(a.objects().get_object(get("k")));
    assert_eq!(found.object.unwrap().etag, answer.items[0].etag);
    assert_eq!((versions(&a, "k").await.len(), versions(&b, "k").await.len()), (1, 1));
    let reader = {
        let (closed, mut open) = guarded(&[]).await;
        let (_, secret) = token(&open.anonymous(), &[pb::Role::Reader]).await;
        let reader = closed.with_token(&secret);
        let call = reader.objects().batch_put_objects(batch(vec![put_external("k", 1)])).await;
        open.stop().await;
        closed.close().await;
        call.unwrap_err()
    };
    assert_eq!(reason(&reader), "ROLE_MISSING");
    world.close().await;
}

/// What fails must fail alone, although many calls share one transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_batches_at_once_those_that_fail_fail_alone() {
    let world = World::new().await;
    let mut other = second_server(&world).await;
    upload(&world.anonymous(), b"one").await;
    upload(&world.anonymous(), b"two").await;
    // One in three has a put that cannot be, somewhere. Some put under a key that they share, which no two do in one
    // transaction.
    let calls = (0..48).map(|n: usize| {
        let who = if n.is_multiple_of(2) { world.anonymous() } else { other.anonymous() };
        let mut requests: Vec<_> = (0..4)
            .map(|part| {
                put(&format!("own/{n:02}/{part}"), if part % 2 == 0 { b"one" } else { b"two" })
            })
            .collect();
        if n.is_multiple_of(3) {
            requests.insert(n % 5, put(&format!("own/{n:02}/bad"), b"nobody's"));
        } else if n % 4 == 1 {
            requests.push(put("shared", b"one"));
        }
        async move { who.objects().batch_put_objects(batch(requests)).await }
    });
    let answers = futures_util::future::join_all(calls).await;
    let me = world.anonymous();
    let (mut expected, mut of_shared) = (BTreeMap::new(), Vec::new());
    for (n, answer) in answers.into_iter().enumerate() {
        match answer {
            Ok(answer) => {
                assert!(!n.is_multiple_of(3));
                let mut items = answer.into_inner().items;
                if n % 4 == 1 {
                    of_shared.push(items.pop().unwrap().version_id);
                }
                expected.extend(items.into_iter().map(|item| (item.key, item.version_id)));
            }
            Err(status) => {
                assert!(n.is_multiple_of(3), "{status:?}");
                assert_eq!(info(&status)["at"], format!("requests[{}]", n % 5));
            }
        }
    }
    let list =
        pb::ListObjectsRequest { prefix: "own/".into(), page: page(1000), ..Default::default() };
    let found = ok!(me.objects().list_objects(list)).objects;
    assert_eq!(found.len(), 32 * 4);
    for object in &found {
        let bytes: &[u8] = if object.key.ends_with(['0', '2']) { b"one" } else { b"two" };
        assert_eq!(object.blob, Some(digest(bytes)), "{}", object.key);
    }
    let found: BTreeMap<_, _> = found.into_iter().map(|o| (o.key, o.version_id)).collect();
    assert_eq!(found, expected);
    let mut shared: Vec<_> = versions(&me, "shared").await.into_iter().map(|(id, _)| id).collect();
    shared.sort();
    of_shared.sort();
    assert_eq!(shared, of_shared);
    assert!(of_shared.len() > 4);
    other.stop().await;
    world.close().await;
}
