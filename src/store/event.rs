//! Events that the service cannot see itself: a caller tells them, and they stand in the log beside the changes.

use super::canonical::{Json, object_of, parse_object};
use super::log::{Entry, LogRow, Told};
use super::noun::Noun;
use super::write::{Applied, Change, Foreseen, Outcome, RowKey, Tx};
use crate::{Result, row};
use futures_util::future::BoxFuture;
use std::borrow::Cow;
use std::time::SystemTime;
use uuid::Uuid;

/// The log's name for them.
pub const KIND: &str = "event";

row! {
    /// An event's document.
    pub struct Event {
        pub user_id: String,
        pub username: String,
        pub success: bool,
        pub error_message: String,
        pub object_key: String,
        /// As the log names it; empty without a target.
        pub target_kind: String,
        pub target_id: String,
        pub target_version: i64,
        pub metadata: Json,
        /// The caller's acting user, where the event names another.
        pub reporter: String,
    }
}

impl Event {
    pub fn from_document(document: &[u8]) -> Result<Self> {
        Self::from_members(&parse_object(document)?)
    }
}

/// Appends an event to the log.
pub struct LogEvent {
    pub uid: Uuid,
    pub action: String,
    pub event: Event,
    /// Its user is the event's.
    pub told: Told,
}

impl LogEvent {
    /// Something that the caller did with a version of a resource, without changing it.
    pub fn of<T: Noun>(noun: &T, action: &str, metadata: Json) -> Self {
        let event = Event {
            user_id: String::new(),
            username: String::new(),
            success: true,
            error_message: String::new(),
            object_key: String::new(),
            target_kind: T::KIND.to_owned(),
            target_id: noun.id().to_owned(),
            target_version: noun.meta().version,
            metadata,
            reporter: String::new(),
        };
        let told = Told::default();
        Self { uid: Uuid::now_v7(), action: action.to_owned(), event, told }
    }

    fn entry(&self, actor: &str) -> Entry {
        let mut event = self.event.clone();
        if !event.user_id.is_empty() && event.user_id != actor {
            actor.clone_into(&mut event.reporter);
        }
        let id = if event.object_key.is_empty() { &event.target_id } else { &event.object_key };
        Entry {
            kind: KIND,
            uid: self.uid,
            id: id.clone(),
            version: 1,
            action: Cow::Owned(self.action.clone()),
            document: object_of(event.fields()),
            told: Some(Told { actor: event.user_id.clone(), ..self.told.clone() }),
        }
    }
}

impl Change for LogEvent {
    type Answer = ();

    const FORESEE: Option<fn(&[Applied<'_, Self>], SystemTime) -> Foreseen<()>> =
        Some(|changes, _| {
            let entry = |a: &Applied<'_, Self>| ((), vec![a.change.entry(&a.caller.actor)]);
            Foreseen { inserts: Vec::new(), outcomes: changes.iter().map(entry).collect() }
        });

    fn touches(&self, _: &mut Vec<RowKey>) {}

    fn size_bytes(&self) -> usize {
        512 + self.event.metadata.text().len() + self.event.error_message.len()
    }

    fn apply<'a>(
        _: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<()>>>> {
        let done = |a: &Applied<'_, Self>| {
            let entries = vec![a.change.entry(&a.caller.actor)];
            Outcome::Done { answer: (), entries, shown: Vec::new() }
        };
        let outcomes = changes.iter().map(done).collect();
        Box::pin(async move { Ok(outcomes) })
    }

    fn rebuild(&self, _: &[LogRow]) -> Result<()> {
        Ok(())
    }
}
