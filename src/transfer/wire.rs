//! Calls of any method by its descriptor, patient with a busy server and with a broken connection.

use super::encoded::Encoded;
use super::message::{pool, to_json};
use super::{Result, TransferError};
use bytes::Bytes;
use http::uri::PathAndQuery;
use prost::Message;
use prost_reflect::{DynamicMessage, MessageDescriptor};
use std::time::{Duration, Instant};
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

/// How long one call is tried again before the transfer ends.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// The server has a limit of its own; this is only against a server that is none of ours.
const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// The server, and as whom to call it.
#[derive(Clone, Debug)]
pub struct Server {
    /// `http://host:port` or `unix:/path`.
    pub address: String,
    pub token: Option<String>,
    /// For callers that may act in more than one tenant.
    pub tenant: Option<String>,
}

/// One method of the protocol.
#[derive(Clone, Debug)]
pub struct Method {
    path: PathAndQuery,
    pub name: String,
    pub input: MessageDescriptor,
    pub output: MessageDescriptor,
}

impl Method {
    pub fn find(service: &str, method: &str) -> Result<Self> {
        let missing = || TransferError::internal(format!("no {service}.{method}"));
        let service =
            pool()?.get_service_by_name(&format!("casebook.v1.{service}")).ok_or_else(missing)?;
        let found = service.methods().find(|found| found.name() == method).ok_or_else(missing)?;
        let path = format!("/{}/{method}", service.full_name());
        Ok(Self {
            path: path.parse().map_err(TransferError::internal)?,
            name: format!("{}.{method}", service.name()),
            input: found.input(),
            output: found.output(),
        })
    }
}

/// A failure that is about this call, not about the connection or the credentials.
pub struct Refused {
    pub status: Status,
}

impl Refused {
    pub fn code(&self) -> Code {
        self.status.code()
    }

    /// The server's reason, or else the code.
    pub fn reason(&self) -> String {
        reason(&self.status).unwrap_or_else(|| format!("{:?}", self.status.code()))
    }

    pub fn is_too_large(&self) -> bool {
        self.code() == Code::ResourceExhausted
            || self.code() == Code::OutOfRange && reason(&self.status).is_none()
    }

    /// The fields that it names.
    pub fn fields(&self) -> Vec<String> {
        let details = self.status.get_details_bad_request();
        let violations = details.into_iter().flat_map(|details| details.field_violations);
        violations.map(|violation| violation.field).collect()
    }

    /// The id of the resource that it is about.
    pub fn resource(&self) -> Option<String> {
        Some(self.status.get_details_resource_info()?.resource_name)
    }

    /// As the end of a transfer.
    pub fn fatal(&self, method: &Method) -> TransferError {
        TransferError::Failed(format!(
            "{}: {}: {}",
            method.name,
            self.reason(),
            self.status.message()
        ))
    }
}

/// How one call went, if the transfer can go on.
pub type Answer = std::result::Result<DynamicMessage, Refused>;

pub struct Client {
    address: String,
    headers: MetadataMap,
    channel: Channel,
}

impl Client {
    pub async fn connect(server: &Server, actor: &'static str) -> Result<Self> {
        let mut headers = MetadataMap::new();
        let bearer = server.token.as_ref().map(|token| format!("Bearer {token}"));
        for (name, text) in
            [("authorization", bearer), ("x-casebook-tenant", server.tenant.clone())]
        {
            let Some(text) = text else { continue };
            let value: MetadataValue<Ascii> = text.parse().map_err(|_| {
                TransferError::Usage(format!("{name} has bytes that no header may"))
            })?;
            headers.insert(name, value);
        }
        headers.insert("x-casebook-actor", MetadataValue::from_static(actor));
        let wrong = |error| {
            TransferError::Usage(format!("{:?} is not an address: {error}", server.address))
        };
        let endpoint = Endpoint::from_shared(server.address.clone())
            .and_then(|endpoint| {
                endpoint.user_agent(concat!("casebook/", env!("CARGO_PKG_VERSION")))
            })
            .map_err(wrong)?
            .connect_timeout(Duration::from_secs(5))
            .timeout(CALL_TIMEOUT);
        let address = server.address.clone();
        let channel = endpoint.connect().await.map_err(|error| TransferError::Unreachable {
            address: address.clone(),
            why: error.to_string(),
        })?;
        Ok(Self { address, headers, channel })
    }

    /// Calls until there is an answer or patience ends. A write must have a request id.
    pub async fn call(&self, method: &Method, request: &DynamicMessage) -> Result<Answer> {
        let encoded = Bytes::from(request.encode_to_vec());
        let mut since = None;
        let mut attempt = 0;
        loop {
            let status = match self.once(method, encoded.clone()).await {
                Ok(answer) => return self.read(method, answer).map(Ok),
                Err(status) => status,
            };
            let began = *since.get_or_insert_with(Instant::now);
            if !passes(&status) {
                return match ends(&status) {
                    true => Err(TransferError::Failed(self.told(&status))),
                    false => Ok(Err(Refused { status })),
                };
            }
            let pause = pause(&status, attempt);
            let Some(pause) = pause.filter(|pause| began.elapsed() + *pause < PATIENCE) else {
                return Err(self.gave_up(&status));
            };
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    /// How large a message may be, that is, the smaller of what the server takes and gives; `None` if it does not say.
    pub async fn message_bytes_max(&self) -> Result<Option<u64>> {
        let method = Method::find("AdminService", "GetCapabilities")?;
        let asked = DynamicMessage::new(method.input.clone());
        let Ok(answer) = self.call(&method, &asked).await? else { return Ok(None) };
        let answer = to_json(&answer)?;
        let limits = answer["limits"].as_array().into_iter().flatten().filter(|limit| {
            let name = limit["name"].as_str().unwrap_or_default();
            name.contains("message_in_max_bytes") || name.contains("message_out_max_bytes")
        });
        Ok(limits.filter_map(|limit| limit["value"].as_str()?.parse().ok()).min())
    }

    async fn once(&self, method: &Method, encoded: Bytes) -> std::result::Result<Bytes, Status> {
        let mut client = Grpc::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        client.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let mut request = Request::new(encoded);
        *request.metadata_mut() = self.headers.clone();
        Ok(client.unary(request, method.path.clone(), Encoded).await?.into_inner())
    }

    fn read(&self, method: &Method, answer: Bytes) -> Result<DynamicMessage> {
        DynamicMessage::decode(method.output.clone(), answer).map_err(|error| {
            TransferError::Failed(format!(
                "{} answers {} with what cannot be read: {error}",
                self.address, method.name
            ))
        })
    }

    fn told(&self, status: &Status) -> String {
        let reason = reason(status).unwrap_or_else(|| format!("{:?}", status.code()));
        format!("{} refuses: {reason}: {}", self.address, status.message())
    }

    fn gave_up(&self, status: &Status) -> TransferError {
        match status.code() {
            Code::ResourceExhausted | Code::Aborted => TransferError::Failed(self.told(status)),
            _ => TransferError::Unreachable {
                address: self.address.clone(),
                why: status.message().to_owned(),
            },
        }
    }
}

fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

/// Whether the same call may work later. A failure without a reason is not the server's word but the connection's.
fn passes(status: &Status) -> bool {
    let reason = reason(status);
    match status.code() {
        Code::Unavailable | Code::Aborted | Code::DeadlineExceeded => true,
        Code::ResourceExhausted => reason.as_deref() != Some("MESSAGE_TOO_LARGE"),
        Code::Unknown | Code::Internal | Code::Cancelled => reason
            .as_deref()
            .is_none_or(|reason| matches!(reason, "COMMIT_UNKNOWN" | "DEADLINE_EXCEEDED")),
        _ => false,
    }
}

/// Whether every other call would fail the same way.
fn ends(status: &Status) -> bool {
    matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied)
        || matches!(reason(status).as_deref(), Some("READ_ONLY" | "SCHEMA_OUTDATED"))
}

/// What the server asks for, or else twice as long each time, and a little more, so that the calls in flight do not
/// come back all at once. `None` where the server does not want the call again.
fn pause(status: &Status, attempt: u32) -> Option<Duration> {
    let pushback = status.metadata().get("grpc-retry-pushback-ms");
    let asked = match pushback.map(|value| value.to_str().ok()?.parse::<u64>().ok()) {
        Some(None) => return None,
        Some(Some(ms)) => Some(Duration::from_millis(ms)),
        None => status.get_details_retry_info().and_then(|info| info.retry_delay),
    };
    let usual = (PAUSE_MIN * 2_u32.pow(attempt.min(10))).min(PAUSE_MAX);
    Some(asked.unwrap_or(usual).max(usual).mul_f64(rand::random_range(1.0..1.3)))
}

/// The token of a message's revision field.
pub fn revision(page: &DynamicMessage) -> Option<String> {
    let revision = super::message::inner(page, "read_at")?;
    to_json(&revision).ok()?.get("token")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    fn status(code: Code, reason: &str) -> Status {
        let mut details = ErrorDetails::new();
        details.set_error_info(reason, "casebook", []);
        Status::with_error_details(code, "why", details)
    }

    #[test]
    fn only_what_passes_is_tried_again() {
        for (status, expected) in [
            (status(Code::Unavailable, "BACKEND_UNAVAILABLE"), true),
            (status(Code::ResourceExhausted, "OVERLOADED"), true),
            (status(Code::ResourceExhausted, "MESSAGE_TOO_LARGE"), false),
            (status(Code::Unknown, "COMMIT_UNKNOWN"), true),
            (Status::unknown("transport error"), true),
            (status(Code::Internal, "INTERNAL"), false),
            (status(Code::InvalidArgument, "FIELD_INVALID"), false),
            (Status::unimplemented(""), false),
        ] {
            assert_eq!(passes(&status), expected, "{status}");
        }
        assert!(ends(&status(Code::FailedPrecondition, "READ_ONLY")));
        assert!(!ends(&status(Code::FailedPrecondition, "ON_HOLD")));
    }

    #[test]
    fn a_pause_is_what_the_server_asks_for() {
        let mut busy = status(Code::ResourceExhausted, "OVERLOADED");
        busy.metadata_mut().insert("grpc-retry-pushback-ms", "2000".parse().unwrap());
        let seconds = Duration::from_secs;
        assert!((seconds(2)..seconds(3)).contains(&pause(&busy, 0).unwrap()));
        busy.metadata_mut().insert("grpc-retry-pushback-ms", "-1".parse().unwrap());
        assert_eq!(pause(&busy, 0), None);
        let silent = Status::unavailable("away");
        assert!((PAUSE_MIN..PAUSE_MIN * 2).contains(&pause(&silent, 0).unwrap()));
        assert!(pause(&silent, 30).unwrap() < PAUSE_MAX * 2);
    }
}
