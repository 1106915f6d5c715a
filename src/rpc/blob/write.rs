//! WriteUpload: bytes of an upload that goes on where it was cut. What came before a stream ends, however it does, stays.

use super::session::upload_uid;
use super::upload::{Fault, Gathered, Work, check_chunk, is_unknown, linger, wrong_size};
use super::{Blobs, piecewise};
use crate::pb::{WriteUploadRequest, WriteUploadResponse};
use crate::rpc::Api;
use crate::store::blob::Attempt;
use crate::store::blob::body::Sink;
use crate::store::blob::hashing::Hashing;
use crate::store::blob::session::{Extend, PRESIGNED, Session, SessionPart};
use crate::store::caller::Caller;
use crate::store::write::WriteOptions;
use crate::{Error, Reason, Result};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::{sleep_until, timeout};
use tonic::{Status, Streaming};
use tracing::Instrument as _;

impl Api {
    /// Runs in a task of its own: when the caller goes away its call is dropped, and what it has brought must stay.
    pub(super) async fn extend_upload(
        &self,
        caller: Caller,
        messages: Streaming<WriteUploadRequest>,
    ) -> Result<WriteUploadResponse, Status> {
        let api = self.clone();
        let task = async move {
            let closed = Box::pin(api.health.closed());
            let work = Work { api, caller };
            let mut incoming = Incoming { work, messages, closed };
            let result = Box::pin(incoming.run()).await.map_err(Fault::status);
            tokio::spawn(linger(incoming.messages));
            result
        };
        let task = tokio::spawn(task.in_current_span());
        let committed_size = task.await.map_err(Error::internal)??;
        Ok(WriteUploadResponse { committed_size })
    }
}

struct Incoming {
    work: Work,
    messages: Streaming<WriteUploadRequest>,
    /// The server goes away.
    closed: BoxFuture<'static, ()>,
}

/// An upload that bytes come for.
struct Extension<'a> {
    work: &'a Work,
    blobs: &'a Blobs,
    session: Session,
    /// What has come and is in no part yet, and the digest of that.
    gathered: Gathered,
    hashing: Hashing,
}

impl Incoming {
    async fn run(&mut self) -> Result<i64, Fault> {
        let work = self.work.clone();
        let blobs = work.api.blobs()?;
        let first = self.next().await?.unwrap_or_default();
        let uid = upload_uid(&work.caller, &first.upload_id)?;
        let (session, _) = work.api.store.session(&piecewise(&work.caller), uid).await?;
        session.check_open()?;
        if session.transport == PRESIGNED {
            let what = "must be of an upload by UPLOAD_TRANSPORT_STREAM";
            return Err(Error::invalid("upload_id", what).into());
        }
        session.check_offset(first.offset.unwrap_or(0))?;
        let left = session
            .size_bytes
            .map_or(u64::MAX, |said| said.saturating_sub(session.committed_bytes).unsigned_abs());
        // One share for all parts, which go one by one: while it is held no other is waited for.
        let most = left.clamp(1, blobs.limits.part as u64);
        let _share = blobs.budget.begin(most).await?;
        let (gathered, hashing) = Default::default();
        let mut extension = Extension { work: &work, blobs, session, gathered, hashing };
        let received = self.receive(first, &mut extension).await;
        // Bytes that came before are what the caller sent, whatever went wrong then.
        let kept = extension.bring().await;
        received?;
        kept?;
        Ok(extension.session.committed_bytes)
    }

    async fn receive(
        &mut self,
        first: WriteUploadRequest,
        extension: &mut Extension<'_>,
    ) -> Result<(), Fault> {
        // It may come without.
        if !first.chunk.is_empty() || first.crc32c.is_some() {
            extension.add(first.chunk, first.crc32c).await?;
        }
        while let Some(message) = self.next().await? {
            let WriteUploadRequest { upload_id, offset, chunk, crc32c } = message;
            if !upload_id.is_empty() {
                let what = "must be on the first message only";
                return Err(Error::invalid("upload_id", what).into());
            }
            if let Some(offset) = offset {
                extension.as_if_brought().check_offset(offset)?;
            }
            extension.add(chunk, crc32c).await?;
        }
        Ok(())
    }

    /// What the caller sends next; `None` when nothing more comes.
    async fn next(&mut self) -> Result<Option<WriteUploadRequest>, Fault> {
        let idle = self.work.api.blobs()?.limits.idle;
        tokio::select! {
            message = timeout(idle, self.messages.message()) => match message {
                Ok(message) => message.map_err(Fault::Broken),
                Err(_) => Err(Error::DeadlineExceeded(
                    " for the next chunk: the stream was silent for too long",
                ).into()),
            },
            () = &mut self.closed => Err(Error::ShuttingDown.into()),
            () = sleep_until(self.work.caller.deadline) => {
                Err(Error::DeadlineExceeded(" before the stream ended").into())
            }
        }
    }
}

impl Extension<'_> {
    /// The upload as it will be when all that has come is in the store.
    fn as_if_brought(&self) -> Session {
        let committed_bytes = self.session.committed_bytes + self.gathered.len as i64;
        Session { committed_bytes, ..self.session.clone() }
    }

    async fn add(&mut self, mut chunk: Bytes, crc32c: Option<u32>) -> Result<()> {
        let limits = self.blobs.limits;
        check_chunk(&chunk, limits.chunk_max)?;
        if let Some(said) = crc32c {
            let found = crc_fast::crc32_iscsi(&chunk);
            if found != said {
                let text = format!("must be that of the chunk, which is {found} and not {said}");
                return Err(Error::invalid_because(Reason::ChecksumMismatch, "crc32c", text));
            }
        }
        let size = self.as_if_brought().committed_bytes.unsigned_abs() + chunk.len() as u64;
        if let Some(said) = self.session.size_bytes.filter(|said| size > said.unsigned_abs()) {
            return Err(wrong_size(said.unsigned_abs(), "there are more"));
        }
        if size > limits.size_max {
            return Err(Error::TooLarge { limit_bytes: limits.size_max });
        }
        while !chunk.is_empty() {
            let room = limits.part - self.gathered.len;
            let piece = chunk.split_to(room.min(chunk.len()));
            self.hashing.update(&piece).await?;
            self.gathered.add(piece);
            if self.gathered.len == limits.part {
                self.bring().await?;
            }
        }
        Ok(())
    }

    /// Brings what has come to the store, as the next part.
    async fn bring(&mut self) -> Result<()> {
        if self.gathered.len == 0 {
            return Ok(());
        }
        let Self { work, blobs, .. } = *self;
        // Whatever becomes of it, it is not brought twice.
        let pieces = std::mem::take(&mut self.gathered).pieces();
        let digest = std::mem::take(&mut self.hashing).digest().await?;
        let attempt = work.intend_as(blobs, Attempt::of_part(&work.caller.tenant)).await?;
        let (keys, deadline) = (blobs.keys.as_ref(), work.caller.deadline);
        let put = Sink::put(&blobs.store, keys, &attempt, &digest, pieces, String::new(), deadline);
        let arrived = match put.await {
            Ok(arrived) => arrived,
            Err(error) => {
                work.abandon(&attempt, "", is_unknown(&error));
                return Err(error);
            }
        };
        let row = attempt.blob(&digest, arrived, blobs.store.backend());
        let extend = Extend { part: SessionPart::new(&self.session, &attempt, &digest, row) };
        let (caller, options) = (piecewise(&work.caller), WriteOptions::default());
        match work.api.store.write(caller, options, extend).await {
            Ok((session, _)) => self.session = session,
            Err(error) => {
                work.abandon(&attempt, "", false);
                return Err(error);
            }
        }
        Ok(())
    }
}
