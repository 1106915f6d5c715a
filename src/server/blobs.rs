//! The store of blobs as the server runs it: opened from the configuration, looked at, and kept clean.

use super::program;
use crate::config::{BlobUrl, Config};
use crate::pb::blob_service_server::SERVICE_NAME;
use crate::rpc::blob::{BlobLimits, Blobs};
use crate::rpc::health::HealthState;
use crate::store::Store;
use crate::store::backend::RetrySettings;
use crate::store::blob::check::Fault;
use crate::store::blob::reap::{self, ReapSettings};
use crate::store::blob::scrub::{self, ScrubSettings};
use crate::store::blob_store::BlobStore;
use crate::store::blob_store::budget::Budget;
use crate::store::blob_store::open::{Azure, BlobStoreSettings, Gcs, Hidden, Location, S3};
use crate::store::envelope::{KeyRing, KeySource};
use crate::telemetry::Metrics;
use crate::{Error, Result};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

/// How long the first look at the store may take before the server starts without it.
const FIRST_LOOK_MAX: Duration = Duration::from_secs(10);

/// The store that is configured, if one is.
pub fn open(config: &Config, retry: RetrySettings, metrics: &Metrics) -> Result<Option<BlobStore>> {
    let hidden = |secret: &crate::config::Secret| Hidden(secret.expose().to_owned());
    let location = match config.blob_store_url.clone() {
        None => return Ok(None),
        Some(BlobUrl::Memory) => Location::Memory,
        Some(BlobUrl::File(folder)) => Location::Local(folder),
        Some(BlobUrl::S3 { bucket, prefix }) => Location::S3(S3 {
            bucket,
            prefix,
            endpoint: config.s3_endpoint.clone(),
            public_endpoint: config.s3_public_endpoint.clone(),
            region: config.s3_region.clone(),
            keys: config
                .s3_access_key_id
                .as_ref()
                .map(hidden)
                .zip(config.s3_secret_access_key.as_ref().map(hidden)),
            is_path_style: config.s3_path_style,
        }),
        Some(BlobUrl::Gcs { bucket, prefix }) => Location::Gcs(Gcs {
            bucket,
            prefix,
            endpoint: config.gcs_endpoint.clone(),
            credentials: config.gcs_credentials.clone(),
        }),
        Some(BlobUrl::Azure { container, prefix }) => Location::Azure(Azure {
            container,
            prefix,
            endpoint: config.azure_endpoint.clone(),
            account: config.azure_account.clone(),
            access_key: config.azure_access_key.as_ref().map(hidden),
        }),
    };
    let timeout = Duration::from_millis(config.blob_request_timeout_ms);
    let settings = BlobStoreSettings { location, timeout, retry };
    BlobStore::open(settings, metrics).map(Some)
}

/// Who keeps the keys of blobs, if they are to be encrypted.
pub fn blob_keys(config: &Config) -> Result<Option<Arc<dyn KeySource>>> {
    let ring = match (&config.blob_key_file, &config.blob_key) {
        (Some(path), _) => {
            Some(KeyRing::read(path).map_err(|why| Error::invalid("blob_key_file", why))?)
        }
        (None, ring) => ring.clone(),
    };
    Ok(ring.map(|ring| Arc::new(ring) as Arc<dyn KeySource>))
}

/// What the service of blobs works with.
pub fn parts(
    config: &Config,
    store: BlobStore,
    keys: Option<Arc<dyn KeySource>>,
    metrics: &Metrics,
) -> Blobs {
    let ms = Duration::from_millis;
    let idle = ms(config.blob_idle_timeout_ms);
    let in_flight = metrics.blob_in_flight_bytes.clone();
    Blobs {
        store,
        keys,
        budget: Budget::new(config.blob_in_flight_bytes, idle, in_flight),
        limits: BlobLimits {
            size_max: config.blob_max_bytes,
            chunk_max: config.blob_chunk_max_bytes,
            part: config.blob_part_bytes,
            inline_max: config.blob_inline_max_bytes,
            parts_at_once: config.blob_put_concurrency,
            idle,
            keep: ms(config.blob_upload_keep_ms),
            uploads_max: config.blob_uploads_max,
            signed_part_max: config.blob_signed_part_max_bytes,
        },
        corrupt: metrics.blob_corrupt.clone(),
    }
}

/// Looks at the store for the first time. A server whose store does not answer starts all the same: records need none.
pub async fn first_look(store: Option<&BlobStore>, health: &HealthState) -> bool {
    let Some(store) = store else {
        health.set_service(SERVICE_NAME, Some("blob_store_url is not set".into()));
        return false;
    };
    let looked = store.probe(&Uuid::new_v4().to_string(), Instant::now() + FIRST_LOOK_MAX).await;
    match looked {
        Ok(true) => true,
        Ok(false) => {
            tracing::warn!(
                "the store of blobs does not refuse to overwrite; that no two uploads meet is left to the database"
            );
            true
        }
        Err(error) => {
            down(health, &error);
            false
        }
    }
}

fn down(health: &HealthState, error: &Error) {
    let cause = std::error::Error::source(error);
    if health.set_service(SERVICE_NAME, Some(Arc::from(error.to_string()))) {
        tracing::warn!(%error, ?cause, "the store of blobs does not answer");
    }
}

/// What goes on beside the calls.
pub fn tasks(
    config: &Config,
    store: &Store,
    blobs: &Blobs,
    metrics: &Metrics,
    health: &HealthState,
    is_known: bool,
    stopped: &watch::Receiver<bool>,
) -> Vec<JoinHandle<()>> {
    let ms = Duration::from_millis;
    let every = ms(config.blob_probe_interval_ms);
    let look = look(blobs.store.clone(), health.clone(), every, is_known, stopped.clone());
    let settings = ReapSettings {
        every: (config.blob_reap_interval_ms > 0).then_some(ms(config.blob_reap_interval_ms)),
        caller: |tenant| program(tenant, "server", "casebook/reap"),
    };
    let (uploads, removals) = (metrics.blob_pending.clone(), metrics.blob_orphans.clone());
    let note = move |pending: reap::Pending| {
        uploads.set(pending.uploads);
        removals.set(pending.removals);
    };
    let reap = reap::run(store.clone(), blobs.store.clone(), settings, note, stopped.clone());
    let mut tasks = vec![tokio::spawn(look), tokio::spawn(reap)];
    if config.blob_scrub_period_ms > 0
        && let Some(bytes_per_second) = NonZeroU64::new(config.blob_scrub_per_second_bytes)
    {
        let settings = ScrubSettings {
            period: ms(config.blob_scrub_period_ms),
            bytes_per_second,
            caller: |tenant| program(tenant, "server", "casebook/scrub"),
        };
        let (read, corrupt) = (metrics.blob_scrubbed_bytes.clone(), blobs.corrupt.clone());
        let note = move |bytes: u64, fault: &Option<Fault>| {
            read.inc_by(bytes);
            if fault.as_ref().is_some_and(|fault| !matches!(fault, Fault::Unreadable(_))) {
                corrupt.inc();
            }
        };
        let scrub = scrub::run(store.clone(), blobs.lens(), settings, note, stopped.clone());
        tasks.push(tokio::spawn(scrub));
    }
    tasks
}

/// Looks at the store again and again, so that no health check has to ask it.
async fn look(
    store: BlobStore,
    health: HealthState,
    every: Duration,
    mut is_known: bool,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
        let deadline = Instant::now() + FIRST_LOOK_MAX;
        if !is_known {
            is_known = first_look(Some(&store), &health).await;
            if !is_known {
                // A bucket that is not there answers all the same that something is not in it.
                continue;
            }
        }
        match store.check(deadline).await {
            Ok(()) => {
                if health.set_service(SERVICE_NAME, None) {
                    tracing::info!("the store of blobs answers again");
                }
            }
            Err(error) => down(&health, &error),
        }
    }
}
