//! Operations beside each other, and what becomes of those that come to nothing.

use super::*;
use tokio_postgres::Client;

/// What holds every index that is being built, when it stands and before its transaction ends, for as long as a test
/// likes: its table is locked as it is while PostgreSQL builds.
pub(super) struct Hold(Client);

impl Hold {
    const KEY: i64 = 4711;

    pub(super) async fn on(world: &World) -> Self {
        let session = world.superuser().await;
        let setup = format!(
            "SELECT pg_advisory_lock({key});
            CREATE FUNCTION public.hold_index() RETURNS event_trigger LANGUAGE plpgsql AS $$
            BEGIN
              IF EXISTS (SELECT FROM pg_catalog.pg_event_trigger_ddl_commands() WHERE object_identity LIKE '%\\_code') THEN
                PERFORM pg_catalog.pg_advisory_xact_lock_shared({key});
              END IF;
            END
            $$;
            CREATE EVENT TRIGGER hold_index ON ddl_command_end WHEN TAG IN ('CREATE INDEX')
              EXECUTE FUNCTION public.hold_index()",
            key = Self::KEY
        );
        session.batch_execute(&setup).await.unwrap();
        Self(session)
    }

    /// Waits until so many builds are held.
    pub(super) async fn holds(&self, wanted: i64) {
        for _ in 0..1200 {
            if self.held().await == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{} builds are held, not {wanted}", self.held().await);
    }

    pub(super) async fn held(&self) -> i64 {
        let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = $1 AND \
                       database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        let key = u32::try_from(Self::KEY).unwrap();
        self.0.query_one(waiting, &[&key]).await.unwrap().get(0)
    }

    pub(super) async fn release(self) {
        self.0
            .batch_execute("DROP EVENT TRIGGER hold_index; SELECT pg_advisory_unlock_all()")
            .await
            .unwrap();
    }
}

async fn index_of(who: &As, space: &str) -> Option<pb::VectorIndex> {
    let get = pb::GetVectorSpaceRequest { vector_space_id: space.into(), ..Default::default() };
    ok!(who.spaces().get_vector_space(get)).vector_space.unwrap().index
}

async fn state(who: &As, id: &str) -> OperationState {
    let request = pb::GetOperationRequest { operation_id: id.into(), ..Default::default() };
    ok!(who.operations().get_operation(request)).operation.unwrap().state()
}

/// Two builds at a time, the oldest first, and drops whatever is built. Two servers are no more than one.
#[tokio::test]
async fn operations_of_different_spaces_go_on_side_by_side() {
    let world = World::with(&BRISK).await;
    let url = url_of(&config_of(&world.database).await);
    let mut other = World::on(&world.database, &url, &BRISK).await;
    let who = world.anonymous();
    let mut cloud = Cloud::new(12, 8);
    let spaces = ["a", "b", "c", "d", "e"];
    for id in spaces {
        space(&who, id, 8, DistanceMetric::L2, VectorStorage::Float32).await;
        fill(&who, id, &mut cloud, 0..40).await;
    }
    built(&who, build("a", Method::Hnsw, Codes::Float32)).await;
    let hold = Hold::on(&world).await;
    let mut begun = Vec::new();
    for id in &spaces[1..] {
        let request = build(id, Method::Hnsw, Codes::Float32);
        begun.push(ok!(who.spaces().build_vector_index(request)).operation.unwrap().id);
    }
    hold.holds(2).await;
    // A drop does not wait for them.
    let dropped = pb::DropVectorIndexRequest { vector_space_id: "a".into(), options: None };
    let dropped = ok!(who.spaces().drop_vector_index(dropped)).operation.unwrap();
    assert_eq!(over(&who, &dropped.id).await.state(), OperationState::Done);
    assert_eq!(hold.held().await, 2);
    let (running, pending) = (OperationState::Running, OperationState::Pending);
    let mut states = Vec::new();
    for id in &begun {
        states.push(state(&who, id).await);
    }
    assert_eq!(states, [running, running, pending, pending]);
    // What ends makes room.
    let cancel = pb::CancelOperationRequest { operation_id: begun[0].clone(), options: None };
    ok!(who.operations().cancel_operation(cancel));
    for _ in 0..1200 {
        if state(&who, &begun[2]).await == running {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert_eq!((state(&who, &begun[2]).await, state(&who, &begun[3]).await), (running, pending));
    hold.holds(2).await;
    hold.release().await;
    for id in &begun[1..] {
        assert_eq!(over(&who, id).await.state(), OperationState::Done);
    }
    other.stop().await;
    world.close().await;
}

/// A purge does not wait for an index that is being built, and what is purged is not in it when it is searched.
#[tokio::test]
async fn purging_goes_on_while_an_index_is_built() {
    let world = World::with(&BRISK).await;
    let who = world.anonymous();
    let mut cloud = Cloud::new(13, 8);
    space(&who, "s", 8, DistanceMetric::L2, VectorStorage::Float32).await;
    fill(&who, "s", &mut cloud, 0..100).await;
    built(&who, build("s", Method::Hnsw, Codes::Float32)).await;
    let hold = Hold::on(&world).await;
    let begun = ok!(who.spaces().build_vector_index(build("s", Method::Hnsw, Codes::Float16)));
    let begun = begun.operation.unwrap().id;
    hold.holds(1).await;
    ok!(who.vectors().batch_delete_embeddings(pb::BatchDeleteEmbeddingsRequest {
        vector_space_id: "s".into(),
        embedding_ids: (0..30).map(|n| format!("e{n:04}")).collect(),
        ..Default::default()
    }));
    let purge = || pb::PurgeResourcesRequest {
        kind: pb::ResourceKind::Embedding.into(),
        max_resources: 20,
        ..Default::default()
    };
    let mut client = who.retention();
    let purged =
        tokio::time::timeout(Duration::from_secs(15), client.purge_resources(purge())).await;
    let purged = purged.expect("it waits for the build").unwrap().into_inner();
    assert_eq!(purged.purged_count, 20);
    let owner = world.superuser().await;
    let count = async |of: &str| -> i64 {
        owner.query_one(&format!("SELECT count(*) FROM {of}"), &[]).await.unwrap().get(0)
    };
    let numbers =
        owner.query("SELECT number FROM casebook.vector_index ORDER BY number", &[]).await.unwrap();
    let [old, new] = [0, 1].map(|n| format!("casebook.sealed_{}", numbers[n].get::<_, i64>(0)));
    // From the one that is searched it is gone at once.
    assert_eq!((count(&old).await, count(&new).await), (80, 100));
    assert_eq!(count("casebook.vector_removal").await, 20);
    // One that is still under way when the index is built is waited for.
    let purging = world.superuser().await;
    purging
        .batch_execute("BEGIN; DELETE FROM casebook.embedding WHERE delete_time IS NOT NULL")
        .await
        .unwrap();
    hold.release().await;
    for _ in 0..100 {
        let waiting =
            "pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%use_vector_index%'";
        if count(waiting).await > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(state(&who, &begun).await, OperationState::Running);
    purging.batch_execute("COMMIT").await.unwrap();
    assert_eq!(over(&who, &begun).await.state(), OperationState::Done);
    assert_eq!((count(&new).await, count("casebook.vector_removal").await), (70, 0));
    let answer = search(&who, near("s", &cloud.point(), 100)).await;
    assert_eq!(answer.hits.len(), 70);
    // And from then on directly.
    ok!(who.vectors().delete_embedding(pb::DeleteEmbeddingRequest {
        vector_space_id: "s".into(),
        embedding_id: "e0050".into(),
        ..Default::default()
    }));
    assert_eq!(ok!(who.retention().purge_resources(purge())).purged_count, 1);
    assert_eq!((count(&new).await, count("casebook.vector_removal").await), (69, 0));
    drop((owner, purging));
    world.close().await;
}

/// What fails or is cancelled leaves the space with the index that it has, and says so.
#[tokio::test]
async fn what_comes_to_nothing_leaves_the_index_from_before() {
    let world = World::with(&BRISK).await;
    let who = world.anonymous();
    let mut cloud = Cloud::new(14, 8);
    for id in ["s", "bare"] {
        space(&who, id, 8, DistanceMetric::L2, VectorStorage::Float32).await;
        fill(&who, id, &mut cloud, 0..60).await;
    }
    built(&who, build("s", Method::Hnsw, Codes::Float16)).await;
    let before = index_of(&who, "s").await.unwrap();
    let owner = world.superuser().await;
    let break_it = "CREATE FUNCTION public.no_index() RETURNS event_trigger LANGUAGE plpgsql AS
                    $$ BEGIN RAISE EXCEPTION 'the disk is full'; END $$;
                    CREATE EVENT TRIGGER no_index ON ddl_command_start WHEN TAG IN ('CREATE INDEX')
                      EXECUTE FUNCTION public.no_index()";
    owner.batch_execute(break_it).await.unwrap();
    for id in ["s", "bare"] {
        let begun = ok!(who.spaces().build_vector_index(build(id, Method::Hnsw, Codes::Binary)));
        let ended = over(&who, &begun.operation.unwrap().id).await;
        assert_eq!(ended.state(), OperationState::Failed);
        assert!(!ended.error.is_empty() && !ended.error.contains("disk"), "{ended:?}");
        let stats = stats(&who, id).await;
        assert!(
            stats.advice[0].contains(&ended.id) && stats.advice[0].contains("failed"),
            "{stats:?}"
        );
        let then = if id == "s" {
            "the index from before stays"
        } else {
            "it is tried again after an hour"
        };
        assert!(stats.advice[0].contains(then), "{stats:?}");
        assert_eq!(stats.indexes.len(), usize::from(id == "s"));
    }
    assert_eq!(index_of(&who, "s").await, Some(before));
    assert_eq!(search(&who, near("s", &cloud.point(), 3)).await.method(), SearchMethod::Hnsw);
    assert_eq!(index_of(&who, "bare").await.unwrap().codes(), Codes::Binary);
    owner.batch_execute("DROP EVENT TRIGGER no_index").await.unwrap();

    let hold = Hold::on(&world).await;
    let begun = ok!(who.spaces().build_vector_index(build("s", Method::Hnsw, Codes::Binary)));
    let begun = begun.operation.unwrap().id;
    hold.holds(1).await;
    assert_eq!(index_of(&who, "s").await.unwrap().codes(), Codes::Binary);
    let cancel = pb::CancelOperationRequest { operation_id: begun, options: None };
    ok!(who.operations().cancel_operation(cancel));
    assert_eq!(index_of(&who, "s").await, Some(before));
    hold.release().await;
    // One that succeeds makes an end of it.
    built(&who, build("s", Method::Hnsw, Codes::Float32)).await;
    assert!(stats(&who, "s").await.advice.iter().all(|words| !words.contains("failed")));
    drop(owner);
    world.close().await;
}
