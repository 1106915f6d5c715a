//! What tests of vectors have in common: spaces, embeddings, searches, indexes.

use crate::world::As;
use casebook::pb;
use casebook::pb::vector_index::{Codes, Method};
use casebook::pb::{DistanceMetric, VectorStorage};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

/// Numbers by chance, the same again by CASEBOOK_TEST_SEED.
pub fn dice() -> StdRng {
    let seed: u64 = std::env::var("CASEBOOK_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random);
    eprintln!("CASEBOOK_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// A space under L2.
pub async fn space(who: &As, id: &str, dimensions: i32) {
    space_of(who, id, dimensions, DistanceMetric::L2, VectorStorage::Float32).await;
}

pub async fn space_of(
    who: &As,
    id: &str,
    dimensions: i32,
    metric: DistanceMetric,
    storage: VectorStorage,
) {
    ok!(who.spaces().create_vector_space(pb::CreateVectorSpaceRequest {
        vector_space_id: id.into(),
        vector_space: Some(pb::VectorSpace {
            embedding_model: "ada".into(),
            dimensions,
            metric: metric.into(),
            storage: storage.into(),
            ..Default::default()
        }),
        options: None,
    }));
}

pub fn floats(values: &[f32]) -> Option<pb::Vector> {
    let list = pb::FloatList { values: values.to_vec() };
    Some(pb::Vector { data: Some(pb::vector::Data::Floats(list)) })
}

pub fn bytes(values: &[f32]) -> Option<pb::Vector> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Some(pb::Vector { data: Some(pb::vector::Data::F32Le(bytes.into())) })
}

pub fn embedding(id: &str, values: &[f32]) -> pb::Embedding {
    pb::Embedding { id: id.into(), vector: floats(values), ..Default::default() }
}

/// Writes embeddings, however many.
pub async fn embed(who: &As, space: &str, embeddings: &[pb::Embedding]) {
    for some in embeddings.chunks(1000) {
        ok!(who.vectors().batch_upsert_embeddings(pb::BatchUpsertEmbeddingsRequest {
            vector_space_id: space.into(),
            embeddings: some.to_vec(),
            options: None,
        }));
    }
}

/// A search for the nearest; 0 for as many as there are where nobody says.
pub fn nearest(space: &str, values: &[f32], top_k: i32) -> pb::VectorQuery {
    pb::VectorQuery {
        vector_space_id: space.into(),
        target: floats(values).map(pb::vector_query::Target::Vector),
        top_k,
        ..Default::default()
    }
}

pub fn build(space: &str, method: Method, codes: Codes) -> pb::BuildVectorIndexRequest {
    pb::BuildVectorIndexRequest {
        vector_space_id: space.into(),
        index: Some(pb::VectorIndex {
            method: method.into(),
            codes: codes.into(),
            ..Default::default()
        }),
        options: None,
    }
}

/// Waits until an operation is over.
pub async fn over(who: &As, id: &str) -> pb::Operation {
    let request = pb::WaitOperationRequest { operation_id: id.into(), timeout: None };
    ok!(who.operations().wait_operation(request)).operation.unwrap()
}

/// Builds an index, and waits until it is searched.
pub async fn built(who: &As, request: pb::BuildVectorIndexRequest) -> pb::Operation {
    let begun = ok!(who.spaces().build_vector_index(request)).operation.unwrap();
    let ended = over(who, &begun.id).await;
    assert_eq!(ended.state(), pb::OperationState::Done, "{ended:?}");
    ended
}
