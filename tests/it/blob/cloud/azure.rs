//! Azure Blob Storage as Azurite speaks it, which checks every signature.
//!
//! The run has one: the one that CASEBOOK_TEST_AZURE_URL names (`http://account:key@host:port`), or a private one, which
//! scripts/start-azurite.sh starts and which ends with the process. Without either the tests fail; who cannot have one says
//! so by CASEBOOK_TEST_AZURE_URL=none.

use super::super::*;
use super::far::*;
use crate::blob::faults::bucket_is_consistent;
use crate::blob::killed::{Killed, until};
use crate::blob::s3::crash::{Doing, kills_leave_nothing};
use crate::blob::url::ask;
use crate::blob::verify::{id, looking, problems, reading, verify};
use crate::s3::conformance::{self, OTHER, Verdict};
use crate::s3::proxy::{Fault, Proxy, When};
use casebook::store::blob_store::open::{Azure, Hidden, Location};
use futures_util::TryStreamExt as _;
use object_store::azure::{
    AzureAccessKey, AzureAuthorizer, AzureCredential, MicrosoftAzure, MicrosoftAzureBuilder,
};
use object_store::client::{HttpRequest, HttpRequestBody};
use object_store::path::Path as Key;
use object_store::{ObjectStore as _, ObjectStoreExt as _};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::sync::OnceCell;
use uuid::Uuid;

struct Azurite {
    /// `http://host:port`; the account comes after it.
    endpoint: String,
    account: String,
    key: String,
    /// Its input is a pipe from this process, so it ends when this does, however that ends.
    _child: Option<Child>,
}

/// The Azurite of the run, or `None` if the run is to do without; fails if there can be none.
async fn azurite() -> Option<&'static Azurite> {
    static AZURITE: OnceCell<Option<Azurite>> = OnceCell::const_new();
    let found = AZURITE.get_or_init(async || {
        // An error is that there is a provider of cryptography.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (url, child) = match std::env::var("CASEBOOK_TEST_AZURE_URL") {
            Ok(none) if none == "none" => return None,
            Ok(url) => (url, None),
            Err(_) => {
                let (url, child) = tokio::task::spawn_blocking(start).await.unwrap();
                (url, Some(child))
            }
        };
        let (who, host) = url.strip_prefix("http://").unwrap().rsplit_once('@').unwrap();
        let (account, key) = who.split_once(':').unwrap();
        let endpoint = format!("http://{}", host.trim_end_matches('/'));
        Some(Azurite { endpoint, account: account.into(), key: key.into(), _child: child })
    });
    let found = found.await.as_ref();
    if found.is_none() {
        eprintln!("left out: CASEBOOK_TEST_AZURE_URL is none");
    }
    found
}

fn start() -> (String, Child) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/start-azurite.sh");
    let mut command = Command::new(script);
    command.arg("--until-eof").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the script starts");
    let mut url = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).expect("its output");
    assert!(url.starts_with("http://"), "Azurite did not start; what it says stands above");
    (url.trim().to_owned(), child)
}

/// A container of one test's own, and a client of it.
async fn container(azurite: &Azurite) -> (String, MicrosoftAzure) {
    let Azurite { endpoint, account, key, .. } = azurite;
    let name = format!("casebook-test-{}", Uuid::new_v4().simple());
    // The trait makes no containers; a request that is signed by the library does.
    let url = format!("{endpoint}/{account}/{name}?restype=container");
    let mut request = HttpRequest::new(HttpRequestBody::empty());
    *request.method_mut() = http::Method::PUT;
    *request.uri_mut() = url.parse().unwrap();
    let credential = AzureCredential::AccessKey(AzureAccessKey::try_new(key).unwrap());
    AzureAuthorizer::new(&credential, account).try_authorize(&mut request).unwrap();
    let send = reqwest::Client::new().put(&url).headers(request.headers().clone());
    let answer = send.send().await.expect("Azurite answers");
    let status = answer.status();
    assert!(status.is_success(), "no container: {status} {:?}", answer.text().await);
    let store = MicrosoftAzureBuilder::new()
        .with_endpoint(format!("{endpoint}/{account}"))
        .with_allow_http(true)
        .with_account(account)
        .with_access_key(key)
        .with_container_name(&name)
        .build();
    (name, store.unwrap())
}

/// The settings by which a container is reached at an endpoint.
fn reached<'a>(
    azurite: &'a Azurite,
    url: &'a str,
    endpoint: &'a str,
) -> Vec<(&'static str, &'a str)> {
    vec![
        ("blob_store_url", url),
        ("azure_endpoint", endpoint),
        ("azure_account", &azurite.account),
        ("azure_access_key", &azurite.key),
    ]
}

/// A world over a container of its own, and that container.
async fn on_azure(azurite: &Azurite, more: crate::world::Settings<'_>) -> (World, MicrosoftAzure) {
    let (name, store) = container(azurite).await;
    // A slash at the end of the endpoint makes no difference.
    let endpoint = format!("{}/{}/", azurite.endpoint, azurite.account);
    let url = format!("az://{name}/{PREFIX}");
    (world(&reached(azurite, &url, &endpoint), more).await, store)
}

/// The same behind a proxy.
async fn behind(azurite: &Azurite) -> (World, Proxy, MicrosoftAzure) {
    let (name, store) = container(azurite).await;
    let proxy = Proxy::start(&azurite.endpoint).await;
    let (url, endpoint) =
        (format!("az://{name}"), format!("{}/{}", proxy.endpoint, azurite.account));
    (world(&reached(azurite, &url, &endpoint), PATIENT).await, proxy, store)
}

#[tokio::test]
async fn azurite_honours() {
    let Some(azurite) = azurite().await else { return };
    let (name, store) = container(azurite).await;
    let location = Location::Azure(Azure {
        container: name,
        prefix: String::new(),
        endpoint: Some(format!("{}/{}", azurite.endpoint, azurite.account)),
        account: Some(azurite.account.clone()),
        access_key: Some(Hidden(azurite.key.clone())),
    });
    assert!(refuses_to_overwrite(location).await);
    let except: &[(&str, Verdict)] = &[
        // Blocks that nobody makes a blob of go by themselves after a week, and until then anybody may.
        ("multipart_abort_leaves_nothing", OTHER),
        ("multipart_keeps_what_is_there", OTHER),
        // Azurite overlooks where a list is to begin, and nobody here asks for that.
        ("many_are_listed_and_deleted", OTHER),
        // It says that nothing was there.
        ("deleting_nothing_succeeds", Verdict::Refused),
        // Not from the end, which nobody here asks for.
        ("ranges_are_exact", Verdict::Refused),
    ];
    conformance::compare("Azurite", &conformance::probe(&store).await, except);
}

async fn the_suite_passes(is_encrypted: bool) {
    let Some(azurite) = azurite().await else { return };
    let settings: &[_] = if is_encrypted { &[("blob_key", seal::OLD)] } else { &[] };
    let (world, store) = on_azure(azurite, settings).await;
    suite::run_far(&world, (&store, PREFIX, "azure"), is_encrypted, |_| true).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_passes_on_azure() {
    the_suite_passes(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_passes_encrypted_on_azure() {
    the_suite_passes(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_go_on_on_azure() {
    let Some(azurite) = azurite().await else { return };
    for key in [None, Some(("blob_key", seal::OLD))] {
        let settings: Vec<_> = [FAST].into_iter().chain(key).collect();
        let (world, store) = on_azure(azurite, &settings).await;
        uploads_go_on_here(&world, &store, key.is_some()).await;
        if key.is_none() {
            nobody_is_let_put(&world.anonymous(), "azure").await;
        }
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_yields_the_blob_to_anybody_until_it_expires() {
    let Some(azurite) = azurite().await else { return };
    let (world, _) = on_azure(azurite, &[]).await;
    let me = world.anonymous();
    let given = bytes(70, 2 * MIB + 5);
    upload(&me, &given).await;
    upload(&me, &bytes(71, 20_000)).await;
    let request = pb::CreateDownloadUrlRequest {
        response_filename: "the \u{fc}ber \"report\" + 100%.pdf".into(),
        ..ask(&given, None)
    };
    let issued = ok!(me.blobs().create_download_url(request)).url;
    let plain = ok!(me.blobs().create_download_url(ask(&given, None))).url;
    let short = ok!(me.blobs().create_download_url(ask(&given, Some((1, 0))))).url;
    let other = ok!(me.blobs().create_download_url(ask(&bytes(71, 20_000), None))).url;

    let client = reqwest::Client::new();
    let answer = client.get(&issued).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let disposition = answer.headers()["content-disposition"].to_str().unwrap().to_owned();
    assert!(disposition.starts_with("attachment; filename=\"the _ber _report_ + 100_.pdf\""));
    assert!(disposition.ends_with("''the%20%C3%BCber%20%22report%22%20%2B%20100%25.pdf"));
    assert!(answer.bytes().await.unwrap()[..] == given[..]);
    let answer = client.get(&plain).send().await.unwrap();
    assert_eq!(answer.headers()["content-disposition"], "attachment");

    // For nothing else: no other object, no other method, no other name, and not for longer.
    let (object, query) = issued.split_once('?').unwrap();
    let elsewhere = format!("{}?{query}", other.split('?').next().unwrap());
    let end = query.split('&').find(|pair| pair.starts_with("se=")).unwrap();
    let longer = issued.replace(end, "se=2099-01-01T00%3A00%3A00Z");
    let inline = issued.replace("rscd=attachment", "rscd=inline");
    let may_write = issued.replace("sp=r&", "sp=rw&");
    for url in [&elsewhere, &longer, &inline, &may_write, &object.to_owned()] {
        assert!(url != &issued);
        let status = client.get(url).send().await.unwrap().status().as_u16();
        assert!(status == 403 || url == object && status == 404, "{url}: {status}");
    }
    let put = client.put(&issued).header("x-ms-blob-type", "BlockBlob").body("other bytes");
    assert_eq!(put.send().await.unwrap().status(), 403);
    assert_eq!(client.delete(&issued).send().await.unwrap().status(), 403);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(client.get(&short).send().await.unwrap().status(), 403, "expired");
    assert_eq!(client.get(&issued).send().await.unwrap().status(), 200);
    world.close().await;
}

/// A store that is down is told at once, and so is a key that is none.
#[tokio::test]
async fn a_container_that_is_not_there_serves_no_blobs() {
    let Some(azurite) = azurite().await else { return };
    let endpoint = format!("{}/{}", azurite.endpoint, azurite.account);
    let settings = reached(azurite, "az://nobody-made-it", &endpoint);
    let world = world(&settings, &[("blob_probe_interval_ms", "20")]).await;
    let me = world.anonymous();
    for _ in 0..20 {
        assert_eq!(health(&me, "casebook.v1.BlobService").await, "NOT_SERVING");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(health(&me, "").await, "SERVING");
    let status = send(&me, messages(b"x", |_| {})).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "BACKEND_UNAVAILABLE".into()));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_there_whatever_happened() {
    let Some(azurite) = azurite().await else { return };
    let (world, proxy, store) = behind(azurite).await;
    let asked = [
        ("PUT", "/t/", 1000),
        ("PUT", "comp=block&", 17 * MIB),
        ("PUT", "comp=blocklist", 9 * MIB),
    ];
    what_is_acknowledged_is_there(&world, &proxy, &store, &asked).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_back_is_right_or_an_error() {
    let Some(azurite) = azurite().await else { return };
    let (world, proxy, store) = behind(azurite).await;
    let me = world.anonymous();
    for (n, fault) in [
        Fault::Status(503),
        Fault::Torn,
        Fault::LengthTooLong,
        Fault::LengthTooShort,
        Fault::Flipped,
        Fault::CutAfter,
    ]
    .into_iter()
    .enumerate()
    {
        let given = bytes(940 + n as u64, 20_000);
        upload(&me, &given).await;
        proxy.on("GET", "/t/", When::Every, fault);
        let status = download(&me, whole(digest(&given))).await.expect_err("an error");
        assert!(matches!(status.code(), Code::Unavailable | Code::DataLoss), "{fault:?}");
        proxy.heal();
        verify(&me, reading()).await;
        let (_, found) = download(&me, whole(digest(&given))).await.unwrap();
        assert!(found == given, "{fault:?}");
    }
    bucket_is_consistent(&world.superuser().await, &store).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_while_azure_is_asked_leaves_nothing_unaccounted() {
    use Doing::{Deleting, Large, Reaping, Small};
    let Some(azurite) = azurite().await else { return };
    let (name, store) = container(azurite).await;
    let proxy = Proxy::start(&azurite.endpoint).await;
    let (url, endpoint) =
        (format!("az://{name}"), format!("{}/{}", proxy.endpoint, azurite.account));
    let world = Killed::far(&reached(azurite, &url, &endpoint)).await;
    let requests = [
        (Small, "PUT", "/t/"),
        (Large, "PUT", "comp=block&"),
        (Large, "PUT", "comp=blocklist"),
        // Several keys are deleted by one request, which names them in its body.
        (Deleting, "POST", "comp=batch"),
        (Reaping, "POST", "comp=batch"),
    ];
    kills_leave_nothing(&world, &proxy, &store, &requests, "comp=blocklist").await;
    world.close().await;
}

/// A minute is the least age of what is nobody's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_is_held_against_what_is_recorded() {
    let Some(azurite) = azurite().await else { return };
    let (world, store) = on_azure(azurite, &[FAST]).await;
    let me = world.anonymous();
    let given: Vec<Vec<u8>> = (970..974).map(|seed| bytes(seed, 100_000)).collect();
    let mut keys = Vec::new();
    for given in &given {
        upload(&me, given).await;
        let found: Vec<_> = store.list(None).try_collect().await.unwrap();
        let new = found.into_iter().map(|meta| meta.location).find(|key| !keys.contains(key));
        keys.push(new.unwrap());
    }
    let (found, last) = verify(&me, reading()).await;
    assert_eq!((found.len(), last.blobs_checked, last.bytes_read), (0, 4, 400_000), "{last:?}");

    store.delete(&keys[1]).await.unwrap();
    store.put(&keys[2], given[2][..99_999].to_vec().into()).await.unwrap();
    store.put(&keys[3], bytes(975, 100_000).into()).await.unwrap();
    let stray = Key::from(format!("{}x", keys[3]));
    store.put(&stray, "nobody's".into()).await.unwrap();
    use pb::BlobProblem::{DigestMismatch, MissingBytes, OrphanBytes, SizeMismatch};
    let mut expected = vec![
        (MissingBytes, id(&given[1])),
        (SizeMismatch, id(&given[2])),
        (DigestMismatch, id(&given[3])),
    ];
    expected.sort();
    // It is too young to be called nobody's.
    assert_eq!(problems(&verify(&me, reading()).await.0), expected);
    tokio::time::sleep(Duration::from_secs(61)).await;
    let orphan_age = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    let removing = pb::VerifyBlobStoreRequest { orphan_age, remove_orphans: true, ..looking() };
    let (found, _) = verify(&me, removing).await;
    let orphans: Vec<_> = found.iter().filter(|finding| finding.problem() == OrphanBytes).collect();
    assert_eq!(orphans.len(), 1, "{found:?}");
    let key = stray.as_ref().strip_prefix(PREFIX).unwrap().trim_start_matches('/');
    assert_eq!((orphans[0].store_key.as_str(), orphans[0].removed), (key, true));
    until("it is removed", async || store.head(&stray).await.is_err()).await;
    for given in &given[1..] {
        upload(&me, given).await;
        let (_, found) = download(&me, whole(digest(given))).await.unwrap();
        assert!(found == *given);
    }
    world.close().await;
}
