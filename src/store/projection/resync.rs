//! Putting right what a projection has, batch by batch: each is compared, mended, and then compared again.

use super::follow::{Batch, Projected, puts_of};
use super::verify::{Difference, Fault, Of, compare_next};
use super::{PAGE, Projection, rows_at_once};
use crate::Result;
use crate::store::Store;
use crate::store::caller::Caller;
use crate::store::snapshot::Snapshot;
use crate::store::vector_space::VectorSpace;
use std::sync::Arc;
use uuid::Uuid;

/// Part of a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Embeddings after this one, in the order of uids.
    pub after: Uuid,
    /// So many.
    pub limit: i64,
    /// Whether what is as recorded is left alone.
    pub only_differences: bool,
}

/// What became of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resynced {
    /// Recorded embeddings that were looked at.
    pub checked: i64,
    /// Those that the projection now has as recorded; without those that it had before, where they are left alone.
    pub synced: i64,
    /// What is still wrong.
    pub wrong: Vec<Difference>,
    /// Where the next part begins; `None` at the end of the space.
    pub next: Option<Uuid>,
    /// The number of the log at that moment.
    pub seq: i64,
}

async fn resync(
    at: &Snapshot,
    projection: &dyn Projection,
    space: &VectorSpace,
    part: Part,
) -> Result<Resynced> {
    let Part { after, limit, only_differences } = part;
    let (mut found, next) = compare_next(at, projection, space, after, limit).await?;
    let were_sound = found.sound.len();
    if let Some(target) = projection.target() {
        let (mut changes, mut puts) = (Vec::new(), Vec::new());
        for (fault, of) in &found.wrong {
            match (fault, of) {
                (Fault::Extra, Of::Stray(uid)) => {
                    changes.push(Projected::Remove { space: space.meta.uid, uid: *uid });
                }
                (_, Of::Recorded(row)) => puts.push(row.uid),
                (_, Of::Stray(_)) => {}
            }
        }
        if !only_differences {
            puts.extend(found.sound.iter().map(|row| row.uid));
        }
        // A repair says nothing of the log, so the position stays.
        let position = target.position(at).await?;
        let apply = |changes| target.apply(Batch { after: position, position, changes });
        if !changes.is_empty() {
            apply(changes).await?;
        }
        for uids in puts.chunks(rows_at_once(space) as usize) {
            apply(puts_of(at, uids.to_vec()).await?).await?;
        }
        if !puts.is_empty() || !found.wrong.is_empty() {
            (found, _) = compare_next(at, projection, space, after, limit).await?;
        }
    }
    let checked = found.wrong.iter().filter(|(fault, _)| *fault != Fault::Extra).count();
    let checked = checked + found.sound.len();
    let spared = if only_differences { were_sound } else { 0 };
    let wrong = found.wrong.into_iter().map(|(fault, of)| match of {
        Of::Recorded(row) => (row.uid, row.embedding_id, fault),
        Of::Stray(uid) => (uid, String::new(), fault),
    });
    let space_id = || space.id.clone();
    let wrong = wrong.map(|(uid, embedding_id, fault)| Difference {
        space_id: space_id(),
        uid,
        embedding_id,
        fault,
    });
    Ok(Resynced {
        checked: checked as i64,
        synced: found.sound.len().saturating_sub(spared) as i64,
        wrong: wrong.collect(),
        next,
        seq: at.head,
    })
}

impl Store {
    /// Brings part of a space in a projection of the caller's tenant to what is recorded. What only the projection had
    /// and has lost, nobody can bring back: it is told as wrong.
    pub async fn resync(
        &self,
        caller: &Caller,
        projection: Arc<dyn Projection>,
        space: Arc<VectorSpace>,
        part: Part,
    ) -> Result<Resynced> {
        self.snapshot(caller, PAGE.name, move |at| {
            let (projection, space) = (Arc::clone(&projection), Arc::clone(&space));
            Box::pin(async move {
                let done = resync(&at, &*projection, &space, part).await?;
                at.end(done).await
            })
        })
        .await
    }
}
