//! Several writes as one: F29, F39, F152, F239, F453, F540, F573.

use crate::claim::{claim, consensus, create_claim, verification};
use crate::help::*;
use crate::world::{World, create, decision, request, wrong_fields};
use casebook::pb;
use pb::execute_transaction_request::Operation as Item;
use pb::execute_transaction_request::operation::Operation;

#[path = "transaction/evidence.rs"]
mod evidence;
#[path = "transaction/random.rs"]
mod random;

pub fn execute(operations: Vec<Operation>) -> pb::ExecuteTransactionRequest {
    let operations = operations.into_iter().map(|one| Item { operation: Some(one) }).collect();
    pb::ExecuteTransactionRequest { operations, options: None }
}

fn verify(claim_id: &str, framework: &str) -> Operation {
    Operation::CreateVerification(pb::CreateVerificationRequest {
        verification: Some(verification(claim_id, framework, 0.5)),
        ..Default::default()
    })
}

fn agree(claim_id: &str, decision_id: &str) -> Operation {
    let row = pb::Consensus { decision_id: decision_id.into(), ..consensus(claim_id, "majority") };
    Operation::CreateConsensus(pb::CreateConsensusRequest {
        consensus: Some(row),
        ..Default::default()
    })
}

#[tokio::test]
async fn operations_name_what_those_before_them_made() {
    let world = World::new().await;
    let who = world.anonymous();
    let operations = vec![
        Operation::CreateDecision(create("", decision("ALLOW", 0.5))),
        Operation::CreateClaim(create_claim("")),
        verify("$1.id", "empirical"),
        verify("$1.id", "logical"),
        agree("$1.id", "$0.id"),
        Operation::UpdateClaim(pb::UpdateClaimRequest {
            claim: Some(pb::Claim { id: "$1.id".into(), source: "s".into(), ..Default::default() }),
            update_mask: mask(&["source"]),
            options: None,
        }),
    ];
    let mut once = execute(operations);
    once.options = Some(request("all-at-once"));
    let made = ok!(who.transactions().execute_transaction(once.clone()));
    let kinds: Vec<_> = made.results.iter().map(|one| (one.kind(), one.version)).collect();
    use pb::ResourceKind::{Claim, Consensus, Decision, Verification};
    let expected = [
        (Decision, 1),
        (Claim, 1),
        (Verification, 1),
        (Verification, 1),
        (Consensus, 1),
        (Claim, 2),
    ];
    assert_eq!(kinds, expected);
    assert_eq!(made.receipt.as_ref().unwrap().audit_seq, 6);
    let claim_id = made.results[1].id.clone();
    let summary = pb::GetClaimSummaryRequest { claim_id: claim_id.clone(), consistency: None };
    let summary = ok!(who.claims().get_claim_summary(summary));
    assert_eq!((summary.claim.unwrap().source.as_str(), summary.verification_count), ("s", 2));
    assert_eq!(summary.consensus.unwrap().decision_id, made.results[0].id);
    let again = ok!(who.transactions().execute_transaction(once));
    assert!(again.receipt.unwrap().replayed);
    assert_eq!((again.results, head(&who).await), (made.results, 6));
    world.close().await;
}

#[tokio::test]
async fn one_refusal_takes_back_everything_and_names_its_operation() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.transactions();
    ok!(who.claims().create_claim(create_claim("taken")));
    for (last, code, reason, at) in [
        (
            Operation::CreateClaim(create_claim("taken")),
            tonic::Code::AlreadyExists,
            "EXISTS",
            "operations[2].create_claim",
        ),
        (
            Operation::DeleteClaim(pb::DeleteClaimRequest {
                claim_id: "nowhere".into(),
                ..Default::default()
            }),
            tonic::Code::NotFound,
            "NOT_FOUND",
            "operations[2].delete_claim",
        ),
    ] {
        let operations =
            vec![Operation::CreateClaim(create_claim("new")), verify("new", "empirical"), last];
        let status = client.execute_transaction(execute(operations)).await.unwrap_err();
        assert_eq!((status.code(), crate::world::reason(&status).as_str()), (code, reason));
        assert_eq!(info(&status)["at"], at, "{status:?}");
        assert!(status.message().starts_with(at), "{status:?}");
    }
    let get = pb::GetClaimRequest { claim_id: "new".into(), ..Default::default() };
    fails!(who.claims().get_claim(get), NotFound, "NOT_FOUND");
    let wrong = vec![
        Operation::CreateClaim(create_claim("a")),
        verify("$1.id", ""),
        verify("$7.id", "x"),
        verify("$0.name", "x"),
        Operation::CreateClaim(pb::CreateClaimRequest {
            claim: Some(claim("")),
            options: Some(request("mine")),
            ..Default::default()
        }),
    ];
    let status =
        fails!(client.execute_transaction(execute(wrong)), InvalidArgument, "FIELD_INVALID");
    let fields = [
        "operations[1].create_verification.verification.claim_id",
        "operations[1].create_verification.verification.framework",
        "operations[2].create_verification.verification.claim_id",
        "operations[3].create_verification.verification.claim_id",
        "operations[4].create_claim.options",
        "operations[4].create_claim.claim.content",
    ];
    assert_eq!(wrong_fields(&status), fields);
    fails!(client.execute_transaction(execute(Vec::new())), InvalidArgument, "FIELD_INVALID");
    let none =
        pb::ExecuteTransactionRequest { operations: vec![Item { operation: None }], options: None };
    let status = fails!(client.execute_transaction(none), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["operations[0]"]);
    let twice = |id: &str| {
        Operation::DeleteClaim(pb::DeleteClaimRequest { claim_id: id.into(), ..Default::default() })
    };
    let operations =
        vec![twice("taken"), Operation::CreateClaim(create_claim("taken")), twice("taken")];
    let status =
        fails!(client.execute_transaction(execute(operations)), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["operations[2].delete_claim"]);
    assert_eq!(head(&who).await, 1);
    world.close().await;
}

/// Every row of every table, as text.
async fn everything(database: &tokio_postgres::Client) -> String {
    let tables = "SELECT c.oid::regclass::text FROM pg_class AS c WHERE c.relkind IN ('r', 'p') \
                  AND c.relnamespace = 'casebook'::regnamespace AND NOT c.relispartition ORDER BY 1";
    let mut all = String::new();
    for table in database.query(tables, &[]).await.unwrap() {
        let table: String = table.get(0);
        let rows = format!("SELECT string_agg(t::text, E'\\n' ORDER BY t::text) FROM {table} AS t");
        let rows: Option<String> = database.query_one(&rows, &[]).await.unwrap().get(0);
        all.push_str(&format!("{table}\n{}\n", rows.unwrap_or_default()));
    }
    all
}

/// F573: whatever stops the last step, nothing is left of the first ones.
#[tokio::test]
async fn a_write_of_many_steps_is_rolled_back_whole() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.transactions();
    let steps = |last: Option<Operation>| {
        let mut steps = vec![
            Operation::CreateDocument(file("new")),
            Operation::BatchCreateChunks(chunks("$0.id", (0..3).map(chunk))),
            Operation::CreateAnalysis(analyse("", "new")),
            Operation::CreateDecision(create("d", decision("DENY", 0.5))),
            Operation::CreateOverride(overrule("", "d", "ALLOW")),
            Operation::CreateClaim(create_claim("")),
            verify("$5.id", "empirical"),
            agree("$5.id", "$3.id"),
            Operation::UpdateDocument(pb::UpdateDocumentRequest {
                document: Some(pb::Document { id: "there".into(), ..file("").document.unwrap() }),
                update_mask: mask(&["source_path"]),
                options: None,
            }),
            Operation::DeleteDocument(pb::DeleteDocumentRequest {
                document_id: "old".into(),
                ..Default::default()
            }),
        ];
        steps.extend(last);
        pb::ExecuteTransactionRequest { options: Some(request("once")), ..execute(steps) }
    };
    for id in ["old", "there"] {
        ok!(who.documents().create_document(file(id)));
        ok!(who.documents().batch_create_chunks(chunks(id, (0..2).map(chunk))));
    }
    let database = world.superuser().await;
    crate::batching::poison(&database, "poison", "22012").await;
    let before = everything(&database).await;
    let nowhere = pb::DeleteClaimRequest { claim_id: "nowhere".into(), ..Default::default() };
    let poisoned = pb::Decision { subject_id: "poison".into(), ..decision("DENY", 0.5) };
    for (last, code, reason) in [
        (Operation::DeleteClaim(nowhere), tonic::Code::NotFound, "NOT_FOUND"),
        (Operation::CreateDocument(file("there")), tonic::Code::AlreadyExists, "EXISTS"),
        (Operation::CreateDecision(create("e", poisoned)), tonic::Code::Internal, "INTERNAL"),
    ] {
        let status = client.execute_transaction(steps(Some(last))).await.unwrap_err();
        assert_eq!((status.code(), crate::world::reason(&status).as_str()), (code, reason));
        assert_eq!(everything(&database).await, before, "{reason} left something");
    }
    // Without the last step, the rest goes through, under the same request id.
    let made = ok!(client.execute_transaction(steps(None)));
    assert!(!made.receipt.unwrap().replayed);
    assert_ne!(everything(&database).await, before);
    drop(database);
    world.close().await;
}

/// Counts in a document that the request does not name.
fn without_chunk(id: &str) -> Operation {
    Operation::DeleteChunk(pb::DeleteChunkRequest { chunk_id: id.into(), ..Default::default() })
}

fn label(key: &str) -> pb::UpdateClaimRequest {
    let labels = labels(&[(key, "x")]);
    pb::UpdateClaimRequest {
        claim: Some(pb::Claim { id: "c".into(), labels, ..Default::default() }),
        update_mask: mask(&[&format!("labels.{key}")]),
        options: None,
    }
}

/// What a transaction writes and what others write at the same moment is all there afterwards.
#[tokio::test]
async fn a_transaction_beside_another_write_loses_nothing() {
    use crate::batching::{hold, occupy, one_lane, queued};
    for (step, first) in [(0, true), (0, false), (1, true), (1, false)] {
        let world = one_lane(&[]).await;
        let who = world.anonymous();
        ok!(who.documents().create_document(file("doc")));
        let named = |n: i32| pb::Chunk { id: format!("c{n}"), ..chunk(n) };
        ok!(who.documents().batch_create_chunks(chunks("doc", (0..3).map(named))));
        ok!(who.claims().create_claim(create_claim("c")));
        let mut database = world.superuser().await;
        let held = hold(&mut database).await;
        let occupies = occupy(&world).await;
        let mut calls = Vec::new();
        for (n, is_transaction) in [first, !first].into_iter().enumerate() {
            let who = who.clone();
            calls.push(tokio::spawn(async move {
                match (is_transaction, step) {
                    (true, _) => {
                        let steps = [Operation::UpdateClaim(label("a")), without_chunk("c1")];
                        let step = execute(vec![steps[step].clone()]);
                        ok!(who.transactions().execute_transaction(step));
                    }
                    (false, 0) => drop(ok!(who.claims().update_claim(label("b")))),
                    (false, _) => {
                        let more = chunks("doc", [pb::Chunk { id: "c5".into(), ..chunk(5) }]);
                        drop(ok!(who.documents().batch_create_chunks(more)));
                    }
                }
            }));
            queued(&world, n + 1).await;
        }
        held.rollback().await.unwrap();
        occupies.await.unwrap().unwrap();
        for call in calls {
            call.await.unwrap();
        }
        if step == 0 {
            let get = pb::GetClaimRequest { claim_id: "c".into(), ..Default::default() };
            let claim = ok!(who.claims().get_claim(get)).claim.unwrap();
            let there = ["a", "b"].map(|key| claim.labels.contains_key(key));
            assert_eq!((there, claim.meta.unwrap().version), ([true, true], 3));
        } else {
            let get = pb::GetDocumentRequest { document_id: "doc".into(), ..Default::default() };
            let document = ok!(who.documents().get_document(get)).document.unwrap();
            // Made, filled, and then these two.
            assert_eq!((document.total_chunks, document.meta.unwrap().version), (3, 4));
        }
        crate::fault::log_is_gap_free(&database).await;
        drop(database);
        world.close().await;
    }
}

/// A refused step may have neighbours that have written before they were refused, too: none of that stays, whoever
/// shares the batch.
#[tokio::test]
async fn refused_steps_leave_nothing_in_a_shared_batch() {
    use crate::batching::{hold, occupy, one_lane, queued};
    let world = one_lane(&[]).await;
    let who = world.anonymous();
    let with_verification = |id: &str| pb::CreateClaimRequest {
        verifications: vec![pb::Verification { id: "v".into(), ..verification("", "f", 0.5) }],
        ..create_claim(id)
    };
    ok!(who.claims().create_claim(with_verification("taken")));
    let mut database = world.superuser().await;
    let held = hold(&mut database).await;
    let occupies = occupy(&world).await;
    let other = who.clone();
    let other = tokio::spawn(async move {
        ok!(other.claims().create_claim(create_claim("other")));
    });
    queued(&world, 1).await;
    let refused = execute(vec![
        Operation::CreateClaim(create_claim("taken")),
        Operation::CreateClaim(with_verification("new")),
    ]);
    let mut client = who.transactions();
    let refused = tokio::spawn(async move { client.execute_transaction(refused).await });
    queued(&world, 2).await;
    held.rollback().await.unwrap();
    occupies.await.unwrap().unwrap();
    other.await.unwrap();
    let status = fails!(async { refused.await.unwrap() }, AlreadyExists, "EXISTS");
    assert_eq!(info(&status)["at"], "operations[0].create_claim");
    let ids = "SELECT string_agg(id, ' ' ORDER BY id) FROM casebook.claim";
    let ids: String = database.query_one(ids, &[]).await.unwrap().get(0);
    assert_eq!(ids, "other taken");
    crate::fault::log_is_gap_free(&database).await;
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn preconditions_and_rehearsals_cover_the_whole() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.transactions();
    let mut rehearsal =
        execute(vec![Operation::CreateClaim(create_claim("c")), verify("$0.id", "empirical")]);
    rehearsal.options = Some(pb::WriteOptions { validate_only: true, ..Default::default() });
    assert_eq!(ok!(client.execute_transaction(rehearsal.clone())).receipt, None);
    assert_eq!(head(&who).await, 0);
    let claim =
        pb::ResourceRef { kind: pb::ResourceKind::Claim.into(), id: "c".into(), version: 0 };
    let absent = pb::Precondition { check: Some(pb::precondition::Check::MustNotExist(claim)) };
    rehearsal.options =
        Some(pb::WriteOptions { preconditions: vec![absent], ..Default::default() });
    ok!(client.execute_transaction(rehearsal.clone()));
    fails!(client.execute_transaction(rehearsal), FailedPrecondition, "PRECONDITION_FAILED");
    // One on_conflict for all that create; what must not be replaced refuses it.
    let mut replacing = execute(vec![
        Operation::CreateClaim(create_claim("c")),
        Operation::CreateDecision(create("d", decision("ALLOW", 0.5))),
    ]);
    let replace = pb::OnConflict::Replace.into();
    replacing.options = Some(pb::WriteOptions { on_conflict: replace, ..Default::default() });
    let status = fails!(client.execute_transaction(replacing), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["operations[1].create_decision.options.on_conflict"]);
    world.close().await;
}
