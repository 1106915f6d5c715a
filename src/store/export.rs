//! The log piece by piece: what an export streams and an archive keeps.

use super::Store;
use super::caller::Caller;
use super::canonical::{rfc3339, write_value};
use super::filter::{Field, Filter, Op, Value};
use super::list::{ListQuery, Order, Window};
use super::log::{LISTING, LogRow, Seq, condition, hex};
use super::postgres::read_rows;
use super::query::FromRow;
use crate::{Error, Result, queries};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::SystemTime;

/// Entries that are read at once, matching or not.
const PIECE_ENTRIES_MAX: i64 = 500;
/// And about how many bytes of documents, so that what is held does not grow with them; one entry always fits.
const PIECE_BYTES_MAX: i64 = 4 << 20;
const FORMAT: &str = "casebook-audit";

queries! { "export" {
    /// Where a piece ends that begins after a number: (after, last at most, bytes). None behind the end of the log.
    PIECE_END(i64, i64, i64) -> Seq =
        "SELECT seq FROM (SELECT l.seq, row_number() OVER w AS n, \
         sum(COALESCE(octet_length(l.document), 0)) OVER w AS bytes \
         FROM log AS l WHERE l.seq > $1 AND l.seq <= $2 WINDOW w AS (ORDER BY l.seq)) AS piece \
         WHERE n = 1 OR bytes <= $3 ORDER BY seq DESC LIMIT 1";
} }

/// Which entries.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub filter: Filter,
    pub window: Option<Window>,
}

/// What comes before the entries.
pub struct Manifest<'a> {
    pub tenant: &'a str,
    pub first_seq: i64,
    pub last_seq: i64,
    pub time: SystemTime,
    pub details: bool,
    pub filtered: bool,
}

impl Manifest<'_> {
    pub fn json(&self) -> Vec<u8> {
        let Self { tenant, first_seq, last_seq, time, details, filtered } = *self;
        canonical(&json!({
            "format": FORMAT, "v": 1, "tenant": tenant, "first_seq": first_seq, "last_seq": last_seq,
            "time": rfc3339(time), "details": details, "filtered": filtered,
        }))
    }
}

/// What comes behind them: enough to see that one is missing.
#[derive(Clone, Default)]
pub struct Trailer {
    pub entry_count: i64,
    leaf_hashes: Sha256,
}

impl Trailer {
    pub fn add(&mut self, entry: &LogRow) {
        self.entry_count += 1;
        self.leaf_hashes.update(&entry.leaf_hash);
    }

    /// SHA-256 of all leaf hashes behind one another.
    pub fn leaf_hashes_sha256(&self) -> String {
        hex(&self.leaf_hashes.clone().finalize())
    }

    pub fn json(&self) -> Vec<u8> {
        canonical(&json!({
            "entry_count": self.entry_count, "leaf_hashes_sha256": self.leaf_hashes_sha256(),
        }))
    }
}

/// An entry with all its detail, as one line of JSON. Document and leaf are texts, because their bytes count.
pub fn line(entry: &LogRow) -> Result<Vec<u8>> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(Error::internal);
    let context = entry.context.as_ref().map(|context| serde_json::from_slice(context.text()));
    let context: Option<serde_json::Value> = context.transpose().map_err(Error::internal)?;
    Ok(canonical(&json!({
        "seq": entry.seq, "time": rfc3339(entry.time), "kind": entry.kind, "uid": entry.uid.to_string(),
        "id": entry.id, "version": entry.version, "action": entry.action, "method": entry.method,
        "principal": entry.principal, "actor": entry.actor, "ip_address": entry.ip_address,
        "user_agent": entry.user_agent, "request_id": entry.request_id, "trace_id": entry.trace_id,
        "context": context, "document": entry.document.as_deref().map(text).transpose()?,
        "salt": hex(&entry.salt), "leaf": text(&entry.leaf)?, "leaf_hash": hex(&entry.leaf_hash),
    })))
}

fn canonical(value: &serde_json::Value) -> Vec<u8> {
    let mut out = Vec::new();
    write_value(value, &mut out);
    out
}

impl Store {
    /// The tenant's newest log number.
    pub async fn log_head(&self, caller: &Caller) -> Result<i64> {
        self.snapshot(caller, super::log::HEAD.name, |snapshot| {
            Box::pin(async move {
                let head = snapshot.head;
                snapshot.end(head).await
            })
        })
        .await
    }

    /// The next piece of the log behind a number, at most up to another: the entries that are wanted, and where the
    /// piece ends. Nothing is held open between pieces: what lies below a head never moves.
    pub async fn log_piece(
        &self,
        caller: &Caller,
        wanted: &Wanted,
        after: i64,
        upto: i64,
    ) -> Result<(Vec<LogRow>, i64)> {
        let wanted = Arc::new(wanted.clone());
        let most = upto.min(after.saturating_add(PIECE_ENTRIES_MAX));
        self.snapshot(caller, PIECE_END.name, move |snapshot| {
            let wanted = Arc::clone(&wanted);
            Box::pin(async move {
                let end = snapshot.all(&PIECE_END, &(after, most, PIECE_BYTES_MAX)).await?;
                let end = end.first().map_or(upto, |end| end.seq);
                let (gt, lte) = (Some(Value::Int(after)), Some(Value::Int(end)));
                let range = condition("seq", Op::Range { gt, gte: None, lt: None, lte })?;
                let field = Field::find(LISTING.fields, "seq")
                    .ok_or_else(|| Error::internal("the log has no numbers"))?;
                let query = ListQuery {
                    filter: Filter::All(vec![range, wanted.filter.clone()]),
                    window: wanted.window,
                    order: vec![Order { field, desc: false }],
                    limit: PIECE_ENTRIES_MAX,
                    show_deleted: true,
                    ..ListQuery::default()
                };
                let columns = LogRow::columns();
                let columns: Vec<&str> = columns.iter().map(|column| column.name).collect();
                let (sql, params) = LISTING.page(&columns, &query);
                let rows = read_rows(&snapshot.dynamic(&sql, &params).await?)?;
                snapshot.end((rows, end)).await
            })
        })
        .await
    }
}
