//! Who may call what: one rule for every method, and the decision that follows from it.

use crate::error::{Error, Reason, Result};
use crate::pb;
use crate::store::caller::{Role, Roles, TenantState};
use prost::Message as _;
use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

/// Whether a call changes anything, which a read-only tenant refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Read,
    Write,
}

/// Whom a method is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Principals with one of the roles, in the tenant they act in.
    Tenant,
    /// The same, of the tenant "system" only.
    System,
    /// Every principal, whatever its roles.
    Open,
    /// Everybody, without a credential.
    Public,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Any one of them is enough.
    pub roles: Roles,
    pub effect: Effect,
    pub scope: Scope,
}

/// Methods that work through as many bytes as a blob may have.
const LONG: &[&str] = &["/casebook.v1.BlobService/CompleteUpload"];

/// One method of this server.
#[derive(Debug)]
pub struct Method {
    /// As in the request: `/casebook.v1.DecisionService/GetDecision`.
    pub path: &'static str,
    /// Its place in `methods()`, for tables beside this one.
    pub index: usize,
    /// None means nobody has decided who may call it, so nobody may.
    pub rule: Option<Rule>,
    /// It answers with a stream.
    pub is_stream: bool,
    /// Whether the caller goes on sending, so that the call may last.
    pub is_client_stream: bool,
}

impl Method {
    /// The full RPC name, without the leading slash.
    pub fn name(&self) -> &'static str {
        self.path.strip_prefix('/').unwrap_or(self.path)
    }

    /// The service's full name.
    pub fn service(&self) -> &'static str {
        self.name().split_once('/').map_or(self.name(), |(service, _)| service)
    }

    /// Whether it answers once, and yet may take as long as a stream.
    pub fn is_long(&self) -> bool {
        !self.is_stream && (self.is_client_stream || LONG.contains(&self.path))
    }

    /// Whether it is called without a credential.
    pub fn is_public(&self) -> bool {
        self.rule.is_some_and(|rule| rule.scope == Scope::Public)
    }

    /// Whether a principal may call it now.
    pub fn allow(&self, roles: Roles, is_system: bool, tenant: TenantState) -> Result<()> {
        let Some(rule) = self.rule else {
            return Err(forbidden(format!("no rule says who may call {}", self.name())));
        };
        if rule.scope == Scope::Public {
            return Ok(());
        }
        if tenant == TenantState::Suspended {
            return Err(read_only("the tenant is suspended"));
        }
        if rule.scope == Scope::System && !is_system {
            return Err(forbidden(format!(
                "{} is for principals of the tenant \"system\"",
                self.name()
            )));
        }
        if rule.scope != Scope::Open && !roles.intersects(rule.roles) {
            return Err(forbidden(format!(
                "{} needs one of the roles {}",
                self.name(),
                rule.roles
            )));
        }
        if tenant == TenantState::ReadOnly && rule.effect == Effect::Write {
            return Err(read_only("the tenant is read-only"));
        }
        Ok(())
    }
}

fn forbidden(message: String) -> Error {
    Error::Forbidden { reason: Reason::RoleMissing, message }
}

fn read_only(message: &str) -> Error {
    Error::Refused { reason: Reason::ReadOnly, message: message.into(), metadata: Vec::new() }
}

const fn rule(roles: &[Role], effect: Effect, scope: Scope) -> Rule {
    Rule { roles: Roles::of(roles), effect, scope }
}

const READ: Rule = rule(&[Role::Reader, Role::Writer, Role::Admin], Effect::Read, Scope::Tenant);
const WRITE: Rule = rule(&[Role::Writer, Role::Admin], Effect::Write, Scope::Tenant);
const AUDIT: Rule = rule(&[Role::Auditor, Role::Admin], Effect::Read, Scope::Tenant);
const ADMIN_READ: Rule = rule(&[Role::Admin], Effect::Read, Scope::Tenant);
const ADMIN_WRITE: Rule = rule(&[Role::Admin], Effect::Write, Scope::Tenant);
const SYSTEM_READ: Rule = rule(&[Role::Admin], Effect::Read, Scope::System);
const SYSTEM_WRITE: Rule = rule(&[Role::Admin], Effect::Write, Scope::System);
const ANY_ROLE: Rule = rule(&Role::ALL, Effect::Read, Scope::Tenant);
const OPEN: Rule = rule(&[], Effect::Read, Scope::Open);
const PUBLIC: Rule = rule(&[], Effect::Read, Scope::Public);

#[rustfmt::skip]
const RULES: &[(&str, Rule)] = &[
    ("/casebook.v1.DecisionService/CreateDecision", WRITE),
    ("/casebook.v1.DecisionService/BatchCreateDecisions", WRITE),
    ("/casebook.v1.DecisionService/GetDecision", READ),
    ("/casebook.v1.DecisionService/BatchGetDecisions", READ),
    ("/casebook.v1.DecisionService/ListDecisions", READ),
    ("/casebook.v1.DecisionService/UpdateDecision", WRITE),
    ("/casebook.v1.DecisionService/DeleteDecision", WRITE),
    ("/casebook.v1.DecisionService/UndeleteDecision", WRITE),
    ("/casebook.v1.DecisionService/ListDecisionRevisions", READ),
    ("/casebook.v1.DecisionService/AddCriticOutputs", WRITE),
    ("/casebook.v1.DecisionService/ListCriticOutputs", READ),
    ("/casebook.v1.DecisionService/CreateOverride", WRITE),
    ("/casebook.v1.DecisionService/ListOverrides", READ),
    ("/casebook.v1.DecisionService/GetDecisionStatistics", READ),

    ("/casebook.v1.PolicyService/CreatePolicyRule", WRITE),
    ("/casebook.v1.PolicyService/GetPolicyRule", READ),
    ("/casebook.v1.PolicyService/ListPolicyRules", READ),
    ("/casebook.v1.PolicyService/UpdatePolicyRule", WRITE),
    ("/casebook.v1.PolicyService/DeletePolicyRule", WRITE),

    ("/casebook.v1.ClaimService/CreateClaim", WRITE),
    ("/casebook.v1.ClaimService/BatchCreateClaims", WRITE),
    ("/casebook.v1.ClaimService/GetClaim", READ),
    ("/casebook.v1.ClaimService/BatchGetClaims", READ),
    ("/casebook.v1.ClaimService/ListClaims", READ),
    ("/casebook.v1.ClaimService/UpdateClaim", WRITE),
    ("/casebook.v1.ClaimService/DeleteClaim", WRITE),
    ("/casebook.v1.ClaimService/UndeleteClaim", WRITE),
    ("/casebook.v1.ClaimService/CreateVerification", WRITE),
    ("/casebook.v1.ClaimService/BatchCreateVerifications", WRITE),
    ("/casebook.v1.ClaimService/GetVerification", READ),
    ("/casebook.v1.ClaimService/ListVerifications", READ),
    ("/casebook.v1.ClaimService/CreateConsensus", WRITE),
    ("/casebook.v1.ClaimService/GetConsensus", READ),
    ("/casebook.v1.ClaimService/GetCurrentConsensus", READ),
    ("/casebook.v1.ClaimService/ListConsensuses", READ),
    ("/casebook.v1.ClaimService/GetClaimSummary", READ),
    ("/casebook.v1.ClaimService/GetFrameworkStatistics", READ),

    ("/casebook.v1.DocumentService/CreateDocument", WRITE),
    ("/casebook.v1.DocumentService/BatchCreateDocuments", WRITE),
    ("/casebook.v1.DocumentService/GetDocument", READ),
    ("/casebook.v1.DocumentService/BatchGetDocuments", READ),
    ("/casebook.v1.DocumentService/ListDocuments", READ),
    ("/casebook.v1.DocumentService/UpdateDocument", WRITE),
    ("/casebook.v1.DocumentService/DeleteDocument", WRITE),
    ("/casebook.v1.DocumentService/UndeleteDocument", WRITE),
    ("/casebook.v1.DocumentService/FindDocumentsByHash", READ),
    ("/casebook.v1.DocumentService/CreateAnalysis", WRITE),
    ("/casebook.v1.DocumentService/GetAnalysis", READ),
    ("/casebook.v1.DocumentService/ListAnalyses", READ),
    ("/casebook.v1.DocumentService/GetLatestAnalysis", READ),
    ("/casebook.v1.DocumentService/GetChunk", READ),
    ("/casebook.v1.DocumentService/ListChunks", READ),
    ("/casebook.v1.DocumentService/UpdateChunk", WRITE),
    ("/casebook.v1.DocumentService/DeleteChunk", WRITE),
    ("/casebook.v1.DocumentService/BatchCreateChunks", WRITE),
    ("/casebook.v1.DocumentService/IngestChunks", WRITE),

    ("/casebook.v1.RetentionService/CreateLegalHold", ADMIN_WRITE),
    ("/casebook.v1.RetentionService/GetLegalHold", READ),
    ("/casebook.v1.RetentionService/ListLegalHolds", READ),
    ("/casebook.v1.RetentionService/ReleaseLegalHold", ADMIN_WRITE),
    ("/casebook.v1.RetentionService/CreateRetentionPolicy", ADMIN_WRITE),
    ("/casebook.v1.RetentionService/GetRetentionPolicy", READ),
    ("/casebook.v1.RetentionService/ListRetentionPolicies", READ),
    ("/casebook.v1.RetentionService/UpdateRetentionPolicy", ADMIN_WRITE),
    ("/casebook.v1.RetentionService/DeleteRetentionPolicy", ADMIN_WRITE),
    ("/casebook.v1.RetentionService/PurgeResources", ADMIN_WRITE),

    ("/casebook.v1.ModelService/CreateModelCheckpoint", WRITE),
    ("/casebook.v1.ModelService/GetModelCheckpoint", READ),
    ("/casebook.v1.ModelService/ListModelCheckpoints", READ),
    ("/casebook.v1.ModelService/UpdateModelCheckpoint", WRITE),
    ("/casebook.v1.ModelService/DeleteModelCheckpoint", WRITE),
    ("/casebook.v1.ModelService/ActivateModelCheckpoint", WRITE),
    ("/casebook.v1.ModelService/DeactivateModelCheckpoint", WRITE),
    ("/casebook.v1.ModelService/CreateTrainingExample", WRITE),
    ("/casebook.v1.ModelService/BatchCreateTrainingExamples", WRITE),
    ("/casebook.v1.ModelService/GetTrainingExample", READ),
    ("/casebook.v1.ModelService/ListTrainingExamples", READ),
    ("/casebook.v1.ModelService/DeleteTrainingExample", WRITE),
    ("/casebook.v1.ModelService/ClaimTrainingBatch", WRITE),

    ("/casebook.v1.PrecedentService/CreatePrecedent", WRITE),
    ("/casebook.v1.PrecedentService/BatchCreatePrecedents", WRITE),
    ("/casebook.v1.PrecedentService/GetPrecedent", READ),
    ("/casebook.v1.PrecedentService/BatchGetPrecedents", READ),
    ("/casebook.v1.PrecedentService/ListPrecedents", READ),
    ("/casebook.v1.PrecedentService/UpdatePrecedent", WRITE),
    ("/casebook.v1.PrecedentService/DeletePrecedent", WRITE),
    ("/casebook.v1.PrecedentService/UndeletePrecedent", WRITE),
    ("/casebook.v1.PrecedentService/LinkPrecedents", WRITE),
    ("/casebook.v1.PrecedentService/UnlinkPrecedents", WRITE),
    ("/casebook.v1.PrecedentService/ListPrecedentReferences", READ),
    ("/casebook.v1.PrecedentService/FindPrecedents", READ),

    // Its handler, like that of the others that keep receipts, wants the right to write where one is to be kept.
    ("/casebook.v1.SearchService/Search", READ),
    ("/casebook.v1.SearchService/GetSearchReceipt", READ),
    ("/casebook.v1.SearchService/ListSearchReceipts", READ),
    ("/casebook.v1.SearchService/ReplaySearch", READ),

    ("/casebook.v1.VectorSpaceService/CreateVectorSpace", WRITE),
    ("/casebook.v1.VectorSpaceService/GetVectorSpace", READ),
    ("/casebook.v1.VectorSpaceService/ListVectorSpaces", READ),
    ("/casebook.v1.VectorSpaceService/UpdateVectorSpace", WRITE),
    ("/casebook.v1.VectorSpaceService/DeleteVectorSpace", WRITE),
    ("/casebook.v1.VectorSpaceService/UndeleteVectorSpace", WRITE),
    ("/casebook.v1.VectorSpaceService/SetVectorSpaceAlias", WRITE),
    ("/casebook.v1.VectorSpaceService/DeleteVectorSpaceAlias", WRITE),
    ("/casebook.v1.VectorSpaceService/BuildVectorIndex", WRITE),
    ("/casebook.v1.VectorSpaceService/DropVectorIndex", WRITE),
    ("/casebook.v1.VectorSpaceService/GetVectorSpaceStats", READ),
    ("/casebook.v1.VectorSpaceService/MeasureRecall", READ),
    ("/casebook.v1.OperationService/GetOperation", READ),
    ("/casebook.v1.OperationService/ListOperations", READ),
    ("/casebook.v1.OperationService/WatchOperation", READ),
    ("/casebook.v1.OperationService/WaitOperation", READ),
    ("/casebook.v1.OperationService/CancelOperation", WRITE),

    ("/casebook.v1.VectorService/UpsertEmbedding", WRITE),
    ("/casebook.v1.VectorService/BatchUpsertEmbeddings", WRITE),
    ("/casebook.v1.VectorService/IngestEmbeddings", WRITE),
    ("/casebook.v1.VectorService/GetEmbedding", READ),
    ("/casebook.v1.VectorService/ListEmbeddings", READ),
    ("/casebook.v1.VectorService/DeleteEmbedding", WRITE),
    ("/casebook.v1.VectorService/BatchDeleteEmbeddings", WRITE),
    ("/casebook.v1.VectorService/SearchVectors", READ),
    ("/casebook.v1.VectorService/BatchSearchVectors", READ),

    ("/casebook.v1.SyncService/SyncEmbedding", WRITE),
    ("/casebook.v1.SyncService/BatchSyncEmbeddings", WRITE),
    ("/casebook.v1.SyncService/DeleteFromBoth", WRITE),
    ("/casebook.v1.SyncService/BatchDeleteFromBoth", WRITE),
    ("/casebook.v1.SyncService/VerifySync", READ),
    ("/casebook.v1.SyncService/ResyncFromPostgres", WRITE),
    ("/casebook.v1.SyncService/GetSyncStatus", READ),

    ("/casebook.v1.TelemetryService/RecordHeartbeat", WRITE),
    ("/casebook.v1.TelemetryService/ListServiceHealth", READ),
    ("/casebook.v1.TelemetryService/RecordMetricsSnapshot", WRITE),
    ("/casebook.v1.TelemetryService/ListMetricsSnapshots", READ),
    ("/casebook.v1.TelemetryService/GetMetricsSeries", READ),

    ("/casebook.v1.TransactionService/ExecuteTransaction", WRITE),

    ("/casebook.v1.AuditService/ListAuditEntries", AUDIT),
    ("/casebook.v1.AuditService/GetAuditEntry", AUDIT),
    ("/casebook.v1.AuditService/LogEvent", WRITE),
    ("/casebook.v1.AuditService/ExportAudit", AUDIT),
    ("/casebook.v1.AuditService/ArchiveAuditEntries", ADMIN_WRITE),

    ("/casebook.v1.TenantService/CreateTenant", SYSTEM_WRITE),
    ("/casebook.v1.TenantService/ListTenants", SYSTEM_READ),
    ("/casebook.v1.TenantService/UpdateTenant", SYSTEM_WRITE),
    // Its handler holds everyone but the tenant "system" to their own.
    ("/casebook.v1.TenantService/GetTenant", ANY_ROLE),
    ("/casebook.v1.TenantService/CreateApiToken", ADMIN_WRITE),
    ("/casebook.v1.TenantService/ListApiTokens", ADMIN_READ),
    ("/casebook.v1.TenantService/RevokeApiToken", ADMIN_WRITE),
    ("/casebook.v1.TenantService/WhoAmI", OPEN),

    ("/casebook.v1.BlobService/UploadBlob", WRITE),
    ("/casebook.v1.BlobService/DownloadBlob", READ),
    ("/casebook.v1.BlobService/GetBlob", READ),
    ("/casebook.v1.BlobService/FindMissingBlobs", READ),
    ("/casebook.v1.BlobService/ReadBlobs", READ),
    ("/casebook.v1.BlobService/DeleteBlob", WRITE),
    ("/casebook.v1.BlobService/VerifyBlobStore", ADMIN_WRITE),
    ("/casebook.v1.BlobService/CreateUpload", WRITE),
    ("/casebook.v1.BlobService/WriteUpload", WRITE),
    // Its handler hands out URLs to put to only to those who may write.
    ("/casebook.v1.BlobService/GetUpload", READ),
    ("/casebook.v1.BlobService/CompleteUpload", WRITE),
    ("/casebook.v1.BlobService/AbortUpload", WRITE),
    ("/casebook.v1.BlobService/CreateDownloadUrl", READ),

    ("/casebook.v1.EvidenceService/CreateEvidenceBundle", WRITE),
    ("/casebook.v1.EvidenceService/GetEvidenceBundle", READ),
    ("/casebook.v1.EvidenceService/ListEvidenceBundles", READ),
    ("/casebook.v1.EvidenceService/DeleteEvidenceBundle", WRITE),
    ("/casebook.v1.EvidenceService/UndeleteEvidenceBundle", WRITE),
    ("/casebook.v1.EvidenceService/GetDecisionEvidence", READ),
    ("/casebook.v1.EvidenceService/AttachBlob", WRITE),
    ("/casebook.v1.EvidenceService/GetAttachment", READ),
    ("/casebook.v1.EvidenceService/ListAttachments", READ),
    ("/casebook.v1.EvidenceService/DetachBlob", WRITE),
    ("/casebook.v1.EvidenceService/CreateShareLink", READ),
    ("/casebook.v1.EvidenceService/VerifyEvidence", READ),

    ("/casebook.v1.ObjectService/PutObject", WRITE),
    ("/casebook.v1.ObjectService/BatchPutObjects", WRITE),
    ("/casebook.v1.ObjectService/GetObject", READ),
    ("/casebook.v1.ObjectService/ListObjects", READ),
    ("/casebook.v1.ObjectService/SearchObjects", READ),
    ("/casebook.v1.ObjectService/CopyObject", WRITE),
    ("/casebook.v1.ObjectService/DeleteObject", WRITE),
    ("/casebook.v1.ObjectService/BatchDeleteObjects", WRITE),
    ("/casebook.v1.ObjectService/ListObjectVersions", READ),
    ("/casebook.v1.ObjectService/UpdateObjectVersion", WRITE),
    ("/casebook.v1.ObjectService/RollbackObject", WRITE),
    ("/casebook.v1.ObjectService/CompareObjectVersions", READ),
    ("/casebook.v1.ObjectService/GetObjectStatistics", READ),

    ("/casebook.v1.AdminService/GetStatus", ADMIN_READ),
    ("/casebook.v1.AdminService/GetCapabilities", OPEN),

    ("/grpc.health.v1.Health/Check", PUBLIC),
    ("/grpc.health.v1.Health/List", PUBLIC),
    ("/grpc.health.v1.Health/Watch", PUBLIC),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", PUBLIC),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", PUBLIC),
];

static METHODS: LazyLock<Vec<Method>> = LazyLock::new(|| {
    let mut described = described();
    let ruled: Vec<_> = RULES
        .iter()
        .map(|(path, rule)| (*path, Some(*rule), described.remove(*path).unwrap_or_default()))
        .collect();
    // Leaked once per process, and only while a rule is missing.
    let unruled = described.into_iter().map(|(path, streams)| (&*path.leak(), None, streams));
    ruled
        .into_iter()
        .chain(unruled)
        .enumerate()
        .map(|(index, (path, rule, streams))| Method {
            path,
            index,
            rule,
            is_stream: streams.from_server,
            is_client_stream: streams.from_client,
        })
        .collect()
});

static BY_PATH: LazyLock<HashMap<&'static str, &'static Method>> =
    LazyLock::new(|| METHODS.iter().map(|method| (method.path, method)).collect());

/// Every method of this server, in a fixed order.
pub fn methods() -> &'static [Method] {
    &METHODS
}

/// The method of a request's path; None if this server has no such method.
pub fn find(path: &str) -> Option<&'static Method> {
    BY_PATH.get(path).copied()
}

/// Full names of the services in `proto/`.
pub fn services() -> Vec<&'static str> {
    let mut names: Vec<_> = METHODS
        .iter()
        .map(Method::service)
        .filter(|name| !name.starts_with("grpc.reflection."))
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Which ways a method streams.
#[derive(Clone, Copy, Default)]
struct Streams {
    from_server: bool,
    from_client: bool,
}

/// Paths of what `proto/` describes, and which ways they stream.
fn described() -> BTreeMap<String, Streams> {
    // The build wrote these bytes; were they damaged, every method without a rule would merely be unknown.
    let files = prost_types::FileDescriptorSet::decode(pb::DESCRIPTOR_SET).unwrap_or_default();
    let mut paths = BTreeMap::new();
    for file in &files.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                let streams = Streams {
                    from_server: method.server_streaming(),
                    from_client: method.client_streaming(),
                };
                paths.insert(path, streams);
            }
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_reflect::DescriptorPool;
    use std::collections::HashSet;

    #[test]
    fn every_method_has_exactly_one_rule() {
        let pool = DescriptorPool::decode(pb::DESCRIPTOR_SET).unwrap();
        let described: HashSet<String> = pool
            .services()
            .flat_map(|service| service.methods().collect::<Vec<_>>())
            .map(|m| format!("/{}/{}", m.parent_service().full_name(), m.name()))
            .collect();
        assert!(described.len() > 30, "{described:?}");
        let ruled: HashSet<&str> = RULES.iter().map(|(path, _)| *path).collect();
        assert_eq!(ruled.len(), RULES.len(), "a method stands twice in the table");

        let without: Vec<_> = described.iter().filter(|p| !ruled.contains(p.as_str())).collect();
        assert!(without.is_empty(), "methods without a rule: {without:?}");
        let of_nothing: Vec<_> = ruled
            .iter()
            .filter(|p| !p.starts_with("/grpc.reflection.") && !described.contains(**p))
            .collect();
        assert!(of_nothing.is_empty(), "rules for no method: {of_nothing:?}");
        assert_eq!(methods().len(), RULES.len());
        assert_eq!(super::described().len(), described.len());
        let is_stream = |path: &str| find(path).unwrap().is_stream;
        assert!(is_stream("/casebook.v1.AuditService/ExportAudit"));
        assert!(is_stream("/grpc.health.v1.Health/Watch"));
        assert!(!is_stream("/casebook.v1.AuditService/ListAuditEntries"));
    }

    #[test]
    fn methods_know_their_place() {
        for (index, method) in methods().iter().enumerate() {
            assert_eq!(method.index, index);
            assert!(std::ptr::eq(find(method.path).unwrap(), method));
        }
        let method = find("/casebook.v1.DecisionService/GetDecision").unwrap();
        assert_eq!(method.name(), "casebook.v1.DecisionService/GetDecision");
        assert_eq!(method.service(), "casebook.v1.DecisionService");
        assert!(!method.is_client_stream);
        assert!(find("/casebook.v1.DocumentService/IngestChunks").unwrap().is_client_stream);
        assert!(find("/casebook.v1.BlobService/CompleteUpload").unwrap().is_long());
        assert!(find("/casebook.v1.BlobService/WriteUpload").unwrap().is_long());
        assert!(!method.is_long());
        assert!(find("/casebook.v1.DecisionService/Nope").is_none());
        assert!(find("").is_none());
        assert!(services().contains(&"grpc.health.v1.Health"));
        assert!(services().contains(&"casebook.v1.AuditService"));
    }

    fn allowed(path: &str, roles: &[Role], is_system: bool) -> bool {
        find(path).unwrap().allow(Roles::of(roles), is_system, TenantState::Active).is_ok()
    }

    #[test]
    fn roles_open_what_they_should() {
        use Role::*;
        let get = "/casebook.v1.DecisionService/GetDecision";
        let create = "/casebook.v1.DecisionService/CreateDecision";
        let audit = "/casebook.v1.AuditService/GetAuditEntry";
        let token = "/casebook.v1.TenantService/CreateApiToken";
        let table = [
            (get, [true, true, false, true]),
            (create, [false, true, false, true]),
            (audit, [false, false, true, true]),
            (token, [false, false, false, true]),
            ("/casebook.v1.TenantService/GetTenant", [true; 4]),
            ("/casebook.v1.TenantService/WhoAmI", [true; 4]),
        ];
        for (path, by_role) in table {
            for (role, expected) in Role::ALL.into_iter().zip(by_role) {
                assert_eq!(allowed(path, &[role], false), expected, "{path} {role:?}");
            }
        }
        assert!(allowed("/casebook.v1.AdminService/GetCapabilities", &[], false));
        let tenant = "/casebook.v1.TenantService/CreateTenant";
        assert!(!allowed(tenant, &[Admin], false));
        assert!(!allowed(tenant, &[Reader, Writer, Auditor], true));
        assert!(allowed(tenant, &[Admin], true));
    }

    #[test]
    fn the_tenant_s_state_decides_too() {
        let get = find("/casebook.v1.DecisionService/GetDecision").unwrap();
        let create = find("/casebook.v1.DecisionService/CreateDecision").unwrap();
        let reason = |m: &Method, state| m.allow(Roles::ALL, false, state).unwrap_err().reason();
        assert!(get.allow(Roles::ALL, false, TenantState::ReadOnly).is_ok());
        assert_eq!(reason(create, TenantState::ReadOnly), Reason::ReadOnly);
        assert_eq!(reason(get, TenantState::Suspended), Reason::ReadOnly);
        let health = find("/grpc.health.v1.Health/Check").unwrap();
        assert!(health.is_public());
        assert!(health.allow(Roles::NONE, false, TenantState::Suspended).is_ok());
    }

    #[test]
    fn a_method_without_a_rule_is_for_nobody() {
        let path = "/casebook.v1.New/Method";
        let (is_stream, is_client_stream) = (false, false);
        let method = Method { path, index: 0, rule: None, is_stream, is_client_stream };
        let error = method.allow(Roles::ALL, true, TenantState::Active).unwrap_err();
        assert_eq!(error.reason(), Reason::RoleMissing);
        assert!(error.to_string().contains("casebook.v1.New/Method"), "{error}");
    }
}
