//! The tower stack around every piece of work on PostgreSQL: metrics -> retry (with a budget) -> timeout -> run.

use super::postgres::{Conn, Lane, Pools};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Outcome;
use crate::{Error, Result};
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;
use tower::retry::backoff::{Backoff, ExponentialBackoff, ExponentialBackoffMaker, MakeBackoff};
use tower::retry::budget::{Budget, TpsBudget};
use tower::retry::{Policy, Retry, RetryLayer};
use tower::util::rng::HasherRng;
use tower::{Layer, Service, ServiceBuilder, ServiceExt};

type Work<T> = dyn Fn(Conn) -> BoxFuture<'static, Result<T>> + Send + Sync;

/// A named piece of work that may run again, because it chose its ids and salts before it was made.
pub struct Op<T> {
    name: &'static str,
    lane: Lane,
    deadline: Instant,
    run: Arc<Work<T>>,
}

impl<T> Op<T> {
    pub fn new(
        name: &'static str,
        lane: Lane,
        deadline: Instant,
        run: impl Fn(Conn) -> BoxFuture<'static, Result<T>> + Send + Sync + 'static,
    ) -> Self {
        Self { name, lane, deadline, run: Arc::new(run) }
    }
}

impl<T> Clone for Op<T> {
    fn clone(&self) -> Self {
        Self { run: Arc::clone(&self.run), ..*self }
    }
}

/// How often work is tried again.
#[derive(Clone, Debug)]
pub struct RetrySettings {
    /// Runs in all, the first included.
    pub attempts_max: u32,
    /// The first pause is at most twice this; it doubles from there, jittered.
    pub base: Duration,
    pub max: Duration,
    /// Retries allowed per hundred first attempts, beside a floor of 10 a second.
    pub budget_percent: u32,
}

type Stack = Metered<Retry<Attempts, Timeout<Run>>>;

#[derive(Clone)]
pub struct Backend(Stack);

impl Backend {
    pub fn new(pools: Arc<Pools>, metrics: Arc<Metrics>, retry: &RetrySettings) -> Result<Self> {
        let backoff =
            ExponentialBackoffMaker::new(retry.base, retry.max, 1.0, HasherRng::default())
                .map_err(Error::internal)?;
        let budget =
            TpsBudget::new(Duration::from_secs(10), 10, retry.budget_percent as f32 / 100.0);
        let attempts = Attempts {
            left: retry.attempts_max.saturating_sub(1),
            backoff: backoff.clone().make_backoff(),
            maker: backoff,
            budget: Arc::new(budget),
        };
        Ok(Self(
            ServiceBuilder::new()
                .layer(MeteredLayer(metrics))
                .layer(RetryLayer::new(attempts))
                .layer(TimeoutLayer)
                .service(Run(pools)),
        ))
    }

    pub async fn call<T: Send + 'static>(&self, op: Op<T>) -> Result<T> {
        self.0.clone().oneshot(op).await
    }
}

/// Innermost: takes a connection of the lane and runs the work once.
#[derive(Clone)]
struct Run(Arc<Pools>);

impl<T: Send + 'static> Service<Op<T>> for Run {
    type Response = T;
    type Error = Error;
    type Future = BoxFuture<'static, Result<T>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, op: Op<T>) -> Self::Future {
        let pools = Arc::clone(&self.0);
        Box::pin(async move { (op.run)(pools.get(op.lane).await?).await })
    }
}

#[derive(Clone)]
struct TimeoutLayer;

impl<S> Layer<S> for TimeoutLayer {
    type Service = Timeout<S>;
    fn layer(&self, inner: S) -> Timeout<S> {
        Timeout(inner)
    }
}

/// Ends one attempt at the deadline. The connection is then closed, not put back, so PostgreSQL rolls back.
#[derive(Clone)]
struct Timeout<S>(S);

impl<T, S> Service<Op<T>> for Timeout<S>
where
    S: Service<Op<T>, Response = T, Error = Error>,
    S::Future: Send + 'static,
    T: 'static,
{
    type Response = T;
    type Error = Error;
    type Future = BoxFuture<'static, Result<T>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, op: Op<T>) -> Self::Future {
        let deadline = op.deadline;
        let attempt = self.0.call(op);
        Box::pin(async move {
            match tokio::time::timeout_at(deadline, attempt).await {
                Ok(result) => result,
                Err(_) => Err(Error::DeadlineExceeded(" while the database was working")),
            }
        })
    }
}

/// Runs again only what proves that nothing was committed, and only while the budget lasts: when everything fails,
/// retries must not make it worse.
#[derive(Clone)]
struct Attempts {
    left: u32,
    backoff: ExponentialBackoff,
    maker: ExponentialBackoffMaker,
    budget: Arc<TpsBudget>,
}

impl<T> Policy<Op<T>, T, Error> for Attempts {
    type Future = BoxFuture<'static, ()>;

    fn retry(&mut self, op: &mut Op<T>, result: &mut Result<T>) -> Option<Self::Future> {
        let Err(error) = result else {
            self.budget.deposit();
            return None;
        };
        if !error.is_transient() || self.left == 0 || Instant::now() >= op.deadline {
            return None;
        }
        if !self.budget.withdraw() {
            return None;
        }
        self.left -= 1;
        Some(Box::pin(self.backoff.next_backoff()))
    }

    fn clone_request(&mut self, op: &Op<T>) -> Option<Op<T>> {
        // A new request begins a new sequence of pauses.
        self.backoff = self.maker.make_backoff();
        Some(op.clone())
    }
}

#[derive(Clone)]
struct MeteredLayer(Arc<Metrics>);

impl<S> Layer<S> for MeteredLayer {
    type Service = Metered<S>;
    fn layer(&self, inner: S) -> Metered<S> {
        Metered { metrics: Arc::clone(&self.0), inner }
    }
}

/// Outermost: one measurement per operation, retries included, by its name and outcome.
#[derive(Clone)]
struct Metered<S> {
    metrics: Arc<Metrics>,
    inner: S,
}

impl<T, S> Service<Op<T>> for Metered<S>
where
    S: Service<Op<T>, Response = T, Error = Error>,
    S::Future: Send + 'static,
    T: 'static,
{
    type Response = T;
    type Error = Error;
    type Future = BoxFuture<'static, Result<T>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, op: Op<T>) -> Self::Future {
        let handle = self.metrics.op(op.name);
        let started = Instant::now();
        let call = self.inner.call(op);
        Box::pin(async move {
            let result = call.await;
            handle.attempt(Outcome::of(&result), started.elapsed());
            result
        })
    }
}
