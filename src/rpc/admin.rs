//! AdminService: how the server is, and what it takes.

use super::{Api, access, open, wire};
use crate::pb;
use crate::store::postgres::PoolState;
use crate::store::status::DatabaseStatus;
use crate::{Error, Result};
use tonic::{Request, Response, Status};

/// A pool that is used to more than this share of its size is nearly exhausted.
const NEARLY_PERCENT: usize = 80;

#[tonic::async_trait]
impl pb::admin_service_server::AdminService for Api {
    async fn get_status(
        &self,
        request: Request<pb::GetStatusRequest>,
    ) -> Result<Response<pb::GetStatusResponse>, Status> {
        let (_, pb::GetStatusRequest {}) = open(request)?;
        let database = match self.store.database_status().await {
            Ok(status) => Some(status.into()),
            // The answer is then that there is no answer.
            Err(
                Error::Unavailable { .. } | Error::Exhausted { .. } | Error::DeadlineExceeded(_),
            ) => None,
            Err(error) => return Err(error.into()),
        };
        let reason = self.health.not_ready_reason();
        Ok(Response::new(pb::GetStatusResponse {
            server_version: env!("CARGO_PKG_VERSION").into(),
            start_time: wire::timestamp(self.start_time),
            ready: reason.is_none(),
            not_ready_reason: reason.map(|reason| reason.to_string()).unwrap_or_default(),
            database,
            pools: self.store.pool_states().into_iter().map(Into::into).collect(),
        }))
    }

    async fn get_capabilities(
        &self,
        request: Request<pb::GetCapabilitiesRequest>,
    ) -> Result<Response<pb::GetCapabilitiesResponse>, Status> {
        let (_, pb::GetCapabilitiesRequest {}) = open(request)?;
        Ok(Response::new(pb::GetCapabilitiesResponse {
            server_version: env!("CARGO_PKG_VERSION").into(),
            limits: self.limits.clone(),
            services: access::services().into_iter().map(str::to_owned).collect(),
        }))
    }
}

impl From<DatabaseStatus> for pb::DatabaseStatus {
    fn from(status: DatabaseStatus) -> Self {
        let DatabaseStatus {
            server_version,
            pgvector_version,
            schema_version,
            schema_version_latest,
            size_bytes,
            latency,
        } = status;
        Self {
            server_version,
            pgvector_version,
            schema_version,
            schema_version_latest,
            size_bytes,
            latency: prost_types::Duration::try_from(latency).ok(),
        }
    }
}

impl From<PoolState> for pb::PoolStatus {
    fn from(state: PoolState) -> Self {
        let PoolState { lane, size_max, size, in_use, waiting } = state;
        let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        Self {
            name: lane.name().into(),
            max_size: count(size_max),
            size: count(size),
            in_use: count(in_use),
            waiting: count(waiting),
            nearly_exhausted: in_use * 100 > size_max * NEARLY_PERCENT,
        }
    }
}
