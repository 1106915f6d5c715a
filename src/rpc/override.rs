//! Overrides on the wire.

use super::decision::references_of;
use super::json;
use super::resource::{New, Resource, read_new};
use super::wire::{self, Fields};
use crate::pb;
use crate::store::noun::Noun;
use crate::store::r#override::{CreateOverride, Override};
use uuid::Uuid;

const JUSTIFICATION_CHARS: std::ops::RangeInclusive<usize> = 10..=10_000;

crate::requests! { Override:
    list ListOverridesRequest("create_time" by [("create_time", true)] of "d.decision_id" decision_id in "decision");
}

crate::requests!(@ask CreateOverrideRequest -> CreateOverride,
|fields, on_conflict, override_id, decision_id, r#override, decision_etag| {
    fields.only_fail(on_conflict);
    let mut given = fields.required("override", r#override);
    given.decision_id = fields.parent_id("override", "decision_id", decision_id, given.decision_id);
    let decision_etag = fields.etag("decision_etag", decision_etag);
    let row = read_new(fields, override_id, Some(given), on_conflict);
    CreateOverride::new(row, decision_etag)
});

impl Resource for pb::Override {
    type Row = Override;
    const CHANGEABLE: &'static [&'static str] = &[];

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    /// The caller's user stands in for a reviewer who is not named.
    fn read(self, f: &mut Fields, New { id, meta }: New) -> Override {
        let pb::Override {
            id: _,
            etag: _,
            meta: _,
            decision_id,
            original_outcome,
            proposed_outcome,
            justification,
            reason_category,
            reviewer_id,
            reviewer_name,
            reviewer_role,
            reviewer_email,
            urgent,
            priority,
            expire_time,
            stakeholder_input,
            supporting_documents,
            additional_context,
        } = self;
        let chars = justification.chars().count();
        if !JUSTIFICATION_CHARS.contains(&chars) {
            f.wrong(
                "justification",
                format!("must be 10 to 10000 characters long, and is {chars}"),
            );
        }
        if !(0..=10).contains(&priority) {
            f.wrong("priority", "must be from 0 to 10");
        }
        let reviewer_id = if reviewer_id.is_empty() { f.actor().to_owned() } else { reviewer_id };
        let original_outcome = if original_outcome.is_empty() {
            original_outcome
        } else {
            f.verdict("original_outcome", original_outcome)
        };
        Override {
            id,
            meta,
            decision_uid: Uuid::nil(),
            decision_id,
            original_outcome,
            proposed_outcome: f.verdict("proposed_outcome", proposed_outcome),
            justification: f.text("justification", justification, 40_000),
            reason_category: f.text("reason_category", reason_category, 63),
            reviewer_id: f.name("reviewer_id", reviewer_id, 255),
            reviewer_name: f.text("reviewer_name", reviewer_name, 255),
            reviewer_role: f.text("reviewer_role", reviewer_role, 255),
            reviewer_email: f.text("reviewer_email", reviewer_email, 255),
            urgent,
            priority,
            expire_time: f.time("expire_time", expire_time),
            stakeholder_input: f.text(
                "stakeholder_input",
                stakeholder_input,
                wire::LONG_TEXT_BYTES_MAX,
            ),
            supporting_documents: f.references("supporting_documents", supporting_documents),
            additional_context: f.object("additional_context", additional_context),
        }
    }
}

impl From<Override> for pb::Override {
    fn from(row: Override) -> Self {
        let etag = row.etag();
        let Override {
            id,
            meta,
            decision_uid: _,
            decision_id,
            original_outcome,
            proposed_outcome,
            justification,
            reason_category,
            reviewer_id,
            reviewer_name,
            reviewer_role,
            reviewer_email,
            urgent,
            priority,
            expire_time,
            stakeholder_input,
            supporting_documents,
            additional_context,
        } = row;
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            decision_id,
            original_outcome,
            proposed_outcome,
            justification,
            reason_category,
            reviewer_id,
            reviewer_name,
            reviewer_role,
            reviewer_email,
            urgent,
            priority,
            expire_time: expire_time.and_then(wire::timestamp),
            stakeholder_input,
            supporting_documents: references_of(&supporting_documents),
            additional_context: json::to_optional_object(&additional_context),
        }
    }
}
