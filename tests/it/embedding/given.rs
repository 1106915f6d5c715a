//! Embeddings that come with what they are of, in one transaction: C15, F507, F540.

use super::*;
use crate::feed::messages;
use crate::transaction::execute;
use crate::world::{create, decision};
use pb::execute_transaction_request::operation::Operation;
use tonic::Code;

/// An embedding for the space, as it is given with its record.
fn given(space: &str, id: &str, values: &[f32]) -> pb::Embedding {
    pb::Embedding { vector_space_id: space.into(), ..embedding(id, values) }
}

/// The nth chunk, with its id and embeddings.
fn with(n: i32, id: &str, embeddings: impl Into<Vec<pb::Embedding>>) -> pb::Chunk {
    pb::Chunk { id: id.into(), embeddings: embeddings.into(), ..chunk(n) }
}

async fn world_with_spaces() -> (World, As) {
    let world = World::new().await;
    let who = world.anonymous();
    space(&who, "s", 2, DistanceMetric::L2).await;
    space_of(&who, "half", 3, DistanceMetric::Cosine, VectorStorage::Float16).await;
    ok!(who.documents().create_document(file("doc")));
    (world, who)
}

/// The one that stands at a vector: its id, and the kind and id of what it is of.
async fn at_vector(who: &As, space: &str, values: &[f32]) -> (String, pb::ResourceKind, String) {
    let hits = found(who, near(space, values, 1)).await;
    let embedding = hits.into_iter().next().expect("a hit").embedding.unwrap();
    let subject = embedding.subject.expect("a subject");
    (embedding.id, subject.kind(), subject.id)
}

/// The kinds, ids and actions of the entries behind a log number, oldest first; embeddings by their own ids.
async fn logged(who: &As, since: i64) -> Vec<String> {
    let mut log: Vec<_> = entries(who, 100).await.into_iter().filter(|e| e.seq > since).collect();
    log.reverse();
    let line = |entry: pb::AuditEntry| {
        let target = entry.target.unwrap();
        let id = target.id.split_once('/').map_or(target.id.as_str(), |(_, own)| own).to_owned();
        format!("{} {:?} {id}", entry.action, target.kind())
    };
    log.into_iter().map(line).collect()
}

async fn chunk_ids(who: &As) -> Vec<String> {
    let request = pb::ListChunksRequest { document_id: "-".into(), ..Default::default() };
    ok!(who.documents().list_chunks(request)).chunks.into_iter().map(|chunk| chunk.id).collect()
}

#[tokio::test]
async fn chunks_come_with_their_embeddings() {
    let (world, who) = world_with_spaces().await;
    let before = head(&who).await;
    let batch = chunks(
        "doc",
        [
            with(0, "c-0", [given("s", "", &[1.0, 1.0]), given("half", "", &[1.0, 2.0, 3.0])]),
            with(1, "", [given("s", "named", &[2.0, 2.0])]),
            with(2, "c-2", []),
            with(3, "", [given("s", "", &[3.0, 3.0])]),
        ],
    );
    let made = ok!(who.documents().batch_create_chunks(batch));
    assert_eq!(made.total_chunks, 4);
    let id = |n: usize| made.chunk_ids[n].clone();
    use pb::ResourceKind::Chunk;
    assert_eq!(at_vector(&who, "s", &[1.0, 1.0]).await, ("c-0".into(), Chunk, "c-0".into()));
    let half = at_vector(&who, "half", &[1.0, 2.0, 3.0]).await;
    assert_eq!(half, ("c-0".into(), Chunk, "c-0".into()));
    assert_eq!(at_vector(&who, "s", &[2.0, 2.0]).await, ("named".into(), Chunk, id(1)));
    assert_eq!(at_vector(&who, "s", &[3.0, 3.0]).await, (id(3), Chunk, id(3)));
    let expected = [
        "CREATE Chunk c-0".to_owned(),
        format!("CREATE Chunk {}", id(1)),
        "CREATE Chunk c-2".to_owned(),
        format!("CREATE Chunk {}", id(3)),
        "INGEST Document doc".to_owned(),
        "CREATE Embedding c-0".to_owned(),
        "CREATE Embedding c-0".to_owned(),
        "CREATE Embedding named".to_owned(),
        format!("CREATE Embedding {}", id(3)),
    ];
    assert_eq!(logged(&who, before).await, expected, "one entry each, and no more");
    assert_eq!(made.receipt.unwrap().audit_seq, before + 9);
    // A chunk is read without them.
    let there = ok!(who
        .documents()
        .get_chunk(pb::GetChunkRequest { chunk_id: "c-0".into(), ..Default::default() }));
    assert!(there.chunk.unwrap().embeddings.is_empty());
    world.close().await;
}

#[tokio::test]
async fn an_embedding_that_is_wrong_takes_its_record_along() {
    let (world, who) = world_with_spaces().await;
    ok!(who.vectors().upsert_embedding(upsert("s", embedding("taken", &[9.0, 9.0]))));
    let before = head(&who).await;
    let of = |bad: pb::Embedding| {
        let good = given("s", "", &[1.0, 1.0]);
        chunks("doc", [with(0, "c-0", [good.clone()]), with(1, "c-1", [good, bad])])
    };
    let subject = Some(reference(pb::ResourceKind::Chunk, "c-1", 0));
    let wrong: [(pb::Embedding, &str, &str); 8] = [
        (given("s", "x", &[1.0]), "DIMENSION_MISMATCH", "vector"),
        (given("s", "x", &[f32::NAN, 1.0]), "VECTOR_INVALID", "vector"),
        (given("half", "x", &[0.0; 3]), "ZERO_VECTOR", "vector"),
        (pb::Embedding { vector: None, ..given("s", "x", &[]) }, "FIELD_INVALID", "vector"),
        (given("", "x", &[1.0, 1.0]), "FIELD_INVALID", "vector_space_id"),
        (pb::Embedding { subject, ..given("s", "x", &[1.0, 1.0]) }, "FIELD_INVALID", "subject"),
        (
            pb::Embedding { embedding_model: "other".into(), ..given("s", "x", &[1.0, 1.0]) },
            "MODEL_MISMATCH",
            "embedding_model",
        ),
        (given("s", "c-0", &[1.0, 1.0]), "DUPLICATE_IN_BATCH", "id"),
    ];
    for (bad, reason, field) in wrong {
        let status =
            fails!(who.documents().batch_create_chunks(of(bad.clone())), InvalidArgument, reason);
        assert_eq!(wrong_fields(&status), [format!("chunks[1].embeddings[1].{field}")]);
        if reason == "DUPLICATE_IN_BATCH" {
            continue;
        }
        let create = pb::CreatePrecedentRequest {
            embeddings: vec![bad],
            ..crate::precedent::record("p", crate::precedent::small())
        };
        let status =
            fails!(who.precedents().create_precedent(create.clone()), InvalidArgument, reason);
        assert_eq!(wrong_fields(&status), [format!("embeddings[0].{field}")]);
        let several = pb::BatchCreatePrecedentsRequest { requests: vec![create], options: None };
        let status =
            fails!(who.precedents().batch_create_precedents(several), InvalidArgument, reason);
        assert_eq!(wrong_fields(&status), [format!("requests[0].embeddings[0].{field}")]);
    }
    let nowhere = of(given("nowhere", "", &[1.0, 1.0]));
    let status = fails!(who.documents().batch_create_chunks(nowhere), NotFound, "NOT_FOUND");
    assert!(status.message().contains("vector_space \"nowhere\""), "{status:?}");
    let status = fails!(
        who.documents().batch_create_chunks(of(given("s", "taken", &[9.0, 9.0]))),
        AlreadyExists,
        "EXISTS"
    );
    assert!(status.message().contains("embedding \"taken\""), "{status:?}");
    for embedding in [given("nowhere", "", &[1.0, 1.0]), given("s", "taken", &[9.0, 9.0])] {
        let create = pb::CreatePrecedentRequest {
            embeddings: vec![embedding],
            ..crate::precedent::record("p", crate::precedent::small())
        };
        let status = who.precedents().create_precedent(create).await.expect_err("refused");
        assert!(matches!(status.code(), Code::NotFound | Code::AlreadyExists), "{status:?}");
    }
    let many = (0..101).map(|n| with(n, "", [given(&format!("s-{n}"), "", &[1.0, 1.0])]));
    let status = fails!(
        who.documents().batch_create_chunks(chunks("doc", many)),
        InvalidArgument,
        "FIELD_INVALID"
    );
    assert!(status.message().contains("at most 100 spaces, and names 101"), "{status:?}");
    // An id that only fits its record.
    let long = "x".repeat(219);
    let of_long = chunks("doc", [with(0, &long, [given("s", "", &[1.0, 1.0])])]);
    let status =
        fails!(who.documents().batch_create_chunks(of_long), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["chunks[0].embeddings[0].id"]);
    assert_eq!(head(&who).await, before, "nothing of all that was written");
    assert!(chunk_ids(&who).await.is_empty());
    // An update brings none.
    ok!(who.documents().batch_create_chunks(chunks("doc", [chunk(0)])));
    let chunk_id = chunk_ids(&who).await.remove(0);
    let status = fails!(
        who.documents().update_chunk(pb::UpdateChunkRequest {
            chunk: Some(with(0, &chunk_id, [given("s", "", &[1.0, 1.0])])),
            update_mask: mask(&["text"]),
            options: None,
        }),
        InvalidArgument,
        "FIELD_INVALID"
    );
    assert_eq!(wrong_fields(&status), ["chunk.embeddings"]);
    world.close().await;
}

/// What is there is settled for embeddings as for their chunks; where those keep their ids, so do their embeddings.
#[tokio::test]
async fn chunks_that_are_there_keep_their_embeddings_ids() {
    let (world, who) = world_with_spaces().await;
    let write = |how: pb::OnConflict, id: &str, x: f32| pb::BatchCreateChunksRequest {
        options: on_conflict(how),
        ..chunks("doc", [with(0, id, [given("s", "", &[x, 0.0])]), chunk(1)])
    };
    use pb::OnConflict::{Fail, Replace, ReturnIfEqual};
    let first = ok!(who.documents().batch_create_chunks(write(Fail, "", 1.0)));
    let id = first.chunk_ids[0].clone();
    for (how, written) in [(ReturnIfEqual, 0), (Replace, 0)] {
        let before = head(&who).await;
        let same = ok!(who.documents().batch_create_chunks(write(how, "", 1.0)));
        assert_eq!(same.chunk_ids, first.chunk_ids);
        assert_eq!(same.receipt.unwrap().unchanged, written == 0);
        assert_eq!(head(&who).await, before);
    }
    let before = head(&who).await;
    let other = write(ReturnIfEqual, "", 2.0);
    let status =
        fails!(who.documents().batch_create_chunks(other), AlreadyExists, "EXISTS_DIFFERENT");
    assert!(status.message().contains(&format!("embedding \"{id}\"")), "{status:?}");
    fails!(who.documents().batch_create_chunks(write(Fail, "", 2.0)), AlreadyExists, "EXISTS");
    assert_eq!(head(&who).await, before);
    let replaced = ok!(who.documents().batch_create_chunks(write(Replace, "", 2.0)));
    assert_eq!((&replaced.chunk_ids, replaced.total_chunks), (&first.chunk_ids, 2));
    assert_eq!(logged(&who, before).await, [format!("UPDATE Embedding {id}")]);
    assert_eq!(at_vector(&who, "s", &[2.0, 0.0]).await.0, id);
    assert_eq!(found(&who, near("s", &[1.0, 0.0], 10)).await.len(), 1, "the old one is gone");
    // Another chunk in its place brings one of its own.
    ok!(who.documents().batch_create_chunks(write(Replace, "mine", 3.0)));
    assert_eq!(at_vector(&who, "s", &[3.0, 0.0]).await.0, "mine");
    // An id that is given to one and found by another.
    let twins = pb::BatchCreateChunksRequest {
        options: on_conflict(Replace),
        ..chunks(
            "doc",
            [
                with(0, "", [given("s", "", &[4.0, 0.0])]),
                with(7, "", [given("s", "mine", &[5.0, 0.0])]),
            ],
        )
    };
    let before = head(&who).await;
    let status =
        fails!(who.documents().batch_create_chunks(twins), InvalidArgument, "DUPLICATE_IN_BATCH");
    assert_eq!(wrong_fields(&status), ["chunks[1].embeddings"]);
    assert_eq!(head(&who).await, before);
    world.close().await;
}

#[tokio::test]
async fn a_stream_of_chunks_brings_embeddings_once_each() {
    let (world, who) = world_with_spaces().await;
    let (messages, sent) = messages();
    let answers = who.documents().ingest_chunks(sent).await.expect("a stream").into_inner();
    let mut feed = crate::feed::Feed { messages: Some(messages), answers };
    let message = |sequence: i64, bad: bool| {
        let first = sequence as i32 * 2;
        let chunks = (first..first + 2).map(|n| {
            let length = if bad && n == first + 1 { 3 } else { 2 };
            with(n, &format!("c-{n}"), [given("s", "", &[n as f32, 1.0, 1.0][..length])])
        });
        pb::IngestChunksRequest {
            sequence,
            document_id: "doc".into(),
            chunks: chunks.collect(),
            options: Some(request(&format!("m-{sequence}"))),
            delete_from_index: None,
        }
    };
    feed.send(message(0, false)).await;
    let first = feed.written().await;
    assert_eq!(first.written, 2, "chunks are counted");
    feed.send(message(1, true)).await;
    let error = feed.answer().await.error.unwrap();
    assert_eq!((error.reason.as_str(), error.chunk_position), ("DIMENSION_MISMATCH", Some(1)));
    assert_eq!(error.field, "chunks[1].embeddings[0].vector");
    // One whose embedding's id is taken: the chunk is named.
    ok!(who.vectors().upsert_embedding(upsert("s", embedding("c-5", &[50.0, 50.0]))));
    feed.send(message(2, false)).await;
    let error = feed.answer().await.error.unwrap();
    assert_eq!((error.reason.as_str(), error.chunk_position), ("EXISTS", Some(1)), "{error:?}");
    assert!(error.message.contains("embedding \"c-5\""), "{error:?}");
    feed.send(message(3, false)).await;
    feed.written().await;
    let again = pb::IngestChunksRequest { sequence: 10, ..message(0, false) };
    feed.send(again).await;
    let replay = feed.written().await;
    let (replay_receipt, first_receipt) = (replay.receipt.unwrap(), first.receipt.unwrap());
    assert!(replay_receipt.replayed);
    assert_eq!((replay.written, replay_receipt.audit_seq), (2, first_receipt.audit_seq));
    for n in [0, 1, 6, 7] {
        let id = format!("c-{n}");
        assert_eq!(at_vector(&who, "s", &[n as f32, 1.0]).await.0, id);
    }
    assert_eq!(found(&who, near("s", &[0.0, 0.0], 100)).await.len(), 5);
    assert_eq!(chunk_ids(&who).await.len(), 4);
    world.close().await;
}

#[tokio::test]
async fn precedents_come_with_their_embeddings() {
    let (world, who) = world_with_spaces().await;
    let record = |id: &str, embeddings: Vec<pb::Embedding>| pb::CreatePrecedentRequest {
        embeddings,
        ..crate::precedent::record(id, crate::precedent::small())
    };
    use pb::ResourceKind::Precedent;
    // The first looks before it writes, the second goes unseen.
    for n in 0..2 {
        let before = head(&who).await;
        let x = n as f32;
        let create =
            record("", vec![given("s", "", &[x, 1.0]), given("half", "h", &[x, 1.0, 0.5])]);
        let create = match n {
            0 => create,
            _ => {
                pb::CreatePrecedentRequest { embeddings: vec![given("s", "", &[x, 1.0])], ..create }
            }
        };
        let made = ok!(who.precedents().create_precedent(create)).precedent.unwrap();
        let expected = (made.id.clone(), Precedent, made.id.clone());
        assert_eq!(at_vector(&who, "s", &[x, 1.0]).await, expected);
        let mut log =
            vec![format!("CREATE Precedent {0}", made.id), format!("CREATE Embedding {}", made.id)];
        log.extend((n == 0).then(|| "CREATE Embedding h".to_owned()));
        assert_eq!(logged(&who, before).await, log);
    }
    let requests = vec![
        record("p-1", vec![given("s", "", &[10.0, 0.0])]),
        record("p-2", vec![]),
        record("p-3", vec![given("s", "", &[30.0, 0.0]), given("half", "", &[3.0, 0.0, 0.0])]),
    ];
    let batch = pb::BatchCreatePrecedentsRequest { requests, options: Some(request("once")) };
    ok!(who.precedents().batch_create_precedents(batch.clone()));
    for (id, x) in [("p-1", 10.0), ("p-3", 30.0)] {
        let there = at_vector(&who, "s", &[x, 0.0]).await;
        assert_eq!(there, (id.into(), Precedent, id.into()));
    }
    let before = head(&who).await;
    let again = ok!(who.precedents().batch_create_precedents(batch.clone()));
    assert!(again.receipt.unwrap().replayed);
    let equal = pb::BatchCreatePrecedentsRequest {
        options: on_conflict(pb::OnConflict::ReturnIfEqual),
        ..batch
    };
    assert!(
        ok!(who.precedents().batch_create_precedents(equal.clone())).receipt.unwrap().unchanged
    );
    // One that differs refuses all, though its precedent is the same.
    let mut other = equal;
    other.requests.insert(0, record("p-0", vec![]));
    other.requests[3].embeddings[0] = given("s", "", &[31.0, 0.0]);
    let status =
        fails!(who.precedents().batch_create_precedents(other), AlreadyExists, "EXISTS_DIFFERENT");
    assert!(status.message().contains("embedding \"p-3\""), "{status:?}");
    assert_eq!(head(&who).await, before);
    world.close().await;
}

/// Every noun by a transaction, all or nothing.
#[tokio::test]
async fn a_transaction_brings_embeddings_of_whatever_it_makes() {
    let (world, who) = world_with_spaces().await;
    let of = |kind, id: &str, x: f32| {
        Operation::UpsertEmbedding(upsert(
            "live",
            pb::Embedding { subject: Some(reference(kind, id, 0)), ..embedding("", &[x, x]) },
        ))
    };
    let point = async |id: &str| {
        ok!(who.spaces().set_vector_space_alias(pb::SetVectorSpaceAliasRequest {
            alias: "live".into(),
            vector_space_id: id.into(),
            options: None,
        }));
    };
    point("s").await;
    ok!(who.vectors().upsert_embedding(upsert("s", embedding("old", &[90.0, 90.0]))));
    ok!(who.vectors().upsert_embedding(upsert("s", embedding("there", &[80.0, 80.0]))));
    use pb::ResourceKind::{Analysis, Claim, Decision, Precedent};
    let operations = vec![
        Operation::CreateDecision(create("", decision("ALLOW", 0.5))),
        of(Decision, "$0.id", 1.0),
        Operation::CreateClaim(crate::claim::create_claim("k")),
        Operation::CreateAnalysis(analyse("", "doc")),
        of(Claim, "k", 2.0),
        of(Analysis, "$3.id", 3.0),
        Operation::CreatePrecedent(pb::CreatePrecedentRequest {
            embeddings: vec![given("live", "with", &[4.0, 4.0])],
            ..crate::precedent::record("p", crate::precedent::small())
        }),
        of(Precedent, "p", 5.0),
        Operation::BatchCreateChunks(chunks(
            "doc",
            [with(0, "c", [given("live", "", &[6.0, 6.0])])],
        )),
        Operation::DeleteEmbedding(delete("live", "old")),
        Operation::UpsertEmbedding(upsert("live", embedding("there", &[81.0, 81.0]))),
    ];
    let before = head(&who).await;
    // A wrong one, wherever it stands, and nothing is written.
    for (bad, code, reason, place) in [
        (
            upsert("live", embedding("x", &[1.0])),
            Code::InvalidArgument,
            "DIMENSION_MISMATCH",
            "vector",
        ),
        (upsert("nowhere", embedding("x", &[1.0, 1.0])), Code::NotFound, "NOT_FOUND", ""),
    ] {
        let mut operations = operations.clone();
        operations.push(Operation::UpsertEmbedding(bad));
        let status = who.transactions().execute_transaction(execute(operations)).await.unwrap_err();
        assert_eq!((status.code(), crate::world::reason(&status).as_str()), (code, reason));
        match place {
            "" => assert!(
                status.message().starts_with("operations[11].upsert_embedding"),
                "{status:?}"
            ),
            field => assert_eq!(
                wrong_fields(&status),
                [format!("operations[11].upsert_embedding.embedding.{field}")]
            ),
        }
        assert_eq!(head(&who).await, before);
    }
    let mut once = execute(operations);
    once.options = Some(request("once"));
    let made = ok!(who.transactions().execute_transaction(once.clone()));
    assert_eq!(made.results.len(), 11);
    assert_eq!(made.receipt.unwrap().audit_seq, before + 14, "chunks count in their document, too");
    let own = |n: usize| made.results[n].id.split_once('/').unwrap().1;
    for (n, kind, id, x) in [
        (1, Decision, made.results[0].id.as_str(), 1.0),
        (4, Claim, "k", 2.0),
        (5, Analysis, made.results[3].id.as_str(), 3.0),
        (7, Precedent, "p", 5.0),
    ] {
        let there = at_vector(&who, "s", &[x, x]).await;
        assert_eq!(there, (id.to_owned(), kind, id.to_owned()));
        assert_eq!((made.results[n].kind(), own(n)), (pb::ResourceKind::Embedding, id));
    }
    assert_eq!(at_vector(&who, "s", &[4.0, 4.0]).await.0, "with");
    assert_eq!(at_vector(&who, "s", &[6.0, 6.0]).await.0, "c");
    fails!(who.vectors().get_embedding(get("s", "old")), NotFound, "NOT_FOUND");
    assert_eq!((own(10), made.results[10].version), ("there", 2));
    // Whatever the name stands for by then, a repetition gives the first answer.
    for gone in [false, true] {
        if gone {
            for id in ["s", "half"] {
                ok!(who.spaces().delete_vector_space(pb::DeleteVectorSpaceRequest {
                    vector_space_id: id.into(),
                    ..Default::default()
                }));
            }
        } else {
            point("half").await;
        }
        let at = head(&who).await;
        let again = ok!(who.transactions().execute_transaction(once.clone()));
        assert!(again.receipt.unwrap().replayed);
        assert_eq!(again.results, made.results);
        assert_eq!(head(&who).await, at);
    }
    world.close().await;
}

/// Under strict references the record and its embedding are there together.
#[tokio::test]
async fn what_comes_together_may_refer_to_one_another() {
    let world = World::new().await;
    ok!(world.as_tenant("system").tenants().create_tenant(pb::CreateTenantRequest {
        tenant_id: "strict".into(),
        tenant: Some(pb::Tenant { strict_references: true, ..Default::default() }),
        options: None,
    }));
    let who = world.as_tenant("strict");
    space(&who, "s", 2, DistanceMetric::L2).await;
    ok!(who.documents().create_document(file("doc")));
    ok!(who
        .documents()
        .batch_create_chunks(chunks("doc", [with(0, "c", [given("s", "", &[1.0, 1.0])])])));
    let before = head(&who).await;
    let bad = pb::Embedding { decision_id: "no".into(), ..given("s", "", &[2.0, 2.0]) };
    let status = fails!(
        who.documents().batch_create_chunks(chunks("doc", [with(1, "d", [bad.clone()])])),
        FailedPrecondition,
        "REFERENCE_MISSING"
    );
    assert_eq!(info(&status)["field"], "decision_id");
    let create = pb::CreatePrecedentRequest {
        embeddings: vec![bad],
        ..crate::precedent::record("p", crate::precedent::small())
    };
    fails!(who.precedents().create_precedent(create), FailedPrecondition, "REFERENCE_MISSING");
    assert_eq!((head(&who).await, chunk_ids(&who).await), (before, vec!["c".to_owned()]));
    world.close().await;
}
