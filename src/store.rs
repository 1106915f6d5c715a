//! Nouns, SQL and invariants: everything that is known about PostgreSQL is known below here.

pub mod analysis;
pub mod api_token;
pub mod archive;
pub mod attachment;
pub mod backend;
pub mod blob;
pub mod blob_store;
pub mod caller;
pub mod canonical;
pub mod change;
pub mod child;
pub mod chunk;
pub mod claim;
pub mod consensus;
pub mod critic_output;
pub mod decision;
pub mod document;
pub mod embedding;
pub mod envelope;
pub mod event;
pub mod evidence;
pub mod evidence_bundle;
pub mod export;
pub mod filter;
pub mod ingest;
pub mod legal_hold;
pub mod list;
pub mod log;
pub mod metrics_snapshot;
pub mod migrate;
pub mod model_checkpoint;
pub mod noun;
pub mod object;
pub mod object_version;
pub mod operation;
pub mod r#override;
mod pace;
pub mod policy_rule;
pub mod postgres;
pub mod precedent;
pub mod precedent_reference;
pub mod projection;
pub mod purge;
pub mod query;
pub mod read;
pub mod recent;
pub mod request_ledger;
pub mod retention_policy;
pub mod search;
pub mod search_receipt;
pub mod service_health;
pub mod snapshot;
pub mod status;
pub mod tenant;
pub mod training_example;
pub mod transaction;
pub mod vector;
pub mod vector_index;
pub mod vector_space;
pub mod verification;
pub mod write;

use crate::telemetry::Metrics;
use crate::{Error, Result};
use backend::{Backend, Op, RetrySettings};
use caller::Caller;
use log::LogRow;
use noun::{Facts, Noun};
use postgres::{Conn, Lane, PoolSettings, PoolState, Pools};
use query::Check;
use read::{ReadSettings, Reader};
use std::collections::HashMap;
use std::sync::Arc;
use write::{WriteSettings, Writer};

/// Every noun. Its statements, its listing and the checks that name it follow from its line here.
pub const NOUNS: &[&Facts] = &[
    &analysis::FACTS,
    &api_token::FACTS,
    &attachment::FACTS,
    &blob::FACTS,
    &chunk::FACTS,
    &claim::FACTS,
    &consensus::FACTS,
    &critic_output::FACTS,
    &decision::FACTS,
    &document::FACTS,
    &embedding::FACTS,
    &evidence_bundle::FACTS,
    &legal_hold::FACTS,
    &metrics_snapshot::FACTS,
    &model_checkpoint::FACTS,
    &object::FACTS,
    &object_version::FACTS,
    &r#override::FACTS,
    &policy_rule::FACTS,
    &precedent::FACTS,
    &precedent_reference::FACTS,
    &retention_policy::FACTS,
    &search_receipt::FACTS,
    &service_health::FACTS,
    &tenant::FACTS,
    &training_example::FACTS,
    &operation::FACTS,
    &vector_space::FACTS,
    &verification::FACTS,
];

/// The statements that belong to no noun.
const OTHER_QUERIES: &[&[&dyn Check]] = &[
    archive::QUERIES,
    evidence::QUERIES,
    export::QUERIES,
    log::QUERIES,
    log::ROW_QUERIES,
    projection::QUERIES,
    projection::built_in::QUERIES,
    projection::follow::QUERIES,
    projection::schedule::QUERIES,
    purge::QUERIES,
    request_ledger::QUERIES,
    snapshot::QUERIES,
    status::QUERIES,
    vector_index::QUERIES,
    vector_index::recall::QUERIES,
    vector_index::stats::QUERIES,
    vector_index::upkeep::QUERIES,
    vector_index::worker::QUERIES,
];

/// Every statement of the service, for the test that prepares them all against the migrated schema.
pub fn queries() -> impl Iterator<Item = &'static dyn Check> {
    let of_nouns = NOUNS.iter().flat_map(|facts| facts.statements);
    of_nouns.chain(OTHER_QUERIES).flat_map(|queries| queries.iter().copied())
}

/// What can be listed, for the test that prepares every filter and order of each.
pub fn listings() -> impl Iterator<Item = &'static list::Listing> {
    NOUNS.iter().map(|facts| facts.listing).chain([&log::LISTING])
}

/// What is known of the noun of that name.
pub fn facts(kind: &str) -> Option<&'static Facts> {
    NOUNS.iter().copied().find(|facts| facts.kind == kind)
}

/// How the store reaches PostgreSQL and how it batches and retries.
#[derive(Clone, Debug)]
pub struct Settings {
    pub pools: PoolSettings,
    pub retry: RetrySettings,
    pub read: ReadSettings,
    pub write: WriteSettings,
}

#[derive(Clone)]
pub struct Store {
    pools: Arc<Pools>,
    backend: Backend,
    reader: Reader,
    writer: Writer,
    statement_timeout: std::time::Duration,
    indexes: vector_index::Catalog,
    /// What parts of spaces filters leave, by the digest of statement and values. They only decide how to search.
    selectivities: recent::Recent<[u8; 32], f64>,
    /// The spaces that names stood for, by tenant and name: see [`vector_space::Guess`].
    spaces: recent::Recent<(Arc<str>, String), vector_space::Guess>,
}

impl Store {
    /// Prepares the pools; connects to nothing yet.
    pub fn new(settings: Settings, metrics: Arc<Metrics>) -> Result<Self> {
        let pools = Arc::new(Pools::new(&settings.pools)?);
        let backend = Backend::new(Arc::clone(&pools), Arc::clone(&metrics), &settings.retry)?;
        Ok(Self {
            reader: Reader::new(backend.clone(), Arc::clone(&metrics), settings.read),
            writer: Writer::new(backend.clone(), metrics, settings.write),
            statement_timeout: settings.pools.statement_timeout,
            backend,
            pools,
            indexes: vector_index::Catalog::default(),
            selectivities: recent::Recent::default(),
            spaces: recent::Recent::default(),
        })
    }

    pub fn pool_states(&self) -> Vec<PoolState> {
        self.pools.states()
    }

    /// A connection of its own, outside the retry stack, for tests and start-up checks.
    pub async fn connection(&self, lane: Lane) -> Result<Conn> {
        self.pools.get(lane).await
    }

    /// Closes all connections; what is in flight fails.
    pub fn close(&self) {
        self.pools.close();
    }

    /// The live row of that id.
    pub async fn get<T: Noun>(&self, caller: &Caller, id: &str) -> Result<T> {
        let row = self.reader.get(caller, id.to_owned()).await?;
        row.ok_or_else(|| Error::not_found(T::KIND, id))
    }

    /// The live rows of those ids, in order; `None` where there is none.
    pub async fn get_many<T: Noun>(
        &self,
        caller: &Caller,
        ids: Vec<String>,
    ) -> Result<Vec<Option<T>>> {
        let asked = Arc::new((ids,));
        let params = Arc::clone(&asked);
        let rows = self
            .snapshot(caller, T::get().name, move |snapshot| {
                let params = Arc::clone(&params);
                Box::pin(async move {
                    let rows = snapshot.all(T::get(), &*params).await?;
                    snapshot.end(rows).await
                })
            })
            .await?;
        Ok(in_order(&asked.0, rows))
    }

    /// Fails unless there is a live resource of that noun and id.
    pub async fn must_exist(&self, caller: &Caller, facts: &'static Facts, id: &str) -> Result<()> {
        let params = Arc::new((vec![id.to_owned()],));
        let found = self
            .snapshot(caller, facts.live.name, move |snapshot| {
                let params = Arc::clone(&params);
                Box::pin(async move {
                    let rows = snapshot.all(facts.live, &*params).await?;
                    snapshot.end(rows.len()).await
                })
            })
            .await?;
        if found > 0 { Ok(()) } else { Err(Error::not_found(facts.kind, id)) }
    }

    /// The rows of those ids as they stood at a log number, in order; `None` where there was none.
    pub async fn get_as_of<T: Noun>(
        &self,
        caller: &Caller,
        ids: Vec<String>,
        seq: i64,
    ) -> Result<Vec<Option<T>>> {
        let params = Arc::new((T::KIND.to_owned(), ids, seq));
        let asked = Arc::clone(&params);
        let entries: Vec<LogRow> = self
            .snapshot(caller, log::AS_OF.name, move |snapshot| {
                let params = Arc::clone(&params);
                Box::pin(async move {
                    if params.2 > snapshot.head {
                        return Err(snapshot::in_the_future());
                    }
                    snapshot.reaches_back(params.2).await?;
                    let rows = snapshot.all(&log::AS_OF, &*params).await?;
                    snapshot.end(rows).await
                })
            })
            .await?;
        let rows: Vec<T> = change::rows_of(&entries)?;
        let live = rows.into_iter().filter(|row| row.meta().delete_time.is_none()).collect();
        Ok(in_order(&asked.1, live))
    }

    /// One version of a live resource.
    pub async fn get_version<T: Noun>(&self, caller: &Caller, id: &str, version: i64) -> Result<T> {
        let current: T = self.get(caller, id).await?;
        let uid = current.meta().uid;
        if current.meta().version == version {
            return Ok(current);
        }
        let params = Arc::new((T::KIND.to_owned(), id.to_owned(), uid, version));
        let entries: Vec<LogRow> = self
            .snapshot(caller, log::VERSION.name, move |snapshot| {
                let params = Arc::clone(&params);
                Box::pin(async move {
                    let rows = snapshot.all(&log::VERSION, &*params).await?;
                    snapshot.end(rows).await
                })
            })
            .await?;
        change::rows_of(&entries)?
            .pop()
            .ok_or_else(|| Error::not_found(T::KIND, format!("{id} (version {version})")))
    }

    /// Runs a piece of reading on the lane for health and credentials, in no tenant.
    async fn admin<T: Send + 'static>(
        &self,
        name: &'static str,
        deadline: tokio::time::Instant,
        run: impl Fn(Conn) -> futures_util::future::BoxFuture<'static, Result<T>>
        + Send
        + Sync
        + 'static,
    ) -> Result<T> {
        self.backend.call(Op::new(name, Lane::Admin, deadline, run)).await
    }
}

fn in_order<T: Noun>(ids: &[String], rows: Vec<T>) -> Vec<Option<T>> {
    let mut rows: HashMap<String, T> =
        rows.into_iter().map(|row| (row.id().to_owned(), row)).collect();
    ids.iter().map(|id| rows.remove(id)).collect()
}
