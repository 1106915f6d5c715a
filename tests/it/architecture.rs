//! The rules that the code is laid out by (ARCHITECTURE.md), as checks of its text.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// One file of the project.
struct Source {
    /// From the project's folder: `src/store/log.rs`.
    path: String,
    /// All of it.
    text: String,
    /// Without comments and without its unit tests, each line with its number.
    code: Vec<(usize, String)>,
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
    found.sort();
}

fn sources(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    files(&root.join(folder), &mut found);
    let rust = found.into_iter().filter(|path| path.extension().is_some_and(|e| e == "rs"));
    let read = rust.map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        let path = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        // A unit test module is the last thing in its file.
        let tested = if is_test(&path) { "" } else { text.split("\n#[cfg(test)]").next().unwrap() };
        let code = tested.lines().enumerate();
        let code = code.filter(|(_, line)| !line.trim_start().starts_with("//"));
        let code = code.map(|(n, line)| (n + 1, line.to_owned())).collect();
        Source { path, text, code }
    });
    read.collect()
}

fn is_test(path: &str) -> bool {
    path.ends_with("tests.rs") || path.contains("/tests/")
}

/// The lines of code under these paths that hold one of the words, but for the allowed places.
fn lines_with(under: &[&str], words: &[&str], allowed: &[&str]) -> Vec<String> {
    let all = sources("src");
    for path in allowed.iter().chain(under) {
        assert!(all.iter().any(|source| source.path.starts_with(path)), "there is no {path}");
    }
    let mut found = Vec::new();
    for source in &all {
        let within = |paths: &[&str]| paths.iter().any(|path| source.path.starts_with(path));
        if !within(under) || within(allowed) {
            continue;
        }
        for (n, line) in &source.code {
            if words.iter().any(|word| line.contains(word)) {
                found.push(format!("{}:{n}: {}", source.path, line.trim()));
            }
        }
    }
    found
}

#[track_caller]
fn none(found: &[String], rule: &str) {
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}

const SQL: &[&str] = &[
    "SELECT ",
    "INSERT INTO",
    "UPDATE ",
    "DELETE FROM",
    "CREATE ",
    "ALTER ",
    "GRANT ",
    "set_config(",
];

#[test]
fn layers_know_only_those_below() {
    none(
        &lines_with(&["src/store"], &["tonic", "prost", "pb::", "axum", "hyper", "http::"], &[]),
        "the store knows nothing of the wire",
    );
    let above = [
        "crate::rpc",
        "crate::server",
        "crate::edge",
        "crate::config",
        "crate::cli",
        "crate::demo",
        "crate::transfer",
    ];
    none(&lines_with(&["src/store"], &above, &[]), "the store knows nothing above it");
    none(
        &lines_with(&["src/rpc"], &["tokio_postgres", "deadpool", "object_store", "refinery"], &[]),
        "rpc knows nothing of PostgreSQL",
    );
    none(&lines_with(&["src/rpc", "src/edge"], SQL, &[]), "no SQL above the store");
    none(
        &lines_with(&["src/rpc"], &["crate::server", "crate::config", "crate::cli"], &[]),
        "rpc knows nothing above it",
    );
    none(
        &lines_with(&["src/error.rs"], &["crate::", "super::", "tonic", "tokio"], &[]),
        "an error depends on nothing",
    );
    none(
        &lines_with(&["src/edge"], &["tokio_postgres", "deadpool", "Store"], &[]),
        "the edge is given what it needs to ask",
    );
}

#[test]
fn each_thing_is_done_in_one_place() {
    // Retry and time limits of back ends, and the layers of the edge: nowhere else is there a tower.
    none(
        &lines_with(
            &["src"],
            &["tower::", "tower_http", "tower_layer"],
            &["src/server.rs", "src/edge", "src/store/backend.rs", "src/store/blob_store"],
        ),
        "tower only around the edge and around back ends",
    );
    none(
        &lines_with(&["src"], &["for Status {"], &["src/rpc/status.rs"]),
        "an Error becomes a Status in one place",
    );
    let made = [
        "Status::new(",
        "Status::with_",
        "Status::internal(",
        "Status::unknown(",
        "Status::unavailable(",
        "Status::invalid_argument(",
        "Status::not_found(",
        "Status::unimplemented(",
        "Status::unauthenticated(",
    ];
    none(&lines_with(&["src"], &made, &["src/rpc/status.rs"]), "a Status is made in one place");
    none(
        &lines_with(
            &["src"],
            &["std::env", "env::var", "current_exe", "args_os"],
            &["src/config.rs", "src/config/", "src/main.rs"],
        ),
        "the environment is read in config",
    );
    // The arguments are its own.
    let in_main = lines_with(&["src/main.rs"], &["std::env", "env::var"], &[]);
    assert!(in_main.len() == 1 && in_main[0].contains("args_os()"), "{in_main:?}");
    // One connection pool, and one reading of SQLSTATE.
    none(
        &lines_with(&["src"], &["deadpool_postgres", "SqlState"], &["src/store/postgres.rs"]),
        "PostgreSQL is reached in one place",
    );
    none(
        &lines_with(
            &["src/store"],
            &["INSERT INTO", "\"UPDATE ", "DELETE FROM"],
            &[
                "src/store/noun.rs",
                "src/store/log.rs",
                "src/store/request_ledger.rs",
                // A secret lies beside its token, in the same change.
                "src/store/api_token.rs",
                // That an instance is alive is no version of it.
                "src/store/service_health.rs",
                // A vector is no row of a noun: it stands by its digest for all that have it.
                "src/store/vector.rs",
                // What may be in the store of blobs is no row of a noun.
                "src/store/blob/change.rs",
                "src/store/blob/content.rs",
                "src/store/blob/session.rs",
                // Nor is what refers to blobs.
                "src/store/blob/reference.rs",
                // The record of which migrations were applied.
                "src/store/migrate.rs",
            ],
        ),
        "rows are written by few statements",
    );
}

/// Files that hold SQL outside of `queries!`, and why.
const LOOSE_SQL: &[(&str, &str)] = &[
    ("src/store/list.rs", "filters and orders are the caller's"),
    ("src/store/decision.rs", "so are the groups of statistics"),
    (
        "src/store/embedding/nearest.rs",
        "a search has the operator of its space and the filter of its caller",
    ),
    ("src/store/verification.rs", "and the filters of statistics"),
    ("src/store/vector_index/recall.rs", "an index is a table of its own"),
    ("src/store/purge.rs", "and of what is purged, whatever noun it is"),
    ("src/store/object/walk.rs", "so are prefix and delimiter of a level"),
    ("src/store/search/ranking.rs", "so are the filters of searches"),
    ("src/store/search/hybrid.rs", "and of their legs"),
    ("src/store/precedent_reference.rs", "what is hidden depends on the revision"),
    ("src/store/training_example.rs", "and those of what a batch takes"),
    ("src/store/metrics_snapshot.rs", "and those of a series"),
    ("src/store/noun.rs", "the statements that every noun has"),
    ("src/store/child.rs", "and those that every child has, and of whatever it names"),
    ("src/store/log.rs", "appending takes whole rows"),
    ("src/store/blob/session.rs", "so do uploads and their parts"),
    ("src/store/migrate.rs", "it makes the schema that statements are checked against"),
    ("src/transfer/sqlite.rs", "it reads another program's database"),
    ("src/embedded/server.rs", "it asks PostgreSQL whether it is up"),
];

#[test]
fn sql_is_where_the_schema_test_finds_it() {
    let mut loose = BTreeSet::new();
    for source in sources("src") {
        let mut depth = 0;
        for (_, line) in &source.code {
            if line.trim_start().starts_with("queries! {") {
                depth = 1;
                continue;
            }
            if depth > 0 {
                depth = if line.starts_with("} }") { 0 } else { 1 };
                continue;
            }
            if SQL.iter().any(|word| line.contains(word)) {
                loose.insert(source.path.clone());
            }
        }
    }
    let known: BTreeSet<String> = LOOSE_SQL.iter().map(|(path, _)| (*path).to_owned()).collect();
    assert_eq!(loose, known);
}

#[test]
fn nothing_in_the_program_may_panic_on_purpose() {
    // clippy denies these and all that is left unfinished; an exemption from it must give a reason.
    none(&lines_with(&["src"], &[".unwrap()", ".expect("], &[]), "errors are values");
    let allow = |line: &str| line.contains("#[allow(") || line.contains("#![allow(");
    for source in sources("src") {
        for (n, line) in &source.code {
            let whole = line.contains(")]");
            let generated = line.contains("clippy::all");
            assert!(
                !allow(line) || !whole || generated || line.contains("reason"),
                "{}:{n}: {line}",
                source.path
            );
        }
    }
}

#[test]
fn files_say_what_they_are_and_stay_small() {
    let mut wrong = Vec::new();
    for source in ["src", "tests", "benches"].into_iter().flat_map(sources) {
        if !source.text.starts_with("//! ") {
            wrong.push(format!("{} does not say what it is", source.path));
        }
        let lines = source.text.lines().count();
        if lines > 700 {
            wrong.push(format!("{} has {lines} lines", source.path));
        }
    }
    none(&wrong, "a file opens with //! and has at most 700 lines");
}

/// Each noun has one name, in every layer.
#[test]
fn a_noun_has_one_spelling() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |folder: &str, extension: &str| {
        let mut found = Vec::new();
        files(&root.join(folder), &mut found);
        found.retain(|path| path.extension().is_some_and(|e| e == extension));
        found.iter().map(|path| fs::read_to_string(path).unwrap()).collect::<String>()
    };
    let (proto, migrations) = (read("proto/casebook", "proto"), read("migrations", "sql"));
    let nouns: Vec<String> = sources("src/store")
        .iter()
        .filter_map(|source| {
            Some(source.text.split_once("\nnoun! {\n")?.1.split_once(" in \"")?.1.to_owned())
        })
        .map(|rest| rest.split('"').next().unwrap().to_owned())
        .collect();
    assert_eq!(nouns.len(), casebook::store::NOUNS.len(), "{nouns:?}");
    for noun in nouns {
        let camel: String =
            noun.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
        assert!(proto.contains(&format!("\nmessage {camel} {{")), "no message {camel}");
        let kind = format!("RESOURCE_KIND_{} =", noun.to_uppercase());
        assert!(proto.contains(&kind), "no {kind}");
        assert!(migrations.contains(&format!("CREATE TABLE casebook.{noun} (")), "no table {noun}");
        assert!(
            migrations.contains(&format!("CALL casebook.build_wall('casebook.{noun}')")),
            "no wall for {noun}"
        );
        for layer in ["store", "rpc"] {
            let file = root.join("src").join(layer).join(format!("{noun}.rs"));
            assert!(file.exists(), "no {}", file.display());
        }
    }
}

/// What a migration makes, its way down takes away.
#[test]
fn migrations_come_in_pairs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let mut all = Vec::new();
    files(&root, &mut all);
    all.retain(|path| path.extension().is_some_and(|e| e == "sql"));
    let (down, up): (Vec<_>, Vec<_>) =
        all.iter().partition(|path| path.parent().unwrap().ends_with("down"));
    assert_eq!(up.len(), down.len());
    let mut up = up;
    up.sort_by_key(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name[1..].split("__").next().unwrap().parse::<u32>().unwrap()
    });
    for (n, path) in up.iter().enumerate() {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with(&format!("V{}__", n + 1)), "{name} is out of order");
        assert!(root.join("down").join(name).exists(), "no way down from {name}");
        let text = fs::read_to_string(path).unwrap();
        assert!(text.starts_with("-- "), "{name} does not say what it is");
        // The extension may hold other people's columns.
        let down = fs::read_to_string(root.join("down").join(name)).unwrap();
        assert!(!down.to_uppercase().contains("DROP EXTENSION"), "{name}");
    }
}
