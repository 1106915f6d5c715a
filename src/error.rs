//! One error type, named after what the caller can do about it. It depends on nothing else in the crate.

use std::time::Duration;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any cause, kept for the log and never shown to a caller. Shared, because one lost connection answers a whole batch.
pub type Cause = std::sync::Arc<dyn std::error::Error + Send + Sync>;

/// The stable, machine-readable name of a failure: `google.rpc.ErrorInfo.reason`, and
/// `casebook.v1.ErrorReason` without its prefix.
macro_rules! reasons {
    ($($name:ident = $text:literal),* $(,)?) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($name,)* }

        impl Reason {
            /// Every reason, so that a test can hold them against the protocol and the test suite.
            pub const ALL: &[Reason] = &[$(Reason::$name,)*];

            pub fn as_str(self) -> &'static str {
                match self { $(Reason::$name => $text,)* }
            }
        }
    };
}

reasons! {
    FieldInvalid = "FIELD_INVALID",
    NulByte = "NUL_BYTE",
    JsonTooLarge = "JSON_TOO_LARGE",
    NumberNotExact = "NUMBER_NOT_EXACT",
    FilterInvalid = "FILTER_INVALID",
    UnknownField = "UNKNOWN_FIELD",
    FieldImmutable = "FIELD_IMMUTABLE",
    PageTokenMismatch = "PAGE_TOKEN_MISMATCH",
    BadRevision = "BAD_REVISION",
    RevisionExpired = "REVISION_EXPIRED",
    RequestIdReused = "REQUEST_ID_REUSED",
    DuplicateInBatch = "DUPLICATE_IN_BATCH",
    HeaderRequired = "HEADER_REQUIRED",
    DigestMismatch = "DIGEST_MISMATCH",
    SizeMismatch = "SIZE_MISMATCH",
    WrongOffset = "WRONG_OFFSET",
    Exists = "EXISTS",
    ExistsDifferent = "EXISTS_DIFFERENT",
    NotFound = "NOT_FOUND",
    EtagMismatch = "ETAG_MISMATCH",
    PreconditionFailed = "PRECONDITION_FAILED",
    ReferenceMissing = "REFERENCE_MISSING",
    Referenced = "REFERENCED",
    OnHold = "ON_HOLD",
    RetentionFloor = "RETENTION_FLOOR",
    SearchInvalid = "SEARCH_INVALID",
    InUse = "IN_USE",
    DimensionMismatch = "DIMENSION_MISMATCH",
    VectorInvalid = "VECTOR_INVALID",
    ZeroVector = "ZERO_VECTOR",
    ModelMismatch = "MODEL_MISMATCH",
    NotIndexable = "NOT_INDEXABLE",
    OperationActive = "OPERATION_ACTIVE",
    VectorDamaged = "VECTOR_DAMAGED",
    ReadOnly = "READ_ONLY",
    SchemaOutdated = "SCHEMA_OUTDATED",
    TokenMissing = "TOKEN_MISSING",
    TokenInvalid = "TOKEN_INVALID",
    RoleMissing = "ROLE_MISSING",
    TenantMismatch = "TENANT_MISMATCH",
    MessageTooLarge = "MESSAGE_TOO_LARGE",
    BlobTooLarge = "BLOB_TOO_LARGE",
    BlobCorrupt = "BLOB_CORRUPT",
    PoolTimeout = "POOL_TIMEOUT",
    Overloaded = "OVERLOADED",
    SerializationFailure = "SERIALIZATION_FAILURE",
    BackendUnavailable = "BACKEND_UNAVAILABLE",
    CommitUnknown = "COMMIT_UNKNOWN",
    Internal = "INTERNAL",
    DeadlineExceeded = "DEADLINE_EXCEEDED",
    Unimplemented = "UNIMPLEMENTED",
    ShuttingDown = "SHUTTING_DOWN",
    NotConfigured = "NOT_CONFIGURED",
    BlobEncrypted = "BLOB_ENCRYPTED",
    NotSignable = "NOT_SIGNABLE",
    UploadExpired = "UPLOAD_EXPIRED",
    UploadIncomplete = "UPLOAD_INCOMPLETE",
    UploadCompleted = "UPLOAD_COMPLETED",
    TooManyUploads = "TOO_MANY_UPLOADS",
    ChecksumMismatch = "CHECKSUM_MISMATCH",
}

/// One field of a request that is wrong, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Violation {
    /// The path in the request: `decision.avg_confidence`, `requests[17].decision.id`.
    pub field: String,
    /// A sentence fragment that completes "<field> ...".
    pub description: String,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Change the request: these fields are wrong.
    #[error("{}", describe(.violations))]
    Invalid { reason: Reason, violations: Vec<Violation> },
    /// Look elsewhere: the caller's tenant has no such resource. Another tenant's resource reads the same.
    #[error("{kind} \"{id}\" not found")]
    NotFound { kind: &'static str, id: String },
    /// Look in the archive: what is asked for lies before what the database still holds.
    #[error("{0}")]
    Expired(String),
    /// Choose another id, or accept the one that is there. `fields` names what differs, if content was compared.
    #[error("{kind} \"{id}\" already exists{}", differing(.fields))]
    Taken { kind: &'static str, id: String, fields: Vec<String> },
    /// Change the fields that no two resources share, or accept the one that has them.
    #[error("another {kind} has the same {}", .fields.join(" and "))]
    Occupied { kind: &'static str, fields: &'static [&'static str] },
    /// Read again: the resource has changed.
    #[error("{kind} \"{id}\" has changed: its etag is now {current_etag}")]
    Stale { kind: &'static str, id: String, current_etag: String },
    /// Change the state first: the system is not in the state that the call needs.
    #[error("{message}")]
    Refused { reason: Reason, message: String, metadata: Vec<(&'static str, String)> },
    /// Present a valid credential.
    #[error("{message}")]
    Unauthenticated { reason: Reason, message: &'static str },
    /// Ask for the right.
    #[error("{message}")]
    Forbidden { reason: Reason, message: String },
    /// Come back later, or send less.
    #[error("{message}")]
    Exhausted { reason: Reason, message: String, retry_after: Option<Duration> },
    /// Send less: the blob is larger than the server takes.
    #[error("the blob is larger than {limit_bytes} bytes")]
    TooLarge { limit_bytes: u64 },
    /// Ask for what is there.
    #[error("{message}")]
    OutOfRange { message: String, metadata: (&'static str, i64) },
    /// Bring it back from elsewhere: what is kept is not what was given.
    #[error("{message}")]
    DataLoss { reason: Reason, message: String, metadata: Vec<(&'static str, String)> },
    /// Try again: concurrent transactions conflicted and nothing was committed.
    #[error("concurrent transactions kept conflicting; nothing was written")]
    Conflict(#[source] Cause),
    /// Try again later: a back end cannot be reached and nothing was committed.
    #[error("{backend} cannot be reached; nothing was written")]
    Unavailable {
        backend: &'static str,
        #[source]
        cause: Cause,
    },
    /// Try again on another replica: this one is going away.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// Read before writing again: the connection was lost while committing.
    #[error(
        "the connection was lost during COMMIT: read before writing again, or send a request_id"
    )]
    CommitUnknown(#[source] Cause),
    /// Allow more time.
    #[error("the deadline passed{0}")]
    DeadlineExceeded(&'static str),
    /// The same, of one part of a call.
    #[error("{at}: {error}")]
    Within { at: String, error: Box<Error> },
    /// Report it.
    #[error("internal error")]
    Internal(#[source] Cause),
}

fn describe(violations: &[Violation]) -> String {
    match violations {
        [] => "the request is invalid".into(),
        [only] => format!("{} {}", only.field, only.description),
        [first, rest @ ..] => {
            format!("{} {} (and {} more)", first.field, first.description, rest.len())
        }
    }
}

fn differing(fields: &[String]) -> String {
    if fields.is_empty() { String::new() } else { format!(" with other {}", fields.join(", ")) }
}

impl Error {
    /// One field is wrong.
    pub fn invalid(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::invalid_because(Reason::FieldInvalid, field, description)
    }

    /// One field is wrong, for a reason that a program may want to tell apart.
    pub fn invalid_because(
        reason: Reason,
        field: impl Into<String>,
        description: impl Into<String>,
    ) -> Self {
        let violation = Violation { field: field.into(), description: description.into() };
        Self::Invalid { reason, violations: vec![violation] }
    }

    pub fn not_found(kind: &'static str, id: impl Into<String>) -> Self {
        Self::NotFound { kind, id: id.into() }
    }

    /// A version whose content the database no longer holds.
    pub fn archived(kind: &str, id: &str, version: i64) -> Self {
        Self::Expired(format!("version {version} of {kind} \"{id}\" is no longer kept"))
    }

    pub fn internal(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(Cause::from(cause.into()))
    }

    pub fn unavailable(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unavailable { backend: "postgres", cause: Cause::from(cause.into()) }
    }

    /// The machine-readable reason.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Invalid { reason, .. }
            | Self::Refused { reason, .. }
            | Self::Unauthenticated { reason, .. }
            | Self::Forbidden { reason, .. }
            | Self::Exhausted { reason, .. }
            | Self::DataLoss { reason, .. } => *reason,
            Self::TooLarge { .. } => Reason::BlobTooLarge,
            Self::OutOfRange { .. } => Reason::WrongOffset,
            Self::NotFound { .. } => Reason::NotFound,
            Self::Expired(_) => Reason::RevisionExpired,
            Self::Taken { fields, .. } if fields.is_empty() => Reason::Exists,
            Self::Taken { .. } => Reason::ExistsDifferent,
            Self::Occupied { .. } => Reason::Exists,
            Self::Stale { .. } => Reason::EtagMismatch,
            Self::Conflict(_) => Reason::SerializationFailure,
            Self::Unavailable { .. } => Reason::BackendUnavailable,
            Self::ShuttingDown => Reason::ShuttingDown,
            Self::CommitUnknown(_) => Reason::CommitUnknown,
            Self::DeadlineExceeded(_) => Reason::DeadlineExceeded,
            Self::Within { error, .. } => error.reason(),
            Self::Internal(_) => Reason::Internal,
        }
    }

    /// Whether running the same operation again is safe (nothing was committed) and may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Conflict(_) | Self::Unavailable { .. })
    }

    /// The same error of one part of a call: `operations[3].create_claim`.
    pub fn at(self, at: &str) -> Self {
        match self {
            Self::Invalid { .. } => self.under(at),
            // About the whole server, whatever the part.
            Self::Conflict(_)
            | Self::Unavailable { .. }
            | Self::ShuttingDown
            | Self::CommitUnknown(_)
            | Self::DeadlineExceeded(_)
            | Self::Internal(_)
            | Self::Within { .. } => self,
            _ => Self::Within { at: at.to_owned(), error: Box::new(self) },
        }
    }

    /// The same error with every field path under `prefix`: `decision.id` becomes `requests[3].decision.id`.
    pub fn under(mut self, prefix: &str) -> Self {
        if let Self::Invalid { violations, .. } = &mut self {
            for violation in violations {
                violation.field = match violation.field.as_str() {
                    "" => prefix.to_owned(),
                    field => format!("{prefix}.{field}"),
                };
            }
        }
        self
    }
}
