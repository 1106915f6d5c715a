//! VectorSpaceService: spaces and their aliases, checked and worded.

mod index;

use super::descriptor::ReadMask;
use super::json;
use super::resource::{Get, GetRequest, New, Resource, read_delete, read_new};
use super::wire::{self, Fields, LONG_TEXT_BYTES_MAX};
use super::{Answer, Api, Parts, open};
use crate::pb;
use crate::store::caller::Caller;
use crate::store::change::Create;
use crate::store::noun::Noun;
use crate::store::vector_index::IndexSpec;
use crate::store::vector_space::{
    COSINE, CreateSpace, DIMENSIONS_DEFAULT, DIMENSIONS_MAX, DeleteSpace, FLOAT32, MANUAL,
    MoveAlias, Moved, UndeleteSpace, VectorSpace,
};
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::sync::Arc;
use tonic::{Request, Response};

/// Spaces that one call may write into.
const SPACES_MAX: usize = 100;

#[tonic::async_trait]
impl pb::vector_space_service_server::VectorSpaceService for Api {
    async fn create_vector_space(
        &self,
        request: Request<pb::CreateVectorSpaceRequest>,
    ) -> Answer<pb::CreateVectorSpaceResponse> {
        let (vector_space, receipt) = self.create(request).await?;
        Ok(Response::new(pb::CreateVectorSpaceResponse { vector_space, receipt }))
    }

    async fn get_vector_space(
        &self,
        request: Request<pb::GetVectorSpaceRequest>,
    ) -> Answer<pb::GetVectorSpaceResponse> {
        let (caller, request) = open(request)?;
        let Get { id, consistency, read_mask, version } = request.parts();
        let mask = ReadMask::new::<pb::VectorSpace>(read_mask)?;
        let seq = self.read_at(&caller, consistency.clone()).await?;
        let mut row = self.space(&caller, "vector_space_id", id, seq).await?;
        if version != 0 {
            row = self.get(&caller, row.id, consistency, version).await?;
        }
        let vector_space = Some(mask.apply(row.into())?);
        Ok(Response::new(pb::GetVectorSpaceResponse { vector_space }))
    }

    async fn list_vector_spaces(
        &self,
        request: Request<pb::ListVectorSpacesRequest>,
    ) -> Answer<pb::ListVectorSpacesResponse> {
        let (vector_spaces, page) = self.get_page(request).await?;
        Ok(Response::new(pb::ListVectorSpacesResponse { vector_spaces, page }))
    }

    async fn update_vector_space(
        &self,
        request: Request<pb::UpdateVectorSpaceRequest>,
    ) -> Answer<pb::UpdateVectorSpaceResponse> {
        let (vector_space, receipt) = self.change(request).await?;
        Ok(Response::new(pb::UpdateVectorSpaceResponse { vector_space, receipt }))
    }

    async fn delete_vector_space(
        &self,
        request: Request<pb::DeleteVectorSpaceRequest>,
    ) -> Answer<pb::DeleteVectorSpaceResponse> {
        let (vector_space, receipt) = self.change(request).await?;
        Ok(Response::new(pb::DeleteVectorSpaceResponse { vector_space, receipt }))
    }

    async fn undelete_vector_space(
        &self,
        request: Request<pb::UndeleteVectorSpaceRequest>,
    ) -> Answer<pb::UndeleteVectorSpaceResponse> {
        let (vector_space, receipt) = self.change(request).await?;
        Ok(Response::new(pb::UndeleteVectorSpaceResponse { vector_space, receipt }))
    }

    async fn set_vector_space_alias(
        &self,
        request: Request<pb::SetVectorSpaceAliasRequest>,
    ) -> Answer<pb::SetVectorSpaceAliasResponse> {
        let (Moved { space, previous_id }, receipt) = self.write(request).await?;
        Ok(Response::new(pb::SetVectorSpaceAliasResponse {
            vector_space: space.map(Into::into),
            previous_vector_space_id: previous_id,
            receipt,
        }))
    }

    async fn delete_vector_space_alias(
        &self,
        request: Request<pb::DeleteVectorSpaceAliasRequest>,
    ) -> Answer<pb::DeleteVectorSpaceAliasResponse> {
        let (Moved { space, previous_id: _ }, receipt) = self.write(request).await?;
        let vector_space = space.map(Into::into);
        Ok(Response::new(pb::DeleteVectorSpaceAliasResponse { vector_space, receipt }))
    }

    async fn build_vector_index(
        &self,
        request: Request<pb::BuildVectorIndexRequest>,
    ) -> Answer<pb::BuildVectorIndexResponse> {
        let (operation, receipt) = self.write(request).await?;
        let operation = Some(operation.into());
        Ok(Response::new(pb::BuildVectorIndexResponse { operation, receipt }))
    }

    async fn drop_vector_index(
        &self,
        request: Request<pb::DropVectorIndexRequest>,
    ) -> Answer<pb::DropVectorIndexResponse> {
        let (operation, receipt) = self.write(request).await?;
        let operation = Some(operation.into());
        Ok(Response::new(pb::DropVectorIndexResponse { operation, receipt }))
    }

    async fn get_vector_space_stats(
        &self,
        request: Request<pb::GetVectorSpaceStatsRequest>,
    ) -> Answer<pb::GetVectorSpaceStatsResponse> {
        let (caller, request) = open(request)?;
        let pb::GetVectorSpaceStatsRequest { vector_space_id } = request;
        Ok(Response::new(self.vector_space_stats(&caller, vector_space_id).await?))
    }

    async fn measure_recall(
        &self,
        request: Request<pb::MeasureRecallRequest>,
    ) -> Answer<pb::MeasureRecallResponse> {
        let (caller, request) = open(request)?;
        Ok(Response::new(self.recall(&caller, request).await?))
    }
}

impl Parts {
    /// The space that a name stands for, an id or an alias, at a log number; `None` means now. The field is the name's.
    pub(super) async fn space(
        &self,
        caller: &Caller,
        field: &str,
        name: String,
        seq: Option<i64>,
    ) -> Result<VectorSpace> {
        let name = wire::id(field, name)?;
        match self.get_at(caller, name.clone(), seq).await {
            Err(Error::NotFound { .. }) => {
                let space = self.store.space_of_alias(caller, &name, seq).await?;
                space.ok_or_else(|| Error::not_found(VectorSpace::KIND, name))
            }
            space => space,
        }
    }

    /// The spaces of names as they are now; names that stand for none are left out, whatever they look like.
    pub(super) async fn spaces(
        &self,
        caller: &Caller,
        names: BTreeSet<&str>,
    ) -> Result<wire::Spaces> {
        let named = names.into_iter().filter(|name| wire::is_id(name)).map(str::to_owned);
        let names: Vec<String> = named.collect();
        if names.len() > SPACES_MAX {
            let many = format!("must name at most {SPACES_MAX} spaces, and names {}", names.len());
            return Err(Error::invalid("vector_space_id", many));
        }
        let mut spaces = wire::Spaces::new();
        if names.is_empty() {
            return Ok(spaces);
        }
        let found: Vec<Option<VectorSpace>> = self.store.get_many(caller, names.clone()).await?;
        for (name, space) in names.into_iter().zip(found) {
            let space = match space {
                None => self.store.space_of_alias(caller, &name, None).await?,
                space => space,
            };
            spaces.extend(space.map(|space| (name, Arc::new(space))));
        }
        Ok(spaces)
    }
}

crate::requests! { VectorSpace:
    get GetVectorSpaceRequest(vector_space_id);
    list ListVectorSpacesRequest("create_time" by [("create_time", true)]);
    update UpdateVectorSpaceRequest(vector_space);
}

crate::requests!(@ask DeleteVectorSpaceRequest -> DeleteSpace,
|fields, on_conflict, vector_space_id, etag, allow_missing| {
    DeleteSpace(read_delete::<pb::VectorSpace>(fields, vector_space_id, etag, allow_missing, on_conflict).0)
});

crate::requests!(@ask CreateVectorSpaceRequest -> CreateSpace,
|fields, on_conflict, vector_space_id, vector_space| {
    let row = read_new(fields, vector_space_id, vector_space, on_conflict);
    CreateSpace(Create { rows: vec![row], on_conflict })
});

crate::requests!(@ask UndeleteVectorSpaceRequest -> UndeleteSpace, |fields, on_conflict, vector_space_id| {
    fields.only_fail(on_conflict);
    UndeleteSpace(fields.id("vector_space_id", vector_space_id))
});

crate::requests!(@ask SetVectorSpaceAliasRequest -> MoveAlias, |fields, on_conflict, alias, vector_space_id| {
    fields.only_fail(on_conflict);
    MoveAlias {
        alias: fields.id("alias", alias),
        to: Some(fields.id("vector_space_id", vector_space_id)),
        allow_missing: false,
    }
});

crate::requests!(@ask DeleteVectorSpaceAliasRequest -> MoveAlias, |fields, on_conflict, alias, allow_missing| {
    fields.only_fail(on_conflict);
    MoveAlias { alias: fields.id("alias", alias), to: None, allow_missing }
});

impl Resource for pb::VectorSpace {
    type Row = VectorSpace;
    const CHANGEABLE: &'static [&'static str] = &["description", "index_mode", "labels"];
    const NO_REPLACE: Option<&'static str> = Some("use UpdateVectorSpace");

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    fn read(self, f: &mut Fields, New { id, meta }: New) -> VectorSpace {
        let pb::VectorSpace {
            id: _,
            etag: _,
            meta: _,
            embedding_model,
            dimensions,
            metric,
            storage,
            description,
            labels,
            aliases: _,
            index,
            index_mode,
        } = self;
        let dimensions = match dimensions {
            0 => DIMENSIONS_DEFAULT,
            1..=DIMENSIONS_MAX => dimensions,
            _ => {
                let range = format!("must be 1 to {DIMENSIONS_MAX}, or 0 for {DIMENSIONS_DEFAULT}");
                f.wrong("dimensions", range);
                DIMENSIONS_DEFAULT
            }
        };
        let mut space = VectorSpace {
            id,
            meta,
            embedding_model: f.name("embedding_model", embedding_model, 255),
            dimensions,
            metric: f.value::<pb::DistanceMetric>("metric", metric, COSINE),
            storage: f.value::<pb::VectorStorage>("storage", storage, FLOAT32),
            description: f.text("description", description, LONG_TEXT_BYTES_MAX),
            labels: f.labels("labels", labels),
            aliases: crate::store::canonical::Json::array(),
            index_method: None,
            index_codes: None,
            index_m: None,
            index_ef_construction: None,
            index_lists: None,
            index_mode: Some(f.value::<pb::VectorIndexMode>("index_mode", index_mode, MANUAL)),
        };
        if let Some(index) = index {
            f.within("index", |f| index::read_wish(f, index)).set_on(&mut space);
        }
        space
    }
}

impl From<VectorSpace> for pb::VectorSpace {
    fn from(row: VectorSpace) -> Self {
        let (etag, aliases) = (row.etag(), row.alias_list());
        let index = IndexSpec::of(&row).map(index::word);
        let VectorSpace {
            id,
            meta,
            embedding_model,
            dimensions,
            metric,
            storage,
            description,
            labels,
            aliases: _,
            index_method: _,
            index_codes: _,
            index_m: _,
            index_ef_construction: _,
            index_lists: _,
            index_mode,
        } = row;
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            embedding_model,
            dimensions,
            metric: metric.into(),
            storage: storage.into(),
            description,
            labels: json::to_strings(&labels),
            aliases,
            index,
            index_mode: index_mode.unwrap_or(MANUAL).into(),
        }
    }
}
