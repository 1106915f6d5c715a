//! Embeddings go with what they are of, and come back with it.

use super::{Embedding, full_id};
use crate::store::change::advance;
use crate::store::child::{Move, Moved, resolve_back};
use crate::store::legal_hold::{self, Leaving};
use crate::store::log::Entry;
use crate::store::vector::LIST;
use crate::store::write::Tx;
use crate::{Result, queries};
use std::collections::{HashMap, HashSet};
use std::time::SystemTime;
use uuid::Uuid;

queries! { "embedding" {
    /// Live embeddings of what is named, locked: (kind, ids). Found by an index of their own, before they are put in
    /// order: where few embeddings are of anything, PostgreSQL would rather go through all of them in order.
    OF_LIVE(String, Vec<String>) -> Embedding =
        "SELECT {*} FROM embedding WHERE uid = ANY(ARRAY(SELECT e.uid FROM embedding AS e \
         WHERE e.of_kind = $1 AND e.of_id = ANY($2) AND e.delete_time IS NULL OFFSET 0)) \
         AND of_kind = $1 AND of_id = ANY($2) AND delete_time IS NULL ORDER BY id || '' FOR UPDATE";
    /// Those that were deleted together with it, locked: (kind, ids, times).
    OF_DELETED(String, Vec<String>, Vec<SystemTime>) -> Embedding =
        "SELECT {*} FROM embedding WHERE of_kind = $1 AND (of_id, delete_time) IN \
         (SELECT * FROM unnest($2::text[], $3::timestamptz[])) AND delete_time IS NOT NULL ORDER BY id FOR UPDATE";
} }

/// Deletes the embeddings of resources of one kind, or brings back those that went with them. One whose id has been taken
/// since stays deleted: what was recorded later stands for it.
pub async fn move_embeddings(tx: &Tx<'_>, kind: &str, moves: &[Move<'_>]) -> Result<Moved> {
    let (mut moved, mut rows) = (Moved::default(), Vec::new());
    let hide: Vec<String> =
        moves.iter().filter(|m| m.delete_time.is_some()).map(|m| m.id.to_owned()).collect();
    if !hide.is_empty() {
        let mine = tx.run(&OF_LIVE, &(kind.to_owned(), hide)).await?;
        let leaving: Vec<Leaving> = mine.iter().map(Leaving::of).collect();
        for (row, kept) in mine.into_iter().zip(legal_hold::kept(tx, &leaving).await?) {
            match kept {
                // Whatever keeps an embedding keeps what it is of.
                Some(error) => moved.refuse(row.of_id, error),
                None => rows.push(row),
            }
        }
    }
    let shown = moves.iter().filter(|m| m.delete_time.is_none());
    let (show, since): (Vec<String>, Vec<SystemTime>) =
        shown.filter_map(|m| Some((m.id.to_owned(), m.hidden_since?))).unzip();
    if !show.is_empty() {
        let mut hidden = tx.run(&OF_DELETED, &(kind.to_owned(), show, since)).await?;
        let ids = hidden.iter().map(|row| full_id(row.space_uid, &row.embedding_id)).collect();
        let mut used: HashSet<String> = tx.lock::<Embedding>(ids).await?.into_keys().collect();
        hidden.retain(|row| used.insert(row.id.clone()));
        rows.extend(hidden);
    }
    if rows.is_empty() {
        return Ok(moved);
    }
    let by_id: HashMap<&str, &Move<'_>> = moves.iter().map(|m| (m.id, m)).collect();
    for row in &mut rows {
        let Some(of) = by_id.get(row.of_id.as_str()) else { continue };
        row.meta.delete_time = of.delete_time;
        advance(row, of.author, tx.now);
        let action = if of.delete_time.is_some() { "DELETE" } else { "UNDELETE" };
        moved.add(row.of_id.clone(), Entry::of(row, action));
    }
    tx.save_meta(&rows).await?;
    let back: Vec<&Embedding> = rows.iter().filter(|row| row.meta.delete_time.is_none()).collect();
    if !back.is_empty() {
        // Indexes may have let go of their vectors meanwhile.
        let uids: Vec<Uuid> = back.iter().map(|row| row.meta.uid).collect();
        let digests: Vec<String> = back.iter().map(|row| row.vector_digest.clone()).collect();
        let spaces: Vec<Uuid> = back.iter().map(|row| row.space_uid).collect();
        super::homeless(tx, vec![back.iter().copied()]).await?;
        tx.run(&LIST, &(uids, digests, spaces)).await?;
        resolve_back(tx, back.into_iter()).await?;
    }
    Ok(moved)
}
