//! ArchiveAuditEntries: what may go, and what is answered.

use crate::pb;
use crate::rpc::Parts;
use crate::rpc::wire::{self, Fields};
use crate::store::archive::{Segment, Until, too_young};
use crate::store::caller::Caller;
use crate::{Error, Reason, Result};
use std::time::Duration;

const ENTRIES_MAX: i32 = 10_000;

impl Parts {
    pub(super) async fn archive(
        &self,
        caller: Caller,
        request: pb::ArchiveAuditEntriesRequest,
    ) -> Result<pb::ArchiveAuditEntriesResponse> {
        use pb::archive_audit_entries_request::Until as Asked;
        let digest = wire::digest(&request, request.options.as_ref());
        let pb::ArchiveAuditEntriesRequest { until, max_entries, options } = request;
        let mut fields = Fields::new(&caller, self.batch_max);
        let (options, on_conflict) = fields.options(options, digest);
        fields.only_fail(on_conflict);
        if !(0..=ENTRIES_MAX).contains(&max_entries) {
            fields.wrong("max_entries", format!("must be from 0 to {ENTRIES_MAX}"));
        }
        let (mut older_than, mut to_seq) = (self.audit_keep_min, None);
        match until {
            None => fields.wrong("older_than", "is required, or to_seq"),
            Some(Asked::OlderThan(span)) => {
                let us = fields.span_us("older_than", Some(span)).unwrap_or_default();
                older_than = Duration::from_micros(us.unsigned_abs());
            }
            Some(Asked::ToSeq(seq)) => {
                if seq < 1 {
                    fields.wrong("to_seq", "must be at least 1");
                }
                to_seq = Some(seq);
            }
        }
        fields.finish(())?;
        let Some(place) = &self.audit_place else {
            return Err(Error::Refused {
                reason: Reason::NotConfigured,
                message: "this server has no archive: set audit_archive_dir".into(),
                metadata: vec![("setting", "audit_archive_dir".into())],
            });
        };
        if older_than < self.audit_keep_min {
            let days = self.audit_keep_min.as_secs() / 86_400;
            return Err(too_young(
                format!("older_than must be at least {days} days, as audit_keep_min_days says"),
                self.audit_keep_min,
            ));
        }
        let entries_max = if max_entries == 0 { ENTRIES_MAX } else { max_entries };
        let until = Until { older_than, to_seq, entries_max: entries_max.into() };
        let (segment, receipt) = self.store.archive(caller.clone(), options, place, until).await?;
        let receipt = self.receipt(&caller, receipt)?;
        let Some(segment) = segment else {
            return Ok(pb::ArchiveAuditEntriesResponse { receipt, ..Default::default() });
        };
        let Segment { name, first_seq, last_seq, entry_count, sha256, .. } = segment;
        Ok(pb::ArchiveAuditEntriesResponse {
            archived_count: entry_count,
            first_seq,
            last_seq,
            segment: name,
            segment_sha256: unhex(&sha256).into(),
            receipt,
        })
    }
}

/// Bytes again of what the store wrote as text.
fn unhex(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks(2).filter_map(|pair| std::str::from_utf8(pair).ok());
    pairs.filter_map(|pair| u8::from_str_radix(pair, 16).ok()).collect()
}
