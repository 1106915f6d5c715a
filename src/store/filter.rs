//! The filter tree and the allow-listed fields it may name.

use crate::error::{Error, Reason, Result};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

/// Levels of a tree; a lone condition has one.
pub const MAX_DEPTH: usize = 8;
pub const MAX_NODES: usize = 64;
/// Values in all conditions of a tree together.
pub const MAX_VALUES: usize = 1000;
/// Keys below a JSON field.
pub const MAX_PATH_KEYS: usize = 8;
pub const MAX_TEXT_BYTES: usize = 1024;

/// Integers up to here are exact as doubles.
const EXACT_INT: i64 = 1 << 53;
/// 0001-01-01 and 9999-12-31T23:59:59 in seconds of the Unix epoch: the range of a protobuf Timestamp.
const TIME_RANGE_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// One field that callers may name. Only fields from such an allow-list reach SQL.
#[derive(Debug, PartialEq)]
pub struct Field {
    /// What callers write.
    pub name: &'static str,
    /// SQL expression over the alias `d`: `d.final_verdict`.
    pub column: &'static str,
    pub kind: FieldKind,
    pub sortable: bool,
    /// Whether the column may be NULL. It decides the form of keyset predicates, so it must not be
    /// false for a column without NOT NULL.
    pub nullable: bool,
    /// Whether every order ends in this field, because it tells rows apart that have one `uid`.
    pub last: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FieldKind {
    /// `text`; the empty string stands for absent.
    Text,
    /// Any integer type.
    Int,
    /// `float8` or `float4`.
    Float,
    Bool,
    /// `timestamptz`.
    Time,
    /// `smallint`. Callers write a name with or without `prefix`: `OVERRIDDEN`, `DECISION_STATE_OVERRIDDEN`.
    Enum {
        prefix: &'static str,
        /// Names without the prefix, and what is stored.
        names: &'static [(&'static str, i16)],
    },
    Uuid,
    /// A `jsonb` list of strings: tags.
    Texts,
    /// A `jsonb` object of strings, named with one key: `labels.<key>`.
    Labels,
    /// A `jsonb` object, named with 1 to 8 keys: `metadata.<key>.<key>`.
    Json,
}

impl Field {
    /// A field that is not null, and sortable unless it is JSON.
    pub const fn new(name: &'static str, column: &'static str, kind: FieldKind) -> Self {
        let sortable = !matches!(kind, FieldKind::Texts | FieldKind::Labels | FieldKind::Json);
        Self { name, column, kind, sortable, nullable: false, last: false }
    }

    pub const fn nullable(mut self) -> Self {
        self.nullable = true;
        self
    }

    pub const fn unsortable(mut self) -> Self {
        self.sortable = false;
        self
    }

    pub const fn last(mut self) -> Self {
        self.last = true;
        self
    }

    pub fn find(fields: &'static [Field], name: &str) -> Option<&'static Field> {
        fields.iter().find(|field| field.name == name)
    }

    /// What orders the field: text goes by bytes, whatever the database's collation is.
    pub(super) fn ordered(&self) -> String {
        match self.kind {
            FieldKind::Text => format!("{} COLLATE \"C\"", self.column),
            _ => self.column.to_owned(),
        }
    }

    fn wants(&self) -> &'static str {
        match self.kind {
            FieldKind::Text | FieldKind::Texts | FieldKind::Labels => "text",
            FieldKind::Int => "an integer",
            FieldKind::Float => "a number",
            FieldKind::Bool => "a boolean",
            FieldKind::Time => "a time",
            FieldKind::Enum { .. } => "the name of an enum value",
            FieldKind::Uuid => "a UUID as text",
            FieldKind::Json => "text, a number or a boolean",
        }
    }

    /// The value in the field's own type, or an error at `part`.
    fn scalar(&self, part: &str, value: Value) -> Result<Scalar> {
        use FieldKind::*;
        Ok(match (self.kind, value) {
            (_, Value::Float(number)) if !number.is_finite() => {
                return Err(fault(part, "must be a finite number"));
            }
            (Text | Texts | Labels | Json, Value::Text(text)) => {
                Scalar::Text(checked_text(part, text)?)
            }
            (Int | Json, Value::Int(number)) => Scalar::Int(number),
            (Float, Value::Int(number)) if (-EXACT_INT..=EXACT_INT).contains(&number) => {
                Scalar::Float(number as f64)
            }
            (Float | Json, Value::Float(number)) => Scalar::Float(number),
            (Int, Value::Float(number))
                if number.fract() == 0.0 && number.abs() <= EXACT_INT as f64 =>
            {
                Scalar::Int(number as i64)
            }
            (Bool | Json, Value::Bool(value)) => Scalar::Bool(value),
            (Time, Value::Time(time)) => Scalar::Time(
                whole_micros(time)
                    .ok_or_else(|| fault(part, "must be a time in the years 1 to 9999"))?,
            ),
            (Enum { prefix, names }, Value::Text(text)) => {
                let short = text.strip_prefix(prefix).unwrap_or(&text);
                match names.iter().find(|(name, _)| *name == short) {
                    Some((_, stored)) => Scalar::Enum(*stored),
                    None => {
                        let names: Vec<_> = names.iter().map(|(name, _)| *name).collect();
                        return Err(fault(part, format!("must be one of {}", names.join(", "))));
                    }
                }
            }
            (Uuid, Value::Text(text)) => Scalar::Uuid(
                uuid::Uuid::try_parse(&text).map_err(|_| fault(part, "must be a UUID"))?,
            ),
            _ => {
                return Err(fault(part, format!("must be {}, as {} is", self.wants(), self.name)));
            }
        })
    }
}

/// A value as callers write it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    Int(i64),
    Float(f64),
    Bool(bool),
    /// Taken in whole microseconds, as everything stored is; the rest is cut off.
    Time(SystemTime),
}

/// A value in its field's type.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scalar {
    Text(String),
    Int(i64),
    Float(f64),
    Bool(bool),
    Time(SystemTime),
    Enum(i16),
    Uuid(Uuid),
}

/// What a condition asks of its field.
#[derive(Clone, Debug, PartialEq)]
pub enum Op<V = Value> {
    Equals(V),
    /// Also true where the field is absent.
    NotEquals(V),
    /// All bounds that are set must hold; at least one is set.
    Range {
        gt: Option<V>,
        gte: Option<V>,
        lt: Option<V>,
        lte: Option<V>,
    },
    /// Of nothing: never true.
    In(Vec<V>),
    /// Also true where the field is absent.
    NotIn(Vec<V>),
    /// Lists: one of the values at least is in it. Of nothing: never true.
    ContainsAny(Vec<V>),
    /// Lists: every value is in it. Of nothing: true.
    ContainsAll(Vec<V>),
    /// Text that starts with these bytes.
    Prefix(String),
    /// Present, or absent. A JSON key with the value null is present.
    Exists(bool),
}

/// One checked condition on one field.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    field: &'static Field,
    /// Keys below a Labels or Json field.
    path: Vec<String>,
    op: Op<Scalar>,
}

/// A tree of conditions. Absent values make a condition false, never unknown, also under `Not`.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// Of nothing: true.
    All(Vec<Filter>),
    /// Of nothing: false.
    Any(Vec<Filter>),
    Not(Box<Filter>),
    Field(Condition),
}

impl Default for Filter {
    /// Selects everything.
    fn default() -> Self {
        Self::All(Vec::new())
    }
}

impl Condition {
    /// Fails when the field does not take the path, the operation or a value. The error's field is
    /// the part at fault: `path`, `equals`, `in[3]`, `range.gte`.
    pub fn new(field: &'static Field, path: Vec<String>, op: Op) -> Result<Self> {
        check_path(field, &path)?;
        check_op(field, &op)?;
        let one = |part: &str, value| field.scalar(part, value);
        let bound = |part: &str, value: Option<Value>| {
            value.map(|value| field.scalar(part, value)).transpose()
        };
        let many = |part: &str, values: Vec<Value>| {
            if values.len() > MAX_VALUES {
                return Err(fault(part, format!("must have at most {MAX_VALUES} values")));
            }
            let each = values.into_iter().enumerate();
            each.map(|(i, value)| field.scalar(&format!("{part}[{i}]"), value)).collect()
        };
        let op = match op {
            Op::Equals(value) => Op::Equals(one("equals", value)?),
            Op::NotEquals(value) => Op::NotEquals(one("not_equals", value)?),
            Op::Range { gt, gte, lt, lte } => Op::Range {
                gt: bound("range.gt", gt)?,
                gte: bound("range.gte", gte)?,
                lt: bound("range.lt", lt)?,
                lte: bound("range.lte", lte)?,
            },
            Op::In(values) => Op::In(many("in", values)?),
            Op::NotIn(values) => Op::NotIn(many("not_in", values)?),
            Op::ContainsAny(values) => Op::ContainsAny(many("contains_any", values)?),
            Op::ContainsAll(values) => Op::ContainsAll(many("contains_all", values)?),
            Op::Prefix(prefix) => Op::Prefix(checked_text("prefix", prefix)?),
            Op::Exists(wanted) => Op::Exists(wanted),
        };
        Ok(Self { field, path, op })
    }

    fn values(&self) -> usize {
        match &self.op {
            Op::Equals(_) | Op::NotEquals(_) | Op::Prefix(_) => 1,
            Op::Range { gt, gte, lt, lte } => [gt, gte, lt, lte].into_iter().flatten().count(),
            Op::In(values)
            | Op::NotIn(values)
            | Op::ContainsAny(values)
            | Op::ContainsAll(values) => values.len(),
            Op::Exists(_) => 0,
        }
    }

    fn sql(&self, params: &mut Params) -> String {
        match self.field.kind {
            FieldKind::Labels | FieldKind::Json => self.json_sql(params),
            FieldKind::Texts => self.list_sql(params),
            _ => self.column_sql(params),
        }
    }

    /// By `@>` only, which the index on JSON serves.
    fn list_sql(&self, params: &mut Params) -> String {
        let column = self.field.column;
        let mut has = |values: &[Scalar]| {
            let values: Vec<_> = values.iter().map(json).collect();
            format!("{column} @> {}::jsonb", params.push(format!("[{}]", values.join(","))))
        };
        match &self.op {
            Op::ContainsAll(values) => has(values),
            Op::ContainsAny(values) if !values.is_empty() => {
                let each: Vec<_> =
                    values.iter().map(|value| has(std::slice::from_ref(value))).collect();
                format!("({})", each.join(" OR "))
            }
            Op::Exists(true) => format!("{column} <> '[]'"),
            Op::Exists(false) => format!("{column} = '[]'"),
            // `check_op` lets nothing else through, and of nothing there is none.
            _ => "FALSE".into(),
        }
    }

    fn column_sql(&self, params: &mut Params) -> String {
        let Field { column, kind, nullable, .. } = *self.field;
        match &self.op {
            Op::Equals(value) => format!("{column} = {}", params.scalar(value)),
            Op::NotEquals(value) => format!("{column} IS DISTINCT FROM {}", params.scalar(value)),
            Op::Range { gt, gte, lt, lte } => {
                let ordered = self.field.ordered();
                let bounds = [(">", gt), (">=", gte), ("<", lt), ("<=", lte)];
                let mut all: Vec<_> = bounds
                    .into_iter()
                    .filter_map(|(sign, bound)| Some((sign, bound.as_ref()?)))
                    .map(|(sign, bound)| format!("{ordered} {sign} {}", params.scalar(bound)))
                    .collect();
                let from_nothing = gte.as_ref().is_none_or(|from| *from == Scalar::Text("".into()));
                if kind == FieldKind::Text && gt.is_none() && from_nothing {
                    all.push(format!("{column} <> ''"));
                }
                format!("({})", all.join(" AND "))
            }
            Op::In(values) => format!("{column} = ANY({})", params.array(kind, values)),
            Op::NotIn(values) => {
                format!("({column} = ANY({})) IS NOT TRUE", params.array(kind, values))
            }
            // A range, not LIKE or starts_with: it needs no escaping and an index on text in byte order serves it.
            Op::Prefix(prefix) => {
                let ordered = self.field.ordered();
                let from = format!("{ordered} >= {}", params.push(prefix.clone()));
                match successor(prefix) {
                    Some(next) => format!("({from} AND {ordered} < {})", params.push(next)),
                    None => from,
                }
            }
            // For lists only, as `check_op` sees to.
            Op::ContainsAny(_) | Op::ContainsAll(_) => "FALSE".into(),
            Op::Exists(true) if kind == FieldKind::Text => format!("{column} <> ''"),
            Op::Exists(false) if kind == FieldKind::Text && nullable => {
                format!("({column} <> '') IS NOT TRUE")
            }
            Op::Exists(false) if kind == FieldKind::Text => format!("{column} = ''"),
            Op::Exists(true) => format!("{column} IS NOT NULL"),
            Op::Exists(false) => format!("{column} IS NULL"),
        }
    }

    /// Nothing here can raise, whatever the column holds: `@>` compares and `@?` suppresses errors.
    /// Paths are strict, so that they do not look into arrays, as `@>` does not.
    fn json_sql(&self, params: &mut Params) -> String {
        let column = self.field.column;
        let mut at = "strict $".to_owned();
        for key in &self.path {
            at.push('.');
            at.push_str(&json_text(key));
        }
        let path = |test: String| format!("{column} @? {}::jsonpath", params.push(at + &test));
        let any_of = |values: &[Scalar]| {
            let each: Vec<_> = values.iter().map(|value| format!("@ == {}", json(value))).collect();
            format!(" ? ({})", each.join(" || "))
        };
        match &self.op {
            Op::Equals(value) => {
                format!("{column} @> {}::jsonb", params.push(nested(&self.path, value)))
            }
            Op::NotEquals(value) => {
                let value = params.push(nested(&self.path, value));
                format!("({column} @> {value}::jsonb) IS NOT TRUE")
            }
            Op::Range { gt, gte, lt, lte } => {
                let bounds = [(">", gt), (">=", gte), ("<", lt), ("<=", lte)];
                let all: Vec<_> = bounds
                    .into_iter()
                    .filter_map(|(sign, bound)| Some((sign, bound.as_ref()?)))
                    .map(|(sign, bound)| format!("@ {sign} {}", json(bound)))
                    .collect();
                path(format!(" ? ({})", all.join(" && ")))
            }
            Op::In(values) if values.is_empty() => "FALSE".into(),
            Op::NotIn(values) if values.is_empty() => "TRUE".into(),
            // One path rather than one @> for each: a GIN index serves equalities in a path as well.
            Op::In(values) => path(any_of(values)),
            Op::NotIn(values) => format!("({}) IS NOT TRUE", path(any_of(values))),
            Op::Prefix(prefix) => path(format!(" ? (@ starts with {})", json_text(prefix))),
            // For lists only, as `check_op` sees to.
            Op::ContainsAny(_) | Op::ContainsAll(_) => "FALSE".into(),
            Op::Exists(true) => path(String::new()),
            Op::Exists(false) => format!("({}) IS NOT TRUE", path(String::new())),
        }
    }
}

impl Filter {
    /// A condition in SQL over the alias `d`: true, or else false or NULL. What callers wrote goes to
    /// `params` only.
    pub fn sql(&self, params: &mut Params) -> String {
        let mut joined = |parts: &[Filter], with: &str, empty: &str| match parts {
            [] => empty.to_owned(),
            [only] => only.sql(params),
            _ => {
                let parts: Vec<_> = parts.iter().map(|part| part.sql(params)).collect();
                format!("({})", parts.join(with))
            }
        };
        match self {
            Self::All(parts) => joined(parts, " AND ", "TRUE"),
            Self::Any(parts) => joined(parts, " OR ", "FALSE"),
            Self::Not(inner) => format!("({}) IS NOT TRUE", inner.sql(params)),
            Self::Field(condition) => condition.sql(params),
        }
    }

    pub fn selects_everything(&self) -> bool {
        matches!(self, Self::All(parts) if parts.is_empty())
    }

    /// The same tree if it is within the limits, else an error at the field `at`.
    pub fn within_limits(self, at: &str) -> Result<Self> {
        let mut size = Size::default();
        size.measure(&self, 1);
        let limits = [
            (size.depth, MAX_DEPTH, "levels"),
            (size.nodes, MAX_NODES, "nodes"),
            (size.values, MAX_VALUES, "values"),
        ];
        match limits.into_iter().find(|(size, limit, _)| size > limit) {
            None => Ok(self),
            Some((size, limit, what)) => {
                Err(fault(at, format!("must have at most {limit} {what}, not {size}")))
            }
        }
    }
}

#[derive(Default)]
struct Size {
    depth: usize,
    nodes: usize,
    values: usize,
}

impl Size {
    fn measure(&mut self, filter: &Filter, depth: usize) {
        self.depth = self.depth.max(depth);
        self.nodes += 1;
        match filter {
            Filter::All(parts) | Filter::Any(parts) => {
                parts.iter().for_each(|part| self.measure(part, depth + 1));
            }
            Filter::Not(inner) => self.measure(inner, depth + 1),
            Filter::Field(condition) => self.values += condition.values(),
        }
    }
}

/// The parameters of a generated statement, in the order of their `$n`.
#[derive(Debug, Default)]
pub struct Params(Vec<(Box<dyn ToSql + Sync + Send>, Type)>);

/// A Rust type that is bound as one SQL type.
pub trait Parameter: ToSql + Sync + Send + 'static {
    const NAME: &'static str;
    const TYPE: Type;
}

macro_rules! parameter {
    ($($rust:ty => $name:literal $one:ident $several:ident),* $(,)?) => {
        $(
            impl Parameter for $rust {
                const NAME: &'static str = $name;
                const TYPE: Type = Type::$one;
            }
            impl Parameter for Vec<$rust> {
                const NAME: &'static str = concat!($name, "[]");
                const TYPE: Type = Type::$several;
            }
        )*
    };
}
parameter! {
    String => "text" TEXT TEXT_ARRAY, i16 => "int2" INT2 INT2_ARRAY, i64 => "int8" INT8 INT8_ARRAY,
    f64 => "float8" FLOAT8 FLOAT8_ARRAY, f32 => "float4" FLOAT4 FLOAT4_ARRAY, bool => "bool" BOOL BOOL_ARRAY,
    SystemTime => "timestamptz" TIMESTAMPTZ TIMESTAMPTZ_ARRAY, Uuid => "uuid" UUID UUID_ARRAY,
}

impl Params {
    /// Adds a value and gives its place with its type, `$3::int8`.
    pub fn push<T: Parameter>(&mut self, value: T) -> String {
        self.0.push((Box::new(value), T::TYPE));
        format!("${}::{}", self.0.len(), T::NAME)
    }

    /// As tokio-postgres takes them.
    pub fn as_sql(&self) -> Vec<&(dyn ToSql + Sync)> {
        self.0.iter().map(|(value, _)| &**value as &(dyn ToSql + Sync)).collect()
    }

    /// The same with their types, so that PostgreSQL need not be asked first.
    pub(super) fn typed(&self) -> Vec<(&(dyn ToSql + Sync), Type)> {
        self.0.iter().map(|(value, of)| (&**value as &(dyn ToSql + Sync), of.clone())).collect()
    }

    pub(super) fn scalar(&mut self, value: &Scalar) -> String {
        match value {
            Scalar::Text(value) => self.push(value.clone()),
            Scalar::Int(value) => self.push(*value),
            Scalar::Float(value) => self.push(*value),
            Scalar::Bool(value) => self.push(*value),
            Scalar::Time(value) => self.push(*value),
            Scalar::Enum(value) => self.push(*value),
            Scalar::Uuid(value) => self.push(*value),
        }
    }

    fn array(&mut self, kind: FieldKind, values: &[Scalar]) -> String {
        macro_rules! only {
            ($variant:ident) => {{
                let of_kind = values.iter().filter_map(|value| match value {
                    Scalar::$variant(value) => Some(value.clone()),
                    _ => None,
                });
                self.push(of_kind.collect::<Vec<_>>())
            }};
        }
        match kind {
            FieldKind::Int => only!(Int),
            FieldKind::Float => only!(Float),
            FieldKind::Bool => only!(Bool),
            FieldKind::Time => only!(Time),
            FieldKind::Enum { .. } => only!(Enum),
            FieldKind::Uuid => only!(Uuid),
            FieldKind::Text | FieldKind::Texts | FieldKind::Labels | FieldKind::Json => only!(Text),
        }
    }
}

fn fault(part: &str, description: impl Into<String>) -> Error {
    Error::invalid_because(Reason::FilterInvalid, part, description)
}

fn checked_text(part: &str, text: String) -> Result<String> {
    if text.contains('\0') {
        return Err(Error::invalid_because(Reason::NulByte, part, "must not contain NUL"));
    }
    if text.len() > MAX_TEXT_BYTES {
        return Err(fault(part, format!("must be at most {MAX_TEXT_BYTES} bytes")));
    }
    Ok(text)
}

fn check_path(field: &Field, path: &[String]) -> Result<()> {
    let name = field.name;
    match (field.kind, path.len()) {
        (FieldKind::Labels, 1) | (FieldKind::Json, 1..=MAX_PATH_KEYS) => {}
        (FieldKind::Labels, 0) | (FieldKind::Json, 0) => {
            return Err(fault("path", format!("must name a key, as in {name}.<key>")));
        }
        (FieldKind::Labels, _) => return Err(fault("path", "must name one key of the labels")),
        (FieldKind::Json, _) => {
            return Err(fault("path", format!("must have at most {MAX_PATH_KEYS} keys")));
        }
        (_, 0) => {}
        _ => return Err(fault("path", format!("must not go below {name}, which has no keys"))),
    }
    for key in path {
        if key.is_empty() {
            return Err(fault("path", "must not have an empty key"));
        }
        checked_text("path", key.clone())?;
    }
    Ok(())
}

fn check_op(field: &Field, op: &Op) -> Result<()> {
    use FieldKind::*;
    let name = field.name;
    match op {
        Op::ContainsAny(_) | Op::ContainsAll(_) if field.kind != Texts => {
            let op = if matches!(op, Op::ContainsAny(_)) { "contains_any" } else { "contains_all" };
            Err(fault(op, format!("is not taken by {name}, which is not a list")))
        }
        Op::ContainsAny(_) | Op::ContainsAll(_) | Op::Exists(_) => Ok(()),
        _ if field.kind == Texts => Err(fault(
            "path",
            format!("names {name}, a list, which takes contains_any, contains_all and exists"),
        )),
        Op::Range { gt: None, gte: None, lt: None, lte: None } => {
            Err(fault("range", "must have a bound"))
        }
        Op::Range { .. } if matches!(field.kind, Bool | Enum { .. } | Uuid) => {
            Err(fault("range", format!("is not taken by {name}, which has no order")))
        }
        Op::Range { gt, gte, lt, lte } if field.kind == Json => {
            let bounds = [gt, gte, lt, lte].into_iter().flatten();
            let (mut texts, mut numbers) = (0, 0);
            for bound in bounds {
                match bound {
                    Value::Text(_) => texts += 1,
                    Value::Int(_) | Value::Float(_) => numbers += 1,
                    _ => return Err(fault("range", "must have bounds of text or numbers")),
                }
            }
            if texts > 0 && numbers > 0 {
                return Err(fault("range", "must not mix text and numbers"));
            }
            Ok(())
        }
        Op::Prefix(_) if !matches!(field.kind, Text | Labels | Json) => {
            Err(fault("prefix", format!("is not taken by {name}, which is not text")))
        }
        _ => Ok(()),
    }
}

/// The time cut to microseconds, as everything stored is, if it is in the years 1 to 9999.
pub fn whole_micros(time: SystemTime) -> Option<SystemTime> {
    let micros = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_micros()).ok()?,
        Err(before) => {
            let micros = before.duration().as_nanos().div_ceil(1000);
            i64::try_from(micros).ok()?.checked_neg()?
        }
    };
    from_micros(micros)
}

/// Microseconds of the Unix epoch as a time, if it is in the years 1 to 9999.
pub(super) fn from_micros(micros: i64) -> Option<SystemTime> {
    if !TIME_RANGE_SECONDS.contains(&micros.div_euclid(1_000_000)) {
        return None;
    }
    let distance = Duration::from_micros(micros.unsigned_abs());
    if micros < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) }
}

/// The least text above every text that starts with `prefix`, in byte order; none if there is no such text.
pub fn successor(prefix: &str) -> Option<String> {
    let mut kept = prefix.to_owned();
    while let Some(last) = kept.pop() {
        // The step from U+D7FF goes over the surrogates.
        let next = match last {
            '\u{D7FF}' => Some('\u{E000}'),
            _ => char::from_u32(u32::from(last) + 1),
        };
        if let Some(next) = next {
            kept.push(next);
            return Some(kept);
        }
    }
    None
}

/// Quoted for JSON, and for jsonpath, which takes the same escapes.
fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn json(value: &Scalar) -> String {
    match value {
        Scalar::Text(text) => json_text(text),
        Scalar::Int(number) => number.to_string(),
        // Debug, not Display: 1e300 rather than 300 zeros.
        Scalar::Float(number) => format!("{number:?}"),
        Scalar::Bool(value) => value.to_string(),
        Scalar::Enum(value) => value.to_string(),
        Scalar::Uuid(value) => json_text(&value.to_string()),
        Scalar::Time(_) => "null".into(),
    }
}

/// `{"a":{"b":value}}` for the path a, b.
fn nested(path: &[String], value: &Scalar) -> String {
    let open: String = path.iter().map(|key| format!("{{{}:", json_text(key))).collect();
    format!("{open}{}{}", json(value), "}".repeat(path.len()))
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
