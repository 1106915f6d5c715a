//! IngestEmbeddings: F63, F64 as a stream. Each message stands for itself, and what was answered is found.

use super::*;
use crate::feed::{SOON, messages};
use crate::world::reason;
use std::collections::HashSet;
use std::time::Duration;
use tokio::time::timeout;
use tonic::Code;

type Feed = crate::feed::Feed<pb::IngestEmbeddingsRequest, pb::IngestEmbeddingsResponse>;

async fn open(who: &As) -> Feed {
    let (messages, request) = messages();
    let answers = who.vectors().ingest_embeddings(request).await.expect("a stream").into_inner();
    Feed { messages: Some(messages), answers }
}

fn message(
    sequence: i64,
    space: &str,
    embeddings: impl IntoIterator<Item = pb::Embedding>,
) -> pb::IngestEmbeddingsRequest {
    pb::IngestEmbeddingsRequest {
        sequence,
        vector_space_id: space.into(),
        embeddings: embeddings.into_iter().collect(),
        options: None,
    }
}

/// A vector that no other message has.
fn at_place(sequence: i64, n: i64) -> [f32; 3] {
    [(sequence * 3 + n) as f32, 1.0, 0.0]
}

/// The message of three embeddings.
fn three(sequence: i64) -> pb::IngestEmbeddingsRequest {
    let one = |n: i64| pb::Embedding {
        vector: bytes(&at_place(sequence, n)),
        tags: vec!["bulk".into()],
        ..embedding(&format!("e-{sequence}-{n}"), &[])
    };
    message(sequence, "s", (0..3).map(one))
}

async fn world_with_space() -> (World, As) {
    let world = World::new().await;
    let who = world.anonymous();
    space(&who, "s", 3, DistanceMetric::L2).await;
    (world, who)
}

/// Everything of a message is found, each by its own vector.
async fn is_found(who: &As, sequence: i64) {
    for n in 0..3 {
        let hits = found(who, near("s", &at_place(sequence, n), 1)).await;
        assert_eq!(ids(&hits), [format!("e-{sequence}-{n}")]);
        assert_eq!(hits[0].distance, 0.0);
        let there = ok!(who.vectors().get_embedding(get("s", &format!("e-{sequence}-{n}"))));
        assert_eq!(there.embedding.unwrap().tags, ["bulk"]);
    }
}

/// How many rows and vectors there are, and how many log entries of embeddings.
async fn counts(world: &World) -> (i64, i64, i64) {
    let database = world.superuser().await;
    let count = "SELECT (SELECT count(*) FROM casebook.embedding WHERE delete_time IS NULL), \
                 (SELECT count(*) FROM casebook.embedding_vector), \
                 (SELECT count(*) FROM casebook.log WHERE kind = 'embedding')";
    let row = database.query_one(count, &[]).await.unwrap();
    (row.get(0), row.get(1), row.get(2))
}

#[tokio::test]
async fn what_was_answered_is_found_by_the_next_search() {
    let (world, who) = world_with_space().await;
    let mut feed = open(&who).await;
    let mut seq = 0;
    for sequence in [-7, 0, 7] {
        feed.send(three(sequence)).await;
        let answer = feed.written().await;
        let receipt = answer.receipt.unwrap();
        assert_eq!((answer.sequence, answer.written, answer.suggested_batch), (sequence, 3, 1000));
        assert!(receipt.audit_seq > seq && !receipt.unchanged);
        seq = receipt.audit_seq;
        is_found(&who, sequence).await;
    }
    // Without waiting for answers.
    let mut feed = open(&who).await;
    let sending = async {
        for sequence in 100..130 {
            feed.messages.as_ref().unwrap().send(three(sequence)).await.unwrap();
        }
    };
    let reading = async {
        for sequence in 100..130 {
            let answer = timeout(SOON, feed.answers.message()).await.unwrap().unwrap().unwrap();
            assert_eq!((answer.sequence, answer.written), (sequence, 3), "{answer:?}");
            assert_eq!(answer.error, None);
        }
    };
    tokio::join!(sending, reading);
    feed.half_close();
    assert_eq!(feed.next().await.unwrap(), None);
    is_found(&who, 129).await;
    assert_eq!(counts(&world).await, (99, 99, 99));
    let log = entries(&who, 1).await;
    assert_eq!(log[0].method, "casebook.v1.VectorService/IngestEmbeddings");
    assert_eq!(log[0].action, "CREATE");
    world.close().await;
}

#[tokio::test]
async fn a_poisoned_message_fails_alone() {
    let world = World::new().await;
    let who = world.anonymous();
    space(&who, "s", 3, DistanceMetric::L2).await;
    space(&who, "cosine", 3, DistanceMetric::Cosine).await;
    space_of(&who, "half", 3, DistanceMetric::L2, VectorStorage::Float16).await;
    let mut feed = open(&who).await;
    feed.send(three(0)).await;
    feed.written().await;
    let with = |change: fn(&mut pb::IngestEmbeddingsRequest)| change;
    type Wrong = (
        fn(&mut pb::IngestEmbeddingsRequest),
        Code,
        &'static str,
        Option<i32>,
        &'static str,
        [&'static str; 2],
    );
    fn raw_of(length: usize) -> Option<pb::Vector> {
        Some(pb::Vector { data: Some(pb::vector::Data::F32Le(vec![1; length].into())) })
    }
    use Code::{AlreadyExists, InvalidArgument, NotFound};
    let wrong: Vec<Wrong> = vec![
        (
            with(|m| m.embeddings[2].vector = floats(&[1.0, 2.0])),
            InvalidArgument,
            "DIMENSION_MISMATCH",
            Some(2),
            "embeddings[2].vector",
            ["3 dimensions", "has 2"],
        ),
        (
            with(|m| m.embeddings[1].vector = raw_of(13)),
            InvalidArgument,
            "DIMENSION_MISMATCH",
            Some(1),
            "embeddings[1].vector.f32_le",
            ["3 dimensions", "13 bytes"],
        ),
        (
            with(|m| m.embeddings[1].vector = bytes(&[1.0, f32::NAN, 0.0])),
            InvalidArgument,
            "VECTOR_INVALID",
            Some(1),
            "embeddings[1].vector",
            ["finite", "NaN at place 1"],
        ),
        (
            with(|m| m.embeddings[0].vector = floats(&[1.0, 0.0, f32::INFINITY])),
            InvalidArgument,
            "VECTOR_INVALID",
            Some(0),
            "embeddings[0].vector",
            ["finite", "inf at place 2"],
        ),
        (
            with(|m| {
                m.vector_space_id = "cosine".into();
                m.embeddings[1].vector = floats(&[0.0, -0.0, 0.0]);
            }),
            InvalidArgument,
            "ZERO_VECTOR",
            Some(1),
            "embeddings[1].vector",
            ["must not be zero", "COSINE"],
        ),
        (
            with(|m| {
                m.vector_space_id = "half".into();
                m.embeddings[2].vector = floats(&[70_000.0, 0.0, 0.0]);
            }),
            InvalidArgument,
            "VECTOR_INVALID",
            Some(2),
            "embeddings[2].vector",
            ["65504", "70000"],
        ),
        (
            with(|m| m.embeddings[1].vector = None),
            InvalidArgument,
            "FIELD_INVALID",
            Some(1),
            "embeddings[1].vector",
            ["required", ""],
        ),
        (
            with(|m| m.embeddings[2].embedding_model = "other".into()),
            InvalidArgument,
            "MODEL_MISMATCH",
            Some(2),
            "embeddings[2].embedding_model",
            ["\"ada\"", "\"other\""],
        ),
        (
            with(|m| m.vector_space_id = "nowhere".into()),
            NotFound,
            "NOT_FOUND",
            None,
            "",
            ["vector_space", "nowhere"],
        ),
        (
            with(|m| m.vector_space_id.clear()),
            InvalidArgument,
            "FIELD_INVALID",
            None,
            "vector_space_id",
            ["required", ""],
        ),
        (
            with(|m| m.embeddings[1].id = m.embeddings[0].id.clone()),
            InvalidArgument,
            "DUPLICATE_IN_BATCH",
            Some(1),
            "embeddings[1].id",
            ["embeddings[0].id", ""],
        ),
        (
            with(|m| m.embeddings.clear()),
            InvalidArgument,
            "FIELD_INVALID",
            None,
            "embeddings",
            ["at least one", ""],
        ),
        (
            with(|m| m.sequence = 0),
            InvalidArgument,
            "FIELD_INVALID",
            None,
            "sequence",
            ["greater", ""],
        ),
        (
            with(|m| {
                m.embeddings[2].id = "e-0-1".into();
                m.options = on_conflict(pb::OnConflict::Fail);
            }),
            AlreadyExists,
            "EXISTS",
            Some(2),
            "",
            ["embedding \"e-0-1\" already exists", ""],
        ),
        (
            with(|m| {
                m.embeddings[1].id = "e-0-2".into();
                m.options = on_conflict(pb::OnConflict::ReturnIfEqual);
            }),
            AlreadyExists,
            "EXISTS_DIFFERENT",
            Some(1),
            "",
            ["embedding \"e-0-2\" already exists", "vector"],
        ),
    ];
    let count = wrong.len() as i64;
    for (n, (change, code, reason, position, field, says)) in (1..).zip(wrong) {
        let mut bad = three(n * 2);
        change(&mut bad);
        let before = counts(&world).await;
        feed.send(bad).await;
        let failed = feed.answer().await;
        let error = failed.error.expect("an error");
        assert_eq!((error.code, error.reason.as_str()), (code as i32, reason), "{error:?}");
        assert_eq!(
            (error.embedding_position, error.field.as_str()),
            (position, field),
            "{error:?}"
        );
        assert_eq!(error.chunk_position, None);
        assert!(says.iter().all(|said| error.message.contains(said)), "{error:?}");
        assert_eq!((failed.written, failed.receipt), (0, None));
        assert_eq!(counts(&world).await, before, "{error:?}");
        feed.send(three(n * 2 + 1)).await;
        let written = feed.written().await;
        assert_eq!((written.sequence, written.written), (n * 2 + 1, 3));
        is_found(&who, n * 2 + 1).await;
    }
    feed.half_close();
    assert_eq!(feed.next().await.unwrap(), None);
    let all = 3 * (count + 1);
    assert_eq!(counts(&world).await, (all, all, all));
    world.close().await;
}

#[tokio::test]
async fn what_is_there_is_replaced_and_what_is_new_goes_beside_it() {
    let (world, who) = world_with_space().await;
    let mut feed = open(&who).await;
    // The first is looked up, the second goes unseen, the third meets what is there.
    for sequence in 0..2 {
        feed.send(three(sequence)).await;
        feed.written().await;
    }
    let other = |id: &str, x: f32| embedding(id, &[x, 5.0, 5.0]);
    feed.send(message(2, "s", [other("e-0-0", 70.0), other("new", 71.0), other("e-1-1", 72.0)]))
        .await;
    assert_eq!(feed.written().await.written, 3);
    for (id, x, version) in [("e-0-0", 70.0, 2), ("new", 71.0, 1), ("e-1-1", 72.0, 2)] {
        let hits = found(&who, near("s", &[x, 5.0, 5.0], 1)).await;
        assert_eq!(ids(&hits), [id]);
        assert_eq!(hits[0].distance, 0.0);
        assert_eq!(hits[0].embedding.as_ref().unwrap().meta.as_ref().unwrap().version, version);
    }
    // What it replaced is found no more; the same again changes nothing.
    let hits = found(&who, near("s", &at_place(0, 0), 1)).await;
    assert_ne!(ids(&hits), ["e-0-0"]);
    let mixed = [other("e-0-0", 70.0), other("new", 80.0)];
    feed.send(message(3, "s", mixed.clone())).await;
    assert_eq!(feed.written().await.written, 1);
    feed.send(message(4, "s", mixed)).await;
    let same = feed.written().await;
    assert_eq!((same.written, same.receipt.unwrap().unchanged), (0, true));
    assert_eq!(counts(&world).await.0, 7);
    world.close().await;
}

#[tokio::test]
async fn a_message_is_written_once_however_often_it_is_sent() {
    let (world, who) = world_with_space().await;
    let once = |sequence: i64| pb::IngestEmbeddingsRequest {
        options: Some(request(&format!("m-{sequence}"))),
        ..three(sequence)
    };
    let mut feed = open(&who).await;
    let mut first = Vec::new();
    for sequence in 0..3 {
        feed.send(once(sequence)).await;
        first.push(feed.written().await);
    }
    feed.send(once(3)).await;
    // Whether the last one was written, nobody has said.
    drop(feed);
    // What came between is not undone by a repetition.
    ok!(who.vectors().upsert_embedding(upsert("s", embedding("e-0-0", &[50.0, 50.0, 50.0]))));
    let mut feed = open(&who).await;
    for sequence in 0..4 {
        feed.send(pb::IngestEmbeddingsRequest { sequence: sequence + 50, ..once(sequence) }).await;
        let answer = feed.written().await;
        assert_eq!((answer.sequence, answer.written), (sequence + 50, 3));
        if let Some(first) = first.get(sequence as usize) {
            let (again, first) = (answer.receipt.unwrap(), first.receipt.clone().unwrap());
            assert!(again.replayed);
            assert_eq!(again.audit_seq, first.audit_seq);
        }
    }
    let hits = found(&who, near("s", &[50.0, 50.0, 50.0], 1)).await;
    assert_eq!((ids(&hits), hits[0].distance), (vec!["e-0-0"], 0.0));
    assert_eq!(counts(&world).await, (12, 13, 13));
    // Another content under the same id is refused.
    let other = pb::IngestEmbeddingsRequest { options: Some(request("m-1")), ..three(99) };
    feed.send(other).await;
    assert_eq!(feed.answer().await.error.unwrap().reason, "REQUEST_ID_REUSED");
    world.close().await;
}

/// A space that is deleted in mid-stream takes nothing more; one that its name is given to does.
#[tokio::test]
async fn a_stream_follows_the_name_of_its_space() {
    let (world, who) = world_with_space().await;
    let gone =
        || pb::DeleteVectorSpaceRequest { vector_space_id: "s".into(), ..Default::default() };
    let once = pb::IngestEmbeddingsRequest { options: Some(request("once")), ..three(0) };
    let mut feed = open(&who).await;
    feed.send(once.clone()).await;
    feed.written().await;
    for sequence in 1..3 {
        feed.send(three(sequence)).await;
        feed.written().await;
    }
    ok!(who.spaces().delete_vector_space(gone()));
    let before = counts(&world).await;
    for sequence in 3..5 {
        feed.send(three(sequence)).await;
        let error = feed.answer().await.error.expect("an error");
        assert_eq!((error.code, error.reason.as_str()), (Code::NotFound as i32, "NOT_FOUND"));
        assert!(error.message.contains("vector_space \"s\""), "{error:?}");
        assert_eq!(counts(&world).await, before);
    }
    // What was written then, is answered all the same.
    feed.send(pb::IngestEmbeddingsRequest { sequence: 5, ..once }).await;
    let replay = feed.written().await;
    assert_eq!((replay.written, replay.receipt.unwrap().replayed), (3, true));
    // Another space of that name has other dimensions.
    space(&who, "s", 2, DistanceMetric::L2).await;
    feed.send(three(6)).await;
    assert_eq!(feed.answer().await.error.unwrap().reason, "DIMENSION_MISMATCH");
    feed.send(message(7, "s", [embedding("e-0-0", &[1.0, 2.0])])).await;
    assert_eq!(feed.written().await.written, 1);
    assert_eq!(ids(&found(&who, near("s", &[1.0, 2.0], 10)).await), ["e-0-0"]);
    // An alias takes the stream along.
    space(&who, "t", 2, DistanceMetric::L2).await;
    for (sequence, space) in [(8, "s"), (9, "t")] {
        ok!(who.spaces().set_vector_space_alias(pb::SetVectorSpaceAliasRequest {
            alias: "live".into(),
            vector_space_id: space.into(),
            options: None,
        }));
        feed.send(message(sequence, "live", [embedding(&format!("via-{sequence}"), &[3.0, 4.0])]))
            .await;
        feed.written().await;
        let hits = found(&who, near(space, &[3.0, 4.0], 1)).await;
        assert_eq!(ids(&hits), [format!("via-{sequence}")]);
    }
    world.close().await;
}

/// Spaces come and go while a stream writes, in one flight and in three: what was answered as written is in a space that
/// was live then, and what came too late is nowhere.
#[tokio::test]
async fn a_space_that_goes_while_messages_are_under_way_takes_only_what_came_before() {
    let world = World::new().await;
    let who = world.anonymous();
    for round in 0..12 {
        space(&who, "s", 3, DistanceMetric::L2).await;
        let mut feed = open(&who).await;
        feed.send(three(0)).await;
        feed.written().await;
        let sender = feed.messages.take().unwrap();
        let sending = tokio::spawn(async move {
            for sequence in 1..40 {
                if sender.send(three(sequence)).await.is_err() {
                    return;
                }
            }
        });
        let mut spaces = who.spaces();
        let deleting = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(5 * round)).await;
            let gone =
                pb::DeleteVectorSpaceRequest { vector_space_id: "s".into(), ..Default::default() };
            ok!(spaces.delete_vector_space(gone)).receipt.unwrap().audit_seq
        });
        let mut written = Vec::new();
        while let Some(answer) = feed.next().await.expect("no failure") {
            match answer.error {
                None => written.push(answer.receipt.unwrap().audit_seq),
                Some(error) => assert_eq!(error.reason, "NOT_FOUND", "{error:?}"),
            }
        }
        sending.await.unwrap();
        let deleted = deleting.await.unwrap();
        assert!(written.iter().all(|seq| *seq < deleted), "{written:?} {deleted}");
    }
    let database = world.superuser().await;
    let late = "SELECT count(*) FROM casebook.log AS e \
                JOIN casebook.embedding AS d ON d.uid = e.uid \
                JOIN casebook.log AS s ON s.uid = d.space_uid AND s.action = 'DELETE' \
                WHERE e.kind = 'embedding' AND e.seq > s.seq";
    assert_eq!(database.query_one(late, &[]).await.unwrap().get::<_, i64>(0), 0);
    drop(database);
    world.close().await;
}

/// Two servers take in the same ids at once, in opposite orders: all is written, each once, and nothing twice.
#[tokio::test]
async fn two_servers_ingest_the_same_ids_at_once() {
    let (world, who) = world_with_space().await;
    let other = second_server(&world).await;
    let feeds = (0..4_i64).map(|n| {
        let who = if n % 2 == 0 { world.anonymous() } else { other.anonymous() };
        tokio::spawn(async move {
            let mut feed = open(&who).await;
            let mut seqs = Vec::new();
            for sequence in 0..15_i64 {
                let mut all: Vec<pb::Embedding> = (0..20)
                    .map(|k| {
                        embedding(&format!("shared-{k}"), &[n as f32, sequence as f32, k as f32])
                    })
                    .collect();
                if n >= 2 {
                    all.reverse();
                }
                all.push(embedding(&format!("own-{n}-{sequence}"), &[n as f32, 9.0, 9.0]));
                feed.send(message(sequence, "s", all)).await;
                let answer = feed.written().await;
                assert_eq!(answer.written, 21);
                seqs.push(answer.receipt.unwrap().audit_seq);
            }
            seqs
        })
    });
    let mut seqs = Vec::new();
    for feed in feeds.collect::<Vec<_>>() {
        seqs.extend(feed.await.unwrap());
    }
    assert_eq!(seqs.iter().collect::<HashSet<_>>().len(), 60, "each is a transaction of its own");
    let (rows, _, entries) = counts(&world).await;
    assert_eq!((rows, entries), (20 + 60, 60 * 21));
    let database = world.superuser().await;
    // Versions follow one another in the log, and every one has its vector.
    let odd = "SELECT count(*) FROM (SELECT version, row_number() OVER (PARTITION BY uid ORDER BY seq) AS n \
               FROM casebook.log WHERE kind = 'embedding') AS t WHERE version <> n";
    assert_eq!(database.query_one(odd, &[]).await.unwrap().get::<_, i64>(0), 0);
    let bare = "SELECT count(*) FROM casebook.embedding AS d LEFT JOIN casebook.embedding_vector AS v \
                ON v.embedding_uid = d.uid AND v.digest = d.vector_digest WHERE v.digest IS NULL";
    assert_eq!(database.query_one(bare, &[]).await.unwrap().get::<_, i64>(0), 0);
    crate::fault::log_is_gap_free(&database).await;
    let hits = found(&who, near("s", &[0.0, 0.0, 0.0], 1000)).await;
    assert_eq!(ids(&hits).into_iter().collect::<HashSet<_>>().len(), 80);
    drop(database);
    let mut other = other;
    other.stop().await;
    world.close().await;
}

#[tokio::test]
async fn a_stream_of_embeddings_ends_with_the_server() {
    let (mut world, who) = world_with_space().await;
    let mut feed = open(&who).await;
    feed.send(three(4)).await;
    feed.written().await;
    let stopping = async {
        world.stop().await;
    };
    let reading = async {
        let end = feed.end().await;
        assert_eq!((end.code(), reason(&end).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
        assert_eq!(info(&end)["last_sequence"], "4");
    };
    tokio::join!(stopping, reading);
    drop(feed);
    world.close().await;
}
