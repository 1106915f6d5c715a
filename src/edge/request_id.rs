//! Gives every call an x-request-id, and its answer the same.

use http::{HeaderName, HeaderValue, Request};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tonic::body::Body;
use tower::layer::util::Stack;
use tower::util::MapRequestLayer;
use tower_http::request_id::{
    MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer,
};

pub const HEADER: HeaderName = HeaderName::from_static("x-request-id");
const BYTES_MAX: usize = 128;

type Clean = MapRequestLayer<fn(Request<Body>) -> Request<Body>>;
type Identify = Stack<PropagateRequestIdLayer, SetRequestIdLayer<Serial>>;

/// Keeps a client's id if it is one, else makes one.
pub fn layer() -> Stack<Identify, Clean> {
    let clean: Clean = MapRequestLayer::new(drop_ill_formed);
    let set = SetRequestIdLayer::new(HEADER, Serial::new());
    Stack::new(Stack::new(PropagateRequestIdLayer::new(HEADER), set), clean)
}

/// tower-http keeps whatever stands there, and the id goes into the log.
fn drop_ill_formed(mut request: Request<Body>) -> Request<Body> {
    let mut values = request.headers().get_all(HEADER).iter();
    if let Some(first) = values.next() {
        let is_good = values.next().is_none()
            && (1..=BYTES_MAX).contains(&first.len())
            && first.as_bytes().iter().all(|b| matches!(b, b' '..=b'~'));
        if !is_good {
            request.headers_mut().remove(HEADER);
        }
    }
    request
}

/// A random number of this process and a running number: unique without asking the kernel on each call.
#[derive(Clone, Debug)]
pub struct Serial {
    process: Arc<str>,
    next: Arc<AtomicU64>,
}

impl Serial {
    fn new() -> Self {
        let (_, random) = uuid::Uuid::new_v4().as_u64_pair();
        Serial { process: format!("{random:016x}").into(), next: Arc::default() }
    }
}

impl MakeRequestId for Serial {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut id = String::with_capacity(33);
        let _ = write!(id, "{}-{number:x}", self.process);
        HeaderValue::try_from(id).ok().map(RequestId::new)
    }
}
