//! How PostgreSQL is: versions, sizes, the start-up self-check of the wall, and the housekeeping of the log.

use super::Store;
use super::postgres::{Lane, SERVICE_ROLE};
use super::{migrate, request_ledger};
use crate::{Error, Reason, Result, queries, row};
use std::sync::Arc;
use std::time::{Duration, Instant};

row! {
    pub struct DatabaseRow {
        pub server_version: String,
        pub pgvector_version: String,
        pub schema_version: i32,
        pub size_bytes: i64,
    }
}

row! {
    pub struct ReadyRow {
        pub schema_version: i32,
    }
}

row! {
    /// What the session may do beyond what the service needs; all must be false.
    pub struct PowersRow {
        pub superuser: bool,
        pub bypasses_rls: bool,
        pub owns_tables: bool,
        pub reads_tables: bool,
        pub creates: bool,
        pub sees_rows_without_tenant: bool,
        pub login_is_superuser: bool,
    }
}

row! {
    pub struct Made {
        pub made: i32,
    }
}

row! {
    pub struct SecretRow {
        pub secret: Vec<u8>,
    }
}

queries! { "status" {
    READY() -> ReadyRow = "SELECT wall.schema_version() AS schema_version";
    DATABASE() -> DatabaseRow =
        "SELECT current_setting('server_version') AS server_version, \
         COALESCE((SELECT extversion FROM pg_extension WHERE extname = 'vector'), '') AS pgvector_version, \
         wall.schema_version() AS schema_version, pg_database_size(current_database()) AS size_bytes";
    POWERS() -> PowersRow =
        "SELECT r.rolsuper AS superuser, r.rolbypassrls AS bypasses_rls, \
         EXISTS (SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname IN ('casebook', 'wall') AND pg_has_role(r.oid, c.relowner, 'MEMBER')) AS owns_tables, \
         EXISTS (SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = 'casebook' AND c.relkind IN ('r', 'p', 'v', 'm') \
         AND (has_table_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER') \
         OR has_any_column_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE, REFERENCES'))) AS reads_tables, \
         has_schema_privilege(r.oid, 'wall', 'CREATE') OR has_schema_privilege(r.oid, 'casebook', 'CREATE') AS creates, \
         EXISTS (SELECT 1 FROM decision) AS sees_rows_without_tenant, \
         (SELECT rolsuper FROM pg_roles WHERE rolname = session_user) AS login_is_superuser \
         FROM pg_roles r WHERE r.rolname = current_user";
    ENSURE_LOG_PARTITIONS() -> Made = "SELECT wall.ensure_log_partitions() AS made";
    DEPLOYMENT_SECRET(String, Vec<u8>) -> SecretRow = "SELECT wall.deployment_secret($1, $2) AS secret";
} }

#[derive(Clone, Debug)]
pub struct DatabaseStatus {
    pub server_version: String,
    pub pgvector_version: String,
    pub schema_version: i32,
    pub schema_version_latest: i32,
    pub size_bytes: i64,
    pub latency: Duration,
}

fn soon() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(10)
}

impl Store {
    pub async fn database_status(&self) -> Result<DatabaseStatus> {
        let started = Instant::now();
        let row = self.admin_row(&DATABASE, ()).await?;
        let DatabaseRow { server_version, pgvector_version, schema_version, size_bytes } = row;
        Ok(DatabaseStatus {
            server_version,
            pgvector_version,
            schema_version,
            schema_version_latest: migrate::latest(),
            size_bytes,
            latency: started.elapsed(),
        })
    }

    /// Whether the database can be reached and has the schema that this server needs.
    pub async fn check_ready(&self) -> Result<()> {
        let found = match self.admin_row(&READY, ()).await {
            Ok(row) => row.schema_version,
            // Without the function there is no schema of ours.
            Err(Error::Refused { reason: Reason::SchemaOutdated, .. }) => 0,
            Err(error) => return Err(error),
        };
        let wanted = migrate::latest();
        if found >= wanted {
            return Ok(());
        }
        Err(Error::Refused {
            reason: Reason::SchemaOutdated,
            message: format!(
                "the database schema is at version {found} and this server needs {wanted}: run `casebook migrate up`"
            ),
            metadata: vec![
                ("schema_version", found.to_string()),
                ("schema_version_latest", wanted.to_string()),
            ],
        })
    }

    /// Refuses to serve as a role that could see past the wall.
    pub async fn check_wall(&self) -> Result<()> {
        let powers = self.admin_row(&POWERS, ()).await?;
        let PowersRow {
            superuser,
            bypasses_rls,
            owns_tables,
            reads_tables,
            creates,
            sees_rows_without_tenant,
            login_is_superuser,
        } = powers;
        let excess: Vec<&str> = [
            (superuser, "is a superuser"),
            (bypasses_rls, "bypasses row-level security"),
            (owns_tables, "owns tables"),
            (reads_tables, "has rights on tables"),
            (creates, "may create objects in the schemas casebook or wall"),
            (sees_rows_without_tenant, "sees rows without a tenant"),
        ]
        .into_iter()
        .filter_map(|(excess, what)| excess.then_some(what))
        .collect();
        if !excess.is_empty() {
            return Err(Error::Refused {
                reason: Reason::SchemaOutdated,
                message: format!(
                    "the database role could see past the wall between tenants: it {}; use a login that is only a member of {SERVICE_ROLE}",
                    excess.join(" and ")
                ),
                metadata: Vec::new(),
            });
        }
        if login_is_superuser {
            tracing::warn!(
                "the database login is a superuser that works as {SERVICE_ROLE}; a login that is only a member of it is safer"
            );
        }
        Ok(())
    }

    /// Makes the log's partitions for the months to come; returns how many were made.
    pub async fn ensure_log_partitions(&self) -> Result<i32> {
        Ok(self.writing_row(&ENSURE_LOG_PARTITIONS, ()).await?.made)
    }

    /// Forgets request ids older than `keep`, at most ten thousand at a time; returns how many.
    pub async fn expire_requests(&self, keep: Duration) -> Result<i64> {
        let row =
            self.writing_row(&request_ledger::EXPIRE, (keep.as_millis() as i64, 10_000)).await?;
        Ok(row.expire_requests)
    }

    /// The deployment's secret of that name; the first server's proposal becomes it.
    pub async fn deployment_secret(&self, name: &str, proposal: Vec<u8>) -> Result<Vec<u8>> {
        Ok(self.writing_row(&DEPLOYMENT_SECRET, (name.to_owned(), proposal)).await?.secret)
    }

    pub(super) async fn admin_rows<P, R>(
        &self,
        query: &'static super::query::Query<P, R>,
        params: P,
    ) -> Result<Vec<R>>
    where
        P: super::query::Params + 'static,
        R: super::query::FromRow,
    {
        self.rows(Lane::Admin, query, params).await
    }

    /// The same on another lane than that of administration.
    pub(super) async fn lane_rows<P, R>(
        &self,
        lane: Lane,
        query: &'static super::query::Query<P, R>,
        params: P,
    ) -> Result<Vec<R>>
    where
        P: super::query::Params + 'static,
        R: super::query::FromRow,
    {
        self.rows(lane, query, params).await
    }

    async fn admin_row<P, R>(
        &self,
        query: &'static super::query::Query<P, R>,
        params: P,
    ) -> Result<R>
    where
        P: super::query::Params + 'static,
        R: super::query::FromRow,
    {
        self.one_row(Lane::Admin, query, params).await
    }

    /// The functions of the wall that write do so for the deployment, not for a tenant: there is nothing to log.
    async fn writing_row<P, R>(
        &self,
        query: &'static super::query::Query<P, R>,
        params: P,
    ) -> Result<R>
    where
        P: super::query::Params + 'static,
        R: super::query::FromRow,
    {
        self.one_row(Lane::Write, query, params).await
    }

    async fn one_row<P, R>(
        &self,
        lane: Lane,
        query: &'static super::query::Query<P, R>,
        params: P,
    ) -> Result<R>
    where
        P: super::query::Params + 'static,
        R: super::query::FromRow,
    {
        let row = self.rows(lane, query, params).await?.into_iter().next();
        row.ok_or_else(|| Error::internal("a status without a row"))
    }

    async fn rows<P, R>(
        &self,
        lane: Lane,
        query: &'static super::query::Query<P, R>,
        params: P,
    ) -> Result<Vec<R>>
    where
        P: super::query::Params + 'static,
        R: super::query::FromRow,
    {
        let params = Arc::new(params);
        let op = super::backend::Op::new(query.name, lane, soon(), move |conn| {
            let params = Arc::clone(&params);
            Box::pin(async move {
                let rows = conn.all(query, &*params).await?;
                conn.done();
                Ok(rows)
            })
        });
        self.backend.call(op).await
    }
}
