//! VectorService: embeddings and the search for the nearest, checked and worded.

pub(super) mod search;

use super::descriptor::ReadMask;
use super::wire::{self, Fields, LONG_TEXT_BYTES_MAX, Write, kind_name, kind_number};
use super::{Answer, Api, Paged, Parts, Selection, json, open};
use crate::pb;
use crate::store::caller::Caller;
use crate::store::change::Modify;
use crate::store::embedding::{
    self, DeleteEmbeddings, Embedding, WriteEmbeddings, WrittenEmbeddings, full_id, in_space,
};
use crate::store::noun::{Meta, Noun};
use crate::store::vector::{Numbers, f32_le, from_f32_le};
use crate::store::vector_space::{FLOAT16, VectorSpace};
use crate::store::write::{Change, WriteOptions};
use crate::{Error, Reason, Result};
use search::{Hits, TOP_K, TOP_K_MAX};
use tonic::{Request, Response};
use uuid::Uuid;

const QUERIES_MAX: usize = 100;
/// With the space's uid and a slash before it, it is an id like any other.
const ID_BYTES_MAX: usize = wire::ID_BYTES_MAX - UID_BYTES - 1;

#[tonic::async_trait]
impl pb::vector_service_server::VectorService for Api {
    async fn upsert_embedding(
        &self,
        request: Request<pb::UpsertEmbeddingRequest>,
    ) -> Answer<pb::UpsertEmbeddingResponse> {
        let (caller, request) = open(request)?;
        let digest = wire::digest(&request, request.options.as_ref());
        let pb::UpsertEmbeddingRequest { vector_space_id, embedding, options } = request;
        let embedding = embedding.ok_or_else(|| Error::invalid("embedding", "is required"))?;
        let asked = Upsert { vector_space_id, options, digest, is_batch: false };
        let (WrittenEmbeddings { rows, .. }, receipt) =
            self.upsert(caller, asked, vec![embedding]).await?;
        let embedding = Some(super::only(rows)?.into());
        Ok(Response::new(pb::UpsertEmbeddingResponse { embedding, receipt }))
    }

    async fn batch_upsert_embeddings(
        &self,
        request: Request<pb::BatchUpsertEmbeddingsRequest>,
    ) -> Answer<pb::BatchUpsertEmbeddingsResponse> {
        let (caller, request) = open(request)?;
        let digest = wire::digest(&request, request.options.as_ref());
        let pb::BatchUpsertEmbeddingsRequest { vector_space_id, embeddings, options } = request;
        let asked = Upsert { vector_space_id, options, digest, is_batch: true };
        let (WrittenEmbeddings { rows, written }, receipt) =
            self.upsert(caller, asked, embeddings).await?;
        // The replay of a call that wrote nothing is rebuilt from the entries of others.
        let unchanged = receipt.as_ref().is_some_and(|receipt| receipt.unchanged);
        let written = if unchanged { 0 } else { written };
        Ok(Response::new(pb::BatchUpsertEmbeddingsResponse {
            embedding_ids: rows.into_iter().map(|row| row.embedding_id).collect(),
            written_count: i32::try_from(written).map_err(Error::internal)?,
            receipt,
        }))
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
        let (caller, request) = open(request)?;
        let digest = wire::digest(&request, request.options.as_ref());
        let pb::DeleteEmbeddingRequest {
            vector_space_id,
            embedding_id,
            etag,
            allow_missing,
            options,
        } = request;
        let asked = Delete { vector_space_id, options, digest, allow_missing };
        let ids = (vec![embedding_id], Some(etag));
        let (gone, receipt) = self.delete_embeddings(caller, asked, ids).await?;
        let embedding = gone.into_iter().next().map(Into::into);
        Ok(Response::new(pb::DeleteEmbeddingResponse { embedding, receipt }))
    }

    async fn batch_delete_embeddings(
        &self,
        request: Request<pb::BatchDeleteEmbeddingsRequest>,
    ) -> Answer<pb::BatchDeleteEmbeddingsResponse> {
        let (caller, request) = open(request)?;
        let digest = wire::digest(&request, request.options.as_ref());
        let pb::BatchDeleteEmbeddingsRequest {
            vector_space_id,
            embedding_ids,
            allow_missing,
            options,
        } = request;
        let asked = Delete { vector_space_id, options, digest, allow_missing };
        let ids = (embedding_ids, None);
        let (gone, receipt) = self.delete_embeddings(caller, asked, ids).await?;
        let deleted_count = i32::try_from(gone.len()).map_err(Error::internal)?;
        Ok(Response::new(pb::BatchDeleteEmbeddingsResponse { deleted_count, receipt }))
    }

    async fn search_vectors(
        &self,
        request: Request<pb::SearchVectorsRequest>,
    ) -> Answer<pb::SearchVectorsResponse> {
        let (caller, request) = open(request)?;
        let pb::SearchVectorsRequest { query, consistency, read_mask } = request;
        let query = query.ok_or_else(|| Error::invalid("query", "is required"))?;
        let queries = vec![("query".to_owned(), query)];
        let (found, seq) = self.search_spaces(&caller, queries, consistency, read_mask).await?;
        let Hits { hits, method, incomplete } = super::only(found)?;
        let read_at = Some(self.revision(&caller, seq)?);
        Ok(Response::new(pb::SearchVectorsResponse { hits, read_at, method, incomplete }))
    }

    async fn batch_search_vectors(
        &self,
        request: Request<pb::BatchSearchVectorsRequest>,
    ) -> Answer<pb::BatchSearchVectorsResponse> {
        let (caller, request) = open(request)?;
        let pb::BatchSearchVectorsRequest { queries, consistency, read_mask } = request;
        if !(1..=QUERIES_MAX).contains(&queries.len()) {
            let range = format!("must have 1 to {QUERIES_MAX} items, and has {}", queries.len());
            return Err(Error::invalid("queries", range).into());
        }
        let hits = queries.iter().map(|query| if query.top_k == 0 { TOP_K } else { query.top_k });
        if hits.fold(0, i32::saturating_add) > TOP_K_MAX {
            let most = format!("must ask for at most {TOP_K_MAX} hits together");
            return Err(Error::invalid("queries", most).into());
        }
        let queries = queries.into_iter().enumerate();
        let queries = queries.map(|(n, query)| (format!("queries[{n}]"), query)).collect();
        let (found, seq) = self.search_spaces(&caller, queries, consistency, read_mask).await?;
        let results = found.into_iter();
        Ok(Response::new(pb::BatchSearchVectorsResponse {
            results: results
                .map(|Hits { hits, method, incomplete }| {
                    pb::batch_search_vectors_response::Result { hits, method, incomplete }
                })
                .collect(),
            read_at: Some(self.revision(&caller, seq)?),
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

    /// Writes embeddings with their vectors.
    async fn upsert(
        &self,
        caller: Caller,
        asked: Upsert,
        messages: Vec<pb::Embedding>,
    ) -> Result<(WrittenEmbeddings, Option<pb::WriteReceipt>)> {
        self.upsert_as(caller, asked, messages, |change| change).await
    }

    /// The same, as part of a change that does more.
    pub(super) async fn upsert_as<C: Change<Answer = WrittenEmbeddings>>(
        &self,
        caller: Caller,
        asked: Upsert,
        messages: Vec<pb::Embedding>,
        whole: impl FnOnce(WriteEmbeddings) -> C,
    ) -> Result<(WrittenEmbeddings, Option<pb::WriteReceipt>)> {
        let Upsert { vector_space_id, options, digest, is_batch } = asked;
        let own_ids: Vec<String> = messages.iter().map(own_id).collect();
        let mut fields = Fields::new(&caller, self.batch_max);
        let (options, on_conflict) = fields.options(or_replace(options), digest);
        let read = async {
            let space = self.space(&caller, "vector_space_id", vector_space_id, None).await?;
            let read: Vec<Option<(Embedding, Numbers)>> = if is_batch {
                fields.batch("embeddings", messages, |f, one| read_embedding(f, one, &space))
            } else {
                let one =
                    |f: &mut Fields, one| f.within("embedding", |f| read_embedding(f, one, &space));
                messages.into_iter().map(|message| one(&mut fields, message)).collect()
            };
            let (rows, vectors): (Vec<Embedding>, Vec<Numbers>) =
                read.into_iter().flatten().unzip();
            if fields.is_sound() {
                let ids = rows.iter().map(|row| row.embedding_id.as_str());
                fields.no_duplicates(ids, |n| format!("embeddings[{n}].id"));
            }
            let is_half = space.storage == FLOAT16;
            let (space_uid, space_id) = (space.meta.uid, space.id);
            fields.finish(WriteEmbeddings {
                space_uid,
                space_id,
                is_half,
                rows,
                vectors,
                on_conflict,
            })
        };
        let change = match read.await {
            Err(error) if self.was_requested(&caller, &options).await? => {
                // Whatever has become of the space since: the ledger has the answer, if this is the same request.
                drop(error);
                let rows = own_ids.into_iter().map(Embedding::to_be_replayed).collect();
                let (space_uid, space_id) = (Uuid::nil(), String::new());
                let vectors = Vec::new();
                WriteEmbeddings { space_uid, space_id, is_half: false, rows, vectors, on_conflict }
            }
            change => change?,
        };
        let change = whole(change);
        self.write_as(caller, Write { change, options }).await.map_err(in_own_words)
    }

    /// Deletes embeddings; gives those that were there.
    pub(super) async fn delete_embeddings(
        &self,
        caller: Caller,
        asked: Delete,
        (ids, etag): (Vec<String>, Option<String>),
    ) -> Result<(Vec<Embedding>, Option<pb::WriteReceipt>)> {
        let Delete { vector_space_id, options, digest, allow_missing } = asked;
        let mut fields = Fields::new(&caller, self.batch_max);
        let (options, on_conflict) = fields.options(options, digest);
        fields.only_fail(on_conflict);
        let (ids, etag) = match etag {
            Some(etag) => {
                let ids = ids.into_iter().map(|id| fields.id("embedding_id", id)).collect();
                (ids, fields.etag("etag", etag))
            }
            None => (fields.batch("embedding_ids", ids, |fields, id| fields.id("", id)), None),
        };
        let ids: Vec<String> = ids;
        fields.no_duplicates(ids.iter().map(String::as_str), |n| format!("embedding_ids[{n}]"));
        let ids = fields.finish(ids)?;
        let change = match self.space(&caller, "vector_space_id", vector_space_id, None).await {
            // As in an upsert.
            Err(_) if self.was_requested(&caller, &options).await? => DeleteEmbeddings(Vec::new()),
            space => {
                let uid = space?.meta.uid;
                let deletes = ids.iter();
                let deletes =
                    deletes.map(|id| Modify::delete(full_id(uid, id), etag.clone(), allow_missing));
                DeleteEmbeddings(deletes.collect())
            }
        };
        self.write_as(caller, Write { change, options }).await.map_err(in_own_words)
    }

    /// Whether the call is a repeated one, whose first answer the ledger has.
    async fn was_requested(&self, caller: &Caller, options: &WriteOptions) -> Result<bool> {
        match &options.request {
            Some(request) if !options.validate_only => {
                self.store.was_requested(caller, &request.id).await
            }
            _ => Ok(false),
        }
    }
}

/// What the two upserts have in common.
pub(super) struct Upsert {
    pub vector_space_id: String,
    pub options: Option<pb::WriteOptions>,
    pub digest: [u8; 32],
    pub is_batch: bool,
}

/// What the two deletions have in common.
pub(super) struct Delete {
    pub vector_space_id: String,
    pub options: Option<pb::WriteOptions>,
    pub digest: [u8; 32],
    pub allow_missing: bool,
}

/// Upserting replaces what is there unless the caller wants otherwise.
fn or_replace(options: Option<pb::WriteOptions>) -> Option<pb::WriteOptions> {
    let mut options = options.unwrap_or_default();
    if options.on_conflict == i32::from(pb::OnConflict::Unspecified) {
        options.on_conflict = pb::OnConflict::Replace.into();
    }
    Some(options)
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
fn in_own_words(error: Error) -> Error {
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
        Error::NotFound { kind, id } => Error::NotFound { kind, id: own(&id) },
        Error::Stale { kind, id, current_etag } => {
            Error::Stale { kind, id: own(&id), current_etag }
        }
        Error::Taken { kind, id, fields } => {
            let mut fields: Vec<String> = fields.iter().map(field).collect();
            fields.dedup();
            Error::Taken { kind, id: own(&id), fields }
        }
        Error::Expired(message) => Error::Expired(own(&message)),
        Error::Refused { reason, message, metadata } => {
            Error::Refused { reason, message: own(&message), metadata }
        }
        other => other,
    }
}

/// The id that an embedding asks for: its own, or else its subject's. Empty for one that the server shall choose.
fn own_id(message: &pb::Embedding) -> String {
    match (&*message.id, &message.subject) {
        ("", Some(subject)) => subject.id.clone(),
        (id, _) => id.to_owned(),
    }
}

/// An embedding of a space; `None` where its vector is none of the space's.
fn read_embedding(
    f: &mut Fields,
    message: pb::Embedding,
    space: &VectorSpace,
) -> Option<(Embedding, Numbers)> {
    let own_id = own_id(&message);
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
    let (mut of_kind, mut own_id) = (String::new(), own_id);
    if kind != 0 || !of_id.is_empty() || of_version != 0 {
        f.within("subject", |f| {
            match kind_name(kind) {
                Some(name) => of_kind = name,
                None => f.wrong("kind", format!("must be a known kind, and is {kind}")),
            }
            if of_version < 0 {
                f.wrong("version", "must not be negative");
            }
            f.id("id", of_id.clone())
        });
    }
    // What is wrong with the subject's id is said there.
    if id.is_empty() && !wire::is_id(&own_id) {
        own_id.clear();
    }
    let own_id = f.new_id("id", own_id, uid);
    if own_id.len() > ID_BYTES_MAX {
        f.wrong("id", format!("must have at most {ID_BYTES_MAX} bytes"));
    }
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
fn read_vector(f: &mut Fields, vector: Option<pb::Vector>, space: &VectorSpace) -> Option<Numbers> {
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
