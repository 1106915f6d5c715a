//! Page requests and the tokens that carry a listing from one page to the next.

use crate::error::{Error, Reason, Result};
use crate::pb;
use crate::rpc::filter::{order, time};
use crate::rpc::token::TokenKey;
use crate::store::filter::{Field, whole_micros};
use crate::store::list::{Cursor, Order, Window};
use crate::store::search::ranking::Place;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

const MAX_SKIP: i64 = 10_000;

/// What the configuration says about pages.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Resources on a page whose size the caller leaves open.
    pub default: i64,
    pub max: i64,
    /// How long a page token works.
    pub token_life: Duration,
}

/// What all pages of a listing have in common: a hash over whose, which method and what was asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Binding([u8; 16]);

impl Binding {
    /// `request` is the encoded request after [`unpaged`]; it must not have maps, whose encoding varies.
    pub fn new(tenant: &str, method: &str, request: &[u8]) -> Self {
        let mut hash = Sha256::new();
        for part in [tenant.as_bytes(), method.as_bytes(), request] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let mut binding = [0; 16];
        for (to, from) in binding.iter_mut().zip(hash.finalize()) {
            *to = from;
        }
        Self(binding)
    }
}

/// The page request without what differs from page to page: put it into the request that is hashed.
pub fn unpaged(page: Option<&pb::PageRequest>) -> Option<pb::PageRequest> {
    let order_by = page.map(|page| page.order_by.clone()).unwrap_or_default();
    Some(pb::PageRequest { order_by, ..Default::default() })
}

/// One page to read.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// Resources, at least 1. Ask the store for one more, to see whether another page follows.
    pub size: i64,
    /// Resources to pass over.
    pub skip: i64,
    pub order: Vec<Order>,
    pub include_total_size: bool,
    /// Where the page before ended; none for the first page.
    pub after: Option<Cursor>,
    /// The `seq` that all pages after the first are read at.
    pub snapshot: Option<i64>,
    /// Whether more was logged since, as far as the page before knew.
    pub outgrown: bool,
    /// When the first page was asked for, in microseconds: a window counts back from here on every page.
    pub as_of: SystemTime,
}

/// One page of a ranking to read.
#[derive(Clone, Debug, PartialEq)]
pub struct RankedPage {
    pub size: i64,
    /// Hits on the pages before.
    pub passed: i64,
    /// The last of them.
    pub after: Option<Place>,
    pub snapshot: Option<i64>,
}

/// What a page token says.
#[derive(Serialize, Deserialize)]
struct Token {
    /// Seconds of the Unix epoch.
    expire: u64,
    snapshot: i64,
    /// A server from before this does not say.
    #[serde(default)]
    outgrown: bool,
    /// Microseconds of the Unix epoch.
    as_of: u64,
    binding: [u8; 16],
    cursor: Vec<Option<String>>,
}

/// Reads and makes the tokens of one listing.
#[derive(Clone, Debug)]
pub struct Pager<'a> {
    pub key: &'a TokenKey,
    pub binding: Binding,
    pub now: SystemTime,
    pub sizes: Sizes,
}

impl Pager<'_> {
    /// Reads the request's page. Errors are at `page.*`; a token that is forged, expired or of another
    /// listing is PAGE_TOKEN_MISMATCH.
    pub fn page(
        &self,
        request: Option<pb::PageRequest>,
        fields: &'static [Field],
        default_order: &'static [(&'static str, bool)],
    ) -> Result<Page> {
        let request = request.unwrap_or_default();
        let size = match i64::from(request.page_size) {
            0 => self.sizes.default,
            size if size < 0 => {
                return Err(Error::invalid("page.page_size", "must not be negative"));
            }
            size => size.min(self.sizes.max),
        };
        let skip = i64::from(request.skip);
        if !(0..=MAX_SKIP).contains(&skip) {
            let range = format!("must be 0 to {MAX_SKIP}: go further with page.page_token");
            return Err(Error::invalid("page.skip", range));
        }
        let order = order(fields, default_order, &request.order_by)?;
        let mut page = Page {
            size,
            skip,
            order,
            include_total_size: request.include_total_size,
            after: None,
            snapshot: None,
            outgrown: false,
            as_of: self.now,
        };
        if !request.page_token.is_empty() {
            let token = self.open(&request.page_token)?;
            page.after = Some(
                // Ours, but from a version with another default order.
                Cursor::parse(&page.order, &token.cursor)
                    .ok_or_else(|| mismatch("is of another version of this server"))?,
            );
            page.snapshot = Some(token.snapshot);
            page.outgrown = token.outgrown;
            page.as_of = UNIX_EPOCH + Duration::from_micros(token.as_of);
        }
        page.as_of = UNIX_EPOCH + Duration::from_micros(micros(page.as_of));
        Ok(page)
    }

    /// Reads the page of a ranking, whose order is its own. Pages go down to the `most`-th hit.
    pub fn ranked(&self, request: Option<pb::PageRequest>, most: i64) -> Result<RankedPage> {
        let request = request.unwrap_or_default();
        let refuse = |field: &str, why: &str| Err(Error::invalid(format!("page.{field}"), why));
        if !request.order_by.is_empty() {
            return refuse("order_by", "is not taken here: the order is by rank");
        }
        if request.include_total_size {
            return refuse("include_total_size", "is not taken here");
        }
        if request.skip != 0 {
            return refuse("skip", "is not taken here: go further with page.page_token");
        }
        let as_asked = pb::PageRequest { page_token: String::new(), ..request };
        let size = self.page(Some(as_asked), &[], &[])?.size;
        if request.page_token.is_empty() {
            return Ok(RankedPage { size: size.min(most), passed: 0, after: None, snapshot: None });
        }
        let token = self.open(&request.page_token)?;
        let [Some(passed), Some(score), Some(uid)] = &token.cursor[..] else {
            return Err(mismatch("is of another version of this server"));
        };
        let parsed = passed.parse::<i64>().ok().zip(score.parse::<u64>().ok());
        let ((passed, score), uid) = parsed
            .zip(Uuid::try_parse(uid).ok())
            .ok_or_else(|| mismatch("is of another version of this server"))?;
        let after = Some(Place { score: f64::from_bits(score), uid });
        let size = size.min(most - passed).max(0);
        Ok(RankedPage { size, passed, after, snapshot: Some(token.snapshot) })
    }

    /// The token of the page after that hit.
    pub fn next_ranked(&self, passed: i64, place: Place, snapshot: i64) -> Result<String> {
        let Place { score, uid } = place;
        // By its bits, so that it is the same number again.
        let cursor = [passed.to_string(), score.to_bits().to_string(), uid.to_string()];
        self.seal(cursor.map(Some).into(), (snapshot, false), self.now)
    }

    /// The token of the page after the row with this `cursor_key`, of a listing read at a `seq` that the log has outgrown
    /// or not.
    pub fn next(
        &self,
        page: &Page,
        cursor_key: Vec<Option<String>>,
        snapshot: (i64, bool),
    ) -> Result<String> {
        self.seal(cursor_key, snapshot, page.as_of)
    }

    fn seal(
        &self,
        cursor: Vec<Option<String>>,
        (snapshot, outgrown): (i64, bool),
        as_of: SystemTime,
    ) -> Result<String> {
        let token = Token {
            expire: seconds(self.now) + self.sizes.token_life.as_secs(),
            snapshot,
            outgrown,
            as_of: micros(as_of),
            binding: self.binding.0,
            cursor,
        };
        self.key.seal("page", &serde_json::to_vec(&token).map_err(Error::internal)?)
    }

    fn open(&self, token: &str) -> Result<Token> {
        let payload = self.key.open("page", token)?;
        let token = payload.and_then(|payload| serde_json::from_slice::<Token>(&payload).ok());
        let token = token.ok_or_else(|| mismatch("is not a token of this server"))?;
        if token.binding != self.binding.0 {
            return Err(mismatch("is of another listing: keep the request as it was"));
        }
        if token.expire <= seconds(self.now) {
            return Err(mismatch("has expired: begin again without it"));
        }
        Ok(token)
    }
}

/// The span that a window stands for on `field`, with `newer_than` counted back from `as_of`.
/// Errors are at `at`, such as `window`.
pub fn window(
    field: &'static Field,
    window: Option<pb::TimeWindow>,
    as_of: SystemTime,
    at: &str,
) -> Result<Option<Window>> {
    let Some(pb::TimeWindow { start_time, end_time, newer_than }) = window else { return Ok(None) };
    let wrong = |part: &str, what: &str| Error::invalid(format!("{at}.{part}"), what);
    let point = |part: &str, value: Option<prost_types::Timestamp>| {
        let point = value.map(|value| {
            let stored = time(&value).and_then(whole_micros);
            stored.ok_or_else(|| wrong(part, "must be a time in the years 1 to 9999"))
        });
        point.transpose()
    };
    let (mut start, end) = (point("start_time", start_time)?, point("end_time", end_time)?);
    if let Some(newer_than) = newer_than {
        if start.is_some() {
            return Err(wrong("newer_than", "must not be set together with start_time"));
        }
        let span = Duration::try_from(newer_than).ok().filter(|span| !span.is_zero());
        let span = span.ok_or_else(|| wrong("newer_than", "must be more than 0"))?;
        // Further back than time goes is no bound at all.
        start = as_of.checked_sub(span).and_then(whole_micros);
    }
    if start.zip(end).is_some_and(|(start, end)| start >= end) {
        return Err(wrong("end_time", "must be after the start"));
    }
    Ok((start.is_some() || end.is_some()).then_some(Window { field, start, end }))
}

fn mismatch(description: &str) -> Error {
    Error::invalid_because(Reason::PageTokenMismatch, "page.page_token", description)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs() * 1_000_000 + u64::from(since.subsec_micros())
}

#[cfg(test)]
#[path = "page_tests.rs"]
mod tests;
