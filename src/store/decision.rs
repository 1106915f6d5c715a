//! Decisions: what a machine decided about a case, and where it stands.

use super::Store;
use super::attachment::Attachment;
use super::caller::Caller;
use super::canonical::Json;
use super::change::{
    Created, OnConflict, Placed, create_all, in_order_of, rows_of, stamp, when_recorded,
};
use super::child::{self, Child as _, Hide, Move, Moved, Parent};
use super::critic_output::CriticOutput;
use super::evidence::cited_parts;
use super::evidence_bundle::EvidenceBundle;
use super::filter::{Field, FieldKind, Params as Dynamic};
use super::list::{ListQuery, Listing};
use super::log::{Entry, LogRow};
use super::noun::Noun;
use super::r#override::Override;
use super::write::{Applied, Change, Embeddings, Foreseen, Insert, Outcome, RowKey, Tx};
use crate::{Error, Result, noun};
use futures_util::future::BoxFuture;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

noun! {
    pub struct Decision in "decision" as decision
    awaited ["consensus".decision_id as decision_uid, "precedent".decision_id as decision_uid]
    {
        pub input_data: Json,
        pub final_verdict: String,
        pub reason: String,
        pub avg_confidence: Option<f64>,
        pub ambiguity: Option<f64>,
        pub verdict_scores: Json,
        pub citations: Json,
        pub evidence: Json,
        pub policy_rules: Json,
        /// 1 final, 2 overridden.
        pub state: i16,
        pub model_version: String,
        pub trace_id: String,
        /// [`when_recorded`] until it is.
        pub decide_time: SystemTime,
        pub processing_time_us: Option<i64>,
        pub metadata: Json,
        pub labels: Json,
        pub retention_class: String,
        pub subject_id: String,
        pub case_hash: String,
    }

    fn is_given(&self, field: &str) -> bool {
        match field {
            "state" => false,
            "decide_time" => self.decide_time != self.meta.create_time,
            _ => true,
        }
    }

    fn stamp(&mut self, now: SystemTime) {
        if self.decide_time == when_recorded() {
            self.decide_time = now;
        }
    }

    fn size_bytes(&self) -> usize {
        512 + self.reason.len() + self.input_data.text().len() + self.metadata.text().len()
    }
}

pub const FINAL: i16 = 1;
pub const OVERRIDDEN: i16 = 2;

const STATES: FieldKind = FieldKind::Enum {
    prefix: "DECISION_STATE_",
    names: &[("FINAL", FINAL), ("OVERRIDDEN", OVERRIDDEN)],
};

pub static LISTING: Listing = Listing {
    kind: "decision",
    table: "decision",
    op: "decision.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("final_verdict", "d.final_verdict", FieldKind::Text),
        Field::new("avg_confidence", "d.avg_confidence", FieldKind::Float).nullable(),
        Field::new("ambiguity", "d.ambiguity", FieldKind::Float).nullable(),
        Field::new("state", "d.state", STATES),
        Field::new("model_version", "d.model_version", FieldKind::Text),
        Field::new("trace_id", "d.trace_id", FieldKind::Text),
        Field::new("subject_id", "d.subject_id", FieldKind::Text),
        Field::new("retention_class", "d.retention_class", FieldKind::Text),
        Field::new("case_hash", "d.case_hash", FieldKind::Text),
        Field::new("decide_time", "d.decide_time", FieldKind::Time),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("update_time", "d.update_time", FieldKind::Time),
        Field::new("labels", "d.labels", FieldKind::Labels),
        Field::new("metadata", "d.metadata", FieldKind::Json),
    ],
};

/// A decision to be recorded, with its critics' outputs.
pub struct NewDecision {
    pub decision: Decision,
    pub critic_outputs: Vec<CriticOutput>,
}

/// Records decisions, all or none.
pub struct CreateDecisions {
    decisions: Vec<Decision>,
    /// Of each decision, in the same order.
    critic_outputs: Vec<Vec<CriticOutput>>,
    on_conflict: OnConflict,
}

impl CreateDecisions {
    pub fn new(new: Vec<NewDecision>, on_conflict: OnConflict) -> Self {
        let (decisions, critic_outputs) =
            new.into_iter().map(|new| (new.decision, new.critic_outputs)).unzip();
        Self { decisions, critic_outputs, on_conflict }
    }
}

impl Change for CreateDecisions {
    type Answer = Vec<Decision>;

    const FORESEE: Option<fn(&[Applied<'_, Self>], SystemTime) -> Foreseen<Vec<Decision>>> =
        Some(foresee);

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.extend(self.decisions.iter().map(|row| RowKey::new(&[Decision::KIND, &row.id])));
    }

    fn size_bytes(&self) -> usize {
        self.decisions.iter().map(Decision::size_bytes).sum::<usize>()
            + self.critic_outputs.iter().flatten().map(CriticOutput::size_bytes).sum::<usize>()
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        let critics = self.critic_outputs.iter().flatten();
        let critics = critics.map(|row| (CriticOutput::KIND, row.id.as_str()));
        self.decisions.iter().map(|row| (Decision::KIND, row.id.as_str())).chain(critics).collect()
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Vec<Decision>>>>> {
        Box::pin(async move {
            let creates: Vec<_> = changes
                .iter()
                .map(|a| (a.change.decisions.as_slice(), a.change.on_conflict, a.caller))
                .collect();
            let results = create_all(tx, &creates).await?;

            // What was there before is equal only if the critic outputs that were given are there, too.
            let equal = |created: &Created<Decision>, applied: &Applied<'_, Self>| -> Vec<String> {
                let pairs = created.rows.iter().zip(&applied.change.critic_outputs);
                let equal = pairs
                    .filter(|((_, placed), given)| *placed == Placed::Equal && !given.is_empty());
                equal.map(|((row, _), _)| row.id.clone()).collect()
            };
            let compared: Vec<String> = results
                .iter()
                .zip(changes)
                .filter_map(|(result, applied)| Some(equal(result.as_ref().ok()?, applied)))
                .flatten()
                .collect();
            let there = if compared.is_empty() {
                Vec::new()
            } else {
                tx.run(CriticOutput::of_live(), &(compared,)).await?
            };

            // A new decision has no critic outputs yet, so all of these are new, too.
            let mut critics = Vec::new();
            let mut outcomes = Vec::with_capacity(results.len());
            for (result, applied) in results.into_iter().zip(changes) {
                let created = match result {
                    Ok(created) => created,
                    Err((error, true)) => {
                        outcomes.push(Outcome::Spoiled(error));
                        continue;
                    }
                    Err((error, false)) => {
                        outcomes.push(Outcome::Failed(error));
                        continue;
                    }
                };
                let differs = created.rows.iter().zip(&applied.change.critic_outputs).find(
                    |((row, placed), given)| {
                        *placed == Placed::Equal && !are_there(row, given, &there)
                    },
                );
                if let Some(((row, _), _)) = differs {
                    let (kind, id) = (Decision::KIND, row.id.clone());
                    let error = Error::Taken { kind, id, fields: vec!["critic_outputs".into()] };
                    let dirty = created.rows.iter().any(|(_, placed)| *placed == Placed::New);
                    outcomes.push(match dirty {
                        true => Outcome::Spoiled(error),
                        false => Outcome::Failed(error),
                    });
                    continue;
                }
                let (mut entries, shown) = created.traces();
                for ((row, placed), given) in
                    created.rows.iter().zip(&applied.change.critic_outputs)
                {
                    if *placed != Placed::New {
                        continue;
                    }
                    let new = critics_of(row, given, applied.caller.acting(), tx.now);
                    entries.extend(new.iter().map(|critic| Entry::of(critic, "CREATE")));
                    critics.extend(new);
                }
                let answer = created.rows.into_iter().map(|(row, _)| row).collect();
                outcomes.push(Outcome::Done { answer, entries, shown });
            }
            if !critics.is_empty() && tx.insert(&critics).await?.contains(&false) {
                return Err(Error::internal("a new decision had a critic output of the same id"));
            }
            Ok(outcomes)
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Vec<Decision>> {
        in_order_of(&self.decisions, rows_of(entries)?)
    }
}

fn foresee(changes: &[Applied<'_, CreateDecisions>], now: SystemTime) -> Foreseen<Vec<Decision>> {
    let mut outcomes: Vec<(Vec<Decision>, _)> = Vec::with_capacity(changes.len());
    let mut critics = Vec::new();
    for Applied { change, caller } in changes {
        let author = caller.acting();
        let rows: Vec<Decision> =
            change.decisions.iter().map(|row| stamp(row, author, now)).collect();
        let mut entries: Vec<_> = rows.iter().map(|row| Entry::of(row, "CREATE")).collect();
        for (row, given) in rows.iter().zip(&change.critic_outputs) {
            let new = critics_of(row, given, author, now);
            entries.extend(new.iter().map(|critic| Entry::of(critic, "CREATE")));
            critics.extend(new);
        }
        outcomes.push((rows, entries));
    }
    let decisions: Vec<&Decision> = outcomes.iter().flat_map(|(rows, _)| rows).collect();
    let mut inserts = Insert::all_of(&decisions);
    inserts.extend(Insert::all_of(&critics.iter().collect::<Vec<_>>()));
    Foreseen { inserts, outcomes }
}

/// Whether each of the given critic outputs is one of those that are there.
fn are_there(decision: &Decision, given: &[CriticOutput], there: &[CriticOutput]) -> bool {
    let of_it = given.iter().cloned().map(|mut critic| {
        critic.decision_uid = decision.meta.uid;
        critic.decision_id.clone_from(&decision.id);
        critic
    });
    child::are_there(&of_it.collect::<Vec<_>>(), there)
}

/// The critic outputs that come with a new decision, as they are recorded.
fn critics_of(
    decision: &Decision,
    given: &[CriticOutput],
    author: &str,
    now: SystemTime,
) -> Vec<CriticOutput> {
    given
        .iter()
        .map(|critic| {
            let mut critic = stamp(critic, author, now);
            critic.decision_uid = decision.meta.uid;
            critic.decision_id.clone_from(&decision.id);
            critic
        })
        .collect()
}

impl Parent for Decision {
    fn move_children<'a>(tx: &'a Tx<'a>, moves: &'a [Move<'a>]) -> BoxFuture<'a, Result<Moved>> {
        Box::pin(async move {
            let mut moved = child::move_children::<CriticOutput>(tx, moves).await?;
            moved.extend(child::move_children::<Override>(tx, moves).await?);
            moved.extend(child::move_children::<EvidenceBundle>(tx, moves).await?);
            moved.extend(child::move_children::<Attachment>(tx, moves).await?);
            Ok(moved)
        })
    }
}

/// Deletes a decision with what belongs to it.
pub struct DeleteDecision {
    pub hide: Hide<Decision>,
    /// The numbers by which decisions cite bundles and attachments, where it is refused if another one cites its own.
    pub cited_as: Option<(i32, i32)>,
}

impl Change for DeleteDecision {
    type Answer = Option<Decision>;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        self.hide.touches(rows);
    }

    fn size_bytes(&self) -> usize {
        0
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        self.hide.about()
    }

    fn is_alone(&self) -> bool {
        self.hide.is_alone()
    }

    fn embeddings(&self) -> Embeddings {
        self.hide.embeddings()
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Option<Decision>>>>> {
        Box::pin(async move {
            let asked = changes.iter().filter_map(|a| Some((a.change.cited_as?, a.change.id())));
            let (numbers, ids): (Vec<_>, Vec<_>) = asked.unzip();
            let mut cited = match numbers.first() {
                Some(numbers) => cited_parts(tx, ids, *numbers).await?,
                None => HashMap::new(),
            };
            let refused: Vec<Option<Error>> = changes
                .iter()
                .map(|a| a.change.cited_as.and_then(|_| cited.remove(&a.change.id())))
                .collect();
            let free: Vec<Applied<'_, Hide<Decision>>> = changes
                .iter()
                .zip(&refused)
                .filter(|(_, refused)| refused.is_none())
                .map(|(a, _)| Applied { change: &a.change.hide, caller: a.caller })
                .collect();
            let mut hidden = Hide::apply(tx, &free).await?.into_iter();
            let outcome = |refused: Option<Error>| match refused {
                Some(error) => Ok(Outcome::Failed(error)),
                None => hidden.next().ok_or_else(|| Error::internal("a deletion without a result")),
            };
            refused.into_iter().map(outcome).collect()
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Option<Decision>> {
        self.hide.rebuild(entries)
    }
}

impl DeleteDecision {
    fn id(&self) -> String {
        self.hide.0.id.clone()
    }
}

/// What statistics are counted by.
#[derive(Clone, Debug, PartialEq)]
pub enum GroupBy {
    FinalVerdict,
    State,
    ModelVersion,
    RetentionClass,
    /// UTC, `2026-11-21`.
    Day,
    /// UTC, `2026-11-21T13`.
    Hour,
    Label(String),
}

impl GroupBy {
    fn sql(&self, params: &mut Dynamic) -> String {
        match self {
            GroupBy::FinalVerdict => "d.final_verdict".into(),
            GroupBy::State => {
                "CASE d.state WHEN 1 THEN 'FINAL' WHEN 2 THEN 'OVERRIDDEN' ELSE '' END".into()
            }
            GroupBy::ModelVersion => "d.model_version".into(),
            GroupBy::RetentionClass => "d.retention_class".into(),
            GroupBy::Day => "to_char(d.decide_time AT TIME ZONE 'UTC', 'YYYY-MM-DD')".into(),
            GroupBy::Hour => {
                "to_char(d.decide_time AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24')".into()
            }
            GroupBy::Label(key) => {
                format!("COALESCE(d.labels ->> {}, '')", params.push(key.clone()))
            }
        }
    }
}

/// Counts of one group; its values stand in the order of the grouping.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub key: Vec<String>,
    pub count: i64,
    pub avg_confidence: Option<f64>,
    pub override_rate: f64,
}

pub struct Statistics {
    pub total: Group,
    /// Largest first.
    pub groups: Vec<Group>,
    pub truncated: bool,
    pub seq: i64,
}

/// Groups in one answer.
pub const GROUPS_MAX: usize = 1000;

impl Store {
    /// Counts the selected decisions, all together and by group.
    pub async fn decision_statistics(
        &self,
        caller: &Caller,
        query: ListQuery,
        group_by: Vec<GroupBy>,
    ) -> Result<Statistics> {
        let asked = Arc::new((query, group_by));
        self.snapshot(caller, "decision.STATISTICS", move |snapshot| {
            let asked = Arc::clone(&asked);
            Box::pin(async move {
                let (query, group_by) = &*asked;
                let seq = snapshot.head;
                let total = count(&snapshot, query, &[]).await?.pop();
                let total = total.ok_or_else(|| Error::internal("a count without a row"))?;
                let mut groups = if group_by.is_empty() {
                    Vec::new()
                } else {
                    count(&snapshot, query, group_by).await?
                };
                let truncated = groups.len() > GROUPS_MAX;
                groups.truncate(GROUPS_MAX);
                snapshot.end(Statistics { total, groups, truncated, seq }).await
            })
        })
        .await
    }
}

async fn count(
    snapshot: &super::snapshot::Snapshot,
    query: &ListQuery,
    group_by: &[GroupBy],
) -> Result<Vec<Group>> {
    let mut params = Dynamic::default();
    let keys: Vec<String> = group_by.iter().map(|group| group.sql(&mut params)).collect();
    let conditions = query.conditions(&mut params).join(" AND ");
    let conditions = if conditions.is_empty() { "TRUE" } else { &conditions };
    let grouping = if keys.is_empty() {
        String::new()
    } else {
        // By the expressions themselves: a grouping by the array would compare arrays.
        format!(" GROUP BY {} ORDER BY count DESC, key LIMIT {}", keys.join(", "), GROUPS_MAX + 1)
    };
    let sql = format!(
        "SELECT ARRAY[{}]::text[] AS key, count(*) AS count, avg(d.avg_confidence) AS avg_confidence, \
         COALESCE(avg((d.state = {OVERRIDDEN})::int), 0)::float8 AS override_rate \
         FROM decision d WHERE {conditions}{grouping}",
        keys.join(", "),
    );
    let rows = snapshot.dynamic(&sql, &params).await?;
    rows.iter()
        .map(|row| {
            Ok(Group {
                key: row.try_get("key")?,
                count: row.try_get("count")?,
                avg_confidence: row.try_get("avg_confidence")?,
                override_rate: row.try_get("override_rate")?,
            })
        })
        .collect()
}
