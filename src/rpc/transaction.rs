//! TransactionService: several writes as one.

use super::resource::{Ask, ask_within};
use super::wire::{self, Fields};
use super::{Answer, Api};
use crate::pb;
use crate::pb::execute_transaction_request::Operation as Item;
use crate::pb::execute_transaction_request::operation::Operation;
use crate::store::change::OnConflict;
use crate::store::transaction::{Step, Transaction};
use crate::store::write::Shown;
use std::collections::BTreeSet;
use tonic::{Request, Response};

#[tonic::async_trait]
impl pb::transaction_service_server::TransactionService for Api {
    async fn execute_transaction(
        &self,
        request: Request<pb::ExecuteTransactionRequest>,
    ) -> Answer<pb::ExecuteTransactionResponse> {
        let (left, receipt) = self.write(request).await?;
        let result = |left: Option<Shown>| match left {
            Some(Shown { kind, id, uid: _, version }) => {
                pb::ResourceRef { kind: wire::kind_number(kind).into(), id, version }
            }
            None => pb::ResourceRef::default(),
        };
        let results = left.into_iter().map(result).collect();
        Ok(Response::new(pb::ExecuteTransactionResponse { results, receipt }))
    }
}

crate::requests!(@ask ExecuteTransactionRequest -> Transaction, |fields, on_conflict, operations| {
    let steps = fields.batch("operations", operations, |fields, item| {
        let step = read(fields, item, on_conflict);
        // What those behind it may call `$<n>.id`.
        fields.has_made(step.as_ref().and_then(Step::about).map(|(_, id)| id.to_owned()));
        step
    });
    Transaction { steps: steps.into_iter().flatten().collect() }
}, spaces |request, names| name_spaces(&request.operations, names));

/// Reads each operation as the request that it is; on_conflict is for those that create.
fn read(fields: &mut Fields, item: Item, on_conflict: OnConflict) -> Option<Step> {
    let Item { operation } = item;
    macro_rules! steps {
        ($($variant:ident $name:literal $how:expr;)*) => {
            match operation {
                None => {
                    fields.wrong("", "must have an operation");
                    None
                }
                $(Some(Operation::$variant(request)) => Some(step(fields, $name, request, $how)),)*
            }
        };
    }
    steps! {
        CreateDecision "create_decision" on_conflict;
        UpdateDecision "update_decision" OnConflict::Fail;
        DeleteDecision "delete_decision" OnConflict::Fail;
        AddCriticOutputs "add_critic_outputs" OnConflict::Fail;
        CreateOverride "create_override" OnConflict::Fail;
        CreatePolicyRule "create_policy_rule" on_conflict;
        UpdatePolicyRule "update_policy_rule" OnConflict::Fail;
        DeletePolicyRule "delete_policy_rule" OnConflict::Fail;
        CreateClaim "create_claim" on_conflict;
        UpdateClaim "update_claim" OnConflict::Fail;
        DeleteClaim "delete_claim" OnConflict::Fail;
        CreateVerification "create_verification" on_conflict;
        CreateConsensus "create_consensus" on_conflict;
        CreatePrecedent "create_precedent" on_conflict;
        UpdatePrecedent "update_precedent" OnConflict::Fail;
        DeletePrecedent "delete_precedent" OnConflict::Fail;
        LinkPrecedents "link_precedents" on_conflict;
        CreateDocument "create_document" on_conflict;
        UpdateDocument "update_document" OnConflict::Fail;
        DeleteDocument "delete_document" OnConflict::Fail;
        CreateAnalysis "create_analysis" on_conflict;
        BatchCreateChunks "batch_create_chunks" on_conflict;
        UpdateChunk "update_chunk" OnConflict::Fail;
        DeleteChunk "delete_chunk" OnConflict::Fail;
        CreateModelCheckpoint "create_model_checkpoint" on_conflict;
        UpdateModelCheckpoint "update_model_checkpoint" OnConflict::Fail;
        DeleteModelCheckpoint "delete_model_checkpoint" OnConflict::Fail;
        CreateTrainingExample "create_training_example" on_conflict;
        DeleteTrainingExample "delete_training_example" OnConflict::Fail;
        UpsertEmbedding "upsert_embedding" OnConflict::Replace;
        DeleteEmbedding "delete_embedding" OnConflict::Fail;
    }
}

/// The vector spaces that operations name.
fn name_spaces<'a>(operations: &'a [Item], names: &mut BTreeSet<&'a str>) {
    for operation in operations.iter().filter_map(|item| item.operation.as_ref()) {
        match operation {
            Operation::CreatePrecedent(request) => request.spaces(names),
            Operation::BatchCreateChunks(request) => request.spaces(names),
            Operation::UpsertEmbedding(request) => request.spaces(names),
            Operation::DeleteEmbedding(request) => request.spaces(names),
            _ => {}
        }
    }
}

fn step<A: Ask>(fields: &mut Fields, name: &str, request: A, on_conflict: OnConflict) -> Step {
    fields.within(name, |fields| {
        let change = ask_within(request, fields, on_conflict);
        Step::new(change, fields.place())
    })
}
