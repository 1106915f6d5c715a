//! What must open, and everything that must not.

use super::segments::{
    HEADER_BYTES, Opener, SEGMENT_BYTES, Sealer, TAG_BYTES, sealed_range, sealed_size_bytes,
};
use super::{Binding, DataKey, Failure, KeyRing, KeySource, WrappedKey, keys, rewrap};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;

const SEALED_SEGMENT: usize = SEGMENT_BYTES + TAG_BYTES;

fn counted(from: u8) -> [u8; 32] {
    std::array::from_fn(|n| from + n as u8)
}

fn key() -> DataKey {
    DataKey::from_bytes(counted(0))
}

/// Content that no two segments share.
fn content(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n % 251) as u8).collect()
}

fn seal_in_pieces(sealer: Sealer, plain: &[u8], piece: usize) -> Vec<u8> {
    let mut sealer = sealer;
    let (mut out, mut pushed) = (Vec::new(), 0);
    for piece in plain.chunks(piece) {
        pushed += piece.len();
        for sealed in sealer.push(Bytes::copy_from_slice(piece)).unwrap() {
            assert!(sealed.len() <= 15 * SEALED_SEGMENT, "memory is bounded");
            out.extend_from_slice(&sealed);
        }
        assert!(pushed.saturating_sub(out.len()) <= SEGMENT_BYTES, "no more than a segment waits");
    }
    for sealed in sealer.finish().unwrap() {
        out.extend_from_slice(&sealed);
    }
    out
}

fn seal(plain: &[u8]) -> Vec<u8> {
    seal_in_pieces(Sealer::new(&key()).unwrap(), plain, 100_000)
}

/// Opens a range as a reader of the store would, given the object and the blob's size.
fn open_range(
    key: &DataKey,
    sealed: &[u8],
    size: usize,
    range: Range<usize>,
    piece: usize,
) -> Result<Vec<u8>, Failure> {
    let (size, range) = (size as u64, range.start as u64..range.end as u64);
    let header = &sealed[..HEADER_BYTES.min(sealed.len())];
    let needed = sealed_range(size, range.clone()).expect("a range within the blob");
    // A store gives what it has. Of a blob read whole it would give more than expected, too.
    let from = (needed.start as usize).min(sealed.len());
    let upto = if range == (0..size) { sealed.len() } else { needed.end as usize };
    let stored = &sealed[from..upto.min(sealed.len())];
    let mut decoder = Opener::new(key, header, size)?.decoder(range).expect("the same range");
    let mut out = Vec::new();
    for piece in stored.chunks(piece) {
        for opened in decoder.push(Bytes::copy_from_slice(piece))? {
            out.extend_from_slice(&opened);
        }
    }
    decoder.finish()?;
    Ok(out)
}

fn open(sealed: &[u8], size: usize) -> Result<Vec<u8>, Failure> {
    open_range(&key(), sealed, size, 0..size, 100_000)
}

#[track_caller]
fn corrupt<T: std::fmt::Debug>(result: Result<T, Failure>, what: &str) {
    assert!(matches!(result, Err(Failure::Corrupt(_))), "{what}: {result:?}");
}

fn hex(bytes: &[u8]) -> String {
    crate::store::log::hex(bytes)
}

/// The answers come from scripts/envelope-vectors.py, which knows the layout from the text and AES-GCM and HKDF from
/// OpenSSL.
#[test]
fn the_bytes_are_those_of_an_independent_program() {
    let sealed =
        |plain: &[u8]| seal_in_pieces(Sealer::with_salt(&key(), counted(32)).unwrap(), plain, 1000);
    let header = "43425345414c0110202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f\
                  6216431b18104d663352a2b3c59b3038ecb62695f198a3cd554e88ff57a45b88";
    assert_eq!(hex(&sealed(b"")), format!("{header}a56a7f03a3c839428851eaf2dd477f1d"));
    assert_eq!(
        hex(&sealed(b"what a machine decided")),
        format!(
            "{header}4097bbdd1688a8b58c8992e067fc62cdcff212f0e1a1da8400d0547d2f70cf4589a78ba2cdb0"
        )
    );
    let digest = |size| hex(&Sha256::digest(sealed(&content(size))));
    assert_eq!(
        digest(2 * SEGMENT_BYTES + 1),
        "259b95fd49e06e7a06a520cdef7836af6269910d8b5a72b6ec559da586a8e315"
    );
    assert_eq!(
        digest(2 * SEGMENT_BYTES),
        "a65c5b858ea517bb7c9993a90b8262ff7b65cec7011dcdb4eb12748fc69b2a88"
    );

    // The salt is random, so the other program's wrapped key is unwrapped.
    let wrapped = "01202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f65a4cd4fcff2579d762d8b864d79e0a1\
                   8d79717567ea929a9fe7aa32ecb9df2ca6f8b2b915d2e01ba4723e80f4dd29a45c06a17b8b03736a53206bb84b700cadb0\
                   8c78de21e8799d25d284e1cc766ee1";
    let byte = |n: usize| u8::from_str_radix(&wrapped[n..n + 2], 16).unwrap();
    let bytes = (0..wrapped.len()).step_by(2).map(byte).collect();
    let wrapped = WrappedKey { key_id: "first".into(), bytes };
    let opened = wait(ring_of(&[("first", 64)]).unwrap_key(&wrapped, &binding())).unwrap();
    assert_eq!(opened.expose(), &counted(0));
}

#[test]
fn sizes_around_the_borders_of_segments_come_back() {
    for segments in 0..4 {
        for off in -2_i64..=2 {
            let Ok(size) = usize::try_from(segments * SEGMENT_BYTES as i64 + off) else { continue };
            let plain = content(size);
            let sealed = seal(&plain);
            assert_eq!(sealed.len() as u64, sealed_size_bytes(size as u64), "{size}");
            assert!(open(&sealed, size).unwrap() == plain, "{size}");
        }
    }
}

#[test]
fn two_encryptions_of_the_same_have_nothing_in_common() {
    let (one, other) = (seal(b"the same"), seal(b"the same"));
    assert_eq!(one[..8], other[..8]);
    assert_ne!(one[8..40], other[8..40], "salts");
    assert_ne!(one[HEADER_BYTES..], other[HEADER_BYTES..], "segments");
}

#[test]
fn every_flipped_bit_is_noticed() {
    let sealed = seal(b"guilty as charged");
    for bit in 0..sealed.len() * 8 {
        let mut flipped = sealed.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        corrupt(open(&flipped, 17), &format!("bit {bit}"));
    }
}

#[test]
fn a_blob_cut_short_anywhere_is_noticed() {
    let sealed = seal(b"guilty as charged");
    for end in 0..sealed.len() {
        for size in 0..=17 {
            corrupt(open(&sealed[..end], size), &format!("{end} bytes as {size}"));
        }
    }
    // At the borders of segments, where what is left has whole segments only; with the true size and with one that fits.
    let size = 3 * SEGMENT_BYTES + 5;
    let sealed = seal(&content(size));
    for segments in 0..=3 {
        for off in -1_i64..=1 {
            let Ok(end) = usize::try_from((HEADER_BYTES + segments * SEALED_SEGMENT) as i64 + off)
            else {
                continue;
            };
            corrupt(open(&sealed[..end], size), &format!("cut at {end}"));
            corrupt(open(&sealed[..end], segments * SEGMENT_BYTES), &format!("cut at {end}, size"));
        }
    }
}

#[test]
fn a_blob_added_to_is_noticed() {
    for size in [0, 17, SEGMENT_BYTES, SEGMENT_BYTES + 1] {
        let sealed = seal(&content(size));
        let mut longer = sealed.clone();
        longer.push(0);
        corrupt(open(&longer, size), "a byte more");
        corrupt(open(&longer, size + 1), "a byte more that the size speaks of");
        let mut longer = sealed.clone();
        longer.extend_from_slice(&sealed[HEADER_BYTES..]);
        corrupt(open(&longer, size), "segments more");
        corrupt(open(&longer, 2 * size), "segments more that the size speaks of");
    }
}

#[test]
fn segments_have_their_places() {
    let size = 3 * SEGMENT_BYTES;
    let plain = content(size);
    let sealed = seal(&plain);
    let at = |n: usize| HEADER_BYTES + n * SEALED_SEGMENT..HEADER_BYTES + (n + 1) * SEALED_SEGMENT;
    for (one, other) in [(0, 1), (1, 2), (0, 2)] {
        let mut swapped = sealed.clone();
        swapped[at(one)].copy_from_slice(&sealed[at(other)]);
        swapped[at(other)].copy_from_slice(&sealed[at(one)]);
        corrupt(open(&swapped, size), &format!("{one} and {other} swapped"));
        // A range that is read alone notices it, too.
        let range = one * SEGMENT_BYTES..one * SEGMENT_BYTES + 1;
        corrupt(open_range(&key(), &swapped, size, range, 1000), "one of them alone");
    }
    // A segment of the same blob and key, but of another encryption.
    let mut spliced = sealed.clone();
    spliced[at(1)].copy_from_slice(&seal(&plain)[at(1)]);
    corrupt(open(&spliced, size), "spliced");
}

#[test]
fn nothing_comes_of_a_damaged_segment_nor_after_it() {
    let size = 3 * SEGMENT_BYTES;
    let mut sealed = seal(&content(size));
    sealed[HEADER_BYTES + SEALED_SEGMENT + 7] ^= 1;
    let opener = Opener::new(&key(), &sealed[..HEADER_BYTES], size as u64).unwrap();
    let mut decoder = opener.decoder(0..size as u64).unwrap();
    let mut given = 0;
    let mut failed = false;
    for piece in sealed[HEADER_BYTES..].chunks(10_000) {
        match decoder.push(Bytes::copy_from_slice(piece)) {
            Ok(pieces) => {
                assert!(!failed, "a failure is final");
                given += pieces.iter().map(Bytes::len).sum::<usize>();
            }
            Err(_) => failed = true,
        }
    }
    assert!(failed && given == SEGMENT_BYTES, "{given}");
    corrupt(decoder.finish(), "its end");
}

#[test]
fn no_two_keys_open_the_same_object() {
    let plain = content(100);
    let sealed = seal(&plain);
    for n in 1..100 {
        let other = DataKey::from_bytes(counted(n));
        corrupt(Opener::new(&other, &sealed[..HEADER_BYTES], 100).map(|_| ()), "another key");
    }
    // With the other's commitment in the header it opens for the other's key, up to the first segment, and no longer for
    // the first: whoever makes an object must choose one.
    let other = DataKey::from_bytes(counted(1));
    let salt = sealed[8..40].try_into().unwrap();
    let mut forged = sealed.clone();
    forged[..HEADER_BYTES].copy_from_slice(Sealer::with_salt(&other, salt).unwrap().header());
    assert!(Opener::new(&other, &forged[..HEADER_BYTES], 100).is_ok());
    corrupt(Opener::new(&key(), &forged[..HEADER_BYTES], 100).map(|_| ()), "the first key");
}

#[test]
fn ranges_name_what_must_be_read() {
    let (header, segment, sealed) =
        (HEADER_BYTES as u64, SEGMENT_BYTES as u64, SEALED_SEGMENT as u64);
    let size = 2 * segment + 10;
    let cases = [
        (0..size, header..header + 2 * sealed + 26),
        (0..1, header..header + sealed),
        (segment - 1..segment, header..header + sealed),
        (segment - 1..segment + 1, header..header + 2 * sealed),
        (segment..segment + 1, header + sealed..header + 2 * sealed),
        (size - 1..size, header + 2 * sealed..header + 2 * sealed + 26),
        (5..5, header..header),
        (size..size, header..header),
    ];
    for (range, expected) in cases {
        assert_eq!(sealed_range(size, range.clone()), Some(expected), "{range:?}");
    }
    assert_eq!(sealed_range(0, 0..0), Some(header..header + 16), "an empty blob is checked, too");
    #[allow(clippy::reversed_empty_ranges, reason = "it is what is refused")]
    for wrong in [0..size + 1, size + 1..size + 1, 2..1] {
        assert_eq!(sealed_range(size, wrong.clone()), None, "{wrong:?}");
        let opener = Opener::new(&key(), Sealer::new(&key()).unwrap().header(), size).unwrap();
        assert!(opener.decoder(wrong).is_none());
    }
    assert_eq!(sealed_size_bytes(u64::MAX), u64::MAX, "no overflow");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_range_of_any_blob_comes_back(
        size in prop_oneof![
            0..200_usize,
            SEGMENT_BYTES - 3..SEGMENT_BYTES + 3,
            2 * SEGMENT_BYTES - 3..2 * SEGMENT_BYTES + 3,
            0..4 * SEGMENT_BYTES,
        ],
        ends in (0.0..=1.0_f64, 0.0..=1.0_f64),
        piece_in in prop_oneof![1..2000_usize, 1..300_000_usize],
        piece_out in prop_oneof![1..2000_usize, 1..300_000_usize],
    ) {
        let plain = content(size);
        let sealed = seal_in_pieces(Sealer::new(&key()).unwrap(), &plain, piece_in);
        prop_assert_eq!(sealed.len() as u64, sealed_size_bytes(size as u64));
        prop_assert!(open_range(&key(), &sealed, size, 0..size, piece_out).unwrap() == plain);
        let place = |part: f64| (part * size as f64) as usize;
        let (a, b) = (place(ends.0), place(ends.1));
        let range = a.min(b)..a.max(b);
        let opened = open_range(&key(), &sealed, size, range.clone(), piece_out).unwrap();
        prop_assert!(opened == plain[range]);
    }

    #[test]
    fn any_change_is_noticed(size in 0..3 * SEGMENT_BYTES, place in 0.0..1.0_f64, to in 1..=255_u8) {
        let mut sealed = seal(&content(size));
        let at = (place * sealed.len() as f64) as usize;
        sealed[at] ^= to;
        prop_assert!(matches!(open(&sealed, size), Err(Failure::Corrupt(_))));
    }
}

fn ring_of(ids: &[(&str, u8)]) -> KeyRing {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let line = |(id, from): &(&str, u8)| format!("{id}:{}", STANDARD.encode(counted(*from)));
    KeyRing::parse(&ids.iter().map(line).collect::<Vec<_>>().join("\n")).unwrap()
}

fn binding() -> Binding {
    Binding { tenant: "acme".into(), digest: Sha256::digest(b"what a machine decided").into() }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn a_key_unwraps_only_what_it_wrapped_for_the_same_blob() {
    let ring = ring_of(&[("a", 0), ("b", 40)]);
    let data = DataKey::generate().unwrap();
    let wrapped = wait(ring.wrap_key(&data, &binding())).unwrap();
    assert_eq!(wrapped.key_id, "a");
    let opened = wait(ring.unwrap_key(&wrapped, &binding())).unwrap();
    assert_eq!(opened.expose(), data.expose());
    let again = wait(ring.wrap_key(&data, &binding())).unwrap();
    assert_ne!(wrapped.bytes, again.bytes, "salted");

    let tenant = Binding { tenant: "acne".into(), ..binding() };
    corrupt(wait(ring.unwrap_key(&wrapped, &tenant)), "another tenant");
    let digest = Binding { digest: Sha256::digest(b"another").into(), ..binding() };
    corrupt(wait(ring.unwrap_key(&wrapped, &digest)), "another blob");

    let unknown = |ring: &KeyRing, wrapped: &WrappedKey, id: &str| {
        let failed = wait(ring.unwrap_key(wrapped, &binding()));
        let Err(Failure::KeyUnknown { key_id }) = &failed else { panic!("{failed:?}") };
        assert_eq!(key_id, id);
        assert!(failed.unwrap_err().to_string().contains(&format!("\"{id}\"")));
    };
    unknown(&ring_of(&[("b", 40)]), &wrapped, "a");
    // Another key under the same id, and the same key under another id.
    unknown(&ring_of(&[("a", 40)]), &wrapped, "a");
    unknown(&ring_of(&[("c", 0)]), &WrappedKey { key_id: "c".into(), ..wrapped.clone() }, "c");

    for bit in 0..wrapped.bytes.len() * 8 {
        let mut flipped = wrapped.clone();
        flipped.bytes[bit / 8] ^= 1 << (bit % 8);
        let failed = wait(ring.unwrap_key(&flipped, &binding()));
        // What says which key it was cannot be told from another key.
        let is_key = (1..65).contains(&(bit / 8));
        match failed {
            Err(Failure::KeyUnknown { .. }) if is_key => {}
            Err(Failure::Corrupt(_)) if !is_key => {}
            other => panic!("bit {bit}: {other:?}"),
        }
    }
    for end in 0..wrapped.bytes.len() {
        let cut = WrappedKey { bytes: wrapped.bytes[..end].to_vec(), ..wrapped.clone() };
        corrupt(wait(ring.unwrap_key(&cut, &binding())), "a wrapped key cut short");
    }
}

#[test]
fn tenants_and_digests_cannot_be_confused() {
    let one = Binding { tenant: "a".into(), digest: [b'b'; 32] };
    let other = Binding { tenant: "ab".into(), digest: [b'b'; 32] };
    assert_ne!(one.bytes(), other.bytes());
    assert_eq!(one.bytes()[..9], [0, 0, 0, 0, 0, 0, 0, 1, b'a']);
}

/// A source elsewhere, when it cannot be reached.
#[derive(Debug)]
struct Away;

impl Away {
    fn fail<T>() -> Result<T, Failure> {
        Err(Failure::Unavailable(std::sync::Arc::new(std::io::Error::other("no route"))))
    }
}

impl KeySource for Away {
    fn current_key_id(&self) -> BoxFuture<'_, Result<String, Failure>> {
        Box::pin(async { Ok("elsewhere".into()) })
    }

    fn wrap_key<'a>(
        &'a self,
        _: &'a DataKey,
        _: &'a Binding,
    ) -> BoxFuture<'a, Result<WrappedKey, Failure>> {
        Box::pin(async { Self::fail() })
    }

    fn unwrap_key<'a>(
        &'a self,
        _: &'a WrappedKey,
        _: &'a Binding,
    ) -> BoxFuture<'a, Result<DataKey, Failure>> {
        Box::pin(async { Self::fail() })
    }
}

#[test]
fn rotation_touches_the_wrapped_key_and_not_the_object() {
    let (old, both, new) =
        (ring_of(&[("old", 0)]), ring_of(&[("new", 40), ("old", 0)]), ring_of(&[("new", 40)]));
    let data = DataKey::generate().unwrap();
    let plain = content(1000);
    let object = seal_in_pieces(Sealer::new(&data).unwrap(), &plain, 100);
    let wrapped = wait(old.wrap_key(&data, &binding())).unwrap();
    assert_eq!(wait(rewrap(&old, &wrapped, &binding())).unwrap(), None);

    let rotated = wait(rewrap(&both, &wrapped, &binding())).unwrap().expect("another key");
    assert_eq!(rotated.key_id, "new");
    assert_eq!(wait(rewrap(&both, &rotated, &binding())).unwrap(), None, "once is enough");
    // The old key may go now.
    let opened = wait(new.unwrap_key(&rotated, &binding())).unwrap();
    assert!(open_range(&opened, &object, 1000, 0..1000, 100).unwrap() == plain);
    let failed = wait(rewrap(&new, &wrapped, &binding()));
    assert!(
        matches!(&failed, Err(Failure::KeyUnknown { key_id }) if key_id == "old"),
        "{failed:?}"
    );

    let tenant = Binding { tenant: "acne".into(), ..binding() };
    corrupt(wait(rewrap(&both, &wrapped, &tenant)), "no way around the binding");
    let away = wait(rewrap(&Away, &wrapped, &binding()));
    assert!(matches!(away, Err(Failure::Unavailable(_))), "{away:?}");
}

#[test]
fn keys_are_read_as_they_are_written() {
    let one = keys::generate().unwrap();
    let other = keys::generate().unwrap();
    assert_ne!(*one, *other);
    let both = format!("# the keys\n\n {} # the newest\n{}\n", *one, *other);
    let ring = KeyRing::parse(&both).unwrap();
    let ids: Vec<_> = ring.key_ids().collect();
    assert_eq!(ids, [one.split(':').next().unwrap(), other.split(':').next().unwrap()]);
    assert_eq!(ring, KeyRing::parse(&format!("{},{}", *one, *other)).unwrap(), "as a variable");
    assert_ne!(ring, KeyRing::parse(&format!("{},{}", *other, *one)).unwrap());
    assert_eq!(wait(ring.current_key_id()).unwrap(), ids[0]);

    let secret = one.split(':').nth(1).unwrap();
    let shown = format!("{ring:?} {:?}", DataKey::from_bytes([7; 32]));
    assert!(shown.contains(ids[0]) && !shown.contains(secret) && !shown.contains("7,"), "{shown}");

    let is_refused = |text: &str, words: &str| {
        let said = KeyRing::parse(text).unwrap_err();
        assert!(said.contains(words) && !said.contains(secret), "{said}");
    };
    is_refused("", "holds no key");
    is_refused("# none", "holds no key");
    is_refused(secret, "no colon in line 1");
    is_refused(&format!("\n a b:{secret}"), "an id in line 2");
    is_refused(&format!(":{secret}"), "an id in line 1");
    is_refused(&format!("{}:{secret}", "i".repeat(65)), "an id in line 1");
    is_refused(&format!("a:{secret}\na:{secret}"), "the key a twice");
    is_refused(&format!("a:{}", &secret[4..]), "32 bytes in base64 for the key a");
    is_refused("a:****", "32 bytes in base64 for the key a");
}

#[test]
fn a_file_of_keys_must_be_private() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    let line = keys::generate().unwrap();
    std::fs::write(&path, &*line).unwrap();
    let with_mode = |mode| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        KeyRing::read(&path)
    };
    for mode in [0o400, 0o600, 0o640, 0o440] {
        assert_eq!(with_mode(mode).unwrap(), KeyRing::parse(&line).unwrap(), "{mode:o}");
    }
    for mode in [0o644, 0o604, 0o602, 0o660, 0o601, 0o777] {
        let said = with_mode(mode).unwrap_err();
        assert!(said.contains(&format!("{mode:o}")) && said.contains("chmod 600"), "{said}");
    }
    let said = KeyRing::read(&folder.path().join("none")).unwrap_err();
    assert!(said.contains("none: "), "{said}");
    let said = KeyRing::read(folder.path()).unwrap_err();
    assert!(said.contains("which is no file"), "{said}");
    with_mode(0o600).unwrap();
    std::fs::write(&path, "a key").unwrap();
    let said = KeyRing::read(&path).unwrap_err();
    assert!(said.contains("which has no colon in line 1") && !said.contains("a key"), "{said}");
}
