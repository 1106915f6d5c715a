//! What is refused, and that nothing of it is kept.

use super::*;
use crate::world::wrong_fields;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

#[tokio::test]
async fn an_upload_that_is_not_what_it_says_is_refused_and_leaves_nothing() {
    let (world, folder) = on_disk(&[("blob_max_bytes", "20000000")]).await;
    let me = world.anonymous();
    let given = bytes(1, 100);
    // Longer than a part, so that some of it is in the store when the mistake shows.
    let long = bytes(2, 9 * MIB);
    let say_digest = |bytes: &[u8]| {
        let digest = digest(bytes);
        move |header: &mut pb::UploadHeader| header.digest = Some(digest)
    };
    let say_size = |size: i64| move |header: &mut pb::UploadHeader| header.size_bytes = Some(size);
    let two_headers = {
        let mut all = messages(&long, |_| {});
        all.push(header(|_| {}));
        all
    };
    let empty_chunk = {
        let mut all = messages(&long, |_| {});
        all.push(chunk(&[]));
        all
    };
    let no_part = {
        let mut all = messages(&long, |_| {});
        all.push(pb::UploadBlobRequest { part: None });
        all
    };
    let over = bytes(3, 20_000_001);
    use Code::{InvalidArgument, ResourceExhausted};
    let cases = [
        (vec![], InvalidArgument, "HEADER_REQUIRED", vec!["header"]),
        (vec![chunk(&given)], InvalidArgument, "HEADER_REQUIRED", vec!["header"]),
        (vec![chunk(&given), header(|_| {})], InvalidArgument, "HEADER_REQUIRED", vec!["header"]),
        (two_headers, InvalidArgument, "FIELD_INVALID", vec!["header"]),
        (empty_chunk, InvalidArgument, "FIELD_INVALID", vec!["chunk"]),
        (
            vec![header(|_| {}), chunk(&[0; MIB + 1])],
            InvalidArgument,
            "FIELD_INVALID",
            vec!["chunk"],
        ),
        (no_part, InvalidArgument, "FIELD_INVALID", vec!["part"]),
        (
            messages(&given, say_digest(b"other")),
            InvalidArgument,
            "DIGEST_MISMATCH",
            vec!["header.digest"],
        ),
        (
            messages(&long, say_digest(b"other")),
            InvalidArgument,
            "DIGEST_MISMATCH",
            vec!["header.digest"],
        ),
        (
            messages(&given, say_size(99)),
            InvalidArgument,
            "SIZE_MISMATCH",
            vec!["header.size_bytes"],
        ),
        (
            messages(&given, say_size(101)),
            InvalidArgument,
            "SIZE_MISMATCH",
            vec!["header.size_bytes"],
        ),
        (
            messages(&given, say_size(0)),
            InvalidArgument,
            "SIZE_MISMATCH",
            vec!["header.size_bytes"],
        ),
        (
            messages(&long, say_size(9 * MIB as i64 + 1)),
            InvalidArgument,
            "SIZE_MISMATCH",
            vec!["header.size_bytes"],
        ),
        (
            messages(&long, say_size(9 * MIB as i64 - 1)),
            InvalidArgument,
            "SIZE_MISMATCH",
            vec!["header.size_bytes"],
        ),
        (
            messages(&given, say_size(-1)),
            InvalidArgument,
            "FIELD_INVALID",
            vec!["header.size_bytes"],
        ),
        (messages(&[], say_size(20_000_001)), ResourceExhausted, "BLOB_TOO_LARGE", vec![]),
        (messages(&over, |_| {}), ResourceExhausted, "BLOB_TOO_LARGE", vec![]),
        (
            messages(&given, |h| {
                h.digest = Some(pb::Digest { algorithm: "md5".into(), value: vec![0; 16].into() })
            }),
            InvalidArgument,
            "FIELD_INVALID",
            vec!["header.digest.algorithm", "header.digest.value"],
        ),
        (
            messages(&given, |h| h.content_type = "x".repeat(256)),
            InvalidArgument,
            "FIELD_INVALID",
            vec!["header.content_type"],
        ),
        (
            messages(&given, |h| h.content_type = "a\0b".into()),
            InvalidArgument,
            "NUL_BYTE",
            vec!["header.content_type"],
        ),
        (
            messages(&given, |h| {
                h.options = Some(pb::WriteOptions {
                    validate_only: true,
                    on_conflict: pb::OnConflict::Replace.into(),
                    ..Default::default()
                });
            }),
            InvalidArgument,
            "FIELD_INVALID",
            vec!["header.options.on_conflict", "header.options.validate_only"],
        ),
    ];
    for (n, (messages, code, expected, fields)) in cases.into_iter().enumerate() {
        let status = send(&me, messages).await.expect_err("it is refused");
        assert_eq!((status.code(), reason(&status).as_str()), (code, expected), "{n}: {status:?}");
        assert_eq!(wrong_fields(&status), fields, "{n}");
        if expected == "BLOB_TOO_LARGE" {
            assert_eq!(info(&status)["limit_bytes"], "20000000");
        }
    }
    let database = world.superuser().await;
    is_settled(&database).await;
    assert_eq!(files(folder.path()).len(), 0, "nothing is kept");
    let count = database.query_one("SELECT count(*) FROM casebook.blob", &[]).await.unwrap();
    assert_eq!(count.get::<_, i64>(0), 0);
    // The largest that is taken.
    let answer = upload(&me, &over[1..]).await;
    assert_eq!(answer.blob.unwrap().size_bytes, 20_000_000);
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn a_known_digest_with_another_size_is_refused() {
    let world = World::new().await;
    let me = world.anonymous();
    upload(&me, b"known").await;
    let say = |header: &mut pb::UploadHeader| {
        header.digest = Some(digest(b"known"));
        header.size_bytes = Some(6);
    };
    let status = send(&me, vec![header(say)]).await.unwrap_err();
    assert_eq!(reason(&status), "SIZE_MISMATCH", "{status:?}");
    world.close().await;
}

#[tokio::test]
async fn digests_are_held_to_their_form_and_number() {
    let world = World::new().await;
    let mut blobs = world.anonymous().blobs();
    let short = pb::Digest { algorithm: String::new(), value: vec![0; 31].into() };
    let get = pb::GetBlobRequest { digest: Some(short.clone()) };
    assert_eq!(
        wrong_fields(&fails!(blobs.get_blob(get), InvalidArgument, "FIELD_INVALID")),
        ["digest.value"]
    );
    let get = pb::GetBlobRequest { digest: None };
    assert_eq!(
        wrong_fields(&fails!(blobs.get_blob(get), InvalidArgument, "FIELD_INVALID")),
        ["digest"]
    );
    // An empty algorithm means the only one there is.
    let get = pb::GetBlobRequest {
        digest: Some(pb::Digest { algorithm: String::new(), ..digest(b"x") }),
    };
    fails!(blobs.get_blob(get), NotFound, "NOT_FOUND");
    for digests in [vec![], vec![digest(b"x"); 1001]] {
        let find = pb::FindMissingBlobsRequest { digests: digests.clone() };
        assert_eq!(
            wrong_fields(&fails!(blobs.find_missing_blobs(find), InvalidArgument, "FIELD_INVALID")),
            ["digests"]
        );
        let read = pb::ReadBlobsRequest { digests };
        assert_eq!(
            wrong_fields(&fails!(blobs.read_blobs(read), InvalidArgument, "FIELD_INVALID")),
            ["digests"]
        );
    }
    let find = pb::FindMissingBlobsRequest { digests: vec![digest(b"x"), short] };
    let status = fails!(blobs.find_missing_blobs(find), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["digests[1].value"]);
    world.close().await;
}

/// An upload that is open, and whose answer is waited for.
async fn open(
    me: &As,
) -> (
    mpsc::Sender<pb::UploadBlobRequest>,
    tokio::task::JoinHandle<Result<pb::UploadBlobResponse, Status>>,
) {
    let (sender, received) = mpsc::channel(1);
    let mut client = me.blobs();
    let call = tokio::spawn(async move {
        Ok(client.upload_blob(ReceiverStream::new(received)).await?.into_inner())
    });
    sender.send(header(|_| {})).await.unwrap();
    (sender, call)
}

#[tokio::test]
async fn a_silent_upload_is_cut_and_leaves_nothing() {
    let (world, folder) = on_disk(&[("blob_idle_timeout_ms", "300")]).await;
    let me = world.anonymous();
    for size in [10, 9 * MIB] {
        let (sender, call) = open(&me).await;
        for piece in bytes(4, size).chunks(MIB) {
            sender.send(chunk(piece)).await.unwrap();
        }
        let began = Instant::now();
        let status = call.await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        drop(sender);
    }
    let database = world.superuser().await;
    is_settled(&database).await;
    assert_eq!(files(folder.path()).len(), 0);
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_nothing() {
    let (world, folder) = on_disk(&[]).await;
    let me = world.anonymous();
    let (sender, call) = open(&me).await;
    for piece in bytes(5, 17 * MIB).chunks(MIB) {
        sender.send(chunk(piece)).await.unwrap();
    }
    for _ in 0..500 {
        if !files(folder.path()).is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!files(folder.path()).is_empty(), "a part is in the store");
    call.abort();
    drop(sender);
    let database = world.superuser().await;
    is_settled(&database).await;
    for _ in 0..500 {
        if files(folder.path()).is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(files(folder.path()).len(), 0);
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn what_is_not_read_is_cut_and_frees_its_memory() {
    let settings = [("blob_idle_timeout_ms", "500"), ("metrics_listen", "127.0.0.1:0")];
    let (world, _folder) = on_disk(&settings).await;
    let me = world.anonymous();
    let given = bytes(6, 40 * MIB);
    upload(&me, &given).await;
    let mut slow = me.blobs().download_blob(whole(digest(&given))).await.unwrap().into_inner();
    slow.message().await.unwrap().unwrap();
    let pages = world.pages.unwrap();
    let in_flight = async || {
        let page = crate::fault::page(pages, "/metrics").await;
        let line = page.lines().find(|line| line.starts_with("casebook_blob_in_flight_bytes "));
        line.unwrap().rsplit(' ').next().unwrap().parse::<i64>().unwrap()
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(in_flight().await > 0, "it reads ahead");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(in_flight().await, 0);
    let status = loop {
        match slow.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended well"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    world.close().await;
}

/// As others than tonic open a stream: with room for 64 KiB.
pub async fn narrow(world: &World) -> As {
    let endpoint = tonic::transport::Endpoint::from_shared(world.address.clone()).unwrap();
    let narrow = endpoint.initial_stream_window_size(65_535);
    crate::world::through(narrow.connect().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_keep_little_from_others() {
    let (world, _folder) = on_disk(LITTLE).await;
    slow_readers_keep_little(world, 24).await;
}

/// Room for a few streams, and a page that tells how much of it is taken.
pub const LITTLE: crate::world::Settings<'static> =
    &[("blob_in_flight_bytes", "8388608"), ("metrics_listen", "127.0.0.1:0")];

pub async fn slow_readers_keep_little(world: World, readers: usize) {
    let me = world.anonymous();
    let given = bytes(60, 3 * MIB);
    upload(&me, &given).await;
    // Were each of them to keep what was read ahead for it, they would have all there is several times.
    let mut slow = Vec::new();
    for _ in 0..readers {
        let they = narrow(&world).await;
        let mut stream =
            they.blobs().download_blob(whole(digest(&given))).await.unwrap().into_inner();
        stream.message().await.unwrap().unwrap();
        slow.push((they, stream));
    }
    let page = async || crate::fault::page(world.pages.unwrap(), "/metrics").await;
    let in_flight = async || {
        let page = page().await;
        let line = page.lines().find(|line| line.starts_with("casebook_blob_in_flight_bytes "));
        line.unwrap().rsplit(' ').next().unwrap().parse::<usize>().unwrap()
    };
    // The first chunk is within what a client takes unread, and the next one waits for room.
    let little = readers * (128 << 10);
    super::killed::until("little is kept", async || in_flight().await <= little).await;
    assert!(in_flight().await > 0, "what is on its way is counted");
    let began = Instant::now();
    for _ in 0..3 {
        let (_, found) = download(&me, whole(digest(&given))).await.unwrap();
        assert!(found == given);
    }
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    // They get all of it when they go on.
    let mut reading = tokio::task::JoinSet::new();
    for (they, mut stream) in slow {
        let given = given.clone();
        reading.spawn(async move {
            let mut found = Vec::new();
            while let Some(message) = stream.message().await.unwrap() {
                let Some(Down::Chunk(chunk)) = message.part else { panic!("a second header") };
                found.extend_from_slice(&chunk);
            }
            assert!(found == given);
            drop(they);
        });
    }
    while let Some(read) = reading.join_next().await {
        read.unwrap();
    }
    assert_eq!(in_flight().await, 0);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_writers_keep_little_from_others() {
    for further in [&[][..], &[("blob_key", super::seal::OLD)]] {
        let mut settings = vec![("metrics_listen", "127.0.0.1:0")];
        settings.extend(further);
        let (world, _folder) = on_disk(&settings).await;
        let me = world.anonymous();
        // Were each of them to keep room for a whole part, eight would have all there is.
        let mut slow = Vec::new();
        for seed in 0..12 {
            let given = bytes(900 + seed, 2 * MIB + 77);
            let (sender, call) = open(&me).await;
            sender.send(chunk(&given[..1])).await.unwrap();
            slow.push((given, sender, call));
        }
        let in_flight = async || {
            let page = crate::fault::page(world.pages.unwrap(), "/metrics").await;
            let line = page.lines().find(|line| line.starts_with("casebook_blob_in_flight_bytes "));
            line.unwrap().rsplit(' ').next().unwrap().parse::<usize>().unwrap()
        };
        super::killed::until("they have begun", async || in_flight().await > 0).await;
        super::killed::until("they keep nothing", async || in_flight().await == 0).await;
        let began = Instant::now();
        let given = bytes(950, 9 * MIB);
        upload(&me, &given).await;
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
        // They go on where they were, all at once, in chunks that are larger.
        let mut going_on = tokio::task::JoinSet::new();
        for (given, sender, call) in slow {
            let me = me.clone();
            going_on.spawn(async move {
                for piece in given[1..].chunks(300_000) {
                    sender.send(chunk(piece)).await.unwrap();
                }
                drop(sender);
                let blob = call.await.unwrap().unwrap().blob.unwrap();
                assert_eq!(blob.digest, Some(digest(&given)));
                let (_, found) = download(&me, whole(digest(&given))).await.unwrap();
                assert!(found == given);
            });
        }
        while let Some(done) = going_on.join_next().await {
            done.unwrap();
        }
        assert_eq!(in_flight().await, 0);
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_share_few_bytes() {
    let (world, _folder) = on_disk(&few_bytes(&[])).await;
    few_bytes_are_shared(world, 12).await;
}

/// Settings for what follows, and further ones.
pub fn few_bytes<'a>(further: crate::world::Settings<'a>) -> Vec<(&'a str, &'a str)> {
    let mut settings = LITTLE.to_vec();
    settings.extend([("blob_put_concurrency", "4"), ("blob_idle_timeout_ms", "8000")]);
    settings.extend(further);
    settings
}

pub async fn few_bytes_are_shared(world: World, streams: u64) {
    let pages = world.pages.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..streams {
        let me = world.anonymous();
        tasks.spawn(async move {
            let given = bytes(700 + n, 9 * MIB + n as usize);
            let say = |h: &mut pb::UploadHeader| {
                h.size_bytes = (n % 2 == 0).then_some(given.len() as i64)
            };
            // Streams of one connection that wait for memory keep each other back, so some are sent away.
            while let Err(status) = send(&me, messages(&given, say)).await {
                assert_eq!(reason(&status), "OVERLOADED", "{status:?}");
            }
            let found = loop {
                match download(&me, whole(digest(&given))).await {
                    Ok((_, found)) => break found,
                    Err(status) => assert_eq!(reason(&status), "OVERLOADED", "{status:?}"),
                }
            };
            assert!(found == given);
        });
    }
    let mut most = 0;
    while !tasks.is_empty() {
        tokio::select! {
            Some(done) = tasks.join_next() => done.unwrap(),
            page = crate::fault::page(pages, "/metrics") => {
                let line = page.lines().find(|l| l.starts_with("casebook_blob_in_flight_bytes "));
                most = most.max(line.unwrap().rsplit(' ').next().unwrap().parse::<i64>().unwrap());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    assert!((1..=8 << 20).contains(&most), "{most} bytes in flight");
    world.close().await;
}
