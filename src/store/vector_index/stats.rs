//! How large a space is and how far its indexes are, for people and for the advisor.

use super::{FILLED, FILLING, Index};
use crate::store::Store;
use crate::store::caller::Caller;
use crate::store::operation::FAILED;
use crate::store::snapshot::Snapshot;
use crate::store::vector_space::VectorSpace;
use crate::{Error, Result, queries, row};
use std::time::SystemTime;
use uuid::Uuid;

row! {
    pub struct Counted {
        pub rows: i64,
    }
}

row! {
    /// How far an index is.
    pub struct IndexStats {
        pub uid: Uuid,
        pub method: i16,
        pub codes: i16,
        pub m: i32,
        pub ef_construction: i32,
        pub lists: i32,
        pub state: i16,
        /// Embeddings that filling has been through, of about so many.
        pub filled: i64,
        pub total: i64,
        /// Embeddings whose codes are still to come.
        pub fresh: i64,
        pub table_bytes: i64,
        pub index_bytes: i64,
        /// Of PostgreSQL's current phase of building, in its own units.
        pub build_done: i64,
        pub build_total: i64,
        pub build_phase: String,
        pub ready_time: Option<SystemTime>,
        pub probe_time: Option<SystemTime>,
        pub probe_recall: Option<f64>,
    }
}

row! {
    /// An operation at a space.
    pub struct Last {
        pub id: String,
        pub state: i16,
        pub error: String,
    }
}

queries! { "vector_index" {
    /// The newest operation at a space.
    LAST(Uuid) -> Last =
        "SELECT {*} FROM operation WHERE space_uid = $1 AND delete_time IS NULL \
         ORDER BY create_time DESC, uid DESC LIMIT 1";
    /// The live embeddings of a space.
    COUNT(Uuid) -> Counted =
        "SELECT count(*) AS rows FROM embedding WHERE space_uid = $1 AND delete_time IS NULL";
    /// The indexes of a space.
    STATS(Uuid) -> IndexStats = "SELECT {*} FROM wall.vector_space_stats($1)";
} }

/// Of building an index, filling takes about this part of the time.
const FILLING_PART: f64 = 0.1;

impl IndexStats {
    /// What it is at, and what part of all is done.
    pub fn progress(&self) -> (&'static str, f64) {
        let part =
            |done: i64, of: i64| if of > 0 { (done as f64 / of as f64).min(1.0) } else { 0.0 };
        match self.state {
            FILLING => ("filling", FILLING_PART * part(self.filled, self.total)),
            FILLED => {
                let done = part(self.build_done, self.build_total);
                ("building", FILLING_PART + (1.0 - FILLING_PART) * done)
            }
            _ => ("", 1.0),
        }
    }
}

/// A space as it is now.
#[derive(Clone, Debug)]
pub struct SpaceStats {
    pub rows: i64,
    pub indexes: Vec<IndexStats>,
    /// The newest operation, if it failed.
    pub failed: Option<Last>,
}

impl Store {
    pub async fn space_stats(&self, caller: &Caller, space: &VectorSpace) -> Result<SpaceStats> {
        let uid = space.meta.uid;
        self.snapshot(caller, STATS.name, move |at: Snapshot| {
            Box::pin(async move {
                let counted = at.all(&COUNT, &(uid,)).await?;
                let rows =
                    counted.first().ok_or_else(|| Error::internal("a count without a row"))?.rows;
                let indexes = at.all(&STATS, &(uid,)).await?;
                let last = at.all(&LAST, &(uid,)).await?.pop();
                let failed = last.filter(|last| last.state == FAILED);
                at.end(SpaceStats { rows, indexes, failed }).await
            })
        })
        .await
    }

    /// How far the indexes of a space are.
    pub async fn index_stats(&self, caller: &Caller, space_uid: Uuid) -> Result<Vec<IndexStats>> {
        self.snapshot(caller, STATS.name, move |at: Snapshot| {
            Box::pin(async move {
                let indexes = at.all(&STATS, &(space_uid,)).await?;
                at.end(indexes).await
            })
        })
        .await
    }
}

impl Index {
    /// Whether it is still being made.
    pub fn is_unfinished(&self) -> bool {
        matches!(self.state, FILLING | FILLED)
    }
}
