//! Operations: work that goes on after the call that asked for it was answered, and survives the server that began it.

use super::change::{Modify, advance, stamp};
use super::child::Parent;
use super::filter::{Field, FieldKind};
use super::list::Listing;
use super::log::{Entry, LogRow};
use super::noun::{Meta, Noun};
use super::vector_index::IndexSpec;
use super::vector_space::VectorSpace;
use super::write::{Applied, Change, Outcome, RowKey, Shown, Tx};
use crate::{Error, Reason, Result, noun, queries, row};
use futures_util::future::BoxFuture;
use std::time::SystemTime;
use uuid::Uuid;

noun! {
    pub struct Operation in "operation" as operation + [QUERIES] {
        /// [`BUILD`] or [`DROP`].
        pub action: String,
        pub space_uid: Uuid,
        pub space_id: String,
        /// [`PENDING`] to [`CANCELLED`].
        pub state: i16,
        pub start_time: Option<SystemTime>,
        pub end_time: Option<SystemTime>,
        /// Why it failed.
        pub error: String,
    }
}

impl Parent for Operation {}

pub const BUILD: &str = "BUILD_VECTOR_INDEX";
pub const DROP: &str = "DROP_VECTOR_INDEX";

pub const PENDING: i16 = 1;
pub const RUNNING: i16 = 2;
pub const DONE: i16 = 3;
pub const FAILED: i16 = 4;
pub const CANCELLED: i16 = 5;

const STATES: FieldKind = FieldKind::Enum {
    prefix: "OPERATION_STATE_",
    names: &[
        ("PENDING", PENDING),
        ("RUNNING", RUNNING),
        ("DONE", DONE),
        ("FAILED", FAILED),
        ("CANCELLED", CANCELLED),
    ],
};

pub static LISTING: Listing = Listing {
    kind: "operation",
    table: "operation",
    op: "operation.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("action", "d.action", FieldKind::Text),
        Field::new("vector_space_id", "d.space_id", FieldKind::Text),
        Field::new("state", "d.state", STATES),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("update_time", "d.update_time", FieldKind::Time),
    ],
};

row! {
    /// An operation that is not over.
    pub struct Active {
        pub id: String,
        pub space_uid: Uuid,
    }
}

row! {
    /// An index that stands.
    pub struct Serving {
        pub space_uid: Uuid,
        pub method: i16,
        pub codes: i16,
        pub m: i32,
        pub ef_construction: i32,
        pub lists: i32,
    }
}

queries! { "operation" {
    /// The indexes that stand, of spaces: those that are searched, and those that found too little from the beginning.
    SERVING(Vec<Uuid>) -> Serving =
        "SELECT {*} FROM vector_index WHERE space_uid = ANY($1) AND state IN (3, 5)";
    /// The operations at work at spaces.
    ACTIVE(Vec<Uuid>) -> Active =
        "SELECT {*} FROM operation WHERE space_uid = ANY($1) AND state IN (1, 2) AND delete_time IS NULL";
} }

impl Operation {
    pub fn is_over(&self) -> bool {
        self.state >= DONE
    }

    fn new(action: &str, space: &VectorSpace) -> Self {
        let uid = Uuid::now_v7();
        Self {
            id: uid.to_string(),
            meta: Meta::new(uid),
            action: action.to_owned(),
            space_uid: space.meta.uid,
            space_id: space.id.clone(),
            state: PENDING,
            start_time: None,
            end_time: None,
            error: String::new(),
        }
    }

    /// A change of state; one that is over stays so.
    pub fn turn(id: String, state: i16) -> Modify<Self> {
        Modify {
            id,
            etag: None,
            action: "UPDATE",
            allow_missing: false,
            deleted: false,
            patch: Box::new(move |row, now| {
                if row.is_over() || row.state == state {
                    return Ok(());
                }
                row.state = state;
                if state == RUNNING {
                    row.start_time = Some(now);
                } else {
                    row.end_time = Some(now);
                }
                Ok(())
            }),
            size_bytes: 512,
        }
    }
}

/// Says what index a space shall have, and begins an operation that sees to it.
pub struct WantIndex {
    pub space_id: String,
    pub spec: IndexSpec,
}

impl Change for WantIndex {
    type Answer = Operation;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.push(RowKey::new(&[VectorSpace::KIND, &self.space_id]));
    }

    fn size_bytes(&self) -> usize {
        512
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        vec![(VectorSpace::KIND, &self.space_id)]
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Operation>>>> {
        Box::pin(async move {
            let mut ids: Vec<String> = changes.iter().map(|a| a.change.space_id.clone()).collect();
            // In one order, so that two transactions do not wait for each other.
            ids.sort_unstable();
            let mut spaces = tx.lock::<VectorSpace>(ids).await?;
            let uids = spaces.values().map(|space| space.meta.uid).collect();
            let active = tx.run(&ACTIVE, &(uids,)).await?;
            let (mut saved, mut begun) = (Vec::new(), Vec::new());
            let mut outcomes = Vec::with_capacity(changes.len());
            for Applied { change: Self { space_id, spec }, caller } in changes {
                let Some(mut space) = spaces.remove(space_id) else {
                    let gone = Error::not_found(VectorSpace::KIND, space_id);
                    outcomes.push(Outcome::Failed(gone));
                    continue;
                };
                if let Err(error) = spec.check(&space) {
                    outcomes.push(Outcome::Failed(error));
                    continue;
                }
                if let Some(Active { id, .. }) =
                    active.iter().find(|active| active.space_uid == space.meta.uid)
                {
                    outcomes.push(Outcome::Failed(Error::Refused {
                        reason: Reason::OperationActive,
                        message: format!(
                            "the operation \"{id}\" is at work at vector_space \"{space_id}\"; wait until it is over, \
                             or cancel it"
                        ),
                        metadata: vec![("operation_id", id.clone())],
                    }));
                    continue;
                }
                let mut entries = Vec::new();
                if spec.set_on(&mut space) {
                    advance(&mut space, caller.acting(), tx.now);
                    entries.push(Entry::of(&space, "UPDATE"));
                    saved.push(space.clone());
                }
                let action = if spec.is_none() { DROP } else { BUILD };
                let operation = stamp(&Operation::new(action, &space), caller.acting(), tx.now);
                entries.push(Entry::of(&operation, "CREATE"));
                begun.push(operation.clone());
                outcomes.push(Outcome::Done { answer: operation, entries, shown: Vec::new() });
            }
            tx.save(&saved).await?;
            if !begun.is_empty() {
                tx.insert(&begun).await?;
            }
            Ok(outcomes)
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Operation> {
        let begun = super::change::rows_of(entries)?.pop();
        begun.ok_or_else(|| Error::internal("a replayed answer lacks a row"))
    }
}

/// Ends an operation that has not done what it was for: the space is to have what it has.
pub struct End {
    pub id: String,
    /// Why it failed; none where somebody cancels it.
    pub error: Option<String>,
}

impl Change for End {
    type Answer = Operation;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.push(RowKey::new(&[Operation::KIND, &self.id]));
    }

    fn size_bytes(&self) -> usize {
        512
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        vec![(Operation::KIND, &self.id)]
    }

    /// Which space it is about, only the table knows.
    fn is_alone(&self) -> bool {
        true
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Operation>>>> {
        Box::pin(async move {
            let mut outcomes = Vec::with_capacity(changes.len());
            for Applied { change: Self { id, error }, caller } in changes {
                let Some(mut operation) = tx.lock::<Operation>(vec![id.clone()]).await?.remove(id)
                else {
                    outcomes.push(Outcome::Failed(Error::not_found(Operation::KIND, id)));
                    continue;
                };
                if operation.is_over() {
                    let shown = vec![Shown::of(&operation)];
                    outcomes.push(Outcome::Done { answer: operation, entries: Vec::new(), shown });
                    continue;
                }
                let action = if error.is_some() { "UPDATE" } else { "CANCEL" };
                operation.state = if error.is_some() { FAILED } else { CANCELLED };
                operation.error = error.clone().unwrap_or_default();
                operation.end_time = Some(tx.now);
                advance(&mut operation, caller.acting(), tx.now);
                tx.save(std::slice::from_ref(&operation)).await?;
                let mut entries = vec![Entry::of(&operation, action)];
                // Otherwise a server would begin again, or a space would say that it has what it has not.
                let there = tx.run(&SERVING, &(vec![operation.space_uid],)).await?.pop();
                let spec = match there {
                    Some(Serving { space_uid: _, method, codes, m, ef_construction, lists }) => {
                        Some(IndexSpec { method, codes, m, ef_construction, lists })
                    }
                    // What failed is tried again.
                    None => error.is_none().then_some(IndexSpec::NONE),
                };
                let space = tx.lock::<VectorSpace>(vec![operation.space_id.clone()]).await?;
                let space = space.into_values().next();
                if let Some(mut space) = space.filter(|space| space.meta.uid == operation.space_uid)
                    && let Some(spec) = spec
                    && spec.set_on(&mut space)
                {
                    advance(&mut space, caller.acting(), tx.now);
                    tx.save(std::slice::from_ref(&space)).await?;
                    entries.push(Entry::of(&space, "UPDATE"));
                }
                outcomes.push(Outcome::Done { answer: operation, entries, shown: Vec::new() });
            }
            Ok(outcomes)
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Operation> {
        let ended = super::change::rows_of(entries)?.pop();
        ended.ok_or_else(|| Error::internal("a replayed answer lacks a row"))
    }
}
