//! Reading an object together with a version of it, at one moment.

use super::{CHAIN, Object};
use crate::store::Store;
use crate::store::caller::Caller;
use crate::store::filter::{Condition, Field, Filter, Op, Value};
use crate::store::list::ListQuery;
use crate::store::noun::Noun as _;
use crate::store::object_version::ObjectVersion;
use crate::{Error, Result};
use std::sync::Arc;

/// A version, and its object.
#[derive(Clone, Debug)]
pub struct Found {
    /// Absent while it is deleted.
    pub object: Option<Object>,
    pub version: ObjectVersion,
    /// Whether the version is on top of the object's.
    pub is_latest: bool,
}

impl Store {
    /// A version of a key and its object; an empty version_id means the latest of an object that is not deleted. At a
    /// number of the log, or now.
    pub async fn object(
        &self,
        caller: &Caller,
        key: &str,
        version_id: &str,
        seq: Option<i64>,
    ) -> Result<Found> {
        let Some(seq) = seq else { return self.object_now(caller, key, version_id).await };
        let found = self.get_as_of::<Object>(caller, vec![key.to_owned()], seq).await?;
        let object = found.into_iter().next().flatten();
        let id = match (version_id, &object) {
            ("", None) => return Err(Error::not_found(Object::KIND, key)),
            ("", Some(object)) => object.version_id.clone(),
            (id, _) => id.to_owned(),
        };
        let found = self.get_as_of::<ObjectVersion>(caller, vec![id.clone()], seq).await?;
        let version = found.into_iter().next().flatten();
        let version = version.filter(|version| version.object_key == key);
        let version = version.ok_or_else(|| Error::not_found(ObjectVersion::KIND, id))?;
        let on_top = match &object {
            Some(object) => Some(object.version_id.clone()),
            None => self.version_on_top(caller, key, seq).await?,
        };
        Ok(Found { is_latest: on_top.as_ref() == Some(&version.id), object, version })
    }

    async fn object_now(&self, caller: &Caller, key: &str, version_id: &str) -> Result<Found> {
        let asked = Arc::new((key.to_owned(), version_id.to_owned()));
        self.snapshot(caller, CHAIN.name, move |snapshot| {
            let asked = Arc::clone(&asked);
            Box::pin(async move {
                let (key, version_id) = &*asked;
                let chain: Option<Object> =
                    snapshot.all(&CHAIN, &(vec![key.clone()],)).await?.pop();
                let on_top = chain.as_ref().map(|object| object.version_id.clone());
                let object = chain.filter(Object::is_live);
                let id = match (version_id.as_str(), &object) {
                    ("", None) => {
                        return snapshot.end(Err(Error::not_found(Object::KIND, key))).await?;
                    }
                    ("", Some(object)) => object.version_id.clone(),
                    (id, _) => id.to_owned(),
                };
                let mut version = snapshot.all(ObjectVersion::get(), &(vec![id.clone()],)).await?;
                let version = version.pop().filter(|version| version.object_key == *key);
                let found = match version {
                    Some(version) => {
                        let is_latest = on_top.as_ref() == Some(&version.id);
                        Ok(Found { object, version, is_latest })
                    }
                    None => Err(Error::not_found(ObjectVersion::KIND, id)),
                };
                snapshot.end(found).await?
            })
        })
        .await
    }

    /// The version on top of a key at a number of the log, a delete marker as well; none if the key had no versions.
    pub async fn version_on_top(
        &self,
        caller: &Caller,
        key: &str,
        seq: i64,
    ) -> Result<Option<String>> {
        let condition = |name: &str, op: Op| -> Result<Filter> {
            let field = Field::find(super::LISTING.fields, name);
            let field = field.ok_or_else(|| Error::internal(format!("objects have no {name}")))?;
            Ok(Filter::Field(Condition::new(field, Vec::new(), op)?))
        };
        let query = ListQuery {
            filter: Filter::All(vec![
                condition("key", Op::Equals(Value::Text(key.to_owned())))?,
                condition("version_id", Op::Exists(true))?,
            ]),
            show_deleted: true,
            limit: 1,
            snapshot: Some(seq),
            ..ListQuery::default()
        };
        let found = self.list::<Object>(caller, &super::LISTING, query, false).await?;
        Ok(found.rows.into_iter().next().map(|object| object.version_id))
    }
}
