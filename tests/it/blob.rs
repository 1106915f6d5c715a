//! Blobs: F101 to F107, F363 to F366, N1, N2: what is acknowledged is in the store, and what comes back is what was given.
//!
//! The suite in `blob/suite.rs` is of plain functions over a caller, so that it runs against any store.

mod bad;
mod cloud;
mod crash;
mod down;
mod faults;
mod flow;
mod inline;
pub mod killed;
mod memory;
mod rotate;
pub mod s3;
pub mod seal;
mod session;
mod session_crash;
mod store;
pub mod suite;
mod url;
pub mod verify;

use crate::help::*;
use crate::world::{As, World, reason, request};
use casebook::pb;
use pb::download_blob_response::Part as Down;
use pb::upload_blob_request::Part as Up;
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use tonic::{Code, Status};

pub const MIB: usize = 1 << 20;

/// Bytes that no two numbers share.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

pub fn digest(bytes: &[u8]) -> pb::Digest {
    pb::Digest { algorithm: "sha256".into(), value: Sha256::digest(bytes).to_vec().into() }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn header(change: impl FnOnce(&mut pb::UploadHeader)) -> pb::UploadBlobRequest {
    let mut header = pb::UploadHeader::default();
    change(&mut header);
    pb::UploadBlobRequest { part: Some(Up::Header(header)) }
}

pub fn chunk(bytes: &[u8]) -> pb::UploadBlobRequest {
    pb::UploadBlobRequest { part: Some(Up::Chunk(bytes.to_vec().into())) }
}

/// The messages of an upload whose header says what it is given.
pub fn messages(
    bytes: &[u8],
    change: impl FnOnce(&mut pb::UploadHeader),
) -> Vec<pb::UploadBlobRequest> {
    let mut all = vec![header(change)];
    all.extend(bytes.chunks(MIB).map(chunk));
    all
}

pub async fn send(
    who: &As,
    messages: Vec<pb::UploadBlobRequest>,
) -> Result<pb::UploadBlobResponse, Status> {
    let answer = who.blobs().upload_blob(tokio_stream::iter(messages)).await?;
    Ok(answer.into_inner())
}

/// Uploads without saying anything beforehand.
pub async fn upload(who: &As, bytes: &[u8]) -> pb::UploadBlobResponse {
    send(who, messages(bytes, |_| {})).await.expect("the upload is taken")
}

/// The header and all bytes of a download that ends well.
pub async fn download(
    who: &As,
    request: pb::DownloadBlobRequest,
) -> Result<(pb::Blob, Vec<u8>), Status> {
    let mut stream = who.blobs().download_blob(request).await?.into_inner();
    let first = stream.message().await?.expect("a header").part;
    let Some(Down::Header(blob)) = first else { panic!("{first:?} before the header") };
    let mut all = Vec::new();
    while let Some(message) = stream.message().await? {
        let Some(Down::Chunk(chunk)) = message.part else { panic!("a second header") };
        assert!((1..=MIB).contains(&chunk.len()), "a chunk of {}", chunk.len());
        all.extend_from_slice(&chunk);
    }
    Ok((blob, all))
}

pub fn whole(digest: pb::Digest) -> pb::DownloadBlobRequest {
    pb::DownloadBlobRequest { digest: Some(digest), ..Default::default() }
}

/// A world over a folder.
pub async fn on_disk(settings: crate::world::Settings<'_>) -> (World, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let mut all = vec![("blob_store_url", url.as_str())];
    all.extend(settings);
    (World::with(&all).await, folder)
}

/// Every file of a folder, with what is in it.
pub fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        // What goes while we look is gone.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files(&entry.path()));
        } else if let Ok(content) = std::fs::read(entry.path()) {
            found.push((entry.path(), content));
        }
    }
    found
}

/// Looks at database and folder for what must never be: a ready blob without its bytes, bytes that nothing knows of, and
/// bytes that are not those of their digest.
pub async fn is_consistent(database: &tokio_postgres::Client, folder: &Path) {
    // At one moment: a server that was killed may have left a transaction that is about to commit.
    let all = "SELECT b.id, b.store_key, b.stored_size_bytes, b.state, b.cipher, \
                 b.storage_backend = 'database', c.bytes FROM casebook.blob AS b \
                 LEFT JOIN casebook.blob_content AS c ON c.tenant_id = b.tenant_id AND c.blob_uid = b.uid \
                 WHERE b.state < 5 OR c.bytes IS NOT NULL \
               UNION ALL SELECT '', store_key, 0, 0::int2, 0::int2, false, NULL FROM casebook.blob_intent \
               UNION ALL SELECT '', store_key, 0, 0::int2, 0::int2, false, NULL FROM casebook.blob_upload_part";
    let rows = database.query(all, &[]).await.unwrap();
    let mut known: Vec<String> = Vec::new();
    for row in rows {
        let (id, key, size, state): (String, String, i64, i16) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        let (is_plain, is_inline) = (row.get::<_, i16>(4) == 0, row.get(5));
        let content: Option<Vec<u8>> = row.get(6);
        assert!(content.is_none() || is_inline && state < 5, "bytes of {id} lie in the database");
        if state == 2 {
            let content = match content {
                Some(content) => content,
                None => std::fs::read(folder.join(&key))
                    .unwrap_or_else(|error| panic!("no bytes of {id}: {error}")),
            };
            assert_eq!(content.len() as i64, size);
            assert_eq!(hex(&Sha256::digest(&content)) == id, is_plain, "{id}");
        }
        known.extend((!is_inline).then_some(key));
    }
    let strays = "SELECT count(*) FROM casebook.blob_content AS c WHERE NOT EXISTS (SELECT FROM casebook.blob AS b \
                  WHERE b.tenant_id = c.tenant_id AND b.uid = c.blob_uid)";
    assert_eq!(database.query_one(strays, &[]).await.unwrap().get::<_, i64>(0), 0);
    for (path, content) in files(folder) {
        let key = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
        let key = key.split('#').next().unwrap();
        let is_known = known.iter().any(|known| known == key);
        assert!(is_known, "{} bytes at {key} that nothing knows of", content.len());
    }
}

/// Waits until no intents are left.
pub async fn is_settled(database: &tokio_postgres::Client) {
    for _ in 0..600 {
        let left = "SELECT count(*) FROM casebook.blob_intent";
        if database.query_one(left, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("intents stay");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_passes_in_memory() {
    let world = World::new().await;
    suite::run(&world, false).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_passes_on_a_local_disk() {
    let (world, folder) = on_disk(&[]).await;
    suite::run(&world, false).await;
    let database = world.superuser().await;
    is_settled(&database).await;
    is_consistent(&database, folder.path()).await;
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn a_server_without_a_store_serves_records_and_says_what_is_missing() {
    let database = crate::world::new_database(true).await;
    let url = crate::world::url_of(&crate::world::config_of(&database).await);
    let flags = [
        ("database_url", url.as_str()),
        ("listen", "127.0.0.1:0"),
        ("metrics_listen", ""),
        ("auth", "none"),
        ("drain_delay_ms", "0"),
    ];
    let flags = flags.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = casebook::config::Config::load(None, Vec::new(), flags).unwrap();
    assert_eq!(config.blob_store_url, None);
    let opened = casebook::server::Database::open(&config).await.unwrap();
    let server = casebook::server::Server::bind(config, &opened).await.unwrap();
    let channel = tonic::transport::Endpoint::from_shared(server.address()).unwrap();
    let me = crate::world::through(channel.connect_lazy());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(server.serve(async move {
        let _ = stopped.await;
    }));
    ok!(me
        .decisions()
        .create_decision(crate::world::create("d", crate::world::decision("ALLOW", 0.9))));
    let status = send(&me, messages(b"x", |_| {})).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::FailedPrecondition, "NOT_CONFIGURED".into())
    );
    assert_eq!(info(&status)["setting"], "blob_store_url");
    let get = pb::GetBlobRequest { digest: Some(digest(b"x")) };
    fails!(me.blobs().get_blob(get), FailedPrecondition, "NOT_CONFIGURED");
    assert_eq!(health(&me, "casebook.v1.BlobService").await, "NOT_SERVING");
    assert_eq!(health(&me, "").await, "SERVING");
    stop.send(()).unwrap();
    drop(me);
    serving.await.unwrap().unwrap();
    crate::world::drop_database(&database).await;
}

#[tokio::test]
async fn an_upload_may_last_longer_than_other_calls() {
    let settings = [("deadline_default_ms", "500"), ("deadline_max_ms", "500")];
    let (world, _folder) = on_disk(&settings).await;
    let me = world.anonymous();
    let given = bytes(20, 3 * MIB);
    let all = messages(&given, |_| {}).into_iter();
    let slow = futures_util::stream::unfold(all, |mut left| async {
        tokio::time::sleep(std::time::Duration::from_millis(400)).await;
        Some((left.next()?, left))
    });
    let blob = ok!(me.blobs().upload_blob(slow)).blob.unwrap();
    assert_eq!(blob.digest, Some(digest(&given)));
    world.close().await;
}

async fn health(who: &As, service: &str) -> String {
    let request = pb::health::HealthCheckRequest { service: service.into() };
    let answer = who.health().check(request).await.unwrap().into_inner();
    answer.status().as_str_name().to_owned()
}

#[tokio::test]
async fn a_store_that_is_gone_stops_blobs_and_nothing_else() {
    let (world, folder) = on_disk(&[("blob_probe_interval_ms", "20")]).await;
    let me = world.anonymous();
    upload(&me, b"before").await;
    let away = folder.path().with_extension("away");
    std::fs::rename(folder.path(), &away).unwrap();
    for _ in 0..500 {
        if health(&me, "casebook.v1.BlobService").await == "NOT_SERVING" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(health(&me, "casebook.v1.BlobService").await, "NOT_SERVING");
    assert_eq!(health(&me, "casebook.v1.DecisionService").await, "SERVING");
    assert_eq!(health(&me, "").await, "SERVING");
    let record = crate::world::create("d", crate::world::decision("ALLOW", 0.9));
    ok!(me.decisions().create_decision(record));
    std::fs::rename(&away, folder.path()).unwrap();
    for _ in 0..500 {
        if health(&me, "casebook.v1.BlobService").await == "SERVING" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(health(&me, "casebook.v1.BlobService").await, "SERVING");
    let (_, found) = download(&me, whole(digest(b"before"))).await.unwrap();
    assert_eq!(found, b"before");
    world.close().await;
}

#[tokio::test]
async fn a_repeated_upload_gets_the_first_answer_and_leaves_nothing() {
    let (world, folder) = on_disk(&[]).await;
    let me = world.anonymous();
    let once = |header: &mut pb::UploadHeader| header.options = Some(request("r-1"));
    let first = send(&me, messages(b"once", once)).await.unwrap();
    assert!(!first.deduplicated && !first.receipt.as_ref().unwrap().replayed);
    // Were the blob gone meanwhile, the repeated call would still be answered as the first was.
    let id = pb::DeleteBlobRequest { digest: Some(digest(b"once")), ..Default::default() };
    ok!(me.blobs().delete_blob(id));
    let again = send(&me, messages(b"once", once)).await.unwrap();
    assert!(again.receipt.as_ref().unwrap().replayed, "{again:?}");
    assert_eq!(again.blob, first.blob);
    let other = send(
        &me,
        messages(b"else", |header| {
            header.content_type = "text/plain".into();
            once(header);
        }),
    )
    .await
    .unwrap_err();
    assert_eq!(reason(&other), "REQUEST_ID_REUSED");
    let database = world.superuser().await;
    is_settled(&database).await;
    assert_eq!(files(folder.path()).len(), 0);
    drop(database);
    world.close().await;
}
