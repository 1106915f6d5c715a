//! AuditService: the log as an auditor reads it.

use super::json;
use super::{Answer, Api, Selection, open};
use crate::Error;
use crate::pb;
use crate::store::canonical::Json;
use crate::store::filter::Filter;
use crate::store::log::{self, LogRow};
use tonic::{Request, Response};

/// The order in which the log is read.
pub const NEWEST: &[(&str, bool)] = &[("seq", true)];

#[tonic::async_trait]
impl pb::audit_service_server::AuditService for Api {
    async fn list_audit_entries(
        &self,
        request: Request<pb::ListAuditEntriesRequest>,
    ) -> Answer<pb::ListAuditEntriesResponse> {
        let (caller, mut request) = open(request)?;
        let lister = self.lister(&caller, &mut request, &log::LISTING, NEWEST)?;
        let pb::ListAuditEntriesRequest { page: _, r#where, window, target, include_changes } =
            request;
        let mut filter = lister.filter(r#where)?;
        if let Some(pb::ResourceRef { kind, id, version: _ }) = target {
            let kind = super::wire::kind_name(kind)
                .ok_or_else(|| Error::invalid("target.kind", "must be a known kind"))?;
            let id = super::wire::id("target.id", id)?;
            filter = Filter::All(vec![filter, log::of_resource(&kind, &id, None)?]);
        }
        let window = lister.window("event_time", window)?;
        let selection = Selection { filter, window, ..Selection::default() };
        let (rows, page) = self.list::<LogRow>(&caller, &lister, selection).await?;
        let changes =
            if include_changes { self.store.changes(&caller, &rows).await? } else { Vec::new() };
        let mut changes = changes.into_iter();
        let entries = rows.into_iter().map(|row| entry(row, changes.next())).collect();
        Ok(Response::new(pb::ListAuditEntriesResponse { entries, page }))
    }

    async fn get_audit_entry(
        &self,
        request: Request<pb::GetAuditEntryRequest>,
    ) -> Answer<pb::GetAuditEntryResponse> {
        let (caller, request) = open(request)?;
        let pb::GetAuditEntryRequest { seq } = request;
        if seq < 1 {
            return Err(Error::invalid("seq", "must be at least 1").into());
        }
        let row = self.store.log_entry(&caller, seq).await?;
        let rows = [row];
        let changes = self.store.changes(&caller, &rows).await?.pop();
        let [row] = rows;
        Ok(Response::new(pb::GetAuditEntryResponse { entry: Some(entry(row, changes)) }))
    }
}

fn entry(row: LogRow, changes: Option<Json>) -> pb::AuditEntry {
    let LogRow {
        seq,
        time,
        kind,
        uid,
        id,
        version,
        action,
        method,
        principal,
        actor,
        ip_address,
        user_agent,
        request_id,
        trace_id,
        context,
        document: _,
        leaf,
        leaf_hash,
    } = row;
    pb::AuditEntry {
        seq,
        event_time: super::wire::timestamp(time),
        action,
        method,
        target: Some(pb::ResourceRef { kind: super::wire::kind_number(&kind).into(), id, version }),
        target_uid: uid.to_string(),
        actor,
        principal,
        ip_address,
        user_agent,
        request_id,
        trace_id,
        changes: changes.and_then(|changes| json::to_struct(&changes)),
        context: context.and_then(|context| json::to_struct(&context)),
        leaf: leaf.into(),
        leaf_hash: leaf_hash.into(),
    }
}
