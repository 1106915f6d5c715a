//! Gathers writes into batches while earlier ones commit, and sees each batch through to truthful answers.

use super::attempt::{Attempted, Verdict, attempt};
use super::foresight::Foresight;
use super::{Batch, Embeddings, Job, RowKey};
use crate::store::backend::{Backend, Op};
use crate::store::pace::{HOLD_MAX, Lanes};
use crate::store::postgres::Lane;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::TxOutcome;
use crate::{Error, Reason, Result};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How writes are batched.
#[derive(Clone, Debug)]
pub struct WriteSettings {
    /// Batches in flight at once, each on its own connection.
    pub lanes: usize,
    pub batch_requests_max: usize,
    pub batch_size_bytes_max: usize,
    /// About how many bytes of all tenants may wait.
    pub queue_size_bytes_max: usize,
    /// Calls of one tenant that may wait; one more is refused with `OVERLOADED`.
    pub queue_per_tenant_max: usize,
}

/// A batch that was sent is given this long, whatever its callers' deadlines: cutting it short would only leave
/// them in doubt. PostgreSQL's statement_timeout is shorter.
const ATTEMPT_MAX: Duration = Duration::from_secs(60);

/// How long a lost reply to COMMIT is looked into before its caller is told that the outcome is unknown.
const RESOLVE_MAX: Duration = Duration::from_secs(20);

#[derive(Clone)]
pub struct Writer(Arc<Shared>);

struct Shared {
    backend: Backend,
    metrics: Arc<Metrics>,
    settings: WriteSettings,
    foresight: Arc<Foresight>,
    state: Mutex<State>,
}

struct State {
    queues: HashMap<Arc<str>, Queue>,
    /// Tenants with work, in the order in which they are served.
    turns: VecDeque<Arc<str>>,
    waiting: usize,
    waiting_bytes: usize,
    lanes: Lanes,
    /// Rows of the batches in flight.
    busy: HashSet<RowKey>,
}

/// What waits of one tenant.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    size_bytes: usize,
}

impl Queue {
    fn push_back(&mut self, job: Job) {
        self.size_bytes += job.size_bytes;
        self.jobs.push_back(job);
    }

    fn push_front(&mut self, job: Job) {
        self.size_bytes += job.size_bytes;
        self.jobs.push_front(job);
    }

    fn pop_front(&mut self) -> Option<Job> {
        let job = self.jobs.pop_front()?;
        self.size_bytes -= job.size_bytes;
        Some(job)
    }
}

impl Writer {
    pub fn new(backend: Backend, metrics: Arc<Metrics>, settings: WriteSettings) -> Self {
        let state = State {
            queues: HashMap::new(),
            turns: VecDeque::new(),
            waiting: 0,
            waiting_bytes: 0,
            lanes: Lanes::new(settings.lanes),
            busy: HashSet::new(),
        };
        let (foresight, state) = (Arc::default(), Mutex::new(state));
        Self(Arc::new(Shared { backend, metrics, settings, foresight, state }))
    }

    /// Queues a job. Gives it back when its tenant, or all together, have too much waiting.
    pub(super) fn submit(&self, job: Box<Job>) -> Result<(), (Box<Job>, Error)> {
        let mut state = self.0.state();
        let settings = &self.0.settings;
        if state.refusal(&job, settings).is_some() {
            // Perhaps of what nobody waits for any more.
            state.sweep();
            self.0.metrics.write_queue.set(state.waiting as i64);
        }
        if let Some(message) = state.refusal(&job, settings) {
            let error = Error::Exhausted {
                reason: Reason::Overloaded,
                message: message.into(),
                retry_after: Some(Duration::from_millis(200)),
            };
            return Err((job, error));
        }
        state.push(*job);
        self.0.metrics.write_queue.set(state.waiting as i64);
        self.wake(&mut state);
        Ok(())
    }

    /// Puts a lane to work if it is time for that.
    fn wake(&self, state: &mut State) {
        if state.lanes.wants(state.waiting) {
            state.lanes.start();
            let writer = self.clone();
            tokio::spawn(async move { writer.work().await });
        } else if state.lanes.needs_timer(state.waiting) {
            let writer = self.clone();
            tokio::spawn(async move { writer.work_later().await });
        }
    }

    /// Takes up what is held back for a fuller batch.
    async fn work_later(self) {
        tokio::time::sleep(HOLD_MAX).await;
        {
            let mut state = self.0.state();
            state.lanes.timed_out();
            if state.waiting == 0 || !state.lanes.is_free() {
                return;
            }
            state.lanes.start();
        }
        self.work().await;
    }

    /// Runs a batch on the lane that was called. While it is under way, the next gathers.
    async fn work(self) {
        // Whoever is about to write has his turn first.
        tokio::task::yield_now().await;
        let (jobs, taken) = {
            let mut state = self.0.state();
            let part = state.lanes.part(state.waiting);
            let jobs = state.gather(&self.0.settings, part);
            let taken = state.lanes.take(jobs.len());
            self.0.metrics.write_queue.set(state.waiting as i64);
            if jobs.is_empty() {
                // All that waits wants rows that are in flight; the lane that has them calls again when it ends.
                state.lanes.end(taken);
                return;
            }
            self.wake(&mut state);
            (jobs, taken)
        };
        let rows: Vec<RowKey> = jobs.iter().flat_map(|job| job.rows.iter().copied()).collect();
        // On a task of its own, so that a panic costs its batch and not the lane.
        let writer = self.clone();
        if tokio::spawn(async move { writer.run(jobs).await }).await.is_err() {
            tracing::error!(
                "a write batch panicked; its callers are told that the outcome is unknown"
            );
        }
        let mut state = self.0.state();
        for row in rows {
            state.busy.remove(&row);
        }
        state.lanes.end(taken);
        self.wake(&mut state);
    }

    /// Sees a batch through: every job is answered, and truthfully.
    async fn run(&self, jobs: Vec<Job>) {
        let now = Instant::now();
        let (mut jobs, late): (Vec<Job>, Vec<Job>) =
            jobs.into_iter().partition(|job| job.caller.deadline > now);
        for job in late {
            job.change.reply(Err(Error::DeadlineExceeded(
                " while the write was queued; it was not made",
            )));
        }
        while !jobs.is_empty() {
            self.0.metrics.write_batch_requests.observe(jobs.len() as f64);
            let (batch, outcome) = self.attempt(jobs, Instant::now() + ATTEMPT_MAX).await;
            jobs = match outcome {
                Ok(Attempted::Answered(verdicts)) => {
                    self.0.metrics.transaction(TxOutcome::Commit);
                    self.answer(batch, verdicts, false);
                    return;
                }
                Ok(Attempted::Spoiled { index, error }) => {
                    self.0.metrics.transaction(TxOutcome::Abort);
                    let mut rest = batch;
                    rest.remove(index).change.reply(Err(error));
                    rest
                }
                Err(error @ Error::CommitUnknown(_)) => {
                    self.0.metrics.transaction(TxOutcome::Unknown);
                    self.resolve(batch, error).await;
                    return;
                }
                // What is no trouble of the whole database has one culprit, even a conflict that lasts; alone, each
                // job shows whether it is the one.
                Err(error) if batch.len() > 1 && !concerns_all(&error) => {
                    self.0.metrics.transaction(TxOutcome::Abort);
                    tracing::debug!(%error, jobs = batch.len(), "a batch failed; running its jobs one by one");
                    for job in batch {
                        Box::pin(self.run(vec![job])).await;
                    }
                    return;
                }
                Err(error) => {
                    self.0.metrics.transaction(TxOutcome::Abort);
                    for job in batch {
                        job.change.reply(Err(error.clone()));
                    }
                    return;
                }
            };
        }
    }

    /// One attempt through the back-end stack, which runs it again only if nothing was committed.
    async fn attempt(&self, jobs: Vec<Job>, deadline: Instant) -> (Vec<Job>, Result<Attempted>) {
        let batch: Batch = Arc::new(jobs);
        let commit_sent = Arc::new(AtomicBool::new(false));
        let op = {
            let (batch, commit_sent) = (Arc::clone(&batch), Arc::clone(&commit_sent));
            let foresight = Arc::clone(&self.0.foresight);
            Op::new("write.BATCH", Lane::Write, deadline, move |conn| {
                let (batch, commit_sent) = (Arc::clone(&batch), Arc::clone(&commit_sent));
                let foresight = Arc::clone(&foresight);
                Box::pin(async move { attempt(conn, &batch, &foresight, &commit_sent).await })
            })
        };
        let mut outcome = self.0.backend.call(op).await;
        if let Err(error @ Error::DeadlineExceeded(_)) = &outcome
            && commit_sent.load(Ordering::SeqCst)
        {
            outcome = Err(Error::CommitUnknown(Arc::new(error.clone())));
        }
        // The stack has let go of its copies: the operation is over.
        match Arc::try_unwrap(batch) {
            Ok(jobs) => (jobs, outcome),
            Err(_) => {
                (Vec::new(), Err(Error::internal("a batch is still in use after its attempt")))
            }
        }
    }

    /// Finds out what became of a COMMIT whose reply was lost. Claiming the same request id again waits for the old
    /// transaction to end and then shows whether it committed; without a request id nobody can tell.
    async fn resolve(&self, jobs: Vec<Job>, error: Error) {
        let (mut known, unknown): (Vec<Job>, Vec<Job>) =
            jobs.into_iter().partition(|job| job.options.request.is_some());
        for job in unknown {
            job.change.reply(Err(error.clone()));
        }
        let until = Instant::now() + RESOLVE_MAX;
        let mut pause = Duration::from_millis(25);
        while !known.is_empty() {
            let (batch, outcome) = self.attempt(known, until).await;
            known = match outcome {
                Ok(Attempted::Answered(verdicts)) => {
                    self.answer(batch, verdicts, true);
                    return;
                }
                Ok(Attempted::Spoiled { index, error }) => {
                    let mut rest = batch;
                    rest.remove(index).change.reply(Err(error));
                    rest
                }
                Err(_) if Instant::now() + pause < until => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                    batch
                }
                Err(_) => {
                    for job in batch {
                        job.change.reply(Err(error.clone()));
                    }
                    return;
                }
            };
        }
    }

    /// Gives each job its verdict. After a lost reply (`first_time`), what the ledger shows is the call's own answer.
    fn answer(&self, batch: Vec<Job>, verdicts: Vec<Verdict>, first_time: bool) {
        for (job, verdict) in batch.into_iter().zip(verdicts) {
            job.change.reply(match verdict {
                Verdict::Done(answer, mut receipt) => {
                    receipt.replayed &= !first_time;
                    if receipt.replayed {
                        self.0.metrics.request_replays.inc();
                    }
                    Ok((answer, receipt))
                }
                Verdict::Failed(error) => Err(error),
            });
        }
    }
}

/// Whether an attempt failed for a reason that no other choice of jobs would have changed.
fn concerns_all(error: &Error) -> bool {
    matches!(error, Error::Unavailable { .. } | Error::Exhausted { .. } | Error::ShuttingDown)
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Why a job cannot wait. A tenant may fill a quarter of the bytes, so that others find room beside it; a lone job
    /// always fits.
    fn refusal(&self, job: &Job, settings: &WriteSettings) -> Option<&'static str> {
        let max = settings.queue_size_bytes_max;
        if let Some(queue) = self.queues.get(&job.caller.tenant) {
            if queue.jobs.len() >= settings.queue_per_tenant_max {
                return Some("too many writes of this tenant are waiting");
            }
            if queue.size_bytes + job.size_bytes > max / 4 && !queue.jobs.is_empty() {
                return Some("too many bytes of this tenant's writes are waiting");
            }
        }
        (self.waiting > 0 && self.waiting_bytes + job.size_bytes > max)
            .then_some("too many bytes of writes are waiting")
    }

    fn push(&mut self, job: Job) {
        let tenant = Arc::clone(&job.caller.tenant);
        self.waiting += 1;
        self.waiting_bytes += job.size_bytes;
        let queue = self.queues.entry(Arc::clone(&tenant)).or_default();
        if queue.jobs.is_empty() {
            self.turns.push_back(tenant);
        }
        queue.push_back(job);
    }

    /// Drops the jobs whose callers have given up.
    fn sweep(&mut self) {
        for queue in self.queues.values_mut() {
            for job in std::mem::take(queue).jobs {
                if job.fate.is_given_up() {
                    self.waiting -= 1;
                    self.waiting_bytes -= job.size_bytes;
                } else {
                    queue.push_back(job);
                }
            }
        }
        self.queues.retain(|_, queue| !queue.jobs.is_empty());
        let queues = &self.queues;
        self.turns.retain(|tenant| queues.contains_key(tenant));
    }

    /// The next batch: one job of each tenant in turn, oldest first, until the batch is full. A job waits when it
    /// touches a row that is in flight, in this batch, or wanted by an older job that waits.
    fn gather(&mut self, settings: &WriteSettings, part: usize) -> Vec<Job> {
        let mut batch: Vec<Job> = Vec::new();
        let mut size_bytes = 0;
        let mut held: HashMap<Arc<str>, VecDeque<Job>> = HashMap::new();
        let mut wanted: HashSet<RowKey> = HashSet::new();
        let mut embeddings: HashMap<Arc<str>, Embeddings> = HashMap::new();
        let mut next: Option<Arc<str>> = None;
        while let Some(tenant) = self.turns.pop_front() {
            let Some(queue) = self.queues.get_mut(&tenant) else { continue };
            let Some(job) = queue.pop_front() else {
                self.queues.remove(&tenant);
                continue;
            };
            let more = !queue.jobs.is_empty();
            let blocked =
                job.rows.iter().any(|row| self.busy.contains(row) || wanted.contains(row));
            let alone = job.is_alone;
            let at_odds = embeddings.get(&tenant);
            let at_odds = at_odds.is_some_and(|others| job.embeddings.is_at_odds_with(*others));
            if blocked || at_odds || (alone && !batch.is_empty()) {
                if !blocked {
                    next.get_or_insert_with(|| Arc::clone(&tenant));
                }
                wanted.extend(job.rows.iter().copied());
                held.entry(Arc::clone(&tenant)).or_default().push_back(job);
                if more {
                    self.turns.push_front(tenant);
                }
                continue;
            }
            let full = batch.len() + 1 > settings.batch_requests_max.min(part)
                || (!batch.is_empty()
                    && size_bytes + job.size_bytes > settings.batch_size_bytes_max);
            if full {
                queue.push_front(job);
                self.turns.push_front(tenant);
                break;
            }
            self.waiting -= 1;
            self.waiting_bytes -= job.size_bytes;
            if more {
                self.turns.push_back(tenant);
            }
            // From here on its caller waits for the truth.
            if !job.fate.begin() {
                continue;
            }
            size_bytes += job.size_bytes;
            self.busy.extend(job.rows.iter().copied());
            if job.embeddings != Embeddings::Untouched {
                embeddings.insert(Arc::clone(&job.caller.tenant), job.embeddings);
            }
            batch.push(job);
            if alone {
                break;
            }
        }
        for (tenant, jobs) in held {
            let queue = self.queues.entry(Arc::clone(&tenant)).or_default();
            for job in jobs.into_iter().rev() {
                queue.push_front(job);
            }
            if !self.turns.contains(&tenant) {
                self.turns.push_back(tenant);
            }
        }
        self.queues.retain(|_, queue| !queue.jobs.is_empty());
        // Else one that goes alone would never come first while another tenant fills batch after batch.
        if let Some(tenant) = next {
            self.turns.retain(|other| *other != tenant);
            self.turns.push_front(tenant);
        }
        let queues = &self.queues;
        self.turns.retain(|tenant| queues.contains_key(tenant));
        batch
    }
}
