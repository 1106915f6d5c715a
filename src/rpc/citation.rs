//! Citations on the wire: which precedents a decision leans on.

use super::json;
use super::wire::{self, Fields};
use crate::pb;
use crate::store::canonical::Json;

/// The citations as they are stored.
pub fn read(fields: &mut Fields, citations: Vec<pb::Citation>) -> Json {
    let items = fields.list("citations", citations, wire::LIST_MAX, |fields, citation| {
        let pb::Citation { precedent_id, similarity, influence, search_receipt_id } = citation;
        let mut members = serde_json::Map::new();
        members.insert("precedent_id".into(), fields.id("precedent_id", precedent_id).into());
        if let Some(similarity) = similarity {
            members.insert(
                "similarity".into(),
                fields.number("similarity", similarity, -1.0, 1.0).into(),
            );
        }
        if let Some(influence) = influence {
            members.insert("influence".into(), fields.confidence("influence", influence).into());
        }
        if !search_receipt_id.is_empty() {
            let id = fields.id("search_receipt_id", search_receipt_id);
            members.insert("search_receipt_id".into(), id.into());
        }
        serde_json::Value::Object(members)
    });
    json::of_value(&serde_json::Value::Array(items))
}

/// What is stored, as it was given.
pub fn written(json: &Json) -> Vec<pb::Citation> {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Citation {
        precedent_id: String,
        similarity: Option<f64>,
        influence: Option<f64>,
        search_receipt_id: String,
    }
    let items: Vec<Citation> = json::parsed(json);
    items
        .into_iter()
        .map(|Citation { precedent_id, similarity, influence, search_receipt_id }| pb::Citation {
            precedent_id,
            similarity,
            influence,
            search_receipt_id,
        })
        .collect()
}
