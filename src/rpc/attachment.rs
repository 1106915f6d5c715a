//! Attachments on the wire.

use super::blob::{digest, digest_of};
use super::json;
use super::resource::{New, Resource};
use super::wire::{self, Fields};
use crate::pb;
use crate::store::attachment::{AttachBlob, Attachment};
use crate::store::change::Modify;
use crate::store::child::Hide;
use crate::store::evidence::DeleteEvidence;
use crate::store::noun::{Meta, Noun};
use uuid::Uuid;

crate::requests! { Attachment:
    get GetAttachmentRequest(attachment_id);
    list ListAttachmentsRequest("create_time" by [("create_time", true)] of "d.decision_id" decision_id in "decision");
}

crate::requests!(@ask AttachBlobRequest -> AttachBlob,
|fields, on_conflict, attachment_id, decision_id, name, digest, content_type, metadata| {
    fields.no_replace(on_conflict, "an attachment never changes; detach it and attach another");
    let uid = Uuid::now_v7();
    let id = fields.new_id("attachment_id", attachment_id, uid);
    let given = pb::Attachment {
        decision_id,
        name,
        content_type,
        digest,
        metadata,
        ..pb::Attachment::default()
    };
    AttachBlob { row: given.read(fields, New { id, meta: Meta::new(uid) }), on_conflict }
});

crate::requests!(@ask DetachBlobRequest -> DeleteEvidence<Attachment>,
|fields, on_conflict, attachment_id, etag, allow_missing, force| {
    fields.only_fail(on_conflict);
    let id = fields.id("attachment_id", attachment_id);
    let etag = fields.etag("etag", etag);
    DeleteEvidence {
        hide: Hide(Modify::delete(id, etag, allow_missing)),
        cited_as: (!force).then_some(pb::ResourceKind::Attachment.into()),
        lets_go: true,
    }
});

impl Resource for pb::Attachment {
    type Row = Attachment;
    const CHANGEABLE: &'static [&'static str] = &[];

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    fn read(self, f: &mut Fields, New { id, meta }: New) -> Attachment {
        let pb::Attachment {
            id: _,
            etag: _,
            meta: _,
            decision_id,
            name,
            content_type,
            size_bytes: _,
            digest: given,
            metadata,
            object_key: _,
        } = self;
        if name.contains(|c: char| c.is_control() && c != '\0') {
            f.wrong("name", "must not contain control characters");
        }
        Attachment {
            id,
            meta,
            // The decision's, once it is known.
            decision_uid: Uuid::nil(),
            decision_id: f.id("decision_id", decision_id),
            name: f.name("name", name, 255),
            content_type: f.text("content_type", content_type, 255),
            // The blob's.
            size_bytes: 0,
            digest: digest(f, "digest", given),
            metadata: f.object("metadata", metadata),
            // Of the time of attaching.
            object_key: String::new(),
        }
    }
}

impl From<Attachment> for pb::Attachment {
    fn from(row: Attachment) -> Self {
        let etag = row.etag();
        let Attachment {
            id,
            meta,
            decision_uid: _,
            decision_id,
            name,
            content_type,
            size_bytes,
            digest,
            metadata,
            object_key,
        } = row;
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            decision_id,
            name,
            content_type,
            size_bytes,
            digest: Some(digest_of(&digest)),
            metadata: json::to_optional_object(&metadata),
            object_key,
        }
    }
}
