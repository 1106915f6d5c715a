//! TelemetryService: what other services report about themselves, checked and worded.

use super::metrics_snapshot;
use super::resource::{Found, List, ListRequest, New, OfParent, Resource};
use super::wire::{self, Fields};
use super::{Answer, Api, Paged, json};
use crate::Result;
use crate::pb;
use crate::store::noun::{Meta, Noun};
use crate::store::service_health::{RecordHeartbeat, ServiceHealth, id_of};
use std::time::{Duration, SystemTime};
use tonic::{Request, Response};
use uuid::Uuid;

const STALE_AFTER: Duration = Duration::from_secs(60);

#[tonic::async_trait]
impl pb::telemetry_service_server::TelemetryService for Api {
    async fn record_heartbeat(
        &self,
        request: Request<pb::RecordHeartbeatRequest>,
    ) -> Answer<pb::RecordHeartbeatResponse> {
        let (row, receipt) = self.write(request).await?;
        let service_health = Some(row.into());
        Ok(Response::new(pb::RecordHeartbeatResponse { service_health, receipt }))
    }

    async fn list_service_health(
        &self,
        request: Request<pb::ListServiceHealthRequest>,
    ) -> Answer<pb::ListServiceHealthResponse> {
        let stale_after = read_stale_after(request.get_ref().stale_after)?;
        let Found { rows, page, mask, now } = self.get_rows(request).await?;
        let worded = rows.into_iter().map(|row: ServiceHealth| {
            // A heartbeat may be dated a moment ahead of this read: it is not old then.
            let silence = now.duration_since(row.last_heartbeat_time).unwrap_or_default();
            let stale = silence >= stale_after;
            mask.apply(pb::ServiceHealth { stale, ..row.into() })
        });
        let service_health = worded.collect::<Result<_>>()?;
        Ok(Response::new(pb::ListServiceHealthResponse { service_health, page }))
    }

    async fn record_metrics_snapshot(
        &self,
        request: Request<pb::RecordMetricsSnapshotRequest>,
    ) -> Answer<pb::RecordMetricsSnapshotResponse> {
        let (metrics_snapshot, receipt) = self.create(request).await?;
        Ok(Response::new(pb::RecordMetricsSnapshotResponse { metrics_snapshot, receipt }))
    }

    async fn list_metrics_snapshots(
        &self,
        request: Request<pb::ListMetricsSnapshotsRequest>,
    ) -> Answer<pb::ListMetricsSnapshotsResponse> {
        let (metrics_snapshots, page) = self.get_page(request).await?;
        Ok(Response::new(pb::ListMetricsSnapshotsResponse { metrics_snapshots, page }))
    }

    async fn get_metrics_series(
        &self,
        request: Request<pb::GetMetricsSeriesRequest>,
    ) -> Answer<pb::GetMetricsSeriesResponse> {
        let (caller, request) = super::open(request)?;
        let series = metrics_snapshot::read_series(request, SystemTime::now())?;
        let (buckets, seq) = self.store.metrics_series(&caller, series).await?;
        Ok(Response::new(pb::GetMetricsSeriesResponse {
            buckets: buckets.into_iter().map(Into::into).collect(),
            read_at: Some(self.revision(&caller, seq)?),
        }))
    }
}

/// Zero stands for the default.
fn read_stale_after(given: Option<prost_types::Duration>) -> Result<Duration> {
    let mut fields = Fields::default();
    let us = fields.span_us("stale_after", given).unwrap_or_default();
    match fields.finish(u64::try_from(us).unwrap_or_default())? {
        0 => Ok(STALE_AFTER),
        us => Ok(Duration::from_micros(us)),
    }
}

impl Paged for pb::ListServiceHealthRequest {
    fn page_mut(&mut self) -> &mut Option<pb::PageRequest> {
        &mut self.page
    }
}

impl ListRequest for pb::ListServiceHealthRequest {
    type Resource = pb::ServiceHealth;
    const TIME: &'static str = "last_heartbeat_time";
    const ORDER: &'static [(&'static str, bool)] = &[("last_heartbeat_time", true)];

    fn parts(self) -> List {
        let Self {
            page: _,
            r#where,
            window,
            consistency,
            read_mask,
            show_deleted,
            service_name,
            stale_after: _,
        } = self;
        let parent = Some(OfParent {
            column: "d.service_name",
            field: "service_name",
            id: service_name,
            noun: None,
            is_id: false,
        });
        List { r#where, window, consistency, read_mask, show_deleted, parent }
    }
}

crate::requests!(@ask RecordHeartbeatRequest -> RecordHeartbeat, |fields, on_conflict, service_health| {
    fields.only_fail(on_conflict);
    let given = fields.required("service_health", service_health);
    let new = New { id: String::new(), meta: Meta::new(Uuid::now_v7()) };
    RecordHeartbeat { row: fields.within("service_health", |fields| given.read(fields, new)) }
});

impl Resource for pb::ServiceHealth {
    type Row = ServiceHealth;
    const CHANGEABLE: &'static [&'static str] = &[];

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    fn read(self, f: &mut Fields, New { id: _, meta }: New) -> ServiceHealth {
        let pb::ServiceHealth {
            id: _,
            etag: _,
            meta: _,
            service_name,
            instance_id,
            status,
            last_heartbeat_time: _,
            metadata,
            stale: _,
        } = self;
        ServiceHealth {
            id: id_of(&service_name, &instance_id),
            meta,
            service_name: f.name("service_name", service_name, 50),
            instance_id: f.name("instance_id", instance_id, 255),
            status: f.name("status", status, 20),
            last_heartbeat_time: SystemTime::UNIX_EPOCH,
            metadata: f.object("metadata", metadata),
        }
    }
}

impl From<ServiceHealth> for pb::ServiceHealth {
    fn from(row: ServiceHealth) -> Self {
        let etag = row.etag();
        let ServiceHealth {
            id,
            meta,
            service_name,
            instance_id,
            status,
            last_heartbeat_time,
            metadata,
        } = row;
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            service_name,
            instance_id,
            status,
            last_heartbeat_time: wire::timestamp(last_heartbeat_time),
            metadata: json::to_optional_object(&metadata),
            // Only a list knows for how long silence is taken for life.
            stale: false,
        }
    }
}
