//! Verifies the vectors of each tenant now and then, without anybody asking (F99, F127). Every server does it; each tenant is
//! one server's at a time.

use super::Projection;
use super::verify::{Extent, Verified};
use crate::store::Store;
use crate::store::caller::Caller;
use crate::store::postgres::Lane;
use crate::{Result, queries, row};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

row! {
    /// A tenant that is to be looked at.
    pub struct Due {
        pub tenant_id: String,
    }
}

row! {
    /// What was found when a server last looked.
    pub struct SyncCheck {
        pub check_time: Option<SystemTime>,
        pub checked: i64,
        pub missing: i64,
        pub extra: i64,
        pub different: i64,
        pub in_sync: bool,
    }
}

queries! { "sync_check" {
    /// Takes tenants that nobody has looked at for long: (projection, most, milliseconds since, milliseconds until others
    /// may).
    CLAIM(String, i32, i64, i64) -> Due = "SELECT {*} FROM wall.claim_sync_checks($1, $2, $3, $4)";
    /// Notes what was found: (tenant, projection, checked, missing, extra, different, in sync).
    NOTE(String, String, i64, i64, i64, i64, bool) -> () =
        "SELECT FROM wall.note_sync_check($1, $2, $3, $4, $5, $6, $7)";
    /// What was found last by a projection's name.
    LAST(String) -> SyncCheck =
        "SELECT {*} FROM sync_check WHERE projection = $1 AND check_time IS NOT NULL";
} }

/// How many tenants are taken at once.
const TAKEN: i32 = 10;
/// Embeddings drawn in each; another sample each time, and the counts speak for the rest.
const SAMPLE: i64 = 1000;
/// How long a server has for those it has taken. Ample, because what it does not come to waits for it.
const LEASE: Duration = Duration::from_secs(3600);
/// Between two looks for tenants.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How often vectors are verified, and as whom.
#[derive(Clone, Copy, Debug)]
pub struct ScheduleSettings {
    /// Each tenant is looked at when it was not for so long.
    pub period: Duration,
    /// Makes the caller that the work is done as, in a tenant.
    pub caller: fn(&str) -> Caller,
}

/// Runs until it is told to stop. `note` is told of what was found in each tenant.
pub async fn run(
    store: Store,
    projection: Arc<dyn Projection>,
    settings: ScheduleSettings,
    note: impl Fn(&Verified) + Send,
    mut stopped: watch::Receiver<bool>,
) {
    let pause = settings.period.min(PAUSE_MAX);
    let mut is_failing = false;
    loop {
        let turned = tokio::select! {
            turned = turn(&store, &projection, settings, &note) => turned,
            _ = stopped.wait_for(|stop| *stop) => return,
        };
        match turned {
            Ok(()) => is_failing = false,
            // Said once, because it is tried again and again.
            Err(error) if !is_failing => {
                let cause = std::error::Error::source(&error);
                tracing::warn!(%error, ?cause, "vectors are not held against the record for now");
                is_failing = true;
            }
            Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

/// Looks at all tenants that are due. One whose look fails is left until its lease is over, and keeps nobody else waiting.
async fn turn(
    store: &Store,
    projection: &Arc<dyn Projection>,
    settings: ScheduleSettings,
    note: &(impl Fn(&Verified) + Send),
) -> Result<()> {
    let ms = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    let name = projection.name().to_owned();
    let mut failed = Ok(());
    loop {
        let params = (name.clone(), TAKEN, ms(settings.period), ms(LEASE));
        let due = store.lane_rows(Lane::Upkeep, &CLAIM, params).await?;
        if due.is_empty() {
            return failed;
        }
        for Due { tenant_id } in due {
            let caller = (settings.caller)(&tenant_id);
            let extent = Extent::Sample { size: SAMPLE, seed: super::any_seed() };
            match store.verify(&caller, Arc::clone(projection), None, extent).await {
                Ok(found) => {
                    store.note_sync_check(tenant_id, &name, &found).await?;
                    note(&found);
                }
                Err(error) => failed = Err(error),
            }
        }
    }
}

impl Store {
    async fn note_sync_check(
        &self,
        tenant_id: String,
        projection: &str,
        found: &Verified,
    ) -> Result<()> {
        let in_sync = found.is_in_sync();
        let Verified { recorded, held, checked, missing, extra, different, told, seq } = found;
        if !in_sync {
            let first = told.first().map_or("", |first| first.embedding_id.as_str());
            tracing::error!(
                tenant = tenant_id,
                projection,
                recorded,
                held,
                checked,
                missing,
                extra,
                different,
                seq,
                embedding_id = first,
                "vectors are not as recorded; VerifySync with full tells which, and ResyncFromPostgres what can be done"
            );
        }
        let projection = projection.to_owned();
        let params = (tenant_id, projection, *checked, *missing, *extra, *different, in_sync);
        self.lane_rows(Lane::Upkeep, &NOTE, params).await?;
        Ok(())
    }
}
