//! What bundles and attachments have in common: they are added to a decision that is there, refer to a blob, and are not
//! deleted by the way while a decision cites them.

use super::attachment::Attachment;
use super::blob::reference::let_go;
use super::caller::Caller;
use super::change::{Modify, OnConflict, stamp};
use super::child::{Child, Hide, Parent};
use super::decision::Decision;
use super::evidence_bundle::EvidenceBundle;
use super::legal_hold::{self, Leaving};
use super::log::{self, LogRow};
use super::noun::Noun;
use super::query::Query;
use super::write::{Applied, Change, Embeddings, Outcome, RowKey, Tx};
use super::{Store, change};
use crate::{Error, Reason, Result, queries, row};
use futures_util::future::BoxFuture;
use std::collections::HashMap;
use std::sync::Arc;
use time::OffsetDateTime;
use uuid::Uuid;

row! {
    /// A decision that cites the n-th of those asked for, counted from 1.
    pub struct Cited {
        pub n: i64,
        pub decision_id: String,
    }
}

row! {
    /// Another decision that cites a part of one, by the number of its kind.
    pub struct CitedPart {
        pub decision_id: String,
        pub kind: i32,
        pub id: String,
        pub cited_by: String,
    }
}

queries! { "evidence" {
    /// One of the decisions that name each of these in their evidence: (numbers of the kinds, ids). All of them are
    /// gathered: for the first of any, PostgreSQL would rather go through decisions that cite nothing.
    CITED(Vec<i32>, Vec<String>) -> Cited =
        "SELECT u.n, c.ids[1] AS decision_id FROM unnest($1::int[], $2::text[]) WITH ORDINALITY AS u (kind, id, n) \
         CROSS JOIN LATERAL (SELECT array_agg(d.id) AS ids FROM decision AS d \
         WHERE d.delete_time IS NULL AND d.evidence <> '[]'::jsonb \
         AND d.evidence @> jsonb_build_array(jsonb_build_object('kind', u.kind, 'id', u.id))) AS c \
         WHERE c.ids IS NOT NULL ORDER BY u.n";
    /// The evidence of decisions that others cite: (ids, numbers of bundles and of attachments).
    CITED_PARTS(Vec<String>, i32, i32) -> CitedPart =
        "SELECT u.id AS decision_id, p.kind, p.id, c.ids[1] AS cited_by FROM unnest($1::text[]) AS u (id) \
         CROSS JOIN LATERAL (SELECT $2::int AS kind, b.id FROM evidence_bundle AS b \
           WHERE b.decision_id = u.id AND b.delete_time IS NULL \
           UNION ALL SELECT $3::int, a.id FROM attachment AS a WHERE a.decision_id = u.id AND a.delete_time IS NULL) AS p \
         CROSS JOIN LATERAL (SELECT array_agg(d.id) AS ids FROM decision AS d \
         WHERE d.delete_time IS NULL AND d.id <> u.id AND d.evidence <> '[]'::jsonb \
         AND d.evidence @> jsonb_build_array(jsonb_build_object('kind', p.kind, 'id', p.id))) AS c \
         WHERE c.ids IS NOT NULL";
} }

/// Of resources of one kind those that decisions cite, and what to tell who would delete them; asked by the number of the
/// kind in citations, and the id.
pub async fn cited(
    tx: &Tx<'_>,
    kind: &str,
    asked: Vec<(i32, String)>,
) -> Result<HashMap<String, Error>> {
    if asked.is_empty() {
        return Ok(HashMap::new());
    }
    let (numbers, ids): (Vec<i32>, Vec<String>) = asked.into_iter().unzip();
    let params = (numbers, ids);
    let found = tx.run(&CITED, &params).await?;
    let refusal = |found: Cited| {
        let id = params.1.get(usize::try_from(found.n - 1).ok()?)?.clone();
        let error = is_cited(found.decision_id, kind, &id, "deleting it");
        Some((id, error))
    };
    Ok(found.into_iter().filter_map(refusal).collect())
}

/// Of decisions those whose evidence others cite, and what to tell who would delete them with it; asked by id and by the
/// numbers of the kinds of bundles and attachments in citations.
pub async fn cited_parts(
    tx: &Tx<'_>,
    ids: Vec<String>,
    (bundles, attachments): (i32, i32),
) -> Result<HashMap<String, Error>> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let found = tx.run(&CITED_PARTS, &(ids, bundles, attachments)).await?;
    let refusal = |found: CitedPart| {
        let CitedPart { decision_id, kind, id, cited_by } = found;
        let kind = if kind == bundles { EvidenceBundle::KIND } else { Attachment::KIND };
        let error = is_cited(cited_by, kind, &id, "deleting it with its decision");
        (decision_id, error)
    };
    Ok(found.into_iter().map(refusal).collect())
}

fn is_cited(by: String, kind: &str, id: &str, what: &str) -> Error {
    Error::Refused {
        reason: Reason::Referenced,
        message: format!(
            "decision \"{by}\" cites the {kind} \"{id}\" as evidence; {what} all the same takes force"
        ),
        metadata: vec![("kind", Decision::KIND.into()), ("id", by)],
    }
}

/// A part of a decision that stands for a blob.
pub trait Evidence: Child + Parent {
    /// Takes its place in a decision that is there.
    fn join(&mut self, decision: &Decision);
    fn digest(&self) -> &str;
    /// Live ones of a decision behind a uid, in the order of uids: (decision, uid, how many).
    fn after() -> &'static Query<(String, Uuid, i64), Self>;
}

/// What became of one that is to be added.
pub enum Added<T> {
    Failed(Error),
    /// It was there before.
    Equal(T),
    New(T),
}

/// Adds evidence to decisions, which the caller has locked. Nothing else is written yet of what does not succeed.
pub async fn add_all<T: Evidence>(
    tx: &Tx<'_>,
    decisions: &HashMap<String, Decision>,
    given: Vec<(Result<T>, OnConflict, &Caller)>,
) -> Result<Vec<Added<T>>> {
    let wanted = given.iter().filter(|(_, on_conflict, _)| *on_conflict != OnConflict::Fail);
    let wanted = wanted.filter_map(|(row, ..)| Some(row.as_ref().ok()?.id().to_owned()));
    let wanted: Vec<String> = wanted.collect();
    let mut there: HashMap<String, T> =
        if wanted.is_empty() { HashMap::new() } else { tx.lock(wanted).await? };
    let mut rows = Vec::new();
    let mut added: Vec<Option<Added<T>>> = Vec::with_capacity(given.len());
    for (row, on_conflict, caller) in given {
        let row = match row {
            Ok(row) => row,
            Err(error) => {
                added.push(Some(Added::Failed(error)));
                continue;
            }
        };
        let Some(decision) = decisions.get(row.parent_id()) else {
            let error = Error::not_found(Decision::KIND, row.parent_id());
            added.push(Some(Added::Failed(error)));
            continue;
        };
        let found = there.remove(row.id()).filter(|_| on_conflict != OnConflict::Fail);
        added.push(match found {
            Some(there) => {
                let fields = there.differing_fields(&row);
                let (kind, id) = (T::KIND, row.id().to_owned());
                Some(match fields.is_empty() {
                    true => Added::Equal(there),
                    false => Added::Failed(Error::Taken { kind, id, fields }),
                })
            }
            None => {
                let mut row = stamp(&row, caller.acting(), tx.now);
                row.join(decision);
                rows.push(row);
                None
            }
        });
    }
    let inserted = if rows.is_empty() { Vec::new() } else { tx.insert(&rows).await? };
    let refused = rows.iter().zip(&inserted).filter(|(_, new)| !**new);
    let refused: Vec<String> = refused.map(|(row, _)| row.id().to_owned()).collect();
    let by_id: HashMap<String, T> =
        if refused.is_empty() { HashMap::new() } else { tx.lock(refused).await? };
    let mut made = rows.into_iter().zip(inserted);
    let settle = |added: Option<Added<T>>| match added {
        Some(added) => Ok(added),
        None => match made.next() {
            Some((row, true)) => Ok(Added::New(row)),
            Some((row, false)) if T::ALSO_UNIQUE.is_empty() || by_id.contains_key(row.id()) => {
                Ok(Added::Failed(T::taken(row.id())))
            }
            Some(_) => {
                let error = Error::Occupied { kind: T::KIND, fields: T::ALSO_UNIQUE };
                Ok(Added::Failed(error))
            }
            None => Err(Error::internal("a piece of evidence without a result")),
        },
    };
    added.into_iter().map(settle).collect()
}

/// The folder of a time: `evidence/decision/2026/11`.
pub fn dated(folder: &str, time: std::time::SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    format!("{folder}/{:04}/{:02}", time.year(), u8::from(time.month()))
}

/// Deletes a piece of evidence, unless its decision is kept or a decision cites it.
pub struct DeleteEvidence<T> {
    pub hide: Hide<T>,
    /// The number by which decisions cite its kind; none if it does not matter whether one does.
    pub cited_as: Option<i32>,
    /// Whether it lets go of its blob, because it cannot come back.
    pub lets_go: bool,
}

impl<T: Evidence> Change for DeleteEvidence<T> {
    type Answer = Option<T>;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        self.hide.touches(rows);
    }

    fn size_bytes(&self) -> usize {
        0
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        self.hide.about()
    }

    /// Which decision it belongs to is not known yet.
    fn is_alone(&self) -> bool {
        true
    }

    fn embeddings(&self) -> Embeddings {
        Embeddings::TakenAlong
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Option<T>>>>> {
        Box::pin(async move {
            let ids: Vec<String> = changes.iter().map(|a| a.change.hide.0.id.clone()).collect();
            let found = tx.run(T::get(), &(ids,)).await?;
            let parents: HashMap<&str, &str> =
                found.iter().map(|row| (row.id(), row.parent_id())).collect();
            // The decision first, as everybody does who locks both.
            let decisions = parents.values().map(|id| (*id).to_owned()).collect();
            let decisions = tx.lock::<Decision>(decisions).await?;
            // Whatever keeps the whole keeps its parts: its class and its subject, too.
            let leaving: Vec<Leaving> = decisions.values().map(Leaving::of).collect();
            let kept = legal_hold::kept(tx, &leaving).await?;
            let kept: HashMap<String, Error> =
                leaving.into_iter().zip(kept).filter_map(|(of, e)| Some((of.id, e?))).collect();
            let asked = changes.iter().filter_map(|a| {
                let id = a.change.hide.0.id.clone();
                Some((a.change.cited_as.filter(|_| parents.contains_key(&*id))?, id))
            });
            let mut cited = cited(tx, T::KIND, asked.collect()).await?;
            let refused: Vec<Option<Error>> = changes
                .iter()
                .map(|a| {
                    let id = &a.change.hide.0.id;
                    let kept = parents.get(id.as_str()).and_then(|decision| kept.get(*decision));
                    kept.cloned().or_else(|| cited.remove(id))
                })
                .collect();
            let free: Vec<Applied<'_, Hide<T>>> = changes
                .iter()
                .zip(&refused)
                .filter(|(_, refused)| refused.is_none())
                .map(|(a, _)| Applied { change: &a.change.hide, caller: a.caller })
                .collect();
            let hidden = Hide::apply(tx, &free).await?;
            let mut hidden = hidden.into_iter();
            let (mut outcomes, mut gone) = (Vec::with_capacity(changes.len()), Vec::new());
            for (Applied { change, .. }, refused) in changes.iter().zip(refused) {
                let outcome = match refused {
                    Some(error) => Outcome::Failed(error),
                    None => hidden
                        .next()
                        .ok_or_else(|| Error::internal("a deletion without a result"))?,
                };
                if let Outcome::Done { answer: Some(row), .. } = &outcome
                    && change.lets_go
                {
                    gone.push(row.meta().uid);
                }
                outcomes.push(outcome);
            }
            let_go(tx, gone).await?;
            Ok(outcomes)
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Option<T>> {
        self.hide.rebuild(entries)
    }
}

/// Brings a piece of evidence back, if its decision is still there.
pub struct UndeleteEvidence<T>(pub Hide<T>);

impl<T: Evidence> UndeleteEvidence<T> {
    pub fn new(id: String) -> Self {
        Self(Hide(Modify::undelete(id)))
    }
}

impl<T: Evidence> Change for UndeleteEvidence<T> {
    type Answer = Option<T>;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        self.0.touches(rows);
    }

    fn size_bytes(&self) -> usize {
        0
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        self.0.about()
    }

    /// Which decision it belongs to is not known yet.
    fn is_alone(&self) -> bool {
        true
    }

    fn embeddings(&self) -> Embeddings {
        Embeddings::TakenAlong
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Option<T>>>>> {
        Box::pin(async move {
            let ids: Vec<String> = changes.iter().map(|a| a.change.0.0.id.clone()).collect();
            let hidden = tx.lock_deleted::<T>(ids).await?;
            let decisions = hidden.values().map(|row| row.parent_id().to_owned()).collect();
            let decisions = tx.lock::<Decision>(decisions).await?;
            // Another one under the id of its decision is not the one that it belongs to.
            let orphan = |id: &str| {
                let row = hidden.get(id)?;
                let is_there = decisions.get(row.parent_id()).is_some_and(|decision| {
                    let mut joined = row.clone();
                    joined.join(decision);
                    joined == *row
                });
                (!is_there).then(|| Error::not_found(Decision::KIND, row.parent_id()))
            };
            let there: Vec<Applied<'_, Hide<T>>> = changes
                .iter()
                .filter(|a| orphan(&a.change.0.0.id).is_none())
                .map(|a| Applied { change: &a.change.0, caller: a.caller })
                .collect();
            let mut shown = Hide::apply(tx, &there).await?.into_iter();
            let outcome = |a: &Applied<'_, Self>| match orphan(&a.change.0.0.id) {
                Some(error) => Ok(Outcome::Failed(error)),
                None => shown.next().ok_or_else(|| Error::internal("a row without a result")),
            };
            changes.iter().map(outcome).collect()
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Option<T>> {
        self.0.rebuild(entries)
    }
}

/// A piece of evidence, and whether the log has this version of it with this content.
pub struct Logged<T> {
    pub row: T,
    pub is_logged: bool,
}

impl Store {
    /// The live evidence of a decision behind a uid, in the order of uids, at most so many.
    pub async fn evidence_of<T: Evidence>(
        &self,
        caller: &Caller,
        decision_id: &str,
        behind: Uuid,
        most: i64,
    ) -> Result<Vec<Logged<T>>> {
        let params = Arc::new((decision_id.to_owned(), behind, most));
        self.snapshot(caller, T::after().name, move |snapshot| {
            let params = Arc::clone(&params);
            Box::pin(async move {
                let rows: Vec<T> = snapshot.all(T::after(), &*params).await?;
                let ids = rows.iter().map(|row| row.id().to_owned()).collect();
                let asked = (T::KIND.to_owned(), ids, snapshot.head);
                let entries: Vec<LogRow> = snapshot.all(&log::AS_OF, &asked).await?;
                let entries: HashMap<&str, &LogRow> =
                    entries.iter().map(|entry| (entry.id.as_str(), entry)).collect();
                let is_logged = |row: &T| {
                    entries.get(row.id()).is_some_and(|entry| {
                        // What is archived keeps its hash, and no content to compare.
                        let is_same = |document: &Vec<u8>| *document == row.document();
                        (entry.uid, entry.version) == (row.meta().uid, row.meta().version)
                            && entry.document.as_ref().is_none_or(is_same)
                    })
                };
                let found =
                    rows.iter().map(|row| Logged { is_logged: is_logged(row), row: row.clone() });
                let found = found.collect();
                snapshot.end(found).await
            })
        })
        .await
    }
}

/// The only row of a kind among log entries.
pub fn only_row<T: Noun>(entries: &[LogRow]) -> Result<T> {
    let row = change::rows_of(entries)?.pop();
    row.ok_or_else(|| Error::internal("a replayed answer lacks a row"))
}
