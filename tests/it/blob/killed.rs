//! Servers that are killed where a test wants it, over a database and a store that outlive them.

use super::*;
use crate::process::Served;
use crate::s3::{REGION, Server};
use crate::world::{config_of, drop_database, new_database, url_of};
use std::time::Duration;
use tokio_postgres::Client;

/// A database and a store, and the flags by which servers reach both.
pub struct Killed {
    database: String,
    url: String,
    store: Vec<String>,
    /// The store, unless that is another.
    pub folder: tempfile::TempDir,
    /// Whether servers encrypt.
    pub is_sealed: bool,
    /// Up to how many bytes blobs lie in the database.
    pub inline_max: usize,
}

impl Killed {
    /// The store is a folder.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        Self::over(folder, vec!["--blob-store-url".into(), url]).await
    }

    /// The store is a bucket, and is reached at `endpoint`.
    pub async fn on_s3(server: &Server, endpoint: &str, bucket: &str) -> Self {
        let url = format!("s3://{bucket}");
        Self::far(&[
            ("blob_store_url", url.as_str()),
            ("s3_endpoint", endpoint),
            ("s3_region", REGION),
            ("s3_access_key_id", &server.access_key),
            ("s3_secret_access_key", &server.secret_key),
        ])
        .await
    }

    /// The store is one that these settings name.
    pub async fn far(settings: crate::world::Settings<'_>) -> Self {
        let flag = |name: &str| format!("--{}", name.replace('_', "-"));
        let flags = settings.iter().flat_map(|(name, value)| [flag(name), (*value).to_owned()]);
        Self::over(tempfile::tempdir().unwrap(), flags.collect()).await
    }

    async fn over(folder: tempfile::TempDir, store: Vec<String>) -> Self {
        let database = new_database(true).await;
        let url = url_of(&config_of(&database).await);
        Self { database, url, store, folder, is_sealed: false, inline_max: 0 }
    }

    /// A server that reaps so often; 0 is never.
    pub fn serve(&self, reap_ms: &str) -> Served {
        let mut flags = vec!["--database-url", &self.url, "--migrate-on-start", "true"];
        flags.extend(["--auth", "none", "--listen", "127.0.0.1:0", "--metrics-listen", ""]);
        let inline_max = self.inline_max.to_string();
        flags.extend(["--blob-reap-interval-ms", reap_ms, "--blob-inline-max-bytes", &inline_max]);
        flags.extend(self.store.iter().map(String::as_str));
        if self.is_sealed {
            flags.extend(["--blob-key", super::seal::OLD]);
        }
        Served::start(&flags)
    }

    pub async fn database(&self) -> Client {
        crate::world::connect(&config_of(&self.database).await).await
    }

    /// Waits until what a killed server had begun in PostgreSQL has ended there, one way or the other: until then it may
    /// still commit.
    pub async fn sessions_end(&self) {
        let left = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'casebook-%' \
                    AND datname = current_database()";
        let database = self.database().await;
        until("the sessions end", async || {
            database.query_one(left, &[]).await.unwrap().get::<_, i64>(0) == 0
        })
        .await;
    }

    /// Has what was to be done at some time be due now.
    pub async fn all_is_due(&self) {
        let due = "UPDATE casebook.blob_intent SET due_time = now()";
        self.database().await.execute(due, &[]).await.unwrap();
    }

    /// Has what is due be due now, and lets a server reap until nothing is left of it.
    pub async fn reap(&self) {
        self.sessions_end().await;
        self.all_is_due().await;
        let mut server = self.serve("20");
        server.connect().await;
        let database = self.database().await;
        is_settled(&database).await;
        is_consistent(&database, self.folder.path()).await;
        server.kill();
    }

    pub async fn ready(&self) -> i64 {
        let count = "SELECT count(*) FROM casebook.blob WHERE state = 2";
        self.database().await.query_one(count, &[]).await.unwrap().get(0)
    }

    /// Begins a call, kills the server when it has come to a step, and gives the call's end. The transaction ends there,
    /// too.
    pub async fn kill_at<T: Send + 'static>(
        &self,
        server: &mut Served,
        step: Step<'_>,
        call: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let gate = Gate::shut(self.database().await, step).await;
        let call = tokio::spawn(call);
        gate.is_reached().await;
        server.kill();
        gate.cut().await;
        gate.open().await;
        self.sessions_end().await;
        let database = self.database().await;
        is_consistent(&database, self.folder.path()).await;
        is_linked(&database).await;
        call.await.unwrap()
    }

    pub async fn close(self) {
        crate::fault::log_is_gap_free(&self.database().await).await;
        drop_database(&self.database).await;
    }
}

/// What is done to a row, of which table of `casebook`, and of which row: a condition over NEW and OLD.
pub type Step<'a> = (&'a str, &'a str, &'a str);

/// The lock that stands for a gate, in each database one.
const GATE: u32 = 0x6761_7465;

/// Stops whoever comes to a step, until it is opened.
pub struct Gate {
    holder: Client,
    table: String,
}

impl Gate {
    /// `holder` is a session of the superuser.
    pub async fn shut(holder: Client, (event, table, condition): Step<'_>) -> Self {
        let sql = format!(
            "SELECT pg_advisory_lock({GATE}); \
             CREATE OR REPLACE FUNCTION public.gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             PERFORM pg_catalog.pg_advisory_xact_lock_shared({GATE}); RETURN COALESCE(NEW, OLD); END $$; \
             CREATE TRIGGER gate BEFORE {event} ON casebook.{table} FOR EACH ROW WHEN ({condition}) \
             EXECUTE FUNCTION public.gate()"
        );
        holder.batch_execute(&sql).await.unwrap();
        Self { holder, table: table.to_owned() }
    }

    /// Those who stand before it.
    async fn waiting(&self) -> Vec<i32> {
        let waiting = format!(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = {GATE} \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        );
        let rows = self.holder.query(&waiting, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Waits until somebody stands before it.
    pub async fn is_reached(&self) {
        until("the step is reached", async || !self.waiting().await.is_empty()).await;
    }

    /// Ends the sessions of those who stand before it.
    pub async fn cut(&self) {
        let end = "SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS u (pid)";
        self.holder.execute(end, &[&self.waiting().await]).await.unwrap();
        until("they are gone", async || self.waiting().await.is_empty()).await;
    }

    /// Lets them go on, and waits until their transactions have ended: before that the trigger cannot go.
    pub async fn open(self) {
        let table = &self.table;
        let sql = format!("SELECT pg_advisory_unlock_all(); DROP TRIGGER gate ON casebook.{table}");
        self.holder.batch_execute(&sql).await.unwrap();
    }
}

/// Looks for what refers to a blob and has no reference, and for references of nothing, or to a blob that is gone.
async fn is_linked(database: &Client) {
    let broken = "WITH referring AS ( \
        SELECT 'object_version' AS kind, uid, digest FROM casebook.object_version WHERE delete_time IS NULL AND digest <> '' \
        UNION ALL SELECT 'attachment', uid, digest FROM casebook.attachment WHERE delete_time IS NULL \
        UNION ALL SELECT 'evidence_bundle', uid, digest FROM casebook.evidence_bundle \
      ), recorded AS ( \
        SELECT r.kind, r.ref_uid AS uid, b.id AS digest FROM casebook.blob_reference AS r \
        LEFT JOIN casebook.blob AS b ON b.uid = r.blob_uid AND b.delete_time IS NULL \
      ) \
      (TABLE referring EXCEPT TABLE recorded) UNION ALL (TABLE recorded EXCEPT TABLE referring)";
    let broken = database.query(broken, &[]).await.unwrap();
    let told: Vec<(String, Option<String>)> =
        broken.iter().map(|row| (row.get("kind"), row.get("digest"))).collect();
    assert!(told.is_empty(), "{told:?}");
}

/// Waits until something holds.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..3000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}
