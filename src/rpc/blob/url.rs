//! CreateDownloadUrl: the way past this server to one blob's bytes, for a while.

use super::upload::{Brought, Work};
use super::{digest, piecewise};
use crate::pb;
use crate::rpc::wire::{Fields, ID_BYTES_MAX};
use crate::rpc::{Api, json, wire};
use crate::store::blob::Blob;
use crate::store::blob::change::Keep;
use crate::store::blob::content::MoveOut;
use crate::store::blob_store::Stored;
use crate::store::blob_store::sign::{SignedUrl, TTL_MAX};
use crate::store::caller::Caller;
use crate::store::event::LogEvent;
use crate::store::write::WriteOptions;
use crate::{Reason, Result};
use std::time::Duration;

pub(in crate::rpc) const TTL_DEFAULT: Duration = Duration::from_secs(60 * 60);

impl Api {
    pub(super) async fn download_url(
        &self,
        caller: &Caller,
        request: pb::CreateDownloadUrlRequest,
    ) -> Result<pb::CreateDownloadUrlResponse> {
        let pb::CreateDownloadUrlRequest { digest: given, ttl, response_filename } = request;
        let mut fields = Fields::new(caller, 1);
        let id = digest(&mut fields, "digest", given);
        let ttl = url_ttl(&mut fields, "ttl", ttl, TTL_DEFAULT);
        let filename = filename(&mut fields, "response_filename", response_filename);
        let id = fields.finish(id)?;
        let blob: Blob = self.store.get(&piecewise(caller), &id).await?;
        let SignedUrl { url, expire_time } =
            self.issue_download_url(caller, &blob, ttl, &filename).await?;
        Ok(pb::CreateDownloadUrlResponse { url, expire_time: wire::timestamp(expire_time) })
    }

    /// A URL to a blob's bytes, once it stands in the log that it was issued.
    pub(in crate::rpc) async fn issue_download_url(
        &self,
        caller: &Caller,
        blob: &Blob,
        ttl: Duration,
        filename: &str,
    ) -> Result<SignedUrl> {
        let store = &self.blobs()?.store;
        let moved;
        let blob = if blob.is_inline() {
            moved = self.moved_out(caller, blob).await?;
            &moved
        } else {
            blob
        };
        let signed = match store.download_url(blob, ttl, filename, caller.deadline).await {
            Ok(signed) => signed,
            Err(error) => return Err(self.accuse(caller, blob, error).await),
        };
        let metadata = serde_json::json!({
            "response_filename": filename,
            "ttl_seconds": ttl.as_secs(),
        });
        let event = LogEvent::of(blob, "DOWNLOAD_URL_ISSUED", json::of_value(&metadata));
        self.store.write(piecewise(caller), WriteOptions::default(), event).await?;
        Ok(signed)
    }

    /// The blob once its bytes, which lay in the database when it was read, lie in the store, to which a URL leads.
    async fn moved_out(&self, caller: &Caller, blob: &Blob) -> Result<Blob> {
        let blobs = self.blobs()?;
        if let Err(error) = blobs.store.can_sign_for(blob) {
            return Err(self.accuse(caller, blob, error).await);
        }
        let size_bytes = blob.size_bytes.unsigned_abs();
        let _share = blobs.budget.take(2 * size_bytes.max(1)).await?;
        let source = self.source(caller, blob).await?;
        let bytes = self.read_right(caller, blob, &source).await?;
        let work = Work { api: self.clone(), caller: caller.clone() };
        // Unencrypted, as they were: no URL leads to what is not.
        let put = work.put_into_store(blobs, None, &blob.id, vec![bytes], String::new());
        let Brought { attempt, keep: Keep { blob: there, .. } } = put.await?;
        let Blob { store_key, storage_backend, store_etag, store_version_id, .. } = there;
        let stored = Stored { etag: store_etag, version_id: store_version_id };
        let change =
            MoveOut { blob: blob.clone(), uid: attempt.uid, store_key, storage_backend, stored };
        match self.store.write(piecewise(caller), WriteOptions::default(), change).await {
            Ok((moved, _)) => Ok(moved),
            Err(error) => {
                work.abandon(&attempt, "", false);
                // Somebody else may have moved them, or brought others since they were lost.
                let now: Blob = self.store.get(&piecewise(caller), &blob.id).await?;
                if now.is_inline() { Err(error) } else { Ok(now) }
            }
        }
    }
}

/// How long a URL, or an upload, is to be good for.
pub(in crate::rpc) fn url_ttl(
    fields: &mut Fields,
    field: &str,
    given: Option<prost_types::Duration>,
    default: Duration,
) -> Duration {
    let Some(given) = given else { return default };
    let ttl = Duration::try_from(given).unwrap_or_default();
    if !(Duration::from_secs(1)..=TTL_MAX).contains(&ttl) || ttl.subsec_nanos() > 0 {
        fields.wrong(field, "must be 1 second to 7 days, in whole seconds");
    }
    ttl
}

/// What a browser is to save a blob as; may be empty.
pub(in crate::rpc) fn filename(fields: &mut Fields, field: &str, given: String) -> String {
    let given = fields.text(field, given, ID_BYTES_MAX);
    // A NUL byte has been said.
    if given.contains(|c: char| c == '/' || c == '\\' || c.is_control() && c != '\0') {
        fields.wrong_because(
            Reason::FieldInvalid,
            field,
            "must be the name of a file, without / and \\ and control characters",
        );
    }
    given
}
