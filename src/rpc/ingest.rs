//! IngestChunks: chunks in bulk over one stream, where each message is a write of its own.
//!
//! The whole stream is one value that tonic polls for answers: nothing runs beside it, so nothing is left when the
//! caller goes away. It reads the next message only while few are under way and the write queue has room, so a caller
//! that is faster than the database, or that does not read its answers, is slowed down by HTTP/2 itself.

use super::stream::{OwnDeadline, Renewal, StreamLimits};
use super::wire::Write;
use super::{Api, status};
use crate::pb;
use crate::store::caller::Caller;
use crate::store::chunk::Chunk;
use crate::store::ingest::{WriteChunks, WrittenChunks};
use crate::store::noun::Noun;
use crate::store::write::{Queued, Receipt};
use crate::{Error, Result};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, FuturesOrdered, Stream, StreamExt as _};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::time::{Instant, sleep, sleep_until};
use tonic::{Request, Status, Streaming};

/// Messages of one stream under way at once.
const UNDER_WAY_MAX: usize = 4;
/// The most chunks that are ever suggested for a message.
const SUGGESTED_MAX: usize = 1000;

pub type Acknowledgements =
    Pin<Box<dyn Stream<Item = Result<pb::IngestChunksResponse, Status>> + Send>>;

impl Api {
    pub(super) fn ingest(
        &self,
        request: Request<Streaming<pb::IngestChunksRequest>>,
    ) -> Result<Acknowledgements> {
        let (_, mut extensions, messages) = request.into_parts();
        let (Some(renewal), Some(OwnDeadline(ends))) =
            (extensions.remove(), extensions.remove::<OwnDeadline>())
        else {
            return Err(Error::internal("a stream came past the door"));
        };
        let ingest = Ingest {
            closed: Box::pin(self.health.closed()),
            pace: Pace::new(self.batch_max),
            api: self.clone(),
            renewal,
            ends,
            messages,
            entering: None,
            under_way: FuturesOrdered::new(),
            last_read: None,
            last_answered: None,
            over: None,
        };
        Ok(Box::pin(stream::unfold(Some(ingest), |ingest| async {
            let mut ingest = ingest?;
            match ingest.next().await {
                Ok(Some(answer)) => Some((Ok(answer), Some(ingest))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        })))
    }
}

struct Ingest {
    api: Api,
    renewal: Renewal,
    /// When the caller stops waiting.
    ends: Option<Instant>,
    messages: Streaming<pb::IngestChunksRequest>,
    /// The message that was read last, until it is in the queue. The next one is not read before, so that they are
    /// written in their order.
    entering: Option<BoxFuture<'static, Entered>>,
    /// Messages in the queue and beyond, and answers that wait for their turn.
    under_way: FuturesOrdered<BoxFuture<'static, Answered>>,
    last_read: Option<i64>,
    last_answered: Option<i64>,
    pace: Pace,
    /// The server goes away.
    closed: BoxFuture<'static, ()>,
    /// Why no further message is read.
    over: Option<Over>,
}

enum Over {
    /// The caller has sent everything.
    HalfClosed,
    Because(Error),
    /// What tonic says of a message that cannot be read.
    Unreadable(Status),
}

/// A message's way into the queue.
enum Entered {
    Queued {
        waited: bool,
        sent: Sent,
        queued: Queued<WrittenChunks>,
    },
    Failed {
        sequence: i64,
        waited: bool,
        error: Error,
    },
    /// The caller may not go on.
    Barred(Error),
}

/// What is remembered of a message until it is answered.
struct Sent {
    sequence: i64,
    caller: Caller,
    document_id: String,
    /// Id and place of each chunk.
    chunks: Vec<(String, i32)>,
}

struct Answered {
    sequence: i64,
    waited: bool,
    result: Result<(WrittenChunks, Option<pb::WriteReceipt>), (Error, Option<usize>)>,
}

impl Ingest {
    /// The next answer; `None` at the end of a stream that ends well.
    async fn next(&mut self) -> Result<Option<pb::IngestChunksResponse>, Status> {
        let StreamLimits { idle, .. } = self.api.streams;
        loop {
            let is_over = self.over.is_some();
            if is_over && self.entering.is_none() && self.under_way.is_empty() {
                return self.end();
            }
            let has_room = self.under_way.len() < UNDER_WAY_MAX;
            let may_read = !is_over && self.entering.is_none() && has_room;
            let is_idle = may_read && self.under_way.is_empty();
            let ends = self.ends;
            tokio::select! {
                biased;
                Some(answered) = self.under_way.next(), if !self.under_way.is_empty() => {
                    return Ok(Some(self.answer(answered)));
                }
                entered = enter(&mut self.entering), if self.entering.is_some() => {
                    self.entering = None;
                    self.entered(entered);
                }
                () = &mut self.closed, if !is_over => {
                    // What is not in the queue yet will not be written, nor answered.
                    self.entering = None;
                    self.over = Some(Over::Because(Error::ShuttingDown));
                }
                () = at(ends), if !is_over && ends.is_some() => {
                    self.entering = None;
                    self.over = Some(Over::Because(Error::DeadlineExceeded(
                        " while the stream was open",
                    )));
                }
                message = self.messages.next(), if may_read => match message {
                    Some(Ok(message)) => self.read(message),
                    Some(Err(status)) => self.over = Some(Over::Unreadable(status)),
                    None => self.over = Some(Over::HalfClosed),
                },
                () = sleep(idle), if is_idle => {
                    self.over = Some(Over::Because(Error::DeadlineExceeded(
                        " for the next message: the stream was silent for too long",
                    )));
                }
            }
        }
    }

    fn end(&mut self) -> Result<Option<pb::IngestChunksResponse>, Status> {
        match self.over.take() {
            None | Some(Over::HalfClosed) => Ok(None),
            Some(Over::Because(error)) => Err(status::of_stream(error, self.last_answered)),
            Some(Over::Unreadable(status)) => Err(status),
        }
    }

    /// Sends a message on its way.
    fn read(&mut self, message: pb::IngestChunksRequest) {
        let pb::IngestChunksRequest { sequence, document_id, chunks, options, delete_from_index } =
            message;
        if self.last_read.is_some_and(|last| sequence <= last) {
            let error =
                Error::invalid("sequence", "must be greater than that of the message before");
            self.entered(Entered::Failed { sequence, waited: false, error });
            return;
        }
        self.last_read = Some(sequence);
        let request =
            pb::BatchCreateChunksRequest { document_id, chunks, options, delete_from_index };
        let limit = Instant::now() + self.api.streams.message;
        let deadline = self.ends.map_or(limit, |ends| ends.min(limit));
        let (api, renewal) = (self.api.clone(), self.renewal.clone());
        self.entering = Some(Box::pin(async move {
            let waited = AtomicBool::new(false);
            let failed = |error| {
                let waited = waited.load(Ordering::Relaxed);
                Entered::Failed { sequence, waited, error }
            };
            let mut caller = match (renewal.0)().await {
                Ok(caller) => caller,
                Err(
                    error @ (Error::Unauthenticated { .. }
                    | Error::Forbidden { .. }
                    | Error::Refused { .. }),
                ) => return Entered::Barred(error),
                Err(error) => return failed(error),
            };
            caller.deadline = deadline;
            let Write { change, options } = match api.ask(request, &caller) {
                Ok(write) => write,
                Err(error) => return failed(error),
            };
            let sent = Sent::new(sequence, &caller, &change);
            let on_wait = || waited.store(true, Ordering::Relaxed);
            match api.store.queue(caller, options, change, on_wait).await {
                Ok(queued) => {
                    let waited = waited.load(Ordering::Relaxed);
                    Entered::Queued { waited, sent, queued }
                }
                Err(error) => failed(error),
            }
        }));
    }

    /// A message is in the queue, or will not get there.
    fn entered(&mut self, entered: Entered) {
        let api = self.api.clone();
        self.under_way.push_back(match entered {
            Entered::Queued { waited, sent, queued } => Box::pin(async move {
                let result = match queued.answer().await {
                    Ok((written, receipt)) => api.written(&sent.caller, written, receipt),
                    Err(error) => Err(error),
                };
                let sequence = sent.sequence;
                let result = match result {
                    Ok(written) => Ok(written),
                    Err(error) => {
                        let position = api.position(&error, sent).await;
                        Err((error, position))
                    }
                };
                Answered { sequence, waited, result }
            }),
            Entered::Failed { sequence, waited, error } => {
                let position = position_in(&error);
                let result = Err((error, position));
                Box::pin(std::future::ready(Answered { sequence, waited, result }))
            }
            Entered::Barred(error) => {
                self.over = Some(Over::Because(error));
                return;
            }
        });
    }

    fn answer(&mut self, answered: Answered) -> pb::IngestChunksResponse {
        let Answered { sequence, waited, result } = answered;
        self.last_answered = Some(sequence);
        let is_exhausted = matches!(&result, Err((Error::Exhausted { .. }, _)));
        let suggested_batch = self.pace.next(waited || is_exhausted) as i32;
        let (written, receipt, error) = match result {
            Ok((written, receipt)) => (written.written as i32, receipt, None),
            Err((error, position)) => (0, None, Some(explained(error, position))),
        };
        pb::IngestChunksResponse { sequence, written, suggested_batch, receipt, error }
    }
}

async fn enter(entering: &mut Option<BoxFuture<'static, Entered>>) -> Entered {
    match entering {
        Some(entering) => entering.await,
        None => std::future::pending().await,
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

impl Sent {
    fn new(sequence: i64, caller: &Caller, change: &WriteChunks) -> Self {
        let chunks = change.rows.iter().map(|row| (row.id.clone(), row.chunk_index));
        Self {
            sequence,
            caller: caller.clone(),
            document_id: change.document_id.clone(),
            chunks: chunks.collect(),
        }
    }
}

impl Api {
    /// A message's answer, with nothing counted that an earlier call or none has written.
    fn written(
        &self,
        caller: &Caller,
        mut written: WrittenChunks,
        receipt: Receipt,
    ) -> Result<(WrittenChunks, Option<pb::WriteReceipt>)> {
        if receipt.unchanged || receipt.rehearsed {
            written.written = 0;
        }
        Ok((written, self.receipt(caller, receipt)?))
    }

    /// Which of a message's chunks an error is about. One that stands where another should is looked up.
    async fn position(&self, error: &Error, sent: Sent) -> Option<usize> {
        let Error::Taken { kind: Chunk::KIND, id, .. } = error else { return position_in(error) };
        let Sent { caller, document_id, chunks, .. } = sent;
        if let Some(position) = chunks.iter().position(|(given, _)| given == id) {
            return Some(position);
        }
        let there: Chunk = self.store.get(&caller, id).await.ok()?;
        let place = (there.document_id == document_id).then_some(there.chunk_index)?;
        chunks.iter().position(|(_, chunk_index)| *chunk_index == place)
    }
}

/// The position that the first violation names: `chunks[17].text`.
fn position_in(error: &Error) -> Option<usize> {
    let Error::Invalid { violations, .. } = error else { return None };
    let (position, _) = violations.first()?.field.strip_prefix("chunks[")?.split_once(']')?;
    position.parse().ok()
}

fn explained(error: Error, position: Option<usize>) -> pb::IngestError {
    let field = match &error {
        Error::Invalid { violations, .. } => violations.first().map(|first| first.field.clone()),
        _ => None,
    };
    let reason = error.reason().as_str().to_owned();
    let status = Status::from(error);
    pb::IngestError {
        code: status.code().into(),
        reason,
        message: status.message().to_owned(),
        chunk_position: position.and_then(|position| position.try_into().ok()),
        field: field.unwrap_or_default(),
    }
}

/// How many chunks to suggest for the next message: half as many after each that had to wait for room, and a little
/// more after each that had not.
struct Pace {
    suggested: usize,
    max: usize,
}

impl Pace {
    fn new(batch_max: usize) -> Self {
        let max = batch_max.clamp(1, SUGGESTED_MAX);
        Self { suggested: max, max }
    }

    fn next(&mut self, is_pressed: bool) -> usize {
        self.suggested = match is_pressed {
            true => self.suggested / 2,
            false => self.suggested + self.max.div_ceil(20),
        }
        .clamp(1, self.max);
        self.suggested
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_falls_fast_and_rises_slowly() {
        let mut pace = Pace::new(5000);
        assert_eq!(pace.next(false), 1000);
        assert_eq!([pace.next(true), pace.next(true)], [500, 250]);
        assert_eq!([pace.next(false), pace.next(false)], [300, 350]);
        for _ in 0..20 {
            pace.next(true);
        }
        assert_eq!(pace.next(true), 1);
        assert_eq!(pace.next(false), 51);
        assert_eq!(Pace::new(10).next(false), 10);
    }

    #[test]
    fn a_violation_names_its_chunk() {
        let at = |field: &str| position_in(&Error::invalid(field, "is wrong"));
        assert_eq!(at("chunks[17].text"), Some(17));
        assert_eq!(at("chunks[3]"), Some(3));
        assert_eq!(at("chunks"), None);
        assert_eq!(at("document_id"), None);
        assert_eq!(position_in(&Error::ShuttingDown), None);
    }
}
