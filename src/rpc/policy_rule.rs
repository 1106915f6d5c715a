//! PolicyService: the governance rules, checked and worded.

use super::wire::{self, Fields, Write};
use super::{Api, Selection, json, only, open};
use crate::pb;
use crate::store::canonical::Json;
use crate::store::change::{Create, Modify};
use crate::store::noun::{Meta, Noun};
use crate::store::policy_rule::{LISTING, PolicyRule};
use crate::{Error, Result};
use std::time::SystemTime;
use tonic::{Request, Response, Status};
use uuid::Uuid;

const NEWEST: &[(&str, bool)] = &[("create_time", true)];
const IMMUTABLE: &[&str] = &["id", "etag", "meta"];

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl pb::policy_service_server::PolicyService for Api {
    async fn create_policy_rule(
        &self,
        request: Request<pb::CreatePolicyRuleRequest>,
    ) -> Answer<pb::CreatePolicyRuleResponse> {
        let (rows, receipt) = self.write::<_, Create<PolicyRule>>(request).await?;
        Ok(Response::new(pb::CreatePolicyRuleResponse {
            policy_rule: Some(only(rows)?.into()),
            receipt,
        }))
    }

    async fn get_policy_rule(
        &self,
        request: Request<pb::GetPolicyRuleRequest>,
    ) -> Answer<pb::GetPolicyRuleResponse> {
        let (caller, request) = open(request)?;
        let pb::GetPolicyRuleRequest { policy_rule_id, consistency, version } = request;
        let id = wire::id("policy_rule_id", policy_rule_id)?;
        let row: PolicyRule = self.get(&caller, id, consistency, version).await?;
        Ok(Response::new(pb::GetPolicyRuleResponse { policy_rule: Some(row.into()) }))
    }

    async fn list_policy_rules(
        &self,
        request: Request<pb::ListPolicyRulesRequest>,
    ) -> Answer<pb::ListPolicyRulesResponse> {
        let (caller, mut request) = open(request)?;
        let lister = self.lister(&caller, &mut request, &LISTING, NEWEST)?;
        let pb::ListPolicyRulesRequest { page: _, r#where, consistency, show_deleted } = request;
        let selection = Selection {
            filter: lister.filter(r#where)?,
            snapshot: self.read_at(&caller, consistency).await?,
            show_deleted,
            ..Selection::default()
        };
        let (rows, page) = self.list::<PolicyRule>(&caller, &lister, selection).await?;
        let policy_rules = rows.into_iter().map(Into::into).collect();
        Ok(Response::new(pb::ListPolicyRulesResponse { policy_rules, page }))
    }

    async fn update_policy_rule(
        &self,
        request: Request<pb::UpdatePolicyRuleRequest>,
    ) -> Answer<pb::UpdatePolicyRuleResponse> {
        let (row, receipt) = self.write::<_, Modify<PolicyRule>>(request).await?;
        Ok(Response::new(pb::UpdatePolicyRuleResponse {
            policy_rule: row.map(Into::into),
            receipt,
        }))
    }

    async fn delete_policy_rule(
        &self,
        request: Request<pb::DeletePolicyRuleRequest>,
    ) -> Answer<pb::DeletePolicyRuleResponse> {
        let (row, receipt) = self.write::<_, Modify<PolicyRule>>(request).await?;
        Ok(Response::new(pb::DeletePolicyRuleResponse {
            policy_rule: row.map(Into::into),
            receipt,
        }))
    }
}

impl TryFrom<pb::CreatePolicyRuleRequest> for Write<Create<PolicyRule>> {
    type Error = Error;

    fn try_from(request: pb::CreatePolicyRuleRequest) -> Result<Self> {
        let digest = wire::digest(&request, request.options.as_ref());
        let pb::CreatePolicyRuleRequest { policy_rule_id, policy_rule, options } = request;
        let mut fields = Fields::new();
        let (options, on_conflict) = fields.options(options, digest);
        let rule = fields.required("policy_rule", policy_rule);
        let pb::PolicyRule {
            id: repeated_id,
            etag: _,
            meta: _,
            name,
            rule_type,
            severity,
            description,
            definition,
            active,
            effective_time,
            retire_time,
        } = rule;
        let uid = Uuid::now_v7();
        let id = fields.new_id_of("policy_rule", policy_rule_id, repeated_id, uid);
        let row = fields.within("policy_rule", |f| {
            let row = PolicyRule {
                id,
                meta: Meta::new(uid),
                name: f.name("name", name, 255),
                rule_type: f.text("rule_type", rule_type, 63),
                severity: f.text("severity", severity, 63),
                description: f.text("description", description, wire::LONG_TEXT_BYTES_MAX),
                definition: f.object("definition", definition),
                active,
                effective_time: f.time("effective_time", effective_time),
                retire_time: f.time("retire_time", retire_time),
            };
            if let Some(wrong) = ends_before_it_begins(&row) {
                f.wrong("retire_time", wrong);
            }
            row
        });
        fields.finish(Self { change: Create { rows: vec![row], on_conflict }, options })
    }
}

fn ends_before_it_begins(row: &PolicyRule) -> Option<&'static str> {
    let (effective, retire) = row.effective_time.zip(row.retire_time)?;
    (retire < effective).then_some("must not be before effective_time")
}

impl TryFrom<pb::DeletePolicyRuleRequest> for Write<Modify<PolicyRule>> {
    type Error = Error;

    fn try_from(request: pb::DeletePolicyRuleRequest) -> Result<Self> {
        let digest = wire::digest(&request, request.options.as_ref());
        let pb::DeletePolicyRuleRequest { policy_rule_id, etag, allow_missing, options } = request;
        let mut fields = Fields::new();
        let (options, on_conflict) = fields.options(options, digest);
        fields.only_fail(on_conflict);
        let id = fields.id("policy_rule_id", policy_rule_id);
        let etag = fields.etag("etag", etag);
        fields.finish(Self { change: Modify::delete(id, etag, allow_missing), options })
    }
}

/// One path of an update.
enum Step {
    Name(String),
    RuleType(String),
    Severity(String),
    Description(String),
    Definition(Json),
    Active(bool),
    EffectiveTime(Option<SystemTime>),
    RetireTime(Option<SystemTime>),
}

impl TryFrom<pb::UpdatePolicyRuleRequest> for Write<Modify<PolicyRule>> {
    type Error = Error;

    fn try_from(request: pb::UpdatePolicyRuleRequest) -> Result<Self> {
        let digest = wire::digest(&request, request.options.as_ref());
        let pb::UpdatePolicyRuleRequest { policy_rule, update_mask, options } = request;
        let mut fields = Fields::new();
        let (options, on_conflict) = fields.options(options, digest);
        fields.only_fail(on_conflict);
        let given = fields.required("policy_rule", policy_rule);
        let id = fields.id("policy_rule.id", given.id.clone());
        let etag = fields.etag("policy_rule.etag", given.etag.clone());
        let mut steps = Vec::new();
        for path in fields.update_mask(update_mask) {
            let step = fields.within("policy_rule", |f| {
                Some(match path.as_str() {
                    "name" => Step::Name(f.name("name", given.name.clone(), 255)),
                    "rule_type" => Step::RuleType(f.text("rule_type", given.rule_type.clone(), 63)),
                    "severity" => Step::Severity(f.text("severity", given.severity.clone(), 63)),
                    "description" => Step::Description(f.text(
                        "description",
                        given.description.clone(),
                        wire::LONG_TEXT_BYTES_MAX,
                    )),
                    "definition" => {
                        Step::Definition(f.object("definition", given.definition.clone()))
                    }
                    "active" => Step::Active(given.active),
                    "effective_time" => {
                        Step::EffectiveTime(f.time("effective_time", given.effective_time))
                    }
                    "retire_time" => Step::RetireTime(f.time("retire_time", given.retire_time)),
                    _ => return None,
                })
            });
            match step {
                Some(step) => steps.push(step),
                None => fields.unknown_path(&path, IMMUTABLE),
            }
        }
        let size_bytes = steps.iter().map(Step::size_bytes).sum();
        let change = Modify::update(id, etag, size_bytes, move |row: &mut PolicyRule, _| {
            for step in &steps {
                step.apply(row);
            }
            match ends_before_it_begins(row) {
                Some(wrong) => Err(Error::invalid("policy_rule.retire_time", wrong)),
                None => Ok(()),
            }
        });
        fields.finish(Self { change, options })
    }
}

impl Step {
    fn size_bytes(&self) -> usize {
        match self {
            Step::Description(text) => text.len(),
            Step::Definition(json) => json.text().len(),
            _ => 64,
        }
    }

    fn apply(&self, row: &mut PolicyRule) {
        match self {
            Step::Name(name) => row.name.clone_from(name),
            Step::RuleType(rule_type) => row.rule_type.clone_from(rule_type),
            Step::Severity(severity) => row.severity.clone_from(severity),
            Step::Description(description) => row.description.clone_from(description),
            Step::Definition(definition) => row.definition = definition.clone(),
            Step::Active(active) => row.active = *active,
            Step::EffectiveTime(time) => row.effective_time = *time,
            Step::RetireTime(time) => row.retire_time = *time,
        }
    }
}

impl From<PolicyRule> for pb::PolicyRule {
    fn from(row: PolicyRule) -> Self {
        let etag = row.etag();
        let PolicyRule {
            id,
            meta,
            name,
            rule_type,
            severity,
            description,
            definition,
            active,
            effective_time,
            retire_time,
        } = row;
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            name,
            rule_type,
            severity,
            description,
            definition: json::to_optional_struct(&definition),
            active,
            effective_time: effective_time.and_then(wire::timestamp),
            retire_time: retire_time.and_then(wire::timestamp),
        }
    }
}
