//! PolicyService: the governance rules, checked and worded.

use super::json;
use super::resource::{New, Resource};
use super::wire::{self, Fields};
use super::{Answer, Api};
use crate::pb;
use crate::store::noun::Noun;
use crate::store::policy_rule::PolicyRule;
use tonic::{Request, Response};

#[tonic::async_trait]
impl pb::policy_service_server::PolicyService for Api {
    async fn create_policy_rule(
        &self,
        request: Request<pb::CreatePolicyRuleRequest>,
    ) -> Answer<pb::CreatePolicyRuleResponse> {
        let (policy_rule, receipt) = self.create(request).await?;
        Ok(Response::new(pb::CreatePolicyRuleResponse { policy_rule, receipt }))
    }

    async fn get_policy_rule(
        &self,
        request: Request<pb::GetPolicyRuleRequest>,
    ) -> Answer<pb::GetPolicyRuleResponse> {
        let policy_rule = self.get_one(request).await?;
        Ok(Response::new(pb::GetPolicyRuleResponse { policy_rule }))
    }

    async fn list_policy_rules(
        &self,
        request: Request<pb::ListPolicyRulesRequest>,
    ) -> Answer<pb::ListPolicyRulesResponse> {
        let (policy_rules, page) = self.get_page(request).await?;
        Ok(Response::new(pb::ListPolicyRulesResponse { policy_rules, page }))
    }

    async fn update_policy_rule(
        &self,
        request: Request<pb::UpdatePolicyRuleRequest>,
    ) -> Answer<pb::UpdatePolicyRuleResponse> {
        let (policy_rule, receipt) = self.change(request).await?;
        Ok(Response::new(pb::UpdatePolicyRuleResponse { policy_rule, receipt }))
    }

    async fn delete_policy_rule(
        &self,
        request: Request<pb::DeletePolicyRuleRequest>,
    ) -> Answer<pb::DeletePolicyRuleResponse> {
        let (policy_rule, receipt) = self.change(request).await?;
        Ok(Response::new(pb::DeletePolicyRuleResponse { policy_rule, receipt }))
    }
}

crate::requests! { PolicyRule:
    create CreatePolicyRuleRequest(policy_rule_id policy_rule);
    get GetPolicyRuleRequest(policy_rule_id);
    list ListPolicyRulesRequest("create_time" by [("create_time", true)]);
    update UpdatePolicyRuleRequest(policy_rule);
    delete DeletePolicyRuleRequest(policy_rule_id);
}

impl Resource for pb::PolicyRule {
    type Row = PolicyRule;
    #[rustfmt::skip]
    const CHANGEABLE: &'static [&'static str] = &[
        "name", "rule_type", "severity", "description", "definition", "active", "effective_time", "retire_time",
    ];

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    fn read(self, f: &mut Fields, New { id, meta }: New) -> PolicyRule {
        let pb::PolicyRule {
            id: _,
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
        } = self;
        PolicyRule {
            id,
            meta,
            name: f.name("name", name, 255),
            rule_type: f.text("rule_type", rule_type, 63),
            severity: f.text("severity", severity, 63),
            description: f.text("description", description, wire::LONG_TEXT_BYTES_MAX),
            definition: f.object("definition", definition),
            active,
            effective_time: f.time("effective_time", effective_time),
            retire_time: f.time("retire_time", retire_time),
        }
    }

    fn fault(row: &PolicyRule) -> Option<(&'static str, &'static str)> {
        let (effective, retire) = row.effective_time.zip(row.retire_time)?;
        (retire < effective).then_some(("retire_time", "must not be before effective_time"))
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
            definition: json::to_optional_object(&definition),
            active,
            effective_time: effective_time.and_then(wire::timestamp),
            retire_time: retire_time.and_then(wire::timestamp),
        }
    }
}
