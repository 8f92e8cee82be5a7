//! Connections: accepting, serving, draining.
//!
//! hyper's own graceful shutdown closes an idle keep-alive connection at once, and a client that is just about to send
//! its next request on it loses that request. So draining has two phases ([`Phase`]): first every answer carries
//! `Connection: close`, and idle connections stay open for one more request; only at the end of the grace is what is
//! still idle closed.

use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tower_service::Service;

use super::listener::{Listener, Stream};
use crate::live::Place;

/// A connection that sends no complete request head for this long is closed, idle ones too. Longer than the pools of
/// usual clients keep a connection, so that they close first.
const HEAD_TIMEOUT: Duration = Duration::from_secs(90);

/// After running out of descriptors or memory, until accepting is tried again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What all connections are doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Accept and serve.
    Serving,
    /// Accept no more; every answer is its connection's last.
    Draining,
    /// What is idle is closed.
    Closing,
}

/// All connections of one listener.
#[derive(Clone)]
pub(super) struct Connections {
    router: Router,
    phase: watch::Receiver<Phase>,
    /// One permit per connection. When all are taken, new ones wait in the backlog.
    room: Arc<Semaphore>,
    most: u32,
    /// One permit per WebSocket: three of four connections at the most, so that there is always room for a request.
    sockets: Arc<Semaphore>,
}

impl Connections {
    /// At most `most` connections at once.
    pub(super) fn new(router: Router, phase: watch::Receiver<Phase>, most: u32) -> Self {
        Connections {
            router,
            phase,
            room: Arc::new(Semaphore::new(most as usize)),
            most,
            sockets: Arc::new(Semaphore::new((most - most / 4) as usize)),
        }
    }

    /// Accepts until draining begins.
    pub(super) async fn accept(self, listener: Listener) {
        let mut phase = self.phase.clone();
        let mut told = false;
        loop {
            // Both arms are cancel-safe: a permit that was not taken and a connection that was not accepted stay.
            let accepted = tokio::select! {
                biased;
                _ = phase.wait_for(|phase| *phase != Phase::Serving) => break,
                accepted = self.next(&listener) => accepted,
            };
            match accepted {
                Ok((stream, permit)) => {
                    told = false;
                    tokio::spawn(self.clone().serve(stream, permit));
                }
                Err(error) if is_the_peers(&error) => {}
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, "cannot accept connections; trying again");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // Nobody else will serve what waits in the backlog of a socket of our own.
        while listener.is_own() {
            let Some(Ok((stream, permit))) = now_or_never(self.next(&listener)).await else {
                break;
            };
            tokio::spawn(self.clone().serve(stream, permit));
        }
    }

    async fn next(
        &self,
        listener: &Listener,
    ) -> io::Result<(Box<dyn Stream>, OwnedSemaphorePermit)> {
        let permit = self
            .room
            .clone()
            .acquire_owned()
            .await
            .map_err(io::Error::other)?;
        Ok((listener.accept().await?, permit))
    }

    /// Connections open now.
    pub(super) fn open(&self) -> u32 {
        self.most
            .saturating_sub(self.room.available_permits() as u32)
    }

    /// Waits until the last connection has ended. Call once accepting has ended.
    pub(super) async fn ended(&self) {
        // The semaphore is never closed.
        let _ = self.room.acquire_many(self.most).await;
    }

    async fn serve(self, stream: Box<dyn Stream>, permit: OwnedSemaphorePermit) {
        // Goes with the connection, or with the WebSocket that it becomes.
        let place = Place::new(permit, self.sockets);
        let mut phase = self.phase.clone();
        let (router, answering) = (self.router, self.phase);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(place.clone());
            let answer = unpanicked(router.clone().call(request));
            let phase = answering.clone();
            async move {
                let mut response = answer.await;
                let stays = response.status() == StatusCode::SWITCHING_PROTOCOLS;
                if *phase.borrow() != Phase::Serving && !stays {
                    response
                        .headers_mut()
                        .insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, std::convert::Infallible>(response)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        tokio::select! {
            // A connection's end, good or bad, is the client's affair.
            _ = connection.as_mut() => return,
            _ = phase.wait_for(|phase| *phase == Phase::Closing) => {}
        }
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}

/// Errors that concern the one connection that was to be accepted.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted
    )
}

/// One poll.
async fn now_or_never<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// A handler that panics answers 500; its connection, and everybody else's, goes on.
async fn unpanicked<F>(answer: F) -> Response<Body>
where
    F: Future<Output = Result<Response<Body>, std::convert::Infallible>>,
{
    let mut answer = pin!(answer);
    let polled = std::future::poll_fn(|cx| {
        match catch_unwind(AssertUnwindSafe(|| answer.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Some),
            // The panic hook has logged it. The future is not polled again.
            Err(_) => Poll::Ready(None),
        }
    })
    .await;
    match polled {
        Some(Ok(response)) => response,
        None => super::error_answer(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal_error",
            "internal error",
        ),
    }
}
