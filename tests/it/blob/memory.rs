//! Memory does not grow with what passes: F104, N2. `CASEBOOK_LONG_TESTS` has 5 GiB pass instead of 160 MiB.

use super::*;
use crate::process::{Postgres, Served, long_tests};
use crate::world::{through, url_of};

/// The most that a server may have had in memory at any time.
const MOST: u64 = 128 << 20;

/// The n-th MiB of a blob; no two are alike.
fn mebibyte(n: usize) -> Vec<u8> {
    let mut block = vec![0; MIB];
    for (at, word) in block.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&((n * MIB + at) as u64).to_le_bytes());
    }
    block
}

fn most_memory_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

async fn passes(count: usize, further: &[&str]) {
    let (postgres, folder) = (Postgres::start().await, tempfile::tempdir().unwrap());
    let url = url_of(&postgres.embedded.config());
    let store = format!("file://{}", folder.path().display());
    let mut flags = vec!["--database-url", &url, "--migrate-on-start", "true", "--auth", "none"];
    flags.extend(["--listen", "127.0.0.1:0", "--metrics-listen", "", "--blob-store-url", &store]);
    flags.extend(further);
    let mut server = Served::start(&flags);
    let me = through(server.connect().await);
    let chunks = (0..count).map(|n| chunk(&mebibyte(n)));
    let sent = std::iter::once(header(|_| {})).chain(chunks);
    let blob = ok!(me.blobs().upload_blob(tokio_stream::iter(sent))).blob.unwrap();
    assert_eq!(blob.size_bytes, (count * MIB) as i64);
    let up = most_memory_bytes(server.pid());
    let request = whole(blob.digest.unwrap());
    let mut stream = ok!(me.blobs().download_blob(request));
    let (mut n, mut waiting) = (0, Vec::new());
    while let Some(message) = stream.message().await.unwrap() {
        let Some(Down::Chunk(chunk)) = message.part else { continue };
        waiting.extend_from_slice(&chunk);
        while waiting.len() >= MIB {
            assert!(waiting[..MIB] == mebibyte(n), "the {n}th MiB");
            waiting.drain(..MIB);
            n += 1;
        }
    }
    assert_eq!((n, waiting.len()), (count, 0));
    let down = most_memory_bytes(server.pid());
    eprintln!("{count} MiB: at most {} MiB up, {} MiB down", up >> 20, down >> 20);
    assert!(down < MOST, "{} MiB", down >> 20);
}

fn count() -> usize {
    if long_tests() { 5 << 10 } else { 160 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_blob_takes_little_memory() {
    passes(count(), &["--blob-max-bytes", "6442450944"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_encrypted_blob_takes_little_memory() {
    passes(count(), &["--blob-max-bytes", "6442450944", "--blob-key", seal::OLD]).await;
}
