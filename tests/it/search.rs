//! Words over all that holds text, and the precedents of a case: whatever the text, whoever else is there.

pub mod hybrid;
mod indexed;
mod ranking;

use crate::help::*;
use crate::precedent::{change, record, remove, small};
use crate::schema::store_on;
use crate::world::{As, World, create, decision, object, wrong_fields};
use casebook::pb;
use casebook::store::filter::{Condition, Filter, Op};
use casebook::store::postgres::Lane;
use casebook::store::search::Words;
use casebook::store::search::kinds::KINDS;
use casebook::store::search::ranking::{Hidden, Search, Shown};
use pb::ResourceKind;

pub fn search(text: &str) -> pb::SearchRequest {
    pb::SearchRequest { text: text.into(), ..Default::default() }
}

pub fn of(kinds: &[ResourceKind], text: &str) -> pb::SearchRequest {
    pb::SearchRequest { kinds: kinds.iter().map(|kind| (*kind).into()).collect(), ..search(text) }
}

pub async fn hits(who: &As, request: pb::SearchRequest) -> Vec<pb::SearchHit> {
    ok!(who.search().search(request)).hits
}

/// The ids of what is found, best first.
pub async fn found(who: &As, request: pb::SearchRequest) -> Vec<String> {
    hits(who, request).await.into_iter().map(|hit| hit.r#ref.unwrap().id).collect()
}

pub async fn claim(who: &As, id: &str, content: &str) {
    let claim = pb::Claim { content: content.into(), ..Default::default() };
    let request =
        pb::CreateClaimRequest { claim_id: id.into(), claim: Some(claim), ..Default::default() };
    ok!(who.claims().create_claim(request));
}

/// A document with a chunk and an analysis, straight into the tables.
const DOCUMENT: &str = r#"
INSERT INTO casebook.document (tenant_id, id, uid, version, create_time, update_time, created_by, updated_by, filename,
  original_filename, source_path, size_bytes, mime_type, content_hash, total_chunks, status, metadata, labels, owner_id,
  content, retention_class, subject_id)
VALUES ('default', 'doc', '00000000-0000-7000-8000-000000000001', 1, now(), now(), '', '', 'the_heron.pdf', 'heron-1.pdf',
  '/birds/heron.pdf', 7, '', '', 0, '', '{"k": "wading"}', '{"team": "red"}', '', '{}', '', '');
INSERT INTO casebook.chunk (tenant_id, id, uid, version, create_time, update_time, created_by, updated_by, document_uid,
  document_id, chunk_index, text, metadata)
VALUES ('default', 'chu', '00000000-0000-7000-8000-000000000002', 1, now(), now(), '', '',
  '00000000-0000-7000-8000-000000000001', 'doc', 0, 'A heron stands in the water.', '{"k": "page"}');
INSERT INTO casebook.analysis (tenant_id, id, uid, version, create_time, update_time, created_by, updated_by,
  document_uid, document_id, analysis_version, category, summary, tags, raw_response, provider_used, model_used, trace_id,
  owner_id)
VALUES ('default', 'ana', '00000000-0000-7000-8000-000000000003', 1, now(), now(), '', '',
  '00000000-0000-7000-8000-000000000001', 'doc', 1, 'birds', 'It is about a heron.', '["water"]', '{"k": "raw"}', '', '',
  '', '');
"#;

/// One of each kind about herons.
async fn herons() -> (World, As) {
    let world = World::new().await;
    let who = world.anonymous();
    let superuser = world.superuser().await;
    superuser.batch_execute(DOCUMENT).await.unwrap();
    drop(superuser);
    claim(&who, "cla", "Herons eat fish.").await;
    let mut given = decision("DENY", 0.5);
    given.reason = "The heron is protected.".into();
    ok!(who.decisions().create_decision(create("dec", given)));
    let precedent = pb::Precedent {
        summary: "A heron was shot.".into(),
        tags: vec!["bird law".into()],
        input: Some(object(&[("animal", "stork")])),
        ..small()
    };
    ok!(who.precedents().create_precedent(record("pre", precedent)));
    (world, who)
}

#[tokio::test]
async fn one_search_finds_all_kinds_and_shows_where() {
    let (world, who) = herons().await;
    let mut request = search("heron");
    request.highlight = true;
    let all = hits(&who, request).await;
    let mut ids: Vec<_> = all.iter().map(|hit| hit.r#ref.clone().unwrap().id).collect();
    ids.sort();
    assert_eq!(ids, ["ana", "chu", "cla", "dec", "doc", "pre"]);
    assert!(all.is_sorted_by(|a, b| a.score >= b.score));
    for hit in &all {
        assert!((0.0..1.0).contains(&hit.score) && hit.score > 0.0, "{hit:?}");
        assert!(!hit.highlights.is_empty() && hit.highlights.len() <= 3, "{hit:?}");
        for passage in &hit.highlights {
            assert!(passage.to_lowercase().contains("**heron"), "{hit:?}");
        }
        assert_eq!((hit.r#ref.as_ref().unwrap().version, &hit.fields), (1, &None));
    }
    let claim = all.iter().find(|hit| hit.r#ref.as_ref().unwrap().id == "cla").unwrap();
    assert_eq!(claim.highlights, ["**Herons** eat fish"]);
    assert_eq!(claim.r#ref.as_ref().unwrap().kind(), ResourceKind::Claim);

    use ResourceKind::{Analysis, Chunk, Claim, Decision, Document, Precedent};
    for (kinds, text, expected) in [
        (&[Claim][..], "heron", &["cla"][..]),
        (&[Claim, Claim], "heron", &["cla"]),
        (&[Chunk, Analysis], "water", &["chu", "ana"]),
        // By every text of a kind.
        (&[Decision], "denied", &["dec"]),
        (&[Decision], "DENY", &["dec"]),
        (&[Precedent], "bird law", &["pre"]),
        (&[Precedent], "stork", &["pre"]),
        (&[Document], "wading", &["doc"]),
        (&[Document], "birds", &["doc"]),
        (&[Analysis], "birds", &["ana"]),
        // As a person writes.
        (&[Claim, Precedent], "herons eating", &["cla"]),
        (&[Claim, Precedent], "eat | shot", &["cla", "pre"]),
        (&[Claim, Precedent], "heron & shot", &["pre"]),
        (&[Claim, Precedent], "heron -fish", &["pre"]),
        (&[Claim, Precedent], "\"eat fish\"", &["cla"]),
        (&[Claim, Precedent], "\"fish eat\"", &[]),
    ] {
        let mut ids = found(&who, of(kinds, text)).await;
        ids.sort();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(ids, expected, "{text}");
    }

    // What is deleted is not found.
    ok!(who.precedents().delete_precedent(remove("pre")));
    assert_eq!(found(&who, of(&[Precedent], "heron")).await, [""; 0]);
    world.close().await;
}

#[tokio::test]
async fn fields_are_shown_as_asked() {
    let (world, who) = herons().await;
    let show = |paths: &[&str], kinds: &[ResourceKind]| pb::SearchRequest {
        read_mask: mask(paths),
        ..of(kinds, "heron")
    };
    let text = |hit: &pb::SearchHit, name: &str| {
        let fields = hit.fields.as_ref().unwrap();
        match fields.fields().get(name).and_then(|value| value.kind.clone()) {
            Some(prost_types::value::Kind::StringValue(text)) => text,
            other => format!("{other:?}"),
        }
    };
    let all = hits(&who, show(&["content", "status"], &[])).await;
    for hit in &all {
        let names: Vec<_> = hit.fields.as_ref().unwrap().fields().keys().cloned().collect();
        let expected: &[&str] = match hit.r#ref.as_ref().unwrap().kind() {
            ResourceKind::Claim => &["content"],
            ResourceKind::Precedent | ResourceKind::Document => &["status"],
            _ => &[],
        };
        assert_eq!(names, expected);
    }
    let precedent = &hits(&who, show(&["*"], &[ResourceKind::Precedent])).await[0];
    let made = ok!(who.precedents().get_precedent(crate::precedent::get("pre"))).precedent.unwrap();
    assert_eq!(text(precedent, "summary"), made.summary);
    assert_eq!(text(precedent, "status"), "PRECEDENT_STATUS_ACTIVE");
    assert_eq!(text(precedent, "case_hash"), made.case_hash);
    let time = text(precedent, "create_time");
    let seconds = made.meta.unwrap().create_time.unwrap().seconds;
    assert!(time.ends_with('Z') && time.len() == 27 && seconds > 0, "{time}");
    let call = show(&["content"], &[ResourceKind::Precedent]);
    fails!(who.search().search(call), InvalidArgument, "UNKNOWN_FIELD");
    world.close().await;
}

#[tokio::test]
async fn a_search_for_nothing_is_refused_and_any_text_is_not() {
    let (world, who) = herons().await;
    let mut client = who.search();
    fails!(client.search(search("")), InvalidArgument, "SEARCH_INVALID");
    let policy = of(&[ResourceKind::PolicyRule], "heron");
    let status = fails!(client.search(policy), InvalidArgument, "SEARCH_INVALID");
    assert_eq!(wrong_fields(&status), ["kinds[0]"]);
    let unknown = pb::SearchRequest { kinds: vec![999], ..search("heron") };
    fails!(client.search(unknown), InvalidArgument, "SEARCH_INVALID");
    fails!(client.search(search("a\0b")), InvalidArgument, "NUL_BYTE");
    fails!(client.search(search(&"x".repeat(4097))), InvalidArgument, "FIELD_INVALID");
    for score in [-0.1, 1.1, f64::NAN] {
        let request = pb::SearchRequest { min_score: Some(score), ..search("heron") };
        fails!(client.search(request), InvalidArgument, "FIELD_INVALID");
    }
    for page in [
        pb::PageRequest { order_by: "id".into(), ..Default::default() },
        pb::PageRequest { skip: 1, ..Default::default() },
        pb::PageRequest { include_total_size: true, ..Default::default() },
        pb::PageRequest { page_size: -1, ..Default::default() },
    ] {
        let request = pb::SearchRequest { page: Some(page), ..search("heron") };
        fails!(client.search(request), InvalidArgument, "FIELD_INVALID");
    }
    // What narrows nothing finds nothing, not everything.
    for text in [
        " ",
        "the",
        "the of and",
        "-heron",
        "-the",
        "\"\"",
        "!",
        "&",
        "|",
        "😀",
        ":*",
        "heron or -fish",
    ] {
        assert_eq!(found(&who, search(text)).await, [""; 0], "{text:?}");
    }
    let hostile = [
        "heron'",
        "'heron",
        "heron''",
        "\"heron",
        "heron\"\"\"",
        "heron & | !",
        "heron:*",
        "heron:A",
        "heron <-> ",
        "heron <2>",
        "(heron",
        "heron))",
        "heron \\",
        "heron \\'",
        "heron 😀 🎉",
        "heron -",
        "heron - - -",
        "or heron or",
        "| heron |",
        "heron $1 ; -- /* %s {} ",
        "heron\u{1}\u{2}\u{3}\u{1e}\u{7f}\u{feff}\u{202e}",
        "heron' && 'tenant:other'",
    ];
    for text in hostile {
        let request =
            pb::SearchRequest { highlight: true, read_mask: mask(&["*"]), ..search(text) };
        ok!(client.search(request.clone()));
        let find =
            pb::FindPrecedentsRequest { text: text.into(), highlight: true, ..Default::default() };
        ok!(who.precedents().find_precedents(find));
    }
    for text in ["heron", "heron:*", "\"heron", "| heron |", "(heron", "heron \\"] {
        assert_eq!(found(&who, search(text)).await.len(), 6, "{text:?}");
    }
    // As long as a text may be: one word, and all the operators that fit.
    for unit in
        ["x", "\"", "-", "é", "a or ", "(", "\\", "'", "a \"b\" -c ", "heron | ", "<->", "!!", ":*"]
    {
        let text = unit.repeat(4096 / unit.len());
        ok!(client.search(search(&text)));
    }
    world.close().await;
}

#[tokio::test]
async fn texts_of_any_kind_are_found_by_what_can_be_found() {
    let world = World::new().await;
    let who = world.anonymous();
    // More than a word may have; more than a vector may hold; more than passages are taken from.
    let word = "x".repeat(1 << 20);
    claim(&who, "word", &word).await;
    claim(&who, "mixed", &format!("heron {}", "y ".repeat(500_000))).await;
    let many: String = (0..130_000).map(|n| format!("w{n} ")).collect();
    claim(&who, "many", &many).await;
    claim(&who, "late", &format!("{} heron", "ab ".repeat(20_000))).await;
    let marks = "heron <b>bold</b> ** \u{2}\u{3}\u{1e} & < > \" ' 😀";
    claim(&who, "marks", marks).await;
    let request = pb::SearchRequest { highlight: true, ..search("heron") };
    let all = hits(&who, request).await;
    let ids: Vec<_> = all.iter().map(|hit| hit.r#ref.as_ref().unwrap().id.as_str()).collect();
    // Shorter texts come first. A word counts 255 times at most, so the other two are of one length.
    assert_eq!(ids, ["marks", "mixed", "late"]);
    // What would look like a tag to PostgreSQL is set apart, or it would be taken out.
    let shown = &all[0].highlights[0];
    assert!(shown.starts_with("**heron** < b>bold< /b> **"), "{shown}");
    assert_eq!(all[2].highlights, [""; 0]);
    assert!(all[1].highlights[0].starts_with("**heron**"), "{:?}", all[1].highlights);
    assert!(all.iter().flat_map(|hit| &hit.highlights).all(|passage| passage.len() <= 1000));
    assert_eq!(found(&who, search("w7")).await, ["many"]);
    world.close().await;
}

#[tokio::test]
async fn filters_hold_in_every_kind_that_is_asked() {
    let (world, who) = herons().await;
    claim(&who, "cla-2", "A heron and another heron.").await;
    let with = |request: pb::SearchRequest, text: &str| pb::SearchRequest {
        r#where: expression(text),
        ..request
    };
    use ResourceKind::{Claim, Document, Precedent};
    let mut one = found(&who, with(search("heron"), "id:cla* OR id = pre")).await;
    one.sort();
    assert_eq!(one, ["cla", "cla-2", "pre"]);
    let both = &[Document, Precedent];
    assert_eq!(found(&who, with(of(both, "heron"), "labels.team = red")).await, ["doc"]);
    assert_eq!(found(&who, with(of(&[Precedent], "heron"), "status = ACTIVE")).await, ["pre"]);
    let call = with(of(&[Claim, Precedent], "heron"), "final_verdict = ALLOW");
    let status = fails!(who.search().search(call), InvalidArgument, "FILTER_INVALID");
    assert!(status.message().contains("(in claim)"), "{}", status.message());

    let all = hits(&who, search("heron")).await;
    let bar = all[2].score;
    let above = pb::SearchRequest { min_score: Some(bar), ..search("heron") };
    let above = hits(&who, above).await;
    assert_eq!(above[..], all[..above.len()]);
    assert!(above.len() >= 3 && above.iter().all(|hit| hit.score >= bar));
    world.close().await;
}

#[tokio::test]
async fn no_other_tenants_text_is_found_counted_or_shown() {
    let world = World::new().await;
    for tenant in ["alpha", "beta"] {
        world.tenant(tenant).await;
    }
    let (alpha, beta) = (world.as_tenant("alpha"), world.as_tenant("beta"));
    for n in 0..5 {
        claim(&alpha, &format!("c-{n}"), "A heron of alpha.").await;
        let precedent = pb::Precedent { summary: "A heron of alpha.".into(), ..small() };
        ok!(alpha.precedents().create_precedent(record(&format!("p-{n}"), precedent)));
    }
    let all = || pb::SearchRequest { highlight: true, read_mask: mask(&["*"]), ..search("heron") };
    assert_eq!(hits(&alpha, all()).await.len(), 10);
    assert_eq!(hits(&beta, all()).await, []);
    let find = || pb::FindPrecedentsRequest { text: "heron".into(), ..Default::default() };
    assert_eq!(ok!(beta.precedents().find_precedents(find())).hits, []);
    claim(&beta, "c-0", "A heron of beta.").await;
    let mine = hits(&beta, all()).await;
    assert_eq!(mine.len(), 1);
    assert_eq!(mine[0].highlights, ["**heron** of beta"]);
    // Nor by its name: the lexeme of a tenant is no word.
    for text in ["tenant:alpha", "\"tenant:alpha\"", "tenant alpha"] {
        assert_eq!(hits(&beta, search(text)).await, [], "{text}");
    }
    // Nor does the score depend on others.
    let score = mine[0].score;
    for n in 5..20 {
        claim(&alpha, &format!("c-{n}"), "A heron of alpha.").await;
    }
    assert_eq!(hits(&beta, all()).await[0].score, score);
    let mut first = all();
    first.page = page(1);
    let token = ok!(alpha.search().search(first.clone())).page.unwrap().next_page_token;
    first.page.as_mut().unwrap().page_token = token;
    fails!(beta.search().search(first), InvalidArgument, "PAGE_TOKEN_MISMATCH");
    world.close().await;
}

/// Texts at random from what has a meaning to somebody: PostgreSQL takes what we make of each of them.
#[tokio::test]
async fn no_text_makes_postgresql_raise() {
    const PIECES: &[&str] = &[
        "heron",
        "é",
        "😀",
        "-",
        "--",
        "- ",
        "\"",
        "\"\"",
        " ",
        "\t",
        "!",
        "&",
        "|",
        "(",
        ")",
        "<",
        ">",
        "<->",
        ":*",
        ":A",
        "'",
        "''",
        "\\",
        "or",
        " or ",
        " OR ",
        "a.b@c.de/f?g=h",
        "-1.5e7",
        "$1",
        "%",
        "\u{1}",
        "\u{a0}",
        "\u{2028}",
        ",",
        "the",
        "x-y-z",
        "/",
        "*",
        ";",
        "\u{fffd}",
        "_",
        "0x1F",
        "http://",
        "&amp;",
        "<b>",
        "~",
    ];
    let database = crate::world::new_database(true).await;
    let store = store_on(&database).await;
    let conn = store.connection(Lane::Work).await.unwrap();
    let mut state: u64 = 7;
    let mut next = |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for _ in 0..1500 {
        // Few different pieces many times, or many different ones.
        let known: Vec<_> = (0..1 + next(6)).map(|_| PIECES[next(PIECES.len())]).collect();
        let pieces = 1 + next(400);
        let text: String = (0..pieces).map(|_| known[next(known.len())]).collect();
        let search = Search {
            kinds: vec![(&KINDS[0], Filter::default())],
            words: Words::new(&text),
            min_score: 0.0,
            after: None,
            limit: 10,
            snapshot: None,
            hidden: Hidden::Left,
            shown: Shown::default(),
        };
        let (sql, params) = search.ranking("default");
        if let Err(error) = conn.client().query(&sql, &params.as_sql()).await {
            panic!("{text:?}: {error:?}");
        }
    }
    conn.done();
    store.close();
    crate::world::drop_database(&database).await;
}

/// What is made anew for a version in the log is what the column has.
#[tokio::test]
async fn vectors_are_made_as_the_tables_make_them() {
    let (world, who) = herons().await;
    ok!(who.precedents().update_precedent(change(
        "pre",
        &["context", "final_reason"],
        pb::Precedent { context: "Lake 7".into(), final_reason: "It's law".into(), ..small() },
    )));
    let service = world.superuser().await;
    let enter = "SET ROLE casebook_app; SET search_path = wall, pg_catalog; SET casebook.tenant = 'default'";
    service.batch_execute(enter).await.unwrap();
    for kind in KINDS {
        let sql = format!(
            "SELECT ts_delete(d.search, 'tenant:default')::text || length(d.search), \
             ts_delete(made, 'tenant:')::text || length(made) FROM {} AS d, LATERAL (SELECT {}) AS m (made)",
            kind.listing.table, kind.vector
        );
        let rows = service.query(&sql, &[]).await.unwrap();
        assert_eq!(rows.len(), 1, "{}", kind.name());
        let (stored, made): (String, String) = (rows[0].get(0), rows[0].get(1));
        assert!(stored == made && stored.len() > 10, "{}: {stored} is not {made}", kind.name());
    }
    drop(service);

    // Every field of every kind can be filtered by and shown, now and at a revision.
    let store = store_on(&world.database).await;
    let conn = store.connection(Lane::Work).await.unwrap();
    for kind in KINDS {
        for field in kind.listing.fields {
            let path = match field.kind {
                casebook::store::filter::FieldKind::Labels
                | casebook::store::filter::FieldKind::Json => {
                    vec!["k".into()]
                }
                _ => Vec::new(),
            };
            let filter = Filter::Field(Condition::new(field, path, Op::Exists(true)).unwrap());
            for snapshot in [None, Some(1)] {
                let search = Search {
                    kinds: vec![(kind, filter.clone())],
                    words: Words::new("heron"),
                    min_score: 0.0,
                    after: None,
                    limit: 10,
                    snapshot,
                    hidden: Hidden::Left,
                    shown: Shown { highlight: true, fields: None },
                };
                let (sql, params) = search.ranking("default");
                if let Err(error) = conn.client().query(&sql, &params.as_sql()).await {
                    panic!("{} {}: {error:?}\n{sql}", kind.name(), field.name);
                }
            }
        }
    }
    conn.done();
    store.close();
    let shown = pb::SearchRequest { read_mask: mask(&["*"]), ..search("heron") };
    assert_eq!(hits(&who, shown).await.len(), 6);
    world.close().await;
}
