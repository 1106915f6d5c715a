//! Embeddings: F61 to F65, F72 to F76, F434 to F447 and F486 to F491, and the search for the nearest (F66, F68 to F71).

mod given;
mod ingest;
mod nearest;
mod similarity;
mod subject;

use crate::help::*;
use crate::vectors::{bytes, embedding, floats, nearest as near, space_of};
use crate::world::{As, World, object, request, wrong_fields};
use casebook::pb;
use casebook::pb::{DistanceMetric, VectorStorage};

/// Makes a space.
async fn space(who: &As, id: &str, dimensions: i32, metric: DistanceMetric) {
    space_of(who, id, dimensions, metric, VectorStorage::Float32).await;
}

fn full(values: &[f32]) -> pb::Embedding {
    pb::Embedding {
        subject: Some(reference(pb::ResourceKind::Precedent, "prec-001", 3)),
        decision_id: "dec-123".into(),
        owner_id: "u-1".into(),
        embedding_model: "ada".into(),
        vector: bytes(values),
        context: "A loan that was refused.".into(),
        tags: vec!["critical".into(), "loan".into()],
        similarity_threshold: Some(0.8),
        source: Some(object(&[("field", "summary")])),
        metadata: Some(object(&[("page", "3")])),
        ..Default::default()
    }
}

fn upsert(space: &str, embedding: pb::Embedding) -> pb::UpsertEmbeddingRequest {
    pb::UpsertEmbeddingRequest {
        vector_space_id: space.into(),
        embedding: Some(embedding),
        options: None,
    }
}

fn batch(
    space: &str,
    embeddings: impl IntoIterator<Item = pb::Embedding>,
) -> pb::BatchUpsertEmbeddingsRequest {
    pb::BatchUpsertEmbeddingsRequest {
        vector_space_id: space.into(),
        embeddings: embeddings.into_iter().collect(),
        options: None,
    }
}

fn get(space: &str, id: &str) -> pb::GetEmbeddingRequest {
    pb::GetEmbeddingRequest {
        vector_space_id: space.into(),
        embedding_id: id.into(),
        ..Default::default()
    }
}

fn delete(space: &str, id: &str) -> pb::DeleteEmbeddingRequest {
    pb::DeleteEmbeddingRequest {
        vector_space_id: space.into(),
        embedding_id: id.into(),
        ..Default::default()
    }
}

fn search(query: pb::VectorQuery) -> pb::SearchVectorsRequest {
    pb::SearchVectorsRequest { query: Some(query), ..Default::default() }
}

fn at(revision: &pb::Revision) -> Option<pb::Consistency> {
    let requirement = pb::consistency::Requirement::AtExactSnapshot(revision.clone());
    Some(pb::Consistency { requirement: Some(requirement) })
}

/// The ids of hits, nearest first.
fn ids(hits: &[pb::VectorHit]) -> Vec<&str> {
    hits.iter().map(|hit| hit.embedding.as_ref().unwrap().id.as_str()).collect()
}

async fn found(who: &As, query: pb::VectorQuery) -> Vec<pb::VectorHit> {
    ok!(who.vectors().search_vectors(search(query))).hits
}

#[tokio::test]
async fn an_embedding_comes_back_as_given_and_keeps_every_version() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.vectors();
    space(&who, "s", 3, DistanceMetric::Cosine).await;
    let first = [0.1, -2.5e-7, 3.0e8];
    let made = ok!(client.upsert_embedding(upsert("s", full(&first))));
    let (one, receipt) = (made.embedding.unwrap(), made.receipt.unwrap());
    let expected = pb::Embedding {
        // Its subject's, because it has none of its own.
        id: "prec-001".into(),
        etag: one.etag.clone(),
        meta: one.meta.clone(),
        vector_space_id: "s".into(),
        dimensions: 3,
        vector: None,
        vector_digest: one.vector_digest.clone(),
        ..full(&first)
    };
    assert_eq!(one, expected);
    assert_eq!(one.vector_digest.len(), 64);

    // The vector, to the last bit, where it is asked for.
    let with = |paths: &[&str], request: pb::GetEmbeddingRequest| pb::GetEmbeddingRequest {
        read_mask: mask(paths),
        ..request
    };
    let all = ok!(client.get_embedding(with(&["*"], get("s", "prec-001")))).embedding.unwrap();
    assert_eq!(all, pb::Embedding { vector: bytes(&first), ..one.clone() });
    let only = ok!(client.get_embedding(with(&["vector"], get("s", "prec-001"))));
    let only = only.embedding.unwrap();
    let expected =
        pb::Embedding { id: "prec-001".into(), vector: bytes(&first), ..Default::default() };
    assert_eq!(only, expected);

    // Equal content changes nothing, however it is told.
    let again = pb::Embedding { vector: floats(&first), ..full(&first) };
    let equal = ok!(client.upsert_embedding(upsert("s", again)));
    assert_eq!((equal.embedding.as_ref(), equal.receipt.unwrap().unchanged), (Some(&one), true));

    // Another vector is another version; the earlier one keeps its own.
    let second = [1.0, 2.0, 3.0];
    let two = pb::Embedding { tags: Vec::new(), ..full(&second) };
    let two = ok!(client.upsert_embedding(upsert("s", two))).embedding.unwrap();
    assert_ne!(two.vector_digest, one.vector_digest);
    assert_eq!(two.meta.as_ref().unwrap().version, 2);
    for (version, vector) in [(1, &first), (2, &second), (0, &second)] {
        let request = pb::GetEmbeddingRequest { version, ..get("s", "prec-001") };
        let then = ok!(client.get_embedding(with(&["vector"], request))).embedding.unwrap();
        assert_eq!(then.vector, bytes(vector), "version {version}");
    }
    let then = pb::GetEmbeddingRequest {
        consistency: at(&receipt.revision.unwrap()),
        ..get("s", "prec-001")
    };
    assert_eq!(ok!(client.get_embedding(then)).embedding, Some(one));

    // A digest stands in the log for the vector.
    let log = entries(&who, 1).await;
    let target = log[0].target.as_ref().unwrap();
    assert_eq!((target.kind(), log[0].action.as_str()), (pb::ResourceKind::Embedding, "UPDATE"));
    let changes = log[0].changes.as_ref().unwrap().to_struct();
    assert!(changes.fields.contains_key("vector_digest") && !changes.fields.contains_key("vector"));
    world.close().await;
}

#[tokio::test]
async fn what_is_there_is_settled_as_the_caller_asks() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.vectors();
    space(&who, "s", 2, DistanceMetric::L2).await;
    let how = |values: &[f32], how: pb::OnConflict| pb::UpsertEmbeddingRequest {
        options: on_conflict(how),
        ..upsert("s", embedding("e", values))
    };
    use pb::OnConflict::{Fail, Replace, ReturnIfEqual};
    ok!(client.upsert_embedding(how(&[1.0, 2.0], Fail)));
    fails!(client.upsert_embedding(how(&[1.0, 2.0], Fail)), AlreadyExists, "EXISTS");
    assert!(
        ok!(client.upsert_embedding(how(&[1.0, 2.0], ReturnIfEqual))).receipt.unwrap().unchanged
    );
    let other = client.upsert_embedding(how(&[1.0, 2.5], ReturnIfEqual));
    let status = fails!(other, AlreadyExists, "EXISTS_DIFFERENT");
    assert_eq!(info(&status)["fields"], "vector");
    // By the id that callers know.
    assert!(status.message().contains("embedding \"e\""), "{status:?}");
    let two = ok!(client.upsert_embedding(how(&[1.0, 2.5], Replace))).embedding.unwrap();
    assert_eq!(two.meta.unwrap().version, 2);
    // A repeated call happens once, with the first answer.
    let once = pb::UpsertEmbeddingRequest {
        options: Some(request("r-1")),
        ..upsert("s", embedding("e", &[0.0, 0.0]))
    };
    let three = ok!(client.upsert_embedding(once.clone()));
    ok!(client.upsert_embedding(upsert("s", embedding("e", &[9.0, 9.0]))));
    let replay = ok!(client.upsert_embedding(once));
    assert!(replay.receipt.unwrap().replayed);
    assert_eq!(replay.embedding, three.embedding);

    let before = head(&who).await;
    let twice =
        client.batch_upsert_embeddings(batch("s", ["a"; 2].map(|id| embedding(id, &[0.0, 1.0]))));
    let status = fails!(twice, InvalidArgument, "DUPLICATE_IN_BATCH");
    assert_eq!(wrong_fields(&status), ["embeddings[1].id"]);
    fails!(client.batch_upsert_embeddings(batch("s", [])), InvalidArgument, "FIELD_INVALID");
    assert_eq!(head(&who).await, before);
    let some = ["a", "e", "b"].map(|id| embedding(id, &[9.0, 9.0]));
    let made = ok!(client.batch_upsert_embeddings(batch("s", some)));
    assert_eq!(
        (made.embedding_ids, made.written_count),
        (vec!["a".into(), "e".into(), "b".into()], 2)
    );
    assert_eq!(made.receipt.unwrap().audit_seq, before + 2);
    let unnamed = ok!(client.batch_upsert_embeddings(batch("s", [embedding("", &[1.0, 1.0])])));
    ok!(client.get_embedding(get("s", &unnamed.embedding_ids[0])));
    world.close().await;
}

#[tokio::test]
async fn a_vector_that_is_none_of_the_spaces_is_refused() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.vectors();
    space(&who, "s", 3, DistanceMetric::Cosine).await;
    space_of(&who, "half", 3, DistanceMetric::L2, VectorStorage::Float16).await;
    let before = head(&who).await;
    let raw =
        |bytes: Vec<u8>| Some(pb::Vector { data: Some(pb::vector::Data::F32Le(bytes.into())) });
    let good = [1.0, 0.0, 0.0];
    let wrong = [
        ("s", "vector", "DIMENSION_MISMATCH", floats(&[1.0, 2.0])),
        ("s", "vector", "DIMENSION_MISMATCH", floats(&[1.0, 2.0, 3.0, 4.0])),
        ("s", "vector", "DIMENSION_MISMATCH", floats(&[])),
        ("s", "vector.f32_le", "DIMENSION_MISMATCH", raw(vec![0; 13])),
        ("s", "vector", "DIMENSION_MISMATCH", raw(vec![1; 8])),
        ("s", "vector", "VECTOR_INVALID", floats(&[1.0, f32::NAN, 0.0])),
        ("s", "vector", "VECTOR_INVALID", bytes(&[1.0, 0.0, f32::NEG_INFINITY])),
        ("s", "vector", "VECTOR_INVALID", floats(&[3.0e19, 0.0, 0.0])),
        ("s", "vector", "ZERO_VECTOR", floats(&[0.0, -0.0, 0.0])),
        ("s", "vector", "ZERO_VECTOR", floats(&[1.0e-30, 0.0, 0.0])),
        ("half", "vector", "VECTOR_INVALID", floats(&[1.0e30, 0.0, 0.0])),
        ("half", "vector", "VECTOR_INVALID", floats(&[65_520.0, 0.0, 0.0])),
        ("s", "vector", "FIELD_INVALID", None),
        ("s", "vector", "FIELD_INVALID", Some(pb::Vector { data: None })),
    ];
    for (space, field, reason, vector) in wrong {
        let bad = pb::Embedding { vector: vector.clone(), ..embedding("e", &good) };
        let status =
            fails!(client.upsert_embedding(upsert(space, bad.clone())), InvalidArgument, reason);
        assert_eq!(wrong_fields(&status), [format!("embedding.{field}")], "{vector:?}");
        let several = batch(space, [embedding("f", &good), bad]);
        let status = fails!(client.batch_upsert_embeddings(several), InvalidArgument, reason);
        assert_eq!(wrong_fields(&status), [format!("embeddings[1].{field}")], "{vector:?}");
        let Some(vector) = vector.filter(|vector| vector.data.is_some()) else { continue };
        let target = Some(pb::vector_query::Target::Vector(vector));
        let query = pb::VectorQuery { target, ..near(space, &good, 1) };
        let status = fails!(client.search_vectors(search(query)), InvalidArgument, reason);
        assert_eq!(wrong_fields(&status), [format!("query.{field}")]);
    }
    // It says what was expected, and what came.
    let status = fails!(
        client.upsert_embedding(upsert("s", embedding("e", &[1.0]))),
        InvalidArgument,
        "DIMENSION_MISMATCH"
    );
    assert!(status.message().contains("3 dimensions") && status.message().contains("has 1"));
    let other = pb::Embedding { embedding_model: "other".into(), ..embedding("e", &good) };
    let status =
        fails!(client.upsert_embedding(upsert("s", other)), InvalidArgument, "MODEL_MISMATCH");
    assert_eq!(wrong_fields(&status), ["embedding.embedding_model"]);
    assert!(status.message().contains("ada") && status.message().contains("other"), "{status:?}");
    let subject = pb::Embedding {
        subject: Some(pb::ResourceRef { kind: 0, id: "!".into(), version: -1 }),
        ..embedding("e", &good)
    };
    let status =
        fails!(client.upsert_embedding(upsert("s", subject)), InvalidArgument, "FIELD_INVALID");
    let expected = ["kind", "version", "id"].map(|field| format!("embedding.subject.{field}"));
    assert_eq!(wrong_fields(&status), expected);
    let long = embedding(&"x".repeat(219), &good);
    let status =
        fails!(client.upsert_embedding(upsert("s", long)), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["embedding.id"]);
    // A space that is not there.
    fails!(client.upsert_embedding(upsert("x", embedding("e", &good))), NotFound, "NOT_FOUND");
    fails!(client.search_vectors(search(near("x", &good, 1))), NotFound, "NOT_FOUND");
    fails!(client.get_embedding(get("x", "e")), NotFound, "NOT_FOUND");
    let status = fails!(
        client.upsert_embedding(upsert("", embedding("e", &good))),
        InvalidArgument,
        "FIELD_INVALID"
    );
    assert_eq!(wrong_fields(&status), ["vector_space_id"]);
    // Nothing of all that was stored.
    assert_eq!(head(&who).await, before);
    let owner = world.superuser().await;
    let rows = owner.query_one("SELECT count(*) FROM casebook.embedding_vector", &[]).await;
    assert_eq!(rows.unwrap().get::<_, i64>(0), 0);
    drop(owner);
    // The limits themselves are taken, and a zero vector where it has a distance.
    ok!(client.upsert_embedding(upsert("half", embedding("e", &[65_504.0, 0.0, 6.0e-8]))));
    ok!(client.upsert_embedding(upsert("half", embedding("z", &[0.0; 3]))));
    world.close().await;
}

#[tokio::test]
async fn embeddings_go_one_by_one_in_batches_and_with_their_space() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.vectors();
    space(&who, "s", 2, DistanceMetric::L2).await;
    let all = (0..4).map(|n| embedding(&format!("e{n}"), &[n as f32, 0.0]));
    ok!(client.batch_upsert_embeddings(batch("s", all)));
    let status = fails!(
        client.delete_embedding(pb::DeleteEmbeddingRequest {
            etag: "\"0-1\"".into(),
            ..delete("s", "e0")
        }),
        Aborted,
        "ETAG_MISMATCH"
    );
    // By the id that callers know.
    assert!(status.message().contains("\"e0\""), "{status:?}");
    let gone = ok!(client.delete_embedding(delete("s", "e0"))).embedding.unwrap();
    assert!(gone.meta.unwrap().delete_time.is_some());
    let status = fails!(client.delete_embedding(delete("s", "e0")), NotFound, "NOT_FOUND");
    assert!(status.message().contains("\"e0\""), "{status:?}");
    let missing = pb::DeleteEmbeddingRequest { allow_missing: true, ..delete("s", "e0") };
    assert!(ok!(client.delete_embedding(missing)).receipt.unwrap().unchanged);
    let several = |ids: &[&str], allow_missing| pb::BatchDeleteEmbeddingsRequest {
        vector_space_id: "s".into(),
        embedding_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        allow_missing,
        options: None,
    };
    let before = head(&who).await;
    let status = fails!(
        client.batch_delete_embeddings(several(&["e1", "e0"], false)),
        NotFound,
        "NOT_FOUND"
    );
    assert!(status.message().contains("\"e0\""), "{status:?}");
    fails!(client.batch_delete_embeddings(several(&[], true)), InvalidArgument, "FIELD_INVALID");
    let twice = client.batch_delete_embeddings(several(&["e1", "e1"], true));
    fails!(twice, InvalidArgument, "DUPLICATE_IN_BATCH");
    assert_eq!(head(&who).await, before);
    let gone = ok!(client.batch_delete_embeddings(several(&["e1", "e0"], true)));
    assert_eq!((gone.deleted_count, gone.receipt.unwrap().audit_seq), (1, before + 1));
    assert_eq!(ids(&found(&who, near("s", &[0.0, 0.0], 10)).await), ["e2", "e3"]);

    // The space takes all with it at once, and brings all back; another one of its id has nothing of them.
    let space_of = |id: &str| pb::DeleteVectorSpaceRequest {
        vector_space_id: id.into(),
        ..Default::default()
    };
    ok!(who.spaces().delete_vector_space(space_of("s")));
    fails!(client.search_vectors(search(near("s", &[0.0, 0.0], 10))), NotFound, "NOT_FOUND");
    fails!(client.get_embedding(get("s", "e2")), NotFound, "NOT_FOUND");
    space(&who, "s", 2, DistanceMetric::L2).await;
    assert!(found(&who, near("s", &[0.0, 0.0], 10)).await.is_empty());
    ok!(client.upsert_embedding(upsert("s", embedding("e2", &[5.0, 5.0]))));
    assert_eq!(ids(&found(&who, near("s", &[0.0, 0.0], 10)).await), ["e2"]);
    ok!(who.spaces().delete_vector_space(space_of("s")));
    let back = pb::UndeleteVectorSpaceRequest { vector_space_id: "s".into(), options: None };
    ok!(who.spaces().undelete_vector_space(back));
    assert_eq!(ids(&found(&who, near("s", &[0.0, 0.0], 10)).await), ["e2"]);
    world.close().await;
}

#[tokio::test]
async fn a_tenant_finds_its_own_and_nothing_else() {
    let world = World::new().await;
    world.tenant("other").await;
    let (who, other) = (world.anonymous(), world.as_tenant("other"));
    for (who, id) in [(&who, "mine"), (&other, "theirs")] {
        space(who, "s", 2, DistanceMetric::Cosine).await;
        // The very same vector.
        ok!(who.vectors().upsert_embedding(upsert("s", embedding(id, &[1.0, 1.0]))));
    }
    assert_eq!(ids(&found(&who, near("s", &[1.0, 1.0], 10)).await), ["mine"]);
    assert_eq!(ids(&found(&other, near("s", &[1.0, 1.0], 10)).await), ["theirs"]);
    fails!(other.vectors().get_embedding(get("s", "mine")), NotFound, "NOT_FOUND");
    fails!(other.vectors().delete_embedding(delete("s", "mine")), NotFound, "NOT_FOUND");
    // Of a space, too, nothing is seen of another.
    space(&who, "t", 2, DistanceMetric::Cosine).await;
    assert!(found(&who, near("t", &[1.0, 1.0], 10)).await.is_empty());
    fails!(who.vectors().get_embedding(get("t", "mine")), NotFound, "NOT_FOUND");
    world.close().await;
}

#[tokio::test]
async fn a_purged_embedding_takes_its_vectors_along() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.vectors();
    space(&who, "s", 2, DistanceMetric::L2).await;
    // Two versions of one, and another one that had and has both vectors.
    for id in ["a", "b"] {
        for value in [1.0, 2.0] {
            ok!(client.upsert_embedding(upsert("s", embedding(id, &[value, value]))));
        }
    }
    let b = ok!(client.get_embedding(get("s", "b"))).embedding.unwrap();
    ok!(client.delete_embedding(delete("s", "a")));
    let owner = world.superuser().await;
    let vectors =
        "SELECT array_agg(vector::text ORDER BY vector::text) FROM casebook.embedding_vector";
    let vectors = async || owner.query_one(vectors, &[]).await.unwrap().get::<_, Vec<String>>(0);
    assert_eq!(vectors().await, ["[1,1]", "[1,1]", "[2,2]", "[2,2]"]);
    let purged = ok!(who.retention().purge_resources(pb::PurgeResourcesRequest {
        kind: pb::ResourceKind::Embedding.into(),
        max_resources: 1000,
        ..Default::default()
    }));
    assert_eq!(purged.purged_count, 1);
    assert_eq!(vectors().await, ["[1,1]", "[2,2]"]);
    assert_eq!(ids(&found(&who, near("s", &[0.0, 0.0], 10)).await), ["b"]);
    let first = pb::GetEmbeddingRequest { version: 1, read_mask: mask(&["*"]), ..get("s", "b") };
    let first = ok!(client.get_embedding(first)).embedding.unwrap();
    assert_eq!((first.vector, first.meta.unwrap().uid), (bytes(&[1.0, 1.0]), b.meta.unwrap().uid));
    let spaces = pb::PurgeResourcesRequest {
        kind: pb::ResourceKind::VectorSpace.into(),
        max_resources: 1000,
        ..Default::default()
    };
    fails!(who.retention().purge_resources(spaces), InvalidArgument, "FIELD_INVALID");
    drop(owner);
    world.close().await;
}

/// What is written while others are purged is there whole: 8 callers write and delete the same few vectors, and another
/// purges all the time.
#[tokio::test]
async fn no_embedding_is_left_without_its_vector() {
    let world = World::new().await;
    let who = world.anonymous();
    space(&who, "s", 2, DistanceMetric::L2).await;
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..8_usize {
        let mut client = who.vectors();
        callers.spawn(async move {
            for step in 0..40_usize {
                let id = format!("e{caller}");
                let value = ((caller + step) % 3) as f32;
                ok!(client.upsert_embedding(upsert("s", embedding(&id, &[value, 1.0]))));
                ok!(client.delete_embedding(delete("s", &id)));
                ok!(client.upsert_embedding(upsert("s", embedding(&id, &[value, 1.0]))));
            }
        });
    }
    let purger = {
        let mut client = who.retention();
        tokio::spawn(async move {
            let mut purged = 0;
            loop {
                let request = pb::PurgeResourcesRequest {
                    kind: pb::ResourceKind::Embedding.into(),
                    max_resources: 1000,
                    ..Default::default()
                };
                purged += ok!(client.purge_resources(request)).purged_count;
                if purged >= 300 {
                    return purged;
                }
            }
        })
    };
    while let Some(ended) = callers.join_next().await {
        ended.expect("a caller");
    }
    assert!(purger.await.expect("the purger") >= 300);
    let hits = found(&who, near("s", &[0.0, 0.0], 100)).await;
    assert_eq!(hits.len(), 8);
    world.close().await;
}

/// Whatever a name stands for by then, a repeated call gives the first answer.
#[tokio::test]
async fn a_repeated_call_outlives_the_name_of_its_space() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.vectors();
    space(&who, "old", 2, DistanceMetric::L2).await;
    space(&who, "new", 3, DistanceMetric::L2).await;
    let point = async |id: &str| {
        ok!(who.spaces().set_vector_space_alias(pb::SetVectorSpaceAliasRequest {
            alias: "live".into(),
            vector_space_id: id.into(),
            options: None,
        }));
    };
    point("old").await;
    let some = ["b", "a"].map(|id| embedding(id, &[1.0, 2.0]));
    let write = pb::BatchUpsertEmbeddingsRequest {
        options: Some(request("write")),
        ..batch("live", some.clone())
    };
    let written = ok!(client.batch_upsert_embeddings(write.clone()));
    let equal =
        pb::BatchUpsertEmbeddingsRequest { options: Some(request("equal")), ..batch("live", some) };
    let unchanged = ok!(client.batch_upsert_embeddings(equal.clone()));
    assert_eq!((written.written_count, unchanged.written_count), (2, 0));
    let remove =
        pb::DeleteEmbeddingRequest { options: Some(request("remove")), ..delete("live", "a") };
    let removed = ok!(client.delete_embedding(remove.clone())).embedding;
    assert!(removed.is_some());
    for gone in [false, true] {
        // First it is another space's, whose vectors are longer; then nobody's.
        if gone {
            for id in ["old", "new"] {
                ok!(who.spaces().delete_vector_space(pb::DeleteVectorSpaceRequest {
                    vector_space_id: id.into(),
                    ..Default::default()
                }));
            }
        } else {
            point("new").await;
        }
        let replay = ok!(client.batch_upsert_embeddings(write.clone()));
        assert!(replay.receipt.unwrap().replayed);
        assert_eq!(replay.embedding_ids, ["b", "a"]);
        assert_eq!(replay.written_count, 2);
        let replay = ok!(client.batch_upsert_embeddings(equal.clone()));
        assert_eq!((replay.written_count, replay.embedding_ids), (0, vec!["b".into(), "a".into()]));
        assert_eq!(ok!(client.delete_embedding(remove.clone())).embedding, removed);
        // Another request under the same id is refused all the same.
        let other = pb::BatchUpsertEmbeddingsRequest {
            options: Some(request("write")),
            ..batch("live", [embedding("c", &[1.0, 2.0])])
        };
        fails!(client.batch_upsert_embeddings(other), InvalidArgument, "REQUEST_ID_REUSED");
    }
    // A rehearsal is no repetition, whatever id it has.
    space(&who, "live", 3, DistanceMetric::L2).await;
    let rehearsal = pb::BatchUpsertEmbeddingsRequest {
        options: Some(pb::WriteOptions { validate_only: true, ..request("write") }),
        ..write
    };
    fails!(client.batch_upsert_embeddings(rehearsal), InvalidArgument, "DIMENSION_MISMATCH");
    ok!(who.spaces().delete_vector_space(pb::DeleteVectorSpaceRequest {
        vector_space_id: "live".into(),
        ..Default::default()
    }));
    let fresh =
        pb::DeleteEmbeddingRequest { options: Some(request("fresh")), ..delete("live", "a") };
    fails!(client.delete_embedding(fresh), NotFound, "NOT_FOUND");
    world.close().await;
}

/// A hold names an embedding by its space's uid and its id, and keeps it from every deletion.
#[tokio::test]
async fn what_is_held_stays_and_what_is_referred_to_must_be_there() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.vectors();
    space(&who, "s", 2, DistanceMetric::L2).await;
    ok!(client.upsert_embedding(upsert("s", embedding("e", &[1.0, 2.0]))));
    let uid = ok!(who.spaces().get_vector_space(pb::GetVectorSpaceRequest {
        vector_space_id: "s".into(),
        ..Default::default()
    }));
    let uid = uid.vector_space.unwrap().meta.unwrap().uid;
    let hold = |id: &str| pb::CreateLegalHoldRequest {
        legal_hold_id: "h".into(),
        legal_hold: Some(pb::LegalHold {
            reason: "a lawsuit".into(),
            refs: vec![reference(pb::ResourceKind::Embedding, id, 0)],
            ..Default::default()
        }),
        options: None,
    };
    let status =
        fails!(who.retention().create_legal_hold(hold("e")), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["legal_hold.refs[0].id"]);
    ok!(who.retention().create_legal_hold(hold(&format!("{uid}/e"))));
    let status = fails!(client.delete_embedding(delete("s", "e")), FailedPrecondition, "ON_HOLD");
    assert!(status.message().contains("embedding \"e\""), "{status:?}");
    let gone =
        || pb::DeleteVectorSpaceRequest { vector_space_id: "s".into(), ..Default::default() };
    fails!(who.spaces().delete_vector_space(gone()), FailedPrecondition, "ON_HOLD");
    ok!(who.retention().release_legal_hold(pb::ReleaseLegalHoldRequest {
        legal_hold_id: "h".into(),
        reason: "settled".into(),
        options: None,
    }));
    // The audit log knows it by the same id.
    let asked = |id: &str| pb::ListAuditEntriesRequest {
        target: Some(reference(pb::ResourceKind::Embedding, id, 0)),
        ..Default::default()
    };
    let full = format!("{uid}/e");
    assert_eq!(ok!(who.audit().list_audit_entries(asked(&full))).entries.len(), 1);
    fails!(who.audit().list_audit_entries(asked("e")), InvalidArgument, "FIELD_INVALID");
    ok!(who.spaces().delete_vector_space(gone()));

    // Where a tenant is strict, so are embeddings.
    ok!(world.as_tenant("system").tenants().create_tenant(pb::CreateTenantRequest {
        tenant_id: "strict".into(),
        tenant: Some(pb::Tenant { strict_references: true, ..Default::default() }),
        options: None,
    }));
    let strict = world.as_tenant("strict");
    space(&strict, "s", 2, DistanceMetric::L2).await;
    let of = pb::Embedding { decision_id: "no".into(), ..embedding("e", &[1.0, 2.0]) };
    let status = fails!(
        strict.vectors().upsert_embedding(upsert("s", of)),
        FailedPrecondition,
        "REFERENCE_MISSING"
    );
    assert_eq!(info(&status)["field"], "decision_id");
    let of = pb::Embedding {
        subject: Some(reference(pb::ResourceKind::Claim, "no", 0)),
        ..embedding("e", &[1.0, 2.0])
    };
    let status = fails!(
        strict.vectors().upsert_embedding(upsert("s", of)),
        FailedPrecondition,
        "REFERENCE_MISSING"
    );
    assert_eq!(info(&status)["field"], "subject.id");
    ok!(strict.vectors().upsert_embedding(upsert("s", embedding("e", &[1.0, 2.0]))));
    world.close().await;
}

/// A space that goes while a write waits takes the write along, whether the write looks first or goes unseen.
#[tokio::test]
async fn nothing_comes_into_a_space_that_was_just_deleted() {
    let world = World::new().await;
    let who = world.anonymous();
    let owner = world.superuser().await;
    for goes_unseen in [false, true] {
        space(&who, "s", 2, DistanceMetric::L2).await;
        if goes_unseen {
            ok!(who.vectors().upsert_embedding(upsert("s", embedding("first", &[1.0, 2.0]))));
        }
        let before = head(&who).await;
        // As another server does it, between this one's look at the space and its write.
        owner
            .batch_execute(
                "BEGIN; SELECT FROM casebook.vector_space WHERE delete_time IS NULL FOR UPDATE; \
             UPDATE casebook.vector_space SET delete_time = now() WHERE delete_time IS NULL",
            )
            .await
            .unwrap();
        let mut client = who.vectors();
        let write = tokio::spawn(async move {
            client.upsert_embedding(upsert("s", embedding("e", &[1.0, 2.0]))).await
        });
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                       AND wait_event_type = 'Lock'";
        for _ in 0..600 {
            let waiting = owner.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0);
            if waiting > 0 || write.is_finished() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        owner.batch_execute("COMMIT").await.unwrap();
        let status = write.await.expect("a call").expect_err("the space is gone");
        assert_eq!(status.code(), tonic::Code::NotFound, "{status:?}");
        assert!(status.message().contains("vector_space \"s\""), "{status:?}");
        assert_eq!(head(&who).await, before);
    }
    drop(owner);
    world.close().await;
}
