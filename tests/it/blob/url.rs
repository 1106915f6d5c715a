//! Requests for signed URLs that are refused, whatever the store.

use super::*;
use crate::world::wrong_fields;

pub fn ask(bytes: &[u8], ttl: Option<(i64, i32)>) -> pb::CreateDownloadUrlRequest {
    pb::CreateDownloadUrlRequest {
        digest: Some(digest(bytes)),
        ttl: ttl.map(|(seconds, nanos)| prost_types::Duration { seconds, nanos }),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_store_without_signatures_and_what_makes_no_url_are_refused() {
    let (world, _folder) = on_disk(&[]).await;
    let me = world.anonymous();
    upload(&me, b"mine").await;
    world.tenant("other").await;
    let before = head(&me).await;

    for ttl in [(0, 0), (-1, 0), (0, 999_999_999), (1, 500), (604_800, 1), (604_801, 0)] {
        let status = me.blobs().create_download_url(ask(b"mine", Some(ttl))).await.unwrap_err();
        assert_eq!(wrong_fields(&status), ["ttl"], "{ttl:?}");
    }
    for name in ["a/b", "a\\b", "a\r\nX: y", "a\u{85}", "a\0", &"n".repeat(256)] {
        let request =
            pb::CreateDownloadUrlRequest { response_filename: name.into(), ..ask(b"mine", None) };
        let status = me.blobs().create_download_url(request).await.unwrap_err();
        assert_eq!(wrong_fields(&status), ["response_filename"], "{name:?}");
    }
    let nothing = pb::CreateDownloadUrlRequest::default();
    let status = me.blobs().create_download_url(nothing).await.unwrap_err();
    assert_eq!(wrong_fields(&status), ["digest"]);
    fails!(me.blobs().create_download_url(ask(b"nobody's", None)), NotFound, "NOT_FOUND");
    let other = world.as_tenant("other");
    fails!(other.blobs().create_download_url(ask(b"mine", None)), NotFound, "NOT_FOUND");

    let request = ask(b"mine", None);
    let status =
        fails!(me.blobs().create_download_url(request), FailedPrecondition, "NOT_SIGNABLE");
    assert_eq!(info(&status)["storage_backend"], "local");
    // What was refused is no access.
    assert_eq!(head(&me).await, before);
    world.close().await;
}
