//! DocumentService: documents, their analyses and their chunks.

use super::chunk::Chunks;
use super::embedding::in_own_words;
use super::ingest::Acknowledgements;
use super::resource::{New, Resource};
use super::wire::{self, Fields};
use super::{Answer, Api, decision, json, open};
use crate::pb;
use crate::store::canonical::Json;
use crate::store::document::Document;
use crate::store::ingest::WrittenChunks;
use crate::store::noun::Noun;
use tonic::{Request, Response, Streaming};

/// What a document is before anybody has said how far it is.
const PENDING: &str = "pending";

#[tonic::async_trait]
impl pb::document_service_server::DocumentService for Api {
    async fn create_document(
        &self,
        request: Request<pb::CreateDocumentRequest>,
    ) -> Answer<pb::CreateDocumentResponse> {
        let (document, receipt) = self.create(request).await?;
        Ok(Response::new(pb::CreateDocumentResponse { document, receipt }))
    }

    async fn batch_create_documents(
        &self,
        request: Request<pb::BatchCreateDocumentsRequest>,
    ) -> Answer<pb::BatchCreateDocumentsResponse> {
        let (documents, receipt) = self.create_batch(request).await?;
        Ok(Response::new(pb::BatchCreateDocumentsResponse { documents, receipt }))
    }

    async fn get_document(
        &self,
        request: Request<pb::GetDocumentRequest>,
    ) -> Answer<pb::GetDocumentResponse> {
        let document = self.get_one(request).await?;
        Ok(Response::new(pb::GetDocumentResponse { document }))
    }

    async fn batch_get_documents(
        &self,
        request: Request<pb::BatchGetDocumentsRequest>,
    ) -> Answer<pb::BatchGetDocumentsResponse> {
        let (documents, missing_ids) = self.get_several(request).await?;
        Ok(Response::new(pb::BatchGetDocumentsResponse { documents, missing_ids }))
    }

    async fn list_documents(
        &self,
        request: Request<pb::ListDocumentsRequest>,
    ) -> Answer<pb::ListDocumentsResponse> {
        let (documents, page) = self.get_page(request).await?;
        Ok(Response::new(pb::ListDocumentsResponse { documents, page }))
    }

    async fn update_document(
        &self,
        request: Request<pb::UpdateDocumentRequest>,
    ) -> Answer<pb::UpdateDocumentResponse> {
        let (document, receipt) = self.change(request).await?;
        Ok(Response::new(pb::UpdateDocumentResponse { document, receipt }))
    }

    async fn delete_document(
        &self,
        request: Request<pb::DeleteDocumentRequest>,
    ) -> Answer<pb::DeleteDocumentResponse> {
        let (document, receipt) = self.change(request).await?;
        Ok(Response::new(pb::DeleteDocumentResponse { document, receipt }))
    }

    async fn undelete_document(
        &self,
        request: Request<pb::UndeleteDocumentRequest>,
    ) -> Answer<pb::UndeleteDocumentResponse> {
        let (document, receipt) = self.change(request).await?;
        Ok(Response::new(pb::UndeleteDocumentResponse { document, receipt }))
    }

    async fn find_documents_by_hash(
        &self,
        request: Request<pb::FindDocumentsByHashRequest>,
    ) -> Answer<pb::FindDocumentsByHashResponse> {
        // Else "" and "-" would mean all of them.
        let mut fields = Fields::default();
        let content_hash = request.get_ref().content_hash.clone();
        if content_hash.is_empty() {
            fields.wrong("content_hash", "is required");
        }
        read_hash(&mut fields, content_hash);
        fields.finish(())?;
        let (documents, page) = self.get_page(request).await?;
        Ok(Response::new(pb::FindDocumentsByHashResponse { documents, page }))
    }

    async fn create_analysis(
        &self,
        request: Request<pb::CreateAnalysisRequest>,
    ) -> Answer<pb::CreateAnalysisResponse> {
        let (row, receipt) = self.write(request).await?;
        let analysis = Some(row.into());
        Ok(Response::new(pb::CreateAnalysisResponse { analysis, receipt }))
    }

    async fn get_analysis(
        &self,
        request: Request<pb::GetAnalysisRequest>,
    ) -> Answer<pb::GetAnalysisResponse> {
        let analysis = self.get_one(request).await?;
        Ok(Response::new(pb::GetAnalysisResponse { analysis }))
    }

    async fn list_analyses(
        &self,
        request: Request<pb::ListAnalysesRequest>,
    ) -> Answer<pb::ListAnalysesResponse> {
        let (analyses, page) = self.get_page(request).await?;
        Ok(Response::new(pb::ListAnalysesResponse { analyses, page }))
    }

    async fn get_latest_analysis(
        &self,
        request: Request<pb::GetLatestAnalysisRequest>,
    ) -> Answer<pb::GetLatestAnalysisResponse> {
        let (caller, request) = open(request)?;
        let pb::GetLatestAnalysisRequest { document_id, consistency, read_mask } = request;
        let document_id = wire::id("document_id", document_id)?;
        let found = self.store.latest_analysis(&caller, &document_id);
        let analysis = self.get_now(&caller, consistency, read_mask, found).await?;
        Ok(Response::new(pb::GetLatestAnalysisResponse { analysis }))
    }

    async fn get_chunk(
        &self,
        request: Request<pb::GetChunkRequest>,
    ) -> Answer<pb::GetChunkResponse> {
        let chunk = self.get_one(request).await?;
        Ok(Response::new(pb::GetChunkResponse { chunk }))
    }

    async fn list_chunks(
        &self,
        request: Request<pb::ListChunksRequest>,
    ) -> Answer<pb::ListChunksResponse> {
        let (chunks, page) = self.get_page(request).await?;
        Ok(Response::new(pb::ListChunksResponse { chunks, page }))
    }

    async fn update_chunk(
        &self,
        request: Request<pb::UpdateChunkRequest>,
    ) -> Answer<pb::UpdateChunkResponse> {
        let (chunk, receipt) = self.change(request).await?;
        Ok(Response::new(pb::UpdateChunkResponse { chunk, receipt }))
    }

    async fn delete_chunk(
        &self,
        request: Request<pb::DeleteChunkRequest>,
    ) -> Answer<pb::DeleteChunkResponse> {
        let (chunk, receipt) = self.change(request).await?;
        Ok(Response::new(pb::DeleteChunkResponse { chunk, receipt }))
    }

    async fn batch_create_chunks(
        &self,
        request: Request<pb::BatchCreateChunksRequest>,
    ) -> Answer<pb::BatchCreateChunksResponse> {
        let (WrittenChunks { chunk_ids, total_chunks, written: _ }, receipt) =
            self.write(request).await.map_err(in_own_words)?;
        Ok(Response::new(pb::BatchCreateChunksResponse { chunk_ids, total_chunks, receipt }))
    }

    type IngestChunksStream = Acknowledgements<pb::IngestChunksResponse>;

    async fn ingest_chunks(
        &self,
        request: Request<Streaming<pb::IngestChunksRequest>>,
    ) -> Answer<Self::IngestChunksStream> {
        Ok(Response::new(self.ingest::<Chunks>(request)?))
    }
}

crate::requests! { Document:
    create CreateDocumentRequest(document_id document);
    batch BatchCreateDocumentsRequest(requests);
    get GetDocumentRequest(document_id);
    batch_get BatchGetDocumentsRequest(document_ids);
    list ListDocumentsRequest("create_time" by [("create_time", true)]);
    list FindDocumentsByHashRequest("create_time" by [("create_time", true)] of "d.content_hash" content_hash);
    update UpdateDocumentRequest(document);
    delete DeleteDocumentRequest(document_id);
    undelete UndeleteDocumentRequest(document_id);
}

impl Resource for pb::Document {
    type Row = Document;
    #[rustfmt::skip]
    const CHANGEABLE: &'static [&'static str] = &[
        "filename", "original_filename", "source_path", "size_bytes", "mime_type", "content_hash", "status", "metadata",
        "labels", "owner_id", "content", "retention_class", "subject_id",
    ];

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    fn read(self, f: &mut Fields, New { id, meta }: New) -> Document {
        let pb::Document {
            id: _,
            etag: _,
            meta: _,
            filename,
            original_filename,
            source_path,
            size_bytes,
            mime_type,
            content_hash,
            total_chunks: _,
            status,
            metadata,
            labels,
            owner_id,
            content,
            retention_class,
            subject_id,
        } = self;
        if size_bytes.is_some_and(|size| size < 0) {
            f.wrong("size_bytes", "must not be negative");
        }
        Document {
            id,
            meta,
            filename: f.name("filename", filename, 255),
            original_filename: f.text("original_filename", original_filename, 255),
            source_path: f.name("source_path", source_path, 4096),
            size_bytes,
            mime_type: f.text("mime_type", mime_type, 255),
            content_hash: read_hash(f, content_hash),
            // The server counts them.
            total_chunks: 0,
            status: read_status(f, status),
            metadata: f.object("metadata", metadata),
            labels: f.labels("labels", labels),
            owner_id: f.text("owner_id", owner_id, 255),
            content: content.map_or_else(Json::object, |content| {
                json::of_value(&f.within("content", |f| f.one_reference(content)))
            }),
            retention_class: f.text("retention_class", retention_class, 63),
            subject_id: f.text("subject_id", subject_id, 255),
        }
    }
}

fn read_hash(fields: &mut Fields, value: String) -> String {
    let is_digit = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    let sound = value.is_empty() || value.len() == 64 && value.as_bytes().iter().all(is_digit);
    fields.shaped("content_hash", value, sound, "must be 64 lower-case hexadecimal digits")
}

fn read_status(fields: &mut Fields, value: String) -> String {
    if value.is_empty() {
        return PENDING.to_owned();
    }
    let bytes = value.as_bytes();
    let sound = bytes.len() <= 50
        && bytes[0].is_ascii_lowercase()
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'_');
    fields.shaped("status", value, sound, "must match ^[a-z][a-z0-9_]{0,49}$")
}

impl From<Document> for pb::Document {
    fn from(row: Document) -> Self {
        let etag = row.etag();
        let Document {
            id,
            meta,
            filename,
            original_filename,
            source_path,
            size_bytes,
            mime_type,
            content_hash,
            total_chunks,
            status,
            metadata,
            labels,
            owner_id,
            content,
            retention_class,
            subject_id,
        } = row;
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            filename,
            original_filename,
            source_path,
            size_bytes,
            mime_type,
            content_hash,
            total_chunks,
            status,
            metadata: json::to_optional_object(&metadata),
            labels: json::to_strings(&labels),
            owner_id,
            content: decision::reference_of(&content),
            retention_class,
            subject_id,
        }
    }
}
