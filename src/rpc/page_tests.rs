//! Page requests and tokens, honest and forged.

use super::*;
use crate::rpc::filter::tests::FIELDS;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost::Message;

const UID: &str = "00000000-0000-0000-0000-000000000001";
const NEWEST: &[(&str, bool)] = &[("create_time", true)];

const TOKEN_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
const SIZES: Sizes = Sizes { default: 50, max: 1000, token_life: TOKEN_LIFE };

fn key() -> TokenKey {
    TokenKey::new([7; 32])
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789)
}

fn read(pager: &Pager, request: pb::PageRequest) -> Result<Page> {
    pager.page(Some(request), FIELDS, NEWEST)
}

fn with_token(token: &str) -> pb::PageRequest {
    pb::PageRequest { page_token: token.into(), ..Default::default() }
}

fn cursor_key() -> Vec<Option<String>> {
    vec![Some("1700000000000001".into()), Some(UID.into())]
}

#[test]
fn sizes_and_skips_are_bounded() {
    let key = key();
    let pager = Pager { key: &key, binding: Binding::new("t", "m", b""), now: now(), sizes: SIZES };
    let sized = |page_size| read(&pager, pb::PageRequest { page_size, ..Default::default() });
    assert_eq!(pager.page(None, FIELDS, NEWEST).unwrap().size, 50);
    assert_eq!(sized(0).unwrap().size, 50);
    assert_eq!(sized(1).unwrap().size, 1);
    assert_eq!(sized(i32::MAX).unwrap().size, 1000);
    assert_eq!(sized(-1).unwrap_err().to_string(), "page.page_size must not be negative");
    let skipped = |skip| read(&pager, pb::PageRequest { skip, ..Default::default() });
    assert_eq!(skipped(10_000).unwrap().skip, 10_000);
    for skip in [-1, 10_001] {
        let error = skipped(skip).unwrap_err().to_string();
        assert_eq!(error, "page.skip must be 0 to 10000: go further with page.page_token");
    }
}

#[test]
fn a_token_carries_the_listing_on() {
    let key = key();
    let pager =
        Pager { key: &key, binding: Binding::new("t", "m", b"x"), now: now(), sizes: SIZES };
    let first = pager.page(None, FIELDS, NEWEST).unwrap();
    assert_eq!((first.snapshot, &first.after), (None, &None));
    let token = pager.next(&first, cursor_key(), (41, false)).unwrap();
    let later = Pager { now: now() + Duration::from_secs(100), ..pager.clone() };
    let second = read(&later, with_token(&token)).unwrap();
    assert_eq!(second.snapshot, Some(41));
    assert_eq!(second.after, Cursor::parse(&second.order, &cursor_key()));
    assert_eq!(second.as_of, first.as_of);
}

#[test]
fn another_listing_or_day_is_refused() {
    let key = key();
    let binding = Binding::new("t", "m", b"x");
    let pager = Pager { key: &key, binding, now: now(), sizes: SIZES };
    let first = pager.page(None, FIELDS, NEWEST).unwrap();
    let token = pager.next(&first, cursor_key(), (41, false)).unwrap();
    let refused = |pager: &Pager, request| {
        let error = read(pager, request).unwrap_err();
        assert_eq!(error.reason(), Reason::PageTokenMismatch);
        error.to_string()
    };
    for (tenant, method, request) in
        [("u", "m", "x"), ("t", "n", "x"), ("t", "m", "y"), ("tm", "", "x")]
    {
        let other = Binding::new(tenant, method, request.as_bytes());
        let said = refused(&Pager { binding: other, ..pager.clone() }, with_token(&token));
        assert!(said.starts_with("page.page_token is of another listing"), "{said}");
    }
    let late = Pager { now: now() + TOKEN_LIFE, ..pager.clone() };
    assert!(refused(&late, with_token(&token)).contains("has expired"));
    let just = Pager { now: now() + TOKEN_LIFE - Duration::from_secs(1), ..pager.clone() };
    assert!(read(&just, with_token(&token)).is_ok());
    let other_key = TokenKey::new([8; 32]);
    refused(&Pager { key: &other_key, ..pager.clone() }, with_token(&token));
    // As if a release had changed the default order.
    let reordered = pager.page(Some(with_token(&token)), FIELDS, &[("urgent", false)]);
    assert_eq!(reordered.unwrap_err().reason(), Reason::PageTokenMismatch);
}

#[test]
fn no_changed_token_is_taken() {
    let key = key();
    let pager =
        Pager { key: &key, binding: Binding::new("t", "m", b"x"), now: now(), sizes: SIZES };
    let first = pager.page(None, FIELDS, NEWEST).unwrap();
    let token = pager.next(&first, cursor_key(), (41, false)).unwrap();
    let bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
    for place in 0..bytes.len() {
        for bit in 0..8 {
            let mut bytes = bytes.clone();
            bytes[place] ^= 1 << bit;
            let forged = with_token(&URL_SAFE_NO_PAD.encode(bytes));
            assert_eq!(read(&pager, forged).unwrap_err().reason(), Reason::PageTokenMismatch);
        }
    }
    for wrong in ["x", "", "====", &token[1..], &token[..token.len() - 1]] {
        assert_eq!(read(&pager, with_token(wrong)).is_ok(), wrong.is_empty(), "{wrong}");
    }
    let revision = crate::rpc::token::revision(&key, "t", 41).unwrap();
    assert!(read(&pager, with_token(&revision)).is_err());
}

#[test]
fn the_binding_is_the_request_without_the_page() {
    let binding = |page: pb::PageRequest, show_deleted| {
        let page = unpaged(Some(&page));
        let request = pb::ListDecisionsRequest { page, show_deleted, ..Default::default() };
        Binding::new("t", "ListDecisions", &request.encode_to_vec())
    };
    let first = binding(pb::PageRequest::default(), false);
    let next = pb::PageRequest {
        page_size: 7,
        page_token: "x".into(),
        skip: 3,
        include_total_size: true,
        ..Default::default()
    };
    assert_eq!(binding(next, false), first);
    let empty = pb::ListDecisionsRequest { page: unpaged(None), ..Default::default() };
    assert_eq!(Binding::new("t", "ListDecisions", &empty.encode_to_vec()), first);
    assert_ne!(binding(pb::PageRequest::default(), true), first);
    let ordered = pb::PageRequest { order_by: "id".into(), ..Default::default() };
    assert_ne!(binding(ordered, false), first);
}

#[test]
fn windows_are_read() {
    let field = Field::find(FIELDS, "create_time").unwrap();
    let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let back = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let read = |start_time, end_time, newer_than| {
        let wire = pb::TimeWindow { start_time, end_time, newer_than };
        window(field, Some(wire), now(), "window").map(|window| window.map(|w| (w.start, w.end)))
    };
    let point = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
    assert_eq!(window(field, None, now(), "window").unwrap(), None);
    assert_eq!(read(None, None, None).unwrap(), None);
    assert_eq!(read(at(1), at(2), None).unwrap(), Some((point(1), point(2))));
    let newer = read(None, None, back(60)).unwrap();
    assert_eq!(newer, Some((whole_micros(now() - Duration::from_secs(60)), None)));
    assert_eq!(read(None, None, back(i64::MAX)).unwrap(), None);
    for (start, end, newer, want) in [
        (at(2), at(2), None, "window.end_time must be after"),
        (at(2), None, back(1), "window.newer_than must not be set"),
        (None, None, back(0), "window.newer_than must be more"),
        (None, None, back(-1), "window.newer_than must be more"),
        (at(i64::MIN), None, None, "window.start_time must be a time"),
        (None, at(253_402_300_800), None, "window.end_time must be a time"),
    ] {
        let error = read(start, end, newer).unwrap_err().to_string();
        assert!(error.starts_with(want), "{error}");
    }
}
