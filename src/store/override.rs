//! Overrides: a person overrules a decision.

use super::canonical::Json;
use super::change::{Modify, modify_all, rows_of, stamp};
use super::child::Parent;
use super::decision::{Decision, OVERRIDDEN};
use super::filter::{Field, FieldKind};
use super::list::Listing;
use super::log::{Entry, LogRow};
use super::noun::Noun;
use super::write::{Applied, Change, Outcome, RowKey, Shown, Tx};
use crate::{Error, Result, child, noun};
use futures_util::future::BoxFuture;

noun! {
    pub struct Override in "override" as r#override + [children::QUERIES]
    within "decision" by decision_id
    {
        pub decision_uid: uuid::Uuid,
        pub decision_id: String,
        /// Empty until the decision is known.
        pub original_outcome: String,
        pub proposed_outcome: String,
        pub justification: String,
        pub reason_category: String,
        pub reviewer_id: String,
        pub reviewer_name: String,
        pub reviewer_role: String,
        pub reviewer_email: String,
        pub urgent: bool,
        pub priority: i32,
        pub expire_time: Option<std::time::SystemTime>,
        pub stakeholder_input: String,
        pub supporting_documents: Json,
        pub additional_context: Json,
    }

    fn size_bytes(&self) -> usize {
        512 + self.justification.len() + self.stakeholder_input.len() + self.additional_context.text().len()
    }
}

impl Parent for Override {}

pub static LISTING: Listing = Listing {
    kind: "override",
    table: "override",
    op: "override.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("decision_id", "d.decision_id", FieldKind::Text),
        Field::new("original_outcome", "d.original_outcome", FieldKind::Text),
        Field::new("proposed_outcome", "d.proposed_outcome", FieldKind::Text),
        Field::new("reason_category", "d.reason_category", FieldKind::Text),
        Field::new("reviewer_id", "d.reviewer_id", FieldKind::Text),
        Field::new("reviewer_role", "d.reviewer_role", FieldKind::Text),
        Field::new("urgent", "d.urgent", FieldKind::Bool),
        Field::new("priority", "d.priority", FieldKind::Int),
        Field::new("create_time", "d.create_time", FieldKind::Time),
    ],
};

child!(Override in "override" of decision_id);

/// Overrules a decision and marks it, in one transaction.
pub struct CreateOverride {
    /// Its decision_uid and, if empty, its original_outcome are filled in from the decision.
    row: Override,
    mark: Modify<Decision>,
}

impl CreateOverride {
    /// `decision_etag`: overrule only that version.
    pub fn new(row: Override, decision_etag: Option<String>) -> Self {
        let (original, proposed) = (row.original_outcome.clone(), row.proposed_outcome.clone());
        let mark = Modify {
            action: "OVERRIDE",
            ..Modify::update(
                row.decision_id.clone(),
                decision_etag,
                0,
                move |decision: &mut Decision, _| {
                    if !original.is_empty() && original != decision.final_verdict {
                        let is = format!(
                            "is not the decision's final_verdict, which is {}",
                            decision.final_verdict
                        );
                        return Err(Error::invalid("override.original_outcome", is));
                    }
                    if proposed == decision.final_verdict {
                        let same = "must differ from the decision's final_verdict";
                        return Err(Error::invalid("override.proposed_outcome", same));
                    }
                    decision.state = OVERRIDDEN;
                    Ok(())
                },
            )
        };
        Self { row, mark }
    }
}

impl Change for CreateOverride {
    type Answer = (Override, Decision);

    fn touches(&self, rows: &mut Vec<RowKey>) {
        self.mark.touches(rows);
        rows.push(RowKey::new(&[Override::KIND, &self.row.id]));
    }

    fn size_bytes(&self) -> usize {
        self.row.size_bytes()
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        vec![(Override::KIND, &self.row.id)]
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<(Override, Decision)>>>> {
        Box::pin(async move {
            let marks: Vec<_> = changes.iter().map(|a| (&a.change.mark, a.caller)).collect();
            let marked = modify_all(tx, &marks).await?;
            let mut rows = Vec::new();
            for (result, Applied { change, caller }) in marked.iter().zip(changes) {
                if let Ok(Some((decision, _))) = result {
                    let mut row = stamp(&change.row, caller.acting(), tx.now);
                    row.decision_uid = decision.meta.uid;
                    row.original_outcome.clone_from(&decision.final_verdict);
                    rows.push(row);
                }
            }
            let inserted = if rows.is_empty() { Vec::new() } else { tx.insert(&rows).await? };
            let mut next = rows.into_iter().zip(inserted);
            Ok(marked
                .into_iter()
                .map(|result| {
                    let (decision, changed) = match result {
                        Ok(Some(marked)) => marked,
                        Ok(None) => {
                            return Outcome::Failed(Error::internal(
                                "an override without its decision",
                            ));
                        }
                        Err(error) => return Outcome::Failed(error),
                    };
                    let Some((row, new)) = next.next() else {
                        return Outcome::Failed(Error::internal("an override was not inserted"));
                    };
                    if !new {
                        let error =
                            Error::Taken { kind: Override::KIND, id: row.id, fields: Vec::new() };
                        return if changed {
                            Outcome::Spoiled(error)
                        } else {
                            Outcome::Failed(error)
                        };
                    }
                    let mut entries = vec![Entry::of(&row, "CREATE")];
                    let mut shown = Vec::new();
                    if changed {
                        entries.push(Entry::of(&decision, "OVERRIDE"));
                    } else {
                        shown.push(Shown::of(&decision));
                    }
                    Outcome::Done { answer: (row, decision), entries, shown }
                })
                .collect())
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<(Override, Decision)> {
        let missing = || Error::internal("a replayed answer lacks a row");
        let row = rows_of(entries)?.pop().ok_or_else(missing)?;
        let decision = rows_of(entries)?.pop().ok_or_else(missing)?;
        Ok((row, decision))
    }
}
