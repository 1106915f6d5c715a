//! CompleteUpload: reads the parts of an upload again and makes a blob of them, as UploadBlob does of a stream.
//!
//! So nothing that was put to a signed URL is believed, no key that was ever given out is a blob's, and a blob is encrypted
//! as a whole whatever its parts were.

use super::download::cut;
use super::session::upload_uid;
use super::upload::{Chunks, Fault, Work};
use super::{Announced, Blobs, piecewise};
use crate::pb::{self, CompleteUploadResponse};
use crate::rpc::Api;
use crate::rpc::wire::{self, Fields};
use crate::store::blob::Blob;
use crate::store::blob::body::{Source, memory_bytes};
use crate::store::blob::session::{COMPLETED, End, PRESIGNED, Session, SessionPart};
use crate::store::blob_store::damaged;
use crate::store::caller::Caller;
use crate::store::change::OnConflict;
use crate::store::log::hex;
use crate::store::write::WriteOptions;
use crate::{Error, Reason, Result};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use tokio::time::{Instant, sleep_until};
use tonic::Status;
use tracing::Instrument as _;
use uuid::Uuid;

/// Pieces that are read at once.
const AHEAD: usize = 2;
/// Parts that are looked for at once.
const LOOKS_AT_ONCE: usize = 16;

impl Api {
    /// Runs in a task of its own: a caller that goes away and comes again finds the upload completed.
    pub(super) async fn finish_upload(
        &self,
        caller: Caller,
        request: pb::CompleteUploadRequest,
    ) -> Result<CompleteUploadResponse, Status> {
        let request_digest = wire::digest(&request, request.options.as_ref());
        let pb::CompleteUploadRequest { upload_id, options } = request;
        let mut fields = Fields::new(&caller, 1);
        let (options, on_conflict) = fields.options(options, request_digest);
        if on_conflict != OnConflict::Fail {
            fields.wrong("options.on_conflict", "is not taken here: equal bytes are one blob");
        }
        if options.validate_only {
            fields.wrong("options.validate_only", "is not taken here");
        }
        let options = fields.finish(options)?;
        let uid = upload_uid(&caller, &upload_id)?;
        let work = Work { api: self.clone(), caller };
        let task =
            async move { Box::pin(work.complete(uid, options)).await.map_err(Fault::status) };
        let task = tokio::spawn(task.in_current_span());
        task.await.map_err(Error::internal)?
    }
}

impl Work {
    async fn complete(
        &self,
        uid: Uuid,
        options: WriteOptions,
    ) -> Result<CompleteUploadResponse, Fault> {
        let (store, blobs) = (&self.api.store, self.api.blobs()?);
        let (session, parts) = store.session(&piecewise(&self.caller), uid).await?;
        if session.state == COMPLETED {
            let blob: Blob = store.get(&piecewise(&self.caller), &session.digest).await?;
            return Ok(known(blob));
        }
        let announced = Announced {
            digest: (!session.digest.is_empty()).then(|| session.digest.clone()),
            size_bytes: session.size_bytes.map(i64::unsigned_abs),
            content_type: session.content_type.clone(),
            object: None,
            options,
        };
        if let Some(digest) = &announced.digest
            && let Some(there) = self.there(digest, announced.size_bytes).await?
        {
            self.end(uid, Some(digest.clone())).await;
            return Ok(known(there));
        }
        self.is_whole(blobs, &session, &parts).await?;
        let mut kept = Kept::of(self, blobs, parts).await?;
        match self.take(&announced, &mut kept).await {
            Ok(answer) => {
                let pb::UploadBlobResponse {
                    blob,
                    deduplicated,
                    receipt,
                    object: _,
                    object_version: _,
                } = answer;
                let digest = blob.as_ref().and_then(|blob| blob.digest.as_ref());
                self.end(uid, digest.map(|digest| hex(&digest.value))).await;
                Ok(CompleteUploadResponse { blob, deduplicated, receipt })
            }
            Err(Fault::Ours(error)) => {
                let is_other =
                    matches!(error.reason(), Reason::DigestMismatch | Reason::SizeMismatch);
                if is_other {
                    self.end(uid, None).await;
                } else if let Err(gone) = store.session(&piecewise(&self.caller), uid).await
                    && matches!(gone, Error::NotFound { .. } | Error::Refused { .. })
                {
                    // It was aborted or has expired meanwhile, and its parts with it.
                    return Err(gone.into());
                }
                Err(error.into())
            }
            Err(fault) => Err(fault),
        }
    }

    /// Refuses an upload whose bytes have not all come.
    async fn is_whole(
        &self,
        blobs: &Blobs,
        session: &Session,
        parts: &[SessionPart],
    ) -> Result<()> {
        let incomplete = |message, metadata| Error::Refused {
            reason: Reason::UploadIncomplete,
            message,
            metadata: vec![metadata],
        };
        let committed = session.committed_bytes;
        if session.transport != PRESIGNED {
            return match session.size_bytes.filter(|said| committed < *said) {
                None => Ok(()),
                Some(said) => Err(incomplete(
                    format!("{committed} of {said} bytes have come"),
                    ("committed_size", committed.to_string()),
                )),
            };
        }
        let deadline = self.caller.deadline;
        let keys: Vec<String> = parts.iter().map(|part| part.store_key.clone()).collect();
        let looks = stream::iter(keys).map(|key| {
            let store = blobs.store.clone();
            async move { store.size_bytes(&key, deadline).await }
        });
        let mut sizes = looks.buffered(LOOKS_AT_ONCE).boxed();
        for part in parts {
            let number = part.number + 1;
            let Some(found) = sizes.next().await.transpose()?.flatten() else {
                return Err(incomplete(
                    format!("part {number} of {} has not come", parts.len()),
                    ("part_number", number.to_string()),
                ));
            };
            if found != part.size_bytes.unsigned_abs() {
                self.end(session.uid, None).await;
                let text = format!(
                    "must be the number of bytes: part {number} has {found} and not {}",
                    part.size_bytes,
                );
                let field = "header.size_bytes";
                return Err(Error::invalid_because(Reason::SizeMismatch, field, text));
            }
        }
        Ok(())
    }

    /// Ends an upload, of which a blob was made or not. Where that fails it ends by itself when it expires.
    async fn end(&self, uid: Uuid, digest: Option<String>) {
        let end = End { uid, digest };
        let (caller, options) = (piecewise(&self.caller), WriteOptions::default());
        match self.api.store.write(caller, options, end).await {
            Ok(_) | Err(Error::NotFound { .. }) => {}
            Err(error) => {
                tracing::warn!(%error, upload = %uid, "an upload that has ended stays until it expires");
            }
        }
    }
}

fn known(blob: Blob) -> CompleteUploadResponse {
    CompleteUploadResponse { blob: Some(blob.into()), deduplicated: true, receipt: None }
}

/// The bytes of an upload's parts, each held to its digest where that is known.
struct Kept {
    /// With the place of their part.
    pieces: BoxStream<'static, Result<(usize, Bytes)>>,
    parts: Vec<SessionPart>,
    /// The part that is read now, how many of its bytes are left, and the digest of those that came.
    at: usize,
    left: u64,
    hasher: Sha256,
    memory_bytes: u64,
    /// The server goes away.
    closed: BoxFuture<'static, ()>,
    deadline: Instant,
}

impl Kept {
    async fn of(work: &Work, blobs: &Blobs, parts: Vec<SessionPart>) -> Result<Self> {
        let (deadline, keys) = (work.caller.deadline, blobs.keys.as_deref());
        let piece_bytes = blobs.store.piece_bytes();
        let (mut ranges, mut memory) = (Vec::new(), 0);
        for (at, part) in parts.iter().enumerate() {
            let blob = part.blob(&work.caller.tenant);
            let source = Source::of(&blobs.store, keys, &work.caller.tenant, &blob).await?;
            let source = Arc::new(source);
            memory = memory_bytes(&blob, piece_bytes).max(memory);
            let whole = 0..part.size_bytes.unsigned_abs();
            ranges.extend(cut(whole, piece_bytes).map(|range| (at, Arc::clone(&source), range)));
        }
        let pieces = stream::iter(ranges).map(move |(at, source, range)| async move {
            Ok((at, source.read(range, deadline).await?))
        });
        let closed = work.api.health.closed();
        Ok(Self {
            pieces: pieces.buffered(AHEAD).boxed(),
            left: parts.first().map_or(0, |part| part.size_bytes.unsigned_abs()),
            parts,
            at: 0,
            hasher: Sha256::new(),
            memory_bytes: (AHEAD as u64 + 1) * memory,
            closed: Box::pin(closed),
            deadline,
        })
    }

    /// Notes what has come of a part, and looks at the whole of it when that is all.
    fn note(&mut self, at: usize, piece: &[u8]) -> Result<()> {
        if at != self.at {
            self.at = at;
            self.left = self.parts.get(at).map_or(0, |part| part.size_bytes.unsigned_abs());
        }
        self.hasher.update(piece);
        self.left = self.left.saturating_sub(piece.len() as u64);
        if self.left > 0 {
            return Ok(());
        }
        let digest = hex(&std::mem::take(&mut self.hasher).finalize());
        match self.parts.get(at) {
            Some(part) if !part.digest.is_empty() && part.digest != digest => Err(other(part)),
            _ => Ok(()),
        }
    }
}

impl Chunks for Kept {
    async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        let next = tokio::select! {
            next = self.pieces.next() => next,
            () = &mut self.closed => return Err(Error::ShuttingDown.into()),
            () = sleep_until(self.deadline) => {
                return Err(Error::DeadlineExceeded(" before the upload was read again").into());
            }
        };
        let Some((at, piece)) = next.transpose()? else { return Ok(None) };
        self.note(at, &piece)?;
        Ok(Some(piece))
    }

    fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }
}

/// A part has other bytes: those that somebody put to its URL, or those that a store has not kept.
fn other(part: &SessionPart) -> Error {
    let number = part.number + 1;
    if part.is_given_out {
        let text = format!("must be that of the bytes, and of part {number} is not");
        return Error::invalid_because(Reason::DigestMismatch, "header.digest", text);
    }
    damaged(&format!("part {number} of the upload has another digest"))
}
