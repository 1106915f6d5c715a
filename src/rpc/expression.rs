//! Filter expressions in the language of AIP-160, read into the same tree as structured filters.
//!
//! `OR` binds tighter than `AND`, conditions side by side mean `AND`, and `-` is `NOT`. A `*` at the
//! end of a text asks for a prefix, `field:*` for presence, `labels:key` for a key; `\*` in quotes is
//! a star. Functions and bare words are refused rather than guessed at.

use crate::error::{Error, Reason, Result, Violation};
use crate::rpc::filter::field;
use crate::store::filter::{Condition, Field, FieldKind, Filter, Op, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const MAX_BYTES: usize = 16 << 10;
/// Parentheses inside one another.
const MAX_NESTING: usize = 16;

/// The filter that `text` stands for; it selects everything when the text is blank. Errors are at the
/// request field `at` and say the column: characters, from 1.
pub fn parse(fields: &'static [Field], text: &str, at: &str) -> Result<Filter> {
    let mut parser = Parser { fields, text, at, place: 0, nesting: 0 };
    if text.len() > MAX_BYTES {
        return Err(parser.fault(MAX_BYTES, format!("it has more than {MAX_BYTES} bytes")));
    }
    parser.blanks();
    if parser.rest().is_empty() {
        return Ok(Filter::default());
    }
    let filter = parser.expression()?;
    match parser.rest().chars().next() {
        None => filter.within_limits(at),
        Some(found) => Err(parser.fault(parser.place, format!("{found:?} is not expected here"))),
    }
}

struct Parser<'a> {
    fields: &'static [Field],
    text: &'a str,
    /// The request field that errors are about.
    at: &'a str,
    /// Bytes that have been read.
    place: usize,
    nesting: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Comparator {
    Equals,
    NotEquals,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Has,
}

const COMPARATORS: [(&str, Comparator); 7] = [
    ("<=", Comparator::LessOrEqual),
    (">=", Comparator::GreaterOrEqual),
    ("!=", Comparator::NotEquals),
    ("=", Comparator::Equals),
    ("<", Comparator::Less),
    (">", Comparator::Greater),
    (":", Comparator::Has),
];

/// What stands right of a comparator.
struct Literal {
    text: String,
    quoted: bool,
    /// Where stars without a backslash are, in bytes of `text`.
    stars: Vec<usize>,
    place: usize,
}

/// Text, perhaps with a star at its end.
enum Pattern {
    Exact,
    Prefix(String),
    Anything,
}

impl Literal {
    fn pattern(&self) -> std::result::Result<Pattern, &'static str> {
        match self.stars[..] {
            [] => Ok(Pattern::Exact),
            [_] if self.text == "*" => Ok(Pattern::Anything),
            [star] if star + 1 == self.text.len() => {
                Ok(Pattern::Prefix(self.text[..star].to_owned()))
            }
            _ => Err("a star is taken only at the end of a text; write \"\\*\" for the character"),
        }
    }

    /// The value that the text stands for in a field of this kind.
    fn value(&self, kind: FieldKind) -> std::result::Result<Value, &'static str> {
        let text = self.text.as_str();
        let boolean = match text {
            "true" => Some(Value::Bool(true)),
            "false" => Some(Value::Bool(false)),
            _ => None,
        };
        let int = || text.parse().ok().map(Value::Int);
        let float = || {
            let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
            // Not "inf", "nan" or the like, which Rust reads as numbers too.
            number.filter(|_| text.ends_with(|c: char| c.is_ascii_digit())).map(Value::Float)
        };
        match kind {
            FieldKind::Text
            | FieldKind::Texts
            | FieldKind::Labels
            | FieldKind::Enum { .. }
            | FieldKind::Uuid => Ok(Value::Text(text.into())),
            FieldKind::Int => int().ok_or("an integer of 64 bits is expected"),
            FieldKind::Float => float().ok_or("a number is expected"),
            FieldKind::Bool => boolean.ok_or("true or false is expected"),
            FieldKind::Time => match OffsetDateTime::parse(text, &Rfc3339) {
                Ok(time) => Ok(Value::Time(time.into())),
                Err(_) => Err("a time like 2026-01-01T00:00:00Z is expected"),
            },
            FieldKind::Json if self.quoted => Ok(Value::Text(text.into())),
            FieldKind::Json => {
                let value = boolean.or_else(int).or_else(float);
                Ok(value.unwrap_or_else(|| Value::Text(text.into())))
            }
        }
    }
}

impl<'a> Parser<'a> {
    /// Conditions with or without AND between them.
    fn expression(&mut self) -> Result<Filter> {
        let mut parts = vec![self.factor()?];
        loop {
            self.blanks();
            let more = self.keyword("AND");
            if !more && matches!(self.rest().chars().next(), None | Some(')')) {
                return Ok(one_or(parts, Filter::All));
            }
            parts.push(self.factor()?);
        }
    }

    fn factor(&mut self) -> Result<Filter> {
        let mut parts = vec![self.term()?];
        loop {
            self.blanks();
            if !self.keyword("OR") {
                return Ok(one_or(parts, Filter::Any));
            }
            parts.push(self.term()?);
        }
    }

    fn term(&mut self) -> Result<Filter> {
        self.blanks();
        if self.keyword("NOT") || self.eat("-") {
            return Ok(Filter::Not(Box::new(self.simple()?)));
        }
        self.simple()
    }

    fn simple(&mut self) -> Result<Filter> {
        self.blanks();
        let open = self.place;
        if !self.eat("(") {
            return self.restriction();
        }
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return Err(self.fault(open, format!("more than {MAX_NESTING} parentheses are open")));
        }
        let inner = self.expression()?;
        if !self.eat(")") {
            return Err(self.fault(open, "this parenthesis is not closed"));
        }
        self.nesting -= 1;
        Ok(inner)
    }

    fn restriction(&mut self) -> Result<Filter> {
        let start = self.place;
        let mut keys = vec![self.key()?];
        while self.eat(".") {
            keys.push(self.key()?);
        }
        let path_text = &self.text[start..self.place];
        self.blanks();
        if self.rest().starts_with('(') {
            return Err(self.fault(start, "functions are not supported"));
        }
        let found = COMPARATORS.into_iter().find(|(sign, _)| self.eat(sign));
        let Some((_, comparator)) = found else {
            let upper = path_text.to_uppercase();
            return Err(match upper.as_str() {
                "AND" | "OR" | "NOT" if upper != path_text => {
                    self.fault(start, format!("write {upper} in capitals"))
                }
                "AND" | "OR" | "NOT" => self.fault(start, "a condition is expected"),
                _ => self.fault(
                    self.place,
                    format!("one of = != < <= > >= : is expected after {path_text}"),
                ),
            });
        };
        self.blanks();
        let literal = self.literal()?;

        let name = keys.remove(0);
        let field = field(self.fields, &name)
            .map_err(|wrong| self.fault(start, format!("the path {wrong}")))?;
        if field.kind == FieldKind::Labels && !keys.is_empty() {
            // A label's key may have dots, quoted or not.
            keys = vec![keys.join(".")];
        }
        let condition = self.condition(field, keys, comparator, &literal);
        condition.map_err(|error| self.located(error, start, literal.place))
    }

    /// The error with parts of a condition replaced by their places in the text.
    fn located(&self, error: Error, path: usize, value: usize) -> Error {
        let Error::Invalid { reason, violations } = error else { return error };
        let located = violations.into_iter().map(|violation| {
            let Violation { field: part, description } = &violation;
            match part.as_str() {
                at if at == self.at => violation,
                "path" | "range" | "prefix" => {
                    self.violation(path, &format!("the {part} {description}"))
                }
                _ => self.violation(value, &format!("the value {description}")),
            }
        });
        Error::Invalid { reason, violations: located.collect() }
    }

    fn condition(
        &self,
        field: &'static Field,
        mut keys: Vec<String>,
        comparator: Comparator,
        literal: &Literal,
    ) -> Result<Filter> {
        use Comparator::*;
        let wrong = |what: &str| self.fault(literal.place, what);
        let value = || literal.value(field.kind).map_err(wrong);
        let patterned = match comparator {
            Equals | NotEquals | Has => literal.pattern().map_err(wrong)?,
            _ => Pattern::Exact,
        };
        let op = match (comparator, patterned) {
            (Has, Pattern::Exact)
                if keys.is_empty() && matches!(field.kind, FieldKind::Labels | FieldKind::Json) =>
            {
                keys.push(literal.text.clone());
                Op::Exists(true)
            }
            (Has, Pattern::Exact) if field.kind == FieldKind::Texts => {
                Op::ContainsAny(vec![value()?])
            }
            (Equals | Has, Pattern::Anything) => Op::Exists(true),
            (_, Pattern::Anything) => Op::Exists(false),
            (Equals | Has, Pattern::Prefix(prefix)) => Op::Prefix(prefix),
            (_, Pattern::Prefix(prefix)) => {
                let condition = Condition::new(field, keys, Op::Prefix(prefix))?;
                return Ok(Filter::Not(Box::new(Filter::Field(condition))));
            }
            (Equals | Has, Pattern::Exact) => Op::Equals(value()?),
            (NotEquals, Pattern::Exact) => Op::NotEquals(value()?),
            (Less, _) => Op::Range { gt: None, gte: None, lt: Some(value()?), lte: None },
            (LessOrEqual, _) => Op::Range { gt: None, gte: None, lt: None, lte: Some(value()?) },
            (Greater, _) => Op::Range { gt: Some(value()?), gte: None, lt: None, lte: None },
            (GreaterOrEqual, _) => Op::Range { gt: None, gte: Some(value()?), lt: None, lte: None },
        };
        Ok(Filter::Field(Condition::new(field, keys, op)?))
    }

    /// A field's name or a key below it, bare or in quotes.
    fn key(&mut self) -> Result<String> {
        let start = self.place;
        if self.rest().starts_with(['"', '\'']) {
            return Ok(self.quoted()?.text);
        }
        let ends = |c: char| c.is_whitespace() || ".():=<>!\"',".contains(c);
        match self.word(ends) {
            "" => Err(self.fault(start, "the name of a field is expected")),
            key => Ok(key.to_owned()),
        }
    }

    fn literal(&mut self) -> Result<Literal> {
        let place = self.place;
        let literal = if self.rest().starts_with(['"', '\'']) {
            self.quoted()?
        } else {
            // Wider than AIP-160's TEXT, so that times need no quotes.
            let ends = |c: char| c.is_whitespace() || "()\"',".contains(c);
            let text = self.word(ends).to_owned();
            if text.is_empty() {
                return Err(self.fault(place, "a value is expected"));
            }
            if text.contains(['=', '<', '>', '!', '\\']) {
                return Err(self.fault(place, "a value with such characters needs quotes"));
            }
            let stars = text.match_indices('*').map(|(star, _)| star).collect();
            Literal { text, quoted: false, stars, place }
        };
        match self.rest().chars().next() {
            None | Some(')') => Ok(literal),
            Some(next) if next.is_whitespace() => Ok(literal),
            Some(next) => Err(self.fault(self.place, format!("{next:?} is not expected here"))),
        }
    }

    fn quoted(&mut self) -> Result<Literal> {
        let place = self.place;
        let (mut text, mut stars) = (String::new(), Vec::new());
        let mut chars = self.rest().char_indices();
        let quote = chars.next().map(|(_, quote)| quote);
        while let Some((offset, next)) = chars.next() {
            match next {
                _ if Some(next) == quote => {
                    self.place = place + offset + next.len_utf8();
                    return Ok(Literal { text, quoted: true, stars, place });
                }
                '\\' => text.push(match chars.next() {
                    Some((_, c @ ('\\' | '"' | '\'' | '*'))) => c,
                    Some((_, 'n')) => '\n',
                    Some((_, 'r')) => '\r',
                    Some((_, 't')) => '\t',
                    _ => {
                        return Err(self.fault(
                            place + offset,
                            "a backslash is taken before \\ \" ' * n r t only",
                        ));
                    }
                }),
                _ => {
                    if next == '*' {
                        stars.push(text.len());
                    }
                    text.push(next);
                }
            }
        }
        Err(self.fault(place, "this quote is not closed"))
    }

    fn rest(&self) -> &'a str {
        &self.text[self.place..]
    }

    fn blanks(&mut self) {
        self.place = self.text.len() - self.rest().trim_start().len();
    }

    fn word(&mut self, ends: impl Fn(char) -> bool) -> &'a str {
        let start = self.place;
        self.place += self.rest().find(ends).unwrap_or(self.rest().len());
        &self.text[start..self.place]
    }

    fn eat(&mut self, sign: &str) -> bool {
        let found = self.rest().starts_with(sign);
        if found {
            self.place += sign.len();
        }
        found
    }

    /// Reads the word, unless it is only the beginning of another.
    fn keyword(&mut self, word: &str) -> bool {
        let after = self.rest().strip_prefix(word);
        let alone = after.is_some_and(|after| {
            after.chars().next().is_none_or(|c| c.is_whitespace() || "()\"'-".contains(c))
        });
        alone && self.eat(word)
    }

    fn violation(&self, place: usize, what: &str) -> Violation {
        let before = self.text.get(..place).unwrap_or(self.text);
        let column = before.chars().count() + 1;
        Violation {
            field: self.at.to_owned(),
            description: format!("is wrong at column {column}: {what}"),
        }
    }

    fn fault(&self, place: usize, what: impl AsRef<str>) -> Error {
        let violations = vec![self.violation(place, what.as_ref())];
        Error::Invalid { reason: Reason::FilterInvalid, violations }
    }
}

/// A group of one is that one.
fn one_or(mut parts: Vec<Filter>, group: fn(Vec<Filter>) -> Filter) -> Filter {
    match parts.pop() {
        Some(only) if parts.is_empty() => only,
        last => {
            parts.extend(last);
            group(parts)
        }
    }
}

#[cfg(test)]
#[path = "expression_tests.rs"]
mod tests;
