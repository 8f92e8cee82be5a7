//! The supervisor's HTTP API, on a Unix socket: how every other command talks to it.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status[?tenant=NAME]` | the [`Snapshot`](crate::status::Snapshot) |
//! | `GET /v1/status?watch=1` | a snapshot a line, the latest first, then one after each change |
//! | `GET /v1/logs[?tenant=NAME][&n=N][&level=L][&follow=1][&format=json]` | lines; `tenant` may come more than once |
//! | `POST /v1/orders` `{"selection":…,"order":…}` | one [`Outcome`](crate::fleet::handle::Outcome) a tenant, when all is settled |
//! | `POST /v1/reload` `{"confirm_removals":false}` | a [`ReloadReport`](crate::fleet::handle::ReloadReport), when all is settled |
//! | `GET /v1/pak/NAME` | the admin PAK of the tenant's first start, as text |
//! | `GET /metrics` | Prometheus's text format |
//!
//! An error is `{"error":"…"}`. A connection serves one request. Connections, streams, bodies and the patience with
//! somebody who does not read are bounded, so
//! no client costs more than its own answer.

mod logs;
mod metrics;
mod pak;
mod peer;
mod routes;
mod socket;
mod stall;
mod stream;
#[cfg(test)]
mod tests;

pub use routes::{Orders, Reload};
pub use socket::Socket;

use crate::fleet::handle::Handle;
use crate::logs::Hub;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use peer::{Peer, Permitted};
use stall::Stall;
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

/// Connections served at once; others wait in the backlog.
const CONNECTIONS: usize = 64;
/// Of these, streams that go on for as long as the client likes; others are answered 503.
const STREAMS: usize = 32;
/// A request's head must be here by then.
const HEAD: Duration = Duration::from_secs(10);
/// After an error of `accept` (descriptors are short), so that trying again does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What requests are answered from.
#[derive(Debug, Clone)]
pub struct Context {
    /// The fleet.
    pub fleet: Handle,
    /// The merged log.
    pub logs: Hub,
    /// `state_dir`: where the admin PAKs are.
    pub state_dir: PathBuf,
}

/// State of the router: the context and what bounds streams.
#[derive(Debug, Clone)]
struct App {
    context: Context,
    streams: Arc<Semaphore>,
}

impl App {
    fn new(context: Context) -> Self {
        Self { context, streams: Arc::new(Semaphore::new(STREAMS)) }
    }
}

/// Serves the control socket until the future is dropped; then the socket's file is removed and every connection closed.
///
/// # Errors
/// When the runtime does not take the socket.
pub async fn serve(socket: Socket, context: Context) -> io::Result<()> {
    let permitted = Permitted::new(socket.group());
    // Held to the end, for the file goes with it.
    let (listener, _file) = socket.into_tokio()?;
    let router = routes::control(App::new(context));
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return Ok(()) };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                pause("the control socket", &error).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let (router, permitted) = (router.clone(), permitted.clone());
        connections.spawn(async move {
            let _permit = permit;
            match Peer::of(&stream, &permitted).await {
                Ok(peer) => {
                    let patience = peer.patience();
                    answer(stream, patience, router.layer(axum::Extension(peer))).await;
                }
                Err(refusal) => {
                    tracing::warn!("refused a connection to the control socket: {refusal}");
                    answer(stream, stall::Patience::default(), routes::refused(refusal)).await;
                }
            }
        });
    }
}

/// Serves `/metrics` alone on TCP, `[metrics] listen`, until the future is dropped.
///
/// # Errors
/// When the runtime does not take the listener.
pub async fn serve_metrics(listener: TcpListener, context: Context) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let router = routes::metrics_only(App::new(context));
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return Ok(()) };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                pause("the metrics address", &error).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let router = router.clone();
        connections.spawn(async move {
            let _permit = permit;
            answer(stream, stall::Patience::default(), router).await;
        });
    }
}

async fn pause(what: &str, error: &io::Error) {
    tracing::warn!("cannot accept on {what}: {error}");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

async fn answer<S>(stream: S, patience: stall::Patience, router: Router)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(Stall::new(stream, patience)), TowerToHyperService::new(router));
    // A client that went away in the midst of its answer is its own affair.
    let _ = connection.await;
}
