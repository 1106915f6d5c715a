//! Model checkpoints: F198 to F208, and C31: one active of each framework and model, whoever asks for it when.

use crate::batching::{occupy, one_lane, queued, waiting_writes};
use crate::help::*;
use crate::world::{World, object, request, wrong_fields};
use casebook::pb;
use std::collections::BTreeMap;

fn full() -> pb::ModelCheckpoint {
    pb::ModelCheckpoint {
        model_name: "screening".into(),
        framework: "empirical".into(),
        model_version: "v1".into(),
        checkpoint_path: "s3://models/screening/v1.ckpt".into(),
        metrics: Some(object(&[("f1", "0.93")])),
        training_config: Some(object(&[("epochs", "3")])),
        digest: "a0".repeat(32),
        ..Default::default()
    }
}

fn version(model_version: &str) -> pb::ModelCheckpoint {
    pb::ModelCheckpoint { model_version: model_version.into(), ..full() }
}

fn create(id: &str, given: pb::ModelCheckpoint) -> pb::CreateModelCheckpointRequest {
    pb::CreateModelCheckpointRequest {
        model_checkpoint_id: id.into(),
        model_checkpoint: Some(given),
        options: None,
    }
}

fn get(id: &str) -> pb::GetModelCheckpointRequest {
    pb::GetModelCheckpointRequest { model_checkpoint_id: id.into(), ..Default::default() }
}

fn change(
    id: &str,
    paths: &[&str],
    given: pb::ModelCheckpoint,
) -> pb::UpdateModelCheckpointRequest {
    pb::UpdateModelCheckpointRequest {
        model_checkpoint: Some(pb::ModelCheckpoint { id: id.into(), ..given }),
        update_mask: mask(paths),
        options: None,
    }
}

fn remove(id: &str) -> pb::DeleteModelCheckpointRequest {
    pb::DeleteModelCheckpointRequest { model_checkpoint_id: id.into(), ..Default::default() }
}

fn activate(id: &str) -> pb::ActivateModelCheckpointRequest {
    pb::ActivateModelCheckpointRequest { model_checkpoint_id: id.into(), ..Default::default() }
}

fn deactivate(id: &str) -> pb::DeactivateModelCheckpointRequest {
    pb::DeactivateModelCheckpointRequest { model_checkpoint_id: id.into(), ..Default::default() }
}

fn active(text: &str) -> pb::ListModelCheckpointsRequest {
    pb::ListModelCheckpointsRequest { r#where: expression(text), ..Default::default() }
}

#[tokio::test]
async fn a_checkpoint_comes_back_as_given_and_keeps_every_version() {
    let world = World::new().await;
    let mut client = world.anonymous().models();
    // Which one is active is not for the caller to say.
    let given = pb::ModelCheckpoint { active: true, ..full() };
    let made = ok!(client.create_model_checkpoint(create("c", given)));
    let one = made.model_checkpoint.unwrap();
    let expected = pb::ModelCheckpoint {
        id: "c".into(),
        etag: one.etag.clone(),
        meta: one.meta.clone(),
        ..full()
    };
    assert_eq!(one, expected);
    let given = pb::ModelCheckpoint { checkpoint_path: "/other".into(), ..Default::default() };
    let two = ok!(client.update_model_checkpoint(change("c", &["checkpoint_path"], given)));
    let (two, receipt) = (two.model_checkpoint.unwrap(), two.receipt.unwrap());
    assert_eq!((two.checkpoint_path.as_str(), &two.digest), ("/other", &full().digest));
    let paths = ["metrics", "training_config", "digest"];
    let three =
        ok!(client.update_model_checkpoint(change("c", &paths, pb::ModelCheckpoint::default())));
    let three = three.model_checkpoint.unwrap();
    assert_eq!((&three.metrics, &three.training_config, three.digest.as_str()), (&None, &None, ""));
    for (version, expected) in [(0, &three), (1, &one), (2, &two), (3, &three)] {
        let asked = pb::GetModelCheckpointRequest { version, ..get("c") };
        let found = ok!(client.get_model_checkpoint(asked)).model_checkpoint;
        assert_eq!(found.as_ref(), Some(expected));
    }
    let requirement = pb::consistency::Requirement::AtExactSnapshot(receipt.revision.unwrap());
    let then = pb::GetModelCheckpointRequest {
        consistency: Some(pb::Consistency { requirement: Some(requirement) }),
        ..get("c")
    };
    assert_eq!(ok!(client.get_model_checkpoint(then)).model_checkpoint, Some(two));
    fails!(client.get_model_checkpoint(get("nobody")), NotFound, "NOT_FOUND");
    world.tenant("other").await;
    let mut other = world.as_tenant("other").models();
    fails!(other.get_model_checkpoint(get("c")), NotFound, "NOT_FOUND");
    fails!(other.activate_model_checkpoint(activate("c")), NotFound, "NOT_FOUND");
    assert!(ok!(other.list_model_checkpoints(active(""))).model_checkpoints.is_empty());
    // Names are unique in the tenant, not beyond it.
    ok!(other.create_model_checkpoint(create("c", full())));
    world.close().await;
}

#[tokio::test]
async fn checkpoints_that_make_no_sense_are_refused() {
    let world = World::new().await;
    let mut client = world.anonymous().models();
    let long = |n: usize| "x".repeat(n);
    for (given, field) in [
        (pb::ModelCheckpoint { model_name: "".into(), ..full() }, "model_name"),
        (pb::ModelCheckpoint { model_name: long(256), ..full() }, "model_name"),
        (pb::ModelCheckpoint { framework: long(51), ..full() }, "framework"),
        (version(""), "model_version"),
        (version(&long(51)), "model_version"),
        (pb::ModelCheckpoint { checkpoint_path: "".into(), ..full() }, "checkpoint_path"),
        (pb::ModelCheckpoint { checkpoint_path: long(4097), ..full() }, "checkpoint_path"),
        (pb::ModelCheckpoint { digest: "A0".repeat(32), ..full() }, "digest"),
        (pb::ModelCheckpoint { digest: "a0".repeat(31), ..full() }, "digest"),
    ] {
        let call = client.create_model_checkpoint(create("c", given));
        let status = fails!(call, InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), [format!("model_checkpoint.{field}")]);
    }
    let options =
        pb::WriteOptions { on_conflict: pb::OnConflict::Replace.into(), ..Default::default() };
    let replace =
        pb::CreateModelCheckpointRequest { options: Some(options.clone()), ..create("c", full()) };
    fails!(client.create_model_checkpoint(replace), InvalidArgument, "FIELD_INVALID");
    ok!(client.create_model_checkpoint(create("c", full())));
    for (paths, reason) in [
        (&["model_name"][..], "FIELD_IMMUTABLE"),
        (&["framework"], "FIELD_IMMUTABLE"),
        (&["model_version"], "FIELD_IMMUTABLE"),
        (&["active"], "FIELD_IMMUTABLE"),
        (&["nope"], "UNKNOWN_FIELD"),
        (&[], "FIELD_INVALID"),
    ] {
        let call = client.update_model_checkpoint(change("c", paths, full()));
        fails!(call, InvalidArgument, reason);
    }
    let stale = pb::ModelCheckpoint { etag: "\"0-1\"".into(), ..full() };
    let call = client.update_model_checkpoint(change("c", &["digest"], stale));
    fails!(call, Aborted, "ETAG_MISMATCH");
    let wrong = pb::ActivateModelCheckpointRequest { options: Some(options), ..activate("c") };
    fails!(client.activate_model_checkpoint(wrong), InvalidArgument, "FIELD_INVALID");
    fails!(client.activate_model_checkpoint(activate("")), InvalidArgument, "FIELD_INVALID");
    fails!(client.deactivate_model_checkpoint(deactivate(" ")), InvalidArgument, "FIELD_INVALID");
    assert_eq!(head(&world.anonymous()).await, 1);
    world.close().await;
}

#[tokio::test]
async fn a_name_and_version_stand_for_one_checkpoint() {
    let world = World::new().await;
    let mut client = world.anonymous().models();
    let first = ok!(client.create_model_checkpoint(create("c", full()))).model_checkpoint.unwrap();
    // The framework is no part of it (F207).
    let other = pb::ModelCheckpoint { framework: "logical".into(), ..full() };
    let with = |id: &str, given, how: pb::OnConflict| pb::CreateModelCheckpointRequest {
        options: Some(pb::WriteOptions { on_conflict: how.into(), ..Default::default() }),
        ..create(id, given)
    };
    for how in [pb::OnConflict::Fail, pb::OnConflict::ReturnIfEqual] {
        for id in ["d", ""] {
            let call = client.create_model_checkpoint(with(id, other.clone(), how));
            let status = fails!(call, AlreadyExists, "EXISTS");
            assert_eq!(info(&status)["fields"], "model_name,model_version");
            assert!(status.message().contains("same model_name and model_version"), "{status:?}");
        }
    }
    // The id says more than the name.
    let call = client.create_model_checkpoint(with("c", other, pb::OnConflict::ReturnIfEqual));
    assert_eq!(info(&fails!(call, AlreadyExists, "EXISTS_DIFFERENT"))["fields"], "framework");
    let call = client.create_model_checkpoint(with("c", full(), pb::OnConflict::ReturnIfEqual));
    let equal = ok!(call);
    assert_eq!(
        (equal.model_checkpoint.as_ref(), equal.receipt.unwrap().unchanged),
        (Some(&first), true)
    );
    // Equal it is also when it has become the active one since.
    ok!(client.activate_model_checkpoint(activate("c")));
    let call = client.create_model_checkpoint(with("c", full(), pb::OnConflict::ReturnIfEqual));
    assert!(ok!(call).model_checkpoint.unwrap().active);
    ok!(client.deactivate_model_checkpoint(deactivate("c")));

    ok!(client.create_model_checkpoint(create("v2", version("v2"))));
    ok!(client.delete_model_checkpoint(remove("c")));
    ok!(client.create_model_checkpoint(create("d", full())));
    // Of many at once, one.
    let calls: Vec<_> = (0..16)
        .map(|n| {
            let mut client = world.anonymous().models();
            let call = create(&format!("many-{n}"), version("v3"));
            tokio::spawn(async move { client.create_model_checkpoint(call).await })
        })
        .collect();
    let mut made = 0;
    for call in calls {
        match call.await.unwrap() {
            Ok(_) => made += 1,
            Err(status) => assert_eq!(status.code(), tonic::Code::AlreadyExists, "{status:?}"),
        }
    }
    assert_eq!(made, 1);
    world.close().await;
}

#[tokio::test]
async fn one_of_a_model_is_active() {
    let world = World::new().await;
    let mut client = world.anonymous().models();
    for n in ["1", "2"] {
        ok!(client.create_model_checkpoint(create(n, version(n))));
    }
    for (id, framework, model) in [("f", "logical", "screening"), ("m", "empirical", "other")] {
        let given = pb::ModelCheckpoint {
            framework: framework.into(),
            model_name: model.into(),
            ..version(id)
        };
        ok!(client.create_model_checkpoint(create(id, given)));
        let made = ok!(client.activate_model_checkpoint(activate(id)));
        assert!(made.model_checkpoint.unwrap().active && made.deactivated_id.is_empty());
    }
    let one = ok!(client.activate_model_checkpoint(activate("1")));
    assert_eq!(one.deactivated_id, "");
    let one = one.model_checkpoint.unwrap();
    assert!(one.active);
    assert_eq!(one.meta.as_ref().unwrap().version, 2);
    let again = ok!(client.activate_model_checkpoint(activate("1")));
    assert_eq!((again.model_checkpoint.as_ref(), again.deactivated_id.as_str()), (Some(&one), ""));
    assert!(again.receipt.unwrap().unchanged);

    let status = fails!(client.delete_model_checkpoint(remove("1")), FailedPrecondition, "IN_USE");
    assert_eq!(info(&status)["id"], "1");
    let missing = pb::DeleteModelCheckpointRequest { allow_missing: true, ..remove("nobody") };
    assert_eq!(ok!(client.delete_model_checkpoint(missing)).model_checkpoint, None);
    fails!(client.activate_model_checkpoint(activate("nobody")), NotFound, "NOT_FOUND");
    let stale = pb::ActivateModelCheckpointRequest { etag: "\"0-1\"".into(), ..activate("2") };
    fails!(client.activate_model_checkpoint(stale), Aborted, "ETAG_MISMATCH");

    // A rehearsal switches nothing.
    let options = pb::WriteOptions { validate_only: true, ..Default::default() };
    let rehearsed = pb::ActivateModelCheckpointRequest { options: Some(options), ..activate("2") };
    assert_eq!(ok!(client.activate_model_checkpoint(rehearsed)).deactivated_id, "1");
    let before = head(&world.anonymous()).await;
    let once = pb::ActivateModelCheckpointRequest { options: Some(request("r")), ..activate("2") };
    let two = ok!(client.activate_model_checkpoint(once.clone()));
    assert_eq!(two.deactivated_id, "1");
    assert_eq!(head(&world.anonymous()).await, before + 2);
    let log = entries(&world.anonymous(), 2).await;
    let told: Vec<_> = log
        .iter()
        .map(|entry| (entry.action.as_str(), entry.target.as_ref().unwrap().id.as_str()))
        .collect();
    assert_eq!(told, [("ACTIVATE", "2"), ("DEACTIVATE", "1")]);
    assert!(!ok!(client.get_model_checkpoint(get("1"))).model_checkpoint.unwrap().active);

    // What has been repeated tells the first answer, whatever has happened since.
    ok!(client.activate_model_checkpoint(activate("1")));
    let mut replayed = ok!(client.activate_model_checkpoint(once));
    assert!(std::mem::take(&mut replayed.receipt.as_mut().unwrap().replayed));
    assert_eq!(replayed, two);
    let mut ids = async |text: &str| {
        let found = ok!(client.list_model_checkpoints(active(text))).model_checkpoints;
        found.into_iter().map(|found| found.id).collect::<Vec<_>>()
    };
    assert_eq!(ids("active = true").await, ["m", "f", "1"]);
    assert_eq!(ids("active = true AND framework = empirical").await, ["m", "1"]);
    assert_eq!(ids("model_name = screening AND active = false").await, ["2"]);

    // A change of the active one leaves it active.
    let same = change("1", &["digest"], pb::ModelCheckpoint::default());
    assert!(ok!(client.update_model_checkpoint(same)).model_checkpoint.unwrap().active);
    let gone = ok!(client.deactivate_model_checkpoint(deactivate("1")));
    assert!(!gone.model_checkpoint.unwrap().active);
    let again = ok!(client.deactivate_model_checkpoint(deactivate("1")));
    assert!(again.receipt.unwrap().unchanged);
    fails!(client.deactivate_model_checkpoint(deactivate("nobody")), NotFound, "NOT_FOUND");
    let again = ok!(client.activate_model_checkpoint(activate("2")));
    assert_eq!(again.deactivated_id, "");
    let gone = ok!(client.delete_model_checkpoint(remove("1"))).model_checkpoint.unwrap();
    assert!(gone.meta.unwrap().delete_time.is_some());
    fails!(client.activate_model_checkpoint(activate("1")), NotFound, "NOT_FOUND");
    world.close().await;
}

/// Two calls about checkpoints of one model, on the way at the same time.
async fn race(lanes: &str, update_first: bool) {
    let world = one_lane(&[("write_lanes", lanes)]).await;
    let mut client = world.anonymous().models();
    for n in ["1", "2"] {
        ok!(client.create_model_checkpoint(create(n, version(n))));
    }
    ok!(client.activate_model_checkpoint(activate("1")));
    let digest = "b1".repeat(32);
    let mut database = world.superuser().await;
    let watch = world.superuser().await;
    // Of the head only the row, so that a lane which has not prepared its statements yet can do so.
    let held = database.transaction().await.unwrap();
    held.batch_execute("SELECT FROM casebook.log_head FOR UPDATE").await.unwrap();
    // One lane is held up by a call of its own; of two, each is by one of ours.
    let occupies = if lanes == "1" { Some(occupy(&world).await) } else { None };
    let (mut update, mut activation) = (None, None);
    for (n, is_update) in [update_first, !update_first].into_iter().enumerate() {
        let mut client = world.anonymous().models();
        if is_update {
            let given = pb::ModelCheckpoint { digest: digest.clone(), ..Default::default() };
            let request = change("1", &["digest"], given);
            let call = async move { client.update_model_checkpoint(request).await };
            update = Some(tokio::spawn(call));
        } else {
            let call = async move { client.activate_model_checkpoint(activate("2")).await };
            activation = Some(tokio::spawn(call));
        }
        match occupies {
            Some(_) => queued(&world, n + 1).await,
            None => waiting_writes(&watch, n as i64 + 1).await,
        }
    }
    held.rollback().await.unwrap();
    if let Some(call) = occupies {
        call.await.unwrap().unwrap();
    }
    let updated = ok!(async { update.unwrap().await.unwrap() }).model_checkpoint.unwrap();
    assert_eq!((&updated.digest, updated.active), (&digest, update_first));
    let activated = ok!(async { activation.unwrap().await.unwrap() });
    assert_eq!(activated.deactivated_id, "1");
    let [one, two] = [
        ok!(client.get_model_checkpoint(get("1"))).model_checkpoint.unwrap(),
        ok!(client.get_model_checkpoint(get("2"))).model_checkpoint.unwrap(),
    ];
    assert_eq!((&one.digest, one.active), (&digest, false));
    // Made, activated, and then these two.
    assert_eq!(one.meta.unwrap().version, 4);
    assert_eq!((&two.digest, two.active, two.meta.unwrap().version), (&full().digest, true, 2));
    let versions =
        "SELECT version, action FROM casebook.log WHERE id = '1' ORDER BY seq DESC LIMIT 2";
    let last = database.query(versions, &[]).await.unwrap();
    let last: Vec<(i64, String)> = last.iter().map(|row| (row.get(0), row.get(1))).collect();
    let mut actions = ["UPDATE", "DEACTIVATE"];
    if !update_first {
        actions.reverse();
    }
    assert_eq!(last, [(4, actions[1].to_owned()), (3, actions[0].to_owned())]);
    crate::fault::log_is_gap_free(&database).await;
    drop((database, watch));
    world.close().await;
}

#[tokio::test]
async fn an_activation_beside_an_update_loses_neither() {
    for lanes in ["1", "2"] {
        for update_first in [true, false] {
            race(lanes, update_first).await;
        }
    }
}

/// One activation that changed something: where the log has it, what is active since, and what was before.
type Switch = (i64, String, String);

/// Activates and changes checkpoints of three models at random.
async fn play(client: crate::world::As, seed: u64, rounds: usize) -> Vec<Switch> {
    let (mut dice, mut models) = (Dice::new(seed), client.models());
    let mut switches = Vec::new();
    for _ in 0..rounds {
        let id = format!("m{}-{}", dice.below(3), dice.below(5));
        if dice.below(4) == 0 {
            let digest = format!("{:064x}", dice.below(u64::MAX));
            let given = pb::ModelCheckpoint { digest, ..Default::default() };
            ok!(models.update_model_checkpoint(change(&id, &["digest"], given)));
            continue;
        }
        let done = ok!(models.activate_model_checkpoint(activate(&id)));
        let (made, receipt) = (done.model_checkpoint.unwrap(), done.receipt.unwrap());
        assert!(made.active && made.id == id);
        // There is always one that it replaces, unless it is that one.
        assert_eq!(receipt.unchanged, done.deactivated_id.is_empty());
        if !receipt.unchanged {
            switches.push((receipt.audit_seq, id, done.deactivated_id));
        }
    }
    switches
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_activates_what_exactly_one_is_active_and_the_log_tells_how() {
    let seed = Dice::seed();
    let world = World::new().await;
    let mut second = second_server(&world).await;
    let mut client = world.anonymous().models();
    for model in 0..3 {
        for n in 0..5 {
            let given = pb::ModelCheckpoint {
                model_name: format!("model-{model}"),
                model_version: n.to_string(),
                ..full()
            };
            ok!(client.create_model_checkpoint(create(&format!("m{model}-{n}"), given)));
        }
        ok!(client.activate_model_checkpoint(activate(&format!("m{model}-0"))));
    }
    let players: Vec<_> = (0..32)
        .map(|n| {
            let server = if n % 2 == 0 { &world } else { &second };
            tokio::spawn(play(server.anonymous(), seed.wrapping_add(n), 12))
        })
        .collect();
    let database = world.superuser().await;
    let actives = "SELECT count(*), count(DISTINCT model_name) FROM casebook.model_checkpoint \
                   WHERE active AND delete_time IS NULL";
    let mut looks = 0;
    while players.iter().any(|player| !player.is_finished()) {
        let row = database.query_one(actives, &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (3, 3));
        looks += 1;
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    assert!(looks > 3, "{looks}");
    let mut switches: Vec<Switch> = Vec::new();
    for player in players {
        switches.extend(player.await.unwrap());
    }
    assert!(switches.len() > 100, "{}", switches.len());
    switches.sort();
    let mut now: BTreeMap<String, String> =
        (0..3).map(|model| (format!("m{model}"), format!("m{model}-0"))).collect();
    for (seq, id, deactivated_id) in switches {
        let model = id.split_once('-').unwrap().0.to_owned();
        let before = now.insert(model, id.clone()).unwrap();
        assert_eq!(deactivated_id, before, "{seq}: {id}");
    }
    let found = ok!(client.list_model_checkpoints(active("active = true"))).model_checkpoints;
    let mut found: Vec<_> = found.into_iter().map(|found| found.id).collect();
    found.sort();
    assert_eq!(found, now.into_values().collect::<Vec<_>>());

    // No change was lost to another: versions have no gaps and none stands twice, and the rows are their last.
    crate::fault::log_is_gap_free(&database).await;
    let wrong = "SELECT count(*) FROM (SELECT l.id, count(*) AS n, count(DISTINCT l.version) AS versions, \
                 max(l.version) AS last, (array_agg(l.document ORDER BY l.seq DESC))[1] AS document FROM casebook.log l \
                 GROUP BY l.id) AS l JOIN casebook.model_checkpoint m USING (id) WHERE l.n <> l.versions \
                 OR l.last <> l.n OR m.version <> l.last \
                 OR (convert_from(l.document, 'UTF8')::jsonb ->> 'digest') <> m.digest \
                 OR (convert_from(l.document, 'UTF8')::jsonb ->> 'active')::boolean <> m.active";
    assert_eq!(database.query_one(wrong, &[]).await.unwrap().get::<_, i64>(0), 0);
    drop(database);
    second.stop().await;
    world.close().await;
}
