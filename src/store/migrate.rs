//! Schema migrations: up under an advisory lock, and down by the paired files.

use crate::{Error, Result};
use refinery::{Migration, Runner};
use std::time::Duration;
use tokio_postgres::{Client, Config, NoTls};

mod embedded {
    include!(concat!(env!("OUT_DIR"), "/migrations.rs"));
}
use embedded::MIGRATIONS;

/// Any two servers or people that migrate the same database take turns by it.
const LOCK: i64 = 0x6361_7365_626f_6f6b;

/// One migration, and when it was applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub version: i32,
    pub name: String,
    /// RFC 3339; `None` while it is pending.
    pub applied_on: Option<String>,
}

/// The newest version that this build knows.
pub fn latest() -> i32 {
    MIGRATIONS.last().map_or(0, |(version, ..)| *version)
}

/// A session that may change the schema.
pub struct Migrator {
    client: Client,
}

impl Migrator {
    /// Connects as the schema's owner.
    pub async fn connect(owner: &Config) -> Result<Self> {
        let mut config = owner.clone();
        let mut options = config.get_options().unwrap_or_default().to_owned();
        options.push_str(
            " -c search_path=casebook -c client_min_messages=warning -c statement_timeout=0",
        );
        config.options(options);
        config.application_name("casebook-migrate");
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(Duration::from_secs(5));
        }
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the migration session ended");
            }
        });
        Ok(Self { client })
    }

    /// Applies what is pending; returns it. Servers that start together apply it once.
    pub async fn up(&mut self) -> Result<Vec<Step>> {
        self.lock().await?;
        self.client.batch_execute("CREATE SCHEMA IF NOT EXISTS casebook").await?;
        let known = MIGRATIONS.iter().map(|(_, name, up, _)| Migration::unapplied(name, up));
        let known: Vec<Migration> = known.collect::<Result<_, _>>().map_err(Error::internal)?;
        let report = Runner::new(&known).run_async(&mut self.client).await;
        self.unlock().await?;
        let report = report.map_err(Error::internal)?;
        Ok(report.applied_migrations().iter().map(step).collect())
    }

    /// Undoes the newest `steps`, newest first, each in a transaction; returns them.
    pub async fn down(&mut self, steps: usize) -> Result<Vec<Step>> {
        self.lock().await?;
        let undone = self.undo(steps).await;
        self.unlock().await?;
        undone
    }

    async fn undo(&mut self, steps: usize) -> Result<Vec<Step>> {
        let mut applied: Vec<Step> =
            self.status().await?.into_iter().filter(|step| step.applied_on.is_some()).collect();
        applied.reverse();
        applied.truncate(steps);
        for Step { version, name, .. } in &applied {
            let Some((.., sql)) = MIGRATIONS.iter().find(|(known, ..)| known == version) else {
                return Err(Error::internal(format!(
                    "this build has no way back from migration {version} ({name})"
                )));
            };
            let transaction = self.client.transaction().await?;
            transaction.batch_execute(sql).await?;
            transaction
                .execute("DELETE FROM refinery_schema_history WHERE version = $1", &[version])
                .await?;
            transaction.commit().await?;
        }
        Ok(applied)
    }

    /// Every migration that is known or applied, oldest first.
    pub async fn status(&mut self) -> Result<Vec<Step>> {
        let exists = self
            .client
            .query_one("SELECT to_regclass('casebook.refinery_schema_history')::text", &[])
            .await?;
        let mut steps: Vec<Step> = Vec::new();
        if exists.try_get::<_, Option<String>>(0)?.is_some() {
            let rows = self
                .client
                .query("SELECT version, name, applied_on FROM casebook.refinery_schema_history ORDER BY version", &[])
                .await?;
            for row in rows {
                steps.push(Step {
                    version: row.try_get(0)?,
                    name: row.try_get(1)?,
                    applied_on: row.try_get(2)?,
                });
            }
        }
        for (version, name, ..) in MIGRATIONS {
            if !steps.iter().any(|step| step.version == *version) {
                let name = name.split_once("__").map_or(*name, |(_, name)| name).to_owned();
                steps.push(Step { version: *version, name, applied_on: None });
            }
        }
        steps.sort_by_key(|step| step.version);
        Ok(steps)
    }

    /// The SQL of what is pending, in order.
    pub async fn plan(&mut self) -> Result<Vec<(Step, String)>> {
        let pending: Vec<Step> =
            self.status().await?.into_iter().filter(|step| step.applied_on.is_none()).collect();
        Ok(pending
            .into_iter()
            .filter_map(|step| {
                let (_, _, up, _) =
                    MIGRATIONS.iter().find(|(version, ..)| *version == step.version)?;
                Some((step, (*up).to_owned()))
            })
            .collect())
    }

    /// Lets the service's role log in by itself. For a private server whose socket folder is the only way in.
    pub async fn let_service_log_in(&self) -> Result<()> {
        let sql = format!("ALTER ROLE {} LOGIN", super::postgres::SERVICE_ROLE);
        Ok(self.client.batch_execute(&sql).await?)
    }

    async fn lock(&self) -> Result<()> {
        self.client.execute("SELECT pg_advisory_lock($1)", &[&LOCK]).await?;
        Ok(())
    }

    async fn unlock(&self) -> Result<()> {
        self.client.execute("SELECT pg_advisory_unlock($1)", &[&LOCK]).await?;
        Ok(())
    }
}

fn step(migration: &Migration) -> Step {
    Step {
        version: migration.version(),
        name: migration.name().to_owned(),
        applied_on: migration.applied_on().map(ToString::to_string),
    }
}
