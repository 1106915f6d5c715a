//! A server that is killed between any two steps leaves no row without bytes, and no bytes that nobody will remove.

use super::*;
use crate::process::{Postgres, Served, long_tests};
use crate::world::{through, url_of};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

/// A PostgreSQL and a folder that outlive the servers on them.
pub struct Killed {
    pub postgres: Postgres,
    pub folder: tempfile::TempDir,
    /// Whether servers encrypt.
    is_sealed: bool,
}

impl Killed {
    pub async fn start() -> Self {
        let (postgres, folder) = (Postgres::start().await, tempfile::tempdir().unwrap());
        Self { postgres, folder, is_sealed: false }
    }

    pub fn serve(&self, keep_ms: &str, reap_ms: &str) -> Served {
        let url = url_of(&self.postgres.embedded.config());
        let store = format!("file://{}", self.folder.path().display());
        let mut flags = vec![
            "--database-url",
            &url,
            "--migrate-on-start",
            "true",
            "--auth",
            "none",
            "--listen",
            "127.0.0.1:0",
            "--metrics-listen",
            "",
            "--blob-store-url",
            &store,
            "--blob-upload-keep-ms",
            keep_ms,
            "--blob-reap-interval-ms",
            reap_ms,
        ];
        if self.is_sealed {
            flags.extend(["--blob-key", super::seal::OLD]);
        }
        Served::start(&flags)
    }

    pub async fn database(&self) -> tokio_postgres::Client {
        crate::world::connect(&self.postgres.embedded.config()).await
    }

    /// Waits until what a killed server had begun in PostgreSQL has ended there, one way or the other: until then it may
    /// still commit.
    pub async fn sessions_end(&self) {
        let left = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'casebook-%'";
        let database = self.database().await;
        until("the sessions end", async || {
            database.query_one(left, &[]).await.unwrap().get::<_, i64>(0) == 0
        })
        .await;
    }

    /// Has what is due be due now, and lets a server reap until nothing is left of it.
    pub async fn reap(&self) {
        let database = self.database().await;
        self.sessions_end().await;
        let due = "UPDATE casebook.blob_intent SET due_time = now()";
        database.execute(due, &[]).await.unwrap();
        let mut server = self.serve("86400000", "20");
        server.connect().await;
        is_settled(&database).await;
        is_consistent(&database, self.folder.path()).await;
        server.kill();
    }

    pub async fn ready(&self) -> i64 {
        let count = "SELECT count(*) FROM casebook.blob WHERE state = 2";
        self.database().await.query_one(count, &[]).await.unwrap().get(0)
    }
}

/// Waits until something holds.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..3000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

fn call(me: &As, given: Vec<u8>) -> JoinHandle<Result<pb::UploadBlobResponse, Status>> {
    let me = me.clone();
    tokio::spawn(async move { send(&me, messages(&given, |_| {})).await })
}

/// Each step is stopped at by a lock on a table that it needs, and the server is killed there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_between_any_two_steps_of_an_upload_leaves_nothing_unaccounted() {
    let world = Killed::start().await;
    let mut server = world.serve("86400000", "0");
    server.connect().await;
    server.kill();
    for (table, size, has_bytes) in [
        // Before the intent.
        ("blob_intent", 10, false),
        // After it and the bytes, before the blob.
        ("blob", 10, true),
        ("blob", 9 * MIB, true),
    ] {
        let mut server = world.serve("86400000", "0");
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
    let mut server = world.serve("86400000", "0");
    let me = through(server.connect().await);
    let (sender, received) = tokio::sync::mpsc::channel(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(received);
    let mut client = me.blobs();
    let open = tokio::spawn(async move { client.upload_blob(stream).await.is_ok() });
    for message in messages(&bytes(11, 12 * MIB), |_| {}) {
        sender.send(message).await.unwrap();
    }
    until("a part is in the store", async || {
        files(world.folder.path()).iter().any(|(path, _)| path.to_string_lossy().contains('#'))
    })
    .await;
    server.kill();
    assert!(!open.await.unwrap());
    drop(sender);
    world.reap().await;
    assert_eq!(files(world.folder.path()).len() as i64, world.ready().await);

    // Between the two halves of a deletion.
    let mut server = world.serve("86400000", "0");
    let me = through(server.connect().await);
    upload(&me, b"to be deleted").await;
    let database = world.database().await;
    // As the first half leaves it.
    database
        .batch_execute(
            "WITH b AS (UPDATE casebook.blob SET state = 4, delete_time = now(), version = version + 1 \
             WHERE state = 2 AND size_bytes = 13 RETURNING tenant_id, uid, store_key) \
             INSERT INTO casebook.blob_intent (tenant_id, uid, store_key, state, blob_uid, due_time) \
             SELECT tenant_id, gen_random_uuid(), store_key, 2, uid, now() FROM b",
        )
        .await
        .unwrap();
    server.kill();
    world.reap().await;
    let erased = "SELECT count(*) FROM casebook.blob WHERE state = 5";
    assert_eq!(database.query_one(erased, &[]).await.unwrap().get::<_, i64>(0), 1);
    crate::fault::log_is_gap_free(&database).await;
    drop(database);
    world.postgres.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_any_moment_lose_nothing_that_was_acknowledged() {
    let mut world = Killed::start().await;
    let mut acknowledged: Vec<(u64, usize)> = Vec::new();
    for round in 0..if long_tests() { 40 } else { 5u64 } {
        world.is_sealed = round % 2 == 1;
        let mut server = world.serve("86400000", "10");
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
    let mut server = world.serve("86400000", "0");
    let me = through(server.connect().await);
    assert!(acknowledged.len() > 20, "only {} uploads", acknowledged.len());
    for (seed, size) in acknowledged {
        let given = bytes(seed, size);
        let (_, found) = download(&me, whole(digest(&given))).await.unwrap();
        assert!(found == given);
    }
    server.kill();
    world.postgres.stop().await;
}
