//! DecisionService: checks what callers send, names what the store shall do, and words the answers.

use super::resource::{New, Resource, read_delete, read_new};
use super::wire::{self, Fields};
use super::{Answer, Api, citation, json, open, page};
use crate::pb;
use crate::store::canonical::Json;
use crate::store::change::{OnConflict, when_recorded};
use crate::store::decision::{
    self, CreateDecisions, Decision, DeleteDecision, FINAL, GroupBy, NewDecision,
};
use crate::store::list::ListQuery;
use crate::store::noun::Noun;
use crate::{Error, Reason};
use std::collections::BTreeMap;
use std::time::SystemTime;
use tonic::{Request, Response};

const CRITIC_OUTPUTS_MAX: usize = 100;
const SCORES_MAX: usize = 64;
const GROUP_BY_MAX: usize = 3;

#[tonic::async_trait]
impl pb::decision_service_server::DecisionService for Api {
    async fn create_decision(
        &self,
        request: Request<pb::CreateDecisionRequest>,
    ) -> Answer<pb::CreateDecisionResponse> {
        let (decision, receipt) = self.create(request).await?;
        Ok(Response::new(pb::CreateDecisionResponse { decision, receipt }))
    }

    async fn batch_create_decisions(
        &self,
        request: Request<pb::BatchCreateDecisionsRequest>,
    ) -> Answer<pb::BatchCreateDecisionsResponse> {
        let (decisions, receipt) = self.create_batch(request).await?;
        Ok(Response::new(pb::BatchCreateDecisionsResponse { decisions, receipt }))
    }

    async fn get_decision(
        &self,
        request: Request<pb::GetDecisionRequest>,
    ) -> Answer<pb::GetDecisionResponse> {
        let decision = self.get_one(request).await?;
        Ok(Response::new(pb::GetDecisionResponse { decision }))
    }

    async fn batch_get_decisions(
        &self,
        request: Request<pb::BatchGetDecisionsRequest>,
    ) -> Answer<pb::BatchGetDecisionsResponse> {
        let (decisions, missing_ids) = self.get_several(request).await?;
        Ok(Response::new(pb::BatchGetDecisionsResponse { decisions, missing_ids }))
    }

    async fn list_decisions(
        &self,
        request: Request<pb::ListDecisionsRequest>,
    ) -> Answer<pb::ListDecisionsResponse> {
        let (decisions, page) = self.get_page(request).await?;
        Ok(Response::new(pb::ListDecisionsResponse { decisions, page }))
    }

    async fn update_decision(
        &self,
        request: Request<pb::UpdateDecisionRequest>,
    ) -> Answer<pb::UpdateDecisionResponse> {
        let (decision, receipt) = self.change(request).await?;
        Ok(Response::new(pb::UpdateDecisionResponse { decision, receipt }))
    }

    async fn delete_decision(
        &self,
        request: Request<pb::DeleteDecisionRequest>,
    ) -> Answer<pb::DeleteDecisionResponse> {
        let (decision, receipt) = self.change(request).await?;
        Ok(Response::new(pb::DeleteDecisionResponse { decision, receipt }))
    }

    async fn undelete_decision(
        &self,
        request: Request<pb::UndeleteDecisionRequest>,
    ) -> Answer<pb::UndeleteDecisionResponse> {
        let (decision, receipt) = self.change(request).await?;
        Ok(Response::new(pb::UndeleteDecisionResponse { decision, receipt }))
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
                decision: row.map(Into::into),
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
        let (critic_outputs, receipt) = self.create_batch(request).await?;
        Ok(Response::new(pb::AddCriticOutputsResponse { critic_outputs, receipt }))
    }

    async fn list_critic_outputs(
        &self,
        request: Request<pb::ListCriticOutputsRequest>,
    ) -> Answer<pb::ListCriticOutputsResponse> {
        let (critic_outputs, page) = self.get_page(request).await?;
        Ok(Response::new(pb::ListCriticOutputsResponse { critic_outputs, page }))
    }

    async fn create_override(
        &self,
        request: Request<pb::CreateOverrideRequest>,
    ) -> Answer<pb::CreateOverrideResponse> {
        let ((row, decision), receipt) = self.write(request).await?;
        let (r#override, decision) = (Some(row.into()), Some(decision.into()));
        Ok(Response::new(pb::CreateOverrideResponse { r#override, decision, receipt }))
    }

    async fn list_overrides(
        &self,
        request: Request<pb::ListOverridesRequest>,
    ) -> Answer<pb::ListOverridesResponse> {
        let (overrides, page) = self.get_page(request).await?;
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
        let mut fields = Fields::default();
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

crate::requests! { Decision:
    get GetDecisionRequest(decision_id);
    batch_get BatchGetDecisionsRequest(decision_ids);
    list ListDecisionsRequest("decide_time" by [("decide_time", true)]);
    update UpdateDecisionRequest(decision);
    undelete UndeleteDecisionRequest(decision_id);
}

crate::requests!(@ask DeleteDecisionRequest -> DeleteDecision,
|fields, on_conflict, decision_id, etag, allow_missing, force| {
    use pb::ResourceKind::{Attachment, EvidenceBundle};
    DeleteDecision {
        hide: read_delete::<pb::Decision>(fields, decision_id, etag, allow_missing, on_conflict),
        cited_as: (!force).then_some((EvidenceBundle.into(), Attachment.into())),
    }
});

crate::requests!(@ask CreateDecisionRequest -> CreateDecisions, |fields, on_conflict, decision_id, decision| {
    CreateDecisions::new(vec![read_with_critics(fields, decision_id, decision, on_conflict)], on_conflict)
});

crate::requests!(@ask BatchCreateDecisionsRequest -> CreateDecisions, |fields, on_conflict, requests| {
    let new = fields.batch("requests", requests, |fields, request| {
        let pb::CreateDecisionRequest { decision_id, decision, options } = request;
        fields.no_options(options);
        read_with_critics(fields, decision_id, decision, on_conflict)
    });
    fields.no_duplicates(new.iter().map(|new| new.decision.id.as_str()), |n| {
        format!("requests[{n}].decision_id")
    });
    CreateDecisions::new(new, on_conflict)
});

/// A decision to be recorded, and the critic outputs that come with it.
fn read_with_critics(
    fields: &mut Fields,
    id: String,
    mut decision: Option<pb::Decision>,
    on_conflict: OnConflict,
) -> NewDecision {
    let given = decision.as_mut().map(|decision| std::mem::take(&mut decision.critic_outputs));
    let decision = read_new(fields, id, decision, on_conflict);
    let critic_outputs = fields.within("decision", |f| {
        let given = given.unwrap_or_default();
        let critic_outputs =
            f.list("critic_outputs", given, CRITIC_OUTPUTS_MAX, |f, one| one.read_part(f));
        f.no_duplicates(critic_outputs.iter().map(|row| row.id.as_str()), |n| {
            format!("critic_outputs[{n}].id")
        });
        critic_outputs
    });
    NewDecision { decision, critic_outputs }
}

impl Resource for pb::Decision {
    type Row = Decision;
    const CHANGEABLE: &'static [&'static str] = &["labels", "metadata", "retention_class"];
    const NO_REPLACE: Option<&'static str> = Some("a decision never changes; override it instead");

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    fn read(self, f: &mut Fields, New { id, meta }: New) -> Decision {
        let pb::Decision {
            id: _,
            etag: _,
            meta: _,
            input_data,
            final_verdict,
            reason,
            avg_confidence,
            ambiguity,
            verdict_scores,
            critic_outputs: _,
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
        } = self;
        let input_data = f.object("input_data", input_data);
        let case_hash = json::hash(&input_data);
        Decision {
            id,
            meta,
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
            decide_time: f.time("decide_time", decide_time).unwrap_or_else(when_recorded),
            processing_time_us: f.span_us("processing_time", processing_time),
            metadata: f.object("metadata", metadata),
            labels: f.labels("labels", labels),
            retention_class: f.text("retention_class", retention_class, 63),
            subject_id: f.text("subject_id", subject_id, 255),
            case_hash,
        }
    }
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
            input_data: json::to_optional_object(&input_data),
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
            metadata: json::to_optional_object(&metadata),
            labels: json::to_strings(&labels),
            retention_class,
            subject_id,
            case_hash,
        }
    }
}

/// A reference as it is stored.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Reference {
    kind: i32,
    id: String,
    version: i64,
}

impl From<Reference> for pb::ResourceRef {
    fn from(Reference { kind, id, version }: Reference) -> Self {
        Self { kind, id, version }
    }
}

/// References again.
pub fn references_of(json: &Json) -> Vec<pb::ResourceRef> {
    let items: Vec<Reference> = json::parsed(json);
    items.into_iter().map(Into::into).collect()
}

/// One reference again, if there is one.
pub fn reference_of(json: &Json) -> Option<pb::ResourceRef> {
    let item: Reference = json::parsed(json);
    (!item.id.is_empty()).then(|| item.into())
}
