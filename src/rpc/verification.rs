//! Verifications on the wire.

use super::json;
use super::resource::{New, Resource};
use super::wire::{self, Fields};
use crate::pb;
use crate::store::noun::Noun;
use crate::store::verification::Verification;

crate::requests! { Verification:
    create CreateVerificationRequest(verification_id verification);
    batch BatchCreateVerificationsRequest(requests);
    get GetVerificationRequest(verification_id);
    list ListVerificationsRequest("create_time" by [("create_time", true)] of "d.claim_id" claim_id);
}

impl Resource for pb::Verification {
    type Row = Verification;
    const CHANGEABLE: &'static [&'static str] = &[];
    const NO_REPLACE: Option<&'static str> =
        Some("a verification never changes; verify again instead");

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    fn read(self, f: &mut Fields, New { id, meta }: New) -> Verification {
        let pb::Verification {
            id: _,
            etag: _,
            meta: _,
            claim_id,
            framework,
            result,
            confidence,
            evidence,
            processing_time,
            model_version,
            trace_id,
        } = self;
        Verification {
            id,
            meta,
            claim_id: f.id("claim_id", claim_id),
            framework: f.name("framework", framework, 50),
            result: f.object("result", result),
            confidence: f.confidence("confidence", confidence),
            evidence: f.object("evidence", evidence),
            processing_time_us: f.span_us("processing_time", processing_time),
            model_version: f.text("model_version", model_version, 50),
            trace_id: f.text("trace_id", trace_id, 255),
        }
    }
}

impl From<Verification> for pb::Verification {
    fn from(row: Verification) -> Self {
        let etag = row.etag();
        let Verification {
            id,
            meta,
            claim_id,
            framework,
            result,
            confidence,
            evidence,
            processing_time_us,
            model_version,
            trace_id,
        } = row;
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            claim_id,
            framework,
            result: json::to_optional_object(&result),
            confidence,
            evidence: json::to_optional_object(&evidence),
            processing_time: processing_time_us.map(wire::duration_us),
            model_version,
            trace_id,
        }
    }
}
