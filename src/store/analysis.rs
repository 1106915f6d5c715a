//! Analyses: what models said about a document, numbered 1, 2, 3... per document (C16).

use super::Store;
use super::caller::Caller;
use super::canonical::Json;
use super::change::{OnConflict, rows_of, stamp};
use super::child::Parent;
use super::document::Document;
use super::filter::{Field, FieldKind};
use super::list::Listing;
use super::log::{Entry, LogRow};
use super::noun::Noun;
use super::write::{Applied, Change, Outcome, RowKey, Shown, Tx};
use crate::{Error, Reason, Result, child, noun, queries, row};
use futures_util::future::BoxFuture;
use std::collections::HashMap;
use std::sync::Arc;
use uuid::Uuid;

noun! {
    pub struct Analysis in "analysis" as analysis + [children::QUERIES, QUERIES]
    within "document" by document_id
    {
        pub document_uid: Uuid,
        pub document_id: String,
        /// 0 stands for "the next", until it is written.
        pub analysis_version: i32,
        pub category: String,
        pub summary: String,
        pub tags: Json,
        pub raw_response: Json,
        pub provider_used: String,
        pub model_used: String,
        pub trace_id: String,
        pub owner_id: String,
    }

    fn is_given(&self, field: &str) -> bool {
        match field {
            "document_uid" => false,
            "analysis_version" => self.analysis_version != 0,
            _ => true,
        }
    }

    fn size_bytes(&self) -> usize {
        512 + self.summary.len() + self.tags.text().len() + self.raw_response.text().len()
    }
}

impl Parent for Analysis {}

pub static LISTING: Listing = Listing {
    kind: "analysis",
    table: "analysis",
    op: "analysis.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("document_id", "d.document_id", FieldKind::Text),
        Field::new("analysis_version", "d.analysis_version", FieldKind::Int),
        Field::new("category", "d.category", FieldKind::Text),
        Field::new("provider_used", "d.provider_used", FieldKind::Text),
        Field::new("model_used", "d.model_used", FieldKind::Text),
        Field::new("trace_id", "d.trace_id", FieldKind::Text),
        Field::new("owner_id", "d.owner_id", FieldKind::Text),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("tags", "d.tags", FieldKind::Texts),
    ],
};

child!(Analysis in "analysis" of document_id);

row! {
    /// The highest number that a document has given out; 0 before its first.
    pub struct Highest {
        pub document_uid: Uuid,
        pub analysis_version: i32,
    }
}

queries! { "analysis" {
    /// Deleted ones count, too: no number is given out twice.
    HIGHEST(Vec<Uuid>) -> Highest =
        "SELECT t.uid AS document_uid, COALESCE((SELECT a.analysis_version FROM analysis a \
         WHERE a.document_uid = t.uid ORDER BY a.analysis_version DESC LIMIT 1), 0) AS analysis_version \
         FROM unnest($1::uuid[]) AS t (uid)";
    LATEST(String) -> Analysis =
        "SELECT {*} FROM analysis WHERE document_id = $1 AND delete_time IS NULL \
         ORDER BY analysis_version DESC LIMIT 1";
} }

/// Adds an analysis to a document, under its next number.
pub struct CreateAnalysis {
    pub row: Analysis,
    pub on_conflict: OnConflict,
}

impl CreateAnalysis {
    /// The analysis for a document whose highest number so far is this.
    fn numbered(&self, document: &Document, highest: i32) -> Result<Analysis> {
        let given = self.row.analysis_version;
        let Some(next) = highest.checked_add(1) else {
            return Err(Error::internal("a document has no number left"));
        };
        if given != 0 && given != next {
            return Err(Error::Refused {
                reason: Reason::PreconditionFailed,
                message: format!(
                    "analysis.analysis_version is {given}, and the next of document \"{}\" is {next}",
                    document.id
                ),
                metadata: vec![("next_analysis_version", next.to_string())],
            });
        }
        let mut row = self.row.clone();
        row.document_uid = document.meta.uid;
        row.analysis_version = next;
        Ok(row)
    }
}

impl Change for CreateAnalysis {
    type Answer = Analysis;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        // The document's key keeps them in the order of their numbers, and away from its deletion.
        rows.push(RowKey::new(&[Document::KIND, &self.row.document_id]));
        rows.push(RowKey::new(&[Analysis::KIND, &self.row.id]));
    }

    fn size_bytes(&self) -> usize {
        self.row.size_bytes()
    }

    fn about(&self) -> Vec<(&'static str, &str)> {
        vec![(Analysis::KIND, &self.row.id)]
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Analysis>>>> {
        Box::pin(async move {
            let ids = changes.iter().map(|a| a.change.row.document_id.clone()).collect();
            // Nobody else numbers analyses of these documents until we are through.
            let documents = tx.lock::<Document>(ids).await?;
            let compared = changes.iter().filter(|a| a.change.on_conflict != OnConflict::Fail);
            let compared: Vec<String> = compared.map(|a| a.change.row.id.clone()).collect();
            let mut there: HashMap<String, Analysis> = match compared.is_empty() {
                true => HashMap::new(),
                false => tx.lock(compared).await?,
            };
            let uids = documents.values().map(|document| document.meta.uid).collect();
            let highest = tx.run(&HIGHEST, &(uids,)).await?.into_iter();
            let highest: HashMap<Uuid, i32> =
                highest.map(|row| (row.document_uid, row.analysis_version)).collect();

            let mut rows = Vec::new();
            let mut outcomes: Vec<Option<Outcome<Analysis>>> = Vec::with_capacity(changes.len());
            for Applied { change, caller } in changes {
                let CreateAnalysis { row, on_conflict } = change;
                let found = there.remove(&row.id).filter(|_| *on_conflict != OnConflict::Fail);
                let document = documents.get(&row.document_id);
                outcomes.push(match (document, found) {
                    (None, _) => {
                        Some(Outcome::Failed(Error::not_found(Document::KIND, &row.document_id)))
                    }
                    (Some(_), Some(there)) => Some(compare(there, row)),
                    (Some(document), None) => {
                        let highest = highest.get(&document.meta.uid).copied().unwrap_or_default();
                        match change.numbered(document, highest) {
                            Ok(row) => {
                                rows.push(stamp(&row, caller.acting(), tx.now));
                                None
                            }
                            Err(error) => Some(Outcome::Failed(error)),
                        }
                    }
                });
            }
            let inserted = if rows.is_empty() { Vec::new() } else { tx.insert(&rows).await? };
            let mut made = rows.into_iter().zip(inserted);
            let settle = |outcome: Option<Outcome<Analysis>>| match outcome {
                Some(outcome) => Ok(outcome),
                None => match made.next() {
                    Some((row, true)) => {
                        let entries = vec![Entry::of(&row, "CREATE")];
                        Ok(Outcome::Done { answer: row, entries, shown: Vec::new() })
                    }
                    Some((row, false)) => Ok(Outcome::Failed(Analysis::taken(&row.id))),
                    None => Err(Error::internal("an analysis without a result")),
                },
            };
            outcomes.into_iter().map(settle).collect()
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Analysis> {
        let row = rows_of(entries)?.pop();
        row.ok_or_else(|| Error::internal("a replayed answer lacks a row"))
    }
}

/// What to answer whoever would have the analysis that is there, if it is the same.
fn compare(there: Analysis, given: &Analysis) -> Outcome<Analysis> {
    let fields = there.differing_fields(given);
    if fields.is_empty() {
        let shown = vec![Shown::of(&there)];
        return Outcome::Done { answer: there, entries: Vec::new(), shown };
    }
    Outcome::Failed(Error::Taken { kind: Analysis::KIND, id: there.id, fields })
}

impl Store {
    /// The analysis of a document with the highest number.
    pub async fn latest_analysis(&self, caller: &Caller, document_id: &str) -> Result<Analysis> {
        let params = Arc::new((document_id.to_owned(),));
        let found = self
            .snapshot(caller, LATEST.name, move |snapshot| {
                let params = Arc::clone(&params);
                Box::pin(async move {
                    let rows = snapshot.all(&LATEST, &*params).await?;
                    snapshot.end(rows).await
                })
            })
            .await?;
        let found = found.into_iter().next();
        found.ok_or_else(|| Error::not_found("latest analysis of document", document_id))
    }
}
