//! What a call that lasts needs beyond its beginning: when it ends, and whether its caller may still go on.

use crate::Result;
use crate::store::caller::Caller;
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Limits of streams that the caller writes to.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// How long one message may take.
    pub message: Duration,
    /// How long the caller may send nothing while nothing is under way.
    pub idle: Duration,
}

/// When the caller itself stops waiting, if it has said so: a stream is cut then, and at no other time.
#[derive(Clone, Copy, Debug)]
pub struct OwnDeadline(pub Option<Instant>);

/// Looks at the caller's credential again, as at the beginning: a stream outlasts revocations and changed roles.
#[derive(Clone)]
pub struct Renewal(pub Arc<dyn Fn() -> BoxFuture<'static, Result<Caller>> + Send + Sync>);
