//! Import: a file, kind by kind, so that what is referred to is there first. It goes on where it was interrupted.

use super::file::{Extent, Line, Lines, Place, Scan, Sort, scan, sort};
use super::message::{from_json, text};
use super::progress::Progress;
use super::send::{Item, Outcome, Sender, Why};
use super::state::{State, Which};
use super::table::{Form, NOUNS, Shape};
use super::wire::{Client, Server};
use super::{OnConflict, Result, TransferError, beside, shortened};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Lines that go to the server together.
const CHUNK_LINES: usize = 1000;
/// And of those that go one by one.
const CHUNK_LINES_ONE: usize = 200;
/// And as they stand in the file, at most and at least.
const CHUNK_BYTES: std::ops::RangeInclusive<u64> = 32 << 10..=2 << 20;
/// How much larger a message may be than its lines: a short number takes 13 bytes, and an answer has `meta`, too.
const GROWTH: u64 = 8;
/// Refused lines that are shown; all are in the list.
const SHOWN: u64 = 100;

/// What to import, and where to.
pub struct Import {
    pub server: Server,
    pub input: PathBuf,
    pub on_conflict: OnConflict,
    /// `None` is beside the input.
    pub state: Option<PathBuf>,
    /// Takes a file without header and trailer.
    pub unsealed: bool,
    /// Chunks under way at once, at least 1.
    pub concurrency: usize,
}

/// What became of the lines of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub created: u64,
    pub unchanged: u64,
    pub replaced: u64,
    pub kept: u64,
    pub refused: u64,
}

/// What became of all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub counts: BTreeMap<String, Counts>,
    /// The list of what was refused, if anything was.
    pub refused: Option<PathBuf>,
}

impl Report {
    pub fn refused(&self) -> u64 {
        self.counts.values().map(|counts| counts.refused).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["created", "unchanged", "replaced", "kept", "refused"];
        write!(f, "{:20}", "kind")?;
        for column in head {
            write!(f, "{column:>11}")?;
        }
        for (kind, counts) in &self.counts {
            let Counts { created, unchanged, replaced, kept, refused } = counts;
            write!(f, "\n{kind:20}")?;
            for count in [created, unchanged, replaced, kept, refused] {
                write!(f, "{count:>11}")?;
            }
        }
        Ok(())
    }
}

/// Lines of one kind that are dealt with together.
struct Chunk {
    items: Vec<Item>,
    refused: Vec<Refusal>,
    /// Behind its last line.
    next: Place,
    lines: u64,
}

/// A line that was refused.
struct Refusal {
    line: u64,
    id: String,
    why: Why,
    text: Vec<u8>,
}

/// Imports what is not imported yet.
pub async fn import(options: Import) -> Result<Report> {
    let input = &options.input;
    let found = scan(input, options.unsealed)?;
    for kind in &found.not_served {
        eprintln!(
            "note: the server that {} is from did not serve {kind}: it has none",
            input.display()
        );
    }
    let client = Client::connect(&options.server, "casebook-import").await?;
    let path = options.state.clone().unwrap_or_else(|| beside(input, "state"));
    let which = Which {
        sha256: found.sha256.clone(),
        address: options.server.address.clone(),
        tenant: options.server.tenant.clone(),
        on_conflict: options.on_conflict,
    };
    let state = match State::load(&path, &which)? {
        Some(state) => {
            eprintln!("going on behind {} of {} lines", state.done, found.resources);
            state
        }
        None => {
            let max =
                client.message_bytes_max().await?.map_or(*CHUNK_BYTES.end(), |max| max / GROWTH);
            State::new(which, max.clamp(*CHUNK_BYTES.start(), *CHUNK_BYTES.end()) as usize)
        }
    };
    let refused = Refused::open(beside(input, "refused.jsonl"), state.refused_bytes)?;
    let sender = Sender::new(&client, options.on_conflict, &found.sha256);
    let mut progress = Progress::new(Some(found.resources));
    progress.advance("", state.done);
    let mut run = Run { options: &options, path, state, refused, progress, shown: 0 };
    let Scan { extents, .. } = found;
    for (pass, extent) in extents.into_iter().enumerate().skip(run.state.pass) {
        if let Some(extent) = extent {
            run.pass(&sender, pass, extent).await?;
        }
        run.state.pass = pass + 1;
        run.state.next = None;
    }
    run.finish()
}

struct Run<'a> {
    options: &'a Import,
    path: PathBuf,
    state: State,
    refused: Refused,
    progress: Progress,
    shown: u64,
}

impl Run<'_> {
    /// The lines of one kind, or those that are of none.
    async fn pass(&mut self, sender: &Sender<'_>, pass: usize, extent: Extent) -> Result<()> {
        let shape = NOUNS.get(pass).map(Shape::of).transpose()?;
        let input = self.options.input.clone();
        let failed = |error: std::io::Error| TransferError::on_file("read", &input, &error);
        let lines = Lines::open(&input, self.state.next.unwrap_or(extent.first)).map_err(failed)?;
        let (last_line, bytes_max) = (extent.last_line, self.state.chunk_bytes);
        let mut reader = Reader { lines, pass, shape: shape.as_ref(), last_line, bytes_max };
        let chunks = std::iter::from_fn(|| reader.next().map_err(failed).transpose());
        // What is chained must not overtake what comes before.
        let at_once = match &shape {
            Some(shape) if shape.noun.chain.is_none() => self.options.concurrency.max(1),
            _ => 1,
        };
        let sent = stream::iter(chunks).map(|chunk| {
            let shape = shape.as_ref();
            async move {
                let chunk = chunk?;
                let outcomes = match shape {
                    Some(shape) if !chunk.items.is_empty() => {
                        sender.send(shape, &chunk.items).await?
                    }
                    _ => Vec::new(),
                };
                Ok::<_, TransferError>((chunk, outcomes))
            }
        });
        let mut sent = std::pin::pin!(sent.buffered(at_once));
        let kind = NOUNS.get(pass).map_or("unknown", |noun| noun.kind);
        while let Some((chunk, outcomes)) = sent.try_next().await? {
            self.settle(pass, kind, chunk, outcomes)?;
        }
        Ok(())
    }

    /// Takes down what became of a chunk. Chunks come in the order of the file.
    fn settle(
        &mut self,
        pass: usize,
        kind: &str,
        chunk: Chunk,
        outcomes: Vec<Outcome>,
    ) -> Result<()> {
        let counts = self.state.counts.entry(kind.to_owned()).or_default();
        let mut refused = chunk.refused;
        for (item, outcome) in chunk.items.into_iter().zip(outcomes) {
            match outcome {
                Outcome::Created => counts.created += 1,
                Outcome::Unchanged => counts.unchanged += 1,
                Outcome::Replaced => counts.replaced += 1,
                Outcome::Kept => counts.kept += 1,
                Outcome::Refused(why) => {
                    refused.push(Refusal { line: item.line, id: item.id, why, text: item.text });
                }
            }
        }
        counts.refused += refused.len() as u64;
        refused.sort_by_key(|refusal| refusal.line);
        for Refusal { line, id, why, .. } in &refused {
            self.shown += 1;
            if self.shown <= SHOWN {
                let (reason, message) = (&why.reason, &why.message);
                self.progress.say(&format!("line {line}: {kind} {id:?}: {reason}: {message}"));
            } else if self.shown == SHOWN + 1 {
                self.progress.say("more lines are refused; from here on they are only in the list");
            }
        }
        self.refused.append(kind, &refused)?;
        self.state.refused_bytes = self.refused.bytes;
        self.state.pass = pass;
        self.state.next = Some(chunk.next);
        self.state.done += chunk.lines;
        self.progress.advance(kind, chunk.lines);
        self.state.save(&self.path)
    }

    fn finish(self) -> Result<Report> {
        drop(self.progress);
        let report = Report { counts: self.state.counts, refused: self.refused.finish()? };
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(TransferError::on_file("removed", &self.path, &error))
            }
            _ => Ok(report),
        }
    }
}

/// Reads the lines of one kind in chunks. Where one begins and ends depends on nothing but the file, so that a chunk
/// that is sent again has the request id that it had.
struct Reader<'a> {
    lines: Lines,
    pass: usize,
    shape: Option<&'a Shape>,
    last_line: u64,
    bytes_max: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> std::io::Result<Option<Chunk>> {
        let lines_max = match self.shape.map(|shape| &shape.form) {
            Some(Form::One { .. }) => CHUNK_LINES_ONE,
            _ => CHUNK_LINES,
        };
        let next = Place { line: 1, offset: 0 };
        let mut chunk = Chunk { items: Vec::new(), refused: Vec::new(), next, lines: 0 };
        let mut bytes = 0;
        while (chunk.lines as usize) < lines_max && bytes < self.bytes_max {
            let Some(line) = self.lines.next()? else { break };
            if line.number > self.last_line {
                break;
            }
            if !matches!(sort(&line), Sort::Resource(pass) if pass == self.pass) {
                continue;
            }
            chunk.lines += 1;
            chunk.next = Place { line: line.number + 1, offset: self.lines.offset };
            bytes += line.text.len();
            match read(&line, self.shape) {
                Ok(item) => chunk.items.push(item),
                Err((id, message)) => {
                    let code = format!("{:?}", tonic::Code::InvalidArgument);
                    let why = Why { code, reason: "LINE_INVALID".into(), message };
                    chunk.refused.push(Refusal { line: line.number, id, why, text: line.text });
                }
            }
        }
        Ok((chunk.lines > 0).then_some(chunk))
    }
}

/// A line of a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    kind: String,
    resource: Json,
    /// What an earlier import says about it: a list of refused lines can be imported once they are corrected.
    #[serde(default, rename = "refused")]
    _refused: serde::de::IgnoredAny,
}

/// The resource of a line, or its id, if it has one, and what is wrong.
fn read(line: &Line, shape: Option<&Shape>) -> std::result::Result<Item, (String, String)> {
    let nothing = |what: String| (String::new(), what);
    if line.too_long {
        return Err(nothing("is longer than any message may be".into()));
    }
    let given: Given = serde_json::from_slice(&line.text)
        .map_err(|error| nothing(format!("is no line of an export: {error}")))?;
    let Some(shape) = shape else {
        let kind = shortened(&given.kind, 40);
        return Err(nothing(format!("there is no kind {kind:?} that can be imported")));
    };
    let id = given.resource.get("id").and_then(Json::as_str).unwrap_or_default().to_owned();
    match from_json(&shape.resource, given.resource) {
        // Imported twice, it would be there twice.
        Ok(message) if text(&message, "id").is_empty() => Err(nothing("has no id".into())),
        Ok(message) => Ok(Item { line: line.number, id, text: line.text.clone(), message }),
        Err(what) => Err((id, what)),
    }
}

/// The list of what was refused.
struct Refused {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Refused {
    /// Goes on behind what an earlier run is known to have written.
    fn open(path: PathBuf, bytes: u64) -> Result<Self> {
        let open = |path: &Path| {
            let mut file = File::options().create(true).truncate(false).write(true).open(path)?;
            file.set_len(bytes)?;
            file.seek(SeekFrom::Start(bytes))?;
            Ok(file)
        };
        let file = open(&path).map_err(|error| TransferError::on_file("written", &path, &error))?;
        Ok(Self { path, file, bytes })
    }

    fn append(&mut self, kind: &str, refused: &[Refusal]) -> Result<()> {
        let mut text = Vec::new();
        for Refusal { line, id, why: Why { code, reason, message }, text: given } in refused {
            let why =
                json!({"line": line, "id": id, "code": code, "reason": reason, "message": message});
            let resource =
                serde_json::from_slice::<Given>(given).map(|given| (given.kind, given.resource));
            let told = match resource {
                Ok((kind, resource)) => json!({"kind": kind, "resource": resource, "refused": why}),
                Err(_) => {
                    json!({"kind": kind, "text": String::from_utf8_lossy(given), "refused": why})
                }
            };
            text.extend_from_slice(told.to_string().as_bytes());
            text.push(b'\n');
        }
        self.bytes += text.len() as u64;
        self.file
            .write_all(&text)
            .map_err(|error| TransferError::on_file("written", &self.path, &error))
    }

    /// An empty list would only ask to be looked at.
    fn finish(self) -> Result<Option<PathBuf>> {
        if self.bytes > 0 {
            return Ok(Some(self.path));
        }
        drop(self.file);
        std::fs::remove_file(&self.path)
            .map_err(|error| TransferError::on_file("removed", &self.path, &error))?;
        Ok(None)
    }
}
