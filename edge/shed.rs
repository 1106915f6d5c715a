//! Answers at once that the server is full, rather than letting calls queue until nobody waits for them.

use crate::error::{Error, Reason};
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tower::{Layer, Service};

/// An orchestrator that cannot ask a full server about its health would restart it.
const EXEMPT: &str = "/grpc.health.v1.Health/";
const RETRY_AFTER: Duration = Duration::from_millis(250);

#[derive(Clone, Debug)]
pub struct ShedLayer {
    permits: Arc<Semaphore>,
}

impl ShedLayer {
    pub fn new(requests_in_flight_max: usize) -> Self {
        let permits = requests_in_flight_max.min(Semaphore::MAX_PERMITS);
        ShedLayer { permits: Arc::new(Semaphore::new(permits)) }
    }
}

impl<S> Layer<S> for ShedLayer {
    type Service = Shed<S>;

    fn layer(&self, inner: S) -> Shed<S> {
        Shed { inner, permits: self.permits.clone() }
    }
}

#[derive(Clone, Debug)]
pub struct Shed<S> {
    inner: S,
    permits: Arc<Semaphore>,
}

impl<S, B> Service<Request<B>> for Shed<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Unpin,
{
    type Response = Response<HeldBody>;
    type Error = S::Error;
    type Future = HeldFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let permit = if request.uri().path().starts_with(EXEMPT) {
            None
        } else if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            Some(permit)
        } else {
            return HeldFuture::Full;
        };
        HeldFuture::Running { inner: self.inner.call(request), permit }
    }
}

fn full() -> Response<Body> {
    super::refusal(Error::Exhausted {
        reason: Reason::Overloaded,
        message: "the server has as many calls in flight as it takes".into(),
        retry_after: Some(RETRY_AFTER),
    })
}

pub enum HeldFuture<F> {
    Running { inner: F, permit: Option<OwnedSemaphorePermit> },
    Full,
}

impl<F, E> Future for HeldFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>> + Unpin,
{
    type Output = Result<Response<HeldBody>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (response, permit) = match self.get_mut() {
            HeldFuture::Running { inner, permit } => {
                (ready!(Pin::new(inner).poll(cx))?, permit.take())
            }
            HeldFuture::Full => (full(), None),
        };
        Poll::Ready(Ok(response.map(|inner| HeldBody { inner, _permit: permit })))
    }
}

/// The body of an answer, whose call counts as in flight until the body ends or is dropped.
pub struct HeldBody {
    inner: Body,
    _permit: Option<OwnedSemaphorePermit>,
}

impl http_body::Body for HeldBody {
    type Data = bytes::Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, tonic::Status>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
