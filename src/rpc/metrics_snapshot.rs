//! Metrics snapshots and series on the wire.

use super::resource::{New, Resource};
use super::wire::{self, Fields};
use super::{filter, json, page};
use crate::pb;
use crate::store::canonical::Json;
use crate::store::change::when_recorded;
use crate::store::filter::Field;
use crate::store::list::{ListQuery, Window};
use crate::store::metrics_snapshot::{BUCKETS_MAX, Bucket, LISTING, MetricsSnapshot, Series};
use crate::store::noun::Noun;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

const METRICS_MAX: usize = 256;
const KEY_BYTES_MAX: usize = 255;
const BUCKET_US_MIN: i64 = 1_000_000;

crate::requests! { MetricsSnapshot:
    create RecordMetricsSnapshotRequest(metrics_snapshot_id metrics_snapshot);
    list ListMetricsSnapshotsRequest("snapshot_time" by [("snapshot_time", true)]);
}

/// A request for a series, with everything that is wrong with it. Without an end it goes up to `now`.
pub fn read_series(request: pb::GetMetricsSeriesRequest, now: SystemTime) -> Result<Series> {
    let pb::GetMetricsSeriesRequest { metric, window, bucket, r#where } = request;
    let mut fields = Fields::default();
    let metric = fields.name("metric", metric, KEY_BYTES_MAX);
    let bucket_us = fields.span_us("bucket", bucket).unwrap_or_default();
    if bucket_us < BUCKET_US_MIN && fields.is_sound() {
        fields.wrong("bucket", "must be at least 1 second");
    }
    let time = Field::find(LISTING.fields, "snapshot_time")
        .ok_or_else(|| Error::internal("snapshots have no snapshot_time"))?;
    let window = page::window(time, window, now, "window");
    let given = fields.taken(window);
    let start = given.and_then(|window| window.start);
    let end = given.and_then(|window| window.end).unwrap_or(now);
    if start.is_none() && fields.is_sound() {
        fields.wrong("window.start_time", "is required");
    }
    let filter = fields.taken(filter::selector(LISTING.fields, r#where, "where"));

    let start = start.unwrap_or(end);
    let bucket = Duration::from_micros(u64::try_from(bucket_us).unwrap_or_default());
    match end.duration_since(start) {
        _ if !fields.is_sound() => {}
        Ok(span) if span.is_zero() => fields.wrong("window", "must end after its start"),
        Err(_) => fields.wrong("window", "must end after its start"),
        Ok(span) => {
            let buckets = span.as_nanos().div_ceil(bucket.as_nanos());
            if buckets > u128::from(BUCKETS_MAX) {
                let what = format!(
                    "must be longer: the window has at most {BUCKETS_MAX} of them, and this makes {buckets}"
                );
                fields.wrong("bucket", what);
            }
        }
    }
    // A bucket beyond the window is all of it; this keeps it within what PostgreSQL counts in.
    let bucket = bucket.min(end.duration_since(start).unwrap_or_default());
    let window = Some(Window { field: time, start: Some(start), end: Some(end) });
    let query = ListQuery { filter, window, ..ListQuery::default() };
    fields.finish(Series { metric, start, bucket, query })
}

impl From<Bucket> for pb::get_metrics_series_response::Bucket {
    fn from(row: Bucket) -> Self {
        let Bucket { start_time, count, min, max, avg, last } = row;
        Self {
            start_time: wire::timestamp(start_time),
            count,
            min,
            max,
            // PostgreSQL writes numbers as Rust reads them.
            avg: avg.parse().unwrap_or(f64::NAN),
            last,
        }
    }
}

impl Resource for pb::MetricsSnapshot {
    type Row = MetricsSnapshot;
    const CHANGEABLE: &'static [&'static str] = &[];
    const NO_REPLACE: Option<&'static str> =
        Some("what was measured never changes; record another snapshot");

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    fn read(self, f: &mut Fields, New { id, meta }: New) -> MetricsSnapshot {
        let pb::MetricsSnapshot { id: _, etag: _, meta: _, source, metrics, labels, snapshot_time } =
            self;
        MetricsSnapshot {
            id,
            meta,
            source: f.name("source", source, 255),
            metrics: read_metrics(f, metrics),
            labels: f.labels("labels", labels),
            snapshot_time: f.time("snapshot_time", snapshot_time).unwrap_or_else(when_recorded),
        }
    }
}

fn read_metrics(fields: &mut Fields, metrics: BTreeMap<String, f64>) -> Json {
    if !(1..=METRICS_MAX).contains(&metrics.len()) {
        let what = format!("must have 1 to {METRICS_MAX} entries, and has {}", metrics.len());
        fields.wrong("metrics", what);
        return Json::object();
    }
    let mut members = serde_json::Map::new();
    for (key, value) in metrics {
        let shown: String = key.chars().take(64).collect();
        let shown = shown.replace('\0', "\u{fffd}");
        let (key, value) = fields.within("metrics", |fields| {
            let key = fields.name(&shown, key, KEY_BYTES_MAX);
            (key, fields.number(&shown, value, f64::MIN, f64::MAX))
        });
        members.insert(key, value.into());
    }
    json::of_value(&serde_json::Value::Object(members))
}

impl From<MetricsSnapshot> for pb::MetricsSnapshot {
    fn from(row: MetricsSnapshot) -> Self {
        let etag = row.etag();
        let MetricsSnapshot { id, meta, source, metrics, labels, snapshot_time } = row;
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            source,
            metrics: json::parsed(&metrics),
            labels: json::to_strings(&labels),
            snapshot_time: wire::timestamp(snapshot_time),
        }
    }
}
