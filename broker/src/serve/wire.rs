//! The bytes of one connection, and how long its peer may take for each thing.
//!
//! | the peer | has |
//! |---|---|
//! | has connected, or has begun a request, and owes the rest of its head | [`HEAD`] |
//! | is idle between two requests | [`IDLE`] |
//! | takes no byte of an answer that waits for it | [`STALL`] |
//! | still sends a body that nobody reads any more | [`LINGER`], while it sends |
//!
//! hyper knows the first two only as one, so its own timeout is off. It also answers what is no HTTP by itself and without
//! a body; no request is being worked on then, so that answer is known by its turn and replaced on its way out by one that
//! has the body of every other error.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::StatusCode;
use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::turn::Turn;

/// From the connection, or from the first byte of a later request, to the end of the request's head.
pub(super) const HEAD: Duration = Duration::from_secs(10);

/// Between two requests. Longer than the pools of usual clients keep a connection, so that they close first.
pub(super) const IDLE: Duration = Duration::from_secs(90);

/// A peer that takes nothing for this long will not read its answer. What the kernel buffers counts as taken, so a slow
/// reader is not cut off as long as it reads.
const STALL: Duration = Duration::from_secs(30);

/// Longest that a body is taken and thrown away, so that its sender gets to read why: closing on unread bytes resets the
/// connection, and the answer would be lost with it.
const LINGER: Duration = Duration::from_secs(30);

/// A sender that is silent for this long after it was answered has read the answer or never will.
const LINGER_SILENCE: Duration = Duration::from_secs(2);

/// What a client that takes HTTP/2 for granted sends first, up to the digit that makes it HTTP/2. hyper knows these bytes and
/// closes without a word; with [`NO_VERSION`] in the place of the digit it refuses them as it refuses any other version.
const PREFACE: &[u8] = b"PRI * HTTP/2";
const NO_VERSION: u8 = b'9';

/// A stream with these bounds; see the module's comment.
pub(super) struct Wire<S> {
    inner: S,
    turn: Turn,
    reading: Alarm,
    writing: Alarm,
    /// Until when the peer must have taken something; none while nothing waits for it.
    stalled: Option<Instant>,
    /// What is left of an answer of our own in the place of hyper's.
    refusal: Option<Bytes>,
    /// Set once our side has been shut: the end of the lingering, and of the present silence.
    lingering: Option<(Instant, Instant)>,
    preface: Preface,
}

/// How far the first bytes of a connection are those of [`PREFACE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Preface {
    Begun(usize),
    Whole,
    Other,
}

impl Preface {
    /// Looks at the next bytes that came, and replaces the digit.
    fn look(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            let Preface::Begun(at) = *self else { return };
            *self = match PREFACE.get(at) {
                Some(wanted) if wanted == byte && at + 1 == PREFACE.len() => {
                    *byte = NO_VERSION;
                    Preface::Whole
                }
                Some(wanted) if wanted == byte => Preface::Begun(at + 1),
                _ => Preface::Other,
            };
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(super) fn new(inner: S, turn: Turn) -> Self {
        Wire {
            inner,
            turn,
            reading: Alarm::default(),
            writing: Alarm::default(),
            stalled: None,
            refusal: None,
            lingering: None,
            preface: Preface::Begun(0),
        }
    }

    /// An error once the peer has taken nothing for [`STALL`].
    fn stall<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let until = *self.stalled.get_or_insert_with(|| Instant::now() + STALL);
        if self.writing.rings(until, cx) {
            return Poll::Ready(Err(timed_out("the peer does not read its answer")));
        }
        Poll::Pending
    }

    /// Whether what hyper writes is an answer of its own; it is replaced then.
    fn replaces(&mut self, written: &[u8]) -> bool {
        if self.refusal.is_none() {
            let own = self.turn.awaits_a_head().then(|| hypers_own(written));
            self.refusal = own.flatten().map(|status| match self.preface {
                Preface::Whole => self.turn.refuse(StatusCode::HTTP_VERSION_NOT_SUPPORTED),
                _ => self.turn.refuse(status),
            });
        }
        self.refusal.is_some()
    }

    fn push_refusal(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.refusal.as_mut().filter(|rest| rest.has_remaining()) {
            match Pin::new(&mut self.inner).poll_write(cx, rest) {
                Poll::Ready(written) => {
                    rest.advance(written?);
                    self.stalled = None;
                }
                Poll::Pending => return self.stall(cx),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn wrote(
        &mut self,
        cx: &mut Context<'_>,
        done: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if done.is_pending() {
            return self.stall(cx);
        }
        self.stalled = None;
        done
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut this.inner).poll_read(cx, buf) {
            if buf.filled().len() > before {
                this.turn.heard();
                this.preface.look(&mut buf.filled_mut()[before..]);
            }
            return Poll::Ready(read);
        }
        let Some((until, begun)) = this.turn.deadline() else {
            return Poll::Pending;
        };
        if !this.reading.rings(until, cx) {
            return Poll::Pending;
        }
        if begun {
            // One attempt: nothing was written before on behalf of this request, so there is room for it or nobody reads.
            this.refusal = Some(this.turn.refuse(StatusCode::REQUEST_TIMEOUT));
            let _ = this.push_refusal(cx);
        }
        Poll::Ready(Err(timed_out("no request came in time")))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.replaces(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        let done = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.wrote(cx, done)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let first: &[u8] = bufs
            .iter()
            .find(|buf| !buf.is_empty())
            .map_or(&[], |buf| buf);
        if this.replaces(first) {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        let done = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.wrote(cx, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.push_refusal(cx))?;
        if Pin::new(&mut this.inner).poll_flush(cx)?.is_pending() {
            return this.stall(cx);
        }
        this.stalled = None;
        if this.turn.flushed()
            && let Some((until, _)) = this.turn.deadline()
        {
            // hyper does not look for the next request until it is woken, so the alarm is set here.
            let _ = this.reading.rings(until, cx);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lingering.is_none() {
            ready!(this.push_refusal(cx))?;
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
            if !this.turn.has_unread() && this.refusal.is_none() {
                return Poll::Ready(Ok(()));
            }
            let now = Instant::now();
            this.lingering = Some((now + LINGER, now + LINGER_SILENCE));
        }
        let mut waste = [std::mem::MaybeUninit::uninit(); 16 * 1024];
        while let Some((end, silence)) = this.lingering {
            let mut buf = ReadBuf::uninit(&mut waste);
            match Pin::new(&mut this.inner).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    let now = Instant::now();
                    if now >= end {
                        break;
                    }
                    this.lingering = Some((end, now + LINGER_SILENCE));
                }
                // The end of what the peer sends, or of the peer.
                Poll::Ready(_) => break,
                Poll::Pending if this.turn.is_closing() => break,
                Poll::Pending if this.reading.rings(end.min(silence), cx) => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The status of an answer that hyper has made by itself.
fn hypers_own(written: &[u8]) -> Option<StatusCode> {
    let rest = written.strip_prefix(b"HTTP/1.")?.get(1..)?;
    let status = StatusCode::from_bytes(rest.strip_prefix(b" ")?.get(..3)?).ok()?;
    status.is_client_error().then_some(status)
}

fn timed_out(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

/// A timer that is set only where it is looked at.
#[derive(Default)]
struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Whether it is that late; if not, the task is woken then.
    fn rings(&mut self, at: Instant, cx: &mut Context<'_>) -> bool {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if sleep.deadline() != at {
            sleep.as_mut().reset(at);
        }
        sleep.as_mut().poll(cx).is_ready()
    }
}
