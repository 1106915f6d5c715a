//! A two-way stream that brings records in bulk, from the caller's side.

use casebook::pb;
use std::fmt::Debug;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

pub const SOON: Duration = Duration::from_secs(20);

/// What an answer says of its message.
pub trait Answered: Debug {
    fn error(&self) -> Option<&pb::IngestError>;
}

impl Answered for pb::IngestChunksResponse {
    fn error(&self) -> Option<&pb::IngestError> {
        self.error.as_ref()
    }
}

impl Answered for pb::IngestEmbeddingsResponse {
    fn error(&self) -> Option<&pb::IngestError> {
        self.error.as_ref()
    }
}

/// A stream of messages and its answers.
pub struct Feed<M, A> {
    pub messages: Option<mpsc::Sender<M>>,
    pub answers: Streaming<A>,
}

/// The caller's end, and what the call takes.
pub fn messages<M: Send + 'static>() -> (mpsc::Sender<M>, Request<ReceiverStream<M>>) {
    let (messages, sent) = mpsc::channel(1);
    (messages, Request::new(ReceiverStream::new(sent)))
}

impl<M: Debug, A: Answered> Feed<M, A> {
    pub async fn send(&self, message: M) {
        let sent = self.messages.as_ref().expect("not closed yet").send(message);
        timeout(SOON, sent).await.expect("the server reads").expect("the server listens");
    }

    /// Says that nothing more comes.
    pub fn half_close(&mut self) {
        self.messages = None;
    }

    pub async fn next(&mut self) -> Result<Option<A>, Status> {
        timeout(SOON, self.answers.message()).await.expect("an answer in time")
    }

    pub async fn answer(&mut self) -> A {
        self.next().await.expect("no failure").expect("an answer")
    }

    /// The answer of a message that was written.
    pub async fn written(&mut self) -> A {
        let answer = self.answer().await;
        assert_eq!(answer.error(), None, "{answer:?}");
        answer
    }

    /// How the stream ends when it does not end well.
    pub async fn end(&mut self) -> Status {
        match self.next().await {
            Err(status) => status,
            Ok(answer) => panic!("the stream goes on: {answer:?}"),
        }
    }
}
