//! What is read for a download before it is asked for, with its shares of the budget of bytes in memory.
//!
//! Of a near store a few pieces are read at once, each with a share of its own. A far store answers one request for all
//! that is left, and what comes of it is given out as it comes: there is one share, taken before, of which each chunk has
//! a part while it is on its way. Dropped, it gives back everything but that.

use crate::store::blob::body::Reading;
use crate::store::blob_store::budget::{Budget, Share};
use crate::{Error, Result};
use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _};

/// So much comes at least of one answer of a far store, however many wait for memory.
const TURN_BYTES: u64 = 4 << 20;

pub enum Ahead<'a> {
    Pieces { pieces: BoxStream<'a, Result<(Bytes, Share)>>, rest: Option<(Bytes, Share)> },
    Flow { reading: Box<Reading>, share: Share, rest: Bytes, given_bytes: u64 },
}

impl<'a> Ahead<'a> {
    pub fn pieces(pieces: BoxStream<'a, Result<(Bytes, Share)>>) -> Self {
        Self::Pieces { pieces, rest: None }
    }

    /// Takes its share first, so whoever calls this must have none.
    pub async fn flow(reading: Reading, budget: &Budget) -> Result<Self> {
        let share = budget.take(reading.memory_bytes()).await?;
        Ok(Self::Flow { reading: Box::new(reading), share, rest: Bytes::new(), given_bytes: 0 })
    }

    /// The next bytes, so many at most, and the share that they have.
    pub async fn chunk(&mut self, bytes_max: usize) -> Result<(Bytes, Option<Share>)> {
        let too_short = || Error::internal("a range that ends too soon");
        match self {
            Self::Pieces { pieces, rest } => {
                let (mut bytes, mut share) = match rest.take() {
                    Some(rest) => rest,
                    None => pieces.next().await.ok_or_else(too_short)??,
                };
                let chunk = bytes.split_to(bytes_max.min(bytes.len()));
                if bytes.is_empty() {
                    return Ok((chunk, Some(share)));
                }
                let its_share = share.split(chunk.len() as u64);
                *rest = Some((bytes, share));
                Ok((chunk, its_share))
            }
            Self::Flow { reading, share, rest, given_bytes } => {
                if rest.is_empty() {
                    *rest = reading.next().await?.ok_or_else(too_short)?;
                }
                let chunk = rest.split_to(bytes_max.min(rest.len()));
                *given_bytes += chunk.len() as u64;
                let its_share = share.split(chunk.len() as u64);
                Ok((chunk, its_share))
            }
        }
    }

    /// Takes back the share of a chunk that is no longer on its way.
    pub fn sent(&mut self, its_share: Option<Share>) {
        if let (Self::Flow { share, .. }, Some(its_share)) = (self, its_share) {
            share.merge(its_share);
        }
    }

    /// Whether others should have its share first: who reads for long would else keep it from them until the end.
    pub fn is_others_turn(&self, budget: &Budget) -> bool {
        match self {
            Self::Pieces { .. } => false,
            Self::Flow { rest, given_bytes, .. } => {
                rest.is_empty() && *given_bytes >= TURN_BYTES && budget.is_wanted()
            }
        }
    }
}
