//! References between precedents: the edges of their graph, made and taken away many at a time, and walked.

use super::Store;
use super::caller::Caller;
use super::canonical::Json;
use super::change::{Modify, OnConflict, dangling, in_order_of, modify_all, rows_of, stamp};
use super::child::Parent;
use super::filter::{Field, FieldKind, Params};
use super::list::{ListQuery, Listing};
use super::log::{Entry, LogRow};
use super::noun::Noun;
use super::snapshot::{Page, Snapshot, read_listing};
use super::write::{Applied, Change, Foreseen, Insert, Outcome, RowKey, Shown, Tx};
use crate::{Error, Result, child, noun, queries};
use futures_util::future::BoxFuture;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

noun! {
    pub struct PrecedentReference in "precedent_reference" as precedent_reference + [children::QUERIES, QUERIES]
    within "precedent" by from_precedent_id
    refers [
        from_precedent_id -> "precedent" as from_precedent_uid, to_precedent_id -> "precedent" as to_precedent_uid
    ]
    {
        pub from_precedent_id: String,
        pub to_precedent_id: String,
        pub reference_type: String,
        pub similarity: Option<f64>,
        pub metadata: Json,
    }

    const ALSO_UNIQUE: &'static [&'static str] =
        &["from_precedent_id", "to_precedent_id", "reference_type"];

    fn size_bytes(&self) -> usize {
        512 + self.metadata.text().len()
    }
}

impl Parent for PrecedentReference {}

pub static LISTING: Listing = Listing {
    kind: "precedent_reference",
    table: "precedent_reference",
    op: "precedent_reference.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("from_precedent_id", "d.from_precedent_id", FieldKind::Text),
        Field::new("to_precedent_id", "d.to_precedent_id", FieldKind::Text),
        Field::new("reference_type", "d.reference_type", FieldKind::Text),
        Field::new("similarity", "d.similarity", FieldKind::Float).nullable(),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("update_time", "d.update_time", FieldKind::Time),
        Field::new("metadata", "d.metadata", FieldKind::Json),
    ],
};

child!(PrecedentReference in "precedent_reference" of from_precedent_id);

queries! { "precedent_reference" {
    /// The live references between those precedents, of those types, locked: (from, to, types).
    LOCK_EDGES(Vec<String>, Vec<String>, Vec<String>) -> PrecedentReference =
        "SELECT {*} FROM precedent_reference WHERE (from_precedent_id, to_precedent_id, reference_type) IN \
         (SELECT * FROM unnest($1::text[], $2::text[], $3::text[])) AND delete_time IS NULL FOR UPDATE";
    /// The references hidden with the precedents of which there is a live one again: (from, times).
    MADE_AGAIN(Vec<String>, Vec<SystemTime>) -> PrecedentReference =
        "SELECT {d.*} FROM precedent_reference AS d JOIN precedent_reference AS l \
         ON l.from_precedent_id = d.from_precedent_id AND l.to_precedent_id = d.to_precedent_id \
         AND l.reference_type = d.reference_type AND l.delete_time IS NULL \
         WHERE (d.from_precedent_id, d.delete_time) IN (SELECT * FROM unnest($1::text[], $2::timestamptz[])) \
         AND d.delete_time IS NOT NULL";
} }

/// What no two live references share.
type Edge<'a> = (&'a str, &'a str, &'a str);

impl PrecedentReference {
    pub fn edge(&self) -> Edge<'_> {
        (&self.from_precedent_id, &self.to_precedent_id, &self.reference_type)
    }
}

/// Adds references, all or none.
pub struct LinkPrecedents {
    pub rows: Vec<PrecedentReference>,
    /// Not REPLACE.
    pub on_conflict: OnConflict,
}

impl Change for LinkPrecedents {
    type Answer = Vec<PrecedentReference>;

    const FORESEE: Option<fn(&[Applied<'_, Self>], SystemTime) -> Foreseen<Self::Answer>> =
        Some(|changes, now| {
            let made = changes.iter().map(|Applied { change, caller }| {
                let rows = change.rows.iter().map(|row| stamp(row, caller.acting(), now));
                let rows: Vec<PrecedentReference> = rows.collect();
                let entries = rows.iter().map(|row| Entry::of(row, "CREATE")).collect();
                (rows, entries)
            });
            let outcomes: Vec<(Self::Answer, Vec<Entry>)> = made.collect();
            let all: Vec<_> = outcomes.iter().flat_map(|(rows, _)| rows).collect();
            Foreseen { inserts: Insert::all_of(&all), outcomes }
        });

    fn touches(&self, rows: &mut Vec<RowKey>) {
        for row in &self.rows {
            let (from, to, reference_type) = row.edge();
            rows.push(RowKey::new(&[PrecedentReference::KIND, &row.id]));
            rows.push(RowKey::new(&["precedent edge", from, to, reference_type]));
        }
    }

    fn size_bytes(&self) -> usize {
        self.rows.iter().map(PrecedentReference::size_bytes).sum()
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        self.rows.iter().map(|row| (PrecedentReference::KIND, row.id.as_str())).collect()
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Self::Answer>>>> {
        Box::pin(async move {
            let stamped = changes.iter().flat_map(|Applied { change, caller }| {
                change.rows.iter().map(|row| stamp(row, caller.acting(), tx.now))
            });
            let stamped: Vec<PrecedentReference> = stamped.collect();
            let inserted = tx.insert(&stamped).await?;
            let there = There::of(tx, stamped.iter().zip(&inserted)).await?;

            let mut next = stamped.into_iter().zip(inserted);
            let mut links = Vec::with_capacity(changes.len());
            for Applied { change, .. } in changes {
                let mut link = Link::default();
                for (row, new) in next.by_ref().take(change.rows.len()) {
                    link.place(row, new, change.on_conflict, &there)?;
                }
                links.push(link);
            }
            let written = changes.iter().zip(&links).map(|(a, link)| (a.caller, link.new_rows()));
            let dangling = dangling(tx, written.collect()).await?;
            let outcomes = links.into_iter().zip(dangling);
            Ok(outcomes.map(|(link, dangling)| link.outcome(dangling)).collect())
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Self::Answer> {
        in_order_of_edges(&self.rows, rows_of(entries)?)
    }
}

/// What stood in the way of new references, by id and by edge.
struct There {
    by_id: HashMap<String, PrecedentReference>,
    edges: Vec<PrecedentReference>,
}

impl There {
    async fn of<'r>(
        tx: &Tx<'_>,
        rows: impl Iterator<Item = (&'r PrecedentReference, &'r bool)>,
    ) -> Result<Self> {
        let refused: Vec<_> = rows.filter(|(_, new)| !**new).map(|(row, _)| row).collect();
        if refused.is_empty() {
            return Ok(Self { by_id: HashMap::new(), edges: Vec::new() });
        }
        let by_id = tx.lock(refused.iter().map(|row| row.id.clone()).collect()).await?;
        let of = |part: fn(&PrecedentReference) -> &String| {
            refused.iter().map(|row| part(row).clone()).collect::<Vec<_>>()
        };
        let params =
            (of(|r| &r.from_precedent_id), of(|r| &r.to_precedent_id), of(|r| &r.reference_type));
        Ok(Self { by_id, edges: tx.run(&LOCK_EDGES, &params).await? })
    }
}

/// One change on its way.
#[derive(Default)]
struct Link {
    rows: Vec<(PrecedentReference, bool)>,
    refused: Option<Error>,
}

impl Link {
    fn place(
        &mut self,
        row: PrecedentReference,
        new: bool,
        on_conflict: OnConflict,
        there: &There,
    ) -> Result<()> {
        if new {
            self.rows.push((row, true));
            return Ok(());
        }
        let of_id = there.by_id.get(&row.id);
        let Some(found) = of_id.or_else(|| there.edges.iter().find(|e| e.edge() == row.edge()))
        else {
            // Deleted between our insert and our look: the next attempt will find its place free.
            let why = "a conflicting reference went away";
            return Err(Error::Conflict(Arc::from(Box::from(why))));
        };
        let mut fields = found.differing_fields(&row);
        if row.id == row.meta.uid.to_string() {
            fields.retain(|field| field != "id");
        }
        let (kind, id) = (Self::KIND, found.id.clone());
        let error = match (on_conflict, fields.is_empty()) {
            (OnConflict::Fail, _) if of_id.is_some() => PrecedentReference::taken(&id),
            (OnConflict::Fail, _) => {
                Error::Occupied { kind, fields: PrecedentReference::ALSO_UNIQUE }
            }
            (_, false) => Error::Taken { kind, id, fields },
            (_, true) => {
                self.rows.push((found.clone(), false));
                return Ok(());
            }
        };
        self.refused.get_or_insert(error);
        Ok(())
    }

    const KIND: &'static str = PrecedentReference::KIND;

    fn new_rows(&self) -> Vec<&PrecedentReference> {
        self.rows.iter().filter(|(_, new)| *new).map(|(row, _)| row).collect()
    }

    fn outcome(self, dangling: Option<Error>) -> Outcome<Vec<PrecedentReference>> {
        let entries: Vec<_> =
            self.new_rows().into_iter().map(|row| Entry::of(row, "CREATE")).collect();
        match self.refused.or(dangling) {
            Some(error) if entries.is_empty() => Outcome::Failed(error),
            Some(error) => Outcome::Spoiled(error),
            None => {
                let known = self.rows.iter().filter(|(_, new)| !new);
                let shown = known.map(|(row, _)| Shown::of(row)).collect();
                let answer = self.rows.into_iter().map(|(row, _)| row).collect();
                Outcome::Done { answer, entries, shown }
            }
        }
    }
}

/// Found rows in the order of the request: by id, else by edge where the server had chosen the id.
fn in_order_of_edges(
    asked: &[PrecedentReference],
    found: Vec<PrecedentReference>,
) -> Result<Vec<PrecedentReference>> {
    let place =
        |row: &PrecedentReference| asked.iter().position(|asked| asked.edge() == row.edge());
    let mut found = found;
    found.sort_by_key(place);
    in_order_of(asked, found)
}

/// Deletes references, all or none.
pub struct UnlinkPrecedents(pub Vec<Modify<PrecedentReference>>);

impl Change for UnlinkPrecedents {
    type Answer = Vec<PrecedentReference>;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        self.0.iter().for_each(|modify| modify.touches(rows));
    }

    fn size_bytes(&self) -> usize {
        0
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        self.0.iter().flat_map(Change::about).collect()
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Self::Answer>>>> {
        Box::pin(async move {
            let all = changes.iter().flat_map(|a| a.change.0.iter().map(|m| (m, a.caller)));
            let mut results = modify_all(tx, &all.collect::<Vec<_>>()).await?.into_iter();
            let outcomes = changes.iter().map(|Applied { change, .. }| {
                let (mut answer, mut refused) = (Vec::new(), None);
                for result in results.by_ref().take(change.0.len()) {
                    match result {
                        Ok(modified) => answer.extend(modified.map(|(row, _)| row)),
                        Err(error) => refused = refused.or(Some(error)),
                    }
                }
                match refused {
                    Some(error) if answer.is_empty() => Outcome::Failed(error),
                    Some(error) => Outcome::Spoiled(error),
                    None => {
                        let entries = answer.iter().map(|row| Entry::of(row, "DELETE")).collect();
                        Outcome::Done { answer, entries, shown: Vec::new() }
                    }
                }
            });
            Ok(outcomes.collect())
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Self::Answer> {
        // They were noted in the order of the request.
        rows_of(entries)
    }
}

/// The way from a precedent along its references.
#[derive(Clone, Debug, PartialEq)]
pub struct Walk {
    pub precedent_id: String,
    /// Against their direction.
    pub incoming: bool,
    /// How many references away, at least 1.
    pub depth: i32,
}

/// Precedents that one walk visits.
pub const VISITED_MAX: usize = 10_000;

impl Store {
    /// One page of the references on a walk, or of all; and whether there were too many precedents to walk.
    pub async fn precedent_references(
        &self,
        caller: &Caller,
        query: ListQuery,
        walk: Option<Walk>,
        wants_total: bool,
    ) -> Result<(Page<PrecedentReference>, bool)> {
        // What was deleted may be shown, and then also what points at it.
        let besides: Option<fn(&ListQuery, &mut Params) -> String> =
            if query.show_deleted { None } else { Some(points_at_no_deleted) };
        let asked = Arc::new((ListQuery { besides, ..query }, walk));
        self.snapshot(caller, LISTING.op, move |snapshot| {
            let asked = Arc::clone(&asked);
            Box::pin(async move {
                let (mut query, mut truncated) = (asked.0.clone(), false);
                if let Some(walk) = &asked.1 {
                    let column = start(walk.incoming);
                    let visited = visit(&snapshot, &query, walk).await?;
                    truncated = visited.len() > VISITED_MAX;
                    let among = visited.into_iter().take(VISITED_MAX).collect();
                    query.among = Some((column, among));
                }
                let page = read_listing(&snapshot, &LISTING, &query, wants_total).await?;
                snapshot.end((page, truncated)).await
            })
        })
        .await
    }
}

const fn start(incoming: bool) -> &'static str {
    if incoming { "d.to_precedent_id" } else { "d.from_precedent_id" }
}

/// The precedents from which the listed references start, the first one first. One step is one statement over all that
/// the step before has found, so each precedent is visited once, whatever circles there are. More than can be walked
/// is one more than [`VISITED_MAX`]; which ones they are depends on their ids only, so that all pages agree.
async fn visit(snapshot: &Snapshot, query: &ListQuery, walk: &Walk) -> Result<Vec<String>> {
    let mut visited = vec![walk.precedent_id.clone()];
    let mut begun = 0;
    for _ in 1..walk.depth {
        let from = visited[begun..].to_vec();
        if from.is_empty() || visited.len() > VISITED_MAX {
            break;
        }
        begun = visited.len();
        let step = ListQuery { among: Some((start(walk.incoming), from)), ..query.clone() };
        let limit = VISITED_MAX + 1 - visited.len();
        let end = start(!walk.incoming);
        let (sql, params) = LISTING.values(&step, end, &visited, limit);
        for row in snapshot.dynamic(&sql, &params).await? {
            visited.push(row.try_get(0)?);
        }
    }
    Ok(visited)
}

/// Neither end is a deleted precedent. One that was never recorded is not deleted.
pub fn points_at_no_deleted(query: &ListQuery, params: &mut Params) -> String {
    let ends = ["from_precedent", "to_precedent"];
    let conditions = match query.snapshot {
        None => ends.map(|end| {
            // The reference knows the uid of what it named, even if nothing is left of that.
            format!(
                "(EXISTS (SELECT FROM precedent AS p WHERE p.id = d.{end}_id AND p.delete_time IS NULL) \
                 OR d.{end}_uid IS NULL AND NOT EXISTS (SELECT FROM precedent AS p \
                 WHERE p.id = d.{end}_id AND p.delete_time IS NOT NULL))"
            )
        }),
        Some(seq) => {
            let seq = params.push(seq);
            ends.map(|end| {
                format!(
                    "COALESCE((SELECT l.action FROM log AS l WHERE l.kind = 'precedent' AND l.id = d.{end}_id \
                     AND l.seq <= {seq} ORDER BY l.seq DESC LIMIT 1), '') NOT IN ('DELETE', 'PURGE')"
                )
            })
        }
    };
    conditions.join(" AND ")
}
