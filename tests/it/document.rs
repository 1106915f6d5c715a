//! Documents: F404 to F412, F493 to F502, and what is hidden and comes back with them (F413, F485, F569).

use crate::help::*;
use crate::world::{World, object, request, tree, wrong_fields};
use casebook::pb;
use casebook::rpc::json_object::Object;

const HASH: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

fn full() -> pb::Document {
    pb::Document {
        filename: "a.pdf".into(),
        original_filename: "Scan 1.pdf".into(),
        source_path: "https://example.com/a.pdf".into(),
        size_bytes: Some(123_456_789_012),
        mime_type: "application/pdf".into(),
        content_hash: HASH.into(),
        status: "chunked".into(),
        // F575: arbitrary JSON.
        metadata: Some(nested().into()),
        labels: labels(&[("team", "claims")]),
        owner_id: "ann".into(),
        content: Some(reference(pb::ResourceKind::Decision, "d-1", 2)),
        retention_class: "long".into(),
        subject_id: "s-1".into(),
        ..Default::default()
    }
}

/// Every type that JSON has, nested (F516, F575).
fn nested() -> prost_types::Struct {
    use prost_types::value::Kind::*;
    use prost_types::{ListValue, Value};
    let value = |kind| Value { kind: Some(kind) };
    let list = ListValue {
        values: vec![
            value(NullValue(0)),
            value(BoolValue(true)),
            value(NumberValue(-0.5)),
            value(StringValue("é \"quoted\" \\ \n 😀".into())),
            value(ListValue(Default::default())),
            value(StructValue(tree(&[("deep", "down")]))),
        ],
    };
    let mut fields = tree(&[("", "an empty key"), ("ключ", "a key")]);
    fields.fields.insert("list".into(), value(ListValue(list)));
    fields.fields.insert("none".into(), value(StructValue(Default::default())));
    fields
}

fn create(id: &str, document: pb::Document) -> pb::CreateDocumentRequest {
    pb::CreateDocumentRequest { document: Some(document), ..file(id) }
}

fn get(id: &str) -> pb::GetDocumentRequest {
    pb::GetDocumentRequest { document_id: id.into(), ..Default::default() }
}

fn change(id: &str, paths: &[&str], document: pb::Document) -> pb::UpdateDocumentRequest {
    pb::UpdateDocumentRequest {
        document: Some(pb::Document { id: id.into(), ..document }),
        update_mask: mask(paths),
        options: None,
    }
}

fn remove(id: &str) -> pb::DeleteDocumentRequest {
    pb::DeleteDocumentRequest { document_id: id.into(), ..Default::default() }
}

fn bring_back(id: &str) -> pb::UndeleteDocumentRequest {
    pb::UndeleteDocumentRequest { document_id: id.into(), ..Default::default() }
}

fn by_hash(content_hash: &str) -> pb::FindDocumentsByHashRequest {
    pb::FindDocumentsByHashRequest { content_hash: content_hash.into(), ..Default::default() }
}

fn ids(documents: &[pb::Document]) -> Vec<&str> {
    documents.iter().map(|document| document.id.as_str()).collect()
}

#[tokio::test]
async fn a_document_comes_back_as_given() {
    let world = World::new().await;
    let mut client = world.anonymous().documents();
    // What the server owns is passed over.
    let given = pb::Document { total_chunks: 7, ..full() };
    let made = ok!(client.create_document(create("doc", given))).document.unwrap();
    let meta = made.meta.clone().unwrap();
    assert_eq!((meta.version, meta.create_time), (1, meta.update_time));
    let expected =
        pb::Document { id: "doc".into(), etag: made.etag.clone(), meta: Some(meta), ..full() };
    assert_eq!(made, expected);
    assert_eq!(ok!(client.get_document(get("doc"))).document, Some(made));

    let least = ok!(client.create_document(file(""))).document.unwrap();
    assert_eq!(least.id, least.meta.as_ref().unwrap().uid);
    assert_eq!((least.status.as_str(), least.total_chunks), ("pending", 0));
    assert_eq!((least.size_bytes, least.content, least.metadata), (None, None, None));
    let masked = pb::GetDocumentRequest { read_mask: mask(&["status"]), ..get("doc") };
    let masked = ok!(client.get_document(masked)).document.unwrap();
    let expected =
        pb::Document { id: "doc".into(), status: "chunked".into(), ..Default::default() };
    assert_eq!(masked, expected);
    world.close().await;
}

#[tokio::test]
async fn an_update_moves_what_it_names_and_sets_the_time() {
    let world = World::new().await;
    let mut client = world.anonymous().documents();
    let one = ok!(client.create_document(create("doc", full()))).document.unwrap();
    ok!(client.batch_create_chunks(chunks("doc", [chunk(0)])));
    let to = pb::Document { status: "embedded".into(), filename: "no".into(), ..full() };
    let three = ok!(client.update_document(change("doc", &["status"], to))).document.unwrap();
    let (before, after) = (one.meta.as_ref().unwrap(), three.meta.as_ref().unwrap());
    // F501: the chunk was version 2.
    assert_eq!((after.version, after.create_time), (3, before.create_time));
    assert!(
        after.update_time.unwrap().seconds > before.update_time.unwrap().seconds
            || after.update_time.unwrap().nanos > before.update_time.unwrap().nanos
    );
    assert_eq!((three.status.as_str(), three.filename.as_str()), ("embedded", "a.pdf"));
    assert_eq!(three.total_chunks, 1);
    let label = pb::Document { labels: labels(&[("stage", "2")]), ..Default::default() };
    let four = ok!(client.update_document(change("doc", &["labels.stage"], label)));
    assert_eq!(four.document.unwrap().labels, labels(&[("stage", "2"), ("team", "claims")]));
    let stale = pb::Document { etag: one.etag.clone(), ..full() };
    let call = client.update_document(change("doc", &["status"], stale));
    fails!(call, Aborted, "ETAG_MISMATCH");
    for (path, reason) in
        [("total_chunks", "FIELD_IMMUTABLE"), ("id", "FIELD_IMMUTABLE"), ("nope", "UNKNOWN_FIELD")]
    {
        let call = client.update_document(change("doc", &[path], full()));
        fails!(call, InvalidArgument, reason);
    }
    let first = pb::GetDocumentRequest { version: 1, ..get("doc") };
    assert_eq!(ok!(client.get_document(first)).document, Some(one));
    fails!(client.update_document(change("no", &["status"], full())), NotFound, "NOT_FOUND");
    world.close().await;
}

#[tokio::test]
async fn a_document_that_is_there_may_be_replaced_and_keeps_its_chunks() {
    let world = World::new().await;
    let mut client = world.anonymous().documents();
    ok!(client.create_document(create("doc", full())));
    ok!(client.batch_create_chunks(chunks("doc", [chunk(0), chunk(1)])));
    fails!(client.create_document(create("doc", full())), AlreadyExists, "EXISTS");
    let with = |document, how| pb::CreateDocumentRequest {
        options: on_conflict(how),
        ..create("doc", document)
    };
    let equal = ok!(client.create_document(with(full(), pb::OnConflict::ReturnIfEqual)));
    assert!(equal.receipt.unwrap().unchanged);
    assert_eq!(equal.document.unwrap().total_chunks, 2);
    let other = pb::Document { status: "failed".into(), ..full() };
    let call = client.create_document(with(other.clone(), pb::OnConflict::ReturnIfEqual));
    let status = fails!(call, AlreadyExists, "EXISTS_DIFFERENT");
    assert_eq!(info(&status)["fields"], "status");
    let replaced = ok!(client.create_document(with(other, pb::OnConflict::Replace)));
    let replaced = replaced.document.unwrap();
    assert_eq!((replaced.status.as_str(), replaced.total_chunks), ("failed", 2));
    assert_eq!(ok!(client.get_document(get("doc"))).document, Some(replaced));
    world.close().await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let world = World::new().await;
    let mut client = world.anonymous().documents();
    for (document, field) in [
        (pb::Document { filename: "".into(), ..full() }, "filename"),
        (pb::Document { filename: "x".repeat(256), ..full() }, "filename"),
        (pb::Document { original_filename: "x".repeat(256), ..full() }, "original_filename"),
        (pb::Document { source_path: "".into(), ..full() }, "source_path"),
        (pb::Document { source_path: "x".repeat(4097), ..full() }, "source_path"),
        (pb::Document { size_bytes: Some(-1), ..full() }, "size_bytes"),
        (pb::Document { mime_type: "x".repeat(256), ..full() }, "mime_type"),
        (pb::Document { content_hash: HASH.to_uppercase(), ..full() }, "content_hash"),
        (pb::Document { content_hash: HASH[1..].into(), ..full() }, "content_hash"),
        (pb::Document { status: "Done".into(), ..full() }, "status"),
        (pb::Document { status: "é".into(), ..full() }, "status"),
        (pb::Document { status: "x".repeat(51), ..full() }, "status"),
        (pb::Document { owner_id: "x".repeat(256), ..full() }, "owner_id"),
        (pb::Document { retention_class: "x".repeat(64), ..full() }, "retention_class"),
        (pb::Document { subject_id: "x".repeat(256), ..full() }, "subject_id"),
        (
            pb::Document {
                content: Some(reference(pb::ResourceKind::Unspecified, "x", 0)),
                ..full()
            },
            "content.kind",
        ),
        (
            pb::Document { content: Some(reference(pb::ResourceKind::Claim, "", 0)), ..full() },
            "content.id",
        ),
        (pb::Document { id: "other".into(), ..full() }, "id"),
    ] {
        let call = client.create_document(create("doc", document));
        let status = fails!(call, InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), [format!("document.{field}")]);
    }
    for document in [
        pb::Document { status: "a\0".into(), ..full() },
        pb::Document { content_hash: "\0".into(), ..full() },
        pb::Document { source_path: "a\0".into(), ..full() },
    ] {
        fails!(client.create_document(create("doc", document)), InvalidArgument, "NUL_BYTE");
    }
    assert_eq!(head(&world.anonymous()).await, 0);
    world.close().await;
}

#[tokio::test]
async fn a_batch_of_documents_is_all_or_nothing() {
    let world = World::new().await;
    let mut client = world.anonymous().documents();
    let batch = |ids: &[&str]| pb::BatchCreateDocumentsRequest {
        requests: ids.iter().map(|id| file(id)).collect(),
        options: Some(request("once")),
    };
    let made = ok!(client.batch_create_documents(batch(&["a", "", "c"])));
    assert_eq!(made.documents.len(), 3);
    let again = ok!(client.batch_create_documents(batch(&["a", "", "c"])));
    assert!(again.receipt.unwrap().replayed);
    assert_eq!(again.documents, made.documents);
    let other = pb::BatchCreateDocumentsRequest { options: None, ..batch(&["x", "a"]) };
    fails!(client.batch_create_documents(other), AlreadyExists, "EXISTS");
    fails!(client.get_document(get("x")), NotFound, "NOT_FOUND");
    let twice = pb::BatchCreateDocumentsRequest { options: None, ..batch(&["y", "y"]) };
    let status =
        fails!(client.batch_create_documents(twice), InvalidArgument, "DUPLICATE_IN_BATCH");
    assert_eq!(wrong_fields(&status), ["requests[1].document_id"]);
    let several = |ids: &[&str], allow_missing| pb::BatchGetDocumentsRequest {
        document_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        allow_missing,
        ..Default::default()
    };
    let found = ok!(client.batch_get_documents(several(&["c", "no", "a"], true)));
    assert_eq!((ids(&found.documents), found.missing_ids), (vec!["c", "a"], vec!["no".to_owned()]));
    fails!(client.batch_get_documents(several(&["c", "no"], false)), NotFound, "NOT_FOUND");
    world.close().await;
}

#[tokio::test]
async fn documents_are_listed_by_filter_and_found_by_hash() {
    let world = World::new().await;
    let mut client = world.anonymous().documents();
    for n in 0..5 {
        let document = pb::Document {
            content_hash: if n == 4 { String::new() } else { HASH.into() },
            size_bytes: (n > 0).then_some(n),
            status: format!("s{}", n % 2),
            ..full()
        };
        ok!(client.create_document(create(&format!("doc-{n}"), document)));
    }
    let list = |text: &str, order_by: &str| pb::ListDocumentsRequest {
        page: Some(pb::PageRequest { order_by: order_by.into(), ..Default::default() }),
        r#where: expression(text),
        ..Default::default()
    };
    let found = ok!(client.list_documents(list("", ""))).documents;
    assert_eq!(ids(&found), ["doc-4", "doc-3", "doc-2", "doc-1", "doc-0"]);
    let found = ok!(client.list_documents(list("status = s0 AND size_bytes > 1", "size_bytes")));
    assert_eq!(ids(&found.documents), ["doc-2", "doc-4"]);
    let found = ok!(client.list_documents(list("metadata.list:* AND labels.team = claims", "id")));
    assert_eq!(found.documents.len(), 5);

    // C20: several documents may have the same bytes. Page by page.
    let mut request = pb::FindDocumentsByHashRequest { page: page(3), ..by_hash(HASH) };
    let first = ok!(client.find_documents_by_hash(request.clone()));
    assert_eq!(ids(&first.documents), ["doc-3", "doc-2", "doc-1"]);
    request.page.as_mut().unwrap().page_token = first.page.unwrap().next_page_token;
    let second = ok!(client.find_documents_by_hash(request.clone()));
    assert_eq!(ids(&second.documents), ["doc-0"]);
    request.content_hash = HASH.replace('9', "8");
    let call = client.find_documents_by_hash(request);
    fails!(call, InvalidArgument, "PAGE_TOKEN_MISMATCH");
    let even =
        pb::FindDocumentsByHashRequest { r#where: expression("status = s0"), ..by_hash(HASH) };
    assert_eq!(ids(&ok!(client.find_documents_by_hash(even)).documents), ["doc-2", "doc-0"]);
    let none = ok!(client.find_documents_by_hash(by_hash(&HASH.replace('9', "8"))));
    assert_eq!(none.documents, []);
    for bad in ["", "-", "abc", &HASH.to_uppercase()] {
        let call = client.find_documents_by_hash(by_hash(bad));
        let status = fails!(call, InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), ["content_hash"]);
    }
    world.close().await;
}

/// F569: documents and chunks from the first write to the last, and what belongs to a document goes with it for good.
#[tokio::test]
async fn a_document_and_its_chunks_live_and_go_together() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.documents();
    for id in ["doc", "other"] {
        ok!(client.create_document(file(id)));
        let named = |n: i32| pb::Chunk { id: format!("{id}-{n}"), ..chunk(n) };
        let made = ok!(client.batch_create_chunks(chunks(id, (0..3).map(named))));
        assert_eq!(made.chunk_ids, (0..3).map(|n| format!("{id}-{n}")).collect::<Vec<_>>());
        ok!(client.create_analysis(analyse(&format!("{id}-a"), id)));
    }
    let read = ok!(client.get_document(get("doc"))).document.unwrap();
    assert_eq!((read.filename.as_str(), read.total_chunks), ("report.pdf", 3));
    let of = |id: &str| pb::ListChunksRequest { document_id: id.into(), ..Default::default() };
    let texts = |chunks: Vec<pb::Chunk>| {
        let texts = chunks.into_iter().map(|chunk| (chunk.chunk_index, chunk.text));
        texts.collect::<Vec<_>>()
    };
    let told = |n: i32, text: &str| (n, text.to_owned());
    let expected = [told(0, "text 0"), told(1, "text 1"), told(2, "text 2")];
    assert_eq!(texts(ok!(client.list_chunks(of("doc"))).chunks), expected);

    let ready = pb::Document { status: "ready".into(), ..Default::default() };
    ok!(client.update_document(change("doc", &["status"], ready)));
    let rewritten = pb::Chunk { id: "doc-1".into(), text: "better".into(), ..Default::default() };
    ok!(client.update_chunk(pb::UpdateChunkRequest {
        chunk: Some(rewritten),
        update_mask: mask(&["text"]),
        options: None,
    }));
    ok!(client
        .delete_chunk(pb::DeleteChunkRequest { chunk_id: "doc-2".into(), ..Default::default() }));
    let read = ok!(client.get_document(get("doc"))).document.unwrap();
    assert_eq!((read.status.as_str(), read.total_chunks), ("ready", 2));
    let expected = [told(0, "text 0"), told(1, "better")];
    assert_eq!(texts(ok!(client.list_chunks(of("doc"))).chunks), expected);

    ok!(client.delete_document(remove("doc")));
    fails!(client.get_document(get("doc")), NotFound, "NOT_FOUND");
    for n in 0..3 {
        let chunk = pb::GetChunkRequest { chunk_id: format!("doc-{n}"), ..Default::default() };
        fails!(client.get_chunk(chunk), NotFound, "NOT_FOUND");
    }
    let analysis = pb::GetAnalysisRequest { analysis_id: "doc-a".into(), ..Default::default() };
    fails!(client.get_analysis(analysis), NotFound, "NOT_FOUND");
    fails!(client.list_chunks(of("doc")), NotFound, "NOT_FOUND");
    let left: Vec<_> = ok!(client.list_chunks(of("-"))).chunks;
    assert!(left.len() == 3 && left.iter().all(|chunk| chunk.document_id == "other"), "{left:?}");
    let purge = pb::PurgeResourcesRequest {
        kind: pb::ResourceKind::Document.into(),
        max_resources: 10,
        ..Default::default()
    };
    assert_eq!(ok!(who.retention().purge_resources(purge)).purged_count, 1);
    let database = world.superuser().await;
    let left = "SELECT (SELECT string_agg(id, ' ' ORDER BY id) FROM casebook.document), \
                (SELECT string_agg(id, ' ' ORDER BY id) FROM casebook.chunk), \
                (SELECT string_agg(id, ' ' ORDER BY id) FROM casebook.analysis)";
    let left = database.query_one(left, &[]).await.unwrap();
    let left: [String; 3] = [left.get(0), left.get(1), left.get(2)];
    assert_eq!(left, ["other", "other-0 other-1 other-2", "other-a"]);
    drop(database);
    world.close().await;
}

/// F575, F516: metadata is whatever JSON there is, and comes back as it was, from the table and from the log.
#[tokio::test]
async fn metadata_is_any_json_and_comes_back_as_it_was() {
    use prost_types::value::Kind::{ListValue, NullValue, NumberValue, StringValue, StructValue};
    let value = |kind| prost_types::Value { kind: Some(kind) };
    let list = |values| value(ListValue(prost_types::ListValue { values }));
    let number = |number| value(NumberValue(number));
    let mut any = nested();
    let numbers = [
        0.1 + 0.2,
        1e-7,
        5e-324,
        2.5e-310,
        123_456_789.5,
        9_007_199_254_740_991.0,
        -1e15,
        1e21 / 3.0,
    ];
    // An integer of 2^53 or more is no longer the number that it was on its way here.
    let (exact, beyond): (Vec<f64>, Vec<f64>) =
        numbers.into_iter().partition(|number: &f64| number.abs() < 9_007_199_254_740_992.0);
    assert_eq!(beyond.len(), 1);
    any.fields.insert("numbers".into(), list(exact.into_iter().map(number).collect()));
    let deep = (0..28).fold(number(1.0), |inner, n| match n % 2 {
        0 => list(vec![value(NullValue(0)), inner, list(Vec::new())]),
        _ => value(StructValue(prost_types::Struct { fields: [(String::new(), inner)].into() })),
    });
    any.fields.insert("deep".into(), deep);
    // Keys whose order is one in UTF-8 and another in UTF-16, and those that look like something else.
    let odd = [
        "\u{ff01}",
        "\u{1f600}",
        "\u{1}",
        " ",
        "a.b",
        "$",
        "\"",
        "\\",
        "__proto__",
        "e\u{301}",
        "\u{e9}",
    ];
    for key in odd {
        any.fields.insert(key.into(), value(StringValue(key.into())));
    }

    let any = Object::from(any);
    let world = World::new().await;
    let mut client = world.anonymous().documents();
    let document = pb::Document { metadata: Some(any.clone()), ..full() };
    let made = ok!(client.create_document(create("doc", document))).document.unwrap();
    assert_eq!(made.metadata.as_ref(), Some(&any));
    let piece = pb::Chunk { id: "ch".into(), metadata: Some(any.clone()), ..chunk(0) };
    ok!(client.batch_create_chunks(chunks("doc", [piece])));
    let mut analysis = analyse("an", "doc");
    analysis.analysis.as_mut().unwrap().raw_response = Some(any.clone());
    ok!(client.create_analysis(analysis));

    // Then something else stands there, and this is in the log only.
    let other = Some(object(&[("now", "another")]));
    for version in [0, 1] {
        if version == 1 {
            let document = pb::Document { metadata: other.clone(), ..Default::default() };
            ok!(client.update_document(change("doc", &["metadata"], document)));
            let chunk = pb::Chunk { id: "ch".into(), metadata: other.clone(), ..chunk(0) };
            let paths = mask(&["metadata"]);
            let change =
                pb::UpdateChunkRequest { chunk: Some(chunk), update_mask: paths, options: None };
            ok!(client.update_chunk(change));
        }
        let document = ok!(client.get_document(pb::GetDocumentRequest { version, ..get("doc") }));
        assert_eq!(document.document.unwrap().metadata.as_ref(), Some(&any));
        let request = pb::GetChunkRequest { chunk_id: "ch".into(), version, ..Default::default() };
        assert_eq!(ok!(client.get_chunk(request)).chunk.unwrap().metadata.as_ref(), Some(&any));
        let request =
            pb::GetAnalysisRequest { analysis_id: "an".into(), version, ..Default::default() };
        let analysis = ok!(client.get_analysis(request)).analysis.unwrap();
        assert_eq!(analysis.raw_response.as_ref(), Some(&any));
    }
    // Back again it goes as it came.
    let document = pb::Document { metadata: made.metadata, ..Default::default() };
    let back = ok!(client.update_document(change("doc", &["metadata"], document)));
    assert_eq!(back.document.unwrap().metadata, Some(any));
    let inexact = prost_types::Struct { fields: [("n".to_owned(), number(beyond[0]))].into() };
    let document = pb::Document { metadata: Some(inexact.into()), ..full() };
    let call = client.create_document(create("inexact", document));
    let status = fails!(call, InvalidArgument, "NUMBER_NOT_EXACT");
    assert_eq!(wrong_fields(&status), ["document.metadata"]);
    world.close().await;
}

/// F576, F504: chunks and analyses are of a document that is there.
#[tokio::test]
async fn nothing_is_of_a_document_that_is_not_there() {
    use crate::transaction::execute;
    use pb::execute_transaction_request::operation::Operation;
    use tonic_types::StatusExt as _;
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.documents();
    for how in [pb::OnConflict::Fail, pb::OnConflict::ReturnIfEqual, pb::OnConflict::Replace] {
        let request =
            pb::BatchCreateChunksRequest { options: on_conflict(how), ..chunks("no", [chunk(0)]) };
        let status = fails!(client.batch_create_chunks(request), NotFound, "NOT_FOUND");
        let missing = status.get_details_resource_info().unwrap();
        assert_eq!(
            (missing.resource_type.as_str(), missing.resource_name.as_str()),
            ("document", "no")
        );
    }
    let status = fails!(client.create_analysis(analyse("an", "no")), NotFound, "NOT_FOUND");
    let missing = status.get_details_resource_info().unwrap();
    assert_eq!(
        (missing.resource_type.as_str(), missing.resource_name.as_str()),
        ("document", "no")
    );
    let none = fails!(
        client.batch_create_chunks(chunks("", [chunk(0)])),
        InvalidArgument,
        "FIELD_INVALID"
    );
    assert_eq!(wrong_fields(&none), ["document_id"]);
    let none = fails!(client.create_analysis(analyse("an", "")), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&none), ["analysis.document_id"]);
    // Nor of one that the steps before did not leave there, and then nothing of those stays.
    ok!(client.create_document(file("doc")));
    let before = head(&who).await;
    for last in [
        Operation::BatchCreateChunks(chunks("doc", [chunk(0)])),
        Operation::CreateAnalysis(analyse("an", "doc")),
    ] {
        let steps = vec![Operation::DeleteDocument(remove("doc")), last];
        let call = who.transactions().execute_transaction(execute(steps)).await;
        let status = call.unwrap_err();
        let missing = status.get_details_resource_info().unwrap();
        assert_eq!((status.code(), missing.resource_name.as_str()), (tonic::Code::NotFound, "doc"));
        assert!(info(&status)["at"].starts_with("operations[1]."), "{status:?}");
    }
    ok!(client.get_document(get("doc")));
    assert_eq!(head(&who).await, before);
    // And one that is there it does not leave.
    ok!(client.batch_create_chunks(chunks("doc", [pb::Chunk { id: "ch".into(), ..chunk(0) }])));
    let moved = pb::Chunk { id: "ch".into(), document_id: "no".into(), ..Default::default() };
    let request = pb::UpdateChunkRequest {
        chunk: Some(moved),
        update_mask: mask(&["document_id"]),
        options: None,
    };
    fails!(client.update_chunk(request), InvalidArgument, "FIELD_IMMUTABLE");
    world.close().await;
}

/// F413, F414, F485: a document goes with all that belongs to it, and comes back with it.
#[tokio::test]
async fn a_deletion_hides_analyses_and_chunks_and_undeletion_brings_them_back() {
    let world = World::new().await;
    let mut client = world.anonymous().documents();
    ok!(client.create_document(file("doc")));
    ok!(client.create_document(file("other")));
    for n in 1..=2 {
        ok!(client.create_analysis(analyse(&format!("an-{n}"), "doc")));
    }
    let named = |n: i32| pb::Chunk { id: format!("ch-{n}"), ..chunk(n) };
    ok!(client.batch_create_chunks(chunks("doc", (0..3).map(named))));
    ok!(client.batch_create_chunks(chunks("other", [named(9)])));
    let gone_before = pb::DeleteChunkRequest { chunk_id: "ch-1".into(), ..Default::default() };
    ok!(client.delete_chunk(gone_before));

    let before = head(&world.anonymous()).await;
    let deleted = ok!(client.delete_document(remove("doc")));
    assert!(deleted.document.unwrap().meta.unwrap().delete_time.is_some());
    // The document, two analyses and two chunks.
    assert_eq!(deleted.receipt.unwrap().audit_seq, before + 5);
    fails!(client.get_document(get("doc")), NotFound, "NOT_FOUND");
    let analysis =
        |id: &str| pb::GetAnalysisRequest { analysis_id: id.into(), ..Default::default() };
    let piece = |id: &str| pb::GetChunkRequest { chunk_id: id.into(), ..Default::default() };
    fails!(client.get_analysis(analysis("an-1")), NotFound, "NOT_FOUND");
    fails!(client.get_chunk(piece("ch-0")), NotFound, "NOT_FOUND");
    ok!(client.get_chunk(piece("ch-9")));
    let all_analyses = |show_deleted| pb::ListAnalysesRequest {
        document_id: "-".into(),
        show_deleted,
        ..Default::default()
    };
    let all_chunks = |show_deleted| pb::ListChunksRequest {
        document_id: "-".into(),
        show_deleted,
        ..Default::default()
    };
    assert_eq!(ok!(client.list_analyses(all_analyses(false))).analyses.len(), 0);
    assert_eq!(ok!(client.list_analyses(all_analyses(true))).analyses.len(), 2);
    assert_eq!(ok!(client.list_chunks(all_chunks(false))).chunks.len(), 1);
    assert_eq!(ok!(client.list_chunks(all_chunks(true))).chunks.len(), 4);
    // F576: nothing can be added to what is not there.
    fails!(client.create_analysis(analyse("", "doc")), NotFound, "NOT_FOUND");
    fails!(client.batch_create_chunks(chunks("doc", [chunk(5)])), NotFound, "NOT_FOUND");
    let change = pb::UpdateChunkRequest {
        chunk: Some(pb::Chunk { id: "ch-0".into(), ..chunk(0) }),
        update_mask: mask(&["text"]),
        options: None,
    };
    fails!(client.update_chunk(change), NotFound, "NOT_FOUND");
    fails!(client.delete_document(remove("doc")), NotFound, "NOT_FOUND");
    let missing = pb::DeleteDocumentRequest { allow_missing: true, ..remove("doc") };
    assert!(ok!(client.delete_document(missing)).document.is_none());

    let back = ok!(client.undelete_document(bring_back("doc"))).document.unwrap();
    // The chunk that had been deleted by itself stays so.
    assert_eq!((back.total_chunks, back.meta.unwrap().delete_time), (2, None));
    ok!(client.get_analysis(analysis("an-2")));
    ok!(client.get_chunk(piece("ch-2")));
    fails!(client.get_chunk(piece("ch-1")), NotFound, "NOT_FOUND");
    // Numbers go on where they were.
    let next = ok!(client.create_analysis(analyse("an-3", "doc"))).analysis.unwrap();
    assert_eq!(next.analysis_version, 3);
    fails!(client.undelete_document(bring_back("doc")), AlreadyExists, "EXISTS");
    fails!(client.undelete_document(bring_back("no")), NotFound, "NOT_FOUND");
    world.close().await;
}

#[tokio::test]
async fn a_document_does_not_come_back_without_its_children() {
    let world = World::new().await;
    let mut client = world.anonymous().documents();
    for id in ["doc", "other"] {
        ok!(client.create_document(file(id)));
    }
    let named = || [pb::Chunk { id: "ch".into(), ..chunk(0) }];
    ok!(client.batch_create_chunks(chunks("doc", named())));
    ok!(client.delete_document(remove("doc")));
    ok!(client.batch_create_chunks(chunks("other", named())));
    let before = head(&world.anonymous()).await;
    fails!(client.undelete_document(bring_back("doc")), AlreadyExists, "EXISTS");
    assert_eq!(head(&world.anonymous()).await, before);
    fails!(client.get_document(get("doc")), NotFound, "NOT_FOUND");
    // A new document under the id is another one, without the old one's chunks and numbers.
    ok!(client.create_document(file("doc")));
    let first = ok!(client.create_analysis(analyse("", "doc"))).analysis.unwrap();
    assert_eq!(first.analysis_version, 1);
    let of = pb::ListChunksRequest { document_id: "doc".into(), ..Default::default() };
    assert_eq!(ok!(client.list_chunks(of)).chunks, []);
    world.close().await;
}

/// C4, C35: another tenant has no such document, nor anything of it.
#[tokio::test]
async fn another_tenant_sees_nothing() {
    let world = World::new().await;
    world.tenant("acme").await;
    let mut mine = world.anonymous().documents();
    let mut theirs = world.as_tenant("acme").documents();
    ok!(mine.create_document(create("doc", full())));
    ok!(mine.create_analysis(analyse("an", "doc")));
    ok!(mine.batch_create_chunks(chunks("doc", [pb::Chunk { id: "ch".into(), ..chunk(0) }])));
    fails!(theirs.get_document(get("doc")), NotFound, "NOT_FOUND");
    fails!(theirs.create_analysis(analyse("", "doc")), NotFound, "NOT_FOUND");
    fails!(theirs.batch_create_chunks(chunks("doc", [chunk(1)])), NotFound, "NOT_FOUND");
    let chunk = pb::DeleteChunkRequest { chunk_id: "ch".into(), ..Default::default() };
    fails!(theirs.delete_chunk(chunk), NotFound, "NOT_FOUND");
    let latest = pb::GetLatestAnalysisRequest { document_id: "doc".into(), ..Default::default() };
    fails!(theirs.get_latest_analysis(latest), NotFound, "NOT_FOUND");
    assert_eq!(ok!(theirs.find_documents_by_hash(by_hash(HASH))).documents, []);
    // Under the same ids, they have their own.
    ok!(theirs.create_document(file("doc")));
    ok!(theirs.create_analysis(analyse("an", "doc")));
    world.close().await;
}
