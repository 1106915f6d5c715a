//! Consensuses: what the frameworks agreed on about a claim. One is current, and the earlier ones stay (C28).

use super::Store;
use super::caller::Caller;
use super::canonical::Json;
use super::change::{OnConflict, advance, insert_all, rows_of, stamp};
use super::child::Parent;
use super::filter::{Field, FieldKind};
use super::list::Listing;
use super::log::{Entry, LogRow};
use super::noun::Noun;
use super::write::{Applied, Change, Outcome, RowKey, Shown, Tx};
use crate::{Error, Result, child, noun, queries};
use futures_util::future::BoxFuture;
use std::collections::HashMap;
use std::sync::Arc;

noun! {
    pub struct Consensus in "consensus" as consensus + [children::QUERIES, QUERIES]
    within "claim" by claim_id
    refers [claim_id -> "claim" as claim_uid, decision_id -> "decision" as decision_uid]
    {
        pub claim_id: String,
        pub consensus_result: Json,
        pub participating_frameworks: Json,
        pub consensus_type: String,
        pub consensus_confidence: f64,
        pub decision_time_us: Option<i64>,
        pub verification_ids: Json,
        pub decision_id: String,
        pub current: bool,
        pub supersedes_id: String,
        pub superseded_by_id: String,
    }

    fn is_given(&self, field: &str) -> bool {
        !matches!(field, "current" | "supersedes_id" | "superseded_by_id")
    }

    fn size_bytes(&self) -> usize {
        512 + self.consensus_result.text().len() + self.verification_ids.text().len()
    }
}

impl Parent for Consensus {}

pub static LISTING: Listing = Listing {
    kind: "consensus",
    table: "consensus",
    op: "consensus.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("claim_id", "d.claim_id", FieldKind::Text),
        Field::new("consensus_type", "d.consensus_type", FieldKind::Text),
        Field::new("consensus_confidence", "d.consensus_confidence", FieldKind::Float),
        Field::new("decision_id", "d.decision_id", FieldKind::Text),
        Field::new("current", "d.current", FieldKind::Bool),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("participating_frameworks", "d.participating_frameworks", FieldKind::Texts),
        Field::new("verification_ids", "d.verification_ids", FieldKind::Texts),
    ],
};

child!(Consensus in "consensus" of claim_id, settle: step_back);

/// While a claim was deleted, its id may have got another consensus, which stays the current one.
async fn step_back(tx: &Tx<'_>, rows: &mut [Consensus]) -> Result<()> {
    let claims: Vec<String> =
        rows.iter().filter(|row| row.current).map(|row| row.claim_id.clone()).collect();
    if claims.is_empty() {
        return Ok(());
    }
    let mut stepped = Vec::new();
    for current in tx.run(&LOCK_CURRENT, &(claims,)).await? {
        for row in rows.iter_mut().filter(|row| row.current && row.claim_id == current.claim_id) {
            row.current = false;
            row.superseded_by_id.clone_from(&current.id);
            stepped.push(row.clone());
        }
    }
    tx.save(&stepped).await
}

queries! { "consensus" {
    /// The current ones of claims.
    CURRENT(Vec<String>) -> Consensus =
        "SELECT {*} FROM consensus WHERE claim_id = ANY($1) AND current AND delete_time IS NULL";
    LOCK_CURRENT(Vec<String>) -> Consensus =
        "SELECT {*} FROM consensus WHERE claim_id = ANY($1) AND current AND delete_time IS NULL FOR UPDATE";
} }

/// A consensus to become its claim's current one.
pub struct CreateConsensus {
    pub row: Consensus,
    pub on_conflict: OnConflict,
}

/// What became of a wish for a consensus.
pub enum Agreed {
    /// It is the current one; the one that it superseded stands beside it.
    New(Box<Consensus>, Option<Box<Consensus>>),
    /// The current one says the same.
    Equal(Box<Consensus>),
}

/// Makes each the current consensus of its claim, at most one for a claim. An error says in addition whether a part was
/// written.
pub async fn agree(
    tx: &Tx<'_>,
    wishes: &[(&CreateConsensus, &Caller)],
) -> Result<Vec<Result<Agreed, (Error, bool)>>> {
    let claims: Vec<String> = wishes.iter().map(|(wish, _)| wish.row.claim_id.clone()).collect();
    let current = tx.run(&LOCK_CURRENT, &(claims,)).await?.into_iter();
    let mut current: HashMap<String, Consensus> =
        current.map(|row| (row.claim_id.clone(), row)).collect();

    let mut results: Vec<Option<Result<Agreed, (Error, bool)>>> = Vec::new();
    let (mut superseded, mut new) = (Vec::new(), Vec::new());
    for (CreateConsensus { row, on_conflict }, caller) in wishes {
        let mut row = stamp(row, caller.acting(), tx.now);
        row.current = true;
        let Some(mut there) = current.remove(&row.claim_id) else {
            new.push((*caller, vec![row], None));
            results.push(None);
            continue;
        };
        let mut fields = there.differing_fields(&row);
        if row.id == row.meta.uid.to_string() {
            fields.retain(|field| field != "id");
        }
        results.push(match on_conflict {
            OnConflict::Fail => Some(Err((Consensus::taken(&there.id), false))),
            _ if fields.is_empty() => Some(Ok(Agreed::Equal(Box::new(there)))),
            OnConflict::ReturnIfEqual => {
                Some(Err((Error::Taken { kind: Consensus::KIND, id: there.id, fields }, false)))
            }
            OnConflict::Replace => {
                there.current = false;
                there.superseded_by_id.clone_from(&row.id);
                advance(&mut there, caller.acting(), tx.now);
                row.supersedes_id.clone_from(&there.id);
                superseded.push(there.clone());
                new.push((*caller, vec![row], Some(there)));
                None
            }
        });
    }
    // First the old one steps back: an index allows no two.
    tx.save(&superseded).await?;
    let rows: Vec<_> = new.iter().map(|(caller, rows, _)| (*caller, rows.clone())).collect();
    let mut made = insert_all(tx, &rows).await?.into_iter().zip(new);
    let results = results.into_iter().map(|result| match result {
        Some(result) => Ok(result),
        None => match made.next() {
            // The one before has stepped back, or the new one is there and refers to what is not.
            Some((Some(error), _)) => Ok(Err((error, true))),
            Some((None, (_, rows, there))) => {
                let row = rows.into_iter().next();
                let row = row.ok_or_else(|| Error::internal("a consensus without a row"))?;
                Ok(Ok(Agreed::New(Box::new(row), there.map(Box::new))))
            }
            None => Err(Error::internal("a consensus without a result")),
        },
    });
    results.collect()
}

impl Agreed {
    /// The consensus, with the log entries of what was written and the versions that were there before.
    pub fn traced(self) -> (Consensus, Vec<Entry>, Vec<Shown>) {
        match self {
            Agreed::New(row, there) => {
                let mut entries = vec![Entry::of(&*row, "CREATE")];
                entries.extend(there.map(|there| Entry::of(&*there, "SUPERSEDE")));
                (*row, entries, Vec::new())
            }
            Agreed::Equal(row) => {
                let shown = vec![Shown::of(&*row)];
                (*row, Vec::new(), shown)
            }
        }
    }
}

impl Change for CreateConsensus {
    type Answer = Consensus;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.push(RowKey::new(&[Consensus::KIND, &self.row.id]));
        rows.push(RowKey::new(&["consensus of", &self.row.claim_id]));
    }

    fn size_bytes(&self) -> usize {
        self.row.size_bytes()
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        vec![(Consensus::KIND, &self.row.id)]
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Consensus>>>> {
        Box::pin(async move {
            let wishes: Vec<_> = changes.iter().map(|a| (a.change, a.caller)).collect();
            let results = agree(tx, &wishes).await?.into_iter();
            let outcomes = results.map(|result| match result {
                Ok(agreed) => {
                    let (answer, entries, shown) = agreed.traced();
                    Outcome::Done { answer, entries, shown }
                }
                Err((error, false)) => Outcome::Failed(error),
                Err((error, true)) => Outcome::Spoiled(error),
            });
            Ok(outcomes.collect())
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Consensus> {
        // The superseded one is noted behind the new one.
        let first = rows_of(entries)?.into_iter().next();
        first.ok_or_else(|| Error::internal("a replayed answer lacks a row"))
    }
}

impl Store {
    /// The current consensus of a claim.
    pub async fn current_consensus(&self, caller: &Caller, claim_id: &str) -> Result<Consensus> {
        let params = Arc::new((vec![claim_id.to_owned()],));
        let found = self
            .snapshot(caller, CURRENT.name, move |snapshot| {
                let params = Arc::clone(&params);
                Box::pin(async move {
                    let rows = snapshot.all(&CURRENT, &*params).await?;
                    snapshot.end(rows).await
                })
            })
            .await?;
        found
            .into_iter()
            .next()
            .ok_or_else(|| Error::not_found("current consensus of claim", claim_id))
    }
}
