//! Searches over the codes of what a filter leaves, held against a naive reading while embeddings come, move and go.

use super::*;

const DIMENSIONS: i32 = 64;
const CROWD: std::ops::Range<usize> = 8_000..8_700;

/// The embeddings as they should be: where each is, and what filters ask of it.
#[derive(Clone)]
struct Model {
    at: Vec<f64>,
    is_fifth: bool,
    side: &'static str,
}

fn unit(values: &[f32]) -> Vec<f64> {
    let norm: f64 = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    values.iter().map(|x| f64::from(*x) / norm).collect()
}

struct Scene {
    cloud: Cloud,
    model: HashMap<String, Model>,
}

impl Scene {
    /// Writes an embedding, and notes how it is now.
    fn put(&mut self, n: usize, values: &[f32], is_fifth: bool) -> pb::Embedding {
        let id = format!("e{n:04}");
        let side = ["left", "right"][n / 5 % 2];
        self.model.insert(id.clone(), Model { at: unit(values), is_fifth, side });
        pb::Embedding {
            tags: if is_fifth { vec!["fifth".into()] } else { Vec::new() },
            metadata: Some(object(&[("side", side)])),
            ..embedding(&id, values)
        }
    }

    fn points(&mut self, numbers: std::ops::Range<usize>) -> Vec<pb::Embedding> {
        numbers
            .map(|n| {
                let point = self.cloud.point();
                self.put(n, &point, n.is_multiple_of(5))
            })
            .collect()
    }

    /// What a naive reading finds: distances and ids, nearest first.
    fn nearest(&self, target: &[f32], filter: &str) -> Vec<(f64, &str)> {
        let target = unit(target);
        let mut near: Vec<_> = self
            .model
            .iter()
            .filter(|(_, one)| one.is_fifth && (!filter.contains("side") || one.side == "left"))
            .map(|(id, one)| {
                let dot: f64 = one.at.iter().zip(&target).map(|(a, b)| a * b).sum();
                (1.0 - dot, &**id)
            })
            .collect();
        near.sort_by(|a, b| a.0.total_cmp(&b.0));
        near
    }

    /// Searches, holds each answer against the naive one, and says what part of it was found, and how often over codes.
    async fn check(&mut self, who: &As, searches: usize) -> (f64, usize) {
        let (mut there, mut found, mut by_codes) = (0, 0, 0);
        for n in 0..searches {
            let filter = ["tags:fifth", "tags:fifth AND metadata.side = \"left\""][n % 2];
            let (target, top_k) = (self.cloud.point(), self.cloud.dice.random_range(1..=15));
            let query =
                pb::VectorQuery { r#where: expression(filter), ..near("s", &target, top_k) };
            let answer = search(who, query).await;
            by_codes += usize::from(answer.method() == SearchMethod::Codes);
            let wanted = self.nearest(&target, filter);
            let far = wanted[top_k as usize - 1].0 + 1e-6;
            let by_id: HashMap<&str, f64> = wanted.iter().map(|(far, id)| (*id, *far)).collect();
            assert!(!answer.incomplete);
            assert_eq!(answer.hits.len(), top_k as usize, "{filter}");
            assert_eq!(ids(&answer).iter().collect::<HashSet<_>>().len(), answer.hits.len());
            assert!(answer.hits.is_sorted_by(|a, b| a.distance <= b.distance));
            for (id, hit) in ids(&answer).iter().zip(&answer.hits) {
                // It passes the filter, and its distance is that of the vector that it has now.
                assert!((by_id[&**id] - hit.distance).abs() < 1e-5, "{id}");
            }
            there += answer.hits.len();
            found += answer.hits.iter().filter(|hit| hit.distance <= far).count();
        }
        (found as f64 / there as f64, by_codes)
    }
}

fn fifth(target: &[f32], top_k: i32) -> pb::VectorQuery {
    pb::VectorQuery { r#where: expression("tags:fifth"), ..near("s", target, top_k) }
}

#[tokio::test]
async fn over_the_codes_of_what_a_filter_leaves_the_right_ones_are_found() {
    let mut world = World::with(&BRISK).await;
    let who = world.anonymous();
    let mut scene = Scene { cloud: Cloud::new(21, DIMENSIONS as usize), model: HashMap::new() };
    space(&who, "s", DIMENSIONS, DistanceMetric::Cosine, VectorStorage::Float32).await;
    let mut all = scene.points(0..8_000);
    // So many at one spot that their codes fill all places for candidates.
    let spot = scene.cloud.point();
    for n in CROWD {
        let by = |x: &f32| x + scene.cloud.dice.random_range(-0.02_f32..0.02);
        let beside: Vec<f32> = spot.iter().map(by).collect();
        all.push(scene.put(n, &beside, true));
    }
    embed(&who, "s", &all).await;
    built(&who, build("s", Method::Hnsw, Codes::Binary)).await;
    world.superuser().await.batch_execute("ANALYZE").await.unwrap();
    world.stop().await;
    // A server that seals nothing by itself.
    let settings = [("index_upkeep_interval_ms", "3600000"), ("index_probe_interval_ms", "0")];
    let url = url_of(&config_of(&world.database).await);
    let quiet = World::on(&world.database, &url, &settings).await;
    let who = quiet.anonymous();
    while search(&who, near("s", &[1.0; DIMENSIONS as usize], 1)).await.method()
        != SearchMethod::Hnsw
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (recall, by_codes) = scene.check(&who, 60).await;
    assert!(recall >= 0.97 && by_codes == 60, "{recall}, {by_codes} of 60");

    // Some come, some move, come to fulfil the filter or no longer do, and some go.
    let mut changed = scene.points(8_700..8_900);
    for n in 0..100 {
        let point = scene.cloud.point();
        changed.push(scene.put(n * 7, &point, n % 3 == 0));
    }
    embed(&who, "s", &changed).await;
    for n in 0..50 {
        let id = format!("e{:04}", 3_000 + n * 5);
        scene.model.remove(&id);
        let request = pb::DeleteEmbeddingRequest {
            vector_space_id: "s".into(),
            embedding_id: id,
            ..Default::default()
        };
        ok!(who.vectors().delete_embedding(request));
    }
    let (recall, by_codes) = scene.check(&who, 60).await;
    assert!(recall >= 0.97 && by_codes == 60, "{recall}, {by_codes} of 60");
    let mut moved = scene.cloud.point();
    moved.iter_mut().for_each(|x| *x = -*x);
    embed(&who, "s", &[scene.put(5, &moved, true)]).await;
    let answer = search(&who, fifth(&moved, 1)).await;
    assert_eq!((ids(&answer), answer.method()), (vec!["e0005".to_owned()], SearchMethod::Codes));

    // What a batch finds is the same; a receipt says that it was not exact; the past is searched exactly.
    let target = scene.cloud.point();
    let alone = search(&who, fifth(&target, 10)).await;
    let queries = vec![fifth(&target, 10), near("s", &target, 10), fifth(&target, 10)];
    let request = pb::BatchSearchVectorsRequest { queries, ..Default::default() };
    let results = ok!(who.vectors().batch_search_vectors(request)).results;
    let methods = [SearchMethod::Codes, SearchMethod::Hnsw, SearchMethod::Codes];
    assert_eq!(results.iter().map(|result| result.method()).collect::<Vec<_>>(), methods);
    assert_eq!((&results[0].hits, &results[2].hits), (&alone.hits, &alone.hits));
    let kept = pb::SearchVectorsRequest {
        query: Some(fifth(&target, 10)),
        keep_receipt: true,
        ..Default::default()
    };
    let kept = ok!(who.vectors().search_vectors(kept));
    let search_receipt_id = kept.search_receipt_id;
    let request = pb::GetSearchReceiptRequest {
        search_receipt_id: search_receipt_id.clone(),
        ..Default::default()
    };
    let receipt = ok!(who.search().get_search_receipt(request)).search_receipt.unwrap();
    assert!(!receipt.exact);
    let again = pb::ReplaySearchRequest { search_receipt_id, at_original_revision: true };
    let again = ok!(who.search().replay_search(again));
    let exact = search(&who, exactly(fifth(&target, 10))).await;
    let uids = exact.hits.iter().map(|hit| hit.embedding.as_ref().unwrap().meta.as_ref().unwrap());
    let uids: Vec<_> = uids.map(|meta| &*meta.uid).collect();
    assert_eq!(again.hits.iter().map(|hit| &*hit.uid).collect::<Vec<_>>(), uids);

    // Where all that was near has moved away, its former codes hide nobody.
    let gone: Vec<_> = CROWD
        .map(|n| {
            let far: Vec<f32> = scene.cloud.point().iter().map(|x| -x).collect();
            scene.put(n, &far, true)
        })
        .collect();
    embed(&who, "s", &gone).await;
    let answer = search(&who, fifth(&spot, 10)).await;
    let wanted: Vec<_> =
        scene.nearest(&spot, "")[..10].iter().map(|(_, id)| (*id).to_owned()).collect();
    assert_eq!((ids(&answer), answer.method()), (wanted, SearchMethod::Exact));

    // Where the filter turns out to leave few, all are looked at, and none is lost.
    let out: Vec<_> = (0..8_900)
        .filter(|n| scene.model.get(&format!("e{n:04}")).is_some_and(|one| one.is_fifth))
        .skip(7)
        .collect();
    let out: Vec<_> = out
        .into_iter()
        .map(|n| {
            let point = scene.cloud.point();
            scene.put(n, &point, false)
        })
        .collect();
    embed(&who, "s", &out).await;
    let answer = search(&who, fifth(&target, 10)).await;
    let wanted: Vec<_> =
        scene.nearest(&target, "").iter().map(|(_, id)| (*id).to_owned()).collect();
    assert_eq!(wanted.len(), 7);
    assert_eq!((ids(&answer), answer.method()), (wanted, SearchMethod::Exact));
    quiet.close().await;
}
