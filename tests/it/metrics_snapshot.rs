//! Metrics snapshots: F25, what was measured, and each metric over time.

use crate::help::*;
use crate::world::{World, request, wrong_fields};
use casebook::pb;
use casebook::pb::get_metrics_series_response::Bucket;
use std::collections::BTreeMap;

/// The start of most windows here.
const START: i64 = 1_700_000_000;

fn at(millis: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp {
        seconds: START + millis.div_euclid(1000),
        nanos: (millis.rem_euclid(1000) * 1_000_000) as i32,
    })
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn metrics(members: &[(&str, f64)]) -> BTreeMap<String, f64> {
    members.iter().map(|(key, value)| ((*key).to_owned(), *value)).collect()
}

fn snapshot(members: &[(&str, f64)], millis: i64) -> pb::MetricsSnapshot {
    pb::MetricsSnapshot {
        source: "scorer".into(),
        metrics: metrics(members),
        labels: labels(&[("zone", "eu")]),
        snapshot_time: at(millis),
        ..Default::default()
    }
}

fn record(id: &str, given: pb::MetricsSnapshot) -> pb::RecordMetricsSnapshotRequest {
    pb::RecordMetricsSnapshotRequest {
        metrics_snapshot_id: id.into(),
        metrics_snapshot: Some(given),
        options: None,
    }
}

/// Of the window from START on.
fn series(metric: &str, bucket: i64, window: i64) -> pb::GetMetricsSeriesRequest {
    pb::GetMetricsSeriesRequest {
        metric: metric.into(),
        window: Some(pb::TimeWindow {
            start_time: at(0),
            end_time: at(window * 1000),
            newer_than: None,
        }),
        bucket: seconds(bucket),
        r#where: None,
    }
}

#[tokio::test]
async fn a_snapshot_comes_back_as_given() {
    let world = World::new().await;
    let mut client = world.anonymous().telemetry();
    let values = [("p99", 1.5e-9), ("count", 1e300), ("", 0.0)];
    let given = snapshot(&values[..2], 1);
    let once = pb::RecordMetricsSnapshotRequest {
        options: Some(request("r")),
        ..record("m", given.clone())
    };
    let made = ok!(client.record_metrics_snapshot(once.clone()));
    let one = made.metrics_snapshot.clone().unwrap();
    let expected = pb::MetricsSnapshot {
        id: "m".into(),
        etag: one.etag.clone(),
        meta: one.meta.clone(),
        ..given
    };
    assert_eq!(one, expected);
    let mut again = ok!(client.record_metrics_snapshot(once));
    assert!(std::mem::take(&mut again.receipt.as_mut().unwrap().replayed));
    assert_eq!(again, made);
    fails!(
        client.record_metrics_snapshot(record("m", snapshot(&[("a", 1.0)], 1))),
        AlreadyExists,
        "EXISTS"
    );
    let untimed = pb::MetricsSnapshot { snapshot_time: None, ..snapshot(&[("a", 1.0)], 0) };
    let with = |how: pb::OnConflict| pb::RecordMetricsSnapshotRequest {
        options: Some(pb::WriteOptions { on_conflict: how.into(), ..Default::default() }),
        ..record("n", untimed.clone())
    };
    let row = ok!(client.record_metrics_snapshot(record("n", untimed.clone())));
    let row = row.metrics_snapshot.unwrap();
    assert_eq!(row.snapshot_time, row.meta.as_ref().unwrap().create_time);
    // The epoch is a time like any other.
    let epoch = snapshot(&[("a", 1.0)], -1000 * START);
    assert_eq!(epoch.snapshot_time, Some(prost_types::Timestamp::default()));
    let made = ok!(client.record_metrics_snapshot(record("o", epoch.clone())));
    assert_eq!(made.metrics_snapshot.unwrap().snapshot_time, epoch.snapshot_time);
    let equal = ok!(client.record_metrics_snapshot(with(pb::OnConflict::ReturnIfEqual)));
    assert_eq!((equal.metrics_snapshot, equal.receipt.unwrap().unchanged), (Some(row), true));
    let call = client.record_metrics_snapshot(with(pb::OnConflict::Replace));
    fails!(call, InvalidArgument, "FIELD_INVALID");

    let list = |text: &str, window| pb::ListMetricsSnapshotsRequest {
        r#where: expression(text),
        window,
        ..Default::default()
    };
    let mut ids = async |request| {
        let found = ok!(client.list_metrics_snapshots(request)).metrics_snapshots;
        found.into_iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(list("", None)).await, ["n", "m", "o"]);
    assert_eq!(ids(list("labels.zone = eu AND source = scorer", None)).await, ["n", "m", "o"]);
    assert!(ids(list("labels.zone = us", None)).await.is_empty());
    let early = pb::TimeWindow { end_time: at(2), ..Default::default() };
    assert_eq!(ids(list("", Some(early))).await, ["m", "o"]);
    world.tenant("other").await;
    let mut other = world.as_tenant("other").telemetry();
    assert!(ok!(other.list_metrics_snapshots(list("", None))).metrics_snapshots.is_empty());
    assert!(ok!(other.get_metrics_series(series("p99", 60, 60))).buckets.is_empty());
    world.close().await;
}

#[tokio::test]
async fn snapshots_that_make_no_sense_are_refused() {
    let world = World::new().await;
    let mut client = world.anonymous().telemetry();
    let good = || snapshot(&[("a", 1.0)], 0);
    let many: BTreeMap<_, _> = (0..257).map(|n| (n.to_string(), 0.0)).collect();
    let long = "k".repeat(256);
    for (given, field) in [
        (pb::MetricsSnapshot { source: "".into(), ..good() }, "source"),
        (pb::MetricsSnapshot { source: "x".repeat(256), ..good() }, "source"),
        (snapshot(&[], 0), "metrics"),
        (pb::MetricsSnapshot { metrics: many, ..good() }, "metrics"),
        (snapshot(&[("a", f64::NAN)], 0), "metrics.a"),
        (snapshot(&[("a", f64::INFINITY)], 0), "metrics.a"),
        (snapshot(&[("", 1.0)], 0), "metrics"),
        (snapshot(&[(&long, 1.0)], 0), &format!("metrics.{}", &long[..64])),
        (pb::MetricsSnapshot { labels: labels(&[("", "x")]), ..good() }, "labels"),
    ] {
        let call = client.record_metrics_snapshot(record("m", given));
        let status = fails!(call, InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), [format!("metrics_snapshot.{field}")]);
    }
    fails!(
        client.record_metrics_snapshot(record("m", snapshot(&[("a\0", 1.0)], 0))),
        InvalidArgument,
        "NUL_BYTE"
    );
    assert_eq!(head(&world.anonymous()).await, 0);
    world.close().await;
}

#[tokio::test]
async fn a_series_has_a_bucket_for_each_span_with_values() {
    let world = World::new().await;
    let mut client = world.anonymous().telemetry();
    for (n, (millis, value)) in [
        (0, 1.0),
        (9_999, 4.0),
        (10_000, -2.0),
        (35_000, 8.0),
        (59_999, 16.0),
        (60_000, 99.0),
        (-1, 99.0),
    ]
    .into_iter()
    .enumerate()
    {
        let given = snapshot(&[("load", value), ("other", 7.0)], millis);
        ok!(client.record_metrics_snapshot(record(&format!("m{n}"), given)));
    }
    let without = snapshot(&[("unlike", 5.0)], 20_000);
    ok!(client.record_metrics_snapshot(record("without", without)));
    let elsewhere = pb::MetricsSnapshot {
        labels: labels(&[("zone", "us")]),
        ..snapshot(&[("load", 100.0)], 5_000)
    };
    ok!(client.record_metrics_snapshot(record("elsewhere", elsewhere)));
    let eu = pb::GetMetricsSeriesRequest {
        r#where: expression("labels.zone = eu"),
        ..series("load", 10, 60)
    };
    let found = ok!(client.get_metrics_series(eu));
    assert!(found.read_at.is_some());
    let bucket = |start, count, min, max, avg, last| Bucket {
        start_time: at(start),
        count,
        min,
        max,
        avg,
        last,
    };
    let expected = [
        bucket(0, 2, 1.0, 4.0, 2.5, 4.0),
        bucket(10_000, 1, -2.0, -2.0, -2.0, -2.0),
        bucket(30_000, 1, 8.0, 8.0, 8.0, 8.0),
        bucket(50_000, 1, 16.0, 16.0, 16.0, 16.0),
    ];
    assert_eq!(found.buckets, expected);
    // One that is longer than the window is all of it, be it as long as can be said.
    for long in [60, 61, 315_576_000_000] {
        let all = ok!(client.get_metrics_series(series("load", long, 60))).buckets;
        assert_eq!(all, [bucket(0, 6, -2.0, 100.0, 127.0 / 6.0, 16.0)]);
    }
    assert!(ok!(client.get_metrics_series(series("nope", 10, 60))).buckets.is_empty());
    // Up to now, and back from now.
    let now = pb::TimeWindow { newer_than: seconds(60), ..Default::default() };
    let recent = pb::GetMetricsSeriesRequest { window: Some(now), ..series("load", 60, 1) };
    assert!(ok!(client.get_metrics_series(recent.clone())).buckets.is_empty());
    let given = pb::MetricsSnapshot { snapshot_time: None, ..snapshot(&[("load", 3.0)], 0) };
    ok!(client.record_metrics_snapshot(record("now", given)));
    assert_eq!(ok!(client.get_metrics_series(recent)).buckets[0].last, 3.0);
    world.close().await;
}

#[tokio::test]
async fn a_series_is_within_its_limits() {
    let world = World::new().await;
    let mut client = world.anonymous().telemetry();
    ok!(client.record_metrics_snapshot(record("m", snapshot(&[("a", 1.0)], 999_999))));
    let most = ok!(client.get_metrics_series(series("a", 1, 1000))).buckets;
    assert_eq!(most[0].start_time, at(999_000));
    let unbound = pb::GetMetricsSeriesRequest { window: None, ..series("a", 1, 1) };
    let only_end = pb::TimeWindow { end_time: at(5), ..Default::default() };
    let only_end = pb::GetMetricsSeriesRequest { window: Some(only_end), ..unbound.clone() };
    let future = prost_types::Timestamp { seconds: 9_000_000_000, nanos: 0 };
    let future = pb::TimeWindow { start_time: Some(future), ..Default::default() };
    let future = pb::GetMetricsSeriesRequest { window: Some(future), ..unbound.clone() };
    for (wrong, field) in [
        (series("a", 1, 1001), "bucket"),
        (series("a", 0, 60), "bucket"),
        (series("a", -1, 60), "bucket"),
        (pb::GetMetricsSeriesRequest { bucket: None, ..series("a", 1, 60) }, "bucket"),
        (series("", 1, 60), "metric"),
        (series(&"x".repeat(256), 1, 60), "metric"),
        (unbound, "window.start_time"),
        (only_end, "window.start_time"),
        (series("a", 1, -1), "window.end_time"),
        (future, "window"),
    ] {
        let status = fails!(client.get_metrics_series(wrong), InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), [field]);
    }
    let wrong =
        pb::GetMetricsSeriesRequest { r#where: expression("metrics.a = 1"), ..series("a", 1, 60) };
    fails!(client.get_metrics_series(wrong), InvalidArgument, "FILTER_INVALID");
    fails!(client.get_metrics_series(series("a\0", 1, 60)), InvalidArgument, "NUL_BYTE");
    world.close().await;
}

#[tokio::test]
async fn no_value_and_no_name_makes_a_series_fail() {
    let world = World::new().await;
    let mut client = world.anonymous().telemetry();
    let names = ["a.b", "$", "\"", "\\", "'; --", "ü", "[0]", "*", "{}"];
    let all: Vec<_> = names.iter().zip(1..).map(|(name, n)| (*name, f64::from(n))).collect();
    ok!(client.record_metrics_snapshot(record("names", snapshot(&all, 0))));
    for (name, n) in all {
        let found = ok!(client.get_metrics_series(series(name, 60, 60))).buckets;
        assert_eq!((found[0].count, found[0].last), (1, n), "{name}");
    }
    let tiny = f64::from_bits(1);
    let exact = 0.1 + 0.2;
    for (name, values, avg) in [
        ("max", vec![f64::MAX, f64::MAX], f64::MAX),
        ("both", vec![f64::MAX, f64::MIN], 0.0),
        ("tiny", vec![tiny, 0.0, 0.0], 0.0),
        ("tiniest", vec![tiny], tiny),
        ("exact", vec![exact], exact),
        ("large", vec![9_007_199_254_740_993e3], 9_007_199_254_740_993e3),
    ] {
        for (n, value) in values.iter().enumerate() {
            let given = snapshot(&[(name, *value)], n as i64);
            ok!(client.record_metrics_snapshot(record(&format!("{name}-{n}"), given)));
        }
        let found = ok!(client.get_metrics_series(series(name, 60, 60))).buckets;
        let ends = (values.iter().copied().fold(f64::MAX, f64::min), values[values.len() - 1]);
        assert_eq!((found[0].min, found[0].last), ends, "{name}");
        assert_eq!(found[0].avg, avg, "{name}");
    }
    // What no server of ours has written does no harm, not even to others.
    world.tenant("other").await;
    let database = world.superuser().await;
    let strange = r#"UPDATE casebook.metrics_snapshot SET metrics = '{"a": "x", "b": [1], "c": {"a": 1}, "d": null,
        "e": true, "f": 1e999, "g": "1e999", "h": "NaN"}' WHERE id = 'names'"#;
    assert_eq!(database.execute(strange, &[]).await.unwrap(), 1);
    drop(database);
    for who in [world.anonymous(), world.as_tenant("other")] {
        for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            assert!(
                ok!(who.telemetry().get_metrics_series(series(name, 60, 60))).buckets.is_empty()
            );
        }
    }
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_series_is_what_one_reckons_from_its_snapshots() {
    let seed = Dice::seed();
    let mut dice = Dice::new(seed);
    let world = World::new().await;
    let mut times: Vec<i64> = (0..400).map(|_| dice.below(7_200_000) as i64 - 1_800_000).collect();
    times.sort_unstable();
    times.dedup();
    let all: Vec<(i64, f64)> =
        times.into_iter().map(|millis| (millis, dice.below(2000) as f64 / 8.0 - 100.0)).collect();
    let calls: Vec<_> = (0..32)
        .map(|n| {
            let mine: Vec<_> = all.iter().skip(n).step_by(32).copied().collect();
            let mut client = world.anonymous().telemetry();
            tokio::spawn(async move {
                for (millis, value) in mine {
                    let given = snapshot(&[("load", value)], millis);
                    ok!(client.record_metrics_snapshot(record("", given)));
                }
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    let mut client = world.anonymous().telemetry();
    for _ in 0..20 {
        let (bucket, window) = (4 + dice.below(900) as i64, 1 + dice.below(3600) as i64);
        let mut expected: BTreeMap<i64, Vec<f64>> = BTreeMap::new();
        for (millis, value) in all.iter().filter(|(millis, _)| (0..window * 1000).contains(millis))
        {
            let start = millis / (bucket * 1000) * bucket * 1000;
            expected.entry(start).or_default().push(*value);
        }
        let expected: Vec<Bucket> = expected
            .into_iter()
            .map(|(start, values)| Bucket {
                start_time: at(start),
                count: values.len() as i64,
                min: values.iter().copied().fold(f64::MAX, f64::min),
                max: values.iter().copied().fold(f64::MIN, f64::max),
                avg: values.iter().sum::<f64>() / values.len() as f64,
                last: values[values.len() - 1],
            })
            .collect();
        let mut found = ok!(client.get_metrics_series(series("load", bucket, window))).buckets;
        for (found, expected) in found.iter_mut().zip(&expected) {
            assert!((found.avg - expected.avg).abs() < 1e-9);
            found.avg = expected.avg;
        }
        assert_eq!(found, expected, "{bucket} s of {window} s");
    }
    world.close().await;
}
