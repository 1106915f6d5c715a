//! Looks at stored bytes: whether those of a blob are there and right, and whether the store has any that are nobody's.

use super::body::Pace;
use super::change::{Discard, corrupt, verified};
use super::{Blob, CORRUPT, tenant_prefix};
use crate::store::Store;
use crate::store::blob_store::budget::Budget;
use crate::store::blob_store::{BlobStore, Listed};
use crate::store::caller::Caller;
use crate::store::envelope::KeySource;
use crate::store::write::WriteOptions;
use crate::{Error, Result, queries, row};
use futures_util::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use uuid::Uuid;

row! {
    /// A key of the store that is somebody's.
    pub struct Known {
        pub store_key: String,
    }
}

queries! { "blob_check" {
    /// Of keys those that a blob has, or that bytes are on their way to, or from.
    KNOWN(Vec<String>) -> Known =
        "SELECT k.store_key FROM unnest($1::text[]) AS k (store_key) \
         WHERE EXISTS (SELECT FROM blob AS b WHERE b.store_key = k.store_key AND b.state <> 5) \
         OR EXISTS (SELECT FROM blob_intent AS i WHERE i.store_key = k.store_key) \
         OR EXISTS (SELECT FROM blob_upload_part AS p WHERE p.store_key = k.store_key)";
} }

/// How long one look at a blob may take that is not at its bytes.
const LOOK_TIME: Duration = Duration::from_secs(30);
/// Keys that are looked up at once.
const KEYS: usize = 500;
/// Looks at the store that are under way at once.
pub const LOOKS: usize = 16;

/// What stored bytes are looked at with.
#[derive(Clone)]
pub struct Lens {
    pub store: BlobStore,
    pub keys: Option<Arc<dyn KeySource>>,
    /// Bytes in memory, of all streams together.
    pub budget: Budget,
}

/// What is wrong with a blob.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The store has nothing under its key.
    Missing,
    /// It has more bytes or fewer.
    Size { expected: u64, found: u64 },
    /// It has other bytes; or it was found so before, and only reading them can tell otherwise.
    Damaged,
    /// This server cannot tell: it lacks the key, or looks into another store. Nothing is marked for that.
    Unreadable(Error),
}

fn piecewise(caller: &Caller) -> Caller {
    Caller { deadline: Instant::now() + LOOK_TIME, ..caller.clone() }
}

impl Store {
    /// Looks whether the bytes of a blob are there, and with a pace reads them whole. What it finds is noted in the blob's
    /// row: it is CORRUPT, or right at this time. A blob that goes away meanwhile has no fault.
    pub async fn check_blob(
        &self,
        lens: &Lens,
        caller: &Caller,
        blob: &Blob,
        pace: Option<&mut Pace>,
    ) -> Result<Option<Fault>> {
        let expected = u64::try_from(blob.stored_size_bytes).map_err(Error::internal)?;
        let found = if blob.is_inline() {
            let found = self.contents(&piecewise(caller), [blob]).await?;
            found.get(&blob.meta.uid).map(|bytes| bytes.len() as u64)
        } else {
            if let Err(error) = lens.store.is_store_of(blob) {
                return Ok(Some(Fault::Unreadable(error)));
            }
            lens.store.size_bytes(&blob.store_key, Instant::now() + LOOK_TIME).await?
        };
        let is_read = pace.is_some();
        let fault = match (found, pace) {
            (None, _) => Some(Fault::Missing),
            (Some(found), _) if found != expected => Some(Fault::Size { expected, found }),
            (_, None) => (blob.state == CORRUPT).then_some(Fault::Damaged),
            (_, Some(pace)) => self.read_whole(lens, caller, blob, pace).await?,
        };
        let change = match &fault {
            Some(Fault::Unreadable(_)) => return Ok(fault),
            Some(_) => corrupt(blob),
            None if is_read => verified(blob),
            None => return Ok(None),
        };
        let (row, _) = self.write(piecewise(caller), WriteOptions::default(), change).await?;
        let is_there = row.is_some_and(|row| row.store_key == blob.store_key);
        Ok(fault.filter(|_| is_there))
    }

    async fn read_whole(
        &self,
        lens: &Lens,
        caller: &Caller,
        blob: &Blob,
        pace: &mut Pace,
    ) -> Result<Option<Fault>> {
        let (keys, caller) = (lens.keys.as_deref(), piecewise(caller));
        let digest = async {
            let source = self.source(&lens.store, keys, &caller, blob).await?;
            source.digest(&lens.budget, pace).await
        };
        match digest.await {
            Ok(digest) if digest == blob.id => Ok(None),
            // A blob that is deleted meanwhile is passed over by who notes it.
            Ok(_) | Err(Error::DataLoss { .. } | Error::NotFound { .. }) => {
                Ok(Some(Fault::Damaged))
            }
            Err(error @ Error::Refused { .. }) => Ok(Some(Fault::Unreadable(error))),
            Err(error) => Err(error),
        }
    }
}

/// Bytes that the store has of a tenant and that are no blob's.
pub struct Orphan {
    pub key: String,
    pub size_bytes: u64,
}

impl Store {
    /// All bytes of a tenant that are no blob's and on no way to one, and that were there before `until`. How many keys
    /// were looked at so far comes with each piece.
    pub fn orphans<'a>(
        &'a self,
        lens: &'a Lens,
        caller: &'a Caller,
        until: SystemTime,
    ) -> BoxStream<'a, Result<(usize, Vec<Orphan>)>> {
        let listed = lens.store.list(&tenant_prefix(&caller.tenant)).chunks(KEYS);
        let found = listed.then(move |some| async move {
            let some: Vec<Listed> = some.into_iter().collect::<Result<_>>()?;
            let looked_at = some.len();
            let keys = some.iter().map(|listed| listed.key.clone()).collect();
            let known = self.known_keys(caller, keys).await?;
            let nobodys = some
                .into_iter()
                .filter(|listed| !known.contains(&listed.key) && listed.modify_time < until);
            let looks = nobodys.map(|Listed { key, size_bytes, modify_time: _ }| async move {
                // A blob that had them may have been deleted since they were listed.
                let found = lens.store.size_bytes(&key, Instant::now() + LOOK_TIME).await?;
                Ok::<_, Error>(found.map(|_| Orphan { key, size_bytes }))
            });
            let found: Vec<_> = stream::iter(looks).buffered(LOOKS).try_collect().await?;
            Ok((looked_at, found.into_iter().flatten().collect()))
        });
        found.boxed()
    }

    async fn known_keys(&self, caller: &Caller, keys: Vec<String>) -> Result<HashSet<String>> {
        let params = Arc::new((keys,));
        let known: Vec<Known> = self
            .snapshot(&piecewise(caller), KNOWN.name, move |at| {
                let params = Arc::clone(&params);
                Box::pin(async move {
                    let rows = at.all(&KNOWN, &*params).await?;
                    at.end(rows).await
                })
            })
            .await?;
        Ok(known.into_iter().map(|row| row.store_key).collect())
    }

    /// Has bytes removed that are nobody's; the reaper does it.
    pub async fn discard(&self, caller: &Caller, key: &str) -> Result<()> {
        let discard = Discard { uid: Uuid::now_v7(), store_key: key.to_owned() };
        self.write(piecewise(caller), WriteOptions::default(), discard).await?;
        Ok(())
    }
}
