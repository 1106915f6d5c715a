//! Which calls were made under a request id, and which log entries answer them again.

use crate::{queries, row};
use tokio_postgres::types::ToSql;

row! {
    /// A request id that was new.
    pub struct Claimed {
        pub principal: String,
        pub method: String,
        pub request_id: String,
    }
}

row! {
    /// A call that was made.
    pub struct LedgerRow {
        pub principal: String,
        pub method: String,
        pub request_id: String,
        pub digest: Vec<u8>,
        pub first_seq: i64,
        pub entry_count: i32,
        pub earlier_seqs: Vec<i64>,
    }
}

row! {
    pub struct Expired {
        pub expire_requests: i64,
    }
}

queries! { "request_ledger" {
    /// Claims request ids; those that are taken do not come back. Waits for a concurrent claim to commit or roll back.
    CLAIM(Vec<String>, Vec<String>, Vec<String>, Vec<Vec<u8>>) -> Claimed =
        "INSERT INTO request_ledger (principal, method, request_id, digest) \
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[]) \
         ON CONFLICT DO NOTHING RETURNING {*}";
    /// The same of ids that should all be new: it fails if one is taken.
    CLAIM_NEW(Vec<String>, Vec<String>, Vec<String>, Vec<Vec<u8>>) -> () =
        "INSERT INTO request_ledger (principal, method, request_id, digest) \
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[])";
    READ(Vec<String>, Vec<String>, Vec<String>) -> LedgerRow =
        "SELECT {*} FROM request_ledger WHERE (principal, method, request_id) IN \
         (SELECT * FROM unnest($1::text[], $2::text[], $3::text[]))";
    /// Notes which entries answer each call, counted back from the tenant's head, which this transaction has locked.
    SETTLE(Vec<String>, Vec<String>, Vec<String>, Vec<i64>, Vec<i32>, Vec<String>) -> () =
        "UPDATE request_ledger r SET first_seq = h.seq - u.back, entry_count = u.entry_count, \
         earlier_seqs = u.earlier::bigint[] \
         FROM log_head h, unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::int[], $6::text[]) \
         AS u (principal, method, request_id, back, entry_count, earlier) \
         WHERE r.principal = u.principal AND r.method = u.method AND r.request_id = u.request_id";
    /// Gives claims back: a failed call may be made again under the same id.
    RELEASE(Vec<String>, Vec<String>, Vec<String>) -> () =
        "DELETE FROM request_ledger WHERE (principal, method, request_id) IN \
         (SELECT * FROM unnest($1::text[], $2::text[], $3::text[]))";
    /// Forgets ids older than a number of milliseconds, a bounded number at a time, in all tenants.
    EXPIRE(i64, i32) -> Expired = "SELECT wall.expire_requests($1, $2)";
} }

pub type KeyParams = (Vec<String>, Vec<String>, Vec<String>);
type Key<'a> = (&'a str, &'a str, &'a str, [u8; 32]);

/// Ledger keys, column by column.
pub struct Keys {
    keys: KeyParams,
    digests: Vec<Vec<u8>>,
}

impl Keys {
    pub fn of<'a>(keys: impl Iterator<Item = Key<'a>>) -> Self {
        let mut all = Self { keys: KeyParams::default(), digests: Vec::new() };
        for (principal, method, request_id, digest) in keys {
            all.keys.0.push(principal.to_owned());
            all.keys.1.push(method.to_owned());
            all.keys.2.push(request_id.to_owned());
            all.digests.push(digest.to_vec());
        }
        all
    }

    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    pub fn params(&self) -> KeyParams {
        self.keys.clone()
    }

    pub fn with_digests(&self) -> (Vec<String>, Vec<String>, Vec<String>, Vec<Vec<u8>>) {
        let (principals, methods, request_ids) = self.keys.clone();
        (principals, methods, request_ids, self.digests.clone())
    }
}

/// What [`SETTLE`] writes, column by column.
pub struct Settled {
    keys: KeyParams,
    back: Vec<i64>,
    counts: Vec<i32>,
    earlier: Vec<String>,
}

impl Settled {
    /// From (key, how far the first entry lies behind the head, number of entries, earlier entries shown).
    pub fn of<'a>(calls: impl Iterator<Item = (Key<'a>, i64, i32, &'a [i64])>) -> Self {
        let mut all = Self {
            keys: KeyParams::default(),
            back: Vec::new(),
            counts: Vec::new(),
            earlier: Vec::new(),
        };
        for ((principal, method, request_id, _), back, count, earlier) in calls {
            all.keys.0.push(principal.to_owned());
            all.keys.1.push(method.to_owned());
            all.keys.2.push(request_id.to_owned());
            all.back.push(back);
            all.counts.push(count);
            // An array of arrays must be rectangular, so each travels as PostgreSQL writes an array.
            let numbers: Vec<String> = earlier.iter().map(i64::to_string).collect();
            all.earlier.push(format!("{{{}}}", numbers.join(",")));
        }
        all
    }

    pub fn as_sql(&self) -> Vec<&(dyn ToSql + Sync)> {
        vec![&self.keys.0, &self.keys.1, &self.keys.2, &self.back, &self.counts, &self.earlier]
    }
}
