//! The README's calls: each is taken out of its text and run as a newcomer would run it.

use crate::world::{World, config_of, url_of};
use casebook::pb;
use std::path::{Path, PathBuf};
use tokio::process::Command;

const README: &str = include_str!("../../README.md");

/// Where the README's server listens.
const ADDRESS: &str = "127.0.0.1:50051";

/// What the answer to a method must hold, wherever the README calls it.
const ANSWERS: &[(&str, &[&str])] = &[
    ("CreateDecision", &[r#""id": "loan-2041""#, r#""finalVerdict": "DENY""#, r#""auditSeq""#]),
    ("GetDecision", &[r#""avgConfidence": 0.55"#, r#""caseHash""#]),
    ("ListCriticOutputs", &[r#""critic": "affordability""#, r#""critic": "history""#]),
    ("ListDecisions", &[r#""id": "loan-2041""#, r#""readAt""#]),
    (
        "CreateOverride",
        &[r#""reviewerId": "reviewer-7""#, r#""state": "DECISION_STATE_OVERRIDDEN""#],
    ),
    ("GetDecisionStatistics", &[r#""count": "1""#, r#""overrideRate": 1"#]),
    ("ListDecisionRevisions", &[r#""action": "OVERRIDE""#, r#""action": "CREATE""#]),
    ("ListAuditEntries", &[r#""actor": "reviewer-7""#, r#""old": 1"#]),
    ("CreateClaim", &[r#""id": "claim-77""#, r#""framework": "logical""#, r#""current": true"#]),
    ("GetClaimSummary", &[r#""latestVerifications""#, r#""verificationCount": "2""#]),
    ("ExecuteTransaction", &[r#""kind": "RESOURCE_KIND_CLAIM""#, r#""auditSeq""#]),
    ("Search", &["**bridge**", "**toll**"]),
    ("CreateVectorSpace", &[r#""dimensions": 3"#, r#""metric": "DISTANCE_METRIC_COSINE""#]),
    ("UpsertEmbedding", &[r#""vectorDigest""#, r#""vectorSpaceId": "precedents""#]),
    ("BuildVectorIndex", &[r#""action": "BUILD_VECTOR_INDEX""#, r#""OPERATION_STATE_PENDING""#]),
    ("GetVectorSpaceStats", &[r#""backend": "pgvector""#, r#""embeddingCount": "1""#]),
    ("VerifySync", &[r#""inSync": true"#, r#""vectordbCount": "1""#]),
    ("UploadBlob", &[r#""contentType": "text/plain""#, r#""state": "BLOB_STATE_READY""#]),
    ("DownloadBlob", &[r#""chunk": "VGhlIGJyaWRnZSB3YXMgY2xvc2VkLgo=""#]),
    ("CreateEvidenceBundle", &[r#""evidenceType": "decision""#, r#""objectKey": "evidence/"#]),
    ("AttachBlob", &[r#""contentType": "text/plain""#, r#""objectKey": "attachments/"#]),
    ("GetDecisionEvidence", &[r#""verified": true"#, r#""name": "letter.txt""#]),
    ("VerifyEvidence", &[r#""checked": "2""#]),
    ("PutObject", &[r#""key": "letters/2024/bridge.txt""#, r#""versionCount": "1""#]),
    ("SearchObjects", &[r#""key": "letters/2024/bridge.txt""#, r#""rank""#]),
    ("SearchVectors", &[r#""id": "prec-001""#, r#""score": 0.99"#]),
    ("describe", &["rpc CreateDecision"]),
    ("GetCapabilities", &[r#""name": "batch_max""#]),
    ("CreateTenant", &[r#""id": "acme""#]),
    ("CreateApiToken", &[r#""secret": "cbk_"#]),
    ("WhoAmI", &[r#""tenantId": "system""#, r#""principal": "token:"#]),
];

/// The shell blocks that call the server, in order.
fn calls() -> Vec<&'static str> {
    let mut blocks = Vec::new();
    let mut rest = README;
    while let Some((_, after)) = rest.split_once("\n```sh\n") {
        let (block, after) = after.split_once("\n```").expect("the end of a block");
        if block.contains(ADDRESS) && !block.starts_with("CASEBOOK_") {
            blocks.push(block);
        }
        rest = after;
    }
    blocks
}

/// The folder of a tool: the one that `make tools` fills, or one on PATH.
pub fn folder_of(tool: &str) -> PathBuf {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(fetched)
        .chain(std::env::split_paths(&path))
        .find(|folder| folder.join(tool).exists())
        .unwrap_or_else(|| panic!("the calls need {tool}: run `make tools`, or put one on PATH"))
}

/// Runs a block of the README against a server; gives what it printed.
async fn run(block: &str, server: &str, token: &str) -> String {
    let output = outcome(block, server, token).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the README's block\n{block}\nfailed: {said}");
    String::from_utf8(output.stdout).expect("text")
}

async fn outcome(block: &str, server: &str, token: &str) -> std::process::Output {
    let mut path = vec![folder_of("grpcurl"), folder_of("buf")];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    Command::new("sh")
        .args(["-euc", &block.replace(ADDRESS, server)])
        .env("PATH", std::env::join_paths(path).expect("a PATH"))
        .env("CASEBOOK_TOKEN", token)
        // buf keeps a cache, which is none of ours.
        .env("BUF_CACHE_DIR", std::env::temp_dir().join("casebook-test-buf"))
        .output()
        .await
        .expect("a shell")
}

/// `host:port` of a world.
fn place(world: &World) -> &str {
    world.address.strip_prefix("http://").expect("a TCP address")
}

#[tokio::test]
async fn the_readme_s_calls_work() {
    let open = World::new().await;
    let token = pb::ApiToken { roles: vec![pb::Role::Admin.into()], ..Default::default() };
    let request = pb::CreateApiTokenRequest { api_token: Some(token), ..Default::default() };
    let answer = open.as_tenant("system").tenants().create_api_token(request).await;
    let token = answer.expect("a token").into_inner().secret;
    let url = url_of(&config_of(&open.database).await);
    let mut closed = World::on(&open.database, &url, &[("auth", "token")]).await;

    let blocks = calls();
    let mut seen = Vec::new();
    for block in &blocks {
        // What the README does with a token, it does on a server that asks for one.
        let with_token = block.contains("$CASEBOOK_TOKEN");
        let printed = run(block, place(if with_token { &closed } else { &open }), &token).await;
        for (method, needles) in ANSWERS {
            if block.split_whitespace().any(|word| word.rsplit('/').next() == Some(method)) {
                seen.push(*method);
                for needle in *needles {
                    assert!(
                        printed.contains(needle),
                        "{block}\nprints no {needle}, but:\n{printed}"
                    );
                }
            }
        }
    }
    assert!(blocks.len() >= 11, "only {} of the README's blocks were found", blocks.len());
    for (method, _) in ANSWERS {
        assert!(seen.contains(method), "the README calls {method} no more");
    }
    // The first call says that it can be repeated.
    assert!(run(blocks[0], place(&open), "").await.contains(r#""replayed": true"#));
    closed.stop().await;
    open.close().await;
}

#[tokio::test]
async fn the_server_describes_itself_in_both_reflections() {
    let world = World::new().await;
    for reflection in ["grpc-v1", "grpc-v1alpha"] {
        let call = format!(
            "buf curl --protocol grpc --http2-prior-knowledge --reflect-protocol {reflection} \
             http://{ADDRESS}/casebook.v1.TenantService/WhoAmI"
        );
        let printed = run(&call, place(&world), "").await;
        assert!(printed.contains(r#""tenantId": "default""#), "{reflection}: {printed}");
    }
    let listed = run(&format!("grpcurl -plaintext {ADDRESS} list"), place(&world), "").await;
    assert!(listed.contains("casebook.v1.DecisionService"), "{listed}");

    // The types of error details, too: a person reads the reason.
    let call = format!(
        r#"grpcurl -plaintext -d '{{"decision_id": "none"}}' {ADDRESS} casebook.v1.DecisionService/GetDecision"#
    );
    let refused = outcome(&call, place(&world), "").await;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains(r#""reason":"NOT_FOUND""#), "{said}");
    world.close().await;
}

#[test]
fn links_and_targets_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read_to_string(root.join(name)).expect(name);
    let makefile = read("Makefile");
    for name in
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "migrations/README.md"]
    {
        let text = read(name);
        let folder = root.join(name).parent().expect("a folder").to_owned();
        for (at, _) in text.match_indices("](") {
            let link = text[at + 2..].split(')').next().unwrap_or_default();
            if !link.starts_with('#') && !link.contains("://") {
                let link = link.split('#').next().unwrap_or_default();
                assert!(folder.join(link).exists(), "{name} links to {link}, which is not there");
            }
        }
        for (at, _) in text.match_indices("make ") {
            // Only where it is code: behind a backtick or at the start of a line.
            if at > 0 && !matches!(text.as_bytes()[at - 1], b'`' | b'\n') {
                continue;
            }
            let target: String =
                text[at + 5..].chars().take_while(char::is_ascii_lowercase).collect();
            let is_target = makefile.contains(&format!("\n{target}:"));
            assert!(is_target, "{name} says `make {target}`, which the Makefile has not");
        }
    }
}
