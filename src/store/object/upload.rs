//! Uploading under a key: the blob and the object's version in one transaction (F363).

use super::Written;
use super::put::Put;
use crate::store::blob::Blob;
use crate::store::blob::change::{Keep, Kept};
use crate::store::change::rows_of;
use crate::store::log::LogRow;
use crate::store::write::{Applied, Change, Embeddings, Outcome, RowKey, Tx};
use crate::{Error, Result};
use futures_util::future::BoxFuture;

/// Takes over the bytes of an attempt, and puts them under a key.
pub struct KeepAs {
    pub keep: Keep,
    /// Over the blob of those bytes.
    pub put: Put,
}

/// Both of them. A repeated call whose first found the blob there has none to show.
pub type KeptAs = (Option<Kept>, Written);

impl Change for KeepAs {
    type Answer = KeptAs;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        self.keep.touches(rows);
        self.put.touches(rows);
    }

    fn size_bytes(&self) -> usize {
        self.keep.size_bytes() + self.put.size_bytes()
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        let mut about = self.keep.about();
        about.extend(self.put.about());
        about
    }

    fn embeddings(&self) -> Embeddings {
        self.put.embeddings()
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<KeptAs>>>> {
        Box::pin(async move {
            let keeps =
                changes.iter().map(|a| Applied { change: &a.change.keep, caller: a.caller });
            let keeps: Vec<Applied<'_, Keep>> = keeps.collect();
            let kept = Keep::apply(tx, &keeps).await?;
            let puts = kept.iter().zip(changes).filter_map(|(kept, Applied { change, caller })| {
                let is_kept = matches!(kept, Outcome::Done { .. });
                is_kept.then_some(Applied { change: &change.put, caller })
            });
            let puts: Vec<Applied<'_, Put>> = puts.collect();
            let mut written = match puts.is_empty() {
                true => Vec::new(),
                false => Put::apply(tx, &puts).await?,
            }
            .into_iter();
            let mut outcomes = Vec::with_capacity(changes.len());
            for kept in kept {
                outcomes.push(match kept {
                    Outcome::Failed(error) => Outcome::Failed(error),
                    Outcome::Spoiled(error) => Outcome::Spoiled(error),
                    Outcome::Done { answer: kept, entries, shown } => match written.next() {
                        None => return Err(Error::internal("an upload without its object")),
                        // The blob was written, and must not stay without what it was for.
                        Some(Outcome::Failed(error) | Outcome::Spoiled(error)) => {
                            Outcome::Spoiled(error)
                        }
                        Some(Outcome::Done { answer, entries: more, shown: also }) => {
                            let entries = entries.into_iter().chain(more).collect();
                            let shown = shown.into_iter().chain(also).collect();
                            Outcome::Done { answer: (Some(kept), answer), entries, shown }
                        }
                    },
                });
            }
            Ok(outcomes)
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<KeptAs> {
        let blob: Option<Blob> = rows_of(entries)?.pop();
        let kept = blob.map(|blob| Kept { blob, deduplicated: false });
        Ok((kept, self.put.rebuild(entries)?))
    }
}
