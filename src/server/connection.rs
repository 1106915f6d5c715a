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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(5);

    fn pair(buffer: usize) -> (Connection<DuplexStream>, DuplexStream) {
        let (here, there) = tokio::io::duplex(buffer);
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        (Connection::new(here, permit), there)
    }

    /// Bytes that tell their place.
    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|n| (n % 251) as u8).collect()
    }

    /// Does what h2 does: writes pieces, flushes, and waits for the next frame.
    fn write(mut connection: Connection<DuplexStream>, pieces: Vec<Vec<u8>>) {
        tokio::spawn(async move {
            for piece in pieces {
                connection.write_all(&piece).await?;
            }
            connection.flush().await?;
            connection.read_u8().await
        });
    }

    #[tokio::test]
    async fn what_is_flushed_arrives_although_nothing_follows() {
        let (connection, mut there) = pair(1024);
        write(connection, vec![b"an ".into(), b"answer".into()]);
        let mut found = [0; 9];
        timeout(SOON, there.read_exact(&mut found)).await.expect("in time").unwrap();
        assert_eq!(&found, b"an answer");
    }

    #[tokio::test]
    async fn answers_of_one_round_are_one_write() {
        let (mut connection, mut there) = pair(1 << 20);
        let wrote = tokio::spawn(async move {
            for _ in 0..100 {
                connection.write_all(b"answer").await?;
                // h2 flushes behind each.
                connection.flush().await?;
            }
            assert_eq!(connection.gathered.len(), 600, "none is on its way before the round ends");
            connection.read_u8().await
        });
        let mut found = vec![0; 600];
        timeout(SOON, there.read_exact(&mut found)).await.expect("in time").unwrap();
        drop(there);
        let _ = wrote.await.expect("no panic");
    }

    #[tokio::test]
    async fn a_slow_reader_gets_everything_in_order() {
        // Pieces below and above what is gathered and what is copied, to a peer that takes little at a time.
        let sizes = [1, 9, 16_000, 17_000, 5, 40_000, 100, 70_000, 16_384, 16_385, 3];
        let sent = bytes(sizes.iter().sum());
        let mut rest = sent.as_slice();
        let pieces = sizes.iter().map(|size| rest.split_off(..*size).unwrap().to_vec()).collect();
        let (connection, mut there) = pair(64);
        write(connection, pieces);
        let mut found = Vec::new();
        while found.len() < sent.len() {
            let mut some = [0; 1000];
            let n = timeout(SOON, there.read(&mut some)).await.expect("in time").unwrap();
            found.extend_from_slice(&some[..n]);
            if found.len() % 7 == 0 {
                tokio::task::yield_now().await;
            }
        }
        assert!(found == sent);
    }

    #[tokio::test]
    async fn what_is_gathered_is_written_before_the_end() {
        let (mut connection, mut there) = pair(16);
        let sent = bytes(5000);
        let piece = sent.clone();
        let ended = tokio::spawn(async move {
            connection.write_all(&piece).await?;
            connection.shutdown().await
        });
        let mut found = Vec::new();
        timeout(SOON, there.read_to_end(&mut found)).await.expect("in time").unwrap();
        assert!(found == sent);
        ended.await.expect("no panic").unwrap();
    }

    #[tokio::test]
    async fn little_is_held_for_a_reader_that_takes_nothing() {
        let (mut connection, there) = pair(16);
        let piece = bytes(10_000);
        let writing = async {
            loop {
                connection.write_all(&piece).await?;
                connection.flush().await?;
            }
        };
        let ended: Result<io::Result<()>, _> = timeout(Duration::from_millis(50), writing).await;
        assert!(ended.is_err(), "it waits for the reader");
        assert!(connection.gathered.len() <= GATHERED_MAX);
        drop(there);
    }
}
