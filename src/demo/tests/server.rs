//! A server that remembers what it was given and is busy now and then.

use crate::pb;
use crate::pb::decision_service_server::{DecisionService, DecisionServiceServer};
use crate::pb::policy_service_server::{PolicyService, PolicyServiceServer};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

#[derive(Default)]
pub struct Memory {
    pub decisions: HashMap<String, (pb::Decision, prost_types::Timestamp)>,
    overrides: BTreeSet<String>,
    rules: BTreeSet<String>,
    calls: u32,
    transactions: i64,
    /// Calls that were sent away once. They are let in when they come back, so that no run fails by bad luck.
    refused: BTreeSet<String>,
    pub headers: BTreeSet<String>,
}

#[derive(Clone, Default)]
pub struct Server(pub Arc<Mutex<Memory>>);

impl Server {
    fn enter(
        &self,
        headers: &tonic::metadata::MetadataMap,
        options: Option<&pb::WriteOptions>,
    ) -> Result<(), Status> {
        let mut memory = self.0.lock().unwrap();
        for name in ["authorization", "x-casebook-tenant"] {
            let value = headers.get(name).map(|value| value.to_str().unwrap().to_string());
            memory.headers.extend(value);
        }
        let options = options.unwrap();
        assert!((1..=64).contains(&options.request_id.len()) && options.request_id.is_ascii());
        assert_eq!(options.on_conflict(), pb::OnConflict::ReturnIfEqual);
        memory.calls += 1;
        let kind = memory.calls % 9;
        if !matches!(kind, 3 | 7) || !memory.refused.insert(options.request_id.clone()) {
            return Ok(());
        }
        let soon = ErrorDetails::with_retry_info(Some(Duration::from_millis(5)));
        let code = if kind == 3 { Code::Unavailable } else { Code::ResourceExhausted };
        Err(Status::with_error_details(code, "busy", soon))
    }

    fn create(
        &self,
        requests: Vec<pb::CreateDecisionRequest>,
    ) -> Result<Vec<pb::Decision>, Status> {
        let mut memory = self.0.lock().unwrap();
        let decisions: Vec<pb::Decision> =
            requests.into_iter().map(|request| request.decision.unwrap()).collect();
        for decision in &decisions {
            match memory.decisions.get(&decision.id) {
                Some((known, _)) if known != decision => {
                    return Err(Status::already_exists("with other decide_time"));
                }
                _ => {}
            }
        }
        memory.transactions += 1;
        // Ten seconds from one transaction to the next.
        let time = prost_types::Timestamp { seconds: memory.transactions * 10, nanos: 0 };
        Ok(decisions
            .into_iter()
            .map(|decision| {
                let entry = memory.decisions.entry(decision.id.clone());
                let (known, created) = entry.or_insert((decision, time));
                let meta = pb::Meta { create_time: Some(*created), ..Default::default() };
                pb::Decision { meta: Some(meta), ..known.clone() }
            })
            .collect())
    }
}

macro_rules! service {
    ($trait:ident { $($body:tt)* } lacks { $($name:ident: $request:ident -> $response:ident,)* }) => {
        #[tonic::async_trait]
        impl $trait for Server {
            $($body)*
            $(async fn $name(
                &self,
                _: Request<pb::$request>,
            ) -> Result<Response<pb::$response>, Status> {
                Err(Status::unimplemented("not needed here"))
            })*
        }
    };
}

service! { DecisionService {
    async fn create_decision(
        &self,
        call: Request<pb::CreateDecisionRequest>,
    ) -> Result<Response<pb::CreateDecisionResponse>, Status> {
        self.enter(call.metadata(), call.get_ref().options.as_ref())?;
        let call = call.into_inner();
        let unchanged = self.0.lock().unwrap().decisions.contains_key(&call.decision_id);
        let decision = self.create(vec![call])?.pop();
        let receipt = Some(pb::WriteReceipt { unchanged, ..Default::default() });
        Ok(Response::new(pb::CreateDecisionResponse { decision, receipt }))
    }

    async fn batch_create_decisions(
        &self,
        call: Request<pb::BatchCreateDecisionsRequest>,
    ) -> Result<Response<pb::BatchCreateDecisionsResponse>, Status> {
        self.enter(call.metadata(), call.get_ref().options.as_ref())?;
        let requests = call.into_inner().requests;
        let unchanged = {
            let memory = self.0.lock().unwrap();
            requests.iter().all(|request| memory.decisions.contains_key(&request.decision_id))
        };
        let decisions = self.create(requests)?;
        let receipt = Some(pb::WriteReceipt { unchanged, ..Default::default() });
        Ok(Response::new(pb::BatchCreateDecisionsResponse { decisions, receipt }))
    }

    async fn create_override(
        &self,
        call: Request<pb::CreateOverrideRequest>,
    ) -> Result<Response<pb::CreateOverrideResponse>, Status> {
        self.enter(call.metadata(), call.get_ref().options.as_ref())?;
        let call = call.into_inner();
        let mut memory = self.0.lock().unwrap();
        if !memory.decisions.contains_key(&call.decision_id) {
            return Err(Status::not_found("no such decision"));
        }
        let unchanged = !memory.overrides.insert(call.override_id);
        let receipt = Some(pb::WriteReceipt { unchanged, ..Default::default() });
        Ok(Response::new(pb::CreateOverrideResponse { receipt, ..Default::default() }))
    }
} lacks {
    get_decision: GetDecisionRequest -> GetDecisionResponse,
    batch_get_decisions: BatchGetDecisionsRequest -> BatchGetDecisionsResponse,
    list_decisions: ListDecisionsRequest -> ListDecisionsResponse,
    update_decision: UpdateDecisionRequest -> UpdateDecisionResponse,
    delete_decision: DeleteDecisionRequest -> DeleteDecisionResponse,
    undelete_decision: UndeleteDecisionRequest -> UndeleteDecisionResponse,
    list_decision_revisions: ListDecisionRevisionsRequest -> ListDecisionRevisionsResponse,
    add_critic_outputs: AddCriticOutputsRequest -> AddCriticOutputsResponse,
    list_critic_outputs: ListCriticOutputsRequest -> ListCriticOutputsResponse,
    list_overrides: ListOverridesRequest -> ListOverridesResponse,
    get_decision_statistics: GetDecisionStatisticsRequest -> GetDecisionStatisticsResponse,
} }

service! { PolicyService {
    async fn create_policy_rule(
        &self,
        call: Request<pb::CreatePolicyRuleRequest>,
    ) -> Result<Response<pb::CreatePolicyRuleResponse>, Status> {
        self.enter(call.metadata(), call.get_ref().options.as_ref())?;
        if !self.0.lock().unwrap().rules.insert(call.into_inner().policy_rule_id) {
            return Err(Status::already_exists("the rule is there"));
        }
        Ok(Response::new(pb::CreatePolicyRuleResponse::default()))
    }
} lacks {
    get_policy_rule: GetPolicyRuleRequest -> GetPolicyRuleResponse,
    list_policy_rules: ListPolicyRulesRequest -> ListPolicyRulesResponse,
    update_policy_rule: UpdatePolicyRuleRequest -> UpdatePolicyRuleResponse,
    delete_policy_rule: DeletePolicyRuleRequest -> DeletePolicyRuleResponse,
} }

pub async fn serve() -> (Server, String) {
    let server = Server::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let routes = tonic::transport::Server::builder()
        .add_service(DecisionServiceServer::new(server.clone()))
        .add_service(PolicyServiceServer::new(server.clone()));
    tokio::spawn(routes.serve_with_incoming(TcpListenerStream::new(listener)));
    (server, address)
}
