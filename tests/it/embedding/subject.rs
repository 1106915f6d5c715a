//! Embeddings go with what they are of, and come back with it (F434, F504, C15).

use super::*;
use crate::precedent::{record, remove, restore, small};
use crate::transaction::execute;
use pb::ResourceKind;
use pb::execute_transaction_request::operation::Operation;
use pb::vector_index::{Codes, Method};

/// An embedding of something, at a place of its own.
fn of(kind: ResourceKind, id: &str, embedding_id: &str, place: f32) -> pb::Embedding {
    let subject = Some(reference(kind, id, 0));
    pb::Embedding { subject, ..embedding(embedding_id, &[place, 0.0]) }
}

async fn all(who: &As) -> Vec<String> {
    let hits = found(who, near("s", &[0.0, 0.0], 100)).await;
    hits.into_iter().map(|hit| hit.embedding.unwrap().id).collect()
}

fn gone(id: &str) -> pb::DeleteDocumentRequest {
    pb::DeleteDocumentRequest { document_id: id.into(), ..Default::default() }
}

fn back(id: &str) -> pb::UndeleteDocumentRequest {
    pb::UndeleteDocumentRequest { document_id: id.into(), ..Default::default() }
}

/// A document with an analysis and two chunks, a precedent and a decision, each with an embedding; and one of what is not
/// recorded.
async fn filled() -> (World, As) {
    let world =
        World::with(&[("index_upkeep_interval_ms", "30"), ("index_probe_interval_ms", "0")]).await;
    let who = world.anonymous();
    space(&who, "s", 2, DistanceMetric::L2).await;
    ok!(who.documents().create_document(file("doc")));
    ok!(who.documents().create_analysis(analyse("a", "doc")));
    let given =
        ["c0", "c1"].into_iter().zip(0..).map(|(id, n)| pb::Chunk { id: id.into(), ..chunk(n) });
    ok!(who.documents().batch_create_chunks(chunks("doc", given.collect::<Vec<_>>())));
    ok!(who.precedents().create_precedent(record("p", small())));
    ok!(who
        .decisions()
        .create_decision(crate::world::create("d", crate::world::decision("ALLOW", 0.5))));
    ok!(who.vectors().batch_upsert_embeddings(batch(
        "s",
        [
            of(ResourceKind::Document, "doc", "of-doc", 1.0),
            of(ResourceKind::Analysis, "a", "of-a", 2.0),
            of(ResourceKind::Chunk, "c0", "of-c0", 3.0),
            of(ResourceKind::Chunk, "c1", "of-c1", 4.0),
            of(ResourceKind::Precedent, "p", "of-p", 5.0),
            of(ResourceKind::Decision, "d", "of-d", 6.0),
            of(ResourceKind::Precedent, "unknown", "of-unknown", 7.0),
        ],
    )));
    (world, who)
}

#[tokio::test]
async fn embeddings_go_with_their_subject_and_come_back_with_it() {
    let (world, who) = filled().await;
    let everything = ["of-doc", "of-a", "of-c0", "of-c1", "of-p", "of-d", "of-unknown"];
    assert_eq!(all(&who).await, everything);
    let before =
        ok!(who.vectors().search_vectors(search(near("s", &[0.0, 0.0], 100)))).read_at.unwrap();
    // One that was deleted by itself stays deleted.
    ok!(who
        .vectors()
        .upsert_embedding(upsert("s", of(ResourceKind::Document, "doc", "alone", 0.5))));
    ok!(who.vectors().delete_embedding(delete("s", "alone")));
    ok!(who.documents().delete_document(gone("doc")));
    assert_eq!(all(&who).await, ["of-p", "of-d", "of-unknown"]);
    fails!(who.vectors().get_embedding(get("s", "of-c1")), NotFound, "NOT_FOUND");
    let then = pb::SearchVectorsRequest {
        consistency: at(&before),
        ..search(near("s", &[0.0, 0.0], 100))
    };
    assert_eq!(ids(&ok!(who.vectors().search_vectors(then)).hits), everything);
    let log = entries(&who, 20).await;
    let deleted = log.iter().filter(|entry| entry.action == "DELETE");
    let embeddings =
        deleted.filter(|e| e.target.as_ref().unwrap().kind() == ResourceKind::Embedding);
    assert_eq!(embeddings.count(), 5);
    ok!(who.precedents().delete_precedent(remove("p")));
    ok!(who.decisions().delete_decision(crate::help::delete("d")));
    assert_eq!(all(&who).await, ["of-unknown"]);

    // What takes an id meanwhile stays.
    ok!(who.vectors().upsert_embedding(upsert("s", embedding("of-c1", &[8.0, 0.0]))));
    ok!(who.documents().undelete_document(back("doc")));
    ok!(who.precedents().undelete_precedent(restore("p")));
    ok!(who.decisions().undelete_decision(crate::help::undelete("d")));
    assert_eq!(all(&who).await, ["of-doc", "of-a", "of-c0", "of-p", "of-d", "of-unknown", "of-c1"]);
    let back = ok!(who.vectors().get_embedding(get("s", "of-c0"))).embedding.unwrap();
    assert_eq!(back.meta.unwrap().version, 3);
    world.close().await;
}

/// One by one, cut off, and replaced by another in its place.
#[tokio::test]
async fn embeddings_go_with_a_chunk_however_it_goes() {
    let (world, who) = filled().await;
    let of_chunks = async || -> Vec<String> {
        all(&who).await.into_iter().filter(|id| id.starts_with("of-c")).collect()
    };
    let replace = |given: Vec<pb::Chunk>, from: Option<i32>| pb::BatchCreateChunksRequest {
        options: on_conflict(pb::OnConflict::Replace),
        delete_from_index: from,
        ..chunks("doc", given)
    };
    // Another chunk in its place, with an embedding of the same id.
    let other = pb::Chunk {
        id: "c9".into(),
        embeddings: vec![pb::Embedding {
            vector_space_id: "s".into(),
            ..embedding("of-c1", &[4.5, 0.0])
        }],
        ..chunk(1)
    };
    ok!(who.documents().batch_create_chunks(replace(vec![other], None)));
    assert_eq!(of_chunks().await, ["of-c0", "of-c1"]);
    let now = ok!(who.vectors().get_embedding(get("s", "of-c1"))).embedding.unwrap();
    assert_eq!((now.subject.unwrap().id.as_str(), now.meta.unwrap().version), ("c9", 1));
    // An id that changes its place is still there.
    ok!(who
        .documents()
        .batch_create_chunks(replace(vec![pb::Chunk { id: "c9".into(), ..chunk(2) }], Some(1))));
    assert_eq!(of_chunks().await, ["of-c0", "of-c1"]);
    let first = pb::Chunk { id: "c0".into(), ..chunk(0) };
    ok!(who.documents().batch_create_chunks(replace(vec![first], Some(1))));
    assert_eq!(of_chunks().await, ["of-c0"]);
    ok!(who
        .documents()
        .delete_chunk(pb::DeleteChunkRequest { chunk_id: "c0".into(), ..Default::default() }));
    assert!(of_chunks().await.is_empty());
    world.close().await;
}

/// Whatever keeps an embedding keeps what it is of, and what that is part of.
#[tokio::test]
async fn a_hold_on_an_embedding_keeps_its_subject() {
    let (world, who) = filled().await;
    let space = pb::GetVectorSpaceRequest { vector_space_id: "s".into(), ..Default::default() };
    let uid = ok!(who.spaces().get_vector_space(space)).vector_space.unwrap().meta.unwrap().uid;
    ok!(who.retention().create_legal_hold(pb::CreateLegalHoldRequest {
        legal_hold_id: "h".into(),
        legal_hold: Some(pb::LegalHold {
            reason: "a lawsuit".into(),
            refs: vec![reference(ResourceKind::Embedding, &format!("{uid}/of-c0"), 0)],
            ..Default::default()
        }),
        options: None,
    }));
    let chunk = || pb::DeleteChunkRequest { chunk_id: "c0".into(), ..Default::default() };
    fails!(who.documents().delete_document(gone("doc")), FailedPrecondition, "ON_HOLD");
    fails!(who.documents().delete_chunk(chunk()), FailedPrecondition, "ON_HOLD");
    let cut = pb::BatchCreateChunksRequest {
        options: on_conflict(pb::OnConflict::Replace),
        delete_from_index: Some(0),
        ..chunks("doc", [pb::Chunk { id: "c8".into(), ..crate::help::chunk(5) }])
    };
    fails!(who.documents().batch_create_chunks(cut), FailedPrecondition, "ON_HOLD");
    assert_eq!(all(&who).await.len(), 7);
    ok!(who.retention().release_legal_hold(pb::ReleaseLegalHoldRequest {
        legal_hold_id: "h".into(),
        reason: "settled".into(),
        options: None,
    }));
    ok!(who.documents().delete_document(gone("doc")));
    assert_eq!(all(&who).await.len(), 3);
    world.close().await;
}

/// Also where an index has let go of their vectors meanwhile, and in the order of the calls of a transaction.
#[tokio::test]
async fn what_comes_back_is_found_by_an_index() {
    let (world, who) = filled().await;
    ok!(who.spaces().build_vector_index(pb::BuildVectorIndexRequest {
        vector_space_id: "s".into(),
        index: Some(pb::VectorIndex {
            method: Method::Hnsw.into(),
            codes: Codes::Float32.into(),
            ..Default::default()
        }),
        options: None,
    }));
    let by_index = async || -> Vec<String> {
        for _ in 0..600 {
            let answer = ok!(who.vectors().search_vectors(search(near("s", &[0.0, 0.0], 4))));
            if answer.method() == pb::SearchMethod::Hnsw {
                return ids(&answer.hits).into_iter().map(str::to_owned).collect();
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("it is not searched by the index");
    };
    assert_eq!(by_index().await, ["of-doc", "of-a", "of-c0", "of-c1"]);
    ok!(who.precedents().delete_precedent(remove("p")));
    ok!(who
        .documents()
        .delete_chunk(pb::DeleteChunkRequest { chunk_id: "c0".into(), ..Default::default() }));
    let owner = world.superuser().await;
    let sweep = "SET casebook.tenant = 'default'; SELECT s.* FROM casebook.vector_index AS i, \
                 LATERAL wall.sweep_vector_index(i.uid, '00000000-0000-0000-0000-000000000000', '', 1000) AS s";
    owner.batch_execute(sweep).await.unwrap();
    assert_eq!(by_index().await, ["of-doc", "of-a", "of-c1", "of-d"]);
    ok!(who.precedents().undelete_precedent(restore("p")));
    assert_eq!(by_index().await, ["of-doc", "of-a", "of-c1", "of-p"]);
    ok!(who.transactions().execute_transaction(execute(vec![
        Operation::UpsertEmbedding(upsert("s", of(ResourceKind::Precedent, "p", "more", 0.1))),
        Operation::DeletePrecedent(remove("p")),
        Operation::UpsertEmbedding(upsert("s", of(ResourceKind::Precedent, "p", "later", 0.2))),
    ])));
    assert_eq!(by_index().await, ["later", "of-doc", "of-a", "of-c1"]);
    drop(owner);
    world.close().await;
}

/// Critic outputs have ids of their decision's, and an embedding names what it is of by the id alone.
#[tokio::test]
async fn an_embedding_of_a_critic_output_stays() {
    let (world, who) = filled().await;
    for id in ["d-1", "d-2"] {
        let decision = pb::Decision {
            critic_outputs: vec![critic("ethics", "ethics", "ALLOW", 0.5)],
            ..crate::world::decision("ALLOW", 0.5)
        };
        ok!(who.decisions().create_decision(crate::world::create(id, decision)));
    }
    let given = of(ResourceKind::CriticOutput, "ethics", "of-ethics", 9.0);
    ok!(who.vectors().upsert_embedding(upsert("s", given)));
    ok!(who.decisions().delete_decision(crate::help::delete("d-1")));
    assert_eq!(all(&who).await.last().unwrap(), "of-ethics");
    world.close().await;
}

/// What takes embeddings along and what writes them meet in batches, where the log must tell them in the order in which
/// they were done.
#[tokio::test]
async fn what_goes_and_what_is_written_at_once_stand_in_order() {
    let (world, who) = filled().await;
    let mut calls = Vec::new();
    for round in 0..40 {
        for (n, id) in ["doc", "doc2", "doc3", "doc4"].into_iter().enumerate() {
            let (who, kind) = (who.clone(), ResourceKind::Document);
            let given = of(kind, id, &format!("of-{id}"), 10.0 + round as f32);
            calls.push(tokio::spawn(async move {
                // Whatever becomes of each: others are faster or slower.
                match (round + n) % 4 {
                    0 => drop(who.documents().create_document(file(id)).await),
                    1 => drop(who.documents().delete_document(gone(id)).await),
                    2 => drop(who.documents().undelete_document(back(id)).await),
                    _ => drop(who.vectors().upsert_embedding(upsert("s", given)).await),
                }
            }));
        }
    }
    for call in calls {
        call.await.unwrap();
    }
    let owner = world.superuser().await;
    let disorder = "SELECT count(*) FROM (SELECT version, row_number() OVER (PARTITION BY uid ORDER BY seq) AS place \
                    FROM casebook.log WHERE kind = 'embedding') AS l WHERE version <> place";
    let count: i64 = owner.query_one(disorder, &[]).await.unwrap().get(0);
    assert_eq!(count, 0);
    let many = "SELECT count(*) FROM casebook.log WHERE kind = 'embedding' AND action IN ('DELETE', 'UNDELETE')";
    let count: i64 = owner.query_one(many, &[]).await.unwrap().get(0);
    assert!(count > 0, "nothing was taken along");
    drop(owner);
    world.close().await;
}
