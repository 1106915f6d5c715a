//! What ranks before what, on every page of one ranking, in every leg, and by which index.

use super::{claim, found, hits, of, search};
use crate::help::*;
use crate::precedent::{change, record, remove, small, time};
use crate::schema::store_on;
use crate::world::{
    World, config_of, connect, create, decision, drop_database, new_database, object, wrong_fields,
};
use casebook::pb;
use casebook::store::filter::Filter;
use casebook::store::postgres::Lane;
use casebook::store::search::Words;
use casebook::store::search::hybrid::Fusion;
use casebook::store::search::kinds::kind;
use casebook::store::search::precedents::Find;
use casebook::store::search::ranking::{Hidden, Search, Shown};
use pb::ResourceKind;
use tokio_postgres::types::ToSql;

#[tokio::test]
async fn a_word_counts_by_where_it_stands() {
    let world = World::new().await;
    let who = world.anonymous();
    let texts = |summary: &str, reason: &str, input: &str| pb::Precedent {
        summary: summary.into(),
        final_reason: reason.into(),
        input: Some(object(&[("k", input)])),
        ..small()
    };
    for (id, precedent) in [
        ("c", texts("quiet lake", "calm shore", "heron")),
        ("b", texts("quiet lake", "heron", "calm shore")),
        ("a", texts("heron", "quiet lake", "calm shore")),
        ("none", texts("quiet lake", "calm shore", "stork")),
    ] {
        ok!(who.precedents().create_precedent(record(id, precedent)));
    }
    assert_eq!(found(&who, search("heron")).await, ["a", "b", "c"]);
    let find = pb::FindPrecedentsRequest { text: "heron".into(), ..Default::default() };
    let hits = ok!(who.precedents().find_precedents(find)).hits;
    let ids: Vec<_> = hits.iter().map(|hit| hit.precedent.clone().unwrap().id).collect();
    assert_eq!(ids, ["a", "b", "c"]);
    assert!(hits.is_sorted_by(|a, b| a.text_score > b.text_score));

    // Nearer together, and in a shorter text, is better; of the same, the older comes first.
    for (id, content) in [
        ("far", "grebe one two three four five six seven eight nine ten fish"),
        ("near", "one two three four five six seven eight nine ten grebe fish"),
        ("short", "grebe fish"),
        ("later", "grebe fish"),
    ] {
        claim(&who, id, content).await;
    }
    assert_eq!(found(&who, search("grebe fish")).await, ["short", "later", "near", "far"]);
    world.close().await;
}

#[tokio::test]
async fn every_page_shows_the_ranking_of_the_first() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut precedents = who.precedents();
    // Each shorter than the one after it, so that the ranking is known.
    let about = |n: usize| pb::Precedent {
        summary: format!("heron {}", "lake shore ".repeat(n * n + 1)),
        ..small()
    };
    for n in 0..8 {
        ok!(precedents.create_precedent(record(&format!("p-{n}"), about(n))));
    }
    let mut given = decision("ALLOW", 0.5);
    given.reason = format!("heron {}", "lake shore ".repeat(100));
    ok!(who.decisions().create_decision(create("d", given)));
    let request = || pb::SearchRequest {
        highlight: true,
        read_mask: mask(&["summary", "final_verdict"]),
        ..search("heron")
    };
    let whole = hits(&who, request()).await;
    let ids: Vec<_> = whole.iter().map(|hit| hit.r#ref.clone().unwrap().id).collect();
    assert_eq!(ids, ["p-0", "p-1", "p-2", "p-3", "p-4", "p-5", "p-6", "p-7", "d"]);

    let mut paged = request();
    paged.page = page(2);
    let first = ok!(who.search().search(paged.clone()));
    assert_eq!(first.hits, whole[..2]);
    // What would come first now, what would come last, what no longer has the word, and what is gone.
    ok!(precedents.update_precedent(change("p-6", &["summary"], about(0))));
    ok!(precedents.update_precedent(change("p-0", &["summary"], about(50))));
    let stork = pb::Precedent { summary: "stork".into(), ..small() };
    ok!(precedents.update_precedent(change("p-3", &["summary"], stork)));
    ok!(precedents.update_precedent(change("p-4", &["tags"], small())));
    ok!(precedents.update_precedent(change("p-4", &["context"], about(1))));
    let labelled = pb::Decision { labels: labels(&[("a", "b")]), ..Default::default() };
    ok!(who.decisions().update_decision(update("d", &["labels"], labelled)));
    ok!(precedents.delete_precedent(remove("p-5")));
    ok!(precedents.create_precedent(record("new", about(0))));
    for n in [0, 1, 4] {
        claim(&who, &format!("c-{n}"), &about(n).summary).await;
    }
    let mut rest = Vec::new();
    let mut token = first.page.as_ref().unwrap().next_page_token.clone();
    while !token.is_empty() {
        paged.page.as_mut().unwrap().page_token = token;
        let next = ok!(who.search().search(paged.clone()));
        let page = next.page.unwrap();
        assert_eq!(page.read_at, first.page.as_ref().unwrap().read_at);
        rest.extend(next.hits);
        token = page.next_page_token;
    }
    let expected: Vec<_> =
        whole[2..].iter().filter(|hit| hit.r#ref.as_ref().unwrap().id != "p-5").cloned().collect();
    assert_eq!(rest, expected);
    // A new search sees what is there now.
    assert_eq!(found(&who, request()).await.len(), 8 - 2 + 1 + 1 + 3);

    // The token is of this search only.
    paged.page = page(2);
    paged.page.as_mut().unwrap().page_token = first.page.unwrap().next_page_token;
    let other = pb::SearchRequest { text: "stork".into(), ..paged.clone() };
    fails!(who.search().search(other), InvalidArgument, "PAGE_TOKEN_MISMATCH");
    let mut forged = paged.clone();
    forged.page.as_mut().unwrap().page_token.push('A');
    fails!(who.search().search(forged), InvalidArgument, "PAGE_TOKEN_MISMATCH");
    world.close().await;
}

#[tokio::test]
async fn pages_go_down_to_the_thousandth_hit() {
    let world = World::new().await;
    let who = world.anonymous();
    let requests = |from: usize| {
        let one =
            |n| record(&format!("p-{n:04}"), pb::Precedent { summary: "heron".into(), ..small() });
        let requests = (from..from + 600).map(one).collect();
        pb::BatchCreatePrecedentsRequest { requests, options: None }
    };
    for from in [0, 600] {
        ok!(who.precedents().batch_create_precedents(requests(from)));
    }
    let mut request = search("heron");
    let mut ids = Vec::new();
    request.page = page(300);
    loop {
        let answer = ok!(who.search().search(request.clone()));
        ids.extend(answer.hits.into_iter().map(|hit| hit.r#ref.unwrap().id));
        let token = answer.page.unwrap().next_page_token;
        if token.is_empty() {
            break;
        }
        request.page.as_mut().unwrap().page_token = token;
    }
    // All have the same score, so the oldest come first.
    let expected: Vec<_> = (0..1000).map(|n| format!("p-{n:04}")).collect();
    assert_eq!(ids, expected);
    world.close().await;
}

#[tokio::test]
async fn precedents_are_found_by_their_case_and_by_words_and_the_ranks_are_fused() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.precedents();
    let case = || object(&[("income", "900")]);
    let with = |input: Option<_>, summary: &str, occurred: i64| pb::Precedent {
        input,
        summary: summary.into(),
        occur_time: time(occurred),
        ..small()
    };
    let old = ok!(client.create_precedent(record("old", with(Some(case()), "nothing", 1_000))));
    let hash = old.precedent.unwrap().case_hash;
    for (id, precedent) in [
        ("new", with(Some(case()), "about a heron and a lake and much else", 2_000)),
        ("word", with(None, "heron", 3_000)),
        ("phrase", with(Some(object(&[("a", "b")])), "a quiet heron", 4_000)),
        ("other", with(None, "stork", 5_000)),
    ] {
        ok!(client.create_precedent(record(id, precedent)));
    }
    let find = |text: &str, input| pb::FindPrecedentsRequest {
        text: text.into(),
        input,
        ..Default::default()
    };
    let answer = ok!(client.find_precedents(find("heron", Some(case()))));
    assert!(answer.read_at.is_some());
    let told: Vec<_> = answer
        .hits
        .iter()
        .map(|hit| (hit.precedent.as_ref().unwrap().id.as_str(), hit.exact_rank, hit.text_rank))
        .collect();
    assert_eq!(told, [("new", 1, 3), ("old", 2, 0), ("word", 0, 1), ("phrase", 0, 2)]);
    let fused =
        |ranks: &[i32]| ranks.iter().map(|rank| 1.0 / (60.0 + f64::from(*rank))).sum::<f64>();
    for (hit, ranks) in answer.hits.iter().zip([&[1, 3][..], &[2], &[1], &[2]]) {
        assert!((hit.score - fused(ranks)).abs() < 1e-12, "{hit:?}");
        assert_eq!(hit.text_score > 0.0, hit.text_rank > 0);
        assert!(hit.highlights.is_empty());
    }

    let mut ids = async |request| {
        let hits = ok!(client.find_precedents(request)).hits;
        hits.into_iter().map(|hit| hit.precedent.unwrap().id).collect::<Vec<_>>()
    };
    let by_hash = pb::FindPrecedentsRequest { case_hash: hash, ..Default::default() };
    assert_eq!(ids(by_hash.clone()).await, ["new", "old"]);
    assert_eq!(ids(find("", Some(case()))).await, ["new", "old"]);
    // No input is not the same as no input.
    assert_eq!(ids(find("", Some(object(&[])))).await, [""; 0]);
    assert_eq!(ids(find("heron", None)).await, ["word", "phrase", "new"]);
    // The filter is inside of the legs, and top_k behind them.
    let few = pb::FindPrecedentsRequest {
        top_k: 2,
        r#where: expression("id != new"),
        ..find("heron", Some(case()))
    };
    assert_eq!(ids(few).await, ["old", "word"]);
    let one = pb::FindPrecedentsRequest {
        top_k: 1,
        highlight: true,
        read_mask: mask(&["summary"]),
        ..find("quiet & heron", None)
    };
    let one = ok!(client.find_precedents(one)).hits;
    assert_eq!(one[0].highlights, ["**quiet** **heron**"]);
    let precedent = one[0].precedent.clone().unwrap();
    let expected = pb::Precedent {
        id: "phrase".into(),
        summary: "a quiet heron".into(),
        ..Default::default()
    };
    assert_eq!(precedent, expected);

    ok!(client.delete_precedent(remove("new")));
    let after = ok!(client.find_precedents(find("heron", Some(case())))).hits;
    let after: Vec<_> = after.into_iter().map(|hit| hit.precedent.unwrap().id).collect();
    assert_eq!(after, ["old", "word", "phrase"]);
    fails!(client.find_precedents(find("", None)), InvalidArgument, "SEARCH_INVALID");
    let both = pb::FindPrecedentsRequest { input: Some(case()), ..by_hash.clone() };
    for (request, field) in [
        (both, "case_hash"),
        (
            pb::FindPrecedentsRequest { case_hash: "A".repeat(64), ..Default::default() },
            "case_hash",
        ),
        (
            pb::FindPrecedentsRequest { case_hash: "a".repeat(63), ..Default::default() },
            "case_hash",
        ),
        (pb::FindPrecedentsRequest { top_k: 1001, ..by_hash.clone() }, "top_k"),
        (pb::FindPrecedentsRequest { top_k: -1, ..by_hash }, "top_k"),
        (find(&"x".repeat(4097), None), "text"),
    ] {
        let status = fails!(client.find_precedents(request), InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), [field]);
    }
    world.close().await;
}

/// A large tenant with the word in every row, and a small one beside it.
const FILL: &str = r#"
SET session_replication_role = replica;
INSERT INTO casebook.claim (tenant_id, id, uid, version, create_time, update_time, created_by, updated_by, content,
  claim_type, source, metadata, labels, retention_class, subject_id)
SELECT t, 'c' || i, gen_random_uuid(), 1, now(), now(), '', '', 'heron w' || i, '', '', '{}', '{}', '', ''
FROM (VALUES ('large', 30000), ('small', 300)) AS of (t, n), generate_series(1, n) AS i;
INSERT INTO casebook.precedent (tenant_id, id, uid, version, create_time, update_time, created_by, updated_by,
  decision_id, case_hash, input, summary, final_verdict, final_reason, tags, context, metadata, labels, occur_time, status,
  superseded_by_id, retention_class, subject_id)
SELECT t, 'p' || i, gen_random_uuid(), 1, now(), now(), '', '', '', 'h' || i % 100, '{}', 'heron w' || i, '', '', '[]',
  '', '{}', '{}', now(), 1, '', '', ''
FROM (VALUES ('large', 30000), ('small', 300)) AS of (t, n), generate_series(1, n) AS i;
VACUUM ANALYZE casebook.claim, casebook.precedent;
"#;

/// Each scan of a plan: its kind, its index or table, and the rows it gave.
fn scans(node: &serde_json::Value, found: &mut Vec<(String, String, f64)>) {
    let text = |name: &str| node[name].as_str().unwrap_or_default().to_owned();
    let name =
        if text("Index Name").is_empty() { text("Relation Name") } else { text("Index Name") };
    if text("Node Type").ends_with("Scan") && !name.is_empty() {
        let rows = node["Actual Rows"].as_f64().unwrap() * node["Actual Loops"].as_f64().unwrap();
        let removed = node["Rows Removed by Filter"].as_f64().unwrap_or_default();
        found.push((text("Node Type"), name, rows + removed));
    }
    for child in node["Plans"].as_array().into_iter().flatten() {
        scans(child, found);
    }
}

#[tokio::test]
async fn the_index_alone_passes_over_a_large_neighbour() {
    let database = new_database(true).await;
    let superuser = connect(&config_of(&database).await).await;
    for statement in FILL.split(";\n").filter(|statement| !statement.trim().is_empty()) {
        superuser.batch_execute(statement).await.unwrap();
    }
    drop(superuser);
    let store = store_on(&database).await;
    let explain = async |tenant: &str, sql: &str, params: &[&(dyn ToSql + Sync)]| {
        let conn = store.connection(Lane::Work).await.unwrap();
        conn.client().batch_execute("BEGIN").await.unwrap();
        let set = format!("SET LOCAL casebook.tenant = '{tenant}'");
        conn.client().batch_execute(&set).await.unwrap();
        let sql = format!("EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {sql}");
        let rows = conn.client().query(&sql, params).await.unwrap();
        let plan: serde_json::Value =
            serde_json::from_str(rows[0].get::<_, Plain>(0).0.as_str()).unwrap();
        conn.client().batch_execute("ROLLBACK").await.unwrap();
        conn.done();
        let mut found = Vec::new();
        scans(&plan[0]["Plan"], &mut found);
        found
    };
    let everything = || Filter::default();
    let search = |text: &str, snapshot| Search {
        kinds: ["claim", "precedent"].map(|name| (kind(name).unwrap(), everything())).into(),
        words: Words::new(text),
        min_score: 0.0,
        after: None,
        limit: 50,
        snapshot,
        hidden: Hidden::Left,
        shown: Shown::default(),
    };
    for (tenant, text, most) in [
        ("small", "heron", 300.0),
        ("small", "w77", 1.0),
        ("large", "w77", 1.0),
        ("nobody", "heron", 0.0),
    ] {
        for snapshot in [None, Some(0)] {
            let (sql, params) = search(text, snapshot).ranking(tenant);
            let plan = explain(tenant, &sql, &params.as_sql()).await;
            for index in ["claim_search", "precedent_search"] {
                let scan = plan.iter().find(|(_, name, _)| name == index);
                let Some((_, _, rows)) = scan else { panic!("not by {index}: {plan:#?}") };
                assert!(*rows <= most, "{tenant} {text}: {plan:#?}");
            }
            assert!(
                !plan.iter().any(|(how, name, _)| how == "Seq Scan" && name != "log_head"),
                "{plan:#?}"
            );
        }
        let find = Find {
            case_hash: Some("h7".into()),
            words: Some(Words::new(text)),
            near: None,
            fusion: Fusion::default(),
            filter: everything(),
            limit: 10,
            highlight: true,
            explain: false,
        };
        let (sql, params) = find.sql(tenant, None).unwrap();
        let plan = explain(tenant, &sql, &params.as_sql()).await;
        for index in ["precedent_search", "precedent_case"] {
            let scan = plan.iter().find(|(_, name, _)| name == index);
            let Some((_, _, rows)) = scan else { panic!("not by {index}: {plan:#?}") };
            assert!(*rows <= if index == "precedent_case" { 1000.0 } else { most }, "{plan:#?}");
        }
        assert!(!plan.iter().any(|(how, _, _)| how == "Seq Scan"), "{plan:#?}");
    }
    store.close();
    drop_database(&database).await;
}

/// JSON as text.
struct Plain(String);

impl tokio_postgres::types::FromSql<'_> for Plain {
    fn from_sql(
        _: &tokio_postgres::types::Type,
        raw: &[u8],
    ) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(String::from_utf8(raw.to_vec())?))
    }
    fn accepts(_: &tokio_postgres::types::Type) -> bool {
        true
    }
}

/// The kinds are asked for in any order, and rank together all the same.
#[tokio::test]
async fn kinds_rank_together() {
    let world = World::new().await;
    let who = world.anonymous();
    claim(&who, "c-1", "heron heron lake").await;
    let precedent = pb::Precedent { summary: "heron".into(), ..small() };
    ok!(who.precedents().create_precedent(record("p", precedent)));
    claim(&who, "c-2", "heron and other birds of the lake").await;
    use ResourceKind::{Claim, Precedent};
    let one = found(&who, of(&[Claim, Precedent], "heron")).await;
    assert_eq!(one, found(&who, of(&[Precedent, Claim], "heron")).await);
    assert_eq!(one, found(&who, search("heron")).await);
    assert_eq!(one[1], "p", "{one:?}");
    world.close().await;
}
