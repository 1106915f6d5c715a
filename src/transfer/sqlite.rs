//! Import of a Collections database: its tables become a file, and the file is imported like any other.

use super::file::{FORMAT, Header, Writer};
use super::import::{Import, Report, import};
use super::{OnConflict, Result, Server, TransferError, beside, shortened};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, Row};
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// The columns of each table. Others are told of, and not imported.
const TABLES: &[(&str, &[&str])] = &[
    (
        "items",
        &[
            "id",
            "user_id",
            "filename",
            "original_filename",
            "file_path",
            "file_size",
            "mime_type",
            "created_at",
            "updated_at",
        ],
    ),
    (
        "analyses",
        &[
            "id",
            "item_id",
            "user_id",
            "version",
            "category",
            "summary",
            "raw_response",
            "provider_used",
            "model_used",
            "trace_id",
            // Reckoned from the others.
            "search_vector",
            "created_at",
        ],
    ),
    (
        "embeddings",
        &[
            "id",
            "item_id",
            "analysis_id",
            "user_id",
            "vector",
            "embedding_model",
            "embedding_dimensions",
            "embedding_source",
            "created_at",
        ],
    ),
];
/// Analyses of one document whose first versions and times its metadata keeps.
const REMEMBERED: usize = 1000;

/// What to import, and where to.
pub struct FromSqlite {
    pub server: Server,
    pub database: PathBuf,
    /// The file that the tables become; `None` is beside the database.
    pub work: Option<PathBuf>,
    pub on_conflict: OnConflict,
    pub state: Option<PathBuf>,
    pub concurrency: usize,
}

/// Imports items as documents, and analyses as analyses. The list of what is left out is beside the work file.
pub async fn import_sqlite(options: FromSqlite) -> Result<Report> {
    let FromSqlite { server, database, work, on_conflict, state, concurrency } = options;
    let work = work.unwrap_or_else(|| beside(&database, "jsonl"));
    let list = beside(&work, "left-out.jsonl");
    // The same tables become the same file, so that an import that was interrupted is recognised.
    for (what, count) in convert(&database, &work, &list)? {
        eprintln!("note: {count} {what}: see {}", list.display());
    }
    import(Import { server, input: work, on_conflict, state, unsealed: false, concurrency }).await
}

/// Writes the file, and gives how much of what is not in it, or not as it was.
fn convert(database: &Path, work: &Path, list: &Path) -> Result<BTreeMap<&'static str, u64>> {
    let unreadable = |error: rusqlite::Error| {
        TransferError::Failed(format!("{} cannot be read: {error}", database.display()))
    };
    let failed = |error: std::io::Error| TransferError::on_file("written", work, &error);
    // SQLite would make one.
    if let Err(error) = std::fs::metadata(database) {
        return Err(TransferError::on_file("read", database, &error));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(database, flags).map_err(unreadable)?;
    // One moment of the database, whoever writes to it.
    database.execute_batch("BEGIN").map_err(unreadable)?;
    let file =
        File::create(list).map_err(|error| TransferError::on_file("written", list, &error))?;
    let mut left = LeftOut { to: BufWriter::new(file), counts: BTreeMap::new() };
    let header = Header {
        format: FORMAT,
        program: concat!("casebook ", env!("CARGO_PKG_VERSION"), " from SQLite").into(),
        ..Header::default()
    };
    let to = BufWriter::new(File::create(work).map_err(failed)?);
    let mut writer = Writer::begin(to, &header).map_err(failed)?;
    let has = survey(&database, &mut left).map_err(unreadable)??;
    let mut wrote = Ok(());
    let mut write = |kind: &str, resource: Json| {
        if wrote.is_ok() {
            wrote = writer.resource(kind, &resource);
        }
    };
    if has("items") {
        documents(&database, has("analyses"), &mut left, &mut write).map_err(unreadable)?;
    }
    if has("analyses") {
        analyses(&database, &mut left, &mut write).map_err(unreadable)?;
    }
    if has("embeddings") {
        embeddings(&database, &mut left).map_err(unreadable)?;
    }
    wrote.map_err(failed)?;
    let (to, _) = writer.end(Vec::new()).map_err(failed)?;
    to.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)?;
    left.to.flush().map_err(|error| TransferError::on_file("written", list, &error))?;
    Ok(left.counts)
}

/// What is not imported, or not as it was: nothing is dropped without a word.
struct LeftOut {
    to: BufWriter<File>,
    counts: BTreeMap<&'static str, u64>,
}

impl LeftOut {
    fn note(&mut self, what: &'static str, mut line: Json) {
        line["why"] = what.into();
        *self.counts.entry(what).or_default() += 1;
        // A disk that is full fails the flush at the end.
        let _ = writeln!(self.to, "{line}");
    }
}

/// Which tables there are. What is none of ours is noted.
fn survey(
    database: &Connection,
    left: &mut LeftOut,
) -> rusqlite::Result<Result<impl Fn(&str) -> bool + use<>>> {
    let mut names = database.prepare(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name",
    )?;
    let names: Vec<String> =
        names.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    if !names.iter().any(|name| name == "items") {
        let found = names.join(", ");
        let text =
            format!("this is no database of Collections: it has no table items, but: {found}");
        return Ok(Err(TransferError::Failed(text)));
    }
    for name in &names {
        let Some((_, known)) = TABLES.iter().find(|(table, _)| table == name) else {
            left.note("tables that are not of Collections", json!({"table": name}));
            continue;
        };
        let mut columns = database.prepare(&format!("PRAGMA table_info({name})"))?;
        let columns = columns.query_map([], |row| row.get::<_, String>("name"))?;
        for column in columns {
            let column = column?;
            if !known.contains(&column.as_str()) {
                left.note(
                    "columns that are not of Collections",
                    json!({"table": name, "column": column}),
                );
            }
        }
    }
    Ok(Ok(move |table: &str| names.iter().any(|name| name == table)))
}

fn documents(
    database: &Connection,
    with_analyses: bool,
    left: &mut LeftOut,
    write: &mut impl FnMut(&str, Json),
) -> rusqlite::Result<()> {
    let mut of_item = match with_analyses {
        true => Some(database.prepare(
            "SELECT * FROM analyses WHERE item_id = ?1 ORDER BY version, id LIMIT 1001",
        )?),
        false => None,
    };
    let mut items = database.prepare("SELECT * FROM items ORDER BY id")?;
    let mut rows = items.query([])?;
    while let Some(row) = rows.next()? {
        let mut item = Reading { row, kind: "document", left };
        let id = item.text("id").unwrap_or_default();
        let mut metadata = Map::new();
        for (column, key) in
            [("created_at", "imported_create_time"), ("updated_at", "imported_update_time")]
        {
            if let Some(time) = item.text(column) {
                metadata.insert(key.into(), time.into());
            }
        }
        let mut document = json!({"id": id});
        for (column, field) in [
            ("filename", "filename"),
            ("original_filename", "originalFilename"),
            ("file_path", "sourcePath"),
            ("file_size", "sizeBytes"),
            ("mime_type", "mimeType"),
            ("user_id", "ownerId"),
        ] {
            if let Some(value) = item.text(column) {
                document[field] = value.into();
            }
        }
        if let Some(of_item) = &mut of_item {
            let mut analyses = Map::new();
            let mut rows = of_item.query([&id])?;
            while let Some(row) = rows.next()? {
                let mut analysis = Reading { row, kind: "analysis", left };
                let mut was = Map::new();
                for (column, key) in [("version", "version"), ("created_at", "create_time")] {
                    if let Some(value) = analysis.text(column) {
                        was.insert(key.into(), value.into());
                    }
                }
                analyses.insert(analysis.text("id").unwrap_or_default(), was.into());
            }
            if analyses.len() > REMEMBERED {
                left.note(
                    "documents with so many analyses that their first versions and times are not kept",
                    json!({"kind": "document", "id": id}),
                );
            } else if !analyses.is_empty() {
                metadata.insert("imported_analyses".into(), analyses.into());
            }
        }
        if !metadata.is_empty() {
            document["metadata"] = metadata.into();
        }
        write("document", document);
    }
    Ok(())
}

fn analyses(
    database: &Connection,
    left: &mut LeftOut,
    write: &mut impl FnMut(&str, Json),
) -> rusqlite::Result<()> {
    let mut analyses = database.prepare("SELECT * FROM analyses ORDER BY item_id, version, id")?;
    let mut rows = analyses.query([])?;
    let (mut of, mut number) = (String::new(), 0_i64);
    while let Some(row) = rows.next()? {
        let mut analysis = Reading { row, kind: "analysis", left };
        let id = analysis.text("id").unwrap_or_default();
        let item = analysis.text("item_id").unwrap_or_default();
        if item != of {
            (of, number) = (item.clone(), 0);
        }
        number += 1;
        let mut resource = json!({"id": id, "documentId": item, "analysisVersion": number});
        for (column, field) in [
            ("category", "category"),
            ("summary", "summary"),
            ("provider_used", "providerUsed"),
            ("model_used", "modelUsed"),
            ("trace_id", "traceId"),
            ("user_id", "ownerId"),
        ] {
            if let Some(value) = analysis.text(column) {
                resource[field] = value.into();
            }
        }
        let version = analysis.text("version");
        if let Some(raw) = analysis.text("raw_response") {
            match serde_json::from_str(&raw) {
                Ok(Json::Object(object)) => resource["rawResponse"] = object.into(),
                Ok(Json::Null) => {}
                Ok(other) => {
                    resource["rawResponse"] = json!({"raw": other});
                    left.note(
                        "raw responses that are no objects, and now are within one, as \"raw\"",
                        json!({"kind": "analysis", "id": id}),
                    );
                }
                Err(_) => {
                    resource["rawResponse"] = json!({"raw": raw});
                    left.note(
                        "raw responses that are no JSON, and now are text, as \"raw\"",
                        json!({"kind": "analysis", "id": id}),
                    );
                }
            }
        }
        if version.as_deref() != Some(number.to_string().as_str()) {
            left.note(
                "analyses whose version is another, because their numbers had gaps",
                json!({"kind": "analysis", "id": id, "document_id": item, "was": version, "is": number}),
            );
        }
        write("analysis", resource);
    }
    Ok(())
}

fn embeddings(database: &Connection, left: &mut LeftOut) -> rusqlite::Result<()> {
    let mut embeddings = database.prepare("SELECT * FROM embeddings ORDER BY id")?;
    let mut rows = embeddings.query([])?;
    while let Some(row) = rows.next()? {
        let mut told = json!({"kind": "embedding"});
        let mut embedding = Reading { row, kind: "embedding", left };
        for column in ["id", "item_id", "analysis_id", "embedding_model", "embedding_dimensions"] {
            if let Some(value) = embedding.text(column) {
                told[column] = value.into();
            }
        }
        left.note(
            "embeddings that are not imported yet, because this version has no vectors",
            told,
        );
    }
    Ok(())
}

/// A row that is being read.
struct Reading<'a> {
    row: &'a Row<'a>,
    kind: &'static str,
    left: &'a mut LeftOut,
}

impl Reading<'_> {
    /// A column's value as text; none where it is NULL or not there. SQLite lets any type stand in any column.
    fn text(&mut self, column: &str) -> Option<String> {
        match self.row.get_ref(column).ok()? {
            ValueRef::Null => None,
            ValueRef::Integer(value) => Some(value.to_string()),
            ValueRef::Real(value) => Some(value.to_string()),
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
                let text = String::from_utf8_lossy(bytes);
                if matches!(text, std::borrow::Cow::Owned(_)) {
                    let shown = shortened(&text, 100);
                    self.left.note(
                        "values that are not UTF-8, whose odd bytes are replaced",
                        json!({"kind": self.kind, "column": column, "text": shown}),
                    );
                }
                Some(text.into_owned())
            }
        }
    }
}
