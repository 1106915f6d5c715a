//! API tokens: reading one, checking it against what is stored, and remembering the result for a while.

use crate::error::Result;
use crate::store::caller::{Credential, Roles, Standing};
use futures_util::future::BoxFuture;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;
use uuid::Uuid;

/// Asks for one thing by its key; None means there is no such thing.
pub type LookUp<K, V> = Box<dyn Fn(K) -> BoxFuture<'static, Result<Option<V>>> + Send + Sync>;

/// Where credentials and tenants are looked up.
pub struct Directory {
    pub credential: LookUp<Uuid, Credential>,
    pub standing: LookUp<Arc<str>, Standing>,
}

const PREFIX: &[u8] = b"cbk_";
const UID_CHARS: usize = 32;
const SECRET_CHARS: usize = 43;

/// Entries of each cache. A token costs about 200 bytes.
const ENTRIES_MAX: usize = 4096;
/// A token made a moment ago on another server must not be refused for long.
const UNKNOWN_MAX: Duration = Duration::from_secs(1);

type Hash256 = [u8; 32];

/// A well-formed token, not yet checked.
struct Token<'a> {
    uid: Uuid,
    secret: &'a [u8],
}

impl<'a> Token<'a> {
    /// `cbk_<32 hexadecimal digits>_<43 characters of base64url>`, in exactly one spelling.
    fn parse(text: &'a [u8]) -> Option<Token<'a>> {
        let rest = text.strip_prefix(PREFIX)?;
        if rest.len() != UID_CHARS + 1 + SECRET_CHARS || rest[UID_CHARS] != b'_' {
            return None;
        }
        let (uid, secret) = (&rest[..UID_CHARS], &rest[UID_CHARS + 1..]);
        let is_well_formed = uid.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            && secret.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if !is_well_formed {
            return None;
        }
        Some(Token { uid: Uuid::try_parse_ascii(uid).ok()?, secret })
    }

    fn opens(&self, credential: Option<&Credential>) -> bool {
        // An unknown uid takes the same steps as a wrong secret.
        let stored = credential.map_or(&[0; 32], |credential| &credential.secret_sha256);
        let is_equal = Sha256::digest(self.secret).as_slice().ct_eq(stored);
        bool::from(is_equal) && credential.is_some_and(|credential| !credential.revoked)
    }
}

/// What is known about a token whose secret was right.
#[derive(Debug)]
pub struct Verified {
    pub uid: Uuid,
    /// `token:<id>`, the id as the token's resource has it.
    pub principal: Arc<str>,
    pub tenant: Arc<str>,
    pub roles: Roles,
    pub expire_time: Option<SystemTime>,
    pub standing: Standing,
}

impl From<Credential> for Verified {
    fn from(credential: Credential) -> Self {
        Verified {
            uid: credential.uid,
            principal: format!("token:{}", credential.uid.simple()).into(),
            tenant: credential.tenant.into(),
            roles: credential.roles,
            expire_time: credential.expire_time,
            standing: credential.standing,
        }
    }
}

/// Checks tokens and tenants, asking the directory only for what it does not remember.
pub struct Credentials {
    directory: Directory,
    keep: Duration,
    /// By the hash of the whole token, so that a cache never holds a secret.
    good: Cache<Hash256, Arc<Verified>>,
    bad: Cache<Hash256, ()>,
    tenants: Cache<Arc<str>, Option<Standing>>,
    /// Counts what was forgotten, so that a look-up that began earlier does not bring it back.
    forgotten: AtomicU64,
}

impl Credentials {
    pub fn new(directory: Directory, keep: Duration) -> Self {
        Credentials {
            directory,
            keep,
            good: Cache::default(),
            bad: Cache::default(),
            tenants: Cache::default(),
            forgotten: AtomicU64::new(0),
        }
    }

    /// The credential of a token; None if it is no token, unknown, wrong, revoked or expired.
    pub async fn verify(&self, text: &[u8]) -> Result<Option<Arc<Verified>>> {
        self.verify_at(text, Instant::now()).await
    }

    async fn verify_at(&self, text: &[u8], now: Instant) -> Result<Option<Arc<Verified>>> {
        let Some(token) = Token::parse(text) else { return Ok(None) };
        let key: Hash256 = Sha256::digest(text).into();
        let verified = match self.good.get(&key, now) {
            Found::Fresh(verified) => Some(verified),
            Found::Ageing(verified) => {
                // While the directory is away, what was true a moment ago still serves until it is too old.
                self.look_up(&token, key, now).await.unwrap_or(Some(verified))
            }
            Found::Nothing if self.bad.has(&key, now) => None,
            Found::Nothing => self.look_up(&token, key, now).await?,
        };
        Ok(verified.filter(|verified| {
            verified.expire_time.is_none_or(|expire_time| expire_time > SystemTime::now())
        }))
    }

    async fn look_up(
        &self,
        token: &Token<'_>,
        key: Hash256,
        now: Instant,
    ) -> Result<Option<Arc<Verified>>> {
        let forgotten = self.forgotten.load(Ordering::Acquire);
        let credential = (self.directory.credential)(token.uid).await?;
        if !token.opens(credential.as_ref()) {
            self.good.drop_key(&key);
            self.bad.put(key, (), now, self.keep.min(UNKNOWN_MAX));
            return Ok(None);
        }
        let verified = credential.map(|credential| Arc::new(Verified::from(credential)));
        if let Some(verified) = &verified {
            self.good.put(key, verified.clone(), now, self.keep);
            if self.forgotten.load(Ordering::Acquire) != forgotten {
                self.good.remove(|_, known| known.uid == verified.uid);
            }
        }
        Ok(verified)
    }

    /// The state of a tenant; None if there is none of that name.
    pub async fn standing(&self, tenant: &Arc<str>) -> Result<Option<Standing>> {
        self.standing_at(tenant, Instant::now()).await
    }

    async fn standing_at(&self, tenant: &Arc<str>, now: Instant) -> Result<Option<Standing>> {
        let stale = match self.tenants.get(tenant, now) {
            Found::Fresh(state) => return Ok(state),
            Found::Ageing(state) => Some(state),
            Found::Nothing => None,
        };
        let forgotten = self.forgotten.load(Ordering::Acquire);
        let state = match ((self.directory.standing)(tenant.clone()).await, stale) {
            (Ok(state), _) => state,
            (Err(_), Some(state)) => return Ok(state),
            (Err(error), None) => return Err(error),
        };
        let keep = if state.is_some() { self.keep } else { self.keep.min(UNKNOWN_MAX) };
        self.tenants.put(tenant.clone(), state, now, keep);
        if self.forgotten.load(Ordering::Acquire) != forgotten {
            self.tenants.drop_key(tenant);
        }
        Ok(state)
    }

    /// Makes a revocation made here take effect at once.
    pub fn forget(&self, uid: Uuid) {
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        self.good.remove(|_, known| known.uid == uid);
    }

    /// Makes a tenant's change made here take effect at once.
    pub fn forget_tenant(&self, tenant: &str) {
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        self.good.remove(|_, known| &*known.tenant == tenant);
        self.tenants.remove(|known, _| &**known == tenant);
    }
}

enum Found<V> {
    Fresh(V),
    /// Still good, and this caller is the one to renew it: others go on with what is there.
    Ageing(V),
    Nothing,
}

struct Entry<V> {
    value: V,
    renew_at: Instant,
    ends_at: Instant,
}

/// A bounded map whose entries end.
struct Cache<K, V>(Mutex<HashMap<K, Entry<V>>>);

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Cache(Mutex::default())
    }
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    fn entries(&self) -> MutexGuard<'_, HashMap<K, Entry<V>>> {
        // Nothing in here panics half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, key: &K, now: Instant) -> Found<V> {
        match self.entries().get_mut(key) {
            Some(entry) if now >= entry.ends_at => Found::Nothing,
            Some(entry) if now >= entry.renew_at => {
                entry.renew_at = entry.ends_at;
                Found::Ageing(entry.value.clone())
            }
            Some(entry) => Found::Fresh(entry.value.clone()),
            None => Found::Nothing,
        }
    }

    fn has(&self, key: &K, now: Instant) -> bool {
        self.entries().get(key).is_some_and(|entry| now < entry.ends_at)
    }

    /// Keeps a value that was true at `since`.
    fn put(&self, key: K, value: V, since: Instant, keep: Duration) {
        let mut entries = self.entries();
        if entries.len() >= ENTRIES_MAX && !entries.contains_key(&key) {
            make_room(&mut entries, since);
        }
        entries.insert(key, Entry { value, renew_at: since + keep * 3 / 4, ends_at: since + keep });
    }

    fn drop_key(&self, key: &K) {
        self.entries().remove(key);
    }

    fn remove(&self, is_gone: impl Fn(&K, &V) -> bool) {
        self.entries().retain(|key, entry| !is_gone(key, &entry.value));
    }
}

/// Drops what has ended, and a quarter more if that frees too little: so a flood of tokens does not pay for a sweep
/// each time.
fn make_room<K, V>(entries: &mut HashMap<K, Entry<V>>, now: Instant) {
    entries.retain(|_, entry| now < entry.ends_at);
    if entries.len() > ENTRIES_MAX / 4 * 3 {
        let mut ends: Vec<Instant> = entries.values().map(|entry| entry.ends_at).collect();
        let (_, last, _) = ends.select_nth_unstable(ENTRIES_MAX / 4);
        let last = *last;
        entries.retain(|_, entry| entry.ends_at > last);
    }
}

#[cfg(test)]
mod tests;
