//! Decisions: F13 to F42, through the client.

use crate::world::{World, create, create_once, decision, get, reason};
use tonic::Code;

#[tokio::test]
async fn a_decision_is_read_as_it_was_recorded() {
    let world = World::new().await;
    let mut client = world.decisions();
    let created = client
        .create_decision(create("dec-123", decision("ALLOW", 0.95)))
        .await
        .unwrap()
        .into_inner();
    let read = client.get_decision(get("dec-123")).await.unwrap().into_inner();
    assert_eq!(read.decision, created.decision);
    let read = read.decision.unwrap();
    assert_eq!((read.final_verdict.as_str(), read.avg_confidence), ("ALLOW", Some(0.95)));
    assert_eq!(created.receipt.unwrap().audit_seq, 1);

    let taken = client.create_decision(create("dec-123", decision("DENY", 0.5))).await.unwrap_err();
    assert_eq!((taken.code(), reason(&taken).as_str()), (Code::AlreadyExists, "EXISTS"));
    let missing = client.get_decision(get("dec-124")).await.unwrap_err();
    assert_eq!((missing.code(), reason(&missing).as_str()), (Code::NotFound, "NOT_FOUND"));
    world.close().await;
}

#[tokio::test]
async fn a_repeated_request_gives_the_first_answer() {
    let world = World::new().await;
    let mut client = world.decisions();
    let first = client
        .create_decision(create_once("r-1", "", decision("ALLOW", 0.9)))
        .await
        .unwrap()
        .into_inner();
    let again = client
        .create_decision(create_once("r-1", "", decision("ALLOW", 0.9)))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(again.decision, first.decision);
    assert!(again.receipt.unwrap().replayed && !first.receipt.unwrap().replayed);
    let other =
        client.create_decision(create_once("r-1", "", decision("DENY", 0.9))).await.unwrap_err();
    assert_eq!(
        (other.code(), reason(&other).as_str()),
        (Code::InvalidArgument, "REQUEST_ID_REUSED")
    );
    world.close().await;
}
