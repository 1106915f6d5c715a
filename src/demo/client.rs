//! The calls of the demonstration, patient with a busy server and content with what is there already.

use super::cases::Case;
use super::random::Random;
use super::{DemoError, Options, reason, request};
use crate::pb;
use crate::pb::decision_service_client::DecisionServiceClient;
use crate::pb::policy_service_client::PolicyServiceClient;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

const ATTEMPTS: u32 = 6;
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// However long the server asks for: a person is waiting.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What became of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    Created,
    /// An earlier run, or an earlier attempt of this one, had recorded it.
    Present,
}

impl Recorded {
    fn from_receipt(receipt: Option<&pb::WriteReceipt>) -> Self {
        match receipt {
            Some(receipt) if receipt.replayed || receipt.unchanged => Self::Present,
            _ => Self::Created,
        }
    }
}

/// Puts the credentials on every call.
#[derive(Clone)]
struct Headers {
    authorization: Option<MetadataValue<Ascii>>,
    tenant: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let headers = request.metadata_mut();
        if let Some(authorization) = &self.authorization {
            headers.insert("authorization", authorization.clone());
        }
        if let Some(tenant) = &self.tenant {
            headers.insert("x-casebook-tenant", tenant.clone());
        }
        headers.insert("x-casebook-actor", MetadataValue::from_static("casebook-demo"));
        Ok(request)
    }
}

type Intercepted = InterceptedService<Channel, Headers>;

pub struct Client {
    address: String,
    /// Begins every request id.
    key: String,
    decisions: DecisionServiceClient<Intercepted>,
    policies: PolicyServiceClient<Intercepted>,
}

impl Client {
    pub async fn connect(options: &Options, key: String) -> Result<Self, DemoError> {
        let address = with_scheme(&options.address);
        let header = |name, text: Option<String>| -> Result<_, DemoError> {
            let Some(text) = text else { return Ok(None) };
            let value: MetadataValue<Ascii> = text.parse().map_err(|_| DemoError::Header(name))?;
            Ok(Some(value))
        };
        let bearer = options.token.as_ref().map(|token| format!("Bearer {token}"));
        let headers = Headers {
            authorization: header("token", bearer)?,
            tenant: header("tenant", options.tenant.clone())?,
        };
        let invalid = |_| DemoError::Address { address: options.address.clone() };
        let endpoint = Endpoint::from_shared(address.clone())
            .and_then(|endpoint| {
                endpoint.user_agent(concat!("casebook-demo/", env!("CARGO_PKG_VERSION")))
            })
            .map_err(invalid)?
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(60));
        let channel = endpoint
            .connect()
            .await
            .map_err(|cause| DemoError::Unreachable { address: address.clone(), cause })?;
        Ok(Self {
            decisions: DecisionServiceClient::with_interceptor(channel.clone(), headers.clone()),
            policies: PolicyServiceClient::with_interceptor(channel, headers),
            address,
            key,
        })
    }

    pub async fn create_rule(
        &self,
        index: usize,
        rule: pb::PolicyRule,
    ) -> Result<Recorded, DemoError> {
        let call = pb::CreatePolicyRuleRequest {
            policy_rule_id: rule.id.clone(),
            policy_rule: Some(rule),
            options: Some(self.once_or_equal(format!("r{index}"))),
        };
        let answer = patiently(|| {
            let (mut service, call) = (self.policies.clone(), call.clone());
            async move { service.create_policy_rule(call).await }
        });
        let what = || format!("the policy rule {}", call.policy_rule_id);
        let answer = self.unless_there(answer.await, what)?;
        Ok(answer.map_or(Recorded::Present, |answer| {
            Recorded::from_receipt(answer.into_inner().receipt.as_ref())
        }))
    }

    pub async fn create_decision(&self, index: usize, case: &Case) -> Result<Recorded, DemoError> {
        let call = request(case, Some(self.once_or_equal(format!("d{index}"))));
        let answer = patiently(|| {
            let (mut service, call) = (self.decisions.clone(), call.clone());
            async move { service.create_decision(call).await }
        });
        let answer = self.unless_there(answer.await, || format!("the decision {}", case.id))?;
        Ok(answer.map_or(Recorded::Present, |answer| {
            Recorded::from_receipt(answer.into_inner().receipt.as_ref())
        }))
    }

    /// None where an id of the batch is taken by other content, so that nothing of it was recorded.
    pub async fn create_batch(
        &self,
        batch: &[(usize, Case)],
    ) -> Result<Option<Vec<Recorded>>, DemoError> {
        let first = batch.first().map_or(0, |(index, _)| *index);
        let call = pb::BatchCreateDecisionsRequest {
            requests: batch.iter().map(|(_, case)| request(case, None)).collect(),
            options: Some(self.once_or_equal(format!("b{first}-{}", batch.len()))),
        };
        let answer = patiently(|| {
            let (mut service, call) = (self.decisions.clone(), call.clone());
            async move { service.batch_create_decisions(call).await }
        });
        let what = || format!("a batch of {} decisions", batch.len());
        let Some(answer) = self.unless_there(answer.await, what)? else { return Ok(None) };
        let answer = answer.into_inner();
        Ok(Some(match Recorded::from_receipt(answer.receipt.as_ref()) {
            Recorded::Present => vec![Recorded::Present; batch.len()],
            Recorded::Created => by_age(&answer.decisions, batch.len()),
        }))
    }

    pub async fn create_override(
        &self,
        index: usize,
        decision_id: &str,
        override_id: String,
        overruling: pb::Override,
    ) -> Result<Recorded, DemoError> {
        let call = pb::CreateOverrideRequest {
            override_id,
            decision_id: decision_id.into(),
            r#override: Some(overruling),
            decision_etag: String::new(),
            options: Some(self.once(format!("o{index}"))),
        };
        let answer = patiently(|| {
            let (mut service, call) = (self.decisions.clone(), call.clone());
            async move { service.create_override(call).await }
        });
        let what = || format!("the override of {decision_id}");
        let answer = self.unless_there(answer.await, what)?;
        Ok(answer.map_or(Recorded::Present, |answer| {
            Recorded::from_receipt(answer.into_inner().receipt.as_ref())
        }))
    }

    /// A repeated run within the hour sends the same keys with the same content, and the server replays its answers.
    fn once(&self, of: String) -> pb::WriteOptions {
        pb::WriteOptions { request_id: format!("{}-{of}", self.key), ..Default::default() }
    }

    /// The same for what may be there from longer ago.
    fn once_or_equal(&self, of: String) -> pb::WriteOptions {
        pb::WriteOptions { on_conflict: pb::OnConflict::ReturnIfEqual.into(), ..self.once(of) }
    }

    /// None where the id is taken by other content: a later hour's run has other times, and the first one stands.
    fn unless_there<T>(
        &self,
        answer: Result<T, Status>,
        what: impl FnOnce() -> String,
    ) -> Result<Option<T>, DemoError> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(status) => match status.code() {
                Code::AlreadyExists => Ok(None),
                Code::Unauthenticated | Code::PermissionDenied => Err(DemoError::Refused {
                    address: self.address.clone(),
                    status: Box::new(status),
                }),
                _ => Err(DemoError::Call { what: what(), status: Box::new(status) }),
            },
        }
    }
}

/// Calls until it works, the failure is no passing one, or patience ends. Safe for writes: each has a request id.
async fn patiently<T, F, Call>(mut call: F) -> Result<T, Status>
where
    F: FnMut() -> Call,
    Call: Future<Output = Result<T, Status>>,
{
    let mut attempt = 0;
    loop {
        let status = match call().await {
            Ok(answer) => return Ok(answer),
            Err(status) => status,
        };
        attempt += 1;
        let passing = match status.code() {
            Code::Unavailable | Code::Aborted => true,
            // The same code says that a message is too large, which no pause makes smaller.
            Code::ResourceExhausted => reason(&status).as_deref() != Some("MESSAGE_TOO_LARGE"),
            _ => false,
        };
        if !passing || attempt == ATTEMPTS {
            return Err(status);
        }
        tokio::time::sleep(pause(&status, attempt)).await;
    }
}

/// What the server asks for, or else twice as long each time; a little more, so that the calls in flight do not come
/// back all at once.
fn pause(status: &Status, attempt: u32) -> Duration {
    let asked = status.get_details_retry_info().and_then(|info| info.retry_delay);
    let base = asked.unwrap_or(PAUSE_MIN * 2_u32.pow(attempt - 1));
    static TURN: AtomicU64 = AtomicU64::new(0);
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    let mut random = Random::keyed(u64::from(std::process::id()), turn, "pause");
    base.min(PAUSE_MAX).mul_f64(random.between(1.0, 1.3))
}

/// Which decisions of a mixed batch are new: one transaction made them all, so that they are the youngest together.
fn by_age(decisions: &[pb::Decision], expected: usize) -> Vec<Recorded> {
    let age = |decision: &pb::Decision| {
        let created = decision.meta.as_ref()?.create_time?;
        Some(i128::from(created.seconds) * 1_000_000_000 + i128::from(created.nanos))
    };
    let newest = decisions.iter().filter_map(age).max();
    let mut recorded: Vec<Recorded> = decisions
        .iter()
        .map(|decision| match (age(decision), newest) {
            (Some(created), Some(newest)) if newest - created > 1_000_000_000 => Recorded::Present,
            _ => Recorded::Created,
        })
        .collect();
    recorded.resize(expected, Recorded::Created);
    recorded
}

fn with_scheme(address: &str) -> String {
    if address.contains("://") { address.into() } else { format!("http://{address}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    #[test]
    fn a_pause_is_what_the_server_asks_for_within_reason() {
        let asking = |delay: Duration| {
            let details = ErrorDetails::with_retry_info(Some(delay));
            Status::with_error_details(Code::ResourceExhausted, "busy", details)
        };
        let seconds = Duration::from_secs;
        assert!((seconds(2)..seconds(3)).contains(&pause(&asking(seconds(2)), 1)));
        assert!((PAUSE_MAX..PAUSE_MAX * 2).contains(&pause(&asking(seconds(600)), 1)));
        let silent = Status::unavailable("away");
        assert!((PAUSE_MIN..PAUSE_MIN * 2).contains(&pause(&silent, 1)));
        assert!((PAUSE_MIN * 8..PAUSE_MIN * 16).contains(&pause(&silent, 4)));
    }

    #[tokio::test]
    async fn only_what_passes_is_tried_again() {
        for (status, expected) in [
            (Status::invalid_argument("wrong"), 1),
            (too_large(), 1),
            (Status::with_error_details(Code::Unavailable, "away", at_once()), ATTEMPTS),
        ] {
            let mut calls = 0;
            let answer: Result<(), Status> = patiently(|| {
                calls += 1;
                std::future::ready(Err(status.clone()))
            })
            .await;
            assert!(answer.is_err());
            assert_eq!(calls, expected, "{status}");
        }
    }

    fn at_once() -> ErrorDetails {
        ErrorDetails::with_retry_info(Some(Duration::from_millis(1)))
    }

    fn too_large() -> Status {
        let mut details = at_once();
        details.set_error_info("MESSAGE_TOO_LARGE", "casebook", []);
        Status::with_error_details(Code::ResourceExhausted, "too large", details)
    }
}
