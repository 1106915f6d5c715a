//! Chunks on the wire.

use super::json;
use super::resource::{New, Resource, read_delete, read_update};
use super::wire::{self, Fields};
use crate::pb;
use crate::store::change::OnConflict;
use crate::store::chunk::{Chunk, ModifyChunk};
use crate::store::ingest::WriteChunks;
use crate::store::noun::Noun;

const TEXT_BYTES_MAX: usize = 1 << 20;

crate::requests! { Chunk:
    get GetChunkRequest(chunk_id);
    list ListChunksRequest("create_time" by [("document_id", false), ("chunk_index", false)] of "d.document_id" document_id in "document");
}

crate::requests!(@ask UpdateChunkRequest -> ModifyChunk, |fields, on_conflict, chunk, update_mask| {
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
});

fn read_chunks(
    fields: &mut Fields,
    document_id: String,
    chunks: Vec<pb::Chunk>,
    on_conflict: OnConflict,
    delete_from_index: Option<i32>,
) -> WriteChunks {
    let mut rows: Vec<Chunk> = fields.batch("chunks", chunks, |fields, one| one.read_part(fields));
    fields.no_duplicates(rows.iter().map(Noun::id), |n| format!("chunks[{n}].id"));
    let places: Vec<String> = rows.iter().map(|row| row.chunk_index.to_string()).collect();
    fields.no_duplicates(places.iter().map(String::as_str), |n| format!("chunks[{n}].chunk_index"));
    for row in &mut rows {
        row.document_id.clone_from(&document_id);
    }
    WriteChunks { document_id, rows, on_conflict, delete_from_index }
}

impl Resource for pb::Chunk {
    type Row = Chunk;
    const CHANGEABLE: &'static [&'static str] = &["text", "metadata"];

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    fn read(self, f: &mut Fields, New { id, meta }: New) -> Chunk {
        let pb::Chunk { id: _, etag: _, meta: _, document_id: _, chunk_index, text, metadata } =
            self;
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
        }
    }
}
