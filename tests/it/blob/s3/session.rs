//! Uploads that go on where they were cut, on S3: through the server, and straight to the store with a plain HTTP client.

use super::*;
use crate::blob::session::*;
use crate::s3::Brand;
use pb::UploadTransport::Presigned;
use std::time::Duration;

pub async fn put(part: &pb::SignedPart, body: &[u8]) -> u16 {
    assert_eq!(part.method, "PUT");
    let mut request = reqwest::Client::new().put(&part.url).body(body.to_vec());
    for (name, value) in &part.headers {
        // The client itself says how long the body is that it sends, unless that is nothing.
        if name != "content-length" || body.is_empty() {
            request = request.header(name, value);
        }
    }
    request.send().await.unwrap().status().as_u16()
}

fn body<'a>(part: &pb::SignedPart, given: &'a [u8]) -> &'a [u8] {
    let at = part.offset as usize;
    &given[at..at + part.length as usize]
}

pub async fn signed(me: &As, given: &[u8], part_size: i64) -> pb::Upload {
    let answer = begin(me, |request| {
        say(request, given);
        request.set_transport(Presigned);
        request.part_size = part_size;
    });
    answer.await.unwrap().upload.unwrap()
}

async fn objects(store: &AmazonS3) -> usize {
    store.list(None).try_collect::<Vec<_>>().await.unwrap().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_go_on_on_s3() {
    let Some(server) = server().await else { return };
    for is_encrypted in [false, true] {
        let mut settings = vec![("blob_reap_interval_ms", "50")];
        settings.extend(is_encrypted.then_some(("blob_key", seal::OLD)));
        let (world, store) = on_s3(server, &settings).await;
        let me = world.anonymous();
        uploads_go_on(&me, is_encrypted).await;
        known_bytes_need_not_be_sent(&me).await;
        let database = world.superuser().await;
        is_settled(&database).await;
        let blobs = "SELECT count(*) FROM casebook.blob WHERE state = 2";
        let blobs: i64 = database.query_one(blobs, &[]).await.unwrap().get(0);
        assert_eq!(objects(&store).await as i64, blobs);
        drop(database);
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_are_put_straight_to_the_store() {
    let Some(server) = server().await else { return };
    let (world, store) = on_s3(server, &[("blob_reap_interval_ms", "50")]).await;
    let me = world.anonymous();
    let mib = MIB as i64;
    for (n, (size, part_size, count)) in
        [(0, 0, 1), (1000, 0, 1), (12 * MIB + 5, 5 * mib, 3)].into_iter().enumerate()
    {
        let given = bytes(4000 + n as u64, size);
        let before = head(&me).await;
        let upload = signed(&me, &given, part_size).await;
        let entry = entries(&me, 1).await.remove(0);
        assert_eq!((head(&me).await, entry.action.as_str()), (before + 1, "UPLOAD_URL_ISSUED"));
        assert_eq!(entry.target.unwrap().id, hex(&digest(&given).value));
        assert_eq!((upload.parts.len(), upload.transport()), (count, Presigned));
        let (last, others) = upload.parts.split_last().unwrap();
        for part in others {
            assert_eq!(put(part, body(part, &given)).await, 200);
        }
        let status = complete(&me, &upload.id).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::FailedPrecondition, "UPLOAD_INCOMPLETE".into()));
        assert_eq!(info(&status)["part_number"], count.to_string());
        // Signed anew, for the same place.
        let get = pb::GetUploadRequest { upload_id: upload.id.clone() };
        let anew = ok!(me.blobs().get_upload(get)).upload.unwrap().parts.pop().unwrap();
        assert_eq!((anew.offset, anew.length), (last.offset, last.length));
        assert_eq!(put(&anew, body(last, &given)).await, 200);
        let blob = complete(&me, &upload.id).await.unwrap().blob.unwrap();
        assert_eq!((blob.digest, blob.size_bytes), (Some(digest(&given)), size as i64));
        let (_, found) = download(&me, whole(digest(&given))).await.unwrap();
        assert!(found == given);
        assert!(complete(&me, &upload.id).await.unwrap().deduplicated);

        // Whoever still has the URL changes nothing of the blob, and what comes late goes too.
        let late = put(last, body(last, &given)).await;
        assert!(late == 200 || server.brand == Brand::Other, "{late}");
        let (_, found) = download(&me, whole(digest(&given))).await.unwrap();
        assert!(found == given);
        let database = world.superuser().await;
        let due = "UPDATE casebook.blob_intent SET due_time = now()";
        assert!(database.execute(due, &[]).await.unwrap() >= count as u64);
        is_settled(&database).await;
        assert_eq!(objects(&store).await, n + 1);
        drop(database);
    }
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_put_to_a_url_must_be_what_was_signed() {
    let Some(server) = server().await else { return };
    let (world, _) = on_s3(server, &[]).await;
    let me = world.anonymous();
    let given = bytes(4100, 1000);
    let (longer, shorter) = (bytes(4100, 1001), &given[..999]);
    let upload = signed(&me, &given, 0).await;
    let part = &upload.parts[0];
    assert_eq!(part.headers["content-length"], "1000");
    assert!(part.headers.contains_key("x-amz-checksum-sha256"));
    if server.brand != Brand::Moto {
        assert_eq!(put(part, &longer).await, 403);
        assert_eq!(put(part, shorter).await, 403);
        let mut other = part.clone();
        other.headers.insert("x-amz-checksum-sha256".into(), "AAAA".into());
        assert_eq!(put(&other, &given).await, 403);
        other.headers.remove("x-amz-checksum-sha256");
        assert_eq!(put(&other, &given).await, 403);
        let elsewhere = part.url.replacen("/upload/", "/upload/0", 1);
        assert_eq!(put(&pb::SignedPart { url: elsewhere, ..part.clone() }, &given).await, 403);
        let status = complete(&me, &upload.id).await.unwrap_err();
        assert_eq!(reason(&status), "UPLOAD_INCOMPLETE");
    } else {
        // It looks at no signature: so we do.
        assert_eq!(put(part, shorter).await, 200);
        let status = complete(&me, &upload.id).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::InvalidArgument, "SIZE_MISMATCH".into()));
        assert_eq!(committed(&me, &upload.id).await.unwrap_err().code(), Code::NotFound);
    }
    // As long, but others: neither of them verifies the digest that was signed.
    let upload = signed(&me, &given, 0).await;
    let status = put(&upload.parts[0], &bytes(4101, 1000)).await;
    if status == 200 {
        let status = complete(&me, &upload.id).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::InvalidArgument, "DIGEST_MISMATCH".into()));
        assert_eq!(committed(&me, &upload.id).await.unwrap_err().code(), Code::NotFound);
    }
    let get = pb::GetBlobRequest { digest: Some(digest(&given)) };
    fails!(me.blobs().get_blob(get), NotFound, "NOT_FOUND");

    // Parts may be said one by one.
    let long = bytes(4102, 6 * MIB);
    let (one, two) = long.split_at(5 * MIB);
    let upload = begin(&me, |request| {
        say(request, &long);
        request.set_transport(Presigned);
        request.part_size = 5 * MIB as i64;
        request.part_digests = vec![digest(one), digest(two)];
    });
    let upload = upload.await.unwrap().upload.unwrap();
    assert!(upload.parts.iter().all(|part| part.headers.len() == 2));
    for (part, body) in upload.parts.iter().zip([one, two]) {
        assert_eq!(put(part, body).await, 200);
    }
    complete(&me, &upload.id).await.unwrap();

    // No other tenant goes on with it.
    world.tenant("other").await;
    let upload = signed(&me, &given, 0).await;
    let other = world.as_tenant("other");
    assert_eq!(committed(&other, &upload.id).await.unwrap_err().code(), Code::NotFound);
    let status = write(&me, &upload.id, 0, b"x").await.unwrap_err();
    assert_eq!(crate::world::wrong_fields(&status), ["upload_id"]);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_upload_expires_with_its_urls() {
    let Some(server) = server().await else { return };
    let (world, store) = on_s3(server, &[("blob_reap_interval_ms", "50")]).await;
    let me = world.anonymous();
    let given = bytes(4200, 1000);
    let upload = begin(&me, |request| {
        say(request, &given);
        request.set_transport(Presigned);
        // Signatures are of whole seconds, and a gateway beside other work may take one to look.
        request.ttl = Some(prost_types::Duration { seconds: 6, nanos: 0 });
    });
    let upload = upload.await.unwrap().upload.unwrap();
    assert_eq!(put(&upload.parts[0], &given).await, 200);
    tokio::time::sleep(Duration::from_millis(7500)).await;
    let status = complete(&me, &upload.id).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::FailedPrecondition, "UPLOAD_EXPIRED".into()));
    assert_eq!(objects(&store).await, 0);
    let late = put(&upload.parts[0], &given).await;
    assert_eq!(late, if server.brand == Brand::Moto { 200 } else { 403 });
    // What comes all the same is looked for once more.
    let database = world.superuser().await;
    let due = "UPDATE casebook.blob_intent SET due_time = now()";
    assert_eq!(database.execute(due, &[]).await.unwrap(), 1);
    is_settled(&database).await;
    assert_eq!(objects(&store).await, 0);
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn what_is_to_be_encrypted_passes_the_server() {
    let Some(server) = server().await else { return };
    let (world, _) = on_s3(server, &[("blob_key", seal::OLD)]).await;
    let me = world.anonymous();
    let status = begin(&me, |request| {
        say(request, b"secret");
        request.set_transport(Presigned);
    });
    let status = status.await.unwrap_err();
    assert_eq!(refusal(&status), (Code::FailedPrecondition, "BLOB_ENCRYPTED".into()));
    world.close().await;
}

#[tokio::test]
async fn whoever_only_reads_gets_no_url_to_put_to() {
    let Some(server) = server().await else { return };
    let (name, _) = bucket(server).await;
    let url = format!("s3://{name}");
    let (world, mut open) = guarded(&reached(server, &url)).await;
    let me = world.with_token(&token(&open.anonymous(), &[pb::Role::Writer]).await.1);
    let reader = world.with_token(&token(&open.anonymous(), &[pb::Role::Reader]).await.1);
    let upload = signed(&me, b"given", 0).await;
    let get = pb::GetUploadRequest { upload_id: upload.id };
    assert_eq!(ok!(me.blobs().get_upload(get.clone())).upload.unwrap().parts.len(), 1);
    assert_eq!(ok!(reader.blobs().get_upload(get)).upload.unwrap().parts.len(), 0);
    open.stop().await;
    world.close().await;
}
