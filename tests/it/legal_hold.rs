//! Legal holds: what they hold cannot be deleted, by whatever way.

use crate::claim::{create_claim, verification};
use crate::help::*;
use crate::world::{World, create, decision, request, wrong_fields};
use casebook::pb;
use pb::ResourceKind as Kind;

pub fn reference(kind: Kind, id: &str) -> pb::ResourceRef {
    pb::ResourceRef { kind: kind.into(), id: id.into(), version: 0 }
}

pub fn hold(id: &str, refs: Vec<pb::ResourceRef>, subject_id: &str) -> pb::CreateLegalHoldRequest {
    pb::CreateLegalHoldRequest {
        legal_hold_id: id.into(),
        legal_hold: Some(pb::LegalHold {
            reason: "a court asked".into(),
            matter: "4 O 12/26".into(),
            refs,
            subject_id: subject_id.into(),
            ..Default::default()
        }),
        options: None,
    }
}

pub fn release(id: &str) -> pb::ReleaseLegalHoldRequest {
    pb::ReleaseLegalHoldRequest {
        legal_hold_id: id.into(),
        reason: "it is over".into(),
        options: None,
    }
}

fn delete_claim(id: &str) -> pb::DeleteClaimRequest {
    pb::DeleteClaimRequest { claim_id: id.into(), ..Default::default() }
}

#[tokio::test]
async fn what_is_held_stays_until_it_is_released() {
    let world = World::new().await;
    let who = world.anonymous().header("x-casebook-actor", "clerk");
    let mut client = who.retention();
    ok!(who.decisions().create_decision(create("d", decision("DENY", 0.5))));
    let made = ok!(client.create_legal_hold(hold("h", vec![reference(Kind::Decision, "d")], "")));
    let made = made.legal_hold.unwrap();
    assert_eq!(made.refs, [reference(Kind::Decision, "d")]);
    let status =
        fails!(who.decisions().delete_decision(delete("d")), FailedPrecondition, "ON_HOLD");
    assert_eq!(info(&status)["legal_hold_id"], "h");
    // Everything else goes on.
    ok!(who.decisions().update_decision(update(
        "d",
        &["retention_class"],
        pb::Decision::default()
    )));
    let mut once = release("h");
    once.options = Some(request("release"));
    let released = ok!(client.release_legal_hold(once.clone())).legal_hold.unwrap();
    assert!(released.release_time.is_some());
    assert_eq!(
        (released.released_by.as_str(), released.release_reason.as_str()),
        ("clerk", "it is over")
    );
    assert!(ok!(client.release_legal_hold(once)).receipt.unwrap().replayed);
    let again = ok!(client.release_legal_hold(release("h")));
    assert_eq!(
        (again.legal_hold, again.receipt.unwrap().unchanged),
        (Some(released.clone()), true)
    );
    ok!(who.decisions().delete_decision(delete("d")));
    let get = pb::GetLegalHoldRequest { legal_hold_id: "h".into(), ..Default::default() };
    assert_eq!(ok!(client.get_legal_hold(get.clone())).legal_hold, Some(released));
    let first = pb::GetLegalHoldRequest { version: 1, ..get };
    assert_eq!(ok!(client.get_legal_hold(first)).legal_hold, Some(made));
    let list = pb::ListLegalHoldsRequest {
        r#where: expression("NOT release_time:* OR matter = \"4 O 12/26\""),
        ..Default::default()
    };
    assert_eq!(ok!(client.list_legal_holds(list)).legal_holds.len(), 1);
    world.close().await;
}

#[tokio::test]
async fn a_held_part_keeps_the_whole_and_a_subject_everything() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut client = who.retention();
    let with = |id: &str, subject: &str| pb::CreateClaimRequest {
        claim: Some(pb::Claim { subject_id: subject.into(), ..crate::claim::claim("c") }),
        verifications: vec![pb::Verification {
            id: format!("v-{id}"),
            ..verification("", "f", 0.5)
        }],
        ..create_claim(id)
    };
    ok!(who.claims().create_claim(with("one", "")));
    ok!(who.claims().create_claim(with("two", "ada")));
    let refs = vec![reference(Kind::Verification, "v-one")];
    ok!(client.create_legal_hold(hold("part", refs, "")));
    ok!(client.create_legal_hold(hold("person", Vec::new(), "ada")));
    let status =
        fails!(who.claims().delete_claim(delete_claim("one")), FailedPrecondition, "ON_HOLD");
    assert_eq!(info(&status)["legal_hold_id"], "part");
    let status =
        fails!(who.claims().delete_claim(delete_claim("two")), FailedPrecondition, "ON_HOLD");
    assert_eq!(info(&status)["legal_hold_id"], "person");
    // What is recorded later about the person is held, too; another person's is not.
    ok!(who.claims().create_claim(with("three", "ada")));
    ok!(who.claims().create_claim(with("four", "bob")));
    fails!(who.claims().delete_claim(delete_claim("three")), FailedPrecondition, "ON_HOLD");
    ok!(who.claims().delete_claim(delete_claim("four")));
    // Within a transaction as well, which then does nothing.
    use pb::execute_transaction_request::operation::Operation;
    let operations = vec![
        Operation::CreateClaim(create_claim("five")),
        Operation::DeleteClaim(delete_claim("three")),
    ];
    let all = crate::transaction::execute(operations);
    fails!(who.transactions().execute_transaction(all), FailedPrecondition, "ON_HOLD");
    let five = pb::GetClaimRequest { claim_id: "five".into(), ..Default::default() };
    fails!(who.claims().get_claim(five), NotFound, "NOT_FOUND");
    // Another tenant's hold on the same ids is nothing to us.
    world.tenant("other").await;
    ok!(who.claims().create_claim(with("six", "carol")));
    let refs = vec![reference(Kind::Claim, "six")];
    ok!(world.as_tenant("other").retention().create_legal_hold(hold("x", refs, "carol")));
    ok!(who.claims().delete_claim(delete_claim("six")));
    world.close().await;
}

#[tokio::test]
async fn a_hold_is_of_a_kind_and_an_id() {
    let world = World::new().await;
    let who = world.anonymous();
    ok!(who.decisions().create_decision(create("one", decision("DENY", 0.5))));
    for id in ["one", "two"] {
        ok!(who.claims().create_claim(create_claim(id)));
    }
    let refs = vec![reference(Kind::Claim, "one"), reference(Kind::Decision, "two")];
    ok!(who.retention().create_legal_hold(hold("h", refs, "")));
    ok!(who.decisions().delete_decision(delete("one")));
    ok!(who.claims().delete_claim(delete_claim("two")));
    fails!(who.claims().delete_claim(delete_claim("one")), FailedPrecondition, "ON_HOLD");
    // It holds also what comes later under the id.
    ok!(who.decisions().create_decision(create("two", decision("DENY", 0.5))));
    fails!(who.decisions().delete_decision(delete("two")), FailedPrecondition, "ON_HOLD");
    world.close().await;
}

#[tokio::test]
async fn a_hold_says_why_and_what() {
    let world = World::new().await;
    let mut client = world.anonymous().retention();
    let mut wrong = hold("", Vec::new(), "");
    wrong.legal_hold.as_mut().unwrap().reason.clear();
    let status = fails!(client.create_legal_hold(wrong), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["legal_hold.refs", "legal_hold.reason"]);
    let refs = vec![reference(Kind::Unspecified, "d"), reference(Kind::Claim, "")];
    let status =
        fails!(client.create_legal_hold(hold("", refs, "")), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["legal_hold.refs[0].kind", "legal_hold.refs[1].id"]);
    fails!(client.release_legal_hold(release("none")), NotFound, "NOT_FOUND");
    world.close().await;
}

/// Deletions and a hold at the same time: what the hold came before is there.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_held_is_deleted_behind_the_hold() {
    let world = World::new().await;
    for round in 0..20 {
        let (id, hold_id) = (format!("c{round}"), format!("h{round}"));
        let who = world.anonymous();
        ok!(who.claims().create_claim(create_claim(&id)));
        let (mut claims, mut holds) = (who.claims(), who.retention());
        let refs = vec![reference(Kind::Claim, &id)];
        let (deleted, held) = tokio::join!(
            claims.delete_claim(delete_claim(&id)),
            holds.create_legal_hold(hold(&hold_id, refs, ""))
        );
        let held = held.unwrap().into_inner().receipt.unwrap().audit_seq;
        match deleted {
            Ok(deleted) => {
                let deleted = deleted.into_inner().receipt.unwrap().audit_seq;
                assert!(deleted < held, "deleted at {deleted}, held since {held}");
            }
            Err(status) => assert_eq!(crate::world::reason(&status), "ON_HOLD"),
        }
    }
    world.close().await;
}

#[tokio::test]
async fn a_held_whole_keeps_its_parts_whatever_takes_them() {
    let world = World::new().await;
    let who = world.anonymous();
    let mut documents = who.documents();
    ok!(documents.create_document(pb::CreateDocumentRequest {
        document_id: "doc".into(),
        document: Some(pb::Document {
            filename: "a.txt".into(),
            source_path: "/a.txt".into(),
            ..Default::default()
        }),
        options: None,
    }));
    let chunk = |n: i32| pb::Chunk {
        id: format!("c{n}"),
        chunk_index: n,
        text: "text".into(),
        ..Default::default()
    };
    let write = |rows: Vec<pb::Chunk>, from| pb::BatchCreateChunksRequest {
        document_id: "doc".into(),
        chunks: rows,
        delete_from_index: from,
        options: Some(pb::WriteOptions {
            on_conflict: pb::OnConflict::Replace.into(),
            ..Default::default()
        }),
    };
    ok!(documents.batch_create_chunks(write(vec![chunk(0), chunk(1)], None)));
    ok!(who.retention().create_legal_hold(hold("h", vec![reference(Kind::Document, "doc")], "")));
    let delete = pb::DeleteChunkRequest { chunk_id: "c1".into(), ..Default::default() };
    fails!(documents.delete_chunk(delete.clone()), FailedPrecondition, "ON_HOLD");
    let fewer = write(vec![chunk(0)], Some(1));
    fails!(documents.batch_create_chunks(fewer.clone()), FailedPrecondition, "ON_HOLD");
    // More may come.
    ok!(documents.batch_create_chunks(write(vec![chunk(2)], None)));
    ok!(who.retention().release_legal_hold(release("h")));
    ok!(documents.delete_chunk(delete));
    assert_eq!(ok!(documents.batch_create_chunks(fewer)).total_chunks, 1);
    world.close().await;
}
