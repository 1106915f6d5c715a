//! What expressions mean, in SQL, and what is said about those that mean nothing.

use super::*;
use crate::rpc::filter::tests::{FIELDS, shown};
use proptest::prelude::*;

fn sql(text: &str) -> String {
    shown(&parse(FIELDS, text, "where.expression").unwrap_or_else(|e| panic!("{text}: {e}")))
}

fn same(one: &str, other: &str) {
    assert_eq!(sql(one), sql(other), "{one} | {other}");
}

fn error(text: &str) -> String {
    let error = parse(FIELDS, text, "where.expression").unwrap_err();
    assert!(matches!(error.reason(), Reason::FilterInvalid | Reason::NulByte));
    let text = error.to_string();
    text.strip_prefix("where.expression is wrong at column ").unwrap_or(&text).to_owned()
}

#[test]
fn literals_follow_the_field() {
    for (text, want) in [
        ("final_verdict = \"DENY\"", r#"d.final_verdict = $1::text ["DENY"]"#),
        ("final_verdict=DENY", r#"d.final_verdict = $1::text ["DENY"]"#),
        (
            "final_verdict = 'it\\'s \"x\" \\\\ \\*'",
            r#"d.final_verdict = $1::text ["it's \"x\" \\ *"]"#,
        ),
        ("final_verdict = 5", r#"d.final_verdict = $1::text ["5"]"#),
        ("avg_confidence < 0.6", "(d.avg_confidence < $1::float8) [0.6]"),
        ("avg_confidence >= -1e-3", "(d.avg_confidence >= $1::float8) [-0.001]"),
        ("priority != 3", "d.priority IS DISTINCT FROM $1::int8 [3]"),
        ("urgent = true", "d.urgent = $1::bool [true]"),
        ("state = OVERRIDDEN", "d.state = $1::int2 [2]"),
        ("state != \"DECISION_STATE_FINAL\"", "d.state IS DISTINCT FROM $1::int2 [1]"),
        ("labels.env:\"prod\"", r#"d.labels @> $1::text::jsonb ["{\"env\":\"prod\"}"]"#),
        ("labels.env = prod", r#"d.labels @> $1::text::jsonb ["{\"env\":\"prod\"}"]"#),
        ("labels.a.b/c-d = x", r#"d.labels @> $1::text::jsonb ["{\"a.b/c-d\":\"x\"}"]"#),
        ("labels.x:*", r#"d.labels @? $1::text::jsonpath ["strict $.\"x\""]"#),
        ("labels:x", r#"d.labels @? $1::text::jsonpath ["strict $.\"x\""]"#),
        ("metadata.a.\"b.c\" = 5", r#"d.metadata @> $1::text::jsonb ["{\"a\":{\"b.c\":5}}"]"#),
        ("metadata.a = \"5\"", r#"d.metadata @> $1::text::jsonb ["{\"a\":\"5\"}"]"#),
        ("metadata.a = true", r#"d.metadata @> $1::text::jsonb ["{\"a\":true}"]"#),
        ("metadata.a = nan", r#"d.metadata @> $1::text::jsonb ["{\"a\":\"nan\"}"]"#),
        ("metadata.a > 1.5", r#"d.metadata @? $1::text::jsonpath ["strict $.\"a\" ? (@ > 1.5)"]"#),
        ("avg_confidence:*", "d.avg_confidence IS NOT NULL []"),
        ("avg_confidence != *", "d.avg_confidence IS NULL []"),
        (
            "id = \"a*\"",
            r#"(d.id COLLATE "C" >= $1::text AND d.id COLLATE "C" < $2::text) ["a", "b"]"#,
        ),
        ("id = \"a\\*\"", r#"d.id = $1::text ["a*"]"#),
        (
            "NOT id = \"a*\"",
            r#"((d.id COLLATE "C" >= $1::text AND d.id COLLATE "C" < $2::text)) IS NOT TRUE ["a", "b"]"#,
        ),
        ("   ", "TRUE []"),
    ] {
        assert_eq!(sql(text), want, "{text}");
    }
    same("create_time > 2026-01-01T00:00:00Z", "create_time > \"2026-01-01T01:00:00+01:00\"");
    same("id != \"a*\"", "NOT id = \"a*\"");
}

#[test]
fn or_binds_tighter_than_and() {
    let (a, b, c) = ("id = a", "priority = 1", "urgent = true");
    same(&format!("{a} AND {b} OR {c}"), &format!("{a} AND ({b} OR {c})"));
    same(&format!("{a} OR {b} AND {c}"), &format!("({a} OR {b}) AND {c}"));
    same(&format!("{a} {b} OR {c}"), &format!("{a} AND ({b} OR {c})"));
    same(&format!("{a} {b} {c}"), &format!("{a} AND {b} AND {c}"));
    same(&format!("NOT {a} OR {b}"), &format!("(NOT {a}) OR {b}"));
    same(&format!("-{a} -({b})"), &format!("NOT {a} AND NOT {b}"));
    same(&format!("(({a}))AND({b})"), &format!("{a} AND {b}"));
    assert_eq!(
        sql("id = a AND priority = 1 OR urgent = true"),
        r#"(d.id = $1::text AND (d.priority = $2::int8 OR d.urgent = $3::bool)) ["a", 1, true]"#
    );
}

#[test]
fn errors_say_where() {
    for (text, want) in [
        ("nope = 1", "1: the path must not name \"nope\": the fields are id,"),
        ("id = é AND nope = 1", "12: the path must not name"),
        ("priority = x", "12: an integer of 64 bits is expected"),
        ("avg_confidence = inf", "18: a number is expected"),
        ("avg_confidence = 1e999", "18: a number is expected"),
        ("urgent = yes", "10: true or false is expected"),
        ("create_time > 2026-01-01", "15: a time like"),
        ("state = NOPE", "9: the value must be one of FINAL, OVERRIDDEN"),
        ("state < FINAL", "1: the range is not taken by state"),
        ("state = \"F*\"", "1: the prefix is not taken by state"),
        ("id = \"*a\"", "6: a star is taken only at the end"),
        ("id = \"a**\"", "6: a star is taken only at the end"),
        ("id = \"a", "6: this quote is not closed"),
        ("id = \"\\q\"", "7: a backslash is taken before"),
        ("id = \"a\"b", "9: 'b' is not expected here"),
        ("id = a,b", "7: ',' is not expected here"),
        ("id == a", "5: a value with such characters needs quotes"),
        ("id =", "5: a value is expected"),
        ("id", "3: one of = != < <= > >= : is expected after id"),
        ("id a", "4: one of"),
        ("(id = a", "1: this parenthesis is not closed"),
        ("id = a)", "7: ')' is not expected here"),
        ("id = a and id = b", "8: write AND in capitals"),
        ("id = a AND", "11: the name of a field is expected"),
        ("AND id = a", "1: a condition is expected"),
        ("id = a AND AND id = b", "12: a condition is expected"),
        ("f(id)", "1: functions are not supported"),
        ("labels = x", "1: the path must name a key"),
        ("labels..x = 1", "8: the name of a field is expected"),
        ("id.x = 1", "1: the path must not go below id"),
        ("id = \"a\0\"", "6: the value must not contain NUL"),
        ("id = a=b", "6: a value with such characters needs quotes"),
    ] {
        let got = error(text);
        assert!(got.starts_with(want), "{text}: {got}");
    }
}

#[test]
fn nesting_and_size_are_limited() {
    assert!(parse(FIELDS, &format!("{}id=a{}", "(".repeat(16), ")".repeat(16)), "e").is_ok());
    assert!(error(&format!("{}id=a", "(".repeat(10_000))).starts_with("17: more than 16"));
    assert!(error(&"id=a ".repeat(64)).starts_with("where.expression must have at most 64 nodes"));
    assert!(error(&" ".repeat(MAX_BYTES + 1)).starts_with("16385: it has more than"));
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in ".{0,60}") {
        let _ = parse(FIELDS, &text, "where.expression");
    }

    #[test]
    fn any_tokens_are_read_or_refused(tokens in prop::collection::vec(
        prop::sample::select(vec![
            "id", "labels", ".", "metadata", "x", "=", "!=", "<", ":", "*", "\"a\"", "'", "AND", "OR",
            "NOT", "-", "(", ")", " ", " ", "5", "é", "\\",
        ]), 0..30)) {
        let _ = parse(FIELDS, &tokens.concat(), "where.expression");
    }

    #[test]
    fn quoted_text_comes_back(text in "[^\0]{0,40}") {
        let escaped: String = text
            .chars()
            .flat_map(|c| ['\\'].into_iter().filter(move |_| "\\\"*".contains(c)).chain([c]))
            .collect();
        let filter = parse(FIELDS, &format!("id = \"{escaped}\""), "e").unwrap();
        prop_assert_eq!(shown(&filter), format!("d.id = $1::text [{text:?}]"));
    }
}
