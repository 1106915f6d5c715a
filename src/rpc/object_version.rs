//! Versions of objects on the wire: listing, changing what may change, and in what two of them differ.

use super::object::{COMMENT_BYTES_MAX, digest, worded};
use super::wire::{self, Fields};
use super::{Paged, Parts, Selection, descriptor::ReadMask, json};
use crate::pb;
use crate::pb::compare_object_versions_response::Difference;
use crate::store::caller::Caller;
use crate::store::canonical::Json;
use crate::store::noun::Noun as _;
use crate::store::object::update::UpdateVersion;
use crate::store::object_version::{LISTING, ObjectVersion};
use crate::{Error, Result};
use std::collections::BTreeSet;

const CHANGEABLE: &[&str] = &["tags", "comment"];

impl Paged for pb::ListObjectVersionsRequest {
    fn page_mut(&mut self) -> &mut Option<pb::PageRequest> {
        &mut self.page
    }
}

impl Parts {
    pub(super) async fn list_object_versions(
        &self,
        caller: &Caller,
        mut request: pb::ListObjectVersionsRequest,
    ) -> Result<pb::ListObjectVersionsResponse> {
        let lister = self.lister(caller, &mut request, &LISTING, &[("number", true)])?;
        let pb::ListObjectVersionsRequest { key, page: _, r#where, window, consistency, read_mask } =
            request;
        let mut fields = Fields::new(caller, self.batch_max);
        let key = fields.object_key("key", key);
        let key = fields.finish(key)?;
        let mask = ReadMask::new::<pb::ObjectVersion>(read_mask)?;
        let selection = Selection {
            filter: lister.filter(r#where)?,
            window: lister.window("create_time", window)?,
            snapshot: self.read_at(caller, consistency).await?,
            show_deleted: false,
            parent: Some(("d.object_key", key.clone())),
        };
        let query = lister.query(selection);
        let wants_total = lister.page.include_total_size;
        let found = self.store.list::<ObjectVersion>(caller, &LISTING, query, wants_total).await?;
        let on_top = self.store.version_on_top(caller, &key, found.seq).await?;
        if on_top.is_none() && found.rows.is_empty() {
            return Err(Error::not_found("object", key));
        }
        let (rows, page) = self.page_of(caller, &lister, found)?;
        let versions = rows.into_iter().map(|row| {
            let is_latest = on_top.as_ref() == Some(&row.id);
            mask.apply(pb::ObjectVersion { is_latest, ..row.into() })
        });
        let object_versions = versions.collect::<Result<_>>()?;
        Ok(pb::ListObjectVersionsResponse { object_versions, page })
    }

    pub(super) async fn update_object_version(
        &self,
        caller: Caller,
        request: pb::UpdateObjectVersionRequest,
    ) -> Result<pb::UpdateObjectVersionResponse> {
        let write = self.ask(request, &caller).await?;
        let (version, receipt) =
            self.store.write(caller.clone(), write.options, write.change).await?;
        let key = &version.object_key;
        let on_top = self.store.version_on_top(&caller, key, receipt.seq).await?;
        let is_latest = on_top.as_ref() == Some(&version.id);
        let receipt = self.receipt(&caller, receipt)?;
        let object_version = worded(version, is_latest);
        Ok(pb::UpdateObjectVersionResponse { object_version, receipt })
    }

    pub(super) async fn compare_object_versions(
        &self,
        caller: &Caller,
        request: pb::CompareObjectVersionsRequest,
    ) -> Result<pb::CompareObjectVersionsResponse> {
        let pb::CompareObjectVersionsRequest { key, version_id, other_version_id } = request;
        let mut fields = Fields::new(caller, self.batch_max);
        let key = fields.object_key("key", key);
        let version_id = fields.id("version_id", version_id);
        let other_id = fields.reference("other_version_id", other_version_id);
        let (key, version_id, other_id) = fields.finish((key, version_id, other_id))?;
        let one = self.store.object(caller, &key, &version_id, None).await?;
        let other = self.store.object(caller, &key, &other_id, None).await?;
        let same_bytes =
            !one.version.digest.is_empty() && one.version.digest == other.version.digest;
        Ok(pb::CompareObjectVersionsResponse {
            differences: differences(&one.version, &other.version),
            object_version: worded(one.version, one.is_latest),
            other_object_version: worded(other.version, other.is_latest),
            same_bytes,
        })
    }
}

crate::requests!(@ask UpdateObjectVersionRequest -> UpdateVersion, |fields, on_conflict, key, version_id, etag, tags, comment,
    update_mask| {
    fields.only_fail(on_conflict);
    let key = fields.object_key("key", key);
    let version_id = fields.id("version_id", version_id);
    let etag = fields.etag("etag", etag);
    let paths = fields.update_mask(update_mask);
    for path in paths.iter().filter(|path| !CHANGEABLE.contains(&path.as_str())) {
        fields.unknown_path::<pb::ObjectVersion>(path, CHANGEABLE);
    }
    let names = |name: &str| paths.iter().any(|path| path == name);
    let tags = names("tags").then(|| fields.labels("tags", tags));
    let comment = names("comment").then(|| fields.text("comment", comment, COMMENT_BYTES_MAX));
    UpdateVersion { key, version_id, etag, tags, comment }
});

/// In what two versions differ, field by field.
fn differences(one: &ObjectVersion, other: &ObjectVersion) -> Vec<Difference> {
    let mut all = Vec::new();
    let mut note = |field: String, value: Option<String>, other_value: Option<String>| {
        if value != other_value {
            let (value, other_value) = (value.unwrap_or_default(), other_value.unwrap_or_default());
            all.push(Difference { field, value, other_value });
        }
    };
    let text = |text: &str| (!text.is_empty()).then(|| serde_json::Value::from(text).to_string());
    macro_rules! compare {
        ($($field:ident as $worded:expr),* $(,)?) => {$(
            note(stringify!($field).into(), $worded(&one.$field), $worded(&other.$field));
        )*};
    }
    compare! {
        digest as text,
        size_bytes as |size: &i64| Some(size.to_string()),
        content_type as text,
        storage_backend as text,
        storage_class as text,
        location as text,
        store_etag as text,
        store_version_id as text,
        delete_marker as |marker: &bool| Some(marker.to_string()),
        comment as text,
        retention_class as text,
        subject_id as text,
    }
    let members = |json: &Json| -> serde_json::Map<String, serde_json::Value> {
        serde_json::from_slice(json.text()).unwrap_or_default()
    };
    for (name, one, other) in [
        ("metadata", members(&one.metadata), members(&other.metadata)),
        ("tags", members(&one.tags), members(&other.tags)),
    ] {
        let keys: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
        for key in keys {
            let value = |map: &serde_json::Map<_, _>| {
                map.get(key).map(|value: &serde_json::Value| value.to_string())
            };
            note(format!("{name}.{key}"), value(&one), value(&other));
        }
    }
    all
}

impl From<ObjectVersion> for pb::ObjectVersion {
    fn from(row: ObjectVersion) -> Self {
        let etag = row.etag();
        let ObjectVersion {
            id,
            meta,
            object_key,
            number,
            delete_marker,
            comment,
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
            id,
            etag,
            meta: wire::meta(meta),
            key: object_key,
            number,
            // Told by whoever knows the others.
            is_latest: false,
            delete_marker,
            blob: self::digest(&digest),
            size_bytes,
            content_type,
            storage_backend,
            storage_class,
            location,
            store_etag,
            store_version_id,
            metadata: json::to_optional_object(&metadata),
            tags: json::to_strings(&tags),
            comment,
            retention_class,
            subject_id,
        }
    }
}
