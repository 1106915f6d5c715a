//! What is written about blobs: before their bytes go to the store, when they are there, and when they shall go.

use super::content::{self, ADD};
use super::reference::referred;
use super::{Blob, CORRUPT, ERASED, ERASING, READY};
use crate::store::caller::Caller;
use crate::store::change::{Modify, advance, modify_all, rows_of, stamp};
use crate::store::envelope::WrappedKey;
use crate::store::evidence::cited;
use crate::store::legal_hold::{self, Leaving};
use crate::store::log::{Entry, LogRow};
use crate::store::noun::Noun as _;
use crate::store::write::{Applied, Change, Foreseen, Insert, Outcome, RowKey, Shown, Tx};
use crate::{Error, Reason, Result, queries, row};
use futures_util::future::BoxFuture;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};
use uuid::Uuid;

row! {
    /// An intent that was found.
    pub struct Found {
        pub uid: Uuid,
    }
}

queries! { "blob_intent" {
    /// Bytes are about to go to a key: (uids, keys, milliseconds until anybody may delete them).
    INTEND(Vec<Uuid>, Vec<String>, Vec<i64>) -> () =
        "INSERT INTO blob_intent (uid, store_key, state, due_time) \
         SELECT u.uid, u.store_key, 1, now() + make_interval(secs => u.keep_ms / 1000.0) \
         FROM unnest($1::uuid[], $2::text[], $3::bigint[]) AS u (uid, store_key, keep_ms) ON CONFLICT DO NOTHING";
    /// They go there in parts: (uids, the store's names for the uploads).
    NAME(Vec<Uuid>, Vec<String>) -> Found =
        "UPDATE blob_intent AS i SET upload_id = u.upload_id FROM unnest($1::uuid[], $2::text[]) \
         AS u (uid, upload_id) WHERE i.uid = u.uid AND i.state = 1 RETURNING i.uid";
    /// Intents whose bytes nobody has begun to delete, locked.
    HOLD_INTENTS(Vec<Uuid>) -> Found = "SELECT uid FROM blob_intent WHERE uid = ANY($1) AND state = 1 FOR UPDATE";
    /// A blob has taken the bytes over, or they are deleted.
    SETTLE(Vec<Uuid>) -> () = "DELETE FROM blob_intent WHERE uid = ANY($1)";
    /// The bytes are to be deleted by anybody: (uids, milliseconds until then).
    CONDEMN(Vec<Uuid>, Vec<i64>) -> Found =
        "UPDATE blob_intent AS i SET state = 2, due_time = now() + make_interval(secs => u.wait_ms / 1000.0) \
         FROM unnest($1::uuid[], $2::bigint[]) AS u (uid, wait_ms) WHERE i.uid = u.uid RETURNING i.uid";
    /// The same of bytes that a blob had: (uids, keys, blobs, milliseconds until others than the caller do it).
    CONDEMN_STORED(Vec<Uuid>, Vec<String>, Vec<Option<Uuid>>, i64) -> () =
        "INSERT INTO blob_intent (uid, store_key, state, blob_uid, due_time) \
         SELECT u.uid, u.store_key, 2, u.blob_uid, now() + make_interval(secs => $4::bigint / 1000.0) \
         FROM unnest($1::uuid[], $2::text[], $3::uuid[]) AS u (uid, store_key, blob_uid)";
    LOCK_BLOBS(Vec<Uuid>) -> Blob =
        "SELECT {*} FROM blob WHERE uid = ANY($1) AND delete_time IS NULL ORDER BY id FOR UPDATE";
    /// The deleted blobs of intents to delete their bytes, locked.
    LOCK_ERASING(Vec<Uuid>) -> Blob =
        "SELECT {*} FROM blob WHERE uid IN (SELECT blob_uid FROM blob_intent WHERE uid = ANY($1)) AND state = 4 \
         ORDER BY uid FOR UPDATE";
} }

/// How long the server that deleted a blob has for the bytes, before others see to it.
const OWN_TIME: Duration = Duration::from_secs(60);

pub(super) fn intent(uid: Uuid) -> RowKey {
    RowKey::new(&["blob_intent", &uid.to_string()])
}

/// A change of an intent: nothing of it stands in the log.
macro_rules! intent_change {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $ty:ty),* }, |$tx:ident, $changes:ident| $apply:expr) => {
        $(#[$doc])*
        pub struct $name {
            pub uid: Uuid,
            $(pub $field: $ty,)*
        }

        impl Change for $name {
            type Answer = ();

            fn touches(&self, rows: &mut Vec<RowKey>) {
                rows.push(intent(self.uid));
            }

            fn size_bytes(&self) -> usize {
                256
            }

            fn apply<'a>(
                $tx: &'a Tx<'a>,
                $changes: &'a [Applied<'a, Self>],
            ) -> BoxFuture<'a, Result<Vec<Outcome<()>>>> {
                Box::pin(async move { $apply })
            }

            fn rebuild(&self, _: &[LogRow]) -> Result<()> {
                Ok(())
            }
        }
    };
}

fn done<C>(changes: &[Applied<'_, C>]) -> Vec<Outcome<()>> {
    let done = || Outcome::Done { answer: (), entries: Vec::new(), shown: Vec::new() };
    changes.iter().map(|_| done()).collect()
}

intent_change! {
    /// Says that bytes are about to go to a key of the store.
    Intend { store_key: String, keep: Duration }, |tx, changes| {
        let uids = changes.iter().map(|a| a.change.uid).collect();
        let keys = changes.iter().map(|a| a.change.store_key.clone()).collect();
        let keep_ms = changes.iter().map(|a| a.change.keep.as_millis() as i64).collect();
        tx.run(&INTEND, &(uids, keys, keep_ms)).await?;
        Ok(done(changes))
    }
}

intent_change! {
    /// Says by which name the store knows an upload in parts, before the first of them.
    Name { upload_id: String }, |tx, changes| {
        let uids = changes.iter().map(|a| a.change.uid).collect();
        let names = changes.iter().map(|a| a.change.upload_id.clone()).collect();
        let named = tx.run(&NAME, &(uids, names)).await?;
        let named: HashSet<Uuid> = named.into_iter().map(|found| found.uid).collect();
        let outcome = |a: &Applied<'_, Name>| match named.contains(&a.change.uid) {
            true => Outcome::Done { answer: (), entries: Vec::new(), shown: Vec::new() },
            false => Outcome::Failed(too_late()),
        };
        Ok(changes.iter().map(outcome).collect())
    }
}

intent_change! {
    /// Says that the bytes of an attempt are to be deleted. NOT_FOUND where they are a blob's by now, as after a COMMIT
    /// whose outcome was unknown: they must stay.
    Condemn { wait: Duration }, |tx, changes| {
        let uids = changes.iter().map(|a| a.change.uid).collect();
        let wait_ms = changes.iter().map(|a| a.change.wait.as_millis() as i64).collect();
        let condemned = tx.run(&CONDEMN, &(uids, wait_ms)).await?;
        let condemned: HashSet<Uuid> = condemned.into_iter().map(|found| found.uid).collect();
        let outcome = |a: &Applied<'_, Condemn>| match condemned.contains(&a.change.uid) {
            true => Outcome::Done { answer: (), entries: Vec::new(), shown: Vec::new() },
            false => Outcome::Failed(Error::not_found("blob_intent", a.change.uid.to_string())),
        };
        Ok(changes.iter().map(outcome).collect())
    }
}

intent_change! {
    /// Has bytes removed that are nobody's, by an intent of that name.
    Discard { store_key: String }, |tx, changes| {
        let uids = changes.iter().map(|a| a.change.uid).collect();
        let keys = changes.iter().map(|a| a.change.store_key.clone()).collect();
        let of_none = vec![None; changes.len()];
        tx.run(&CONDEMN_STORED, &(uids, keys, of_none, 0)).await?;
        Ok(done(changes))
    }
}

pub(super) fn too_late() -> Error {
    Error::DeadlineExceeded(": the upload took longer than blob_upload_keep_ms")
}

/// Takes over the bytes of an attempt: from here on they are a blob.
#[derive(Clone)]
pub struct Keep {
    /// Its uid is the attempt's.
    pub blob: Blob,
    /// The bytes, as they are to be stored, where they are to lie in the database; else they are in the store.
    pub content: Option<Vec<u8>>,
}

/// The blob that has the digest now, and whether the tenant had it before.
#[derive(Clone, Debug)]
pub struct Kept {
    pub blob: Blob,
    pub deduplicated: bool,
}

impl Change for Keep {
    type Answer = Kept;

    const FORESEE: Option<fn(&[Applied<'_, Self>], SystemTime) -> Foreseen<Kept>> = Some(foresee);

    /// Bytes in the store are an attempt's only as long as its intent says so.
    fn must_look(&self) -> bool {
        self.content.is_none()
    }

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.push(RowKey::new(&[Blob::KIND, &self.blob.id]));
        rows.push(intent(self.blob.meta.uid));
    }

    fn size_bytes(&self) -> usize {
        self.blob.size_bytes() + self.content.as_ref().map_or(0, Vec::len)
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        vec![(Blob::KIND, &self.blob.id)]
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Kept>>>> {
        let keeps: Vec<_> = changes.iter().map(|a| (a.change, a.caller)).collect();
        Box::pin(async move { keep_all(tx, &keeps).await })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Kept> {
        let blob = rows_of(entries)?.pop();
        let blob: Blob = blob.ok_or_else(|| Error::internal("a replayed answer lacks a row"))?;
        // Whether the first call had found it, its receipt says.
        Ok(Kept { blob, deduplicated: false })
    }
}

/// What is written if no blob has any of the digests yet.
fn foresee(changes: &[Applied<'_, Keep>], now: SystemTime) -> Foreseen<Kept> {
    let (mut uids, mut contents) = (Vec::new(), Vec::new());
    let mut outcomes = Vec::with_capacity(changes.len());
    for Applied { change, caller } in changes {
        let blob = stamp(&change.blob, caller.acting(), now);
        uids.push(blob.meta.uid);
        contents.push(change.content.clone().unwrap_or_default());
        let entries = vec![Entry::of(&blob, "CREATE")];
        outcomes.push((Kept { blob, deduplicated: false }, entries));
    }
    let blobs: Vec<&Blob> = outcomes.iter().map(|(kept, _)| &kept.blob).collect();
    let mut inserts = Insert::all_of(&blobs);
    let count = uids.len();
    inserts.push(Insert::exactly(&ADD, (uids, contents), count));
    Foreseen { inserts, outcomes }
}

/// Takes over the bytes of attempts, with who made them; the outcomes stand in the same order. No two may have one digest.
pub async fn keep_all(tx: &Tx<'_>, keeps: &[(&Keep, &Caller)]) -> Result<Vec<Outcome<Kept>>> {
    let stored = keeps.iter().filter(|(keep, _)| keep.content.is_none());
    let uids: Vec<Uuid> = stored.map(|(keep, _)| keep.blob.meta.uid).collect();
    let held = if uids.is_empty() { Vec::new() } else { tx.run(&HOLD_INTENTS, &(uids,)).await? };
    let held: HashSet<Uuid> = held.into_iter().map(|found| found.uid).collect();
    let in_time = |(keep, _): &&(&Keep, &Caller)| {
        keep.content.is_some() || held.contains(&keep.blob.meta.uid)
    };
    let rows: Vec<Blob> = keeps
        .iter()
        .filter(in_time)
        .map(|(keep, caller)| stamp(&keep.blob, caller.acting(), tx.now))
        .collect();
    let inserted = if rows.is_empty() { Vec::new() } else { tx.insert(&rows).await? };
    let taken = rows.iter().zip(&inserted).filter(|(_, new)| !**new);
    let taken: Vec<String> = taken.map(|(row, _)| row.id.clone()).collect();
    let mut there: HashMap<String, Blob> =
        if taken.is_empty() { HashMap::new() } else { tx.lock(taken).await? };

    let (mut settled, mut condemned, mut saved) = (Vec::new(), Vec::new(), Vec::new());
    let mut replaced: (Vec<Uuid>, Vec<String>) = Default::default();
    let mut contents = Vec::new();
    let mut written = rows.into_iter().zip(inserted);
    let mut outcomes = Vec::with_capacity(keeps.len());
    for given in keeps {
        if !in_time(&given) {
            outcomes.push(Outcome::Failed(too_late()));
            continue;
        }
        let Some((row, new)) = written.next() else {
            return Err(Error::internal("a blob was not written"));
        };
        let (attempt, content) = (row.meta.uid, given.0.content.clone());
        if new {
            match content {
                Some(content) => contents.push((attempt, content)),
                None => settled.push(attempt),
            }
            let entries = vec![Entry::of(&row, "CREATE")];
            let answer = Kept { blob: row, deduplicated: false };
            outcomes.push(Outcome::Done { answer, entries, shown: Vec::new() });
            continue;
        }
        let Some(mut blob) = there.remove(&row.id) else {
            // Deleted between our insert and our look: the next attempt will find the digest free.
            return Err(Error::Conflict(std::sync::Arc::from(Box::from(
                "a conflicting blob went away",
            ))));
        };
        if blob.state == READY {
            // Somebody was faster, with the same bytes.
            if content.is_none() {
                condemned.push(attempt);
            }
            let shown = vec![Shown::of(&blob)];
            let answer = Kept { blob, deduplicated: true };
            outcomes.push(Outcome::Done { answer, entries: Vec::new(), shown });
            continue;
        }
        // The right bytes have come for a blob that had lost them.
        if !blob.is_inline() {
            replaced.0.push(Uuid::now_v7());
            replaced.1.push(blob.store_key.clone());
        }
        let meta = blob.meta.clone();
        blob = Blob { meta, content_type: blob.content_type, ..row };
        advance(&mut blob, given.1.acting(), tx.now);
        match content {
            Some(content) => contents.push((blob.meta.uid, content)),
            None => settled.push(attempt),
        }
        saved.push(blob.clone());
        let entries = vec![Entry::of(&blob, "RESTORE")];
        let answer = Kept { blob, deduplicated: false };
        outcomes.push(Outcome::Done { answer, entries, shown: Vec::new() });
    }
    tx.save(&saved).await?;
    content::set(tx, contents).await?;
    if !settled.is_empty() {
        tx.run(&SETTLE, &(settled,)).await?;
    }
    if !condemned.is_empty() {
        let at_once = vec![0; condemned.len()];
        tx.run(&CONDEMN, &(condemned, at_once)).await?;
    }
    if !replaced.0.is_empty() {
        let of_none = vec![None; replaced.0.len()];
        tx.run(&CONDEMN_STORED, &(replaced.0, replaced.1, of_none, 0)).await?;
    }
    Ok(outcomes)
}

/// Notes that a blob's bytes are not what was kept, if they are still those that were looked at.
pub fn corrupt(blob: &Blob) -> Modify<Blob> {
    let (uid, key) = (blob.meta.uid, blob.store_key.clone());
    Modify {
        id: blob.id.clone(),
        etag: None,
        action: "CORRUPT",
        allow_missing: true,
        deleted: false,
        patch: Box::new(move |row: &mut Blob, _| {
            if row.meta.uid == uid && row.store_key == key && row.state == READY {
                row.state = CORRUPT;
            }
            Ok(())
        }),
        size_bytes: 512,
    }
}

/// Notes that a blob's bytes were read whole and are right, if they are still those that were looked at.
pub fn verified(blob: &Blob) -> Modify<Blob> {
    let (uid, key) = (blob.meta.uid, blob.store_key.clone());
    Modify {
        id: blob.id.clone(),
        etag: None,
        action: "VERIFY",
        allow_missing: true,
        deleted: false,
        patch: Box::new(move |row: &mut Blob, now| {
            if row.meta.uid == uid && row.store_key == key {
                row.state = READY;
                row.verify_time = Some(now);
            }
            Ok(())
        }),
        size_bytes: 512,
    }
}

/// Takes over the key of a blob as another key has wrapped it, if nobody else has meanwhile.
pub fn rewrapped(blob: &Blob, wrapped: WrappedKey) -> Modify<Blob> {
    let (uid, before) = (blob.meta.uid, blob.wrapped_key.clone());
    Modify {
        id: blob.id.clone(),
        etag: None,
        action: "REWRAP",
        allow_missing: true,
        deleted: false,
        patch: Box::new(move |row: &mut Blob, _| {
            if row.meta.uid == uid && row.wrapped_key == before {
                row.key_id.clone_from(&wrapped.key_id);
                row.wrapped_key = Some(wrapped.bytes.clone());
            }
            Ok(())
        }),
        size_bytes: 512,
    }
}

/// The state of a blob when it is deleted: bytes in the database go with it, by a trigger.
fn erased(blob: &Blob) -> i16 {
    if blob.is_inline() { ERASED } else { ERASING }
}

/// Deletes a blob that nothing refers to, and says that its bytes shall go.
pub struct Erase {
    pub delete: Modify<Blob>,
    /// Names the intent to delete the bytes.
    pub uid: Uuid,
    /// The number by which decisions cite blobs; none if it does not matter whether one does.
    pub cited_as: Option<i32>,
}

impl Erase {
    pub fn new(
        id: String,
        etag: Option<String>,
        allow_missing: bool,
        cited_as: Option<i32>,
    ) -> Self {
        let mut delete = Modify::<Blob>::delete(id, etag, allow_missing);
        delete.patch = Box::new(|row, now| {
            row.meta.delete_time = Some(now);
            row.state = erased(row);
            Ok(())
        });
        Self { delete, uid: Uuid::now_v7(), cited_as }
    }
}

impl Change for Erase {
    type Answer = Option<Blob>;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        self.delete.touches(rows);
    }

    fn size_bytes(&self) -> usize {
        512
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        self.delete.about()
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Option<Blob>>>>> {
        Box::pin(async move {
            let mut ids: Vec<String> = changes.iter().map(|a| a.change.delete.id.clone()).collect();
            // In one order, so that two transactions do not wait for each other.
            ids.sort_unstable();
            // Locked before it is looked what refers to them: from here on nothing can begin to.
            let blobs = tx.lock::<Blob>(ids).await?;
            let uids = blobs.values().map(|blob| blob.meta.uid).collect();
            let mut referred = referred(tx, uids).await?;
            let asked = changes.iter().filter_map(|a| {
                let id = a.change.delete.id.clone();
                Some((a.change.cited_as.filter(|_| blobs.contains_key(&id))?, id))
            });
            let mut cited = cited(tx, Blob::KIND, asked.collect()).await?;
            let mut refused = |id: &str| {
                let blob = blobs.get(id)?;
                let Some(by) = referred.remove(&blob.meta.uid) else { return cited.remove(id) };
                Some(Error::Refused {
                    reason: Reason::Referenced,
                    message: format!("a {by} refers to the blob \"{id}\"; delete it first"),
                    metadata: vec![("kind", by)],
                })
            };
            let refused: Vec<_> = changes.iter().map(|a| refused(&a.change.delete.id)).collect();
            let free: Vec<_> = changes
                .iter()
                .zip(&refused)
                .filter(|(_, refused)| refused.is_none())
                .map(|(a, _)| (&a.change.delete, a.caller))
                .collect();
            let mut results = modify_all(tx, &free).await?.into_iter();
            let mut condemned: (Vec<Uuid>, Vec<String>, Vec<Option<Uuid>>) = Default::default();
            let mut outcomes = Vec::with_capacity(changes.len());
            for (Applied { change, .. }, refused) in changes.iter().zip(refused) {
                if let Some(error) = refused {
                    outcomes.push(Outcome::Failed(error));
                    continue;
                }
                let result = results.next();
                outcomes.push(match result {
                    Some(Ok(Some((blob, _)))) => {
                        if !blob.is_inline() {
                            condemned.0.push(change.uid);
                            condemned.1.push(blob.store_key.clone());
                            condemned.2.push(Some(blob.meta.uid));
                        }
                        let entries = vec![Entry::of(&blob, "DELETE")];
                        Outcome::Done { answer: Some(blob), entries, shown: Vec::new() }
                    }
                    Some(Ok(None)) => {
                        Outcome::Done { answer: None, entries: Vec::new(), shown: Vec::new() }
                    }
                    Some(Err(error)) => Outcome::Failed(error),
                    None => return Err(Error::internal("a deletion without a result")),
                });
            }
            if !condemned.0.is_empty() {
                let (uids, keys, blobs) = condemned;
                let own_ms = OWN_TIME.as_millis() as i64;
                tx.run(&CONDEMN_STORED, &(uids, keys, blobs, own_ms)).await?;
            }
            Ok(outcomes)
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Option<Blob>> {
        Ok(rows_of(entries)?.pop())
    }
}

/// Deletes those of these blobs that nothing refers to any more and no hold keeps, and leaves their bytes to the reaper.
pub async fn erase_free(tx: &Tx<'_>, uids: Vec<Uuid>, author: &str) -> Result<Vec<Entry>> {
    if uids.is_empty() {
        return Ok(Vec::new());
    }
    // Locked before it is looked what refers to them, as above.
    let blobs = tx.run(&LOCK_BLOBS, &(uids.clone(),)).await?;
    let referred = referred(tx, uids).await?;
    let leaving: Vec<Leaving> = blobs.iter().map(Leaving::of).collect();
    let kept = legal_hold::kept(tx, &leaving).await?;
    let is_free = |blob: &Blob| !referred.contains_key(&blob.meta.uid);
    let free = blobs.into_iter().zip(kept).filter(|(blob, kept)| kept.is_none() && is_free(blob));
    let mut free: Vec<Blob> = free.map(|(blob, _)| blob).collect();
    if free.is_empty() {
        return Ok(Vec::new());
    }
    for blob in &mut free {
        blob.meta.delete_time = Some(tx.now);
        blob.state = erased(blob);
        advance(blob, author, tx.now);
    }
    tx.save(&free).await?;
    let stored: Vec<&Blob> = free.iter().filter(|blob| !blob.is_inline()).collect();
    if !stored.is_empty() {
        let intents = stored.iter().map(|_| Uuid::now_v7()).collect();
        let keys = stored.iter().map(|blob| blob.store_key.clone()).collect();
        let of = stored.iter().map(|blob| Some(blob.meta.uid)).collect();
        tx.run(&CONDEMN_STORED, &(intents, keys, of, 0)).await?;
    }
    Ok(free.iter().map(|blob| Entry::of(blob, "DELETE")).collect())
}

/// Notes that the bytes of an intent are deleted, and the blob that had them erased.
pub struct Gone {
    pub uid: Uuid,
}

impl Change for Gone {
    type Answer = ();

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.push(intent(self.uid));
    }

    fn size_bytes(&self) -> usize {
        512
    }

    /// Which blob it is, only the table knows.
    fn is_alone(&self) -> bool {
        true
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<()>>>> {
        Box::pin(async move {
            let mut outcomes = Vec::with_capacity(changes.len());
            for Applied { change, caller } in changes {
                let mut erased = tx.run(&LOCK_ERASING, &(vec![change.uid],)).await?;
                let mut entries = Vec::new();
                for blob in &mut erased {
                    blob.state = ERASED;
                    advance(blob, caller.acting(), tx.now);
                    entries.push(Entry::of(blob, "ERASE"));
                }
                tx.save(&erased).await?;
                tx.run(&SETTLE, &(vec![change.uid],)).await?;
                outcomes.push(Outcome::Done { answer: (), entries, shown: Vec::new() });
            }
            Ok(outcomes)
        })
    }

    fn rebuild(&self, _: &[LogRow]) -> Result<()> {
        Ok(())
    }
}
