//! Gives every failure our form, whoever made it: tonic, a library, or a panic.

use crate::error::Error;
use crate::rpc::status;
use crate::telemetry::panic_text;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tonic::Status;
use tower::{Layer, Service};

type Panic = Box<dyn Any + Send>;
pub type PanicHandler = fn(Panic) -> Response<tonic::body::Body>;

/// The answer to a call that panicked.
pub fn panic_response(panic: Panic) -> Response<tonic::body::Body> {
    super::refusal(of_panic(&*panic))
}

fn of_panic(panic: &(dyn Any + Send)) -> Status {
    Error::internal(format!("panicked: {}", panic_text(panic))).into()
}

#[derive(Clone, Copy, Debug)]
pub struct ExplainLayer;

impl<S> Layer<S> for ExplainLayer {
    type Service = Explain<S>;

    fn layer(&self, inner: S) -> Explain<S> {
        Explain { inner }
    }
}

#[derive(Clone, Debug)]
pub struct Explain<S> {
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Explain<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Unpin,
{
    type Response = Response<ExplainedBody<R>>;
    type Error = S::Error;
    type Future = ExplainedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ExplainedFuture { inner: self.inner.call(request) }
    }
}

pub struct ExplainedFuture<F> {
    inner: F,
}

impl<F, R, E> Future for ExplainedFuture<F>
where
    F: Future<Output = Result<Response<R>, E>> + Unpin,
{
    type Output = Result<Response<ExplainedBody<R>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut response = ready!(Pin::new(&mut self.inner).poll(cx))?;
        status::complete(response.headers_mut());
        Poll::Ready(Ok(response.map(|inner| ExplainedBody { inner: Some(inner) })))
    }
}

/// The body of an answer: its trailers are completed, and a panic in it becomes trailers.
pub struct ExplainedBody<B> {
    /// None after a panic.
    inner: Option<B>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for ExplainedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        // The catch-panic layer sees a call only until its headers; a stream runs here.
        match catch_unwind(AssertUnwindSafe(|| Pin::new(inner).poll_frame(cx))) {
            Ok(frame) => {
                let mut frame = ready!(frame);
                if let Some(Ok(frame)) = &mut frame
                    && let Some(trailers) = frame.trailers_mut()
                {
                    status::complete(trailers);
                }
                Poll::Ready(frame)
            }
            Err(panic) => {
                this.inner = None;
                let mut trailers = HeaderMap::new();
                // Our own statuses hold nothing that a header may not.
                let _ = of_panic(&*panic).add_header(&mut trailers);
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}
