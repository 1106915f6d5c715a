//! BlobService: bytes by their digest.

mod ahead;
mod complete;
mod download;
mod session;
mod upload;
pub mod url;
mod verify;
mod write;

use super::wire::{self, Fields};
use super::{Answer, Api, Parts, open};
use crate::pb;
use crate::store::blob::change::Erase;
use crate::store::blob::check::Lens;
use crate::store::blob::{Blob, READY};
use crate::store::blob_store::BlobStore;
use crate::store::blob_store::budget::Budget;
use crate::store::caller::Caller;
use crate::store::change::OnConflict;
use crate::store::envelope::KeySource;
use crate::store::log::hex;
use crate::store::noun::Noun as _;
use crate::store::object::put::Put;
use crate::{Error, Reason, Result};
pub(super) use download::other_bytes;
use futures_util::stream::Stream;
use prometheus_client::metrics::counter::Counter;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};
pub(super) use upload::{Brought, Work};

/// What blobs are made with.
pub struct Blobs {
    pub store: BlobStore,
    /// Who keeps the keys of blobs; none leaves new ones unencrypted.
    pub keys: Option<Arc<dyn KeySource>>,
    /// Bytes in memory, of all streams together.
    pub budget: Budget,
    pub limits: BlobLimits,
    /// Damaged blobs that were found.
    pub corrupt: Counter,
}

impl Blobs {
    /// What stored bytes are looked at with.
    pub fn lens(&self) -> Lens {
        let (store, keys, budget) = (self.store.clone(), self.keys.clone(), self.budget.clone());
        Lens { store, keys, budget }
    }
}

/// Sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub struct BlobLimits {
    pub size_max: u64,
    pub chunk_max: usize,
    pub part: usize,
    /// Smaller blobs, and those of that size, lie in the database; 0 is none, not even empty ones.
    pub inline_max: usize,
    /// Parts of one blob that go to the store at once.
    pub parts_at_once: usize,
    /// How long a caller may be silent, or not read.
    pub idle: Duration,
    /// How long an upload may take before its bytes are removed.
    pub keep: Duration,
    /// Uploads of one tenant that may be under way by CreateUpload.
    pub uploads_max: u64,
    /// Of one that goes straight to the store.
    pub signed_part_max: u64,
}

impl BlobLimits {
    /// Whether a blob of that size is to lie in the database.
    fn is_inline(&self, size_bytes: u64) -> bool {
        self.inline_max > 0 && size_bytes <= self.inline_max as u64
    }
}

/// No single piece of work at the database takes longer, however long the stream may.
const PIECE_MAX: Duration = Duration::from_secs(60);
/// What a deletion waits for the store; what is not gone then is removed later.
const ERASE_TIME: Duration = Duration::from_secs(10);
const DIGESTS_MAX: usize = 1000;
const DIGEST_BYTES: usize = 32;

#[tonic::async_trait]
impl pb::blob_service_server::BlobService for Api {
    async fn upload_blob(
        &self,
        request: Request<Streaming<pb::UploadBlobRequest>>,
    ) -> Answer<pb::UploadBlobResponse> {
        let (caller, messages) = open(request)?;
        self.blobs()?;
        Ok(Response::new(self.upload(caller, messages).await?))
    }

    type DownloadBlobStream =
        Pin<Box<dyn Stream<Item = Result<pb::DownloadBlobResponse, Status>> + Send>>;

    async fn download_blob(
        &self,
        request: Request<pb::DownloadBlobRequest>,
    ) -> Answer<Self::DownloadBlobStream> {
        let (caller, request) = open(request)?;
        self.blobs()?;
        Ok(Response::new(self.download(caller, request).await?))
    }

    async fn get_blob(&self, request: Request<pb::GetBlobRequest>) -> Answer<pb::GetBlobResponse> {
        let (caller, request) = open(request)?;
        self.blobs()?;
        let mut fields = Fields::new(&caller, self.batch_max);
        let id = digest(&mut fields, "digest", request.digest);
        let id = fields.finish(id)?;
        let row: Blob = self.store.get(&caller, &id).await?;
        let uid = row.meta.uid;
        let references = self.store.count_references(&caller, vec![uid]).await?;
        let mut blob = pb::Blob::from(row);
        blob.reference_count = references.get(&uid).copied().unwrap_or_default();
        Ok(Response::new(pb::GetBlobResponse { blob: Some(blob) }))
    }

    async fn find_missing_blobs(
        &self,
        request: Request<pb::FindMissingBlobsRequest>,
    ) -> Answer<pb::FindMissingBlobsResponse> {
        let (caller, request) = open(request)?;
        self.blobs()?;
        let ids = digests(&caller, &request.digests)?;
        let found = self.found(&caller, ids).await?;
        let missing = request.digests.into_iter().zip(found);
        let missing = missing.filter(|(_, row)| row.as_ref().is_none_or(|row| row.state != READY));
        let missing = missing.map(|(digest, _)| digest).collect();
        Ok(Response::new(pb::FindMissingBlobsResponse { missing }))
    }

    async fn read_blobs(
        &self,
        request: Request<pb::ReadBlobsRequest>,
    ) -> Answer<pb::ReadBlobsResponse> {
        let (caller, request) = open(request)?;
        self.blobs()?;
        let items = self.read_small(&caller, request.digests).await?;
        Ok(Response::new(pb::ReadBlobsResponse { items }))
    }

    type VerifyBlobStoreStream =
        Pin<Box<dyn Stream<Item = Result<pb::VerifyBlobStoreResponse, Status>> + Send>>;

    async fn verify_blob_store(
        &self,
        request: Request<pb::VerifyBlobStoreRequest>,
    ) -> Answer<Self::VerifyBlobStoreStream> {
        let (caller, request) = open(request)?;
        Ok(Response::new(self.verify_store(caller, request)?))
    }

    async fn delete_blob(
        &self,
        request: Request<pb::DeleteBlobRequest>,
    ) -> Answer<pb::DeleteBlobResponse> {
        let (caller, request) = open(request)?;
        let blobs = self.blobs()?;
        let write = self.ask(request, &caller).await?;
        let (uid, options) = (write.change.uid, write.options);
        let (row, receipt) = self.store.write(caller.clone(), options, write.change).await?;
        let is_done = !receipt.rehearsed && !receipt.replayed;
        // Bytes in the database went with their row.
        if let Some(row) = row.as_ref().filter(|row| is_done && !row.is_inline()) {
            let caller = Caller { deadline: Instant::now() + ERASE_TIME, ..caller.clone() };
            let removed = self.store.remove_bytes(&blobs.store, caller, uid, &row.store_key, "");
            // The deletion stands, and whatever is left of it the reaper does.
            if let Err(error) = removed.await {
                tracing::warn!(%error, store_key = row.store_key, "the bytes of a deleted blob stay for now");
            }
        }
        let receipt = self.receipt(&caller, receipt)?;
        let blob = row.map(Into::into);
        Ok(Response::new(pb::DeleteBlobResponse { blob, receipt }))
    }

    async fn create_upload(
        &self,
        request: Request<pb::CreateUploadRequest>,
    ) -> Answer<pb::CreateUploadResponse> {
        let (caller, request) = open(request)?;
        self.blobs()?;
        Ok(Response::new(self.begin_upload(caller, request).await?))
    }

    async fn write_upload(
        &self,
        request: Request<Streaming<pb::WriteUploadRequest>>,
    ) -> Answer<pb::WriteUploadResponse> {
        let (caller, messages) = open(request)?;
        self.blobs()?;
        Ok(Response::new(self.extend_upload(caller, messages).await?))
    }

    async fn get_upload(
        &self,
        request: Request<pb::GetUploadRequest>,
    ) -> Answer<pb::GetUploadResponse> {
        let (caller, request) = open(request)?;
        self.blobs()?;
        let upload = Some(self.shown_upload(caller, &request.upload_id).await?);
        Ok(Response::new(pb::GetUploadResponse { upload }))
    }

    async fn complete_upload(
        &self,
        request: Request<pb::CompleteUploadRequest>,
    ) -> Answer<pb::CompleteUploadResponse> {
        let (caller, request) = open(request)?;
        self.blobs()?;
        Ok(Response::new(self.finish_upload(caller, request).await?))
    }

    async fn abort_upload(
        &self,
        request: Request<pb::AbortUploadRequest>,
    ) -> Answer<pb::AbortUploadResponse> {
        let (caller, request) = open(request)?;
        self.blobs()?;
        self.drop_upload(&caller, &request.upload_id).await?;
        Ok(Response::new(pb::AbortUploadResponse {}))
    }

    async fn create_download_url(
        &self,
        request: Request<pb::CreateDownloadUrlRequest>,
    ) -> Answer<pb::CreateDownloadUrlResponse> {
        let (caller, request) = open(request)?;
        self.blobs()?;
        Ok(Response::new(self.download_url(&caller, request).await?))
    }
}

impl Parts {
    /// What blobs are made with, if there is a store of them.
    pub(super) fn blobs(&self) -> Result<&Blobs> {
        self.blobs.as_ref().ok_or_else(|| Error::Refused {
            reason: Reason::NotConfigured,
            message: "this server has no store of blobs; set blob_store_url".into(),
            metadata: vec![("setting", "blob_store_url".into())],
        })
    }
}

impl Parts {
    /// The blobs of digests, in order; one that is asked for twice twice.
    async fn found(&self, caller: &Caller, ids: Vec<String>) -> Result<Vec<Option<Blob>>> {
        let mut once = ids.clone();
        once.sort_unstable();
        once.dedup();
        let found = self.store.get_many::<Blob>(caller, once).await?;
        let found: HashMap<String, Blob> =
            found.into_iter().flatten().map(|blob| (blob.id.clone(), blob)).collect();
        Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
    }
}

/// The caller, for one piece of work at the database.
fn piecewise(caller: &Caller) -> Caller {
    let deadline = caller.deadline.min(Instant::now() + PIECE_MAX);
    Caller { deadline, ..caller.clone() }
}

/// A digest as the id of a blob.
pub(super) fn digest(fields: &mut Fields, field: &str, given: Option<pb::Digest>) -> String {
    let given = fields.required(field, given);
    fields.within(field, |fields| value(fields, given))
}

pub fn value(fields: &mut Fields, given: pb::Digest) -> String {
    let pb::Digest { algorithm, value } = given;
    if !matches!(algorithm.as_str(), "" | "sha256") {
        fields.wrong("algorithm", "must be sha256");
    }
    if value.len() != DIGEST_BYTES {
        fields.wrong("value", format!("must be {DIGEST_BYTES} bytes, and has {}", value.len()));
    }
    hex(&value)
}

/// Several digests as ids.
fn digests(caller: &Caller, given: &[pb::Digest]) -> Result<Vec<String>> {
    let mut fields = Fields::new(caller, DIGESTS_MAX);
    let ids = fields.batch("digests", given.to_vec(), value);
    fields.finish(ids)
}

/// The digest that the id of a blob stands for.
pub fn digest_of(id: &str) -> pb::Digest {
    let digit = |at: usize| id.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let value: Vec<u8> = (0..id.len()).step_by(2).filter_map(digit).collect();
    pb::Digest { algorithm: "sha256".into(), value: value.into() }
}

crate::requests!(@ask DeleteBlobRequest -> Erase, |fields, on_conflict, digest, etag, allow_missing, force| {
    fields.only_fail(on_conflict);
    let id = self::digest(fields, "digest", digest);
    let etag = fields.etag("etag", etag);
    Erase::new(id, etag, allow_missing, (!force).then_some(pb::ResourceKind::Blob.into()))
});

/// What an upload says beforehand, checked.
struct Announced {
    digest: Option<String>,
    size_bytes: Option<u64>,
    content_type: String,
    /// What the bytes are put under; the digest is still to be told.
    object: Option<Put>,
    options: crate::store::write::WriteOptions,
}

impl Announced {
    fn read(caller: &Caller, header: pb::UploadHeader, size_max: u64) -> Result<Self> {
        let request_digest = wire::digest(&header, header.options.as_ref());
        let pb::UploadHeader { digest: given, size_bytes, content_type, options, object } = header;
        let mut fields = Fields::new(caller, 1);
        let announced = fields.within("header", |fields| {
            let (options, on_conflict) = fields.options(options, request_digest);
            if on_conflict != OnConflict::Fail {
                fields.wrong("options.on_conflict", "is not taken here: equal bytes are one blob");
            }
            if options.validate_only {
                fields.wrong("options.validate_only", "is not taken here");
            }
            let size_bytes = size_bytes.map(|size| {
                u64::try_from(size).unwrap_or_else(|_| {
                    fields.wrong("size_bytes", "must not be negative");
                    0
                })
            });
            let digest = given.map(|given| digest(fields, "digest", Some(given)));
            let content_type = fields.text("content_type", content_type, wire::ID_BYTES_MAX);
            let object = object.map(|request| {
                fields.within("object", |fields| super::object::read_upload(fields, request))
            });
            Self { digest, size_bytes, content_type, object, options }
        });
        let announced = fields.finish(announced)?;
        if announced.size_bytes.is_some_and(|size| size > size_max) {
            return Err(Error::TooLarge { limit_bytes: size_max });
        }
        Ok(announced)
    }
}

impl From<Blob> for pb::Blob {
    fn from(row: Blob) -> Self {
        let etag = row.etag();
        let Blob {
            id,
            meta,
            size_bytes,
            content_type,
            state,
            storage_backend,
            store_key: _,
            stored_size_bytes: _,
            store_etag,
            store_version_id,
            cipher,
            key_id: _,
            wrapped_key: _,
            seal_header: _,
            verify_time,
        } = row;
        Self {
            digest: Some(digest_of(&id)),
            etag,
            meta: wire::meta(meta),
            size_bytes,
            content_type,
            state: state.into(),
            storage_backend,
            store_etag,
            store_version_id,
            // Told by whoever has counted.
            reference_count: 0,
            verify_time: verify_time.and_then(wire::timestamp),
            encrypted: cipher != crate::store::blob::body::PLAIN,
        }
    }
}
