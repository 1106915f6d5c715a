//! The one PostgreSQL that every side works on: started, filled, and driven directly by pgbench.

use crate::bulk::Copy;
use crate::load::{FIRST_NEW_ID, LAST_NEW_ID, Look, Sample};
use crate::process::{Watched, cores};
use crate::{Context, Result, payload};
use casebook::embedded::{Embedded, Options};
use casebook::pb;
use casebook::store::migrate::Migrator;
use casebook::store::postgres::SERVICE_ROLE;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio_postgres::config::Host;
use tokio_postgres::{Client, NoTls};

/// The rows that are read, ids included so that every side reads the same.
pub const FIRST_ID: u64 = 100_000;
pub const ROWS: u64 = 10_000;

/// Beside the defaults of an embedded server. fsync stays on.
pub const SETTINGS: [(&str, &str); 5] = [
    ("shared_buffers", "4GB"),
    ("min_wal_size", "2GB"),
    ("max_wal_size", "4GB"),
    ("checkpoint_timeout", "30min"),
    ("max_connections", "200"),
];

const OWNER: &str = "postgres";
const DATABASE: &str = "casebook";

pub struct Database {
    embedded: Embedded,
    pub client: Client,
    pub pgbench: PathBuf,
    socket: PathBuf,
}

/// A statement with its parameters as text; the first is the row's id, chosen anew each time.
#[derive(Clone, Debug)]
pub struct Statement {
    /// With `$1`, `$2`...
    pub sql: String,
    pub parameters: Vec<String>,
}

impl Database {
    /// Starts the server and makes the schema.
    pub async fn start(folder: &Path) -> Result<Self> {
        let embedded = Embedded::start(Options {
            data_dir: folder.join("data"),
            bin_dir: std::env::var_os("CASEBOOK_POSTGRES_BIN").map(Into::into),
            search: vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(".postgres")],
            settings: SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            start_timeout: Duration::from_secs(60),
        })
        .await?;
        let config = embedded.config();
        let Some(Host::Unix(socket)) = config.get_hosts().first() else {
            return Err("the embedded PostgreSQL has no socket".into());
        };
        let socket = socket.clone();
        let mut migrator = Migrator::connect(&config).await?;
        migrator.up().await?;
        migrator.let_service_log_in().await?;
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        let pgbench = find_pgbench(embedded.bin_dir())?;
        Ok(Self { embedded, client, pgbench, socket })
    }

    pub async fn stop(self) -> Result<()> {
        drop(self.client);
        Ok(self.embedded.stop().await?)
    }

    pub fn version(&self) -> &str {
        self.embedded.version()
    }

    /// For Casebook's service, which logs in as its own role.
    pub fn service_url(&self) -> String {
        self.url(SERVICE_ROLE, DATABASE)
    }

    /// For everybody else, in the form that libpq, SQLAlchemy and tokio-postgres all read.
    pub fn owner_url(&self) -> String {
        self.url(OWNER, DATABASE)
    }

    fn url(&self, user: &str, database: &str) -> String {
        format!("postgresql://{user}@/{database}?host={}&port=5432", self.socket.display())
    }

    pub fn watched(&self) -> Watched {
        Watched::family("postgres", self.embedded.pid())
    }

    /// What one side leaves to write must not be written in the other's time.
    pub async fn settle(&self) -> Result<()> {
        Ok(self.client.batch_execute("CHECKPOINT").await?)
    }

    /// Records the rows that are read later, through the server, and makes the bare table.
    pub async fn fill(&self, address: &str, tenants: &[String]) -> Result<()> {
        let channel =
            tonic::transport::Endpoint::from_shared(address.to_owned())?.connect().await?;
        let mut decisions =
            pb::decision_service_client::DecisionServiceClient::new(channel.clone())
                .max_decoding_message_size(64 << 20);
        let ids: Vec<u64> = (FIRST_ID..FIRST_ID + ROWS).collect();
        for some in ids.chunks(500) {
            let requests = some.iter().map(|id| payload::request(&id.to_string())).collect();
            let request = pb::BatchCreateDecisionsRequest { requests, options: None };
            decisions.batch_create_decisions(request).await?;
        }
        let mut service = pb::tenant_service_client::TenantServiceClient::new(channel);
        for tenant in tenants {
            let message =
                pb::CreateTenantRequest { tenant_id: tenant.clone(), ..Default::default() };
            let mut request = tonic::Request::new(message);
            request.metadata_mut().insert("x-casebook-tenant", "system".parse()?);
            service.create_tenant(request).await?;
        }
        self.client
            .batch_execute(
                "CREATE SCHEMA raw; \
                 CREATE TABLE raw.decision \
                 (LIKE casebook.decision INCLUDING CONSTRAINTS INCLUDING INDEXES INCLUDING GENERATED)",
            )
            .await?;
        // A server that has run for a while writes over old WAL files; a new one fills each with zeros first, which
        // would be charged to whoever writes most.
        self.client
            .batch_execute(
                "CREATE TABLE raw.wal AS SELECT repeat('x', 1000) FROM generate_series(1, 1000000); \
                 DROP TABLE raw.wal",
            )
            .await?;
        self.client.batch_execute("VACUUM (ANALYZE) casebook.decision").await?;
        self.settle().await
    }

    /// The rows again, in the table of the Python baseline.
    pub async fn fill_baseline(&self) -> Result<()> {
        self.client
            .batch_execute(
                "INSERT INTO baseline_decision (id, uid, etag, version, input_data, case_hash, final_verdict, reason, \
                 avg_confidence, ambiguity, verdict_scores, critic_outputs, policy_rules, state, model_version, \
                 trace_id, decide_time, metadata, labels, retention_class, subject_id, create_time) \
                 SELECT id, uid::text, 'etag', version, input_data, decode(case_hash, 'hex'), final_verdict, reason, \
                 avg_confidence, ambiguity, verdict_scores, '[]', policy_rules, state, model_version, trace_id, \
                 decide_time, metadata, labels, retention_class, subject_id, create_time FROM casebook.decision \
                 WHERE tenant_id = 'default' AND length(id) = 6 ON CONFLICT DO NOTHING",
            )
            .await?;
        Ok(self.client.batch_execute("VACUUM (ANALYZE) baseline_decision").await?)
    }

    /// The SELECT of one row by id, with the columns that Casebook reads.
    pub async fn select(&self) -> Result<String> {
        Ok(format!(
            "SELECT {} FROM casebook.decision WHERE tenant_id = 'default' AND id = $1 AND delete_time IS NULL",
            self.columns_read().await?
        ))
    }

    /// The same through the tenant's view.
    pub async fn select_walled(&self) -> Result<String> {
        let columns = self.columns_read().await?;
        Ok(format!("SELECT {columns} FROM wall.decision WHERE id = $1 AND delete_time IS NULL"))
    }

    async fn columns_read(&self) -> Result<String> {
        let columns = self.columns("decision").await?;
        let columns =
            columns.iter().map(|(name, _)| name.as_str()).filter(|name| *name != "tenant_id");
        Ok(columns.collect::<Vec<_>>().join(", "))
    }

    /// The INSERT of a bare row like one that Casebook recorded; what that row leaves NULL is left out.
    pub async fn insert(&self) -> Result<Statement> {
        let major: u32 = self.version().split('.').next().unwrap_or_default().parse()?;
        // Ids in the order of time, as Casebook makes them, where PostgreSQL can.
        let uid = if major >= 18 { "uuidv7()" } else { "gen_random_uuid()" };
        let mut parameters = vec![String::new()];
        let (mut names, mut values) = (Vec::new(), Vec::new());
        for (name, kind) in self.columns("decision").await? {
            let row = format!("SELECT {name}::text FROM casebook.decision WHERE id = '{FIRST_ID}'");
            let Some(text) = self.client.query_one(&row, &[]).await?.get::<_, Option<String>>(0)
            else {
                continue;
            };
            values.push(match (name.as_str(), kind.as_str()) {
                ("uid", _) => uid.to_owned(),
                ("id", _) => "$1".to_owned(),
                (_, "timestamp with time zone") => "now()".to_owned(),
                // pgbench takes no empty parameter.
                _ if text.is_empty() => "''".to_owned(),
                _ => {
                    parameters.push(text);
                    format!("${}", parameters.len())
                }
            });
            names.push(name);
        }
        let (names, values) = (names.join(", "), values.join(", "));
        Ok(Statement {
            sql: format!("INSERT INTO raw.decision ({names}) VALUES ({values})"),
            parameters,
        })
    }

    /// Names and types of a table's columns, but for those that PostgreSQL makes.
    async fn columns(&self, table: &str) -> Result<Vec<(String, String)>> {
        let sql = "SELECT column_name::text, data_type::text FROM information_schema.columns \
                   WHERE table_schema = 'casebook' AND table_name = $1::text AND is_generated = 'NEVER' \
                   ORDER BY ordinal_position";
        let rows = self.client.query(sql, &[&table]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Another database of the same server, with its schema: the URLs of the service and of the owner.
    pub async fn another(&self, name: &str) -> Result<(String, String)> {
        self.client.batch_execute(&format!("CREATE DATABASE {name}")).await?;
        let mut config = self.embedded.config();
        config.dbname(name);
        Migrator::connect(&config).await?.up().await?;
        Ok((self.url(SERVICE_ROLE, name), self.url(OWNER, name)))
    }

    /// What autovacuum would do in time.
    pub async fn vacuum(&self, owner_url: &str) -> Result<()> {
        let config = owner_url.parse::<tokio_postgres::Config>()?;
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client.batch_execute("VACUUM (ANALYZE)").await?)
    }

    /// The table that chunks are copied into.
    pub async fn raw_chunk(&self) -> Result<()> {
        self.client
            .batch_execute(
                "CREATE TABLE raw.chunk (LIKE casebook.chunk INCLUDING CONSTRAINTS INCLUDING INDEXES \
                 INCLUDING GENERATED, \
                 FOREIGN KEY (tenant_id, document_uid) REFERENCES casebook.document (tenant_id, uid))",
            )
            .await?;
        Ok(self.client.batch_execute("VACUUM (ANALYZE)").await?)
    }

    pub async fn copy_decisions(&self, rows: u64) -> Result<Copy> {
        self.copy("decision", &["id", "uid"], &format!("id = '{FIRST_ID}'"), rows).await
    }

    /// The table that chunks are copied into with their vectors, and what to copy.
    pub async fn copy_embedded_chunks(&self, rows: u64) -> Result<Copy> {
        self.client
            .batch_execute(
                "CREATE TABLE IF NOT EXISTS raw.embedded_chunk (LIKE casebook.chunk INCLUDING CONSTRAINTS \
                 INCLUDING INDEXES INCLUDING GENERATED, embedding public.vector(1536), \
                 FOREIGN KEY (tenant_id, document_uid) REFERENCES casebook.document (tenant_id, uid)); \
                 ALTER TABLE raw.embedded_chunk ALTER COLUMN embedding SET STORAGE EXTERNAL",
            )
            .await?;
        let made = ["id", "uid", "chunk_index"];
        let columns = self.columns("chunk").await?;
        let others = columns.iter().map(|(name, _)| name.as_str()).filter(|n| !made.contains(n));
        let columns: Vec<&str> = made.iter().copied().chain(others).collect();
        let of_chunk: Vec<String> = columns.iter().map(|name| format!("c.{name}")).collect();
        Ok(Copy {
            conninfo: self.owner_url(),
            from: format!(
                "SELECT {}, x.vector FROM casebook.chunk AS c JOIN casebook.embedding AS e \
                 ON e.tenant_id = c.tenant_id AND e.of_kind = 'chunk' AND e.of_id = c.id \
                 JOIN casebook.embedding_vector AS x ON x.tenant_id = e.tenant_id AND x.embedding_uid = e.uid WHERE c.document_id = 'embedded'",
                of_chunk.join(", ")
            ),
            into: format!("raw.embedded_chunk ({}, embedding)", columns.join(", ")),
            has_index: true,
            rows,
        })
    }

    pub async fn copy_chunks(&self, rows: u64) -> Result<Copy> {
        let made = ["id", "uid", "chunk_index"];
        self.copy("chunk", &made, "document_id = 'copied'", rows).await
    }

    /// From some rows of a table to its bare twin; the columns that are made anew come first.
    async fn copy(&self, table: &str, made: &[&str], some: &str, rows: u64) -> Result<Copy> {
        let columns = self.columns(table).await?;
        let others = columns.iter().map(|(name, _)| name.as_str()).filter(|n| !made.contains(n));
        let columns: Vec<&str> = made.iter().copied().chain(others).collect();
        let columns = columns.join(", ");
        Ok(Copy {
            conninfo: self.owner_url(),
            from: format!("SELECT {columns} FROM casebook.{table} WHERE {some}"),
            into: format!("raw.{table} ({columns})"),
            has_index: made.contains(&"chunk_index"),
            rows,
        })
    }

    /// Runs pgbench and measures it from the moment when it is warm.
    pub async fn pgbench(&self, run: &PgBench, warm_s: u64, measured_s: u64) -> Result<Sample> {
        let mut command = Command::new(&self.pgbench);
        command
            .args(["--no-vacuum", "--protocol=prepared", "--progress=1"])
            .arg(format!("--client={}", run.clients))
            .arg(format!("--jobs={}", run.clients.min(cores())))
            .arg(format!("--time={}", warm_s + measured_s))
            .arg("--file")
            .arg(&run.script)
            .args(run.variables.iter().map(|(name, value)| format!("--define={name}={value}")))
            .arg(format!("--host={}", self.socket.display()))
            .args(["--port=5432", "--username", run.user, "casebook"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child =
            command.spawn().with(|| format!("{} does not run", self.pgbench.display()))?;
        let pid = child.id().with(|| "pgbench ended at once")?;
        let watched = [self.watched(), Watched::one("client", pid)];
        let said = child.stderr.take().with(|| "pgbench has no standard error")?;
        let mut lines = BufReader::new(said).lines();
        let mut other = Vec::new();
        let (mut begin, mut latest, mut last_s): (Option<Look>, Option<Sample>, f64) =
            (None, None, 0.0);
        let (mut operations, mut weighted_ms) = (0.0, 0.0);
        while let Some(line) = lines.next_line().await? {
            let Some((at_s, per_second, mean_ms)) = progress(&line) else {
                other.push(line);
                continue;
            };
            match &begin {
                Some(begin) => {
                    // It may have ended between its last line and our look.
                    let Ok(look) = Look::take(&watched) else { break };
                    let done = per_second * (at_s - last_s);
                    operations += done;
                    weighted_ms += mean_ms * done;
                    latest = Some(look.since(begin));
                }
                None if at_s >= warm_s as f64 - 0.1 => begin = Some(Look::take(&watched)?),
                None => {}
            }
            last_s = at_s;
        }
        let status = child.wait().await?;
        let mut sample = match latest {
            Some(sample) if status.success() => sample,
            _ => return Err(format!("pgbench failed: {}", other.join("; ")).into()),
        };
        sample.operations = operations.round() as u64;
        // pgbench tells the mean only, unless it logs every transaction.
        sample.p50_us = f64::NAN;
        sample.p95_us = f64::NAN;
        sample.p99_us = f64::NAN;
        sample.mean_us = weighted_ms / operations * 1000.0;
        Ok(sample)
    }
}

/// How pgbench is run.
#[derive(Clone, Debug)]
pub struct PgBench {
    pub script: PathBuf,
    pub variables: Vec<(String, String)>,
    pub clients: usize,
    /// Casebook's own role, or the owner of the tables.
    pub user: &'static str,
}

impl PgBench {
    pub fn select(folder: &Path, sql: &str, clients: usize) -> Result<Self> {
        let script = folder.join("select.pgbench");
        let last = FIRST_ID + ROWS - 1;
        let text = format!("\\set id random({FIRST_ID}, {last})\n{};\n", sql.replace("$1", ":id"));
        std::fs::write(&script, text)?;
        Ok(Self { script, variables: Vec::new(), clients, user: OWNER })
    }

    /// The statements of one get as Casebook's role must say them, in one round trip.
    pub fn select_walled(folder: &Path, sql: &str, clients: usize) -> Result<Self> {
        let script = folder.join("select-walled.pgbench");
        let last = FIRST_ID + ROWS - 1;
        let sql = sql.replace("$1", ":id");
        let text = format!(
            "\\set id random({FIRST_ID}, {last})\n\\startpipeline\nBEGIN;\n\
             SELECT set_config('casebook.tenant', 'default', true);\n{sql};\nCOMMIT;\n\\endpipeline\n"
        );
        std::fs::write(&script, text)?;
        Ok(Self { script, variables: Vec::new(), clients, user: SERVICE_ROLE })
    }

    pub fn insert(folder: &Path, insert: &Statement, clients: usize) -> Result<Self> {
        let script = folder.join("insert.pgbench");
        let mut sql = insert.sql.clone();
        let mut variables = Vec::new();
        // From the highest down, so that $1 is not found in $12.
        for (n, value) in insert.parameters.iter().enumerate().skip(1).rev() {
            sql = sql.replace(&format!("${}", n + 1), &format!(":p{}", n + 1));
            variables.push((format!("p{}", n + 1), value.clone()));
        }
        let sql = sql.replace("$1", ":id");
        std::fs::write(
            &script,
            format!("\\set id random({FIRST_NEW_ID}, {LAST_NEW_ID})\n{sql};\n"),
        )?;
        Ok(Self { script, variables, clients, user: OWNER })
    }
}

/// "progress: 2.0 s, 5650.8 tps, lat 11.320 ms stddev 3.214, 0 failed"
fn progress(line: &str) -> Option<(f64, f64, f64)> {
    let rest = line.strip_prefix("progress: ")?;
    let mut parts = rest.split(", ");
    let at_s = parts.next()?.strip_suffix(" s")?.parse().ok()?;
    let per_second = parts.next()?.strip_suffix(" tps")?.parse().ok()?;
    let mean_ms = parts.next()?.strip_prefix("lat ")?.split(' ').next()?.parse().ok()?;
    Some((at_s, per_second, mean_ms))
}

/// Beside the server's programs, else the machine's own.
fn find_pgbench(bin: &Path) -> Result<PathBuf> {
    let mut places = vec![bin.join("pgbench")];
    for entry in std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten() {
        places.push(entry.path().join("bin/pgbench"));
    }
    places.push("/usr/bin/pgbench".into());
    let found = places.into_iter().find(|place| place.is_file());
    found.with(
        || "no pgbench was found: install your distribution's postgresql-contrib or postgresql",
    )
}
