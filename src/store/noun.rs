//! What every noun has: server-owned facts, the statements that find, insert and save its rows, and its documents.

use super::canonical::object_of;
use super::list::Listing;
use super::query::{Check, FromRow, Query, Rows};
use crate::{Error, Result};
use std::any::Any;
use std::borrow::Cow;
use std::time::SystemTime;
use uuid::Uuid;

crate::row! {
    /// Facts the server owns, alike on every noun.
    pub struct Meta {
        pub uid: Uuid,
        pub version: i64,
        pub create_time: SystemTime,
        pub update_time: SystemTime,
        pub delete_time: Option<SystemTime>,
        pub created_by: String,
        pub updated_by: String,
    }
}

impl Meta {
    /// Of a row that is still to be written, which completes it.
    pub fn new(uid: Uuid) -> Self {
        Self {
            uid,
            version: 0,
            create_time: SystemTime::UNIX_EPOCH,
            update_time: SystemTime::UNIX_EPOCH,
            delete_time: None,
            created_by: String::new(),
            updated_by: String::new(),
        }
    }
}

/// A row with an identity, versions and a place in the log. Implemented by [`noun!`](crate::noun).
pub trait Noun: FromRow + Clone + PartialEq + Sync {
    /// Its name in the log, in errors and as its table.
    const KIND: &'static str;
    /// Whether ids are unique in the tenant, not just within a parent, so that references can name them.
    const IDS_OF_TENANT: bool = true;

    /// Fields that no two live resources share, beside the id; a conflict that is not the id's is theirs.
    const ALSO_UNIQUE: &'static [&'static str] = &[];

    /// What must hold, over the alias `d`, for a deleted row to be purged.
    const PURGEABLE: &'static str = "TRUE";

    /// What to tell the caller whose new row's id is taken.
    fn taken(id: &str) -> Error {
        Error::Taken { kind: Self::KIND, id: id.to_owned(), fields: Vec::new() }
    }

    fn id(&self) -> &str;
    fn meta(&self) -> &Meta;
    fn meta_mut(&mut self) -> &mut Meta;
    /// Name and canonical value of each field.
    fn document_fields(&self) -> Vec<(&'static str, &dyn super::canonical::Canonical)>;
    fn unnest<'a>(rows: impl ExactSizeIterator<Item = &'a Self> + Clone) -> Rows<Self>;
    /// Completes a new row with what depends on the time of its creation.
    fn stamp(&mut self, _now: SystemTime) {}

    /// Live rows by id.
    fn get() -> &'static Query<(Vec<String>,), Self>;
    /// Live rows by id, locked until the transaction ends.
    fn lock() -> &'static Query<(Vec<String>,), Self>;
    /// The row deleted last under each id, locked.
    fn lock_deleted() -> &'static Query<(Vec<String>,), Self>;
    /// New rows; those whose id is taken do not come back.
    fn insert() -> &'static Query<Rows<Self>, Inserted>;
    /// New rows whose ids should all be free: it fails if one is taken.
    fn insert_new() -> &'static Query<Rows<Self>, ()>;
    /// Whole rows by uid.
    fn save() -> &'static Query<Rows<Self>, Inserted>;
    /// Of rows by uid what the server owns, and nothing else.
    fn save_meta() -> &'static Query<Rows<Meta>, Inserted>;
    /// What the store knows of the noun as a whole.
    fn facts() -> &'static Facts;
    /// The row again from its document.
    fn from_document(document: &[u8]) -> Result<Self>;

    /// About how much a row sends to the database.
    fn size_bytes(&self) -> usize {
        512
    }

    /// The opaque etag of a version.
    fn etag(&self) -> String {
        let meta = self.meta();
        etag(meta.uid, meta.version)
    }

    /// The row as canonical JSON, keys named like the columns.
    fn document(&self) -> Vec<u8> {
        object_of(self.document_fields())
    }

    /// The fields that the caller gave `other`, a new row, in which it differs: all but those the server owns.
    fn differing_fields(&self, other: &Self) -> Vec<String> {
        let server: Vec<_> = Meta::columns().into_iter().map(|column| column.name).collect();
        let mut differing = Vec::new();
        for ((name, mine), (_, theirs)) in
            self.document_fields().into_iter().zip(other.document_fields())
        {
            if server.contains(&name) || !other.is_given(name) {
                continue;
            }
            let (mut a, mut b) = (Vec::new(), Vec::new());
            mine.write(&mut a);
            theirs.write(&mut b);
            if a != b {
                differing.push(name.to_owned());
            }
        }
        differing
    }

    /// What it refers to by id. Empty ids refer to nothing.
    fn references(&self) -> Vec<Reference<'_>> {
        Vec::new()
    }

    /// Takes over one column of another row; false if it has no such column of its own.
    fn copy(&mut self, column: &str, from: &Self) -> bool;
    /// One column of its own, whatever its type is.
    fn column(&self, column: &str) -> Option<&dyn Any>;
    fn column_mut(&mut self, column: &str) -> Option<&mut dyn Any>;

    /// Whether a further field of a new row is the caller's, not one that the server has filled in.
    fn is_given(&self, _field: &str) -> bool {
        true
    }

    /// Whether a field of the row that is there stays when another takes its place.
    fn stays(&self, field: &str) -> bool {
        !self.is_given(field)
    }
}

/// What the store knows of a noun as a whole: one line of [`NOUNS`](super::NOUNS).
pub struct Facts {
    pub kind: &'static str,
    pub listing: &'static Listing,
    pub statements: &'static [&'static [&'static dyn Check]],
    /// Ids and versions of live rows.
    pub live: &'static Query<(Vec<String>,), Live>,
    /// The same, kept from changing until the transaction ends.
    pub hold: &'static Query<(Vec<String>,), Live>,
    /// Tells the rows that have been waiting for new ones by id what their uids are: (ids, uids).
    pub resolve: Option<&'static Query<(Vec<String>, Vec<Uuid>), ()>>,
    pub ids_of_tenant: bool,
    /// What it is a part of, and the column that has its id.
    pub part_of: Option<(&'static str, &'static str)>,
    /// What must hold, over the alias `d`, for a deleted row to be purged.
    pub purgeable: &'static str,
    /// Its own columns.
    pub columns: &'static [&'static str],
}

/// A reference by id from one resource to another, which need not exist unless the tenant wants it so.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference<'a> {
    pub field: Cow<'static, str>,
    pub kind: &'static str,
    pub id: Cow<'a, str>,
}

/// `"<first 8 hex digits of the uid>-<version>"`, quotes included.
pub fn etag(uid: Uuid, version: i64) -> String {
    format!("\"{:08x}-{version}\"", uid.as_u128() as u32)
}

crate::row! {
    /// A row that a statement wrote.
    pub struct Inserted {
        pub uid: Uuid,
    }
}

crate::row! {
    /// A live resource, for preconditions.
    pub struct Live {
        pub id: String,
        pub version: i64,
    }
}

/// Declares a noun: a row struct with the server's fields before its own, and its statements. The file has a `LISTING`
/// beside it; further statements of the file stand behind `+`.
///
/// `within "claim" by claim_id` says what it is a part of. `refers [claim_id -> "claim" as claim_uid]` says that a column names a resource by its id, and which column of the
/// table, not of the row, keeps the uid of what was meant once that is known. `awaited ["verification".claim_id as
/// claim_uid]` is the other end: a new row tells those who have been waiting for its id. `resolved by` names a statement
/// for that instead, where one table has two such columns.
#[macro_export]
macro_rules! noun {
    (
        $(#[$meta:meta])*
        pub struct $name:ident in $table:literal as $module:ident $(+ [$($statements:path),*])?
        $(within $parent:literal by $parent_id:ident)?
        $(resolved by $resolved:ident)?
        $(refers [$($id_column:ident -> $target:literal as $uid_column:ident),*])?
        $(awaited [$($waiting:literal . $waiting_id:ident as $waiting_uid:ident),*])?
        {
            $($(#[$doc:meta])* pub $field:ident: $ty:ty,)*
        }
        $($body:item)*
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            pub id: String,
            pub meta: $crate::store::noun::Meta,
            $($(#[$doc])* pub $field: $ty,)*
        }

        impl $crate::store::query::FromRow for $name {
            fn columns() -> Vec<$crate::store::query::Column> {
                let mut columns = vec![$crate::store::query::column::<String>("id")];
                columns.extend($crate::store::noun::Meta::columns());
                $(columns.push($crate::store::query::column::<$ty>(stringify!($field)));)*
                columns
            }
            fn read(row: &tokio_postgres::Row, next: &mut usize) -> Result<Self, tokio_postgres::Error> {
                use $crate::store::query::next_column;
                Ok(Self {
                    id: next_column(row, next)?,
                    meta: $crate::store::noun::Meta::read(row, next)?,
                    $($field: next_column(row, next)?,)*
                })
            }
        }

        pub(in $crate::store) mod $module {
            use super::$name;
            use $crate::store::noun::Inserted;
            use $crate::store::query::Rows;

            $crate::queries! { $table {
                GET(Vec<String>) -> $name =
                    concat!("SELECT {*} FROM ", $table, " WHERE id = ANY($1) AND delete_time IS NULL");
                LOCK(Vec<String>) -> $name =
                    concat!("SELECT {*} FROM ", $table, " WHERE id = ANY($1) AND delete_time IS NULL FOR UPDATE");
                LOCK_DELETED(Vec<String>) -> $name = concat!(
                    "SELECT {*} FROM ", $table, " WHERE uid IN (SELECT DISTINCT ON (id) uid FROM ", $table,
                    " WHERE id = ANY($1) AND delete_time IS NOT NULL ORDER BY id, delete_time DESC, uid DESC) FOR UPDATE");
                LIVE(Vec<String>) -> $crate::store::noun::Live =
                    concat!("SELECT {*} FROM ", $table, " WHERE id = ANY($1) AND delete_time IS NULL");
                HOLD(Vec<String>) -> $crate::store::noun::Live =
                    concat!("SELECT {*} FROM ", $table, " WHERE id = ANY($1) AND delete_time IS NULL FOR SHARE");
                $(
                    RESOLVE(Vec<String>, Vec<uuid::Uuid>) -> () = concat!(
                        "WITH target (id, uid) AS (SELECT * FROM unnest($1::text[], $2::uuid[]))",
                        $(", ", $waiting, "_", stringify!($waiting_id), " AS (UPDATE ", $waiting,
                          " AS w SET ", stringify!($waiting_uid), " = t.uid FROM target AS t WHERE w.",
                          stringify!($waiting_id), " = t.id AND w.", stringify!($waiting_uid), " IS NULL AND w.",
                          stringify!($waiting_id), " <> '' AND w.delete_time IS NULL)",)*
                        " SELECT");
                )?
            } }

            // These take whole rows, so they stand beside the list and are added to it by `ROW_QUERIES`.
            pub(in $crate::store) static INSERT: $crate::store::query::Query<Rows<$name>, Inserted> =
                $crate::store::query::Query::new(
                    concat!($table, ".INSERT"),
                    concat!(
                        "INSERT INTO ", $table, " ({r.*}", $($(", ", stringify!($uid_column),)*)? ") SELECT u.*",
                        $($(", (SELECT t.uid FROM ", $target, " AS t WHERE t.id = u.", stringify!($id_column),
                            " AND t.delete_time IS NULL)",)*)?
                        " FROM unnest({r.unnest}) AS u ({r.*}) ON CONFLICT DO NOTHING RETURNING uid"),
                );
            pub(in $crate::store) static INSERT_NEW: $crate::store::query::Query<Rows<$name>, ()> =
                $crate::store::query::Query::new(
                    concat!($table, ".INSERT_NEW"),
                    concat!(
                        "INSERT INTO ", $table, " ({r.*}", $($(", ", stringify!($uid_column),)*)? ") SELECT u.*",
                        $($(", (SELECT t.uid FROM ", $target, " AS t WHERE t.id = u.", stringify!($id_column),
                            " AND t.delete_time IS NULL)",)*)?
                        " FROM unnest({r.unnest}) AS u ({r.*})"),
                );
            pub(in $crate::store) static SAVE: $crate::store::query::Query<Rows<$name>, Inserted> =
                $crate::store::query::Query::new(
                    concat!($table, ".SAVE"),
                    concat!(
                        "UPDATE ", $table, " AS d SET {r.set}",
                        $($(", ", stringify!($uid_column), " = CASE WHEN d.", stringify!($id_column), " = u.",
                            stringify!($id_column), " THEN d.", stringify!($uid_column),
                            " ELSE (SELECT t.uid FROM ", $target, " AS t WHERE t.id = u.", stringify!($id_column),
                            " AND t.delete_time IS NULL) END",)*)?
                        " FROM unnest({r.unnest}) AS u ({r.*}) WHERE d.uid = u.uid RETURNING d.uid"),
                );
            pub(in $crate::store) static SAVE_META: $crate::store::query::Query<Rows<$crate::store::noun::Meta>, Inserted> =
                $crate::store::query::Query::new(
                    concat!($table, ".SAVE_META"),
                    concat!(
                        "UPDATE ", $table, " AS d SET {r.set} FROM unnest({r.unnest}) AS u ({r.*}) ",
                        "WHERE d.uid = u.uid RETURNING d.uid"),
                );
            pub(in $crate::store) const ROW_QUERIES: &[&dyn $crate::store::query::Check] =
                &[&INSERT, &INSERT_NEW, &SAVE, &SAVE_META];
        }

        pub static FACTS: $crate::store::noun::Facts = $crate::store::noun::Facts {
            kind: $table,
            listing: &LISTING,
            statements: &[$module::QUERIES, $module::ROW_QUERIES, $($($statements),*)?],
            live: &$module::LIVE,
            hold: &$module::HOLD,
            resolve: $crate::noun!(@resolve $module $(by $resolved)? $($(, $waiting)*)?),
            ids_of_tenant: <$name as $crate::store::noun::Noun>::IDS_OF_TENANT,
            part_of: $crate::noun!(@part $($parent $parent_id)?),
            purgeable: <$name as $crate::store::noun::Noun>::PURGEABLE,
            columns: &[$(stringify!($field)),*],
        };

        impl $crate::store::noun::Noun for $name {
            const KIND: &'static str = $table;
            $($body)*

            fn id(&self) -> &str {
                &self.id
            }
            fn meta(&self) -> &$crate::store::noun::Meta {
                &self.meta
            }
            fn meta_mut(&mut self) -> &mut $crate::store::noun::Meta {
                &mut self.meta
            }
            fn document_fields(&self) -> Vec<(&'static str, &dyn $crate::store::canonical::Canonical)> {
                let mut fields = self.meta.fields();
                fields.push(("id", &self.id));
                $(fields.push((stringify!($field), &self.$field));)*
                fields
            }
            fn unnest<'a>(
                rows: impl ExactSizeIterator<Item = &'a Self> + Clone,
            ) -> $crate::store::query::Rows<Self> {
                use $crate::store::query::ColumnValues;
                let mut columns = vec![ColumnValues::encode(rows.clone().map(|row| &row.id))];
                columns.extend($crate::store::noun::Meta::unnest(rows.clone().map(|row| &row.meta)));
                $(columns.push(ColumnValues::encode(rows.clone().map(|row| &row.$field)));)*
                $crate::store::query::Rows::new(columns)
            }
            fn get() -> &'static $crate::store::query::Query<(Vec<String>,), Self> {
                &$module::GET
            }
            fn lock() -> &'static $crate::store::query::Query<(Vec<String>,), Self> {
                &$module::LOCK
            }
            fn lock_deleted() -> &'static $crate::store::query::Query<(Vec<String>,), Self> {
                &$module::LOCK_DELETED
            }
            fn insert() -> &'static $crate::store::query::Query<$crate::store::query::Rows<Self>, $crate::store::noun::Inserted> {
                &$module::INSERT
            }
            fn insert_new() -> &'static $crate::store::query::Query<$crate::store::query::Rows<Self>, ()> {
                &$module::INSERT_NEW
            }
            fn save() -> &'static $crate::store::query::Query<$crate::store::query::Rows<Self>, $crate::store::noun::Inserted> {
                &$module::SAVE
            }
            fn save_meta() -> &'static $crate::store::query::Query<
                $crate::store::query::Rows<$crate::store::noun::Meta>, $crate::store::noun::Inserted> {
                &$module::SAVE_META
            }
            fn facts() -> &'static $crate::store::noun::Facts {
                &FACTS
            }
            $(fn references(&self) -> Vec<$crate::store::noun::Reference<'_>> {
                vec![$($crate::store::noun::Reference {
                    field: stringify!($id_column).into(),
                    kind: $target,
                    id: (&*self.$id_column).into(),
                },)*]
            })?
            fn column(&self, column: &str) -> Option<&dyn std::any::Any> {
                match column {
                    $(stringify!($field) => Some(&self.$field),)*
                    _ => None,
                }
            }
            fn column_mut(&mut self, column: &str) -> Option<&mut dyn std::any::Any> {
                match column {
                    $(stringify!($field) => Some(&mut self.$field),)*
                    _ => None,
                }
            }
            fn copy(&mut self, column: &str, from: &Self) -> bool {
                match column {
                    $(stringify!($field) => self.$field.clone_from(&from.$field),)*
                    _ => return false,
                }
                true
            }
            fn from_document(document: &[u8]) -> $crate::Result<Self> {
                use $crate::store::canonical::{member, parse_object};
                let document = parse_object(document)?;
                Ok(Self {
                    id: member(&document, "id")?,
                    meta: $crate::store::noun::Meta::from_members(&document)?,
                    $($field: member(&document, stringify!($field))?,)*
                })
            }
        }
    };
    (@part) => { None };
    (@part $parent:literal $parent_id:ident) => { Some(($parent, stringify!($parent_id))) };
    (@resolve $module:ident) => { None };
    (@resolve $module:ident by $resolved:ident) => { Some(&$resolved) };
    (@resolve $module:ident $(, $waiting:literal)+) => { Some(&$module::RESOLVE) };
}
