//! Several changes as one: all of them are made, in order, or none.

use super::caller::Caller;
use super::embedding::{Embedding, own_id};
use super::evidence_bundle::{Bytes, CreateEvidenceBundle};
use super::log::{Entry, LogRow};
use super::noun::Noun;
use super::write::{AnyChange, Applied, Change, Embeddings, Outcome, RowKey, Shown, Tx};
use crate::{Error, Result};
use futures_util::future::BoxFuture;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// One of the changes, whatever its type is.
#[derive(Clone)]
pub struct Step {
    change: Arc<dyn AnyChange>,
    /// Where it stands in the request: `operations[3].create_claim`.
    at: String,
}

impl Step {
    pub fn new<C: Change>(change: C, at: String) -> Self {
        Self { change: Arc::new(change), at }
    }

    /// The kind and id of the resource that it makes or changes; of several the first.
    pub fn about(&self) -> Option<(&'static str, &str)> {
        self.change.subjects().into_iter().next()
    }
}

#[derive(Clone)]
pub struct Transaction {
    pub steps: Vec<Step>,
}

impl Transaction {
    /// The bundles of evidence that it creates, each with the place of its step.
    pub fn bundles(&self) -> impl Iterator<Item = (usize, &CreateEvidenceBundle)> {
        let steps = self.steps.iter().enumerate();
        steps.filter_map(|(place, step)| Some((place, step.change.as_any().downcast_ref()?)))
    }

    /// An error of the step at that place.
    pub fn at(&self, place: usize, error: Error) -> Error {
        match self.steps.get(place) {
            Some(step) => error.at(&step.at),
            None => error,
        }
    }

    /// Says where the bytes of such a bundle are.
    pub fn set_bytes(&mut self, place: usize, bytes: Bytes) {
        let Some(step) = self.steps.get_mut(place) else { return };
        if let Some(bundle) = step.change.as_any().downcast_ref::<CreateEvidenceBundle>() {
            step.change = Arc::new(CreateEvidenceBundle { bytes, ..bundle.clone() });
        }
    }
}

impl Change for Transaction {
    /// For each step the version that it has left, if it was about any.
    type Answer = Vec<Option<Shown>>;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.extend(self.steps.iter().flat_map(|step| step.change.keys()));
    }

    fn size_bytes(&self) -> usize {
        self.steps.iter().map(|step| step.change.bytes()).sum()
    }

    fn is_alone(&self) -> bool {
        let does =
            |wanted| self.steps.iter().any(|step| step.change.does_to_embeddings() == wanted);
        self.steps.iter().any(|step| step.change.wants_to_be_alone())
            || does(Embeddings::Written) && does(Embeddings::TakenAlong)
    }

    fn embeddings(&self) -> Embeddings {
        let mut all = self.steps.iter().map(|step| step.change.does_to_embeddings());
        all.find(|does| *does != Embeddings::Untouched).unwrap_or_default()
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Self::Answer>>>> {
        Box::pin(async move {
            let mut outcomes = Vec::with_capacity(changes.len());
            for Applied { change, caller } in changes {
                outcomes.push(run(tx, &change.steps, caller).await?);
            }
            Ok(outcomes)
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Self::Answer> {
        let named: HashSet<(&str, &str)> =
            self.steps.iter().flat_map(|step| step.change.subjects()).collect();
        let mut left: Vec<&LogRow> = entries.iter().collect();
        // An id that the server chose is another one today. Entries stand in the order of the steps, so what was made
        // under an id that nobody names belongs to the first step that has none.
        let mut chosen: HashMap<(&str, &str), &str> = HashMap::new();
        let mut answers = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let mut first = None;
            for (n, (kind, id)) in step.change.subjects().into_iter().enumerate() {
                let then = chosen.get(&(kind, id)).copied().unwrap_or(id);
                let of_it = |row: &&LogRow| row.kind == kind && row.id == then;
                let unnamed = |row: &&LogRow| {
                    row.kind == kind && row.action == "CREATE" && !named.contains(&(kind, &*row.id))
                };
                // The name of its space may stand for another space today.
                let in_its_space = |row: &&LogRow| {
                    kind == Embedding::KIND && row.kind == kind && own_id(&row.id) == own_id(then)
                };
                let place = left
                    .iter()
                    .position(of_it)
                    .or_else(|| left.iter().position(in_its_space))
                    .or_else(|| left.iter().position(unnamed));
                let Some(place) = place else { continue };
                let row = left.remove(place);
                chosen.insert((kind, id), &row.id);
                if n == 0 {
                    let (id, uid, version) = (row.id.clone(), row.uid, row.version);
                    first = Some(Shown { kind, id, uid, version });
                }
            }
            answers.push(first);
        }
        Ok(answers)
    }
}

/// Makes the changes of one transaction in order. Neighbours of one kind go together, unless they share a row.
async fn run(tx: &Tx<'_>, steps: &[Step], caller: &Caller) -> Result<Outcome<Vec<Option<Shown>>>> {
    let (mut entries, mut shown): (Vec<Entry>, Vec<Shown>) = Default::default();
    let mut answer = Vec::with_capacity(steps.len());
    let mut deleted: HashSet<(&str, &str)> = HashSet::new();
    let mut rest = steps;
    while let Some(first) = rest.first() {
        let kind = first.change.kind();
        let mut keys: HashSet<RowKey> = HashSet::new();
        let together = rest.iter().take_while(|step| {
            let mine = step.change.keys();
            let apart = step.change.kind().key() == kind.key()
                && mine.iter().all(|key| !keys.contains(key));
            keys.extend(mine);
            apart
        });
        let (group, after) = rest.split_at(together.count().max(1));
        rest = after;
        let members = group.iter().map(|step| (step.change.as_any(), caller)).collect();
        let outcomes = kind.apply(tx, members).await?;
        if outcomes.len() != group.len() {
            return Err(Error::internal("a step was applied without an outcome"));
        }
        // Of the steps that went together, the ones behind a refused one may have written, too.
        let mut refused = None;
        for (step, outcome) in group.iter().zip(outcomes) {
            match outcome {
                Outcome::Done { answer: _, entries: new, shown: seen } => {
                    // What is deleted is told from what was deleted under its id before by the time.
                    let gone = step.about().filter(|about| {
                        new.iter().any(|e| e.action == "DELETE" && (e.kind, &*e.id) == *about)
                    });
                    if gone.is_some_and(|about| !deleted.insert(about)) {
                        let twice = Error::invalid("", "deletes the same id a second time");
                        refused.get_or_insert((step, twice, true));
                    }
                    answer.push(left(step, &new, &seen));
                    entries.extend(new);
                    shown.extend(seen);
                }
                Outcome::Failed(error) => {
                    refused.get_or_insert((step, error, false));
                }
                Outcome::Spoiled(error) => {
                    refused.get_or_insert((step, error, true));
                }
            }
        }
        if let Some((step, error, wrote)) = refused {
            let error = error.at(&step.at);
            // What a step behind it has spoiled is unknown, so anything but a lone refusal counts as written.
            let clean = entries.is_empty() && !wrote && group.len() == 1;
            return Ok(if clean { Outcome::Failed(error) } else { Outcome::Spoiled(error) });
        }
    }
    Ok(Outcome::Done { answer, entries, shown })
}

/// The version of the step's resource that is there after it.
fn left(step: &Step, entries: &[Entry], shown: &[Shown]) -> Option<Shown> {
    let (kind, id) = step.about()?;
    let new = entries.iter().find(|entry| entry.kind == kind && entry.id == id).map(|entry| {
        Shown { kind: entry.kind, id: entry.id.clone(), uid: entry.uid, version: entry.version }
    });
    new.or_else(|| shown.iter().find(|seen| seen.kind == kind && seen.id == id).cloned())
}
