//! SQL text bound to the Rust types of its parameters and rows.

use super::canonical::{Canonical, Json};
use bytes::{BufMut, BytesMut};
use std::marker::PhantomData;
use std::sync::OnceLock;
use std::time::SystemTime;
use tokio_postgres::types::{FromSql, IsNull, Kind, ToSql, Type, to_sql_checked};
use tokio_postgres::{Row, Statement};
use uuid::Uuid;

/// A named statement from `P` to rows of `R`. In the text, `{*}` stands for the columns of `R`, `{d.*}` for the same
/// behind the alias d, `{l.*}` behind l. Where `P` is whole rows, `{r.*}` stands for their columns, `{r.unnest}` for one array parameter
/// per column, and `{r.set}` for `column = u.column` of each.
pub struct Query<P, R> {
    pub name: &'static str,
    text: &'static str,
    sql: OnceLock<String>,
    types: PhantomData<fn(P) -> R>,
}

impl<P: Params, R: FromRow> Query<P, R> {
    pub const fn new(name: &'static str, text: &'static str) -> Self {
        Self { name, text, sql: OnceLock::new(), types: PhantomData }
    }

    pub fn sql(&self) -> &str {
        self.sql.get_or_init(|| {
            let (read, written) = (R::columns(), P::row_columns());
            let text = self
                .text
                .replace("{*}", &list(&read, |_, c| c.name.into()))
                .replace("{d.*}", &list(&read, |_, c| format!("d.{}", c.name)))
                .replace("{l.*}", &list(&read, |_, c| format!("l.{}", c.name)))
                .replace("{r.*}", &list(&written, |_, c| c.name.into()))
                .replace(
                    "{r.unnest}",
                    &list(&written, |i, c| format!("${}::{}[]", i + 1, c.sql_type)),
                )
                .replace("{r.set}", &list(&written, |_, c| format!("{0} = u.{0}", c.name)));
            format!("-- {}\n{text}", self.name)
        })
    }
}

fn list(columns: &[Column], render: impl Fn(usize, &Column) -> String) -> String {
    let parts: Vec<_> = columns.iter().enumerate().map(|(i, c)| render(i, c)).collect();
    parts.join(", ")
}

/// A Rust type that a column can be read as and written from.
pub trait ColumnType:
    for<'a> FromSql<'a> + ToSql + Canonical + Clone + Send + Sync + 'static
{
    const SQL_TYPE: &'static str;
    const TYPE: Type;
    const NULLABLE: bool = false;
}

macro_rules! column_types {
    ($($ty:ty = $sql:literal $name:ident),* $(,)?) => {
        $(impl ColumnType for $ty {
            const SQL_TYPE: &'static str = $sql;
            const TYPE: Type = Type::$name;
        })*
    };
}
column_types! {
    Uuid = "uuid" UUID, String = "text" TEXT, i16 = "int2" INT2, i32 = "int4" INT4, i64 = "int8" INT8,
    f64 = "float8" FLOAT8, bool = "bool" BOOL, SystemTime = "timestamptz" TIMESTAMPTZ, Json = "jsonb" JSONB,
    Vec<u8> = "bytea" BYTEA, Vec<i64> = "int8[]" INT8_ARRAY,
}

impl<T: ColumnType> ColumnType for Option<T> {
    const SQL_TYPE: &'static str = T::SQL_TYPE;
    const TYPE: Type = T::TYPE;
    const NULLABLE: bool = true;
}

/// One column of a row struct.
pub struct Column {
    pub name: &'static str,
    pub sql_type: &'static str,
    pub nullable: bool,
    pub accepts: fn(&Type) -> bool,
    pub array_accepts: fn(&Type) -> bool,
}

pub const fn column<T: ColumnType>(name: &'static str) -> Column {
    Column {
        name,
        sql_type: T::SQL_TYPE,
        nullable: T::NULLABLE,
        accepts: <T as FromSql>::accepts,
        array_accepts: <Vec<T> as ToSql>::accepts,
    }
}

/// A struct that is read from a row, column by column, by name. Implemented by [`row!`](crate::row).
pub trait FromRow: Sized + Send + 'static {
    fn columns() -> Vec<Column>;
    /// Reads the next columns of the row, and moves on behind them.
    fn read(row: &Row, next: &mut usize) -> Result<Self, tokio_postgres::Error>;

    fn from_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Self::read(row, &mut 0)
    }
}

/// The value of the next column.
pub fn next_column<T: ColumnType>(row: &Row, next: &mut usize) -> Result<T, tokio_postgres::Error> {
    let value = row.try_get(*next)?;
    *next += 1;
    Ok(value)
}

/// A statement that returns nothing to read.
impl FromRow for () {
    fn columns() -> Vec<Column> {
        Vec::new()
    }
    fn read(_: &Row, _: &mut usize) -> Result<Self, tokio_postgres::Error> {
        Ok(())
    }
}

/// Declares a struct that is a row: its fields are the columns.
#[macro_export]
macro_rules! row {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$doc:meta])* pub $field:ident: $ty:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name { $($(#[$doc])* pub $field: $ty,)* }

        impl $crate::store::query::FromRow for $name {
            fn columns() -> Vec<$crate::store::query::Column> {
                vec![$($crate::store::query::column::<$ty>(stringify!($field)),)*]
            }
            // By position: `{*}` lists the columns in the order of the fields, and the schema test holds them so.
            fn read(row: &tokio_postgres::Row, next: &mut usize) -> Result<Self, tokio_postgres::Error> {
                Ok(Self { $($field: $crate::store::query::next_column(row, next)?,)* })
            }
        }

        impl $name {
            /// Each field's name and value, in the order of declaration.
            #[allow(dead_code, reason = "not every row is also a document")]
            pub(in $crate::store) fn fields(&self) -> Vec<(&'static str, &dyn $crate::store::canonical::Canonical)> {
                vec![$((stringify!($field), &self.$field as &dyn $crate::store::canonical::Canonical),)*]
            }

            /// The row again from its document.
            #[allow(dead_code, reason = "not every row is also a document")]
            pub(in $crate::store) fn from_members(
                document: &serde_json::Map<String, serde_json::Value>,
            ) -> $crate::Result<Self> {
                Ok(Self { $($field: $crate::store::canonical::member(document, stringify!($field))?,)* })
            }

            /// The rows turned into one array per column, for `{r.unnest}`.
            #[allow(dead_code, reason = "not every row is also written")]
            pub(in $crate::store) fn unnest<'a>(
                rows: impl ExactSizeIterator<Item = &'a Self> + Clone,
            ) -> Vec<$crate::store::query::ColumnValues> {
                use $crate::store::query::ColumnValues;
                vec![$(ColumnValues::encode(rows.clone().map(|row| &row.$field)),)*]
            }
        }
    };
}

/// Declares a file's statements with their types, and lists them as `QUERIES` for the schema test.
#[macro_export]
macro_rules! queries {
    ($table:literal { $($(#[$doc:meta])* $name:ident($($param:ty),* $(,)?) -> $row:ty = $text:expr;)* }) => {
        $(
            $(#[$doc])*
            pub(in $crate::store) static $name: $crate::store::query::Query<($($param,)*), $row> =
                $crate::store::query::Query::new(concat!($table, ".", stringify!($name)), $text);
        )*
        pub(in $crate::store) const QUERIES: &[&dyn $crate::store::query::Check] = &[$(&$name),*];
    };
}

/// Statement parameters.
pub trait Params: Send + Sync {
    fn as_sql(&self) -> Vec<&(dyn ToSql + Sync)>;
    fn accepts() -> Vec<fn(&Type) -> bool>
    where
        Self: Sized;
    /// The columns, where the parameters are whole rows.
    fn row_columns() -> Vec<Column>
    where
        Self: Sized,
    {
        Vec::new()
    }
}

macro_rules! params {
    ($($name:ident)*) => {
        impl<$($name: ToSql + Send + Sync),*> Params for ($($name,)*) {
            #[allow(non_snake_case, reason = "the type parameters name the fields")]
            fn as_sql(&self) -> Vec<&(dyn ToSql + Sync)> {
                let ($($name,)*) = self;
                vec![$($name),*]
            }
            fn accepts() -> Vec<fn(&Type) -> bool> {
                vec![$(<$name as ToSql>::accepts),*]
            }
        }
    };
}
params!();
params!(A);
params!(A B);
params!(A B C);
params!(A B C D);
params!(A B C D E);
params!(A B C D E F);
params!(A B C D E F G);

/// Rows of `R` as parameters: one array per column.
pub struct Rows<R> {
    columns: Vec<ColumnValues>,
    row: PhantomData<fn() -> R>,
}

impl<R> Rows<R> {
    pub fn new(columns: Vec<ColumnValues>) -> Self {
        Self { columns, row: PhantomData }
    }
}

/// The values of one column as PostgreSQL reads an array. They are encoded where the rows are, because collecting them
/// first would clone every field of every row.
#[derive(Debug)]
pub struct ColumnValues {
    member: Type,
    /// Or what is wrong with a value.
    array: std::result::Result<BytesMut, String>,
}

impl ColumnValues {
    pub fn encode<'a, T: ColumnType>(values: impl ExactSizeIterator<Item = &'a T>) -> Self {
        Self { member: T::TYPE, array: Self::array(values).map_err(|error| error.to_string()) }
    }

    fn array<'a, T: ColumnType>(
        values: impl ExactSizeIterator<Item = &'a T>,
    ) -> std::result::Result<BytesMut, Box<dyn std::error::Error + Sync + Send>> {
        let mut array = BytesMut::with_capacity(20 + values.len() * 24);
        // One dimension, perhaps with NULLs, of so many values, which count from 1.
        array.put_i32(1);
        array.put_i32(i32::from(T::NULLABLE));
        array.put_u32(T::TYPE.oid());
        array.put_i32(i32::try_from(values.len())?);
        array.put_i32(1);
        for value in values {
            let place = array.len();
            array.put_i32(-1);
            if let IsNull::No = value.to_sql(&T::TYPE, &mut array)? {
                let size = i32::try_from(array.len() - place - 4)?;
                array[place..place + 4].copy_from_slice(&size.to_be_bytes());
            }
        }
        Ok(array)
    }
}

impl ToSql for ColumnValues {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> std::result::Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match ty.kind() {
            Kind::Array(member) if *member == self.member => {}
            _ => return Err(format!("an array of {} for {ty}", self.member).into()),
        }
        out.extend_from_slice(self.array.as_ref().map_err(String::as_str)?);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        matches!(ty.kind(), Kind::Array(_))
    }

    to_sql_checked!();
}

impl<R: FromRow> Params for Rows<R> {
    fn as_sql(&self) -> Vec<&(dyn ToSql + Sync)> {
        self.columns.iter().map(|column| column as &(dyn ToSql + Sync)).collect()
    }
    fn accepts() -> Vec<fn(&Type) -> bool> {
        R::columns().iter().map(|column| column.array_accepts).collect()
    }
    fn row_columns() -> Vec<Column> {
        R::columns()
    }
}

/// What a test needs in order to hold a statement against the real schema.
pub trait Check: Sync {
    fn name(&self) -> &'static str;
    fn sql(&self) -> &str;
    fn columns(&self) -> Vec<Column>;
    /// What is wrong, one sentence each; empty when types and order agree.
    fn check(&self, statement: &Statement) -> Vec<String>;
}

impl<P: Params, R: FromRow> Check for Query<P, R> {
    fn name(&self) -> &'static str {
        self.name
    }
    fn sql(&self) -> &str {
        Query::sql(self)
    }
    fn columns(&self) -> Vec<Column> {
        R::columns()
    }
    fn check(&self, statement: &Statement) -> Vec<String> {
        let mut wrong = Vec::new();
        let accepts = P::accepts();
        if accepts.len() != statement.params().len() {
            wrong.push(format!("takes {} parameters", statement.params().len()));
        }
        for (i, (ty, accepts)) in statement.params().iter().zip(accepts).enumerate() {
            if !accepts(ty) {
                wrong.push(format!("${} is {ty}", i + 1));
            }
        }
        for (i, want) in R::columns().iter().enumerate() {
            match statement.columns().get(i) {
                Some(got) if got.name() != want.name => {
                    wrong.push(format!("column {} is {}, not {}", i + 1, got.name(), want.name));
                }
                Some(got) if !(want.accepts)(got.type_()) => {
                    wrong.push(format!("{} is {}", want.name, got.type_()));
                }
                Some(_) => {}
                None => wrong.push(format!("no column {}", want.name)),
            }
        }
        wrong
    }
}
