//! Connections of clients: accepting, serving, draining.
//!
//! hyper's own graceful shutdown closes an idle keep-alive connection at once, so a client that is just sending its
//! next request loses that request. So draining has two phases ([`Phase`]). First every answer carries
//! `Connection: close`, and idle connections stay open for one more request. Only at the end of the grace are idle
//! connections closed.
//!
//! The time limits of a peer are in `timeout_stream`. While all connections are in use, idle ones are closed to make
//! room for connections that wait in the backlog.

use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tower_service::Service;

use super::connection_state::{ConnectionState, Phase};
use super::listener::{AcceptedStream, Listener};
use super::timeout_stream::TimeoutStream;
use crate::auth::ClientAddress;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::tls::Tls;
use crate::websocket::connection_permit::PeerConnection;

/// The largest head of a request, path and query included. A PAK and a proxy's headers take a few hundred bytes.
const MAX_HEAD: usize = 32 * 1024;

/// The time after which an idle connection is closed while others wait.
const IDLE_WHEN_FULL: Duration = Duration::from_secs(5);
const LOOK_FOR_IDLE: Duration = Duration::from_secs(1);

/// The time that a peer has for its TLS handshake, from its connection on.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The pause before accepting again after descriptors or memory ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// All connections of one listener.
#[derive(Clone)]
pub(super) struct Connections {
    router: Router,
    phase: watch::Receiver<Phase>,
    /// One permit per connection. Without a free permit, new connections wait in the backlog.
    room: Arc<Semaphore>,
    most: u32,
    /// The number of open connections. The permits do not tell it, because waiting tasks hold permits too.
    open: Arc<AtomicU32>,
    /// The signal to idle connections, sent every second while no permit is free.
    full: Arc<Notify>,
    metrics: Arc<Metrics>,
    tls: Option<Tls>,
    /// One permit per WebSocket: at most three of four connections, so that there is always room for a request.
    sockets: Arc<Semaphore>,
}

impl Connections {
    /// Returns a listener's connections, at most `most` at once.
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
            open: Arc::default(),
            full: Arc::default(),
            metrics,
            tls: None,
            sockets: Arc::new(Semaphore::new((most - most / 4) as usize)),
        }
    }

    /// Serves these connections over TLS, if there is a certificate.
    pub(super) fn with_tls(mut self, tls: Option<Tls>) -> Self {
        self.tls = tls;
        self
    }

    /// Accepts until draining begins.
    pub(super) async fn accept(self, listener: Listener) {
        let mut phase = self.phase.clone();
        let mut told = false;
        loop {
            // Both arms are cancel-safe: an untaken permit and an unaccepted connection stay.
            let accepted = tokio::select! {
                biased;
                _ = phase.wait_for(|phase| *phase != Phase::Serving) => break,
                accepted = self.next(&listener) => accepted,
            };
            match accepted {
                Ok((stream, client, permit)) => {
                    told = false;
                    tokio::spawn(self.clone().serve(stream, client, permit));
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
        // Serve the backlog of a socket of our own, because no other process will.
        while listener.is_own() {
            let Some(Ok((stream, client, permit))) = now_or_never(self.next(&listener)).await
            else {
                break;
            };
            tokio::spawn(self.clone().serve(stream, client, permit));
        }
    }

    async fn next(
        &self,
        listener: &Listener,
    ) -> io::Result<(Box<dyn AcceptedStream>, ClientAddress, OwnedSemaphorePermit)> {
        let permit = self.make_room().await?;
        let (stream, peer) = listener.accept().await?;
        Ok((stream, ClientAddress::of(peer), permit))
    }

    /// Waits for a free connection permit. Cancel-safe, because an untaken permit stays.
    async fn make_room(&self) -> io::Result<OwnedSemaphorePermit> {
        loop {
            let acquire = self.room.clone().acquire_owned();
            match tokio::time::timeout(LOOK_FOR_IDLE, acquire).await {
                Ok(permit) => return permit.map_err(io::Error::other),
                Err(_) => self.full.notify_waiters(),
            }
        }
    }

    /// Returns the number of open connections.
    pub(super) fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    /// Waits until the last connection has ended. Call this once accepting has ended.
    pub(super) async fn ended(&self) {
        // The semaphore is never closed.
        let _ = self.room.acquire_many(self.most).await;
    }

    async fn serve<S: AcceptedStream + 'static>(
        self,
        stream: S,
        client: ClientAddress,
        permit: OwnedSemaphorePermit,
    ) {
        // The place lives as long as the connection, or the WebSocket that it becomes.
        let place = PeerConnection::new(permit, self.open.clone(), self.sockets.clone(), client);
        let Some(tls) = &self.tls else {
            return self.serve_http(stream, place).await;
        };
        let mut phase = self.phase.clone();
        let handshake = tls.acceptor().accept(stream);
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(HANDSHAKE, handshake) => shaken,
            _ = phase.wait_for(|phase| *phase == Phase::Closing) => return,
        };
        match shaken {
            Ok(Ok(stream)) => Box::pin(self.serve_http(stream, place)).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    async fn serve_http<S: AcceptedStream + 'static>(self, stream: S, place: PeerConnection) {
        let mut phase = self.phase.clone();
        let turn = ConnectionState::new(self.phase, self.metrics);
        let (router, asked) = (self.router, turn.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(place.clone());
            let answer = unpanicked(router.clone().call(asked.begin(request)));
            let turn = asked.clone();
            async move { Ok::<_, std::convert::Infallible>(turn.answer(answer.await)) }
        });
        let connection = http1::Builder::new()
            // `TimeoutStream` has finer limits.
            .header_read_timeout(None)
            .max_header_size(MAX_HEAD)
            .serve_connection(
                TokioIo::new(TimeoutStream::new(stream, turn.clone())),
                service,
            )
            .with_upgrades();
        let mut connection = pin!(connection);
        tokio::select! {
            // Ignore errors of the connection because they concern only the client.
            _ = connection.as_mut() => return,
            _ = phase.wait_for(|phase| *phase == Phase::Closing) => {}
            () = in_the_way(&self.full, &turn) => {}
        }
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}

/// Waits until the connection is idle while other connections wait.
async fn in_the_way(full: &Notify, turn: &ConnectionState) {
    loop {
        full.notified().await;
        if turn.idle().is_some_and(|idle| idle >= IDLE_WHEN_FULL) {
            return;
        }
    }
}

/// Returns true for errors that concern only the connection being accepted.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted
    )
}

/// Polls the future once.
async fn now_or_never<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Answers 500 when the handler panics, so that all connections go on.
async fn unpanicked<F>(answer: F) -> Response<Body>
where
    F: Future<Output = Result<Response<Body>, std::convert::Infallible>>,
{
    let mut answer = pin!(answer);
    let polled = std::future::poll_fn(|cx| {
        match catch_unwind(AssertUnwindSafe(|| answer.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Some),
            // The panic hook has logged the panic. The future is not polled again.
            Err(_) => Poll::Ready(None),
        }
    })
    .await;
    match polled {
        Some(Ok(response)) => response,
        None => Error::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal_error",
            "internal error",
        )
        .into_response(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
