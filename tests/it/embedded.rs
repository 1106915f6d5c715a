//! The embedded default: a private PostgreSQL that starts, survives, refuses and explains itself.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::process::{PATIENCE, Served, kill};
use casebook::embedded::{Embedded, EmbeddedError, Options};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

fn options(data_dir: &Path) -> Options {
    Options {
        data_dir: data_dir.to_owned(),
        bin_dir: std::env::var_os("CASEBOOK_POSTGRES_BIN").map(Into::into),
        search: crate::world::postgres_search(),
        // What these tests ask survives without a disk write each time.
        settings: vec![("fsync".into(), "off".into()), ("shared_buffers".into(), "16MB".into())],
        start_timeout: PATIENCE,
    }
}

/// A folder that nobody else can enter.
fn closed() -> TempDir {
    folder(0o700)
}

/// A folder that everybody can enter.
fn open() -> TempDir {
    folder(0o755)
}

fn folder(mode: u32) -> TempDir {
    let dir = TempDir::new().expect("a folder");
    fs::set_permissions(dir.path(), Permissions::from_mode(mode)).expect("chmod");
    dir
}

async fn start(data_dir: &Path) -> Embedded {
    Embedded::start(options(data_dir)).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn refusal(options: Options) -> String {
    match Embedded::start(options).await {
        Ok(_) => panic!("it started"),
        Err(error) => error.to_string(),
    }
}

async fn connect(embedded: &Embedded) -> Client {
    let (client, connection) = embedded.config().connect(NoTls).await.expect("a connection");
    tokio::spawn(connection);
    client
}

async fn write(embedded: &Embedded, text: &str) {
    let client = connect(embedded).await;
    client.batch_execute("CREATE TABLE IF NOT EXISTS kept (text text)").await.expect("a table");
    client.execute("INSERT INTO kept VALUES ($1)", &[&text]).await.expect("a row");
}

async fn read(embedded: &Embedded) -> Vec<String> {
    let rows = connect(embedded).await.query("SELECT text FROM kept ORDER BY text", &[]).await;
    rows.expect("rows").into_iter().map(|row| row.get(0)).collect()
}

fn alive(pid: u32) -> bool {
    // A zombie is waiting for its parent only.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The pid of the server on a data folder once it answers.
fn ready(data_dir: &Path) -> Option<u32> {
    let text = fs::read_to_string(data_dir.join("postgres/postmaster.pid")).ok()?;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    (lines.get(7) == Some(&"ready")).then(|| lines[0].parse().expect("a pid"))
}

fn is_root() -> bool {
    fs::metadata("/proc/self").expect("/proc").uid() == 0
}

#[tokio::test]
async fn a_restart_keeps_data() {
    let dir = open();
    let data = dir.path().join("made/on/the/way");
    let embedded = start(&data).await;
    write(&embedded, "kept").await;
    let client = connect(&embedded).await;
    client.batch_execute("CREATE EXTENSION vector").await.expect("pgvector");
    let row =
        client.query_one("SELECT current_database(), lower('Ä'), inet_server_addr() IS NULL", &[]);
    let row = row.await.expect("a row");
    assert_eq!(row.get::<_, String>(0), "casebook");
    assert_eq!(row.get::<_, String>(1), "ä");
    assert!(row.get::<_, bool>(2), "over the socket");
    for (name, value) in
        [("data_checksums", "on"), ("listen_addresses", ""), ("server_encoding", "UTF8")]
    {
        let row = client.query_one("SELECT current_setting($1)", &[&name]).await.expect("a row");
        assert_eq!(row.get::<_, String>(0), value, "{name}");
    }
    let version =
        client.query_one("SHOW server_version", &[]).await.expect("a row").get::<_, String>(0);
    assert!(version.starts_with(embedded.version()));
    assert!(embedded.bin_dir().join("postgres").exists());
    let pid = embedded.pid();
    assert!(alive(pid));
    embedded.stop().await.expect("a clean stop");
    assert!(!alive(pid));
    let embedded = start(&data).await;
    assert_eq!(read(&embedded).await, ["kept"]);
    embedded.stop().await.expect("a clean stop");
}

#[tokio::test]
async fn a_folder_in_use_is_refused() {
    let dir = open();
    let data = dir.path().join("data");
    let embedded = start(&data).await;
    let sentence = refusal(options(&data)).await;
    let pid = std::process::id();
    assert!(sentence.contains(&format!("is in use by another Casebook (pid {pid})")), "{sentence}");
    write(&embedded, "unharmed").await;
    embedded.stop().await.expect("a clean stop");
}

#[tokio::test]
async fn a_killed_holder_leaves_nothing() {
    let dir = open();
    killed(&dir.path().join("data")).await;
    let dir = closed();
    killed(&dir.path().join("data")).await;
}

/// Kills a program that serves on a data folder, twice: once watching its PostgreSQL go, once
/// starting over it.
async fn killed(data: &Path) {
    for wait in [true, false] {
        let mut server = Served::on_folder(data, &[]);
        server.address().await;
        let pid = ready(data).expect("a pid");
        server.kill();
        if wait {
            wait_until("PostgreSQL follows its holder", || !alive(pid)).await;
        }
        let embedded = start(data).await;
        assert!(!alive(pid));
        write(&embedded, if wait { "first" } else { "second" }).await;
        embedded.stop().await.expect("a clean stop");
    }
    let embedded = start(data).await;
    assert_eq!(read(&embedded).await, ["first", "second"]);
    embedded.stop().await.expect("a clean stop");
}

#[tokio::test]
async fn dropping_it_stops_it() {
    let dir = open();
    let data = dir.path().join("data");
    let embedded = start(&data).await;
    let pid = embedded.pid();
    drop(embedded);
    wait_until("PostgreSQL stops", || !alive(pid)).await;
}

#[tokio::test]
async fn a_crashed_server_is_started_again() {
    let dir = open();
    let data = dir.path().join("data");
    let embedded = start(&data).await;
    write(&embedded, "kept").await;
    let pid = embedded.pid();
    kill(pid, "KILL");
    wait_until("PostgreSQL returns", || embedded.pid() != pid && embedded.pid() != 0).await;
    assert_eq!(read(&embedded).await, ["kept"]);
    kill(embedded.pid(), "KILL");
    wait_until("PostgreSQL is missed", || embedded.pid() == 0).await;
    embedded.stop().await.expect("a stop while it is down");
    let embedded = start(&data).await;
    assert_eq!(read(&embedded).await, ["kept"]);
    embedded.stop().await.expect("a clean stop");
}

#[tokio::test]
async fn leftovers_do_not_block_a_start() {
    let dir = open();
    let data = dir.path().join("data");
    fs::create_dir_all(data.join("postgres.new/base")).expect("a half-made cluster");
    fs::set_permissions(&data, Permissions::from_mode(0o755)).expect("chmod");
    let embedded = start(&data).await;
    write(&embedded, "kept").await;
    embedded.stop().await.expect("a clean stop");
    // A pid that is alive, but is something else by now; and one that is free.
    for pid in [std::process::id(), 4_194_303] {
        let text = format!(
            "{pid}\n{}\n1\n5432\n/nowhere\n\n  5432001    0\nready\n",
            data.join("postgres").display()
        );
        fs::write(data.join("postgres/postmaster.pid"), text).expect("a stale file");
        fs::write(data.join("postgres-socket/.s.PGSQL.5432.lock"), format!("{pid}\n"))
            .expect("a stale file");
        let embedded = start(&data).await;
        assert_eq!(read(&embedded).await, ["kept"]);
        embedded.stop().await.expect("a clean stop");
    }
}

#[tokio::test]
async fn a_broken_folder_is_explained() {
    let dir = open();
    let data = dir.path().join("data");
    start(&data).await.stop().await.expect("a clean stop");
    let cluster = data.join("postgres");
    let expect = async |words: &str| {
        let sentence = refusal(options(&data)).await;
        assert!(sentence.contains(words), "{sentence}");
        assert!(sentence.contains(data.to_str().expect("text")), "{sentence}");
        assert!(!sentence.contains('\n'), "{sentence}");
    };

    let control = cluster.join("global/pg_control");
    fs::rename(&control, data.join("aside")).expect("a break");
    expect("pg_control").await;
    fs::rename(data.join("aside"), &control).expect("a repair");

    let version = fs::read_to_string(cluster.join("PG_VERSION")).expect("PG_VERSION");
    fs::write(cluster.join("PG_VERSION"), "9\n").expect("a break");
    expect("was made by PostgreSQL 9, which no other version can open").await;
    fs::write(cluster.join("PG_VERSION"), "nonsense\n").expect("a break");
    expect("its file PG_VERSION holds no version").await;
    fs::remove_file(cluster.join("PG_VERSION")).expect("a break");
    expect("its file PG_VERSION is missing").await;
    fs::write(cluster.join("PG_VERSION"), version).expect("a repair");

    fs::rename(&cluster, data.join("aside")).expect("a break");
    fs::write(&cluster, "").expect("a break");
    expect("it is not a folder").await;
    fs::remove_file(&cluster).expect("a repair");
    fs::rename(data.join("aside"), &cluster).expect("a repair");

    fs::set_permissions(&cluster, Permissions::from_mode(0o777)).expect("a break");
    expect("has invalid permissions").await;
    fs::set_permissions(&cluster, Permissions::from_mode(0o700)).expect("a repair");
    start(&data).await.stop().await.expect("a clean stop");

    let file = dir.path().join("file");
    fs::write(&file, "").expect("a file");
    let sentence = refusal(options(&file)).await;
    assert!(sentence.contains("cannot open the data folder"), "{sentence}");
    let sentence = refusal(options(&file.join("below"))).await;
    assert!(sentence.contains("cannot make the folder"), "{sentence}");
    let sentence = refusal(options(Path::new("/proc/casebook-data"))).await;
    assert!(sentence.contains("cannot make the folder /proc/casebook-data"), "{sentence}");
}

#[tokio::test]
async fn a_bad_setting_is_explained() {
    let dir = open();
    let mut options = options(&dir.path().join("data"));
    options.settings.push(("shared_buffers".into(), "lots".into()));
    let sentence = refusal(options).await;
    assert!(
        sentence.contains(r#"invalid value for parameter "shared_buffers": "lots""#),
        "{sentence}"
    );
}

#[tokio::test]
async fn explicit_programs_are_checked() {
    let dir = open();
    let mut options = options(&dir.path().join("data"));
    options.bin_dir = Some(dir.path().to_owned());
    let sentence = refusal(options.clone()).await;
    assert!(sentence.contains("has no postgres program"), "{sentence}");
    for (version, words) in [
        ("14.2", "but Casebook needs 15 or newer"),
        ("16.1", "is PostgreSQL 16.1 without pgvector"),
    ] {
        for program in ["postgres", "initdb"] {
            let path = dir.path().join(program);
            fs::write(&path, format!("#!/bin/sh\necho 'postgres (PostgreSQL) {version} (Fake)'\n"))
                .expect("a program");
            fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("chmod");
        }
        let sentence = refusal(options.clone()).await;
        assert!(sentence.contains(words), "{sentence}");
    }
}

#[tokio::test]
async fn a_long_path_is_fine() {
    let dir = open();
    let data = dir.path().join(format!("with space, \"quote\" and {}", "length".repeat(30)));
    let embedded = start(&data).await;
    write(&embedded, "kept").await;
    embedded.stop().await.expect("a clean stop");
    let embedded = start(&data).await;
    assert_eq!(read(&embedded).await, ["kept"]);
    let config = embedded.config();
    let [tokio_postgres::config::Host::Unix(socket)] = config.get_hosts() else {
        panic!("not a socket")
    };
    let socket: PathBuf = socket.clone();
    assert_eq!(fs::metadata(&socket).expect("a folder").mode() & 0o777, 0o700);
    embedded.stop().await.expect("a clean stop");
    // Someone else may have been there first.
    fs::remove_dir_all(&socket).expect("its removal");
    std::os::unix::fs::symlink(dir.path(), &socket).expect("a trap");
    let sentence = refusal(options(&data)).await;
    fs::remove_file(&socket).expect("its removal");
    assert!(sentence.contains("is not a folder: remove it"), "{sentence}");
}

#[tokio::test]
async fn an_odd_but_short_path_is_fine() {
    let dir = open();
    let data = dir.path().join("a \"b\", 'c' $d");
    start(&data).await.stop().await.expect("a clean stop");
    assert!(data.join("postgres-socket").is_dir());
}

#[tokio::test]
async fn it_runs_for_root_and_for_everyone() {
    let own = fs::metadata("/proc/self").expect("/proc").uid();
    for (dir, dropped) in [(open(), is_root()), (closed(), false)] {
        let data = dir.path().join("data");
        for _ in 0..2 {
            let embedded = start(&data).await;
            let owner = fs::metadata(data.join("postgres")).expect("a cluster").uid();
            assert_eq!(owner != own, dropped, "owned by {owner}");
            let runner =
                fs::metadata(format!("/proc/{}", embedded.pid())).expect("a process").uid();
            assert_eq!(runner, owner);
            embedded.stop().await.expect("a clean stop");
        }
    }
}

#[tokio::test]
async fn a_folder_of_someone_else_is_explained() {
    if is_root() {
        return;
    }
    let error =
        Embedded::start(options(Path::new("/root/casebook-data"))).await.expect_err("not ours");
    assert!(matches!(error, EmbeddedError::Io { .. }), "{error}");
}
