//! Indexes while the world moves: rebuilding under load, cancelling, damage, advice, purging.

use super::*;
use casebook::pb::VectorIndexMode;
use casebook::pb::get_vector_space_stats_response::index_state::State;
use tokio_postgres::error::SqlState;

/// Writes and searches go on while an index is built anew, and each write is found at once (F540). A second operation is
/// refused meanwhile; two servers take turns.
#[tokio::test]
async fn an_index_is_built_anew_under_load() {
    let world = World::with(&BRISK).await;
    let url = url_of(&config_of(&world.database).await);
    let other = World::on(&world.database, &url, &BRISK).await;
    let who = world.anonymous();
    let mut cloud = Cloud::new(3, 128);
    space(&who, "s", 128, DistanceMetric::Cosine, VectorStorage::Float32).await;
    fill(&who, "s", &mut cloud, 0..1200).await;
    built(&who, build("s", Method::Hnsw, Codes::Binary)).await;

    let begun = ok!(who.spaces().build_vector_index(build("s", Method::Hnsw, Codes::Float32)));
    let begun = begun.operation.unwrap();
    let status = fails!(
        other.anonymous().spaces().build_vector_index(build("s", Method::Hnsw, Codes::Float16)),
        FailedPrecondition,
        "OPERATION_ACTIVE"
    );
    assert_eq!(info(&status)["operation_id"], begun.id);
    let writers = [who.clone(), other.anonymous()].map(|who| {
        let reader = world.anonymous();
        tokio::spawn(async move {
            let mut methods = HashSet::new();
            for n in 0..150 {
                let point = Cloud::new(rand::random(), 128).point();
                let id = format!("w{n}-{}", rand::random::<u32>());
                ok!(who.vectors().upsert_embedding(pb::UpsertEmbeddingRequest {
                    vector_space_id: "s".into(),
                    embedding: Some(embedding(&id, &point)),
                    options: None,
                }));
                let answer = search(&reader, near("s", &point, 1)).await;
                methods.insert(answer.method());
                assert_eq!(ids(&answer), [id]);
            }
            methods
        })
    });
    for writer in writers {
        assert!(writer.await.unwrap().contains(&SearchMethod::Hnsw));
    }
    assert_eq!(over(&who, &begun.id).await.state(), OperationState::Done);
    for n in 0..3 {
        built(&who, build("s", Method::Hnsw, [Codes::Binary, Codes::Float16, Codes::Float32][n]))
            .await;
        let answer = search(&other.anonymous(), near("s", &cloud.point(), 10)).await;
        assert_eq!(answer.hits.len(), 10);
    }
    sealed(&who, "s").await;
    let stats = stats(&who, "s").await;
    assert_eq!((stats.embedding_count, stats.indexes.len()), (1500, 1));
    let superuser = world.superuser().await;
    let tables =
        "SELECT count(*) FROM pg_class WHERE relname ~ '^sealed_[0-9]+$' AND relkind IN ('r', 'v')";
    let left: i64 = superuser.query_one(tables, &[]).await.unwrap().get(0);
    assert_eq!(left, 2, "what was replaced is gone");
    let codes = format!(
        "SELECT count(*) FROM casebook.{}",
        superuser
            .query_one("SELECT 'sealed_' || number FROM casebook.vector_index", &[])
            .await
            .unwrap()
            .get::<_, String>(0)
    );
    assert_eq!(superuser.query_one(&codes, &[]).await.unwrap().get::<_, i64>(0), 1500);
    drop(superuser);
    let mut other = other;
    other.stop().await;
    world.close().await;
}

#[tokio::test]
async fn an_operation_is_cancelled_and_leaves_nothing() {
    let world = World::with(&BRISK).await;
    let who = world.anonymous();
    let mut cloud = Cloud::new(4, 256);
    space(&who, "s", 256, DistanceMetric::L2, VectorStorage::Float32).await;
    fill(&who, "s", &mut cloud, 0..4000).await;
    let slow = pb::BuildVectorIndexRequest {
        index: Some(pb::VectorIndex {
            m: 100,
            ef_construction: 1000,
            codes: Codes::Float32.into(),
            ..Default::default()
        }),
        ..build("s", Method::Hnsw, Codes::Float32)
    };
    let begun = ok!(who.spaces().build_vector_index(slow)).operation.unwrap();
    let watched = pb::GetOperationRequest { operation_id: begun.id.clone(), ..Default::default() };
    loop {
        let now = ok!(who.operations().get_operation(watched.clone())).operation.unwrap();
        assert!(now.state < i32::from(OperationState::Done), "{now:?}");
        if now.phase == "building" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let cancel = pb::CancelOperationRequest { operation_id: begun.id.clone(), options: None };
    let cancelled = ok!(who.operations().cancel_operation(cancel.clone())).operation.unwrap();
    assert_eq!(cancelled.state(), OperationState::Cancelled);
    // Once more changes nothing.
    assert_eq!(ok!(who.operations().cancel_operation(cancel)).operation, Some(cancelled));
    for _ in 0..200 {
        if stats(&who, "s").await.indexes.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(stats(&who, "s").await.indexes.is_empty());
    assert_eq!(search(&who, near("s", &cloud.point(), 5)).await.method(), SearchMethod::Exact);
    let get = pb::GetVectorSpaceRequest { vector_space_id: "s".into(), ..Default::default() };
    let method =
        ok!(who.spaces().get_vector_space(get)).vector_space.unwrap().index.unwrap().method();
    assert_eq!(method, Method::None);
    // The next one is not in its way.
    built(&who, build("s", Method::Hnsw, Codes::Binary)).await;
    world.close().await;
}

/// A damaged index is noticed, not searched, and built anew (design 6).
#[tokio::test]
async fn a_damaged_index_is_noticed_and_built_anew() {
    let settings = [("index_upkeep_interval_ms", "30"), ("index_probe_interval_ms", "200")];
    let world = World::with(&settings).await;
    let who = world.anonymous();
    let mut cloud = Cloud::new(5, 32);
    space(&who, "s", 32, DistanceMetric::Cosine, VectorStorage::Float32).await;
    fill(&who, "s", &mut cloud, 0..800).await;
    built(&who, build("s", Method::Hnsw, Codes::Float32)).await;
    let superuser = world.superuser().await;
    let number = async || -> i64 {
        superuser
            .query_one("SELECT number FROM casebook.vector_index WHERE state = 3", &[])
            .await
            .map_or(0, |row| row.get(0))
    };
    let probed = async || {
        for _ in 0..200 {
            if stats(&who, "s").await.indexes.iter().any(|index| index.probe_recall.is_some()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("nobody looks at the index");
    };
    probed().await;
    assert!(stats(&who, "s").await.indexes[0].probe_recall.unwrap() > 0.9);
    // First the index goes, then the codes in it lie.
    for damage in
        ["DROP INDEX casebook.sealed_{}_code", "UPDATE casebook.sealed_{} SET code = -1 * code"]
    {
        probed().await;
        let before = number().await;
        let negated = damage.replace(
            "-1 * code",
            "(SELECT array_agg(-x) FROM unnest(code::real[]) AS x)::public.vector(32)",
        );
        superuser.batch_execute(&negated.replace("{}", &before.to_string())).await.unwrap();
        let mut answered = HashSet::new();
        for _ in 0..600 {
            let answer = search(&who, near("s", &cloud.point(), 5)).await;
            answered.insert(answer.method());
            assert_eq!(answer.hits.len(), 5);
            let now = number().await;
            if now != 0 && now != before {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_ne!(number().await, before, "{damage}");
        let queries: Vec<_> = (0..20).map(|_| near("s", &cloud.point(), 10)).collect();
        // The operation says that it is done a moment after the index is there.
        let listed = pb::ListOperationsRequest::default();
        let newest = ok!(who.operations().list_operations(listed)).operations.swap_remove(0);
        over(&who, &newest.id).await;
        assert!(recall(&who, queries, SearchMethod::Hnsw).await > 0.98);
    }
    let log = entries(&who, 50).await;
    assert!(log.iter().any(|entry| entry.principal == "server" && entry.method.contains("upkeep")));
    drop(superuser);
    world.close().await;
}

#[tokio::test]
async fn the_advisor_says_what_to_build_and_does_it_where_it_may() {
    let world = World::with(&BRISK).await;
    let who = world.anonymous();
    let mut cloud = Cloud::new(6, 8);
    space(&who, "s", 8, DistanceMetric::L2, VectorStorage::Float32).await;
    fill(&who, "s", &mut cloud, 0..100).await;
    let few = stats(&who, "s").await;
    assert_eq!((few.embedding_count, few.advice.len(), few.advised_index), (100, 0, None));
    assert_eq!(
        (few.backend.as_str(), few.dimensions, few.metric()),
        ("pgvector", 8, DistanceMetric::L2)
    );
    built(&who, build("s", Method::Ivfflat, Codes::Float32)).await;
    let small = stats(&who, "s").await;
    assert!(small.advice[0].contains("could be dropped"), "{:?}", small.advice);
    let index = &small.indexes[0];
    assert_eq!((index.state(), index.index.as_ref().unwrap().lists), (State::Ready, 10));
    assert!(index.size_bytes > 0 && index.codes_size_bytes > 0 && index.ready_time.is_some());
    let measured = pb::MeasureRecallRequest {
        vector_space_id: "s".into(),
        sample_size: 20,
        ..Default::default()
    };
    let measured = ok!(who.spaces().measure_recall(measured));
    assert_eq!(measured.method(), SearchMethod::Ivfflat);
    assert!(measured.recall > 0.9 && measured.sample_size > 0, "{measured:?}");
    assert!(measured.exact_p50_ms > 0.0 && measured.indexed_p99_ms >= measured.indexed_p50_ms);
    let dropped = pb::DropVectorIndexRequest { vector_space_id: "s".into(), options: None };
    let dropped = ok!(who.spaces().drop_vector_index(dropped)).operation.unwrap();
    over(&who, &dropped.id).await;

    // As many as make an index worth it; the rows are copies, because 20,000 calls would take long.
    let superuser = world.superuser().await;
    superuser
        .batch_execute(
            "SET session_replication_role = replica;
            INSERT INTO casebook.embedding SELECT (jsonb_populate_record(e, jsonb_build_object('uid', gen_random_uuid(),
              'id', e.space_uid || '/c' || n, 'embedding_id', 'c' || n || '-' || e.embedding_id))).*
            FROM casebook.embedding AS e, generate_series(1, 200) AS n WHERE e.embedding_id = 'e0001';
            INSERT INTO casebook.embedding SELECT (jsonb_populate_record(e, jsonb_build_object('uid', gen_random_uuid(),
              'id', e.id || '/' || n, 'embedding_id', e.embedding_id || '/' || n))).*
            FROM casebook.embedding AS e, generate_series(1, 100) AS n;
            INSERT INTO casebook.embedding_vector SELECT e.tenant_id, e.uid, e.vector_digest, x.vector
            FROM casebook.embedding AS e JOIN (SELECT DISTINCT ON (digest) * FROM casebook.embedding_vector) AS x
              ON x.digest = e.vector_digest ON CONFLICT DO NOTHING",
        )
        .await
        .unwrap();
    let many = stats(&who, "s").await;
    assert!(many.embedding_count >= 20_000, "{}", many.embedding_count);
    assert!(
        many.advice[0].contains("Build an index") && many.advice[0].contains("FLOAT16"),
        "{:?}",
        many.advice
    );
    assert_eq!(many.advised_index.unwrap().codes(), Codes::Float16);
    // Whoever has asked for no index gets none by itself; so another space with as many.
    superuser
        .batch_execute(
            "UPDATE casebook.vector_space SET index_method = NULL, index_codes = NULL, index_lists = NULL",
        )
        .await
        .unwrap();
    let auto = pb::UpdateVectorSpaceRequest {
        vector_space: Some(pb::VectorSpace {
            id: "s".into(),
            index_mode: VectorIndexMode::Auto.into(),
            ..Default::default()
        }),
        update_mask: mask(&["index_mode"]),
        options: None,
    };
    ok!(who.spaces().update_vector_space(auto));
    for _ in 0..600 {
        if stats(&who, "s").await.indexes.iter().any(|index| index.state() == State::Ready) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let ready = stats(&who, "s").await;
    assert_eq!(ready.indexes[0].state(), State::Ready);
    assert!(ready.advised_index.is_none());
    drop(superuser);
    world.close().await;
}

/// What an index holds goes with its embedding, its space and its tenant's wall.
#[tokio::test]
async fn an_index_holds_nothing_of_others_and_nothing_purged() {
    let world = World::with(&BRISK).await;
    world.tenant("other").await;
    let (who, other) = (world.anonymous(), world.as_tenant("other"));
    let mut cloud = Cloud::new(8, 16);
    for who in [&who, &other] {
        space(who, "s", 16, DistanceMetric::L2, VectorStorage::Float32).await;
        fill(who, "s", &mut cloud, 0..60).await;
        built(who, build("s", Method::Hnsw, Codes::Binary)).await;
    }
    let superuser = world.superuser().await;
    let codes = async |tenant: &str, as_app: bool| -> Vec<i64> {
        let numbers = superuser
            .query("SELECT number FROM casebook.vector_index ORDER BY number", &[])
            .await
            .unwrap();
        let mut counts = Vec::new();
        for number in numbers {
            let number: i64 = number.get(0);
            let (role, schema) =
                if as_app { ("casebook_app", "wall") } else { ("none", "casebook") };
            let setup = format!("SET ROLE {role}; SET casebook.tenant = '{tenant}'");
            superuser.batch_execute(&setup).await.unwrap();
            let count = format!("SELECT count(*) FROM {schema}.sealed_{number}");
            match superuser.query_one(&count, &[]).await {
                Ok(row) => counts.push(row.get(0)),
                // It was removed meanwhile.
                Err(error) => assert_eq!(error.code(), Some(&SqlState::UNDEFINED_TABLE)),
            }
            superuser.batch_execute("SET ROLE none").await.unwrap();
        }
        counts
    };
    assert_eq!(codes("default", true).await, [60, 0]);
    assert_eq!(codes("other", true).await, [0, 60]);
    assert_eq!(codes("", true).await, [0, 0]);
    superuser.batch_execute("SET ROLE casebook_app").await.unwrap();
    for denied in
        ["INSERT INTO wall.sealed_1 SELECT * FROM wall.sealed_1", "SELECT FROM casebook.sealed_1"]
    {
        assert!(superuser.batch_execute(denied).await.is_err(), "{denied}");
    }
    superuser.batch_execute("SET ROLE none").await.unwrap();

    ok!(who.vectors().batch_delete_embeddings(pb::BatchDeleteEmbeddingsRequest {
        vector_space_id: "s".into(),
        embedding_ids: (0..20).map(|n| format!("e{n:04}")).collect(),
        ..Default::default()
    }));
    assert_eq!(codes("default", true).await, [60, 0], "a deletion does not touch the index");
    let purge = pb::PurgeResourcesRequest {
        kind: pb::ResourceKind::Embedding.into(),
        max_resources: 1000,
        ..Default::default()
    };
    let purged = ok!(who.retention().purge_resources(purge));
    assert_eq!(purged.purged_count, 20, "{purged:?}");
    assert_eq!(codes("default", true).await, [40, 0]);
    // A space that is deleted loses its index, and has it again when it is back.
    ok!(who.spaces().delete_vector_space(pb::DeleteVectorSpaceRequest {
        vector_space_id: "s".into(),
        ..Default::default()
    }));
    for _ in 0..200 {
        if codes("other", false).await == [60] {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(codes("other", false).await, [60]);
    ok!(who.spaces().undelete_vector_space(pb::UndeleteVectorSpaceRequest {
        vector_space_id: "s".into(),
        options: None,
    }));
    // The server knows of it a moment after it is there.
    for _ in 0..600 {
        if search(&who, near("s", &cloud.point(), 5)).await.method() == SearchMethod::Hnsw {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(search(&who, near("s", &cloud.point(), 5)).await.method(), SearchMethod::Hnsw);
    drop(superuser);
    world.close().await;
}

/// A number that FLOAT16 has not is still found, because its vector stays outside of the index.
#[tokio::test]
async fn what_has_no_code_is_found_all_the_same() {
    let world = World::with(&BRISK).await;
    let who = world.anonymous();
    let mut cloud = Cloud::new(9, 16);
    space(&who, "s", 16, DistanceMetric::L2, VectorStorage::Float32).await;
    fill(&who, "s", &mut cloud, 0..100).await;
    let far = |axis: usize, n: f32| -> Vec<f32> {
        (0..16).map(|at| if at == axis { n } else { 0.0 }).collect()
    };
    let write = async |id: &str, values: &[f32]| {
        ok!(who.vectors().upsert_embedding(pb::UpsertEmbeddingRequest {
            vector_space_id: "s".into(),
            embedding: Some(embedding(id, values)),
            options: None,
        }));
    };
    write("before", &far(0, 70_000.0)).await;
    built(&who, build("s", Method::Hnsw, Codes::Float16)).await;
    write("after", &far(1, 90_000.0)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    // A query that has no code either is answered without the index.
    let (hnsw, exact) = (SearchMethod::Hnsw, SearchMethod::Exact);
    let queries = [
        ("before", 0, 60_000.0, hnsw),
        ("after", 1, 60_000.0, hnsw),
        ("after", 1, 91_000.0, exact),
    ];
    for (id, axis, at, method) in queries {
        let answer = search(&who, near("s", &far(axis, at), 1)).await;
        assert_eq!((ids(&answer), answer.method()), (vec![id.to_owned()], method));
    }
    assert_eq!(stats(&who, "s").await.indexes[0].unsealed_count, 2);
    world.close().await;
}

/// Under COSINE only the direction counts, however short a vector is.
#[tokio::test]
async fn a_short_vector_keeps_its_direction() {
    let world = World::with(&BRISK).await;
    let who = world.anonymous();
    let mut cloud = Cloud::new(10, 16);
    space(&who, "s", 16, DistanceMetric::Cosine, VectorStorage::Float32).await;
    fill(&who, "s", &mut cloud, 0..300).await;
    built(&who, build("s", Method::Hnsw, Codes::Float16)).await;
    for n in 0..20 {
        let short: Vec<f32> = cloud.point().iter().map(|x| x * 1e-9).collect();
        let id = format!("short-{n}");
        ok!(who.vectors().upsert_embedding(pb::UpsertEmbeddingRequest {
            vector_space_id: "s".into(),
            embedding: Some(embedding(&id, &short)),
            options: None,
        }));
        sealed(&who, "s").await;
        for scale in [1.0, 1e9] {
            let target: Vec<f32> = short.iter().map(|x| x * scale).collect();
            let answer = search(&who, near("s", &target, 1)).await;
            assert_eq!((ids(&answer), answer.method()), (vec![id.clone()], SearchMethod::Hnsw));
        }
    }
    world.close().await;
}

/// A vector that is listed again by a write that is still under way is not sealed by what stood before.
#[tokio::test]
async fn sealing_passes_over_what_is_being_written() {
    let settings = [("index_upkeep_interval_ms", "3600000"), ("index_probe_interval_ms", "0")];
    let world = World::with(&BRISK).await;
    let who = world.anonymous();
    let mut cloud = Cloud::new(11, 8);
    space(&who, "s", 8, DistanceMetric::L2, VectorStorage::Float32).await;
    fill(&who, "s", &mut cloud, 0..50).await;
    built(&who, build("s", Method::Hnsw, Codes::Float32)).await;
    let mut world = world;
    world.stop().await;
    // A server that seals nothing by itself.
    let url = url_of(&config_of(&world.database).await);
    let quiet = World::on(&world.database, &url, &settings).await;
    let who = quiet.anonymous();
    // It looks once when it starts, and then knows of the index and that nothing is left to seal.
    while search(&who, near("s", &[1.0; 8], 1)).await.method() != SearchMethod::Hnsw {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let write = async |values: &[f32]| {
        ok!(who.vectors().upsert_embedding(pb::UpsertEmbeddingRequest {
            vector_space_id: "s".into(),
            embedding: Some(embedding("e0000", values)),
            options: None,
        }));
    };
    let (a, b) = ([9.0; 8], [5.0; 8]);
    write(&a).await;
    write(&b).await;
    // Back to the first, by a session that has listed it and not committed yet.
    let (writer, sealer) = (quiet.superuser().await, quiet.superuser().await);
    let enter = "SET ROLE casebook_app; SET search_path = wall, pg_catalog; SET casebook.tenant = 'default'";
    for session in [&writer, &sealer] {
        session.batch_execute(enter).await.unwrap();
    }
    let list =
        casebook::store::queries().find(|query| query.name() == "embedding_vector.LIST").unwrap();
    let row = writer
        .query_one(
            "SELECT e.uid, e.space_uid, x.digest FROM embedding AS e JOIN embedding_vector AS x \
                    ON x.embedding_uid = e.uid AND x.digest <> e.vector_digest \
                    JOIN embedding_delta AS u ON u.embedding_uid = e.uid AND u.digest = x.digest \
                    WHERE e.embedding_id = 'e0000'",
            &[],
        )
        .await
        .unwrap();
    let (uid, space_uid, digest): (uuid::Uuid, uuid::Uuid, String) =
        (row.get(0), row.get(1), row.get(2));
    writer.batch_execute("BEGIN").await.unwrap();
    writer
        .execute(list.sql(), &[&vec![uid], &vec![digest.clone()], &vec![space_uid]])
        .await
        .unwrap();
    let update = "UPDATE embedding SET vector_digest = $2 WHERE uid = $1";
    writer.execute(update, &[&uid, &digest]).await.unwrap();
    let seal = "SELECT wall.seal_vectors(uid, 100) FROM vector_index";
    let moved: i64 = sealer.query_one(seal, &[]).await.unwrap().get(0);
    assert_eq!(moved, 1, "only what nobody holds");
    writer.batch_execute("COMMIT").await.unwrap();
    for _ in 0..2 {
        let answer = search(&who, near("s", &a, 1)).await;
        assert_eq!((ids(&answer), answer.hits[0].distance), (vec!["e0000".to_owned()], 0.0));
        sealer.query_one(seal, &[]).await.unwrap();
    }
    drop((writer, sealer));
    quiet.close().await;
}
