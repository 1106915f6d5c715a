//! Legal holds: what must not be deleted, and the check that every deletion passes.

use super::canonical::Json;
use super::change::{Create, Modify};
use super::child::Parent;
use super::filter::{Field, FieldKind};
use super::list::Listing;
use super::log::LogRow;
use super::noun::Noun;
use super::write::{Applied, Change, Outcome, RowKey, Tx};
use crate::{Error, Reason, Result, noun, queries, row};
use futures_util::future::BoxFuture;
use std::collections::HashMap;
use std::time::{Duration, SystemTime};

noun! {
    pub struct LegalHold in "legal_hold" as legal_hold + [QUERIES] {
        pub reason: String,
        pub matter: String,
        /// `[{"id": ..., "kind": ...}]`, kinds as the log names them.
        pub refs: Json,
        pub subject_id: String,
        pub release_time: Option<std::time::SystemTime>,
        pub released_by: String,
        pub release_reason: String,
    }

    fn is_given(&self, field: &str) -> bool {
        !matches!(field, "release_time" | "released_by" | "release_reason")
    }

    fn size_bytes(&self) -> usize {
        512 + self.reason.len() + self.refs.text().len()
    }
}

impl Parent for LegalHold {}

pub static LISTING: Listing = Listing {
    kind: "legal_hold",
    table: "legal_hold",
    op: "legal_hold.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("matter", "d.matter", FieldKind::Text),
        Field::new("subject_id", "d.subject_id", FieldKind::Text),
        Field::new("release_time", "d.release_time", FieldKind::Time).nullable(),
        Field::new("released_by", "d.released_by", FieldKind::Text),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("update_time", "d.update_time", FieldKind::Time),
    ],
};

row! {
    /// A hold on the n-th of those asked for, counted from 1.
    pub struct Held {
        pub n: i64,
        pub hold_id: String,
    }
}

row! {
    /// How long a class is kept.
    pub struct Floor {
        pub retention_class: String,
        pub keep_at_least_us: i64,
    }
}

queries! { "legal_hold" {
    /// Deletions share this lock until they commit, and a new hold takes it alone: so none is under way when the hold
    /// begins, and those behind it see it.
    SHARE() -> () = "SELECT pg_advisory_xact_lock_shared(hashtextextended('casebook.legal_hold', \
        hashtextextended(current_setting('casebook.tenant'), 0)))";
    ALONE() -> () = "SELECT pg_advisory_xact_lock(hashtextextended('casebook.legal_hold', \
        hashtextextended(current_setting('casebook.tenant'), 0)))";
    /// The holds on resources: (kinds, ids, subjects).
    HELD(Vec<String>, Vec<String>, Vec<String>) -> Held =
        "SELECT u.n, h.id AS hold_id FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY \
         AS u (kind, id, subject, n) CROSS JOIN LATERAL (SELECT h.id FROM legal_hold h \
         WHERE h.release_time IS NULL AND h.delete_time IS NULL \
         AND (h.refs @> jsonb_build_array(jsonb_build_object('kind', u.kind, 'id', u.id)) \
         OR u.subject <> '' AND h.subject_id = u.subject) ORDER BY h.id LIMIT 1) h ORDER BY u.n";
    FLOORS(Vec<String>) -> Floor =
        "SELECT {*} FROM retention_policy WHERE retention_class = ANY($1) AND delete_time IS NULL";
} }

/// Something that is about to go.
#[derive(Clone, Debug)]
pub struct Leaving {
    pub kind: &'static str,
    pub id: String,
    pub subject_id: String,
    pub retention_class: String,
    pub create_time: SystemTime,
    /// What it is a part of: whatever keeps the whole keeps its parts.
    pub whole: Option<(&'static str, String)>,
}

impl Leaving {
    pub fn of<T: Noun>(row: &T) -> Self {
        let text = |column| {
            let text = row.column(column).and_then(|text| text.downcast_ref::<String>());
            text.cloned().unwrap_or_default()
        };
        Self {
            kind: T::KIND,
            id: row.id().to_owned(),
            subject_id: text("subject_id"),
            retention_class: text("retention_class"),
            create_time: row.meta().create_time,
            whole: T::facts().part_of.map(|(kind, column)| (kind, text(column))),
        }
    }
}

/// For each what keeps it: a hold, or its class. From here until the transaction ends no hold can begin.
pub async fn kept(tx: &Tx<'_>, leaving: &[Leaving]) -> Result<Vec<Option<Error>>> {
    if leaving.is_empty() {
        return Ok(Vec::new());
    }
    tx.run(&SHARE, &()).await?;
    // Each, and behind all of them the wholes of those that are parts.
    let mut asked: (Vec<String>, Vec<String>, Vec<String>) = Default::default();
    let mut places: Vec<usize> = (0..leaving.len()).collect();
    for one in leaving {
        asked.0.push(one.kind.to_owned());
        asked.1.push(one.id.clone());
        asked.2.push(one.subject_id.clone());
    }
    for (place, one) in leaving.iter().enumerate() {
        if let Some((kind, id)) = &one.whole {
            asked.0.push((*kind).to_owned());
            asked.1.push(id.clone());
            asked.2.push(String::new());
            places.push(place);
        }
    }
    let held = tx.run(&HELD, &asked).await?.into_iter();
    let held: HashMap<usize, String> = held
        .filter_map(|held| Some((*places.get(usize::try_from(held.n - 1).ok()?)?, held.hold_id)))
        .collect();
    let classes: Vec<String> = leaving
        .iter()
        .map(|one| one.retention_class.clone())
        .filter(|class| !class.is_empty())
        .collect();
    let floors = if classes.is_empty() { Vec::new() } else { tx.run(&FLOORS, &(classes,)).await? };
    let floors: HashMap<String, u64> = floors
        .into_iter()
        .map(|floor| (floor.retention_class, floor.keep_at_least_us.unsigned_abs()))
        .collect();
    let all = leaving.iter().enumerate().map(|(n, one)| {
        if let Some(hold) = held.get(&n) {
            return Some(Error::Refused {
                reason: Reason::OnHold,
                message: format!(
                    "{} \"{}\" is kept by the legal hold \"{hold}\"; release it first",
                    one.kind, one.id
                ),
                metadata: vec![("legal_hold_id", hold.clone())],
            });
        }
        let keep = Duration::from_micros(*floors.get(&one.retention_class)?);
        let until = one.create_time.checked_add(keep).filter(|until| *until > tx.now)?;
        let until = super::canonical::rfc3339(until);
        Some(Error::Refused {
            reason: Reason::RetentionFloor,
            message: format!(
                "{} \"{}\" has the retention class {}, which is kept until {until}",
                one.kind, one.id, one.retention_class
            ),
            metadata: vec![("keep_until", until)],
        })
    });
    Ok(all.collect())
}

/// Begins a hold, when no deletion is under way.
pub struct BeginHold(pub Create<LegalHold>);

impl Change for BeginHold {
    type Answer = Vec<LegalHold>;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        self.0.touches(rows);
    }

    fn size_bytes(&self) -> usize {
        self.0.size_bytes()
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        self.0.about()
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Vec<LegalHold>>>>> {
        Box::pin(async move {
            tx.run(&ALONE, &()).await?;
            let inner: Vec<_> =
                changes.iter().map(|a| Applied { change: &a.change.0, caller: a.caller }).collect();
            Create::apply(tx, &inner).await
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Vec<LegalHold>> {
        self.0.rebuild(entries)
    }
}

/// Ends a hold. One that is released already stays as it is.
pub fn release(id: String, by: String, why: String) -> Modify<LegalHold> {
    Modify {
        action: "RELEASE",
        ..Modify::update(id, None, why.len(), move |row: &mut LegalHold, now| {
            if row.release_time.is_none() {
                row.release_time = Some(now);
                row.released_by.clone_from(&by);
                row.release_reason.clone_from(&why);
            }
            Ok(())
        })
    }
}
