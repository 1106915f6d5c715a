//! Draws filters, orders and windows from a seed, with values near those that the rows have.

use super::model::{Datum, Leaf, Noun, Order, Row, Tree, Type, at};
use casebook::pb;
use pb::field_condition::Op;
use pb::value::Kind;
use prost_types::Timestamp;
use std::sync::Arc;

/// Texts that break careless quoting, patterns, prefixes and collations.
pub const TEXTS: &[&str] = &[
    "",
    "a",
    "ab",
    "abc",
    "A",
    "b",
    "B",
    "é",
    "e\u{301}",
    "ß",
    "ı",
    "İ",
    "%",
    "_",
    "a%",
    "a_",
    "%a",
    "\\",
    "a\\",
    "\\\\",
    "\\n",
    "'",
    "\"",
    "it's \"q\"",
    "''",
    "*",
    "a*",
    "\\*",
    "a\u{10FFFF}",
    "\u{10FFFF}",
    "\u{D7FF}",
    "\u{E000}",
    "\u{FFFD}",
    "😀",
    "\u{1}",
    "\u{7F}",
    "\u{80}",
    "\n",
    "a\tb",
    " ",
    " a",
    "a ",
    "null",
    "true",
    "false",
    "1",
    "1.0",
    "01",
    "-1",
    "1e3",
    "NaN",
    "inf",
    "AND",
    "OR",
    "NOT",
    "-",
    "(",
    ")",
    ",",
    ".",
    "a.b",
    "$",
    "$1",
    "$.a",
    "?",
    "@",
    "{}",
    "[]",
    "2024-01-01T00:00:00Z",
    "' OR TRUE --",
];

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// One sequence of many that a seed has.
    pub fn new(seed: u64, of: u64) -> Self {
        let mut dice = Self(seed);
        Self(dice.next() ^ Self(of).next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    pub fn word<'a>(&mut self, from: &[&'a str]) -> &'a str {
        self.pick::<&str>(from)
    }

    pub fn text(&mut self) -> String {
        self.word(TEXTS).to_owned()
    }
}

/// What is drawn for one listing.
pub struct Draw<'a> {
    pub dice: &'a mut Dice,
    pub noun: &'static Noun,
    pub rows: &'a [Arc<Row>],
}

pub fn value(kind: Kind) -> pb::Value {
    pb::Value { kind: Some(kind) }
}

pub fn timestamp(micros: i64, nanos: i32) -> Timestamp {
    Timestamp {
        seconds: micros.div_euclid(1_000_000),
        nanos: micros.rem_euclid(1_000_000) as i32 * 1000 + nanos,
    }
}

/// The first and the last microsecond of protobuf's times.
pub const TIMES: [i64; 2] = [-62_135_596_800_000_000, 253_402_300_799_999_999];

impl<'a> Draw<'a> {
    /// A tree within the limits: mostly a few conditions, sometimes as many as there may be.
    pub fn tree(&mut self) -> Tree {
        let (mut nodes, depth) = match self.dice.below(20) {
            0..=6 => (1, 1),
            7..=15 => (6, 4),
            16..=18 => (20, 6),
            _ => (64, 8),
        };
        let mut values = 1000;
        self.part(&mut nodes, depth, &mut values)
    }

    fn part(&mut self, nodes: &mut usize, depth: usize, values: &mut usize) -> Tree {
        *nodes = nodes.saturating_sub(1);
        if depth == 1 || *nodes == 0 || self.dice.chance(15) {
            return Tree::Is(self.leaf(values));
        }
        if self.dice.chance(25) {
            return Tree::Not(Box::new(self.part(nodes, depth - 1, values)));
        }
        let mut parts = Vec::new();
        for _ in 0..1 + self.dice.below(4) {
            if *nodes > 0 {
                parts.push(self.part(nodes, depth - 1, values));
            }
        }
        if self.dice.chance(50) { Tree::All(parts) } else { Tree::Any(parts) }
    }

    pub fn leaf(&mut self, values: &mut usize) -> Leaf {
        // JSON has the most ways to go wrong.
        let from = match self.noun.fields.iter().position(|(_, of)| of.has_keys()) {
            Some(first) if self.dice.chance(35) => first,
            _ => 0,
        };
        let field = from + self.dice.below(self.noun.fields.len() - from);
        let keys = self.keys(field);
        let op = self.op(field, &keys, values);
        Leaf { field, keys, op }
    }

    /// Keys that lead somewhere, most of the time.
    fn keys(&mut self, field: usize) -> Vec<String> {
        const KEYS: &[&str] = &["a", "b", "k", "n", "a.b", "é", "\"", "$", "*", "0", "' OR TRUE"];
        let of = self.noun.fields[field].1;
        let mut keys = Vec::new();
        if !of.has_keys() {
            return keys;
        }
        let most = if of == Type::Json { 8 } else { 1 };
        let mut place = self.some(field);
        while keys.len() < most {
            let members: Vec<_> = match place {
                Datum::Object(members) => {
                    members.iter().filter(|(key, _)| !key.is_empty()).collect()
                }
                _ => Vec::new(),
            };
            if members.is_empty() || self.dice.chance(10) {
                break;
            }
            let (key, inner) = *self.dice.pick(&members);
            keys.push(key.clone());
            place = inner;
            if self.dice.chance(30) {
                break;
            }
        }
        while keys.is_empty() || (keys.len() < most && self.dice.chance(10)) {
            keys.push(self.dice.word(KEYS).to_owned());
        }
        keys
    }

    fn op(&mut self, field: usize, keys: &[String], values: &mut usize) -> Op {
        let of = self.noun.fields[field].1;
        let wanted = self.dice.below(20);
        // Of a list: sometimes nothing, seldom many.
        let most = match self.dice.below(60) {
            0 => 200,
            1..=10 => 0,
            _ => 4,
        };
        if *values == 0 {
            return Op::Exists(self.dice.chance(50));
        }
        *values -= 1;
        match wanted {
            0..=4 => Op::Equals(self.value(field, keys)),
            5..=6 => Op::NotEquals(self.value(field, keys)),
            7..=8 => Op::In(self.list(field, keys, most, values)),
            9..=10 => Op::NotIn(self.list(field, keys, most, values)),
            11..=12 => Op::Exists(self.dice.chance(50)),
            13..=15 if of.has_prefixes() => Op::Prefix(self.prefix(field, keys)),
            _ if of.has_order() => Op::Range(self.range(field, keys, values)),
            _ => Op::Equals(self.value(field, keys)),
        }
    }

    fn list(
        &mut self,
        field: usize,
        keys: &[String],
        most: usize,
        values: &mut usize,
    ) -> pb::ValueList {
        let n = self.dice.below(most + 1).min(*values);
        *values -= n;
        pb::ValueList { values: (0..n).map(|_| self.value(field, keys)).collect() }
    }

    fn range(&mut self, field: usize, keys: &[String], values: &mut usize) -> pb::Range {
        let of = self.noun.fields[field].1;
        let texts = self.dice.chance(50);
        let mut bound = || match of {
            // Text and numbers are not mixed, and nothing else has bounds.
            Type::Json if texts => value(Kind::StringValue(self.near_text(field, keys))),
            Type::Json => value(self.near_number(field, keys)),
            _ => self.value(field, keys),
        };
        let mut range = pb::Range::default();
        let (one, other) = (bound(), bound());
        match self.dice.below(8) {
            0 => range.gt = Some(one),
            1 => range.gte = Some(one),
            2 => range.lt = Some(one),
            3 => range.lte = Some(one),
            n => {
                *values = values.saturating_sub(1);
                *(if n % 2 == 0 { &mut range.gt } else { &mut range.gte }) = Some(one);
                *(if n < 6 { &mut range.lt } else { &mut range.lte }) = Some(other);
            }
        }
        range
    }

    fn prefix(&mut self, field: usize, keys: &[String]) -> String {
        let mut text = self.near_text(field, keys);
        while !text.is_empty() && self.dice.chance(60) {
            text.pop();
        }
        text
    }

    /// What some row has in a field.
    fn some(&mut self, field: usize) -> &'a Datum {
        if self.rows.is_empty() {
            return &Datum::Absent;
        }
        &self.dice.pick(self.rows).values[field]
    }

    /// What some row has at a path: something, most of the time.
    fn datum(&mut self, field: usize, keys: &[String]) -> Datum {
        let mut datum = &Datum::Absent;
        for _ in 0..4 {
            datum = at(self.some(field), keys);
            if *datum != Datum::Absent {
                break;
            }
        }
        match datum {
            // A filter cannot name what is in it.
            Datum::Object(_) => Datum::Other,
            datum => datum.clone(),
        }
    }

    /// A value that the field takes.
    pub fn value(&mut self, field: usize, keys: &[String]) -> pb::Value {
        value(match self.noun.fields[field].1 {
            Type::Text | Type::Labels => Kind::StringValue(self.near_text(field, keys)),
            Type::Int => self.near_int(field),
            Type::Float => self.near_number(field, keys),
            Type::Bool => Kind::BoolValue(self.dice.chance(50)),
            Type::Time => Kind::TimestampValue(self.near_time(field)),
            Type::Enum => {
                let names =
                    ["FINAL", "OVERRIDDEN", "DECISION_STATE_FINAL", "DECISION_STATE_OVERRIDDEN"];
                Kind::StringValue(self.dice.word(&names).to_owned())
            }
            Type::Uuid => Kind::StringValue(self.near_uuid(field)),
            Type::Json => match self.dice.below(10) {
                0 => Kind::BoolValue(self.dice.chance(50)),
                1 => Kind::StringValue(self.near_text(field, keys)),
                2 => self.near_number(field, keys),
                _ => match self.datum(field, keys) {
                    Datum::Bool(there) => Kind::BoolValue(there),
                    Datum::Number(_) => self.near_number(field, keys),
                    Datum::Text(_) => Kind::StringValue(self.near_text(field, keys)),
                    _ => Kind::StringValue(self.dice.text()),
                },
            },
        })
    }

    fn near_text(&mut self, field: usize, keys: &[String]) -> String {
        let there = match self.datum(field, keys) {
            Datum::Text(there) if self.dice.chance(80) => there,
            Datum::Number(there) => there.to_string(),
            Datum::Bool(there) => there.to_string(),
            _ => self.dice.text(),
        };
        match self.dice.below(12) {
            0 => there.to_uppercase(),
            1 => format!("{there}{}", self.dice.text()),
            2 => there.chars().take(there.chars().count() / 2).collect(),
            _ => there,
        }
    }

    fn near_int(&mut self, field: usize) -> Kind {
        let there = match self.datum(field, &[]) {
            Datum::Int(there) => there,
            _ => 0,
        };
        match self.dice.below(16) {
            0 => Kind::IntValue(*self.dice.pick(&[i64::MIN, i64::MAX, 1 << 53, -1, 0])),
            1 => Kind::IntValue(there + 1),
            2 => Kind::IntValue(there - 1),
            3 => Kind::DoubleValue(there as f64),
            4 => Kind::DoubleValue(*self.dice.pick(&[-0.0, 9_007_199_254_740_992.0])),
            _ => Kind::IntValue(there),
        }
    }

    fn near_number(&mut self, field: usize, keys: &[String]) -> Kind {
        const ODD: &[f64] =
            &[0.0, -0.0, 1.0, -1.0, 0.1 + 0.2, 0.3, 1e300, -1e300, 5e-324, 1e-300, f64::MAX, 1e16];
        let there = match self.datum(field, keys) {
            Datum::Number(there) if self.dice.chance(80) => there,
            _ => *self.dice.pick(ODD),
        };
        let there = match self.dice.below(8) {
            0 => there.next_up(),
            1 => there.next_down(),
            2 => -there,
            _ => there,
        };
        let there = if there.is_finite() { there } else { 0.0 };
        if there.fract() == 0.0 && there.abs() <= 9_007_199_254_740_992.0 && self.dice.chance(50) {
            return Kind::IntValue(there as i64);
        }
        if self.noun.fields[field].1 == Type::Json && self.dice.chance(3) {
            return Kind::IntValue(*self.dice.pick(&[i64::MIN, i64::MAX, (1 << 53) + 1]));
        }
        Kind::DoubleValue(there)
    }

    fn near_time(&mut self, field: usize) -> Timestamp {
        let there = match self.datum(field, &[]) {
            Datum::Time(there) if self.dice.chance(90) => there,
            _ => *self.dice.pick(&TIMES),
        };
        let moved = there + self.dice.pick(&[0, 0, 0, 0, 1, -1, 1_000_000]);
        let nanos = *self.dice.pick(&[0, 0, 1, 999]);
        timestamp(moved.clamp(TIMES[0], TIMES[1]), nanos)
    }

    fn near_uuid(&mut self, field: usize) -> String {
        let there = match self.datum(field, &[]) {
            Datum::Text(there) => there,
            _ => uuid::Uuid::nil().to_string(),
        };
        match self.dice.below(6) {
            0 => there.to_uppercase(),
            1 => there.replace('-', ""),
            2 => uuid::Uuid::nil().to_string(),
            _ => there,
        }
    }

    /// An order, and one of the ways to write it.
    pub fn order(&mut self) -> (Order, String) {
        let mut order = Order::new();
        let mut texts: Vec<String> = Vec::new();
        for _ in 0..*self.dice.pick(&[0, 1, 1, 2, 2, 3]) {
            let field = self.dice.below(self.noun.fields.len());
            let (name, of) = self.noun.fields[field];
            if of.has_keys() || order.iter().any(|(known, _)| *known == field) {
                continue;
            }
            let desc = self.dice.chance(50);
            order.push((field, desc));
            let how: &[&str] = if desc { &[" desc", "  desc "] } else { &["", " ", " asc"] };
            texts.push(format!("{name}{}", self.dice.word(how)));
        }
        if order.is_empty() {
            let newest = (self.noun.field(self.noun.newest), true);
            return (vec![newest], self.dice.word(&["", " "]).to_owned());
        }
        (order, texts.join(self.dice.word(&[",", ", ", " , "])))
    }

    /// A window with what it takes in: microseconds, the end exclusive.
    pub fn window(&mut self, field: usize) -> (pb::TimeWindow, i64, i64) {
        let mut ends = [self.near_time(field), self.near_time(field)];
        ends.sort_by_key(|time| (time.seconds, time.nanos));
        let [start, end] = ends;
        let (from, to) = (super::model::micros(&start), super::model::micros(&end));
        let window =
            |start_time, end_time| pb::TimeWindow { start_time, end_time, newer_than: None };
        match self.dice.below(4) {
            0 => (window(Some(start), None), from, i64::MAX),
            1 => (window(None, Some(end)), i64::MIN, to),
            2 if from < to => (window(Some(start), Some(end)), from, to),
            _ => {
                // No row is of the days at which these begin.
                let days = *self.dice.pick(&[1, 1000, 10_000, 200_000]);
                let since = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_micros() as i64;
                let newer = prost_types::Duration { seconds: days * 86_400, nanos: 0 };
                let window = pb::TimeWindow { newer_than: Some(newer), ..Default::default() };
                (window, since - days * 86_400_000_000, i64::MAX)
            }
        }
    }
}
