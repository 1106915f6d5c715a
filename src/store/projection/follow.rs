//! Following: a projection outside this database gets the changes of the log in their order, and keeps how far it is.
//!
//! A batch is applied with its position, so a projection that fails or is killed goes on behind the last batch that it
//! has. One that cannot keep both in one step may get a batch again: applying a change twice is applying it once.

use super::built_in::{digest, numbers};
use super::{PIECE_BYTES_MAX, Projection, rows_at_once};
use crate::store::Store;
use crate::store::caller::Caller;
use crate::store::embedding::Embedding;
use crate::store::noun::Noun;
use crate::store::snapshot::Snapshot;
use crate::store::vector_space::VectorSpace;
use crate::{Error, Result, queries, row};
use futures_util::future::BoxFuture;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use uuid::Uuid;

/// Entries that are looked at for one batch, whatever they are about.
const ENTRIES_MAX: i64 = 1000;
/// And about how many bytes of documents; one entry always fits.
const DOCUMENT_BYTES_MAX: i64 = 4 << 20;
/// Whole embeddings that are read at once, where no log says how large they are.
const RETURNING_MAX: i64 = 100;

/// A projection that is written to.
pub trait Target: Projection {
    /// Applies a batch and keeps its position, both or neither where the place can do that, else the changes first. A
    /// batch that does not begin at the projection's position comes from another follower that is behind: refuse it.
    fn apply<'a>(&'a self, batch: Batch) -> BoxFuture<'a, Result<()>>;
}

/// Changes in the order of the log.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The position before, and the one after. They are the same where more of one entry is to come, and in a repair.
    pub after: i64,
    pub position: i64,
    pub changes: Vec<Projected>,
}

/// A change as a projection makes it. Each says how something shall be, so that it can be made again.
#[derive(Clone, Debug)]
pub enum Projected {
    /// There is a space, or it has other labels or aliases. It comes in each batch before what is put into it: given
    /// again, a batch may find the space deleted that a later batch deletes, or not find it yet.
    Space(Box<VectorSpace>),
    /// A space is deleted: it and all that is in it goes.
    DropSpace(Uuid),
    /// An embedding, with the numbers of its vector.
    Put(Box<Embedding>, Vec<f32>),
    /// An embedding is deleted, or its numbers are lost.
    Remove { space: Uuid, uid: Uuid },
}

/// How far following has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// The number of the log that the projection has come to.
    pub position: i64,
    /// The newest number at that time.
    pub head: i64,
    /// Changes that were applied.
    pub applied: i64,
    /// Vectors that could not be, because their numbers are lost. Verifying tells which.
    pub lost: i64,
}

row! {
    pub struct Logged {
        pub seq: i64,
        pub kind: String,
        pub uid: Uuid,
        pub id: String,
        pub action: String,
        pub document: Option<Vec<u8>>,
        /// How many there are, whether or not they fit.
        pub found: i64,
    }
}

row! {
    /// A vector of a version.
    pub struct Kept {
        pub uid: Uuid,
        pub digest: String,
        pub is_half: bool,
        pub numbers: Vec<u8>,
    }
}

queries! { "projection_follow" {
    /// What concerns projections after a number: (after, up to, bytes of documents).
    LOGGED(i64, i64, i64) -> Logged =
        "SELECT {*} FROM (SELECT l.seq, l.kind, l.uid, l.id, l.action, l.document, \
         count(*) OVER () AS found, row_number() OVER w AS n, \
         sum(COALESCE(octet_length(l.document), 0)) OVER w AS bytes FROM log AS l \
         WHERE l.seq > $1 AND l.seq <= $2 AND l.kind IN ('embedding', 'vector_space') WINDOW w AS (ORDER BY l.seq)) \
         AS piece WHERE n = 1 OR bytes <= $3 ORDER BY seq";
    /// Vectors of versions: (uids, digests).
    KEPT(Vec<Uuid>, Vec<String>) -> Kept =
        "SELECT x.embedding_uid AS uid, x.digest, x.half IS NOT NULL AS is_half, \
         COALESCE(public.vector_send(x.vector), public.halfvec_send(x.half)) AS numbers \
         FROM unnest($1::uuid[], $2::text[]) AS u (uid, digest) \
         JOIN embedding_vector AS x ON x.embedding_uid = u.uid AND x.digest = u.digest";
    /// Live embeddings of a space after a uid: (space, after, limit).
    LIVE(Uuid, Uuid, i64) -> Embedding =
        "SELECT {*} FROM embedding WHERE space_uid = $1 AND uid > $2 AND delete_time IS NULL ORDER BY uid LIMIT $3";
    /// Spaces, whether or not they are deleted by now.
    SPACES(Vec<Uuid>) -> VectorSpace = "SELECT {*} FROM vector_space WHERE uid = ANY($1)";
    /// Live embeddings: (uids).
    SOME(Vec<Uuid>) -> Embedding =
        "SELECT {*} FROM embedding WHERE uid = ANY($1) AND delete_time IS NULL ORDER BY uid";
} }

/// One step along the log.
enum Step {
    /// Everything is applied.
    AtHead,
    Apply {
        changes: Vec<Change>,
        position: i64,
    },
    /// A space comes back with all that is in it, which may be any amount.
    Return {
        space: Uuid,
        position: i64,
    },
}

/// A change whose numbers are still to be found.
enum Change {
    Made(Projected),
    Put(Box<Embedding>),
}

impl Change {
    /// What an entry asks for; nothing where its document is erased, because a later entry says how it is then.
    fn of(entry: &Logged) -> Result<Option<Self>> {
        let Logged { kind, uid, id, action, document, .. } = entry;
        if kind == Embedding::KIND {
            let (space, _) =
                id.split_once('/').ok_or_else(|| Error::internal("an id without a space"))?;
            let space = Uuid::try_parse(space).map_err(Error::internal)?;
            let gone = Some(Self::Made(Projected::Remove { space, uid: *uid }));
            return Ok(match document {
                None if action == "PURGE" => gone,
                None => None,
                Some(document) => {
                    let row = Embedding::from_document(document)?;
                    let is_gone = row.meta.delete_time.is_some();
                    if is_gone { gone } else { Some(Self::Put(Box::new(row))) }
                }
            });
        }
        let Some(document) = document else { return Ok(None) };
        let space = VectorSpace::from_document(document)?;
        Ok(Some(Self::Made(match space.meta.delete_time {
            Some(_) => Projected::DropSpace(space.meta.uid),
            None => Projected::Space(Box::new(space)),
        })))
    }

    fn size_bytes(&self) -> i64 {
        match self {
            Self::Made(_) => 0,
            Self::Put(row) => 4 * i64::from(row.dimensions),
        }
    }
}

/// The next step after a number.
async fn step(at: &Snapshot, after: i64) -> Result<Step> {
    if after >= at.head {
        return Ok(Step::AtHead);
    }
    let upto = at.head.min(after.saturating_add(ENTRIES_MAX));
    let entries = at.all(&LOGGED, &(after, upto, DOCUMENT_BYTES_MAX)).await?;
    let mut is_whole = entries.first().is_none_or(|first| first.found == entries.len() as i64);
    let (mut changes, mut bytes, mut position) = (Vec::new(), 0, after);
    for entry in &entries {
        if entry.kind == VectorSpace::KIND && entry.action == "UNDELETE" {
            if position == after {
                return Ok(Step::Return { space: entry.uid, position: entry.seq });
            }
            is_whole = false;
            break;
        }
        let change = Change::of(entry)?;
        bytes += change.as_ref().map_or(0, Change::size_bytes);
        if !changes.is_empty() && bytes > PIECE_BYTES_MAX {
            is_whole = false;
            break;
        }
        changes.extend(change);
        position = entry.seq;
    }
    // What else was looked at is about other things.
    Ok(Step::Apply { changes, position: if is_whole { upto } else { position } })
}

/// Finds the numbers of what shall be put, and the spaces that it is put into; gives the changes, and how many vectors are lost.
async fn complete(at: &Snapshot, changes: Vec<Change>) -> Result<(Vec<Projected>, i64)> {
    let (mut wanted, mut spaces) = ((Vec::new(), Vec::new()), HashSet::new());
    for change in &changes {
        let Change::Put(row) = change else { continue };
        wanted.0.push(row.meta.uid);
        wanted.1.push(row.vector_digest.clone());
        spaces.insert(row.space_uid);
    }
    let mut kept: HashMap<(Uuid, String), Vec<f32>> = HashMap::new();
    if !wanted.0.is_empty() {
        for found in at.all(&KEPT, &wanted).await? {
            let numbers = numbers(&found.numbers, found.is_half);
            if let Some(numbers) = numbers.filter(|numbers| digest(numbers) == found.digest) {
                kept.insert((found.uid, found.digest), numbers);
            }
        }
    }
    let mut lost = 0;
    let changes: Vec<Projected> = changes
        .into_iter()
        .map(|change| match change {
            Change::Made(change) => change,
            Change::Put(row) => {
                let (uid, space) = (row.meta.uid, row.space_uid);
                // Several versions may have the same numbers.
                match kept.get(&(uid, row.vector_digest.clone())).cloned() {
                    Some(numbers) => Projected::Put(row, numbers),
                    // Those of the version before are no longer what is recorded.
                    None => {
                        lost += 1;
                        Projected::Remove { space, uid }
                    }
                }
            }
        })
        .collect();
    let spaces = match wanted.0.is_empty() {
        true => Vec::new(),
        false => at.all(&SPACES, &(spaces.into_iter().collect(),)).await?,
    };
    let spaces = spaces.into_iter().map(|space| Projected::Space(Box::new(space)));
    Ok((spaces.chain(changes).collect(), lost))
}

fn put(rows: Vec<Embedding>) -> Vec<Change> {
    rows.into_iter().map(|row| Change::Put(Box::new(row))).collect()
}

/// Live embeddings with their numbers, as changes; without those whose numbers are lost, because the projection may have
/// the only ones.
pub(super) async fn puts_of(at: &Snapshot, uids: Vec<Uuid>) -> Result<Vec<Projected>> {
    let rows = at.all(&SOME, &(uids,)).await?;
    let (mut changes, _) = complete(at, put(rows)).await?;
    changes.retain(|change| !matches!(change, Projected::Remove { .. }));
    Ok(changes)
}

impl Store {
    /// Brings a projection of the caller's tenant along by one batch of the log; at the head it does nothing.
    pub async fn follow(
        &self,
        caller: &Caller,
        projection: Arc<dyn Projection>,
    ) -> Result<Followed> {
        self.snapshot(caller, LOGGED.name, move |at| {
            let projection = Arc::clone(&projection);
            Box::pin(async move {
                let target = projection
                    .target()
                    .ok_or_else(|| Error::internal("what is transactional cannot follow"))?;
                let after = target.position(&at).await?;
                let mut followed =
                    Followed { position: after, head: at.head, ..Followed::default() };
                match step(&at, after).await? {
                    Step::AtHead => {}
                    Step::Apply { changes, position } => {
                        let (changes, lost) = complete(&at, changes).await?;
                        followed.note(target, Batch { after, position, changes }, lost).await?;
                    }
                    // As it is now: what is newer than the entry comes again with its own, and a space that is gone
                    // by now goes with a later one.
                    Step::Return { space, position } => {
                        let space = at.all(&SPACES, &(vec![space],)).await?.pop();
                        let space = space.filter(|space| space.meta.delete_time.is_none());
                        if let Some(space) = space {
                            followed.bring_back(&at, target, space, after).await?;
                        }
                        let batch = Batch { after, position, changes: Vec::new() };
                        followed.note(target, batch, 0).await?;
                    }
                }
                at.end(followed).await
            })
        })
        .await
    }
}

impl Followed {
    /// Puts a space and all that is in it. The position stays: were this cut short, it begins again.
    async fn bring_back(
        &mut self,
        at: &Snapshot,
        target: &dyn Target,
        space: VectorSpace,
        position: i64,
    ) -> Result<()> {
        let (uid, limit) = (space.meta.uid, rows_at_once(&space).min(RETURNING_MAX));
        let changes = vec![Projected::Space(Box::new(space))];
        self.note(target, Batch { after: position, position, changes }, 0).await?;
        let mut next = Some(Uuid::nil());
        while let Some(after) = next {
            let rows = at.all(&LIVE, &(uid, after, limit)).await?;
            let is_full = rows.len() as i64 == limit;
            next = rows.last().filter(|_| is_full).map(|row| row.meta.uid);
            let (changes, lost) = complete(at, put(rows)).await?;
            self.note(target, Batch { after: position, position, changes }, lost).await?;
        }
        Ok(())
    }

    async fn note(&mut self, target: &dyn Target, batch: Batch, lost: i64) -> Result<()> {
        let (position, applied) = (batch.position, batch.changes.len() as i64);
        if applied > 0 || position != batch.after {
            target.apply(batch).await?;
        }
        self.position = position;
        self.applied += applied;
        self.lost += lost;
        if lost > 0 {
            tracing::warn!(lost, position, "vectors are lost: a projection goes without them");
        }
        Ok(())
    }
}
