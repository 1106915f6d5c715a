//! The built-in projection: the vectors in this database, written in the transaction of their record.

use super::follow::Target;
use super::{Counted, Held, Mode, Projection, Range};
use crate::store::caller::Caller;
use crate::store::embedding::{Embedding, WriteEmbeddings, WrittenEmbeddings};
use crate::store::log::{LogRow, hex};
use crate::store::noun::Noun;
use crate::store::snapshot::Snapshot;
use crate::store::vector::{Numbers, f32_le, keep};
use crate::store::vector_space::{FLOAT16, VectorSpace};
use crate::store::write::{Applied, Change, Embeddings, Outcome, RowKey, Tx};
use crate::{Error, Reason, Result, queries, row};
use futures_util::future::BoxFuture;
use half::f16;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use uuid::Uuid;

row! {
    /// A vector as PostgreSQL sends it: see [`numbers`]. NULL where the numbers stand in the column of another storage.
    pub struct Stored {
        pub uid: Uuid,
        pub version: i64,
        pub numbers: Option<Vec<u8>>,
    }
}

queries! { "projection_built_in" {
    /// Vectors of live embeddings of a space, or of all live spaces: those that a search finds.
    COUNT(Option<Uuid>) -> Counted =
        "SELECT count(*) AS rows FROM embedding AS d JOIN vector_space AS s ON s.uid = d.space_uid \
         JOIN embedding_vector AS x ON x.embedding_uid = d.uid AND x.digest = d.vector_digest \
         WHERE d.delete_time IS NULL AND (d.space_uid = $1 OR $1 IS NULL AND s.delete_time IS NULL)";
    /// The same with their numbers, in a range of uids: (space, after, up to, limit, FLOAT16).
    PAGE(Uuid, Uuid, Uuid, i64, bool) -> Stored =
        "SELECT d.uid, d.version, CASE WHEN $5 THEN public.halfvec_send(x.half) ELSE public.vector_send(x.vector) END \
         AS numbers FROM embedding AS d \
         JOIN embedding_vector AS x ON x.embedding_uid = d.uid AND x.digest = d.vector_digest \
         WHERE d.space_uid = $1 AND d.uid > $2 AND d.uid <= $3 AND d.delete_time IS NULL ORDER BY d.uid LIMIT $4";
    /// The same of some: (uids, FLOAT16).
    FIND(Vec<Uuid>, bool) -> Stored =
        "SELECT d.uid, d.version, CASE WHEN $2 THEN public.halfvec_send(x.half) ELSE public.vector_send(x.vector) END \
         AS numbers FROM unnest($1::uuid[]) AS u (uid) JOIN embedding AS d ON d.uid = u.uid \
         JOIN embedding_vector AS x ON x.embedding_uid = d.uid AND x.digest = d.vector_digest \
         WHERE d.delete_time IS NULL";
} }

/// The vectors in this database. They belong to their embeddings by a foreign key, and a search joins them by digest; so
/// there are none too many, and what can be wrong is that one is not there, or that its numbers are not those of the
/// digest under which it stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct BuiltIn;

impl Projection for BuiltIn {
    fn name(&self) -> &str {
        "built-in"
    }

    fn mode(&self) -> Mode {
        Mode::Transactional
    }

    /// What is seen of the log and of the vectors is of one moment, and what is written to them is of one transaction.
    fn position<'a>(&'a self, at: &'a Snapshot) -> BoxFuture<'a, Result<i64>> {
        Box::pin(async move { Ok(at.head) })
    }

    fn count<'a>(&'a self, at: &'a Snapshot, space: Option<Uuid>) -> BoxFuture<'a, Result<i64>> {
        Box::pin(async move {
            Ok(at.all(&COUNT, &(space,)).await?.first().map_or(0, |counted| counted.rows))
        })
    }

    fn page<'a>(
        &'a self,
        at: &'a Snapshot,
        space: &'a VectorSpace,
        range: Range,
    ) -> BoxFuture<'a, Result<Vec<Held>>> {
        Box::pin(async move {
            let Range { after, upto, limit } = range;
            let is_half = space.storage == FLOAT16;
            let stored = at.all(&PAGE, &(space.meta.uid, after, upto, limit, is_half)).await?;
            Ok(stored.into_iter().map(|stored| held(stored, is_half)).collect())
        })
    }

    fn find<'a>(
        &'a self,
        at: &'a Snapshot,
        space: &'a VectorSpace,
        uids: Vec<Uuid>,
    ) -> BoxFuture<'a, Result<Vec<Held>>> {
        Box::pin(async move {
            let is_half = space.storage == FLOAT16;
            let stored = at.all(&FIND, &(uids, is_half)).await?;
            Ok(stored.into_iter().map(|stored| held(stored, is_half)).collect())
        })
    }

    fn target(&self) -> Option<&dyn Target> {
        None
    }
}

fn held(Stored { uid, version, numbers: sent }: Stored, is_half: bool) -> Held {
    let numbers = sent.and_then(|sent| numbers(&sent, is_half));
    Held { uid, version, digest: numbers.map(|numbers| digest(&numbers)).unwrap_or_default() }
}

/// SHA-256 of numbers, 4 bytes each, little endian; 64 hex digits.
pub(super) fn digest(numbers: &[f32]) -> String {
    hex(&Sha256::digest(f32_le(numbers)))
}

/// The numbers of a vector as pgvector sends it: how many there are, two bytes of nothing, and each, all with the
/// highest byte first. `None` where it is not that.
pub(super) fn numbers(sent: &[u8], is_half: bool) -> Option<Vec<f32>> {
    let (head, rest) = sent.split_first_chunk::<4>()?;
    let expected = usize::from(u16::from_be_bytes([head[0], head[1]]));
    let numbers: Vec<f32> = if is_half {
        let (whole, rest) = rest.as_chunks::<2>();
        rest.is_empty().then(|| {
            whole.iter().map(|two| f16::from_bits(u16::from_be_bytes(*two)).to_f32()).collect()
        })?
    } else {
        let (whole, rest) = rest.as_chunks::<4>();
        rest.is_empty().then(|| whole.iter().map(|four| f32::from_be_bytes(*four)).collect())?
    };
    (numbers.len() == expected).then_some(numbers)
}

/// The uids of embeddings whose vectors are not there, or not with the numbers that they should have.
async fn lost(tx: &Tx<'_>, is_half: bool, rows: &[Embedding]) -> Result<HashSet<Uuid>> {
    let uids = rows.iter().map(|row| row.meta.uid).collect();
    let stored = tx.run(&FIND, &(uids, is_half)).await?;
    let held: HashSet<(Uuid, String)> = stored
        .into_iter()
        .map(|stored| held(stored, is_half))
        .map(|held| (held.uid, held.digest))
        .collect();
    let wanted = rows.iter().map(|row| (row.meta.uid, row.vector_digest.clone()));
    Ok(wanted.filter(|wanted| !held.contains(wanted)).map(|(uid, _)| uid).collect())
}

/// Writes embeddings with their vectors, and brings back the vectors that those which are already as they should be have
/// lost.
pub struct SyncEmbeddings(pub WriteEmbeddings);

impl SyncEmbeddings {
    /// Fails where what stands for a vector has other numbers: it cannot be overwritten, because rows never change.
    async fn restore(&self, tx: &Tx<'_>, written: &WrittenEmbeddings) -> Result<Option<Error>> {
        let Self(WriteEmbeddings { vectors, .. }) = self;
        // They are of one space.
        let is_half = vectors.first().is_some_and(Numbers::is_half);
        let lost = lost(tx, is_half, &written.rows).await?;
        let pairs = written.rows.iter().map(|row| row.meta.uid).zip(vectors);
        let all: Vec<_> = pairs.filter(|(uid, _)| lost.contains(uid)).collect();
        keep(tx, &all).await?;
        let damaged = match all.is_empty() {
            true => lost,
            false => self::lost(tx, is_half, &written.rows).await?,
        };
        let is_held = |row: &&Embedding| !damaged.contains(&row.meta.uid);
        Ok(written.rows.iter().find(|row| !is_held(row)).map(|row| Error::Refused {
            reason: Reason::VectorDamaged,
            message: format!(
                "the vector that stands for {} \"{}\" has other numbers than its digest says: delete the \
                 embedding, and send it again",
                Embedding::KIND,
                row.id
            ),
            metadata: vec![("id", row.embedding_id.clone())],
        }))
    }
}

impl Change for SyncEmbeddings {
    type Answer = WrittenEmbeddings;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        self.0.touches(rows);
    }

    fn size_bytes(&self) -> usize {
        self.0.size_bytes()
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        self.0.about()
    }

    fn embeddings(&self) -> Embeddings {
        Embeddings::Written
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<WrittenEmbeddings>>>> {
        Box::pin(async move {
            let inner: Vec<Applied<'_, WriteEmbeddings>> = changes
                .iter()
                .map(|Applied { change, caller }: &Applied<'_, Self>| {
                    let caller: &Caller = caller;
                    Applied { change: &change.0, caller }
                })
                .collect();
            let mut outcomes = WriteEmbeddings::apply(tx, &inner).await?;
            for (outcome, Applied { change, .. }) in outcomes.iter_mut().zip(changes) {
                let Outcome::Done { answer, .. } = outcome else { continue };
                if answer.written == answer.rows.len() {
                    continue;
                }
                if let Some(damaged) = change.restore(tx, answer).await? {
                    *outcome = Outcome::Spoiled(damaged);
                }
            }
            Ok(outcomes)
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<WrittenEmbeddings> {
        self.0.rebuild(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_pgvector_sends_them() {
        let sent = [0, 2, 0, 0, 0x3f, 0x80, 0, 0, 0xc0, 0, 0, 0];
        assert_eq!(numbers(&sent, false), Some(vec![1.0, -2.0]));
        assert_eq!(numbers(&[0, 2, 0, 0, 0x3c, 0, 0xc0, 0], true), Some(vec![1.0, -2.0]));
        for broken in [&sent[..11], &sent[..8], &sent[..3], &[]] {
            assert_eq!(numbers(broken, false), None, "{broken:?}");
        }
    }

    #[test]
    fn a_digest_is_that_of_the_record() {
        let values = [0.1_f32, -2.5e-7, 3.0e8];
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(digest(&values), hex(&Sha256::digest(bytes)));
    }
}
