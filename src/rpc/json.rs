//! Free JSON as canonical text: its limits, which every caller is told, and shapes of ours in it.

use super::json_object::{Object, of_json};
use crate::Reason;
use crate::store::canonical::{Json, compare_keys, write_string, write_value};
use crate::store::log::hex;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

pub const BYTES_MAX: usize = 1 << 20;
pub const DEPTH_MAX: usize = 32;
pub const KEYS_MAX: usize = 10_000;
/// From here on a double no longer tells neighbouring integers apart.
pub const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// Why free JSON is refused.
pub type Fault = (Reason, String);

/// SHA-256 of canonical text, hex: what tells whether two cases have the same input.
pub fn hash(json: &Json) -> String {
    hex(&Sha256::digest(json.canonical()))
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

/// Nothing where the object is empty, as it is where a caller gave none.
pub fn to_optional_object(json: &Json) -> Option<Object> {
    if json.text() == b"{}" { None } else { of_json(json) }
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
