//! SearchService, and the precedents of a case.

mod legs;

use super::descriptor::ReadMask;
use super::page::{Binding, Pager, unpaged};
use super::precedent::case_hash;
use super::wire::{Fields, kind_name, kind_number};
use super::{Answer, Api, Paged as _, Parts, filter, object, open};
use crate::error::Violation;
use crate::pb;
use crate::store::caller::Caller;
use crate::store::filter::Filter;
use crate::store::precedent::{self, Precedent};
use crate::store::search::Words;
use crate::store::search::hybrid::{Found, Fused, Hybrid, LegFound};
use crate::store::search::kinds::{KINDS, Kind, kind};
use crate::store::search::precedents::Find;
use crate::store::search::ranking::{Details, Hidden, Hit, Search, Shown};
use crate::store::vector_space::VectorSpace;
use crate::{Error, Reason, Result};
use legs::{Asked, read_fusion, word_distance, word_legs};
use prost::Message as _;
use std::sync::Arc;
use std::time::SystemTime;
use tonic::{Request, Response};

const TEXT_BYTES_MAX: usize = 4 << 10;
/// How far down the pages of a ranking go.
const HITS_MAX: i64 = 1000;
const TOP_K: i32 = 10;
const TOP_K_MAX: i32 = 1000;

#[tonic::async_trait]
impl pb::search_service_server::SearchService for Api {
    async fn search(&self, request: Request<pb::SearchRequest>) -> Answer<pb::SearchResponse> {
        let (caller, mut request) = open(request)?;
        if request.near.is_some() {
            return Ok(Response::new(self.search_near(&caller, request).await?));
        }
        let page = request.page_mut().take();
        request.page = unpaged(page.as_ref());
        let binding = Binding::new(&caller.tenant, caller.method, &request.encode_to_vec());
        let (now, sizes) = (SystemTime::now(), self.page_sizes);
        let pager = Pager { key: &self.token_key, binding, now, sizes };
        let page = pager.ranked(page, HITS_MAX)?;

        let pb::SearchRequest {
            page: _,
            r#where,
            read_mask,
            kinds,
            text,
            highlight,
            min_score,
            near: _,
            fusion,
            explain,
        } = request;
        let kinds = read_kinds(kinds)?;
        let mut fields = Fields::default();
        let words = read_words(&mut fields, text);
        let min_score = min_score.map(|score| fields.confidence("min_score", score));
        if fusion.is_some() {
            fields.wrong("fusion", "is only taken together with near");
        }
        let words = fields.finish(words)?;
        let words = words.ok_or_else(|| nothing("text", "must have at least 1 byte"))?;
        let search = Search {
            shown: Shown { highlight, fields: read_shown(&kinds, read_mask)? },
            kinds: read_filters(kinds, r#where)?,
            words,
            min_score: min_score.unwrap_or(0.0),
            after: page.after,
            limit: page.size,
            snapshot: page.snapshot,
            hidden: Hidden::Left,
        };
        let found = self.store.search(&caller, search).await?;
        let passed = page.passed + found.hits.len() as i64;
        let next_page_token = match found.hits.last() {
            Some(last) if found.more && passed < HITS_MAX => {
                pager.next_ranked(passed, last.place, found.seq)?
            }
            _ => String::new(),
        };
        let read_at = Some(self.revision(&caller, found.seq)?);
        let page = pb::PageInfo { next_page_token, read_at, ..Default::default() };
        let told = LegFound { name: "text", hits: passed, ..LegFound::default() };
        let legs = if explain { word_legs(&[told], HITS_MAX, None) } else { Vec::new() };
        let hits = found.hits.into_iter().map(hit).collect();
        let page = Some(page);
        Ok(Response::new(pb::SearchResponse { hits, page, incomplete: false, legs }))
    }
}

impl Parts {
    /// A search with a vector leg: one page.
    async fn search_near(
        &self,
        caller: &Caller,
        request: pb::SearchRequest,
    ) -> Result<pb::SearchResponse> {
        let pb::SearchRequest {
            page,
            r#where,
            read_mask,
            kinds,
            text,
            highlight,
            min_score,
            near,
            fusion,
            explain,
        } = request;
        if page.as_ref().is_some_and(|page| !page.page_token.is_empty()) {
            let one = "must be empty together with near: there is one page";
            return Err(Error::invalid("page.page_token", one));
        }
        let binding = Binding::new(&caller.tenant, caller.method, &[]);
        let (now, sizes) = (SystemTime::now(), self.page_sizes);
        let limit =
            Pager { key: &self.token_key, binding, now, sizes }.ranked(page, HITS_MAX)?.size;
        let kinds = read_kinds(kinds)?;
        let mut fields = Fields::default();
        let words = read_words(&mut fields, text);
        let min_score = min_score.map(|score| fields.confidence("min_score", score));
        if fusion.is_some_and(|fusion| fusion.exact_weight.is_some()) {
            fields.wrong("fusion.exact_weight", "is only taken by FindPrecedents");
        }
        let asked = Asked { exact: false, text: words.is_some(), vector: true };
        let fusion = read_fusion(&mut fields, fusion, limit, asked);
        let words = fields.finish(words)?;
        let near = self.read_near(caller, near, fusion.leg_limit).await?;
        let space = near.as_ref().map(|near| Arc::clone(&near.space));
        let shown = Shown { highlight, fields: read_shown(&kinds, read_mask)? };
        let kinds = read_filters(kinds, r#where)?;
        let names: Vec<&'static Kind> = kinds.iter().map(|(kind, _)| *kind).collect();
        let hybrid = Hybrid {
            kinds,
            case_hash: None,
            words,
            near,
            fusion,
            min_score: min_score.unwrap_or(0.0),
            limit,
            snapshot: None,
            explain,
        };
        let Found { hits, legs, incomplete, seq } = self.store.fuse(caller, hybrid, shown).await?;
        let space = space.as_deref();
        let legs = if explain { word_legs(&legs, fusion.leg_limit, space) } else { Vec::new() };
        let hits = hits.into_iter().map(|hit| word_fused(hit, &names, space));
        let page =
            pb::PageInfo { read_at: Some(self.revision(caller, seq)?), ..Default::default() };
        Ok(pb::SearchResponse {
            hits: hits.collect::<Result<_>>()?,
            page: Some(page),
            incomplete,
            legs,
        })
    }
}

fn word_fused(
    (fused, details): (Fused, Details),
    kinds: &[&'static Kind],
    space: Option<&VectorSpace>,
) -> Result<pb::SearchHit> {
    let kind = kinds.get(fused.kind).ok_or_else(|| Error::internal("a hit of no kind"))?;
    let (distance, vector_score) = word_distance(space, &fused);
    let (highlights, fields) = details;
    Ok(pb::SearchHit {
        r#ref: Some(pb::ResourceRef {
            kind: kind_number(kind.name()).into(),
            id: fused.id,
            version: fused.version,
        }),
        uid: fused.uid.to_string(),
        score: fused.score,
        highlights,
        fields: fields.and_then(|fields| object::of_json(&fields)),
        // At most as many as a leg has rows.
        text_rank: fused.text_rank as i32,
        text_score: fused.text_score,
        vector_rank: fused.vector_rank as i32,
        distance,
        vector_score,
        embedding_id: fused.embedding_id.unwrap_or_default(),
    })
}

impl super::Paged for pb::SearchRequest {
    fn page_mut(&mut self) -> &mut Option<pb::PageRequest> {
        &mut self.page
    }
}

fn hit(hit: Hit) -> pb::SearchHit {
    let Hit { kind, id, version, place, highlights, fields } = hit;
    let kind = kind_number(kind.name()).into();
    pb::SearchHit {
        r#ref: Some(pb::ResourceRef { kind, id, version }),
        uid: place.uid.to_string(),
        score: place.score,
        highlights,
        fields: fields.and_then(|fields| object::of_json(&fields)),
        ..Default::default()
    }
}

/// A search for nothing.
fn nothing(field: &str, what: &str) -> Error {
    Error::invalid_because(Reason::SearchInvalid, field, what)
}

/// The words of a search; none without a text.
fn read_words(fields: &mut Fields, text: String) -> Option<Words> {
    let text = fields.text("text", text, TEXT_BYTES_MAX);
    (!text.is_empty()).then(|| Words::new(&text))
}

/// The kinds that are asked for, each once; all where none is named.
fn read_kinds(kinds: Vec<i32>) -> Result<Vec<&'static Kind>> {
    let mut found: Vec<&'static Kind> = Vec::new();
    for (n, number) in kinds.into_iter().enumerate() {
        let Some(kind) = kind_name(number).and_then(|name| kind(&name)) else {
            let known: Vec<_> = KINDS.iter().map(|kind| kind.name().to_ascii_uppercase()).collect();
            let what = format!("must be one of {}", known.join(", "));
            return Err(nothing(&format!("kinds[{n}]"), &what));
        };
        if !found.iter().any(|known| known.name() == kind.name()) {
            found.push(kind);
        }
    }
    Ok(if found.is_empty() { KINDS.iter().collect() } else { found })
}

/// The filter for each kind. What one of them does not have cannot be asked of all of them.
fn read_filters(
    kinds: Vec<&'static Kind>,
    selector: Option<pb::Selector>,
) -> Result<Vec<(&'static Kind, Filter)>> {
    let of = |kind: &'static Kind| {
        let filter = filter::selector(kind.listing.fields, selector.clone(), "where");
        Ok((kind, filter.map_err(|error| of_kind(error, kind.name()))?))
    };
    kinds.into_iter().map(of).collect()
}

/// Says in which kind a filter makes no sense.
fn of_kind(mut error: Error, kind: &str) -> Error {
    if let Error::Invalid { violations, .. } = &mut error {
        for Violation { description, .. } in violations {
            description.push_str(&format!(" (in {kind})"));
        }
    }
    error
}

/// The fields to show: those that one of the kinds has at least.
fn read_shown(
    kinds: &[&'static Kind],
    mask: Option<prost_types::FieldMask>,
) -> Result<Option<Vec<String>>> {
    let mut paths = mask.unwrap_or_default().paths;
    if paths.is_empty() {
        return Ok(None);
    }
    if paths.iter().any(|path| path == "*") {
        paths = kinds.iter().flat_map(|kind| kind.fields()).map(|f| f.name.to_owned()).collect();
    }
    paths.sort_unstable();
    paths.dedup();
    match paths.iter().find(|path| !kinds.iter().any(|kind| kind.field(path).is_some())) {
        None => Ok(Some(paths)),
        Some(path) => {
            let shown: String = path.chars().take(100).collect();
            let what = format!("names {shown:?}, which none of the kinds shows");
            Err(Error::invalid_because(Reason::UnknownField, "read_mask", what))
        }
    }
}

/// Answers FindPrecedents.
pub async fn find_precedents(
    parts: &Parts,
    request: Request<pb::FindPrecedentsRequest>,
) -> Result<pb::FindPrecedentsResponse> {
    let (caller, request) = open(request)?;
    let pb::FindPrecedentsRequest {
        input,
        case_hash: given,
        text,
        r#where,
        top_k,
        highlight,
        read_mask,
        near,
        fusion,
        explain,
    } = request;
    let mask = ReadMask::new::<pb::Precedent>(read_mask)?;
    let mut fields = Fields::default();
    if input.is_some() && !given.is_empty() {
        fields.wrong("case_hash", "must not be set together with input");
    }
    let is_hash = given.len() == 64
        && given.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !given.is_empty() && !is_hash {
        fields.wrong("case_hash", "must be 64 lower-case hexadecimal digits");
    }
    let asks_exactly = input.is_some() || !given.is_empty();
    let hash = match input {
        Some(input) => case_hash(&fields.object("input", Some(input))),
        None => given,
    };
    let words = read_words(&mut fields, text);
    let limit = match top_k {
        0 => TOP_K,
        1..=TOP_K_MAX => top_k,
        _ => {
            fields.wrong("top_k", format!("must be 0 to {TOP_K_MAX}"));
            TOP_K
        }
    };
    let asked = Asked { exact: asks_exactly, text: words.is_some(), vector: near.is_some() };
    let fusion = read_fusion(&mut fields, fusion, limit.into(), asked);
    let words = fields.finish(words)?;
    if !asks_exactly && words.is_none() && near.is_none() {
        return Err(nothing("text", "or input, case_hash or near must be set"));
    }
    let near = parts.read_near(&caller, near, fusion.leg_limit).await?;
    let space = near.as_ref().map(|near| Arc::clone(&near.space));
    let find = Find {
        case_hash: asks_exactly.then_some(hash),
        words,
        near,
        fusion,
        filter: filter::selector(precedent::LISTING.fields, r#where, "where")?,
        limit: limit.into(),
        highlight,
        explain,
    };
    let Found { hits, legs, incomplete, seq } = parts.store.find_precedents(&caller, find).await?;
    let space = space.as_deref();
    let hit = |(fused, (precedent, highlights)): (Fused, (Precedent, Vec<String>))| {
        let (distance, vector_score) = word_distance(space, &fused);
        Ok(pb::find_precedents_response::Hit {
            precedent: Some(mask.apply(precedent.into())?),
            score: fused.score,
            // At most as many as a leg has rows.
            exact_rank: fused.exact_rank as i32,
            text_rank: fused.text_rank as i32,
            text_score: fused.text_score,
            highlights,
            vector_rank: fused.vector_rank as i32,
            distance,
            vector_score,
            embedding_id: fused.embedding_id.unwrap_or_default(),
        })
    };
    Ok(pb::FindPrecedentsResponse {
        hits: hits.into_iter().map(hit).collect::<Result<_>>()?,
        read_at: Some(parts.revision(&caller, seq)?),
        incomplete,
        legs: if explain { word_legs(&legs, fusion.leg_limit, space) } else { Vec::new() },
    })
}
