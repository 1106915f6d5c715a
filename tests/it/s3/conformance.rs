//! What stores of objects honour, asked of each through object_store 0.14.2: so that a store of blobs relies on nothing
//! else. `cargo test --test it -- s3::conformance --nocapture` prints the tables.
//!
//! What was found of memory, local files, moto 5.2.5 and Ceph's gateway 16.2.15 (Debian 12):
//!
//! - All have: create-if-absent that refuses a second and keeps the first; exact ranges, cut at the end and refused after
//!   it; multipart uploads that nobody sees until they are complete; reads, lists and deletions that are true at once.
//! - None keeps what is there when a multipart upload is completed over it, and the trait cannot ask for it. So a large
//!   object needs a name that no other bytes can have. A digest is one while blobs are stored as they are; once they are
//!   encrypted, two uploads of a blob differ, and each needs a name of its own.
//! - Replacing if unchanged (If-Match) works in memory and on moto only: local files refuse it, and Ceph refuses the right
//!   etag. Copying if absent fails on Ceph. Neither can be relied on.
//! - Local files keep no attributes, list without an order, and answer NOT_FOUND to the deletion of nothing. Memory lets an
//!   aborted upload be completed.
//! - Neither moto nor Ceph verifies a presigned checksum: what a stranger has PUT must be read again. Ceph does hold to the
//!   headers that are signed, to their values and to the expiry; moto looks at no signature.
//! - object_store signs no Content-Length into a URL: src/store/blob_store/sigv4.rs does, and Ceph holds to it.

use super::{Brand, bucket, server};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use object_store::aws::AmazonS3;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::signer::{Method, SignedUrlOptions, Signer as _};
use object_store::{
    Attribute, AttributeValue, Attributes, Error, GetOptions, GetRange, ObjectStore,
    ObjectStoreExt as _, PutMode, PutOptions, PutPayload, PutResult, UpdateVersion,
};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What a store makes of something that one could wish for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does so.
    Yes,
    /// It does something else, and does not say so.
    No(String),
    /// It says that it does not.
    Refused,
    /// Now this and now that. Only what is known can say so.
    Varies,
}
use Verdict::{No, Refused, Varies, Yes};

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Yes => f.write_str("yes"),
            No(what) => write!(f, "no: {what}"),
            Refused => f.write_str("refused"),
            Varies => f.write_str("varies"),
        }
    }
}

fn no<T>(what: impl Into<String>) -> Result<T, Verdict> {
    Err(No(what.into()))
}

fn check(holds: bool, what: &str) -> Result<(), Verdict> {
    if holds { Ok(()) } else { no(what) }
}

/// A step that should succeed.
trait Does<T> {
    fn does(self) -> Result<T, Verdict>;
}

impl<T> Does<T> for Result<T, Error> {
    fn does(self) -> Result<T, Verdict> {
        self.map_err(|error| match error {
            Error::NotImplemented { .. } | Error::NotSupported { .. } => Refused,
            // With the store's own words, which may be long.
            other => No(other.to_string().replace('\n', " ").chars().take(600).collect()),
        })
    }
}

type Probed = Result<(), Verdict>;

async fn text(store: &dyn ObjectStore, at: &Path) -> Result<Bytes, Verdict> {
    store.get(at).await.does()?.bytes().await.does()
}

async fn put(
    store: &dyn ObjectStore,
    at: &Path,
    content: &'static str,
) -> Result<PutResult, Verdict> {
    store.put(at, content.into()).await.does()
}

async fn put_create(
    store: &dyn ObjectStore,
    at: &Path,
    content: String,
) -> Result<PutResult, Error> {
    store.put_opts(at, content.into(), PutMode::Create.into()).await
}

fn is_missing<T>(result: &Result<T, Error>) -> bool {
    matches!(result, Err(Error::NotFound { .. }))
}

async fn create_refuses_a_second(store: &dyn ObjectStore) -> Probed {
    let at = Path::from("create/second");
    put_create(store, &at, "one".into()).await.does()?;
    match put_create(store, &at, "two".into()).await {
        Err(Error::AlreadyExists { .. }) => {}
        Err(other) => return no(other.to_string()),
        Ok(_) => return no("overwritten"),
    }
    check(text(store, &at).await? == "one", "the first is gone")
}

async fn create_has_one_winner_of_many(store: &dyn ObjectStore) -> Probed {
    for round in 0..5 {
        let at = Path::from(format!("create/race-{round}"));
        let racers = (0..8).map(|n| put_create(store, &at, format!("racer {n}")));
        let ended = futures_util::future::join_all(racers).await;
        let mut winners = Vec::new();
        for (n, result) in ended.into_iter().enumerate() {
            match result {
                Ok(_) => winners.push(format!("racer {n}")),
                Err(Error::AlreadyExists { .. }) => {}
                Err(other) => return no(other.to_string()),
            }
        }
        check(winners.len() == 1, &format!("{} winners", winners.len()))?;
        check(text(store, &at).await? == winners[0], "another's bytes than the winner's")?;
    }
    Ok(())
}

async fn update_needs_the_right_etag(store: &dyn ObjectStore) -> Probed {
    let at = Path::from("update/object");
    let first = UpdateVersion::from(put(store, &at, "one").await?);
    let update = |content: &'static str, version: &UpdateVersion| {
        store.put_opts(&at, content.into(), PutMode::Update(version.clone()).into())
    };
    update("two", &first).await.does()?;
    match update("three", &first).await {
        Err(Error::Precondition { .. }) => {}
        Err(other) => return no(other.to_string()),
        Ok(_) => return no("overwritten"),
    }
    check(text(store, &at).await? == "two", "other bytes")
}

/// S3's least size of a part that is not the last.
const PART_BYTES: usize = 5 << 20;

async fn multipart_is_one_object(store: &dyn ObjectStore) -> Probed {
    let at = Path::from("multipart/object");
    let first: Bytes = (0..PART_BYTES).map(|n| (n % 251) as u8).collect::<Vec<_>>().into();
    let mut upload = store.put_multipart(&at).await.does()?;
    // Parts may come to the store in any order.
    let one = upload.put_part(PutPayload::from(first.clone()));
    let other = upload.put_part("the end".into());
    other.await.does()?;
    one.await.does()?;
    check(is_missing(&store.head(&at).await), "there before it is complete")?;
    let listed: Vec<_> = store.list(Some(&Path::from("multipart"))).try_collect().await.does()?;
    check(listed.is_empty(), "listed before it is complete")?;
    upload.complete().await.does()?;
    let got = text(store, &at).await?;
    check(got.len() == PART_BYTES + 7 && got.starts_with(&first), "other bytes")?;
    check(got.ends_with(b"the end"), "another end")
}

async fn multipart_abort_leaves_nothing(store: &dyn ObjectStore) -> Probed {
    let at = Path::from("multipart-abort/object");
    let mut upload = store.put_multipart(&at).await.does()?;
    upload.put_part("some".into()).await.does()?;
    upload.abort().await.does()?;
    check(is_missing(&store.head(&at).await), "it is there")?;
    check(upload.complete().await.is_err(), "it can be completed all the same")?;
    check(is_missing(&store.head(&at).await), "it is there then")
}

async fn multipart_keeps_what_is_there(store: &dyn ObjectStore) -> Probed {
    let at = Path::from("multipart-over/object");
    let mut upload = store.put_multipart(&at).await.does()?;
    upload.put_part("late".into()).await.does()?;
    put(store, &at, "early").await?;
    let completed = upload.complete().await;
    let kept = text(store, &at).await? == "early";
    check(kept && completed.is_err(), "overwritten")
}

async fn copy_overwrites(store: &dyn ObjectStore) -> Probed {
    let (from, to) = (Path::from("copy/from"), Path::from("copy/to"));
    put(store, &from, "new").await?;
    put(store, &to, "old").await?;
    store.copy(&from, &to).await.does()?;
    check(text(store, &to).await? == "new" && text(store, &from).await? == "new", "other bytes")
}

/// On S3 this is a multipart upload of copied parts, whose completion has `If-None-Match: *`.
async fn copy_create_refuses_a_second(store: &dyn ObjectStore) -> Probed {
    let (from, to) = (Path::from("copy-create/from"), Path::from("copy-create/to"));
    put(store, &from, "new").await?;
    store.copy_if_not_exists(&from, &to).await.does()?;
    check(text(store, &to).await? == "new", "not copied")?;
    put(store, &from, "newer").await?;
    match store.copy_if_not_exists(&from, &to).await {
        Err(Error::AlreadyExists { .. }) => {}
        Err(other) => return no(other.to_string()),
        Ok(()) => return no("overwritten"),
    }
    check(text(store, &to).await? == "new", "the first is gone")
}

async fn ranges_are_exact(store: &dyn ObjectStore) -> Probed {
    let at = Path::from("range/object");
    put(store, &at, "0123456789").await?;
    let range = async |range: GetRange| -> Result<Bytes, Verdict> {
        let options = GetOptions { range: Some(range), ..GetOptions::default() };
        store.get_opts(&at, options).await.does()?.bytes().await.does()
    };
    check(range(GetRange::Bounded(2..5)).await? == "234", "bounded")?;
    check(range(GetRange::Offset(7)).await? == "789", "offset")?;
    check(range(GetRange::Suffix(3)).await? == "789", "suffix")?;
    check(range(GetRange::Bounded(8..100)).await? == "89", "beyond the end")?;
    let several = store.get_ranges(&at, &[0..1, 9..10, 3..4]).await.does()?;
    check(several == ["0", "9", "3"], "several")
}

async fn a_range_after_the_end_is_refused(store: &dyn ObjectStore) -> Probed {
    let at = Path::from("range-after/object");
    put(store, &at, "0123456789").await?;
    check(store.get_range(&at, 10..12).await.is_err(), "answered")?;
    check(!is_missing(&store.get_range(&at, 10..12).await), "as if it were not there")
}

async fn gets_have_conditions(store: &dyn ObjectStore) -> Probed {
    let at = Path::from("condition/object");
    let etag = put(store, &at, "one").await?.e_tag;
    let Some(etag) = etag else { return no("no etag") };
    let matching = GetOptions { if_match: Some(etag.clone()), ..GetOptions::default() };
    store.get_opts(&at, matching).await.does()?;
    let unchanged = GetOptions { if_none_match: Some(etag), ..GetOptions::default() };
    let unchanged = store.get_opts(&at, unchanged).await;
    check(matches!(unchanged, Err(Error::NotModified { .. })), "unchanged, and sent")?;
    let other = GetOptions { if_match: Some("\"other\"".into()), ..GetOptions::default() };
    let other = store.get_opts(&at, other).await;
    check(matches!(other, Err(Error::Precondition { .. })), "changed, and sent")
}

async fn heads_tell_size_and_etag(store: &dyn ObjectStore) -> Probed {
    let at = Path::from("head/object");
    let written = put(store, &at, "0123456789").await?;
    let head = store.head(&at).await.does()?;
    check(head.size == 10 && head.location == at, "another size")?;
    check(head.e_tag.is_some() && head.e_tag == written.e_tag, "another etag than put told")?;
    check(is_missing(&store.head(&Path::from("head/none")).await), "of what is not there")
}

async fn empty_objects_are_objects(store: &dyn ObjectStore) -> Probed {
    let at = Path::from("empty/object");
    put(store, &at, "").await?;
    check(store.head(&at).await.does()?.size == 0, "a size")?;
    check(text(store, &at).await?.is_empty(), "bytes")
}

async fn writes_are_seen_at_once(store: &dyn ObjectStore) -> Probed {
    let (folder, at) = (Path::from("seen"), Path::from("seen/object"));
    for round in 0..10 {
        store.put(&at, format!("{round}").into()).await.does()?;
        check(text(store, &at).await? == format!("{round}"), "an older one is read")?;
        let listed: Vec<_> = store.list(Some(&folder)).try_collect().await.does()?;
        check(listed.len() == 1, "not listed")?;
        store.delete(&at).await.does()?;
        check(is_missing(&store.get(&at).await), "read after deletion")?;
        let listed: Vec<_> = store.list(Some(&folder)).try_collect().await.does()?;
        check(listed.is_empty(), "listed after deletion")?;
    }
    Ok(())
}

async fn deleting_nothing_succeeds(store: &dyn ObjectStore) -> Probed {
    match store.delete(&Path::from("delete/none")).await {
        Ok(()) => Ok(()),
        Err(Error::NotFound { .. }) => Err(Refused),
        Err(other) => no(other.to_string()),
    }
}

const MANY: usize = 1005;

/// More than a page of a list, and than one request to delete.
async fn many_are_listed_and_deleted(store: &dyn ObjectStore) -> Probed {
    let names: Vec<Path> = (0..MANY).map(|n| Path::from(format!("many/{n:04}"))).collect();
    let puts = futures_util::stream::iter(names.clone())
        .map(|at| async move { store.put(&at, "x".into()).await });
    puts.buffer_unordered(16).try_collect::<Vec<_>>().await.does()?;
    put(store, &Path::from("many-others/object"), "x").await?;

    let folder = Path::from("many");
    let listed: Vec<_> =
        store.list(Some(&folder)).map_ok(|meta| meta.location).try_collect().await.does()?;
    let mut sorted = listed;
    sorted.sort();
    check(sorted == names, "not all, or others")?;
    let mut after: Vec<_> = store
        .list_with_offset(Some(&folder), &names[MANY - 3])
        .map_ok(|meta| meta.location)
        .try_collect()
        .await
        .does()?;
    after.sort();
    check(after == names[MANY - 2..], "an offset is not held to")?;

    let all = futures_util::stream::iter(names.into_iter().map(Ok)).boxed();
    let deleted: Vec<_> = store.delete_stream(all).try_collect().await.does()?;
    check(deleted.len() == MANY, "not all deleted")?;
    let left: Vec<_> = store.list(Some(&folder)).try_collect().await.does()?;
    check(left.is_empty(), "some are left")?;
    store.head(&Path::from("many-others/object")).await.does().map(|_| ())
}

async fn lists_have_an_order(store: &dyn ObjectStore) -> Probed {
    let folder = Path::from("order");
    for n in [7, 3, 9, 1, 8, 2, 6, 0, 5, 4] {
        store.put(&folder.clone().join(format!("{n}")), "x".into()).await.does()?;
    }
    let listed: Vec<_> =
        store.list(Some(&folder)).map_ok(|meta| meta.location).try_collect().await.does()?;
    check(listed.is_sorted(), "none")
}

async fn folders_are_listed(store: &dyn ObjectStore) -> Probed {
    for at in ["folders/a/1", "folders/a/2", "folders/b/1", "folders/c"] {
        put(store, &Path::from(at), "x").await?;
    }
    let level = store.list_with_delimiter(Some(&Path::from("folders"))).await.does()?;
    let mut within = level.common_prefixes;
    within.sort();
    check(within == [Path::from("folders/a"), Path::from("folders/b")], "other folders")?;
    check(level.objects.len() == 1, "other objects")
}

async fn attributes_are_kept(store: &dyn ObjectStore) -> Probed {
    let at = Path::from("attributes/object");
    let attributes: Attributes = [
        (Attribute::ContentType, AttributeValue::from("text/plain")),
        (Attribute::Metadata("tenant".into()), AttributeValue::from("acme")),
    ]
    .into_iter()
    .collect();
    let options = PutOptions { attributes: attributes.clone(), ..PutOptions::default() };
    store.put_opts(&at, "x".into(), options).await.does()?;
    check(store.get(&at).await.does()?.attributes == attributes, "others")
}

async fn names_may_have_any_letters(store: &dyn ObjectStore) -> Probed {
    for name in ["a b", "a+b", "a%20b", "ä/ö", "a=b&c", "a~b'()*!", "x/.y", "日本"] {
        let at = Path::from("names").join(name);
        put(store, &at, "x").await?;
        let listed: Vec<_> = store.list(Some(&Path::from("names"))).try_collect().await.does()?;
        check(
            listed.iter().any(|meta| meta.location == at),
            &format!("{name} is listed as {listed:?}"),
        )?;
        store.delete(&at).await.does()?;
    }
    Ok(())
}

pub type Table = BTreeMap<&'static str, Verdict>;

macro_rules! ask {
    ($asked:expr, $($probe:ident),+ $(,)?) => {{
        let mut table = Table::new();
        $( table.insert(stringify!($probe), $probe($asked).await.err().unwrap_or(Yes)); )+
        table
    }};
}

pub async fn probe(store: &dyn ObjectStore) -> Table {
    ask!(
        store,
        create_refuses_a_second,
        create_has_one_winner_of_many,
        update_needs_the_right_etag,
        multipart_is_one_object,
        multipart_abort_leaves_nothing,
        multipart_keeps_what_is_there,
        copy_overwrites,
        copy_create_refuses_a_second,
        ranges_are_exact,
        a_range_after_the_end_is_refused,
        gets_have_conditions,
        heads_tell_size_and_etag,
        empty_objects_are_objects,
        writes_are_seen_at_once,
        deleting_nothing_succeeds,
        many_are_listed_and_deleted,
        lists_have_an_order,
        folders_are_listed,
        attributes_are_kept,
        names_may_have_any_letters,
    )
}

/// A presigned PUT with headers that are part of the signature, and the status of the answer to it. Refused, if the client
/// does not sign such a header.
async fn put_presigned(
    store: &AmazonS3,
    at: &str,
    signed: &[(HeaderName, String)],
    sent: &[(HeaderName, String)],
    body: &'static str,
) -> Result<u16, Verdict> {
    let mut options = SignedUrlOptions::default();
    for (name, value) in signed {
        options = options.with_signed_header(name.clone(), HeaderValue::from_str(value).unwrap());
    }
    let url = store
        .signed_url_opts(Method::PUT, &Path::from(at), Duration::from_secs(60), &options)
        .await
        .map_err(|_| Refused)?;
    let mut request = reqwest::Client::new().put(url).body(body);
    for (name, value) in sent {
        request = request.header(name, value);
    }
    Ok(request.send().await.map_or(0, |answer| answer.status().as_u16()))
}

fn checksum(of: &str) -> (HeaderName, String) {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let name = HeaderName::from_static("x-amz-checksum-sha256");
    (name, STANDARD.encode(Sha256::digest(of)))
}

async fn presigned_checksum_is_verified(store: &AmazonS3) -> Probed {
    let sum = [checksum("what was said")];
    let status = put_presigned(store, "signed/sum", &sum, &sum, "what was said").await?;
    check(status == 200, &format!("the right bytes: {status}"))?;
    let status = put_presigned(store, "signed/sum-wrong", &sum, &sum, "something else").await?;
    check((400..500).contains(&status), &format!("other bytes: {status}"))?;
    check(is_missing(&store.head(&Path::from("signed/sum-wrong")).await), "kept")
}

async fn presigned_headers_are_required(store: &AmazonS3) -> Probed {
    let sum = [checksum("what was said")];
    let status = put_presigned(store, "signed/without", &sum, &[], "something else").await?;
    check((400..500).contains(&status), &format!("left out: {status}"))?;
    let other = [checksum("something else")];
    let status = put_presigned(store, "signed/other", &sum, &other, "something else").await?;
    check((400..500).contains(&status), &format!("replaced: {status}"))
}

async fn presigned_length_is_required(store: &AmazonS3) -> Probed {
    let length = [(CONTENT_LENGTH, "13".to_owned())];
    let status = put_presigned(store, "signed/length", &length, &[], "what was said").await?;
    check(status == 200, &format!("the right length: {status}"))?;
    let status = put_presigned(store, "signed/longer", &length, &[], "something longer").await?;
    check((400..500).contains(&status), &format!("a longer body: {status}"))
}

async fn presigned_create_refuses_a_second(store: &AmazonS3) -> Probed {
    let once = [(http::header::IF_NONE_MATCH, "*".to_owned())];
    let status = put_presigned(store, "signed/once", &once, &once, "one").await?;
    check(status == 200, &format!("the first: {status}"))?;
    let status = put_presigned(store, "signed/once", &once, &once, "two").await?;
    check(status == 412, &format!("the second: {status}"))
}

async fn presigned_get_works_and_expires(store: &AmazonS3) -> Probed {
    let at = Path::from("signed/get");
    put(store, &at, "bytes").await?;
    let get = async |seconds| {
        let url = store.signed_url(Method::GET, &at, Duration::from_secs(seconds)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(if seconds == 1 { 2500 } else { 0 })).await;
        reqwest::get(url).await.map_or(0, |answer| answer.status().as_u16())
    };
    let status = get(60).await;
    check(status == 200, &format!("in time: {status}"))?;
    let status = get(1).await;
    check(status == 403, &format!("late: {status}"))
}

async fn probe_s3(store: &AmazonS3) -> Table {
    let mut table = probe(store).await;
    table.append(&mut ask!(
        store,
        presigned_checksum_is_verified,
        presigned_headers_are_required,
        presigned_length_is_required,
        presigned_create_refuses_a_second,
        presigned_get_works_and_expires,
    ));
    table
}

/// Prints a table, and holds it against what is known: all are Yes but for these. A `No` is known whatever its words.
#[track_caller]
pub fn compare(store: &str, table: &Table, except: &[(&str, Verdict)]) {
    let mut printed = format!("\n{store}\n");
    for (probe, verdict) in table {
        printed.push_str(&format!("  {:<40} {verdict}\n", probe.replace('_', " ")));
    }
    eprintln!("{printed}");
    for (probe, _) in except {
        assert!(table.contains_key(probe), "there is no {probe}");
    }
    for (probe, verdict) in table {
        let known = except.iter().find(|(name, _)| name == probe).map_or(&Yes, |(_, known)| known);
        let same =
            *known == Varies || std::mem::discriminant(known) == std::mem::discriminant(verdict);
        assert!(same, "{store}: {probe} is known as {known} and is: {verdict}");
    }
}

/// A `No` whose words do not matter.
pub const OTHER: Verdict = No(String::new());

#[tokio::test]
async fn memory_honours() {
    let except =
        [("multipart_abort_leaves_nothing", OTHER), ("multipart_keeps_what_is_there", OTHER)];
    compare("memory", &probe(&InMemory::new()).await, &except);
}

#[tokio::test]
async fn local_files_honour() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
    let except = [
        ("attributes_are_kept", Refused),
        ("deleting_nothing_succeeds", Refused),
        // As the file system has it.
        ("lists_have_an_order", Varies),
        ("multipart_keeps_what_is_there", OTHER),
        ("update_needs_the_right_etag", Refused),
    ];
    compare("local files", &probe(&store).await, &except);
}

#[tokio::test]
async fn the_s3_of_the_run_honours() {
    let Some(server) = server().await else { return };
    let (_, store) = bucket(server).await;
    let table = probe_s3(&store).await;
    let except: &[(&str, Verdict)] = match server.brand {
        Brand::Moto => &[
            // It looks and then writes, without a lock.
            ("create_has_one_winner_of_many", Varies),
            ("multipart_keeps_what_is_there", OTHER),
            // It looks at no signature, and at no checksum.
            ("presigned_checksum_is_verified", OTHER),
            ("presigned_get_works_and_expires", OTHER),
            ("presigned_headers_are_required", OTHER),
            ("presigned_length_is_required", Refused),
        ],
        Brand::Ceph => &[
            ("copy_create_refuses_a_second", OTHER),
            ("multipart_keeps_what_is_there", OTHER),
            ("presigned_checksum_is_verified", OTHER),
            ("presigned_length_is_required", Refused),
            ("update_needs_the_right_etag", OTHER),
        ],
        Brand::Other => {
            &[("multipart_keeps_what_is_there", OTHER), ("presigned_length_is_required", Refused)]
        }
    };
    compare(&format!("{:?}", server.brand), &table, except);
}
