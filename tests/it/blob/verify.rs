//! What is wrong with stored bytes is found: when somebody asks, and by and by without.

use super::seal::{OLD, comes_back, server, state};
use super::*;
use pb::BlobProblem as Problem;
use pb::verify_blob_store_response::Finding;
use std::time::{Duration, SystemTime};

/// All that verifying finds, and what it said last.
pub async fn verify(
    who: &As,
    request: pb::VerifyBlobStoreRequest,
) -> (Vec<Finding>, pb::VerifyBlobStoreResponse) {
    let mut stream = ok!(who.blobs().verify_blob_store(request));
    let (mut found, mut last) = (Vec::new(), None);
    while let Some(message) = stream.message().await.expect("no error") {
        assert!(last.replace(message.clone()).is_none_or(|last| !last.done), "more after the end");
        found.extend(message.finding);
    }
    let last = last.expect("an end");
    assert!(last.done && last.findings == found.len() as i64, "{last:?}");
    (found, last)
}

pub fn looking() -> pb::VerifyBlobStoreRequest {
    pb::VerifyBlobStoreRequest::default()
}

pub fn reading() -> pb::VerifyBlobStoreRequest {
    pb::VerifyBlobStoreRequest { rehash: true, ..looking() }
}

/// What is wrong with which blob.
pub fn problems(found: &[Finding]) -> Vec<(Problem, String)> {
    let of = |finding: &Finding| finding.digest.clone().map(|d| hex(&d.value)).unwrap_or_default();
    let mut all: Vec<_> = found.iter().map(|f| (f.problem(), of(f))).collect();
    all.sort();
    all
}

pub fn id(given: &[u8]) -> String {
    hex(&digest(given).value)
}

/// The file that has these stored bytes.
fn file_of(folder: &Path, stored: &[u8]) -> PathBuf {
    let all = files(folder).into_iter();
    all.filter(|(_, content)| content == stored).map(|(path, _)| path).next().expect("a file")
}

#[tokio::test]
async fn the_store_is_held_against_what_is_recorded() {
    let (world, folder) = on_disk(&[("blob_reap_interval_ms", "20")]).await;
    let me = world.anonymous();
    world.tenant("acme").await;
    let given: Vec<Vec<u8>> = (70..75).map(|seed| bytes(seed, 100_000)).collect();
    for given in &given {
        upload(&me, given).await;
    }
    upload(&world.as_tenant("acme"), &given[0]).await;
    let (found, last) = verify(&me, reading()).await;
    assert_eq!((found.len(), last.blobs_checked, last.keys_checked), (0, 5, 5), "{last:?}");
    assert_eq!(last.bytes_read, 500_000);

    // One is gone, one too short, one of the same length is damaged; and two are nobody's, one of them too young to say.
    let gone = file_of(folder.path(), &given[1]);
    std::fs::remove_file(&gone).unwrap();
    std::fs::write(file_of(folder.path(), &given[2]), &given[2][..99_999]).unwrap();
    let damaged = file_of(folder.path(), &given[3]);
    let mut content = given[3].clone();
    content[50_000] ^= 1;
    std::fs::write(&damaged, content).unwrap();
    let (stray, young) = (damaged.with_extension("stray"), damaged.with_extension("young"));
    std::fs::write(&stray, b"nobody's").unwrap();
    std::fs::write(&young, b"nobody's yet").unwrap();
    let age = SystemTime::now() - Duration::from_secs(90_000);
    // What blobs have is as old as the stray.
    for (path, _) in files(folder.path()).into_iter().filter(|(path, _)| *path != young) {
        std::fs::File::options().write(true).open(path).unwrap().set_modified(age).unwrap();
    }

    let (found, last) = verify(&me, looking()).await;
    let mut expected = vec![
        (Problem::MissingBytes, id(&given[1])),
        (Problem::SizeMismatch, id(&given[2])),
        (Problem::OrphanBytes, String::new()),
    ];
    assert_eq!(problems(&found), expected);
    assert_eq!((last.blobs_checked, last.bytes_read), (5, 0));
    let size = found.iter().find(|f| f.problem() == Problem::SizeMismatch).unwrap();
    assert_eq!((size.expected_bytes, size.found_bytes), (100_000, 99_999));
    let nobodys = found.iter().find(|f| f.problem() == Problem::OrphanBytes).unwrap();
    let key = stray.strip_prefix(folder.path()).unwrap().to_str().unwrap();
    assert_eq!((nobodys.store_key.as_str(), nobodys.found_bytes, nobodys.removed), (key, 8, false));
    let (found, _) = verify(&me, reading()).await;
    expected.push((Problem::DigestMismatch, id(&given[3])));
    expected.sort();
    assert_eq!(problems(&found), expected);
    // What was found stands in the rows, and the next look says it again without reading.
    for (n, expected) in [(0, pb::BlobState::Ready), (1, pb::BlobState::Corrupt)] {
        assert_eq!(state(&me, &given[n]).await, expected);
    }
    assert_eq!(problems(&verify(&me, looking()).await.0), expected);
    // Another tenant has no part in it, but for its own bytes.
    let (found, last) = verify(&world.as_tenant("acme"), reading()).await;
    assert_eq!((found.len(), last.blobs_checked, last.keys_checked), (0, 1, 1));

    // The right bytes are back, however they came.
    std::fs::write(&damaged, &given[3]).unwrap();
    upload(&me, &given[1]).await;
    upload(&me, &given[2]).await;
    let removing = pb::VerifyBlobStoreRequest { remove_orphans: true, ..reading() };
    let (found, _) = verify(&me, removing).await;
    let left = problems(&found);
    assert!(left.iter().all(|(problem, _)| *problem == Problem::OrphanBytes), "{left:?}");
    assert!(found.iter().all(|finding| finding.removed));
    for given in &given {
        assert_eq!(state(&me, given).await, pb::BlobState::Ready);
        comes_back(&me, given).await;
    }
    let database = world.superuser().await;
    is_settled(&database).await;
    assert!(!stray.exists() && young.exists());
    std::fs::remove_file(young).unwrap();
    is_consistent(&database, folder.path()).await;
    assert_eq!(verify(&me, reading()).await.0.len(), 0);
    drop(database);
    world.close().await;
}

/// A server that cannot open a blob says so, and accuses nobody.
#[tokio::test]
async fn what_cannot_be_read_is_not_damaged() {
    let (world, folder) = on_disk(&[]).await;
    let mut sealed = server(&world, folder.path(), &[("blob_key", OLD)]).await;
    let given = bytes(80, 1000);
    upload(&sealed.anonymous(), &given).await;
    assert_eq!(verify(&sealed.anonymous(), reading()).await.0.len(), 0);
    let me = world.anonymous();
    let (found, _) = verify(&me, reading()).await;
    assert_eq!(problems(&found), [(Problem::Unreadable, id(&given))]);
    assert!(found[0].message.contains("\"old\""), "{}", found[0].message);
    assert_eq!(state(&me, &given).await, pb::BlobState::Ready);
    sealed.stop().await;
    world.close().await;
}

#[tokio::test]
async fn an_age_that_is_none_is_refused() {
    let world = World::new().await;
    for seconds in [-1, 59] {
        let orphan_age = Some(prost_types::Duration { seconds, nanos: 0 });
        let request = pb::VerifyBlobStoreRequest { orphan_age, ..looking() };
        let status = world.anonymous().blobs().verify_blob_store(request).await.unwrap_err();
        assert_eq!(reason(&status), "FIELD_INVALID");
        assert_eq!(crate::world::wrong_fields(&status), ["orphan_age"]);
    }
    world.close().await;
}

/// Two servers read what nobody has read, each blob once, and mark what is damaged.
#[tokio::test]
async fn damage_is_found_without_anybody_asking() {
    let (world, folder) = on_disk(&[("blob_scrub_period_ms", "0")]).await;
    let me = world.anonymous();
    let given: Vec<Vec<u8>> = (90..120).map(|seed| bytes(seed, 10_000)).collect();
    for given in &given {
        upload(&me, given).await;
    }
    let damaged = file_of(folder.path(), &given[7]);
    std::fs::write(&damaged, vec![0; 10_000]).unwrap();
    let settings = [("blob_scrub_period_ms", "1"), ("blob_key", OLD)];
    let mut first = server(&world, folder.path(), &settings).await;
    let mut second = server(&world, folder.path(), &settings).await;
    let database = world.superuser().await;
    let count = "SELECT count(*) FILTER (WHERE action = 'VERIFY'), count(*) FILTER (WHERE action = 'CORRUPT') \
                 FROM casebook.log WHERE kind = 'blob'";
    let mut told = (0, 0);
    for _ in 0..600 {
        let row = database.query_one(count, &[]).await.unwrap();
        told = (row.get::<_, i64>(0), row.get::<_, i64>(1));
        if told == (29, 1) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(told, (29, 1));
    assert_eq!(state(&me, &given[7]).await, pb::BlobState::Corrupt);
    let get = pb::GetBlobRequest { digest: Some(digest(&given[8])) };
    assert!(ok!(me.blobs().get_blob(get)).blob.unwrap().verify_time.is_some());
    drop(database);
    first.stop().await;
    second.stop().await;
    world.close().await;
}

/// What is found waits for the caller, and everything else goes on: nothing of a blob is in memory meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_does_not_read_findings_keeps_no_memory() {
    const COUNT: usize = 60;
    let (world, folder) = on_disk(&[("metrics_listen", "127.0.0.1:0")]).await;
    let me = world.anonymous();
    let mut ids: Vec<_> = Vec::new();
    for seed in 0..COUNT as u64 {
        let given = bytes(600 + seed, 2 * MIB);
        upload(&me, &given).await;
        ids.push(id(&given));
    }
    ids.sort();
    for (path, mut content) in files(folder.path()) {
        content[0] ^= 1;
        std::fs::write(path, content).unwrap();
    }
    // No more than a few findings are on their way to this one.
    let endpoint = tonic::transport::Endpoint::from_shared(world.address.clone()).unwrap();
    let slow = crate::world::through(endpoint.initial_stream_window_size(1024).connect_lazy());
    let mut stream = ok!(slow.blobs().verify_blob_store(reading()));
    let pages = world.pages.unwrap();
    let metric = async |name: &str| {
        let page = crate::fault::page(pages, "/metrics").await;
        let line = page.lines().find(|line| line.starts_with(name));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse::<i64>().unwrap())
    };
    let pieces = "casebook_backend_attempts_total{op=\"object_store.GET\",outcome=\"ok\"} ";
    let read = async || metric(pieces).await;
    let mut before = read().await;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = read().await;
        if now > 0 && now == before {
            break;
        }
        before = now;
    }
    assert!(before < 2 * COUNT as i64, "{before} pieces were read: nothing waits for the caller");
    assert_eq!(metric("casebook_blob_in_flight_bytes ").await, 0);
    let (mut found, mut last) = (Vec::new(), None);
    while let Some(message) = stream.message().await.unwrap() {
        found.extend(message.finding.iter().map(|f| hex(&f.digest.as_ref().unwrap().value)));
        last = Some(message);
    }
    assert_eq!(found, ids);
    let last = last.unwrap();
    assert_eq!((last.blobs_checked, last.bytes_read), (COUNT as i64, (COUNT * 2 * MIB) as i64));
    world.close().await;
}
