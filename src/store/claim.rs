//! Claims: what was said, to be verified.

use super::Store;
use super::caller::Caller;
use super::canonical::Json;
use super::change::{
    Created, OnConflict, Placed, create_all, in_order_of, insert_all, rows_of, stamp,
};
use super::child::{self, Child as _, Move, Moved, Parent, are_there};
use super::consensus::{self, Agreed, Consensus, CreateConsensus};
use super::filter::{Field, FieldKind};
use super::list::Listing;
use super::log::{Entry, LogRow};
use super::noun::Noun;
use super::verification::{FRAMEWORKS_MAX, Verification};
use super::write::{Applied, Change, Foreseen, Insert, Outcome, RowKey, Tx};
use crate::{Error, Result, noun, queries, row};
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::time::SystemTime;

noun! {
    pub struct Claim in "claim" as claim + [QUERIES]
    awaited [
        "verification".claim_id as claim_uid, "consensus".claim_id as claim_uid,
        "training_example".claim_id as claim_uid
    ]
    {
        pub content: String,
        pub claim_type: String,
        pub source: String,
        pub metadata: Json,
        pub labels: Json,
        pub retention_class: String,
        pub subject_id: String,
    }

    fn size_bytes(&self) -> usize {
        512 + self.content.len() + self.metadata.text().len()
    }
}

pub static LISTING: Listing = Listing {
    kind: "claim",
    table: "claim",
    op: "claim.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("claim_type", "d.claim_type", FieldKind::Text),
        Field::new("source", "d.source", FieldKind::Text),
        Field::new("subject_id", "d.subject_id", FieldKind::Text),
        Field::new("retention_class", "d.retention_class", FieldKind::Text),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("update_time", "d.update_time", FieldKind::Time),
        Field::new("labels", "d.labels", FieldKind::Labels),
        Field::new("metadata", "d.metadata", FieldKind::Json),
    ],
};

impl Parent for Claim {
    const PARTS_COME_ALONE: bool = true;

    fn move_children<'a>(tx: &'a Tx<'a>, moves: &'a [Move<'a>]) -> BoxFuture<'a, Result<Moved>> {
        Box::pin(async move {
            let mut moved = child::move_children::<Verification>(tx, moves).await?;
            moved.extend(child::move_children::<Consensus>(tx, moves).await?);
            Ok(moved)
        })
    }
}

/// Records claims, all or none, each with what was found about it (F238 to F240).
pub struct CreateClaims {
    claims: Vec<Claim>,
    /// Of each claim, in the same order.
    verifications: Vec<Vec<Verification>>,
    consensuses: Vec<Option<CreateConsensus>>,
    on_conflict: OnConflict,
}

/// A claim to be recorded, with its results, whose claim_id is filled in here.
pub struct NewClaim {
    pub claim: Claim,
    pub verifications: Vec<Verification>,
    pub consensus: Option<Consensus>,
}

/// What was recorded, in the order of the request.
#[derive(Default)]
pub struct CreatedClaims {
    pub claims: Vec<Claim>,
    pub verifications: Vec<Verification>,
    pub consensuses: Vec<Consensus>,
}

impl CreateClaims {
    pub fn new(new: Vec<NewClaim>, on_conflict: OnConflict) -> Self {
        let mut all = Self {
            claims: Vec::new(),
            verifications: Vec::new(),
            consensuses: Vec::new(),
            on_conflict,
        };
        for NewClaim { claim, mut verifications, consensus } in new {
            for verification in &mut verifications {
                verification.claim_id.clone_from(&claim.id);
            }
            all.verifications.push(verifications);
            all.consensuses.push(consensus.map(|mut row| {
                row.claim_id.clone_from(&claim.id);
                CreateConsensus { row, on_conflict }
            }));
            all.claims.push(claim);
        }
        all
    }
}

impl Change for CreateClaims {
    type Answer = CreatedClaims;

    const FORESEE: Option<fn(&[Applied<'_, Self>], SystemTime) -> Foreseen<CreatedClaims>> =
        Some(foresee);

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.extend(self.claims.iter().map(|row| RowKey::new(&[Claim::KIND, &row.id])));
        let verifications = self.verifications.iter().flatten();
        rows.extend(verifications.map(|row| RowKey::new(&[Verification::KIND, &row.id])));
        self.consensuses.iter().flatten().for_each(|consensus| consensus.touches(rows));
    }

    fn size_bytes(&self) -> usize {
        self.claims.iter().map(Claim::size_bytes).sum::<usize>()
            + self.verifications.iter().flatten().map(Verification::size_bytes).sum::<usize>()
            + self.consensuses.iter().flatten().map(Change::size_bytes).sum::<usize>()
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        let verifications = self.verifications.iter().flatten();
        let verifications = verifications.map(|row| (Verification::KIND, row.id.as_str()));
        let agreed = self.consensuses.iter().flatten().flat_map(Change::about);
        let claims = self.claims.iter().map(|row| (Claim::KIND, row.id.as_str()));
        claims.chain(verifications).chain(agreed).collect()
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<CreatedClaims>>>> {
        Box::pin(async move {
            let creates: Vec<_> = changes
                .iter()
                .map(|a| (a.change.claims.as_slice(), a.change.on_conflict, a.caller))
                .collect();
            let claims = create_all(tx, &creates).await?;
            let mut attempts: Vec<Attempt> = claims.into_iter().map(Attempt::new).collect();
            verify(tx, changes, &mut attempts).await?;
            agree(tx, changes, &mut attempts).await?;
            Ok(attempts.into_iter().map(Attempt::outcome).collect())
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<CreatedClaims> {
        let given: Vec<Verification> = self.verifications.iter().flatten().cloned().collect();
        let agreed = self.consensuses.iter().flatten();
        let agreed: Vec<Consensus> = agreed.map(|consensus| consensus.row.clone()).collect();
        // What was superseded stands in the log, too, and is not the answer.
        let consensuses: Vec<Consensus> = rows_of(entries)?;
        let current = consensuses.into_iter().filter(|row| row.current).collect();
        Ok(CreatedClaims {
            claims: in_order_of(&self.claims, rows_of(entries)?)?,
            verifications: in_order_of(&given, rows_of(entries)?)?,
            consensuses: in_order_of(&agreed, current)?,
        })
    }
}

/// One change on its way through the steps.
struct Attempt {
    outcome: Outcome<CreatedClaims>,
    /// Which of the claims were there before.
    placed: Vec<Placed>,
}

impl Attempt {
    fn new(created: Result<Created<Claim>, (Error, bool)>) -> Self {
        match created {
            Ok(created) => {
                let (entries, shown) = created.traces();
                let (claims, placed) = created.rows.into_iter().unzip();
                let answer = CreatedClaims { claims, ..CreatedClaims::default() };
                Self { outcome: Outcome::Done { answer, entries, shown }, placed }
            }
            Err((error, true)) => Self { outcome: Outcome::Spoiled(error), placed: Vec::new() },
            Err((error, false)) => Self { outcome: Outcome::Failed(error), placed: Vec::new() },
        }
    }

    fn refuse(&mut self, error: Error) {
        let wrote = match &self.outcome {
            Outcome::Done { entries, .. } => !entries.is_empty(),
            Outcome::Failed(_) => false,
            Outcome::Spoiled(_) => true,
        };
        self.outcome = if wrote { Outcome::Spoiled(error) } else { Outcome::Failed(error) };
    }

    fn outcome(self) -> Outcome<CreatedClaims> {
        self.outcome
    }
}

/// Adds the verifications. Those of a claim that is there and equal must be there, too.
async fn verify(
    tx: &Tx<'_>,
    changes: &[Applied<'_, CreateClaims>],
    attempts: &mut [Attempt],
) -> Result<()> {
    let equal = |attempt: &Attempt, change: &CreateClaims| -> Vec<String> {
        let pairs = attempt.placed.iter().zip(&change.claims).zip(&change.verifications);
        let equal =
            pairs.filter(|((placed, _), given)| **placed == Placed::Equal && !given.is_empty());
        equal.map(|((_, claim), _)| claim.id.clone()).collect()
    };
    let compared: Vec<String> =
        attempts.iter().zip(changes).flat_map(|(attempt, a)| equal(attempt, a.change)).collect();
    let there = match compared.is_empty() {
        true => Vec::new(),
        false => tx.run(Verification::of_live(), &(compared,)).await?,
    };
    let mut new = Vec::new();
    for (attempt, Applied { change, caller }) in attempts.iter_mut().zip(changes) {
        let mut mine = Vec::new();
        let mut missing = None;
        for ((placed, claim), given) in
            attempt.placed.iter().zip(&change.claims).zip(&change.verifications)
        {
            if *placed != Placed::Equal {
                mine.extend(given.iter().map(|row| stamp(row, caller.acting(), tx.now)));
            } else if !are_there(given, &there) {
                missing.get_or_insert_with(|| claim.id.clone());
            }
        }
        if let Some(id) = missing {
            let fields = vec!["verifications".to_owned()];
            attempt.refuse(Error::Taken { kind: Claim::KIND, id, fields });
            mine.clear();
        }
        new.push((*caller, mine));
    }
    let wrong = insert_all(tx, &new).await?;
    for ((attempt, (_, rows)), wrong) in attempts.iter_mut().zip(new).zip(wrong) {
        if let Outcome::Done { answer, entries, .. } = &mut attempt.outcome {
            entries.extend(rows.iter().map(|row| Entry::of(row, "CREATE")));
            answer.verifications = rows;
        }
        if let Some(error) = wrong {
            attempt.refuse(error);
        }
    }
    Ok(())
}

/// Adds the consensuses.
async fn agree(
    tx: &Tx<'_>,
    changes: &[Applied<'_, CreateClaims>],
    attempts: &mut [Attempt],
) -> Result<()> {
    let mut wishes = Vec::new();
    for (attempt, Applied { change, caller }) in attempts.iter().zip(changes) {
        if matches!(attempt.outcome, Outcome::Done { .. }) {
            wishes.extend(change.consensuses.iter().flatten().map(|wish| (wish, *caller)));
        }
    }
    if wishes.is_empty() {
        return Ok(());
    }
    let mut agreed = consensus::agree(tx, &wishes).await?.into_iter();
    for (attempt, Applied { change, .. }) in attempts.iter_mut().zip(changes) {
        if !matches!(attempt.outcome, Outcome::Done { .. }) {
            continue;
        }
        for result in agreed.by_ref().take(change.consensuses.iter().flatten().count()) {
            match (result.map(Agreed::traced), &mut attempt.outcome) {
                (Ok((row, new, seen)), Outcome::Done { answer, entries, shown }) => {
                    answer.consensuses.push(row);
                    entries.extend(new);
                    shown.extend(seen);
                }
                (Ok(_), _) => {}
                (Err((error, _)), _) => attempt.refuse(error),
            }
        }
    }
    Ok(())
}

fn foresee(changes: &[Applied<'_, CreateClaims>], now: SystemTime) -> Foreseen<CreatedClaims> {
    let mut outcomes: Vec<(CreatedClaims, Vec<Entry>)> = Vec::with_capacity(changes.len());
    for Applied { change, caller } in changes {
        let author = caller.acting();
        let mut answer = CreatedClaims {
            claims: change.claims.iter().map(|row| stamp(row, author, now)).collect(),
            ..CreatedClaims::default()
        };
        let verifications = change.verifications.iter().flatten();
        answer.verifications = verifications.map(|row| stamp(row, author, now)).collect();
        for CreateConsensus { row, .. } in change.consensuses.iter().flatten() {
            let mut row = stamp(row, author, now);
            row.current = true;
            answer.consensuses.push(row);
        }
        let mut entries: Vec<_> =
            answer.claims.iter().map(|row| Entry::of(row, "CREATE")).collect();
        entries.extend(answer.verifications.iter().map(|row| Entry::of(row, "CREATE")));
        entries.extend(answer.consensuses.iter().map(|row| Entry::of(row, "CREATE")));
        outcomes.push((answer, entries));
    }
    let claims: Vec<&Claim> = outcomes.iter().flat_map(|(made, _)| &made.claims).collect();
    let verifications: Vec<_> = outcomes.iter().flat_map(|(made, _)| &made.verifications).collect();
    let consensuses: Vec<_> = outcomes.iter().flat_map(|(made, _)| &made.consensuses).collect();
    let mut inserts = Insert::all_of(&claims);
    inserts.extend(Insert::all_of(&verifications));
    inserts.extend(Insert::all_of(&consensuses));
    Foreseen { inserts, outcomes }
}

row! {
    pub struct Count {
        pub count: i64,
    }
}

queries! { "claim" {
    /// The newest verification of each framework: (claim, at most).
    LATEST_VERIFICATIONS(String, i64) -> Verification =
        "SELECT DISTINCT ON (framework) {*} FROM verification WHERE claim_id = $1 AND delete_time IS NULL \
         ORDER BY framework, create_time DESC, uid DESC LIMIT $2";
    VERIFICATION_COUNT(String) -> Count =
        "SELECT count(*) AS count FROM verification WHERE claim_id = $1 AND delete_time IS NULL";
} }

/// A claim with its newest results, at one moment.
pub struct Summary {
    /// None while only results of it are recorded.
    pub claim: Option<Claim>,
    pub latest_verifications: Vec<Verification>,
    pub consensus: Option<Consensus>,
    pub verification_count: i64,
    pub seq: i64,
}

impl Store {
    pub async fn claim_summary(&self, caller: &Caller, id: &str) -> Result<Summary> {
        let params = Arc::new(id.to_owned());
        let summary = self
            .snapshot(caller, "claim.SUMMARY", move |snapshot| {
                let id = Arc::clone(&params);
                Box::pin(async move {
                    let ids = (vec![String::clone(&id)],);
                    let of_id = (String::clone(&id),);
                    let at_most = (String::clone(&id), FRAMEWORKS_MAX as i64);
                    let seq = snapshot.head;
                    let claim = snapshot.all(Claim::get(), &ids).await?.pop();
                    let latest_verifications =
                        snapshot.all(&LATEST_VERIFICATIONS, &at_most).await?;
                    let consensus = snapshot.all(&consensus::CURRENT, &ids).await?.pop();
                    let count = snapshot.all(&VERIFICATION_COUNT, &of_id).await?;
                    let verification_count = count.first().map_or(0, |row| row.count);
                    snapshot
                        .end(Summary {
                            claim,
                            latest_verifications,
                            consensus,
                            verification_count,
                            seq,
                        })
                        .await
                })
            })
            .await?;
        let Summary { claim, consensus, verification_count, .. } = &summary;
        if claim.is_none() && consensus.is_none() && *verification_count == 0 {
            return Err(Error::not_found(Claim::KIND, id));
        }
        Ok(summary)
    }
}
