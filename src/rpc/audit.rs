//! AuditService: the log as an auditor reads it.

mod archive;
mod event;
mod export;

use super::{Answer, Api, Selection, open};
use super::{json, json_object, wire};
use crate::pb;
use crate::store::archive as segments;
use crate::store::canonical::Json;
use crate::store::event::{self as told, Event};
use crate::store::filter::Filter;
use crate::store::log::{self, LogRow};
use crate::{Error, Result};
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
            let kind = wire::kind_name(kind)
                .ok_or_else(|| Error::invalid("target.kind", "must be a known kind"))?;
            let mut fields = wire::Fields::default();
            let id = fields.id_of(&kind, "target.id", id);
            let id = fields.finish(id)?;
            if kind == "embedding" && !super::embedding::is_full_id(&id) {
                return Err(Error::invalid("target.id", super::embedding::FULL_ID).into());
            }
            filter = Filter::All(vec![filter, log::of_resource(&kind, &id, None)?]);
        }
        let window = lister.window("event_time", window)?;
        let selection = Selection { filter, window, ..Selection::default() };
        let (rows, page) = self.list::<LogRow>(&caller, &lister, selection).await?;
        let changes =
            if include_changes { self.store.changes(&caller, &rows).await? } else { Vec::new() };
        let mut changes = changes.into_iter();
        let entry = |row| entry(row, changes.next().flatten());
        let entries = rows.into_iter().map(entry).collect::<Result<_>>()?;
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
        let changes = self.store.changes(&caller, &rows).await?.pop().flatten();
        let [row] = rows;
        Ok(Response::new(pb::GetAuditEntryResponse { entry: Some(entry(row, changes)?) }))
    }

    async fn log_event(
        &self,
        request: Request<pb::LogEventRequest>,
    ) -> Answer<pb::LogEventResponse> {
        let ((), receipt) = self.write(request).await?;
        Ok(Response::new(pb::LogEventResponse { receipt }))
    }

    type ExportAuditStream = export::Parts;

    async fn export_audit(
        &self,
        request: Request<pb::ExportAuditRequest>,
    ) -> Answer<Self::ExportAuditStream> {
        let (caller, request) = open(request)?;
        Ok(Response::new(self.export(caller, request).await?))
    }

    async fn archive_audit_entries(
        &self,
        request: Request<pb::ArchiveAuditEntriesRequest>,
    ) -> Answer<pb::ArchiveAuditEntriesResponse> {
        let (caller, request) = open(request)?;
        Ok(Response::new(self.archive(caller, request).await?))
    }
}

fn entry(row: LogRow, changes: Option<Json>) -> Result<pb::AuditEntry> {
    let archived = row.is_archived();
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
        document,
        salt: _,
        leaf,
        leaf_hash,
    } = row;
    let mut entry = pb::AuditEntry {
        seq,
        event_time: wire::timestamp(time),
        action,
        method,
        target: Some(pb::ResourceRef { kind: wire::kind_number(&kind).into(), id, version }),
        target_uid: uid.to_string(),
        user_id: actor.clone(),
        actor,
        principal,
        ip_address,
        user_agent,
        request_id,
        trace_id,
        changes: changes.and_then(|changes| json_object::of_json(&changes)),
        context: context.and_then(|context| json_object::of_json(&context)),
        leaf: leaf.into(),
        leaf_hash: leaf_hash.into(),
        success: Some(true),
        error_message: String::new(),
        metadata: None,
        kind,
        username: String::new(),
        object_key: String::new(),
        archived,
    };
    match (entry.kind.as_str(), document) {
        (told::KIND, Some(document)) => tell(&mut entry, Event::from_document(&document)?),
        (told::KIND, None) => entry.success = None,
        (segments::KIND, Some(document)) => {
            entry.target = None;
            entry.metadata = json_object::of_json(&Json::from_canonical(document));
        }
        _ => {}
    }
    Ok(entry)
}

/// Puts what the caller told of an event into its entry.
fn tell(entry: &mut pb::AuditEntry, event: Event) {
    let Event {
        user_id,
        username,
        success,
        error_message,
        object_key,
        target_kind,
        target_id: id,
        target_version: version,
        metadata,
        reporter: _,
    } = event;
    entry.target = (!target_kind.is_empty()).then(|| pb::ResourceRef {
        kind: wire::kind_number(&target_kind).into(),
        id,
        version,
    });
    entry.user_id = user_id;
    entry.username = username;
    entry.success = Some(success);
    entry.error_message = error_message;
    entry.object_key = object_key;
    entry.metadata = json::to_optional_object(&metadata);
}
