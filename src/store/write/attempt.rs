//! One attempt at a batch: claim, apply, number, append, COMMIT, in three flights to the server, or in one.

use super::Tx;
use super::flight::Flight;
use super::foresight::{self, Foresight, Moment};
use super::{Job, Kind, Outcome, Precondition, Receipt, Wanted};
use crate::store::log::{self, Appended, Entry, LogRow};
use crate::store::noun::Live;
use crate::store::postgres::{Conn, in_order, read_rows};
use crate::store::query::{Params, Rows};
use crate::store::request_ledger::{self as ledger, Claimed};
use crate::store::{facts, tenant};
use crate::{Error, Reason, Result};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;
use tokio_postgres::{Row, Statement};

/// What became of one job of a batch.
pub(super) enum Verdict {
    Done(super::ErasedAnswer, Receipt),
    Failed(Error),
}

/// What became of an attempt.
pub(super) enum Attempted {
    /// Committed, or for validate_only rolled back as asked: one verdict per job.
    Answered(Vec<Verdict>),
    /// Rolled back, because this job failed half-way.
    Spoiled { index: usize, error: Error },
}

/// The jobs of one tenant in a batch, by their places in it.
pub(super) struct Group<'a> {
    pub tenant: &'a str,
    pub jobs: Vec<usize>,
}

impl Group<'_> {
    /// The open jobs by kind of change.
    pub fn kinds(&self, jobs: &[Job], progress: &[Progress]) -> Vec<(Kind, Vec<usize>)> {
        let mut kinds: BTreeMap<usize, (Kind, Vec<usize>)> = BTreeMap::new();
        for &index in &self.jobs {
            if matches!(progress[index], Progress::Open) {
                let kind = jobs[index].change.change().kind();
                let same = kinds.entry(kind.key());
                same.or_insert_with(|| (kind, Vec::new())).1.push(index);
            }
        }
        kinds.into_values().collect()
    }

    /// The request ids of its jobs. A rehearsal claims nothing.
    pub fn claims(&self, jobs: &[Job]) -> ledger::Keys {
        ledger::Keys::of(self.jobs.iter().map(|&i| &jobs[i]).filter_map(|job| {
            let request = job.options.request.as_ref().filter(|_| !job.options.validate_only)?;
            Some((&*job.caller.principal, job.caller.method, &*request.id, request.digest))
        }))
    }
}

/// The statements that every batch may need.
pub(super) struct Statements {
    pub set_tenant: Statement,
    append: Statement,
    settle: Statement,
    release: Statement,
}

impl Statements {
    async fn prepare(conn: &Conn) -> Result<Self> {
        Ok(Self {
            set_tenant: conn.prepare(tenant::SET_TENANT.sql()).await?,
            append: conn.prepare(log::APPEND.sql()).await?,
            settle: conn.prepare(ledger::SETTLE.sql()).await?,
            release: conn.prepare(ledger::RELEASE.sql()).await?,
        })
    }
}

/// A job's state between the flights.
pub(super) enum Progress {
    Open,
    /// Answered from the ledger, whose row belongs to an earlier call and stays.
    Known(Verdict),
    Over(Verdict),
    Applied {
        answer: super::ErasedAnswer,
        entries: Vec<Entry>,
        shown: Vec<super::Shown>,
        unchanged: bool,
    },
}

/// Runs the batch once. `commit_sent` tells, should this never return, whether COMMIT may have happened.
pub(super) async fn attempt(
    conn: Conn,
    jobs: &[Job],
    foresight: &Foresight,
    commit_sent: &AtomicBool,
) -> Result<Attempted> {
    commit_sent.store(false, Ordering::SeqCst);
    let statements = Statements::prepare(&conn).await?;
    let groups = group_by_tenant(jobs);
    if let Some(plan) = foresight::plan(foresight, &groups, jobs) {
        let flown =
            foresight::fly(&conn, &statements, foresight, jobs.len(), plan, commit_sent).await?;
        if let Some(verdicts) = flown {
            conn.done();
            return Ok(Attempted::Answered(verdicts));
        }
    }
    let Statements { set_tenant, .. } = &statements;
    let mut progress: Vec<Progress> = jobs.iter().map(|_| Progress::Open).collect();

    // First flight: the transaction, the tenants, and which request ids are new.
    let claim = conn.prepare(ledger::CLAIM.sql()).await?;
    let sent = Moment::now();
    let begin = conn.client().batch_execute("BEGIN");
    let open = in_order(
        groups
            .iter()
            .enumerate()
            .map(|(place, group)| open_tenant(&conn, jobs, group, place == 0, set_tenant, &claim)),
    );
    let (begun, opened) = futures_util::join!(begin, open);
    begun?;
    let opened = opened.into_iter().collect::<Result<Vec<_>>>()?;
    // One transaction has one time.
    let now = opened
        .iter()
        .find_map(|(now, _)| *now)
        .ok_or_else(|| Error::internal("no time from PostgreSQL"))?;
    foresight.heard(sent, now);

    let several = groups.len() > 1;
    let tx: Vec<Tx> = groups
        .iter()
        .map(|group| Tx {
            conn: &conn,
            tenant: group.tenant,
            now,
            set_tenant: several.then_some(set_tenant),
        })
        .collect();

    if jobs.iter().any(|job| !job.options.preconditions.is_empty()) {
        // Of all tenants, in the order of the last flight: else two batches could each hold what the other wants.
        conn.prepare(log::LOCK_HEAD.sql()).await?;
        for locked in in_order(tx.iter().map(|tx| tx.run(&log::LOCK_HEAD, &()))).await {
            locked?;
        }
    }
    for ((group, tx), (_, claimed)) in groups.iter().zip(&tx).zip(opened) {
        replay(tx, jobs, group, claimed, &mut progress).await?;
        check_preconditions(tx, jobs, group, &mut progress).await?;
    }

    // Second flight: the changes, one set-based statement per kind and step, all tenants at once.
    let mut runs = Vec::new();
    for (group, tx) in groups.iter().zip(&tx) {
        for (kind, indexes) in group.kinds(jobs, &progress) {
            runs.push(async move {
                let changes = members(jobs, &indexes);
                Ok::<_, Error>((indexes, kind.apply(tx, changes).await?))
            });
        }
    }
    for run in in_order(runs).await {
        let (indexes, outcomes) = run?;
        if outcomes.len() != indexes.len() {
            return Err(Error::internal("a change was applied without an outcome"));
        }
        for (index, outcome) in indexes.into_iter().zip(outcomes) {
            progress[index] = match outcome {
                Outcome::Done { answer, entries, shown } => {
                    Progress::Applied { answer, unchanged: entries.is_empty(), entries, shown }
                }
                Outcome::Failed(error) => Progress::Over(Verdict::Failed(error)),
                Outcome::Spoiled(error) => {
                    roll_back(conn).await;
                    return Ok(Attempted::Spoiled { index, error });
                }
            };
        }
    }

    if jobs.iter().any(|job| job.options.validate_only) {
        let verdicts = progress.into_iter().map(|state| state.over(0, true)).collect();
        drop(tx);
        roll_back(conn).await;
        return Ok(Attempted::Answered(verdicts));
    }

    // Third flight: number, append, settle the ledger, COMMIT. Tenants are in the order of their names, so that two
    // servers lock head rows in the same order.
    let mut last = Vec::new();
    for (group, tx) in groups.iter().zip(&tx) {
        let mut earlier = HashMap::new();
        for (index, shown) in showing(group, jobs, &progress) {
            earlier.insert(index, seqs_of(tx, &shown).await?);
        }
        let earlier = |index| earlier.remove(&index).unwrap_or_default();
        last.push(Settlement::new(tx.tenant, tx.now, jobs, group, &mut progress, earlier));
    }
    let (statements, flight) = (&statements, &Flight::new(conn.client()));
    let finish = in_order(last.iter().map(|last| async move {
        let tenant: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&last.tenant];
        let (set, base) = futures_util::join!(
            async {
                if several {
                    flight.query(&statements.set_tenant, &tenant).await.map(drop)
                } else {
                    Ok(())
                }
            },
            last.finish(flight, statements),
        );
        set.and(base)
    }));
    commit_sent.store(true, Ordering::SeqCst);
    let (bases, commit) = futures_util::join!(finish, flight.end());
    // The first failure is the cause; what follows it only reports an aborted transaction.
    let bases = bases
        .into_iter()
        .collect::<Result<Vec<_>, _>>()
        .and_then(|bases| commit.map(|()| bases))
        .map_err(|error| flight.failed(error, commit_sent))?;

    let mut seqs: Vec<i64> = vec![0; jobs.len()];
    for (last, base) in last.iter().zip(bases) {
        // It is committed: from here on nothing may look as if it could run again.
        last.number(base, &mut seqs).map_err(|error| Error::CommitUnknown(Arc::new(error)))?;
    }
    drop(tx);
    conn.done();
    Ok(Attempted::Answered(
        progress.into_iter().zip(seqs).map(|(state, seq)| state.over(seq, false)).collect(),
    ))
}

impl Progress {
    pub(super) fn over(self, seq: i64, rehearsed: bool) -> Verdict {
        match self {
            Progress::Known(verdict) | Progress::Over(verdict) => verdict,
            Progress::Applied { answer, unchanged, .. } => {
                Verdict::Done(answer, Receipt { seq, replayed: false, unchanged, rehearsed })
            }
            Progress::Open => Verdict::Failed(Error::internal("a change was never applied")),
        }
    }
}

async fn roll_back(conn: Conn) {
    // If even this fails, the connection is closed, which rolls back too.
    if conn.client().batch_execute("ROLLBACK").await.is_ok() {
        conn.done();
    }
}

/// The changes of some jobs.
pub(super) fn members<'a>(jobs: &'a [Job], indexes: &[usize]) -> super::Members<'a> {
    let member = |&i: &usize| (jobs[i].change.change().as_any(), &jobs[i].caller);
    indexes.iter().map(member).collect()
}

fn group_by_tenant(jobs: &[Job]) -> Vec<Group<'_>> {
    let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, job) in jobs.iter().enumerate() {
        groups.entry(&job.caller.tenant).or_default().push(index);
    }
    groups.into_iter().map(|(tenant, jobs)| Group { tenant, jobs }).collect()
}

/// Claims the request ids of a tenant's jobs, in that tenant; answers the time and which ids were new. A tenant
/// without request ids has nothing to say in this flight, unless it is the one that asks for the time.
async fn open_tenant(
    conn: &Conn,
    jobs: &[Job],
    group: &Group<'_>,
    asks_time: bool,
    set_tenant: &Statement,
    claim: &Statement,
) -> Result<(Option<SystemTime>, Vec<Claimed>)> {
    let keys = group.claims(jobs);
    if keys.is_empty() && !asks_time {
        return Ok((None, Vec::new()));
    }
    let client = conn.client();
    let tenant: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&group.tenant];
    let params = keys.with_digests();
    let params = params.as_sql();
    let (set, claimed) = futures_util::join!(client.query(set_tenant, &tenant), async {
        if keys.is_empty() { Ok(Vec::new()) } else { client.query(claim, &params).await }
    });
    let set: Vec<tenant::TenantSet> = read_rows(&set?)?;
    Ok((set.first().map(|row| row.now), read_rows(&claimed?)?))
}

/// Answers the jobs whose request id is not new from the ledger and the log.
async fn replay(
    tx: &Tx<'_>,
    jobs: &[Job],
    group: &Group<'_>,
    claimed: Vec<Claimed>,
    progress: &mut [Progress],
) -> Result<()> {
    let is_new = |job: &Job, id: &str| {
        claimed.iter().any(|c| {
            c.request_id == id
                && c.method == job.caller.method
                && *c.principal == *job.caller.principal
        })
    };
    let mut old = Vec::new();
    for &index in &group.jobs {
        let job = &jobs[index];
        if let Some(request) = job.options.request.as_ref().filter(|_| !job.options.validate_only)
            && !is_new(job, &request.id)
        {
            old.push((index, request));
        }
    }
    if old.is_empty() {
        return Ok(());
    }
    let keys = ledger::Keys::of(old.iter().map(|(index, request)| {
        let caller = &jobs[*index].caller;
        (&*caller.principal, caller.method, &*request.id, request.digest)
    }));
    let found = tx.run(&ledger::READ, &keys.params()).await?;
    for (index, request) in old {
        let job = &jobs[index];
        let found = found.iter().find(|row| {
            row.request_id == request.id
                && row.method == job.caller.method
                && *row.principal == *job.caller.principal
        });
        let verdict = match found {
            // It was there when we tried to claim it, and expired in between.
            None => {
                return Err(Error::Conflict(Arc::from(Box::from(
                    "a request id expired while it was used",
                ))));
            }
            Some(row) if row.digest != request.digest => Verdict::Failed(Error::invalid_because(
                Reason::RequestIdReused,
                "options.request_id",
                "was used before for a call with other content",
            )),
            Some(row) => {
                // Where the log stood behind the call, whether or not it made entries of its own.
                let end = row.first_seq + i64::from(row.entry_count);
                let own = row.first_seq..end;
                let seqs: Vec<i64> = own.chain(row.earlier_seqs.iter().copied()).collect();
                let entries: Vec<LogRow> = tx.run(&log::BY_SEQ, &(seqs,)).await?;
                let unchanged = row.entry_count == 0;
                match job.change.rebuild(&entries) {
                    Ok(answer) => Verdict::Done(
                        answer,
                        Receipt { seq: end - 1, replayed: true, unchanged, rehearsed: false },
                    ),
                    Err(error) => Verdict::Failed(error),
                }
            }
        };
        progress[index] = Progress::Known(verdict);
    }
    Ok(())
}

/// Holds the preconditions of the tenant's jobs against the rows. The head row is locked by now: every write of the
/// tenant locks it before it commits, so what is seen here still holds when this transaction commits.
async fn check_preconditions(
    tx: &Tx<'_>,
    jobs: &[Job],
    group: &Group<'_>,
    progress: &mut [Progress],
) -> Result<()> {
    let open = |index: &&usize| {
        matches!(progress[**index], Progress::Open)
            && !jobs[**index].options.preconditions.is_empty()
    };
    let wanting: Vec<usize> = group.jobs.iter().filter(open).copied().collect();
    if wanting.is_empty() {
        return Ok(());
    }
    let mut ids: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    for &index in &wanting {
        for Precondition { kind, id, .. } in &jobs[index].options.preconditions {
            ids.entry(kind).or_default().push(id.clone());
        }
    }
    let mut live: HashMap<(&'static str, String), i64> = HashMap::new();
    for (kind, ids) in ids {
        let live_rows = facts(kind)
            .map(|facts| facts.live)
            .ok_or_else(|| Error::internal(format!("no precondition on {kind}")))?;
        for Live { id, version } in tx.run(live_rows, &(ids,)).await? {
            live.insert((kind, id), version);
        }
    }
    for index in wanting {
        let broken = jobs[index].options.preconditions.iter().position(|condition| {
            let found = live.get(&(condition.kind, condition.id.clone()));
            match condition.wants {
                Wanted::Exists => found.is_none(),
                Wanted::Absent => found.is_some(),
                Wanted::Version(version) => found != Some(&version),
            }
        });
        if let Some(n) = broken {
            let Precondition { kind, id, wants } = &jobs[index].options.preconditions[n];
            let wanted = match wants {
                Wanted::Exists => "does not exist".to_owned(),
                Wanted::Absent => "exists".to_owned(),
                Wanted::Version(version) => format!("is not at version {version}"),
            };
            progress[index] = Progress::Over(Verdict::Failed(Error::Refused {
                reason: Reason::PreconditionFailed,
                message: format!(
                    "options.preconditions[{n}] does not hold: {kind} \"{id}\" {wanted}"
                ),
                metadata: vec![("index", n.to_string())],
            }));
        }
    }
    Ok(())
}

/// What the last flight sends for one tenant.
pub(super) struct Settlement<'a> {
    pub tenant: &'a str,
    rows: Rows<Appended>,
    /// Job and the offset of its last entry from the tenant's base.
    offsets: Vec<(usize, i64)>,
    settled: ledger::Settled,
    released: ledger::KeyParams,
    changes: bool,
    settles: bool,
    releases: bool,
}

impl<'a> Settlement<'a> {
    /// Takes the entries of the applied jobs; `earlier` gives the numbers of a job's versions that were there before.
    pub fn new(
        tenant: &'a str,
        now: SystemTime,
        jobs: &[Job],
        group: &Group<'_>,
        progress: &mut [Progress],
        mut earlier: impl FnMut(usize) -> Vec<i64>,
    ) -> Self {
        let mut rows = Vec::new();
        let mut offsets = Vec::new();
        let mut settled = Vec::new();
        let mut failed = Vec::new();
        for &index in &group.jobs {
            let job = &jobs[index];
            match &mut progress[index] {
                Progress::Applied { entries, .. } => {
                    let first = rows.len() as i64 + 1;
                    let made = entries.len();
                    let request_id = match &job.options.request {
                        Some(request) => &*request.id,
                        None => &*job.caller.request_id,
                    };
                    for (n, entry) in std::mem::take(entries).into_iter().enumerate() {
                        let salt = salt(&job.seed, n);
                        let context = job.options.context.as_ref();
                        rows.push(log::append(entry, &job.caller, request_id, context, salt, now));
                    }
                    offsets.push((index, rows.len() as i64));
                    if let Some(request) = &job.options.request {
                        settled.push((job, request, first, made, earlier(index)));
                    }
                }
                Progress::Over(Verdict::Failed(_)) => {
                    if let Some(request) = &job.options.request {
                        failed.push((job, request));
                    }
                }
                Progress::Over(Verdict::Done(..)) | Progress::Known(_) | Progress::Open => {}
            }
        }
        let total = rows.len() as i64;
        // A failed call is not kept.
        let keys = ledger::Keys::of(failed.iter().map(|(job, request)| {
            (&*job.caller.principal, job.caller.method, &*request.id, request.digest)
        }));
        Self {
            tenant,
            changes: !offsets.is_empty(),
            offsets,
            settles: !settled.is_empty(),
            settled: ledger::Settled::of(settled.iter().map(
                |(job, request, first, made, earlier)| {
                    let key =
                        (&*job.caller.principal, job.caller.method, &*request.id, request.digest);
                    (key, total - first, *made as i32, earlier.as_slice())
                },
            )),
            releases: !keys.is_empty(),
            released: keys.params(),
            rows: Rows::new(Appended::unnest(rows.iter())),
        }
    }

    /// Numbers, appends and settles, in the tenant that is set; sends all of it on the first poll.
    pub async fn finish(
        &self,
        flight: &Flight<'_>,
        statements: &Statements,
    ) -> Result<Option<Vec<Row>>, tokio_postgres::Error> {
        let (rows, settled, released) =
            (self.rows.as_sql(), self.settled.as_sql(), self.released.as_sql());
        let (base, settled, released) = futures_util::join!(
            async {
                if self.changes {
                    flight.query(&statements.append, &rows).await.map(Some)
                } else {
                    Ok(None)
                }
            },
            async {
                if self.settles {
                    flight.query(&statements.settle, &settled).await.map(drop)
                } else {
                    Ok(())
                }
            },
            async {
                if self.releases {
                    flight.query(&statements.release, &released).await.map(drop)
                } else {
                    Ok(())
                }
            },
        );
        // The first failure is the cause.
        let base = base?;
        settled.and(released).map(|()| base)
    }

    /// Writes the number of each job's last entry.
    pub fn number(&self, base: Option<Vec<Row>>, seqs: &mut [i64]) -> Result<()> {
        let base = match base {
            Some(rows) => read_rows::<log::Base>(&rows)?.first().map_or(0, |row| row.base),
            None => 0,
        };
        for &(index, offset) in &self.offsets {
            seqs[index] = base + offset;
        }
        Ok(())
    }
}

/// The jobs that were made under a request id and show versions that were there before.
fn showing(
    group: &Group<'_>,
    jobs: &[Job],
    progress: &[Progress],
) -> Vec<(usize, Vec<super::Shown>)> {
    let shown = |&index: &usize| match &progress[index] {
        Progress::Applied { shown, .. } if jobs[index].options.request.is_some() => {
            (!shown.is_empty()).then(|| (index, shown.clone()))
        }
        _ => None,
    };
    group.jobs.iter().filter_map(shown).collect()
}

async fn seqs_of(tx: &Tx<'_>, shown: &[super::Shown]) -> Result<Vec<i64>> {
    let kinds = shown.iter().map(|s| s.kind.to_owned()).collect();
    let ids = shown.iter().map(|s| s.id.clone()).collect();
    let uids = shown.iter().map(|s| s.uid).collect();
    let versions = shown.iter().map(|s| s.version).collect();
    let rows = tx.run(&log::SEQ_OF, &(kinds, ids, uids, versions)).await?;
    Ok(rows.into_iter().map(|row| row.seq).collect())
}

/// The salt of a job's nth entry.
fn salt(seed: &[u8; 32], n: usize) -> [u8; 16] {
    let hash = Sha256::new_with_prefix(seed).chain_update((n as u64).to_be_bytes()).finalize();
    let mut salt = [0; 16];
    salt.copy_from_slice(&hash[..16]);
    salt
}
