//! One page of a listing, of whatever noun.

use super::model::{CRITICS, DECISIONS, Message, NOUNS, OVERRIDES, RULES};
use crate::help::mask;
use crate::world::As;
use casebook::pb;
use std::fmt;
use tonic::Status;

#[derive(Clone, Default)]
pub struct Ask {
    pub noun: usize,
    pub page: pb::PageRequest,
    pub selector: pb::Selector,
    pub window: Option<pb::TimeWindow>,
    pub consistency: Option<pb::Consistency>,
    pub show_deleted: bool,
    /// The decision whose overrides or critic outputs are asked for; none means of all.
    pub parent: Option<String>,
    /// Whole resources, not only which they are.
    pub whole: bool,
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { noun, page, selector, window, consistency, show_deleted, parent, whole: _ } =
            self;
        let noun = NOUNS[*noun].name;
        write!(f, "{noun}\n{page:?}\nwindow: {window:?}\n{consistency:?}\n")?;
        write!(f, "show_deleted: {show_deleted}, parent: {parent:?}\n{selector:#?}")
    }
}

impl Ask {
    pub async fn answer(&self, client: &As) -> Result<(Vec<Message>, pb::PageInfo), Status> {
        let Self { noun, page, selector, window, consistency, show_deleted, parent, whole } =
            self.clone();
        let (page, r#where) = (Some(page), Some(selector));
        let decision_id = parent.unwrap_or_else(|| "-".to_owned());
        Ok(match noun {
            DECISIONS => {
                let read_mask = if whole { None } else { mask(&["id", "meta"]) };
                let call = pb::ListDecisionsRequest {
                    page,
                    r#where,
                    window,
                    consistency,
                    read_mask,
                    show_deleted,
                };
                let answer = client.decisions().list_decisions(call).await?.into_inner();
                let rows = answer.decisions.into_iter().map(|row| Message::Decision(row.into()));
                (rows.collect(), answer.page.unwrap_or_default())
            }
            RULES => {
                let call = pb::ListPolicyRulesRequest {
                    page,
                    r#where,
                    consistency,
                    show_deleted,
                    ..Default::default()
                };
                let answer = client.policies().list_policy_rules(call).await?.into_inner();
                let rows = answer.policy_rules.into_iter().map(|row| Message::Rule(row.into()));
                (rows.collect(), answer.page.unwrap_or_default())
            }
            OVERRIDES => {
                let call =
                    pb::ListOverridesRequest { decision_id, page, r#where, ..Default::default() };
                let answer = client.decisions().list_overrides(call).await?.into_inner();
                let rows = answer.overrides.into_iter().map(|row| Message::Override(row.into()));
                (rows.collect(), answer.page.unwrap_or_default())
            }
            CRITICS => {
                let call = pb::ListCriticOutputsRequest {
                    decision_id,
                    page,
                    r#where,
                    ..Default::default()
                };
                let answer = client.decisions().list_critic_outputs(call).await?.into_inner();
                let rows = answer.critic_outputs.into_iter().map(|row| Message::Critic(row.into()));
                (rows.collect(), answer.page.unwrap_or_default())
            }
            _ => {
                let call =
                    pb::ListAuditEntriesRequest { page, r#where, window, ..Default::default() };
                let answer = client.audit().list_audit_entries(call).await?.into_inner();
                let rows = answer.entries.into_iter().map(|row| Message::Entry(row.into()));
                (rows.collect(), answer.page.unwrap_or_default())
            }
        })
    }
}
