//! Verifying that nobody asks for (F99, F127).

use super::{batch, some};
use crate::blob::killed::until;
use crate::vectors::space;
use crate::world::{As, World, config_of, url_of};
use casebook::pb;

#[tokio::test]
async fn vectors_are_verified_without_anybody_asking() {
    let settings = [("sync_check_period_ms", "20"), ("metrics_listen", "127.0.0.1:0")];
    let world = World::with(&settings).await;
    // Another server does the same, and each tenant is one server's at a time.
    let url = url_of(&config_of(&world.database).await);
    let mut other = World::on(&world.database, &url, &settings).await;
    let who = world.anonymous();
    let status = |who: &As| {
        let who = who.clone();
        async move {
            let status = pb::GetSyncStatusRequest::default();
            let answer = ok!(who.syncs().get_sync_status(status));
            answer.projections[0].last_check
        }
    };
    assert_eq!(status(&who).await, None);
    space(&who, "s", 2).await;
    ok!(who.syncs().batch_sync_embeddings(batch("s", some(5, 2))));
    let is_found = |check: &Option<pb::SyncCheck>, missing: i64| {
        check
            .as_ref()
            .is_some_and(|check| check.samples_checked == 5 && check.missing_in_vectordb == missing)
    };
    until("a look at all", async || is_found(&status(&who).await, 0)).await;
    let first = status(&who).await.unwrap();
    assert!(first.in_sync, "{first:?}");
    // It is looked at again and again.
    until("a later look", async || status(&who).await.unwrap().check_time != first.check_time)
        .await;
    let owner = world.superuser().await;
    let lose = "DELETE FROM casebook.embedding_vector WHERE embedding_uid = \
                (SELECT uid FROM casebook.embedding WHERE embedding_id = 'e-3')";
    owner.batch_execute(lose).await.unwrap();
    until("what is missing", async || is_found(&status(&who).await, 1)).await;
    assert!(!status(&who).await.unwrap().in_sync);
    // Of those without vectors there is nothing to say, and nobody learns of others.
    world.tenant("acme").await;
    assert_eq!(status(&world.as_tenant("acme")).await, None);
    let page = |world: &World| crate::fault::page(world.pages.unwrap(), "/metrics");
    let seen = [page(&world).await, page(&other).await];
    let is_counted = |page: &String| !page.contains("casebook_sync_different_total 0");
    assert!(seen.iter().any(is_counted), "no metric of it: {seen:?}");
    drop(owner);
    other.stop().await;
    world.close().await;
}
