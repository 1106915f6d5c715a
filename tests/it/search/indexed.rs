//! The vector leg by an index: as good as exactly, filters and all, and up to date.

use super::hybrid::{find, ids, near, of};
use crate::help::*;
use crate::precedent::{record, remove, small};
use crate::vectors::{build, built, dice, embed, space};
use crate::world::World;
use casebook::pb;
use pb::vector_index::{Codes, Method};
use pb::{ResourceKind, SearchMethod};
use rand::RngExt as _;

#[tokio::test]
async fn by_an_index_the_same_is_found_and_filters_lose_nothing() {
    const ROWS: usize = 3_000;
    let mut dice = dice();
    let world =
        World::with(&[("index_upkeep_interval_ms", "30"), ("index_probe_interval_ms", "0")]).await;
    let who = world.anonymous();
    space(&who, "s", 8).await;
    let mut draw = || (0..8).map(|_| dice.random_range(-1.0_f32..1.0)).collect::<Vec<f32>>();
    let mut embeddings = Vec::new();
    for from in (0..ROWS).step_by(1000) {
        let requests = (from..from + 1000).map(|n| {
            let id = format!("p{n:04}");
            // Two of each, so that an index names each hit twice.
            let kind = ResourceKind::Precedent;
            embeddings.extend((0..2).map(|k| of(kind, &id, &format!("{id}-{k}"), &draw())));
            let rare = [2, 50, 1000].iter().filter(|part| n % **part == 0);
            let precedent = pb::Precedent {
                summary: if n % 7 == 0 { "heron".into() } else { "stork".into() },
                tags: rare.map(|part| format!("of{part}")).collect(),
                ..small()
            };
            record(&id, precedent)
        });
        let request =
            pb::BatchCreatePrecedentsRequest { requests: requests.collect(), options: None };
        ok!(who.precedents().batch_create_precedents(request));
    }
    embed(&who, "s", &embeddings).await;
    world.superuser().await.batch_execute("ANALYZE").await.unwrap();
    built(&who, build("s", Method::Hnsw, Codes::Float16)).await;

    let exactly = |request: &pb::FindPrecedentsRequest| {
        let mut request = request.clone();
        let params = pb::SearchParams { exact: true, ..Default::default() };
        request.near.as_mut().unwrap().params = Some(params);
        request
    };
    let (mut there, mut found, mut by_index) = (0, 0, 0);
    for n in 0..40 {
        let filter = ["", "tags:of2", "tags:of50", "tags:of1000"][n % 4];
        let request = pb::FindPrecedentsRequest {
            text: if n % 3 == 0 { "heron".into() } else { String::new() },
            r#where: expression(filter),
            explain: true,
            ..find("s", &draw())
        };
        let answer = ok!(who.precedents().find_precedents(request.clone()));
        let exact = ok!(who.precedents().find_precedents(exactly(&request)));
        let leg = answer.legs.last().unwrap();
        assert_eq!(exact.legs.last().unwrap().method(), SearchMethod::Exact);
        assert_eq!(answer.hits.len(), exact.hits.len(), "{filter}");
        assert_eq!(answer.hits.len(), if filter == "tags:of1000" { 3 } else { 10 });
        let (hits, wanted) = (ids(&answer), ids(&exact));
        let same = wanted.iter().filter(|id| hits.contains(id)).count();
        match leg.method() {
            SearchMethod::Hnsw => {
                by_index += 1;
                assert!(leg.candidates < 1_000, "{leg:?}");
                assert!(leg.description.contains("HNSW index"), "{leg:?}");
            }
            _ => assert_eq!(hits, wanted),
        }
        there += wanted.len();
        found += same;
        // What is in few rows is looked at row by row.
        assert!(!filter.ends_with("0") || leg.method() == SearchMethod::Exact, "{filter} {leg:?}");
        assert!(!filter.is_empty() || leg.method() == SearchMethod::Hnsw, "{leg:?}");
    }
    assert!(by_index >= 10, "{by_index}");
    assert!(found * 100 >= there * 95, "{found} of {there}");

    // Where the index is asked for and leaves the leg short, every embedding is looked at.
    let params = pb::SearchParams { candidates: 100, ..Default::default() };
    let leg = pb::VectorLeg { params: Some(params), ..near("s", &draw()).unwrap() };
    for (filter, hits, method) in
        [("tags:of1000", 3, SearchMethod::Exact), ("", 10, SearchMethod::Hnsw)]
    {
        let answer = ok!(who.precedents().find_precedents(pb::FindPrecedentsRequest {
            near: Some(leg.clone()),
            r#where: expression(filter),
            explain: true,
            ..Default::default()
        }));
        assert_eq!((answer.hits.len(), answer.legs[0].method()), (hits, method), "{filter}");
    }

    // What was just written, and what was just deleted or changed.
    let target = draw();
    let before = ids(&ok!(who.precedents().find_precedents(find("s", &target))));
    let gone = before.iter().find(|id| *id != "p2999").unwrap();
    let moved = of(ResourceKind::Precedent, "p2999", "p2999-0", &target);
    embed(&who, "s", &[moved]).await;
    ok!(who.precedents().delete_precedent(remove(gone)));
    let request = pb::FindPrecedentsRequest { explain: true, ..find("s", &target) };
    let after = ok!(who.precedents().find_precedents(request));
    assert_eq!(after.legs[0].method(), SearchMethod::Hnsw);
    assert_eq!(ids(&after)[0], "p2999");
    assert!(!ids(&after).contains(gone));

    // An index that is searched no further than so far says that there may be more. With one point kept in sight, the
    // first walk comes by a few hundred of the 6,000; that it meets all that one in fifty have is out of the question.
    let params = pb::SearchParams { ef_search: 1, max_scan_tuples: 1, ..Default::default() };
    let all = pb::FindPrecedentsRequest {
        top_k: 100,
        r#where: expression("tags:of50"),
        ..find("s", &target)
    };
    let mut few = all.clone();
    few.near.as_mut().unwrap().params = Some(params);
    let all = ok!(who.precedents().find_precedents(all));
    assert!(!all.incomplete && all.hits.len() >= 59, "{}", all.hits.len());
    let few = ok!(who.precedents().find_precedents(few));
    assert!(few.incomplete && few.hits.len() < 59, "{}", few.hits.len());
    world.close().await;
}
