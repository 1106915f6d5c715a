//! Opens the store of blobs that is configured.

use super::{BlobStore, Inner, Ops};
use crate::store::backend::RetrySettings;
use crate::telemetry::Metrics;
use crate::{Error, Result};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tower::retry::budget::TpsBudget;

/// How a store of blobs is reached.
#[derive(Clone, Debug)]
pub struct BlobStoreSettings {
    pub location: Location,
    /// How long one request may take.
    pub timeout: Duration,
    pub retry: RetrySettings,
}

/// Where it is.
#[derive(Clone, Debug)]
pub enum Location {
    Memory,
    /// A folder, which is made if need be.
    Local(PathBuf),
    S3(S3),
    /// A bucket, and a service account's file.
    Gcs {
        bucket: String,
        prefix: String,
        credentials: Option<PathBuf>,
    },
    /// A container of an account, and its key.
    Azure {
        container: String,
        prefix: String,
        account: Option<String>,
        access_key: Option<Hidden>,
    },
}

#[derive(Clone, Debug)]
pub struct S3 {
    pub bucket: String,
    pub prefix: String,
    /// With its scheme; none for AWS's own.
    pub endpoint: Option<String>,
    pub region: String,
    /// Id and secret; else those of the machine's role.
    pub keys: Option<(Hidden, Hidden)>,
    pub is_path_style: bool,
}

/// Text that `Debug` does not show.
#[derive(Clone)]
pub struct Hidden(pub String);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Connecting to a store that is there takes no longer.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// A read of a store in the same machine, and of one that is further away.
const PIECE_NEAR_BYTES: u64 = 1 << 20;
const PIECE_FAR_BYTES: u64 = 4 << 20;
/// Retries per second that no success has paid for: enough for a glitch, too few to feed an outage.
const RETRY_FLOOR: u32 = 1;

/// A store as it is opened.
struct Opened {
    store: Arc<dyn ObjectStore>,
    multipart: Option<Arc<dyn MultipartStore>>,
    s3: Option<Arc<AmazonS3>>,
    signer: Option<Arc<dyn Signer>>,
    root: Option<PathBuf>,
    prefix: String,
    backend: &'static str,
    piece_bytes: u64,
}

impl Opened {
    fn remote<S: ObjectStore + MultipartStore>(
        store: Arc<S>,
        prefix: String,
        backend: &'static str,
    ) -> Self {
        let multipart: Arc<dyn MultipartStore> = Arc::clone(&store) as _;
        let (s3, signer, root, piece_bytes) = (None, None, None, PIECE_FAR_BYTES);
        Self { store, multipart: Some(multipart), s3, signer, root, prefix, backend, piece_bytes }
    }

    /// A store that can sign what a URL says of the answer, too.
    fn signing<S: ObjectStore + MultipartStore + Signer>(
        store: Arc<S>,
        prefix: String,
        backend: &'static str,
    ) -> Self {
        let signer: Arc<dyn Signer> = Arc::clone(&store) as _;
        Self { signer: Some(signer), ..Self::remote(store, prefix, backend) }
    }
}

impl BlobStore {
    /// Opens the store; asks it nothing yet.
    pub fn open(settings: BlobStoreSettings, metrics: &Metrics) -> Result<Self> {
        let BlobStoreSettings { location, timeout, retry } = settings;
        let wrong = |error: object_store::Error| {
            Error::invalid("blob_store_url", format!("cannot be opened: {error}"))
        };
        let opened = match location {
            Location::Memory => Opened {
                piece_bytes: PIECE_NEAR_BYTES,
                ..Opened::remote(Arc::new(InMemory::new()), String::new(), "memory")
            },
            Location::Local(folder) => {
                let cannot = |error: std::io::Error| {
                    let text = format!("cannot be used: {}: {error}", folder.display());
                    Error::invalid("blob_store_url", text)
                };
                make_private(&folder).map_err(cannot)?;
                let root = folder.canonicalize().map_err(cannot)?;
                // Without fsync what was acknowledged could be gone after a power cut.
                let store =
                    LocalFileSystem::new_with_prefix(&root).map_err(wrong)?.with_fsync(true);
                Opened {
                    store: Arc::new(store),
                    multipart: None,
                    s3: None,
                    signer: None,
                    root: Some(root),
                    prefix: String::new(),
                    backend: "local",
                    piece_bytes: PIECE_NEAR_BYTES,
                }
            }
            Location::S3(s3) => open_s3(s3, timeout).map_err(wrong)?,
            Location::Gcs { bucket, prefix, credentials } => {
                open_gcs(bucket, prefix, credentials, timeout)?
            }
            Location::Azure { container, prefix, account, access_key } => {
                open_azure(container, prefix, account, access_key, timeout)?
            }
        };
        let Opened { store, multipart, s3, signer, root, prefix, backend, piece_bytes } = opened;
        let ratio = retry.budget_percent as f32 / 100.0;
        Ok(Self(Arc::new(Inner {
            store,
            multipart,
            s3,
            signer,
            root,
            prefix: Path::parse(prefix)
                .map_err(|error| Error::invalid("blob_store_url", error.to_string()))?,
            backend,
            is_conditional: AtomicBool::new(true),
            timeout,
            retries: TpsBudget::new(Duration::from_secs(10), RETRY_FLOOR, ratio),
            retry,
            ops: Ops::new(metrics),
            piece_bytes,
        })))
    }
}

/// A folder that only we can read.
fn make_private(folder: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// The library's own retries take minutes and know neither deadline nor budget: ours are around it.
fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() }
}

fn client(timeout: Duration) -> ClientOptions {
    // One provider of cryptography for the whole program. If somebody was first, it is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    ClientOptions::new().with_timeout(timeout).with_connect_timeout(CONNECT_MAX.min(timeout))
}

fn open_s3(s3: S3, timeout: Duration) -> object_store::Result<Opened> {
    let S3 { bucket, prefix, endpoint, region, keys, is_path_style } = s3;
    let is_http = endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&bucket)
        .with_region(region)
        .with_retry(no_retries())
        .with_client_options(client(timeout).with_allow_http(is_http))
        .with_virtual_hosted_style_request(!is_path_style);
    if let Some(endpoint) = endpoint {
        let endpoint = endpoint.trim_end_matches('/');
        let endpoint = match endpoint.split_once("://") {
            // The library wants the bucket's host here.
            Some((scheme, host)) if !is_path_style => format!("{scheme}://{bucket}.{host}"),
            _ => endpoint.to_owned(),
        };
        builder = builder.with_endpoint(endpoint);
    }
    if let Some((Hidden(id), Hidden(secret))) = keys {
        builder = builder.with_access_key_id(id).with_secret_access_key(secret);
    }
    let store = Arc::new(builder.build()?);
    Ok(Opened { s3: Some(Arc::clone(&store)), ..Opened::signing(store, prefix, "s3") })
}

#[cfg(feature = "gcs")]
fn open_gcs(
    bucket: String,
    prefix: String,
    credentials: Option<PathBuf>,
    timeout: Duration,
) -> Result<Opened> {
    let mut builder = object_store::gcp::GoogleCloudStorageBuilder::new()
        .with_bucket_name(bucket)
        .with_retry(no_retries())
        .with_client_options(client(timeout));
    if let Some(path) = credentials {
        builder = builder.with_service_account_path(path.to_string_lossy());
    }
    let store = builder.build();
    let store = store.map_err(|error| Error::invalid("blob_store_url", error.to_string()))?;
    Ok(Opened::signing(Arc::new(store), prefix, "gcs"))
}

#[cfg(not(feature = "gcs"))]
fn open_gcs(_: String, _: String, _: Option<PathBuf>, _: Duration) -> Result<Opened> {
    Err(lacks("gcs"))
}

#[cfg(feature = "azure")]
fn open_azure(
    container: String,
    prefix: String,
    account: Option<String>,
    access_key: Option<Hidden>,
    timeout: Duration,
) -> Result<Opened> {
    let mut builder = object_store::azure::MicrosoftAzureBuilder::new()
        .with_container_name(container)
        .with_retry(no_retries())
        .with_client_options(client(timeout));
    if let Some(account) = account {
        builder = builder.with_account(account);
    }
    if let Some(Hidden(key)) = access_key {
        builder = builder.with_access_key(key);
    }
    let store = builder.build();
    let store = store.map_err(|error| Error::invalid("blob_store_url", error.to_string()))?;
    Ok(Opened::remote(Arc::new(store), prefix, "azure"))
}

#[cfg(not(feature = "azure"))]
fn open_azure(
    _: String,
    _: String,
    _: Option<String>,
    _: Option<Hidden>,
    _: Duration,
) -> Result<Opened> {
    Err(lacks("azure"))
}

#[cfg(not(all(feature = "gcs", feature = "azure")))]
fn lacks(feature: &str) -> Error {
    let text = format!("needs a build with the cargo feature {feature}");
    Error::invalid("blob_store_url", text)
}
