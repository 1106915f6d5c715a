//! The client, in a process of its own so that its processor time is its own: a closed loop of callers.

use crate::process::{Watched, machine_cpu_us};
use crate::stats::{Random, quantile};
use crate::{Context, Result, blobs, bulk, nearest, search};
use bytes::{BufMut, Bytes, BytesMut};
use casebook::pb;
use casebook::transfer::encoded::Encoded;
use prost::Message;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_postgres::types::{Format, IsNull, ToSql, Type};
use tonic::Request;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

/// Ids are drawn from here on, all of one length, so that a request's bytes can be prepared around them.
pub const FIRST_NEW_ID: u64 = 1_000_000_000_000_000;
pub const LAST_NEW_ID: u64 = 9_007_199_254_740_991;

/// Of answers to batches and listings.
const ANSWER_MAX: usize = 64 << 20;

/// What to call, how, and for how long: the parent writes it, the client process reads it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    pub call: Call,
    pub in_flight: usize,
    pub warm_s: f64,
    pub measured_s: f64,
    /// Whose processor time to note at the beginning and the end of the measured time.
    pub watched: Vec<Watched>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Call {
    /// GetDecision, each time of one of the rows `first..first + count`, chosen at random.
    Get { address: String, connections: usize, first: u64, count: u64 },
    /// CreateDecision of the same payload under a new random id; each caller in a tenant of its own if named.
    Create { address: String, connections: usize, tenants: Vec<String> },
    /// The prepared statement straight to PostgreSQL, one connection for each caller.
    Insert { conninfo: String, sql: String, parameters: Vec<String> },
    /// BatchCreateDecisions of the same payload under new random ids.
    Batch { address: String, rows: u64 },
    /// IngestChunks, a stream for each caller, messages of so many chunks, each with an embedding or without.
    Ingest { address: String, rows: u64, is_embedded: bool },
    /// COPY, one connection for each caller.
    Copy(bulk::Copy),
    /// The same message again and again.
    Repeat { address: String, path: String, body: Vec<u8> },
    /// Search for documents.
    Search { address: String },
    /// What Casebook says to PostgreSQL for such a search, in one round trip, one connection for each caller.
    RawSearch { conninfo: String },
    /// SearchVectors; of a tenant of its own if named, and while so many embeddings arrive each second.
    Nearest { address: String, tenant: String, writes_per_second: u64 },
    /// The nearest of one tenant's rows in a table that it shares, by an index that is walked until enough are found.
    SharedNearest { conninfo: String },
    /// What Casebook says to PostgreSQL for such a search, in one round trip, one connection for each caller.
    RawNearest { conninfo: String },
    /// UploadBlob of that size.
    Upload { address: String, size_bytes: usize },
    /// DownloadBlob of one of that size, while so many others read one as slowly as they can.
    Download { address: String, size_bytes: usize, slow_readers: usize },
    /// Large objects into a folder or a bucket, by object_store.
    Put { place: blobs::Place },
    /// A large object out of one, by object_store.
    Read { place: blobs::Place },
}

impl Call {
    /// How many rows one call is about, which is what is counted.
    fn rows(&self) -> u64 {
        match self {
            Self::Batch { rows, .. } | Self::Ingest { rows, .. } => *rows,
            Self::Copy(copy) => copy.rows,
            _ => 1,
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sample {
    pub operations: u64,
    pub seconds: f64,
    pub p50_us: f64,
    pub p95_us: f64,
    pub p99_us: f64,
    pub mean_us: f64,
    /// Microseconds of processor time in the measured time, by process.
    pub cpu_us: BTreeMap<String, f64>,
    /// The whole machine's, whoever used it.
    pub machine_cpu_us: f64,
}

impl Sample {
    pub fn per_second(&self) -> f64 {
        self.operations as f64 / self.seconds
    }

    pub fn cpu_us_per_operation(&self, process: &str) -> f64 {
        self.cpu_us.get(process).map_or(f64::NAN, |us| us / self.operations as f64)
    }

    /// The share of the machine's cores that neither side's processes used but somebody else did.
    pub fn elsewhere(&self, cores: usize) -> f64 {
        let ours: f64 = self.cpu_us.values().sum();
        ((self.machine_cpu_us - ours) / (self.seconds * 1e6 * cores as f64)).max(0.0)
    }
}

/// Processor time of several processes, to be compared with a later look.
pub struct Look {
    at: Instant,
    cpu_us: BTreeMap<String, f64>,
    machine_us: f64,
}

impl Look {
    pub fn take(watched: &[Watched]) -> Result<Self> {
        let cpu_us = watched.iter().map(|one| Ok((one.name.clone(), one.cpu_us()?)));
        let cpu_us = cpu_us.collect::<Result<_>>()?;
        Ok(Self { at: Instant::now(), cpu_us, machine_us: machine_cpu_us()? })
    }

    /// What was used from the earlier look to this one.
    pub fn since(self, earlier: &Self) -> Sample {
        let used = |(name, us): (String, f64)| {
            let before = earlier.cpu_us.get(&name).copied().unwrap_or_default();
            (name, us - before)
        };
        Sample {
            seconds: (self.at - earlier.at).as_secs_f64(),
            machine_cpu_us: self.machine_us - earlier.machine_us,
            cpu_us: self.cpu_us.into_iter().map(used).collect(),
            ..Sample::default()
        }
    }
}

const WARMING: u8 = 0;
pub const MEASURING: u8 = 1;
pub const OVER: u8 = 2;

/// Runs the plan in the file and prints the sample. One thread carries all callers, which costs the least.
pub fn run(plan: &std::path::Path) -> Result<()> {
    let plan: Plan = serde_json::from_slice(&std::fs::read(plan)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let sample = runtime.block_on(drive(plan))?;
    println!("{}", serde_json::to_string(&sample)?);
    Ok(())
}

async fn drive(plan: Plan) -> Result<Sample> {
    let phase = Arc::new(AtomicU8::new(WARMING));
    let mut callers: JoinSet<Result<Vec<u32>>> = JoinSet::new();
    match &plan.call {
        Call::Get { address, connections, first, count } => {
            let channels = connect(address, *connections).await?;
            let (first, count) = (*first, *count);
            for n in 0..plan.in_flight {
                let mut random = random(n)?;
                let caller = Caller {
                    grpc: Grpc::new(channels[n % channels.len()].clone()),
                    path: PathAndQuery::from_static("/casebook.v1.DecisionService/GetDecision"),
                    tenant: None,
                    body: move || {
                        let id = (first + random.below(count)).to_string();
                        let message =
                            pb::GetDecisionRequest { decision_id: id, ..Default::default() };
                        message.encode_to_vec().into()
                    },
                };
                callers.spawn(caller.call_until_over(Arc::clone(&phase)));
            }
        }
        Call::Create { address, connections, tenants } => {
            let channels = connect(address, *connections).await?;
            let rest = bulk::decision_rest();
            for n in 0..plan.in_flight {
                let mut random = random(n)?;
                let rest = rest.clone();
                let tenant = match tenants.is_empty() {
                    true => None,
                    false => Some(tenants[n % tenants.len()].parse()?),
                };
                let caller = Caller {
                    grpc: Grpc::new(channels[n % channels.len()].clone()),
                    path: PathAndQuery::from_static("/casebook.v1.DecisionService/CreateDecision"),
                    tenant,
                    body: move || {
                        let id =
                            (FIRST_NEW_ID + random.below(LAST_NEW_ID - FIRST_NEW_ID)).to_string();
                        // Field 1 of the message, the id, before its other fields.
                        let mut body = BytesMut::with_capacity(2 + id.len() + rest.len());
                        body.put_slice(&[0x0A, id.len() as u8]);
                        body.put_slice(id.as_bytes());
                        body.put_slice(&rest);
                        body.freeze()
                    },
                };
                callers.spawn(caller.call_until_over(Arc::clone(&phase)));
            }
        }
        Call::Insert { conninfo, sql, parameters } => {
            for n in 0..plan.in_flight {
                let random = random(n)?;
                let (client, connection) = conninfo
                    .parse::<tokio_postgres::Config>()?
                    .connect(tokio_postgres::NoTls)
                    .await?;
                tokio::spawn(connection);
                let statement = client.prepare(sql).await?;
                let parameters: Vec<Text> = parameters.iter().cloned().map(Text).collect();
                callers.spawn(insert_until_over(
                    client,
                    statement,
                    parameters,
                    random,
                    Arc::clone(&phase),
                ));
            }
        }
        Call::Batch { address, rows } => {
            let channel = connect(address, 1).await?.remove(0);
            let rest = bulk::decision_rest();
            for n in 0..plan.in_flight {
                let (mut random, rest, rows) = (random(n)?, rest.clone(), *rows);
                let caller = Caller {
                    grpc: Grpc::new(channel.clone()).max_decoding_message_size(ANSWER_MAX),
                    path: PathAndQuery::from_static(
                        "/casebook.v1.DecisionService/BatchCreateDecisions",
                    ),
                    tenant: None,
                    body: move || bulk::batch(&rest, rows, &mut random),
                };
                callers.spawn(caller.call_until_over(Arc::clone(&phase)));
            }
        }
        Call::Repeat { address, path, body } => {
            let channel = connect(address, 1).await?.remove(0);
            let body = Bytes::from(body.clone());
            for _ in 0..plan.in_flight {
                let body = body.clone();
                let caller = Caller {
                    grpc: Grpc::new(channel.clone()).max_decoding_message_size(ANSWER_MAX),
                    path: path.parse()?,
                    tenant: None,
                    body: move || body.clone(),
                };
                callers.spawn(caller.call_until_over(Arc::clone(&phase)));
            }
        }
        Call::Search { address } => {
            let channel = connect(address, 1).await?.remove(0);
            for n in 0..plan.in_flight {
                let mut random = random(n)?;
                let caller = Caller {
                    grpc: Grpc::new(channel.clone()),
                    path: PathAndQuery::from_static("/casebook.v1.SearchService/Search"),
                    tenant: None,
                    body: move || search::request(&mut random).encode_to_vec().into(),
                };
                callers.spawn(caller.call_until_over(Arc::clone(&phase)));
            }
        }
        Call::Nearest { address, tenant, writes_per_second } => {
            let channel = connect(address, 1).await?.remove(0);
            let tenant = match tenant.is_empty() {
                true => None,
                false => Some(tenant.parse::<MetadataValue<Ascii>>()?),
            };
            if *writes_per_second > 0 {
                let channel = connect(address, 1).await?.remove(0);
                let (rate, phase) = (*writes_per_second, Arc::clone(&phase));
                callers.spawn(nearest::write_until_over(channel, rate, random(99)?, phase));
            }
            for n in 0..plan.in_flight {
                let mut random = random(n)?;
                let bodies = nearest::requests(&mut random).into_iter();
                let bodies: Vec<Bytes> = bodies.map(|one| one.encode_to_vec().into()).collect();
                let caller = Caller {
                    grpc: Grpc::new(channel.clone()),
                    path: PathAndQuery::from_static("/casebook.v1.VectorService/SearchVectors"),
                    tenant: tenant.clone(),
                    body: move || bodies[random.below(bodies.len() as u64) as usize].clone(),
                };
                callers.spawn(caller.call_until_over(Arc::clone(&phase)));
            }
        }
        Call::RawNearest { conninfo } => {
            for n in 0..plan.in_flight {
                let search = nearest::until_over(conninfo.clone(), random(n)?, Arc::clone(&phase));
                callers.spawn(search);
            }
        }
        Call::SharedNearest { conninfo } => {
            for n in 0..plan.in_flight {
                let phase = Arc::clone(&phase);
                callers.spawn(nearest::share_until_over(conninfo.clone(), random(n)?, phase));
            }
        }
        Call::Upload { address, size_bytes } => {
            let channel = connect(address, 1).await?.remove(0);
            for n in 0..plan.in_flight {
                let (channel, phase) = (channel.clone(), Arc::clone(&phase));
                let (random, size_bytes) = (random(n)?, *size_bytes);
                callers.spawn(blobs::upload_until_over(channel, size_bytes, random, phase));
            }
        }
        Call::Download { address, size_bytes, slow_readers } => {
            if *slow_readers > 0 {
                let channels = connect(address, *slow_readers).await?;
                let (random, phase) = (random(plan.in_flight)?, Arc::clone(&phase));
                callers.spawn(blobs::dawdle_until_over(channels, random, phase));
            }
            for n in 0..plan.in_flight {
                let channel = connect(address, 1).await?.remove(0);
                let (random, phase) = (random(n)?, Arc::clone(&phase));
                callers.spawn(blobs::download_until_over(channel, *size_bytes, random, phase));
            }
        }
        Call::Put { place } | Call::Read { place } => {
            let is_put = matches!(plan.call, Call::Put { .. });
            for n in 0..plan.in_flight {
                let (place, random, phase) = (place.clone(), random(n)?, Arc::clone(&phase));
                callers.spawn(async move {
                    match is_put {
                        true => blobs::put_until_over(&place, random, phase).await,
                        false => blobs::get_until_over(&place, random, phase).await,
                    }
                });
            }
        }
        Call::RawSearch { conninfo } => {
            for n in 0..plan.in_flight {
                let search = search::until_over(conninfo.clone(), random(n)?, Arc::clone(&phase));
                callers.spawn(search);
            }
        }
        Call::Ingest { address, rows, is_embedded } => {
            let channel = connect(address, 1).await?.remove(0);
            for n in 0..plan.in_flight {
                let (channel, message) = (channel.clone(), (*rows as usize, *is_embedded));
                let phase = Arc::clone(&phase);
                callers.spawn(bulk::ingest_until_over(channel, message, random(n)?, phase));
            }
        }
        Call::Copy(copy) => {
            for n in 0..plan.in_flight {
                let phase = Arc::clone(&phase);
                callers.spawn(bulk::copy_until_over(copy.clone(), n, random(n)?, phase));
            }
        }
    }

    let rows = plan.call.rows();
    let mut watched = plan.watched;
    watched.push(Watched::one("client", std::process::id()));
    // Whoever ends before it is over has failed, and says why.
    let early = async |callers: &mut JoinSet<Result<Vec<u32>>>, seconds: f64| -> Result<()> {
        let wait = tokio::time::sleep(Duration::from_secs_f64(seconds));
        tokio::select! {
            () = wait => Ok(()),
            Some(ended) = callers.join_next() => Err(match ended? {
                Err(error) => error,
                Ok(_) => "a caller ended early".into(),
            }),
        }
    };
    early(&mut callers, plan.warm_s).await?;
    let begin = Look::take(&watched)?;
    phase.store(MEASURING, Ordering::Relaxed);
    early(&mut callers, plan.measured_s).await?;
    phase.store(OVER, Ordering::Relaxed);
    let mut sample = Look::take(&watched)?.since(&begin);

    let mut took = Vec::new();
    while let Some(ended) = callers.join_next().await {
        took.extend(ended??);
    }
    took.sort_unstable();
    sample.operations = took.len() as u64 * rows;
    sample.p50_us = quantile(&took, 0.5);
    sample.p95_us = quantile(&took, 0.95);
    sample.p99_us = quantile(&took, 0.99);
    sample.mean_us = took.iter().map(|us| f64::from(*us)).sum::<f64>() / took.len() as f64;
    Ok(sample)
}

fn random(caller: usize) -> Result<Random> {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|error| error.to_string())?;
    Ok(Random::new(u64::from_le_bytes(seed) ^ caller as u64))
}

async fn connect(address: &str, connections: usize) -> Result<Vec<Channel>> {
    let mut channels = Vec::with_capacity(connections);
    for _ in 0..connections {
        let endpoint = Endpoint::from_shared(address.to_owned())?.tcp_nodelay(true);
        channels.push(endpoint.connect().await.with(|| format!("cannot connect to {address}"))?);
    }
    Ok(channels)
}

/// One caller: the next call goes out when the answer to the last is in.
struct Caller<F> {
    grpc: Grpc<Channel>,
    path: PathAndQuery,
    tenant: Option<MetadataValue<Ascii>>,
    body: F,
}

impl<F: FnMut() -> Bytes + Send + 'static> Caller<F> {
    /// The microseconds that each call took whose answer came in the measured time.
    async fn call_until_over(mut self, phase: Arc<AtomicU8>) -> Result<Vec<u32>> {
        let path = self.path;
        let mut took = Vec::with_capacity(1 << 14);
        loop {
            let mut request = Request::new((self.body)());
            if let Some(tenant) = &self.tenant {
                request.metadata_mut().insert("x-casebook-tenant", tenant.clone());
            }
            let began = Instant::now();
            self.grpc.ready().await?;
            let answer = self.grpc.unary(request, path.clone(), Encoded).await;
            let answer = answer.map_err(|status| format!("{path}: {status}"))?.into_inner();
            if answer.is_empty() {
                return Err(format!("{path} gave an empty answer").into());
            }
            match phase.load(Ordering::Relaxed) {
                MEASURING => took.push(began.elapsed().as_micros() as u32),
                OVER => return Ok(took),
                _ => {}
            }
        }
    }
}

async fn insert_until_over(
    client: tokio_postgres::Client,
    statement: tokio_postgres::Statement,
    mut parameters: Vec<Text>,
    mut random: Random,
    phase: Arc<AtomicU8>,
) -> Result<Vec<u32>> {
    let mut took = Vec::with_capacity(1 << 14);
    loop {
        parameters[0] = Text((FIRST_NEW_ID + random.below(LAST_NEW_ID - FIRST_NEW_ID)).to_string());
        let given: Vec<&(dyn ToSql + Sync)> = parameters.iter().map(|one| one as _).collect();
        let began = Instant::now();
        client.execute(&statement, &given).await?;
        match phase.load(Ordering::Relaxed) {
            MEASURING => took.push(began.elapsed().as_micros() as u32),
            OVER => return Ok(took),
            _ => {}
        }
    }
}

/// A parameter in PostgreSQL's text format, which it reads as any type; pgbench sends the same.
#[derive(Debug)]
struct Text(String);

impl ToSql for Text {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut tokio_postgres::types::private::BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    tokio_postgres::types::to_sql_checked!();
}
