//! The embedded PostgreSQL: a private server for a demo or a single box.
//!
//! It listens on a Unix socket only, in a folder no other user can enter, and lets in by the user the kernel
//! says is calling (peer), so there is no password to keep. Tenants log in as `brokkr`, which owns the
//! database `brokkr` and is no superuser.
//!
//! One task keeps it: it waits for its end, which is a reason to start it again, or for the order to stop. A
//! server that an earlier supervisor left is adopted, data and brokers being none the wiser. Processes
//! are started and ended in `instance/postgres.rs`; its log lines are the supervisor's own, with target
//! `postgres`.

mod data;
mod folder;
mod log;
mod programs;
#[cfg(test)]
mod tests;

use crate::config::Supervisor;
use crate::handover::Estate;
use crate::handover::names::{EMBEDDED, Kind, Name};
use crate::instance::postgres::{Launch, Left, Server};
use brokkr_tenant::DatabaseUrl;
use log::LastLines;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// From SIGINT to SIGQUIT.
const STOP_GRACE: Duration = Duration::from_secs(60);
/// A server that recovers from a crash may take long; then brokers wait as for any other server.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks whether it accepts connections.
const READY_INTERVAL: Duration = Duration::from_millis(50);
/// Between the end of a server and the next, at first and at most.
const RESTART: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// The role tenants log in with, and the database it owns.
const NAME: &str = "brokkr";
const SUPERUSER: &str = "postgres";

/// A running embedded server.
#[derive(Debug)]
pub struct Embedded {
    url: DatabaseUrl,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    /// Of the server that runs now.
    left: watch::Receiver<Left>,
}

/// What it takes to start the server, and to start it again.
#[derive(Debug)]
struct Plan {
    launch: Launch,
    data: PathBuf,
    url: DatabaseUrl,
    admin: DatabaseUrl,
    last_lines: Arc<LastLines>,
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

/// Ends a server that was left, if one runs. For when nobody is going to keep it, and no broker is left.
///
/// # Errors
/// When it cannot be told.
pub(crate) async fn end(config: &Supervisor) -> Result<(), String> {
    let data = &config.postgres.data_dir;
    let left = Server::adopt(data, None).map_err(|error| format!("{}: {error}", data.display()))?;
    if let Some(server) = left {
        server.stop(STOP_GRACE).await;
    }
    Ok(())
}

impl Embedded {
    /// Starts the server, or adopts the one that runs, and waits until it accepts connections. The first
    /// time its data folder is made. `left` is what an earlier supervisor left of it.
    ///
    /// # Errors
    /// What is missing or in the way, with what to do about it.
    pub(crate) async fn start(
        config: &Supervisor,
        mut left: BTreeMap<Kind, OwnedFd>,
    ) -> Result<Self, String> {
        let plan = {
            let config = config.clone();
            blocking(move || prepare(&config)).await?
        };
        let mut server = match Server::adopt(&plan.data, left.remove(&Kind::Log)) {
            Ok(Some(server)) if plan.answers().await => {
                let log = match server.left().log {
                    Some(_) => "and its log read on",
                    None => "its log lines go nowhere until it is restarted",
                };
                tracing::info!(target: "postgres", pid = server.pid(), "the server an earlier supervisor left is kept, {log}");
                plan.read_log(&server)?;
                server
            }
            Ok(Some(server)) => {
                // It listens elsewhere (another runtime_dir), or is on its way out.
                tracing::info!(target: "postgres", pid = server.pid(), "the server an earlier supervisor left does not answer here: it is stopped first");
                server.stop(STOP_GRACE).await;
                plan.start().await?
            }
            Ok(None) => plan.start().await?,
            Err(error) => return Err(format!("{}: {error}", plan.data.display())),
        };
        plan.wait_ready(&mut server).await?;
        plan.furnish().await?;
        tracing::info!(target: "postgres", pid = server.pid(), "ready");
        let (stop, stopped) = oneshot::channel();
        let (now, left) = watch::channel(server.left().clone());
        let url = plan.url.clone();
        let task = tokio::spawn(keep(plan, server, stopped, now));
        Ok(Self {
            url,
            stop,
            task,
            left,
        })
    }

    /// Tells what is to be passed on of the server that runs now, whenever it is asked.
    pub(crate) fn watch(&self) -> impl Fn() -> Vec<(Name, Arc<OwnedFd>)> + Send + use<> {
        let left = self.left.clone();
        move || {
            let left = left.borrow();
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
        let left = self.watch();
        estate.index.embedded = true;
        estate.descriptors.extend(left());
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
        tracing::warn!(target: "postgres", pid = server.pid(), "{}", Self::UNASKED);
        let (stop, stopped) = oneshot::channel();
        let (_, left) = watch::channel(server.left().clone());
        let task = tokio::spawn(async move {
            // Both arms are cancel-safe: a server that has ended stays so, and the order stays given.
            tokio::select! {
                _ = stopped => server.stop(STOP_GRACE).await,
                how = server.ended() => how,
            };
        });
        Ok(Some(Self {
            url: url(config)?,
            stop,
            task,
            left,
        }))
    }

    /// What is said of such a server.
    pub(crate) const UNASKED: &str = "an embedded PostgreSQL runs that [postgres] no longer asks for: it is stopped with this supervisor";

    /// For tenants without a URL of their own.
    pub fn url(&self) -> &DatabaseUrl {
        &self.url
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

/// Starts the server again whenever it ends, until told to stop it.
async fn keep(
    plan: Plan,
    mut server: Server,
    mut stopped: oneshot::Receiver<()>,
    now: watch::Sender<Left>,
) {
    let mut wait = RESTART.0;
    loop {
        now.send_replace(server.left().clone());
        let began = std::time::Instant::now();
        // Both arms are cancel-safe: a server that has ended stays so, and the order stays given.
        tokio::select! {
            _ = &mut stopped => {
                let how = server.stop(STOP_GRACE).await;
                tracing::info!(target: "postgres", "stopped: {how}");
                return;
            }
            how = server.ended() => {
                tracing::error!(target: "postgres", "the embedded server {how}; it is started again");
            }
        }
        if began.elapsed() > RESTART.1 {
            wait = RESTART.0;
        }
        server = loop {
            tokio::select! {
                _ = &mut stopped => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(RESTART.1);
            match plan.start().await {
                Ok(server) => break server,
                Err(error) => tracing::error!(target: "postgres", "{error}"),
            }
        };
    }
}

impl Plan {
    async fn start(&self) -> Result<Server, String> {
        let server = self
            .launch
            .server()
            .map_err(|error| format!("cannot start {}: {error}", self.launch.program.display()))?;
        self.read_log(&server)?;
        Ok(server)
    }

    fn read_log(&self, server: &Server) -> Result<(), String> {
        let Some(pipe) = &server.left().log else {
            return Ok(());
        };
        pipe.try_clone()
            .and_then(|pipe| log::read(File::from(pipe), self.last_lines.clone()))
            .map_err(|error| format!("cannot read the server's log: {error}"))
    }

    /// Waits until it lets us in.
    async fn wait_ready(&self, server: &mut Server) -> Result<(), String> {
        let deadline = tokio::time::Instant::now() + START_PATIENCE;
        while !self.answers().await {
            if tokio::time::Instant::now() > deadline {
                return Err(format!(
                    "the embedded server does not accept connections after {} s: {}",
                    START_PATIENCE.as_secs(),
                    self.last_lines
                ));
            }
            tokio::select! {
                how = server.ended() => {
                    self.last_lines.complete().await;
                    return Err(format!("the embedded server {how}: {}", self.last_lines));
                }
                () = tokio::time::sleep(READY_INTERVAL) => {}
            }
        }
        Ok(())
    }

    async fn answers(&self) -> bool {
        let url = self.admin.clone();
        // Bounded from outside: a stopped server accepts and says nothing.
        let asked = tokio::time::timeout(
            Duration::from_secs(5),
            blocking(move || connect(&url).map(drop)),
        );
        matches!(asked.await, Ok(Ok(())))
    }

    /// The role and the database, unless they are there.
    async fn furnish(&self) -> Result<(), String> {
        let url = self.admin.clone();
        blocking(move || {
            let mut client = connect(&url)?;
            let furnish = |client: &mut postgres::Client| -> Result<(), postgres::Error> {
                if client
                    .query("SELECT FROM pg_roles WHERE rolname = $1", &[&NAME])?
                    .is_empty()
                {
                    client.batch_execute(&format!("CREATE ROLE {NAME} LOGIN"))?;
                }
                if client
                    .query("SELECT FROM pg_database WHERE datname = $1", &[&NAME])?
                    .is_empty()
                {
                    client.batch_execute(&format!("CREATE DATABASE {NAME} OWNER {NAME}"))?;
                }
                Ok(())
            };
            furnish(&mut client)
                .map_err(|error| format!("cannot make role and database {NAME}: {error}"))
        })
        .await
    }
}

/// Everything that is needed before the first start. Blocks.
fn prepare(config: &Supervisor) -> Result<Plan, String> {
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
    Ok(Plan {
        launch: Launch {
            program: programs.postgres,
            arguments,
            user,
            folder: data.clone(),
        },
        url: url_as(&sockets, NAME)?,
        admin: url_as(&sockets, SUPERUSER)?.with_dbname("postgres"),
        data,
        last_lines: Arc::new(LastLines::default()),
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
