//! Uploads that go on where they were cut: a row says how far each has come, and each of its parts is an object of its own,
//! until the upload is completed and its bytes are brought to a blob's key like those of any other.

use super::change::{HOLD_INTENTS, SETTLE, intent, too_late};
use super::reap::LATE;
use super::{Arrived, Attempt, Blob};
use crate::store::Store;
use crate::store::blob_store::Stored;
use crate::store::caller::Caller;
use crate::store::log::LogRow;
use crate::store::query::{Check, Query, Rows};
use crate::store::write::{Applied, Change, Outcome, RowKey, Tx};
use crate::{Error, Reason, Result, queries, row};
use futures_util::future::BoxFuture;
use std::time::{Duration, SystemTime};
use uuid::Uuid;

/// The kind as errors name it.
pub const KIND: &str = "upload";

/// Through the server.
pub const STREAM: i16 = 1;
/// Straight to the store, by signed URLs.
pub const PRESIGNED: i16 = 2;

/// It takes bytes.
const OPEN: i16 = 1;
/// A blob has its bytes.
pub const COMPLETED: i16 = 2;
/// It was not completed in time.
const EXPIRED: i16 = 3;

/// The most parts of one upload.
pub const PARTS_MAX: i32 = 10_000;

/// For how long it is still known of an upload that it was completed, or has expired.
pub const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 60 * 60);

row! {
    /// An upload.
    pub struct Session {
        pub uid: Uuid,
        pub state: i16,
        /// [`STREAM`] or [`PRESIGNED`].
        pub transport: i16,
        /// As was said beforehand, may be empty; once it is completed, the blob's.
        pub digest: String,
        pub size_bytes: Option<i64>,
        pub content_type: String,
        pub part_bytes: i64,
        pub committed_bytes: i64,
        pub part_count: i32,
        pub expire_time: SystemTime,
        pub due_time: SystemTime,
    }
}

row! {
    /// Bytes of an upload that are in the store, or are to be put there.
    pub struct SessionPart {
        pub upload_uid: Uuid,
        /// From 0.
        pub number: i32,
        /// Of the attempt that brought it.
        pub uid: Uuid,
        pub storage_backend: String,
        pub store_key: String,
        pub offset_bytes: i64,
        pub size_bytes: i64,
        pub stored_size_bytes: i64,
        /// Of these bytes; empty where it is not known.
        pub digest: String,
        /// Whether anybody may put them who has the signed URL.
        pub is_given_out: bool,
        pub cipher: i16,
        pub key_id: String,
        pub wrapped_key: Option<Vec<u8>>,
        pub seal_header: Option<Vec<u8>>,
    }
}

row! {
    pub struct Counted {
        pub count: i64,
    }
}

static INSERT: Query<Rows<Session>, ()> = Query::new(
    "blob_upload.INSERT",
    "INSERT INTO blob_upload ({r.*}) SELECT {r.*} FROM unnest({r.unnest}) AS u ({r.*})",
);
static INSERT_PARTS: Query<Rows<SessionPart>, ()> = Query::new(
    "blob_upload.INSERT_PARTS",
    "INSERT INTO blob_upload_part ({r.*}) SELECT {r.*} FROM unnest({r.unnest}) AS u ({r.*})",
);
pub(in crate::store) const ROW_QUERIES: &[&dyn Check] = &[&INSERT, &INSERT_PARTS];

queries! { "blob_upload" {
    FIND(Uuid) -> Session = "SELECT {*} FROM blob_upload WHERE uid = $1";
    LOCK(Uuid) -> Session = "SELECT {*} FROM blob_upload WHERE uid = $1 FOR UPDATE";
    PARTS(Uuid) -> SessionPart = "SELECT {*} FROM blob_upload_part WHERE upload_uid = $1 ORDER BY number";
    COUNT_OPEN() -> Counted = "SELECT count(*) AS count FROM blob_upload WHERE state = 1";
    /// One part more has come: (upload, its bytes).
    ADVANCE(Uuid, i64) -> () =
        "UPDATE blob_upload SET committed_bytes = committed_bytes + $2, part_count = part_count + 1 WHERE uid = $1";
    /// The parts are to be deleted, and what may be put to later once more: (upload, milliseconds it may arrive late).
    CONDEMN_PARTS(Uuid, i64) -> () =
        "WITH part AS (DELETE FROM blob_upload_part WHERE upload_uid = $1 RETURNING uid, store_key) \
         INSERT INTO blob_intent (uid, store_key, state, due_time) \
         SELECT p.uid, p.store_key, 2, now() FROM part AS p UNION ALL \
         SELECT gen_random_uuid(), p.store_key, 2, u.expire_time + make_interval(secs => $2::bigint / 1000.0) \
         FROM part AS p JOIN blob_upload AS u ON u.uid = $1 WHERE u.transport = 2";
    /// A blob has the bytes: (upload, digest, milliseconds until it is forgotten).
    COMPLETE(Uuid, String, i64) -> () =
        "UPDATE blob_upload SET state = 2, digest = $2, due_time = now() + make_interval(secs => $3::bigint / 1000.0) WHERE uid = $1";
    FORGET(Uuid) -> () = "DELETE FROM blob_upload WHERE uid = $1";
} }

impl Session {
    /// Whether it was not completed, so that bytes may come.
    pub fn check_open(&self) -> Result<()> {
        if self.state == COMPLETED {
            return Err(Error::Refused {
                reason: Reason::UploadCompleted,
                message: format!(
                    "the upload \"{}\" is completed and takes no more bytes",
                    self.uid
                ),
                metadata: Vec::new(),
            });
        }
        Ok(())
    }

    /// Whether its time has not passed.
    fn check_time(&self, now: SystemTime) -> Result<()> {
        if self.state == EXPIRED || self.state == OPEN && self.expire_time <= now {
            return Err(Error::Refused {
                reason: Reason::UploadExpired,
                message: format!("the upload \"{}\" has expired; begin another", self.uid),
                metadata: Vec::new(),
            });
        }
        Ok(())
    }

    /// Whether a part belongs where it begins.
    pub fn check_offset(&self, offset: i64) -> Result<()> {
        if offset == self.committed_bytes {
            return Ok(());
        }
        let committed = self.committed_bytes;
        Err(Error::OutOfRange {
            message: format!("the upload goes on at {committed}, and not at {offset}"),
            metadata: ("committed_size", committed),
        })
    }
}

impl SessionPart {
    /// Bytes that an attempt has brought to the store; `number` and `offset_bytes` are where they belong.
    pub fn new(session: &Session, attempt: &Attempt, digest: &str, row: Blob) -> Self {
        Self {
            upload_uid: session.uid,
            number: session.part_count,
            uid: attempt.uid,
            storage_backend: row.storage_backend,
            store_key: row.store_key,
            offset_bytes: session.committed_bytes,
            size_bytes: row.size_bytes,
            stored_size_bytes: row.stored_size_bytes,
            digest: digest.to_owned(),
            is_given_out: false,
            cipher: row.cipher,
            key_id: row.key_id,
            wrapped_key: row.wrapped_key,
            seal_header: row.seal_header,
        }
    }

    /// The same as if it were a blob, for those who read blobs.
    pub fn blob(&self, tenant: &str) -> Blob {
        let attempt = Attempt {
            uid: self.uid,
            tenant: tenant.to_owned(),
            store_key: self.store_key.clone(),
            is_inline: false,
        };
        let arrived = Arrived {
            size_bytes: self.size_bytes.unsigned_abs(),
            stored_size_bytes: self.stored_size_bytes.unsigned_abs(),
            content_type: String::new(),
            stored: Stored::default(),
            seal: super::Seal {
                cipher: self.cipher,
                key_id: self.key_id.clone(),
                wrapped_key: self.wrapped_key.clone(),
                header: self.seal_header.clone(),
            },
        };
        attempt.blob(&self.digest, arrived, &self.storage_backend)
    }
}

impl Store {
    /// An upload that takes bytes or was completed, with its parts in order.
    pub async fn session(&self, caller: &Caller, uid: Uuid) -> Result<(Session, Vec<SessionPart>)> {
        let (found, parts, now) = self
            .snapshot(caller, FIND.name, move |at| {
                Box::pin(async move {
                    let found = at.all(&FIND, &(uid,)).await?;
                    let parts = at.all(&PARTS, &(uid,)).await?;
                    let now = at.now;
                    at.end((found, parts, now)).await
                })
            })
            .await?;
        let session = found.into_iter().next().ok_or_else(|| not_found(uid))?;
        session.check_time(now)?;
        Ok((session, parts))
    }
}

fn not_found(uid: Uuid) -> Error {
    Error::not_found(KIND, uid.to_string())
}

fn session_key(uid: Uuid) -> RowKey {
    RowKey::new(&["blob_upload", &uid.to_string()])
}

fn done<A>(answer: A) -> Outcome<A> {
    Outcome::Done { answer, entries: Vec::new(), shown: Vec::new() }
}

/// Begins an upload.
pub struct Begin {
    /// Its times are set here.
    pub session: Session,
    /// Where it may be put to.
    pub parts: Vec<SessionPart>,
    pub ttl: Duration,
    /// How many uploads of the tenant may be open.
    pub open_max: i64,
}

impl Change for Begin {
    type Answer = Session;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        // One after the other, so that they count each other.
        rows.push(RowKey::new(&["blob_upload"]));
    }

    fn size_bytes(&self) -> usize {
        512 + 256 * self.parts.len()
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Session>>>> {
        Box::pin(async move {
            let mut outcomes = Vec::with_capacity(changes.len());
            for Applied { change, .. } in changes {
                let counted = tx.run(&COUNT_OPEN, &()).await?.pop();
                if counted.is_some_and(|counted| counted.count >= change.open_max) {
                    outcomes.push(Outcome::Failed(Error::Exhausted {
                        reason: Reason::TooManyUploads,
                        message: format!(
                            "the tenant has {} uploads under way, and no more are taken (blob_uploads_max)",
                            change.open_max,
                        ),
                        retry_after: None,
                    }));
                    continue;
                }
                let expire_time = tx.now + change.ttl;
                let session =
                    Session { expire_time, due_time: expire_time, ..change.session.clone() };
                let rows = std::slice::from_ref(&session);
                tx.run(&INSERT, &Rows::new(Session::unnest(rows.iter()))).await?;
                if !change.parts.is_empty() {
                    let parts = Rows::new(SessionPart::unnest(change.parts.iter()));
                    tx.run(&INSERT_PARTS, &parts).await?;
                }
                outcomes.push(done(session));
            }
            Ok(outcomes)
        })
    }

    fn rebuild(&self, _: &[LogRow]) -> Result<Session> {
        Err(Error::internal("the beginning of an upload is not replayed"))
    }
}

/// Takes over the bytes of an attempt: from here on they are a part of the upload. Its answer is the upload as it is then.
pub struct Extend {
    pub part: SessionPart,
}

impl Extend {
    /// Whether the upload goes on where this part begins.
    fn fits(&self, found: Option<Session>, is_held: bool, now: SystemTime) -> Result<Session> {
        let session = found.ok_or_else(|| not_found(self.part.upload_uid))?;
        session.check_open()?;
        session.check_time(now)?;
        session.check_offset(self.part.offset_bytes)?;
        if session.part_count >= PARTS_MAX {
            let text = format!("would begin part {}: send more bytes at once", PARTS_MAX + 1);
            return Err(Error::invalid("chunk", text));
        }
        if is_held { Ok(session) } else { Err(too_late()) }
    }
}

impl Change for Extend {
    type Answer = Session;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.push(session_key(self.part.upload_uid));
        rows.push(intent(self.part.uid));
    }

    fn size_bytes(&self) -> usize {
        512
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Session>>>> {
        Box::pin(async move {
            let mut outcomes = Vec::with_capacity(changes.len());
            for Applied { change, .. } in changes {
                let SessionPart { upload_uid, uid, size_bytes, .. } = change.part;
                let found = tx.run(&LOCK, &(upload_uid,)).await?.pop();
                let held = tx.run(&HOLD_INTENTS, &(vec![uid],)).await?;
                let session = match change.fits(found, !held.is_empty(), tx.now) {
                    Ok(session) => session,
                    Err(error) => {
                        outcomes.push(Outcome::Failed(error));
                        continue;
                    }
                };
                let part = SessionPart { number: session.part_count, ..change.part.clone() };
                let parts = std::slice::from_ref(&part);
                tx.run(&INSERT_PARTS, &Rows::new(SessionPart::unnest(parts.iter()))).await?;
                tx.run(&ADVANCE, &(upload_uid, size_bytes)).await?;
                tx.run(&SETTLE, &(vec![uid],)).await?;
                outcomes.push(done(Session {
                    committed_bytes: session.committed_bytes + size_bytes,
                    part_count: session.part_count + 1,
                    ..session
                }));
            }
            Ok(outcomes)
        })
    }

    fn rebuild(&self, _: &[LogRow]) -> Result<Session> {
        Err(Error::internal("a part of an upload is not replayed"))
    }
}

/// Ends an upload: its parts are to be deleted.
pub struct End {
    pub uid: Uuid,
    /// Of the blob that it became; else nothing of it is left.
    pub digest: Option<String>,
}

impl Change for End {
    type Answer = ();

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.push(session_key(self.uid));
    }

    fn size_bytes(&self) -> usize {
        512
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<()>>>> {
        Box::pin(async move {
            let mut outcomes = Vec::with_capacity(changes.len());
            for Applied { change: Self { uid, digest }, .. } in changes {
                if tx.run(&LOCK, &(*uid,)).await?.is_empty() {
                    outcomes.push(Outcome::Failed(not_found(*uid)));
                    continue;
                }
                tx.run(&CONDEMN_PARTS, &(*uid, LATE.as_millis() as i64)).await?;
                match digest {
                    Some(digest) => {
                        let kept_ms = REMEMBERED.as_millis() as i64;
                        tx.run(&COMPLETE, &(*uid, digest.clone(), kept_ms)).await?;
                    }
                    None => drop(tx.run(&FORGET, &(*uid,)).await?),
                }
                outcomes.push(done(()));
            }
            Ok(outcomes)
        })
    }

    fn rebuild(&self, _: &[LogRow]) -> Result<()> {
        Ok(())
    }
}
