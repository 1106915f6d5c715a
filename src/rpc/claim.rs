//! ClaimService: claims, what each framework found about them, and what they agreed on.

use super::resource::{New, Resource, read_new};
use super::wire::{self, Fields};
use super::{Answer, Api, json, open, page};
use crate::Error;
use crate::pb;
use crate::store::change::OnConflict;
use crate::store::claim::{Claim, CreateClaims, NewClaim, Summary};
use crate::store::filter::Field;
use crate::store::list::ListQuery;
use crate::store::noun::Noun;
use crate::store::verification::{self, FrameworkFigures};
use std::time::SystemTime;
use tonic::{Request, Response};

const CONTENT_BYTES_MAX: usize = 1 << 20;
const VERIFICATIONS_MAX: usize = 100;

#[tonic::async_trait]
impl pb::claim_service_server::ClaimService for Api {
    async fn create_claim(
        &self,
        request: Request<pb::CreateClaimRequest>,
    ) -> Answer<pb::CreateClaimResponse> {
        let (made, receipt) = self.write(request).await?;
        Ok(Response::new(pb::CreateClaimResponse {
            claim: made.claims.into_iter().next().map(Into::into),
            receipt,
            verifications: made.verifications.into_iter().map(Into::into).collect(),
            consensus: made.consensuses.into_iter().next().map(Into::into),
        }))
    }

    async fn batch_create_claims(
        &self,
        request: Request<pb::BatchCreateClaimsRequest>,
    ) -> Answer<pb::BatchCreateClaimsResponse> {
        let (made, receipt) = self.write(request).await?;
        let claims = made.claims.into_iter().map(Into::into).collect();
        Ok(Response::new(pb::BatchCreateClaimsResponse { claims, receipt }))
    }

    async fn get_claim(
        &self,
        request: Request<pb::GetClaimRequest>,
    ) -> Answer<pb::GetClaimResponse> {
        let claim = self.get_one(request).await?;
        Ok(Response::new(pb::GetClaimResponse { claim }))
    }

    async fn batch_get_claims(
        &self,
        request: Request<pb::BatchGetClaimsRequest>,
    ) -> Answer<pb::BatchGetClaimsResponse> {
        let (claims, missing_ids) = self.get_several(request).await?;
        Ok(Response::new(pb::BatchGetClaimsResponse { claims, missing_ids }))
    }

    async fn list_claims(
        &self,
        request: Request<pb::ListClaimsRequest>,
    ) -> Answer<pb::ListClaimsResponse> {
        let (claims, page) = self.get_page(request).await?;
        Ok(Response::new(pb::ListClaimsResponse { claims, page }))
    }

    async fn update_claim(
        &self,
        request: Request<pb::UpdateClaimRequest>,
    ) -> Answer<pb::UpdateClaimResponse> {
        let (claim, receipt) = self.change(request).await?;
        Ok(Response::new(pb::UpdateClaimResponse { claim, receipt }))
    }

    async fn delete_claim(
        &self,
        request: Request<pb::DeleteClaimRequest>,
    ) -> Answer<pb::DeleteClaimResponse> {
        let (claim, receipt) = self.change(request).await?;
        Ok(Response::new(pb::DeleteClaimResponse { claim, receipt }))
    }

    async fn undelete_claim(
        &self,
        request: Request<pb::UndeleteClaimRequest>,
    ) -> Answer<pb::UndeleteClaimResponse> {
        let (claim, receipt) = self.change(request).await?;
        Ok(Response::new(pb::UndeleteClaimResponse { claim, receipt }))
    }

    async fn create_verification(
        &self,
        request: Request<pb::CreateVerificationRequest>,
    ) -> Answer<pb::CreateVerificationResponse> {
        let (verification, receipt) = self.create(request).await?;
        Ok(Response::new(pb::CreateVerificationResponse { verification, receipt }))
    }

    async fn batch_create_verifications(
        &self,
        request: Request<pb::BatchCreateVerificationsRequest>,
    ) -> Answer<pb::BatchCreateVerificationsResponse> {
        let (verifications, receipt) = self.create_batch(request).await?;
        Ok(Response::new(pb::BatchCreateVerificationsResponse { verifications, receipt }))
    }

    async fn get_verification(
        &self,
        request: Request<pb::GetVerificationRequest>,
    ) -> Answer<pb::GetVerificationResponse> {
        let verification = self.get_one(request).await?;
        Ok(Response::new(pb::GetVerificationResponse { verification }))
    }

    async fn list_verifications(
        &self,
        request: Request<pb::ListVerificationsRequest>,
    ) -> Answer<pb::ListVerificationsResponse> {
        let (verifications, page) = self.get_page(request).await?;
        Ok(Response::new(pb::ListVerificationsResponse { verifications, page }))
    }

    async fn create_consensus(
        &self,
        request: Request<pb::CreateConsensusRequest>,
    ) -> Answer<pb::CreateConsensusResponse> {
        let (row, receipt) = self.write(request).await?;
        let consensus = Some(row.into());
        Ok(Response::new(pb::CreateConsensusResponse { consensus, receipt }))
    }

    async fn get_consensus(
        &self,
        request: Request<pb::GetConsensusRequest>,
    ) -> Answer<pb::GetConsensusResponse> {
        let consensus = self.get_one(request).await?;
        Ok(Response::new(pb::GetConsensusResponse { consensus }))
    }

    async fn get_current_consensus(
        &self,
        request: Request<pb::GetCurrentConsensusRequest>,
    ) -> Answer<pb::GetCurrentConsensusResponse> {
        let (caller, request) = open(request)?;
        let pb::GetCurrentConsensusRequest { claim_id, consistency, read_mask } = request;
        let claim_id = wire::id("claim_id", claim_id)?;
        let found = self.store.current_consensus(&caller, &claim_id);
        let consensus = self.get_now(&caller, consistency, read_mask, found).await?;
        Ok(Response::new(pb::GetCurrentConsensusResponse { consensus }))
    }

    async fn list_consensuses(
        &self,
        request: Request<pb::ListConsensusesRequest>,
    ) -> Answer<pb::ListConsensusesResponse> {
        let (consensuses, page) = self.get_page(request).await?;
        Ok(Response::new(pb::ListConsensusesResponse { consensuses, page }))
    }

    async fn get_claim_summary(
        &self,
        request: Request<pb::GetClaimSummaryRequest>,
    ) -> Answer<pb::GetClaimSummaryResponse> {
        let (caller, request) = open(request)?;
        let pb::GetClaimSummaryRequest { claim_id, consistency } = request;
        let claim_id = wire::id("claim_id", claim_id)?;
        self.now_only(&caller, consistency).await?;
        let Summary { claim, latest_verifications, consensus, verification_count, seq } =
            self.store.claim_summary(&caller, &claim_id).await?;
        Ok(Response::new(pb::GetClaimSummaryResponse {
            claim: claim.map(Into::into),
            latest_verifications: latest_verifications.into_iter().map(Into::into).collect(),
            consensus: consensus.map(Into::into),
            verification_count,
            read_at: Some(self.revision(&caller, seq)?),
        }))
    }

    async fn get_framework_statistics(
        &self,
        request: Request<pb::GetFrameworkStatisticsRequest>,
    ) -> Answer<pb::GetFrameworkStatisticsResponse> {
        let (caller, request) = open(request)?;
        let pb::GetFrameworkStatisticsRequest { window, r#where } = request;
        let fields = verification::LISTING.fields;
        let time = Field::find(fields, "create_time")
            .ok_or_else(|| Error::internal("verifications have no create_time"))?;
        let query = ListQuery {
            filter: super::filter::selector(fields, r#where, "where")?,
            window: page::window(time, window, SystemTime::now(), "window")?,
            ..ListQuery::default()
        };
        let found = self.store.framework_statistics(&caller, query).await?;
        Ok(Response::new(pb::GetFrameworkStatisticsResponse {
            total: Some(group(found.total)),
            groups: found.groups.into_iter().map(group).collect(),
            truncated: found.truncated,
            read_at: Some(self.revision(&caller, found.seq)?),
        }))
    }
}

fn group(figures: FrameworkFigures) -> pb::get_framework_statistics_response::Group {
    let FrameworkFigures {
        framework,
        count,
        avg_confidence,
        min_confidence,
        max_confidence,
        p50_processing_time_us,
        p95_processing_time_us,
        claim_count,
    } = figures;
    // Between two measurements lies a fraction of a microsecond.
    let span = |us: Option<f64>| us.map(|us| wire::duration_us(us.round() as i64));
    pb::get_framework_statistics_response::Group {
        framework,
        count,
        avg_confidence,
        min_confidence,
        max_confidence,
        p50_processing_time: span(p50_processing_time_us),
        p95_processing_time: span(p95_processing_time_us),
        claim_count,
    }
}

crate::requests! { Claim:
    get GetClaimRequest(claim_id);
    batch_get BatchGetClaimsRequest(claim_ids);
    list ListClaimsRequest("create_time" by [("create_time", true)]);
    update UpdateClaimRequest(claim);
    delete DeleteClaimRequest(claim_id);
    undelete UndeleteClaimRequest(claim_id);
}

crate::requests!(@ask CreateClaimRequest -> CreateClaims,
|fields, on_conflict, claim_id, claim, verifications, consensus| {
    let new = read_with_results(fields, on_conflict, claim_id, claim, verifications, consensus);
    CreateClaims::new(vec![new], on_conflict)
});

crate::requests!(@ask BatchCreateClaimsRequest -> CreateClaims, |fields, on_conflict, requests| {
    let new = fields.batch("requests", requests, |fields, request| {
        let pb::CreateClaimRequest { claim_id, claim, options, verifications, consensus } = request;
        fields.no_options(options);
        read_with_results(fields, on_conflict, claim_id, claim, verifications, consensus)
    });
    fields.no_duplicates(new.iter().map(|new| new.claim.id.as_str()), |n| {
        format!("requests[{n}].claim_id")
    });
    CreateClaims::new(new, on_conflict)
});

/// A claim to be recorded, and the results that come with it, which are of no other claim.
fn read_with_results(
    fields: &mut Fields,
    on_conflict: OnConflict,
    id: String,
    claim: Option<pb::Claim>,
    verifications: Vec<pb::Verification>,
    consensus: Option<pb::Consensus>,
) -> NewClaim {
    let claim: Claim = read_new(fields, id, claim, on_conflict);
    let of_it = |fields: &mut Fields, claim_id: &mut String| {
        if claim_id.is_empty() {
            claim_id.clone_from(&claim.id);
        } else if *claim_id != claim.id {
            fields.wrong("claim_id", "must be empty or the id of the claim");
        }
    };
    let verifications =
        fields.list("verifications", verifications, VERIFICATIONS_MAX, |fields, mut given| {
            of_it(fields, &mut given.claim_id);
            given.read_part(fields)
        });
    fields.no_duplicates(verifications.iter().map(Noun::id), |n| format!("verifications[{n}].id"));
    let consensus = consensus.map(|mut given| {
        fields.within("consensus", |fields| {
            of_it(fields, &mut given.claim_id);
            given.read_part(fields)
        })
    });
    NewClaim { claim, verifications, consensus }
}

impl Resource for pb::Claim {
    type Row = Claim;
    #[rustfmt::skip]
    const CHANGEABLE: &'static [&'static str] =
        &["content", "claim_type", "source", "metadata", "labels", "retention_class", "subject_id"];

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    fn read(self, f: &mut Fields, New { id, meta }: New) -> Claim {
        let pb::Claim {
            id: _,
            etag: _,
            meta: _,
            content,
            claim_type,
            source,
            metadata,
            labels,
            retention_class,
            subject_id,
        } = self;
        Claim {
            id,
            meta,
            content: f.name("content", content, CONTENT_BYTES_MAX),
            claim_type: f.text("claim_type", claim_type, 100),
            source: f.text("source", source, 255),
            metadata: f.object("metadata", metadata),
            labels: f.labels("labels", labels),
            retention_class: f.text("retention_class", retention_class, 63),
            subject_id: f.text("subject_id", subject_id, 255),
        }
    }
}

impl From<Claim> for pb::Claim {
    fn from(row: Claim) -> Self {
        let etag = row.etag();
        let Claim {
            id,
            meta,
            content,
            claim_type,
            source,
            metadata,
            labels,
            retention_class,
            subject_id,
        } = row;
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            content,
            claim_type,
            source,
            metadata: json::to_optional_object(&metadata),
            labels: json::to_strings(&labels),
            retention_class,
            subject_id,
        }
    }
}
