//! Listing by prefix and delimiter: the keys of one level, and each deeper level as one common prefix.
//!
//! One statement goes from key to key by the index, and from a key in a common prefix behind all keys of that prefix, so
//! that what it costs is what the page shows, however many keys lie deeper.

use super::{LISTING, Object};
use crate::store::Store;
use crate::store::caller::Caller;
use crate::store::filter::{Field, Filter, Params, successor};
use crate::store::list::{ListQuery, Order, Source, Window};
use crate::store::snapshot::{as_it_stood, read_listing};
use crate::{Error, Result};
use std::sync::Arc;

/// One page of a level.
#[derive(Clone, Debug)]
pub struct Walk {
    pub prefix: String,
    /// At least one character, and not of U+10FFFF alone.
    pub delimiter: String,
    pub filter: Filter,
    pub window: Option<Window>,
    /// Where the page begins: the least key that may be on it. None for the first page.
    pub from: Option<String>,
    /// Objects and prefixes together.
    pub limit: i64,
    pub snapshot: Option<i64>,
}

/// What a page has, each in the order of keys.
#[derive(Debug, Default)]
pub struct Level {
    pub objects: Vec<Object>,
    pub common_prefixes: Vec<String>,
    /// Where the next page begins, if there is one.
    pub next: Option<String>,
    /// The log number that it was read at.
    pub seq: i64,
    pub outgrown: bool,
}

impl Walk {
    /// The common prefix that a key lies in.
    fn common_prefix<'a>(&self, key: &'a str) -> Option<&'a str> {
        let rest = key.get(self.prefix.len()..)?;
        let at = rest.find(&self.delimiter)?;
        key.get(..self.prefix.len() + at + self.delimiter.len())
    }

    /// The least key that may come behind a key, or behind all that share its common prefix.
    fn behind(&self, key: &str) -> Option<String> {
        match self.common_prefix(key) {
            Some(prefix) => {
                // The same as its successor, but made as the statement makes it.
                let stem = prefix.strip_suffix(&self.delimiter)?;
                Some(format!("{stem}{}", successor(&self.delimiter)?))
            }
            // No key has a smaller character.
            None => Some(format!("{key}\u{1}")),
        }
    }

    fn query(&self) -> ListQuery {
        ListQuery {
            filter: self.filter.clone(),
            window: self.window,
            snapshot: self.snapshot,
            ..ListQuery::default()
        }
    }

    /// The statement, at a number of the log or now: `key`, one more than the limit, in their order; of each common prefix
    /// its first key.
    pub fn statement(&self, snapshot: Option<i64>) -> Result<(String, Params)> {
        let query = &ListQuery { snapshot, ..self.query() };
        let mut params = Params::default();
        let mut common = query.conditions(&mut params);
        if let Some(end) = successor(&self.prefix) {
            common.push(format!("d.id < {}", params.push(end)));
        }
        let mut sources = LISTING.sources(query, &mut params).into_iter();
        let current =
            sources.next().ok_or_else(|| Error::internal("a listing without a source"))?;
        let from = self.from.as_ref().filter(|from| **from > self.prefix).unwrap_or(&self.prefix);
        let from = params.push(from.clone());
        let restored = sources.next().map(|source: Source| {
            let from = vec![format!("d.id >= {from}")];
            source.rows("d.id AS key", &[&common, &from])
        });
        let next = |from: &str| {
            let from_here = vec![format!("d.id >= {from}")];
            let here = current.rows("d.id", &[&common, &from_here]);
            let here = format!("({here}\nORDER BY d.id LIMIT 1)");
            match restored {
                None => here,
                Some(_) => format!(
                    "LEAST({here},\n(SELECT r.key FROM restored AS r WHERE r.key >= {from} ORDER BY r.key LIMIT 1))"
                ),
            }
        };
        let end = successor(&self.delimiter)
            .ok_or_else(|| Error::internal("no text comes behind the delimiter"))?;
        let (prefix, delimiter, end) = (
            params.push(self.prefix.clone()),
            params.push(self.delimiter.clone()),
            params.push(end),
        );
        let rest = format!("substr(walk.key, char_length({prefix}) + 1)");
        let at = format!("strpos({rest}, {delimiter})");
        let behind = format!(
            "CASE WHEN {at} > 0 THEN {prefix} || left({rest}, {at} - 1) || {end} ELSE walk.key || chr(1) END"
        );
        let with = match &restored {
            Some(rows) => format!("restored AS MATERIALIZED (\n{rows}\n),\n"),
            None => String::new(),
        };
        let sql = format!(
            "WITH RECURSIVE {with}walk (key, n) AS (\n\
             SELECT {first} COLLATE \"C\", 1::bigint\n\
             UNION ALL\n\
             SELECT next.key, walk.n + 1 FROM walk CROSS JOIN LATERAL (SELECT {then} COLLATE \"C\" AS key) AS next\n\
             WHERE walk.key IS NOT NULL AND walk.n <= {limit}\n\
             )\n\
             SELECT walk.key FROM walk WHERE walk.key IS NOT NULL ORDER BY walk.n",
            first = next(&from),
            then = next(&format!("({behind})")),
            limit = params.push(self.limit),
        );
        Ok((sql, params))
    }
}

impl Store {
    /// One page of a level, at one moment.
    pub async fn walk_objects(&self, caller: &Caller, walk: Walk) -> Result<Level> {
        let walk = Arc::new(walk);
        self.snapshot(caller, "object.WALK", move |snapshot| {
            let walk = Arc::clone(&walk);
            Box::pin(async move {
                let (seq, query) = as_it_stood(&snapshot, &LISTING, &walk.query()).await?;
                let (sql, params) = walk.statement(query.snapshot)?;
                let rows = snapshot.dynamic(&sql, &params).await?;
                let mut keys: Vec<String> = Vec::with_capacity(rows.len());
                for row in &rows {
                    keys.push(row.try_get(0)?);
                }
                let more = keys.len() as i64 > walk.limit;
                keys.truncate(usize::try_from(walk.limit).unwrap_or_default());
                let next = keys.last().filter(|_| more).and_then(|key| walk.behind(key));
                let mut level =
                    Level { next, seq, outgrown: seq < snapshot.head, ..Level::default() };
                let mut shown = Vec::new();
                for key in keys {
                    match walk.common_prefix(&key) {
                        Some(prefix) => level.common_prefixes.push(prefix.to_owned()),
                        None => shown.push(key),
                    }
                }
                if !shown.is_empty() {
                    let field = Field::find(LISTING.fields, "key")
                        .ok_or_else(|| Error::internal("objects have no key"))?;
                    let query = ListQuery {
                        order: vec![Order { field, desc: false }],
                        limit: shown.len() as i64,
                        among: Some(("d.id", shown)),
                        snapshot: Some(seq),
                        ..ListQuery::default()
                    };
                    let page = read_listing(&snapshot, &LISTING, &query, false).await?;
                    level.objects = page.rows;
                }
                snapshot.end(level).await
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(prefix: &str, delimiter: &str) -> Walk {
        Walk {
            prefix: prefix.into(),
            delimiter: delimiter.into(),
            filter: Filter::default(),
            window: None,
            from: None,
            limit: 10,
            snapshot: None,
        }
    }

    #[test]
    fn behind_a_key_comes_nothing_that_belongs_to_it() {
        let walk = walk("a/", "/");
        assert_eq!(walk.common_prefix("a/b/c"), Some("a/b/"));
        assert_eq!(walk.common_prefix("a/b"), None);
        assert_eq!(walk.behind("a/b/c"), Some("a/b0".into()));
        assert_eq!(walk.behind("a/b"), Some("a/b\u{1}".into()));
        let wide = super::tests::walk("é", "\u{10FFFF}é");
        assert_eq!(wide.common_prefix("éx\u{10FFFF}éy"), Some("éx\u{10FFFF}é"));
        assert_eq!(wide.behind("éx\u{10FFFF}éy"), Some("éx\u{10FFFF}ê".into()));
    }
}
