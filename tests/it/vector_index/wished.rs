//! Indexes that spaces are created with.

use super::*;
use pb::VectorIndexMode;
use pb::get_vector_space_stats_response::index_state::State;
use std::time::Duration;

fn wish(id: &str, dimensions: i32, index: pb::VectorIndex) -> pb::CreateVectorSpaceRequest {
    pb::CreateVectorSpaceRequest {
        vector_space_id: id.into(),
        vector_space: Some(pb::VectorSpace {
            embedding_model: "ada".into(),
            dimensions,
            metric: DistanceMetric::L2.into(),
            index: Some(index),
            ..Default::default()
        }),
        options: None,
    }
}

fn by(method: Method) -> pb::VectorIndex {
    pb::VectorIndex { method: method.into(), ..Default::default() }
}

#[tokio::test]
async fn a_space_is_created_with_the_index_that_it_shall_have() {
    let world = World::with(&BRISK).await;
    let who = world.anonymous();
    let mut cloud = Cloud::new(20, 8);
    let mut request = wish("s", 8, by(Method::Hnsw));
    let made = ok!(who.spaces().create_vector_space(request.clone())).vector_space.unwrap();
    let wished = pb::VectorIndex {
        m: 16,
        ef_construction: 64,
        codes: Codes::Float16.into(),
        ..by(Method::Hnsw)
    };
    assert_eq!(made.index, Some(wished));
    fill(&who, "s", &mut cloud, 0..50).await;
    for _ in 0..1200 {
        if stats(&who, "s").await.indexes.iter().any(|index| index.state() == State::Ready) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let answer = search(&who, near("s", &cloud.point(), 5)).await;
    assert_eq!((answer.hits.len(), answer.method()), (5, SearchMethod::Hnsw));

    // Equal is what was asked for, whether it was all told or not; who does not ask takes what there is.
    let options = Some(pb::WriteOptions {
        on_conflict: pb::OnConflict::ReturnIfEqual.into(),
        ..Default::default()
    });
    request.options = options.clone();
    ok!(who.spaces().create_vector_space(request.clone()));
    request.vector_space.as_mut().unwrap().index = None;
    ok!(who.spaces().create_vector_space(request));
    let other = pb::CreateVectorSpaceRequest { options, ..wish("s", 8, by(Method::None)) };
    let status = fails!(who.spaces().create_vector_space(other), AlreadyExists, "EXISTS_DIFFERENT");
    assert_eq!(info(&status)["fields"], "index");
    world.close().await;
}

/// Lists are made around embeddings, so there must be some; and whoever wants none gets none.
#[tokio::test]
async fn a_wish_waits_for_what_it_needs() {
    let settings = [("index_upkeep_interval_ms", "3600000"), ("index_probe_interval_ms", "0")];
    let world = World::with(&settings).await;
    let who = world.anonymous();
    let owner = world.superuser().await;
    let wanting = async || -> Vec<String> {
        let rows =
            owner.query("SELECT id FROM wall.wanting_spaces(10) ORDER BY id", &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    let mut cloud = Cloud::new(21, 8);
    let create = async |id: &str, method| {
        let mut request = wish(id, 8, by(method));
        request.vector_space.as_mut().unwrap().index_mode = VectorIndexMode::Auto.into();
        ok!(who.spaces().create_vector_space(request));
    };
    create("lists", Method::Ivfflat).await;
    create("none", Method::None).await;
    // The server looks once when it starts, which may be now, and begins to build what it finds.
    create("early", Method::Hnsw).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    create("graph", Method::Hnsw).await;
    let wanting = async || -> Vec<String> {
        wanting().await.into_iter().filter(|id| id != "early").collect()
    };
    if wanting().await.is_empty() {
        // It was slower than that; now it has looked.
        create("graph2", Method::Hnsw).await;
    }
    let graph = wanting().await;
    assert_eq!(graph.len(), 1, "{graph:?}");
    fill(&who, "lists", &mut cloud, 0..999).await;
    fill(&who, "none", &mut cloud, 0..20).await;
    assert_eq!(wanting().await, graph);
    fill(&who, "lists", &mut cloud, 999..1000).await;
    assert_eq!(wanting().await, [graph, vec!["lists".to_owned()]].concat());
    drop(owner);
    world.close().await;
}

#[tokio::test]
async fn a_wish_that_cannot_be_is_refused() {
    let world = World::new().await;
    let who = world.anonymous();
    let codes = |codes: Codes| pb::VectorIndex { codes: codes.into(), ..by(Method::Hnsw) };
    for (dimensions, index) in [(2_001, codes(Codes::Float32)), (4_001, codes(Codes::Float16))] {
        fails!(
            who.spaces().create_vector_space(wish("s", dimensions, index)),
            FailedPrecondition,
            "NOT_INDEXABLE"
        );
    }
    let wrong = [
        ("m", pb::VectorIndex { m: 101, ..by(Method::Hnsw) }),
        ("lists", pb::VectorIndex { lists: 5, ..by(Method::Hnsw) }),
        ("m", pb::VectorIndex { m: 8, ..by(Method::None) }),
        ("codes", pb::VectorIndex { codes: 9, ..by(Method::Hnsw) }),
    ];
    for (field, index) in wrong {
        let status = fails!(
            who.spaces().create_vector_space(wish("s", 8, index)),
            InvalidArgument,
            "FIELD_INVALID"
        );
        assert_eq!(wrong_fields(&status), [format!("vector_space.index.{field}")]);
    }
    fails!(
        who.spaces().get_vector_space(pb::GetVectorSpaceRequest {
            vector_space_id: "s".into(),
            ..Default::default()
        }),
        NotFound,
        "NOT_FOUND"
    );
    world.close().await;
}
