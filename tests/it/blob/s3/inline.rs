//! Small blobs that lie in the database, and go to the store when somebody is to have a URL to them.

use super::*;
use crate::blob::faults::bucket_is_consistent;
use crate::blob::killed::Killed;
use crate::blob::url::ask;
use crate::world::through;

const INLINE: (&str, &str) = ("blob_inline_max_bytes", "16384");

async fn keys(store: &AmazonS3) -> Vec<String> {
    let found: Vec<_> = store.list(None).try_collect().await.unwrap();
    found.into_iter().map(|meta| meta.location.to_string()).collect()
}

async fn yields(url: &str, given: &[u8]) {
    let answer = reqwest::get(url).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.bytes().await.unwrap()[..] == *given);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_has_the_bytes_moved_into_the_store_once() {
    let Some(server) = server().await else { return };
    let (world, store) = on_s3(server, &[INLINE, ("blob_reap_interval_ms", "20")]).await;
    let me = world.anonymous();
    let given = bytes(780, 4096);
    let blob = upload(&me, &given).await.blob.unwrap();
    assert!(blob.storage_backend == "database" && keys(&store).await.is_empty());
    let put = pb::PutObjectRequest {
        key: "small".into(),
        content: Some(pb::put_object_request::Content::Blob(digest(&given))),
        ..Default::default()
    };
    ok!(me.objects().put_object(put));

    // Several at once: all of them work, and one object is left.
    let asked = (0..8).map(|_| {
        let (me, ask) = (me.clone(), ask(&given, None));
        tokio::spawn(async move { ok!(me.blobs().create_download_url(ask)).url })
    });
    let asked: Vec<_> = asked.collect();
    for url in asked {
        yields(&url.await.unwrap(), &given).await;
    }
    let request = pb::GetBlobRequest { digest: Some(digest(&given)) };
    let moved = ok!(me.blobs().get_blob(request)).blob.unwrap();
    assert_eq!((moved.storage_backend.as_str(), moved.state()), ("s3", pb::BlobState::Ready));
    assert_eq!((moved.meta.unwrap().version, moved.reference_count), (2, 1));
    let moves = entries(&me, 30).await.into_iter().filter(|entry| entry.action == "MOVE").count();
    assert_eq!(moves, 1);
    let database = world.superuser().await;
    bucket_is_settled(&database, &store).await;
    let (_, found) = download(&me, whole(digest(&given))).await.unwrap();
    assert!(found == given);
    yields(&ok!(me.blobs().create_download_url(ask(&given, None))).url, &given).await;
    assert_eq!(keys(&store).await.len(), 1);
    drop(database);
    world.close().await;
}

/// As [`bucket_is_consistent`], under the prefix, and of what does not lie in the database.
async fn bucket_is_settled(database: &tokio_postgres::Client, store: &AmazonS3) {
    crate::blob::killed::until("nothing is pending", async || {
        let due = "UPDATE casebook.blob_intent SET due_time = now() WHERE state = 2";
        database.execute(due, &[]).await.unwrap();
        let left = "SELECT count(*) FROM casebook.blob_intent";
        database.query_one(left, &[]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
    let kept = "SELECT store_key FROM casebook.blob WHERE state < 5 AND storage_backend = 's3' ORDER BY store_key";
    let kept = database.query(kept, &[]).await.unwrap();
    let kept: Vec<String> =
        kept.iter().map(|row| format!("{PREFIX}/{}", row.get::<_, String>(0))).collect();
    let mut found = keys(store).await;
    found.sort();
    assert_eq!(found, kept);
    let contents = "SELECT count(*) FROM casebook.blob_content";
    assert_eq!(database.query_one(contents, &[]).await.unwrap().get::<_, i64>(0), 0);
}

#[tokio::test]
async fn what_is_damaged_or_encrypted_stays_where_it_is() {
    let Some(server) = server().await else { return };
    let (world, store) = on_s3(server, &[INLINE]).await;
    let me = world.anonymous();
    upload(&me, b"damaged").await;
    let damage = "UPDATE casebook.blob_content SET bytes = 'DAMAGED'";
    world.superuser().await.execute(damage, &[]).await.unwrap();
    fails!(me.blobs().create_download_url(ask(b"damaged", None)), DataLoss, "BLOB_CORRUPT");
    let get = pb::GetBlobRequest { digest: Some(digest(b"damaged")) };
    assert_eq!(ok!(me.blobs().get_blob(get)).blob.unwrap().state(), pb::BlobState::Corrupt);
    world.close().await;
    assert!(keys(&store).await.is_empty());

    let (world, store) = on_s3(server, &[INLINE, ("blob_key", seal::OLD)]).await;
    let me = world.anonymous();
    upload(&me, b"secret").await;
    let request = ask(b"secret", None);
    fails!(me.blobs().create_download_url(request), FailedPrecondition, "BLOB_ENCRYPTED");
    world.close().await;
    assert!(keys(&store).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_while_they_are_moved_leaves_them_in_one_place() {
    let Some(server) = server().await else { return };
    let (bucket, store) = bucket(server).await;
    let mut world = Killed::on_s3(server, &server.endpoint, &bucket).await;
    world.inline_max = 16384;
    let given = bytes(790, 4096);
    for (n, step) in [
        ("INSERT", "blob_intent", "true"),
        ("UPDATE", "blob", "NEW.storage_backend = 's3'"),
        ("DELETE", "blob_content", "true"),
        ("DELETE", "blob_intent", "true"),
        ("INSERT", "log", "NEW.action = 'MOVE'"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut killed = world.serve("0");
        let me = through(killed.connect().await);
        upload(&me, &given).await;
        let call = {
            let given = given.clone();
            async move { me.blobs().create_download_url(ask(&given, None)).await.is_ok() }
        };
        let gate = crate::blob::killed::Gate::shut(world.database().await, step).await;
        let call = tokio::spawn(call);
        gate.is_reached().await;
        killed.kill();
        gate.cut().await;
        gate.open().await;
        world.sessions_end().await;
        assert!(!call.await.unwrap(), "{step:?}");
        assert_eq!(keys(&store).await.len(), usize::from(n > 0), "{step:?}");
        let mut killed = world.serve("20");
        let me = through(killed.connect().await);
        world.all_is_due().await;
        let database = world.database().await;
        let other = "UPDATE casebook.blob SET store_key = store_key WHERE storage_backend = 's3'";
        assert_eq!(database.execute(other, &[]).await.unwrap(), 0, "{step:?}");
        crate::blob::is_settled(&database).await;
        assert!(keys(&store).await.is_empty(), "{step:?}");
        let (_, found) = download(&me, whole(digest(&given))).await.unwrap();
        assert!(found == given);
        killed.kill();
    }
    // Nothing stands in the way now.
    let mut last = world.serve("20");
    let me = through(last.connect().await);
    yields(&ok!(me.blobs().create_download_url(ask(&given, None))).url, &given).await;
    bucket_is_consistent(&world.database().await, &store).await;
    last.kill();
    world.sessions_end().await;
    world.close().await;
}
