//! Migrations: up, down and up again on filled tables, in turns, all or nothing, and by the program (F544 to F551, N15).

use crate::world::{
    World, config_of, connect, create, decision, drop_database, new_database, url_of,
};
use casebook::pb;
use casebook::store::migrate::{Migrator, Step, latest};
use std::process::{Command, Output};
use tokio_postgres::Client;

async fn count(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// What there is of ours: relations, functions and types of both schemas.
async fn ours(client: &Client) -> Vec<String> {
    let sql = "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname IN ('casebook', 'wall') AND c.relkind IN ('r', 'p', 'v', 'S') \
               UNION ALL SELECT n.nspname || '.' || p.proname FROM pg_proc p JOIN pg_namespace n \
               ON n.oid = p.pronamespace WHERE n.nspname IN ('casebook', 'wall') ORDER BY 1";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

async fn has_vector(client: &Client) -> bool {
    count(client, "SELECT count(*) FROM pg_extension WHERE extname = 'vector'").await == 1
}

fn applied(steps: &[Step]) -> Vec<i32> {
    steps.iter().filter(|step| step.applied_on.is_some()).map(|step| step.version).collect()
}

/// A row in every table, as callers make them.
async fn fill(world: &World) {
    world.tenant("acme").await;
    let token = pb::CreateApiTokenRequest {
        api_token: Some(pb::ApiToken {
            roles: vec![pb::Role::Reader.into()],
            ..Default::default()
        }),
        ..Default::default()
    };
    world.anonymous().tenants().create_api_token(token).await.unwrap();
    let critic_outputs = vec![pb::CriticOutput {
        critic: "c".into(),
        verdict: "ALLOW".into(),
        confidence: 0.9,
        ..Default::default()
    }];
    let decided = pb::Decision { critic_outputs, ..decision("ALLOW", 0.9) };
    let mut decisions = world.decisions();
    decisions.create_decision(create("d1", decided)).await.unwrap();
    let overruled = pb::CreateOverrideRequest {
        decision_id: "d1".into(),
        r#override: Some(pb::Override {
            proposed_outcome: "DENY".into(),
            justification: "because it is so".into(),
            reason_category: "policy".into(),
            reviewer_id: "r".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    decisions.create_override(overruled).await.unwrap();
    let bundle = crate::evidence::bundle("b1", "d1");
    world.anonymous().evidence().create_evidence_bundle(bundle).await.unwrap();
    let rule = pb::PolicyRule { name: "n".into(), ..Default::default() };
    let rule = pb::CreatePolicyRuleRequest { policy_rule: Some(rule), ..Default::default() };
    world.anonymous().policies().create_policy_rule(rule).await.unwrap();
}

#[tokio::test]
async fn every_step_goes_down_and_up_on_filled_tables() {
    let database = new_database(true).await;
    let config = config_of(&database).await;
    let superuser = connect(&config).await;
    let mut migrator = Migrator::connect(&config).await.unwrap();
    let whole = ours(&superuser).await;
    let of_nouns = [
        "tenant",
        "api_token",
        "api_token_secret",
        "decision",
        "critic_output",
        "override",
        "evidence_bundle",
        "blob_reference",
    ];

    // From the newest down to each, and up again, each time with rows in all that is there.
    for steps in 1..=latest() as usize {
        let mut world = World::on(&database, &url_of(&config), &[]).await;
        fill(&world).await;
        world.stop().await;
        for table in of_nouns {
            let rows = count(&superuser, &format!("SELECT count(*) FROM casebook.{table}")).await;
            assert!(rows > 0, "{table}");
        }
        let mut tables = whole.len();
        for step in 1..=steps {
            let undone = migrator.down(1).await.unwrap();
            let version = latest() - step as i32 + 1;
            assert_eq!(undone.iter().map(|step| step.version).collect::<Vec<_>>(), [version]);
            let left = ours(&superuser).await.len();
            assert!(left < tables, "V{version} left everything behind");
            tables = left;
            let known = migrator.status().await.unwrap();
            assert_eq!(applied(&known), (1..version).collect::<Vec<_>>());
        }
        if steps == latest() as usize {
            // Only the record of migrations is left, and other people's extension.
            assert_eq!(ours(&superuser).await, ["casebook.refinery_schema_history"]);
            assert_eq!(
                count(&superuser, "SELECT count(*) FROM pg_namespace WHERE nspname = 'wall'").await,
                0
            );
            assert!(migrator.down(1).await.unwrap().is_empty());
        }
        assert!(has_vector(&superuser).await);
        let up = migrator.up().await.unwrap();
        let first = latest() - steps as i32 + 1;
        assert_eq!(
            up.iter().map(|step| step.version).collect::<Vec<_>>(),
            (first..=latest()).collect::<Vec<_>>()
        );
        assert_eq!(ours(&superuser).await, whole);
        assert!(has_vector(&superuser).await);
        // What a step took with it is gone; a log that remembers it would be read as the past of what comes next.
        superuser
            .batch_execute(
                "TRUNCATE casebook.log, casebook.log_head, casebook.request_ledger, casebook.tenant,
                 casebook.api_token, casebook.api_token_secret, casebook.decision, casebook.critic_output,
                 casebook.override, casebook.policy_rule, casebook.blob, casebook.blob_intent CASCADE",
            )
            .await
            .unwrap();
    }
    drop((migrator, superuser));
    drop_database(&database).await;
}

#[tokio::test]
async fn two_that_migrate_at_once_apply_each_step_once() {
    let database = new_database(false).await;
    let config = config_of(&database).await;
    let (mut one, mut other) =
        (Migrator::connect(&config).await.unwrap(), Migrator::connect(&config).await.unwrap());
    assert!(applied(&one.status().await.unwrap()).is_empty());
    let pending = one.plan().await.unwrap();
    assert_eq!(pending.len(), latest() as usize);
    assert!(pending[0].1.contains("CREATE EXTENSION IF NOT EXISTS vector"));

    let (first, second) = tokio::join!(one.up(), other.up());
    let mut both = [first.unwrap(), second.unwrap()].map(|steps| steps.len());
    both.sort_unstable();
    assert_eq!(both, [0, latest() as usize]);
    let steps = other.status().await.unwrap();
    assert_eq!(applied(&steps), (1..=latest()).collect::<Vec<_>>());
    assert!(other.plan().await.unwrap().is_empty());

    let superuser = connect(&config).await;
    assert!(has_vector(&superuser).await);
    let history = count(&superuser, "SELECT count(*) FROM casebook.refinery_schema_history").await;
    assert_eq!(history, i64::from(latest()));
    // Nothing is left held that would keep the next one waiting.
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' \
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(count(&superuser, locks).await, 0);
    drop((one, other, superuser));
    drop_database(&database).await;
}

#[tokio::test]
async fn a_step_that_fails_leaves_nothing_of_itself() {
    let database = new_database(true).await;
    let config = config_of(&database).await;
    let superuser = connect(&config).await;
    let mut migrator = Migrator::connect(&config).await.unwrap();

    // On the way down: somebody's view depends on the last table that the step drops.
    superuser
        .batch_execute("CREATE VIEW public.mine AS SELECT uid FROM casebook.tenant")
        .await
        .unwrap();
    let before = ours(&superuser).await;
    let down_to_second = latest() as usize - 2;
    migrator.down(down_to_second).await.unwrap();
    let second = ours(&superuser).await;
    assert!(second.len() < before.len());
    assert!(migrator.down(1).await.is_err());
    assert_eq!(ours(&superuser).await, second);
    assert_eq!(applied(&migrator.status().await.unwrap()), [1, 2]);

    // On the way up: the step has made one table when it meets another that is there.
    superuser.batch_execute("CREATE TABLE casebook.critic_output ()").await.unwrap();
    let second = ours(&superuser).await;
    let error = migrator.up().await.unwrap_err();
    assert!(format!("{error:?}").contains("critic_output"), "{error:?}");
    assert_eq!(ours(&superuser).await, second);
    assert_eq!(applied(&migrator.status().await.unwrap()), [1, 2]);
    // Once the obstacle is gone, the same session goes on.
    superuser.batch_execute("DROP TABLE casebook.critic_output").await.unwrap();
    assert_eq!(migrator.up().await.unwrap().len(), down_to_second);
    assert_eq!(ours(&superuser).await, before);
    drop((migrator, superuser));
    drop_database(&database).await;
}

fn casebook(url: &str, arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_casebook"))
        .args(arguments)
        .env("CASEBOOK_DATABASE_URL", url)
        // A setting of the tests, which the program does not know.
        .env_remove("CASEBOOK_TEST_DATABASE_URL")
        .env_remove("CASEBOOK_LONG_TESTS")
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[tokio::test]
async fn the_program_migrates() {
    let database = new_database(false).await;
    let config = config_of(&database).await;
    let url = url_of(&config);
    let run = async |arguments: &[&str]| {
        let (url, arguments) =
            (url.clone(), arguments.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>());
        let run = move || casebook(&url, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        tokio::task::spawn_blocking(run).await.unwrap()
    };

    let (code, out, _) = run(&["migrate", "status"]).await;
    assert_eq!((code, out.lines().count()), (1, latest() as usize), "{out}");
    assert!(out.lines().all(|line| line.ends_with("\tpending")), "{out}");
    let (code, plan, _) = run(&["migrate", "plan"]).await;
    assert_eq!(code, 0);
    assert!(plan.starts_with("-- V1__wall\n") && plan.contains("CREATE TABLE casebook.log"));

    let (code, _, err) = run(&["serve", "--listen", "127.0.0.1:0", "--metrics-listen", ""]).await;
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("run `casebook migrate up`"), "{err}");

    let (code, out, err) = run(&["migrate", "up"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("applied V1__wall\napplied V2__tenant\n"), "{out}");
    let (code, out, _) = run(&["migrate", "up"]).await;
    assert_eq!((code, out.trim()), (0, "nothing to do: the schema is current"));
    let (code, out, _) = run(&["migrate", "plan"]).await;
    assert_eq!((code, out.trim()), (0, "-- nothing to do: the schema is current"));
    let (code, out, _) = run(&["migrate", "status"]).await;
    assert_eq!(code, 0);
    assert!(!out.contains("pending"), "{out}");

    let (code, out, _) = run(&["migrate", "down"]).await;
    assert_eq!((code, out.lines().count()), (0, 1), "{out}");
    assert_eq!(run(&["migrate", "status"]).await.0, 1);
    let all = latest().to_string();
    let (code, out, _) = run(&["migrate", "down", &all]).await;
    assert_eq!((code, out.lines().last()), (0, Some("undid V1__wall")));
    let (code, out, _) = run(&["migrate", "down"]).await;
    assert_eq!((code, out.trim()), (0, "nothing to undo: no migration is applied"));

    assert_eq!(run(&["migrate", "sideways"]).await.0, 2);
    assert_eq!(run(&["migrate", "down", "0"]).await.0, 2);
    let nowhere = "postgresql://nobody@127.0.0.1:1/nothing".to_owned();
    let (code, _, err) =
        tokio::task::spawn_blocking(move || casebook(&nowhere, &["migrate", "up"])).await.unwrap();
    assert_eq!(code, 3, "{err}");
    let superuser = connect(&config).await;
    assert!(has_vector(&superuser).await);
    drop(superuser);
    drop_database(&database).await;
}
