//! Measures searches for the nearest on real and made-up embeddings: recall, latency, build time and size, by kind of
//! index and filter: `cargo bench --bench vectors -- --help`.

#![forbid(unsafe_code)]
// What it has measured is its output.
#![allow(clippy::print_stdout)]

use casebook::config::Config;
use casebook::embedded::{Embedded, Options};
use casebook::pb;
use casebook::pb::vector_index::{Codes, Method};
use casebook::server::{Database, Server};
use casebook::store::migrate::Migrator;
use casebook::store::postgres::SERVICE_ROLE;
use clap::Parser;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio_postgres::config::Host;
use tonic::transport::Channel;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// Fills a space, builds indexes of several kinds one after another, and measures searches through each against the
/// right answers. What is in --dir already is not made again, so a run that was interrupted goes on where it was.
#[derive(Parser)]
#[command(name = "vectors")]
struct Arguments {
    /// A folder with real embeddings, as scripts/embedding-corpus.py makes it; else clustered ones are made up.
    #[arg(long, value_name = "FOLDER")]
    corpus: Option<PathBuf>,
    /// Made-up embeddings.
    #[arg(long, default_value_t = 20_000)]
    rows: usize,
    #[arg(long, default_value_t = 1536)]
    dimensions: usize,
    /// Kinds of index: hnsw-float32, hnsw-float16, hnsw-binary, ivfflat-float32, ivfflat-float16, ivfflat-binary.
    #[arg(long, value_delimiter = ',', default_value = "hnsw-binary,hnsw-float16,hnsw-float32")]
    kinds: Vec<String>,
    /// Searches of each measurement.
    #[arg(long, default_value_t = 200)]
    searches: usize,
    /// Searches of each measurement that look at every embedding, which takes long where there are many.
    #[arg(long, default_value_t = 10)]
    exact_searches: usize,
    /// Candidates to re-rank; 0 is the server's choice.
    #[arg(long, default_value_t = 0)]
    candidates: i32,
    #[arg(long, default_value_t = 0)]
    ef_search: i32,
    /// Memory for building, in bytes.
    #[arg(long, default_value_t = 2 << 30)]
    build_memory_bytes: u64,
    /// Where the database is; must be on a disk. A folder that is to go with the run where it is not given.
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// Writes the figures into this file, as Markdown.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let asked = std::env::args().any(|argument| argument == "--bench" || argument.contains('='));
    if !asked && std::env::args().count() == 1 {
        // `cargo test --all-targets` runs this program, too, and wants no bench.
        println!("vectors: run by `cargo bench --bench vectors`");
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("vectors: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vectors: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Where vectors come from: row n is the same in every run.
enum Source {
    Real { vectors: Vec<f32>, queries: Vec<f32>, dimensions: usize },
    Made { shape: Shape, rows: usize, dimensions: usize },
}

/// Embeddings of a cluster.
const CLUSTER_ROWS: usize = 1000;

impl Source {
    fn new(arguments: &Arguments) -> Result<Self> {
        if let Some(folder) = &arguments.corpus {
            let meta: serde_json::Value =
                serde_json::from_slice(&std::fs::read(folder.join("meta.json"))?)?;
            let text = meta.to_string();
            let dimensions = find_number(&meta, "dimension")
                .or_else(|| find_number(&meta, "dimensions"))
                .ok_or_else(|| format!("no dimension in meta.json: {text}"))?
                as usize;
            let vectors = numbers(&folder.join("vectors.f32"))?;
            let queries = numbers(&folder.join("queries.f32"))?;
            return Ok(Self::Real { vectors, queries, dimensions });
        }
        let shape = Shape::new(arguments.rows / CLUSTER_ROWS, arguments.dimensions);
        Ok(Self::Made { shape, rows: arguments.rows, dimensions: arguments.dimensions })
    }

    fn dimensions(&self) -> usize {
        match self {
            Self::Real { dimensions, .. } | Self::Made { dimensions, .. } => *dimensions,
        }
    }

    fn rows(&self) -> usize {
        match self {
            Self::Real { vectors, dimensions, .. } => vectors.len() / dimensions,
            Self::Made { rows, .. } => *rows,
        }
    }

    fn row(&self, n: usize) -> Vec<f32> {
        match self {
            Self::Real { vectors, dimensions, .. } => {
                vectors[n * dimensions..(n + 1) * dimensions].to_vec()
            }
            Self::Made { shape, .. } => shape.point(n as u64),
        }
    }

    fn query(&self, n: usize) -> Vec<f32> {
        match self {
            Self::Real { queries, dimensions, .. } => {
                let n = n % (queries.len() / dimensions);
                queries[n * dimensions..(n + 1) * dimensions].to_vec()
            }
            Self::Made { shape, .. } => shape.point((1 << 40) + n as u64),
        }
    }
}

fn find_number(value: &serde_json::Value, key: &str) -> Option<u64> {
    match value {
        serde_json::Value::Object(members) => members.iter().find_map(|(name, value)| {
            if name == key { value.as_u64() } else { find_number(value, key) }
        }),
        _ => None,
    }
}

/// Made-up embeddings that lie as those of a model do: in clusters, and within a cluster along a few directions, with a
/// little noise in all. Where all dimensions are independent, neighbours are hardly nearer than any other point of their
/// cluster, which no search by codes can tell apart and no model makes.
struct Shape {
    centres: Vec<Vec<f32>>,
    directions: Vec<Vec<f32>>,
}

/// How many directions there are, and how many of them a cluster has.
const DIRECTIONS: usize = 256;
const OF_CLUSTER: usize = 24;

impl Shape {
    fn new(clusters: usize, dimensions: usize) -> Self {
        let mut dice = StdRng::seed_from_u64(1);
        let mut some = |count: usize| -> Vec<Vec<f32>> {
            (0..count).map(|_| (0..dimensions).map(|_| normal(&mut dice)).collect()).collect()
        };
        Self { centres: some(clusters.max(1)), directions: some(DIRECTIONS) }
    }

    fn point(&self, n: u64) -> Vec<f32> {
        let mut dice = StdRng::seed_from_u64(n.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 7);
        let cluster = dice.random_range(0..self.centres.len());
        let mut point = self.centres[cluster].clone();
        for n in 0..OF_CLUSTER {
            let direction = &self.directions[(cluster * 31 + n * 7) % DIRECTIONS];
            // All of them together about as long as the centre.
            let length = normal(&mut dice) / (OF_CLUSTER as f32).sqrt();
            for (value, along) in point.iter_mut().zip(direction) {
                *value += length * along;
            }
        }
        for value in &mut point {
            *value += 0.1 * (dice.random_range(-1.0_f32..1.0) + dice.random_range(-1.0_f32..1.0));
        }
        point
    }
}

/// About normal: the sum of twelve even ones.
fn normal(dice: &mut StdRng) -> f32 {
    (0..12).map(|_| dice.random_range(0.0_f32..1.0)).sum::<f32>() - 6.0
}

fn numbers(path: &Path) -> Result<Vec<f32>> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let (whole, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(format!("{} is cut short", path.display()).into());
    }
    Ok(whole.iter().map(|number| f32::from_le_bytes(*number)).collect())
}

fn vector(values: &[f32]) -> Option<pb::Vector> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Some(pb::Vector { data: Some(pb::vector::Data::F32Le(bytes.into())) })
}

type Vectors = pb::vector_service_client::VectorServiceClient<Channel>;
type Spaces = pb::vector_space_service_client::VectorSpaceServiceClient<Channel>;

const SPACE: &str = "bench";
/// Filters, each with the part of the embeddings that it leaves.
const FILTERS: [(&str, &str); 4] =
    [("all", ""), ("50 %", "tags:\"of2\""), ("10 %", "tags:\"of10\""), ("1 %", "tags:\"of100\"")];
const RARE: (&str, &str) = ("0.1 %", "tags:\"of1000\"");
const TOP_K: i32 = 10;

async fn run(arguments: &Arguments) -> Result<()> {
    let source = Source::new(arguments)?;
    let folder = match &arguments.dir {
        Some(dir) => Folder::Kept(dir.clone()),
        None => {
            Folder::Gone(tempfile::Builder::new().prefix("casebook-vectors-").tempdir_in("target")?)
        }
    };
    std::fs::create_dir_all(folder.path())?;
    let embedded = Embedded::start(Options {
        data_dir: folder.path().join("data"),
        bin_dir: std::env::var_os("CASEBOOK_POSTGRES_BIN").map(Into::into),
        search: vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(".postgres")],
        settings: SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        start_timeout: Duration::from_secs(60),
    })
    .await?;
    let mut migrator = Migrator::connect(&embedded.config()).await?;
    migrator.up().await?;
    migrator.let_service_log_in().await?;
    drop(migrator);
    let postmaster = folder.path().join("data/postgres/postmaster.pid");
    let measured = served(arguments, &source, &embedded, &postmaster).await;
    embedded.stop().await?;
    measured
}

/// As a server has them that is to search so many vectors, beside the defaults of an embedded one.
const SETTINGS: [(&str, &str); 3] =
    [("shared_buffers", "4GB"), ("max_wal_size", "4GB"), ("max_connections", "200")];

async fn served(
    arguments: &Arguments,
    source: &Source,
    embedded: &Embedded,
    postmaster: &Path,
) -> Result<()> {
    let config = embedded.config();
    let Some(Host::Unix(socket)) = config.get_hosts().first() else {
        return Err("the embedded PostgreSQL has no socket".into());
    };
    let url =
        |user: &str| format!("postgresql://{user}@/casebook?host={}&port=5432", socket.display());
    let (service, owner) = (url(SERVICE_ROLE), url("postgres"));
    let memory = arguments.build_memory_bytes.to_string();
    let flags = [
        ("database_url", service.as_str()),
        ("owner_database_url", owner.as_str()),
        ("listen", "127.0.0.1:0"),
        ("metrics_listen", ""),
        ("auth", "none"),
        ("log_filter", "warn"),
        ("index_build_memory_bytes", &memory),
        ("index_probe_interval_ms", "0"),
        ("drain_delay_ms", "0"),
        // Exact searches of many embeddings take their time, the first one above all.
        ("deadline_max_ms", "600000"),
        ("statement_timeout_ms", "600000"),
    ];
    let flags = flags.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let config = Config::load(None, Vec::new(), flags).map_err(|error| error.to_string())?;
    let database = Database::open(&config).await?;
    let server = Server::bind(config, &database).await?;
    let address = server.address();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(server.serve(async move {
        let _ = stopped.await;
    }));
    let measured = tokio::select! {
        measured = measure(arguments, source, &address, postmaster) => measured,
        _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
    };
    let _ = stop.send(());
    serving.await??;
    database.close().await;
    measured
}

enum Folder {
    Kept(PathBuf),
    Gone(tempfile::TempDir),
}

impl Folder {
    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Gone(folder) => folder.path(),
        }
    }
}

async fn measure(
    arguments: &Arguments,
    source: &Source,
    address: &str,
    postmaster: &Path,
) -> Result<()> {
    let channel = tonic::transport::Endpoint::from_shared(address.to_owned())?.connect().await?;
    let mut vectors = Vectors::new(channel.clone()).max_decoding_message_size(64 << 20);
    let mut spaces = Spaces::new(channel.clone());
    let mut operations = pb::operation_service_client::OperationServiceClient::new(channel);
    fill(source, &mut vectors, &mut spaces).await?;
    let truths = tokio::task::block_in_place(|| truths(source, arguments.searches));
    let mut out = String::new();
    let mut say = |line: String| {
        println!("{line}");
        out.push_str(&line);
        out.push('\n');
    };
    let what = match source {
        Source::Real { .. } => "real embeddings".to_owned(),
        Source::Made { .. } => {
            format!(
                "made-up embeddings, {CLUSTER_ROWS} around each centre along {OF_CLUSTER} directions"
            )
        }
    };
    let rows = source.rows();
    say(format!("# {rows} {what}, {} dimensions, COSINE\n", source.dimensions()));
    say(format!(
        "Of {} searches for {TOP_K} through one client, one after another, warm. Recall is the part of the right answers, which the bench reckons by itself. Memory is that of all processes of PostgreSQL after those searches, its buffers among it.\n",
        arguments.searches
    ));
    let now = casebook::store::canonical::rfc3339(std::time::SystemTime::now());
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let settings = SETTINGS.map(|(name, value)| format!("{name} = {value}")).join(", ");
    say(format!("Taken {now} on {cores} cores, {settings}.\n"));
    say("| index | filter | recall | p50 ms | p95 ms | p99 ms | exact p50 ms | by index | memory MB |".into());
    say("|---|---|---|---|---|---|---|---|---|".into());
    let mut sizes = Vec::new();
    for kind in &arguments.kinds {
        let index = parse(kind)?;
        let began = Instant::now();
        let request =
            pb::GetVectorSpaceRequest { vector_space_id: SPACE.into(), ..Default::default() };
        let space = spaces.get_vector_space(request).await?.into_inner().vector_space;
        let has = space.and_then(|space| space.index);
        let is_there =
            has.is_some_and(|has| (has.method, has.codes) == (index.method, index.codes));
        if !is_there {
            let request = pb::BuildVectorIndexRequest {
                vector_space_id: SPACE.into(),
                index: Some(index),
                options: None,
            };
            let begun = spaces.build_vector_index(request).await?.into_inner().operation;
            let id = begun.map(|begun| begun.id).unwrap_or_default();
            let request = pb::WatchOperationRequest { operation_id: id };
            let mut watched = operations.watch_operation(request).await?.into_inner();
            while let Some(told) = watched.message().await? {
                let Some(operation) = told.operation else { continue };
                progress(&format!(
                    "{kind}: {} {:.0} %",
                    operation.phase,
                    operation.progress * 100.0
                ));
                if !operation.error.is_empty() {
                    return Err(operation.error.into());
                }
            }
        }
        let took = began.elapsed();
        let request = pb::GetVectorSpaceStatsRequest { vector_space_id: SPACE.into() };
        let stats = spaces.get_vector_space_stats(request).await?.into_inner();
        if let Some(index) = stats.indexes.first() {
            let built = if is_there {
                "built before".into()
            } else {
                format!("{:.1} s", took.as_secs_f64())
            };
            sizes.push(format!(
                "| {kind} | {built} | {:.1} | {:.1} |",
                index.size_bytes as f64 / 1e6,
                index.codes_size_bytes as f64 / 1e6
            ));
        }
        for ((name, filter), truth) in FILTERS.into_iter().chain([RARE]).zip(&truths) {
            let few = arguments.exact_searches.min(arguments.searches);
            let exact = search(arguments, source, &mut vectors, filter, Some(few), kind).await?;
            if recall(truth, &exact) < 1.0 {
                return Err(format!("exact searches by {filter:?} are not exact").into());
            }
            let found = search(arguments, source, &mut vectors, filter, None, kind).await?;
            let memory_mb = memory_bytes(postmaster)? as f64 / 1e6;
            say(format!("{} {memory_mb:.0} |", line(kind, name, truth, &exact, &found)));
        }
    }
    say(String::new());
    say("| index | built in | index MB | codes MB |".into());
    say("|---|---|---|---|".into());
    for size in sizes {
        say(size);
    }
    if let Some(path) = &arguments.out {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, out)?;
    }
    Ok(())
}

/// What a PostgreSQL has in memory, what its processes share counted once. The file names the first of them.
fn memory_bytes(postmaster: &Path) -> Result<u64> {
    let text = std::fs::read_to_string(postmaster)?;
    let first = text.lines().next().unwrap_or_default().trim().to_owned();
    let mut kib = 0;
    for entry in std::fs::read_dir("/proc")? {
        let folder = entry?.path();
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        // Behind the name, which may hold anything: state, parent.
        let stat = read("stat");
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        if folder.ends_with(&first) || parent == Some(&first) {
            let rollup = read("smaps_rollup");
            let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
            let pss = pss.and_then(|pss| pss.split_whitespace().next());
            kib += pss.and_then(|pss| pss.parse::<u64>().ok()).unwrap_or_default();
        }
    }
    Ok(1024 * kib)
}

fn parse(kind: &str) -> Result<pb::VectorIndex> {
    let wrong = || format!("{kind} is no kind of index: see --help");
    let (method, codes) = kind.split_once('-').ok_or_else(wrong)?;
    let method = match method {
        "hnsw" => Method::Hnsw,
        "ivfflat" => Method::Ivfflat,
        _ => return Err(wrong().into()),
    };
    let codes = match codes {
        "float32" => Codes::Float32,
        "float16" => Codes::Float16,
        "binary" => Codes::Binary,
        _ => return Err(wrong().into()),
    };
    Ok(pb::VectorIndex { method: method.into(), codes: codes.into(), ..Default::default() })
}

/// A line that the next one takes the place of.
fn progress(text: &str) {
    let mut out = std::io::stderr();
    let _ = write!(out, "\r\x1b[K{text}");
    let _ = out.flush();
}

const BATCH: usize = 500;

async fn fill(source: &Source, vectors: &mut Vectors, spaces: &mut Spaces) -> Result<()> {
    let request = pb::CreateVectorSpaceRequest {
        vector_space_id: SPACE.into(),
        vector_space: Some(pb::VectorSpace {
            embedding_model: "bench".into(),
            dimensions: source.dimensions() as i32,
            metric: pb::DistanceMetric::Cosine.into(),
            ..Default::default()
        }),
        options: Some(pb::WriteOptions {
            on_conflict: pb::OnConflict::ReturnIfEqual.into(),
            ..Default::default()
        }),
    };
    spaces.create_vector_space(request).await?;
    let request = pb::GetVectorSpaceStatsRequest { vector_space_id: SPACE.into() };
    let there = spaces.get_vector_space_stats(request).await?.into_inner().embedding_count as usize;
    let (began, total) = (Instant::now(), source.rows());
    let mut at = there;
    while at < total {
        let to = (at + BATCH).min(total);
        let rows = (at..to).map(|n| {
            let tags = [2, 10, 100, 1000].iter().filter(|part| n % **part == 0);
            pb::Embedding {
                id: format!("e{n}"),
                tags: tags.map(|part| format!("of{part}")).collect(),
                vector: vector(&source.row(n)),
                ..Default::default()
            }
        });
        let request = pb::BatchUpsertEmbeddingsRequest {
            vector_space_id: SPACE.into(),
            embeddings: rows.collect(),
            options: None,
        };
        vectors.batch_upsert_embeddings(request).await?;
        at = to;
        let rate = (at - there) as f64 / began.elapsed().as_secs_f64();
        progress(&format!(
            "{at} of {total} embeddings, {rate:.0} a second, {:.0} s left",
            (total - at) as f64 / rate
        ));
    }
    Ok(())
}

/// What searches found, and how long each took.
struct Answers {
    distances: Vec<Vec<f64>>,
    took_ms: Vec<f64>,
    by_index: usize,
}

impl Answers {
    fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.took_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(place).copied().unwrap_or(f64::NAN)
    }
}

/// The distances of the right answers to each query, for each filter: reckoned here, without the server or its database.
fn truths(source: &Source, searches: usize) -> Vec<Vec<Vec<f64>>> {
    let queries: Vec<Vec<f32>> = (0..searches).map(|n| unit(&source.query(n))).collect();
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    let done = std::sync::atomic::AtomicUsize::new(0);
    let nearest = |of: usize| {
        let mut best = vec![vec![Vec::new(); searches]; PARTS.len()];
        for n in (of..source.rows()).step_by(threads) {
            let row = unit(&source.row(n));
            for (place, query) in queries.iter().enumerate() {
                let distance = 1.0 - f64::from(dot(&row, query));
                for (best, part) in best.iter_mut().zip(PARTS) {
                    if n % part == 0 {
                        keep(&mut best[place], distance);
                    }
                }
            }
            let done = done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if done.is_multiple_of(1000) {
                progress(&format!("right answers: row {done} of {}", source.rows()));
            }
        }
        best
    };
    let parts: Vec<_> = std::thread::scope(|scope| {
        let nearest = &nearest;
        let running: Vec<_> = (0..threads).map(|of| scope.spawn(move || nearest(of))).collect();
        running.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let mut all = vec![vec![Vec::new(); searches]; PARTS.len()];
    for part in parts {
        for (all, part) in all.iter_mut().zip(part) {
            for (all, part) in all.iter_mut().zip(part) {
                part.into_iter().for_each(|distance| keep(all, distance));
            }
        }
    }
    progress("");
    all
}

/// Keeps the least, in order.
fn keep(best: &mut Vec<f64>, distance: f64) {
    if best.len() == TOP_K as usize && best.last().is_some_and(|last| *last <= distance) {
        return;
    }
    let place = best.partition_point(|kept| *kept <= distance);
    best.insert(place, distance);
    best.truncate(TOP_K as usize);
}

fn unit(values: &[f32]) -> Vec<f32> {
    let length = dot(values, values).sqrt();
    values.iter().map(|value| value / length).collect()
}

/// In sixteen sums at once, which a processor adds up several at a time.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 16];
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// Which embeddings FILTERS and RARE leave: one in so many.
const PARTS: [usize; 5] = [1, 2, 10, 100, 1000];

/// As many as given look at every embedding; else all are made as the server likes.
async fn search(
    arguments: &Arguments,
    source: &Source,
    vectors: &mut Vectors,
    filter: &str,
    exact: Option<usize>,
    kind: &str,
) -> Result<Answers> {
    let mut answers = Answers { distances: Vec::new(), took_ms: Vec::new(), by_index: 0 };
    let (warm, searches) = exact.map_or((arguments.searches, arguments.searches), |few| (1, few));
    let exact = exact.is_some();
    for n in (0..warm).chain(0..searches) {
        let params = pb::SearchParams {
            exact,
            candidates: if exact { 0 } else { arguments.candidates },
            ef_search: if exact { 0 } else { arguments.ef_search },
            ..Default::default()
        };
        let request = pb::SearchVectorsRequest {
            query: Some(pb::VectorQuery {
                vector_space_id: SPACE.into(),
                target: vector(&source.query(n)).map(pb::vector_query::Target::Vector),
                top_k: TOP_K,
                r#where: (!filter.is_empty())
                    .then(|| pb::Selector { expression: filter.into(), filter: None }),
                params: Some(params),
                ..Default::default()
            }),
            ..Default::default()
        };
        let began = Instant::now();
        let answer = vectors.search_vectors(deadline(request)).await?.into_inner();
        let took = began.elapsed();
        if n % 50 == 0 {
            progress(&format!("{kind} {filter}: search {n} of {searches}"));
        }
        answers.took_ms.push(took.as_secs_f64() * 1000.0);
        if answers.took_ms.len() > warm {
            answers.by_index += usize::from(answer.method() != pb::SearchMethod::Exact);
        }
        answers.distances.push(answer.hits.iter().map(|hit| hit.distance).collect());
    }
    // The first ones warmed up.
    answers.took_ms.drain(..warm);
    answers.distances.drain(..warm);
    progress("");
    Ok(answers)
}

fn deadline<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(Duration::from_secs(600));
    request
}

/// The part of the right answers that was found.
fn recall(truth: &[Vec<f64>], found: &Answers) -> f64 {
    let (mut there, mut met) = (0, 0);
    for (right, some) in truth.iter().zip(&found.distances) {
        let Some(last) = right.last() else { continue };
        there += right.len();
        // Distances of float32 are summed up in another order here.
        met += some.iter().filter(|distance| **distance <= last + 1e-5).count().min(right.len());
    }
    met as f64 / there.max(1) as f64
}

fn line(kind: &str, filter: &str, truth: &[Vec<f64>], exact: &Answers, found: &Answers) -> String {
    format!(
        "| {kind} | {filter} | {:.4} | {:.1} | {:.1} | {:.1} | {:.1} | {} of {} |",
        recall(truth, found),
        found.percentile(50),
        found.percentile(95),
        found.percentile(99),
        exact.percentile(50),
        found.by_index,
        found.took_ms.len(),
    )
}
