//! The supervisor's HTTP API on a Unix socket, which every other command uses.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status[?tenant=NAME]` | the [`Snapshot`](crate::status::Snapshot) |
//! | `GET /v1/status?watch=1` | a snapshot a line, the latest first, then one after each change, and one a second while a tenant has an age |
//! | `GET /v1/logs[?tenant=NAME][&n=N][&level=L][&follow=1][&format=json]` | lines; `tenant` may come more than once |
//! | `POST /v1/orders` `{"selection":…,"order":…}` | one [`Outcome`](crate::fleet::handle::Outcome) a tenant, when all is settled |
//! | `POST /v1/reload` `{"confirm_removals":false}` | a [`ReloadReport`](crate::fleet::handle::ReloadReport), when all is settled |
//! | `GET /v1/pak/NAME` | the admin PAK of the tenant's first start, as text |
//! | `GET /metrics` | Prometheus's text format |
//!
//! An error is `{"error":"…"}`. A connection serves one request. Connections, streams, bodies and the wait for a slow
//! reader are limited, so that no client costs more than its own answer.

mod api_error;
mod logs;
mod metrics;
mod pak;
mod peer_credentials;
mod routes;
mod socket;
mod stream;
#[cfg(test)]
mod tests;
mod write_timeout;

pub(crate) use routes::{OrderRequest, ReloadRequest};
pub(crate) use socket::{GROUP, NAME as SOCKET};

use crate::config::SupervisorConfig;
use crate::fleet::handle::Handle;
use crate::instance::cgroup::CgroupTree;
use crate::logs::Hub;
use api_error::ApiError;
use axum::Router;
use axum::http::StatusCode;
use brokkr_tenant::Listen;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::unistd::Gid;
use peer_credentials::{Peer, Permitted};
use socket::{BoundSocket, Socket};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use write_timeout::{WriteTimeout, WriteTimeoutSwitch};

/// The number of connections served at once; others wait in the backlog.
const CONNECTIONS: usize = 64;
/// The number of these connections that may be endless streams; others get 503.
const STREAMS: usize = 32;
/// The longest wait for a request's head.
const HEAD: Duration = Duration::from_secs(10);
/// The time between two checks that the control socket still exists.
const LOOK: Duration = Duration::from_secs(3);
/// The pause after an error of `accept` (descriptors run short), which prevents a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The running servers of the control socket and, where set, of `[metrics] listen`. Dropping it closes both and every
/// connection, and removes the socket's file.
#[derive(Debug)]
pub(crate) struct ControlServer {
    notice: Option<String>,
    /// Dropping a `JoinSet` ends its tasks.
    _servers: JoinSet<()>,
}

/// The fleet to ask, and the cgroups of its instances, which may not ask.
#[derive(Debug, Clone)]
pub(crate) struct ControlAccess {
    pub(crate) fleet: Handle,
    pub(crate) groups: CgroupTree,
}

impl ControlServer {
    /// Binds the sockets and starts serving. The caller holds the lock of the runtime folder.
    ///
    /// # Errors
    /// When a socket cannot be bound; the text names it.
    pub(crate) async fn start(
        config: &SupervisorConfig,
        access: ControlAccess,
        logs: Hub,
    ) -> io::Result<Self> {
        let socket = Socket::bind(&config.runtime_dir)?;
        let notice = socket.warning().map(str::to_owned);
        if let Some(notice) = &notice {
            tracing::warn!("{notice}");
        }
        let permitted = Permitted::new(socket.group(), access.clone());
        let app = App::new(Context {
            fleet: access.fleet,
            logs,
            state_dir: config.state_dir.clone(),
        });
        let mut servers = JoinSet::new();
        if let Some(listen) = &config.metrics_listen {
            let listener = match listen {
                Listen::Tcp(address) => TcpListener::bind(address).await,
                Listen::Unix(_) => Err(io::Error::other("it takes IP:PORT only")),
            };
            let listener = listener.map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("cannot bind metrics.listen {listen}: {error}"),
                )
            })?;
            servers.spawn(serve_metrics(listener, routes::metrics_only(app.clone())));
        }
        let (listener, file) = socket.into_tokio()?;
        let dir = config.runtime_dir.clone();
        servers.spawn(serve_control(
            dir,
            listener,
            file,
            permitted,
            routes::control(app),
        ));
        Ok(Self {
            notice,
            _servers: servers,
        })
    }

    /// Returns a warning about the control socket for the operator.
    pub(crate) fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }
}

/// Reads any bytes as a query, a line feed and a body, and panics when an accepted order does not read back equal. For
/// fuzzing.
pub(crate) fn check_parsing(data: &[u8]) {
    let at = data.iter().position(|byte| *byte == b'\n');
    let (query, body) = data.split_at(at.unwrap_or(data.len()));
    logs::check_parsing(&String::from_utf8_lossy(query));
    routes::check_parsing(body.get(1..).unwrap_or_default());
}

/// The sources of all answers.
#[derive(Debug, Clone)]
struct Context {
    fleet: Handle,
    logs: Hub,
    state_dir: PathBuf,
}

/// The state of the router: the context and the limit of streams.
#[derive(Debug, Clone)]
struct App {
    context: Context,
    streams: Arc<Semaphore>,
}

impl App {
    fn new(context: Context) -> Self {
        Self {
            context,
            streams: Arc::new(Semaphore::new(STREAMS)),
        }
    }

    /// Takes a slot for a streaming answer.
    fn stream(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let slot = Arc::clone(&self.streams).try_acquire_owned();
        slot.map_err(|_| {
            let error = format!("{STREAMS} streams are open already");
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error)
        })
    }
}

/// Serves the control socket until the task is dropped, and holds `file`, which removes the socket's file on drop.
///
/// Binds the socket anew if its file disappears, because otherwise every command would report that no supervisor runs.
async fn serve_control(
    dir: PathBuf,
    mut listener: UnixListener,
    mut file: BoundSocket,
    mut permitted: Permitted,
    router: Router,
) {
    let mut connections = Connections::new();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while let Some(permit) = connections.permit().await {
        // Both arms are cancel-safe: a connection that is not accepted now waits in the backlog.
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = look.tick() => {
                if !file.is_there()
                    && let Ok((bound, group)) = bind_anew(&dir)
                {
                    tracing::warn!("the control socket had gone, and is there again");
                    (listener, file) = bound;
                    permitted = permitted.with_group(group);
                }
                continue;
            }
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                pause("the control socket", &error).await;
                continue;
            }
        };
        let (router, permitted) = (router.clone(), permitted.clone());
        connections.tasks.spawn(async move {
            let _permit = permit;
            match Peer::of(&stream, &permitted).await {
                Ok(peer) => {
                    let patience = peer.patience();
                    answer(stream, patience, router.layer(axum::Extension(peer))).await;
                }
                Err(refusal) => {
                    tracing::warn!("refused a connection to the control socket: {refusal}");
                    answer(
                        stream,
                        WriteTimeoutSwitch::default(),
                        routes::refused(refusal),
                    )
                    .await;
                }
            }
        });
    }
}

fn bind_anew(dir: &Path) -> io::Result<((UnixListener, BoundSocket), Option<Gid>)> {
    let socket = Socket::bind(dir)?;
    let group = socket.group();
    Ok((socket.into_tokio()?, group))
}

async fn serve_metrics(listener: TcpListener, router: Router) {
    let mut connections = Connections::new();
    while let Some(permit) = connections.permit().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                pause("the metrics address", &error).await;
                continue;
            }
        };
        let router = router.clone();
        connections.tasks.spawn(async move {
            let _permit = permit;
            answer(stream, WriteTimeoutSwitch::default(), router).await;
        });
    }
}

/// The connections being served, limited in number.
struct Connections {
    permits: Arc<Semaphore>,
    tasks: JoinSet<()>,
}

impl Connections {
    fn new() -> Self {
        Self {
            permits: Arc::new(Semaphore::new(CONNECTIONS)),
            tasks: JoinSet::new(),
        }
    }

    /// Waits for a free place. Never returns `None`, because the semaphore is never closed.
    async fn permit(&mut self) -> Option<OwnedSemaphorePermit> {
        while self.tasks.try_join_next().is_some() {}
        Arc::clone(&self.permits).acquire_owned().await.ok()
    }
}

async fn pause(what: &str, error: &io::Error) {
    tracing::warn!("cannot accept on {what}: {error}");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

async fn answer<S>(stream: S, patience: WriteTimeoutSwitch, router: Router)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .keep_alive(false)
        .serve_connection(
            TokioIo::new(WriteTimeout::new(stream, patience)),
            TowerToHyperService::new(router),
        );
    // Ignores errors, because they come from a client that has closed the connection.
    let _ = connection.await;
}
