//! Changes the key that the keys of blobs are wrapped by. The bytes in the store stay as they are.

use super::Blob;
use super::body::{binding, failed};
use super::change::rewrapped;
use crate::store::Store;
use crate::store::caller::Caller;
use crate::store::envelope::{Failure, KeySource, WrappedKey, rewrap};
use crate::store::postgres::Lane;
use crate::store::write::WriteOptions;
use crate::{Error, Result, queries, row};
use futures_util::stream::{self, StreamExt as _};
use std::collections::BTreeMap;
use uuid::Uuid;

row! {
    /// A blob whose key is wrapped by another than the current one.
    pub struct Wrapped {
        pub tenant_id: String,
        pub uid: Uuid,
        pub id: String,
        pub key_id: String,
    }
}

row! {
    /// How many parts of uploads have such a key.
    pub struct Parts {
        pub parts: i64,
    }
}

queries! { "blob_rotate" {
    /// Those of uploads under way: (current key).
    PARTS(String) -> Parts = "SELECT wall.count_parts_under_other_keys($1) AS parts";
    /// Some of them, behind a place in their order: (current key, key, tenant, uid, most).
    OTHERS(String, String, String, Uuid, i32) -> Wrapped =
        "SELECT {*} FROM wall.blobs_under_other_keys($1, $2, $3, $4, $5)";
} }

const PAGE: i32 = 500;
const AT_ONCE: usize = 16;

/// What rotating has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rotated {
    /// Blobs whose keys the current key wraps now.
    pub rewrapped: u64,
    /// Blobs that went away, or that somebody else was faster with.
    pub passed_over: u64,
    /// Blobs by the ids of keys that are not here; they stay as they are.
    pub unknown: BTreeMap<String, u64>,
    /// Blobs whose wrapped key is damaged: nobody can open them.
    pub damaged: u64,
    /// Parts of uploads under way that need another key until those are completed or expire.
    pub parts: i64,
}

impl Store {
    /// Wraps the keys of all blobs of all tenants by the current key. It may be ended at any time and begun again, and
    /// several may do it at once. `told` hears of each page.
    pub async fn rotate_keys(
        &self,
        keys: &dyn KeySource,
        caller: fn(&str) -> Caller,
        mut told: impl FnMut(&Rotated),
    ) -> Result<Rotated> {
        let current = keys.current_key_id().await.map_err(failed)?;
        let mut rotated = Rotated::default();
        let (mut key, mut tenant, mut uid) = (String::new(), String::new(), Uuid::nil());
        loop {
            let params = (current.clone(), key.clone(), tenant.clone(), uid, PAGE);
            let page = self.lane_rows(Lane::Upkeep, &OTHERS, params).await?;
            let is_last = (page.len() as i32) < PAGE;
            if let Some(last) = page.last() {
                (key, tenant, uid) = (last.key_id.clone(), last.tenant_id.clone(), last.uid);
            }
            let steps = page.into_iter().map(|found| self.rotate_key(keys, caller, found));
            let mut steps = stream::iter(steps).buffer_unordered(AT_ONCE);
            while let Some(step) = steps.next().await {
                match step? {
                    Step::Rewrapped => rotated.rewrapped += 1,
                    Step::PassedOver => rotated.passed_over += 1,
                    Step::Unknown(key_id) => *rotated.unknown.entry(key_id).or_default() += 1,
                    Step::Damaged => rotated.damaged += 1,
                }
            }
            told(&rotated);
            if is_last {
                let parts = self.lane_rows(Lane::Upkeep, &PARTS, (current,)).await?.pop();
                rotated.parts = parts.map_or(0, |found| found.parts);
                return Ok(rotated);
            }
        }
    }

    async fn rotate_key(
        &self,
        keys: &dyn KeySource,
        caller: fn(&str) -> Caller,
        found: Wrapped,
    ) -> Result<Step> {
        let caller = caller(&found.tenant_id);
        let blob: Blob = match self.get(&caller, &found.id).await {
            Err(Error::NotFound { .. }) => return Ok(Step::PassedOver),
            blob => blob?,
        };
        let bytes = blob.wrapped_key.clone().unwrap_or_default();
        let wrapped = WrappedKey { key_id: blob.key_id.clone(), bytes };
        let binding = binding(&caller.tenant, &blob.id)?;
        let wrapped = match rewrap(keys, &wrapped, &binding).await {
            Ok(Some(wrapped)) => wrapped,
            Ok(None) => return Ok(Step::PassedOver),
            Err(Failure::KeyUnknown { key_id }) => return Ok(Step::Unknown(key_id)),
            Err(Failure::Corrupt(_)) => return Ok(Step::Damaged),
            Err(failure) => return Err(failed(failure)),
        };
        let ours = Some(wrapped.bytes.clone());
        let change = rewrapped(&blob, wrapped);
        let (row, _) = self.write(caller, WriteOptions::default(), change).await?;
        // No two wrap a key alike.
        let is_done = row.is_some_and(|row| row.wrapped_key == ours);
        Ok(if is_done { Step::Rewrapped } else { Step::PassedOver })
    }
}

/// What became of one blob.
enum Step {
    Rewrapped,
    PassedOver,
    Unknown(String),
    Damaged,
}
