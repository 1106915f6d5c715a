//! Model checkpoints: the versions of models, of which one of a framework and model is active (C31).

use super::canonical::Json;
use super::change::{Modify, advance, rows_of};
use super::child::{Hide, Parent};
use super::filter::{Field, FieldKind};
use super::list::Listing;
use super::log::{Entry, LogRow};
use super::noun::Noun;
use super::write::{Applied, Change, Outcome, RowKey, Shown, Tx};
use crate::{Error, Reason, Result, noun, queries};
use futures_util::future::BoxFuture;
use std::collections::HashMap;

noun! {
    pub struct ModelCheckpoint in "model_checkpoint" as model_checkpoint + [QUERIES] {
        pub model_name: String,
        pub framework: String,
        pub model_version: String,
        pub checkpoint_path: String,
        pub metrics: Json,
        pub training_config: Json,
        pub active: bool,
        pub digest: String,
    }

    const ALSO_UNIQUE: &'static [&'static str] = &["model_name", "model_version"];

    fn is_given(&self, field: &str) -> bool {
        field != "active"
    }

    fn size_bytes(&self) -> usize {
        512 + self.checkpoint_path.len() + self.metrics.text().len() + self.training_config.text().len()
    }
}

impl Parent for ModelCheckpoint {}

pub static LISTING: Listing = Listing {
    kind: "model_checkpoint",
    table: "model_checkpoint",
    op: "model_checkpoint.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("model_name", "d.model_name", FieldKind::Text),
        Field::new("framework", "d.framework", FieldKind::Text),
        Field::new("model_version", "d.model_version", FieldKind::Text),
        Field::new("active", "d.active", FieldKind::Bool),
        Field::new("digest", "d.digest", FieldKind::Text),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("update_time", "d.update_time", FieldKind::Time),
    ],
};

queries! { "model_checkpoint" {
    /// Keeps the activations of one framework and model apart, on whatever server they run: where none is active yet,
    /// there is no row that both would lock, and the index would make one of them start again. Framework and model of a
    /// checkpoint never change.
    LOCK_MODELS(Vec<String>) -> () =
        "SELECT pg_advisory_xact_lock(key) FROM (SELECT DISTINCT hashtextextended(concat_ws(E'\\n', \
         'casebook.model_checkpoint', current_setting('casebook.tenant', true), framework, model_name), 0) AS key \
         FROM model_checkpoint WHERE id = ANY($1) AND delete_time IS NULL ORDER BY key) AS models";
    /// Checkpoints, and the active ones of their frameworks and models; in the order in which others lock rows, too.
    LOCK_WITH_ACTIVE(Vec<String>) -> ModelCheckpoint =
        "SELECT {d.*} FROM model_checkpoint AS d WHERE d.delete_time IS NULL AND d.uid IN (\
         SELECT t.uid FROM model_checkpoint AS t WHERE t.id = ANY($1) AND t.delete_time IS NULL UNION ALL \
         SELECT a.uid FROM model_checkpoint AS t JOIN model_checkpoint AS a ON a.framework = t.framework \
         AND a.model_name = t.model_name WHERE t.id = ANY($1) AND t.delete_time IS NULL \
         AND a.active AND a.delete_time IS NULL) ORDER BY d.id FOR UPDATE OF d";
} }

/// Makes a checkpoint the active one of its framework and model.
pub struct ActivateCheckpoint {
    pub id: String,
    pub etag: Option<String>,
}

/// The active checkpoint, and the id of the one that was active before.
pub struct Activated {
    pub checkpoint: ModelCheckpoint,
    pub deactivated_id: String,
}

/// Leaves a checkpoint inactive.
pub fn deactivate(id: String, etag: Option<String>) -> Modify<ModelCheckpoint> {
    let patch = |row: &mut ModelCheckpoint, _| {
        row.active = false;
        Ok(())
    };
    Modify { action: "DEACTIVATE", ..Modify::update(id, etag, 0, patch) }
}

/// Deletes a checkpoint that is not active: what decides at this moment does not go away by the way.
pub fn delete(id: String, etag: Option<String>, allow_missing: bool) -> Hide<ModelCheckpoint> {
    let delete = Modify::<ModelCheckpoint>::delete(id, etag, allow_missing);
    let patch = delete.patch;
    Hide(Modify {
        patch: Box::new(move |row, now| {
            if row.active {
                return Err(Error::Refused {
                    reason: Reason::InUse,
                    message: format!(
                        "model_checkpoint \"{}\" is active: activate another, or deactivate it, before",
                        row.id
                    ),
                    metadata: vec![("id", row.id.clone())],
                });
            }
            patch(row, now)
        }),
        ..delete
    })
}

impl Change for ActivateCheckpoint {
    type Answer = Activated;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.push(RowKey::new(&[ModelCheckpoint::KIND, &self.id]));
    }

    fn size_bytes(&self) -> usize {
        0
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        vec![(ModelCheckpoint::KIND, &self.id)]
    }

    /// Which one is active now, only the tables know.
    fn is_alone(&self) -> bool {
        true
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Activated>>>> {
        Box::pin(async move {
            let ids: Vec<String> = changes.iter().map(|a| a.change.id.clone()).collect();
            tx.run(&LOCK_MODELS, &(ids.clone(),)).await?;
            let there = tx.run(&LOCK_WITH_ACTIVE, &(ids,)).await?;
            let mut rows: HashMap<String, ModelCheckpoint> =
                there.into_iter().map(|row| (row.id.clone(), row)).collect();

            let (mut before, mut after) = (Vec::new(), Vec::new());
            let mut outcomes = Vec::with_capacity(changes.len());
            for Applied { change: Self { id, etag }, caller } in changes {
                let Some(mut row) = rows.remove(id) else {
                    outcomes.push(Outcome::Failed(Error::not_found(ModelCheckpoint::KIND, id)));
                    continue;
                };
                let current_etag = row.etag();
                if etag.as_ref().is_some_and(|etag| *etag != current_etag) {
                    let (kind, id) = (ModelCheckpoint::KIND, id.clone());
                    outcomes.push(Outcome::Failed(Error::Stale { kind, id, current_etag }));
                    continue;
                }
                if row.active {
                    let shown = vec![Shown::of(&row)];
                    let answer = Activated { checkpoint: row, deactivated_id: String::new() };
                    outcomes.push(Outcome::Done { answer, entries: Vec::new(), shown });
                    continue;
                }
                let mut entries = Vec::with_capacity(2);
                let mut deactivated_id = String::new();
                // It may have been deactivated while we waited for its lock.
                let is_rival = |other: &&mut ModelCheckpoint| {
                    other.active
                        && (&other.framework, &other.model_name)
                            == (&row.framework, &row.model_name)
                };
                if let Some(other) = rows.values_mut().find(is_rival) {
                    other.active = false;
                    advance(other, caller.acting(), tx.now);
                    entries.push(Entry::of(other, "DEACTIVATE"));
                    deactivated_id.clone_from(&other.id);
                    before.push(other.clone());
                }
                row.active = true;
                advance(&mut row, caller.acting(), tx.now);
                entries.push(Entry::of(&row, "ACTIVATE"));
                after.push(row.clone());
                let answer = Activated { checkpoint: row, deactivated_id };
                outcomes.push(Outcome::Done { answer, entries, shown: Vec::new() });
            }
            // First the old ones step back: an index allows no two.
            tx.save(&before).await?;
            tx.save(&after).await?;
            Ok(outcomes)
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Activated> {
        let rows: Vec<ModelCheckpoint> = rows_of(entries)?;
        let (mine, others): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.id == self.id);
        let checkpoint = mine.into_iter().next();
        let checkpoint =
            checkpoint.ok_or_else(|| Error::internal("a replayed answer lacks a row"))?;
        let deactivated_id = others.into_iter().next().map(|row| row.id).unwrap_or_default();
        Ok(Activated { checkpoint, deactivated_id })
    }
}
