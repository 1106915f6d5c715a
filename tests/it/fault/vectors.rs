//! Embeddings that stream in while servers are killed and PostgreSQL crashes, in the middle of building an index and of
//! putting vectors into it: what was answered is found, and nothing is there twice.

use super::{a_moment, log_is_gap_free, serve_on, superuser};
use crate::feed::{Feed, messages};
use crate::help::*;
use crate::process::{PATIENCE, Postgres, kill, long_tests};
use crate::world::{As, reason, request, through};
use casebook::pb;
use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Messages of one writer under way at once.
const UNDER_WAY: usize = 4;
/// Embeddings of a message.
const EACH: usize = 3;
const WRITERS: usize = 5;
/// Messages whose embeddings are searched for in the end.
const SEARCHED: usize = 50;
/// Between messages, so that they do not grow too many to search.
const PAUSE: Duration = Duration::from_millis(25);

/// What a writer streams.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Brings {
    /// Embeddings that are all new.
    New,
    /// Embeddings of which one takes the place of the one before.
    Replacing,
    /// Chunks with an embedding each.
    Chunks,
}

const BRINGS: [Brings; WRITERS] =
    [Brings::New, Brings::New, Brings::Replacing, Brings::Chunks, Brings::Chunks];

fn id(writer: usize, n: usize, k: usize) -> String {
    format!("e-{writer}-{n}-{k}")
}

/// No two embeddings have the same.
fn vector(writer: usize, n: usize, k: usize) -> pb::Vector {
    let values = [writer as f32, n as f32, k as f32, 1.0];
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    pb::Vector { data: Some(pb::vector::Data::F32Le(bytes.into())) }
}

enum Stream {
    Embeddings(Feed<pb::IngestEmbeddingsRequest, pb::IngestEmbeddingsResponse>),
    Chunks(Feed<pb::IngestChunksRequest, pb::IngestChunksResponse>),
}

impl Stream {
    async fn open(who: &As, brings: Brings) -> Result<Self, Status> {
        Ok(match brings {
            Brings::New | Brings::Replacing => {
                let (messages, request) = messages();
                let answers = who.vectors().ingest_embeddings(request).await?.into_inner();
                Self::Embeddings(Feed { messages: Some(messages), answers })
            }
            Brings::Chunks => {
                let (messages, request) = messages();
                let answers = who.documents().ingest_chunks(request).await?.into_inner();
                Self::Chunks(Feed { messages: Some(messages), answers })
            }
        })
    }

    /// False when the stream has ended.
    async fn send(&self, sequence: i64, writer: usize, n: usize) -> bool {
        let options = Some(request(&format!("m-{writer}-{n}")));
        let one =
            |k: usize| pb::Embedding { vector: Some(vector(writer, n, k)), ..Default::default() };
        match self {
            Self::Embeddings(feed) => {
                let mut embeddings: Vec<pb::Embedding> =
                    (0..EACH).map(|k| pb::Embedding { id: id(writer, n, k), ..one(k) }).collect();
                if BRINGS[writer] == Brings::Replacing {
                    embeddings.push(pb::Embedding { id: format!("hot-{writer}"), ..one(EACH) });
                }
                let vector_space_id = "s".into();
                let message =
                    pb::IngestEmbeddingsRequest { sequence, vector_space_id, embeddings, options };
                feed.messages.as_ref().unwrap().send(message).await.is_ok()
            }
            Self::Chunks(feed) => {
                let chunk = |k: usize| pb::Chunk {
                    id: id(writer, n, k),
                    embeddings: vec![pb::Embedding { vector_space_id: "s".into(), ..one(k) }],
                    ..chunk((n * EACH + k) as i32)
                };
                let message = pb::IngestChunksRequest {
                    sequence,
                    document_id: format!("doc-{writer}"),
                    chunks: (0..EACH).map(chunk).collect(),
                    options,
                    delete_from_index: None,
                };
                feed.messages.as_ref().unwrap().send(message).await.is_ok()
            }
        }
    }

    async fn next(&mut self) -> Result<Option<(i64, Option<pb::IngestError>)>, Status> {
        Ok(match self {
            Self::Embeddings(feed) => {
                feed.answers.message().await?.map(|answer| (answer.sequence, answer.error))
            }
            Self::Chunks(feed) => {
                feed.answers.message().await?.map(|answer| (answer.sequence, answer.error))
            }
        })
    }
}

/// Writers without pause, and what they were answered.
struct Writers {
    stop: Arc<AtomicBool>,
    /// Writer and number of each message that was acknowledged, in that order.
    acknowledged: Arc<Mutex<Vec<(usize, usize)>>>,
    /// How many messages each has sent, all of which were acknowledged in the end.
    running: Vec<JoinHandle<usize>>,
}

impl Writers {
    fn start(server: &watch::Receiver<Channel>) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let running = (0..WRITERS)
            .map(|writer| {
                let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
                tokio::spawn(write(writer, server.clone(), stop, acknowledged))
            })
            .collect();
        Self { stop, acknowledged, running }
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// Waits for so many more acknowledgements, which shows that the server has recovered.
    async fn progress(&self, more: usize) {
        let (began, from) = (Instant::now(), self.count());
        while self.count() < from + more {
            assert!(began.elapsed() < PATIENCE, "messages do not go on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What was acknowledged last is found by the next search.
    async fn find_latest(&self, who: &As) {
        let latest: Vec<_> = {
            let acknowledged = self.acknowledged.lock().unwrap();
            acknowledged.iter().rev().take(10).copied().collect()
        };
        for (writer, n) in latest {
            find(who, writer, n).await;
        }
    }

    /// A client sees every one, by reading alone.
    async fn all_are_listed(who: &As, acknowledged: &[(usize, usize)]) {
        let mut listed = HashSet::new();
        let mut page_token = String::new();
        loop {
            let page = pb::PageRequest { page_size: 1000, page_token, ..Default::default() };
            let answer = ok!(who.vectors().list_embeddings(pb::ListEmbeddingsRequest {
                page: Some(page),
                vector_space_id: "s".into(),
                ..Default::default()
            }));
            listed.extend(answer.embeddings.into_iter().map(|embedding| embedding.id));
            page_token = answer.page.unwrap().next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        for (writer, n) in acknowledged {
            assert!((0..EACH).all(|k| listed.contains(&id(*writer, *n, k))), "{writer} {n}");
        }
    }

    /// Lets all of it be acknowledged, then holds the database to it.
    async fn settle(self, postgres: &Postgres, who: &As) {
        self.stop.store(true, Ordering::SeqCst);
        let mut sent = Vec::new();
        for writer in self.running {
            sent.push(writer.await.expect("no writer was told a lie"));
        }
        let acknowledged = self.acknowledged.lock().unwrap().clone();
        assert_eq!(acknowledged.len(), sent.iter().sum::<usize>());
        assert!(acknowledged.len() > 100, "only {} messages", acknowledged.len());
        is_indexed(who).await;
        // A search takes its time, so some stand for the rest, whose rows and vectors are counted below.
        for (writer, n) in acknowledged.iter().step_by(acknowledged.len().div_ceil(SEARCHED)) {
            find(who, *writer, *n).await;
        }
        Self::all_are_listed(who, &acknowledged).await;
        let database = superuser(postgres).await;
        let hot = BRINGS.iter().filter(|brings| **brings == Brings::Replacing).count();
        let rows = "SELECT count(*), count(DISTINCT id) FROM casebook.embedding";
        let rows = database.query_one(rows, &[]).await.unwrap();
        let all = (acknowledged.len() * EACH + hot) as i64;
        assert_eq!(
            (rows.get::<_, i64>(0), rows.get::<_, i64>(1)),
            (all, all),
            "each is there once"
        );
        let made = "SELECT count(*), count(DISTINCT id) FROM casebook.log \
                    WHERE kind = 'embedding' AND action = 'CREATE'";
        let made = database.query_one(made, &[]).await.unwrap();
        assert_eq!((made.get::<_, i64>(0), made.get::<_, i64>(1)), (all, all), "made once");
        for (writer, count) in sent.iter().enumerate() {
            if BRINGS[writer] == Brings::Replacing {
                let there = ok!(who.vectors().get_embedding(pb::GetEmbeddingRequest {
                    vector_space_id: "s".into(),
                    embedding_id: format!("hot-{writer}"),
                    ..Default::default()
                }));
                let version = there.embedding.unwrap().meta.unwrap().version;
                assert_eq!(version, *count as i64, "each message has replaced it once");
            }
        }
        let number = "SELECT number FROM casebook.vector_index";
        let number: i64 = database.query_one(number, &[]).await.expect("one index").get(0);
        let coded = format!(
            "SELECT count(*) FROM casebook.embedding AS d JOIN casebook.sealed_{number} AS c \
             ON c.embedding_uid = d.uid AND c.digest = d.vector_digest"
        );
        assert_eq!(database.query_one(&coded, &[]).await.unwrap().get::<_, i64>(0), all);
        let tables =
            "SELECT count(*) FROM pg_class WHERE relname ~ '^sealed_[0-9]+$' AND relkind = 'r'";
        assert_eq!(database.query_one(tables, &[]).await.unwrap().get::<_, i64>(0), 1);
        let bare = "SELECT count(*) FROM casebook.embedding AS d LEFT JOIN casebook.embedding_vector AS v \
                    ON v.embedding_uid = d.uid AND v.digest = d.vector_digest WHERE v.digest IS NULL";
        assert_eq!(database.query_one(bare, &[]).await.unwrap().get::<_, i64>(0), 0);
        log_is_gap_free(&database).await;
    }
}

/// Sends messages until it is told to stop and all are acknowledged. What was not, is sent again, on another stream where
/// that has ended.
async fn write(
    writer: usize,
    server: watch::Receiver<Channel>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<(usize, usize)>>>,
) -> usize {
    let mut next = 0;
    let mut again: VecDeque<usize> = VecDeque::new();
    loop {
        let who = through(server.borrow().clone());
        let mut stream = match Stream::open(&who, BRINGS[writer]).await {
            Ok(stream) => stream,
            Err(status) => {
                believe(&status);
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let mut sequence = 0;
        let mut sent: VecDeque<(i64, usize)> = VecDeque::new();
        'stream: loop {
            while sent.len() < UNDER_WAY {
                let n = match again.pop_front() {
                    Some(n) => n,
                    None if stop.load(Ordering::SeqCst) => break,
                    None => {
                        next += 1;
                        next - 1
                    }
                };
                sent.push_back((sequence, n));
                if !stream.send(sequence, writer, n).await {
                    break 'stream;
                }
                sequence += 1;
            }
            if sent.is_empty() {
                return next;
            }
            let answer = timeout(PATIENCE, stream.next()).await.expect("an answer in time");
            let (answered, error) = match answer {
                Ok(Some(answer)) => answer,
                Ok(None) => break,
                Err(status) => {
                    believe(&status);
                    break;
                }
            };
            let (expected, n) = sent.pop_front().expect("a message was sent");
            assert_eq!(answered, expected, "answers come in order");
            match error {
                None => {
                    acknowledged.lock().unwrap().push((writer, n));
                    tokio::time::sleep(PAUSE).await;
                }
                Some(error) => {
                    let passes =
                        ["BACKEND_UNAVAILABLE", "SERIALIZATION_FAILURE", "DEADLINE_EXCEEDED"];
                    assert!(passes.contains(&error.reason.as_str()), "{error:?}");
                    again.push_back(n);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        again.extend(sent.into_iter().map(|(_, n)| n));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How a stream may end by a crash.
fn believe(status: &Status) {
    // Without a reason it is not the server's word but the transport's.
    if status.get_details_error_info().is_some() {
        let ends = (status.code(), reason(status));
        assert!(matches!(ends.0, Code::Unavailable | Code::DeadlineExceeded), "{status:?}");
    }
}

/// All of a message is read by its ids, and found by its vectors.
async fn find(who: &As, writer: usize, n: usize) {
    for k in [0, EACH - 1] {
        let get = pb::GetEmbeddingRequest {
            vector_space_id: "s".into(),
            embedding_id: id(writer, n, k),
            ..Default::default()
        };
        let there = ok!(who.vectors().get_embedding(get)).embedding.unwrap();
        assert_eq!(there.meta.unwrap().version, 1);
    }
    let queries = (0..EACH).map(|k| pb::VectorQuery {
        vector_space_id: "s".into(),
        target: Some(pb::vector_query::Target::Vector(vector(writer, n, k))),
        top_k: 1,
        ..Default::default()
    });
    let found = ok!(who.vectors().batch_search_vectors(pb::BatchSearchVectorsRequest {
        queries: queries.collect(),
        ..Default::default()
    }));
    for (k, result) in found.results.into_iter().enumerate() {
        let [hit] = result.hits.as_slice() else { panic!("no hit for {}", id(writer, n, k)) };
        let nearest = (hit.embedding.as_ref().unwrap().id.clone(), hit.distance);
        assert_eq!(nearest, (id(writer, n, k), 0.0));
    }
}

/// Has an index built, anew where there is one, which takes a while.
async fn build(who: &As) {
    let mut spaces = who.spaces();
    let begun = spaces.build_vector_index(pb::BuildVectorIndexRequest {
        vector_space_id: "s".into(),
        index: Some(pb::VectorIndex {
            codes: pb::vector_index::Codes::Float32.into(),
            m: 48,
            ef_construction: 300,
            ..Default::default()
        }),
        options: None,
    });
    if let Err(status) = begun.await
        && reason(&status) != "OPERATION_ACTIVE"
    {
        believe(&status);
    }
}

/// Waits until nobody works at the index and it has all there is.
async fn is_indexed(who: &As) {
    use pb::get_vector_space_stats_response::index_state::State;
    let began = Instant::now();
    loop {
        let request = pb::GetVectorSpaceStatsRequest { vector_space_id: "s".into() };
        let stats = ok!(who.spaces().get_vector_space_stats(request));
        let active = pb::ListOperationsRequest {
            r#where: expression("state = \"PENDING\" OR state = \"RUNNING\""),
            ..Default::default()
        };
        let active = ok!(who.operations().list_operations(active)).operations;
        if let [index] = stats.indexes.as_slice()
            && (index.state(), index.unsealed_count) == (State::Ready, 0)
            && active.is_empty()
        {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{stats:?} {active:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn prepare(who: &As) {
    ok!(who.spaces().create_vector_space(pb::CreateVectorSpaceRequest {
        vector_space_id: "s".into(),
        vector_space: Some(pb::VectorSpace {
            embedding_model: "ada".into(),
            dimensions: 4,
            metric: pb::DistanceMetric::L2.into(),
            ..Default::default()
        }),
        options: None,
    }));
    for (writer, _) in BRINGS.iter().enumerate().filter(|(_, brings)| **brings == Brings::Chunks) {
        ok!(who.documents().create_document(file(&format!("doc-{writer}"))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_no_embedding_and_repeats_none() {
    let postgres = Postgres::start().await;
    let mut server = serve_on(&postgres);
    let channel = server.connect().await;
    prepare(&through(channel.clone())).await;
    let (here, server_is_at) = watch::channel(channel);
    let writers = Writers::start(&server_is_at);
    for _ in 0..if long_tests() { 40 } else { 4 } {
        writers.progress(20).await;
        build(&through(here.borrow().clone())).await;
        a_moment(1, 600).await;
        server.kill();
        server = serve_on(&postgres);
        let channel = server.connect().await;
        here.send_replace(channel.clone());
        writers.find_latest(&through(channel)).await;
    }
    writers.progress(20).await;
    let who = through(here.borrow().clone());
    build(&who).await;
    writers.settle(&postgres, &who).await;
    server.kill();
    postgres.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crashed_postgresql_loses_no_embedding_and_repeats_none() {
    let postgres = Postgres::start().await;
    let mut server = serve_on(&postgres);
    let channel = server.connect().await;
    let who = through(channel.clone());
    prepare(&who).await;
    let (_here, server_is_at) = watch::channel(channel);
    let writers = Writers::start(&server_is_at);
    for _ in 0..if long_tests() { 40 } else { 4 } {
        writers.progress(20).await;
        build(&who).await;
        a_moment(1, 600).await;
        kill(postgres.postmaster().await, "QUIT");
        writers.progress(20).await;
        writers.find_latest(&who).await;
    }
    build(&who).await;
    writers.settle(&postgres, &who).await;
    assert!(!server.log().contains("panicked"), "{}", server.log());
    server.kill();
    postgres.stop().await;
}
