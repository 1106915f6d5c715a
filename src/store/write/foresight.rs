//! One attempt at a batch in one flight: what most batches write is known before anything is asked.
//!
//! A batch that only inserts needs no answer on its way, if its ids and request ids turn out to be new. So all of it is
//! sent at once, BEGIN to COMMIT, with statements that fail where the careful ones look; then nothing is committed, and
//! the careful attempt finds out what stood in the way. It saves two round trips in three, and with them the time for
//! which the tenant's log is locked.

use super::attempt::{Group, Progress, Settlement, Statements, Verdict, members};
use super::flight::Flight;
use super::{ErasedAnswer, Job};
use crate::store::canonical::to_micros;
use crate::store::log::Entry;
use crate::store::noun::Noun;
use crate::store::postgres::{Conn, in_order, read_rows};
use crate::store::query::{Params, Query};
use crate::store::request_ledger as ledger;
use crate::store::tenant::TenantSet;
use crate::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

/// What changes of one kind write if all of it is new.
pub struct Foreseen<A> {
    /// In this order.
    pub inserts: Vec<Insert>,
    /// For each change its answer and its log entries.
    pub outcomes: Vec<(A, Vec<Entry>)>,
}

impl<A: Send + 'static> Foreseen<A> {
    pub(super) fn erase(self) -> Foreseen<ErasedAnswer> {
        let erase = |(answer, entries)| (Box::new(answer) as ErasedAnswer, entries);
        Foreseen { inserts: self.inserts, outcomes: self.outcomes.into_iter().map(erase).collect() }
    }
}

/// A statement that inserts all of its rows or fails, or one that follows such a statement.
pub struct Insert {
    sql: &'static str,
    columns: Box<dyn Params>,
    /// How many it must write.
    rows: Option<u64>,
}

impl Insert {
    /// One that must write so many rows or fail.
    pub fn exactly<P: Params + 'static>(
        query: &'static Query<P, ()>,
        columns: P,
        rows: usize,
    ) -> Self {
        Self { sql: query.sql(), columns: Box::new(columns), rows: Some(rows as u64) }
    }

    /// One that follows others, and writes as much as there is to write.
    pub fn after<P: Params + 'static>(query: &'static Query<P, ()>, columns: P) -> Self {
        Self { sql: query.sql(), columns: Box::new(columns), rows: None }
    }

    /// All that new rows of a noun ask for.
    pub fn all_of<T: Noun>(rows: &[&T]) -> Vec<Self> {
        if rows.is_empty() {
            return Vec::new();
        }
        let columns = Box::new(T::unnest(rows.iter().copied()));
        let mut all =
            vec![Self { sql: T::insert_new().sql(), columns, rows: Some(rows.len() as u64) }];
        if let Some(resolve) = T::facts().resolve {
            let ids: Vec<String> = rows.iter().map(|row| row.id().to_owned()).collect();
            let uids: Vec<Uuid> = rows.iter().map(|row| row.meta().uid).collect();
            all.push(Self { sql: resolve.sql(), columns: Box::new((ids, uids)), rows: None });
        }
        all
    }
}

/// Longest pause after batches that were not as foreseen, in batches.
const PAUSE_MAX: u32 = 64;

/// What has to be known to send a batch unseen: PostgreSQL's time, and whether it has been going well.
#[derive(Default)]
pub(super) struct Foresight(Mutex<State>);

#[derive(Default)]
struct State {
    clock: Option<Clock>,
    /// The latest time given out: no batch gets an earlier one than a batch before it.
    latest: Option<SystemTime>,
    /// Batches to be made carefully before the next try.
    pause: u32,
    /// The length of the pause after the next miss.
    penalty: u32,
}

/// A moment on both of our clocks: one never jumps, the other goes on while the machine sleeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    steady: Instant,
    system: SystemTime,
}

impl Moment {
    pub fn now() -> Self {
        Self { steady: Instant::now(), system: SystemTime::now() }
    }
}

/// PostgreSQL's clock as seen from here: a time that it had reached at a moment of ours.
#[derive(Clone, Copy, Debug)]
struct Clock {
    at: Moment,
    theirs: SystemTime,
}

/// What is older says nothing: clocks drift.
const CLOCK_AGE_MAX: Duration = Duration::from_secs(10);
/// When it is off by more, a clock was set or a machine slept.
const CLOCK_STEP: Duration = Duration::from_secs(1);

impl Clock {
    /// Their time at that moment; `None` if it is better asked for.
    fn at(&self, moment: Moment) -> Option<SystemTime> {
        let age = moment.steady.checked_duration_since(self.at.steady)?;
        let slept = match moment.system.duration_since(self.at.system) {
            Ok(on_system) => on_system.abs_diff(age),
            Err(set_back) => set_back.duration() + age,
        };
        (age <= CLOCK_AGE_MAX && slept <= CLOCK_STEP).then(|| self.theirs + age)
    }

    /// Takes note of the time told by a transaction between those moments. So at the first of them they had not passed
    /// it, and at the second they had reached it. Within these bounds the clock stays as it is, and it begins at the
    /// lower one: it is never ahead of theirs, so what follows an answer is not dated before it. (By this server, that is:
    /// another one's clock may lag by the time that a flight takes.)
    fn heard(
        known: Option<Self>,
        sent: Moment,
        received: Moment,
        told: SystemTime,
    ) -> Option<Self> {
        let least = Self { at: received, theirs: told };
        let Some(expected) = known.and_then(|clock| clock.at(received)) else { return Some(least) };
        let most = told + received.steady.saturating_duration_since(sent.steady);
        let theirs = expected.clamp(told, most);
        let off = theirs.duration_since(expected).unwrap_or_else(|error| error.duration());
        (off <= CLOCK_STEP).then_some(Self { at: received, theirs })
    }
}

impl Foresight {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // No code that can panic runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time for a batch that may be sent unseen.
    fn try_now(&self) -> Option<SystemTime> {
        let mut state = self.state();
        if state.pause > 0 {
            state.pause -= 1;
            return None;
        }
        let now = to_micros(state.clock?.at(Moment::now())?);
        let now = state.latest.map_or(now, |latest| latest.max(now));
        state.latest = Some(now);
        Some(now)
    }

    /// A transaction that was sent at that moment has told its time just now.
    pub(super) fn heard(&self, sent: Moment, told: SystemTime) {
        let mut state = self.state();
        state.clock = Clock::heard(state.clock, sent, Moment::now(), told);
        if state.clock.is_none() {
            state.latest = None;
        }
    }

    fn hit(&self) {
        self.state().penalty = 0;
    }

    /// Where ids are often taken, it is cheaper to look first.
    fn missed(&self) {
        let mut state = self.state();
        state.pause = state.penalty;
        state.penalty = (state.penalty * 2 + 1).min(PAUSE_MAX);
    }
}

/// A tenant's part of the flight.
struct Part<'a> {
    settlement: Settlement<'a>,
    claims: ledger::Keys,
    inserts: Vec<Insert>,
}

/// The batch as it is foreseen.
pub(super) struct Plan<'a> {
    parts: Vec<Part<'a>>,
    progress: Vec<Progress>,
}

/// Plans the batch if all of it can be foreseen.
pub(super) fn plan<'a>(
    foresight: &Foresight,
    groups: &[Group<'a>],
    jobs: &'a [Job],
) -> Option<Plan<'a>> {
    let careful = |job: &Job| {
        job.options.validate_only
            || !job.options.preconditions.is_empty()
            || job.caller.strict_references
    };
    if jobs.iter().any(careful) {
        return None;
    }
    if jobs.iter().any(|job| job.change.change().kind().foresee.is_none()) {
        return None;
    }
    let now = foresight.try_now()?;
    let mut progress: Vec<Progress> = jobs.iter().map(|_| Progress::Open).collect();
    let mut parts = Vec::with_capacity(groups.len());
    for group in groups {
        let mut inserts = Vec::new();
        for (kind, indexes) in group.kinds(jobs, &progress) {
            let foreseen = kind.foresee?(members(jobs, &indexes), now)?;
            if foreseen.outcomes.len() != indexes.len() {
                return None;
            }
            inserts.extend(foreseen.inserts);
            for (index, (answer, entries)) in indexes.into_iter().zip(foreseen.outcomes) {
                progress[index] = Progress::Applied {
                    answer,
                    unchanged: entries.is_empty(),
                    entries,
                    shown: Vec::new(),
                };
            }
        }
        let claims = group.claims(jobs);
        let settlement =
            Settlement::new(group.tenant, now, jobs, group, &mut progress, |_| Vec::new());
        parts.push(Part { settlement, claims, inserts });
    }
    Some(Plan { parts, progress })
}

/// Sends the plan. `Ok(None)` when something was not as foreseen: nothing was written, and the connection is clean.
pub(super) async fn fly(
    conn: &Conn,
    statements: &Statements,
    foresight: &Foresight,
    jobs: usize,
    plan: Plan<'_>,
    commit_sent: &AtomicBool,
) -> Result<Option<Vec<Verdict>>> {
    let Plan { parts, progress } = plan;
    let claim = conn.prepare(ledger::CLAIM_NEW.sql()).await?;
    let mut inserts = Vec::new();
    for part in &parts {
        let mut prepared = Vec::with_capacity(part.inserts.len());
        for insert in &part.inserts {
            prepared.push(conn.prepare(insert.sql).await?);
        }
        inserts.push(prepared);
    }
    let sent = Moment::now();
    commit_sent.store(true, Ordering::SeqCst);
    let (flight, claim, several) = (&Flight::new(conn.client()), &claim, parts.len() > 1);
    let set_tenant = async |part: &Part<'_>| {
        let tenant: [&(dyn ToSql + Sync); 1] = [&part.settlement.tenant];
        flight.query(&statements.set_tenant, &tenant).await
    };
    // In each tenant first what may have to wait for others, and the locks on the logs after all of that. Everything is
    // sent on the first poll, in this order.
    let (begun, inserted, finished, ended) = futures_util::join!(
        flight.begin(),
        in_order(parts.iter().zip(&inserts).map(|(part, prepared)| async move {
            let claims = part.claims.with_digests();
            let (set, claimed, inserted) = futures_util::join!(
                set_tenant(part),
                async {
                    if part.claims.is_empty() {
                        Ok(0)
                    } else {
                        flight.execute(claim, &claims.as_sql()).await
                    }
                },
                in_order(part.inserts.iter().zip(prepared).map(|(insert, prepared)| async move {
                    let rows = flight.execute(prepared, &insert.columns.as_sql()).await?;
                    Ok::<_, tokio_postgres::Error>(insert.rows.is_none_or(|wanted| wanted == rows))
                })),
            );
            let set = set?;
            claimed?;
            let inserted = inserted.into_iter().collect::<Result<Vec<_>, _>>()?;
            Ok::<_, tokio_postgres::Error>((set, inserted))
        })),
        in_order(parts.iter().map(|part| async move {
            let (set, base) = futures_util::join!(
                async { if several { set_tenant(part).await.map(drop) } else { Ok(()) } },
                part.settlement.finish(flight, statements),
            );
            set.and(base)
        })),
        flight.end(),
    );
    // The first failure is the cause; what follows it only reports an aborted transaction.
    let done = begun.and_then(|()| inserted.into_iter().collect::<Result<Vec<_>, _>>()).and_then(
        |inserted| {
            let bases = finished.into_iter().collect::<Result<Vec<_>, _>>()?;
            ended.map(|()| inserted.into_iter().zip(bases))
        },
    );
    let done = match done {
        Ok(done) => done,
        // Whatever an integrity constraint stands for, the careful attempt finds it out.
        Err(error) if error.code().is_some_and(|code| code.code().starts_with("23")) => {
            foresight.missed();
            commit_sent.store(false, Ordering::SeqCst);
            return Ok(None);
        }
        Err(error) => return Err(flight.failed(error, commit_sent)),
    };
    // It is committed: from here on nothing may look as if it could run again.
    let unknown = |error: Error| Error::CommitUnknown(std::sync::Arc::new(error));
    let mut seqs = vec![0; jobs];
    for (n, (part, ((set, inserted), base))) in parts.iter().zip(done).enumerate() {
        if inserted.contains(&false) {
            return Err(unknown(Error::internal("an insert wrote less than its rows")));
        }
        part.settlement.number(base, &mut seqs).map_err(unknown)?;
        if n == 0 {
            let set: Vec<TenantSet> = read_rows(&set).map_err(unknown)?;
            if let Some(set) = set.first() {
                foresight.heard(sent, set.now);
            }
        }
    }
    foresight.hit();
    Ok(Some(progress.into_iter().zip(seqs).map(|(state, seq)| state.over(seq, false)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn later(moment: Moment, by: u64) -> Moment {
        Moment { steady: moment.steady + ms(by), system: moment.system + ms(by) }
    }

    #[test]
    fn the_clock_is_never_ahead_and_keeps_within_what_it_is_told() {
        let (start, epoch) = (Moment::now(), SystemTime::UNIX_EPOCH);
        // Sent at 0, told 1000, received at 400: it may have been told at any time between.
        let clock = Clock::heard(None, start, later(start, 400), epoch + ms(1000)).unwrap();
        assert_eq!(clock.at(later(start, 405)), Some(epoch + ms(1005)));
        let hear = |clock: Clock, sent, received, told| {
            Clock::heard(Some(clock), later(start, sent), later(start, received), epoch + ms(told))
        };
        // A quicker word: they are further than we thought.
        let clock = hear(clock, 500, 501, 1350).unwrap();
        assert_eq!(clock.at(later(start, 501)), Some(epoch + ms(1350)));
        // A slow one that does not contradict it changes nothing.
        let clock = hear(clock, 600, 900, 1451).unwrap();
        assert_eq!(clock.at(later(start, 900)), Some(epoch + ms(1749)));
        // Their clock goes slower than ours.
        let clock = hear(clock, 1000, 1001, 1840).unwrap();
        assert_eq!(clock.at(later(start, 1001)), Some(epoch + ms(1841)));
        // It was set: ask again.
        assert!(hear(clock, 1100, 1101, 9000).is_none());
        assert!(hear(clock, 1100, 1101, 100).is_none());
    }

    #[test]
    fn an_old_word_and_a_machine_that_slept_are_not_trusted() {
        let start = Moment::now();
        let clock = Clock { at: start, theirs: SystemTime::UNIX_EPOCH };
        assert!(clock.at(later(start, 10_000)).is_some());
        assert_eq!(clock.at(later(start, 10_001)), None);
        let slept = Moment { system: start.system + ms(7_200_000), ..later(start, 5) };
        assert_eq!(clock.at(slept), None);
        let set_back = Moment { system: start.system - ms(7_200_000), ..later(start, 5) };
        assert_eq!(clock.at(set_back), None);
    }

    #[test]
    fn nothing_is_sent_unseen_before_a_time_is_known() {
        let foresight = Foresight::default();
        assert_eq!(foresight.try_now(), None);
        let told = SystemTime::UNIX_EPOCH + ms(7);
        foresight.heard(Moment::now(), told);
        let now = foresight.try_now().expect("a time");
        assert!(now >= told, "{now:?}");
        let since = now.duration_since(SystemTime::UNIX_EPOCH).expect("after the epoch");
        assert_eq!(since.subsec_nanos() % 1000, 0, "PostgreSQL keeps microseconds");
        // A little back, as after a correction: times that were given out are not undercut.
        foresight.heard(Moment::now(), told - ms(6));
        assert!(foresight.try_now().expect("a time") >= now);
    }

    #[test]
    fn misses_in_a_row_make_the_pause_longer() {
        let foresight = Foresight::default();
        foresight.heard(Moment::now(), SystemTime::now());
        let pause = || (0..).find(|_| foresight.try_now().is_some()).expect("it tries again");
        let after_miss = || {
            foresight.missed();
            pause()
        };
        let pauses: Vec<i32> = std::iter::repeat_with(after_miss).take(9).collect();
        assert_eq!(pauses, [0, 1, 3, 7, 15, 31, 63, 64, 64]);
        foresight.hit();
        assert_eq!(after_miss(), 0);
    }
}
