//! Statements and COMMIT on their way together, without waiting for answers in between.

use crate::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio_postgres::error::{DbError, Severity};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error as PgError, Row, Statement};

/// The statements of one flight. The driver queues a message when its future is first polled, so they are to be polled
/// in their order, and [`Flight::end`] last.
pub(super) struct Flight<'a> {
    client: &'a Client,
    /// A statement did not get as far as the server.
    is_torn: AtomicBool,
    /// COMMIT was sent.
    is_committed: AtomicBool,
}

impl<'a> Flight<'a> {
    pub fn new(client: &'a Client) -> Self {
        Self { client, is_torn: AtomicBool::new(false), is_committed: AtomicBool::new(false) }
    }

    pub async fn begin(&self) -> Result<(), PgError> {
        self.note(self.client.batch_execute("BEGIN").await)
    }

    pub async fn query(
        &self,
        statement: &Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, PgError> {
        self.note(self.client.query(statement, params).await)
    }

    pub async fn execute(
        &self,
        statement: &Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, PgError> {
        self.note(self.client.execute(statement, params).await)
    }

    /// COMMIT; but if a statement of the flight could not be sent, ROLLBACK: a transaction that lacks a part must not
    /// be kept, and the server cannot know that it lacks one.
    pub async fn end(&self) -> Result<(), PgError> {
        if self.is_torn.load(Ordering::SeqCst) {
            return self.client.batch_execute("ROLLBACK").await;
        }
        self.is_committed.store(true, Ordering::SeqCst);
        self.client.batch_execute("COMMIT").await
    }

    fn note<T>(&self, result: Result<T, PgError>) -> Result<T, PgError> {
        if let Err(error) = &result
            && error.code().is_none()
        {
            self.is_torn.store(true, Ordering::SeqCst);
        }
        result
    }

    /// What the flight's first failure means.
    pub fn failed(&self, error: PgError, commit_sent: &AtomicBool) -> Error {
        // Short of FATAL, the server has said that the transaction is rolled back.
        let refused =
            error.as_db_error().and_then(DbError::parsed_severity) == Some(Severity::Error);
        let sent = self.is_committed.load(Ordering::SeqCst);
        match Error::from(error) {
            // The connection went while COMMIT was on its way, or we failed to read an answer: neither says what became
            // of it.
            Error::Unavailable { cause, .. } | Error::Internal(cause) if sent && !refused => {
                Error::CommitUnknown(cause)
            }
            other => {
                commit_sent.store(false, Ordering::SeqCst);
                other
            }
        }
    }
}
