//! What refers to blobs: a blob stays as long as a row here names it.

use super::Blob;
use crate::store::noun::Noun as _;
use crate::store::write::Tx;
use crate::{Result, queries};
use std::collections::HashMap;
use uuid::Uuid;

queries! { "blob_reference" {
    /// Rows of a kind refer to blobs: (blobs, kind, rows).
    REFER(Vec<Uuid>, String, Vec<Uuid>) -> () =
        "INSERT INTO blob_reference (blob_uid, kind, ref_uid) \
         SELECT u.blob_uid, $2, u.ref_uid FROM unnest($1::uuid[], $3::uuid[]) AS u (blob_uid, ref_uid)";
    /// Rows of a kind refer to nothing any more: (kind, rows).
    LET_GO(String, Vec<Uuid>) -> () = "DELETE FROM blob_reference WHERE kind = $1 AND ref_uid = ANY($2)";
} }

/// The live blobs of digests, which cannot be deleted until the transaction ends.
pub async fn hold(tx: &Tx<'_>, mut ids: Vec<String>) -> Result<HashMap<String, Blob>> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    // In one order, so that two transactions do not wait for each other.
    ids.sort_unstable();
    ids.dedup();
    let held = tx.run(Blob::facts().hold, &(ids,)).await?;
    let held = held.into_iter().map(|row| row.id).collect();
    let blobs = tx.run(Blob::get(), &(held,)).await?;
    Ok(blobs.into_iter().map(|blob| (blob.id.clone(), blob)).collect())
}

/// Notes that rows of a kind refer to blobs that are held: (blob, row).
pub async fn refer(tx: &Tx<'_>, kind: &str, all: Vec<(Uuid, Uuid)>) -> Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    let (blobs, rows) = all.into_iter().unzip();
    tx.run(&REFER, &(blobs, kind.to_owned(), rows)).await?;
    Ok(())
}

/// Notes that rows of a kind refer to nothing any more.
pub async fn let_go(tx: &Tx<'_>, kind: &str, rows: Vec<Uuid>) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    tx.run(&LET_GO, &(kind.to_owned(), rows)).await?;
    Ok(())
}
