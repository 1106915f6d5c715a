//! Versions of objects: what a key stood for at a time, or that it stood for nothing.

use super::canonical::Json;
use super::child::Parent;
use super::filter::{Field, FieldKind};
use super::list::Listing;
use super::noun::Meta;
use crate::noun;
use uuid::Uuid;

noun! {
    pub struct ObjectVersion in "object_version" as object_version
    within "object" by object_key
    {
        pub object_key: String,
        /// The object's own version when this one came.
        pub number: i64,
        /// It has no content.
        pub delete_marker: bool,
        pub comment: String,
        /// Hexadecimal; empty for bytes that are kept elsewhere.
        pub digest: String,
        pub size_bytes: i64,
        pub content_type: String,
        pub storage_backend: String,
        pub storage_class: String,
        pub location: String,
        pub store_etag: String,
        pub store_version_id: String,
        pub metadata: Json,
        pub tags: Json,
        pub retention_class: String,
        pub subject_id: String,
    }

    fn size_bytes(&self) -> usize {
        1024 + self.object_key.len() + self.location.len() + self.comment.len() + self.metadata.text().len()
    }
}

impl Parent for ObjectVersion {}

impl ObjectVersion {
    /// Of a key, without content.
    pub fn new(object_key: String, uid: Uuid) -> Self {
        Self {
            id: uid.to_string(),
            meta: Meta::new(uid),
            object_key,
            number: 0,
            delete_marker: false,
            comment: String::new(),
            digest: String::new(),
            size_bytes: 0,
            content_type: String::new(),
            storage_backend: String::new(),
            storage_class: String::new(),
            location: String::new(),
            store_etag: String::new(),
            store_version_id: String::new(),
            metadata: Json::object(),
            tags: Json::object(),
            retention_class: String::new(),
            subject_id: String::new(),
        }
    }
}

pub static LISTING: Listing = Listing {
    kind: "object_version",
    table: "object_version",
    op: "object_version.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("key", "d.object_key", FieldKind::Text),
        Field::new("number", "d.number", FieldKind::Int),
        Field::new("delete_marker", "d.delete_marker", FieldKind::Bool),
        Field::new("comment", "d.comment", FieldKind::Text),
        Field::new("size_bytes", "d.size_bytes", FieldKind::Int),
        Field::new("content_type", "d.content_type", FieldKind::Text),
        Field::new("storage_backend", "d.storage_backend", FieldKind::Text),
        Field::new("storage_class", "d.storage_class", FieldKind::Text),
        Field::new("digest", "d.digest", FieldKind::Text),
        Field::new("retention_class", "d.retention_class", FieldKind::Text),
        Field::new("subject_id", "d.subject_id", FieldKind::Text),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("update_time", "d.update_time", FieldKind::Time),
        Field::new("tags", "d.tags", FieldKind::Labels),
        Field::new("metadata", "d.metadata", FieldKind::Json),
    ],
};
