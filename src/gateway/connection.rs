//! Edge: one connection: what the sweeper sees of it, and what it tells it.

use super::answer::malformed;
use super::limits::{Phase, Seen};
use super::path::Route;
use super::report::Reports;
use super::service::{Gateway, Session};
use super::shortcut::{Meaning, Shortcut};
use crate::wire::etag::ETag;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Largest head of a request, and how much of a body is read at a time, bytes.
const BUFFER_BYTES: usize = 16 * 1024;

const RETIRE: u8 = 1;
const CUT: u8 = 2;

/// What a connection, its requests and the sweeper tell each other. All but the sweeper run in one task, so
/// plain loads and stores are enough.
#[derive(Debug)]
pub struct State {
    phase: AtomicU8,
    requests: AtomicU32,
    trusted: AtomicBool,
    stalled: AtomicBool,
    progress: AtomicU32,
    aged: AtomicBool,
    /// The last request was refused, perhaps with its body unread.
    refused: AtomicBool,
    order: AtomicU8,
    /// Length of the body of the last request; all ones when it was not told in advance.
    body_bytes: AtomicUsize,
    /// What the last request meant, when it may be recalled.
    meaning: Mutex<Option<Meaning>>,
    waker: Mutex<Option<Waker>>,
}

/// A stream that tells the state what passes through it.
struct Wire<T, R> {
    stream: T,
    state: Arc<State>,
    shortcut: Shortcut<R>,
    /// The last request after whose answer hyper has written, and the last one whose answer is all sent.
    written: u32,
    sent: u32,
    /// An answer past hyper, and how much of it is sent.
    instead: Option<(Vec<u8>, usize)>,
    /// Something past hyper may still be on its way within the stream: TLS takes bytes before it can send them.
    unflushed: bool,
    shut: bool,
}

// === impl State ===

impl State {
    /// A connection on which nothing has come yet. Its first head has as little time as any.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            phase: AtomicU8::new(Phase::Head as u8),
            requests: AtomicU32::new(0),
            trusted: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            progress: AtomicU32::new(0),
            aged: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            order: AtomicU8::new(0),
            body_bytes: AtomicUsize::new(usize::MAX),
            meaning: Mutex::new(None),
            waker: Mutex::new(None),
        })
    }

    /// What the sweeper sees.
    #[must_use]
    pub fn seen(&self) -> Seen {
        let phase = match self.phase.load(Relaxed) {
            0 => Phase::Idle,
            1 => Phase::Head,
            2 => Phase::Busy,
            _ => Phase::Linger,
        };
        Seen {
            phase,
            requests: self.requests.load(Relaxed),
            trusted: self.trusted.load(Relaxed),
            stalled: self.stalled.load(Relaxed),
            progress: self.progress.load(Relaxed),
        }
    }

    /// The next answer ends the connection.
    pub fn age(&self) {
        self.aged.store(true, Relaxed);
    }

    /// Ends it between two requests: now, or after the answer that is due.
    pub fn retire(&self) {
        self.tell(RETIRE);
    }

    /// Ends it now.
    pub fn cut(&self) {
        self.tell(CUT);
    }

    /// Whether it has been cut.
    pub(super) fn is_cut(&self) -> bool {
        self.order.load(Relaxed) == CUT
    }

    /// Waits until the sweeper ends the connection, in order or not. For the time before there are requests.
    pub(super) async fn told(&self) {
        poll_fn(|cx| {
            // First the waker, so that no order falls in between.
            *self.waker.lock() = Some(cx.waker().clone());
            if self.order.load(Relaxed) == 0 { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    /// Shows the sweeper what the connection is doing.
    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    fn tell(&self, order: u8) {
        if self.order.fetch_max(order, Relaxed) < order
            && let Some(waker) = &*self.waker.lock()
        {
            waker.wake_by_ref();
        }
    }

    /// Requests so far.
    pub(super) fn requests(&self) -> u32 {
        self.requests.load(Relaxed)
    }

    /// Length of the body of the last request, if it was told in advance.
    pub(super) fn body_bytes(&self) -> Option<usize> {
        Some(self.body_bytes.load(Relaxed)).filter(|bytes| *bytes != usize::MAX)
    }

    /// Whether the next answer ends the connection.
    pub(super) fn is_last(&self) -> bool {
        self.aged.load(Relaxed)
    }

    /// Notes what the request under way means, if it means the same whenever it comes again while the
    /// credentials are of this generation.
    pub(super) fn mean(&self, generation: Option<u64>, route: Route, device: &str, matched: Option<(ETag, u64)>) {
        if let Some(generation) = generation {
            let meaning = Meaning { request: self.requests(), route, device: device.into(), generation, matched };
            *self.meaning.lock() = Some(meaning);
        }
    }

    /// What the last request meant.
    pub(super) fn take_meaning(&self) -> Option<Meaning> {
        self.meaning.lock().take()
    }

    /// Whether an answer cannot be sent because the client does not read.
    fn waits_for_client(&self, waits: bool) {
        if waits {
            self.stalled.store(true, Relaxed);
        } else if self.stalled.load(Relaxed) {
            self.stalled.store(false, Relaxed);
            self.progress.store(self.progress.load(Relaxed).wrapping_add(1), Relaxed);
        }
    }

    /// A request is there, with a body of this length if that is known.
    pub(super) fn begin(&self, body_bytes: Option<usize>) {
        self.body_bytes.store(body_bytes.unwrap_or(usize::MAX), Relaxed);
        self.phase.store(Phase::Busy as u8, Relaxed);
        self.requests.store(self.requests.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// A good token was shown.
    pub(super) fn trust(&self) {
        self.trusted.store(true, Relaxed);
    }

    /// An answer is there; true when it is the last one.
    pub(super) fn end(&self, status: u16) -> bool {
        self.phase.store(Phase::Idle as u8, Relaxed);
        self.refused.store(status >= 400, Relaxed);
        self.aged.load(Relaxed)
    }
}

/// Serves one connection to its end.
pub async fn run<T, R>(stream: T, gateway: Arc<Gateway<R>>, state: Arc<State>)
where
    T: AsyncRead + AsyncWrite + Unpin,
    R: Reports,
{
    let shortcut = Shortcut::new(gateway.clone(), state.clone());
    let wire = Wire {
        stream,
        state: state.clone(),
        shortcut,
        written: 0,
        sent: 0,
        instead: None,
        unflushed: false,
        shut: false,
    };
    let session = Session::new(gateway, state.clone());
    // The sweeper keeps the times: hyper's own timeout for heads would end idle connections, too.
    let mut builder = http1::Builder::new();
    builder.header_read_timeout(None).max_buf_size(BUFFER_BYTES);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(wire), session));
    let (mut known, mut retired) = (false, false);
    poll_fn(|cx| {
        if !known {
            // The task's waker stays the same for all its life.
            *state.waker.lock() = Some(cx.waker().clone());
            known = true;
        }
        match state.order.load(Relaxed) {
            CUT => return Poll::Ready(()),
            RETIRE if !retired => {
                retired = true;
                connection.as_mut().graceful_shutdown();
            }
            _ => {}
        }
        connection.as_mut().poll(cx).map(|ended| {
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended");
            }
        })
    })
    .await;
}

// === impl Wire ===

impl<T: AsyncRead + AsyncWrite + Unpin, R: Reports> Wire<T, R> {
    /// Whether hyper waits for a request and has sent all that it has to send. It also reads while it answers,
    /// to notice when the client goes away.
    fn is_between(&self) -> bool {
        let requests = self.state.requests();
        self.sent == requests && (requests == 0 || self.state.phase.load(Relaxed) == Phase::Idle as u8)
    }

    fn note(&mut self, written: &Poll<io::Result<usize>>) {
        if self.state.phase.load(Relaxed) == Phase::Idle as u8 {
            self.written = self.state.requests();
        }
        self.state.waits_for_client(written.is_pending());
    }

    fn poll_flush_stream(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.state.waits_for_client(flushed.is_pending());
        flushed
    }

    /// Sends what replaces an answer of hyper's.
    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some((answer, sent)) = &mut self.instead {
            if *sent == answer.len() {
                (self.instead, self.unflushed) = (None, true);
                break;
            }
            let written = Pin::new(&mut self.stream).poll_write(cx, &answer[*sent..]);
            if let Poll::Ready(Ok(count)) = &written {
                *sent += count;
                if *count == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
            }
            self.note(&written);
            ready!(written)?;
        }
        if self.unflushed {
            ready!(self.poll_flush_stream(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Throws away what a refused client still sends: closing with unread bytes would reset the connection, and
    /// the client might never see the answer.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.state.phase.store(Phase::Linger as u8, Relaxed);
        let mut waste = [0; 4096];
        // Bounded, so that one client that sends without end cannot keep the task busy; the sweeper ends it.
        for _ in 0..16 {
            let mut buffer = ReadBuf::new(&mut waste);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                _ => return Poll::Ready(()),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin, R: Reports> AsyncRead for Wire<T, R> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        ready!(wire.poll_instead(cx))?;
        let begins = wire.is_between() && wire.shortcut.settle();
        let before = buf.filled().len();
        loop {
            ready!(Pin::new(&mut wire.stream).poll_read(cx, buf))?;
            let bytes = &buf.filled()[before..];
            let answer = if begins && !bytes.is_empty() { wire.shortcut.answer(bytes) } else { None };
            let Some(answer) = answer else {
                wire.shortcut.pass(bytes);
                if !bytes.is_empty() && wire.state.phase.load(Relaxed) == Phase::Idle as u8 {
                    wire.state.phase.store(Phase::Head as u8, Relaxed);
                }
                return Poll::Ready(Ok(()));
            };
            buf.set_filled(before);
            let written = Pin::new(&mut wire.stream).poll_write(cx, answer);
            let sent = if let Poll::Ready(Ok(sent)) = &written { *sent } else { 0 };
            if sent < answer.len() {
                wire.instead = Some((answer.to_vec(), sent));
            }
            wire.unflushed = true;
            wire.note(&written);
            if let Poll::Ready(Err(error)) = written {
                return Poll::Ready(Err(error));
            }
            wire.sent = wire.state.requests();
            ready!(wire.poll_instead(cx))?;
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin, R: Reports> AsyncWrite for Wire<T, R> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(answer) = malformed(buf) {
            self.instead = Some((answer, 0));
            return Poll::Ready(Ok(buf.len()));
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(first) = bufs.first()
            && let Some(answer) = malformed(first)
        {
            self.instead = Some((answer, 0));
            return Poll::Ready(Ok(first.len()));
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_instead(cx))?;
        // hyper flushes when it has written all that it has.
        self.sent = self.written;
        self.poll_flush_stream(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_instead(cx))?;
        if !self.shut {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.shut = true;
        }
        if self.state.refused.load(Relaxed) {
            ready!(self.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}
