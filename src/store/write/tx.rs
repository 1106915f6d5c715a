//! What a change works with: an open transaction in its tenant.

use crate::store::filter;
use crate::store::noun::{Meta, Noun};
use crate::store::postgres::{Conn, read_rows};
use crate::store::query::{FromRow, Params, Query, Rows};
use crate::{Error, Result};
use std::collections::HashMap;
use std::time::SystemTime;
use tokio_postgres::{Row, Statement};
use uuid::Uuid;

/// An open transaction of the one writer, in one tenant. Only an attempt at a batch makes one.
pub struct Tx<'a> {
    pub(super) conn: &'a Conn,
    pub(super) tenant: &'a str,
    /// The transaction's time, PostgreSQL's.
    pub now: SystemTime,
    /// In a batch of several tenants, whose statements are in flight together, each statement is sent right behind
    /// its own tenant setting; a batch of one tenant sets it once.
    pub(super) set_tenant: Option<&'a Statement>,
}

impl Tx<'_> {
    /// Runs one statement as this tenant.
    pub async fn run<P: Params, R: FromRow>(
        &self,
        query: &Query<P, R>,
        params: &P,
    ) -> Result<Vec<R>> {
        // Prepared before anything is sent, so that nothing comes between the setting and the statement.
        let statement = self.conn.prepare(query.sql()).await?;
        let params = params.as_sql();
        let rows = self.conn.client().query(&statement, &params);
        let rows = match self.set_tenant {
            None => rows.await?,
            Some(set) => {
                let tenant: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&self.tenant];
                // Both are sent on the first poll of this join, one behind the other: the driver queues a message when
                // its future is first polled, and only one task polls this connection's transaction.
                let (set, rows) = futures_util::join!(self.conn.client().query(set, &tenant), rows);
                set?;
                rows?
            }
        };
        read_rows(&rows)
    }

    /// Runs a statement built for this change, in one round trip. It is not kept: its text depends on what the caller
    /// asked.
    pub async fn dynamic(&self, sql: &str, params: &filter::Params) -> Result<Vec<Row>> {
        let params = params.typed();
        let rows = self.conn.client().query_typed(sql, &params);
        let Some(set) = self.set_tenant else { return Ok(rows.await?) };
        let tenant: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&self.tenant];
        // One behind the other, as in `run`.
        let (set, rows) = futures_util::join!(self.conn.client().query(set, &tenant), rows);
        set?;
        Ok(rows?)
    }

    /// Live rows by id, locked; missing ones are left out.
    pub async fn lock<T: Noun>(&self, ids: Vec<String>) -> Result<HashMap<String, T>> {
        by_id(self.run(T::lock(), &(ids,)).await?)
    }

    /// The rows deleted last under the ids, locked; missing ones are left out.
    pub async fn lock_deleted<T: Noun>(&self, ids: Vec<String>) -> Result<HashMap<String, T>> {
        by_id(self.run(T::lock_deleted(), &(ids,)).await?)
    }

    /// Inserts new rows; answers for each whether its id was free.
    pub async fn insert<T: Noun>(&self, rows: &[T]) -> Result<Vec<bool>> {
        self.insert_those(&rows.iter().collect::<Vec<_>>()).await
    }

    /// The same for rows that stand among others.
    pub async fn insert_those<T: Noun>(&self, rows: &[&T]) -> Result<Vec<bool>> {
        let inserted = self.run(T::insert(), &T::unnest(rows.iter().copied())).await?;
        if inserted.len() == rows.len() {
            return Ok(vec![true; rows.len()]);
        }
        let inserted: std::collections::HashSet<_> =
            inserted.into_iter().map(|row| row.uid).collect();
        Ok(rows.iter().map(|row| inserted.contains(&row.meta().uid)).collect())
    }

    /// Tells those who have been waiting for the ids of new rows.
    pub async fn resolve<'r, T: Noun>(&self, new: impl Iterator<Item = &'r T>) -> Result<()> {
        let Some(resolve) = T::facts().resolve else { return Ok(()) };
        let named: (Vec<String>, Vec<Uuid>) =
            new.map(|row| (row.id().to_owned(), row.meta().uid)).unzip();
        if !named.0.is_empty() {
            self.run(resolve, &named).await?;
        }
        Ok(())
    }

    /// Writes back rows that were locked before.
    pub async fn save<T: Noun>(&self, rows: &[T]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let saved = self.run(T::save(), &T::unnest(rows.iter())).await?;
        all_saved::<T>(saved.len(), rows.len())
    }

    /// The same for rows of which nothing has changed but what the server owns: neither is the rest sent, nor are its
    /// words taken apart for the search again.
    pub async fn save_meta<T: Noun>(&self, rows: &[T]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let metas = Rows::new(Meta::unnest(rows.iter().map(Noun::meta)));
        let saved = self.run(T::save_meta(), &metas).await?;
        all_saved::<T>(saved.len(), rows.len())
    }
}

fn all_saved<T: Noun>(saved: usize, locked: usize) -> Result<()> {
    if saved == locked {
        return Ok(());
    }
    Err(Error::internal(format!("saved {saved} of {locked} locked {} rows", T::KIND)))
}

fn by_id<T: Noun>(rows: Vec<T>) -> Result<HashMap<String, T>> {
    Ok(rows.into_iter().map(|row| (row.id().to_owned(), row)).collect())
}
