//! Changing what may change of a version: its tags and its comment.

use super::{Object, lock_chains};
use crate::store::canonical::Json;
use crate::store::change::{advance, rows_of};
use crate::store::log::{Entry, LogRow};
use crate::store::noun::Noun as _;
use crate::store::object_version::ObjectVersion;
use crate::store::write::{Applied, Change, Outcome, RowKey, Shown, Tx};
use crate::{Error, Result};
use futures_util::future::BoxFuture;

/// Changes tags and comment of a version, as far as they are given. The object has the tags of its latest.
pub struct UpdateVersion {
    pub key: String,
    pub version_id: String,
    pub etag: Option<String>,
    pub tags: Option<Json>,
    pub comment: Option<String>,
}

impl UpdateVersion {
    /// The version as it shall be.
    fn patch(&self, there: Option<&ObjectVersion>) -> Result<ObjectVersion> {
        let there = there.filter(|version| version.object_key == self.key);
        let mut version = there
            .cloned()
            .ok_or_else(|| Error::not_found(ObjectVersion::KIND, &self.version_id))?;
        let current_etag = version.etag();
        if self.etag.as_ref().is_some_and(|etag| *etag != current_etag) {
            let (kind, id) = (ObjectVersion::KIND, self.version_id.clone());
            return Err(Error::Stale { kind, id, current_etag });
        }
        if let Some(tags) = &self.tags {
            version.tags = tags.clone();
        }
        if let Some(comment) = &self.comment {
            version.comment.clone_from(comment);
        }
        Ok(version)
    }
}

impl Change for UpdateVersion {
    type Answer = ObjectVersion;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.push(RowKey::new(&[Object::KIND, &self.key]));
    }

    fn size_bytes(&self) -> usize {
        8 << 10
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        vec![(ObjectVersion::KIND, &self.version_id)]
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<ObjectVersion>>>> {
        Box::pin(async move {
            let keys = changes.iter().map(|a| a.change.key.clone()).collect();
            let mut chains = lock_chains(tx, keys).await?;
            let ids = changes.iter().map(|a| a.change.version_id.clone()).collect();
            let there = tx.lock::<ObjectVersion>(ids).await?;
            let (mut versions, mut objects) = (Vec::new(), Vec::new());
            let mut outcomes = Vec::with_capacity(changes.len());
            for Applied { change, caller } in changes {
                let before = there.get(&change.version_id);
                let mut version = match change.patch(before) {
                    Ok(version) => version,
                    Err(error) => {
                        outcomes.push(Outcome::Failed(error));
                        continue;
                    }
                };
                if before == Some(&version) {
                    let shown = vec![Shown::of(&version)];
                    outcomes.push(Outcome::Done { answer: version, entries: Vec::new(), shown });
                    continue;
                }
                advance(&mut version, caller.acting(), tx.now);
                let mut entries = vec![Entry::of(&version, "UPDATE")];
                let shows = |object: &Object| {
                    object.version_id == version.id
                        && object.is_live()
                        && object.tags != version.tags
                };
                if let Some(mut object) = chains.remove(&change.key).filter(shows) {
                    advance(&mut object, caller.acting(), tx.now);
                    object.tags = version.tags.clone();
                    entries.push(Entry::of(&object, "UPDATE"));
                    objects.push(object);
                }
                versions.push(version.clone());
                outcomes.push(Outcome::Done { answer: version, entries, shown: Vec::new() });
            }
            tx.save(&versions).await?;
            tx.save(&objects).await?;
            Ok(outcomes)
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<ObjectVersion> {
        let version = rows_of(entries)?.pop();
        version.ok_or_else(|| Error::internal("a replayed answer lacks a row"))
    }
}
