//! ModelService: checkpoints of models and what models are trained with, checked and worded.

use super::json;
use super::resource::{New, Resource};
use super::wire::{self, Fields};
use super::{Answer, Api};
use crate::pb;
use crate::store::change::Modify;
use crate::store::child::Hide;
use crate::store::model_checkpoint::{self, ActivateCheckpoint, Activated, ModelCheckpoint};
use crate::store::noun::Noun;
use tonic::{Request, Response};

const PATH_BYTES_MAX: usize = 4096;

#[tonic::async_trait]
impl pb::model_service_server::ModelService for Api {
    async fn create_model_checkpoint(
        &self,
        request: Request<pb::CreateModelCheckpointRequest>,
    ) -> Answer<pb::CreateModelCheckpointResponse> {
        let (model_checkpoint, receipt) = self.create(request).await?;
        Ok(Response::new(pb::CreateModelCheckpointResponse { model_checkpoint, receipt }))
    }

    async fn get_model_checkpoint(
        &self,
        request: Request<pb::GetModelCheckpointRequest>,
    ) -> Answer<pb::GetModelCheckpointResponse> {
        let model_checkpoint = self.get_one(request).await?;
        Ok(Response::new(pb::GetModelCheckpointResponse { model_checkpoint }))
    }

    async fn list_model_checkpoints(
        &self,
        request: Request<pb::ListModelCheckpointsRequest>,
    ) -> Answer<pb::ListModelCheckpointsResponse> {
        let (model_checkpoints, page) = self.get_page(request).await?;
        Ok(Response::new(pb::ListModelCheckpointsResponse { model_checkpoints, page }))
    }

    async fn update_model_checkpoint(
        &self,
        request: Request<pb::UpdateModelCheckpointRequest>,
    ) -> Answer<pb::UpdateModelCheckpointResponse> {
        let (model_checkpoint, receipt) = self.change(request).await?;
        Ok(Response::new(pb::UpdateModelCheckpointResponse { model_checkpoint, receipt }))
    }

    async fn delete_model_checkpoint(
        &self,
        request: Request<pb::DeleteModelCheckpointRequest>,
    ) -> Answer<pb::DeleteModelCheckpointResponse> {
        let (model_checkpoint, receipt) = self.change(request).await?;
        Ok(Response::new(pb::DeleteModelCheckpointResponse { model_checkpoint, receipt }))
    }

    async fn activate_model_checkpoint(
        &self,
        request: Request<pb::ActivateModelCheckpointRequest>,
    ) -> Answer<pb::ActivateModelCheckpointResponse> {
        let (Activated { checkpoint, deactivated_id }, receipt) = self.write(request).await?;
        let model_checkpoint = Some(checkpoint.into());
        let answer =
            pb::ActivateModelCheckpointResponse { model_checkpoint, deactivated_id, receipt };
        Ok(Response::new(answer))
    }

    async fn deactivate_model_checkpoint(
        &self,
        request: Request<pb::DeactivateModelCheckpointRequest>,
    ) -> Answer<pb::DeactivateModelCheckpointResponse> {
        let (model_checkpoint, receipt) = self.change(request).await?;
        Ok(Response::new(pb::DeactivateModelCheckpointResponse { model_checkpoint, receipt }))
    }

    async fn create_training_example(
        &self,
        request: Request<pb::CreateTrainingExampleRequest>,
    ) -> Answer<pb::CreateTrainingExampleResponse> {
        let (training_example, receipt) = self.create(request).await?;
        Ok(Response::new(pb::CreateTrainingExampleResponse { training_example, receipt }))
    }

    async fn batch_create_training_examples(
        &self,
        request: Request<pb::BatchCreateTrainingExamplesRequest>,
    ) -> Answer<pb::BatchCreateTrainingExamplesResponse> {
        let (training_examples, receipt) = self.create_batch(request).await?;
        Ok(Response::new(pb::BatchCreateTrainingExamplesResponse { training_examples, receipt }))
    }

    async fn get_training_example(
        &self,
        request: Request<pb::GetTrainingExampleRequest>,
    ) -> Answer<pb::GetTrainingExampleResponse> {
        let training_example = self.get_one(request).await?;
        Ok(Response::new(pb::GetTrainingExampleResponse { training_example }))
    }

    async fn list_training_examples(
        &self,
        request: Request<pb::ListTrainingExamplesRequest>,
    ) -> Answer<pb::ListTrainingExamplesResponse> {
        let (training_examples, page) = self.get_page(request).await?;
        Ok(Response::new(pb::ListTrainingExamplesResponse { training_examples, page }))
    }

    async fn delete_training_example(
        &self,
        request: Request<pb::DeleteTrainingExampleRequest>,
    ) -> Answer<pb::DeleteTrainingExampleResponse> {
        let (training_example, receipt) = self.change(request).await?;
        Ok(Response::new(pb::DeleteTrainingExampleResponse { training_example, receipt }))
    }

    async fn claim_training_batch(
        &self,
        request: Request<pb::ClaimTrainingBatchRequest>,
    ) -> Answer<pb::ClaimTrainingBatchResponse> {
        let (training_examples, receipt) = self.create_batch(request).await?;
        Ok(Response::new(pb::ClaimTrainingBatchResponse { training_examples, receipt }))
    }
}

crate::requests! { ModelCheckpoint:
    create CreateModelCheckpointRequest(model_checkpoint_id model_checkpoint);
    get GetModelCheckpointRequest(model_checkpoint_id);
    list ListModelCheckpointsRequest("create_time" by [("create_time", true)]);
    update UpdateModelCheckpointRequest(model_checkpoint);
}

crate::requests!(@ask DeleteModelCheckpointRequest -> Hide<ModelCheckpoint>,
|fields, on_conflict, model_checkpoint_id, etag, allow_missing| {
    fields.only_fail(on_conflict);
    let id = fields.id("model_checkpoint_id", model_checkpoint_id);
    model_checkpoint::delete(id, fields.etag("etag", etag), allow_missing)
});

crate::requests!(@ask ActivateModelCheckpointRequest -> ActivateCheckpoint,
|fields, on_conflict, model_checkpoint_id, etag| {
    fields.only_fail(on_conflict);
    let id = fields.id("model_checkpoint_id", model_checkpoint_id);
    ActivateCheckpoint { id, etag: fields.etag("etag", etag) }
});

crate::requests!(@ask DeactivateModelCheckpointRequest -> Modify<ModelCheckpoint>,
|fields, on_conflict, model_checkpoint_id, etag| {
    fields.only_fail(on_conflict);
    let id = fields.id("model_checkpoint_id", model_checkpoint_id);
    model_checkpoint::deactivate(id, fields.etag("etag", etag))
});

impl Resource for pb::ModelCheckpoint {
    type Row = ModelCheckpoint;
    const CHANGEABLE: &'static [&'static str] =
        &["checkpoint_path", "metrics", "training_config", "digest"];
    const NO_REPLACE: Option<&'static str> = Some("use UpdateModelCheckpoint");

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    fn read(self, f: &mut Fields, New { id, meta }: New) -> ModelCheckpoint {
        let pb::ModelCheckpoint {
            id: _,
            etag: _,
            meta: _,
            model_name,
            framework,
            model_version,
            checkpoint_path,
            metrics,
            training_config,
            active: _,
            digest,
        } = self;
        ModelCheckpoint {
            id,
            meta,
            model_name: f.name("model_name", model_name, 255),
            framework: f.text("framework", framework, 50),
            model_version: f.name("model_version", model_version, 50),
            checkpoint_path: f.name("checkpoint_path", checkpoint_path, PATH_BYTES_MAX),
            metrics: f.object("metrics", metrics),
            training_config: f.object("training_config", training_config),
            active: false,
            digest: read_digest(f, digest),
        }
    }
}

fn read_digest(fields: &mut Fields, digest: String) -> String {
    let is_digest = digest.len() == 64
        && digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !digest.is_empty() && !is_digest {
        fields.wrong("digest", "must be empty or 64 lower-case hex digits");
    }
    digest
}

impl From<ModelCheckpoint> for pb::ModelCheckpoint {
    fn from(row: ModelCheckpoint) -> Self {
        let etag = row.etag();
        let ModelCheckpoint {
            id,
            meta,
            model_name,
            framework,
            model_version,
            checkpoint_path,
            metrics,
            training_config,
            active,
            digest,
        } = row;
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            model_name,
            framework,
            model_version,
            checkpoint_path,
            metrics: json::to_optional_object(&metrics),
            training_config: json::to_optional_object(&training_config),
            active,
            digest,
        }
    }
}
