//! Streaming answers: a task sends pieces, the connection takes them, and at most two pieces wait between them.

use axum::body::Body;
use bytes::Bytes;
use hyper::body::Frame;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// The task's end of the stream.
pub(super) struct StreamSender(mpsc::Sender<Bytes>);

struct Taken {
    pieces: mpsc::Receiver<Bytes>,
    /// The stream's slot, released when the connection ends.
    _permit: OwnedSemaphorePermit,
}

/// Creates the two ends of a stream. The connection holds `permit` until it ends.
pub(super) fn channel(permit: OwnedSemaphorePermit) -> (StreamSender, Body) {
    let (sender, pieces) = mpsc::channel(2);
    (
        StreamSender(sender),
        Body::new(Taken {
            pieces,
            _permit: permit,
        }),
    )
}

impl StreamSender {
    /// Sends a piece; returns false once the client has gone.
    pub(super) async fn send(&mut self, piece: Bytes) -> bool {
        self.0.send(piece).await.is_ok()
    }

    /// Runs `work` and returns its result, or `None` as soon as the client has gone. `work` is dropped then, so it must
    /// be of use to this stream only.
    pub(super) async fn unless_gone<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            () = self.0.closed() => None,
            done = work => Some(done),
        }
    }
}

impl hyper::body::Body for Taken {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.pieces
            .poll_recv(cx)
            .map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    }
}
