//! Some lines of one kind to the server: together where the protocol has a batch, and apart again where one of them
//! keeps the others out.

use super::message::{disown, flag, inner, request, set, text};
use super::table::{Form, Shape, Taken};
use super::wire::{Client, Refused};
use super::{OnConflict, Result, TransferError};
use crate::store::log::hex;
use futures_util::{StreamExt, TryStreamExt, stream};
use prost_reflect::{DynamicMessage, Kind, ReflectMessage, Value};
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;
use tonic::Code;

/// Calls of one chunk at once, where it takes several.
const CALLS: usize = 32;
/// Ids that are looked for in one call.
const LOOKED_FOR: usize = 250;

/// A line that can be read.
pub struct Item {
    pub line: u64,
    pub id: String,
    /// As it stands in the file.
    pub text: Vec<u8>,
    pub message: DynamicMessage,
}

/// What became of a line.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Created,
    /// It was there with the same content.
    Unchanged,
    Replaced,
    /// Something else was there and stays.
    Kept,
    Refused(Why),
}

/// Why a line was refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Why {
    /// The gRPC code; "INVALID_ARGUMENT" also where the server was not asked.
    pub code: String,
    pub reason: String,
    pub message: String,
}

impl Why {
    fn of(refused: &Refused) -> Self {
        let code = format!("{:?}", refused.code());
        Self { code, reason: refused.reason(), message: refused.status.message().to_owned() }
    }
}

pub struct Sender<'a> {
    client: &'a Client,
    on_conflict: OnConflict,
    /// Begins what request ids are made of, so that the same lines of the same file have the same one.
    key: String,
    /// Kinds that the server does not serve.
    unserved: Mutex<HashMap<&'static str, Why>>,
}

type Settled = Vec<(usize, Outcome)>;

impl<'a> Sender<'a> {
    pub fn new(client: &'a Client, on_conflict: OnConflict, sha256: &str) -> Self {
        // Another version may word a request differently, and a request id is good for one wording.
        let key = format!("{sha256} {} {}", on_conflict.as_str(), env!("CARGO_PKG_VERSION"));
        Self { client, on_conflict, key, unserved: Mutex::default() }
    }

    /// What became of each.
    pub async fn send(&self, shape: &Shape, items: &[Item]) -> Result<Vec<Outcome>> {
        let mut outcomes: Vec<Option<Outcome>> = vec![None; items.len()];
        if shape.noun.taken == Taken::Look && self.on_conflict != OnConflict::Fail {
            self.look(shape, items, &mut outcomes).await?;
        }
        let left = (0..items.len()).filter(|n| outcomes[*n].is_none());
        let lanes = lanes(shape, items, left);
        let mut settled =
            stream::iter(lanes).map(|lane| self.lane(shape, items, lane)).buffer_unordered(CALLS);
        while let Some(settled) = settled.try_next().await? {
            for (n, outcome) in settled {
                outcomes[n] = Some(outcome);
            }
        }
        let all: Option<Vec<Outcome>> = outcomes.into_iter().collect();
        all.ok_or_else(|| TransferError::internal("a line was forgotten"))
    }

    async fn lane(&self, shape: &Shape, items: &[Item], lane: Vec<usize>) -> Result<Settled> {
        match shape.form {
            Form::One { .. } => {
                let mut settled = Vec::with_capacity(lane.len());
                for n in lane {
                    settled.push((n, self.one(shape, &items[n]).await?));
                }
                Ok(settled)
            }
            Form::Requests { .. } | Form::Items { .. } => self.batch(shape, items, lane).await,
        }
    }

    /// All of them in one call, and in more if that is refused, until the culprits are alone.
    async fn batch(&self, shape: &Shape, items: &[Item], all: Vec<usize>) -> Result<Settled> {
        let mut settled = Vec::with_capacity(all.len());
        let mut work = vec![(all, 0_u32)];
        while let Some((group, tries)) = work.pop() {
            let Some(first) = group.first() else { continue };
            if let Some(why) = self.unserved(shape) {
                settled.extend(group.into_iter().map(|n| (n, Outcome::Refused(why.clone()))));
                continue;
            }
            let mut messages: Vec<_> = group.iter().map(|n| items[*n].message.clone()).collect();
            messages.iter_mut().for_each(|message| disown(message, shape.noun.owned));
            let lines = group.iter().map(|n| items[*n].line);
            let options = self.options(shape, &items[*first], lines, "create");
            let asked = batch_request(shape, messages, parent_of(shape, &items[*first]), options)?;
            let refused = match self.client.call(&shape.create, &asked).await? {
                Ok(answer) => {
                    let outcomes = outcomes(shape, answer, group.len());
                    settled.extend(group.into_iter().zip(outcomes));
                    continue;
                }
                Err(refused) => refused,
            };
            let for_all = self.note_unserved(shape, &refused)
                || refused.code() == Code::NotFound
                    && refused.resource() == parent_of(shape, &items[*first]);
            if group.len() == 1 || for_all {
                let outcome = self.refusal(&refused);
                settled.extend(group.into_iter().map(|n| (n, outcome.clone())));
                continue;
            }
            let suspects = suspects(&refused, items, &group);
            let (alone, rest): (Vec<_>, Vec<_>) =
                group.iter().enumerate().partition(|(place, _)| suspects.contains(place));
            let rest: Vec<usize> = rest.into_iter().map(|(_, n)| *n).collect();
            // Worked off from the end: what is suspected comes last, so that of two with one id the first one wins.
            work.extend(alone.into_iter().rev().map(|(_, n)| (vec![*n], 0)));
            if suspects.is_empty() || tries > 2 {
                let half = rest.len() / 2;
                work.push((rest[half..].to_vec(), 0));
                work.push((rest[..half].to_vec(), 0));
            } else {
                work.push((rest, tries + 1));
            }
        }
        Ok(settled)
    }

    async fn one(&self, shape: &Shape, item: &Item) -> Result<Outcome> {
        if let Some(why) = self.unserved(shape) {
            return Ok(Outcome::Refused(why));
        }
        let mut message = item.message.clone();
        disown(&mut message, shape.noun.owned);
        let mut asked = DynamicMessage::new(shape.create.input.clone());
        let Form::One { item: field } = &shape.form else {
            return Err(TransferError::internal("a batch was sent as one"));
        };
        asked.set_field(field, Value::Message(message));
        set_parent(shape, &mut asked, parent_of(shape, item))?;
        set_options(&mut asked, self.options(shape, item, [item.line], "create"))?;
        match self.client.call(&shape.create, &asked).await? {
            Ok(answer) => {
                let outcome = outcomes(shape, answer, 1).pop().unwrap_or(Outcome::Created);
                self.after(shape, item, outcome).await
            }
            Err(refused) => {
                self.note_unserved(shape, &refused);
                Ok(self.refusal(&refused))
            }
        }
    }

    /// What no create sets.
    async fn after(&self, shape: &Shape, item: &Item, outcome: Outcome) -> Result<Outcome> {
        let (Some(after), Some(method)) = (shape.noun.after, &shape.after) else {
            return Ok(outcome);
        };
        if !item.message.has_field_by_name(after.field) {
            return Ok(outcome);
        }
        // One call, or one for each value of a list.
        let values = match item.message.get_field_by_name(after.field).as_deref() {
            Some(Value::List(values)) => values.iter().cloned().map(Some).collect(),
            _ => vec![None],
        };
        for (n, value) in values.into_iter().enumerate() {
            let mut asked = DynamicMessage::new(method.input.clone());
            for (from, to) in after.copy {
                let own = value.clone().filter(|_| *from == after.field);
                set(
                    &mut asked,
                    to,
                    own.unwrap_or_else(|| Value::String(text(&item.message, from))),
                )?;
            }
            let id = self.request_id(shape, [item.line], &format!("after {n}"));
            set_options(&mut asked, json!({"requestId": id}))?;
            if let Err(refused) = self.client.call(method, &asked).await? {
                let said = refused.status.message();
                return Ok(Outcome::Refused(Why {
                    message: format!("it is there, but {}: {said}", method.name),
                    ..Why::of(&refused)
                }));
            }
        }
        Ok(outcome)
    }

    /// Settles the lines whose id is taken, for nouns whose create can only fail then.
    async fn look(
        &self,
        shape: &Shape,
        items: &[Item],
        outcomes: &mut [Option<Outcome>],
    ) -> Result<()> {
        let ids: Vec<&str> = items.iter().map(|item| item.id.as_str()).collect();
        for (part, ids) in ids.chunks(LOOKED_FOR).enumerate() {
            let values: Vec<Json> = ids.iter().map(|id| json!({"stringValue": id})).collect();
            let mut asked = shape.any_parent();
            asked["page"] = json!({"pageSize": LOOKED_FOR});
            asked["where"] = json!({"filter": {"field": {"path": "id", "in": {"values": values}}}});
            let asked = request(&shape.list.input, asked)?;
            // What cannot be asked for, such as an id that is none, is refused by the create.
            let Ok(mut answer) = self.client.call(&shape.list, &asked).await? else { continue };
            let there = messages(answer.take_field(&shape.listed));
            let there: HashMap<String, DynamicMessage> =
                there.into_iter().map(|message| (text(&message, "id"), message)).collect();
            let first = part * LOOKED_FOR;
            for (item, outcome) in
                items[first..].iter().zip(&mut outcomes[first..first + ids.len()])
            {
                let Some(there) = there.get(&item.id) else { continue };
                *outcome = Some(self.compare(shape, item, there));
            }
        }
        Ok(())
    }

    fn compare(&self, shape: &Shape, item: &Item, there: &DynamicMessage) -> Outcome {
        let content = |message: &DynamicMessage| {
            let mut message = message.clone();
            disown(&mut message, shape.noun.owned);
            message
        };
        if content(&item.message) == content(there) {
            return Outcome::Unchanged;
        }
        match self.on_conflict {
            OnConflict::Skip => Outcome::Kept,
            OnConflict::Fail | OnConflict::Replace => Outcome::Refused(Why {
                code: format!("{:?}", Code::AlreadyExists),
                reason: "EXISTS_DIFFERENT".into(),
                message: format!(
                    "the {} \"{}\" has other content, and never changes",
                    shape.noun.kind, item.id
                ),
            }),
        }
    }

    fn refusal(&self, refused: &Refused) -> Outcome {
        if refused.code() == Code::AlreadyExists && self.on_conflict == OnConflict::Skip {
            return Outcome::Kept;
        }
        Outcome::Refused(Why::of(refused))
    }

    fn unserved(&self, shape: &Shape) -> Option<Why> {
        self.unserved.lock().ok()?.get(shape.noun.kind).cloned()
    }

    fn note_unserved(&self, shape: &Shape, refused: &Refused) -> bool {
        let is = refused.code() == Code::Unimplemented;
        if let (true, Ok(mut unserved)) = (is, self.unserved.lock()) {
            unserved.insert(shape.noun.kind, Why::of(refused));
        }
        is
    }

    fn options(
        &self,
        shape: &Shape,
        item: &Item,
        lines: impl IntoIterator<Item = u64>,
        what: &str,
    ) -> Json {
        let superseded = shape.noun.supersedes.map(|field| text(&item.message, field));
        let superseded = superseded.filter(|id| !id.is_empty());
        let on_conflict = match (shape.noun.taken, self.on_conflict, &superseded) {
            (Taken::Look, _, Some(_)) => "ON_CONFLICT_REPLACE",
            (Taken::Look, OnConflict::Replace, None) if shape.noun.supersedes.is_some() => {
                "ON_CONFLICT_REPLACE"
            }
            (Taken::Look, ..) | (_, OnConflict::Fail, _) => "ON_CONFLICT_FAIL",
            (Taken::Any, OnConflict::Replace, _) => "ON_CONFLICT_REPLACE",
            (Taken::Any | Taken::Fixed, ..) => "ON_CONFLICT_RETURN_IF_EQUAL",
        };
        let mut options = json!({
            "requestId": self.request_id(shape, lines, what),
            "onConflict": on_conflict,
        });
        // It supersedes the one that it superseded, and none that the tenant has of its own.
        if let Some(id) = superseded.filter(|_| self.on_conflict != OnConflict::Replace) {
            let kind = format!("RESOURCE_KIND_{}", shape.noun.kind.to_uppercase());
            options["preconditions"] = json!([{"mustExist": {"kind": kind, "id": id}}]);
        }
        options
    }

    fn request_id(
        &self,
        shape: &Shape,
        lines: impl IntoIterator<Item = u64>,
        what: &str,
    ) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("{} {what} {}", self.key, shape.noun.kind));
        for line in lines {
            hash.update(line.to_be_bytes());
        }
        let mut id = hex(&hash.finalize());
        id.truncate(48);
        id
    }
}

fn set_options(asked: &mut DynamicMessage, options: Json) -> Result<()> {
    let field = asked.descriptor().get_field_by_name("options");
    let Some(Kind::Message(of)) = field.map(|field| field.kind()) else {
        return Err(TransferError::internal("a request takes no options"));
    };
    set(asked, "options", Value::Message(request(&of, options)?))
}

fn parent_of(shape: &Shape, item: &Item) -> Option<String> {
    shape.noun.parent.map(|field| text(&item.message, field))
}

fn set_parent(shape: &Shape, asked: &mut DynamicMessage, parent: Option<String>) -> Result<()> {
    match (shape.noun.parent, parent) {
        (Some(field), Some(id)) => set(asked, field, Value::String(id)),
        _ => Ok(()),
    }
}

fn batch_request(
    shape: &Shape,
    messages: Vec<DynamicMessage>,
    parent: Option<String>,
    options: Json,
) -> Result<DynamicMessage> {
    let mut asked = DynamicMessage::new(shape.create.input.clone());
    match &shape.form {
        Form::Requests { requests, item } => {
            let Kind::Message(of) = requests.kind() else {
                return Err(TransferError::internal("requests are no messages"));
            };
            let each = messages.into_iter().map(|message| {
                let mut one = DynamicMessage::new(of.clone());
                one.set_field(item, Value::Message(message));
                Value::Message(one)
            });
            asked.set_field(requests, Value::List(each.collect()));
        }
        Form::Items { items: field } | Form::One { item: field } => {
            asked.set_field(field, Value::List(messages.into_iter().map(Value::Message).collect()));
        }
    }
    set_parent(shape, &mut asked, parent)?;
    set_options(&mut asked, options)?;
    Ok(asked)
}

/// What goes one after the other, or together: by parent where a batch has one, by chain where there is one.
fn lanes(shape: &Shape, items: &[Item], left: impl Iterator<Item = usize>) -> Vec<Vec<usize>> {
    let by = match shape.form {
        Form::One { .. } => shape.noun.chain,
        Form::Requests { .. } | Form::Items { .. } => shape.noun.parent,
    };
    let Some(field) = by else {
        return match shape.form {
            Form::One { .. } => left.map(|n| vec![n]).collect(),
            Form::Requests { .. } | Form::Items { .. } => vec![left.collect()],
        };
    };
    let mut lanes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for n in left {
        lanes.entry(text(&items[n].message, field)).or_default().push(n);
    }
    lanes.into_values().collect()
}

/// The places in the group that a failure names: `requests[17].claim.confidence`, or the resource of that id.
fn suspects(refused: &Refused, items: &[Item], group: &[usize]) -> HashSet<usize> {
    let named = refused.fields().into_iter().filter_map(|field| {
        let (_, rest) = field.split_once('[')?;
        rest.split_once(']')?.0.parse::<usize>().ok()
    });
    let resource = refused.resource();
    let by_id = group
        .iter()
        .enumerate()
        .filter(|(_, n)| resource.as_ref() == Some(&items[**n].id))
        .map(|(place, _)| place);
    named.chain(by_id).filter(|place| *place < group.len()).collect()
}

fn messages(value: Option<Value>) -> Vec<DynamicMessage> {
    let items = match value {
        Some(Value::List(items)) => items,
        Some(one) => vec![one],
        None => Vec::new(),
    };
    let messages = items.into_iter().filter_map(|item| match item {
        Value::Message(message) => Some(message),
        _ => None,
    });
    messages.collect()
}

/// What a write that succeeded did to each of its resources. One transaction has one time: what it wrote, has that.
fn outcomes(shape: &Shape, mut answer: DynamicMessage, count: usize) -> Vec<Outcome> {
    let receipt = inner(&answer, "receipt");
    if receipt.is_some_and(|receipt| flag(&receipt, "unchanged")) {
        return vec![Outcome::Unchanged; count];
    }
    let created = shape.created.as_ref().and_then(|field| answer.take_field(field));
    let written: Vec<_> = messages(created)
        .iter()
        .map(|resource| {
            let meta = inner(resource, "meta")?;
            let time = inner(&meta, "update_time")?;
            let seconds = time.get_field_by_name("seconds")?.as_i64()?;
            let nanos = time.get_field_by_name("nanos")?.as_i32()?;
            Some((seconds, nanos, meta.get_field_by_name("version")?.as_i64()?))
        })
        .collect();
    let newest = written.iter().flatten().map(|(seconds, nanos, _)| (*seconds, *nanos)).max();
    let mut outcomes: Vec<Outcome> = written
        .into_iter()
        .map(|written| match written {
            Some((seconds, nanos, _)) if Some((seconds, nanos)) != newest => Outcome::Unchanged,
            Some((_, _, version)) if version > 1 => Outcome::Replaced,
            _ => Outcome::Created,
        })
        .collect();
    outcomes.resize(count, Outcome::Created);
    outcomes
}
