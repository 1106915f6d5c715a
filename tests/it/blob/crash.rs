//! A server that is killed between any two steps leaves no row without bytes, and no bytes that nobody will remove.

use super::killed::{Killed, until};
use super::*;
use crate::evidence::{decide, other};
use crate::process::long_tests;
use crate::world::through;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinHandle;

fn call(me: &As, given: Vec<u8>) -> JoinHandle<Result<pb::UploadBlobResponse, Status>> {
    let me = me.clone();
    tokio::spawn(async move { send(&me, messages(&given, |_| {})).await })
}

/// An upload that has sent all and does not end.
async fn begin(me: &As, given: &[u8]) -> (Sender<pb::UploadBlobRequest>, JoinHandle<bool>) {
    let (sender, received) = tokio::sync::mpsc::channel(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(received);
    let mut client = me.blobs();
    let open = tokio::spawn(async move { client.upload_blob(stream).await.is_ok() });
    for message in messages(given, |_| {}) {
        sender.send(message).await.unwrap();
    }
    (sender, open)
}

/// Each step is stopped at by a lock on a table that it needs, and the server is killed there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_between_any_two_steps_of_an_upload_leaves_nothing_unaccounted() {
    let world = Killed::start().await;
    let mut server = world.serve("0");
    server.connect().await;
    server.kill();
    for (table, size, has_bytes) in [
        // Before the intent.
        ("blob_intent", 10, false),
        // After it and the bytes, before the blob.
        ("blob", 10, true),
        ("blob", 9 * MIB, true),
    ] {
        let mut server = world.serve("0");
        let me = through(server.connect().await);
        let mut locker = world.database().await;
        let lock = locker.transaction().await.unwrap();
        let mode = format!("LOCK TABLE casebook.{table} IN EXCLUSIVE MODE");
        lock.batch_execute(&mode).await.unwrap();
        let given = call(&me, bytes(10, size));
        let other = world.database().await;
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'casebook-write' \
                     AND wait_event_type = 'Lock'";
        until("a step waits", async || {
            other.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) > 0
        })
        .await;
        assert_eq!(!files(world.folder.path()).is_empty(), has_bytes, "{table} {size}");
        server.kill();
        lock.rollback().await.unwrap();
        assert!(given.await.unwrap().is_err());
        world.reap().await;
        assert_eq!(files(world.folder.path()).len() as i64, world.ready().await);
    }

    // While parts are on their way.
    let mut server = world.serve("0");
    let me = through(server.connect().await);
    let (sender, open) = begin(&me, &bytes(11, 12 * MIB)).await;
    until("a part is in the store", async || {
        files(world.folder.path()).iter().any(|(path, _)| path.to_string_lossy().contains('#'))
    })
    .await;
    server.kill();
    assert!(!open.await.unwrap());
    drop(sender);
    world.reap().await;
    assert_eq!(files(world.folder.path()).len() as i64, world.ready().await);
    world.close().await;
}

/// The blobs among these that are there come back as they were given; tells which are.
async fn come_back(me: &As, given: &[Vec<u8>]) -> Vec<bool> {
    let mut there = Vec::new();
    for given in given {
        match download(me, whole(digest(given))).await {
            Ok((_, found)) => {
                assert!(found == *given);
                there.push(true);
            }
            Err(status) => {
                assert_eq!(status.code(), Code::NotFound, "{status:?}");
                there.push(false);
            }
        }
    }
    there
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_between_any_two_steps_of_a_deletion_leaves_nothing_unaccounted() {
    let world = Killed::start().await;
    let steps = [
        // Of the first half: before the row, before the intent, and before the log tells of it.
        (("UPDATE", "blob", "NEW.state = 4"), true),
        (("INSERT", "blob_intent", "NEW.state = 2"), true),
        (("INSERT", "log", "NEW.action = 'DELETE'"), true),
        // Of the second, when the bytes are gone.
        (("UPDATE", "blob", "NEW.state = 5"), false),
        (("DELETE", "blob_intent", "true"), false),
        (("INSERT", "log", "NEW.action = 'ERASE'"), false),
    ];
    let mut deleted = Vec::new();
    for (n, (step, has_bytes)) in steps.into_iter().enumerate() {
        let (kept, given) = (bytes(40 + n as u64, 1000), bytes(60 + n as u64, 1000));
        let mut server = world.serve("0");
        let me = through(server.connect().await);
        upload(&me, &kept).await;
        upload(&me, &given).await;
        let id = pb::DeleteBlobRequest { digest: Some(digest(&given)), ..Default::default() };
        let call = async move { me.blobs().delete_blob(id).await.is_ok() };
        assert!(!world.kill_at(&mut server, step, call).await);
        let has = files(world.folder.path()).iter().any(|(_, content)| *content == given);
        assert_eq!(has, has_bytes, "{step:?}");
        deleted.push((given, has_bytes, kept));
    }
    world.reap().await;
    let mut server = world.serve("0");
    let me = through(server.connect().await);
    for (given, is_there, kept) in deleted {
        assert_eq!(come_back(&me, &[given.clone(), kept]).await, [is_there, true]);
        if is_there {
            let id = pb::DeleteBlobRequest { digest: Some(digest(&given)), ..Default::default() };
            ok!(me.blobs().delete_blob(id));
        }
    }
    server.kill();
    world.sessions_end().await;
    assert_eq!((files(world.folder.path()).len(), world.ready().await), (6, 6));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reaper_that_is_killed_between_any_two_steps_leaves_nothing_unaccounted() {
    let world = Killed::start().await;
    let kept = bytes(80, 1000);
    let steps = [
        // Before it has claimed what it found, and when the bytes are gone.
        (("UPDATE", "blob_intent", "NEW.state = 2 AND OLD.state = 1"), true),
        (("DELETE", "blob_intent", "true"), true),
        // The same of a blob that nothing refers to any more, which has a row to be changed.
        (("UPDATE", "blob_intent", "NEW.blob_uid IS NOT NULL"), false),
        (("UPDATE", "blob", "NEW.state = 5"), false),
        (("DELETE", "blob_intent", "true"), false),
        (("INSERT", "log", "NEW.action = 'ERASE'"), false),
    ];
    for (n, (step, is_upload)) in steps.into_iter().enumerate() {
        let mut server = world.serve("20");
        let me = through(server.connect().await);
        let database = world.database().await;
        // What the one before it has left.
        world.all_is_due().await;
        is_settled(&database).await;
        is_consistent(&database, world.folder.path()).await;
        upload(&me, &kept).await;
        assert_eq!(files(world.folder.path()).len(), 1, "{step:?}");
        // The bytes go first, then what is known of them.
        let is_claim = step.1 == "blob_intent" && step.0 == "UPDATE";

        if is_upload {
            let (sender, open) = begin(&me, &bytes(81 + n as u64, 12 * MIB)).await;
            until("a part is in the store", async || files(world.folder.path()).len() > 1).await;
            let due = async move {
                database.execute("UPDATE casebook.blob_intent SET due_time = now()", &[]).await
            };
            world.kill_at(&mut server, step, due).await.unwrap();
            assert_eq!(files(world.folder.path()).len() > 1, is_claim, "{step:?}");
            assert!(!open.await.unwrap());
            drop(sender);
            continue;
        }
        decide(&me, "d").await;
        ok!(me.evidence().create_evidence_bundle(other("", "d", &n.to_string())));
        ok!(me.decisions().delete_decision(delete("d")));
        assert_eq!(files(world.folder.path()).len(), 2);
        let purge = pb::PurgeResourcesRequest {
            kind: pb::ResourceKind::Decision.into(),
            older_than: Some(prost_types::Duration::default()),
            max_resources: 10,
            ..Default::default()
        };
        // The reaper begins when this is done; whether it is answered, nobody knows.
        let call = async move { drop(me.retention().purge_resources(purge).await) };
        world.kill_at(&mut server, step, call).await;
        assert_eq!(files(world.folder.path()).len() > 1, is_claim, "{step:?}");
    }
    world.reap().await;
    assert_eq!((files(world.folder.path()).len(), world.ready().await), (1, 1));
    let left = "SELECT count(*) FROM casebook.blob WHERE state IN (3, 4)";
    assert_eq!(world.database().await.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0);
    let mut server = world.serve("0");
    assert_eq!(come_back(&through(server.connect().await), &[kept]).await, [true]);
    server.kill();
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_any_moment_lose_nothing_that_was_acknowledged() {
    let mut world = Killed::start().await;
    let mut acknowledged: Vec<(u64, usize)> = Vec::new();
    for round in 0..if long_tests() { 40 } else { 5u64 } {
        world.is_sealed = round % 2 == 1;
        let mut server = world.serve("10");
        let me = through(server.connect().await);
        let mut calls = tokio::task::JoinSet::new();
        let progress = Arc::new(AtomicUsize::new(0));
        for n in 0..8u64 {
            let (me, progress) = (me.clone(), Arc::clone(&progress));
            calls.spawn(async move {
                let mut done = Vec::new();
                for turn in 0.. {
                    let seed = 10_000 + ((round * 8 + n) << 32) + turn;
                    let size = if n == 0 { 9 * MIB } else { 20_000 };
                    let given = bytes(seed, size);
                    if send(&me, messages(&given, |_| {})).await.is_err() {
                        break;
                    }
                    progress.fetch_add(1, Ordering::Relaxed);
                    if turn % 3 == 2 {
                        let digest = Some(digest(&given));
                        let delete = pb::DeleteBlobRequest { digest, ..Default::default() };
                        if me.blobs().delete_blob(delete).await.is_err() {
                            break;
                        }
                    } else {
                        done.push((seed, size));
                    }
                }
                done
            });
        }
        until("uploads come through", async || progress.load(Ordering::Relaxed) > 12).await;
        tokio::time::sleep(Duration::from_millis(round * 197 % 400)).await;
        server.kill();
        while let Some(done) = calls.join_next().await {
            acknowledged.extend(done.unwrap());
        }
        let database = world.database().await;
        is_consistent(&database, world.folder.path()).await;
    }
    world.reap().await;
    world.is_sealed = true;
    let mut server = world.serve("0");
    let me = through(server.connect().await);
    assert!(acknowledged.len() > 20, "only {} uploads", acknowledged.len());
    for (seed, size) in acknowledged {
        let given = bytes(seed, size);
        let (_, found) = download(&me, whole(digest(&given))).await.unwrap();
        assert!(found == given);
    }
    server.kill();
    world.close().await;
}
