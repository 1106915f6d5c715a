//! Removes from the store what crashes and deletions left there. Every server does it; each intent is one server's at a
//! time, and doing it twice does no harm.

use super::change::{Condemn, Gone};
use super::session::REMEMBERED;
use crate::store::Store;
use crate::store::blob_store::BlobStore;
use crate::store::caller::Caller;
use crate::store::postgres::Lane;
use crate::store::write::WriteOptions;
use crate::{Error, Result, queries, row};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

row! {
    /// Bytes that are to be deleted.
    pub struct Due {
        pub tenant_id: String,
        pub uid: Uuid,
        pub store_key: String,
        pub upload_id: String,
        /// Whether a blob had them.
        pub is_erasure: bool,
    }
}

row! {
    /// How many intents there are.
    pub struct Pending {
        pub uploads: i64,
        pub removals: i64,
    }
}

row! {
    /// How many uploads were due.
    pub struct Expired {
        pub count: i64,
    }
}

queries! { "blob_reap" {
    /// Takes what is due, for so many milliseconds: (most, milliseconds).
    CLAIM(i32, i64) -> Due = "SELECT {*} FROM wall.claim_blob_intents($1, $2)";
    /// Lets uploads expire that are due: (most, milliseconds something may arrive late, milliseconds they are remembered).
    EXPIRE(i32, i64, i64) -> Expired = "SELECT {*} FROM wall.expire_blob_uploads($1, $2, $3) AS u (count)";
    COUNT() -> Pending = "SELECT {*} FROM wall.count_blob_intents()";
} }

/// How many are taken at once, and for how long: ample time for that many.
const TAKEN_MAX: i32 = 100;
const LEASE: Duration = Duration::from_secs(600);
/// How long removing the bytes of one key may take.
const REMOVE_TIME: Duration = Duration::from_secs(30);

/// When a request that was given up cannot arrive any more.
pub(super) const LATE: Duration = Duration::from_secs(600);

/// What an attempt that came to nothing has left.
pub struct Left {
    pub uid: Uuid,
    pub store_key: String,
    /// The store's name for an upload in parts; may be empty.
    pub upload_id: String,
    /// Whether a request may still be on its way, because nobody knows what became of it.
    pub may_arrive: bool,
}

/// How bytes are reaped.
#[derive(Clone, Debug)]
pub struct ReapSettings {
    /// Pause between two looks; none: never.
    pub every: Option<Duration>,
    /// Makes the caller that the work is done as, in a tenant.
    pub caller: fn(&str) -> Caller,
}

/// Runs until it is told to stop. `note` is told what is pending.
pub async fn run(
    store: Store,
    blobs: BlobStore,
    settings: ReapSettings,
    note: impl Fn(Pending) + Send,
    mut stopped: watch::Receiver<bool>,
) {
    let Some(every) = settings.every else { return };
    // Said once, because it is tried again and again.
    let mut is_failing = false;
    loop {
        let turned = tokio::select! {
            turned = turn(&store, &blobs, settings.caller) => turned,
            _ = stopped.wait_for(|stop| *stop) => return,
        };
        match turned {
            Ok(pending) => {
                note(pending);
                is_failing = false;
            }
            Err(error) if !is_failing => {
                let cause = std::error::Error::source(&error);
                tracing::warn!(%error, ?cause, "what is left in the store of blobs is not removed for now");
                is_failing = true;
            }
            Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

async fn turn(store: &Store, blobs: &BlobStore, caller: fn(&str) -> Caller) -> Result<Pending> {
    let (late_ms, remembered_ms) = (LATE.as_millis() as i64, REMEMBERED.as_millis() as i64);
    loop {
        // First, because their parts are due then.
        let limits = (TAKEN_MAX, late_ms, remembered_ms);
        let expired = store.lane_rows(Lane::Upkeep, &EXPIRE, limits).await?.pop();
        if expired.is_none_or(|expired| expired.count < i64::from(TAKEN_MAX)) {
            break;
        }
    }
    loop {
        let lease_ms = LEASE.as_millis() as i64;
        let taken = store.lane_rows(Lane::Upkeep, &CLAIM, (TAKEN_MAX, lease_ms)).await?;
        let is_last = (taken.len() as i32) < TAKEN_MAX;
        let mut removed = 0;
        for Due { tenant_id, uid, store_key, upload_id, is_erasure } in taken {
            let deadline = Instant::now() + REMOVE_TIME;
            // The others are taken for long enough that they come up again by themselves.
            blobs.delete(&store_key, &upload_id, deadline).await?;
            let gone = Gone { uid };
            store.write(caller(&tenant_id), WriteOptions::default(), gone).await?;
            tracing::info!(
                tenant = tenant_id,
                store_key,
                is_erasure,
                "removed bytes from the store"
            );
            removed += 1;
        }
        if is_last || removed == 0 {
            break;
        }
    }
    let pending = store.lane_rows(Lane::Admin, &COUNT, ()).await?.pop();
    Ok(pending.unwrap_or(Pending { uploads: 0, removals: 0 }))
}

impl Store {
    /// Removes what an attempt that came to nothing has brought to the store. What fails here the reaper does later; and
    /// where a request `may_arrive` that nobody waits for any more, it removes once more what that brings.
    pub async fn abandon(&self, blobs: &BlobStore, caller: Caller, left: Left) {
        let Left { uid, store_key, upload_id, may_arrive } = left;
        let wait = if may_arrive { LATE } else { Duration::ZERO };
        let removed = async {
            let condemn = Condemn { uid, wait };
            self.write(caller.clone(), WriteOptions::default(), condemn).await?;
            if may_arrive {
                return blobs.delete(&store_key, &upload_id, caller.deadline).await;
            }
            self.remove_bytes(blobs, caller, uid, &store_key, &upload_id).await
        };
        match removed.await {
            Ok(()) | Err(Error::NotFound { .. }) => {}
            Err(error) => {
                tracing::warn!(%error, store_key, "bytes that nobody wants stay in the store for now");
            }
        }
    }

    /// Deletes the bytes of an intent, and then the intent.
    pub async fn remove_bytes(
        &self,
        blobs: &BlobStore,
        caller: Caller,
        uid: Uuid,
        key: &str,
        upload_id: &str,
    ) -> Result<()> {
        blobs.delete(key, upload_id, caller.deadline).await?;
        self.write(caller, WriteOptions::default(), Gone { uid }).await?;
        Ok(())
    }
}
