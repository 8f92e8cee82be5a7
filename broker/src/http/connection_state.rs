//! The state of a connection that its bytes and its requests share.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::watch;
use tokio::time::Instant;

use super::request_id;
use crate::metrics::Metrics;

/// The time from the connection, or from the first byte of a later request, to the end of the request's head.
const HEAD: Duration = Duration::from_secs(10);

/// The time between two requests. It is longer than usual clients keep a connection in their pools, so that they close
/// first.
const IDLE: Duration = Duration::from_secs(90);

/// The largest answer in bytes that goes to the connection in one piece.
const ONE_PIECE: u64 = 64 * 1024;

/// The phase of all connections of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Accepts and serves.
    Serving,
    /// Accepts no more; every answer is the last on its connection.
    Draining,
    /// Closes idle connections.
    Closing,
}

/// Handle to the state of one connection. Cheap to clone.
#[derive(Clone)]
pub(super) struct ConnectionState {
    state: Arc<Mutex<ConnectionInner>>,
    phase: watch::Receiver<Phase>,
    metrics: Arc<Metrics>,
}

struct ConnectionInner {
    stage: Stage,
    /// True while the end of the latest request's body has not been read.
    unread: bool,
}

enum Stage {
    /// The peer's turn: a request's head is awaited, or has arrived in part.
    Head {
        since: Instant,
        until: Instant,
        begun: bool,
    },
    /// The broker's turn: a handler works on a request.
    Working,
    /// An answer's body is being handed over in pieces.
    Sending,
    /// An answer has been handed over whole.
    Sent,
    /// The connection has left HTTP; the new protocol sets its own limits.
    Upgraded,
}

impl ConnectionState {
    /// Returns the state of a connection that has just been accepted.
    pub(super) fn new(phase: watch::Receiver<Phase>, metrics: Arc<Metrics>) -> Self {
        let since = Instant::now();
        let stage = Stage::Head {
            since,
            until: since + HEAD,
            begun: false,
        };
        ConnectionState {
            state: Arc::new(Mutex::new(ConnectionInner {
                stage,
                unread: false,
            })),
            phase,
            metrics,
        }
    }

    /// Notes that a request's head is complete, and observes its body.
    pub(super) fn begin<B>(&self, request: Request<B>) -> Request<Body>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<axum::BoxError>,
    {
        let mut state = self.lock();
        state.stage = Stage::Working;
        state.unread = !request.body().is_end_stream();
        if !state.unread {
            return request.map(|_| Body::empty());
        }
        drop(state);
        request.map(|body| {
            Body::new(Asked {
                body,
                turn: self.clone(),
            })
        })
    }

    /// Notes the answer to the request. Marks it as the connection's last when the process drains, and when the
    /// request's body is still arriving, because hyper would not mark it then.
    pub(super) fn answer(&self, mut response: Response<Body>) -> Response<Body> {
        let mut state = self.lock();
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            state.stage = Stage::Upgraded;
            return response;
        }
        if *self.phase.borrow() != Phase::Serving || state.unread {
            response
                .headers_mut()
                .insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let size = response.body().size_hint().exact();
        if size.is_some_and(|size| size <= ONE_PIECE) {
            state.stage = Stage::Sent;
            return response;
        }
        state.stage = Stage::Sending;
        drop(state);
        let turn = self.clone();
        response.map(|body| Body::new(Answer { body, turn }))
    }

    /// Notes that all written bytes have been sent. Returns true when they ended an answer.
    pub(super) fn flushed(&self) -> bool {
        let mut state = self.lock();
        if !matches!(state.stage, Stage::Sent) {
            return false;
        }
        let since = Instant::now();
        state.stage = Stage::Head {
            since,
            until: since + IDLE,
            begun: false,
        };
        true
    }

    /// Notes that the peer has sent bytes.
    pub(super) fn heard(&self) {
        if let Stage::Head { until, begun, .. } = &mut self.lock().stage
            && !std::mem::replace(begun, true)
        {
            *until = (*until).min(Instant::now() + HEAD);
        }
    }

    /// Returns the deadline of a request's head, and true if the head has begun.
    pub(super) fn deadline(&self) -> Option<(Instant, bool)> {
        match self.lock().stage {
            Stage::Head { until, begun, .. } => Some((until, begun)),
            _ => None,
        }
    }

    /// Returns true when no request is being worked on or answered.
    pub(super) fn awaits_a_head(&self) -> bool {
        matches!(self.lock().stage, Stage::Head { .. })
    }

    /// Returns the time since the last request, if none is in progress.
    pub(super) fn idle(&self) -> Option<Duration> {
        match self.lock().stage {
            Stage::Head {
                since,
                begun: false,
                ..
            } => Some(since.elapsed()),
            _ => None,
        }
    }

    /// Returns true when the peer may still be sending a body that has not been read.
    pub(super) fn has_unread(&self) -> bool {
        self.lock().unread
    }

    /// Returns true once the drain closes idle connections.
    pub(super) fn is_closing(&self) -> bool {
        *self.phase.borrow() == Phase::Closing
    }

    /// Returns the complete answer to bytes that never reach the router.
    pub(super) fn refuse(&self, status: StatusCode) -> Bytes {
        let (code, message) = match status {
            StatusCode::REQUEST_TIMEOUT => (
                "request_timeout",
                "the head of the request took too long to arrive",
            ),
            StatusCode::URI_TOO_LONG => ("uri_too_long", "the path and query are too long"),
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => (
                "request_header_fields_too_large",
                "the head of the request is too large",
            ),
            StatusCode::HTTP_VERSION_NOT_SUPPORTED => (
                "http_version_not_supported",
                "this server speaks HTTP/1.1, not HTTP/2",
            ),
            _ => ("bad_request", "this is no HTTP/1.1 request"),
        };
        self.metrics.refused(status.as_u16());
        let id = request_id::fresh();
        tracing::debug!(
            target: "access", status = status.as_u16(), request_id = id, "refused before it was a request"
        );
        let body = serde_json::json!({ "code": code, "message": message }).to_string();
        let date = chrono::Utc::now().format("%a, %d %b %Y %H:%M:%S GMT");
        let length = body.len();
        Bytes::from(format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\
             x-request-id: {id}\r\ndate: {date}\r\n\r\n{body}"
        ))
    }

    /// Locks the state. A poisoned state is valid because every change is one assignment.
    fn lock(&self) -> MutexGuard<'_, ConnectionInner> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body of a request; notes when its end has been read.
struct Asked<B> {
    body: B,
    turn: ConnectionState,
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Asked<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) || this.body.is_end_stream() {
            this.turn.lock().unread = false;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer; notes when it has been handed over.
struct Answer {
    body: Body,
    turn: ConnectionState,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.turn.lock().stage = Stage::Sent;
    }
}
