//! Export: every noun at one revision, page by page, into a file that gets its name when it is whole.

use super::file::{FORMAT, Header, Writer};
use super::message::{inner, request, text, to_json};
use super::progress::Progress;
use super::table::{NOUNS, Shape};
use super::wire::{Client, Refused, Server, revision};
use super::{Result, TransferError, beside};
use prost_reflect::DynamicMessage;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::Code;

const PAGE: u32 = 1000;

/// What to export, and where to.
pub struct Export {
    pub server: Server,
    /// `None` is standard output.
    pub output: Option<PathBuf>,
    /// Empty means every kind.
    pub kinds: Vec<String>,
}

/// Exports, and gives the number of lines of each kind.
pub async fn export(options: Export) -> Result<BTreeMap<String, u64>> {
    let client = Client::connect(&options.server, "casebook-export").await?;
    let Some(path) = &options.output else {
        let to = BufWriter::new(std::io::stdout().lock());
        return Ok(run(&client, &options, to).await?.1);
    };
    let unfinished = beside(path, "unfinished");
    let failed = |error: std::io::Error| TransferError::on_file("written", &unfinished, &error);
    let file = File::create(&unfinished).map_err(failed)?;
    let (to, counts) = run(&client, &options, BufWriter::new(file)).await?;
    let file = to.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    std::fs::rename(&unfinished, path)
        .map_err(|error| TransferError::on_file("written", path, &error))?;
    Ok(counts)
}

async fn run<W: Write>(
    client: &Client,
    options: &Export,
    to: W,
) -> Result<(W, BTreeMap<String, u64>)> {
    let failed = |error: std::io::Error| {
        let path = options.output.as_deref().unwrap_or(Path::new("standard output"));
        TransferError::on_file("written", path, &error)
    };
    let mut progress = Progress::new(None);
    let mut not_served = Vec::new();
    // Held back until the first page says at which revision everything is read.
    let mut begun: Option<(Writer<W>, String)> = None;
    let mut to = Some(to);
    let wanted = |kind: &str| options.kinds.is_empty() || options.kinds.iter().any(|k| k == kind);
    let mut begin = |revision: &str, begun: &mut Option<(Writer<W>, String)>| {
        let Some(to) = to.take() else { return Ok(()) };
        let header = Header {
            format: FORMAT,
            tenant: options.server.tenant.clone(),
            time: OffsetDateTime::now_utc().format(&Rfc3339).ok(),
            revision: Some(revision.to_owned()),
            program: concat!("casebook ", env!("CARGO_PKG_VERSION")).into(),
        };
        *begun = Some((Writer::begin(to, &header).map_err(failed)?, revision.to_owned()));
        Ok::<_, TransferError>(())
    };
    for noun in NOUNS.iter().filter(|noun| wanted(noun.kind)) {
        let at = |begun: &Option<(Writer<W>, String)>| begun.as_ref().map(|(_, at)| at.clone());
        // Ids are all that is kept of what they are listed by.
        let parents = match noun.listed_by {
            None => Some(vec!["-".to_owned()]),
            Some(kind) => match ids(client, kind, at(&begun)).await? {
                Some((ids, revision)) => {
                    begin(&revision, &mut begun)?;
                    Some(ids)
                }
                None => None,
            },
        };
        let is_served = 'served: {
            let Some(parents) = parents else { break 'served false };
            for parent in parents {
                let mut pages = Pages::new(Shape::of(noun)?, parent, at(&begun));
                while let Some(page) = pages.next(client).await? {
                    let Some(page) = page else { break 'served false };
                    begin(&page.revision, &mut begun)?;
                    let Some((writer, _)) = &mut begun else { break };
                    let lines = page.resources.len() as u64;
                    for resource in page.resources {
                        if resource.unknown_fields().next().is_some() {
                            return Err(TransferError::Failed(format!(
                                "{} {} has fields that this program does not know: use the program of the server's version",
                                noun.kind,
                                text(&resource, "id"),
                            )));
                        }
                        writer.resource(noun.kind, &to_json(&resource)?).map_err(failed)?;
                    }
                    progress.advance(noun.kind, lines);
                }
            }
            true
        };
        if !is_served {
            progress.say(&format!(
                "note: this server does not serve {}; the export has none",
                Shape::of(noun)?.list.name
            ));
            not_served.push(noun.kind.to_owned());
        }
    }
    match begun {
        Some((writer, _)) => writer.end(not_served).map_err(failed),
        None => Err(TransferError::Failed("this server serves none of these kinds".into())),
    }
}

/// The ids of a kind, and at which revision they are all; `None` where the server does not have the method.
async fn ids(
    client: &Client,
    kind: &str,
    at: Option<String>,
) -> Result<Option<(Vec<String>, String)>> {
    let noun = NOUNS.iter().find(|noun| noun.kind == kind);
    let noun = noun.ok_or_else(|| TransferError::internal(format!("no kind {kind}")))?;
    let mut pages = Pages::new(Shape::of(noun)?, "-".into(), at);
    let mut all = (Vec::new(), String::new());
    while let Some(page) = pages.next(client).await? {
        let Some(page) = page else { return Ok(None) };
        all.0.extend(page.resources.iter().map(|resource| text(resource, "id")));
        all.1 = page.revision;
    }
    Ok(Some(all))
}

struct Page {
    resources: Vec<DynamicMessage>,
    revision: String,
}

/// Whether fewer at once may be given: they are too large, or their vectors are.
fn is_too_much(refused: &Refused) -> bool {
    refused.is_too_large() || refused.fields() == ["read_mask"]
}

/// The pages of one noun, all at one revision.
struct Pages {
    shape: Shape,
    /// The id of what they belong to; "-" means anything.
    parent: String,
    at: Option<String>,
    token: String,
    size: u32,
    done: bool,
}

impl Pages {
    fn new(shape: Shape, parent: String, at: Option<String>) -> Self {
        Self { shape, parent, at, token: String::new(), size: PAGE, done: false }
    }

    /// `None` behind the last page; `Some(None)` where the server does not have the method.
    async fn next(&mut self, client: &Client) -> Result<Option<Option<Page>>> {
        if self.done {
            return Ok(None);
        }
        let Shape { list, listed, noun, .. } = &self.shape;
        let answer = loop {
            let mut asked = self.shape.of_parent(&self.parent);
            asked["page"] =
                json!({"pageSize": self.size, "pageToken": self.token, "orderBy": noun.order});
            if let Some(at) = &self.at {
                asked["consistency"] = json!({"atExactSnapshot": {"token": at}});
            }
            match client.call(list, &request(&list.input, asked)?).await? {
                Ok(answer) => break answer,
                Err(refused) if refused.code() == Code::Unimplemented && self.token.is_empty() => {
                    self.done = true;
                    return Ok(Some(None));
                }
                // Some resources are large.
                Err(refused) if self.size > 1 && is_too_much(&refused) => self.size /= 2,
                Err(refused) => return Err(refused.fatal(list)),
            }
        };
        self.size = (self.size * 2).min(PAGE);
        let odd = || TransferError::Failed(format!("{} answers without a page", list.name));
        let page = inner(&answer, "page").ok_or_else(odd)?;
        let revision = revision(&page).ok_or_else(odd)?;
        self.token = text(&page, "next_page_token");
        self.done = self.token.is_empty();
        let mut answer = answer;
        let resources = answer.take_field(listed);
        let resources = resources.and_then(|value| match value {
            prost_reflect::Value::List(items) => Some(items),
            _ => None,
        });
        let resources = resources.unwrap_or_default().into_iter().filter_map(|item| match item {
            prost_reflect::Value::Message(resource) => Some(resource),
            _ => None,
        });
        Ok(Some(Some(Page { resources: resources.collect(), revision })))
    }
}
