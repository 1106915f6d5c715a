//! Where the bytes of blobs are: S3, a local disk or memory behind one handle, with time-outs, retries and metrics.
//!
//! No two writes share a key (see `blob_intent`), so nothing here ever replaces bytes. What comes back is as long as it
//! should be, or an error.

pub mod budget;
pub mod flow;
pub mod open;
pub mod parts;
pub mod sas;
pub mod sign;
mod sigv4;

use crate::store::backend::RetrySettings;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{OpMetrics, Outcome};
use crate::{Error, Reason, Result};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use object_store::aws::AmazonS3;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{
    GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions,
    PutPayload, PutResult,
};
use std::future::Future;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use tokio::time::{Instant, timeout, timeout_at};
use tower::retry::budget::{Budget as _, TpsBudget};

/// `Error::Unavailable.backend` of a store that does not answer.
pub const BACKEND: &str = "object_store";

/// The names of what is asked of the store, for metrics.
pub const OPS: &[&str] = &[PUT, GET, HEAD, DELETE, BEGIN, PART, COMPLETE, ABORT, PROBE, SIGN];
const PUT: &str = "object_store.PUT";
const GET: &str = "object_store.GET";
const HEAD: &str = "object_store.HEAD";
const DELETE: &str = "object_store.DELETE";
const BEGIN: &str = "object_store.BEGIN";
const PART: &str = "object_store.PART";
const COMPLETE: &str = "object_store.COMPLETE";
const ABORT: &str = "object_store.ABORT";
const PROBE: &str = "object_store.PROBE";
const SIGN: &str = "object_store.SIGN";

/// Names under which a local disk may have one object while it is written.
const STAGED_MAX: usize = 3;

/// Of an upload to a local disk.
const LOCAL_PART_BYTES: usize = 2 << 20;

/// A read of a store in the same process or machine, and of one that is further away.
const PIECE_NEAR_BYTES: u64 = 1 << 20;
const PIECE_FAR_BYTES: u64 = 4 << 20;

/// The handles of each operation's metrics.
struct Ops {
    put: Arc<OpMetrics>,
    get: Arc<OpMetrics>,
    head: Arc<OpMetrics>,
    delete: Arc<OpMetrics>,
    begin: Arc<OpMetrics>,
    part: Arc<OpMetrics>,
    complete: Arc<OpMetrics>,
    abort: Arc<OpMetrics>,
    probe: Arc<OpMetrics>,
    sign: Arc<OpMetrics>,
}

impl Ops {
    fn new(metrics: &Metrics) -> Self {
        Self {
            put: metrics.op(PUT),
            get: metrics.op(GET),
            head: metrics.op(HEAD),
            delete: metrics.op(DELETE),
            begin: metrics.op(BEGIN),
            part: metrics.op(PART),
            complete: metrics.op(COMPLETE),
            abort: metrics.op(ABORT),
            probe: metrics.op(PROBE),
            sign: metrics.op(SIGN),
        }
    }
}

/// A store of bytes; clones share it.
#[derive(Clone)]
pub struct BlobStore(Arc<Inner>);

struct Inner {
    store: Arc<dyn ObjectStore>,
    /// Uploads in parts by their name in the store; none on a local disk, which has no such names.
    multipart: Option<Arc<dyn MultipartStore>>,
    /// S3 itself, which signs what is put, too.
    s3: Option<Arc<AmazonS3>>,
    /// Makes signed URLs; none where the store has no such thing.
    signer: Option<Arc<dyn Signer>>,
    /// Of Azure, whose URLs the library signs without saying how the answer is to be saved.
    sas: Option<sas::Key>,
    /// Of a local disk.
    root: Option<PathBuf>,
    /// What all keys begin with.
    prefix: Path,
    /// As `Blob.storage_backend` says.
    backend: &'static str,
    /// Whether it refuses to put where something is, and says so.
    is_conditional: AtomicBool,
    /// How long one request may take.
    timeout: Duration,
    retry: RetrySettings,
    retries: TpsBudget,
    ops: Ops,
    /// Whether it is in another process, or further away.
    is_far: bool,
}

/// What the store says of bytes that it has taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    pub etag: String,
    pub version_id: String,
}

/// What the store says of something that it has.
#[derive(Clone, Debug)]
pub struct Listed {
    pub key: String,
    pub size_bytes: u64,
    pub modify_time: SystemTime,
}

/// What is left of the attempts at something.
struct Tries {
    left: u32,
    /// Before the next.
    pause_max: Duration,
}

/// One attempt at something.
type Attempted<'a, T> = BoxFuture<'a, object_store::Result<T>>;

/// Boxed, because compilers cannot see yet that what an async closure returns can be sent.
fn pin<'a, T>(
    attempt: impl Future<Output = object_store::Result<T>> + Send + 'a,
) -> Attempted<'a, T> {
    Box::pin(attempt)
}

/// Bytes to be put, in pieces.
pub type Pieces = Vec<Bytes>;

impl BlobStore {
    pub fn backend(&self) -> &'static str {
        self.0.backend
    }

    /// How many bytes one read should ask for.
    pub fn piece_bytes(&self) -> u64 {
        if self.0.is_far { PIECE_FAR_BYTES } else { PIECE_NEAR_BYTES }
    }

    /// Whether a range of so many bytes should be taken as it comes. A far store answers one long request sooner than
    /// several short ones; what is short takes less memory when it is read at once.
    pub fn is_flowing(&self, size_bytes: u64) -> bool {
        self.0.is_far && size_bytes > PIECE_NEAR_BYTES
    }

    /// How many bytes the parts of an upload should have, where `part_bytes` is what is wanted of a store that is further
    /// away: on a disk short parts cost nothing, and the last is written sooner.
    pub fn part_bytes(&self, part_bytes: usize) -> usize {
        match self.0.root {
            Some(_) => part_bytes.min(LOCAL_PART_BYTES),
            None => part_bytes,
        }
    }

    fn path(&self, key: &str) -> Path {
        self.0.prefix.clone().join_all(key)
    }

    /// Puts bytes where nothing is. They are durable when it returns.
    pub async fn put(&self, key: &str, pieces: Pieces, deadline: Instant) -> Result<Stored> {
        let path = self.path(key);
        let size_bytes: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        let payload: PutPayload = pieces.into_iter().collect();
        let put = || {
            pin(async {
                let is_conditional = self.0.is_conditional.load(Ordering::Relaxed);
                let mode = if is_conditional { PutMode::Create } else { PutMode::Overwrite };
                let options = PutOptions { mode, ..PutOptions::default() };
                match self.0.store.put_opts(&path, payload.clone(), options).await {
                    // The key is ours alone: an attempt before this one came through, and its answer did not. Some stores
                    // say 409 where others say 412.
                    Err(
                        object_store::Error::AlreadyExists { .. }
                        | object_store::Error::Precondition { .. },
                    ) => match self.0.store.head(&path).await {
                        Ok(meta) if meta.size == size_bytes => Ok(put_before(meta)),
                        Ok(meta) => Err(conflict(format!("{} bytes are there already", meta.size))),
                        Err(_) => Err(conflict("another request was under way".into())),
                    },
                    other => other,
                }
            })
        };
        let put = self.call(&self.0.ops.put, deadline, put).await.map_err(no_bucket)?;
        Ok(Stored {
            etag: put.e_tag.unwrap_or_default(),
            version_id: put.version.unwrap_or_default(),
        })
    }

    /// A range of stored bytes; `stored_bytes` is how many there must be in all.
    pub async fn read(
        &self,
        key: &str,
        range: Range<u64>,
        stored_bytes: u64,
        deadline: Instant,
    ) -> Result<Bytes> {
        if range.is_empty() {
            // A range of nothing cannot be asked for.
            let found = self.size_bytes(key, deadline).await?;
            return check_size(found, stored_bytes).map(|()| Bytes::new());
        }
        let path = self.path(key);
        let get = || {
            pin(async {
                let asked = Some(GetRange::Bounded(range.clone()));
                let options = GetOptions { range: asked, ..GetOptions::default() };
                let found = self.0.store.get_opts(&path, options).await?;
                let size_bytes = found.meta.size;
                if size_bytes != stored_bytes || found.range != range {
                    return Ok((size_bytes, Bytes::new()));
                }
                let bytes = found.bytes().await?;
                if bytes.len() as u64 != range.end - range.start {
                    return Err(conflict(format!("{} bytes came of {range:?}", bytes.len())));
                }
                Ok((size_bytes, bytes))
            })
        };
        match self.call(&self.0.ops.get, deadline, get).await {
            Ok((found, bytes)) => {
                check_size(Some(found), stored_bytes)?;
                if bytes.is_empty() { Err(damaged("another range came")) } else { Ok(bytes) }
            }
            Err(Error::NotFound { .. }) => Err(damaged("they are gone")),
            Err(error) => Err(error),
        }
    }

    /// How many bytes are under a key; `None` where nothing is.
    pub async fn size_bytes(&self, key: &str, deadline: Instant) -> Result<Option<u64>> {
        let path = self.path(key);
        let head = || pin(async { Ok(self.0.store.head(&path).await?.size) });
        match self.call(&self.0.ops.head, deadline, head).await {
            Ok(size) => Ok(Some(size)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes whatever is under a key, with what an upload in parts may have left. Nothing there is no error.
    pub async fn delete(&self, key: &str, upload_id: &str, deadline: Instant) -> Result<()> {
        let path = self.path(key);
        if let Some(multipart) = self.0.multipart.as_ref().filter(|_| !upload_id.is_empty()) {
            let id = upload_id.to_owned();
            let abort = || multipart.abort_multipart(&path, &id);
            match self.call(&self.0.ops.abort, deadline, abort).await {
                // It was completed, or aborted before.
                Ok(()) | Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let delete = || pin(async { self.0.store.delete(&path).await });
        match self.call(&self.0.ops.delete, deadline, delete).await {
            Ok(()) | Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        self.sweep(&path).await
    }

    /// On a local disk, removes the files under other names that a server left which was killed while it wrote, and makes
    /// the removal last.
    async fn sweep(&self, path: &Path) -> Result<()> {
        let Some(file) = self.0.root.as_ref().map(|root| root.join(path.as_ref())) else {
            return Ok(());
        };
        let swept = tokio::task::spawn_blocking(move || {
            // The key is used once, so there is hardly more than the first of them.
            for n in 1..=STAGED_MAX {
                let mut staged = file.clone().into_os_string();
                staged.push(format!("#{n}"));
                match std::fs::remove_file(staged) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(error);
                    }
                    _ => {}
                }
            }
            match file.parent().map(std::fs::File::open) {
                Some(Ok(folder)) => folder.sync_all(),
                _ => Ok(()),
            }
        });
        match swept.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(unavailable(error)),
            Err(error) => Err(Error::internal(error)),
        }
    }

    /// All that is below a folder, in no order.
    pub fn list(&self, prefix: &str) -> BoxStream<'static, Result<Listed>> {
        let own = self.0.prefix.clone();
        let found = self.0.store.list(Some(&self.path(prefix)));
        let key = move |path: &Path| {
            let parts: Option<Vec<_>> = path.prefix_match(&own).map(Iterator::collect);
            let parts = parts.unwrap_or_default();
            parts.iter().map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/")
        };
        let time = self.0.timeout;
        let found = stream::unfold(Some(found), move |found| async move {
            let mut found = found?;
            match timeout(time, found.next()).await {
                Ok(meta) => Some((meta?.map_err(|error| failed(error).0), Some(found))),
                Err(_) => Some((Err(unavailable("no answer in time")), None)),
            }
        });
        found
            .map(move |meta| {
                meta.map(|meta| Listed {
                    key: key(&meta.location),
                    size_bytes: meta.size,
                    modify_time: meta.last_modified.into(),
                })
            })
            .boxed()
    }

    /// Whether the store answers.
    pub async fn check(&self, deadline: Instant) -> Result<()> {
        let path = self.path("probe/none");
        // No retry: it is looked at again soon.
        let head = self.0.store.head(&path);
        let started = Instant::now();
        let until = deadline.min(started + self.0.timeout);
        let result = match timeout_at(until, head).await {
            Ok(Ok(_) | Err(object_store::Error::NotFound { .. })) => self.check_root().await,
            Ok(Err(error)) => Err(failed(error).0),
            Err(_) => Err(unavailable("no answer in time")),
        };
        self.0.ops.probe.attempt(Outcome::of(&result), started.elapsed());
        result
    }

    /// A folder that is gone looks empty.
    async fn check_root(&self) -> Result<()> {
        match &self.0.root {
            Some(root) => match tokio::fs::metadata(root).await {
                Ok(found) if found.is_dir() => Ok(()),
                Ok(_) => Err(unavailable("the folder is none")),
                Err(error) => Err(unavailable(error)),
            },
            None => Ok(()),
        }
    }

    /// Finds out whether the store refuses to put where something is. Where it does not, that no two writes share a key
    /// is left to the database alone, and said.
    pub async fn probe(&self, name: &str, deadline: Instant) -> Result<bool> {
        let key = format!("probe/{name}");
        let path = self.path(&key);
        let is_conditional = match self.probe_put(&path, PutMode::Create, deadline).await {
            Ok(_) => match self.probe_put(&path, PutMode::Create, deadline).await {
                Ok(_) => false,
                // 409 or 412: either says that something is there.
                Err((Error::Taken { .. }, _)) => true,
                Err((error, _)) => return Err(error),
            },
            // Such as 501: it does not know the condition. Whether it takes anything at all, this tells.
            Err((error, true)) => match self.probe_put(&path, PutMode::Overwrite, deadline).await {
                Ok(_) => false,
                Err(_) => return Err(error),
            },
            Err((error, false)) => return Err(error),
        };
        self.0.is_conditional.store(is_conditional, Ordering::Relaxed);
        self.delete(&key, "", deadline).await?;
        Ok(is_conditional)
    }

    /// Puts a few bytes once. An error tells whether the store has answered.
    async fn probe_put(
        &self,
        path: &Path,
        mode: PutMode,
        deadline: Instant,
    ) -> Result<(), (Error, bool)> {
        let options = PutOptions { mode, ..PutOptions::default() };
        let put = self.0.store.put_opts(path, PutPayload::from_static(b"casebook"), options);
        match timeout_at(deadline.min(Instant::now() + self.0.timeout), put).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err((failed(error).0, true)),
            Err(_) => Err((unavailable("no answer in time"), false)),
        }
    }

    /// Tries until it goes well, is refused, or neither time nor budget is left.
    async fn call<'a, T>(
        &self,
        op: &OpMetrics,
        deadline: Instant,
        attempt: impl Fn() -> Attempted<'a, T>,
    ) -> Result<T> {
        let started = Instant::now();
        let result = self.attempts(deadline, attempt).await;
        op.attempt(Outcome::of(&result), started.elapsed());
        result
    }

    async fn attempts<'a, T>(
        &self,
        deadline: Instant,
        attempt: impl Fn() -> Attempted<'a, T>,
    ) -> Result<T> {
        let mut tries = self.tries();
        loop {
            match self.once(deadline, attempt()).await {
                Ok(value) => {
                    self.0.retries.deposit();
                    return Ok(value);
                }
                Err(failed) => self.again(&mut tries, failed, deadline).await?,
            }
        }
    }

    fn tries(&self) -> Tries {
        Tries { left: self.0.retry.attempts_max, pause_max: self.0.retry.base }
    }

    /// Waits after an attempt that failed until the next may be made, or gives back the error that is the last.
    async fn again(
        &self,
        tries: &mut Tries,
        (error, is_passing): (Error, bool),
        deadline: Instant,
    ) -> Result<()> {
        tries.left = tries.left.saturating_sub(1);
        let pause = tries.pause_max.mul_f64(rand::random::<f64>());
        let is_late = Instant::now() + pause >= deadline;
        if !is_passing || tries.left == 0 || is_late || !self.0.retries.withdraw() {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        tries.pause_max = (tries.pause_max * 2).min(self.0.retry.max);
        Ok(())
    }

    async fn once<T>(
        &self,
        deadline: Instant,
        attempt: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, (Error, bool)> {
        let until = Instant::now() + self.0.timeout;
        match timeout_at(deadline.min(until), attempt).await {
            Ok(result) => result.map_err(failed),
            Err(_) if until < deadline => Err((unavailable("no answer in time"), true)),
            Err(_) => {
                let late = Error::DeadlineExceeded(" while the store of blobs was working");
                Err((late, false))
            }
        }
    }
}

/// What the store would have answered when it took an object that it has.
fn put_before(meta: ObjectMeta) -> PutResult {
    PutResult { e_tag: meta.e_tag, version: meta.version, extensions: Default::default() }
}

fn check_size(found: Option<u64>, stored_bytes: u64) -> Result<()> {
    match found {
        Some(found) if found == stored_bytes => Ok(()),
        Some(found) => Err(damaged(&format!("they are {found} instead of {stored_bytes} bytes"))),
        None => Err(damaged("they are gone")),
    }
}

/// The stored bytes are not what was put; which blob's, the caller adds.
pub fn damaged(how: &str) -> Error {
    Error::DataLoss {
        reason: Reason::BlobCorrupt,
        message: format!("the stored bytes of the blob are damaged: {how}"),
        metadata: Vec::new(),
    }
}

fn unavailable(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Unavailable { backend: BACKEND, cause: Arc::from(cause.into()) }
}

/// What a store that takes bytes does not find is where they are to go.
fn no_bucket(error: Error) -> Error {
    match error {
        Error::NotFound { .. } => unavailable("there is no such bucket or container"),
        error => error,
    }
}

fn conflict(how: String) -> object_store::Error {
    object_store::Error::Generic { store: BACKEND, source: how.into() }
}

/// What an error of the store means to a caller, and whether another attempt may help.
fn failed(error: object_store::Error) -> (Error, bool) {
    use object_store::Error as E;
    match error {
        E::NotFound { path, .. } => (Error::not_found("stored bytes", path), false),
        E::AlreadyExists { path, .. } | E::Precondition { path, .. } => {
            (Error::Taken { kind: "stored bytes", id: path, fields: Vec::new() }, false)
        }
        error @ E::Generic { .. } => (unavailable(error), true),
        // Keys, rights, a bucket that is not there: trying again does not help, but somebody may.
        error => (unavailable(error), false),
    }
}

/// Joins a key of several parts to a path.
trait JoinAll {
    fn join_all(self, key: &str) -> Self;
}

impl JoinAll for Path {
    fn join_all(self, key: &str) -> Self {
        key.split('/').filter(|part| !part.is_empty()).fold(self, |path, part| path.join(part))
    }
}
