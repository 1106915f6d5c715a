//! A long range of stored bytes that is given out as it comes, and goes on by another request where an answer breaks off.

use super::{BlobStore, Tries, check_size, conflict, damaged};
use crate::telemetry::metrics::Outcome;
use crate::{Error, Result};
use bytes::Bytes;
use futures_util::stream::{BoxStream, TryStreamExt as _};
use object_store::path::Path;
use object_store::{GetOptions, GetRange};
use std::ops::Range;
use std::time::Duration;
use tokio::time::Instant;
use tower::retry::budget::Budget as _;

/// What one flow has in memory at most, with the piece that was given out last: the client of HTTP reads into buffers of
/// 408 KiB, now and then of twice that. One is filling, one waits to be taken, and of two there may be a rest.
pub const MEMORY_BYTES: u64 = 2 << 20;

type Body = BoxStream<'static, object_store::Result<Bytes>>;

/// What is left of a range, and the answer that brings it. Dropped, it lets go of the store.
pub struct Flow {
    store: BlobStore,
    path: Path,
    left: Range<u64>,
    /// How many there must be in all.
    stored_bytes: u64,
    deadline: Instant,
    /// None before the first request, and after one that broke.
    body: Option<Body>,
    tries: Tries,
    /// How many bytes came since the tries were counted anew.
    came_bytes: u64,
    outcome: Outcome,
    /// How long the store was waited for.
    took: Duration,
}

impl BlobStore {
    /// A range of stored bytes as it comes; `stored_bytes` is how many there must be in all. Nothing is asked before
    /// the first piece is.
    pub fn flow(&self, key: &str, left: Range<u64>, stored_bytes: u64, deadline: Instant) -> Flow {
        Flow {
            store: self.clone(),
            path: self.path(key),
            left,
            stored_bytes,
            deadline,
            body: None,
            tries: self.tries(),
            came_bytes: 0,
            outcome: Outcome::Ok,
            took: Duration::ZERO,
        }
    }
}

impl Flow {
    /// The next bytes of the range, or `None` behind the last. Those are given out when the answer has ended well, and so
    /// the pieces are the whole range or there is an error. Each must come within the time of a request, however long
    /// all of them take.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.left.is_empty() {
            return Ok(None);
        }
        let started = Instant::now();
        let piece = self.piece().await;
        self.took += started.elapsed();
        self.outcome = Outcome::of(&piece);
        piece.map(Some)
    }

    async fn piece(&mut self) -> Result<Bytes> {
        loop {
            let store = self.store.clone();
            let failed = match store.once(self.deadline, self.attempt()).await {
                Ok(piece) => {
                    let piece = piece?;
                    self.left.start += piece.len() as u64;
                    self.came_bytes += piece.len() as u64;
                    // So much as one read would ask for: what that may cost begins anew.
                    if self.came_bytes >= store.piece_bytes() || self.left.is_empty() {
                        self.came_bytes = 0;
                        self.tries = store.tries();
                        store.0.retries.deposit();
                    }
                    return Ok(piece);
                }
                Err((Error::NotFound { .. }, _)) => return Err(damaged("they are gone")),
                Err(failed) => failed,
            };
            self.body = None;
            store.again(&mut self.tries, failed, self.deadline).await?;
        }
    }

    /// Waits for the next piece of the answer, after asking for what is left if there is none.
    async fn attempt(&mut self) -> object_store::Result<Result<Bytes>> {
        let body = match &mut self.body {
            Some(body) => body,
            none => {
                let asked = Some(GetRange::Bounded(self.left.clone()));
                let options = GetOptions { range: asked, ..GetOptions::default() };
                let found = self.store.0.store.get_opts(&self.path, options).await?;
                if let Err(error) = check_size(Some(found.meta.size), self.stored_bytes) {
                    return Ok(Err(error));
                }
                if found.range != self.left {
                    return Ok(Err(damaged("another range came")));
                }
                none.insert(found.into_stream())
            }
        };
        let left = self.left.end - self.left.start;
        let piece = loop {
            match body.try_next().await? {
                Some(piece) if piece.is_empty() => {}
                Some(piece) => break piece,
                None => return Err(conflict(format!("{left} bytes too few came"))),
            }
        };
        if piece.len() as u64 >= left {
            let mut over = piece.len() as u64 - left;
            while let Some(piece) = body.try_next().await? {
                over += piece.len() as u64;
                if over > 0 {
                    break;
                }
            }
            if over > 0 {
                return Err(conflict(format!("more than {left} bytes came")));
            }
        }
        Ok(Ok(piece))
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.store.0.ops.get.attempt(self.outcome, self.took);
    }
}
