//! A server that does not know yet that an index was replaced.

use super::*;
use crate::process::Served;

/// Looks at indexes once, when it starts.
const QUIET: [(&str, &str); 2] =
    [("index_upkeep_interval_ms", "3600000"), ("index_probe_interval_ms", "0")];

fn measure(top_k: i32) -> pb::MeasureRecallRequest {
    pb::MeasureRecallRequest {
        vector_space_id: "s".into(),
        sample_size: 30,
        top_k,
        ..Default::default()
    }
}

/// Waits until a server searches by an index.
async fn by_index(who: &As) {
    while search(who, near("s", &[0.5; 8], 3)).await.method() != SearchMethod::Hnsw {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Its recall is that of the new index, or without an index that of looking at everything.
#[tokio::test]
async fn recall_is_measured_while_an_index_is_replaced() {
    let world = World::with(&BRISK).await;
    let who = world.anonymous();
    let mut cloud = Cloud::new(18, 8);
    space(&who, "s", 8, DistanceMetric::L2, VectorStorage::Float32).await;
    fill(&who, "s", &mut cloud, 0..400).await;
    built(&who, build("s", Method::Hnsw, Codes::Float32)).await;
    let url = url_of(&config_of(&world.database).await);
    let mut quiet = World::on(&world.database, &url, &QUIET).await;
    let late = quiet.anonymous();
    by_index(&late).await;
    built(&who, build("s", Method::Ivfflat, Codes::Float32)).await;
    let measured = ok!(late.spaces().measure_recall(measure(5)));
    assert_eq!(measured.method(), SearchMethod::Ivfflat);
    assert!(measured.recall > 0.95 && measured.sample_size > 0, "{measured:?}");
    let dropped = pb::DropVectorIndexRequest { vector_space_id: "s".into(), options: None };
    over(&who, &ok!(who.spaces().drop_vector_index(dropped)).operation.unwrap().id).await;
    let measured = ok!(late.spaces().measure_recall(measure(5)));
    assert_eq!((measured.method(), measured.recall), (SearchMethod::Exact, 1.0));

    // Again and again, while indexes come and go.
    let reader = world.anonymous();
    let measuring = tokio::spawn(async move {
        for n in 0..40 {
            let measured = ok!(reader.spaces().measure_recall(measure(1 + n % 7)));
            assert!(measured.recall > 0.9 && measured.sample_size > 0, "{measured:?}");
        }
    });
    let mut n = 0;
    while !measuring.is_finished() {
        built(&who, build("s", Method::Hnsw, [Codes::Float16, Codes::Float32][n % 2])).await;
        n += 1;
    }
    measuring.await.unwrap();
    quiet.stop().await;
    world.close().await;
}

/// That is nothing to warn of; a schema that does not fit is.
#[tokio::test]
async fn a_replaced_index_is_no_schema_that_does_not_fit() {
    let world = World::with(&BRISK).await;
    let who = world.anonymous();
    let mut cloud = Cloud::new(19, 8);
    space(&who, "s", 8, DistanceMetric::L2, VectorStorage::Float32).await;
    fill(&who, "s", &mut cloud, 0..200).await;
    built(&who, build("s", Method::Hnsw, Codes::Float32)).await;
    let url = url_of(&config_of(&world.database).await);
    let mut served = Served::start(&[
        "--database-url",
        &url,
        "--listen",
        "127.0.0.1:0",
        "--metrics-listen",
        "",
        "--auth",
        "none",
        "--index-upkeep-interval-ms",
        "3600000",
        "--index-probe-interval-ms",
        "0",
    ]);
    let late = As::over(served.connect().await);
    by_index(&late).await;
    built(&who, build("s", Method::Hnsw, Codes::Float16)).await;
    assert_eq!(search(&late, near("s", &[0.5; 8], 3)).await.hits.len(), 3);
    let warned = |log: &str| log.contains("does not fit");
    assert!(!warned(&served.log()), "{}", served.log());

    let owner = world.superuser().await;
    owner.batch_execute("ALTER VIEW wall.embedding_delta RENAME TO elsewhere").await.unwrap();
    for _ in 0..2 {
        let request =
            pb::SearchVectorsRequest { query: Some(near("s", &[0.5; 8], 3)), ..Default::default() };
        let _ = late.vectors().search_vectors(request).await;
    }
    owner.batch_execute("ALTER VIEW wall.elsewhere RENAME TO embedding_delta").await.unwrap();
    for _ in 0..100 {
        if warned(&served.log()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(warned(&served.log()), "{}", served.log());
    drop((owner, served));
    world.close().await;
}
