//! Another key wraps the keys of blobs, and no byte in the store moves.

use super::seal::{NEW, OLD, comes_back, marked, server};
use super::*;
use crate::process::casebook;

/// Rotates with these keys; whether it ended well, and what it said.
fn rotate(url: &str, keys: &str) -> (Option<i32>, String) {
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
