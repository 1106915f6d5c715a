//! Chunks: F503 to F511, F536, unique by place in their document (C21).

use crate::help::*;
use crate::world::{World, object, reason, request, wrong_fields};
use casebook::pb;
use std::collections::BTreeMap;

fn piece(id: &str, chunk_index: i32, text: &str) -> pb::Chunk {
    pb::Chunk { id: id.into(), chunk_index, text: text.into(), ..Default::default() }
}

fn replace(given: Vec<pb::Chunk>) -> pb::BatchCreateChunksRequest {
    pb::BatchCreateChunksRequest {
        options: on_conflict(pb::OnConflict::Replace),
        ..chunks("doc", given)
    }
}

fn get(id: &str) -> pb::GetChunkRequest {
    pb::GetChunkRequest { chunk_id: id.into(), ..Default::default() }
}

fn change(id: &str, paths: &[&str], chunk: pb::Chunk) -> pb::UpdateChunkRequest {
    let chunk = Some(pb::Chunk { id: id.into(), ..chunk });
    pb::UpdateChunkRequest { chunk, update_mask: mask(paths), options: None }
}

fn remove(id: &str) -> pb::DeleteChunkRequest {
    pb::DeleteChunkRequest { chunk_id: id.into(), ..Default::default() }
}

async fn document(world: &World) -> pb::Document {
    let request = pb::GetDocumentRequest { document_id: "doc".into(), ..Default::default() };
    ok!(world.anonymous().documents().get_document(request)).document.unwrap()
}

/// All chunks of the document, in the order of their places.
async fn all(world: &World) -> Vec<pb::Chunk> {
    let request =
        pb::ListChunksRequest { document_id: "doc".into(), page: page(1000), ..Default::default() };
    ok!(world.anonymous().documents().list_chunks(request)).chunks
}

/// Id and text of each, by place; and the document counts them right.
async fn pieces(world: &World) -> Vec<(i32, String, String)> {
    let all = all(world).await;
    assert_eq!(document(world).await.total_chunks as usize, all.len());
    all.into_iter().map(|chunk| (chunk.chunk_index, chunk.id, chunk.text)).collect()
}

fn pieces_of(given: &[(i32, &str, &str)]) -> Vec<(i32, String, String)> {
    given.iter().map(|(n, id, text)| (*n, (*id).to_owned(), (*text).to_owned())).collect()
}

async fn world_with_document() -> World {
    let world = World::new().await;
    ok!(world.anonymous().documents().create_document(file("doc")));
    world
}

#[tokio::test]
async fn chunks_come_back_as_given_and_are_counted() {
    let world = world_with_document().await;
    let mut client = world.anonymous().documents();
    let given = vec![
        pb::Chunk { metadata: Some(object(&[("page", "3")])), ..piece("b", 7, "bee") },
        pb::Chunk { document_id: "passed over".into(), ..piece("", 0, "zero") },
        piece("a", i32::MAX, "last"),
    ];
    let made = ok!(client.batch_create_chunks(chunks("doc", given)));
    assert_eq!((made.total_chunks, made.chunk_ids.len()), (3, 3));
    assert_eq!((made.chunk_ids[0].as_str(), made.chunk_ids[2].as_str()), ("b", "a"));
    // Three chunks and the document's new version behind the document's first.
    assert_eq!(made.receipt.unwrap().audit_seq, 5);
    let all = all(&world).await;
    let ids: Vec<_> = all.iter().map(|chunk| chunk.id.as_str()).collect();
    assert_eq!(ids, [made.chunk_ids[1].as_str(), "b", "a"]);
    let b = ok!(client.get_chunk(get("b"))).chunk.unwrap();
    let expected = pb::Chunk {
        id: "b".into(),
        etag: b.etag.clone(),
        meta: b.meta.clone(),
        document_id: "doc".into(),
        chunk_index: 7,
        text: "bee".into(),
        metadata: Some(object(&[("page", "3")])),
        embeddings: Vec::new(),
    };
    assert_eq!((&b, &all[1]), (&expected, &expected));
    let document = document(&world).await;
    assert_eq!((document.total_chunks, document.meta.unwrap().version), (3, 2));
    let log = entries(&world.anonymous(), 1).await;
    assert_eq!(log[0].action, "INGEST");
    world.close().await;
}

#[tokio::test]
async fn a_place_and_an_id_are_taken_once() {
    let world = world_with_document().await;
    let mut client = world.anonymous().documents();
    ok!(client.create_document(file("other")));
    ok!(client.batch_create_chunks(chunks("doc", [piece("a", 0, "a"), piece("b", 1, "b")])));
    ok!(client.batch_create_chunks(chunks("other", [piece("", 0, "other's")])));
    let before = head(&world.anonymous()).await;
    // All or nothing: 2 is free.
    for given in [
        vec![piece("", 2, "x"), piece("", 0, "y")],
        vec![piece("", 2, "x"), piece("a", 3, "y")],
        vec![piece("a", 0, "a")],
    ] {
        let status =
            fails!(client.batch_create_chunks(chunks("doc", given)), AlreadyExists, "EXISTS");
        assert!(status.message().contains("chunk \"a\""), "{status:?}");
    }
    // Whatever the rule, an id is taken across documents.
    for how in [pb::OnConflict::Fail, pb::OnConflict::Replace, pb::OnConflict::ReturnIfEqual] {
        let request = pb::BatchCreateChunksRequest {
            options: on_conflict(how),
            ..chunks("other", [piece("", 5, "x"), piece("a", 6, "y")])
        };
        fails!(client.batch_create_chunks(request), AlreadyExists, "EXISTS");
    }
    for (given, field) in [
        (vec![piece("x", 2, "x"), piece("x", 3, "y")], "chunks[1].id"),
        (vec![piece("", 2, "x"), piece("", 2, "y")], "chunks[1].chunk_index"),
    ] {
        let call = client.batch_create_chunks(chunks("doc", given));
        let status = fails!(call, InvalidArgument, "DUPLICATE_IN_BATCH");
        assert_eq!(wrong_fields(&status), [field]);
    }
    assert_eq!(head(&world.anonymous()).await, before);
    assert_eq!(pieces(&world).await, pieces_of(&[(0, "a", "a"), (1, "b", "b")]));
    world.close().await;
}

#[tokio::test]
async fn chunks_that_make_no_sense_are_refused() {
    let world = world_with_document().await;
    let mut client = world.anonymous().documents();
    let big = "x".repeat((1 << 20) + 1);
    for (request, field) in [
        (chunks("doc", []), "chunks"),
        (chunks("doc", (0..1001).map(chunk)), "chunks"),
        (chunks("", [chunk(0)]), "document_id"),
        (chunks("doc", [chunk(0), piece("", -1, "x")]), "chunks[1].chunk_index"),
        (chunks("doc", [piece("", 0, "")]), "chunks[0].text"),
        (chunks("doc", [piece("", 0, &big)]), "chunks[0].text"),
        (chunks("doc", [piece("-", 0, "x")]), "chunks[0].id"),
        (
            pb::BatchCreateChunksRequest {
                delete_from_index: Some(-1),
                ..chunks("doc", [chunk(0)])
            },
            "delete_from_index",
        ),
    ] {
        let status = fails!(client.batch_create_chunks(request), InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), [field]);
    }
    fails!(client.batch_create_chunks(chunks("no", [chunk(0)])), NotFound, "NOT_FOUND");
    ok!(client.batch_create_chunks(chunks("doc", [piece("", 0, &big[1..])])));
    ok!(client.batch_create_chunks(chunks("doc", (1..1001).map(chunk))));
    assert_eq!(document(&world).await.total_chunks, 1001);
    world.close().await;
}

#[tokio::test]
async fn an_equal_chunk_is_the_one_that_is_there() {
    let world = world_with_document().await;
    let mut client = world.anonymous().documents();
    ok!(client.batch_create_chunks(chunks("doc", [piece("a", 0, "a"), piece("b", 1, "b")])));
    let if_equal = |given: Vec<pb::Chunk>| pb::BatchCreateChunksRequest {
        options: on_conflict(pb::OnConflict::ReturnIfEqual),
        ..chunks("doc", given)
    };
    let equal = vec![piece("", 1, "b"), piece("a", 0, "a")];
    let answer = ok!(client.batch_create_chunks(if_equal(equal)));
    assert_eq!((answer.chunk_ids, answer.total_chunks), (vec!["b".into(), "a".into()], 2));
    assert!(answer.receipt.unwrap().unchanged);
    let more = vec![piece("", 1, "b"), piece("c", 2, "c")];
    let answer = ok!(client.batch_create_chunks(if_equal(more)));
    assert_eq!((answer.chunk_ids, answer.total_chunks), (vec!["b".into(), "c".into()], 3));
    for (given, fields) in [
        (piece("", 1, "x"), "text"),
        (piece("z", 1, "b"), "id"),
        (pb::Chunk { metadata: Some(object(&[("k", "v")])), ..piece("", 1, "b") }, "metadata"),
    ] {
        let call = client.batch_create_chunks(if_equal(vec![piece("", 9, "new"), given]));
        let status = fails!(call, AlreadyExists, "EXISTS_DIFFERENT");
        assert_eq!(info(&status)["fields"], fields);
    }
    assert_eq!(all(&world).await.len(), 3);
    world.close().await;
}

/// C21: the chunk at the place gets the new text, and is otherwise the one it was, unless another id is given.
#[tokio::test]
async fn a_chunk_is_replaced_in_its_place() {
    let world = world_with_document().await;
    let mut client = world.anonymous().documents();
    let given = [piece("a", 0, "a"), piece("b", 1, "b"), piece("c", 2, "c")];
    ok!(client.batch_create_chunks(chunks("doc", given)));
    let before = all(&world).await;
    let given =
        vec![piece("", 0, "a2"), piece("b", 1, "b2"), piece("", 2, "c"), piece("d", 3, "d")];
    let answer = ok!(client.batch_create_chunks(replace(given)));
    assert_eq!(answer.chunk_ids, ["a", "b", "c", "d"]);
    let after = all(&world).await;
    for (n, (before, after)) in before.iter().zip(&after).enumerate() {
        let (before, after) = (before.meta.as_ref().unwrap(), after.meta.as_ref().unwrap());
        assert_eq!((&after.uid, after.create_time), (&before.uid, before.create_time));
        // Replacing by the same changes nothing.
        assert_eq!(after.version, if n == 2 { 1 } else { 2 });
    }
    assert_eq!(document(&world).await.meta.unwrap().version, 3);
    let same = ok!(client.batch_create_chunks(replace(vec![piece("", 0, "a2")])));
    assert!(same.receipt.unwrap().unchanged);
    // Where no chunk comes or goes, the document stays as it is.
    ok!(client.batch_create_chunks(replace(vec![piece("", 0, "a3")])));
    assert_eq!(document(&world).await.meta.unwrap().version, 3);

    // Another id is another chunk.
    let answer = ok!(client.batch_create_chunks(replace(vec![piece("n", 1, "b2")])));
    assert_eq!((answer.chunk_ids, answer.total_chunks), (vec!["n".into()], 4));
    fails!(client.get_chunk(get("b")), NotFound, "NOT_FOUND");
    let n = ok!(client.get_chunk(get("n"))).chunk.unwrap().meta.unwrap();
    assert_ne!(n.uid, after[1].meta.as_ref().unwrap().uid);
    assert_eq!(n.version, 1);
    world.close().await;
}

#[tokio::test]
async fn ids_may_change_places_in_one_request() {
    let world = world_with_document().await;
    let mut client = world.anonymous().documents();
    ok!(client.batch_create_chunks(chunks("doc", [piece("a", 0, "a"), piece("b", 1, "b")])));
    let swapped = replace(vec![piece("b", 0, "b"), piece("a", 1, "a")]);
    ok!(client.batch_create_chunks(swapped));
    assert_eq!(pieces(&world).await, pieces_of(&[(0, "b", "b"), (1, "a", "a")]));
    // As when a paragraph comes in front, and ids follow the content.
    let shifted = vec![piece("n", 0, "n"), piece("b", 1, "b"), piece("a", 2, "a")];
    ok!(client.batch_create_chunks(replace(shifted)));
    let expected = pieces_of(&[(0, "n", "n"), (1, "b", "b"), (2, "a", "a")]);
    assert_eq!(pieces(&world).await, expected);
    // An id whose chunk stays where it is is taken.
    let call = client.batch_create_chunks(replace(vec![piece("a", 0, "x")]));
    fails!(call, AlreadyExists, "EXISTS");
    assert_eq!(pieces(&world).await, expected);
    log_agrees(&world).await;
    world.close().await;
}

#[tokio::test]
async fn the_rest_may_be_cut_off() {
    let world = world_with_document().await;
    let mut client = world.anonymous().documents();
    ok!(client
        .batch_create_chunks(chunks("doc", (0..6).map(|n| piece(&format!("c{n}"), n, "old")))));
    // Fewer than before, in one request.
    let shorter = pb::BatchCreateChunksRequest {
        delete_from_index: Some(0),
        ..replace(vec![piece("", 0, "new"), piece("", 1, "old"), piece("", 4, "new")])
    };
    let answer = ok!(client.batch_create_chunks(shorter));
    assert_eq!(answer.total_chunks, 3);
    let expected = pieces_of(&[(0, "c0", "new"), (1, "c1", "old"), (4, "c4", "new")]);
    assert_eq!(pieces(&world).await, expected);
    // Two replaced, three deleted, and the document.
    let log = entries(&world.anonymous(), 6).await;
    let actions: Vec<_> = log.iter().rev().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["DELETE", "DELETE", "DELETE", "UPDATE", "UPDATE", "INGEST"]);
    // What goes sets its id free, under any rule; what is before the cut stays.
    let moved = pb::BatchCreateChunksRequest {
        delete_from_index: Some(2),
        ..chunks("doc", [piece("c4", 2, "moved")])
    };
    assert_eq!(ok!(client.batch_create_chunks(moved)).total_chunks, 3);
    let expected = pieces_of(&[(0, "c0", "new"), (1, "c1", "old"), (2, "c4", "moved")]);
    assert_eq!(pieces(&world).await, expected);
    // A request that fails deletes nothing.
    let fails = pb::BatchCreateChunksRequest {
        delete_from_index: Some(1),
        ..chunks("doc", [piece("", 0, "x")])
    };
    fails!(client.batch_create_chunks(fails), AlreadyExists, "EXISTS");
    assert_eq!(pieces(&world).await, expected);
    world.close().await;
}

#[tokio::test]
async fn a_request_is_made_once() {
    let world = world_with_document().await;
    let mut client = world.anonymous().documents();
    let once =
        |how: pb::OnConflict, given: Vec<pb::Chunk>, id: &str| pb::BatchCreateChunksRequest {
            delete_from_index: Some(2),
            options: Some(pb::WriteOptions { on_conflict: how.into(), ..request(id) }),
            ..chunks("doc", given)
        };
    ok!(client.batch_create_chunks(chunks("doc", (0..5).map(chunk))));
    let first = once(
        pb::OnConflict::Replace,
        vec![
            piece("", 3, "three"),
            piece("", 0, "text 0"),
            piece("new", 1, "one"),
            piece("", 8, "8"),
        ],
        "r-1",
    );
    let made = ok!(client.batch_create_chunks(first.clone()));
    assert_eq!(made.total_chunks, 4);
    let unchanged =
        once(pb::OnConflict::ReturnIfEqual, vec![piece("", 3, "three"), piece("", 8, "8")], "r-2");
    let shown = ok!(client.batch_create_chunks(unchanged.clone()));
    ok!(client.batch_create_chunks(pb::BatchCreateChunksRequest {
        delete_from_index: Some(0),
        ..chunks("doc", [piece("", 99, "other")])
    }));
    for (request, before) in [(first, made), (unchanged, shown)] {
        let again = ok!(client.batch_create_chunks(request));
        assert!(again.receipt.as_ref().unwrap().replayed);
        assert_eq!(again.receipt.unwrap().unchanged, before.receipt.unwrap().unchanged);
        assert_eq!((again.chunk_ids, again.total_chunks), (before.chunk_ids, before.total_chunks));
    }
    let other = once(pb::OnConflict::Replace, vec![piece("", 3, "other")], "r-1");
    fails!(client.batch_create_chunks(other), InvalidArgument, "REQUEST_ID_REUSED");
    let rehearsal = pb::BatchCreateChunksRequest {
        options: Some(pb::WriteOptions { validate_only: true, ..Default::default() }),
        ..chunks("doc", [piece("", 5, "x")])
    };
    let rehearsed = ok!(client.batch_create_chunks(rehearsal));
    assert_eq!((rehearsed.total_chunks, rehearsed.receipt), (2, None));
    assert_eq!(document(&world).await.total_chunks, 1);
    world.close().await;
}

#[tokio::test]
async fn a_chunk_is_updated_and_deleted_and_its_document_counts() {
    let world = world_with_document().await;
    let mut client = world.anonymous().documents();
    ok!(client.batch_create_chunks(chunks("doc", [piece("a", 0, "a"), piece("b", 1, "b")])));
    let one = ok!(client.get_chunk(get("a"))).chunk.unwrap();
    let two = ok!(client.update_chunk(change("a", &["text"], piece("", 5, "a2")))).chunk.unwrap();
    assert_eq!((two.text.as_str(), two.chunk_index), ("a2", 0));
    assert_eq!(two.meta.as_ref().unwrap().version, 2);
    let metadata = pb::Chunk { metadata: Some(object(&[("k", "v")])), ..piece("", 0, "") };
    let three = ok!(client.update_chunk(change("a", &["metadata"], metadata))).chunk.unwrap();
    assert_eq!((three.text.as_str(), &three.metadata), ("a2", &Some(object(&[("k", "v")]))));
    let first = pb::GetChunkRequest { version: 1, ..get("a") };
    assert_eq!(ok!(client.get_chunk(first)).chunk, Some(one.clone()));
    for (path, reason) in [
        ("chunk_index", "FIELD_IMMUTABLE"),
        ("document_id", "FIELD_IMMUTABLE"),
        ("nope", "UNKNOWN_FIELD"),
    ] {
        let call = client.update_chunk(change("a", &[path], piece("", 0, "x")));
        fails!(call, InvalidArgument, reason);
    }
    let call = client.update_chunk(change("a", &["text"], piece("", 0, "")));
    fails!(call, InvalidArgument, "FIELD_INVALID");
    let stale = pb::Chunk { etag: one.etag.clone(), ..piece("", 0, "x") };
    fails!(client.update_chunk(change("a", &["text"], stale)), Aborted, "ETAG_MISMATCH");
    assert_eq!(document(&world).await.meta.unwrap().version, 2);

    let stale = pb::DeleteChunkRequest { etag: one.etag, ..remove("a") };
    fails!(client.delete_chunk(stale), Aborted, "ETAG_MISMATCH");
    let once = pb::DeleteChunkRequest { options: Some(request("gone")), ..remove("a") };
    let gone = ok!(client.delete_chunk(once.clone()));
    assert!(gone.chunk.as_ref().unwrap().meta.as_ref().unwrap().delete_time.is_some());
    assert_eq!(pieces(&world).await, pieces_of(&[(1, "b", "b")]));
    let again = ok!(client.delete_chunk(once));
    assert!(again.receipt.unwrap().replayed);
    assert_eq!(again.chunk, gone.chunk);
    fails!(client.delete_chunk(remove("a")), NotFound, "NOT_FOUND");
    let missing = pb::DeleteChunkRequest { allow_missing: true, ..remove("a") };
    let missing = ok!(client.delete_chunk(missing));
    assert_eq!((missing.chunk, missing.receipt.unwrap().unchanged), (None, true));
    // Its place and its id are free again.
    ok!(client.batch_create_chunks(chunks("doc", [piece("a", 0, "a3")])));
    assert_eq!(pieces(&world).await, pieces_of(&[(0, "a", "a3"), (1, "b", "b")]));
    world.close().await;
}

#[tokio::test]
async fn chunks_are_listed_by_filter_in_order_and_as_they_were() {
    let world = world_with_document().await;
    let mut client = world.anonymous().documents();
    ok!(client.create_document(file("other")));
    for (document, places) in [("other", [2, 0]), ("doc", [1, 0])] {
        let given = places.map(|n| pb::Chunk {
            metadata: Some(object(&[("n", &n.to_string())])),
            ..piece(&format!("{document}-{n}"), n, "x")
        });
        ok!(client.batch_create_chunks(chunks(document, given)));
    }
    let list = |document_id: &str, text: &str, order_by: &str| pb::ListChunksRequest {
        document_id: document_id.into(),
        page: Some(pb::PageRequest { order_by: order_by.into(), ..Default::default() }),
        r#where: expression(text),
        ..Default::default()
    };
    let mut ids = async |request| {
        let found = ok!(client.list_chunks(request)).chunks;
        found.into_iter().map(|chunk| chunk.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(list("-", "", "")).await, ["doc-0", "doc-1", "other-0", "other-2"]);
    assert_eq!(ids(list("other", "", "chunk_index desc")).await, ["other-2", "other-0"]);
    assert_eq!(ids(list("-", "metadata.n = \"0\"", "")).await, ["doc-0", "other-0"]);
    assert_eq!(ids(list("-", "chunk_index >= 1", "id")).await, ["doc-1", "other-2"]);
    let mut client = world.anonymous().documents();
    fails!(client.list_chunks(list("no", "", "")), NotFound, "NOT_FOUND");

    // At a revision, the document's chunks stand as they stood then.
    let then =
        ok!(client.batch_create_chunks(replace(vec![piece("", 0, "y"), piece("n", 1, "y")])));
    let revision = then.receipt.unwrap().revision.unwrap();
    let cut = pb::BatchCreateChunksRequest {
        delete_from_index: Some(0),
        ..replace(vec![piece("doc-1", 0, "z")])
    };
    ok!(client.batch_create_chunks(cut));
    assert_eq!(pieces(&world).await, pieces_of(&[(0, "doc-1", "z")]));
    let at = pb::Consistency {
        requirement: Some(pb::consistency::Requirement::AtExactSnapshot(revision)),
    };
    let found = pb::ListChunksRequest { consistency: Some(at.clone()), ..list("doc", "", "") };
    let found = ok!(client.list_chunks(found)).chunks;
    let found: Vec<_> = found.iter().map(|c| (c.id.as_str(), c.text.as_str())).collect();
    assert_eq!(found, [("doc-0", "y"), ("n", "y")]);
    let get = pb::GetDocumentRequest {
        document_id: "doc".into(),
        consistency: Some(at),
        ..Default::default()
    };
    assert_eq!(ok!(client.get_document(get)).document.unwrap().total_chunks, 2);
    world.close().await;
}

/// C21 under load: callers that replace, cut, update and delete at once, through two servers.
#[tokio::test]
async fn thirty_two_at_once_leave_one_chunk_at_each_place() {
    let world = world_with_document().await;
    let url = crate::world::url_of(&crate::world::config_of(&world.database).await);
    let mut second = World::on(&world.database, &url, &[]).await;
    let mut calls = Vec::new();
    for n in 0..32 {
        let of = if n % 2 == 0 { &world } else { &second };
        let mut client = of.anonymous().documents();
        calls.push(tokio::spawn(async move {
            for round in 0..4 {
                // Overlapping spans of places; some with ids of their own.
                let given = (0..10).map(|k| {
                    let id = if n % 4 == 0 { format!("c-{n}-{round}-{k}") } else { String::new() };
                    piece(&id, (n + k * 5) % 24, &format!("by {n}"))
                });
                let request = pb::BatchCreateChunksRequest {
                    delete_from_index: (n % 8 == 1).then_some(12),
                    ..replace(given.collect())
                };
                let ids = ok!(client.batch_create_chunks(request)).chunk_ids;
                // Perhaps it is gone by now, or another one's.
                if n % 3 == 0 {
                    let _ = client.delete_chunk(remove(&ids[0])).await;
                }
                let update = change(&ids[1], &["text"], piece("", 0, "updated"));
                let _ = client.update_chunk(update).await;
            }
        }));
    }
    for call in calls {
        call.await.unwrap();
    }
    let left = all(&world).await;
    let mut places = BTreeMap::new();
    for chunk in &left {
        *places.entry(chunk.chunk_index).or_insert(0) += 1;
    }
    assert!(places.values().all(|count| *count == 1), "{places:?}");
    assert_eq!(document(&world).await.total_chunks as usize, left.len());
    log_agrees(&world).await;
    second.stop().await;
    world.close().await;
}

/// What waits in the queue when the one lane is let go, sent in this order.
async fn together<A: Send + 'static>(
    world: &World,
    calls: Vec<futures_util::future::BoxFuture<'static, A>>,
) -> Vec<A> {
    let holder = world.superuser().await;
    let lock = "BEGIN; LOCK TABLE casebook.log_head IN ACCESS EXCLUSIVE MODE";
    holder.batch_execute(lock).await.unwrap();
    let mut client = world.anonymous().documents();
    let first = tokio::spawn(async move { ok!(client.create_document(file("first"))) });
    // It is at work, and waits there.
    while !first.is_finished() {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
        if holder.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) > 0 {
            break;
        }
    }
    let mut sent = Vec::new();
    for (n, call) in calls.into_iter().enumerate() {
        sent.push(tokio::spawn(call));
        crate::batching::queued(world, n + 1).await;
    }
    drop(holder);
    first.await.unwrap();
    let mut answers = Vec::new();
    for call in sent {
        answers.push(call.await.unwrap());
    }
    answers
}

/// The log's last word on each chunk is what the row says.
async fn log_agrees(world: &World) {
    let superuser = world.superuser().await;
    let sql = "SELECT count(*) FROM (SELECT DISTINCT ON (uid) uid, version, convert_from(document, 'UTF8')::jsonb AS d \
         FROM casebook.log WHERE kind = 'chunk' ORDER BY uid, seq DESC) AS last JOIN casebook.chunk AS c USING (uid) \
         WHERE c.version <> last.version OR c.text <> d ->> 'text'";
    let behind: i64 = superuser.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(behind, 0, "the log's last version is the row's");
    let sql = "SELECT count(*) FROM (SELECT DISTINCT ON (id) id, document FROM casebook.log WHERE kind = 'chunk' \
         ORDER BY id, seq DESC) AS last WHERE convert_from(document, 'UTF8')::jsonb ->> 'delete_time' IS NULL";
    let by_log: i64 = superuser.query_one(sql, &[]).await.unwrap().get(0);
    let sql = "SELECT count(*) FROM casebook.chunk WHERE delete_time IS NULL";
    let by_rows: i64 = superuser.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(by_log, by_rows, "what the log says is live is there");
}

/// A chunk that is replaced by its place and updated by its id, in calls that wait for the same lane.
#[tokio::test]
async fn changes_by_place_and_by_id_do_not_run_into_each_other() {
    let world = crate::batching::one_lane(&[]).await;
    let client = world.anonymous().documents();
    ok!(client.clone().create_document(file("doc")));
    let given = [piece("a", 0, "a"), piece("b", 1, "b")];
    ok!(client.clone().batch_create_chunks(chunks("doc", given)));
    let (mut one, mut two, mut three) = (client.clone(), client.clone(), client.clone());
    let calls: Vec<futures_util::future::BoxFuture<'static, Option<String>>> = vec![
        Box::pin(async move {
            let metadata = pb::Chunk { metadata: Some(object(&[("k", "v")])), ..piece("", 0, "") };
            let chunk = ok!(one.update_chunk(change("a", &["metadata"], metadata))).chunk;
            chunk.map(|chunk| chunk.text)
        }),
        Box::pin(async move {
            ok!(two.batch_create_chunks(replace(vec![piece("", 0, "a2"), piece("", 2, "c")])));
            None
        }),
        Box::pin(async move {
            ok!(three.delete_chunk(remove("b")));
            None
        }),
    ];
    together(&world, calls).await;
    let a = ok!(client.clone().get_chunk(get("a"))).chunk.unwrap();
    assert_eq!(a.meta.unwrap().version, 3, "one change is lost");
    assert_eq!(pieces(&world).await.len(), 2);
    assert_eq!(document(&world).await.meta.unwrap().version, 4);
    log_agrees(&world).await;
    world.close().await;
}

/// An id that one call sets free is not taken by a call that came before it, or the log would tell it the wrong way round.
#[tokio::test]
async fn an_id_is_not_used_before_it_is_free() {
    let world = crate::batching::one_lane(&[]).await;
    let client = world.anonymous().documents();
    for id in ["doc", "before", "behind"] {
        ok!(client.clone().create_document(file(id)));
    }
    let given = [piece("a", 0, "a"), piece("x", 1, "x")];
    ok!(client.clone().batch_create_chunks(chunks("doc", given)));
    let takes = |document: &str| {
        let mut client = client.clone();
        let request = pb::BatchCreateChunksRequest {
            options: on_conflict(pb::OnConflict::Replace),
            ..chunks(document, [piece("x", 0, "mine"), piece("", 1, "more")])
        };
        Box::pin(async move { client.batch_create_chunks(request).await.err().map(|e| reason(&e)) })
    };
    let mut cutter = client.clone();
    let calls: Vec<futures_util::future::BoxFuture<'static, Option<String>>> = vec![
        takes("before"),
        Box::pin(async move {
            let cut = pb::BatchCreateChunksRequest {
                delete_from_index: Some(1),
                ..replace(vec![piece("", 0, "a")])
            };
            ok!(cutter.batch_create_chunks(cut));
            None
        }),
        takes("behind"),
    ];
    let answers = together(&world, calls).await;
    assert_eq!(answers, [Some("EXISTS".to_owned()), None, None]);
    assert_eq!(pieces(&world).await, pieces_of(&[(0, "a", "a")]));
    log_agrees(&world).await;
    world.close().await;
}

/// F533, F536: ten thousand chunks, and more than a thousand a second, of a build without optimisation.
#[tokio::test]
async fn ten_thousand_chunks_go_in_within_seconds() {
    let world = world_with_document().await;
    let mut client = world.anonymous().documents();
    let text = "The quick brown fox jumps over the lazy dog. ".repeat(8);
    let begun = std::time::Instant::now();
    for n in 0..10 {
        let given =
            (n * 1000..(n + 1) * 1000).map(|place| piece("", place, &format!("{place} {text}")));
        ok!(client.batch_create_chunks(chunks("doc", given)));
    }
    println!("10000 chunks in {:?}", begun.elapsed());
    assert_eq!(document(&world).await.total_chunks, 10_000);
    // As many versions of the document as requests.
    assert_eq!(document(&world).await.meta.unwrap().version, 11);
    world.close().await;
}
