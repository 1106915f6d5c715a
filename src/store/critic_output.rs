//! Critic outputs: each critic's part in a decision.

use super::canonical::Json;
use super::change::{in_order_of, rows_of, stamp};
use super::child::Parent;
use super::decision::Decision;
use super::filter::{Field, FieldKind};
use super::list::Listing;
use super::log::{Entry, LogRow};
use super::noun::Noun;
use super::write::{Applied, Change, Outcome, RowKey, Tx};
use crate::{Error, Result, child, noun};
use futures_util::future::BoxFuture;

noun! {
    pub struct CriticOutput in "critic_output" as critic_output + [children::QUERIES]
    within "decision" by decision_id
    {
        pub decision_uid: uuid::Uuid,
        pub decision_id: String,
        pub critic: String,
        pub verdict: String,
        pub confidence: f64,
        pub justification: String,
        pub weight: Option<f64>,
        pub priority: String,
        pub config_version: String,
        pub evaluate_time: Option<std::time::SystemTime>,
        pub evidence_sources: Json,
        pub details: Json,
    }

    const IDS_OF_TENANT: bool = false;

    fn size_bytes(&self) -> usize {
        512 + self.justification.len() + self.details.text().len()
    }
}

impl Parent for CriticOutput {}

pub static LISTING: Listing = Listing {
    kind: "critic_output",
    table: "critic_output",
    op: "critic_output.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("decision_id", "d.decision_id", FieldKind::Text),
        Field::new("critic", "d.critic", FieldKind::Text),
        Field::new("verdict", "d.verdict", FieldKind::Text),
        Field::new("confidence", "d.confidence", FieldKind::Float),
        Field::new("priority", "d.priority", FieldKind::Text),
        Field::new("config_version", "d.config_version", FieldKind::Text),
        Field::new("evaluate_time", "d.evaluate_time", FieldKind::Time).nullable(),
        Field::new("create_time", "d.create_time", FieldKind::Time),
    ],
};

child!(CriticOutput in "critic_output" of decision_id);

/// Adds critic outputs to a decision, all or none.
pub struct AddCriticOutputs {
    pub decision_id: String,
    pub rows: Vec<CriticOutput>,
}

impl Change for AddCriticOutputs {
    type Answer = Vec<CriticOutput>;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.push(RowKey::new(&[Decision::KIND, &self.decision_id]));
    }

    fn size_bytes(&self) -> usize {
        self.rows.iter().map(CriticOutput::size_bytes).sum()
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        self.rows.iter().map(|row| (CriticOutput::KIND, row.id.as_str())).collect()
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Vec<CriticOutput>>>>> {
        Box::pin(async move {
            let ids = changes.iter().map(|a| a.change.decision_id.clone()).collect();
            let decisions = tx.lock::<Decision>(ids).await?;
            let mut rows = Vec::new();
            for Applied { change, caller } in changes {
                if let Some(decision) = decisions.get(&change.decision_id) {
                    rows.extend(change.rows.iter().map(|row| {
                        let mut row = stamp(row, caller.acting(), tx.now);
                        row.decision_uid = decision.meta.uid;
                        row.decision_id.clone_from(&decision.id);
                        row
                    }));
                }
            }
            let inserted = if rows.is_empty() { Vec::new() } else { tx.insert(&rows).await? };
            let mut next = rows.into_iter().zip(inserted);
            Ok(changes
                .iter()
                .map(|Applied { change, .. }| {
                    if !decisions.contains_key(&change.decision_id) {
                        return Outcome::Failed(Error::not_found(
                            Decision::KIND,
                            &change.decision_id,
                        ));
                    }
                    let mine: Vec<_> = next.by_ref().take(change.rows.len()).collect();
                    if let Some((row, _)) = mine.iter().find(|(_, new)| !new) {
                        let error = Error::Taken {
                            kind: CriticOutput::KIND,
                            id: row.id.clone(),
                            fields: Vec::new(),
                        };
                        let written = mine.iter().any(|(_, new)| *new);
                        return if written {
                            Outcome::Spoiled(error)
                        } else {
                            Outcome::Failed(error)
                        };
                    }
                    let answer: Vec<CriticOutput> = mine.into_iter().map(|(row, _)| row).collect();
                    let entries = answer.iter().map(|row| Entry::of(row, "CREATE")).collect();
                    Outcome::Done { answer, entries, shown: Vec::new() }
                })
                .collect())
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Vec<CriticOutput>> {
        in_order_of(&self.rows, rows_of(entries)?)
    }
}
