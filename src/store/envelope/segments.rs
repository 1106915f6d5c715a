//! A blob as encrypted segments, so that it is made and read as a stream, and any range of it without the rest.
//!
//! This is the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár, "Online Authenticated-Encryption and its
//! Nonce-Reuse Misuse-Resistance", CRYPTO 2015) as Tink's AES-GCM-HKDF streaming has it (analysed by Hoang and Shen,
//! "Security of Streaming Encryption in Google's Tink Library", CCS 2020), with a commitment to the key (see
//! [`super`]). The object in the store is
//!
//! ```text
//! header     magic "CBSEAL" · version 1 · log2 of the segment size, 16 · salt, 32 bytes · commitment, 32 bytes
//! segment    up to 65536 bytes encrypted · tag, 16 bytes            ... all but the last are full; there is at least one
//!
//! AES key, 32 · commitment, 32 · nonce prefix, 7 = HKDF-SHA-256(data key, salt, "casebook blob segments" · first 8 bytes)
//! nonce of a segment = prefix · its number from 0, 4 bytes big endian · 1 if it is the last, else 0
//! ```
//!
//! The number in the nonce makes swapped segments fail, the flag a blob that was cut short or added to, the salt that each
//! encryption has a key of its own even if a data key should ever be used twice. Nothing else is authenticated with a
//! segment, because the key already says which blob it is of.
//!
//! There is no way to go on with an interrupted encryption, on purpose: it could encrypt two contents under one nonce. A
//! part of an upload that is sent again is the same encrypted bytes.

use super::{DataKey, Failure, cipher, derive, fill_random};
use bytes::{Buf, Bytes, BytesMut};
use ring::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use std::ops::Range;
use subtle::ConstantTimeEq;

/// Bytes of the blob in each segment but the last.
pub const SEGMENT_BYTES: usize = 1 << 16;
/// Bytes that each segment is longer than its content.
pub const TAG_BYTES: usize = 16;
/// Bytes before the first segment.
pub const HEADER_BYTES: usize = MAGIC.len() + SALT_BYTES + COMMITMENT_BYTES;

/// As many segments at most are encrypted into one buffer.
const BUFFER_SEGMENTS: usize = 15;

const MAGIC: &[u8; 8] = b"CBSEAL\x01\x10";
const SALT_BYTES: usize = 32;
const COMMITMENT_BYTES: usize = 32;
const CIPHER_KEY_BYTES: usize = 32;
const PREFIX_BYTES: usize = 7;
const INFO: &[u8] = b"casebook blob segments";

/// What an object begins with. Kept beside the blob's row, it saves reading the object's beginning for each range.
pub type Header = [u8; HEADER_BYTES];

/// How many segments a blob of so many bytes has: at least one, so that an empty blob is authenticated, too.
fn segments_of(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(SEGMENT_BYTES as u64).max(1)
}

/// How large the object of a blob of so many bytes is. Saturates where no blob can be that large.
pub fn sealed_size_bytes(size_bytes: u64) -> u64 {
    let tags = segments_of(size_bytes).saturating_mul(TAG_BYTES as u64);
    size_bytes.saturating_add(tags).saturating_add(HEADER_BYTES as u64)
}

/// The segments that hold a range of a blob; none for an empty range, but for that of an empty blob.
fn segments_for(size_bytes: u64, range: &Range<u64>) -> Option<Range<u64>> {
    if range.start > range.end || range.end > size_bytes {
        return None;
    }
    let segment = SEGMENT_BYTES as u64;
    Some(match (size_bytes, range.is_empty()) {
        (0, _) => 0..1,
        (_, true) => 0..0,
        _ => range.start / segment..range.end.div_ceil(segment),
    })
}

/// Which bytes of the object must be read for these bytes of a blob: whole segments, without the header. `None` if the
/// range is not within the blob.
pub fn sealed_range(size_bytes: u64, range: Range<u64>) -> Option<Range<u64>> {
    let segments = segments_for(size_bytes, &range)?;
    if segments.is_empty() {
        return Some(HEADER_BYTES as u64..HEADER_BYTES as u64);
    }
    let sealed_segment = (SEGMENT_BYTES + TAG_BYTES) as u64;
    let at = |number: u64| HEADER_BYTES as u64 + number * sealed_segment;
    Some(at(segments.start)..at(segments.end).min(sealed_size_bytes(size_bytes)))
}

/// What HKDF makes of a data key for one encryption.
struct Stream {
    key: LessSafeKey,
    prefix: [u8; PREFIX_BYTES],
}

impl Stream {
    fn derive(
        key: &DataKey,
        magic: &[u8],
        salt: &[u8],
    ) -> Result<(Self, [u8; COMMITMENT_BYTES]), Failure> {
        let derived = derive::<{ CIPHER_KEY_BYTES + COMMITMENT_BYTES + PREFIX_BYTES }>(
            key.expose(),
            salt,
            &[INFO, magic],
        )?;
        let (cipher_key, rest) = derived.split_at(CIPHER_KEY_BYTES);
        let mut commitment = [0; COMMITMENT_BYTES];
        commitment.copy_from_slice(&rest[..COMMITMENT_BYTES]);
        let mut prefix = [0; PREFIX_BYTES];
        prefix.copy_from_slice(&rest[COMMITMENT_BYTES..]);
        Ok((Self { key: cipher(cipher_key)?, prefix }, commitment))
    }

    fn nonce(&self, number: u64, is_last: bool) -> Result<Nonce, Failure> {
        let number = u32::try_from(number).map_err(|_| Failure::TooLarge)?;
        let mut nonce = [0; NONCE_LEN];
        nonce[..PREFIX_BYTES].copy_from_slice(&self.prefix);
        nonce[PREFIX_BYTES..NONCE_LEN - 1].copy_from_slice(&number.to_be_bytes());
        nonce[NONCE_LEN - 1] = u8::from(is_last);
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// Encrypts one blob, piece by piece. Holds a few segments, however long the blob is.
pub struct Sealer {
    stream: Stream,
    header: Header,
    is_header_given: bool,
    /// The number of the segment that is filling.
    number: u64,
    /// Segments that are encrypted, and behind them what is not yet: a full segment waits here until it is known whether
    /// it is the last. They lie one behind the other, because a store takes few long pieces faster than many short ones.
    buffer: BytesMut,
    /// Where in the buffer the segment that is filling begins.
    begins: usize,
}

impl Sealer {
    /// For one blob under its data key.
    pub fn new(key: &DataKey) -> Result<Self, Failure> {
        let mut salt = [0; SALT_BYTES];
        fill_random(&mut salt)?;
        Self::with_salt(key, salt)
    }

    pub(super) fn with_salt(key: &DataKey, salt: [u8; SALT_BYTES]) -> Result<Self, Failure> {
        let (stream, commitment) = Stream::derive(key, MAGIC, &salt)?;
        let mut header = [0; HEADER_BYTES];
        header[..MAGIC.len()].copy_from_slice(MAGIC);
        header[MAGIC.len()..MAGIC.len() + SALT_BYTES].copy_from_slice(&salt);
        header[MAGIC.len() + SALT_BYTES..].copy_from_slice(&commitment);
        let (number, buffer, begins) = (0, BytesMut::new(), 0);
        Ok(Self { stream, header, is_header_given: false, number, buffer, begins })
    }

    /// What the object begins with, to be kept beside the row.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Takes the blob's next bytes and gives the object's next pieces: the header at first, then whole segments.
    pub fn push(&mut self, mut piece: Bytes) -> Result<Vec<Bytes>, Failure> {
        let mut out = self.begin();
        while !piece.is_empty() {
            if self.filling_bytes() == SEGMENT_BYTES {
                self.seal(false)?;
            }
            if self.filling_bytes() == 0 && self.room_bytes() < SEGMENT_BYTES + TAG_BYTES {
                self.give(&mut out);
                let segments = piece.len().div_ceil(SEGMENT_BYTES).min(BUFFER_SEGMENTS);
                self.buffer = BytesMut::with_capacity(segments * (SEGMENT_BYTES + TAG_BYTES));
            }
            let taken = piece.len().min(SEGMENT_BYTES - self.filling_bytes());
            self.buffer.extend_from_slice(&piece[..taken]);
            piece.advance(taken);
        }
        self.give(&mut out);
        Ok(out)
    }

    /// Gives the last pieces. An object without them does not open.
    pub fn finish(mut self) -> Result<Vec<Bytes>, Failure> {
        let mut out = self.begin();
        self.seal(true)?;
        self.give(&mut out);
        Ok(out)
    }

    fn begin(&mut self) -> Vec<Bytes> {
        if std::mem::replace(&mut self.is_header_given, true) {
            return Vec::new();
        }
        vec![Bytes::copy_from_slice(&self.header)]
    }

    fn filling_bytes(&self) -> usize {
        self.buffer.len() - self.begins
    }

    /// How much of the buffer is left for the segment that is filling.
    fn room_bytes(&self) -> usize {
        self.buffer.capacity() - self.begins
    }

    /// Encrypts the segment that is filling, at its place.
    fn seal(&mut self, is_last: bool) -> Result<(), Failure> {
        let nonce = self.stream.nonce(self.number, is_last)?;
        let segment = &mut self.buffer[self.begins..];
        let sealed = self.stream.key.seal_in_place_separate_tag(nonce, Aad::empty(), segment);
        let tag = sealed.map_err(|_| Failure::Internal("AES-GCM refuses a segment"))?;
        self.buffer.extend_from_slice(tag.as_ref());
        self.begins = self.buffer.len();
        self.number += 1;
        Ok(())
    }

    /// Gives what is encrypted, and keeps what is not.
    fn give(&mut self, out: &mut Vec<Bytes>) {
        if self.begins > 0 {
            out.push(self.buffer.split_to(self.begins).freeze());
            self.begins = 0;
        }
    }
}

/// Opens ranges of one object.
pub struct Opener {
    stream: Stream,
    size_bytes: u64,
}

impl Opener {
    /// With the blob's data key and size (as the row has them) and the header of the object. A header that another key
    /// made fails here, before anything is read.
    pub fn new(key: &DataKey, header: &[u8], size_bytes: u64) -> Result<Self, Failure> {
        if header.len() != HEADER_BYTES {
            return Err(Failure::Corrupt("its header is cut short"));
        }
        let (magic, rest) = header.split_at(MAGIC.len());
        let (salt, given) = rest.split_at(SALT_BYTES);
        if magic != MAGIC {
            return Err(Failure::Corrupt("it does not begin like an encrypted blob"));
        }
        let (stream, commitment) = Stream::derive(key, magic, salt)?;
        if !bool::from(commitment.as_slice().ct_eq(given)) {
            return Err(Failure::Corrupt("it is encrypted under another key"));
        }
        Ok(Self { stream, size_bytes })
    }

    /// Decrypts a range of the blob from what [`sealed_range`] says. `None` if the range is not within the blob.
    pub fn decoder(self, range: Range<u64>) -> Option<Decoder> {
        let segments = segments_for(self.size_bytes, &range)?;
        Some(Decoder {
            stream: self.stream,
            size_bytes: self.size_bytes,
            range,
            number: segments.start,
            end: segments.end,
            is_broken: false,
            filling: BytesMut::new(),
        })
    }
}

/// Decrypts a range, piece by piece. What it gives is authentic; holds one segment.
pub struct Decoder {
    stream: Stream,
    size_bytes: u64,
    range: Range<u64>,
    /// The number of the segment that is filling, and of the first that is not wanted.
    number: u64,
    end: u64,
    is_broken: bool,
    filling: BytesMut,
}

impl Decoder {
    /// Takes the object's next bytes and gives the range's next pieces. After a failure only failures follow.
    pub fn push(&mut self, mut piece: Bytes) -> Result<Vec<Bytes>, Failure> {
        let mut out = Vec::new();
        while !piece.is_empty() {
            if self.is_broken || self.number == self.end {
                self.is_broken = true;
                return Err(Failure::Corrupt("it is longer than it was written"));
            }
            let wanted = self.content_bytes() + TAG_BYTES;
            if self.filling.capacity() == 0 {
                self.filling.reserve(wanted);
            }
            let taken = piece.len().min(wanted - self.filling.len());
            self.filling.extend_from_slice(&piece[..taken]);
            piece.advance(taken);
            if self.filling.len() == wanted {
                let content = self.open().inspect_err(|_| self.is_broken = true)?;
                if !content.is_empty() {
                    out.push(content);
                }
            }
        }
        Ok(out)
    }

    /// Says whether everything came.
    pub fn finish(self) -> Result<(), Failure> {
        if self.is_broken || self.number != self.end {
            return Err(Failure::Corrupt("it is cut short"));
        }
        Ok(())
    }

    /// How many bytes of the blob the filling segment holds.
    fn content_bytes(&self) -> usize {
        let left = self.size_bytes - self.number * SEGMENT_BYTES as u64;
        usize::try_from(left).unwrap_or(usize::MAX).min(SEGMENT_BYTES)
    }

    /// Opens the segment that is full now, and gives what of it is in the range.
    fn open(&mut self) -> Result<Bytes, Failure> {
        let content_bytes = self.content_bytes();
        let is_last = self.number + 1 == segments_of(self.size_bytes);
        let nonce = self.stream.nonce(self.number, is_last)?;
        let mut segment = std::mem::take(&mut self.filling);
        self.stream
            .key
            .open_in_place(nonce, Aad::empty(), &mut segment)
            .map_err(|_| Failure::Corrupt("a segment is not as it was written"))?;
        segment.truncate(content_bytes);
        let begin = self.number * SEGMENT_BYTES as u64;
        // Both are at most a segment's size, so nothing is cut off.
        let from = self.range.start.saturating_sub(begin) as usize;
        let upto = ((self.range.end - begin) as usize).min(content_bytes);
        self.number += 1;
        Ok(segment.freeze().slice(from..upto))
    }
}
