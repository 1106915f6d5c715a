//! Checking and compiling conditions, without a database.

use super::*;
use FieldKind::*;

static FIELDS: &[Field] = &[
    Field::new("verdict", "d.verdict", Text),
    Field::new("note", "d.note", Text).nullable(),
    Field::new("priority", "d.priority", Int),
    Field::new("score", "d.score", Float).nullable(),
    Field::new("urgent", "d.urgent", Bool),
    Field::new("create_time", "d.create_time", Time),
    Field::new(
        "state",
        "d.state",
        Enum { prefix: "DECISION_STATE_", names: &[("FINAL", 1), ("OVERRIDDEN", 2)] },
    ),
    Field::new("uid", "d.uid", Uuid),
    Field::new("labels", "d.labels", Labels),
    Field::new("metadata", "d.metadata", Json),
];

fn condition(path: &str, op: Op) -> Result<Filter> {
    let mut keys = path.split('.').map(str::to_owned);
    let field = Field::find(FIELDS, &keys.next().unwrap()).unwrap();
    Ok(Filter::Field(Condition::new(field, keys.collect(), op)?))
}

fn text(value: &str) -> Value {
    Value::Text(value.into())
}

fn range(gte: Value, lt: Value) -> Op {
    Op::Range { gt: None, gte: Some(gte), lt: Some(lt), lte: None }
}

fn sql(filter: &Filter) -> (String, String) {
    let mut params = Params::default();
    let sql = filter.sql(&mut params);
    (sql, format!("{:?}", params.as_sql()))
}

fn compiled(path: &str, op: Op) -> (String, String) {
    sql(&condition(path, op).unwrap())
}

fn refused(path: &str, op: Op) -> (String, String) {
    match condition(path, op).unwrap_err() {
        Error::Invalid { reason: Reason::FilterInvalid | Reason::NulByte, mut violations } => {
            let violation = violations.pop().unwrap();
            (violation.field, violation.description)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn values_go_to_parameters() {
    for (path, op, want, params) in [
        ("verdict", Op::Equals(text("x'y")), "d.verdict = $1::text", r#"["x'y"]"#),
        ("verdict", Op::NotEquals(text("a")), "d.verdict IS DISTINCT FROM $1::text", r#"["a"]"#),
        ("score", Op::Equals(Value::Int(1)), "d.score = $1::float8", "[1.0]"),
        ("priority", Op::Equals(Value::Float(3.0)), "d.priority = $1::int8", "[3]"),
        (
            "state",
            Op::In(vec![text("FINAL"), text("DECISION_STATE_OVERRIDDEN")]),
            "d.state = ANY($1::int2[])",
            "[[1, 2]]",
        ),
        (
            "verdict",
            Op::NotIn(vec![text("a")]),
            "(d.verdict = ANY($1::text[])) IS NOT TRUE",
            r#"[["a"]]"#,
        ),
        (
            "verdict",
            Op::Prefix("a%".into()),
            r#"(d.verdict COLLATE "C" >= $1::text AND d.verdict COLLATE "C" < $2::text)"#,
            r#"["a%", "a&"]"#,
        ),
        ("verdict", Op::Exists(false), "d.verdict = ''", "[]"),
        ("note", Op::Exists(false), "(d.note <> '') IS NOT TRUE", "[]"),
        ("score", Op::Exists(true), "d.score IS NOT NULL", "[]"),
        (
            "score",
            range(Value::Float(0.5), Value::Int(1)),
            "(d.score >= $1::float8 AND d.score < $2::float8)",
            "[0.5, 1.0]",
        ),
        ("labels.k", Op::Equals(text("v")), "d.labels @> $1::text::jsonb", r#"["{\"k\":\"v\"}"]"#),
        (
            "metadata.a.b",
            Op::NotEquals(Value::Float(1e300)),
            "(d.metadata @> $1::text::jsonb) IS NOT TRUE",
            r#"["{\"a\":{\"b\":1e300}}"]"#,
        ),
        (
            "metadata.a\"b",
            range(Value::Int(-1), Value::Float(0.5)),
            "d.metadata @? $1::text::jsonpath",
            r#"["strict $.\"a\\\"b\" ? (@ >= -1 && @ < 0.5)"]"#,
        ),
        ("metadata.a", Op::In(vec![]), "FALSE", "[]"),
    ] {
        assert_eq!(compiled(path, op), (want.into(), params.into()), "{path}");
    }
}

#[test]
fn an_upper_bound_on_text_does_not_select_the_absent() {
    let below = Op::Range { gt: None, gte: None, lt: Some(text("b")), lte: None };
    let (sql, _) = compiled("verdict", below);
    assert_eq!(sql, r#"(d.verdict COLLATE "C" < $1::text AND d.verdict <> '')"#);
}

#[test]
fn a_negation_is_never_unknown() {
    let inner = condition("score", Op::Equals(Value::Int(1))).unwrap();
    let both = Filter::Any(vec![inner.clone(), Filter::Not(Box::new(inner))]);
    assert_eq!(
        sql(&both).0,
        "(d.score = $1::float8 OR (d.score = $2::float8) IS NOT TRUE)".to_owned()
    );
    assert_eq!(sql(&Filter::default()).0, "TRUE");
    assert_eq!(sql(&Filter::Any(vec![])).0, "FALSE");
}

#[test]
fn what_does_not_fit_the_field_is_refused() {
    let time = Value::Time(SystemTime::now());
    let nan = Value::Float(f64::NAN);
    for (path, op, part) in [
        ("verdict", Op::Equals(Value::Int(1)), "equals"),
        ("verdict", Op::Equals(text("a\0")), "equals"),
        ("verdict", Op::Equals(text(&"x".repeat(1025))), "equals"),
        ("verdict.x", Op::Exists(true), "path"),
        ("score", Op::Equals(nan.clone()), "equals"),
        ("metadata.x", Op::NotEquals(nan), "not_equals"),
        ("metadata.x", Op::Equals(time), "equals"),
        ("score", Op::Equals(Value::Int(EXACT_INT + 1)), "equals"),
        ("priority", Op::Equals(Value::Float(0.5)), "equals"),
        ("score", Op::In(vec![Value::Int(1), text("1")]), "in[1]"),
        ("state", Op::Equals(text("X_FINAL")), "equals"),
        ("state", range(text("FINAL"), text("FINAL")), "range"),
        ("uid", Op::Equals(text("7")), "equals"),
        ("uid", Op::Prefix("7".into()), "prefix"),
        ("labels", Op::Exists(true), "path"),
        ("labels.a.b", Op::Exists(true), "path"),
        ("labels.a", Op::Equals(Value::Bool(true)), "equals"),
        ("metadata.a..b", Op::Exists(true), "path"),
        ("metadata.1.2.3.4.5.6.7.8.9", Op::Exists(true), "path"),
        ("metadata.a\0", Op::Exists(true), "path"),
        ("metadata.a", range(text("a"), Value::Int(1)), "range"),
        ("metadata.a", range(Value::Bool(true), Value::Bool(true)), "range"),
        ("score", Op::Range { gt: None, gte: None, lt: None, lte: None }, "range"),
        ("score", Op::In(vec![Value::Int(1); 1001]), "in"),
        (
            "create_time",
            Op::Equals(Value::Time(UNIX_EPOCH + Duration::from_secs(1 << 40))),
            "equals",
        ),
    ] {
        let shown = format!("{path} {op:?}");
        assert_eq!(refused(path, op).0, part, "{shown}");
    }
}

#[test]
fn the_tree_is_limited() {
    let leaf = condition("urgent", Op::Equals(Value::Bool(true))).unwrap();
    let mut deep = leaf.clone();
    for _ in 1..MAX_DEPTH {
        deep = Filter::Not(Box::new(deep));
    }
    let deep = deep.within_limits("where.filter").unwrap();
    assert!(Filter::Not(Box::new(deep)).within_limits("where.filter").is_err());
    let wide = Filter::All(vec![leaf.clone(); MAX_NODES - 1]);
    assert!(wide.within_limits("where.filter").is_ok());
    let wide = Filter::All(vec![leaf; MAX_NODES]);
    let error = wide.within_limits("where.filter").unwrap_err().to_string();
    assert_eq!(error, "where.filter must have at most 64 nodes, not 65");
    let many = condition("priority", Op::In(vec![Value::Int(1); 501])).unwrap();
    assert!(Filter::Any(vec![many.clone(), many]).within_limits("where.filter").is_err());
}

#[test]
fn the_successor_bounds_every_text_with_the_prefix() {
    assert_eq!(successor("a").as_deref(), Some("b"));
    assert_eq!(successor("a\u{10FFFF}").as_deref(), Some("b"));
    assert_eq!(successor("\u{D7FF}").as_deref(), Some("\u{E000}"));
    assert_eq!(successor("é").as_deref(), Some("ê"));
    assert_eq!(successor("\u{7F}").as_deref(), Some("\u{80}"));
    assert_eq!(successor("\u{10FFFF}"), None);
    assert_eq!(successor(""), None);
}

#[test]
fn times_are_cut_to_microseconds() {
    let after = UNIX_EPOCH + Duration::from_nanos(1_999);
    assert_eq!(whole_micros(after), Some(UNIX_EPOCH + Duration::from_micros(1)));
    let before = UNIX_EPOCH - Duration::from_nanos(1_001);
    assert_eq!(whole_micros(before), Some(UNIX_EPOCH - Duration::from_micros(2)));
}
