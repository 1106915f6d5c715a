//! The precedents of a case: by the same input, by words and by a vector, in one statement with the rows themselves.

use super::hybrid::{Found, Fused, Fusion, Hybrid, Near, Tell, Telling};
use super::{Words, kinds, passages};
use crate::store::Store;
use crate::store::caller::Caller;
use crate::store::filter::{Filter, Params};
use crate::store::precedent::Precedent;
use crate::store::query::FromRow as _;
use crate::store::snapshot::Snapshot;
use crate::store::vector_index::Index;
use crate::{Error, Result};
use tokio_postgres::Row;

/// What is known of the case. A leg without anything to look for is left out.
#[derive(Clone)]
pub struct Find {
    pub case_hash: Option<String>,
    pub words: Option<Words>,
    pub near: Option<Near>,
    pub fusion: Fusion,
    pub filter: Filter,
    pub limit: i64,
    pub highlight: bool,
    /// Whether candidates are counted, which takes a little longer.
    pub explain: bool,
}

impl Find {
    /// As a search of several legs, now.
    pub fn hybrid(self) -> Result<Hybrid> {
        let kind = kinds::kind("precedent");
        let kind = kind.ok_or_else(|| Error::internal("precedents are not searched"))?;
        let Self { case_hash, words, near, fusion, filter, limit, highlight: _, explain } = self;
        let kinds = vec![(kind, filter)];
        let (min_score, snapshot) = (0.0, None);
        Ok(Hybrid { kinds, case_hash, words, near, fusion, min_score, limit, snapshot, explain })
    }

    /// The statement, by an index or without one.
    pub fn sql(&self, tenant: &str, index: Option<&Index>) -> Result<(String, Params)> {
        let tell = Tell::Precedent { highlight: self.highlight };
        Ok(self.clone().hybrid()?.sql(tenant, index, tell))
    }
}

/// The whole precedents, and passages of them.
#[derive(Clone, Copy)]
struct Rows {
    highlight: bool,
}

impl Telling for Rows {
    type Told = (Precedent, Vec<String>);

    fn tell(&self) -> Tell {
        Tell::Precedent { highlight: self.highlight }
    }

    async fn read(
        &self,
        _: &Hybrid,
        _: &Snapshot,
        found: Vec<(Fused, Row)>,
    ) -> Result<Vec<(Fused, Self::Told)>> {
        let told = found.into_iter().map(|(fused, row)| {
            let headline: &str = row.try_get("headline")?;
            Ok((fused, (Precedent::read(&row, &mut 0)?, passages(headline))))
        });
        told.collect()
    }
}

impl Store {
    /// The precedents of a case, best first, each with its passages.
    pub async fn find_precedents(
        &self,
        caller: &Caller,
        find: Find,
    ) -> Result<Found<(Precedent, Vec<String>)>> {
        let rows = Rows { highlight: find.highlight };
        self.fuse_telling(caller, "precedent.FIND", find.hybrid()?, rows).await
    }
}
