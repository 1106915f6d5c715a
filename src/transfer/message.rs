//! Messages by their descriptors, and their proto3 JSON.

use super::{Result, TransferError};
use crate::pb;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions, Value};
use serde_json::Value as Json;
use std::sync::LazyLock;

static POOL: LazyLock<std::result::Result<DescriptorPool, String>> =
    LazyLock::new(|| DescriptorPool::decode(pb::DESCRIPTOR_SET).map_err(|error| error.to_string()));

/// The protocol's descriptors.
pub fn pool() -> Result<&'static DescriptorPool> {
    POOL.as_ref().map_err(TransferError::internal)
}

/// proto3 JSON of a message: names in camel case, defaults left out.
pub fn to_json(message: &DynamicMessage) -> Result<Json> {
    message
        .serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new())
        .map_err(TransferError::internal)
}

/// A message from its JSON; what it has no field for is an error.
pub fn from_json(
    message: &MessageDescriptor,
    json: Json,
) -> std::result::Result<DynamicMessage, String> {
    DynamicMessage::deserialize(message.clone(), json).map_err(|error| error.to_string())
}

/// A request that this program has put together.
pub fn request(message: &MessageDescriptor, json: Json) -> Result<DynamicMessage> {
    from_json(message, json).map_err(TransferError::internal)
}

/// A text field; empty if it is not there.
pub fn text(message: &DynamicMessage, field: &str) -> String {
    let value = message.get_field_by_name(field);
    value.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// A message within a message.
pub fn inner(message: &DynamicMessage, field: &str) -> Option<DynamicMessage> {
    if !message.has_field_by_name(field) {
        return None;
    }
    message.get_field_by_name(field)?.as_message().cloned()
}

pub fn flag(message: &DynamicMessage, field: &str) -> bool {
    message.get_field_by_name(field).and_then(|value| value.as_bool()).unwrap_or_default()
}

pub fn set(message: &mut DynamicMessage, field: &str, value: Value) -> Result<()> {
    message.try_set_field_by_name(field, value).map_err(TransferError::internal)
}

/// Takes away what only the server sets.
pub fn disown(message: &mut DynamicMessage, owned: &[&str]) {
    for field in ["etag", "meta"].iter().chain(owned) {
        message.clear_field_by_name(field);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_resource_holds_survives_the_way_through_json() {
        let decision = pool().unwrap().get_message_by_name("casebook.v1.Decision").unwrap();
        let json = json!({
            "id": "d",
            "inputData": {"a": [1.0, 2.5, "x", null, true, {}], "b": {"c": null}, "é": 0.1},
            "avgConfidence": 0.0,
            "verdictScores": {"ALLOW": 0.1, "DENY": -3.0},
            "evidence": [{"kind": "RESOURCE_KIND_DOCUMENT", "id": "x", "version": "9007199254740993"}],
            "state": "DECISION_STATE_OVERRIDDEN",
            "decideTime": "2026-01-02T03:04:05.000006Z",
            "processingTime": "0.000001s",
            "labels": {"k": ""},
        });
        let message = from_json(&decision, json.clone()).unwrap();
        assert_eq!(to_json(&message).unwrap(), json);
        let again = from_json(&decision, to_json(&message).unwrap()).unwrap();
        assert_eq!(again, message);
    }

    #[test]
    fn what_is_no_field_is_refused_by_name() {
        let decision = pool().unwrap().get_message_by_name("casebook.v1.Decision").unwrap();
        for (json, named) in [
            (json!({"id": "d", "verdikt": "ALLOW"}), "verdikt"),
            (json!({"id": 5}), "5"),
            (json!([]), "sequence"),
        ] {
            let error = from_json(&decision, json).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn what_the_server_owns_is_taken_away() {
        let decision = pool().unwrap().get_message_by_name("casebook.v1.Decision").unwrap();
        let json = json!({"id": "d", "etag": "e", "meta": {"uid": "u"}, "caseHash": "h"});
        let mut message = from_json(&decision, json).unwrap();
        disown(&mut message, &["case_hash"]);
        assert_eq!(to_json(&message).unwrap(), json!({"id": "d"}));
        assert_eq!((text(&message, "id").as_str(), inner(&message, "meta")), ("d", None));
    }
}
