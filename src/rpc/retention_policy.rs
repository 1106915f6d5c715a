//! Retention policies on the wire.

use super::resource::{New, Resource};
use super::wire::{self, Fields};
use crate::pb;
use crate::store::noun::Noun;
use crate::store::retention_policy::RetentionPolicy;

crate::requests! { RetentionPolicy:
    create CreateRetentionPolicyRequest(retention_policy_id retention_policy);
    get GetRetentionPolicyRequest(retention_policy_id);
    list ListRetentionPoliciesRequest("create_time" by [("create_time", true)]);
    update UpdateRetentionPolicyRequest(retention_policy);
    delete DeleteRetentionPolicyRequest(retention_policy_id);
}

impl Resource for pb::RetentionPolicy {
    type Row = RetentionPolicy;
    const CHANGEABLE: &'static [&'static str] = &["keep_at_least", "description"];
    const NO_REPLACE: Option<&'static str> = Some("use UpdateRetentionPolicy");

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    fn read(self, f: &mut Fields, New { id, meta }: New) -> RetentionPolicy {
        let pb::RetentionPolicy {
            id: _,
            etag: _,
            meta: _,
            retention_class,
            keep_at_least,
            description,
        } = self;
        RetentionPolicy {
            id,
            meta,
            retention_class: f.name("retention_class", retention_class, 63),
            keep_at_least_us: f.span_us("keep_at_least", keep_at_least).unwrap_or_default(),
            description: f.text("description", description, wire::LONG_TEXT_BYTES_MAX),
        }
    }
}

impl From<RetentionPolicy> for pb::RetentionPolicy {
    fn from(row: RetentionPolicy) -> Self {
        let etag = row.etag();
        let RetentionPolicy { id, meta, retention_class, keep_at_least_us, description } = row;
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            retention_class,
            keep_at_least: Some(wire::duration_us(keep_at_least_us)),
            description,
        }
    }
}
