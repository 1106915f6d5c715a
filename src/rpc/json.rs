//! Free JSON between `google.protobuf.Struct` and canonical text, within the limits that every caller is told.

use crate::Reason;
use crate::store::canonical::{Canonical, Json, compare_keys, write_string, write_value};
use crate::store::log::hex;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use serde::Deserializer;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;

pub const BYTES_MAX: usize = 1 << 20;
pub const DEPTH_MAX: usize = 32;
pub const KEYS_MAX: usize = 10_000;
/// From here on a double no longer tells neighbouring integers apart.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

type Fault = (Reason, String);

/// Canonical text of a Struct, or what is wrong with it.
pub fn from_struct(value: &Struct) -> Result<Json, Fault> {
    let mut writer = Writer { out: Vec::with_capacity(256), keys: 0 };
    writer.object(value, 1)?;
    // The braces that close are not behind any member.
    if writer.out.len() > BYTES_MAX {
        return Err(too_large(format!("must be at most {BYTES_MAX} bytes of JSON")));
    }
    Ok(Json::from_canonical(writer.out))
}

/// SHA-256 of canonical text, hex: what tells whether two cases have the same input.
pub fn hash(json: &Json) -> String {
    hex(&Sha256::digest(json.canonical()))
}

struct Writer {
    out: Vec<u8>,
    keys: usize,
}

fn too_large(what: String) -> Fault {
    (Reason::JsonTooLarge, what)
}

impl Writer {
    fn object(&mut self, value: &Struct, depth: usize) -> Result<(), Fault> {
        if depth > DEPTH_MAX {
            return Err(too_large(format!("must be at most {DEPTH_MAX} levels deep")));
        }
        self.keys += value.fields.len();
        if self.keys > KEYS_MAX {
            return Err(too_large(format!("must have at most {KEYS_MAX} keys")));
        }
        self.out.push(b'{');
        // The map is ordered by UTF-8; only beyond ASCII does RFC 8785 differ.
        if value.fields.keys().all(|key| key.is_ascii()) {
            for (n, (key, value)) in value.fields.iter().enumerate() {
                self.member(n, key, value, depth)?;
            }
        } else {
            let mut members: Vec<_> = value.fields.iter().collect();
            members.sort_by(|(a, _), (b, _)| compare_keys(a, b));
            for (n, (key, value)) in members.into_iter().enumerate() {
                self.member(n, key, value, depth)?;
            }
        }
        self.out.push(b'}');
        Ok(())
    }

    fn member(&mut self, n: usize, key: &str, value: &Value, depth: usize) -> Result<(), Fault> {
        if n > 0 {
            self.out.push(b',');
        }
        self.text(key)?;
        self.out.push(b':');
        self.value(value, depth)
    }

    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Fault> {
        match &value.kind {
            // An unset value reads as null, as in the JSON mapping.
            None | Some(Kind::NullValue(_)) => self.out.extend_from_slice(b"null"),
            Some(Kind::BoolValue(value)) => value.write(&mut self.out),
            Some(Kind::NumberValue(value)) => {
                if !value.is_finite() {
                    return Err((Reason::FieldInvalid, "must not hold NaN or an infinity".into()));
                }
                if value.fract() == 0.0 && value.abs() >= EXACT_MAX {
                    let what =
                        "must not hold integers of 2^53 or more as numbers: send them as text";
                    return Err((Reason::NumberNotExact, what.into()));
                }
                value.write(&mut self.out);
            }
            Some(Kind::StringValue(value)) => self.text(value)?,
            Some(Kind::StructValue(value)) => self.object(value, depth + 1)?,
            Some(Kind::ListValue(ListValue { values })) => {
                if depth + 1 > DEPTH_MAX {
                    return Err(too_large(format!("must be at most {DEPTH_MAX} levels deep")));
                }
                self.out.push(b'[');
                for (n, value) in values.iter().enumerate() {
                    if n > 0 {
                        self.out.push(b',');
                    }
                    self.value(value, depth + 1)?;
                }
                self.out.push(b']');
            }
        }
        if self.out.len() > BYTES_MAX {
            return Err(too_large(format!("must be at most {BYTES_MAX} bytes of JSON")));
        }
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

/// Canonical text of a map of texts.
pub fn of_strings(map: &BTreeMap<String, String>) -> Json {
    let mut members: Vec<_> = map.iter().collect();
    members.sort_by(|(a, _), (b, _)| compare_keys(a, b));
    let mut out = vec![b'{'];
    for (n, (key, value)) in members.into_iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        write_string(key, &mut out);
        out.push(b':');
        write_string(value, &mut out);
    }
    out.push(b'}');
    Json::from_canonical(out)
}

/// Canonical text of a value that is already checked.
pub fn of_value(value: &serde_json::Value) -> Json {
    let mut out = Vec::new();
    write_value(value, &mut out);
    Json::from_canonical(out)
}

/// The Struct again. Stored JSON is always an object here; anything else reads as an empty one.
pub fn to_struct(json: &Json) -> Option<Struct> {
    let mut deserializer = serde_json::Deserializer::from_slice(json.text());
    let value = ToValue.deserialize(&mut deserializer).ok()?;
    match value.kind {
        Some(Kind::StructValue(fields)) => Some(fields),
        _ => Some(Struct::default()),
    }
}

/// The same, but nothing where the object is empty, as it is where a caller gave none.
pub fn to_optional_struct(json: &Json) -> Option<Struct> {
    if json.text() == b"{}" { None } else { to_struct(json) }
}

/// A map of texts again.
pub fn to_strings(json: &Json) -> BTreeMap<String, String> {
    if json.text() == b"{}" {
        return BTreeMap::new();
    }
    serde_json::from_slice(json.text()).unwrap_or_default()
}

/// A value of a shape of ours, as [`of_value`] stored it; empty where the text is older than the shape.
pub fn parsed<T: Default + serde::de::DeserializeOwned>(json: &Json) -> T {
    match json.text() {
        b"{}" | b"[]" => T::default(),
        text => serde_json::from_slice(text).unwrap_or_default(),
    }
}

/// Builds protobuf values straight from the text, without a tree in between: this runs for every record read.
struct ToValue;

impl<'de> DeserializeSeed<'de> for ToValue {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

fn of_kind(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

impl<'de> Visitor<'de> for ToValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(of_kind(Kind::BoolValue(value)))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(of_kind(Kind::NumberValue(value as f64)))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(of_kind(Kind::NumberValue(value as f64)))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(of_kind(Kind::NumberValue(value)))
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(of_kind(Kind::StringValue(value.to_owned())))
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(of_kind(Kind::StringValue(value)))
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(of_kind(Kind::NullValue(0)))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(ToValue)? {
            values.push(value);
        }
        Ok(of_kind(Kind::ListValue(ListValue { values })))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut fields = BTreeMap::new();
        while let Some(key) = members.next_key::<String>()? {
            fields.insert(key, members.next_value_seed(ToValue)?);
        }
        Ok(of_kind(Kind::StructValue(Struct { fields })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(value: f64) -> Struct {
        Struct { fields: [("n".to_owned(), of_kind(Kind::NumberValue(value)))].into() }
    }

    #[test]
    fn round_trips_and_is_canonical() {
        let text = r#"{"a":[1,2.5,"x",null,true,{}],"b":{"c":"\u0001\"\\"},"é":-0.001}"#;
        let json = Json::from_canonical(text);
        let value = to_struct(&json).unwrap();
        let again = from_struct(&value).unwrap();
        assert_eq!(again, json);
        assert_eq!(to_struct(&again).unwrap(), value);
    }

    #[test]
    fn refuses_what_cannot_be_kept() {
        for (value, reason) in [
            (number(f64::NAN), Reason::FieldInvalid),
            (number(f64::INFINITY), Reason::FieldInvalid),
            (number(9_007_199_254_740_992.0), Reason::NumberNotExact),
            (number(-1e300), Reason::NumberNotExact),
        ] {
            assert_eq!(from_struct(&value).unwrap_err().0, reason);
        }
        assert!(from_struct(&number(9_007_199_254_740_991.0)).is_ok());
    }

    #[test]
    fn the_deepest_object_is_32_levels_deep() {
        let nested = |levels: usize| {
            let mut value = Struct::default();
            for _ in 1..levels {
                value =
                    Struct { fields: [("a".to_owned(), of_kind(Kind::StructValue(value)))].into() };
            }
            value
        };
        assert!(from_struct(&nested(32)).is_ok());
        assert_eq!(from_struct(&nested(33)).unwrap_err().0, Reason::JsonTooLarge);
    }
}
