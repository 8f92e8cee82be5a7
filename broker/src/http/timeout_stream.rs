//! The bytes of one connection, and the time limits of its peer.
//!
//! | the peer | has |
//! |---|---|
//! | has connected, or has begun a request, and owes the rest of the head | `connection_state::HEAD` |
//! | is idle between two requests | `connection_state::IDLE` |
//! | takes no byte of a waiting answer | [`STALL`] |
//! | still sends a body that the broker no longer reads | [`LINGER`], while it sends |
//!
//! hyper cannot tell the first two apart, so its own timeout is off. hyper also answers invalid HTTP by itself, without
//! a body. The connection state recognises that answer, because no request is being worked on; the stream then sends
//! the usual JSON error instead.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::StatusCode;
use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::connection_state::ConnectionState;

/// The time after which a peer that takes no byte is cut off. Bytes in the kernel's buffers count as taken, so a slow
/// reader is not cut off as long as it reads.
const STALL: Duration = Duration::from_secs(30);

/// The longest time that an unwanted body is read and discarded, so that its sender can read the answer. Closing on
/// unread bytes resets the connection, and the answer would be lost.
const LINGER: Duration = Duration::from_secs(30);

/// The silence after which a sender has read its answer or never will.
const LINGER_SILENCE: Duration = Duration::from_secs(2);

/// The first bytes of an HTTP/2 client, up to the version's digit. hyper knows these bytes and closes without an
/// answer; with [`NO_VERSION`] in the place of the digit it refuses them like any other version.
const PREFACE: &[u8] = b"PRI * HTTP/2";
const NO_VERSION: u8 = b'9';

/// A stream with these limits; see the module's documentation.
pub(super) struct TimeoutStream<S> {
    inner: S,
    turn: ConnectionState,
    reading: Alarm,
    writing: Alarm,
    /// The time by which the peer must take a byte; `None` while no byte waits.
    stalled: Option<Instant>,
    /// The unsent rest of the answer that replaces hyper's.
    refusal: Option<Bytes>,
    /// The end of the lingering and of the present silence, once the broker has shut its side.
    lingering: Option<(Instant, Instant)>,
    preface: Preface,
}

/// The match of a connection's first bytes with [`PREFACE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Preface {
    Begun(usize),
    Whole,
    Other,
}

impl Preface {
    /// Matches the next received bytes, and replaces the digit.
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

impl<S: AsyncRead + AsyncWrite + Unpin> TimeoutStream<S> {
    pub(super) fn new(inner: S, turn: ConnectionState) -> Self {
        TimeoutStream {
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

    /// Returns an error once the peer has taken no byte for [`STALL`].
    fn stall<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let until = *self.stalled.get_or_insert_with(|| Instant::now() + STALL);
        if self.writing.rings(until, cx) {
            return Poll::Ready(Err(timed_out("the peer does not read its answer")));
        }
        Poll::Pending
    }

    /// Returns true when hyper writes an answer of its own, which the refusal then replaces.
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

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TimeoutStream<S> {
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
            // Try once: no earlier bytes of this request's answer are buffered, so there is room unless the peer does
            // not read.
            this.refusal = Some(this.turn.refuse(StatusCode::REQUEST_TIMEOUT));
            let _ = this.push_refusal(cx);
        }
        Poll::Ready(Err(timed_out("no request came in time")))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TimeoutStream<S> {
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
            // Set the alarm here because hyper does not poll for the next request until it is woken.
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
                // The peer has closed its side, or the connection is broken.
                Poll::Ready(_) => break,
                Poll::Pending if this.turn.is_closing() => break,
                Poll::Pending if this.reading.rings(end.min(silence), cx) => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Returns the status if hyper made this answer by itself.
fn hypers_own(written: &[u8]) -> Option<StatusCode> {
    let rest = written.strip_prefix(b"HTTP/1.")?.get(1..)?;
    let status = StatusCode::from_bytes(rest.strip_prefix(b" ")?.get(..3)?).ok()?;
    status.is_client_error().then_some(status)
}

fn timed_out(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

/// A timer that is created at its first use.
#[derive(Default)]
struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Returns true when the time has come; otherwise sets the timer to wake the task then.
    fn rings(&mut self, at: Instant, cx: &mut Context<'_>) -> bool {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if sleep.deadline() != at {
            sleep.as_mut().reset(at);
        }
        sleep.as_mut().poll(cx).is_ready()
    }
}
