//! Connections: accepting, serving, draining.
//!
//! hyper's own graceful shutdown closes an idle keep-alive connection at once, and a client that is just about to send
//! its next request on it loses that request. So draining has two phases ([`Phase`]): first every answer carries
//! `Connection: close`, and idle connections stay open for one more request; only at the end of the grace is what is
//! still idle closed.
//!
//! How long a peer may take for each thing is in `wire`. While every connection there may be is open, those that ask
//! nothing are closed for the sake of those that wait in the backlog.

use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tower_service::Service;

use super::listener::{Listener, Stream};
use super::turn::Turn;
use super::wire::Wire;
use crate::live::Place;
use crate::metrics::Metrics;

/// Largest head of a request, path and query included. A PAK and a few headers of a proxy are a few hundred bytes.
const MAX_HEAD: usize = 32 * 1024;

/// While others wait for a connection, one that was idle for this long is closed; they are looked for as often.
const IDLE_WHEN_FULL: Duration = Duration::from_secs(5);
const LOOK_FOR_IDLE: Duration = Duration::from_secs(1);

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
    /// Rung while there is no room.
    full: Arc<Notify>,
    metrics: Arc<Metrics>,
    /// One permit per WebSocket: three of four connections at the most, so that there is always room for a request.
    sockets: Arc<Semaphore>,
}

impl Connections {
    /// At most `most` connections at once.
    pub(super) fn new(
        router: Router,
        metrics: Arc<Metrics>,
        phase: watch::Receiver<Phase>,
        most: u32,
    ) -> Self {
        Connections {
            router,
            phase,
            room: Arc::new(Semaphore::new(most as usize)),
            most,
            full: Arc::default(),
            metrics,
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
        let permit = self.make_room().await?;
        Ok((listener.accept().await?, permit))
    }

    /// Room for one more. Cancel-safe: a permit that was not taken stays.
    async fn make_room(&self) -> io::Result<OwnedSemaphorePermit> {
        loop {
            let acquire = self.room.clone().acquire_owned();
            match tokio::time::timeout(LOOK_FOR_IDLE, acquire).await {
                Ok(permit) => return permit.map_err(io::Error::other),
                Err(_) => self.full.notify_waiters(),
            }
        }
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

    async fn serve<S: Stream + 'static>(self, stream: S, permit: OwnedSemaphorePermit) {
        // Goes with the connection, or with the WebSocket that it becomes.
        let place = Place::new(permit, self.sockets);
        let mut phase = self.phase.clone();
        let turn = Turn::new(self.phase, self.metrics);
        let (router, asked) = (self.router, turn.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(place.clone());
            let answer = unpanicked(router.clone().call(asked.begin(request)));
            let turn = asked.clone();
            async move { Ok::<_, std::convert::Infallible>(turn.answer(answer.await)) }
        });
        let connection = http1::Builder::new()
            // `Wire` has a finer one.
            .header_read_timeout(None)
            .max_header_size(MAX_HEAD)
            .serve_connection(TokioIo::new(Wire::new(stream, turn.clone())), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        tokio::select! {
            // A connection's end, good or bad, is the client's affair.
            _ = connection.as_mut() => return,
            _ = phase.wait_for(|phase| *phase == Phase::Closing) => {}
            () = in_the_way(&self.full, &turn) => {}
        }
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}

/// Waits until the connection is idle while others wait for one.
async fn in_the_way(full: &Notify, turn: &Turn) {
    loop {
        full.notified().await;
        if turn.idle().is_some_and(|idle| idle >= IDLE_WHEN_FULL) {
            return;
        }
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
