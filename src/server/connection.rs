//! What lies between HTTP/2 and a socket: a bound on open connections, and answers gathered into few writes.

use bytes::{Buf, BytesMut};
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::Connected;

/// What may wait to be written together; more is written at once.
const GATHERED_MAX: usize = 64 << 10;
/// From here on a piece is not worth copying.
const PIECE_MAX: usize = 16 << 10;

/// A stream of connections, of which at most so many are open; further ones wait in the listener's backlog.
pub(super) fn limited<S, C, E>(
    incoming: S,
    open: Arc<Semaphore>,
) -> impl Stream<Item = Result<Connection<C>, E>>
where
    S: Stream<Item = Result<C, E>> + Unpin,
{
    futures_util::stream::unfold((incoming, open), |(mut incoming, open)| async move {
        let permit = Arc::clone(&open).acquire_owned().await.ok()?;
        let connection = StreamExt::next(&mut incoming).await?;
        Some((connection.map(|inner| Connection::new(inner, permit)), (incoming, open)))
    })
}

/// A connection that counts until it is closed, and that writes when the runtime has nothing else to run.
///
/// When a batch of reads or writes ends, its calls end one by one, and h2 would flush after each: tokio runs whom a
/// task wakes right behind it, here the connection behind each call. A system call for each answer is a quarter of the
/// cost of a get. So what h2 writes is gathered, `poll_flush` only promises to write, and the promise is kept as soon
/// as the tasks that are ready have had their turn. An idle server writes at once.
pub(super) struct Connection<C> {
    inner: C,
    gathered: BytesMut,
    turn: Arc<Turn>,
    _permit: OwnedSemaphorePermit,
}

/// The end of the runtime's round, noted for the connection's task.
#[derive(Default)]
struct Turn {
    is_awaited: AtomicBool,
    is_over: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Wake for Turn {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_over.store(true, Ordering::Release);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl<C> Connection<C> {
    fn new(inner: C, permit: OwnedSemaphorePermit) -> Self {
        let (gathered, turn) = (BytesMut::new(), Arc::new(Turn::default()));
        Self { inner, gathered, turn, _permit: permit }
    }
}

impl<C: AsyncWrite + Unpin> Connection<C> {
    /// Writes what is gathered.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.gathered.has_remaining() {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, &self.gathered))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.gathered.advance(n),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Makes room for a piece; true if the piece is to be gathered, not written by itself.
    fn poll_room(&mut self, cx: &mut Context<'_>, piece: usize) -> Poll<io::Result<bool>> {
        if piece > PIECE_MAX || self.gathered.len() + piece > GATHERED_MAX {
            ready!(self.poll_drain(cx))?;
        }
        Poll::Ready(Ok(piece <= PIECE_MAX))
    }
}

impl<C: Connected> Connected for Connection<C> {
    type ConnectInfo = C::ConnectInfo;
    fn connect_info(&self) -> Self::ConnectInfo {
        self.inner.connect_info()
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> AsyncRead for Connection<C> {
    /// h2 reads at the beginning of each of its turns, so this is where the promise of `poll_flush` is kept.
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.turn.is_over.load(Ordering::Acquire) {
            match self.poll_drain(cx) {
                Poll::Ready(drained) => {
                    drained?;
                    self.turn.is_over.store(false, Ordering::Release);
                    self.turn.is_awaited.store(false, Ordering::Release);
                }
                // The socket wakes us when it takes more; until then there may be something to read.
                Poll::Pending => {}
            }
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Connection<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if ready!(self.poll_room(cx, bytes.len()))? {
            self.gathered.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len = slices.iter().map(|slice| slice.len()).sum();
        if ready!(self.poll_room(cx, len))? {
            for slice in slices {
                self.gathered.extend_from_slice(slice);
            }
            return Poll::Ready(Ok(len));
        }
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    /// Promises to write at the end of the runtime's round.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.gathered.is_empty() {
            return Pin::new(&mut self.inner).poll_flush(cx);
        }
        *self.turn.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        if !self.turn.is_awaited.swap(true, Ordering::AcqRel) {
            // Its first poll leaves the waker to be woken when the runtime has run what is ready.
            let waker = Waker::from(Arc::clone(&self.turn));
            let round = pin!(tokio::task::yield_now());
            let _ = round.poll(&mut Context::from_waker(&waker));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
