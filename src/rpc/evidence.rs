//! EvidenceService: what decisions rest on, kept with its bytes, read back and verified.

mod share;
mod verify;

use super::blob::{Brought, Work};
use super::evidence_bundle::read_type;
use super::wire::{self, Fields, Write};
use super::{Answer, Api, open};
use crate::pb;
use crate::store::blob::{Attempt, Blob};
use crate::store::caller::Caller;
use crate::store::evidence_bundle::{Bytes, CreateEvidenceBundle, CreatedBundle};
use crate::store::noun::Noun as _;
use crate::{Error, Result};
use tonic::{Request, Response};
use tracing::Instrument as _;

/// What the blob of a bundle is.
const CONTENT_TYPE: &str = "application/json";
/// How often a bundle is tried whose blob is deleted while it is created.
pub(super) const TRIES: usize = 3;

#[tonic::async_trait]
impl pb::evidence_service_server::EvidenceService for Api {
    async fn create_evidence_bundle(
        &self,
        request: Request<pb::CreateEvidenceBundleRequest>,
    ) -> Answer<pb::CreateEvidenceBundleResponse> {
        let (caller, request) = open(request)?;
        self.blobs()?;
        let write = self.ask(request, &caller).await?;
        let api = self.clone();
        // In a task of its own: when the caller goes away its call is dropped, and what it has brought must go.
        let task = async move { api.keep_bundle(caller, write).await };
        let kept = tokio::spawn(task.in_current_span()).await;
        Ok(Response::new(kept.map_err(Error::internal)??))
    }

    async fn get_evidence_bundle(
        &self,
        request: Request<pb::GetEvidenceBundleRequest>,
    ) -> Answer<pb::GetEvidenceBundleResponse> {
        let evidence_bundle = self.get_one(request).await?;
        Ok(Response::new(pb::GetEvidenceBundleResponse { evidence_bundle }))
    }

    async fn list_evidence_bundles(
        &self,
        request: Request<pb::ListEvidenceBundlesRequest>,
    ) -> Answer<pb::ListEvidenceBundlesResponse> {
        let (evidence_bundles, page) = self.get_page(request).await?;
        Ok(Response::new(pb::ListEvidenceBundlesResponse { evidence_bundles, page }))
    }

    async fn delete_evidence_bundle(
        &self,
        request: Request<pb::DeleteEvidenceBundleRequest>,
    ) -> Answer<pb::DeleteEvidenceBundleResponse> {
        let (evidence_bundle, receipt) = self.change(request).await?;
        Ok(Response::new(pb::DeleteEvidenceBundleResponse { evidence_bundle, receipt }))
    }

    async fn undelete_evidence_bundle(
        &self,
        request: Request<pb::UndeleteEvidenceBundleRequest>,
    ) -> Answer<pb::UndeleteEvidenceBundleResponse> {
        let (evidence_bundle, receipt) = self.change(request).await?;
        Ok(Response::new(pb::UndeleteEvidenceBundleResponse { evidence_bundle, receipt }))
    }

    async fn get_decision_evidence(
        &self,
        request: Request<pb::GetDecisionEvidenceRequest>,
    ) -> Answer<pb::GetDecisionEvidenceResponse> {
        let (caller, request) = open(request)?;
        let pb::GetDecisionEvidenceRequest {
            decision_id,
            evidence_type,
            skip_verification,
            consistency,
        } = request;
        let mut fields = Fields::new(&caller, 1);
        let decision_id = fields.id("decision_id", decision_id);
        let evidence_type = read_type(&mut fields, evidence_type);
        let (decision_id, evidence_type) = fields.finish((decision_id, evidence_type))?;
        if !skip_verification {
            self.blobs()?;
        }
        self.now_only(&caller, consistency).await?;
        let found = self.store.decision_evidence(&caller, &decision_id, &evidence_type).await?;
        let (bundle, attachments) = found;
        if !skip_verification {
            self.verify_bundle(&caller, &bundle).await?;
        }
        Ok(Response::new(pb::GetDecisionEvidenceResponse {
            bundle: Some(bundle.into()),
            attachments: attachments.into_iter().map(Into::into).collect(),
            verified: !skip_verification,
        }))
    }

    async fn attach_blob(
        &self,
        request: Request<pb::AttachBlobRequest>,
    ) -> Answer<pb::AttachBlobResponse> {
        let (row, receipt) = self.write(request).await?;
        Ok(Response::new(pb::AttachBlobResponse { attachment: Some(row.into()), receipt }))
    }

    async fn get_attachment(
        &self,
        request: Request<pb::GetAttachmentRequest>,
    ) -> Answer<pb::GetAttachmentResponse> {
        let attachment = self.get_one(request).await?;
        Ok(Response::new(pb::GetAttachmentResponse { attachment }))
    }

    async fn list_attachments(
        &self,
        request: Request<pb::ListAttachmentsRequest>,
    ) -> Answer<pb::ListAttachmentsResponse> {
        let (attachments, page) = self.get_page(request).await?;
        Ok(Response::new(pb::ListAttachmentsResponse { attachments, page }))
    }

    async fn detach_blob(
        &self,
        request: Request<pb::DetachBlobRequest>,
    ) -> Answer<pb::DetachBlobResponse> {
        let (attachment, receipt) = self.change(request).await?;
        Ok(Response::new(pb::DetachBlobResponse { attachment, receipt }))
    }

    async fn create_share_link(
        &self,
        request: Request<pb::CreateShareLinkRequest>,
    ) -> Answer<pb::CreateShareLinkResponse> {
        let (caller, request) = open(request)?;
        self.blobs()?;
        Ok(Response::new(self.share(&caller, request).await?))
    }

    async fn verify_evidence(
        &self,
        request: Request<pb::VerifyEvidenceRequest>,
    ) -> Answer<pb::VerifyEvidenceResponse> {
        let (caller, request) = open(request)?;
        self.blobs()?;
        let pb::VerifyEvidenceRequest { decision_id, rehash_bytes } = request;
        let decision_id = wire::id("decision_id", decision_id)?;
        let (checked, findings) = self.verify_all(&caller, &decision_id, rehash_bytes).await?;
        Ok(Response::new(pb::VerifyEvidenceResponse { checked, findings }))
    }
}

impl Api {
    /// Puts the bytes of a bundle, unless the tenant has them, and then writes the bundle with their blob.
    async fn keep_bundle(
        &self,
        caller: Caller,
        write: Write<CreateEvidenceBundle>,
    ) -> Result<pb::CreateEvidenceBundleResponse> {
        let Write { change, options } = write;
        let mut tries = 0..TRIES;
        loop {
            let is_last = tries.next().is_none_or(|n| n + 1 == TRIES);
            let (change, work) =
                (change.clone(), Work { api: self.clone(), caller: caller.clone() });
            let (bytes, attempt) = match options.validate_only {
                true => (Bytes::Spared, None),
                false => self.bring(&work, &change).await?,
            };
            let change = CreateEvidenceBundle { bytes, ..change };
            let written = self.store.write(caller.clone(), options.clone(), change).await;
            // Another's bytes were kept, those of an earlier call, or none.
            let kept = written.as_ref().ok().and_then(|(created, _)| created.store_key.as_ref());
            if let Some(attempt) = attempt.filter(|attempt| kept != Some(&attempt.store_key)) {
                work.abandon(&attempt, "", false);
            }
            let (created, receipt) = match written {
                // It was deleted since we looked: now it is to be brought.
                Err(Error::NotFound { kind, .. }) if kind == Blob::KIND && !is_last => continue,
                written => written?,
            };
            let CreatedBundle { bundle, store_key: _ } = created;
            let receipt = self.receipt(&caller, receipt)?;
            let evidence_bundle = Some(bundle.into());
            return Ok(pb::CreateEvidenceBundleResponse { evidence_bundle, receipt });
        }
    }

    /// Sees to it that the bytes of a bundle are in the store, or ready for the database, and says where.
    pub(super) async fn bring(
        &self,
        work: &Work,
        change: &CreateEvidenceBundle,
    ) -> Result<(Bytes, Option<Attempt>)> {
        let digest = &change.row.digest;
        if work.there(digest, None).await?.is_some() {
            return Ok((Bytes::There, None));
        }
        let blobs = self.blobs()?;
        let bytes = change.row.evidence_data.canonical();
        let size_bytes = bytes.len() as u64;
        if size_bytes > blobs.limits.size_max {
            return Err(Error::TooLarge { limit_bytes: blobs.limits.size_max });
        }
        let _share = blobs.budget.take(size_bytes).await?;
        let put = work.put(blobs, digest, vec![bytes], CONTENT_TYPE.to_owned());
        let Brought { attempt, keep } = put.await?;
        Ok((Bytes::Brought(Box::new(keep)), Some(attempt)))
    }
}
