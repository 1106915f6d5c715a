//! Systems that use Casebook, each written twice as its users would: with grpcurl in a shell script, and with a
//! generated Python client. The scripts (tests/systems) check the answers themselves.

use crate::process::PATIENCE;
use crate::readme::folder_of;
use crate::world::{World, create, decision, through};
use casebook::pb;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::process::Command;
use tonic::transport::Endpoint;

/// Runs a script of tests/systems against a server of its own, whose store of blobs is in memory.
async fn run(script: &str) {
    run_in(World::new().await, script).await;
}

/// Runs a script of tests/systems in a world, and closes that; fails with what it printed.
async fn run_in(world: World, script: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = if script.ends_with(".sh") {
        let mut path = vec![folder_of("grpcurl")];
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let mut command = Command::new("sh");
        command.env("PATH", std::env::join_paths(path).expect("a PATH"));
        command
    } else {
        let mut path = vec![root.join(".tools/python")];
        path.extend(std::env::split_paths(&std::env::var_os("PYTHONPATH").unwrap_or_default()));
        let mut command = Command::new("python3");
        command.arg("-B").env("PYTHONPATH", std::env::join_paths(path).expect("a PYTHONPATH"));
        command
    };
    let address = world.address.strip_prefix("http://").expect("a TCP address");
    command.arg(root.join("tests/systems").join(script)).env("CASEBOOK_ADDRESS", address);
    let ended = tokio::time::timeout(PATIENCE * 2, command.kill_on_drop(true).output()).await;
    let output = ended.unwrap_or_else(|_| panic!("{script} does not end")).expect("it starts");
    assert!(
        output.status.success(),
        "{script} failed ({}):\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    world.close().await;
}

#[tokio::test]
async fn a_judge_uses_it_with_grpcurl() {
    run("judge.sh").await;
}

#[tokio::test]
async fn a_judge_uses_it_with_python() {
    run("judge.py").await;
}

#[tokio::test]
async fn a_verifier_uses_it_with_grpcurl() {
    run("verifier.sh").await;
}

#[tokio::test]
async fn a_verifier_uses_it_with_python() {
    run("verifier.py").await;
}

#[tokio::test]
async fn a_collector_uses_it_with_grpcurl() {
    run("collector.sh").await;
}

#[tokio::test]
async fn a_collector_uses_it_with_python() {
    run("collector.py").await;
}

#[tokio::test]
async fn a_factory_uses_it_with_grpcurl() {
    run("factory.sh").await;
}

#[tokio::test]
async fn a_factory_uses_it_with_python() {
    run("factory.py").await;
}

#[tokio::test]
async fn vectors_are_used_with_grpcurl() {
    run("vectors.sh").await;
}

#[tokio::test]
async fn vectors_are_used_with_python() {
    run("vectors.py").await;
}

#[tokio::test]
async fn evidence_is_kept_with_grpcurl() {
    run("evidence.sh").await;
}

#[tokio::test]
async fn evidence_is_kept_with_python() {
    run("evidence.py").await;
}

#[tokio::test]
async fn objects_are_kept_with_grpcurl() {
    run("objects.sh").await;
}

#[tokio::test]
async fn objects_are_kept_with_python() {
    run("objects.py").await;
}

/// With S3 as the store. moto takes any URL that is signed; Ceph, by `make test-s3`, looks at the signatures.
mod s3 {
    use super::*;
    use crate::blob::s3::on_s3;
    use crate::s3::server;

    async fn run(script: &str) {
        let Some(server) = server().await else { return };
        let (world, _bucket) = on_s3(server, &[]).await;
        run_in(world, script).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn signed_urls_are_used_with_curl() {
        // As with S3 itself, only who says so goes without.
        if std::env::var("CASEBOOK_TEST_CURL").is_ok_and(|value| value == "none") {
            eprintln!("left out, because CASEBOOK_TEST_CURL is none");
            return;
        }
        run("signed.sh").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn signed_urls_are_used_with_python() {
        run("signed.py").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn evidence_is_kept_on_s3() {
        run("evidence.sh").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn objects_are_kept_on_s3() {
        run("objects.sh").await;
    }
}

/// F535: 50 queries over 20 workers, with at most 5 + 10 connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_workers_than_connections_all_get_answers() {
    let world = World::with(&[("pool_max_size", "15")]).await;
    for n in 0..10 {
        ok!(world.decisions().create_decision(create(&format!("d-{n}"), decision("ALLOW", 0.9))));
    }
    let asked = Arc::new(AtomicUsize::new(0));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..20 {
        // A connection of each worker's own, as separate programs have.
        let channel = Endpoint::from_shared(world.address.clone()).unwrap().connect().await;
        let (caller, asked) = (through(channel.expect("a connection")), Arc::clone(&asked));
        workers.spawn(async move {
            let mut answered = 0;
            while asked.fetch_add(1, Ordering::Relaxed) < 50 {
                let listed =
                    ok!(caller.decisions().list_decisions(pb::ListDecisionsRequest::default()));
                assert_eq!(listed.decisions.len(), 10);
                answered += 1;
            }
            answered
        });
    }
    assert_eq!(workers.join_all().await.into_iter().sum::<usize>(), 50);
    world.close().await;
}
