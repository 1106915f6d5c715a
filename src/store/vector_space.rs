//! Vector spaces: which embedding model, with how many dimensions, under which metric; and their aliases.

use super::Store;
use super::caller::Caller;
use super::canonical::{Json, write_value};
use super::change::{Create, Modify, advance, modified_outcome, modify_all, rows_of};
use super::child::Parent;
use super::filter::{Condition, Field, FieldKind, Filter, Op, Value};
use super::legal_hold;
use super::list::{ListQuery, Listing};
use super::log::{Entry, LogRow};
use super::noun::{Meta, Noun};
use super::postgres::read_rows;
use super::vector_index::IndexSpec;
use super::write::{Applied, Change, Outcome, RowKey, Shown, Tx};
use crate::{Error, Reason, Result, noun, queries, row};
use futures_util::future::BoxFuture;
use std::collections::HashSet;
use std::sync::Arc;
use tokio_postgres::Row;
use uuid::Uuid;

pub const DIMENSIONS_MAX: i32 = 16_000;
/// What is meant by none (F59).
pub const DIMENSIONS_DEFAULT: i32 = 1536;
/// Aliases of one space.
const ALIASES_MAX: usize = 100;

noun! {
    pub struct VectorSpace in "vector_space" as vector_space + [QUERIES] {
        pub embedding_model: String,
        pub dimensions: i32,
        /// 1 cosine, 2 L2, 3 dot, 4 L1.
        pub metric: i16,
        /// 1 FLOAT32, 2 FLOAT16.
        pub storage: i16,
        pub description: String,
        pub labels: Json,
        /// Sorted texts.
        pub aliases: Json,
        /// What index it is to have: see [`IndexSpec`](super::vector_index::IndexSpec). None of nobody's wish.
        pub index_method: Option<i16>,
        pub index_codes: Option<i16>,
        pub index_m: Option<i32>,
        pub index_ef_construction: Option<i32>,
        pub index_lists: Option<i32>,
        /// 1 MANUAL, 2 AUTO; spaces from before have none.
        pub index_mode: Option<i16>,
    }

    fn is_given(&self, field: &str) -> bool {
        match field {
            "aliases" => false,
            "index_mode" => true,
            // Whoever wishes for no index in particular takes what there is.
            _ => !field.starts_with("index_") || self.index_method.is_some(),
        }
    }

    fn size_bytes(&self) -> usize {
        512 + self.description.len()
    }
}

impl Parent for VectorSpace {}

pub const COSINE: i16 = 1;
pub const FLOAT32: i16 = 1;
pub const FLOAT16: i16 = 2;
/// Who decides on indexes: callers.
pub const MANUAL: i16 = 1;

const METRICS: FieldKind = FieldKind::Enum {
    prefix: "DISTANCE_METRIC_",
    names: &[("COSINE", COSINE), ("L2", 2), ("DOT", 3), ("L1", 4)],
};
const STORAGES: FieldKind = FieldKind::Enum {
    prefix: "VECTOR_STORAGE_",
    names: &[("FLOAT32", FLOAT32), ("FLOAT16", FLOAT16)],
};

pub static LISTING: Listing = Listing {
    kind: "vector_space",
    table: "vector_space",
    op: "vector_space.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("embedding_model", "d.embedding_model", FieldKind::Text),
        Field::new("dimensions", "d.dimensions", FieldKind::Int),
        Field::new("metric", "d.metric", METRICS),
        Field::new("storage", "d.storage", STORAGES),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("update_time", "d.update_time", FieldKind::Time),
        Field::new("labels", "d.labels", FieldKind::Labels),
        Field::new("aliases", "d.aliases", FieldKind::Texts),
    ],
};

row! {
    /// The live space that a name stands for.
    pub struct Named {
        pub name: String,
        pub id: String,
    }
}

row! {
    /// A hold on an embedding of a space.
    pub struct HeldWithin {
        pub space_id: String,
        pub hold_id: String,
        pub held_id: String,
    }
}

row! {
    /// What a name stands for, as far as it takes to tell whether that is the same as before.
    pub struct Standing {
        pub uid: Uuid,
        pub version: i64,
    }
}

queries! { "vector_space" {
    /// What an id stands for.
    OF_ID(String) -> Standing =
        "SELECT {*} FROM vector_space WHERE id = $1 AND delete_time IS NULL";
    /// What an alias stands for.
    OF_ALIAS(String) -> Standing =
        "SELECT {*} FROM vector_space WHERE aliases ? $1 AND delete_time IS NULL";
    /// Of live spaces those in which embeddings are held, by their full ids, each with one of the holds.
    HELD_WITHIN(Vec<String>) -> HeldWithin =
        "SELECT DISTINCT ON (s.id) s.id AS space_id, h.id AS hold_id, r.value ->> 'id' AS held_id \
         FROM vector_space AS s CROSS JOIN legal_hold AS h CROSS JOIN LATERAL jsonb_array_elements(h.refs) AS r \
         WHERE s.id = ANY($1) AND s.delete_time IS NULL AND h.release_time IS NULL AND h.delete_time IS NULL \
         AND r.value ->> 'kind' = 'embedding' AND starts_with(r.value ->> 'id', s.uid::text || '/') \
         ORDER BY s.id, h.id, held_id";
    /// Whoever gives out a name holds this until the transaction ends, so that no two give out the same one: an alias
    /// is in no unique index.
    LOCK_NAMES() -> () = "SELECT pg_advisory_xact_lock(hashtextextended('casebook.vector_space', \
        hashtextextended(current_setting('casebook.tenant'), 0)))";
    /// The live space of a uid.
    BY_UID(Uuid) -> VectorSpace =
        "SELECT {*} FROM vector_space WHERE uid = $1 AND delete_time IS NULL";
    /// What names stand for: a space's id or one of its aliases.
    NAMED(Vec<String>) -> Named =
        "SELECT n.name, s.id FROM unnest($1::text[]) AS n (name) \
         JOIN vector_space AS s ON s.id = n.name AND s.delete_time IS NULL UNION ALL \
         SELECT n.name, s.id FROM unnest($1::text[]) AS n (name) \
         JOIN vector_space AS s ON s.aliases ? n.name AND s.delete_time IS NULL";
} }

/// A space that a name, an id or an alias, stood for a short while ago. Whoever goes by it asks at the moment of reading
/// whether it still does, which takes no round trip of its own.
#[derive(Clone)]
pub struct Guess {
    pub name: String,
    pub space: Arc<VectorSpace>,
}

impl Guess {
    /// The statement that tells, and its parameter.
    pub(super) fn question(&self) -> (&'static str, String) {
        let sql = if self.name == self.space.id { OF_ID.sql() } else { OF_ALIAS.sql() };
        (sql, self.name.clone())
    }

    /// Fails with `NotFound` unless the name stands for the space, and that is as it was.
    pub(super) fn check(&self, answer: &[Row]) -> Result<()> {
        let mut standing = read_rows::<Standing>(answer)?.into_iter();
        let Meta { uid, version, .. } = self.space.meta;
        match standing.next() {
            Some(now) if (now.uid, now.version) == (uid, version) => Ok(()),
            _ => Err(Error::not_found(VectorSpace::KIND, self.name.clone())),
        }
    }
}

impl VectorSpace {
    pub fn alias_list(&self) -> Vec<String> {
        // Written here only, so that it can be read.
        serde_json::from_slice(self.aliases.text()).unwrap_or_default()
    }

    fn set_aliases(&mut self, mut aliases: Vec<String>) {
        aliases.sort_unstable();
        let mut out = Vec::new();
        write_value(&aliases.into(), &mut out);
        self.aliases = Json::from_canonical(out);
    }
}

/// Two that give out names do not wait for each other in PostgreSQL, each with locks that the other wants.
fn names() -> RowKey {
    RowKey::new(&["vector_space.names"])
}

/// Creates spaces, under ids that are no aliases.
pub struct CreateSpace(pub Create<VectorSpace>);

impl Change for CreateSpace {
    type Answer = Vec<VectorSpace>;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.push(names());
        self.0.touches(rows);
    }

    fn size_bytes(&self) -> usize {
        self.0.size_bytes()
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        self.0.about()
    }

    /// What the ids stand for, only the tables know.
    fn is_alone(&self) -> bool {
        true
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Vec<VectorSpace>>>>> {
        Box::pin(async move {
            tx.run(&LOCK_NAMES, &()).await?;
            let mut outcomes = Vec::with_capacity(changes.len());
            for Applied { change, caller } in changes {
                let wished = |row: &VectorSpace| IndexSpec::of(row)?.check(row).err();
                if let Some(error) = change.0.rows.iter().find_map(wished) {
                    outcomes.push(Outcome::Failed(error));
                    continue;
                }
                let ids = change.0.rows.iter().map(|row| row.id.clone()).collect();
                let named = tx.run(&NAMED, &(ids,)).await?;
                if let Some(Named { name, .. }) = named.into_iter().find(|n| n.name != n.id) {
                    outcomes.push(Outcome::Failed(VectorSpace::taken(&name)));
                    continue;
                }
                let inner = [Applied { change: &change.0, caller }];
                let mut made = Create::apply(tx, &inner).await?;
                made.iter_mut().for_each(name_the_index);
                outcomes.extend(made);
            }
            Ok(outcomes)
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Vec<VectorSpace>> {
        self.0.rebuild(entries)
    }
}

/// To callers an index is one field.
fn name_the_index(outcome: &mut Outcome<Vec<VectorSpace>>) {
    if let Outcome::Failed(Error::Taken { fields, .. })
    | Outcome::Spoiled(Error::Taken { fields, .. }) = outcome
    {
        for field in fields.iter_mut().filter(|field| *field != "index_mode") {
            if field.starts_with("index_") {
                "index".clone_into(field);
            }
        }
        fields.dedup();
    }
}

/// Deletes a space, and hides its embeddings with it.
pub struct DeleteSpace(pub Modify<VectorSpace>);

impl Change for DeleteSpace {
    type Answer = Option<VectorSpace>;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        self.0.touches(rows);
    }

    fn size_bytes(&self) -> usize {
        0
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        self.0.about()
    }

    /// Entries of a transaction stand in the order of its calls, whatever was done first: so that none of an embedding
    /// stands behind that of its space's deletion.
    fn is_alone(&self) -> bool {
        true
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Option<VectorSpace>>>>> {
        Box::pin(async move {
            // From here on no hold can begin.
            tx.run(&legal_hold::SHARE, &()).await?;
            let ids = changes.iter().map(|a| a.change.0.id.clone()).collect();
            let mut held = tx.run(&HELD_WITHIN, &(ids,)).await?;
            let mut outcomes = Vec::with_capacity(changes.len());
            for Applied { change: Self(delete), caller } in changes {
                if let Some(n) = held.iter().position(|held| held.space_id == delete.id) {
                    let HeldWithin { hold_id, held_id, .. } = held.swap_remove(n);
                    outcomes.push(Outcome::Failed(Error::Refused {
                        reason: Reason::OnHold,
                        message: format!(
                            "embedding \"{held_id}\" of vector_space \"{}\" is kept by the legal hold \
                             \"{hold_id}\"; release it first",
                            delete.id
                        ),
                        metadata: vec![("legal_hold_id", hold_id)],
                    }));
                    continue;
                }
                let result = modify_all(tx, &[(delete, caller)]).await?.pop();
                outcomes.push(match result {
                    Some(Ok(modified)) => modified_outcome(modified, delete.action),
                    Some(Err(error)) => Outcome::Failed(error),
                    None => return Err(Error::internal("a deletion without a result")),
                });
            }
            Ok(outcomes)
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Option<VectorSpace>> {
        self.0.rebuild(entries)
    }
}

/// Brings back the space deleted last under an id, with those of its aliases that are still free.
pub struct UndeleteSpace(pub String);

impl Change for UndeleteSpace {
    type Answer = Option<VectorSpace>;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.extend([names(), RowKey::new(&[VectorSpace::KIND, &self.0])]);
    }

    fn size_bytes(&self) -> usize {
        0
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        vec![(VectorSpace::KIND, &self.0)]
    }

    /// As in [`CreateSpace`].
    fn is_alone(&self) -> bool {
        true
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Option<VectorSpace>>>>> {
        Box::pin(async move {
            tx.run(&LOCK_NAMES, &()).await?;
            let mut outcomes = Vec::with_capacity(changes.len());
            for Applied { change: Self(id), caller } in changes {
                let gone = tx.lock_deleted::<VectorSpace>(vec![id.clone()]).await?;
                let mut names: Vec<String> =
                    gone.get(id).map(VectorSpace::alias_list).unwrap_or_default();
                names.push(id.clone());
                let named = tx.run(&NAMED, &(names,)).await?;
                let used: HashSet<String> = named.into_iter().map(|named| named.name).collect();
                if used.contains(id) {
                    outcomes.push(Outcome::Failed(VectorSpace::taken(id)));
                    continue;
                }
                let mut back = Modify::<VectorSpace>::undelete(id.clone());
                back.patch = Box::new(move |row, _| {
                    row.meta.delete_time = None;
                    let mut aliases = row.alias_list();
                    aliases.retain(|alias| !used.contains(alias));
                    row.set_aliases(aliases);
                    Ok(())
                });
                let result = modify_all(tx, &[(&back, caller)]).await?.pop();
                outcomes.push(match result {
                    Some(Ok(modified)) => modified_outcome(modified, back.action),
                    Some(Err(error)) => Outcome::Failed(error),
                    None => return Err(Error::internal("an undelete without a result")),
                });
            }
            Ok(outcomes)
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Option<VectorSpace>> {
        Ok(rows_of(entries)?.into_iter().next())
    }
}

/// Makes an alias name a space, or nothing.
pub struct MoveAlias {
    pub alias: String,
    pub to: Option<String>,
    /// Whether it is no error if an alias that shall name nothing names nothing.
    pub allow_missing: bool,
}

/// Where an alias went.
pub struct Moved {
    /// The space that it names now, or else the one that it named.
    pub space: Option<VectorSpace>,
    /// The other space that it named before; empty when it named none.
    pub previous_id: String,
}

impl MoveAlias {
    async fn run(&self, tx: &Tx<'_>, caller: &Caller) -> Result<Outcome<Moved>> {
        let Self { alias, to, allow_missing } = self;
        let named = tx.run(&NAMED, &(vec![alias.clone()],)).await?.pop();
        let (taken, previous_id) = match named.map(|named| named.id) {
            // The name of a space itself is no alias.
            Some(id) if id == *alias => (true, None),
            other => (false, other),
        };
        if taken && to.is_some() {
            return Ok(Outcome::Failed(VectorSpace::taken(alias)));
        }
        let mut ids: Vec<String> = to.iter().chain(&previous_id).cloned().collect();
        // In one order, so that two transactions do not wait for each other.
        ids.sort_unstable();
        let mut rows = tx.lock::<VectorSpace>(ids).await?;
        let (mut saved, mut entries) = (Vec::new(), Vec::new());
        let mut save = |row: &mut VectorSpace, aliases: Vec<String>| {
            row.set_aliases(aliases);
            advance(row, caller.acting(), tx.now);
            entries.push(Entry::of(row, "UPDATE"));
            saved.push(row.clone());
        };
        let without = |row: &VectorSpace| {
            let mut aliases = row.alias_list();
            aliases.retain(|other| other != alias);
            aliases
        };
        if let (Some(to), true) = (to, *to == previous_id) {
            let Some(row) = rows.remove(to) else {
                return Ok(Outcome::Failed(Error::not_found(VectorSpace::KIND, to)));
            };
            let shown = vec![Shown::of(&row)];
            let answer = Moved { space: Some(row), previous_id: String::new() };
            return Ok(Outcome::Done { answer, entries: Vec::new(), shown });
        }
        let mut previous = previous_id.and_then(|id| rows.remove(&id));
        let answer = match to {
            Some(to) => {
                let Some(mut row) = rows.remove(to) else {
                    return Ok(Outcome::Failed(Error::not_found(VectorSpace::KIND, to)));
                };
                let mut aliases = row.alias_list();
                if aliases.len() >= ALIASES_MAX {
                    let most = format!("must name a space with fewer than {ALIASES_MAX} aliases");
                    return Ok(Outcome::Failed(Error::invalid("vector_space_id", most)));
                }
                if let Some(previous) = &mut previous {
                    save(previous, without(previous));
                }
                aliases.push(alias.clone());
                save(&mut row, aliases);
                let previous_id = previous.map(|row| row.id).unwrap_or_default();
                Moved { space: Some(row), previous_id }
            }
            None => {
                if previous.is_none() && !allow_missing {
                    return Ok(Outcome::Failed(Error::not_found("vector_space_alias", alias)));
                }
                if let Some(row) = &mut previous {
                    save(row, without(row));
                }
                Moved { space: previous, previous_id: String::new() }
            }
        };
        tx.save(&saved).await?;
        Ok(Outcome::Done { answer, entries, shown: Vec::new() })
    }
}

impl Change for MoveAlias {
    type Answer = Moved;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.push(names());
        rows.extend(self.to.iter().map(|id| RowKey::new(&[VectorSpace::KIND, id])));
    }

    fn size_bytes(&self) -> usize {
        0
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        self.to.iter().map(|id| (VectorSpace::KIND, id.as_str())).collect()
    }

    /// What the alias names now, only the tables know.
    fn is_alone(&self) -> bool {
        true
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Moved>>>> {
        Box::pin(async move {
            tx.run(&LOCK_NAMES, &()).await?;
            let mut outcomes = Vec::with_capacity(changes.len());
            for Applied { change, caller } in changes {
                outcomes.push(change.run(tx, caller).await?);
            }
            Ok(outcomes)
        })
    }

    /// The space that it left stands before the one that it went to.
    fn rebuild(&self, entries: &[LogRow]) -> Result<Moved> {
        let mut rows: Vec<VectorSpace> = rows_of(entries)?;
        let space = rows.pop();
        Ok(Moved { space, previous_id: rows.pop().map(|row| row.id).unwrap_or_default() })
    }
}

impl Store {
    /// The live space of a uid.
    pub(super) async fn space_by_uid(
        &self,
        caller: &Caller,
        uid: Uuid,
    ) -> Result<Option<VectorSpace>> {
        self.snapshot(caller, BY_UID.name, move |at| {
            Box::pin(async move {
                let found = at.all(&BY_UID, &(uid,)).await?.pop();
                at.end(found).await
            })
        })
        .await
    }

    /// What a name stood for when it was last looked up.
    pub fn guess_space(&self, caller: &Caller, name: &str) -> Option<Guess> {
        self.spaces.get(&(Arc::clone(&caller.tenant), name.to_owned()))
    }

    /// Keeps what a name was found to stand for now.
    pub fn keep_space(&self, caller: &Caller, name: String, space: &Arc<VectorSpace>) {
        let key = (Arc::clone(&caller.tenant), name.clone());
        self.spaces.put(key, Guess { name, space: Arc::clone(space) });
    }

    /// The space with that alias, at a log number; `None` means now.
    pub async fn space_of_alias(
        &self,
        caller: &Caller,
        alias: &str,
        snapshot: Option<i64>,
    ) -> Result<Option<VectorSpace>> {
        let field = Field::find(LISTING.fields, "aliases")
            .ok_or_else(|| Error::internal("spaces have no aliases"))?;
        let has = Op::ContainsAny(vec![Value::Text(alias.to_owned())]);
        let filter = Filter::Field(Condition::new(field, Vec::new(), has)?);
        let query = ListQuery { filter, limit: 1, snapshot, ..ListQuery::default() };
        let page = self.list::<VectorSpace>(caller, &LISTING, query, false).await?;
        Ok(page.rows.into_iter().next())
    }
}
