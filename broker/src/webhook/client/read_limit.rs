//! A connection that reads a limited number of bytes, a little at a time.
//!
//! hyper skips interim answers (`100 Continue`) in one poll for as long as more bytes can be read. A peer that never
//! stops sending them would block the event loop, and no timeout of the answer would take effect.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The largest number of bytes of one read.
const AT_ONCE: usize = 4 * 1024;
/// The number of reads in a row after which other tasks run.
const IN_A_ROW: u32 = 4;

/// The bounded connection; see the module's documentation.
pub(super) struct ReadLimit<S> {
    inner: S,
    /// The number of bytes that may still be read.
    left: usize,
    /// The number of reads since the last pause.
    row: u32,
}

impl<S> ReadLimit<S> {
    /// Bounds `inner` to `most` bytes; further reads fail.
    pub(super) fn new(inner: S, most: usize) -> Self {
        Self {
            inner,
            left: most,
            row: 0,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadLimit<S> {
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

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadLimit<S> {
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
