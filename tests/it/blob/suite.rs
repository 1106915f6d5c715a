//! What every store must do, as plain functions over a world. Tenants that they use end in what they are given.

use super::*;
use futures_util::TryStreamExt as _;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _};
use pb::BlobState;
use std::collections::BTreeMap;

/// Everything, in a world whose blobs are encrypted or not.
pub async fn run(world: &World, is_encrypted: bool) {
    one_by_one(world, is_encrypted).await;
    many_at_once(&world.anonymous(), 24).await;
}

/// Everything, on a store that is reached over the network: `store` is what the world has, all of which is under `prefix`.
/// `tells` is whether it tells of an ETag when it takes a blob with so many bytes.
pub async fn run_far(
    world: &World,
    (store, prefix, backend): (&dyn ObjectStore, &str, &str),
    is_encrypted: bool,
    tells: impl Fn(usize) -> bool,
) {
    let me = world.anonymous();
    assert_eq!(health(&me, "casebook.v1.BlobService").await, "SERVING");
    one_by_one(world, is_encrypted).await;
    // A server that is written in Python takes its time.
    many_at_once(&me, 8).await;
    let given = [seal::marked(60, 1000), seal::marked(61, 9 * MIB)];
    for given in &given {
        let blob = upload(&me, given).await.blob.unwrap();
        assert_eq!((blob.storage_backend.as_str(), blob.encrypted), (backend, is_encrypted));
        assert_eq!(!blob.store_etag.is_empty(), tells(given.len()));
    }

    // Every blob has its object, and every object is a blob's.
    let database = world.superuser().await;
    is_settled(&database).await;
    let rows = "SELECT id, store_key, stored_size_bytes FROM casebook.blob WHERE state = 2";
    let rows = database.query(rows, &[]).await.unwrap();
    let key = |row: &tokio_postgres::Row| format!("{prefix}/{}", row.get::<_, String>(1));
    let kept: BTreeMap<String, i64> = rows.iter().map(|row| (key(row), row.get(2))).collect();
    let found: Vec<_> = store.list(None).try_collect().await.unwrap();
    let found: BTreeMap<String, i64> =
        found.into_iter().map(|meta| (meta.location.to_string(), meta.size as i64)).collect();
    assert_eq!(found, kept);
    for given in &given {
        let id = hex(&digest(given).value);
        let row = rows.iter().find(|row| row.get::<_, String>(0) == id).unwrap();
        let object = store.get(&Key::from(key(row))).await.unwrap().bytes().await.unwrap();
        assert_eq!(seal::is_marked(&object), !is_encrypted);
        assert_eq!(object[..] == given[..], !is_encrypted);
    }
}

/// All but what takes many calls at once.
pub async fn one_by_one(world: &World, is_encrypted: bool) {
    let me = world.anonymous();
    what_is_uploaded_comes_back(&me, is_encrypted).await;
    what_is_known_beforehand_is_held_to(&me).await;
    equal_bytes_are_kept_once(&me).await;
    ranges_are_the_bytes_they_name(&me).await;
    small_blobs_are_read_together(&me).await;
    what_is_missing_is_found(&me).await;
    what_is_deleted_is_gone_and_may_come_back(&me).await;
    downloads_stand_in_the_audit_log(&me).await;
    world.tenant("other").await;
    tenants_share_nothing(&me, &world.as_tenant("other")).await;
}

/// Below, at and above a segment and a chunk.
const SIZES: &[usize] = &[0, 1, 65_535, 65_536, 65_537, MIB, MIB + 1, 17 * MIB + 12_345];

pub async fn what_is_uploaded_comes_back(me: &As, is_encrypted: bool) {
    // The first part of what is encrypted is a segment longer.
    let part = if is_encrypted { 8 * MIB + 65_536 } else { 8 * MIB };
    for (n, size) in SIZES.iter().chain(&[part, part + 1]).enumerate() {
        let given = bytes(1000 + n as u64, *size);
        let answer = send(me, messages(&given, |h| h.content_type = "image/png".into())).await;
        let answer = answer.unwrap_or_else(|status| panic!("{size}: {status:?}"));
        assert!(!answer.deduplicated);
        let blob = answer.blob.unwrap();
        assert_eq!(blob.digest, Some(digest(&given)));
        assert_eq!((blob.size_bytes, blob.state()), (*size as i64, BlobState::Ready));
        assert_eq!((blob.content_type.as_str(), blob.encrypted), ("image/png", is_encrypted));
        assert!(answer.receipt.unwrap().audit_seq > 0);
        let (header, found) = download(me, whole(digest(&given))).await.unwrap();
        assert!(found == given, "{size} bytes came back as {}", found.len());
        assert_eq!(header, blob);
        let request = pb::GetBlobRequest { digest: Some(digest(&given)) };
        assert_eq!(ok!(me.blobs().get_blob(request)).blob, Some(blob));
    }
}

pub async fn what_is_known_beforehand_is_held_to(me: &As) {
    for (n, size) in [5, MIB + 7, 9 * MIB].into_iter().enumerate() {
        let given = bytes(1100 + n as u64, size);
        let say = |header: &mut pb::UploadHeader| {
            header.digest = Some(digest(&given));
            header.size_bytes = Some(given.len() as i64);
        };
        // Chunks of any size, which no part of the store ends with.
        let mut all = vec![header(say)];
        all.extend(given.chunks(777_777).map(chunk));
        let answer = send(me, all).await.unwrap();
        assert_eq!(answer.blob.unwrap().digest, Some(digest(&given)));
        let (_, found) = download(me, whole(digest(&given))).await.unwrap();
        assert!(found == given);
    }
}

pub async fn equal_bytes_are_kept_once(me: &As) {
    for (n, size) in [0, 10, 9 * MIB].into_iter().enumerate() {
        let given = bytes(1200 + n as u64, size);
        let first = upload(me, &given).await;
        let again = upload(me, &given).await;
        assert_eq!((first.deduplicated && size > 0, again.deduplicated), (false, true));
        assert_eq!(again.blob, first.blob);
        // Said beforehand, nothing more need be sent.
        let known = header(|header| header.digest = Some(digest(&given)));
        let answer = send(me, vec![known.clone()]).await.unwrap();
        assert!(answer.deduplicated && answer.receipt.is_none());
        // What is sent all the same is no error, not even if it is something else.
        let mut all = vec![known];
        all.extend((0..6).map(|_| chunk(&[0; MIB])));
        assert_eq!(send(me, all).await.unwrap().blob, first.blob);
    }
}

pub async fn ranges_are_the_bytes_they_name(me: &As) {
    let size = 5 * MIB + 321;
    let given = bytes(1300, size);
    upload(me, &given).await;
    let ask = |offset: i64, limit: i64| pb::DownloadBlobRequest {
        offset,
        limit,
        ..whole(digest(&given))
    };
    let at = size as i64;
    for (offset, limit, from, to) in [
        (0, 10, 0, 10),
        (3, 0, 3, size),
        (-7, 0, size - 7, size),
        (-7, 2, size - 7, size - 5),
        (MIB as i64 - 1, 2, MIB - 1, MIB + 1),
        (65_535, 1, 65_535, 65_536),
        (65_536, 65_536, 65_536, 131_072),
        (65_537, 131_072, 65_537, 196_609),
        (1, 4 * MIB as i64, 1, 4 * MIB + 1),
        (at - 1, i64::MAX, size - 1, size),
        (at, 0, size, size),
        (-at, 0, 0, size),
    ] {
        let (_, found) = download(me, ask(offset, limit)).await.unwrap();
        assert!(found == given[from..to], "{offset} {limit}");
    }
    for offset in [at + 1, -at - 1, i64::MAX, i64::MIN] {
        let status = download(me, ask(offset, 0)).await.unwrap_err();
        assert_eq!((status.code(), reason(&status)), (Code::OutOfRange, "WRONG_OFFSET".into()));
        assert_eq!(info(&status)["size_bytes"], size.to_string());
    }
    let status = download(me, ask(0, -1)).await.unwrap_err();
    assert_eq!(crate::world::wrong_fields(&status), ["limit"]);
}

pub async fn small_blobs_are_read_together(me: &As) {
    let (one, two, large) = (bytes(1400, 100_000), bytes(1401, 1_950_000), bytes(1402, 200_000));
    for given in [&one, &two, &large] {
        upload(me, given).await;
    }
    let asked = [&one, &two, &large, &Vec::from(*b"nobody has this"), &one];
    let digests: Vec<_> = asked.iter().map(|bytes| digest(bytes)).collect();
    let items = ok!(me.blobs().read_blobs(pb::ReadBlobsRequest { digests: digests.clone() })).items;
    assert_eq!(items.iter().map(|i| i.digest.clone().unwrap()).collect::<Vec<_>>(), digests);
    assert!(items[0].code == 0 && items[0].data == one);
    assert!(items[1].code == 0 && items[1].data == two);
    assert_eq!((items[2].code, items[2].reason.as_str()), (8, "BLOB_TOO_LARGE"));
    assert_eq!((items[3].code, items[3].reason.as_str()), (5, "NOT_FOUND"));
    // With those before it, it would be more than 2 MiB.
    assert_eq!((items[4].code, items[4].data.len()), (8, 0));
}

pub async fn what_is_missing_is_found(me: &As) {
    let (here, away) = (bytes(1500, 10), bytes(1501, 10));
    upload(me, &here).await;
    let digests = vec![digest(&away), digest(&here), digest(b""), digest(&here)];
    upload(me, b"").await;
    let missing = ok!(me.blobs().find_missing_blobs(pb::FindMissingBlobsRequest { digests }));
    assert_eq!(missing.missing, [digest(&away)]);
}

pub async fn what_is_deleted_is_gone_and_may_come_back(me: &As) {
    for size in [10, 9 * MIB] {
        let given = bytes(1600, size);
        let first = upload(me, &given).await.blob.unwrap();
        let delete = pb::DeleteBlobRequest { digest: Some(digest(&given)), ..Default::default() };
        let stale = pb::DeleteBlobRequest { etag: "\"00000000-9\"".into(), ..delete.clone() };
        fails!(me.blobs().delete_blob(stale), Aborted, "ETAG_MISMATCH");
        let gone = ok!(me.blobs().delete_blob(delete.clone()));
        let gone = gone.blob.unwrap();
        // What lies in the database goes with its row.
        let is_inline = gone.storage_backend == "database";
        let state = if is_inline { BlobState::Erased } else { BlobState::Erasing };
        assert_eq!(gone.state(), state);
        fails!(me.blobs().delete_blob(delete.clone()), NotFound, "NOT_FOUND");
        let absent = pb::DeleteBlobRequest { allow_missing: true, ..delete };
        assert!(ok!(me.blobs().delete_blob(absent)).blob.is_none());
        assert_eq!(download(me, whole(digest(&given))).await.unwrap_err().code(), Code::NotFound);
        let digests = vec![digest(&given)];
        let missing = ok!(me.blobs().find_missing_blobs(pb::FindMissingBlobsRequest { digests }));
        assert_eq!(missing.missing.len(), 1);
        let back = upload(me, &given).await;
        assert!(!back.deduplicated);
        assert_ne!(back.blob.unwrap().meta.unwrap().uid, first.meta.unwrap().uid);
        let (_, found) = download(me, whole(digest(&given))).await.unwrap();
        assert!(found == given);
    }
}

pub async fn downloads_stand_in_the_audit_log(me: &As) {
    let given = bytes(1700, 1000);
    upload(me, &given).await;
    let before = head(me).await;
    let asked = pb::DownloadBlobRequest { offset: 10, limit: 5, ..whole(digest(&given)) };
    download(me, asked).await.unwrap();
    let digests = vec![digest(&given)];
    ok!(me.blobs().read_blobs(pb::ReadBlobsRequest { digests }));
    assert_eq!(head(me).await, before + 2);
    let found = entries(me, 2).await;
    for entry in &found {
        assert_eq!((entry.action.as_str(), entry.kind.as_str()), ("DOWNLOAD", "event"));
        let target = entry.target.as_ref().unwrap();
        assert_eq!(target.kind(), pb::ResourceKind::Blob);
        assert_eq!(target.id, hex(&digest(&given).value));
    }
    assert_eq!(found[0].method, "casebook.v1.BlobService/ReadBlobs");
    assert_eq!(found[1].method, "casebook.v1.BlobService/DownloadBlob");
}

pub async fn tenants_share_nothing(me: &As, other: &As) {
    let given = bytes(1800, 3 * MIB);
    upload(me, &given).await;
    let status = download(other, whole(digest(&given))).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    // Not even that the bytes are there: they must be sent.
    let known = header(|header| header.digest = Some(digest(&given)));
    let status = send(other, vec![known]).await.unwrap_err();
    assert_eq!(reason(&status), "DIGEST_MISMATCH");
    let theirs = upload(other, &given).await;
    assert!(!theirs.deduplicated);
    let delete = pb::DeleteBlobRequest { digest: Some(digest(&given)), ..Default::default() };
    ok!(other.blobs().delete_blob(delete));
    let (_, found) = download(me, whole(digest(&given))).await.unwrap();
    assert!(found == given);
}

/// Uploads, downloads and deletions of few digests at once: every answer is true when it is given.
pub async fn many_at_once(me: &As, callers: u64) {
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..callers {
        let me = me.clone();
        tasks.spawn(async move {
            for round in 0..2u64 {
                let given =
                    bytes(1900 + (n + round) % 5, if n % 6 == 0 { 9 * MIB } else { 50_000 });
                let answer = upload(&me, &given).await;
                assert_eq!(answer.blob.unwrap().digest, Some(digest(&given)));
                if n % 4 == 3 {
                    let digest = Some(digest(&given));
                    let delete =
                        pb::DeleteBlobRequest { digest, allow_missing: true, ..Default::default() };
                    ok!(me.blobs().delete_blob(delete));
                }
                match download(&me, whole(digest(&given))).await {
                    Ok((_, found)) => assert!(found == given),
                    // Deleted by another meanwhile, perhaps while it was read.
                    Err(status) => assert_eq!(status.code(), Code::NotFound, "{status:?}"),
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}
