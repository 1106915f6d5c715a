//! A server that is killed while the store is asked, before the store has done what it was asked or after.

use super::*;
use crate::blob::faults::bucket_is_consistent;
use crate::blob::killed::{Killed, until};
use crate::evidence::{decide, other};
use crate::s3::proxy::{Fault, Proxy, When};
use crate::world::through;
use object_store::ObjectStore;
use std::time::Duration;

/// What a server does when it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    Small,
    Large,
    Deleting,
    Reaping,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_while_the_store_is_asked_leaves_nothing_unaccounted() {
    use Doing::{Deleting, Large, Reaping, Small};
    let Some(server) = server().await else { return };
    let (bucket, store) = bucket(server).await;
    let proxy = Proxy::start(&server.endpoint).await;
    let world = Killed::on_s3(server, &proxy.endpoint, &bucket).await;
    let requests = [
        (Small, "PUT", "/t/"),
        // Beginning in parts, the first of them, and making them one.
        (Large, "POST", "?uploads"),
        (Large, "PUT", "partNumber=1"),
        (Large, "POST", "?uploadId"),
        // Several keys are deleted by one request, which names them in its body.
        (Deleting, "POST", "?delete"),
        (Reaping, "POST", "?delete"),
    ];
    kills_leave_nothing(&world, &proxy, &store, &requests, "?uploadId").await;
    if server.brand == Brand::Moto {
        // Of uploads in parts, one may be left that has none: it was begun when its server died.
        let url = format!("{}/{bucket}?uploads", server.endpoint);
        let listed = reqwest::get(url).await.unwrap().text().await.unwrap();
        assert!(listed.contains("ListMultipartUploadsResult"), "{listed}");
        assert_eq!(listed.matches("<UploadId>").count(), 1, "{listed}");
    }
    world.close().await;
}

/// Kills a server at each of these requests to its store, which are told by method and a part of the path, before the store
/// hears of it and after it has done it. `completes` makes an object of parts.
pub async fn kills_leave_nothing(
    world: &Killed,
    proxy: &Proxy,
    store: &dyn ObjectStore,
    requests: &[(Doing, &'static str, &'static str)],
    completes: &str,
) {
    use Doing::{Deleting, Large, Reaping, Small};
    let rounds = requests.iter().flat_map(|request| [(*request, false), (*request, true)]);
    let kept = bytes(500, 1000);
    for (n, ((doing, method, part), is_done)) in rounds.enumerate() {
        let case = format!("{doing:?} {method} {part} {is_done}");
        let mut killed = world.serve("20");
        let me = through(killed.connect().await);
        upload(&me, &kept).await;
        // What the one before it has left.
        let database = world.database().await;
        world.all_is_due().await;
        bucket_is_consistent(&database, store).await;
        assert_eq!(world.ready().await, 1, "{case}");

        let given = bytes(501 + n as u64, if doing == Large { 9 * MIB } else { 1000 });
        match doing {
            Small | Large => {}
            Deleting => drop(upload(&me, &given).await),
            Reaping => {
                decide(&me, "d").await;
                ok!(me.evidence().create_evidence_bundle(other("", "d", &case)));
                ok!(me.decisions().delete_decision(delete("d")));
            }
        }
        let late = Duration::from_secs(60);
        let fault = if is_done { Fault::Slow(late) } else { Fault::Held(late) };
        proxy.on(method, part, When::Every, fault);
        let id = pb::DeleteBlobRequest { digest: Some(digest(&given)), ..Default::default() };
        let (they, sent) = (me.clone(), given.clone());
        let call = tokio::spawn(async move {
            match doing {
                Small | Large => send(&they, messages(&sent, |_| {})).await.is_ok(),
                Deleting => they.blobs().delete_blob(id).await.is_ok(),
                Reaping => {
                    let purge = pb::PurgeResourcesRequest {
                        kind: pb::ResourceKind::Decision.into(),
                        older_than: Some(prost_types::Duration::default()),
                        max_resources: 10,
                        ..Default::default()
                    };
                    // It is answered before the reaper comes to what it leaves.
                    they.retention().purge_resources(purge).await.is_err()
                }
            }
        });
        until(&case, async || proxy.late() > 0).await;
        killed.kill();
        assert!(!call.await.unwrap(), "{case}");
        until("the proxy has seen it", async || proxy.late() == 0).await;
        proxy.heal();
        world.sessions_end().await;
        // Every object is known of, at once.
        let known = "SELECT store_key FROM casebook.blob WHERE state < 5 \
                     UNION ALL SELECT store_key FROM casebook.blob_intent";
        let known = database.query(known, &[]).await.unwrap();
        let known: Vec<String> = known.iter().map(|row| row.get(0)).collect();
        let found: Vec<_> = store.list(None).try_collect().await.unwrap();
        for meta in &found {
            assert!(known.contains(&meta.location.to_string()), "{case}: {}", meta.location);
        }
        let has = match doing {
            Small => is_done,
            Large => is_done && part == completes,
            Deleting | Reaping => !is_done,
        };
        assert_eq!(found.len(), 1 + usize::from(has), "{case}");
    }
    let mut last = world.serve("20");
    let me = through(last.connect().await);
    world.all_is_due().await;
    bucket_is_consistent(&world.database().await, store).await;
    assert_eq!(world.ready().await, 1);
    let (_, found) = download(&me, whole(digest(&kept))).await.unwrap();
    assert!(found == kept);
    last.kill();
    world.sessions_end().await;
}
