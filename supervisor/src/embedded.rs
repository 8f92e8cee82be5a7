//! The embedded PostgreSQL: a private server for a demo or a single machine.
//!
//! The server listens only on a Unix socket, in a folder that no other user can enter. It identifies users by the
//! kernel (peer), so there is no password. Tenants log in as `brokkr`, which owns the database `brokkr` and is no
//! superuser. Where tenants have user ids of their own, every user can enter the folder, and the tenants' role has a
//! [password].
//!
//! One task keeps the server: it adopts the server of an earlier supervisor or starts a new server, with retries, and
//! waits for its end or for the order to stop. The fleet does not wait for the server, because brokers and tenants
//! treat it like any other server, which may be away. Only the very first start, which makes the data folder, is waited
//! for. `instance/postgres.rs` starts and ends the processes. The server's log lines appear as the supervisor's own,
//! with target `postgres`.

mod data;
mod initdb;
mod log;
mod ownership;
mod password;
mod programs;
mod server_task;
#[cfg(test)]
mod tests;

use crate::config::SupervisorConfig;
use crate::handover::HandoverState;
use crate::handover::fd_names::{EMBEDDED, FdKind, FdName};
use crate::instance::postgres::{PostgresCommand, PostgresHandover, PostgresProcess};
use brokkr_tenant::DatabaseUrl;
use server_task::ServerTask;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// The time from SIGINT to SIGQUIT.
const STOP_GRACE: Duration = Duration::from_secs(60);

/// The role that tenants log in with, and the database it owns.
const NAME: &str = "brokkr";
const SUPERUSER: &str = "postgres";

/// The problem of a server that still runs but is no longer configured.
const UNASKED: &str = "an embedded PostgreSQL runs that [postgres] no longer asks for: it is stopped with this supervisor";

/// A running embedded server.
#[derive(Debug)]
pub struct Embedded {
    /// The URL for tenants without their own; `None` for a server that tenants must not use.
    url: Option<DatabaseUrl>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    now: watch::Receiver<Now>,
}

/// The present state of the server.
#[derive(Debug, Default)]
struct Now {
    /// The descriptors to hand over, while the server runs.
    left: Option<PostgresHandover>,
    /// The reason why tenants cannot use the server, if it lasts more than a moment.
    problem: Option<String>,
}

/// The fleet's view of the server: its problem, and a signal on every change.
#[derive(Debug)]
pub(crate) struct EmbeddedStatus(watch::Receiver<Now>);

impl EmbeddedStatus {
    /// Waits for the next change; waits for ever once the task has ended. Cancel-safe.
    pub(crate) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns the server's problem for the operator.
    pub(crate) fn problem(&self) -> Option<String> {
        self.0.borrow().problem.clone()
    }
}

/// Returns the URL for tenants without their own, also while the server does not run.
///
/// # Errors
/// When no folder gives a socket path short enough.
pub fn url(config: &SupervisorConfig) -> Result<DatabaseUrl, String> {
    let sockets = ownership::socket_folder(&config.runtime_dir)?;
    match password::read(config)? {
        Some(password) => url_as(&sockets, &format!("{NAME}:{password}")),
        None => url_as(&sockets, NAME),
    }
}

/// Returns true when a server accepts connections on the socket.
pub fn runs(config: &SupervisorConfig) -> bool {
    ownership::socket_folder(&config.runtime_dir).is_ok_and(|folder| {
        std::os::unix::net::UnixStream::connect(folder.join(ownership::SOCKET)).is_ok()
    })
}

/// Ends a server of an earlier supervisor, and returns true if one ran. For use when no supervisor will keep the server
/// and no broker is left.
///
/// # Errors
/// When the server's state cannot be determined.
pub(crate) async fn end(config: &SupervisorConfig) -> Result<bool, String> {
    let data = &config.postgres.data_dir;
    let left = PostgresProcess::adopt(data, None)
        .map_err(|error| format!("{}: {error}", data.display()))?;
    let Some(server) = left else {
        return Ok(false);
    };
    hear_out(&server);
    server.stop(STOP_GRACE).await;
    Ok(true)
}

/// Reads the log of a server that is ending, because a full pipe would block its shutdown until it is killed.
fn hear_out(server: &PostgresProcess) {
    if let Err(problem) = log::follow(server, Arc::default()) {
        tracing::error!(target: "postgres", pid = server.pid(), "{problem}; it stands still once its pipe is full: restart the supervisor");
    }
}

impl Embedded {
    /// Starts the server, or adopts the running server, with retries in the background. Problems appear in the log and
    /// in [`Embedded::remark`]. `left` holds the descriptors that an earlier supervisor handed over.
    ///
    /// On a host without data folder and brokers, makes the folder and waits for the server, because a failure loses
    /// nothing there.
    ///
    /// # Errors
    /// The problem of that first start, with a hint.
    pub(crate) async fn start(
        config: &Arc<SupervisorConfig>,
        mut left: BTreeMap<FdKind, OwnedFd>,
        brokers: bool,
    ) -> Result<Self, String> {
        password::make(config)?;
        let (sender, now) = watch::channel(Now::default());
        let mut keeper = ServerTask::new(config.clone(), left.remove(&FdKind::Log), sender)?;
        let first = if brokers || initdb::is_made(&config.postgres.data_dir) {
            None
        } else {
            Some(keeper.first().await?)
        };
        let (stop, stopped) = oneshot::channel();
        Ok(Self {
            url: Some(url(config)?),
            stop,
            task: tokio::spawn(keeper.keep(first, stopped)),
            now,
        })
    }

    /// Returns the fleet's view of the server.
    pub(crate) fn remark(&self) -> EmbeddedStatus {
        EmbeddedStatus(self.now.clone())
    }

    /// Returns a function that gives the descriptors to hand over at the time of the call.
    pub(crate) fn watch(&self) -> impl Fn() -> Vec<(FdName, Arc<OwnedFd>)> + Send + use<> {
        let now = self.now.clone();
        move || {
            let now = now.borrow();
            let Some(left) = &now.left else {
                return Vec::new();
            };
            let log = left.log.clone().map(|log| (FdKind::Log, log));
            [Some((FdKind::Death, left.pidfd.clone())), log]
                .into_iter()
                .flatten()
                .map(|(kind, fd)| (FdName::new(EMBEDDED, kind), fd))
                .collect()
        }
    }

    /// Leaves the server running for the next supervisor.
    pub(crate) fn leave(self, handover_state: &mut HandoverState) {
        self.task.abort();
        let left = self.watch()();
        // The next supervisor has no server to look for if the adopted server has ended.
        handover_state.index.embedded = self.url.is_some() || !left.is_empty();
        handover_state.descriptors.extend(left);
    }

    /// Adopts a running server that the configuration no longer asks for, because tenants may still be moving to
    /// another. The server is not restarted, and stops with this supervisor. Returns `None` when no server runs.
    pub(crate) fn see_off(
        config: &SupervisorConfig,
        mut left: BTreeMap<FdKind, OwnedFd>,
    ) -> Result<Option<Self>, String> {
        let data = &config.postgres.data_dir;
        let server = PostgresProcess::adopt(data, left.remove(&FdKind::Log))
            .map_err(|error| format!("{}: {error}", data.display()))?;
        let Some(mut server) = server else {
            return Ok(None);
        };
        tracing::warn!(target: "postgres", pid = server.pid(), "{UNASKED}");
        hear_out(&server);
        let (stop, stopped) = oneshot::channel();
        let (sender, now) = watch::channel(Now {
            left: Some(server.left().clone()),
            problem: Some(UNASKED.to_owned()),
        });
        let task = tokio::spawn(async move {
            // Both arms are cancel-safe, because the end of the server and the order to stop are both permanent.
            tokio::select! {
                _ = stopped => server.stop(STOP_GRACE).await,
                how = server.ended() => how,
            };
            sender.send_replace(Now::default());
        });
        Ok(Some(Self {
            url: None,
            stop,
            task,
            now,
        }))
    }

    /// Returns the URL for tenants without their own, unless tenants must not use this server.
    pub fn url(&self) -> Option<&DatabaseUrl> {
        self.url.as_ref()
    }

    /// Stops the server, which may take up to a minute. For use when no broker is left.
    pub async fn stop(self) {
        // An error means that the task has ended, and with it the server.
        let _ = self.stop.send(());
        if let Err(error) = self.task.await {
            tracing::error!(target: "postgres", "keeping the server failed: {error}");
        }
    }
}

/// Prepares a start, including the data folder. Blocks.
fn prepare(config: &SupervisorConfig) -> Result<PostgresCommand, String> {
    let programs = programs::find(config.postgres.bin_dir.as_deref())?;
    let data = config.postgres.data_dir.clone();
    let user = ownership::server_user(&data)?;
    let sockets = ownership::socket_folder(&config.runtime_dir)?;
    ownership::reachable(&data, user)?;
    ownership::reachable(&sockets, user)?;
    ownership::own(&sockets, user)?;
    let passwords = password::read(config)?.is_some();
    ownership::open(&sockets, passwords)?;
    data::prepare(&programs, &data, user, passwords)?;
    let arguments = [
        "-D".to_owned(),
        data.display().to_string(),
        "-k".to_owned(),
        sockets.display().to_string(),
        "-p".to_owned(),
        brokkr_tenant::DEFAULT_PORT.to_string(),
    ];
    let settings = [
        ("listen_addresses", String::new()),
        (
            "max_connections",
            config.postgres.max_connections.to_string(),
        ),
        ("unix_socket_permissions", "0777".to_owned()), // the folder is closed or the role has a password, and peer checks the user
        ("logging_collector", "off".to_owned()),
        ("log_destination", "stderr".to_owned()),
        // Our lines hold time and process already; the log reader needs the SQLSTATE.
        ("log_line_prefix", log::PREFIX.to_owned()),
        // Logs the name of a violated constraint but neither row nor statement, because their content belongs to the
        // tenant.
        ("log_error_verbosity", "terse".to_owned()),
        ("log_min_error_statement", "panic".to_owned()),
        ("cluster_name", NAME.to_owned()),
    ];
    let arguments = arguments
        .into_iter()
        .chain(
            settings
                .into_iter()
                .flat_map(|(key, value)| ["-c".to_owned(), format!("{key}={value}")]),
        )
        .collect();
    Ok(PostgresCommand {
        program: programs.postgres,
        arguments,
        user,
        folder: data,
    })
}

fn url_as(sockets: &Path, user: &str) -> Result<DatabaseUrl, String> {
    let folder = sockets
        .to_str()
        .ok_or_else(|| format!("{}: not UTF-8", sockets.display()))?;
    let folder = percent_encoding::utf8_percent_encode(folder, percent_encoding::NON_ALPHANUMERIC);
    DatabaseUrl::parse(&format!("postgres://{user}@/{NAME}?host={folder}"))
        .map_err(|error| format!("{}: {error}", sockets.display()))
}

fn connect(url: &DatabaseUrl) -> Result<postgres::Client, String> {
    let name = brokkr_pg::application_name(".supervisor");
    brokkr_pg::connect(url, &brokkr_pg::Options::new(name)).map_err(|error| error.to_string())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| Err(panic.to_string()))
}
