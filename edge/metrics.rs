//! Counts every call by method and status, right for streams too: the status is read where it stands.

use super::Arrival;
use super::observe::{ObservedBody, ObservedFuture, Observer};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::CallMetrics;
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use tokio::time::Instant;
use tonic::Code;
use tower::{Layer, Service};

#[derive(Clone)]
pub struct MetricsLayer {
    metrics: Arc<Metrics>,
}

impl MetricsLayer {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        MetricsLayer { metrics }
    }
}

impl<S> Layer<S> for MetricsLayer {
    type Service = CountCalls<S>;

    fn layer(&self, inner: S) -> CountCalls<S> {
        CountCalls { inner, metrics: self.metrics.clone() }
    }
}

#[derive(Clone)]
pub struct CountCalls<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S, B, R> Service<Request<B>> for CountCalls<S>
where
    S: Service<Request<CountedBody<B>>, Response = Response<R>>,
    S::Future: Unpin,
    R: Body,
{
    type Response = Response<ObservedBody<R, Call>>;
    type Error = S::Error;
    type Future = ObservedFuture<S::Future, Call>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let arrival = Arrival::of(request.extensions(), request.uri().path());
        let metrics = self.metrics.call(arrival.method.map(|method| method.index)).clone();
        metrics.started.inc();
        metrics.in_flight.inc();
        let received_bytes = Arc::new(AtomicU64::new(0));
        let call =
            Call { metrics, at: arrival.at, sent_bytes: 0, received_bytes: received_bytes.clone() };
        let request = request.map(|inner| CountedBody { inner, bytes: received_bytes });
        ObservedFuture::new(self.inner.call(request), call)
    }
}

/// One call, as the metrics see it.
#[derive(Debug)]
pub struct Call {
    metrics: Arc<CallMetrics>,
    at: Instant,
    sent_bytes: u64,
    received_bytes: Arc<AtomicU64>,
}

impl Observer for Call {
    fn sent(&mut self, bytes: usize) {
        self.sent_bytes += bytes as u64;
    }

    fn ended(&mut self, code: Code) {
        self.metrics.in_flight.dec();
        let received_bytes = self.received_bytes.load(Ordering::Relaxed);
        self.metrics.ended(code.into(), self.at.elapsed(), self.sent_bytes, received_bytes);
    }
}

/// The body of a request, its bytes counted.
#[derive(Debug)]
pub struct CountedBody<B> {
    inner: B,
    bytes: Arc<AtomicU64>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for CountedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if let Some(data) = frame.as_ref().and_then(|f| f.as_ref().ok()).and_then(Frame::data_ref) {
            this.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
