//! Training examples on the wire.

use super::resource::{New, Resource};
use super::wire::{self, Fields};
use super::{filter, json};
use crate::pb;
use crate::store::noun::Noun;
use crate::store::training_example::{ClaimTrainingBatch, LISTING, TrainingExample};

const CLAIM_TEXT_BYTES_MAX: usize = 1 << 20;
const EXAMPLES_MAX: i32 = 1000;

crate::requests! { TrainingExample:
    create CreateTrainingExampleRequest(training_example_id training_example);
    batch BatchCreateTrainingExamplesRequest(requests);
    get GetTrainingExampleRequest(training_example_id);
    list ListTrainingExamplesRequest("create_time" by [("create_time", true)] of "d.training_batch_id" training_batch_id);
    delete DeleteTrainingExampleRequest(training_example_id);
}

crate::requests!(@ask ClaimTrainingBatchRequest -> ClaimTrainingBatch,
|fields, on_conflict, framework, training_batch_id, max_examples, r#where| {
    fields.only_fail(on_conflict);
    if !(1..=EXAMPLES_MAX).contains(&max_examples) {
        fields.wrong("max_examples", format!("must be from 1 to {EXAMPLES_MAX}"));
    }
    let filter = filter::selector(LISTING.fields, r#where, "where");
    ClaimTrainingBatch {
        framework: fields.name("framework", framework, 50),
        training_batch_id: fields.id("training_batch_id", training_batch_id),
        max_examples: max_examples.into(),
        filter: fields.taken(filter),
    }
});

impl Resource for pb::TrainingExample {
    type Row = TrainingExample;
    const CHANGEABLE: &'static [&'static str] = &[];
    const NO_REPLACE: Option<&'static str> =
        Some("a training example never changes; delete it and create another");

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    fn read(self, f: &mut Fields, New { id, meta }: New) -> TrainingExample {
        let pb::TrainingExample {
            id: _,
            etag: _,
            meta: _,
            framework,
            claim_id,
            claim_text,
            evidence,
            validity,
            confidence,
            metadata,
            used_in_training: _,
            training_batch_id: _,
        } = self;
        TrainingExample {
            id,
            meta,
            framework: f.name("framework", framework, 50),
            claim_id: f.reference("claim_id", claim_id),
            claim_text: f.name("claim_text", claim_text, CLAIM_TEXT_BYTES_MAX),
            evidence: f.object("evidence", evidence),
            validity,
            confidence: confidence.map(|value| f.confidence("confidence", value)),
            metadata: f.object("metadata", metadata),
            used_in_training: false,
            training_batch_id: String::new(),
        }
    }
}

impl From<TrainingExample> for pb::TrainingExample {
    fn from(row: TrainingExample) -> Self {
        let etag = row.etag();
        let TrainingExample {
            id,
            meta,
            framework,
            claim_id,
            claim_text,
            evidence,
            validity,
            confidence,
            metadata,
            used_in_training,
            training_batch_id,
        } = row;
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            framework,
            claim_id,
            claim_text,
            evidence: json::to_optional_object(&evidence),
            validity,
            confidence,
            metadata: json::to_optional_object(&metadata),
            used_in_training,
            training_batch_id,
        }
    }
}
