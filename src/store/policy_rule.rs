//! Policy rules: the governance rules that decisions were made under.

use super::canonical::Json;
use super::child::Parent;
use super::filter::{Field, FieldKind};
use super::list::Listing;
use crate::noun;

noun! {
    pub struct PolicyRule in "policy_rule" as policy_rule {
        pub name: String,
        pub rule_type: String,
        pub severity: String,
        pub description: String,
        pub definition: Json,
        pub active: bool,
        pub effective_time: Option<std::time::SystemTime>,
        pub retire_time: Option<std::time::SystemTime>,
    }

    fn size_bytes(&self) -> usize {
        512 + self.description.len() + self.definition.text().len()
    }
}

impl Parent for PolicyRule {}

pub static LISTING: Listing = Listing {
    kind: "policy_rule",
    table: "policy_rule",
    op: "policy_rule.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("name", "d.name", FieldKind::Text),
        Field::new("rule_type", "d.rule_type", FieldKind::Text),
        Field::new("severity", "d.severity", FieldKind::Text),
        Field::new("active", "d.active", FieldKind::Bool),
        Field::new("effective_time", "d.effective_time", FieldKind::Time).nullable(),
        Field::new("retire_time", "d.retire_time", FieldKind::Time).nullable(),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("update_time", "d.update_time", FieldKind::Time),
    ],
};
