//! Blobs on a server of S3 that is reached as the settings say, plain and encrypted.

pub mod crash;
mod inline;
mod session;
mod url;

use super::*;
use crate::s3::{Brand, REGION, Server, bucket, server};
use futures_util::TryStreamExt as _;
use object_store::aws::AmazonS3;
use object_store::path::Path as Key;
use object_store::{ObjectStore as _, ObjectStoreExt as _};

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
    // Ceph does not tell of an upload in parts.
    let tells = |size| server.brand != Brand::Ceph || size < 5 * MIB;
    suite::run_far(&world, (&store, PREFIX, "s3"), is_encrypted, tells).await;
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
