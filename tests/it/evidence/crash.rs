//! A server that is killed between two steps of storing a bundle leaves neither a bundle without bytes nor bytes that
//! nobody will remove.

use super::*;
use crate::blob::crash::{Killed, until};
use crate::blob::files;
use crate::world::through;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_between_the_bytes_and_the_bundle_leaves_nothing_unaccounted() {
    let world = Killed::start().await;
    let mut server = world.serve("86400000", "0");
    decide(&through(server.connect().await), "d").await;
    server.kill();
    for (table, has_bytes) in [
        // Before the intent.
        ("blob_intent", false),
        // After the bytes, before anything of the transaction; after its bundle; after its blob.
        ("evidence_bundle", true),
        ("blob", true),
        ("blob_reference", true),
    ] {
        let mut server = world.serve("86400000", "0");
        let me = through(server.connect().await);
        let mut locker = world.database().await;
        let lock = locker.transaction().await.unwrap();
        let mode = format!("LOCK TABLE casebook.{table} IN EXCLUSIVE MODE");
        lock.batch_execute(&mode).await.unwrap();
        let they = me.clone();
        let given = tokio::spawn(async move {
            they.evidence().create_evidence_bundle(bundle("b", "d")).await.is_ok()
        });
        let other = world.database().await;
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'casebook-write' \
                     AND wait_event_type = 'Lock'";
        until("a step waits", async || {
            other.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) > 0
        })
        .await;
        assert_eq!(!files(world.folder.path()).is_empty(), has_bytes, "{table}");
        server.kill();
        // So that what had begun in PostgreSQL does not end well.
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                   WHERE application_name = 'casebook-write'";
        other.execute(end, &[]).await.unwrap();
        lock.rollback().await.unwrap();
        assert!(!given.await.unwrap());
        world.reap().await;
        let left = "SELECT (SELECT count(*) FROM casebook.evidence_bundle) \
                    + (SELECT count(*) FROM casebook.blob) + (SELECT count(*) FROM casebook.blob_reference)";
        assert_eq!(other.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0, "{table}");
        assert_eq!(files(world.folder.path()).len(), 0, "{table}");
    }
    let mut server = world.serve("86400000", "0");
    let me = through(server.connect().await);
    ok!(me.evidence().create_evidence_bundle(bundle("b", "d")));
    assert!(ok!(me.evidence().get_decision_evidence(of("d"))).verified);
    crate::fault::log_is_gap_free(&world.database().await).await;
    server.kill();
    world.postgres.stop().await;
}
