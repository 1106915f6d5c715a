//! UploadBlob: hashes bytes as they come, and keeps them only if all is as it was said.

use super::{Announced, Blobs, piecewise};
use crate::pb::upload_blob_request::Part;
use crate::pb::{self, UploadBlobResponse};
use crate::rpc::Api;
use crate::rpc::object::worded;
use crate::store::blob::body::{Sink, gather_bytes};
use crate::store::blob::change::{Intend, Keep, Kept, Name};
use crate::store::blob::hashing::{Hashing, WAITING_MAX_BYTES};
use crate::store::blob::reap::Left;
use crate::store::blob::{Arrived, Attempt, Blob, READY};
use crate::store::blob_store::Pieces;
use crate::store::blob_store::budget::Share;
use crate::store::caller::Caller;
use crate::store::envelope::KeySource;
use crate::store::object::Written;
use crate::store::object::put::Put;
use crate::store::object::upload::KeepAs;
use crate::store::write::WriteOptions;
use crate::{Error, Reason, Result};
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use prost::Message;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::{Status, Streaming};
use tracing::Instrument as _;

/// Messages that come after the answer are taken for so long and so many bytes, so that a caller that is still sending
/// reads the answer and not a broken stream.
const LINGER: Duration = Duration::from_secs(10);
const LINGER_BYTES: usize = 16 << 20;
/// How long removing an upload that failed may take before it is left to the reaper.
const ABANDON_TIME: Duration = Duration::from_secs(30);
/// A part of which next to nothing has come by then keeps nothing of the budget until more comes.
const SLOW: Duration = Duration::from_secs(2);
/// Smaller chunks are copied together.
const COPY_BELOW_BYTES: usize = 64 << 10;

impl Api {
    /// Runs in a task of its own: when the caller goes away its call is dropped, and what it has brought must go.
    pub(super) async fn upload(
        &self,
        caller: Caller,
        messages: Streaming<pb::UploadBlobRequest>,
    ) -> Result<UploadBlobResponse, Status> {
        let api = self.clone();
        let (ask, mut asked) = mpsc::channel::<oneshot::Sender<()>>(1);
        let task = async move {
            let closed = Box::pin(api.health.closed());
            let mut upload = Upload { work: Work { api, caller }, messages, closed, ask };
            let result = Box::pin(upload.run()).await.map_err(Fault::status);
            tokio::spawn(linger(upload.messages));
            result
        };
        let mut task = tokio::spawn(task.in_current_span());
        loop {
            tokio::select! {
                result = &mut task => return match result {
                    Ok(result) => result,
                    Err(error) => Err(Error::internal(error).into()),
                },
                Some(reply) = asked.recv() => {
                    // Behind this the server looks whether the caller has given up, and then drops us.
                    tokio::task::yield_now().await;
                    // A task that has ended needs no reply.
                    let _ = reply.send(());
                }
            }
        }
    }
}

pub(super) async fn linger<M: Message + Default + 'static>(mut messages: Streaming<M>) {
    let rest = async {
        let mut left = LINGER_BYTES;
        while let Ok(Some(message)) = messages.message().await {
            left = left.saturating_sub(message.encoded_len().max(1));
            if left == 0 {
                return;
            }
        }
    };
    let _ = timeout(LINGER, rest).await;
}

struct Upload {
    work: Work,
    messages: Streaming<pb::UploadBlobRequest>,
    /// The server goes away.
    closed: BoxFuture<'static, ()>,
    /// Asks the call itself whether it is still there.
    ask: mpsc::Sender<oneshot::Sender<()>>,
}

/// What is done for a caller, apart from what it sends.
#[derive(Clone)]
pub(in crate::rpc) struct Work {
    pub api: Api,
    pub caller: Caller,
}

/// Where the bytes of a blob come from, in order.
pub(super) trait Chunks: Send {
    /// The next; `None` after the last.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, Fault>> + Send;

    /// How many bytes of memory it takes to have them ready.
    fn memory_bytes(&self) -> u64;
}

/// Why bytes did not become a blob: for a reason of ours, or because the stream broke.
pub(super) enum Fault {
    Ours(Error),
    Broken(Status),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

impl Fault {
    pub fn status(self) -> Status {
        match self {
            Self::Ours(error) => error.into(),
            Self::Broken(status) => status,
        }
    }
}

/// An attempt that has brought its bytes, or is to bring them into the database.
pub(in crate::rpc) struct Brought {
    pub attempt: Attempt,
    pub keep: Keep,
}

impl Brought {
    fn stored(blobs: &Blobs, attempt: Attempt, digest: &str, arrived: Arrived) -> Self {
        let blob = attempt.blob(digest, arrived, blobs.store.backend());
        Self { attempt, keep: Keep { blob, content: None } }
    }
}

/// An attempt whose bytes go to the store in parts.
struct Stream {
    attempt: Attempt,
    sink: Sink,
    /// Whether a part may arrive that nobody waits for.
    may_arrive: bool,
}

impl Upload {
    async fn run(&mut self) -> Result<UploadBlobResponse, Fault> {
        let work = self.work.clone();
        let blobs = work.api.blobs()?;
        let header = match self.part().await? {
            Some(Part::Header(header)) => header,
            Some(Part::Chunk(_)) | None => {
                let what = "must be the first message of the stream";
                return Err(Error::invalid_because(Reason::HeaderRequired, "header", what).into());
            }
        };
        let announced = Announced::read(&work.caller, header, blobs.limits.size_max)?;
        // What is that small comes sooner than it is looked up; whoever writes it finds out whether it is here.
        let is_small = announced.size_bytes.is_some_and(|size| blobs.limits.is_inline(size));
        if !is_small
            && let Some(digest) = &announced.digest
            && let Some(there) = work.there(digest, announced.size_bytes).await?
        {
            return Ok(work.known(&announced, there).await?);
        }
        work.take(&announced, self).await
    }

    /// What the caller sends next; `None` when it has sent everything.
    async fn part(&mut self) -> Result<Option<Part>, Fault> {
        let idle = self.work.api.blobs()?.limits.idle;
        tokio::select! {
            message = timeout(idle, self.messages.message()) => match message {
                Ok(Ok(Some(message))) => match message.part {
                    Some(part) => Ok(Some(part)),
                    None => Err(Error::invalid("part", "is required").into()),
                },
                Ok(Ok(None)) => is_whole(self.ask.clone()).await.map(|()| None).map_err(Into::into),
                Ok(Err(status)) => Err(Fault::Broken(status)),
                Err(_) => Err(Error::DeadlineExceeded(
                    " for the next chunk: the stream was silent for too long; nothing was kept",
                ).into()),
            },
            () = &mut self.closed => Err(Error::ShuttingDown.into()),
            () = sleep_until(self.work.caller.deadline) => {
                Err(Error::DeadlineExceeded(" before the blob was whole; nothing was kept").into())
            }
        }
    }
}

impl Chunks for Upload {
    async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        let chunk = match self.part().await? {
            Some(Part::Chunk(chunk)) => chunk,
            Some(Part::Header(_)) => {
                return Err(Error::invalid("header", "must be the first message only").into());
            }
            None => return Ok(None),
        };
        check_chunk(&chunk, self.work.api.blobs()?.limits.chunk_max)?;
        Ok(Some(chunk))
    }

    fn memory_bytes(&self) -> u64 {
        0
    }
}

/// Refuses a chunk of a length that is not taken.
pub(super) fn check_chunk(chunk: &Bytes, chunk_max: usize) -> Result<()> {
    if chunk.is_empty() || chunk.len() > chunk_max {
        let must = format!("must be 1 to {chunk_max} bytes long, and is {}", chunk.len());
        return Err(Error::invalid("chunk", must));
    }
    Ok(())
}

impl Work {
    /// Makes a blob of bytes that come, if they are what was announced.
    pub(super) async fn take(
        &self,
        announced: &Announced,
        chunks: &mut impl Chunks,
    ) -> Result<UploadBlobResponse, Fault> {
        let mut stream = None;
        let result = self.receive(self.api.blobs()?, announced, chunks, &mut stream).await;
        if result.is_err()
            && let Some(Stream { attempt, mut sink, may_arrive }) = stream
        {
            let may_arrive = may_arrive || sink.is_under_way();
            self.abandon(&attempt, sink.upload_id(), may_arrive);
        }
        result
    }

    async fn receive(
        &self,
        blobs: &Blobs,
        announced: &Announced,
        chunks: &mut impl Chunks,
        stream: &mut Option<Stream>,
    ) -> Result<UploadBlobResponse, Fault> {
        let (work, limits) = (self, blobs.limits);
        // Whoever says how much it will be takes no more of the budget than that.
        let (is_sealed, further) = (blobs.keys.is_some(), blobs.store.part_bytes(limits.part));
        let part = |is_first| if is_first { limits.part } else { further };
        let whole = |is_first| gather_bytes(is_sealed, is_first, part(is_first));
        let beside = chunks.memory_bytes();
        let (first_max, mut further_max) =
            (whole(true) as u64 + beside, whole(false) as u64 + beside);
        if is_sealed {
            // What is still to be hashed is there beside what it was encrypted to.
            further_max += further.min(WAITING_MAX_BYTES) as u64;
        }
        let first = announced.size_bytes.unwrap_or(first_max).saturating_add(beside);
        let mut part_max = first.clamp(1, first_max);
        let mut share = Some(blobs.budget.begin(part_max).await?);
        let mut slow_from = Instant::now() + SLOW;
        let (mut gathered, mut hashing, mut size_bytes) =
            (Gathered::default(), Hashing::default(), 0u64);
        loop {
            let mut next = std::pin::pin!(chunks.next());
            let chunk = match timeout_at(slow_from, &mut next).await {
                Ok(chunk) => chunk,
                Err(_) => {
                    if size_bytes == 0
                        && let Some(digest) = &announced.digest
                        && let Some(there) = work.there(digest, announced.size_bytes).await?
                    {
                        return Ok(work.known(announced, there).await?);
                    }
                    // Whoever sends next to nothing keeps nothing from others. What has come is little; and whoever has
                    // brought more keeps the whole share, because to wait for one while others wait for what it has
                    // would be to wait for each other.
                    if gathered.len <= COPY_BELOW_BYTES {
                        share = None;
                    }
                    next.await
                }
            };
            let Some(mut chunk) = chunk? else { break };
            if share.is_none() {
                share = Some(blobs.budget.begin(part_max).await?);
            }
            size_bytes += chunk.len() as u64;
            if let Some(said) = announced.size_bytes.filter(|said| size_bytes > *said) {
                return Err(wrong_size(said, "there are more").into());
            }
            if size_bytes > limits.size_max {
                return Err(Error::TooLarge { limit_bytes: limits.size_max }.into());
            }
            hashing.update(&chunk).await?;
            while !chunk.is_empty() {
                if gathered.len == whole(stream.is_none()) {
                    // There is more, so this is not the last part.
                    let full = std::mem::take(&mut gathered).pieces();
                    let Some(its_share) = share.take().map(Arc::new) else {
                        return Err(Error::internal("a part without its share").into());
                    };
                    hashing.hold(&its_share);
                    work.send(blobs, announced, stream, full, false, its_share).await?;
                    part_max = further_max;
                    share = Some(blobs.budget.take(part_max).await?);
                    slow_from = Instant::now() + SLOW;
                }
                let room = whole(stream.is_none()) - gathered.len;
                gathered.add(chunk.split_to(room.min(chunk.len())));
            }
        }
        let share = match share {
            Some(share) => share,
            None => blobs.budget.take((gathered.len as u64).max(1)).await?,
        };
        let share = Arc::new(share);
        if size_bytes == 0
            && let Some(digest) = &announced.digest
            && let Some(there) = work.there(digest, announced.size_bytes).await?
        {
            return Ok(work.known(announced, there).await?);
        }
        if let Some(said) = announced.size_bytes.filter(|said| size_bytes != *said) {
            return Err(wrong_size(said, &format!("there are {size_bytes}")).into());
        }
        if stream.is_some() {
            // Before all is hashed: if it is not what was said, it goes again.
            let rest = std::mem::take(&mut gathered).pieces();
            work.send(blobs, announced, stream, rest, true, Arc::clone(&share)).await?;
        }
        let digest = hashing.digest().await?;
        if let Some(said) = announced.digest.as_ref().filter(|said| **said != digest) {
            let text = format!("must be that of the bytes, which is {digest} and not {said}");
            let error = Error::invalid_because(Reason::DigestMismatch, "header.digest", text);
            return Err(error.into());
        }
        let content_type = announced.content_type.clone();
        let brought = if let Some(Stream { attempt, sink, .. }) = stream.take() {
            let upload_id = sink.upload_id().to_owned();
            match sink.complete(&attempt, &digest, work.caller.deadline).await {
                Ok((stored, stored_size_bytes, seal)) => {
                    let arrived =
                        Arrived { size_bytes, stored_size_bytes, content_type, stored, seal };
                    Brought::stored(blobs, attempt, &digest, arrived)
                }
                Err(error) => {
                    work.abandon(&attempt, &upload_id, is_unknown(&error));
                    return Err(error.into());
                }
            }
        } else {
            if !limits.is_inline(size_bytes)
                && let Some(there) = work.there(&digest, None).await?
            {
                return Ok(work.known(announced, there).await?);
            }
            work.put(blobs, &digest, gathered.pieces(), content_type).await?
        };
        drop(share);
        Ok(work.keep(announced, &digest, brought).await?)
    }

    /// The blob of that digest, if its bytes are here.
    pub async fn there(&self, digest: &str, size_bytes: Option<u64>) -> Result<Option<Blob>> {
        let found = self.api.store.get::<Blob>(&piecewise(&self.caller), digest).await;
        let blob = match found {
            Ok(blob) if blob.state == READY => blob,
            Ok(_) | Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        match size_bytes {
            Some(size) if i64::try_from(size) != Ok(blob.size_bytes) => {
                Err(wrong_size(size, &format!("the bytes of that digest are {}", blob.size_bytes)))
            }
            _ => Ok(Some(blob)),
        }
    }

    /// Sends a part to the store, beginning the upload there with the first.
    async fn send(
        &self,
        blobs: &Blobs,
        announced: &Announced,
        stream: &mut Option<Stream>,
        part: Pieces,
        is_last: bool,
        share: Arc<Share>,
    ) -> Result<()> {
        let deadline = self.caller.deadline;
        if stream.is_none() {
            let attempt = self.intend(blobs, announced.digest.as_deref()).await?;
            let (keys, limits) = (blobs.keys.as_ref(), blobs.limits);
            let (size, at_once) = (blobs.store.part_bytes(limits.part), limits.parts_at_once);
            let begin = Sink::begin(&blobs.store, keys, &attempt, size, at_once, deadline);
            let sink = match begin.await {
                Ok(sink) => sink,
                Err(error) => {
                    self.abandon(&attempt, "", false);
                    return Err(error);
                }
            };
            let begun = stream.insert(Stream { attempt, sink, may_arrive: false });
            let upload_id = begun.sink.upload_id().to_owned();
            if !upload_id.is_empty() {
                // Before the first part: nothing else knows of parts that were never made an object.
                let name = Name { uid: begun.attempt.uid, upload_id };
                let caller = piecewise(&self.caller);
                self.api.store.write(caller, WriteOptions::default(), name).await?;
            }
        }
        let Some(stream) = stream else {
            return Err(Error::internal("a part without its upload"));
        };
        let sent = stream.sink.send(part, is_last, share, deadline).await;
        stream.may_arrive = sent.as_ref().is_err_and(is_unknown);
        sent
    }

    /// Puts bytes that are few enough to go at once, or makes them ready for the database. What fails is removed.
    pub async fn put(
        &self,
        blobs: &Blobs,
        digest: &str,
        pieces: Pieces,
        content_type: String,
    ) -> Result<Brought> {
        let keys = blobs.keys.as_ref();
        let size_bytes = pieces.iter().map(Bytes::len).sum::<usize>() as u64;
        if !blobs.limits.is_inline(size_bytes) {
            return self.put_into_store(blobs, keys, digest, pieces, content_type).await;
        }
        let attempt = Attempt::inline(&self.caller.tenant);
        let inline = Sink::inline(keys, &attempt, digest, pieces, content_type);
        let (arrived, content) = inline.await?;
        let blob = attempt.blob(digest, arrived, blobs.store.backend());
        Ok(Brought { keep: Keep { blob, content: Some(content) }, attempt })
    }

    pub async fn put_into_store(
        &self,
        blobs: &Blobs,
        keys: Option<&Arc<dyn KeySource>>,
        digest: &str,
        pieces: Pieces,
        content_type: String,
    ) -> Result<Brought> {
        let attempt = self.intend(blobs, Some(digest)).await?;
        let deadline = self.caller.deadline;
        let put = Sink::put(&blobs.store, keys, &attempt, digest, pieces, content_type, deadline);
        match put.await {
            Ok(arrived) => Ok(Brought::stored(blobs, attempt, digest, arrived)),
            Err(error) => {
                self.abandon(&attempt, "", is_unknown(&error));
                Err(error)
            }
        }
    }

    /// Records that bytes are about to go to the store.
    async fn intend(&self, blobs: &Blobs, digest: Option<&str>) -> Result<Attempt> {
        self.intend_as(blobs, Attempt::new(&self.caller.tenant, digest)).await
    }

    pub async fn intend_as(&self, blobs: &Blobs, attempt: Attempt) -> Result<Attempt> {
        let (uid, store_key) = (attempt.uid, attempt.store_key.clone());
        let intend = Intend { uid, store_key, keep: blobs.limits.keep };
        let options = WriteOptions::default();
        self.api.store.write(piecewise(&self.caller), options, intend).await?;
        Ok(attempt)
    }

    /// Makes a blob of what has arrived.
    async fn keep(
        &self,
        announced: &Announced,
        digest: &str,
        brought: Brought,
    ) -> Result<UploadBlobResponse> {
        let Brought { attempt, keep } = brought;
        let (caller, options) = (piecewise(&self.caller), announced.options.clone());
        let kept = match put_of(announced, digest) {
            None => {
                let kept = self.api.store.write(caller, options, keep).await;
                kept.map(|(kept, receipt)| ((Some(kept), None), receipt))
            }
            Some(put) => {
                let kept = self.api.store.write(caller, options, KeepAs { keep, put }).await;
                kept.map(|((kept, written), receipt)| ((kept, Some(written)), receipt))
            }
        };
        // Another upload's bytes were kept, those of an earlier call, or none. Where it is not known what became of this
        // one, the intent is: it is gone if these are a blob now.
        let blob_of = |kept: &Option<Kept>| kept.as_ref().map(|kept| kept.blob.store_key.clone());
        let is_ours = kept
            .as_ref()
            .is_ok_and(|((kept, _), _)| blob_of(kept).as_ref() == Some(&attempt.store_key));
        if !is_ours {
            self.abandon(&attempt, "", false);
        }
        let ((kept, written), receipt) = kept?;
        let deduplicated = kept.as_ref().is_none_or(|kept| kept.deduplicated) || receipt.unchanged;
        let receipt = self.api.receipt(&self.caller, receipt)?;
        let blob = kept.map(|kept| kept.blob.into());
        let answer = UploadBlobResponse { blob, deduplicated, receipt, ..Default::default() };
        Ok(with_object(answer, written))
    }

    /// The answer where the bytes are here already; what they are to be put under is still to be written.
    async fn known(&self, announced: &Announced, there: Blob) -> Result<UploadBlobResponse> {
        let mut answer = UploadBlobResponse { deduplicated: true, ..Default::default() };
        let mut object = None;
        if let Some(put) = put_of(announced, &there.id) {
            let (caller, options) = (piecewise(&self.caller), announced.options.clone());
            let (written, receipt) = self.api.store.write(caller, options, put).await?;
            answer.receipt = self.api.receipt(&self.caller, receipt)?;
            object = Some(written);
        }
        answer.blob = Some(there.into());
        Ok(with_object(answer, object))
    }

    /// Removes what was brought, behind the caller's back: it need not wait for that.
    pub fn abandon(&self, attempt: &Attempt, upload_id: &str, may_arrive: bool) {
        if attempt.is_inline {
            return;
        }
        let caller = Caller { deadline: Instant::now() + ABANDON_TIME, ..self.caller.clone() };
        let Attempt { uid, store_key, .. } = attempt.clone();
        let left = Left { uid, store_key, upload_id: upload_id.to_owned(), may_arrive };
        let api = self.api.clone();
        tokio::spawn(async move {
            if let Some(blobs) = &api.blobs {
                api.store.abandon(&blobs.store, caller, left).await;
            }
        });
    }
}

/// Whether a request to the store that failed so may have been carried out, or may still be.
pub(super) fn is_unknown(error: &Error) -> bool {
    matches!(error, Error::Unavailable { .. } | Error::DeadlineExceeded(_))
}

/// tonic ends the stream of a caller that gave up like that of one that has sent everything. Bytes that were cut off
/// must not become a blob.
async fn is_whole(ask: mpsc::Sender<oneshot::Sender<()>>) -> Result<()> {
    let (reply, replied) = oneshot::channel();
    let gone = || Error::invalid("part", "is missing: the caller gave up");
    ask.send(reply).await.map_err(|_| gone())?;
    replied.await.map_err(|_| gone())
}

pub(super) fn wrong_size(said: u64, found: &str) -> Error {
    let text = format!("must be the number of bytes: it is {said}, and {found}");
    Error::invalid_because(Reason::SizeMismatch, "header.size_bytes", text)
}

/// What the bytes of a digest are to be put under.
fn put_of(announced: &Announced, digest: &str) -> Option<Put> {
    let mut put = announced.object.clone()?;
    digest.clone_into(&mut put.version.digest);
    Some(put)
}

fn with_object(answer: UploadBlobResponse, written: Option<Written>) -> UploadBlobResponse {
    let Some(Written { object, version }) = written else { return answer };
    let object_version = worded(version, true);
    UploadBlobResponse { object: Some(object.into()), object_version, ..answer }
}

/// Chunks of one part. Small ones are copied together, so that a byte takes a byte of memory.
#[derive(Default)]
pub(super) struct Gathered {
    pieces: Pieces,
    tail: BytesMut,
    pub len: usize,
}

impl Gathered {
    pub fn add(&mut self, chunk: Bytes) {
        self.len += chunk.len();
        if chunk.len() < COPY_BELOW_BYTES {
            self.tail.extend_from_slice(&chunk);
        } else {
            self.cut();
            self.pieces.push(chunk);
        }
    }

    fn cut(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push(self.tail.split().freeze());
        }
    }

    pub fn pieces(mut self) -> Pieces {
        self.cut();
        self.pieces
    }
}
