//! The changes that most nouns need: create rows, and modify one row.

use super::caller::Caller;
use super::child::resolve_back;
use super::embedding::Embedding;
use super::facts;
use super::legal_hold::{self, Leaving};
use super::log::{Entry, LogRow};
use super::noun::{Meta, Noun, Reference};
use super::write::{Applied, Change, Embeddings, Foreseen, Insert, Outcome, RowKey, Shown, Tx};
use crate::{Error, Reason, Result};
use futures_util::future::BoxFuture;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, SystemTime};

/// What a create does when the id is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnConflict {
    #[default]
    Fail,
    ReturnIfEqual,
    Replace,
}

/// Creates rows, all or none. Rows come with uid and id; version, times and authors are set here.
pub struct Create<T> {
    pub rows: Vec<T>,
    pub on_conflict: OnConflict,
}

/// Fills in what the server owns on a new row.
pub fn stamp<T: Noun>(row: &T, author: &str, now: SystemTime) -> T {
    let mut row = row.clone();
    *row.meta_mut() = Meta {
        uid: row.meta().uid,
        version: 1,
        create_time: now,
        update_time: now,
        delete_time: None,
        created_by: author.to_owned(),
        updated_by: author.to_owned(),
    };
    row.stamp(now);
    row
}

/// Stands for the time at which a row is recorded, until it is: the year 10000, which no caller can name.
pub fn when_recorded() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_800)
}

/// Turns a locked row into its next version.
pub fn advance<T: Noun>(row: &mut T, author: &str, now: SystemTime) {
    let meta = row.meta_mut();
    meta.version += 1;
    // Time never runs backwards within a resource, even if the server's clock did.
    meta.update_time = now.max(meta.update_time);
    meta.updated_by = author.to_owned();
}

/// What one `Create` found for each of its rows: the row as it now stands, and whether it is new.
pub struct Created<T> {
    pub rows: Vec<(T, Placed)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    New,
    Replaced,
    Equal,
}

/// Inserts the rows of many creates in one statement, then settles those whose id is taken, each by its own rule.
/// The results stand in the order of `creates`; `Err((error, dirty))` tells whether a part was written.
pub async fn create_all<'a, T: Noun>(
    tx: &Tx<'_>,
    creates: &[(&'a [T], OnConflict, &'a Caller)],
) -> Result<Vec<Result<Created<T>, (Error, bool)>>> {
    let rows: Vec<T> = creates
        .iter()
        .flat_map(|(rows, _, caller)| rows.iter().map(|row| stamp(row, caller.acting(), tx.now)))
        .collect();
    if rows.is_empty() {
        return Ok(creates.iter().map(|_| Ok(Created { rows: Vec::new() })).collect());
    }
    let inserted = tx.insert(&rows).await?;

    let taken: Vec<String> = rows
        .iter()
        .zip(&inserted)
        .filter(|(_, new)| !**new)
        .map(|(row, _)| row.id().to_owned())
        .collect();
    let mut existing: HashMap<String, T> =
        if taken.is_empty() { HashMap::new() } else { tx.lock(taken).await? };

    let mut replaced = Vec::new();
    let mut results = Vec::with_capacity(creates.len());
    let mut next = rows.into_iter().zip(inserted);
    for (given, on_conflict, caller) in creates {
        let mine: Vec<(T, bool)> = next.by_ref().take(given.len()).collect();
        let dirty = mine.iter().any(|(_, new)| *new);
        let mut created = Vec::with_capacity(mine.len());
        let mut refused = None;
        for (row, new) in mine {
            if new {
                created.push((row, Placed::New));
                continue;
            }
            let id = row.id().to_owned();
            let Some(mut there) = existing.remove(&id) else {
                if !T::ALSO_UNIQUE.is_empty() {
                    refused = Some(Error::Occupied { kind: T::KIND, fields: T::ALSO_UNIQUE });
                    break;
                }
                // Deleted between our insert and our look: the next attempt will find the id free.
                return Err(Error::Conflict(std::sync::Arc::from(Box::from(
                    "a conflicting row went away",
                ))));
            };
            let fields = there.differing_fields(&row);
            match on_conflict {
                OnConflict::Fail => {
                    refused = Some(T::taken(&id));
                }
                _ if fields.is_empty() => created.push((there, Placed::Equal)),
                OnConflict::ReturnIfEqual => {
                    refused = Some(Error::Taken { kind: T::KIND, id, fields });
                }
                OnConflict::Replace => {
                    let mut next = row;
                    *next.meta_mut() = Meta { delete_time: None, ..there.meta().clone() };
                    // What is not the caller's stays.
                    let names = next.document_fields().into_iter().map(|(name, _)| name);
                    let kept: Vec<_> = names.filter(|name| next.stays(name)).collect();
                    for name in kept {
                        next.copy(name, &there);
                    }
                    there = next;
                    advance(&mut there, caller.acting(), tx.now);
                    replaced.push(there.clone());
                    created.push((there, Placed::Replaced));
                }
            }
            if refused.is_some() {
                break;
            }
        }
        results.push(match refused {
            Some(error) => Err((error, dirty)),
            None => Ok(Created { rows: created }),
        });
    }
    tx.save(&replaced).await?;
    tx.resolve(results.iter().flatten().flat_map(Created::new_rows)).await?;
    let written = results.iter().zip(creates).filter_map(|(result, (_, _, caller))| {
        Some((*caller, result.as_ref().ok()?.rows.iter().map(|(row, _)| row).collect()))
    });
    let mut dangling = dangling(tx, written.collect()).await?.into_iter();
    for result in results.iter_mut().filter(|result| result.is_ok()) {
        if let Some(error) = dangling.next().flatten() {
            *result = Err((error, true));
        }
    }
    Ok(results)
}

/// Inserts the rows of several changes, of which none may be there, in one statement; for each change what is wrong.
pub async fn insert_all<T: Noun>(
    tx: &Tx<'_>,
    changes: &[(&Caller, Vec<T>)],
) -> Result<Vec<Option<Error>>> {
    let rows: Vec<T> = changes.iter().flat_map(|(_, rows)| rows.iter().cloned()).collect();
    if rows.is_empty() {
        return Ok(changes.iter().map(|_| None).collect());
    }
    let inserted = tx.insert(&rows).await?;
    let refused: Vec<String> = rows
        .iter()
        .zip(&inserted)
        .filter(|(_, new)| !**new && !T::ALSO_UNIQUE.is_empty())
        .map(|(row, _)| row.id().to_owned())
        .collect();
    let by_id: HashMap<String, T> =
        if refused.is_empty() { HashMap::new() } else { tx.lock(refused).await? };
    let mut inserted = inserted.into_iter();
    let wrong = |row: &T| match T::ALSO_UNIQUE {
        [] => T::taken(row.id()),
        _ if by_id.contains_key(row.id()) => T::taken(row.id()),
        fields => Error::Occupied { kind: T::KIND, fields },
    };
    tx.resolve(rows.iter()).await?;
    let all = changes.iter().map(|(caller, rows)| (*caller, rows.iter().collect())).collect();
    let dangling = dangling(tx, all).await?;
    let found = changes.iter().zip(dangling).map(|((_, rows), dangling)| {
        // All of them are looked at, so that the next change finds its own.
        let taken = rows
            .iter()
            .zip(inserted.by_ref())
            .fold(None, |taken, (row, new)| taken.or_else(|| (!new).then(|| wrong(row))));
        taken.or(dangling)
    });
    Ok(found.collect())
}

/// What each change's rows refer to that is not there, if their tenant wants it to be. Looked up after all rows are
/// written, because they may refer to one another, and held as it is until the transaction ends.
pub async fn dangling<T: Noun>(
    tx: &Tx<'_>,
    changes: Vec<(&Caller, Vec<&T>)>,
) -> Result<Vec<Option<Error>>> {
    let mut named: BTreeMap<&'static str, HashSet<String>> = BTreeMap::new();
    for (caller, rows) in &changes {
        if caller.strict_references {
            for Reference { kind, id, .. } in rows.iter().flat_map(|row| row.references()) {
                if !id.is_empty() {
                    named.entry(kind).or_default().insert(id.into_owned());
                }
            }
        }
    }
    let mut there: HashSet<(&'static str, String)> = HashSet::new();
    for (kind, ids) in named {
        // A kind that nothing knows yet has no rows.
        let Some(facts) = facts(kind) else { continue };
        let mut ids: Vec<String> = ids.into_iter().collect();
        // In one order, so that two transactions do not wait for each other.
        ids.sort_unstable();
        let live = tx.run(facts.hold, &(ids,)).await?;
        there.extend(live.into_iter().map(|row| (facts.kind, row.id)));
    }
    let missing = |row: &&T| {
        let mut references = row.references().into_iter();
        references.find_map(|Reference { field, kind, id }| {
            let id = id.into_owned();
            let key = (kind, id);
            (!key.1.is_empty() && !there.contains(&key)).then_some((field, key))
        })
    };
    Ok(changes
        .iter()
        .map(|(caller, rows)| {
            let wanted = rows.iter().filter(|_| caller.strict_references);
            let (field, (kind, id)) = wanted.into_iter().find_map(missing)?;
            Some(Error::Refused {
                reason: Reason::ReferenceMissing,
                message: format!(
                    "{}.{field} names {kind} \"{id}\", which does not exist; the tenant has strict_references",
                    T::KIND
                ),
                metadata: vec![("field", field.into_owned()), ("kind", kind.into()), ("id", id)],
            })
        })
        .collect())
}

impl<T: Noun> Created<T> {
    /// Those that were not there before.
    pub fn new_rows(&self) -> impl Iterator<Item = &T> {
        self.rows.iter().filter(|(_, placed)| *placed == Placed::New).map(|(row, _)| row)
    }

    /// The log entries of what was written, and the versions that were there before.
    pub fn traces(&self) -> (Vec<Entry>, Vec<Shown>) {
        let mut entries = Vec::new();
        let mut shown = Vec::new();
        for (row, placed) in &self.rows {
            match placed {
                Placed::New => entries.push(Entry::of(row, "CREATE")),
                Placed::Replaced => entries.push(Entry::of(row, "UPDATE")),
                Placed::Equal => shown.push(Shown::of(row)),
            }
        }
        (entries, shown)
    }
}

impl<T: Noun> Create<T> {
    /// What creates write if all of their ids are free.
    pub fn foresee(changes: &[Applied<'_, Self>], now: SystemTime) -> Foreseen<Vec<T>> {
        let mut outcomes: Vec<(Vec<T>, _)> = Vec::with_capacity(changes.len());
        for Applied { change, caller } in changes {
            let rows: Vec<T> =
                change.rows.iter().map(|row| stamp(row, caller.acting(), now)).collect();
            let entries = rows.iter().map(|row| Entry::of(row, "CREATE")).collect();
            outcomes.push((rows, entries));
        }
        let all: Vec<&T> = outcomes.iter().flat_map(|(rows, _)| rows).collect();
        Foreseen { inserts: Insert::all_of(&all), outcomes }
    }
}

impl<T: Noun> Change for Create<T> {
    type Answer = Vec<T>;

    const FORESEE: Option<fn(&[Applied<'_, Self>], SystemTime) -> Foreseen<Vec<T>>> =
        Some(Self::foresee);

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.extend(self.rows.iter().map(|row| RowKey::new(&[T::KIND, row.id()])));
    }

    fn size_bytes(&self) -> usize {
        self.rows.iter().map(T::size_bytes).sum()
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        self.rows.iter().map(|row| (T::KIND, row.id())).collect()
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Vec<T>>>>> {
        Box::pin(async move {
            let creates: Vec<_> = changes
                .iter()
                .map(|applied| {
                    let Create { rows, on_conflict } = applied.change;
                    (rows.as_slice(), *on_conflict, applied.caller)
                })
                .collect();
            let results = create_all(tx, &creates).await?;
            Ok(results
                .into_iter()
                .map(|result| match result {
                    Ok(created) => {
                        let (entries, shown) = created.traces();
                        let answer = created.rows.into_iter().map(|(row, _)| row).collect();
                        Outcome::Done { answer, entries, shown }
                    }
                    Err((error, true)) => Outcome::Spoiled(error),
                    Err((error, false)) => Outcome::Failed(error),
                })
                .collect())
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Vec<T>> {
        in_order_of(&self.rows, rows_of(entries)?)
    }
}

/// Rows of one kind from the documents of log entries.
pub fn rows_of<T: Noun>(entries: &[LogRow]) -> Result<Vec<T>> {
    entries
        .iter()
        .filter(|entry| entry.kind == T::KIND)
        .map(|entry| {
            let document = entry
                .document
                .as_deref()
                .ok_or_else(|| Error::archived(T::KIND, &entry.id, entry.version))?;
            T::from_document(document)
        })
        .collect()
}

/// Found rows in the order of the request: by id where the caller chose one, else in the order of the log.
pub fn in_order_of<T: Noun>(asked: &[T], found: Vec<T>) -> Result<Vec<T>> {
    let mut by_id: HashMap<String, T> = HashMap::new();
    let mut in_log_order = Vec::new();
    for row in found {
        in_log_order.push(row.id().to_owned());
        by_id.insert(row.id().to_owned(), row);
    }
    let given: std::collections::HashSet<&str> = asked.iter().map(Noun::id).collect();
    let mut chosen_by_server = in_log_order.into_iter().filter(|id| !given.contains(id.as_str()));
    asked
        .iter()
        .map(|row| {
            let found = by_id.remove(row.id()).or_else(|| by_id.remove(&chosen_by_server.next()?));
            found.ok_or_else(|| Error::internal("a replayed answer lacks a row"))
        })
        .collect()
}

/// Changes one row: the general shape of update, delete, undelete and revoke.
pub struct Modify<T> {
    pub id: String,
    /// The etag the caller has seen.
    pub etag: Option<String>,
    pub action: &'static str,
    /// Nothing to modify is not an error.
    pub allow_missing: bool,
    /// Look among the deleted rows instead of the live ones.
    pub deleted: bool,
    /// Turns the locked row into what it should be, given the time. A row left equal gets no new version.
    pub patch: Box<dyn Fn(&mut T, SystemTime) -> Result<()> + Send + Sync>,
    /// About how much the patch brings.
    pub size_bytes: usize,
}

impl<T: Noun> Modify<T> {
    /// Soft-deletes.
    pub fn delete(id: String, etag: Option<String>, allow_missing: bool) -> Self {
        Self {
            id,
            etag,
            action: "DELETE",
            allow_missing,
            deleted: false,
            patch: Box::new(|row, now| {
                row.meta_mut().delete_time = Some(now);
                Ok(())
            }),
            size_bytes: 0,
        }
    }

    /// Brings back the row deleted last.
    pub fn undelete(id: String) -> Self {
        Self {
            id,
            etag: None,
            action: "UNDELETE",
            allow_missing: false,
            deleted: true,
            patch: Box::new(|row, _| {
                row.meta_mut().delete_time = None;
                Ok(())
            }),
            size_bytes: 0,
        }
    }

    pub fn update(
        id: String,
        etag: Option<String>,
        size_bytes: usize,
        patch: impl Fn(&mut T, SystemTime) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self {
            id,
            etag,
            action: "UPDATE",
            allow_missing: false,
            deleted: false,
            patch: Box::new(patch),
            size_bytes,
        }
    }
}

/// What a `Modify` did to its row: the row and whether it changed; `None` where there was none and that is allowed.
pub type Modified<T> = Option<(T, bool)>;

/// Locks, checks and patches the rows of many modifies, and saves those that changed, in one statement each.
pub async fn modify_all<T: Noun>(
    tx: &Tx<'_>,
    changes: &[(&Modify<T>, &Caller)],
) -> Result<Vec<Result<Modified<T>>>> {
    let ids = |deleted| {
        let chosen = changes.iter().filter(move |(change, _)| change.deleted == deleted);
        chosen.map(|(change, _)| change.id.clone()).collect::<Vec<_>>()
    };
    let (live, deleted) = (ids(false), ids(true));
    let mut live: HashMap<String, T> =
        if live.is_empty() { HashMap::new() } else { tx.lock(live).await? };
    let (mut gone, mut usurpers) = (HashMap::new(), HashMap::new());
    if !deleted.is_empty() {
        usurpers = tx.lock::<T>(deleted.clone()).await?;
        gone = tx.lock_deleted::<T>(deleted).await?;
    }

    let leaving = changes.iter().filter(|(change, _)| change.action == "DELETE");
    let leaving = leaving.filter_map(|(change, _)| live.get(&change.id)).map(Leaving::of);
    let leaving: Vec<Leaving> = leaving.collect();
    let mut kept: HashMap<String, Error> = legal_hold::kept(tx, &leaving)
        .await?
        .into_iter()
        .zip(leaving)
        .filter_map(|(error, one)| Some((one.id, error?)))
        .collect();

    let mut saved = Vec::new();
    let mut results = Vec::with_capacity(changes.len());
    for (change, caller) in changes {
        let id = &change.id;
        if change.deleted && usurpers.contains_key(id) {
            results.push(Err(Error::Taken { kind: T::KIND, id: id.clone(), fields: Vec::new() }));
            continue;
        }
        let found = if change.deleted { gone.remove(id) } else { live.remove(id) };
        let Some(before) = found else {
            results.push(if change.allow_missing {
                Ok(None)
            } else {
                Err(Error::not_found(T::KIND, id))
            });
            continue;
        };
        let current_etag = before.etag();
        if change.etag.as_ref().is_some_and(|etag| *etag != current_etag) {
            results.push(Err(Error::Stale { kind: T::KIND, id: id.clone(), current_etag }));
            continue;
        }
        if let Some(error) = kept.remove(id) {
            results.push(Err(error));
            continue;
        }
        let mut after = before.clone();
        if let Err(error) = (change.patch)(&mut after, tx.now) {
            results.push(Err(error));
            continue;
        }
        if after == before {
            results.push(Ok(Some((after, false))));
            continue;
        }
        advance(&mut after, caller.acting(), tx.now);
        if caller.strict_references
            && after.references() != before.references()
            && let Some(error) = dangling(tx, vec![(*caller, vec![&after])]).await?.pop().flatten()
        {
            results.push(Err(error));
            continue;
        }
        saved.push(after.clone());
        results.push(Ok(Some((after, true))));
    }
    tx.save(&saved).await?;
    let back = changes.iter().zip(&results).filter(|((change, _), _)| change.deleted);
    let back = back.filter_map(|(_, result)| result.as_ref().ok()?.as_ref());
    resolve_back(tx, back.map(|(row, _)| row)).await?;
    Ok(results)
}

impl<T: Noun> Change for Modify<T> {
    type Answer = Option<T>;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.push(RowKey::new(&[T::KIND, &self.id]));
    }

    fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        vec![(T::KIND, &self.id)]
    }

    fn embeddings(&self) -> Embeddings {
        match T::KIND == Embedding::KIND {
            true => Embeddings::Written,
            false => Embeddings::Untouched,
        }
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Option<T>>>>> {
        Box::pin(async move {
            let pairs: Vec<_> = changes.iter().map(|a| (a.change, a.caller)).collect();
            let results = modify_all(tx, &pairs).await?;
            Ok(results
                .into_iter()
                .zip(changes)
                .map(|(result, applied)| match result {
                    Ok(modified) => modified_outcome(modified, applied.change.action),
                    Err(error) => Outcome::Failed(error),
                })
                .collect())
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Option<T>> {
        // Of several versions the last, and of several resources the one that was asked for.
        let rows: Vec<T> = rows_of(entries)?;
        Ok(rows.into_iter().rev().find(|row| row.id() == self.id))
    }
}

pub fn modified_outcome<T: Noun>(
    modified: Modified<T>,
    action: &'static str,
) -> Outcome<Option<T>> {
    match modified {
        Some((row, true)) => {
            let entries = vec![Entry::of(&row, action)];
            Outcome::Done { answer: Some(row), entries, shown: Vec::new() }
        }
        Some((row, false)) => {
            let shown = vec![Shown::of(&row)];
            Outcome::Done { answer: Some(row), entries: Vec::new(), shown }
        }
        None => Outcome::Done { answer: None, entries: Vec::new(), shown: Vec::new() },
    }
}
