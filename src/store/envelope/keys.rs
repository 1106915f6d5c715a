//! The operator's keys in a file or an environment variable: how they are written, read and made, and how they wrap.
//!
//! A line for each key: an id, a colon, and 32 bytes in base64. Lines may be parted by commas, too, for a variable. `#`
//! begins a comment. The first key wraps, and all unwrap what they have wrapped. So a new key is first added at the end,
//! everywhere; then moved to the top; and the old one is removed when nothing is wrapped by it any more.
//!
//! A wrapped key is `1 · salt, 32 bytes · commitment, 32 · data key encrypted, 32 · tag, 16`. For each wrapping HKDF makes a
//! key of its own from the operator's key and the salt, so AES-GCM's nonce can be zero and a key wraps as many as there are,
//! where random nonces would end at 2^32 (NIST SP 800-38D, 8.3).

use super::{
    Binding, DataKey, Failure, KEY_BYTES, KeySource, WrappedKey, cipher, derive, fill_random,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::future::BoxFuture;
use ring::aead::{Aad, NONCE_LEN, Nonce};
use std::fmt;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use subtle::ConstantTimeEq;
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// The longest id, in bytes.
const ID_BYTES_MAX: usize = 64;
/// The longest file; a hundred keys are 6 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Who may not do what with the file: others nothing, the group no more than read.
const FORBIDDEN_MODE: u32 = 0o037;

const VERSION: u8 = 1;
const SALT_BYTES: usize = 32;
const COMMITMENT_BYTES: usize = 32;
const CIPHER_KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
const WRAPPED_BYTES: usize = 1 + SALT_BYTES + COMMITMENT_BYTES + KEY_BYTES + TAG_BYTES;
const INFO: &[u8] = b"casebook blob key wrap";

struct Kept {
    id: String,
    key: Zeroizing<[u8; KEY_BYTES]>,
}

/// Several keys by their ids, the first of which wraps.
#[derive(Clone)]
pub struct KeyRing(Arc<Vec<Kept>>);

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyRing").field(&self.key_ids().collect::<Vec<_>>()).finish()
    }
}

impl PartialEq for KeyRing {
    fn eq(&self, other: &Self) -> bool {
        let same = |(a, b): (&Kept, &Kept)| a.id == b.id && bool::from(a.key.ct_eq(&*b.key));
        self.0.len() == other.0.len() && self.0.iter().zip(other.0.iter()).all(same)
    }
}

impl KeyRing {
    /// Reads keys as they are written. `Err` completes "<setting> ..." and quotes nothing of a key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut keys: Vec<Kept> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            for entry in line.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
                let n = index + 1;
                let (id, key) =
                    entry.split_once(':').ok_or_else(|| format!("has no colon in line {n}"))?;
                if !is_key_id(id) {
                    return Err(format!(
                        "has an id in line {n} that is not 1 to {ID_BYTES_MAX} letters, digits, dots, dashes and \
                         underscores"
                    ));
                }
                if keys.iter().any(|kept| kept.id == id) {
                    return Err(format!("names the key {id} twice"));
                }
                let bytes = STANDARD.decode(key.trim()).map(Zeroizing::new).ok();
                let bytes = bytes.and_then(|bytes| <[u8; KEY_BYTES]>::try_from(&**bytes).ok());
                let key = bytes.map(Zeroizing::new).ok_or_else(|| {
                    format!("has something else than {KEY_BYTES} bytes in base64 for the key {id}")
                })?;
                keys.push(Kept { id: id.to_owned(), key });
            }
        }
        if keys.is_empty() {
            return Err("holds no key: `casebook key generate` makes one".into());
        }
        Ok(Self(Arc::new(keys)))
    }

    /// Reads a file of keys, if nobody else could. `Err` completes "<setting> ...".
    pub fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let failed = |cause: std::io::Error| format!("names the file {shown}: {cause}");
        let mut file = std::fs::File::open(path).map_err(failed)?;
        // Of the open file, not of the path, which could lead elsewhere by then.
        let facts = file.metadata().map_err(failed)?;
        if !facts.is_file() {
            return Err(format!("names {shown}, which is no file"));
        }
        let mode = facts.permissions().mode() & 0o777;
        if mode & FORBIDDEN_MODE != 0 {
            return Err(format!(
                "names the file {shown}, which others can read or change (its mode is {mode:03o}): chmod 600 or 640"
            ));
        }
        if facts.len() > FILE_BYTES_MAX {
            return Err(format!("names the file {shown}, which is too large to hold keys"));
        }
        let mut text = Zeroizing::new(String::new());
        file.by_ref().take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
        Self::parse(&text).map_err(|why| format!("names the file {shown}, which {why}"))
    }

    /// The ids of all keys, the current one first.
    pub fn key_ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|kept| kept.id.as_str())
    }

    fn wrap(&self, key: &DataKey, binding: &Binding) -> Result<WrappedKey, Failure> {
        let current = self.0.first().ok_or(Failure::Internal("there is no key"))?;
        let mut salt = [0; SALT_BYTES];
        fill_random(&mut salt)?;
        let bytes = wrap_with(current, salt, key, binding)?;
        Ok(WrappedKey { key_id: current.id.clone(), bytes })
    }

    fn unwrap(&self, wrapped: &WrappedKey, binding: &Binding) -> Result<DataKey, Failure> {
        let unknown = || Failure::KeyUnknown { key_id: wrapped.key_id.clone() };
        let kept = self.0.iter().find(|kept| kept.id == wrapped.key_id).ok_or_else(unknown)?;
        if wrapped.bytes.len() != WRAPPED_BYTES || wrapped.bytes[0] != VERSION {
            return Err(Failure::Corrupt("its wrapped key is none"));
        }
        let (salt, rest) = wrapped.bytes[1..].split_at(SALT_BYTES);
        let (given, sealed) = rest.split_at(COMMITMENT_BYTES);
        let derived = derive_wrapping(kept, salt)?;
        let (cipher_key, commitment) = derived.split_at(CIPHER_KEY_BYTES);
        // Another key under the same id: the operator's mistake, not damage.
        if !bool::from(commitment.ct_eq(given)) {
            return Err(unknown());
        }
        let mut opened = Zeroizing::new(sealed.to_vec());
        cipher(cipher_key)?
            .open_in_place(zero_nonce(), Aad::from(binding.bytes()), &mut opened)
            .map_err(|_| {
                Failure::Corrupt("its wrapped key belongs to another blob or is damaged")
            })?;
        let key = <[u8; KEY_BYTES]>::try_from(&opened[..KEY_BYTES]);
        key.map(DataKey::from_bytes).map_err(|_| Failure::Internal("a key has its length"))
    }
}

fn derive_wrapping(
    kept: &Kept,
    salt: &[u8],
) -> Result<Zeroizing<[u8; CIPHER_KEY_BYTES + COMMITMENT_BYTES]>, Failure> {
    derive(&kept.key, salt, &[INFO, kept.id.as_bytes()])
}

fn wrap_with(
    kept: &Kept,
    salt: [u8; SALT_BYTES],
    key: &DataKey,
    binding: &Binding,
) -> Result<Vec<u8>, Failure> {
    let derived = derive_wrapping(kept, &salt)?;
    let (cipher_key, commitment) = derived.split_at(CIPHER_KEY_BYTES);
    let mut sealed = Zeroizing::new(*key.expose());
    let tag = cipher(cipher_key)?
        .seal_in_place_separate_tag(zero_nonce(), Aad::from(binding.bytes()), &mut *sealed)
        .map_err(|_| Failure::Internal("AES-GCM refuses a key"))?;
    let mut bytes = Vec::with_capacity(WRAPPED_BYTES);
    bytes.push(VERSION);
    bytes.extend_from_slice(&salt);
    bytes.extend_from_slice(commitment);
    bytes.extend_from_slice(&*sealed);
    bytes.extend_from_slice(tag.as_ref());
    Ok(bytes)
}

/// Each wrapping has a key of its own, which is used once.
fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

fn is_key_id(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(fits)
}

impl KeySource for KeyRing {
    fn current_key_id(&self) -> BoxFuture<'_, Result<String, Failure>> {
        let current = self.0.first().map(|kept| kept.id.clone());
        Box::pin(std::future::ready(current.ok_or(Failure::Internal("there is no key"))))
    }

    fn wrap_key<'a>(
        &'a self,
        key: &'a DataKey,
        binding: &'a Binding,
    ) -> BoxFuture<'a, Result<WrappedKey, Failure>> {
        Box::pin(std::future::ready(self.wrap(key, binding)))
    }

    fn unwrap_key<'a>(
        &'a self,
        wrapped: &'a WrappedKey,
        binding: &'a Binding,
    ) -> BoxFuture<'a, Result<DataKey, Failure>> {
        Box::pin(std::future::ready(self.unwrap(wrapped, binding)))
    }
}

/// A new key as a line of the file: its id is the day and three random bytes, so that people can tell keys apart.
pub fn generate() -> Result<Zeroizing<String>, Failure> {
    let mut random = [0; 3];
    fill_random(&mut random)?;
    let key = DataKey::generate()?;
    let encoded = Zeroizing::new(STANDARD.encode(key.expose()));
    let today = OffsetDateTime::now_utc().date();
    Ok(Zeroizing::new(format!("{today}-{}:{}", super::super::log::hex(&random), *encoded)))
}
