//! How much there is: objects, bytes, versions, and what the log says of them.

use crate::store::Store;
use crate::store::caller::Caller;
use crate::{Result, queries, row};
use std::time::SystemTime;

row! {
    /// What one store has of the latest versions.
    pub struct Backend {
        pub storage_backend: String,
        pub object_count: i64,
        pub size_bytes: i64,
    }
}

row! {
    pub struct Count {
        pub count: i64,
    }
}

row! {
    /// Blobs that versions have, and what is spared by having each once.
    pub struct Shared {
        pub blob_count: i64,
        pub deduplicated_bytes: i64,
    }
}

// Sums are numeric, and an external object may be said to have any size: none may raise.
queries! { "object_statistics" {
    BACKENDS() -> Backend =
        "SELECT storage_backend, count(*) AS object_count, \
         least(sum(size_bytes), 9223372036854775807)::bigint AS size_bytes \
         FROM object WHERE delete_time IS NULL GROUP BY storage_backend ORDER BY storage_backend";
    VERSIONS() -> Count = "SELECT count(*) AS count FROM object_version WHERE delete_time IS NULL";
    SHARED() -> Shared =
        "SELECT count(*) AS blob_count, \
         least(coalesce(sum((b.uses - 1) * b.size_bytes), 0), 9223372036854775807)::bigint AS deduplicated_bytes \
         FROM (SELECT count(*) AS uses, max(size_bytes)::numeric AS size_bytes FROM object_version \
         WHERE delete_time IS NULL AND digest <> '' GROUP BY digest) AS b";
    /// Entries of the last 24 hours about objects and versions, with what was done with them or told of them.
    AUDITS() -> Count =
        "SELECT count(*) AS count FROM log AS l WHERE l.time > now() - interval '24 hours' \
         AND (l.kind = 'object' OR l.kind = 'object_version' \
         OR l.kind = 'event' AND (EXISTS (SELECT FROM object AS o WHERE o.id = l.id AND o.version_count > 0 OFFSET 0) \
         OR EXISTS (SELECT FROM object AS o WHERE o.id = l.id AND o.delete_time IS NOT NULL OFFSET 0)))";
} }

/// All figures at one moment.
#[derive(Clone, Debug)]
pub struct Statistics {
    pub backends: Vec<Backend>,
    pub version_count: i64,
    pub shared: Shared,
    pub audit_count_24h: i64,
    pub read_time: SystemTime,
}

impl Store {
    /// Counts the tenant's objects.
    pub async fn object_statistics(&self, caller: &Caller) -> Result<Statistics> {
        self.snapshot(caller, BACKENDS.name, |snapshot| {
            Box::pin(async move {
                let backends = snapshot.all(&BACKENDS, &()).await?;
                let versions = snapshot.all(&VERSIONS, &()).await?;
                let shared = snapshot.all(&SHARED, &()).await?.pop();
                let audits = snapshot.all(&AUDITS, &()).await?;
                let read_time = snapshot.now;
                snapshot
                    .end(Statistics {
                        backends,
                        version_count: versions.first().map_or(0, |row| row.count),
                        shared: shared.unwrap_or(Shared { blob_count: 0, deduplicated_bytes: 0 }),
                        audit_count_24h: audits.first().map_or(0, |row| row.count),
                        read_time,
                    })
                    .await
            })
        })
        .await
    }
}
