//! The one place that the bytes of blobs pass on their way into the store and out of it, ranges included.
//!
//! Where somebody keeps keys, new bytes are encrypted here, under a key of each blob's own; what comes out is opened as the
//! blob's row says, whatever is configured now. Sizes and ranges are the blob's own on the outside; the store has more.

use super::{Arrived, Attempt, Blob, Seal};
use crate::store::blob_store::budget::{Budget, Share};
use crate::store::blob_store::flow::{self, Flow};
use crate::store::blob_store::parts::Parts;
use crate::store::blob_store::{BlobStore, Pieces, Stored, damaged};
use crate::store::envelope::segments::{
    Decoder, Opener, SEGMENT_BYTES, Sealer, TAG_BYTES, sealed_range,
};
use crate::store::envelope::{Binding, DataKey, Failure, KeySource, WrappedKey};
use crate::store::log::hex;
use crate::{Error, Reason, Result};
use bytes::{Bytes, BytesMut};
use sha2::{Digest as _, Sha256};
use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::Instant;

/// Not encrypted.
pub const PLAIN: i16 = 0;
/// Segments under a key of the blob's own: [`segments`](crate::store::envelope::segments).
pub const SEGMENTS: i16 = 1;

/// No more than this is encrypted at once: it is not worth another thread.
const AT_ONCE_BYTES: u64 = 64 << 10;

/// How long one piece may take that is read for nobody in particular.
const PIECE_TIME: Duration = Duration::from_secs(60);

/// `Error::Unavailable.backend` of keys that are kept elsewhere.
const KEYS: &str = "blob_keys";

/// How many bytes of memory it takes to read so many of a blob's: what is encrypted is there beside what it opens to.
pub fn memory_bytes(blob: &Blob, size_bytes: u64) -> u64 {
    match blob.cipher {
        PLAIN => size_bytes,
        _ => sealed_memory_bytes(size_bytes),
    }
}

fn sealed_memory_bytes(size_bytes: u64) -> u64 {
    2 * size_bytes + 2 * SEGMENT_BYTES as u64
}

/// How many bytes of a blob to gather for a part of it. A sealed segment waits until it is known whether it is the last,
/// so the first part gathers one more; then all parts but the last have one size in the store, no less than `least_bytes`.
pub fn gather_bytes(is_sealed: bool, is_first: bool, least_bytes: usize) -> usize {
    if !is_sealed {
        return least_bytes;
    }
    (least_bytes.div_ceil(SEGMENT_BYTES) + usize::from(is_first)) * SEGMENT_BYTES
}

/// How large such a part is in the store.
fn sealed_part_bytes(least_bytes: usize) -> usize {
    least_bytes.div_ceil(SEGMENT_BYTES) * (SEGMENT_BYTES + TAG_BYTES)
}

/// The bytes of a blob that is kept.
#[derive(Clone)]
pub struct Source {
    place: Place,
    size_bytes: u64,
    stored_bytes: u64,
    /// Of encrypted bytes.
    opening: Option<Arc<Opening>>,
}

/// Where a blob's bytes lie.
#[derive(Clone)]
enum Place {
    Store {
        store: BlobStore,
        key: String,
    },
    /// In the database: all of them, as they are stored there.
    Inline(Bytes),
}

impl Place {
    /// How many bytes are best read at once.
    fn piece_bytes(&self) -> u64 {
        match self {
            Self::Store { store, .. } => store.piece_bytes(),
            Self::Inline(bytes) => bytes.len().max(1) as u64,
        }
    }

    /// A range of the stored bytes, of which there must be so many in all.
    async fn read(&self, range: Range<u64>, whole: u64, deadline: Instant) -> Result<Bytes> {
        match self {
            Self::Store { store, key } => store.read(key, range, whole, deadline).await,
            Self::Inline(bytes) => {
                let found = bytes.len() as u64;
                let is_within = range.start <= range.end && range.end <= found;
                if found != whole || !is_within {
                    let what = format!("the database has {found} bytes of it, and not {whole}");
                    return Err(damaged(&what));
                }
                Ok(bytes.slice(range.start as usize..range.end as usize))
            }
        }
    }
}

/// What opens a blob.
struct Opening {
    key: DataKey,
    header: Vec<u8>,
}

impl Source {
    /// Fails if this server has no way to the bytes, or not the key that they are encrypted under.
    pub async fn of(
        store: &BlobStore,
        keys: Option<&dyn KeySource>,
        tenant: &str,
        blob: &Blob,
    ) -> Result<Self> {
        store.is_store_of(blob)?;
        let place = Place::Store { store: store.clone(), key: blob.store_key.clone() };
        Self::at(place, keys, tenant, blob).await
    }

    /// The same of bytes that were found in the database.
    pub async fn inline(
        bytes: Bytes,
        keys: Option<&dyn KeySource>,
        tenant: &str,
        blob: &Blob,
    ) -> Result<Self> {
        Self::at(Place::Inline(bytes), keys, tenant, blob).await
    }

    async fn at(
        place: Place,
        keys: Option<&dyn KeySource>,
        tenant: &str,
        blob: &Blob,
    ) -> Result<Self> {
        let size_bytes = u64::try_from(blob.size_bytes).map_err(Error::internal)?;
        let stored_bytes = u64::try_from(blob.stored_size_bytes).map_err(Error::internal)?;
        let opening = match blob.cipher {
            PLAIN => None,
            SEGMENTS => {
                let keys = keys.ok_or_else(|| no_key(&blob.key_id))?;
                let bytes = blob.wrapped_key.clone().unwrap_or_default();
                let wrapped = WrappedKey { key_id: blob.key_id.clone(), bytes };
                let binding = binding(tenant, &blob.id)?;
                let key = keys.unwrap_key(&wrapped, &binding).await.map_err(failed)?;
                let header = blob.seal_header.clone().unwrap_or_default();
                // A header that another key made shows before anything is read.
                Opener::new(&key, &header, size_bytes).map_err(failed)?;
                Some(Arc::new(Opening { key, header }))
            }
            cipher => {
                let text = format!("a blob with the cipher {cipher}, which this build lacks");
                return Err(Error::internal(text));
            }
        };
        Ok(Self { place, size_bytes, stored_bytes, opening })
    }

    /// A range of the blob's bytes, whole or an error.
    pub async fn read(&self, range: Range<u64>, deadline: Instant) -> Result<Bytes> {
        let (stored, decoder) = self.stored(range.clone())?;
        let mut stored = self.place.read(stored, self.stored_bytes, deadline).await?;
        let Some(mut decoder) = decoder else { return Ok(stored) };
        let mut content = BytesMut::with_capacity((range.end - range.start) as usize);
        while !stored.is_empty() {
            let next = stored.split_to(stored.len().min(SEGMENT_BYTES));
            open(&mut decoder, next, &mut content)?;
        }
        decoder.finish().map_err(failed)?;
        Ok(content.freeze())
    }

    /// The same as it comes, where it lies so far away and is so long that this is better.
    pub fn flow(&self, range: Range<u64>, deadline: Instant) -> Result<Option<Reading>> {
        let Place::Store { store, key } = &self.place else { return Ok(None) };
        if !store.is_flowing(range.end.saturating_sub(range.start)) {
            return Ok(None);
        }
        let (stored, decoder) = self.stored(range)?;
        let flow = store.flow(key, stored, self.stored_bytes, deadline);
        Ok(Some(Reading { flow, decoder }))
    }

    /// Where in the store a range of the blob lies, and what opens it.
    fn stored(&self, range: Range<u64>) -> Result<(Range<u64>, Option<Decoder>)> {
        let Some(Opening { key, header }) = self.opening.as_deref() else {
            return Ok((range, None));
        };
        let outside = || Error::internal("a range that is not within its blob");
        let stored = sealed_range(self.size_bytes, range.clone()).ok_or_else(outside)?;
        let opener = Opener::new(key, header, self.size_bytes).map_err(failed)?;
        let decoder = opener.decoder(range).ok_or_else(outside)?;
        Ok((stored, Some(decoder)))
    }
}

/// Opens the next stored bytes.
fn open(decoder: &mut Decoder, stored: Bytes, content: &mut BytesMut) -> Result<()> {
    for piece in decoder.push(stored).map_err(failed)? {
        content.extend_from_slice(&piece);
    }
    Ok(())
}

/// A range of a blob's bytes that is read as it comes.
pub struct Reading {
    flow: Flow,
    /// Of encrypted bytes.
    decoder: Option<Decoder>,
}

impl Reading {
    /// How much memory it takes at most, with the piece that was given out last.
    pub fn memory_bytes(&self) -> u64 {
        match self.decoder {
            None => flow::MEMORY_BYTES,
            // What a piece opens to is there twice for a moment.
            Some(_) => flow::MEMORY_BYTES + (1 << 20),
        }
    }

    /// The next bytes, or `None` behind the last.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        while let Some(stored) = self.flow.next().await? {
            let Some(decoder) = &mut self.decoder else { return Ok(Some(stored)) };
            let mut content = BytesMut::with_capacity(stored.len() + SEGMENT_BYTES);
            open(decoder, stored, &mut content)?;
            if !content.is_empty() {
                return Ok(Some(content.freeze()));
            }
        }
        match self.decoder.take() {
            Some(decoder) => decoder.finish().map_err(failed).map(|()| None),
            None => Ok(None),
        }
    }
}

impl Source {
    /// The digest of all of the blob's bytes, as 64 hexadecimal digits. They are read piece by piece, each within the
    /// budget of bytes in memory, and no faster than `pace` lets them pass.
    pub async fn digest(&self, budget: &Budget, pace: &mut Pace) -> Result<String> {
        let mut hasher = Sha256::new();
        let mut start = 0;
        loop {
            let end = self.size_bytes.min(start + self.place.piece_bytes());
            {
                let memory = match self.opening {
                    None => end - start,
                    Some(_) => sealed_memory_bytes(end - start),
                };
                let _share = budget.take(memory.max(1)).await?;
                hasher.update(self.read(start..end, Instant::now() + PIECE_TIME).await?);
            }
            pace.passed(end - start).await;
            start = end;
            if start == self.size_bytes {
                return Ok(hex(&hasher.finalize()));
            }
        }
    }
}

/// How fast bytes are read that nobody waits for.
pub struct Pace {
    /// None: as fast as they come.
    bytes_per_second: Option<NonZeroU64>,
    since: Instant,
    bytes: u64,
}

impl Pace {
    pub fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        Self { bytes_per_second, since: Instant::now(), bytes: 0 }
    }

    /// How many bytes have passed.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Waits as long as it takes so many bytes to pass, counted from when the ones before them had. A time without any is
    /// not made up for.
    async fn passed(&mut self, bytes: u64) {
        self.bytes += bytes;
        if let Some(rate) = self.bytes_per_second {
            let takes = Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
            self.since = (self.since + takes).max(Instant::now());
            tokio::time::sleep_until(self.since).await;
        }
    }
}

/// The encryption of one blob while it comes.
struct Sealing {
    keys: Arc<dyn KeySource>,
    key: DataKey,
    /// None after the blob's last byte.
    sealer: Option<Sealer>,
    header: Vec<u8>,
    /// How large a part is in the store.
    part_bytes: usize,
    /// What has not gone there yet, and how many bytes that is.
    ready: VecDeque<Bytes>,
    ready_bytes: usize,
}

impl Sealing {
    fn begin(keys: &Arc<dyn KeySource>, part_bytes: usize) -> Result<Self> {
        let key = DataKey::generate().map_err(failed)?;
        let sealer = Sealer::new(&key).map_err(failed)?;
        let header = sealer.header().to_vec();
        Ok(Self {
            keys: Arc::clone(keys),
            key,
            sealer: Some(sealer),
            header,
            part_bytes,
            ready: VecDeque::new(),
            ready_bytes: 0,
        })
    }

    /// Encrypts the next bytes, many of them on another thread: that takes milliseconds.
    async fn push(mut self, pieces: Pieces, is_last: bool) -> Result<Self> {
        if bytes_of(&pieces) <= AT_ONCE_BYTES {
            self.seal_all(pieces, is_last)?;
            return Ok(self);
        }
        let work = spawn_blocking(move || self.seal_all(pieces, is_last).map(|()| self));
        work.await.map_err(Error::internal)?
    }

    fn seal_all(&mut self, pieces: Pieces, is_last: bool) -> Result<()> {
        for piece in pieces {
            let sealer = self.sealer.as_mut().ok_or_else(after_the_last)?;
            let sealed = sealer.push(piece).map_err(failed)?;
            self.add(sealed);
        }
        if is_last {
            let sealer = self.sealer.take().ok_or_else(after_the_last)?;
            let sealed = sealer.finish().map_err(failed)?;
            self.add(sealed);
        }
        Ok(())
    }

    fn add(&mut self, sealed: Pieces) {
        self.ready_bytes += sealed.iter().map(Bytes::len).sum::<usize>();
        self.ready.extend(sealed);
    }

    /// The next part: a whole one, or at the end what is left.
    fn part(&mut self) -> Option<Pieces> {
        let is_whole = self.ready_bytes >= self.part_bytes;
        if !is_whole && (self.sealer.is_some() || self.ready_bytes == 0) {
            return None;
        }
        let mut left = self.part_bytes.min(self.ready_bytes);
        self.ready_bytes -= left;
        let mut part = Pieces::new();
        while left > 0 {
            let mut piece = self.ready.pop_front()?;
            if piece.len() > left {
                self.ready.push_front(piece.split_off(left));
            }
            left -= piece.len();
            part.push(piece);
        }
        Some(part)
    }

    /// What the row must say so that the blob opens.
    async fn seal(self, binding: &Binding) -> Result<Seal> {
        let wrapped = self.keys.wrap_key(&self.key, binding).await.map_err(failed)?;
        Ok(Seal {
            cipher: SEGMENTS,
            key_id: wrapped.key_id,
            wrapped_key: Some(wrapped.bytes),
            header: Some(self.header),
        })
    }
}

/// Bytes on their way into the store, in order. Dropped, it leaves what it has brought, which its intent accounts for.
pub struct Sink {
    upload_id: String,
    /// While nothing is being encrypted.
    idle: Option<Way>,
    busy: JoinSet<Result<Way>>,
}

/// What bytes pass on their way.
struct Way {
    parts: Parts,
    stored_bytes: u64,
    sealing: Option<Sealing>,
}

impl Sink {
    /// Puts bytes that are few enough to go at once.
    pub async fn put(
        store: &BlobStore,
        keys: Option<&Arc<dyn KeySource>>,
        attempt: &Attempt,
        digest: &str,
        pieces: Pieces,
        content_type: String,
        deadline: Instant,
    ) -> Result<Arrived> {
        let size_bytes = bytes_of(&pieces);
        let (pieces, seal) = sealed_whole(keys, attempt, digest, pieces).await?;
        let stored_size_bytes = bytes_of(&pieces);
        let stored = store.put(&attempt.store_key, pieces, deadline).await?;
        Ok(Arrived { size_bytes, stored_size_bytes, content_type, stored, seal })
    }

    /// Bytes for the database, as they are to lie there.
    pub async fn inline(
        keys: Option<&Arc<dyn KeySource>>,
        attempt: &Attempt,
        digest: &str,
        pieces: Pieces,
        content_type: String,
    ) -> Result<(Arrived, Vec<u8>)> {
        let size_bytes = bytes_of(&pieces);
        let (pieces, seal) = sealed_whole(keys, attempt, digest, pieces).await?;
        let content = pieces.concat();
        let stored_size_bytes = content.len() as u64;
        let stored = Stored::default();
        Ok((Arrived { size_bytes, stored_size_bytes, content_type, stored, seal }, content))
    }

    /// Begins to bring bytes in parts, which are gathered as [`gather_bytes`] says of `part_bytes`.
    pub async fn begin(
        store: &BlobStore,
        keys: Option<&Arc<dyn KeySource>>,
        attempt: &Attempt,
        part_bytes: usize,
        under_way_max: usize,
        deadline: Instant,
    ) -> Result<Self> {
        let sealing =
            keys.map(|keys| Sealing::begin(keys, sealed_part_bytes(part_bytes))).transpose()?;
        let parts = Parts::begin(store, &attempt.store_key, under_way_max, deadline).await?;
        let upload_id = parts.upload_id().to_owned();
        let idle = Some(Way { parts, stored_bytes: 0, sealing });
        Ok(Self { upload_id, idle, busy: JoinSet::new() })
    }

    /// The store's name for the upload; empty where it has none.
    pub fn upload_id(&self) -> &str {
        &self.upload_id
    }

    /// Sends the next bytes; all but the last are as many as [`gather_bytes`] says. Those that are to be encrypted are on
    /// their way when it returns: what becomes of them, the next call tells.
    pub async fn send(
        &mut self,
        pieces: Pieces,
        is_last: bool,
        share: Arc<Share>,
        deadline: Instant,
    ) -> Result<()> {
        let mut way = self.settled().await?;
        // No further bytes are in memory than if they went as they are.
        way.parts.room().await?;
        if way.sealing.is_none() {
            way.stored_bytes += bytes_of(&pieces);
            way.parts.send(pieces, share, deadline).await?;
            self.idle = Some(way);
        } else {
            // By itself: whoever holds a share gives it back, whether or not further bytes come.
            self.busy.spawn(way.seal(pieces, is_last, share, deadline));
        }
        Ok(())
    }

    /// Whether a part is on its way, which may arrive in the store after this is dropped.
    pub fn is_under_way(&mut self) -> bool {
        let way = self.idle.as_mut();
        !self.upload_id.is_empty()
            && (!self.busy.is_empty() || way.is_some_and(|way| way.parts.is_under_way()))
    }

    /// Waits for what is being encrypted.
    async fn settled(&mut self) -> Result<Way> {
        let way = match self.busy.join_next().await {
            None => self.idle.take(),
            Some(way) => Some(way.map_err(Error::internal)??),
        };
        way.ok_or_else(|| Error::internal("an upload that goes on after it failed"))
    }

    /// Makes them one object. Tells how many bytes the store has, and how they lie there.
    pub async fn complete(
        mut self,
        attempt: &Attempt,
        digest: &str,
        deadline: Instant,
    ) -> Result<(Stored, u64, Seal)> {
        let Way { parts, stored_bytes, sealing } = self.settled().await?;
        let seal = match sealing {
            None => Seal::default(),
            // Before the object is made: without its key it would be of no use.
            Some(sealing) => sealing.seal(&binding(&attempt.tenant, digest)?).await?,
        };
        Ok((parts.complete(deadline).await?, stored_bytes, seal))
    }
}

/// All bytes of a blob as they are to be stored.
async fn sealed_whole(
    keys: Option<&Arc<dyn KeySource>>,
    attempt: &Attempt,
    digest: &str,
    pieces: Pieces,
) -> Result<(Pieces, Seal)> {
    let Some(keys) = keys else { return Ok((pieces, Seal::default())) };
    let mut sealing = Sealing::begin(keys, usize::MAX)?.push(pieces, true).await?;
    let sealed = std::mem::take(&mut sealing.ready).into();
    Ok((sealed, sealing.seal(&binding(&attempt.tenant, digest)?).await?))
}

impl Way {
    async fn seal(
        mut self,
        pieces: Pieces,
        is_last: bool,
        share: Arc<Share>,
        deadline: Instant,
    ) -> Result<Self> {
        let Some(sealing) = self.sealing.take() else {
            return Err(Error::internal("bytes to be encrypted without a key"));
        };
        let sealing = self.sealing.insert(sealing.push(pieces, is_last).await?);
        // The last of them may be one and a little.
        while let Some(part) = sealing.part() {
            self.stored_bytes += bytes_of(&part);
            self.parts.send(part, Arc::clone(&share), deadline).await?;
        }
        Ok(self)
    }
}

fn bytes_of(pieces: &Pieces) -> u64 {
    pieces.iter().map(|piece| piece.len() as u64).sum()
}

/// What a wrapped key is bound to: the tenant, and the digest that the blob's id is.
pub(super) fn binding(tenant: &str, id: &str) -> Result<Binding> {
    let mut digest = [0; 32];
    for (at, byte) in digest.iter_mut().enumerate() {
        let pair = id.get(2 * at..2 * at + 2);
        let value = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok());
        *byte = value.ok_or_else(|| Error::internal("a blob whose id is no digest"))?;
    }
    Ok(Binding { tenant: tenant.to_owned(), digest })
}

fn after_the_last() -> Error {
    Error::internal("bytes after the last of a blob")
}

/// What a failure of encryption means to a caller.
pub(super) fn failed(failure: Failure) -> Error {
    match failure {
        Failure::Corrupt(how) => damaged(how),
        // The blob is whole: nothing may be marked for it.
        Failure::KeyUnknown { key_id } => no_key(&key_id),
        Failure::Unavailable(cause) => Error::Unavailable { backend: KEYS, cause },
        failure @ (Failure::TooLarge | Failure::Internal(_)) => Error::internal(failure),
    }
}

fn no_key(key_id: &str) -> Error {
    Error::Refused {
        reason: Reason::NotConfigured,
        message: format!(
            "the blob is encrypted under the key \"{key_id}\", which is not among those of blob_key_file or blob_key"
        ),
        metadata: vec![("setting", "blob_key_file".into())],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::envelope::KeyRing;
    use crate::store::envelope::segments::sealed_size_bytes;

    /// Gathers as an upload does, and tells the sizes of the parts.
    async fn parts(size_bytes: usize, least_bytes: usize) -> Vec<usize> {
        let ring = KeyRing::parse(&crate::store::envelope::keys::generate().unwrap()).unwrap();
        let keys: Arc<dyn KeySource> = Arc::new(ring);
        let mut sealing = Sealing::begin(&keys, sealed_part_bytes(least_bytes)).unwrap();
        let (mut left, mut found) = (size_bytes, Vec::new());
        let mut is_first = true;
        while sealing.sealer.is_some() {
            let gathered = gather_bytes(true, is_first, least_bytes).min(left);
            left -= gathered;
            is_first = false;
            let pieces = vec![Bytes::from(vec![7; gathered])];
            sealing = sealing.push(pieces, left == 0).await.unwrap();
            let before = found.len();
            while let Some(part) = sealing.part() {
                found.push(bytes_of(&part) as usize);
            }
            assert!(found.len() > before, "each time at least one part goes");
            assert!(sealing.ready_bytes < SEGMENT_BYTES, "what waits does not grow");
        }
        assert_eq!(found.iter().sum::<usize>() as u64, sealed_size_bytes(size_bytes as u64));
        found
    }

    #[tokio::test]
    async fn parts_of_what_is_encrypted_have_one_size_but_for_the_last() {
        let segment = SEGMENT_BYTES;
        for least in [5 * segment, 5 * segment + 1, 6 * segment - 1] {
            let first = gather_bytes(true, true, least);
            let next = gather_bytes(true, false, least);
            for size in [1, first, first + 1, first + next, first + 3 * next + 1, 100 * segment] {
                let found = parts(size, least).await;
                let (last, others) = found.split_last().unwrap();
                assert!(others.iter().all(|other| *other == others[0]), "{least} {size} {found:?}");
                assert!(others.first().is_none_or(|other| *other >= least && last <= other));
            }
        }
        assert_eq!(gather_bytes(false, true, 12_345), 12_345);
    }
}
