//! LogEvent: what a caller tells, checked.

use crate::Reason;
use crate::pb;
use crate::rpc::resource::Ask;
use crate::rpc::wire::{self, Fields};
use crate::store::change::OnConflict;
use crate::store::event::{Event, LogEvent};
use crate::store::log::Told;
use std::net::IpAddr;
use uuid::Uuid;

const OBJECT_KEY_BYTES_MAX: usize = 1 << 10;
const NAME_BYTES_MAX: usize = 255;
const ERROR_BYTES_MAX: usize = 8 << 10;
const METADATA_BYTES_MAX: usize = 64 << 10;

impl Ask for pb::LogEventRequest {
    type Change = LogEvent;

    fn options(&mut self) -> &mut Option<pb::WriteOptions> {
        &mut self.options
    }

    fn read(self, fields: &mut Fields, on_conflict: OnConflict) -> LogEvent {
        let pb::LogEventRequest { event, options: _ } = self;
        fields.only_fail(on_conflict);
        let event = fields.required("event", event);
        fields.within("event", |fields| read(fields, event))
    }
}

fn read(fields: &mut Fields, event: pb::AuditEvent) -> LogEvent {
    let pb::AuditEvent {
        action,
        target,
        object_key,
        user_id,
        username,
        ip_address,
        user_agent,
        success,
        error_message,
        metadata,
        trace_id,
    } = event;
    if target.is_some() && !object_key.is_empty() {
        fields.wrong("object_key", "must be empty where a target is given");
    }
    let (target_kind, target_id, target_version) = match target {
        Some(target) => fields.within("target", |fields| read_target(fields, target)),
        None => (String::new(), String::new(), 0),
    };
    if !ip_address.is_empty() && ip_address.parse::<IpAddr>().is_err() {
        fields.wrong("ip_address", "must be an IPv4 or IPv6 address");
    }
    let is_trace = |text: &str| {
        text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    if !trace_id.is_empty() && !is_trace(&trace_id) {
        fields.wrong("trace_id", "must be 32 lower-case hexadecimal digits");
    }
    let metadata = fields.object("metadata", metadata);
    if metadata.text().len() > METADATA_BYTES_MAX {
        let limit = format!("must be at most {METADATA_BYTES_MAX} bytes of JSON");
        fields.wrong_because(Reason::JsonTooLarge, "metadata", limit);
    }
    LogEvent {
        uid: Uuid::now_v7(),
        action: fields.verdict("action", action),
        event: Event {
            user_id: fields.text("user_id", user_id, NAME_BYTES_MAX),
            username: fields.text("username", username, NAME_BYTES_MAX),
            success: success.unwrap_or(true),
            error_message: fields.text("error_message", error_message, ERROR_BYTES_MAX),
            object_key: fields.text("object_key", object_key, OBJECT_KEY_BYTES_MAX),
            target_kind,
            target_id,
            target_version,
            metadata,
            reporter: String::new(),
        },
        told: Told {
            actor: String::new(),
            ip_address,
            user_agent: fields.text("user_agent", user_agent, NAME_BYTES_MAX),
            trace_id,
        },
    }
}

fn read_target(fields: &mut Fields, target: pb::ResourceRef) -> (String, String, i64) {
    let pb::ResourceRef { kind, id, version } = target;
    let kind = wire::kind_name(kind).unwrap_or_else(|| {
        fields.wrong("kind", "must be a known kind");
        String::new()
    });
    if version < 0 {
        fields.wrong("version", "must not be negative");
    }
    let id = fields.id_of(&kind, "id", id);
    (kind, id, version)
}
