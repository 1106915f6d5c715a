//! Records in bulk over one stream, where each message is a write of its own: IngestChunks and IngestEmbeddings.
//!
//! The whole stream is one value that tonic polls for answers: nothing runs beside it, so nothing is left when the
//! caller goes away. It reads the next message only while few are under way and the write queue has room, so a caller
//! that is faster than the database, or that does not read its answers, is slowed down by HTTP/2 itself.

use super::resource::Ask;
use super::stream::{OwnDeadline, Renewal, StreamLimits};
use super::wire::Write;
use super::{Api, Parts, status};
use crate::pb;
use crate::store::caller::Caller;
use crate::store::write::{Change, Queued, Receipt};
use crate::{Error, Result};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, FuturesOrdered, Stream, StreamExt as _};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::time::{Instant, sleep, sleep_until};
use tonic::{Request, Status, Streaming};

/// Messages of one stream under way at once.
const UNDER_WAY_MAX: usize = 4;
/// The most records that are ever suggested for a message.
const SUGGESTED_MAX: usize = 1000;

/// The answers to what a stream brings.
pub type Acknowledgements<A> = Pin<Box<dyn Stream<Item = Result<A, Status>> + Send>>;

/// The records that a stream brings, and how its messages and answers are worded.
pub trait Bulk: Send + 'static {
    type Message: Send + 'static;
    /// The call that a message stands for.
    type Request: Ask + Send;
    type Answer: Send + 'static;
    /// What is remembered of a message until it is answered.
    type Sent: Send + 'static;
    /// The field with the records.
    const ITEMS: &'static str;

    /// A message's sequence, and what it asks for.
    fn open(message: Self::Message) -> (i64, Self::Request);

    fn remember(change: &ChangeOf<Self>) -> Self::Sent;

    /// How many records a write has made or changed.
    fn written(answer: &AnswerOf<Self>) -> usize;

    /// Which of a message's records an error is about that names none of its fields.
    fn find<'a>(
        api: &'a Parts,
        caller: &'a Caller,
        error: &'a Error,
        sent: Self::Sent,
    ) -> BoxFuture<'a, Option<usize>>;

    /// An error as callers know the records; the place is that of one of them.
    fn explain(error: Error, place: Option<i32>) -> pb::IngestError;

    fn answer(answer: Acknowledged) -> Self::Answer;
}

type ChangeOf<B> = <<B as Bulk>::Request as Ask>::Change;
type AnswerOf<B> = <ChangeOf<B> as Change>::Answer;

/// What every answer says.
pub struct Acknowledged {
    pub sequence: i64,
    pub written: i32,
    pub suggested_batch: i32,
    pub receipt: Option<pb::WriteReceipt>,
    pub error: Option<pb::IngestError>,
}

impl Api {
    pub(super) fn ingest<B: Bulk>(
        &self,
        request: Request<Streaming<B::Message>>,
    ) -> Result<Acknowledgements<B::Answer>> {
        let (_, mut extensions, messages) = request.into_parts();
        let (Some(renewal), Some(OwnDeadline(ends))) =
            (extensions.remove(), extensions.remove::<OwnDeadline>())
        else {
            return Err(Error::internal("a stream came past the door"));
        };
        let ingest: Ingest<B> = Ingest {
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

struct Ingest<B: Bulk> {
    api: Api,
    renewal: Renewal,
    /// When the caller stops waiting.
    ends: Option<Instant>,
    messages: Streaming<B::Message>,
    /// The message that was read last, until it is in the queue. The next one is not read before, so that they are
    /// written in their order.
    entering: Option<BoxFuture<'static, Entered<B>>>,
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
enum Entered<B: Bulk> {
    Queued {
        waited: bool,
        sent: Sent<B::Sent>,
        queued: Queued<AnswerOf<B>>,
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
struct Sent<S> {
    sequence: i64,
    caller: Caller,
    records: S,
}

struct Answered {
    sequence: i64,
    waited: bool,
    /// How many records were written; or what was wrong, and with which of them.
    result: Result<(usize, Option<pb::WriteReceipt>), (Error, Option<usize>)>,
}

impl<B: Bulk> Ingest<B> {
    /// The next answer; `None` at the end of a stream that ends well.
    async fn next(&mut self) -> Result<Option<B::Answer>, Status> {
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

    fn end(&mut self) -> Result<Option<B::Answer>, Status> {
        match self.over.take() {
            None | Some(Over::HalfClosed) => Ok(None),
            Some(Over::Because(error)) => Err(status::of_stream(error, self.last_answered)),
            Some(Over::Unreadable(status)) => Err(status),
        }
    }

    /// Sends a message on its way.
    fn read(&mut self, message: B::Message) {
        let (sequence, request) = B::open(message);
        if self.last_read.is_some_and(|last| sequence <= last) {
            let error =
                Error::invalid("sequence", "must be greater than that of the message before");
            self.entered(Entered::Failed { sequence, waited: false, error });
            return;
        }
        self.last_read = Some(sequence);
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
            let Write { change, options } = match api.ask(request, &caller).await {
                Ok(write) => write,
                Err(error) => return failed(error),
            };
            let sent = Sent { sequence, caller: caller.clone(), records: B::remember(&change) };
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
    fn entered(&mut self, entered: Entered<B>) {
        let api = self.api.clone();
        self.under_way.push_back(match entered {
            Entered::Queued { waited, sent, queued } => Box::pin(async move {
                let Sent { sequence, caller, records } = sent;
                let result = match queued.answer().await {
                    Ok((written, receipt)) => {
                        acknowledge(&api, &caller, B::written(&written), receipt)
                    }
                    Err(error) => Err(error),
                };
                let result = match result {
                    Ok(written) => Ok(written),
                    Err(error) => {
                        let position = match position_in(&error, B::ITEMS) {
                            None => B::find(&api, &caller, &error, records).await,
                            named => named,
                        };
                        Err((error, position))
                    }
                };
                Answered { sequence, waited, result }
            }),
            Entered::Failed { sequence, waited, error } => {
                let position = position_in(&error, B::ITEMS);
                let result = Err((error, position));
                Box::pin(std::future::ready(Answered { sequence, waited, result }))
            }
            Entered::Barred(error) => {
                self.over = Some(Over::Because(error));
                return;
            }
        });
    }

    fn answer(&mut self, answered: Answered) -> B::Answer {
        let Answered { sequence, waited, result } = answered;
        self.last_answered = Some(sequence);
        let is_exhausted = matches!(&result, Err((Error::Exhausted { .. }, _)));
        let suggested_batch = self.pace.next(waited || is_exhausted) as i32;
        let (written, receipt, error) = match result {
            Ok((written, receipt)) => (written as i32, receipt, None),
            Err((error, position)) => {
                let place = position.and_then(|position| position.try_into().ok());
                (0, None, Some(B::explain(error, place)))
            }
        };
        B::answer(Acknowledged { sequence, written, suggested_batch, receipt, error })
    }
}

async fn enter<E>(entering: &mut Option<BoxFuture<'static, E>>) -> E {
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

/// A message's answer, with nothing counted that an earlier call or none has written.
fn acknowledge(
    api: &Parts,
    caller: &Caller,
    written: usize,
    receipt: Receipt,
) -> Result<(usize, Option<pb::WriteReceipt>)> {
    let is_counted = !receipt.unchanged && !receipt.rehearsed;
    Ok((if is_counted { written } else { 0 }, api.receipt(caller, receipt)?))
}

/// The position that the first violation names: `chunks[17].text`.
fn position_in(error: &Error, items: &str) -> Option<usize> {
    let Error::Invalid { violations, .. } = error else { return None };
    let (position, _) =
        violations.first()?.field.strip_prefix(items)?.strip_prefix('[')?.split_once(']')?;
    position.parse().ok()
}

/// An error as an answer has it, but for the place.
pub(super) fn explained(error: Error) -> pb::IngestError {
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
        field: field.unwrap_or_default(),
        chunk_position: None,
        embedding_position: None,
    }
}

/// How many records to suggest for the next message: half as many after each that had to wait for room, and a little
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
    fn a_violation_names_its_record() {
        let at = |field: &str| position_in(&Error::invalid(field, "is wrong"), "chunks");
        assert_eq!(at("chunks[17].text"), Some(17));
        assert_eq!(at("chunks[3]"), Some(3));
        assert_eq!(at("chunks"), None);
        assert_eq!(at("document_id"), None);
        assert_eq!(at("chunks_of[3]"), None);
        assert_eq!(position_in(&Error::ShuttingDown, "chunks"), None);
    }
}
