//! The one way in for changes: every write is a batch, and a batch is one transaction.
//!
//! Calls queue per tenant. While one transaction commits, the next batch gathers. A batch is
//! claimed in the request ledger, applied kind by kind in set-based statements, numbered and appended to the log, and
//! answered only after COMMIT. [`Tx`] can be made nowhere else, and only these connections may write at all.

mod attempt;
mod flight;
mod foresight;
mod queue;
mod tx;

pub use foresight::{Foreseen, Insert};
pub use queue::{WriteSettings, Writer};
pub use tx::Tx;

use super::Store;
use super::caller::Caller;
use super::canonical::Json;
use super::log::{Entry, LogRow};
use super::noun::Noun;
use crate::{Error, Result};
use futures_util::future::BoxFuture;
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::oneshot;
use tokio::time::Instant;
use uuid::Uuid;

/// What a caller asks of a write beside its content.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    pub request: Option<RequestKey>,
    pub validate_only: bool,
    pub context: Option<Json>,
    pub preconditions: Vec<Precondition>,
}

/// The caller's idempotency key, and the digest that tells a repetition from another call under the same key.
#[derive(Clone, Debug)]
pub struct RequestKey {
    pub id: String,
    pub digest: [u8; 32],
}

/// A state of one resource that a write depends on.
#[derive(Clone, Debug)]
pub struct Precondition {
    pub kind: &'static str,
    pub id: String,
    pub wants: Wanted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Exists,
    Absent,
    Version(i64),
}

/// What a write proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Number of the write's last log entry; the tenant's newest when nothing had to change.
    pub seq: i64,
    pub replayed: bool,
    pub unchanged: bool,
    /// It was a rehearsal, and nothing was written.
    pub rehearsed: bool,
}

/// A kind of change: one type per way of writing. A value of it is kept until the answer is known, because it may be
/// applied again after a rolled-back attempt, so it holds its ids from the start.
pub trait Change: Send + Sync + Sized + 'static {
    type Answer: Send + 'static;

    /// The rows it touches. Two changes that share one never share a batch.
    fn touches(&self, rows: &mut Vec<RowKey>);

    /// About how much it sends to the database.
    fn size_bytes(&self) -> usize;

    /// The kinds and ids of the resources that it makes or changes, in the order of its log entries. The first is the
    /// one that the rest belong to.
    fn about(&self) -> Vec<(&'static str, &str)> {
        Vec::new()
    }

    /// Whether it shares its transaction with no other change, because it cannot tell beforehand what it touches.
    fn is_alone(&self) -> bool {
        false
    }

    /// What it does to embeddings.
    fn embeddings(&self) -> Embeddings {
        Embeddings::Untouched
    }

    /// Applies all changes of this kind in one batch and one tenant, in as few statements as there are steps.
    /// The outcomes stand in the order of the changes. An `Err` fails the whole batch.
    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Self::Answer>>>>;

    /// Tells what changes write at that time if nothing stands in their way, so that the whole batch can go to the
    /// server in one flight. `None` for what has to look before it writes.
    const FORESEE: Option<fn(&[Applied<'_, Self>], SystemTime) -> Foreseen<Self::Answer>> = None;

    /// Whether it is known by now that it cannot go as foreseen.
    fn must_look(&self) -> bool {
        false
    }

    /// The answer again, from the log entries the first call made or showed.
    fn rebuild(&self, entries: &[LogRow]) -> Result<Self::Answer>;
}

/// What a change does to embeddings. Some go with what they are of, and nobody knows beforehand which: so what takes them
/// along shares no transaction of a tenant with what writes them, or the log would not tell which came first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Embeddings {
    #[default]
    Untouched,
    /// Writes or deletes those that it names.
    Written,
    /// Deletes or brings back those of what it is about.
    TakenAlong,
}

impl Embeddings {
    /// Whether two changes of a tenant may not share a transaction.
    pub(super) fn is_at_odds_with(self, other: Self) -> bool {
        self != other && self != Self::Untouched && other != Self::Untouched
    }
}

/// One change with who asked for it.
pub struct Applied<'a, C> {
    pub change: &'a C,
    pub caller: &'a Caller,
}

/// What became of one change inside the transaction.
pub enum Outcome<A> {
    Done {
        answer: A,
        entries: Vec<Entry>,
        /// Versions that the answer shows and that were there before.
        shown: Vec<Shown>,
    },
    /// Refused, and nothing of it was written.
    Failed(Error),
    /// Refused after a part of it was written: the batch must roll back and run again without it.
    Spoiled(Error),
}

/// A version that was there before.
#[derive(Clone, Debug)]
pub struct Shown {
    pub kind: &'static str,
    pub id: String,
    pub uid: Uuid,
    pub version: i64,
}

impl Shown {
    pub fn of<T: Noun>(noun: &T) -> Self {
        let meta = noun.meta();
        Self { kind: T::KIND, id: noun.id().to_owned(), uid: meta.uid, version: meta.version }
    }
}

/// Names a row for the purpose of keeping two changes of it apart; distinct rows may rarely share a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowKey(u64);

impl RowKey {
    pub fn new(parts: &[&str]) -> Self {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        parts.hash(&mut hasher);
        Self(hasher.finish())
    }
}

impl Store {
    /// Makes a change, or answers as the first call with the same request id did. Truthful in every case: an error
    /// says that nothing was written, except `CommitUnknown`, which says that it cannot be known.
    pub async fn write<C: Change>(
        &self,
        caller: Caller,
        options: WriteOptions,
        change: C,
    ) -> Result<(C::Answer, Receipt)> {
        let (job, queued) = job(caller, options, change);
        self.writer.submit(job).map_err(|(_, error)| error)?;
        queued.answer().await
    }

    /// Puts a change into the queue as soon as there is room for it, which is tried until the caller's deadline.
    pub async fn queue<C: Change>(
        &self,
        caller: Caller,
        options: WriteOptions,
        change: C,
        on_wait: impl FnOnce(),
    ) -> Result<Queued<C::Answer>> {
        let deadline = caller.deadline;
        let (mut job, queued) = job(caller, options, change);
        let (mut pause, mut on_wait) = (ROOM_PAUSE_MIN, Some(on_wait));
        loop {
            let (refused, error) = match self.writer.submit(job) {
                Ok(()) => return Ok(queued),
                Err(refused) => refused,
            };
            if let Some(on_wait) = on_wait.take() {
                on_wait();
            }
            if Instant::now() + pause >= deadline {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(ROOM_PAUSE_MAX);
            job = refused;
        }
    }
}

/// How long to wait between looks for room in the queue: at first, and at most.
const ROOM_PAUSE_MIN: Duration = Duration::from_millis(5);
const ROOM_PAUSE_MAX: Duration = Duration::from_millis(200);

/// What the queue takes, and where the answer comes out.
fn job<C: Change>(
    caller: Caller,
    options: WriteOptions,
    change: C,
) -> (Box<Job>, Queued<C::Answer>) {
    let mut rows = change.keys();
    for Precondition { kind, id, .. } in &options.preconditions {
        rows.push(RowKey::new(&[kind, id]));
    }
    if let Some(request) = &options.request {
        rows.push(RowKey::new(&["request", &caller.principal, caller.method, &request.id]));
    }
    // Keys are of one tenant: the same id in two tenants is two rows.
    for key in &mut rows {
        *key = RowKey::new(&[&caller.tenant, &key.0.to_string()]);
    }
    let mut seed = [0; 32];
    rand::fill(&mut seed);
    let (reply, answer) = oneshot::channel();
    let fate = Arc::new(Fate::default());
    let queued = Queued { answer, fate: Arc::clone(&fate), deadline: caller.deadline };
    let size_bytes = change.size_bytes();
    // A rehearsal rolls back, so it shares its transaction with nobody, either.
    let is_alone = options.validate_only || change.is_alone();
    let embeddings = change.embeddings();
    let job = Job {
        caller,
        options,
        rows,
        size_bytes,
        is_alone,
        embeddings,
        seed,
        fate,
        change: Box::new(Waiting { change, reply }),
    };
    (Box::new(job), queued)
}

/// A write in the queue or beyond.
pub struct Queued<A> {
    answer: oneshot::Receiver<Result<(A, Receipt)>>,
    fate: Arc<Fate>,
    deadline: Instant,
}

impl<A> Queued<A> {
    /// What became of it; no later than at the deadline if it is still in the queue then.
    pub async fn answer(self) -> Result<(A, Receipt)> {
        let Self { mut answer, fate, deadline } = self;
        let answer = match tokio::time::timeout_at(deadline, &mut answer).await {
            Ok(answer) => answer,
            Err(_) if fate.give_up() => {
                return Err(Error::DeadlineExceeded(
                    " while the write was queued; it was not made",
                ));
            }
            // It is on its way, and its caller gets to know what becomes of it.
            Err(_) => answer.await,
        };
        match answer {
            Ok(answer) => answer,
            // Nobody is left to answer: the server stops, or a batch panicked, perhaps behind its COMMIT.
            Err(_) if fate.give_up() => Err(Error::ShuttingDown),
            Err(lost) => Err(Error::CommitUnknown(Arc::new(lost))),
        }
    }
}

/// Whether a job is still in the queue, decided once: by a lane that begins it, or by its caller who gives up.
#[derive(Default)]
struct Fate(AtomicU8);

impl Fate {
    const QUEUED: u8 = 0;
    const BEGUN: u8 = 1;
    const GIVEN_UP: u8 = 2;

    fn decide(&self, fate: u8) -> bool {
        let (from, order) = (Self::QUEUED, Ordering::SeqCst);
        self.0.compare_exchange(from, fate, order, order).is_ok()
    }

    /// False if its caller has given up.
    fn begin(&self) -> bool {
        self.decide(Self::BEGUN)
    }

    /// False if a lane has begun it.
    fn give_up(&self) -> bool {
        self.decide(Self::GIVEN_UP)
    }

    fn is_given_up(&self) -> bool {
        self.0.load(Ordering::SeqCst) == Self::GIVEN_UP
    }
}

/// A change in the queue, with everything an attempt needs.
struct Job {
    caller: Caller,
    options: WriteOptions,
    rows: Vec<RowKey>,
    size_bytes: usize,
    is_alone: bool,
    embeddings: Embeddings,
    /// Salts are drawn from it, so that an attempt that runs again writes the same bytes.
    seed: [u8; 32],
    fate: Arc<Fate>,
    change: Box<dyn Erased>,
}

type ErasedAnswer = Box<dyn Any + Send>;
/// Changes of one type, and who asks for each.
type Members<'a> = Vec<(&'a (dyn Any + Send + Sync), &'a Caller)>;
type ApplyGroup =
    for<'a> fn(&'a Tx<'a>, Members<'a>) -> BoxFuture<'a, Result<Vec<Outcome<ErasedAnswer>>>>;

type Foresee = for<'a> fn(Members<'a>, SystemTime) -> Option<Foreseen<ErasedAnswer>>;

/// How changes of one type are made.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    apply: ApplyGroup,
    foresee: Option<Foresee>,
}

impl Kind {
    /// Tells kinds apart, by the address of the function that applies the type, which is as good as the type.
    pub(super) fn key(&self) -> usize {
        self.apply as usize
    }

    /// Applies changes that are all of this kind.
    pub(super) fn apply<'a>(
        &self,
        tx: &'a Tx<'a>,
        members: Members<'a>,
    ) -> BoxFuture<'a, Result<Vec<Outcome<ErasedAnswer>>>> {
        (self.apply)(tx, members)
    }
}

/// A [`Change`] whose type need not be known.
pub(super) trait AnyChange: Send + Sync {
    fn as_any(&self) -> &(dyn Any + Send + Sync);
    /// How changes that all have this one's type are made.
    fn kind(&self) -> Kind;
    fn keys(&self) -> Vec<RowKey>;
    fn bytes(&self) -> usize;
    fn subjects(&self) -> Vec<(&'static str, &str)>;
    fn wants_to_be_alone(&self) -> bool;
    fn does_to_embeddings(&self) -> Embeddings;
}

impl<C: Change> AnyChange for C {
    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }

    fn kind(&self) -> Kind {
        fn members<'a, C: Change>(members: Members<'a>) -> Vec<Applied<'a, C>> {
            let members = members.into_iter();
            let applied = members
                .filter_map(|(any, caller)| Some(Applied { change: any.downcast_ref()?, caller }));
            applied.collect()
        }
        fn apply<'a, C: Change>(
            tx: &'a Tx<'a>,
            jobs: Members<'a>,
        ) -> BoxFuture<'a, Result<Vec<Outcome<ErasedAnswer>>>> {
            Box::pin(async move {
                let changes = members::<C>(jobs);
                let outcomes = C::apply(tx, &changes).await?;
                Ok(outcomes.into_iter().map(Outcome::erase).collect())
            })
        }
        fn foresee<C: Change>(
            jobs: Members<'_>,
            now: SystemTime,
        ) -> Option<Foreseen<ErasedAnswer>> {
            Some(C::FORESEE?(&members::<C>(jobs), now).erase())
        }
        let is_foreseen = C::FORESEE.is_some() && !self.must_look();
        let foresee: Option<Foresee> = is_foreseen.then_some(foresee::<C>);
        Kind { apply: apply::<C>, foresee }
    }

    fn keys(&self) -> Vec<RowKey> {
        let mut keys = Vec::with_capacity(1);
        self.touches(&mut keys);
        keys
    }

    fn bytes(&self) -> usize {
        self.size_bytes()
    }

    fn subjects(&self) -> Vec<(&'static str, &str)> {
        self.about()
    }

    fn wants_to_be_alone(&self) -> bool {
        self.is_alone()
    }

    fn does_to_embeddings(&self) -> Embeddings {
        self.embeddings()
    }
}

/// A change in the queue whose type the queue need not know.
trait Erased: Send + Sync {
    fn change(&self) -> &dyn AnyChange;
    fn rebuild(&self, entries: &[LogRow]) -> Result<ErasedAnswer>;
    fn reply(self: Box<Self>, result: Result<(ErasedAnswer, Receipt)>);
}

struct Waiting<C: Change> {
    change: C,
    reply: oneshot::Sender<Result<(C::Answer, Receipt)>>,
}

impl<C: Change> Erased for Waiting<C> {
    fn change(&self) -> &dyn AnyChange {
        &self.change
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<ErasedAnswer> {
        Ok(Box::new(self.change.rebuild(entries)?))
    }

    fn reply(self: Box<Self>, result: Result<(ErasedAnswer, Receipt)>) {
        let result = result.and_then(|(answer, receipt)| match answer.downcast::<C::Answer>() {
            Ok(answer) => Ok((*answer, receipt)),
            Err(_) => Err(Error::internal("an answer of another change's type")),
        });
        // A caller that has gone away needs no answer.
        let _ = self.reply.send(result);
    }
}

impl<A: Send + 'static> Outcome<A> {
    fn erase(self) -> Outcome<ErasedAnswer> {
        match self {
            Outcome::Done { answer, entries, shown } => {
                Outcome::Done { answer: Box::new(answer), entries, shown }
            }
            Outcome::Failed(error) => Outcome::Failed(error),
            Outcome::Spoiled(error) => Outcome::Spoiled(error),
        }
    }
}

/// Requests as the queue shares them with the attempts at them.
type Batch = Arc<Vec<Job>>;
