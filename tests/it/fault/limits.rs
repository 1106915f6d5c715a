//! Full pools and queues, an absent PostgreSQL, an older schema: what callers are told, and what goes on regardless.

use super::page;
use super::proxy::Proxy;
use crate::world::{
    World, config_of, connect, create, create_once, decision, drop_database, get, new_database,
    reason, request, url_of,
};
use casebook::config::Config;
use casebook::pb;
use casebook::pb::health::health_check_response::ServingStatus;
use casebook::pb::health::{HealthCheckRequest, HealthCheckResponse};
use casebook::server::{Database, Server};
use casebook::store::migrate::Migrator;
use std::time::{Duration, Instant};
use tokio_postgres::Client;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

async fn health(world: &World) -> ServingStatus {
    let answer = world.anonymous().health().check(HealthCheckRequest::default()).await;
    answer.expect("health is always answered").into_inner().status()
}

async fn becomes(world: &World, wanted: ServingStatus) {
    let began = Instant::now();
    while health(world).await != wanted {
        assert!(began.elapsed() < Duration::from_secs(30), "health never becomes {wanted:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn list(world: &World) -> Result<pb::ListDecisionsResponse, Status> {
    let answer = world.decisions().list_decisions(pb::ListDecisionsRequest::default()).await;
    answer.map(tonic::Response::into_inner)
}

fn told(status: &Status) -> (Code, String) {
    (status.code(), reason(status))
}

/// Waits until so many sessions of a lane wait for a lock.
async fn waiting(database: &Client, lane: &str, count: i64) {
    let began = Instant::now();
    let query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                 AND application_name = $1 AND wait_event_type = 'Lock'";
    let lane = format!("casebook-{lane}");
    while database.query_one(query, &[&lane]).await.unwrap().get::<_, i64>(0) < count {
        assert!(began.elapsed() < Duration::from_secs(20), "{lane} never waits for a lock");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_exhausted_pool_is_said_soon_and_stops_nothing_else() {
    let world = World::with(&[
        ("pool_max_size", "2"),
        ("pool_wait_timeout_ms", "400"),
        ("metrics_listen", "127.0.0.1:0"),
    ])
    .await;
    let mut database = world.superuser().await;
    let watch = world.superuser().await;
    let lock = database.transaction().await.unwrap();
    // Only lists of policy rules want this table.
    lock.batch_execute("LOCK TABLE casebook.policy_rule IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let slow: Vec<_> = (0..2)
        .map(|_| {
            let mut client = world.anonymous().policies();
            tokio::spawn(async move {
                client.list_policy_rules(pb::ListPolicyRulesRequest::default()).await
            })
        })
        .collect();
    waiting(&watch, "work", 2).await;

    let began = Instant::now();
    let lists: Vec<_> = (0..20)
        .map(|_| {
            let mut client = world.decisions();
            tokio::spawn(
                async move { client.list_decisions(pb::ListDecisionsRequest::default()).await },
            )
        })
        .collect();
    for n in 0..20 {
        let id = format!("d-{n}");
        world.decisions().create_decision(create(&id, decision("ALLOW", 0.5))).await.unwrap();
        world.decisions().get_decision(get(&id)).await.unwrap();
    }
    assert_eq!(health(&world).await, ServingStatus::Serving);
    for path in ["/livez", "/readyz"] {
        let page = page(world.pages.unwrap(), path).await;
        assert!(page.starts_with("HTTP/1.1 200"), "{path}: {page}");
    }
    for list in lists {
        let status = list.await.unwrap().expect_err("no connection is free");
        assert_eq!(told(&status), (Code::ResourceExhausted, "POOL_TIMEOUT".into()));
        assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
        assert!(status.metadata().contains_key("grpc-retry-pushback-ms"));
    }
    assert!(began.elapsed() < Duration::from_secs(10), "waited {:?}", began.elapsed());
    assert_eq!(health(&world).await, ServingStatus::Serving);
    lock.rollback().await.unwrap();
    for list in slow {
        list.await.unwrap().expect("they had a connection");
    }
    assert_eq!(list(&world).await.unwrap().decisions.len(), 20);
    drop((database, watch));
    world.close().await;
}

/// F574: health is true, false while the database is gone, and true again.
#[tokio::test]
async fn a_missing_postgresql_is_said_and_found_again() {
    let name = new_database(true).await;
    let config = config_of(&name).await;
    let proxy = Proxy::start(&config).await;
    let settings = [("metrics_listen", "127.0.0.1:0")];
    let world = World::on(&name, &proxy.url(&config), &settings).await;
    world.decisions().create_decision(create("d-1", decision("ALLOW", 0.5))).await.unwrap();
    assert_eq!(health(&world).await, ServingStatus::Serving);
    proxy.set_open(false);
    let one = world.decisions().create_decision(create("d-2", decision("ALLOW", 0.5))).await;
    let read = world.decisions().get_decision(get("d-1")).await;
    for status in [one.expect_err("down"), read.expect_err("down"), list(&world).await.unwrap_err()]
    {
        assert_eq!(told(&status), (Code::Unavailable, "BACKEND_UNAVAILABLE".into()));
        assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.metadata.get("backend").map(String::as_str), Some("postgres"));
        assert!(!status.message().contains("127.0.0.1"), "no addresses: {status:?}");
    }
    becomes(&world, ServingStatus::NotServing).await;
    let pages = world.pages.unwrap();
    assert!(page(pages, "/livez").await.starts_with("HTTP/1.1 200"), "the process lives");
    assert!(page(pages, "/readyz").await.starts_with("HTTP/1.1 503"));
    proxy.set_open(true);
    becomes(&world, ServingStatus::Serving).await;
    world.decisions().create_decision(create("d-2", decision("ALLOW", 0.5))).await.unwrap();
    assert_eq!(list(&world).await.unwrap().decisions.len(), 2);
    world.close().await;
}

#[tokio::test]
async fn a_full_server_says_so_at_once() {
    let world = World::with(&[("requests_in_flight_max", "2")]).await;
    let mut database = world.superuser().await;
    let watch = world.superuser().await;
    let lock = database.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE casebook.decision IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let held: Vec<_> = (0..2)
        .map(|_| {
            let mut client = world.decisions();
            tokio::spawn(
                async move { client.list_decisions(pb::ListDecisionsRequest::default()).await },
            )
        })
        .collect();
    waiting(&watch, "work", 2).await;
    let began = Instant::now();
    let status = world.decisions().get_decision(get("d-1")).await.expect_err("full");
    assert_eq!(told(&status), (Code::ResourceExhausted, "OVERLOADED".into()));
    assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(health(&world).await, ServingStatus::Serving);
    lock.rollback().await.unwrap();
    for call in held {
        call.await.unwrap().unwrap();
    }
    drop((database, watch));
    world.close().await;
}

#[tokio::test]
async fn a_full_write_queue_refuses_only_its_tenant() {
    let world = World::with(&[("write_queue_max_per_tenant", "2"), ("write_lanes", "1")]).await;
    world.tenant("other").await;
    let mut database = world.superuser().await;
    let watch = world.superuser().await;
    let lock = database.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE casebook.log_head IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let write = |tenant: &str, id: String| {
        let mut client = world.as_tenant(tenant).decisions();
        tokio::spawn(
            async move { client.create_decision(create(&id, decision("ALLOW", 0.5))).await },
        )
    };
    let first = write("default", "first".into());
    waiting(&watch, "write", 1).await;
    let flood: Vec<_> = (0..10).map(|n| write("default", format!("d-{n}"))).collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let other = write("other", "d-1".into());
    tokio::time::sleep(Duration::from_millis(100)).await;
    lock.rollback().await.unwrap();
    first.await.unwrap().unwrap();
    other.await.unwrap().expect("another tenant's queue is its own");
    let mut made = 0;
    for call in flood {
        match call.await.unwrap() {
            Ok(_) => made += 1,
            Err(status) => {
                assert_eq!(told(&status), (Code::ResourceExhausted, "OVERLOADED".into()));
                assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
            }
        }
    }
    assert_eq!(made, 2, "as many as may wait");
    let rows = "SELECT count(*) FROM casebook.decision WHERE tenant_id = 'default'";
    assert_eq!(watch.query_one(rows, &[]).await.unwrap().get::<_, i64>(0), 3);
    drop((database, watch));
    world.close().await;
}

#[tokio::test]
async fn large_writes_of_one_tenant_leave_room_for_others() {
    let world = World::with(&[("write_queue_max_bytes", "1048576"), ("write_lanes", "1")]).await;
    world.tenant("other").await;
    let mut database = world.superuser().await;
    let watch = world.superuser().await;
    let lock = database.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE casebook.log_head IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let write = |tenant: &str, id: String, size: usize| {
        let mut client = world.as_tenant(tenant).decisions();
        let content = pb::Decision { reason: "x".repeat(size), ..decision("ALLOW", 0.5) };
        tokio::spawn(async move { client.create_decision(create(&id, content)).await })
    };
    let first = write("default", "first".into(), 1);
    waiting(&watch, "write", 1).await;
    // A quarter of the bytes are 256 KiB.
    let mut made = 0;
    let mut calls = Vec::new();
    for n in 0..4 {
        calls.push(write("default", format!("d-{n}"), 50_000));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let one_more = write("default", "d-4".into(), 60_000).await.unwrap();
    let status = one_more.expect_err("the tenant's part is full");
    assert_eq!(told(&status), (Code::ResourceExhausted, "OVERLOADED".into()));
    assert!(status.message().contains("this tenant"), "{status:?}");
    calls.push(write("other", "d-1".into(), 60_000));
    tokio::time::sleep(Duration::from_millis(100)).await;
    lock.rollback().await.unwrap();
    first.await.unwrap().unwrap();
    for call in calls {
        call.await.unwrap().expect("there was room");
        made += 1;
    }
    assert_eq!(made, 5);
    drop((database, watch));
    world.close().await;
}

#[tokio::test]
async fn conflicts_that_last_and_odd_errors_are_told_apart() {
    let world = World::with(&[("retry_base_ms", "1")]).await;
    let database = world.superuser().await;
    database
        .batch_execute(
            "CREATE SEQUENCE casebook.attempts; \
             CREATE FUNCTION casebook.poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             PERFORM nextval('casebook.attempts'); \
             RAISE EXCEPTION 'a secret of the database' USING ERRCODE = NEW.subject_id; END $$; \
             ALTER FUNCTION casebook.poison() SECURITY DEFINER; \
             CREATE TRIGGER poison BEFORE INSERT ON casebook.decision FOR EACH ROW \
             WHEN (NEW.subject_id <> '') EXECUTE FUNCTION casebook.poison();",
        )
        .await
        .unwrap();
    let attempts = async || -> i64 {
        let query = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM casebook.attempts";
        database.query_one(query, &[]).await.unwrap().get(0)
    };
    let mut before = 0;
    for (sqlstate, code, expected, tries) in [
        ("40001", Code::Aborted, "SERIALIZATION_FAILURE", 3),
        ("40P01", Code::Aborted, "SERIALIZATION_FAILURE", 3),
        ("22012", Code::Internal, "INTERNAL", 1),
        ("42501", Code::Internal, "INTERNAL", 1),
        ("44000", Code::Internal, "INTERNAL", 1),
        ("XX000", Code::Internal, "INTERNAL", 1),
        ("57014", Code::DeadlineExceeded, "DEADLINE_EXCEEDED", 1),
    ] {
        let content = pb::Decision { subject_id: sqlstate.into(), ..decision("ALLOW", 0.5) };
        let call = create_once(&format!("r-{sqlstate}"), "d-1", content);
        let status = world.decisions().create_decision(call).await.expect_err(sqlstate);
        assert_eq!(told(&status), (code, expected.into()), "{sqlstate}");
        assert!(!format!("{status:?}").contains("secret"), "{sqlstate}: {status:?}");
        assert_eq!(status.get_details_retry_info().is_some(), code == Code::Aborted);
        if code == Code::Internal {
            let info = status.get_details_error_info().unwrap();
            let incident = &info.metadata["incident_id"];
            assert!(status.message().contains(incident.as_str()), "{status:?}");
        }
        assert_eq!(attempts().await - before, tries, "attempts on {sqlstate}");
        before += tries;
    }
    let rows = "SELECT (SELECT count(*) FROM casebook.decision) + (SELECT count(*) FROM casebook.request_ledger)";
    assert_eq!(database.query_one(rows, &[]).await.unwrap().get::<_, i64>(0), 0);
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn a_deadline_tells_the_truth_about_a_write() {
    // The server's own limit, because a client that counts itself would not wait for the answer.
    let limit = Duration::from_millis(1500);
    let world = World::with(&[
        ("write_lanes", "1"),
        ("deadline_max_ms", "1500"),
        ("deadline_default_ms", "1500"),
    ])
    .await;
    let mut database = world.superuser().await;
    let watch = world.superuser().await;
    let write = |id: &'static str| {
        let mut client = world.decisions();
        tokio::spawn(
            async move { client.create_decision(create(id, decision("ALLOW", 0.5))).await },
        )
    };
    for is_released_in_time in [true, false] {
        let lock = database.transaction().await.unwrap();
        lock.batch_execute("LOCK TABLE casebook.log_head IN ACCESS EXCLUSIVE MODE").await.unwrap();
        let [sent, queued] =
            if is_released_in_time { ["sent-1", "queued-1"] } else { ["sent-2", "queued-2"] };
        // The first is sent to PostgreSQL before its time is up, the second waits in the queue until then.
        let sent = write(sent);
        waiting(&watch, "write", 1).await;
        let queued = write(queued);
        tokio::time::sleep(limit + Duration::from_millis(200)).await;
        let lock = if is_released_in_time {
            lock.rollback().await.unwrap();
            None
        } else {
            Some(lock)
        };
        // Whether or not the lane is free again: its caller need not wait for that.
        let queued = queued.await.unwrap().expect_err("its time is up");
        assert_eq!(told(&queued), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".into()));
        assert!(queued.message().contains("it was not made"), "{queued:?}");
        let sent = sent.await.unwrap();
        if let Some(lock) = lock {
            let sent = sent.expect_err("nothing is known of it yet");
            assert_eq!(told(&sent), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".into()));
            assert!(sent.message().contains("may have been made"), "{sent:?}");
            lock.rollback().await.unwrap();
        } else {
            sent.expect("a write that was sent is answered, if late");
        }
    }
    write("last").await.unwrap().expect("it had time");
    let rows = watch.query("SELECT id FROM casebook.decision ORDER BY id", &[]).await.unwrap();
    let ids: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(ids, ["last", "sent-1", "sent-2"], "what was queued for too long is not made");
    drop((database, watch));
    world.close().await;
}

#[tokio::test]
async fn an_older_schema_is_refused_and_named() {
    let name = new_database(false).await;
    let config = config_of(&name).await;
    let url = url_of(&config);
    let flags = [("database_url", url.as_str()), ("listen", "127.0.0.1:0"), ("metrics_listen", "")];
    let flags = flags.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let bind = async || {
        let config = Config::load(None, Vec::new(), flags.to_vec()).unwrap();
        let database = Database::open(&config).await.unwrap();
        Server::bind(config, &database).await.err().map(|error| error.to_string())
    };
    let refused = bind().await.expect("an empty database is refused");
    assert!(refused.contains("is at version 0") && refused.contains("migrate up"), "{refused}");
    let mut migrator = Migrator::connect(&config).await.unwrap();
    migrator.up().await.unwrap();
    let newest = casebook::store::migrate::latest();
    migrator.down(1).await.unwrap();
    let refused = bind().await.expect("half a schema is refused");
    assert!(refused.contains(&format!("is at version {}", newest - 1)), "{refused}");
    drop(migrator);
    drop_database(&name).await;
}

#[tokio::test]
async fn a_schema_that_goes_back_is_noticed() {
    let world = World::with(&[("metrics_listen", "127.0.0.1:0")]).await;
    world.decisions().create_decision(create("d-1", decision("ALLOW", 0.5))).await.unwrap();
    let config = config_of(&world.database).await;
    let mut migrator = Migrator::connect(&config).await.unwrap();
    // Back to before there were policy rules.
    let steps = casebook::store::migrate::latest() - 3;
    migrator.down(usize::try_from(steps).unwrap()).await.unwrap();
    becomes(&world, ServingStatus::NotServing).await;
    let page = page(world.pages.unwrap(), "/readyz").await;
    assert!(page.starts_with("HTTP/1.1 503") && page.contains("migrate up"), "{page}");
    let rules = pb::ListPolicyRulesRequest::default();
    let status = world.anonymous().policies().list_policy_rules(rules).await.unwrap_err();
    assert_eq!(told(&status), (Code::FailedPrecondition, "SCHEMA_OUTDATED".into()));
    let rule = pb::CreatePolicyRuleRequest {
        policy_rule_id: "p-1".into(),
        policy_rule: Some(pb::PolicyRule { name: "p".into(), ..Default::default() }),
        options: Some(request("r-1")),
    };
    let status = world.anonymous().policies().create_policy_rule(rule).await.unwrap_err();
    assert_eq!(told(&status), (Code::FailedPrecondition, "SCHEMA_OUTDATED".into()));
    migrator.up().await.unwrap();
    becomes(&world, ServingStatus::Serving).await;
    drop(migrator);
    world.close().await;
}

#[tokio::test]
async fn a_server_that_goes_away_says_so_on_open_streams() {
    let mut world = World::new().await;
    let mut client = world.anonymous().health();
    let mut changes = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let status = |answer: Option<HealthCheckResponse>| answer.unwrap().status();
    assert_eq!(status(changes.message().await.unwrap()), ServingStatus::Serving);
    let stopped = tokio::spawn(async move {
        world.stop().await;
        world
    });
    assert_eq!(status(changes.message().await.unwrap()), ServingStatus::NotServing);
    let ended = changes.message().await.expect_err("it ends with a reason");
    assert_eq!(told(&ended), (Code::Unavailable, "SHUTTING_DOWN".into()));
    drop((changes, client));
    stopped.await.unwrap().close().await;
}

/// The statement time-out of the database is the last guard: it ends what nobody bounds, and says so.
#[tokio::test]
async fn a_statement_that_hangs_is_ended() {
    let world = World::with(&[("statement_timeout_ms", "300")]).await;
    let mut database = world.superuser().await;
    let session = connect(&config_of(&world.database).await).await;
    let lock = database.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE casebook.decision IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let write = world.decisions().create_decision(create("d-1", decision("ALLOW", 0.5))).await;
    let read = world.decisions().get_decision(get("d-1")).await;
    for status in [write.unwrap_err(), read.unwrap_err(), list(&world).await.unwrap_err()] {
        assert_eq!(told(&status), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".into()));
    }
    lock.rollback().await.unwrap();
    let rows = session.query_one("SELECT count(*) FROM casebook.decision", &[]).await.unwrap();
    assert_eq!(rows.get::<_, i64>(0), 0);
    world.decisions().create_decision(create("d-1", decision("ALLOW", 0.5))).await.unwrap();
    drop((database, session));
    world.close().await;
}
