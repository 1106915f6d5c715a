//! A server of S3 that blobs are measured on, if the environment names one.

use crate::{Context, Result};
use futures_util::TryStreamExt as _;
use http::Method;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::signer::Signer as _;
use object_store::{ClientOptions, ObjectStore as _, ObjectStoreExt as _};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Names the server: `http://key:secret@host:port`, as scripts/start-rgw.sh prints it.
const VARIABLE: &str = "CASEBOOK_BENCH_S3_URL";
const REGION: &str = "us-east-1";

/// A bucket of one run's own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bucket {
    endpoint: String,
    access_key: String,
    secret_key: String,
    name: String,
}

/// Whether a server is named; says what that means where none is.
pub fn is_named() -> bool {
    let is_named = std::env::var_os(VARIABLE).is_some();
    if !is_named {
        println!(
            "The scenarios of blobs on S3 are left out: {VARIABLE} names no server (http://key:secret@host:port). \
             `make bench-blobs-s3` starts one."
        );
    }
    is_named
}

impl Bucket {
    /// Makes one on the server that is named.
    pub async fn make() -> Result<Self> {
        let url = std::env::var(VARIABLE)?;
        let known = url.strip_prefix("http://").and_then(|rest| {
            let (credentials, host) = rest.trim_end_matches('/').split_once('@')?;
            let (access_key, secret_key) = credentials.split_once(':')?;
            Some((access_key.to_owned(), secret_key.to_owned(), format!("http://{host}")))
        });
        let (access_key, secret_key, endpoint) =
            known.with(|| format!("{VARIABLE} is not http://key:secret@host:port"))?;
        let mut unique = [0; 8];
        getrandom::fill(&mut unique).map_err(|error| error.to_string())?;
        let name = format!("casebook-bench-{:016x}", u64::from_le_bytes(unique));
        let bucket = Self { endpoint, access_key, secret_key, name };
        bucket.ask(Method::PUT).await.with(|| "no bucket can be made")?;
        Ok(bucket)
    }

    pub fn client(&self) -> Result<AmazonS3> {
        // A client of HTTP wants a provider of cryptography even where no TLS is spoken. An error is that there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = AmazonS3Builder::new()
            .with_endpoint(&self.endpoint)
            .with_region(REGION)
            .with_bucket_name(&self.name)
            .with_access_key_id(&self.access_key)
            .with_secret_access_key(&self.secret_key)
            .with_client_options(ClientOptions::new().with_allow_http(true));
        Ok(client.build()?)
    }

    /// The flags by which a server keeps its blobs there.
    pub fn flags(&self) -> Vec<String> {
        let flags = [
            ("--blob-store-url", format!("s3://{}/blobs", self.name)),
            ("--s3-endpoint", self.endpoint.clone()),
            ("--s3-region", REGION.to_owned()),
            ("--s3-access-key-id", self.access_key.clone()),
            ("--s3-secret-access-key", self.secret_key.clone()),
        ];
        flags.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }

    /// Removes it with all that is in it.
    pub async fn remove(&self) -> Result<()> {
        let store = self.client()?;
        let found: Vec<_> = store.list(None).try_collect().await?;
        for object in found {
            store.delete(&object.location).await?;
        }
        self.ask(Method::DELETE).await
    }

    /// The trait knows no buckets; a signed request to the bucket's own path does.
    async fn ask(&self, method: Method) -> Result<()> {
        let (store, root) = (self.client()?, Path::default());
        let url = store.signed_url(method.clone(), &root, Duration::from_secs(60)).await?;
        let request = reqwest::Client::new().request(method, url);
        let answer = request.header(http::header::CONTENT_LENGTH, 0).send().await?;
        answer.error_for_status()?;
        Ok(())
    }
}
