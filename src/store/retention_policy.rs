//! Retention policies: how long the records of one class are kept.

use super::child::Parent;
use super::filter::{Field, FieldKind};
use super::list::Listing;
use crate::noun;

noun! {
    pub struct RetentionPolicy in "retention_policy" as retention_policy {
        pub retention_class: String,
        pub keep_at_least_us: i64,
        pub description: String,
    }

    const ALSO_UNIQUE: &'static [&'static str] = &["retention_class"];
}

impl Parent for RetentionPolicy {}

pub static LISTING: Listing = Listing {
    kind: "retention_policy",
    table: "retention_policy",
    op: "retention_policy.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("retention_class", "d.retention_class", FieldKind::Text),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("update_time", "d.update_time", FieldKind::Time),
    ],
};
