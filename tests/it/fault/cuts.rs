//! Connections to PostgreSQL that are cut in the middle of a write.

use super::proxy::{Cut, Proxy};
use crate::world::{World, config_of, create, create_once, decision, new_database, reason};
use crate::write::must_not_exist;
use casebook::pb::{self, ResourceKind as Kind};
use tokio_postgres::Client;
use tonic::{Code, Status};

/// A server that reaches its PostgreSQL through a proxy.
async fn world(settings: &[(&str, &str)]) -> (World, Proxy) {
    let database = new_database(true).await;
    let config = config_of(&database).await;
    let proxy = Proxy::start(&config).await;
    let world = World::on(&database, &proxy.url(&config), settings).await;
    (world, proxy)
}

/// How many rows, and how many CREATE entries, there are under an id.
async fn written(database: &Client, id: &str) -> (i64, i64) {
    let count = "SELECT (SELECT count(*) FROM casebook.decision WHERE id = $1), \
                 (SELECT count(*) FROM casebook.log WHERE kind = 'decision' AND id = $1)";
    let row = database.query_one(count, &[&id]).await.unwrap();
    (row.get(0), row.get(1))
}

/// No number of any tenant's log is missing or there twice.
pub async fn log_is_gap_free(database: &Client) {
    let check = "SELECT count(*) FROM (SELECT tenant_id, count(*) AS n, max(seq) AS last, \
                 count(DISTINCT seq) AS seqs FROM casebook.log GROUP BY tenant_id) AS t \
                 FULL JOIN casebook.log_head h USING (tenant_id) \
                 WHERE n IS DISTINCT FROM last OR n <> seqs OR h.seq IS DISTINCT FROM COALESCE(last, 0)";
    assert_eq!(database.query_one(check, &[]).await.unwrap().get::<_, i64>(0), 0);
}

fn is_unknown(status: &Status) -> bool {
    (status.code(), reason(status).as_str()) == (Code::Unknown, "COMMIT_UNKNOWN")
}

#[tokio::test]
async fn a_lost_reply_to_commit_is_looked_up() {
    let (world, proxy) = world(&[]).await;
    let (mut client, database) = (world.decisions(), world.superuser().await);

    proxy.cut(Cut::AfterCommit);
    let made = client.create_decision(create_once("r-1", "known", decision("ALLOW", 0.9))).await;
    assert!(proxy.has_cut());
    let made = made.expect("the true answer").into_inner();
    let receipt = made.receipt.unwrap();
    assert!(!receipt.replayed && !receipt.unchanged, "it is the call's own answer: {receipt:?}");
    assert_eq!(receipt.audit_seq, 1);
    assert_eq!(written(&database, "known").await, (1, 1));
    let read = client.get_decision(crate::world::get("known")).await.unwrap().into_inner();
    assert_eq!(read.decision, made.decision);
    // The caller's own repetition is one.
    let again = client.create_decision(create_once("r-1", "known", decision("ALLOW", 0.9))).await;
    let again = again.unwrap().into_inner();
    assert!(again.receipt.unwrap().replayed);
    assert_eq!(again.decision, made.decision);

    proxy.cut(Cut::AfterCommit);
    let status = client.create_decision(create("unknown", decision("ALLOW", 0.9))).await;
    let status = status.expect_err("nobody can know");
    assert!(proxy.has_cut());
    assert!(is_unknown(&status), "{status:?}");
    assert_eq!(written(&database, "unknown").await, (1, 1), "this time it was written");
    log_is_gap_free(&database).await;
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn a_lost_commit_is_made_up_for() {
    let (world, proxy) = world(&[]).await;
    let (mut client, database) = (world.decisions(), world.superuser().await);

    proxy.cut(Cut::BeforeCommit);
    let made = client.create_decision(create_once("r-1", "known", decision("ALLOW", 0.9))).await;
    assert!(proxy.has_cut());
    let receipt = made.expect("it is written after all").into_inner().receipt.unwrap();
    assert!(!receipt.replayed);
    assert_eq!(receipt.audit_seq, 1);
    assert_eq!(written(&database, "known").await, (1, 1));

    proxy.cut(Cut::BeforeCommit);
    let status = client.create_decision(create("unknown", decision("ALLOW", 0.9))).await;
    assert!(is_unknown(&status.expect_err("nobody can know")));
    assert_eq!(written(&database, "unknown").await, (0, 0), "this time it was not written");
    // Read before writing again, as the error says.
    client.create_decision(create("unknown", decision("ALLOW", 0.9))).await.unwrap();
    log_is_gap_free(&database).await;
    drop(database);
    world.close().await;
}

/// As after a failover to a standby, or when the disk is full: the server refuses, and so nothing is in doubt.
#[tokio::test]
async fn a_read_only_postgresql_leaves_nothing_in_doubt() {
    let world = World::new().await;
    let (mut client, database) = (world.decisions(), world.superuser().await);
    let turn = async |how: &str| {
        let set = format!(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I {how}', current_database()); END $$; \
             SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity \
             WHERE datname = current_database() AND application_name = 'casebook-write'"
        );
        database.batch_execute(&set).await.unwrap();
        // A session that ends below a write leaves it in doubt, which is not what is asked here.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    };
    // The second goes in one flight.
    for n in 0..2 {
        client.create_decision(create(&format!("d-{n}"), decision("ALLOW", 0.9))).await.unwrap();
    }
    turn("SET default_transaction_read_only = on").await;
    let began = std::time::Instant::now();
    let calls = [
        create("refused", decision("ALLOW", 0.9)),
        create_once("r-1", "refused", decision("ALLOW", 0.9)),
    ];
    for call in calls {
        let status = client.create_decision(call).await.expect_err("it is read-only");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    }
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
    turn("RESET default_transaction_read_only").await;
    client.create_decision(create("refused", decision("ALLOW", 0.9))).await.unwrap();
    log_is_gap_free(&database).await;
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn a_lost_batch_is_told_apart_call_by_call() {
    a_batch_is_lost(false).await;
}

#[tokio::test]
async fn a_batch_lost_in_its_one_flight_is_told_apart_call_by_call() {
    a_batch_is_lost(true).await;
}

/// A batch whose calls are all new goes in one flight; one with a precondition has to look first.
async fn a_batch_is_lost(all_new: bool) {
    for cut in [Cut::AfterCommit, Cut::BeforeCommit] {
        // One lane, so that what waits for the first write is one batch.
        let (world, proxy) = world(&[("write_lanes", "1")]).await;
        let mut database = world.superuser().await;
        world.decisions().create_decision(create("taken", decision("ALLOW", 0.5))).await.unwrap();
        let hold = database.transaction().await.unwrap();
        hold.batch_execute("LOCK TABLE casebook.log_head IN ACCESS EXCLUSIVE MODE").await.unwrap();
        let mut calls = Vec::new();
        for n in 0..24 {
            let mut client = world.decisions();
            calls.push(tokio::spawn(async move {
                let content = decision("ALLOW", 0.9);
                let mut call = match n % 3 {
                    2 if all_new => create_once(&format!("r-{n}"), &format!("d-{n}"), content),
                    0 => create(&format!("d-{n}"), content),
                    1 => create_once(&format!("r-{n}"), &format!("d-{n}"), content),
                    _ => create_once(&format!("r-{n}"), "taken", content),
                };
                if n == 4 && !all_new {
                    call.options.as_mut().unwrap().preconditions =
                        vec![must_not_exist(Kind::Decision, "none")];
                }
                client.create_decision(call).await
            }));
            if n == 0 {
                // The first goes alone; the others gather behind it.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        // The first one's COMMIT is through already, behind the statement that waits for the lock.
        proxy.cut(cut);
        hold.rollback().await.unwrap();
        calls.remove(0).await.unwrap().expect("the first is through");
        let mut lost = 0;
        for (n, call) in (1..).zip(calls) {
            let answer = call.await.unwrap().map(tonic::Response::into_inner);
            let written = written(&database, &format!("d-{n}")).await;
            match (n % 3, answer) {
                (0, Ok(_)) => assert_eq!(written, (1, 1)),
                (0, Err(status)) => {
                    assert!(is_unknown(&status), "{status:?}");
                    assert_eq!(written, if cut == Cut::AfterCommit { (1, 1) } else { (0, 0) });
                    lost += 1;
                }
                (1 | 2, answer) if n % 3 == 1 || all_new => {
                    let answer = answer.expect("the true answer");
                    assert!(!answer.receipt.unwrap().replayed);
                    assert_eq!(written, (1, 1));
                }
                (_, answer) => {
                    let status = answer.expect_err("the id is taken");
                    assert_eq!(reason(&status), "EXISTS", "{status:?}");
                }
            }
        }
        assert!(proxy.has_cut());
        assert_eq!(lost, 7, "the others were one batch");
        log_is_gap_free(&database).await;
        drop(database);
        world.close().await;
    }
}

#[tokio::test]
async fn a_cut_at_any_message_is_answered_truthfully() {
    let (world, proxy) = world(&[("write_lanes", "1"), ("retry_base_ms", "1")]).await;
    let (mut client, database) = (world.decisions(), world.superuser().await);
    let (mut unknown, mut cuts) = (0, 0);
    for n in 0..60 {
        for known in [true, false] {
            let id = format!("d-{n}-{known}");
            let mut call = create(&id, decision("ALLOW", 0.9));
            if known {
                call.options = Some(crate::world::request(&id));
            }
            // A fresh connection each time, so that preparing the statements is cut as well.
            proxy.set_open(false);
            proxy.set_open(true);
            proxy.cut(Cut::Before(n));
            let answer = client.create_decision(call).await.map(tonic::Response::into_inner);
            cuts += usize::from(proxy.has_cut());
            proxy.cut(Cut::Never);
            let written = written(&database, &id).await;
            match answer {
                Ok(answer) => {
                    assert!(!answer.receipt.unwrap().replayed);
                    assert_eq!(written, (1, 1), "message {n}");
                }
                Err(status) => {
                    assert!(!known && is_unknown(&status), "message {n}: {status:?}");
                    assert_eq!(written, (0, 0), "COMMIT never got through");
                    unknown += 1;
                }
            }
        }
    }
    assert!(cuts > 30, "only {cuts} cuts");
    assert!(unknown > 0, "one of the cuts was in the last flight");
    log_is_gap_free(&database).await;
    drop((database, client));
    world.close().await;
}

#[tokio::test]
async fn a_replay_says_what_the_first_answer_said() {
    let world = World::new().await;
    let mut client = world.decisions();
    let equal = |request_id: &str| {
        let mut call = create_once(request_id, "d-1", decision("ALLOW", 0.9));
        call.options.as_mut().unwrap().on_conflict = pb::OnConflict::ReturnIfEqual.into();
        call
    };
    let absent = |request_id: &str| pb::DeleteDecisionRequest {
        decision_id: "absent".into(),
        allow_missing: true,
        options: Some(crate::world::request(request_id)),
        ..Default::default()
    };
    client.create_decision(create("d-1", decision("ALLOW", 0.9))).await.unwrap();
    client.create_decision(create("d-2", decision("ALLOW", 0.9))).await.unwrap();
    let first = client.create_decision(equal("r-1")).await.unwrap().into_inner();
    let first_absent = client.delete_decision(absent("r-2")).await.unwrap().into_inner();
    client.create_decision(create("d-3", decision("ALLOW", 0.9))).await.unwrap();

    let again = client.create_decision(equal("r-1")).await.unwrap().into_inner();
    let again_absent = client.delete_decision(absent("r-2")).await.unwrap().into_inner();
    assert_eq!(again.decision, first.decision);
    for (first, again) in
        [(first.receipt, again.receipt), (first_absent.receipt, again_absent.receipt)]
    {
        let (first, again) = (first.unwrap(), again.unwrap());
        assert!(first.unchanged && !first.replayed, "{first:?}");
        assert_eq!(first.audit_seq, 2);
        assert_eq!(again, pb::WriteReceipt { replayed: true, ..first });
    }
    world.close().await;
}
