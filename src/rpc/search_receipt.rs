//! Receipts of searches: how they are kept, read, and made again.

use super::descriptor::ReadMask;
use super::embedding::search::Hits;
use super::resource::{New, Resource};
use super::search::legs::Again;
use super::wire::{self, Fields, kind_number};
use super::{Parts, json, open};
use crate::pb;
use crate::store::caller::{Caller, Role, Roles};
use crate::store::change::{Create, OnConflict};
use crate::store::embedding::{Embedding, full_id};
use crate::store::log::hex;
use crate::store::noun::{Meta, Noun};
use crate::store::search::hybrid::{Found, Fused, Near};
use crate::store::search::kinds::Kind;
use crate::store::search::ranking::Hit;
use crate::store::search_receipt::SearchReceipt;
use crate::store::vector::{Numbers, f32_le};
use crate::store::vector_space::VectorSpace;
use crate::store::write::WriteOptions;
use crate::{Error, Reason, Result};
use prost::Message as _;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use tonic::Request;
use uuid::Uuid;

/// A hit as it is kept.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct KeptHit {
    kind: String,
    id: String,
    uid: String,
    version: i64,
    score: f64,
    distance: Option<f64>,
    exact_rank: i64,
    text_rank: i64,
    vector_rank: i64,
    embedding_id: String,
}

impl KeptHit {
    /// Hits of fused legs, which name their kinds by their places.
    pub fn of_fused<'a>(
        hits: impl IntoIterator<Item = &'a Fused>,
        kinds: &[&'static Kind],
    ) -> Result<Vec<Self>> {
        let kept = hits.into_iter().map(|hit| {
            let kind = kinds.get(hit.kind).ok_or_else(|| Error::internal("a hit of no kind"))?;
            Ok(Self {
                kind: kind.name().to_owned(),
                id: hit.id.clone(),
                uid: hit.uid.to_string(),
                version: hit.version,
                score: hit.score,
                distance: hit.distance,
                exact_rank: hit.exact_rank,
                text_rank: hit.text_rank,
                vector_rank: hit.vector_rank,
                embedding_id: hit.embedding_id.clone().unwrap_or_default(),
            })
        });
        kept.collect()
    }

    /// Hits of a search for words alone.
    pub fn of_ranked(hits: &[Hit]) -> Vec<Self> {
        let kept = hits.iter().zip(1..).map(|(hit, rank)| Self {
            kind: hit.kind.name().to_owned(),
            id: hit.id.clone(),
            uid: hit.place.uid.to_string(),
            version: hit.version,
            score: hit.place.score,
            text_rank: rank,
            ..Self::default()
        });
        kept.collect()
    }

    /// Hits of a search for the nearest embeddings.
    pub(super) fn of_vectors(found: &Hits) -> Vec<Self> {
        let kept = found.hits.iter().zip(1..).map(|(hit, rank)| {
            let embedding = hit.embedding.as_ref();
            let meta = embedding.and_then(|embedding| embedding.meta.as_ref());
            let id = embedding.map(|embedding| embedding.id.as_str()).unwrap_or_default();
            Self {
                kind: Embedding::KIND.to_owned(),
                id: full_id(found.space.meta.uid, id),
                uid: meta.map(|meta| meta.uid.clone()).unwrap_or_default(),
                version: meta.map(|meta| meta.version).unwrap_or_default(),
                score: hit.score,
                distance: Some(hit.distance),
                vector_rank: rank,
                embedding_id: id.to_owned(),
                ..Self::default()
            }
        });
        kept.collect()
    }

    fn reference(&self) -> pb::ResourceRef {
        let kind = kind_number(&self.kind).into();
        pb::ResourceRef { kind, id: self.id.clone(), version: self.version }
    }
}

impl From<KeptHit> for pb::ReceiptHit {
    fn from(hit: KeptHit) -> Self {
        let reference = Some(hit.reference());
        let KeptHit {
            kind: _,
            id: _,
            uid,
            version: _,
            score,
            distance,
            exact_rank,
            text_rank,
            vector_rank,
            embedding_id,
        } = hit;
        Self {
            r#ref: reference,
            uid,
            score,
            distance,
            // At most as many as a leg has rows.
            exact_rank: exact_rank as i32,
            text_rank: text_rank as i32,
            vector_rank: vector_rank as i32,
            embedding_id,
        }
    }
}

/// What a receipt is made of.
pub struct Keep {
    /// The request as it was understood, encoded.
    pub request: Vec<u8>,
    pub hits: Vec<KeptHit>,
    pub seq: i64,
    pub exact: bool,
    /// The uid and the id of the space.
    pub space: Option<(Uuid, String)>,
    pub like: Option<Uuid>,
}

impl Keep {
    /// Of a search with this vector leg, if it has one.
    pub fn near(near: Option<&Near>) -> (Option<(Uuid, String)>, Option<Uuid>) {
        let space = near.map(|near| (near.space.meta.uid, near.space.id.clone()));
        (space, near.and_then(|near| near.but))
    }

    fn receipt(self, caller: &Caller) -> Result<SearchReceipt> {
        let Keep { request, hits, seq, exact, space, like } = self;
        let uid = Uuid::now_v7();
        let hits = serde_json::to_value(&hits).map_err(Error::internal)?;
        let (space_uid, space_id) = space.unzip();
        Ok(SearchReceipt {
            id: uid.to_string(),
            meta: Meta::new(uid),
            method: caller.method.to_owned(),
            request_digest: hex(&Sha256::digest(&request)),
            request,
            space_uid,
            space_id: space_id.unwrap_or_default(),
            like_uid: like,
            hits: json::of_value(&hits),
            read_seq: seq,
            exact,
        })
    }
}

/// A vector as a kept request has it.
pub fn kept_vector(numbers: &Numbers) -> pb::Vector {
    pb::Vector { data: Some(pb::vector::Data::F32Le(f32_le(numbers.values()).into())) }
}

/// A vector leg as a kept request has it: by the space's own id and with the vector itself.
pub fn kept_near(near: &Near, params: Option<pb::SearchParams>) -> pb::VectorLeg {
    pb::VectorLeg {
        vector_space_id: near.space.id.clone(),
        vector: Some(kept_vector(&near.target)),
        like_embedding_id: String::new(),
        params,
    }
}

/// Refuses to keep a receipt, asked for in that field, for those who may only read.
pub fn may_keep(caller: &Caller, field: &str, keep: bool) -> Result<()> {
    if !keep {
        return Ok(());
    }
    let roles = Roles::of(&[Role::Writer, Role::Admin]);
    if !caller.roles.intersects(roles) {
        let message = format!("{field} needs one of the roles {roles}");
        return Err(Error::Forbidden { reason: Reason::RoleMissing, message });
    }
    if caller.is_read_only {
        let message = "the tenant is read-only, so no receipt can be kept".to_owned();
        return Err(Error::Refused { reason: Reason::ReadOnly, message, metadata: Vec::new() });
    }
    Ok(())
}

impl Parts {
    /// Records what was asked and found; the id of the receipt.
    pub(super) async fn keep(&self, caller: &Caller, keep: Keep) -> Result<String> {
        super::only(self.keep_all(caller, vec![keep]).await?)
    }

    /// Records all of what was asked and found or nothing; the ids of the receipts, in that order.
    pub(super) async fn keep_all(&self, caller: &Caller, keep: Vec<Keep>) -> Result<Vec<String>> {
        let rows = keep.into_iter().map(|keep| keep.receipt(caller)).collect::<Result<Vec<_>>>()?;
        let ids = rows.iter().map(|row| row.id.clone()).collect();
        let create = Create { rows, on_conflict: OnConflict::Fail };
        self.store.write(caller.clone(), WriteOptions::default(), create).await?;
        Ok(ids)
    }

    pub(super) async fn get_search_receipt(
        &self,
        request: Request<pb::GetSearchReceiptRequest>,
    ) -> Result<pb::GetSearchReceiptResponse> {
        let (caller, request) = open(request)?;
        let pb::GetSearchReceiptRequest { search_receipt_id, consistency, read_mask } = request;
        let mask = ReadMask::new::<pb::SearchReceipt>(read_mask)?;
        let id = wire::id("search_receipt_id", search_receipt_id)?;
        let row: SearchReceipt = self.get(&caller, id, consistency, 0).await?;
        let search_receipt = Some(mask.apply(self.worded(&caller, row)?)?);
        Ok(pb::GetSearchReceiptResponse { search_receipt })
    }

    fn worded(&self, caller: &Caller, row: SearchReceipt) -> Result<pb::SearchReceipt> {
        let read_at = Some(self.revision(caller, row.read_seq)?);
        Ok(pb::SearchReceipt { read_at, ..row.into() })
    }

    pub(super) async fn list_search_receipts(
        &self,
        request: Request<pb::ListSearchReceiptsRequest>,
    ) -> Result<pb::ListSearchReceiptsResponse> {
        let caller = request.extensions().get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| Error::internal("a call came past the door"))?;
        let super::resource::Found { rows, page, mask, now: _ } = self.get_rows(request).await?;
        let receipts = rows.into_iter().map(|row| mask.apply(self.worded(&caller, row)?));
        Ok(pb::ListSearchReceiptsResponse {
            search_receipts: receipts.collect::<Result<_>>()?,
            page,
        })
    }

    pub(super) async fn replay_search(
        &self,
        request: Request<pb::ReplaySearchRequest>,
    ) -> Result<pb::ReplaySearchResponse> {
        let (caller, request) = open(request)?;
        let pb::ReplaySearchRequest { search_receipt_id, at_original_revision } = request;
        let id = wire::id("search_receipt_id", search_receipt_id)?;
        let row: SearchReceipt = self.store.get(&caller, &id).await?;
        let again = Again {
            seq: at_original_revision.then_some(row.read_seq),
            space: row.space_uid,
            like: row.like_uid,
            exactly: true,
        };
        let (found, seq) = self.again(&caller, &row, again).await?;
        let kept: Vec<KeptHit> =
            serde_json::from_slice(row.hits.text()).map_err(Error::internal)?;
        let by_uid = |hits: &[KeptHit]| -> HashMap<String, KeptHit> {
            hits.iter().map(|hit| (hit.uid.clone(), hit.clone())).collect()
        };
        let (before, after) = (by_uid(&kept), by_uid(&found));
        let missing = kept.iter().filter(|hit| !after.contains_key(&hit.uid));
        let added = found.iter().filter(|hit| !before.contains_key(&hit.uid));
        let changed =
            found.iter().filter(|hit| before.get(&hit.uid).is_some_and(|was| was != *hit));
        Ok(pb::ReplaySearchResponse {
            missing: missing.map(KeptHit::reference).collect(),
            added: added.map(KeptHit::reference).collect(),
            changed: changed.map(KeptHit::reference).collect(),
            identical: kept == found,
            read_at: Some(self.revision(&caller, seq)?),
            hits: found.into_iter().map(Into::into).collect(),
        })
    }

    /// Makes the search of a receipt again.
    async fn again(
        &self,
        caller: &Caller,
        row: &SearchReceipt,
        again: Again,
    ) -> Result<(Vec<KeptHit>, i64)> {
        let bytes = row.request.as_slice();
        match row.method.rsplit('/').next().unwrap_or_default() {
            "Search" => {
                let request = pb::SearchRequest::decode(bytes).map_err(Error::internal)?;
                if request.near.is_none() {
                    let search = self.again_by_words(request, again)?;
                    let found = self.store.search(caller, search).await?;
                    return Ok((KeptHit::of_ranked(&found.hits), found.seq));
                }
                let (hybrid, _) = self.read_hybrid(caller, request, again).await?;
                let kinds: Vec<_> = hybrid.kinds.iter().map(|(kind, _)| *kind).collect();
                let Found { hits, seq, .. } = self.store.fuse_names(caller, hybrid).await?;
                Ok((KeptHit::of_fused(hits.iter().map(|(fused, ())| fused), &kinds)?, seq))
            }
            "FindPrecedents" => {
                let request = pb::FindPrecedentsRequest::decode(bytes).map_err(Error::internal)?;
                let mut hybrid = self.read_find(caller, request, again).await?.hybrid()?;
                hybrid.snapshot = again.seq;
                let kinds: Vec<_> = hybrid.kinds.iter().map(|(kind, _)| *kind).collect();
                let Found { hits, seq, .. } = self.store.fuse_names(caller, hybrid).await?;
                Ok((KeptHit::of_fused(hits.iter().map(|(fused, ())| fused), &kinds)?, seq))
            }
            // Each search of a batch has a receipt of its own.
            "SearchVectors" | "BatchSearchVectors" => {
                let request = pb::SearchVectorsRequest::decode(bytes).map_err(Error::internal)?;
                let query = request.query.ok_or_else(|| Error::internal("a receipt of nothing"))?;
                let queries = vec![("query".to_owned(), query)];
                let (found, seq) = self.search_spaces(caller, queries, again, None).await?;
                Ok((KeptHit::of_vectors(&super::only(found)?), seq))
            }
            other => Err(Error::internal(format!("a receipt of {other}"))),
        }
    }
}

crate::requests! { SearchReceipt:
    list ListSearchReceiptsRequest("create_time" by [("create_time", true)]);
}

impl Again {
    /// Holds a space that was found by its id to the one that was searched.
    pub fn hold(&self, space: VectorSpace) -> Result<VectorSpace> {
        match self.space {
            Some(uid) if uid != space.meta.uid => {
                Err(Error::not_found(VectorSpace::KIND, &space.id))
            }
            _ => Ok(space),
        }
    }
}

impl Resource for pb::SearchReceipt {
    type Row = SearchReceipt;
    const CHANGEABLE: &'static [&'static str] = &[];

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    /// Nobody writes one: it comes from the search that it is the receipt of.
    fn read(self, _: &mut Fields, New { id, meta }: New) -> SearchReceipt {
        SearchReceipt {
            id,
            meta,
            method: self.method,
            request_digest: self.request_digest,
            request: self.request.to_vec(),
            space_uid: None,
            space_id: self.vector_space_id,
            like_uid: None,
            hits: crate::store::canonical::Json::array(),
            read_seq: 0,
            exact: self.exact,
        }
    }
}

impl From<SearchReceipt> for pb::SearchReceipt {
    fn from(row: SearchReceipt) -> Self {
        let etag = row.etag();
        let SearchReceipt {
            id,
            meta,
            method,
            request,
            request_digest,
            space_uid,
            space_id,
            like_uid,
            hits,
            read_seq: _,
            exact,
        } = row;
        let hits: Vec<KeptHit> = json::parsed(&hits);
        let uid = |uid: Option<Uuid>| uid.map(|uid| uid.to_string()).unwrap_or_default();
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            method,
            request: request.into(),
            request_digest,
            vector_space_id: space_id,
            vector_space_uid: uid(space_uid),
            like_embedding_uid: uid(like_uid),
            hits: hits.into_iter().map(Into::into).collect(),
            // Told by whoever knows the tenant.
            read_at: None,
            exact,
        }
    }
}
