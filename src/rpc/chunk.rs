//! Chunks on the wire.

use super::embedding::{in_own_words, name_spaces, no_twins, read_given};
use super::ingest::{Acknowledged, Bulk, explained};
use super::resource::{New, Resource, read_delete, read_update};
use super::wire::{self, Fields};
use super::{Parts, json};
use crate::store::caller::Caller;
use crate::store::change::OnConflict;
use crate::store::chunk::{Chunk, ModifyChunk};
use crate::store::embedding::Embedding;
use crate::store::ingest::{WriteChunks, WrittenChunks};
use crate::store::noun::Noun;
use crate::{Error, pb};
use futures_util::future::BoxFuture;

const TEXT_BYTES_MAX: usize = 1 << 20;

crate::requests! { Chunk:
    get GetChunkRequest(chunk_id);
    list ListChunksRequest("create_time" by [("document_id", false), ("chunk_index", false)] of "d.document_id" document_id in "document");
}

crate::requests!(@ask UpdateChunkRequest -> ModifyChunk, |fields, on_conflict, chunk, update_mask| {
    if chunk.as_ref().is_some_and(|chunk| !chunk.embeddings.is_empty()) {
        fields.wrong("chunk.embeddings", "must be unset: upsert them in VectorService");
    }
    ModifyChunk(read_update(fields, chunk, update_mask, on_conflict))
});

crate::requests!(@ask DeleteChunkRequest -> ModifyChunk, |fields, on_conflict, chunk_id, etag, allow_missing| {
    ModifyChunk(read_delete::<pb::Chunk>(fields, chunk_id, etag, allow_missing, on_conflict).0)
});

crate::requests!(@ask BatchCreateChunksRequest -> WriteChunks,
|fields, on_conflict, document_id, chunks, delete_from_index| {
    let document_id = fields.id("document_id", document_id);
    if delete_from_index.is_some_and(|index| index < 0) {
        fields.wrong("delete_from_index", "must not be negative");
    }
    read_chunks(fields, document_id, chunks, on_conflict, delete_from_index)
}, spaces |request, names| name_spaces(request.chunks.iter().flat_map(|chunk| &chunk.embeddings), names));

/// What is remembered of a message.
pub struct SentChunks {
    document_id: String,
    /// Id and place of each chunk.
    chunks: Vec<(String, i32)>,
    /// Id of each embedding, and the chunk that it is of.
    embeddings: Vec<(String, usize)>,
}

/// What IngestChunks brings.
pub struct Chunks;

impl Bulk for Chunks {
    type Message = pb::IngestChunksRequest;
    type Request = pb::BatchCreateChunksRequest;
    type Answer = pb::IngestChunksResponse;
    type Sent = SentChunks;
    const ITEMS: &'static str = "chunks";

    fn open(message: Self::Message) -> (i64, Self::Request) {
        let pb::IngestChunksRequest { sequence, document_id, chunks, options, delete_from_index } =
            message;
        let request =
            pb::BatchCreateChunksRequest { document_id, chunks, options, delete_from_index };
        (sequence, request)
    }

    fn remember(change: &WriteChunks) -> Self::Sent {
        let chunks = change.rows.iter().map(|row| (row.id.clone(), row.chunk_index));
        let embeddings = change.embeddings.iter().map(|given| (given.row.id.clone(), given.of));
        SentChunks {
            document_id: change.document_id.clone(),
            chunks: chunks.collect(),
            embeddings: embeddings.collect(),
        }
    }

    fn written(answer: &WrittenChunks) -> usize {
        answer.written
    }

    /// One that stands where another should is looked up.
    fn find<'a>(
        api: &'a Parts,
        caller: &'a Caller,
        error: &'a Error,
        sent: Self::Sent,
    ) -> BoxFuture<'a, Option<usize>> {
        Box::pin(async move {
            let SentChunks { document_id, chunks, embeddings } = sent;
            if let Error::Taken { kind: Embedding::KIND, id, .. } = error {
                return embeddings.iter().find(|(given, _)| given == id).map(|(_, of)| *of);
            }
            let Error::Taken { kind: Chunk::KIND, id, .. } = error else { return None };
            if let Some(position) = chunks.iter().position(|(given, _)| given == id) {
                return Some(position);
            }
            let there: Chunk = api.store.get(caller, id).await.ok()?;
            let place = (there.document_id == document_id).then_some(there.chunk_index)?;
            chunks.iter().position(|(_, chunk_index)| *chunk_index == place)
        })
    }

    fn explain(error: Error, place: Option<i32>) -> pb::IngestError {
        pb::IngestError { chunk_position: place, ..explained(in_own_words(error)) }
    }

    fn answer(answer: Acknowledged) -> Self::Answer {
        let Acknowledged { sequence, written, suggested_batch, receipt, error } = answer;
        pb::IngestChunksResponse { sequence, written, suggested_batch, receipt, error }
    }
}

fn read_chunks(
    fields: &mut Fields,
    document_id: String,
    chunks: Vec<pb::Chunk>,
    on_conflict: OnConflict,
    delete_from_index: Option<i32>,
) -> WriteChunks {
    let (mut embeddings, mut of) = (Vec::new(), 0);
    let mut rows: Vec<Chunk> = fields.batch("chunks", chunks, |fields, mut one| {
        let given = std::mem::take(&mut one.embeddings);
        let row = one.read_part(fields);
        embeddings.extend(read_given(fields, given, &row, of));
        of += 1;
        row
    });
    no_twins(fields, &embeddings, |of| format!("chunks[{of}]."));
    fields.no_duplicates(rows.iter().map(Noun::id), |n| format!("chunks[{n}].id"));
    let places: Vec<String> = rows.iter().map(|row| row.chunk_index.to_string()).collect();
    fields.no_duplicates(places.iter().map(String::as_str), |n| format!("chunks[{n}].chunk_index"));
    for row in &mut rows {
        row.document_id.clone_from(&document_id);
    }
    WriteChunks { document_id, rows, on_conflict, delete_from_index, embeddings }
}

impl Resource for pb::Chunk {
    type Row = Chunk;
    const CHANGEABLE: &'static [&'static str] = &["text", "metadata"];

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    fn read(self, f: &mut Fields, New { id, meta }: New) -> Chunk {
        let pb::Chunk {
            id: _,
            etag: _,
            meta: _,
            document_id: _,
            chunk_index,
            text,
            metadata,
            embeddings: _,
        } = self;
        if chunk_index < 0 {
            f.wrong("chunk_index", "must not be negative");
        }
        Chunk {
            id,
            meta,
            // The document's, once it is known.
            document_uid: uuid::Uuid::nil(),
            document_id: String::new(),
            chunk_index,
            text: f.name("text", text, TEXT_BYTES_MAX),
            metadata: f.object("metadata", metadata),
        }
    }
}

impl From<Chunk> for pb::Chunk {
    fn from(row: Chunk) -> Self {
        let etag = row.etag();
        let Chunk { id, meta, document_uid: _, document_id, chunk_index, text, metadata } = row;
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            document_id,
            chunk_index,
            text,
            metadata: json::to_optional_object(&metadata),
            embeddings: Vec::new(),
        }
    }
}
