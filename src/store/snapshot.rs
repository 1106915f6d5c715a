//! Reading several things at one moment: a read-only transaction in the caller's tenant, and the pages of a listing.

use super::Store;
use super::backend::Op;
use super::caller::Caller;
use super::list::{ListQuery, Listing, MAX_EXACT_COUNT, estimated_rows};
use super::log;
use super::postgres::{Conn, Lane, read_rows};
use super::query::{FromRow, Params, Query};
use crate::{Error, Result, queries, row};
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

row! {
    pub struct Begun {
        pub now: SystemTime,
    }
}

queries! { "snapshot" {
    /// Enters a tenant for one transaction, with a limit on each statement: (tenant, milliseconds).
    ENTER(String, String) -> Begun =
        "SELECT now() AS now FROM (SELECT set_config('casebook.tenant', $1, true), \
         set_config('statement_timeout', $2, true)) AS entered";
} }

/// One moment of one tenant.
pub struct Snapshot {
    conn: Conn,
    pub now: SystemTime,
}

impl Snapshot {
    pub async fn all<P: Params, R: FromRow>(
        &self,
        query: &Query<P, R>,
        params: &P,
    ) -> Result<Vec<R>> {
        self.conn.all(query, params).await
    }

    /// Runs a statement built for this call. It is not kept: its text depends on what the caller asked.
    pub async fn dynamic(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        Ok(self.conn.client().query(sql, params).await?)
    }

    /// Ends the transaction and gives the connection back.
    pub async fn end<T>(self, value: T) -> Result<T> {
        self.conn.client().batch_execute("COMMIT").await?;
        self.conn.done();
        Ok(value)
    }

    /// The tenant's newest log number; 0 before its first write.
    pub async fn head(&self) -> Result<i64> {
        Ok(self.all(&log::HEAD, &()).await?.first().map_or(0, |head| head.seq))
    }
}

/// Rows of a listing, and what the next page needs to know.
pub struct Page<R> {
    pub rows: Vec<R>,
    /// Where the page ended, if there is more: the `cursor_key` of its last row.
    pub next: Option<Vec<Option<String>>>,
    /// The log number that every page of the listing is read at.
    pub seq: i64,
    pub total: Option<Total>,
    /// When it was read.
    pub now: SystemTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Total {
    pub rows: i64,
    pub is_estimate: bool,
}

impl Store {
    /// Runs a piece of reading in a read-only transaction at one snapshot, as the caller's tenant, within what is left
    /// of the deadline. `run` ends the snapshot; it may be called again if nothing came of the first time.
    pub async fn snapshot<T: Send + 'static>(
        &self,
        caller: &Caller,
        name: &'static str,
        run: impl Fn(Snapshot) -> BoxFuture<'static, Result<T>> + Send + Sync + 'static,
    ) -> Result<T> {
        let (tenant, deadline, statement_timeout) =
            (caller.tenant.to_string(), caller.deadline, self.statement_timeout);
        let run = Arc::new(run);
        let op = Op::new(name, Lane::Work, deadline, move |conn| {
            let (tenant, run) = (tenant.clone(), Arc::clone(&run));
            Box::pin(async move {
                let left =
                    deadline.saturating_duration_since(Instant::now()).min(statement_timeout);
                let enter = conn.prepare(ENTER.sql()).await?;
                let params = (tenant, left.as_millis().max(1).to_string());
                let params = params.as_sql();
                let (begun, entered) = futures_util::join!(
                    conn.client().batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"),
                    conn.client().query(&enter, &params),
                );
                begun?;
                let entered: Vec<Begun> = read_rows(&entered?)?;
                let now = entered
                    .first()
                    .map(|row| row.now)
                    .ok_or_else(|| Error::internal("no time from PostgreSQL"))?;
                run(Snapshot { conn, now }).await
            })
        });
        self.backend.call(op).await
    }

    /// Fails unless the tenant's log has come as far as `seq`.
    pub async fn reaches(&self, caller: &Caller, seq: i64) -> Result<()> {
        let head = self
            .snapshot(caller, log::HEAD.name, |snapshot| {
                Box::pin(async move {
                    let head = snapshot.head().await?;
                    snapshot.end(head).await
                })
            })
            .await?;
        if seq > head { Err(in_the_future()) } else { Ok(()) }
    }

    /// One page of a listing. The first page fixes the log number that the others are read at.
    pub async fn list<R: FromRow>(
        &self,
        caller: &Caller,
        listing: &'static Listing,
        query: ListQuery,
        wants_total: bool,
    ) -> Result<Page<R>> {
        let query = Arc::new(query);
        self.snapshot(caller, listing.op, move |snapshot| {
            let query = Arc::clone(&query);
            Box::pin(async move {
                let page = read_listing(&snapshot, listing, &query, wants_total).await?;
                snapshot.end(page).await
            })
        })
        .await
    }
}

/// One page of a listing, as part of what is read at this moment.
pub(super) async fn read_listing<R: FromRow>(
    snapshot: &Snapshot,
    listing: &'static Listing,
    query: &ListQuery,
    wants_total: bool,
) -> Result<Page<R>> {
    let head = snapshot.head().await?;
    let seq = query.snapshot.unwrap_or(head);
    if seq > head {
        return Err(in_the_future());
    }
    // The log only grows, so a part of it is all there is to its past.
    let of_log = log::up_to(listing, query)?;
    if of_log.is_none() && query.snapshot.is_some() {
        snapshot.reaches_back(seq).await?;
    }
    let query = of_log.as_ref().unwrap_or(query);
    let (rows, next) = read_page(snapshot, listing, query).await?;
    let total = if wants_total { Some(total(snapshot, listing, query).await?) } else { None };
    Ok(Page { rows, next, seq, total, now: snapshot.now })
}

async fn read_page<R: FromRow>(
    snapshot: &Snapshot,
    listing: &Listing,
    query: &ListQuery,
) -> Result<(Vec<R>, Option<Vec<Option<String>>>)> {
    let columns = R::columns();
    let columns: Vec<&str> = columns.iter().map(|column| column.name).collect();
    // One more than the page tells whether there is another.
    let asked = ListQuery { limit: query.limit + 1, ..query.clone() };
    let (sql, params) = listing.page(&columns, &asked);
    let mut rows = snapshot.dynamic(&sql, &params.as_sql()).await?;
    let more = rows.len() as i64 > query.limit;
    rows.truncate(query.limit as usize);
    let next = match rows.last() {
        Some(last) if more => Some(last.try_get("cursor_key")?),
        _ => None,
    };
    Ok((read_rows(&rows)?, next))
}

async fn total(snapshot: &Snapshot, listing: &Listing, query: &ListQuery) -> Result<Total> {
    let all = ListQuery { after: None, skip: 0, ..query.clone() };
    let (sql, params) = listing.count(&all);
    let rows = snapshot.dynamic(&sql, &params.as_sql()).await?;
    let counted: i64 = match rows.first() {
        Some(row) => row.try_get(0)?,
        None => 0,
    };
    if counted <= MAX_EXACT_COUNT {
        return Ok(Total { rows: counted, is_estimate: false });
    }
    let (sql, params) = listing.estimate(&all);
    let plan = snapshot.dynamic(&sql, &params.as_sql()).await?;
    let line: &str = plan.first().map_or(Ok(""), |row| row.try_get(0))?;
    Ok(Total { rows: estimated_rows(line).unwrap_or(counted).max(counted), is_estimate: true })
}

/// A revision that this database has not reached: of another deployment, or from before it was restored.
pub fn in_the_future() -> Error {
    Error::invalid_because(
        crate::Reason::BadRevision,
        "consistency",
        "names a revision that lies in the future",
    )
}
