//! Concurrent writes share transactions, and no call notices the others.

use crate::fault::log_is_gap_free;
use crate::world::{
    World, config_of, connect, create, create_once, decision, get, new_database, reason, through,
    url_of,
};
use casebook::pb;
use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Transaction};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

type Answer = Result<pb::CreateDecisionResponse, Status>;

/// A world whose writes all go through one lane, with its metrics page.
pub async fn one_lane(settings: &[(&str, &str)]) -> World {
    let mut all = vec![
        ("write_lanes", "1"),
        ("metrics_listen", "127.0.0.1:0"),
        ("streams_per_connection_max", "1000"),
    ];
    all.extend(settings);
    World::with(&all).await
}

/// Keeps every write from ending, so that what is called meanwhile gathers in the queue.
pub async fn hold(database: &mut Client) -> Transaction<'_> {
    let hold = database.transaction().await.unwrap();
    hold.batch_execute("LOCK TABLE casebook.log_head IN ACCESS EXCLUSIVE MODE").await.unwrap();
    hold
}

/// Waits until that many writes are in the queue.
pub async fn queued(world: &World, count: usize) {
    let url = world.pages.expect("a metrics page");
    let began = Instant::now();
    loop {
        let page = crate::fault::page(url, "/metrics").await;
        let line = format!("casebook_write_queue {count}");
        if page.lines().any(|found| found == line) {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "never {count} writes in the queue");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Makes a call whose transaction hangs at the held lock; it alone is in flight.
pub async fn occupy(world: &World) -> JoinHandle<Answer> {
    let call = call(world, "default", create("occupies", decision("ALLOW", 0.5)));
    waiting_writes(&world.superuser().await, 1).await;
    call
}

/// Waits until that many transactions of the writer wait for a lock.
pub async fn waiting_writes(database: &Client, count: i64) {
    let began = Instant::now();
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                   AND application_name = 'casebook-write' AND wait_event_type = 'Lock'";
    while database.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) != count {
        assert!(began.elapsed() < Duration::from_secs(20), "never {count} writes at a lock");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn call(world: &World, tenant: &str, request: pb::CreateDecisionRequest) -> JoinHandle<Answer> {
    let mut client = world.as_tenant(tenant).decisions();
    tokio::spawn(async move { client.create_decision(request).await.map(Response::into_inner) })
}

/// When the transactions that made these log entries began: one time per batch.
async fn batches(database: &Client, tenant: &str) -> Vec<SystemTime> {
    let times = "SELECT DISTINCT time FROM casebook.log WHERE tenant_id = $1 ORDER BY time";
    let rows = database.query(times, &[&tenant]).await.unwrap();
    rows.into_iter().map(|row| row.get(0)).collect()
}

async fn another_connection(world: &World) -> Channel {
    Endpoint::from_shared(world.address.clone()).unwrap().connect().await.unwrap()
}

/// A trigger that only the superuser could make: it raises when a decision about that subject is written.
pub async fn poison(database: &Client, subject: &str, sqlstate: &str) {
    database
        .batch_execute(&format!(
            "CREATE FUNCTION casebook.poison_{subject}() RETURNS trigger LANGUAGE plpgsql AS $$ \
             BEGIN RAISE EXCEPTION 'a secret of the database' USING ERRCODE = '{sqlstate}'; END $$; \
             CREATE TRIGGER poison_{subject} BEFORE INSERT ON casebook.decision FOR EACH ROW \
             WHEN (NEW.subject_id = '{subject}') EXECUTE FUNCTION casebook.poison_{subject}();"
        ))
        .await
        .unwrap();
}

fn about(subject: &str) -> pb::Decision {
    pb::Decision { subject_id: subject.into(), ..decision("ALLOW", 0.5) }
}

#[tokio::test]
async fn equal_requests_at_once_are_one_write() {
    let world = World::new().await;
    let mut connections = Vec::new();
    for _ in 0..8 {
        connections.push(another_connection(&world).await);
    }
    let calls: Vec<_> = (0..64)
        .map(|n| {
            let mut client = through(connections[n % 8].clone()).decisions();
            // The id is left to the server, so that nothing but the request id makes them one.
            tokio::spawn(async move {
                client.create_decision(create_once("r-1", "", decision("ALLOW", 0.9))).await
            })
        })
        .collect();
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await.unwrap().expect("every call is answered").into_inner());
    }
    let replayed = |answer: &pb::CreateDecisionResponse| answer.receipt.as_ref().unwrap().replayed;
    assert_eq!(answers.iter().filter(|answer| !replayed(answer)).count(), 1);
    for answer in &mut answers {
        answer.receipt.as_mut().unwrap().replayed = false;
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "one answer for all");
    let database = world.superuser().await;
    let count = "SELECT (SELECT count(*) FROM casebook.decision), (SELECT count(*) FROM casebook.log WHERE kind = 'decision')";
    let row = database.query_one(count, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (1, 1));
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn what_waits_shares_one_transaction() {
    let world = one_lane(&[]).await;
    world.decisions().create_decision(create("taken", decision("ALLOW", 0.5))).await.unwrap();
    let mut database = world.superuser().await;
    let held = hold(&mut database).await;
    let first = occupy(&world).await;
    let calls: Vec<_> = (0..64)
        .map(|n| {
            let id = if n == 40 { "taken".into() } else { format!("d-{n}") };
            let request = create(&id, decision("ALLOW", 0.5));
            call(&world, "default", request)
        })
        .collect();
    queued(&world, 64).await;
    held.rollback().await.unwrap();
    first.await.unwrap().unwrap();
    for (n, call) in calls.into_iter().enumerate() {
        match call.await.unwrap() {
            Ok(answer) => assert_eq!(answer.decision.unwrap().id, format!("d-{n}")),
            Err(status) => assert_eq!((n, reason(&status).as_str()), (40, "EXISTS")),
        }
    }
    assert_eq!(
        batches(&database, "default").await.len(),
        3,
        "taken, the first, and all the others"
    );
    log_is_gap_free(&database).await;
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn a_poisoned_request_fails_alone() {
    for (sqlstate, code, expected) in
        [("22012", Code::Internal, "INTERNAL"), ("40001", Code::Aborted, "SERIALIZATION_FAILURE")]
    {
        let world = one_lane(&[("retry_base_ms", "1")]).await;
        world.decisions().create_decision(create("taken", decision("ALLOW", 0.5))).await.unwrap();
        let mut database = world.superuser().await;
        poison(&database, "poison", sqlstate).await;
        let held = hold(&mut database).await;
        let first = occupy(&world).await;
        let calls: Vec<_> = (0..64)
            .map(|n| {
                let subject = if n == 20 { "poison" } else { "" };
                let id = if n == 40 { "taken".into() } else { format!("d-{n}") };
                let request = if n % 2 == 0 {
                    create_once(&format!("r-{n}"), &id, about(subject))
                } else {
                    create(&id, about(subject))
                };
                call(&world, "default", request)
            })
            .collect();
        queued(&world, 64).await;
        held.rollback().await.unwrap();
        first.await.unwrap().unwrap();
        for (n, call) in calls.into_iter().enumerate() {
            match (n, call.await.unwrap()) {
                (20, answer) => {
                    let status = answer.expect_err("the poisoned one");
                    assert_eq!((status.code(), reason(&status).as_str()), (code, expected));
                    assert!(!format!("{status:?}").contains("secret"), "{status:?}");
                }
                (40, answer) => {
                    assert_eq!(reason(&answer.expect_err("the id is taken")), "EXISTS");
                }
                (n, answer) => {
                    let answer = answer.unwrap_or_else(|status| panic!("{n}: {status:?}"));
                    let receipt = answer.receipt.unwrap();
                    assert!(!receipt.replayed, "{n} was answered from a half-made batch");
                }
            }
        }
        // Its request id is free again, and its content without poison goes through.
        let healed = create_once("r-20", "d-20", about(""));
        world.decisions().create_decision(healed).await.unwrap();
        let rows = "SELECT count(*) FROM casebook.decision WHERE id LIKE 'd-%'";
        assert_eq!(database.query_one(rows, &[]).await.unwrap().get::<_, i64>(0), 63);
        log_is_gap_free(&database).await;
        drop(database);
        world.close().await;
    }
}

#[tokio::test]
async fn a_flood_of_one_tenant_does_not_hold_up_another() {
    let world = one_lane(&[("write_batch_max_requests", "8")]).await;
    world.tenant("quiet").await;
    let mut database = world.superuser().await;
    let held = hold(&mut database).await;
    let first = occupy(&world).await;
    let flood: Vec<_> = (0..200)
        .map(|n| call(&world, "default", create(&format!("d-{n}"), decision("ALLOW", 0.5))))
        .collect();
    queued(&world, 200).await;
    let quiet = call(&world, "quiet", create("d-1", decision("ALLOW", 0.5)));
    queued(&world, 201).await;
    held.rollback().await.unwrap();
    first.await.unwrap().unwrap();
    quiet.await.unwrap().unwrap();
    for call in flood {
        call.await.unwrap().unwrap();
    }
    let quiet = batches(&database, "quiet").await[0];
    let flood = batches(&database, "default").await;
    assert!(flood.len() >= 25, "batches of at most 8: {}", flood.len());
    let before = flood.iter().filter(|time| **time < quiet).count();
    assert!(before <= 2, "it waited for {before} batches of the flood");
    log_is_gap_free(&database).await;
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn a_rehearsal_is_not_held_up_by_a_flood_either() {
    let world = one_lane(&[("write_batch_max_requests", "8")]).await;
    world.tenant("quiet").await;
    let mut database = world.superuser().await;
    let held = hold(&mut database).await;
    let first = occupy(&world).await;
    let flood: Vec<_> = (0..400)
        .map(|n| call(&world, "default", create(&format!("d-{n}"), decision("ALLOW", 0.5))))
        .collect();
    queued(&world, 400).await;
    let mut rehearsal = create("d-1", decision("ALLOW", 0.5));
    rehearsal.options = Some(pb::WriteOptions { validate_only: true, ..Default::default() });
    let quiet = call(&world, "quiet", rehearsal);
    queued(&world, 401).await;
    held.rollback().await.unwrap();
    first.await.unwrap().unwrap();
    assert!(quiet.await.unwrap().unwrap().receipt.is_none(), "nothing was written");
    // It leaves no trace in the log, so the flood's progress at this moment must tell.
    let done = flood.iter().filter(|call| call.is_finished()).count();
    assert!(done < 200, "the rehearsal waited for {done} of 400 writes");
    for call in flood {
        call.await.unwrap().unwrap();
    }
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn logs_have_no_gaps_under_many_writers() {
    let world = World::new().await;
    let tenants = ["default", "north", "south", "west"];
    for tenant in &tenants[1..] {
        world.tenant(tenant).await;
    }
    let database = world.superuser().await;
    poison(&database, "poison", "22012").await;
    let writers: Vec<_> = (0..64)
        .map(|n| {
            let mut client = world.as_tenant(tenants[n % 4]).decisions();
            tokio::spawn(async move {
                let mut seqs = Vec::new();
                for turn in 0..12 {
                    // Some fail, in every way: taken ids, poison and conflicts must not cost a number.
                    let subject = if n == 7 && turn % 4 == 0 { "poison" } else { "" };
                    let id = format!("d-{}-{turn}", if n % 8 == 5 { 1 } else { n });
                    match client.create_decision(create(&id, about(subject))).await {
                        Ok(answer) => seqs.push(answer.into_inner().receipt.unwrap().audit_seq),
                        Err(status) => assert!(
                            ["EXISTS", "INTERNAL"].contains(&reason(&status).as_str()),
                            "{status:?}"
                        ),
                    }
                }
                (n % 4, seqs)
            })
        })
        .collect();
    let mut seqs = vec![BTreeSet::new(); 4];
    for writer in writers {
        let (tenant, mine) = writer.await.unwrap();
        assert!(mine.is_sorted(), "a caller's writes stand in the order it made them");
        for seq in mine {
            assert!(seqs[tenant].insert(seq), "two writes with one number");
        }
    }
    for (seqs, tenant) in seqs.iter().zip(tenants) {
        assert!(seqs.iter().copied().eq(1..=seqs.len() as i64), "{tenant}: {seqs:?}");
    }
    log_is_gap_free(&database).await;
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn updates_of_one_row_are_made_one_after_another() {
    let world = World::new().await;
    world.decisions().create_decision(create("d-1", decision("ALLOW", 0.5))).await.unwrap();
    let calls: Vec<_> = (0..32)
        .map(|n| {
            let mut client = world.decisions();
            tokio::spawn(async move {
                let key = format!("k{n}");
                let decision = pb::Decision {
                    id: "d-1".into(),
                    labels: [(key.clone(), "x".into())].into(),
                    ..Default::default()
                };
                let mask = prost_types::FieldMask { paths: vec![format!("labels.{key}")] };
                let request = pb::UpdateDecisionRequest {
                    decision: Some(decision),
                    update_mask: Some(mask),
                    options: None,
                };
                client.update_decision(request).await.unwrap().into_inner()
            })
        })
        .collect();
    let mut versions = BTreeSet::new();
    for call in calls {
        versions.insert(call.await.unwrap().decision.unwrap().meta.unwrap().version);
    }
    assert!(versions.iter().copied().eq(2..=33), "{versions:?}");
    let read = world.decisions().get_decision(get("d-1")).await.unwrap().into_inner();
    let read = read.decision.unwrap();
    assert_eq!((read.labels.len(), read.meta.unwrap().version), (32, 33));
    world.close().await;
}

#[tokio::test]
async fn conditions_do_not_deadlock_batches_of_several_tenants() {
    let name = new_database(true).await;
    let config = config_of(&name).await;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(connect(&config).await);
    }
    // So long that waiting for it shows.
    let patient = format!("ALTER DATABASE {name} SET deadlock_timeout = '15s'");
    sessions[0].batch_execute(&patient).await.unwrap();
    let pages = [("metrics_listen", "127.0.0.1:0")];
    let world = World::on(&name, &url_of(&config), &pages).await;
    for tenant in ["a", "b"] {
        world.tenant(tenant).await;
    }
    // Both lanes are held up, each by a row of its own, so that what is called meanwhile shares batches.
    let mut rows = Vec::new();
    for (tenant, id) in [("default", "r-1"), ("default", "r-2"), ("b", "r-3")] {
        call(&world, tenant, create(id, decision("ALLOW", 0.5))).await.unwrap().unwrap();
        rows.push(id);
    }
    let mut locks = Vec::new();
    for (session, id) in sessions.iter_mut().zip(rows) {
        let lock = session.transaction().await.unwrap();
        let row = "SELECT FROM casebook.decision WHERE id = $1 FOR UPDATE";
        lock.query(row, &[&id]).await.unwrap();
        locks.push(lock);
    }
    let watch = connect(&config).await;
    let mut held = Vec::new();
    for (id, count) in [("r-1", 1), ("r-2", 2)] {
        held.push(delete(&world, "default", id, false));
        waiting_writes(&watch, count).await;
    }

    // The first batch locks b's log at once, because of the condition, and then waits for a row.
    let first = vec![
        call(&world, "a", create("d-1", decision("ALLOW", 0.5))),
        delete(&world, "b", "r-3", true),
    ];
    queued(&world, 2).await;
    let mut locks = locks.into_iter();
    locks.next().unwrap().rollback().await.unwrap();
    queued(&world, 0).await;
    waiting_writes(&watch, 2).await;
    // The second locks a's log and then b's.
    let second: Vec<_> =
        ["a", "b"].map(|tenant| call(&world, tenant, create("d-2", decision("ALLOW", 0.5)))).into();
    queued(&world, 2).await;
    locks.next().unwrap().rollback().await.unwrap();
    queued(&world, 0).await;
    waiting_writes(&watch, 2).await;

    let began = Instant::now();
    locks.next().unwrap().rollback().await.unwrap();
    for call in held.into_iter().chain(first).chain(second) {
        call.await.unwrap().unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(10), "two batches waited for each other's logs");
    log_is_gap_free(&watch).await;
    drop(locks);
    drop((sessions, watch));
    world.close().await;
}

fn delete(world: &World, tenant: &str, id: &str, condition: bool) -> JoinHandle<Answer> {
    let mut client = world.as_tenant(tenant).decisions();
    let mut request = pb::DeleteDecisionRequest { decision_id: id.into(), ..Default::default() };
    if condition {
        let there =
            pb::ResourceRef { kind: pb::ResourceKind::Decision.into(), id: id.into(), version: 0 };
        let check = Some(pb::precondition::Check::MustExist(there));
        let preconditions = vec![pb::Precondition { check }];
        request.options = Some(pb::WriteOptions { preconditions, ..Default::default() });
    }
    tokio::spawn(async move {
        let pb::DeleteDecisionResponse { decision, receipt } =
            client.delete_decision(request).await?.into_inner();
        Ok(pb::CreateDecisionResponse { decision, receipt })
    })
}

#[tokio::test]
async fn what_comes_back_must_find_its_ids_free() {
    let world = World::new().await;
    let mut client = world.decisions();
    for id in ["d-1", "d-2"] {
        client.create_decision(create(id, decision("ALLOW", 0.5))).await.unwrap();
    }
    let overrule = |decision_id: &str| pb::CreateOverrideRequest {
        override_id: "o-1".into(),
        decision_id: decision_id.into(),
        r#override: Some(pb::Override {
            proposed_outcome: "DENY".into(),
            justification: "because it was wrong".into(),
            reviewer_id: "someone".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    client.create_override(overrule("d-1")).await.unwrap();
    delete(&world, "default", "d-1", false).await.unwrap().unwrap();
    client.create_override(overrule("d-2")).await.expect("the id is free again");
    let back = pb::UndeleteDecisionRequest { decision_id: "d-1".into(), options: None };
    let status = client.undelete_decision(back.clone()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::AlreadyExists, "EXISTS"));
    assert!(status.message().contains("override \"o-1\""), "{status:?}");
    assert_eq!(client.get_decision(get("d-1")).await.unwrap_err().code(), Code::NotFound);
    delete(&world, "default", "d-2", false).await.unwrap().unwrap();
    client.undelete_decision(back).await.expect("nothing is in its way any more");
    world.close().await;
}
