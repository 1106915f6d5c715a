//! RetentionService: what must not be deleted, how long records are kept, and what goes for good.

use super::resource::{New, Resource, read_new};
use super::wire::{self, Fields};
use super::{Answer, Api, json, open};
use crate::pb;
use crate::store::canonical::Json;
use crate::store::change::{Create, Modify};
use crate::store::legal_hold::{BeginHold, LegalHold, release};
use crate::store::noun::Noun;
use crate::store::purge::{Purge, Purged, purgeable};
use std::time::Duration;
use tonic::{Request, Response};

const REASON_BYTES_MAX: usize = 4096;
const REFS_MAX: usize = 1000;
const PURGE_MAX: i32 = 1000;

#[tonic::async_trait]
impl pb::retention_service_server::RetentionService for Api {
    async fn create_legal_hold(
        &self,
        request: Request<pb::CreateLegalHoldRequest>,
    ) -> Answer<pb::CreateLegalHoldResponse> {
        let (legal_hold, receipt) = self.create(request).await?;
        Ok(Response::new(pb::CreateLegalHoldResponse { legal_hold, receipt }))
    }

    async fn get_legal_hold(
        &self,
        request: Request<pb::GetLegalHoldRequest>,
    ) -> Answer<pb::GetLegalHoldResponse> {
        let legal_hold = self.get_one(request).await?;
        Ok(Response::new(pb::GetLegalHoldResponse { legal_hold }))
    }

    async fn list_legal_holds(
        &self,
        request: Request<pb::ListLegalHoldsRequest>,
    ) -> Answer<pb::ListLegalHoldsResponse> {
        let (legal_holds, page) = self.get_page(request).await?;
        Ok(Response::new(pb::ListLegalHoldsResponse { legal_holds, page }))
    }

    async fn release_legal_hold(
        &self,
        request: Request<pb::ReleaseLegalHoldRequest>,
    ) -> Answer<pb::ReleaseLegalHoldResponse> {
        let (legal_hold, receipt) = self.change(request).await?;
        Ok(Response::new(pb::ReleaseLegalHoldResponse { legal_hold, receipt }))
    }

    async fn create_retention_policy(
        &self,
        request: Request<pb::CreateRetentionPolicyRequest>,
    ) -> Answer<pb::CreateRetentionPolicyResponse> {
        let (retention_policy, receipt) = self.create(request).await?;
        Ok(Response::new(pb::CreateRetentionPolicyResponse { retention_policy, receipt }))
    }

    async fn get_retention_policy(
        &self,
        request: Request<pb::GetRetentionPolicyRequest>,
    ) -> Answer<pb::GetRetentionPolicyResponse> {
        let retention_policy = self.get_one(request).await?;
        Ok(Response::new(pb::GetRetentionPolicyResponse { retention_policy }))
    }

    async fn list_retention_policies(
        &self,
        request: Request<pb::ListRetentionPoliciesRequest>,
    ) -> Answer<pb::ListRetentionPoliciesResponse> {
        let (retention_policies, page) = self.get_page(request).await?;
        Ok(Response::new(pb::ListRetentionPoliciesResponse { retention_policies, page }))
    }

    async fn update_retention_policy(
        &self,
        request: Request<pb::UpdateRetentionPolicyRequest>,
    ) -> Answer<pb::UpdateRetentionPolicyResponse> {
        let (retention_policy, receipt) = self.change(request).await?;
        Ok(Response::new(pb::UpdateRetentionPolicyResponse { retention_policy, receipt }))
    }

    async fn delete_retention_policy(
        &self,
        request: Request<pb::DeleteRetentionPolicyRequest>,
    ) -> Answer<pb::DeleteRetentionPolicyResponse> {
        let (retention_policy, receipt) = self.change(request).await?;
        Ok(Response::new(pb::DeleteRetentionPolicyResponse { retention_policy, receipt }))
    }

    async fn purge_resources(
        &self,
        request: Request<pb::PurgeResourcesRequest>,
    ) -> Answer<pb::PurgeResourcesResponse> {
        let (caller, request) = open(request)?;
        let kind = wire::kind_name(request.kind).unwrap_or_default();
        // The filter's fields are the kind's.
        purgeable(&kind)?;
        let write = self.ask(request, &caller).await?;
        let (Purged { purged, held, kept_by_floor }, receipt) =
            self.write_as(caller, write).await?;
        Ok(Response::new(pb::PurgeResourcesResponse {
            purged_count: purged,
            held_count: held,
            kept_by_floor_count: kept_by_floor,
            receipt,
        }))
    }
}

crate::requests! { LegalHold:
    get GetLegalHoldRequest(legal_hold_id);
    list ListLegalHoldsRequest("create_time" by [("create_time", true)]);
}

crate::requests!(@ask CreateLegalHoldRequest -> BeginHold, |fields, on_conflict, legal_hold_id, legal_hold| {
    let row = read_new(fields, legal_hold_id, legal_hold, on_conflict);
    BeginHold(Create { rows: vec![row], on_conflict })
});

crate::requests!(@ask ReleaseLegalHoldRequest -> Modify<LegalHold>, |fields, on_conflict, legal_hold_id, reason| {
    fields.only_fail(on_conflict);
    let id = fields.id("legal_hold_id", legal_hold_id);
    let reason = fields.name("reason", reason, REASON_BYTES_MAX);
    release(id, fields.acting().to_owned(), reason)
});

crate::requests!(@ask PurgeResourcesRequest -> Purge, |fields, on_conflict, kind, r#where, older_than, max_resources| {
    fields.only_fail(on_conflict);
    let name = wire::kind_name(kind).unwrap_or_default();
    let facts = fields.checked(purgeable(&name));
    let filter = facts.map(|facts| super::filter::selector(facts.listing.fields, r#where, "where"));
    let filter = filter.and_then(|filter| fields.checked(filter)).unwrap_or_default();
    let older_than = fields.span_us("older_than", older_than).unwrap_or_default().unsigned_abs();
    if !(1..=PURGE_MAX).contains(&max_resources) {
        fields.wrong("max_resources", format!("must be from 1 to {PURGE_MAX}"));
    }
    Purge {
        // Without a kind something is wrong, and this goes nowhere.
        facts: facts.unwrap_or(LegalHold::facts()),
        filter,
        older_than: Duration::from_micros(older_than),
        max: max_resources.into(),
    }
});

impl Resource for pb::LegalHold {
    type Row = LegalHold;
    const CHANGEABLE: &'static [&'static str] = &[];
    const NO_REPLACE: Option<&'static str> =
        Some("what is held stays held until the hold is released");

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    fn read(self, f: &mut Fields, New { id, meta }: New) -> LegalHold {
        let pb::LegalHold {
            id: _,
            etag: _,
            meta: _,
            reason,
            matter,
            refs,
            subject_id,
            release_time: _,
            released_by: _,
            release_reason: _,
        } = self;
        if refs.is_empty() && subject_id.is_empty() {
            f.wrong("refs", "must have at least one item, unless there is a subject_id");
        }
        LegalHold {
            id,
            meta,
            reason: f.name("reason", reason, REASON_BYTES_MAX),
            matter: f.text("matter", matter, 255),
            refs: read_refs(f, refs),
            subject_id: f.text("subject_id", subject_id, 255),
            release_time: None,
            released_by: String::new(),
            release_reason: String::new(),
        }
    }
}

/// As the store compares them: kinds by their names in the log, versions left out.
fn read_refs(f: &mut Fields, refs: Vec<pb::ResourceRef>) -> Json {
    let refs = f.list("refs", refs, REFS_MAX, |f, reference| {
        let pb::ResourceRef { kind, id, version: _ } = reference;
        let Some(name) = wire::kind_name(kind) else {
            f.wrong("kind", format!("must be a known kind, and is {kind}"));
            return serde_json::Value::Null;
        };
        f.reference_id(&name, &id);
        let id = f.id_of(&name, "id", id);
        serde_json::json!({"kind": name, "id": id})
    });
    json::of_value(&serde_json::Value::Array(refs))
}

fn refs_of(json: &Json) -> Vec<pb::ResourceRef> {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Reference {
        kind: String,
        id: String,
    }
    let items: Vec<Reference> = json::parsed(json);
    let items = items.into_iter().map(|Reference { kind, id }| pb::ResourceRef {
        kind: wire::kind_number(&kind).into(),
        id,
        version: 0,
    });
    items.collect()
}

impl From<LegalHold> for pb::LegalHold {
    fn from(row: LegalHold) -> Self {
        let etag = row.etag();
        let LegalHold {
            id,
            meta,
            reason,
            matter,
            refs,
            subject_id,
            release_time,
            released_by,
            release_reason,
        } = row;
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            reason,
            matter,
            refs: refs_of(&refs),
            subject_id,
            release_time: release_time.and_then(wire::timestamp),
            released_by,
            release_reason,
        }
    }
}
