//! Vector spaces: which embedding model, with how many dimensions, under which metric, and the aliases that move from
//! one to another (F58 to F60, C8 to C10).

use crate::help::*;
use crate::world::{As, World, wrong_fields};
use casebook::pb;
use casebook::pb::{DistanceMetric, VectorStorage};
use std::collections::BTreeMap;

fn full() -> pb::VectorSpace {
    pb::VectorSpace {
        embedding_model: "text-embedding-3-small".into(),
        dimensions: 1024,
        metric: DistanceMetric::Dot.into(),
        storage: VectorStorage::Float16.into(),
        description: "Precedents by their summaries.".into(),
        labels: labels(&[("team", "a"), ("env", "prod")]),
        index_mode: pb::VectorIndexMode::Auto.into(),
        ..Default::default()
    }
}

fn plain() -> pb::VectorSpace {
    pb::VectorSpace { embedding_model: "ada".into(), ..Default::default() }
}

fn create(id: &str, space: pb::VectorSpace) -> pb::CreateVectorSpaceRequest {
    pb::CreateVectorSpaceRequest {
        vector_space_id: id.into(),
        vector_space: Some(space),
        options: None,
    }
}

fn get(name: &str) -> pb::GetVectorSpaceRequest {
    pb::GetVectorSpaceRequest { vector_space_id: name.into(), ..Default::default() }
}

fn remove(id: &str) -> pb::DeleteVectorSpaceRequest {
    pb::DeleteVectorSpaceRequest { vector_space_id: id.into(), ..Default::default() }
}

fn undelete(id: &str) -> pb::UndeleteVectorSpaceRequest {
    pb::UndeleteVectorSpaceRequest { vector_space_id: id.into(), ..Default::default() }
}

fn alias(alias: &str, id: &str) -> pb::SetVectorSpaceAliasRequest {
    pb::SetVectorSpaceAliasRequest {
        alias: alias.into(),
        vector_space_id: id.into(),
        options: None,
    }
}

fn no_alias(alias: &str) -> pb::DeleteVectorSpaceAliasRequest {
    pb::DeleteVectorSpaceAliasRequest { alias: alias.into(), ..Default::default() }
}

/// Spaces of these ids.
async fn spaces(who: &As, ids: &[&str]) {
    for id in ids {
        ok!(who.spaces().create_vector_space(create(id, plain())));
    }
}

/// The id of the space that a name stands for.
async fn named(who: &As, name: &str) -> String {
    ok!(who.spaces().get_vector_space(get(name))).vector_space.unwrap().id
}

#[tokio::test]
async fn a_space_comes_back_as_given_and_keeps_every_version() {
    let world = World::new().await;
    let mut client = world.anonymous().spaces();
    let made = ok!(client.create_vector_space(create("s", full())));
    let (one, first) = (made.vector_space.unwrap(), made.receipt.unwrap());
    let expected = pb::VectorSpace {
        id: "s".into(),
        etag: one.etag.clone(),
        meta: one.meta.clone(),
        ..full()
    };
    assert_eq!(one, expected);
    let update = |paths: &[&str], space| pb::UpdateVectorSpaceRequest {
        vector_space: Some(pb::VectorSpace { id: "s".into(), ..space }),
        update_mask: mask(paths),
        options: None,
    };
    let given = pb::VectorSpace { labels: labels(&[("team", "b")]), ..full() };
    let two =
        ok!(client.update_vector_space(update(&["labels.team"], given))).vector_space.unwrap();
    assert_eq!(two.labels, labels(&[("team", "b"), ("env", "prod")]));
    let cleared = update(&["description", "labels"], pb::VectorSpace::default());
    let three = ok!(client.update_vector_space(cleared)).vector_space.unwrap();
    assert_eq!((three.description.as_str(), three.labels.len()), ("", 0));
    for (version, expected) in [(0, &three), (1, &one), (2, &two)] {
        let request = pb::GetVectorSpaceRequest { version, ..get("s") };
        assert_eq!(ok!(client.get_vector_space(request)).vector_space.as_ref(), Some(expected));
    }
    let requirement = pb::consistency::Requirement::AtExactSnapshot(first.revision.unwrap());
    let then = pb::GetVectorSpaceRequest {
        consistency: Some(pb::Consistency { requirement: Some(requirement) }),
        read_mask: mask(&["dimensions"]),
        ..get("s")
    };
    let then = ok!(client.get_vector_space(then)).vector_space.unwrap();
    assert_eq!(then, pb::VectorSpace { id: "s".into(), dimensions: 1024, ..Default::default() });
    // What it is never changes.
    for path in ["embedding_model", "dimensions", "metric", "storage", "aliases", "index", "id"] {
        let request = update(&[path], full());
        let status =
            fails!(client.update_vector_space(request), InvalidArgument, "FIELD_IMMUTABLE");
        assert_eq!(wrong_fields(&status), ["update_mask"], "{path}");
    }
    world.close().await;
}

/// F58 to F60.
#[tokio::test]
async fn a_space_is_created_once_with_the_usual_defaults() {
    let world = World::new().await;
    let mut client = world.anonymous().spaces();
    let made = ok!(client.create_vector_space(create("s", plain()))).vector_space.unwrap();
    assert_eq!(
        (made.dimensions, made.metric(), made.storage()),
        (1536, DistanceMetric::Cosine, VectorStorage::Float32)
    );
    fails!(client.create_vector_space(create("s", plain())), AlreadyExists, "EXISTS");
    let again = |space| pb::CreateVectorSpaceRequest {
        options: on_conflict(pb::OnConflict::ReturnIfEqual),
        ..create("s", space)
    };
    // An alias does not make it another one.
    let there = ok!(client.set_vector_space_alias(alias("a", "s"))).vector_space.unwrap();
    let equal = ok!(client.create_vector_space(again(plain())));
    assert_eq!((equal.vector_space, equal.receipt.unwrap().unchanged), (Some(there), true));
    let other = pb::VectorSpace { dimensions: 384, ..plain() };
    let status =
        fails!(client.create_vector_space(again(other)), AlreadyExists, "EXISTS_DIFFERENT");
    assert_eq!(info(&status)["fields"], "dimensions");
    let replace = pb::CreateVectorSpaceRequest {
        options: on_conflict(pb::OnConflict::Replace),
        ..create("s", plain())
    };
    let status = fails!(client.create_vector_space(replace), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["options.on_conflict"]);
    let unnamed = ok!(client.create_vector_space(create("", plain()))).vector_space.unwrap();
    assert_eq!(unnamed.id, unnamed.meta.unwrap().uid);
    world.close().await;
}

#[tokio::test]
async fn what_is_no_space_is_refused_by_field() {
    let world = World::new().await;
    let mut client = world.anonymous().spaces();
    let wrong: [(&str, pb::VectorSpace); 8] = [
        ("embedding_model", pb::VectorSpace::default()),
        ("embedding_model", pb::VectorSpace { embedding_model: "x".repeat(256), ..plain() }),
        ("dimensions", pb::VectorSpace { dimensions: -1, ..plain() }),
        ("dimensions", pb::VectorSpace { dimensions: 16_001, ..plain() }),
        ("metric", pb::VectorSpace { metric: 5, ..plain() }),
        ("storage", pb::VectorSpace { storage: -1, ..plain() }),
        ("storage", pb::VectorSpace { storage: 65_537, ..plain() }),
        ("labels", pb::VectorSpace { labels: BTreeMap::from([("".into(), "".into())]), ..plain() }),
    ];
    for (field, space) in wrong {
        let status = fails!(
            client.create_vector_space(create("s", space)),
            InvalidArgument,
            "FIELD_INVALID"
        );
        let fields = wrong_fields(&status);
        assert!(fields[0].starts_with(&format!("vector_space.{field}")), "{field}: {fields:?}");
        assert_eq!(fields.len(), 1, "{fields:?}");
    }
    for (bad, field) in [(alias("", "s"), "alias"), (alias("a", "!"), "vector_space_id")] {
        let status = fails!(client.set_vector_space_alias(bad), InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), [field]);
    }
    fails!(client.get_vector_space(get("s")), NotFound, "NOT_FOUND");
    let missing = pb::DeleteVectorSpaceRequest { allow_missing: true, ..remove("s") };
    assert!(ok!(client.delete_vector_space(missing)).receipt.unwrap().unchanged);
    fails!(client.delete_vector_space(remove("s")), NotFound, "NOT_FOUND");
    assert_eq!(head(&world.anonymous()).await, 0);
    for dimensions in [1, 16_000] {
        let space = pb::VectorSpace { dimensions, ..plain() };
        ok!(client.create_vector_space(create(&format!("d{dimensions}"), space)));
    }
    world.close().await;
}

/// An alias names one space at every moment, and is a name like an id.
#[tokio::test]
async fn an_alias_moves_in_one_step() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.spaces();
    spaces(&who, &["old", "new"]).await;
    let set = ok!(client.set_vector_space_alias(alias("live", "old")));
    assert_eq!(set.previous_vector_space_id, "");
    let old = set.vector_space.unwrap();
    assert_eq!((old.id.as_str(), &old.aliases[..]), ("old", &["live".to_owned()][..]));
    assert_eq!(named(&who, "live").await, "old");

    let before = set.receipt.unwrap().revision;
    let moved = ok!(client.set_vector_space_alias(alias("live", "new")));
    assert_eq!(moved.previous_vector_space_id, "old");
    assert_eq!(moved.vector_space.unwrap().aliases, ["live"]);
    assert_eq!(named(&who, "live").await, "new");
    assert_eq!(ok!(client.get_vector_space(get("old"))).vector_space.unwrap().aliases.len(), 0);
    // Both sides are one transaction, with an entry each.
    let log = entries(&who, 2).await;
    let said: Vec<_> =
        log.iter().map(|e| (e.target.as_ref().unwrap().id.as_str(), e.action.as_str())).collect();
    assert_eq!(said, [("new", "UPDATE"), ("old", "UPDATE")]);
    assert_eq!(log[0].event_time, log[1].event_time);
    // The past has it where it was.
    let requirement = pb::consistency::Requirement::AtExactSnapshot(before.unwrap());
    let then = pb::GetVectorSpaceRequest {
        consistency: Some(pb::Consistency { requirement: Some(requirement) }),
        ..get("live")
    };
    assert_eq!(ok!(client.get_vector_space(then)).vector_space.unwrap().id, "old");
    let first = pb::GetVectorSpaceRequest { version: 1, ..get("live") };
    let first = ok!(client.get_vector_space(first)).vector_space.unwrap();
    assert_eq!((first.id.as_str(), first.aliases.len()), ("new", 0));

    // Again is nothing new; a repeated call gives the first answer.
    let again = ok!(client.set_vector_space_alias(alias("live", "new")));
    assert_eq!(
        (again.previous_vector_space_id.as_str(), again.receipt.unwrap().unchanged),
        ("", true)
    );
    let once = pb::SetVectorSpaceAliasRequest {
        options: Some(crate::world::request("back")),
        ..alias("live", "old")
    };
    let given = ok!(client.set_vector_space_alias(once.clone()));
    let replay = ok!(client.set_vector_space_alias(once));
    assert!(replay.receipt.unwrap().replayed);
    assert_eq!(replay.vector_space, given.vector_space);
    assert_eq!(replay.previous_vector_space_id, "new");

    ok!(client.set_vector_space_alias(alias("a/b", "old")));
    let listed = pb::ListVectorSpacesRequest {
        r#where: expression("aliases:\"a/b\" AND metric = \"COSINE\" AND dimensions = 1536"),
        ..Default::default()
    };
    let listed = ok!(client.list_vector_spaces(listed)).vector_spaces;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].aliases, ["a/b", "live"]);

    let gone = ok!(client.delete_vector_space_alias(no_alias("live"))).vector_space.unwrap();
    assert_eq!((gone.id.as_str(), &gone.aliases[..]), ("old", &["a/b".to_owned()][..]));
    fails!(client.get_vector_space(get("live")), NotFound, "NOT_FOUND");
    fails!(client.delete_vector_space_alias(no_alias("live")), NotFound, "NOT_FOUND");
    // The id of a space is no alias of it.
    fails!(client.delete_vector_space_alias(no_alias("old")), NotFound, "NOT_FOUND");
    let missing = pb::DeleteVectorSpaceAliasRequest { allow_missing: true, ..no_alias("live") };
    let missing = ok!(client.delete_vector_space_alias(missing));
    assert_eq!((missing.vector_space, missing.receipt.unwrap().unchanged), (None, true));
    fails!(client.set_vector_space_alias(alias("x", "none")), NotFound, "NOT_FOUND");
    world.close().await;
}

#[tokio::test]
async fn no_two_spaces_have_a_name_in_common() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.spaces();
    spaces(&who, &["s", "t"]).await;
    ok!(client.set_vector_space_alias(alias("a", "s")));
    fails!(client.set_vector_space_alias(alias("t", "s")), AlreadyExists, "EXISTS");
    fails!(client.set_vector_space_alias(alias("s", "s")), AlreadyExists, "EXISTS");
    fails!(client.create_vector_space(create("a", plain())), AlreadyExists, "EXISTS");
    // A deleted space has no names: they are free for others, and those that are taken stay behind when it comes back.
    ok!(client.set_vector_space_alias(alias("b", "s")));
    ok!(client.delete_vector_space(remove("s")));
    fails!(client.get_vector_space(get("a")), NotFound, "NOT_FOUND");
    ok!(client.set_vector_space_alias(alias("a", "t")));
    let back = ok!(client.undelete_vector_space(undelete("s"))).vector_space.unwrap();
    assert_eq!(back.aliases, ["b"]);
    assert_eq!((named(&who, "a").await, named(&who, "b").await), ("t".into(), "s".into()));
    ok!(client.delete_vector_space(remove("s")));
    ok!(client.set_vector_space_alias(alias("s", "t")));
    fails!(client.undelete_vector_space(undelete("s")), AlreadyExists, "EXISTS");
    fails!(client.undelete_vector_space(undelete("t")), AlreadyExists, "EXISTS");
    fails!(client.undelete_vector_space(undelete("none")), NotFound, "NOT_FOUND");
    // Nor does another tenant see them, or stand in their way.
    world.tenant("other").await;
    let other = world.as_tenant("other");
    fails!(other.spaces().get_vector_space(get("t")), NotFound, "NOT_FOUND");
    fails!(other.spaces().get_vector_space(get("a")), NotFound, "NOT_FOUND");
    spaces(&other, &["a"]).await;
    fails!(other.spaces().set_vector_space_alias(alias("x", "t")), NotFound, "NOT_FOUND");
    assert_eq!(named(&who, "a").await, "t");
    world.close().await;
}

/// 32 callers want the same names, through two servers: each name is given once, and always to a space that is there.
#[tokio::test]
async fn names_are_given_once_whoever_asks() {
    let world = World::new().await;
    let url = crate::world::url_of(&crate::world::config_of(&world.database).await);
    let mut second = World::on(&world.database, &url, &[]).await;
    spaces(&world.anonymous(), &["s0", "s1", "s2", "s3"]).await;
    let mut callers = tokio::task::JoinSet::new();
    for n in 0..32_usize {
        let who = if n % 2 == 0 { world.anonymous() } else { second.anonymous() };
        callers.spawn(async move {
            for step in 0..6 {
                let name = format!("n{}", (n + step) % 5);
                let to = format!("s{}", (n * 7 + step) % 4);
                let result = if (n + step) % 3 == 0 {
                    let made = who.spaces().create_vector_space(create(&name, plain())).await;
                    made.map(drop)
                } else {
                    who.spaces().set_vector_space_alias(alias(&name, &to)).await.map(drop)
                };
                if let Err(status) = result {
                    assert_eq!(status.code(), tonic::Code::AlreadyExists, "{status:?}");
                }
            }
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended.expect("a caller");
    }
    let all = ok!(world
        .anonymous()
        .spaces()
        .list_vector_spaces(pb::ListVectorSpacesRequest { page: page(100), ..Default::default() }));
    let mut names: Vec<String> = all
        .vector_spaces
        .iter()
        .flat_map(|space| space.aliases.iter().chain([&space.id]))
        .cloned()
        .collect();
    names.sort();
    let expected: Vec<String> =
        (0..5).map(|n| format!("n{n}")).chain((0..4).map(|n| format!("s{n}"))).collect();
    assert_eq!(names, expected);
    second.stop().await;
    world.close().await;
}
