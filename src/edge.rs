//! What every call passes before its handler: one layer per concern, in one order.

pub mod auth;
pub mod credentials;
pub mod deadline;
pub mod explain;
pub mod metrics;
mod observe;
pub mod request_id;
pub mod shed;
pub mod trace;

#[cfg(test)]
mod tests;

use crate::rpc::access::{self, Method};
use crate::telemetry::Metrics;
use auth::{AuthLayer, Authenticator};
use bytes::Bytes;
use deadline::{DeadlineLayer, DeadlineLimits};
use explain::ExplainLayer;
use http::{HeaderMap, HeaderName, Request, Response};
use metrics::MetricsLayer;
use shed::ShedLayer;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tower::layer::Layer;
use tower::{Service, ServiceBuilder};
use tower_http::catch_panic::CatchPanicLayer;
use trace::TraceLayer;

/// What the layers need to know.
#[derive(Clone)]
pub struct Edge {
    pub metrics: Arc<Metrics>,
    pub authenticator: Arc<Authenticator>,
    /// Calls under way at once, health checks not counted.
    pub requests_in_flight_max: usize,
    pub deadline: DeadlineLimits,
}

/// All layers around the routes, outermost first: request id, trace, metrics, explain, catch panic, load shed and
/// concurrency limit, authenticate, deadline. A test asserts the order.
///
/// Futures inside `auth` are boxed there, once, which keeps the types of the layers outside it short.
pub fn layers<S>(
    edge: Edge,
) -> impl Layer<
    S,
    Service: Service<
        Request<Body>,
        Response = Response<
            impl http_body::Body<Data = Bytes, Error: Into<tonic::codegen::StdError>> + Send + 'static,
        >,
        Error = Infallible,
        Future: Send,
    > + Clone
                 + Send
                 + 'static,
> + Clone
where
    S: Service<Request<metrics::CountedBody<Body>>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    ServiceBuilder::new()
        .layer(request_id::layer())
        .layer(TraceLayer)
        .layer(MetricsLayer::new(edge.metrics.clone()))
        .layer(ExplainLayer)
        .layer(CatchPanicLayer::custom(explain::panic_response as explain::PanicHandler))
        .layer(ShedLayer::new(edge.requests_in_flight_max))
        .layer(AuthLayer::new(edge.authenticator, edge.metrics, edge.deadline))
        .layer(DeadlineLayer::new(edge.deadline))
        .into_inner()
}

/// What the outermost of our layers learns about a call, for the others.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub at: Instant,
    /// None if this server has no such method.
    pub method: Option<&'static Method>,
    /// W3C trace id; empty without a valid traceparent.
    pub trace_id: Arc<str>,
}

impl Arrival {
    /// What `trace` has noted, or, without it, what can be seen now.
    fn of(extensions: &http::Extensions, path: &str) -> Arrival {
        extensions.get().cloned().unwrap_or_else(|| Arrival {
            at: Instant::now(),
            method: access::find(path),
            trace_id: Arc::default(),
        })
    }
}

/// The answer that ends a call at the edge: headers only.
fn refusal(status: impl Into<Status>) -> Response<Body> {
    status.into().into_http()
}

/// The value of a header that may stand at most once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a [u8]>, Repeated> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (first, None) => Ok(first.map(|value| value.as_bytes())),
        _ => Err(Repeated),
    }
}

/// A header stands twice, so that two readers could see different values.
struct Repeated;
