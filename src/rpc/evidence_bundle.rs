//! Bundles of evidence on the wire.

use super::blob::{digest, digest_of};
use super::json;
use super::json_object::Object;
use super::resource::{New, Resource, read_new};
use super::wire::{self, Fields};
use crate::Reason;
use crate::pb;
use crate::store::change::Modify;
use crate::store::child::Hide;
use crate::store::evidence::{DeleteEvidence, UndeleteEvidence};
use crate::store::evidence_bundle::{Bytes, CreateEvidenceBundle, EvidenceBundle};
use crate::store::noun::Noun;
use uuid::Uuid;

const TYPE: &str = "decision";
const TYPE_BYTES_MAX: usize = 63;
const VERSION: &str = "1.0";

crate::requests! { EvidenceBundle:
    get GetEvidenceBundleRequest(evidence_bundle_id);
    list ListEvidenceBundlesRequest("create_time" by [("create_time", true)] of "d.decision_id" decision_id in "decision");
}

crate::requests!(@ask CreateEvidenceBundleRequest -> CreateEvidenceBundle,
|fields, on_conflict, evidence_bundle_id, evidence_bundle| {
    let row = read_new(fields, evidence_bundle_id, evidence_bundle, on_conflict);
    CreateEvidenceBundle { row, on_conflict, bytes: Bytes::There }
});

crate::requests!(@ask DeleteEvidenceBundleRequest -> DeleteEvidence<EvidenceBundle>,
|fields, on_conflict, evidence_bundle_id, etag, allow_missing, force| {
    fields.only_fail(on_conflict);
    let id = fields.id("evidence_bundle_id", evidence_bundle_id);
    let etag = fields.etag("etag", etag);
    DeleteEvidence {
        hide: Hide(Modify::delete(id, etag, allow_missing)),
        cited_as: (!force).then_some(pb::ResourceKind::EvidenceBundle.into()),
        lets_go: false,
    }
});

crate::requests!(@ask UndeleteEvidenceBundleRequest -> UndeleteEvidence<EvidenceBundle>,
|fields, on_conflict, evidence_bundle_id| {
    fields.only_fail(on_conflict);
    UndeleteEvidence::new(fields.id("evidence_bundle_id", evidence_bundle_id))
});

/// A type of evidence; empty means the usual one.
pub fn read_type(fields: &mut Fields, value: String) -> String {
    if value.is_empty() {
        return TYPE.to_owned();
    }
    let bytes = value.as_bytes();
    let sound = bytes.len() <= TYPE_BYTES_MAX
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b));
    fields.shaped("evidence_type", value, sound, "must match ^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
}

impl Resource for pb::EvidenceBundle {
    type Row = EvidenceBundle;
    const CHANGEABLE: &'static [&'static str] = &[];
    const NO_REPLACE: Option<&'static str> =
        Some("a bundle never changes; create another of the same type");

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    fn read(self, f: &mut Fields, New { id, meta }: New) -> EvidenceBundle {
        let pb::EvidenceBundle {
            id: _,
            etag: _,
            meta: _,
            decision_id,
            evidence_type,
            bundle_version,
            evidence_data,
            digest: given,
            metadata,
            object_key: _,
            size_bytes: _,
        } = self;
        if evidence_data.as_ref().is_none_or(Object::is_empty) {
            f.wrong("evidence_data", "must have at least one member");
        }
        let evidence_data = f.object("evidence_data", evidence_data);
        let hash = json::hash(&evidence_data);
        if let Some(given) = given {
            let given = digest(f, "digest", Some(given));
            let is_comparable = given.len() == hash.len() && evidence_data.text() != b"{}";
            if is_comparable && given != hash {
                let what = format!(
                    "must be that of evidence_data as canonical JSON, which is {hash} and not {given}"
                );
                f.wrong_because(Reason::DigestMismatch, "digest", what);
            }
        }
        let bundle_version =
            if bundle_version.is_empty() { VERSION.to_owned() } else { bundle_version };
        EvidenceBundle {
            id,
            meta,
            // The decision's, once it is known.
            decision_uid: Uuid::nil(),
            decision_id: f.id("decision_id", decision_id),
            evidence_type: read_type(f, evidence_type),
            bundle_version: f.text("bundle_version", bundle_version, 63),
            size_bytes: evidence_data.text().len() as i64,
            evidence_data,
            digest: hash,
            metadata: f.object("metadata", metadata),
            // Of the time of creation.
            object_key: String::new(),
        }
    }
}

impl From<EvidenceBundle> for pb::EvidenceBundle {
    fn from(row: EvidenceBundle) -> Self {
        let etag = row.etag();
        let EvidenceBundle {
            id,
            meta,
            decision_uid: _,
            decision_id,
            evidence_type,
            bundle_version,
            evidence_data,
            digest,
            metadata,
            object_key,
            size_bytes,
        } = row;
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            decision_id,
            evidence_type,
            bundle_version,
            evidence_data: json::to_optional_object(&evidence_data),
            digest: Some(digest_of(&digest)),
            metadata: json::to_optional_object(&metadata),
            object_key,
            size_bytes,
        }
    }
}
