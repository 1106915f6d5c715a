//! Every limit that a caller can meet, for GetCapabilities: those of the configuration and the fixed ones.

use super::settings::{Config, Group, SETTINGS};

/// One limit in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    pub name: &'static str,
    pub value: i64,
    /// `bytes`, `ms`, `days`, `percent` or `count`.
    pub unit: &'static str,
    pub description: &'static str,
    /// Whether the configuration can change it.
    pub configurable: bool,
}

macro_rules! fixed {
    ($($constant:ident, $name:literal = $value:expr, $unit:literal, $description:literal;)+) => {
        $(
            #[doc = $description]
            pub const $constant: usize = $value;
        )+

        const FIXED: &[(&str, usize, &str, &str)] =
            &[$(($name, $constant, $unit, $description),)+];
    };
}

fixed! {
    ID_MAX_BYTES, "id_max_bytes" = 255, "bytes", "The longest id of a resource or tenant.";
    OBJECT_KEY_MAX_BYTES, "object_key_max_bytes" = 1024, "bytes", "The longest key of an object.";
    REQUEST_ID_MAX_BYTES, "request_id_max_bytes" = 64, "bytes", "The longest request_id.";
    TAGS_MAX, "tags_max" = 64, "count", "The most tags of one resource.";
    TAG_MAX_BYTES, "tag_max_bytes" = 128, "bytes", "The longest tag.";
    TEXT_MAX_BYTES, "text_max_bytes" = 1024 * 1024, "bytes", "The longest content of a claim, a chunk or a training example.";
    LABELS_MAX, "labels_max" = 64, "count", "The most labels of one resource.";
    LABEL_KEY_MAX_BYTES, "label_key_max_bytes" = 63, "bytes", "The longest label key.";
    LABEL_VALUE_MAX_BYTES, "label_value_max_bytes" = 255, "bytes", "The longest label value.";
    METADATA_JSON_MAX_BYTES, "metadata_json_max_bytes" = 1024 * 1024, "bytes", "The largest JSON document of one field.";
    JSON_DEPTH_MAX, "json_depth_max" = 32, "count", "How deep a JSON document may nest.";
    JSON_KEYS_MAX, "json_keys_max" = 10_000, "count", "The most keys of one JSON document, at all depths together.";
    FILTER_DEPTH_MAX, "filter_depth_max" = 8, "count", "How deep a filter may nest.";
    FILTER_NODES_MAX, "filter_nodes_max" = 64, "count", "The most conditions and connectives of one filter.";
    FILTER_VALUES_MAX, "filter_values_max" = 1000, "count", "The most values of one filter.";
    SKIP_MAX, "skip_max" = 10_000, "count", "The most rows that a list skips; page tokens go further.";
    STATUS_DETAILS_MAX_BYTES, "status_details_max_bytes" = 6 * 1024, "bytes", "The most detail of one error; the rest is left out.";
    VIOLATIONS_MAX, "violations_max" = 20, "count", "The most field violations that one error names.";
    ORDER_BY_MAX, "order_by_max" = 3, "count", "The most keys of one order_by.";
    GROUP_BY_MAX, "group_by_max" = 3, "count", "The most keys of one group_by.";
}

impl Config {
    /// Every limit in force, configurable ones first.
    pub fn limits(&self) -> Vec<Limit> {
        let configured = SETTINGS.iter().filter(|setting| setting.group == Group::Limits);
        let configured = configured.filter_map(|setting| {
            Some(Limit {
                name: setting.name,
                value: self.number(setting.name)?,
                unit: match setting.unit {
                    unit @ ("bytes" | "ms" | "days" | "percent") => unit,
                    _ => "count",
                },
                description: setting.consequence,
                configurable: true,
            })
        });
        let fixed = FIXED.iter().map(|&(name, value, unit, description)| Limit {
            name,
            value: i64::try_from(value).unwrap_or(i64::MAX),
            unit,
            description,
            configurable: false,
        });
        configured.chain(fixed).collect()
    }
}
