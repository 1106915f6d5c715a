//! CreateShareLink: the way past this server to the bytes of a piece of evidence, for a while.

use crate::pb;
use crate::pb::create_share_link_request::Target;
use crate::rpc::blob::url::{TTL_DEFAULT, url_ttl};
use crate::rpc::evidence_bundle::read_type;
use crate::rpc::wire::Fields;
use crate::rpc::{Api, wire};
use crate::store::attachment::Attachment;
use crate::store::blob::Blob;
use crate::store::blob_store::sign::SignedUrl;
use crate::store::caller::Caller;
use crate::store::evidence_bundle::EvidenceBundle;
use crate::{Error, Result};

impl Api {
    pub(super) async fn share(
        &self,
        caller: &Caller,
        request: pb::CreateShareLinkRequest,
    ) -> Result<pb::CreateShareLinkResponse> {
        let pb::CreateShareLinkRequest { target, evidence_type, ttl } = request;
        let mut fields = Fields::new(caller, 1);
        if !evidence_type.is_empty() && !matches!(target, Some(Target::DecisionId(_))) {
            fields.wrong("evidence_type", "is taken beside decision_id only");
        }
        let evidence_type = read_type(&mut fields, evidence_type);
        let ttl = ttl.filter(|ttl| (ttl.seconds, ttl.nanos) != (0, 0));
        let ttl = url_ttl(&mut fields, "ttl", ttl, TTL_DEFAULT);
        let target = match target {
            None => {
                fields.wrong("target", "is required");
                None
            }
            Some(Target::EvidenceBundleId(id)) => {
                Some(Target::EvidenceBundleId(fields.id("evidence_bundle_id", id)))
            }
            Some(Target::AttachmentId(id)) => {
                Some(Target::AttachmentId(fields.id("attachment_id", id)))
            }
            Some(Target::DecisionId(id)) => Some(Target::DecisionId(fields.id("decision_id", id))),
        };
        let (digest, filename) = match fields.finish(target)? {
            Some(Target::EvidenceBundleId(id)) => {
                let bundle: EvidenceBundle = self.store.get(caller, &id).await?;
                let name = file_of(&bundle);
                (bundle.digest, name)
            }
            Some(Target::DecisionId(id)) => {
                let found = self.store.decision_evidence(caller, &id, &evidence_type).await?;
                let name = file_of(&found.0);
                (found.0.digest, name)
            }
            Some(Target::AttachmentId(id)) => {
                let attachment: Attachment = self.store.get(caller, &id).await?;
                (attachment.digest, attachment.name)
            }
            None => return Err(Error::internal("a link to nothing")),
        };
        let blob: Blob = self.store.get(caller, &digest).await?;
        // It is saved as a file, not as a path.
        let filename = filename.replace(['/', '\\'], "_");
        let issued = self.issue_download_url(caller, &blob, ttl, &filename).await?;
        let SignedUrl { url, expire_time } = issued;
        Ok(pb::CreateShareLinkResponse { url, expire_time: wire::timestamp(expire_time) })
    }
}

fn file_of(bundle: &EvidenceBundle) -> String {
    format!("{}.json", bundle.decision_id)
}
