//! Bad input and what it gets: section 10 of the specification, and a test for every reason there is (N3, N10).

use crate::help::*;
use crate::world::{
    World, create, create_once, decision, get, object, reason, request, wrong_fields,
};
use casebook::pb;
use casebook::rpc::page::{Binding, Pager, Sizes, unpaged};
use casebook::rpc::token::{self, TokenKey};
use prost::Message;
use prost_types::value::Kind;
use std::time::{Duration, SystemTime};
use tonic_types::StatusExt;

fn value(kind: Kind) -> prost_types::Value {
    prost_types::Value { kind: Some(kind) }
}

fn holding(key: &str, kind: Kind) -> prost_types::Struct {
    prost_types::Struct { fields: [(key.to_owned(), value(kind))].into() }
}

/// An object of so many levels.
fn deep(levels: usize) -> prost_types::Struct {
    (1..levels)
        .fold(prost_types::Struct::default(), |inner, _| holding("a", Kind::StructValue(inner)))
}

/// A sound decision with one thing changed.
fn with(change: impl FnOnce(&mut pb::Decision)) -> pb::CreateDecisionRequest {
    let mut given = decision("ALLOW", 0.5);
    change(&mut given);
    create("", given)
}

#[tokio::test]
async fn each_wrong_field_is_refused_by_name_and_reason() {
    let world = World::new().await;
    let mut client = world.decisions();
    let citation = |similarity, influence| {
        vec![pb::Citation { precedent_id: "p".into(), similarity, influence, ..Default::default() }]
    };
    let time = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
    let refer = |kind, id: &str, version| vec![pb::ResourceRef { kind, id: id.into(), version }];
    let x = |n: usize| "x".repeat(n);
    let numbers = |n: f64| Some(holding("n", Kind::NumberValue(n)).into());
    let two_53 = 9_007_199_254_740_992.0;
    let keys = |n: usize| prost_types::Struct {
        fields: (0..n).map(|i| (i.to_string(), value(Kind::BoolValue(true)))).collect(),
    };
    let mut checked = 0;
    for (request, reason, field) in [
        (with(|d| d.avg_confidence = Some(1.000_001)), "FIELD_INVALID", "avg_confidence"),
        (with(|d| d.avg_confidence = Some(-0.1)), "FIELD_INVALID", "avg_confidence"),
        (with(|d| d.avg_confidence = Some(f64::NAN)), "FIELD_INVALID", "avg_confidence"),
        (with(|d| d.ambiguity = Some(f64::INFINITY)), "FIELD_INVALID", "ambiguity"),
        (with(|d| d.ambiguity = Some(f64::NEG_INFINITY)), "FIELD_INVALID", "ambiguity"),
        (with(|d| d.final_verdict = "".into()), "FIELD_INVALID", "final_verdict"),
        (with(|d| d.final_verdict = "allow".into()), "FIELD_INVALID", "final_verdict"),
        (with(|d| d.final_verdict = "A-B".into()), "FIELD_INVALID", "final_verdict"),
        (with(|d| d.final_verdict = "A".repeat(65)), "FIELD_INVALID", "final_verdict"),
        (with(|d| d.reason = x(65_537)), "FIELD_INVALID", "reason"),
        (with(|d| d.model_version = x(256)), "FIELD_INVALID", "model_version"),
        (with(|d| d.trace_id = x(256)), "FIELD_INVALID", "trace_id"),
        (with(|d| d.subject_id = x(256)), "FIELD_INVALID", "subject_id"),
        (with(|d| d.retention_class = x(64)), "FIELD_INVALID", "retention_class"),
        (
            with(|d| d.verdict_scores = [("ALLOW".into(), f64::NAN)].into()),
            "FIELD_INVALID",
            "verdict_scores.ALLOW",
        ),
        (
            with(|d| d.verdict_scores = [("no".into(), 1.0)].into()),
            "FIELD_INVALID",
            "verdict_scores.no",
        ),
        (
            with(|d| d.verdict_scores = (0..65).map(|n| (format!("V{n}"), 0.5)).collect()),
            "FIELD_INVALID",
            "verdict_scores",
        ),
        (
            with(|d| d.citations = citation(Some(1.1), None)),
            "FIELD_INVALID",
            "citations[0].similarity",
        ),
        (
            with(|d| d.citations = citation(Some(f64::NAN), None)),
            "FIELD_INVALID",
            "citations[0].similarity",
        ),
        (
            with(|d| d.citations = citation(None, Some(-0.1))),
            "FIELD_INVALID",
            "citations[0].influence",
        ),
        (with(|d| d.citations = vec![pb::Citation::default(); 101]), "FIELD_INVALID", "citations"),
        (with(|d| d.evidence = refer(99, "a", 0)), "FIELD_INVALID", "evidence[0].kind"),
        (with(|d| d.evidence = refer(0, "a", 0)), "FIELD_INVALID", "evidence[0].kind"),
        (with(|d| d.evidence = refer(1, "", 0)), "FIELD_INVALID", "evidence[0].id"),
        (with(|d| d.policy_rules = refer(4, "a", -1)), "FIELD_INVALID", "policy_rules[0].version"),
        (with(|d| d.decide_time = time(253_402_300_800, 0)), "FIELD_INVALID", "decide_time"),
        (with(|d| d.decide_time = time(i64::MIN, 0)), "FIELD_INVALID", "decide_time"),
        (with(|d| d.decide_time = time(0, 1_000_000_000)), "FIELD_INVALID", "decide_time"),
        (
            with(|d| d.processing_time = Some(prost_types::Duration { seconds: -1, nanos: 0 })),
            "FIELD_INVALID",
            "processing_time",
        ),
        (with(|d| d.labels = labels(&[("", "x")])), "FIELD_INVALID", "labels"),
        (with(|d| d.labels = labels(&[(&x(64), "x")])), "FIELD_INVALID", "labels.xxx"),
        (with(|d| d.labels = labels(&[("k", &x(256))])), "FIELD_INVALID", "labels.k"),
        (
            with(|d| d.labels = (0..65).map(|n| (n.to_string(), "x".into())).collect()),
            "FIELD_INVALID",
            "labels",
        ),
        (
            with(|d| d.critic_outputs = vec![pb::CriticOutput::default(); 101]),
            "FIELD_INVALID",
            "critic_outputs",
        ),
        (
            with(|d| d.critic_outputs = vec![critic("", "a", "ALLOW", f64::NAN)]),
            "FIELD_INVALID",
            "critic_outputs[0].confidence",
        ),
        (
            with(|d| {
                d.critic_outputs =
                    vec![pb::CriticOutput { weight: Some(-1.0), ..critic("", "a", "ALLOW", 0.5) }]
            }),
            "FIELD_INVALID",
            "critic_outputs[0].weight",
        ),
        (
            with(|d| {
                d.critic_outputs = vec![pb::CriticOutput {
                    weight: Some(f64::INFINITY),
                    ..critic("", "a", "ALLOW", 0.5)
                }]
            }),
            "FIELD_INVALID",
            "critic_outputs[0].weight",
        ),
        (
            with(|d| {
                d.critic_outputs = vec![pb::CriticOutput {
                    priority: "high".into(),
                    ..critic("", "a", "ALLOW", 0.5)
                }]
            }),
            "FIELD_INVALID",
            "critic_outputs[0].priority",
        ),
        (with(|d| d.input_data = numbers(f64::NAN)), "FIELD_INVALID", "input_data"),
        (with(|d| d.input_data = numbers(two_53)), "NUMBER_NOT_EXACT", "input_data"),
        (with(|d| d.metadata = numbers(-1e300)), "NUMBER_NOT_EXACT", "metadata"),
        (with(|d| d.metadata = Some(deep(33).into())), "JSON_TOO_LARGE", "metadata"),
        (with(|d| d.metadata = Some(keys(10_001).into())), "JSON_TOO_LARGE", "metadata"),
        (
            with(|d| d.input_data = Some(object(&[("k", &x(1 << 20))]))),
            "JSON_TOO_LARGE",
            "input_data",
        ),
    ] {
        let call = client.create_decision(request);
        let status = fails!(call, InvalidArgument, reason);
        let field = format!("decision.{field}");
        assert!(
            wrong_fields(&status).iter().any(|found| found.starts_with(&field)),
            "{field}: {status:?}"
        );
        checked += 1;
    }
    let none = pb::CreateDecisionRequest { decision: None, ..Default::default() };
    let status = fails!(client.create_decision(none), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["decision"], "and nothing of what it would hold");
    let long = x(256);
    for id in ["-a", " a", "a b", "a\n", "é", "a#b", &long] {
        let call = client.create_decision(create(id, decision("ALLOW", 0.5)));
        fails!(call, InvalidArgument, "FIELD_INVALID");
        fails!(client.get_decision(get(id)), InvalidArgument, "FIELD_INVALID");
    }
    for id in ["é", "tab\t", &x(65)] {
        let call = client.create_decision(create_once(id, "", decision("ALLOW", 0.5)));
        let status = fails!(call, InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), ["options.request_id"]);
    }
    let mut unknown = create("", decision("ALLOW", 0.5));
    unknown.options = Some(pb::WriteOptions { on_conflict: 77, ..Default::default() });
    let status = fails!(client.create_decision(unknown), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["options.on_conflict"]);
    assert!(checked > 40);
    assert_eq!(head(&world.anonymous()).await, 0);

    // The largest that are taken.
    for request in [
        with(|d| d.metadata = Some(deep(32).into())),
        with(|d| d.metadata = Some(keys(10_000).into())),
        with(|d| d.input_data = numbers(two_53 - 1.0)),
        with(|d| d.input_data = Some(object(&[("k", &x((1 << 20) - 8))]))),
        with(|d| d.reason = x(65_536)),
        with(|d| d.labels = (0..64).map(|n| (n.to_string(), x(255))).collect()),
        with(|d| d.decide_time = time(-62_135_596_800, 0)),
        with(|d| d.decide_time = time(253_402_300_799, 999_999_999)),
    ] {
        let made = ok!(client.create_decision(request.clone())).decision.unwrap();
        let given = request.decision.unwrap();
        assert_eq!((made.metadata, made.labels), (given.metadata, given.labels));
    }
    world.close().await;
}

#[tokio::test]
async fn a_nul_byte_is_refused_wherever_text_stands() {
    let world = World::new().await;
    let mut client = world.decisions();
    let n = || "A\0B".to_owned();
    let one = |change: fn(&mut pb::CriticOutput)| {
        let mut row = critic("", "a", "ALLOW", 0.5);
        change(&mut row);
        with(|d| d.critic_outputs = vec![row])
    };
    let nested =
        Kind::ListValue(prost_types::ListValue { values: vec![value(Kind::StringValue(n()))] });
    let source = |kind: &str, reference: &str| {
        vec![pb::EvidenceSource {
            r#type: kind.into(),
            reference: reference.into(),
            relevance: None,
        }]
    };
    let _ = source;
    for request in [
        with(|d| d.final_verdict = n()),
        with(|d| d.reason = n()),
        with(|d| d.model_version = n()),
        with(|d| d.trace_id = n()),
        with(|d| d.subject_id = n()),
        with(|d| d.retention_class = n()),
        with(|d| d.labels = labels(&[("k", "\0")])),
        with(|d| d.labels = labels(&[("\0", "v")])),
        with(|d| d.verdict_scores = [(n(), 0.5)].into()),
        with(|d| d.citations = vec![pb::Citation { precedent_id: n(), ..Default::default() }]),
        with(|d| d.evidence = vec![reference(pb::ResourceKind::Decision, &n(), 0)]),
        with(|d| d.input_data = Some(object(&[("k", "\0")]))),
        with(|d| d.input_data = Some(object(&[("\0", "v")]))),
        with(|d| d.metadata = Some(holding("k", nested.clone()).into())),
        with(|d| d.id = n()),
        one(|c| c.id = "A\0B".into()),
        one(|c| c.critic = "A\0B".into()),
        one(|c| c.verdict = "A\0B".into()),
        one(|c| c.justification = "A\0B".into()),
        one(|c| c.priority = "A\0B".into()),
        one(|c| c.config_version = "A\0B".into()),
        one(|c| {
            c.evidence_sources = vec![pb::EvidenceSource {
                r#type: "A\0B".into(),
                reference: "r".into(),
                relevance: None,
            }]
        }),
        one(|c| {
            c.evidence_sources = vec![pb::EvidenceSource {
                r#type: "t".into(),
                reference: "A\0B".into(),
                relevance: None,
            }]
        }),
        one(|c| c.details = Some(object(&[("k", "\0")]))),
        create(&n(), decision("ALLOW", 0.5)),
        create_once(&n(), "", decision("ALLOW", 0.5)),
        pb::CreateDecisionRequest {
            options: Some(pb::WriteOptions {
                audit_context: Some(object(&[("k", "\0")])),
                ..Default::default()
            }),
            ..create("", decision("ALLOW", 0.5))
        },
    ] {
        fails!(client.create_decision(request), InvalidArgument, "NUL_BYTE");
    }
    let change = |change: fn(&mut pb::Override)| {
        let mut request = overrule("", "d", "ALLOW");
        change(request.r#override.as_mut().unwrap());
        request
    };
    for request in [
        change(|o| o.original_outcome = "A\0B".into()),
        change(|o| o.proposed_outcome = "A\0B".into()),
        change(|o| o.justification = "It was wrong,\0 I say.".into()),
        change(|o| o.reason_category = "A\0B".into()),
        change(|o| o.reviewer_id = "A\0B".into()),
        change(|o| o.reviewer_name = "A\0B".into()),
        change(|o| o.reviewer_role = "A\0B".into()),
        change(|o| o.reviewer_email = "A\0B".into()),
        change(|o| o.stakeholder_input = "A\0B".into()),
        change(|o| o.additional_context = Some(object(&[("k", "\0")]))),
        overrule("A\0B", "d", "ALLOW"),
        overrule("", "A\0B", "ALLOW"),
        pb::CreateOverrideRequest { decision_etag: "A\0B".into(), ..overrule("", "d", "ALLOW") },
    ] {
        fails!(client.create_override(request), InvalidArgument, "NUL_BYTE");
    }
    let mut policies = world.anonymous().policies();
    let change = |change: fn(&mut pb::PolicyRule)| {
        let mut request = rule("", "one");
        change(request.policy_rule.as_mut().unwrap());
        request
    };
    for request in [
        change(|r| r.name = "A\0B".into()),
        change(|r| r.rule_type = "A\0B".into()),
        change(|r| r.severity = "A\0B".into()),
        change(|r| r.description = "A\0B".into()),
        change(|r| r.definition = Some(object(&[("\0", "v")]))),
        rule("A\0B", "one"),
    ] {
        fails!(policies.create_policy_rule(request), InvalidArgument, "NUL_BYTE");
    }
    let mut tenants = world.as_tenant("system").tenants();
    let tenant = pb::Tenant { display_name: n(), ..Default::default() };
    let named =
        pb::CreateTenantRequest { tenant_id: "a".into(), tenant: Some(tenant), options: None };
    fails!(tenants.create_tenant(named), InvalidArgument, "NUL_BYTE");
    let named = pb::CreateTenantRequest { tenant_id: n(), ..Default::default() };
    fails!(tenants.create_tenant(named), InvalidArgument, "NUL_BYTE");
    let api_token = pb::ApiToken { display_name: n(), roles: vec![1], ..Default::default() };
    let wanted = pb::CreateApiTokenRequest { api_token: Some(api_token), options: None };
    fails!(tenants.create_api_token(wanted), InvalidArgument, "NUL_BYTE");

    fails!(client.get_decision(get("A\0B")), InvalidArgument, "NUL_BYTE");
    let delete = pb::DeleteDecisionRequest { etag: n(), ..delete("d") };
    fails!(client.delete_decision(delete), InvalidArgument, "NUL_BYTE");
    for text in [
        "final_verdict = \"A\0B\"",
        "labels.k = \"\0\"",
        "metadata.k = \"\0\"",
        "metadata.\"\0\" = 1",
        "subject_id = \"\0*\"",
    ] {
        let list = pb::ListDecisionsRequest { r#where: expression(text), ..Default::default() };
        fails!(client.list_decisions(list), InvalidArgument, "NUL_BYTE");
    }
    let counted = pb::GetDecisionStatisticsRequest {
        group_by: vec!["labels.\0".into()],
        ..Default::default()
    };
    fails!(client.get_decision_statistics(counted), InvalidArgument, "NUL_BYTE");
    assert_eq!(head(&world.anonymous()).await, 0);
    world.close().await;
}

fn list(text: &str, order_by: &str, page_token: String) -> pb::ListDecisionsRequest {
    pb::ListDecisionsRequest {
        page: Some(pb::PageRequest {
            page_size: 1,
            page_token,
            order_by: order_by.into(),
            ..Default::default()
        }),
        r#where: expression(text),
        ..Default::default()
    }
}

#[tokio::test]
async fn page_tokens_are_held_to_tenant_request_time_and_key() {
    // The key of 32 zero bytes.
    let world = World::with(&[("token_key", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")]).await;
    world.tenant("acme").await;
    let mut client = world.decisions();
    for id in ["a", "b", "c"] {
        ok!(client.create_decision(create(id, decision("ALLOW", 0.5))));
    }
    let first = ok!(client.list_decisions(list("", "", String::new())));
    let next = first.page.unwrap().next_page_token;
    ok!(client.list_decisions(list("", "", next.clone())));
    // Another page size is no other listing.
    let larger = pb::ListDecisionsRequest {
        page: Some(pb::PageRequest {
            page_size: 7,
            page_token: next.clone(),
            ..Default::default()
        }),
        r#where: expression(""),
        ..Default::default()
    };
    assert_eq!(ok!(client.list_decisions(larger)).decisions.len(), 2);

    let foreign = world.as_tenant("acme").decisions();
    let call = { foreign }.list_decisions(list("", "", next.clone())).await;
    assert_eq!(reason(&call.unwrap_err()), "PAGE_TOKEN_MISMATCH");
    let mut forged = next.clone().into_bytes();
    forged[20] = if forged[20] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).unwrap();
    let deleted = pb::ListDecisionsRequest { show_deleted: true, ..list("", "", next.clone()) };
    let masked =
        pb::ListDecisionsRequest { read_mask: mask(&["id"]), ..list("", "", next.clone()) };
    let expired = |now| {
        let key = TokenKey::new([0; 32]);
        let mut asked = list("", "", String::new());
        asked.page = unpaged(asked.page.as_ref());
        let method = "casebook.v1.DecisionService/ListDecisions";
        let binding = Binding::new("default", method, &asked.encode_to_vec());
        let pager = Pager { now, ..pager(&key, binding) };
        let fields = casebook::store::decision::LISTING.fields;
        let page = pager.page(None, fields, &[("decide_time", true)]).unwrap();
        let uid = uuid::Uuid::now_v7().to_string();
        pager.next(&page, vec![Some("1700000000000001".into()), Some(uid)], (1, false)).unwrap()
    };
    let day = Duration::from_secs(24 * 60 * 60);
    let old = SystemTime::now() - day - Duration::from_secs(1);
    for request in [
        list("final_verdict = DENY", "", next.clone()),
        list("", "id", next.clone()),
        list("", "", forged),
        list("", "", "nonsense".into()),
        list("", "", "x".repeat(100_000)),
        list("", "", format!("{next}\0")),
        list("", "", expired(old)),
        deleted,
        masked,
    ] {
        let status = fails!(client.list_decisions(request), InvalidArgument, "PAGE_TOKEN_MISMATCH");
        assert_eq!(wrong_fields(&status), ["page.page_token"]);
    }
    // The same one, made now, is taken: it was its age.
    ok!(client.list_decisions(list("", "", expired(SystemTime::now()))));
    // Of another method.
    let critics = pb::ListCriticOutputsRequest {
        decision_id: "-".into(),
        page: Some(pb::PageRequest { page_token: next, ..Default::default() }),
        ..Default::default()
    };
    fails!(client.list_critic_outputs(critics), InvalidArgument, "PAGE_TOKEN_MISMATCH");
    world.close().await;
}

fn pager(key: &TokenKey, binding: Binding) -> Pager<'_> {
    let sizes = Sizes { default: 1, max: 1, token_life: Duration::from_secs(24 * 60 * 60) };
    Pager { key, binding, now: SystemTime::now(), sizes }
}

#[tokio::test]
async fn revisions_are_of_this_tenant_and_not_of_the_future() {
    let world = World::with(&[("token_key", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")]).await;
    world.tenant("acme").await;
    let mut client = world.decisions();
    let made = ok!(client.create_decision(create("d", decision("ALLOW", 0.5))));
    let good = made.receipt.unwrap().revision.unwrap().token;
    let key = TokenKey::new([0; 32]);
    assert_eq!(token::revision(&key, "default", 1).unwrap(), good);
    let other_key = TokenKey::new([1; 32]);
    use pb::consistency::Requirement;
    let forms: [fn(pb::Revision) -> Requirement; 2] =
        [Requirement::AtExactSnapshot, Requirement::AtLeastAsFresh];
    for form in forms {
        let at = |token: &str| {
            let requirement = form(pb::Revision { token: token.into() });
            Some(pb::Consistency { requirement: Some(requirement) })
        };
        ok!(client.get_decision(pb::GetDecisionRequest { consistency: at(&good), ..get("d") }));
        for token in [
            String::new(),
            "nonsense".into(),
            format!("{good}A"),
            token::revision(&other_key, "default", 1).unwrap(),
            token::revision(&key, "acme", 1).unwrap(),
            token::revision(&key, "default", 1000).unwrap(),
        ] {
            let read = pb::GetDecisionRequest { consistency: at(&token), ..get("d") };
            fails!(client.get_decision(read), InvalidArgument, "BAD_REVISION");
            let list = pb::ListDecisionsRequest { consistency: at(&token), ..Default::default() };
            fails!(client.list_decisions(list), InvalidArgument, "BAD_REVISION");
            let batch = pb::BatchGetDecisionsRequest {
                decision_ids: vec!["d".into()],
                consistency: at(&token),
                ..Default::default()
            };
            fails!(client.batch_get_decisions(batch), InvalidArgument, "BAD_REVISION");
        }
    }
    world.close().await;
}

#[tokio::test]
async fn filters_and_orders_that_make_no_sense_say_where() {
    let world = World::new().await;
    let mut client = world.decisions();
    for (text, column) in [
        ("nope = 1", 1),
        ("final_verdict = ", 17),
        ("final_verdict = DENY AND", 25),
        ("final_verdict = DENY AND nope = 1", 26),
        ("(final_verdict = DENY", 1),
        ("final_verdict = DENY)", 21),
        ("avg_confidence < high", 18),
        ("decide_time > yesterday", 15),
        ("final_verdict = \"DENY", 17),
        ("final_verdict DENY", 15),
        ("\"é\" = 1", 1),
        ("final_verdict.x = DENY", 1),
        ("state = MAYBE", 9),
        ("'; DROP TABLE decision; --' = 1", 1),
    ] {
        let status = fails!(
            client.list_decisions(list(text, "", "".into())),
            InvalidArgument,
            "FILTER_INVALID"
        );
        assert_eq!(wrong_fields(&status), ["where.expression"]);
        let details = status.get_details_bad_request().unwrap();
        let said = &details.field_violations[0].description;
        assert!(said.contains(&format!("column {column}:")), "{text}: {said}");
    }
    for order_by in [
        "nope",
        "labels.k",
        "id, id",
        "id up",
        "id desc, state, final_verdict, trace_id",
        "id; --",
        "\0",
    ] {
        let call = client.list_decisions(list("", order_by, "".into()));
        let status = fails!(call, InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), ["page.order_by"]);
    }
    let page = |page| pb::ListDecisionsRequest { page: Some(page), ..Default::default() };
    for (request, field) in [
        (page(pb::PageRequest { page_size: -1, ..Default::default() }), "page.page_size"),
        (page(pb::PageRequest { skip: -1, ..Default::default() }), "page.skip"),
        (page(pb::PageRequest { skip: 10_001, ..Default::default() }), "page.skip"),
    ] {
        let status = fails!(client.list_decisions(request), InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), [field]);
    }
    world.close().await;
}

#[tokio::test]
async fn a_thousand_faults_fit_into_one_answer() {
    let world = World::new().await;
    let mut client = world.decisions();
    let long = "x".repeat(70_000);
    let wrong = pb::Decision {
        final_verdict: "no".into(),
        avg_confidence: Some(f64::NAN),
        model_version: long[..300].into(),
        labels: labels(&[(&long[..100], &long[..300]), ("é\u{1F980}", &long[..300])]),
        ..Default::default()
    };
    let batch = pb::BatchCreateDecisionsRequest {
        requests: (0..1000).map(|_| create(&long[..300], wrong.clone())).collect(),
        options: None,
    };
    let status = fails!(client.batch_create_decisions(batch), InvalidArgument, "FIELD_INVALID");
    // As it goes over the wire: base64 takes a third more.
    assert!(status.details().len() * 4 / 3 < 6 * 1024, "{}", status.details().len());
    assert!(status.message().len() <= 1024, "{}", status.message().len());
    let fields = wrong_fields(&status);
    assert!((1..=20).contains(&fields.len()), "{}", fields.len());
    let omitted: usize = info(&status)["violations_omitted"].parse().unwrap();
    assert!(omitted + fields.len() >= 5000, "{omitted}");
    let error = status.get_details_error_info().unwrap();
    assert_eq!(error.domain, "casebook");
    world.close().await;
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_before_it_is_read() {
    let world = World::new().await;
    let large = |bytes: usize| pb::PolicyRule {
        name: "one".into(),
        description: "x".repeat(bytes),
        ..Default::default()
    };
    let create = |bytes| pb::CreatePolicyRuleRequest {
        policy_rule: Some(large(bytes)),
        ..Default::default()
    };
    let mut policies = world.anonymous().policies();
    fails!(policies.create_policy_rule(create(4 << 20)), ResourceExhausted, "MESSAGE_TOO_LARGE");
    fails!(policies.create_policy_rule(create(3 << 20)), InvalidArgument, "FIELD_INVALID");
    let mut client = world.decisions();
    let token = |bytes: usize| list("", "", "x".repeat(bytes));
    fails!(client.list_decisions(token(16 << 20)), ResourceExhausted, "MESSAGE_TOO_LARGE");
    fails!(client.list_decisions(token(15 << 20)), InvalidArgument, "PAGE_TOKEN_MISMATCH");
    // An answer over the limit, too: 20 decisions of 1 MB each.
    let text = "x".repeat(1_000_000);
    for n in 0..20 {
        let mut given = decision("ALLOW", 0.5);
        given.input_data = Some(object(&[("text", &text)]));
        ok!(client.create_decision(crate::world::create(&format!("d-{n}"), given)));
    }
    let all = pb::ListDecisionsRequest::default();
    fails!(client.list_decisions(all), ResourceExhausted, "MESSAGE_TOO_LARGE");
    let some = pb::ListDecisionsRequest { page: page(10), ..Default::default() };
    assert_eq!(ok!(client.list_decisions(some)).decisions.len(), 10);
    world.close().await;
}

#[tokio::test]
async fn a_method_that_is_not_there_is_unimplemented() {
    let world = World::new().await;
    for path in ["/casebook.v1.DecisionService/Nope", "/casebook.v2.Nope/GetDecision"] {
        let mut client = tonic::client::Grpc::new(world.anonymous().wire());
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let path = http::uri::PathAndQuery::from_static(path);
        fails!(client.unary(tonic::Request::new(()), path, codec), Unimplemented, "UNIMPLEMENTED");
    }
    world.close().await;
}

#[tokio::test]
async fn a_fault_of_ours_is_masked_and_has_an_incident_id() {
    let world = World::new().await;
    let mut client = world.decisions();
    ok!(client.create_decision(create("d", decision("ALLOW", 0.5))));
    let class = pb::Decision { retention_class: "long".into(), ..Default::default() };
    ok!(client.update_decision(update("d", &["retention_class"], class)));
    let damage = "UPDATE casebook.log SET document = 'damaged'::bytea";
    world.superuser().await.batch_execute(damage).await.unwrap();
    let request = pb::GetDecisionRequest { version: 1, ..get("d") };
    let status = fails!(client.get_decision(request), Internal, "INTERNAL");
    let incident = &info(&status)["incident_id"];
    assert!(uuid::Uuid::parse_str(incident).is_ok());
    assert_eq!(status.message(), format!("internal error, incident {incident}"));
    world.close().await;
}

#[tokio::test]
async fn a_call_that_takes_too_long_says_so_and_writes_nothing() {
    let world = World::with(&[("deadline_default_ms", "1")]).await;
    let slow = World::on(
        &world.database,
        &crate::world::url_of(&crate::world::config_of(&world.database).await),
        &[],
    )
    .await;
    let requests = (0..1000).map(|_| create("", decision("ALLOW", 0.5))).collect();
    let batch = pb::BatchCreateDecisionsRequest { requests, options: Some(request("r")) };
    let mut client = world.decisions();
    fails!(client.batch_create_decisions(batch), DeadlineExceeded, "DEADLINE_EXCEEDED");
    let mut slow = slow;
    slow.stop().await;
    world.close().await;
}
