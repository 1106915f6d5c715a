//! Selectors and orderings from the wire, checked against a noun's allow-list of fields.

use crate::error::{Error, Reason, Result};
use crate::pb;
use crate::rpc::expression;
use crate::store::filter::{Condition, Field, FieldKind, Filter, Op, Value};
use crate::store::list::Order;
use std::time::SystemTime;

const MAX_ORDER_KEYS: usize = 3;
const MAX_NANOS: i32 = 999_999_999;

/// The filter that a selector stands for; it selects everything when the selector is empty.
/// `at` is the selector's own path in the request, such as `where`.
pub fn selector(
    fields: &'static [Field],
    selector: Option<pb::Selector>,
    at: &str,
) -> Result<Filter> {
    let pb::Selector { filter, expression } = selector.unwrap_or_default();
    match filter {
        None => expression::parse(fields, &expression, &format!("{at}.expression")),
        Some(_) if !expression.is_empty() => {
            Err(fault(at, "must have a filter or an expression, not both"))
        }
        Some(filter) => {
            let at = format!("{at}.filter");
            Tree { fields }.filter(filter, &at)?.within_limits(&at)
        }
    }
}

/// The sort keys that `order_by` names: at most 3, such as `avg_confidence desc, id`. When it is
/// empty, `default`: names and whether they descend.
pub fn order(
    fields: &'static [Field],
    default: &'static [(&'static str, bool)],
    text: &str,
) -> Result<Vec<Order>> {
    let wrong = |description: String| Error::invalid("page.order_by", description);
    if text.trim().is_empty() {
        let keys = default.iter();
        return keys
            .map(|(name, desc)| {
                let field = Field::find(fields, name)
                    .ok_or_else(|| Error::internal(format!("no field {name} to order by")))?;
                Ok(Order { field, desc: *desc })
            })
            .collect();
    }
    let mut order: Vec<Order> = Vec::new();
    for key in text.split(',') {
        let words: Vec<_> = key.split_whitespace().collect();
        let (name, desc) = match words[..] {
            [name] | [name, "asc"] => (name, false),
            [name, "desc"] => (name, true),
            _ => return Err(wrong(format!("must be \"<field> [desc], ...\", not {text:?}"))),
        };
        let Some(field) = Field::find(fields, name).filter(|field| field.sortable) else {
            let known = names(fields.iter().filter(|field| field.sortable));
            return Err(wrong(format!("must not name {name:?}: the fields are {known}")));
        };
        if order.iter().any(|earlier| earlier.field.name == name) {
            return Err(wrong(format!("must name {name} once")));
        }
        if order.len() == MAX_ORDER_KEYS {
            return Err(wrong(format!("must have at most {MAX_ORDER_KEYS} fields")));
        }
        order.push(Order { field, desc });
    }
    let last = fields.iter().find(|field| field.last && !order.iter().any(|o| o.field == *field));
    let desc = order.last().is_some_and(|order| order.desc);
    order.extend(last.map(|field| Order { field, desc }));
    Ok(order)
}

/// The field that a path's first key names, or what to tell the caller.
pub(super) fn field(
    fields: &'static [Field],
    name: &str,
) -> std::result::Result<&'static Field, String> {
    Field::find(fields, name)
        .ok_or_else(|| format!("must not name {name:?}: the fields are {}", names(fields.iter())))
}

/// A protobuf time, if it is well-formed; whether its year can be stored is checked by whoever takes it.
pub(super) fn time(time: &prost_types::Timestamp) -> Option<SystemTime> {
    if !(0..=MAX_NANOS).contains(&time.nanos) {
        return None;
    }
    SystemTime::try_from(*time).ok()
}

fn names<'a>(fields: impl Iterator<Item = &'a Field>) -> String {
    let names: Vec<_> = fields
        .map(|field| match field.kind {
            FieldKind::Labels | FieldKind::Json => format!("{}.<key>", field.name),
            _ => field.name.to_owned(),
        })
        .collect();
    names.join(", ")
}

fn fault(at: &str, description: impl Into<String>) -> Error {
    Error::invalid_because(Reason::FilterInvalid, at, description)
}

/// Reads the tree form.
struct Tree {
    fields: &'static [Field],
}

impl Tree {
    /// The decoder bounds the recursion.
    fn filter(&self, filter: pb::Filter, at: &str) -> Result<Filter> {
        use pb::filter::Expr;
        Ok(match filter.expr {
            None => return Err(fault(at, "must have all_of, any_of, none_of or field")),
            Some(Expr::AllOf(list)) => Filter::All(self.list(list, &format!("{at}.all_of"))?),
            Some(Expr::AnyOf(list)) => Filter::Any(self.list(list, &format!("{at}.any_of"))?),
            Some(Expr::NoneOf(inner)) => {
                Filter::Not(Box::new(self.filter(*inner, &format!("{at}.none_of"))?))
            }
            Some(Expr::Field(condition)) => {
                let condition = self.condition(condition);
                Filter::Field(condition.map_err(|error| error.under(&format!("{at}.field")))?)
            }
        })
    }

    fn list(&self, list: pb::FilterList, at: &str) -> Result<Vec<Filter>> {
        // No condition at all would select everything or nothing, and is nobody's intention.
        if list.filters.is_empty() {
            return Err(fault(at, "must not be empty"));
        }
        let parts = list.filters.into_iter().enumerate();
        parts.map(|(i, part)| self.filter(part, &format!("{at}[{i}]"))).collect()
    }

    fn condition(&self, condition: pb::FieldCondition) -> Result<Condition> {
        use pb::field_condition::Op as Wire;
        let (name, keys) = match condition.path.split_once('.') {
            Some((name, keys)) => (name, Some(keys)),
            None => (condition.path.as_str(), None),
        };
        let field = field(self.fields, name).map_err(|wrong| fault("path", wrong))?;
        let keys = match (keys, field.kind) {
            (None, _) => Vec::new(),
            // A label's key may have dots.
            (Some(key), FieldKind::Labels) => vec![key.to_owned()],
            (Some(keys), _) => keys.split('.').map(str::to_owned).collect(),
        };
        let op = match condition.op {
            None => return Err(fault("op", "must be set, such as equals")),
            Some(Wire::Equals(value)) => Op::Equals(self.value(value, "equals")?),
            Some(Wire::NotEquals(value)) => Op::NotEquals(self.value(value, "not_equals")?),
            Some(Wire::Range(range)) => {
                let bound = |value: Option<pb::Value>, part| {
                    value.map(|value| self.value(value, part)).transpose()
                };
                Op::Range {
                    gt: bound(range.gt, "range.gt")?,
                    gte: bound(range.gte, "range.gte")?,
                    lt: bound(range.lt, "range.lt")?,
                    lte: bound(range.lte, "range.lte")?,
                }
            }
            Some(Wire::In(list)) => Op::In(self.values(list, "in")?),
            Some(Wire::NotIn(list)) => Op::NotIn(self.values(list, "not_in")?),
            Some(Wire::ContainsAny(list)) => Op::ContainsAny(self.values(list, "contains_any")?),
            Some(Wire::ContainsAll(list)) => Op::ContainsAll(self.values(list, "contains_all")?),
            Some(Wire::Prefix(prefix)) => Op::Prefix(prefix),
            Some(Wire::Exists(wanted)) => Op::Exists(wanted),
        };
        Condition::new(field, keys, op)
    }

    fn value(&self, value: pb::Value, part: &str) -> Result<Value> {
        use pb::value::Kind;
        Ok(match value.kind {
            None => return Err(fault(part, "must have a value")),
            Some(Kind::StringValue(text)) => Value::Text(text),
            Some(Kind::IntValue(number)) => Value::Int(number),
            Some(Kind::DoubleValue(number)) => Value::Float(number),
            Some(Kind::BoolValue(value)) => Value::Bool(value),
            Some(Kind::TimestampValue(value)) => {
                Value::Time(time(&value).ok_or_else(|| fault(part, "must be a valid time"))?)
            }
        })
    }

    fn values(&self, list: pb::ValueList, part: &str) -> Result<Vec<Value>> {
        let values = list.values.into_iter().enumerate();
        values.map(|(i, value)| self.value(value, &format!("{part}[{i}]"))).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::store::filter::Params;
    use FieldKind::*;
    use pb::field_condition::Op as Wire;
    use pb::filter::Expr;
    use pb::value::Kind;

    pub static FIELDS: &[Field] = &[
        Field::new("id", "d.id", Text),
        Field::new("final_verdict", "d.final_verdict", Text),
        Field::new("avg_confidence", "d.avg_confidence", Float).nullable(),
        Field::new("priority", "d.priority", Int),
        Field::new("urgent", "d.urgent", Bool),
        Field::new("create_time", "d.create_time", Time),
        Field::new(
            "state",
            "d.state",
            Enum { prefix: "DECISION_STATE_", names: &[("FINAL", 1), ("OVERRIDDEN", 2)] },
        ),
        Field::new("labels", "d.labels", Labels),
        Field::new("metadata", "d.metadata", Json),
    ];

    /// SQL and parameters, for reading.
    pub fn shown(filter: &Filter) -> String {
        let mut params = Params::default();
        let sql = filter.sql(&mut params);
        format!("{sql} {:?}", params.as_sql())
    }

    fn value(kind: Kind) -> pb::Value {
        pb::Value { kind: Some(kind) }
    }

    fn leaf(path: &str, op: Wire) -> pb::Filter {
        let condition = pb::FieldCondition { path: path.into(), op: Some(op) };
        pb::Filter { expr: Some(Expr::Field(condition)) }
    }

    fn tree(filter: pb::Filter) -> Result<Filter> {
        let chosen = pb::Selector { filter: Some(filter), ..Default::default() };
        selector(FIELDS, Some(chosen), "where")
    }

    #[test]
    fn nothing_selects_everything() {
        assert!(selector(FIELDS, None, "where").unwrap().selects_everything());
        let empty = Some(pb::Selector::default());
        assert!(selector(FIELDS, empty, "where").unwrap().selects_everything());
    }

    #[test]
    fn a_tree_is_read() {
        let text = |text: &str| value(Kind::StringValue(text.into()));
        let filters = vec![
            leaf("final_verdict", Wire::Equals(text("DENY"))),
            pb::Filter {
                expr: Some(Expr::NoneOf(Box::new(leaf("labels.a.b/c", Wire::Equals(text("x")))))),
            },
            leaf(
                "avg_confidence",
                Wire::Range(pb::Range {
                    lt: Some(value(Kind::DoubleValue(0.6))),
                    ..Default::default()
                }),
            ),
        ];
        let filter = pb::Filter { expr: Some(Expr::AllOf(pb::FilterList { filters })) };
        assert_eq!(
            shown(&tree(filter).unwrap()),
            concat!(
                "(d.final_verdict = $1::text AND (d.labels @> $2::text::jsonb) IS NOT TRUE",
                " AND (d.avg_confidence < $3::float8)) [\"DENY\", \"{\\\"a.b/c\\\":\\\"x\\\"}\", 0.6]"
            )
        );
    }

    #[test]
    fn errors_name_the_place() {
        let bad = leaf("nope", Wire::Exists(true));
        let list = pb::FilterList { filters: vec![leaf("id", Wire::Exists(true)), bad] };
        let all = pb::Filter { expr: Some(Expr::AllOf(list)) };
        let error = tree(all).unwrap_err();
        assert_eq!(error.reason(), Reason::FilterInvalid);
        assert!(error.to_string().starts_with(
            "where.filter.all_of[1].field.path must not name \"nope\": the fields are id,"
        ));
        let two = vec![value(Kind::IntValue(1)), pb::Value { kind: None }];
        let list = Wire::In(pb::ValueList { values: two });
        assert_eq!(
            tree(leaf("priority", list)).unwrap_err().to_string(),
            "where.filter.field.in[1] must have a value"
        );
        for wrong in [
            pb::Filter { expr: None },
            pb::Filter { expr: Some(Expr::AnyOf(pb::FilterList { filters: vec![] })) },
            leaf(
                "create_time",
                Wire::Equals(value(Kind::TimestampValue(prost_types::Timestamp {
                    seconds: 0,
                    nanos: -1,
                }))),
            ),
            leaf(
                "create_time",
                Wire::Equals(value(Kind::TimestampValue(prost_types::Timestamp {
                    seconds: i64::MAX,
                    nanos: 0,
                }))),
            ),
        ] {
            assert_eq!(tree(wrong).unwrap_err().reason(), Reason::FilterInvalid);
        }
        let both = pb::Selector {
            filter: Some(leaf("id", Wire::Exists(true))),
            expression: "id = 1".into(),
        };
        assert!(selector(FIELDS, Some(both), "where").is_err());
    }

    #[test]
    fn orders_are_read() {
        let read = |text| order(FIELDS, &[("create_time", true)], text);
        let shown = |text| {
            let keys = read(text).unwrap();
            keys.iter().map(|key| (key.field.name, key.desc)).collect::<Vec<_>>()
        };
        assert_eq!(shown(""), [("create_time", true)]);
        assert_eq!(shown(" avg_confidence  desc ,id"), [("avg_confidence", true), ("id", false)]);
        for wrong in [
            "nope",
            "labels",
            "metadata.x",
            "id,",
            "id DESC",
            "id,id desc",
            "id desc desc",
            ",",
            "id, priority, urgent, state",
        ] {
            let error = read(wrong).unwrap_err();
            assert!(error.to_string().starts_with("page.order_by must"), "{wrong}: {error}");
        }
    }
}
