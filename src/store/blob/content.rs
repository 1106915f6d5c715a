//! The bytes of small blobs, which lie in the database: one transaction writes them with their row, and no object store
//! is asked for them.

use super::body::Source;
use super::change::{HOLD_INTENTS, SETTLE, intent, too_late};
use super::{Blob, READY};
use crate::store::Store;
use crate::store::blob_store::{BlobStore, Stored, damaged};
use crate::store::caller::Caller;
use crate::store::change::{advance, rows_of};
use crate::store::envelope::KeySource;
use crate::store::log::{Entry, LogRow};
use crate::store::noun::Noun as _;
use crate::store::write::{Applied, Change, Outcome, RowKey, Tx};
use crate::{Error, Result, queries, row};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use uuid::Uuid;

/// `Blob.storage_backend` of what lies here.
pub const DATABASE: &str = "database";

row! {
    /// The bytes of a blob, as they are stored.
    pub struct Content {
        pub blob_uid: Uuid,
        pub bytes: Vec<u8>,
    }
}

queries! { "blob_content" {
    /// Of new blobs: (blobs, bytes).
    ADD(Vec<Uuid>, Vec<Vec<u8>>) -> () =
        "INSERT INTO blob_content (blob_uid, bytes) \
         SELECT u.blob_uid, u.bytes FROM unnest($1::uuid[], $2::bytea[]) AS u (blob_uid, bytes)";
    /// Of blobs that may have others: (blobs, bytes).
    SET(Vec<Uuid>, Vec<Vec<u8>>) -> () =
        "INSERT INTO blob_content (blob_uid, bytes) \
         SELECT u.blob_uid, u.bytes FROM unnest($1::uuid[], $2::bytea[]) AS u (blob_uid, bytes) \
         ON CONFLICT (tenant_id, blob_uid) DO UPDATE SET bytes = EXCLUDED.bytes";
    OF(Vec<Uuid>) -> Content = "SELECT {*} FROM blob_content WHERE blob_uid = ANY($1)";
} }

impl Blob {
    /// Whether the bytes lie in the database.
    pub fn is_inline(&self) -> bool {
        self.storage_backend == DATABASE
    }
}

/// Writes the bytes of blobs that are locked.
pub(super) async fn set(tx: &Tx<'_>, all: Vec<(Uuid, Vec<u8>)>) -> Result<()> {
    if !all.is_empty() {
        let (blobs, bytes) = all.into_iter().unzip();
        tx.run(&SET, &(blobs, bytes)).await?;
    }
    Ok(())
}

impl Store {
    /// The stored bytes of those of these blobs that lie in the database.
    pub async fn contents<'a>(
        &self,
        caller: &Caller,
        blobs: impl IntoIterator<Item = &'a Blob>,
    ) -> Result<HashMap<Uuid, Bytes>> {
        let inline = blobs.into_iter().filter(|blob| blob.is_inline());
        let uids: Vec<Uuid> = inline.map(|blob| blob.meta.uid).collect();
        if uids.is_empty() {
            return Ok(HashMap::new());
        }
        let params = Arc::new((uids,));
        let found: Vec<Content> = self
            .snapshot(caller, OF.name, move |at| {
                let params = Arc::clone(&params);
                Box::pin(async move {
                    let rows = at.all(&OF, &*params).await?;
                    at.end(rows).await
                })
            })
            .await?;
        Ok(found.into_iter().map(|row| (row.blob_uid, row.bytes.into())).collect())
    }

    /// The way to a blob's bytes, wherever they lie. Fails as [`Source::of`] does, and if the database has none.
    pub async fn source(
        &self,
        blobs: &BlobStore,
        keys: Option<&dyn KeySource>,
        caller: &Caller,
        blob: &Blob,
    ) -> Result<Source> {
        if !blob.is_inline() {
            return Source::of(blobs, keys, &caller.tenant, blob).await;
        }
        if let Some(bytes) = self.contents(caller, [blob]).await?.remove(&blob.meta.uid) {
            return Source::inline(bytes, keys, &caller.tenant, blob).await;
        }
        // They may have gone to the store since the row was read.
        let now: Blob = self.get(caller, &blob.id).await?;
        if now.is_inline() {
            return Err(damaged("the database has none of them"));
        }
        Source::of(blobs, keys, &caller.tenant, &now).await
    }
}

/// Says that a blob's bytes, which lay in the database, are in the store now. NOT_FOUND if they lay there no more.
pub struct MoveOut {
    /// As it was when its bytes were read.
    pub blob: Blob,
    /// Names the intent of the bytes in the store.
    pub uid: Uuid,
    pub store_key: String,
    pub storage_backend: String,
    pub stored: Stored,
}

impl Change for MoveOut {
    type Answer = Blob;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.push(RowKey::new(&[Blob::KIND, &self.blob.id]));
        rows.push(intent(self.uid));
    }

    fn size_bytes(&self) -> usize {
        2 * self.blob.size_bytes()
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        vec![(Blob::KIND, &self.blob.id)]
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Blob>>>> {
        Box::pin(async move {
            let uids = changes.iter().map(|a| a.change.uid).collect();
            let held = tx.run(&HOLD_INTENTS, &(uids,)).await?;
            let held: HashSet<Uuid> = held.into_iter().map(|found| found.uid).collect();
            let mut ids: Vec<String> = changes.iter().map(|a| a.change.blob.id.clone()).collect();
            // In one order, so that two transactions do not wait for each other.
            ids.sort_unstable();
            let mut blobs = tx.lock::<Blob>(ids).await?;
            let (mut saved, mut settled) = (Vec::new(), Vec::new());
            let mut outcomes = Vec::with_capacity(changes.len());
            for Applied { change, caller } in changes {
                let before = &change.blob;
                let blob = blobs.remove(&before.id);
                let same = |row: &Blob| {
                    row.meta.uid == before.meta.uid
                        && row.store_key == before.store_key
                        && row.state == READY
                };
                let Some(mut blob) = blob.filter(same) else {
                    outcomes.push(Outcome::Failed(Error::not_found(Blob::KIND, &before.id)));
                    continue;
                };
                if !held.contains(&change.uid) {
                    outcomes.push(Outcome::Failed(too_late()));
                    continue;
                }
                let Stored { etag, version_id } = change.stored.clone();
                blob.storage_backend.clone_from(&change.storage_backend);
                blob.store_key.clone_from(&change.store_key);
                (blob.store_etag, blob.store_version_id) = (etag, version_id);
                advance(&mut blob, caller.acting(), tx.now);
                settled.push(change.uid);
                let entries = vec![Entry::of(&blob, "MOVE")];
                saved.push(blob.clone());
                outcomes.push(Outcome::Done { answer: blob, entries, shown: Vec::new() });
            }
            // Those in the database go by a trigger.
            tx.save(&saved).await?;
            if !settled.is_empty() {
                tx.run(&SETTLE, &(settled,)).await?;
            }
            Ok(outcomes)
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Blob> {
        let blob = rows_of(entries)?.pop();
        blob.ok_or_else(|| Error::internal("a replayed answer lacks a row"))
    }
}
