//! Status and capabilities: F34 to F38, F122; each limit that is told is in force.

use crate::help::*;
use crate::world::{World, create, decision, object};
use casebook::pb;
use std::collections::HashMap;

async fn limits(world: &World) -> HashMap<String, i64> {
    let mut client = world.anonymous().admin();
    let answer = ok!(client.get_capabilities(pb::GetCapabilitiesRequest {}));
    answer.limits.into_iter().map(|limit| (limit.name, limit.value)).collect()
}

#[tokio::test]
async fn the_status_tells_pools_schema_and_size() {
    let world = World::with(&[("pool_max_size", "7")]).await;
    let mut client = world.anonymous().admin();
    ok!(world.decisions().create_decision(create("d", decision("ALLOW", 0.5))));
    let status = ok!(client.get_status(pb::GetStatusRequest {}));
    assert!(status.ready && status.not_ready_reason.is_empty());
    assert_eq!(status.server_version, env!("CARGO_PKG_VERSION"));
    assert!(status.start_time.is_some());
    let database = status.database.unwrap();
    assert!(database.server_version.parse::<f64>().is_ok(), "{}", database.server_version);
    assert_eq!(database.schema_version, database.schema_version_latest);
    assert!(database.schema_version > 0 && database.size_bytes > 1 << 20);
    assert!(database.latency.is_some());
    let names: Vec<_> = status.pools.iter().map(|pool| pool.name.as_str()).collect();
    assert_eq!(names, ["read", "write", "work", "admin", "upkeep"]);
    let work = &status.pools[2];
    assert_eq!((work.max_size, work.in_use, work.nearly_exhausted), (7, 0, false));
    world.close().await;
}

#[tokio::test]
async fn the_capabilities_name_each_limit_once_with_its_unit() {
    let world = World::new().await;
    let mut client = world.anonymous().admin();
    let answer = ok!(client.get_capabilities(pb::GetCapabilitiesRequest {}));
    let mut names = std::collections::HashSet::new();
    for limit in &answer.limits {
        assert!(names.insert(&limit.name), "{} stands twice", limit.name);
        assert!(
            ["bytes", "ms", "days", "count", "percent"].contains(&limit.unit.as_str()),
            "{limit:?}"
        );
        assert!(limit.description.ends_with('.'), "{limit:?}");
        assert!(limit.value >= 0, "{limit:?}");
    }
    assert!(answer.services.contains(&"casebook.v1.DecisionService".to_owned()));
    assert_eq!(answer.services.len(), 21);
    world.close().await;
}

#[tokio::test]
async fn the_limits_that_are_told_are_in_force() {
    let world = World::new().await;
    let limits = limits(&world).await;
    let of = |name: &str| usize::try_from(limits[name]).unwrap();
    let mut client = world.decisions();
    let x = |n: usize| "x".repeat(n);
    macro_rules! bounded {
        ($name:literal, $request:expr) => {{
            let request = $request;
            ok!(client.create_decision(request(of($name))));
            let call = client.create_decision(request(of($name) + 1));
            assert_eq!(call.await.unwrap_err().code(), tonic::Code::InvalidArgument, $name);
        }};
    }
    let with = |given: pb::Decision| create("", given);
    bounded!("id_max_bytes", |n| create(&x(n), decision("ALLOW", 0.5)));
    bounded!("request_id_max_bytes", |n| crate::world::create_once(
        &x(n),
        "",
        decision("ALLOW", 0.5)
    ));
    bounded!("labels_max", |n| with(pb::Decision {
        labels: (0..n).map(|i| (i.to_string(), String::new())).collect(),
        ..decision("ALLOW", 0.5)
    }));
    bounded!("label_key_max_bytes", |n| with(pb::Decision {
        labels: labels(&[(&x(n), "")]),
        ..decision("ALLOW", 0.5)
    }));
    bounded!("label_value_max_bytes", |n| with(pb::Decision {
        labels: labels(&[("k", &x(n))]),
        ..decision("ALLOW", 0.5)
    }));
    bounded!("metadata_json_max_bytes", |n: usize| with(pb::Decision {
        metadata: Some(object(&[("k", &x(n - 8))])),
        ..decision("ALLOW", 0.5)
    }));
    let key = of("object_key_max_bytes");
    let stored = |n: usize| crate::object::put_external(&x(n), 1);
    ok!(world.anonymous().objects().put_object(stored(key)));
    let call = world.anonymous().objects().put_object(stored(key + 1)).await;
    assert_eq!(call.unwrap_err().code(), tonic::Code::InvalidArgument);
    let counted = |n: usize| pb::GetDecisionStatisticsRequest {
        group_by: ["day", "hour", "state", "final_verdict"][..n]
            .iter()
            .map(|s| s.to_string())
            .collect(),
        ..Default::default()
    };
    ok!(client.get_decision_statistics(counted(of("group_by_max"))));
    let call = client.get_decision_statistics(counted(of("group_by_max") + 1));
    fails!(call, InvalidArgument, "FIELD_INVALID");
    let filtered = |text: String| pb::ListDecisionsRequest {
        r#where: expression(&text),
        ..Default::default()
    };
    // One node joins the conditions.
    let wide = |n: usize| filtered(vec!["id = a"; n - 1].join(" AND "));
    ok!(client.list_decisions(wide(of("filter_nodes_max"))));
    let call = client.list_decisions(wide(of("filter_nodes_max") + 1));
    fails!(call, InvalidArgument, "FILTER_INVALID");
    let many = |n: usize| {
        let value = pb::Value { kind: Some(pb::value::Kind::StringValue("a".into())) };
        let op = pb::field_condition::Op::In(pb::ValueList { values: vec![value; n] });
        let condition = pb::FieldCondition { path: "id".into(), op: Some(op) };
        let filter = pb::Filter { expr: Some(pb::filter::Expr::Field(condition)) };
        let selector = pb::Selector { filter: Some(filter), expression: String::new() };
        pb::ListDecisionsRequest { r#where: Some(selector), ..Default::default() }
    };
    ok!(client.list_decisions(many(of("filter_values_max"))));
    let call = client.list_decisions(many(of("filter_values_max") + 1));
    fails!(call, InvalidArgument, "FILTER_INVALID");
    let deep = |n: usize| {
        let op = pb::field_condition::Op::Exists(true);
        let condition = pb::FieldCondition { path: "id".into(), op: Some(op) };
        let leaf = pb::Filter { expr: Some(pb::filter::Expr::Field(condition)) };
        let filter = (1..n).fold(leaf, |inner, _| pb::Filter {
            expr: Some(pb::filter::Expr::NoneOf(Box::new(inner))),
        });
        let selector = pb::Selector { filter: Some(filter), expression: String::new() };
        pb::ListDecisionsRequest { r#where: Some(selector), ..Default::default() }
    };
    ok!(client.list_decisions(deep(of("filter_depth_max"))));
    let call = client.list_decisions(deep(of("filter_depth_max") + 1));
    fails!(call, InvalidArgument, "FILTER_INVALID");
    world.close().await;
}

#[tokio::test]
async fn the_limits_that_can_be_set_follow_the_configuration() {
    let world = World::with(&[
        ("page_size_default", "3"),
        ("page_size_max", "5"),
        ("batch_max", "10"),
        ("message_in_max_bytes", "65536"),
        ("batch_message_in_max_bytes", "131072"),
    ])
    .await;
    let limits = limits(&world).await;
    assert_eq!((limits["page_size_default"], limits["page_size_max"]), (3, 5));
    assert_eq!((limits["batch_max"], limits["message_in_max_bytes"]), (10, 65_536));
    let mut client = world.decisions();
    let batch = |n| pb::BatchCreateDecisionsRequest {
        requests: (0..n).map(|_| create("", decision("ALLOW", 0.5))).collect(),
        options: None,
    };
    ok!(client.batch_create_decisions(batch(10)));
    let call = client.batch_create_decisions(batch(11));
    let status = fails!(call, InvalidArgument, "FIELD_INVALID");
    assert_eq!(crate::world::wrong_fields(&status), ["requests"]);
    let many = pb::BatchGetDecisionsRequest {
        decision_ids: (0..11).map(|n| n.to_string()).collect(),
        allow_missing: true,
        ..Default::default()
    };
    fails!(client.batch_get_decisions(many), InvalidArgument, "FIELD_INVALID");
    let critics = vec![critic("", "a", "ALLOW", 0.5); 11];
    fails!(client.add_critic_outputs(add("d", critics)), InvalidArgument, "FIELD_INVALID");
    let objects = world.anonymous().objects();
    let puts = |n: usize| pb::BatchPutObjectsRequest {
        requests: (0..n).map(|n| crate::object::put_external(&n.to_string(), 1)).collect(),
        options: None,
    };
    ok!(objects.clone().batch_put_objects(puts(10)));
    let status =
        fails!(objects.clone().batch_put_objects(puts(11)), InvalidArgument, "FIELD_INVALID");
    assert_eq!(crate::world::wrong_fields(&status), ["requests"]);
    let keys = |n: usize| pb::BatchDeleteObjectsRequest {
        keys: (0..n).map(|n| n.to_string()).collect(),
        ..Default::default()
    };
    ok!(objects.clone().batch_delete_objects(keys(10)));
    let status =
        fails!(objects.clone().batch_delete_objects(keys(11)), InvalidArgument, "FIELD_INVALID");
    assert_eq!(crate::world::wrong_fields(&status), ["keys"]);
    for (size, expected) in [(0, 3), (1000, 5), (4, 4)] {
        let request = pb::ListDecisionsRequest { page: page(size), ..Default::default() };
        assert_eq!(ok!(client.list_decisions(request)).decisions.len(), expected);
    }
    let mut large = rule("", "one");
    large.policy_rule.as_mut().unwrap().description = "x".repeat(66_000);
    let mut policies = world.anonymous().policies();
    fails!(policies.create_policy_rule(large), ResourceExhausted, "MESSAGE_TOO_LARGE");
    world.close().await;
}
