//! The decision that every side records: about 300 bytes of input, metadata, three labels, verdict and confidence.

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
        input_data: Some(input_data),
        final_verdict: "ALLOW".into(),
        avg_confidence: Some(0.93),
        metadata: Some(object([("pipeline", text("nightly")), ("attempt", number(1.0))])),
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
