//! OperationService: how far long work is, and stopping it.

use super::resource::{GetRequest, New, Resource};
use super::wire::{self, Fields};
use super::{Answer, Api, Parts, open};
use crate::pb;
use crate::store::caller::Caller;
use crate::store::operation::{End, Operation, PENDING, RUNNING};
use crate::{Error, Result};
use futures_util::stream::{self, Stream};
use std::pin::Pin;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use uuid::Uuid;

/// How often an operation that is watched is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// What is left of a deadline for the answer.
const ANSWER_TIME: Duration = Duration::from_millis(200);

#[tonic::async_trait]
impl pb::operation_service_server::OperationService for Api {
    async fn get_operation(
        &self,
        request: Request<pb::GetOperationRequest>,
    ) -> Answer<pb::GetOperationResponse> {
        let (caller, request) = open(request)?;
        let super::resource::Get { id, consistency, read_mask, version } = request.parts();
        let mask = super::descriptor::ReadMask::new::<pb::Operation>(read_mask)?;
        let id = wire::id("operation_id", id)?;
        let row: Operation = self.get(&caller, id, consistency, version).await?;
        let operation = Some(mask.apply(self.operation(&caller, row).await?)?);
        Ok(Response::new(pb::GetOperationResponse { operation }))
    }

    async fn list_operations(
        &self,
        request: Request<pb::ListOperationsRequest>,
    ) -> Answer<pb::ListOperationsResponse> {
        let (operations, page) = self.get_page(request).await?;
        Ok(Response::new(pb::ListOperationsResponse { operations, page }))
    }

    type WatchOperationStream =
        Pin<Box<dyn Stream<Item = Result<pb::WatchOperationResponse, Status>> + Send>>;

    async fn watch_operation(
        &self,
        request: Request<pb::WatchOperationRequest>,
    ) -> Answer<Self::WatchOperationStream> {
        let (caller, request) = open(request)?;
        let id = wire::id("operation_id", request.operation_id)?;
        let row: Operation = self.store.get(&caller, &id).await?;
        let first = self.operation(&caller, row).await?;
        let watch = Watch { api: self.clone(), caller, id, last: None, next: Some(first) };
        Ok(Response::new(Box::pin(stream::unfold(watch, Watch::step))))
    }

    async fn wait_operation(
        &self,
        request: Request<pb::WaitOperationRequest>,
    ) -> Answer<pb::WaitOperationResponse> {
        let (caller, request) = open(request)?;
        let pb::WaitOperationRequest { operation_id, timeout } = request;
        let mut fields = Fields::default();
        let us = fields.span_us("timeout", timeout).unwrap_or_default();
        let us = u64::try_from(fields.finish(us)?).unwrap_or_default();
        let most = if us == 0 { WAIT_MAX } else { Duration::from_micros(us).min(WAIT_MAX) };
        let until = (Instant::now() + most).min(caller.deadline - ANSWER_TIME);
        let id = wire::id("operation_id", operation_id)?;
        loop {
            let row: Operation = self.store.get(&caller, &id).await?;
            if row.is_over() || Instant::now() + LOOK_EVERY > until {
                let operation = Some(self.operation(&caller, row).await?);
                return Ok(Response::new(pb::WaitOperationResponse { operation }));
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.health.closed() => return Err(Error::ShuttingDown.into()),
            }
        }
    }

    async fn cancel_operation(
        &self,
        request: Request<pb::CancelOperationRequest>,
    ) -> Answer<pb::CancelOperationResponse> {
        let (operation, receipt) = self.write(request).await?;
        let operation = Some(operation.into());
        Ok(Response::new(pb::CancelOperationResponse { operation, receipt }))
    }
}

impl Parts {
    /// An operation on the wire, with how far it is.
    async fn operation(&self, caller: &Caller, row: Operation) -> Result<pb::Operation> {
        let (state, space_uid, uid) = (row.state, row.space_uid, row.meta.uid);
        let mut worded = pb::Operation::from(row);
        if state == RUNNING {
            let indexes = self.store.index_stats(caller, space_uid).await?;
            if let Some(index) = indexes.iter().find(|index| index.uid == uid) {
                let (phase, progress) = index.progress();
                worded.phase = phase.into();
                worded.progress = progress;
            }
        }
        Ok(worded)
    }
}

/// A watched operation.
struct Watch {
    api: Api,
    caller: Caller,
    id: String,
    /// What was told last.
    last: Option<pb::Operation>,
    /// What is still to be told.
    next: Option<pb::Operation>,
}

type Told = Result<pb::WatchOperationResponse, Status>;

impl Watch {
    async fn step(mut self) -> Option<(Told, Self)> {
        if let Some(first) = self.next.take() {
            self.last = Some(first.clone());
            return Some((Ok(pb::WatchOperationResponse { operation: Some(first) }), self));
        }
        let last = self.last.take()?;
        if last.state > i32::from(RUNNING) {
            return None;
        }
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.api.health.closed() => return Some((Err(Error::ShuttingDown.into()), self)),
                () = tokio::time::sleep_until(self.caller.deadline) => {
                    return Some((Err(Error::DeadlineExceeded(" before the operation was over").into()), self));
                }
            }
            match self.look().await {
                Ok(now) if now == last => {}
                Ok(now) => {
                    self.last = Some(now.clone());
                    return Some((Ok(pb::WatchOperationResponse { operation: Some(now) }), self));
                }
                Err(error) => return Some((Err(error.into()), self)),
            }
        }
    }

    async fn look(&self) -> Result<pb::Operation> {
        let deadline = self.caller.deadline.min(Instant::now() + Duration::from_secs(10));
        let caller = Caller { deadline, ..self.caller.clone() };
        let row: Operation = self.api.store.get(&caller, &self.id).await?;
        self.api.operation(&caller, row).await
    }
}

crate::requests! { Operation:
    get GetOperationRequest(operation_id);
    list ListOperationsRequest("create_time" by [("create_time", true)]);
}

crate::requests!(@ask CancelOperationRequest -> End, |fields, on_conflict, operation_id| {
    fields.only_fail(on_conflict);
    End { id: fields.id("operation_id", operation_id), error: None }
});

impl Resource for pb::Operation {
    type Row = Operation;
    const CHANGEABLE: &'static [&'static str] = &[];

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    /// Nobody writes one: it comes from the call that it is the work of.
    fn read(self, _: &mut Fields, New { id, meta }: New) -> Operation {
        Operation {
            id,
            meta,
            action: self.action,
            space_uid: Uuid::nil(),
            space_id: self.vector_space_id,
            state: PENDING,
            start_time: None,
            end_time: None,
            error: self.error,
        }
    }
}

impl From<Operation> for pb::Operation {
    fn from(row: Operation) -> Self {
        use crate::store::noun::Noun;
        let etag = row.etag();
        let Operation {
            id,
            meta,
            action,
            space_uid: _,
            space_id,
            state,
            start_time,
            end_time,
            error,
        } = row;
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            action,
            vector_space_id: space_id,
            state: state.into(),
            start_time: start_time.and_then(wire::timestamp),
            end_time: end_time.and_then(wire::timestamp),
            error,
            // Told by whoever has looked how far it is.
            phase: String::new(),
            progress: if state == crate::store::operation::DONE { 1.0 } else { 0.0 },
        }
    }
}
