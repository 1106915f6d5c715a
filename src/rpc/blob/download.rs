//! DownloadBlob and ReadBlobs: bytes out of the store, held to their digest.
//!
//! A task reads ahead a little (`ahead.rs`) and gives out a chunk when the connection has room for one. All have shares of
//! the budget of bytes in memory, a chunk until the next one is asked for. For a caller that is slow nothing is read ahead
//! and chunks are small, so that many of them keep little from others. The task ends by itself when the caller goes, does
//! not read, at the deadline, and when the server stops; the stream then says why.

use super::ahead::Ahead;
use super::{Blobs, digest, digests, piecewise};
use crate::pb::download_blob_response::Part;
use crate::pb::read_blobs_response::Item;
use crate::pb::{self, DownloadBlobResponse};
use crate::rpc::wire::Fields;
use crate::rpc::{Api, json};
use crate::store::blob::body::{Source, memory_bytes};
use crate::store::blob::change::corrupt;
use crate::store::blob::{Blob, CORRUPT};
use crate::store::blob_store::budget::Share;
use crate::store::blob_store::damaged;
use crate::store::caller::Caller;
use crate::store::event::LogEvent;
use crate::store::log::hex;
use crate::store::noun::Noun as _;
use crate::store::object_version::ObjectVersion;
use crate::store::write::WriteOptions;
use crate::{Error, Result};
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt as _};
use sha2::{Digest as _, Sha256};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep_until, timeout};
use tonic::Status;

/// Pieces of one stream that are read at once.
const AHEAD: usize = 4;
/// What ReadBlobs reads together.
const SMALL_BYTES: i64 = 2 << 20;
/// Audit entries of one call that are on their way at once.
const ENTRIES_AT_ONCE: usize = 32;

/// What a slow caller gets at once, and each one at first: the window of a stream that clients open by default.
const CHUNK_MIN_BYTES: usize = 64 << 10;
/// The most that anybody gets at once, because it may be left lying in the connection.
const CHUNK_MAX_BYTES: usize = 256 << 10;
/// Whoever asks for a chunk later than this is slow.
const SLOW: Duration = Duration::from_millis(100);

/// A chunk's share of the budget, which can be taken back from a caller that does not read.
type Held = Arc<Mutex<Option<Share>>>;
type Chunk = (Bytes, Held);

fn taken(held: &Held) -> Option<Share> {
    held.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// The chunks of a download, each asked for when the connection takes it.
fn chunks(
    received: mpsc::Receiver<Chunk>,
    ask: mpsc::Sender<()>,
) -> impl Stream<Item = Result<DownloadBlobResponse, Status>> {
    // The share of a chunk stays with it until another comes or none, should nobody take it back before.
    stream::unfold((received, ask, Held::default()), |(mut received, ask, _held)| async move {
        // One that is asked for already will do.
        let _ = ask.try_send(());
        let (bytes, held) = received.recv().await?;
        Some((Ok(message(Part::Chunk(bytes))), (received, ask, held)))
    })
}

/// What is to be downloaded.
enum Target {
    /// By its digest.
    Blob(String),
    Object {
        key: String,
        version_id: String,
    },
}

impl Api {
    pub(super) async fn download(
        &self,
        caller: Caller,
        request: pb::DownloadBlobRequest,
    ) -> Result<<Api as pb::blob_service_server::BlobService>::DownloadBlobStream> {
        let pb::DownloadBlobRequest { digest: given, offset, limit, object } = request;
        let mut fields = Fields::new(&caller, 1);
        if limit < 0 {
            fields.wrong("limit", "must not be negative");
        }
        let target = match (given, object) {
            (Some(_), Some(_)) => {
                fields.wrong("object", "must not be set together with digest");
                Target::Blob(String::new())
            }
            (given, None) => Target::Blob(digest(&mut fields, "digest", given)),
            (None, Some(pb::ObjectVersionRef { key, version_id })) => {
                fields.within("object", |fields| Target::Object {
                    key: fields.object_key("key", key),
                    version_id: fields.reference("version_id", version_id),
                })
            }
        };
        let target = fields.finish(target)?;
        let (blob, of) = self.found_target(&caller, target).await?;
        let range = range(offset, limit, blob.size_bytes)?;
        let source = self.source(&caller, &blob).await?;
        self.note(&caller, &blob, of.as_ref(), Some((offset, limit))).await?;

        let (given, received) = mpsc::channel::<Chunk>(1);
        let (ask, asked) = mpsc::channel(1);
        let (end, ended) = oneshot::channel();
        let header = pb::Blob::from(blob.clone());
        let api = self.clone();
        let send = Send { api, caller, blob, source, range };
        tokio::spawn(async move {
            let (closed, deadline) = (send.api.health.closed(), send.caller.deadline);
            let result = tokio::select! {
                result = send.run(&given, asked) => result,
                () = given.closed() => Ok(()),
                () = closed => Err(Error::ShuttingDown),
                () = sleep_until(deadline) => {
                    Err(Error::DeadlineExceeded(" before the download was whole"))
                }
            };
            // A caller that has gone away needs no answer.
            let _ = end.send(result);
        });
        let header = stream::once(async { Ok(message(Part::Header(header))) });
        let last = stream::once(async move {
            match ended.await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(Err(Status::from(error))),
                Err(_) => Some(Err(Error::internal("a download ended without a word").into())),
            }
        });
        Ok(Box::pin(header.chain(chunks(received, ask)).chain(last.filter_map(std::future::ready))))
    }

    /// The way to the bytes of a blob that are not known to be damaged.
    pub(in crate::rpc) async fn source(&self, caller: &Caller, blob: &Blob) -> Result<Source> {
        self.source_beside(caller, blob, None).await
    }

    /// The same where what lies in the database may have been read.
    async fn source_beside(
        &self,
        caller: &Caller,
        blob: &Blob,
        content: Option<Bytes>,
    ) -> Result<Source> {
        if blob.state == CORRUPT {
            let mut error = damaged("this was found before; upload the right ones again");
            if let Error::DataLoss { metadata, .. } = &mut error {
                metadata.push(("digest", blob.id.clone()));
            }
            return Err(error);
        }
        let blobs = self.blobs()?;
        let keys = blobs.keys.as_deref();
        let (store, caller_now) = (&blobs.store, piecewise(caller));
        let source = match content {
            Some(bytes) => Source::inline(bytes, keys, &caller.tenant, blob).await,
            None => self.store.source(store, keys, &caller_now, blob).await,
        };
        match source {
            Ok(source) => Ok(source),
            Err(error) => Err(self.accuse(caller, blob, error).await),
        }
    }

    /// The blob that is asked for, and the version of an object that it is asked for by.
    async fn found_target(
        &self,
        caller: &Caller,
        target: Target,
    ) -> Result<(Blob, Option<ObjectVersion>)> {
        let caller = piecewise(caller);
        let (key, version_id) = match target {
            Target::Blob(id) => return Ok((self.store.get(&caller, &id).await?, None)),
            Target::Object { key, version_id } => (key, version_id),
        };
        let version = self.store.object(&caller, &key, &version_id, None).await?.version;
        if version.digest.is_empty() {
            let why = match version.delete_marker {
                true => "names a delete marker, which has no bytes".to_owned(),
                false => format!(
                    "names bytes that are not kept here: {} has them at {}",
                    version.storage_backend, version.location
                ),
            };
            return Err(Error::invalid("object", why));
        }
        let blob = self.store.get(&caller, &version.digest).await?;
        Ok((blob, Some(version)))
    }

    /// Records that a blob's bytes were given to the caller, as those of an object if they were asked for so.
    async fn note(
        &self,
        caller: &Caller,
        blob: &Blob,
        of: Option<&ObjectVersion>,
        range: Option<(i64, i64)>,
    ) -> Result<()> {
        let range = match range {
            Some((offset, limit)) => serde_json::json!({"limit": limit, "offset": offset}),
            None => serde_json::json!({}),
        };
        let event = match of {
            None => LogEvent::of(blob, "DOWNLOAD", json::of_value(&range)),
            Some(version) => {
                let mut metadata = range;
                metadata["digest"] = blob.id.clone().into();
                let mut event = LogEvent::of(version, "DOWNLOAD", json::of_value(&metadata));
                event.event.object_key.clone_from(&version.object_key);
                event
            }
        };
        self.store.write(piecewise(caller), WriteOptions::default(), event).await?;
        Ok(())
    }

    /// Names the blob in an error about its bytes, and marks it.
    pub(in crate::rpc) async fn accuse(&self, caller: &Caller, blob: &Blob, error: Error) -> Error {
        let Error::DataLoss { reason, message, mut metadata } = error else { return error };
        metadata.push(("digest", blob.id.clone()));
        let marked = self.store.write(piecewise(caller), WriteOptions::default(), corrupt(blob));
        match marked.await {
            Ok((Some(row), _)) if row.store_key == blob.store_key => {
                if let Some(blobs) = &self.blobs {
                    blobs.corrupt.inc();
                }
            }
            // It was deleted while it was read.
            Ok(_) => return Error::not_found(Blob::KIND, &blob.id),
            Err(error) => {
                tracing::error!(%error, digest = blob.id, "a damaged blob could not be marked");
            }
        }
        let message = format!("{message} (\"{}\")", blob.id);
        Error::DataLoss { reason, message, metadata }
    }

    /// Reads blobs whole that are small together.
    pub(super) async fn read_small(
        &self,
        caller: &Caller,
        given: Vec<pb::Digest>,
    ) -> Result<Vec<Item>> {
        let ids = digests(caller, &given)?;
        let found = self.found(caller, ids.clone()).await?;
        let (mut together, mut memory) = (0, 0);
        let fits: Vec<Result<Blob>> = found
            .into_iter()
            .zip(ids)
            .map(|(found, id)| {
                let blob = found.ok_or_else(|| Error::not_found("blob", id))?;
                if together + blob.size_bytes > SMALL_BYTES {
                    return Err(Error::TooLarge { limit_bytes: SMALL_BYTES.unsigned_abs() });
                }
                together += blob.size_bytes;
                memory += memory_bytes(&blob, blob.size_bytes.unsigned_abs());
                Ok(blob)
            })
            .collect();
        let _share = self.blobs()?.budget.take(memory.max(1)).await?;
        let contents = self.store.contents(&piecewise(caller), fits.iter().flatten()).await?;
        let read = fits.into_iter().zip(given).map(async |(blob, digest)| {
            let read = match blob {
                Ok(blob) => {
                    let content = contents.get(&blob.meta.uid).cloned();
                    self.read_whole(caller, &blob, content).await
                }
                Err(error) => Err(error),
            };
            let item = Item { digest: Some(digest), ..Item::default() };
            match read {
                Ok(data) => Item { data, ..item },
                Err(error) => {
                    let reason = error.reason().as_str().to_owned();
                    let status = Status::from(error);
                    let (code, message) = (status.code().into(), status.message().to_owned());
                    Item { code, reason, message, ..item }
                }
            }
        });
        Ok(stream::iter(read).buffered(ENTRIES_AT_ONCE).collect().await)
    }

    async fn read_whole(
        &self,
        caller: &Caller,
        blob: &Blob,
        content: Option<Bytes>,
    ) -> Result<Bytes> {
        let source = self.source_beside(caller, blob, content).await?;
        self.note(caller, blob, None, None).await?;
        self.read_right(caller, blob, &source).await
    }

    /// All bytes of a blob, held to its digest.
    pub(super) async fn read_right(
        &self,
        caller: &Caller,
        blob: &Blob,
        source: &Source,
    ) -> Result<Bytes> {
        let read = source.read(0..blob.size_bytes.unsigned_abs(), caller.deadline).await;
        let read = read.and_then(|bytes| {
            if hex(&Sha256::digest(&bytes)) == blob.id { Ok(bytes) } else { Err(other_bytes()) }
        });
        match read {
            Ok(bytes) => Ok(bytes),
            Err(error) => Err(self.accuse(caller, blob, error).await),
        }
    }
}

fn message(part: Part) -> DownloadBlobResponse {
    DownloadBlobResponse { part: Some(part) }
}

pub(in crate::rpc) fn other_bytes() -> Error {
    damaged("they have another digest")
}

/// The bytes that are asked for.
fn range(offset: i64, limit: i64, size_bytes: i64) -> Result<Range<u64>> {
    let start = if offset < 0 { size_bytes.saturating_add(offset) } else { offset };
    if start < 0 || start > size_bytes {
        let message =
            format!("offset {offset} lies outside of the blob, which has {size_bytes} bytes");
        return Err(Error::OutOfRange { message, metadata: ("size_bytes", size_bytes) });
    }
    let end = if limit == 0 { size_bytes } else { size_bytes.min(start.saturating_add(limit)) };
    Ok(start.unsigned_abs()..end.unsigned_abs())
}

/// A download under way.
struct Send {
    api: Api,
    caller: Caller,
    blob: Blob,
    source: Source,
    range: Range<u64>,
}

impl Send {
    async fn run(&self, given: &mpsc::Sender<Chunk>, asked: mpsc::Receiver<()>) -> Result<()> {
        match self.send(given, asked).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.api.accuse(&self.caller, &self.blob, error).await),
        }
    }

    async fn send(&self, given: &mpsc::Sender<Chunk>, mut asked: mpsc::Receiver<()>) -> Result<()> {
        let blobs = self.api.blobs()?;
        let idle = blobs.limits.idle;
        let chunk_max = blobs.limits.chunk_max.min(CHUNK_MAX_BYTES);
        let chunk_min = chunk_max.min(CHUNK_MIN_BYTES);
        let is_whole = self.range == (0..self.blob.size_bytes.unsigned_abs());
        let mut hasher = Sha256::new();
        if is_whole && self.range.is_empty() {
            // There is nothing to send, but it must be there.
            self.source.read(0..0, self.caller.deadline).await?;
        }
        let (mut at, mut chunk_bytes, mut is_slow) = (self.range.start, chunk_min, false);
        let mut ahead: Option<Ahead<'_>> = None;
        let mut held = Held::default();
        while at < self.range.end {
            let mut ask = timeout(SLOW.min(idle), asked.recv()).await;
            if ask.is_err() {
                // It is read once more when it is asked for.
                (ahead, is_slow, chunk_bytes) = (None, true, chunk_min);
                ask = timeout(idle.saturating_sub(SLOW), asked.recv()).await;
            }
            match ask {
                Ok(Some(())) => {}
                // Nobody takes them any more, which is known elsewhere.
                Ok(None) => return Ok(()),
                Err(_) => {
                    taken(&held);
                    return Err(Error::DeadlineExceeded(
                        ": the download was not read for too long",
                    ));
                }
            }
            // The connection asks again only when it has sent what it was given.
            let sent = taken(&held);
            match &mut ahead {
                Some(ahead) => ahead.sent(sent),
                None => drop(sent),
            }
            if ahead.as_ref().is_some_and(|ahead| ahead.is_others_turn(&blobs.budget)) {
                ahead = None;
            }
            let (chunk, its_share) = if is_slow {
                let end = self.range.end.min(at + chunk_bytes as u64);
                let (chunk, share) = self.read(blobs, at..end).await?;
                (chunk, Some(share))
            } else {
                let ahead = match &mut ahead {
                    Some(ahead) => ahead,
                    none => none.insert(self.ahead(blobs, at).await?),
                };
                ahead.chunk(chunk_bytes).await?
            };
            if chunk.is_empty() {
                return Err(Error::internal("a piece of nothing"));
            }
            at += chunk.len() as u64;
            if is_whole {
                hasher.update(&chunk);
            }
            held = Arc::new(Mutex::new(its_share));
            // There is room, because it was asked for; and when nobody takes it any more, that is known elsewhere.
            let _ = given.send((chunk, Arc::clone(&held))).await;
            chunk_bytes = chunk_max.min(2 * chunk_bytes);
            is_slow = is_slow && chunk_bytes < chunk_max;
        }
        if is_whole && hex(&hasher.finalize()) != self.blob.id {
            return Err(other_bytes());
        }
        Ok(())
    }

    /// What is read of the range from there on. It waits for memory, so nothing may be held.
    async fn ahead<'a>(&'a self, blobs: &'a Blobs, at: u64) -> Result<Ahead<'a>> {
        let range = at..self.range.end;
        if let Some(reading) = self.source.flow(range.clone(), self.caller.deadline)? {
            return Ahead::flow(reading, &blobs.budget).await;
        }
        let pieces = stream::iter(cut(range, blobs.store.piece_bytes()))
            .map(|range| self.read(blobs, range))
            .buffered(AHEAD);
        Ok(Ahead::pieces(pieces.boxed()))
    }

    /// Reads one piece in a task of its own, so that it goes on while an earlier one waits to be taken. The share is
    /// taken in the order of the pieces: the first of them never waits for a later one.
    async fn read(&self, blobs: &Blobs, range: Range<u64>) -> Result<(Bytes, Share)> {
        let memory = memory_bytes(&self.blob, range.end - range.start);
        let share = blobs.budget.take(memory).await?;
        let (source, deadline) = (self.source.clone(), self.caller.deadline);
        let read = tokio::spawn(async move { source.read(range, deadline).await });
        Ok((read.await.map_err(Error::internal)??, share))
    }
}

/// A range in pieces.
pub(super) fn cut(range: Range<u64>, piece_bytes: u64) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    let starts = (0..).map(move |n| range.start + n * piece_bytes);
    starts
        .take_while(move |start| *start < end)
        .map(move |start| start..end.min(start + piece_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_lies_within_the_blob() {
        assert_eq!(range(0, 0, 10).unwrap(), 0..10);
        assert_eq!(range(3, 4, 10).unwrap(), 3..7);
        assert_eq!(range(-3, 0, 10).unwrap(), 7..10);
        assert_eq!(range(-3, 1, 10).unwrap(), 7..8);
        assert_eq!(range(9, i64::MAX, 10).unwrap(), 9..10);
        assert_eq!(range(10, 0, 10).unwrap(), 10..10);
        assert_eq!(range(0, 0, 0).unwrap(), 0..0);
        for offset in [11, -11, i64::MIN, i64::MAX] {
            assert!(range(offset, 0, 10).is_err(), "{offset}");
        }
    }

    #[test]
    fn pieces_are_the_whole_range() {
        assert_eq!(cut(3..10, 3).collect::<Vec<_>>(), [3..6, 6..9, 9..10]);
        assert_eq!(cut(3..9, 3).count(), 2);
        assert_eq!(cut(3..3, 3).count(), 0);
    }
}
