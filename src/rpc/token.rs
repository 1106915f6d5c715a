//! Tokens that callers carry back: opaque, and proof against forging.

use crate::error::{Error, Reason, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use std::fmt;

const VERSION: u8 = 1;
const MAC_BYTES: usize = 16;
const TENANT_BYTES: usize = 8;
/// No token that we make is longer; longer ones are not even decoded.
const MAX_BYTES: usize = 16 << 10;

/// The server's key for tokens. All replicas share it.
#[derive(Clone)]
pub struct TokenKey([u8; 32]);

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(..)")
    }
}

impl TokenKey {
    pub fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// base64url(version | payload | MAC). A token of one purpose is not valid for another.
    pub(super) fn seal(&self, purpose: &str, payload: &[u8]) -> Result<String> {
        let mut bytes = Vec::with_capacity(1 + payload.len() + MAC_BYTES);
        bytes.push(VERSION);
        bytes.extend_from_slice(payload);
        let mac = self.mac(purpose, &bytes)?.finalize().into_bytes();
        bytes.extend(mac.into_iter().take(MAC_BYTES));
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// The payload, if we sealed it for this purpose.
    pub(super) fn open(&self, purpose: &str, token: &str) -> Result<Option<Vec<u8>>> {
        if token.len() > MAX_BYTES {
            return Ok(None);
        }
        let Ok(mut bytes) = URL_SAFE_NO_PAD.decode(token) else { return Ok(None) };
        let Some(end) = bytes.len().checked_sub(MAC_BYTES).filter(|end| *end >= 1) else {
            return Ok(None);
        };
        let mac = bytes.split_off(end);
        // In constant time.
        let genuine = self.mac(purpose, &bytes)?.verify_truncated_left(&mac).is_ok();
        if !genuine || bytes.first() != Some(&VERSION) {
            return Ok(None);
        }
        Ok(Some(bytes.split_off(1)))
    }

    fn mac(&self, purpose: &str, bytes: &[u8]) -> Result<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).map_err(Error::internal)?;
        mac.update(purpose.as_bytes());
        mac.update(&[0]);
        mac.update(bytes);
        Ok(mac)
    }
}

/// The token of a point in a tenant's log.
pub fn revision(key: &TokenKey, tenant: &str, seq: i64) -> Result<String> {
    let mut payload = tenant_hash(tenant).to_vec();
    payload.extend_from_slice(&seq.to_be_bytes());
    key.seal("revision", &payload)
}

/// The `seq` that a revision token stands for. Fails with BAD_REVISION at `field` unless it is ours
/// and of this tenant.
pub fn parse_revision(key: &TokenKey, tenant: &str, token: &str, field: &str) -> Result<i64> {
    let payload = key.open("revision", token)?.unwrap_or_default();
    let seq = payload.strip_prefix(&tenant_hash(tenant)).and_then(|seq| seq.try_into().ok());
    seq.map(i64::from_be_bytes).ok_or_else(|| {
        Error::invalid_because(Reason::BadRevision, field, "is not a revision of this tenant")
    })
}

fn tenant_hash(tenant: &str) -> [u8; TENANT_BYTES] {
    let mut hash = [0; TENANT_BYTES];
    for (to, from) in hash.iter_mut().zip(Sha256::digest(tenant)) {
        *to = from;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_come_back() {
        let key = TokenKey::new([7; 32]);
        for seq in [0, 1, i64::MAX] {
            let token = revision(&key, "acme", seq).unwrap();
            assert_eq!(parse_revision(&key, "acme", &token, "f").unwrap(), seq);
        }
        let token = revision(&key, "acme", 5).unwrap();
        for (key, tenant) in [(&key, "other"), (&TokenKey::new([8; 32]), "acme")] {
            let error = parse_revision(key, tenant, &token, "consistency.x").unwrap_err();
            assert_eq!(error.reason(), Reason::BadRevision);
            assert!(error.to_string().starts_with("consistency.x is not"));
        }
    }

    #[test]
    fn no_changed_token_is_taken() {
        let key = TokenKey::new([7; 32]);
        let token = revision(&key, "acme", 5).unwrap();
        let bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
        for place in 0..bytes.len() {
            for flip in 1..=255 {
                let mut bytes = bytes.clone();
                bytes[place] ^= flip;
                assert!(parse_revision(&key, "acme", &URL_SAFE_NO_PAD.encode(bytes), "f").is_err());
            }
        }
        // Each character too: the last one has bits that do not count.
        for place in 0..token.len() {
            for other in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=".chars()
            {
                let changed = format!("{}{other}{}", &token[..place], &token[place + 1..]);
                assert_eq!(
                    parse_revision(&key, "acme", &changed, "f").is_ok(),
                    changed == token,
                    "{changed}"
                );
            }
            assert!(parse_revision(&key, "acme", &token[..place], "f").is_err());
        }
        for wrong in [format!("{token}="), format!(" {token}"), "A".repeat(MAX_BYTES + 1)] {
            assert!(parse_revision(&key, "acme", &wrong, "f").is_err());
        }
        let other_purpose = key.seal("page", &bytes[1..bytes.len() - MAC_BYTES]).unwrap();
        assert!(parse_revision(&key, "acme", &other_purpose, "f").is_err());
    }
}
