//! The standard health protocol, over one state that the server sets: Check, Watch and List.

use crate::error::{Error, Reason};
use crate::pb::health::health_check_response::ServingStatus;
use crate::pb::health::health_server::Health;
use crate::pb::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};
use futures_util::stream::{self, Stream};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

/// The protocol's own limit on List.
const LIST_MAX: usize = 100;

#[derive(Clone, Debug)]
struct State {
    /// None while the server takes calls.
    not_ready: Option<Arc<str>>,
    is_draining: bool,
    is_closed: bool,
    /// Services that cannot work although the server takes calls, and why.
    down: BTreeMap<&'static str, Arc<str>>,
}

/// Whether the server takes calls. A service follows the whole server, and may be down by itself; clones share one state.
#[derive(Clone, Debug)]
pub struct HealthState {
    state: Arc<watch::Sender<State>>,
    services: Arc<[&'static str]>,
}

impl HealthState {
    /// Not ready yet. `services` are full names; the empty name, the whole server, is always there.
    pub fn new(services: impl IntoIterator<Item = &'static str>) -> Self {
        let not_ready = Some(Arc::from("the server is starting"));
        let (is_draining, is_closed, down) = (false, false, BTreeMap::new());
        let state = watch::Sender::new(State { not_ready, is_draining, is_closed, down });
        HealthState { state: Arc::new(state), services: services.into_iter().collect() }
    }

    pub fn set_ready(&self, is_ready: bool) {
        self.set((!is_ready).then(|| Arc::from("the server is not ready")));
    }

    pub fn set_not_ready(&self, reason: impl Into<Arc<str>>) {
        self.set(Some(reason.into()));
    }

    /// One service works, or why it does not. The others go on. Whether that is news.
    pub fn set_service(&self, service: &'static str, down: Option<Arc<str>>) -> bool {
        self.state.send_if_modified(|state| {
            let changes = state.down.contains_key(service) != down.is_some();
            match down {
                Some(reason) => state.down.insert(service, reason),
                None => state.down.remove(service),
            };
            changes
        })
    }

    fn set(&self, not_ready: Option<Arc<str>>) {
        self.state.send_if_modified(|state| {
            // A server that goes away does not come back.
            let changes = !state.is_draining && state.not_ready != not_ready;
            if changes {
                state.not_ready = not_ready;
            }
            changes
        });
    }

    /// NOT_SERVING from now on. Watch streams say so and stay, else their clients would come back at once.
    pub fn set_draining(&self) {
        self.state.send_modify(|state| {
            state.is_draining = true;
            state.not_ready = Some(Arc::from("the server is shutting down"));
        });
    }

    /// Ends the Watch streams, so that they do not hold the drain. Implies `set_draining`.
    pub fn close(&self) {
        self.set_draining();
        self.state.send_modify(|state| state.is_closed = true);
    }

    /// Completes when streams have to end.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut changes = self.state.subscribe();
        async move {
            // The sender outlives its streams; were it gone, so would the server be.
            let _ = changes.wait_for(|state| state.is_closed).await;
        }
    }

    pub fn is_ready(&self) -> bool {
        self.state.borrow().not_ready.is_none()
    }

    /// Why the server takes no calls, if it takes none.
    pub fn not_ready_reason(&self) -> Option<Arc<str>> {
        self.state.borrow().not_ready.clone()
    }

    fn knows(&self, service: &str) -> bool {
        service.is_empty() || self.services.contains(&service)
    }
}

fn serving(state: &State, service: &str) -> ServingStatus {
    if state.not_ready.is_none() && !state.down.contains_key(service) {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for HealthState {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        if !self.knows(&service) {
            return Err(Error::not_found("service", service).into());
        }
        Ok(Response::new(answer(serving(&self.state.borrow(), &service))))
    }

    async fn list(
        &self,
        _: Request<HealthListRequest>,
    ) -> Result<Response<HealthListResponse>, Status> {
        if self.services.len() >= LIST_MAX {
            return Err(Error::Exhausted {
                reason: Reason::MessageTooLarge,
                message: format!("more than {LIST_MAX} services: use Check or Watch"),
                retry_after: None,
            }
            .into());
        }
        let state = self.state.borrow();
        let names = self.services.iter().copied().chain([""]);
        let statuses = names.map(|name| (name.to_owned(), answer(serving(&state, name)))).collect();
        Ok(Response::new(HealthListResponse { statuses }))
    }

    type WatchStream =
        Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send + 'static>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let service: Arc<str> = request.into_inner().service.into();
        let is_known = self.knows(&service);
        let changes = (self.state.subscribe(), None, service);
        let statuses =
            stream::try_unfold(changes, move |(mut changes, last, service)| async move {
                loop {
                    let (status, is_closed) = {
                        let state = changes.borrow_and_update();
                        let status = if is_known {
                            serving(&state, &service)
                        } else {
                            ServingStatus::ServiceUnknown
                        };
                        (status, state.is_closed)
                    };
                    if last != Some(status) {
                        return Ok(Some((answer(status), (changes, Some(status), service))));
                    }
                    // The sender outlives its streams; were it gone, so would the server be.
                    if is_closed || changes.changed().await.is_err() {
                        return Err(Error::ShuttingDown.into());
                    }
                }
            });
        Ok(Response::new(Box::pin(statuses)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt as _, StreamExt as _};
    use tonic::Code;

    fn of(service: &str) -> Request<HealthCheckRequest> {
        Request::new(HealthCheckRequest { service: service.into() })
    }

    #[tokio::test]
    async fn check_and_list_follow_readiness() {
        let health = HealthState::new(["a.B"]);
        let check = async |name: &str| health.check(of(name)).await.unwrap().into_inner().status();
        assert_eq!(check("").await, ServingStatus::NotServing);
        assert_eq!(health.not_ready_reason().as_deref(), Some("the server is starting"));
        health.set_ready(true);
        assert_eq!(check("").await, ServingStatus::Serving);
        assert_eq!(check("a.B").await, ServingStatus::Serving);
        assert_eq!(health.check(of("a.C")).await.unwrap_err().code(), Code::NotFound);

        health.set_not_ready("the schema is old");
        assert_eq!(health.not_ready_reason().as_deref(), Some("the schema is old"));
        let list = health.list(Request::new(HealthListRequest {})).await.unwrap().into_inner();
        assert_eq!(list.statuses.len(), 2);
        assert!(list.statuses.values().all(|s| s.status() == ServingStatus::NotServing));

        health.set_draining();
        health.set_ready(true);
        assert!(!health.is_ready());
    }

    #[tokio::test]
    async fn one_service_may_be_down_alone() {
        let health = HealthState::new(["a.B", "a.C"]);
        health.set_ready(true);
        let check = async |name: &str| health.check(of(name)).await.unwrap().into_inner().status();
        let mut watched = health.watch(of("a.B")).await.unwrap().into_inner();
        assert_eq!(watched.next().await.unwrap().unwrap().status(), ServingStatus::Serving);
        assert!(health.set_service("a.B", Some("its store is down".into())));
        assert!(!health.set_service("a.B", Some("still".into())));
        assert_eq!(watched.next().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        assert_eq!(check("a.B").await, ServingStatus::NotServing);
        assert_eq!(check("a.C").await, ServingStatus::Serving);
        assert_eq!(check("").await, ServingStatus::Serving);
        assert!(health.is_ready());
        let list = health.list(Request::new(HealthListRequest {})).await.unwrap().into_inner();
        assert_eq!(list.statuses["a.B"].status(), ServingStatus::NotServing);
        assert_eq!(list.statuses["a.C"].status(), ServingStatus::Serving);
        assert!(health.set_service("a.B", None));
        assert_eq!(check("a.B").await, ServingStatus::Serving);
    }

    #[tokio::test]
    async fn too_many_services_are_not_listed() {
        let health = HealthState::new(vec!["a.B"; 100]);
        let error = health.list(Request::new(HealthListRequest {})).await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted);
        assert!(
            HealthState::new(vec!["a.B"; 99])
                .list(Request::new(HealthListRequest {}))
                .await
                .is_ok()
        );
    }

    #[tokio::test]
    async fn watch_gives_changes_and_ends_on_close() {
        let health = HealthState::new(["a.B"]);
        let mut known = health.watch(of("a.B")).await.unwrap().into_inner();
        let mut unknown = health.watch(of("a.C")).await.unwrap().into_inner();
        assert_eq!(known.next().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        assert_eq!(unknown.next().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
        assert!(known.next().now_or_never().is_none());

        health.set_not_ready("for another reason");
        assert!(known.next().now_or_never().is_none(), "the status has not changed");
        health.set_ready(true);
        assert_eq!(known.next().await.unwrap().unwrap().status(), ServingStatus::Serving);
        health.set_draining();
        assert_eq!(known.next().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        assert!(known.next().now_or_never().is_none(), "draining does not end the stream");
        health.close();
        assert_eq!(known.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
        assert_eq!(unknown.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
        assert!(known.next().await.is_none());

        let mut late = health.watch(of("")).await.unwrap().into_inner();
        assert_eq!(late.next().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        assert!(late.next().await.unwrap().is_err());
    }
}
