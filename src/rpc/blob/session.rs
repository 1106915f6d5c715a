//! CreateUpload, GetUpload and AbortUpload: uploads that go on where they were cut.

use super::upload::Work;
use super::url::url_ttl;
use super::{Announced, BlobLimits, digest_of, piecewise, value};
use crate::pb::{self, Upload, UploadTransport};
use crate::rpc::wire::Fields;
use crate::rpc::{Api, json, wire};
use crate::store::blob::session::{
    Begin, COMPLETED, End, KIND, PARTS_MAX, PRESIGNED, STREAM, Session, SessionPart,
};
use crate::store::blob::{Attempt, Blob, body};
use crate::store::blob_store::sign::{SignedPut, TTL_MAX, encrypted};
use crate::store::caller::{Caller, Role, Roles};
use crate::store::event::{Event, LogEvent};
use crate::store::log::Told;
use crate::store::noun::Noun as _;
use crate::store::write::WriteOptions;
use crate::{Error, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::time::{Duration, SystemTime};
use uuid::Uuid;

const TTL_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);
const SIGNED_PART_MIN: u64 = 5 << 20;
const SIGNED_PART_DEFAULT: u64 = 8 << 20;

/// What an upload is begun with, checked.
struct Wanted {
    announced: Announced,
    transport: i16,
    part_bytes: u64,
    ttl: Duration,
    /// Of its parts; none, or one for each.
    digests: Vec<String>,
}

impl Wanted {
    fn read(
        caller: &Caller,
        request: pb::CreateUploadRequest,
        limits: &BlobLimits,
    ) -> Result<Self> {
        let pb::CreateUploadRequest { header, transport, part_size, ttl, part_digests } = request;
        let mut fields = Fields::new(caller, PARTS_MAX as usize);
        let header = fields.required("header", header);
        if header.options.is_some() {
            fields.wrong("header.options", "must stand on CompleteUpload");
        }
        if header.object.is_some() {
            fields.wrong("header.object", "is not taken here: use PutObject once it is complete");
        }
        let announced = match Announced::read(caller, header, limits.size_max) {
            Err(error @ Error::TooLarge { .. }) => return Err(error),
            read => fields.checked(read),
        };
        let transport = fields.value::<UploadTransport>("transport", transport, STREAM);
        let ttl = url_ttl(&mut fields, "ttl", ttl, TTL_DEFAULT);
        let said = announced.as_ref().and_then(|announced| announced.size_bytes);
        let mut part_bytes = limits.part as u64;
        if transport == PRESIGNED {
            if let Some(announced) = &announced {
                if announced.digest.is_none() {
                    fields.wrong("header.digest", "is required for UPLOAD_TRANSPORT_PRESIGNED");
                }
                if said.is_none() {
                    fields.wrong("header.size_bytes", "is required for UPLOAD_TRANSPORT_PRESIGNED");
                }
            }
            part_bytes = signed_part_bytes(&mut fields, part_size, said.unwrap_or(0), limits);
        } else if part_size != 0 {
            fields.wrong("part_size", "is of UPLOAD_TRANSPORT_PRESIGNED only");
        }
        let digests = if part_digests.is_empty() {
            Vec::new()
        } else if transport == PRESIGNED {
            let parts = part_count(said.unwrap_or(0), part_bytes);
            if part_digests.len() as u64 != parts {
                let (is, text) = (part_digests.len(), "must be one for each part");
                fields.wrong("part_digests", format!("{text}: there are {parts} and not {is}"));
            }
            fields.list("part_digests", part_digests, PARTS_MAX as usize, value)
        } else {
            fields.wrong("part_digests", "are of UPLOAD_TRANSPORT_PRESIGNED only");
            Vec::new()
        };
        let announced = fields.finish(announced)?;
        let announced = announced.ok_or_else(|| Error::internal("an upload without a header"))?;
        Ok(Self { announced, transport, part_bytes, ttl, digests })
    }

    /// What each part is, and where it is to be put.
    fn parts(&self, tenant: &str, backend: &str, session: &Session) -> Vec<SessionPart> {
        let Some(size) = self.announced.size_bytes.filter(|_| self.transport == PRESIGNED) else {
            return Vec::new();
        };
        let count = part_count(size, self.part_bytes);
        let part = |number: u64| {
            let (attempt, offset) = (Attempt::of_part(tenant), number * self.part_bytes);
            let length = self.part_bytes.min(size - offset) as i64;
            let whole = self.announced.digest.as_ref().filter(|_| count == 1);
            let digest = self.digests.get(number as usize).or(whole);
            SessionPart {
                upload_uid: session.uid,
                number: number as i32,
                uid: attempt.uid,
                storage_backend: backend.to_owned(),
                store_key: attempt.store_key,
                offset_bytes: offset as i64,
                size_bytes: length,
                stored_size_bytes: length,
                digest: digest.cloned().unwrap_or_default(),
                is_given_out: true,
                cipher: body::PLAIN,
                key_id: String::new(),
                wrapped_key: None,
                seal_header: None,
            }
        };
        (0..count).map(part).collect()
    }
}

/// Even nothing is put as one part.
fn part_count(size_bytes: u64, part_bytes: u64) -> u64 {
    size_bytes.div_ceil(part_bytes.max(1)).max(1)
}

fn signed_part_bytes(fields: &mut Fields, given: i64, size: u64, limits: &BlobLimits) -> u64 {
    let max = limits.signed_part_max;
    let few_enough = size.div_ceil(PARTS_MAX as u64);
    let bytes = match u64::try_from(given) {
        Ok(0) => SIGNED_PART_DEFAULT.min(max).max(few_enough),
        Ok(bytes) if (SIGNED_PART_MIN..=max).contains(&bytes) => bytes,
        _ => {
            fields.wrong("part_size", format!("must be from {SIGNED_PART_MIN} to {max}, or 0"));
            return SIGNED_PART_DEFAULT;
        }
    };
    if bytes < few_enough || bytes > max {
        fields.wrong(
            "part_size",
            format!("must make at most {PARTS_MAX} parts of at most {max} bytes"),
        );
    }
    bytes
}

/// The id of an upload. What cannot be one is not found.
pub(super) fn upload_uid(caller: &Caller, id: &str) -> Result<Uuid> {
    let mut fields = Fields::new(caller, 1);
    let id = fields.id("upload_id", id.to_owned());
    let id = fields.finish(id)?;
    Uuid::try_parse(&id).map_err(|_| Error::not_found(KIND, id))
}

impl Api {
    pub(super) async fn begin_upload(
        &self,
        caller: Caller,
        request: pb::CreateUploadRequest,
    ) -> Result<pb::CreateUploadResponse> {
        let blobs = self.blobs()?;
        let wanted = Wanted::read(&caller, request, &blobs.limits)?;
        if wanted.transport == PRESIGNED {
            if blobs.keys.is_some() {
                let why = "blobs are encrypted by this server: use UPLOAD_TRANSPORT_STREAM";
                return Err(encrypted(why));
            }
            blobs.store.can_sign_puts()?;
        }
        let work = Work { api: self.clone(), caller };
        let Announced { digest, size_bytes, content_type, .. } = &wanted.announced;
        let there = match digest {
            Some(digest) => work.there(digest, *size_bytes).await?,
            None => None,
        };
        let session = Session {
            uid: Uuid::now_v7(),
            state: 1,
            transport: wanted.transport,
            digest: digest.clone().unwrap_or_default(),
            size_bytes: size_bytes.map(|size| size as i64),
            content_type: content_type.clone(),
            part_bytes: wanted.part_bytes as i64,
            committed_bytes: 0,
            part_count: 0,
            expire_time: SystemTime::UNIX_EPOCH,
            due_time: SystemTime::UNIX_EPOCH,
        };
        let caller = &work.caller;
        let parts = wanted.parts(&caller.tenant, blobs.store.backend(), &session);
        let open_max = i64::try_from(blobs.limits.uploads_max).unwrap_or(i64::MAX);
        let begin = Begin { session, parts: parts.clone(), ttl: wanted.ttl, open_max };
        let options = WriteOptions::default();
        let (session, _) = self.store.write(piecewise(caller), options, begin).await?;
        let parts = if there.is_some() { Vec::new() } else { parts };
        let upload = Some(self.worded_upload(caller, session, &parts).await?);
        Ok(pb::CreateUploadResponse { upload, already_present: there.is_some() })
    }

    pub(super) async fn shown_upload(&self, caller: Caller, id: &str) -> Result<Upload> {
        let uid = upload_uid(&caller, id)?;
        let (session, mut parts) = self.store.session(&piecewise(&caller), uid).await?;
        if !caller.roles.intersects(Roles::of(&[Role::Writer, Role::Admin])) || caller.is_read_only
        {
            // Whoever only reads gets no URL to put to.
            parts.clear();
        }
        self.worded_upload(&caller, session, &parts).await
    }

    pub(super) async fn drop_upload(&self, caller: &Caller, id: &str) -> Result<()> {
        let end = End { uid: upload_uid(caller, id)?, digest: None };
        self.store.write(piecewise(caller), WriteOptions::default(), end).await?;
        Ok(())
    }

    /// An upload as it is answered. URLs for its parts are issued once that stands in the log.
    async fn worded_upload(
        &self,
        caller: &Caller,
        session: Session,
        parts: &[SessionPart],
    ) -> Result<Upload> {
        let is_signed = session.transport == PRESIGNED;
        let mut signed = Vec::with_capacity(if is_signed { parts.len() } else { 0 });
        if is_signed && !parts.is_empty() {
            let left = session.expire_time.duration_since(SystemTime::now()).unwrap_or_default();
            // Whole seconds, as signatures count them; whatever comes later is deleted all the same.
            let ttl = Duration::from_secs(left.as_secs()).clamp(Duration::from_secs(1), TTL_MAX);
            for part in parts {
                signed.push(self.signed_part(caller, part, ttl).await?);
            }
            self.store.write(piecewise(caller), WriteOptions::default(), issued(&session)).await?;
        }
        Ok(Upload {
            id: session.uid.to_string(),
            transport: session.transport.into(),
            committed_size: session.committed_bytes,
            part_size: session.part_bytes,
            parts: signed,
            expire_time: wire::timestamp(session.expire_time),
            completed: session.state == COMPLETED,
        })
    }

    async fn signed_part(
        &self,
        caller: &Caller,
        part: &SessionPart,
        ttl: Duration,
    ) -> Result<pb::SignedPart> {
        let (store, length) = (&self.blobs()?.store, part.size_bytes.unsigned_abs());
        let sum = (!part.digest.is_empty()).then(|| STANDARD.encode(digest_of(&part.digest).value));
        let put = store.signed_put(&part.store_key, length, sum, ttl, caller.deadline).await?;
        let SignedPut { url, headers } = put;
        Ok(pb::SignedPart {
            part_number: part.number + 1,
            method: "PUT".into(),
            url,
            headers: headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            offset: part.offset_bytes,
            length: part.size_bytes,
        })
    }
}

/// That URLs were issued by which a blob's bytes may be put.
fn issued(session: &Session) -> LogEvent {
    let metadata = serde_json::json!({
        "size_bytes": session.size_bytes,
        "upload_id": session.uid.to_string(),
    });
    let event = Event {
        user_id: String::new(),
        username: String::new(),
        success: true,
        error_message: String::new(),
        object_key: String::new(),
        target_kind: Blob::KIND.to_owned(),
        target_id: session.digest.clone(),
        target_version: 0,
        metadata: json::of_value(&metadata),
        reporter: String::new(),
    };
    let action = "UPLOAD_URL_ISSUED".to_owned();
    LogEvent { uid: Uuid::now_v7(), action, event, told: Told::default() }
}
