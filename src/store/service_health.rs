//! Service health: which instances of other services are alive, and how they say they are.
//!
//! What an instance says is a version like any other. That it is alive is not: a heartbeat that says nothing new only
//! moves `last_heartbeat_time`, or the log would be nothing but heartbeats.

use super::canonical::Json;
use super::change::{advance, rows_of, stamp};
use super::child::Parent;
use super::filter::{Field, FieldKind};
use super::list::Listing;
use super::log::{Entry, LogRow, hex};
use super::noun::{Inserted, Noun};
use super::write::{Applied, Change, Outcome, RowKey, Shown, Tx};
use crate::{Error, Result, noun, queries};
use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};
use std::time::SystemTime;
use uuid::Uuid;

noun! {
    pub struct ServiceHealth in "service_health" as service_health + [QUERIES] {
        pub service_name: String,
        pub instance_id: String,
        pub status: String,
        pub last_heartbeat_time: SystemTime,
        pub metadata: Json,
    }

    fn stamp(&mut self, now: SystemTime) {
        self.last_heartbeat_time = now;
    }

    fn size_bytes(&self) -> usize {
        512 + self.metadata.text().len()
    }
}

impl Parent for ServiceHealth {}

pub static LISTING: Listing = Listing {
    kind: "service_health",
    table: "service_health",
    op: "service_health.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("service_name", "d.service_name", FieldKind::Text),
        Field::new("instance_id", "d.instance_id", FieldKind::Text),
        Field::new("status", "d.status", FieldKind::Text),
        Field::new("last_heartbeat_time", "d.last_heartbeat_time", FieldKind::Time),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("metadata", "d.metadata", FieldKind::Json),
    ],
};

queries! { "service_health" {
    /// Notes that instances are alive: (uids, time).
    ALIVE(Vec<Uuid>, SystemTime) -> Inserted =
        "UPDATE service_health SET last_heartbeat_time = greatest(last_heartbeat_time, $2) WHERE uid = ANY($1) \
         RETURNING uid";
} }

/// The id of an instance: a digest, because names may be longer than ids and hold what ids may not.
pub fn id_of(service_name: &str, instance_id: &str) -> String {
    // Neither holds a NUL byte, so no other two names make the same bytes.
    let names = Sha256::new_with_prefix(service_name).chain_update([0]).chain_update(instance_id);
    hex(&names.finalize())
}

/// A sign of life of one instance, whose first one also records it.
pub struct RecordHeartbeat {
    pub row: ServiceHealth,
}

impl Change for RecordHeartbeat {
    type Answer = ServiceHealth;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.push(RowKey::new(&[ServiceHealth::KIND, &self.row.id]));
    }

    fn size_bytes(&self) -> usize {
        self.row.size_bytes()
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<ServiceHealth>>>> {
        Box::pin(async move {
            let ids = changes.iter().map(|a| a.change.row.id.clone()).collect();
            let mut there = tx.lock::<ServiceHealth>(ids).await?;
            let (mut new, mut changed, mut alive) = (Vec::new(), Vec::new(), Vec::new());
            let mut outcomes = Vec::with_capacity(changes.len());
            for Applied { change: Self { row: given }, caller } in changes {
                let (answer, action) = match there.remove(&given.id) {
                    None => {
                        let row = stamp(given, caller.acting(), tx.now);
                        new.push(row.clone());
                        (row, Some("CREATE"))
                    }
                    Some(mut row) => {
                        row.last_heartbeat_time = row.last_heartbeat_time.max(tx.now);
                        if (&row.status, &row.metadata) == (&given.status, &given.metadata) {
                            alive.push(row.meta.uid);
                            (row, None)
                        } else {
                            row.status.clone_from(&given.status);
                            row.metadata = given.metadata.clone();
                            advance(&mut row, caller.acting(), tx.now);
                            changed.push(row.clone());
                            (row, Some("UPDATE"))
                        }
                    }
                };
                let entries = action.map(|action| Entry::of(&answer, action)).into_iter().collect();
                let shown = if action.is_none() { vec![Shown::of(&answer)] } else { Vec::new() };
                outcomes.push(Outcome::Done { answer, entries, shown });
            }
            if !new.is_empty() && tx.insert(&new).await?.contains(&false) {
                // Another server has recorded it at this moment: the next attempt finds it.
                return Err(Error::Conflict(std::sync::Arc::from(Box::from(
                    "an instance was recorded by two servers",
                ))));
            }
            tx.save(&changed).await?;
            if !alive.is_empty() {
                tx.run(&ALIVE, &(alive, tx.now)).await?;
            }
            Ok(outcomes)
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<ServiceHealth> {
        let row = rows_of(entries)?.pop();
        row.ok_or_else(|| Error::internal("a replayed answer lacks a row"))
    }
}
