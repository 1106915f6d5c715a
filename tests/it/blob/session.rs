//! Uploads that go on where they were cut: what every store must do, as plain functions over a caller, and what is refused.

use super::*;
use crate::world::wrong_fields;
use std::time::Duration;

const FAST: (&str, &str) = ("blob_reap_interval_ms", "50");

pub async fn begin(
    me: &As,
    change: impl FnOnce(&mut pb::CreateUploadRequest),
) -> Result<pb::CreateUploadResponse, Status> {
    let header = Some(pb::UploadHeader::default());
    let mut request = pb::CreateUploadRequest { header, ..Default::default() };
    change(&mut request);
    Ok(me.blobs().create_upload(request).await?.into_inner())
}

/// The id of an upload of which nothing is said.
pub async fn begun(me: &As) -> String {
    begin(me, |_| {}).await.unwrap().upload.unwrap().id
}

pub fn say(request: &mut pb::CreateUploadRequest, bytes: &[u8]) {
    let header = request.header.as_mut().unwrap();
    header.digest = Some(digest(bytes));
    header.size_bytes = Some(bytes.len() as i64);
}

fn first(id: &str, offset: usize) -> pb::WriteUploadRequest {
    let (upload_id, offset) = (id.to_owned(), Some(offset as i64));
    pb::WriteUploadRequest { upload_id, offset, ..Default::default() }
}

fn next(chunk: &[u8]) -> pb::WriteUploadRequest {
    let crc32c = Some(crc_fast::crc32_iscsi(chunk));
    pb::WriteUploadRequest { chunk: chunk.to_vec().into(), crc32c, ..Default::default() }
}

async fn put(me: &As, messages: Vec<pb::WriteUploadRequest>) -> Result<i64, Status> {
    let answer = me.blobs().write_upload(tokio_stream::iter(messages)).await?;
    Ok(answer.into_inner().committed_size)
}

pub async fn write(me: &As, id: &str, offset: usize, bytes: &[u8]) -> Result<i64, Status> {
    let mut all = vec![first(id, offset)];
    all.extend(bytes.chunks(MIB).map(next));
    put(me, all).await
}

pub async fn committed(me: &As, id: &str) -> Result<usize, Status> {
    let request = pb::GetUploadRequest { upload_id: id.to_owned() };
    let upload = me.blobs().get_upload(request).await?.into_inner().upload.unwrap();
    Ok(upload.committed_size as usize)
}

pub async fn complete(me: &As, id: &str) -> Result<pb::CompleteUploadResponse, Status> {
    let upload_id = id.to_owned();
    let request = pb::CompleteUploadRequest { upload_id, ..Default::default() };
    Ok(me.blobs().complete_upload(request).await?.into_inner())
}

async fn abort(me: &As, id: &str) -> Result<(), Status> {
    let request = pb::AbortUploadRequest { upload_id: id.to_owned() };
    me.blobs().abort_upload(request).await.map(|_| ())
}

pub fn refusal(status: &Status) -> (Code, String) {
    (status.code(), reason(status))
}

async fn comes_back(me: &As, given: &[u8]) {
    let (_, found) = download(me, whole(digest(given))).await.unwrap();
    assert!(found == given, "{} bytes came back as {}", given.len(), found.len());
}

/// Uploads of all sizes, sent in several streams, which end where no part of the store does.
pub async fn uploads_go_on(me: &As, is_encrypted: bool) {
    for (n, size) in [0, 5, 8 * MIB, 17 * MIB + 4321].into_iter().enumerate() {
        let given = bytes(3000 + n as u64, size);
        let id = begin(me, |request| {
            let header = request.header.as_mut().unwrap();
            header.content_type = "image/png".into();
            if n % 2 == 1 {
                say(request, &given);
            }
        });
        let id = id.await.unwrap().upload.unwrap().id;
        let mut at = 0;
        while at < size {
            let end = size.min(at + 9 * MIB + 77);
            let until = write(me, &id, at, &given[at..end]).await.unwrap() as usize;
            assert_eq!(until, end);
            assert_eq!(committed(me, &id).await.unwrap(), end);
            at = end;
        }
        let before = head(me).await;
        let answer = complete(me, &id).await.unwrap();
        let blob = answer.blob.unwrap();
        assert_eq!((blob.digest.clone(), blob.size_bytes), (Some(digest(&given)), size as i64));
        assert_eq!((blob.content_type.as_str(), blob.encrypted), ("image/png", is_encrypted));
        assert!(!answer.deduplicated && answer.receipt.unwrap().audit_seq == before + 1);
        comes_back(me, &given).await;
        // Whoever did not get the answer asks again.
        let again = complete(me, &id).await.unwrap();
        assert!(again.deduplicated && again.blob == Some(blob));
        let status = write(me, &id, size, b"more").await.unwrap_err();
        assert_eq!(refusal(&status), (Code::FailedPrecondition, "UPLOAD_COMPLETED".into()));
    }
}

/// What the tenant has already need not be sent.
pub async fn known_bytes_need_not_be_sent(me: &As) {
    let given = bytes(3100, 1000);
    let first = upload(me, &given).await.blob;
    let answer = begin(me, |request| say(request, &given)).await.unwrap();
    assert!(answer.already_present);
    let answer = complete(me, &answer.upload.unwrap().id).await.unwrap();
    assert!(answer.deduplicated && answer.receipt.is_none() && answer.blob == first);
    // Not said beforehand, it is seen at the end.
    let id = begun(me).await;
    write(me, &id, 0, &given).await.unwrap();
    let answer = complete(me, &id).await.unwrap();
    assert!(answer.deduplicated && answer.blob == first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_go_on_in_memory() {
    let world = World::new().await;
    uploads_go_on(&world.anonymous(), false).await;
    known_bytes_need_not_be_sent(&world.anonymous()).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_go_on_on_a_local_disk_and_leave_only_blobs() {
    for is_encrypted in [false, true] {
        let mut settings = vec![FAST];
        settings.extend(is_encrypted.then_some(("blob_key", seal::OLD)));
        let (world, folder) = on_disk(&settings).await;
        let me = world.anonymous();
        uploads_go_on(&me, is_encrypted).await;
        known_bytes_need_not_be_sent(&me).await;
        // Parts are as secret as blobs.
        let given = seal::marked(3200, 9 * MIB);
        let id = begun(&me).await;
        write(&me, &id, 0, &given).await.unwrap();
        let shows = files(folder.path()).iter().any(|(_, stored)| seal::is_marked(stored));
        assert_eq!(shows, !is_encrypted);
        complete(&me, &id).await.unwrap();
        comes_back(&me, &given).await;
        let database = world.superuser().await;
        is_settled(&database).await;
        is_consistent(&database, folder.path()).await;
        let blobs = "SELECT count(*) FROM casebook.blob WHERE state = 2";
        let blobs: i64 = database.query_one(blobs, &[]).await.unwrap().get(0);
        assert_eq!(files(folder.path()).len() as i64, blobs);
        drop(database);
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_goes_on_at_another_server() {
    let (world, folder) = on_disk(&[]).await;
    let given = bytes(3300, 12 * MIB);
    let url = crate::world::url_of(&crate::world::config_of(&world.database).await);
    let store = format!("file://{}", folder.path().display());
    let settings = [("blob_store_url", store.as_str())];
    let mut first = World::on(&world.database, &url, &settings).await;
    let id = begin(&first.anonymous(), |request| say(request, &given)).await;
    let id = id.unwrap().upload.unwrap().id;
    // The stream is under way when its server goes.
    let (sender, received) = tokio::sync::mpsc::channel(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(received);
    let mut client = first.anonymous().blobs();
    let call = tokio::spawn(async move { client.write_upload(stream).await.map(|_| ()) });
    sender.send(self::first(&id, 0)).await.unwrap();
    for piece in given[..10 * MIB].chunks(MIB) {
        sender.send(next(piece)).await.unwrap();
    }
    first.stop().await;
    call.await.unwrap().unwrap_err();
    drop(sender);
    let mut second = World::on(&world.database, &url, &settings).await;
    let me = second.anonymous();
    let at = committed(&me, &id).await.unwrap();
    // What was on its way still is lost, and no more.
    assert!(at > 0 && at % MIB == 0, "{at}");
    write(&me, &id, at, &given[at..]).await.unwrap();
    assert_eq!(complete(&me, &id).await.unwrap().blob.unwrap().digest, Some(digest(&given)));
    comes_back(&world.anonymous(), &given).await;
    second.stop().await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_before_a_stream_broke_stays() {
    let (world, _folder) = on_disk(&[("blob_idle_timeout_ms", "500")]).await;
    let me = world.anonymous();
    let given = bytes(3400, 3 * MIB);
    for is_idle in [false, true] {
        let id = begun(&me).await;
        let (sender, received) = tokio::sync::mpsc::channel(1);
        let stream = tokio_stream::wrappers::ReceiverStream::new(received);
        let mut client = me.blobs();
        let call = tokio::spawn(async move { client.write_upload(stream).await.map(|_| ()) });
        sender.send(first(&id, 0)).await.unwrap();
        for piece in given.chunks(MIB) {
            sender.send(next(piece)).await.unwrap();
        }
        if is_idle {
            let status = call.await.unwrap().unwrap_err();
            assert_eq!(status.code(), Code::DeadlineExceeded);
        } else {
            tokio::time::sleep(Duration::from_millis(300)).await;
            call.abort();
        }
        let mut at = 0;
        for _ in 0..100 {
            at = committed(&me, &id).await.unwrap();
            if at > 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(at > 0 && at % MIB == 0, "{at}");
        assert!(!is_idle || at == given.len());
        write(&me, &id, at, &given[at..]).await.unwrap();
        let blob = complete(&me, &id).await.unwrap().blob.unwrap();
        assert_eq!(blob.digest, Some(digest(&given)));
    }
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_go_on_at_once_do_not_mix_their_bytes() {
    let (world, folder) = on_disk(&[FAST]).await;
    let me = world.anonymous();
    let id = begun(&me).await;
    let given: Vec<Vec<u8>> = (0..6).map(|n| bytes(3500 + n, 100_000)).collect();
    let writes = given.iter().map(|given| write(&me, &id, 0, given));
    let answers = futures_util::future::join_all(writes).await;
    let won: Vec<usize> = (0..given.len()).filter(|n| answers[*n].is_ok()).collect();
    assert_eq!(won.len(), 1, "{answers:?}");
    for status in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        assert_eq!(refusal(status), (Code::OutOfRange, "WRONG_OFFSET".into()));
        assert_eq!(info(status)["committed_size"], "100000");
    }
    let blob = complete(&me, &id).await.unwrap().blob.unwrap();
    assert_eq!(blob.digest, Some(digest(&given[won[0]])));
    let database = world.superuser().await;
    is_settled(&database).await;
    is_consistent(&database, folder.path()).await;
    assert_eq!(files(folder.path()).len(), 1);
    drop(database);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_an_upload_is_refused_and_the_rest_stays() {
    let (world, folder) = on_disk(&[FAST, ("blob_max_bytes", "5000000")]).await;
    let me = world.anonymous();
    world.tenant("other").await;
    let other = world.as_tenant("other");
    let given = bytes(3600, 3000);
    let id = begin(&me, |request| say(request, &given)).await.unwrap().upload.unwrap().id;
    write(&me, &id, 0, &given[..1000]).await.unwrap();

    for at in [0, 999, 1001, 5000] {
        let status = write(&me, &id, at, b"x").await.unwrap_err();
        assert_eq!(refusal(&status), (Code::OutOfRange, "WRONG_OFFSET".into()), "{at}");
        assert_eq!(info(&status)["committed_size"], "1000");
    }
    // A wrong message ends the stream, and those before it stay: the offsets tell.
    let bad = |message: pb::WriteUploadRequest, at: usize| {
        put(&me, vec![first(&id, at), next(&given[at..at + 100]), message])
    };
    let at = |offset: i64| pb::WriteUploadRequest { offset: Some(offset), ..next(b"x") };
    let status = bad(at(7), 1000).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::OutOfRange, "WRONG_OFFSET".into()));
    assert_eq!(info(&status)["committed_size"], "1100");
    let damaged = pb::WriteUploadRequest { crc32c: Some(1), ..next(b"x") };
    let status = bad(damaged, 1100).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::InvalidArgument, "CHECKSUM_MISMATCH".into()));
    let status = bad(next(b""), 1200).await.unwrap_err();
    assert_eq!(wrong_fields(&status), ["chunk"]);
    let status = bad(next(&[0; MIB + 1]), 1300).await.unwrap_err();
    assert_eq!(wrong_fields(&status), ["chunk"]);
    let named = pb::WriteUploadRequest { upload_id: id.clone(), ..next(b"x") };
    let status = bad(named, 1400).await.unwrap_err();
    assert_eq!(wrong_fields(&status), ["upload_id"]);
    let status = bad(next(&[0; 2000]), 1500).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::InvalidArgument, "SIZE_MISMATCH".into()));
    let status = complete(&me, &id).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::FailedPrecondition, "UPLOAD_INCOMPLETE".into()));
    assert_eq!(info(&status)["committed_size"], "1600");

    // Nobody's, and another tenant's.
    let nobody = uuid::Uuid::now_v7().to_string();
    for (who, id) in [(&me, nobody.as_str()), (&me, "no-uuid"), (&other, id.as_str())] {
        let expected = (Code::NotFound, "NOT_FOUND".to_owned());
        assert_eq!(refusal(&write(who, id, 1600, b"x").await.unwrap_err()), expected);
        assert_eq!(refusal(&committed(who, id).await.unwrap_err()), expected);
        assert_eq!(refusal(&complete(who, id).await.unwrap_err()), expected);
        assert_eq!(refusal(&abort(who, id).await.unwrap_err()), expected);
    }
    let status = put(&me, vec![]).await.unwrap_err();
    assert_eq!(wrong_fields(&status), ["upload_id"]);

    write(&me, &id, 1600, &given[1600..]).await.unwrap();
    complete(&me, &id).await.unwrap();
    comes_back(&me, &given).await;

    // Of nothing that was said to be something else anything stays.
    let id = begin(&me, |request| say(request, &bytes(3601, 3000))).await;
    let id = id.unwrap().upload.unwrap().id;
    write(&me, &id, 0, &bytes(3602, 3000)).await.unwrap();
    let status = complete(&me, &id).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::InvalidArgument, "DIGEST_MISMATCH".into()));
    assert_eq!(committed(&me, &id).await.unwrap_err().code(), Code::NotFound);
    let id = begun(&me).await;
    let status = write(&me, &id, 0, &bytes(3603, 5_000_001)).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::ResourceExhausted, "BLOB_TOO_LARGE".into()));
    abort(&me, &id).await.unwrap();
    assert_eq!(abort(&me, &id).await.unwrap_err().code(), Code::NotFound);
    let database = world.superuser().await;
    is_settled(&database).await;
    is_consistent(&database, folder.path()).await;
    assert_eq!(files(folder.path()).len(), 1);
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn uploads_that_cannot_be_are_not_begun() {
    let (world, _folder) = on_disk(&[("blob_uploads_max", "2")]).await;
    let me = world.anonymous();
    let given = bytes(3700, 100);
    use pb::UploadTransport::Presigned;
    type Change<'a> = &'a dyn Fn(&mut pb::CreateUploadRequest);
    let span = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    let cases: [(Change, &[&str]); 10] = [
        (&|r| r.header = None, &["header"]),
        (&|r| r.header.as_mut().unwrap().options = Some(request("r")), &["header.options"]),
        (
            &|r| {
                let put = pb::PutObjectRequest { key: "k".into(), ..Default::default() };
                r.header.as_mut().unwrap().object = Some(put);
            },
            &["header.object"],
        ),
        (&|r| r.ttl = span(0, 0), &["ttl"]),
        (&|r| r.ttl = span(604_801, 0), &["ttl"]),
        (&|r| r.transport = 7, &["transport"]),
        (&|r| r.part_size = 8 << 20, &["part_size"]),
        (&|r| r.part_digests = vec![digest(b"")], &["part_digests"]),
        (&|r| r.set_transport(Presigned), &["header.digest", "header.size_bytes"]),
        (
            &|r| {
                say(r, &given);
                r.set_transport(Presigned);
                r.part_size = 1;
                r.part_digests = vec![digest(b""), digest(b"")];
            },
            &["part_size", "part_digests"],
        ),
    ];
    for (change, fields) in cases {
        let status = begin(&me, change).await.unwrap_err();
        assert_eq!(wrong_fields(&status), fields);
    }
    let header = pb::UploadHeader { size_bytes: Some(6 << 30), ..Default::default() };
    let whole = pb::CreateUploadRequest { header: Some(header), ..Default::default() };
    fails!(me.blobs().create_upload(whole), ResourceExhausted, "BLOB_TOO_LARGE");
    let signed = |r: &mut pb::CreateUploadRequest| {
        say(r, &given);
        r.set_transport(Presigned);
    };
    let status = begin(&me, signed).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::FailedPrecondition, "NOT_SIGNABLE".into()));

    // As many as a tenant may have, and one more when one has ended.
    let id = begun(&me).await;
    begun(&me).await;
    let status = begin(&me, |_| {}).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::ResourceExhausted, "TOO_MANY_UPLOADS".into()));
    world.tenant("other").await;
    begun(&world.as_tenant("other")).await;
    complete(&me, &id).await.unwrap();
    begun(&me).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_expires_says_so_and_its_bytes_go() {
    for reaps in ["0", "50"] {
        let (world, folder) = on_disk(&[("blob_reap_interval_ms", reaps)]).await;
        let me = world.anonymous();
        let ttl = Some(prost_types::Duration { seconds: 1, nanos: 0 });
        let id = begin(&me, |request| request.ttl = ttl).await.unwrap().upload.unwrap().id;
        write(&me, &id, 0, b"some bytes").await.unwrap();
        assert_eq!(files(folder.path()).len(), 1);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let database = world.superuser().await;
        if reaps != "0" {
            is_settled(&database).await;
            assert_eq!(files(folder.path()).len(), 0);
        }
        let expected = (Code::FailedPrecondition, "UPLOAD_EXPIRED".to_owned());
        assert_eq!(refusal(&write(&me, &id, 10, b"x").await.unwrap_err()), expected);
        assert_eq!(refusal(&committed(&me, &id).await.unwrap_err()), expected);
        assert_eq!(refusal(&complete(&me, &id).await.unwrap_err()), expected);
        is_consistent(&database, folder.path()).await;
        if reaps != "0" {
            // Long after that, nothing is known of it.
            let later = "UPDATE casebook.blob_upload SET due_time = now()";
            database.execute(later, &[]).await.unwrap();
            for _ in 0..100 {
                let left = "SELECT count(*) FROM casebook.blob_upload";
                if database.query_one(left, &[]).await.unwrap().get::<_, i64>(0) == 0 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert_eq!(committed(&me, &id).await.unwrap_err().code(), Code::NotFound);
        }
        drop(database);
        world.close().await;
    }
}

/// Without a digest said beforehand, nothing else would tell.
#[tokio::test]
async fn a_part_that_the_store_has_damaged_makes_no_blob() {
    let (world, folder) = on_disk(&[]).await;
    let me = world.anonymous();
    let id = begun(&me).await;
    write(&me, &id, 0, &bytes(3800, 1000)).await.unwrap();
    let (path, mut content) = files(folder.path()).remove(0);
    content[500] ^= 1;
    std::fs::write(path, content).unwrap();
    let status = complete(&me, &id).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::DataLoss, "BLOB_CORRUPT".into()));
    let database = world.superuser().await;
    let blobs = "SELECT count(*) FROM casebook.blob";
    assert_eq!(database.query_one(blobs, &[]).await.unwrap().get::<_, i64>(0), 0);
    drop(database);
    world.close().await;
}
