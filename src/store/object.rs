//! Objects: keys over blobs, or over bytes that are kept elsewhere, each with a chain of versions (C17).
//!
//! A key has one row as long as it has versions, also while a delete marker is on top: the row is deleted then and lives
//! on with the next put. Whoever changes the versions of a key locks that row first.

pub mod delete;
pub mod put;
pub mod read;
pub mod statistics;
pub mod update;
pub mod upload;
pub mod walk;

use super::canonical::Json;
use super::child::Parent;
use super::filter::{Field, FieldKind};
use super::list::Listing;
use super::noun::Meta;
use super::object_version::ObjectVersion;
use super::write::Tx;
use crate::{Result, noun, queries};
use std::collections::HashMap;
use std::time::SystemTime;
use uuid::Uuid;

noun! {
    pub struct Object in "object" as object + [QUERIES, statistics::QUERIES] {
        /// Of the version on top, which is a delete marker while the object is deleted; empty where there is none.
        pub version_id: String,
        pub version_count: i64,
        /// When the version was made that the rest is from.
        pub last_modified: SystemTime,
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

    const PURGEABLE: &'static str = "d.version_count = 0";

    fn size_bytes(&self) -> usize {
        1024 + self.id.len() + self.location.len() + self.metadata.text().len()
    }
}

impl Parent for Object {}

pub static LISTING: Listing = Listing {
    kind: "object",
    table: "object",
    op: "object.LIST",
    fields: &[
        Field::new("key", "d.id", FieldKind::Text),
        Field::new("version_id", "d.version_id", FieldKind::Text),
        Field::new("size_bytes", "d.size_bytes", FieldKind::Int),
        Field::new("content_type", "d.content_type", FieldKind::Text),
        Field::new("storage_backend", "d.storage_backend", FieldKind::Text),
        Field::new("storage_class", "d.storage_class", FieldKind::Text),
        Field::new("digest", "d.digest", FieldKind::Text),
        Field::new("location", "d.location", FieldKind::Text),
        Field::new("store_etag", "d.store_etag", FieldKind::Text),
        Field::new("retention_class", "d.retention_class", FieldKind::Text),
        Field::new("subject_id", "d.subject_id", FieldKind::Text),
        Field::new("last_modified", "d.last_modified", FieldKind::Time),
        Field::new("version_count", "d.version_count", FieldKind::Int),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("update_time", "d.update_time", FieldKind::Time),
        Field::new("tags", "d.tags", FieldKind::Labels),
        Field::new("metadata", "d.metadata", FieldKind::Json),
    ],
};

queries! { "object" {
    /// The rows of keys that have versions, deleted or not, locked in the order of the keys.
    LOCK_CHAIN(Vec<String>) -> Object =
        "SELECT {*} FROM object WHERE id = ANY($1) AND version_count > 0 ORDER BY id FOR UPDATE";
    /// The same, as they are.
    CHAIN(Vec<String>) -> Object = "SELECT {*} FROM object WHERE id = ANY($1) AND version_count > 0";
    /// The version under another of the same key: (keys, ids).
    UNDER(Vec<String>, Vec<String>) -> ObjectVersion =
        "SELECT {d.*} FROM unnest($1::text[], $2::text[]) AS u (object_key, id) CROSS JOIN LATERAL \
         (SELECT v.* FROM object_version AS v WHERE v.object_key = u.object_key AND v.id <> u.id \
         AND v.delete_time IS NULL ORDER BY v.number DESC, v.uid DESC LIMIT 1) AS d";
} }

/// The object and the version that a change has made, or has taken away.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    pub object: Object,
    pub version: ObjectVersion,
}

impl Object {
    /// Of a key that has no versions yet: what the first of them has.
    fn new(key: String, uid: Uuid, version: &ObjectVersion) -> Self {
        let ObjectVersion {
            id: _,
            meta,
            object_key: _,
            number: _,
            delete_marker: _,
            comment: _,
            digest,
            size_bytes,
            content_type,
            storage_backend,
            storage_class,
            location,
            store_etag,
            store_version_id,
            metadata,
            tags,
            retention_class,
            subject_id,
        } = version.clone();
        Self {
            id: key,
            meta: Meta::new(uid),
            version_id: String::new(),
            version_count: 0,
            last_modified: meta.create_time,
            digest,
            size_bytes,
            content_type,
            storage_backend,
            storage_class,
            location,
            store_etag,
            store_version_id,
            metadata,
            tags,
            retention_class,
            subject_id,
        }
    }

    /// Takes over what a version has.
    fn show(&mut self, version: &ObjectVersion) {
        let shown = Self::new(self.id.clone(), self.meta.uid, version);
        let Self { meta, version_id, version_count, .. } = std::mem::replace(self, shown);
        (self.meta, self.version_id, self.version_count) = (meta, version_id, version_count);
    }

    fn is_live(&self) -> bool {
        self.meta.delete_time.is_none()
    }
}

/// The rows of keys that have versions, locked.
async fn lock_chains(tx: &Tx<'_>, mut keys: Vec<String>) -> Result<HashMap<String, Object>> {
    keys.sort_unstable();
    keys.dedup();
    let chains = tx.run(&LOCK_CHAIN, &(keys,)).await?;
    Ok(chains.into_iter().map(|object| (object.id.clone(), object)).collect())
}
