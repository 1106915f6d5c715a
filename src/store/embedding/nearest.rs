//! The nearest embeddings of a space, and the vectors of embeddings.

use super::{Embedding, LISTING};
use crate::Result;
use crate::store::Store;
use crate::store::caller::Caller;
use crate::store::filter::{Filter, Params};
use crate::store::list::ListQuery;
use crate::store::postgres::read_rows;
use crate::store::query::FromRow;
use crate::store::snapshot::{Glance, Look, Snapshot, in_the_future};
use crate::store::vector::{Metric, Numbers};
use crate::store::vector_space::VectorSpace;
use std::collections::HashMap;
use std::sync::Arc;
use tokio_postgres::Row;
use uuid::Uuid;

/// A search for the embeddings nearest to a vector, by looking at every one.
#[derive(Clone)]
pub struct Nearest {
    pub space: Arc<VectorSpace>,
    pub target: Numbers,
    pub top_k: i64,
    /// Also holds them to the space: see [`in_space`].
    pub filter: Filter,
    /// An embedding that is no hit.
    pub but: Option<Uuid>,
}

/// A hit, and how far away it is.
#[derive(Clone, Debug)]
pub struct Near {
    pub row: Embedding,
    pub distance: f64,
}

impl Nearest {
    /// As the space stood at a number of the log; `None` means now.
    fn statement(&self, snapshot: Option<i64>) -> (String, Params) {
        let Metric { operator, column, sql_type } = Metric::of(&self.space);
        let mut params = Params::default();
        let query = ListQuery { filter: self.filter.clone(), snapshot, ..ListQuery::default() };
        let sources = LISTING.sources(&query, &mut params);
        let mut conditions = query.conditions(&mut params);
        conditions.extend(self.but.map(|uid| format!("d.uid <> {}", params.push(uid))));
        let target = params.push(self.target.values().to_vec());
        let limit = params.push(self.top_k);
        let columns = <Embedding as FromRow>::columns();
        let columns: Vec<_> =
            columns.iter().map(|column| format!("d.\"{}\"", column.name)).collect();
        let select = format!(
            "{}, x.{column} {operator} {target}::{sql_type} AS distance",
            columns.join(", ")
        );
        let branches: Vec<String> = sources
            .into_iter()
            .map(|mut source| {
                source.from.push_str(
                    "\nJOIN embedding_vector AS x ON x.embedding_uid = d.uid AND x.digest = d.vector_digest",
                );
                let rows = source.rows(&select, &[&conditions]);
                format!("({rows}\nORDER BY distance, d.uid\nLIMIT {limit})")
            })
            .collect();
        let all = branches.join("\nUNION ALL\n");
        (
            format!("SELECT * FROM (\n{all}\n) AS near\nORDER BY distance, uid\nLIMIT {limit}"),
            params,
        )
    }
}

fn read_near(rows: &[Row]) -> Result<Vec<Near>> {
    let embeddings: Vec<Embedding> = read_rows(rows)?;
    embeddings
        .into_iter()
        .zip(rows)
        .map(|(row, found)| Ok(Near { row, distance: found.try_get("distance")? }))
        .collect()
}

const SEARCH: &str = "embedding.SEARCH";

impl Store {
    /// The nearest of each search, all at one moment, and the log number of that moment.
    pub async fn nearest(
        &self,
        caller: &Caller,
        searches: Vec<Nearest>,
        snapshot: Option<i64>,
    ) -> Result<(Vec<Vec<Near>>, i64)> {
        if let ([search], None) = (&searches[..], snapshot) {
            let (sql, params) = search.statement(None);
            let look = Look { sql, params, common: false, since: None };
            let Glance { rows, head, .. } = self.glance(caller, SEARCH, look).await?;
            return Ok((vec![read_near(&rows)?], head));
        }
        let searches = Arc::new(searches);
        self.snapshot(caller, SEARCH, move |at: Snapshot| {
            let searches = Arc::clone(&searches);
            Box::pin(async move {
                let seq = snapshot.unwrap_or(at.head);
                if seq > at.head {
                    return Err(in_the_future());
                }
                // Where nothing was written since, the tables are as they were.
                let since = snapshot.filter(|seq| *seq < at.head);
                if let Some(seq) = since {
                    at.reaches_back(seq).await?;
                }
                let mut found = Vec::with_capacity(searches.len());
                for search in searches.iter() {
                    let (sql, params) = search.statement(since);
                    found.push(read_near(&at.dynamic(&sql, &params).await?)?);
                }
                at.end((found, seq)).await
            })
        })
        .await
    }

    /// The vectors of these versions of embeddings, by their uids and digests.
    pub async fn vectors(
        &self,
        caller: &Caller,
        rows: &[Embedding],
    ) -> Result<HashMap<(Uuid, String), Vec<f32>>> {
        let mut params = Params::default();
        let uids = params.push(rows.iter().map(|row| row.meta.uid).collect::<Vec<_>>());
        let digests =
            params.push(rows.iter().map(|row| row.vector_digest.clone()).collect::<Vec<_>>());
        let sql = format!(
            "SELECT x.embedding_uid, x.digest, COALESCE(x.vector::real[], x.half::real[]) AS numbers \
             FROM unnest({uids}, {digests}) AS u (uid, digest) \
             JOIN embedding_vector AS x ON x.embedding_uid = u.uid AND x.digest = u.digest"
        );
        let look = Look { sql, params, common: false, since: None };
        let Glance { rows, .. } = self.glance(caller, "embedding_vector.READ", look).await?;
        let found = rows.iter().map(|row| {
            let key = (row.try_get("embedding_uid")?, row.try_get("digest")?);
            Ok((key, row.try_get("numbers")?))
        });
        found.collect()
    }
}
