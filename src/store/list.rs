//! Keyset listings at one revision.
//!
//! The sort always ends in `uid`, so it is total; in the log, where many rows have one, it ends in `seq`
//! before that. NULLs come last in both directions. A listing at a snapshot merges the rows that have not
//! changed since with the changed ones as the log has them. That is exact under READ COMMITTED too:
//! whatever commits later has a higher `seq` and is undone.

use super::filter::{Field, FieldKind, Filter, Params, Scalar, from_micros};
use std::time::SystemTime;
use uuid::Uuid;

/// Totals are exact up to here, in rows.
pub const MAX_EXACT_COUNT: i64 = 10_000;

/// What can be listed of one noun.
#[derive(Debug)]
pub struct Listing {
    /// The noun in the log: `decision`.
    pub kind: &'static str,
    /// Its view, which has `uid`, `id` and `delete_time`, and whose column names are the keys of the
    /// log's documents.
    pub table: &'static str,
    /// Its label in metrics: `decision.LIST`.
    pub op: &'static str,
    pub fields: &'static [Field],
}

/// One sort key, of a sortable field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Order {
    pub field: &'static Field,
    pub desc: bool,
}

/// Where a page ended: the sort keys and the uid of its last row.
#[derive(Clone, Debug, PartialEq)]
pub struct Cursor {
    keys: Vec<Option<Scalar>>,
    uid: Uuid,
}

/// A span of time, start inclusive, end exclusive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    pub field: &'static Field,
    pub start: Option<SystemTime>,
    pub end: Option<SystemTime>,
}

/// Which rows, in which order.
#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    pub filter: Filter,
    pub order: Vec<Order>,
    /// Only rows after this one.
    pub after: Option<Cursor>,
    /// Rows. One more than a page tells whether another page follows.
    pub limit: i64,
    /// Rows to pass over.
    pub skip: i64,
    pub show_deleted: bool,
    /// Only the rows whose column is this id: `("d.decision_id", id)`.
    pub parent: Option<(&'static str, String)>,
    /// Only the rows whose column is one of these ids.
    pub among: Option<(&'static str, Vec<String>)>,
    /// What must hold besides, for a noun of its own kind: a condition over the alias `d`.
    pub besides: Option<fn(&ListQuery, &mut Params) -> String>,
    pub window: Option<Window>,
    /// The rows as they stood after this `seq` of the log; none means now.
    pub snapshot: Option<i64>,
    /// Whether the log is known to have grown since. No more than a hint: what is read is the same.
    pub outgrown: bool,
}

impl Cursor {
    /// From a row's `cursor_key`. None if it was not made by a listing in this order.
    pub fn parse(order: &[Order], key: &[Option<String>]) -> Option<Self> {
        let (uid, keys) = key.split_last()?;
        if keys.len() != order.len() {
            return None;
        }
        let keys = keys.iter().zip(order).map(|(text, order)| match text {
            Some(text) => Some(Some(key_value(order.field.kind, text)?)),
            // A NULL where there is none would lose the rows after it.
            None => order.field.nullable.then_some(None),
        });
        Some(Self {
            keys: keys.collect::<Option<_>>()?,
            uid: Uuid::try_parse(uid.as_deref()?).ok()?,
        })
    }

    /// The first sort key, where it is text.
    pub fn first_text(&self) -> Option<&str> {
        match self.keys.first() {
            Some(Some(Scalar::Text(text))) => Some(text),
            _ => None,
        }
    }
}

/// The opposite of [`key_text`].
fn key_value(kind: FieldKind, text: &str) -> Option<Scalar> {
    Some(match kind {
        FieldKind::Text => Scalar::Text(text.to_owned()),
        FieldKind::Int => Scalar::Int(text.parse().ok()?),
        FieldKind::Float => Scalar::Float(text.parse().ok()?),
        FieldKind::Bool => Scalar::Bool(text.parse().ok()?),
        FieldKind::Time => Scalar::Time(from_micros(text.parse().ok()?)?),
        FieldKind::Enum { .. } => Scalar::Enum(text.parse().ok()?),
        FieldKind::Uuid => Scalar::Uuid(Uuid::try_parse(text).ok()?),
        FieldKind::Texts | FieldKind::Labels | FieldKind::Json => return None,
    })
}

/// A sort key as text that loses nothing: times in microseconds of the Unix epoch.
fn key_text(field: &Field) -> String {
    let column = field.column;
    match field.kind {
        FieldKind::Time => format!("(extract(epoch FROM {column}) * 1000000)::int8::text"),
        FieldKind::Float => format!("{column}::float8::text"),
        _ => format!("{column}::text"),
    }
}

fn direction(desc: bool, nullable: bool) -> &'static str {
    match (desc, nullable) {
        (false, _) => "ASC",
        (true, false) => "DESC",
        // An index serves this only if it is declared so too.
        (true, true) => "DESC NULLS LAST",
    }
}

impl Listing {
    /// One page: the rows' `columns` and `cursor_key text[]`, which [`Cursor::parse`] reads.
    pub fn page(&self, columns: &[&str], query: &ListQuery) -> (String, Params) {
        let mut params = Params::default();
        let common = query.conditions(&mut params);
        let runs = query.runs(&mut params);
        let sources = self.sources(query, &mut params);
        let limit = params.push(query.limit);
        let skip = (query.skip > 0).then(|| params.push(query.skip));

        let columns: Vec<_> = columns.iter().map(|column| format!("\"{column}\"")).collect();
        let of = |alias: &str| {
            columns.iter().map(|column| format!("{alias}.{column}")).collect::<Vec<_>>().join(", ")
        };
        let mut keys: Vec<_> = query.order.iter().map(|order| key_text(order.field)).collect();
        keys.push("d.uid::text".into());
        let select = format!("{}, ARRAY[{}] AS cursor_key", of("d"), keys.join(", "));
        let order = query.order_by(|_, field| field.ordered(), "d.uid");

        if let ([source], [run]) = (&sources[..], &runs[..]) {
            let rows = source.rows(&select, &[&common, run]);
            let offset = skip.map(|skip| format!("\nOFFSET {skip}")).unwrap_or_default();
            return (format!("{rows}\nORDER BY {order}\nLIMIT {limit}{offset}"), params);
        }

        // Each branch can stop early by an index of its own; the few rows are then merged.
        let mut sorted = select;
        for (i, order) in query.order.iter().enumerate() {
            sorted.push_str(&format!(", {} AS sort_{i}", order.field.column));
        }
        sorted.push_str(", d.uid AS sort_uid");
        let enough = match &skip {
            Some(skip) => format!("{limit} + {skip}"),
            None => limit.clone(),
        };
        let mut branches = Vec::new();
        for source in &sources {
            for run in &runs {
                let rows = source.rows(&sorted, &[&common, run]);
                branches.push(format!("({rows}\nORDER BY {order}\nLIMIT {enough})"));
            }
        }
        let merged = query.order_by(
            |i, field| match field.kind {
                FieldKind::Text => format!("page.sort_{i} COLLATE \"C\""),
                _ => format!("page.sort_{i}"),
            },
            "page.sort_uid",
        );
        let offset = skip.map(|skip| format!("\nOFFSET {skip}")).unwrap_or_default();
        let sql = format!(
            "SELECT {}, page.cursor_key\nFROM (\n{}\n) AS page\nORDER BY {merged}\nLIMIT {limit}{offset}",
            of("page"),
            branches.join("\nUNION ALL\n"),
        );
        (sql, params)
    }

    /// One `int8`: the number of rows on all pages, exact up to [`MAX_EXACT_COUNT`] and one more for
    /// any number above it.
    pub fn count(&self, query: &ListQuery) -> (String, Params) {
        let mut params = Params::default();
        let common = query.conditions(&mut params);
        let sources = self.sources(query, &mut params);
        let limit = params.push(MAX_EXACT_COUNT + 1);
        let branches: Vec<_> = sources
            .iter()
            .map(|source| format!("({}\nLIMIT {limit})", source.rows("1", &[&common])))
            .collect();
        let rows = branches.join("\nUNION ALL\n");
        (format!("SELECT least(count(*), {limit})\nFROM (\n{rows}\n) AS counted"), params)
    }

    /// The plan, of which [`estimated_rows`] reads the first line: about how many rows all pages have,
    /// without counting them. It is about now, not the snapshot.
    pub fn estimate(&self, query: &ListQuery) -> (String, Params) {
        let mut params = Params::default();
        let common = query.conditions(&mut params);
        let current = Source { from: format!("{} AS d", self.table), condition: None };
        (format!("EXPLAIN {}", current.rows("1", &[&common])), params)
    }

    /// One `text`: the different values of a column, in the rows of all pages, that are not among those known; the
    /// first `limit` of them by their bytes.
    pub fn values(
        &self,
        query: &ListQuery,
        column: &str,
        known: &[String],
        limit: usize,
    ) -> (String, Params) {
        let mut params = Params::default();
        let mut common = query.conditions(&mut params);
        common.push(format!("NOT {column} = ANY({})", params.push(known.to_vec())));
        let sources = self.sources(query, &mut params);
        let select = format!("{column} COLLATE \"C\" AS value");
        let branches: Vec<_> =
            sources.iter().map(|source| source.rows(&select, &[&common])).collect();
        let rows = branches.join("\nUNION ALL\n");
        let sql = format!(
            "SELECT DISTINCT found.value FROM (\n{rows}\n) AS found ORDER BY 1 LIMIT {limit}"
        );
        (sql, params)
    }

    /// The rows as they stand: first those of the table, then, at a snapshot, those that the log alone has as they were.
    pub(super) fn sources(&self, query: &ListQuery, params: &mut Params) -> Vec<Source> {
        let table = self.table;
        let Some(seq) = query.snapshot else {
            return vec![Source { from: format!("{table} AS d"), condition: None }];
        };
        let kind = params.push(self.kind.to_owned());
        let seq = params.push(seq);
        // OFFSET 0 keeps this a probe of an index for each row, 3 us, and for none while nothing of the
        // kind has changed. As an anti-join it is quadratic when statistics lag behind the log:
        // 17 s a page after 20,000 changes.
        let unchanged = Source {
            from: format!("{table} AS d"),
            condition: Some(format!(
                "(NOT EXISTS (SELECT FROM log AS l WHERE l.kind = {kind} AND l.seq > {seq})
    OR NOT EXISTS (SELECT FROM log AS l
      WHERE l.kind = {kind} AND l.id = d.id AND l.uid = d.uid AND l.seq > {seq} OFFSET 0))"
            )),
        };
        // Driven by the log after the snapshot, so it costs nothing while nothing has changed. First
        // versions are left out: what was created later did not exist.
        let restored = Source {
            from: format!(
                "(SELECT DISTINCT l.id, l.uid FROM log AS l
  WHERE l.kind = {kind} AND l.seq > {seq} AND l.version > 1) AS changed
CROSS JOIN LATERAL (SELECT p.document FROM log AS p
  WHERE p.kind = {kind} AND p.id = changed.id AND p.uid = changed.uid AND p.seq <= {seq}
  ORDER BY p.seq DESC LIMIT 1) AS stood
CROSS JOIN LATERAL jsonb_populate_record(NULL::{table}, convert_from(stood.document, 'UTF8')::jsonb) AS d"
            ),
            // An erased document leaves a record of NULLs.
            condition: Some("stood.document IS NOT NULL".into()),
        };
        vec![unchanged, restored]
    }
}

/// Rows called `d`.
pub(super) struct Source {
    pub from: String,
    pub condition: Option<String>,
}

impl Source {
    pub fn rows(&self, select: &str, conditions: &[&[String]]) -> String {
        let all: Vec<_> =
            self.condition.iter().chain(conditions.iter().copied().flatten()).cloned().collect();
        let condition = if all.is_empty() { "TRUE".into() } else { all.join("\n  AND ") };
        format!("SELECT {select}\nFROM {}\nWHERE {condition}", self.from)
    }
}

impl ListQuery {
    /// Whether it is one that everybody makes: everything, in an order of one field.
    pub(super) fn is_common(&self) -> bool {
        let Self { filter, order, parent, among, besides, window, .. } = self;
        filter.selects_everything()
            && order.len() <= 1
            && parent.is_none()
            && among.is_none()
            && besides.is_none()
            && window.is_none()
    }

    /// What holds for every row of every page.
    pub(super) fn conditions(&self, params: &mut Params) -> Vec<String> {
        let mut all = Vec::new();
        if !self.show_deleted {
            all.push("d.delete_time IS NULL".into());
        }
        if let Some((column, id)) = &self.parent {
            all.push(format!("{column} = {}", params.push(id.clone())));
        }
        if let Some((column, ids)) = &self.among {
            all.push(format!("{column} = ANY({})", params.push(ids.clone())));
        }
        if let Some(Window { field, start, end }) = self.window {
            all.extend(start.map(|start| format!("{} >= {}", field.column, params.push(start))));
            all.extend(end.map(|end| format!("{} < {}", field.column, params.push(end))));
        }
        if !self.filter.selects_everything() {
            all.push(self.filter.sql(params));
        }
        all.extend(self.besides.map(|besides| besides(self, params)));
        all
    }

    /// What holds for the rows after the cursor, as one or more conditions that exclude one another.
    fn runs(&self, params: &mut Params) -> Vec<Vec<String>> {
        let Some(Cursor { keys, uid }) = &self.after else { return vec![vec![]] };
        let uid = params.push(*uid);
        let past = |desc: bool| if desc { "<" } else { ">" };
        let last_desc = self.order.last().is_some_and(|order| order.desc);
        let same_direction = self.order.iter().all(|order| order.desc == last_desc);

        if let ([Order { field, .. }], [None]) = (&self.order[..], &keys[..]) {
            let condition = format!("d.uid {} {uid}", past(last_desc));
            return vec![vec![format!("{} IS NULL", field.column), condition]];
        }
        let values: Vec<_> =
            keys.iter().map(|value| value.as_ref().map(|value| params.scalar(value))).collect();
        let nullable = self.order.iter().any(|order| order.field.nullable);
        if same_direction && (!nullable || self.order.len() == 1) {
            // An index serves a comparison of rows, but not the same thing spelled out.
            let mut columns: Vec<_> =
                self.order.iter().map(|order| order.field.ordered()).collect();
            columns.push("d.uid".into());
            let bounds: Vec<_> = values.iter().flatten().chain([&uid]).cloned().collect();
            let (columns, bounds) = (columns.join(", "), bounds.join(", "));
            let mut runs = vec![vec![format!("({columns}) {} ({bounds})", past(last_desc))]];
            if let ([Order { field, .. }], true) = (&self.order[..], nullable) {
                runs.push(vec![format!("{} IS NULL", field.column)]);
            }
            return runs;
        }

        let mut any = Vec::new();
        let mut equal: Vec<String> = Vec::new();
        for (order, value) in self.order.iter().zip(&values) {
            let (column, ordered) = (order.field.column, order.field.ordered());
            if let Some(value) = value {
                let mut after = format!("{ordered} {} {value}", past(order.desc));
                if order.field.nullable {
                    after = format!("({after} OR {column} IS NULL)");
                }
                any.push(equal.iter().cloned().chain([after]).collect::<Vec<_>>().join(" AND "));
                equal.push(format!("{ordered} = {value}"));
            } else {
                equal.push(format!("{column} IS NULL"));
            }
        }
        equal.push(format!("d.uid {} {uid}", past(last_desc)));
        any.push(equal.join(" AND "));
        let mut run = vec![format!("({})", any.join(" OR "))];
        // Implied, but it is what lets an index scan begin where the page before ended.
        if let (Some(Order { field, desc }), Some(Some(value))) =
            (self.order.first(), values.first())
            && !field.nullable
        {
            run.push(format!("{} {}= {value}", field.ordered(), past(*desc)));
        }
        vec![run]
    }

    fn order_by(&self, key: impl Fn(usize, &Field) -> String, uid: &str) -> String {
        let keys = self.order.iter().enumerate();
        let mut all: Vec<_> = keys
            .map(|(i, Order { field, desc })| {
                format!("{} {}", key(i, field), direction(*desc, field.nullable))
            })
            .collect();
        let desc = self.order.last().is_some_and(|order| order.desc);
        all.push(format!("{uid} {}", direction(desc, false)));
        all.join(", ")
    }
}

/// The number of rows that the first line of a plan expects:
/// `Index Scan using i on t  (cost=0.42..8.44 rows=12 width=4)`.
pub fn estimated_rows(first_line: &str) -> Option<i64> {
    let (_, rows) = first_line.split_once(" rows=")?;
    rows.split(' ').next()?.parse().ok()
}

#[cfg(test)]
#[path = "list_tests.rs"]
mod tests;
