//! What is measured against what, and the targets.

use crate::database::{Database, FIRST_ID, PgBench, ROWS, SETTINGS};
use crate::load::Call;
use crate::measure::{Bench, Extent, Figure, Outcome, Scenario, Side};
use crate::process::{Watched, memory};
use crate::records::{BATCHERS, Grown};
use crate::report::About;
use crate::sides::{Running, python};
use crate::stats::{Estimate, Verdict, Wanted, median};
use crate::{Context, Result, s3};
use casebook::pb;
use indicatif::{ProgressBar, ProgressStyle};
use prost::Message;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// In the order in which they are run: reads before the tables grow.
pub const NAMES: [&str; 32] = [
    "get",
    "get-walled",
    "echo",
    "python-get",
    "create",
    "create-tenants",
    "create-lone",
    "python-create",
    "memory",
    "list-deep",
    "get-grown",
    "search-text",
    "search-vectors",
    "search-vectors-lone",
    "search-tenant",
    "search-shared",
    "search-writing",
    "blob-upload",
    "blob-upload-sealed",
    "blob-download",
    "blob-download-sealed",
    "blob-upload-s3",
    "blob-download-s3",
    "blob-small",
    "blob-slow-readers",
    "batch-create",
    "batch-create-busy",
    "chunk-ingest",
    "chunk-ingest-busy",
    "chunk-python",
    "chunk-rate",
    "embedded-ingest",
];

const IN_FLIGHT: usize = 64;
/// A program has one channel, and all its callers share it.
const CONNECTIONS: usize = 1;
const TENANTS: usize = 64;
/// In the memory scenario.
const CALLS: u64 = 1000;
const IDLE: Duration = Duration::from_secs(5);

/// Runs what was asked for, or everything.
pub async fn run(folder: &Path, extent: Extent, only: &[String]) -> Result<(Vec<Outcome>, About)> {
    let database = Database::start(folder).await?;
    let ended = measure(folder, &database, extent, only).await;
    let about = About {
        postgresql: database.version().to_owned(),
        pgbench: place(&database.pgbench),
        settings: SETTINGS,
        in_flight: IN_FLIGHT,
        connections: CONNECTIONS,
    };
    let stopped = database.stop().await;
    let outcomes = ended?;
    stopped?;
    Ok((outcomes, about))
}

/// Where a program lies in the project, though a link leads there, or on the system: what the reader can look up.
fn place(program: &Path) -> String {
    let parts = program.components().skip_while(|part| part.as_os_str() != ".postgres");
    let within: PathBuf = parts.collect();
    let is_ours = !within.as_os_str().is_empty();
    (if is_ours { within.as_path() } else { program }).display().to_string()
}

async fn measure(
    folder: &Path,
    database: &Database,
    extent: Extent,
    only: &[String],
) -> Result<Vec<Outcome>> {
    let server = casebook(folder, database).await?;
    let tenants: Vec<String> = (1..=TENANTS).map(|n| format!("bench-{n}")).collect();
    database.fill(&server.address, &tenants).await?;

    let mut chosen: Vec<&str> = NAMES
        .into_iter()
        .filter(|name| only.is_empty() || only.iter().any(|o| o == name))
        .collect();
    if chosen.iter().any(|name| is_in_s3(name)) && !s3::is_named() {
        chosen.retain(|name| !is_in_s3(name));
    }
    let progress = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{elapsed_precise} [{bar:30}] {pos}/{len} {msg}")?;
    progress.set_style(style.progress_chars("=> "));
    let mut bench = Bench { folder, database, extent, progress };
    let paired =
        chosen.iter().filter(|name| !["memory", "chunk-rate"].contains(name)).count() as u64;
    bench.progress.set_length(bench.samples() * paired);

    let case = Case { folder, database, server: &server, tenants };
    let (mut grown, mut has_documents, mut has_vectors) = (None, false, false);
    let mut outcomes = Vec::new();
    for name in chosen {
        if !has_documents && (name == "search-text" || name.starts_with("chunk-")) {
            case.fill_documents(&bench).await?;
            has_documents = true;
        }
        let is_nearest = name.starts_with("search-") && name != "search-text";
        if !has_vectors && is_nearest {
            case.fill_vectors(&bench).await?;
            has_vectors = true;
        }
        let outcome = match name {
            "list-deep" | "get-grown" => {
                if grown.is_none() {
                    grown = Some(Grown::start(folder, database, &bench).await?);
                }
                let grown = grown.as_ref().with(|| "no grown database")?;
                match name {
                    "list-deep" => grown.list(&bench).await?,
                    _ => grown.get(&bench, case.gets(case.server), IN_FLIGHT).await?,
                }
            }
            "search-text" => case.search(&bench).await?,
            "search-vectors" => case.search_vectors(&bench, false).await?,
            "search-vectors-lone" => case.search_vectors(&bench, true).await?,
            "search-tenant" => case.search_tenant(&bench).await?,
            "search-shared" => case.search_shared(&bench).await?,
            "search-writing" => case.search_writing(&bench).await?,
            "embedded-ingest" => case.embedded_ingest(&bench).await?,
            "blob-upload" => case.large_blobs(&bench, true, false).await?,
            "blob-upload-sealed" => case.large_blobs(&bench, true, true).await?,
            "blob-download" => case.large_blobs(&bench, false, false).await?,
            "blob-download-sealed" => case.large_blobs(&bench, false, true).await?,
            "blob-upload-s3" => case.large_blobs_in_s3(&bench, true).await?,
            "blob-download-s3" => case.large_blobs_in_s3(&bench, false).await?,
            "blob-small" => case.small_blobs(&bench).await?,
            "blob-slow-readers" => case.slow_readers(&bench).await?,
            "batch-create" => case.batch_create(&bench, 1).await?,
            "batch-create-busy" => case.batch_create(&bench, BATCHERS).await?,
            "chunk-ingest" => case.chunk_ingest(&bench, 1).await?,
            "chunk-ingest-busy" => case.chunk_ingest(&bench, 2).await?,
            "chunk-python" => {
                outcomes.extend(case.chunk_python(&bench).await?);
                continue;
            }
            // Comes with the one before.
            "chunk-rate" => continue,
            "get" => case.get(&bench, false).await?,
            "get-walled" => case.get(&bench, true).await?,
            "echo" => case.echo(&bench).await?,
            "create" => case.create(&bench, false).await?,
            "create-tenants" => case.create(&bench, true).await?,
            "create-lone" => case.create_lone(&bench).await?,
            "memory" => case.memory(&mut bench).await?,
            _ => case.python(&bench, name).await?,
        };
        outcomes.push(outcome);
    }
    bench.progress.finish_and_clear();
    if let Some(grown) = grown {
        grown.stop().await?;
    }
    server.stop().await?;
    Ok(outcomes)
}

/// Whether a scenario needs a server of S3.
fn is_in_s3(name: &str) -> bool {
    name.ends_with("-s3")
}

pub struct Case<'a> {
    pub folder: &'a Path,
    pub database: &'a Database,
    pub server: &'a Running,
    tenants: Vec<String>,
}

async fn casebook(folder: &Path, database: &Database) -> Result<Running> {
    Running::casebook(folder, &database.service_url(), &database.owner_url()).await
}

impl Case<'_> {
    pub fn client(&self, server: &Running, call: Call, in_flight: usize) -> Side {
        let watched = vec![Watched::one("server", server.pid), self.database.watched()];
        Side::Client { call, in_flight, watched }
    }

    fn gets(&self, server: &Running) -> Side {
        let address = server.address.clone();
        let call = Call::Get { address, connections: CONNECTIONS, first: FIRST_ID, count: ROWS };
        self.client(server, call, IN_FLIGHT)
    }

    pub fn creates(&self, server: &Running, tenants: &[String], in_flight: usize) -> Side {
        let (address, tenants) = (server.address.clone(), tenants.to_vec());
        let connections = CONNECTIONS.min(in_flight);
        self.client(server, Call::Create { address, connections, tenants }, in_flight)
    }

    async fn get(&self, bench: &Bench<'_>, is_walled: bool) -> Result<Outcome> {
        let (name, title, what, select) = if is_walled {
            let sql = self.database.select_walled().await?;
            (
                "get-walled",
                "GetDecision against the same SQL",
                "what Casebook says to PostgreSQL for one get, in one round trip: BEGIN, the tenant setting, the \
                 SELECT of the same columns by id through the tenant's view, COMMIT",
                PgBench::select_walled(self.folder, &sql, IN_FLIGHT)?,
            )
        } else {
            let sql = self.database.select().await?;
            (
                "get",
                "GetDecision against the bare SELECT",
                "the SELECT of the same columns by id from the table, in autocommit and without any tenant wall",
                PgBench::select(self.folder, &sql, IN_FLIGHT)?,
            )
        };
        let select = bench.best_clients(select, &[8, 16, 32, 64]).await?;
        let clients = select.clients;
        bench
            .compare(Scenario {
                name,
                title,
                figure: Figure::Throughput,
                wanted: Wanted::AtLeast,
                target: 1.0,
                ours: (
                    format!("unary GetDecision, {IN_FLIGHT} in flight, of {ROWS} rows at random"),
                    self.gets(self.server),
                ),
                theirs: (
                    format!("pgbench, prepared, at its best of 8, 16, 32 and 64 clients ({clients}): {what}"),
                    Side::PgBench(select),
                ),
            })
            .await
    }

    async fn echo(&self, bench: &Bench<'_>) -> Result<Outcome> {
        let mut client = pb::decision_service_client::DecisionServiceClient::connect(
            self.server.address.clone(),
        )
        .await?;
        let request =
            pb::GetDecisionRequest { decision_id: FIRST_ID.to_string(), ..Default::default() };
        let answer = client.get_decision(request).await?.into_inner();
        let file = self.folder.join("answer.bin");
        tokio::fs::write(&file, answer.encode_to_vec()).await?;
        let echo = Running::echo(self.folder, &file).await?;
        let outcome = bench
            .compare(Scenario {
                name: "echo",
                title: "Server CPU of a get against an echo",
                figure: Figure::ServerCpu,
                wanted: Wanted::AtMost,
                target: 1.6,
                ours: (
                    format!("unary GetDecision, {IN_FLIGHT} in flight, of {ROWS} rows at random"),
                    self.gets(self.server),
                ),
                theirs: (
                    format!(
                        "the same calls to a bare tonic server (no layers, no database) that answers with a prepared \
                         message of the same content, {} bytes",
                        answer.encoded_len()
                    ),
                    self.gets(&echo),
                ),
            })
            .await;
        echo.stop().await?;
        outcome
    }

    async fn create(&self, bench: &Bench<'_>, in_tenants: bool) -> Result<Outcome> {
        let insert = self.database.insert().await?;
        let insert = PgBench::insert(self.folder, &insert, IN_FLIGHT)?;
        let (name, title, target, tenants, who) = if in_tenants {
            let tenants = self.tenants.as_slice();
            (
                "create-tenants",
                "CreateDecision in 64 tenants against the raw INSERT",
                0.5,
                tenants,
                "a tenant each",
            )
        } else {
            (
                "create",
                "CreateDecision in one tenant against the raw INSERT",
                1.2,
                &[][..],
                "one tenant",
            )
        };
        bench
            .compare(Scenario {
                name,
                title,
                figure: Figure::Throughput,
                wanted: Wanted::AtLeast,
                target,
                ours: (
                    format!(
                        "unary CreateDecision, {IN_FLIGHT} callers, {who}: tenant-walled, logged with leaf and digest, \
                         answered after a synchronous COMMIT"
                    ),
                    self.creates(self.server, tenants, IN_FLIGHT),
                ),
                theirs: (
                    format!(
                        "pgbench, prepared, {IN_FLIGHT} clients: one autocommit INSERT of the bare row into a table \
                         with the columns, checks and indexes of casebook.decision and nothing else"
                    ),
                    Side::PgBench(insert),
                ),
            })
            .await
    }

    async fn create_lone(&self, bench: &Bench<'_>) -> Result<Outcome> {
        let insert = self.database.insert().await?;
        let call = Call::Insert {
            conninfo: self.database.owner_url(),
            sql: insert.sql,
            parameters: insert.parameters,
        };
        let theirs = Side::Client { call, in_flight: 1, watched: vec![self.database.watched()] };
        bench
            .compare(Scenario {
                name: "create-lone",
                title: "A lone caller's CreateDecision against its raw INSERT",
                figure: Figure::MedianLatency,
                wanted: Wanted::AtMost,
                target: 1.5,
                ours: (
                    "unary CreateDecision, one caller, the next call after the last answer".into(),
                    self.creates(self.server, &[], 1),
                ),
                theirs: (
                    "one tokio-postgres client: the same bare INSERT as above, prepared, autocommit".into(),
                    theirs,
                ),
            })
            .await
    }

    async fn python(&self, bench: &Bench<'_>, name: &str) -> Result<Outcome> {
        let is_get = name == "python-get";
        let (name, title) = match is_get {
            true => ("python-get", "GetDecision against the Python baseline"),
            false => ("python-create", "CreateDecision against the Python baseline"),
        };
        bench.progress.set_message("the Python baseline's environment");
        let python = match python().await {
            Ok(python) => python,
            Err(error) => {
                bench.progress.inc(bench.samples());
                return Ok(Outcome::skipped(name, title, 10.0, &error));
            }
        };
        let baseline = Running::python(self.folder, &python, self.database).await?;
        self.database.fill_baseline().await?;
        let (ours, theirs, call) = match is_get {
            true => (self.gets(self.server), self.gets(&baseline), "GetDecision"),
            false => (
                self.creates(self.server, &[], IN_FLIGHT),
                self.creates(&baseline, &[], IN_FLIGHT),
                "CreateDecision",
            ),
        };
        let outcome = bench
            .compare(Scenario {
                name,
                title,
                figure: Figure::Throughput,
                wanted: Wanted::AtLeast,
                target: 10.0,
                ours: (format!("unary {call}, {IN_FLIGHT} in flight"), ours),
                theirs: (
                    format!(
                        "the same calls to benches/baseline/server.py: one process, 30 threads, SQLAlchemy, a commit \
                         for every call, no tenants, versions, log or idempotency ({CONNECTIONS} connection(s), \
                         {IN_FLIGHT} in flight)"
                    ),
                    theirs,
                ),
            })
            .await;
        baseline.stop().await?;
        outcome
    }

    /// Of a server of its own, started anew for each figure.
    async fn memory(&self, bench: &mut Bench<'_>) -> Result<Outcome> {
        bench.progress.set_message("Memory of an idle server");
        let (mut started, mut used, mut shared) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..3 {
            let server = casebook(self.folder, self.database).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            started.push(memory(server.pid)?.rss);
            calls(&server.address).await.with(|| "the calls before the idle time")?;
            tokio::time::sleep(IDLE).await;
            let idle = memory(server.pid)?;
            used.push(idle.rss);
            shared.push(idle.pss);
            server.stop().await?;
        }
        let estimate = Estimate::of(&used);
        let target = 30.0;
        let outcome = Outcome {
            name: "memory",
            title: "Memory of an idle server",
            meaning: "resident memory (VmRSS) after 1,000 calls and 5 s idle",
            unit: "MiB",
            ratio: estimate.median,
            low: estimate.low,
            high: estimate.high,
            pairs: used.len(),
            wanted: Wanted::AtMost,
            target,
            verdict: Verdict::of(estimate, Wanted::AtMost, target, target),
            values: used,
            cpu_elsewhere: f64::NAN,
            ours: None,
            theirs: None,
            note: Some(format!(
                "VmRSS {:.1} MiB one second after the start; after {CALLS} calls (half creates, half gets, {IN_FLIGHT} \
                 in flight) and {} s idle, Pss {:.1} MiB; {} starts",
                median(&started),
                IDLE.as_secs(),
                median(&shared),
                started.len(),
            )),
        };
        bench.say(&outcome);
        Ok(outcome)
    }
}

/// Half creates and half gets, from as many tasks as elsewhere.
async fn calls(address: &str) -> Result<()> {
    let channel = tonic::transport::Endpoint::from_shared(address.to_owned())?.connect().await?;
    let client = pb::decision_service_client::DecisionServiceClient::new(channel);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..IN_FLIGHT as u64 {
        let mut client = client.clone();
        tasks.spawn(async move {
            for call in (n..CALLS).step_by(IN_FLIGHT) {
                if call % 2 == 0 {
                    client.create_decision(crate::payload::request("")).await?;
                } else {
                    let decision_id = (FIRST_ID + call).to_string();
                    let request = pb::GetDecisionRequest { decision_id, ..Default::default() };
                    client.get_decision(request).await?;
                }
            }
            Ok::<_, tonic::Status>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}
