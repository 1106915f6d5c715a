//! Documents: what was read, analysed and cut into chunks (C14).

use super::analysis::Analysis;
use super::canonical::Json;
use super::child::{self, Move, Moved, Parent};
use super::chunk::Chunk;
use super::filter::{Field, FieldKind};
use super::list::Listing;
use super::write::Tx;
use crate::{Result, noun};
use futures_util::future::BoxFuture;

noun! {
    pub struct Document in "document" as document {
        pub filename: String,
        pub original_filename: String,
        pub source_path: String,
        pub size_bytes: Option<i64>,
        pub mime_type: String,
        pub content_hash: String,
        pub total_chunks: i32,
        pub status: String,
        pub metadata: Json,
        pub labels: Json,
        pub owner_id: String,
        pub content: Json,
        pub retention_class: String,
        pub subject_id: String,
    }

    fn is_given(&self, field: &str) -> bool {
        field != "total_chunks"
    }

    fn size_bytes(&self) -> usize {
        512 + self.source_path.len() + self.metadata.text().len()
    }
}

pub static LISTING: Listing = Listing {
    kind: "document",
    table: "document",
    op: "document.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("filename", "d.filename", FieldKind::Text),
        Field::new("original_filename", "d.original_filename", FieldKind::Text),
        Field::new("source_path", "d.source_path", FieldKind::Text),
        Field::new("size_bytes", "d.size_bytes", FieldKind::Int).nullable(),
        Field::new("mime_type", "d.mime_type", FieldKind::Text),
        Field::new("content_hash", "d.content_hash", FieldKind::Text),
        Field::new("total_chunks", "d.total_chunks", FieldKind::Int),
        Field::new("status", "d.status", FieldKind::Text),
        Field::new("owner_id", "d.owner_id", FieldKind::Text),
        Field::new("retention_class", "d.retention_class", FieldKind::Text),
        Field::new("subject_id", "d.subject_id", FieldKind::Text),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("update_time", "d.update_time", FieldKind::Time),
        Field::new("labels", "d.labels", FieldKind::Labels),
        Field::new("metadata", "d.metadata", FieldKind::Json),
    ],
};

impl Parent for Document {
    fn move_children<'a>(tx: &'a Tx<'a>, moves: &'a [Move<'a>]) -> BoxFuture<'a, Result<Moved>> {
        Box::pin(async move {
            let mut moved = child::move_children::<Analysis>(tx, moves).await?;
            moved.extend(child::move_children::<Chunk>(tx, moves).await?);
            Ok(moved)
        })
    }
}
