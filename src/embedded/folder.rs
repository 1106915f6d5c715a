//! The data folder: who holds it, what it contains, and how it is changed without leaving halves.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{EmbeddedError, PORT, Result, identity};

/// The longest path that a unix socket can be bound to.
const SOCKET_PATH_MAX_BYTES: usize = 107;
const LOG_MAX_BYTES: u64 = 10 * 1024 * 1024;
/// A program that has just ended may leave its lock to a child that it was starting, for as long as that takes.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// Makes the data folder if needed and gives its full path. Made by root it can be entered, though
/// not listed, by the user that PostgreSQL will run as.
pub(super) fn open(path: &Path) -> Result<PathBuf> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(io_error("make the folder", parent))?;
    }
    make_dir(path, if identity::own_uid() == 0 { 0o711 } else { 0o700 })?;
    let full = fs::canonicalize(path).map_err(io_error("open the data folder", path))?;
    fs::read_dir(&full).map_err(io_error("open the data folder", &full))?;
    Ok(full)
}

/// Takes the data folder for this process, for as long as the file is held.
pub(super) async fn lock(data: &Path) -> Result<File> {
    let path = data.join("casebook.lock");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o644);
    let mut file = options.open(&path).map_err(io_error("write", &path))?;
    let began = Instant::now();
    let locked = loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if began.elapsed() < LOCK_PATIENCE => {
                tokio::time::sleep(LOCK_PATIENCE / 20).await;
            }
            locked => break locked,
        }
    };
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Only for the message.
            let _ = file.read_to_string(&mut pid);
            let pid = if pid.trim().is_empty() { "unknown" } else { pid.trim() };
            return Err(EmbeddedError::InUse { path: data.to_owned(), pid: pid.to_owned() });
        }
        Err(TryLockError::Error(source)) => return Err(io_error("lock", &path)(source)),
    }
    let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(io_error("write", &path))?;
    Ok(file)
}

/// The major version of the cluster, or nothing if there is none yet.
pub(super) fn cluster_version(cluster: &Path) -> Result<Option<u32>> {
    let broken =
        |why: &str| EmbeddedError::Broken { path: cluster.to_owned(), why: why.to_owned() };
    match fs::metadata(cluster) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("open", cluster)(error)),
        Ok(meta) if !meta.is_dir() => return Err(broken("it is not a folder")),
        Ok(_) => {}
    }
    let file = cluster.join("PG_VERSION");
    match fs::read_to_string(&file) {
        Ok(text) => match text.trim().parse() {
            Ok(major) => Ok(Some(major)),
            Err(_) => Err(broken("its file PG_VERSION holds no version")),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let mut entries = fs::read_dir(cluster).map_err(io_error("open", cluster))?;
            if entries.next().is_some() {
                return Err(broken("its file PG_VERSION is missing"));
            }
            Ok(None)
        }
        Err(error) => Err(io_error("read", &file)(error)),
    }
}

/// Where the socket goes: beside the cluster when the path is short enough, else in /tmp, under a
/// name that the same data folder always gets. Not in the user's runtime folder: that one goes away
/// with the login session.
pub(super) fn socket_dir(data: &Path) -> PathBuf {
    let near = data.join("postgres-socket");
    let path = near.join(format!(".s.PGSQL.{PORT}"));
    // The name is also part of a setting, which holds only text.
    if path.as_os_str().len() <= SOCKET_PATH_MAX_BYTES && near.to_str().is_some() {
        return near;
    }
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    PathBuf::from(format!("/tmp/casebook-{:016x}", hasher.finish()))
}

/// Opens the log at its end; one old log is kept.
pub(super) fn open_log(path: &Path) -> Result<File> {
    if fs::metadata(path).is_ok_and(|meta| meta.len() > LOG_MAX_BYTES) {
        rename(path, &path.with_extension("log.1"))?;
    }
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    options.open(path).map_err(io_error("write", path))
}

pub(super) fn make_dir(path: &Path, mode: u32) -> Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(io_error("make the folder", path)(error))
        }
        _ => Ok(()),
    }
}

pub(super) fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Renames, and makes sure that the new name survives a power cut.
pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(io_error("rename", from))?;
    let folder = to.parent().unwrap_or(to);
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error("write", folder))
}

pub(super) fn io_error(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> EmbeddedError {
    move |source| EmbeddedError::Io { action, path: path.to_owned(), source }
}
