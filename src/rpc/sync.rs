//! SyncService: embeddings written and deleted on both sides at once, and the proof that the sides agree.

use super::embedding::in_own_words;
use super::wire::Fields;
use super::{Answer, Api, open};
use crate::pb;
use crate::store::caller::Caller;
use crate::store::embedding::{DeleteEmbeddings, WrittenEmbeddings};
use crate::store::projection::built_in::{BuiltIn, SyncEmbeddings};
use crate::store::projection::resync::{Part, Resynced};
use crate::store::projection::schedule::SyncCheck;
use crate::store::projection::verify::{Difference, Extent, Fault, TOLD_MAX, Verified};
use crate::store::projection::{Mode, Progress, Projection, any_seed};
use crate::store::vector_space::VectorSpace;
use crate::{Error, Result};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, Stream};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use tonic::{Request, Response, Status};
use uuid::Uuid;

const SAMPLE: i32 = 100;
const SAMPLE_MAX: i32 = 10_000;
const BATCH: i32 = 100;
const BATCH_MAX: i32 = 1000;
/// No single batch of a resync takes longer, however long the whole may.
const PIECE_MAX: Duration = Duration::from_secs(60);

const UNRECOVERABLE: &str = "the record holds the digest of a vector and not its numbers, which were in this one place: \
                             send a missing one again with SyncEmbedding; delete an embedding whose vector is different \
                             before sending it again";

pub type Progresses =
    Pin<Box<dyn Stream<Item = Result<pb::ResyncFromPostgresResponse, Status>> + Send>>;

#[tonic::async_trait]
impl pb::sync_service_server::SyncService for Api {
    async fn sync_embedding(
        &self,
        request: Request<pb::SyncEmbeddingRequest>,
    ) -> Answer<pb::SyncEmbeddingResponse> {
        let (WrittenEmbeddings { rows, .. }, receipt) =
            self.write(request).await.map_err(in_own_words)?;
        let embedding = Some(super::only(rows)?.into());
        Ok(Response::new(pb::SyncEmbeddingResponse { embedding, receipt }))
    }

    async fn batch_sync_embeddings(
        &self,
        request: Request<pb::BatchSyncEmbeddingsRequest>,
    ) -> Answer<pb::BatchSyncEmbeddingsResponse> {
        let (WrittenEmbeddings { rows, written }, receipt) =
            self.write(request).await.map_err(in_own_words)?;
        // As in BatchUpsertEmbeddings.
        let unchanged = receipt.as_ref().is_some_and(|receipt| receipt.unchanged);
        let written = if unchanged { 0 } else { written };
        Ok(Response::new(pb::BatchSyncEmbeddingsResponse {
            embedding_ids: rows.into_iter().map(|row| row.embedding_id).collect(),
            written_count: i32::try_from(written).map_err(Error::internal)?,
            receipt,
        }))
    }

    async fn delete_from_both(
        &self,
        request: Request<pb::DeleteFromBothRequest>,
    ) -> Answer<pb::DeleteFromBothResponse> {
        let (gone, receipt) = self.write(request).await.map_err(in_own_words)?;
        Ok(Response::new(pb::DeleteFromBothResponse { deleted: !gone.is_empty(), receipt }))
    }

    async fn batch_delete_from_both(
        &self,
        request: Request<pb::BatchDeleteFromBothRequest>,
    ) -> Answer<pb::BatchDeleteFromBothResponse> {
        let (gone, receipt) = self.write(request).await.map_err(in_own_words)?;
        let deleted_count = i32::try_from(gone.len()).map_err(Error::internal)?;
        Ok(Response::new(pb::BatchDeleteFromBothResponse { deleted_count, receipt }))
    }

    async fn verify_sync(
        &self,
        request: Request<pb::VerifySyncRequest>,
    ) -> Answer<pb::VerifySyncResponse> {
        let (caller, request) = open(request)?;
        let pb::VerifySyncRequest { vector_space_id, sample_size, full, sample_seed } = request;
        let mut fields = Fields::default();
        let vector_space_id = space_or_all(&mut fields, vector_space_id);
        if full && sample_size != 0 {
            fields.wrong("sample_size", "must not be set together with full");
        }
        let size = within(&mut fields, "sample_size", sample_size, SAMPLE, SAMPLE_MAX);
        let vector_space_id = fields.finish(vector_space_id)?;
        let space = match vector_space_id {
            Some(id) => Some(Arc::new(self.space(&caller, "vector_space_id", id, None).await?)),
            None => None,
        };
        let seed = match (full, sample_seed) {
            (true, _) => 0,
            (false, 0) => any_seed(),
            (false, seed) => seed,
        };
        let extent = if full { Extent::Full } else { Extent::Sample { size: size.into(), seed } };
        let projection: Arc<dyn Projection> = Arc::new(BuiltIn);
        let found = self.store.verify(&caller, projection, space, extent).await?;
        let (rate, in_sync) = (found.rate_percent(), found.is_in_sync());
        let Verified { recorded, held, checked, missing, extra, different, told, seq } = found;
        Ok(Response::new(pb::VerifySyncResponse {
            postgres_count: recorded,
            vectordb_count: held,
            samples_checked: checked,
            missing_in_vectordb: missing,
            extra_in_vectordb: extra,
            different,
            sync_rate_percent: rate,
            in_sync,
            read_at: Some(self.revision(&caller, seq)?),
            differences: told.into_iter().map(Into::into).collect(),
            sample_seed: seed,
        }))
    }

    type ResyncFromPostgresStream = Progresses;

    async fn resync_from_postgres(
        &self,
        request: Request<pb::ResyncFromPostgresRequest>,
    ) -> Answer<Progresses> {
        let (caller, request) = open(request)?;
        let pb::ResyncFromPostgresRequest { vector_space_id, limit, batch_size, only_differences } =
            request;
        let mut fields = Fields::default();
        let vector_space_id = space_or_all(&mut fields, vector_space_id);
        if limit < 0 {
            fields.wrong("limit", format!("must not be negative, and is {limit}"));
        }
        let batch = within(&mut fields, "batch_size", batch_size, BATCH, BATCH_MAX);
        let vector_space_id = fields.finish(vector_space_id)?;
        let piece = piecewise(&caller);
        let (spaces, only) = match vector_space_id {
            Some(id) => {
                let space = self.space(&piece, "vector_space_id", id, None).await?;
                let uid = space.meta.uid;
                (vec![space], Some(uid))
            }
            None => (self.store.live_spaces(&piece).await?, None),
        };
        let projection: Arc<dyn Projection> = Arc::new(BuiltIn);
        let counted = self.store.progress(&piece, Arc::clone(&projection), only);
        let Progress { recorded, head, .. } = counted.await?;
        let read_at = Some(self.revision(&caller, head)?);
        let total = if limit == 0 { recorded } else { recorded.min(limit) };
        let resync = Resync {
            closed: Box::pin(self.health.closed()),
            api: self.clone(),
            caller,
            projection,
            spaces: spaces.into_iter().map(Arc::new).collect(),
            left: if limit == 0 { i64::MAX } else { limit },
            batch: batch.into(),
            only_differences,
            next: Uuid::nil(),
            told: pb::ResyncFromPostgresResponse { total, read_at, ..Default::default() },
        };
        let answers = stream::unfold(Some(resync), |resync| async {
            let mut resync = resync?;
            match resync.answer().await {
                Ok(answer) if answer.done => Some((Ok(answer), None)),
                Ok(answer) => Some((Ok(answer), Some(resync))),
                Err(error) => Some((Err(error.into()), None)),
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn get_sync_status(
        &self,
        request: Request<pb::GetSyncStatusRequest>,
    ) -> Answer<pb::GetSyncStatusResponse> {
        let (caller, request) = open(request)?;
        let pb::GetSyncStatusRequest { vector_space_id } = request;
        let space = match vector_space_id.is_empty() {
            true => None,
            false => {
                let space = self.space(&caller, "vector_space_id", vector_space_id, None).await?;
                Some(space.meta.uid)
            }
        };
        let projection: Arc<dyn Projection> = Arc::new(BuiltIn);
        let (name, mode) = (projection.name().to_owned(), projection.mode());
        let progress = self.store.progress(&caller, projection, space).await?;
        let Progress { head, applied, lag, recorded, held, last_check } = progress;
        let mode = match mode {
            Mode::Transactional => pb::SyncMode::Transactional,
            Mode::Follower => pb::SyncMode::Follower,
        };
        let projection = pb::SyncProjection {
            name,
            mode: mode.into(),
            head_seq: head,
            applied_seq: applied,
            backlog: head.saturating_sub(applied),
            lag: Some(lag.try_into().map_err(Error::internal)?),
            postgres_count: recorded,
            vectordb_count: held,
            last_check: last_check.map(Into::into),
        };
        Ok(Response::new(pb::GetSyncStatusResponse {
            projections: vec![projection],
            read_at: Some(self.revision(&caller, head)?),
        }))
    }
}

// Each is the request of VectorService that it is called after, and is read like it.
crate::requests!(@ask SyncEmbeddingRequest -> SyncEmbeddings,
|fields, on_conflict, vector_space_id, embedding| {
    let request = pb::UpsertEmbeddingRequest { vector_space_id, embedding, options: None };
    SyncEmbeddings(request.read(fields, on_conflict))
}, spaces |request, names| { names.insert(&request.vector_space_id); }, replaces true);

crate::requests!(@ask BatchSyncEmbeddingsRequest -> SyncEmbeddings,
|fields, on_conflict, vector_space_id, embeddings| {
    let request = pb::BatchUpsertEmbeddingsRequest { vector_space_id, embeddings, options: None };
    SyncEmbeddings(request.read(fields, on_conflict))
}, spaces |request, names| { names.insert(&request.vector_space_id); }, replaces true);

crate::requests!(@ask DeleteFromBothRequest -> DeleteEmbeddings,
|fields, on_conflict, vector_space_id, embedding_id, etag, allow_missing| {
    let options = None;
    let request = pb::DeleteEmbeddingRequest { vector_space_id, embedding_id, etag, allow_missing, options };
    request.read(fields, on_conflict)
}, spaces |request, names| { names.insert(&request.vector_space_id); });

crate::requests!(@ask BatchDeleteFromBothRequest -> DeleteEmbeddings,
|fields, on_conflict, vector_space_id, embedding_ids, allow_missing| {
    let options = None;
    let request =
        pb::BatchDeleteEmbeddingsRequest { vector_space_id, embedding_ids, allow_missing, options };
    request.read(fields, on_conflict)
}, spaces |request, names| { names.insert(&request.vector_space_id); });

/// A number from 1 to `max`, where 0 stands for another.
fn within(fields: &mut Fields, field: &str, value: i32, default: i32, max: i32) -> i32 {
    match value {
        0 => default,
        value if (1..=max).contains(&value) => value,
        value => {
            let range = format!("must be 1 to {max}, or 0 for {default}, and is {value}");
            fields.wrong(field, range);
            default
        }
    }
}

/// The space that is named; none where all are meant.
fn space_or_all(fields: &mut Fields, name: String) -> Option<String> {
    (!name.is_empty()).then(|| fields.id("vector_space_id", name))
}

/// The caller, for one piece of work.
fn piecewise(caller: &Caller) -> Caller {
    let deadline = caller.deadline.min(Instant::now() + PIECE_MAX);
    Caller { deadline, ..caller.clone() }
}

/// A resync under way. Nothing runs beside it: each batch is made when the caller takes the answer before.
struct Resync {
    api: Api,
    caller: Caller,
    projection: Arc<dyn Projection>,
    /// The spaces that are still to be gone through; at the first one it is.
    spaces: VecDeque<Arc<VectorSpace>>,
    /// Embeddings that may still be gone through.
    left: i64,
    batch: i64,
    only_differences: bool,
    /// Where the next batch begins.
    next: Uuid,
    /// What was told last.
    told: pb::ResyncFromPostgresResponse,
    /// The server goes away.
    closed: BoxFuture<'static, ()>,
}

impl Resync {
    /// The next batch, and how far it is then.
    async fn answer(&mut self) -> Result<pb::ResyncFromPostgresResponse> {
        let Some(space) = self.spaces.front().map(Arc::clone) else {
            // There is no space at all.
            self.told.done = true;
            return Ok(self.told.clone());
        };
        let part = Part {
            after: self.next,
            limit: self.batch.min(self.left),
            only_differences: self.only_differences,
        };
        let caller = piecewise(&self.caller);
        let projection = Arc::clone(&self.projection);
        let resynced = tokio::select! {
            resynced = self.api.store.resync(&caller, projection, space, part) => resynced?,
            () = &mut self.closed => return Err(Error::ShuttingDown),
            () = sleep_until(self.caller.deadline) => {
                return Err(Error::DeadlineExceeded(" before the resync was whole"));
            }
        };
        let Resynced { checked, synced, wrong, next, seq } = resynced;
        self.left -= checked;
        if next.is_none() {
            self.spaces.pop_front();
        }
        self.next = next.unwrap_or(Uuid::nil());
        let told = &mut self.told;
        told.checked += checked;
        told.synced += synced;
        told.unrecoverable_count += wrong.len() as i64;
        let room = TOLD_MAX.saturating_sub(told.unrecoverable.len());
        told.unrecoverable.extend(wrong.into_iter().take(room).map(Into::into));
        if !told.unrecoverable.is_empty() {
            told.message = UNRECOVERABLE.to_owned();
        }
        told.done = self.left <= 0 || self.spaces.is_empty();
        told.read_at = Some(self.api.revision(&self.caller, seq)?);
        Ok(told.clone())
    }
}

impl From<SyncCheck> for pb::SyncCheck {
    fn from(check: SyncCheck) -> Self {
        let SyncCheck { check_time, checked, missing, extra, different, in_sync } = check;
        Self {
            check_time: check_time.map(Into::into),
            samples_checked: checked,
            missing_in_vectordb: missing,
            extra_in_vectordb: extra,
            different,
            in_sync,
        }
    }
}

impl From<Difference> for pb::SyncDifference {
    fn from(difference: Difference) -> Self {
        let Difference { space_id, uid, embedding_id, fault } = difference;
        let fault = match fault {
            Fault::Missing => pb::SyncFault::Missing,
            Fault::Extra => pb::SyncFault::Extra,
            Fault::Different => pb::SyncFault::Different,
        };
        Self { embedding_id, uid: uid.to_string(), fault: fault.into(), vector_space_id: space_id }
    }
}
