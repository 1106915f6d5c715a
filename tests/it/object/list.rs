//! Listing: prefixes to the letter, delimiters, pages at one moment, filters; and what it costs.

use super::*;
use crate::schema::store_on;
use casebook::store::filter::Filter;
use casebook::store::object::walk::Walk;
use casebook::store::postgres::Lane;
use serde_json::Value as Plan;

pub fn prefixed(prefix: &str) -> pb::ListObjectsRequest {
    pb::ListObjectsRequest { prefix: prefix.into(), ..Default::default() }
}

pub fn level(prefix: &str, delimiter: &str) -> pb::ListObjectsRequest {
    pb::ListObjectsRequest { delimiter: delimiter.into(), ..prefixed(prefix) }
}

/// All pages of a listing: keys and common prefixes, and how many pages there were.
pub async fn all(
    who: &As,
    request: &pb::ListObjectsRequest,
    page_size: i32,
) -> (Vec<String>, Vec<String>, usize) {
    let (mut keys, mut prefixes, mut pages) = (Vec::new(), Vec::new(), 0);
    let mut page_token = String::new();
    loop {
        let page = Some(pb::PageRequest { page_size, page_token, ..Default::default() });
        let request = pb::ListObjectsRequest { page, ..request.clone() };
        let answer = ok!(who.objects().list_objects(request));
        assert!(answer.objects.len() + answer.common_prefixes.len() <= page_size as usize);
        keys.extend(answer.objects.into_iter().map(|object| object.key));
        prefixes.extend(answer.common_prefixes);
        pages += 1;
        page_token = answer.page.unwrap().next_page_token;
        if page_token.is_empty() {
            return (keys, prefixes, pages);
        }
    }
}

async fn fill(me: &As, keys: &[&str]) {
    upload(me, b"one").await;
    for key in keys {
        made(me, put(key, b"one")).await;
    }
}

#[tokio::test]
async fn a_prefix_is_taken_to_the_letter() {
    let world = World::new().await;
    let me = world.anonymous();
    let keys = [
        "a%b",
        "a_b",
        "axb",
        "a",
        "A",
        "ab",
        "a\\b",
        "b/%/x",
        "b/x/x",
        "é",
        "éa",
        "z\u{10FFFF}",
        "z\u{10FFFF}a",
    ];
    fill(&me, &keys).await;
    for prefix in ["", "a", "a%", "a_", "a\\", "b/%", "%", "_", "é", "z\u{10FFFF}", "Z", "A", "a%b"]
    {
        let mut expected: Vec<&str> =
            keys.iter().copied().filter(|key| key.starts_with(prefix)).collect();
        expected.sort_unstable();
        for page_size in [1, 2, 50] {
            let (found, none, _) = all(&me, &prefixed(prefix), page_size).await;
            assert_eq!(
                (found, none.len()),
                (expected.iter().map(|key| (*key).to_owned()).collect(), 0),
                "{prefix}"
            );
        }
    }
    world.close().await;
}

#[tokio::test]
async fn a_delimiter_shows_one_level() {
    let world = World::new().await;
    let me = world.anonymous();
    let keys =
        ["a", "a/1", "a/2", "a/b/1", "a/b/2", "a//x", "ab/1", "b", "c--d--e", "c--f", "éé/x"];
    fill(&me, &keys).await;
    ok!(me.objects().delete_object(delete("ab/1")));
    for (prefix, delimiter, objects, prefixes) in [
        ("", "/", &["a", "b", "c--d--e", "c--f"][..], &["a/", "éé/"][..]),
        ("a", "/", &["a"], &["a/"]),
        ("a/", "/", &["a/1", "a/2"], &["a//", "a/b/"]),
        ("a/b", "/", &[], &["a/b/"]),
        ("a/b/", "/", &["a/b/1", "a/b/2"], &[]),
        ("c", "--", &[], &["c--"]),
        ("c--", "--", &["c--f"], &["c--d--"]),
        ("éé", "/", &[], &["éé/"]),
        ("é", "é", &[], &["éé"]),
        ("nothing", "/", &[], &[]),
        (
            "",
            "1",
            &["a", "a//x", "a/2", "a/b/2", "b", "c--d--e", "c--f", "éé/x"],
            &["a/1", "a/b/1"],
        ),
    ] {
        for page_size in [1, 2, 3, 50] {
            let (found, common, pages) = all(&me, &level(prefix, delimiter), page_size).await;
            assert_eq!(
                (&found[..], &common[..]),
                (
                    &objects.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>()[..],
                    &prefixes.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>()[..],
                ),
                "{prefix:?} {delimiter:?} by {page_size}"
            );
            let expected = (found.len() + common.len()).div_ceil(page_size as usize).max(1);
            assert_eq!(pages, expected);
        }
    }
    world.close().await;
}

#[tokio::test]
async fn pages_show_the_moment_of_the_first() {
    let world = World::new().await;
    let me = world.anonymous();
    fill(&me, &["a/1", "b/1", "c", "d/1", "d/2", "e"]).await;
    for request in [prefixed(""), level("", "/")] {
        let before = all(&me, &request, 50).await;
        let first = pb::ListObjectsRequest { page: page(1), ..request.clone() };
        let first = ok!(me.objects().list_objects(first));
        // What goes, comes and changes behind it is not for its later pages.
        ok!(me.objects().batch_delete_objects(pb::BatchDeleteObjectsRequest {
            keys: vec!["b/1".into(), "d/1".into(), "e".into()],
            ..Default::default()
        }));
        fill(&me, &["bb", "b/0", "c", "f/1"]).await;
        let (mut keys, mut prefixes) = (Vec::new(), first.common_prefixes);
        keys.extend(first.objects.into_iter().map(|object| object.key));
        let mut page_token = first.page.unwrap().next_page_token;
        while !page_token.is_empty() {
            let page = Some(pb::PageRequest { page_size: 2, page_token, ..Default::default() });
            let next =
                ok!(me.objects().list_objects(pb::ListObjectsRequest { page, ..request.clone() }));
            assert!(
                next.objects.iter().all(|object| object
                    .meta
                    .as_ref()
                    .unwrap()
                    .delete_time
                    .is_none())
            );
            assert!(
                next.objects.iter().all(|object| object.key != "c" || object.version_count == 1),
                "{next:?}"
            );
            keys.extend(next.objects.into_iter().map(|object| object.key));
            prefixes.extend(next.common_prefixes);
            page_token = next.page.unwrap().next_page_token;
        }
        assert_eq!((keys, prefixes), (before.0, before.1));
        // As it was, for the other kind of listing.
        for key in ["bb", "b/0", "f/1", "c"] {
            for (id, _) in versions(&me, key).await {
                ok!(me.objects().delete_object(delete_version(key, &id)));
            }
        }
        fill(&me, &["b/1", "c", "d/1", "e"]).await;
    }
    // A token is of its own listing only.
    let first =
        ok!(me.objects().list_objects(pb::ListObjectsRequest { page: page(1), ..level("", "/") }));
    let page_token = first.page.unwrap().next_page_token;
    let page = Some(pb::PageRequest { page_token, ..Default::default() });
    let other = pb::ListObjectsRequest { page, ..level("", "-") };
    fails!(me.objects().list_objects(other), InvalidArgument, "PAGE_TOKEN_MISMATCH");
    world.close().await;
}

#[tokio::test]
async fn listings_are_filtered_and_ordered() {
    let world = World::new().await;
    let me = world.anonymous();
    upload(&me, b"one").await;
    for (key, owner, kind) in
        [("a/1", "ada", "text/plain"), ("a/2", "eve", "image/png"), ("b", "ada", "image/png")]
    {
        let mut given = put(key, b"one");
        given.content_type = kind.into();
        given.metadata = Some(json(&[("owner", owner)]));
        given.tags = labels(&[("kind", kind)]);
        made(&me, given).await;
    }
    made(&me, put_external("a/3", 77)).await;
    let filtered =
        |text: &str| pb::ListObjectsRequest { r#where: expression(text), ..Default::default() };
    for (text, expected) in [
        ("storage_backend = \"tape\"", &["a/3"][..]),
        ("content_type = \"image/png\"", &["a/2", "b"]),
        ("metadata.owner = \"ada\"", &["a/1", "b"]),
        ("tags.kind = \"text/plain\" OR size_bytes > 10", &["a/1", "a/3"]),
        (
            "last_modified > \"2020-01-01T00:00:00Z\" AND version_count = 1",
            &["a/1", "a/2", "a/3", "b"],
        ),
        ("last_modified < \"2020-01-01T00:00:00Z\"", &[]),
        ("key = \"b\"", &["b"]),
    ] {
        let (found, _, _) = all(&me, &filtered(text), 2).await;
        assert_eq!(found, expected, "{text}");
    }
    // A common prefix is one of the objects that are asked for.
    let of_ada = pb::ListObjectsRequest {
        delimiter: "/".into(),
        ..filtered("content_type = \"image/png\"")
    };
    assert_eq!(all(&me, &of_ada, 50).await, (vec!["b".to_owned()], vec!["a/".to_owned()], 1));
    let none =
        pb::ListObjectsRequest { delimiter: "/".into(), ..filtered("metadata.owner = \"bob\"") };
    assert_eq!(all(&me, &none, 50).await, (Vec::new(), Vec::new(), 1));
    let window = Some(pb::TimeWindow {
        newer_than: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
        ..Default::default()
    });
    let recent = pb::ListObjectsRequest { window, ..level("a/", "/") };
    assert_eq!(all(&me, &recent, 50).await.0.len(), 3);
    let newest = pb::PageRequest {
        order_by: "last_modified desc".into(),
        include_total_size: true,
        ..Default::default()
    };
    let newest = pb::ListObjectsRequest { page: Some(newest), ..prefixed("a/") };
    let answer = ok!(me.objects().list_objects(newest));
    let keys: Vec<_> = answer.objects.iter().map(|object| object.key.as_str()).collect();
    assert_eq!((keys, answer.page.unwrap().total_size), (vec!["a/3", "a/2", "a/1"], 3));
    ok!(me.objects().delete_object(delete("a/1")));
    let deleted = pb::ListObjectsRequest { show_deleted: true, ..prefixed("a/") };
    assert_eq!(all(&me, &deleted, 50).await.0.len(), 3);
    let masked = pb::ListObjectsRequest { read_mask: mask(&["key"]), ..prefixed("b") };
    let masked = ok!(me.objects().list_objects(masked)).objects;
    assert_eq!(masked, [pb::Object { key: "b".into(), ..Default::default() }]);
    world.close().await;
}

/// Rows that all scans of a plan have read.
fn read(plan: &Plan) -> f64 {
    let number = |name: &str| plan[name].as_f64().unwrap_or_default();
    let is_of_objects = plan["Relation Name"] == "object";
    let mine = match is_of_objects {
        true => (number("Actual Rows") + number("Rows Removed by Filter")) * number("Actual Loops"),
        false => 0.0,
    };
    let plans = plan["Plans"].as_array();
    mine + plans.into_iter().flatten().map(read).sum::<f64>()
}

#[tokio::test]
async fn a_level_costs_what_it_shows() {
    let world = World::new().await;
    let me = world.anonymous();
    fill(&me, &["top"]).await;
    let database = world.superuser().await;
    let many = "INSERT INTO casebook.object (tenant_id, id, uid, version, create_time, update_time, created_by, updated_by, \
         version_id, version_count, last_modified, digest, size_bytes, content_type, storage_backend, storage_class, \
         location, store_etag, store_version_id, metadata, tags, retention_class, subject_id) \
         SELECT t, 'deep/' || n % 4 || '/' || n, gen_random_uuid(), 1, now(), now(), '', '', 'v', 1, now(), '', n, '', \
         'tape', '', '', '', '', '{}', '{}', '', '' FROM generate_series(1, 40000) n, unnest(ARRAY['default', 'x']) t";
    database.batch_execute(many).await.unwrap();
    database.batch_execute("ANALYZE casebook.object").await.unwrap();
    assert_eq!(all(&me, &level("", "/"), 50).await, (vec!["top".into()], vec!["deep/".into()], 1));
    let four: Vec<String> = (0..4).map(|n| format!("deep/{n}/")).collect();
    assert_eq!(all(&me, &level("deep/", "/"), 3).await, (Vec::new(), four, 2));

    // One statement, and of the 40,000 keys it reads those that it shows and one behind each.
    let store = store_on(&world.database).await;
    let conn = store.connection(Lane::Work).await.unwrap();
    let set = "SELECT set_config('casebook.tenant', 'default', false)";
    conn.client().query(set, &[]).await.unwrap();
    for (prefix, snapshot) in [("", None), ("deep/", None), ("deep/", Some(2))] {
        let walk = Walk {
            prefix: prefix.into(),
            delimiter: "/".into(),
            filter: Filter::default(),
            window: None,
            from: None,
            limit: 50,
            snapshot,
        };
        let (sql, params) = walk.statement(snapshot).unwrap();
        let explain = format!("EXPLAIN (ANALYZE, FORMAT JSON) {sql}");
        let rows = conn.client().query(&explain, &params.as_sql()).await.unwrap();
        let plan: casebook::store::canonical::Json = rows[0].get(0);
        let plan: Plan = serde_json::from_slice(plan.text()).unwrap();
        let rows = read(&plan[0]["Plan"]);
        assert!(rows <= 10.0, "{rows} rows: {plan:#}");
    }
    // A page of keys begins where the one before ended, without counting on from the start.
    let deep = pb::ListObjectsRequest { page: page(1000), ..prefixed("deep/3/") };
    let first = ok!(me.objects().list_objects(deep.clone()));
    let token = first.page.unwrap().next_page_token;
    let page = Some(pb::PageRequest { page_size: 1000, page_token: token, ..Default::default() });
    let second = ok!(me.objects().list_objects(pb::ListObjectsRequest { page, ..deep }));
    assert_eq!(second.objects.len(), 1000);
    assert!(second.objects[0].key > first.objects[999].key);
    conn.done();
    store.close();
    drop(database);
    world.close().await;
}
