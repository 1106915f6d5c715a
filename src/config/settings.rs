//! The one table of settings: the typed struct, the file's keys, the environment's names, the flags and the
//! documentation all come from it.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use crate::store::envelope::KeyRing;

use super::{
    ConfigError,
    blob_url::BlobUrl,
    sources::{Layers, Provenance},
    values::{Auth, Key, Listen, LogFormat, Secret, Value},
};

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// The key in the file. The environment variable and the flag are derived from it.
    pub name: &'static str,
    pub group: Group,
    pub kind: Kind,
    pub default: DefaultValue,
    pub unit: &'static str,
    /// What the value decides, in one sentence.
    pub consequence: &'static str,
    /// Environment variables of older systems that give this setting too.
    pub older: &'static [&'static str],
}

impl Setting {
    /// `pool_max_size` is `CASEBOOK_POOL_MAX_SIZE`.
    pub fn env(&self) -> String {
        format!("CASEBOOK_{}", self.name.to_ascii_uppercase())
    }

    /// `pool_max_size` is `pool-max-size`, without the dashes before it.
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// A secret may be given as `file:/path` or `env:NAME`, and is never shown.
    pub fn is_secret(&self) -> bool {
        matches!(self.kind, Kind::Url | Kind::Key | Kind::KeyRing | Kind::Secret)
    }

    pub fn find(name: &str) -> Option<&'static Setting> {
        SETTINGS.iter().find(|setting| setting.name == name)
    }
}

/// Where a setting stands in listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Server,
    Database,
    Pools,
    Blobs,
    Limits,
}

impl Group {
    pub const ALL: &[Group] =
        &[Group::Server, Group::Database, Group::Pools, Group::Blobs, Group::Limits];

    pub fn title(self) -> &'static str {
        match self {
            Self::Server => "Settings",
            Self::Database => "Settings: database",
            Self::Pools => "Settings: pools",
            Self::Blobs => "Settings: blobs",
            Self::Limits => "Settings: limits",
        }
    }
}

/// What a setting's text must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Where to serve: TCP or a Unix socket.
    Listen,
    /// A TCP address, or nothing at all.
    Address,
    Choice(&'static [&'static str]),
    Bool,
    Tenant,
    Filter,
    Path,
    Number {
        min: u64,
        max: u64,
    },
    /// A secret: where PostgreSQL is.
    Url,
    /// A secret: 32 bytes.
    Key,
    /// Where blobs are.
    BlobUrl,
    /// An http:// or https:// address.
    Endpoint,
    Text,
    /// A secret text.
    Secret,
    /// A secret: keys with their ids, as `casebook key generate` writes them.
    KeyRing,
}

impl Kind {
    /// Completes "<setting> must be ...".
    pub fn allowed(self) -> String {
        match self {
            Self::Listen => {
                "an IP address and a port, as in 127.0.0.1:50051, or unix: and an absolute path"
                    .into()
            }
            Self::Address => {
                "an IP address and a port, as in 127.0.0.1:9464, or empty to turn it off".into()
            }
            Self::Choice(words) => words.join(" or "),
            Self::Bool => "true or false".into(),
            Self::Tenant => {
                "1 to 63 lower-case letters, digits and dashes that begin with a letter".into()
            }
            Self::Filter => "a log filter, as in info or info,casebook=debug".into(),
            Self::Path => "a path".into(),
            Self::Number { min, max } => format!("a whole number from {min} to {max}"),
            Self::Url => {
                "a postgres:// URL, or file: and the path of a file that holds one, or env: and the name of a variable that does".into()
            }
            Self::KeyRing => {
                "keys as `casebook key generate` writes them, parted by commas, or file: or env: and where they are".into()
            }
            Self::Key => {
                "32 bytes in base64 (`openssl rand -base64 32` makes them), or file: or env: and where they are".into()
            }
            Self::BlobUrl => {
                "s3://bucket, gs://bucket or az://container, each with an optional /prefix, or file:// and an absolute path, or memory:".into()
            }
            Self::Endpoint => "an address that begins with http:// or https://".into(),
            Self::Text => "a text that is not empty".into(),
            Self::Secret => "a text, or file: or env: and where it is".into(),
        }
    }

    /// What stands for the value in `--flag <VALUE>`.
    pub fn placeholder(self, unit: &str) -> &'static str {
        match self {
            Self::Listen | Self::Address => "ADDRESS",
            Self::Choice(_) => "CHOICE",
            Self::Bool => "BOOL",
            Self::Tenant => "TENANT",
            Self::Filter => "FILTER",
            Self::Path => "PATH",
            Self::Number { .. } => match unit {
                "ms" => "MS",
                "bytes" => "BYTES",
                "percent" => "PERCENT",
                _ => "N",
            },
            Self::Url | Self::BlobUrl | Self::Endpoint => "URL",
            Self::Key => "KEY",
            Self::Text => "TEXT",
            Self::Secret => "SECRET",
            Self::KeyRing => "KEYS",
        }
    }
}

/// What a setting is when nobody sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultValue {
    Text(&'static str),
    Number(u64),
    /// Worked out from other settings or left unset, as the words say.
    Derived(&'static str),
}

impl std::fmt::Display for DefaultValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) | Self::Derived(text) => f.write_str(text),
            Self::Number(number) => number.fmt(f),
        }
    }
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const SECOND: u64 = 1000;
const HOUR: u64 = 3600 * SECOND;

const fn text(value: &'static str) -> DefaultValue {
    DefaultValue::Text(value)
}

const fn n(value: u64) -> DefaultValue {
    DefaultValue::Number(value)
}

const fn derived(words: &'static str) -> DefaultValue {
    DefaultValue::Derived(words)
}

const fn number(min: u64, max: u64) -> Kind {
    Kind::Number { min, max }
}

macro_rules! settings {
    ($($group:ident { $(
        $name:ident: $type:ty = $default:expr, $kind:expr, $unit:literal,
            $consequence:literal $(, older [$($older:literal),+])?;
    )+ })+) => {
        /// Every setting there is, in the order of the documentation.
        pub static SETTINGS: &[Setting] = &[$($(
            Setting {
                name: stringify!($name),
                group: Group::$group,
                kind: $kind,
                default: $default,
                unit: $unit,
                consequence: $consequence,
                older: &[$($($older),+)?],
            },
        )+)+];

        /// Every setting's value, checked.
        #[derive(Clone, Debug)]
        pub struct Config {
            $($(
                #[doc = concat!($consequence, "\n\nUnit: ", $unit, ".")]
                pub $name: $type,
            )+)+
            /// What the operator should know although it does not stop the server: one line each.
            pub warnings: Vec<String>,
            pub(super) provenance: BTreeMap<&'static str, Provenance>,
        }

        impl Config {
            /// Reads every value from its text. All that are wrong are reported at once.
            pub(super) fn read(layers: Layers) -> Result<Self, ConfigError> {
                let mut layers = layers;
                $($( let $name = layers.value::<$type>(stringify!($name)); )+)+
                let (provenance, warnings) = layers.finish()?;
                Ok(Self {
                    $($( $name: $name.ok_or_else(|| ConfigError::unset(stringify!($name)))?, )+)+
                    warnings,
                    provenance,
                })
            }

            /// A setting's value as a number, if it is one.
            pub(super) fn number(&self, setting: &str) -> Option<i64> {
                match setting {
                    $($( stringify!($name) => Value::number(&self.$name), )+)+
                    _ => None,
                }
            }
        }
    };
}

settings! {
    Server {
        listen: Listen = text("127.0.0.1:50051"), Kind::Listen, "address",
            "Where gRPC is served; any other address than loopback or unix: lets other machines in.";
        metrics_listen: Option<SocketAddr> = text("127.0.0.1:9464"), Kind::Address, "address",
            "Where /metrics, /livez and /readyz are served over plain HTTP; empty turns them off.";
        auth: Auth = derived("none on the embedded PostgreSQL and a local address, else token"),
            Kind::Choice(&["token", "none"]), "choice",
            "Whether callers must present an API token; none lets whoever can connect do everything.";
        default_tenant: String = text("default"), Kind::Tenant, "tenant id",
            "The tenant of calls without x-casebook-tenant when auth is none.";
        token_key: Option<Key> = derived("made and kept by the server"), Kind::Key, "base64",
            "Signs page and revision tokens; replicas need the same one, and changing it voids them all.";
        audit_archive_dir: Option<PathBuf> = derived("unset: nothing can be archived"), Kind::Path, "path",
            "The directory that archived audit entries are written to before their detail is erased; back it up.";
        log_format: LogFormat = derived("pretty when standard error is a terminal, else json"),
            Kind::Choice(&["pretty", "json"]), "choice",
            "How log lines look: pretty for people, json for collectors.";
        log_filter: String = text("info"), Kind::Filter, "filter",
            "Which log lines appear; debug costs throughput.";
        worker_threads: usize = derived("half of the cores, at least 1"), number(1, 1024), "threads",
            "How many threads run calls; where nothing else uses the machine, as many as cores.";
    }

    Database {
        database_url: Option<Secret> = derived("an embedded PostgreSQL"),
            Kind::Url, "URL",
            "The PostgreSQL that holds everything; unset starts an embedded one in data_dir.",
            older ["DATABASE_URL", "DB_DATABASE_URL", "POSTGRES_HOST", "POSTGRES_PORT",
                "POSTGRES_DB", "POSTGRES_USER", "POSTGRES_PASSWORD"];
        owner_database_url: Option<Secret> = derived("the same as database_url"), Kind::Url, "URL",
            "The same database as a role that may change the schema; only migrations use it.";
        data_dir: PathBuf = text(super::DATA_DIR), Kind::Path, "path",
            "Where the embedded PostgreSQL keeps its data; losing it loses every record.";
        postgres_bin: Option<PathBuf> = derived("searched for"), Kind::Path, "path",
            "The directory of the postgres and initdb programs that the embedded PostgreSQL runs.";
        migrate_on_start: bool = derived("true on the embedded PostgreSQL, else false"),
            Kind::Bool, "bool",
            "Whether serve first brings the schema up to date; false makes serve refuse an older schema.";
    }

    Pools {
        pool_max_size: usize = n(30), number(1, 1000), "connections",
            "How many PostgreSQL connections transactions, lists and streams share; more callers wait.",
            older ["DB_POOL_SIZE", "DB_MAX_OVERFLOW"];
        pool_min_idle: usize = n(2), number(0, 1000), "connections",
            "How many of them stay open when idle, so that the first calls after a pause need not connect.";
        pool_wait_timeout_ms: u64 = n(30 * SECOND), number(1, HOUR), "ms",
            "How long a call waits for a connection before it gets RESOURCE_EXHAUSTED.",
            older ["DB_POOL_TIMEOUT"];
        pool_max_lifetime_ms: u64 = n(HOUR), number(SECOND, 168 * HOUR), "ms",
            "How old a connection may get before it is replaced, which is how load reaches a new PostgreSQL.",
            older ["DB_POOL_RECYCLE"];
        pool_verify: bool = text("true"), Kind::Bool, "bool",
            "Whether a connection that was idle for a second is tested before use: one round trip more, and no call fails on one that died meanwhile.";
        read_lanes: usize = n(2), number(1, 64), "connections",
            "How many connections, beside the pool, carry batched point reads.";
        write_lanes: usize = n(2), number(1, 64), "connections",
            "How many connections, beside the pool, carry batched writes.";
        admin_pool_size: usize = n(2), number(1, 64), "connections",
            "How many connections are kept for health and administration, so that load cannot starve them.";
    }

    Blobs {
        blob_store_url: Option<BlobUrl> = derived("file://<data_dir>/blobs beside the embedded PostgreSQL, else unset"),
            Kind::BlobUrl, "URL",
            "Where the bytes of blobs are; unset leaves BlobService off; memory: forgets them when the server ends.",
            older ["S3_BUCKET_NAME"];
        blob_key_file: Option<PathBuf> = derived("unset: new blobs are stored as they are"), Kind::Path, "path",
            "The file of the keys that wrap each blob's own; with it new blobs are encrypted, and losing it loses them.";
        blob_key: Option<KeyRing> = derived("unset: new blobs are stored as they are"), Kind::KeyRing, "id:base64",
            "The same keys themselves, where no file can be kept; the first wraps, all unwrap.";
        s3_endpoint: Option<String> = derived("AWS's own, for the region"), Kind::Endpoint, "URL",
            "The address of a store that speaks S3; http:// sends blobs and their names unencrypted.",
            older ["S3_ENDPOINT_URL", "S3_ENDPOINT"];
        s3_public_endpoint: Option<String> = derived("s3_endpoint"), Kind::Endpoint, "URL",
            "The address that signed URLs name, where whoever uses them reaches the store at another one than this server.";
        s3_region: String = text("us-east-1"), Kind::Text, "name",
            "The region that requests to S3 are signed for.",
            older ["AWS_REGION"];
        s3_access_key_id: Option<Secret> = derived("that of the machine's role"), Kind::Secret, "text",
            "Who asks S3; needs s3_secret_access_key.",
            older ["AWS_ACCESS_KEY_ID", "S3_ACCESS_KEY"];
        s3_secret_access_key: Option<Secret> = derived("that of the machine's role"), Kind::Secret, "text",
            "Signs requests to S3.",
            older ["AWS_SECRET_ACCESS_KEY", "S3_SECRET_KEY"];
        s3_path_style: bool = derived("true with s3_endpoint, else false"), Kind::Bool, "bool",
            "Whether the bucket stands in the path of a request to S3, not in the host's name.";
        gcs_credentials: Option<PathBuf> = derived("those of the machine"), Kind::Path, "path",
            "The service account's JSON file for gs://; needs a build with the feature gcs.";
        gcs_endpoint: Option<String> = derived("Google's own"), Kind::Endpoint, "URL",
            "Another address of Cloud Storage, such as a private one; there are no signed URLs with it.";
        azure_account: Option<String> = derived("unset"), Kind::Text, "name",
            "The storage account of az://; needs a build with the feature azure.";
        azure_access_key: Option<Secret> = derived("that of the machine's identity"), Kind::Secret, "base64",
            "The key of azure_account; signed URLs need it.";
        azure_endpoint: Option<String> = derived("https://<azure_account>.blob.core.windows.net"), Kind::Endpoint, "URL",
            "Another address of azure_account, such as one of a sovereign cloud; Azurite's ends in the account.";
    }

    Limits {
        blob_max_bytes: u64 = n(5 * GIB), number(1, 5 * 1024 * GIB), "bytes",
            "The largest blob; a larger one is refused as soon as that is seen.";
        blob_inline_max_bytes: usize = n(16 * KIB), number(0, 256 * KIB), "bytes",
            "Blobs up to this size lie in the database and cost one transaction; 0 brings all to the store.";
        blob_chunk_max_bytes: usize = n(MIB), number(KIB, MIB), "bytes",
            "The most bytes of a blob in one message, either way.";
        blob_in_flight_bytes: usize = n(64 * MIB), number(8 * MIB, 1024 * GIB), "bytes",
            "How many bytes of blobs are in memory at once, whatever the number of streams; more streams wait.";
        blob_part_bytes: usize = n(8 * MIB), number(5 * MIB, 512 * MIB), "bytes",
            "A longer blob goes to the store in parts of this size, on a local disk of 2 MiB; stores take at most 10,000 parts.";
        blob_put_concurrency: usize = n(2), number(1, 64), "parts",
            "How many parts of one blob go to the store at once; each takes its size of blob_in_flight_bytes.";
        blob_idle_timeout_ms: u64 = n(30 * SECOND), number(1, HOUR), "ms",
            "How long a caller may neither send nor take a chunk of a blob before its stream is cut.";
        blob_request_timeout_ms: u64 = n(30 * SECOND), number(1, HOUR), "ms",
            "How long one request to the store of blobs may take, such as one part; a download may take longer, but not be silent for so long.";
        blob_uploads_max: u64 = n(1000), number(1, 1_000_000), "uploads",
            "How many uploads of one tenant may be under way by CreateUpload; another one gets RESOURCE_EXHAUSTED.";
        blob_signed_part_max_bytes: u64 = n(512 * MIB), number(5 * MIB, 5 * GIB), "bytes",
            "The largest part of an upload that goes straight to the store by signed URLs.";
        blob_upload_keep_ms: u64 = n(24 * HOUR), number(100, 720 * HOUR), "ms",
            "How long an upload may take, and so how long its bytes may stay in the store after a crash.";
        blob_reap_interval_ms: u64 = n(60 * SECOND), number(0, 24 * HOUR), "ms",
            "How often the server removes bytes that crashes and deletions left in the store; 0 never.";
        blob_scrub_period_ms: u64 = n(720 * HOUR), number(0, 87_600 * HOUR), "ms",
            "How long until stored bytes are read again to see whether they are still right; 0 never.";
        blob_scrub_per_second_bytes: u64 = n(8 * MIB), number(KIB, 1024 * GIB), "bytes",
            "How many bytes each server reads in a second for that.";
        blob_probe_interval_ms: u64 = n(5 * SECOND), number(10, HOUR), "ms",
            "How often the server looks whether the store of blobs answers, for the health of BlobService.";
        message_in_max_bytes: usize = n(4 * MIB), number(64 * KIB, 256 * MIB), "bytes",
            "The largest request of a service without Batch methods; a larger one gets RESOURCE_EXHAUSTED.";
        batch_message_in_max_bytes: usize = n(16 * MIB), number(64 * KIB, 256 * MIB), "bytes",
            "The largest request of a service that has Batch methods; each one in flight may take that much memory.";
        message_out_max_bytes: usize = n(16 * MIB), number(64 * KIB, 256 * MIB), "bytes",
            "The largest answer; a longer page is refused and must be asked for in smaller pieces.";
        page_size_default: u32 = n(50), number(1, 10_000), "rows",
            "How many rows a list answers when the caller does not say.";
        page_size_max: u32 = n(1000), number(1, 10_000), "rows",
            "The most rows of one page; a larger page_size is lowered to it.";
        batch_max: usize = n(1000), number(1, 10_000), "items",
            "The most items of one Batch call; they are one transaction.";
        deadline_default_ms: u64 = n(30 * SECOND), number(1, HOUR), "ms",
            "How long a call without a deadline may take.";
        deadline_max_ms: u64 = n(60 * SECOND), number(1, HOUR), "ms",
            "The longest deadline of a unary call; a longer one is lowered to it.";
        stream_deadline_max_ms: u64 = n(HOUR), number(SECOND, 24 * HOUR), "ms",
            "How long a stream may take, if its caller does not ask for less.";
        export_streams_max: usize = n(8), number(1, 10_000), "streams",
            "How many exports of the audit log run at once; more are answered RESOURCE_EXHAUSTED at once.";
        audit_keep_min_days: u64 = n(183), number(1, 36_500), "days",
            "How old an audit entry must be before it can be archived; laws may ask for more (EU AI Act: six months).";
        stream_idle_timeout_ms: u64 = n(60 * SECOND), number(1, HOUR), "ms",
            "How long a caller may leave a stream of writes silent before it gets DEADLINE_EXCEEDED.";
        statement_timeout_ms: u64 = n(30 * SECOND), number(1, HOUR), "ms",
            "How long one SQL statement may run before PostgreSQL cancels it.";
        requests_in_flight_max: usize = n(4096), number(1, 1_000_000), "requests",
            "How many calls run at once; more are answered RESOURCE_EXHAUSTED at once.";
        streams_per_connection_max: u32 = n(100), number(1, 1_000_000), "streams",
            "How many calls run at once on one client connection; the client queues more by itself.";
        connections_max: usize = n(1024), number(1, 1_000_000), "connections",
            "How many client connections are open at once; further ones are not accepted.";
        metadata_header_max_bytes: u32 = n(16 * KIB), number(KIB, MIB), "bytes",
            "The most metadata of one call, names and values together.";
        keepalive_interval_ms: u64 = n(30 * SECOND), number(SECOND, 24 * HOUR), "ms",
            "How often an idle client connection is pinged.";
        keepalive_timeout_ms: u64 = n(20 * SECOND), number(SECOND, HOUR), "ms",
            "How long a client may leave a ping unanswered before its connection is closed.";
        write_queue_max_per_tenant: usize = n(1024), number(1, 1_000_000), "requests",
            "How many writes of one tenant may wait; more are answered RESOURCE_EXHAUSTED.";
        write_queue_max_bytes: usize = n(128 * MIB), number(MIB, 64 * 1024 * MIB), "bytes",
            "How many bytes of writes may wait, a quarter of them of one tenant; more get RESOURCE_EXHAUSTED.";
        write_batch_max_requests: usize = n(256), number(1, 10_000), "requests",
            "How many waiting writes of a tenant share one transaction.";
        write_batch_max_bytes: usize = n(4 * MIB), number(64 * KIB, 256 * MIB), "bytes",
            "How many bytes of writes share one transaction; a larger write goes alone.";
        read_batch_max: usize = n(256), number(1, 10_000), "requests",
            "How many waiting point reads of a tenant share one statement.";
        retry_attempts_max: u32 = n(3), number(1, 10), "attempts",
            "How often an operation is tried on PostgreSQL, the first time included; 1 turns retry off.";
        retry_base_ms: u64 = n(25), number(1, 60 * SECOND), "ms",
            "The longest pause before the first retry; it doubles with each further one.";
        retry_max_ms: u64 = n(SECOND), number(1, 60 * SECOND), "ms",
            "The longest pause before any retry.";
        retry_budget_percent: u32 = n(10), number(0, 100), "percent",
            "How many retries there may be per hundred operations, so that retries cannot feed an outage.";
        request_id_retention_ms: u64 = n(24 * HOUR), number(60 * SECOND, 720 * HOUR), "ms",
            "How long a request_id is remembered; a write repeated later runs again.";
        page_token_lifetime_ms: u64 = n(24 * HOUR), number(60 * SECOND, 720 * HOUR), "ms",
            "How long a page token works.";
        index_build_memory_bytes: u64 = n(512 * MIB), number(MIB, 1024 * 1024 * MIB), "bytes",
            "How much memory PostgreSQL may use to build a vector index; one that does not fit in builds far slower.";
        index_build_workers: u32 = n(2), number(0, 64), "processes",
            "How many more processes of PostgreSQL help to build an HNSW index; 0 leaves it to one.";
        index_builds_max: u32 = n(2), number(1, 8), "builds",
            "How many vector indexes are built side by side in the whole deployment; each takes its own memory and processes.";
        index_upkeep_interval_ms: u64 = n(SECOND), number(10, HOUR), "ms",
            "How often the server looks for new vectors to index and for indexes to build.";
        index_probe_interval_ms: u64 = n(HOUR), number(0, 720 * HOUR), "ms",
            "How often each vector index is compared with exact searches; 0 never.";
        sync_check_period_ms: u64 = n(24 * HOUR), number(0, 87_600 * HOUR), "ms",
            "How long until a sample of each tenant's vectors is held against the record again; 0 never.";
        credential_cache_ms: u64 = n(5 * SECOND), number(0, HOUR), "ms",
            "How long a verified token is trusted unseen, so how long a revoked one may still work.";
        drain_delay_ms: u64 = n(5 * SECOND), number(0, HOUR), "ms",
            "How long a stopping server reports NOT_SERVING and still serves, so that load balancers move on.";
        drain_timeout_ms: u64 = n(20 * SECOND), number(0, HOUR), "ms",
            "How long calls may then take to finish; Kubernetes kills 30 s after asking to stop by default.";
    }
}
