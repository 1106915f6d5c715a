//! Callers who write without pause, remember what they were told, and hold the database to it.

use crate::process::{PATIENCE, Postgres};
use crate::world::{As, create, decision, reason, request, through};
use casebook::pb;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Which tenants are written to.
const TENANTS: [&str; 3] = ["default", "north", "south"];

/// What one caller was told about one write.
#[derive(Clone, Debug, PartialEq)]
enum Told {
    /// Made, with the number of its last log entry.
    Made { id: String, seq: i64 },
    /// Certainly not made.
    NotMade,
    /// Perhaps made.
    Unknown,
}

/// A write as its caller saw it: the tenant, the mark that its row bears, and the answer.
struct Memory {
    tenant: &'static str,
    mark: String,
    told: Told,
}

pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    callers: Vec<JoinHandle<Vec<Memory>>>,
}

impl Load {
    /// Callers in three tenants, each with one call at a time. `with_ids` of them send a request id and repeat a call
    /// until it is answered; the others ask once and believe what they are told.
    pub fn start(server: watch::Receiver<Channel>, with_ids: usize, without_ids: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let callers = (0..with_ids + without_ids)
            .map(|n| {
                let caller = Caller {
                    n,
                    tenant: TENANTS[n % TENANTS.len()],
                    server: server.clone(),
                    repeats: n < with_ids,
                    acknowledged: Arc::clone(&acknowledged),
                };
                tokio::spawn(caller.run(Arc::clone(&stop)))
            })
            .collect();
        Self { stop, acknowledged, callers }
    }

    /// Waits for so many more acknowledged writes, which shows that the server has recovered.
    pub async fn progress(&self, more: usize) {
        let (began, from) = (Instant::now(), self.acknowledged.load(Ordering::SeqCst));
        while self.acknowledged.load(Ordering::SeqCst) < from + more {
            assert!(began.elapsed() < PATIENCE, "writes do not go on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Lets every caller finish, then holds what they were told against the rows and the log.
    pub async fn settle(self, postgres: &Postgres) {
        self.stop.store(true, Ordering::SeqCst);
        let mut memories = Vec::new();
        for caller in self.callers {
            memories.extend(caller.await.expect("no caller was told a lie"));
        }
        assert!(memories.len() > 100, "only {} writes were tried", memories.len());
        // Those who repeat their calls have been answered, so PostgreSQL is back.
        let database = &super::superuser(postgres).await;
        for tenant in TENANTS {
            let mine = memories.iter().filter(|memory| memory.tenant == tenant);
            compare(database, tenant, mine.collect()).await;
        }
    }
}

struct Caller {
    n: usize,
    tenant: &'static str,
    server: watch::Receiver<Channel>,
    repeats: bool,
    acknowledged: Arc<AtomicUsize>,
}

impl Caller {
    async fn run(self, stop: Arc<AtomicBool>) -> Vec<Memory> {
        let mut memories = Vec::new();
        for turn in 0.. {
            if stop.load(Ordering::SeqCst) {
                break;
            }
            let mark = format!("w-{}-{turn}", self.n);
            let told = self.write(&mark, turn).await;
            if let Told::Made { id, .. } = &told {
                self.acknowledged.fetch_add(1, Ordering::SeqCst);
                if turn % 8 == 0 {
                    self.must_be_there(id).await;
                }
            }
            memories.push(Memory { tenant: self.tenant, mark, told });
        }
        memories
    }

    fn client(&self) -> As {
        through(self.server.borrow().clone()).header("x-casebook-tenant", self.tenant)
    }

    /// One write, marked so that its row can be told from all others.
    async fn write(&self, mark: &str, turn: usize) -> Told {
        // Every other id is the server's choice: then nothing but the request id stands against a second row.
        let id = if turn.is_multiple_of(2) { "" } else { mark };
        let mut content = decision("ALLOW", 0.5);
        content.labels.insert("mark".into(), mark.into());
        for critic in 0..turn % 3 {
            content.critic_outputs.push(pb::CriticOutput {
                critic: format!("critic-{critic}"),
                verdict: "ALLOW".into(),
                confidence: 0.5,
                ..Default::default()
            });
        }
        let mut call = create(id, content);
        if self.repeats {
            call.options = Some(request(mark));
        }
        let began = Instant::now();
        loop {
            let mut sent = tonic::Request::new(call.clone());
            sent.set_timeout(Duration::from_secs(10));
            let status = match self.client().decisions().create_decision(sent).await {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    let id = answer.decision.expect("a decision").id;
                    let seq = answer.receipt.expect("a receipt").audit_seq;
                    return Told::Made { id, seq };
                }
                Err(status) => status,
            };
            let told = believed(&status, self.repeats);
            if !self.repeats {
                return told;
            }
            assert!(began.elapsed() < PATIENCE, "the server does not recover: {status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn must_be_there(&self, id: &str) {
        let get = pb::GetDecisionRequest { decision_id: id.into(), ..Default::default() };
        if let Err(status) = self.client().decisions().get_decision(get).await {
            assert_ne!(status.code(), Code::NotFound, "an acknowledged write is gone: {status:?}");
        }
    }
}

/// What an error says of a write. Any that may not come from a crash is a lie.
fn believed(status: &Status, has_id: bool) -> Told {
    if status.get_details_error_info().is_none() {
        // Not the server's word but the transport's: it has been killed, or is not there yet.
        return Told::Unknown;
    }
    match (status.code(), reason(status).as_str()) {
        (Code::Unavailable, "BACKEND_UNAVAILABLE") => {
            assert!(status.get_details_retry_info().is_some(), "when to try again: {status:?}");
            Told::NotMade
        }
        (Code::Aborted, "SERIALIZATION_FAILURE") => Told::NotMade,
        (Code::DeadlineExceeded, "DEADLINE_EXCEEDED") => Told::Unknown,
        (Code::Unknown, "COMMIT_UNKNOWN") => {
            // With an id the ledger knows, unless PostgreSQL stays away for longer than is waited.
            assert!(!has_id, "unknown, although it had a request id: {status:?}");
            Told::Unknown
        }
        _ => panic!("a crash is answered with {status:?}"),
    }
}

/// Rows, log and ledger of one tenant against what its callers were told.
async fn compare(database: &Client, tenant: &str, memories: Vec<&Memory>) {
    let rows = database
        .query(
            "SELECT labels ->> 'mark', id, uid::text, version, \
             (SELECT count(*) FROM casebook.critic_output c \
              WHERE c.tenant_id = d.tenant_id AND c.decision_uid = d.uid) \
             FROM casebook.decision d WHERE tenant_id = $1",
            &[&tenant],
        )
        .await
        .unwrap();
    let mut marked: BTreeMap<String, (String, String)> = BTreeMap::new();
    for row in &rows {
        let (mark, id, uid): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let turn: usize = mark.rsplit_once('-').unwrap().1.parse().unwrap();
        assert_eq!(row.get::<_, i64>(4), turn as i64 % 3, "critic outputs of {mark}");
        assert_eq!(row.get::<_, i64>(3), 1, "{mark} has one version");
        let twice = marked.insert(mark.clone(), (id, uid));
        assert!(twice.is_none(), "{tenant}: {mark} was written twice");
    }

    // The log: no number missing, none twice, and each row with exactly its own entries.
    let log = database
        .query(
            "SELECT seq, kind, uid::text, id, action, version FROM casebook.log WHERE tenant_id = $1 ORDER BY seq",
            &[&tenant],
        )
        .await
        .unwrap();
    let mut entries: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for (expected, row) in (1..).zip(&log) {
        assert_eq!(row.get::<_, i64>(0), expected, "{tenant}: the log has a gap or a repetition");
        assert_eq!((row.get(4), row.get(5)), ("CREATE", 1_i64));
        let uid: String = row.get(2);
        match row.get(1) {
            "decision" => {
                let twice = entries.insert(uid, (expected, expected));
                assert!(
                    twice.is_none(),
                    "{tenant}: two CREATE entries for {}",
                    row.get::<_, &str>(3)
                );
            }
            // They follow their decision, in the same write.
            "critic_output" => entries.last_by_seq(expected),
            other => panic!("an entry of kind {other}"),
        }
    }
    let head = database
        .query_opt("SELECT seq FROM casebook.log_head WHERE tenant_id = $1", &[&tenant])
        .await
        .unwrap();
    assert_eq!(head.map_or(0, |row| row.get::<_, i64>(0)), log.len() as i64, "the head");
    let with_row: BTreeSet<&String> = marked.values().map(|(_, uid)| uid).collect();
    assert_eq!(with_row, entries.keys().collect(), "{tenant}: rows and entries stand together");

    let mut explained = BTreeSet::new();
    for Memory { mark, told, .. } in memories {
        let row = marked.get(mark);
        match (told, row) {
            (Told::Made { id, seq }, Some((row_id, uid))) => {
                assert_eq!(id, row_id, "{mark}: the answer named another row");
                assert_eq!(*seq, entries[uid].1, "{mark}: the receipt names another entry");
            }
            (Told::Made { .. }, None) => panic!("{tenant}: {mark} was acknowledged and is lost"),
            (Told::NotMade, Some(_)) => panic!("{tenant}: {mark} was denied and was written"),
            (Told::NotMade, None) | (Told::Unknown, _) => {}
        }
        explained.insert(mark.as_str());
    }
    for mark in marked.keys() {
        assert!(explained.contains(mark.as_str()), "{tenant}: nobody asked for {mark}");
    }
    // Each request id that led to a row points at that row's first entry.
    let ledger = database
        .query(
            "SELECT request_id, first_seq, entry_count FROM casebook.request_ledger WHERE tenant_id = $1",
            &[&tenant],
        )
        .await
        .unwrap();
    for row in ledger {
        let (mark, first, count): (String, i64, i32) = (row.get(0), row.get(1), row.get(2));
        let (_, uid) = marked.get(&mark).unwrap_or_else(|| panic!("{mark} is claimed for nothing"));
        assert_eq!(entries[uid], (first, first + i64::from(count) - 1), "{mark}");
    }
}

/// First and last entry of each write, in the order of the log.
trait Spans {
    /// Adds an entry to the write that came before it.
    fn last_by_seq(&mut self, seq: i64);
}

impl Spans for BTreeMap<String, (i64, i64)> {
    fn last_by_seq(&mut self, seq: i64) {
        let span = self.values_mut().find(|span| span.1 == seq - 1);
        span.expect("a critic output follows its decision").1 = seq;
    }
}
