//! Ends: the server drains, stops at once when told twice, and leaves nothing in the way of the next start.

use crate::process::{Postgres, Served, casebook};
use crate::world::{connect, create, decision, get, open_folder, reason, through, url_of};
use casebook::pb::health::HealthCheckRequest;
use casebook::pb::health::health_check_response::ServingStatus;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

/// A server on a PostgreSQL that is there.
fn serve(postgres: &Postgres, flags: &[&str]) -> Served {
    let url = url_of(&postgres.embedded.config());
    let mut all = vec!["--database-url", &url, "--migrate-on-start", "true", "--auth", "none"];
    if !flags.contains(&"--listen") {
        all.extend(["--listen", "127.0.0.1:0"]);
    }
    all.extend(["--metrics-listen", ""]);
    all.extend(flags);
    Served::start(&all)
}

async fn status(server: &Channel) -> ServingStatus {
    let answer = through(server.clone()).health().check(HealthCheckRequest::default()).await;
    answer.expect("health is answered").into_inner().status()
}

#[tokio::test]
async fn sigterm_drains_and_exits_well() {
    let postgres = Postgres::start().await;
    let mut server = serve(&postgres, &["--drain-delay-ms", "1500", "--drain-timeout-ms", "10000"]);
    let channel = server.connect().await;
    let address = server.address().await;
    assert_eq!(status(&channel).await, ServingStatus::Serving);

    // A write under way, that will take longer than the delay.
    let mut database = connect(&postgres.embedded.config()).await;
    let lock = database.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE casebook.log_head IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut client = through(channel.clone()).decisions();
    let under_way = tokio::spawn(async move {
        client.create_decision(create("under-way", decision("ALLOW", 0.5))).await
    });
    tokio::time::sleep(Duration::from_millis(300)).await;

    let began = Instant::now();
    server.signal("TERM");
    server.logged("draining: no longer ready", "message").await;
    assert_eq!(status(&channel).await, ServingStatus::NotServing, "at once");
    // Balancers look away only now: calls, even over new connections, are still taken.
    let late = Endpoint::from_shared(address.clone()).unwrap().connect().await.unwrap();
    let missing = through(late).decisions().get_decision(get("nothing")).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    assert!(began.elapsed() < Duration::from_millis(1400), "the machine is too slow for this test");
    server.logged("draining: taking no new calls", "message").await;
    assert!(began.elapsed() >= Duration::from_millis(1400));

    let place = address.trim_start_matches("http://").to_owned();
    let closed = Instant::now();
    while tokio::net::TcpStream::connect(&place).await.is_ok() {
        assert!(closed.elapsed() < Duration::from_secs(2), "the listener stays open");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!under_way.is_finished());
    lock.rollback().await.unwrap();
    let made = under_way.await.unwrap().expect("a call under way is answered").into_inner();
    assert_eq!(made.decision.unwrap().id, "under-way");
    let ended = server.ended().await;
    assert_eq!(ended.code(), Some(0), "{}", server.log());
    assert!(began.elapsed() < Duration::from_secs(11));
    // It has let go of the database.
    let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'casebook-%'";
    let left: i64 = database.query_one(count, &[]).await.unwrap().get(0);
    assert_eq!(left, 0);
    drop(database);
    postgres.stop().await;
}

#[tokio::test]
async fn a_drain_is_bounded() {
    let postgres = Postgres::start().await;
    let mut server = serve(&postgres, &["--drain-delay-ms", "0", "--drain-timeout-ms", "700"]);
    let channel = server.connect().await;
    let mut database = connect(&postgres.embedded.config()).await;
    let lock = database.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE casebook.log_head IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut client = through(channel.clone()).decisions();
    let stuck = tokio::spawn(async move {
        client.create_decision(create("stuck", decision("ALLOW", 0.5))).await
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let began = Instant::now();
    server.signal("INT");
    let ended = server.ended().await;
    assert_eq!(ended.code(), Some(0), "{}", server.log());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    stuck.await.unwrap().expect_err("it could not be answered");
    lock.rollback().await.unwrap();
    drop(database);
    postgres.stop().await;
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let postgres = Postgres::start().await;
    let mut server = serve(&postgres, &["--drain-delay-ms", "60000"]);
    let channel = server.connect().await;
    server.signal("TERM");
    server.logged("draining: no longer ready", "message").await;
    assert_eq!(status(&channel).await, ServingStatus::NotServing);
    let began = Instant::now();
    server.signal("TERM");
    let ended = server.ended().await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(ended.code(), Some(1), "{}", server.log());
    postgres.stop().await;
}

#[tokio::test]
async fn a_busy_port_is_one_sentence() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().to_string();
    // Nothing is asked of the database before the port is known to be free.
    let nowhere = "postgres://nobody@127.0.0.1:1/nothing";
    for flag in ["--listen", "--metrics-listen"] {
        let mut arguments = vec!["serve", "--database-url", nowhere, "--auth", "none"];
        let other = if flag == "--listen" { "--metrics-listen" } else { "--listen" };
        arguments.extend([flag, &port, other, "127.0.0.1:0"]);
        let output = casebook(&arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let lines: Vec<&str> = said.lines().collect();
        let [sentence] = lines.as_slice() else { panic!("more than a sentence:\n{said}") };
        assert!(sentence.starts_with("casebook: "), "{sentence}");
        assert!(sentence.contains(&port) && sentence.contains("another program"), "{sentence}");
    }
    let output = casebook(&["serve", "--database-url", nowhere, "--auth", "none"])
        .args(["--listen", "127.0.0.1:0", "--metrics-listen", ""])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "an unreachable database: {said}");
    assert!(said.lines().last().unwrap().starts_with("casebook: postgres cannot be reached"));
}

#[tokio::test]
async fn a_unix_socket_serves_and_is_taken_over_from_the_dead() {
    let postgres = Postgres::start().await;
    let folder = open_folder();
    let path = folder.path().join("casebook.sock");
    let listen = format!("unix:{}", path.display());
    for is_killed in [true, false] {
        let mut server = serve(&postgres, &["--listen", &listen, "--drain-delay-ms", "0"]);
        let channel = server.connect().await;
        let id = format!("d-{is_killed}");
        let mut client = through(channel.clone()).decisions();
        client.create_decision(create(&id, decision("ALLOW", 0.5))).await.unwrap();
        if is_killed {
            // A second server must not take the socket of one that lives.
            let mut second = serve(&postgres, &["--listen", &listen]);
            assert_eq!(second.ended().await.code(), Some(1), "{}", second.log());
            assert!(second.log().contains("listen cannot be bound"), "{}", second.log());
            client.get_decision(get(&id)).await.expect("the first is unharmed");
            server.kill();
            assert!(path.exists(), "the socket went with the killed server");
            // The kernel closes what a killed process had open when it comes to it.
            let began = Instant::now();
            while UnixStream::connect(&path).is_ok() {
                assert!(began.elapsed() < Duration::from_secs(10), "the dead answer");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        } else {
            drop((channel, client));
            server.signal("TERM");
            assert_eq!(server.ended().await.code(), Some(0), "{}", server.log());
            assert!(!path.exists(), "it cleans up behind itself");
        }
    }
    postgres.stop().await;
}

#[tokio::test]
async fn the_embedded_default_keeps_what_it_was_told() {
    let folder = open_folder();
    let data = folder.path().join("casebook-data");
    let drain = ["--drain-delay-ms", "0"];
    let mut server = Served::on_folder(&data, &drain);
    let mut client = through(server.connect().await).decisions();
    let first = client.create_decision(create("d-1", decision("ALLOW", 0.5))).await.unwrap();
    server.signal("TERM");
    assert_eq!(server.ended().await.code(), Some(0), "{}", server.log());

    let mut server = Served::on_folder(&data, &drain);
    let mut client = through(server.connect().await).decisions();
    let read = client.get_decision(get("d-1")).await.unwrap().into_inner();
    assert_eq!(read.decision, first.into_inner().decision);
    // A second server on the same folder is refused, in one sentence.
    let mut second = Served::on_folder(&data, &drain);
    assert_eq!(second.ended().await.code(), Some(1), "{}", second.log());
    assert!(second.log().contains("is in use by another Casebook"), "{}", second.log());
    client.create_decision(create("d-2", decision("ALLOW", 0.5))).await.unwrap();
    server.kill();

    let mut server = Served::on_folder(&data, &drain);
    let mut client = through(server.connect().await).decisions();
    for id in ["d-1", "d-2"] {
        client.get_decision(get(id)).await.expect("a kill loses nothing");
    }
    let taken = client.create_decision(create("d-2", decision("ALLOW", 0.5))).await.unwrap_err();
    assert_eq!(reason(&taken), "EXISTS");
    // A second signal ends the server at once, and its PostgreSQL follows.
    server.signal("INT");
    server.signal("INT");
    server.ended().await;
    let mut server = Served::on_folder(&data, &drain);
    server.connect().await;
    server.signal("TERM");
    assert_eq!(server.ended().await.code(), Some(0), "{}", server.log());
}
