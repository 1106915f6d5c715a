//! DecisionService: checks what callers send, names what the store shall do, and words the answers.

use super::wire::{self, Fields, ReadMask, Write};
use super::{Api, Selection, citation, json, only, open, page};
use crate::pb;
use crate::store::canonical::Json;
use crate::store::change::Modify;
use crate::store::child::Hide;
use crate::store::critic_output::{self, CriticOutput};
use crate::store::decision::{self, CreateDecisions, Decision, FINAL, GroupBy, NewDecision};
use crate::store::list::ListQuery;
use crate::store::noun::{Meta, Noun};
use crate::store::r#override::{self, Override};
use crate::{Error, Reason, Result};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::time::SystemTime;
use tonic::{Request, Response, Status};
use uuid::Uuid;

const CRITIC_OUTPUTS_MAX: usize = 100;
const SCORES_MAX: usize = 64;
const GROUP_BY_MAX: usize = 3;
const NEWEST: &[(&str, bool)] = &[("decide_time", true)];
const NEWEST_CHILD: &[(&str, bool)] = &[("create_time", true)];

#[rustfmt::skip]
const FIELDS: &[&str] = &[
    "id", "etag", "meta", "input_data", "final_verdict", "reason", "avg_confidence", "ambiguity", "verdict_scores",
    "critic_outputs", "citations", "evidence", "policy_rules", "state", "model_version", "trace_id", "decide_time",
    "processing_time", "metadata", "labels", "retention_class", "subject_id", "case_hash",
];

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl pb::decision_service_server::DecisionService for Api {
    async fn create_decision(
        &self,
        request: Request<pb::CreateDecisionRequest>,
    ) -> Answer<pb::CreateDecisionResponse> {
        let (rows, receipt) = self.write::<_, CreateDecisions>(request).await?;
        Ok(Response::new(pb::CreateDecisionResponse {
            decision: Some(only(rows)?.into()),
            receipt,
        }))
    }

    async fn batch_create_decisions(
        &self,
        request: Request<pb::BatchCreateDecisionsRequest>,
    ) -> Answer<pb::BatchCreateDecisionsResponse> {
        self.batch("requests", request.get_ref().requests.len())?;
        let (rows, receipt) = self.write::<_, CreateDecisions>(request).await?;
        let decisions = rows.into_iter().map(Into::into).collect();
        Ok(Response::new(pb::BatchCreateDecisionsResponse { decisions, receipt }))
    }

    async fn get_decision(
        &self,
        request: Request<pb::GetDecisionRequest>,
    ) -> Answer<pb::GetDecisionResponse> {
        let (caller, request) = open(request)?;
        let pb::GetDecisionRequest { decision_id, consistency, read_mask, version } = request;
        let id = wire::id("decision_id", decision_id)?;
        let mask = ReadMask::new(read_mask, FIELDS)?;
        let decision: Decision = self.get(&caller, id, consistency, version).await?;
        let decision = Some(masked(decision.into(), &mask));
        Ok(Response::new(pb::GetDecisionResponse { decision }))
    }

    async fn batch_get_decisions(
        &self,
        request: Request<pb::BatchGetDecisionsRequest>,
    ) -> Answer<pb::BatchGetDecisionsResponse> {
        let (caller, request) = open(request)?;
        let pb::BatchGetDecisionsRequest { decision_ids, consistency, read_mask, allow_missing } =
            request;
        self.batch("decision_ids", decision_ids.len())?;
        let mask = ReadMask::new(read_mask, FIELDS)?;
        let mut fields = Fields::new();
        let ids = fields.batch("decision_ids", decision_ids, |fields, id| fields.id("", id));
        fields.no_duplicates(ids.iter().map(String::as_str), |n| format!("decision_ids[{n}]"));
        let ids = fields.finish(ids)?;
        let found: Vec<Option<Decision>> = match self.read_at(&caller, consistency).await? {
            None => self.store.get_many(&caller, ids.clone()).await?,
            Some(seq) => self.store.get_as_of(&caller, ids.clone(), seq).await?,
        };
        let mut decisions = Vec::with_capacity(found.len());
        let mut missing_ids = Vec::new();
        for (id, decision) in ids.into_iter().zip(found) {
            match decision {
                Some(decision) => decisions.push(masked(decision.into(), &mask)),
                None if allow_missing => missing_ids.push(id),
                None => return Err(Error::not_found("decision", id).into()),
            }
        }
        Ok(Response::new(pb::BatchGetDecisionsResponse { decisions, missing_ids }))
    }

    async fn list_decisions(
        &self,
        request: Request<pb::ListDecisionsRequest>,
    ) -> Answer<pb::ListDecisionsResponse> {
        let (caller, mut request) = open(request)?;
        let lister = self.lister(&caller, &mut request, &decision::LISTING, NEWEST)?;
        let pb::ListDecisionsRequest {
            page: _,
            r#where,
            window,
            consistency,
            read_mask,
            show_deleted,
        } = request;
        let mask = ReadMask::new(read_mask, FIELDS)?;
        let selection = Selection {
            filter: lister.filter(r#where)?,
            window: lister.window("decide_time", window)?,
            snapshot: self.read_at(&caller, consistency).await?,
            show_deleted,
            parent: None,
        };
        let (rows, page) = self.list::<Decision>(&caller, &lister, selection).await?;
        let decisions = rows.into_iter().map(|row| masked(row.into(), &mask)).collect();
        Ok(Response::new(pb::ListDecisionsResponse { decisions, page }))
    }

    async fn update_decision(
        &self,
        request: Request<pb::UpdateDecisionRequest>,
    ) -> Answer<pb::UpdateDecisionResponse> {
        let (row, receipt) = self.write::<_, Modify<Decision>>(request).await?;
        Ok(Response::new(pb::UpdateDecisionResponse { decision: row.map(Into::into), receipt }))
    }

    async fn delete_decision(
        &self,
        request: Request<pb::DeleteDecisionRequest>,
    ) -> Answer<pb::DeleteDecisionResponse> {
        let (row, receipt) = self.write::<_, Hide<Decision>>(request).await?;
        Ok(Response::new(pb::DeleteDecisionResponse { decision: row.map(Into::into), receipt }))
    }

    async fn undelete_decision(
        &self,
        request: Request<pb::UndeleteDecisionRequest>,
    ) -> Answer<pb::UndeleteDecisionResponse> {
        let (row, receipt) = self.write::<_, Hide<Decision>>(request).await?;
        Ok(Response::new(pb::UndeleteDecisionResponse { decision: row.map(Into::into), receipt }))
    }

    async fn list_decision_revisions(
        &self,
        request: Request<pb::ListDecisionRevisionsRequest>,
    ) -> Answer<pb::ListDecisionRevisionsResponse> {
        let (caller, mut request) = open(request)?;
        let id = wire::id("decision_id", request.decision_id.clone())?;
        let (rows, page) = self.revisions::<Decision, _>(&caller, &mut request, &id).await?;
        let revisions = rows
            .into_iter()
            .map(|(entry, row)| pb::list_decision_revisions_response::Revision {
                decision: Some(row.into()),
                action: entry.action,
                audit_seq: entry.seq,
            })
            .collect();
        Ok(Response::new(pb::ListDecisionRevisionsResponse { revisions, page }))
    }

    async fn add_critic_outputs(
        &self,
        request: Request<pb::AddCriticOutputsRequest>,
    ) -> Answer<pb::AddCriticOutputsResponse> {
        self.batch("critic_outputs", request.get_ref().critic_outputs.len())?;
        let (rows, receipt) = self.write::<_, critic_output::AddCriticOutputs>(request).await?;
        let critic_outputs = rows.into_iter().map(Into::into).collect();
        Ok(Response::new(pb::AddCriticOutputsResponse { critic_outputs, receipt }))
    }

    async fn list_critic_outputs(
        &self,
        request: Request<pb::ListCriticOutputsRequest>,
    ) -> Answer<pb::ListCriticOutputsResponse> {
        let (caller, mut request) = open(request)?;
        let lister = self.lister(&caller, &mut request, &critic_output::LISTING, NEWEST_CHILD)?;
        let pb::ListCriticOutputsRequest { decision_id, page: _, r#where } = request;
        let filter = lister.filter(r#where)?;
        let parent = self.parent(&caller, decision_id).await?;
        let selection = Selection { filter, parent, ..Selection::default() };
        let (rows, page) = self.list::<CriticOutput>(&caller, &lister, selection).await?;
        let critic_outputs = rows.into_iter().map(Into::into).collect();
        Ok(Response::new(pb::ListCriticOutputsResponse { critic_outputs, page }))
    }

    async fn create_override(
        &self,
        request: Request<pb::CreateOverrideRequest>,
    ) -> Answer<pb::CreateOverrideResponse> {
        let (caller, request) = open(request)?;
        let write = super::r#override::create(request, &caller.actor)?;
        let ((row, decision), receipt) = self.write_as(caller, write).await?;
        let (r#override, decision) = (Some(row.into()), Some(decision.into()));
        Ok(Response::new(pb::CreateOverrideResponse { r#override, decision, receipt }))
    }

    async fn list_overrides(
        &self,
        request: Request<pb::ListOverridesRequest>,
    ) -> Answer<pb::ListOverridesResponse> {
        let (caller, mut request) = open(request)?;
        let lister = self.lister(&caller, &mut request, &r#override::LISTING, NEWEST_CHILD)?;
        let pb::ListOverridesRequest { decision_id, page: _, r#where } = request;
        let filter = lister.filter(r#where)?;
        let parent = self.parent(&caller, decision_id).await?;
        let selection = Selection { filter, parent, ..Selection::default() };
        let (rows, page) = self.list::<Override>(&caller, &lister, selection).await?;
        let overrides = rows.into_iter().map(Into::into).collect();
        Ok(Response::new(pb::ListOverridesResponse { overrides, page }))
    }

    async fn get_decision_statistics(
        &self,
        request: Request<pb::GetDecisionStatisticsRequest>,
    ) -> Answer<pb::GetDecisionStatisticsResponse> {
        let (caller, request) = open(request)?;
        let pb::GetDecisionStatisticsRequest { window, r#where, group_by } = request;
        let field = crate::store::filter::Field::find(decision::LISTING.fields, "decide_time")
            .ok_or_else(|| Error::internal("decisions have no decide_time"))?;
        let query = ListQuery {
            filter: super::filter::selector(decision::LISTING.fields, r#where, "where")?,
            window: page::window(field, window, SystemTime::now(), "window")?,
            ..ListQuery::default()
        };
        let mut fields = Fields::new();
        let groups = fields.list("group_by", group_by.clone(), GROUP_BY_MAX, read_group_by);
        fields.no_duplicates(group_by.iter().map(String::as_str), |n| format!("group_by[{n}]"));
        let groups = fields.finish(groups)?.into_iter().flatten().collect();

        let found = self.store.decision_statistics(&caller, query, groups).await?;
        let group = |group: decision::Group| pb::get_decision_statistics_response::Group {
            key: group_by.iter().cloned().zip(group.key).collect(),
            count: group.count,
            avg_confidence: group.avg_confidence,
            override_rate: group.override_rate,
        };
        Ok(Response::new(pb::GetDecisionStatisticsResponse {
            total: Some(group(found.total)),
            groups: found.groups.into_iter().map(group).collect(),
            truncated: found.truncated,
            read_at: Some(self.revision(&caller, found.seq)?),
        }))
    }
}

impl super::Parts {
    /// The decision that a listing of what belongs to decisions is held to; `None` for "-", all of them.
    async fn parent(
        &self,
        caller: &crate::store::caller::Caller,
        decision_id: String,
    ) -> Result<Option<(&'static str, Uuid)>> {
        if decision_id == "-" {
            return Ok(None);
        }
        let id = wire::id("decision_id", decision_id)?;
        let decision: Decision = self.store.get(caller, &id).await?;
        Ok(Some(("d.decision_uid", decision.meta.uid)))
    }
}

fn read_group_by(fields: &mut Fields, name: String) -> Option<GroupBy> {
    Some(match name.as_str() {
        "final_verdict" => GroupBy::FinalVerdict,
        "state" => GroupBy::State,
        "model_version" => GroupBy::ModelVersion,
        "retention_class" => GroupBy::RetentionClass,
        "day" => GroupBy::Day,
        "hour" => GroupBy::Hour,
        _ if name.contains('\0') => {
            fields.wrong_because(Reason::NulByte, "", "must not contain a NUL byte");
            return None;
        }
        _ => match name.strip_prefix("labels.") {
            Some(key) if !key.is_empty() && key.len() <= 63 => GroupBy::Label(key.to_owned()),
            _ => {
                let known =
                    "final_verdict, state, model_version, retention_class, day, hour, labels.<key>";
                fields.wrong("", format!("must be one of {known}"));
                return None;
            }
        },
    })
}

impl TryFrom<pb::CreateDecisionRequest> for Write<CreateDecisions> {
    type Error = Error;

    fn try_from(request: pb::CreateDecisionRequest) -> Result<Self> {
        let digest = wire::digest(&request, request.options.as_ref());
        let pb::CreateDecisionRequest { decision_id, decision, options } = request;
        let mut fields = Fields::new();
        let (options, on_conflict) = fields.options(options, digest);
        fields.no_replace(on_conflict, "a decision never changes; override it instead");
        let new = read_new(&mut fields, decision_id, decision);
        let change = CreateDecisions::new(vec![new], on_conflict);
        fields.finish(Self { change, options })
    }
}

impl TryFrom<pb::BatchCreateDecisionsRequest> for Write<CreateDecisions> {
    type Error = Error;

    fn try_from(request: pb::BatchCreateDecisionsRequest) -> Result<Self> {
        let digest = wire::digest(&request, request.options.as_ref());
        let pb::BatchCreateDecisionsRequest { requests, options } = request;
        let mut fields = Fields::new();
        let (options, on_conflict) = fields.options(options, digest);
        fields.no_replace(on_conflict, "a decision never changes; override it instead");
        let new = fields.batch("requests", requests, |fields, request| {
            let pb::CreateDecisionRequest { decision_id, decision, options } = request;
            if options.is_some() {
                fields.wrong("options", "must stand on the batch");
            }
            read_new(fields, decision_id, decision)
        });
        fields.no_duplicates(new.iter().map(|new| new.decision.id.as_str()), |n| {
            format!("requests[{n}].decision_id")
        });
        fields.finish(Self { change: CreateDecisions::new(new, on_conflict), options })
    }
}

/// A decision to be recorded. What the server owns is passed over, as on any resource that was read before.
fn read_new(fields: &mut Fields, id: String, decision: Option<pb::Decision>) -> NewDecision {
    let uid = Uuid::now_v7();
    let decision = fields.required("decision", decision);
    let pb::Decision {
        id: repeated_id,
        etag: _,
        meta: _,
        input_data,
        final_verdict,
        reason,
        avg_confidence,
        ambiguity,
        verdict_scores,
        critic_outputs,
        citations,
        evidence,
        policy_rules,
        state: _,
        model_version,
        trace_id,
        decide_time,
        processing_time,
        metadata,
        labels,
        retention_class,
        subject_id,
        case_hash: _,
    } = decision;
    let id = fields.new_id_of("decision", id, repeated_id, uid);
    fields.within("decision", |f| {
        let input_data = f.object("input_data", input_data);
        let case_hash = log_hex(&input_data);
        let decision = Decision {
            id,
            meta: Meta::new(uid),
            input_data,
            final_verdict: f.verdict("final_verdict", final_verdict),
            reason: f.text("reason", reason, wire::LONG_TEXT_BYTES_MAX),
            avg_confidence: avg_confidence.map(|value| f.confidence("avg_confidence", value)),
            ambiguity: ambiguity.map(|value| f.confidence("ambiguity", value)),
            verdict_scores: read_scores(f, verdict_scores),
            citations: citation::read(f, citations),
            evidence: f.references("evidence", evidence),
            policy_rules: f.references("policy_rules", policy_rules),
            state: FINAL,
            model_version: f.text("model_version", model_version, 255),
            trace_id: f.text("trace_id", trace_id, 255),
            decide_time: f.time("decide_time", decide_time).unwrap_or(SystemTime::UNIX_EPOCH),
            processing_time_us: f.span_us("processing_time", processing_time),
            metadata: f.object("metadata", metadata),
            labels: f.labels("labels", labels),
            retention_class: f.text("retention_class", retention_class, 63),
            subject_id: f.text("subject_id", subject_id, 255),
            case_hash,
        };
        let critic_outputs = f.list(
            "critic_outputs",
            critic_outputs,
            CRITIC_OUTPUTS_MAX,
            super::critic_output::read_new,
        );
        f.no_duplicates(critic_outputs.iter().map(|row| row.id.as_str()), |n| {
            format!("critic_outputs[{n}].id")
        });
        NewDecision { decision, critic_outputs }
    })
}

fn log_hex(input_data: &Json) -> String {
    crate::store::log::hex(&Sha256::digest(input_data.text()))
}

fn read_scores(fields: &mut Fields, scores: BTreeMap<String, f64>) -> Json {
    if scores.len() > SCORES_MAX {
        fields.wrong(
            "verdict_scores",
            format!("must have at most {SCORES_MAX} entries, and has {}", scores.len()),
        );
        return Json::object();
    }
    let mut members = serde_json::Map::new();
    for (verdict, score) in scores {
        let score = fields.within("verdict_scores", |fields| {
            let shown: String = verdict.chars().take(64).collect();
            let verdict = fields.verdict(&shown.replace('\0', "\u{fffd}"), verdict.clone());
            fields.number(&verdict, score, f64::MIN, f64::MAX)
        });
        members.insert(verdict, score.into());
    }
    json::of_value(&serde_json::Value::Object(members))
}

impl TryFrom<pb::UpdateDecisionRequest> for Write<Modify<Decision>> {
    type Error = Error;

    fn try_from(request: pb::UpdateDecisionRequest) -> Result<Self> {
        let digest = wire::digest(&request, request.options.as_ref());
        let pb::UpdateDecisionRequest { decision, update_mask, options } = request;
        let mut fields = Fields::new();
        let (options, on_conflict) = fields.options(options, digest);
        fields.only_fail(on_conflict);
        let mut given = fields.required("decision", decision);
        let paths = fields.update_mask(update_mask);
        let mut steps: Vec<Step> = Vec::new();
        for path in paths {
            match path.as_str() {
                "labels" => {
                    // Not taken away: a later path may name one of them.
                    let labels = given.labels.clone();
                    steps.push(Step::Labels(
                        fields.within("decision", |f| f.labels("labels", labels)),
                    ));
                }
                "metadata" => {
                    let metadata = given.metadata.take();
                    steps.push(Step::Metadata(
                        fields.within("decision", |f| f.object("metadata", metadata)),
                    ));
                }
                "retention_class" => {
                    let class = std::mem::take(&mut given.retention_class);
                    steps.push(Step::Class(
                        fields.within("decision", |f| f.text("retention_class", class, 63)),
                    ));
                }
                _ => match path.strip_prefix("labels.") {
                    Some(key) => {
                        let value = given.labels.get(key).cloned();
                        // Checked like any label; a missing one is taken away.
                        let one = [(key.to_owned(), value.clone().unwrap_or_default())].into();
                        fields.within("decision", |f| f.labels("labels", one));
                        steps.push(Step::Label(key.to_owned(), value));
                    }
                    None => fields.unknown_path(&path, FIELDS),
                },
            }
        }
        let id = fields.id("decision.id", given.id);
        let etag = fields.etag("decision.etag", given.etag);
        let size_bytes = steps.iter().map(Step::size_bytes).sum();
        let change = Modify::update(id, etag, size_bytes, move |row: &mut Decision, _| {
            steps.iter().try_for_each(|step| step.apply(row))
        });
        fields.finish(Self { change, options })
    }
}

/// One path of an update.
enum Step {
    Labels(Json),
    Metadata(Json),
    Class(String),
    Label(String, Option<String>),
}

impl Step {
    fn size_bytes(&self) -> usize {
        match self {
            Step::Labels(json) | Step::Metadata(json) => json.text().len(),
            Step::Class(_) | Step::Label(..) => 128,
        }
    }

    fn apply(&self, row: &mut Decision) -> Result<()> {
        match self {
            Step::Labels(labels) => row.labels = labels.clone(),
            Step::Metadata(metadata) => row.metadata = metadata.clone(),
            Step::Class(class) => row.retention_class.clone_from(class),
            Step::Label(key, value) => {
                let mut labels = json::to_strings(&row.labels);
                match value {
                    Some(value) => labels.insert(key.clone(), value.clone()),
                    None => labels.remove(key),
                };
                let mut fields = Fields::new();
                row.labels = fields.labels("labels", labels);
                fields.finish(())?;
            }
        }
        Ok(())
    }
}

impl TryFrom<pb::DeleteDecisionRequest> for Write<Hide<Decision>> {
    type Error = Error;

    fn try_from(request: pb::DeleteDecisionRequest) -> Result<Self> {
        let digest = wire::digest(&request, request.options.as_ref());
        let pb::DeleteDecisionRequest { decision_id, etag, allow_missing, options } = request;
        let mut fields = Fields::new();
        let (options, on_conflict) = fields.options(options, digest);
        fields.only_fail(on_conflict);
        let id = fields.id("decision_id", decision_id);
        let etag = fields.etag("etag", etag);
        fields.finish(Self { change: Hide(Modify::delete(id, etag, allow_missing)), options })
    }
}

impl TryFrom<pb::UndeleteDecisionRequest> for Write<Hide<Decision>> {
    type Error = Error;

    fn try_from(request: pb::UndeleteDecisionRequest) -> Result<Self> {
        let digest = wire::digest(&request, request.options.as_ref());
        let pb::UndeleteDecisionRequest { decision_id, options } = request;
        let mut fields = Fields::new();
        let (options, on_conflict) = fields.options(options, digest);
        fields.only_fail(on_conflict);
        let id = fields.id("decision_id", decision_id);
        fields.finish(Self { change: Hide(Modify::undelete(id)), options })
    }
}

impl From<Decision> for pb::Decision {
    fn from(row: Decision) -> Self {
        let etag = row.etag();
        let Decision {
            id,
            meta,
            input_data,
            final_verdict,
            reason,
            avg_confidence,
            ambiguity,
            verdict_scores,
            citations,
            evidence,
            policy_rules,
            state,
            model_version,
            trace_id,
            decide_time,
            processing_time_us,
            metadata,
            labels,
            retention_class,
            subject_id,
            case_hash,
        } = row;
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            input_data: json::to_optional_struct(&input_data),
            final_verdict,
            reason,
            avg_confidence,
            ambiguity,
            verdict_scores: json::parsed(&verdict_scores),
            critic_outputs: Vec::new(),
            citations: citation::written(&citations),
            evidence: references_of(&evidence),
            policy_rules: references_of(&policy_rules),
            // The numbers are the protocol's.
            state: state.into(),
            model_version,
            trace_id,
            decide_time: wire::timestamp(decide_time),
            processing_time: processing_time_us.map(wire::duration_us),
            metadata: json::to_optional_struct(&metadata),
            labels: json::to_strings(&labels),
            retention_class,
            subject_id,
            case_hash,
        }
    }
}

/// References again.
pub fn references_of(json: &Json) -> Vec<pb::ResourceRef> {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Reference {
        kind: i32,
        id: String,
        version: i64,
    }
    let items: Vec<Reference> = json::parsed(json);
    items
        .into_iter()
        .map(|Reference { kind, id, version }| pb::ResourceRef { kind, id, version })
        .collect()
}

/// The parts that the mask asks for; the id is always there.
fn masked(decision: pb::Decision, mask: &ReadMask) -> pb::Decision {
    if mask.is_everything() {
        return decision;
    }
    let pb::Decision {
        id,
        etag,
        meta,
        input_data,
        final_verdict,
        reason,
        avg_confidence,
        ambiguity,
        verdict_scores,
        critic_outputs,
        citations,
        evidence,
        policy_rules,
        state,
        model_version,
        trace_id,
        decide_time,
        processing_time,
        metadata,
        labels,
        retention_class,
        subject_id,
        case_hash,
    } = decision;
    pb::Decision {
        id,
        etag: mask.take("etag", etag),
        meta: mask.take("meta", meta),
        input_data: mask.take("input_data", input_data),
        final_verdict: mask.take("final_verdict", final_verdict),
        reason: mask.take("reason", reason),
        avg_confidence: mask.take("avg_confidence", avg_confidence),
        ambiguity: mask.take("ambiguity", ambiguity),
        verdict_scores: mask.take("verdict_scores", verdict_scores),
        critic_outputs: mask.take("critic_outputs", critic_outputs),
        citations: mask.take("citations", citations),
        evidence: mask.take("evidence", evidence),
        policy_rules: mask.take("policy_rules", policy_rules),
        state: mask.take("state", state),
        model_version: mask.take("model_version", model_version),
        trace_id: mask.take("trace_id", trace_id),
        decide_time: mask.take("decide_time", decide_time),
        processing_time: mask.take("processing_time", processing_time),
        metadata: mask.take("metadata", metadata),
        labels: mask.take("labels", labels),
        retention_class: mask.take("retention_class", retention_class),
        subject_id: mask.take("subject_id", subject_id),
        case_hash: mask.take("case_hash", case_hash),
    }
}
