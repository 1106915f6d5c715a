//! Fills the texts and values of `cases.toml` with what one case drew.

use super::random::Random;
use crate::rpc::json;
use crate::rpc::json_object::{Object, of_json};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeMap;
use time::{Duration, OffsetDateTime};

/// What is wrong with `cases.toml`. The tests expand every case, so that no user should ever see one.
#[derive(Debug, thiserror::Error)]
#[error("cases.toml: {0}")]
pub struct CasesError(pub String);

type Result<T> = std::result::Result<T, CasesError>;

fn wrong<T>(message: impl Into<String>) -> Result<T> {
    Err(CasesError(message.into()))
}

/// Deep enough for every honest chain of variables, shallow enough to stop at one that refers to itself.
const DEPTH_MAX: usize = 12;

/// The variables of one case. Each is drawn on first use and keyed by its name, so that neither the order of use nor
/// a new variable changes the others.
pub struct Scope<'a> {
    seed: u64,
    case: u64,
    /// What "days ago" counts from.
    now: OffsetDateTime,
    /// The most specific first.
    layers: Vec<&'a toml::Table>,
    drawn: RefCell<BTreeMap<String, Value>>,
}

impl<'a> Scope<'a> {
    pub fn new(seed: u64, case: u64, now: OffsetDateTime, layers: Vec<&'a toml::Table>) -> Self {
        Self { seed, case, now, layers, drawn: RefCell::default() }
    }

    /// Sets a variable that the program knows and the file does not.
    pub fn given(self, name: &str, value: impl Into<Value>) -> Self {
        self.drawn.borrow_mut().insert(name.into(), value.into());
        self
    }

    /// Fills the placeholders of a text.
    pub fn text(&self, template: &str) -> Result<String> {
        self.fill(template, 0)
    }

    /// A whole number, for the fields that the program reads itself.
    pub fn whole(&self, name: &str) -> Result<i64> {
        match self.variable(name, 0)?.as_i64() {
            Some(value) => Ok(value),
            None => wrong(format!("{name} is not a whole number")),
        }
    }

    /// A table with every text in it filled.
    pub fn table(&self, table: &toml::Table) -> Result<Map<String, Value>> {
        table.iter().map(|(key, value)| Ok((key.clone(), self.value(value, 0)?))).collect()
    }

    fn value(&self, value: &toml::Value, depth: usize) -> Result<Value> {
        Ok(match value {
            toml::Value::String(text) => match sole_placeholder(text) {
                Some(name) => self.variable(name, depth + 1)?,
                None => Value::String(self.fill(text, depth)?),
            },
            toml::Value::Integer(number) => Value::from(*number),
            toml::Value::Float(number) => Value::from(*number),
            toml::Value::Boolean(flag) => Value::from(*flag),
            toml::Value::Datetime(time) => Value::String(time.to_string()),
            toml::Value::Array(items) => Value::Array(
                items.iter().map(|item| self.value(item, depth)).collect::<Result<_>>()?,
            ),
            toml::Value::Table(table) => Value::Object(
                table
                    .iter()
                    .map(|(key, value)| Ok((key.clone(), self.value(value, depth)?)))
                    .collect::<Result<_>>()?,
            ),
        })
    }

    fn fill(&self, template: &str, depth: usize) -> Result<String> {
        let mut filled = String::with_capacity(template.len() + 32);
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            let Some((placeholder, behind)) = after.split_once('}') else {
                return wrong(format!("a brace stays open in {template:?}"));
            };
            filled.push_str(before);
            let (name, form) = placeholder.split_once('|').unwrap_or((placeholder, ""));
            let text = plain(&self.variable(name, depth + 1)?);
            match form {
                "" => filled.push_str(&text),
                "n" => filled.push_str(&grouped(&text)),
                "cap" => filled.push_str(&capital(&text)),
                _ => return wrong(format!("unknown form {form:?} in {template:?}")),
            }
            rest = behind;
        }
        filled.push_str(rest);
        Ok(filled)
    }

    fn variable(&self, name: &str, depth: usize) -> Result<Value> {
        if depth > DEPTH_MAX {
            return wrong(format!("{name} refers to itself"));
        }
        if let Some(value) = self.drawn.borrow().get(name) {
            return Ok(value.clone());
        }
        let Some(rule) = self.layers.iter().find_map(|layer| layer.get(name)) else {
            return wrong(format!("no variable {name}"));
        };
        let value = self.draw(name, rule, depth)?;
        self.drawn.borrow_mut().insert(name.into(), value.clone());
        Ok(value)
    }

    fn draw(&self, name: &str, rule: &toml::Value, depth: usize) -> Result<Value> {
        if let toml::Value::Table(table) = rule
            && let (Some(toml::Value::String(other)), Some(list)) =
                (table.get("same_as"), table.get("of"))
        {
            // The same key draws the same place in a list of the same length.
            return self.draw(other, list, depth);
        }
        let mut random = Random::keyed(self.seed, self.case, name);
        match rule {
            toml::Value::Array(items) => match random.pick(items) {
                Some(item) => self.value(item, depth),
                None => wrong(format!("nothing to choose from for {name}")),
            },
            toml::Value::String(text) => {
                if let Some(expression) = text.strip_prefix("=1 ") {
                    let result = self.calculate(expression, depth)?;
                    return Ok(Value::from((result * 10.0).round() / 10.0));
                }
                if let Some(expression) = text.strip_prefix("= ") {
                    return Ok(Value::from(self.calculate(expression, depth)?.round() as i64));
                }
                if let Some(digits) = text.strip_prefix("hex ").and_then(|d| d.parse().ok()) {
                    return Ok(Value::String(random.hex(digits)));
                }
                if let Some(span) = text.strip_prefix("days ").and_then(Span::parse) {
                    let days = span.draw(&mut random).as_i64().unwrap_or_default();
                    let date = self.now.date() - Duration::days(days);
                    return Ok(Value::String(date.to_string()));
                }
                match Span::parse(text) {
                    Some(span) => Ok(span.draw(&mut random)),
                    None => self.value(rule, depth),
                }
            }
            _ => self.value(rule, depth),
        }
    }

    /// `a * b / 100`, from left to right without precedence, each word a variable or a number.
    fn calculate(&self, expression: &str, depth: usize) -> Result<f64> {
        let operand = |word: &str| -> Result<f64> {
            if let Ok(number) = word.parse() {
                return Ok(number);
            }
            match self.variable(word, depth + 1)?.as_f64() {
                Some(number) => Ok(number),
                None => wrong(format!("{word} in {expression:?} is no number")),
            }
        };
        let mut words = expression.split_whitespace();
        let mut result = operand(words.next().unwrap_or_default())?;
        while let Some(operator) = words.next() {
            let right = operand(words.next().unwrap_or_default())?;
            match operator {
                "+" => result += right,
                "-" => result -= right,
                "*" => result *= right,
                "/" if right != 0.0 => result /= right,
                _ => return wrong(format!("cannot calculate {expression:?}")),
            }
        }
        Ok(result)
    }
}

/// A range of numbers: `3..90`, `3..90 log`, `500..9000 step 50`, `0.10..0.95`.
struct Span {
    low: f64,
    high: f64,
    digits: usize,
    log: bool,
    step: Option<f64>,
}

impl Span {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (low, high) = words.next()?.split_once("..")?;
        let digits = low.split_once('.').map_or(0, |(_, fraction)| fraction.len());
        let (mut log, mut step) = (false, None);
        match (words.next(), words.next(), words.next()) {
            (None, None, None) => {}
            (Some("log"), None, None) => log = true,
            (Some("step"), Some(size), None) => step = Some(size.parse().ok()?),
            _ => return None,
        }
        Some(Self { low: low.parse().ok()?, high: high.parse().ok()?, digits, log, step })
    }

    fn draw(&self, random: &mut Random) -> Value {
        let unit = random.unit();
        if self.digits > 0 {
            let scale = 10_f64.powi(self.digits as i32);
            let steps = ((self.high - self.low) * scale).round() + 1.0;
            return Value::from((self.low * scale + (unit * steps).floor()).round() / scale);
        }
        let step = self.step.unwrap_or(1.0);
        let drawn = if self.log {
            let (low, high) = (self.low.max(1.0).ln(), (self.high + 1.0).ln());
            (low + (high - low) * unit).exp().floor()
        } else {
            let steps = ((self.high - self.low) / step).floor() + 1.0;
            self.low + (unit * steps).floor() * step
        };
        Value::from(drawn.clamp(self.low, self.high) as i64)
    }
}

/// `amount` for `{amount}`, nothing for a text with more in it.
fn sole_placeholder(text: &str) -> Option<&str> {
    let name = text.strip_prefix('{')?.strip_suffix('}')?;
    let simple = !name.is_empty() && !name.contains(['{', '}', '|']);
    simple.then_some(name)
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        // A float that is whole reads 5, not 5.0.
        Value::Number(number) if number.is_f64() => number.as_f64().unwrap_or_default().to_string(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// 12400 as 12,400.
fn grouped(text: &str) -> String {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if fraction.is_empty() { grouped } else { format!("{grouped}.{fraction}") }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// JSON as the wire carries it.
pub fn to_object(map: Map<String, Value>) -> Option<Object> {
    of_json(&json::of_value(&Value::Object(map)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(variables: &str, template: &str) -> Result<String> {
        let table: toml::Table = variables.parse().unwrap();
        Scope::new(1, 1, OffsetDateTime::UNIX_EPOCH, vec![&table]).text(template)
    }

    #[test]
    fn placeholders_are_filled_and_formed() {
        let variables = "a = 1240000\nb = \"= a / 1000 - 240\"\nc = \"=1 b / 3 + 0.05\"\nd = [\"one {b}\"]\ne = \"days 31..31\"";
        let filled = fill(variables, "{a|n} {b} {c} {d|cap} {e}").unwrap();
        assert_eq!(filled, "1,240,000 1000 333.4 One 1000 1969-12-01");
        assert_eq!(grouped("-120"), "-120");
    }

    #[test]
    fn mistakes_in_the_file_are_named() {
        for (variables, template, message) in [
            ("", "{a}", "no variable a"),
            ("a = \"{b}\"\nb = \"{a}\"", "{a}", "refers to itself"),
            ("a = 1", "{a|upper}", "unknown form"),
            ("a = 1", "{a", "stays open"),
            ("a = \"= b * 2\"\nb = \"x\"", "{a}", "is no number"),
        ] {
            let error = fill(variables, template).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn spans_stay_within_their_bounds() {
        for text in ["3..90", "3..90 log", "500..9000 step 50", "0.10..0.95"] {
            let span = Span::parse(text).unwrap();
            for case in 0..2_000 {
                let drawn = span.draw(&mut Random::keyed(7, case, text)).as_f64().unwrap();
                assert!((span.low..=span.high).contains(&drawn), "{drawn} for {text}");
            }
        }
        assert!(Span::parse("Waiting .. for it").is_none());
    }
}
