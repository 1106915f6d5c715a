//! Chunks: the pieces of a document's text, one at each place.

use super::canonical::Json;
use super::change::{Modify, advance, modified_outcome, modify_all};
use super::child::{Move, Parent};
use super::document::Document;
use super::embedding::subject::move_embeddings;
use super::filter::{Field, FieldKind};
use super::list::Listing;
use super::log::{Entry, LogRow};
use super::noun::Noun;
use super::write::{Applied, Change, Outcome, RowKey, Tx};
use crate::{Error, Result, child, noun, queries};
use futures_util::future::BoxFuture;
use std::collections::HashMap;
use uuid::Uuid;

noun! {
    pub struct Chunk in "chunk" as chunk + [children::QUERIES, QUERIES]
    within "document" by document_id
    {
        pub document_uid: Uuid,
        pub document_id: String,
        pub chunk_index: i32,
        pub text: String,
        pub metadata: Json,
    }

    fn is_given(&self, field: &str) -> bool {
        field != "document_uid"
    }

    fn size_bytes(&self) -> usize {
        512 + self.text.len() + self.metadata.text().len()
    }
}

impl Parent for Chunk {}

pub static LISTING: Listing = Listing {
    kind: "chunk",
    table: "chunk",
    op: "chunk.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("document_id", "d.document_id", FieldKind::Text),
        Field::new("chunk_index", "d.chunk_index", FieldKind::Int),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("update_time", "d.update_time", FieldKind::Time),
        Field::new("metadata", "d.metadata", FieldKind::Json),
    ],
};

child!(Chunk in "chunk" of document_id);

queries! { "chunk" {
    /// Live chunks at places, locked: (documents, indexes).
    AT(Vec<Uuid>, Vec<i32>) -> Chunk =
        "SELECT {*} FROM chunk WHERE (document_uid, chunk_index) IN (SELECT * FROM unnest($1::uuid[], $2::int[])) \
         AND delete_time IS NULL FOR UPDATE";
    /// Live chunks from a place on, locked: (documents, indexes).
    FROM(Vec<Uuid>, Vec<i32>) -> Chunk =
        "SELECT {d.*} FROM unnest($1::uuid[], $2::int[]) AS t (uid, first_index) \
         JOIN chunk AS d ON d.document_uid = t.uid AND d.chunk_index >= t.first_index AND d.delete_time IS NULL \
         FOR UPDATE OF d";
} }

/// Updates or deletes a chunk, whose document counts it.
pub struct ModifyChunk(pub Modify<Chunk>);

impl Change for ModifyChunk {
    type Answer = Option<Chunk>;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        self.0.touches(rows);
    }

    fn size_bytes(&self) -> usize {
        self.0.size_bytes
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        self.0.about()
    }

    /// Which document it belongs to is not known yet, and what else is written may replace it or count, too.
    fn is_alone(&self) -> bool {
        true
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Option<Chunk>>>>> {
        Box::pin(async move {
            let ids: Vec<String> = changes.iter().map(|a| a.change.0.id.clone()).collect();
            let found = tx.run(Chunk::get(), &(ids,)).await?;
            // The document first, as everybody does who locks both.
            let documents = found.into_iter().map(|chunk| chunk.document_id).collect();
            let mut documents = tx.lock::<Document>(documents).await?;
            let pairs: Vec<_> = changes.iter().map(|a| (&a.change.0, a.caller)).collect();
            let mut outcomes = Vec::with_capacity(changes.len());
            let mut counted = HashMap::new();
            let results = modify_all(tx, &pairs).await?;
            let gone = results.iter().zip(changes).filter_map(|(result, applied)| {
                let (row, _) = result.as_ref().ok()?.as_ref()?;
                let delete_time = Some(row.meta.delete_time?);
                let author = applied.caller.acting();
                Some(Move { id: &row.id, delete_time, hidden_since: None, author })
            });
            let gone: Vec<Move<'_>> = gone.collect();
            let (mut embedded, refused) =
                move_embeddings(tx, Chunk::KIND, &gone).await?.into_parts();
            let mut refused: HashMap<String, Error> = refused.into_iter().collect();
            for (result, Applied { change, caller }) in results.into_iter().zip(changes) {
                if let Some(error) = refused.remove(&change.0.id) {
                    outcomes.push(Outcome::Spoiled(error));
                    continue;
                }
                let modified = match result {
                    Ok(modified) => modified,
                    Err(error) => {
                        outcomes.push(Outcome::Failed(error));
                        continue;
                    }
                };
                let deleted = modified.as_ref().filter(|(row, _)| row.meta.delete_time.is_some());
                let document = match deleted {
                    None => None,
                    Some((row, _)) => match documents.get_mut(&row.document_id) {
                        Some(document) => {
                            document.total_chunks -= 1;
                            advance(document, caller.acting(), tx.now);
                            counted.insert(document.id.clone(), document.clone());
                            Some(Entry::of(document, "UPDATE"))
                        }
                        // It has come since we looked, under an id that was another document's or nobody's.
                        None => {
                            return Err(Error::Conflict(std::sync::Arc::from(Box::from(
                                "a chunk changed its document",
                            ))));
                        }
                    },
                };
                let mut outcome = modified_outcome(modified, change.0.action);
                if let Outcome::Done { entries, .. } = &mut outcome {
                    entries.extend(document);
                    let mine = embedded.extract_if(.., |(of, _)| *of == change.0.id);
                    entries.extend(mine.map(|(_, entry)| entry));
                }
                outcomes.push(outcome);
            }
            let counted: Vec<Document> = counted.into_values().collect();
            tx.save(&counted).await?;
            Ok(outcomes)
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Option<Chunk>> {
        self.0.rebuild(entries)
    }
}
