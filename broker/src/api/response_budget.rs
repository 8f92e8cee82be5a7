//! Bounds the memory of large answers that wait for slow clients.
//!
//! An answer is built whole on a blocking thread, so at most one answer per database connection is being built. A
//! finished answer waits for its client. An answer larger than [`SMALL`] therefore takes its size from [`ROOM`] until
//! it has been handed to the connection, which takes it in pieces as the client reads. Without room the answer is
//! dropped and the client gets 503.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::error::Error;

/// Largest size of an answer that takes no room, in bytes: the kernel takes most of it at once.
const SMALL: u64 = 256 * 1024;

/// Number of bytes handed to the connection at once.
const PIECE: usize = 64 * 1024;

/// Memory for all large answers that wait for their clients, in KiB. A larger answer takes all of it.
const ROOM: u32 = 128 * 1024;
static FREE: Semaphore = Semaphore::const_new(ROOM as usize);

/// Returns the answer holding its room, or 503 when there is no room.
pub(super) fn held(response: Response) -> Response {
    let size = response.body().size_hint().exact().unwrap_or(0);
    if size <= SMALL {
        return response;
    }
    let kibibytes = u32::try_from(size.div_ceil(1024)).unwrap_or(ROOM);
    match FREE.try_acquire_many(kibibytes.min(ROOM)) {
        Ok(room) => response.map(|body| {
            Body::new(BudgetedBody {
                body,
                piece: Bytes::new(),
                left: size,
                _room: room,
            })
        }),
        Err(_) => {
            tracing::warn!(
                size,
                "too many large answers wait for clients that read slowly"
            );
            Error::busy("too many large answers at once; try again shortly").into_response()
        }
    }
}

/// A body that is sent in pieces and holds its room until the last piece has been taken.
struct BudgetedBody {
    body: Body,
    /// Data that the body has yielded and the connection has not taken yet.
    piece: Bytes,
    left: u64,
    _room: SemaphorePermit<'static>,
}

impl HttpBody for BudgetedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        while this.piece.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                // Trailers are dropped; no handler sends them.
                Some(Ok(frame)) => this.piece = frame.into_data().unwrap_or_default(),
            }
        }
        let next = this.piece.split_to(this.piece.len().min(PIECE));
        this.left = this.left.saturating_sub(next.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(next))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use axum::http::StatusCode;
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn large_answers_are_whole_and_count_until_they_are_taken() {
        let answer = |bytes: usize| held(vec![7_u8; bytes].into_response());
        let (one, more) = (40 << 20, (40 << 20) + 5);
        let waiting = [answer(one), answer(one), answer(one)];
        assert_eq!(answer(more).status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            answer(1000).status(),
            StatusCode::OK,
            "small ones need no room"
        );
        drop(waiting);
        let whole = answer(more).into_body().collect().await.unwrap().to_bytes();
        assert!(whole.len() == more && whole.iter().all(|byte| *byte == 7));
        let larger_than_all = answer(200 << 20);
        assert_eq!(larger_than_all.status(), StatusCode::OK);
        drop(larger_than_all);
        assert_eq!(FREE.available_permits(), ROOM as usize);
    }
}
