//! Small blobs, whose bytes lie in the database: everything holds of them that holds of those in a store.

use super::killed::{Killed, until};
use super::seal::{NEW, OLD, comes_back, is_marked, marked, server, state};
use super::verify::{id, looking, problems, reading, verify};
use super::*;
use crate::evidence::{decide, other};
use crate::process::long_tests;
use crate::world::through;
use pb::BlobProblem as Problem;
use std::time::Duration;

const MAX: usize = 16 << 10;

/// The settings of a server that keeps blobs up to [`MAX`] in the database, as one does by default.
const INLINE: (&str, &str) = ("blob_inline_max_bytes", "16384");

/// What lies in the database: the digest and the bytes of each.
async fn contents(world: &World) -> Vec<(String, Vec<u8>)> {
    let all = "SELECT b.id, c.bytes FROM casebook.blob_content AS c \
               LEFT JOIN casebook.blob AS b ON b.tenant_id = c.tenant_id AND b.uid = c.blob_uid ORDER BY c.blob_uid";
    let rows = world.superuser().await.query(all, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn get(me: &As, given: &[u8]) -> pb::Blob {
    let request = pb::GetBlobRequest { digest: Some(digest(given)) };
    ok!(me.blobs().get_blob(request)).blob.unwrap()
}

fn delete_of(given: &[u8]) -> pb::DeleteBlobRequest {
    pb::DeleteBlobRequest { digest: Some(digest(given)), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_passes_in_the_database() {
    for is_encrypted in [false, true] {
        let mut settings = vec![("blob_inline_max_bytes", "262144")];
        settings.extend(is_encrypted.then_some(("blob_key", OLD)));
        let (world, folder) = on_disk(&settings).await;
        suite::run(&world, is_encrypted).await;
        let database = world.superuser().await;
        is_settled(&database).await;
        is_consistent(&database, folder.path()).await;
        assert!(contents(&world).await.len() > 10);
        drop(database);
        world.close().await;
    }
}

#[tokio::test]
async fn what_is_small_lies_in_the_database_and_what_is_not_in_the_store() {
    for is_encrypted in [false, true] {
        let mut settings = vec![INLINE];
        settings.extend(is_encrypted.then_some(("blob_key", OLD)));
        let (world, folder) = on_disk(&settings).await;
        let me = world.anonymous();
        let small = [Vec::new(), b"x".to_vec(), marked(700, 4096), marked(701, MAX)];
        for given in &small {
            let answer = upload(&me, given).await;
            assert!(!answer.deduplicated);
            let blob = answer.blob.unwrap();
            assert_eq!((blob.storage_backend.as_str(), blob.encrypted), ("database", is_encrypted));
            comes_back(&me, given).await;
            assert_eq!(entries(&me, 20).await.iter().filter(|e| e.action == "CREATE").count(), {
                small.iter().position(|one| one == given).unwrap() + 1
            });
        }
        assert!(files(folder.path()).is_empty());
        let found = contents(&world).await;
        assert_eq!(found.len(), small.len());
        for ((id, stored), given) in found.iter().zip(&small) {
            assert_eq!(*id, hex(&digest(given).value));
            assert_eq!(stored == given, !is_encrypted);
            assert_eq!(is_marked(stored), !is_encrypted && given.len() > 1);
        }

        let large = marked(702, MAX + 1);
        let blob = upload(&me, &large).await.blob.unwrap();
        assert_eq!(blob.storage_backend, "local");
        assert_eq!((contents(&world).await.len(), files(folder.path()).len()), (4, 1));
        let digests = small.iter().chain([&large]).map(|given| digest(given)).collect();
        let items = ok!(me.blobs().read_blobs(pb::ReadBlobsRequest { digests })).items;
        assert!(items.iter().zip(small.iter().chain([&large])).all(|(i, given)| i.data == *given));
        world.close().await;
    }
}

#[tokio::test]
async fn what_was_said_is_held_to_and_nothing_stays_of_what_is_refused() {
    let (world, folder) = on_disk(&[INLINE]).await;
    let me = world.anonymous();
    let given = bytes(710, 1000);
    let say = |size: Option<i64>, of: &[u8]| {
        let digest = digest(of);
        header(|header| (header.digest, header.size_bytes) = (Some(digest), size))
    };
    for (first, reason) in [
        (say(None, b"other bytes"), "DIGEST_MISMATCH"),
        (say(Some(1000), b"other bytes"), "DIGEST_MISMATCH"),
        (say(Some(999), &given), "SIZE_MISMATCH"),
        (say(Some(1001), &given), "SIZE_MISMATCH"),
    ] {
        let status = send(&me, vec![first, chunk(&given)]).await.unwrap_err();
        assert_eq!(
            (status.code(), crate::world::reason(&status).as_str()),
            (Code::InvalidArgument, reason)
        );
    }
    let status = send(&me, vec![say(Some(1000), &given)]).await.unwrap_err();
    assert_eq!(reason(&status), "SIZE_MISMATCH");
    assert!(contents(&world).await.is_empty() && files(folder.path()).is_empty());
    assert_eq!(head(&me).await, 0);

    upload(&me, &given).await;
    let before = head(&me).await;
    // It need not be sent again; what is sent is looked at.
    for first in [say(None, &given), say(Some(1000), &given)] {
        let answer = send(&me, vec![first.clone()]).await.unwrap();
        assert!(answer.deduplicated);
        let answer = send(&me, vec![first, chunk(&given)]).await.unwrap();
        assert!(answer.deduplicated);
    }
    // Whoever waits for the answer before it sends anything gets one.
    let (sender, received) = tokio::sync::mpsc::channel(1);
    sender.send(say(Some(1000), &given)).await.unwrap();
    let waiting = tokio_stream::wrappers::ReceiverStream::new(received);
    let answer = ok!(me.blobs().upload_blob(waiting));
    assert!(answer.deduplicated);
    drop(sender);
    let all = vec![say(Some(1000), &given), chunk(&bytes(711, 1000))];
    let status = send(&me, all).await.unwrap_err();
    assert_eq!(reason(&status), "DIGEST_MISMATCH");
    assert_eq!((head(&me).await, contents(&world).await.len()), (before, 1));

    // A repeated call has its first answer.
    let given = bytes(712, 1000);
    let id = request("small");
    let all = messages(&given, |header| header.options = Some(id.clone()));
    let first = send(&me, all.clone()).await.unwrap();
    let again = send(&me, all).await.unwrap();
    assert!(again.receipt.unwrap().replayed && again.blob == first.blob);
    assert_eq!(contents(&world).await.len(), 2);
    world.close().await;
}

#[tokio::test]
async fn a_deletion_takes_the_bytes_with_it_at_once() {
    let (world, folder) = on_disk(&[INLINE]).await;
    let me = world.anonymous();
    let (given, kept) = (bytes(720, 1000), bytes(721, 1000));
    upload(&me, &given).await;
    upload(&me, &kept).await;
    let answer = ok!(me.blobs().delete_blob(delete_of(&given)));
    assert_eq!(answer.blob.unwrap().state(), pb::BlobState::Erased);
    let left: Vec<String> = contents(&world).await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(left, [id(&kept)]);
    let last: Vec<_> = entries(&me, 2).await.into_iter().map(|entry| entry.action).collect();
    assert_eq!(last, ["DELETE", "CREATE"]);
    fails!(me.blobs().delete_blob(delete_of(&given)), NotFound, "NOT_FOUND");
    // It may come back.
    assert!(!upload(&me, &given).await.deduplicated);
    comes_back(&me, &given).await;

    // With what refers to it, too.
    decide(&me, "d").await;
    ok!(me.evidence().create_evidence_bundle(other("", "d", "mine")));
    assert_eq!(contents(&world).await.len(), 3);
    fails!(
        me.blobs().delete_blob(delete_of_bundle(&world).await),
        FailedPrecondition,
        "REFERENCED"
    );
    ok!(me.decisions().delete_decision(delete("d")));
    let purge = pb::PurgeResourcesRequest {
        kind: pb::ResourceKind::Decision.into(),
        older_than: Some(prost_types::Duration::default()),
        max_resources: 10,
        ..Default::default()
    };
    ok!(me.retention().purge_resources(purge));
    assert_eq!(contents(&world).await.len(), 2);
    let database = world.superuser().await;
    is_consistent(&database, folder.path()).await;
    let intents = "SELECT count(*) FROM casebook.blob_intent";
    assert_eq!(database.query_one(intents, &[]).await.unwrap().get::<_, i64>(0), 0);
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn a_small_upload_under_a_key_is_the_object_with_its_bytes() {
    let (world, folder) = on_disk(&[INLINE]).await;
    let me = world.anonymous();
    let given = [bytes(725, 1000), bytes(726, 2000)];
    let under = |key: &str| {
        let object = pb::PutObjectRequest { key: key.into(), ..Default::default() };
        move |header: &mut pb::UploadHeader| header.object = Some(object)
    };
    for given in &given {
        let answer = send(&me, messages(given, under("notes/one"))).await.unwrap();
        assert_eq!(answer.object.unwrap().storage_backend, "database");
        let object = pb::ObjectVersionRef { key: "notes/one".into(), ..Default::default() };
        let request = pb::DownloadBlobRequest { object: Some(object), ..Default::default() };
        assert!(download(&me, request).await.unwrap().1 == *given);
    }
    // What its key refuses is not kept either.
    let new = |header: &mut pb::UploadHeader| {
        under("notes/one")(header);
        header.object.as_mut().unwrap().if_none_match = true;
    };
    let status = send(&me, messages(&bytes(727, 1000), new)).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
    assert_eq!(contents(&world).await.len(), 2);
    is_consistent(&world.superuser().await, folder.path()).await;
    world.close().await;
}

/// The deletion of the blob that something refers to.
async fn delete_of_bundle(world: &World) -> pb::DeleteBlobRequest {
    let id = "SELECT b.id FROM casebook.blob_reference AS r JOIN casebook.blob AS b ON b.uid = r.blob_uid";
    let id: String = world.superuser().await.query_one(id, &[]).await.unwrap().get(0);
    let found = contents(world).await.into_iter().find(|(of, _)| *of == id);
    delete_of(&found.expect("its bytes").1)
}

#[tokio::test]
async fn damage_is_told_marked_found_and_healed() {
    let damages = [
        (
            "UPDATE casebook.blob_content SET bytes = set_byte(bytes, 500, get_byte(bytes, 500) # 1)",
            Problem::DigestMismatch,
        ),
        ("UPDATE casebook.blob_content SET bytes = substr(bytes, 2)", Problem::SizeMismatch),
        ("UPDATE casebook.blob_content SET bytes = bytes || '\\x00'::bytea", Problem::SizeMismatch),
        ("DELETE FROM casebook.blob_content", Problem::MissingBytes),
    ];
    for is_encrypted in [false, true] {
        for (damage, problem) in damages {
            let mut settings = vec![INLINE];
            settings.extend(is_encrypted.then_some(("blob_key", OLD)));
            let (world, _folder) = on_disk(&settings).await;
            let me = world.anonymous();
            let given = bytes(730, 1000);
            upload(&me, &given).await;
            assert!(verify(&me, reading()).await.0.is_empty());
            let database = world.superuser().await;
            database.execute(damage, &[]).await.unwrap();

            // Reading them tells; verifying does, too, at once unless they have the right length.
            let status = download(&me, whole(digest(&given))).await.expect_err(damage);
            assert_eq!((status.code(), reason(&status)), (Code::DataLoss, "BLOB_CORRUPT".into()));
            assert_eq!(state(&me, &given).await, pb::BlobState::Corrupt);
            let (found, _) = verify(&me, looking()).await;
            assert_eq!(problems(&found), [(problem, id(&given))], "{damage}");
            let healed = upload(&me, &given).await;
            assert!(!healed.deduplicated && healed.blob.unwrap().storage_backend == "database");
            comes_back(&me, &given).await;
            assert!(verify(&me, reading()).await.0.is_empty());

            // Nobody has read it this time.
            database.execute(damage, &[]).await.unwrap();
            let digests = vec![digest(&given)];
            let items = ok!(me.blobs().read_blobs(pb::ReadBlobsRequest { digests })).items;
            assert_eq!((items[0].code, items[0].data.len()), (15, 0));
            upload(&me, &given).await;
            database.execute(damage, &[]).await.unwrap();
            assert_eq!(problems(&verify(&me, reading()).await.0), [(problem, id(&given))]);
            assert_eq!(state(&me, &given).await, pb::BlobState::Corrupt);
            drop(database);
            world.close().await;
        }
    }
}

#[tokio::test]
async fn the_scrubber_reads_what_lies_in_the_database() {
    let (world, folder) = on_disk(&[INLINE, ("blob_scrub_period_ms", "0")]).await;
    let me = world.anonymous();
    let (damaged, sound) = (bytes(735, 1000), bytes(736, 1000));
    upload(&me, &damaged).await;
    let damage =
        "UPDATE casebook.blob_content SET bytes = set_byte(bytes, 5, get_byte(bytes, 5) # 1)";
    world.superuser().await.execute(damage, &[]).await.unwrap();
    upload(&me, &sound).await;
    let settings = [("blob_scrub_period_ms", "1"), ("blob_scrub_per_second_bytes", "1073741824")];
    let mut scrubbing = server(&world, folder.path(), &settings).await;
    until("it is found", async || state(&me, &damaged).await == pb::BlobState::Corrupt).await;
    until("it is read", async || get(&me, &sound).await.verify_time.is_some()).await;
    assert_eq!(state(&me, &sound).await, pb::BlobState::Ready);
    scrubbing.stop().await;
    world.close().await;
}

#[tokio::test]
async fn a_limit_may_change_and_blobs_stay_where_they_are_until_they_are_healed() {
    let (world, folder) = on_disk(&[INLINE]).await;
    let mut without = server(&world, folder.path(), &[]).await;
    let (me, elsewhere) = (world.anonymous(), without.anonymous());
    let (inline, stored) = (bytes(740, 1000), bytes(741, 1000));
    upload(&me, &inline).await;
    upload(&elsewhere, &stored).await;
    let backends = async || {
        let one = get(&me, &inline).await.storage_backend;
        (one, get(&elsewhere, &stored).await.storage_backend)
    };
    assert_eq!(backends().await, ("database".into(), "local".into()));
    for (who, given) in [(&elsewhere, &inline), (&me, &stored)] {
        assert!(upload(who, given).await.deduplicated);
        comes_back(who, given).await;
    }
    assert_eq!(backends().await, ("database".into(), "local".into()));

    // Whoever brings the right bytes of what is damaged brings them where it keeps its own.
    let database = world.superuser().await;
    database.execute("UPDATE casebook.blob_content SET bytes = '\\x00'", &[]).await.unwrap();
    std::fs::write(&files(folder.path())[0].0, b"damaged").unwrap();
    for (who, given) in [(&elsewhere, &inline), (&me, &stored)] {
        download(who, whole(digest(given))).await.unwrap_err();
        assert!(!upload(who, given).await.deduplicated);
        comes_back(who, given).await;
    }
    assert_eq!(backends().await, ("local".into(), "database".into()));
    database.execute("UPDATE casebook.blob_intent SET due_time = now()", &[]).await.unwrap();
    let mut reaping = server(&world, folder.path(), &[("blob_reap_interval_ms", "20")]).await;
    is_settled(&database).await;
    is_consistent(&database, folder.path()).await;
    assert_eq!((contents(&world).await.len(), files(folder.path()).len()), (1, 1));
    drop(database);
    reaping.stop().await;
    without.stop().await;
    world.close().await;
}

#[tokio::test]
async fn keys_are_rotated_of_what_lies_in_the_database() {
    let (world, folder) = on_disk(&[INLINE, ("blob_key", OLD)]).await;
    let given = marked(750, 4096);
    upload(&world.anonymous(), &given).await;
    let before = contents(&world).await;
    let url = crate::world::url_of(&crate::world::config_of(&world.database).await);
    let keys = format!("{NEW},{OLD}");
    let (code, said) = super::rotate::rotate(&url, &keys);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("1 blobs are wrapped by the first key now"), "{said}");
    assert!(contents(&world).await == before);
    let mut new = server(&world, folder.path(), &[("blob_key", NEW)]).await;
    comes_back(&new.anonymous(), &given).await;
    new.stop().await;
    world.close().await;
}

#[tokio::test]
async fn without_a_store_that_signs_they_stay_where_they_are() {
    let (world, _folder) = on_disk(&[INLINE]).await;
    let me = world.anonymous();
    upload(&me, b"mine").await;
    let ask = pb::CreateDownloadUrlRequest { digest: Some(digest(b"mine")), ..Default::default() };
    let status = fails!(me.blobs().create_download_url(ask), FailedPrecondition, "NOT_SIGNABLE");
    assert_eq!(info(&status)["storage_backend"], "local");
    assert_eq!(get(&me, b"mine").await.storage_backend, "database");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_step_leaves_the_row_and_the_bytes_or_neither() {
    let mut world = Killed::start().await;
    world.inline_max = MAX;
    let mut given = Vec::new();
    for (n, step) in [
        ("INSERT", "blob", "true"),
        ("INSERT", "blob_content", "true"),
        ("INSERT", "log", "NEW.action = 'CREATE'"),
        ("DELETE", "blob_content", "true"),
        ("INSERT", "log", "NEW.action = 'DELETE'"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut server = world.serve("0");
        let me = through(server.connect().await);
        let one = bytes(760 + n as u64, 1000);
        let is_deletion = n > 2;
        if is_deletion {
            upload(&me, &one).await;
        }
        let sent = one.clone();
        let call = async move {
            match is_deletion {
                true => me.blobs().delete_blob(delete_of(&sent)).await.is_ok(),
                false => send(&me, messages(&sent, |_| {})).await.is_ok(),
            }
        };
        assert!(!world.kill_at(&mut server, step, call).await, "{step:?}");
        given.push((one, is_deletion));
    }
    let mut server = world.serve("0");
    let me = through(server.connect().await);
    for (given, is_there) in given {
        assert_eq!(download(&me, whole(digest(&given))).await.is_ok(), is_there);
    }
    server.kill();
    world.sessions_end().await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_any_moment_lose_nothing_that_was_acknowledged() {
    let mut world = Killed::start().await;
    world.inline_max = MAX;
    let mut acknowledged: Vec<u64> = Vec::new();
    for round in 0..if long_tests() { 30 } else { 3u64 } {
        world.is_sealed = round % 2 == 1;
        let mut server = world.serve("10");
        let me = through(server.connect().await);
        let mut calls = tokio::task::JoinSet::new();
        let (told, mut progress) = tokio::sync::mpsc::unbounded_channel();
        for n in 0..16u64 {
            let (me, told) = (me.clone(), told.clone());
            calls.spawn(async move {
                let mut done = Vec::new();
                for turn in 0.. {
                    let seed = 20_000 + ((round * 16 + n) << 32) + turn;
                    let given = bytes(seed, 3000);
                    if send(&me, messages(&given, |_| {})).await.is_err() {
                        return done;
                    }
                    let _ = told.send(());
                    if turn % 3 == 2 {
                        if me.blobs().delete_blob(delete_of(&given)).await.is_err() {
                            return done;
                        }
                    } else {
                        done.push(seed);
                    }
                }
                done
            });
        }
        for _ in 0..40 {
            progress.recv().await.expect("uploads come through");
        }
        tokio::time::sleep(Duration::from_millis(round * 197 % 300)).await;
        server.kill();
        while let Some(done) = calls.join_next().await {
            acknowledged.extend(done.unwrap());
        }
        is_consistent(&world.database().await, world.folder.path()).await;
    }
    world.is_sealed = true;
    let mut server = world.serve("0");
    let me = through(server.connect().await);
    assert!(acknowledged.len() > 60, "only {} uploads", acknowledged.len());
    for seed in acknowledged {
        let given = bytes(seed, 3000);
        let (_, found) = download(&me, whole(digest(&given))).await.unwrap();
        assert!(found == given);
    }
    server.kill();
    world.sessions_end().await;
    world.close().await;
}
