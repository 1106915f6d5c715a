//! A tenant's history, drawn from a seed: every write is made through the API, and what its answer shows is kept, with
//! the tenant as it stood after it.

use super::draw::{Dice, TIMES, timestamp};
use super::model::{CRITICS, DECISIONS, ENTRIES, OVERRIDES, RULES, Row, State};
use crate::help::{add, delete, mask, overrule, page, undelete, update};
use crate::world::{As, create, object};
use casebook::pb;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Timestamp, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

const VERDICTS: &[&str] = &["A", "AB", "A_B", "A1", "ALLOW", "ALLOWED", "DENY", "REVIEW", "Z9"];
const PREFIXES: &[&str] = &["d", "D", "d-", "d_", "d.", "1", "a@b:", "A/~+="];
const SHARES: &[f64] =
    &[0.0, -0.0, 1.0, 0.5, 0.1, 0.3, 0.1 + 0.2, 5e-324, 1e-300, 0.999_999_999_999_999_9];
const LABELS: &[&str] = &[
    "k", "a", "a.b", "k.k", ".", "é", "\"", "'", "\\", "*", " ", "a b", "$", "%", "AND", "1",
    "k:k", "-",
];
const MEMBERS: &[&str] = &["a", "b", "n", "a.b", "é", "\"", "\\", "$", "*", "0", "", "' OR TRUE"];
/// 2023-11-14T22:13:20.123456Z
const SOME_DAY: i64 = 1_700_000_000_123_456;

pub struct History {
    me: As,
    dice: Dice,
    /// Of the newest entry.
    seq: i64,
    made: usize,
    now: [Arc<Vec<Arc<Row>>>; 5],
    /// After each write, oldest first.
    pub states: Vec<Arc<State>>,
}

impl History {
    pub fn new(me: As, dice: Dice) -> Self {
        let (now, states) = (Default::default(), Vec::new());
        Self { me, dice, seq: 0, made: 0, now, states }
    }

    pub fn state(&self) -> Arc<State> {
        Arc::clone(self.states.last().expect("a state after the first write"))
    }

    /// Many at once, which have all their times in common.
    pub async fn begin(&mut self, decisions: usize, changes: usize) {
        let requests = (0..decisions).map(|n| {
            let id = format!("{}{}", PREFIXES[n % PREFIXES.len()], n / PREFIXES.len());
            create(&id, self.decision())
        });
        let requests = requests.collect();
        let batch = pb::BatchCreateDecisionsRequest { requests, options: None };
        let made = ok!(self.me.decisions().batch_create_decisions(batch));
        let rows = made.decisions.into_iter().map(Row::from);
        rows.for_each(|row| self.put(DECISIONS, row));
        self.note(made.receipt);
        self.go_on(changes).await;
    }

    /// Makes some changes.
    pub async fn go_on(&mut self, changes: usize) {
        for _ in 0..changes {
            self.change().await;
        }
        self.read_entries().await;
    }

    async fn change(&mut self) {
        let actor = self.dice.word(&["", "eve", "Eve", "eve%", "e'v\"e\\", "*"]);
        let who = self.me.clone().header("x-casebook-actor", actor);
        let mut decisions = who.decisions();
        let mut policies = who.policies();
        let decision = self.any(DECISIONS, false);
        let rule = self.any(RULES, false);
        self.made += 1;
        match (self.dice.below(20), decision, rule) {
            (0..=3, Some(decision), _) => {
                let paths: &[&[&str]] =
                    &[&["labels"], &["metadata"], &["retention_class"], &["labels.k", "metadata"]];
                let paths = *self.dice.pick(paths);
                let call = update(&decision.id, paths, self.decision());
                let made = ok!(decisions.update_decision(call));
                self.put(DECISIONS, made.decision.expect("a decision").into());
                self.note(made.receipt);
            }
            (4..=6, Some(decision), _) => {
                let made = ok!(decisions.delete_decision(delete(&decision.id)));
                self.put(DECISIONS, made.decision.expect("a decision").into());
                self.hide_children(&decision.last, true);
                self.note(made.receipt);
            }
            (7, ..) => {
                let Some(gone) = self.any(DECISIONS, true) else { return };
                let made = ok!(decisions.undelete_decision(undelete(&gone.id)));
                // It may be another than that one, which had the same id later.
                let row: Row = made.decision.expect("a decision").into();
                self.hide_children(&row.last, false);
                self.put(DECISIONS, row);
                self.note(made.receipt);
            }
            (8..=9, Some(decision), _) => {
                let call = pb::CreateOverrideRequest {
                    r#override: Some(self.r#override()),
                    ..overrule(&self.id(OVERRIDES), &decision.id, "")
                };
                let made = ok!(decisions.create_override(call));
                let row: Row = made.r#override.expect("an override").into();
                self.put(OVERRIDES, Row { parent: decision.last.clone(), ..row });
                self.put(DECISIONS, made.decision.expect("a decision").into());
                self.note(made.receipt);
            }
            (10..=11, Some(decision), _) => {
                let outputs = (0..1 + self.dice.below(3)).map(|n| self.critic_output(n)).collect();
                let made = ok!(decisions.add_critic_outputs(add(&decision.id, outputs)));
                for row in made.critic_outputs.into_iter().map(Row::from) {
                    self.put(CRITICS, Row { parent: decision.last.clone(), ..row });
                }
                self.note(made.receipt);
            }
            (12..=15, _, rule) if rule.is_none() || self.now[RULES].len() < 80 => {
                let call = pb::CreatePolicyRuleRequest {
                    policy_rule_id: self.id(RULES),
                    policy_rule: Some(self.rule()),
                    options: None,
                };
                let made = ok!(policies.create_policy_rule(call));
                self.put(RULES, made.policy_rule.expect("a rule").into());
                self.note(made.receipt);
            }
            (12..=16, _, Some(rule)) => {
                let paths: &[&[&str]] =
                    &[&["name"], &["active", "severity"], &["effective_time", "retire_time"]];
                let call = pb::UpdatePolicyRuleRequest {
                    policy_rule: Some(pb::PolicyRule { id: rule.id.clone(), ..self.rule() }),
                    update_mask: mask(self.dice.pick::<&[&str]>(paths)),
                    options: None,
                };
                let made = ok!(policies.update_policy_rule(call));
                self.put(RULES, made.policy_rule.expect("a rule").into());
                self.note(made.receipt);
            }
            (17, _, Some(rule)) => {
                let policy_rule_id = rule.id.clone();
                let call = pb::DeletePolicyRuleRequest { policy_rule_id, ..Default::default() };
                let made = ok!(policies.delete_policy_rule(call));
                self.put(RULES, made.policy_rule.expect("a rule").into());
                self.note(made.receipt);
            }
            _ => {
                let call = create(&self.id(DECISIONS), self.decision());
                let options = pb::WriteOptions {
                    request_id: format!("r-{}", self.made),
                    ..Default::default()
                };
                let call = pb::CreateDecisionRequest { options: Some(options), ..call };
                let made = ok!(decisions.create_decision(call));
                self.put(DECISIONS, made.decision.expect("a decision").into());
                self.note(made.receipt);
            }
        }
    }

    /// Some row that is hidden, or that is not.
    fn any(&mut self, noun: usize, hidden: bool) -> Option<Arc<Row>> {
        let rows = &self.now[noun];
        let is_live = |id: &str| rows.iter().any(|row| row.id == id && !row.hidden);
        let rows = rows.iter().filter(|row| row.hidden == hidden);
        // An id that is in use again cannot be undeleted.
        let rows: Vec<_> = rows.filter(|row| !hidden || !is_live(&row.id)).collect();
        if rows.is_empty() {
            return None;
        }
        Some(Arc::clone(self.dice.pick::<&Arc<Row>>(&rows)))
    }

    /// A row as it is from now on.
    fn put(&mut self, noun: usize, row: Row) {
        let rows = Arc::make_mut(&mut self.now[noun]);
        match rows.iter_mut().find(|known| known.last == row.last) {
            Some(known) => *known = row.into(),
            None => rows.push(row.into()),
        }
    }

    fn hide_children(&mut self, decision: &str, hidden: bool) {
        for noun in [OVERRIDES, CRITICS] {
            for row in Arc::make_mut(&mut self.now[noun]) {
                if row.parent == decision {
                    *row = Arc::new(Row { hidden, ..(**row).clone() });
                }
            }
        }
    }

    /// Ends a write: keeps the tenant as it stands.
    fn note(&mut self, receipt: Option<pb::WriteReceipt>) {
        let receipt = receipt.expect("a receipt");
        self.seq = receipt.audit_seq;
        let revision = receipt.revision.expect("a revision").token;
        self.states.push(State { revision, nouns: self.now.clone() }.into());
    }

    /// Takes up the entries of the last writes. No write's answer shows them, so they are read in the plainest way.
    async fn read_entries(&mut self) {
        let known = self.now[ENTRIES].len() as i64;
        let request = pb::ListAuditEntriesRequest { page: page(1000), ..Default::default() };
        let mut entries = ok!(self.me.audit().list_audit_entries(request)).entries;
        entries.retain(|entry| entry.seq > known);
        entries.reverse();
        let numbers = entries.iter().map(|entry| entry.seq);
        assert!(numbers.eq(known + 1..=self.seq), "each number once");
        let rows = Arc::make_mut(&mut self.now[ENTRIES]);
        rows.extend(entries.into_iter().map(|entry| Arc::new(Row::from(entry))));
        // Only the newest state needs them: there is no asking for the log as it stood.
        let newest = self.states.last_mut().expect("a state");
        *newest = State { revision: newest.revision.clone(), nouns: self.now.clone() }.into();
    }

    fn id(&mut self, noun: usize) -> String {
        loop {
            let prefix = self.dice.word(PREFIXES);
            // Ids of decisions come back after they were deleted.
            let number = if noun == DECISIONS { self.dice.below(100) } else { 100 + self.made };
            let id = format!("{prefix}{number}");
            self.made += 1;
            if !self.now[noun].iter().any(|row| row.id == id && !row.hidden) {
                return id;
            }
        }
    }

    fn share(&mut self) -> Option<f64> {
        self.dice.chance(75).then(|| *self.dice.pick(SHARES))
    }

    fn time(&mut self) -> Option<Timestamp> {
        let [first, last] = TIMES;
        let times = [
            first,
            last,
            last - 1,
            -1,
            1,
            999_999,
            SOME_DAY,
            SOME_DAY + 1,
            SOME_DAY - 1,
            SOME_DAY + 1_000_000,
        ];
        let nanos = *self.dice.pick(&[0, 0, 1, 999]);
        self.dice.chance(70).then(|| timestamp(*self.dice.pick(&times), nanos))
    }

    fn decision(&mut self) -> pb::Decision {
        let labels = (0..self.dice.below(5)).map(|_| {
            let key = self.dice.word(LABELS);
            (key.to_owned(), self.dice.text())
        });
        let labels: BTreeMap<_, _> = labels.collect();
        let inputs = ["1", "2", "3"];
        pb::Decision {
            input_data: Some(object(&[("n", self.dice.word(&inputs))])),
            final_verdict: self.dice.word(VERDICTS).to_owned(),
            avg_confidence: self.share(),
            ambiguity: self.share(),
            model_version: self.dice.text(),
            trace_id: self.dice.text(),
            subject_id: if self.dice.chance(30) { String::new() } else { self.dice.text() },
            retention_class: self.dice.word(&["", "a", "é", "short", "short_", "x%y"]).to_owned(),
            decide_time: self.time(),
            metadata: if self.dice.chance(85) { Some(self.object(1).into()) } else { None },
            labels,
            ..Default::default()
        }
    }

    fn object(&mut self, depth: usize) -> Struct {
        let members = (0..self.dice.below(5)).map(|_| {
            let key = self.dice.word(MEMBERS);
            (key.to_owned(), self.json(depth))
        });
        Struct { fields: members.collect() }
    }

    fn json(&mut self, depth: usize) -> Value {
        const NUMBERS: &[f64] = &[
            0.0,
            -0.0,
            1.0,
            -1.0,
            1.5,
            2.0,
            10.0,
            0.1,
            0.3,
            0.1 + 0.2,
            5e-324,
            1e-300,
            1e15,
            9_007_199_254_740_991.0,
            -9_007_199_254_740_991.0,
        ];
        let kind = match self.dice.below(16) {
            0..=3 => Kind::NumberValue(*self.dice.pick(NUMBERS)),
            4..=6 => Kind::StringValue(self.dice.text()),
            7 => Kind::BoolValue(self.dice.chance(50)),
            8 => Kind::NullValue(0),
            9..=10 => {
                let values = (0..self.dice.below(3)).map(|_| self.json(depth + 1));
                Kind::ListValue(ListValue { values: values.collect() })
            }
            // As deep as paths go, and deeper.
            _ if depth < 10 => Kind::StructValue(self.object(depth + 1)),
            _ => Kind::NumberValue(1.0),
        };
        Value { kind: Some(kind) }
    }

    fn rule(&mut self) -> pb::PolicyRule {
        let (effective_time, mut retire_time) = (self.time(), self.time());
        let early = effective_time.zip(retire_time).is_some_and(|(from, to)| {
            (to.seconds, to.nanos / 1000) < (from.seconds, from.nanos / 1000)
        });
        if early {
            retire_time = effective_time;
        }
        pb::PolicyRule {
            name: format!("a{}", self.dice.text()),
            rule_type: self.dice.text(),
            severity: self.dice.text(),
            active: self.dice.chance(50),
            effective_time,
            retire_time,
            ..Default::default()
        }
    }

    fn r#override(&mut self) -> pb::Override {
        pb::Override {
            proposed_outcome: self.dice.word(&["OTHER", "OTHER_", "NONE"]).to_owned(),
            justification: "because it was wrong".into(),
            reason_category: self.dice.text().chars().take(15).collect(),
            reviewer_id: format!("{}r", self.dice.text()),
            reviewer_role: self.dice.text(),
            urgent: self.dice.chance(50),
            priority: *self.dice.pick(&[0, 1, 2, 9, 10]),
            ..Default::default()
        }
    }

    fn critic_output(&mut self, n: usize) -> pb::CriticOutput {
        pb::CriticOutput {
            id: format!("{}{}-{n}", self.dice.word(&["c", "C", "c."]), self.made),
            critic: format!("{}c", self.dice.text()),
            verdict: self.dice.word(VERDICTS).to_owned(),
            confidence: *self.dice.pick(SHARES),
            priority: self.dice.word(&["", "override", "veto"]).to_owned(),
            config_version: self.dice.text(),
            evaluate_time: self.time(),
            ..Default::default()
        }
    }
}
