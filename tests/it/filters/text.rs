//! Writes a filter as an expression (AIP-160), in one of the many ways there are.

use super::draw::Dice;
use super::model::{Leaf, Noun, Tree, Type};
use casebook::pb;
use pb::field_condition::Op;
use pb::value::Kind;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

/// What an expression may be used as without parentheses.
#[derive(Clone, Copy, PartialEq)]
enum Binds {
    /// `a = 1`, or anything in parentheses.
    Alone,
    /// `NOT a = 1`
    Not,
    /// `a = 1 OR b = 2`, which binds tighter than AND.
    Or,
    And,
}

struct Piece {
    text: String,
    binds: Binds,
    depth: usize,
    nodes: usize,
}

/// The tree as text; none where no expression says it, or none within the limits.
pub fn text(tree: &Tree, noun: &Noun, dice: &mut Dice) -> Option<String> {
    let piece = write(tree, noun, dice)?;
    // What is one condition in a structure may be several here.
    (piece.depth <= 8 && piece.nodes <= 64 && piece.text.len() <= 16 << 10).then_some(piece.text)
}

fn write(tree: &Tree, noun: &Noun, dice: &mut Dice) -> Option<Piece> {
    match tree {
        Tree::All(parts) => {
            let parts = parts.iter().map(|part| write(part, noun, dice)).collect::<Option<_>>()?;
            Some(all(parts, dice))
        }
        Tree::Any(parts) => {
            let parts = parts.iter().map(|part| write(part, noun, dice)).collect::<Option<_>>()?;
            Some(any(parts, dice))
        }
        Tree::Not(inner) => {
            if let Tree::Is(Leaf { field, keys, op: Op::Prefix(prefix) }) = &**inner
                && !prefix.is_empty()
                && dice.chance(30)
            {
                let path = path(noun, *field, keys, dice);
                return Some(alone(format!("{path} != {}", starred(prefix, dice)), 2));
            }
            let inner = write(inner, noun, dice)?;
            let inner = if inner.binds == Binds::Alone { inner } else { grouped(inner) };
            let Piece { text, depth, nodes, .. } = inner;
            let not = dice.word(&["NOT ", "-"]);
            let text = format!("{not}{text}");
            Some(Piece { text, binds: Binds::Not, depth: depth + 1, nodes: nodes + 1 })
        }
        Tree::Is(leaf) => condition(leaf, noun, dice),
    }
}

fn alone(text: String, nodes: usize) -> Piece {
    Piece { text, binds: Binds::Alone, depth: nodes, nodes }
}

fn grouped(piece: Piece) -> Piece {
    Piece { text: format!("({})", piece.text), binds: Binds::Alone, ..piece }
}

fn joined(parts: Vec<Piece>, binds: Binds, mut with: impl FnMut() -> &'static str) -> Piece {
    let depth = 1 + parts.iter().map(|part| part.depth).max().unwrap_or(0);
    let nodes = 1 + parts.iter().map(|part| part.nodes).sum::<usize>();
    let mut text = String::new();
    for part in parts {
        if !text.is_empty() {
            text.push_str(with());
        }
        text.push_str(&part.text);
    }
    Piece { text, binds, depth, nodes }
}

fn all(mut parts: Vec<Piece>, dice: &mut Dice) -> Piece {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let parts = parts.into_iter().map(|part| match part.binds {
        Binds::And => grouped(part),
        _ if dice.chance(15) => grouped(part),
        _ => part,
    });
    let parts: Vec<_> = parts.collect();
    joined(parts, Binds::And, || dice.word(&[" AND ", " ", "  AND\n", "\t"]))
}

fn any(mut parts: Vec<Piece>, dice: &mut Dice) -> Piece {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let parts = parts.into_iter().map(|part| match part.binds {
        Binds::And | Binds::Or => grouped(part),
        _ if dice.chance(15) => grouped(part),
        _ => part,
    });
    joined(parts.collect(), Binds::Or, || " OR ")
}

fn condition(leaf: &Leaf, noun: &Noun, dice: &mut Dice) -> Option<Piece> {
    let Leaf { field, keys, op } = leaf;
    let of = noun.fields[*field].1;
    let path = path(noun, *field, keys, dice);
    let equals = dice.word(&["=", "=", ":"]);
    let mut is = |sign: &str, value: &pb::Value| {
        let space = if dice.chance(70) { " " } else { "" };
        Some(alone(format!("{path}{space}{sign}{space}{}", literal(of, value, dice)?), 1))
    };
    match op {
        Op::Equals(value) => is(equals, value),
        Op::NotEquals(value) => is("!=", value),
        Op::In(list) | Op::NotIn(list) => {
            let is_in = matches!(op, Op::In(_));
            let sign = if is_in { equals } else { "!=" };
            let parts: Vec<_> =
                list.values.iter().map(|value| is(sign, value)).collect::<Option<_>>()?;
            match parts.len() {
                0 => None,
                _ if is_in => Some(any(parts, dice)),
                _ => Some(all(parts, dice)),
            }
        }
        Op::Range(pb::Range { gt, gte, lt, lte }) => {
            let bounds = [(">", gt), (">=", gte), ("<", lt), ("<=", lte)];
            let bounds =
                bounds.into_iter().filter_map(|(sign, bound)| Some((sign, bound.as_ref()?)));
            let parts = bounds.map(|(sign, bound)| is(sign, bound)).collect::<Option<_>>()?;
            Some(all(parts, dice))
        }
        Op::Prefix(prefix) if prefix.is_empty() => None,
        Op::Prefix(prefix) => {
            let sign = dice.word(&["=", ":"]);
            Some(alone(format!("{path} {sign} {}", starred(prefix, dice)), 1))
        }
        Op::Exists(true) => {
            if of.has_keys() && keys.len() == 1 && dice.chance(50) {
                let name = noun.fields[*field].0;
                return Some(alone(format!("{name}:{}", quoted(&keys[0], dice)), 1));
            }
            let how = dice.word(&[":*", " = *", " : \"*\""]);
            Some(alone(format!("{path}{how}"), 1))
        }
        Op::Exists(false) => Some(alone(format!("{path} != *"), 1)),
        Op::ContainsAny(_) | Op::ContainsAll(_) => None,
    }
}

fn path(noun: &Noun, field: usize, keys: &[String], dice: &mut Dice) -> String {
    let (name, of) = noun.fields[field];
    let mut path = name.to_owned();
    for key in keys {
        path.push('.');
        let is_plain = |key: &str| {
            !key.is_empty()
                && !key.contains(|c: char| c.is_whitespace() || ".():=<>!\"',".contains(c))
        };
        // A label's key is one, with dots or without.
        let bare = match of {
            Type::Labels => key.split('.').all(is_plain),
            _ => is_plain(key),
        };
        if bare && dice.chance(60) {
            path.push_str(key);
        } else {
            path.push_str(&quoted(key, dice));
        }
    }
    path
}

/// A text in quotes, in which a star is a star.
fn quoted(text: &str, dice: &mut Dice) -> String {
    let quote = *dice.pick(&['"', '\'']);
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str(dice.word(&["\n", "\\n"])),
            '\t' => out.push_str(dice.word(&["\t", "\\t"])),
            '\\' | '*' => out.extend(['\\', c]),
            '"' | '\'' if c == quote || dice.chance(50) => out.extend(['\\', c]),
            _ => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// The text of a prefix: `"abc*"`.
fn starred(prefix: &str, dice: &mut Dice) -> String {
    let mut text = quoted(prefix, dice);
    text.insert(text.len() - 1, '*');
    text
}

fn literal(of: Type, value: &pb::Value, dice: &mut Dice) -> Option<String> {
    Some(match value.kind.as_ref()? {
        Kind::StringValue(text) => {
            let bare = match of {
                // Without quotes it might be a number or a boolean.
                Type::Json => {
                    text.chars().all(char::is_alphabetic)
                        && !["true", "false"].contains(&text.as_str())
                }
                _ => !text.contains(|c: char| c.is_whitespace() || "()\"',=<>!\\*".contains(c)),
            };
            if bare && !text.is_empty() && dice.chance(60) {
                text.clone()
            } else {
                quoted(text, dice)
            }
        }
        Kind::IntValue(number) => number.to_string(),
        Kind::DoubleValue(number) if of == Type::Int => (*number as i64).to_string(),
        Kind::DoubleValue(number) => format!("{number:?}"),
        Kind::BoolValue(value) => value.to_string(),
        Kind::TimestampValue(time) => {
            let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
            let mut time = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()?;
            if (2..9999).contains(&time.year()) && dice.chance(30) {
                let (hours, minutes) = *dice.pick(&[(1, 0), (-11, -30), (5, 45)]);
                time = time.to_offset(UtcOffset::from_hms(hours, minutes, 0).ok()?);
            }
            let text = time.format(&Rfc3339).ok()?;
            if dice.chance(50) { text } else { quoted(&text, dice) }
        }
    })
}
