//! Whether evidence is what it was: its bytes in the store, its records and the log held against one another.

use crate::pb::verify_evidence_response::Finding;
use crate::pb::{self, EvidenceProblem};
use crate::rpc::blob::other_bytes;
use crate::rpc::{Api, json, wire};
use crate::store::attachment::Attachment;
use crate::store::blob::body::{Pace, memory_bytes};
use crate::store::blob::check::Fault;
use crate::store::blob::{Blob, CORRUPT};
use crate::store::caller::Caller;
use crate::store::decision::Decision;
use crate::store::evidence::{Evidence, Logged};
use crate::store::evidence_bundle::EvidenceBundle;
use crate::store::noun::Noun as _;
use crate::{Error, Reason, Result};
use uuid::Uuid;

/// Records that are read at once: a bundle has up to 1 MiB.
const AT_ONCE: i64 = 16;

/// A piece of evidence as it is verified.
trait Verified: Evidence {
    /// How many bytes it says that its blob has.
    fn blob_bytes(&self) -> i64;
    /// Whether what the record says agrees with itself.
    fn is_sound(&self) -> bool {
        true
    }
}

impl Verified for EvidenceBundle {
    fn blob_bytes(&self) -> i64 {
        self.size_bytes
    }

    fn is_sound(&self) -> bool {
        json::hash(&self.evidence_data) == self.digest
    }
}

impl Verified for Attachment {
    fn blob_bytes(&self) -> i64 {
        self.size_bytes
    }
}

impl Api {
    /// Reads the stored bytes of a bundle, and fails unless they are those that its record has and its digest is of.
    pub(super) async fn verify_bundle(
        &self,
        caller: &Caller,
        bundle: &EvidenceBundle,
    ) -> Result<()> {
        let blobs = self.blobs()?;
        if !bundle.is_sound() {
            return Err(untrue(bundle, "evidence_data has another digest"));
        }
        let blob: Blob = match self.store.get(caller, &bundle.digest).await {
            Ok(blob) => blob,
            Err(Error::NotFound { .. }) => return Err(untrue(bundle, "there is no such blob")),
            Err(error) => return Err(error),
        };
        let source = self.source(caller, &blob).await?;
        if blob.size_bytes != bundle.size_bytes {
            return Err(untrue(bundle, "size_bytes is not that of the blob"));
        }
        let size_bytes = blob.size_bytes.unsigned_abs();
        let _share = blobs.budget.take(memory_bytes(&blob, size_bytes)).await?;
        let read = source.read(0..size_bytes, caller.deadline).await;
        let read = read.and_then(|bytes| {
            if bytes == bundle.evidence_data.canonical() { Ok(()) } else { Err(other_bytes()) }
        });
        match read {
            Ok(()) => Ok(()),
            Err(error) => Err(self.accuse(caller, &blob, error).await),
        }
    }

    /// How many pieces of evidence a decision has, and what is wrong with them.
    pub(super) async fn verify_all(
        &self,
        caller: &Caller,
        decision_id: &str,
        rehash: bool,
    ) -> Result<(i64, Vec<Finding>)> {
        self.store.must_exist(caller, Decision::facts(), decision_id).await?;
        let mut findings = Vec::new();
        let bundles =
            self.verify_kind::<EvidenceBundle>(caller, decision_id, rehash, &mut findings).await?;
        let attachments =
            self.verify_kind::<Attachment>(caller, decision_id, rehash, &mut findings).await?;
        Ok((bundles + attachments, findings))
    }

    async fn verify_kind<T: Verified>(
        &self,
        caller: &Caller,
        decision_id: &str,
        rehash: bool,
        findings: &mut Vec<Finding>,
    ) -> Result<i64> {
        let (mut checked, mut behind) = (0, Uuid::nil());
        loop {
            let found = self.store.evidence_of::<T>(caller, decision_id, behind, AT_ONCE).await?;
            let is_last = (found.len() as i64) < AT_ONCE;
            for Logged { row, is_logged } in found {
                (checked, behind) = (checked + 1, row.meta().uid);
                let mut note = |problem: EvidenceProblem| {
                    let reference = pb::ResourceRef {
                        kind: wire::kind_number(T::KIND).into(),
                        id: row.id().to_owned(),
                        version: row.meta().version,
                    };
                    let problem = problem.into();
                    let finding = Finding { r#ref: Some(reference), problem };
                    // The record and its bytes may have the same fault.
                    if !findings.contains(&finding) {
                        findings.push(finding);
                    }
                };
                if !is_logged {
                    note(EvidenceProblem::NotInLog);
                }
                if !row.is_sound() {
                    note(EvidenceProblem::DigestMismatch);
                }
                match self.store.get::<Blob>(caller, row.digest()).await {
                    Ok(blob) => {
                        if blob.size_bytes != row.blob_bytes() {
                            note(EvidenceProblem::SizeMismatch);
                        }
                        if let Some(problem) = self.verify_blob(caller, &blob, rehash).await? {
                            note(problem);
                        }
                    }
                    Err(Error::NotFound { .. }) => note(EvidenceProblem::MissingBytes),
                    Err(error) => return Err(error),
                }
            }
            if is_last {
                return Ok(checked);
            }
        }
    }

    /// What is wrong with the stored bytes of a blob, which is noted as VerifyBlobStore notes it.
    async fn verify_blob(
        &self,
        caller: &Caller,
        blob: &Blob,
        rehash: bool,
    ) -> Result<Option<EvidenceProblem>> {
        let blobs = self.blobs()?;
        let mut pace = rehash.then(|| Pace::new(None));
        let fault = self.store.check_blob(&blobs.lens(), caller, blob, pace.as_mut()).await?;
        let problem = match fault {
            None => return Ok(None),
            Some(Fault::Unreadable(error)) => return Err(error),
            Some(Fault::Missing) => EvidenceProblem::MissingBytes,
            Some(Fault::Size { .. }) => EvidenceProblem::SizeMismatch,
            Some(Fault::Damaged) => EvidenceProblem::DigestMismatch,
        };
        if blob.state != CORRUPT {
            blobs.corrupt.inc();
        }
        Ok(Some(problem))
    }
}

/// The record of a bundle is not what it should be; the blob, if there is one, may be sound.
fn untrue(bundle: &EvidenceBundle, how: &str) -> Error {
    Error::DataLoss {
        reason: Reason::BlobCorrupt,
        message: format!("the record of the evidence bundle \"{}\" is damaged: {how}", bundle.id),
        metadata: vec![("digest", bundle.digest.clone())],
    }
}
