//! A connection of which only so much is read, a little at a time.
//!
//! hyper passes over interim answers (`100 Continue`) for as long as more can be read, within one poll. A peer that never
//! stops sending them would keep the event loop, and no time set for the answer would ever be looked at.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes given at once.
const AT_ONCE: usize = 4 * 1024;
/// After so many reads in a row everybody else has a turn.
const IN_A_ROW: u32 = 4;

/// See the module.
pub(super) struct Bounded<S> {
    inner: S,
    /// So many bytes may still be read.
    left: usize,
    /// Reads since the last pause.
    row: u32,
}

impl<S> Bounded<S> {
    /// At most `most` bytes are read; after them reading fails.
    pub(super) fn new(inner: S, most: usize) -> Self {
        Self {
            inner,
            left: most,
            row: 0,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.left == 0 {
            return Poll::Ready(Err(io::Error::other("the answer is too long")));
        }
        if this.row == IN_A_ROW {
            this.row = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let room = buffer.remaining().min(AT_ONCE).min(this.left);
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(room));
        let read = Pin::new(&mut this.inner).poll_read(cx, &mut part);
        let n = part.filled().len();
        this.row = if read.is_ready() { this.row + 1 } else { 0 };
        this.left -= n;
        buffer.advance(n);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
