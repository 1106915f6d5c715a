//! What refers to blobs: a blob stays as long as a row here names it.

use super::Blob;
use crate::store::Store;
use crate::store::caller::Caller;
use crate::store::write::Tx;
use crate::{Result, queries, row};
use std::collections::HashMap;
use std::sync::Arc;
use uuid::Uuid;

row! {
    /// How many rows refer to a blob.
    pub struct Counted {
        pub blob_uid: Uuid,
        pub count: i64,
    }
}

row! {
    /// A blob that something refers to.
    pub struct Referred {
        pub blob_uid: Uuid,
        pub kind: String,
    }
}

row! {
    /// A blob that something referred to.
    pub struct Freed {
        pub blob_uid: Uuid,
    }
}

queries! { "blob_reference" {
    /// Live blobs by their digests, locked as whoever begins to refer to them must lock them. In one order, so that two
    /// transactions do not wait for each other.
    HOLD(Vec<String>) -> Blob =
        "SELECT {*} FROM blob WHERE id = ANY($1) AND delete_time IS NULL ORDER BY id FOR SHARE";
    /// Rows of a kind refer to blobs: (blobs, kind, rows).
    REFER(Vec<Uuid>, String, Vec<Uuid>) -> () =
        "INSERT INTO blob_reference (blob_uid, kind, ref_uid) \
         SELECT u.blob_uid, $2, u.ref_uid FROM unnest($1::uuid[], $3::uuid[]) AS u (blob_uid, ref_uid)";
    /// Rows refer to nothing any more; tells to which blobs they did.
    LET_GO(Vec<Uuid>) -> Freed = "DELETE FROM blob_reference WHERE ref_uid = ANY($1) RETURNING blob_uid";
    /// Something that refers to each of the blobs.
    REFERRED(Vec<Uuid>) -> Referred =
        "SELECT DISTINCT ON (blob_uid) blob_uid, kind FROM blob_reference WHERE blob_uid = ANY($1) \
         ORDER BY blob_uid, kind";
    COUNT(Vec<Uuid>) -> Counted =
        "SELECT blob_uid, count(*) AS count FROM blob_reference WHERE blob_uid = ANY($1) GROUP BY blob_uid";
} }

/// The live blobs of digests, which cannot be deleted until the transaction ends.
pub async fn hold(tx: &Tx<'_>, mut digests: Vec<String>) -> Result<HashMap<String, Blob>> {
    if digests.is_empty() {
        return Ok(HashMap::new());
    }
    digests.sort_unstable();
    digests.dedup();
    let held = tx.run(&HOLD, &(digests,)).await?;
    Ok(held.into_iter().map(|blob| (blob.id.clone(), blob)).collect())
}

/// Notes that new rows of a kind refer to blobs that are held: (blob, row).
pub async fn refer(tx: &Tx<'_>, kind: &str, all: Vec<(Uuid, Uuid)>) -> Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    let (blobs, rows) = all.into_iter().unzip();
    tx.run(&REFER, &(blobs, kind.to_owned(), rows)).await?;
    Ok(())
}

/// Notes that rows refer to nothing any more. Tells to which blobs they did, one of several rows several times.
pub async fn let_go(tx: &Tx<'_>, rows: Vec<Uuid>) -> Result<Vec<Uuid>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let freed = tx.run(&LET_GO, &(rows,)).await?;
    Ok(freed.into_iter().map(|freed| freed.blob_uid).collect())
}

/// The blobs among these that something refers to, and of what kind one such thing is. The caller has locked them.
pub async fn referred(tx: &Tx<'_>, blobs: Vec<Uuid>) -> Result<HashMap<Uuid, String>> {
    let referred = tx.run(&REFERRED, &(blobs,)).await?;
    Ok(referred.into_iter().map(|by| (by.blob_uid, by.kind)).collect())
}

impl Store {
    /// How many rows refer to each of these blobs.
    pub async fn count_references(
        &self,
        caller: &Caller,
        blobs: Vec<Uuid>,
    ) -> Result<HashMap<Uuid, i64>> {
        let params = Arc::new((blobs,));
        let counted: Vec<Counted> = self
            .snapshot(caller, COUNT.name, move |at| {
                let params = Arc::clone(&params);
                Box::pin(async move {
                    let rows = at.all(&COUNT, &*params).await?;
                    at.end(rows).await
                })
            })
            .await?;
        Ok(counted.into_iter().map(|row| (row.blob_uid, row.count)).collect())
    }
}
