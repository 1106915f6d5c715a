//! Full text search over documents, through Casebook and straight.

use crate::load::{MEASURING, OVER};
use crate::stats::Random;
use crate::{Context, Result, payload};
use casebook::pb;
use casebook::store::filter::Filter;
use casebook::store::search::Words;
use casebook::store::search::kinds;
use casebook::store::search::ranking::{Hidden, Search, Shown};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

/// Hits of a page.
const HITS: i32 = 20;
const TENANT: &str = "default";

pub fn request(random: &mut Random) -> pb::SearchRequest {
    pb::SearchRequest {
        page: Some(pb::PageRequest { page_size: HITS, ..Default::default() }),
        kinds: vec![pb::ResourceKind::Document.into()],
        text: payload::question(random),
        ..Default::default()
    }
}

/// One connection that asks PostgreSQL itself, as Casebook's role must: BEGIN, the tenant setting, the ranking, COMMIT.
pub async fn until_over(
    conninfo: String,
    mut random: Random,
    phase: Arc<AtomicU8>,
) -> Result<Vec<u32>> {
    let mut config = conninfo.parse::<tokio_postgres::Config>()?;
    // As Casebook's own sessions are.
    config.options("-c search_path=wall,pg_catalog -c plan_cache_mode=force_custom_plan");
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    let ask = |text: &str| -> Result<_> {
        let document = kinds::kind("document").with(|| "documents are not searched")?;
        let search = Search {
            kinds: vec![(document, Filter::default())],
            words: Words::new(text),
            min_score: 0.0,
            after: None,
            limit: HITS.into(),
            snapshot: None,
            hidden: Hidden::Left,
            shown: Shown::default(),
        };
        Ok(search.ranking(TENANT))
    };
    let statement = client.prepare(&ask("any")?.0).await?;
    let set = client.prepare("SELECT set_config('casebook.tenant', $1, true)").await?;
    let mut took = Vec::with_capacity(1 << 14);
    loop {
        let (_, params) = ask(&payload::question(&mut random))?;
        let params = params.as_sql();
        let began = Instant::now();
        let (begun, set, hits, committed) = futures_util::join!(
            client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"),
            client.query(&set, &[&TENANT]),
            client.query(&statement, &params),
            client.batch_execute("COMMIT"),
        );
        begun?;
        set?;
        committed?;
        if hits?.is_empty() {
            return Err("a search found nothing".into());
        }
        match phase.load(Ordering::Relaxed) {
            MEASURING => took.push(began.elapsed().as_micros() as u32),
            OVER => return Ok(took),
            _ => {}
        }
    }
}
