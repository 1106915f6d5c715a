//! Signed URLs that are used with a plain HTTP client. moto looks at no signature and no expiry: Ceph does.

use super::*;
use crate::blob::url::ask;
use crate::s3::Brand;
use std::time::{Duration, SystemTime};

fn object_of(url: &str) -> &str {
    url.split('?').next().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_yields_the_blob_to_anybody_until_it_expires() {
    let Some(server) = server().await else { return };
    let (world, store) = on_s3(server, &[]).await;
    let me = world.anonymous();
    let given = bytes(70, 2 * MIB + 5);
    let blob = upload(&me, &given).await.blob.unwrap();
    let request = pb::CreateDownloadUrlRequest {
        response_filename: "the \u{fc}ber \"report\".pdf".into(),
        ..ask(&given, None)
    };
    let issued = ok!(me.blobs().create_download_url(request));
    let expires = SystemTime::try_from(issued.expire_time.unwrap()).unwrap();
    let left = expires.duration_since(SystemTime::now()).unwrap().as_secs();
    assert!((3590..=3600).contains(&left), "{left}");
    let entry = entries(&me, 1).await.remove(0);
    assert_eq!((entry.action.as_str(), entry.kind.as_str()), ("DOWNLOAD_URL_ISSUED", "event"));
    assert_eq!(entry.method, "casebook.v1.BlobService/CreateDownloadUrl");
    let target = entry.target.unwrap();
    assert_eq!((target.kind(), target.id), (pb::ResourceKind::Blob, hex(&digest(&given).value)));

    let client = reqwest::Client::new();
    let answer = client.get(&issued.url).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let disposition = answer.headers()["content-disposition"].to_str().unwrap().to_owned();
    assert!(disposition.starts_with("attachment; filename=\"the _ber _report_.pdf\""));
    assert!(disposition.ends_with("''the%20%C3%BCber%20%22report%22.pdf"), "{disposition}");
    assert!(answer.bytes().await.unwrap()[..] == given[..]);
    let short = ok!(me.blobs().create_download_url(ask(&given, Some((1, 0)))));

    if server.brand != Brand::Moto {
        // For nothing else: no other object, no other method, no other name, and not for longer.
        upload(&me, b"another").await;
        let other = ok!(me.blobs().create_download_url(ask(b"another", None))).url;
        let other = issued.url.replace(object_of(&issued.url), object_of(&other));
        let longer = issued.url.replace("X-Amz-Expires=3600", "X-Amz-Expires=3601");
        let inline = issued.url.replace("attachment", "inline");
        for url in [&other, &longer, &inline] {
            assert!(url != &issued.url);
            assert_eq!(client.get(url).send().await.unwrap().status(), 403, "{url}");
        }
        let put = client.put(&issued.url).body("other bytes").send().await.unwrap();
        assert_eq!(put.status(), 403);
        assert_eq!(client.delete(&issued.url).send().await.unwrap().status(), 403);
        tokio::time::sleep(Duration::from_millis(2500)).await;
        assert_eq!(client.get(&short.url).send().await.unwrap().status(), 403, "expired");
        assert_eq!(client.get(&issued.url).send().await.unwrap().status(), 200);
    }

    // Bytes that are gone are told at once, as a download tells them.
    let database = world.superuser().await;
    let key = "SELECT store_key FROM casebook.blob WHERE size_bytes = $1";
    let key: String = database.query_one(key, &[&blob.size_bytes]).await.unwrap().get(0);
    drop(database);
    store.delete(&Key::from(format!("{PREFIX}/{key}"))).await.unwrap();
    let request = ask(&given, None);
    let status = fails!(me.blobs().create_download_url(request), DataLoss, "BLOB_CORRUPT");
    assert_eq!(info(&status)["digest"], hex(&digest(&given).value));
    let get = pb::GetBlobRequest { digest: Some(digest(&given)) };
    assert_eq!(ok!(me.blobs().get_blob(get)).blob.unwrap().state(), pb::BlobState::Corrupt);
    fails!(me.blobs().create_download_url(ask(&given, None)), DataLoss, "BLOB_CORRUPT");
    world.close().await;
}

#[tokio::test]
async fn what_is_encrypted_has_no_url() {
    let Some(server) = server().await else { return };
    let (world, _) = on_s3(server, &[("blob_key", seal::OLD)]).await;
    let me = world.anonymous();
    upload(&me, b"secret").await;
    let before = head(&me).await;
    let request = ask(b"secret", None);
    fails!(me.blobs().create_download_url(request), FailedPrecondition, "BLOB_ENCRYPTED");
    assert_eq!(head(&me).await, before);
    world.close().await;
}

/// Behind another name than the one that the server asks, as outside of a cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn urls_name_the_address_that_others_reach() {
    let Some(server) = server().await else { return };
    let public = server.endpoint.replace("127.0.0.1", "localhost");
    assert_ne!(public, server.endpoint, "the tests' servers of S3 are on 127.0.0.1");
    let (world, _) = on_s3(server, &[("s3_public_endpoint", &public)]).await;
    let me = world.anonymous();
    let given = bytes(71, 5000);
    let upload = super::session::signed(&me, &given, 0).await;
    let [part] = &upload.parts[..] else { panic!("{upload:?}") };
    assert!(part.url.starts_with(&public), "{}", part.url);
    assert_eq!(super::session::put(part, &given).await, 200);
    ok!(me
        .blobs()
        .complete_upload(pb::CompleteUploadRequest { upload_id: upload.id, ..Default::default() }));
    let issued = ok!(me.blobs().create_download_url(ask(&given, None)));
    assert!(issued.url.starts_with(&public), "{}", issued.url);
    let answer = reqwest::get(&issued.url).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.bytes().await.unwrap()[..] == given[..]);
    world.close().await;
}
