//! PrecedentService: historical cases and the graph between them.

use super::embedding::{in_own_words, name_spaces, no_twins, read_given};
use super::precedent_reference::read_walk;
use super::resource::{New, Resource, ask_within, read_new};
use super::wire::{self, Fields, LONG_TEXT_BYTES_MAX};
use super::{Answer, Api, json, search};
use crate::pb;
use crate::store::canonical::Json;
use crate::store::change::{Create, when_recorded};
use crate::store::embedding::given::{CreateEmbedded, Given};
use crate::store::noun::Noun;
use crate::store::precedent::{ACTIVE, Precedent, SUPERSEDED};
use tonic::{Request, Response};

#[tonic::async_trait]
impl pb::precedent_service_server::PrecedentService for Api {
    async fn create_precedent(
        &self,
        request: Request<pb::CreatePrecedentRequest>,
    ) -> Answer<pb::CreatePrecedentResponse> {
        let (precedent, receipt) = self.create(request).await.map_err(in_own_words)?;
        Ok(Response::new(pb::CreatePrecedentResponse { precedent, receipt }))
    }

    async fn batch_create_precedents(
        &self,
        request: Request<pb::BatchCreatePrecedentsRequest>,
    ) -> Answer<pb::BatchCreatePrecedentsResponse> {
        let (precedents, receipt) = self.create_batch(request).await.map_err(in_own_words)?;
        Ok(Response::new(pb::BatchCreatePrecedentsResponse { precedents, receipt }))
    }

    async fn get_precedent(
        &self,
        request: Request<pb::GetPrecedentRequest>,
    ) -> Answer<pb::GetPrecedentResponse> {
        let precedent = self.get_one(request).await?;
        Ok(Response::new(pb::GetPrecedentResponse { precedent }))
    }

    async fn batch_get_precedents(
        &self,
        request: Request<pb::BatchGetPrecedentsRequest>,
    ) -> Answer<pb::BatchGetPrecedentsResponse> {
        let (precedents, missing_ids) = self.get_several(request).await?;
        Ok(Response::new(pb::BatchGetPrecedentsResponse { precedents, missing_ids }))
    }

    async fn list_precedents(
        &self,
        request: Request<pb::ListPrecedentsRequest>,
    ) -> Answer<pb::ListPrecedentsResponse> {
        let (precedents, page) = self.get_page(request).await?;
        Ok(Response::new(pb::ListPrecedentsResponse { precedents, page }))
    }

    async fn update_precedent(
        &self,
        request: Request<pb::UpdatePrecedentRequest>,
    ) -> Answer<pb::UpdatePrecedentResponse> {
        let (precedent, receipt) = self.change(request).await?;
        Ok(Response::new(pb::UpdatePrecedentResponse { precedent, receipt }))
    }

    async fn delete_precedent(
        &self,
        request: Request<pb::DeletePrecedentRequest>,
    ) -> Answer<pb::DeletePrecedentResponse> {
        let (precedent, receipt) = self.change(request).await?;
        Ok(Response::new(pb::DeletePrecedentResponse { precedent, receipt }))
    }

    async fn undelete_precedent(
        &self,
        request: Request<pb::UndeletePrecedentRequest>,
    ) -> Answer<pb::UndeletePrecedentResponse> {
        let (precedent, receipt) = self.change(request).await?;
        Ok(Response::new(pb::UndeletePrecedentResponse { precedent, receipt }))
    }

    async fn link_precedents(
        &self,
        request: Request<pb::LinkPrecedentsRequest>,
    ) -> Answer<pb::LinkPrecedentsResponse> {
        let (precedent_references, receipt) = self.create_batch(request).await?;
        Ok(Response::new(pb::LinkPrecedentsResponse { precedent_references, receipt }))
    }

    async fn unlink_precedents(
        &self,
        request: Request<pb::UnlinkPrecedentsRequest>,
    ) -> Answer<pb::UnlinkPrecedentsResponse> {
        let (precedent_references, receipt) = self.create_batch(request).await?;
        Ok(Response::new(pb::UnlinkPrecedentsResponse { precedent_references, receipt }))
    }

    async fn list_precedent_references(
        &self,
        request: Request<pb::ListPrecedentReferencesRequest>,
    ) -> Answer<pb::ListPrecedentReferencesResponse> {
        let (precedent_references, page, truncated) = read_walk(self, request).await?;
        Ok(Response::new(pb::ListPrecedentReferencesResponse {
            precedent_references,
            page,
            truncated,
        }))
    }

    async fn find_precedents(
        &self,
        request: Request<pb::FindPrecedentsRequest>,
    ) -> Answer<pb::FindPrecedentsResponse> {
        Ok(Response::new(search::find_precedents(self, request).await?))
    }
}

crate::requests! { Precedent:
    get GetPrecedentRequest(precedent_id);
    batch_get BatchGetPrecedentsRequest(precedent_ids);
    list ListPrecedentsRequest("occur_time" by [("occur_time", true)]);
    update UpdatePrecedentRequest(precedent);
    delete DeletePrecedentRequest(precedent_id);
    undelete UndeletePrecedentRequest(precedent_id);
}

crate::requests!(@ask CreatePrecedentRequest -> CreateEmbedded<Precedent>,
|fields, on_conflict, precedent_id, precedent, embeddings| {
    let row: Precedent = read_new(fields, precedent_id, precedent, on_conflict);
    let embeddings = read_given(fields, embeddings, &row, 0);
    no_twins(fields, &embeddings, |_| String::new());
    CreateEmbedded { create: Create { rows: vec![row], on_conflict }, embeddings }
}, spaces |request, names| name_spaces(&request.embeddings, names));

crate::requests!(@ask BatchCreatePrecedentsRequest -> CreateEmbedded<Precedent>,
|fields, on_conflict, requests| {
    let all = fields.batch("requests", requests, |fields, one| ask_within(one, fields, on_conflict));
    let (mut rows, mut embeddings) = (Vec::new(), Vec::new());
    for (of, one) in all.into_iter().enumerate() {
        let CreateEmbedded { create, embeddings: mine } = one;
        rows.extend(create.rows);
        embeddings.extend(mine.into_iter().map(|given| Given { of, ..given }));
    }
    fields.no_duplicates(rows.iter().map(Noun::id), |n| format!("requests[{n}].precedent_id"));
    no_twins(fields, &embeddings, |of| format!("requests[{of}]."));
    CreateEmbedded { create: Create { rows, on_conflict }, embeddings }
}, spaces |request, names| {
    name_spaces(request.requests.iter().flat_map(|request| &request.embeddings), names);
});

/// The hash of a case's input; none without an input.
pub fn case_hash(input: &Json) -> String {
    if *input == Json::object() { String::new() } else { json::hash(input) }
}

impl Resource for pb::Precedent {
    type Row = Precedent;
    #[rustfmt::skip]
    const CHANGEABLE: &'static [&'static str] = &[
        "decision_id", "input", "summary", "final_verdict", "final_reason", "avg_confidence", "ambiguity", "tags",
        "context", "metadata", "labels", "occur_time", "status", "superseded_by_id", "retention_class", "subject_id",
    ];
    const DERIVED: &'static [(&'static str, &'static str)] = &[("input", "case_hash")];

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    fn read(self, f: &mut Fields, New { id, meta }: New) -> Precedent {
        let pb::Precedent {
            id: _,
            etag: _,
            meta: _,
            decision_id,
            case_hash: _,
            input,
            summary,
            final_verdict,
            final_reason,
            avg_confidence,
            ambiguity,
            tags,
            context,
            metadata,
            labels,
            occur_time,
            status,
            superseded_by_id,
            retention_class,
            subject_id,
        } = self;
        let input = f.object("input", input);
        let case_hash = case_hash(&input);
        Precedent {
            id,
            meta,
            decision_id: f.reference("decision_id", decision_id),
            case_hash,
            input,
            summary: f.text("summary", summary, LONG_TEXT_BYTES_MAX),
            final_verdict: f.verdict("final_verdict", final_verdict),
            final_reason: f.text("final_reason", final_reason, LONG_TEXT_BYTES_MAX),
            avg_confidence: avg_confidence.map(|value| f.confidence("avg_confidence", value)),
            ambiguity: ambiguity.map(|value| f.confidence("ambiguity", value)),
            tags: f.tags("tags", tags),
            context: f.text("context", context, LONG_TEXT_BYTES_MAX),
            metadata: f.object("metadata", metadata),
            labels: f.labels("labels", labels),
            occur_time: f.time("occur_time", occur_time).unwrap_or_else(when_recorded),
            status: f.value::<pb::PrecedentStatus>("status", status, ACTIVE),
            superseded_by_id: f.reference("superseded_by_id", superseded_by_id),
            retention_class: f.text("retention_class", retention_class, 63),
            subject_id: f.text("subject_id", subject_id, 255),
        }
    }

    fn fault(row: &Precedent) -> Option<(&'static str, &'static str)> {
        if !row.superseded_by_id.is_empty() && row.status != SUPERSEDED {
            return Some(("superseded_by_id", "must be empty unless status is SUPERSEDED"));
        }
        if row.superseded_by_id == row.id {
            return Some(("superseded_by_id", "must not be the precedent itself"));
        }
        // A new one, which has no version yet, gets its time when it is recorded.
        let has_no_time = row.meta.version > 0 && row.occur_time == when_recorded();
        has_no_time.then_some(("occur_time", "must be set"))
    }
}

impl From<Precedent> for pb::Precedent {
    fn from(row: Precedent) -> Self {
        let etag = row.etag();
        let Precedent {
            id,
            meta,
            decision_id,
            case_hash,
            input,
            summary,
            final_verdict,
            final_reason,
            avg_confidence,
            ambiguity,
            tags,
            context,
            metadata,
            labels,
            occur_time,
            status,
            superseded_by_id,
            retention_class,
            subject_id,
        } = row;
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            decision_id,
            case_hash,
            input: json::to_optional_object(&input),
            summary,
            final_verdict,
            final_reason,
            avg_confidence,
            ambiguity,
            tags: json::parsed(&tags),
            context,
            metadata: json::to_optional_object(&metadata),
            labels: json::to_strings(&labels),
            occur_time: wire::timestamp(occur_time),
            status: status.into(),
            superseded_by_id,
            retention_class,
            subject_id,
        }
    }
}
