//! Signed URLs: whoever has one reaches one object by one method until it expires, without credentials.

use super::{BlobStore, check_size, damaged, pin, sigv4, unavailable};
use crate::store::blob::{Blob, CORRUPT, body};
use crate::{Error, Reason, Result};
use object_store::aws::AmazonS3;
use object_store::signer::{Method, SignedUrlOptions, Signer};
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// No signature of S3 or GCS holds for longer; one of Azure could.
pub const TTL_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A PUT that anybody may make who sends exactly these headers. `Debug` does not show it: it is a credential.
pub struct SignedPut {
    pub url: String,
    /// Names in lower case.
    pub headers: Vec<(&'static str, String)>,
}

/// A URL, and when it ends. `Debug` does not show it: it is a credential.
pub struct SignedUrl {
    pub url: String,
    /// By the clock of this server.
    pub expire_time: SystemTime,
}

impl std::fmt::Debug for SignedUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SignedUrl(until {:?})", self.expire_time)
    }
}

impl BlobStore {
    /// A URL to GET the whole blob for `ttl`, in whole seconds from one to [`TTL_MAX`]. Browsers save what it yields, as
    /// `filename` unless that is empty, and never show it.
    ///
    /// Refused with NOT_SIGNABLE or BLOB_ENCRYPTED where no URL leads to the blob's bytes, with NOT_CONFIGURED where they
    /// are in another store, and with BLOB_CORRUPT where they are damaged or gone. Recording it is the caller's.
    pub async fn download_url(
        &self,
        blob: &Blob,
        ttl: Duration,
        filename: &str,
        deadline: Instant,
    ) -> Result<SignedUrl> {
        let signer = self.signer_for(blob)?;
        self.is_store_of(blob)?;
        // Whoever has the URL could not tell us that the bytes are gone.
        let stored_bytes = u64::try_from(blob.stored_size_bytes).map_err(Error::internal)?;
        check_size(self.size_bytes(&blob.store_key, deadline).await?, stored_bytes)?;
        let path = self.path(&blob.store_key);
        let disposition = disposition(filename);
        let expire_time = whole_seconds(SystemTime::now()) + ttl;
        let url = match &self.0.sas {
            None => {
                let said = [("response-content-disposition", disposition)];
                let options = SignedUrlOptions::new().with_query(said);
                let sign = || pin(signer.signed_url_opts(Method::GET, &path, ttl, &options));
                self.call(&self.0.ops.sign, deadline, sign).await?.into()
            }
            Some(key) => {
                let sign = || pin(signer.signed_url(Method::GET, &path, ttl));
                let url = self.call(&self.0.ops.sign, deadline, sign).await?;
                key.sign_again(&url, &path, &disposition)
                    .ok_or_else(|| unavailable("its URLs are not signed as those of Azure are"))?
            }
        };
        Ok(SignedUrl { url, expire_time })
    }

    /// Whether a URL could lead to the blob's bytes if they were in this store. Fails as [`Self::download_url`] does.
    pub fn can_sign_for(&self, blob: &Blob) -> Result<()> {
        self.signer_for(blob).map(|_| ())
    }

    fn signer_for(&self, blob: &Blob) -> Result<&dyn Signer> {
        if blob.state == CORRUPT {
            return Err(damaged("this was found before; upload the right ones again"));
        }
        if blob.cipher != body::PLAIN {
            return Err(encrypted(&format!("the blob \"{}\" is encrypted: download it", blob.id)));
        }
        self.0.signer.as_deref().ok_or_else(|| self.not_signable())
    }

    /// Whether anybody may be let put bytes into this store: only S3 holds a PUT to the length that was signed.
    pub fn can_sign_puts(&self) -> Result<()> {
        self.s3().map(|_| ())
    }

    fn s3(&self) -> Result<&AmazonS3> {
        self.0.s3.as_deref().ok_or_else(|| self.not_signable())
    }

    /// A URL to PUT so many bytes to a key for `ttl`, in whole seconds from one to [`TTL_MAX`]. It can be used more than
    /// once, and not every store holds the bytes to `sha256`, base64: what has come must be read before it is believed.
    pub async fn signed_put(
        &self,
        key: &str,
        size_bytes: u64,
        sha256: Option<String>,
        ttl: Duration,
        deadline: Instant,
    ) -> Result<SignedPut> {
        let (s3, path) = (self.s3()?, self.path(key));
        let mut headers = vec![("content-length", size_bytes.to_string())];
        headers.extend(sha256.map(|sum| ("x-amz-checksum-sha256", sum)));
        let sign = || {
            pin(async {
                let url = s3.signed_url(Method::PUT, &path, ttl).await?;
                Ok((url, s3.credentials().get_credential().await?))
            })
        };
        let (url, credential) = self.call(&self.0.ops.sign, deadline, sign).await?;
        let url = sigv4::sign_again(&url, "PUT", &headers, &credential.secret_key)
            .ok_or_else(|| unavailable("its URLs are not signed as those of S3 are"))?;
        Ok(SignedPut { url, headers })
    }

    /// Refuses a blob whose bytes are in a store of another kind: that this one does not have them is no loss.
    pub fn is_store_of(&self, blob: &Blob) -> Result<()> {
        if blob.storage_backend == self.backend() {
            return Ok(());
        }
        Err(Error::Refused {
            reason: Reason::NotConfigured,
            message: format!(
                "the blob \"{}\" is kept in a store of the kind {}, and blob_store_url names one of the kind {}",
                blob.id,
                blob.storage_backend,
                self.backend(),
            ),
            metadata: vec![("setting", "blob_store_url".into())],
        })
    }

    fn not_signable(&self) -> Error {
        let why = match (self.backend(), &self.0.signer) {
            ("gcs", None) => " where gcs_endpoint is set",
            ("azure", None) => " without azure_access_key",
            _ => "",
        };
        Error::Refused {
            reason: Reason::NotSignable,
            message: format!("a store of the kind {} signs no such URLs{why}", self.backend()),
            metadata: vec![("storage_backend", self.backend().into())],
        }
    }
}

/// What a signed URL cannot lead to.
pub fn encrypted(message: &str) -> Error {
    let (reason, metadata) = (Reason::BlobEncrypted, Vec::new());
    Error::Refused { reason, message: message.to_owned(), metadata }
}

/// Signatures count in seconds, and begin with the one that has begun.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// `Content-Disposition` that saves the answer: the name as RFC 8187 has it, and one of ASCII for those that do not know
/// that.
fn disposition(filename: &str) -> String {
    if filename.is_empty() {
        return "attachment".into();
    }
    let plain = |c: char| if matches!(c, ' '..='~') && !"\"\\%".contains(c) { c } else { '_' };
    let ascii: String = filename.chars().map(plain).collect();
    let mut out = format!("attachment; filename=\"{ascii}\"");
    if ascii != filename {
        out.push_str("; filename*=UTF-8''");
        for byte in filename.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    out.push(char::from(byte));
                }
                // Writing to a String does not fail.
                _ => drop(write!(out, "%{byte:02X}")),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::disposition;

    #[test]
    fn what_a_url_yields_is_saved_under_the_name_given() {
        for (name, header) in [
            ("", "attachment"),
            ("a report.pdf", "attachment; filename=\"a report.pdf\""),
            (
                "Bericht \u{fc}ber\".pdf",
                "attachment; filename=\"Bericht _ber_.pdf\"; filename*=UTF-8''Bericht%20%C3%BCber%22.pdf",
            ),
            ("100%.txt", "attachment; filename=\"100_.txt\"; filename*=UTF-8''100%25.txt"),
        ] {
            assert_eq!(disposition(name), header);
        }
    }
}
