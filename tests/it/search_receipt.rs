//! Receipts of searches, and searches that are made again from them, whatever has happened since.

use crate::help::*;
use crate::precedent::{change, record, remove, small};
use crate::search::hybrid::{find, near, of};
use crate::search::search;
use crate::vectors::{build, built, dice, embed, nearest, space};
use crate::world::{As, World, object, wrong_fields};
use casebook::pb;
use pb::{ResourceKind, Role};
use rand::RngExt as _;
use sha2::{Digest, Sha256};

async fn receipt(who: &As, id: &str) -> pb::SearchReceipt {
    let request =
        pb::GetSearchReceiptRequest { search_receipt_id: id.into(), ..Default::default() };
    ok!(who.search().get_search_receipt(request)).search_receipt.unwrap()
}

fn again(id: &str, at_original_revision: bool) -> pb::ReplaySearchRequest {
    pb::ReplaySearchRequest { search_receipt_id: id.into(), at_original_revision }
}

async fn replay(who: &As, id: &str, then: bool) -> pb::ReplaySearchResponse {
    ok!(who.search().replay_search(again(id, then)))
}

fn ids<'a>(refs: impl IntoIterator<Item = &'a pb::ResourceRef>) -> Vec<&'a str> {
    refs.into_iter().map(|one| one.id.as_str()).collect()
}

async fn alias(who: &As, to: &str) {
    ok!(who.spaces().set_vector_space_alias(pb::SetVectorSpaceAliasRequest {
        alias: "live".into(),
        vector_space_id: to.into(),
        options: None,
    }));
}

fn vectors(query: pb::VectorQuery) -> pb::SearchVectorsRequest {
    pb::SearchVectorsRequest { query: Some(query), keep_receipt: true, ..Default::default() }
}

/// Four precedents and their embeddings in a space with an alias.
async fn herons(who: &As) {
    space(who, "old", 2).await;
    alias(who, "old").await;
    let mut embeddings = Vec::new();
    for (id, summary, x) in [
        ("a", "heron", 1.0),
        ("b", "heron by the lake", 2.0),
        ("c", "stork", 3.0),
        ("d", "heron or stork", 0.3),
    ] {
        let precedent = pb::Precedent {
            summary: summary.into(),
            input: Some(object(&[("n", if id == "d" { "1" } else { "2" })])),
            tags: vec!["wading".into()],
            ..small()
        };
        ok!(who.precedents().create_precedent(record(id, precedent)));
        embeddings.push(of(ResourceKind::Precedent, id, id, &[x, 0.1]));
    }
    embed(who, "old", &embeddings).await;
}

/// One receipt of every kind of search: its id, and the ids of the hits.
async fn receipts(who: &As) -> Vec<(String, Vec<String>)> {
    let mut kept = Vec::new();
    let like = pb::VectorLeg {
        vector_space_id: "live".into(),
        like_embedding_id: "a".into(),
        ..Default::default()
    };
    for find in [
        pb::FindPrecedentsRequest {
            input: Some(object(&[("n", "1")])),
            text: "heron".into(),
            r#where: expression("tags:wading"),
            ..find("live", &[1.1, 0.0])
        },
        pb::FindPrecedentsRequest { near: Some(like.clone()), ..Default::default() },
        pb::FindPrecedentsRequest { input: Some(object(&[])), ..Default::default() },
    ] {
        let find = pb::FindPrecedentsRequest { keep_receipt: true, highlight: true, ..find };
        let answer = ok!(who.precedents().find_precedents(find));
        let ids = answer.hits.iter().map(|hit| hit.precedent.as_ref().unwrap().id.clone());
        kept.push((answer.search_receipt_id, ids.collect()));
    }
    for near in [None, near("live", &[1.1, 0.0]), Some(like)] {
        let asked =
            pb::SearchRequest { keep_receipt: true, near, page: page(3), ..search("heron") };
        let answer = ok!(who.search().search(asked));
        let ids = answer.hits.iter().map(|hit| hit.r#ref.as_ref().unwrap().id.clone());
        kept.push((answer.search_receipt_id, ids.collect()));
    }
    let like = pb::vector_query::Target::LikeEmbeddingId("a".into());
    for query in [
        pb::VectorQuery { top_k: 3, ..nearest("live", &[1.1, 0.0], 0) },
        pb::VectorQuery { max_distance: Some(1.5), ..nearest("live", &[1.1, 0.0], 0) },
        pb::VectorQuery { target: Some(like), ..nearest("live", &[], 0) },
    ] {
        let answer = ok!(who.vectors().search_vectors(vectors(query)));
        let ids = answer.hits.iter().map(|hit| hit.embedding.as_ref().unwrap().id.clone());
        kept.push((answer.search_receipt_id, ids.collect()));
    }
    kept
}

#[tokio::test]
async fn each_search_of_a_batch_has_a_receipt_of_its_own() {
    let world = World::new().await;
    let who = world.anonymous();
    herons(&who).await;
    let before = head(&who).await;
    let like = pb::vector_query::Target::LikeEmbeddingId("a".into());
    let queries = vec![
        pb::VectorQuery { top_k: 3, ..nearest("live", &[1.1, 0.0], 0) },
        pb::VectorQuery { target: Some(like), top_k: 2, ..nearest("live", &[], 0) },
    ];
    let batch = |queries, keep_receipts| pb::BatchSearchVectorsRequest {
        queries,
        keep_receipts,
        ..Default::default()
    };
    let plain = ok!(who.vectors().batch_search_vectors(batch(queries.clone(), false)));
    assert!(plain.search_receipt_ids.is_empty());
    assert_eq!(head(&who).await, before);
    let answer = ok!(who.vectors().batch_search_vectors(batch(queries.clone(), true)));
    assert_eq!(answer.results, plain.results);
    assert_eq!(answer.search_receipt_ids.len(), 2);
    // Both are written at once.
    assert_eq!(head(&who).await, before + 2);
    for (id, result) in answer.search_receipt_ids.iter().zip(&answer.results) {
        let kept = receipt(&who, id).await;
        assert_eq!(kept.method, "casebook.v1.VectorService/BatchSearchVectors");
        let found: Vec<_> =
            result.hits.iter().map(|hit| hit.embedding.as_ref().unwrap().id.clone()).collect();
        // Receipts name embeddings with their spaces.
        let hits = kept.hits.iter().map(|hit| hit.r#ref.as_ref().unwrap().id.as_str());
        let hits: Vec<_> = hits.map(|id| id.rsplit('/').next().unwrap()).collect();
        assert_eq!(hits, found);
        let again = replay(&who, id, true).await;
        assert!(again.identical, "{again:?}");
    }
    // One query that is wrong keeps nothing of the others.
    let wrong = pb::VectorQuery { top_k: -1, ..nearest("live", &[1.1, 0.0], 0) };
    let some = batch(vec![queries[0].clone(), wrong], true);
    fails!(who.vectors().batch_search_vectors(some), InvalidArgument, "FIELD_INVALID");
    assert_eq!(head(&who).await, before + 2);
    world.close().await;
}

#[tokio::test]
async fn a_search_is_the_same_again_whatever_has_happened_since() {
    let world = World::new().await;
    let who = world.anonymous();
    herons(&who).await;
    let before = head(&who).await;
    let kept = receipts(&who).await;
    assert_eq!(head(&who).await, before + kept.len() as i64);
    let entry = &entries(&who, 1).await[0];
    assert_eq!(entry.target.as_ref().unwrap().kind(), ResourceKind::SearchReceipt);

    let mut receipts = Vec::new();
    for (n, (id, found)) in kept.iter().enumerate() {
        let receipt = receipt(&who, id).await;
        let digest = Sha256::digest(&receipt.request);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((receipt.request_digest.as_str(), receipt.exact), (digest.as_str(), true));
        let ids = receipt.hits.iter().map(|hit| {
            let id = &hit.r#ref.as_ref().unwrap().id;
            id.rsplit('/').next().unwrap().to_owned()
        });
        assert_eq!(ids.collect::<Vec<_>>(), *found, "{n}");
        assert_eq!(found.is_empty(), n == 2, "{n}: {found:?}");
        // Of an alias the space, of an embedding the vector.
        let by_vector = !matches!(n, 2 | 3);
        assert_eq!(receipt.vector_space_id == "old", by_vector, "{n}");
        assert_eq!(receipt.vector_space_uid.is_empty(), !by_vector);
        assert_eq!(!receipt.like_embedding_uid.is_empty(), matches!(n, 1 | 5 | 8), "{n}");
        for then in [true, false] {
            let same = replay(&who, id, then).await;
            assert!(same.identical, "{n} {then}: {same:?} {receipt:?}");
            assert_eq!(same.hits, receipt.hits);
            assert!(same.missing.is_empty() && same.added.is_empty() && same.changed.is_empty());
            assert_eq!(same.read_at == receipt.read_at, then);
        }
        receipts.push(receipt);
    }

    // Another text, another input, other tags, other vectors, one that is gone, one that is back, one that is new, and an
    // alias that points elsewhere.
    let other = pb::Precedent { summary: "heron heron heron".into(), ..small() };
    ok!(who.precedents().update_precedent(change("b", &["summary", "tags"], other.clone())));
    ok!(who.precedents().delete_precedent(remove("a")));
    ok!(who.precedents().delete_precedent(remove("d")));
    ok!(who.precedents().create_precedent(record("d", other.clone())));
    ok!(who.precedents().create_precedent(record("new", other)));
    let kind = ResourceKind::Precedent;
    let moved = [of(kind, "c", "c", &[1.1, 0.0]), of(kind, "new", "new", &[1.1, 0.0])];
    embed(&who, "old", &moved).await;
    space(&who, "other", 2).await;
    alias(&who, "other").await;
    for (n, ((id, _), receipt)) in kept.iter().zip(&receipts).enumerate() {
        let same = replay(&who, id, true).await;
        assert!(same.identical, "{n}: {same:?} {receipt:?}");
        assert_eq!((&same.hits, &same.read_at), (&receipt.hits, &receipt.read_at));
        let now = replay(&who, id, false).await;
        assert_eq!(now.identical, n == 2, "{n}: {now:?}");
        assert_eq!(crate::search_receipt::receipt(&who, id).await, *receipt);
    }
    // Words alone: two are gone, and of the two that are left one is another version.
    let now = replay(&who, &kept[3].0, false).await;
    assert_eq!(ids(&now.missing).len(), 2);
    assert!(ids(&now.missing).contains(&"a") && ids(&now.missing).contains(&"d"));
    assert_eq!((ids(&now.added).len(), ids(&now.changed)), (2, vec!["b"]));
    // The nearest of "old", not of what its alias names by now.
    let now = replay(&who, &kept[6].0, false).await;
    let name = |one: &pb::ResourceRef| one.id.rsplit('/').next().unwrap().to_owned();
    assert_eq!(now.missing.iter().map(name).collect::<Vec<_>>(), ["a", "d"]);
    assert_eq!(now.added.iter().map(name).collect::<Vec<_>>(), ["c", "new"]);

    // Also without the space, which now is another of the same id.
    ok!(who.spaces().delete_vector_space(pb::DeleteVectorSpaceRequest {
        vector_space_id: "old".into(),
        ..Default::default()
    }));
    space(&who, "old", 2).await;
    for (n, (id, _)) in kept.iter().enumerate() {
        assert!(replay(&who, id, true).await.identical, "{n}");
        if !matches!(n, 2 | 3) {
            fails!(who.search().replay_search(again(id, false)), NotFound, "NOT_FOUND");
        }
    }
    world.close().await;
}

#[tokio::test]
async fn receipts_are_listed_by_filter_and_in_order() {
    let (world, mut open) = guarded(&[]).await;
    for tenant in ["acme", "other"] {
        open.tenant(tenant).await;
    }
    let acme = open.as_tenant("acme");
    herons(&acme).await;
    let kept = receipts(&acme).await;
    let reader = world.with_token(&token(&acme, &[Role::Reader]).await.1);
    let list = |filter: &str| pb::ListSearchReceiptsRequest {
        r#where: expression(filter).filter(|_| !filter.is_empty()),
        ..Default::default()
    };
    let listed = ok!(reader.search().list_search_receipts(list(""))).search_receipts;
    let newest: Vec<_> = kept.iter().rev().map(|(id, _)| id.as_str()).collect();
    assert_eq!(listed.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), newest);
    for one in &listed {
        assert_eq!(*one, receipt(&reader, &one.id).await);
    }
    let vectors = r#"method = "casebook.v1.VectorService/SearchVectors""#;
    assert_eq!(ok!(reader.search().list_search_receipts(list(vectors))).search_receipts.len(), 3);
    let by_vector = list(r#"vector_space_id = "old""#);
    assert_eq!(ok!(reader.search().list_search_receipts(by_vector)).search_receipts.len(), 7);
    let first =
        pb::ListSearchReceiptsRequest { page: page(2), read_mask: mask(&["method"]), ..list("") };
    let first = ok!(reader.search().list_search_receipts(first));
    assert_eq!(
        (first.search_receipts.len(), first.page.unwrap().next_page_token.is_empty()),
        (2, false)
    );
    assert!(first.search_receipts.iter().all(|one| one.hits.is_empty() && one.read_at.is_none()));
    let other = open.as_tenant("other");
    assert!(ok!(other.search().list_search_receipts(list(""))).search_receipts.is_empty());
    open.stop().await;
    world.close().await;
}

/// What is purged cannot be found again, and nothing else is lost with it; another vector is told only of now.
#[tokio::test]
async fn a_replay_tells_of_hits_that_were_purged_or_changed() {
    let world = World::new().await;
    let who = world.anonymous();
    herons(&who).await;
    let asked = nearest("old", &[1.1, 0.0], 0);
    let id = ok!(who.vectors().search_vectors(vectors(asked))).search_receipt_id;
    let name = |one: &pb::ResourceRef| one.id.rsplit('/').next().unwrap().to_owned();
    let names = |refs: &[pb::ResourceRef]| refs.iter().map(name).collect::<Vec<_>>();
    let hits = |hits: &[pb::ReceiptHit]| -> Vec<String> {
        hits.iter().map(|hit| name(hit.r#ref.as_ref().unwrap())).collect()
    };
    let kept = receipt(&who, &id).await;
    assert_eq!(hits(&kept.hits), ["a", "d", "b", "c"]);
    embed(&who, "old", &[of(ResourceKind::Precedent, "b", "b", &[0.0, 5.0])]).await;
    assert!(replay(&who, &id, true).await.identical);
    let now = replay(&who, &id, false).await;
    assert_eq!(hits(&now.hits), ["a", "d", "c", "b"]);
    assert_eq!((names(&now.changed), now.identical), (vec!["c".into(), "b".into()], false));
    ok!(who.vectors().delete_embedding(pb::DeleteEmbeddingRequest {
        vector_space_id: "old".into(),
        embedding_id: "d".into(),
        ..Default::default()
    }));
    assert!(replay(&who, &id, true).await.identical);
    let purge = pb::PurgeResourcesRequest {
        kind: ResourceKind::Embedding.into(),
        max_resources: 10,
        ..Default::default()
    };
    assert_eq!(ok!(who.retention().purge_resources(purge)).purged_count, 1);
    let then = replay(&who, &id, true).await;
    assert_eq!(
        (hits(&then.hits), then.identical),
        (vec!["a".into(), "b".into(), "c".into()], false)
    );
    assert_eq!((names(&then.missing), then.added.len()), (vec!["d".to_owned()], 0));
    assert_eq!(names(&then.changed), ["b", "c"]);
    for (now, then) in then.hits.iter().zip([&kept.hits[0], &kept.hits[2], &kept.hits[3]]) {
        assert_eq!((now.score, now.distance, &now.r#ref), (then.score, then.distance, &then.r#ref));
    }
    let now = replay(&who, &id, false).await;
    assert_eq!(
        (hits(&now.hits), names(&now.missing)),
        (vec!["a".into(), "c".into(), "b".into()], vec!["d".to_owned()])
    );
    assert_eq!(receipt(&who, &id).await, kept);
    world.close().await;
}

/// By an index that finds little, an exact search at that moment tells what it has passed over.
#[tokio::test]
async fn what_an_index_passed_over_is_told() {
    use pb::vector_index::{Codes, Method};
    let mut dice = dice();
    let world =
        World::with(&[("index_upkeep_interval_ms", "30"), ("index_probe_interval_ms", "0")]).await;
    let who = world.anonymous();
    space(&who, "s", 8).await;
    let mut draw = || (0..8).map(|_| dice.random_range(-1.0_f32..1.0)).collect::<Vec<f32>>();
    let kind = ResourceKind::Precedent;
    let all: Vec<_> = (0..1000).map(|n| of(kind, "p", &format!("e{n:03}"), &draw())).collect();
    embed(&who, "s", &all).await;
    // A bit a dimension tells little of 8.
    built(&who, build("s", Method::Hnsw, Codes::Binary)).await;
    let (mut differing, mut kept) = (0, Vec::new());
    for _ in 0..10 {
        let params = pb::SearchParams { candidates: 10, ..Default::default() };
        let by_index = pb::VectorQuery { params: Some(params), ..nearest("s", &draw(), 0) };
        let params = pb::SearchParams { exact: true, ..Default::default() };
        let exactly = pb::VectorQuery { params: Some(params), ..by_index.clone() };
        let found = ok!(who.vectors().search_vectors(vectors(by_index)));
        assert_eq!(found.method(), pb::SearchMethod::Hnsw);
        let best = ok!(who.vectors().search_vectors(vectors(exactly))).hits;
        let uid = |hit: &pb::VectorHit| {
            hit.embedding.as_ref().unwrap().meta.as_ref().unwrap().uid.clone()
        };
        let best: Vec<_> = best.iter().map(uid).collect();
        assert!(!receipt(&who, &found.search_receipt_id).await.exact);
        kept.push((found.search_receipt_id, found.hits.iter().map(uid).collect::<Vec<_>>(), best));
    }
    embed(&who, "s", &[of(kind, "p", "e000", &draw()), of(kind, "p", "late", &draw())]).await;
    for (id, found, best) in kept {
        let told = replay(&who, &id, true).await;
        let replayed: Vec<_> = told.hits.iter().map(|hit| hit.uid.clone()).collect();
        assert_eq!(replayed, best);
        assert_eq!(told.added.len(), best.iter().filter(|uid| !found.contains(uid)).count());
        assert_eq!(told.missing.len(), found.iter().filter(|uid| !best.contains(uid)).count());
        assert_eq!(told.identical, found == best);
        differing += i32::from(!told.identical);
    }
    assert!(differing >= 5, "{differing}");
    world.close().await;
}

#[tokio::test]
async fn a_receipt_is_a_write_and_stays_in_its_tenant() {
    let (world, mut open) = guarded(&[]).await;
    for tenant in ["acme", "other"] {
        open.tenant(tenant).await;
    }
    let acme = open.as_tenant("acme");
    herons(&acme).await;
    let reader = world.with_token(&token(&acme, &[Role::Reader]).await.1);
    let writer = world.with_token(&token(&acme, &[Role::Writer]).await.1);
    let stranger = world.with_token(&token(&open.as_tenant("other"), &[Role::Admin]).await.1);
    let before = head(&acme).await;
    let words = || pb::SearchRequest { keep_receipt: true, ..search("heron") };
    let legs = || pb::SearchRequest { near: near("old", &[1.0, 0.0]), ..words() };
    let found = || pb::FindPrecedentsRequest { keep_receipt: true, ..find("old", &[1.0, 0.0]) };
    let by_vector = || vectors(nearest("old", &[1.0, 0.0], 0));
    fails!(reader.search().search(words()), PermissionDenied, "ROLE_MISSING");
    fails!(reader.search().search(legs()), PermissionDenied, "ROLE_MISSING");
    fails!(reader.precedents().find_precedents(found()), PermissionDenied, "ROLE_MISSING");
    fails!(reader.vectors().search_vectors(by_vector()), PermissionDenied, "ROLE_MISSING");
    let batch = pb::BatchSearchVectorsRequest {
        queries: vec![nearest("old", &[1.0, 0.0], 0)],
        keep_receipts: true,
        ..Default::default()
    };
    fails!(reader.vectors().batch_search_vectors(batch), PermissionDenied, "ROLE_MISSING");
    assert_eq!(head(&acme).await, before);

    let id = ok!(writer.search().search(legs())).search_receipt_id;
    assert_eq!(head(&acme).await, before + 1);
    assert_eq!(receipt(&reader, &id).await.method, "casebook.v1.SearchService/Search");
    assert!(replay(&reader, &id, true).await.identical);
    let get = |id: &str| pb::GetSearchReceiptRequest {
        search_receipt_id: id.into(),
        ..Default::default()
    };
    fails!(stranger.search().get_search_receipt(get(&id)), NotFound, "NOT_FOUND");
    for then in [true, false] {
        fails!(stranger.search().replay_search(again(&id, then)), NotFound, "NOT_FOUND");
    }
    fails!(reader.search().get_search_receipt(get("!")), InvalidArgument, "FIELD_INVALID");
    fails!(reader.search().replay_search(again("none", true)), NotFound, "NOT_FOUND");

    // Without keep_receipt nothing is kept, and of later pages nothing can be.
    let plain = pb::SearchRequest { keep_receipt: false, page: page(1), ..words() };
    let first = ok!(writer.search().search(plain.clone()));
    assert_eq!((first.search_receipt_id.as_str(), head(&acme).await), ("", before + 1));
    let mut second = pb::SearchRequest { keep_receipt: true, ..plain };
    second.page.as_mut().unwrap().page_token = first.page.unwrap().next_page_token;
    let status = fails!(writer.search().search(second), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["keep_receipt"]);

    ok!(open.as_tenant("system").tenants().update_tenant(pb::UpdateTenantRequest {
        tenant: Some(pb::Tenant {
            id: "acme".into(),
            state: pb::TenantState::ReadOnly.into(),
            ..Default::default()
        }),
        update_mask: mask(&["state"]),
        options: None,
    }));
    let late = open.as_tenant("acme");
    fails!(late.search().search(words()), FailedPrecondition, "READ_ONLY");
    assert!(replay(&late, &id, true).await.identical);
    open.stop().await;
    world.close().await;
}
