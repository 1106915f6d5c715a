//! Short ways to say what most tests say: calls that succeed, calls that fail, and common requests.

use crate::world::{As, World, config_of, url_of};
use casebook::pb;
use std::collections::HashMap;
use tonic::Status;
use tonic_types::StatusExt;

/// The answer of a call that must succeed.
macro_rules! ok {
    ($call:expr) => {
        match $call.await {
            Ok(response) => response.into_inner(),
            Err(status) => panic!("{} failed: {status:?}", stringify!($call)),
        }
    };
}

/// The status of a call that must fail with this code and reason.
macro_rules! fails {
    ($call:expr, $code:ident, $reason:expr) => {
        match $call.await {
            Ok(response) => {
                panic!("{} succeeded: {:?}", stringify!($call), response.into_inner())
            }
            Err(status) => {
                assert_eq!(
                    (status.code(), crate::world::reason(&status).as_str()),
                    (tonic::Code::$code, $reason),
                    "{status:?}"
                );
                status
            }
        }
    };
}

/// The number of the tenant's newest log entry; 0 before its first.
pub async fn head(who: &As) -> i64 {
    let request = pb::ListAuditEntriesRequest { page: page(1), ..Default::default() };
    ok!(who.audit().list_audit_entries(request)).entries.first().map_or(0, |entry| entry.seq)
}

/// The newest log entries, newest first.
pub async fn entries(who: &As, n: i32) -> Vec<pb::AuditEntry> {
    let request =
        pb::ListAuditEntriesRequest { page: page(n), include_changes: true, ..Default::default() };
    ok!(who.audit().list_audit_entries(request)).entries
}

pub fn page(size: i32) -> Option<pb::PageRequest> {
    Some(pb::PageRequest { page_size: size, ..Default::default() })
}

pub fn mask(paths: &[&str]) -> Option<prost_types::FieldMask> {
    Some(prost_types::FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() })
}

pub fn expression(text: &str) -> Option<pb::Selector> {
    Some(pb::Selector { expression: text.to_owned(), filter: None })
}

pub fn labels(members: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    members.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// The metadata of a failure's ErrorInfo.
pub fn info(status: &Status) -> HashMap<String, String> {
    status.get_details_error_info().map(|info| info.metadata).unwrap_or_default()
}

pub fn update(id: &str, paths: &[&str], decision: pb::Decision) -> pb::UpdateDecisionRequest {
    pb::UpdateDecisionRequest {
        decision: Some(pb::Decision { id: id.to_owned(), ..decision }),
        update_mask: mask(paths),
        options: None,
    }
}

pub fn delete(id: &str) -> pb::DeleteDecisionRequest {
    pb::DeleteDecisionRequest { decision_id: id.to_owned(), ..Default::default() }
}

pub fn undelete(id: &str) -> pb::UndeleteDecisionRequest {
    pb::UndeleteDecisionRequest { decision_id: id.to_owned(), ..Default::default() }
}

pub fn critic(id: &str, critic: &str, verdict: &str, confidence: f64) -> pb::CriticOutput {
    pb::CriticOutput {
        id: id.to_owned(),
        critic: critic.to_owned(),
        verdict: verdict.to_owned(),
        confidence,
        ..Default::default()
    }
}

pub fn add(
    decision_id: &str,
    critic_outputs: Vec<pb::CriticOutput>,
) -> pb::AddCriticOutputsRequest {
    pb::AddCriticOutputsRequest {
        decision_id: decision_id.to_owned(),
        critic_outputs,
        options: None,
    }
}

/// A request to overrule a decision.
pub fn overrule(id: &str, decision_id: &str, proposed: &str) -> pb::CreateOverrideRequest {
    pb::CreateOverrideRequest {
        override_id: id.to_owned(),
        decision_id: decision_id.to_owned(),
        r#override: Some(pb::Override {
            proposed_outcome: proposed.to_owned(),
            justification: "The applicant sent the missing papers.".to_owned(),
            reviewer_id: "reviewer-7".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub fn rule(id: &str, name: &str) -> pb::CreatePolicyRuleRequest {
    pb::CreatePolicyRuleRequest {
        policy_rule_id: id.to_owned(),
        policy_rule: Some(pb::PolicyRule { name: name.to_owned(), ..Default::default() }),
        options: None,
    }
}

/// A request to record a document, with all that it needs.
pub fn file(id: &str) -> pb::CreateDocumentRequest {
    pb::CreateDocumentRequest {
        document_id: id.to_owned(),
        document: Some(pb::Document {
            filename: "report.pdf".to_owned(),
            source_path: format!("/in/{id}"),
            ..Default::default()
        }),
        options: None,
    }
}

/// A request to add an analysis to a document.
pub fn analyse(id: &str, document_id: &str) -> pb::CreateAnalysisRequest {
    pb::CreateAnalysisRequest {
        analysis_id: id.to_owned(),
        analysis: Some(pb::Analysis {
            document_id: document_id.to_owned(),
            summary: "An invoice.".to_owned(),
            ..Default::default()
        }),
        options: None,
    }
}

/// A chunk with a text of its own.
pub fn chunk(chunk_index: i32) -> pb::Chunk {
    pb::Chunk { chunk_index, text: format!("text {chunk_index}"), ..Default::default() }
}

/// A request to write chunks.
pub fn chunks(
    document_id: &str,
    chunks: impl IntoIterator<Item = pb::Chunk>,
) -> pb::BatchCreateChunksRequest {
    pb::BatchCreateChunksRequest {
        document_id: document_id.to_owned(),
        chunks: chunks.into_iter().collect(),
        ..Default::default()
    }
}

/// Options that say what to do with what is there.
pub fn on_conflict(on_conflict: pb::OnConflict) -> Option<pb::WriteOptions> {
    Some(pb::WriteOptions { on_conflict: on_conflict.into(), ..Default::default() })
}

pub fn reference(kind: pb::ResourceKind, id: &str, version: i64) -> pb::ResourceRef {
    pb::ResourceRef { kind: kind.into(), id: id.to_owned(), version }
}

/// A world that asks for tokens, beside one on the same database that does not. Stop the second before closing.
pub async fn guarded(settings: crate::world::Settings<'_>) -> (World, World) {
    let open = World::new().await;
    let url = url_of(&config_of(&open.database).await);
    let mut all = vec![("auth", "token")];
    all.extend_from_slice(settings);
    let world = World::on(&open.database, &url, &all).await;
    (world, open)
}

/// Makes a token in the caller's tenant: the resource and the secret.
pub async fn token(who: &As, roles: &[pb::Role]) -> (pb::ApiToken, String) {
    let request = pb::CreateApiTokenRequest {
        api_token: Some(pb::ApiToken {
            roles: roles.iter().map(|role| (*role).into()).collect(),
            ..Default::default()
        }),
        options: None,
    };
    let made = ok!(who.tenants().create_api_token(request));
    (made.api_token.unwrap(), made.secret)
}

/// Another server on a world's database. Stop it before the world closes.
pub async fn second_server(world: &World) -> World {
    World::on(&world.database, &url_of(&config_of(&world.database).await), &[]).await
}

/// Draws by chance from a seed (SplitMix64).
pub struct Dice(u64);

impl Dice {
    /// The seed is CASEBOOK_TEST_SEED, or another one each time, which is printed.
    pub fn seed() -> u64 {
        use std::hash::{BuildHasher as _, RandomState};
        let given = std::env::var("CASEBOOK_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| RandomState::new().hash_one(0) >> 1);
        eprintln!("CASEBOOK_TEST_SEED={seed}");
        seed
    }

    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}
