//! From words on the wire to checked values, and back: ids, texts, times, masks, options, receipts.

use crate::error::Violation;
use crate::pb;
use crate::rpc::json_object::Object;
use crate::rpc::{descriptor, json, json_object};
use crate::store::caller::Caller;
use crate::store::canonical::{Json, to_micros};
use crate::store::change::OnConflict;
use crate::store::noun::Meta;
use crate::store::vector_space::VectorSpace;
use crate::store::write::{RequestKey, WriteOptions};
use crate::{Error, Reason, Result};
use prost::{Message, Name};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use uuid::Uuid;

pub const ID_BYTES_MAX: usize = 255;
/// The most that batch_max can be set to.
pub const BATCH_MAX: usize = 10_000;
pub const LIST_MAX: usize = 100;
pub const LONG_TEXT_BYTES_MAX: usize = 64 << 10;
const REQUEST_ID_BYTES_MAX: usize = 64;
const AUDIT_CONTEXT_BYTES_MAX: usize = 4 << 10;
const PRECONDITIONS_MAX: usize = 100;
const TAGS_MAX: usize = 64;
const TAG_BYTES_MAX: usize = 128;
const LABELS_MAX: usize = 64;
const LABEL_KEY_BYTES_MAX: usize = 63;
const LABEL_VALUE_BYTES_MAX: usize = 255;
/// 0001-01-01 to 9999-12-31T23:59:59, in seconds of the Unix epoch.
const TIME_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// Vector spaces by the names that a call gives them.
pub type Spaces = std::collections::HashMap<String, Arc<VectorSpace>>;

/// Reads a request field by field and collects everything that is wrong with it, so that one answer names it all.
#[derive(Default)]
pub struct Fields {
    at: String,
    violations: Vec<(Reason, Violation)>,
    /// Required messages that are not there. What is read in their place is not the caller's.
    missing: Vec<String>,
    /// The user that the caller acts for, who stands in where a person is not named.
    actor: Arc<str>,
    principal: Arc<str>,
    /// What `$<n>.id` stands for: the ids of what the operations before have made.
    made: Vec<Option<String>>,
    /// Items of one batch; none where no batch is read.
    batch_max: Option<usize>,
    /// The vector spaces that the call names.
    spaces: Spaces,
}

impl Fields {
    /// At the top of a caller's request.
    pub fn new(caller: &Caller, batch_max: usize) -> Self {
        let (actor, principal) = (Arc::clone(&caller.actor), Arc::clone(&caller.principal));
        Self { actor, principal, batch_max: Some(batch_max), ..Self::default() }
    }

    /// The same with the vector spaces that the call names.
    pub fn with_spaces(self, spaces: Spaces) -> Self {
        Self { spaces, ..self }
    }

    /// The vector space of a name, if there is one.
    pub fn space(&self, name: &str) -> Option<Arc<VectorSpace>> {
        self.spaces.get(name).cloned()
    }

    pub fn actor(&self) -> &str {
        &self.actor
    }

    /// The user that the caller acts for, or else its credential.
    pub fn acting(&self) -> &str {
        if self.actor.is_empty() { &self.principal } else { &self.actor }
    }

    /// A value that was checked elsewhere; what is wrong with it is noted here.
    pub fn checked<T>(&mut self, value: Result<T>) -> Option<T> {
        match value {
            Ok(value) => Some(value),
            Err(Error::Invalid { reason, violations }) => {
                for violation in violations {
                    self.wrong_because(reason, &violation.field, violation.description);
                }
                None
            }
            Err(error) => {
                self.wrong("", error.to_string());
                None
            }
        }
    }

    /// Fields of the same call, read apart.
    pub fn apart(&self) -> Self {
        let (actor, principal) = (Arc::clone(&self.actor), Arc::clone(&self.principal));
        Self { actor, principal, made: self.made.clone(), ..Self::default() }
    }

    /// Where the fields that are read now stand: `operations[3].create_claim`.
    pub fn place(&self) -> String {
        self.at.clone()
    }

    /// Notes the id of what an operation has made, in the order of operations.
    pub fn has_made(&mut self, id: Option<String>) {
        self.made.push(id);
    }

    /// Takes over what is wrong with fields that were read apart, as far as it is asked for.
    pub fn take_over(&mut self, other: Self, wanted: impl Fn(&str) -> bool) {
        for (reason, violation) in other.violations {
            if wanted(&violation.field) {
                self.wrong_because(reason, &violation.field, violation.description);
            }
        }
    }

    /// The value, if nothing was wrong.
    pub fn finish<T>(self, value: T) -> Result<T> {
        let Some((reason, _)) = self.violations.first() else { return Ok(value) };
        let (reason, violations) = (*reason, self.violations.into_iter());
        Err(Error::Invalid { reason, violations: violations.map(|(_, one)| one).collect() })
    }

    /// A value that was read apart; what is wrong with it is said with the rest.
    pub fn taken<T: Default>(&mut self, value: Result<T>) -> T {
        self.checked(value).unwrap_or_default()
    }

    pub fn is_sound(&self) -> bool {
        self.violations.is_empty()
    }

    /// Reads what lies under a field: `decision`, `requests[17]`.
    pub fn within<T>(&mut self, field: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.at.len();
        if length > 0 {
            self.at.push('.');
        }
        self.at.push_str(field);
        let value = read(self);
        self.at.truncate(length);
        value
    }

    /// Notes that a field is wrong.
    pub fn wrong(&mut self, field: &str, description: impl Into<String>) {
        self.wrong_because(Reason::FieldInvalid, field, description);
    }

    pub fn wrong_because(&mut self, reason: Reason, field: &str, description: impl Into<String>) {
        let field = self.path(field);
        let within = |missing: &String| {
            field.strip_prefix(missing.as_str()).is_some_and(|rest| rest.starts_with('.'))
        };
        if self.missing.iter().any(within) {
            return;
        }
        self.violations.push((reason, Violation { field, description: description.into() }));
    }

    fn path(&self, field: &str) -> String {
        match (self.at.is_empty(), field.is_empty()) {
            (true, _) => field.to_owned(),
            (false, true) => self.at.clone(),
            (false, false) => format!("{}.{field}", self.at),
        }
    }

    /// A message that must be there. Where it is not, nothing is said of its fields.
    pub fn required<T: Default>(&mut self, field: &str, value: Option<T>) -> T {
        value.unwrap_or_else(|| {
            self.wrong(field, "is required");
            self.missing.push(self.path(field));
            T::default()
        })
    }

    /// Text of at most `max` bytes.
    pub fn text(&mut self, field: &str, value: String, max: usize) -> String {
        if value.len() > max {
            self.wrong(field, format!("must be at most {max} bytes long, and is {}", value.len()));
        }
        if value.contains('\0') {
            self.wrong_because(Reason::NulByte, field, "must not contain a NUL byte");
        }
        value
    }

    /// Text of 1 to `max` bytes.
    pub fn name(&mut self, field: &str, value: String, max: usize) -> String {
        if value.is_empty() {
            self.wrong(field, "is required");
        }
        self.text(field, value, max)
    }

    /// An id that must be given.
    pub fn id(&mut self, field: &str, mut value: String) -> String {
        if let Some(place) = value.strip_prefix('$')
            && !self.made.is_empty()
        {
            let place = place.strip_suffix(".id").and_then(|n| n.parse::<usize>().ok());
            match place.and_then(|n| self.made.get(n)) {
                Some(Some(id)) => value = id.clone(),
                _ => {
                    self.wrong(
                        field,
                        "must name an operation before this one that makes one resource",
                    );
                    return value;
                }
            }
        }
        if value.is_empty() {
            self.wrong(field, "is required");
        } else if value.contains('\0') {
            self.wrong_because(Reason::NulByte, field, "must not contain a NUL byte");
        } else if !is_id(&value) {
            self.wrong(
                field,
                "must match ^[A-Za-z0-9][A-Za-z0-9._~:@/+=-]*$ and be at most 255 bytes long",
            );
        }
        value
    }

    /// The id of something that need not be named.
    pub fn reference(&mut self, field: &str, value: String) -> String {
        if value.is_empty() { value } else { self.id(field, value) }
    }

    /// Refuses an id by which a kind is not referred to.
    pub fn reference_id(&mut self, kind: &str, id: &str) {
        if kind == "embedding" && !super::embedding::is_full_id(id) {
            self.wrong("id", super::embedding::FULL_ID);
        }
    }

    /// An id that the server chooses where it is empty: the uid.
    pub fn new_id(&mut self, field: &str, value: String, uid: Uuid) -> String {
        if value.is_empty() { uid.to_string() } else { self.id(field, value) }
    }

    /// The id of a new resource, which may stand in the request, in the message or in both.
    pub fn new_id_of(
        &mut self,
        noun: &str,
        in_request: String,
        in_message: String,
        uid: Uuid,
    ) -> String {
        let (outer, inner) = (format!("{noun}_id"), format!("{noun}.id"));
        if !in_request.is_empty() && !in_message.is_empty() && in_request != in_message {
            self.wrong(&inner, format!("must be empty or the same as {outer}"));
        }
        match in_request.is_empty() {
            true => self.new_id(&inner, in_message, uid),
            false => self.new_id(&outer, in_request, uid),
        }
    }

    /// The id of what a resource belongs to, which may stand in the request, in the message or in both.
    pub fn parent_id(
        &mut self,
        noun: &str,
        field: &str,
        in_request: String,
        in_message: String,
    ) -> String {
        if !in_request.is_empty() && !in_message.is_empty() && in_request != in_message {
            self.wrong(&format!("{noun}.{field}"), format!("must be empty or the same as {field}"));
        }
        self.id(field, if in_request.is_empty() { in_message } else { in_request })
    }

    /// Refuses options on a part of a call.
    pub fn no_options(&mut self, options: Option<pb::WriteOptions>) {
        if options.is_some() {
            self.wrong("options", "must stand on the whole call");
        }
    }

    /// `^[A-Z][A-Z0-9_]{0,63}$`
    pub fn verdict(&mut self, field: &str, value: String) -> String {
        let bytes = value.as_bytes();
        let sound = bytes.first().is_some_and(u8::is_ascii_uppercase)
            && bytes.len() <= 64
            && bytes.iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_');
        self.shaped(field, value, sound, "must match ^[A-Z][A-Z0-9_]{0,63}$")
    }

    /// Text of one shape, which the caller has looked at.
    pub fn shaped(&mut self, field: &str, value: String, is_sound: bool, must: &str) -> String {
        if value.contains('\0') {
            self.wrong_because(Reason::NulByte, field, "must not contain a NUL byte");
        } else if !is_sound {
            self.wrong(field, must);
        }
        value
    }

    /// A number from `min` to `max`; NaN and infinities are outside.
    pub fn number(&mut self, field: &str, value: f64, min: f64, max: f64) -> f64 {
        if !(min..=max).contains(&value) {
            let range = if max == f64::MAX {
                format!("a finite number of at least {min}")
            } else {
                format!("from {min} to {max}")
            };
            self.wrong(field, format!("must be {range}"));
        }
        // -0 and 0 are the same number, and one canonical form.
        if value == 0.0 { 0.0 } else { value }
    }

    /// From 0 to 1.
    pub fn confidence(&mut self, field: &str, value: f64) -> f64 {
        self.number(field, value, 0.0, 1.0)
    }

    /// A value of an enum of the protocol, whose numbers are stored; 0 means `unset`.
    pub fn value<E: TryFrom<i32>>(&mut self, field: &str, number: i32, unset: i16) -> i16 {
        let known = i16::try_from(number).ok().filter(|_| E::try_from(number).is_ok());
        if known.is_none() {
            self.wrong(field, format!("must be a known value, and is {number}"));
        }
        known.filter(|known| *known != 0).unwrap_or(unset)
    }

    pub fn time(
        &mut self,
        field: &str,
        value: Option<prost_types::Timestamp>,
    ) -> Option<SystemTime> {
        let value = value?;
        let sound =
            TIME_SECONDS.contains(&value.seconds) && (0..=999_999_999).contains(&value.nanos);
        let time = sound.then(|| SystemTime::try_from(value).ok()).flatten();
        if time.is_none() {
            self.wrong(field, "must be a time in the years 1 to 9999");
        }
        time.map(to_micros)
    }

    /// A span in microseconds, not negative.
    pub fn span_us(&mut self, field: &str, value: Option<prost_types::Duration>) -> Option<i64> {
        let span = value.map(|value| {
            Duration::try_from(value).ok().and_then(|span| i64::try_from(span.as_micros()).ok())
        });
        if let Some(None) = span {
            self.wrong(field, "must be a span of time that is not negative");
        }
        span.flatten()
    }

    /// An object of free JSON as canonical text; `{}` where it is absent.
    pub fn object(&mut self, field: &str, value: Option<Object>) -> Json {
        let Some(value) = value else { return Json::object() };
        match json_object::to_json(&value) {
            Ok(json) => json,
            Err((reason, description)) => {
                self.wrong_because(reason, field, description);
                Json::object()
            }
        }
    }

    /// A list of at most `max` items, each read at `field[n]`.
    pub fn list<T, U>(
        &mut self,
        field: &str,
        items: Vec<T>,
        max: usize,
        mut read: impl FnMut(&mut Self, T) -> U,
    ) -> Vec<U> {
        if items.len() > max {
            self.wrong(field, format!("must have at most {max} items, and has {}", items.len()));
            return Vec::new();
        }
        let read_one =
            |(n, item)| self.within(&format!("{field}[{n}]"), |fields| read(fields, item));
        items.into_iter().enumerate().map(read_one).collect()
    }

    /// A list of texts, each once, as canonical JSON.
    pub fn texts(
        &mut self,
        field: &str,
        items: Vec<String>,
        max: usize,
        read: impl FnMut(&mut Self, String) -> String,
    ) -> Json {
        let items = self.list(field, items, max, read);
        self.no_duplicates(items.iter().map(String::as_str), |n| format!("{field}[{n}]"));
        json::of_value(&items.into())
    }

    /// Tags: at most 64 of 1 to 128 bytes, each once.
    pub fn tags(&mut self, field: &str, tags: Vec<String>) -> Json {
        self.texts(field, tags, TAGS_MAX, |fields, tag| fields.name("", tag, TAG_BYTES_MAX))
    }

    /// The items of a batch: at least one, and no more than is configured.
    pub fn batch<T, U>(
        &mut self,
        field: &str,
        items: Vec<T>,
        read: impl FnMut(&mut Self, T) -> U,
    ) -> Vec<U> {
        if items.is_empty() {
            self.wrong(field, "must have at least one item");
        }
        self.list(field, items, self.batch_max.unwrap_or(BATCH_MAX), read)
    }

    /// Notes an id that stands in a batch twice.
    pub fn no_duplicates<'a>(
        &mut self,
        ids: impl Iterator<Item = &'a str>,
        field: impl Fn(usize) -> String,
    ) {
        let mut seen = std::collections::HashMap::new();
        for (n, id) in ids.enumerate() {
            if let Some(first) = seen.insert(id.to_owned(), n) {
                let what = format!("is \"{id}\", as {} is", field(first));
                self.wrong_because(Reason::DuplicateInBatch, &field(n), what);
            }
        }
    }

    /// Labels as canonical JSON.
    pub fn labels(
        &mut self,
        field: &str,
        labels: std::collections::BTreeMap<String, String>,
    ) -> Json {
        if labels.len() > LABELS_MAX {
            self.wrong(
                field,
                format!("must have at most {LABELS_MAX} entries, and has {}", labels.len()),
            );
        }
        for (key, value) in &labels {
            let shown: String = key.chars().take(LABEL_KEY_BYTES_MAX).collect();
            self.within(field, |fields| fields.label(&shown, key, value));
        }
        json::of_strings(&labels)
    }

    fn label(&mut self, shown: &str, key: &str, value: &str) {
        if key.is_empty() || key.len() > LABEL_KEY_BYTES_MAX {
            self.wrong(shown, format!("must have a key of 1 to {LABEL_KEY_BYTES_MAX} bytes"));
        }
        if value.len() > LABEL_VALUE_BYTES_MAX {
            self.wrong(
                shown,
                format!(
                    "must be at most {LABEL_VALUE_BYTES_MAX} bytes long, and is {}",
                    value.len()
                ),
            );
        }
        if key.contains('\0') || value.contains('\0') {
            self.wrong_because(
                Reason::NulByte,
                &shown.replace('\0', "\u{fffd}"),
                "must not contain a NUL byte",
            );
        }
    }

    /// References to resources, as canonical JSON.
    pub fn references(&mut self, field: &str, refs: Vec<pb::ResourceRef>) -> Json {
        let items = self.list(field, refs, LIST_MAX, Self::one_reference);
        json::of_value(&serde_json::Value::Array(items))
    }

    pub fn one_reference(&mut self, reference: pb::ResourceRef) -> serde_json::Value {
        let pb::ResourceRef { kind, id, version } = reference;
        if !matches!(pb::ResourceKind::try_from(kind), Ok(kind) if kind != pb::ResourceKind::Unspecified)
        {
            self.wrong("kind", format!("must be a known kind, and is {kind}"));
        }
        if version < 0 {
            self.wrong("version", "must not be negative");
        }
        let id = self.id_of(&kind_name(kind).unwrap_or_default(), "id", id);
        serde_json::json!({"kind": kind, "id": id, "version": version})
    }

    /// An etag, if one is given. Any other text is simply not the current one.
    pub fn etag(&mut self, field: &str, value: String) -> Option<String> {
        let value = self.text(field, value, ID_BYTES_MAX);
        (!value.is_empty()).then_some(value)
    }

    /// The options of a write; `digest` is of the request, and needed only under a request id.
    pub fn options(
        &mut self,
        options: Option<pb::WriteOptions>,
        digest: [u8; 32],
    ) -> (WriteOptions, OnConflict) {
        let pb::WriteOptions {
            request_id,
            validate_only,
            on_conflict,
            audit_context,
            preconditions,
        } = options.unwrap_or_default();
        self.within("options", |fields| {
            let request = (!request_id.is_empty()).then(|| fields.request_id(request_id, digest));
            let on_conflict = match pb::OnConflict::try_from(on_conflict) {
                Ok(pb::OnConflict::Unspecified | pb::OnConflict::Fail) => OnConflict::Fail,
                Ok(pb::OnConflict::ReturnIfEqual) => OnConflict::ReturnIfEqual,
                Ok(pb::OnConflict::Replace) => OnConflict::Replace,
                Err(_) => {
                    fields.wrong(
                        "on_conflict",
                        format!("must be a known value, and is {on_conflict}"),
                    );
                    OnConflict::Fail
                }
            };
            let context =
                audit_context.map(|context| fields.object("audit_context", Some(context)));
            if context
                .as_ref()
                .is_some_and(|context| context.text().len() > AUDIT_CONTEXT_BYTES_MAX)
            {
                let limit = format!("must be at most {AUDIT_CONTEXT_BYTES_MAX} bytes of JSON");
                fields.wrong_because(Reason::JsonTooLarge, "audit_context", limit);
            }
            let preconditions = fields.list(
                "preconditions",
                preconditions,
                PRECONDITIONS_MAX,
                Fields::precondition,
            );
            let preconditions = preconditions.into_iter().flatten().collect();
            (WriteOptions { request, validate_only, context, preconditions }, on_conflict)
        })
    }

    fn request_id(&mut self, id: String, digest: [u8; 32]) -> RequestKey {
        if id.contains('\0') {
            self.wrong_because(Reason::NulByte, "request_id", "must not contain a NUL byte");
        } else if id.len() > REQUEST_ID_BYTES_MAX
            || !id.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
        {
            self.wrong(
                "request_id",
                format!("must be at most {REQUEST_ID_BYTES_MAX} printable ASCII characters"),
            );
        }
        RequestKey { id, digest }
    }

    /// Refuses an on_conflict that a noun does not offer.
    pub fn no_replace(&mut self, on_conflict: OnConflict, why: &str) {
        if on_conflict == OnConflict::Replace {
            self.wrong("options.on_conflict", format!("must not be REPLACE: {why}"));
        }
    }

    /// Refuses any on_conflict but FAIL, where nothing else is offered.
    pub fn only_fail(&mut self, on_conflict: OnConflict) {
        if on_conflict != OnConflict::Fail {
            self.wrong("options.on_conflict", "must be FAIL or unset: this call offers no other");
        }
    }

    /// The paths of an update mask: at least one, each once.
    pub fn update_mask(&mut self, mask: Option<prost_types::FieldMask>) -> Vec<String> {
        let mut paths = mask.unwrap_or_default().paths;
        let mut seen = std::collections::HashSet::new();
        paths.retain(|path| seen.insert(path.clone()));
        if paths.is_empty() {
            self.wrong("update_mask", "is required");
        }
        if paths.iter().any(|path| path == "*") {
            self.wrong("update_mask", "must name the fields; \"*\" is not taken");
            return Vec::new();
        }
        paths
    }

    /// Notes a path of an update mask that names none of the message's changeable fields.
    pub fn unknown_path<M: Name>(&mut self, path: &str, changeable: &[&str]) {
        let top = path.split('.').next().unwrap_or(path);
        let shown: String = path.chars().take(100).collect();
        if descriptor::field::<M>(top).is_some() && !changeable.contains(&top) {
            self.wrong_because(
                Reason::FieldImmutable,
                "update_mask",
                format!("names {shown:?}, which never changes"),
            );
        } else {
            self.wrong_because(
                Reason::UnknownField,
                "update_mask",
                format!("names {shown:?}, which does not exist"),
            );
        }
    }
}

/// The store's name of a kind; `None` if it is unknown or unspecified.
pub fn kind_name(kind: i32) -> Option<String> {
    let kind = pb::ResourceKind::try_from(kind).ok()?;
    let name = kind.as_str_name().strip_prefix("RESOURCE_KIND_")?.to_ascii_lowercase();
    (kind != pb::ResourceKind::Unspecified).then_some(name)
}

/// The protocol's number of a kind.
pub fn kind_number(name: &str) -> pb::ResourceKind {
    pb::ResourceKind::from_str_name(&format!("RESOURCE_KIND_{}", name.to_ascii_uppercase()))
        .unwrap_or(pb::ResourceKind::Unspecified)
}

/// A write as the store takes it.
pub struct Write<C> {
    pub change: C,
    pub options: WriteOptions,
}

/// SHA-256 of a request, if it has a request id. Maps are ordered, so the encoding is one.
pub fn digest<M: Message>(request: &M, options: Option<&pb::WriteOptions>) -> [u8; 32] {
    match options {
        Some(options) if !options.request_id.is_empty() => {
            Sha256::digest(request.encode_to_vec()).into()
        }
        _ => [0; 32],
    }
}

/// `^[A-Za-z0-9][A-Za-z0-9._~:@/+=-]*$`, 1 to 255 bytes.
pub fn is_id(value: &str) -> bool {
    let bytes = value.as_bytes();
    bytes.len() <= ID_BYTES_MAX
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"._~:@/+=-".contains(b))
}

/// One id that a request names, checked.
pub fn id(field: &str, value: String) -> Result<String> {
    let mut fields = Fields::default();
    let value = fields.id(field, value);
    fields.finish(value)
}

/// Text that a request names something by, checked.
pub fn text(field: &str, value: String) -> Result<String> {
    let mut fields = Fields::default();
    let value = fields.text(field, value, ID_BYTES_MAX);
    fields.finish(value)
}

pub fn timestamp(time: SystemTime) -> Option<prost_types::Timestamp> {
    Some(time.into())
}

pub fn duration_us(us: i64) -> prost_types::Duration {
    prost_types::Duration { seconds: us / 1_000_000, nanos: (us % 1_000_000 * 1000) as i32 }
}

pub fn meta(meta: Meta) -> Option<pb::Meta> {
    let Meta { uid, version, create_time, update_time, delete_time, created_by, updated_by } = meta;
    Some(pb::Meta {
        uid: uid.to_string(),
        version,
        create_time: timestamp(create_time),
        update_time: timestamp(update_time),
        delete_time: delete_time.and_then(timestamp),
        created_by,
        updated_by,
    })
}
