//! Projections: places where the vectors of the record are searched. What they hold is verified against the record.
//!
//! One that is written in the transaction of the record is the record seen from its other side; [`built_in`] is one.
//! Any other follows the log: see [`follow`].

pub mod built_in;
pub mod follow;
pub mod resync;
pub mod schedule;
pub mod verify;

use super::Store;
use super::caller::Caller;
use super::snapshot::Snapshot;
use super::vector_space::VectorSpace;
use crate::{Result, queries, row};
use follow::Target;
use futures_util::future::BoxFuture;
use schedule::{LAST, SyncCheck};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use uuid::Uuid;

/// When vectors come into a projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the transaction that records them.
    Transactional,
    /// Afterwards, by following the log.
    Follower,
}

/// A place where vectors of one tenant are searched. It knows embeddings by their uids, because no place takes every id.
pub trait Projection: Send + Sync {
    /// Its name for operators.
    fn name(&self) -> &str;

    fn mode(&self) -> Mode;

    /// The number of the log up to which it has everything, and 0 at first. It is kept in the place itself, so that it
    /// is true whatever becomes of the server.
    fn position<'a>(&'a self, at: &'a Snapshot) -> BoxFuture<'a, Result<i64>>;

    /// How many vectors it has for live embeddings of a space; of all spaces, where none is named.
    fn count<'a>(&'a self, at: &'a Snapshot, space: Option<Uuid>) -> BoxFuture<'a, Result<i64>>;

    /// What it has in a space: first after a uid, and up to another, in the order of uids, at most so many. With the
    /// digests of the numbers that it really has, not of those that it was given.
    fn page<'a>(
        &'a self,
        at: &'a Snapshot,
        space: &'a VectorSpace,
        range: Range,
    ) -> BoxFuture<'a, Result<Vec<Held>>>;

    /// Of these embeddings of a space what it has, in any order.
    fn find<'a>(
        &'a self,
        at: &'a Snapshot,
        space: &'a VectorSpace,
        uids: Vec<Uuid>,
    ) -> BoxFuture<'a, Result<Vec<Held>>>;

    /// Itself as what can be written to; `None` for one that only the transactions of the record write to.
    fn target(&self) -> Option<&dyn Target>;
}

/// Uids after one and up to another, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub after: Uuid,
    pub upto: Uuid,
    /// Rows.
    pub limit: i64,
}

/// What a projection has of an embedding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub uid: Uuid,
    pub version: i64,
    /// SHA-256 of the numbers as f32, little endian; 64 hex digits. Empty where the numbers cannot be read.
    pub digest: String,
}

row! {
    /// What the record says of an embedding.
    pub struct Recorded {
        pub uid: Uuid,
        pub space_uid: Uuid,
        pub embedding_id: String,
        pub version: i64,
        pub vector_digest: String,
    }
}

row! {
    pub struct Counted {
        pub rows: i64,
    }
}

row! {
    pub struct Moment {
        pub time: SystemTime,
    }
}

queries! { "projection" {
    /// Live embeddings of a space, or of all live spaces.
    COUNT(Option<Uuid>) -> Counted =
        "SELECT count(*) AS rows FROM embedding AS d JOIN vector_space AS s ON s.uid = d.space_uid \
         WHERE d.delete_time IS NULL AND (d.space_uid = $1 OR $1 IS NULL AND s.delete_time IS NULL)";
    /// Live embeddings of a space after a uid: (space, after, limit).
    PAGE(Uuid, Uuid, i64) -> Recorded =
        "SELECT {*} FROM embedding WHERE space_uid = $1 AND uid > $2 AND delete_time IS NULL ORDER BY uid LIMIT $3";
    /// Live embeddings of a space, or of all live spaces, drawn by a seed: (space, seed, limit). A row that comes or goes
    /// changes no other's place in the draw.
    SAMPLE(Option<Uuid>, i64, i64) -> Recorded =
        "SELECT {d.*} FROM (SELECT e.uid FROM embedding AS e JOIN vector_space AS s ON s.uid = e.space_uid \
         WHERE e.delete_time IS NULL AND (e.space_uid = $1 OR $1 IS NULL AND s.delete_time IS NULL) \
         ORDER BY uuid_hash_extended(e.uid, $2), e.uid LIMIT $3) AS drawn JOIN embedding AS d ON d.uid = drawn.uid";
    /// The live spaces.
    SPACES() -> VectorSpace = "SELECT {*} FROM vector_space WHERE delete_time IS NULL ORDER BY uid";
    /// When the entry after a number was made.
    TIME_AFTER(i64) -> Moment = "SELECT time FROM log WHERE seq > $1 ORDER BY seq LIMIT 1";
} }

/// How far a projection is.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// The newest number of the log.
    pub head: i64,
    pub applied: i64,
    /// The age of the oldest entry that it does not have.
    pub lag: Duration,
    pub recorded: i64,
    pub held: i64,
    /// What a server found last of its own accord, in all spaces.
    pub last_check: Option<SyncCheck>,
}

/// What a sample may be drawn by: never 0, which callers mean by any.
pub fn any_seed() -> i64 {
    let (seed, _) = Uuid::new_v4().as_u64_pair();
    (seed >> 1) as i64 | 1
}

/// What is read at once of vectors, in bytes.
const PIECE_BYTES_MAX: i64 = 4 << 20;
/// And in rows.
const PIECE_ROWS_MAX: i64 = 1000;

/// How many vectors of a space are read at once.
fn rows_at_once(space: &VectorSpace) -> i64 {
    (PIECE_BYTES_MAX / (4 * i64::from(space.dimensions.max(1)))).clamp(1, PIECE_ROWS_MAX)
}

async fn count(at: &Snapshot, space: Option<Uuid>) -> Result<i64> {
    Ok(at.all(&COUNT, &(space,)).await?.first().map_or(0, |counted| counted.rows))
}

impl Store {
    /// The live spaces, in the order in which they were made.
    pub async fn live_spaces(&self, caller: &Caller) -> Result<Vec<VectorSpace>> {
        self.snapshot(caller, SPACES.name, |at| {
            Box::pin(async move {
                let spaces = at.all(&SPACES, &()).await?;
                at.end(spaces).await
            })
        })
        .await
    }

    /// How far a projection of the caller's tenant is, with counts of one space or of all.
    pub async fn progress(
        &self,
        caller: &Caller,
        projection: Arc<dyn Projection>,
        space: Option<Uuid>,
    ) -> Result<Progress> {
        self.snapshot(caller, COUNT.name, move |at| {
            let projection = Arc::clone(&projection);
            Box::pin(async move {
                let head = at.head;
                let applied = projection.position(&at).await?;
                let oldest = match applied < head {
                    true => at.all(&TIME_AFTER, &(applied,)).await?.pop(),
                    false => None,
                };
                let lag = oldest.and_then(|oldest| at.now.duration_since(oldest.time).ok());
                let progress = Progress {
                    head,
                    applied,
                    lag: lag.unwrap_or_default(),
                    recorded: count(&at, space).await?,
                    held: projection.count(&at, space).await?,
                    last_check: at.all(&LAST, &(projection.name().to_owned(),)).await?.pop(),
                };
                at.end(progress).await
            })
        })
        .await
    }
}
