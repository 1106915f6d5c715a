//! Writing chunks in bulk: many places of a document in one change, in as few statements as there are steps.

use super::caller::Caller;
use super::change::{OnConflict, advance, rows_of, stamp};
use super::child::Move;
use super::chunk::{self, Chunk};
use super::document::Document;
use super::embedding::given::Given;
use super::embedding::subject::move_embeddings;
use super::embedding::{Embedding, ID_BYTES_MAX, Written, homeless, write_all};
use super::legal_hold::{self, Leaving};
use super::log::{Entry, LogRow};
use super::noun::{Meta, Noun};
use super::write::{Applied, Change, Embeddings, Outcome, RowKey, Shown, Tx};
use crate::{Error, Reason, Result};
use futures_util::future::BoxFuture;
use std::collections::{HashMap, HashSet};
use uuid::Uuid;

/// Writes chunks of a document, all or none.
///
/// Under REPLACE the request says what stands at its places. A live chunk there gets the new text and metadata and
/// keeps its uid and its id; but if the caller gives another id, the chunk there is deleted, and a new one stands in its
/// place. What a request deletes goes first, so its ids are free for the request's own chunks: ids may change places.
pub struct WriteChunks {
    pub document_id: String,
    /// No two at one place, and no two with one id.
    pub rows: Vec<Chunk>,
    pub on_conflict: OnConflict,
    /// Deletes what stands from here on and is not in `rows`.
    pub delete_from_index: Option<i32>,
    /// Of the rows. Whatever holds for chunks where an id is taken, holds for them.
    pub embeddings: Vec<Given>,
}

/// What became of chunks.
pub struct WrittenChunks {
    /// In the order of the request.
    pub chunk_ids: Vec<String>,
    /// The document's.
    pub total_chunks: i32,
    /// How many are new or replaced.
    pub written: usize,
}

impl WriteChunks {
    /// Whether chunks may go that it does not name, or that have other ids than those that take their places.
    fn deletes(&self) -> bool {
        let chosen_by_server = |row: &Chunk| row.id == row.meta.uid.to_string();
        self.delete_from_index.is_some()
            || self.on_conflict == OnConflict::Replace && !self.rows.iter().all(chosen_by_server)
    }
}

impl Change for WriteChunks {
    type Answer = WrittenChunks;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.push(RowKey::new(&[Document::KIND, &self.document_id]));
        rows.extend(self.embeddings.iter().map(Given::key));
    }

    /// An embedding that takes the id of a chunk that is there already: nobody knows yet which that is.
    /// Nor which chunks go, and their embeddings with them, where others come at once.
    fn is_alone(&self) -> bool {
        let chosen_by_server = |row: &Chunk| row.id == row.meta.uid.to_string();
        let deletes = self.deletes() && !self.embeddings.is_empty();
        deletes
            || self.on_conflict != OnConflict::Fail
                && self.embeddings.iter().any(|given| {
                    given.takes_id && self.rows.get(given.of).is_some_and(chosen_by_server)
                })
    }

    fn embeddings(&self) -> Embeddings {
        match (self.deletes(), self.embeddings.is_empty()) {
            (true, _) => Embeddings::TakenAlong,
            (false, false) => Embeddings::Written,
            (false, true) => Embeddings::Untouched,
        }
    }

    fn size_bytes(&self) -> usize {
        let embeddings = self.embeddings.iter().map(|given| given.row.size_bytes());
        512 + self.rows.iter().map(Chunk::size_bytes).chain(embeddings).sum::<usize>()
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        let chunks = self.rows.iter().map(|row| (Chunk::KIND, row.id.as_str()));
        let embeddings = self.embeddings.iter();
        let embeddings = embeddings.map(|given| (Embedding::KIND, given.row.id.as_str()));
        chunks.chain(embeddings).collect()
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<WrittenChunks>>>> {
        Box::pin(async move {
            let ids = changes.iter().map(|a| a.change.document_id.clone()).collect();
            let mut documents = tx.lock::<Document>(ids).await?;
            let works = changes.iter().map(|Applied { change, caller }| {
                let document = documents.remove(&change.document_id)?;
                Some(Work::new(change, caller, document, tx))
            });
            let mut works: Vec<Option<Work>> = works.collect();
            house(tx, &mut works).await?;
            write(tx, &mut works.iter_mut().flatten().collect::<Vec<_>>()).await?;
            hold_back(tx, works.iter_mut().flatten()).await?;
            for work in works.iter_mut().flatten() {
                if work.goes_on() && !work.gone.is_empty() {
                    work.unembed(tx).await?;
                }
            }
            embed(tx, &mut works.iter_mut().flatten().collect::<Vec<_>>()).await?;
            let outcomes = works.into_iter().zip(changes).map(|(work, applied)| match work {
                Some(work) => work.outcome(),
                None => {
                    let id = &applied.change.document_id;
                    Outcome::Failed(Error::not_found(Document::KIND, id))
                }
            });
            Ok(outcomes.collect())
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<WrittenChunks> {
        let missing = || Error::internal("a replayed answer lacks a row");
        let document: Document = rows_of(entries)?.pop().ok_or_else(missing)?;
        let chunks: Vec<Chunk> = rows_of(entries)?;
        let live = chunks.into_iter().filter(|chunk| chunk.meta.delete_time.is_none());
        let mut at: HashMap<i32, String> = live.map(|row| (row.chunk_index, row.id)).collect();
        let chunk_ids = self.rows.iter().map(|row| at.remove(&row.chunk_index).ok_or_else(missing));
        // The call's own entries are the last ones; if it made none, its receipt says that nothing was written.
        let is_own = |entry: &LogRow, last: &LogRow| {
            (entry.time, &entry.request_id) == (last.time, &last.request_id)
                && entry.kind == Chunk::KIND
                && entry.action != "DELETE"
        };
        let last = entries.last().ok_or_else(missing)?;
        Ok(WrittenChunks {
            chunk_ids: chunk_ids.collect::<Result<_>>()?,
            total_chunks: document.total_chunks,
            written: entries.iter().filter(|entry| is_own(entry, last)).count(),
        })
    }
}

/// Refuses the works whose embeddings have no space to come into.
async fn house(tx: &Tx<'_>, works: &mut [Option<Work<'_>>]) -> Result<()> {
    let mut works: Vec<&mut Work<'_>> = works.iter_mut().flatten().collect();
    let changes = works.iter().map(|work| work.change);
    let rows = changes.map(|change| change.embeddings.iter().map(|given| &given.row)).collect();
    for (work, gone) in works.iter_mut().zip(homeless(tx, rows).await?) {
        if let Some(gone) = gone {
            work.refuse(gone);
        }
    }
    Ok(())
}

/// Writes the embeddings of the works' chunks, whose ids are known by now.
async fn embed(tx: &Tx<'_>, works: &mut [&mut Work<'_>]) -> Result<()> {
    let mut fitted: Vec<(usize, Vec<Embedding>)> = Vec::new();
    for (n, work) in works.iter_mut().enumerate() {
        if !work.goes_on() || work.change.embeddings.is_empty() {
            continue;
        }
        match work.fitted() {
            Ok(rows) => fitted.push((n, rows)),
            Err(error) => work.refuse(error),
        }
    }
    let writes: Vec<Written<'_>> = fitted
        .iter()
        .map(|(n, rows)| {
            let Work { change, caller, .. } = &works[*n];
            let vectors = change.embeddings.iter().map(|given| &given.vector).collect();
            (rows.as_slice(), vectors, change.on_conflict, *caller)
        })
        .collect();
    let results = write_all(tx, &writes).await?;
    for ((n, _), result) in fitted.iter().zip(results) {
        let work = &mut works[*n];
        match result {
            Ok(created) => work.embedded = created.traces().0,
            Err((error, dirty)) => {
                work.wrote |= dirty;
                work.refuse(error);
            }
        }
    }
    Ok(())
}

/// Refuses the works that delete what a hold keeps.
async fn hold_back<'w, 'a: 'w>(
    tx: &Tx<'_>,
    works: impl Iterator<Item = &'w mut Work<'a>>,
) -> Result<()> {
    let mut works: Vec<&mut Work<'_>> = works.filter(|work| !work.gone.is_empty()).collect();
    let leaving = works.iter().flat_map(|work| work.gone.iter().map(Leaving::of));
    let mut kept = legal_hold::kept(tx, &leaving.collect::<Vec<_>>()).await?.into_iter();
    for work in &mut works {
        let mine: Vec<_> = kept.by_ref().take(work.gone.len()).flatten().collect();
        if let Some(error) = mine.into_iter().next() {
            work.refuse(error);
            work.wrote = true;
        }
    }
    Ok(())
}

/// How a chunk of the request stands.
#[derive(Clone, Copy, PartialEq)]
enum State {
    /// To be inserted.
    Open,
    New,
    Replaced,
    Equal,
}

/// One change on its way through the steps.
struct Work<'a> {
    change: &'a WriteChunks,
    caller: &'a Caller,
    document: Document,
    rows: Vec<(Chunk, State)>,
    /// What it deletes.
    gone: Vec<Chunk>,
    /// What the embeddings of what it deletes leave in the log.
    unembedded: Vec<Entry>,
    /// What its embeddings leave in the log.
    embedded: Vec<Entry>,
    refused: Option<Error>,
    wrote: bool,
}

impl<'a> Work<'a> {
    fn new(change: &'a WriteChunks, caller: &'a Caller, document: Document, tx: &Tx<'_>) -> Self {
        let rows = change.rows.iter().map(|row| {
            let mut row = stamp(row, caller.acting(), tx.now);
            row.document_uid = document.meta.uid;
            (row, State::Open)
        });
        let rows = rows.collect();
        let (gone, unembedded, embedded) = (Vec::new(), Vec::new(), Vec::new());
        let (refused, wrote) = (None, false);
        Self { change, caller, document, rows, gone, unembedded, embedded, refused, wrote }
    }

    /// Deletes the embeddings of what it has deleted, but for what has come back at another place.
    async fn unembed(&mut self, tx: &Tx<'_>) -> Result<()> {
        let back: HashSet<&str> = self.rows.iter().map(|(row, _)| row.id.as_str()).collect();
        let gone = self.gone.iter().filter(|chunk| !back.contains(chunk.id.as_str()));
        let author = self.caller.acting();
        let moves: Vec<Move<'_>> = gone
            .map(|chunk| Move {
                id: &chunk.id,
                delete_time: chunk.meta.delete_time,
                hidden_since: None,
                author,
            })
            .collect();
        let (entries, refused) = move_embeddings(tx, Chunk::KIND, &moves).await?.into_parts();
        self.unembedded = entries.into_iter().map(|(_, entry)| entry).collect();
        self.wrote |= !refused.is_empty();
        if let Some((_, error)) = refused.into_iter().next() {
            self.refuse(error);
        }
        Ok(())
    }

    /// The embeddings of its chunks as they now stand.
    fn fitted(&self) -> Result<Vec<Embedding>> {
        let mut seen = HashSet::new();
        let rows = self.change.embeddings.iter().map(|given| {
            let record = self.rows.get(given.of);
            let (chunk, _) = record.ok_or_else(|| Error::internal("no such chunk"))?;
            let row = given.fitted(&chunk.id);
            let field = || format!("chunks[{}].embeddings", given.of);
            if row.embedding_id.len() > ID_BYTES_MAX {
                let long = format!(
                    "must have an id, because that of the chunk has more than {ID_BYTES_MAX} bytes"
                );
                return Err(Error::invalid(field(), long));
            }
            if !seen.insert(row.id.clone()) {
                let twice =
                    format!("has the id \"{}\" a second time in its space", row.embedding_id);
                return Err(Error::invalid_because(Reason::DuplicateInBatch, field(), twice));
            }
            Ok(row)
        });
        rows.collect()
    }

    fn goes_on(&self) -> bool {
        self.refused.is_none()
    }

    fn deletes(&mut self, mut chunk: Chunk, tx: &Tx<'_>) {
        chunk.meta.delete_time = Some(tx.now);
        advance(&mut chunk, self.caller.acting(), tx.now);
        self.gone.push(chunk);
    }

    /// Deletes of the chunks from `delete_from_index` on those at whose places nothing else comes.
    fn cut(&mut self, tail: &mut HashMap<Uuid, Vec<Chunk>>, there: &mut There, tx: &Tx<'_>) {
        let Some(tail) = tail.remove(&self.document.meta.uid) else { return };
        let places: HashSet<i32> = self.rows.iter().map(|(row, _)| row.chunk_index).collect();
        for chunk in tail {
            if places.contains(&chunk.chunk_index) {
                there.insert((chunk.document_uid, chunk.chunk_index), chunk);
            } else {
                self.deletes(chunk, tx);
            }
        }
    }

    /// Settles the chunks that could not be inserted at once, each by the request's rule.
    fn settle(&mut self, there: &mut There, tx: &Tx<'_>) {
        let freed: HashSet<String> = self.gone.iter().map(|chunk| chunk.id.clone()).collect();
        let mut rows = std::mem::take(&mut self.rows);
        for (row, state) in rows.iter_mut().filter(|(_, state)| *state == State::Open) {
            match there.remove(&(row.document_uid, row.chunk_index)) {
                Some(there) => self.meet(row, state, there, tx),
                // Its place is free, so its id is taken; perhaps by what goes.
                None if self.change.on_conflict == OnConflict::Replace => {}
                None if freed.contains(&row.id) => {}
                None => self.refuse(Chunk::taken(&row.id)),
            }
            if !self.goes_on() {
                break;
            }
        }
        self.rows = rows;
    }

    /// A chunk of the request comes to where one stands.
    fn meet(&mut self, row: &mut Chunk, state: &mut State, mut there: Chunk, tx: &Tx<'_>) {
        let mut fields = there.differing_fields(row);
        if row.id == row.meta.uid.to_string() {
            fields.retain(|field| field != "id");
        }
        match self.change.on_conflict {
            OnConflict::Fail => self.refuse(Chunk::taken(&there.id)),
            _ if fields.is_empty() => {
                *row = there;
                *state = State::Equal;
            }
            OnConflict::ReturnIfEqual => {
                self.refuse(Error::Taken { kind: Chunk::KIND, id: there.id, fields });
            }
            // It stays open, and is inserted when the other one has gone.
            OnConflict::Replace if fields.iter().any(|field| field == "id") => {
                self.deletes(there, tx);
            }
            OnConflict::Replace => {
                row.id = std::mem::take(&mut there.id);
                row.meta = Meta { delete_time: None, ..there.meta };
                advance(row, self.caller.acting(), tx.now);
                *state = State::Replaced;
            }
        }
    }

    fn refuse(&mut self, error: Error) {
        self.refused.get_or_insert(error);
    }

    fn count(&self, wanted: State) -> usize {
        self.rows.iter().filter(|(_, state)| *state == wanted).count()
    }

    /// Counts the document's chunks anew; true if their number has changed.
    fn recount(&mut self, tx: &Tx<'_>) -> bool {
        let (new, gone) = (self.count(State::New) as i32, self.gone.len() as i32);
        if new == gone {
            return false;
        }
        self.document.total_chunks += new - gone;
        advance(&mut self.document, self.caller.acting(), tx.now);
        true
    }

    fn outcome(self) -> Outcome<WrittenChunks> {
        if let Some(error) = self.refused {
            return if self.wrote { Outcome::Spoiled(error) } else { Outcome::Failed(error) };
        }
        let written = self.count(State::New) + self.count(State::Replaced);
        let recounted = self.count(State::New) != self.gone.len();
        let room = written + self.gone.len() + 1 + self.unembedded.len() + self.embedded.len();
        let mut entries = Vec::with_capacity(room);
        let mut shown = Vec::new();
        // First what goes: its id may come back at another place.
        entries.extend(self.gone.iter().map(|chunk| Entry::of(chunk, "DELETE")));
        entries.extend(self.unembedded);
        for (row, state) in &self.rows {
            match state {
                State::New | State::Open => entries.push(Entry::of(row, "CREATE")),
                State::Replaced => entries.push(Entry::of(row, "UPDATE")),
                State::Equal => shown.push(Shown::of(row)),
            }
        }
        if recounted {
            entries.push(Entry::of(&self.document, "INGEST"));
        } else {
            shown.push(Shown::of(&self.document));
        }
        entries.extend(self.embedded);
        let answer = WrittenChunks {
            chunk_ids: self.rows.into_iter().map(|(row, _)| row.id).collect(),
            total_chunks: self.document.total_chunks,
            written,
        };
        Outcome::Done { answer, entries, shown }
    }
}

/// Live chunks by place.
type There = HashMap<(Uuid, i32), Chunk>;

/// All works at once, step by step. Most end with the first insert: what the others need is not asked for before.
async fn write(tx: &Tx<'_>, works: &mut [&mut Work<'_>]) -> Result<()> {
    let mut there = There::new();
    let mut tail = tail(tx, works).await?;
    for work in works.iter_mut() {
        work.cut(&mut tail, &mut there, tx);
    }
    insert(tx, works, |row| !there.contains_key(&(row.document_uid, row.chunk_index))).await?;

    let open = works.iter().flat_map(|work| &work.rows).filter(|(_, state)| *state == State::Open);
    let unknown = open.map(|(row, _)| (row.document_uid, row.chunk_index));
    let unknown: (Vec<Uuid>, Vec<i32>) = unknown.filter(|place| !there.contains_key(place)).unzip();
    if !unknown.0.is_empty() {
        let found = tx.run(&chunk::AT, &unknown).await?.into_iter();
        there.extend(found.map(|row| ((row.document_uid, row.chunk_index), row)));
    }
    for work in works.iter_mut() {
        work.settle(&mut there, tx);
    }

    let going = || works.iter().filter(|work| work.goes_on());
    let gone: Vec<Chunk> = going().flat_map(|work| work.gone.iter().cloned()).collect();
    let replaced = going().flat_map(|work| &work.rows);
    let replaced = replaced.filter(|(_, state)| *state == State::Replaced);
    let replaced: Vec<Chunk> = replaced.map(|(row, _)| row.clone()).collect();
    tx.save_meta(&gone).await?;
    tx.save(&replaced).await?;
    for work in works.iter_mut().filter(|work| work.goes_on()) {
        work.wrote |= !work.gone.is_empty() || work.count(State::Replaced) > 0;
    }
    reuse_no_later_id(works);
    insert(tx, works, |_| true).await?;
    for work in works.iter_mut().filter(|work| work.goes_on()) {
        let taken = work.rows.iter().find(|(_, state)| *state == State::Open);
        if let Some(error) = taken.map(|(row, _)| Chunk::taken(&row.id)) {
            work.refuse(error);
        }
    }

    let mut counted = Vec::new();
    for work in works.iter_mut().filter(|work| work.goes_on()) {
        if work.recount(tx) {
            work.wrote = true;
            counted.push(work.document.clone());
        }
    }
    tx.save(&counted).await
}

/// The live chunks from where the works delete on, by document.
async fn tail(tx: &Tx<'_>, works: &[&mut Work<'_>]) -> Result<HashMap<Uuid, Vec<Chunk>>> {
    let mut tail: HashMap<Uuid, Vec<Chunk>> = HashMap::new();
    let from = works.iter().filter(|work| work.document.total_chunks > 0);
    let from = from.filter_map(|w| Some((w.document.meta.uid, w.change.delete_from_index?)));
    let from: (Vec<Uuid>, Vec<i32>) = from.unzip();
    if !from.0.is_empty() {
        for chunk in tx.run(&chunk::FROM, &from).await? {
            tail.entry(chunk.document_uid).or_default().push(chunk);
        }
    }
    Ok(tail)
}

/// Inserts the open chunks that may be; those whose place and id are free are new.
async fn insert(
    tx: &Tx<'_>,
    works: &mut [&mut Work<'_>],
    may_be: impl Fn(&Chunk) -> bool,
) -> Result<()> {
    let is_tried =
        |(row, state): &&(Chunk, State)| -> bool { *state == State::Open && may_be(row) };
    let going = works.iter().filter(|work| work.goes_on());
    let tried: Vec<&Chunk> =
        going.flat_map(|work| &work.rows).filter(is_tried).map(|(row, _)| row).collect();
    if tried.is_empty() {
        return Ok(());
    }
    let mut inserted = tx.insert_those(&tried).await?.into_iter();
    for work in works.iter_mut().filter(|work| work.goes_on()) {
        for row in &mut work.rows {
            if is_tried(&&*row) && inserted.next() == Some(true) {
                row.1 = State::New;
                work.wrote = true;
            }
        }
    }
    Ok(())
}

/// The log tells the works one after another, so none may use an id that only a later one sets free.
fn reuse_no_later_id(works: &mut [&mut Work<'_>]) {
    let mut freed: HashSet<String> = HashSet::new();
    for work in works.iter_mut().rev() {
        let open = work.rows.iter().filter(|(_, state)| *state == State::Open);
        let early = open.map(|(row, _)| row).find(|row| freed.contains(&row.id));
        if let Some(error) = early.map(|row| Chunk::taken(&row.id)) {
            work.refuse(error);
        }
        freed.extend(work.gone.iter().map(|chunk| chunk.id.clone()));
    }
}
