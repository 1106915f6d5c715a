//! Vectors and their records: F90 to F100, and N5: what is written together, what verifying finds, and what following does.

mod follow;
mod schedule;

use crate::help::*;
use crate::vectors::{embedding, space, space_of};
use crate::world::{As, World, reason, request, wrong_fields};
use casebook::pb;
use casebook::pb::{DistanceMetric, SyncFault, VectorStorage};
use std::time::Duration;
use tokio_stream::StreamExt as _;
use tonic::{Code, Status};

fn sync(space: &str, embedding: pb::Embedding) -> pb::SyncEmbeddingRequest {
    pb::SyncEmbeddingRequest {
        vector_space_id: space.into(),
        embedding: Some(embedding),
        options: None,
    }
}

fn batch(
    space: &str,
    embeddings: impl IntoIterator<Item = pb::Embedding>,
) -> pb::BatchSyncEmbeddingsRequest {
    pb::BatchSyncEmbeddingsRequest {
        vector_space_id: space.into(),
        embeddings: embeddings.into_iter().collect(),
        options: None,
    }
}

/// So many embeddings, e-0 and on, with numbers of their own.
pub fn some(count: i32, dimensions: i32) -> Vec<pb::Embedding> {
    let numbers = |n: i32| (0..dimensions).map(|d| (n * 7 + d) as f32 / 8.0).collect::<Vec<_>>();
    (0..count).map(|n| embedding(&format!("e-{n}"), &numbers(n))).collect()
}

fn delete_one(space: &str, id: &str) -> pb::DeleteFromBothRequest {
    pb::DeleteFromBothRequest {
        vector_space_id: space.into(),
        embedding_id: id.into(),
        ..Default::default()
    }
}

fn delete_some(space: &str, ids: &[&str]) -> pb::BatchDeleteFromBothRequest {
    pb::BatchDeleteFromBothRequest {
        vector_space_id: space.into(),
        embedding_ids: ids.iter().map(|id| (*id).into()).collect(),
        ..Default::default()
    }
}

fn sample(space: &str, sample_size: i32) -> pb::VerifySyncRequest {
    pb::VerifySyncRequest { vector_space_id: space.into(), sample_size, ..Default::default() }
}

fn full(space: &str) -> pb::VerifySyncRequest {
    pb::VerifySyncRequest { vector_space_id: space.into(), full: true, ..Default::default() }
}

fn resync(space: &str) -> pb::ResyncFromPostgresRequest {
    pb::ResyncFromPostgresRequest { vector_space_id: space.into(), ..Default::default() }
}

/// All answers of a resync.
async fn resynced(
    who: &As,
    request: pb::ResyncFromPostgresRequest,
) -> Result<Vec<pb::ResyncFromPostgresResponse>, Status> {
    let stream = who.syncs().resync_from_postgres(request).await?.into_inner();
    stream.collect::<Vec<_>>().await.into_iter().collect()
}

/// What a search finds, nearest first.
async fn found(who: &As, space: &str, values: &[f32]) -> Vec<String> {
    let list = pb::FloatList { values: values.to_vec() };
    let vector = pb::Vector { data: Some(pb::vector::Data::Floats(list)) };
    let query = pb::VectorQuery {
        vector_space_id: space.into(),
        target: Some(pb::vector_query::Target::Vector(vector)),
        top_k: 1000,
        ..Default::default()
    };
    let search = pb::SearchVectorsRequest { query: Some(query), ..Default::default() };
    let hits = ok!(who.vectors().search_vectors(search)).hits;
    hits.into_iter().map(|hit| hit.embedding.unwrap().id).collect()
}

async fn is_recorded(who: &As, space: &str, id: &str) -> bool {
    let request = pb::GetEmbeddingRequest {
        vector_space_id: space.into(),
        embedding_id: id.into(),
        ..Default::default()
    };
    match who.vectors().get_embedding(request).await {
        Ok(_) => true,
        Err(status) => {
            assert_eq!(status.code(), Code::NotFound, "{status:?}");
            false
        }
    }
}

/// Ids and faults, as they are told.
fn told(differences: &[pb::SyncDifference]) -> Vec<(&str, SyncFault)> {
    differences.iter().map(|one| (one.embedding_id.as_str(), one.fault())).collect()
}

/// Past the service: which vectors are of this embedding.
pub fn of(id: &str) -> String {
    format!(
        "embedding_uid = (SELECT uid FROM casebook.embedding WHERE embedding_id = '{id}' AND delete_time IS NULL)"
    )
}

/// F90, F91, F92.
#[tokio::test]
async fn an_embedding_is_written_on_both_sides_or_on_neither() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.syncs();
    space(&who, "s", 2).await;
    let one = pb::Embedding {
        id: String::new(),
        subject: Some(reference(pb::ResourceKind::Precedent, "prec-001", 0)),
        decision_id: "dec-123".into(),
        embedding_model: "ada".into(),
        ..embedding("", &[1.0, 2.0])
    };
    let made = ok!(client.sync_embedding(sync("s", one.clone())));
    let (made, receipt) = (made.embedding.unwrap(), made.receipt.unwrap());
    assert_eq!((made.id.as_str(), made.decision_id.as_str()), ("prec-001", "dec-123"));
    assert_eq!(receipt.audit_seq, head(&who).await);
    assert_eq!(found(&who, "s", &[1.0, 2.0]).await, ["prec-001"]);
    let again = ok!(client.sync_embedding(sync("s", one)));
    assert!(again.receipt.unwrap().unchanged);
    assert_eq!(again.embedding, Some(made));

    // An alias will do, and a repeated call happens once.
    ok!(who.spaces().set_vector_space_alias(pb::SetVectorSpaceAliasRequest {
        alias: "live".into(),
        vector_space_id: "s".into(),
        options: None,
    }));
    let once = pb::BatchSyncEmbeddingsRequest {
        options: Some(request("r-1")),
        ..batch("live", [embedding("a", &[3.0, 4.0]), embedding("b", &[5.0, 6.0])])
    };
    let first = ok!(client.batch_sync_embeddings(once.clone()));
    assert_eq!((first.embedding_ids, first.written_count), (vec!["a".into(), "b".into()], 2));
    let before = head(&who).await;
    let replay = ok!(client.batch_sync_embeddings(once.clone()));
    assert!(replay.receipt.unwrap().replayed);
    assert_eq!((replay.embedding_ids, replay.written_count), (vec!["a".into(), "b".into()], 2));
    let other = pb::BatchSyncEmbeddingsRequest {
        options: once.options,
        ..batch("live", [embedding("c", &[3.0, 4.0])])
    };
    fails!(client.batch_sync_embeddings(other), InvalidArgument, "REQUEST_ID_REUSED");
    let mixed = ok!(client.batch_sync_embeddings(batch(
        "s",
        [embedding("a", &[3.0, 4.0]), embedding("b", &[5.0, 7.0])]
    )));
    assert_eq!((mixed.written_count, mixed.receipt.unwrap().audit_seq), (1, before + 1));

    // One that is wrong keeps the other out.
    let bad = batch("s", [embedding("x", &[1.0, 1.0]), embedding("y", &[1.0])]);
    let status = fails!(client.batch_sync_embeddings(bad), InvalidArgument, "DIMENSION_MISMATCH");
    assert_eq!(wrong_fields(&status), ["embeddings[1].vector"]);
    fails!(client.batch_sync_embeddings(batch("s", [])), InvalidArgument, "FIELD_INVALID");
    // And so does a vector side that fails in the midst.
    let owner = world.superuser().await;
    let break_it = "CREATE FUNCTION public.no() RETURNS trigger LANGUAGE plpgsql AS \
                    $$ BEGIN RAISE EXCEPTION 'no'; END $$; \
                    CREATE TRIGGER no BEFORE INSERT ON casebook.embedding_vector EXECUTE FUNCTION public.no()";
    owner.batch_execute(break_it).await.unwrap();
    let halfway = client.sync_embedding(sync("s", embedding("x", &[1.0, 1.0])));
    fails!(halfway, Internal, "INTERNAL");
    owner.batch_execute("DROP TRIGGER no ON casebook.embedding_vector").await.unwrap();
    assert!(!is_recorded(&who, "s", "x").await);
    assert_eq!(head(&who).await, before + 1);
    assert!(ok!(client.verify_sync(full("s"))).in_sync);
    drop(owner);
    world.close().await;
}

/// F93.
#[tokio::test]
async fn an_embedding_goes_from_both_sides_or_from_neither() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.syncs();
    space(&who, "s", 2).await;
    ok!(client.batch_sync_embeddings(batch("s", some(5, 2))));
    let once =
        pb::DeleteFromBothRequest { options: Some(request("r-1")), ..delete_one("s", "e-0") };
    for replayed in [false, true] {
        let gone = ok!(client.delete_from_both(once.clone()));
        assert_eq!((gone.deleted, gone.receipt.unwrap().replayed), (true, replayed));
    }
    assert!(!is_recorded(&who, "s", "e-0").await);
    assert_eq!(found(&who, "s", &[0.0, 0.0]).await, ["e-1", "e-2", "e-3", "e-4"]);
    fails!(client.delete_from_both(delete_one("s", "e-0")), NotFound, "NOT_FOUND");
    let missing = pb::DeleteFromBothRequest { allow_missing: true, ..delete_one("s", "e-0") };
    assert!(!ok!(client.delete_from_both(missing)).deleted);
    let stale =
        pb::DeleteFromBothRequest { etag: "\"00000000-9\"".into(), ..delete_one("s", "e-1") };
    fails!(client.delete_from_both(stale), Aborted, "ETAG_MISMATCH");

    // All or none.
    let some_missing = client.batch_delete_from_both(delete_some("s", &["e-1", "e-0"]));
    fails!(some_missing, NotFound, "NOT_FOUND");
    fails!(client.batch_delete_from_both(delete_some("s", &[])), InvalidArgument, "FIELD_INVALID");
    let owner = world.superuser().await;
    let break_it = "CREATE FUNCTION public.no() RETURNS trigger LANGUAGE plpgsql AS \
                    $$ BEGIN RAISE EXCEPTION 'no'; END $$; \
                    CREATE TRIGGER no BEFORE INSERT ON casebook.log EXECUTE FUNCTION public.no()";
    owner.batch_execute(break_it).await.unwrap();
    let halfway = client.delete_from_both(delete_one("s", "e-1"));
    fails!(halfway, Internal, "INTERNAL");
    owner.batch_execute("DROP TRIGGER no ON casebook.log").await.unwrap();
    drop(owner);
    assert!(is_recorded(&who, "s", "e-1").await);
    assert_eq!(found(&who, "s", &[0.0, 0.0]).await, ["e-1", "e-2", "e-3", "e-4"]);
    let gone = ok!(client.batch_delete_from_both(delete_some("s", &["e-1", "e-2"])));
    assert_eq!(gone.deleted_count, 2);
    assert_eq!(found(&who, "s", &[0.0, 0.0]).await, ["e-3", "e-4"]);
    let verified = ok!(client.verify_sync(full("s")));
    assert_eq!((verified.postgres_count, verified.vectordb_count), (2, 2));
    assert!(verified.in_sync);
    world.close().await;
}

/// F94, F95, F96, and N5: by digest, and not the first rows only.
#[tokio::test]
async fn verifying_finds_each_vector_that_is_not_as_recorded() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.syncs();
    space(&who, "s", 3).await;
    let empty = ok!(client.verify_sync(full("s")));
    assert!(empty.in_sync && empty.sync_rate_percent == 100.0 && empty.samples_checked == 0);
    ok!(client.batch_sync_embeddings(batch("s", some(200, 3))));
    // Earlier versions and other spaces are of no interest.
    ok!(client.sync_embedding(sync("s", embedding("e-7", &[9.0, 9.0, 9.0]))));
    space(&who, "other", 3).await;
    ok!(client.batch_sync_embeddings(batch("other", [embedding("o", &[1.0, 1.0, 1.0])])));
    let verified = ok!(client.verify_sync(sample("s", 0)));
    assert_eq!((verified.postgres_count, verified.vectordb_count), (200, 200));
    assert_eq!((verified.samples_checked, verified.in_sync), (100, true));
    assert_eq!(verified.sync_rate_percent, 100.0);
    assert_ne!(verified.sample_seed, 0);
    // The revision is good for a read.
    let at = pb::consistency::Requirement::AtExactSnapshot(verified.read_at.unwrap());
    ok!(who.vectors().get_embedding(pb::GetEmbeddingRequest {
        vector_space_id: "s".into(),
        embedding_id: "e-7".into(),
        consistency: Some(pb::Consistency { requirement: Some(at) }),
        ..Default::default()
    }));
    for (size, checked) in [(1, 1), (199, 199), (200, 200), (10_000, 200)] {
        assert_eq!(ok!(client.verify_sync(sample("s", size))).samples_checked, checked);
    }

    let owner = world.superuser().await;
    // The label stays, the numbers do not.
    let alter = format!(
        "UPDATE casebook.embedding_vector SET vector = '[1,2,2.9999998]' WHERE {}; \
         UPDATE casebook.embedding_vector SET vector = NULL, half = '[1,2,3]' WHERE {}; \
         UPDATE casebook.embedding_vector SET vector = '[1,2]' WHERE {}",
        of("e-150"),
        of("e-151"),
        of("e-152"),
    );
    owner.batch_execute(&alter).await.unwrap();
    let verified = ok!(client.verify_sync(full("s")));
    assert_eq!((verified.postgres_count, verified.vectordb_count), (200, 200));
    assert_eq!((verified.different, verified.missing_in_vectordb), (3, 0));
    let differs = ["e-150", "e-151", "e-152"].map(|id| (id, SyncFault::Different));
    assert_eq!(told(&verified.differences), differs);
    assert!(!verified.in_sync && verified.sample_seed == 0);
    assert_eq!(verified.sync_rate_percent, 98.5);

    // Of e-7 only the vector that counts goes; that of its first version is not seen in its place.
    let lose = format!(
        "DELETE FROM casebook.embedding_vector WHERE {} AND digest = (SELECT vector_digest FROM casebook.embedding \
         WHERE embedding_id = 'e-7')",
        of("e-7")
    );
    assert_eq!(owner.execute(&lose, &[]).await.unwrap(), 1);
    let verified = ok!(client.verify_sync(full("s")));
    assert_eq!((verified.postgres_count, verified.vectordb_count), (200, 199));
    assert_eq!((verified.different, verified.missing_in_vectordb), (3, 1));
    assert_eq!((verified.extra_in_vectordb, verified.samples_checked), (0, 200));
    assert_eq!(told(&verified.differences)[0], ("e-7", SyncFault::Missing));
    assert_eq!(verified.sync_rate_percent, 98.0);
    // The uid is the record's.
    let uid: uuid::Uuid = owner
        .query_one("SELECT uid FROM casebook.embedding WHERE embedding_id = 'e-7'", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(verified.differences[0].uid, uid.to_string());

    // A sample is drawn by chance, the same by the same seed; and what it does not see, the counts say.
    let by = |seed| pb::VerifySyncRequest { sample_seed: seed, ..sample("s", 100) };
    let mut seen = std::collections::BTreeSet::new();
    for seed in 1..=40 {
        let first = ok!(client.verify_sync(by(seed)));
        assert_eq!((first.sample_seed, first.samples_checked), (seed, 100));
        assert!(!first.in_sync && first.sync_rate_percent <= 99.5);
        seen.extend(first.differences.iter().map(|one| one.embedding_id.clone()));
        let second = ok!(client.verify_sync(by(seed)));
        assert_eq!(second.differences, first.differences);
    }
    // Each has one chance in two at a time, so 40 draws miss none: uids are by chance, and with them what a seed draws.
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["e-150", "e-151", "e-152", "e-7"]);
    assert!(ok!(client.verify_sync(full("other"))).in_sync);
    drop(owner);
    world.close().await;
}

/// Where no space is named, all that are live are meant.
#[tokio::test]
async fn all_spaces_are_verified_and_gone_through() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.syncs();
    assert!(ok!(client.verify_sync(full(""))).in_sync);
    let nothing = resynced(&who, resync("")).await.unwrap();
    assert_eq!((nothing.len(), nothing[0].done, nothing[0].total), (1, true, 0));
    assert!(nothing[0].read_at.is_some());
    space(&who, "a", 2).await;
    space_of(&who, "b", 3, DistanceMetric::L2, VectorStorage::Float16).await;
    space(&who, "gone", 2).await;
    for (id, count, dimensions) in [("a", 60, 2), ("b", 50, 3), ("gone", 5, 2)] {
        ok!(client.batch_sync_embeddings(batch(id, some(count, dimensions))));
    }
    ok!(who.spaces().delete_vector_space(pb::DeleteVectorSpaceRequest {
        vector_space_id: "gone".into(),
        ..Default::default()
    }));
    let verified = ok!(client.verify_sync(full("")));
    assert_eq!((verified.postgres_count, verified.vectordb_count), (110, 110));
    assert_eq!((verified.samples_checked, verified.in_sync), (110, true));
    assert_eq!(ok!(client.verify_sync(sample("", 50))).samples_checked, 50);
    let owner = world.superuser().await;
    let damage = "UPDATE casebook.embedding_vector SET half = '[9,9,9]' WHERE embedding_uid = (SELECT uid FROM \
                  casebook.embedding WHERE embedding_id = 'e-7' AND space_id = 'b'); \
                  DELETE FROM casebook.embedding_vector WHERE embedding_uid = (SELECT uid FROM \
                  casebook.embedding WHERE embedding_id = 'e-3' AND space_id = 'a')";
    owner.batch_execute(damage).await.unwrap();
    let wrong = [("a", "e-3", SyncFault::Missing), ("b", "e-7", SyncFault::Different)];
    let of = |differences: &[pb::SyncDifference]| -> Vec<(String, String, SyncFault)> {
        let told = differences.iter();
        told.map(|one| (one.vector_space_id.clone(), one.embedding_id.clone(), one.fault()))
            .collect()
    };
    let wrong = wrong.map(|(space, id, fault)| (space.to_owned(), id.to_owned(), fault));
    let verified = ok!(client.verify_sync(full("")));
    assert_eq!((of(&verified.differences), verified.in_sync), (wrong.to_vec(), false));
    for (limit, checked) in [(0, 110), (70, 70), (1000, 110)] {
        let request = pb::ResyncFromPostgresRequest { limit, batch_size: 25, ..resync("") };
        let answers = resynced(&who, request).await.unwrap();
        let last = answers.last().unwrap();
        assert_eq!((last.checked, last.total, last.done), (checked, checked, true));
        assert_eq!(answers.iter().filter(|answer| answer.done).count(), 1);
        assert_eq!(of(&last.unrecoverable), wrong, "{limit}");
    }
    drop(owner);
    world.close().await;
}

/// More than is read at once, of long vectors in two bytes a number; what is told one by one is bounded.
#[tokio::test]
async fn a_space_is_verified_to_its_end() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.syncs();
    space_of(&who, "half", 16_000, DistanceMetric::L2, VectorStorage::Float16).await;
    for piece in some(150, 16_000).chunks(75) {
        ok!(client.batch_sync_embeddings(batch("half", piece.to_vec())));
    }
    let verified = ok!(client.verify_sync(full("half")));
    assert_eq!((verified.samples_checked, verified.in_sync), (150, true), "{verified:?}");
    let verified = ok!(client.verify_sync(sample("half", 149)));
    assert_eq!((verified.samples_checked, verified.in_sync), (149, true), "{verified:?}");
    let owner = world.superuser().await;
    let lose = format!("DELETE FROM casebook.embedding_vector WHERE {}", of("e-149"));
    owner.batch_execute(&lose).await.unwrap();
    let verified = ok!(client.verify_sync(full("half")));
    assert_eq!(told(&verified.differences), [("e-149", SyncFault::Missing)]);
    let progress =
        resynced(&who, pb::ResyncFromPostgresRequest { batch_size: 130, ..resync("half") });
    let progress = progress.await.unwrap();
    assert_eq!(progress.iter().map(|one| one.synced).collect::<Vec<_>>(), [130, 149]);
    owner.batch_execute("TRUNCATE casebook.embedding_vector").await.unwrap();
    let verified = ok!(client.verify_sync(full("half")));
    assert_eq!((verified.missing_in_vectordb, verified.differences.len()), (150, 100));
    assert_eq!((verified.sync_rate_percent, verified.vectordb_count), (0.0, 0));
    drop(owner);
    world.close().await;
}

/// F97, F98, F124.
#[tokio::test]
async fn a_resync_says_how_far_it_is_and_what_nobody_can_bring_back() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.syncs();
    space(&who, "s", 2).await;
    let nothing = resynced(&who, resync("s")).await.unwrap();
    assert_eq!((nothing.len(), nothing[0].done, nothing[0].total), (1, true, 0));
    ok!(client.batch_sync_embeddings(batch("s", some(250, 2))));
    let numbers = |progress: &[pb::ResyncFromPostgresResponse]| {
        progress.iter().map(|one| (one.synced, one.total, one.done)).collect::<Vec<_>>()
    };
    let progress = resynced(&who, resync("s")).await.unwrap();
    assert_eq!(numbers(&progress), [(100, 250, false), (200, 250, false), (250, 250, true)]);
    assert!(progress.iter().all(|one| one.read_at.is_some() && one.message.is_empty()));
    let limited = pb::ResyncFromPostgresRequest { limit: 120, batch_size: 60, ..resync("s") };
    let progress = resynced(&who, limited).await.unwrap();
    assert_eq!(numbers(&progress), [(60, 120, false), (120, 120, true)]);

    let owner = world.superuser().await;
    let spoil = format!(
        "DELETE FROM casebook.embedding_vector WHERE {}; UPDATE casebook.embedding_vector SET vector = '[0,1]' WHERE {}",
        of("e-30"),
        of("e-170"),
    );
    owner.batch_execute(&spoil).await.unwrap();
    drop(owner);
    let before = head(&who).await;
    let progress = resynced(&who, resync("s")).await.unwrap();
    assert_eq!(numbers(&progress), [(99, 250, false), (198, 250, false), (248, 250, true)]);
    let last = progress.last().unwrap();
    assert_eq!((last.checked, last.unrecoverable_count), (250, 2));
    let lost = [("e-30", SyncFault::Missing), ("e-170", SyncFault::Different)];
    assert_eq!(told(&last.unrecoverable), lost);
    assert!(last.message.contains("SyncEmbedding"), "{}", last.message);
    let only = pb::ResyncFromPostgresRequest { only_differences: true, ..resync("s") };
    let progress = resynced(&who, only).await.unwrap();
    let last = progress.last().unwrap();
    assert_eq!((last.synced, last.checked, last.unrecoverable_count), (0, 250, 2));
    assert_eq!(head(&who).await, before);
    world.close().await;
}

/// F124: out of sync, verify, sync again.
#[tokio::test]
async fn what_is_lost_comes_back_and_what_is_damaged_is_sent_anew() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.syncs();
    space(&who, "s", 2).await;
    ok!(client.batch_sync_embeddings(batch("s", some(4, 2))));
    let owner = world.superuser().await;
    owner.batch_execute("DELETE FROM casebook.embedding_vector").await.unwrap();
    assert_eq!(ok!(client.verify_sync(full("s"))).missing_in_vectordb, 4);
    let before = head(&who).await;
    // An upsert of what is recorded has nothing to do; a rehearsal does nothing.
    let upsert = pb::BatchUpsertEmbeddingsRequest {
        vector_space_id: "s".into(),
        embeddings: some(4, 2),
        options: None,
    };
    assert_eq!(ok!(who.vectors().batch_upsert_embeddings(upsert)).written_count, 0);
    let rehearsed = pb::BatchSyncEmbeddingsRequest {
        options: Some(pb::WriteOptions { validate_only: true, ..Default::default() }),
        ..batch("s", some(4, 2))
    };
    ok!(client.batch_sync_embeddings(rehearsed));
    assert_eq!(ok!(client.verify_sync(full("s"))).missing_in_vectordb, 4);
    let restored = ok!(client.batch_sync_embeddings(batch("s", some(4, 2))));
    assert_eq!((restored.written_count, restored.receipt.unwrap().unchanged), (0, true));
    assert!(ok!(client.verify_sync(full("s"))).in_sync);
    assert_eq!(found(&who, "s", &[0.0, 0.0]).await, ["e-0", "e-1", "e-2", "e-3"]);
    // The record is as it was.
    assert_eq!(head(&who).await, before);

    let alter =
        format!("UPDATE casebook.embedding_vector SET vector = '[0,1]' WHERE {}", of("e-2"));
    owner.batch_execute(&alter).await.unwrap();
    drop(owner);
    let again = client.batch_sync_embeddings(batch("s", some(4, 2)));
    let status = fails!(again, FailedPrecondition, "VECTOR_DAMAGED");
    assert_eq!(info(&status)["id"], "e-2");
    assert!(status.message().contains("embedding \"e-2\""), "{status:?}");
    assert_eq!(ok!(client.verify_sync(full("s"))).different, 1);
    // Another vector is another version, and right at once.
    ok!(client.sync_embedding(sync("s", embedding("e-2", &[7.0, 7.0]))));
    assert!(ok!(client.verify_sync(full("s"))).in_sync);
    // The same one again needs the embedding anew.
    ok!(client.delete_from_both(delete_one("s", "e-2")));
    ok!(client.sync_embedding(sync("s", some(4, 2).remove(2))));
    let verified = ok!(client.verify_sync(full("s")));
    assert_eq!((verified.in_sync, verified.postgres_count), (true, 4));
    world.close().await;
}

/// F100, F122.
#[tokio::test]
async fn the_status_says_how_far_the_vectors_are() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.syncs();
    let status = |space: &str| pb::GetSyncStatusRequest { vector_space_id: space.into() };
    let first = ok!(client.get_sync_status(status("")));
    let [projection] = &first.projections[..] else { panic!("{first:?}") };
    assert_eq!((projection.head_seq, projection.applied_seq, projection.backlog), (0, 0, 0));
    space(&who, "s", 2).await;
    space(&who, "gone", 2).await;
    ok!(client.batch_sync_embeddings(batch("s", some(7, 2))));
    ok!(client.batch_sync_embeddings(batch("gone", some(3, 2))));
    let counts = async |space: &str| {
        let answer = ok!(who.syncs().get_sync_status(status(space)));
        assert!(answer.read_at.is_some());
        let [projection] = <[_; 1]>::try_from(answer.projections).unwrap();
        let head = head(&who).await;
        assert_eq!((projection.head_seq, projection.applied_seq), (head, head));
        assert_eq!((projection.backlog, projection.lag), (0, Some(Default::default())));
        assert_eq!(projection.mode(), pb::SyncMode::Transactional);
        assert_eq!(projection.name, "built-in");
        (projection.postgres_count, projection.vectordb_count)
    };
    assert_eq!(counts("").await, (10, 10));
    assert_eq!(counts("s").await, (7, 7));
    ok!(who.spaces().delete_vector_space(pb::DeleteVectorSpaceRequest {
        vector_space_id: "gone".into(),
        ..Default::default()
    }));
    assert_eq!(counts("").await, (7, 7));
    fails!(client.get_sync_status(status("gone")), NotFound, "NOT_FOUND");
    let owner = world.superuser().await;
    let lose = format!("DELETE FROM casebook.embedding_vector WHERE {}", of("e-5"));
    owner.batch_execute(&lose).await.unwrap();
    drop(owner);
    assert_eq!(counts("s").await, (7, 6));
    world.close().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said_by_field() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.syncs();
    space(&who, "s", 2).await;
    let both = pb::VerifySyncRequest { sample_size: 5, ..full("s") };
    for (bad, field) in [
        (sample("!", 0), "vector_space_id"),
        (sample("s", -1), "sample_size"),
        (sample("s", 10_001), "sample_size"),
        (sample("s", i32::MIN), "sample_size"),
        (both, "sample_size"),
    ] {
        let status = fails!(client.verify_sync(bad.clone()), InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), [field], "{bad:?}");
    }
    let limit = |limit| pb::ResyncFromPostgresRequest { limit, ..resync("s") };
    let size = |batch_size| pb::ResyncFromPostgresRequest { batch_size, ..resync("s") };
    for (bad, field) in [
        (resync("!"), "vector_space_id"),
        (limit(-1), "limit"),
        (limit(i64::MIN), "limit"),
        (size(-1), "batch_size"),
        (size(1001), "batch_size"),
    ] {
        let status =
            fails!(client.resync_from_postgres(bad.clone()), InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), [field], "{bad:?}");
    }
    let all_wrong = pb::ResyncFromPostgresRequest { limit: -1, batch_size: -1, ..resync("!") };
    let status = fails!(client.resync_from_postgres(all_wrong), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["vector_space_id", "limit", "batch_size"]);
    let none = pb::SyncEmbeddingRequest { embedding: None, ..sync("s", Default::default()) };
    let status = fails!(client.sync_embedding(none), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["embedding"]);
    // A space that is not there.
    fails!(client.verify_sync(full("x")), NotFound, "NOT_FOUND");
    fails!(client.resync_from_postgres(resync("x")), NotFound, "NOT_FOUND");
    fails!(client.sync_embedding(sync("x", embedding("e", &[1.0, 2.0]))), NotFound, "NOT_FOUND");
    fails!(client.delete_from_both(delete_one("x", "e")), NotFound, "NOT_FOUND");
    world.close().await;
}

#[tokio::test]
async fn one_tenant_s_vectors_are_not_another_s() {
    let world = World::new().await;
    for id in ["acme", "other"] {
        world.tenant(id).await;
    }
    let (mine, theirs) = (world.as_tenant("acme"), world.as_tenant("other"));
    for who in [&mine, &theirs] {
        space(who, "s", 2).await;
    }
    ok!(mine.syncs().batch_sync_embeddings(batch("s", some(3, 2))));
    let owner = world.superuser().await;
    owner.batch_execute("DELETE FROM casebook.embedding_vector").await.unwrap();
    drop(owner);
    ok!(theirs.syncs().batch_sync_embeddings(batch("s", some(2, 2))));
    let verified = ok!(theirs.syncs().verify_sync(full("s")));
    assert_eq!((verified.postgres_count, verified.vectordb_count), (2, 2));
    assert!(verified.in_sync);
    let verified = ok!(mine.syncs().verify_sync(full("s")));
    assert_eq!((verified.postgres_count, verified.missing_in_vectordb), (3, 3));
    let status = ok!(theirs.syncs().get_sync_status(pb::GetSyncStatusRequest::default()));
    assert_eq!(status.projections[0].postgres_count, 2);
    assert_eq!(status.projections[0].head_seq, head(&theirs).await);
    space(&mine, "mine", 2).await;
    fails!(theirs.syncs().verify_sync(full("mine")), NotFound, "NOT_FOUND");
    fails!(theirs.syncs().resync_from_postgres(resync("mine")), NotFound, "NOT_FOUND");
    world.close().await;
}

/// What takes too long says so, a server that goes away says so, and a caller that goes away leaves nothing behind.
#[tokio::test]
async fn a_run_that_is_not_whole_says_so() {
    let mut world = World::with(&[("deadline_default_ms", "1500")]).await;
    let who = world.anonymous();
    space(&who, "s", 2).await;
    // So many that a run is not over before the lock below is there.
    for piece in some(5000, 2).chunks(1000) {
        ok!(who.syncs().batch_sync_embeddings(batch("s", piece.to_vec())));
    }
    let owner = world.superuser().await;
    let mut begun = ok!(who.syncs().resync_from_postgres(resync("s")));
    assert_eq!(begun.message().await.unwrap().unwrap().synced, 100);
    drop(begun);
    let mut begun = ok!(who.syncs().resync_from_postgres(resync("s")));
    assert_eq!(begun.message().await.unwrap().unwrap().synced, 100);
    let lock = "BEGIN; LOCK TABLE casebook.embedding_vector IN ACCESS EXCLUSIVE MODE";
    owner.batch_execute(lock).await.unwrap();
    fails!(who.syncs().verify_sync(full("s")), DeadlineExceeded, "DEADLINE_EXCEEDED");
    let stop = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        world.stop().await;
    };
    let rest = async {
        // What was on its way already comes.
        loop {
            match begun.message().await {
                Ok(Some(answer)) => assert!(!answer.done, "{answer:?}"),
                Ok(None) => panic!("it ends as if it were whole"),
                Err(status) => return status,
            }
        }
    };
    let ((), status) = tokio::join!(stop, rest);
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "SHUTTING_DOWN".into()));
    owner.batch_execute("COMMIT").await.unwrap();
    drop((owner, begun));
    world.close().await;
}
