//! One span per call and one line when it ends: which call, how it went, how long it took. Never what it carried.

use super::Arrival;
use super::observe::{ObservedBody, ObservedFuture, Observer};
use crate::rpc::access;
use crate::telemetry::metrics::{OTHER, code_name};
use http::{HeaderMap, HeaderName, Request, Response};
use http_body::Body;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::time::Instant;
use tonic::Code;
use tower::{Layer, Service};
use tower_http::request_id::RequestId;
use tracing::Span;

static PARENT: HeaderName = HeaderName::from_static("traceparent");

#[derive(Clone, Copy, Debug)]
pub struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Trace<S> {
        Trace { inner }
    }
}

#[derive(Clone, Debug)]
pub struct Trace<S> {
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Trace<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Unpin,
    R: Body,
{
    type Response = Response<ObservedBody<R, Call>>;
    type Error = S::Error;
    type Future = ObservedFuture<S::Future, Call>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let at = Instant::now();
        let method = access::find(request.uri().path());
        let trace_id = trace_id(request.headers());
        let request_id = request.extensions().get::<RequestId>();
        // At error level, so that every line that is logged at all can be traced to its call.
        let span = tracing::error_span!(
            "call",
            method = method.map_or(OTHER, |method| method.name()),
            request_id = request_id.and_then(|id| id.header_value().to_str().ok()),
            trace_id,
        );
        let trace_id = trace_id.map_or_else(Arc::default, Arc::from);
        request.extensions_mut().insert(Arrival { at, method, trace_id });
        let future = span.in_scope(|| self.inner.call(request));
        ObservedFuture::new(future, Call { span, at })
    }
}

/// The trace id of a valid W3C `traceparent`: `00-<32 hex>-<16 hex>-<2 hex>`.
fn trace_id(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(&PARENT)?.to_str().ok()?;
    let bytes = text.as_bytes();
    let is_hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let (version, trace, parent, flags) =
        (text.get(..2)?, text.get(3..35)?, text.get(36..52)?, text.get(53..55)?);
    // A later version may append fields; the first one has none.
    let ends = bytes.len() == 55 || (version != "00" && bytes.get(55) == Some(&b'-'));
    let is_valid = ends
        && [2, 35, 52].iter().all(|at| bytes[*at] == b'-')
        && [version, trace, parent, flags].into_iter().all(is_hex)
        && version != "ff"
        && trace.bytes().any(|b| b != b'0')
        && parent.bytes().any(|b| b != b'0');
    is_valid.then_some(trace)
}

/// One call, as the log sees it.
#[derive(Debug)]
pub struct Call {
    span: Span,
    at: Instant,
}

impl Observer for Call {
    fn span(&self) -> Option<&Span> {
        Some(&self.span)
    }

    fn ended(&mut self, code: Code) {
        let took_ms = || self.at.elapsed().as_secs_f64() * 1000.0;
        let name = code_name(code.into());
        self.span.in_scope(|| match code {
            Code::Ok => tracing::debug!(code = name, duration_ms = took_ms(), "call ended"),
            Code::Unknown | Code::Internal | Code::Unavailable | Code::DataLoss => {
                tracing::warn!(code = name, duration_ms = took_ms(), "call failed");
            }
            _ => tracing::info!(code = name, duration_ms = took_ms(), "call failed"),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(&PARENT, text.parse().unwrap());
        trace_id(&headers).map(str::to_owned)
    }

    #[test]
    fn only_valid_trace_parents_count() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(id(&format!("00-{trace}-b7ad6b7169203331-01")).as_deref(), Some(trace));
        assert_eq!(id(&format!("01-{trace}-b7ad6b7169203331-01-more")).as_deref(), Some(trace));
        for bad in [
            String::new(),
            "00".into(),
            format!("00-{trace}-b7ad6b7169203331-01-more"),
            format!("ff-{trace}-b7ad6b7169203331-01"),
            format!("00-{}-b7ad6b7169203331-01", trace.to_uppercase()),
            format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)),
            format!("00-{trace}-0000000000000000-01"),
            format!("00-{trace}-b7ad6b7169203331"),
            format!("00_{trace}-b7ad6b7169203331-01"),
            format!("00-{trace}-b7ad6b7169203331-0g"),
        ] {
            assert_eq!(id(&bad), None, "{bad}");
        }
        assert_eq!(trace_id(&HeaderMap::new()), None);
    }
}
