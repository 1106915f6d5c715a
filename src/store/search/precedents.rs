//! The precedents of a case: several legs, each with its own ranking, fused in one statement.

use super::{Wanted, Words, headline, passages};
use crate::Result;
use crate::store::Store;
use crate::store::caller::Caller;
use crate::store::filter::{Filter, Params};
use crate::store::list::ListQuery;
use crate::store::precedent::Precedent;
use crate::store::query::FromRow as _;
use std::sync::Arc;

/// Rows of one leg. What ranks lower there adds next to nothing.
pub const LEG_MAX: i64 = 1000;
/// In 1 / (FUSION + rank): how little the first few ranks differ.
pub const FUSION: i64 = 60;

/// What is known of the case. A leg without anything to look for is left out.
#[derive(Clone, Debug)]
pub struct Find {
    pub case_hash: Option<String>,
    pub words: Option<Words>,
    pub filter: Filter,
    pub limit: i64,
    pub highlight: bool,
}

#[derive(Clone, Debug)]
pub struct FoundPrecedent {
    pub precedent: Precedent,
    pub score: f64,
    /// From 1; 0 means not in the leg.
    pub exact_rank: i64,
    pub text_rank: i64,
    pub text_score: f64,
    pub highlights: Vec<String>,
}

/// One way to find rows: `uid`, its `rank` from 1 on and its own `score`, of [`LEG_MAX`] rows at most.
struct Leg {
    name: &'static str,
    sql: String,
}

impl Leg {
    /// Rows `d` that fulfil the conditions, by `score` and what settles ties.
    fn new(name: &'static str, score: &str, order: &str, conditions: &[String]) -> Self {
        let conditions = conditions.join(" AND ");
        let sql = format!(
            "SELECT d.uid, {score} AS score, row_number() OVER (ORDER BY {order}) AS rank\n\
             FROM precedent AS d WHERE {conditions}\nORDER BY {order} LIMIT {LEG_MAX}"
        );
        Self { name, sql }
    }
}

impl Find {
    /// The precedent, then score, ranks and headline. The filter is inside of each leg, so that none runs short by it.
    pub fn sql(&self, tenant: &str) -> (String, Params) {
        let mut params = Params::default();
        let query = ListQuery { filter: self.filter.clone(), ..ListQuery::default() };
        let common = query.conditions(&mut params);
        let mut legs = Vec::new();
        if let Some(hash) = &self.case_hash {
            let same = format!("d.case_hash = {}", params.push(hash.clone()));
            let conditions: Vec<_> =
                [same, "d.case_hash <> ''".into()].into_iter().chain(common.clone()).collect();
            let newest = "d.occur_time DESC, d.uid DESC";
            legs.push(Leg::new("exact", "NULL::float8", newest, &conditions));
        }
        let wanted: Option<Wanted> =
            self.words.as_ref().map(|words| words.bind(tenant, &mut params));
        if let Some(wanted) = &wanted {
            let conditions: Vec<_> =
                [wanted.in_table("d.search")].into_iter().chain(common).collect();
            let rank = wanted.rank("d.search");
            legs.push(Leg::new("text", &rank, &format!("{rank} DESC, d.uid"), &conditions));
        }
        let with: Vec<_> = legs
            .iter()
            .map(|leg| format!("{}_leg AS MATERIALIZED (\n{})", leg.name, leg.sql))
            .collect();
        let all: Vec<_> = legs
            .iter()
            .map(|leg| format!("SELECT '{0}' AS leg, uid, score, rank FROM {0}_leg", leg.name))
            .collect();
        let rank = |leg: &str| {
            format!("COALESCE(max(rank) FILTER (WHERE leg = '{leg}'), 0) AS {leg}_rank")
        };
        let columns = Precedent::columns();
        let columns: Vec<_> = columns.iter().map(|column| format!("d.{}", column.name)).collect();
        let texts = super::kinds::kind("precedent").map(|kind| kind.texts);
        let headline = match &wanted {
            Some(wanted) if self.highlight => headline(&wanted.query, texts.unwrap_or_default()),
            _ => "''".into(),
        };
        let sql = format!(
            "WITH {},\nfused AS (\n\
             SELECT uid, sum(1 / ({FUSION} + rank)::float8) AS score, {}, {},\n  \
             COALESCE(max(score) FILTER (WHERE leg = 'text'), 0) AS text_score\n\
             FROM (\n{}\n) AS found GROUP BY uid),\n\
             best AS MATERIALIZED (SELECT * FROM fused ORDER BY exact_rank = 0, score DESC, uid LIMIT {})\n\
             SELECT {}, b.score, b.exact_rank, b.text_rank, b.text_score, {headline} AS headline\n\
             FROM best AS b JOIN precedent AS d ON d.uid = b.uid\n\
             ORDER BY b.exact_rank = 0, b.score DESC, b.uid",
            with.join(",\n"),
            rank("exact"),
            rank("text"),
            all.join("\nUNION ALL\n"),
            params.push(self.limit),
            columns.join(", "),
        );
        (sql, params)
    }
}

impl Store {
    /// The precedents of a case, best first, and the log number that they were read at.
    pub async fn find_precedents(
        &self,
        caller: &Caller,
        find: Find,
    ) -> Result<(Vec<FoundPrecedent>, i64)> {
        if find.case_hash.is_none() && find.words.is_none() {
            return Err(crate::Error::internal("a search for nothing"));
        }
        let asked = Arc::new(find.sql(&caller.tenant));
        self.snapshot(caller, "precedent.FIND", move |snapshot| {
            let asked = Arc::clone(&asked);
            Box::pin(async move {
                let (sql, params) = &*asked;
                let seq = snapshot.head;
                let mut found = Vec::new();
                for row in snapshot.dynamic(sql, params).await? {
                    let headline: &str = row.try_get("headline")?;
                    found.push(FoundPrecedent {
                        precedent: Precedent::read(&row, &mut 0)?,
                        score: row.try_get("score")?,
                        exact_rank: row.try_get("exact_rank")?,
                        text_rank: row.try_get("text_rank")?,
                        text_score: row.try_get("text_score")?,
                        highlights: passages(headline),
                    });
                }
                snapshot.end((found, seq)).await
            })
        })
        .await
    }
}
