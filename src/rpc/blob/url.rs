//! CreateDownloadUrl: the way past this server to one blob's bytes, for a while.

use super::{digest, piecewise};
use crate::pb;
use crate::rpc::wire::{Fields, ID_BYTES_MAX};
use crate::rpc::{Api, json, wire};
use crate::store::blob::Blob;
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
