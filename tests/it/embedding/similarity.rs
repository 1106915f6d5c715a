//! Similarity with answers that are known beforehand: F570, F571, N17.

use super::*;

/// A unit vector that has this cosine with the first axis; the rest of it points along another axis, one for each.
fn at_cosine(cosine: f64, axis: usize, dimensions: usize) -> Vec<f32> {
    let mut values = vec![0.0; dimensions];
    values[0] = cosine as f32;
    values[axis] = (1.0 - cosine * cosine).sqrt() as f32;
    values
}

/// Even vectors of numbers from 0 to 1 are all about 0.75 alike, so a bar of 0.8 tells little of them (N17). These have
/// cosines that are known, on both sides of the bar.
#[tokio::test]
async fn the_most_similar_come_first_and_similarity_is_one_less_cosine_distance() {
    let world = World::new().await;
    let who = world.anonymous();
    for dimensions in [384, 1024, 1536] {
        let id = format!("d{dimensions}");
        space(&who, &id, dimensions, DistanceMetric::Cosine).await;
        let dimensions = dimensions as usize;
        let cosines = [-1.0, 0.0, 0.5, 0.75, 0.79, 0.81, 0.9, 0.99, 1.0];
        // Not in the order in which they are to be found, and of different lengths, which do not count.
        let embeddings = cosines.iter().enumerate().map(|(n, cosine)| {
            let values = at_cosine(*cosine, n + 1, dimensions);
            let values: Vec<f32> = values.iter().map(|value| value * (n + 1) as f32).collect();
            embedding(&format!("c{n}"), &values)
        });
        ok!(who.vectors().batch_upsert_embeddings(batch(&id, embeddings)));
        let search = async |min_score: Option<f64>| {
            let query = pb::VectorQuery {
                vector_space_id: id.clone(),
                target: floats(&at_cosine(1.0, 1, dimensions))
                    .map(pb::vector_query::Target::Vector),
                top_k: 20,
                min_score,
                ..Default::default()
            };
            let request = pb::SearchVectorsRequest { query: Some(query), ..Default::default() };
            ok!(who.vectors().search_vectors(request)).hits
        };
        let all = search(None).await;
        assert_eq!(all.len(), cosines.len());
        for (hit, cosine) in all.iter().zip(cosines.iter().rev()) {
            assert!((hit.score - cosine).abs() < 1e-6, "{} is not {cosine}", hit.score);
            assert!((hit.score - (1.0 - hit.distance)).abs() < 1e-12, "{hit:?}");
        }
        let alike = search(Some(0.8)).await;
        let ids: Vec<_> =
            alike.iter().map(|hit| hit.embedding.as_ref().unwrap().id.as_str()).collect();
        assert_eq!(ids, ["c8", "c7", "c6", "c5"]);
    }
    world.close().await;
}
