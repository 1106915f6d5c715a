//! Service health: F209 to F216, heartbeats that say something and those that only say "still here".

use crate::batching::waiting_writes;
use crate::help::*;
use crate::world::{World, object, request, wrong_fields};
use casebook::pb;
use std::time::Duration;

fn beat(service: &str, instance: &str, status: &str) -> pb::RecordHeartbeatRequest {
    pb::RecordHeartbeatRequest {
        service_health: Some(pb::ServiceHealth {
            service_name: service.into(),
            instance_id: instance.into(),
            status: status.into(),
            metadata: Some(object(&[("zone", "eu")])),
            ..Default::default()
        }),
        options: None,
    }
}

fn of(service: &str, text: &str) -> pb::ListServiceHealthRequest {
    pb::ListServiceHealthRequest {
        service_name: service.into(),
        r#where: expression(text),
        ..Default::default()
    }
}

fn span(millis: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration {
        seconds: millis / 1000,
        nanos: (millis % 1000 * 1_000_000) as i32,
    })
}

fn time(row: &pb::ServiceHealth) -> std::time::SystemTime {
    row.last_heartbeat_time.unwrap().try_into().unwrap()
}

#[tokio::test]
async fn a_heartbeat_is_a_version_only_if_it_says_something_new() {
    let world = World::new().await;
    let me = world.anonymous();
    let mut client = me.telemetry();
    let made = ok!(client.record_heartbeat(beat("scorer", "pod-1", "healthy")));
    let one = made.service_health.unwrap();
    assert!(!made.receipt.unwrap().unchanged);
    assert_eq!((one.id.len(), one.meta.as_ref().unwrap().version), (64, 1));
    assert_eq!(one.last_heartbeat_time, one.meta.as_ref().unwrap().create_time);
    let given = beat("scorer", "pod-1", "healthy").service_health.unwrap();
    let expected = pb::ServiceHealth {
        id: one.id.clone(),
        etag: one.etag.clone(),
        meta: one.meta.clone(),
        last_heartbeat_time: one.last_heartbeat_time,
        ..given
    };
    assert_eq!(one, expected);
    assert_eq!(head(&me).await, 1);

    let mut last = time(&one);
    for _ in 0..3 {
        let again = ok!(client.record_heartbeat(beat("scorer", "pod-1", "healthy")));
        assert!(again.receipt.unwrap().unchanged);
        let again = again.service_health.unwrap();
        assert!(time(&again) > last);
        last = time(&again);
        assert_eq!(
            pb::ServiceHealth { last_heartbeat_time: one.last_heartbeat_time, ..again },
            one
        );
    }
    assert_eq!(head(&me).await, 1);
    let listed = ok!(client.list_service_health(of("", ""))).service_health;
    assert_eq!((listed.len(), time(&listed[0])), (1, last));

    let worse = ok!(client.record_heartbeat(beat("scorer", "pod-1", "degraded")));
    let worse = worse.service_health.unwrap();
    assert_eq!((worse.id.as_str(), worse.meta.as_ref().unwrap().version), (one.id.as_str(), 2));
    assert!(worse.etag != one.etag && time(&worse) > last);
    let mut moved = beat("scorer", "pod-1", "degraded");
    moved.service_health.as_mut().unwrap().metadata = None;
    let moved = ok!(client.record_heartbeat(moved)).service_health.unwrap();
    assert_eq!((moved.meta.unwrap().version, moved.metadata), (3, None));
    let log = entries(&me, 10).await;
    let actions: Vec<_> = log.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["UPDATE", "UPDATE", "CREATE"]);

    // Repeated, a call tells the version of the first time.
    let once = |status: &str, id: &str| pb::RecordHeartbeatRequest {
        options: Some(request(id)),
        ..beat("scorer", "pod-1", status)
    };
    let first = ok!(client.record_heartbeat(once("healthy", "r-1")));
    let alive = ok!(client.record_heartbeat(once("healthy", "r-2")));
    assert!(alive.receipt.as_ref().unwrap().unchanged);
    ok!(client.record_heartbeat(beat("scorer", "pod-1", "degraded")));
    let mut again = ok!(client.record_heartbeat(once("healthy", "r-1")));
    assert!(std::mem::take(&mut again.receipt.as_mut().unwrap().replayed));
    assert_eq!(again, first);
    let mut again = ok!(client.record_heartbeat(once("healthy", "r-2")));
    assert!(std::mem::take(&mut again.receipt.as_mut().unwrap().replayed));
    // But for the time, which is no part of a version.
    let there = again.service_health.as_mut().unwrap();
    there.last_heartbeat_time = alive.service_health.as_ref().unwrap().last_heartbeat_time;
    assert_eq!(again, alive);
    world.close().await;
}

#[tokio::test]
async fn instances_are_told_apart_whatever_their_names_hold() {
    let world = World::new().await;
    let mut client = world.anonymous().telemetry();
    let long = "ü".repeat(127);
    let pairs = [
        ("a/b", "c"),
        ("a", "b/c"),
        ("auth service", "host 1"),
        ("x", &long),
        ("-", "-"),
        ("ü", "\n"),
    ];
    let mut seen = std::collections::BTreeSet::new();
    for (service, instance) in pairs {
        let row = ok!(client.record_heartbeat(beat(service, instance, "up"))).service_health;
        assert!(seen.insert(row.unwrap().id), "{service} {instance}");
    }
    let found = ok!(client.list_service_health(of("auth service", ""))).service_health;
    assert_eq!((found.len(), found[0].instance_id.as_str()), (1, "host 1"));
    for any in ["", "-"] {
        let found = ok!(client.list_service_health(of(any, ""))).service_health;
        assert_eq!(found.len(), pairs.len());
    }
    assert!(ok!(client.list_service_health(of("nobody", ""))).service_health.is_empty());
    let wrong = client.list_service_health(of("a\0b", ""));
    fails!(wrong, InvalidArgument, "NUL_BYTE");
    world.tenant("other").await;
    let mut other = world.as_tenant("other").telemetry();
    assert!(ok!(other.list_service_health(of("", ""))).service_health.is_empty());
    // The same instance there is another one.
    let row = ok!(other.record_heartbeat(beat("a", "b/c", "up"))).service_health.unwrap();
    assert_eq!(row.meta.unwrap().version, 1);
    world.close().await;
}

#[tokio::test]
async fn heartbeats_that_make_no_sense_are_refused() {
    let world = World::new().await;
    let mut client = world.anonymous().telemetry();
    for (wrong, field) in [
        (beat("", "i", "up"), "service_name"),
        (beat(&"x".repeat(51), "i", "up"), "service_name"),
        (beat("s", "", "up"), "instance_id"),
        (beat("s", &"x".repeat(256), "up"), "instance_id"),
        (beat("s", "i", ""), "status"),
        (beat("s", "i", &"x".repeat(21)), "status"),
    ] {
        let status = fails!(client.record_heartbeat(wrong), InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), [format!("service_health.{field}")]);
    }
    let status = fails!(
        client.record_heartbeat(pb::RecordHeartbeatRequest::default()),
        InvalidArgument,
        "FIELD_INVALID"
    );
    assert_eq!(wrong_fields(&status), ["service_health"]);
    fails!(client.record_heartbeat(beat("s\0", "i", "up")), InvalidArgument, "NUL_BYTE");
    let options =
        pb::WriteOptions { on_conflict: pb::OnConflict::Replace.into(), ..Default::default() };
    let wrong = pb::RecordHeartbeatRequest { options: Some(options), ..beat("s", "i", "up") };
    fails!(client.record_heartbeat(wrong), InvalidArgument, "FIELD_INVALID");
    let wrong = pb::ListServiceHealthRequest { stale_after: span(-1000), ..of("", "") };
    let status = fails!(client.list_service_health(wrong), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["stale_after"]);
    assert_eq!(head(&world.anonymous()).await, 0);
    world.close().await;
}

#[tokio::test]
async fn silence_makes_an_instance_stale() {
    let world = World::new().await;
    let mut client = world.anonymous().telemetry();
    for (instance, status) in [("a", "up"), ("b", "down"), ("c", "up")] {
        ok!(client.record_heartbeat(beat("s", instance, status)));
    }
    // By PostgreSQL's clock alone: one has been silent for just over a minute, one for just under it.
    let database = world.superuser().await;
    let silent = "UPDATE casebook.service_health SET last_heartbeat_time = now() - $2::text::interval WHERE instance_id = $1";
    database.execute(silent, &[&"a", &"61 s"]).await.unwrap();
    database.execute(silent, &[&"b", &"50 s"]).await.unwrap();
    drop(database);
    let mut list = async |request: pb::ListServiceHealthRequest| {
        let found = ok!(client.list_service_health(request)).service_health;
        let told = found.into_iter().map(|row| format!("{} {}", row.instance_id, row.stale));
        told.collect::<Vec<_>>().join(", ")
    };
    assert_eq!(list(of("", "")).await, "c false, b false, a true");
    let after = |millis| pb::ListServiceHealthRequest { stale_after: span(millis), ..of("", "") };
    assert_eq!(list(after(0)).await, "c false, b false, a true");
    assert_eq!(list(after(40_000)).await, "c false, b true, a true");
    assert_eq!(list(after(600_000)).await, "c false, b false, a false");
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(list(after(5)).await, "c true, b true, a true");
    assert_eq!(list(of("s", "status = up")).await, "c false, a true");
    assert_eq!(list(of("s", "metadata.zone = eu AND instance_id = b")).await, "b false");
    let newer = pb::ListServiceHealthRequest {
        window: Some(pb::TimeWindow { newer_than: span(55_000), ..Default::default() }),
        ..of("", "")
    };
    assert_eq!(list(newer).await, "c false, b false");
    let by_name =
        pb::PageRequest { order_by: "instance_id".into(), page_size: 2, ..Default::default() };
    let paged = pb::ListServiceHealthRequest { page: Some(by_name), ..of("", "") };
    assert_eq!(list(paged.clone()).await, "a true, b false");
    let masked = pb::ListServiceHealthRequest { read_mask: mask(&["stale"]), ..of("", "") };
    assert_eq!(list(masked.clone()).await, " false,  false,  true");
    let first = ok!(client.list_service_health(paged.clone()));
    let mut next = paged;
    next.page.as_mut().unwrap().page_token = first.page.unwrap().next_page_token;
    // A heartbeat between the pages moves nobody within this order.
    ok!(client.record_heartbeat(beat("s", "a", "up")));
    let second = ok!(client.list_service_health(next)).service_health;
    assert_eq!((second.len(), second[0].instance_id.as_str()), (1, "c"));
    let again = ok!(client.list_service_health(of("", "instance_id = a"))).service_health;
    assert!(!again[0].stale);
    world.close().await;
}

#[tokio::test]
async fn the_first_heartbeat_on_one_server_is_the_second_on_the_other() {
    let world = World::new().await;
    world.tenant("other").await;
    ok!(world.as_tenant("other").telemetry().record_heartbeat(beat("s", "i", "up")));
    let (mut database, watch) = (world.superuser().await, world.superuser().await);
    // As the other server would: the row is there, but not yet for anybody to see.
    let other = database.transaction().await.unwrap();
    let insert = "INSERT INTO casebook.service_health SELECT 'default', id, gen_random_uuid(), version, create_time, \
                  update_time, delete_time, created_by, updated_by, service_name, instance_id, status, \
                  last_heartbeat_time, metadata FROM casebook.service_health";
    assert_eq!(other.execute(insert, &[]).await.unwrap(), 1);
    let mut client = world.anonymous().telemetry();
    let beating =
        tokio::spawn(async move { client.record_heartbeat(beat("s", "i", "down")).await });
    waiting_writes(&watch, 1).await;
    other.commit().await.unwrap();
    let row = beating.await.unwrap().unwrap().into_inner().service_health.unwrap();
    assert_eq!((row.status.as_str(), row.meta.unwrap().version), ("down", 2));
    let log = entries(&world.anonymous(), 10).await;
    let actions: Vec<_> = log.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["UPDATE"]);
    drop((database, watch));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_are_one_instance() {
    let world = World::new().await;
    let mut second = second_server(&world).await;
    let calls: Vec<_> = (0..32)
        .map(|n| {
            let server = if n % 2 == 0 { &world } else { &second };
            let mut client = server.anonymous().telemetry();
            tokio::spawn(async move {
                for round in 0..10 {
                    let status = if (n + round) % 8 == 0 { "degraded" } else { "healthy" };
                    ok!(client.record_heartbeat(beat("s", "i", status)));
                }
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    let found = ok!(world.anonymous().telemetry().list_service_health(of("", ""))).service_health;
    assert_eq!(found.len(), 1);
    // Each version stands once in the log, in order, and says something else than the one before.
    let log = entries(&world.anonymous(), 1000).await;
    let last = found[0].meta.as_ref().unwrap().version;
    assert_eq!(log.len() as i64, last);
    let actions = log.iter().map(|entry| entry.action.as_str());
    assert_eq!(actions.filter(|action| *action == "CREATE").count(), 1);
    let database = world.superuser().await;
    crate::fault::log_is_gap_free(&database).await;
    let sql = "SELECT seq, version, convert_from(document, 'UTF8')::jsonb ->> 'status' FROM casebook.log \
               WHERE kind = 'service_health' ORDER BY seq";
    let log: Vec<(i64, i64, String)> = database
        .query(sql, &[])
        .await
        .unwrap()
        .into_iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect();
    assert!(log.iter().all(|(seq, version, _)| seq == version), "{log:?}");
    assert!(log.windows(2).all(|two| two[0].2 != two[1].2), "{log:?}");
    drop(database);
    second.stop().await;
    world.close().await;
}
