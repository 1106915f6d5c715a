//! A server of S3 for the tests that need one, and what it does that ours may rely on.
//!
//! The run has one: the one that CASEBOOK_TEST_S3_URL names (`http://key:secret@host:port`, as scripts/start-rgw.sh prints
//! it), or a private moto, which scripts/start-moto.sh starts and which ends with the process. Without either the tests
//! fail; who cannot have one says so by CASEBOOK_TEST_S3_URL=none.

pub mod conformance;
mod faults;
pub mod proxy;

use object_store::aws::{AmazonS3, AmazonS3Builder, S3CopyIfNotExists};
use object_store::path::Path;
use object_store::signer::{Method, Signer as _};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::sync::OnceCell;
use uuid::Uuid;

pub const REGION: &str = "us-east-1";

/// Which program it is: they do not honour the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Brand {
    Moto,
    Ceph,
    Other,
}

/// The S3 of the run.
pub struct Server {
    /// `http://host:port`.
    pub endpoint: String,
    pub access_key: String,
    pub secret_key: String,
    pub brand: Brand,
    /// Its input is a pipe from this process, so it ends when this does, however that ends.
    _child: Option<Child>,
}

/// The S3 of the run, or `None` if the run is to do without; fails if there can be none.
pub async fn server() -> Option<&'static Server> {
    static SERVER: OnceCell<Option<Server>> = OnceCell::const_new();
    let server = SERVER.get_or_init(async || {
        // Building a client of HTTP asks for a provider of cryptography, even where no TLS is spoken. An error is that
        // there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (url, child) = match std::env::var("CASEBOOK_TEST_S3_URL") {
            Ok(none) if none == "none" => return None,
            Ok(url) => (url, None),
            Err(_) => {
                let started = tokio::task::spawn_blocking(start_moto).await;
                let (url, child) = started.expect("the start of moto did not panic");
                (url, Some(child))
            }
        };
        let known = url.strip_prefix("http://").and_then(|rest| {
            let (credentials, host) = rest.trim_end_matches('/').split_once('@')?;
            let (access_key, secret_key) = credentials.split_once(':')?;
            Some((access_key.to_owned(), secret_key.to_owned(), format!("http://{host}")))
        });
        let (access_key, secret_key, endpoint) =
            known.expect("CASEBOOK_TEST_S3_URL is http://key:secret@host:port");
        let brand = brand(&endpoint).await;
        Some(Server { endpoint, access_key, secret_key, brand, _child: child })
    });
    let server = server.await.as_ref();
    if server.is_none() {
        eprintln!("left out: CASEBOOK_TEST_S3_URL is none");
    }
    server
}

fn start_moto() -> (String, Child) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/start-moto.sh");
    let mut command = Command::new(script);
    command.arg("--until-eof").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the script starts");
    let mut url = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).expect("its output");
    assert!(url.starts_with("http://"), "moto did not start; what it says stands above");
    (url.trim().to_owned(), child)
}

async fn brand(endpoint: &str) -> Brand {
    let answer = reqwest::get(endpoint).await.expect("the server of S3 answers");
    let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
    if header("server").is_some_and(|server| server.starts_with("Werkzeug")) {
        Brand::Moto
    } else if header("x-amz-request-id").is_some_and(|id| id.starts_with("tx0")) {
        Brand::Ceph
    } else {
        Brand::Other
    }
}

/// How a test's client behaves: quick to retry, and quick to give up.
pub fn builder(server: &Server, endpoint: &str, bucket: &str) -> AmazonS3Builder {
    let ms = Duration::from_millis;
    AmazonS3Builder::new()
        .with_endpoint(endpoint)
        .with_allow_http(true)
        .with_region(REGION)
        .with_bucket_name(bucket)
        .with_access_key_id(&server.access_key)
        .with_secret_access_key(&server.secret_key)
        .with_copy_if_not_exists(S3CopyIfNotExists::Multipart)
        .with_client_options(ClientOptions::new().with_allow_http(true).with_timeout(ms(20_000)))
        .with_retry(RetryConfig {
            backoff: BackoffConfig { init_backoff: ms(1), max_backoff: ms(10), base: 2.0 },
            max_retries: 3,
            retry_timeout: ms(30_000),
        })
}

/// A bucket of one test's own, and a client of it.
pub async fn bucket(server: &Server) -> (String, AmazonS3) {
    let name = format!("casebook-test-{}", Uuid::new_v4().simple());
    let store = builder(server, &server.endpoint, &name).build().expect("a client of S3");
    // The trait makes no buckets; a signed request to the bucket's own path does.
    let root = Path::default();
    let url = store.signed_url(Method::PUT, &root, Duration::from_secs(60)).await;
    let url = url.expect("a signed URL");
    let request = reqwest::Client::new().put(url).header(http::header::CONTENT_LENGTH, 0);
    let answer = request.send().await.expect("the server of S3 answers");
    let status = answer.status();
    assert!(status.is_success(), "no bucket: {status} {:?}", answer.text().await);
    (name, store)
}
