//! Downloads of large blobs from a far store, which come by one request as long as nothing breaks.

use super::bad::{LITTLE, few_bytes, few_bytes_are_shared, narrow, slow_readers_keep_little};
use super::faults::Behind;
use super::killed::until;
use super::s3::on_s3;
use super::*;
use crate::s3::proxy::{Fault, When};
use crate::s3::server;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long one request to the store may be silent here.
const TIMEOUT: Duration = Duration::from_millis(1200);
/// An answer that comes later is not waited for.
const NEVER: Duration = Duration::from_secs(60);

/// Plain and encrypted.
const KINDS: [crate::world::Settings<'static>; 2] = [&[], &[("blob_key", seal::OLD)]];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_goes_on_where_it_broke() {
    for kind in KINDS {
        let Some(behind) = Behind::with(TIMEOUT, kind).await else { return };
        let me = behind.world.anonymous();
        let given = bytes(2000, 9 * MIB + 77);
        upload(&me, &given).await;
        let end = given.len();
        let faults = [
            Fault::Torn,
            Fault::Stalled(NEVER),
            Fault::LengthTooShort,
            Fault::LengthTooLong,
            Fault::TooLong,
            Fault::CutAfter,
            Fault::Status(503),
        ];
        // The retries of one server are few: of a range, two will do.
        for (offset, limit, from, to, faults) in [
            (0, 0, 0, end, &faults[..]),
            (65_530, 3 * MIB as i64, 65_530, 65_530 + 3 * MIB, &faults[..2]),
        ] {
            let asked = pb::DownloadBlobRequest { offset, limit, ..whole(digest(&given)) };
            let (_, found) = download(&me, asked.clone()).await.unwrap();
            assert!(found == given[from..to]);
            assert_eq!(behind.proxy.attempts("GET", "/t/"), 1);
            for fault in faults {
                behind.proxy.heal();
                behind.proxy.on("GET", "/t/", When::Nth(1), *fault);
                let (_, found) = download(&me, asked.clone()).await.unwrap();
                assert!(found == given[from..to], "{fault:?} from {offset}");
                assert_eq!(behind.proxy.attempts("GET", "/t/"), 2, "{fault:?} from {offset}");
            }
            behind.proxy.heal();
        }
        behind.world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_always_breaks_off_is_asked_for_a_few_times() {
    let Some(behind) = Behind::with(TIMEOUT, &[]).await else { return };
    let me = behind.world.anonymous();
    let (given, short) = (bytes(2010, 9 * MIB), bytes(2011, 2 * MIB));
    for given in [&given, &short] {
        upload(&me, given).await;
    }
    for fault in [Fault::Torn, Fault::LengthTooShort, Fault::TooLong] {
        behind.proxy.on("GET", "/t/", When::Every, fault);
        let status = download(&me, whole(digest(&given))).await.expect_err("an error");
        assert_eq!(status.code(), Code::Unavailable, "{fault:?}: {status:?}");
        let attempts = behind.proxy.attempts("GET", "/t/");
        assert!((2..=8).contains(&attempts), "{fault:?}: {attempts} attempts");
        behind.proxy.heal();
    }
    // Whatever is wrong with it: many calls have few attempts more than there are calls.
    for fault in [Fault::Status(503), Fault::Torn] {
        let calls = 150;
        behind.proxy.on("GET", "/t/", When::Every, fault);
        for _ in 0..calls {
            let status = download(&me, whole(digest(&short))).await.expect_err("an error");
            assert_eq!(status.code(), Code::Unavailable, "{fault:?}: {status:?}");
        }
        let attempts = behind.proxy.attempts("GET", "/t/");
        eprintln!("{fault:?}: {attempts} attempts of {calls} calls");
        assert!(attempts as f64 <= 1.1 * f64::from(calls), "{fault:?}: {attempts} attempts");
        behind.proxy.heal();
    }
    behind.world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_may_take_long_but_not_stand_still() {
    let Some(behind) = Behind::with(TIMEOUT, &[]).await else { return };
    let (me, proxy) = (behind.world.anonymous(), &behind.proxy);
    let given = bytes(2020, 9 * MIB);
    upload(&me, &given).await;
    proxy.on("GET", "/t/", When::Every, Fault::Dripping(TIMEOUT / 3));
    let began = Instant::now();
    let (_, found) = download(&me, whole(digest(&given))).await.unwrap();
    assert!(found == given);
    assert!(began.elapsed() > 2 * TIMEOUT, "longer than a request may be silent");
    assert_eq!(proxy.attempts("GET", "/t/"), 1);
    proxy.heal();

    proxy.on("GET", "/t/", When::Every, Fault::Stalled(NEVER));
    let began = Instant::now();
    let status = download(&me, whole(digest(&given))).await.expect_err("an error");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let took = began.elapsed();
    assert!(took >= TIMEOUT && took < 8 * TIMEOUT, "{took:?}");
    until("the store is let go", async || proxy.late() == 0).await;
    assert_eq!(proxy.left(), proxy.attempts("GET", "/t/"));

    // A caller who has less time does not wait for that.
    let mut asked = tonic::Request::new(whole(digest(&given)));
    asked.set_timeout(TIMEOUT / 3);
    let began = Instant::now();
    let mut stream = ok!(me.blobs().download_blob(asked));
    let status = loop {
        match stream.message().await {
            Ok(message) => assert!(message.is_some(), "it ended well"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(began.elapsed() < TIMEOUT, "{:?}", began.elapsed());
    until("the store is let go", async || proxy.late() == 0).await;
    proxy.heal();
    behind.world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_of_a_far_store_keep_little_from_others() {
    let Some(server) = server().await else { return };
    let (world, _store) = on_s3(server, LITTLE).await;
    // More than there is room for at once, were each to keep what its answer may take.
    slow_readers_keep_little(world, 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_of_a_far_store_share_few_bytes() {
    let Some(server) = server().await else { return };
    for kind in KINDS {
        let (world, _store) = on_s3(server, &few_bytes(kind)).await;
        few_bytes_are_shared(world, 6).await;
    }
}

/// Four have all the memory there is, and read for long, but none is slow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_memory_has_a_turn_before_others_are_done() {
    const PAUSE: Duration = Duration::from_millis(10);
    let Some(server) = server().await else { return };
    let (world, _store) = on_s3(server, LITTLE).await;
    let me = world.anonymous();
    let (long, short) = (bytes(2030, 40 * MIB), bytes(2031, 2 * MIB));
    for given in [&long, &short] {
        upload(&me, given).await;
    }
    let (begun, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut reading = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (they, asked) = (narrow(&world).await, whole(digest(&long)));
        let (begun, done) = (Arc::clone(&begun), Arc::clone(&done));
        reading.spawn(async move {
            let mut stream = they.blobs().download_blob(asked).await.unwrap().into_inner();
            let (mut hasher, mut chunks) = (Sha256::new(), 0);
            while let Some(message) = stream.message().await.unwrap() {
                let Some(Down::Chunk(chunk)) = message.part else { continue };
                hasher.update(&chunk);
                chunks += 1;
                begun.fetch_add(usize::from(chunks == 2), Ordering::Relaxed);
                tokio::time::sleep(PAUSE).await;
            }
            done.fetch_add(1, Ordering::Relaxed);
            hasher.finalize().to_vec()
        });
    }
    until("all have begun", async || begun.load(Ordering::Relaxed) == 4).await;
    let (_, found) = download(&me, whole(digest(&short))).await.unwrap();
    assert!(found == short);
    assert_eq!(done.load(Ordering::Relaxed), 0, "it had to wait for somebody's end");
    while let Some(read) = reading.join_next().await {
        assert_eq!(read.unwrap(), digest(&long).value);
    }
    world.close().await;
}
