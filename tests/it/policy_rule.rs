//! Policy rules: F24, the governance rules that decisions were made under, with every version kept.

use crate::help::*;
use crate::world::{World, object, wrong_fields};
use casebook::pb;

fn time(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds, nanos: 0 })
}

fn full() -> pb::PolicyRule {
    pb::PolicyRule {
        name: "Income floor".into(),
        rule_type: "threshold".into(),
        severity: "high".into(),
        description: "Below it nobody gets a loan.".into(),
        definition: Some(object(&[("min", "1200")])),
        active: true,
        effective_time: time(1_700_000_000),
        retire_time: time(1_800_000_000),
        ..Default::default()
    }
}

fn create(id: &str, rule: pb::PolicyRule) -> pb::CreatePolicyRuleRequest {
    pb::CreatePolicyRuleRequest {
        policy_rule_id: id.into(),
        policy_rule: Some(rule),
        options: None,
    }
}

fn get(id: &str) -> pb::GetPolicyRuleRequest {
    pb::GetPolicyRuleRequest { policy_rule_id: id.into(), ..Default::default() }
}

fn change(id: &str, paths: &[&str], rule: pb::PolicyRule) -> pb::UpdatePolicyRuleRequest {
    pb::UpdatePolicyRuleRequest {
        policy_rule: Some(pb::PolicyRule { id: id.into(), ..rule }),
        update_mask: mask(paths),
        options: None,
    }
}

fn remove(id: &str) -> pb::DeletePolicyRuleRequest {
    pb::DeletePolicyRuleRequest { policy_rule_id: id.into(), ..Default::default() }
}

#[tokio::test]
async fn a_rule_comes_back_as_given_and_keeps_every_version() {
    let world = World::new().await;
    let mut client = world.anonymous().policies();
    let made = ok!(client.create_policy_rule(create("r", full())));
    let one = made.policy_rule.unwrap();
    let expected =
        pb::PolicyRule { id: "r".into(), etag: one.etag.clone(), meta: one.meta.clone(), ..full() };
    assert_eq!(one, expected);
    let given = pb::PolicyRule { name: "Other".into(), severity: "low".into(), ..full() };
    let two = ok!(client.update_policy_rule(change("r", &["name", "active"], given)));
    let (two, second) = (two.policy_rule.unwrap(), two.receipt.unwrap());
    assert_eq!((two.name.as_str(), two.severity.as_str()), ("Other", "high"));
    let all = [
        "rule_type",
        "severity",
        "description",
        "definition",
        "active",
        "effective_time",
        "retire_time",
    ];
    let three = ok!(client.update_policy_rule(change("r", &all, pb::PolicyRule::default())));
    let three = three.policy_rule.unwrap();
    let expected = pb::PolicyRule {
        id: "r".into(),
        name: "Other".into(),
        etag: three.etag.clone(),
        meta: three.meta.clone(),
        ..Default::default()
    };
    assert_eq!(three, expected);
    for (version, expected) in [(0, &three), (1, &one), (2, &two), (3, &three)] {
        let request = pb::GetPolicyRuleRequest { version, ..get("r") };
        assert_eq!(ok!(client.get_policy_rule(request)).policy_rule.as_ref(), Some(expected));
    }
    let requirement = pb::consistency::Requirement::AtExactSnapshot(second.revision.unwrap());
    let then = pb::GetPolicyRuleRequest {
        consistency: Some(pb::Consistency { requirement: Some(requirement) }),
        ..get("r")
    };
    assert_eq!(ok!(client.get_policy_rule(then)).policy_rule, Some(two));
    let request = pb::GetPolicyRuleRequest { version: 4, ..get("r") };
    fails!(client.get_policy_rule(request), NotFound, "NOT_FOUND");
    world.close().await;
}

#[tokio::test]
async fn a_rule_that_is_there_may_be_replaced() {
    let world = World::new().await;
    let mut client = world.anonymous().policies();
    let one = ok!(client.create_policy_rule(create("r", full()))).policy_rule.unwrap();
    fails!(client.create_policy_rule(create("r", full())), AlreadyExists, "EXISTS");
    let with = |rule, how: pb::OnConflict| pb::CreatePolicyRuleRequest {
        options: Some(pb::WriteOptions { on_conflict: how.into(), ..Default::default() }),
        ..create("r", rule)
    };
    let equal = ok!(client.create_policy_rule(with(full(), pb::OnConflict::ReturnIfEqual)));
    assert_eq!((equal.policy_rule.as_ref(), equal.receipt.unwrap().unchanged), (Some(&one), true));
    // Replacing by the same changes nothing either.
    let equal = ok!(client.create_policy_rule(with(full(), pb::OnConflict::Replace)));
    assert_eq!((equal.policy_rule.as_ref(), equal.receipt.unwrap().unchanged), (Some(&one), true));
    let other = pb::PolicyRule { name: "Other".into(), active: false, ..full() };
    let call = client.create_policy_rule(with(other.clone(), pb::OnConflict::ReturnIfEqual));
    let status = fails!(call, AlreadyExists, "EXISTS_DIFFERENT");
    assert_eq!(info(&status)["fields"], "name,active");
    let two = ok!(client.create_policy_rule(with(other.clone(), pb::OnConflict::Replace)));
    assert!(!two.receipt.unwrap().unchanged);
    let two = two.policy_rule.unwrap();
    let (first, second) = (one.meta.unwrap(), two.meta.clone().unwrap());
    assert_eq!((second.uid, second.version), (first.uid, 2));
    assert_eq!(second.create_time, first.create_time);
    let expected =
        pb::PolicyRule { id: "r".into(), etag: two.etag.clone(), meta: two.meta.clone(), ..other };
    assert_eq!(two, expected);
    let log = entries(&world.anonymous(), 10).await;
    let actions: Vec<_> = log.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["UPDATE", "CREATE"]);
    world.close().await;
}

#[tokio::test]
async fn a_rule_is_deleted_once() {
    let world = World::new().await;
    let mut client = world.anonymous().policies();
    let one = ok!(client.create_policy_rule(create("r", full()))).policy_rule.unwrap();
    let stale = pb::DeletePolicyRuleRequest { etag: "\"0-1\"".into(), ..remove("r") };
    let status = fails!(client.delete_policy_rule(stale), Aborted, "ETAG_MISMATCH");
    assert_eq!(info(&status)["current_etag"], one.etag);
    let gone = pb::DeletePolicyRuleRequest { etag: one.etag, ..remove("r") };
    let gone = ok!(client.delete_policy_rule(gone)).policy_rule.unwrap();
    assert!(gone.meta.unwrap().delete_time.is_some());
    fails!(client.get_policy_rule(get("r")), NotFound, "NOT_FOUND");
    fails!(client.delete_policy_rule(remove("r")), NotFound, "NOT_FOUND");
    let missing = pb::DeletePolicyRuleRequest { allow_missing: true, ..remove("r") };
    let missing = ok!(client.delete_policy_rule(missing));
    assert_eq!((missing.policy_rule, missing.receipt.unwrap().unchanged), (None, true));
    let list = |show_deleted| pb::ListPolicyRulesRequest { show_deleted, ..Default::default() };
    assert_eq!(ok!(client.list_policy_rules(list(false))).policy_rules.len(), 0);
    assert_eq!(ok!(client.list_policy_rules(list(true))).policy_rules.len(), 1);
    let new = ok!(client.create_policy_rule(create("r", full()))).policy_rule.unwrap();
    assert_ne!(new.meta.unwrap().uid, one.meta.unwrap().uid);
    world.close().await;
}

#[tokio::test]
async fn rules_that_make_no_sense_are_refused() {
    let world = World::new().await;
    let mut client = world.anonymous().policies();
    for (rule, field) in [
        (pb::PolicyRule { name: "".into(), ..full() }, "name"),
        (pb::PolicyRule { name: "x".repeat(256), ..full() }, "name"),
        (pb::PolicyRule { rule_type: "x".repeat(64), ..full() }, "rule_type"),
        (pb::PolicyRule { severity: "x".repeat(64), ..full() }, "severity"),
        (pb::PolicyRule { description: "x".repeat(65_537), ..full() }, "description"),
        (pb::PolicyRule { retire_time: time(1_600_000_000), ..full() }, "retire_time"),
        (pb::PolicyRule { id: "other".into(), ..full() }, "id"),
    ] {
        let call = client.create_policy_rule(create("r", rule));
        let status = fails!(call, InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), [format!("policy_rule.{field}")]);
    }
    ok!(client.create_policy_rule(create("r", full())));
    // The whole is looked at, not only what the mask names.
    let early = pb::PolicyRule { retire_time: time(1_600_000_000), ..full() };
    let call = client.update_policy_rule(change("r", &["retire_time"], early));
    let status = fails!(call, InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["policy_rule.retire_time"]);
    for (paths, reason) in [
        (&[][..], "FIELD_INVALID"),
        (&["*"], "FIELD_INVALID"),
        (&["id"], "FIELD_IMMUTABLE"),
        (&["meta"], "FIELD_IMMUTABLE"),
        (&["nope"], "UNKNOWN_FIELD"),
        (&["definition.min"], "UNKNOWN_FIELD"),
    ] {
        let call = client.update_policy_rule(change("r", paths, full()));
        fails!(call, InvalidArgument, reason);
    }
    let stale = pb::PolicyRule { etag: "\"0-1\"".into(), ..full() };
    fails!(client.update_policy_rule(change("r", &["name"], stale)), Aborted, "ETAG_MISMATCH");
    let same = ok!(client.update_policy_rule(change("r", &["name", "definition"], full())));
    assert!(same.receipt.unwrap().unchanged);
    assert_eq!(head(&world.anonymous()).await, 1);
    world.close().await;
}

#[tokio::test]
async fn rules_are_listed_by_filter_and_in_order() {
    let world = World::new().await;
    let mut client = world.anonymous().policies();
    for (id, severity, active) in [("a", "low", true), ("b", "high", true), ("c", "high", false)] {
        let rule = pb::PolicyRule { severity: severity.into(), active, ..full() };
        ok!(client.create_policy_rule(create(id, rule)));
    }
    let mut ids = async |text: &str, order_by: &str| {
        let request = pb::ListPolicyRulesRequest {
            page: Some(pb::PageRequest { order_by: order_by.into(), ..Default::default() }),
            r#where: expression(text),
            ..Default::default()
        };
        let found = ok!(client.list_policy_rules(request)).policy_rules;
        found.into_iter().map(|rule| rule.id).collect::<Vec<_>>()
    };
    assert_eq!(ids("", "").await, ["c", "b", "a"]);
    assert_eq!(ids("severity = high AND active = true", "").await, ["b"]);
    assert_eq!(
        ids("retire_time > \"2026-01-01T00:00:00Z\"", "severity desc, id").await,
        ["a", "b", "c"]
    );
    world.close().await;
}
