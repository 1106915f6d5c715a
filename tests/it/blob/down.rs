//! A store that answers nothing but errors: every call says so, soon, and retries do not make it worse.

use super::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Speaks just enough HTTP to refuse every request; counts the PUTs.
async fn refuse(stream: TcpStream, puts: Arc<AtomicUsize>) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let (mut body, mut is_first) = (0, true);
        loop {
            let mut line = String::new();
            if read.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            if std::mem::take(&mut is_first) && line.starts_with("PUT ") {
                puts.fetch_add(1, Ordering::Relaxed);
            }
            let line = line.trim().to_ascii_lowercase();
            if let Some(length) = line.strip_prefix("content-length:") {
                body = length.trim().parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        tokio::io::copy(&mut (&mut read).take(body), &mut tokio::io::sink()).await?;
        write.write_all(b"HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\n\r\n").await?;
    }
}

async fn refusing() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, puts) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&puts);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(refuse(stream, Arc::clone(&counted)));
        }
    });
    (format!("http://127.0.0.1:{port}"), puts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_fails_is_told_and_not_flooded() {
    let (endpoint, puts) = refusing().await;
    let settings = [
        ("blob_store_url", "s3://bucket/prefix"),
        ("s3_endpoint", endpoint.as_str()),
        ("s3_access_key_id", "who"),
        ("s3_secret_access_key", "what"),
        ("retry_base_ms", "1"),
    ];
    let world = World::with(&settings).await;
    let me = world.anonymous();
    assert_eq!(health(&me, "casebook.v1.BlobService").await, "NOT_SERVING");
    assert_eq!(health(&me, "").await, "SERVING");
    puts.store(0, Ordering::Relaxed);
    let (calls, began) = (200, Instant::now());
    for n in 0..calls {
        let status = send(&me, messages(&bytes(n, 100), |_| {})).await.unwrap_err();
        assert_eq!(
            (status.code(), reason(&status)),
            (Code::Unavailable, "BACKEND_UNAVAILABLE".into())
        );
        assert_eq!(info(&status)["backend"], "object_store");
    }
    let tried = puts.load(Ordering::Relaxed);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
    // Ten in ten seconds are free.
    let free = 10 * (took.as_secs() as usize / 10 + 1);
    assert!(tried <= calls as usize * 11 / 10 + free, "{tried} attempts at {calls} uploads");
    let record = crate::world::create("d", crate::world::decision("ALLOW", 0.9));
    ok!(me.decisions().create_decision(record));
    world.close().await;
}

#[tokio::test]
async fn a_store_that_hangs_is_given_up_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let settings = [
        ("blob_store_url", "s3://bucket"),
        ("s3_endpoint", endpoint.as_str()),
        ("s3_access_key_id", "who"),
        ("s3_secret_access_key", "what"),
        ("blob_request_timeout_ms", "300"),
    ];
    let world = World::with(&settings).await;
    let me = world.anonymous();
    let began = Instant::now();
    let status = send(&me, messages(b"x", |_| {})).await.unwrap_err();
    assert_eq!(reason(&status), "BACKEND_UNAVAILABLE", "{status:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let mut bounded = tonic::Request::new(tokio_stream::iter(messages(b"x", |_| {})));
    bounded.set_timeout(Duration::from_millis(200));
    let status = me.blobs().upload_blob(bounded).await.unwrap_err();
    // Whoever of the two is first to say it.
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    world.close().await;
}
