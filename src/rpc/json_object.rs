//! Free JSON on the wire: a `google.protobuf.Struct` that is kept as its bytes.
//!
//! A Struct is a tree of maps, and building it costs more than all else that a call does with free JSON. So messages keep
//! it as it came, and [`json`](super::json) goes from its bytes to canonical text, and back, in one pass.

use super::json::{self, Fault};
use crate::Reason;
use crate::store::canonical::{Canonical, Json, compare_keys, write_string};
use prost::bytes::{Buf, BufMut, Bytes};
use prost::encoding::{DecodeContext, WireType, bytes, decode_key, decode_varint, skip_field};
use prost::{DecodeError, Message};
use prost_types::{Struct, Value};
use serde::Deserializer;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::OnceLock;

/// A `google.protobuf.Struct` as its bytes. Whether they make sense is seen when they are read.
#[derive(Clone, Default)]
pub struct Object {
    wire: Vec<u8>,
    /// Whether equal objects have equal bytes.
    is_normal: bool,
    /// What is encoded, if the bytes are not normal: entries may come in any order, and in another one each time, but two
    /// requests that say the same must be the same to the ledger of requests.
    normal: OnceLock<Vec<u8>>,
}

/// Of Struct, its entries; of an entry, the key; of ListValue, the items.
const FIRST: u32 = 1;
/// Of an entry.
const VALUE: u32 = 2;
// Of Value.
const NULL: u32 = 1;
const NUMBER: u32 = 2;
const TEXT: u32 = 3;
const BOOL: u32 = 4;
const OBJECT: u32 = 5;
const LIST: u32 = 6;

impl Object {
    fn made(wire: Vec<u8>) -> Self {
        Self { wire, is_normal: true, normal: OnceLock::new() }
    }

    fn normal(&self) -> &[u8] {
        if self.is_normal {
            return &self.wire;
        }
        self.normal.get_or_init(|| match Struct::decode(&*self.wire) {
            Ok(tree) => tree.encode_to_vec(),
            Err(_) => self.wire.clone(),
        })
    }

    /// The tree. What is malformed reads as empty.
    pub fn to_struct(&self) -> Struct {
        Struct::decode(&*self.wire).unwrap_or_default()
    }

    /// Whether it came without a member.
    pub fn is_empty(&self) -> bool {
        self.wire.is_empty()
    }

    pub fn fields(&self) -> BTreeMap<String, Value> {
        self.to_struct().fields
    }
}

impl From<Struct> for Object {
    fn from(tree: Struct) -> Self {
        Self::made(tree.encode_to_vec())
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_struct().fmt(f)
    }
}

/// Of what they hold: the order of a map's entries says nothing.
impl PartialEq for Object {
    fn eq(&self, other: &Self) -> bool {
        self.wire == other.wire || self.to_struct() == other.to_struct()
    }
}

impl Message for Object {
    fn encode_raw(&self, out: &mut impl BufMut) {
        out.put_slice(self.normal());
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        from: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        if tag != FIRST {
            return skip_field(wire_type, tag, from, context);
        }
        let mut entry = Bytes::new();
        bytes::merge(wire_type, &mut entry, from, context)?;
        bytes::encode(FIRST, &entry, &mut self.wire);
        (self.is_normal, self.normal) = (false, OnceLock::new());
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        self.normal().len()
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Canonical text of an object, or what is wrong with it.
pub fn to_json(object: &Object) -> Result<Json, Fault> {
    let mut writer = Writer { out: Vec::with_capacity(object.wire.len() + 16), keys: 0 };
    writer.object(&object.wire, 1)?;
    // The braces that close are not behind any member.
    writer.within_limit()?;
    Ok(Json::from_canonical(writer.out))
}

/// One field of a message on the wire.
enum Wire<'a> {
    Varint(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
    /// Of no type that is used here.
    Other,
}

fn malformed<E>(_: E) -> Fault {
    (Reason::FieldInvalid, "is not a well-formed google.protobuf.Struct".into())
}

fn next_field<'a>(from: &mut &'a [u8]) -> Result<Option<(u32, Wire<'a>)>, Fault> {
    if from.is_empty() {
        return Ok(None);
    }
    let (tag, wire_type) = decode_key(from).map_err(malformed)?;
    let wire = match wire_type {
        WireType::Varint => Wire::Varint(decode_varint(from).map_err(malformed)?),
        WireType::SixtyFourBit => {
            let (bytes, rest) = from.split_first_chunk().ok_or(()).map_err(malformed)?;
            *from = rest;
            Wire::Fixed(u64::from_le_bytes(*bytes))
        }
        WireType::LengthDelimited => {
            let len = decode_varint(from).map_err(malformed)?;
            let len = usize::try_from(len).map_err(malformed)?;
            let (bytes, rest) = from.split_at_checked(len).ok_or(()).map_err(malformed)?;
            *from = rest;
            Wire::Bytes(bytes)
        }
        _ => {
            skip_field(wire_type, tag, from, DecodeContext::default()).map_err(malformed)?;
            Wire::Other
        }
    };
    Ok(Some((tag, wire)))
}

fn text(bytes: &[u8]) -> Result<&str, Fault> {
    std::str::from_utf8(bytes).map_err(malformed)
}

struct Writer {
    out: Vec<u8>,
    keys: usize,
}

fn too_large(what: String) -> Fault {
    (Reason::JsonTooLarge, what)
}

fn within_depth(depth: usize) -> Result<(), Fault> {
    if depth > json::DEPTH_MAX {
        return Err(too_large(format!("must be at most {} levels deep", json::DEPTH_MAX)));
    }
    Ok(())
}

impl Writer {
    fn within_limit(&self) -> Result<(), Fault> {
        if self.out.len() > json::BYTES_MAX {
            return Err(too_large(format!("must be at most {} bytes of JSON", json::BYTES_MAX)));
        }
        Ok(())
    }

    fn object(&mut self, mut wire: &[u8], depth: usize) -> Result<(), Fault> {
        within_depth(depth)?;
        let mut members: Vec<(&str, &[u8])> = Vec::new();
        while let Some((tag, entry)) = next_field(&mut wire)? {
            match (tag, entry) {
                (FIRST, Wire::Bytes(entry)) => members.push(member(entry)?),
                (FIRST, _) => return Err(malformed(())),
                _ => {}
            }
        }
        // The first of the equal ones is the last that came, which is the one that counts.
        members.reverse();
        members.sort_by(|(a, _), (b, _)| compare_keys(a, b));
        members.dedup_by(|later, first| later.0 == first.0);
        self.keys += members.len();
        if self.keys > json::KEYS_MAX {
            return Err(too_large(format!("must have at most {} keys", json::KEYS_MAX)));
        }
        self.out.push(b'{');
        for (n, (key, value)) in members.into_iter().enumerate() {
            if n > 0 {
                self.out.push(b',');
            }
            self.text(key)?;
            self.out.push(b':');
            self.value(value, depth)?;
        }
        self.out.push(b'}');
        Ok(())
    }

    fn value(&mut self, mut wire: &[u8], depth: usize) -> Result<(), Fault> {
        // An unset value reads as null, as in the JSON mapping.
        let mut kind = (NULL, Wire::Varint(0));
        while let Some((tag, value)) = next_field(&mut wire)? {
            if (NULL..=LIST).contains(&tag) {
                kind = (tag, value);
            }
        }
        match kind {
            (NULL, Wire::Varint(_)) => self.out.extend_from_slice(b"null"),
            (BOOL, Wire::Varint(value)) => (value != 0).write(&mut self.out),
            (NUMBER, Wire::Fixed(bits)) => self.number(f64::from_bits(bits))?,
            (TEXT, Wire::Bytes(bytes)) => self.text(text(bytes)?)?,
            (OBJECT, Wire::Bytes(object)) => self.object(object, depth + 1)?,
            (LIST, Wire::Bytes(list)) => self.list(list, depth + 1)?,
            _ => return Err(malformed(())),
        }
        self.within_limit()
    }

    fn number(&mut self, value: f64) -> Result<(), Fault> {
        if !value.is_finite() {
            return Err((Reason::FieldInvalid, "must not hold NaN or an infinity".into()));
        }
        if value.fract() == 0.0 && value.abs() >= json::EXACT_MAX {
            let what = "must not hold integers of 2^53 or more as numbers: send them as text";
            return Err((Reason::NumberNotExact, what.into()));
        }
        value.write(&mut self.out);
        Ok(())
    }

    fn list(&mut self, mut wire: &[u8], depth: usize) -> Result<(), Fault> {
        within_depth(depth)?;
        self.out.push(b'[');
        let mut is_first = true;
        while let Some((tag, item)) = next_field(&mut wire)? {
            match (tag, item) {
                (FIRST, Wire::Bytes(item)) => {
                    if !std::mem::take(&mut is_first) {
                        self.out.push(b',');
                    }
                    self.value(item, depth)?;
                }
                (FIRST, _) => return Err(malformed(())),
                _ => {}
            }
        }
        self.out.push(b']');
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), Fault> {
        if text.contains('\0') {
            return Err((Reason::NulByte, "must not contain a NUL byte".into()));
        }
        write_string(text, &mut self.out);
        Ok(())
    }
}

/// Key and value of an entry; what is left out is empty.
fn member(mut entry: &[u8]) -> Result<(&str, &[u8]), Fault> {
    let (mut key, mut value): (&str, &[u8]) = ("", &[]);
    while let Some((tag, field)) = next_field(&mut entry)? {
        match (tag, field) {
            (FIRST, Wire::Bytes(bytes)) => key = text(bytes)?,
            (VALUE, Wire::Bytes(bytes)) => value = bytes,
            (FIRST | VALUE, _) => return Err(malformed(())),
            _ => {}
        }
    }
    Ok((key, value))
}

/// The object again. Stored JSON is always an object here; anything else reads as an empty one.
pub fn of_json(json: &Json) -> Option<Object> {
    let text = json.text();
    let mut out = Vec::with_capacity(text.len() + 64);
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    ToWire(&mut out).deserialize(&mut deserializer).ok()?;
    let mut wire = &*out;
    match next_field(&mut wire) {
        Ok(Some((OBJECT, Wire::Bytes(object)))) => {
            let header = out.len() - object.len();
            out.drain(..header);
            Some(Object::made(out))
        }
        _ => Some(Object::default()),
    }
}

const fn key(tag: u32, wire_type: WireType) -> u8 {
    // Tags below 16, so that the key is one byte.
    (tag << 3) as u8 | wire_type as u8
}

const ENTRY_KEY: u8 = key(FIRST, WireType::LengthDelimited);

/// Writes what `write` writes behind its key and its length.
fn prefixed<T>(out: &mut Vec<u8>, key: u8, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let at = begin(out, key);
    let written = write(out);
    end(out, at);
    written
}

/// A key, and room for a length of one byte, which most are.
fn begin(out: &mut Vec<u8>, key: u8) -> usize {
    out.extend_from_slice(&[key, 0]);
    out.len()
}

/// The length of all that stands behind `at`.
fn end(out: &mut Vec<u8>, at: usize) {
    let len = out.len() - at;
    if len < 0x80 {
        out[at - 1] = len as u8;
        return;
    }
    let more = prost::encoding::encoded_len_varint(len as u64) - 1;
    out.resize(out.len() + more, 0);
    out.copy_within(at..at + len, at + more);
    prost::encoding::encode_varint(len as u64, &mut &mut out[at - 1..at + more]);
}

/// Writes the fields of a Value straight from the text.
struct ToWire<'o>(&'o mut Vec<u8>);

impl<'de> DeserializeSeed<'de> for ToWire<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ToWire<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.0.extend_from_slice(&[key(BOOL, WireType::Varint), value.into()]);
        Ok(())
    }
    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.visit_f64(value as f64)
    }
    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.visit_f64(value as f64)
    }
    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.0.push(key(NUMBER, WireType::SixtyFourBit));
        self.0.extend_from_slice(&value.to_le_bytes());
        Ok(())
    }
    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        prefixed(self.0, key(TEXT, WireType::LengthDelimited), |out| {
            out.extend_from_slice(value.as_bytes());
        });
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        self.0.extend_from_slice(&[key(NULL, WireType::Varint), 0]);
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        prefixed(self.0, key(LIST, WireType::LengthDelimited), |out| {
            loop {
                let before = out.len();
                let at = begin(out, key(FIRST, WireType::LengthDelimited));
                if items.next_element_seed(ToWire(out))?.is_none() {
                    out.truncate(before);
                    return Ok(());
                }
                end(out, at);
            }
        })
    }
    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        prefixed(self.0, key(OBJECT, WireType::LengthDelimited), |out| {
            loop {
                let before = out.len();
                let at = begin(out, key(FIRST, WireType::LengthDelimited));
                if members.next_key_seed(Key(out))?.is_none() {
                    out.truncate(before);
                    return Ok(());
                }
                let value = begin(out, key(VALUE, WireType::LengthDelimited));
                members.next_value_seed(ToWire(out))?;
                end(out, value);
                end(out, at);
            }
        })
    }
}

/// Writes the key of an entry; an empty one is left out, as other programs do.
struct Key<'o>(&'o mut Vec<u8>);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_str<E>(self, key: &str) -> Result<(), E> {
        if !key.is_empty() {
            prefixed(self.0, ENTRY_KEY, |out| out.extend_from_slice(key.as_bytes()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost_types::ListValue;
    use prost_types::value::Kind;

    impl Object {
        fn came(wire: Vec<u8>) -> Self {
            Self { wire, ..Self::default() }
        }
    }

    fn of_kind(kind: Kind) -> Value {
        Value { kind: Some(kind) }
    }

    /// As a tree that somebody else has encoded.
    fn struct_of(members: impl IntoIterator<Item = (&'static str, Value)>) -> Struct {
        Struct { fields: members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect() }
    }

    fn number(value: f64) -> Object {
        struct_of([("n", of_kind(Kind::NumberValue(value)))]).into()
    }

    /// The obvious way to the same text.
    fn plain(value: &Value) -> serde_json::Value {
        match &value.kind {
            None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
            Some(Kind::BoolValue(value)) => (*value).into(),
            Some(Kind::NumberValue(value)) => (*value).into(),
            Some(Kind::StringValue(value)) => value.as_str().into(),
            Some(Kind::StructValue(value)) => {
                value.fields.iter().map(|(key, value)| (key.clone(), plain(value))).collect()
            }
            Some(Kind::ListValue(list)) => list.values.iter().map(plain).collect(),
        }
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(of_kind(Kind::NullValue(0))),
            any::<bool>().prop_map(|value| of_kind(Kind::BoolValue(value))),
            (-1e9..1e9).prop_map(|value| of_kind(Kind::NumberValue(value))),
            (-9_007_199_254_740_991_i64..9_007_199_254_740_992)
                .prop_map(|value| of_kind(Kind::NumberValue(value as f64))),
            "[^\0]{0,200}".prop_map(|value| of_kind(Kind::StringValue(value))),
        ];
        leaf.prop_recursive(5, 60, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6)
                    .prop_map(|values| of_kind(Kind::ListValue(ListValue { values }))),
                prop::collection::btree_map("[^\0]{0,20}", inner, 0..6)
                    .prop_map(|fields| of_kind(Kind::StructValue(Struct { fields }))),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_text_is_that_of_the_tree_and_comes_back(
            fields in prop::collection::btree_map("[^\0]{0,20}", tree(), 0..6)
        ) {
            let given = Struct { fields };
            let json = to_json(&Object::from(given.clone())).unwrap();
            let value = of_kind(Kind::StructValue(given.clone()));
            prop_assert_eq!(&json, &json::of_value(&plain(&value)));
            let again = of_json(&json).unwrap();
            prop_assert_eq!(again.to_struct(), given);
            prop_assert_eq!(to_json(&again).unwrap(), json);
        }

        #[test]
        fn no_bytes_are_too_odd(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = to_json(&Object::came(bytes.clone()));
            // What others read as a Struct is one here, and says the same.
            if let (Ok(tree), Ok(json)) = (Struct::decode(&*bytes), to_json(&Object::came(bytes))) {
                prop_assert_eq!(of_json(&json).unwrap().fields().len(), tree.fields.len());
            }
        }
    }

    #[test]
    fn it_is_encoded_as_others_encode_it() {
        let text = r#"{"":1,"a":[1,2.5,"x",null,true,{}],"b":{"c":"\u0001\"\\"}}"#;
        let object = of_json(&Json::from_canonical(text)).unwrap();
        assert_eq!(object.encode_to_vec(), object.to_struct().encode_to_vec());
        assert_eq!(to_json(&object).unwrap().text(), text.as_bytes());
        let long = format!(r#"{{"k":["{}"]}}"#, "x".repeat(40_000));
        let object = of_json(&Json::from_canonical(long.into_bytes())).unwrap();
        assert_eq!(object.encode_to_vec(), object.to_struct().encode_to_vec());
        assert_eq!(Object::decode(&*object.encode_to_vec()).unwrap(), object);
    }

    #[test]
    fn of_entries_with_one_key_the_last_counts() {
        let entry = |value: f64| number(value).wire;
        let object = Object::came([entry(1.0), entry(2.0)].concat());
        assert_eq!(to_json(&object).unwrap().text(), br#"{"n":2}"#);
        assert_eq!(object, number(2.0));
        assert_eq!(object.encode_to_vec(), number(2.0).encode_to_vec());
    }

    #[test]
    fn equal_ones_are_encoded_alike_in_whatever_order_they_came() {
        let entry = |key, kind| Object::from(struct_of([(key, of_kind(kind))])).wire;
        let inner = |one: [&'static str; 2]| {
            let entries = one.map(|key| entry(key, Kind::BoolValue(true))).concat();
            let mut outer = vec![key(FIRST, WireType::LengthDelimited), entries.len() as u8 + 7];
            outer.extend_from_slice(b"\x0a\x01k\x12");
            outer.extend_from_slice(&[entries.len() as u8 + 2, 0x2a, entries.len() as u8]);
            outer.extend(entries);
            Object::decode(&*outer).unwrap()
        };
        let (one, other) = (inner(["a", "b"]), inner(["b", "a"]));
        assert_ne!(one.wire, other.wire);
        assert_eq!(one.encode_to_vec(), other.encode_to_vec());
        assert_eq!(one.encoded_len(), one.encode_to_vec().len());
        assert_eq!(to_json(&one).unwrap().text(), br#"{"k":{"a":true,"b":true}}"#);
        assert_eq!(to_json(&one).unwrap(), to_json(&other).unwrap());
    }

    #[test]
    fn refuses_what_cannot_be_kept() {
        for (value, reason) in [
            (number(f64::NAN), Reason::FieldInvalid),
            (number(f64::INFINITY), Reason::FieldInvalid),
            (number(9_007_199_254_740_992.0), Reason::NumberNotExact),
            (number(-1e300), Reason::NumberNotExact),
            (struct_of([("a\0", Value::default())]).into(), Reason::NulByte),
            // A value whose number is a text, and one that ends before it has begun.
            (Object::came(b"\x0a\x06\x12\x04\x12\x02ab".into()), Reason::FieldInvalid),
            (Object::came(b"\x0a\x7f".into()), Reason::FieldInvalid),
            // A key that is not UTF-8.
            (Object::came(b"\x0a\x03\x0a\x01\xff".into()), Reason::FieldInvalid),
        ] {
            assert_eq!(to_json(&value).unwrap_err().0, reason, "{value:?}");
        }
        assert!(to_json(&number(9_007_199_254_740_991.0)).is_ok());
        let many = |keys: usize| {
            let fields = (0..keys).map(|n| (n.to_string(), Value::default())).collect();
            Object::from(Struct { fields })
        };
        assert!(to_json(&many(json::KEYS_MAX)).is_ok());
        assert_eq!(to_json(&many(json::KEYS_MAX + 1)).unwrap_err().0, Reason::JsonTooLarge);
    }

    #[test]
    fn the_deepest_object_is_32_levels_deep() {
        let nested = |levels: usize| {
            let mut value = Struct::default();
            for _ in 1..levels {
                value = struct_of([("a", of_kind(Kind::StructValue(value)))]);
            }
            Object::from(value)
        };
        assert!(to_json(&nested(32)).is_ok());
        assert_eq!(to_json(&nested(33)).unwrap_err().0, Reason::JsonTooLarge);
    }
}
