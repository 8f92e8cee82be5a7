//! The embedded PostgreSQL: a private server for a demo or a single box.
//!
//! It listens on a Unix socket only, in a folder no other user can enter, and lets in by the user the kernel
//! says is calling (peer), so there is no password to keep. Tenants log in as `brokkr`, which owns the
//! database `brokkr` and is no superuser.
//!
//! One task keeps it: it adopts the server an earlier supervisor left or starts one, as often as it takes, and
//! waits for its end or for the order to stop. The fleet does not wait for that: to brokers and tenants it is a server like
//! any other, which may be away. Only the very first start, which makes the data folder, is waited for. Processes
//! are started and ended in `instance/postgres.rs`; its log lines are the supervisor's own, with target
//! `postgres`.

mod data;
mod folder;
mod keeper;
mod log;
mod programs;
#[cfg(test)]
mod tests;
mod unfinished;

use crate::config::Supervisor;
use crate::handover::Estate;
use crate::handover::names::{EMBEDDED, Kind, Name};
use crate::instance::postgres::{Launch, Left, Server};
use brokkr_tenant::DatabaseUrl;
use keeper::Keeper;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// From SIGINT to SIGQUIT.
const STOP_GRACE: Duration = Duration::from_secs(60);

/// The role tenants log in with, and the database it owns.
const NAME: &str = "brokkr";
const SUPERUSER: &str = "postgres";

/// What is said of one that is left and not wanted.
const UNASKED: &str = "an embedded PostgreSQL runs that [postgres] no longer asks for: it is stopped with this supervisor";

/// A running embedded server.
#[derive(Debug)]
pub struct Embedded {
    /// For tenants without a URL of their own; `None` of a server that is not for them.
    url: Option<DatabaseUrl>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    now: watch::Receiver<Now>,
}

/// How it is with the server at the moment.
#[derive(Debug, Default)]
struct Now {
    /// What is to be passed on of it, when it runs.
    left: Option<Left>,
    /// Why it is not there for its tenants, when that is more than a moment.
    problem: Option<String>,
}

/// For the fleet: the server's problem, and word of every change.
#[derive(Debug)]
pub(crate) struct Remark(watch::Receiver<Now>);

impl Remark {
    /// Waits until something has changed; for ever when nothing can any more. Cancel-safe.
    pub(crate) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What the operator should know.
    pub(crate) fn problem(&self) -> Option<String> {
        self.0.borrow().problem.clone()
    }
}

/// The URL of the embedded server, as tenants without a URL of their own use it, whether it runs or not.
///
/// # Errors
/// When the path of its socket would be too long anywhere.
pub fn url(config: &Supervisor) -> Result<DatabaseUrl, String> {
    url_as(&folder::socket_folder(&config.runtime_dir)?, NAME)
}

/// Whether a server runs on the data folder.
pub fn runs(config: &Supervisor) -> bool {
    folder::socket_folder(&config.runtime_dir).is_ok_and(|folder| {
        std::os::unix::net::UnixStream::connect(folder.join(folder::SOCKET)).is_ok()
    })
}

/// Ends a server that was left, if one runs; whether one did. For when nobody is going to keep it, and no broker is left.
///
/// # Errors
/// When it cannot be told.
pub(crate) async fn end(config: &Supervisor) -> Result<bool, String> {
    let data = &config.postgres.data_dir;
    let left = Server::adopt(data, None).map_err(|error| format!("{}: {error}", data.display()))?;
    let Some(server) = left else {
        return Ok(false);
    };
    hear_out(&server);
    server.stop(STOP_GRACE).await;
    Ok(true)
}

/// Reads what one says that goes: with a full pipe it could not even say goodbye, and would be ended by force.
fn hear_out(server: &Server) {
    if let Err(problem) = log::follow(server, Arc::default()) {
        tracing::error!(target: "postgres", pid = server.pid(), "{problem}; it stands still once its pipe is full: restart the supervisor");
    }
}

impl Embedded {
    /// Starts the server, or adopts the one that runs, sooner or later: what is in the way is said in the log and by
    /// [`Embedded::remark`], and tried again. `left` is what an earlier supervisor left of it.
    ///
    /// On a host without a data folder and without brokers nothing can be lost yet: then the folder is made and the server
    /// waited for.
    ///
    /// # Errors
    /// What is missing or in the way of that first start, with what to do about it.
    pub(crate) async fn start(
        config: &Arc<Supervisor>,
        mut left: BTreeMap<Kind, OwnedFd>,
        brokers: bool,
    ) -> Result<Self, String> {
        let (sender, now) = watch::channel(Now::default());
        let mut keeper = Keeper::new(config.clone(), left.remove(&Kind::Log), sender)?;
        let first = if brokers || data::is_made(&config.postgres.data_dir) {
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

    /// What the fleet shows of it.
    pub(crate) fn remark(&self) -> Remark {
        Remark(self.now.clone())
    }

    /// Tells what is to be passed on of the server that runs now, whenever it is asked.
    pub(crate) fn watch(&self) -> impl Fn() -> Vec<(Name, Arc<OwnedFd>)> + Send + use<> {
        let now = self.now.clone();
        move || {
            let now = now.borrow();
            let Some(left) = &now.left else {
                return Vec::new();
            };
            let log = left.log.clone().map(|log| (Kind::Log, log));
            [Some((Kind::Death, left.pidfd.clone())), log]
                .into_iter()
                .flatten()
                .map(|(kind, fd)| (Name::new(EMBEDDED, kind), fd))
                .collect()
        }
    }

    /// Leaves the server as it is, for another supervisor to keep.
    pub(crate) fn leave(self, estate: &mut Estate) {
        self.task.abort();
        let left = self.watch()();
        // Of one that was seen off and has gone there is nothing to look for.
        estate.index.embedded = self.url.is_some() || !left.is_empty();
        estate.descriptors.extend(left);
    }

    /// Takes over a server that an earlier supervisor ran and this one's configuration does not ask for: tenants may be on
    /// their way to another one. It is not started again, and is stopped with this supervisor. `None` when none runs.
    pub(crate) fn see_off(
        config: &Supervisor,
        mut left: BTreeMap<Kind, OwnedFd>,
    ) -> Result<Option<Self>, String> {
        let data = &config.postgres.data_dir;
        let server = Server::adopt(data, left.remove(&Kind::Log))
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
            // Both arms are cancel-safe: a server that has ended stays so, and the order stays given.
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

    /// For tenants without a URL of their own, if this server is for them.
    pub fn url(&self) -> Option<&DatabaseUrl> {
        self.url.as_ref()
    }

    /// Stops the server; for when no broker is left. Takes up to a minute when it will not go.
    pub async fn stop(self) {
        // An error means that the task has ended, and with it the server.
        let _ = self.stop.send(());
        if let Err(error) = self.task.await {
            tracing::error!(target: "postgres", "keeping the server failed: {error}");
        }
    }
}

/// Everything that is needed before a start, the data folder too. Blocks.
fn prepare(config: &Supervisor) -> Result<Launch, String> {
    let programs = programs::find(config.postgres.bin_dir.as_deref())?;
    let user = folder::server_user()?;
    let sockets = folder::socket_folder(&config.runtime_dir)?;
    let data = config.postgres.data_dir.clone();
    folder::reachable(&data, user)?;
    folder::reachable(&sockets, user)?;
    folder::own(&sockets, user)?;
    data::prepare(&programs, &data, user)?;
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
        ("unix_socket_permissions", "0777".to_owned()), // the folder is closed, and peer asks who it is
        ("logging_collector", "off".to_owned()),
        ("log_destination", "stderr".to_owned()),
        // Time and process are on our lines already; the SQLSTATE is for our reader.
        ("log_line_prefix", log::PREFIX.to_owned()),
        // What a tenant wrote is its own: a violated constraint is named in our log, the row and the statement are not.
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
    Ok(Launch {
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
