//! Full text search: what a caller's words become in SQL, how hits are ranked, and the passages that show them.
//!
//! A text can be anything; none is an error. [`Words`] sees to that, and words of more than 2 KiB, for which PostgreSQL
//! has no place, are passed over by it. A text that no word narrows, because it has stop words only or
//! words to be left out only, finds nothing: all else would be everything.

pub mod hybrid;
pub mod kinds;
pub mod objects;
pub mod precedents;
pub mod ranking;

use super::filter::Params;

/// Marks in passages while they are on their way: no text of a person has them.
const OPEN: char = '\u{2}';
const CLOSE: char = '\u{3}';
const BETWEEN: char = '\u{1e}';
/// What callers see in their place.
const MARK: &str = "**";

pub const PASSAGES_MAX: usize = 3;
/// Of one passage, marks included.
pub const PASSAGE_BYTES_MAX: usize = 1000;
/// Where passages are looked for, from the beginning of a text.
pub const HIGHLIGHTED_CHARS: usize = 50_000;

/// What a caller looks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Words(String);

/// Signs that PostgreSQL passes over outside of quotes, and the older syntax's.
const PASSED_OVER: [char; 6] = ['!', '&', '|', '(', ')', '<'];

/// What separates words in what is indexed (casebook.search_vector says why), so here, too.
const MARKS: [char; 7] = ['@', '_', '/', '\\', '.', '<', '-'];

/// A word, or the words that it is made of as a phrase; nothing if it is nothing but marks.
fn operand(word: &str) -> Option<String> {
    let words: Vec<&str> = word.split(MARKS).filter(|word| !word.is_empty()).collect();
    match words[..] {
        [] => None,
        [word] => Some(word.to_owned()),
        _ => Some(format!("\"{}\"", words.join(" "))),
    }
}

/// Writes a text for `websearch_to_tsquery`.
#[derive(Default)]
struct Writer {
    text: String,
    or: bool,
    not: bool,
}

impl Writer {
    fn operand(&mut self, operand: &str) {
        let (or, not) = (std::mem::take(&mut self.or), std::mem::take(&mut self.not));
        if !self.text.is_empty() {
            self.text.push_str(if or { " or " } else { " " });
        }
        if not {
            self.text.push('-');
        }
        self.text.push_str(operand);
    }
}

/// The same in SQL, for one statement.
pub struct Wanted {
    /// A `tsquery` of the words.
    query: String,
    /// A `tsquery` of the lexeme that all rows of the tenant have.
    tenant: String,
}

impl Words {
    /// From what a person wrote: words, `"phrases"`, `or`, and `-` before what is not wanted. Beside that `a & b` and
    /// `a | b` mean what they meant in the older syntax (C33).
    ///
    /// It is written anew with nothing but these. PostgreSQL passes over other signs, but it raises ("tsquery stack too
    /// small") where more than 32 times `-` comes before one word, whatever is passed over between them.
    pub fn new(given: &str) -> Self {
        let mut text = Writer::default();
        let mut parts = given.split('"');
        while let Some(part) = parts.next() {
            let is_sign = |c: char| c.is_whitespace() || PASSED_OVER.contains(&c);
            for piece in part.split_inclusive(is_sign) {
                let word = piece.trim_end_matches(is_sign);
                let wanted = word.trim_start_matches('-');
                text.not = wanted.len() < word.len();
                if let Some(wanted) = operand(wanted) {
                    text.operand(&wanted);
                }
                if piece.ends_with(is_sign) {
                    // It stands alone. Before a quote it would be about the phrase.
                    text.not = false;
                }
                text.or |= piece.ends_with('|');
            }
            if let Some(phrase) = parts.next() {
                text.operand(&format!("\"{}\"", phrase.replace(MARKS, " ")));
            }
        }
        Self(text.text)
    }

    /// A `tsquery` of them.
    fn query(&self, params: &mut Params) -> String {
        format!("websearch_to_tsquery('pg_catalog.english', {})", params.push(self.0.clone()))
    }

    fn bind(&self, tenant: &str, params: &mut Params) -> Wanted {
        let query = self.query(params);
        Wanted { query, tenant: lexeme(tenant, params) }
    }
}

/// A `tsquery` of the lexeme that all rows of a tenant have.
fn lexeme(tenant: &str, params: &mut Params) -> String {
    // Quoted as tsquery has it, where a backslash escapes too. A name of a tenant has neither.
    let tenant = tenant.replace('\\', "\\\\").replace('\'', "''");
    let tenant = params.push(format!("'tenant:{tenant}'"));
    format!("{tenant}::tsquery")
}

impl Wanted {
    /// That a `tsvector` of the table has the words. The tenant's lexeme lets the index alone pass over the rows of
    /// others, which the wall would otherwise look up one by one.
    fn in_table(&self, column: &str) -> String {
        let Self { query, tenant } = self;
        format!("{} AND {column} @@ ({query} && {tenant})", self.narrows())
    }

    /// That a `tsvector` of the tenant's own has the words.
    fn in_vector(&self, column: &str) -> String {
        format!("{} AND {column} @@ {}", self.narrows(), self.query)
    }

    fn narrows(&self) -> String {
        format!("querytree({}) NOT IN ('', 'T')", self.query)
    }

    /// From 0 to 1: how near the words are to each other and in which of the row's texts (A counts 1, B 0.4, C 0.2),
    /// divided by 1 + the logarithm of the length (1), and brought below 1 (32).
    fn rank(&self, column: &str) -> String {
        format!("ts_rank_cd({column}, {}, 33)::float8", self.query)
    }
}

/// Passages of texts in one text, for [`passages`].
fn headline(query: &str, texts: &[&str]) -> String {
    let texts: Vec<_> = texts.iter().map(|text| format!("NULLIF({text}, '')")).collect();
    let text = format!("concat_ws(E'\\n', {})", texts.join(", "));
    // Compounds, paths and tags take the parser a time that grows with the square of their length.
    let text = format!(
        "replace(regexp_replace(left({text}, {HIGHLIGHTED_CHARS}), \
         '([[:alnum:]])[@_/\\\\.-]+(?=[[:alnum:]])', '\\1 ', 'g'), '<', '< ')"
    );
    format!(
        "ts_headline('pg_catalog.english', {text}, {query}, \
         'StartSel=\"{OPEN}\", StopSel=\"{CLOSE}\", FragmentDelimiter=\"{BETWEEN}\", \
         MaxFragments={PASSAGES_MAX}, MaxWords=30, MinWords=10')"
    )
}

/// The passages with the words between `**` and `**`. Where none has the words, as in a row that was found by what
/// stands behind [`HIGHLIGHTED_CHARS`], there are none.
fn passages(headline: &str) -> Vec<String> {
    let found = headline.split(BETWEEN).filter(|passage| passage.contains(OPEN));
    found.take(PASSAGES_MAX).map(passage).collect()
}

fn passage(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let mut is_open = false;
    // The first match is in it, however long the words before it are.
    let first = text.find(OPEN).unwrap_or_default();
    let mut from = first.saturating_sub(PASSAGE_BYTES_MAX / 2);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    for char in text[from..].chars() {
        if out.len() + char.len_utf8() + 2 * MARK.len() > PASSAGE_BYTES_MAX {
            break;
        }
        match char {
            OPEN | CLOSE => {
                is_open = char == OPEN;
                out.push_str(MARK);
            }
            _ => out.push(char),
        }
    }
    if is_open {
        out.push_str(MARK);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_written_anew_with_what_is_known() {
        for (given, expected) in [
            ("invoice & finance", "invoice finance"),
            ("invoice | finance", "invoice or finance"),
            ("invoice&finance|tax", "invoice finance or tax"),
            ("a  &&  b || c", "a b or c"),
            ("\"a & b\" | c", "\"a & b\" or c"),
            ("a | \"b | c", "a or \"b | c\""),
            ("| a |", "a"),
            ("& - -- | !", ""),
            ("", ""),
            ("a\u{a0}|\tb\n&\nc", "a or b c"),
            ("-a !b :* <-> 'c' \\", "-a b :* -> 'c'"),
            ("---a - -- b --\"c d\" - \"e\"f", "-a b -\"c d\" \"e\" f"),
            ("a\"b\"-c", "a \"b\" -c"),
            ("a or b-c OR d", "a or \"b c\" OR d"),
            ("-user@example.com NEEDS_REVIEW", "-\"user example com\" \"NEEDS REVIEW\""),
            ("\"a_b c\" @ ./.", "\"a b c\""),
        ] {
            assert_eq!(Words::new(given).0, expected, "{given:?}");
        }
    }

    #[test]
    fn passages_are_few_short_and_marked() {
        let marked = |n| format!("before \u{2}hit{n}\u{3} after");
        let headline = (0..5).map(marked).collect::<Vec<_>>().join("\u{1e}");
        assert_eq!(
            passages(&format!("nothing\u{1e}{headline}")),
            ["before **hit0** after", "before **hit1** after", "before **hit2** after"]
        );
        assert!(passages("no match").is_empty());
        let long = format!("{}\u{2}{}\u{3}", "é".repeat(4000), "é".repeat(4000));
        let cut = &passages(&long)[0];
        assert!(cut.len() <= PASSAGE_BYTES_MAX && cut.matches("**").count() == 2, "{}", cut.len());
    }
}
