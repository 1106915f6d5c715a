//! Many rows at a time: batches and streams of messages to Casebook, and COPY straight into a table.

use crate::load::{FIRST_NEW_ID, LAST_NEW_ID, MEASURING, OVER};
use crate::stats::Random;
use crate::{Context, Result, nearest, payload};
use bytes::{BufMut, Bytes, BytesMut};
use casebook::pb;
use futures_util::{SinkExt as _, TryStreamExt as _};
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Instant, SystemTime};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use uuid::Uuid;

/// How many messages of a stream wait for their answers.
const WINDOW: usize = 4;
/// Chunks of a document.
const DOCUMENT_CHUNKS: usize = 10_000;
/// Different texts of chunks, so that the words are as varied as in real ones.
pub const TEXTS: u64 = 1000;
/// What COPY BINARY begins with: the signature, flags, and the length of an extension.
const COPY_HEADER: usize = 19;

/// A BatchCreateDecisionsRequest of `rows` decisions under new ids.
pub fn batch(rest: &[u8], rows: u64, random: &mut Random) -> Bytes {
    let mut body = BytesMut::with_capacity((rest.len() + 32) * rows as usize);
    for _ in 0..rows {
        let id = new_id(random);
        // Field 1 of the batch, and in it field 1, the id, before its other fields.
        body.put_u8(0x0A);
        prost::encoding::encode_varint((2 + id.len() + rest.len()) as u64, &mut body);
        body.put_slice(&[0x0A, id.len() as u8]);
        body.put_slice(id.as_bytes());
        body.put_slice(rest);
    }
    body.freeze()
}

fn new_id(random: &mut Random) -> String {
    (FIRST_NEW_ID + random.below(LAST_NEW_ID - FIRST_NEW_ID)).to_string()
}

/// The microseconds that each message of one stream took whose answer came in the measured time.
pub async fn ingest_until_over(
    channel: Channel,
    (rows, is_embedded): (usize, bool),
    mut random: Random,
    phase: Arc<AtomicU8>,
) -> Result<Vec<u32>> {
    let text = |n| pb::Chunk {
        embeddings: if is_embedded { nearest::embeddings(n) } else { Vec::new() },
        ..payload::chunk(n)
    };
    let texts: Vec<pb::Chunk> = (0..TEXTS).map(text).collect();
    let mut documents = pb::document_service_client::DocumentServiceClient::new(channel.clone());
    let mut chunks = pb::document_service_client::DocumentServiceClient::new(channel);
    let (messages, stream) = mpsc::channel(WINDOW);
    let (mut document_id, mut next_index, mut sequence) = (String::new(), DOCUMENT_CHUNKS, 0);
    let mut sent = std::collections::VecDeque::new();
    let mut took = Vec::with_capacity(1 << 14);
    let mut answers = None;
    let mut stream = Some(stream);
    loop {
        while sent.len() < WINDOW {
            if next_index >= DOCUMENT_CHUNKS {
                let request = payload::document(&format!("loaded-{}", new_id(&mut random)));
                documents.create_document(request.clone()).await?;
                (document_id, next_index) = (request.document_id, 0);
            }
            let rows = (0..rows).map(|n| pb::Chunk {
                chunk_index: (next_index + n) as i32,
                ..texts[random.below(TEXTS) as usize].clone()
            });
            let message = pb::IngestChunksRequest {
                sequence,
                document_id: document_id.clone(),
                chunks: rows.collect(),
                ..Default::default()
            };
            next_index += message.chunks.len();
            sequence += 1;
            sent.push_back(Instant::now());
            messages.send(message).await.with(|| "the stream is closed")?;
        }
        if let Some(stream) = stream.take() {
            answers = Some(chunks.ingest_chunks(ReceiverStream::new(stream)).await?.into_inner());
        }
        let answer = answers.as_mut().with(|| "no stream")?.message().await?;
        let answer = answer.with(|| "the stream ended")?;
        if let Some(error) = answer.error {
            return Err(format!("a message failed: {}", error.message).into());
        }
        let began = sent.pop_front().with(|| "an answer to nothing")?;
        match phase.load(Ordering::Relaxed) {
            MEASURING => took.push(began.elapsed().as_micros() as u32),
            OVER => return Ok(took),
            _ => {}
        }
    }
}

/// What is copied: rows that Casebook recorded, under new ids.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Copy {
    pub conninfo: String,
    /// Some rows, their columns beginning with id and uid, and chunks with chunk_index behind them.
    pub from: String,
    /// The table and the same columns: `raw.chunk (id, uid, chunk_index, ...)`.
    pub into: String,
    pub has_index: bool,
    pub rows: u64,
}

/// One connection that copies again and again, each time in a transaction of its own.
pub async fn copy_until_over(
    copy: Copy,
    session: usize,
    mut random: Random,
    phase: Arc<AtomicU8>,
) -> Result<Vec<u32>> {
    let config = copy.conninfo.parse::<tokio_postgres::Config>()?;
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    let given = templates(&client, &copy).await?;
    let into = format!("COPY {} FROM STDIN (FORMAT binary)", copy.into);
    let mut took = Vec::with_capacity(1 << 14);
    // A place of its own for each session of each run, by the time: no run writes 200,000 rows a second.
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let mut next_index = ((seconds % 10_000) * 200_000 + session as u64 * 100_000) as i32;
    loop {
        let mut rows = BytesMut::new();
        rows.put_slice(b"PGCOPY\n\xff\r\n\0");
        rows.put_slice(&[0; 8]);
        for _ in 0..copy.rows {
            let template = &given[random.below(given.len() as u64) as usize];
            let uid = Uuid::now_v7();
            rows.put_i16(template.columns);
            let id = match copy.has_index {
                true => uid.to_string(),
                false => new_id(&mut random),
            };
            rows.put_i32(id.len() as i32);
            rows.put_slice(id.as_bytes());
            rows.put_i32(16);
            rows.put_slice(uid.as_bytes());
            if copy.has_index {
                rows.put_i32(4);
                rows.put_i32(next_index);
                next_index += 1;
            }
            rows.put_slice(&template.rest);
        }
        rows.put_i16(-1);
        let began = Instant::now();
        let mut sink = Box::pin(client.copy_in(&into).await?);
        // In parts of a size that a driver would send.
        let mut rows = rows.freeze();
        while !rows.is_empty() {
            sink.feed(rows.split_to(rows.len().min(64 << 10))).await?;
        }
        let copied = sink.as_mut().finish().await.map_err(|error| match error.as_db_error() {
            Some(refused) => format!("COPY was refused: {refused}"),
            None => error.to_string(),
        })?;
        if copied != copy.rows {
            return Err(format!("{copied} rows were copied, not {}", copy.rows).into());
        }
        match phase.load(Ordering::Relaxed) {
            MEASURING => took.push(began.elapsed().as_micros() as u32),
            OVER => return Ok(took),
            _ => {}
        }
    }
}

struct Template {
    columns: i16,
    /// Behind the columns that are made anew.
    rest: Bytes,
}

async fn templates(client: &tokio_postgres::Client, copy: &Copy) -> Result<Vec<Template>> {
    let out = client.copy_out(&format!("COPY ({}) TO STDOUT (FORMAT binary)", copy.from)).await?;
    let parts: Vec<Bytes> = out.try_collect().await?;
    let all = parts.concat();
    let cut = || "rows copied out are cut short";
    let number = |at: usize| -> Result<i32> {
        let bytes = all.get(at..at + 4).with(cut)?;
        Ok(i32::from_be_bytes(bytes.try_into()?))
    };
    let mut templates = Vec::new();
    let mut at = COPY_HEADER;
    loop {
        let columns = i16::from_be_bytes(all.get(at..at + 2).with(cut)?.try_into()?);
        at += 2;
        if columns < 0 {
            break;
        }
        let made = if copy.has_index { 3 } else { 2 };
        let mut from = at;
        for n in 0..columns {
            at += 4 + usize::try_from(number(at)?).unwrap_or_default();
            if n + 1 == made {
                from = at;
            }
        }
        let rest = Bytes::copy_from_slice(all.get(from..at).with(cut)?);
        templates.push(Template { columns, rest });
    }
    if templates.is_empty() {
        return Err("there is no row to copy".into());
    }
    Ok(templates)
}

/// Records a few chunks that COPY copies, and the documents that are searched.
pub async fn fill(address: &str, documents: u64) -> Result<()> {
    let channel = tonic::transport::Endpoint::from_shared(address.to_owned())?.connect().await?;
    let mut client = pb::document_service_client::DocumentServiceClient::new(channel)
        .max_decoding_message_size(64 << 20);
    let ids: Vec<u64> = (0..documents).collect();
    for some in ids.chunks(1000) {
        let requests = some.iter().map(|n| payload::document_about(*n)).collect();
        let request = pb::BatchCreateDocumentsRequest { requests, options: None };
        client.batch_create_documents(request).await?;
    }
    client.create_document(payload::document("copied")).await?;
    let chunks = (0..TEXTS).map(|n| pb::Chunk { chunk_index: n as i32, ..payload::chunk(n) });
    let request = pb::BatchCreateChunksRequest {
        document_id: "copied".into(),
        chunks: chunks.collect(),
        ..Default::default()
    };
    client.batch_create_chunks(request).await?;
    Ok(())
}

/// Records decisions under ids from `first` on, several batches at a time.
pub async fn fill_decisions(address: &str, first: u64, count: u64) -> Result<()> {
    let channel = tonic::transport::Endpoint::from_shared(address.to_owned())?.connect().await?;
    let client = pb::decision_service_client::DecisionServiceClient::new(channel)
        .max_decoding_message_size(64 << 20);
    let mut tasks = tokio::task::JoinSet::new();
    let next = Arc::new(std::sync::atomic::AtomicU64::new(first));
    for _ in 0..3 {
        let (mut client, next) = (client.clone(), Arc::clone(&next));
        tasks.spawn(async move {
            loop {
                let from = next.fetch_add(1000, Ordering::Relaxed);
                if from >= first + count {
                    return Ok::<_, tonic::Status>(());
                }
                let ids = from..(from + 1000).min(first + count);
                let requests = ids.map(|id| payload::request(&id.to_string())).collect();
                let request = pb::BatchCreateDecisionsRequest { requests, options: None };
                client.batch_create_decisions(request).await?;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// The fields of a decision's request behind its id.
pub fn decision_rest() -> Bytes {
    payload::request("").encode_to_vec().into()
}
