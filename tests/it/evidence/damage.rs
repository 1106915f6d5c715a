//! Evidence that is no longer what it was is found, told and not given out as verified.

use super::*;
use crate::blob::{files, on_disk};
use pb::EvidenceProblem;
use std::path::{Path, PathBuf};

/// The file that holds these bytes.
fn file_of(folder: &Path, bytes: &[u8]) -> PathBuf {
    let found = files(folder).into_iter().find(|(_, content)| content == bytes);
    found.expect("a file of these bytes").0
}

fn problems(found: pb::VerifyEvidenceResponse) -> Vec<(String, EvidenceProblem)> {
    let told = found.findings.into_iter();
    told.map(|one| (one.r#ref.clone().unwrap().id, one.problem())).collect()
}

#[tokio::test]
async fn damaged_bytes_are_found_where_they_are_looked_at() {
    use EvidenceProblem::{DigestMismatch, MissingBytes, SizeMismatch};
    type Damage = fn(&Path);
    let damages: &[(Damage, EvidenceProblem, bool)] = &[
        (
            |path| {
                let mut content = std::fs::read(path).unwrap();
                content[10] ^= 1;
                std::fs::write(path, content).unwrap();
            },
            DigestMismatch,
            // Only reading them tells.
            false,
        ),
        (|path| std::fs::write(path, b"{}").unwrap(), SizeMismatch, true),
        (|path| std::fs::remove_file(path).unwrap(), MissingBytes, true),
    ];
    for (damage, problem, shows) in damages {
        for rehash in [false, true] {
            let (world, folder) = on_disk(&[]).await;
            let me = world.anonymous();
            decide(&me, "d").await;
            let file = bytes(3, 20_000_000);
            for one in [&b"sound"[..], &file] {
                upload(&me, one).await;
            }
            ok!(me.evidence().create_evidence_bundle(bundle("b", "d")));
            ok!(me.evidence().create_evidence_bundle(other("b-2", "d", "sound")));
            ok!(me.evidence().attach_blob(attach("a", "d", "f", &file)));
            ok!(me.evidence().attach_blob(attach("a-2", "d", "g", b"sound")));
            for content in [CANONICAL.as_bytes(), &file] {
                damage(&file_of(folder.path(), content));
            }
            let found = ok!(me.evidence().verify_evidence(verify("d", rehash)));
            assert_eq!(found.checked, 4);
            let expected = match shows | rehash {
                true => vec![("b".to_owned(), *problem), ("a".to_owned(), *problem)],
                false => vec![],
            };
            assert_eq!(problems(found), expected, "{problem:?} {rehash}");
            // What was found is marked, and found again without reading.
            if !expected.is_empty() {
                let get = pb::GetBlobRequest { digest: Some(digest(&file)) };
                let state = ok!(me.blobs().get_blob(get)).blob.unwrap().state();
                assert_eq!(state, pb::BlobState::Corrupt);
                let again = ok!(me.evidence().verify_evidence(verify("d", false)));
                assert_eq!(problems(again), expected);
            }
            // The right bytes heal them.
            for content in [CANONICAL.as_bytes(), &file] {
                let get = pb::GetBlobRequest { digest: Some(digest(content)) };
                if ok!(me.blobs().get_blob(get)).blob.unwrap().state() == pb::BlobState::Corrupt {
                    upload(&me, content).await;
                    assert_eq!(references(&me, content).await, 1);
                }
            }
            let healed = ok!(me.evidence().verify_evidence(verify("d", true)));
            let left = if expected.is_empty() { 2 } else { 0 };
            assert_eq!(healed.findings.len(), left);
            world.close().await;
        }
    }
}

#[tokio::test]
async fn a_bundle_whose_bytes_are_damaged_is_not_given_out_as_verified() {
    type Damage = fn(&Path);
    let damages: &[Damage] = &[
        |path| std::fs::write(path, CANONICAL.replace("0.85", "0.95")).unwrap(),
        |path| std::fs::write(path, b"{}").unwrap(),
        |path| std::fs::remove_file(path).unwrap(),
    ];
    for damage in damages {
        let (world, folder) = on_disk(&[]).await;
        let me = world.anonymous();
        decide(&me, "d").await;
        ok!(me.evidence().create_evidence_bundle(bundle("b", "d")));
        damage(&file_of(folder.path(), CANONICAL.as_bytes()));
        // The second time it is known.
        for _ in 0..2 {
            let status =
                fails!(me.evidence().get_decision_evidence(of("d")), DataLoss, "BLOB_CORRUPT");
            assert_eq!(info(&status)["digest"], hex(&digest(CANONICAL.as_bytes()).value));
        }
        let skipped = pb::GetDecisionEvidenceRequest { skip_verification: true, ..of("d") };
        let found = ok!(me.evidence().get_decision_evidence(skipped));
        assert!(!found.verified);
        assert_eq!(found.bundle.unwrap().evidence_data, Some(data()));
        fails!(
            me.evidence().attach_blob(attach("", "d", "f", CANONICAL.as_bytes())),
            DataLoss,
            "BLOB_CORRUPT"
        );
        // A bundle of the same data brings the bytes again.
        ok!(me.evidence().create_evidence_bundle(bundle("b-2", "d")));
        let found = ok!(me.evidence().get_decision_evidence(of("d")));
        assert!(found.verified && found.bundle.unwrap().id == "b-2");
        assert_eq!(ok!(me.evidence().verify_evidence(verify("d", true))).findings, []);
        assert_eq!(references(&me, CANONICAL.as_bytes()).await, 2);
        world.close().await;
    }
}

/// Somebody with rights on the tables has changed what is recorded.
#[tokio::test]
async fn a_record_that_was_changed_past_the_log_is_found() {
    use EvidenceProblem::{DigestMismatch, MissingBytes, NotInLog, SizeMismatch};
    let world = World::new().await;
    let me = world.anonymous();
    decide(&me, "d").await;
    upload(&me, b"file").await;
    ok!(me.evidence().create_evidence_bundle(bundle("b", "d")));
    ok!(me.evidence().attach_blob(attach("a", "d", "f", b"file")));
    let database = world.superuser().await;
    let set = async |table: &str, to: &str| {
        let sql = format!("UPDATE casebook.{table} SET {to}");
        assert_eq!(database.execute(&sql, &[]).await.unwrap(), 1);
    };
    let look = async || problems(ok!(me.evidence().verify_evidence(verify("d", false))));
    let of_bundle = |problem| ("b".to_owned(), problem);
    set("evidence_bundle", "evidence_data = jsonb_set(evidence_data, '{confidence}', '0.95')")
        .await;
    assert_eq!(look().await, [of_bundle(NotInLog), of_bundle(DigestMismatch)]);
    fails!(me.evidence().get_decision_evidence(of("d")), DataLoss, "BLOB_CORRUPT");
    // The blob is sound all the same.
    download(&me, whole(digest(CANONICAL.as_bytes()))).await.unwrap();
    set("evidence_bundle", "evidence_data = jsonb_set(evidence_data, '{confidence}', '0.85')")
        .await;
    assert_eq!(look().await, []);
    set("evidence_bundle", "size_bytes = size_bytes + 1").await;
    assert_eq!(look().await, [of_bundle(NotInLog), of_bundle(SizeMismatch)]);
    fails!(me.evidence().get_decision_evidence(of("d")), DataLoss, "BLOB_CORRUPT");
    set("evidence_bundle", "size_bytes = size_bytes - 1, metadata = '{\"a\": 1}'").await;
    assert_eq!(look().await, [of_bundle(NotInLog)]);
    set("evidence_bundle", "metadata = '{}', version = 2").await;
    assert_eq!(look().await, [of_bundle(NotInLog)]);
    set("evidence_bundle", "version = 1").await;
    set("attachment", "digest = repeat('0', 64)").await;
    let of_attachment = |problem| ("a".to_owned(), problem);
    assert_eq!(look().await, [of_attachment(NotInLog), of_attachment(MissingBytes)]);
    assert!(ok!(me.evidence().get_decision_evidence(of("d"))).verified);
    drop(database);
    world.close().await;
}

#[tokio::test]
async fn encrypted_bundles_are_verified_and_their_damage_is_found() {
    let key = [("blob_key", crate::blob::seal::OLD)];
    let (world, folder) = on_disk(&key).await;
    let me = world.anonymous();
    decide(&me, "d").await;
    ok!(me.evidence().create_evidence_bundle(bundle("b", "d")));
    let (path, mut content) = files(folder.path()).pop().unwrap();
    assert!(!content.windows(6).any(|part| part == b"critic"));
    assert!(ok!(me.evidence().get_decision_evidence(of("d"))).verified);
    assert_eq!(ok!(me.evidence().verify_evidence(verify("d", true))).findings, []);
    let last = content.len() - 1;
    content[last] ^= 1;
    std::fs::write(path, content).unwrap();
    let found = ok!(me.evidence().verify_evidence(verify("d", true)));
    assert_eq!(problems(found), [("b".to_owned(), EvidenceProblem::DigestMismatch)]);
    fails!(me.evidence().get_decision_evidence(of("d")), DataLoss, "BLOB_CORRUPT");
    world.close().await;
}

/// Verifying notes what it finds either way, as a look at the whole store does.
#[tokio::test]
async fn bytes_that_are_right_again_are_no_longer_damaged() {
    let (world, folder) = on_disk(&[]).await;
    let me = world.anonymous();
    decide(&me, "d").await;
    ok!(me.evidence().create_evidence_bundle(bundle("b", "d")));
    let path = file_of(folder.path(), CANONICAL.as_bytes());
    std::fs::write(&path, CANONICAL.replace("0.85", "0.95")).unwrap();
    let found = ok!(me.evidence().verify_evidence(verify("d", true)));
    assert_eq!(problems(found), [("b".to_owned(), EvidenceProblem::DigestMismatch)]);
    std::fs::write(&path, CANONICAL).unwrap();
    // Only reading them tells.
    let found = ok!(me.evidence().verify_evidence(verify("d", false)));
    assert_eq!(problems(found), [("b".to_owned(), EvidenceProblem::DigestMismatch)]);
    assert_eq!(ok!(me.evidence().verify_evidence(verify("d", true))).findings, []);
    let get = pb::GetBlobRequest { digest: Some(digest(CANONICAL.as_bytes())) };
    let blob = ok!(me.blobs().get_blob(get)).blob.unwrap();
    assert!(blob.state() == pb::BlobState::Ready && blob.verify_time.is_some(), "{blob:?}");
    assert!(ok!(me.evidence().get_decision_evidence(of("d"))).verified);
    world.close().await;
}
