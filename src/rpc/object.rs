//! ObjectService: keys over blobs, and their versions.

mod list;

use super::descriptor::ReadMask;
use super::resource::{Ask, ask_within};
use super::wire::{self, Fields, ID_BYTES_MAX};
use super::{Answer, Api, Parts, blob, json, open};
use crate::Reason;
use crate::pb;
use crate::store::canonical::Json;
use crate::store::change::OnConflict;
use crate::store::noun::Noun as _;
use crate::store::object::delete::{Delete, Leave};
use crate::store::object::put::{Put, Puts, Source, Wanted};
use crate::store::object::read::Found;
use crate::store::object::statistics::Statistics;
use crate::store::object::{Object, Written};
use crate::store::object_version::ObjectVersion;
use tonic::{Request, Response};
use uuid::Uuid;

pub const KEY_BYTES_MAX: usize = 1024;
pub const COMMENT_BYTES_MAX: usize = 4096;
const LOCATION_BYTES_MAX: usize = 4096;
const BACKEND_BYTES_MAX: usize = 63;
const CLASS_BYTES_MAX: usize = 63;

#[tonic::async_trait]
impl pb::object_service_server::ObjectService for Api {
    async fn put_object(
        &self,
        request: Request<pb::PutObjectRequest>,
    ) -> Answer<pb::PutObjectResponse> {
        let (Written { object, version }, receipt) = self.write(request).await?;
        let (object, object_version) = (Some(object.into()), worded(version, true));
        Ok(Response::new(pb::PutObjectResponse { object, object_version, receipt }))
    }

    async fn batch_put_objects(
        &self,
        request: Request<pb::BatchPutObjectsRequest>,
    ) -> Answer<pb::BatchPutObjectsResponse> {
        let (written, receipt): (Vec<Written>, _) = self.write(request).await?;
        let items = written.into_iter().map(|Written { object, version }| {
            let etag = object.etag();
            pb::batch_put_objects_response::Item { key: object.id, version_id: version.id, etag }
        });
        Ok(Response::new(pb::BatchPutObjectsResponse { items: items.collect(), receipt }))
    }

    async fn get_object(
        &self,
        request: Request<pb::GetObjectRequest>,
    ) -> Answer<pb::GetObjectResponse> {
        let (caller, request) = open(request)?;
        let pb::GetObjectRequest { key, version_id, consistency, read_mask } = request;
        let mask = ReadMask::new::<pb::Object>(read_mask)?;
        let mut fields = Fields::new(&caller, self.batch_max);
        let key = fields.object_key("key", key);
        let version_id = fields.reference("version_id", version_id);
        let (key, version_id) = fields.finish((key, version_id))?;
        let seq = self.read_at(&caller, consistency).await?;
        let Found { object, version, is_latest } =
            self.store.object(&caller, &key, &version_id, seq).await?;
        let object = object.map(|object| mask.apply(object.into())).transpose()?;
        let object_version = worded(version, is_latest);
        Ok(Response::new(pb::GetObjectResponse { object, object_version }))
    }

    async fn list_objects(
        &self,
        request: Request<pb::ListObjectsRequest>,
    ) -> Answer<pb::ListObjectsResponse> {
        let (caller, request) = open(request)?;
        Ok(Response::new(Parts::list_objects(self, &caller, request).await?))
    }

    async fn search_objects(
        &self,
        request: Request<pb::SearchObjectsRequest>,
    ) -> Answer<pb::SearchObjectsResponse> {
        let (caller, request) = open(request)?;
        Ok(Response::new(Parts::search_objects(self, &caller, request).await?))
    }

    async fn copy_object(
        &self,
        request: Request<pb::CopyObjectRequest>,
    ) -> Answer<pb::CopyObjectResponse> {
        let (Written { object, version }, receipt) = self.write(request).await?;
        let (object, object_version) = (Some(object.into()), worded(version, true));
        Ok(Response::new(pb::CopyObjectResponse { object, object_version, receipt }))
    }

    async fn delete_object(
        &self,
        request: Request<pb::DeleteObjectRequest>,
    ) -> Answer<pb::DeleteObjectResponse> {
        let (written, receipt) = self.write(request).await?;
        let (object, object_version) = match written.into_iter().next() {
            Some(Written { object, version }) => {
                let is_latest = object.version_id == version.id;
                (Some(object.into()), worded(version, is_latest))
            }
            None => (None, None),
        };
        Ok(Response::new(pb::DeleteObjectResponse { object, object_version, receipt }))
    }

    async fn batch_delete_objects(
        &self,
        request: Request<pb::BatchDeleteObjectsRequest>,
    ) -> Answer<pb::BatchDeleteObjectsResponse> {
        let (written, receipt) = self.write(request).await?;
        // At most as many as were asked for.
        let deleted_count = written.len() as i32;
        Ok(Response::new(pb::BatchDeleteObjectsResponse { deleted_count, receipt }))
    }

    async fn list_object_versions(
        &self,
        request: Request<pb::ListObjectVersionsRequest>,
    ) -> Answer<pb::ListObjectVersionsResponse> {
        let (caller, request) = open(request)?;
        Ok(Response::new(Parts::list_object_versions(self, &caller, request).await?))
    }

    async fn update_object_version(
        &self,
        request: Request<pb::UpdateObjectVersionRequest>,
    ) -> Answer<pb::UpdateObjectVersionResponse> {
        let (caller, request) = open(request)?;
        Ok(Response::new(Parts::update_object_version(self, caller, request).await?))
    }

    async fn rollback_object(
        &self,
        request: Request<pb::RollbackObjectRequest>,
    ) -> Answer<pb::RollbackObjectResponse> {
        let (Written { object, version }, receipt) = self.write(request).await?;
        let (object, object_version) = (Some(object.into()), worded(version, true));
        Ok(Response::new(pb::RollbackObjectResponse { object, object_version, receipt }))
    }

    async fn compare_object_versions(
        &self,
        request: Request<pb::CompareObjectVersionsRequest>,
    ) -> Answer<pb::CompareObjectVersionsResponse> {
        let (caller, request) = open(request)?;
        Ok(Response::new(Parts::compare_object_versions(self, &caller, request).await?))
    }

    async fn get_object_statistics(
        &self,
        request: Request<pb::GetObjectStatisticsRequest>,
    ) -> Answer<pb::GetObjectStatisticsResponse> {
        let (caller, request) = open(request)?;
        self.now_only(&caller, request.consistency).await?;
        let found = self.store.object_statistics(&caller).await?;
        let Statistics { backends, version_count, shared, audit_count_24h, read_time } = found;
        let object_count = backends.iter().map(|backend| backend.object_count).sum();
        let add = |sum: i64, size: &i64| sum.saturating_add(*size);
        let size_bytes = backends.iter().map(|backend| &backend.size_bytes).fold(0, add);
        let backends =
            backends.into_iter().map(|backend| pb::get_object_statistics_response::Backend {
                storage_backend: backend.storage_backend,
                object_count: backend.object_count,
                size_bytes: backend.size_bytes,
            });
        Ok(Response::new(pb::GetObjectStatisticsResponse {
            backends: backends.collect(),
            object_count,
            size_bytes,
            version_count,
            audit_count_24h,
            blob_count: shared.blob_count,
            deduplicated_bytes: shared.deduplicated_bytes,
            read_time: wire::timestamp(read_time),
        }))
    }
}

/// A version as it is answered.
pub fn worded(version: ObjectVersion, is_latest: bool) -> Option<pb::ObjectVersion> {
    Some(pb::ObjectVersion { is_latest, ..version.into() })
}

impl Fields {
    /// The key of an object, which must be given.
    pub fn object_key(&mut self, field: &str, value: String) -> String {
        let climbs = value.split(['/', '\\']).any(|part| part == "..");
        if value.is_empty() {
            self.wrong(field, "is required");
        } else if value.contains('\0') {
            self.wrong_because(Reason::NulByte, field, "must not contain a NUL byte");
        } else if value.len() > KEY_BYTES_MAX {
            let long = value.len();
            self.wrong(field, format!("must be at most {KEY_BYTES_MAX} bytes long, and is {long}"));
        } else if value.chars().any(char::is_control) {
            self.wrong(field, "must not have control characters");
        } else if value.starts_with('/') {
            self.wrong(field, "must not begin with \"/\"");
        } else if climbs {
            self.wrong(field, "must not have a part that is \"..\"");
        }
        value
    }

    /// The id of a resource of a kind, by its name in the log.
    pub fn id_of(&mut self, kind: &str, field: &str, value: String) -> String {
        if kind == Object::KIND { self.object_key(field, value) } else { self.id(field, value) }
    }

    /// What an object shall be beforehand.
    fn wanted(&mut self, if_match: String, if_none_match: bool) -> Wanted {
        if if_none_match && !if_match.is_empty() {
            self.wrong("if_none_match", "must not be set together with if_match");
        }
        match if_match.as_str() {
            "*" => Wanted::Present,
            "" if if_none_match => Wanted::Absent,
            _ => self.etag("if_match", if_match).map_or(Wanted::Anything, Wanted::Etag),
        }
    }

    fn external(&mut self, external: pb::ExternalObject, version: &mut ObjectVersion) {
        let pb::ExternalObject {
            storage_backend,
            location,
            size_bytes,
            store_etag,
            store_version_id,
            storage_class,
        } = external;
        if size_bytes < 0 {
            self.wrong("size_bytes", "must not be negative");
        }
        version.storage_backend = self.name("storage_backend", storage_backend, BACKEND_BYTES_MAX);
        version.location = self.name("location", location, LOCATION_BYTES_MAX);
        version.size_bytes = size_bytes;
        version.store_etag = self.text("store_etag", store_etag, ID_BYTES_MAX);
        version.store_version_id = self.text("store_version_id", store_version_id, ID_BYTES_MAX);
        version.storage_class = self.text("storage_class", storage_class, ID_BYTES_MAX);
    }
}

impl Ask for pb::PutObjectRequest {
    type Change = Put;

    fn options(&mut self) -> &mut Option<pb::WriteOptions> {
        &mut self.options
    }

    fn read(mut self, fields: &mut Fields, on_conflict: OnConflict) -> Put {
        use pb::put_object_request::Content;
        fields.only_fail(on_conflict);
        let content = self.content.take();
        let mut put = read_put(fields, self);
        match content {
            Some(Content::Blob(digest)) => {
                put.version.digest = fields.within("blob", |fields| blob::value(fields, digest));
            }
            Some(Content::External(external)) => {
                fields.within("external", |fields| fields.external(external, &mut put.version));
            }
            None => fields.wrong("content", "must have a blob, or say that the bytes are external"),
        }
        put
    }
}

crate::requests!(@ask BatchPutObjectsRequest -> Puts, |fields, on_conflict, requests| {
    fields.only_fail(on_conflict);
    let puts = fields.batch("requests", requests, |fields, request| {
        ask_within(request, fields, OnConflict::Fail)
    });
    fields.no_duplicates(puts.iter().map(Put::key), |n| format!("requests[{n}].key"));
    Puts { puts }
});

/// Reads the object that bytes become which are being uploaded.
pub fn read_upload(fields: &mut Fields, mut request: pb::PutObjectRequest) -> Put {
    fields.no_options(request.options.take());
    if request.content.take().is_some() {
        fields.wrong("content", "must not be set: it is what is uploaded");
    }
    read_put(fields, request)
}

/// Reads everything but content and options.
fn read_put(fields: &mut Fields, request: pb::PutObjectRequest) -> Put {
    let pb::PutObjectRequest {
        key,
        content: _,
        content_type,
        metadata,
        tags,
        comment,
        if_match,
        if_none_match,
        retention_class,
        subject_id,
        options: _,
    } = request;
    let mut version = ObjectVersion::new(fields.object_key("key", key), Uuid::now_v7());
    version.content_type = fields.text("content_type", content_type, ID_BYTES_MAX);
    version.metadata = fields.object("metadata", metadata);
    version.tags = fields.labels("tags", tags);
    version.comment = fields.text("comment", comment, COMMENT_BYTES_MAX);
    version.retention_class = fields.text("retention_class", retention_class, CLASS_BYTES_MAX);
    version.subject_id = fields.text("subject_id", subject_id, ID_BYTES_MAX);
    let wanted = fields.wanted(if_match, if_none_match);
    Put { object_uid: Uuid::now_v7(), version, source: None, wanted }
}

crate::requests!(@ask CopyObjectRequest -> Put, |fields, on_conflict, source, destination_key, metadata, comment, if_match,
    if_none_match| {
    fields.only_fail(on_conflict);
    let source = fields.required("source", source);
    let pb::ObjectVersionRef { key, version_id } = source;
    let (key, version_id) = fields.within("source", |fields| {
        (fields.object_key("key", key), fields.reference("version_id", version_id))
    });
    let destination = fields.object_key("destination_key", destination_key);
    let mut version = ObjectVersion::new(destination, Uuid::now_v7());
    version.comment = fields.text("comment", comment, COMMENT_BYTES_MAX);
    let metadata: Option<Json> = metadata.map(|metadata| fields.object("metadata", Some(metadata)));
    let wanted = fields.wanted(if_match, if_none_match);
    let source = Source { key, version_id, metadata, field: "source.version_id" };
    Put { object_uid: Uuid::now_v7(), version, source: Some(source), wanted }
});

crate::requests!(@ask RollbackObjectRequest -> Put, |fields, on_conflict, key, version_id, comment, if_match| {
    fields.only_fail(on_conflict);
    let key = fields.object_key("key", key);
    let version_id = fields.id("version_id", version_id);
    let mut version = ObjectVersion::new(key.clone(), Uuid::now_v7());
    version.comment = fields.text("comment", comment, COMMENT_BYTES_MAX);
    let wanted = fields.wanted(if_match, false);
    let source = Source { key, version_id, metadata: None, field: "version_id" };
    Put { object_uid: Uuid::now_v7(), version, source: Some(source), wanted }
});

crate::requests!(@ask DeleteObjectRequest -> Delete, |fields, on_conflict, key, version_id, etag, allow_missing| {
    fields.only_fail(on_conflict);
    let key = fields.object_key("key", key);
    let version_id = fields.reference("version_id", version_id);
    let etag = fields.etag("etag", etag);
    Delete { leave: vec![Leave { key, version_id, etag, uid: Uuid::now_v7() }], allow_missing }
});

crate::requests!(@ask BatchDeleteObjectsRequest -> Delete, |fields, on_conflict, keys, allow_missing| {
    fields.only_fail(on_conflict);
    let keys = fields.batch("keys", keys, |fields, key| fields.object_key("", key));
    fields.no_duplicates(keys.iter().map(String::as_str), |n| format!("keys[{n}]"));
    let leave = keys.into_iter().map(|key| Leave {
        key,
        version_id: String::new(),
        etag: None,
        uid: Uuid::now_v7(),
    });
    Delete { leave: leave.collect(), allow_missing }
});

/// The digest of a blob; none for bytes that are kept elsewhere.
pub fn digest(hex: &str) -> Option<pb::Digest> {
    (!hex.is_empty()).then(|| blob::digest_of(hex))
}

impl From<Object> for pb::Object {
    fn from(row: Object) -> Self {
        let etag = row.etag();
        let Object {
            id,
            meta,
            version_id,
            version_count,
            last_modified,
            digest,
            size_bytes,
            content_type,
            storage_backend,
            storage_class,
            location,
            store_etag,
            store_version_id,
            metadata,
            tags,
            retention_class,
            subject_id,
        } = row;
        Self {
            key: id,
            etag,
            meta: wire::meta(meta),
            blob: self::digest(&digest),
            size_bytes,
            content_type,
            version_id,
            storage_backend,
            storage_class,
            location,
            store_etag,
            store_version_id,
            metadata: json::to_optional_object(&metadata),
            tags: json::to_strings(&tags),
            retention_class,
            subject_id,
            last_modified: wire::timestamp(last_modified),
            version_count,
        }
    }
}
