//! An answer that goes on: a task feeds it, the connection takes it, and neither is more than two pieces ahead.

use axum::body::Body;
use bytes::Bytes;
use hyper::body::Frame;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// The end of the task.
pub(super) struct Feed(mpsc::Sender<Bytes>);

struct Taken {
    pieces: mpsc::Receiver<Bytes>,
    /// Its place among the streams.
    _permit: OwnedSemaphorePermit,
}

/// A stream's two ends. `permit` is given back when the connection has done with it.
pub(super) fn channel(permit: OwnedSemaphorePermit) -> (Feed, Body) {
    let (sender, pieces) = mpsc::channel(2);
    (
        Feed(sender),
        Body::new(Taken {
            pieces,
            _permit: permit,
        }),
    )
}

impl Feed {
    /// False: nobody takes it any more.
    pub(super) async fn send(&mut self, piece: Bytes) -> bool {
        self.0.send(piece).await.is_ok()
    }

    /// What `work` comes to, or `None` as soon as nobody takes it any more. `work` is dropped then, and lost with it is
    /// only what this stream would have had.
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
