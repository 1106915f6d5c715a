//! The digest of bytes that come piece by piece, made beside whatever else is done with them.

use crate::store::blob_store::budget::Share;
use crate::store::log::hex;
use crate::{Error, Result};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_blocking};

/// A piece no longer than this is hashed at once: it is not worth another thread.
const AT_ONCE_BYTES: usize = 64 << 10;
/// As long as fewer bytes wait, more may come: of all that is done with a blob hashing takes longest and cannot be
/// divided, so it should never wait for the rest.
pub const WAITING_MAX_BYTES: usize = 4 << 20;

/// One hash under way.
pub struct Hashing(State);

enum State {
    Idle(Sha256),
    /// Another thread hashes until nothing waits.
    Busy(JoinHandle<Sha256>, Arc<Queue>),
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// A piece is done with.
    room: Notify,
}

#[derive(Default)]
struct Waiting {
    pieces: VecDeque<Piece>,
    size_bytes: usize,
    /// The thread takes nothing more.
    is_over: bool,
}

enum Piece {
    Bytes(Bytes),
    /// The share of the budget of the bytes before it.
    Share(Arc<Share>),
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False if it is full, or nobody would take the piece.
    fn push(&self, piece: &Bytes) -> bool {
        let mut waiting = self.lock();
        if waiting.is_over || waiting.size_bytes >= WAITING_MAX_BYTES {
            return false;
        }
        waiting.size_bytes += piece.len();
        waiting.pieces.push_back(Piece::Bytes(piece.clone()));
        true
    }

    fn pop(&self) -> Option<Piece> {
        let mut waiting = self.lock();
        let next = waiting.pieces.pop_front();
        waiting.is_over = next.is_none();
        next
    }

    fn run(&self, mut hasher: Sha256) -> Sha256 {
        while let Some(piece) = self.pop() {
            match piece {
                Piece::Bytes(bytes) => {
                    hasher.update(&bytes);
                    self.lock().size_bytes -= bytes.len();
                    self.room.notify_one();
                }
                Piece::Share(share) => drop(share),
            }
        }
        hasher
    }
}

impl Default for Hashing {
    fn default() -> Self {
        Self(State::Idle(Sha256::new()))
    }
}

impl Hashing {
    /// Adds a piece. A large one is added on another thread, and is in memory until it is; when many wait for that, so
    /// does the caller.
    pub async fn update(&mut self, piece: &Bytes) -> Result<()> {
        loop {
            match &mut self.0 {
                State::Idle(hasher) if piece.len() <= AT_ONCE_BYTES => {
                    hasher.update(piece);
                    return Ok(());
                }
                State::Idle(hasher) => {
                    let (hasher, queue) = (std::mem::take(hasher), Arc::new(Queue::default()));
                    queue.push(piece);
                    let run = Arc::clone(&queue);
                    self.0 = State::Busy(spawn_blocking(move || run.run(hasher)), queue);
                    return Ok(());
                }
                State::Busy(_, queue) if queue.push(piece) => return Ok(()),
                State::Busy(running, queue) => {
                    tokio::select! {
                        hasher = running => self.0 = State::Idle(hasher.map_err(Error::internal)?),
                        () = queue.room.notified() => {}
                    }
                }
            }
        }
    }

    /// Keeps the share of what was added until that is done with.
    pub fn hold(&self, share: &Arc<Share>) {
        if let State::Busy(_, queue) = &self.0 {
            let mut waiting = queue.lock();
            if !waiting.is_over {
                waiting.pieces.push_back(Piece::Share(Arc::clone(share)));
            }
        }
    }

    /// SHA-256 of all pieces, 64 hex digits.
    pub async fn digest(self) -> Result<String> {
        let hasher = match self.0 {
            State::Idle(hasher) => hasher,
            State::Busy(running, _) => running.await.map_err(Error::internal)?,
        };
        Ok(hex(&hasher.finalize()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::blob_store::budget::Budget;
    use prometheus_client::metrics::gauge::Gauge;
    use std::time::Duration;

    fn content(size: u32) -> Bytes {
        (0..size).map(|n| (n % 251) as u8).collect::<Vec<_>>().into()
    }

    #[tokio::test]
    async fn pieces_of_any_length_are_added_in_their_order() {
        let all = content(1_000_000);
        let mut hashing = Hashing::default();
        let mut rest = all.clone();
        for length in [1, AT_ONCE_BYTES, AT_ONCE_BYTES + 1, 300_000, 0, 17] {
            hashing.update(&rest.split_to(length)).await.unwrap();
        }
        hashing.update(&rest).await.unwrap();
        assert_eq!(hashing.digest().await.unwrap(), hex(&Sha256::digest(&all)));
        assert_eq!(Hashing::default().digest().await.unwrap(), hex(&Sha256::digest(b"")));
    }

    #[tokio::test]
    async fn few_bytes_wait_and_all_are_added() {
        let all = content(40 << 20);
        let (mut hashing, mut rest, mut most) = (Hashing::default(), all.clone(), 0);
        while !rest.is_empty() {
            hashing.update(&rest.split_to(rest.len().min(700_001))).await.unwrap();
            if let State::Busy(_, queue) = &hashing.0 {
                most = most.max(queue.lock().size_bytes);
            }
        }
        assert!(most > WAITING_MAX_BYTES, "several wait: {most}");
        assert!(most <= WAITING_MAX_BYTES + 700_000, "not many: {most}");
        assert_eq!(hashing.digest().await.unwrap(), hex(&Sha256::digest(&all)));
    }

    #[tokio::test]
    async fn a_share_is_kept_until_its_bytes_are_added() {
        let budget = Budget::new(1 << 20, Duration::from_secs(5), Gauge::default());
        let mut hashing = Hashing::default();
        hashing.update(&content(4 << 20)).await.unwrap();
        let share = Arc::new(budget.take(1 << 20).await.unwrap());
        hashing.hold(&share);
        assert_eq!(Arc::strong_count(&share), 2, "it is held");
        hashing.digest().await.unwrap();
        assert_eq!(Arc::strong_count(&share), 1, "it is given back");
    }
}
