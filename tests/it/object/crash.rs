//! A server that is killed between two steps of putting bytes under a key leaves no key without bytes, and no bytes that
//! nobody will remove.

use super::*;
use crate::blob::killed::Killed;
use crate::blob::{bytes, files, messages, send, whole};
use crate::world::{request, through};

/// What a put writes, in order, when the bytes are there.
const STEPS: [(&str, &str, &str); 4] = [
    ("INSERT", "object", "true"),
    ("INSERT", "object_version", "true"),
    ("INSERT", "blob_reference", "true"),
    ("INSERT", "log", "NEW.kind = 'object_version'"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_between_the_bytes_and_their_key_leaves_nothing_unaccounted() {
    let world = Killed::start().await;
    let before = [(("INSERT", "blob_intent", "true"), false), (("INSERT", "blob", "true"), true)];
    let steps = before.into_iter().chain(STEPS.map(|step| (step, true)));
    let mut count = 0;
    for (step, has_bytes) in steps {
        count += 1;
        let (key, given) = (format!("k/{count}"), bytes(count, 1000));
        let all = messages(&given, |header| {
            header.object = Some(pb::PutObjectRequest { key: key.clone(), ..Default::default() });
            header.options = Some(request(&key));
        });
        let before = files(world.folder.path()).len();
        let mut server = world.serve("0");
        let (me, sent) = (through(server.connect().await), all.clone());
        let call = async move { send(&me, sent).await.is_ok() };
        assert!(!world.kill_at(&mut server, step, call).await);
        let more = files(world.folder.path()).len() - before;
        assert_eq!(more, usize::from(has_bytes), "{step:?}");

        let mut server = world.serve("0");
        let me = through(server.connect().await);
        let blob = pb::GetBlobRequest { digest: Some(digest(&given)) };
        fails!(me.objects().get_object(get(&key)), NotFound, "NOT_FOUND");
        fails!(me.blobs().get_blob(blob.clone()), NotFound, "NOT_FOUND");
        // The same call, made again, is done now.
        assert!(!send(&me, all).await.unwrap().receipt.unwrap().replayed);
        let down = pb::DownloadBlobRequest { object: of(&key, ""), ..Default::default() };
        let (_, found) = download(&me, down).await.unwrap();
        assert!(found == given);
        assert_eq!(ok!(me.blobs().get_blob(blob)).blob.unwrap().reference_count, 1);
        server.kill();
    }
    world.reap().await;
    assert_eq!(
        (files(world.folder.path()).len() as u64, world.ready().await as u64),
        (count, count)
    );
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_while_a_key_is_put_leaves_its_bytes_as_they_are() {
    let world = Killed::start().await;
    let given = bytes(70, 1000);
    let mut server = world.serve("0");
    upload(&through(server.connect().await), &given).await;
    server.kill();
    for (n, step) in STEPS.into_iter().enumerate() {
        let mut server = world.serve("0");
        let me = through(server.connect().await);
        let (key, given) = (format!("k/{n}"), given.clone());
        let asked = put(&key, &given);
        let call = async move { me.objects().put_object(asked).await.is_ok() };
        assert!(!world.kill_at(&mut server, step, call).await);

        let mut server = world.serve("0");
        let me = through(server.connect().await);
        fails!(me.objects().get_object(get(&key)), NotFound, "NOT_FOUND");
        let blob = pb::GetBlobRequest { digest: Some(digest(&given)) };
        assert_eq!(ok!(me.blobs().get_blob(blob)).blob.unwrap().reference_count, 0);
        let (_, found) = download(&me, whole(digest(&given))).await.unwrap();
        assert!(found == given);
        server.kill();
    }
    world.reap().await;
    world.close().await;
}
