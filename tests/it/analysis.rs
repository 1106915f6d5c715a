//! Analyses: F415 to F431, numbered per document (C16).

use crate::help::*;
use crate::world::{World, object, request, wrong_fields};
use casebook::pb;
use std::collections::BTreeSet;

fn full() -> pb::Analysis {
    pb::Analysis {
        document_id: "doc".into(),
        category: "invoice".into(),
        summary: "An invoice about tea.".into(),
        tags: vec!["tea".into(), "2026".into()],
        raw_response: Some(object(&[("answer", "yes")])),
        provider_used: "acme".into(),
        model_used: "m-1".into(),
        trace_id: "t-1".into(),
        owner_id: "ann".into(),
        ..Default::default()
    }
}

fn create(id: &str, analysis: pb::Analysis) -> pb::CreateAnalysisRequest {
    pb::CreateAnalysisRequest { analysis: Some(analysis), ..analyse(id, "doc") }
}

fn get(id: &str) -> pb::GetAnalysisRequest {
    pb::GetAnalysisRequest { analysis_id: id.into(), ..Default::default() }
}

fn latest(document_id: &str) -> pb::GetLatestAnalysisRequest {
    pb::GetLatestAnalysisRequest { document_id: document_id.into(), ..Default::default() }
}

#[tokio::test]
async fn an_analysis_comes_back_as_given_under_the_next_number() {
    let world = World::new().await;
    let mut client = world.anonymous().documents();
    ok!(client.create_document(file("doc")));
    let made = ok!(client.create_analysis(create("an", full()))).analysis.unwrap();
    let expected = pb::Analysis {
        id: "an".into(),
        etag: made.etag.clone(),
        meta: made.meta.clone(),
        analysis_version: 1,
        ..full()
    };
    assert_eq!(made, expected);
    assert_eq!(ok!(client.get_analysis(get("an"))).analysis, Some(made));
    let second = ok!(client.create_analysis(create("", full()))).analysis.unwrap();
    assert_eq!((second.analysis_version, &second.id), (2, &second.meta.as_ref().unwrap().uid));
    assert_eq!(ok!(client.get_latest_analysis(latest("doc"))).analysis, Some(second));
    let masked =
        pb::GetLatestAnalysisRequest { read_mask: mask(&["analysis_version"]), ..latest("doc") };
    let masked = ok!(client.get_latest_analysis(masked)).analysis.unwrap();
    assert_eq!((masked.analysis_version, masked.summary.as_str()), (2, ""));
    // The document has no new version for it.
    let document = pb::GetDocumentRequest { document_id: "doc".into(), ..Default::default() };
    let document = ok!(client.get_document(document)).document.unwrap();
    assert_eq!(document.meta.unwrap().version, 1);
    world.close().await;
}

#[tokio::test]
async fn only_the_next_number_may_be_given() {
    let world = World::new().await;
    let mut client = world.anonymous().documents();
    ok!(client.create_document(file("doc")));
    let numbered = |n| create("", pb::Analysis { analysis_version: n, ..full() });
    let wrong =
        fails!(client.create_analysis(numbered(2)), FailedPrecondition, "PRECONDITION_FAILED");
    assert_eq!(info(&wrong)["next_analysis_version"], "1");
    assert_eq!(ok!(client.create_analysis(numbered(1))).analysis.unwrap().analysis_version, 1);
    let wrong =
        fails!(client.create_analysis(numbered(1)), FailedPrecondition, "PRECONDITION_FAILED");
    assert_eq!(info(&wrong)["next_analysis_version"], "2");
    let status = fails!(client.create_analysis(numbered(-1)), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["analysis.analysis_version"]);
    // A refused one has used no number up.
    assert_eq!(ok!(client.create_analysis(numbered(0))).analysis.unwrap().analysis_version, 2);
    world.close().await;
}

/// C16: whoever comes at once, from one connection or several servers.
#[tokio::test]
async fn thirty_two_at_once_get_thirty_two_numbers() {
    let world = World::new().await;
    let url = crate::world::url_of(&crate::world::config_of(&world.database).await);
    let second = World::on(&world.database, &url, &[]).await;
    let mut client = world.anonymous().documents();
    for id in ["doc", "other"] {
        ok!(client.create_document(file(id)));
    }
    let calls = (0..32).flat_map(|n| {
        let of = if n % 2 == 0 { &world } else { &second };
        ["doc", "other"].map(|document| {
            let mut client = of.anonymous().documents();
            let request = pb::CreateAnalysisRequest {
                options: Some(request(&format!("{document}-{n}"))),
                ..analyse("", document)
            };
            tokio::spawn(async move { ok!(client.create_analysis(request)).analysis.unwrap() })
        })
    });
    let calls: Vec<_> = calls.collect();
    let mut made = Vec::new();
    for call in calls {
        made.push(call.await.unwrap());
    }
    for document in ["doc", "other"] {
        let of = made.iter().filter(|analysis| analysis.document_id == document);
        let numbers: BTreeSet<i32> = of.map(|analysis| analysis.analysis_version).collect();
        assert_eq!(numbers, (1..=32).collect(), "{document}");
        let last = ok!(client.get_latest_analysis(latest(document))).analysis.unwrap();
        assert_eq!(last.analysis_version, 32);
    }
    // The log has them in their order.
    let entries = entries(&world.anonymous(), 100).await;
    let mut in_log = Vec::new();
    for entry in entries.iter().rev().filter(|entry| entry.action == "CREATE") {
        let of = made.iter().find(|analysis| analysis.id == entry.target.as_ref().unwrap().id);
        in_log.extend(of.filter(|a| a.document_id == "doc").map(|a| a.analysis_version));
    }
    assert_eq!(in_log, (1..=32).collect::<Vec<_>>());
    let mut second = second;
    second.stop().await;
    world.close().await;
}

#[tokio::test]
async fn an_analysis_is_made_once() {
    let world = World::new().await;
    let mut client = world.anonymous().documents();
    ok!(client.create_document(file("doc")));
    let once = pb::CreateAnalysisRequest { options: Some(request("once")), ..create("an", full()) };
    let first = ok!(client.create_analysis(once.clone()));
    ok!(client.create_analysis(create("", full())));
    let again = ok!(client.create_analysis(once));
    assert!(again.receipt.unwrap().replayed);
    assert_eq!(again.analysis, first.analysis);

    fails!(client.create_analysis(create("an", full())), AlreadyExists, "EXISTS");
    let with = |analysis, how| pb::CreateAnalysisRequest {
        options: on_conflict(how),
        ..create("an", analysis)
    };
    let equal = ok!(client.create_analysis(with(full(), pb::OnConflict::ReturnIfEqual)));
    assert!(equal.receipt.unwrap().unchanged);
    assert_eq!(equal.analysis, first.analysis);
    // The number it has is as good as none.
    let numbered = pb::Analysis { analysis_version: 1, ..full() };
    let equal = ok!(client.create_analysis(with(numbered, pb::OnConflict::ReturnIfEqual)));
    assert_eq!(equal.analysis, first.analysis);
    let other = pb::Analysis { summary: "No.".into(), analysis_version: 3, ..full() };
    let call = client.create_analysis(with(other, pb::OnConflict::ReturnIfEqual));
    let status = fails!(call, AlreadyExists, "EXISTS_DIFFERENT");
    assert_eq!(info(&status)["fields"], "analysis_version,summary");
    let call = client.create_analysis(with(full(), pb::OnConflict::Replace));
    fails!(call, InvalidArgument, "FIELD_INVALID");
    let rehearsal = pb::WriteOptions { validate_only: true, ..Default::default() };
    let rehearsal = pb::CreateAnalysisRequest { options: Some(rehearsal), ..create("", full()) };
    let rehearsed = ok!(client.create_analysis(rehearsal));
    assert_eq!((rehearsed.receipt, rehearsed.analysis.unwrap().analysis_version), (None, 3));
    let last = ok!(client.get_latest_analysis(latest("doc"))).analysis.unwrap();
    assert_eq!(last.analysis_version, 2);
    world.close().await;
}

#[tokio::test]
async fn analyses_need_a_document_and_sense() {
    let world = World::new().await;
    let mut client = world.anonymous().documents();
    ok!(client.create_document(file("doc")));
    let status = fails!(client.create_analysis(analyse("", "no")), NotFound, "NOT_FOUND");
    assert!(status.message().contains("document \"no\""), "{status:?}");
    fails!(client.get_latest_analysis(latest("doc")), NotFound, "NOT_FOUND");
    fails!(client.get_latest_analysis(latest("no")), NotFound, "NOT_FOUND");
    fails!(client.get_analysis(get("no")), NotFound, "NOT_FOUND");
    for (analysis, field) in [
        (pb::Analysis { document_id: "".into(), ..full() }, "document_id"),
        (pb::Analysis { category: "x".repeat(256), ..full() }, "category"),
        (pb::Analysis { summary: "x".repeat(65_537), ..full() }, "summary"),
        (pb::Analysis { tags: vec!["".into()], ..full() }, "tags[0]"),
        (pb::Analysis { tags: vec!["x".into(); 65], ..full() }, "tags"),
        (pb::Analysis { provider_used: "x".repeat(256), ..full() }, "provider_used"),
        (pb::Analysis { model_used: "x".repeat(256), ..full() }, "model_used"),
        (pb::Analysis { trace_id: "x".repeat(256), ..full() }, "trace_id"),
        (pb::Analysis { owner_id: "x".repeat(256), ..full() }, "owner_id"),
    ] {
        let status =
            fails!(client.create_analysis(create("", analysis)), InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), [format!("analysis.{field}")]);
    }
    world.close().await;
}

#[tokio::test]
async fn analyses_are_listed_by_document_by_filter_and_in_order() {
    let world = World::new().await;
    let mut client = world.anonymous().documents();
    for id in ["doc", "other"] {
        ok!(client.create_document(file(id)));
    }
    for (n, document) in ["doc", "doc", "other"].into_iter().enumerate() {
        let analysis = pb::Analysis {
            document_id: document.into(),
            category: format!("c{n}"),
            tags: vec![format!("t{n}")],
            ..full()
        };
        ok!(client.create_analysis(create(&format!("an-{n}"), analysis)));
    }
    let mut ids = async |document_id: &str, text: &str, order_by: &str| {
        let request = pb::ListAnalysesRequest {
            document_id: document_id.into(),
            page: Some(pb::PageRequest { order_by: order_by.into(), ..Default::default() }),
            r#where: expression(text),
            ..Default::default()
        };
        let found = ok!(client.list_analyses(request)).analyses;
        found.into_iter().map(|analysis| analysis.id).collect::<Vec<_>>()
    };
    assert_eq!(ids("-", "", "").await, ["an-2", "an-1", "an-0"]);
    assert_eq!(ids("doc", "", "analysis_version desc").await, ["an-1", "an-0"]);
    assert_eq!(ids("-", "tags:t2 OR category = c0", "").await, ["an-2", "an-0"]);
    assert_eq!(ids("-", "analysis_version > 1", "").await, ["an-1"]);
    for (document_id, code) in [("no", tonic::Code::NotFound), ("", tonic::Code::InvalidArgument)] {
        let request =
            pb::ListAnalysesRequest { document_id: document_id.into(), ..Default::default() };
        assert_eq!(client.list_analyses(request).await.unwrap_err().code(), code);
    }
    world.close().await;
}
