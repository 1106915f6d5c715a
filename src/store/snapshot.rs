//! Reading several things at one moment: a read-only transaction in the caller's tenant, and the pages of a listing.

use super::Store;
use super::archive;
use super::backend::Op;
use super::caller::Caller;
use super::filter;
use super::list::{ListQuery, Listing, MAX_EXACT_COUNT, estimated_rows};
use super::log;
use super::postgres::{Conn, Lane, read_rows};
use super::query::{FromRow, Params, Query};
use crate::{Error, Result, queries, row};
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use tokio_postgres::{Row, Statement};

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
    /// Sets what statements are planned and run by until the transaction ends: (names, values).
    SET(Vec<String>, Vec<String>) -> () =
        "SELECT FROM unnest($1::text[], $2::text[]) AS s (name, value), set_config(s.name, s.value, true)";
} }

/// A setting of PostgreSQL, and its value.
pub type Setting = (&'static str, String);

fn settings_params(settings: &[Setting]) -> (Vec<String>, Vec<String>) {
    settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).unzip()
}

/// One moment of one tenant.
pub struct Snapshot {
    conn: Conn,
    pub now: SystemTime,
    /// The tenant's newest log number; 0 before its first write.
    pub head: i64,
}

/// One statement to run at a moment of its own.
#[derive(Default)]
pub(super) struct Look {
    pub sql: String,
    pub params: filter::Params,
    /// Whether it stays prepared, which spares PostgreSQL reading and planning it. Its text must be one of few, or
    /// sessions would grow without end.
    pub common: bool,
    /// The number of the log whose past it asks for: fails if that can no longer be known.
    pub since: Option<i64>,
    /// What it is planned and run by, if not as usual.
    pub settings: Vec<Setting>,
    /// One of the kept statements, and its parameter, to be run at the same moment.
    pub beside: Option<(&'static str, String)>,
}

/// What one statement found at one moment.
pub(super) struct Glance {
    pub rows: Vec<Row>,
    /// What the statement beside it found.
    pub beside: Vec<Row>,
    pub now: SystemTime,
    /// As in a [`Snapshot`].
    pub head: i64,
}

/// The beginning of a snapshot, ready to be sent.
struct Beginning {
    enter: Statement,
    head: Statement,
    params: (String, String),
}

impl Beginning {
    async fn prepare(conn: &Conn, tenant: String, left: Duration) -> Result<Self> {
        Ok(Self {
            enter: conn.prepare(ENTER.sql()).await?,
            head: conn.prepare(log::HEAD.sql()).await?,
            params: (tenant, left.as_millis().max(1).to_string()),
        })
    }

    /// All in one flight, on the first poll.
    async fn send(&self, conn: &Conn) -> Result<(SystemTime, i64)> {
        let params = self.params.as_sql();
        let (begun, entered, head) = futures_util::join!(
            conn.client().batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"),
            conn.client().query(&self.enter, &params),
            conn.client().query(&self.head, &[]),
        );
        begun?;
        let entered: Vec<Begun> = read_rows(&entered?)?;
        let head: Vec<log::Seq> = read_rows(&head?)?;
        let now = entered
            .first()
            .map(|row| row.now)
            .ok_or_else(|| Error::internal("no time from PostgreSQL"))?;
        Ok((now, head.first().map_or(0, |head| head.seq)))
    }
}

impl Snapshot {
    pub async fn all<P: Params, R: FromRow>(
        &self,
        query: &Query<P, R>,
        params: &P,
    ) -> Result<Vec<R>> {
        self.conn.all(query, params).await
    }

    /// Runs a statement built for this call, in one round trip. It is not kept: its text depends on what the caller
    /// asked.
    pub async fn dynamic(&self, sql: &str, params: &filter::Params) -> Result<Vec<Row>> {
        Ok(self.conn.client().query_typed(sql, &params.typed()).await?)
    }

    /// What the statements that follow are planned and run by.
    pub async fn set(&self, settings: &[Setting]) -> Result<()> {
        self.all(&SET, &settings_params(settings)).await?;
        Ok(())
    }

    /// Ends the transaction and gives the connection back.
    pub async fn end<T>(self, value: T) -> Result<T> {
        self.conn.client().batch_execute("COMMIT").await?;
        self.conn.done();
        Ok(value)
    }
}

/// Rows of a listing, and what the next page needs to know.
pub struct Page<R> {
    pub rows: Vec<R>,
    /// Where the page ended, if there is more: the `cursor_key` of its last row.
    pub next: Option<Vec<Option<String>>>,
    /// The log number that every page of the listing is read at.
    pub seq: i64,
    /// Whether more was logged since.
    pub outgrown: bool,
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
        let begin = self.beginning(caller);
        let run = Arc::new(run);
        let op = Op::new(name, Lane::Work, caller.deadline, move |conn| {
            let (begin, run) = (begin.clone(), Arc::clone(&run));
            Box::pin(async move {
                let (now, head) = begin(&conn).await?.send(&conn).await?;
                run(Snapshot { conn, now, head }).await
            })
        });
        self.backend.call(op).await
    }

    /// Runs one statement at a snapshot of its own, from BEGIN to COMMIT in one round trip.
    pub(super) async fn glance(
        &self,
        caller: &Caller,
        name: &'static str,
        look: Look,
    ) -> Result<Glance> {
        let begin = self.beginning(caller);
        let look = Arc::new(look);
        let op = Op::new(name, Lane::Work, caller.deadline, move |conn| {
            let (begin, look) = (begin.clone(), Arc::clone(&look));
            Box::pin(async move {
                let Look { sql, params, common, since, settings, beside } = &*look;
                let begin = begin(&conn).await?;
                let prepared = if *common { Some(conn.prepare(sql).await?) } else { None };
                let archived = match since {
                    Some(_) => Some(conn.prepare(archive::NEWEST.sql()).await?),
                    None => None,
                };
                let set = match &settings[..] {
                    [] => None,
                    some => Some((conn.prepare(SET.sql()).await?, settings_params(some))),
                };
                let beside = match beside {
                    Some((sql, param)) => Some((conn.prepare(sql).await?, param)),
                    None => None,
                };
                // Each is sent on its first poll, so in this order.
                let (begun, beside, set, archived, rows, ended) = futures_util::join!(
                    begin.send(&conn),
                    async {
                        match &beside {
                            Some((sql, param)) => conn.client().query(sql, &[param]).await,
                            None => Ok(Vec::new()),
                        }
                    },
                    async {
                        match &set {
                            Some((set, params)) => conn.client().query(set, &params.as_sql()).await,
                            None => Ok(Vec::new()),
                        }
                    },
                    async {
                        match &archived {
                            Some(archived) => conn.client().query(archived, &[]).await,
                            None => Ok(Vec::new()),
                        }
                    },
                    async {
                        match &prepared {
                            Some(prepared) => conn.client().query(prepared, &params.as_sql()).await,
                            None => conn.client().query_typed(sql, &params.typed()).await,
                        }
                    },
                    conn.client().batch_execute("COMMIT"),
                );
                // The first failure is the cause; what follows it only reports an aborted transaction.
                let ((now, head), beside, _, archived, rows) =
                    (begun?, beside?, set?, archived?, rows?);
                ended?;
                conn.done();
                if let Some(seq) = *since {
                    archive::known_since(&read_rows(&archived)?, seq)?;
                }
                Ok(Glance { rows, beside, now, head })
            })
        });
        self.backend.call(op).await
    }

    /// Makes a snapshot's beginning, within what is left of the deadline when it is made.
    fn beginning(
        &self,
        caller: &Caller,
    ) -> impl for<'a> Fn(&'a Conn) -> BoxFuture<'a, Result<Beginning>> + Clone + Send + Sync + 'static
    {
        let (tenant, deadline, statement_timeout) =
            (caller.tenant.to_string(), caller.deadline, self.statement_timeout);
        move |conn| {
            let left = deadline.saturating_duration_since(Instant::now()).min(statement_timeout);
            Box::pin(Beginning::prepare(conn, tenant.clone(), left))
        }
    }

    /// Fails unless the tenant's log has come as far as `seq`.
    pub async fn reaches(&self, caller: &Caller, seq: i64) -> Result<()> {
        let head = self
            .snapshot(caller, log::HEAD.name, |snapshot| {
                Box::pin(async move {
                    let head = snapshot.head;
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
        if wants_total {
            let query = Arc::new(query);
            return self
                .snapshot(caller, listing.op, move |snapshot| {
                    let query = Arc::clone(&query);
                    Box::pin(async move {
                        let page = read_listing(&snapshot, listing, &query, true).await?;
                        snapshot.end(page).await
                    })
                })
                .await;
        }
        self.list_at_a_glance(caller, listing, query).await
    }

    /// One page in one round trip, or in two when this page is the first to find that more was logged since the first.
    async fn list_at_a_glance<R: FromRow>(
        &self,
        caller: &Caller,
        listing: &'static Listing,
        mut query: ListQuery,
    ) -> Result<Page<R>> {
        loop {
            let (asked, since) = match (log::up_to(listing, &query)?, query.snapshot) {
                // The log only grows, so a part of it is all there is to its past.
                (Some(of_log), _) => (of_log, None),
                (None, Some(seq)) if query.outgrown => (query.clone(), Some(seq)),
                // Unless more was logged since, the table alone has what stood, and is asked with less.
                (None, _) => (ListQuery { snapshot: None, ..query.clone() }, None),
            };
            let (sql, params) = page_of::<R>(listing, &asked);
            let look = Look { sql, params, common: asked.is_common(), since, ..Look::default() };
            let Glance { rows, now, head, .. } = self.glance(caller, listing.op, look).await?;
            let seq = query.snapshot.unwrap_or(head);
            if seq > head {
                return Err(in_the_future());
            }
            let outgrown = seq < head;
            if outgrown && since.is_none() && listing.kind != log::LISTING.kind {
                query.outgrown = true;
                continue;
            }
            let (rows, next) = read_page(rows, &query)?;
            return Ok(Page { rows, next, seq, outgrown, total: None, now });
        }
    }
}

/// One page of a listing, as part of what is read at this moment.
pub(super) async fn read_listing<R: FromRow>(
    snapshot: &Snapshot,
    listing: &'static Listing,
    query: &ListQuery,
    wants_total: bool,
) -> Result<Page<R>> {
    let (seq, query) = as_it_stood(snapshot, listing, query).await?;
    let (sql, params) = page_of::<R>(listing, &query);
    let (rows, next) = read_page(snapshot.dynamic(&sql, &params).await?, &query)?;
    let total = if wants_total { Some(total(snapshot, listing, &query).await?) } else { None };
    let outgrown = seq < snapshot.head;
    Ok(Page { rows, next, seq, outgrown, total, now: snapshot.now })
}

/// The log number that a listing is read at, and the query to ask here.
pub(super) async fn as_it_stood(
    snapshot: &Snapshot,
    listing: &Listing,
    query: &ListQuery,
) -> Result<(i64, ListQuery)> {
    let head = snapshot.head;
    let seq = query.snapshot.unwrap_or(head);
    if seq > head {
        return Err(in_the_future());
    }
    // The log only grows, so a part of it is all there is to its past.
    if let Some(of_log) = log::up_to(listing, query)? {
        return Ok((seq, of_log));
    }
    if query.snapshot == Some(head) {
        // Nothing has been written since the first page, so the table is as it was.
        return Ok((seq, ListQuery { snapshot: None, ..query.clone() }));
    }
    if query.snapshot.is_some() {
        snapshot.reaches_back(seq).await?;
    }
    Ok((seq, query.clone()))
}

/// The statement of a page. It asks for one row more, which tells whether there is another page.
fn page_of<R: FromRow>(listing: &Listing, query: &ListQuery) -> (String, filter::Params) {
    let columns = R::columns();
    let columns: Vec<&str> = columns.iter().map(|column| column.name).collect();
    listing.page(&columns, &ListQuery { limit: query.limit + 1, ..query.clone() })
}

/// The rows of a page, and where the next one begins.
fn read_page<R: FromRow>(
    mut rows: Vec<Row>,
    query: &ListQuery,
) -> Result<(Vec<R>, Option<Vec<Option<String>>>)> {
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
    let rows = snapshot.dynamic(&sql, &params).await?;
    let counted: i64 = match rows.first() {
        Some(row) => row.try_get(0)?,
        None => 0,
    };
    if counted <= MAX_EXACT_COUNT {
        return Ok(Total { rows: counted, is_estimate: false });
    }
    let (sql, params) = listing.estimate(&all);
    let plan = snapshot.dynamic(&sql, &params).await?;
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
