//! Opens the store of blobs that is configured.

use super::{BlobStore, Inner, Ops, sas};
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
    Gcs(Gcs),
    Azure(Azure),
}

#[derive(Clone, Debug)]
pub struct S3 {
    pub bucket: String,
    pub prefix: String,
    /// With its scheme; none for AWS's own.
    pub endpoint: Option<String>,
    /// That of signed URLs, if it is another one.
    pub public_endpoint: Option<String>,
    pub region: String,
    /// Id and secret; else those of the machine's role.
    pub keys: Option<(Hidden, Hidden)>,
    pub is_path_style: bool,
}

/// A bucket of Google Cloud Storage.
#[derive(Clone, Debug)]
pub struct Gcs {
    pub bucket: String,
    pub prefix: String,
    /// With its scheme; none for Google's own.
    pub endpoint: Option<String>,
    /// A service account's file; else those of the machine.
    pub credentials: Option<PathBuf>,
}

/// A container of an account at Azure.
#[derive(Clone, Debug)]
pub struct Azure {
    pub container: String,
    pub prefix: String,
    /// With its scheme, and with the account as its path where the host does not name it; none for the public cloud's.
    pub endpoint: Option<String>,
    /// Refused without one.
    pub account: Option<String>,
    /// In base64; else it goes by the machine's identity.
    pub access_key: Option<Hidden>,
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
/// Retries per second that no success has paid for: enough for a glitch, too few to feed an outage.
const RETRY_FLOOR: u32 = 1;

/// A store as it is opened.
struct Opened {
    store: Arc<dyn ObjectStore>,
    multipart: Option<Arc<dyn MultipartStore>>,
    s3: Option<Arc<AmazonS3>>,
    signer: Option<Arc<dyn Signer>>,
    sas: Option<sas::Key>,
    root: Option<PathBuf>,
    prefix: String,
    backend: &'static str,
    is_far: bool,
}

impl Opened {
    fn remote<S: ObjectStore + MultipartStore>(
        store: Arc<S>,
        prefix: String,
        backend: &'static str,
    ) -> Self {
        let multipart: Arc<dyn MultipartStore> = Arc::clone(&store) as _;
        Self {
            store,
            multipart: Some(multipart),
            s3: None,
            signer: None,
            sas: None,
            root: None,
            prefix,
            backend,
            is_far: true,
        }
    }
}

impl BlobStore {
    /// Opens the store; asks it nothing yet.
    pub fn open(settings: BlobStoreSettings, metrics: &Metrics) -> Result<Self> {
        let BlobStoreSettings { location, timeout, retry } = settings;
        let opened = match location {
            Location::Memory => Opened {
                is_far: false,
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
                    sas: None,
                    root: Some(root),
                    prefix: String::new(),
                    backend: "local",
                    is_far: false,
                }
            }
            Location::S3(s3) => open_s3(s3, timeout).map_err(wrong)?,
            Location::Gcs(gcs) => open_gcs(gcs, timeout)?,
            Location::Azure(azure) => open_azure(azure, timeout)?,
        };
        let Opened { store, multipart, s3, signer, sas, root, prefix, backend, is_far } = opened;
        let ratio = retry.budget_percent as f32 / 100.0;
        Ok(Self(Arc::new(Inner {
            store,
            multipart,
            s3,
            signer,
            sas,
            root,
            prefix: Path::parse(prefix)
                .map_err(|error| Error::invalid("blob_store_url", error.to_string()))?,
            backend,
            is_conditional: AtomicBool::new(true),
            timeout,
            retries: TpsBudget::new(Duration::from_secs(10), RETRY_FLOOR, ratio),
            retry,
            ops: Ops::new(metrics),
            is_far,
        })))
    }
}

fn wrong(error: object_store::Error) -> Error {
    Error::invalid("blob_store_url", format!("cannot be opened: {error}"))
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

/// A client of HTTP, which speaks it without TLS only where the endpoint says so. Time-outs are ours as well: the library's
/// would cut a long body that keeps coming.
fn client(timeout: Duration, endpoint: Option<&str>) -> ClientOptions {
    // One provider of cryptography for the whole program. If somebody was first, it is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(CONNECT_MAX.min(timeout))
        .with_allow_http(endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")))
}

fn open_s3(s3: S3, timeout: Duration) -> object_store::Result<Opened> {
    let store = s3_at(&s3, s3.endpoint.as_deref(), timeout)?;
    // What a signature says of the host must be what the caller asks.
    let signer = match &s3.public_endpoint {
        Some(public) => s3_at(&s3, Some(public), timeout)?,
        None => Arc::clone(&store),
    };
    let opened = Opened::remote(store, s3.prefix, "s3");
    Ok(Opened { s3: Some(Arc::clone(&signer)), signer: Some(signer), ..opened })
}

/// The bucket at an address of its store.
fn s3_at(
    s3: &S3,
    endpoint: Option<&str>,
    timeout: Duration,
) -> object_store::Result<Arc<AmazonS3>> {
    let S3 { bucket, prefix: _, endpoint: _, public_endpoint: _, region, keys, is_path_style } = s3;
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(region)
        .with_retry(no_retries())
        .with_client_options(client(timeout, endpoint))
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
    Ok(Arc::new(builder.build()?))
}

#[cfg(feature = "gcs")]
fn open_gcs(gcs: Gcs, timeout: Duration) -> Result<Opened> {
    let Gcs { bucket, prefix, endpoint, credentials } = gcs;
    let mut builder = object_store::gcp::GoogleCloudStorageBuilder::new()
        .with_bucket_name(bucket)
        .with_retry(no_retries())
        .with_client_options(client(timeout, endpoint.as_deref()));
    if let Some(path) = credentials {
        builder = builder.with_service_account_path(path.to_string_lossy());
    }
    if let Some(endpoint) = &endpoint {
        builder = builder.with_base_url(endpoint.trim_end_matches('/'));
    }
    let store = Arc::new(builder.build().map_err(wrong)?);
    // The library always signs for Google's own host.
    let signer = endpoint.is_none().then(|| Arc::clone(&store) as _);
    Ok(Opened { signer, ..Opened::remote(store, prefix, "gcs") })
}

#[cfg(not(feature = "gcs"))]
fn open_gcs(_: Gcs, _: Duration) -> Result<Opened> {
    Err(lacks("gcs"))
}

#[cfg(feature = "azure")]
fn open_azure(azure: Azure, timeout: Duration) -> Result<Opened> {
    let Azure { container, prefix, endpoint, account, access_key } = azure;
    let account = account.ok_or_else(|| Error::invalid("azure_account", "az:// needs it"))?;
    let mut builder = object_store::azure::MicrosoftAzureBuilder::new()
        .with_account(&account)
        .with_container_name(&container)
        .with_retry(no_retries())
        .with_client_options(client(timeout, endpoint.as_deref()));
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    let Some(Hidden(key)) = access_key else {
        // With the machine's identity the library signs, but not how the answer is to be saved.
        let store = Arc::new(builder.build().map_err(wrong)?);
        return Ok(Opened::remote(store, prefix, "azure"));
    };
    let sas = sas::Key::new(account, container, &key)
        .ok_or_else(|| Error::invalid("azure_access_key", "is not base64"))?;
    let store = Arc::new(builder.with_access_key(key).build().map_err(wrong)?);
    let signer: Arc<dyn Signer> = Arc::clone(&store) as _;
    Ok(Opened { sas: Some(sas), signer: Some(signer), ..Opened::remote(store, prefix, "azure") })
}

#[cfg(not(feature = "azure"))]
fn open_azure(_: Azure, _: Duration) -> Result<Opened> {
    Err(lacks("azure"))
}

#[cfg(not(all(feature = "gcs", feature = "azure")))]
fn lacks(feature: &str) -> Error {
    let text = format!("needs a build with the cargo feature {feature}");
    Error::invalid("blob_store_url", text)
}
