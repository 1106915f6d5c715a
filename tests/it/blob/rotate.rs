//! Another key wraps the keys of blobs, and no byte in the store moves.

use super::killed::{Gate, until};
use super::seal::{NEW, OLD, comes_back, marked, server};
use super::*;
use crate::process::casebook;
use futures_util::StreamExt as _;
use std::process::{Child, Stdio};

/// Rotates with these keys; whether it ended well, and what it said.
pub fn rotate(url: &str, keys: &str) -> (Option<i32>, String) {
    let arguments = ["key", "rotate", "--database-url", url, "--blob-key", keys];
    let output = casebook(&arguments).output().expect("the program runs");
    let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), said)
}

#[tokio::test]
async fn keys_are_rotated_without_touching_the_store() {
    let (world, folder) = on_disk(&[]).await;
    let url = crate::world::url_of(&crate::world::config_of(&world.database).await);
    world.tenant("acme").await;
    let given = [marked(60, 1000), marked(61, 9 * MIB), marked(62, 100)];
    let mut old = server(&world, folder.path(), &[("blob_key", OLD)]).await;
    for tenant in ["default", "acme"] {
        for given in &given {
            upload(&old.as_tenant(tenant), given).await;
        }
    }
    // Not encrypted, and so without a key; and one that is gone.
    upload(&world.anonymous(), b"plain").await;
    upload(&old.anonymous(), b"gone").await;
    let gone = pb::DeleteBlobRequest { digest: Some(digest(b"gone")), ..Default::default() };
    ok!(old.anonymous().blobs().delete_blob(gone));
    let upload_id = session::begun(&old.anonymous()).await;
    session::write(&old.anonymous(), &upload_id, 0, b"under way").await.unwrap();
    old.stop().await;
    let mut before = files(folder.path());
    before.sort();

    // Without the old key nothing is changed, and it is said which one is missing.
    let (code, said) = rotate(&url, NEW);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("6 are under the key \"old\""), "{said}");
    let (code, said) = rotate(&url, &format!("{NEW},{OLD}"));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("6 blobs are wrapped by the first key now"), "{said}");
    // An upload that is under way keeps the key that it was begun with.
    assert!(said.contains("1 parts of uploads under way are under other keys"), "{said}");
    let both = format!("{NEW},{OLD}");
    let mut last = server(&world, folder.path(), &[("blob_key", &both)]).await;
    session::complete(&last.anonymous(), &upload_id).await.unwrap();
    last.stop().await;
    let (code, said) = rotate(&url, &both);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("all blobs are under the first key"), "{said}");
    let (code, said) = rotate(&url, &format!("{NEW},{OLD}"));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("0 blobs are wrapped by the first key now"), "{said}");

    // The store has what it had, and the upload that was completed meanwhile instead of its part.
    let after = files(folder.path());
    let part = before.iter().filter(|file| !after.contains(file)).count();
    let more = after.iter().filter(|file| !before.contains(file)).count();
    assert!(part <= 1 && more == 1, "{part} gone, {more} more");

    // From here on the new key is all it takes, and the log tells of it.
    let mut new = server(&world, folder.path(), &[("blob_key", NEW)]).await;
    for tenant in ["default", "acme"] {
        let me = new.as_tenant(tenant);
        for given in &given {
            comes_back(&me, given).await;
        }
    }
    comes_back(&new.anonymous(), b"plain").await;
    let database = world.superuser().await;
    let told = "SELECT count(*) FROM casebook.log WHERE action = 'REWRAP'";
    assert_eq!(database.query_one(told, &[]).await.unwrap().get::<_, i64>(0), 6);
    drop(database);
    new.stop().await;
    world.close().await;
}

/// It is killed at any moment, and run again.
#[tokio::test]
async fn rotating_goes_on_where_it_was_killed() {
    let (world, folder) = on_disk(&[]).await;
    let url = crate::world::url_of(&crate::world::config_of(&world.database).await);
    let mut old = server(&world, folder.path(), &[("blob_key", OLD)]).await;
    let me = old.anonymous();
    for n in 0..200_u32 {
        upload(&me, &n.to_le_bytes()).await;
    }
    old.stop().await;
    let keys = format!("{NEW},{OLD}");
    let database = world.superuser().await;
    let count = "SELECT count(*) FROM casebook.blob WHERE key_id = 'new'";
    let (mut done, mut partly) = (0_i64, 0);
    for wait_ms in (0..).map(|n| n * 15) {
        let arguments = ["key", "rotate", "--database-url", &url, "--blob-key", &keys];
        let mut child = casebook(&arguments).spawn().expect("the program runs");
        tokio::time::sleep(std::time::Duration::from_millis(wait_ms)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let now: i64 = database.query_one(count, &[]).await.unwrap().get(0);
        assert!(now >= done);
        partly += u32::from(now > done && now < 200);
        done = now;
        if done == 200 {
            break;
        }
    }
    eprintln!("killed {partly} times on the way");
    let (code, said) = rotate(&url, &keys);
    assert_eq!(code, Some(0), "{said}");
    let mut new = server(&world, folder.path(), &[("blob_key", NEW)]).await;
    let me = new.anonymous();
    for n in 0..200_u32 {
        comes_back(&me, &n.to_le_bytes()).await;
    }
    drop(database);
    new.stop().await;
    world.close().await;
}

/// A rotation by both keys, under way.
fn begin(url: &str) -> Child {
    let keys = format!("{NEW},{OLD}");
    let arguments = ["key", "rotate", "--database-url", url, "--blob-key", &keys];
    casebook(&arguments).stdout(Stdio::piped()).spawn().expect("the program runs")
}

/// Uploads so many small blobs, and gives their bytes.
async fn upload_many(me: &As, count: u32) -> Vec<Vec<u8>> {
    let given: Vec<Vec<u8>> = (0..count).map(|n| n.to_le_bytes().to_vec()).collect();
    let uploads = given.iter().map(|given| upload(me, given));
    let uploads = futures_util::stream::iter(uploads).buffer_unordered(32);
    uploads.for_each(|_| std::future::ready(())).await;
    given
}

async fn all_come_back(me: &As, given: &[Vec<u8>]) {
    let digests = given.iter().map(|given| digest(given)).collect();
    let items = ok!(me.blobs().read_blobs(pb::ReadBlobsRequest { digests })).items;
    assert_eq!(items.len(), given.len());
    for (item, given) in items.iter().zip(given) {
        assert!(item.code == 0 && item.data == *given, "{}", item.message);
    }
}

/// How many blobs the new key wraps, and how often the log tells of one.
async fn rotated(database: &tokio_postgres::Client) -> (i64, i64) {
    let count = "SELECT (SELECT count(*) FROM casebook.blob WHERE key_id = 'new'), \
                 (SELECT count(*) FROM casebook.log WHERE action = 'REWRAP')";
    let row = database.query_one(count, &[]).await.unwrap();
    (row.get(0), row.get(1))
}

/// More than one page of them, and killed at each of its steps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_that_is_killed_at_any_step_leaves_every_blob_under_one_key() {
    const COUNT: u32 = 520;
    let (world, folder) = on_disk(&[]).await;
    let url = crate::world::url_of(&crate::world::config_of(&world.database).await);
    let both = format!("{OLD},{NEW}");
    let mut old = server(&world, folder.path(), &[("blob_key", &both)]).await;
    let me = old.anonymous();
    let given = upload_many(&me, COUNT).await;
    let mut before = files(folder.path());
    before.sort();
    let database = world.superuser().await;
    let mut last = 0;
    for (from_end, step) in [
        // Before the first batch is saved; and before the log tells of one that is.
        (None, ("UPDATE", "blob")),
        (None, ("INSERT", "log")),
        // Between batches of the first page, of the second, and before the last blob of all.
        (Some(300), ("UPDATE", "blob")),
        (Some(2), ("UPDATE", "blob")),
        (Some(0), ("UPDATE", "blob")),
    ] {
        // In the order in which they are taken.
        let nth =
            "SELECT id FROM casebook.blob WHERE key_id = 'old' ORDER BY uid DESC OFFSET $1 LIMIT 1";
        let condition = match from_end {
            None if step.1 == "log" => "NEW.action = 'REWRAP'".to_owned(),
            None => "NEW.key_id = 'new'".to_owned(),
            Some(n) => {
                let id: String = database.query_one(nth, &[&(n as i64)]).await.unwrap().get(0);
                format!("NEW.key_id = 'new' AND NEW.id = '{id}'")
            }
        };
        let gate = Gate::shut(world.superuser().await, (step.0, step.1, &condition)).await;
        let mut child = begin(&url);
        gate.is_reached().await;
        child.kill().unwrap();
        child.wait().unwrap();
        gate.cut().await;
        gate.open().await;
        let (done, told) = rotated(&database).await;
        assert_eq!(done, told, "{step:?} {from_end:?}");
        assert!(done >= last && done < i64::from(COUNT), "{step:?} {from_end:?}: {done}");
        last = done;
        all_come_back(&me, &given).await;
    }
    assert!(last > 500, "{last}: it did not come to the second page");
    let (code, said) = rotate(&url, &format!("{NEW},{OLD}"));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(rotated(&database).await, (i64::from(COUNT), i64::from(COUNT)));
    let mut after = files(folder.path());
    after.sort();
    assert!(before == after, "the store was touched");
    drop(database);
    old.stop().await;
    let mut new = server(&world, folder.path(), &[("blob_key", NEW)]).await;
    all_come_back(&new.anonymous(), &given).await;
    new.stop().await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_rotations_at_once_each_blob_is_done_by_one() {
    const COUNT: u32 = 200;
    let (world, folder) = on_disk(&[]).await;
    let url = crate::world::url_of(&crate::world::config_of(&world.database).await);
    let mut old = server(&world, folder.path(), &[("blob_key", OLD)]).await;
    let given = upload_many(&old.anonymous(), COUNT).await;
    old.stop().await;
    let database = world.superuser().await;
    let step = ("UPDATE", "blob", "NEW.key_id = 'new'");
    let gate = Gate::shut(world.superuser().await, step).await;
    // Both have read the same page, and neither gets further: the other waits for a row that the first one holds, or at the
    // gate, too, if it came to another row first.
    let children = [begin(&url), begin(&url)];
    let waits = "SELECT count(DISTINCT l.pid) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid) \
                 WHERE NOT l.granted AND a.datname = current_database()";
    gate.is_reached().await;
    until("both wait", async || database.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) > 1)
        .await;
    gate.open().await;
    let mut shares = Vec::new();
    for child in children {
        let ended = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap());
        let ended = ended.await.unwrap();
        let said = String::from_utf8(ended.stdout).unwrap();
        assert_eq!(ended.status.code(), Some(0), "{said}");
        assert!(said.contains("all blobs are under the first key"), "{said}");
        shares.push(said.split(' ').next().unwrap().parse::<i64>().unwrap());
    }
    eprintln!("{shares:?} of {COUNT}");
    assert_eq!(shares.iter().sum::<i64>(), i64::from(COUNT), "{shares:?}");
    assert_eq!(rotated(&database).await, (i64::from(COUNT), i64::from(COUNT)));
    crate::fault::log_is_gap_free(&database).await;
    drop(database);
    let mut new = server(&world, folder.path(), &[("blob_key", NEW)]).await;
    all_come_back(&new.anonymous(), &given).await;
    new.stop().await;
    world.close().await;
}
