//! References between precedents: linked many at a time, hidden with what they belong to, and walked in circles.

use crate::help::*;
use crate::precedent::{on_conflict, record, remove, restore, small};
use crate::world::{As, World, object, request, wrong_fields};
use casebook::pb;

fn edge(from: &str, to: &str) -> pb::PrecedentReference {
    pb::PrecedentReference {
        from_precedent_id: from.into(),
        to_precedent_id: to.into(),
        reference_type: "semantic".into(),
        ..Default::default()
    }
}

fn full(id: &str) -> pb::PrecedentReference {
    pb::PrecedentReference {
        id: id.into(),
        similarity: Some(0.5),
        metadata: Some(object(&[("k", "v")])),
        ..edge("a", "b")
    }
}

fn link(edges: Vec<pb::PrecedentReference>) -> pb::LinkPrecedentsRequest {
    pb::LinkPrecedentsRequest { precedent_references: edges, options: None }
}

fn unlink(ids: &[&str]) -> pb::UnlinkPrecedentsRequest {
    pb::UnlinkPrecedentsRequest {
        precedent_reference_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        ..Default::default()
    }
}

fn around(precedent_id: &str, depth: i32) -> pb::ListPrecedentReferencesRequest {
    pb::ListPrecedentReferencesRequest {
        precedent_id: precedent_id.into(),
        depth,
        page: Some(pb::PageRequest {
            order_by: "from_precedent_id, to_precedent_id".into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// "ab bc" for the references from a to b and from b to c.
fn drawn(references: &[pb::PrecedentReference]) -> String {
    let pairs = references.iter().map(|r| format!("{}{}", r.from_precedent_id, r.to_precedent_id));
    pairs.collect::<Vec<_>>().join(" ")
}

async fn seen(who: &As, request: pb::ListPrecedentReferencesRequest) -> String {
    drawn(&ok!(who.precedents().list_precedent_references(request)).precedent_references)
}

async fn with_precedents(ids: &[&str]) -> (World, As) {
    let world = World::new().await;
    let who = world.anonymous();
    for id in ids {
        ok!(who.precedents().create_precedent(record(id, small())));
    }
    (world, who)
}

#[tokio::test]
async fn references_come_back_as_given_and_an_edge_is_there_once() {
    let (world, who) = with_precedents(&[]).await;
    let mut client = who.precedents();
    let given = || link(vec![full("r-1"), edge("b", "a"), edge("a", "c")]);
    let once = || pb::LinkPrecedentsRequest { options: Some(request("q-1")), ..given() };
    let made = ok!(client.link_precedents(once()));
    assert_eq!(made.receipt.unwrap().audit_seq, 3);
    let rows = made.precedent_references;
    let expected = pb::PrecedentReference {
        etag: rows[0].etag.clone(),
        meta: rows[0].meta.clone(),
        ..full("r-1")
    };
    assert_eq!(rows[0], expected);
    assert_eq!(rows[1].id, rows[1].meta.as_ref().unwrap().uid);
    assert_eq!(drawn(&rows), "ab ba ac");
    let again = ok!(client.link_precedents(once()));
    assert_eq!(again.precedent_references, rows);
    assert!(again.receipt.unwrap().replayed);
    // The precedents were never recorded, and need not be.
    assert_eq!(seen(&who, around("", 0)).await, "ab ac ba");

    // By the id or by the edge; nothing of the rest is written.
    let before = head(&who).await;
    for taken in [
        full("r-1"),
        full(""),
        full("r-2"),
        pb::PrecedentReference { id: "r-1".into(), ..edge("x", "y") },
    ] {
        let call = client.link_precedents(link(vec![edge("x", "z"), taken]));
        fails!(call, AlreadyExists, "EXISTS");
    }
    let or_equal = |edges| pb::LinkPrecedentsRequest {
        options: on_conflict(pb::OnConflict::ReturnIfEqual),
        ..link(edges)
    };
    for (different, fields) in [
        (pb::PrecedentReference { similarity: None, ..full("r-1") }, "similarity"),
        (pb::PrecedentReference { similarity: Some(0.25), ..full("") }, "similarity"),
        (pb::PrecedentReference { reference_type: "x".into(), ..full("r-1") }, "reference_type"),
        (full("r-9"), "id"),
    ] {
        let call = client.link_precedents(or_equal(vec![edge("x", "z"), different]));
        let status = fails!(call, AlreadyExists, "EXISTS_DIFFERENT");
        assert_eq!(info(&status)["fields"], fields);
    }
    assert_eq!(head(&who).await, before);
    let equal = ok!(client.link_precedents(or_equal(vec![edge("b", "a"), full("r-1")])));
    assert_eq!(equal.precedent_references, [rows[1].clone(), rows[0].clone()]);
    assert!(equal.receipt.unwrap().unchanged);
    // Some are new, and a repetition still knows which is which.
    let mixed = || pb::LinkPrecedentsRequest {
        options: Some(pb::WriteOptions {
            on_conflict: pb::OnConflict::ReturnIfEqual.into(),
            ..request("q-2")
        }),
        ..link(vec![edge("a", "d"), edge("b", "a"), edge("a", "e"), full("r-1")])
    };
    let made = ok!(client.link_precedents(mixed()));
    assert_eq!(drawn(&made.precedent_references), "ad ba ae ab");
    assert_eq!(made.receipt.unwrap().audit_seq, before + 2);
    let again = ok!(client.link_precedents(mixed()));
    assert_eq!(again.precedent_references, made.precedent_references);
    world.close().await;
}

#[tokio::test]
async fn references_that_make_no_sense_are_refused() {
    let (world, who) = with_precedents(&[]).await;
    let mut client = who.precedents();
    let at = "precedent_references[1]";
    for (given, field) in [
        (edge("", "b"), ".from_precedent_id"),
        (edge("a", ""), ".to_precedent_id"),
        (edge("a", "a"), ".to_precedent_id"),
        (pb::PrecedentReference { reference_type: "".into(), ..edge("a", "b") }, ".reference_type"),
        (pb::PrecedentReference { reference_type: "x".repeat(51), ..full("") }, ".reference_type"),
        (pb::PrecedentReference { similarity: Some(1.01), ..full("") }, ".similarity"),
        (pb::PrecedentReference { id: "no good".into(), ..full("") }, ".id"),
    ] {
        let call = client.link_precedents(link(vec![edge("x", "y"), given]));
        let status = fails!(call, InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), [format!("{at}{field}")]);
    }
    for twice in [
        vec![edge("a", "b"), edge("a", "b")],
        vec![full("r"), pb::PrecedentReference { id: "r".into(), ..edge("a", "c") }],
    ] {
        fails!(client.link_precedents(link(twice)), InvalidArgument, "DUPLICATE_IN_BATCH");
    }
    let many = (0..1001).map(|n| edge("a", &format!("b{n}"))).collect();
    for count in [Vec::new(), many] {
        fails!(client.link_precedents(link(count)), InvalidArgument, "FIELD_INVALID");
    }
    let replace = pb::LinkPrecedentsRequest {
        options: on_conflict(pb::OnConflict::Replace),
        ..link(vec![edge("a", "b")])
    };
    fails!(client.link_precedents(replace), InvalidArgument, "FIELD_INVALID");
    fails!(client.unlink_precedents(unlink(&[])), InvalidArgument, "FIELD_INVALID");
    fails!(client.unlink_precedents(unlink(&["r", "r"])), InvalidArgument, "DUPLICATE_IN_BATCH");
    for (request, field) in [
        (around("a", 6), "depth"),
        (around("a", -1), "depth"),
        (around("-", 2), "precedent_id"),
        (around("no good", 1), "precedent_id"),
    ] {
        let status =
            fails!(client.list_precedent_references(request), InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), [field]);
    }
    assert_eq!(head(&who).await, 0);
    world.close().await;
}

#[tokio::test]
async fn references_are_taken_away_all_or_none() {
    let (world, who) = with_precedents(&[]).await;
    let mut client = who.precedents();
    let named = |id: &str, to: &str| pb::PrecedentReference { id: id.into(), ..edge("a", to) };
    let edges = vec![named("r-1", "b"), named("r-2", "c"), named("r-3", "d")];
    ok!(client.link_precedents(link(edges)));
    fails!(client.unlink_precedents(unlink(&["r-1", "none"])), NotFound, "NOT_FOUND");
    assert_eq!(head(&who).await, 3);
    let once = || pb::UnlinkPrecedentsRequest {
        allow_missing: true,
        options: Some(request("q")),
        ..unlink(&["r-3", "none", "r-1"])
    };
    let gone = ok!(client.unlink_precedents(once()));
    assert_eq!(drawn(&gone.precedent_references), "ad ab");
    assert!(gone.precedent_references[0].meta.as_ref().unwrap().delete_time.is_some());
    assert_eq!(gone.receipt.unwrap().audit_seq, 5);
    let again = ok!(client.unlink_precedents(once()));
    assert_eq!(again.precedent_references, gone.precedent_references);
    fails!(client.unlink_precedents(unlink(&["r-1"])), NotFound, "NOT_FOUND");
    assert_eq!(seen(&who, around("a", 1)).await, "ac");
    let all = pb::ListPrecedentReferencesRequest { show_deleted: true, ..around("a", 1) };
    assert_eq!(seen(&who, all).await, "ab ac ad");
    // The place is free again.
    ok!(client.link_precedents(link(vec![named("r-1", "b")])));
    world.close().await;
}

#[tokio::test]
async fn references_go_and_come_with_either_end() {
    let (world, who) = with_precedents(&["a", "b", "c"]).await;
    let mut client = who.precedents();
    let edges = vec![edge("a", "b"), edge("b", "c"), edge("c", "a"), edge("a", "unknown")];
    ok!(client.link_precedents(link(edges)));
    let all = || around("-", 1);
    assert_eq!(seen(&who, all()).await, "ab aunknown bc ca");
    let before = ok!(client.list_precedent_references(all())).page.unwrap().read_at;
    let mut paged = all();
    paged.page.as_mut().unwrap().page_size = 1;
    let first = ok!(client.list_precedent_references(paged.clone())).page.unwrap();

    // Its own are deleted with it, and what points at it is not shown.
    ok!(client.delete_precedent(remove("b")));
    assert_eq!(seen(&who, all()).await, "aunknown ca");
    assert_eq!(seen(&who, around("a", 1)).await, "aunknown");
    let incoming = |id| pb::ListPrecedentReferencesRequest { incoming: true, ..around(id, 1) };
    assert_eq!(seen(&who, incoming("b")).await, "");
    assert_eq!(seen(&who, incoming("a")).await, "ca");
    let deleted = pb::ListPrecedentReferencesRequest { show_deleted: true, ..all() };
    assert_eq!(seen(&who, deleted).await, "ab aunknown bc ca");
    let mut counted = all();
    counted.page.as_mut().unwrap().include_total_size = true;
    assert_eq!(ok!(client.list_precedent_references(counted)).page.unwrap().total_size, 2);
    // One that is made while it is deleted is not shown either.
    ok!(client.link_precedents(link(vec![edge("c", "b"), edge("b", "unknown")])));
    assert_eq!(seen(&who, all()).await, "aunknown ca");

    // As it stood before, on later pages and at a revision.
    paged.page.as_mut().unwrap().page_size = 9;
    paged.page.as_mut().unwrap().page_token = first.next_page_token;
    assert_eq!(seen(&who, paged).await, "aunknown bc ca");
    let then = pb::consistency::Requirement::AtExactSnapshot(before.unwrap());
    let then = Some(pb::Consistency { requirement: Some(then) });
    let past = |depth| pb::ListPrecedentReferencesRequest {
        consistency: then.clone(),
        ..around("a", depth)
    };
    assert_eq!(seen(&who, past(3)).await, "ab aunknown bc ca");

    ok!(client.undelete_precedent(restore("b")));
    assert_eq!(seen(&who, all()).await, "ab aunknown bc bunknown ca cb");
    assert_eq!(seen(&who, past(2)).await, "ab aunknown bc");

    // A new one under the id is what the references name now; its own come with it only.
    ok!(client.delete_precedent(remove("b")));
    ok!(client.create_precedent(record("b", small())));
    assert_eq!(seen(&who, all()).await, "ab aunknown ca cb");
    world.close().await;
}

#[tokio::test]
async fn a_precedent_whose_reference_was_made_again_does_not_come_back() {
    let (world, who) = with_precedents(&["a", "b"]).await;
    let mut client = who.precedents();
    ok!(client.link_precedents(link(vec![edge("a", "b")])));
    ok!(client.delete_precedent(remove("a")));
    let again = ok!(client.link_precedents(link(vec![edge("a", "b")]))).precedent_references;
    let before = head(&who).await;
    fails!(client.undelete_precedent(restore("a")), AlreadyExists, "EXISTS");
    assert_eq!(head(&who).await, before);
    ok!(client.unlink_precedents(unlink(&[&again[0].id])));
    ok!(client.undelete_precedent(restore("a")));
    assert_eq!(seen(&who, around("a", 1)).await, "ab");
    world.close().await;
}

#[tokio::test]
async fn a_walk_ends_in_circles_and_goes_as_far_as_asked() {
    let (world, who) = with_precedents(&["a", "b", "c", "d", "e", "f", "g"]).await;
    let mut client = who.precedents();
    let way = ["ab", "bc", "cd", "de", "ef", "fg", "ca", "cb", "xa"];
    let edges = way.iter().map(|pair| edge(&pair[..1], &pair[1..]));
    ok!(client.link_precedents(link(edges.collect())));
    for (depth, expected) in [
        (0, "ab"),
        (1, "ab"),
        (2, "ab bc"),
        (3, "ab bc ca cb cd"),
        (4, "ab bc ca cb cd de"),
        (5, "ab bc ca cb cd de ef"),
    ] {
        assert_eq!(seen(&who, around("a", depth)).await, expected, "{depth}");
    }
    let back = |depth| pb::ListPrecedentReferencesRequest { incoming: true, ..around("a", depth) };
    assert_eq!(seen(&who, back(1)).await, "ca xa");
    assert_eq!(seen(&who, back(3)).await, "ab bc ca cb xa");
    assert_eq!(seen(&who, around("nobody", 5)).await, "");

    // Pages of one walk are of one revision, though the way is cut meanwhile.
    let mut paged = around("a", 5);
    paged.page.as_mut().unwrap().page_size = 3;
    let mut all = String::new();
    loop {
        let found = ok!(client.list_precedent_references(paged.clone()));
        assert!(found.precedent_references.len() <= 3 && !found.truncated);
        all = format!("{all} {}", drawn(&found.precedent_references));
        let next = found.page.unwrap().next_page_token;
        if next.is_empty() {
            break;
        }
        if paged.page.as_ref().unwrap().page_token.is_empty() {
            ok!(client.delete_precedent(remove("d")));
            ok!(client.link_precedents(link(vec![edge("a", "g")])));
        }
        paged.page.as_mut().unwrap().page_token = next;
    }
    assert_eq!(all, " ab bc ca cb cd de ef");
    assert_eq!(seen(&who, around("a", 5)).await, "ab ag bc ca cb");

    // The walk goes along what is asked for.
    let other = pb::PrecedentReference { reference_type: "overrules".into(), ..edge("b", "f") };
    ok!(client.link_precedents(link(vec![other])));
    let along = pb::ListPrecedentReferencesRequest {
        r#where: expression("reference_type = semantic"),
        ..around("a", 5)
    };
    assert_eq!(seen(&who, along).await, "ab ag bc ca cb");
    assert_eq!(seen(&who, around("a", 5)).await, "ab ag bc bf ca cb fg");
    world.close().await;
}

#[tokio::test]
async fn a_walk_visits_no_more_than_ten_thousand() {
    let (world, who) = with_precedents(&[]).await;
    let mut client = who.precedents();
    for from in 0..11 {
        let edges = (0..1000).map(|n| edge("hub", &format!("p{from:02}-{n:03}")));
        ok!(client.link_precedents(link(edges.collect())));
    }
    ok!(client.link_precedents(link(vec![edge("p00-000", "near"), edge("p10-999", "far")])));
    let mut request = around("hub", 2);
    request.r#where = expression("to_precedent_id = near OR to_precedent_id = far OR id:*");
    request.page.as_mut().unwrap().order_by = "to_precedent_id".into();
    let found = ok!(client.list_precedent_references(request));
    assert!(found.truncated);
    assert_eq!(found.precedent_references[0].to_precedent_id, "near");
    assert!(!ok!(client.list_precedent_references(around("hub", 1))).truncated);
    world.close().await;
}

#[tokio::test]
async fn references_are_of_one_tenant_and_strict_where_it_says_so() {
    let (world, who) = with_precedents(&["a", "b"]).await;
    ok!(who.precedents().link_precedents(link(vec![full("r")])));
    world.tenant("strict").await;
    let strict = pb::UpdateTenantRequest {
        tenant: Some(pb::Tenant {
            id: "strict".into(),
            strict_references: true,
            ..Default::default()
        }),
        update_mask: mask(&["strict_references"]),
        options: None,
    };
    ok!(world.as_tenant("system").tenants().update_tenant(strict));
    let other = world.as_tenant("strict");
    let mut client = other.precedents();
    assert_eq!(seen(&other, around("a", 5)).await, "");
    fails!(client.unlink_precedents(unlink(&["r"])), NotFound, "NOT_FOUND");
    ok!(client.create_precedent(record("a", small())));
    let call = client.link_precedents(link(vec![full("r")]));
    let status = fails!(call, FailedPrecondition, "REFERENCE_MISSING");
    assert_eq!(info(&status)["id"], "b");
    ok!(client.create_precedent(record("b", small())));
    ok!(client.link_precedents(link(vec![full("r")])));
    assert_eq!(seen(&who, around("a", 1)).await, "ab");
    world.close().await;
}

/// Behind the wire: each end is told apart once it is recorded, both ends in one batch too.
#[tokio::test]
async fn ends_that_are_recorded_later_are_resolved() {
    let (world, who) = with_precedents(&["known"]).await;
    let mut client = who.precedents();
    ok!(client.link_precedents(link(vec![edge("a", "b"), edge("a", "c"), edge("known", "a")])));
    let requests = ["a", "b"].iter().map(|id| record(id, small())).collect();
    let batch = pb::BatchCreatePrecedentsRequest { requests, options: None };
    ok!(client.batch_create_precedents(batch));
    let superuser = world.superuser().await;
    let sql = "SELECT from_precedent_id || to_precedent_id, from_precedent_uid IS NOT NULL, \
               to_precedent_uid IS NOT NULL FROM casebook.precedent_reference ORDER BY 1";
    let rows = superuser.query(sql, &[]).await.unwrap();
    let known: Vec<(String, bool, bool)> =
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    let is = |edge: &str, from, to| (edge.to_owned(), from, to);
    assert_eq!(known, [is("ab", true, true), is("ac", true, false), is("knowna", true, true)]);

    // What is recorded while a precedent is hidden is told when it comes back.
    let decided = pb::Precedent { decision_id: "d".into(), ..small() };
    ok!(client.create_precedent(record("hidden", decided)));
    ok!(client.link_precedents(link(vec![edge("hidden", "new"), edge("hidden", "none")])));
    ok!(client.delete_precedent(remove("hidden")));
    ok!(client.create_precedent(record("new", small())));
    let decision = crate::world::create("d", crate::world::decision("DENY", 0.5));
    ok!(who.decisions().create_decision(decision));
    ok!(client.undelete_precedent(restore("hidden")));
    let sql = "SELECT r.to_precedent_id, r.from_precedent_uid = p.uid, r.to_precedent_uid IS NOT DISTINCT FROM t.uid, \
               r.to_precedent_uid IS NULL, p.decision_uid = d.uid FROM casebook.precedent AS p \
               JOIN casebook.precedent_reference AS r ON r.from_precedent_id = p.id \
               LEFT JOIN casebook.precedent AS t ON t.id = r.to_precedent_id \
               LEFT JOIN casebook.decision AS d ON d.id = p.decision_id WHERE p.id = 'hidden' ORDER BY 1";
    let rows = superuser.query(sql, &[]).await.unwrap();
    let known: Vec<(String, [Option<bool>; 4])> = rows
        .iter()
        .map(|row| (row.get(0), [row.get(1), row.get(2), row.get(3), row.get(4)]))
        .collect();
    let is = |to: &str, unknown| (to.to_owned(), [true, true, unknown, true].map(Some));
    assert_eq!(known, [is("new", false), is("none", true)]);
    drop(superuser);
    world.close().await;
}
