//! What must be refused, each with the field at fault, and nothing of it kept.

use super::*;
use crate::world::{reason, wrong_fields};
use tonic::Code;

/// Keys that are none, and the reason that says so.
fn bad_keys() -> Vec<(String, &'static str)> {
    let wrong = |key: &str| (key.to_owned(), "FIELD_INVALID");
    vec![
        wrong(""),
        wrong("/a"),
        wrong("//a"),
        wrong(".."),
        wrong("../a"),
        wrong("a/../b"),
        wrong("a/.."),
        wrong("a\\..\\b"),
        wrong("a\\../b"),
        wrong("a\nb"),
        wrong("a\u{7f}"),
        wrong("a\u{1}"),
        wrong("a\u{85}b"),
        (String::from("a\0b"), "NUL_BYTE"),
        (String::from("\0"), "NUL_BYTE"),
        wrong(&"k".repeat(1025)),
        wrong(&"é".repeat(513)),
    ]
}

fn field_of(status: &tonic::Status) -> (String, Vec<String>) {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    (reason(status), wrong_fields(status))
}

#[tokio::test]
async fn keys_that_are_none_are_refused_everywhere() {
    let world = World::new().await;
    let me = world.anonymous();
    upload(&me, b"one").await;
    let id = made(&me, put("k", b"one")).await;
    let before = head(&me).await;
    for (key, why) in bad_keys() {
        let key = key.as_str();
        let named = |field: &str| (why.to_owned(), vec![field.to_owned()]);
        let mut objects = me.objects();
        let shown: String = key.chars().take(20).collect();
        let check = |status: tonic::Status, field: &str| {
            assert_eq!(field_of(&status), named(field), "{shown:?} {status:?}");
        };
        check(objects.put_object(put(key, b"one")).await.unwrap_err(), "key");
        check(objects.get_object(get(key)).await.unwrap_err(), "key");
        check(objects.delete_object(delete(key)).await.unwrap_err(), "key");
        check(objects.rollback_object(rollback(key, &id)).await.unwrap_err(), "key");
        let copy = pb::CopyObjectRequest {
            source: of("k", ""),
            destination_key: key.into(),
            ..Default::default()
        };
        check(objects.copy_object(copy).await.unwrap_err(), "destination_key");
        let copy = pb::CopyObjectRequest {
            source: of(key, ""),
            destination_key: "l".into(),
            ..Default::default()
        };
        check(objects.copy_object(copy).await.unwrap_err(), "source.key");
        let keys = vec!["k".to_owned(), key.to_owned()];
        let batch =
            pb::BatchDeleteObjectsRequest { keys, allow_missing: true, ..Default::default() };
        check(objects.batch_delete_objects(batch).await.unwrap_err(), "keys[1]");
        let list = pb::ListObjectVersionsRequest { key: key.into(), ..Default::default() };
        check(objects.list_object_versions(list).await.unwrap_err(), "key");
        let update = pb::UpdateObjectVersionRequest {
            key: key.into(),
            version_id: id.clone(),
            update_mask: mask(&["comment"]),
            ..Default::default()
        };
        check(objects.update_object_version(update).await.unwrap_err(), "key");
        let compare = pb::CompareObjectVersionsRequest {
            key: key.into(),
            version_id: id.clone(),
            ..Default::default()
        };
        check(objects.compare_object_versions(compare).await.unwrap_err(), "key");
        let down = pb::DownloadBlobRequest { object: of(key, ""), ..Default::default() };
        check(download(&me, down).await.unwrap_err(), "object.key");
    }
    assert_eq!(head(&me).await, before);
    // What only looks odd is a key like any other.
    for key in [
        "..a",
        "a..",
        "a/...",
        "a//b",
        ".",
        "%",
        "_",
        "a b",
        " ",
        "\u{10FFFF}",
        "日本/é",
        "a\\b",
        "-",
    ] {
        made(&me, put(key, b"one")).await;
        assert_eq!(ok!(me.objects().get_object(get(key))).object.unwrap().key, key);
    }
    let longest = "k".repeat(1024);
    made(&me, put(&longest, b"one")).await;
    ok!(me.objects().delete_object(delete(&longest)));
    world.close().await;
}

#[tokio::test]
async fn content_that_is_none_is_refused_and_nothing_is_kept() {
    let world = World::new().await;
    let me = world.anonymous();
    world.tenant("other").await;
    upload(&me, b"one").await;
    upload(&world.as_tenant("other"), b"theirs").await;
    upload(&me, b"deleted").await;
    ok!(me.blobs().delete_blob(pb::DeleteBlobRequest {
        digest: Some(digest(b"deleted")),
        ..Default::default()
    }));
    upload(&me, b"damaged").await;
    let database = world.superuser().await;
    let damage = "UPDATE casebook.blob SET state = 3 WHERE id = $1";
    let id = crate::blob::hex(&digest(b"damaged").value);
    assert_eq!(database.execute(damage, &[&id]).await.unwrap(), 1);
    let before = head(&me).await;

    type Spoil = fn(&mut pb::PutObjectRequest);
    let spoils: &[(&str, &str, Spoil)] = &[
        ("content", "FIELD_INVALID", |put| put.content = None),
        ("blob.value", "FIELD_INVALID", |put| {
            put.content =
                Some(Content::Blob(pb::Digest { value: vec![1; 31].into(), ..Default::default() }));
        }),
        ("blob.algorithm", "FIELD_INVALID", |put| {
            put.content =
                Some(Content::Blob(pb::Digest { algorithm: "md5".into(), ..digest(b"one") }));
        }),
        ("blob", "FIELD_INVALID", |put| put.content = Some(Content::Blob(digest(b"damaged")))),
        ("content_type", "FIELD_INVALID", |put| put.content_type = "x".repeat(256)),
        ("content_type", "NUL_BYTE", |put| put.content_type = "a\0".into()),
        ("comment", "FIELD_INVALID", |put| put.comment = "x".repeat(4097)),
        ("comment", "NUL_BYTE", |put| put.comment = "\0".into()),
        ("retention_class", "FIELD_INVALID", |put| put.retention_class = "x".repeat(64)),
        ("subject_id", "FIELD_INVALID", |put| put.subject_id = "x".repeat(256)),
        ("tags.k", "FIELD_INVALID", |put| put.tags = labels(&[("k", &"v".repeat(256))])),
        ("metadata", "NUL_BYTE", |put| put.metadata = Some(json(&[("k", "a\0b")]))),
        ("if_none_match", "FIELD_INVALID", |put| {
            put.if_match = "*".into();
            put.if_none_match = true;
        }),
        ("options.on_conflict", "FIELD_INVALID", |put| {
            put.options = on_conflict(pb::OnConflict::Replace);
        }),
        ("external.storage_backend", "FIELD_INVALID", |put| {
            put.content = Some(Content::External(pb::ExternalObject {
                location: "x".into(),
                ..Default::default()
            }));
        }),
        ("external.location", "FIELD_INVALID", |put| {
            put.content = Some(Content::External(pb::ExternalObject {
                storage_backend: "x".into(),
                ..Default::default()
            }));
        }),
        ("external.size_bytes", "FIELD_INVALID", |put| put.content = put_external("k", -1).content),
    ];
    for (field, why, spoil) in spoils {
        let mut given = put("k", b"one");
        spoil(&mut given);
        let status = me.objects().put_object(given).await.expect_err(field);
        assert_eq!(field_of(&status), ((*why).to_owned(), vec![(*field).to_owned()]), "{status:?}");
    }
    for bytes in [b"theirs".as_slice(), b"deleted", b"nobody's"] {
        let status = fails!(me.objects().put_object(put("k", bytes)), NotFound, "NOT_FOUND");
        assert!(status.message().contains("blob"), "{status:?}");
    }
    assert_eq!(head(&me).await, before);
    fails!(me.objects().get_object(get("k")), NotFound, "NOT_FOUND");
    let left = "SELECT (SELECT count(*) FROM casebook.object) + (SELECT count(*) FROM casebook.object_version) \
                + (SELECT count(*) FROM casebook.blob_reference)";
    assert_eq!(database.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0);
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn other_fields_that_are_wrong_are_named() {
    let world = World::new().await;
    let me = world.anonymous();
    upload(&me, b"one").await;
    let id = made(&me, put("k", b"one")).await;
    let mut objects = me.objects();
    let named = |status: tonic::Status| field_of(&status).1;

    let unknown = uuid::Uuid::now_v7().to_string();
    fails!(me.objects().get_object(get_version("k", &unknown)), NotFound, "NOT_FOUND");
    fails!(me.objects().delete_object(delete_version("k", &unknown)), NotFound, "NOT_FOUND");
    fails!(me.objects().delete_object(delete_version("none", &id)), NotFound, "NOT_FOUND");
    fails!(me.objects().rollback_object(rollback("k", &unknown)), NotFound, "NOT_FOUND");
    fails!(me.objects().get_object(get("none")), NotFound, "NOT_FOUND");
    let status = objects.get_object(get_version("k", "a b")).await.unwrap_err();
    assert_eq!(named(status), ["version_id"]);
    let status = objects.rollback_object(rollback("k", "")).await.unwrap_err();
    assert_eq!(named(status), ["version_id"]);
    let status = objects
        .copy_object(pb::CopyObjectRequest { destination_key: "l".into(), ..Default::default() });
    assert_eq!(named(status.await.unwrap_err()), ["source"]);
    let compare = pb::CompareObjectVersionsRequest { key: "k".into(), ..Default::default() };
    assert_eq!(named(objects.compare_object_versions(compare).await.unwrap_err()), ["version_id"]);

    let batch = |keys: Vec<String>| pb::BatchDeleteObjectsRequest { keys, ..Default::default() };
    let status = objects.batch_delete_objects(batch(Vec::new())).await.unwrap_err();
    assert_eq!(named(status), ["keys"]);
    let many = (0..1001).map(|n| format!("k/{n}")).collect();
    let status = objects.batch_delete_objects(batch(many)).await.unwrap_err();
    assert_eq!(named(status), ["keys"]);
    let twice = vec!["k".to_owned(), "l".to_owned(), "k".to_owned()];
    let status = objects.batch_delete_objects(batch(twice)).await.unwrap_err();
    assert_eq!(reason(&status), "DUPLICATE_IN_BATCH");
    assert_eq!(named(status), ["keys[2]"]);

    type Spoil = fn(&mut pb::ListObjectsRequest);
    let spoils: &[(&str, Spoil)] = &[
        ("prefix", |list| list.prefix = "a\0".into()),
        ("prefix", |list| list.prefix = "x".repeat(1025)),
        ("delimiter", |list| list.delimiter = "x".repeat(17)),
        ("delimiter", |list| list.delimiter = "\0".into()),
        ("delimiter", |list| list.delimiter = "\u{10FFFF}\u{10FFFF}".into()),
        ("show_deleted", |list| {
            list.delimiter = "/".into();
            list.show_deleted = true;
        }),
        ("page.order_by", |list| {
            list.delimiter = "/".into();
            list.page = Some(pb::PageRequest { order_by: "key".into(), ..Default::default() });
        }),
        ("page.skip", |list| {
            list.delimiter = "/".into();
            list.page = Some(pb::PageRequest { skip: 1, ..Default::default() });
        }),
        ("page.include_total_size", |list| {
            list.delimiter = "/".into();
            list.page = Some(pb::PageRequest { include_total_size: true, ..Default::default() });
        }),
        ("page.page_size", |list| list.page = page(-1)),
        ("page.page_token", |list| {
            list.page = Some(pb::PageRequest { page_token: "x".into(), ..Default::default() });
        }),
        ("where.expression", |list| list.r#where = expression("nothing = 1")),
        ("read_mask", |list| list.read_mask = mask(&["nothing"])),
    ];
    for (field, spoil) in spoils {
        let mut list = pb::ListObjectsRequest::default();
        spoil(&mut list);
        let status = objects.list_objects(list).await.expect_err(field);
        assert_eq!(named(status), [*field]);
    }
    for (field, search) in [
        ("query", pb::SearchObjectsRequest { query: "x".repeat(4097), ..Default::default() }),
        ("query", pb::SearchObjectsRequest { query: "\0".into(), ..Default::default() }),
        ("limit", pb::SearchObjectsRequest { limit: -1, ..Default::default() }),
        (
            "where.expression",
            pb::SearchObjectsRequest { r#where: expression("x = "), ..Default::default() },
        ),
    ] {
        let status = objects.search_objects(search).await.expect_err(field);
        assert_eq!(named(status), [field]);
    }
    for (field, down) in [
        ("digest", pb::DownloadBlobRequest::default()),
        (
            "object",
            pb::DownloadBlobRequest {
                digest: Some(digest(b"one")),
                object: of("k", ""),
                ..Default::default()
            },
        ),
        (
            "object.version_id",
            pb::DownloadBlobRequest { object: of("k", "/"), ..Default::default() },
        ),
    ] {
        let status = download(&me, down).await.expect_err(field);
        assert_eq!(named(status), [field]);
    }
    world.close().await;
}
