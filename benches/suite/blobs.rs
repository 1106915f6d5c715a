//! Blobs: up and down through Casebook, and through object_store alone, on the same disk or the same S3.

use crate::load::{Call, MEASURING, OVER};
use crate::measure::{Bench, Figure, Outcome, Scenario, Side};
use crate::s3::Bucket;
use crate::scenarios::Case;
use crate::sides::Running;
use crate::stats::{Random, Wanted};
use crate::{Context, Result};
use bytes::{Bytes, BytesMut};
use casebook::pb;
use futures_util::TryStreamExt as _;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _, WriteMultipart};
use pb::blob_service_client::BlobServiceClient;
use pb::download_blob_response::Part as Down;
use pb::upload_blob_request::Part as Up;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::transport::Channel;

/// Of a large blob.
const LARGE: usize = 64 << 20;
/// Of a small one.
const SMALL: usize = 4 << 10;
/// What goes in one message, and to object_store at once.
const CHUNK: usize = 1 << 20;
/// As Casebook cuts a large blob.
const PART: usize = 8 << 20;
const PARTS_AT_ONCE: usize = 2;
const KEY: &str = "large";
/// Callers of the scenario of slow readers who are not slow.
const READERS: usize = 4;
/// Callers of the scenario of small blobs, as of that of records.
const IN_FLIGHT: usize = 64;

fn random_bytes(random: &mut Random, len: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes.freeze()
}

/// The same bytes but for the first of them, so that no two are equal.
fn another(random: &mut Random, bytes: &Bytes) -> Vec<Bytes> {
    let first = random_bytes(random, 32);
    let mut pieces = vec![first];
    let mut rest = bytes.slice(32..);
    while !rest.is_empty() {
        pieces.push(rest.split_to(CHUNK.min(rest.len())));
    }
    pieces
}

/// Notes how long each turn took of those in the measured time.
struct Clock {
    phase: Arc<AtomicU8>,
    took: Vec<u32>,
}

impl Clock {
    fn new(phase: Arc<AtomicU8>) -> Self {
        Self { phase, took: Vec::with_capacity(1 << 12) }
    }

    /// Whether it is over.
    fn note(&mut self, began: Instant) -> bool {
        let took = began.elapsed().as_micros() as u32;
        match self.phase.load(Ordering::Relaxed) {
            MEASURING => self.took.push(took),
            OVER => return true,
            _ => {}
        }
        false
    }
}

fn client(channel: Channel) -> BlobServiceClient<Channel> {
    BlobServiceClient::new(channel)
}

async fn upload(
    client: &mut BlobServiceClient<Channel>,
    pieces: Vec<Bytes>,
) -> Result<Option<pb::Digest>> {
    let header = pb::UploadBlobRequest { part: Some(Up::Header(pb::UploadHeader::default())) };
    let chunks =
        pieces.into_iter().map(|piece| pb::UploadBlobRequest { part: Some(Up::Chunk(piece)) });
    let messages = tokio_stream::iter(std::iter::once(header).chain(chunks));
    let answer = client.upload_blob(messages).await?.into_inner();
    if answer.deduplicated {
        return Err("these bytes were there".into());
    }
    Ok(answer.blob.with(|| "no blob")?.digest)
}

/// Uploads blobs of that size, no two alike. Large ones are deleted again, which is not counted.
pub async fn upload_until_over(
    channel: Channel,
    size_bytes: usize,
    mut random: Random,
    phase: Arc<AtomicU8>,
) -> Result<Vec<u32>> {
    let (mut client, mut clock) = (client(channel), Clock::new(phase));
    let bytes = random_bytes(&mut random, size_bytes);
    loop {
        let pieces = another(&mut random, &bytes);
        let began = Instant::now();
        let digest = upload(&mut client, pieces).await?;
        if clock.note(began) {
            return Ok(clock.took);
        }
        if size_bytes == LARGE {
            client.delete_blob(pb::DeleteBlobRequest { digest, ..Default::default() }).await?;
        }
    }
}

/// Downloads the same blob again and again.
pub async fn download_until_over(
    channel: Channel,
    size_bytes: usize,
    mut random: Random,
    phase: Arc<AtomicU8>,
) -> Result<Vec<u32>> {
    let (mut client, mut clock) = (client(channel), Clock::new(phase));
    let bytes = random_bytes(&mut random, size_bytes);
    let digest = upload(&mut client, another(&mut random, &bytes)).await?;
    loop {
        let began = Instant::now();
        let request = pb::DownloadBlobRequest { digest: digest.clone(), ..Default::default() };
        let mut stream = client.download_blob(request).await?.into_inner();
        let mut found = 0;
        while let Some(message) = stream.message().await? {
            if let Some(Down::Chunk(chunk)) = message.part {
                found += chunk.len();
            }
        }
        if found != size_bytes {
            return Err(format!("{found} bytes came").into());
        }
        if clock.note(began) {
            client.delete_blob(pb::DeleteBlobRequest { digest, ..Default::default() }).await?;
            return Ok(clock.took);
        }
    }
}

/// One reader over each channel takes a message of a large blob a second. Nothing of it is counted.
pub async fn dawdle_until_over(
    channels: Vec<Channel>,
    mut random: Random,
    phase: Arc<AtomicU8>,
) -> Result<Vec<u32>> {
    let bytes = random_bytes(&mut random, LARGE);
    let mut first = client(channels.first().with(|| "no slow reader")?.clone());
    let digest = upload(&mut first, another(&mut random, &bytes)).await?;
    let mut readers = JoinSet::new();
    for channel in channels {
        let request = pb::DownloadBlobRequest { digest: digest.clone(), ..Default::default() };
        readers.spawn(async move {
            let mut stream = client(channel).download_blob(request).await?.into_inner();
            while stream.message().await?.is_some() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Result::<()>::Err("a slow reader came to an end".into())
        });
    }
    while phase.load(Ordering::Relaxed) != OVER {
        tokio::select! {
            Some(ended) = readers.join_next() => ended??,
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
    readers.shutdown().await;
    first.delete_blob(pb::DeleteBlobRequest { digest, ..Default::default() }).await?;
    Ok(Vec::new())
}

/// Where object_store alone keeps objects.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Place {
    Folder(PathBuf),
    Bucket(Bucket),
}

impl Place {
    fn open(&self) -> Result<Arc<dyn ObjectStore>> {
        match self {
            // As Casebook opens it: what is written is on the disk.
            Self::Folder(folder) => {
                std::fs::create_dir_all(folder)?;
                Ok(Arc::new(LocalFileSystem::new_with_prefix(folder)?.with_fsync(true)))
            }
            Self::Bucket(bucket) => Ok(Arc::new(bucket.client()?)),
        }
    }
}

async fn put(store: &dyn ObjectStore, key: &Key, pieces: Vec<Bytes>) -> Result<()> {
    let mut write = WriteMultipart::new_with_chunk_size(store.put_multipart(key).await?, PART);
    for piece in pieces {
        write.wait_for_capacity(PARTS_AT_ONCE).await?;
        write.put(piece);
    }
    write.finish().await?;
    Ok(())
}

/// Puts large objects straight.
pub async fn put_until_over(
    place: &Place,
    mut random: Random,
    phase: Arc<AtomicU8>,
) -> Result<Vec<u32>> {
    let (store, mut clock) = (place.open()?, Clock::new(phase));
    let bytes = random_bytes(&mut random, LARGE);
    loop {
        let key = Key::from(format!("put-{}", random.next()));
        let pieces = another(&mut random, &bytes);
        let began = Instant::now();
        put(&*store, &key, pieces).await?;
        let is_over = clock.note(began);
        store.delete(&key).await?;
        if is_over {
            return Ok(clock.took);
        }
    }
}

/// Reads the same large object as a stream.
pub async fn get_until_over(
    place: &Place,
    mut random: Random,
    phase: Arc<AtomicU8>,
) -> Result<Vec<u32>> {
    let (store, mut clock, key) = (place.open()?, Clock::new(phase), Key::from(KEY));
    let bytes = random_bytes(&mut random, LARGE);
    put(&*store, &key, another(&mut random, &bytes)).await?;
    loop {
        let began = Instant::now();
        let mut stream = store.get(&key).await?.into_stream();
        let mut found = 0;
        while let Some(piece) = stream.try_next().await? {
            found += piece.len();
        }
        if found != LARGE {
            return Err(format!("{found} bytes came").into());
        }
        if clock.note(began) {
            return Ok(clock.took);
        }
    }
}

/// Keys for the servers that encrypt here.
const KEY_RING: &str = "bench:qrvM3e7/ABEiM0RVZneImaq7zN3u/wARIjNEVWZ3iJk=";

impl Case<'_> {
    /// One of the scenarios of large blobs: that way, and encrypted or not.
    pub async fn large_blobs(
        &self,
        bench: &Bench<'_>,
        is_up: bool,
        is_sealed: bool,
    ) -> Result<Outcome> {
        let (folder, objects) = (self.folder.join("blobs"), self.folder.join("objects"));
        let server = self.blob_server(&folder, is_sealed).await?;
        let theirs = match is_up {
            true => {
                "object_store alone, on the same disk and with fsync: an upload in parts of 8 MiB, two at once, of \
                 pieces of 1 MiB, neither hashed nor recorded"
            }
            false => {
                "object_store alone, on the same disk: get() and its stream of bytes, not hashed"
            }
        };
        let (name, title) = match (is_up, is_sealed) {
            (true, false) => ("blob-upload", "UploadBlob of 64 MiB against object_store"),
            (true, true) => ("blob-upload-sealed", "The same, encrypted"),
            (false, false) => ("blob-download", "DownloadBlob of 64 MiB against object_store"),
            (false, true) => ("blob-download-sealed", "The same, encrypted"),
        };
        let target = if is_sealed { 0.65 } else { 0.8 };
        let what = (name, title, target, if is_sealed { ", encrypted" } else { "" }, theirs);
        let place = Place::Folder(objects.clone());
        let outcome = self.compare_large(bench, &server, place, is_up, what).await;
        server.stop().await?;
        for folder in [folder, objects] {
            tokio::fs::remove_dir_all(folder).await?;
        }
        outcome
    }

    /// The same, not encrypted, on S3.
    pub async fn large_blobs_in_s3(&self, bench: &Bench<'_>, is_up: bool) -> Result<Outcome> {
        let bucket = Bucket::make().await?;
        let flags = bucket.flags();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let (service, owner) = (self.database.service_url(), self.database.owner_url());
        let server = Running::casebook_with(self.folder, &service, &owner, &flags).await?;
        let theirs = match is_up {
            true => {
                "object_store alone, on the same S3: an upload in parts of 8 MiB, two at once, of pieces of 1 MiB, \
                 neither hashed nor recorded"
            }
            false => {
                "object_store alone, on the same S3: get() and its stream of bytes, not hashed"
            }
        };
        let (name, title) = match is_up {
            true => ("blob-upload-s3", "UploadBlob of 64 MiB onto S3 against object_store"),
            false => ("blob-download-s3", "DownloadBlob of 64 MiB from S3 against object_store"),
        };
        let what = (name, title, 0.8, " on S3", theirs);
        let place = Place::Bucket(bucket.clone());
        let outcome = self.compare_large(bench, &server, place, is_up, what).await;
        server.stop().await?;
        bucket.remove().await?;
        outcome
    }

    /// Compares one way of large blobs; `what` is name, title, target, what is said of the blobs, and what theirs is.
    async fn compare_large(
        &self,
        bench: &Bench<'_>,
        server: &Running,
        place: Place,
        is_up: bool,
        what: (&'static str, &'static str, f64, &str, &str),
    ) -> Result<Outcome> {
        let address = server.address.clone();
        let (ours, call, way) = match is_up {
            true => {
                (Call::Upload { address, size_bytes: LARGE }, Call::Put { place }, "UploadBlob")
            }
            false => (
                Call::Download { address, size_bytes: LARGE, slow_readers: 0 },
                Call::Read { place },
                "DownloadBlob",
            ),
        };
        let (name, title, target, of, theirs) = what;
        let said = format!("{way} of 64 MiB{of}, hashed and logged, one caller, messages of 1 MiB");
        bench
            .compare(Scenario {
                name,
                title,
                figure: Figure::MedianSpeed,
                wanted: Wanted::AtLeast,
                target,
                ours: (said, self.client(server, ours, 1)),
                theirs: (theirs.into(), Side::Client { call, in_flight: 1, watched: Vec::new() }),
            })
            .await
    }

    pub async fn small_blobs(&self, bench: &Bench<'_>) -> Result<Outcome> {
        let folder = self.folder.join("blobs");
        let server = self.blob_server(&folder, false).await?;
        let ours = Call::Upload { address: server.address.clone(), size_bytes: SMALL };
        let outcome = bench
            .compare(Scenario {
                name: "blob-small",
                title: "UploadBlob of 4 KiB against CreateDecision",
                figure: Figure::Throughput,
                wanted: Wanted::AtLeast,
                target: 0.7,
                ours: (
                    format!("UploadBlob of 4 KiB, {IN_FLIGHT} callers, into the database"),
                    self.client(&server, ours, IN_FLIGHT),
                ),
                theirs: (
                    format!("unary CreateDecision, {IN_FLIGHT} callers, at the same server"),
                    self.creates(&server, &[], IN_FLIGHT),
                ),
            })
            .await;
        server.stop().await?;
        tokio::fs::remove_dir_all(folder).await?;
        outcome
    }

    /// What slow readers do to others (they share the budget of bytes in memory).
    pub async fn slow_readers(&self, bench: &Bench<'_>) -> Result<Outcome> {
        let folder = self.folder.join("blobs");
        let server = self.blob_server(&folder, false).await?;
        let side = |slow_readers: usize| {
            let address = server.address.clone();
            let call = Call::Download { address, size_bytes: CHUNK, slow_readers };
            self.client(&server, call, READERS)
        };
        let outcome = bench
            .compare(Scenario {
                name: "blob-slow-readers",
                title: "DownloadBlob beside 200 slow readers",
                figure: Figure::LastTime,
                wanted: Wanted::AtMost,
                target: 2.0,
                ours: (
                    format!(
                        "DownloadBlob of 1 MiB, {READERS} callers, while 200 others take a message of a blob of 64 MiB a \
                         second, at 64 MiB of blob_in_flight_bytes"
                    ),
                    side(200),
                ),
                theirs: ("the same without the others".into(), side(0)),
            })
            .await;
        server.stop().await?;
        tokio::fs::remove_dir_all(folder).await?;
        outcome
    }

    async fn blob_server(&self, folder: &Path, is_sealed: bool) -> Result<Running> {
        let url = format!("file://{}", folder.display());
        let mut flags = vec!["--blob-store-url", url.as_str()];
        if is_sealed {
            flags.extend(["--blob-key", KEY_RING]);
        }
        let (service, owner) = (self.database.service_url(), self.database.owner_url());
        Running::casebook_with(self.folder, &service, &owner, &flags).await
    }
}
