//! Export and import: from one tenant into another, after interruptions, and past lines that are refused.

use crate::help::head;
use crate::process::{PATIENCE, casebook};
use crate::world::{As, World, create, decision, open_folder};
use casebook::pb;
use casebook::transfer::{
    Counts, Export, Import, OnConflict, Report, Server, TransferError, export, import,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

#[path = "transfer/fill.rs"]
mod fill;

use fill::fill;

pub fn server(address: &str, tenant: &str) -> Server {
    Server { address: address.to_owned(), token: None, tenant: Some(tenant.to_owned()) }
}

async fn export_to(world: &World, tenant: &str, path: &Path) -> BTreeMap<String, u64> {
    let server = server(&world.address, tenant);
    let options = Export { server, output: Some(path.to_owned()), kinds: Vec::new() };
    export(options).await.unwrap_or_else(|error| panic!("{error}"))
}

fn options(world: &World, tenant: &str, input: &Path) -> Import {
    Import {
        server: server(&world.address, tenant),
        input: input.to_owned(),
        on_conflict: OnConflict::Fail,
        state: None,
        unsealed: false,
        concurrency: 4,
    }
}

async fn import_all(options: Import) -> Report {
    import(options).await.unwrap_or_else(|error| panic!("{error}"))
}

pub fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The resources of a file, without what only the server sets, in an order of their own.
fn content(path: &Path) -> Vec<String> {
    let mut found: Vec<String> = lines(path)
        .into_iter()
        .filter(|line| line["kind"].is_string())
        .map(|mut line| {
            let resource = line["resource"].as_object_mut().unwrap();
            for field in ["meta", "etag"] {
                resource.remove(field).unwrap();
            }
            // A hold that was released is released again, and then.
            for field in ["releaseTime", "releasedBy"] {
                resource.entry(field).and_modify(|value| *value = json!("set"));
            }
            line.to_string()
        })
        .collect();
    found.sort();
    found
}

/// Runs the program to its end, beside the server, which is in this process.
async fn run(mut command: std::process::Command) -> std::process::Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn created(counts: &BTreeMap<String, Counts>, kind: &str) -> u64 {
    let Counts { created, unchanged, replaced, kept, refused } = counts[kind];
    assert_eq!((unchanged, replaced, kept, refused), (0, 0, 0, 0), "{kind}");
    created
}

/// The nearest embeddings: their ids, digests and distances.
async fn nearest(who: &As, space: &str, target: &[f32]) -> Vec<(String, String, f64)> {
    let list = pb::FloatList { values: target.to_vec() };
    let vector = pb::Vector { data: Some(pb::vector::Data::Floats(list)) };
    let query = pb::VectorQuery {
        vector_space_id: space.into(),
        target: Some(pb::vector_query::Target::Vector(vector)),
        ..Default::default()
    };
    let request = pb::SearchVectorsRequest { query: Some(query), ..Default::default() };
    let hits = ok!(who.vectors().search_vectors(request)).hits.into_iter();
    let hits = hits.map(|hit| (hit.embedding.unwrap_or_default(), hit.distance));
    hits.map(|(found, distance)| (found.id, found.vector_digest, distance)).collect()
}

/// Lines of a kind, as a person would write them.
fn write(path: &Path, made: impl IntoIterator<Item = Value>) {
    let text: String = made.into_iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(path, text).unwrap();
}

fn claim_line(id: &str, content: &str) -> Value {
    json!({"kind": "claim", "resource": {"id": id, "content": content}})
}

#[tokio::test]
async fn what_is_exported_and_imported_is_the_same() {
    let world = World::new().await;
    for tenant in ["from", "to"] {
        world.tenant(tenant).await;
    }
    fill(&world.as_tenant("from")).await;
    let folder = open_folder();
    let (first, second) = (folder.path().join("first.jsonl"), folder.path().join("second.jsonl"));
    let counts = export_to(&world, "from", &first).await;
    let expected = [
        ("analysis", 4),
        ("chunk", 6),
        ("claim", 2),
        ("consensus", 3),
        ("critic_output", 10),
        ("decision", 1200),
        ("document", 2),
        ("embedding", 1010),
        ("evidence_bundle", 2),
        ("legal_hold", 2),
        ("metrics_snapshot", 2),
        ("model_checkpoint", 3),
        ("override", 2),
        ("policy_rule", 1),
        ("precedent", 3),
        ("precedent_reference", 2),
        ("retention_policy", 1),
        ("training_example", 3),
        ("vector_space", 4),
        ("verification", 2),
    ];
    let mut every: Vec<&str> = casebook::transfer::kinds().collect();
    every.sort_unstable();
    assert_eq!(expected.map(|(kind, _)| kind).as_slice(), every, "none is left out here");
    assert_eq!(counts, expected.map(|(kind, count)| (kind.to_owned(), count)).into());
    let all = lines(&first);
    assert_eq!(all[0]["casebook_export"]["tenant"], "from");
    assert!(all[0]["casebook_export"]["revision"].is_string());
    let kinds: Vec<&str> = all.iter().filter_map(|line| line["kind"].as_str()).collect();
    assert!(
        kinds.iter().position(|kind| *kind == "decision")
            < kinds.iter().position(|kind| *kind == "override")
    );

    let report = import_all(options(&world, "to", &first)).await;
    for (kind, count) in expected {
        assert_eq!(created(&report.counts, kind), count);
    }
    assert_eq!((report.refused, report.counts.len()), (None, expected.len()));
    assert!(!folder.path().join("first.jsonl.state").exists());
    assert!(!folder.path().join("first.jsonl.refused.jsonl").exists());
    assert_eq!(export_to(&world, "to", &second).await, counts);
    assert_eq!(content(&second), content(&first));
    let there = content(&second).join("\n");
    assert!(
        there.contains("\"supersededById\":\"n-8\"") && there.contains("DECISION_STATE_OVERRIDDEN")
    );
    let active: Vec<&str> = there.lines().filter(|line| line.contains("\"active\":true")).collect();
    assert!(active.len() == 1 && active[0].contains("\"m-2\""), "{active:?}");
    let released = there.lines().filter(|line| line.contains("releaseTime"));
    assert!(released.eq(there.lines().filter(|line| line.contains("\"h-1\""))), "{there}");
    // Vectors and all: a search finds the same, as near as before, and digests are those of the same numbers.
    let vectors: Vec<&str> = there.lines().filter(|line| line.contains("\"f32Le\"")).collect();
    assert_eq!(vectors.len(), 1010);
    for (space, target) in [("x", vec![0.5; 1536]), ("thin", vec![700.0, 1.0, 0.1])] {
        let found = nearest(&world.as_tenant("from"), space, &target).await;
        assert_eq!(found.len(), 10);
        assert_eq!(nearest(&world.as_tenant("to"), space, &target).await, found);
    }
    // What was made by whom is new.
    let made = lines(&second)[1]["resource"]["meta"]["createdBy"].clone();
    assert_eq!(made, "casebook-import");

    // The same again.
    let before = head(&world.as_tenant("to")).await;
    for on_conflict in [OnConflict::Skip, OnConflict::Replace] {
        let report = import_all(Import { on_conflict, ..options(&world, "to", &first) }).await;
        for (kind, count) in expected {
            assert_eq!(
                report.counts[kind],
                Counts { unchanged: count, ..Counts::default() },
                "{kind} {on_conflict:?}"
            );
        }
    }
    assert_eq!(head(&world.as_tenant("to")).await, before, "nothing was written");
    world.close().await;
}

#[tokio::test]
async fn an_export_is_of_one_revision_and_is_not_there_before_it_is_whole() {
    let world = World::new().await;
    let who = world.as_tenant("default");
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let writer = tokio::spawn(async move {
        let mut transactions = who.transactions();
        let mut n = 0;
        while stopped.try_recv().is_err() {
            n += 1;
            let operation = |operation| pb::execute_transaction_request::Operation {
                operation: Some(operation),
            };
            use pb::execute_transaction_request::operation::Operation::{
                CreateClaim, CreateDecision,
            };
            let operations = vec![
                operation(CreateClaim(crate::claim::create_claim(&format!("c-{n}")))),
                operation(CreateDecision(create(&format!("d-{n}"), decision("ALLOW", 0.5)))),
            ];
            ok!(transactions
                .execute_transaction(pb::ExecuteTransactionRequest { operations, options: None }));
        }
        n
    });
    let folder = open_folder();
    let path = folder.path().join("f.jsonl");
    let mut seen = Vec::new();
    for _ in 0..5 {
        let counts = export_to(&world, "default", &path).await;
        let of = |kind: &str| counts.get(kind).copied().unwrap_or_default();
        assert_eq!(of("claim"), of("decision"), "each transaction is there as a whole");
        seen.push(of("claim"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.send(()).unwrap();
    assert!(seen[4] > seen[0] && writer.await.unwrap() >= seen[4], "{seen:?}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    world.close().await;
}

#[tokio::test]
async fn what_is_there_is_settled_as_the_caller_asks() {
    let world = World::new().await;
    let folder = open_folder();
    let path = folder.path().join("f.jsonl");
    let decision = |verdict: &str| json!({"kind": "decision", "resource": {"id": "d", "finalVerdict": verdict}});
    let over = |id: &str| {
        json!({"kind": "override", "resource": {
            "id": id, "decisionId": "d", "proposedOutcome": "ALLOW",
            "justification": format!("The papers of {id} came."), "reviewerId": "r", "originalOutcome": "DENY",
        }})
    };
    write(&path, [claim_line("a", "one"), claim_line("b", "one"), decision("DENY"), over("o")]);
    let first = Import { unsealed: true, ..options(&world, "default", &path) };
    assert_eq!(created(&import_all(first).await.counts, "claim"), 2);
    let mut other = over("o");
    other["resource"]["justification"] = json!("For quite another reason.");
    write(
        &path,
        [
            claim_line("a", "two"),
            claim_line("b", "one"),
            claim_line("c", "new"),
            decision("ALLOW"),
            other,
            over("o-2"),
        ],
    );
    let count = |[created, unchanged, replaced, kept, refused]: [u64; 5]| Counts {
        created,
        unchanged,
        replaced,
        kept,
        refused,
    };
    for (on_conflict, claims, decisions, overrides) in [
        (OnConflict::Fail, [1, 0, 0, 0, 2], [0, 0, 0, 0, 1], [1, 0, 0, 0, 1]),
        (OnConflict::Skip, [0, 2, 0, 1, 0], [0, 0, 0, 1, 0], [0, 1, 0, 1, 0]),
        (OnConflict::Replace, [0, 2, 1, 0, 0], [0, 0, 0, 0, 1], [0, 1, 0, 0, 1]),
    ] {
        let report =
            import_all(Import { on_conflict, unsealed: true, ..options(&world, "default", &path) })
                .await;
        let expected = [("claim", claims), ("decision", decisions), ("override", overrides)];
        let expected: BTreeMap<String, Counts> =
            expected.map(|(kind, counts)| (kind.to_owned(), count(counts))).into();
        assert_eq!(report.counts, expected, "{on_conflict:?}");
    }
    world.close().await;
}

#[tokio::test]
async fn a_line_that_is_refused_keeps_no_other_out() {
    let world = World::new().await;
    let folder = open_folder();
    let path = folder.path().join("by-hand.jsonl");
    write(&path, [claim_line("c-500", "of its own")]);
    import_all(Import { unsealed: true, ..options(&world, "default", &path) }).await;

    // The first lines are those of nouns that come last.
    let mut text = String::new();
    let mut add_line = |line: &str| text.push_str(&format!("{line}\n"));
    add_line(
        r#"{"kind":"override","resource":{"id":"o","decisionId":"nowhere","proposedOutcome":"ALLOW","justification":"It was not so.","reviewerId":"r"}}"#,
    );
    for n in 0..1500 {
        let line = match n {
            250 => r#"{"kind":"claim","resource":{"id":"c-250","content":""}}"#.to_owned(),
            251 => claim_line("c-251", "nul \u{0}").to_string(),
            600 => claim_line("c-599", "the same id again").to_string(),
            700 => r#"{"kind":"claim","resource":{"id":"c-700","content":"x","metadata":{"n":9007199254740993}}}"#.to_owned(),
            1200 => r#"{"kind":"claim","resource":{"id":"c-1200","contents":"x"}}"#.to_owned(),
            n => claim_line(&format!("c-{n}"), "x").to_string(),
        };
        add_line(&line);
    }
    add_line("nonsense");
    add_line(r#"{"kind":"cat","resource":{"id":"tom"}}"#);
    add_line(r#"{"kind":"claim","resource":{"content":"nameless"}}"#);
    add_line(
        r#"{"kind":"critic_output","resource":{"id":"x","decisionId":"nowhere","critic":"law","verdict":"ALLOW","confidence":1}}"#,
    );
    std::fs::write(&path, text).unwrap();

    let output = run(casebook(&[
        "import",
        "jsonl",
        path.to_str().unwrap(),
        "--unsealed",
        "--address",
        &world.address,
    ]))
    .await;
    let (shown, said) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("11 lines are refused")
            && said.contains("line 252: claim \"c-250\": FIELD_INVALID"),
        "{said}"
    );
    assert!(
        shown.contains(
            "claim                      1494          0          0          0          7"
        ),
        "{shown}"
    );
    let list = folder.path().join("by-hand.jsonl.refused.jsonl");
    let refused: Vec<_> = lines(&list)
        .into_iter()
        .map(|line| {
            let why = &line["refused"];
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            assert!(!text(&why["message"]).is_empty());
            (
                why["line"].as_u64().unwrap(),
                text(&line["kind"]),
                text(&why["id"]),
                text(&why["reason"]),
            )
        })
        .collect();
    let expected = [
        (252, "claim", "c-250", "FIELD_INVALID"),
        (253, "claim", "c-251", "NUL_BYTE"),
        (502, "claim", "c-500", "EXISTS"),
        (602, "claim", "c-599", "EXISTS"),
        (702, "claim", "c-700", "NUMBER_NOT_EXACT"),
        (1202, "claim", "c-1200", "LINE_INVALID"),
        (1504, "claim", "", "LINE_INVALID"),
        (1505, "critic_output", "x", "NOT_FOUND"),
        (1, "override", "o", "NOT_FOUND"),
        (1502, "unknown", "", "LINE_INVALID"),
        (1503, "cat", "", "LINE_INVALID"),
    ];
    assert_eq!(
        refused,
        expected.map(|(line, kind, id, reason)| (
            line,
            kind.to_owned(),
            id.to_owned(),
            reason.to_owned()
        ))
    );

    // Corrected, the list is a file like any other.
    let corrected = std::fs::read_to_string(&list)
        .unwrap()
        .replace("\"contents\"", "\"content\"")
        .replace("\"content\":\"\"", "\"content\":\"y\"");
    let again = folder.path().join("corrected.jsonl");
    std::fs::write(&again, corrected).unwrap();
    let report = import_all(Import { unsealed: true, ..options(&world, "default", &again) }).await;
    assert_eq!(report.counts["claim"], Counts { created: 2, refused: 5, ..Counts::default() });
    assert_eq!(head(&world.anonymous()).await, 1 + 1494 + 2);
    world.close().await;
}

#[tokio::test]
async fn a_file_that_was_cut_off_is_not_imported_at_all() {
    let world = World::new().await;
    world.tenant("to").await;
    fill(&world.anonymous()).await;
    let folder = open_folder();
    let path = folder.path().join("f.jsonl");
    export_to(&world, "default", &path).await;
    let whole = std::fs::read(&path).unwrap();
    for length in [
        whole.len() - 1 - whole.iter().rev().skip(1).position(|b| *b == b'\n').unwrap(),
        whole.len() / 2,
    ] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = import(options(&world, "to", &path)).await.unwrap_err();
        assert!(matches!(&error, TransferError::Failed(why) if why.contains("cut off")), "{error}");
    }
    assert_eq!(head(&world.as_tenant("to")).await, 0);
    let missing = options(&world, "to", &folder.path().join("nothing.jsonl"));
    assert!(matches!(import(missing).await, Err(TransferError::Failed(_))));
    let nobody =
        Import { server: server("http://127.0.0.1:1", "to"), ..options(&world, "to", &path) };
    std::fs::write(&path, &whole).unwrap();
    assert!(matches!(import(nobody).await, Err(TransferError::Unreachable { .. })));
    world.close().await;
}

/// Policy rules go one by one, which takes long enough to be interrupted.
fn many_rules(path: &Path, count: usize) {
    write(
        path,
        (0..count).map(
            |n| json!({"kind": "policy_rule", "resource": {"id": format!("p-{n}"), "name": "x"}}),
        ),
    );
}

#[tokio::test]
async fn an_import_that_was_killed_goes_on_and_writes_nothing_twice() {
    let world = World::new().await;
    let folder = open_folder();
    let path = folder.path().join("f.jsonl");
    let state = folder.path().join("f.jsonl.state");
    many_rules(&path, 3000);
    let arguments = [
        "import",
        "jsonl",
        path.to_str().unwrap(),
        "--unsealed",
        "--address",
        &world.address,
        "--concurrency",
        "2",
    ];
    let mut kills = 0;
    let mut done = 0;
    // Each time a little further.
    for _ in 0..3 {
        let mut running = casebook(&arguments)
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let began = Instant::now();
        let far = loop {
            let far = std::fs::read(&state)
                .ok()
                .and_then(|text| serde_json::from_slice::<Value>(&text).ok());
            let far = far.and_then(|state| state["done"].as_u64()).unwrap_or_default();
            if far > done || running.try_wait().unwrap().is_some() {
                break far;
            }
            assert!(began.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        kills += usize::from(running.try_wait().unwrap().is_none());
        running.kill().unwrap();
        running.wait().unwrap();
        done = far;
    }
    assert!(kills > 0 && (1..3000).contains(&done), "{kills} kills, {done} done");
    // Another import must not take its place.
    let other = Import {
        unsealed: true,
        on_conflict: OnConflict::Skip,
        ..options(&world, "default", &path)
    };
    let error = import(other).await.unwrap_err();
    assert!(
        matches!(&error, TransferError::Usage(why) if why.contains("--on-conflict")),
        "{error}"
    );
    let output = run(casebook(&arguments)).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("going on behind"), "{said}");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(
        shown.contains(
            "policy_rule                3000          0          0          0          0"
        ),
        "{shown}"
    );
    assert_eq!(head(&world.anonymous()).await, 3000, "each was written once");
    assert!(!state.exists());
    world.close().await;
}

/// Passes bytes on to the server, and hangs up now and then.
async fn unreliable(server: &str) -> (String, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let server = server.trim_start_matches("http://").to_owned();
    let passing = tokio::spawn(async move {
        for life_ms in [60_u64, 100, 150, 200].into_iter().chain(std::iter::repeat(60_000)) {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = tokio::net::TcpStream::connect(&server).await.unwrap();
            tokio::spawn(async move {
                let pass = tokio::io::copy_bidirectional(&mut near, &mut far);
                let _ = tokio::time::timeout(Duration::from_millis(life_ms), pass).await;
            });
        }
    });
    (address, passing)
}

#[tokio::test]
async fn a_connection_that_breaks_is_made_again() {
    let world = World::new().await;
    let (address, passing) = unreliable(&world.address).await;
    let folder = open_folder();
    let path = folder.path().join("f.jsonl");
    many_rules(&path, 3000);
    let options = Import {
        server: server(&address, "default"),
        unsealed: true,
        ..options(&world, "default", &path)
    };
    assert_eq!(created(&import_all(options).await.counts, "policy_rule"), 3000);
    assert_eq!(head(&world.anonymous()).await, 3000, "each was written once");
    let output = folder.path().join("out.jsonl");
    let options = Export {
        server: server(&address, "default"),
        output: Some(output),
        kinds: vec!["policy_rule".into()],
    };
    assert_eq!(export(options).await.unwrap()["policy_rule"], 3000);
    passing.abort();
    world.close().await;
}

#[tokio::test]
async fn large_resources_come_in_smaller_pages_and_batches() {
    let world = World::with(&[
        ("message_out_max_bytes", "2097152"),
        ("batch_message_in_max_bytes", "4194304"),
    ])
    .await;
    world.tenant("to").await;
    let folder = open_folder();
    let path = folder.path().join("f.jsonl");
    let long = "x".repeat(300_000);
    write(&path, (0..40).map(|n| claim_line(&format!("c-{n}"), &long)));
    let first = Import { unsealed: true, ..options(&world, "default", &path) };
    assert_eq!(created(&import_all(first).await.counts, "claim"), 40);
    assert_eq!(export_to(&world, "default", &path).await["claim"], 40);
    assert_eq!(created(&import_all(options(&world, "to", &path)).await.counts, "claim"), 40);
    world.close().await;
}
