//! The floor: a bare tonic server with the same service that answers every get with one prepared message.

use crate::Result;
use casebook::pb;
use pb::decision_service_server::{DecisionService, DecisionServiceServer};
use prost::Message;
use std::path::Path;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

struct Echo(pb::GetDecisionResponse);

type Answer<T> = Result<Response<T>, Status>;

macro_rules! unimplemented_calls {
    ($($name:ident($request:ident) -> $response:ident;)*) => {
        #[tonic::async_trait]
        impl DecisionService for Echo {
            async fn get_decision(
                &self,
                request: Request<pb::GetDecisionRequest>,
            ) -> Answer<pb::GetDecisionResponse> {
                let _ = request.into_inner();
                Ok(Response::new(self.0.clone()))
            }

            $(async fn $name(&self, _: Request<pb::$request>) -> Answer<pb::$response> {
                Err(Status::unimplemented("only gets are echoed"))
            })*
        }
    };
}

unimplemented_calls! {
    create_decision(CreateDecisionRequest) -> CreateDecisionResponse;
    batch_create_decisions(BatchCreateDecisionsRequest) -> BatchCreateDecisionsResponse;
    batch_get_decisions(BatchGetDecisionsRequest) -> BatchGetDecisionsResponse;
    list_decisions(ListDecisionsRequest) -> ListDecisionsResponse;
    update_decision(UpdateDecisionRequest) -> UpdateDecisionResponse;
    delete_decision(DeleteDecisionRequest) -> DeleteDecisionResponse;
    undelete_decision(UndeleteDecisionRequest) -> UndeleteDecisionResponse;
    list_decision_revisions(ListDecisionRevisionsRequest) -> ListDecisionRevisionsResponse;
    add_critic_outputs(AddCriticOutputsRequest) -> AddCriticOutputsResponse;
    list_critic_outputs(ListCriticOutputsRequest) -> ListCriticOutputsResponse;
    create_override(CreateOverrideRequest) -> CreateOverrideResponse;
    list_overrides(ListOverridesRequest) -> ListOverridesResponse;
    get_decision_statistics(GetDecisionStatisticsRequest) -> GetDecisionStatisticsResponse;
}

/// Serves until killed, on the runtime that `casebook serve` uses.
pub fn run(answer: &Path) -> Result<()> {
    let answer = pb::GetDecisionResponse::decode(&std::fs::read(answer)?[..])?;
    let threads = casebook::config::worker_threads_default();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(threads).enable_all().build()?;
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("listening on {}", listener.local_addr()?);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let service = DecisionServiceServer::new(Echo(answer));
        let server = tonic::transport::Server::builder().add_service(service);
        Ok(server.serve_with_incoming(incoming).await?)
    })
}
