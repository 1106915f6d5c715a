//! Draws selectors that mean nothing: one fault somewhere in a sound tree, or an expression with a slip.

use super::draw::{Dice, Draw, TIMES, timestamp, value};
use super::model::{Noun, Row, Tree, Type};
use super::text::text;
use casebook::pb;
use pb::field_condition::Op;
use pb::filter::Expr;
use pb::value::Kind;
use prost_types::Timestamp;
use std::sync::Arc;

/// How a selector must be answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Answer {
    /// With INVALID_ARGUMENT and this reason.
    Refused(&'static str),
    /// It may happen to mean something; otherwise it is refused as a filter.
    RefusedOrRead,
}

const INVALID: Answer = Answer::Refused("FILTER_INVALID");

pub fn selector(dice: &mut Dice, noun: &'static Noun, rows: &[Arc<Row>]) -> (pb::Selector, Answer) {
    let mut draw = Draw { dice, noun, rows };
    let tree = draw.tree();
    match draw.dice.below(10) {
        0..=2 => {
            let sound = loop {
                let tree = draw.tree();
                if let Some(text) = text(&tree, noun, draw.dice) {
                    break text;
                }
            };
            let expression = slip(&sound, draw.dice);
            (pb::Selector { expression, filter: None }, Answer::RefusedOrRead)
        }
        3 => {
            let filter = Some(draw.too_much());
            (pb::Selector { filter, ..Default::default() }, INVALID)
        }
        4 if tree.wire(noun).is_some() => {
            let name = noun.fields[0].0;
            let expression = format!("{name}:*");
            (pb::Selector { filter: tree.wire(noun), expression }, INVALID)
        }
        _ => {
            let (mut filter, answer) = draw.fault();
            // Somewhere below, so that no place is passed over.
            for _ in 0..draw.dice.below(7) {
                filter = draw.around(filter);
            }
            (pb::Selector { filter: Some(filter), ..Default::default() }, answer)
        }
    }
}

fn filter(expr: Expr) -> pb::Filter {
    pb::Filter { expr: Some(expr) }
}

fn on(path: &str, op: Op) -> pb::Filter {
    filter(Expr::Field(pb::FieldCondition { path: path.to_owned(), op: Some(op) }))
}

/// An expression with a part taken out, put in or doubled.
fn slip(sound: &str, dice: &mut Dice) -> String {
    const PARTS: &[&str] = &[
        "(", ")", "\"", "'", "\\", "*", "=", "!", "<", ":", ".", ",", "-", " ", " AND ", " OR ",
        "NOT ", "and", "\0", "é", "x()", "1e999", "= =",
    ];
    let mut chars: Vec<char> = sound.chars().collect();
    for _ in 0..1 + dice.below(2) {
        let place = dice.below(chars.len() + 1);
        let end = (place + dice.below(4)).min(chars.len());
        match dice.below(3) {
            0 => drop(chars.drain(place..end)),
            1 => {
                let part: Vec<_> = dice.word(PARTS).chars().collect();
                drop(chars.splice(place..place, part));
            }
            _ => {
                let part = chars[place..end].to_vec();
                drop(chars.splice(place..place, part));
            }
        }
    }
    chars.into_iter().collect()
}

impl Draw<'_> {
    /// The same filter beside or below others.
    fn around(&mut self, inner: pb::Filter) -> pb::Filter {
        let mut filters = vec![inner];
        if self.dice.chance(50) {
            filters.extend(Tree::Is(self.leaf(&mut 100)).wire(self.noun));
        }
        if self.dice.chance(50) {
            filters.reverse();
        }
        let list = pb::FilterList { filters };
        match self.dice.below(3) {
            0 => filter(Expr::AllOf(list)),
            1 => filter(Expr::AnyOf(list)),
            _ => filter(Expr::NoneOf(Box::new(filter(Expr::AllOf(list))))),
        }
    }

    /// One more than there may be of levels, nodes or values.
    fn too_much(&mut self) -> pb::Filter {
        let name = self.noun.fields[0].0;
        let leaf = || on(name, Op::Exists(true));
        match self.dice.below(3) {
            0 => (1..9).fold(leaf(), |inner, _| filter(Expr::NoneOf(Box::new(inner)))),
            1 => filter(Expr::AllOf(pb::FilterList { filters: (0..64).map(|_| leaf()).collect() })),
            _ => {
                let filters = [500, 501].map(|n| {
                    let values = (0..n).map(|_| self.value(0, &[])).collect();
                    on(name, Op::In(pb::ValueList { values }))
                });
                filter(Expr::AnyOf(pb::FilterList { filters: filters.into() }))
            }
        }
    }

    fn fault(&mut self) -> (pb::Filter, Answer) {
        let field = self.dice.below(self.noun.fields.len());
        let (name, of) = self.noun.fields[field];
        let path = if of.has_keys() { format!("{name}.a") } else { name.to_owned() };
        let path = path.as_str();
        let words = Kind::StringValue("a".into());
        let fault = match self.dice.below(12) {
            0 => {
                let paths = [
                    "nope",
                    "",
                    ".",
                    "ID",
                    "id ",
                    "labels",
                    "metadata",
                    "uid",
                    "tenant_id",
                    "d.id",
                ];
                on(self.dice.word(&paths), Op::Exists(true))
            }
            1 if of == Type::Labels => on("labels.", Op::Exists(true)),
            1 if of == Type::Json => {
                let long = format!("metadata.{}", "k".repeat(1025));
                let paths =
                    ["metadata.", "metadata.a..b", ".a", "metadata.1.2.3.4.5.6.7.8.9", &long];
                on(self.dice.word(&paths), Op::Exists(false))
            }
            1 => on(&format!("{name}.a"), Op::Exists(true)),
            2 => on(path, Op::Range(pb::Range::default())),
            3 if !of.has_order() => {
                let bound = Some(self.value(field, &[]));
                on(path, Op::Range(pb::Range { gte: bound, ..Default::default() }))
            }
            3 if of == Type::Json => {
                let (one, other) = match self.dice.below(3) {
                    0 => (words, Kind::IntValue(1)),
                    1 => (Kind::BoolValue(true), Kind::BoolValue(true)),
                    _ => (Kind::DoubleValue(0.5), Kind::TimestampValue(timestamp(0, 0))),
                };
                let (gt, lte) = (Some(value(one)), Some(value(other)));
                on(path, Op::Range(pb::Range { gt, lte, ..Default::default() }))
            }
            4 if !of.has_prefixes() => on(path, Op::Prefix("a".into())),
            5 => filter(Expr::Field(pb::FieldCondition { path: path.to_owned(), op: None })),
            6 => match self.dice.below(3) {
                0 => pb::Filter { expr: None },
                1 => filter(Expr::AllOf(pb::FilterList::default())),
                _ => filter(Expr::AnyOf(pb::FilterList::default())),
            },
            7 => {
                let op = self.with(of, pb::Value { kind: None });
                on(path, op)
            }
            8 if of.has_prefixes() => {
                let nul = Answer::Refused("NUL_BYTE");
                let op = match self.dice.below(2) {
                    0 => Op::Prefix("a\0".into()),
                    _ => self.with(of, value(Kind::StringValue("\0".into()))),
                };
                return (on(path, op), nul);
            }
            9 if of.has_prefixes() => {
                let long = "é".repeat(513);
                let op = match self.dice.below(2) {
                    0 => Op::Prefix(long),
                    _ => self.with(of, value(Kind::StringValue(long))),
                };
                on(path, op)
            }
            _ => {
                let wrong = self.misfit(of);
                let op = self.with(of, value(wrong));
                on(path, op)
            }
        };
        (fault, INVALID)
    }

    /// A condition with this value in it.
    fn with(&mut self, of: Type, value: pb::Value) -> Op {
        match self.dice.below(5) {
            0 => Op::Equals(value),
            1 => Op::NotEquals(value),
            2 => Op::In(pb::ValueList { values: vec![value] }),
            3 if of.has_order() => Op::Range(pb::Range { lt: Some(value), ..Default::default() }),
            _ => Op::NotIn(pb::ValueList { values: vec![value] }),
        }
    }

    /// A value that a field of this type does not take.
    fn misfit(&mut self, of: Type) -> Kind {
        let word = || Kind::StringValue("a".into());
        let (int, yes) = (Kind::IntValue(1), Kind::BoolValue(true));
        let then = Kind::TimestampValue(timestamp(0, 0));
        let infinite = *self.dice.pick(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY]);
        let all = match of {
            Type::Text | Type::Labels => vec![int, yes, then, Kind::DoubleValue(0.5)],
            Type::Int => {
                let odd = [0.5, 1e300, infinite].map(Kind::DoubleValue);
                [word(), yes, then].into_iter().chain(odd).collect()
            }
            Type::Float => {
                let large = Kind::IntValue((1 << 53) + 1);
                vec![word(), yes, then, large, Kind::DoubleValue(infinite)]
            }
            Type::Bool => vec![word(), int, then, Kind::StringValue("true".into())],
            Type::Time => {
                let [first, last] = TIMES.map(|time| timestamp(time, 0).seconds);
                let mut all =
                    vec![word(), int, yes, Kind::StringValue("2024-01-01T00:00:00Z".into())];
                for (seconds, nanos) in [
                    (first - 1, 0),
                    (last + 1, 0),
                    (0, -1),
                    (0, 1_000_000_000),
                    (i64::MAX, 0),
                    (i64::MIN, 0),
                ] {
                    all.push(Kind::TimestampValue(Timestamp { seconds, nanos }));
                }
                all
            }
            Type::Enum => {
                let names =
                    ["", "final", "UNSPECIFIED", "DECISION_STATE_", "DECISION_STATE_UNSPECIFIED"];
                vec![word(), int, yes, Kind::StringValue(self.dice.word(&names).to_owned())]
            }
            Type::Uuid => vec![word(), int, Kind::StringValue(String::new())],
            Type::Json => vec![then, Kind::DoubleValue(infinite)],
        };
        self.dice.pick(&all).clone()
    }
}
