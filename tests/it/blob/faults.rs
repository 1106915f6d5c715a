//! A store that fails: what comes back is right or an error, what is acknowledged is there, and nobody asks for ever.

use super::killed::until;
use super::*;
use crate::s3::proxy::{Fault, Proxy, When};
use crate::s3::{REGION, bucket, server};
use futures_util::TryStreamExt as _;
use object_store::ObjectStore;
use object_store::aws::AmazonS3;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How long one request to the store may take here: ample for a healthy one, even beside many other tests.
const TIMEOUT: Duration = Duration::from_millis(1200);

pub struct Behind {
    pub world: World,
    pub proxy: Proxy,
    /// Past the proxy.
    store: AmazonS3,
}

impl Behind {
    /// A server whose store is behind a proxy, or none where the run does without S3.
    async fn new() -> Option<Self> {
        Self::with(TIMEOUT, &[]).await
    }

    /// One request to the store may take so long.
    pub async fn with(timeout: Duration, further: crate::world::Settings<'_>) -> Option<Self> {
        let server = server().await?;
        let (name, store) = bucket(server).await;
        let proxy = Proxy::start(&server.endpoint).await;
        let (url, timeout) = (format!("s3://{name}"), timeout.as_millis().to_string());
        let mut settings = vec![
            ("blob_store_url", url.as_str()),
            ("s3_endpoint", proxy.endpoint.as_str()),
            ("s3_access_key_id", server.access_key.as_str()),
            ("s3_secret_access_key", server.secret_key.as_str()),
            ("s3_region", REGION),
            ("blob_request_timeout_ms", timeout.as_str()),
            ("blob_reap_interval_ms", "50"),
            // Nothing else than what a test asks for.
            ("blob_probe_interval_ms", "3600000"),
            ("blob_scrub_period_ms", "0"),
        ];
        settings.extend(further);
        let world = World::with(&settings).await;
        Some(Self { world, proxy, store })
    }

    async fn is_consistent(&self) {
        bucket_is_consistent(&self.world.superuser().await, &self.store).await;
    }
}

/// Waits until nothing is pending, and then every object must be a ready blob's and the other way round.
pub async fn bucket_is_consistent(database: &tokio_postgres::Client, store: &dyn ObjectStore) {
    let left = "SELECT count(*) FROM casebook.blob_intent";
    until("nothing is pending", async || {
        // What may still arrive is looked at again much later; here everything has arrived.
        let due = "UPDATE casebook.blob_intent SET due_time = now() WHERE state = 2";
        database.execute(due, &[]).await.unwrap();
        database.query_one(left, &[]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
    let rows = "SELECT store_key FROM casebook.blob WHERE state < 5";
    let rows = database.query(rows, &[]).await.unwrap();
    let kept: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
    let found: Vec<_> = store.list(None).try_collect().await.unwrap();
    let found: BTreeSet<String> = found.into_iter().map(|meta| meta.location.to_string()).collect();
    assert_eq!(found, kept);
}

macro_rules! behind {
    () => {
        match Behind::new().await {
            Some(behind) => behind,
            None => return,
        }
    };
}

/// All that can go wrong with an answer that has bytes.
fn faults() -> Vec<Fault> {
    vec![
        Fault::Status(500),
        Fault::Status(503),
        Fault::Status(403),
        Fault::ErrorIn200,
        Fault::Slow(2 * TIMEOUT),
        Fault::Torn,
        Fault::Stalled(2 * TIMEOUT),
        Fault::LengthTooLong,
        Fault::LengthTooShort,
        Fault::TooLong,
        Fault::Flipped,
        Fault::CutBefore,
        Fault::CutAfter,
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_back_is_right_or_an_error() {
    let behind = behind!();
    let me = behind.world.anonymous();
    for (n, size) in [(0, 1000), (1, 9 * MIB)] {
        for (m, fault) in faults().into_iter().enumerate() {
            let given = bytes(200 + 20 * n + m as u64, size);
            upload(&me, &given).await;
            behind.proxy.on("GET", "/t/", When::Every, fault);
            let began = Instant::now();
            let status = download(&me, whole(digest(&given))).await.expect_err("an error");
            assert!(
                matches!(status.code(), Code::Unavailable | Code::DataLoss),
                "{fault:?} of {size}: {status:?}"
            );
            assert!(began.elapsed() < 8 * TIMEOUT, "{fault:?} takes {:?}", began.elapsed());
            behind.proxy.heal();
            if status.code() == Code::DataLoss {
                // The bytes were other ones as far as anybody could see. A look at all of them clears it.
                let request = pb::VerifyBlobStoreRequest { rehash: true, ..Default::default() };
                let mut stream = ok!(me.blobs().verify_blob_store(request));
                while stream.message().await.unwrap().is_some() {}
            }
            let (_, found) = download(&me, whole(digest(&given))).await.unwrap();
            assert!(found == given, "{fault:?} of {size}");
        }
    }
    behind.is_consistent().await;
    behind.world.close().await;
}

/// Of a part of a blob nobody has a digest: how long it is, is all that tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_is_as_long_as_was_asked_or_an_error() {
    let behind = behind!();
    let me = behind.world.anonymous();
    for (n, size) in [(0, 1000), (1, 9 * MIB)] {
        let given = bytes(280 + n, size);
        upload(&me, &given).await;
        for fault in [
            Fault::Torn,
            Fault::LengthTooLong,
            Fault::LengthTooShort,
            Fault::TooLong,
            Fault::CutAfter,
            Fault::ErrorIn200,
        ] {
            behind.proxy.on("GET", "/t/", When::Every, fault);
            let limit = size as i64 - 100;
            let range = pb::DownloadBlobRequest { offset: 3, limit, ..whole(digest(&given)) };
            let status = download(&me, range.clone()).await.expect_err("an error");
            assert_eq!(status.code(), Code::Unavailable, "{fault:?} of {size}: {status:?}");
            behind.proxy.heal();
            let (_, found) = download(&me, range).await.unwrap();
            assert!(found == given[3..3 + limit as usize], "{fault:?} of {size}");
        }
    }
    behind.world.close().await;
}

/// What goes wrong once is made up for; what always does is told, and nothing is left of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_there_whatever_happened() {
    let behind = behind!();
    let me = behind.world.anonymous();
    let mut seed = 300;
    for method in ["PUT", "POST"] {
        for size in [1000, 17 * MIB] {
            if method == "POST" && size == 1000 {
                // It goes at once.
                continue;
            }
            for fault in [
                Fault::Status(500),
                Fault::Status(503),
                Fault::StatusAfter(500),
                Fault::ErrorIn200,
                Fault::Slow(2 * TIMEOUT),
                Fault::CutBefore,
                Fault::CutAfter,
            ] {
                for when in [When::Nth(1), When::Every] {
                    seed += 1;
                    let given = bytes(seed, size);
                    behind.proxy.on(method, "/t/", when, fault);
                    let sent = send(&me, messages(&given, |_| {})).await;
                    behind.proxy.heal();
                    match sent {
                        Ok(answer) => {
                            assert_eq!(answer.blob.unwrap().digest, Some(digest(&given)));
                            let (_, found) = download(&me, whole(digest(&given))).await.unwrap();
                            assert!(found == given, "{method} {fault:?} {when:?} of {size}");
                        }
                        Err(status) => {
                            assert_eq!(
                                status.code(),
                                Code::Unavailable,
                                "{method} {fault:?} {when:?} of {size}: {status:?}"
                            );
                            let get = pb::GetBlobRequest { digest: Some(digest(&given)) };
                            fails!(me.blobs().get_blob(get), NotFound, "NOT_FOUND");
                        }
                    }
                }
            }
        }
    }
    behind.is_consistent().await;
    behind.world.close().await;
}

/// While everything fails, a call costs the store hardly more than one request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_down_is_not_asked_again_and_again() {
    let behind = behind!();
    let me = behind.world.anonymous();
    let given = bytes(400, 1000);
    upload(&me, &given).await;
    behind.proxy.on("", "", When::Every, Fault::Status(503));
    let calls = 300;
    for _ in 0..calls {
        let status = download(&me, whole(digest(&given))).await.expect_err("an error");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    }
    let attempts = behind.proxy.attempts("", "");
    eprintln!("{attempts} attempts of {calls} calls");
    assert!(attempts as f64 <= 1.1 * f64::from(calls), "{attempts} attempts");
    behind.proxy.heal();
    download(&me, whole(digest(&given))).await.unwrap();
    behind.world.close().await;
}

/// The client has the beginning of the answer before its deadline, and from then on no clock of its own: what ends the call
/// is the server, which lets go of the store, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_store_does_not_outlast_a_callers_deadline() {
    const ASKED: Duration = Duration::from_millis(500);
    const SLOW: Duration = Duration::from_secs(20);
    let Some(behind) = Behind::with(2 * SLOW, &[]).await else { return };
    let me = behind.world.anonymous();
    let given = bytes(401, 9 * MIB);
    upload(&me, &given).await;
    behind.proxy.on("GET", "/t/", When::Every, Fault::Slow(SLOW));
    let began = Instant::now();
    let mut asked = tonic::Request::new(whole(digest(&given)));
    asked.set_timeout(ASKED);
    let mut stream = ok!(me.blobs().download_blob(asked));
    assert!(matches!(stream.message().await.unwrap().unwrap().part, Some(Down::Header(_))));
    let status = stream.message().await.expect_err("an error");
    let took = began.elapsed();
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".into()),
        "{status:?}"
    );
    assert!(took > ASKED / 2 && took < ASKED + SLOW / 4, "{took:?}");
    let proxy = &behind.proxy;
    assert_eq!(proxy.attempts("GET", "/t/"), 1);
    // Long before the store would have answered, nobody waits for it any more, and nobody asks again.
    until("the store is let go", async || proxy.late() == 0).await;
    assert!(began.elapsed() < ASKED + SLOW / 4, "{:?}", began.elapsed());
    assert_eq!(proxy.left(), proxy.attempts("GET", "/t/"));

    // An upload is done in a task that does not end with the call: its deadline ends what it asks of the store.
    proxy.heal();
    proxy.on("PUT", "/t/", When::Every, Fault::Slow(SLOW));
    let began = Instant::now();
    let mut asked = tonic::Request::new(tokio_stream::iter(messages(b"late", |_| {})));
    asked.set_timeout(ASKED);
    let status = me.blobs().upload_blob(asked).await.expect_err("an error");
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    until("the store is let go", async || proxy.left() > 0 && proxy.late() == 0).await;
    assert!(began.elapsed() < ASKED + SLOW / 4, "{:?}", began.elapsed());
    assert_eq!((proxy.left(), proxy.attempts("PUT", "/t/")), (1, 1));
    proxy.heal();
    behind.is_consistent().await;
    behind.world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verifying_reads_a_few_blobs_at_once() {
    let behind = behind!();
    let me = behind.world.anonymous();
    let given: Vec<Vec<u8>> = (410..420).map(|seed| bytes(seed, 1000)).collect();
    for given in &given {
        upload(&me, given).await;
    }
    behind.proxy.on("GET", "/t/", When::Every, Fault::Slow(Duration::from_millis(100)));
    let request = pb::VerifyBlobStoreRequest { rehash: true, ..Default::default() };
    let mut stream = ok!(me.blobs().verify_blob_store(request));
    let mut last = None;
    while let Some(message) = stream.message().await.unwrap() {
        last = Some(message);
    }
    let last = last.unwrap();
    assert_eq!((last.blobs_checked, last.bytes_read, last.findings), (10, 10_000, 0));
    assert_eq!((behind.proxy.attempts("GET", "/t/"), behind.proxy.late_max()), (10, 4));
    behind.world.close().await;
}
