//! Receipts of searches: what was asked, at which revision, and what was found. They never change.

use super::canonical::Json;
use super::child::Parent;
use super::filter::{Field, FieldKind};
use super::list::Listing;
use crate::noun;
use uuid::Uuid;

noun! {
    pub struct SearchReceipt in "search_receipt" as search_receipt {
        /// Full RPC name.
        pub method: String,
        /// The request as it was understood, a message of that method.
        pub request: Vec<u8>,
        /// SHA-256 of it, 64 hex digits.
        pub request_digest: String,
        /// The space that was searched; none without a vector.
        pub space_uid: Option<Uuid>,
        pub space_id: String,
        /// The embedding that stood for a vector.
        pub like_uid: Option<Uuid>,
        /// Best first, each an object.
        pub hits: Json,
        /// The number of the log that was read at.
        pub read_seq: i64,
        /// Whether every embedding was looked at.
        pub exact: bool,
    }

    fn size_bytes(&self) -> usize {
        512 + self.request.len() + self.hits.text().len()
    }
}

impl Parent for SearchReceipt {}

pub static LISTING: Listing = Listing {
    kind: "search_receipt",
    table: "search_receipt",
    op: "search_receipt.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("method", "d.method", FieldKind::Text),
        Field::new("vector_space_id", "d.space_id", FieldKind::Text),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("update_time", "d.update_time", FieldKind::Time),
    ],
};
