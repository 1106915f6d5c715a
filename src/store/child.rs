//! Resources that belong to another one: deleted with it, and brought back with it.

use super::change::{Modify, advance, modified_outcome, modify_all};
use super::embedding::subject::move_embeddings;
use super::facts;
use super::filter::Params;
use super::legal_hold::{self, Leaving};
use super::log::{Entry, LogRow};
use super::noun::{Noun, Reference};
use super::postgres::read_rows;
use super::query::Query;
use super::write::{Applied, Change, Embeddings, Outcome, RowKey, Tx};
use crate::{Error, Result, row};
use futures_util::future::BoxFuture;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::SystemTime;
use uuid::Uuid;

/// A noun that belongs to another. Implemented by [`child!`](crate::child).
pub trait Child: Noun {
    fn parent_id(&self) -> &str;
    /// Live rows of the parents, locked.
    fn of_live() -> &'static Query<(Vec<String>,), Self>;
    /// Rows deleted together with the parents: (ids, times), locked.
    fn of_deleted() -> &'static Query<(Vec<String>, Vec<SystemTime>), Self>;
    /// Fits rows that come back into what has happened since.
    fn settle<'a>(tx: &'a Tx<'a>, rows: &'a mut [Self]) -> BoxFuture<'a, Result<()>> {
        let _ = (tx, rows);
        Box::pin(async { Ok(()) })
    }
}

/// A noun that others may belong to.
pub trait Parent: Noun {
    /// Whether parts may come without touching it: then it goes in a transaction alone, or the log would not tell which
    /// of them came first.
    const PARTS_COME_ALONE: bool = false;

    /// Deletes or brings back what belongs to those that were.
    fn move_children<'a>(tx: &'a Tx<'a>, moves: &'a [Move<'a>]) -> BoxFuture<'a, Result<Moved>> {
        let _ = (tx, moves);
        Box::pin(async { Ok(Moved::default()) })
    }
}

/// Says what a noun belongs to: its column with the parent's id. Only one resource of an id is live at a time, and those
/// deleted with an earlier one share its time, so the id is as good as the uid; and there may be none yet.
#[macro_export]
macro_rules! child {
    ($name:ident in $table:literal of $parent_id:ident $(, settle: $settle:path)?) => {
        pub(in $crate::store) mod children {
            use super::$name;
            use std::time::SystemTime;

            $crate::queries! { $table {
                OF_LIVE(Vec<String>) -> $name = concat!(
                    "SELECT {*} FROM ", $table, " WHERE ", stringify!($parent_id), " = ANY($1) ",
                    "AND delete_time IS NULL FOR UPDATE");
                OF_DELETED(Vec<String>, Vec<SystemTime>) -> $name = concat!(
                    "SELECT {*} FROM ", $table, " WHERE (", stringify!($parent_id), ", delete_time) IN ",
                    "(SELECT * FROM unnest($1::text[], $2::timestamptz[])) AND delete_time IS NOT NULL FOR UPDATE");
            } }
        }

        impl $crate::store::child::Child for $name {
            fn parent_id(&self) -> &str {
                &self.$parent_id
            }
            fn of_live() -> &'static $crate::store::query::Query<(Vec<String>,), Self> {
                &children::OF_LIVE
            }
            fn of_deleted()
            -> &'static $crate::store::query::Query<(Vec<String>, Vec<std::time::SystemTime>), Self> {
                &children::OF_DELETED
            }
            $(fn settle<'a>(
                tx: &'a $crate::store::write::Tx<'a>,
                rows: &'a mut [Self],
            ) -> futures_util::future::BoxFuture<'a, $crate::Result<()>> {
                Box::pin($settle(tx, rows))
            })?
        }
    };
}

/// A parent that was just deleted, or undeleted after `hidden_since`.
#[derive(Clone, Copy)]
pub struct Move<'a> {
    pub id: &'a str,
    pub delete_time: Option<SystemTime>,
    pub hidden_since: Option<SystemTime>,
    pub author: &'a str,
}

/// What became of the children, by parent.
#[derive(Default)]
pub struct Moved {
    entries: Vec<(String, Entry)>,
    /// What cannot come back, because its id, or what else no two share, has been taken since; and what cannot go, because
    /// something keeps it.
    refused: Vec<(String, Error)>,
}

impl Moved {
    /// Notes what became of something that belongs to a parent.
    pub fn add(&mut self, parent: String, entry: Entry) {
        self.entries.push((parent, entry));
    }

    /// The entries and the refusals, each with the id of the parent.
    pub fn into_parts(self) -> (Vec<(String, Entry)>, Vec<(String, Error)>) {
        (self.entries, self.refused)
    }

    /// What is of parts, as of what they belong to.
    fn hand_up(&mut self, parent_of: impl Fn(&str) -> Option<String>) {
        let entries = self.entries.iter_mut().map(|(of, _)| of);
        for of in entries.chain(self.refused.iter_mut().map(|(of, _)| of)) {
            if let Some(parent) = parent_of(of) {
                *of = parent;
            }
        }
    }

    pub fn extend(&mut self, other: Self) {
        self.entries.extend(other.entries);
        self.refused.extend(other.refused);
    }

    /// A parent's children cannot come back.
    pub fn refuse(&mut self, parent: String, error: Error) {
        self.refused.push((parent, error));
    }
}

/// Whether each of the given new rows is one of those that are there, whatever id the server gave it. There may be
/// others, which were added later.
pub fn are_there<T: Child>(given: &[T], there: &[T]) -> bool {
    let mut there: Vec<&T> = there.iter().collect();
    given.iter().all(|given| {
        let is_it = |row: &&T| {
            let chosen_by_server = given.id() == given.meta().uid.to_string();
            (chosen_by_server || row.id() == given.id())
                && row.parent_id() == given.parent_id()
                && row.differing_fields(given).iter().all(|field| field == "id")
        };
        // Each stands for one.
        there.iter().position(is_it).map(|n| there.swap_remove(n)).is_some()
    })
}

/// Hides the children of one kind with their parents, or brings back those that were hidden with them.
pub async fn move_children<T: Child>(tx: &Tx<'_>, moves: &[Move<'_>]) -> Result<Moved> {
    let hide: Vec<String> =
        moves.iter().filter(|m| m.delete_time.is_some()).map(|m| m.id.to_owned()).collect();
    let (show, since): (Vec<String>, Vec<SystemTime>) = moves
        .iter()
        .filter(|m| m.delete_time.is_none())
        .filter_map(|m| Some((m.id.to_owned(), m.hidden_since?)))
        .unzip();
    let mut children: Vec<T> = Vec::new();
    let mut moved = Moved::default();
    if !hide.is_empty() {
        let mine = tx.run(T::of_live(), &(hide,)).await?;
        let leaving: Vec<Leaving> = mine.iter().map(Leaving::of).collect();
        let kept = legal_hold::kept(tx, &leaving).await?;
        for (child, kept) in mine.into_iter().zip(kept) {
            match kept {
                // Whatever keeps a part keeps the whole.
                Some(error) => moved.refused.push((child.parent_id().to_owned(), error)),
                None => children.push(child),
            }
        }
    }
    if !show.is_empty() {
        let mut hidden: Vec<T> = tx.run(T::of_deleted(), &(show, since)).await?;
        if T::IDS_OF_TENANT && !hidden.is_empty() {
            let ids = hidden.iter().map(|child| child.id().to_owned()).collect();
            let live = tx.lock::<T>(ids).await?.into_keys();
            let mut used: HashSet<String> = live.collect();
            hidden.retain(|child| {
                let id = child.id().to_owned();
                let is_free = used.insert(id.clone());
                if !is_free {
                    let error = Error::Taken { kind: T::KIND, id, fields: Vec::new() };
                    moved.refused.push((child.parent_id().to_owned(), error));
                }
                is_free
            });
        }
        T::settle(tx, &mut hidden).await?;
        children.extend(hidden);
    }
    let by_id: HashMap<&str, &Move<'_>> = moves.iter().map(|m| (m.id, m)).collect();
    for child in &mut children {
        let Some(parent) = by_id.get(child.parent_id()) else { continue };
        child.meta_mut().delete_time = parent.delete_time;
        advance(child, parent.author, tx.now);
        let action = if parent.delete_time.is_some() { "DELETE" } else { "UNDELETE" };
        moved.entries.push((child.parent_id().to_owned(), Entry::of(child, action)));
    }
    tx.save_meta(&children).await?;
    resolve_back(tx, children.iter().filter(|child| child.meta().delete_time.is_none())).await?;
    if !T::IDS_OF_TENANT {
        // An embedding names what it is of by its id alone, and several of these may have that id.
        return Ok(moved);
    }
    let with = children.iter().filter_map(|child| {
        let parent = by_id.get(child.parent_id())?;
        Some(Move { id: child.id(), ..**parent })
    });
    let with: Vec<Move<'_>> = with.collect();
    let mut embedded = move_embeddings(tx, T::KIND, &with).await?;
    let parents: HashMap<&str, &str> =
        children.iter().map(|child| (child.id(), child.parent_id())).collect();
    embedded.hand_up(|id| parents.get(id).map(|parent| (*parent).to_owned()));
    moved.extend(embedded);
    Ok(moved)
}

row! {
    /// A live resource under the id by which others name it.
    pub struct Target {
        pub id: String,
        pub uid: Uuid,
    }
}

/// Rows that come back may name what was recorded while they were hidden: nobody has told them.
pub async fn resolve_back<'r, T: Noun>(
    tx: &Tx<'_>,
    back: impl Iterator<Item = &'r T>,
) -> Result<()> {
    let mut named: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    for Reference { kind, id, .. } in back.flat_map(Noun::references) {
        if !id.is_empty() {
            named.entry(kind).or_default().push(id.into_owned());
        }
    }
    for (kind, ids) in named {
        let Some((facts, resolve)) = facts(kind).and_then(|facts| Some((facts, facts.resolve?)))
        else {
            continue;
        };
        let table = facts.listing.table;
        let mut params = Params::default();
        let sql = format!(
            "SELECT id, uid FROM {table} WHERE id = ANY({}) AND delete_time IS NULL",
            params.push(ids)
        );
        let live: Vec<Target> = read_rows(&tx.dynamic(&sql, &params).await?)?;
        let live: (Vec<String>, Vec<Uuid>) = live.into_iter().map(|row| (row.id, row.uid)).unzip();
        tx.run(resolve, &live).await?;
    }
    Ok(())
}

/// Deletes or undeletes a resource together with what belongs to it.
pub struct Hide<T>(pub Modify<T>);

impl<T: Parent> Change for Hide<T> {
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

    fn is_alone(&self) -> bool {
        T::PARTS_COME_ALONE
    }

    fn embeddings(&self) -> Embeddings {
        Embeddings::TakenAlong
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Option<T>>>>> {
        Box::pin(async move {
            // What an undelete finds of the time of the deletion, it must know before the patch takes it away.
            let back: Vec<String> = changes
                .iter()
                .filter(|a| a.change.0.deleted)
                .map(|a| a.change.0.id.clone())
                .collect();
            let before = if back.is_empty() {
                Default::default()
            } else {
                tx.lock_deleted::<T>(back).await?
            };
            let pairs: Vec<_> = changes.iter().map(|a| (&a.change.0, a.caller)).collect();
            let results = modify_all(tx, &pairs).await?;

            let mut moves = Vec::new();
            for (result, applied) in results.iter().zip(changes) {
                if let Ok(Some((row, true))) = result {
                    let hidden_since =
                        before.get(row.id()).and_then(|before| before.meta().delete_time);
                    moves.push(Move {
                        id: row.id(),
                        delete_time: row.meta().delete_time,
                        hidden_since,
                        author: applied.caller.acting(),
                    });
                }
            }
            let mut moved = T::move_children(tx, &moves).await?;
            moved.extend(move_embeddings(tx, T::KIND, &moves).await?);
            let Moved { mut entries, mut refused } = moved;

            Ok(results
                .into_iter()
                .zip(changes)
                .map(|(result, applied)| {
                    let id = &applied.change.0.id;
                    if let Some(n) = refused.iter().position(|(parent, _)| parent == id) {
                        return Outcome::Spoiled(refused.swap_remove(n).1);
                    }
                    let mut outcome = match result {
                        Ok(modified) => modified_outcome(modified, applied.change.0.action),
                        Err(error) => Outcome::Failed(error),
                    };
                    if let Outcome::Done { entries: mine, .. } = &mut outcome {
                        let of_it = entries.extract_if(.., |(parent, _)| parent == id);
                        mine.extend(of_it.map(|(_, entry)| entry));
                    }
                    outcome
                })
                .collect())
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Option<T>> {
        self.0.rebuild(entries)
    }
}
