//! The chain of versions: puts, copies, rollbacks, deletions and what is the latest after each.

use super::*;
use crate::world::{request, wrong_fields};

/// What a key stands for now, as the bytes of its blob would say.
async fn latest(who: &As, key: &str) -> Option<pb::Object> {
    match who.objects().get_object(get(key)).await {
        Ok(answer) => answer.into_inner().object,
        Err(status) => {
            assert_eq!(crate::world::reason(&status), "NOT_FOUND");
            None
        }
    }
}

async fn three(me: &As, key: &str) -> [String; 3] {
    for bytes in [b"one", b"two", b"six"] {
        upload(me, bytes).await;
    }
    [
        made(me, put(key, b"one")).await,
        made(me, put(key, b"two")).await,
        made(me, put(key, b"six")).await,
    ]
}

#[tokio::test]
async fn a_put_adds_a_version_and_takes_none_away() {
    let world = World::new().await;
    let me = world.anonymous();
    let [one, two, six] = three(&me, "k").await;
    assert_eq!(
        versions(&me, "k").await,
        [(six.clone(), true), (two.clone(), false), (one.clone(), false)]
    );
    let object = latest(&me, "k").await.unwrap();
    assert_eq!((object.blob, &object.version_id), (Some(digest(b"six")), &six));
    assert_eq!((object.version_count, object.meta.as_ref().unwrap().version), (3, 3));
    for (id, bytes) in [(&one, b"one"), (&two, b"two"), (&six, b"six")] {
        let found = ok!(me.objects().get_object(get_version("k", id)));
        let version = found.object_version.unwrap();
        assert_eq!((&version.id, &version.blob), (id, &Some(digest(bytes))));
        assert_eq!(version.is_latest, *id == six);
        assert_eq!(found.object.unwrap().version_id, six);
    }
    // A version of another key is no version of this.
    let other = made(&me, put("other", b"one")).await;
    fails!(me.objects().get_object(get_version("k", &other)), NotFound, "NOT_FOUND");
    // Pages of versions, in other orders and with filters.
    let list =
        pb::ListObjectVersionsRequest { key: "k".into(), page: page(2), ..Default::default() };
    let first = ok!(me.objects().list_object_versions(list.clone()));
    made(&me, put("k", b"one")).await;
    let token = first.page.unwrap().next_page_token;
    let page = Some(pb::PageRequest { page_size: 2, page_token: token, ..Default::default() });
    let second = ok!(me
        .objects()
        .list_object_versions(pb::ListObjectVersionsRequest { page, ..list.clone() }));
    let ids: Vec<_> = first.object_versions.iter().chain(&second.object_versions).collect();
    // As the tenant stood at the first page, also in what was the latest.
    let ids: Vec<_> = ids.iter().map(|v| (v.id.as_str(), v.is_latest)).collect();
    assert_eq!(ids, [(six.as_str(), true), (&two, false), (&one, false)]);
    let where_clause =
        expression(&format!("digest = \"{}\"", crate::blob::hex(&digest(b"one").value)));
    let of_one = pb::ListObjectVersionsRequest { r#where: where_clause, page: None, ..list };
    assert_eq!(ok!(me.objects().list_object_versions(of_one)).object_versions.len(), 2);
    let none = pb::ListObjectVersionsRequest { key: "nothing".into(), ..Default::default() };
    fails!(me.objects().list_object_versions(none), NotFound, "NOT_FOUND");
    world.close().await;
}

#[tokio::test]
async fn what_an_object_was_can_be_read_at_a_revision() {
    let world = World::new().await;
    let me = world.anonymous();
    for bytes in [b"one", b"two"] {
        upload(&me, bytes).await;
    }
    let at = |revision: Option<pb::Revision>| {
        let requirement = revision.map(pb::consistency::Requirement::AtExactSnapshot);
        Some(pb::Consistency { requirement })
    };
    let first = ok!(me.objects().put_object(put("k", b"one")));
    let then = first.receipt.unwrap().revision;
    let second = ok!(me.objects().put_object(put("k", b"two")));
    let gone = ok!(me.objects().delete_object(delete("k"))).receipt.unwrap().revision;
    let read = |revision| pb::GetObjectRequest { consistency: at(revision), ..get("k") };
    let found = ok!(me.objects().get_object(read(then.clone())));
    assert_eq!(found.object, first.object);
    assert_eq!(found.object_version, first.object_version);
    fails!(me.objects().get_object(read(gone.clone())), NotFound, "NOT_FOUND");
    // A version of what is deleted there, and whether it was the latest.
    let id = second.object_version.unwrap().id;
    let version = pb::GetObjectRequest { version_id: id.clone(), ..read(gone) };
    let found = ok!(me.objects().get_object(version));
    assert_eq!((found.object, found.object_version.unwrap().is_latest), (None, false));
    // It did not exist then.
    let version = pb::GetObjectRequest { version_id: id, ..read(then.clone()) };
    fails!(me.objects().get_object(version), NotFound, "NOT_FOUND");
    let list = pb::ListObjectsRequest { consistency: at(then.clone()), ..Default::default() };
    assert_eq!(
        ok!(me.objects().list_objects(list.clone())).objects,
        [first.object.clone().unwrap()]
    );
    let level = pb::ListObjectsRequest { delimiter: "/".into(), ..list };
    assert_eq!(ok!(me.objects().list_objects(level)).objects, [first.object.unwrap()]);
    let masked = pb::GetObjectRequest { read_mask: mask(&["size_bytes"]), ..read(then) };
    let masked = ok!(me.objects().get_object(masked)).object.unwrap();
    assert_eq!((masked.size_bytes, masked.key.as_str()), (3, ""));
    world.close().await;
}

#[tokio::test]
async fn a_deleted_object_comes_back_in_three_ways() {
    let world = World::new().await;
    let me = world.anonymous();
    let [one, _, six] = three(&me, "k").await;
    let uid = latest(&me, "k").await.unwrap().meta.unwrap().uid;
    let gone = ok!(me.objects().delete_object(delete("k")));
    let marker = gone.object_version.unwrap();
    assert!(marker.delete_marker && marker.is_latest && marker.blob.is_none());
    assert!(gone.object.unwrap().meta.unwrap().delete_time.is_some());
    assert!(latest(&me, "k").await.is_none());
    // The versions stay, and can be read.
    assert_eq!(versions(&me, "k").await.len(), 4);
    let found = ok!(me.objects().get_object(get_version("k", &one)));
    assert_eq!((found.object, found.object_version.unwrap().blob), (None, Some(digest(b"one"))));
    let found = ok!(me.objects().get_object(get_version("k", &marker.id)));
    assert!(found.object_version.unwrap().is_latest);
    // It is not there to be deleted again.
    fails!(me.objects().delete_object(delete("k")), NotFound, "NOT_FOUND");
    let again = pb::DeleteObjectRequest { allow_missing: true, ..delete("k") };
    let again = ok!(me.objects().delete_object(again));
    assert!(again.object.is_none() && again.receipt.unwrap().unchanged);

    // The marker goes.
    let back = ok!(me.objects().delete_object(delete_version("k", &marker.id))).object.unwrap();
    assert_eq!((&back.version_id, back.meta.as_ref().unwrap().delete_time), (&six, None));
    assert_eq!(latest(&me, "k").await.unwrap().blob, Some(digest(b"six")));
    // A put.
    ok!(me.objects().delete_object(delete("k")));
    made(&me, put("k", b"two")).await;
    assert_eq!(latest(&me, "k").await.unwrap().blob, Some(digest(b"two")));
    // A rollback.
    ok!(me.objects().delete_object(delete("k")));
    ok!(me.objects().rollback_object(rollback("k", &one)));
    let now = latest(&me, "k").await.unwrap();
    assert_eq!(now.blob, Some(digest(b"one")));
    // All that time it was one object.
    assert_eq!(now.meta.unwrap().uid, uid);
    assert_eq!(now.version_count, 7);
    let actions: Vec<_> = entries(&me, 2).await.into_iter().map(|entry| entry.action).collect();
    assert_eq!(actions, ["CREATE", "UNDELETE"]);
    world.close().await;
}

#[tokio::test]
async fn a_version_that_goes_leaves_the_one_before_it() {
    let world = World::new().await;
    let me = world.anonymous();
    let [one, two, six] = three(&me, "k").await;
    let gone = ok!(me.objects().delete_object(delete_version("k", &two)));
    assert_eq!(gone.object_version.unwrap().blob, Some(digest(b"two")));
    assert_eq!(gone.object.unwrap().version_id, six);
    fails!(me.objects().delete_object(delete_version("k", &two)), NotFound, "NOT_FOUND");
    let gone = ok!(me.objects().delete_object(delete_version("k", &six))).object.unwrap();
    assert_eq!((gone.blob, &gone.version_id, gone.version_count), (Some(digest(b"one")), &one, 1));
    let shown = latest(&me, "k").await.unwrap();
    assert_eq!(shown.blob, Some(digest(b"one")));
    // With the last of them the object goes, too, and what comes then is another.
    let uid = shown.meta.unwrap().uid;
    let last = ok!(me.objects().delete_object(delete_version("k", &one))).object.unwrap();
    assert_eq!((last.version_id.as_str(), last.version_count), ("", 0));
    assert!(latest(&me, "k").await.is_none());
    let none = pb::ListObjectVersionsRequest { key: "k".into(), ..Default::default() };
    fails!(me.objects().list_object_versions(none), NotFound, "NOT_FOUND");
    fails!(me.objects().rollback_object(rollback("k", &one)), NotFound, "NOT_FOUND");
    let new = ok!(me.objects().put_object(put("k", b"two"))).object.unwrap();
    assert!(new.meta.as_ref().unwrap().uid != uid);
    assert_eq!((new.meta.unwrap().version, new.version_count), (1, 1));
    // Under a delete marker, too: the key has none then.
    ok!(me.objects().delete_object(delete("k")));
    for (id, _) in versions(&me, "k").await.into_iter().rev() {
        ok!(me.objects().delete_object(delete_version("k", &id)));
    }
    assert!(latest(&me, "k").await.is_none());
    assert_eq!(made(&me, put("k", b"one")).await, versions(&me, "k").await[0].0);
    world.close().await;
}

#[tokio::test]
async fn copies_and_rollbacks_are_versions_over_the_same_blob() {
    let world = World::new().await;
    let me = world.anonymous();
    upload(&me, b"one").await;
    upload(&me, b"two").await;
    let mut given = put("from", b"one");
    given.content_type = "text/plain".into();
    given.metadata = Some(json(&[("owner", "ada")]));
    given.tags = labels(&[("team", "a")]);
    given.retention_class = "credit".into();
    given.subject_id = "person".into();
    let one = made(&me, given.clone()).await;
    made(&me, put("from", b"two")).await;
    let copy = |version_id: &str| pb::CopyObjectRequest {
        source: of("from", version_id),
        destination_key: "to".into(),
        ..Default::default()
    };
    let made_now = ok!(me.objects().copy_object(copy("")));
    assert_eq!(made_now.object.unwrap().blob, Some(digest(b"two")));
    let copied = ok!(me.objects().copy_object(pb::CopyObjectRequest {
        metadata: Some(json(&[("owner", "eve")])),
        comment: "of the first".into(),
        ..copy(&one)
    }));
    let (object, version) = (copied.object.unwrap(), copied.object_version.unwrap());
    assert_eq!((object.blob.as_ref(), object.version_count), (Some(&digest(b"one")), 2));
    assert_eq!((object.content_type.as_str(), &object.tags), ("text/plain", &given.tags));
    assert_eq!((object.retention_class.as_str(), object.subject_id.as_str()), ("credit", "person"));
    assert_eq!(object.metadata, Some(json(&[("owner", "eve")])));
    assert_eq!((version.comment.as_str(), version.number), ("of the first", 2));
    // The source is as it was.
    assert_eq!(versions(&me, "from").await.len(), 2);
    // A version of a deleted object can be copied, what is not there cannot, and a delete marker has nothing.
    ok!(me.objects().delete_object(delete("from")));
    ok!(me.objects().copy_object(copy(&one)));
    fails!(me.objects().copy_object(copy("")), NotFound, "NOT_FOUND");
    let marker = versions(&me, "from").await[0].0.clone();
    let status = fails!(me.objects().copy_object(copy(&marker)), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["source.version_id"]);
    let status = fails!(
        me.objects().rollback_object(rollback("from", &marker)),
        InvalidArgument,
        "FIELD_INVALID"
    );
    assert_eq!(wrong_fields(&status), ["version_id"]);
    // Of another key it is no version.
    fails!(me.objects().rollback_object(rollback("to", &one)), NotFound, "NOT_FOUND");
    let back = ok!(me.objects().rollback_object(rollback("from", &one)));
    let (object, version) = (back.object.unwrap(), back.object_version.unwrap());
    assert_eq!((object.metadata, object.content_type.as_str()), (given.metadata, "text/plain"));
    assert!(version.is_latest && version.id != one && version.blob == Some(digest(b"one")));
    // A copy in place is a version, too.
    let same = pb::CopyObjectRequest { destination_key: "from".into(), ..copy("") };
    assert_eq!(ok!(me.objects().copy_object(same)).object.unwrap().version_count, 5);
    world.close().await;
}

#[tokio::test]
async fn a_put_is_held_to_what_the_caller_has_seen() {
    let world = World::new().await;
    let me = world.anonymous();
    for bytes in [b"one", b"two"] {
        upload(&me, bytes).await;
    }
    let when = |if_match: &str, if_none_match: bool, bytes: &[u8]| pb::PutObjectRequest {
        if_match: if_match.into(),
        if_none_match,
        ..put("k", bytes)
    };
    fails!(me.objects().put_object(when("*", false, b"one")), NotFound, "NOT_FOUND");
    fails!(me.objects().put_object(when("\"x\"", false, b"one")), NotFound, "NOT_FOUND");
    let first = ok!(me.objects().put_object(when("", true, b"one"))).object.unwrap();
    fails!(me.objects().put_object(when("", true, b"two")), AlreadyExists, "EXISTS");
    let second = ok!(me.objects().put_object(when(&first.etag, false, b"two"))).object.unwrap();
    let status =
        fails!(me.objects().put_object(when(&first.etag, false, b"one")), Aborted, "ETAG_MISMATCH");
    assert_eq!(info(&status)["current_etag"], second.etag);
    ok!(me.objects().put_object(when("*", false, b"one")));
    // Copies and rollbacks, too.
    let copy = pb::CopyObjectRequest {
        source: of("k", ""),
        destination_key: "k".into(),
        if_match: first.etag.clone(),
        ..Default::default()
    };
    fails!(me.objects().copy_object(copy.clone()), Aborted, "ETAG_MISMATCH");
    let copy = pb::CopyObjectRequest { if_match: String::new(), if_none_match: true, ..copy };
    fails!(me.objects().copy_object(copy), AlreadyExists, "EXISTS");
    let back = pb::RollbackObjectRequest {
        if_match: first.etag.clone(),
        ..rollback("k", &first.version_id)
    };
    fails!(me.objects().rollback_object(back), Aborted, "ETAG_MISMATCH");
    // And deletions: of the object by its etag, of a version by the version's.
    let stale = pb::DeleteObjectRequest { etag: first.etag, ..delete("k") };
    fails!(me.objects().delete_object(stale), Aborted, "ETAG_MISMATCH");
    let found = ok!(me.objects().get_object(get("k")));
    let stale = pb::DeleteObjectRequest {
        etag: found.object.unwrap().etag,
        ..delete_version("k", &first.version_id)
    };
    fails!(me.objects().delete_object(stale), Aborted, "ETAG_MISMATCH");
    assert_eq!(versions(&me, "k").await.len(), 3);
    // A deleted object is not there.
    ok!(me.objects().delete_object(delete("k")));
    fails!(me.objects().put_object(when("*", false, b"one")), NotFound, "NOT_FOUND");
    ok!(me.objects().put_object(when("", true, b"one")));
    // Preconditions of other writes name objects by their keys.
    let absent = pb::precondition::Check::MustNotExist(reference(pb::ResourceKind::Object, "k", 0));
    let options = pb::WriteOptions {
        preconditions: vec![pb::Precondition { check: Some(absent) }],
        ..Default::default()
    };
    let guarded = pb::PutObjectRequest { options: Some(options), ..put("l", b"one") };
    fails!(me.objects().put_object(guarded), FailedPrecondition, "PRECONDITION_FAILED");
    world.close().await;
}

#[tokio::test]
async fn of_several_puts_at_once_each_is_a_version_and_one_is_the_first() {
    let world = World::new().await;
    let mut other = second_server(&world).await;
    upload(&world.anonymous(), b"one").await;
    let puts = (0..24).map(|n| {
        let who = if n % 2 == 0 { world.anonymous() } else { other.anonymous() };
        async move {
            let once = pb::PutObjectRequest { if_none_match: n % 3 == 0, ..put("k", b"one") };
            who.objects()
                .put_object(once)
                .await
                .map(|answer| answer.into_inner().object_version.unwrap().id)
        }
    });
    let answers = futures_util::future::join_all(puts).await;
    let mut made: Vec<_> =
        answers.iter().filter_map(|answer| answer.as_ref().ok()).cloned().collect();
    assert!(made.len() >= 16, "{answers:?}");
    for status in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        assert_eq!(crate::world::reason(status), "EXISTS");
    }
    let mut found: Vec<String> =
        versions(&world.anonymous(), "k").await.into_iter().map(|(id, _)| id).collect();
    made.sort();
    found.sort();
    assert_eq!(found, made);
    other.stop().await;
    world.close().await;
}

#[tokio::test]
async fn tags_and_comment_of_a_version_change_and_nothing_else() {
    let world = World::new().await;
    let me = world.anonymous();
    let [one, _, six] = three(&me, "k").await;
    let change = |id: &str, paths: &[&str]| pb::UpdateObjectVersionRequest {
        key: "k".into(),
        version_id: id.into(),
        tags: labels(&[("state", "final")]),
        comment: "checked".into(),
        update_mask: mask(paths),
        ..Default::default()
    };
    let now =
        ok!(me.objects().update_object_version(change(&one, &["comment"]))).object_version.unwrap();
    assert_eq!((now.comment.as_str(), now.tags.len(), now.is_latest), ("checked", 0, false));
    assert_eq!(now.meta.as_ref().unwrap().version, 2);
    assert!(latest(&me, "k").await.unwrap().tags.is_empty());
    let again = ok!(me.objects().update_object_version(change(&one, &["comment"])));
    assert!(again.receipt.unwrap().unchanged);
    // The object has the tags of its latest version.
    let etag = latest(&me, "k").await.unwrap().etag;
    let now = ok!(me.objects().update_object_version(change(&six, &["tags", "comment"])));
    assert!(now.object_version.unwrap().is_latest);
    let object = latest(&me, "k").await.unwrap();
    assert_eq!(object.tags, labels(&[("state", "final")]));
    assert!(object.etag != etag);
    let tagged = pb::ListObjectsRequest {
        r#where: expression("tags.state = \"final\""),
        ..Default::default()
    };
    assert_eq!(ok!(me.objects().list_objects(tagged)).objects, [object]);
    let stale =
        pb::UpdateObjectVersionRequest { etag: "\"x\"".into(), ..change(&six, &["comment"]) };
    fails!(me.objects().update_object_version(stale), Aborted, "ETAG_MISMATCH");
    for (paths, reason) in [
        (&["blob"][..], "FIELD_IMMUTABLE"),
        (&["nothing"], "UNKNOWN_FIELD"),
        (&[], "FIELD_INVALID"),
        (&["*"], "FIELD_INVALID"),
    ] {
        let status = fails!(
            me.objects().update_object_version(change(&six, paths)),
            InvalidArgument,
            reason
        );
        assert_eq!(wrong_fields(&status), ["update_mask"]);
    }
    let other =
        pb::UpdateObjectVersionRequest { key: "other".into(), ..change(&six, &["comment"]) };
    fails!(me.objects().update_object_version(other), NotFound, "NOT_FOUND");
    world.close().await;
}

#[tokio::test]
async fn a_comparison_names_what_differs() {
    let world = World::new().await;
    let me = world.anonymous();
    upload(&me, b"one").await;
    upload(&me, b"three").await;
    let mut given = put("k", b"one");
    given.metadata = Some(json(&[("owner", "ada"), ("kept", "x")]));
    given.tags = labels(&[("a", "1")]);
    let one = made(&me, given.clone()).await;
    let mut other = put("k", b"three");
    other.content_type = "text/plain".into();
    other.metadata = Some(json(&[("owner", "eve"), ("kept", "x"), ("new", "y")]));
    let three = made(&me, other).await;
    let compare = |one: &str, other: &str| pb::CompareObjectVersionsRequest {
        key: "k".into(),
        version_id: one.into(),
        other_version_id: other.into(),
    };
    let found = ok!(me.objects().compare_object_versions(compare(&one, "")));
    assert!(!found.same_bytes);
    assert_eq!(found.object_version.unwrap().id, one);
    let latest = found.other_object_version.unwrap();
    assert!(latest.is_latest && latest.id == three);
    let hex = |bytes: &[u8]| format!("\"{}\"", crate::blob::hex(&digest(bytes).value));
    let found: Vec<_> =
        found.differences.into_iter().map(|d| (d.field, d.value, d.other_value)).collect();
    let expected = [
        ("digest", hex(b"one"), hex(b"three")),
        ("size_bytes", "3".into(), "5".into()),
        ("content_type", String::new(), "\"text/plain\"".into()),
        ("metadata.new", String::new(), "\"y\"".into()),
        ("metadata.owner", "\"ada\"".into(), "\"eve\"".into()),
        ("tags.a", "\"1\"".into(), String::new()),
    ];
    // What the store says of the bytes is its own affair.
    let found: Vec<_> =
        found.into_iter().filter(|(field, ..)| !field.starts_with("store_")).collect();
    assert_eq!(found, expected.map(|(field, a, b)| (field.to_owned(), a, b)));
    let same = ok!(me.objects().compare_object_versions(compare(&one, &one)));
    assert!(same.same_bytes && same.differences.is_empty());
    ok!(me.objects().delete_object(delete("k")));
    fails!(me.objects().compare_object_versions(compare(&one, "")), NotFound, "NOT_FOUND");
    ok!(me.objects().compare_object_versions(compare(&one, &three)));
    world.close().await;
}

#[tokio::test]
async fn a_repeated_call_gets_the_first_answer() {
    let world = World::new().await;
    let me = world.anonymous();
    upload(&me, b"one").await;
    upload(&me, b"two").await;
    let put_once = pb::PutObjectRequest { options: Some(request("put")), ..put("k", b"one") };
    let first = ok!(me.objects().put_object(put_once.clone()));
    made(&me, put("k", b"two")).await;
    let again = ok!(me.objects().put_object(put_once.clone()));
    assert!(again.receipt.as_ref().unwrap().replayed);
    assert_eq!((again.object, again.object_version), (first.object.clone(), first.object_version));
    assert_eq!(versions(&me, "k").await.len(), 2);
    let other = pb::PutObjectRequest { comment: "x".into(), ..put_once };
    fails!(me.objects().put_object(other), InvalidArgument, "REQUEST_ID_REUSED");
    let copy = pb::CopyObjectRequest {
        source: of("k", ""),
        destination_key: "l".into(),
        options: Some(request("copy")),
        ..Default::default()
    };
    let first = ok!(me.objects().copy_object(copy.clone()));
    let again = ok!(me.objects().copy_object(copy));
    assert_eq!((again.object, again.object_version), (first.object, first.object_version));
    let gone = pb::DeleteObjectRequest { options: Some(request("delete")), ..delete("k") };
    let first = ok!(me.objects().delete_object(gone.clone()));
    made(&me, put("k", b"two")).await;
    let again = ok!(me.objects().delete_object(gone));
    assert!(again.receipt.unwrap().replayed);
    assert_eq!((again.object, again.object_version), (first.object, first.object_version));
    let both = pb::BatchDeleteObjectsRequest {
        keys: vec!["k".into(), "l".into()],
        options: Some(request("both")),
        ..Default::default()
    };
    assert_eq!(ok!(me.objects().batch_delete_objects(both.clone())).deleted_count, 2);
    assert_eq!(ok!(me.objects().batch_delete_objects(both)).deleted_count, 2);
    let update = pb::UpdateObjectVersionRequest {
        key: "l".into(),
        version_id: versions(&me, "l").await[1].0.clone(),
        comment: "c".into(),
        update_mask: mask(&["comment"]),
        options: Some(request("update")),
        ..Default::default()
    };
    let first = ok!(me.objects().update_object_version(update.clone())).object_version;
    assert_eq!(ok!(me.objects().update_object_version(update)).object_version, first);
    // A rehearsal shows what would be and writes nothing.
    let before = head(&me).await;
    let options = Some(pb::WriteOptions { validate_only: true, ..Default::default() });
    let would =
        ok!(me.objects().put_object(pb::PutObjectRequest { options, ..put("new", b"one") }));
    assert!(would.receipt.is_none() && would.object.unwrap().version_count == 1);
    assert_eq!(head(&me).await, before);
    fails!(me.objects().get_object(get("new")), NotFound, "NOT_FOUND");
    world.close().await;
}

#[tokio::test]
async fn several_objects_go_together_or_not_at_all() {
    let world = World::new().await;
    let me = world.anonymous();
    upload(&me, b"one").await;
    for key in ["a", "b", "c"] {
        made(&me, put(key, b"one")).await;
    }
    let batch = |keys: &[&str], allow_missing| pb::BatchDeleteObjectsRequest {
        keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        allow_missing,
        ..Default::default()
    };
    let before = head(&me).await;
    fails!(
        me.objects().batch_delete_objects(batch(&["a", "none", "b"], false)),
        NotFound,
        "NOT_FOUND"
    );
    assert_eq!(head(&me).await, before);
    assert!(latest(&me, "a").await.is_some());
    let answer = ok!(me.objects().batch_delete_objects(batch(&["a", "none", "b"], true)));
    assert_eq!(answer.deleted_count, 2);
    assert_eq!(head(&me).await, before + 4);
    assert!(latest(&me, "a").await.is_none() && latest(&me, "c").await.is_some());
    let none = ok!(me.objects().batch_delete_objects(batch(&["a"], true)));
    assert!(none.deleted_count == 0 && none.receipt.unwrap().unchanged);
    // As many as there may be, in one transaction.
    let keys: Vec<String> = (0..1000).map(|n| format!("many/{n}")).collect();
    for key in &keys[..20] {
        made(&me, put(key, b"one")).await;
    }
    let all = pb::BatchDeleteObjectsRequest { keys, allow_missing: true, ..Default::default() };
    assert_eq!(ok!(me.objects().batch_delete_objects(all)).deleted_count, 20);
    world.close().await;
}

/// F363.
#[tokio::test]
async fn an_upload_and_its_object_are_one_transaction() {
    let (world, folder) = crate::blob::on_disk(&[]).await;
    let me = world.anonymous();
    let given = |key: &str| pb::PutObjectRequest {
        key: key.into(),
        metadata: Some(json(&[("owner", "ada")])),
        comment: "uploaded".into(),
        ..Default::default()
    };
    let send = |bytes: &'static [u8], object: pb::PutObjectRequest, says: bool, options| {
        let me = me.clone();
        async move {
            let messages = crate::blob::messages(bytes, |header| {
                header.content_type = "text/plain".into();
                header.digest = says.then(|| digest(bytes));
                header.object = Some(object);
                header.options = options;
            });
            crate::blob::send(&me, messages).await
        }
    };
    let answer = send(b"new", given("a/new"), false, Some(request("u"))).await.unwrap();
    assert!(!answer.deduplicated);
    let (object, version) =
        (answer.object.clone().unwrap(), answer.object_version.clone().unwrap());
    assert_eq!(
        (object.blob.as_ref(), object.content_type.as_str()),
        (Some(&digest(b"new")), "text/plain")
    );
    assert_eq!((object.metadata, version.comment.as_str()), (given("").metadata, "uploaded"));
    assert_eq!(object.version_id, version.id);
    // One transaction: three entries with one time.
    let log = entries(&me, 3).await;
    let kinds: Vec<_> = log.iter().map(|entry| entry.target.as_ref().unwrap().kind()).collect();
    assert_eq!(
        kinds,
        [pb::ResourceKind::ObjectVersion, pb::ResourceKind::Object, pb::ResourceKind::Blob]
    );
    assert!(log.iter().all(|entry| entry.event_time == log[0].event_time));
    let again = send(b"new", given("a/new"), false, Some(request("u"))).await.unwrap();
    assert!(again.receipt.unwrap().replayed);
    assert_eq!((again.object, again.object_version), (answer.object, answer.object_version));
    // Bytes that are here, whether the header says so or not.
    for (n, says) in [false, true].into_iter().enumerate() {
        let answer = send(b"new", given(&format!("b/{n}")), says, None).await.unwrap();
        assert!(answer.deduplicated && answer.receipt.is_some());
        assert_eq!(answer.object.unwrap().blob, Some(digest(b"new")));
    }
    let blob = pb::GetBlobRequest { digest: Some(digest(b"new")) };
    assert_eq!(ok!(me.blobs().get_blob(blob)).blob.unwrap().reference_count, 3);
    // An object that cannot be leaves no blob, either.
    let before = head(&me).await;
    for (object, code, why) in [
        (
            pb::PutObjectRequest { if_none_match: true, ..given("a/new") },
            tonic::Code::AlreadyExists,
            "EXISTS",
        ),
        (
            pb::PutObjectRequest { if_match: "\"x\"".into(), ..given("a/new") },
            tonic::Code::Aborted,
            "ETAG_MISMATCH",
        ),
        (given("../x"), tonic::Code::InvalidArgument, "FIELD_INVALID"),
        (put("a/new", b"new"), tonic::Code::InvalidArgument, "FIELD_INVALID"),
        (
            pb::PutObjectRequest { options: Some(request("x")), ..given("k") },
            tonic::Code::InvalidArgument,
            "FIELD_INVALID",
        ),
    ] {
        let status = send(b"other", object, false, None).await.unwrap_err();
        assert_eq!(
            (status.code(), crate::world::reason(&status).as_str()),
            (code, why),
            "{status:?}"
        );
        if why == "FIELD_INVALID" {
            assert!(wrong_fields(&status)[0].starts_with("header.object."), "{status:?}");
        }
    }
    let blob = pb::GetBlobRequest { digest: Some(digest(b"other")) };
    fails!(me.blobs().get_blob(blob), NotFound, "NOT_FOUND");
    assert_eq!(head(&me).await, before);
    let database = world.superuser().await;
    crate::blob::is_settled(&database).await;
    crate::blob::is_consistent(&database, folder.path()).await;
    drop(database);
    world.close().await;
}
