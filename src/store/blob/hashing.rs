//! The digest of bytes that come piece by piece, made beside whatever else is done with them.

use crate::store::log::hex;
use crate::{Error, Result};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::task::{JoinHandle, spawn_blocking};

/// A piece no longer than this is hashed at once: it is not worth another thread.
const AT_ONCE_BYTES: usize = 64 << 10;

/// One hash under way; at most one piece is being added to it.
pub struct Hashing(State);

enum State {
    Idle(Sha256),
    Busy(JoinHandle<Sha256>),
}

impl Default for Hashing {
    fn default() -> Self {
        Self(State::Idle(Sha256::new()))
    }
}

impl Hashing {
    /// Adds a piece, when the one before is done with. A large one is added on another thread, and is in memory until it is.
    pub async fn update(&mut self, piece: &Bytes) -> Result<()> {
        let mut hasher = self.take().await?;
        self.0 = if piece.len() <= AT_ONCE_BYTES {
            hasher.update(piece);
            State::Idle(hasher)
        } else {
            let piece = piece.clone();
            State::Busy(spawn_blocking(move || {
                hasher.update(&piece);
                hasher
            }))
        };
        Ok(())
    }

    /// SHA-256 of all pieces, 64 hex digits.
    pub async fn digest(mut self) -> Result<String> {
        Ok(hex(&self.take().await?.finalize()))
    }

    async fn take(&mut self) -> Result<Sha256> {
        match std::mem::replace(&mut self.0, State::Idle(Sha256::new())) {
            State::Idle(hasher) => Ok(hasher),
            State::Busy(running) => running.await.map_err(Error::internal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_of_any_length_are_added_in_their_order() {
        let all: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        let mut hashing = Hashing::default();
        let mut rest = Bytes::from(all.clone());
        for length in [1, AT_ONCE_BYTES, AT_ONCE_BYTES + 1, 300_000, 0, 17] {
            hashing.update(&rest.split_to(length)).await.unwrap();
        }
        hashing.update(&rest).await.unwrap();
        assert_eq!(hashing.digest().await.unwrap(), hex(&Sha256::digest(&all)));
        assert_eq!(Hashing::default().digest().await.unwrap(), hex(&Sha256::digest(b"")));
    }
}
