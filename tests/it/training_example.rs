//! Training examples: F185 to F197, and batches of which each example is in one, whoever takes them.

use crate::batching::{hold, occupy, one_lane, queued};
use crate::help::*;
use crate::world::{As, World, object, request, wrong_fields};
use casebook::pb;
use std::collections::{BTreeMap, BTreeSet};

fn full() -> pb::TrainingExample {
    pb::TrainingExample {
        framework: "empirical".into(),
        claim_id: "claim-1".into(),
        claim_text: "Water boils at 100 degrees.".into(),
        evidence: Some(object(&[("source", "a book")])),
        validity: true,
        confidence: Some(0.75),
        metadata: Some(object(&[("split", "train")])),
        ..Default::default()
    }
}

fn create(id: &str, given: pb::TrainingExample) -> pb::CreateTrainingExampleRequest {
    pb::CreateTrainingExampleRequest {
        training_example_id: id.into(),
        training_example: Some(given),
        options: None,
    }
}

fn batch(
    requests: Vec<pb::CreateTrainingExampleRequest>,
) -> pb::BatchCreateTrainingExamplesRequest {
    pb::BatchCreateTrainingExamplesRequest { requests, options: None }
}

fn get(id: &str) -> pb::GetTrainingExampleRequest {
    pb::GetTrainingExampleRequest { training_example_id: id.into(), ..Default::default() }
}

fn remove(id: &str) -> pb::DeleteTrainingExampleRequest {
    pb::DeleteTrainingExampleRequest { training_example_id: id.into(), ..Default::default() }
}

fn claim(batch: &str, max_examples: i32) -> pb::ClaimTrainingBatchRequest {
    pb::ClaimTrainingBatchRequest {
        framework: "empirical".into(),
        training_batch_id: batch.into(),
        max_examples,
        ..Default::default()
    }
}

fn of_batch(batch: &str) -> pb::ListTrainingExamplesRequest {
    pb::ListTrainingExamplesRequest {
        training_batch_id: batch.into(),
        page: Some(pb::PageRequest {
            order_by: "create_time, id".into(),
            page_size: 1000,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn ids(examples: &[pb::TrainingExample]) -> Vec<&str> {
    examples.iter().map(|example| example.id.as_str()).collect()
}

#[tokio::test]
async fn an_example_comes_back_as_given_alone_or_in_a_batch() {
    let world = World::new().await;
    let mut client = world.anonymous().models();
    let given =
        pb::TrainingExample { used_in_training: true, training_batch_id: "mine".into(), ..full() };
    let made = ok!(client.create_training_example(create("e", given)));
    let one = made.training_example.unwrap();
    let expected = pb::TrainingExample {
        id: "e".into(),
        etag: one.etag.clone(),
        meta: one.meta.clone(),
        ..full()
    };
    assert_eq!(one, expected);
    assert_eq!(ok!(client.get_training_example(get("e"))).training_example, Some(one));

    let many = (0..3).map(|n| create(&format!("b-{n}"), full())).collect();
    let many = ok!(client.batch_create_training_examples(batch(many))).training_examples;
    assert_eq!(ids(&many), ["b-0", "b-1", "b-2"]);
    let before = head(&world.anonymous()).await;
    let some = vec![create("free", full()), create("b-1", full())];
    fails!(client.batch_create_training_examples(batch(some)), AlreadyExists, "EXISTS");
    let twice = vec![create("x", full()), create("x", full())];
    let call = client.batch_create_training_examples(batch(twice));
    fails!(call, InvalidArgument, "DUPLICATE_IN_BATCH");
    assert_eq!(head(&world.anonymous()).await, before);
    let with = |given, how: pb::OnConflict| pb::CreateTrainingExampleRequest {
        options: Some(pb::WriteOptions { on_conflict: how.into(), ..Default::default() }),
        ..create("e", given)
    };
    let call = client.create_training_example(with(full(), pb::OnConflict::Replace));
    fails!(call, InvalidArgument, "FIELD_INVALID");
    ok!(client.claim_training_batch(claim("t", 1)));
    // That it is used makes it no other example.
    let call = client.create_training_example(with(full(), pb::OnConflict::ReturnIfEqual));
    assert!(ok!(call).training_example.unwrap().used_in_training);
    let other = pb::TrainingExample { validity: false, ..full() };
    let call = client.create_training_example(with(other, pb::OnConflict::ReturnIfEqual));
    assert_eq!(info(&fails!(call, AlreadyExists, "EXISTS_DIFFERENT"))["fields"], "validity");

    let stale = pb::DeleteTrainingExampleRequest { etag: "\"0-1\"".into(), ..remove("b-0") };
    fails!(client.delete_training_example(stale), Aborted, "ETAG_MISMATCH");
    ok!(client.delete_training_example(remove("b-0")));
    fails!(client.get_training_example(get("b-0")), NotFound, "NOT_FOUND");
    fails!(client.delete_training_example(remove("b-0")), NotFound, "NOT_FOUND");
    let missing = pb::DeleteTrainingExampleRequest { allow_missing: true, ..remove("b-0") };
    assert_eq!(ok!(client.delete_training_example(missing)).training_example, None);
    world.tenant("other").await;
    let mut other = world.as_tenant("other").models();
    fails!(other.get_training_example(get("e")), NotFound, "NOT_FOUND");
    assert!(ok!(other.claim_training_batch(claim("t", 10))).training_examples.is_empty());
    world.close().await;
}

#[tokio::test]
async fn examples_and_claims_that_make_no_sense_are_refused() {
    let world = World::new().await;
    let mut client = world.anonymous().models();
    let long = |n: usize| "x".repeat(n);
    for (given, field) in [
        (pb::TrainingExample { framework: "".into(), ..full() }, "framework"),
        (pb::TrainingExample { framework: long(51), ..full() }, "framework"),
        (pb::TrainingExample { claim_id: "a b".into(), ..full() }, "claim_id"),
        (pb::TrainingExample { claim_text: "".into(), ..full() }, "claim_text"),
        (pb::TrainingExample { claim_text: long((1 << 20) + 1), ..full() }, "claim_text"),
        (pb::TrainingExample { confidence: Some(1.5), ..full() }, "confidence"),
        (pb::TrainingExample { confidence: Some(f64::NAN), ..full() }, "confidence"),
    ] {
        let call = client.create_training_example(create("e", given));
        let status = fails!(call, InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), [format!("training_example.{field}")]);
    }
    for (wrong, field) in [
        (claim("t", 0), "max_examples"),
        (claim("t", 1001), "max_examples"),
        (claim("", 1), "training_batch_id"),
        (claim("a b", 1), "training_batch_id"),
        (pb::ClaimTrainingBatchRequest { framework: "".into(), ..claim("t", 1) }, "framework"),
    ] {
        let status = fails!(client.claim_training_batch(wrong), InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), [field]);
    }
    let wrong =
        pb::ClaimTrainingBatchRequest { r#where: expression("claim_text = x"), ..claim("t", 1) };
    fails!(client.claim_training_batch(wrong), InvalidArgument, "FILTER_INVALID");
    world.close().await;
}

#[tokio::test]
async fn the_claim_may_come_later_unless_the_tenant_is_strict() {
    let world = World::new().await;
    let me = world.anonymous();
    ok!(me.models().create_training_example(create("e", full())));
    let database = world.superuser().await;
    let sql = "SELECT c.id FROM casebook.training_example e LEFT JOIN casebook.claim c ON c.uid = e.claim_uid";
    let found = async || database.query_one(sql, &[]).await.unwrap().get::<_, Option<String>>(0);
    assert_eq!(found().await, None);
    let claim = pb::CreateClaimRequest {
        claim_id: "claim-1".into(),
        claim: Some(pb::Claim { content: "Water boils.".into(), ..Default::default() }),
        ..Default::default()
    };
    ok!(me.claims().create_claim(claim));
    assert_eq!(found().await.as_deref(), Some("claim-1"));
    // Taking it leaves that as it is.
    ok!(me.models().claim_training_batch(self::claim("t", 1)));
    assert_eq!(found().await.as_deref(), Some("claim-1"));
    drop(database);

    world.tenant("strict").await;
    let tenant = pb::Tenant { id: "strict".into(), strict_references: true, ..Default::default() };
    let update = pb::UpdateTenantRequest {
        tenant: Some(tenant),
        update_mask: mask(&["strict_references"]),
        options: None,
    };
    ok!(world.as_tenant("system").tenants().update_tenant(update));
    let mut strict = world.as_tenant("strict").models();
    let call = strict.create_training_example(create("e", full()));
    let status = fails!(call, FailedPrecondition, "REFERENCE_MISSING");
    assert_eq!(info(&status)["id"], "claim-1");
    let free = pb::TrainingExample { claim_id: "".into(), ..full() };
    ok!(strict.create_training_example(create("e", free)));
    assert_eq!(ok!(strict.claim_training_batch(self::claim("t", 5))).training_examples.len(), 1);
    world.close().await;
}

#[tokio::test]
async fn a_batch_takes_the_oldest_that_are_unused() {
    let world = World::new().await;
    let me = world.anonymous();
    let mut client = me.models();
    for n in 0..8 {
        let framework = if n == 0 { "logical" } else { "empirical" };
        let split = if n % 2 == 0 { "test" } else { "train" };
        let given = pb::TrainingExample {
            framework: framework.into(),
            metadata: Some(object(&[("split", split)])),
            ..full()
        };
        ok!(client.create_training_example(create(&format!("e{n}"), given)));
    }
    ok!(client.delete_training_example(remove("e1")));
    let options = pb::WriteOptions { validate_only: true, ..Default::default() };
    let rehearsed = pb::ClaimTrainingBatchRequest { options: Some(options), ..claim("t", 2) };
    let rehearsed = ok!(client.claim_training_batch(rehearsed)).training_examples;
    assert_eq!(ids(&rehearsed), ["e2", "e3"]);

    let once = pb::ClaimTrainingBatchRequest { options: Some(request("r")), ..claim("t", 2) };
    let first = ok!(client.claim_training_batch(once.clone()));
    assert_eq!(ids(&first.training_examples), ["e2", "e3"]);
    for taken in &first.training_examples {
        assert!(taken.used_in_training && taken.training_batch_id == "t");
        assert_eq!(taken.meta.as_ref().unwrap().version, 2);
        let read = ok!(client.get_training_example(get(&taken.id))).training_example;
        assert_eq!(read.as_ref(), Some(taken));
        let before = pb::GetTrainingExampleRequest { version: 1, ..get(&taken.id) };
        let before = ok!(client.get_training_example(before)).training_example.unwrap();
        assert!(!before.used_in_training && before.training_batch_id.is_empty());
    }
    let log = entries(&me, 2).await;
    let told: Vec<_> = log
        .iter()
        .rev()
        .map(|entry| (entry.action.as_str(), entry.target.as_ref().unwrap().id.as_str()))
        .collect();
    assert_eq!(told, [("CLAIM", "e2"), ("CLAIM", "e3")]);

    // The same batch takes more; a filter passes over.
    let filtered = pb::ClaimTrainingBatchRequest {
        r#where: expression("metadata.split = test"),
        ..claim("t", 1)
    };
    let more = ok!(client.claim_training_batch(filtered)).training_examples;
    assert_eq!(ids(&more), ["e4"]);
    let rest = ok!(client.claim_training_batch(claim("u", 1000))).training_examples;
    assert_eq!(ids(&rest), ["e5", "e6", "e7"]);
    let before = head(&me).await;
    let none = ok!(client.claim_training_batch(claim("u", 1000)));
    assert!(none.training_examples.is_empty() && none.receipt.unwrap().unchanged);
    assert_eq!(head(&me).await, before);

    let mut replayed = ok!(client.claim_training_batch(once));
    assert!(std::mem::take(&mut replayed.receipt.as_mut().unwrap().replayed));
    assert_eq!(replayed, first);
    let other = pb::ClaimTrainingBatchRequest { options: Some(request("r")), ..claim("t", 3) };
    fails!(client.claim_training_batch(other), InvalidArgument, "REQUEST_ID_REUSED");

    for (batch, expected) in
        [("t", &["e2", "e3", "e4"][..]), ("u", &["e5", "e6", "e7"]), ("none", &[])]
    {
        let found = ok!(client.list_training_examples(of_batch(batch))).training_examples;
        assert_eq!(ids(&found), expected);
    }
    for any in ["", "-"] {
        let found = ok!(client.list_training_examples(of_batch(any))).training_examples;
        assert_eq!(found.len(), 7);
    }
    let unused = pb::ListTrainingExamplesRequest {
        r#where: expression("used_in_training = false"),
        ..of_batch("")
    };
    let found = ok!(client.list_training_examples(unused)).training_examples;
    assert_eq!(ids(&found), ["e0"]);
    // A used one can go.
    ok!(client.delete_training_example(remove("e2")));
    world.close().await;
}

#[tokio::test]
async fn a_batch_of_large_examples_is_answered_in_parts() {
    let world = World::new().await;
    // As a client has it by default: answers of at most 4 MiB.
    let mut client = pb::model_service_client::ModelServiceClient::new(world.anonymous().wire());
    for n in 0..5 {
        let claim_text = "x".repeat(if n == 4 { 1 } else { 1_000_000 });
        let given = pb::TrainingExample { claim_text, ..full() };
        ok!(client.create_training_example(create(&format!("e{n}"), given)));
    }
    // Larger than an answer should be, and yet one.
    let list = |n: usize| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue("y".repeat(n))),
    };
    let evidence = prost_types::Struct { fields: [("a".to_owned(), list(1 << 20 >> 1))].into() };
    let metadata = prost_types::Struct { fields: [("a".to_owned(), list(1_040_000))].into() };
    let given = pb::TrainingExample {
        claim_text: "x".repeat(1 << 20),
        evidence: Some(evidence.into()),
        metadata: Some(metadata.into()),
        ..full()
    };
    ok!(client.create_training_example(create("e5", given)));
    let mut seen = Vec::new();
    loop {
        let taken = ok!(client.claim_training_batch(claim("t", 1000))).training_examples;
        if taken.is_empty() {
            break;
        }
        seen.push(taken.len());
    }
    assert_eq!(seen, [3, 2, 1]);
    world.close().await;
}

#[tokio::test]
async fn one_that_is_taken_and_deleted_at_once_loses_neither() {
    let world = one_lane(&[]).await;
    let mut client = world.anonymous().models();
    for n in 0..2 {
        ok!(client.create_training_example(create(&format!("e{n}"), full())));
    }
    // Both wait, and could share a batch.
    let mut database = world.superuser().await;
    let held = hold(&mut database).await;
    let first = occupy(&world).await;
    let (mut taker, mut remover) = (client.clone(), client.clone());
    let taking = tokio::spawn(async move { taker.claim_training_batch(claim("t", 1)).await });
    queued(&world, 1).await;
    let going = tokio::spawn(async move { remover.delete_training_example(remove("e0")).await });
    queued(&world, 2).await;
    held.commit().await.unwrap();
    first.await.unwrap().unwrap();
    let taken = taking.await.unwrap().unwrap().into_inner().training_examples;
    assert_eq!(ids(&taken), ["e0"]);
    let gone = going.await.unwrap().unwrap().into_inner().training_example.unwrap();
    assert!(gone.used_in_training);
    assert_eq!(gone.meta.unwrap().version, 3);
    drop(database);
    world.close().await;
}

/// What one caller has taken: the batch of each example.
async fn take(who: As, n: u64, seed: u64) -> Vec<(String, String)> {
    let (mut dice, mut client) = (Dice::new(seed), who.models());
    let mut taken = Vec::new();
    for round in 0.. {
        let batch = format!("t{n}-{}", round % 3);
        let wanted = 1 + dice.below(9) as i32;
        let mut call = claim(&batch, wanted);
        call.options = (dice.below(2) == 0).then(|| request(&format!("r{n}-{round}")));
        if dice.below(4) == 0 {
            call.r#where = expression("validity = true");
        }
        if dice.below(8) == 0 {
            // A rehearsal holds them for a moment, and takes none.
            let options = pb::WriteOptions { validate_only: true, ..Default::default() };
            let rehearsed =
                pb::ClaimTrainingBatchRequest { options: Some(options), ..call.clone() };
            ok!(client.claim_training_batch(rehearsed));
        }
        let found = ok!(client.claim_training_batch(call.clone())).training_examples;
        assert!(found.len() <= wanted as usize);
        if call.options.is_some() && dice.below(2) == 0 {
            let again = ok!(client.claim_training_batch(call.clone()));
            assert!(again.receipt.unwrap().replayed);
            assert_eq!(again.training_examples, found);
        }
        if found.is_empty() && call.r#where.is_none() {
            return taken;
        }
        for example in found {
            assert_eq!(example.training_batch_id, batch);
            taken.push((example.id, batch.clone()));
        }
    }
    taken
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_example_is_in_exactly_one_batch_whoever_takes_it() {
    const ROWS: usize = 500;
    let seed = Dice::seed();
    let world = World::new().await;
    let mut second = second_server(&world).await;
    let mut client = world.anonymous().models();
    let example = |n: usize| {
        let given = pb::TrainingExample { validity: !n.is_multiple_of(3), ..full() };
        create(&format!("e{n}"), given)
    };
    let first = batch((0..ROWS / 2).map(example).collect());
    ok!(client.batch_create_training_examples(first));
    let takers: Vec<_> = (0..32)
        .map(|n| {
            let server = if n % 2 == 0 { &world } else { &second };
            tokio::spawn(take(server.anonymous(), n, seed.wrapping_add(n)))
        })
        .collect();
    // While they take, others come and some go.
    let mut others = second.anonymous().models();
    let mut gone = BTreeSet::new();
    for n in ROWS / 2..ROWS {
        ok!(others.create_training_example(example(n)));
        if n % 10 == 0 {
            let id = format!("e{}", n - ROWS / 2);
            let found = ok!(others.delete_training_example(remove(&id))).training_example.unwrap();
            if !found.used_in_training {
                gone.insert(id);
            }
        }
    }
    let mut taken: Vec<(String, String)> = Vec::new();
    for taker in takers {
        taken.extend(taker.await.unwrap());
    }
    let rest = take(world.anonymous(), 99, seed.wrapping_add(99)).await;
    taken.extend(rest);

    let in_batches: BTreeMap<&str, &str> =
        taken.iter().map(|(id, batch)| (id.as_str(), batch.as_str())).collect();
    assert_eq!(in_batches.len(), taken.len(), "one is in two batches");
    let all: BTreeSet<String> = (0..ROWS).map(|n| format!("e{n}")).collect();
    let found: BTreeSet<String> =
        in_batches.keys().map(|id| (*id).to_owned()).chain(gone.iter().cloned()).collect();
    assert_eq!(found, all, "some are lost");
    assert_eq!(in_batches.len() + gone.len(), ROWS);

    // And so say the table and the log, where each version stands once and in order.
    let database = world.superuser().await;
    crate::fault::log_is_gap_free(&database).await;
    let rows = database.query(
        "SELECT id, training_batch_id FROM casebook.training_example WHERE used_in_training",
        &[],
    );
    let rows = rows.await.unwrap();
    assert_eq!(rows.len(), in_batches.len());
    for row in rows {
        assert_eq!(in_batches[row.get::<_, &str>(0)], row.get::<_, &str>(1));
    }
    let wrong = "SELECT count(*) FROM (SELECT l.id, array_agg(l.version ORDER BY l.seq) AS versions, \
                 count(*) FILTER (WHERE l.action = 'CLAIM') AS claims FROM casebook.log l GROUP BY l.id) AS l \
                 JOIN casebook.training_example e USING (id) \
                 WHERE versions <> (SELECT array_agg(n::bigint) FROM generate_series(1, e.version) AS n) \
                 OR claims <> e.used_in_training::int";
    assert_eq!(database.query_one(wrong, &[]).await.unwrap().get::<_, i64>(0), 0);
    drop(database);
    second.stop().await;
    world.close().await;
}

#[tokio::test]
async fn a_transaction_records_examples_and_checkpoints_together() {
    use pb::execute_transaction_request::Operation as Item;
    use pb::execute_transaction_request::operation::Operation;
    let world = World::new().await;
    let me = world.anonymous();
    let checkpoint = |version: &str| pb::CreateModelCheckpointRequest {
        model_checkpoint_id: version.into(),
        model_checkpoint: Some(pb::ModelCheckpoint {
            model_name: "screening".into(),
            model_version: version.into(),
            checkpoint_path: "/models".into(),
            ..Default::default()
        }),
        options: None,
    };
    let gone = |id: &str| pb::DeleteModelCheckpointRequest {
        model_checkpoint_id: id.into(),
        ..Default::default()
    };
    let all = |operations: Vec<Operation>| pb::ExecuteTransactionRequest {
        operations: operations
            .into_iter()
            .map(|operation| Item { operation: Some(operation) })
            .collect(),
        options: Some(request("r")),
    };
    let made = all(vec![
        Operation::CreateModelCheckpoint(checkpoint("v1")),
        Operation::CreateModelCheckpoint(checkpoint("v2")),
        Operation::CreateTrainingExample(create("e", full())),
        Operation::DeleteModelCheckpoint(gone("v1")),
        Operation::DeleteTrainingExample(remove("e")),
    ]);
    let first = ok!(me.transactions().execute_transaction(made.clone()));
    let told: Vec<_> =
        first.results.iter().map(|left| format!("{} {}", left.id, left.version)).collect();
    assert_eq!(told, ["v1 1", "v2 1", "e 1", "v1 2", "e 2"]);
    let mut again = ok!(me.transactions().execute_transaction(made));
    assert!(std::mem::take(&mut again.receipt.as_mut().unwrap().replayed));
    assert_eq!(again, first);

    // The second is refused, and with it the first.
    ok!(me.models().activate_model_checkpoint(pb::ActivateModelCheckpointRequest {
        model_checkpoint_id: "v2".into(),
        ..Default::default()
    }));
    let refused = pb::ExecuteTransactionRequest {
        options: None,
        ..all(vec![
            Operation::CreateTrainingExample(create("f", full())),
            Operation::DeleteModelCheckpoint(gone("v2")),
        ])
    };
    let mut transactions = me.transactions();
    let status = fails!(transactions.execute_transaction(refused), FailedPrecondition, "IN_USE");
    assert!(status.message().contains("operations[1].delete_model_checkpoint"), "{status:?}");
    fails!(me.models().get_training_example(get("f")), NotFound, "NOT_FOUND");
    world.close().await;
}
