//! Blobs that are encrypted: what the store gets, with which keys it opens, and what is damage and what a missing key.

use super::*;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

/// Keys as a file of them has them.
pub const OLD: &str = "old:qrvM3e7/ABEiM0RVZneImaq7zN3u/wARIjNEVWZ3iJk=";
pub const NEW: &str = "new:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
/// Another key under the id of the old one.
const FALSE: &str = "old:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
/// What no ciphertext has in it.
const MARK: &[u8] = b"THE-BRIDGE-WAS-CLOSED-AT-NOON";

/// Bytes with the mark in their beginning, in their middle and at their end.
pub fn marked(seed: u64, len: usize) -> Vec<u8> {
    let mut all = bytes(seed, len);
    for at in [0, len / 2, len - MARK.len()] {
        all[at..at + MARK.len()].copy_from_slice(MARK);
    }
    all
}

pub fn is_marked(stored: &[u8]) -> bool {
    stored.windows(MARK.len()).any(|window| window == MARK)
}

/// A further server over the world's database and folder, with these settings.
pub async fn server(world: &World, folder: &Path, settings: crate::world::Settings<'_>) -> World {
    let url = crate::world::url_of(&crate::world::config_of(&world.database).await);
    let store = format!("file://{}", folder.display());
    let mut all = vec![("blob_store_url", store.as_str())];
    all.extend(settings);
    World::on(&world.database, &url, &all).await
}

pub async fn state(me: &As, bytes: &[u8]) -> pb::BlobState {
    let request = pb::GetBlobRequest { digest: Some(digest(bytes)) };
    ok!(me.blobs().get_blob(request)).blob.unwrap().state()
}

pub async fn comes_back(me: &As, given: &[u8]) {
    let (_, found) = download(me, whole(digest(given))).await.unwrap();
    assert!(found == given, "{} bytes came back as {}", given.len(), found.len());
    if given.len() < 2 * MIB {
        let digests = vec![digest(given)];
        let items = ok!(me.blobs().read_blobs(pb::ReadBlobsRequest { digests })).items;
        assert!(items[0].code == 0 && items[0].data == given, "{}", items[0].message);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_passes_encrypted_in_memory() {
    let world = World::with(&[("blob_key", OLD)]).await;
    suite::run(&world, true).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_passes_encrypted_on_a_local_disk() {
    let (world, folder) = on_disk(&[("blob_key", OLD)]).await;
    suite::run(&world, true).await;
    let database = world.superuser().await;
    is_settled(&database).await;
    is_consistent(&database, folder.path()).await;
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn the_store_has_no_plaintext_of_what_is_encrypted() {
    for (is_encrypted, settings) in [(false, &[][..]), (true, &[("blob_key", OLD)][..])] {
        let (world, folder) = on_disk(settings).await;
        let me = world.anonymous();
        for (seed, size) in [(20, 1000), (21, 200_000), (22, 9 * MIB)] {
            let given = marked(seed, size);
            assert_eq!(upload(&me, &given).await.blob.unwrap().encrypted, is_encrypted);
            comes_back(&me, &given).await;
        }
        let found = files(folder.path());
        assert_eq!(found.len(), 3);
        for (path, stored) in found {
            assert_eq!(is_marked(&stored), !is_encrypted, "{}", path.display());
        }
        world.close().await;
    }
}

#[tokio::test]
async fn keys_are_changed_and_old_blobs_still_open() {
    let keys = tempfile::tempdir().unwrap();
    let path = keys.path().join("keys");
    let write = |text: &str| {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    };
    let named = [("blob_key_file", path.to_str().unwrap())];
    let (plain, old, large, new) =
        (marked(30, 1000), marked(31, 1000), marked(32, 9 * MIB), marked(33, 1000));

    // Before there was a key.
    let (world, folder) = on_disk(&[]).await;
    upload(&world.anonymous(), &plain).await;
    write(OLD);
    let mut first = server(&world, folder.path(), &named).await;
    for given in [&old, &large] {
        assert!(upload(&first.anonymous(), given).await.blob.unwrap().encrypted);
    }
    comes_back(&first.anonymous(), &plain).await;
    // Known bytes stay as they are.
    let again = upload(&first.anonymous(), &plain).await;
    assert!(again.deduplicated && !again.blob.unwrap().encrypted);
    first.stop().await;

    // The new key wraps, and the old one still unwraps.
    write(&format!("{NEW}\n{OLD}\n"));
    let mut second = server(&world, folder.path(), &named).await;
    let me = second.anonymous();
    upload(&me, &new).await;
    for given in [&plain, &old, &large, &new] {
        comes_back(&me, given).await;
    }
    let database = world.superuser().await;
    let ids = "SELECT id, key_id FROM casebook.blob";
    let ids = database.query(ids, &[]).await.unwrap();
    let key_of = |given: &[u8]| {
        let id = hex(&digest(given).value);
        ids.iter().find(|row| row.get::<_, String>(0) == id).unwrap().get::<_, String>(1)
    };
    assert_eq!([&plain, &old, &large, &new].map(|given| key_of(given)), ["", "old", "old", "new"]);
    second.stop().await;

    // A key that is missing, false, or all of them: nothing is marked, and it opens when the key is back.
    write(NEW);
    let missing = [named, [("blob_key", FALSE)], [("batch_max", "7")]];
    for settings in missing {
        let mut other = server(&world, folder.path(), &settings).await;
        let me = other.anonymous();
        for given in [&old, &large] {
            let status = download(&me, whole(digest(given))).await.unwrap_err();
            assert_eq!(
                (status.code(), reason(&status)),
                (Code::FailedPrecondition, "NOT_CONFIGURED".into())
            );
            assert_eq!(info(&status)["setting"], "blob_key_file");
            assert!(status.message().contains("\"old\""), "{status:?}");
            assert_eq!(state(&me, given).await, pb::BlobState::Ready);
        }
        let digests = vec![digest(&old), digest(&plain)];
        let items = ok!(me.blobs().read_blobs(pb::ReadBlobsRequest { digests })).items;
        assert_eq!((items[0].code, items[0].reason.as_str()), (9, "NOT_CONFIGURED"));
        assert!(items[0].data.is_empty() && items[1].data == plain);
        other.stop().await;
    }
    write(&format!("{NEW}\n{OLD}\n"));
    let mut last = server(&world, folder.path(), &named).await;
    for given in [&plain, &old, &large, &new] {
        comes_back(&last.anonymous(), given).await;
    }
    last.stop().await;
    drop(database);
    world.close().await;
}

/// Changes one bit of the stored bytes.
fn flip(path: &Path, at: usize) {
    let mut content = std::fs::read(path).unwrap();
    content[at] ^= 1;
    std::fs::write(path, content).unwrap();
}

#[tokio::test]
async fn a_damaged_segment_is_told_marked_and_healed() {
    let (world, folder) = on_disk(&[("blob_key", OLD)]).await;
    let me = world.anonymous();
    let given = bytes(40, 3 * MIB);
    upload(&me, &given).await;
    let path = files(folder.path())[0].0.clone();
    // In the segment with the blob's byte 1,000,000, whose number is 15.
    flip(&path, 72 + 15 * 65_552 + 20_000);
    let ask = |offset: i64, limit: i64| {
        download(&me, pb::DownloadBlobRequest { offset, limit, ..whole(digest(&given)) })
    };
    for (from, to) in [(0, 15 * 65_536), (16 * 65_536, 3 * MIB)] {
        let (_, found) = ask(from as i64, (to - from) as i64).await.unwrap();
        assert!(found == given[from..to], "segments beside it open");
    }
    let status = ask(1_000_000, 1).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::DataLoss, "BLOB_CORRUPT".into()));
    assert_eq!(info(&status)["digest"], hex(&digest(&given).value));
    assert_eq!(state(&me, &given).await, pb::BlobState::Corrupt);
    assert!(!upload(&me, &given).await.deduplicated);
    comes_back(&me, &given).await;
    world.close().await;
}

/// Rows that say something else than what the store has: another blob's key or beginning.
#[tokio::test]
async fn a_row_cannot_borrow_the_key_of_another() {
    let swap = |columns: &str| {
        format!(
            "UPDATE casebook.blob AS b SET ({columns}) = (SELECT {columns} FROM casebook.blob AS o \
             WHERE o.id = $1) WHERE b.id = $2"
        )
    };
    for columns in ["wrapped_key, seal_header", "seal_header, store_etag"] {
        let (world, _folder) = on_disk(&[("blob_key", OLD)]).await;
        let me = world.anonymous();
        let (one, two) = (bytes(50, 1000), bytes(51, 1000));
        upload(&me, &one).await;
        upload(&me, &two).await;
        let database = world.superuser().await;
        let ids = [&one, &two].map(|given| hex(&digest(given).value));
        database.execute(&swap(columns), &[&ids[0], &ids[1]]).await.unwrap();
        let status = download(&me, whole(digest(&two))).await.unwrap_err();
        assert_eq!(reason(&status), "BLOB_CORRUPT", "{columns}: {status:?}");
        assert_eq!(state(&me, &two).await, pb::BlobState::Corrupt);
        comes_back(&me, &one).await;
        assert!(!upload(&me, &two).await.deduplicated);
        comes_back(&me, &two).await;
        drop(database);
        world.close().await;
    }
}

#[tokio::test]
async fn a_repeated_upload_of_an_encrypted_blob_gets_the_first_answer() {
    let world = World::with(&[("blob_key", OLD)]).await;
    let me = world.anonymous();
    let once = |header: &mut pb::UploadHeader| header.options = Some(request("r-1"));
    let first = send(&me, messages(b"once", once)).await.unwrap();
    let delete = pb::DeleteBlobRequest { digest: Some(digest(b"once")), ..Default::default() };
    ok!(me.blobs().delete_blob(delete));
    let again = send(&me, messages(b"once", once)).await.unwrap();
    assert!(again.receipt.as_ref().unwrap().replayed, "{again:?}");
    assert!(again.blob == first.blob && first.blob.unwrap().encrypted);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_encrypted_streams_share_few_bytes() {
    let (world, _folder) = on_disk(&super::bad::few_bytes(&[("blob_key", OLD)])).await;
    super::bad::few_bytes_are_shared(world, 12).await;
}
