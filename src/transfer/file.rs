//! The file: a header, one line per resource, and a trailer by which a file that was cut off is noticed.

use super::table::NOUNS;
use super::{Result, TransferError};
use crate::store::log::hex;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::Path;

pub const FORMAT: u32 = 1;
/// The server takes no message as large.
const LINE_BYTES_MAX: usize = 64 << 20;

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Header {
    pub format: u32,
    /// The tenant that was named; unset where the token decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// What made the file.
    pub program: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Trailer {
    pub counts: BTreeMap<String, u64>,
    /// Kinds that the server does not serve, so that the file cannot have them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_served: Vec<String>,
    /// Of everything before this line.
    pub sha256: String,
}

#[derive(Serialize)]
struct Head<'a> {
    casebook_export: &'a Header,
}

#[derive(Serialize)]
struct Tail<'a> {
    casebook_export_end: &'a Trailer,
}

/// What a line may be. Everything that is not looked at is only checked for being JSON.
#[derive(Deserialize)]
struct Peek<'a> {
    #[serde(borrow)]
    kind: Option<Cow<'a, str>>,
    casebook_export: Option<Header>,
    casebook_export_end: Option<Trailer>,
}

/// Writes a file from its header to its trailer.
pub struct Writer<W> {
    to: W,
    hash: Sha256,
    counts: BTreeMap<String, u64>,
}

impl<W: Write> Writer<W> {
    pub fn begin(to: W, header: &Header) -> io::Result<Self> {
        let mut writer = Self { to, hash: Sha256::new(), counts: BTreeMap::new() };
        writer.line(&Head { casebook_export: header })?;
        Ok(writer)
    }

    pub fn resource(&mut self, kind: &str, resource: &Json) -> io::Result<()> {
        #[derive(Serialize)]
        struct Line<'a> {
            kind: &'a str,
            resource: &'a Json,
        }
        self.line(&Line { kind, resource })?;
        *self.counts.entry(kind.to_owned()).or_default() += 1;
        Ok(())
    }

    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.hash.update(&text);
        self.to.write_all(&text)
    }

    /// Ends the file and gives back where it was written to, and how many lines of each kind it has.
    pub fn end(mut self, not_served: Vec<String>) -> io::Result<(W, BTreeMap<String, u64>)> {
        let sha256 = hex(&self.hash.clone().finalize());
        let trailer = Trailer { counts: self.counts.clone(), not_served, sha256 };
        self.line(&Tail { casebook_export_end: &trailer })?;
        self.to.flush()?;
        Ok((self.to, self.counts))
    }
}

/// One line of a file.
pub struct Line {
    /// From 1.
    pub number: u64,
    /// Where it begins.
    pub offset: u64,
    /// Without its end. Cut if it is too long.
    pub text: Vec<u8>,
    pub too_long: bool,
}

/// The lines of a file from a place on.
pub struct Lines {
    from: BufReader<File>,
    number: u64,
    pub offset: u64,
}

impl Lines {
    pub fn open(path: &Path, at: Place) -> io::Result<Self> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(at.offset))?;
        let from = BufReader::with_capacity(1 << 18, file);
        Ok(Self { from, number: at.line - 1, offset: at.offset })
    }

    pub fn next(&mut self) -> io::Result<Option<Line>> {
        let (offset, mut text, mut too_long) = (self.offset, Vec::new(), false);
        loop {
            let there = self.from.fill_buf()?;
            let end = there.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(there.len());
            let room = LINE_BYTES_MAX - text.len();
            text.extend_from_slice(&there[..taken.min(room)]);
            too_long |= taken > room;
            let at_end = there.is_empty();
            let used = taken + usize::from(end.is_some());
            self.from.consume(used);
            self.offset += used as u64;
            if at_end && self.offset == offset {
                return Ok(None);
            }
            if at_end || end.is_some() {
                self.number += 1;
                return Ok(Some(Line { number: self.number, offset, text, too_long }));
            }
        }
    }
}

/// Where a line begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub line: u64,
    pub offset: u64,
}

/// Where the lines of one kind are.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub first: Place,
    pub last_line: u64,
    pub count: u64,
}

/// What a look through the whole file has found.
pub struct Scan {
    pub sha256: String,
    /// In the order of [`NOUNS`], and last what is none of them.
    pub extents: Vec<Option<Extent>>,
    pub resources: u64,
    pub not_served: Vec<String>,
}

/// The pass in which a line is dealt with: the number of its noun, or one more for what is none.
pub enum Sort {
    Resource(usize),
    Header(Header),
    Trailer(Trailer),
    Blank,
}

pub fn sort(line: &Line) -> Sort {
    if line.text.iter().all(u8::is_ascii_whitespace) {
        return Sort::Blank;
    }
    let none = Sort::Resource(NOUNS.len());
    if line.too_long {
        return none;
    }
    match serde_json::from_slice::<Peek<'_>>(&line.text) {
        Ok(Peek { casebook_export: Some(header), .. }) if line.number == 1 => Sort::Header(header),
        Ok(Peek { casebook_export_end: Some(trailer), .. }) => Sort::Trailer(trailer),
        Ok(Peek { kind: Some(kind), .. }) => {
            Sort::Resource(NOUNS.iter().position(|noun| noun.kind == kind).unwrap_or(NOUNS.len()))
        }
        _ => none,
    }
}

/// Looks through the whole file, so that nothing is written of one that is not whole.
pub fn scan(path: &Path, unsealed: bool) -> Result<Scan> {
    let failed = |error: io::Error| TransferError::on_file("read", path, &error);
    let not_whole = |why: &str| {
        TransferError::Failed(format!(
            "{} {why}; nothing was imported. For a file made by hand, or for what is left of one, say --unsealed.",
            path.display()
        ))
    };
    let mut lines = Lines::open(path, Place { line: 1, offset: 0 }).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut extents: Vec<Option<Extent>> = vec![None; NOUNS.len() + 1];
    let (mut resources, mut has_header, mut trailer) = (0, false, None);
    while let Some(line) = lines.next().map_err(failed)? {
        if trailer.is_some() && !unsealed {
            return Err(not_whole("goes on behind its trailer"));
        }
        let before = hash.clone();
        if line.too_long {
            // Its bytes are not all here. Such a file was made by nothing that seals.
            hash.update(line.offset.to_be_bytes());
        }
        hash.update(&line.text);
        hash.update(b"\n");
        let place = Place { line: line.number, offset: line.offset };
        match sort(&line) {
            Sort::Resource(pass) => {
                resources += 1;
                let extent =
                    extents[pass].get_or_insert(Extent { first: place, last_line: 0, count: 0 });
                extent.last_line = line.number;
                extent.count += 1;
            }
            Sort::Header(header) if header.format > FORMAT => {
                return Err(TransferError::Failed(format!(
                    "{} has the format {}, and this program knows {FORMAT}: use a newer one",
                    path.display(),
                    header.format
                )));
            }
            Sort::Header(_) => has_header = true,
            Sort::Trailer(found) => trailer = Some((found, hex(&before.finalize()))),
            Sort::Blank => {}
        }
    }
    let sha256 = hex(&hash.finalize());
    let not_served = match trailer {
        _ if unsealed => Vec::new(),
        None => return Err(not_whole("has no trailer, so it was cut off")),
        Some(_) if !has_header => return Err(not_whole("has no header")),
        Some((trailer, found)) if trailer.sha256 != found => {
            return Err(not_whole(
                "is not what its trailer says: lines were changed, added or lost",
            ));
        }
        Some((trailer, _)) => {
            let counted = NOUNS.iter().zip(&extents).filter_map(|(noun, extent)| {
                extent.as_ref().map(|extent| (noun.kind.to_owned(), extent.count))
            });
            let known = |kind: &str| NOUNS.iter().any(|noun| noun.kind == kind);
            let counted: BTreeMap<String, u64> = counted.collect();
            let said: BTreeMap<_, _> =
                trailer.counts.into_iter().filter(|(kind, _)| known(kind)).collect();
            if counted != said {
                return Err(not_whole("has not as many lines as its trailer says"));
            }
            trailer.not_served
        }
    };
    Ok(Scan { sha256, extents, resources, not_served })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn written(lines: &[(&str, Json)]) -> Vec<u8> {
        let header = Header { format: FORMAT, ..Header::default() };
        let mut writer = Writer::begin(Vec::new(), &header).unwrap();
        for (kind, resource) in lines {
            writer.resource(kind, resource).unwrap();
        }
        writer.end(Vec::new()).unwrap().0
    }

    fn scanned(text: &[u8], unsealed: bool) -> std::result::Result<Scan, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.jsonl");
        std::fs::write(&path, text).unwrap();
        scan(&path, unsealed).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_that_is_not_whole_is_noticed() {
        let whole = written(&[("claim", json!({"id": "a"})), ("claim", json!({"id": "b"}))]);
        let found = scanned(&whole, false).unwrap();
        assert_eq!((found.resources, found.extents.iter().flatten().count()), (2, 1));
        let text = String::from_utf8(whole.clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (text, why) in [
            (lines[..3].join("\n"), "no trailer"),
            (text[..text.len() - 3].to_owned(), "no trailer"),
            (lines[1..].join("\n"), "no header"),
            ([lines[0], lines[2], lines[3]].join("\n"), "its trailer says"),
            (text.replace("\"b\"", "\"c\""), "its trailer says"),
            (format!("{text}{}\n", lines[1]), "behind its trailer"),
            (text.replace("\"format\":1", "\"format\":2"), "newer"),
        ] {
            let error = scanned(text.as_bytes(), false).map(|_| ()).unwrap_err();
            assert!(error.contains(why), "{why}: {error}");
        }
        let cut = lines[..3].join("\n");
        assert_eq!(scanned(cut.as_bytes(), true).unwrap().resources, 2);
    }

    #[test]
    fn lines_are_found_again_by_their_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.jsonl");
        std::fs::write(&path, "a\n\nbc\nd").unwrap();
        let all = |at: Place| {
            let mut lines = Lines::open(&path, at).unwrap();
            let mut found = Vec::new();
            while let Some(line) = lines.next().unwrap() {
                found.push((line.number, line.offset, String::from_utf8(line.text).unwrap()));
            }
            found
        };
        let found = all(Place { line: 1, offset: 0 });
        let expected = [(1, 0, "a"), (2, 2, ""), (3, 3, "bc"), (4, 6, "d")];
        assert_eq!(found, expected.map(|(line, offset, text)| (line, offset, text.to_owned())));
        assert_eq!(all(Place { line: 3, offset: 3 }), found[2..]);
    }

    #[test]
    fn lines_that_are_nothing_are_sorted_last() {
        let text =
            "{\"kind\":\"claim\",\"resource\":{}}\nnonsense\n{\"kind\":\"cat\"}\n[]\n{}\n\n\u{0}\n";
        let found = scanned(text.as_bytes(), true).unwrap();
        assert_eq!(found.extents[NOUNS.len()].unwrap().count, 5);
        assert_eq!(found.resources, 6);
    }
}
