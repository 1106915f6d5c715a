//! The only reader of file, environment and flags.
//!
//! [`SETTINGS`] is the one table; [`Config`] is its typed form. A flag wins over the environment, which wins
//! over the file. Whatever is wrong is reported at once, each in one sentence that names the setting, where
//! the value came from and what is allowed, and nothing secret is ever part of it.

use std::{
    fmt,
    io::IsTerminal,
    path::{Path, PathBuf},
};

mod blob_url;
pub mod limits;
mod older;
mod settings;
mod show;
mod sources;
#[cfg(test)]
mod tests;
mod url;
mod values;

pub use blob_url::BlobUrl;
pub use limits::Limit;
pub use older::{OLDER, Older};
pub use settings::{Config, DefaultValue, Group, Kind, SETTINGS, Setting};
pub use show::list;
pub use sources::{OTHER_VARIABLES, Provenance, Source, read_env_file};
pub use values::{Auth, Key, Listen, LogFormat, Secret, is_tenant_id};

use sources::{Env, Layers};
use values::Value;

/// Everything that is wrong with the configuration, one sentence each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub problems: Vec<String>,
}

impl ConfigError {
    fn one(problem: String) -> Self {
        Self { problems: vec![problem] }
    }

    fn unset(name: &str) -> Self {
        Self::one(format!("{name} must be set."))
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads the file (or the one that `CASEBOOK_CONFIG` names), the given environment and the given flags,
    /// which are pairs of a setting's name and its text.
    pub fn load(
        file: Option<PathBuf>,
        env: impl IntoIterator<Item = (String, String)>,
        flags: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let env: Env = env.into_iter().collect();
        let named = env.get("CASEBOOK_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        let mut layers = Layers::gather(file.or(named).as_deref(), &env, flags);

        settle_databases(&env, &mut layers);
        derive(&mut layers);
        let mut config = Self::read(layers)?;
        if config.audit_keep_min_days < AUDIT_KEEP_DAYS {
            config.warnings.push(format!(
                "audit_keep_min_days = {} ({}) is less than the six months ({AUDIT_KEEP_DAYS} days) for which the EU \
                 AI Act has logs kept.",
                config.audit_keep_min_days,
                config.said("audit_keep_min_days"),
            ));
        }
        let problems = config.contradictions();
        if problems.is_empty() { Ok(config) } else { Err(ConfigError { problems }) }
    }

    /// [`Config::load`] with this process's environment and, below it, that of an environment file.
    pub fn from_process(
        file: Option<PathBuf>,
        env_file: Option<&Path>,
        flags: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        Self::load(file, process_env(env_file)?, flags)
    }

    /// Whether Casebook runs its own PostgreSQL.
    pub fn is_embedded(&self) -> bool {
        self.database_url.is_none()
    }

    /// Where a setting's value came from.
    pub fn source(&self, setting: &str) -> Option<&Source> {
        self.provenance.get(setting).map(|found| &found.source)
    }

    /// Values that are fine alone and not together.
    fn contradictions(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.auth == Auth::None && !self.listen.is_local() {
            problems.push(format!(
                "auth = \"none\" ({}) is refused on {} ({}): whoever reaches that address could read and \
                 write everything; set auth to token, or listen on a loopback address or unix:.",
                self.said("auth"),
                self.listen,
                self.said("listen"),
            ));
        }
        if let (Listen::Tcp(grpc), Some(metrics)) = (&self.listen, self.metrics_listen)
            && *grpc == metrics
            && grpc.port() != 0
        {
            problems.push(format!(
                "metrics_listen ({}) and listen ({}) are both {grpc}: give them different ports.",
                self.said("metrics_listen"),
                self.said("listen"),
            ));
        }
        if let Some((url, feature)) =
            self.blob_store_url.as_ref().and_then(|url| Some((url, url.needs()?)))
        {
            problems.push(format!(
                "blob_store_url = {url} ({}) needs a build with the cargo feature {feature}, and this one is without it.",
                self.said("blob_store_url"),
            ));
        } else if matches!(self.blob_store_url, Some(BlobUrl::Azure { .. }))
            && self.azure_account.is_none()
        {
            problems.push(format!(
                "blob_store_url ({}) is in Azure, and azure_account is not set: set it.",
                self.said("blob_store_url"),
            ));
        }
        let is_s3 = matches!(self.blob_store_url, Some(BlobUrl::S3 { .. }));
        if is_s3 && self.s3_access_key_id.is_some() != self.s3_secret_access_key.is_some() {
            problems.push(
                "s3_access_key_id and s3_secret_access_key belong together: set both, or neither."
                    .into(),
            );
        }
        if self.blob_key.is_some() && self.blob_key_file.is_some() {
            problems.push(format!(
                "blob_key ({}) and blob_key_file ({}) are both set: keep all keys in one place.",
                self.said("blob_key"),
                self.said("blob_key_file"),
            ));
        }
        for (low, high) in [
            ("pool_min_idle", "pool_max_size"),
            ("page_size_default", "page_size_max"),
            ("deadline_default_ms", "deadline_max_ms"),
            ("message_in_max_bytes", "batch_message_in_max_bytes"),
            ("retry_base_ms", "retry_max_ms"),
            ("blob_part_bytes", "blob_in_flight_bytes"),
        ] {
            if let (Some(a), Some(b)) = (self.number(low), self.number(high))
                && a > b
            {
                let (from, to) = (self.said(low), self.said(high));
                problems.push(format!(
                    "{low} = {a} ({from}) must not be more than {high} = {b} ({to})."
                ));
            }
        }
        problems
    }

    fn said(&self, setting: &str) -> String {
        self.source(setting).map(ToString::to_string).unwrap_or_default()
    }
}

/// Settles which database is meant, and that migrations mean the same one.
fn settle_databases(env: &Env, layers: &mut Layers) {
    let main = older::settle_database(env, layers);
    let owner = older::own_url(layers, "owner_database_url");
    match (&main, owner) {
        (Some(main), None) => {
            let text = main.text().to_owned();
            layers.derive("owner_database_url", Some(&text), "the same as database_url");
        }
        // A main URL that was given and is wrong has been reported already.
        (None, Some((_, source))) if layers.is_sound() => layers.problem(format!(
            "owner_database_url ({source}) is set without database_url: migrations would change one \
             database and the server use another; set both."
        )),
        _ => {}
    }
    if let Some(main) = main.filter(|main| !main.is_local()) {
        layers.warn(format!(
            "The connection to {main} is not encrypted: this build has no TLS to PostgreSQL."
        ));
    }
}

/// The defaults that follow from other settings.
fn derive(layers: &mut Layers) {
    let embedded = layers.text("database_url").is_none();
    // A listen address that cannot be read is reported when the values are; until then it is not local.
    let is_local = match (Setting::find("listen"), layers.text("listen")) {
        (Some(setting), Some(text)) => {
            Listen::parse(setting, text).is_ok_and(|listen| listen.is_local())
        }
        _ => true,
    };
    if embedded && is_local {
        layers.derive("auth", Some("none"), "embedded PostgreSQL and a local address");
    } else if embedded {
        layers.derive("auth", Some("token"), "other machines can connect");
    } else {
        layers.derive("auth", Some("token"), "database_url is set");
    }
    if embedded {
        layers.derive("migrate_on_start", Some("true"), "embedded PostgreSQL");
    } else {
        layers.derive("migrate_on_start", Some("false"), "database_url is set");
    }
    if embedded {
        let data_dir = layers.text("data_dir").unwrap_or(DATA_DIR);
        // A URL has no relative paths.
        let blobs = std::path::absolute(Path::new(data_dir).join("blobs"));
        if let Ok(Some(blobs)) = blobs.map(|path| path.to_str().map(str::to_owned)) {
            let url = format!("file://{blobs}");
            layers.derive("blob_store_url", Some(&url), "beside the embedded PostgreSQL");
        }
    }
    if layers.text("s3_endpoint").is_some() {
        layers.derive("s3_path_style", Some("true"), "s3_endpoint is set");
    } else {
        layers.derive("s3_path_style", Some("false"), "s3_endpoint is not set");
    }
    if std::io::stderr().is_terminal() {
        layers.derive("log_format", Some("pretty"), "standard error is a terminal");
    } else {
        layers.derive("log_format", Some("json"), "standard error is not a terminal");
    }
    let threads = worker_threads_default().to_string();
    layers.derive("worker_threads", Some(&threads), "half of the cores, at least 1");
}

/// Callers and often PostgreSQL share the machine, and threads that wake each other cost more than they bring there: on
/// two cores one thread takes a fifth less processor time per call than two.
pub fn worker_threads_default() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() / 2).max(1)
}

/// Where the embedded PostgreSQL is when nobody says.
pub(crate) const DATA_DIR: &str = "./casebook-data";

/// Articles 19 and 26(6): at least six months.
const AUDIT_KEEP_DAYS: u64 = 183;

/// What the commands that call a server need to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// `http://host:port` or `unix:/path`.
    pub address: String,
    pub token: Option<Secret>,
}

impl Client {
    /// The flags, else `CASEBOOK_ADDRESS` and `CASEBOOK_TOKEN`, else the address at which a server with this
    /// environment listens.
    pub fn load(
        address: Option<String>,
        token: Option<String>,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let env: Env = env.into_iter().collect();
        let var = |name: &str| env.get(name).filter(|value| !value.is_empty()).cloned();
        let address = match address.or_else(|| var("CASEBOOK_ADDRESS")) {
            Some(address) => address,
            None => {
                // A probe inside the server's container then needs no argument.
                let listen = var("CASEBOOK_LISTEN").unwrap_or_else(|| DEFAULT_ADDRESS.into());
                match Setting::find("listen").map(|setting| Listen::parse(setting, &listen)) {
                    Some(Ok(listen)) => listen.client_address(),
                    _ => {
                        return Err(ConfigError::one(format!(
                            "listen = {listen:?} (environment variable CASEBOOK_LISTEN) is no address to \
                             call; say --address."
                        )));
                    }
                }
            }
        };
        let address = if address.contains("://") || address.starts_with("unix:") {
            address
        } else {
            format!("http://{address}")
        };
        if address.starts_with("https://") {
            return Err(ConfigError::one(format!(
                "The address {address} asks for TLS, which this build does not have; say http://."
            )));
        }
        let token = match token.or_else(|| var("CASEBOOK_TOKEN")) {
            Some(token) => Some(Secret::new(
                sources::open(&token, &env)
                    .map_err(|why| ConfigError::one(format!("The token {why}.")))?,
            )),
            None => None,
        };
        Ok(Self { address, token })
    }

    /// [`Client::load`] with this process's environment.
    pub fn from_process(
        env_file: Option<&Path>,
        address: Option<String>,
        token: Option<String>,
    ) -> Result<Self, ConfigError> {
        Self::load(address, token, process_env(env_file)?)
    }
}

/// Where a server listens that nobody configured.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:50051";

/// Where fetched PostgreSQL binaries may lie: here, and beside this program's own project.
pub fn postgres_folders() -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from(".postgres")];
    if let Ok(program) = std::env::current_exe() {
        places.extend(program.ancestors().skip(1).take(4).map(|folder| folder.join(".postgres")));
    }
    places
}

/// The environment file first, so that the process's own variables win.
fn process_env(env_file: Option<&Path>) -> Result<Vec<(String, String)>, ConfigError> {
    let mut pairs = match env_file {
        Some(path) => read_env_file(path)?,
        None => Vec::new(),
    };
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => pairs.push((name, value)),
            Err(_) if name.starts_with("CASEBOOK_") || OLDER.iter().any(|o| o.name == name) => {
                return Err(ConfigError::one(format!(
                    "The environment variable {name} is not valid UTF-8."
                )));
            }
            Err(_) => {}
        }
    }
    Ok(pairs)
}
