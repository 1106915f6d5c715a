//! VectorService: embeddings and the search for the nearest, checked and worded.

use super::descriptor::ReadMask;
use super::wire::{self, Fields, LONG_TEXT_BYTES_MAX, Write, kind_name, kind_number};
use super::{Answer, Api, Paged, Parts, Selection, filter, json, open};
use crate::pb;
use crate::store::caller::Caller;
use crate::store::change::Modify;
use crate::store::child::Hide;
use crate::store::embedding::{
    self, DeleteEmbeddings, Embedding, Near, Nearest, WriteEmbeddings, WrittenEmbeddings, full_id,
    in_space,
};
use crate::store::filter::Filter;
use crate::store::noun::{Meta, Noun};
use crate::store::vector::{Numbers, f32_le, from_f32_le, score};
use crate::store::vector_space::VectorSpace;
use crate::{Error, Reason, Result};
use std::sync::Arc;
use tonic::{Request, Response};
use uuid::Uuid;

const TOP_K: i32 = 10;
const TOP_K_MAX: i32 = 1000;
const QUERIES_MAX: usize = 100;

#[tonic::async_trait]
impl pb::vector_service_server::VectorService for Api {
    async fn upsert_embedding(
        &self,
        request: Request<pb::UpsertEmbeddingRequest>,
    ) -> Answer<pb::UpsertEmbeddingResponse> {
        let (caller, request) = open(request)?;
        let digest = wire::digest(&request, request.options.as_ref());
        let pb::UpsertEmbeddingRequest { vector_space_id, embedding, options } = request;
        let space = Arc::new(self.space(&caller, "vector_space_id", vector_space_id, None).await?);
        let mut fields = Fields::new(&caller, self.batch_max);
        let (options, on_conflict) = fields.options(or_replace(options), digest);
        let message = fields.required("embedding", embedding);
        let read = fields.within("embedding", |fields| read_embedding(fields, message, &space));
        let (rows, vectors) = read.into_iter().unzip();
        let change = WriteEmbeddings { space, rows, vectors, on_conflict };
        let write = fields.finish(Write { change, options })?;
        let (WrittenEmbeddings { rows, .. }, receipt) = self.write_as(caller, write).await?;
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
        let space = Arc::new(self.space(&caller, "vector_space_id", vector_space_id, None).await?);
        let mut fields = Fields::new(&caller, self.batch_max);
        let (options, on_conflict) = fields.options(or_replace(options), digest);
        let read: Vec<Option<(Embedding, Numbers)>> =
            fields
                .batch("embeddings", embeddings, |fields, one| read_embedding(fields, one, &space));
        let (rows, vectors): (Vec<Embedding>, Vec<Numbers>) = read.into_iter().flatten().unzip();
        if fields.is_sound() {
            let ids = rows.iter().map(|row| row.embedding_id.as_str());
            fields.no_duplicates(ids, |n| format!("embeddings[{n}].id"));
        }
        let change = WriteEmbeddings { space, rows, vectors, on_conflict };
        let write = fields.finish(Write { change, options })?;
        let (WrittenEmbeddings { rows, written }, receipt) = self.write_as(caller, write).await?;
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
        let found = self.get(&caller, full_id(&space, &id), consistency, version).await;
        let row: Embedding = found.map_err(|error| of_own_id(error, id))?;
        let mut worded = self.embeddings(&caller, &space, vec![row], &mask).await?;
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
        let embeddings = self.embeddings(&caller, &space, rows, &mask).await?;
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
        let space = self.space(&caller, "vector_space_id", vector_space_id, None).await?;
        let mut fields = Fields::new(&caller, self.batch_max);
        let (options, on_conflict) = fields.options(options, digest);
        fields.only_fail(on_conflict);
        let id = fields.id("embedding_id", embedding_id);
        let etag = fields.etag("etag", etag);
        let change = Hide(Modify::<Embedding>::delete(full_id(&space, &id), etag, allow_missing));
        let write = fields.finish(Write { change, options })?;
        let written = self.write_as(caller, write).await;
        let (row, receipt) = written.map_err(|error| of_own_id(error, id))?;
        let embedding = row.map(Into::into);
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
        let space = self.space(&caller, "vector_space_id", vector_space_id, None).await?;
        let mut fields = Fields::new(&caller, self.batch_max);
        let (options, on_conflict) = fields.options(options, digest);
        fields.only_fail(on_conflict);
        let ids: Vec<String> =
            fields.batch("embedding_ids", embedding_ids, |fields, id| fields.id("", id));
        fields.no_duplicates(ids.iter().map(String::as_str), |n| format!("embedding_ids[{n}]"));
        let deletes = ids.iter().map(|id| Modify::delete(full_id(&space, id), None, allow_missing));
        let change = DeleteEmbeddings(deletes.collect());
        let write = fields.finish(Write { change, options })?;
        let written = self.write_as(caller, write).await;
        let (gone, receipt) = written.map_err(without_space)?;
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
        let (mut found, seq) = self.search_spaces(&caller, queries, consistency, read_mask).await?;
        Ok(Response::new(pb::SearchVectorsResponse {
            hits: found.pop().unwrap_or_default(),
            read_at: Some(self.revision(&caller, seq)?),
        }))
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
        let queries = queries.into_iter().enumerate();
        let queries = queries.map(|(n, query)| (format!("queries[{n}]"), query)).collect();
        let (found, seq) = self.search_spaces(&caller, queries, consistency, read_mask).await?;
        let results = found.into_iter();
        Ok(Response::new(pb::BatchSearchVectorsResponse {
            results: results
                .map(|hits| pb::batch_search_vectors_response::Result { hits })
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
    /// Embeddings of one space on the wire.
    async fn embeddings(
        &self,
        caller: &Caller,
        space: &VectorSpace,
        rows: Vec<Embedding>,
        mask: &Mask,
    ) -> Result<Vec<pb::Embedding>> {
        let vectors = if mask.with_vector {
            let digests = rows.iter().map(|row| row.vector_digest.clone()).collect();
            self.store.vectors(caller, space.meta.uid, digests).await?
        } else {
            Default::default()
        };
        let worded = rows.into_iter().map(|row| {
            let vector = vectors.get(&row.vector_digest).map(|values| pb::Vector {
                data: Some(pb::vector::Data::F32Le(f32_le(values).into())),
            });
            mask.fields.apply(pb::Embedding { vector, ..row.into() })
        });
        worded.collect()
    }

    /// The hits of each query, all at one moment. A query comes with its place in the request.
    async fn search_spaces(
        &self,
        caller: &Caller,
        queries: Vec<(String, pb::VectorQuery)>,
        consistency: Option<pb::Consistency>,
        read_mask: Option<prost_types::FieldMask>,
    ) -> Result<(Vec<Vec<pb::VectorHit>>, i64)> {
        let mask = Mask::new(read_mask)?;
        let seq = self.read_at(caller, consistency).await?;
        let mut searches = Vec::with_capacity(queries.len());
        let mut limits = Vec::with_capacity(queries.len());
        for (at, query) in queries {
            let pb::VectorQuery {
                vector_space_id,
                target,
                top_k,
                min_score,
                max_distance,
                r#where,
            } = query;
            let field = format!("{at}.vector_space_id");
            let space = Arc::new(self.space(caller, &field, vector_space_id, seq).await?);
            let asked =
                filter::selector(embedding::LISTING.fields, r#where, &format!("{at}.where"))?;
            let mut fields = Fields::default();
            let (target, but) = match target {
                Some(pb::vector_query::Target::LikeEmbeddingId(id)) => {
                    let id = wire::id(&format!("{at}.like_embedding_id"), id)?;
                    let (numbers, uid) = self.vector_of(caller, &space, id, seq).await?;
                    (Some(numbers), Some(uid))
                }
                Some(pb::vector_query::Target::Vector(vector)) => {
                    (fields.within(&at, |fields| read_vector(fields, Some(vector), &space)), None)
                }
                None => {
                    fields.wrong(&at, "must have a vector or a like_embedding_id");
                    (None, None)
                }
            };
            let top_k = fields.within(&at, |fields| {
                let finite = |fields: &mut Fields, name, limit: Option<f64>| {
                    if limit.is_some_and(|limit| !limit.is_finite()) {
                        fields.wrong(name, "must be finite");
                    }
                };
                finite(fields, "min_score", min_score);
                finite(fields, "max_distance", max_distance);
                match top_k {
                    0 => TOP_K,
                    1..=TOP_K_MAX => top_k,
                    _ => {
                        let range = format!("must be 1 to {TOP_K_MAX}, or 0 for {TOP_K}");
                        fields.wrong("top_k", format!("{range}, and is {top_k}"));
                        TOP_K
                    }
                }
            });
            let Some(target) = fields.finish(target)? else {
                return Err(Error::internal("a query without a target"));
            };
            let filter: Filter = in_space(&space, asked)?;
            searches.push(Nearest { space, target, top_k: top_k.into(), filter, but });
            limits.push((min_score.unwrap_or(f64::MIN), max_distance.unwrap_or(f64::MAX)));
        }
        let spaces: Vec<_> = searches.iter().map(|search| Arc::clone(&search.space)).collect();
        let (found, seq) = self.store.nearest(caller, searches, seq).await?;
        let mut worded = Vec::with_capacity(found.len());
        for ((near, space), (min_score, max_distance)) in found.into_iter().zip(spaces).zip(limits)
        {
            // They come nearest first, so the limits cut off the end.
            let near = near.into_iter().take_while(|Near { distance, .. }| {
                *distance <= max_distance && score(&space, *distance) >= min_score
            });
            let (rows, distances): (Vec<Embedding>, Vec<f64>) =
                near.map(|Near { row, distance }| (row, distance)).unzip();
            let embeddings = self.embeddings(caller, &space, rows, &mask).await?;
            let hits = embeddings.into_iter().zip(distances);
            let hits = hits.map(|(embedding, distance)| pb::VectorHit {
                embedding: Some(embedding),
                score: score(&space, distance),
                distance,
            });
            worded.push(hits.collect());
        }
        Ok((worded, seq))
    }

    /// The vector of an embedding, and its uid.
    async fn vector_of(
        &self,
        caller: &Caller,
        space: &VectorSpace,
        id: String,
        seq: Option<i64>,
    ) -> Result<(Numbers, Uuid)> {
        let found = self.get_at(caller, full_id(space, &id), seq).await;
        let row: Embedding = found.map_err(|error| of_own_id(error, id))?;
        let digests = vec![row.vector_digest.clone()];
        let mut vectors = self.store.vectors(caller, space.meta.uid, digests).await?;
        let vector = vectors.remove(&row.vector_digest);
        let vector = vector.ok_or_else(|| Error::internal("an embedding without its vector"))?;
        let numbers = Numbers::of(space, vector).map_err(|(_, why)| Error::internal(why))?;
        Ok((numbers, row.meta.uid))
    }
}

/// Upserting replaces what is there unless the caller wants otherwise.
fn or_replace(options: Option<pb::WriteOptions>) -> Option<pb::WriteOptions> {
    let mut options = options.unwrap_or_default();
    if options.on_conflict == i32::from(pb::OnConflict::Unspecified) {
        options.on_conflict = pb::OnConflict::Replace.into();
    }
    Some(options)
}

/// Callers know an embedding by its id in its space.
fn of_own_id(error: Error, id: String) -> Error {
    match error {
        Error::NotFound { kind, .. } if kind == Embedding::KIND => Error::NotFound { kind, id },
        Error::Stale { kind, current_etag, .. } if kind == Embedding::KIND => {
            Error::Stale { kind, id, current_etag }
        }
        other => other,
    }
}

/// The same where it may be any of several.
fn without_space(error: Error) -> Error {
    match &error {
        Error::NotFound { id, .. } => match id.split_once('/') {
            Some((_, own)) => {
                let own = own.to_owned();
                of_own_id(error, own)
            }
            None => error,
        },
        _ => error,
    }
}

/// An embedding of a space; `None` where its vector is none of the space's.
fn read_embedding(
    f: &mut Fields,
    message: pb::Embedding,
    space: &VectorSpace,
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
    let pb::ResourceRef { kind, id: subject_id, version } = subject.unwrap_or_default();
    let (mut subject_kind, mut own_id) = (String::new(), id);
    if kind != 0 || !subject_id.is_empty() || version != 0 {
        f.within("subject", |f| {
            match kind_name(kind) {
                Some(name) => subject_kind = name,
                None => f.wrong("kind", format!("must be a known kind, and is {kind}")),
            }
            if version < 0 {
                f.wrong("version", "must not be negative");
            }
            f.id("id", subject_id.clone())
        });
        if own_id.is_empty() {
            own_id.clone_from(&subject_id);
        }
    }
    let own_id = f.new_id("id", own_id, uid);
    if !embedding_model.is_empty() && embedding_model != space.embedding_model {
        let shown: String = embedding_model.chars().take(255).collect();
        let both = format!(
            "must be {:?}, the model of the vector space \"{}\", and is {shown:?}",
            space.embedding_model, space.id
        );
        f.wrong_because(Reason::ModelMismatch, "embedding_model", both);
    }
    let row = Embedding {
        id: full_id(space, &own_id),
        meta: Meta::new(uid),
        space_uid: space.meta.uid,
        space_id: space.id.clone(),
        embedding_id: own_id,
        embedding_model: space.embedding_model.clone(),
        dimensions: space.dimensions,
        subject_kind,
        subject_id,
        subject_version: version,
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
            subject_kind,
            subject_id,
            subject_version,
            decision_id,
            owner_id,
            vector_digest,
            context,
            tags,
            similarity_threshold,
            source,
            metadata,
        } = row;
        let subject = (!subject_kind.is_empty()).then(|| pb::ResourceRef {
            kind: kind_number(&subject_kind).into(),
            id: subject_id,
            version: subject_version,
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
