//! Deleting: a delete marker on top of an object's versions, or one version of it taken away.

use super::{Object, UNDER, Written, lock_chains};
use crate::store::blob::reference::let_go;
use crate::store::change::{advance, rows_of, stamp};
use crate::store::child::Move;
use crate::store::embedding::subject::move_embeddings;
use crate::store::legal_hold::{self, Leaving};
use crate::store::log::{Entry, LogRow};
use crate::store::noun::Noun as _;
use crate::store::object_version::ObjectVersion;
use crate::store::write::{Applied, Change, Embeddings, Outcome, RowKey, Tx};
use crate::{Error, Result};
use futures_util::future::BoxFuture;
use std::collections::HashMap;
use std::time::SystemTime;
use uuid::Uuid;

/// One object to hide, or one version to take away.
#[derive(Clone, Debug)]
pub struct Leave {
    pub key: String,
    /// Empty for a delete marker on top.
    pub version_id: String,
    /// Of the version if one is named, else of the object.
    pub etag: Option<String>,
    /// The delete marker's.
    pub uid: Uuid,
}

/// Deletes objects or versions, all or none.
pub struct Delete {
    /// No key twice.
    pub leave: Vec<Leave>,
    /// What is not there is passed over.
    pub allow_missing: bool,
}

/// What is known of all that shall go in a batch.
struct Known {
    chains: HashMap<String, Object>,
    versions: HashMap<String, ObjectVersion>,
    /// The version under the one that goes, by key.
    under: HashMap<String, ObjectVersion>,
    /// What is kept, and why: by key and version_id.
    kept: HashMap<(String, String), Error>,
}

/// Something that is there to go.
struct There {
    object: Object,
    /// Absent where the object itself is to go.
    version: Option<ObjectVersion>,
}

impl Known {
    /// What a deletion is about; `None` where there is nothing and that is allowed.
    fn find(&self, leave: &Leave, allow_missing: bool) -> Result<Option<There>> {
        let Leave { key, version_id, etag, uid: _ } = leave;
        let chain = self.chains.get(key);
        let there = if version_id.is_empty() {
            let live = chain.filter(|object| object.is_live());
            live.map(|object| (There { object: object.clone(), version: None }, object.etag()))
        } else {
            let version =
                self.versions.get(version_id).filter(|version| version.object_key == *key);
            chain.zip(version).map(|(object, version)| {
                let there = There { object: object.clone(), version: Some(version.clone()) };
                (there, version.etag())
            })
        };
        let (kind, id) = match version_id.is_empty() {
            true => (Object::KIND, key),
            false => (ObjectVersion::KIND, version_id),
        };
        let Some((there, current_etag)) = there else {
            return if allow_missing { Ok(None) } else { Err(Error::not_found(kind, id)) };
        };
        if etag.as_ref().is_some_and(|etag| *etag != current_etag) {
            return Err(Error::Stale { kind, id: id.clone(), current_etag });
        }
        Ok(Some(there))
    }
}

/// What deletions write.
#[derive(Default)]
struct Writes {
    objects: Vec<Object>,
    markers: Vec<ObjectVersion>,
    gone: Vec<ObjectVersion>,
    /// Objects that went or came back: key, when deleted now, when before, author.
    moved: Vec<(String, Option<SystemTime>, Option<SystemTime>, String)>,
}

impl Writes {
    /// Puts a delete marker on top.
    fn mark(
        &mut self,
        mut object: Object,
        uid: Uuid,
        author: &str,
        now: SystemTime,
    ) -> (Written, Vec<Entry>) {
        advance(&mut object, author, now);
        let mut marker = stamp(&ObjectVersion::new(object.id.clone(), uid), author, now);
        marker.delete_marker = true;
        marker.number = object.meta.version;
        object.meta.delete_time = Some(now);
        object.version_id.clone_from(&marker.id);
        object.version_count += 1;
        self.moved.push((object.id.clone(), Some(now), None, author.to_owned()));
        self.objects.push(object.clone());
        self.markers.push(marker.clone());
        let entries = vec![Entry::of(&object, "DELETE"), Entry::of(&marker, "CREATE")];
        (Written { object, version: marker }, entries)
    }

    /// Takes a version away; if it was on top, the one under it is the latest again.
    fn take(
        &mut self,
        (mut object, mut version): (Object, ObjectVersion),
        under: Option<&ObjectVersion>,
        author: &str,
        now: SystemTime,
    ) -> (Written, Vec<Entry>) {
        advance(&mut version, author, now);
        version.meta.delete_time = Some(now);
        advance(&mut object, author, now);
        object.version_count -= 1;
        let before = object.meta.delete_time;
        if object.version_id == version.id {
            object.version_id = under.map(|under| under.id.clone()).unwrap_or_default();
            match under {
                Some(under) if !under.delete_marker => {
                    object.meta.delete_time = None;
                    object.show(under);
                }
                // Also where it was deleted before, so that the last version is never younger than its object's end.
                None => object.meta.delete_time = Some(now),
                Some(_) => object.meta.delete_time = before.or(Some(now)),
            }
        }
        let after = object.meta.delete_time;
        let action = match (before, after) {
            (None, Some(_)) => "DELETE",
            (Some(_), None) => "UNDELETE",
            _ => "UPDATE",
        };
        if before.is_none() != after.is_none() {
            self.moved.push((object.id.clone(), after, before, author.to_owned()));
        }
        self.objects.push(object.clone());
        self.gone.push(version.clone());
        let entries = vec![Entry::of(&object, action), Entry::of(&version, "DELETE")];
        (Written { object, version }, entries)
    }
}

/// Looks up and locks all that changes are about.
async fn look(tx: &Tx<'_>, changes: &[Applied<'_, Delete>]) -> Result<Known> {
    let all = || changes.iter().flat_map(|a| &a.change.leave);
    let chains = lock_chains(tx, all().map(|leave| leave.key.clone()).collect()).await?;
    let ids = all().map(|leave| leave.version_id.clone()).filter(|id| !id.is_empty());
    let ids: Vec<String> = ids.collect();
    let versions = if ids.is_empty() { HashMap::new() } else { tx.lock(ids).await? };
    let mut known = Known { chains, versions, under: HashMap::new(), kept: HashMap::new() };

    let on_top = all().filter(|leave| {
        let chain = known.chains.get(&leave.key);
        chain.is_some_and(|object| object.version_id == leave.version_id)
    });
    let on_top: (Vec<String>, Vec<String>) =
        on_top.map(|leave| (leave.key.clone(), leave.version_id.clone())).unzip();
    if !on_top.0.is_empty() {
        let under: Vec<ObjectVersion> = tx.run(&UNDER, &on_top).await?;
        known.under = under.into_iter().map(|row| (row.object_key.clone(), row)).collect();
    }

    let (mut names, mut leaving) = (Vec::new(), Vec::new());
    for leave in all() {
        let Ok(Some(there)) = known.find(leave, true) else { continue };
        leaving.push(match &there.version {
            // What counts is how long it has been what it is.
            None => {
                Leaving { create_time: there.object.last_modified, ..Leaving::of(&there.object) }
            }
            Some(version) => Leaving::of(version),
        });
        names.push((leave.key.clone(), leave.version_id.clone()));
    }
    let kept = legal_hold::kept(tx, &leaving).await?.into_iter();
    known.kept = kept.zip(names).filter_map(|(error, name)| Some((name, error?))).collect();
    Ok(known)
}

impl Change for Delete {
    type Answer = Vec<Written>;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.extend(self.leave.iter().map(|leave| RowKey::new(&[Object::KIND, &leave.key])));
    }

    fn size_bytes(&self) -> usize {
        self.leave.len() * 1024
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        self.leave.iter().map(|leave| (Object::KIND, leave.key.as_str())).collect()
    }

    fn embeddings(&self) -> Embeddings {
        Embeddings::TakenAlong
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Vec<Written>>>>> {
        Box::pin(async move {
            let mut known = look(tx, changes).await?;
            let mut writes = Writes::default();
            let mut outcomes = Vec::with_capacity(changes.len());
            for Applied { change, caller } in changes {
                let found = change.leave.iter().map(|leave| {
                    let there = known.find(leave, change.allow_missing)?;
                    Ok(there.map(|there| (leave, there)))
                });
                let found: Result<Vec<_>> = found.collect();
                let found = found.and_then(|found| {
                    let found: Vec<_> = found.into_iter().flatten().collect();
                    for (Leave { key, version_id, .. }, _) in &found {
                        if let Some(error) = known.kept.remove(&(key.clone(), version_id.clone())) {
                            return Err(error);
                        }
                    }
                    Ok(found)
                });
                let found = match found {
                    Ok(found) => found,
                    Err(error) => {
                        outcomes.push(Outcome::Failed(error));
                        continue;
                    }
                };
                let (mut answer, mut entries) = (Vec::new(), Vec::new());
                for (leave, there) in found {
                    let There { object, version } = there;
                    let (written, mine) = match version {
                        None => writes.mark(object, leave.uid, caller.acting(), tx.now),
                        Some(version) => {
                            let under = known.under.get(&leave.key);
                            writes.take((object, version), under, caller.acting(), tx.now)
                        }
                    };
                    answer.push(written);
                    entries.extend(mine);
                }
                outcomes.push(Outcome::Done { answer, entries, shown: Vec::new() });
            }
            tx.save(&writes.objects).await?;
            if !writes.markers.is_empty() && tx.insert(&writes.markers).await?.contains(&false) {
                return Err(Error::internal("a delete marker was there before"));
            }
            tx.save_meta(&writes.gone).await?;
            let with_blobs = writes.gone.iter().filter(|version| !version.digest.is_empty());
            let with_blobs = with_blobs.map(|version| version.meta.uid).collect();
            let_go(tx, with_blobs).await?;

            let moves = writes.moved.iter().map(|(key, now, before, author)| Move {
                id: key,
                delete_time: *now,
                hidden_since: *before,
                author,
            });
            let moves: Vec<Move<'_>> = moves.collect();
            let moved = move_embeddings(tx, Object::KIND, &moves).await?;
            let (mut with, mut refused) = moved.into_parts();
            for (outcome, Applied { change, .. }) in outcomes.iter_mut().zip(changes) {
                let is_of = |key: &String| change.leave.iter().any(|leave| leave.key == *key);
                if let Some(n) = refused.iter().position(|(key, _)| is_of(key)) {
                    *outcome = Outcome::Spoiled(refused.swap_remove(n).1);
                } else if let Outcome::Done { entries, .. } = outcome {
                    let mine = with.extract_if(.., |(key, _)| is_of(key));
                    entries.extend(mine.map(|(_, entry)| entry));
                }
            }
            Ok(outcomes)
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Vec<Written>> {
        let objects: Vec<Object> = rows_of(entries)?;
        let versions: Vec<ObjectVersion> = rows_of(entries)?;
        // Each object's entry stands before its version's.
        let both = objects.into_iter().zip(versions);
        Ok(both.map(|(object, version)| Written { object, version }).collect())
    }
}
