//! What every side records: a decision with about 300 bytes of input, metadata, three labels, verdict and confidence; and
//! documents and chunks whose words are as frequent as words are, few of them often and most of them seldom.

use crate::stats::Random;
use casebook::pb;
use prost_types::value::Kind;
use prost_types::{Struct, Value};

fn text(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.to_owned())) }
}

fn number(number: f64) -> Value {
    Value { kind: Some(Kind::NumberValue(number)) }
}

fn object(members: impl IntoIterator<Item = (&'static str, Value)>) -> Struct {
    Struct { fields: members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }
}

pub fn decision() -> pb::Decision {
    let applicant = object([
        ("age_band", text("35-44")),
        ("country", text("DE")),
        ("income_monthly", number(3250.0)),
        ("months_employed", number(41.0)),
    ]);
    let input_data = object([
        ("application", text("loan-2026-11-0042")),
        ("amount", number(12_500.0)),
        ("term_months", number(48.0)),
        ("purpose", text("Replacement of a heating system in an owner-occupied house")),
        ("applicant", Value { kind: Some(Kind::StructValue(applicant)) }),
        ("score", number(0.7345)),
        ("channel", text("branch")),
        ("documents_complete", Value { kind: Some(Kind::BoolValue(true)) }),
    ]);
    let labels = [("team", "credit"), ("region", "eu-central"), ("product", "consumer-loan")];
    pb::Decision {
        input_data: Some(input_data.into()),
        final_verdict: "ALLOW".into(),
        avg_confidence: Some(0.93),
        metadata: Some(object([("pipeline", text("nightly")), ("attempt", number(1.0))]).into()),
        labels: labels.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
        ..Default::default()
    }
}

/// A request to record it; an empty id leaves the field out of the message.
pub fn request(id: &str) -> pb::CreateDecisionRequest {
    pb::CreateDecisionRequest {
        decision_id: id.to_owned(),
        decision: Some(decision()),
        options: None,
    }
}

/// Words in the vocabulary.
const WORDS: u64 = 20_000;

/// The word of a rank, the most frequent one first: made of syllables, all different.
pub fn word(rank: u64) -> String {
    const CONSONANTS: &[u8] = b"bdfgklmnprstvz";
    const VOWELS: &[u8] = b"aeiou";
    let mut left = rank + 70;
    let mut word = String::new();
    while left > 0 {
        word.push(char::from(CONSONANTS[(left % 14) as usize]));
        word.push(char::from(VOWELS[(left / 14 % 5) as usize]));
        left /= 70;
    }
    word
}

/// A text of so many words, each as frequent as its rank says (Zipf's law).
fn words(random: &mut Random, count: usize) -> String {
    let mut text = String::with_capacity(count * 7);
    for n in 0..count {
        let share = random.below(1 << 32) as f64 / (1_u64 << 32) as f64;
        let rank = (WORDS as f64).powf(share) as u64 - 1;
        if n > 0 {
            text.push(' ');
        }
        text.push_str(&word(rank));
    }
    text
}

/// A chunk of 120 words, the same one for the same number.
pub fn chunk(number: u64) -> pb::Chunk {
    let mut random = Random::new(0x00C4_0000 + number);
    // A generator's first numbers follow its seed.
    random.next();
    let metadata =
        object([("page", number_of(number % 300)), ("section", text(&words(&mut random, 3)))]);
    pb::Chunk {
        text: words(&mut random, 120),
        metadata: Some(metadata.into()),
        ..Default::default()
    }
}

fn number_of(n: u64) -> Value {
    number(n as f64)
}

pub fn document(id: &str) -> pb::CreateDocumentRequest {
    pb::CreateDocumentRequest {
        document_id: id.to_owned(),
        document: Some(pb::Document {
            filename: "report.pdf".into(),
            source_path: format!("/archive/{id}.pdf"),
            ..Default::default()
        }),
        options: None,
    }
}

/// A document that says in 60 words what it is about.
pub fn document_about(number: u64) -> pb::CreateDocumentRequest {
    let mut random = Random::new(0x00D0_0000_0000 + number);
    random.next();
    let mut request = document(&format!("about-{number}"));
    if let Some(document) = &mut request.document {
        document.metadata = Some(object([("abstract", text(&words(&mut random, 60)))]).into());
    }
    request
}

/// What is looked for: two words that neither all nor none of the documents have.
pub fn question(random: &mut Random) -> String {
    let rank = |random: &mut Random| 20 + random.below(180);
    format!("{} {}", word(rank(random)), word(rank(random)))
}
