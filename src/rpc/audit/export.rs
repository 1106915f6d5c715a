//! ExportAudit: the log as a stream, whose memory is bounded however long it is and however slowly it is read.
//!
//! A task reads piece by piece and waits until the piece before is on its way. It ends by itself when the caller goes, at
//! the deadline, and when the server stops; the stream then says why.

use super::entry;
use crate::pb::export_audit_response::{Entry, Part};
use crate::pb::{self, ExportAuditResponse};
use crate::rpc::{Api, filter, page};
use crate::store::caller::Caller;
use crate::store::export::{Manifest, Trailer, Wanted};
use crate::store::filter::Field;
use crate::store::log::{LISTING, LogRow};
use crate::{Error, Reason, Result};
use futures_util::stream::{self, Stream, StreamExt};
use std::pin::Pin;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

pub type Parts = Pin<Box<dyn Stream<Item = Result<ExportAuditResponse, Status>> + Send>>;

/// No single piece takes longer, however long the export may.
const PIECE_MAX: Duration = Duration::from_secs(60);
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What is exported, checked.
struct Export {
    api: Api,
    caller: Caller,
    wanted: Wanted,
    first_seq: i64,
    last_seq: i64,
    details: bool,
}

impl Api {
    pub(super) async fn export(
        &self,
        caller: Caller,
        request: pb::ExportAuditRequest,
    ) -> Result<Parts> {
        let pb::ExportAuditRequest { from_seq, to_seq, window, include_details, r#where } = request;
        let field = Field::find(LISTING.fields, "event_time")
            .ok_or_else(|| Error::internal("the log has no times"))?;
        let window = page::window(field, window, SystemTime::now(), "window")?;
        let wanted = Wanted { filter: filter::selector(LISTING.fields, r#where, "where")?, window };
        for (name, seq) in [("from_seq", from_seq), ("to_seq", to_seq)] {
            if seq < 0 {
                return Err(Error::invalid(name, "must not be negative"));
            }
        }
        let permit = self.exports.clone().try_acquire_owned().map_err(|_| Error::Exhausted {
            reason: Reason::Overloaded,
            message: "the server has as many exports under way as it takes".into(),
            retry_after: Some(RETRY_AFTER),
        })?;
        let head = self.store.log_head(&piecewise(&caller)).await?;
        let (first_seq, last_seq) = range(from_seq, to_seq, head)?;
        let (pieces, received) = mpsc::channel(1);
        let (end, ended) = oneshot::channel();
        let deadline = caller.deadline;
        let (health, api) = (self.health.clone(), self.clone());
        let export = Export { api, caller, wanted, first_seq, last_seq, details: include_details };
        tokio::spawn(async move {
            let result = tokio::select! {
                result = export.run(&pieces) => result,
                () = pieces.closed() => Ok(()),
                () = health.closed() => Err(Error::ShuttingDown),
                () = tokio::time::sleep_until(deadline) => {
                    Err(Error::DeadlineExceeded(" before the export was whole"))
                }
            };
            drop(permit);
            // A caller that has gone away needs no answer.
            let _ = end.send(result);
        });
        let parts = ReceiverStream::new(received)
            .flat_map(|piece: Vec<Part>| stream::iter(piece).map(|part| Ok(message(part))));
        let last = stream::once(async move {
            match ended.await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(Err(error.into())),
                Err(_) => Some(Err(Error::internal("an export ended without a word").into())),
            }
        });
        Ok(Box::pin(parts.chain(last.filter_map(std::future::ready))))
    }
}

fn message(part: Part) -> ExportAuditResponse {
    ExportAuditResponse { part: Some(part) }
}

/// First and last number; nothing when the first is one behind the last.
fn range(from_seq: i64, to_seq: i64, head: i64) -> Result<(i64, i64)> {
    let first = from_seq.max(1);
    let last = if to_seq == 0 { head } else { to_seq };
    if last > head {
        let newest = format!("must not be more than {head}, the newest entry");
        return Err(Error::invalid("to_seq", newest));
    }
    if first > last + 1 || (to_seq > 0 && first > last) {
        return Err(Error::invalid("from_seq", format!("must not be more than {last}")));
    }
    Ok((first, last))
}

/// The caller, for one piece of work.
fn piecewise(caller: &Caller) -> Caller {
    let deadline = caller.deadline.min(Instant::now() + PIECE_MAX);
    Caller { deadline, ..caller.clone() }
}

impl Export {
    async fn run(&self, pieces: &mpsc::Sender<Vec<Part>>) -> Result<()> {
        let manifest = Manifest {
            tenant: &self.caller.tenant,
            first_seq: self.first_seq,
            last_seq: self.last_seq,
            time: SystemTime::now(),
            details: self.details,
            filtered: self.wanted.window.is_some() || !self.wanted.filter.selects_everything(),
        };
        send(pieces, vec![Part::ManifestJson(text(manifest.json())?)]).await;
        let mut trailer = Trailer::default();
        let mut after = self.first_seq - 1;
        while after < self.last_seq {
            let store = &self.api.store;
            let caller = piecewise(&self.caller);
            let (rows, end) = store.log_piece(&caller, &self.wanted, after, self.last_seq).await?;
            let mut piece = Vec::with_capacity(rows.len());
            for row in rows {
                trailer.add(&row);
                piece.push(Part::Entry(self.entry(row)?));
            }
            if !piece.is_empty() {
                send(pieces, piece).await;
            }
            after = end;
        }
        send(pieces, vec![Part::TrailerJson(text(trailer.json())?)]).await;
        Ok(())
    }

    fn entry(&self, row: LogRow) -> Result<Entry> {
        let mut out = Entry::default();
        if self.details {
            out.document = row.document.clone().unwrap_or_default().into();
            out.salt = row.salt.clone().into();
        }
        out.entry = Some(entry(row, None)?);
        Ok(out)
    }
}

/// Waits until the piece before has been taken. When nobody takes them any more, the task is told so elsewhere.
async fn send(pieces: &mpsc::Sender<Vec<Part>>, piece: Vec<Part>) {
    let _ = pieces.send(piece).await;
}

fn text(json: Vec<u8>) -> Result<String> {
    String::from_utf8(json).map_err(Error::internal)
}
