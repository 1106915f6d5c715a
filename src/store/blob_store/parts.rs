//! An upload in parts: few of them under way at once, and the whole held to its length at the end.

use super::budget::Share;
use super::{BlobStore, Pieces, Stored, damaged, no_bucket, pin, put_before, unavailable};
use crate::{Error, Result};
use futures_util::future::BoxFuture;
use object_store::multipart::PartId;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt as _, PutPayload};
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::Instant;

/// An upload under way. Dropped, it leaves what it has brought, which its intent accounts for.
pub struct Parts {
    store: BlobStore,
    key: String,
    path: Path,
    way: Way,
    /// Parts on their way: number and what the store calls them.
    under_way: JoinSet<Result<(usize, Option<PartId>)>>,
    under_way_max: usize,
    done: BTreeMap<usize, PartId>,
    begun: usize,
    size_bytes: u64,
}

enum Way {
    /// By the store's name for the upload.
    Named(String),
    /// On a local disk: a file under another name, and the way to have it written early.
    Local(Box<dyn MultipartUpload>, Option<Arc<File>>),
}

impl Parts {
    /// Begins an upload under a key of its own.
    pub async fn begin(
        store: &BlobStore,
        key: &str,
        under_way_max: usize,
        deadline: Instant,
    ) -> Result<Self> {
        let (inner, path) = (&store.0, store.path(key));
        let way = match &inner.multipart {
            Some(multipart) => {
                let create = || multipart.create_multipart(&path);
                let id = store.call(&inner.ops.begin, deadline, create).await.map_err(no_bucket)?;
                Way::Named(id)
            }
            None => {
                let begin = || pin(async { inner.store.put_multipart(&path).await });
                let upload = store.call(&inner.ops.begin, deadline, begin).await?;
                // Without it the parts are written when all have come.
                let file = inner.root.as_ref().and_then(|root| {
                    let mut staged = root.join(path.as_ref()).into_os_string();
                    staged.push("#1");
                    File::open(staged).ok()
                });
                Way::Local(upload, file.map(Arc::new))
            }
        };
        Ok(Self {
            store: store.clone(),
            key: key.to_owned(),
            path,
            way,
            under_way: JoinSet::new(),
            under_way_max,
            done: BTreeMap::new(),
            begun: 0,
            size_bytes: 0,
        })
    }

    /// The store's name for the upload; empty where it has none.
    pub fn upload_id(&self) -> &str {
        match &self.way {
            Way::Named(id) => id,
            Way::Local(..) => "",
        }
    }

    /// Sends the next part, as soon as fewer than the most are under way. All but the last must be of one size. The share
    /// of the budget is given back when all that has it has arrived.
    pub async fn send(
        &mut self,
        pieces: Pieces,
        share: Arc<Share>,
        deadline: Instant,
    ) -> Result<()> {
        self.room().await?;
        let (number, begins_at) = (self.begun, self.size_bytes);
        let size_bytes: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        self.begun += 1;
        self.size_bytes += size_bytes;
        let payload: PutPayload = pieces.into_iter().collect();
        let store = self.store.clone();
        let part: BoxFuture<'static, _> = match &mut self.way {
            Way::Named(id) => {
                let (path, id) = (self.path.clone(), id.clone());
                Box::pin(async move {
                    let multipart = store.0.multipart.as_ref();
                    let multipart =
                        multipart.ok_or_else(|| Error::internal("no uploads in parts"))?;
                    let put = || multipart.put_part(&path, &id, number, payload.clone());
                    // Azure hears of an upload with its first part.
                    let part = store.call(&store.0.ops.part, deadline, put).await;
                    let part = part.map_err(no_bucket)?;
                    drop(share);
                    Ok((number, Some(part)))
                })
            }
            // It writes at its place in the file, which a second attempt would not find again.
            Way::Local(upload, file) => {
                let (put, file) = (upload.put_part(payload), file.clone());
                Box::pin(async move {
                    let started = Instant::now();
                    let result = store.once(deadline, put).await.map_err(|(error, _)| error);
                    let outcome = crate::telemetry::metrics::Outcome::of(&result);
                    store.0.ops.part.attempt(outcome, started.elapsed());
                    drop(share);
                    result?;
                    if let Some(file) = file {
                        let begin = move || begin_writing(&file, begins_at, size_bytes);
                        spawn_blocking(begin).await.map_err(Error::internal)?;
                    }
                    Ok((number, None))
                })
            }
        };
        // A task, so that it goes on while the next part is waited for.
        self.under_way.spawn(part);
        Ok(())
    }

    /// Waits until fewer than the most are under way.
    pub async fn room(&mut self) -> Result<()> {
        while self.under_way.len() >= self.under_way_max {
            self.arrive().await?;
        }
        Ok(())
    }

    /// Whether a part has been sent and not arrived.
    pub fn is_under_way(&mut self) -> bool {
        while self.under_way.try_join_next().is_some() {}
        !self.under_way.is_empty()
    }

    async fn arrive(&mut self) -> Result<()> {
        if let Some(arrived) = self.under_way.join_next().await {
            let (number, part) = arrived.map_err(Error::internal)??;
            self.done.extend(part.map(|part| (number, part)));
        }
        Ok(())
    }

    /// Makes one object of the parts, and looks whether it is as long as they were.
    pub async fn complete(mut self, deadline: Instant) -> Result<Stored> {
        while !self.under_way.is_empty() {
            self.arrive().await?;
        }
        let (store, path, size_bytes) = (&self.store, &self.path, self.size_bytes);
        let completed = match &mut self.way {
            Way::Named(id) => {
                let parts: Vec<PartId> = self.done.into_values().collect();
                if parts.len() != self.begun {
                    return Err(Error::internal("a part of an upload is missing"));
                }
                let multipart = store.0.multipart.as_ref();
                let multipart = multipart.ok_or_else(|| Error::internal("no uploads in parts"))?;
                let id = &*id;
                let complete = || {
                    pin(async {
                        match multipart.complete_multipart(path, id, parts.clone()).await {
                            // Azure and GCS tell a second attempt that the parts are not there, as an error like any
                            // other. An object so long is all of them: nobody else has the key.
                            Err(error @ object_store::Error::Generic { .. }) => {
                                match store.0.store.head(path).await {
                                    Ok(meta) if meta.size == size_bytes => Ok(put_before(meta)),
                                    _ => Err(error),
                                }
                            }
                            other => other,
                        }
                    })
                };
                store.call(&store.0.ops.complete, deadline, complete).await
            }
            Way::Local(upload, _) => {
                let started = Instant::now();
                let result = store.once(deadline, upload.complete()).await;
                let result = result.map_err(|(error, _)| error);
                let outcome = crate::telemetry::metrics::Outcome::of(&result);
                store.0.ops.complete.attempt(outcome, started.elapsed());
                result
            }
        };
        let completed = match completed {
            Ok(completed) => Some(completed),
            // The upload is not known any more: an attempt before came through, and its answer did not.
            Err(Error::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        match store.size_bytes(&self.key, deadline).await? {
            Some(found) if found == self.size_bytes => {}
            Some(found) => {
                return Err(damaged(&format!("{found} of {} bytes arrived", self.size_bytes)));
            }
            None => return Err(unavailable("the upload is gone")),
        }
        let (etag, version) = completed.map(|put| (put.e_tag, put.version)).unwrap_or_default();
        Ok(Stored { etag: etag.unwrap_or_default(), version_id: version.unwrap_or_default() })
    }
}

/// Has the system begin to write a range of a file that it holds in memory, so that the fsync at the end has little to
/// wait for. That tells of what fails here, too.
#[cfg(target_os = "linux")]
fn begin_writing(file: &File, begins_at: u64, size_bytes: u64) {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    if let (Ok(at), Ok(size)) = (i64::try_from(begins_at), i64::try_from(size_bytes)) {
        // Linux begins to write what it cannot forget yet. It is advice, so nothing depends on it.
        let _ = posix_fadvise(file, at, size, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
}

/// Elsewhere there is no such thing.
#[cfg(not(target_os = "linux"))]
fn begin_writing(_: &File, _: u64, _: u64) {}
