//! How far an import is, kept in a file, so that the same command goes on where it was interrupted.

use super::file::Place;
use super::import::Counts;
use super::{OnConflict, Result, TransferError, beside};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Which import it is. The same file into another tenant, say, is another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Which {
    pub sha256: String,
    pub address: String,
    pub tenant: Option<String>,
    pub on_conflict: OnConflict,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    pub which: Which,
    /// The kind that is being imported.
    pub pass: usize,
    /// Its lines before this place are done.
    pub next: Option<Place>,
    /// Lines of all kinds that are done.
    pub done: u64,
    pub counts: BTreeMap<String, Counts>,
    /// Of one chunk: where chunks end must not change on the way, because their request ids come from it.
    pub chunk_bytes: usize,
    /// How long the list of what was refused is; what is behind it, is written again.
    pub refused_bytes: u64,
}

impl State {
    pub fn new(which: Which, chunk_bytes: usize) -> Self {
        Self {
            chunk_bytes,
            which,
            pass: 0,
            next: None,
            done: 0,
            counts: BTreeMap::new(),
            refused_bytes: 0,
        }
    }

    /// What an earlier run of the same import has left.
    pub fn load(path: &Path, which: &Which) -> Result<Option<Self>> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(TransferError::on_file("read", path, &error)),
        };
        let remove =
            format!("remove {} to begin anew, or name another with --state", path.display());
        let state: Self = serde_json::from_slice(&text).map_err(|error| {
            TransferError::Usage(format!(
                "{} is no state of an import ({error}): {remove}",
                path.display()
            ))
        })?;
        if state.which != *which {
            let what = match () {
                () if state.which.sha256 != which.sha256 => "of a file with other content",
                () if state.which.on_conflict != which.on_conflict => "with another --on-conflict",
                () => "into another tenant or server",
            };
            return Err(TransferError::Usage(format!(
                "{} says that an import {what} is not finished: {remove}",
                path.display()
            )));
        }
        Ok(Some(state))
    }

    /// Replaces the file as a whole: whatever happens, there is either the old or the new state.
    pub fn save(&self, path: &Path) -> Result<()> {
        let new = beside(path, "new");
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.sync_data()?;
            std::fs::rename(&new, path)
        };
        write().map_err(|error| TransferError::on_file("written", path, &error))
    }
}
