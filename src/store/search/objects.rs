//! Full text search of objects: boolean text with prefixes, ranked by where the words stand (F342 to F348).

use super::{MARKS, Wanted, lexeme};
use crate::Result;
use crate::store::Store;
use crate::store::caller::Caller;
use crate::store::filter::{Filter, Params};
use crate::store::list::{ListQuery, Source};
use crate::store::object::{LISTING, Object};
use crate::store::query::FromRow as _;
use crate::store::snapshot::{Glance, Look};
use std::iter::Peekable;

/// Words and phrases of one text; what comes behind is passed over.
const OPERANDS_MAX: usize = 64;
/// Parentheses within one another; deeper ones are passed over.
const DEPTH_MAX: usize = 16;
/// PostgreSQL raises on longer ones, which begin no word of a person.
const STEM_BYTES_MAX: usize = 255;

/// What a caller looks for: a text that is never wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Text(Option<Node>);

#[derive(Clone, Debug, PartialEq)]
enum Node {
    /// One word, or several as a phrase.
    Words(String),
    /// A word that begins so.
    Prefix(String),
    And(Vec<Node>),
    Or(Vec<Node>),
    Not(Box<Node>),
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Open,
    Close,
    Or,
    Not,
    Phrase(String),
    Word(String),
}

/// Signs that end a word.
const SIGNS: [char; 6] = ['(', ')', '&', '|', '!', '"'];

fn tokens(given: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = given;
    let mut is_dash = false;
    while let Some(first) = rest.chars().next() {
        let behind = &rest[first.len_utf8()..];
        rest = behind;
        let was_dash = std::mem::replace(&mut is_dash, first == '-');
        match first {
            '(' => tokens.push(Token::Open),
            ')' => tokens.push(Token::Close),
            '|' => tokens.push(Token::Or),
            '!' | '-' => tokens.push(Token::Not),
            '"' => {
                let (phrase, after) = behind.split_once('"').unwrap_or((behind, ""));
                tokens.push(Token::Phrase(phrase.to_owned()));
                rest = after;
            }
            _ if first == '&' || first.is_whitespace() => {
                // One that stands alone is a dash.
                if was_dash {
                    tokens.pop();
                }
            }
            _ => {
                let ends = |c: char| c.is_whitespace() || SIGNS.contains(&c);
                let end = behind.find(ends).unwrap_or(behind.len());
                let word = format!("{first}{}", &behind[..end]);
                rest = &behind[end..];
                match word.to_ascii_lowercase().as_str() {
                    "or" => tokens.push(Token::Or),
                    "and" => {}
                    _ => tokens.push(Token::Word(word)),
                }
            }
        }
    }
    tokens
}

/// What a word stands for.
fn operand(word: &str) -> Option<Node> {
    let stem = word.trim_end_matches('*').trim_end_matches(':');
    let is_prefix = word.ends_with('*');
    if !is_prefix {
        return words(word);
    }
    let mut parts: Vec<&str> =
        stem.split(|c: char| !c.is_alphanumeric()).filter(|part| !part.is_empty()).collect();
    let last = parts.pop()?;
    if last.len() > STEM_BYTES_MAX {
        return words(stem);
    }
    let last = Node::Prefix(last.to_owned());
    match parts.is_empty() {
        true => Some(last),
        false => Some(Node::And(vec![Node::Words(parts.join(" ")), last])),
    }
}

fn words(text: &str) -> Option<Node> {
    let text = text.replace(MARKS, " ");
    let text = text.trim();
    (!text.is_empty()).then(|| Node::Words(text.to_owned()))
}

/// Reads tokens; whatever they are, something comes of it.
struct Reader<I: Iterator<Item = Token>> {
    tokens: Peekable<I>,
    operands: usize,
    depth: usize,
}

impl<I: Iterator<Item = Token>> Reader<I> {
    fn any(&mut self) -> Option<Node> {
        let mut parts = Vec::new();
        loop {
            parts.extend(self.all());
            // What ended it: a sign between alternatives, a parenthesis that the caller takes, or the end.
            if self.tokens.next_if_eq(&Token::Or).is_none() {
                return joined(parts, Node::Or);
            }
        }
    }

    fn all(&mut self) -> Option<Node> {
        let mut parts = Vec::new();
        loop {
            match self.tokens.peek() {
                None | Some(Token::Or) => break,
                Some(Token::Close) if self.depth > 0 => break,
                // It closes nothing.
                Some(Token::Close) => {
                    self.tokens.next();
                }
                Some(_) => parts.extend(self.one()),
            }
        }
        joined(parts, Node::And)
    }

    fn one(&mut self) -> Option<Node> {
        let mut not = false;
        while self.tokens.next_if_eq(&Token::Not).is_some() {
            not = true;
        }
        // What begins with none of these is the caller's.
        let is_operand = |token: &Token| !matches!(token, Token::Or | Token::Close | Token::Not);
        let node = match self.tokens.next_if(is_operand)? {
            Token::Open if self.depth == DEPTH_MAX => None,
            Token::Open => {
                self.depth += 1;
                let inner = self.any();
                self.depth -= 1;
                self.tokens.next_if_eq(&Token::Close);
                inner
            }
            Token::Phrase(phrase) => words(&phrase),
            Token::Word(word) => operand(&word),
            Token::Or | Token::Close | Token::Not => None,
        };
        if matches!(node, Some(Node::Words(_) | Node::Prefix(_) | Node::And(_))) {
            self.operands += 1;
            if self.operands > OPERANDS_MAX {
                return None;
            }
        }
        node.map(|node| if not { Node::Not(Box::new(node)) } else { node })
    }
}

fn joined(mut parts: Vec<Node>, join: fn(Vec<Node>) -> Node) -> Option<Node> {
    match parts.len() {
        0 | 1 => parts.pop(),
        _ => Some(join(parts)),
    }
}

impl Node {
    /// A `tsquery`. Nothing of it can raise: the text is taken apart by PostgreSQL's own parser, and a prefix has letters
    /// and digits only.
    fn sql(&self, params: &mut Params) -> String {
        let mut each = |nodes: &[Node], with: &str| {
            let all: Vec<_> = nodes.iter().map(|node| node.sql(params)).collect();
            format!("({})", all.join(with))
        };
        match self {
            Self::And(nodes) => each(nodes, " && "),
            Self::Or(nodes) => each(nodes, " || "),
            Self::Not(node) => format!("(!! {})", node.sql(params)),
            Self::Words(words) => {
                format!("phraseto_tsquery('pg_catalog.english', {})", params.push(words.clone()))
            }
            Self::Prefix(stem) => {
                format!("to_tsquery('pg_catalog.english', {})", params.push(format!("'{stem}':*")))
            }
        }
    }
}

impl Text {
    pub fn new(given: &str) -> Self {
        let tokens = tokens(given).into_iter().peekable();
        Self(Reader { tokens, operands: 0, depth: 0 }.any())
    }
}

/// What is searched for.
#[derive(Clone, Debug)]
pub struct SearchObjects {
    pub text: Text,
    pub filter: Filter,
    pub limit: i64,
}

/// Objects with their ranks, best first, and the log number that they were read at.
pub type Ranked = (Vec<(Object, f64)>, i64);

impl Store {
    /// Objects that words are found in, by how much the words weigh where they stand.
    pub async fn search_objects(&self, caller: &Caller, search: SearchObjects) -> Result<Ranked> {
        let mut params = Params::default();
        let query = match &search.text.0 {
            Some(node) => node.sql(&mut params),
            None => "''::tsquery".to_owned(),
        };
        let wanted = Wanted { query, tenant: lexeme(&caller.tenant, &mut params) };
        let list = ListQuery { filter: search.filter, ..ListQuery::default() };
        let conditions = list.conditions(&mut params);
        let columns: Vec<_> =
            Object::columns().iter().map(|column| format!("d.{}", column.name)).collect();
        let select =
            format!("{}, ts_rank(d.search, {})::float8 AS rank", columns.join(", "), wanted.query);
        let from = Source { from: format!("{} AS d", LISTING.table), condition: None };
        let sql = format!(
            "{}\nORDER BY rank DESC, d.id LIMIT {}",
            from.rows(&select, &[&[wanted.in_table("d.search")], &conditions]),
            params.push(search.limit),
        );
        let look = Look { sql, params, ..Look::default() };
        let Glance { rows, head, .. } = self.glance(caller, "object.SEARCH", look).await?;
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            found.push((Object::from_row(row)?, row.try_get("rank")?));
        }
        Ok((found, head))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(node: &Node) -> String {
        let all = |nodes: &[Node], with: &str| {
            let each: Vec<_> = nodes.iter().map(shown).collect();
            format!("({})", each.join(with))
        };
        match node {
            Node::Words(words) => words.clone(),
            Node::Prefix(stem) => format!("{stem}*"),
            Node::And(nodes) => all(nodes, " & "),
            Node::Or(nodes) => all(nodes, " | "),
            Node::Not(node) => format!("!{}", shown(node)),
        }
    }

    #[test]
    fn any_text_is_read() {
        for (given, expected) in [
            ("invoice & finance", "(invoice & finance)"),
            ("invoice finance", "(invoice & finance)"),
            ("invoice and finance", "(invoice & finance)"),
            ("invoice | finance & tax", "(invoice | (finance & tax))"),
            ("(invoice OR finance) tax", "((invoice | finance) & tax)"),
            ("invoice -draft !\"old one\"", "(invoice & !draft & !old one)"),
            ("!(a | b) c", "(!(a | b) & c)"),
            ("inv*", "inv*"),
            ("inv:*", "inv*"),
            ("reports/2024*", "(reports & 2024*)"),
            ("reports/2024.pdf", "reports 2024 pdf"),
            ("a'b\\:*", "(a & b*)"),
            ("((a", "a"),
            ("a))) b", "(a & b)"),
            ("| & ! ( )", ""),
            ("a | | b", "(a | b)"),
            ("- a", "a"),
            ("! a", "!a"),
            ("--a", "!a"),
            ("a - b", "(a & b)"),
            ("\"open", "open"),
            ("*", ""),
            ("'", "'"),
            ("", ""),
        ] {
            let read = Text::new(given).0.as_ref().map(shown).unwrap_or_default();
            assert_eq!(read, expected, "{given:?}");
        }
        let deep = format!("{}a{}", "(".repeat(5000), ")".repeat(5000));
        assert!(Text::new(&deep).0.is_some());
        let many = "a ".repeat(5000);
        let Some(Node::And(parts)) = Text::new(&many).0 else { panic!("not all of them") };
        assert_eq!(parts.len(), OPERANDS_MAX);
    }
}
