//! A caller whose calls are drawn at random from a seed, and whose answers are told without what differs by nature.

use crate::world::{As, create, decision, object, request};
use casebook::pb;
use std::fmt::Debug;
use tonic::{Response, Status};
use tonic_types::StatusExt as _;

/// Plays one tenant: the calls depend on the seed alone, except that tokens are its own.
pub struct Player {
    client: As,
    state: u64,
    /// A listing and the token of its next page.
    listing: Option<pb::ListDecisionsRequest>,
    revision: Option<pb::Revision>,
}

impl Player {
    pub fn new(client: As, seed: u64) -> Self {
        Self { client, state: seed, listing: None, revision: None }
    }

    /// SplitMix64.
    fn next(&mut self, below: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next(n) == 0
    }

    /// One of few ids, so that tenants and calls collide.
    fn id(&mut self) -> String {
        format!("d-{}", self.next(6))
    }

    fn content(&mut self) -> pb::Decision {
        let verdict = ["ALLOW", "DENY", "REVIEW"][self.next(3) as usize];
        let mut content = decision(verdict, [0.25, 0.5, 0.75][self.next(3) as usize]);
        content.labels.insert("k".into(), format!("v{}", self.next(3)));
        let value = ["1", "x", "2026-01-01"][self.next(3) as usize];
        content.metadata = Some(object(&[("m", value)]));
        content
    }

    fn options(&mut self) -> Option<pb::WriteOptions> {
        let id = if self.one_in(2) { format!("r-{}", self.next(8)) } else { String::new() };
        let mut options = request(&id);
        options.validate_only = self.one_in(10);
        if self.one_in(4) {
            options.on_conflict = pb::OnConflict::ReturnIfEqual.into();
        }
        if self.one_in(5) {
            let id = self.id();
            let version = self.next(3) as i64;
            let mut there =
                pb::ResourceRef { kind: pb::ResourceKind::Decision.into(), id, version };
            use pb::precondition::Check;
            let check = match self.next(3) {
                0 => Check::UnchangedSince(pb::ResourceRef { version: version + 1, ..there }),
                n => {
                    there.version = 0;
                    if n == 1 { Check::MustExist(there) } else { Check::MustNotExist(there) }
                }
            };
            options.preconditions.push(pb::Precondition { check: Some(check) });
        }
        Some(options)
    }

    fn list(&mut self) -> pb::ListDecisionsRequest {
        let filter = [
            "",
            "final_verdict = \"DENY\"",
            "avg_confidence >= 0.5",
            "labels.k = \"v1\"",
            "metadata.m > 0",
            "metadata.m = \"x\" OR state = OVERRIDDEN",
            "NOT labels.k = \"v2\"",
        ][self.next(7) as usize];
        let order = ["", "id", "avg_confidence desc, id", "final_verdict"][self.next(4) as usize];
        pb::ListDecisionsRequest {
            page: Some(pb::PageRequest {
                page_size: 1 + self.next(4) as i32,
                order_by: order.into(),
                include_total_size: self.one_in(2),
                ..Default::default()
            }),
            r#where: Some(pb::Selector { expression: filter.into(), ..Default::default() }),
            show_deleted: self.one_in(4),
            ..Default::default()
        }
    }

    fn consistency(&mut self) -> Option<pb::Consistency> {
        use pb::consistency::Requirement;
        let revision = self.revision.clone()?;
        let requirement = Some(match self.next(3) {
            0 => Requirement::AtExactSnapshot(revision),
            1 => Requirement::AtLeastAsFresh(revision),
            _ => return None,
        });
        Some(pb::Consistency { requirement })
    }

    fn note(&mut self, receipt: Option<&pb::WriteReceipt>) {
        if let Some(receipt) = receipt {
            self.revision.clone_from(&receipt.revision);
        }
    }

    /// Makes a call that shares batches with other tenants' the most.
    pub async fn read(&mut self) {
        let call = pb::GetDecisionRequest { decision_id: self.id(), ..Default::default() };
        told(self.client.decisions().get_decision(call).await);
    }

    /// Makes the next call and tells its answer.
    pub async fn play(&mut self) -> String {
        let mut decisions = self.client.decisions();
        let mut policies = self.client.policies();
        match self.next(22) {
            0..=4 => {
                let id = if self.one_in(4) { String::new() } else { self.id() };
                let content = self.content();
                let call =
                    pb::CreateDecisionRequest { options: self.options(), ..create(&id, content) };
                let answer = decisions.create_decision(call).await;
                self.note(
                    answer.as_ref().ok().and_then(|answer| answer.get_ref().receipt.as_ref()),
                );
                told(answer)
            }
            5 => {
                let mut requests = Vec::new();
                for n in 0..1 + self.next(3) {
                    let id = format!("d-{}", (self.next(3) + n * 3) % 9);
                    requests.push(create(&id, self.content()));
                }
                let options = self.options();
                let call = pb::BatchCreateDecisionsRequest { requests, options };
                told(decisions.batch_create_decisions(call).await)
            }
            6 => {
                let decision_id = self.id();
                let call = pb::GetDecisionRequest { decision_id, ..Default::default() };
                told(decisions.get_decision(call).await)
            }
            7 => {
                let version = if self.one_in(3) { self.next(4) as i64 } else { 0 };
                let (decision_id, consistency) = (self.id(), self.consistency());
                let consistency = consistency.filter(|_| version == 0);
                let call = pb::GetDecisionRequest {
                    decision_id,
                    version,
                    consistency,
                    ..Default::default()
                };
                told(decisions.get_decision(call).await)
            }
            8 => {
                let call = pb::BatchGetDecisionsRequest {
                    decision_ids: (0..6).map(|n| format!("d-{n}")).collect(),
                    consistency: self.consistency(),
                    allow_missing: true,
                    ..Default::default()
                };
                told(decisions.batch_get_decisions(call).await)
            }
            9 | 10 => {
                let mut call = self.list();
                if self.one_in(3) {
                    call.consistency = self.consistency();
                }
                let answer = decisions.list_decisions(call.clone()).await;
                self.turn(call, &answer);
                told(answer)
            }
            11 => {
                let Some(call) = self.listing.clone() else { return String::new() };
                let answer = decisions.list_decisions(call.clone()).await;
                self.turn(call, &answer);
                told(answer)
            }
            12 | 13 => {
                let id = self.id();
                let labels = [("k".to_owned(), format!("v{}", self.next(3)))].into();
                let etag = if self.one_in(6) { "\"00000000-1\"".into() } else { String::new() };
                let decision = Some(pb::Decision { id, etag, labels, ..Default::default() });
                let mask = prost_types::FieldMask { paths: vec!["labels.k".into()] };
                let options = self.options();
                let call = pb::UpdateDecisionRequest { decision, update_mask: Some(mask), options };
                told(decisions.update_decision(call).await)
            }
            14 => {
                let call = pb::DeleteDecisionRequest {
                    decision_id: self.id(),
                    allow_missing: self.one_in(2),
                    options: self.options(),
                    ..Default::default()
                };
                told(decisions.delete_decision(call).await)
            }
            15 => {
                let (decision_id, options) = (self.id(), self.options());
                let call = pb::UndeleteDecisionRequest { decision_id, options };
                told(decisions.undelete_decision(call).await)
            }
            16 => {
                let outputs = (0..1 + self.next(2)).map(|n| pb::CriticOutput {
                    id: format!("c-{n}"),
                    critic: "critic".into(),
                    verdict: "ALLOW".into(),
                    confidence: 0.5,
                    ..Default::default()
                });
                let call = pb::AddCriticOutputsRequest {
                    critic_outputs: outputs.collect(),
                    decision_id: self.id(),
                    options: self.options(),
                };
                told(decisions.add_critic_outputs(call).await)
            }
            17 => {
                let r#override = Some(pb::Override {
                    proposed_outcome: "REVIEW".into(),
                    justification: "because it was wrong".into(),
                    reviewer_id: "someone".into(),
                    ..Default::default()
                });
                let call = pb::CreateOverrideRequest {
                    override_id: format!("o-{}", self.next(4)),
                    decision_id: self.id(),
                    r#override,
                    options: self.options(),
                    ..Default::default()
                };
                told(decisions.create_override(call).await)
            }
            18 => {
                let decision_id = if self.one_in(2) { "-".into() } else { self.id() };
                if self.one_in(2) {
                    let call = pb::ListOverridesRequest { decision_id, ..Default::default() };
                    told(decisions.list_overrides(call).await)
                } else {
                    let call = pb::ListCriticOutputsRequest { decision_id, ..Default::default() };
                    told(decisions.list_critic_outputs(call).await)
                }
            }
            19 => {
                if self.one_in(2) {
                    let group_by = ["final_verdict", "state", "labels.k"][self.next(3) as usize];
                    let call = pb::GetDecisionStatisticsRequest {
                        group_by: vec![group_by.into()],
                        ..Default::default()
                    };
                    told(decisions.get_decision_statistics(call).await)
                } else {
                    let call = pb::ListDecisionRevisionsRequest {
                        decision_id: self.id(),
                        ..Default::default()
                    };
                    told(decisions.list_decision_revisions(call).await)
                }
            }
            20 => {
                let mut audit = self.client.audit();
                let strip = |entry: &mut pb::AuditEntry| {
                    // The leaf commits to uids and times; the server's call ids are of no tenant.
                    entry.leaf.clear();
                    entry.leaf_hash.clear();
                    if !entry.request_id.starts_with("r-") {
                        entry.request_id.clear();
                    }
                };
                if self.one_in(2) {
                    let page = pb::PageRequest {
                        page_size: 5,
                        include_total_size: true,
                        ..Default::default()
                    };
                    let call = pb::ListAuditEntriesRequest {
                        page: Some(page),
                        include_changes: self.one_in(2),
                        ..Default::default()
                    };
                    let mut answer = audit.list_audit_entries(call).await;
                    if let Ok(answer) = &mut answer {
                        answer.get_mut().entries.iter_mut().for_each(strip);
                    }
                    told(answer)
                } else {
                    let call = pb::GetAuditEntryRequest { seq: 1 + self.next(60) as i64 };
                    let mut answer = audit.get_audit_entry(call).await;
                    if let Ok(answer) = &mut answer {
                        answer.get_mut().entry.iter_mut().for_each(strip);
                    }
                    told(answer)
                }
            }
            _ => {
                let id = format!("p-{}", self.next(3));
                if self.one_in(2) {
                    let rule = pb::PolicyRule { name: id.clone(), ..Default::default() };
                    let call = pb::CreatePolicyRuleRequest {
                        policy_rule_id: id,
                        policy_rule: Some(rule),
                        options: self.options(),
                    };
                    told(policies.create_policy_rule(call).await)
                } else {
                    told(policies.list_policy_rules(pb::ListPolicyRulesRequest::default()).await)
                }
            }
        }
    }

    /// Remembers where the listing goes on.
    fn turn(
        &mut self,
        mut call: pb::ListDecisionsRequest,
        answer: &Result<Response<pb::ListDecisionsResponse>, Status>,
    ) {
        let page = answer.as_ref().ok().and_then(|answer| answer.get_ref().page.as_ref());
        let next = page.map(|page| page.next_page_token.clone()).unwrap_or_default();
        self.listing = (!next.is_empty()).then(|| {
            call.page.get_or_insert_default().page_token = next;
            call
        });
    }
}

/// An answer or error as text, without uids, times and tokens.
fn told<T: Debug>(answer: Result<Response<T>, Status>) -> String {
    let text = match answer {
        Ok(answer) => format!("{:?}", answer.into_inner()),
        Err(status) => {
            let info = status.get_details_error_info();
            let metadata: std::collections::BTreeMap<_, _> =
                info.iter().flat_map(|info| &info.metadata).collect();
            let reason = info.as_ref().map(|info| &info.reason);
            assert_ne!(
                reason.map(String::as_str),
                Some("INTERNAL"),
                "{status:?} instead of {}",
                std::any::type_name::<T>()
            );
            format!("{:?} {reason:?} {metadata:?} {}", status.code(), status.message())
        }
    };
    without_differences(&text)
}

fn without_differences(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    'text: while !rest.is_empty() {
        for (start, end, replacement) in [
            ("Timestamp { seconds: ", " }", "<time>"),
            ("next_page_token: \"", "\"", "next_page_token: \""),
            (" token: \"", "\"", " token: \""),
        ] {
            if let Some(after) = rest.strip_prefix(start)
                && let Some(length) = after.find(end)
            {
                out.push_str(replacement);
                if length > 0 {
                    out.push_str("<some>");
                }
                rest = &after[length + end.len()..];
                continue 'text;
            }
        }
        if let Some(length) = uid(rest).or_else(|| etag(rest)).or_else(|| time(rest)) {
            out.push_str("<some>");
            rest = &rest[length..];
            continue;
        }
        let first = rest.chars().next().map_or(1, char::len_utf8);
        out.push_str(&rest[..first]);
        rest = &rest[first..];
    }
    out
}

/// Whether the text begins like the pattern, in which x is a hexadecimal digit, 9 a decimal one, and all else itself.
fn like(text: &str, pattern: &str) -> bool {
    text.len() >= pattern.len()
        && text.bytes().zip(pattern.bytes()).all(|(byte, wanted)| match wanted {
            b'x' => byte.is_ascii_hexdigit(),
            b'9' => byte.is_ascii_digit(),
            _ => byte == wanted,
        })
}

fn uid(text: &str) -> Option<usize> {
    like(text, "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx").then_some(36)
}

/// The part of an etag that is of the uid; the version stays.
fn etag(text: &str) -> Option<usize> {
    like(text, "xxxxxxxx-9").then_some(8)
}

fn time(text: &str) -> Option<usize> {
    like(text, "9999-99-99T99:99:99").then(|| text.find('Z').map_or(19, |end| end + 1))
}
