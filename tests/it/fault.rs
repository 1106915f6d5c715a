//! Crashes, cuts, floods and waits: nothing acknowledged is lost, nothing is written twice, and every error is true.

mod cuts;
mod limits;
mod load;
pub mod proxy;
mod vectors;

use crate::process::{PATIENCE, Postgres, Served, kill, long_tests};
use crate::world::{through, url_of};
use casebook::pb;
pub use cuts::log_is_gap_free;
use load::Load;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_postgres::NoTls;
use tonic::transport::Channel;

/// A moment that differs from run to run.
async fn a_moment(from_ms: u64, to_ms: u64) {
    use std::hash::{BuildHasher as _, RandomState};
    let ms = from_ms + RandomState::new().hash_one(0) % (to_ms - from_ms);
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

async fn make_tenants(server: &Channel) {
    let mut tenants = through(server.clone()).header("x-casebook-tenant", "system").tenants();
    for id in ["north", "south"] {
        let request = pb::CreateTenantRequest { tenant_id: id.into(), ..Default::default() };
        tenants.create_tenant(request).await.expect("a new tenant");
    }
}

/// A session of the superuser, once PostgreSQL has recovered.
async fn superuser(postgres: &Postgres) -> tokio_postgres::Client {
    let began = Instant::now();
    loop {
        match postgres.embedded.config().connect(NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                return client;
            }
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn serve_on(postgres: &Postgres) -> Served {
    Served::start(&[
        "--database-url",
        &url_of(&postgres.embedded.config()),
        "--migrate-on-start",
        "true",
        "--auth",
        "none",
        "--listen",
        "127.0.0.1:0",
        "--metrics-listen",
        "",
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_nothing_and_repeats_nothing() {
    let postgres = Postgres::start().await;
    let mut server = serve_on(&postgres);
    let channel = server.connect().await;
    make_tenants(&channel).await;
    let (here, server_is_at) = watch::channel(channel);
    let load = Load::start(server_is_at, 16, 4);
    for _ in 0..if long_tests() { 60 } else { 5 } {
        load.progress(20).await;
        a_moment(1, 400).await;
        server.kill();
        server = serve_on(&postgres);
        here.send_replace(server.connect().await);
    }
    load.progress(20).await;
    load.settle(&postgres).await;
    server.kill();
    postgres.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crashed_postgresql_loses_nothing_and_repeats_nothing() {
    let postgres = Postgres::start().await;
    let mut server = serve_on(&postgres);
    let channel = server.connect().await;
    make_tenants(&channel).await;
    let (_here, server_is_at) = watch::channel(channel);
    let load = Load::start(server_is_at, 12, 8);
    for _ in 0..if long_tests() { 50 } else { 5 } {
        load.progress(20).await;
        a_moment(1, 400).await;
        // What `pg_ctl stop -m immediate` sends: every session is cut and nothing is tidied up.
        kill(postgres.postmaster().await, "QUIT");
    }
    load.progress(20).await;
    load.settle(&postgres).await;
    assert!(!server.log().contains("panicked"), "{}", server.log());
    server.kill();
    postgres.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_session_loses_nothing_and_repeats_nothing() {
    let postgres = Postgres::start().await;
    let mut server = serve_on(&postgres);
    let channel = server.connect().await;
    make_tenants(&channel).await;
    let (_here, server_is_at) = watch::channel(channel);
    let load = Load::start(server_is_at, 12, 8);
    let rounds = if long_tests() { 120 } else { 16 };
    let mut killed = 0;
    for n in 0..rounds {
        load.progress(10).await;
        a_moment(1, 50).await;
        let database = superuser(&postgres).await;
        let end = "SELECT pid FROM pg_stat_activity \
                   WHERE application_name = 'casebook-write' ORDER BY random() LIMIT 1";
        // The session that asks may itself still be a victim of the time before.
        let Ok(Some(row)) = database.query_opt(end, &[]).await else { continue };
        let pid: i32 = row.get(0);
        if n % 4 == 3 {
            // One session that dies badly takes all others with it, and PostgreSQL recovers from its log.
            kill(pid as u32, "KILL");
        } else {
            let _ = database.execute("SELECT pg_terminate_backend($1)", &[&pid]).await;
        }
        killed += 1;
    }
    assert!(killed >= rounds / 2, "only {killed} of {rounds} sessions were killed");
    load.progress(20).await;
    load.settle(&postgres).await;
    assert!(!server.log().contains("panicked"), "{}", server.log());
    server.kill();
    postgres.stop().await;
}

/// One page of the operator's listener, head and body.
pub async fn page(address: std::net::SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("the pages are served");
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    page
}
