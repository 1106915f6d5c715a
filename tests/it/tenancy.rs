//! The wall: no tenant sees, counts, repeats, collides with or errs on what belongs to another.

mod random;

use crate::world::{
    World, config_of, connect, create, create_once, decision, drop_database, get, new_database,
    object, reason, url_of,
};
use casebook::config::Config;
use casebook::pb;
use casebook::server::{Database, Server};
use random::Player;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tonic::Code;

const CALLS: usize = 320;

/// The same calls, alone in a world and beside another tenant that does the same with the same ids, have the same
/// answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_cannot_tell_whether_it_is_alone() {
    let seed = std::env::var("CASEBOOK_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| {
        use std::hash::{BuildHasher as _, RandomState};
        RandomState::new().hash_one(0) >> 1
    });
    eprintln!("CASEBOOK_TEST_SEED={seed}");

    let (alpha, beta) = tokio::join!(alone("alpha", seed), alone("beta", seed + 1));
    // One lane each, and a crowd of two more tenants, first and last by name, so that calls of different tenants share batches all the time.
    let world = World::with(&[("read_lanes", "1"), ("write_lanes", "1")]).await;
    for tenant in ["alpha", "beta", "aaa", "zzz"] {
        world.tenant(tenant).await;
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let crowd: Vec<_> = (2..10)
        .map(|n| {
            let is_over = Arc::clone(&is_over);
            let mut player =
                Player::new(world.as_tenant(if n % 2 == 0 { "aaa" } else { "zzz" }), seed + n);
            tokio::spawn(async move {
                while !is_over.load(Ordering::SeqCst) {
                    if n < 4 {
                        player.play().await;
                    } else {
                        player.read().await;
                    }
                }
            })
        })
        .collect();
    let mut first = Player::new(world.as_tenant("alpha"), seed);
    let mut second = Player::new(world.as_tenant("beta"), seed + 1);
    for n in 0..CALLS {
        // At once, so that they share batches.
        let (a, b) = tokio::join!(first.play(), second.play());
        assert_eq!(a, alpha[n], "call {n} of alpha");
        assert_eq!(b, beta[n], "call {n} of beta");
    }
    is_over.store(true, Ordering::SeqCst);
    for player in crowd {
        player.await.expect("nobody errs on the others");
    }
    // About one in seven writes anything, most of the rest being refused or read: chance does not bring it this low.
    let made = alpha.iter().chain(&beta).filter(|answer| answer.contains("audit_seq")).count();
    assert!(made > CALLS / 16, "only {made} calls wrote anything");
    world.close().await;
}

async fn alone(tenant: &str, seed: u64) -> Vec<String> {
    let world = World::new().await;
    world.tenant(tenant).await;
    let mut player = Player::new(world.as_tenant(tenant), seed);
    let mut answers = Vec::new();
    for _ in 0..CALLS {
        answers.push(player.play().await);
    }
    world.close().await;
    answers
}

#[tokio::test]
async fn tokens_of_one_tenant_are_worth_nothing_to_another() {
    let world = World::new().await;
    world.tenant("alpha").await;
    world.tenant("beta").await;
    let (alpha, beta) = (world.as_tenant("alpha"), world.as_tenant("beta"));
    let mut revision = None;
    for n in 0..3 {
        for client in [&alpha, &beta] {
            let call = create_once("r-1", &format!("d-{n}"), decision("ALLOW", 0.5));
            match client.decisions().create_decision(call).await {
                Ok(made) => {
                    let receipt = made.into_inner().receipt.unwrap();
                    assert!(!receipt.replayed, "the other tenant's request id");
                    revision = receipt.revision.or(revision);
                }
                Err(status) => {
                    assert_eq!((n > 0, reason(&status).as_str()), (true, "REQUEST_ID_REUSED"))
                }
            }
        }
        let more = create(&format!("more-{n}"), decision("ALLOW", 0.5));
        alpha.decisions().create_decision(more).await.unwrap();
    }
    // The last revision given out is beta's.
    let page = pb::PageRequest { page_size: 1, ..Default::default() };
    let mut list = pb::ListDecisionsRequest { page: Some(page), ..Default::default() };
    let first = alpha.decisions().list_decisions(list.clone()).await.unwrap().into_inner();
    list.page.as_mut().unwrap().page_token = first.page.unwrap().next_page_token;
    let refused = beta.decisions().list_decisions(list.clone()).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::InvalidArgument, "PAGE_TOKEN_MISMATCH")
    );
    alpha.decisions().list_decisions(list).await.expect("alpha's own");
    use pb::consistency::Requirement;
    let revision = revision.unwrap();
    for requirement in
        [Requirement::AtLeastAsFresh(revision.clone()), Requirement::AtExactSnapshot(revision)]
    {
        let consistency = Some(pb::Consistency { requirement: Some(requirement) });
        let read = pb::GetDecisionRequest { consistency, ..get("d-0") };
        let refused = alpha.decisions().get_decision(read.clone()).await.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::InvalidArgument, "BAD_REVISION")
        );
        beta.decisions().get_decision(read).await.expect("beta's own");
    }
    world.close().await;
}

/// Rows of another tenant that would make a careless expression raise.
#[tokio::test]
async fn odd_rows_of_one_tenant_fail_nobody_else() {
    let world = World::new().await;
    world.tenant("alpha").await;
    world.tenant("beta").await;
    let (alpha, beta) = (world.as_tenant("alpha"), world.as_tenant("beta"));
    for n in 0..50 {
        let mut odd = decision("DENY", 0.5);
        odd.metadata = Some(object(&[("k", "not a number"), ("t", "not a time")]));
        alpha.decisions().create_decision(create(&format!("odd-{n}"), odd)).await.unwrap();
    }
    let mut plain = decision("ALLOW", 0.5);
    let number = prost_types::value::Kind::NumberValue(7.0);
    let fields = [("k".to_owned(), prost_types::Value { kind: Some(number) })];
    plain.metadata = Some(prost_types::Struct { fields: fields.into() }.into());
    beta.decisions().create_decision(create("plain", plain)).await.unwrap();
    for expression in ["metadata.k > 5", "metadata.k = 7", "NOT metadata.k < 5", "metadata.k:*"] {
        let selector = pb::Selector { expression: expression.into(), ..Default::default() };
        let list = pb::ListDecisionsRequest {
            page: Some(pb::PageRequest { include_total_size: true, ..Default::default() }),
            r#where: Some(selector),
            ..Default::default()
        };
        let found = beta.decisions().list_decisions(list).await.map(|found| found.into_inner());
        let found = found.unwrap_or_else(|status| panic!("{expression}: {status:?}"));
        assert_eq!(found.decisions.len(), 1, "{expression}");
        assert_eq!(found.page.unwrap().total_size, 1, "{expression}");
    }
    world.close().await;
}

/// A session in the service's role, as the pools open theirs.
async fn as_service(world: &World) -> Client {
    let client = world.superuser().await;
    client
        .batch_execute("SET ROLE casebook_app; SET search_path = wall, pg_catalog")
        .await
        .unwrap();
    client
}

async fn names(client: &Client, query: &str) -> Vec<String> {
    let rows = client.query(query, &[]).await.unwrap();
    rows.into_iter().map(|row| row.get(0)).collect()
}

const VIEWS: &str = "SELECT viewname::text FROM pg_views WHERE schemaname = 'wall' ORDER BY 1";
const TABLES: &str = "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                      WHERE n.nspname = 'casebook' AND c.relkind IN ('r', 'p') ORDER BY 1";

async fn code_of(client: &Client, statement: &str) -> Option<SqlState> {
    client.batch_execute(statement).await.err().map(|error| error.code().unwrap().clone())
}

#[tokio::test]
async fn the_service_role_stands_behind_the_wall() {
    let world = World::new().await;
    world.tenant("alpha").await;
    for tenant in ["alpha", "default"] {
        let client = world.as_tenant(tenant);
        let mut content = decision("ALLOW", 0.5);
        content.critic_outputs.push(pb::CriticOutput {
            critic: "c".into(),
            verdict: "ALLOW".into(),
            confidence: 0.5,
            ..Default::default()
        });
        client.decisions().create_decision(create_once("r-1", "d-1", content)).await.unwrap();
    }
    let superuser = world.superuser().await;
    let service = as_service(&world).await;
    let views = names(&superuser, VIEWS).await;
    assert!(views.len() >= 9, "{views:?}");
    let readable = async |view: &str| {
        code_of(&service, &format!("SELECT FROM {view} LIMIT 0")).await.is_none()
    };

    // Without a tenant nothing is seen, whether the setting was never made, was empty, or has just ended.
    for preparation in
        ["", "SET casebook.tenant = ''", "BEGIN; SET LOCAL casebook.tenant = 'alpha'; COMMIT"]
    {
        service.batch_execute(preparation).await.unwrap();
        for view in &views {
            if readable(view).await {
                let rows =
                    service.query(&format!("SELECT FROM {view} LIMIT 1"), &[]).await.unwrap();
                assert!(rows.is_empty(), "{view} shows rows without a tenant");
            }
        }
    }
    // In a tenant, only its own rows.
    let mut seen = 0;
    for view in &views {
        let shows_tenant = "SELECT count(*) FROM information_schema.columns \
                            WHERE table_schema = 'wall' AND table_name = $1 AND column_name = 'tenant_id'";
        let count: i64 = superuser.query_one(shows_tenant, &[view]).await.unwrap().get(0);
        assert_eq!(count, 1, "{view} has a tenant");
        if !readable(view).await {
            continue;
        }
        service.batch_execute("BEGIN; SET LOCAL casebook.tenant = 'alpha'").await.unwrap();
        let others =
            format!("SELECT count(*) FILTER (WHERE tenant_id <> 'alpha'), count(*) FROM {view}");
        let row = service.query_one(&others, &[]).await.unwrap();
        assert_eq!(row.get::<_, i64>(0), 0, "{view} shows another tenant's rows");
        seen += row.get::<_, i64>(1);
        // Nor can rows be given away or taken.
        let right =
            "SELECT has_table_privilege('casebook_app', ('wall.' || $1)::regclass, 'UPDATE')";
        if superuser.query_one(right, &[view]).await.unwrap().get(0) && row.get::<_, i64>(1) > 0 {
            let give = format!("SAVEPOINT s; UPDATE {view} SET tenant_id = 'other'");
            let code = code_of(&service, &give).await;
            assert_eq!(code, Some(SqlState::WITH_CHECK_OPTION_VIOLATION), "{view} gives rows away");
        }
        service.batch_execute("ROLLBACK").await.unwrap();
    }
    assert!(seen >= 6, "alpha has rows in its views");
    let forge = "BEGIN; SET LOCAL casebook.tenant = 'alpha'; \
                 INSERT INTO log_head (tenant_id, seq) VALUES ('other', 1)";
    assert_eq!(code_of(&service, forge).await, Some(SqlState::WITH_CHECK_OPTION_VIOLATION));
    service.batch_execute("ROLLBACK").await.unwrap();
    let untold = "INSERT INTO log_head (seq) VALUES (1)";
    assert!(code_of(&service, untold).await.is_some(), "a row of no tenant");

    // What is behind the wall stays there, and nothing can be put beside it.
    for table in names(&superuser, TABLES).await {
        for statement in [
            format!("SELECT FROM casebook.{table}"),
            format!("DELETE FROM casebook.{table}"),
            format!("TRUNCATE casebook.{table}"),
        ] {
            let code = code_of(&service, &statement).await;
            assert_eq!(code, Some(SqlState::INSUFFICIENT_PRIVILEGE), "{statement}");
        }
        let rights = "SELECT has_table_privilege('casebook_app', c.oid, \
                      'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER') \
                      OR has_any_column_privilege('casebook_app', c.oid, 'SELECT, INSERT, UPDATE'), \
                      c.relrowsecurity, \
                      c.relispartition OR EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id') \
                      FROM pg_class c WHERE c.oid = ('casebook.' || $1)::regclass";
        let row = superuser.query_one(rights, &[&table]).await.unwrap();
        assert!(!row.get::<_, bool>(0), "casebook_app has rights on {table}");
        let is_ours = !["refinery_schema_history", "deployment_secret"].contains(&table.as_str());
        let is_partition = table.starts_with("log_") && table != "log_head";
        if is_ours && !is_partition {
            assert!(row.get::<_, bool>(1), "row-level security is off on {table}");
            assert!(row.get::<_, bool>(2), "{table} belongs to no tenant");
        }
    }
    for statement in [
        "CREATE TABLE wall.mine (a int)",
        "CREATE TABLE casebook.mine (a int)",
        "CREATE VIEW wall.all_of_it AS SELECT 1",
        "CREATE SCHEMA mine",
        "CREATE FUNCTION wall.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "ALTER VIEW wall.decision RENAME TO mine",
        "DROP VIEW wall.decision",
        "ALTER TABLE casebook.decision DISABLE ROW LEVEL SECURITY",
        "CALL casebook.build_wall('casebook.decision')",
        "SELECT * FROM casebook.deployment_secret",
    ] {
        let code = code_of(&service, statement).await;
        assert_eq!(code, Some(SqlState::INSUFFICIENT_PRIVILEGE), "{statement}");
    }
    // The log cannot be rewritten, not even one's own.
    for statement in ["UPDATE log SET action = 'x'", "DELETE FROM log", "DELETE FROM decision"] {
        let statement = format!("BEGIN; SET LOCAL casebook.tenant = 'alpha'; {statement}");
        let code = code_of(&service, &statement).await;
        assert_eq!(code, Some(SqlState::INSUFFICIENT_PRIVILEGE), "{statement}");
        service.batch_execute("ROLLBACK").await.unwrap();
    }
    drop((superuser, service));
    world.close().await;
}

#[tokio::test]
async fn a_role_that_could_pass_the_wall_is_refused_at_start() {
    for (hole, words) in [
        ("GRANT SELECT ON casebook.decision TO casebook_app", "has rights on tables"),
        ("GRANT TRUNCATE ON casebook.log TO casebook_app", "has rights on tables"),
        ("GRANT SELECT (id) ON casebook.decision TO casebook_app", "has rights on tables"),
        ("GRANT SELECT ON casebook.decision TO PUBLIC", "has rights on tables"),
        ("ALTER TABLE casebook.decision OWNER TO casebook_app", "owns tables"),
        ("ALTER VIEW wall.log_head OWNER TO casebook_app", "owns tables"),
        ("GRANT CREATE ON SCHEMA wall TO casebook_app", "may create objects"),
        ("GRANT CREATE ON SCHEMA casebook TO casebook_app", "may create objects"),
        (
            "CREATE OR REPLACE VIEW wall.decision AS SELECT * FROM casebook.decision; \
             SET casebook.tenant = 'x'; INSERT INTO casebook.decision SELECT 'x', 'd', gen_random_uuid(), 1, now(), \
             now(), NULL, '', '', '{}', 'ALLOW', '', NULL, NULL, '{}', '[]', '[]', '[]', 1, '', '', now(), NULL, \
             '{}', '{}', '', '', ''",
            "sees rows without a tenant",
        ),
    ] {
        let name = new_database(true).await;
        let config = config_of(&name).await;
        let superuser = connect(&config).await;
        superuser.batch_execute(hole).await.unwrap_or_else(|error| panic!("{hole}: {error:?}"));
        drop(superuser);
        let flags = [
            ("database_url", url_of(&config)),
            ("listen", "127.0.0.1:0".into()),
            ("metrics_listen", String::new()),
        ];
        let flags = flags.map(|(name, value)| (name.to_owned(), value)).to_vec();
        let settings = Config::load(None, Vec::new(), flags).unwrap();
        let database = Database::open(&settings).await.unwrap();
        let Err(error) = Server::bind(settings, &database).await else {
            panic!("it starts after {hole}");
        };
        let text = error.to_string();
        assert!(text.contains("could see past the wall") && text.contains(words), "{hole}: {text}");
        drop_database(&name).await;
    }
}
