//! Brings a tenant's records into a file and back, as a client of a running server.

pub mod encoded;
mod export;
mod file;
mod import;
mod message;
mod progress;
mod send;
#[cfg(feature = "sqlite")]
mod sqlite;
mod state;
mod table;
mod wire;

use std::path::PathBuf;

pub use export::{Export, export};
pub use import::{Counts, Import, Report, import};
#[cfg(feature = "sqlite")]
pub use sqlite::{FromSqlite, import_sqlite};
pub use table::{kinds, left_out};
pub use wire::Server;

/// What happens to a line whose id is taken in the tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    /// The line is refused.
    Fail,
    /// What is there stays: equal content counts as unchanged, other content as kept.
    Skip,
    /// What is there gets the line's content, on nouns that may change; other content of one that never changes is
    /// refused.
    Replace,
}

impl OnConflict {
    pub const ALL: &[OnConflict] = &[OnConflict::Fail, OnConflict::Skip, OnConflict::Replace];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Skip => "skip",
            Self::Replace => "replace",
        }
    }
}

/// Why a transfer ended early. What was transferred until then stays, and the same command goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The command is wrong, or does not fit the file.
    #[error("{0}")]
    Usage(String),
    #[error("{address} cannot be reached: {why}")]
    Unreachable { address: String, why: String },
    #[error("{0}")]
    Failed(String),
}

impl TransferError {
    fn on_file(what: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::Failed(format!("{} cannot be {what}: {error}", path.display()))
    }

    fn internal(what: impl std::fmt::Display) -> Self {
        Self::Failed(format!("a fault of this program: {what}"))
    }
}

pub type Result<T> = std::result::Result<T, TransferError>;

/// `notes.jsonl` with `refused` is `notes.jsonl.refused`.
fn beside(path: &std::path::Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(ending);
    path.with_file_name(name)
}

/// Cut at a character, for messages.
fn shortened(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
