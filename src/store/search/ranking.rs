//! One ranking over several kinds, page by page at one revision.
//!
//! The first page fixes the log number. What has not changed since is ranked from the tables, by their indexes; what has
//! is ranked as the log has it, by a vector made anew. So every page is a part of the same ranking, and its cost grows
//! with what has changed since, not with the pages before. What is deleted meanwhile is left out, which moves nothing
//! else.

use super::hybrid::Fused;
use super::kinds::{KINDS, Kind};
use super::{Wanted, Words, headline, passages};
use crate::store::Store;
use crate::store::caller::Caller;
use crate::store::canonical::Json;
use crate::store::filter::{Field, FieldKind, Filter, Params};
use crate::store::list::{ListQuery, Source};
use crate::store::snapshot::{Glance, Look, Snapshot, in_the_future};
use crate::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio_postgres::Row;
use uuid::Uuid;

/// What is searched for. Kinds are each once, and each has its filter.
#[derive(Clone, Debug)]
pub struct Search {
    pub kinds: Vec<(&'static Kind, Filter)>,
    pub words: Words,
    pub min_score: f64,
    /// Only hits behind this one.
    pub after: Option<Place>,
    pub limit: i64,
    /// The log number to be read at; none means now.
    pub snapshot: Option<i64>,
    pub hidden: Hidden,
    pub shown: Shown,
}

/// Where a hit stands in its ranking: better scores first, and of the same score smaller uids.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    pub score: f64,
    pub uid: Uuid,
}

#[derive(Clone, Debug)]
pub struct Hit {
    pub kind: &'static Kind,
    pub id: String,
    pub version: i64,
    pub place: Place,
    pub highlights: Vec<String>,
    pub fields: Option<Json>,
}

#[derive(Debug)]
pub struct Hits {
    /// Best first.
    pub hits: Vec<Hit>,
    /// Whether there are more.
    pub more: bool,
    pub seq: i64,
}

impl Search {
    /// The ranking: kind by its place among those asked, id, uid, version, score and whether the version is in the log
    /// only; one more than the limit.
    pub fn ranking(&self, tenant: &str) -> (String, Params) {
        let mut params = Params::default();
        let wanted = self.words.bind(tenant, &mut params);
        let Self { kinds, snapshot, hidden, .. } = self;
        let branches = text_branches(kinds, &wanted, *snapshot, *hidden, "", &mut params);
        let mut conditions = vec![format!("hit.score >= {}", params.push(self.min_score))];
        if let Some(Place { score, uid }) = self.after {
            let (score, uid) = (params.push(score), params.push(uid));
            conditions
                .push(format!("(hit.score < {score} OR hit.score = {score} AND hit.uid > {uid})"));
        }
        let sql = format!(
            "SELECT hit.kind, hit.id, hit.uid, hit.version, hit.score, hit.restored\nFROM (\n{}\n) AS hit\nWHERE {}\n\
             ORDER BY hit.score DESC, hit.uid\nLIMIT {}",
            branches.join("\nUNION ALL\n"),
            conditions.join(" AND "),
            params.push(self.limit + 1),
        );
        (sql, params)
    }
}

/// What is shown of hits beside their names.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    pub highlight: bool,
    /// Names of the fields to show, as far as a kind has them.
    pub fields: Option<Vec<String>>,
}

/// What becomes of what was deleted since the moment that a search is read at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hidden {
    /// It is left out.
    #[default]
    Left,
    /// It is found, as it was.
    Shown,
}

/// How words are found in each kind: its place among the kinds, id, uid, version, score and whether the version is in the
/// log only; and `more`, columns that are the same everywhere.
pub(super) fn text_branches(
    kinds: &[(&'static Kind, Filter)],
    wanted: &Wanted,
    snapshot: Option<i64>,
    hidden: Hidden,
    more: &str,
    params: &mut Params,
) -> Vec<String> {
    let mut branches = Vec::new();
    for (n, (kind, filter)) in kinds.iter().enumerate() {
        let query = ListQuery { filter: filter.clone(), snapshot, ..ListQuery::default() };
        let mut sources = kind.listing.sources(&query, params).into_iter();
        let common = query.conditions(params);
        let mut branch = |source: Source, vector: &str, matches: String, restored: bool| {
            let rank = wanted.rank(vector);
            let select = format!(
                "{n} AS kind, d.id, d.uid, d.version, {rank} AS score, {restored} AS restored{more}"
            );
            branches.push(source.rows(&select, &[&common, &[matches]]));
        };
        if let Some(current) = sources.next() {
            branch(current, "d.search", wanted.in_table("d.search"), false);
        }
        if let Some(Source { from, condition }) = sources.next() {
            let (table, vector) = (kind.listing.table, kind.vector);
            let from =
                format!("{from}\nCROSS JOIN LATERAL (SELECT {vector} AS search OFFSET 0) AS v");
            let mut matches = wanted.in_vector("v.search");
            if hidden == Hidden::Left {
                matches.push_str(&format!(
                    " AND EXISTS (SELECT FROM {table} AS t WHERE t.uid = d.uid AND t.delete_time IS NULL)"
                ));
            }
            branch(Source { from, condition }, "v.search", matches, true);
        }
    }
    branches
}

impl Shown {
    fn is_nothing(&self) -> bool {
        !self.highlight && self.fields.is_none()
    }

    /// Passages and fields of hits of one kind, by uid. Of those in the log only, ids and versions tell which.
    fn details(
        &self,
        words: Option<&Words>,
        kind: &Kind,
        hits: &[Found],
        restored: bool,
    ) -> (String, Params) {
        let mut params = Params::default();
        let headline = match words.filter(|_| self.highlight) {
            Some(words) => headline(&words.query(&mut params), kind.texts),
            None => "''".into(),
        };
        let shown = self.fields.iter().flatten().filter_map(|name| kind.field(name));
        let shown: Vec<_> =
            shown.map(|field| format!("'{}', {}", field.name, rendered(field))).collect();
        let uids: Vec<Uuid> = hits.iter().map(|hit| hit.uid).collect();
        let from = if restored {
            let name = params.push(kind.name().to_owned());
            let ids = params.push(hits.iter().map(|hit| hit.id.clone()).collect::<Vec<_>>());
            let versions = params.push(hits.iter().map(|hit| hit.version).collect::<Vec<_>>());
            let uids = params.push(uids);
            format!(
                "unnest({ids}, {uids}, {versions}) AS u (id, uid, version)\n\
                 CROSS JOIN LATERAL (SELECT l.document FROM log AS l WHERE l.kind = {name} AND l.id = u.id \
                 AND l.uid = u.uid AND l.version = u.version LIMIT 1) AS stood\n\
                 CROSS JOIN LATERAL jsonb_populate_record(NULL::{}, convert_from(stood.document, 'UTF8')::jsonb) AS d",
                kind.listing.table
            )
        } else {
            format!("{} AS d WHERE d.uid = ANY({})", kind.listing.table, params.push(uids))
        };
        let sql = format!(
            "SELECT d.uid, {headline} AS headline, jsonb_build_object({}) AS fields\nFROM {from}",
            shown.join(", ")
        );
        (sql, params)
    }
}

impl Search {
    /// Whether it is one that everybody makes: in one kind or in all, whatever they are.
    fn is_common(&self) -> bool {
        let everything = self.kinds.iter().all(|(_, filter)| filter.selects_everything());
        let names = self.kinds.iter().map(|(kind, _)| kind.name());
        let usual = self.kinds.len() == 1 || names.eq(KINDS.iter().map(Kind::name));
        everything && usual && self.after.is_none()
    }

    fn hits(&self, found: Vec<Found>, details: &mut AllDetails) -> Result<Vec<Hit>> {
        let hits = found.into_iter().map(|found| {
            let Found { kind, id, uid, version, score, .. } = found;
            let (kind, _) = self
                .kinds
                .get(kind)
                .ok_or_else(|| Error::internal("a hit of a kind not asked for"))?;
            let (highlights, fields) = details.remove(&uid).unwrap_or_default();
            let place = Place { score, uid };
            Ok(Hit { kind, id, version, place, highlights, fields })
        });
        hits.collect()
    }
}

/// A field as JSON: times as text, enum values by their names in the protocol.
fn rendered(field: &Field) -> String {
    let column = field.column;
    match field.kind {
        FieldKind::Time => {
            format!("to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
        }
        FieldKind::Enum { prefix, names } => {
            let each: Vec<_> =
                names.iter().map(|(name, n)| format!("WHEN {n} THEN '{prefix}{name}'")).collect();
            format!("CASE {column} {} END", each.join(" "))
        }
        _ => column.to_owned(),
    }
}

impl From<&Fused> for Found {
    fn from(hit: &Fused) -> Self {
        let Fused { kind, id, uid, version, score, restored, .. } = hit.clone();
        Self { kind, id, uid, version, score, restored }
    }
}

/// A hit without what is shown of it.
#[derive(Clone)]
pub(super) struct Found {
    kind: usize,
    id: String,
    uid: Uuid,
    version: i64,
    score: f64,
    restored: bool,
}

const OP: &str = "search.SEARCH";

fn read_found(rows: &[Row]) -> Result<Vec<Found>> {
    let found = rows.iter().map(|row| {
        let kind: i32 = row.try_get("kind")?;
        Ok(Found {
            kind: usize::try_from(kind).map_err(Error::internal)?,
            id: row.try_get("id")?,
            uid: row.try_get("uid")?,
            version: row.try_get("version")?,
            score: row.try_get("score")?,
            restored: row.try_get("restored")?,
        })
    });
    found.collect()
}

impl Store {
    /// One page of a ranking.
    pub async fn search(&self, caller: &Caller, search: Search) -> Result<Hits> {
        if search.snapshot.is_none() && search.shown.is_nothing() {
            let (sql, params) = search.ranking(&caller.tenant);
            let look = Look { sql, params, common: search.is_common(), ..Look::default() };
            let Glance { rows, head, .. } = self.glance(caller, OP, look).await?;
            let mut found = read_found(&rows)?;
            let more = found.len() as i64 > search.limit;
            found.truncate(search.limit as usize);
            return Ok(Hits { hits: search.hits(found, &mut AllDetails::new())?, more, seq: head });
        }
        let asked = Arc::new((search, caller.tenant.to_string()));
        self.snapshot(caller, OP, move |snapshot| {
            let asked = Arc::clone(&asked);
            Box::pin(async move {
                let (search, tenant) = &*asked;
                let head = snapshot.head;
                let seq = search.snapshot.unwrap_or(head);
                if seq > head {
                    return Err(in_the_future());
                }
                let (sql, params) = match seq < head {
                    true => search.ranking(tenant),
                    // Nothing has been written since the first page, so the tables are as they were.
                    false => Search { snapshot: None, ..search.clone() }.ranking(tenant),
                };
                let mut found = read_found(&snapshot.dynamic(&sql, &params).await?)?;
                let more = found.len() as i64 > search.limit;
                found.truncate(search.limit as usize);
                let Search { kinds, words, shown, .. } = search;
                let mut details = details_of(&snapshot, kinds, Some(words), shown, &found).await?;
                let hits = search.hits(found, &mut details)?;
                snapshot.end(Hits { hits, more, seq }).await
            })
        })
        .await
    }
}

/// The passages of a hit, and its fields where some are to be shown.
pub type Details = (Vec<String>, Option<Json>);

type AllDetails = HashMap<Uuid, Details>;

/// What is shown of a page's hits beside their names. Only of these, because passages cost more than ranking.
pub(super) async fn details_of(
    snapshot: &Snapshot,
    kinds: &[(&'static Kind, Filter)],
    words: Option<&Words>,
    shown: &Shown,
    found: &[Found],
) -> Result<AllDetails> {
    let mut details = AllDetails::new();
    if shown.is_nothing() {
        return Ok(details);
    }
    let mut groups: BTreeMap<(usize, bool), Vec<Found>> = BTreeMap::new();
    for hit in found {
        groups.entry((hit.kind, hit.restored)).or_default().push(hit.clone());
    }
    for ((kind, restored), hits) in groups {
        let Some((kind, _)) = kinds.get(kind) else { continue };
        let (sql, params) = shown.details(words, kind, &hits, restored);
        for row in snapshot.dynamic(&sql, &params).await? {
            let headline: &str = row.try_get("headline")?;
            let fields = row.try_get("fields")?;
            let fields = shown.fields.as_ref().and(Some(fields));
            details.insert(row.try_get("uid")?, (passages(headline), fields));
        }
    }
    Ok(details)
}
