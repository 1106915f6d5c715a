//! Putting: a new version of a key, with content of its own or with that of another version; of one key, or of several.

use super::{Object, Written, lock_chains};
use crate::store::blob::reference::{hold, refer};
use crate::store::blob::{Blob, READY};
use crate::store::caller::Caller;
use crate::store::canonical::Json;
use crate::store::change::{advance, rows_of, stamp};
use crate::store::child::Move;
use crate::store::embedding::subject::move_embeddings;
use crate::store::log::{Entry, LogRow};
use crate::store::noun::Noun as _;
use crate::store::object_version::ObjectVersion;
use crate::store::write::{Applied, Change, Embeddings, Outcome, RowKey, Tx};
use crate::{Error, Result};
use futures_util::future::BoxFuture;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;
use uuid::Uuid;

/// What the caller wants the object to be beforehand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    #[default]
    Anything,
    /// Not there, or deleted.
    Absent,
    Present,
    Etag(String),
}

/// Where the content of the new version is from, if not from the caller.
#[derive(Clone, Debug)]
pub struct Source {
    pub key: String,
    /// Empty means the latest.
    pub version_id: String,
    /// In the place of the source's.
    pub metadata: Option<Json>,
    /// The field of the request that names the version.
    pub field: &'static str,
}

/// Makes a new version the latest of its key.
#[derive(Clone, Debug)]
pub struct Put {
    /// Of the object, if the key has no versions yet.
    pub object_uid: Uuid,
    /// With a source, what is not taken from there: key and comment.
    pub version: ObjectVersion,
    pub source: Option<Source>,
    pub wanted: Wanted,
}

/// Makes new versions of several keys, all or none.
pub struct Puts {
    /// No key twice.
    pub puts: Vec<Put>,
}

impl Put {
    pub fn key(&self) -> &str {
        &self.version.object_key
    }

    /// Fails unless the object is what the caller wants.
    fn check(&self, there: Option<&Object>) -> Result<()> {
        let key = self.key();
        match (&self.wanted, there.filter(|object| object.is_live())) {
            (Wanted::Anything, _) | (Wanted::Absent, None) | (Wanted::Present, Some(_)) => Ok(()),
            (Wanted::Absent, Some(_)) => Err(Object::taken(key)),
            (Wanted::Present | Wanted::Etag(_), None) => Err(Error::not_found(Object::KIND, key)),
            (Wanted::Etag(etag), Some(object)) if *etag == object.etag() => Ok(()),
            (Wanted::Etag(_), Some(object)) => Err(Error::Stale {
                kind: Object::KIND,
                id: key.to_owned(),
                current_etag: object.etag(),
            }),
        }
    }

    /// The version that the content is from; none where the caller gives it.
    fn source_id<'a>(&'a self, chains: &'a HashMap<String, Object>) -> Result<Option<&'a str>> {
        let Some(Source { key, version_id, .. }) = &self.source else { return Ok(None) };
        if !version_id.is_empty() {
            return Ok(Some(version_id));
        }
        let latest = chains.get(key).filter(|object| object.is_live());
        let latest = latest.ok_or_else(|| Error::not_found(Object::KIND, key))?;
        Ok(Some(&latest.version_id))
    }

    /// The new version with its content; what of it is a blob's is still to be told.
    fn version(
        &self,
        chains: &HashMap<String, Object>,
        sources: &HashMap<String, ObjectVersion>,
    ) -> Result<ObjectVersion> {
        let (Some(id), Some(source)) = (self.source_id(chains)?, &self.source) else {
            return Ok(self.version.clone());
        };
        let from = sources.get(id).filter(|from| from.object_key == source.key);
        let from = from.ok_or_else(|| Error::not_found(ObjectVersion::KIND, id))?;
        if from.delete_marker {
            return Err(Error::invalid(source.field, "must not name a delete marker"));
        }
        let own = self.version.clone();
        Ok(ObjectVersion {
            id: own.id,
            meta: own.meta,
            object_key: own.object_key,
            comment: own.comment,
            metadata: source.metadata.clone().unwrap_or_else(|| from.metadata.clone()),
            ..from.clone()
        })
    }

    /// Takes over what is a blob's.
    fn fill(&self, version: &mut ObjectVersion, blob: &Blob) -> Result<()> {
        if self.source.is_some() {
            return Ok(());
        }
        if blob.state != READY {
            return Err(Error::invalid("blob", "must name a blob whose state is READY"));
        }
        version.size_bytes = blob.size_bytes;
        if version.content_type.is_empty() {
            version.content_type.clone_from(&blob.content_type);
        }
        version.storage_backend.clone_from(&blob.storage_backend);
        version.store_etag.clone_from(&blob.store_etag);
        version.store_version_id.clone_from(&blob.store_version_id);
        Ok(())
    }
}

/// A put that nothing stands in the way of.
struct Ready {
    version: ObjectVersion,
    /// Absent for bytes that are kept elsewhere.
    blob: Option<Uuid>,
}

/// What puts write.
#[derive(Default)]
struct Writes {
    new: Vec<Object>,
    saved: Vec<Object>,
    versions: Vec<ObjectVersion>,
    references: Vec<(Uuid, Uuid)>,
    /// Those that were deleted until now: key, since when, author.
    back: Vec<(String, SystemTime, String)>,
}

impl Writes {
    /// Puts a version on top of its key.
    fn add(
        &mut self,
        there: Option<Object>,
        new: Uuid,
        ready: Ready,
        author: &str,
        now: SystemTime,
    ) -> (Written, Vec<Entry>) {
        let Ready { version, blob } = ready;
        let mut version = stamp(&version, author, now);
        let (mut object, action) = match there {
            None => {
                let object = Object::new(version.object_key.clone(), new, &version);
                (stamp(&object, author, now), "CREATE")
            }
            Some(mut object) => {
                advance(&mut object, author, now);
                let action = match object.meta.delete_time.take() {
                    None => "UPDATE",
                    Some(since) => {
                        self.back.push((object.id.clone(), since, author.to_owned()));
                        "UNDELETE"
                    }
                };
                object.show(&version);
                (object, action)
            }
        };
        object.version_id.clone_from(&version.id);
        object.version_count += 1;
        version.number = object.meta.version;
        self.references.extend(blob.map(|blob| (blob, version.meta.uid)));
        self.versions.push(version.clone());
        let list = if action == "CREATE" { &mut self.new } else { &mut self.saved };
        list.push(object.clone());
        let entries = vec![Entry::of(&object, action), Entry::of(&version, "CREATE")];
        (Written { object, version }, entries)
    }

    /// Writes all of it; gives the entries of what came back with objects, by key.
    async fn write(self, tx: &Tx<'_>) -> Result<Vec<(String, Entry)>> {
        if self.versions.is_empty() {
            return Ok(Vec::new());
        }
        if !self.new.is_empty() && tx.insert(&self.new).await?.contains(&false) {
            // Another server put the same key meanwhile: the next attempt finds it.
            return Err(Error::Conflict(Arc::from(Box::from("an object came meanwhile"))));
        }
        tx.save(&self.saved).await?;
        if tx.insert(&self.versions).await?.contains(&false) {
            return Err(Error::internal("a version of an object was there before"));
        }
        refer(tx, ObjectVersion::KIND, self.references).await?;
        let back = self.back.iter().map(|(key, since, author)| Move {
            id: key,
            delete_time: None,
            hidden_since: Some(*since),
            author,
        });
        let back: Vec<Move<'_>> = back.collect();
        let (entries, _) = move_embeddings(tx, Object::KIND, &back).await?.into_parts();
        Ok(entries)
    }
}

/// What the puts of all calls are to write, which nobody else changes until the transaction ends.
struct Looked {
    chains: HashMap<String, Object>,
    /// Of each put, in their order.
    ready: std::vec::IntoIter<Result<Ready>>,
}

/// Looks up and locks all that puts are about.
async fn look(tx: &Tx<'_>, puts: &[&Put]) -> Result<Looked> {
    let sources = puts.iter().filter_map(|put| put.source.as_ref());
    let keys = puts.iter().map(|put| put.key());
    let keys = keys.chain(sources.map(|source| source.key.as_str()));
    let chains = lock_chains(tx, keys.map(str::to_owned).collect()).await?;
    let ids = puts.iter().filter_map(|put| put.source_id(&chains).ok().flatten());
    let ids: Vec<String> = ids.map(str::to_owned).collect();
    let sources: HashMap<String, ObjectVersion> =
        if ids.is_empty() { HashMap::new() } else { tx.lock(ids).await? };
    let versions = puts.iter().map(|put| {
        put.check(chains.get(put.key()))?;
        put.version(&chains, &sources)
    });
    let versions: Vec<Result<ObjectVersion>> = versions.collect();
    let digests = versions.iter().flatten().map(|version| version.digest.clone());
    let blobs = hold(tx, digests.filter(|digest| !digest.is_empty()).collect()).await?;
    let ready = versions.into_iter().zip(puts).map(|(version, put)| {
        let mut version = version?;
        if version.digest.is_empty() {
            return Ok(Ready { version, blob: None });
        }
        let blob = blobs.get(&version.digest);
        let blob = blob.ok_or_else(|| Error::not_found(Blob::KIND, &version.digest))?;
        put.fill(&mut version, blob)?;
        Ok(Ready { version, blob: Some(blob.meta.uid) })
    });
    let ready: Vec<Result<Ready>> = ready.collect();
    Ok(Looked { chains, ready: ready.into_iter() })
}

/// Applies calls of one put or of several, each of them whole or not at all. `place` says of an error which put of its
/// call failed.
async fn apply_all<'a>(
    tx: &Tx<'_>,
    calls: &[(&'a [Put], &'a Caller)],
    place: impl Fn(usize, Error) -> Error,
) -> Result<Vec<Outcome<Vec<Written>>>> {
    let all: Vec<&Put> = calls.iter().flat_map(|(puts, _)| *puts).collect();
    let Looked { mut chains, mut ready } = look(tx, &all).await?;
    let mut writes = Writes::default();
    let mut outcomes = Vec::with_capacity(calls.len());
    for (puts, caller) in calls {
        // All of them, also behind one that fails: the next call's come after.
        let mine: Vec<Result<Ready>> = ready.by_ref().take(puts.len()).collect();
        let mine = mine.into_iter().enumerate();
        let mine = mine.map(|(n, ready)| ready.map_err(|error| place(n, error)));
        let mine: Result<Vec<Ready>> = mine.collect();
        outcomes.push(match mine {
            Err(error) => Outcome::Failed(error),
            Ok(mine) => {
                let (mut answer, mut entries) = (Vec::new(), Vec::new());
                for (put, ready) in puts.iter().zip(mine) {
                    let there = chains.remove(put.key());
                    let author = caller.acting();
                    let (written, more) = writes.add(there, put.object_uid, ready, author, tx.now);
                    answer.push(written);
                    entries.extend(more);
                }
                Outcome::Done { answer, entries, shown: Vec::new() }
            }
        });
    }
    let mut back = writes.write(tx).await?;
    for (outcome, (puts, _)) in outcomes.iter_mut().zip(calls) {
        if let Outcome::Done { entries, .. } = outcome {
            for put in *puts {
                let mine = back.extract_if(.., |(key, _)| key == put.key());
                entries.extend(mine.map(|(_, entry)| entry));
            }
        }
    }
    Ok(outcomes)
}

/// What calls have put, from the log.
fn written_of(entries: &[LogRow]) -> Result<Vec<Written>> {
    let (objects, versions) = (rows_of(entries)?, rows_of(entries)?);
    let pairs = objects.into_iter().zip(versions);
    Ok(pairs.map(|(object, version)| Written { object, version }).collect())
}

impl Change for Put {
    type Answer = Written;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.push(RowKey::new(&[Object::KIND, self.key()]));
        if let Some(source) = self.source.as_ref().filter(|source| source.key != self.key()) {
            rows.push(RowKey::new(&[Object::KIND, &source.key]));
        }
    }

    fn size_bytes(&self) -> usize {
        2 * self.version.size_bytes()
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        vec![(Object::KIND, self.key()), (ObjectVersion::KIND, &self.version.id)]
    }

    /// An object that comes back brings its embeddings.
    fn embeddings(&self) -> Embeddings {
        Embeddings::TakenAlong
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Written>>>> {
        Box::pin(async move {
            let calls = changes.iter().map(|a| (std::slice::from_ref(a.change), a.caller));
            let calls: Vec<_> = calls.collect();
            let outcomes = apply_all(tx, &calls, |_, error| error).await?;
            let outcomes = outcomes.into_iter().map(|outcome| match outcome {
                Outcome::Done { mut answer, entries, shown } => {
                    let answer = answer.pop();
                    let answer = answer.ok_or_else(|| Error::internal("a put that put nothing"))?;
                    Ok(Outcome::Done { answer, entries, shown })
                }
                Outcome::Failed(error) => Ok(Outcome::Failed(error)),
                Outcome::Spoiled(error) => Ok(Outcome::Spoiled(error)),
            });
            outcomes.collect()
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Written> {
        let lacks = || Error::internal("a replayed answer lacks a row");
        written_of(entries)?.pop().ok_or_else(lacks)
    }
}

impl Change for Puts {
    type Answer = Vec<Written>;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        for put in &self.puts {
            put.touches(rows);
        }
    }

    fn size_bytes(&self) -> usize {
        self.puts.iter().map(Change::size_bytes).sum()
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        self.puts.iter().flat_map(Change::about).collect()
    }

    fn embeddings(&self) -> Embeddings {
        Embeddings::TakenAlong
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Vec<Written>>>>> {
        Box::pin(async move {
            let calls = changes.iter().map(|a| (&*a.change.puts, a.caller));
            let calls: Vec<_> = calls.collect();
            apply_all(tx, &calls, |n, error| error.at(&format!("requests[{n}]"))).await
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Vec<Written>> {
        written_of(entries)
    }
}
