//! Canonical JSON (RFC 8785): the one form in which documents are stored, compared and hashed.

use crate::{Error, Result};
use bytes::Bytes;
use serde_json::{Map, Value};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use uuid::Uuid;

/// A JSON value as UTF-8 text. What a caller gave is canonical; what `jsonb` gives back is ordered its own way and
/// is made canonical again only where bytes matter.
#[derive(Clone, Debug)]
pub struct Json {
    text: Bytes,
    canonical: bool,
}

impl Json {
    /// Takes text that is already canonical.
    pub fn from_canonical(text: impl Into<Bytes>) -> Self {
        Self { text: text.into(), canonical: true }
    }

    pub fn object() -> Self {
        Self::from_canonical(Bytes::from_static(b"{}"))
    }

    pub fn array() -> Self {
        Self::from_canonical(Bytes::from_static(b"[]"))
    }

    /// The text, canonical or not: good for reading, not for hashing.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// The canonical text.
    pub fn canonical(&self) -> Bytes {
        if self.canonical {
            return self.text.clone();
        }
        // jsonb never holds anything but JSON, so this cannot fail on a stored value; an unreadable one stays as it is.
        match serde_json::from_slice::<Value>(&self.text) {
            Ok(value) => {
                let mut out = Vec::with_capacity(self.text.len());
                write_value(&value, &mut out);
                out.into()
            }
            Err(_) => self.text.clone(),
        }
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text || self.canonical() == other.canonical()
    }
}

impl<'a> FromSql<'a> for Json {
    fn from_sql(
        ty: &Type,
        raw: &'a [u8],
    ) -> std::result::Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        let text = if *ty == Type::JSONB {
            match raw {
                [1, text @ ..] => text,
                _ => return Err("jsonb of an unknown format".into()),
            }
        } else {
            raw
        };
        Ok(Self { text: Bytes::copy_from_slice(text), canonical: false })
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::JSON | Type::JSONB)
    }
}

impl ToSql for Json {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> std::result::Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        if *ty == Type::JSONB {
            out.extend_from_slice(&[1]);
        }
        out.extend_from_slice(&self.text);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::JSON | Type::JSONB)
    }

    to_sql_checked!();
}

/// Writes a value in canonical form: members sorted by UTF-16 code units, no white space, numbers as ECMAScript does.
pub fn write_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(value) => value.write(out),
        Value::Number(number) => number.as_f64().unwrap_or(f64::NAN).write(out),
        Value::String(text) => write_string(text, out),
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_value(item, out);
            }
            out.push(b']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by(|(a, _), (b, _)| compare_keys(a, b));
            out.push(b'{');
            for (i, (key, value)) in members.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_string(key, out);
                out.push(b':');
                write_value(value, out);
            }
            out.push(b'}');
        }
    }
}

/// The order of members: by UTF-16 code units, which for ASCII is the order of bytes.
pub fn compare_keys(a: &str, b: &str) -> std::cmp::Ordering {
    if a.is_ascii() && b.is_ascii() { a.cmp(b) } else { a.encode_utf16().cmp(b.encode_utf16()) }
}

/// Writes a JSON string with the escapes of RFC 8785, which are serde_json's.
pub fn write_string(text: &str, out: &mut Vec<u8>) {
    // Writing to memory cannot fail.
    let _ = serde_json::to_writer(out, text);
}

/// Cuts a time to what PostgreSQL keeps: whole microseconds.
pub fn to_micros(time: SystemTime) -> SystemTime {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => UNIX_EPOCH + Duration::from_micros(since.as_micros() as u64),
        Err(before) => {
            let nanos = before.duration().as_nanos();
            UNIX_EPOCH - Duration::from_micros(nanos.div_ceil(1000) as u64)
        }
    }
}

/// A column's value in a document.
pub trait Canonical {
    fn write(&self, out: &mut Vec<u8>);
    /// The value again; `None` when the JSON is of another type.
    fn read(value: &Value) -> Option<Self>
    where
        Self: Sized;
}

/// The members of a document.
pub fn parse_object(document: &[u8]) -> Result<Map<String, Value>> {
    serde_json::from_slice(document).map_err(Error::internal)
}

/// An object of named values, sorted by name. Names are ASCII, so the order of bytes is the order of RFC 8785.
pub fn object_of(mut fields: Vec<(&'static str, &dyn Canonical)>) -> Vec<u8> {
    fields.sort_unstable_by_key(|(name, _)| *name);
    let mut out = Vec::with_capacity(512);
    out.push(b'{');
    for (n, (name, value)) in fields.into_iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        write_string(name, &mut out);
        out.push(b':');
        value.write(&mut out);
    }
    out.push(b'}');
    out
}

/// One member of a document. A missing one reads as null, so that a column added later may be optional.
pub fn member<T: Canonical>(document: &Map<String, Value>, name: &str) -> Result<T> {
    T::read(document.get(name).unwrap_or(&Value::Null)).ok_or_else(|| {
        Error::internal(format!("a document's {name} has another type than its column"))
    })
}

impl Canonical for String {
    fn write(&self, out: &mut Vec<u8>) {
        write_string(self, out);
    }
    fn read(value: &Value) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }
}

impl Canonical for bool {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(if *self { b"true" } else { b"false" });
    }
    fn read(value: &Value) -> Option<Self> {
        value.as_bool()
    }
}

impl Canonical for f64 {
    fn write(&self, out: &mut Vec<u8>) {
        if self.is_finite() {
            out.extend_from_slice(ryu_js::Buffer::new().format_finite(*self).as_bytes());
        } else {
            // Refused at the edge; null keeps the document well-formed whatever happens.
            out.extend_from_slice(b"null");
        }
    }
    fn read(value: &Value) -> Option<Self> {
        value.as_f64()
    }
}

macro_rules! integers {
    ($($ty:ty)*) => {$(
        impl Canonical for $ty {
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(self.to_string().as_bytes());
            }
            fn read(value: &Value) -> Option<Self> {
                value.as_i64()?.try_into().ok()
            }
        }
    )*};
}
integers!(i16 i32 i64);

impl Canonical for Uuid {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(b'"');
        out.extend_from_slice(
            self.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes(),
        );
        out.push(b'"');
    }
    fn read(value: &Value) -> Option<Self> {
        value.as_str()?.parse().ok()
    }
}

/// As PostgreSQL reads `bytea` from text.
impl Canonical for Vec<u8> {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\"\\\\x");
        for byte in self {
            out.extend_from_slice(format!("{byte:02x}").as_bytes());
        }
        out.push(b'"');
    }
    fn read(value: &Value) -> Option<Self> {
        let digits = value.as_str()?.strip_prefix("\\x")?.as_bytes();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
            .collect()
    }
}

impl Canonical for Vec<i64> {
    fn write(&self, out: &mut Vec<u8>) {
        write_value(&Value::from(self.clone()), out);
    }
    fn read(value: &Value) -> Option<Self> {
        value.as_array()?.iter().map(Value::as_i64).collect()
    }
}

impl Canonical for SystemTime {
    fn write(&self, out: &mut Vec<u8>) {
        write_string(&rfc3339(*self), out);
    }
    fn read(value: &Value) -> Option<Self> {
        Some(OffsetDateTime::parse(value.as_str()?, &Rfc3339).ok()?.into())
    }
}

impl Canonical for Json {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.canonical());
    }
    fn read(value: &Value) -> Option<Self> {
        let mut out = Vec::new();
        write_value(value, &mut out);
        Some(Self::from_canonical(out))
    }
}

impl<T: Canonical> Canonical for Option<T> {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Some(value) => value.write(out),
            None => out.extend_from_slice(b"null"),
        }
    }
    fn read(value: &Value) -> Option<Self> {
        if value.is_null() { Some(None) } else { T::read(value).map(Some) }
    }
}

/// A time as RFC 3339 in UTC.
pub fn rfc3339(time: SystemTime) -> String {
    // Times are checked at the edge to lie in the years 1 to 9999, which is what the format can say.
    OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        let mut out = Vec::new();
        write_value(&serde_json::from_str(text).unwrap(), &mut out);
        String::from_utf8(out).unwrap()
    }

    /// The examples of RFC 8785, sections 3.2.2 and 3.2.3.
    #[test]
    fn follows_rfc_8785() {
        assert_eq!(
            canonical(
                r#"{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],
                "string":"\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}"#
            ),
            r#"{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}"#
        );
        assert_eq!(
            canonical(
                r#"{"\u20ac":1,"\r":2,"\ufb33":3,"1":4,"\ud83d\ude00":5,"\u0080":6,"\u00f6":7}"#
            ),
            "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"ö\":7,\"€\":1,\"😀\":5,\"\u{fb33}\":3}"
        );
    }

    #[test]
    fn stored_json_equals_what_was_given() {
        let given = Json::from_canonical(r#"{"a":1,"bb":[0.5,"x"]}"#);
        let stored =
            Json { text: Bytes::from_static(br#"{"bb": [0.5, "x"], "a": 1}"#), canonical: false };
        assert_eq!(given, stored);
        assert_ne!(given, Json::object());
    }

    #[test]
    fn times_are_cut_to_microseconds_in_both_directions() {
        let after = UNIX_EPOCH + Duration::new(1, 1_999);
        assert_eq!(to_micros(after), UNIX_EPOCH + Duration::new(1, 1_000));
        let before = UNIX_EPOCH - Duration::new(0, 1_500);
        assert_eq!(to_micros(before), UNIX_EPOCH - Duration::new(0, 2_000));
    }
}
