//! The spine: one append-only row per change, which is audit trail, revision history and change feed in one.

use super::Store;
use super::caller::Caller;
use super::canonical::{Json, parse_object, rfc3339, write_string, write_value};
use super::filter::{Condition, Field, FieldKind, Filter, Op, Value};
use super::list::{ListQuery, Listing};
use super::noun::Noun;
use crate::{Error, Result, queries, row};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;
use uuid::Uuid;

/// One change, as a write makes it.
#[derive(Debug)]
pub struct Entry {
    pub kind: &'static str,
    pub uid: Uuid,
    pub id: String,
    pub version: i64,
    pub action: Cow<'static, str>,
    /// The new version as canonical JSON; empty when nothing is left.
    pub document: Vec<u8>,
    /// Told of another than the caller, and from elsewhere.
    pub told: Option<Told>,
}

/// Who did something, and from where, as a caller tells it. What is empty is the caller's own.
#[derive(Clone, Debug, Default)]
pub struct Told {
    pub actor: String,
    pub ip_address: String,
    pub user_agent: String,
    pub trace_id: String,
}

impl Entry {
    pub fn of<T: Noun>(noun: &T, action: &'static str) -> Self {
        let meta = noun.meta();
        Self {
            kind: T::KIND,
            uid: meta.uid,
            id: noun.id().to_owned(),
            version: meta.version,
            action: Cow::Borrowed(action),
            document: noun.document(),
            told: None,
        }
    }
}

row! {
    /// A log row as it is appended; its number comes from PostgreSQL.
    pub struct Appended {
        pub time: SystemTime,
        pub kind: String,
        pub uid: Uuid,
        pub id: String,
        pub version: i64,
        pub action: String,
        pub method: String,
        pub principal: String,
        pub actor: String,
        pub ip_address: String,
        pub user_agent: String,
        pub request_id: String,
        pub trace_id: String,
        pub context: Option<Json>,
        pub document: Option<Vec<u8>>,
        pub salt: Vec<u8>,
        pub leaf: Vec<u8>,
        pub leaf_hash: Vec<u8>,
    }
}

row! {
    /// A log row.
    pub struct LogRow {
        pub seq: i64,
        pub time: SystemTime,
        pub kind: String,
        pub uid: Uuid,
        pub id: String,
        pub version: i64,
        pub action: String,
        pub method: String,
        pub principal: String,
        pub actor: String,
        pub ip_address: String,
        pub user_agent: String,
        pub request_id: String,
        pub trace_id: String,
        pub context: Option<Json>,
        pub document: Option<Vec<u8>>,
        pub salt: Vec<u8>,
        pub leaf: Vec<u8>,
        pub leaf_hash: Vec<u8>,
    }
}

impl LogRow {
    /// Who and from where are archived. Every call has a principal.
    pub fn is_archived(&self) -> bool {
        self.principal.is_empty()
    }
}

row! {
    /// Where in the log a version stands.
    pub struct Seq {
        pub seq: i64,
    }
}

queries! { "log" {
    /// The tenant's newest number; no row before its first write.
    HEAD() -> Seq = "SELECT seq FROM log_head";
    /// The same, locked, so that nothing of the tenant commits until we do. Makes the row, because what is not there
    /// cannot be locked.
    LOCK_HEAD() -> Seq = "INSERT INTO log_head AS h (seq) VALUES (0) \
         ON CONFLICT (tenant_id) DO UPDATE SET seq = h.seq RETURNING seq";
    BY_SEQ(Vec<i64>) -> LogRow = "SELECT {*} FROM log WHERE seq = ANY($1) ORDER BY seq";
    /// Numbers of given versions, in the order asked: (kinds, ids, uids, versions).
    SEQ_OF(Vec<String>, Vec<String>, Vec<Uuid>, Vec<i64>) -> Seq =
        "SELECT l.seq FROM unnest($1::text[], $2::text[], $3::uuid[], $4::bigint[]) WITH ORDINALITY \
         AS u (kind, id, uid, version, n) CROSS JOIN LATERAL (SELECT seq FROM log l WHERE l.kind = u.kind \
         AND l.id = u.id AND l.uid = u.uid AND l.version = u.version LIMIT 1) l ORDER BY u.n";
    /// One version of one resource: (kind, id, uid, version).
    VERSION(String, String, Uuid, i64) -> LogRow =
        "SELECT {*} FROM log WHERE kind = $1 AND id = $2 AND uid = $3 AND version = $4";
    /// Resources as they stood at a number: (kind, ids, seq). A deleted one's document has its delete_time.
    AS_OF(String, Vec<String>, i64) -> LogRow =
        "SELECT {l.*} FROM unnest($2::text[]) AS wanted (id) CROSS JOIN LATERAL \
         (SELECT * FROM log l WHERE l.kind = $1 AND l.id = wanted.id AND l.seq <= $3 ORDER BY l.seq DESC LIMIT 1) l";
    /// Every version of one resource before a version, newest first: (kind, id, uid, version, limit, offset).
    REVISIONS(String, String, Uuid, i64, i64, i64) -> LogRow =
        "SELECT {*} FROM log WHERE kind = $1 AND id = $2 AND uid = $3 AND version < $4 \
         ORDER BY seq DESC LIMIT $5 OFFSET $6";
    /// The documents before given versions: (kinds, ids, uids, versions), in the order asked, missing ones as NULL.
    BEFORE(Vec<String>, Vec<String>, Vec<Uuid>, Vec<i64>) -> Document =
        "SELECT l.document FROM unnest($1::text[], $2::text[], $3::uuid[], $4::bigint[]) WITH ORDINALITY \
         AS u (kind, id, uid, version, n) LEFT JOIN LATERAL (SELECT document FROM log l WHERE l.kind = u.kind \
         AND l.id = u.id AND l.uid = u.uid AND l.version = u.version - 1 LIMIT 1) l ON true ORDER BY u.n";
} }

row! {
    pub struct Document {
        pub document: Option<Vec<u8>>,
    }
}

/// Takes the next numbers of the tenant's log for all rows at once and appends them: the last statement before COMMIT,
/// because the lock on the head row is held until then.
pub(super) static APPEND: super::query::Query<super::query::Rows<Appended>, Base> =
    super::query::Query::new(
        "log.APPEND",
        "WITH head AS (INSERT INTO log_head AS h (seq) VALUES (cardinality($1::timestamptz[])) \
         ON CONFLICT (tenant_id) DO UPDATE SET seq = h.seq + cardinality($1::timestamptz[]) \
         RETURNING h.seq - cardinality($1::timestamptz[]) AS base), \
         entries AS (INSERT INTO log (seq, {r.*}) \
         SELECT head.base + e.n, e.time, e.kind, e.uid, e.id, e.version, e.action, e.method, e.principal, e.actor, \
         e.ip_address, e.user_agent, e.request_id, e.trace_id, e.context, e.document, e.salt, e.leaf, e.leaf_hash \
         FROM head, unnest({r.unnest}) WITH ORDINALITY AS e ({r.*}, n)) \
         SELECT base FROM head",
    );

pub(super) const ROW_QUERIES: &[&dyn super::query::Check] = &[&APPEND];

row! {
    /// The number before a write's first.
    pub struct Base {
        pub base: i64,
    }
}

/// Completes an entry: who, the salted digest of the document, and the leaf that commits to them.
///
/// The leaf names no log number: its place in the tree is its number, and leaving it out lets the leaf be made before
/// the number is known, so that numbering, appending and COMMIT go to the server in one flight.
pub fn append(
    entry: Entry,
    caller: &Caller,
    request_id: &str,
    context: Option<&Json>,
    salt: [u8; 16],
    now: SystemTime,
) -> Appended {
    let Entry { kind, uid, id, version, action, document, told } = entry;
    let Told { actor, ip_address, user_agent, trace_id } = told.unwrap_or_default();
    let or = |told: String, own: &str| if told.is_empty() { own.to_owned() } else { told };
    let actor = or(actor, &caller.actor);
    let digest = salted(&salt, &document);
    let actor_digest = salted(&salt, format!("{}\n{actor}", caller.principal).as_bytes());
    let mut leaf = Vec::with_capacity(400);
    // Written in the order of RFC 8785.
    let text = |leaf: &mut Vec<u8>, name: &str, value: &str| {
        leaf.push(if leaf.is_empty() { b'{' } else { b',' });
        write_string(name, leaf);
        leaf.push(b':');
        write_string(value, leaf);
    };
    text(&mut leaf, "action", &action);
    text(&mut leaf, "actor_digest", &hex(&actor_digest));
    text(&mut leaf, "digest", &hex(&digest));
    text(&mut leaf, "id", &id);
    text(&mut leaf, "kind", kind);
    text(&mut leaf, "method", caller.method);
    text(&mut leaf, "tenant", &caller.tenant);
    text(&mut leaf, "time", &rfc3339(now));
    text(&mut leaf, "uid", &uid.to_string());
    leaf.extend_from_slice(format!(",\"v\":1,\"version\":{version}}}").as_bytes());
    let leaf_hash = Sha256::new_with_prefix([0]).chain_update(&leaf).finalize().to_vec();
    Appended {
        time: now,
        kind: kind.to_owned(),
        uid,
        id,
        version,
        action: action.into_owned(),
        method: caller.method.to_string(),
        principal: caller.principal.to_string(),
        actor,
        ip_address: or(ip_address, &caller.address),
        user_agent: or(user_agent, &caller.user_agent),
        request_id: request_id.to_owned(),
        trace_id: or(trace_id, &caller.trace_id),
        context: context.cloned(),
        // What is purged has none.
        document: (!document.is_empty()).then_some(document),
        salt: salt.to_vec(),
        leaf,
        leaf_hash,
    }
}

fn salted(salt: &[u8], bytes: &[u8]) -> [u8; 32] {
    Sha256::new_with_prefix(salt).chain_update(bytes).finalize().into()
}

pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// The log as the audit trail lists it.
pub static LISTING: Listing = Listing {
    kind: "log",
    table: "log",
    op: "log.LIST",
    fields: &[
        Field::new("seq", "d.seq", FieldKind::Int).last(),
        Field::new("event_time", "d.time", FieldKind::Time),
        Field::new("kind", "d.kind", FieldKind::Text),
        Field::new("entity_id", "d.id", FieldKind::Text),
        Field::new("target_uid", "d.uid", FieldKind::Uuid),
        Field::new("version", "d.version", FieldKind::Int),
        Field::new("action", "d.action", FieldKind::Text),
        Field::new("method", "d.method", FieldKind::Text),
        Field::new("principal", "d.principal", FieldKind::Text),
        Field::new("actor", "d.actor", FieldKind::Text),
        Field::new("ip_address", "d.ip_address", FieldKind::Text),
        Field::new("request_id", "d.request_id", FieldKind::Text),
        Field::new("trace_id", "d.trace_id", FieldKind::Text),
    ],
};

/// A listing of the log as it stood at the query's snapshot; `None` for any other listing.
pub(super) fn up_to(listing: &Listing, query: &ListQuery) -> Result<Option<ListQuery>> {
    if listing.kind != LISTING.kind {
        return Ok(None);
    }
    let mut query = ListQuery { show_deleted: true, ..query.clone() };
    if let Some(seq) = query.snapshot.take() {
        let bound = Op::Range { gt: None, gte: None, lt: None, lte: Some(Value::Int(seq)) };
        query.filter = Filter::All(vec![query.filter, condition("seq", bound)?]);
    }
    Ok(Some(query))
}

/// The entries of one resource, whatever ids it shares with others.
pub fn of_resource(kind: &str, id: &str, uid: Option<Uuid>) -> Result<Filter> {
    let text = |text: &str| Op::Equals(Value::Text(text.to_owned()));
    let mut all = vec![condition("kind", text(kind))?, condition("entity_id", text(id))?];
    if let Some(uid) = uid {
        all.push(condition("target_uid", text(&uid.to_string()))?);
    }
    Ok(Filter::All(all))
}

pub fn condition(field: &str, op: Op) -> Result<Filter> {
    let field = Field::find(LISTING.fields, field)
        .ok_or_else(|| Error::internal(format!("the log has no field {field}")))?;
    Ok(Filter::Field(Condition::new(field, Vec::new(), op)?))
}

impl Store {
    /// One entry of the tenant's log.
    pub async fn log_entry(&self, caller: &Caller, seq: i64) -> Result<LogRow> {
        let rows = self
            .snapshot(caller, BY_SEQ.name, move |snapshot| {
                Box::pin(async move {
                    let rows = snapshot.all(&BY_SEQ, &(vec![seq],)).await?;
                    snapshot.end(rows).await
                })
            })
            .await?;
        rows.into_iter().next().ok_or_else(|| Error::not_found("audit entry", seq.to_string()))
    }

    /// What each entry changed, field by field against the version before: `{"field": {"old": .., "new": ..}}`. `None`
    /// where that is not to be known, or nothing was changed.
    pub async fn changes(&self, caller: &Caller, entries: &[LogRow]) -> Result<Vec<Option<Json>>> {
        let params = Arc::new((
            entries.iter().map(|entry| entry.kind.clone()).collect::<Vec<_>>(),
            entries.iter().map(|entry| entry.id.clone()).collect::<Vec<_>>(),
            entries.iter().map(|entry| entry.uid).collect::<Vec<_>>(),
            entries.iter().map(|entry| entry.version).collect::<Vec<_>>(),
        ));
        let before: Vec<Document> = self
            .snapshot(caller, BEFORE.name, move |snapshot| {
                let params = Arc::clone(&params);
                Box::pin(async move {
                    let rows = snapshot.all(&BEFORE, &*params).await?;
                    snapshot.end(rows).await
                })
            })
            .await?;
        let pairs = before.iter().zip(entries);
        pairs
            .map(|(before, entry)| {
                let (old, new) = (before.document.as_deref(), entry.document.as_deref());
                if UNCHANGING.contains(&entry.kind.as_str()) || (entry.version > 1 && old.is_none())
                {
                    return Ok(None);
                }
                new.map(|new| diff(old, new)).transpose()
            })
            .collect()
    }
}

/// Kinds whose entries are no versions of anything.
const UNCHANGING: &[&str] = &[super::event::KIND, super::archive::KIND];

/// What an entry says of its own: which resource and version, and who wrote when. A deletion is a change.
const SAID: &[&str] =
    &["id", "uid", "version", "create_time", "update_time", "created_by", "updated_by"];

/// The members in which two documents differ; the first version differs from nothing.
fn diff(old: Option<&[u8]>, new: &[u8]) -> Result<Json> {
    let mut old = old.map(parse_object).transpose()?.unwrap_or_default();
    let new = parse_object(new)?;
    let mut changes = serde_json::Map::new();
    let mut note = |name: String, old: serde_json::Value, new: serde_json::Value| {
        if old != new && !SAID.contains(&name.as_str()) {
            changes.insert(name, serde_json::json!({"old": old, "new": new}));
        }
    };
    for (name, new) in new {
        let old = old.remove(&name).unwrap_or_default();
        note(name, old, new);
    }
    // Columns that are gone.
    for (name, old) in old {
        note(name, old, serde_json::Value::Null);
    }
    let mut out = Vec::new();
    write_value(&changes.into(), &mut out);
    Ok(Json::from_canonical(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(old: Option<&str>, new: &str) -> String {
        let changes = diff(old.map(str::as_bytes), new.as_bytes()).unwrap();
        String::from_utf8(changes.canonical().to_vec()).unwrap()
    }

    #[test]
    fn a_diff_names_what_differs_and_not_what_the_entry_says() {
        let first =
            r#"{"a":1,"created_by":"x","delete_time":null,"gone":"z","id":"d","version":1}"#;
        assert_eq!(
            changed(None, first),
            r#"{"a":{"new":1,"old":null},"gone":{"new":"z","old":null}}"#
        );
        let second = r#"{"a":1,"b":null,"created_by":"x","delete_time":"t","id":"d","version":2}"#;
        assert_eq!(
            changed(Some(first), second),
            r#"{"delete_time":{"new":"t","old":null},"gone":{"new":null,"old":"z"}}"#
        );
    }
}
