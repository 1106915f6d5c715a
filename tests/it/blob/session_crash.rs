//! A server that is killed between any two steps of an upload that goes on: another goes on with it, nothing is lost that was
//! acknowledged, and nothing stays that nobody knows of.

use super::killed::{Killed, until};
use super::session::{begun, committed, complete, write};
use super::*;
use crate::world::through;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_between_any_two_steps_is_survived_by_the_upload() {
    let world = Killed::start().await;
    let mut server = world.serve("0");
    server.connect().await;
    server.kill();
    for (n, (table, completes)) in [
        // Before the intent of a part, and after its bytes.
        ("blob_intent", false),
        ("blob_upload_part", false),
        // Before the blob, and after it but before the end of the upload.
        ("blob", true),
        ("blob_upload", true),
    ]
    .into_iter()
    .enumerate()
    {
        let given = bytes(20 + n as u64, 9 * MIB);
        let mut server = world.serve("0");
        let me = through(server.connect().await);
        let id = begun(&me).await;
        write(&me, &id, 0, &given[..1000]).await.unwrap();
        if completes {
            write(&me, &id, 1000, &given[1000..]).await.unwrap();
        }
        let mut locker = world.database().await;
        let lock = locker.transaction().await.unwrap();
        let mode = format!("LOCK TABLE casebook.{table} IN EXCLUSIVE MODE");
        lock.batch_execute(&mode).await.unwrap();
        let call = {
            let (me, id, rest) = (me.clone(), id.clone(), given[1000..].to_vec());
            tokio::spawn(async move {
                match completes {
                    true => complete(&me, &id).await.map(|_| ()),
                    false => write(&me, &id, 1000, &rest).await.map(|_| ()),
                }
            })
        };
        let other = world.database().await;
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'casebook-write' \
                     AND wait_event_type = 'Lock'";
        until("a step waits", async || {
            other.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) > 0
        })
        .await;
        server.kill();
        lock.rollback().await.unwrap();
        assert!(call.await.unwrap().is_err());
        world.sessions_end().await;
        is_consistent(&other, world.folder.path()).await;

        let mut server = world.serve("0");
        let me = through(server.connect().await);
        let at = committed(&me, &id).await.unwrap();
        assert!(if completes { at == given.len() } else { at >= 1000 }, "{table}: {at}");
        if at < given.len() {
            write(&me, &id, at, &given[at..]).await.unwrap();
        }
        let blob = complete(&me, &id).await.unwrap().blob.unwrap();
        assert_eq!(blob.digest, Some(digest(&given)), "{table}");
        let (_, found) = download(&me, whole(digest(&given))).await.unwrap();
        assert!(found == given);
        server.kill();
        world.reap().await;
        assert_eq!(files(world.folder.path()).len() as i64, world.ready().await, "{table}");
    }
    world.close().await;
}
