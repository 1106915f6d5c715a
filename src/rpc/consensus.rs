//! Consensuses on the wire.

use super::json;
use super::resource::{New, Resource, read_new};
use super::wire::{self, Fields};
use crate::pb;
use crate::store::consensus::{Consensus, CreateConsensus};
use crate::store::noun::Noun;

const FRAMEWORKS_MAX: usize = 100;
const VERIFICATIONS_MAX: usize = 1000;

crate::requests! { Consensus:
    get GetConsensusRequest(consensus_id);
    list ListConsensusesRequest("create_time" by [("create_time", true)] of "d.claim_id" claim_id);
}

crate::requests!(@ask CreateConsensusRequest -> CreateConsensus, |fields, on_conflict, consensus_id, consensus| {
    CreateConsensus { row: read_new(fields, consensus_id, consensus, on_conflict), on_conflict }
});

impl Resource for pb::Consensus {
    type Row = Consensus;
    const CHANGEABLE: &'static [&'static str] = &[];

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    fn read(self, f: &mut Fields, New { id, meta }: New) -> Consensus {
        let pb::Consensus {
            id: _,
            etag: _,
            meta: _,
            claim_id,
            consensus_result,
            participating_frameworks,
            consensus_type,
            consensus_confidence,
            decision_time,
            verification_ids,
            decision_id,
            current: _,
            supersedes_id: _,
            superseded_by_id: _,
        } = self;
        let frameworks = f.texts(
            "participating_frameworks",
            participating_frameworks,
            FRAMEWORKS_MAX,
            |f, framework| f.name("", framework, 50),
        );
        let verifications =
            f.texts("verification_ids", verification_ids, VERIFICATIONS_MAX, |f, id| f.id("", id));
        Consensus {
            id,
            meta,
            claim_id: f.id("claim_id", claim_id),
            consensus_result: f.object("consensus_result", consensus_result),
            participating_frameworks: frameworks,
            consensus_type: f.name("consensus_type", consensus_type, 50),
            consensus_confidence: f.confidence("consensus_confidence", consensus_confidence),
            decision_time_us: f.span_us("decision_time", decision_time),
            verification_ids: verifications,
            decision_id: f.reference("decision_id", decision_id),
            current: true,
            supersedes_id: String::new(),
            superseded_by_id: String::new(),
        }
    }
}

impl From<Consensus> for pb::Consensus {
    fn from(row: Consensus) -> Self {
        let etag = row.etag();
        let Consensus {
            id,
            meta,
            claim_id,
            consensus_result,
            participating_frameworks,
            consensus_type,
            consensus_confidence,
            decision_time_us,
            verification_ids,
            decision_id,
            current,
            supersedes_id,
            superseded_by_id,
        } = row;
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            claim_id,
            consensus_result: json::to_optional_object(&consensus_result),
            participating_frameworks: json::parsed(&participating_frameworks),
            consensus_type,
            consensus_confidence,
            decision_time: decision_time_us.map(wire::duration_us),
            verification_ids: json::parsed(&verification_ids),
            decision_id,
            current,
            supersedes_id,
            superseded_by_id,
        }
    }
}
