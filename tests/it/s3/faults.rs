//! The proxy does what it is told, and what object_store 0.14.2 makes of each fault: what a store of blobs must see to itself.

use super::proxy::{Fault, Proxy, When};
use super::{Server, bucket, builder, server};
use bytes::Bytes;
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::{
    ClientOptions, Error, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload,
    RetryConfig,
};
use std::time::{Duration, Instant};

struct Behind {
    proxy: Proxy,
    /// Through the proxy.
    store: AmazonS3,
    /// Past it.
    direct: AmazonS3,
}

impl Behind {
    async fn new(server: &Server) -> Self {
        let (name, direct) = bucket(server).await;
        let proxy = Proxy::start(&server.endpoint).await;
        let store = builder(server, &proxy.endpoint, &name).build().expect("a client of S3");
        Self { proxy, store, direct }
    }
}

macro_rules! behind {
    () => {
        match server().await {
            Some(server) => Behind::new(server).await,
            None => return,
        }
    };
}

const KEY: &str = "t/0/sha256/ab/abcd";

fn key() -> Path {
    Path::from(KEY)
}

fn put_once() -> PutOptions {
    PutOptions::from(PutMode::Create)
}

async fn read(store: &AmazonS3) -> Result<Bytes, Error> {
    store.get(&key()).await?.bytes().await
}

#[tokio::test]
async fn what_is_not_told_otherwise_passes_and_is_counted() {
    let Behind { proxy, store, direct } = behind!();
    store.put(&key(), "a blob".into()).await.unwrap();
    assert_eq!(read(&store).await.unwrap(), "a blob");
    assert_eq!(read(&direct).await.unwrap(), "a blob");
    assert_eq!(store.head(&key()).await.unwrap().size, 6);
    assert_eq!((proxy.attempts("PUT", KEY), proxy.attempts("GET", KEY)), (1, 1));
    assert_eq!((proxy.attempts("", KEY), proxy.attempts("", "elsewhere")), (3, 0));
    proxy.on("GET", KEY, When::Nth(2), Fault::Status(403));
    assert!(read(&store).await.is_ok());
    assert!(matches!(read(&store).await, Err(Error::PermissionDenied { .. })));
    assert!(read(&store).await.is_ok());
    proxy.heal();
    assert_eq!(proxy.attempts("", KEY), 0);
}

#[tokio::test]
async fn refusals_are_retried_as_often_as_was_said() {
    let Behind { proxy, store, direct } = behind!();
    proxy.on("PUT", KEY, When::First(2), Fault::Status(503));
    store.put(&key(), "a blob".into()).await.unwrap();
    assert_eq!(proxy.attempts("PUT", KEY), 3);
    proxy.on("GET", KEY, When::Every, Fault::Status(500));
    let failed = read(&store).await;
    assert!(matches!(failed, Err(Error::Generic { .. })), "{failed:?}");
    assert_eq!(proxy.attempts("GET", KEY), 4, "once, and three times more");
    assert_eq!(read(&direct).await.unwrap(), "a blob");
}

#[tokio::test]
async fn a_slow_store_costs_the_client_its_time_limit() {
    let Some(server) = server().await else { return };
    let (name, direct) = bucket(server).await;
    direct.put(&key(), "a blob".into()).await.unwrap();
    let proxy = Proxy::start(&server.endpoint).await;
    let limits =
        ClientOptions::new().with_allow_http(true).with_timeout(Duration::from_millis(1500));
    let store = builder(server, &proxy.endpoint, &name)
        .with_client_options(limits)
        .with_retry(RetryConfig { max_retries: 1, ..RetryConfig::default() })
        .build()
        .unwrap();
    proxy.on("GET", KEY, When::Every, Fault::Slow(Duration::from_secs(30)));
    let began = Instant::now();
    assert!(read(&store).await.is_err());
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(proxy.attempts("GET", KEY), 2);
    proxy.heal();
    proxy.on("GET", KEY, When::Every, Fault::Slow(Duration::from_millis(100)));
    assert_eq!(read(&store).await.unwrap(), "a blob");
}

#[tokio::test]
async fn a_torn_body_is_fetched_from_where_it_tore() {
    let Behind { proxy, store, direct } = behind!();
    let blob = Bytes::from((0..100_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
    direct.put(&key(), PutPayload::from(blob.clone())).await.unwrap();
    for fault in [Fault::Torn, Fault::LengthTooLong] {
        proxy.heal();
        proxy.on("GET", KEY, When::Nth(1), fault);
        let got = read(&store).await;
        if fault == Fault::Torn {
            assert!(got.unwrap() == blob);
            assert_eq!(proxy.attempts("GET", KEY), 2, "the rest, by a range");
        } else {
            // The store seems to have an object that is longer than it is: there is no rest to fetch.
            assert!(got.is_err(), "{fault:?}");
        }
    }
    proxy.heal();
    proxy.on("GET", KEY, When::Every, Fault::Torn);
    assert!(read(&store).await.is_err(), "but not for ever");
}

/// So whoever reads must compare lengths and digests: HTTP has nothing to notice it by.
#[tokio::test]
async fn a_body_that_is_wrong_or_short_is_believed() {
    let Behind { proxy, store, direct } = behind!();
    direct.put(&key(), "a blob".into()).await.unwrap();
    proxy.on("GET", KEY, When::Nth(1), Fault::LengthTooShort);
    assert_eq!(read(&store).await.unwrap(), "a blo");
    proxy.heal();
    proxy.on("GET", KEY, When::Nth(1), Fault::Flipped);
    let got = read(&store).await.unwrap();
    assert!(got.len() == 6 && got != "a blob", "{got:?}");
}

#[tokio::test]
async fn a_put_whose_answer_is_lost_was_done() {
    let Behind { proxy, store, direct } = behind!();
    proxy.on("PUT", KEY, When::Nth(1), Fault::CutBefore);
    store.put_opts(&key(), "a blob".into(), put_once()).await.unwrap();
    assert_eq!(proxy.attempts("PUT", KEY), 2);

    // Its own first attempt is what a second finds: "already exists" is success once the object is what was to be written.
    for lost in [Fault::CutAfter, Fault::StatusAfter(503), Fault::StatusAfter(500)] {
        direct.delete(&key()).await.unwrap();
        proxy.heal();
        proxy.on("PUT", KEY, When::Nth(1), lost);
        let second = store.put_opts(&key(), "a blob".into(), put_once()).await;
        match second {
            // A lost connection is not always retried: a PUT could change things.
            Err(Error::AlreadyExists { .. }) => assert_eq!(proxy.attempts("PUT", KEY), 2),
            other => panic!("{lost:?}: {other:?}"),
        }
        assert_eq!(read(&direct).await.unwrap(), "a blob", "{lost:?}");
    }
}

#[tokio::test]
async fn an_error_in_an_answer_that_says_200_is_one() {
    let Behind { proxy, store, direct } = behind!();
    proxy.on("POST", "uploadId=", When::Nth(1), Fault::ErrorIn200);
    let mut upload = store.put_multipart(&key()).await.unwrap();
    upload.put_part("a blob".into()).await.unwrap();
    // The first attempt did it, and servers answer a second as they did the first.
    upload.complete().await.unwrap();
    assert_eq!(proxy.attempts("POST", "uploadId="), 2, "it was tried again");
    proxy.heal();
    proxy.on("POST", "uploadId=", When::Every, Fault::ErrorIn200);
    let mut upload = store.put_multipart(&key()).await.unwrap();
    upload.put_part("a blob".into()).await.unwrap();
    let failed = upload.complete().await;
    assert!(failed.is_err(), "{failed:?}");
    // Whoever completes must look at the object before giving up.
    assert_eq!(read(&direct).await.unwrap(), "a blob");
}
