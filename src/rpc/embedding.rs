//! VectorService: embeddings and the search for the nearest, checked and worded.

mod given;
pub(super) mod search;

use super::descriptor::ReadMask;
use super::ingest::{Acknowledged, Acknowledgements, Bulk, explained};
use super::search::legs::Again;
use super::search_receipt::may_keep;
use super::wire::{self, Fields, LONG_TEXT_BYTES_MAX, kind_name, kind_number};
use super::{Answer, Api, Paged, Parts, Selection, json, open};
use crate::pb;
use crate::store::caller::Caller;
use crate::store::change::Modify;
use crate::store::embedding::{
    self, DeleteEmbeddings, Embedding, ID_BYTES_MAX, WriteEmbeddings, WrittenEmbeddings, full_id,
    in_space,
};
use crate::store::noun::{Meta, Noun};
use crate::store::vector::{Numbers, f32_le, from_f32_le};
use crate::store::vector_space::VectorSpace;
use crate::{Error, Reason, Result};
use futures_util::future::{BoxFuture, ready};
pub(super) use given::{name_spaces, no_twins, read_given};
use search::{Hits, TOP_K, TOP_K_MAX};
use std::sync::Arc;
use tonic::{Request, Response, Streaming};
use uuid::Uuid;

const QUERIES_MAX: usize = 100;

#[tonic::async_trait]
impl pb::vector_service_server::VectorService for Api {
    async fn upsert_embedding(
        &self,
        request: Request<pb::UpsertEmbeddingRequest>,
    ) -> Answer<pb::UpsertEmbeddingResponse> {
        let (WrittenEmbeddings { rows, .. }, receipt) =
            self.write(request).await.map_err(in_own_words)?;
        let embedding = Some(super::only(rows)?.into());
        Ok(Response::new(pb::UpsertEmbeddingResponse { embedding, receipt }))
    }

    async fn batch_upsert_embeddings(
        &self,
        request: Request<pb::BatchUpsertEmbeddingsRequest>,
    ) -> Answer<pb::BatchUpsertEmbeddingsResponse> {
        let (WrittenEmbeddings { rows, written }, receipt) =
            self.write(request).await.map_err(in_own_words)?;
        // The replay of a call that wrote nothing is rebuilt from the entries of others.
        let unchanged = receipt.as_ref().is_some_and(|receipt| receipt.unchanged);
        let written = if unchanged { 0 } else { written };
        Ok(Response::new(pb::BatchUpsertEmbeddingsResponse {
            embedding_ids: rows.into_iter().map(|row| row.embedding_id).collect(),
            written_count: i32::try_from(written).map_err(Error::internal)?,
            receipt,
        }))
    }

    type IngestEmbeddingsStream = Acknowledgements<pb::IngestEmbeddingsResponse>;

    async fn ingest_embeddings(
        &self,
        request: Request<Streaming<pb::IngestEmbeddingsRequest>>,
    ) -> Answer<Self::IngestEmbeddingsStream> {
        Ok(Response::new(self.ingest::<Embeddings>(request)?))
    }

    async fn get_embedding(
        &self,
        request: Request<pb::GetEmbeddingRequest>,
    ) -> Answer<pb::GetEmbeddingResponse> {
        let (caller, request) = open(request)?;
        let pb::GetEmbeddingRequest {
            vector_space_id,
            embedding_id,
            consistency,
            read_mask,
            version,
        } = request;
        let mask = Mask::new(read_mask)?;
        let id = wire::id("embedding_id", embedding_id)?;
        let seq = self.read_at(&caller, consistency.clone()).await?;
        let space = self.space(&caller, "vector_space_id", vector_space_id, seq).await?;
        let id = full_id(space.meta.uid, &id);
        let row = self.get(&caller, id, consistency, version).await.map_err(in_own_words)?;
        let mut worded = self.embeddings(&caller, vec![row], &mask).await?;
        Ok(Response::new(pb::GetEmbeddingResponse { embedding: worded.pop() }))
    }

    async fn list_embeddings(
        &self,
        request: Request<pb::ListEmbeddingsRequest>,
    ) -> Answer<pb::ListEmbeddingsResponse> {
        let (caller, mut request) = open(request)?;
        let order = &[("create_time", true)];
        let lister = self.lister(&caller, &mut request, &embedding::LISTING, order)?;
        let pb::ListEmbeddingsRequest {
            page: _,
            vector_space_id,
            r#where,
            window,
            consistency,
            read_mask,
            show_deleted,
        } = request;
        let mask = Mask::new(read_mask)?;
        let snapshot = self.read_at(&caller, consistency).await?;
        // The pages after the first look for the space where the first one did.
        let seq = lister.page.snapshot.or(snapshot);
        let space = self.space(&caller, "vector_space_id", vector_space_id, seq).await?;
        let filter = in_space(&space, lister.filter(r#where)?)?;
        let window = lister.window("create_time", window)?;
        let selection = Selection { filter, window, show_deleted, snapshot, parent: None };
        let (rows, page) = self.list::<Embedding>(&caller, &lister, selection).await?;
        let embeddings = self.embeddings(&caller, rows, &mask).await?;
        Ok(Response::new(pb::ListEmbeddingsResponse { embeddings, page }))
    }

    async fn delete_embedding(
        &self,
        request: Request<pb::DeleteEmbeddingRequest>,
    ) -> Answer<pb::DeleteEmbeddingResponse> {
        let (gone, receipt) = self.write(request).await.map_err(in_own_words)?;
        let embedding = gone.into_iter().next().map(Into::into);
        Ok(Response::new(pb::DeleteEmbeddingResponse { embedding, receipt }))
    }

    async fn batch_delete_embeddings(
        &self,
        request: Request<pb::BatchDeleteEmbeddingsRequest>,
    ) -> Answer<pb::BatchDeleteEmbeddingsResponse> {
        let (gone, receipt): (Vec<Embedding>, _) =
            self.write(request).await.map_err(in_own_words)?;
        let deleted_count = i32::try_from(gone.len()).map_err(Error::internal)?;
        Ok(Response::new(pb::BatchDeleteEmbeddingsResponse { deleted_count, receipt }))
    }

    async fn search_vectors(
        &self,
        request: Request<pb::SearchVectorsRequest>,
    ) -> Answer<pb::SearchVectorsResponse> {
        let (caller, request) = open(request)?;
        let pb::SearchVectorsRequest { query, consistency, read_mask, keep_receipt } = request;
        let query = query.ok_or_else(|| Error::invalid("query", "is required"))?;
        may_keep(&caller, "keep_receipt", keep_receipt)?;
        let asked = keep_receipt.then(|| query.clone());
        let queries = vec![("query".to_owned(), query)];
        let again = Again { seq: self.read_at(&caller, consistency).await?, ..Again::default() };
        let (found, seq) = self.search_spaces(&caller, queries, again, read_mask).await?;
        let found = super::only(found)?;
        let search_receipt_id = match asked {
            Some(query) => self.keep(&caller, found.to_keep(query, seq)).await?,
            None => String::new(),
        };
        let Hits { hits, method, incomplete, .. } = found;
        let read_at = Some(self.revision(&caller, seq)?);
        Ok(Response::new(pb::SearchVectorsResponse {
            hits,
            read_at,
            method,
            incomplete,
            search_receipt_id,
        }))
    }

    async fn batch_search_vectors(
        &self,
        request: Request<pb::BatchSearchVectorsRequest>,
    ) -> Answer<pb::BatchSearchVectorsResponse> {
        let (caller, request) = open(request)?;
        let pb::BatchSearchVectorsRequest { queries, consistency, read_mask, keep_receipts } =
            request;
        may_keep(&caller, "keep_receipts", keep_receipts)?;
        if !(1..=QUERIES_MAX).contains(&queries.len()) {
            let range = format!("must have 1 to {QUERIES_MAX} items, and has {}", queries.len());
            return Err(Error::invalid("queries", range).into());
        }
        let hits = queries.iter().map(|query| if query.top_k == 0 { TOP_K } else { query.top_k });
        if hits.fold(0, i32::saturating_add) > TOP_K_MAX {
            let most = format!("must ask for at most {TOP_K_MAX} hits together");
            return Err(Error::invalid("queries", most).into());
        }
        let asked = keep_receipts.then(|| queries.clone());
        let queries = queries.into_iter().enumerate();
        let queries = queries.map(|(n, query)| (format!("queries[{n}]"), query)).collect();
        let again = Again { seq: self.read_at(&caller, consistency).await?, ..Again::default() };
        let (found, seq) = self.search_spaces(&caller, queries, again, read_mask).await?;
        let search_receipt_ids = match asked {
            Some(asked) => {
                let keep = found.iter().zip(asked).map(|(found, query)| found.to_keep(query, seq));
                self.keep_all(&caller, keep.collect()).await?
            }
            None => Vec::new(),
        };
        let results = found.into_iter();
        Ok(Response::new(pb::BatchSearchVectorsResponse {
            results: results
                .map(|Hits { hits, method, incomplete, .. }| {
                    pb::batch_search_vectors_response::Result { hits, method, incomplete }
                })
                .collect(),
            read_at: Some(self.revision(&caller, seq)?),
            search_receipt_ids,
        }))
    }
}

impl Paged for pb::ListEmbeddingsRequest {
    fn page_mut(&mut self) -> &mut Option<pb::PageRequest> {
        &mut self.page
    }
}

/// What of embeddings is returned.
struct Mask {
    fields: ReadMask,
    /// The vector is large, so it is only read where it is asked for.
    with_vector: bool,
}

impl Mask {
    fn new(mask: Option<prost_types::FieldMask>) -> Result<Self> {
        let paths = mask.iter().flat_map(|mask| &mask.paths);
        let with_vector = paths.clone().any(|path| path == "vector" || path == "*");
        Ok(Self { fields: ReadMask::new::<pb::Embedding>(mask)?, with_vector })
    }
}

impl Parts {
    /// Embeddings on the wire.
    async fn embeddings(
        &self,
        caller: &Caller,
        rows: Vec<Embedding>,
        mask: &Mask,
    ) -> Result<Vec<pb::Embedding>> {
        let mut vectors = Default::default();
        if mask.with_vector {
            let numbers =
                rows.iter().map(|row| usize::try_from(row.dimensions).unwrap_or_default());
            let size_bytes = 4 * numbers.sum::<usize>();
            if size_bytes > self.message_out_max {
                let what = format!(
                    "asks for {size_bytes} bytes of vectors, and an answer has at most {}: ask for fewer at once",
                    self.message_out_max
                );
                return Err(Error::invalid("read_mask", what));
            }
            vectors = self.store.vectors(caller, &rows).await?;
        }
        let worded = rows.into_iter().map(|row| {
            let vector = vectors.remove(&(row.meta.uid, row.vector_digest.clone()));
            let vector = vector.map(|values| pb::Vector {
                data: Some(pb::vector::Data::F32Le(f32_le(&values).into())),
            });
            mask.fields.apply(pb::Embedding { vector, ..row.into() })
        });
        worded.collect()
    }
}

crate::requests!(@ask UpsertEmbeddingRequest -> WriteEmbeddings,
|fields, on_conflict, vector_space_id, embedding| {
    let home = Home::named(fields, vector_space_id);
    let embedding = fields.required("embedding", embedding);
    let read = fields.within("embedding", |fields| read_embedding(fields, embedding, &home));
    let (rows, vectors) = read.into_iter().unzip();
    WriteEmbeddings { rows, vectors, on_conflict }
}, spaces |request, names| { names.insert(&request.vector_space_id); }, replaces true);

crate::requests!(@ask BatchUpsertEmbeddingsRequest -> WriteEmbeddings,
|fields, on_conflict, vector_space_id, embeddings| {
    let home = Home::named(fields, vector_space_id);
    let read = fields.batch("embeddings", embeddings, |fields, one| read_embedding(fields, one, &home));
    let (rows, vectors): (Vec<Embedding>, _) = read.into_iter().flatten().unzip();
    if fields.is_sound() {
        let ids = rows.iter().map(|row| row.embedding_id.as_str());
        fields.no_duplicates(ids, |n| format!("embeddings[{n}].id"));
    }
    WriteEmbeddings { rows, vectors, on_conflict }
}, spaces |request, names| { names.insert(&request.vector_space_id); }, replaces true);

crate::requests!(@ask DeleteEmbeddingRequest -> DeleteEmbeddings,
|fields, on_conflict, vector_space_id, embedding_id, etag, allow_missing| {
    fields.only_fail(on_conflict);
    let home = Home::named(fields, vector_space_id);
    let id = fields.id("embedding_id", embedding_id);
    home.delete([id], fields.etag("etag", etag), allow_missing)
}, spaces |request, names| { names.insert(&request.vector_space_id); });

crate::requests!(@ask BatchDeleteEmbeddingsRequest -> DeleteEmbeddings,
|fields, on_conflict, vector_space_id, embedding_ids, allow_missing| {
    fields.only_fail(on_conflict);
    let home = Home::named(fields, vector_space_id);
    let ids = fields.batch("embedding_ids", embedding_ids, |fields, id| fields.id("", id));
    fields.no_duplicates(ids.iter().map(String::as_str), |n| format!("embedding_ids[{n}]"));
    home.delete(ids, None, allow_missing)
}, spaces |request, names| { names.insert(&request.vector_space_id); });

/// What IngestEmbeddings brings.
struct Embeddings;

impl Bulk for Embeddings {
    type Message = pb::IngestEmbeddingsRequest;
    type Request = pb::BatchUpsertEmbeddingsRequest;
    type Answer = pb::IngestEmbeddingsResponse;
    /// The ids of the embeddings, as errors have them.
    type Sent = Vec<String>;
    const ITEMS: &'static str = "embeddings";

    fn open(message: Self::Message) -> (i64, Self::Request) {
        let pb::IngestEmbeddingsRequest { sequence, vector_space_id, embeddings, options } =
            message;
        (sequence, pb::BatchUpsertEmbeddingsRequest { vector_space_id, embeddings, options })
    }

    fn remember(change: &WriteEmbeddings) -> Self::Sent {
        change.rows.iter().map(|row| row.id.clone()).collect()
    }

    fn written(answer: &WrittenEmbeddings) -> usize {
        answer.written
    }

    fn find<'a>(
        _: &'a Parts,
        _: &'a Caller,
        error: &'a Error,
        ids: Self::Sent,
    ) -> BoxFuture<'a, Option<usize>> {
        let place = match error {
            Error::Taken { kind: Embedding::KIND, id, .. } => ids.iter().position(|own| own == id),
            _ => None,
        };
        Box::pin(ready(place))
    }

    fn explain(error: Error, place: Option<i32>) -> pb::IngestError {
        pb::IngestError { embedding_position: place, ..explained(in_own_words(error)) }
    }

    fn answer(answer: Acknowledged) -> Self::Answer {
        let Acknowledged { sequence, written, suggested_batch, receipt, error } = answer;
        pb::IngestEmbeddingsResponse { sequence, written, suggested_batch, receipt, error }
    }
}

/// The space that embeddings are written into, as it was looked up.
struct Home {
    name: String,
    space: Option<Arc<VectorSpace>>,
}

impl Home {
    /// Of the name in the field `vector_space_id`.
    fn named(fields: &mut Fields, name: String) -> Self {
        let name = fields.id("vector_space_id", name);
        Self { space: fields.space(&name), name }
    }

    fn delete(
        self,
        ids: impl IntoIterator<Item = String>,
        etag: Option<String>,
        allow_missing: bool,
    ) -> DeleteEmbeddings {
        let uid = self.space.as_ref().map_or(Uuid::nil(), |space| space.meta.uid);
        let delete = |id: String| Modify::delete(full_id(uid, &id), etag.clone(), allow_missing);
        DeleteEmbeddings {
            deletes: ids.into_iter().map(delete).collect(),
            unknown_space: self.space.is_none().then_some(self.name),
        }
    }
}

/// Whether an id is that of an embedding as references, the log and the store have it: behind its space's uid.
pub(super) fn is_full_id(id: &str) -> bool {
    id.split_once('/')
        .is_some_and(|(uid, _)| uid.len() == UID_BYTES && Uuid::try_parse(uid).is_ok())
}

/// What must be said of one that is not.
pub(super) const FULL_ID: &str =
    "must be the uid of the vector space, a slash and the embedding's id, as in the audit log";

const UID_BYTES: usize = 36;

/// Says an error as callers know embeddings: by their ids in their space, and by the fields of the message.
pub(super) fn in_own_words(error: Error) -> Error {
    // A uid is told here in no other way.
    let own = |text: &str| -> String {
        let mut left = text.to_owned();
        while let Some(end) = left.match_indices('/').map(|(end, _)| end).find(|end| {
            let uid = end.checked_sub(UID_BYTES).and_then(|begin| left.get(begin..*end));
            uid.is_some_and(|uid| Uuid::try_parse(uid).is_ok())
        }) {
            left.replace_range(end - UID_BYTES..=end, "");
        }
        left
    };
    let field = |field: &String| match field.as_str() {
        "vector_digest" => "vector".to_owned(),
        of if of.starts_with("of_") => "subject".to_owned(),
        other => other.to_owned(),
    };
    match error {
        Error::NotFound { kind: kind @ Embedding::KIND, id } => {
            Error::NotFound { kind, id: own(&id) }
        }
        Error::Stale { kind: kind @ Embedding::KIND, id, current_etag } => {
            Error::Stale { kind, id: own(&id), current_etag }
        }
        Error::Taken { kind: kind @ Embedding::KIND, id, fields } => {
            let mut fields: Vec<String> = fields.iter().map(field).collect();
            fields.dedup();
            Error::Taken { kind, id: own(&id), fields }
        }
        Error::Expired(message) => Error::Expired(own(&message)),
        Error::Refused { reason, message, metadata } if message.contains("embedding \"") => {
            Error::Refused { reason, message: own(&message), metadata }
        }
        other => other,
    }
}

/// An embedding of a space; `None` where its vector is none of the space's. Where there is no space, it stands for what was
/// written when there was one.
fn read_embedding(
    f: &mut Fields,
    message: pb::Embedding,
    home: &Home,
) -> Option<(Embedding, Numbers)> {
    let pb::Embedding {
        id,
        etag: _,
        meta: _,
        vector_space_id: _,
        subject,
        decision_id,
        owner_id,
        embedding_model,
        dimensions: _,
        vector,
        vector_digest: _,
        context,
        tags,
        similarity_threshold,
        source,
        metadata,
    } = message;
    let uid = Uuid::now_v7();
    let pb::ResourceRef { kind, id: of_id, version: of_version } = subject.unwrap_or_default();
    let (mut of_kind, mut of_id) = (String::new(), of_id);
    if kind != 0 || !of_id.is_empty() || of_version != 0 {
        of_id = f.within("subject", |f| {
            match kind_name(kind) {
                Some(name) => of_kind = name,
                None => f.wrong("kind", format!("must be a known kind, and is {kind}")),
            }
            if of_version < 0 {
                f.wrong("version", "must not be negative");
            }
            f.id_of(&of_kind, "id", of_id)
        });
    }
    let own_id = match id.is_empty() {
        // What is wrong with the subject's id is said there.
        true if wire::is_id(&of_id) => of_id.clone(),
        _ => f.new_id("id", id, uid),
    };
    if own_id.len() > ID_BYTES_MAX {
        f.wrong("id", format!("must have at most {ID_BYTES_MAX} bytes"));
    }
    let Some(space) = &home.space else {
        let row = Embedding::without_space(home.name.clone(), own_id, uid);
        return Some((row, Numbers::none()));
    };
    if !embedding_model.is_empty() && embedding_model != space.embedding_model {
        let shown: String = embedding_model.chars().take(255).collect();
        let both = format!(
            "must be {:?}, the model of the vector space \"{}\", and is {shown:?}",
            space.embedding_model, space.id
        );
        f.wrong_because(Reason::ModelMismatch, "embedding_model", both);
    }
    let row = Embedding {
        id: full_id(space.meta.uid, &own_id),
        meta: Meta::new(uid),
        space_uid: space.meta.uid,
        space_id: space.id.clone(),
        embedding_id: own_id,
        embedding_model: space.embedding_model.clone(),
        dimensions: space.dimensions,
        of_kind,
        of_id,
        of_version,
        decision_id: f.reference("decision_id", decision_id),
        owner_id: f.text("owner_id", owner_id, 255),
        vector_digest: String::new(),
        context: f.text("context", context, LONG_TEXT_BYTES_MAX),
        tags: f.tags("tags", tags),
        similarity_threshold: similarity_threshold
            .map(|value| f.confidence("similarity_threshold", value)),
        source: f.object("source", source),
        metadata: f.object("metadata", metadata),
    };
    let numbers = read_vector(f, vector, space)?;
    Some((Embedding { vector_digest: numbers.digest.clone(), ..row }, numbers))
}

/// A vector of a space; `None` where it is none.
pub(super) fn read_vector(
    f: &mut Fields,
    vector: Option<pb::Vector>,
    space: &VectorSpace,
) -> Option<Numbers> {
    let values = match vector.and_then(|vector| vector.data) {
        Some(pb::vector::Data::Floats(list)) => Some(list.values),
        Some(pb::vector::Data::F32Le(bytes)) => {
            let values = from_f32_le(&bytes);
            if values.is_none() {
                let both = format!(
                    "must have 4 bytes for each of {} dimensions, and has {} bytes",
                    space.dimensions,
                    bytes.len()
                );
                f.wrong_because(Reason::DimensionMismatch, "vector.f32_le", both);
            }
            values
        }
        None => {
            f.wrong("vector", "is required");
            None
        }
    }?;
    match Numbers::of(space, values) {
        Ok(numbers) => Some(numbers),
        Err((reason, what)) => {
            f.wrong_because(reason, "vector", what);
            None
        }
    }
}

impl From<Embedding> for pb::Embedding {
    fn from(row: Embedding) -> Self {
        let etag = row.etag();
        let Embedding {
            id: _,
            meta,
            space_uid: _,
            space_id,
            embedding_id,
            embedding_model,
            dimensions,
            of_kind,
            of_id,
            of_version,
            decision_id,
            owner_id,
            vector_digest,
            context,
            tags,
            similarity_threshold,
            source,
            metadata,
        } = row;
        let subject = (!of_kind.is_empty()).then(|| pb::ResourceRef {
            kind: kind_number(&of_kind).into(),
            id: of_id,
            version: of_version,
        });
        Self {
            id: embedding_id,
            etag,
            meta: wire::meta(meta),
            vector_space_id: space_id,
            subject,
            decision_id,
            owner_id,
            embedding_model,
            dimensions,
            vector: None,
            vector_digest,
            context,
            tags: json::parsed(&tags),
            similarity_threshold,
            source: json::to_optional_object(&source),
            metadata: json::to_optional_object(&metadata),
        }
    }
}
