//! A server that is killed between two steps of storing evidence leaves neither a link without bytes nor bytes that nobody
//! will remove.

use super::*;
use crate::blob::files;
use crate::blob::killed::Killed;
use crate::world::through;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_between_the_bytes_and_the_bundle_leaves_nothing_unaccounted() {
    let world = Killed::start().await;
    let mut server = world.serve("0");
    decide(&through(server.connect().await), "d").await;
    server.kill();
    let steps = [
        // Before the intent.
        (("INSERT", "blob_intent", "true"), false),
        // After the bytes: before the bundle, the blob, the link between them, and the log.
        (("INSERT", "evidence_bundle", "true"), true),
        (("INSERT", "blob", "true"), true),
        (("INSERT", "blob_reference", "true"), true),
        (("INSERT", "log", "NEW.kind = 'blob'"), true),
    ];
    let mut count = 0;
    for (step, has_bytes) in steps {
        count += 1;
        let mut server = world.serve("0");
        let me = through(server.connect().await);
        let (id, before) = (format!("b-{count}"), files(world.folder.path()).len());
        let given = other(&id, "d", &id);
        let again = given.clone();
        let call = async move { me.evidence().create_evidence_bundle(given).await.is_ok() };
        assert!(!world.kill_at(&mut server, step, call).await);
        let more = files(world.folder.path()).len() - before;
        assert_eq!(more, usize::from(has_bytes), "{step:?}");
        // Nor is the blob there without what it is for.
        assert_eq!(world.ready().await, count - 1, "{step:?}");

        let mut server = world.serve("0");
        let me = through(server.connect().await);
        fails!(me.evidence().get_evidence_bundle(get_bundle(&id)), NotFound, "NOT_FOUND");
        ok!(me.evidence().create_evidence_bundle(again));
        assert!(ok!(me.evidence().get_decision_evidence(of("d"))).verified);
        let found = ok!(me.evidence().verify_evidence(verify("d", true)));
        assert_eq!((found.checked, found.findings), (count, vec![]), "{step:?}");
        server.kill();
    }
    world.reap().await;
    assert_eq!((files(world.folder.path()).len() as i64, world.ready().await), (count, count));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_while_a_file_is_attached_leaves_it_attached_or_not() {
    let world = Killed::start().await;
    let file = bytes(5, 1000);
    let mut server = world.serve("0");
    let me = through(server.connect().await);
    decide(&me, "d").await;
    upload(&me, &file).await;
    server.kill();
    let mut attached = Vec::new();
    let steps = [
        (("INSERT", "attachment", "true"), true),
        (("INSERT", "blob_reference", "true"), true),
        (("INSERT", "log", "true"), true),
        // Of taking one away again.
        (("UPDATE", "attachment", "true"), false),
        (("DELETE", "blob_reference", "true"), false),
        (("INSERT", "log", "true"), false),
    ];
    for (step, attaches) in steps {
        let mut server = world.serve("0");
        let me = through(server.connect().await);
        let id = format!("a-{}", attached.len());
        let (they, given) = (me.clone(), attach(&id, "d", &id, &file));
        if attaches {
            let call = async move { they.evidence().attach_blob(given).await.is_ok() };
            assert!(!world.kill_at(&mut server, step, call).await);
        } else {
            ok!(me.evidence().attach_blob(given));
            let given = pb::DetachBlobRequest { attachment_id: id.clone(), ..Default::default() };
            let call = async move { they.evidence().detach_blob(given).await.is_ok() };
            assert!(!world.kill_at(&mut server, step, call).await);
        }
        let mut server = world.serve("0");
        let me = through(server.connect().await);
        let there = attachments_of(&me, "d").await.contains(&id);
        assert_eq!(there, !attaches, "{step:?}");
        if attaches {
            ok!(me.evidence().attach_blob(attach(&id, "d", &id, &file)));
        }
        attached.push(id);
        assert_eq!(attachments_of(&me, "d").await, attached);
        assert_eq!(references(&me, &file).await, attached.len() as i64, "{step:?}");
        let (_, found) = download(&me, whole(digest(&file))).await.unwrap();
        assert!(found == file);
        server.kill();
    }
    world.reap().await;
    world.close().await;
}
