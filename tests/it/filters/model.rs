//! What filters, orders and snapshots mean, told by looking at one resource after the other. Of the server's own code
//! nothing is used here: the resources are those its answers gave, and the meaning is that of common.proto.

use casebook::pb;
use casebook::rpc::json_object::Object;
use pb::field_condition::Op;
use pb::value::Kind;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Text,
    Int,
    Float,
    Bool,
    Time,
    Enum,
    Uuid,
    Labels,
    Json,
}

impl Type {
    pub fn has_keys(self) -> bool {
        matches!(self, Type::Labels | Type::Json)
    }

    pub fn has_order(self) -> bool {
        !matches!(self, Type::Bool | Type::Enum | Type::Uuid)
    }

    pub fn has_prefixes(self) -> bool {
        matches!(self, Type::Text | Type::Labels | Type::Json)
    }
}

/// A listing, with the fields that its method documents.
#[derive(Debug)]
pub struct Noun {
    pub name: &'static str,
    pub fields: &'static [(&'static str, Type)],
    /// The field that orders it, newest first, when the caller names none.
    pub newest: &'static str,
    /// The field that a window is on.
    pub window: Option<&'static str>,
    pub has_deleted: bool,
    pub has_snapshots: bool,
}

pub const DECISIONS: usize = 0;
pub const RULES: usize = 1;
pub const OVERRIDES: usize = 2;
pub const CRITICS: usize = 3;
pub const ENTRIES: usize = 4;

use Type::*;

pub static NOUNS: [Noun; 5] = [
    Noun {
        name: "decisions",
        fields: &[
            ("id", Text),
            ("final_verdict", Text),
            ("avg_confidence", Float),
            ("ambiguity", Float),
            ("state", Enum),
            ("model_version", Text),
            ("trace_id", Text),
            ("subject_id", Text),
            ("retention_class", Text),
            ("case_hash", Text),
            ("decide_time", Time),
            ("create_time", Time),
            ("update_time", Time),
            ("labels", Labels),
            ("metadata", Json),
        ],
        newest: "decide_time",
        window: Some("decide_time"),
        has_deleted: true,
        has_snapshots: true,
    },
    Noun {
        name: "policy rules",
        fields: &[
            ("id", Text),
            ("name", Text),
            ("rule_type", Text),
            ("severity", Text),
            ("active", Bool),
            ("effective_time", Time),
            ("retire_time", Time),
            ("create_time", Time),
            ("update_time", Time),
        ],
        newest: "create_time",
        window: None,
        has_deleted: true,
        has_snapshots: true,
    },
    Noun {
        name: "overrides",
        fields: &[
            ("id", Text),
            ("decision_id", Text),
            ("original_outcome", Text),
            ("proposed_outcome", Text),
            ("reason_category", Text),
            ("reviewer_id", Text),
            ("reviewer_role", Text),
            ("urgent", Bool),
            ("priority", Int),
            ("create_time", Time),
        ],
        newest: "create_time",
        window: None,
        has_deleted: false,
        has_snapshots: false,
    },
    Noun {
        name: "critic outputs",
        fields: &[
            ("id", Text),
            ("decision_id", Text),
            ("critic", Text),
            ("verdict", Text),
            ("confidence", Float),
            ("priority", Text),
            ("config_version", Text),
            ("evaluate_time", Time),
            ("create_time", Time),
        ],
        newest: "create_time",
        window: None,
        has_deleted: false,
        has_snapshots: false,
    },
    Noun {
        name: "audit entries",
        fields: &[
            ("seq", Int),
            ("event_time", Time),
            ("kind", Text),
            ("entity_id", Text),
            ("target_uid", Uuid),
            ("version", Int),
            ("action", Text),
            ("method", Text),
            ("principal", Text),
            ("actor", Text),
            ("ip_address", Text),
            ("request_id", Text),
            ("trace_id", Text),
        ],
        newest: "seq",
        window: Some("event_time"),
        has_deleted: false,
        has_snapshots: false,
    },
];

impl Noun {
    pub fn field(&self, name: &str) -> usize {
        self.fields.iter().position(|(known, _)| *known == name).expect("a field of the noun")
    }
}

/// What stands in one place of a resource.
#[derive(Clone, Debug, PartialEq)]
pub enum Datum {
    Absent,
    Text(String),
    Int(i64),
    Number(f64),
    Bool(bool),
    /// Microseconds of the Unix epoch.
    Time(i64),
    Object(BTreeMap<String, Datum>),
    /// JSON's null and lists: there, but equal to nothing that a filter can name.
    Other,
}

/// A resource with the values of its noun's fields, in their order.
#[derive(Clone)]
pub struct Row {
    /// What orders it among its equals: the uid, or for an entry its number.
    pub last: String,
    pub id: String,
    /// The uid of the decision that it belongs to, if it belongs to one.
    pub parent: String,
    pub hidden: bool,
    pub values: Vec<Datum>,
    pub message: Message,
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (hidden: {}) with {:?}", self.last, self.hidden, self.values)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    Decision(Box<pb::Decision>),
    Rule(Box<pb::PolicyRule>),
    Override(Box<pb::Override>),
    Critic(Box<pb::CriticOutput>),
    Entry(Box<pb::AuditEntry>),
}

impl Message {
    /// See [`Row::last`].
    pub fn last(&self) -> String {
        let meta = match self {
            Message::Decision(row) => &row.meta,
            Message::Rule(row) => &row.meta,
            Message::Override(row) => &row.meta,
            Message::Critic(row) => &row.meta,
            Message::Entry(row) => return format!("{:020}", row.seq),
        };
        meta.as_ref().expect("meta").uid.clone()
    }
}

fn text(value: &str) -> Datum {
    Datum::Text(value.to_owned())
}

fn number(value: Option<f64>) -> Datum {
    value.map_or(Datum::Absent, Datum::Number)
}

pub fn micros(time: &prost_types::Timestamp) -> i64 {
    // The rest is cut off, as from everything that is stored.
    time.seconds * 1_000_000 + i64::from(time.nanos / 1000)
}

fn time(value: Option<&prost_types::Timestamp>) -> Datum {
    value.map_or(Datum::Absent, |time| Datum::Time(micros(time)))
}

fn object(value: Option<&prost_types::Struct>) -> Datum {
    let fields = value.map(|value| &value.fields);
    let members = fields.into_iter().flatten().map(|(key, value)| (key.clone(), json(value)));
    Datum::Object(members.collect())
}

fn json(value: &prost_types::Value) -> Datum {
    use prost_types::value::Kind;
    match &value.kind {
        Some(Kind::StringValue(value)) => text(value),
        Some(Kind::NumberValue(value)) => Datum::Number(*value),
        Some(Kind::BoolValue(value)) => Datum::Bool(*value),
        Some(Kind::StructValue(value)) => object(Some(value)),
        None | Some(Kind::NullValue(_) | Kind::ListValue(_)) => Datum::Other,
    }
}

impl From<pb::Decision> for Row {
    fn from(d: pb::Decision) -> Self {
        let meta = d.meta.clone().expect("meta");
        let labels = d.labels.iter().map(|(key, value)| (key.clone(), text(value)));
        let values = vec![
            text(&d.id),
            text(&d.final_verdict),
            number(d.avg_confidence),
            number(d.ambiguity),
            Datum::Int(d.state.into()),
            text(&d.model_version),
            text(&d.trace_id),
            text(&d.subject_id),
            text(&d.retention_class),
            text(&d.case_hash),
            time(d.decide_time.as_ref()),
            time(meta.create_time.as_ref()),
            time(meta.update_time.as_ref()),
            Datum::Object(labels.collect()),
            object(d.metadata.as_ref().map(Object::to_struct).as_ref()),
        ];
        let hidden = meta.delete_time.is_some();
        Self {
            last: meta.uid,
            id: d.id.clone(),
            parent: String::new(),
            hidden,
            values,
            message: Message::Decision(d.into()),
        }
    }
}

impl From<pb::PolicyRule> for Row {
    fn from(r: pb::PolicyRule) -> Self {
        let meta = r.meta.clone().expect("meta");
        let values = vec![
            text(&r.id),
            text(&r.name),
            text(&r.rule_type),
            text(&r.severity),
            Datum::Bool(r.active),
            time(r.effective_time.as_ref()),
            time(r.retire_time.as_ref()),
            time(meta.create_time.as_ref()),
            time(meta.update_time.as_ref()),
        ];
        let hidden = meta.delete_time.is_some();
        Self {
            last: meta.uid,
            id: r.id.clone(),
            parent: String::new(),
            hidden,
            values,
            message: Message::Rule(r.into()),
        }
    }
}

impl From<pb::Override> for Row {
    fn from(o: pb::Override) -> Self {
        let meta = o.meta.clone().expect("meta");
        let values = vec![
            text(&o.id),
            text(&o.decision_id),
            text(&o.original_outcome),
            text(&o.proposed_outcome),
            text(&o.reason_category),
            text(&o.reviewer_id),
            text(&o.reviewer_role),
            Datum::Bool(o.urgent),
            Datum::Int(o.priority.into()),
            time(meta.create_time.as_ref()),
        ];
        let message = Message::Override(o.clone().into());
        Self { last: meta.uid, id: o.id, parent: String::new(), hidden: false, values, message }
    }
}

impl From<pb::CriticOutput> for Row {
    fn from(c: pb::CriticOutput) -> Self {
        let meta = c.meta.clone().expect("meta");
        let values = vec![
            text(&c.id),
            text(&c.decision_id),
            text(&c.critic),
            text(&c.verdict),
            number(Some(c.confidence)),
            text(&c.priority),
            text(&c.config_version),
            time(c.evaluate_time.as_ref()),
            time(meta.create_time.as_ref()),
        ];
        let message = Message::Critic(c.clone().into());
        Self { last: meta.uid, id: c.id, parent: String::new(), hidden: false, values, message }
    }
}

impl From<pb::AuditEntry> for Row {
    fn from(mut e: pb::AuditEntry) -> Self {
        // Lists give it only when asked.
        e.changes = None;
        let target = e.target.clone().expect("target");
        let kind = target.kind().as_str_name().to_lowercase();
        let values = vec![
            Datum::Int(e.seq),
            time(e.event_time.as_ref()),
            text(kind.trim_start_matches("resource_kind_")),
            text(&target.id),
            text(&e.target_uid),
            Datum::Int(target.version),
            text(&e.action),
            text(&e.method),
            text(&e.principal),
            text(&e.actor),
            text(&e.ip_address),
            text(&e.request_id),
            text(&e.trace_id),
        ];
        let last = format!("{:020}", e.seq);
        Self {
            last,
            id: e.seq.to_string(),
            parent: String::new(),
            hidden: false,
            values,
            message: Message::Entry(e.into()),
        }
    }
}

/// The tenant as it stood after one write.
#[derive(Clone, Debug)]
pub struct State {
    pub revision: String,
    pub nouns: [Arc<Vec<Arc<Row>>>; 5],
}

/// A filter, as a caller means it.
#[derive(Clone, Debug, PartialEq)]
pub enum Tree {
    All(Vec<Tree>),
    Any(Vec<Tree>),
    Not(Box<Tree>),
    Is(Leaf),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Leaf {
    pub field: usize,
    pub keys: Vec<String>,
    pub op: Op,
}

impl Tree {
    pub fn selects(&self, noun: &Noun, row: &Row) -> bool {
        match self {
            Tree::All(parts) => parts.iter().all(|part| part.selects(noun, row)),
            Tree::Any(parts) => parts.iter().any(|part| part.selects(noun, row)),
            Tree::Not(inner) => !inner.selects(noun, row),
            Tree::Is(leaf) => leaf.selects(noun, row),
        }
    }

    /// As a structure; none where a key has a dot, which only expressions can say.
    pub fn wire(&self, noun: &Noun) -> Option<pb::Filter> {
        use pb::filter::Expr;
        let list = |parts: &[Tree]| {
            let filters = parts.iter().map(|part| part.wire(noun)).collect::<Option<_>>()?;
            Some(pb::FilterList { filters })
        };
        let expr = match self {
            Tree::All(parts) => Expr::AllOf(list(parts)?),
            Tree::Any(parts) => Expr::AnyOf(list(parts)?),
            Tree::Not(inner) => Expr::NoneOf(Box::new(inner.wire(noun)?)),
            Tree::Is(leaf) => Expr::Field(leaf.wire(noun)?),
        };
        Some(pb::Filter { expr: Some(expr) })
    }
}

/// The datum at a path; absent where the path leads out of the objects.
pub fn at<'a>(datum: &'a Datum, keys: &[String]) -> &'a Datum {
    let mut place = datum;
    for key in keys {
        place = match place {
            Datum::Object(members) => members.get(key).unwrap_or(&Datum::Absent),
            _ => &Datum::Absent,
        };
    }
    place
}

impl Leaf {
    fn wire(&self, noun: &Noun) -> Option<pb::FieldCondition> {
        let (name, of) = noun.fields[self.field];
        if of == Json && self.keys.iter().any(|key| key.contains('.')) {
            return None;
        }
        let path: Vec<&str> =
            [name].into_iter().chain(self.keys.iter().map(String::as_str)).collect();
        Some(pb::FieldCondition { path: path.join("."), op: Some(self.op.clone()) })
    }

    fn selects(&self, noun: &Noun, row: &Row) -> bool {
        let of = noun.fields[self.field].1;
        let datum = at(&row.values[self.field], &self.keys);
        // In a column of text, nothing is told apart from the empty text.
        let present = match datum {
            Datum::Absent => false,
            Datum::Text(text) => of != Text || !text.is_empty(),
            _ => true,
        };
        let any = |list: &pb::ValueList| list.values.iter().any(|value| same(of, datum, value));
        match &self.op {
            Op::Equals(value) => same(of, datum, value),
            Op::NotEquals(value) => !same(of, datum, value),
            Op::In(list) => any(list),
            Op::NotIn(list) => !any(list),
            // None of these nouns has a list of text; precedent.rs asks for theirs.
            Op::ContainsAny(_) | Op::ContainsAll(_) => false,
            Op::Exists(wanted) => present == *wanted,
            Op::Prefix(prefix) => {
                matches!(datum, Datum::Text(text) if text.as_bytes().starts_with(prefix.as_bytes()))
            }
            Op::Range(pb::Range { gt, gte, lt, lte }) => {
                let holds = |bound: &Option<pb::Value>, wanted: fn(Ordering) -> bool| {
                    bound.as_ref().is_none_or(|bound| compare(datum, bound).is_some_and(wanted))
                };
                present
                    && holds(gt, Ordering::is_gt)
                    && holds(gte, Ordering::is_ge)
                    && holds(lt, Ordering::is_lt)
                    && holds(lte, Ordering::is_le)
            }
        }
    }
}

fn same(of: Type, datum: &Datum, value: &pb::Value) -> bool {
    match (of, datum, &value.kind) {
        (Enum, Datum::Int(state), Some(Kind::StringValue(name))) => {
            let short = name.strip_prefix("DECISION_STATE_").unwrap_or(name);
            let long = format!("DECISION_STATE_{short}");
            pb::DecisionState::from_str_name(&long).map(|known| known as i64) == Some(*state)
        }
        (Uuid, Datum::Text(uid), Some(Kind::StringValue(wanted))) => {
            uuid::Uuid::parse_str(uid).ok() == uuid::Uuid::parse_str(wanted).ok()
        }
        _ => compare(datum, value) == Some(Ordering::Equal),
    }
}

/// None where the two are not of one kind.
fn compare(datum: &Datum, value: &pb::Value) -> Option<Ordering> {
    match (datum, value.kind.as_ref()?) {
        // Of Rust's strings the order is that of their bytes.
        (Datum::Text(a), Kind::StringValue(b)) => Some(a.as_str().cmp(b)),
        (Datum::Int(a), Kind::IntValue(b)) => Some(a.cmp(b)),
        // No number that is stored is beyond 2^53, so rounding one that is does not move it past another.
        (Datum::Int(a), Kind::DoubleValue(b)) => (*a as f64).partial_cmp(b),
        (Datum::Number(a), Kind::IntValue(b)) => a.partial_cmp(&(*b as f64)),
        (Datum::Number(a), Kind::DoubleValue(b)) => a.partial_cmp(b),
        (Datum::Bool(a), Kind::BoolValue(b)) => Some(a.cmp(b)),
        (Datum::Time(a), Kind::TimestampValue(b)) => Some(a.cmp(&micros(b))),
        _ => None,
    }
}

/// Sort keys: fields, and whether they descend.
pub type Order = Vec<(usize, bool)>;

/// The order of two rows: what is absent comes last either way, and equals go by uid, in the last key's direction.
pub fn ordering(order: &Order, a: &Row, b: &Row) -> Ordering {
    let turned = |ordering: Ordering, desc: bool| if desc { ordering.reverse() } else { ordering };
    for (field, desc) in order {
        let ordering = match (&a.values[*field], &b.values[*field]) {
            (Datum::Absent, Datum::Absent) => Ordering::Equal,
            (Datum::Absent, _) => Ordering::Greater,
            (_, Datum::Absent) => Ordering::Less,
            (Datum::Text(a), Datum::Text(b)) => turned(a.cmp(b), *desc),
            (Datum::Int(a), Datum::Int(b)) | (Datum::Time(a), Datum::Time(b)) => {
                turned(a.cmp(b), *desc)
            }
            (Datum::Number(a), Datum::Number(b)) => {
                turned(a.partial_cmp(b).expect("no NaN"), *desc)
            }
            (Datum::Bool(a), Datum::Bool(b)) => turned(a.cmp(b), *desc),
            (a, b) => panic!("{a:?} and {b:?} are of one field"),
        };
        if ordering.is_ne() {
            return ordering;
        }
    }
    turned(a.last.cmp(&b.last), order.last().is_some_and(|(_, desc)| *desc))
}
