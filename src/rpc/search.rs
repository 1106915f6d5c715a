//! SearchService, and the precedents of a case.

pub(super) mod legs;

use super::descriptor::ReadMask;
use super::page::{Binding, Pager, RankedPage, unpaged};
use super::precedent::case_hash;
use super::search_receipt::{Keep, KeptHit, kept_near, may_keep};
use super::wire::{Fields, kind_name, kind_number};
use super::{Answer, Api, Paged as _, Parts, filter, json_object, open};
use crate::error::Violation;
use crate::pb;
use crate::store::caller::Caller;
use crate::store::embedding::nearest::Method;
use crate::store::filter::Filter;
use crate::store::precedent::{self, Precedent};
use crate::store::search::Words;
use crate::store::search::hybrid::{Found, Fused, Hybrid, LegFound};
use crate::store::search::kinds::{KINDS, Kind, kind};
use crate::store::search::precedents::Find;
use crate::store::search::ranking::{Details, Hidden, Hit, Search, Shown};
use crate::store::vector_space::VectorSpace;
use crate::{Error, Reason, Result};
use legs::{Again, Asked, read_fusion, word_distance, word_legs};
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
        let (caller, request) = open(request)?;
        may_keep(&caller, "keep_receipt", request.keep_receipt)?;
        let answer = match request.near {
            Some(_) => self.search_near(&caller, request).await?,
            None => self.search_words(&caller, request).await?,
        };
        Ok(Response::new(answer))
    }

    async fn get_search_receipt(
        &self,
        request: Request<pb::GetSearchReceiptRequest>,
    ) -> Answer<pb::GetSearchReceiptResponse> {
        Ok(Response::new(Parts::get_search_receipt(self, request).await?))
    }

    async fn list_search_receipts(
        &self,
        request: Request<pb::ListSearchReceiptsRequest>,
    ) -> Answer<pb::ListSearchReceiptsResponse> {
        Ok(Response::new(Parts::list_search_receipts(self, request).await?))
    }

    async fn replay_search(
        &self,
        request: Request<pb::ReplaySearchRequest>,
    ) -> Answer<pb::ReplaySearchResponse> {
        Ok(Response::new(Parts::replay_search(self, request).await?))
    }
}

/// A request without what only says how it is answered.
fn bare(request: &pb::SearchRequest, limit: i64) -> pb::SearchRequest {
    // At most as many as a page has.
    let page = pb::PageRequest { page_size: limit as i32, ..Default::default() };
    pb::SearchRequest {
        page: Some(page),
        read_mask: None,
        highlight: false,
        explain: false,
        keep_receipt: false,
        ..request.clone()
    }
}

/// A search for words alone, of what is not known from its page.
fn read_by_words(request: pb::SearchRequest, page: RankedPage, hidden: Hidden) -> Result<Search> {
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
        explain: _,
        keep_receipt: _,
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
    Ok(Search {
        shown: Shown { highlight, fields: read_shown(&kinds, read_mask)? },
        kinds: read_filters(kinds, r#where)?,
        words,
        min_score: min_score.unwrap_or(0.0),
        after: page.after,
        limit: page.size,
        snapshot: page.snapshot,
        hidden,
    })
}

impl Parts {
    /// How many hits a page has that is the only one, or the first.
    fn page_size(&self, caller: &Caller, page: Option<pb::PageRequest>) -> Result<i64> {
        let binding = Binding::new(&caller.tenant, caller.method, &[]);
        let (now, sizes) = (SystemTime::now(), self.page_sizes);
        Ok(Pager { key: &self.token_key, binding, now, sizes }.ranked(page, HITS_MAX)?.size)
    }

    async fn search_words(
        &self,
        caller: &Caller,
        mut request: pb::SearchRequest,
    ) -> Result<pb::SearchResponse> {
        let page = request.page_mut().take();
        if request.keep_receipt && page.as_ref().is_some_and(|page| !page.page_token.is_empty()) {
            let first = "is only taken with the first page";
            return Err(Error::invalid("keep_receipt", first));
        }
        request.page = unpaged(page.as_ref());
        // What is kept of one page is not asked of the next.
        let of_all = pb::SearchRequest { keep_receipt: false, ..request.clone() };
        let binding = Binding::new(&caller.tenant, caller.method, &of_all.encode_to_vec());
        let (now, sizes) = (SystemTime::now(), self.page_sizes);
        let pager = Pager { key: &self.token_key, binding, now, sizes };
        let page = pager.ranked(page, HITS_MAX)?;
        let (explain, keep) = (request.explain, request.keep_receipt);
        let asked = keep.then(|| bare(&request, page.size));
        let passed = page.passed;
        let search = read_by_words(request, page, Hidden::Left)?;
        let found = self.store.search(caller, search).await?;
        let search_receipt_id = match asked {
            Some(asked) => {
                let (request, hits) = (asked.encode_to_vec(), KeptHit::of_ranked(&found.hits));
                let (seq, exact, space, like) = (found.seq, true, None, None);
                self.keep(caller, Keep { request, hits, seq, exact, space, like }).await?
            }
            None => String::new(),
        };
        let passed = passed + found.hits.len() as i64;
        let next_page_token = match found.hits.last() {
            Some(last) if found.more && passed < HITS_MAX => {
                pager.next_ranked(passed, last.place, found.seq)?
            }
            _ => String::new(),
        };
        let read_at = Some(self.revision(caller, found.seq)?);
        let page = Some(pb::PageInfo { next_page_token, read_at, ..Default::default() });
        let told = LegFound { name: "text", hits: passed, ..LegFound::default() };
        let legs = if explain { word_legs(&[told], HITS_MAX, None) } else { Vec::new() };
        let hits = found.hits.into_iter().map(hit).collect();
        Ok(pb::SearchResponse { hits, page, incomplete: false, legs, search_receipt_id })
    }

    /// A search for words alone that is made again.
    pub(super) fn again_by_words(
        &self,
        request: pb::SearchRequest,
        again: Again,
    ) -> Result<Search> {
        let size = request.page.as_ref().map_or(0, |page| i64::from(page.page_size));
        let page = RankedPage { size, passed: 0, after: None, snapshot: again.seq };
        read_by_words(request, page, Hidden::Shown)
    }

    /// A search with a vector leg: one page.
    async fn search_near(
        &self,
        caller: &Caller,
        request: pb::SearchRequest,
    ) -> Result<pb::SearchResponse> {
        let (explain, keep) = (request.explain, request.keep_receipt);
        let asked = keep.then(|| request.clone());
        let (hybrid, shown) = self.read_hybrid(caller, request, Again::default()).await?;
        let (leg_limit, limit) = (hybrid.fusion.leg_limit, hybrid.limit);
        let near = hybrid.near.clone();
        let space = near.as_ref().map(|near| Arc::clone(&near.space));
        let names: Vec<&'static Kind> = hybrid.kinds.iter().map(|(kind, _)| *kind).collect();
        let Found { hits, legs, incomplete, seq } = self.store.fuse(caller, hybrid, shown).await?;
        let search_receipt_id = match asked {
            Some(asked) => {
                let params = asked.near.as_ref().and_then(|near| near.params);
                let bare = pb::SearchRequest {
                    near: near.as_ref().map(|near| kept_near(near, params)),
                    ..bare(&asked, limit)
                };
                let hits = KeptHit::of_fused(hits.iter().map(|(fused, _)| fused), &names)?;
                let (space, like) = Keep::near(near.as_ref());
                let (request, exact) = (bare.encode_to_vec(), is_exact(&legs));
                self.keep(caller, Keep { request, hits, seq, exact, space, like }).await?
            }
            None => String::new(),
        };
        let space = space.as_deref();
        let legs = if explain { word_legs(&legs, leg_limit, space) } else { Vec::new() };
        let hits = hits.into_iter().map(|hit| word_fused(hit, &names, space));
        let read_at = Some(self.revision(caller, seq)?);
        Ok(pb::SearchResponse {
            hits: hits.collect::<Result<_>>()?,
            page: Some(pb::PageInfo { read_at, ..Default::default() }),
            incomplete,
            legs,
            search_receipt_id,
        })
    }

    /// A search with a vector leg, and what is shown of its hits.
    pub(super) async fn read_hybrid(
        &self,
        caller: &Caller,
        request: pb::SearchRequest,
        again: Again,
    ) -> Result<(Hybrid, Shown)> {
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
            keep_receipt: _,
        } = request;
        if page.as_ref().is_some_and(|page| !page.page_token.is_empty()) {
            let one = "must be empty together with near: there is one page";
            return Err(Error::invalid("page.page_token", one));
        }
        let limit = self.page_size(caller, page)?;
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
        let near = self.read_near(caller, near, fusion.leg_limit, again).await?;
        let shown = Shown { highlight, fields: read_shown(&kinds, read_mask)? };
        let hybrid = Hybrid {
            kinds: read_filters(kinds, r#where)?,
            case_hash: None,
            words,
            near,
            fusion,
            min_score: min_score.unwrap_or(0.0),
            limit,
            snapshot: again.seq,
            explain,
        };
        Ok((hybrid, shown))
    }

    /// The search that FindPrecedents asks for.
    pub(super) async fn read_find(
        &self,
        caller: &Caller,
        request: pb::FindPrecedentsRequest,
        again: Again,
    ) -> Result<Find> {
        let pb::FindPrecedentsRequest {
            input,
            case_hash: given,
            text,
            r#where,
            top_k,
            highlight,
            read_mask: _,
            near,
            fusion,
            explain,
            keep_receipt: _,
        } = request;
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
        Ok(Find {
            case_hash: asks_exactly.then_some(hash),
            words,
            near: self.read_near(caller, near, fusion.leg_limit, again).await?,
            fusion,
            filter: filter::selector(precedent::LISTING.fields, r#where, "where")?,
            limit: limit.into(),
            highlight,
            explain,
        })
    }
}

/// Whether a search looked at everything.
fn is_exact(legs: &[LegFound]) -> bool {
    legs.iter().all(|leg| leg.method == Method::Exact)
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
        fields: fields.and_then(|fields| json_object::of_json(&fields)),
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
        fields: fields.and_then(|fields| json_object::of_json(&fields)),
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
    let (caller, mut request) = open(request)?;
    may_keep(&caller, "keep_receipt", request.keep_receipt)?;
    let mask = ReadMask::new::<pb::Precedent>(request.read_mask.take())?;
    let (explain, keep) = (request.explain, request.keep_receipt);
    let asked = keep.then(|| request.clone());
    let find = parts.read_find(&caller, request, Again::default()).await?;
    let (leg_limit, hash, near) =
        (find.fusion.leg_limit, find.case_hash.clone().unwrap_or_default(), find.near.clone());
    let space = near.as_ref().map(|near| Arc::clone(&near.space));
    let Found { hits, legs, incomplete, seq } = parts.store.find_precedents(&caller, find).await?;
    let search_receipt_id = match asked {
        Some(asked) => {
            let params = asked.near.as_ref().and_then(|near| near.params);
            // An input has no one encoding, but its hash is all that is looked for. No input has none.
            let input = asked.input.filter(|_| hash.is_empty());
            let bare = pb::FindPrecedentsRequest {
                input,
                case_hash: hash,
                near: near.as_ref().map(|near| kept_near(near, params)),
                highlight: false,
                explain: false,
                keep_receipt: false,
                ..asked
            };
            let kinds: Vec<_> = kind("precedent").into_iter().collect();
            let hits = KeptHit::of_fused(hits.iter().map(|(fused, _)| fused), &kinds)?;
            let (space, like) = Keep::near(near.as_ref());
            let (request, exact) = (bare.encode_to_vec(), is_exact(&legs));
            parts.keep(&caller, Keep { request, hits, seq, exact, space, like }).await?
        }
        None => String::new(),
    };
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
        legs: if explain { word_legs(&legs, leg_limit, space) } else { Vec::new() },
        search_receipt_id,
    })
}
