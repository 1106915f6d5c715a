//! Reads all stored bytes again and again, slowly, so that damage is found before anybody needs them. Every server does it;
//! each blob is one server's at a time.

use super::Blob;
use super::body::Pace;
use super::check::{Fault, Lens};
use crate::store::Store;
use crate::store::caller::Caller;
use crate::store::postgres::Lane;
use crate::{Error, Result, queries, row};
use std::num::NonZeroU64;
use std::time::Duration;
use tokio::sync::watch;

row! {
    /// A blob that is to be read.
    pub struct Unread {
        pub tenant_id: String,
        pub id: String,
    }
}

queries! { "blob_scrub" {
    /// Takes what nobody has read for long: (most, milliseconds since, milliseconds until others may).
    CLAIM(i32, i64, i64) -> Unread = "SELECT {*} FROM wall.claim_blob_scrubs($1, $2, $3)";
} }

/// How many are taken at once: few, because what a server takes waits for it.
const TAKEN: i32 = 10;
/// How long they are its own. What it does not come to in time, another may read, too, which does no harm.
const LEASE: Duration = Duration::from_secs(3600);
/// Between two looks for more to read.
const PAUSE: Duration = Duration::from_secs(10);

/// How blobs are read again.
#[derive(Clone, Debug)]
pub struct ScrubSettings {
    /// Each is read when it was not for so long.
    pub period: Duration,
    pub bytes_per_second: NonZeroU64,
    /// Makes the caller that the work is done as, in a tenant.
    pub caller: fn(&str) -> Caller,
}

/// Runs until it is told to stop. `note` is told of each blob and what was found of it.
pub async fn run(
    store: Store,
    lens: Lens,
    settings: ScrubSettings,
    note: impl Fn(u64, &Option<Fault>) + Send,
    mut stopped: watch::Receiver<bool>,
) {
    let mut is_failing = false;
    let mut pace = Pace::new(Some(settings.bytes_per_second));
    loop {
        let turned = tokio::select! {
            turned = turn(&store, &lens, &settings, &mut pace, &note) => turned,
            _ = stopped.wait_for(|stop| *stop) => return,
        };
        let is_more = match turned {
            Ok(is_more) => {
                is_failing = false;
                is_more
            }
            Err(error) => {
                // Said once, because it is tried again and again.
                if !is_failing {
                    let cause = std::error::Error::source(&error);
                    tracing::warn!(%error, ?cause, "stored bytes are not read again for now");
                }
                is_failing = true;
                false
            }
        };
        if is_more {
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

/// Reads some blobs. Whether there were any.
async fn turn(
    store: &Store,
    lens: &Lens,
    settings: &ScrubSettings,
    pace: &mut Pace,
    note: &(impl Fn(u64, &Option<Fault>) + Send),
) -> Result<bool> {
    let ms = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    let params = (TAKEN, ms(settings.period), ms(LEASE));
    let taken = store.lane_rows(Lane::Upkeep, &CLAIM, params).await?;
    let is_more = !taken.is_empty();
    for Unread { tenant_id, id } in taken {
        let caller = (settings.caller)(&tenant_id);
        let blob: Blob = match store.get(&caller, &id).await {
            Err(Error::NotFound { .. }) => continue,
            blob => blob?,
        };
        let before = pace.bytes();
        let fault = store.check_blob(lens, &caller, &blob, Some(pace)).await?;
        if let Some(fault) = &fault {
            tracing::error!(
                tenant = tenant_id,
                digest = id,
                ?fault,
                "a blob's bytes are not right"
            );
        }
        note(pace.bytes() - before, &fault);
    }
    Ok(is_more)
}
