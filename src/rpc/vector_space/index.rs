//! Indexes of spaces on the wire: what is asked for, how far it is, what would be better, how much it finds.

use crate::pb;
use crate::pb::get_vector_space_stats_response::IndexState;
use crate::pb::get_vector_space_stats_response::index_state::State;
use crate::rpc::Parts;
use crate::rpc::embedding::search::{read_params, word_method};
use crate::rpc::wire::{self, Fields};
use crate::store::caller::Caller;
use crate::store::operation::WantIndex;
use crate::store::vector_index::advice::advise;
use crate::store::vector_index::stats::IndexStats;
use crate::store::vector_index::{
    EF_CONSTRUCTION_DEFAULT, HNSW, IVFFLAT, IndexSpec, M_DEFAULT, NONE, READY, SUSPECT, UNSUITED,
};
use crate::{Error, Result};
use std::sync::Arc;

const SAMPLE: i32 = 100;
const SAMPLE_MAX: i32 = 1000;
const TOP_K: i32 = 10;
const TOP_K_MAX: i32 = 100;

/// An index on the wire.
pub(super) fn word(spec: IndexSpec) -> pb::VectorIndex {
    let IndexSpec { method, codes, m, ef_construction, lists } = spec;
    pb::VectorIndex { method: method.into(), codes: codes.into(), m, ef_construction, lists }
}

/// A number within a range, where 0 stands for another one.
fn number(fields: &mut Fields, name: &str, value: i32, least: i32, most: i32, default: i32) -> i32 {
    match value {
        0 => default,
        _ if (least..=most).contains(&value) => value,
        _ => {
            fields.wrong(
                name,
                format!("must be {least} to {most}, or 0 for the default, and is {value}"),
            );
            default
        }
    }
}

/// An index as it is asked for. Paths are those in the message.
fn read(fields: &mut Fields, index: pb::VectorIndex) -> IndexSpec {
    let spec = read_wish(fields, index);
    if spec.is_none() {
        fields.wrong("method", "must not be NONE: use DropVectorIndex");
    }
    spec
}

/// The same for a new space, which may be to have none.
pub(super) fn read_wish(fields: &mut Fields, index: pb::VectorIndex) -> IndexSpec {
    let pb::VectorIndex { method, codes, m, ef_construction, lists } = index;
    let method = fields.value::<pb::vector_index::Method>("method", method, HNSW);
    let codes = fields.value::<pb::vector_index::Codes>("codes", codes, 0);
    let mut only = |name: &str, value: i32, of: i16, what: &str| {
        if value != 0 && method != of {
            fields.wrong(name, format!("is for {what} only"));
        }
    };
    only("m", m, HNSW, "HNSW");
    only("ef_construction", ef_construction, HNSW, "HNSW");
    only("lists", lists, IVFFLAT, "IVFFLAT");
    match method {
        NONE => IndexSpec::NONE,
        IVFFLAT => {
            let lists = number(fields, "lists", lists, 1, 32_768, 0);
            IndexSpec { method, codes, m: 0, ef_construction: 0, lists }
        }
        _ => {
            let m = number(fields, "m", m, 2, 100, M_DEFAULT);
            let least = 4.max(2 * m);
            let default = EF_CONSTRUCTION_DEFAULT.max(least);
            let ef_construction =
                number(fields, "ef_construction", ef_construction, least, 1000, default);
            IndexSpec { method, codes, m, ef_construction, lists: 0 }
        }
    }
}

crate::requests!(@ask BuildVectorIndexRequest -> WantIndex, |fields, on_conflict, vector_space_id, index| {
    fields.only_fail(on_conflict);
    let space_id = fields.id("vector_space_id", vector_space_id);
    let spec = match index {
        Some(index) => fields.within("index", |fields| read(fields, index)),
        None => IndexSpec::HNSW,
    };
    WantIndex { space_id, spec }
});

crate::requests!(@ask DropVectorIndexRequest -> WantIndex, |fields, on_conflict, vector_space_id| {
    fields.only_fail(on_conflict);
    WantIndex { space_id: fields.id("vector_space_id", vector_space_id), spec: IndexSpec::NONE }
});

impl From<IndexStats> for IndexState {
    fn from(index: IndexStats) -> Self {
        let IndexStats {
            uid: _,
            method,
            codes,
            m,
            ef_construction,
            lists,
            state,
            filled: _,
            total: _,
            fresh,
            table_bytes,
            index_bytes,
            build_done: _,
            build_total: _,
            build_phase: _,
            ready_time,
            probe_time,
            probe_recall,
        } = index;
        let state = match state {
            READY => State::Ready,
            SUSPECT | UNSUITED => State::Suspect,
            _ => State::Building,
        };
        Self {
            index: Some(word(IndexSpec { method, codes, m, ef_construction, lists })),
            state: state.into(),
            unsealed_count: fresh,
            size_bytes: index_bytes,
            codes_size_bytes: table_bytes,
            ready_time: ready_time.and_then(wire::timestamp),
            probe_time: probe_time.and_then(wire::timestamp),
            probe_recall,
        }
    }
}

impl Parts {
    pub(super) async fn vector_space_stats(
        &self,
        caller: &Caller,
        name: String,
    ) -> Result<pb::GetVectorSpaceStatsResponse> {
        let space = self.space(caller, "vector_space_id", name, None).await?;
        let stats = self.store.space_stats(caller, &space).await?;
        let advice = advise(&space, &stats);
        let version = self.store.database_status().await?.pgvector_version;
        Ok(pb::GetVectorSpaceStatsResponse {
            vector_space_id: space.id,
            backend: "pgvector".into(),
            backend_version: version,
            embedding_count: stats.rows,
            dimensions: space.dimensions,
            metric: space.metric.into(),
            indexes: stats.indexes.into_iter().map(Into::into).collect(),
            advice: advice.words,
            advised_index: advice.spec.map(word),
        })
    }

    pub(super) async fn recall(
        &self,
        caller: &Caller,
        request: pb::MeasureRecallRequest,
    ) -> Result<pb::MeasureRecallResponse> {
        let pb::MeasureRecallRequest { vector_space_id, sample_size, top_k, params } = request;
        let mut fields = Fields::default();
        let sample = number(&mut fields, "sample_size", sample_size, 1, SAMPLE_MAX, SAMPLE);
        let top_k = number(&mut fields, "top_k", top_k, 1, TOP_K_MAX, TOP_K);
        let how = fields.within("params", |fields| read_params(fields, params, ("top_k", top_k)));
        let how = fields.finish(how)?;
        let space = Arc::new(self.space(caller, "vector_space_id", vector_space_id, None).await?);
        let sample = usize::try_from(sample).map_err(Error::internal)?;
        let recall = self.store.measure_recall(caller, &space, sample, top_k.into(), how).await?;
        Ok(pb::MeasureRecallResponse {
            recall: recall.part,
            sample_size: i32::try_from(recall.sample).map_err(Error::internal)?,
            method: word_method(recall.method).into(),
            exact_p50_ms: recall.exact.percentile_ms(50),
            exact_p99_ms: recall.exact.percentile_ms(99),
            indexed_p50_ms: recall.indexed.percentile_ms(50),
            indexed_p99_ms: recall.indexed.percentile_ms(99),
        })
    }
}
