//! VerifyBlobStore: what is wrong with stored bytes, told as it is found.
//!
//! A task does the work and ends when the caller goes, at the deadline, and when the server stops; the stream says why.

use super::{digest_of, piecewise};
use crate::pb::verify_blob_store_response::Finding;
use crate::pb::{self, BlobProblem, VerifyBlobStoreResponse};
use crate::rpc::Api;
use crate::rpc::wire::Fields;
use crate::store::blob::body::Pace;
use crate::store::blob::check::{Fault, LOOKS, Lens, Orphan};
use crate::store::blob::{self, Blob};
use crate::store::caller::Caller;
use crate::store::filter::Field;
use crate::store::list::{Cursor, ListQuery, Order};
use crate::{Error, Result};
use futures_util::stream::{self, StreamExt as _};
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Blobs that are looked at together.
const PAGE: i64 = 500;
/// Blobs that are read at once. Each has no more than one piece in memory.
const READS: usize = 4;
const TELL_EVERY: Duration = Duration::from_secs(5);
const ORPHAN_AGE: Duration = Duration::from_secs(24 * 3600);
const ORPHAN_AGE_MIN: Duration = Duration::from_secs(60);

/// What is to be done.
struct Asked {
    rehash: bool,
    remove_orphans: bool,
    /// Younger bytes may be on their way.
    orphan_age: Duration,
}

impl Asked {
    fn read(request: pb::VerifyBlobStoreRequest) -> Result<Self> {
        let pb::VerifyBlobStoreRequest { rehash, remove_orphans, orphan_age } = request;
        let mut fields = Fields::default();
        let us = fields.span_us("orphan_age", orphan_age).unwrap_or_default();
        let age = match u64::try_from(us).unwrap_or_default() {
            0 => ORPHAN_AGE,
            us => Duration::from_micros(us),
        };
        if age < ORPHAN_AGE_MIN {
            fields.wrong("orphan_age", "must be at least 60 s, or 0 for 24 h");
        }
        fields.finish(Self { rehash, remove_orphans, orphan_age: age })
    }
}

impl Api {
    pub(super) fn verify_store(
        &self,
        caller: Caller,
        request: pb::VerifyBlobStoreRequest,
    ) -> Result<<Api as pb::blob_service_server::BlobService>::VerifyBlobStoreStream> {
        let asked = Asked::read(request)?;
        let (sender, received) = mpsc::channel(16);
        let lens = self.blobs()?.lens();
        let told = VerifyBlobStoreResponse::default();
        let mut verify = Verify {
            api: self.clone(),
            caller,
            lens,
            asked,
            sender,
            told,
            next_telling: Instant::now() + TELL_EVERY,
        };
        tokio::spawn(async move {
            let (closed, deadline) = (verify.api.health.closed(), verify.caller.deadline);
            let sender = verify.sender.clone();
            let ended = tokio::select! {
                ended = verify.run() => ended,
                () = sender.closed() => return,
                () = closed => Err(Error::ShuttingDown),
                () = sleep_until(deadline) => {
                    Err(Error::DeadlineExceeded(" before the whole store was looked at"))
                }
            };
            if let Err(error) = ended {
                // A caller that has gone away needs no answer.
                let _ = sender.send(Err(Status::from(error))).await;
            }
        });
        Ok(Box::pin(ReceiverStream::new(received)))
    }
}

/// A task that ends with whoever waits for it.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Looking at a tenant's bytes.
struct Verify {
    api: Api,
    caller: Caller,
    lens: Lens,
    asked: Asked,
    sender: mpsc::Sender<Result<VerifyBlobStoreResponse, Status>>,
    told: VerifyBlobStoreResponse,
    next_telling: Instant,
}

impl Verify {
    async fn run(&mut self) -> Result<()> {
        let began = SystemTime::now();
        self.blobs().await?;
        let until = began.checked_sub(self.asked.orphan_age).unwrap_or(SystemTime::UNIX_EPOCH);
        self.orphans(until).await?;
        self.told.done = true;
        self.send(None).await
    }

    /// Every blob that there is, in the order of digests. One that comes meanwhile may be passed over.
    async fn blobs(&mut self) -> Result<()> {
        let field = Field::find(blob::LISTING.fields, "id")
            .ok_or_else(|| Error::internal("blobs have no id"))?;
        let order = || vec![Order { field, desc: false }];
        let mut after = None;
        loop {
            let query = ListQuery { order: order(), after, limit: PAGE, ..ListQuery::default() };
            let caller = piecewise(&self.caller);
            let page = self.api.store.list::<Blob>(&caller, &blob::LISTING, query, false).await?;
            let rehash = self.asked.rehash;
            let (store, lens) = (self.api.store.clone(), self.lens.clone());
            let caller = self.caller.clone();
            let checks = page.rows.into_iter().map(|blob| {
                let (store, lens, caller) = (store.clone(), lens.clone(), caller.clone());
                async move {
                    let check = async move {
                        let mut pace = rehash.then(|| Pace::new(None));
                        let fault = store.check_blob(&lens, &caller, &blob, pace.as_mut()).await?;
                        Ok::<_, Error>((blob, pace.map_or(0, |pace| pace.bytes()), fault))
                    };
                    // A task, which goes on while a finding waits to be taken, and so gives back its share of memory.
                    let mut task = Task(tokio::spawn(check));
                    (&mut task.0).await.map_err(Error::internal)?
                }
            });
            let mut checks = stream::iter(checks).buffered(if rehash { READS } else { LOOKS });
            while let Some(checked) = checks.next().await {
                let (blob, bytes_read, fault) = checked?;
                self.told.bytes_read += bytes_read as i64;
                self.note(&blob, fault).await?;
            }
            let Some(next) = page.next else { return Ok(()) };
            let cursor = Cursor::parse(&order(), &next);
            after = Some(cursor.ok_or_else(|| Error::internal("a page without an end"))?);
        }
    }

    async fn note(&mut self, blob: &Blob, fault: Option<Fault>) -> Result<()> {
        self.told.blobs_checked += 1;
        let Some(fault) = fault else { return self.tell().await };
        let mut finding = Finding { digest: Some(digest_of(&blob.id)), ..Finding::default() };
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let problem = match fault {
            Fault::Missing => {
                finding.expected_bytes = blob.stored_size_bytes;
                BlobProblem::MissingBytes
            }
            Fault::Size { expected, found } => {
                (finding.expected_bytes, finding.found_bytes) = (bytes(expected), bytes(found));
                BlobProblem::SizeMismatch
            }
            Fault::Damaged => BlobProblem::DigestMismatch,
            Fault::Unreadable(why) => {
                finding.message = why.to_string();
                BlobProblem::Unreadable
            }
        };
        if problem != BlobProblem::Unreadable
            && let Some(blobs) = &self.api.blobs
        {
            blobs.corrupt.inc();
        }
        finding.problem = problem.into();
        self.send(Some(finding)).await
    }

    async fn orphans(&mut self, until: SystemTime) -> Result<()> {
        let (store, lens, caller) =
            (self.api.store.clone(), self.lens.clone(), self.caller.clone());
        let mut found = store.orphans(&lens, &caller, until);
        while let Some(some) = found.next().await {
            let (looked_at, orphans) = some?;
            self.told.keys_checked += looked_at as i64;
            for Orphan { key, size_bytes } in orphans {
                if self.asked.remove_orphans {
                    store.discard(&caller, &key).await?;
                }
                let finding = Finding {
                    problem: BlobProblem::OrphanBytes.into(),
                    store_key: key,
                    found_bytes: i64::try_from(size_bytes).unwrap_or(i64::MAX),
                    removed: self.asked.remove_orphans,
                    ..Finding::default()
                };
                self.send(Some(finding)).await?;
            }
            self.tell().await?;
        }
        Ok(())
    }

    /// Tells how far it is, if that was not told for long.
    async fn tell(&mut self) -> Result<()> {
        if Instant::now() < self.next_telling { Ok(()) } else { self.send(None).await }
    }

    async fn send(&mut self, finding: Option<Finding>) -> Result<()> {
        self.told.findings += i64::from(finding.is_some());
        self.next_telling = Instant::now() + TELL_EVERY;
        let message = VerifyBlobStoreResponse { finding, ..self.told.clone() };
        // When nobody takes them any more, the task is told so elsewhere.
        let _ = self.sender.send(Ok(message)).await;
        Ok(())
    }
}
