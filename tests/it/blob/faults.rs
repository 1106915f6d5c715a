//! A store that fails: what comes back is right or an error, what is acknowledged is there, and nobody asks for ever.

use super::*;
use crate::s3::proxy::{Fault, Proxy, When};
use crate::s3::{REGION, bucket, server};
use futures_util::TryStreamExt as _;
use object_store::ObjectStore as _;
use object_store::aws::AmazonS3;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How long one request to the store may take here.
const TIMEOUT: Duration = Duration::from_millis(400);

struct Behind {
    world: World,
    proxy: Proxy,
    /// Past the proxy.
    store: AmazonS3,
}

impl Behind {
    /// A server whose store is behind a proxy, or none where the run does without S3.
    async fn new() -> Option<Self> {
        let server = server().await?;
        let (name, store) = bucket(server).await;
        let proxy = Proxy::start(&server.endpoint).await;
        let (url, timeout) = (format!("s3://{name}"), TIMEOUT.as_millis().to_string());
        let settings = [
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
        let world = World::with(&settings).await;
        Some(Self { world, proxy, store })
    }

    /// Waits until nothing is pending, and then every object must be a ready blob's and the other way round.
    async fn is_consistent(&self) {
        let database = self.world.superuser().await;
        // What may still arrive is looked at again much later; here everything has arrived.
        for _ in 0..100 {
            let due = "UPDATE casebook.blob_intent SET due_time = now() WHERE state = 2";
            if database.execute(due, &[]).await.unwrap() == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        is_settled(&database).await;
        let rows = "SELECT store_key FROM casebook.blob WHERE state < 5";
        let rows = database.query(rows, &[]).await.unwrap();
        let kept: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
        let found: Vec<_> = self.store.list(None).try_collect().await.unwrap();
        let found: BTreeSet<String> =
            found.into_iter().map(|meta| meta.location.to_string()).collect();
        assert_eq!(found, kept);
    }
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
        Fault::LengthTooLong,
        Fault::LengthTooShort,
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_store_does_not_outlast_a_callers_deadline() {
    let behind = behind!();
    let me = behind.world.anonymous();
    let given = bytes(401, 1000);
    upload(&me, &given).await;
    behind.proxy.on("", "/t/", When::Every, Fault::Slow(Duration::from_secs(5)));
    let began = Instant::now();
    let mut asked = tonic::Request::new(whole(digest(&given)));
    asked.set_timeout(Duration::from_millis(300));
    let read = async {
        let mut stream = me.blobs().download_blob(asked).await?.into_inner();
        while stream.message().await?.is_some() {}
        Ok::<_, Status>(())
    };
    let status = read.await.expect_err("an error");
    assert!(
        matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled),
        "the deadline is kept: {status:?}"
    );
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    behind.world.close().await;
}
