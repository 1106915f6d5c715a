//! The only way from an `Error` to a gRPC status, and the only place that logs a failure.

use crate::error::{Error, Reason, Violation};
use http::{HeaderMap, HeaderValue};
use std::collections::HashMap;
use std::error::Error as _;
use std::fmt::Write as _;
use std::time::Duration;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, PreconditionViolation, StatusExt as _};
use uuid::Uuid;

/// `google.rpc.ErrorInfo.domain` of every failure.
pub const DOMAIN: &str = "casebook";

/// Clients lose or hang on larger trailers. What counts is the header, so this holds after base64, too.
pub const DETAILS_BYTES_MAX: usize = 4608;
pub const MESSAGE_BYTES_MAX: usize = 1024;
pub const VIOLATIONS_MAX: usize = 20;

const VIOLATIONS_BYTES_MAX: usize = 1600;
const FIELD_BYTES_MAX: usize = 200;
const DESCRIPTION_BYTES_MAX: usize = 300;
const METADATA_ENTRIES_MAX: usize = 8;
const METADATA_BYTES_MAX: usize = 1024;
/// An id is at most 255 bytes.
const NAME_BYTES_MAX: usize = 255;

/// How long to wait after a failure that is likely to pass.
const RETRY_CONFLICT: Duration = Duration::from_millis(100);
const RETRY_UNAVAILABLE: Duration = Duration::from_secs(1);

const PUSHBACK: &str = "grpc-retry-pushback-ms";

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        status(error, None)
    }
}

/// Why a stream of writes ends: the status says which message was the last to be answered, if one was.
pub fn of_stream(error: Error, last_sequence: Option<i64>) -> Status {
    status(error, last_sequence)
}

fn status(error: Error, last_sequence: Option<i64>) -> Status {
    let incident_id = log(&error);
    let mut message = error.to_string();
    if let Some(sequence) = last_sequence {
        let _ = write!(message, "; the last message that was answered is {sequence}");
    }
    if let Some(id) = incident_id {
        let _ = write!(message, ", incident {id}");
    }
    cut(&mut message, MESSAGE_BYTES_MAX);

    let mut details = ErrorDetails::new();
    let mut info = Info::default();
    let mut headers = MetadataMap::new();
    if let Some(id) = incident_id {
        info.add("incident_id", id.to_string());
    }
    if let Some(sequence) = last_sequence {
        info.add("last_sequence", sequence.to_string());
    }
    let error = match error {
        Error::Within { at, error } => {
            info.add("at", at);
            *error
        }
        error => error,
    };
    match &error {
        Error::Invalid { violations, .. } => {
            describe_violations(violations, &mut details, &mut info);
        }
        Error::NotFound { kind, id } => resource(&mut details, kind, id, "not found"),
        Error::Taken { kind, id, fields } => {
            resource(&mut details, kind, id, "already exists");
            if !fields.is_empty() {
                info.add("fields", fields.join(","));
            }
        }
        Error::Occupied { kind, fields } => {
            resource(&mut details, kind, "", "already exists");
            info.add("fields", fields.join(","));
        }
        Error::Stale { kind, id, current_etag } => {
            resource(&mut details, kind, id, "has changed");
            info.add("current_etag", current_etag.clone());
        }
        Error::Refused { reason, metadata, .. } => {
            for (key, value) in metadata {
                info.add(key, value.clone());
            }
            let description = shortened(&message, DESCRIPTION_BYTES_MAX);
            details.set_precondition_failure(vec![PreconditionViolation::new(
                reason.as_str(),
                "",
                description,
            )]);
        }
        Error::Exhausted { retry_after: Some(wait), .. } => {
            details.set_retry_info(Some(*wait));
            headers.insert(
                PUSHBACK,
                MetadataValue::from(wait.as_millis().min(u128::from(u64::MAX)) as u64),
            );
        }
        Error::Conflict(_) => {
            details.set_retry_info(Some(RETRY_CONFLICT));
        }
        Error::Unavailable { backend, .. } => {
            details.set_retry_info(Some(RETRY_UNAVAILABLE));
            info.add("backend", (*backend).to_owned());
        }
        Error::TooLarge { limit_bytes } => info.add("limit_bytes", limit_bytes.to_string()),
        Error::OutOfRange { metadata: (key, value), .. } => info.add(key, value.to_string()),
        Error::DataLoss { metadata, .. } => {
            for (key, value) in metadata {
                info.add(key, value.clone());
            }
        }
        Error::Exhausted { retry_after: None, .. }
        | Error::Expired(_)
        | Error::Within { .. }
        | Error::Unauthenticated { .. }
        | Error::Forbidden { .. }
        | Error::ShuttingDown
        | Error::CommitUnknown(_)
        | Error::DeadlineExceeded(_)
        | Error::Internal(_) => {}
    }
    build(code(&error), error.reason(), message, details, info, headers)
}

fn code(error: &Error) -> Code {
    match error {
        Error::Invalid { .. } => Code::InvalidArgument,
        Error::NotFound { .. } => Code::NotFound,
        Error::Expired(_) | Error::OutOfRange { .. } => Code::OutOfRange,
        Error::Taken { .. } | Error::Occupied { .. } => Code::AlreadyExists,
        Error::Stale { .. } | Error::Conflict(_) => Code::Aborted,
        Error::Refused { .. } => Code::FailedPrecondition,
        Error::Unauthenticated { .. } => Code::Unauthenticated,
        Error::Forbidden { .. } => Code::PermissionDenied,
        Error::Exhausted { .. } | Error::TooLarge { .. } => Code::ResourceExhausted,
        Error::DataLoss { .. } => Code::DataLoss,
        Error::Unavailable { .. } | Error::ShuttingDown => Code::Unavailable,
        Error::CommitUnknown(_) => Code::Unknown,
        Error::DeadlineExceeded(_) => Code::DeadlineExceeded,
        Error::Within { error, .. } => code(error),
        Error::Internal(_) => Code::Internal,
    }
}

/// The answer to a call of a method that this server does not have.
pub fn unimplemented(path: &str) -> Status {
    let message = format!("this server has no method {}", shortened(path, NAME_BYTES_MAX));
    plain(Code::Unimplemented, Reason::Unimplemented, message)
}

/// Gives a failure that tonic or a library made our form. `headers` are a response's headers or trailers; they stay
/// as they are when they tell of no failure, or of one that has details.
pub fn complete(headers: &mut HeaderMap) {
    let failed = headers.get(Status::GRPC_STATUS).is_some_and(|code| code != "0");
    if !failed || headers.contains_key(Status::GRPC_STATUS_DETAILS) {
        return;
    }
    let Some(bare) = Status::from_header_map(headers) else { return };
    let completed = completed(bare.code(), bare.message());
    headers.remove(Status::GRPC_MESSAGE);
    // Fails only on bytes that no header may hold; it writes the code first, and percent-encodes the message.
    let _ = completed.add_header(headers);
}

/// tonic's own failures can be told apart only by their text, which a test holds against the real thing.
fn completed(code: Code, message: &str) -> Status {
    let mentions = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    match code {
        Code::OutOfRange | Code::ResourceExhausted
            if mentions(&["message length too large", "exceeded while decompressing"]) =>
        {
            plain(Code::ResourceExhausted, Reason::MessageTooLarge, message.into())
        }
        // Nobody is left to read it; it is only for the log and the metrics.
        Code::Internal | Code::Unknown if mentions(&["error reading a body from connection"]) => {
            let message = "the caller went away before its request was whole";
            plain(Code::Cancelled, usual_reason(Code::Cancelled), message.into())
        }
        Code::Internal
            if mentions(&[
                "failed to decode Protobuf",
                "protocol error:",
                "Error decompressing:",
                "Unexpected EOF decoding",
                "Missing request message",
            ]) =>
        {
            let mut details = ErrorDetails::new();
            let description = shortened(message, DESCRIPTION_BYTES_MAX);
            details.add_bad_request_violation("", description);
            let message = shortened(message, MESSAGE_BYTES_MAX);
            let headers = MetadataMap::new();
            build(
                Code::InvalidArgument,
                Reason::FieldInvalid,
                message,
                details,
                Info::default(),
                headers,
            )
        }
        Code::Internal | Code::Unknown | Code::DataLoss => Error::internal(message).into(),
        Code::Unimplemented if message.is_empty() => {
            plain(code, Reason::Unimplemented, "this server has no such method".into())
        }
        _ => plain(code, usual_reason(code), message.into()),
    }
}

fn usual_reason(code: Code) -> Reason {
    match code {
        Code::InvalidArgument | Code::OutOfRange => Reason::FieldInvalid,
        Code::Cancelled | Code::DeadlineExceeded => Reason::DeadlineExceeded,
        Code::NotFound => Reason::NotFound,
        Code::AlreadyExists => Reason::Exists,
        Code::PermissionDenied => Reason::RoleMissing,
        Code::ResourceExhausted => Reason::Overloaded,
        Code::FailedPrecondition => Reason::PreconditionFailed,
        Code::Aborted => Reason::SerializationFailure,
        Code::Unimplemented => Reason::Unimplemented,
        Code::Unavailable => Reason::BackendUnavailable,
        Code::Unauthenticated => Reason::TokenInvalid,
        Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => Reason::Internal,
    }
}

fn plain(code: Code, reason: Reason, mut message: String) -> Status {
    cut(&mut message, MESSAGE_BYTES_MAX);
    build(code, reason, message, ErrorDetails::new(), Info::default(), MetadataMap::new())
}

fn build(
    code: Code,
    reason: Reason,
    message: String,
    mut details: ErrorDetails,
    info: Info,
    headers: MetadataMap,
) -> Status {
    details.set_error_info(reason.as_str(), DOMAIN, info.metadata);
    Status::with_error_details_and_metadata(code, message, details, headers)
}

/// `ErrorInfo.metadata` within its budget.
#[derive(Default)]
struct Info {
    metadata: HashMap<String, String>,
    bytes: usize,
}

impl Info {
    fn add(&mut self, key: &str, mut value: String) {
        cut(&mut value, NAME_BYTES_MAX);
        let bytes = key.len() + value.len();
        if self.metadata.len() < METADATA_ENTRIES_MAX && self.bytes + bytes <= METADATA_BYTES_MAX {
            self.bytes += bytes;
            self.metadata.insert(key.to_owned(), value);
        }
    }
}

fn describe_violations(violations: &[Violation], details: &mut ErrorDetails, info: &mut Info) {
    let mut bytes = 0;
    let mut shown = Vec::new();
    for violation in violations.iter().take(VIOLATIONS_MAX) {
        let field = shortened(&violation.field, FIELD_BYTES_MAX);
        let description = shortened(&violation.description, DESCRIPTION_BYTES_MAX);
        // Tags and lengths of the two strings and of their message.
        bytes += field.len() + description.len() + 9;
        if bytes > VIOLATIONS_BYTES_MAX {
            break;
        }
        shown.push(FieldViolation::new(field, description));
    }
    if shown.len() < violations.len() {
        info.add("violations_omitted", (violations.len() - shown.len()).to_string());
    }
    if !shown.is_empty() {
        details.set_bad_request(shown);
    }
}

fn resource(details: &mut ErrorDetails, kind: &str, id: &str, what: &str) {
    details.set_resource_info(shortened(kind, 63), shortened(id, NAME_BYTES_MAX), "", what);
}

/// Cuts text at the last character boundary at or before `bytes_max`.
fn cut(text: &mut String, bytes_max: usize) {
    text.truncate(shorter(text, bytes_max).len());
}

fn shortened(text: &str, bytes_max: usize) -> String {
    shorter(text, bytes_max).to_owned()
}

fn shorter(text: &str, bytes_max: usize) -> &str {
    if text.len() <= bytes_max {
        return text;
    }
    let mut end = bytes_max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Logs what an operator must see, once, and gives the incident id under which a fault of ours stands in the log.
/// The call's span says which call it was.
fn log(error: &Error) -> Option<Uuid> {
    match error {
        Error::Internal(_) => {
            let incident_id = Uuid::new_v4();
            tracing::error!(%incident_id, cause = causes(error), "internal error");
            return Some(incident_id);
        }
        Error::Unavailable { backend, .. } => {
            tracing::warn!(backend, cause = causes(error), "back end unavailable");
        }
        Error::DataLoss { message, .. } => tracing::error!(message, "what is kept is damaged"),
        Error::CommitUnknown(_) => {
            tracing::warn!(cause = causes(error), "outcome of a commit unknown");
        }
        Error::Conflict(_) => tracing::debug!(cause = causes(error), "transactions conflicted"),
        _ => {}
    }
    None
}

/// Every cause in turn, outermost first.
fn causes(error: &Error) -> String {
    let mut text = String::new();
    let mut source = error.source();
    while let Some(cause) = source {
        if !text.is_empty() {
            text.push_str(": ");
        }
        let _ = write!(text, "{cause}");
        source = cause.source();
    }
    text
}

/// The code of a response's headers or trailers, if they carry one.
pub fn code_of(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(HeaderValue::as_bytes(code)))
}

#[cfg(test)]
mod tests;
