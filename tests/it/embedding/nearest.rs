//! The search for the nearest: F66 and F68 to F71.

use super::*;
use std::collections::HashMap;

#[tokio::test]
async fn bad_queries_are_refused_by_field() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.vectors();
    space(&who, "s", 2, DistanceMetric::Cosine).await;
    let good = || near("s", &[1.0, 0.0], 10);
    let wrong = [
        ("query.top_k", pb::VectorQuery { top_k: -1, ..good() }),
        ("query.top_k", pb::VectorQuery { top_k: 100_000, ..good() }),
        ("query.min_score", pb::VectorQuery { min_score: Some(f64::NAN), ..good() }),
        ("query.max_distance", pb::VectorQuery { max_distance: Some(f64::INFINITY), ..good() }),
        ("query", pb::VectorQuery { target: None, ..good() }),
        ("query.vector_space_id", pb::VectorQuery { vector_space_id: "!".into(), ..good() }),
    ];
    for (field, query) in wrong {
        let status = fails!(client.search_vectors(search(query)), InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), [field]);
    }
    let unknown = pb::VectorQuery { r#where: expression("colour = \"red\""), ..good() };
    let status = fails!(client.search_vectors(search(unknown)), InvalidArgument, "FILTER_INVALID");
    assert_eq!(wrong_fields(&status), ["query.where.expression"]);
    let none = pb::SearchVectorsRequest::default();
    let status = fails!(client.search_vectors(none), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["query"]);
    let like = pb::vector_query::Target::LikeEmbeddingId("e".into());
    let like = pb::VectorQuery { target: Some(like), ..good() };
    fails!(client.search_vectors(search(like)), NotFound, "NOT_FOUND");
    let several = |queries| pb::BatchSearchVectorsRequest { queries, ..Default::default() };
    for queries in [vec![], vec![good(); 101], vec![pb::VectorQuery { top_k: 501, ..good() }; 2]] {
        let status =
            fails!(client.batch_search_vectors(several(queries)), InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), ["queries"]);
    }
    let second = pb::VectorQuery { top_k: -1, ..good() };
    let status = fails!(
        client.batch_search_vectors(several(vec![good(), second])),
        InvalidArgument,
        "FIELD_INVALID"
    );
    assert_eq!(wrong_fields(&status), ["queries[1].top_k"]);
    let masked = pb::SearchVectorsRequest { read_mask: mask(&["nothing"]), ..search(good()) };
    fails!(client.search_vectors(masked), InvalidArgument, "UNKNOWN_FIELD");
    assert!(found(&who, good()).await.is_empty());
    world.close().await;
}

#[tokio::test]
async fn the_nearest_are_found_as_each_metric_says() {
    let world = World::new().await;
    let who = world.anonymous();
    let points: [(&str, [f32; 2]); 4] =
        [("a", [1.0, 0.0]), ("b", [3.0, 4.0]), ("c", [-1.0, 0.5]), ("d", [0.5, 0.0])];
    let expected: [(DistanceMetric, [&str; 4], f64, f64); 4] = [
        (DistanceMetric::Cosine, ["a", "d", "b", "c"], 0.0, 1.0),
        (DistanceMetric::L2, ["a", "d", "c", "b"], 0.0, 1.0),
        (DistanceMetric::Dot, ["b", "a", "d", "c"], -3.0, 3.0),
        (DistanceMetric::L1, ["a", "d", "c", "b"], 0.0, 1.0),
    ];
    for (metric, order, distance, score) in expected {
        for storage in [VectorStorage::Float32, VectorStorage::Float16] {
            let id = format!("{metric:?}-{storage:?}");
            space_of(&who, &id, 2, metric, storage).await;
            let all = points.map(|(id, values)| embedding(id, &values));
            ok!(who.vectors().batch_upsert_embeddings(batch(&id, all)));
            let hits = found(&who, near(&id, &[1.0, 0.0], 0)).await;
            assert_eq!(ids(&hits), order, "{id}");
            assert_eq!((hits[0].distance, hits[0].score), (distance, score), "{id}");
            // Cut off by either limit, which include themselves.
            let third = &hits[2];
            let close =
                pb::VectorQuery { min_score: Some(third.score), ..near(&id, &[1.0, 0.0], 0) };
            assert_eq!(ids(&found(&who, close).await), order[..3], "{id}");
            let close =
                pb::VectorQuery { max_distance: Some(third.distance), ..near(&id, &[1.0, 0.0], 0) };
            assert_eq!(ids(&found(&who, close).await), order[..3], "{id}");
            assert_eq!(found(&who, near(&id, &[1.0, 0.0], 2)).await.len(), 2);
        }
    }
    world.close().await;
}

/// F66 and F68 to F71; S0's own search.
#[tokio::test]
async fn a_search_takes_filters_and_shows_what_is_asked() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.vectors();
    space(&who, "precedents", 2, DistanceMetric::Cosine).await;
    for (n, tags) in [&["critical"][..], &[], &["critical", "late"]].into_iter().enumerate() {
        let made = pb::Embedding {
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            metadata: Some(object(&[("case", &n.to_string())])),
            decision_id: format!("dec-{n}"),
            ..embedding(&format!("prec-{n}"), &[1.0, n as f32])
        };
        ok!(client.upsert_embedding(upsert("precedents", made)));
    }
    let with = |text: &str| pb::VectorQuery {
        r#where: expression(text),
        ..near("precedents", &[1.0, 0.0], 10)
    };
    assert_eq!(ids(&found(&who, with("")).await), ["prec-0", "prec-1", "prec-2"]);
    assert_eq!(ids(&found(&who, with("tags:\"critical\"")).await), ["prec-0", "prec-2"]);
    assert_eq!(ids(&found(&who, with("metadata.case = \"1\"")).await), ["prec-1"]);
    assert_eq!(
        ids(&found(&who, with("id = \"prec-2\" OR decision_id = \"dec-1\"")).await),
        ["prec-1", "prec-2"]
    );
    let like = |id: &str| pb::VectorQuery {
        target: Some(pb::vector_query::Target::LikeEmbeddingId(id.into())),
        ..with("")
    };
    assert_eq!(ids(&found(&who, like("prec-2")).await), ["prec-1", "prec-0"]);

    let hits = found(&who, with("tags:\"late\"")).await;
    let (shown, listed) = (hits[0].embedding.clone().unwrap(), get("precedents", "prec-2"));
    assert_eq!(Some(shown), ok!(client.get_embedding(listed)).embedding);
    let masked = pb::SearchVectorsRequest { read_mask: mask(&["vector"]), ..search(with("")) };
    let hits = ok!(client.search_vectors(masked)).hits;
    let expected =
        pb::Embedding { id: "prec-0".into(), vector: bytes(&[1.0, 0.0]), ..Default::default() };
    assert_eq!(hits[0].embedding, Some(expected));
    // By an alias, too, and several at once.
    ok!(who.spaces().set_vector_space_alias(pb::SetVectorSpaceAliasRequest {
        alias: "live".into(),
        vector_space_id: "precedents".into(),
        options: None,
    }));
    let queries = vec![
        pb::VectorQuery { vector_space_id: "live".into(), ..with("") },
        with("tags:\"late\""),
        like("prec-0"),
    ];
    let request = pb::BatchSearchVectorsRequest { queries, ..Default::default() };
    let answer = ok!(client.batch_search_vectors(request));
    let all: Vec<_> = answer.results.iter().map(|result| ids(&result.hits)).collect();
    assert_eq!(all, [vec!["prec-0", "prec-1", "prec-2"], vec!["prec-2"], vec!["prec-1", "prec-2"]]);
    world.close().await;
}

#[tokio::test]
async fn the_past_is_searched_as_it_stood() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.vectors();
    space(&who, "s", 2, DistanceMetric::L2).await;
    let points = [("a", [0.0, 0.0]), ("b", [1.0, 0.0]), ("c", [2.0, 0.0])];
    let all = points.map(|(id, values)| embedding(id, &values));
    let then = ok!(client.batch_upsert_embeddings(batch("s", all))).receipt.unwrap();
    let then = then.revision.unwrap();
    // Changed, deleted, new, and deleted and made again.
    ok!(client.upsert_embedding(upsert("s", embedding("a", &[9.0, 0.0]))));
    ok!(client.delete_embedding(delete("s", "b")));
    ok!(client.upsert_embedding(upsert("s", embedding("d", &[0.5, 0.0]))));
    ok!(client.delete_embedding(delete("s", "c")));
    ok!(client.upsert_embedding(upsert("s", embedding("c", &[0.1, 0.0]))));
    assert_eq!(ids(&found(&who, near("s", &[0.0, 0.0], 10)).await), ["c", "d", "a"]);
    let past = pb::SearchVectorsRequest {
        consistency: at(&then),
        read_mask: mask(&["vector"]),
        ..search(near("s", &[0.0, 0.0], 10))
    };
    let hits = ok!(client.search_vectors(past)).hits;
    assert_eq!(ids(&hits), ["a", "b", "c"]);
    let vectors = hits.iter().map(|hit| hit.embedding.as_ref().unwrap().vector.clone());
    assert_eq!(vectors.collect::<Vec<_>>(), points.map(|(_, values)| bytes(&values)));

    let mut listed = async |consistency| {
        let request = pb::ListEmbeddingsRequest {
            page: Some(pb::PageRequest { order_by: "id".into(), ..Default::default() }),
            vector_space_id: "s".into(),
            consistency,
            ..Default::default()
        };
        let listed = ok!(client.list_embeddings(request)).embeddings;
        listed.into_iter().map(|embedding| embedding.id).collect::<String>()
    };
    assert_eq!(listed(None).await, "acd");
    assert_eq!(listed(at(&then)).await, "abc");
    world.close().await;
}

/// 3,000 searches with filters over vectors with many ties, against a naive reading.
#[tokio::test]
async fn searches_are_what_a_naive_reading_says() {
    use rand::RngExt as _;
    let mut dice = crate::vectors::dice();
    let world = World::new().await;
    let who = world.anonymous();
    let metrics =
        [DistanceMetric::Cosine, DistanceMetric::L2, DistanceMetric::Dot, DistanceMetric::L1];
    for (round, metric) in metrics.into_iter().enumerate() {
        let id = format!("s{round}");
        let dimensions = [2, 3, 5, 8][round];
        space(&who, &id, dimensions, metric).await;
        // Small whole numbers, so that both sides reckon exactly, and many distances are the same.
        let draw = |dice: &mut rand::rngs::StdRng| -> Vec<f32> {
            loop {
                let values: Vec<f32> =
                    (0..dimensions).map(|_| f32::from(dice.random_range(-3_i8..=3))).collect();
                if values.iter().any(|value| *value != 0.0) {
                    return values;
                }
            }
        };
        let rows: Vec<(String, Vec<f32>, usize)> =
            (0..120).map(|n| (format!("e{n:03}"), draw(&mut dice), n % 7)).collect();
        let all = rows.iter().map(|(id, values, group)| pb::Embedding {
            tags: vec![format!("g{group}")],
            ..embedding(id, values)
        });
        ok!(who.vectors().batch_upsert_embeddings(batch(&id, all)));
        for _ in 0..30 {
            let mut asked = Vec::new();
            for _ in 0..25 {
                let (top_k, group) = (dice.random_range(1..=40), dice.random_range(0..10_usize));
                asked.push((draw(&mut dice), top_k, group));
            }
            let queries = asked.iter().map(|(target, top_k, group)| pb::VectorQuery {
                r#where: expression(&if *group > 6 {
                    String::new()
                } else {
                    format!("tags:\"g{group}\"")
                }),
                ..near(&id, target, *top_k)
            });
            let request =
                pb::BatchSearchVectorsRequest { queries: queries.collect(), ..Default::default() };
            let answer = ok!(who.vectors().batch_search_vectors(request));
            assert_eq!(answer.results.len(), asked.len());
            for (result, (target, top_k, group)) in answer.results.iter().zip(&asked) {
                let of_group = rows.iter().filter(|(_, _, of)| *group > 6 || of == group);
                let distances: HashMap<&str, f64> = of_group
                    .map(|(id, values, _)| (id.as_str(), distance(metric, values, target)))
                    .collect();
                let mut nearest: Vec<f64> = distances.values().copied().collect();
                nearest.sort_by(f64::total_cmp);
                nearest.truncate(*top_k as usize);
                // Both reckon in their own way, so that what is equally far may differ in the last digits.
                let close = |a: f64, b: f64| (a - b).abs() < 1e-6;
                let hits = &result.hits;
                assert_eq!(hits.len(), nearest.len(), "{metric:?}");
                for ((hit, id), nearest) in hits.iter().zip(ids(hits)).zip(nearest) {
                    assert!(
                        close(hit.distance, distances[id]),
                        "{metric:?} {id}: {}",
                        hit.distance
                    );
                    assert!(close(hit.distance, nearest), "{metric:?} {id}: {}", hit.distance);
                }
                // Of the same distance the older, which are those of smaller ids; so none comes twice.
                let places: Vec<_> = hits.iter().map(|hit| hit.distance).zip(ids(hits)).collect();
                assert!(places.is_sorted_by(|a, b| a < b), "{metric:?}: {places:?}");
            }
        }
    }
    world.close().await;
}

fn distance(metric: DistanceMetric, a: &[f32], b: &[f32]) -> f64 {
    let pairs = || a.iter().zip(b).map(|(a, b)| (f64::from(*a), f64::from(*b)));
    let dot: f64 = pairs().map(|(a, b)| a * b).sum();
    match metric {
        DistanceMetric::Cosine => {
            let norm = |of: &[f32]| of.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
            1.0 - dot / (norm(a) * norm(b)).sqrt()
        }
        DistanceMetric::L2 => pairs().map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt(),
        DistanceMetric::Dot => -dot,
        _ => pairs().map(|(a, b)| (a - b).abs()).sum(),
    }
}

/// What is asked for is weighed before it is read.
#[tokio::test]
async fn more_vectors_than_an_answer_holds_are_refused() {
    let world = World::with(&[("message_out_max_bytes", "65536")]).await;
    let who = world.anonymous();
    space(&who, "s", 16_000, DistanceMetric::L2).await;
    for id in ["a", "b"] {
        ok!(who.vectors().upsert_embedding(upsert("s", embedding(id, &[1.0; 16_000]))));
    }
    let masked = |paths: &[&str], top_k| pb::SearchVectorsRequest {
        read_mask: mask(paths),
        ..search(near("s", &[1.0; 16_000], top_k))
    };
    let status =
        fails!(who.vectors().search_vectors(masked(&["*"], 2)), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["read_mask"]);
    assert!(status.message().contains("128000 bytes"), "{status:?}");
    assert_eq!(ok!(who.vectors().search_vectors(masked(&["*"], 1))).hits.len(), 1);
    assert_eq!(ok!(who.vectors().search_vectors(masked(&[], 2))).hits.len(), 2);
    let listed = pb::ListEmbeddingsRequest {
        vector_space_id: "s".into(),
        read_mask: mask(&["vector"]),
        ..Default::default()
    };
    fails!(who.vectors().list_embeddings(listed), InvalidArgument, "FIELD_INVALID");
    world.close().await;
}

/// A server goes by what a name stood for when it last looked; whatever another one did meanwhile, the answer is that of
/// now.
#[tokio::test]
async fn a_name_is_searched_for_what_it_stands_for_now() {
    let world = World::new().await;
    let url = crate::world::url_of(&crate::world::config_of(&world.database).await);
    let mut second = World::on(&world.database, &url, &[]).await;
    let (who, other) = (world.anonymous(), second.anonymous());
    for (id, dimensions) in [("two", 2), ("three", 3), ("both", 2)] {
        space(&who, id, dimensions, DistanceMetric::L2).await;
        let values = vec![1.0; dimensions as usize];
        ok!(who.vectors().upsert_embedding(upsert(id, embedding(&format!("of-{id}"), &values))));
    }
    let stands_for = async |id: &str| {
        let request = pb::SetVectorSpaceAliasRequest {
            alias: "live".into(),
            vector_space_id: id.into(),
            options: None,
        };
        ok!(other.spaces().set_vector_space_alias(request));
    };
    for (id, dimensions) in [("two", 2), ("three", 3), ("two", 2), ("both", 2), ("two", 2)] {
        stands_for(id).await;
        // The first search may go by what the name stood for before, the second by what the first one found.
        for _ in 0..2 {
            let hits = found(&who, near("live", &vec![1.0; dimensions], 10)).await;
            assert_eq!(ids(&hits), [format!("of-{id}")]);
        }
    }
    let wrong = search(near("live", &[1.0, 0.0, 0.0], 10));
    fails!(who.vectors().search_vectors(wrong), InvalidArgument, "DIMENSION_MISMATCH");
    let remove =
        || pb::DeleteVectorSpaceRequest { vector_space_id: "two".into(), ..Default::default() };
    found(&who, near("two", &[0.0, 0.0], 10)).await;
    ok!(other.spaces().delete_vector_space(remove()));
    for name in ["two", "live"] {
        let gone = search(near(name, &[0.0, 0.0], 10));
        fails!(who.vectors().search_vectors(gone), NotFound, "NOT_FOUND");
    }
    // Another space of the same id is not the one that it was.
    space(&other, "two", 2, DistanceMetric::L2).await;
    assert!(found(&who, near("two", &[0.0, 0.0], 10)).await.is_empty());
    assert!(found(&who, near("two", &[0.0, 0.0], 10)).await.is_empty());
    second.stop().await;
    world.close().await;
}
