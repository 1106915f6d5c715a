//! Scenarios about many records: batches, ingestion, deep pages, search and growth.

use crate::bulk::{self, Copy};
use crate::database::{Database, FIRST_ID, ROWS};
use crate::load::Call;
use crate::measure::{Bench, Figure, Outcome, Scenario, Side};
use crate::process::Watched;
use crate::scenarios::Case;
use crate::sides::{Running, Script, python};
use crate::stats::{Estimate, Verdict, Wanted};
use crate::{Context, Result, nearest};
use casebook::pb;
use prost::Message;
use std::path::Path;

/// Rows of the grown database.
const GROWN: u64 = 1_000_000;
const PAGE: i32 = 50;
const DEEP: usize = 10_000;
const DOCUMENTS: u64 = 100_000;
/// Rows of a batch, of a message and of a COPY.
const BATCH: u64 = 1000;
pub const BATCHERS: usize = 4;
const SEARCHERS: usize = 4;
/// Chunks of a message with their embeddings: 1.7 MB.
const EMBEDDED_BATCH: u64 = 250;

/// The database that has grown, with a server of its own.
pub struct Grown {
    server: Running,
    postgres: Watched,
}

impl Grown {
    pub async fn start(folder: &Path, database: &Database, bench: &Bench<'_>) -> Result<Self> {
        bench.progress.set_message(format!("recording {GROWN} decisions"));
        let (service, owner) = database.another("grown").await?;
        let server = Running::casebook(folder, &service, &owner).await?;
        bulk::fill_decisions(&server.address, FIRST_ID, GROWN).await?;
        database.vacuum(&owner).await?;
        Ok(Self { server, postgres: database.watched() })
    }

    pub async fn stop(self) -> Result<()> {
        self.server.stop().await
    }

    fn side(&self, call: Call, in_flight: usize) -> Side {
        let watched = vec![Watched::one("server", self.server.pid), self.postgres.clone()];
        Side::Client { call, in_flight, watched }
    }

    /// The same listing, at its first page and far behind it.
    pub async fn list(&self, bench: &Bench<'_>) -> Result<Outcome> {
        bench.progress.set_message(format!("walking to page {DEEP}"));
        let address = &self.server.address;
        let channel = tonic::transport::Endpoint::from_shared(address.clone())?.connect().await?;
        let mut client = pb::decision_service_client::DecisionServiceClient::new(channel);
        let page = pb::PageRequest { page_size: PAGE, ..Default::default() };
        let first = pb::ListDecisionsRequest { page: Some(page), ..Default::default() };
        let mut deep = first.clone();
        for _ in 1..DEEP {
            let answer = client.list_decisions(deep.clone()).await?.into_inner();
            let token = answer.page.with(|| "a page says nothing of the next")?.next_page_token;
            if token.is_empty() {
                return Err("there are not that many pages".into());
            }
            deep.page.get_or_insert_default().page_token = token;
        }
        let side = |request: &pb::ListDecisionsRequest| {
            let call = Call::Repeat {
                address: address.clone(),
                path: "/casebook.v1.DecisionService/ListDecisions".into(),
                body: request.encode_to_vec(),
            };
            self.side(call, 1)
        };
        bench
            .compare(Scenario {
                name: "list-deep",
                title: "Page 10,000 of ListDecisions against page 1",
                figure: Figure::MedianTime,
                wanted: Wanted::AtMost,
                target: 1.1,
                ours: (
                    format!("page {DEEP} of {PAGE} rows each, of {GROWN} rows, one caller"),
                    side(&deep),
                ),
                theirs: ("page 1 of the same listing".into(), side(&first)),
            })
            .await
    }

    pub async fn get(&self, bench: &Bench<'_>, small: Side, in_flight: usize) -> Result<Outcome> {
        let call = Call::Get {
            address: self.server.address.clone(),
            connections: 1,
            first: FIRST_ID,
            count: GROWN,
        };
        bench
            .compare(Scenario {
                name: "get-grown",
                title: "GetDecision of 1,000,000 rows against 10,000",
                figure: Figure::Cost,
                wanted: Wanted::AtMost,
                target: 1.2,
                ours: (
                    format!("unary GetDecision, {in_flight} in flight, of {GROWN} rows at random"),
                    self.side(call, in_flight),
                ),
                theirs: (format!("the same of {ROWS} rows"), small),
            })
            .await
    }
}

impl Case<'_> {
    pub async fn search(&self, bench: &Bench<'_>) -> Result<Outcome> {
        let conninfo = self.database.service_url();
        let raw = Call::RawSearch { conninfo };
        let raw = Side::Client {
            call: raw,
            in_flight: SEARCHERS,
            watched: vec![self.database.watched()],
        };
        let ours = Call::Search { address: self.server.address.clone() };
        bench
            .compare(Scenario {
                name: "search-text",
                title: "Search of 100,000 documents against the same SQL",
                figure: Figure::Throughput,
                wanted: Wanted::AtLeast,
                target: 0.8,
                ours: (
                    format!("unary Search for two words in {DOCUMENTS} documents, the best 20, {SEARCHERS} in flight"),
                    self.client(self.server, ours, SEARCHERS),
                ),
                theirs: (
                    format!(
                        "{SEARCHERS} tokio-postgres clients: what Casebook says to PostgreSQL for one search, in one \
                         round trip: BEGIN, the tenant setting, the ranking (prepared, planned for each), COMMIT"
                    ),
                    raw,
                ),
            })
            .await
    }

    pub async fn fill_vectors(&self, bench: &Bench<'_>) -> Result<()> {
        bench.progress.set_message("embeddings and their index");
        nearest::fill(&self.server.address).await?;
        self.database.vacuum(&self.database.owner_url()).await
    }

    /// Searches of a tenant, the usual one if none is named, while so many embeddings arrive each second.
    fn nearest(&self, tenant: &str, writes_per_second: u64, in_flight: usize) -> Side {
        let (address, tenant) = (self.server.address.clone(), tenant.to_owned());
        self.client(self.server, Call::Nearest { address, tenant, writes_per_second }, in_flight)
    }

    /// Through an index, against the same SQL.
    pub async fn search_vectors(&self, bench: &Bench<'_>, is_lone: bool) -> Result<Outcome> {
        let in_flight = if is_lone { 1 } else { SEARCHERS };
        let raw = Side::Client {
            call: Call::RawNearest { conninfo: self.database.service_url() },
            in_flight,
            watched: vec![self.database.watched()],
        };
        let (count, dimensions) = (nearest::EMBEDDINGS, nearest::DIMENSIONS);
        let (name, title, figure, wanted, target) = match is_lone {
            true => (
                "search-vectors-lone",
                "A lone caller's SearchVectors against the same SQL",
                Figure::MedianLatency,
                Wanted::AtMost,
                0.4,
            ),
            false => (
                "search-vectors",
                "SearchVectors through an index against the same SQL",
                Figure::Throughput,
                Wanted::AtLeast,
                0.85,
            ),
        };
        bench
            .compare(Scenario {
                name,
                title,
                figure,
                wanted,
                target,
                ours: (
                    format!(
                        "unary SearchVectors of {count} embeddings of {dimensions} dimensions, HNSW over BINARY codes, \
                         the nearest 10, {in_flight} in flight"
                    ),
                    self.nearest("", 0, in_flight),
                ),
                theirs: (
                    format!(
                        "{in_flight} tokio-postgres clients: what Casebook says to PostgreSQL for one search, in one \
                         round trip: BEGIN, the tenant, the settings, the search (prepared, planned for each), COMMIT"
                    ),
                    raw,
                ),
            })
            .await
    }

    /// Of a tenant that has 1 % of the embeddings, against all of them.
    pub async fn search_tenant(&self, bench: &Bench<'_>) -> Result<Outcome> {
        bench
            .compare(Scenario {
                name: "search-tenant",
                title: "SearchVectors of a tenant with 1 % against one with all",
                figure: Figure::TailTime,
                wanted: Wanted::AtMost,
                target: 3.0,
                ours: (
                    format!("one caller, in a tenant that has {} embeddings", nearest::SMALL),
                    self.nearest(nearest::SMALL_TENANT, 0, 1),
                ),
                theirs: (
                    format!("one caller, in a tenant that has {} embeddings", nearest::EMBEDDINGS),
                    self.nearest("", 0, 1),
                ),
            })
            .await
    }

    /// The same against a table that tenants share.
    pub async fn search_shared(&self, bench: &Bench<'_>) -> Result<Outcome> {
        bench.progress.set_message("a table that tenants share, and its index");
        self.database.client.batch_execute(nearest::SHARED).await?;
        let theirs = Side::Client {
            call: Call::SharedNearest { conninfo: self.database.owner_url() },
            in_flight: 1,
            watched: vec![self.database.watched()],
        };
        bench
            .compare(Scenario {
                name: "search-shared",
                title: "SearchVectors of a tenant with 1 % against a walk over a shared index",
                figure: Figure::TailTime,
                wanted: Wanted::AtMost,
                target: 0.05,
                ours: (
                    format!("one caller, in a tenant that has {} embeddings", nearest::SMALL),
                    self.nearest(nearest::SMALL_TENANT, 0, 1),
                ),
                theirs: (
                    format!(
                        "one tokio-postgres client: the nearest 10 of one of 100 tenants in a table of all {} \
                         embeddings, by HNSW as pgvector makes it, iterative_scan = relaxed_order",
                        nearest::EMBEDDINGS
                    ),
                    theirs,
                ),
            })
            .await
    }

    /// While embeddings arrive, against quiet.
    pub async fn search_writing(&self, bench: &Bench<'_>) -> Result<Outcome> {
        bench
            .compare(Scenario {
                name: "search-writing",
                title: "SearchVectors while 1,000 embeddings a second arrive, against none",
                figure: Figure::Throughput,
                wanted: Wanted::AtLeast,
                target: 0.6,
                ours: (
                    format!(
                        "{SEARCHERS} searches in flight, and new embeddings in batches of 100, 1,000 a second, into the \
                         same space"
                    ),
                    self.nearest("", 1000, SEARCHERS),
                ),
                theirs: (
                    format!("{SEARCHERS} searches in flight"),
                    self.nearest("", 0, SEARCHERS),
                ),
            })
            .await
    }

    /// Chunks with their embeddings, into a space with an index.
    pub async fn embedded_ingest(&self, bench: &Bench<'_>) -> Result<Outcome> {
        bench.progress.set_message("chunks with embeddings and their index");
        nearest::fill_chunks(&self.server.address, crate::bulk::TEXTS).await?;
        self.database.vacuum(&self.database.owner_url()).await?;
        let copy = self.database.copy_embedded_chunks(EMBEDDED_BATCH).await?;
        let ours = Call::Ingest {
            address: self.server.address.clone(),
            rows: EMBEDDED_BATCH,
            is_embedded: true,
        };
        bench
            .compare(Scenario {
                name: "embedded-ingest",
                title: "IngestChunks with embeddings and an index against COPY without",
                figure: Figure::Throughput,
                wanted: Wanted::AtLeast,
                target: 0.7,
                ours: (
                    format!(
                        "one stream of messages of {EMBEDDED_BATCH} chunks of 120 words, each with metadata and an \
                         embedding of {} dimensions, logged with leaf and digest, into a space with an index that keeps \
                         up meanwhile",
                        nearest::DIMENSIONS
                    ),
                    self.client(self.server, ours, 1),
                ),
                theirs: (
                    "one session that copies as many such rows in COPY BINARY, each batch a transaction, into a table with \
                     the columns, checks and indexes of casebook.chunk and the vector, without index on it"
                        .into(),
                    self.copy(copy, 1),
                ),
            })
            .await
    }

    fn copy(&self, copy: Copy, in_flight: usize) -> Side {
        Side::Client { call: Call::Copy(copy), in_flight, watched: vec![self.database.watched()] }
    }

    /// Against one session that copies, or against as many as there are callers.
    pub async fn batch_create(&self, bench: &Bench<'_>, sessions: usize) -> Result<Outcome> {
        let copy = self.database.copy_decisions(BATCH).await?;
        let call = Call::Batch { address: self.server.address.clone(), rows: BATCH };
        let (name, title) = match sessions {
            1 => ("batch-create", "BatchCreateDecisions of 1,000 against a session that copies"),
            _ => ("batch-create-busy", "BatchCreateDecisions of 1,000 against as many that copy"),
        };
        bench
            .compare(Scenario {
                name,
                title,
                figure: Figure::Throughput,
                wanted: Wanted::AtLeast,
                target: 0.7,
                ours: (
                    format!(
                        "BatchCreateDecisions of {BATCH}, {BATCHERS} callers: tenant-walled, logged with leaf and \
                         digest, answered with the decisions after a synchronous COMMIT"
                    ),
                    self.client(self.server, call, BATCHERS),
                ),
                theirs: (
                    format!(
                        "{sessions} session(s), COPY BINARY of {BATCH} rows each time into a table with the columns, \
                         generated ones included, checks and indexes of casebook.decision and nothing else"
                    ),
                    self.copy(copy, sessions),
                ),
            })
            .await
    }

    pub async fn chunk_ingest(&self, bench: &Bench<'_>, callers: usize) -> Result<Outcome> {
        let copy = self.database.copy_chunks(BATCH).await?;
        let (name, title) = match callers {
            1 => ("chunk-ingest", "IngestChunks against COPY, one loader each"),
            _ => ("chunk-ingest-busy", "IngestChunks against COPY, two loaders each"),
        };
        bench
            .compare(Scenario {
                name,
                title,
                figure: Figure::Throughput,
                wanted: Wanted::AtLeast,
                target: 0.7,
                ours: (ingest(callers), self.ingests(callers)),
                theirs: (
                    format!(
                        "{callers} session(s), COPY BINARY of {BATCH} rows each time into a table with the columns, \
                         generated ones included, checks, indexes and foreign key of casebook.chunk and nothing else"
                    ),
                    self.copy(copy, callers),
                ),
            })
            .await
    }

    fn ingests(&self, callers: usize) -> Side {
        let call =
            Call::Ingest { is_embedded: false, address: self.server.address.clone(), rows: BATCH };
        self.client(self.server, call, callers)
    }

    /// Against SQLAlchemy, and from the same samples how many chunks a second that is.
    pub async fn chunk_python(&self, bench: &Bench<'_>) -> Result<Vec<Outcome>> {
        bench.progress.set_message("the Python baseline's environment");
        let python = match python().await {
            Ok(python) => python,
            Err(error) => {
                bench.progress.inc(bench.samples());
                let title = "IngestChunks against SQLAlchemy's bulk_save_objects";
                return Ok(vec![Outcome::skipped("chunk-python", title, 15.0, &error)]);
            }
        };
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/baseline/bulk.py");
        let url = self.database.owner_url();
        let arguments = vec!["--database-url".into(), url, "--rows".into(), BATCH.to_string()];
        let script = Script { python, file, arguments };
        let watched = vec![self.database.watched()];
        let outcome = bench
            .compare(Scenario {
                name: "chunk-python",
                title: "IngestChunks against SQLAlchemy's bulk_save_objects",
                figure: Figure::Throughput,
                wanted: Wanted::AtLeast,
                target: 15.0,
                ours: (ingest(1), self.ingests(1)),
                theirs: (
                    format!(
                        "benches/baseline/bulk.py: one session, bulk_save_objects of {BATCH} chunks and a commit, into \
                         a table with the same texts and metadata, but without tenants, log and full text search"
                    ),
                    Side::Script { script, watched },
                ),
            })
            .await?;
        let ours = outcome.ours.as_ref().with(|| "no samples")?;
        let estimate = Estimate::of(&ours.all_per_second);
        let target = 1000.0;
        let rate = Outcome {
            name: "chunk-rate",
            title: "10,000 chunks of a document in messages of 1,000",
            meaning: "chunks written, from the samples of chunk-python",
            unit: "/s",
            ratio: estimate.median,
            low: estimate.low,
            high: estimate.high,
            wanted: Wanted::AtLeast,
            target,
            verdict: Verdict::of(estimate, Wanted::AtLeast, target, estimate.median),
            values: ours.all_per_second.clone(),
            ours: None,
            theirs: None,
            ..outcome.clone()
        };
        bench.say(&rate);
        Ok(vec![outcome, rate])
    }

    /// What is searched, and what is copied.
    pub async fn fill_documents(&self, bench: &Bench<'_>) -> Result<()> {
        bench.progress.set_message(format!("recording {DOCUMENTS} documents"));
        bulk::fill(&self.server.address, DOCUMENTS).await?;
        self.database.raw_chunk().await
    }
}

fn ingest(callers: usize) -> String {
    format!(
        "IngestChunks, {callers} stream(s), messages of {BATCH} chunks of 120 words, 10,000 for a document: \
         tenant-walled, logged with leaf and digest, each message answered after a synchronous COMMIT"
    )
}
