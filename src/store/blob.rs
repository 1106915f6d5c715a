//! Blobs: the rows that say which bytes a tenant has, and where in the store they are.

pub mod body;
pub mod change;
pub mod check;
pub mod content;
pub mod hashing;
pub mod reap;
pub mod reference;
pub mod rotate;
pub mod scrub;
pub mod session;

use super::blob_store::Stored;
use super::child::Parent;
use super::filter::{Field, FieldKind};
use super::list::Listing;
use super::log::hex;
use super::noun::Meta;
use crate::noun;
use sha2::{Digest, Sha256};
use std::time::SystemTime;
use uuid::Uuid;

noun! {
    pub struct Blob in "blob" as blob + [
        change::QUERIES, check::QUERIES, content::QUERIES, reap::QUERIES, reference::QUERIES, rotate::QUERIES, scrub::QUERIES,
        session::QUERIES, session::ROW_QUERIES
    ] {
        pub size_bytes: i64,
        pub content_type: String,
        /// [`READY`] to [`ERASED`].
        pub state: i16,
        /// The store that has the bytes: "s3", "local", "memory", "gcs" or "azure"; or [`content::DATABASE`].
        pub storage_backend: String,
        /// Where in the store they are. Never made up again from other facts. In the database a name of the attempt that
        /// brought them.
        pub store_key: String,
        /// How many bytes the store has.
        pub stored_size_bytes: i64,
        pub store_etag: String,
        pub store_version_id: String,
        /// [`body::PLAIN`] or [`body::SEGMENTS`].
        pub cipher: i16,
        /// Of the key that wraps the blob's own; empty where there is none.
        pub key_id: String,
        pub wrapped_key: Option<Vec<u8>>,
        /// What the stored bytes begin with, so that a range needs no look at their beginning.
        pub seal_header: Option<Vec<u8>>,
        pub verify_time: Option<SystemTime>,
    }

    fn size_bytes(&self) -> usize {
        1024
    }
}

impl Parent for Blob {}

/// The bytes are in the store.
pub const READY: i16 = 2;
/// Other bytes were found, or none.
pub const CORRUPT: i16 = 3;
/// Deleted, and the bytes are about to go.
pub const ERASING: i16 = 4;
/// They are gone.
pub const ERASED: i16 = 5;

const STATES: FieldKind = FieldKind::Enum {
    prefix: "BLOB_STATE_",
    names: &[("READY", READY), ("CORRUPT", CORRUPT), ("ERASING", ERASING), ("ERASED", ERASED)],
};

pub static LISTING: Listing = Listing {
    kind: "blob",
    table: "blob",
    op: "blob.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("size_bytes", "d.size_bytes", FieldKind::Int),
        Field::new("content_type", "d.content_type", FieldKind::Text),
        Field::new("state", "d.state", STATES),
        Field::new("storage_backend", "d.storage_backend", FieldKind::Text),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("update_time", "d.update_time", FieldKind::Time),
    ],
};

/// How the bytes lie in the store; see [`body`], the one place that acts on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seal {
    pub cipher: i16,
    pub key_id: String,
    pub wrapped_key: Option<Vec<u8>>,
    pub header: Option<Vec<u8>>,
}

/// An attempt at an upload: its own name, its own place in the store.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub uid: Uuid,
    pub tenant: String,
    pub store_key: String,
    /// Its bytes go into the database, together with their row: nothing of it can be left over.
    pub is_inline: bool,
}

impl Attempt {
    /// Bytes whose digest is known before the first of them goes to the store lie beside others of the same digest;
    /// longer ones, whose digest nobody has said, under the attempt's own name.
    pub fn new(tenant: &str, digest: Option<&str>) -> Self {
        let uid = Uuid::now_v7();
        let own = tenant_prefix(tenant);
        let store_key = match digest {
            Some(hex) => format!("{own}/sha256/{}/{hex}.{}", &hex[..2], uid.simple()),
            None => format!("{own}/stream/{}", uid.simple()),
        };
        Self { uid, tenant: tenant.to_owned(), store_key, is_inline: false }
    }

    /// Of bytes that are to lie in the database.
    pub fn inline(tenant: &str) -> Self {
        let uid = Uuid::now_v7();
        let store_key = format!("{}/{}", content::DATABASE, uid.simple());
        Self { uid, tenant: tenant.to_owned(), store_key, is_inline: true }
    }

    /// A part of an upload that goes on where it was cut.
    pub fn of_part(tenant: &str) -> Self {
        let uid = Uuid::now_v7();
        let store_key = format!("t/{}/upload/{}", tenant_hash(tenant), uid.simple());
        Self { uid, tenant: tenant.to_owned(), store_key, is_inline: false }
    }

    /// The row of a blob that this attempt has brought to the store of that kind, or is to bring into the database.
    pub fn blob(&self, digest: &str, bytes: Arrived, backend: &str) -> Blob {
        let backend = if self.is_inline { content::DATABASE } else { backend };
        let Arrived { size_bytes, stored_size_bytes, content_type, stored, seal } = bytes;
        let Seal { cipher, key_id, wrapped_key, header } = seal;
        Blob {
            id: digest.to_owned(),
            meta: Meta::new(self.uid),
            size_bytes: size_bytes as i64,
            content_type,
            state: READY,
            storage_backend: backend.to_owned(),
            store_key: self.store_key.clone(),
            stored_size_bytes: stored_size_bytes as i64,
            store_etag: stored.etag,
            store_version_id: stored.version_id,
            cipher,
            key_id,
            wrapped_key,
            seal_header: header,
            verify_time: None,
        }
    }
}

/// Bytes that are in the store, or on their way into the database.
pub struct Arrived {
    pub size_bytes: u64,
    pub stored_size_bytes: u64,
    pub content_type: String,
    pub stored: Stored,
    pub seal: Seal,
}

/// What all keys of a tenant in the store begin with.
pub fn tenant_prefix(tenant: &str) -> String {
    format!("t/{}", tenant_hash(tenant))
}

/// Names a tenant in the store without telling its name: 32 hexadecimal digits.
fn tenant_hash(tenant: &str) -> String {
    let digest = Sha256::new_with_prefix("casebook.tenant\n").chain_update(tenant).finalize();
    hex(&digest[..16])
}
