//! Critic outputs on the wire.

use super::json;
use super::resource::{New, Resource};
use super::wire::{self, Fields};
use crate::Reason;
use crate::pb;
use crate::store::canonical::Json;
use crate::store::critic_output::{AddCriticOutputs, CriticOutput};
use crate::store::noun::Noun;
use uuid::Uuid;

const SOURCES_MAX: usize = 100;

crate::requests!(@ask AddCriticOutputsRequest -> AddCriticOutputs, |fields, on_conflict, decision_id, critic_outputs| {
    fields.only_fail(on_conflict);
    let decision_id = fields.id("decision_id", decision_id);
    let rows = fields.batch("critic_outputs", critic_outputs, |f, one| one.read_part(f));
    fields.no_duplicates(rows.iter().map(|row| row.id.as_str()), |n| {
        format!("critic_outputs[{n}].id")
    });
    AddCriticOutputs { decision_id, rows }
});

crate::requests! { CriticOutput:
    list ListCriticOutputsRequest("create_time" by [("create_time", true)] of "d.decision_id" decision_id in "decision");
}

impl Resource for pb::CriticOutput {
    type Row = CriticOutput;
    const CHANGEABLE: &'static [&'static str] = &[];

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    fn read(self, f: &mut Fields, New { id, meta }: New) -> CriticOutput {
        let pb::CriticOutput {
            id: _,
            etag: _,
            meta: _,
            decision_id: _,
            critic,
            verdict,
            confidence,
            justification,
            weight,
            priority,
            config_version,
            evaluate_time,
            evidence_sources,
            details,
        } = self;
        if priority.contains('\0') {
            f.wrong_because(Reason::NulByte, "priority", "must not contain a NUL byte");
        } else if !matches!(priority.as_str(), "" | "override" | "veto") {
            f.wrong("priority", "must be \"\", \"override\" or \"veto\"");
        }
        CriticOutput {
            id,
            meta,
            decision_uid: Uuid::nil(),
            decision_id: String::new(),
            critic: f.name("critic", critic, 255),
            verdict: f.verdict("verdict", verdict),
            confidence: f.confidence("confidence", confidence),
            justification: f.text("justification", justification, wire::LONG_TEXT_BYTES_MAX),
            weight: weight.map(|value| f.number("weight", value, 0.0, f64::MAX)),
            priority,
            config_version: f.text("config_version", config_version, 255),
            evaluate_time: f.time("evaluate_time", evaluate_time),
            evidence_sources: read_sources(f, evidence_sources),
            details: f.object("details", details),
        }
    }
}

fn read_sources(fields: &mut Fields, sources: Vec<pb::EvidenceSource>) -> Json {
    let items = fields.list("evidence_sources", sources, SOURCES_MAX, |fields, source| {
        let pb::EvidenceSource { r#type, reference, relevance } = source;
        let mut members = serde_json::Map::new();
        members.insert("type".into(), fields.name("type", r#type, 63).into());
        members.insert("reference".into(), fields.name("reference", reference, 1024).into());
        if let Some(relevance) = relevance {
            members.insert("relevance".into(), fields.confidence("relevance", relevance).into());
        }
        serde_json::Value::Object(members)
    });
    json::of_value(&serde_json::Value::Array(items))
}

impl From<CriticOutput> for pb::CriticOutput {
    fn from(row: CriticOutput) -> Self {
        let etag = row.etag();
        let CriticOutput {
            id,
            meta,
            decision_uid: _,
            decision_id,
            critic,
            verdict,
            confidence,
            justification,
            weight,
            priority,
            config_version,
            evaluate_time,
            evidence_sources,
            details,
        } = row;
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            decision_id,
            critic,
            verdict,
            confidence,
            justification,
            weight,
            priority,
            config_version,
            evaluate_time: evaluate_time.and_then(wire::timestamp),
            evidence_sources: sources_of(&evidence_sources),
            details: json::to_optional_object(&details),
        }
    }
}

fn sources_of(json: &Json) -> Vec<pb::EvidenceSource> {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Source {
        r#type: String,
        reference: String,
        relevance: Option<f64>,
    }
    let items: Vec<Source> = json::parsed(json);
    items
        .into_iter()
        .map(|Source { r#type, reference, relevance }| pb::EvidenceSource {
            r#type,
            reference,
            relevance,
        })
        .collect()
}
