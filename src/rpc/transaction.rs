//! TransactionService: several writes as one.

use super::blob::Work;
use super::evidence::TRIES;
use super::resource::{Ask, ask_within};
use super::wire::{self, Fields, Write};
use super::{Answer, Api, open};
use crate::pb;
use crate::pb::execute_transaction_request::Operation as Item;
use crate::pb::execute_transaction_request::operation::Operation;
use crate::store::blob::{Attempt, Blob};
use crate::store::caller::Caller;
use crate::store::change::OnConflict;
use crate::store::evidence_bundle::{Bytes, CreateEvidenceBundle};
use crate::store::noun::Noun as _;
use crate::store::transaction::{Step, Transaction};
use crate::store::write::Shown;
use crate::{Error, Result};
use futures_util::stream::{self, StreamExt as _};
use std::collections::{BTreeSet, HashSet};
use tonic::{Request, Response};
use tracing::Instrument as _;

/// Bundles whose bytes are put at once.
const BUNDLES_AT_ONCE: usize = 8;

#[tonic::async_trait]
impl pb::transaction_service_server::TransactionService for Api {
    async fn execute_transaction(
        &self,
        request: Request<pb::ExecuteTransactionRequest>,
    ) -> Answer<pb::ExecuteTransactionResponse> {
        let (caller, request) = open(request)?;
        let write = self.ask(request, &caller).await?;
        let (left, receipt) = if write.change.bundles().next().is_none() {
            self.write_as(caller, write).await?
        } else {
            self.blobs()?;
            let api = self.clone();
            // In a task of its own: when the caller goes away its call is dropped, and what it has brought must go.
            let task = async move { api.write_with_bundles(caller, write).await };
            tokio::spawn(task.in_current_span()).await.map_err(Error::internal)??
        };
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

/// What each step left, and the receipt of all.
type Left = (Vec<Option<Shown>>, Option<pb::WriteReceipt>);

/// What was put for a bundle, and the digest of that.
type Put = (String, Attempt);

impl Api {
    /// Puts the bytes of the bundles, unless the tenant has them, and then makes all changes.
    async fn write_with_bundles(&self, caller: Caller, write: Write<Transaction>) -> Result<Left> {
        let Write { change, options } = write;
        let work = Work { api: self.clone(), caller: caller.clone() };
        let mut tries = 0..TRIES;
        loop {
            let is_last = tries.next().is_none_or(|n| n + 1 == TRIES);
            let mut transaction = change.clone();
            let mut put = Vec::new();
            let brought = if options.validate_only {
                change.bundles().for_each(|(place, _)| transaction.set_bytes(place, Bytes::Spared));
                Ok(())
            } else {
                self.bring_all(&work, &mut transaction, &mut put).await
            };
            let written = match brought {
                Ok(()) => self.store.write(caller.clone(), options.clone(), transaction).await,
                Err(error) => Err(error),
            };
            self.let_go(&work, put, written.is_ok()).await;
            match written {
                // It was deleted since we looked: now it is to be brought.
                Err(error) if is_blob_gone(&error) && !is_last => {}
                written => {
                    let (left, receipt) = written?;
                    return Ok((left, self.receipt(&caller, receipt)?));
                }
            }
        }
    }

    /// Sees to it that the bytes of all bundles are in the store, or ready for the database. What was put is told even
    /// where something failed.
    async fn bring_all(
        &self,
        work: &Work,
        transaction: &mut Transaction,
        put: &mut Vec<Put>,
    ) -> Result<()> {
        let mut digests = HashSet::new();
        // Of several with the same bytes the first brings them, and those behind it find them there.
        let firsts: Vec<(usize, CreateEvidenceBundle)> = transaction
            .bundles()
            .filter(|(_, bundle)| digests.insert(bundle.row.digest.clone()))
            .map(|(place, bundle)| (place, bundle.clone()))
            .collect();
        let mut brought = stream::iter(firsts)
            .map(async |(place, bundle)| {
                let brought = self.bring(work, &bundle).await;
                (place, bundle.row.digest, brought)
            })
            .buffered(BUNDLES_AT_ONCE);
        let mut all = Ok(());
        while let Some((place, digest, brought)) = brought.next().await {
            match brought {
                Ok((bytes, attempt)) => {
                    put.extend(attempt.map(|attempt| (digest, attempt)));
                    transaction.set_bytes(place, bytes);
                }
                Err(error) => all = all.and(Err(transaction.at(place, error))),
            }
        }
        all
    }

    /// Removes what was put and no blob keeps: all of it where the transaction was refused.
    async fn let_go(&self, work: &Work, put: Vec<Put>, is_written: bool) {
        for (digest, attempt) in put.into_iter().filter(|(_, attempt)| !attempt.is_inline) {
            let is_left = match is_written {
                false => true,
                // Another's bytes were kept, or those of an earlier call. Where that cannot be told, the reaper will.
                true => match self.store.get::<Blob>(&work.caller, &digest).await {
                    Ok(blob) => blob.store_key != attempt.store_key,
                    Err(_) => false,
                },
            };
            if is_left {
                work.abandon(&attempt, "", false);
            }
        }
    }
}

fn is_blob_gone(error: &Error) -> bool {
    match error {
        Error::NotFound { kind, .. } => *kind == Blob::KIND,
        Error::Within { error, .. } => is_blob_gone(error),
        _ => false,
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
        CreateEvidenceBundle "create_evidence_bundle" on_conflict;
        DeleteEvidenceBundle "delete_evidence_bundle" OnConflict::Fail;
        AttachBlob "attach_blob" on_conflict;
        DetachBlob "detach_blob" OnConflict::Fail;
        PutObject "put_object" OnConflict::Fail;
        CopyObject "copy_object" OnConflict::Fail;
        RollbackObject "rollback_object" OnConflict::Fail;
        DeleteObject "delete_object" OnConflict::Fail;
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
