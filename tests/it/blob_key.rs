//! The keys of blobs as an operator makes and keeps them.

use crate::process::casebook;
use crate::world::World;
use casebook::Error;
use casebook::config::Config;
use casebook::server::blob_keys;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// What `casebook key generate` prints.
fn generate() -> String {
    let output = casebook(&["key", "generate"]).output().expect("the program runs");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

fn with(name: &str, text: &str) -> Config {
    Config::load(None, Vec::new(), [(name.to_owned(), text.to_owned())])
        .unwrap_or_else(|error| panic!("{error}"))
}

async fn current(config: &Config) -> String {
    let keys = blob_keys(config).expect("keys that can be read").expect("keys that are set");
    keys.current_key_id().await.expect("a current key")
}

#[tokio::test]
async fn generated_keys_are_what_a_server_reads() {
    let (old, new) = (generate(), generate());
    let id = |line: &str| line.split_once(':').expect("an id and a key").0.to_owned();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    let write = |text: &str| {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    };
    let named = path.to_str().unwrap();
    write(&old);
    assert_eq!(current(&with("blob_key_file", named)).await, id(&old));
    // A line that is added changes nothing yet; at the top it does.
    write(&format!("{old}{new}"));
    assert_eq!(current(&with("blob_key_file", named)).await, id(&old));
    write(&format!("{new}{old}"));
    assert_eq!(current(&with("blob_key_file", named)).await, id(&new));
    assert_eq!(current(&with("blob_key", &format!("{},{}", new.trim(), old))).await, id(&new));
    assert!(blob_keys(&with("batch_max", "7")).unwrap().is_none(), "nothing is encrypted unasked");

    let world = World::with(&[("blob_key_file", named)]).await;
    world.close().await;
}

#[tokio::test]
async fn keys_that_others_can_read_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    let line = generate();
    std::fs::write(&path, &line).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let refused = |path: &Path| {
        let error = blob_keys(&with("blob_key_file", path.to_str().unwrap())).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
        error.to_string()
    };
    let said = refused(&path);
    assert!(said.starts_with("blob_key_file names the file") && said.contains("644"), "{said}");
    assert!(refused(&folder.path().join("gone")).contains("No such file"));
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&path, line.replace(':', " ")).unwrap();
    let said = refused(&path);
    assert!(said.contains("no colon in line 1"), "{said}");
    let key = line.split_once(':').unwrap().1.trim();
    assert!(!said.contains(key), "{said}");
}
