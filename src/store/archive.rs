//! The archive of the audit trail: a segment of the log becomes a file, and only then its detail is erased.
//!
//! A crash in between leaves a file that no entry names, and a log that is whole: the next run makes its own.

use super::Store;
use super::caller::Caller;
use super::canonical::{object_of, parse_object};
use super::export::{self, Manifest, Trailer, Wanted};
use super::log::{Entry, LogRow, Seq, hex};
use super::request_ledger as ledger;
use super::snapshot::Snapshot;
use super::write::{Applied, Change, Outcome, Receipt, RowKey, Tx, WriteOptions};
use crate::{Error, Reason, Result, queries, row};
use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufWriter};
use uuid::Uuid;

/// The log's name for a segment.
pub const KIND: &str = "audit_segment";

/// What erasing an entry counts for in the queue: a large segment is a batch of its own, and leaves its tenant room.
const BYTES_OF_ENTRY: usize = 512;

row! {
    /// A segment's document.
    pub struct Segment {
        /// `<tenant>/<file>`.
        pub name: String,
        pub first_seq: i64,
        pub last_seq: i64,
        pub entry_count: i64,
        pub size_bytes: i64,
        pub sha256: String,
        pub leaf_hashes_sha256: String,
    }
}

row! {
    /// How many entries were archived.
    pub struct Archived {
        pub archived: i64,
    }
}

queries! { "archive" {
    /// The number archived last; no row before the first archiving.
    NEWEST() -> Seq = "SELECT seq FROM audit_archive";
    /// The last entry before the first that is too young: (after, at most, younger than).
    OLD_ENOUGH(i64, i64, SystemTime) -> Seq =
        "SELECT COALESCE(min(seq) FILTER (WHERE time > $3) - 1, max(seq), $1) AS seq \
         FROM log WHERE seq > $1 AND seq <= $2";
    ERASE(i64, i64) -> Archived = "SELECT archived FROM wall.archive_log($1, $2) AS archived";
} }

/// What to archive.
#[derive(Clone, Copy, Debug)]
pub struct Until {
    /// What is younger stays. Never less than what the configuration keeps.
    pub older_than: Duration,
    /// What has a higher number stays; and it is an error if this one is too young.
    pub to_seq: Option<i64>,
    pub entries_max: i64,
}

/// What an archiving did.
pub type Answer = Option<Segment>;

/// Erases what a segment holds; `None` where there was nothing to archive.
struct Archive {
    uid: Uuid,
    segment: Option<Segment>,
    /// It was made before under its request id, so nothing was prepared.
    replays: bool,
}

impl Change for Archive {
    type Answer = Answer;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.push(RowKey::new(&[KIND]));
    }

    fn size_bytes(&self) -> usize {
        let count = self.segment.as_ref().map_or(0, |segment| segment.entry_count);
        BYTES_OF_ENTRY * usize::try_from(count).unwrap_or_default()
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<Answer>>>> {
        Box::pin(async move {
            let mut outcomes = Vec::with_capacity(changes.len());
            for Applied { change, .. } in changes {
                outcomes.push(change.erase(tx).await?);
            }
            Ok(outcomes)
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<Answer> {
        let document = entries.iter().find_map(|entry| entry.document.as_deref());
        document.map(|document| Segment::from_members(&parse_object(document)?)).transpose()
    }
}

impl Archive {
    async fn erase(&self, tx: &Tx<'_>) -> Result<Outcome<Answer>> {
        let overtaken = || Error::Conflict(Arc::from(Box::from("another archiving came first")));
        let Some(segment) = &self.segment else {
            return Ok(match self.replays {
                // It was forgotten a moment ago.
                true => Outcome::Failed(overtaken()),
                false => Outcome::Done { answer: None, entries: Vec::new(), shown: Vec::new() },
            });
        };
        let archived = tx.run(&ERASE, &(segment.first_seq - 1, segment.last_seq)).await?;
        Ok(match archived.first() {
            None => Outcome::Failed(overtaken()),
            Some(Archived { archived }) if *archived == segment.entry_count => {
                let entry = Entry {
                    kind: KIND,
                    uid: self.uid,
                    id: segment.name.clone(),
                    version: 1,
                    action: Cow::Borrowed("ARCHIVE"),
                    document: object_of(segment.fields()),
                    told: None,
                };
                let answer = Some(segment.clone());
                Outcome::Done { answer, entries: vec![entry], shown: Vec::new() }
            }
            Some(Archived { archived }) => Outcome::Spoiled(Error::internal(format!(
                "{archived} entries were erased and {} archived",
                segment.entry_count
            ))),
        })
    }
}

impl Snapshot {
    /// Fails where what stood at a number of the log can no longer be known: a later entry is archived.
    pub(super) async fn reaches_back(&self, seq: i64) -> Result<()> {
        known_since(&self.all(&NEWEST, &()).await?, seq)
    }
}

/// Whether what stood at a number of the log can be known, with what was archived last.
pub(super) fn known_since(newest: &[Seq], seq: i64) -> Result<()> {
    match newest.first() {
        Some(newest) if seq < newest.seq => {
            Err(Error::Expired("entries after this revision are archived".into()))
        }
        _ => Ok(()),
    }
}

impl Store {
    /// Archives the oldest entries that are not archived yet.
    pub async fn archive(
        &self,
        caller: Caller,
        options: WriteOptions,
        place: &Place,
        until: Until,
    ) -> Result<(Answer, Receipt)> {
        let mut change = Archive { uid: Uuid::now_v7(), segment: None, replays: false };
        if let Some(request) = &options.request
            && !options.validate_only
        {
            change.replays = self.was_requested(&caller, &request.id).await?;
        }
        if !change.replays
            && let Some((first_seq, last_seq)) = self.archivable(&caller, until).await?
        {
            change.segment = Some(if options.validate_only {
                let entry_count = last_seq - first_seq + 1;
                Segment {
                    name: String::new(),
                    first_seq,
                    last_seq,
                    entry_count,
                    size_bytes: 0,
                    sha256: String::new(),
                    leaf_hashes_sha256: String::new(),
                }
            } else {
                self.write_segment(&caller, place, first_seq, last_seq).await?
            });
        }
        self.write(caller, options, change).await
    }

    /// Whether a call with this request id was made, as far as can be told now.
    pub async fn was_requested(&self, caller: &Caller, request_id: &str) -> Result<bool> {
        let key = (&*caller.principal, caller.method, request_id, [0; 32]);
        let params = Arc::new(ledger::Keys::of(std::iter::once(key)).params());
        self.snapshot(caller, ledger::READ.name, move |snapshot| {
            let params = Arc::clone(&params);
            Box::pin(async move {
                let found = !snapshot.all(&ledger::READ, &*params).await?.is_empty();
                snapshot.end(found).await
            })
        })
        .await
    }

    /// First and last of the entries to archive; `None` if there are none.
    async fn archivable(&self, caller: &Caller, until: Until) -> Result<Option<(i64, i64)>> {
        self.snapshot(caller, OLD_ENOUGH.name, move |snapshot| {
            Box::pin(async move {
                let head = snapshot.head;
                let after = snapshot.all(&NEWEST, &()).await?.first().map_or(0, |row| row.seq);
                if let Some(to_seq) = until.to_seq
                    && to_seq > head
                {
                    let beyond = format!("must not be more than {head}, the newest entry");
                    return Err(Error::invalid("to_seq", beyond));
                }
                let most = after.saturating_add(until.entries_max);
                let most = until.to_seq.map_or(most, |to_seq| most.min(to_seq));
                let before =
                    snapshot.now.checked_sub(until.older_than).unwrap_or(SystemTime::UNIX_EPOCH);
                let found = snapshot.all(&OLD_ENOUGH, &(after, most, before)).await?;
                let last = found.first().map_or(after, |row| row.seq);
                if until.to_seq.is_some() && last < most {
                    return Err(too_young(
                        format!("entry {} is younger than audit_keep_min_days", last + 1),
                        until.older_than,
                    ));
                }
                snapshot.end((last > after).then_some((after + 1, last))).await
            })
        })
        .await
    }

    async fn write_segment(
        &self,
        caller: &Caller,
        place: &Place,
        first_seq: i64,
        last_seq: i64,
    ) -> Result<Segment> {
        let mut draft = place.draft(&caller.tenant).await?;
        let manifest = Manifest {
            tenant: &caller.tenant,
            first_seq,
            last_seq,
            time: SystemTime::now(),
            details: true,
            filtered: false,
        };
        draft.line(&manifest.json()).await?;
        let mut trailer = Trailer::default();
        let mut after = first_seq - 1;
        while after < last_seq {
            let (entries, end) =
                self.log_piece(caller, &Wanted::default(), after, last_seq).await?;
            for entry in &entries {
                draft.line(&export::line(entry)?).await?;
                trailer.add(entry);
            }
            after = end;
        }
        draft.line(&trailer.json()).await?;
        if trailer.entry_count != last_seq - first_seq + 1 {
            return Err(Error::internal("the log has a gap"));
        }
        let kept = draft.keep(&format!("{first_seq:012}-{last_seq:012}")).await?;
        Ok(Segment {
            name: kept.name,
            first_seq,
            last_seq,
            entry_count: trailer.entry_count,
            size_bytes: kept.size_bytes,
            sha256: kept.sha256,
            leaf_hashes_sha256: trailer.leaf_hashes_sha256(),
        })
    }
}

/// The refusal to archive what has to be kept.
pub fn too_young(message: String, keep_min: Duration) -> Error {
    let days = (keep_min.as_secs() / 86_400).to_string();
    let metadata = vec![("keep_min_days", days)];
    Error::Refused { reason: Reason::RetentionFloor, message, metadata }
}

/// Where segments are kept: a folder, with one for each tenant in it.
#[derive(Clone, Debug)]
pub struct Place(pub PathBuf);

/// A segment that is being written.
struct Draft {
    folder: PathBuf,
    tenant: String,
    path: Unfinished,
    file: BufWriter<File>,
    hash: Sha256,
    size_bytes: u64,
}

/// A file that goes when nobody says that it is finished.
struct Unfinished(Option<PathBuf>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            // What is left behind is only clutter.
            let _ = std::fs::remove_file(path);
        }
    }
}

struct Kept {
    name: String,
    size_bytes: i64,
    sha256: String,
}

fn failed(cause: std::io::Error) -> Error {
    Error::Unavailable { backend: "audit_archive_dir", cause: Arc::new(cause) }
}

impl Place {
    async fn draft(&self, tenant: &str) -> Result<Draft> {
        let folder = self.0.join(tenant);
        fs::create_dir_all(&folder).await.map_err(failed)?;
        // Else a crash could lose the folder with what is in it.
        sync(&self.0).await?;
        let path = folder.join(format!(".{}.part", Uuid::now_v7()));
        let mut how = fs::OpenOptions::new();
        let file =
            how.write(true).create_new(true).mode(0o600).open(&path).await.map_err(failed)?;
        Ok(Draft {
            folder,
            tenant: tenant.to_owned(),
            path: Unfinished(Some(path)),
            file: BufWriter::new(file),
            hash: Sha256::new(),
            size_bytes: 0,
        })
    }
}

impl Draft {
    async fn line(&mut self, text: &[u8]) -> Result<()> {
        for part in [text, b"\n"] {
            self.hash.update(part);
            self.size_bytes += part.len() as u64;
            self.file.write_all(part).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Makes it durable under a name that says its content, and reads it back. What was kept is never replaced.
    async fn keep(mut self, range: &str) -> Result<Kept> {
        self.file.flush().await.map_err(failed)?;
        self.file.get_ref().sync_all().await.map_err(failed)?;
        let sha256 = hex(&self.hash.finalize());
        let name = format!("{range}-{}.jsonl", &sha256[..16]);
        let path = self.folder.join(&name);
        if let Some(part) = &self.path.0 {
            fs::rename(part, &path).await.map_err(failed)?;
            self.path.0 = None;
        }
        sync(&self.folder).await?;
        if digest_of(&path).await? != (self.size_bytes, sha256.clone()) {
            let other = std::io::Error::other("the segment reads back as something else");
            return Err(failed(other));
        }
        let size_bytes = i64::try_from(self.size_bytes).map_err(Error::internal)?;
        Ok(Kept { name: format!("{}/{name}", self.tenant), size_bytes, sha256 })
    }
}

/// Makes a folder's list of files durable.
async fn sync(folder: &Path) -> Result<()> {
    File::open(folder).await.map_err(failed)?.sync_all().await.map_err(failed)
}

async fn digest_of(path: &Path) -> Result<(u64, String)> {
    let mut file = File::open(path).await.map_err(failed)?;
    let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 64 << 10]);
    loop {
        match file.read(&mut buffer).await.map_err(failed)? {
            0 => return Ok((size, hex(&hash.finalize()))),
            n => {
                size += n as u64;
                hash.update(&buffer[..n]);
            }
        }
    }
}
