//! One attempt at a batch in one flight: what most batches write is known before anything is asked.
//!
//! A batch that only inserts needs no answer on its way, if its ids and request ids turn out to be new. So all of it is
//! sent at once, BEGIN to COMMIT, with statements that fail where the careful ones look; then nothing is committed, and
//! the careful attempt finds out what stood in the way. It saves two round trips in three, and with them the time for
//! which the tenant's log is locked.

use super::attempt::{Group, Progress, Settlement, Statements, Verdict};
use super::flight::Flight;
use super::{ErasedAnswer, Job};
use crate::store::log::Entry;
use crate::store::noun::Noun;
use crate::store::postgres::{Conn, in_order, read_rows};
use crate::store::query::Params;
use crate::store::request_ledger as ledger;
use crate::store::tenant::TenantSet;
use crate::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio_postgres::types::ToSql;

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

/// A statement that inserts all of its rows or fails.
pub struct Insert {
    sql: &'static str,
    columns: Vec<Box<dyn ToSql + Send + Sync>>,
    rows: u64,
}

impl Insert {
    pub fn of<T: Noun>(rows: &[T]) -> Self {
        let columns = T::unnest(rows).into_columns();
        Self { sql: T::insert_new().sql(), columns, rows: rows.len() as u64 }
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
    /// Batches to be made carefully before the next try.
    pause: u32,
    /// The length of the pause after the next miss.
    penalty: u32,
}

/// PostgreSQL's clock, as seen from here: its time at a moment of ours.
#[derive(Clone, Copy)]
struct Clock {
    at: Instant,
    theirs: SystemTime,
}

impl Clock {
    fn at(self, moment: Instant) -> SystemTime {
        match moment.checked_duration_since(self.at) {
            Some(later) => self.theirs + later,
            None => self.theirs - self.at.duration_since(moment),
        }
    }

    /// Takes note of a time told by a transaction that was sent at that moment. It tells it some time later, so the
    /// earliest is the best; a little is given way each time, because clocks drift.
    fn heard(self, sent: Instant, theirs: SystemTime) -> Self {
        const STEP: Duration = Duration::from_secs(1);
        let expected = self.at(sent);
        let theirs = match theirs.duration_since(expected) {
            // It was set.
            Ok(later) if later > STEP => theirs,
            Ok(later) => expected + later / 64,
            Err(_) => theirs,
        };
        Self { at: sent, theirs }
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
        Some(whole_us(state.clock?.at(Instant::now())))
    }

    pub(super) fn heard(&self, sent: Instant, theirs: SystemTime) {
        let mut state = self.state();
        state.clock = Some(match state.clock {
            Some(clock) => clock.heard(sent, theirs),
            None => Clock { at: sent, theirs },
        });
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

/// As PostgreSQL keeps times.
fn whole_us(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_micros(since.as_micros() as u64)
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
    let careful = |job: &Job| job.options.validate_only || !job.options.preconditions.is_empty();
    if jobs.iter().any(careful) {
        return None;
    }
    if jobs.iter().any(|job| job.change.kind().foresee.is_none()) {
        return None;
    }
    let now = foresight.try_now()?;
    let mut progress: Vec<Progress> = jobs.iter().map(|_| Progress::Open).collect();
    let mut parts = Vec::with_capacity(groups.len());
    for group in groups {
        let mut inserts = Vec::new();
        for (kind, indexes) in group.kinds(jobs, &progress) {
            let members =
                indexes.iter().map(|&i| (jobs[i].change.as_ref(), &jobs[i].caller)).collect();
            let foreseen = kind.foresee?(members, now)?;
            debug_assert_eq!(foreseen.outcomes.len(), indexes.len(), "an outcome for each change");
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
    let sent = Instant::now();
    commit_sent.store(true, Ordering::SeqCst);
    let flight = &Flight::new(conn.client());
    let (begun, parts_done, commit) = futures_util::join!(
        flight.begin(),
        in_order(parts.iter().zip(&inserts).map(|(part, prepared)| {
            let claim = &claim;
            async move {
                let tenant: [&(dyn ToSql + Sync); 1] = [&part.settlement.tenant];
                let claims = part.claims.with_digests();
                let claims = claims.as_sql();
                // Each is sent on the first poll of this join, in this order.
                let (set, claimed, inserted, base) = futures_util::join!(
                    flight.query(&statements.set_tenant, &tenant),
                    async {
                        if part.claims.is_empty() {
                            Ok(0)
                        } else {
                            flight.execute(claim, &claims).await
                        }
                    },
                    in_order(part.inserts.iter().zip(prepared).map(
                        |(insert, prepared)| async move {
                            let columns: Vec<&(dyn ToSql + Sync)> = insert
                                .columns
                                .iter()
                                .map(|c| c.as_ref() as &(dyn ToSql + Sync))
                                .collect();
                            flight.execute(prepared, &columns).await.map(|rows| rows == insert.rows)
                        }
                    )),
                    part.settlement.finish(flight, statements),
                );
                // The first failure is the cause; what follows it only reports an aborted transaction.
                let set = set?;
                claimed?;
                let inserted = inserted.into_iter().collect::<Result<Vec<_>, _>>()?;
                Ok::<_, tokio_postgres::Error>((set, inserted, base?))
            }
        })),
        flight.end(),
    );
    let done = begun
        .and_then(|()| parts_done.into_iter().collect::<Result<Vec<_>, _>>())
        .and_then(|done| commit.map(|()| done));
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
    for (n, (part, (set, inserted, base))) in parts.iter().zip(done).enumerate() {
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

    #[test]
    fn the_clock_follows_the_earliest_word() {
        let (start, epoch) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let clock = Clock { at: start, theirs: epoch + ms(1000) };
        assert_eq!(clock.at(start + ms(5)), epoch + ms(1005));
        // Told 64 ms late: believed by a little.
        let late = clock.heard(start + ms(10), epoch + ms(1074));
        assert_eq!(late.at(start + ms(10)), epoch + ms(1011));
        // Told earlier than expected: believed at once.
        let early = late.heard(start + ms(20), epoch + ms(1019));
        assert_eq!(early.at(start + ms(20)), epoch + ms(1019));
        // Their clock was set, forwards and back.
        let forward = early.heard(start + ms(30), epoch + ms(9000));
        assert_eq!(forward.at(start + ms(30)), epoch + ms(9000));
        let back = forward.heard(start + ms(40), epoch + ms(40));
        assert_eq!(back.at(start + ms(50)), epoch + ms(50));
    }

    #[test]
    fn nothing_is_sent_unseen_before_a_time_is_known() {
        let foresight = Foresight::default();
        assert_eq!(foresight.try_now(), None);
        foresight.heard(Instant::now(), SystemTime::UNIX_EPOCH + ms(7));
        let now = foresight.try_now().expect("a time");
        assert!(now >= SystemTime::UNIX_EPOCH + ms(7), "{now:?}");
        let since = now.duration_since(SystemTime::UNIX_EPOCH).expect("after the epoch");
        assert_eq!(since.subsec_nanos() % 1000, 0, "PostgreSQL keeps microseconds");
    }

    #[test]
    fn misses_in_a_row_make_the_pause_longer() {
        let foresight = Foresight::default();
        foresight.heard(Instant::now(), SystemTime::now());
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
