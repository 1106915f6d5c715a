//! What trace and metrics share: following one call until its status is known, however it ends.

use crate::rpc::status;
use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tonic::Code;
use tracing::Span;

/// Sees one call.
pub trait Observer: Unpin {
    /// The span that the call's code runs in.
    fn span(&self) -> Option<&Span> {
        None
    }

    /// Bytes of the answer went out.
    fn sent(&mut self, _bytes: usize) {}

    /// The call is over.
    fn ended(&mut self, code: Code);
}

/// Tells its observer exactly once how the call ended: dropped means that the caller went away.
#[derive(Debug)]
struct Guard<O: Observer> {
    observer: O,
    has_ended: bool,
}

impl<O: Observer> Guard<O> {
    fn ended(&mut self, code: Code) {
        if !self.has_ended {
            self.has_ended = true;
            self.observer.ended(code);
        }
    }
}

impl<O: Observer> Drop for Guard<O> {
    fn drop(&mut self) {
        self.ended(Code::Cancelled);
    }
}

/// A call on its way to the headers of its answer.
pub struct ObservedFuture<F, O: Observer> {
    inner: F,
    // Taken when the answer's body takes over.
    guard: Option<Guard<O>>,
}

impl<F, O: Observer> ObservedFuture<F, O> {
    pub fn new(inner: F, observer: O) -> Self {
        ObservedFuture { inner, guard: Some(Guard { observer, has_ended: false }) }
    }
}

impl<F, B, E, O> Future for ObservedFuture<F, O>
where
    F: Future<Output = Result<Response<B>, E>> + Unpin,
    B: Body,
    O: Observer,
{
    type Output = Result<Response<ObservedBody<B, O>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let span = this.guard.as_ref().and_then(|guard| guard.observer.span());
        let entered = span.map(Span::enter);
        let answer = ready!(Pin::new(&mut this.inner).poll(cx));
        drop(entered);
        let mut guard = this.guard.take();
        Poll::Ready(match answer {
            Ok(response) => {
                // An answer of headers only may never have its body looked at.
                let code = status::code_of(response.headers())
                    .or_else(|| response.body().is_end_stream().then_some(Code::Unknown));
                if let (Some(code), Some(guard)) = (code, &mut guard) {
                    guard.ended(code);
                }
                Ok(response.map(|inner| ObservedBody { inner, guard }))
            }
            Err(error) => {
                if let Some(guard) = &mut guard {
                    guard.ended(Code::Unknown);
                }
                Err(error)
            }
        })
    }
}

/// The body of an answer on its way to the trailers.
pub struct ObservedBody<B, O: Observer> {
    inner: B,
    guard: Option<Guard<O>>,
}

impl<B, O> Body for ObservedBody<B, O>
where
    B: Body<Data = Bytes> + Unpin,
    O: Observer,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let span = this.guard.as_ref().and_then(|guard| guard.observer.span());
        let entered = span.map(Span::enter);
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        drop(entered);
        if let Some(guard) = &mut this.guard {
            match &frame {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        guard.observer.sent(data.len());
                    } else if let Some(trailers) = frame.trailers_ref() {
                        guard.ended(status::code_of(trailers).unwrap_or(Code::Unknown));
                    }
                }
                // No trailers came, so no status.
                Some(Err(_)) | None => guard.ended(Code::Unknown),
            }
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
