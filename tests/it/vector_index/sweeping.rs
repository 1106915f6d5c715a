//! Sweeping: what no longer counts goes from indexes and their lists, and nothing else does.

use super::*;
use tokio_postgres::Client;

async fn count(owner: &Client, of: &str) -> i64 {
    owner.query_one(&format!("SELECT count(*) FROM {of}"), &[]).await.unwrap().get(0)
}

/// The only index there is, as its table is called.
async fn table(owner: &Client) -> String {
    let number = "SELECT 'casebook.sealed_' || number FROM casebook.vector_index";
    owner.query_one(number, &[]).await.unwrap().get(0)
}

async fn until(owner: &Client, of: &str, wanted: i64) {
    for _ in 0..600 {
        if count(owner, of).await == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{} in {of}, not {wanted}", count(owner, of).await);
}

/// By itself, once a fifth of a sample of the codes is dead: those of deleted embeddings and of earlier vectors.
#[tokio::test]
async fn superseded_codes_go_and_live_ones_stay() {
    let settings = [("index_upkeep_interval_ms", "30"), ("index_probe_interval_ms", "200")];
    let world = World::with(&settings).await;
    let who = world.anonymous();
    let owner = world.superuser().await;
    let mut cloud = Cloud::new(15, 8);
    space(&who, "s", 8, DistanceMetric::L2, VectorStorage::Float32).await;
    fill(&who, "s", &mut cloud, 0..1600).await;
    built(&who, build("s", Method::Hnsw, Codes::Float32)).await;
    let codes = table(&owner).await;
    assert_eq!(count(&owner, &codes).await, 1600);
    // Each of these has two codes until it is swept.
    let moved = fill(&who, "s", &mut cloud, 0..600).await;
    ok!(who.vectors().batch_delete_embeddings(pb::BatchDeleteEmbeddingsRequest {
        vector_space_id: "s".into(),
        embedding_ids: (1200..1600).map(|n| format!("e{n:04}")).collect(),
        ..Default::default()
    }));
    until(&owner, &codes, 1200).await;
    sealed(&who, "s").await;
    let stray = format!(
        "{codes} AS c WHERE NOT EXISTS (SELECT FROM casebook.embedding AS e WHERE e.uid = c.embedding_uid \
         AND e.vector_digest = c.digest AND e.delete_time IS NULL)"
    );
    assert_eq!(count(&owner, &stray).await, 0);
    for (n, point) in moved.iter().enumerate().step_by(50) {
        let answer = search(&who, near("s", point, 1)).await;
        assert_eq!((ids(&answer), answer.hits[0].distance), (vec![format!("e{n:04}")], 0.0));
    }
    drop(owner);
    world.close().await;
}

/// Dead rows of the list go, whether their index is gone or they have no code; those that are all that finds a vector stay.
#[tokio::test]
async fn dead_rows_of_the_list_go() {
    let settings = [("index_upkeep_interval_ms", "30"), ("index_probe_interval_ms", "200")];
    let world = World::with(&settings).await;
    let who = world.anonymous();
    let owner = world.superuser().await;
    let mut cloud = Cloud::new(16, 8);
    space(&who, "s", 8, DistanceMetric::L2, VectorStorage::Float32).await;
    fill(&who, "s", &mut cloud, 0..100).await;
    built(&who, build("s", Method::Hnsw, Codes::Float16)).await;
    let write = async |id: &str, value: f32| {
        ok!(who.vectors().upsert_embedding(pb::UpsertEmbeddingRequest {
            vector_space_id: "s".into(),
            embedding: Some(embedding(id, &[value; 8])),
            options: None,
        }));
    };
    // None of these has a code.
    for (id, value) in [("stays", 25_000.0), ("moves", 27_000.0), ("goes", 29_000.0)] {
        write(id, value).await;
    }
    write("moves", 1.0).await;
    ok!(who.vectors().delete_embedding(pb::DeleteEmbeddingRequest {
        vector_space_id: "s".into(),
        embedding_id: "goes".into(),
        ..Default::default()
    }));
    let gone = "INSERT INTO casebook.embedding_delta (tenant_id, index_uid, embedding_uid, digest)
                SELECT e.tenant_id, 'aaaaaaaa-0000-4000-8000-000000000000', e.uid, e.vector_digest
                FROM casebook.embedding AS e WHERE embedding_id < 'e0050'";
    assert_eq!(owner.execute(gone, &[]).await.unwrap(), 50);
    until(&owner, "casebook.embedding_delta", 1).await;
    for (id, value) in [("stays", 22_900.0), ("moves", 1.0)] {
        let answer = search(&who, near("s", &[value; 8], 1)).await;
        assert_eq!((ids(&answer), answer.method()), (vec![id.to_owned()], SearchMethod::Hnsw));
    }
    drop(owner);
    world.close().await;
}

/// In batches by key, each once: a batch takes what is dead of its own part, and says where the next one begins.
#[tokio::test]
async fn sweeping_goes_on_where_it_stopped() {
    let world = World::with(&BRISK).await;
    let who = world.anonymous();
    let owner = world.superuser().await;
    let mut cloud = Cloud::new(17, 8);
    space(&who, "s", 8, DistanceMetric::L2, VectorStorage::Float32).await;
    fill(&who, "s", &mut cloud, 0..50).await;
    built(&who, build("s", Method::Hnsw, Codes::Float32)).await;
    fill(&who, "s", &mut cloud, 0..25).await;
    sealed(&who, "s").await;
    let codes = table(&owner).await;
    assert_eq!(count(&owner, &codes).await, 75);
    let service = world.superuser().await;
    service
        .batch_execute("SET ROLE casebook_app; SET search_path = wall, pg_catalog; SET casebook.tenant = 'default'")
        .await
        .unwrap();
    let sweep =
        "SELECT s.* FROM vector_index AS i, LATERAL sweep_vector_index(i.uid, $1, $2, 30) AS s";
    let (mut uid, mut digest, mut swept) = (uuid::Uuid::nil(), String::new(), Vec::new());
    loop {
        let row = service.query_one(sweep, &[&uid, &digest]).await.unwrap();
        swept.push(row.get::<_, i64>("swept"));
        let Some(last) = row.get("last_uid") else { break };
        (uid, digest) = (last, row.get("last_digest"));
    }
    assert_eq!((swept.len(), swept.iter().sum::<i64>()), (3, 25));
    assert_eq!(count(&owner, &codes).await, 50);
    drop((owner, service));
    world.close().await;
}
