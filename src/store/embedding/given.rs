//! Embeddings that are given with the record that they are of, and written in its transaction.

use super::{Embedding, Written, full_id, homeless, inserts_of, write_all};
use crate::store::change::{Create, stamp};
use crate::store::log::{Entry, LogRow};
use crate::store::noun::Noun;
use crate::store::vector::Numbers;
use crate::store::write::{Applied, Change, Embeddings, Foreseen, Outcome, RowKey, Tx};
use crate::{Error, Result};
use futures_util::future::BoxFuture;
use std::time::SystemTime;

/// An embedding of a record that comes with it.
#[derive(Clone, Debug)]
pub struct Given {
    /// The record's place among those of the request, from 0.
    pub of: usize,
    pub row: Embedding,
    pub vector: Numbers,
    /// Its id is the record's.
    pub takes_id: bool,
}

impl Given {
    pub fn key(&self) -> RowKey {
        RowKey::new(&[Embedding::KIND, &self.row.id])
    }

    /// Its row, once it is known under which id the record is there.
    pub fn fitted(&self, record_id: &str) -> Embedding {
        let mut row = self.row.clone();
        row.of_id.replace_range(.., record_id);
        if self.takes_id {
            row.embedding_id.replace_range(.., record_id);
            row.id = full_id(row.space_uid, record_id);
        }
        row
    }
}

/// Creates rows with embeddings of them, all or none. Whatever holds for the rows where an id is taken, holds for the
/// embeddings.
pub struct CreateEmbedded<T> {
    pub create: Create<T>,
    pub embeddings: Vec<Given>,
}

impl<T: Noun> Change for CreateEmbedded<T> {
    type Answer = Vec<T>;

    const FORESEE: Option<fn(&[Applied<'_, Self>], SystemTime) -> Foreseen<Vec<T>>> = Some(foresee);

    fn must_look(&self) -> bool {
        self.embeddings.iter().any(|given| given.row.space_uid.is_nil())
    }

    fn touches(&self, rows: &mut Vec<RowKey>) {
        self.create.touches(rows);
        rows.extend(self.embeddings.iter().map(Given::key));
    }

    fn size_bytes(&self) -> usize {
        let embeddings = self.embeddings.iter().map(|given| given.row.size_bytes());
        self.create.size_bytes() + embeddings.sum::<usize>()
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        let mut about = self.create.about();
        about.extend(self.embeddings.iter().map(|given| (Embedding::KIND, given.row.id.as_str())));
        about
    }

    fn embeddings(&self) -> Embeddings {
        Embeddings::Written
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Vec<T>>>>> {
        Box::pin(async move {
            let rows = changes.iter().map(|a| a.change.embeddings.iter().map(|given| &given.row));
            let homeless = homeless(tx, rows.collect()).await?;
            let housed = changes.iter().zip(&homeless).filter(|(_, gone)| gone.is_none());
            let creates: Vec<_> = housed.map(|(applied, _)| created(applied)).collect();
            let mut made = Create::apply(tx, &creates).await?.into_iter();
            let mut outcomes = Vec::with_capacity(changes.len());
            for gone in homeless {
                outcomes.push(match gone {
                    Some(gone) => Outcome::Failed(gone),
                    None => {
                        made.next().ok_or_else(|| Error::internal("a create without a result"))?
                    }
                });
            }
            embed(tx, changes, &mut outcomes).await?;
            Ok(outcomes)
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Vec<T>> {
        self.create.rebuild(entries)
    }
}

fn created<'a, T>(applied: &Applied<'a, CreateEmbedded<T>>) -> Applied<'a, Create<T>> {
    Applied { change: &applied.change.create, caller: applied.caller }
}

fn foresee<T: Noun>(
    changes: &[Applied<'_, CreateEmbedded<T>>],
    now: SystemTime,
) -> Foreseen<Vec<T>> {
    let creates: Vec<_> = changes.iter().map(created).collect();
    let mut foreseen = Create::foresee(&creates, now);
    let (mut rows, mut vectors) = (Vec::new(), Vec::new());
    for (Applied { change, caller }, (_, entries)) in changes.iter().zip(&mut foreseen.outcomes) {
        for given in &change.embeddings {
            let row = stamp(&given.row, caller.acting(), now);
            entries.push(Entry::of(&row, "CREATE"));
            rows.push(row);
            vectors.push(&given.vector);
        }
    }
    if !rows.is_empty() {
        foreseen.inserts.extend(inserts_of(&rows.iter().collect::<Vec<_>>(), &vectors));
    }
    foreseen
}

/// Writes the embeddings of the records that were made.
async fn embed<T: Noun>(
    tx: &Tx<'_>,
    changes: &[Applied<'_, CreateEmbedded<T>>],
    outcomes: &mut [Outcome<Vec<T>>],
) -> Result<()> {
    let mut fitted = Vec::new();
    for (n, (outcome, Applied { change, .. })) in outcomes.iter().zip(changes).enumerate() {
        let Outcome::Done { answer, .. } = outcome else { continue };
        let rows = change.embeddings.iter().map(|given| {
            let record = answer.get(given.of).ok_or_else(|| Error::internal("no such record"))?;
            Ok(given.fitted(record.id()))
        });
        let rows: Vec<Embedding> = rows.collect::<Result<_>>()?;
        if !rows.is_empty() {
            fitted.push((n, rows));
        }
    }
    let writes: Vec<Written<'_>> = fitted
        .iter()
        .map(|(n, rows)| {
            let Applied { change, caller } = &changes[*n];
            let vectors = change.embeddings.iter().map(|given| &given.vector).collect();
            (rows.as_slice(), vectors, change.create.on_conflict, *caller)
        })
        .collect();
    let results = write_all(tx, &writes).await?;
    for ((n, _), result) in fitted.iter().zip(results) {
        let Outcome::Done { entries, .. } = &mut outcomes[*n] else { continue };
        match result {
            Ok(created) => entries.extend(created.traces().0),
            Err((error, dirty)) if dirty || !entries.is_empty() => {
                outcomes[*n] = Outcome::Spoiled(error);
            }
            Err((error, _)) => outcomes[*n] = Outcome::Failed(error),
        }
    }
    Ok(())
}
