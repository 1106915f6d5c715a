//! Searches for the nearest embeddings through an index, through Casebook and straight; and chunks that come in with
//! their embeddings.

use crate::load::{MEASURING, OVER};
use crate::stats::Random;
use crate::{Context, Result, payload};
use casebook::pb;
use casebook::store::canonical::Json;
use casebook::store::embedding::in_space;
use casebook::store::embedding::nearest::{How, Nearest};
use casebook::store::filter::Filter;
use casebook::store::noun::Meta;
use casebook::store::query::FromRow as _;
use casebook::store::vector::Numbers;
use casebook::store::vector_index::Index;
use casebook::store::vector_space::VectorSpace;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};
use uuid::Uuid;

pub const EMBEDDINGS: u64 = 20_000;
pub const DIMENSIONS: usize = 1536;
/// Hits of a search.
const HITS: i32 = 10;
const CENTRES: u64 = 200;
const TENANT: &str = "default";
pub const SPACE: &str = "nearest";
/// Who has one in a hundred of the embeddings for itself, and how many those are.
pub const SMALL_TENANT: &str = "bench-1";
pub const SMALL: u64 = EMBEDDINGS / 100;
/// That chunks are ingested into.
pub const CHUNK_SPACE: &str = "chunks";

/// A point around one of the centres, the same one for the same number.
pub fn point(number: u64) -> Vec<f32> {
    let mut centre = Random::new(0x00CE_0000 + number % CENTRES);
    let mut around = Random::new(0x00AA_0000_0000 + number);
    around.next();
    let even = |random: &mut Random| random.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0;
    (0..DIMENSIONS).map(|_| even(&mut centre) + 0.8 * even(&mut around)).collect()
}

pub fn vector(values: &[f32]) -> Option<pb::Vector> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Some(pb::Vector { data: Some(pb::vector::Data::F32Le(bytes.into())) })
}

fn target(random: &mut Random) -> Vec<f32> {
    point(EMBEDDINGS + random.below(2000))
}

/// Requests that are drawn from, because making one takes longer than sending it.
pub fn requests(random: &mut Random) -> Vec<pb::SearchVectorsRequest> {
    let request = |_| pb::SearchVectorsRequest {
        query: Some(pb::VectorQuery {
            vector_space_id: SPACE.into(),
            target: vector(&target(random)).map(pb::vector_query::Target::Vector),
            top_k: HITS,
            ..Default::default()
        }),
        ..Default::default()
    };
    (0..50).map(request).collect()
}

fn of_tenant<T>(tenant: &str, message: T) -> Result<tonic::Request<T>> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("x-casebook-tenant", tenant.parse()?);
    Ok(request)
}

async fn space(address: &str, tenant: &str, id: &str) -> Result<()> {
    let mut spaces =
        pb::vector_space_service_client::VectorSpaceServiceClient::connect(address.to_owned())
            .await?;
    let request = pb::CreateVectorSpaceRequest {
        vector_space_id: id.into(),
        vector_space: Some(pb::VectorSpace {
            embedding_model: "bench".into(),
            dimensions: DIMENSIONS as i32,
            ..Default::default()
        }),
        options: None,
    };
    spaces.create_vector_space(of_tenant(tenant, request)?).await?;
    Ok(())
}

async fn index(address: &str, id: &str) -> Result<()> {
    let mut spaces =
        pb::vector_space_service_client::VectorSpaceServiceClient::connect(address.to_owned())
            .await?;
    let request = pb::BuildVectorIndexRequest { vector_space_id: id.into(), ..Default::default() };
    let begun = spaces.build_vector_index(request).await?.into_inner().operation;
    let operation_id = begun.with(|| "no operation")?.id;
    let mut operations =
        pb::operation_service_client::OperationServiceClient::connect(address.to_owned()).await?;
    loop {
        let request =
            pb::WaitOperationRequest { operation_id: operation_id.clone(), timeout: None };
        let operation = operations.wait_operation(request).await?.into_inner().operation;
        match operation.with(|| "no operation")?.state() {
            pb::OperationState::Done => break,
            pb::OperationState::Pending | pb::OperationState::Running => {}
            other => return Err(format!("the index was not built: {other:?}").into()),
        }
    }
    loop {
        let request = pb::GetVectorSpaceStatsRequest { vector_space_id: id.into() };
        let stats = spaces.get_vector_space_stats(request).await?.into_inner();
        if stats.indexes.iter().all(|index| index.unsealed_count == 0) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn upsert(ids: impl Iterator<Item = (String, Vec<f32>)>) -> pb::BatchUpsertEmbeddingsRequest {
    let embeddings =
        ids.map(|(id, values)| pb::Embedding { id, vector: vector(&values), ..Default::default() });
    pb::BatchUpsertEmbeddingsRequest {
        vector_space_id: SPACE.into(),
        embeddings: embeddings.collect(),
        options: None,
    }
}

/// Records the embeddings that are searched, with an index, and one in a hundred of them in a small tenant, too.
pub async fn fill(address: &str) -> Result<()> {
    let mut vectors =
        pb::vector_service_client::VectorServiceClient::connect(address.to_owned()).await?;
    // One of each centre, so that the small tenant's are anywhere among all of them.
    for (tenant, count) in [(TENANT, EMBEDDINGS), (SMALL_TENANT, SMALL)] {
        space(address, tenant, SPACE).await?;
        let numbers: Vec<u64> = (0..count).collect();
        for some in numbers.chunks(500) {
            let request = upsert(some.iter().map(|n| (format!("e{n}"), point(*n))));
            vectors.batch_upsert_embeddings(of_tenant(tenant, request)?).await?;
        }
    }
    index(address, SPACE).await
}

/// The embeddings again in one table that a hundred tenants share, with the index that pgvector's manual shows.
pub const SHARED: &str = "
CREATE TABLE raw.shared (tenant_id int NOT NULL, embedding public.vector(1536) NOT NULL);
INSERT INTO raw.shared SELECT substr(e.embedding_id, 2)::int / 200, x.vector FROM casebook.embedding AS e
JOIN casebook.embedding_vector AS x ON x.tenant_id = e.tenant_id AND x.embedding_uid = e.uid
WHERE e.tenant_id = 'default' AND e.embedding_id LIKE 'e%';
SET maintenance_work_mem = '1GB';
CREATE INDEX ON raw.shared USING hnsw (embedding public.vector_cosine_ops);
ANALYZE raw.shared";

/// One connection that looks for the nearest of one tenant's rows in the shared table by its index, which is walked on
/// until enough are found.
pub async fn share_until_over(
    conninfo: String,
    mut random: Random,
    phase: Arc<AtomicU8>,
) -> Result<Vec<u32>> {
    let config = conninfo.parse::<tokio_postgres::Config>()?;
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    // Else PostgreSQL would sort the few rows of the tenant, which is the other way to lose: it knows them from
    // statistics here, but not where tenants or filters are related.
    client
        .batch_execute(
            "SET hnsw.iterative_scan = 'relaxed_order'; SET enable_sort = off; SET enable_seqscan = off",
        )
        .await?;
    let sql = "SELECT embedding OPERATOR(public.<=>) $1::text::public.vector AS distance FROM raw.shared \
               WHERE tenant_id = 0 ORDER BY distance LIMIT 10";
    let statement = client.prepare(sql).await?;
    let targets: Vec<String> = (0..50).map(|_| format!("{:?}", target(&mut random))).collect();
    let mut took = Vec::with_capacity(1 << 14);
    loop {
        let target = &targets[random.below(targets.len() as u64) as usize];
        let began = Instant::now();
        if client.query(&statement, &[target]).await?.is_empty() {
            return Err("a search found nothing".into());
        }
        match phase.load(Ordering::Relaxed) {
            MEASURING => took.push(began.elapsed().as_micros() as u32),
            OVER => return Ok(took),
            _ => {}
        }
    }
}

/// Rows of a message of those that arrive.
const ARRIVING: u64 = 100;

/// Lets so many new embeddings arrive each second; fails where they do not.
pub async fn write_until_over(
    channel: tonic::transport::Channel,
    rows_per_second: u64,
    mut random: Random,
    phase: Arc<AtomicU8>,
) -> Result<Vec<u32>> {
    let mut vectors = pb::vector_service_client::VectorServiceClient::new(channel);
    // Made beforehand, because making them takes longer than sending them.
    let values: Vec<Vec<f32>> = (0..1000).map(|_| target(&mut random)).collect();
    let run = random.next();
    let pause = Duration::from_secs_f64(ARRIVING as f64 / rows_per_second as f64);
    let mut ticks = tokio::time::interval(pause);
    let (mut sent, mut measured) = (0, None);
    loop {
        ticks.tick().await;
        let rows = (sent..sent + ARRIVING).map(|n| {
            let values = values[n as usize % values.len()].clone();
            (format!("w{run}-{n}"), values)
        });
        vectors.batch_upsert_embeddings(upsert(rows)).await?;
        sent += ARRIVING;
        match (phase.load(Ordering::Relaxed), measured) {
            (MEASURING, None) => measured = Some((Instant::now(), sent)),
            (OVER, Some((began, before))) => {
                let rate = (sent - before) as f64 / Instant::elapsed(&began).as_secs_f64();
                if rate < 0.95 * rows_per_second as f64 {
                    return Err(format!("only {rate:.0} rows arrived a second").into());
                }
                return Ok(Vec::new());
            }
            (OVER, None) => return Err("no rows arrived in time".into()),
            _ => {}
        }
    }
}

/// Makes a space with an index for chunks, and chunks with embeddings that COPY copies.
pub async fn fill_chunks(address: &str, texts: u64) -> Result<()> {
    space(address, TENANT, CHUNK_SPACE).await?;
    let mut client =
        pb::document_service_client::DocumentServiceClient::connect(address.to_owned()).await?;
    client.create_document(payload::document("embedded")).await?;
    let numbers: Vec<u64> = (0..texts).collect();
    for some in numbers.chunks(250) {
        let chunks = some.iter().map(|n| pb::Chunk {
            chunk_index: *n as i32,
            embeddings: embeddings(*n),
            ..payload::chunk(*n)
        });
        let request = pb::BatchCreateChunksRequest {
            document_id: "embedded".into(),
            chunks: chunks.collect(),
            ..Default::default()
        };
        client.batch_create_chunks(request).await?;
    }
    index(address, CHUNK_SPACE).await
}

/// The embedding of a chunk.
pub fn embeddings(number: u64) -> Vec<pb::Embedding> {
    vec![pb::Embedding {
        vector_space_id: CHUNK_SPACE.into(),
        vector: vector(&point(number)),
        ..Default::default()
    }]
}

/// One connection that asks PostgreSQL itself, as Casebook's role must: BEGIN, the tenant and the settings, the search,
/// COMMIT, in one round trip.
pub async fn until_over(
    conninfo: String,
    mut random: Random,
    phase: Arc<AtomicU8>,
) -> Result<Vec<u32>> {
    let mut config = conninfo.parse::<tokio_postgres::Config>()?;
    // As Casebook's own sessions are.
    config.options("-c search_path=wall,pg_catalog -c plan_cache_mode=force_custom_plan");
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    client.batch_execute(&format!("SET casebook.tenant = '{TENANT}'")).await?;
    let uid = "SELECT uid FROM vector_space WHERE id = $1";
    let uid: Uuid = client.query_one(uid, &[&SPACE]).await?.get(0);
    let columns: Vec<_> = Index::columns().into_iter().map(|column| column.name).collect();
    let sql = format!(
        "SELECT {} FROM wall.vector_indexes() WHERE space_uid = $1 AND state = 3",
        columns.join(", ")
    );
    let index = Index::from_row(&client.query_one(&sql, &[&uid]).await?)?;
    let space = Arc::new(VectorSpace {
        id: SPACE.into(),
        meta: Meta::new(uid),
        embedding_model: String::new(),
        dimensions: DIMENSIONS as i32,
        metric: 1,
        storage: 1,
        description: String::new(),
        labels: Json::object(),
        aliases: Json::array(),
        index_method: None,
        index_codes: None,
        index_m: None,
        index_ef_construction: None,
        index_lists: None,
        index_mode: None,
    });
    let search = |values: Vec<f32>| -> Result<_> {
        let search = Nearest {
            target: Numbers::of(&space, values).map_err(|(_, why)| why)?,
            filter: in_space(&space, Filter::default())?,
            space: Arc::clone(&space),
            top_k: HITS.into(),
            is_filtered: false,
            but: None,
            how: How::default(),
            guess: None,
        };
        Ok(search.by(&index, search.candidates(&index)))
    };
    let targets: Vec<Vec<f32>> = (0..50).map(|_| target(&mut random)).collect();
    let asked = search(targets[0].clone())?;
    let statement = client.prepare(&asked.sql).await?;
    let tenant = client.prepare("SELECT set_config('casebook.tenant', $1, true)").await?;
    let set = "SELECT FROM unnest($1::text[], $2::text[]) AS s (name, value), set_config(s.name, s.value, true)";
    let set = client.prepare(set).await?;
    let (names, values): (Vec<&str>, Vec<String>) = asked.settings.into_iter().unzip();
    let entering: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&TENANT];
    let mut took = Vec::with_capacity(1 << 14);
    loop {
        let values_of = targets[random.below(targets.len() as u64) as usize].clone();
        let asked = search(values_of)?;
        let params = asked.params.as_sql();
        let settings: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&names, &values];
        let began = Instant::now();
        let (begun, entered, set, hits, committed) = futures_util::join!(
            client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"),
            client.query(&tenant, &entering),
            client.query(&set, &settings),
            client.query(&statement, &params),
            client.batch_execute("COMMIT"),
        );
        begun?;
        entered?;
        set?;
        committed?;
        if hits?.len() != HITS as usize {
            return Err("a search found too little".into());
        }
        match phase.load(Ordering::Relaxed) {
            MEASURING => took.push(began.elapsed().as_micros() as u32),
            OVER => return Ok(took),
            _ => {}
        }
    }
}
