//! Encryption of blobs at rest: a key for each blob, wrapped by a key that the operator keeps elsewhere.
//!
//! What a store of objects gets is what [`segments`] makes of a blob under a [`DataKey`], which is random and never used
//! for another blob. Beside the blob's row stands that key, wrapped by a [`KeySource`] and bound to the tenant and to the
//! blob's digest, so a row cannot borrow another's key. Another operator's key can wrap the data keys anew and leave the
//! objects as they are: [`rewrap`].
//!
//! Why it is built like this:
//!
//! - A data key per blob, not per tenant: one that leaks opens one blob, and no limit of a cipher is ever near.
//! - Both layers commit to their key, which AES-GCM alone does not: a ciphertext can be made that opens under two keys, to
//!   two contents (Albertini et al., "How to Abuse and Fix Authenticated Encryption Without Key Commitment", USENIX
//!   Security 2022). In a system of evidence nobody may choose later what a blob says. So HKDF gives, beside the key of the
//!   cipher, 32 bytes that stand in the open and are compared first, as in the AWS Encryption SDK and in age.
//! - The primitives are those of `ring` (AES-256-GCM and HKDF-SHA-256), which is in the program for TLS anyway.
//!
//! Two uploads of the same bytes make two objects that differ. So an object's name cannot be made from the content alone:
//! the second to come would replace the bytes under the first one's row, or be refused and leave a row that cannot open
//! the object. A row that has another object's wrapped key notices it in [`segments::Opener`], before any byte is read.

pub mod keys;
pub mod segments;
#[cfg(test)]
mod tests;

use crate::error::Cause;
use futures_util::future::BoxFuture;
use std::fmt;
use zeroize::Zeroizing;

pub use keys::KeyRing;

/// Bytes of every key here.
pub const KEY_BYTES: usize = 32;

/// What can go wrong, as far as anybody must tell it apart.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// What is stored is not what was written: changed, cut short, or another blob's. Answered DATA_LOSS, BLOB_CORRUPT.
    #[error("the stored bytes are not those that were written: {0}")]
    Corrupt(&'static str),
    /// The key that wrapped the data key is not here, or another goes by its name. The blob is whole: this is the
    /// operator's to put right, and nothing may be marked corrupt for it.
    #[error(
        "the key \"{key_id}\" that the blob is encrypted under is not among those that are configured"
    )]
    KeyUnknown { key_id: String },
    /// Try again later: whoever keeps the keys cannot be asked.
    #[error("the keys of blobs cannot be reached")]
    Unavailable(#[source] Cause),
    /// A blob of 2^32 segments (256 TiB) or more.
    #[error("the blob is too large to encrypt")]
    TooLarge,
    /// The system gives no random bytes, or the cipher refuses: to be reported.
    #[error("encryption failed: {0}")]
    Internal(&'static str),
}

/// The key of one blob, 256 bits. Erased from memory when dropped, and never shown.
pub struct DataKey(Zeroizing<[u8; KEY_BYTES]>);

impl DataKey {
    /// A new one, from the system's random bytes.
    pub fn generate() -> Result<Self, Failure> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        fill_random(&mut *bytes)?;
        Ok(Self(bytes))
    }

    /// The one that a key source has unwrapped.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// For a key source to wrap. Never log it.
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(***)")
    }
}

/// What a wrapped key belongs to. Unwrapping for anything else fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The tenant's id.
    pub tenant: String,
    /// SHA-256 of the blob as it was given, before encryption.
    pub digest: [u8; 32],
}

impl Binding {
    /// As associated data. The tenant's length comes first, so that no two bindings have the same bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(8 + self.tenant.len() + self.digest.len());
        bytes.extend_from_slice(&(self.tenant.len() as u64).to_be_bytes());
        bytes.extend_from_slice(self.tenant.as_bytes());
        bytes.extend_from_slice(&self.digest);
        bytes
    }
}

/// A data key as it stands beside the blob's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedKey {
    /// Which of the source's keys wrapped it.
    pub key_id: String,
    /// What only the source can read.
    pub bytes: Vec<u8>,
}

/// Whoever keeps the keys that wrap: a file, an environment variable, or a service elsewhere, which may be out of reach.
///
/// An implementation must bind what it wraps to all of [`Binding`] (a key service has an encryption context for it) and to
/// its key's id, and must not confuse [`Failure::KeyUnknown`] with [`Failure::Corrupt`].
pub trait KeySource: Send + Sync + fmt::Debug {
    /// The id of the key that wraps from now on.
    fn current_key_id(&self) -> BoxFuture<'_, Result<String, Failure>>;

    /// Wraps under the current key.
    fn wrap_key<'a>(
        &'a self,
        key: &'a DataKey,
        binding: &'a Binding,
    ) -> BoxFuture<'a, Result<WrappedKey, Failure>>;

    /// Gives back what was wrapped under any key that is still kept.
    fn unwrap_key<'a>(
        &'a self,
        wrapped: &'a WrappedKey,
        binding: &'a Binding,
    ) -> BoxFuture<'a, Result<DataKey, Failure>>;
}

/// The same data key under the current key, to replace the row's; `None` where it is already. The object stays as it is.
pub async fn rewrap(
    source: &dyn KeySource,
    wrapped: &WrappedKey,
    binding: &Binding,
) -> Result<Option<WrappedKey>, Failure> {
    if source.current_key_id().await? == wrapped.key_id {
        return Ok(None);
    }
    let key = source.unwrap_key(wrapped, binding).await?;
    source.wrap_key(&key, binding).await.map(Some)
}

fn fill_random(bytes: &mut [u8]) -> Result<(), Failure> {
    getrandom::fill(bytes).map_err(|_| Failure::Internal("the system gives no random bytes"))
}

/// HKDF-SHA-256 (RFC 5869) of a key with a salt: one output for all that is derived, to be cut up by the caller.
fn derive<const N: usize>(
    key: &[u8; KEY_BYTES],
    salt: &[u8],
    info: &[&[u8]],
) -> Result<Zeroizing<[u8; N]>, Failure> {
    struct Length(usize);
    impl ring::hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let mut out = Zeroizing::new([0; N]);
    let derived = ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, salt).extract(key);
    let filled = derived.expand(info, Length(N)).and_then(|okm| okm.fill(&mut *out));
    filled.map_err(|_| Failure::Internal("HKDF gives no such length"))?;
    Ok(out)
}

/// AES-256-GCM under a derived key.
fn cipher(key: &[u8]) -> Result<ring::aead::LessSafeKey, Failure> {
    ring::aead::UnboundKey::new(&ring::aead::AES_256_GCM, key)
        .map(ring::aead::LessSafeKey::new)
        .map_err(|_| Failure::Internal("not a key of AES-256"))
}
