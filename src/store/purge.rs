//! Purging: what was deleted goes for good, with its content in the log; the log keeps its entries and hashes (C25).

use super::NOUNS;
use super::blob::change::erase_free;
use super::blob::reference::let_go;
use super::evidence_bundle::EvidenceBundle;
use super::facts;
use super::filter::{Filter, Params as Dynamic};
use super::legal_hold::{Leaving, kept};
use super::list::ListQuery;
use super::log::{Entry, LogRow};
use super::noun::{Facts, Noun as _};
use super::postgres::read_rows;
use super::write::{Applied, Change, Outcome, RowKey, Tx};
use crate::{Error, Reason, Result, queries, row};
use futures_util::future::BoxFuture;
use std::borrow::Cow;
use std::collections::HashSet;
use std::time::{Duration, SystemTime};
use uuid::Uuid;

row! {
    /// A deleted row that may go.
    pub struct Buried {
        pub id: String,
        pub uid: Uuid,
        pub version: i64,
        pub create_time: SystemTime,
        pub delete_time: SystemTime,
        pub retention_class: String,
        pub subject_id: String,
        /// Of a part, the id of what it belongs to; else empty.
        pub parent_id: String,
    }
}

queries! { "purge" {
    /// Removes deleted rows and the content of their log entries: (kind, ids, uids). It can do nothing else.
    PURGE(String, Vec<String>, Vec<Uuid>) -> () = "SELECT FROM wall.purge($1, $2, $3)";
} }

/// Removes deleted resources of one noun, the longest deleted first.
pub struct Purge {
    pub facts: &'static Facts,
    pub filter: Filter,
    /// Deleted at least this long ago.
    pub older_than: Duration,
    pub max: i64,
}

/// How many resources went, and what kept the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    pub purged: i64,
    pub held: i64,
    pub kept_by_floor: i64,
}

impl Change for Purge {
    type Answer = Purged;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.push(RowKey::new(&["purge", self.facts.kind]));
    }

    fn size_bytes(&self) -> usize {
        512
    }

    /// Which rows it will be is unknown.
    fn is_alone(&self) -> bool {
        true
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Purged>>>> {
        Box::pin(async move {
            let mut outcomes = Vec::with_capacity(changes.len());
            for Applied { change, caller } in changes {
                let (answer, entries) = change.run(tx, caller.acting()).await?;
                outcomes.push(Outcome::Done { answer, entries, shown: Vec::new() });
            }
            Ok(outcomes)
        })
    }

    /// What was kept is not in the log; a repeated call that asks for it counts it again.
    fn rebuild(&self, entries: &[LogRow]) -> Result<Purged> {
        let gone = entries.iter().filter(|row| row.kind == self.facts.kind && row.action == PURGED);
        Ok(Purged { purged: gone.count() as i64, ..Purged::default() })
    }
}

const PURGED: &str = "PURGE";

impl Purge {
    async fn run(&self, tx: &Tx<'_>, author: &str) -> Result<(Purged, Vec<Entry>)> {
        let buried = self.buried(tx).await?;
        let mut parts: Vec<(&'static Facts, Vec<Buried>)> = Vec::new();
        for part in NOUNS
            .iter()
            .filter(|noun| noun.part_of.is_some_and(|(kind, _)| kind == self.facts.kind))
        {
            parts.push((part, parts_of(tx, part, &buried).await?));
        }
        let of = |facts: &'static Facts, row: &Buried| Leaving {
            kind: facts.kind,
            id: row.id.clone(),
            subject_id: row.subject_id.clone(),
            retention_class: row.retention_class.clone(),
            create_time: row.create_time,
            // It goes with its whole, which is looked at itself.
            whole: None,
        };
        let mut leaving: Vec<Leaving> = buried.iter().map(|row| of(self.facts, row)).collect();
        let mut owners: Vec<&str> = buried.iter().map(|row| row.id.as_str()).collect();
        for (part, rows) in &parts {
            leaving.extend(rows.iter().map(|row| of(part, row)));
            owners.extend(rows.iter().map(|row| row.parent_id.as_str()));
        }
        // Whatever keeps a part keeps the whole.
        let (mut held, mut floored): (HashSet<&str>, HashSet<&str>) = Default::default();
        for (error, owner) in kept(tx, &leaving).await?.into_iter().zip(owners) {
            match error.map(|error| error.reason()) {
                Some(Reason::OnHold) => held.insert(owner),
                Some(_) => floored.insert(owner),
                None => false,
            };
        }
        let goes = |id: &str| !held.contains(id) && !floored.contains(id);
        let (mut entries, mut bytes) = (Vec::new(), Vec::new());
        for (part, rows) in &parts {
            let rows: Vec<&Buried> = rows.iter().filter(|row| goes(&row.parent_id)).collect();
            let freed = remove(tx, part, &rows, &mut entries).await?;
            if part.kind == EvidenceBundle::KIND {
                bytes.extend(freed);
            }
        }
        let rows: Vec<&Buried> = buried.iter().filter(|row| goes(&row.id)).collect();
        remove(tx, self.facts, &rows, &mut entries).await?;
        // What a bundle says is nowhere else than in its row, in the log and in these bytes.
        entries.extend(erase_free(tx, bytes, author).await?);
        let kept_by_floor = floored.iter().filter(|id| !held.contains(*id)).count() as i64;
        let purged = Purged { purged: rows.len() as i64, held: held.len() as i64, kept_by_floor };
        Ok((purged, entries))
    }

    /// The rows that are asked for, locked. Those of another purge are passed over.
    async fn buried(&self, tx: &Tx<'_>) -> Result<Vec<Buried>> {
        let mut params = Dynamic::default();
        let query =
            ListQuery { filter: self.filter.clone(), show_deleted: true, ..ListQuery::default() };
        let mut conditions = query.conditions(&mut params);
        let until = tx.now.checked_sub(self.older_than).unwrap_or(SystemTime::UNIX_EPOCH);
        conditions.push(format!("d.delete_time <= {}", params.push(until)));
        conditions.push(self.facts.purgeable.to_owned());
        let sql = format!(
            "{} WHERE {} ORDER BY d.delete_time, d.uid LIMIT {} FOR UPDATE SKIP LOCKED",
            select(self.facts),
            conditions.join(" AND "),
            params.push(self.max),
        );
        read_rows(&tx.dynamic(&sql, &params).await?)
    }
}

/// What belongs to rows, and was deleted with them or before.
async fn parts_of(tx: &Tx<'_>, part: &'static Facts, of: &[Buried]) -> Result<Vec<Buried>> {
    let Some((_, column)) = part.part_of else { return Ok(Vec::new()) };
    let mut params = Dynamic::default();
    let ids: Vec<String> = of.iter().map(|row| row.id.clone()).collect();
    let times: Vec<SystemTime> = of.iter().map(|row| row.delete_time).collect();
    let sql = format!(
        "{} JOIN unnest({}, {}) AS parent (id, time) ON d.{column} = parent.id AND d.delete_time <= parent.time \
         ORDER BY d.uid FOR UPDATE OF d",
        select(part),
        params.push(ids),
        params.push(times),
    );
    let mut parts: Vec<Buried> = read_rows(&tx.dynamic(&sql, &params).await?)?;
    // Where several wholes of one id go at once, a part is found for each that was deleted after it.
    parts.dedup_by_key(|part| part.uid);
    Ok(parts)
}

fn select(facts: &Facts) -> String {
    let text = |name: &str| match facts.columns.contains(&name) {
        true => format!("d.{name}"),
        false => format!("'' AS {name}"),
    };
    let parent = facts.part_of.map_or("''".to_owned(), |(_, column)| format!("d.{column}"));
    format!(
        "SELECT d.id, d.uid, d.version, d.create_time, d.delete_time, {}, {}, {parent} AS parent_id FROM {} AS d",
        text("retention_class"),
        text("subject_id"),
        facts.kind,
    )
}

/// Removes rows, and tells the uids of the blobs that they referred to.
async fn remove(
    tx: &Tx<'_>,
    facts: &'static Facts,
    rows: &[&Buried],
    entries: &mut Vec<Entry>,
) -> Result<Vec<Uuid>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let ids = rows.iter().map(|row| row.id.clone()).collect();
    let uids: Vec<Uuid> = rows.iter().map(|row| row.uid).collect();
    let freed = let_go(tx, uids.clone()).await?;
    tx.run(&PURGE, &(facts.kind.to_owned(), ids, uids)).await?;
    entries.extend(rows.iter().map(|row| Entry {
        kind: facts.kind,
        uid: row.uid,
        id: row.id.clone(),
        version: row.version + 1,
        action: Cow::Borrowed(PURGED),
        document: Vec::new(),
        told: None,
    }));
    Ok(freed)
}

/// The nouns whose deleted resources can be purged; parts go with the whole, and what runs the deployment stays.
pub fn purgeable(kind: &str) -> Result<&'static Facts> {
    // A space is too much for one call: it would have to take its embeddings along.
    let kept = ["tenant", "api_token", "legal_hold", "retention_policy", "vector_space"];
    facts(kind)
        .filter(|facts| facts.part_of.is_none() && !kept.contains(&facts.kind))
        .ok_or_else(|| Error::invalid("kind", "must be a kind of record that belongs to no other"))
}
