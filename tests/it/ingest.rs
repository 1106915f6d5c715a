//! IngestChunks: F533, F536 as a stream. Each message stands for itself, and the stream for what was answered.

use crate::feed::{SOON, messages};
use crate::help::*;
use crate::world::{As, World, reason, request, through};
use casebook::pb;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use tonic::Code;
use tonic::transport::Endpoint;

type Feed = crate::feed::Feed<pb::IngestChunksRequest, pb::IngestChunksResponse>;

impl Feed {
    async fn open(who: &As) -> Self {
        Self::within(who, None).await
    }

    /// With a deadline of the caller's own.
    async fn within(who: &As, limit: Option<Duration>) -> Self {
        let (messages, mut request) = messages();
        if let Some(limit) = limit {
            request.set_timeout(limit);
        }
        let answers = who.documents().ingest_chunks(request).await.expect("a stream").into_inner();
        Self { messages: Some(messages), answers }
    }
}

fn message(sequence: i64, of: pb::BatchCreateChunksRequest) -> pb::IngestChunksRequest {
    let pb::BatchCreateChunksRequest { document_id, chunks, options, delete_from_index } = of;
    pb::IngestChunksRequest { sequence, document_id, chunks, options, delete_from_index }
}

/// The nth message of three chunks for the document.
fn three(sequence: i64) -> pb::IngestChunksRequest {
    let first = sequence as i32 * 3;
    message(sequence, chunks("doc", (first..first + 3).map(chunk)))
}

async fn world_with_document(settings: &[(&str, &str)]) -> World {
    let world = World::with(settings).await;
    ok!(world.anonymous().documents().create_document(file("doc")));
    world
}

async fn total_chunks(who: &As) -> i32 {
    let request = pb::GetDocumentRequest { document_id: "doc".into(), ..Default::default() };
    ok!(who.documents().get_document(request)).document.unwrap().total_chunks
}

/// Keeps every write from committing, until it is dropped.
async fn hold(world: &World) -> tokio_postgres::Client {
    let holder = world.superuser().await;
    let lock = "BEGIN; LOCK TABLE casebook.log_head IN ACCESS EXCLUSIVE MODE";
    holder.batch_execute(lock).await.unwrap();
    holder
}

#[tokio::test]
async fn messages_are_answered_in_their_order() {
    let world = world_with_document(&[]).await;
    let who = world.anonymous();
    let mut feed = Feed::open(&who).await;
    let mut seq = 0;
    for (n, sequence) in (0..).zip([i64::MIN, 0, 7, i64::MAX]) {
        feed.send(pb::IngestChunksRequest { sequence, ..three(n) }).await;
        let answer = feed.written().await;
        let receipt = answer.receipt.unwrap();
        assert_eq!((answer.sequence, answer.written, answer.suggested_batch), (sequence, 3, 1000));
        assert!(receipt.audit_seq > seq && !receipt.unchanged);
        seq = receipt.audit_seq;
    }
    // Without waiting for answers.
    let mut feed = Feed::open(&who).await;
    let sending = async {
        for sequence in 100..130 {
            feed.messages.as_ref().unwrap().send(three(sequence)).await.unwrap();
        }
    };
    let reading = async {
        for sequence in 100..130 {
            let answer = timeout(SOON, feed.answers.message()).await.unwrap().unwrap().unwrap();
            assert_eq!((answer.sequence, answer.written), (sequence, 3), "{answer:?}");
        }
    };
    tokio::join!(sending, reading);
    feed.half_close();
    assert_eq!(feed.next().await.unwrap(), None);
    assert_eq!(total_chunks(&who).await, 4 * 3 + 30 * 3);
    let log = entries(&who, 1).await;
    assert_eq!(log[0].method, "casebook.v1.DocumentService/IngestChunks");
    world.close().await;
}

#[tokio::test]
async fn a_message_that_fails_fails_alone() {
    let world = world_with_document(&[]).await;
    let who = world.anonymous();
    let mut feed = Feed::open(&who).await;
    feed.send(three(0)).await;
    feed.written().await;
    let with = |sequence, change: fn(&mut pb::IngestChunksRequest)| {
        let mut message = three(sequence);
        change(&mut message);
        message
    };
    type Wrong = (fn(&mut pb::IngestChunksRequest), Code, &'static str, Option<i32>, &'static str);
    let wrong: [Wrong; 9] = [
        (
            |m| m.chunks[2].text.clear(),
            Code::InvalidArgument,
            "FIELD_INVALID",
            Some(2),
            "chunks[2].text",
        ),
        (
            |m| m.chunks[1].text.push('\0'),
            Code::InvalidArgument,
            "NUL_BYTE",
            Some(1),
            "chunks[1].text",
        ),
        (|m| m.chunks.clear(), Code::InvalidArgument, "FIELD_INVALID", None, "chunks"),
        (|m| m.document_id.clear(), Code::InvalidArgument, "FIELD_INVALID", None, "document_id"),
        (|m| m.document_id = "no".into(), Code::NotFound, "NOT_FOUND", None, ""),
        (|m| m.chunks[1].chunk_index = 0, Code::AlreadyExists, "EXISTS", Some(1), ""),
        (
            |m| m.chunks[1].chunk_index = m.chunks[0].chunk_index,
            Code::InvalidArgument,
            "DUPLICATE_IN_BATCH",
            Some(1),
            "chunks[1].chunk_index",
        ),
        (|m| m.sequence = 0, Code::InvalidArgument, "FIELD_INVALID", None, "sequence"),
        (
            |m| m.options = Some(request(&"x".repeat(65))),
            Code::InvalidArgument,
            "FIELD_INVALID",
            None,
            "options.request_id",
        ),
    ];
    for (n, (change, code, reason, position, field)) in (1..).zip(wrong) {
        feed.send(with(n * 2, change)).await;
        feed.send(three(n * 2 + 1)).await;
        let failed = feed.answer().await;
        let error = failed.error.expect("an error");
        assert_eq!((error.code, error.reason.as_str()), (code as i32, reason), "{error:?}");
        assert_eq!((error.chunk_position, error.field.as_str()), (position, field), "{error:?}");
        assert!(!error.message.is_empty());
        assert_eq!((failed.written, failed.receipt), (0, None));
        let written = feed.written().await;
        assert_eq!((written.sequence, written.written), (n * 2 + 1, 3));
    }
    feed.half_close();
    assert_eq!(feed.next().await.unwrap(), None);
    assert_eq!(total_chunks(&who).await, 10 * 3);
    world.close().await;
}

#[tokio::test]
async fn a_message_may_be_sent_again_after_a_broken_stream() {
    let world = world_with_document(&[]).await;
    let who = world.anonymous();
    let once = |sequence: i64, how: pb::OnConflict| pb::IngestChunksRequest {
        options: Some(pb::WriteOptions {
            on_conflict: how.into(),
            ..request(&format!("m-{sequence}"))
        }),
        ..three(sequence)
    };
    let mut feed = Feed::open(&who).await;
    let mut first = Vec::new();
    for sequence in 0..3 {
        feed.send(once(sequence, pb::OnConflict::Fail)).await;
        first.push(feed.written().await);
    }
    feed.send(once(3, pb::OnConflict::Fail)).await;
    // Whether the last one was written, nobody has said.
    drop(feed);
    let mut feed = Feed::open(&who).await;
    for sequence in 0..4 {
        // Under a sequence of its own.
        let again = pb::IngestChunksRequest {
            sequence: sequence + 50,
            ..once(sequence, pb::OnConflict::Fail)
        };
        feed.send(again).await;
        let answer = feed.written().await;
        assert_eq!((answer.sequence, answer.written), (sequence + 50, 3));
        if let Some(first) = first.get(sequence as usize) {
            let (again, first) = (answer.receipt.unwrap(), first.receipt.clone().unwrap());
            assert!(again.replayed);
            assert_eq!(again.audit_seq, first.audit_seq);
        }
    }
    assert_eq!(total_chunks(&who).await, 12);
    // Nothing to write is not written, now or again.
    for _ in 0..2 {
        let mut feed = Feed::open(&who).await;
        let options =
            pb::WriteOptions { on_conflict: pb::OnConflict::Replace.into(), ..request("same") };
        feed.send(pb::IngestChunksRequest { options: Some(options), ..three(0) }).await;
        let answer = feed.written().await;
        assert_eq!((answer.written, answer.receipt.unwrap().unchanged), (0, true));
    }
    world.close().await;
}

/// What the server has not room for stays with the sender.
#[tokio::test]
async fn a_fast_sender_is_slowed_down() {
    let world = world_with_document(&[]).await;
    let who = world.anonymous();
    let mut feed = Feed::open(&who).await;
    let holder = hold(&world).await;
    let sent = Arc::new(AtomicUsize::new(0));
    let sender = feed.messages.take().unwrap();
    let count = Arc::clone(&sent);
    let sending = tokio::spawn(async move {
        for sequence in 0..40 {
            let text = "x".repeat(1 << 20);
            let big = pb::Chunk { text, ..chunk(sequence) };
            sender.send(message(sequence.into(), chunks("doc", [big]))).await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let mut before = usize::MAX;
    while before != sent.load(Ordering::SeqCst) {
        before = sent.load(Ordering::SeqCst);
        sleep(Duration::from_millis(700)).await;
    }
    // Four under way, 4 MiB in HTTP/2's window on the way here, and what the client has in its own hands.
    assert!((4..20).contains(&before), "{before} were taken");
    drop(holder);
    for sequence in 0..40 {
        assert_eq!(feed.written().await.sequence, sequence);
    }
    assert_eq!(feed.next().await.unwrap(), None);
    sending.await.unwrap();
    assert_eq!(total_chunks(&who).await, 40);
    world.close().await;
}

#[tokio::test]
async fn a_caller_that_does_not_read_its_answers_is_slowed_down() {
    let world = world_with_document(&[]).await;
    let narrow = Endpoint::from_shared(world.address.clone()).unwrap();
    let narrow = narrow.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    let mut feed = Feed::open(&through(narrow.connect_lazy())).await;
    let sent = Arc::new(AtomicUsize::new(0));
    let (sender, count) = (feed.messages.take().unwrap(), Arc::clone(&sent));
    const ALL: i64 = 3000;
    let sending = tokio::spawn(async move {
        for sequence in 0..ALL {
            // Refused at once, and large, so that few of them fit on the way.
            let big = pb::Chunk { text: "x".repeat(20_000), chunk_index: -1, ..Default::default() };
            sender.send(message(sequence, chunks("doc", [big]))).await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let mut before = usize::MAX;
    while before != sent.load(Ordering::SeqCst) {
        before = sent.load(Ordering::SeqCst);
        sleep(Duration::from_millis(700)).await;
    }
    assert!(before < 2000, "{before} were taken");
    // The server is well meanwhile.
    assert_eq!(total_chunks(&world.anonymous()).await, 0);
    for sequence in 0..ALL {
        assert_eq!(feed.answer().await.sequence, sequence);
    }
    assert_eq!(feed.next().await.unwrap(), None);
    sending.await.unwrap();
    drop(feed);
    world.close().await;
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_nothing_behind() {
    // A stream counts as a call, all the time.
    let world = world_with_document(&[("requests_in_flight_max", "1")]).await;
    let who = world.anonymous();
    let mut feed = Feed::open(&who).await;
    feed.send(three(0)).await;
    feed.written().await;
    let get = || pb::GetDocumentRequest { document_id: "doc".into(), ..Default::default() };
    fails!(who.documents().get_document(get()), ResourceExhausted, "OVERLOADED");
    let holder = hold(&world).await;
    for sequence in 1..5 {
        feed.send(three(sequence)).await;
    }
    sleep(Duration::from_millis(300)).await;
    drop(feed);
    let began = Instant::now();
    while who.documents().get_document(get()).await.is_err() {
        assert!(began.elapsed() < SOON, "the stream still counts");
        sleep(Duration::from_millis(10)).await;
    }
    drop(holder);
    // What was under way is whole, or not there.
    let mut last = -1;
    loop {
        sleep(Duration::from_millis(300)).await;
        let total = total_chunks(&who).await;
        assert_eq!(total % 3, 0);
        if total == last {
            break;
        }
        last = total;
    }
    assert!((6..=15).contains(&last), "{last}");
    // Fails if a session is left.
    world.close().await;
}

#[tokio::test]
async fn a_stream_ends_with_the_server_and_says_how_far_it_came() {
    let mut world = world_with_document(&[]).await;
    let who = world.anonymous();
    let mut feed = Feed::open(&who).await;
    let mut silent = Feed::open(&who).await;
    feed.send(three(4)).await;
    feed.written().await;
    let holder = hold(&world).await;
    for sequence in 5..8 {
        feed.send(three(sequence)).await;
    }
    sleep(Duration::from_millis(300)).await;
    let stopping = async {
        world.stop().await;
    };
    let reading = async {
        // What was not begun has nothing to wait for.
        let end = silent.end().await;
        assert_eq!((end.code(), reason(&end).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
        assert!(!info(&end).contains_key("last_sequence"));
        sleep(Duration::from_millis(300)).await;
        drop(holder);
        for sequence in 5..8 {
            assert_eq!(feed.written().await.sequence, sequence);
        }
        let end = feed.end().await;
        assert_eq!((end.code(), reason(&end).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
        assert_eq!(info(&end)["last_sequence"], "7");
        assert!(end.message().ends_with("the last message that was answered is 7"), "{end:?}");
    };
    tokio::join!(stopping, reading);
    drop((feed, silent));
    let superuser = world.superuser().await;
    let count = superuser.query_one("SELECT count(*) FROM casebook.chunk", &[]).await.unwrap();
    assert_eq!(count.get::<_, i64>(0), 12);
    drop(superuser);
    world.close().await;
}

#[tokio::test]
async fn a_stream_lasts_as_long_as_its_caller_says() {
    let world =
        world_with_document(&[("deadline_default_ms", "400"), ("deadline_max_ms", "500")]).await;
    let who = world.anonymous();
    // Limits on calls are limits on messages here.
    let mut lasting = Feed::open(&who).await;
    let mut bounded = Feed::within(&who, Some(Duration::from_millis(1500))).await;
    for sequence in 0..2 {
        lasting.send(three(sequence)).await;
        lasting.written().await;
        sleep(Duration::from_millis(600)).await;
    }
    let began = Instant::now();
    let end = bounded.end().await;
    assert_eq!((end.code(), reason(&end).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
    let holder = hold(&world).await;
    // The first is sent and is waited for; those behind it in the queue are given up.
    for sequence in 2..4 {
        lasting.send(three(sequence)).await;
    }
    sleep(Duration::from_millis(900)).await;
    drop(holder);
    assert_eq!(lasting.written().await.sequence, 2);
    let late = lasting.answer().await;
    assert_eq!(late.error.unwrap().reason, "DEADLINE_EXCEEDED");
    lasting.send(three(4)).await;
    lasting.written().await;
    lasting.half_close();
    assert_eq!(lasting.next().await.unwrap(), None);
    assert_eq!(total_chunks(&who).await, 12);
    world.close().await;
}

#[tokio::test]
async fn a_silent_stream_ends() {
    let world = world_with_document(&[("stream_idle_timeout_ms", "500")]).await;
    let who = world.anonymous();
    let mut feed = Feed::open(&who).await;
    for sequence in 0..4 {
        sleep(Duration::from_millis(250)).await;
        feed.send(three(sequence)).await;
        feed.written().await;
    }
    // Waiting for the server is not silence.
    let holder = hold(&world).await;
    feed.send(three(4)).await;
    sleep(Duration::from_millis(900)).await;
    drop(holder);
    feed.written().await;
    let end = feed.end().await;
    assert_eq!((end.code(), reason(&end).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    assert_eq!(info(&end)["last_sequence"], "4");
    world.close().await;
}

/// OVERLOADED is waited out, and felt in the suggestion; only a message that waits too long hears of it.
#[tokio::test]
async fn a_full_queue_is_waited_for() {
    let settings = [
        ("write_queue_max_per_tenant", "1"),
        ("write_lanes", "1"),
        ("deadline_default_ms", "1500"),
    ];
    let world = world_with_document(&settings).await;
    let who = world.anonymous();
    let mut feed = Feed::open(&who).await;
    feed.send(three(0)).await;
    assert_eq!(feed.written().await.suggested_batch, 1000);
    let holder = hold(&world).await;
    for sequence in 1..5 {
        feed.send(three(sequence)).await;
    }
    sleep(Duration::from_millis(500)).await;
    drop(holder);
    let mut suggested = Vec::new();
    for sequence in 1..5 {
        let answer = feed.written().await;
        assert_eq!(answer.sequence, sequence);
        suggested.push(answer.suggested_batch);
    }
    assert_eq!(suggested[..2], [1000, 1000]);
    // One was at work and one in the queue; the third had to wait.
    assert_eq!(suggested[2], 500);
    assert!(suggested[3] < 1000);

    let holder = hold(&world).await;
    for sequence in 5..8 {
        feed.send(three(sequence)).await;
    }
    sleep(Duration::from_millis(2200)).await;
    drop(holder);
    assert_eq!(feed.written().await.sequence, 5);
    let reasons = [feed.answer().await, feed.answer().await].map(|a| a.error.unwrap().reason);
    assert_eq!(reasons, ["DEADLINE_EXCEEDED", "OVERLOADED"]);
    feed.send(three(8)).await;
    feed.written().await;
    assert_eq!(total_chunks(&who).await, 7 * 3);
    world.close().await;
}

/// A stream outlasts the moment in which its caller was let in, but not the right to be in.
#[tokio::test]
async fn a_stream_ends_with_its_caller_s_rights() {
    let (world, mut open) = guarded(&[]).await;
    let admin = open.anonymous();
    ok!(admin.documents().create_document(file("doc")));
    let (token_made, secret) = token(&admin, &[pb::Role::Writer]).await;
    let (_, other) = token(&admin, &[pb::Role::Writer]).await;
    let (admin_token, admin_secret) = token(&admin, &[pb::Role::Admin]).await;
    assert!(!admin_token.id.is_empty());
    let mut feed = Feed::open(&world.with_token(&secret)).await;
    let mut second = Feed::open(&world.with_token(&other)).await;
    feed.send(three(0)).await;
    feed.written().await;
    let revoke =
        pb::RevokeApiTokenRequest { api_token_id: token_made.id.clone(), ..Default::default() };
    ok!(world.with_token(&admin_secret).tenants().revoke_api_token(revoke));
    feed.send(three(1)).await;
    let end = feed.end().await;
    assert_eq!((end.code(), reason(&end).as_str()), (Code::Unauthenticated, "TOKEN_INVALID"));
    assert_eq!(info(&end)["last_sequence"], "0");

    second.send(three(2)).await;
    second.written().await;
    let read_only = pb::UpdateTenantRequest {
        tenant: Some(pb::Tenant {
            id: "default".into(),
            state: pb::TenantState::ReadOnly.into(),
            ..Default::default()
        }),
        update_mask: mask(&["state"]),
        options: None,
    };
    ok!(open.as_tenant("system").tenants().update_tenant(read_only));
    // The other server does not know at once.
    let mut end = None;
    for sequence in 3.. {
        second.send(three(sequence)).await;
        match second.next().await {
            Ok(answer) => assert!(answer.is_some()),
            Err(status) => {
                end = Some(status);
                break;
            }
        }
        sleep(Duration::from_millis(200)).await;
    }
    let end = end.unwrap();
    assert_eq!((end.code(), reason(&end).as_str()), (Code::FailedPrecondition, "READ_ONLY"));
    drop((feed, second));
    open.stop().await;
    world.close().await;
}

#[tokio::test]
async fn a_message_that_cannot_be_read_ends_the_stream() {
    let world = world_with_document(&[
        ("message_in_max_bytes", "65536"),
        ("batch_message_in_max_bytes", "65536"),
    ])
    .await;
    let who = world.anonymous();
    let mut feed = Feed::open(&who).await;
    feed.send(three(0)).await;
    let big = pb::Chunk { text: "x".repeat(70_000), ..chunk(9) };
    feed.send(message(1, chunks("doc", [big]))).await;
    assert_eq!(feed.written().await.sequence, 0);
    let end = feed.end().await;
    let found = (end.code(), reason(&end));
    assert_eq!(found, (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".to_owned()));
    assert_eq!(total_chunks(&who).await, 3);
    world.close().await;
}

#[tokio::test]
async fn many_streams_share_a_document() {
    let world = world_with_document(&[]).await;
    let feeds = (0..8).map(|n| {
        let who = world.anonymous();
        tokio::spawn(async move {
            let mut feed = Feed::open(&who).await;
            for sequence in 0..10 {
                // Each in its own places, and all in the first ones.
                let own = (0..20).map(|k| chunk(1000 + n * 1000 + sequence * 20 + k));
                let shared = (0..5).map(chunk);
                let of = pb::BatchCreateChunksRequest {
                    options: on_conflict(pb::OnConflict::Replace),
                    ..chunks("doc", own.chain(shared))
                };
                feed.send(message(sequence.into(), of)).await;
                feed.written().await;
            }
            feed.half_close();
            assert_eq!(feed.next().await.unwrap(), None);
        })
    });
    for feed in feeds.collect::<Vec<_>>() {
        feed.await.unwrap();
    }
    assert_eq!(total_chunks(&world.anonymous()).await, 8 * 10 * 20 + 5);
    world.close().await;
}
