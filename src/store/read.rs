//! Point reads, batched: concurrent gets share one statement per tenant and kind.

use super::backend::{Backend, Op};
use super::caller::Caller;
use super::noun::Noun;
use super::pace::{HOLD_MAX, Lanes};
use super::postgres::{Conn, Lane, in_order};
use super::tenant;
use crate::telemetry::Metrics;
use crate::{Error, Result};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

/// How point reads are batched.
#[derive(Clone, Debug)]
pub struct ReadSettings {
    /// Batches in flight at once, each on its own connection.
    pub lanes: usize,
    /// Reads in one batch.
    pub batch_max: usize,
    /// Reads that may wait; one more is refused with `OVERLOADED`.
    pub queue_max: usize,
}

#[derive(Clone)]
pub struct Reader(Arc<Shared>);

struct Shared {
    backend: Backend,
    metrics: Arc<Metrics>,
    settings: ReadSettings,
    state: Mutex<State>,
}

struct State {
    queue: VecDeque<Waiting>,
    lanes: Lanes,
}

/// One get that waits for its batch.
struct Waiting {
    tenant: Arc<str>,
    sql: &'static str,
    id: String,
    deadline: Instant,
    /// Reads the row, if there is one, and answers the caller.
    reply: Box<dyn FnOnce(Result<Option<&Row>>) + Send>,
}

/// The rows of one tenant and statement, as asked for.
struct Question {
    tenant: Arc<str>,
    sql: &'static str,
    ids: Vec<String>,
}

impl Reader {
    pub fn new(backend: Backend, metrics: Arc<Metrics>, settings: ReadSettings) -> Self {
        let state = State { queue: VecDeque::new(), lanes: Lanes::new(settings.lanes) };
        Self(Arc::new(Shared { backend, metrics, settings, state: Mutex::new(state) }))
    }

    /// The live row of that id.
    pub async fn get<T: Noun>(&self, caller: &Caller, id: String) -> Result<Option<T>> {
        let (reply, answer) = oneshot::channel();
        let waiting = Waiting {
            tenant: Arc::clone(&caller.tenant),
            sql: T::get().sql(),
            id,
            deadline: caller.deadline,
            reply: Box::new(move |found| {
                let row = found.and_then(|row| Ok(row.map(T::from_row).transpose()?));
                // A caller that has gone away needs no answer.
                let _ = reply.send(row);
            }),
        };
        {
            let mut state = self.0.state();
            if state.queue.len() >= self.0.settings.queue_max {
                return Err(Error::Exhausted {
                    reason: crate::Reason::Overloaded,
                    message: "too many reads are waiting".into(),
                    retry_after: Some(std::time::Duration::from_millis(100)),
                });
            }
            state.queue.push_back(waiting);
            self.wake(&mut state);
        }
        match tokio::time::timeout_at(caller.deadline, answer).await {
            Ok(answer) => answer.map_err(|_| Error::ShuttingDown)?,
            Err(_) => Err(Error::DeadlineExceeded(" while the read was waiting")),
        }
    }

    /// Puts a lane to work if it is time for that.
    fn wake(&self, state: &mut State) {
        if state.lanes.wants(state.queue.len()) {
            state.lanes.start();
            let reader = self.clone();
            tokio::spawn(async move { reader.work().await });
        } else if state.lanes.needs_timer(state.queue.len()) {
            let reader = self.clone();
            tokio::spawn(async move { reader.work_later().await });
        }
    }

    /// Takes up what is held back for a fuller batch.
    async fn work_later(self) {
        tokio::time::sleep(HOLD_MAX).await;
        {
            let mut state = self.0.state();
            state.lanes.timed_out();
            if state.queue.is_empty() || !state.lanes.is_free() {
                return;
            }
            state.lanes.start();
        }
        self.work().await;
    }

    /// Runs a batch on the lane that was called. While it is under way, the next gathers.
    async fn work(self) {
        // Whoever is about to ask has his turn first.
        tokio::task::yield_now().await;
        let (batch, taken) = {
            let mut state = self.0.state();
            let waiting = state.queue.len();
            let n = state.lanes.part(waiting).min(self.0.settings.batch_max).min(waiting);
            let taken = state.lanes.take(n);
            let batch: Vec<Waiting> = state.queue.drain(..n).collect();
            self.wake(&mut state);
            (batch, taken)
        };
        let reader = self.clone();
        // On a task of its own, so that a panic costs its batch and not the lane.
        if !batch.is_empty() && tokio::spawn(async move { reader.run(batch).await }).await.is_err()
        {
            tracing::error!(
                "a read batch panicked; its callers are answered as if the server had stopped"
            );
        }
        let mut state = self.0.state();
        state.lanes.end(taken);
        self.wake(&mut state);
    }

    async fn run(&self, batch: Vec<Waiting>) {
        self.0.metrics.read_batch_requests.observe(batch.len() as f64);
        let now = Instant::now();
        let latest = batch.iter().map(|waiting| waiting.deadline).max().unwrap_or(now);
        let mut groups: BTreeMap<(Arc<str>, &'static str), Vec<Waiting>> = BTreeMap::new();
        for waiting in batch {
            groups.entry((Arc::clone(&waiting.tenant), waiting.sql)).or_default().push(waiting);
        }
        let questions: Arc<Vec<Question>> = Arc::new(
            groups
                .iter()
                .map(|((tenant, sql), waiting)| Question {
                    tenant: Arc::clone(tenant),
                    sql,
                    ids: waiting.iter().map(|waiting| waiting.id.clone()).collect(),
                })
                .collect(),
        );
        let op = Op::new("read.BATCH", Lane::Read, latest, move |conn| {
            let questions = Arc::clone(&questions);
            Box::pin(async move { ask(conn, &questions).await })
        });
        match self.0.backend.call(op).await {
            Ok(answers) => {
                for (waiting, rows) in groups.into_values().zip(answers) {
                    let rows: HashMap<&str, &Row> = rows
                        .iter()
                        .filter_map(|row| Some((row.try_get::<_, &str>("id").ok()?, row)))
                        .collect();
                    for waiting in waiting {
                        let row = rows.get(waiting.id.as_str()).copied();
                        (waiting.reply)(Ok(row));
                    }
                }
            }
            Err(error) => {
                for waiting in groups.into_values().flatten() {
                    (waiting.reply)(Err(error.clone()));
                }
            }
        }
    }
}

/// Asks all questions in one flight and one transaction, each right behind its tenant setting.
async fn ask(conn: Conn, questions: &[Question]) -> Result<Vec<Vec<Row>>> {
    let set_tenant = conn.prepare(tenant::SET_TENANT.sql()).await?;
    let mut prepared = Vec::with_capacity(questions.len());
    for question in questions {
        prepared.push(conn.prepare(question.sql).await?);
    }
    let (client, set_tenant) = (conn.client(), &set_tenant);
    let (begun, answers, ended) = futures_util::join!(
        client.batch_execute("BEGIN"),
        in_order(questions.iter().zip(&prepared).map(|(question, statement)| async move {
            let tenant: [&(dyn ToSql + Sync); 1] = [&&*question.tenant];
            let ids: [&(dyn ToSql + Sync); 1] = [&question.ids];
            let (set, rows) = futures_util::join!(
                client.query(set_tenant, &tenant),
                client.query(statement, &ids)
            );
            set?;
            rows
        })),
        client.batch_execute("COMMIT"),
    );
    begun?;
    let answers = answers.into_iter().collect::<Result<_, _>>()?;
    ended?;
    conn.done();
    Ok(answers)
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
