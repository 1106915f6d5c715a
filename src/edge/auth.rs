//! Says who is calling and in which tenant, and refuses whoever may not.

use super::credentials::{Credentials, Directory, Verified};
use super::deadline::DeadlineLimits;
use super::{Arrival, Repeated, refusal, single};
use crate::error::{Error, Reason, Result};
use crate::rpc::access::Method;
use crate::rpc::status;
use crate::rpc::stream::Renewal;
use crate::store::caller::{Caller, Roles, SYSTEM_TENANT, Standing, TenantState, is_tenant_id};
use crate::telemetry::Metrics;
use futures_util::future::BoxFuture;
use http::request::Parts;
use http::{HeaderMap, HeaderName, Request, Response, header};
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::timeout_at;
use tonic::body::Body;
use tonic::transport::server::{TcpConnectInfo, UdsConnectInfo};
use tower::{Layer, Service};
use tower_http::request_id::RequestId;
use uuid::Uuid;

static TENANT: HeaderName = HeaderName::from_static("x-casebook-tenant");
static ACTOR: HeaderName = HeaderName::from_static("x-casebook-actor");
const ACTOR_BYTES_MAX: usize = 255;
const USER_AGENT_BYTES_MAX: usize = 255;

/// How callers prove who they are.
#[derive(Clone, Debug)]
pub enum AuthMode {
    /// An API token.
    Token,
    /// Not at all: everyone is "anonymous" and may do everything.
    None { default_tenant: Arc<str> },
}

/// Who may pass.
pub struct Authenticator {
    mode: AuthMode,
    credentials: Credentials,
    anonymous: Arc<str>,
}

/// The principal's side of a caller.
struct Principal {
    principal: Arc<str>,
    tenant: Arc<str>,
    roles: Roles,
    is_system: bool,
    expire_time: Option<std::time::SystemTime>,
    standing: Standing,
}

impl Authenticator {
    /// `credential_cache` bounds how long a revocation made elsewhere takes.
    pub fn new(mode: AuthMode, directory: Directory, credential_cache: Duration) -> Self {
        let credentials = Credentials::new(directory, credential_cache);
        Authenticator { mode, credentials, anonymous: "anonymous".into() }
    }

    /// Makes a revocation made here take effect at once.
    pub fn forget(&self, uid: Uuid) {
        self.credentials.forget(uid);
    }

    /// Makes a change of a tenant's state made here take effect at once.
    pub fn forget_tenant(&self, tenant: &str) {
        self.credentials.forget_tenant(tenant);
    }

    async fn principal(&self, headers: &HeaderMap) -> Result<Principal> {
        match &self.mode {
            AuthMode::Token => {
                let token = bearer(headers)?;
                let verified = self.credentials.verify(token).await?.ok_or(TOKEN_INVALID)?;
                self.in_tenant(&verified, named_tenant(headers)?).await
            }
            AuthMode::None { default_tenant } => {
                let tenant = match named_tenant(headers)? {
                    Some(name) => Arc::from(name),
                    None => default_tenant.clone(),
                };
                let standing = self.credentials.standing(&tenant).await?.ok_or_else(mismatch)?;
                Ok(Principal {
                    principal: self.anonymous.clone(),
                    roles: Roles::ALL,
                    is_system: &*tenant == SYSTEM_TENANT,
                    expire_time: None,
                    tenant,
                    standing,
                })
            }
        }
    }

    async fn in_tenant(&self, verified: &Verified, named: Option<&str>) -> Result<Principal> {
        let is_system = &*verified.tenant == SYSTEM_TENANT;
        let mut principal = Principal {
            principal: verified.principal.clone(),
            tenant: verified.tenant.clone(),
            roles: verified.roles,
            is_system,
            expire_time: verified.expire_time,
            standing: verified.standing,
        };
        // A suspended principal acts nowhere, so its own tenant's state stays in force.
        if let Some(named) = named
            && named != &*verified.tenant
            && verified.standing.state != TenantState::Suspended
        {
            if !is_system {
                return Err(mismatch());
            }
            let tenant = Arc::from(named);
            principal.standing = self.credentials.standing(&tenant).await?.ok_or_else(mismatch)?;
            principal.tenant = tenant;
        }
        Ok(principal)
    }

    async fn caller(&self, parts: &Parts, arrival: &Arrival, method: &Method) -> Result<Caller> {
        let principal = self.principal(&parts.headers).await?;
        method.allow(principal.roles, principal.is_system, principal.standing.state)?;
        let request_id = parts.extensions.get::<RequestId>();
        Ok(Caller {
            tenant: principal.tenant,
            principal: principal.principal,
            actor: actor(&parts.headers)?,
            roles: principal.roles,
            strict_references: principal.standing.strict_references,
            is_read_only: principal.standing.state != TenantState::Active,
            is_system: principal.is_system,
            expire_time: principal.expire_time,
            address: address(&parts.extensions),
            user_agent: user_agent(&parts.headers),
            request_id: request_id
                .and_then(|id| id.header_value().to_str().ok())
                .map_or_else(Arc::default, Arc::from),
            trace_id: arrival.trace_id.clone(),
            method: method.name(),
            // The deadline layer, further in, sets it.
            deadline: arrival.at,
        })
    }
}

const TOKEN_MISSING: Error = Error::Unauthenticated {
    reason: Reason::TokenMissing,
    message: "the call carries no credential: send authorization: Bearer <token>",
};

/// One text for malformed, unknown, wrong, revoked and expired: which it is, is nobody's business.
const TOKEN_INVALID: Error =
    Error::Unauthenticated { reason: Reason::TokenInvalid, message: "the credential is not valid" };

/// One text for every tenant that the principal may not act in, so that none is found by trying.
fn mismatch() -> Error {
    Error::Forbidden {
        reason: Reason::TenantMismatch,
        message: format!("the principal may not act in the tenant that {TENANT} names"),
    }
}

fn bearer(headers: &HeaderMap) -> Result<&[u8]> {
    match single(headers, &header::AUTHORIZATION) {
        Ok(None | Some(b"")) => Err(TOKEN_MISSING),
        Ok(Some(value)) => match value.split_at_checked(7) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => Ok(token),
            _ => Err(TOKEN_INVALID),
        },
        Err(Repeated) => Err(TOKEN_INVALID),
    }
}

fn named_tenant(headers: &HeaderMap) -> Result<Option<&str>> {
    match single(headers, &TENANT) {
        Ok(None) => Ok(None),
        Ok(Some(name)) => match std::str::from_utf8(name) {
            Ok(name) if is_tenant_id(name) => Ok(Some(name)),
            _ => Err(mismatch()),
        },
        Err(Repeated) => Err(mismatch()),
    }
}

fn actor(headers: &HeaderMap) -> Result<Arc<str>> {
    let bad = |what| Error::invalid(ACTOR.as_str(), what);
    let Some(actor) = single(headers, &ACTOR).map_err(|Repeated| bad("may stand only once"))?
    else {
        return Ok(Arc::default());
    };
    if actor.len() > ACTOR_BYTES_MAX {
        return Err(bad("is longer than 255 bytes"));
    }
    match std::str::from_utf8(actor) {
        Ok(actor) if !actor.chars().any(char::is_control) => Ok(actor.into()),
        _ => Err(bad("must be printable UTF-8")),
    }
}

/// What the client calls itself, as far as it can be printed.
fn user_agent(headers: &HeaderMap) -> Arc<str> {
    let Some(value) = headers.get(header::USER_AGENT) else { return Arc::default() };
    match value.to_str() {
        Ok(text) => text[..text.len().min(USER_AGENT_BYTES_MAX)].into(),
        Err(_) => Arc::default(),
    }
}

fn address(extensions: &http::Extensions) -> Arc<str> {
    if let Some(address) = extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr)
    {
        return address.ip().to_canonical().to_string().into();
    }
    if extensions.get::<UdsConnectInfo>().is_some() {
        return "unix".into();
    }
    Arc::default()
}

#[derive(Clone)]
pub struct AuthLayer {
    authenticator: Arc<Authenticator>,
    metrics: Arc<Metrics>,
    deadlines: DeadlineLimits,
}

impl AuthLayer {
    pub fn new(
        authenticator: Arc<Authenticator>,
        metrics: Arc<Metrics>,
        deadlines: DeadlineLimits,
    ) -> Self {
        AuthLayer { authenticator, metrics, deadlines }
    }

    /// The caller, or the answer to give it; no caller where none is asked for.
    async fn admit(&self, parts: &Parts) -> Result<Option<Caller>, tonic::Status> {
        let path = parts.uri.path();
        let arrival = Arrival::of(&parts.extensions, path);
        let Some(method) = arrival.method else { return Err(status::unimplemented(path)) };
        if method.is_public() {
            return Ok(None);
        }
        // Looking up a credential counts against the call's time.
        let limit = self.deadlines.limit(&parts.headers, arrival.at)?;
        let caller = self.authenticator.caller(parts, &arrival, method);
        let caller = timeout_at(limit.cut, caller)
            .await
            .unwrap_or(Err(Error::DeadlineExceeded(" while the credential was checked")));
        if let Err(error @ (Error::Unauthenticated { .. } | Error::Forbidden { .. })) = &caller {
            self.metrics.auth_failure(error.reason());
        }
        Ok(Some(caller?))
    }

    /// How a call that lasts is admitted again.
    fn renewal(&self, parts: &Parts) -> Option<Renewal> {
        let arrival = parts.extensions.get::<Arrival>()?;
        let method = arrival.method.filter(|method| method.is_client_stream)?;
        let known = Arc::new((Arc::clone(&self.authenticator), arrival.clone(), parts.clone()));
        Some(Renewal(Arc::new(move || {
            let known = Arc::clone(&known);
            Box::pin(async move {
                let (authenticator, arrival, parts) = &*known;
                authenticator.caller(parts, arrival, method).await
            })
        })))
    }
}

impl<S> Layer<S> for AuthLayer {
    type Service = Authenticate<S>;

    fn layer(&self, inner: S) -> Authenticate<S> {
        Authenticate { inner, auth: self.clone() }
    }
}

#[derive(Clone)]
pub struct Authenticate<S> {
    inner: S,
    auth: AuthLayer,
}

impl<S, B> Service<Request<B>> for Authenticate<S>
where
    S: Service<Request<B>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The one that is ready answers this call; its clone becomes ready for the next.
        let clone = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, clone);
        let auth = self.auth.clone();
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            match auth.admit(&parts).await {
                Ok(Some(caller)) => {
                    if let Some(renewal) = auth.renewal(&parts) {
                        parts.extensions.insert(renewal);
                    }
                    parts.extensions.insert(caller);
                }
                Ok(None) => {}
                Err(status) => return Ok(refusal(status)),
            }
            inner.call(Request::from_parts(parts, body)).await
        })
    }
}
