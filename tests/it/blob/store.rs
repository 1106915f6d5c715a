//! What the store does behind our back, and what is done about it.

use super::*;
use std::time::Duration;

async fn state(me: &As, bytes: &[u8]) -> pb::BlobState {
    let request = pb::GetBlobRequest { digest: Some(digest(bytes)) };
    ok!(me.blobs().get_blob(request)).blob.unwrap().state()
}

/// The only file in the store.
fn only_file(folder: &Path) -> PathBuf {
    let found = files(folder);
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].0.clone()
}

#[tokio::test]
async fn damaged_bytes_are_told_marked_and_healed_by_the_right_ones() {
    type Damage = fn(&Path);
    let damages: &[(&str, Damage)] = &[
        ("one bit", |path| {
            let mut content = std::fs::read(path).unwrap();
            let at = content.len() / 2;
            content[at] ^= 1;
            std::fs::write(path, content).unwrap();
        }),
        ("too short", |path| {
            let content = std::fs::read(path).unwrap();
            std::fs::write(path, &content[..content.len() - 1]).unwrap();
        }),
        ("too long", |path| {
            let mut content = std::fs::read(path).unwrap();
            content.push(0);
            std::fs::write(path, content).unwrap();
        }),
        ("gone", |path| std::fs::remove_file(path).unwrap()),
    ];
    for (what, damage) in damages {
        for size in [1000, 9 * MIB] {
            let (world, folder) = on_disk(&[]).await;
            let me = world.anonymous();
            let given = bytes(8, size);
            upload(&me, &given).await;
            damage(&only_file(folder.path()));
            let status = download(&me, whole(digest(&given))).await.expect_err(what);
            assert_eq!((status.code(), reason(&status)), (Code::DataLoss, "BLOB_CORRUPT".into()));
            assert_eq!(info(&status)["digest"], hex(&digest(&given).value));
            assert_eq!(state(&me, &given).await, pb::BlobState::Corrupt, "{what}");
            assert_eq!(entries(&me, 1).await[0].action, "CORRUPT");
            // It is not read again, and counts as missing.
            let status = download(&me, whole(digest(&given))).await.expect_err(what);
            assert_eq!(reason(&status), "BLOB_CORRUPT");
            let digests = vec![digest(&given)];
            let missing =
                ok!(me.blobs().find_missing_blobs(pb::FindMissingBlobsRequest { digests }));
            assert_eq!(missing.missing.len(), 1);
            let back = upload(&me, &given).await;
            assert!(!back.deduplicated);
            assert_eq!(back.blob.unwrap().meta.unwrap().version, 3);
            let (_, found) = download(&me, whole(digest(&given))).await.unwrap();
            assert!(found == given);
            world.close().await;
        }
    }
}

#[tokio::test]
async fn damaged_small_blobs_fail_alone() {
    let (world, folder) = on_disk(&[]).await;
    let me = world.anonymous();
    upload(&me, b"damaged").await;
    std::fs::write(only_file(folder.path()), b"DAMAGED").unwrap();
    upload(&me, b"sound").await;
    let digests = vec![digest(b"damaged"), digest(b"sound")];
    let items = ok!(me.blobs().read_blobs(pb::ReadBlobsRequest { digests })).items;
    assert_eq!((items[0].code, items[0].reason.as_str()), (15, "BLOB_CORRUPT"));
    assert!(items[0].data.is_empty());
    assert_eq!((items[1].code, &items[1].data[..]), (0, &b"sound"[..]));
    assert_eq!(state(&me, b"damaged").await, pb::BlobState::Corrupt);
    world.close().await;
}

#[tokio::test]
async fn a_blob_that_something_refers_to_stays() {
    let world = World::new().await;
    let me = world.anonymous();
    let blob = upload(&me, b"referred to").await.blob.unwrap();
    let database = world.superuser().await;
    let uid: uuid::Uuid = blob.meta.unwrap().uid.parse().unwrap();
    let refer = "INSERT INTO casebook.blob_reference (tenant_id, blob_uid, kind, ref_uid) \
                 VALUES ('default', $1, 'attachment', gen_random_uuid())";
    database.execute(refer, &[&uid]).await.unwrap();
    let get = pb::GetBlobRequest { digest: Some(digest(b"referred to")) };
    assert_eq!(ok!(me.blobs().get_blob(get.clone())).blob.unwrap().reference_count, 1);
    let delete = pb::DeleteBlobRequest { digest: get.digest.clone(), ..Default::default() };
    let status = fails!(me.blobs().delete_blob(delete.clone()), FailedPrecondition, "REFERENCED");
    assert_eq!(info(&status)["kind"], "attachment");
    let (_, found) = download(&me, whole(digest(b"referred to"))).await.unwrap();
    assert_eq!(found, b"referred to");
    database.execute("DELETE FROM casebook.blob_reference", &[]).await.unwrap();
    ok!(me.blobs().delete_blob(delete));
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn a_blob_on_hold_stays() {
    let world = World::new().await;
    let me = world.anonymous();
    upload(&me, b"held").await;
    let id = hex(&digest(b"held").value);
    let hold = pb::LegalHold {
        reason: "a case".into(),
        refs: vec![reference(pb::ResourceKind::Blob, &id, 0)],
        ..Default::default()
    };
    let request = pb::CreateLegalHoldRequest { legal_hold: Some(hold), ..Default::default() };
    ok!(me.retention().create_legal_hold(request));
    let delete = pb::DeleteBlobRequest { digest: Some(digest(b"held")), ..Default::default() };
    fails!(me.blobs().delete_blob(delete), FailedPrecondition, "ON_HOLD");
    world.close().await;
}

#[tokio::test]
async fn a_rehearsed_deletion_deletes_nothing() {
    let (world, folder) = on_disk(&[]).await;
    let me = world.anonymous();
    upload(&me, b"stays").await;
    let options = Some(pb::WriteOptions { validate_only: true, ..Default::default() });
    let delete =
        pb::DeleteBlobRequest { digest: Some(digest(b"stays")), options, ..Default::default() };
    ok!(me.blobs().delete_blob(delete.clone()));
    assert_eq!(std::fs::read(only_file(folder.path())).unwrap(), b"stays");
    let once = pb::DeleteBlobRequest { options: Some(request("r")), ..delete };
    let first = ok!(me.blobs().delete_blob(once.clone()));
    // A new blob of the same digest is not what the repeated call deleted.
    upload(&me, b"stays").await;
    let again = ok!(me.blobs().delete_blob(once));
    assert!(again.receipt.unwrap().replayed);
    assert_eq!(again.blob, first.blob);
    let (_, found) = download(&me, whole(digest(b"stays"))).await.unwrap();
    assert_eq!(found, b"stays");
    world.close().await;
}

/// As after a crash: an intent whose server is gone, with bytes and without.
#[tokio::test]
async fn what_a_crash_left_is_removed_by_any_server_once() {
    let (world, folder) = on_disk(&[("blob_reap_interval_ms", "0")]).await;
    let me = world.anonymous();
    upload(&me, b"stays").await;
    let database = world.superuser().await;
    for n in 0..40 {
        let key = format!("t/left/sha256/ab/{n}");
        let path = folder.path().join(&key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        match n % 3 {
            0 => std::fs::write(&path, b"left").unwrap(),
            1 => std::fs::write(path.with_file_name(format!("{n}#1")), b"half").unwrap(),
            _ => {}
        }
        let intend = "INSERT INTO casebook.blob_intent (tenant_id, uid, store_key, state, due_time) \
                      VALUES ('default', gen_random_uuid(), $1, 1, now() + $2 * interval '1 ms')";
        database.execute(intend, &[&key, &(f64::from(n) * 20.0)]).await.unwrap();
    }
    let url = crate::world::url_of(&crate::world::config_of(&world.database).await);
    let store = format!("file://{}", folder.path().display());
    let settings = [("blob_store_url", store.as_str()), ("blob_reap_interval_ms", "50")];
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(World::on(&world.database, &url, &settings).await);
    }
    is_settled(&database).await;
    is_consistent(&database, folder.path()).await;
    assert_eq!(files(folder.path()).len(), 1);
    for mut other in others {
        other.stop().await;
    }
    drop(database);
    world.close().await;
}

/// The reaper took the bytes of an upload that lasted too long: the upload must not make a blob of them.
#[tokio::test]
async fn an_upload_that_outlasts_its_intent_fails() {
    let settings = [("blob_upload_keep_ms", "100"), ("blob_reap_interval_ms", "20")];
    let (world, folder) = on_disk(&settings).await;
    let me = world.anonymous();
    let database = world.superuser().await;
    let given = bytes(9, 10 * MIB);
    let slow =
        futures_util::stream::unfold(messages(&given, |_| {}).into_iter(), |mut left| async {
            let message = left.next()?;
            tokio::time::sleep(Duration::from_millis(if left.len() < 2 { 600 } else { 1 })).await;
            Some((message, left))
        });
    let mut client = me.blobs();
    let status = client.upload_blob(slow).await.unwrap_err();
    // Or the store finds the parts gone first.
    let code = status.code();
    assert!(matches!(code, Code::DeadlineExceeded | Code::Unavailable), "{status:?}");
    let request = pb::GetBlobRequest { digest: Some(digest(&given)) };
    fails!(me.blobs().get_blob(request), NotFound, "NOT_FOUND");
    is_settled(&database).await;
    is_consistent(&database, folder.path()).await;
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn blobs_of_another_kind_of_store_are_not_taken_for_lost() {
    let (world, folder) = on_disk(&[]).await;
    upload(&world.anonymous(), b"on disk").await;
    let url = crate::world::url_of(&crate::world::config_of(&world.database).await);
    let mut other = World::on(&world.database, &url, &[]).await;
    let status = download(&other.anonymous(), whole(digest(b"on disk"))).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::FailedPrecondition, "NOT_CONFIGURED".into())
    );
    assert_eq!(state(&other.anonymous(), b"on disk").await, pb::BlobState::Ready);
    other.stop().await;
    assert_eq!(files(folder.path()).len(), 1);
    world.close().await;
}

#[tokio::test]
async fn files_are_private_and_named_by_tenant_and_digest() {
    use std::os::unix::fs::PermissionsExt as _;
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("made/here");
    let url = format!("file://{}", folder.display());
    let world = World::with(&[("blob_store_url", &url)]).await;
    upload(&world.anonymous(), b"named").await;
    assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    let path = only_file(&folder);
    let key =
        path.strip_prefix(folder.canonicalize().unwrap()).or(path.strip_prefix(&folder)).unwrap();
    let hex = hex(&digest(b"named").value);
    let parts: Vec<_> = key.iter().map(|part| part.to_str().unwrap()).collect();
    assert_eq!((parts[0], parts[2], parts[3], parts.len()), ("t", "sha256", &hex[..2], 5));
    assert!(parts[4].starts_with(&format!("{hex}.")), "{key:?}");
    assert!(!key.to_str().unwrap().contains("default"), "the tenant's name is not told");
    world.close().await;
}
