//! Analyses on the wire.

use super::json;
use super::resource::{New, Resource, read_new};
use super::wire::{self, Fields};
use crate::pb;
use crate::store::analysis::{Analysis, CreateAnalysis};
use crate::store::noun::Noun;

crate::requests! { Analysis:
    get GetAnalysisRequest(analysis_id);
    list ListAnalysesRequest("create_time" by [("create_time", true)] of "d.document_id" document_id in "document");
}

crate::requests!(@ask CreateAnalysisRequest -> CreateAnalysis, |fields, on_conflict, analysis_id, analysis| {
    CreateAnalysis { row: read_new(fields, analysis_id, analysis, on_conflict), on_conflict }
});

impl Resource for pb::Analysis {
    type Row = Analysis;
    const CHANGEABLE: &'static [&'static str] = &[];
    const NO_REPLACE: Option<&'static str> =
        Some("an analysis never changes; analyse again instead");

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    fn read(self, f: &mut Fields, New { id, meta }: New) -> Analysis {
        let pb::Analysis {
            id: _,
            etag: _,
            meta: _,
            document_id,
            analysis_version,
            category,
            summary,
            tags,
            raw_response,
            provider_used,
            model_used,
            trace_id,
            owner_id,
        } = self;
        if analysis_version < 0 {
            f.wrong("analysis_version", "must not be negative");
        }
        Analysis {
            id,
            meta,
            // The document's, once it is known.
            document_uid: uuid::Uuid::nil(),
            document_id: f.id("document_id", document_id),
            analysis_version,
            category: f.text("category", category, 255),
            summary: f.text("summary", summary, wire::LONG_TEXT_BYTES_MAX),
            tags: f.tags("tags", tags),
            raw_response: f.object("raw_response", raw_response),
            provider_used: f.text("provider_used", provider_used, 255),
            model_used: f.text("model_used", model_used, 255),
            trace_id: f.text("trace_id", trace_id, 255),
            owner_id: f.text("owner_id", owner_id, 255),
        }
    }
}

impl From<Analysis> for pb::Analysis {
    fn from(row: Analysis) -> Self {
        let etag = row.etag();
        let Analysis {
            id,
            meta,
            document_uid: _,
            document_id,
            analysis_version,
            category,
            summary,
            tags,
            raw_response,
            provider_used,
            model_used,
            trace_id,
            owner_id,
        } = row;
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            document_id,
            analysis_version,
            category,
            summary,
            tags: json::parsed(&tags),
            raw_response: json::to_optional_object(&raw_response),
            provider_used,
            model_used,
            trace_id,
            owner_id,
        }
    }
}
