//! Blobs on a server of S3 that is reached as the settings say, plain and encrypted.

mod crash;
mod inline;
mod session;
mod url;

use super::*;
use crate::s3::{Brand, REGION, Server, bucket, server};
use futures_util::TryStreamExt as _;
use object_store::aws::AmazonS3;
use object_store::path::Path as Key;
use object_store::{ObjectStore as _, ObjectStoreExt as _};
use std::collections::BTreeMap;

const PREFIX: &str = "some/prefix";

/// A world over a bucket of its own, and that bucket.
pub async fn on_s3(server: &Server, settings: crate::world::Settings<'_>) -> (World, AmazonS3) {
    let (name, store) = bucket(server).await;
    let url = format!("s3://{name}/{PREFIX}");
    let mut all = reached(server, &url);
    all.extend(settings);
    (World::with(&all).await, store)
}

/// The settings by which a bucket is reached.
fn reached<'a>(server: &'a Server, url: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("blob_store_url", url),
        ("s3_endpoint", server.endpoint.as_str()),
        ("s3_access_key_id", server.access_key.as_str()),
        ("s3_secret_access_key", server.secret_key.as_str()),
        ("s3_region", REGION),
    ]
}

async fn the_suite_passes(is_encrypted: bool) {
    let Some(server) = server().await else { return };
    let settings: &[_] = if is_encrypted { &[("blob_key", seal::OLD)] } else { &[] };
    let (world, store) = on_s3(server, settings).await;
    let me = world.anonymous();
    assert_eq!(health(&me, "casebook.v1.BlobService").await, "SERVING");
    suite::one_by_one(&world, is_encrypted).await;
    // A server that is written in Python takes its time.
    suite::many_at_once(&me, 8).await;
    let given = [seal::marked(60, 1000), seal::marked(61, 9 * MIB)];
    for given in &given {
        let blob = upload(&me, given).await.blob.unwrap();
        assert_eq!((blob.storage_backend.as_str(), blob.encrypted), ("s3", is_encrypted));
        // Ceph does not tell of an upload in parts.
        let is_told = server.brand != Brand::Ceph || given.len() < 5 * MIB;
        assert_eq!(!blob.store_etag.is_empty(), is_told);
    }

    // Every blob has its object, and every object is a blob's.
    let database = world.superuser().await;
    is_settled(&database).await;
    let rows = "SELECT id, store_key, stored_size_bytes FROM casebook.blob WHERE state = 2";
    let rows = database.query(rows, &[]).await.unwrap();
    let key = |row: &tokio_postgres::Row| format!("{PREFIX}/{}", row.get::<_, String>(1));
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
    drop(database);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_passes_on_s3() {
    the_suite_passes(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_passes_encrypted_on_s3() {
    the_suite_passes(true).await;
}
