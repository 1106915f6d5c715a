//! What holds of both.

use super::super::*;
use crate::blob::faults::bucket_is_consistent;
use crate::blob::session::*;
use crate::s3::proxy::{Fault, Proxy, When};
use casebook::store::backend::RetrySettings;
use casebook::store::blob_store::open::{BlobStoreSettings, Location};
use casebook::store::blob_store::{self, BlobStore};
use object_store::ObjectStore;
use pb::UploadTransport::Presigned;
use std::time::Duration;
use tokio::time::Instant;

pub const PREFIX: &str = "some/prefix";
pub const FAST: (&str, &str) = ("blob_reap_interval_ms", "50");

/// The world of a test over a store that settings name.
pub async fn world(reached: crate::world::Settings<'_>, more: crate::world::Settings<'_>) -> World {
    let all: Vec<_> = reached.iter().chain(more).copied().collect();
    World::with(&all).await
}

pub async fn uploads_go_on_here(world: &World, store: &dyn ObjectStore, is_encrypted: bool) {
    use futures_util::TryStreamExt as _;
    let me = world.anonymous();
    uploads_go_on(&me, is_encrypted).await;
    known_bytes_need_not_be_sent(&me).await;
    let database = world.superuser().await;
    is_settled(&database).await;
    let blobs = "SELECT count(*) FROM casebook.blob WHERE state = 2";
    let blobs: i64 = database.query_one(blobs, &[]).await.unwrap().get(0);
    let objects: Vec<_> = store.list(None).try_collect().await.unwrap();
    assert_eq!(objects.len() as i64, blobs);
}

/// What the first look at a store finds: whether it refuses to put where something is.
pub async fn refuses_to_overwrite(location: Location) -> bool {
    let (base, timeout) = (Duration::from_millis(1), Duration::from_secs(10));
    let retry = RetrySettings { attempts_max: 1, base, max: base, budget_percent: 10 };
    let metrics = casebook::telemetry::Metrics::new([], blob_store::OPS.iter().copied());
    let store = BlobStore::open(BlobStoreSettings { location, timeout, retry }, &metrics).unwrap();
    store.probe("is-it-conditional", Instant::now() + 2 * timeout).await.unwrap()
}

/// Only S3 holds a PUT to the length that was signed.
pub async fn nobody_is_let_put(me: &As, backend: &str) {
    let status = begin(me, |request| {
        say(request, b"given");
        request.set_transport(Presigned);
    });
    let status = status.await.unwrap_err();
    assert_eq!(refusal(&status), (Code::FailedPrecondition, "NOT_SIGNABLE".into()));
    assert_eq!(info(&status)["storage_backend"], backend);
}

/// For [`what_is_acknowledged_is_there`]: nothing else than what it asks for, and ample retries.
pub const PATIENT: &[(&str, &str)] = &[
    FAST,
    ("blob_probe_interval_ms", "3600000"),
    ("blob_scrub_period_ms", "0"),
    ("retry_budget_percent", "100"),
];

/// `asked` are requests of an upload, by method, a part of the path, and how long the blob is. What fails or is lost once is
/// made up for; what always does is told, unless the blob is there all the same. Nothing else is left.
pub async fn what_is_acknowledged_is_there(
    world: &World,
    proxy: &Proxy,
    store: &dyn ObjectStore,
    asked: &[(&'static str, &str, usize)],
) {
    let me = world.anonymous();
    let mut seed = 900;
    let each = |when| asked.iter().map(move |asked| (when, asked));
    for (when, (method, part, size)) in each(When::Nth(1)).chain(each(When::Every)) {
        for fault in [
            Fault::Status(500),
            Fault::Status(503),
            Fault::StatusAfter(500),
            Fault::CutBefore,
            Fault::CutAfter,
        ] {
            seed += 1;
            let given = bytes(seed, *size);
            proxy.on(method, part, when, fault);
            let sent = send(&me, messages(&given, |_| {})).await;
            let tried = proxy.attempts(method, part);
            proxy.heal();
            let case = format!("{method} {part} {fault:?} {when:?}");
            assert!(tried > 0, "{case} is never asked");
            match sent {
                Ok(answer) => {
                    assert_eq!(answer.blob.unwrap().digest, Some(digest(&given)));
                    let (_, found) = download(&me, whole(digest(&given))).await.unwrap();
                    assert!(found == given, "{case}");
                }
                Err(status) => {
                    assert!(when == When::Every, "{case}: {status:?}");
                    assert_eq!(status.code(), Code::Unavailable, "{case}: {status:?}");
                    let get = pb::GetBlobRequest { digest: Some(digest(&given)) };
                    fails!(me.blobs().get_blob(get), NotFound, "NOT_FOUND");
                }
            }
        }
    }
    bucket_is_consistent(&world.superuser().await, store).await;
}
