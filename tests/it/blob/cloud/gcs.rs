//! Google Cloud Storage, as far as a server of S3 speaks it: Google's XML API is that of S3, but for credentials and for how a
//! PUT says that nothing may be there. What no server here does is Google's own: its tokens and its signed URLs.

use super::super::*;
use super::far::*;
use crate::blob::killed::Killed;
use crate::blob::s3::crash::{Doing, kills_leave_nothing};
use crate::blob::url::ask;
use crate::s3::conformance::{self, OTHER, Verdict};
use crate::s3::proxy::{Fault, Proxy, When};
use crate::s3::{Brand, Server, bucket, server};
use casebook::store::blob_store::open::{Gcs, Location};
use object_store::aws::AmazonS3;
use object_store::gcp::GoogleCloudStorageBuilder;

/// A service account that asks for no token.
const ACCOUNT: &str =
    r#"{"private_key": "", "private_key_id": "", "client_email": "", "disable_oauth": true}"#;

/// What Google calls it when nothing may be there, in the words of S3; and credentials of a kind that moto takes, unseen.
fn as_s3(head: &str) -> String {
    let translated = head.split("\r\n").filter_map(|line| {
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        match name.as_str() {
            "x-goog-if-generation-match" => {
                assert!(line.ends_with(": 0"), "{line}");
                Some("If-None-Match: *")
            }
            "authorization" => None,
            _ => Some(line),
        }
    });
    let head = translated.collect::<Vec<_>>().join("\r\n");
    // In a bucket's name moto knows no letters but as they are.
    let (request, rest) = head.split_once("\r\n").unwrap();
    let credentials = "Authorization: AWS4-HMAC-SHA256 \
                       Credential=test/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
    format!("{}\r\n{credentials}\r\n{rest}", request.replace("%2D", "-"))
}

/// The moto of the run: other servers of S3 ask for credentials of S3.
async fn moto() -> Option<&'static Server> {
    let server = server().await?;
    if server.brand != Brand::Moto {
        eprintln!("left out: only moto takes requests that are not signed as those of S3 are");
        return None;
    }
    Some(server)
}

fn account() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), ACCOUNT).unwrap();
    file
}

/// A bucket behind a proxy that translates, how it is reached, and that bucket as S3 has it.
struct Translated {
    proxy: Proxy,
    url: String,
    account: tempfile::NamedTempFile,
    store: AmazonS3,
}

impl Translated {
    async fn new(prefix: &str) -> Option<Self> {
        let server = moto().await?;
        let (name, store) = bucket(server).await;
        let proxy = Proxy::translating(&server.endpoint, as_s3).await;
        let url = format!("gs://{name}/{prefix}");
        Some(Self { proxy, url, account: account(), store })
    }

    fn reached(&self) -> Vec<(&'static str, &str)> {
        vec![
            ("blob_store_url", &self.url),
            ("gcs_endpoint", &self.proxy.endpoint),
            ("gcs_credentials", self.account.path().to_str().unwrap()),
        ]
    }
}

#[tokio::test]
async fn a_translated_moto_honours() {
    let Some(there) = Translated::new("").await else { return };
    let store = GoogleCloudStorageBuilder::new()
        .with_url(&there.url)
        .with_base_url(&there.proxy.endpoint)
        .with_service_account_key(ACCOUNT)
        .with_client_options(object_store::ClientOptions::new().with_allow_http(true))
        .build()
        .unwrap();
    let except: &[(&str, Verdict)] = &[
        // It looks and then writes, without a lock.
        ("create_has_one_winner_of_many", Verdict::Varies),
        ("multipart_keeps_what_is_there", OTHER),
        // Nobody here asks for these, so nothing translates them.
        ("attributes_are_kept", OTHER),
        ("copy_create_refuses_a_second", OTHER),
        ("copy_overwrites", OTHER),
        // It gives out no generations.
        ("update_needs_the_right_etag", OTHER),
    ];
    conformance::compare("GCS by moto", &conformance::probe(&store).await, except);
}

async fn the_suite_passes(is_encrypted: bool) {
    let Some(there) = Translated::new(PREFIX).await else { return };
    let settings: &[_] = if is_encrypted { &[("blob_key", seal::OLD)] } else { &[] };
    let world = world(&there.reached(), settings).await;
    suite::run_far(&world, (&there.store, PREFIX, "gcs"), is_encrypted, |_| true).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_passes_on_gcs() {
    the_suite_passes(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_passes_encrypted_on_gcs() {
    the_suite_passes(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_go_on_on_gcs_and_nobody_gets_a_url_of_another_endpoint() {
    let Some(there) = Translated::new("").await else { return };
    let world = world(&there.reached(), &[FAST]).await;
    let me = world.anonymous();
    uploads_go_on_here(&world, &there.store, false).await;
    nobody_is_let_put(&me, "gcs").await;
    upload(&me, b"mine").await;
    let status = fails!(
        me.blobs().create_download_url(ask(b"mine", None)),
        FailedPrecondition,
        "NOT_SIGNABLE"
    );
    assert!(status.message().contains("gcs_endpoint"), "{status:?}");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_there_whatever_happened() {
    let Some(there) = Translated::new("").await else { return };
    let world = world(&there.reached(), PATIENT).await;
    let asked = [
        ("PUT", "t%2F", 1000),
        ("POST", "?uploads", 9 * MIB),
        ("PUT", "partNumber=", 17 * MIB),
        ("POST", "?uploadId", 9 * MIB),
    ];
    what_is_acknowledged_is_there(&world, &there.proxy, &there.store, &asked).await;
    // moto says again what it said. Google has forgotten an upload that is complete, and has no other words for that.
    there.proxy.on("POST", "?uploadId", When::Every, Fault::StatusAfter(404));
    let given = bytes(990, 9 * MIB);
    upload(&world.anonymous(), &given).await;
    there.proxy.heal();
    let (_, found) = download(&world.anonymous(), whole(digest(&given))).await.unwrap();
    assert!(found == given);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_while_gcs_is_asked_leaves_nothing_unaccounted() {
    use Doing::{Deleting, Large, Reaping, Small};
    let Some(there) = Translated::new("").await else { return };
    let world = Killed::far(&there.reached()).await;
    let requests = [
        (Small, "PUT", "t%2F"),
        (Large, "POST", "?uploads"),
        (Large, "PUT", "partNumber=1"),
        (Large, "POST", "?uploadId"),
        (Deleting, "DELETE", "t%2F"),
        (Reaping, "DELETE", "t%2F"),
    ];
    kills_leave_nothing(&world, &there.proxy, &there.store, &requests, "?uploadId").await;
    // What has an upload's name is aborted: only one that was begun when its server died may be left.
    let (bucket, endpoint) = (there.url.trim_start_matches("gs://"), &there.proxy.endpoint);
    let url = format!("{endpoint}/{}?uploads", bucket.trim_end_matches('/'));
    let listed = reqwest::get(url).await.unwrap().text().await.unwrap();
    assert!(listed.contains("ListMultipartUploadsResult"), "{listed}");
    assert_eq!(listed.matches("<UploadId>").count(), 1, "{listed}");
    world.close().await;
}

/// Without its translation the store knows nothing of Google's condition: what the first look is for.
#[tokio::test]
async fn a_store_that_overlooks_the_condition_is_found_out() {
    let Some(there) = Translated::new("").await else { return };
    let bucket = there.url.trim_start_matches("gs://").trim_end_matches('/').to_owned();
    let server = moto().await.unwrap();
    let overlooking = Proxy::translating(&server.endpoint, |head| {
        as_s3(head).replace("If-None-Match: *\r\n", "")
    });
    let overlooking = overlooking.await;
    for (endpoint, is_conditional) in
        [(&there.proxy.endpoint, true), (&overlooking.endpoint, false)]
    {
        let gcs = Gcs {
            bucket: bucket.clone(),
            prefix: String::new(),
            endpoint: Some(endpoint.clone()),
            credentials: Some(there.account.path().to_owned()),
        };
        let found = refuses_to_overwrite(Location::Gcs(gcs)).await;
        assert_eq!(found, is_conditional, "{endpoint}");
    }
}
