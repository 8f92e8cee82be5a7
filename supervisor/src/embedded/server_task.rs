//! Adopts or starts the embedded server, and restarts it as often as needed, until told to stop it.

use super::log::{self, LastLines};
use super::{
    NAME, Now, STOP_GRACE, SUPERUSER, blocking, connect, data, end, ownership, password, prepare,
    url_as,
};
use crate::config::SupervisorConfig;
use crate::instance::postgres::{PostgresProcess, end_owned_children, remains};
use brokkr_tenant::{DEFAULT_PORT, DatabaseUrl};
use nix::sys::signal::Signal;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

/// First and largest interval between two checks that the server accepts connections.
const READY_INTERVAL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Time after which a server that accepts no connection is reported. The keeper waits on, because recovery from a crash
/// may take longer and a paused server may take any time.
const SLOW: Duration = Duration::from_secs(5);
/// Time limit of the very first start.
const FIRST_PATIENCE: Duration = Duration::from_secs(60);
/// First and largest delay between the end of a server and the next start.
const RESTART: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// Time limit for the processes of a killed server to end, and the interval between two checks.
const REMAINS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_millis(50));
/// Delays after which processes that still run after their server's end get each signal.
const ORPHANS: [(Duration, Signal); 2] = [
    (Duration::from_secs(1), Signal::SIGQUIT),
    (Duration::from_secs(3), Signal::SIGKILL),
];
/// Time limit for an answer from a server that seems to listen elsewhere.
const ANSWER: Duration = Duration::from_secs(5);

pub(super) struct ServerTask {
    config: Arc<SupervisorConfig>,
    sockets: PathBuf,
    admin: DatabaseUrl,
    /// Read end of the adopted server's standard error, until it is used.
    log: Option<OwnedFd>,
    last_lines: Arc<LastLines>,
    now: watch::Sender<Now>,
}

impl ServerTask {
    pub(super) fn new(
        config: Arc<SupervisorConfig>,
        log: Option<OwnedFd>,
        now: watch::Sender<Now>,
    ) -> Result<Self, String> {
        let sockets = ownership::socket_folder(&config.runtime_dir)?;
        Ok(Self {
            admin: url_as(&sockets, SUPERUSER)?.with_dbname("postgres"),
            config,
            sockets,
            log,
            last_lines: Arc::default(),
            now,
        })
    }

    /// Starts the server for the first time and waits until it is ready. On failure no server is left running.
    pub(super) async fn first(&mut self) -> Result<PostgresProcess, String> {
        let mut server = self.obtain().await?;
        let patience = tokio::time::sleep(FIRST_PATIENCE);
        let problem = tokio::select! {
            () = self.settle(server.pid(), server.reload()) => return Ok(server),
            how = server.ended() => return Err(self.ended(&how).await),
            () = patience => format!("the embedded server is not ready after {} s: {}", FIRST_PATIENCE.as_secs(), self.last_lines),
        };
        server.stop(STOP_GRACE).await;
        Err(problem)
    }

    /// Keeps a server running until told to stop it. `server` is the running server, if there is one.
    pub(super) async fn keep(
        mut self,
        mut server: Option<PostgresProcess>,
        mut stopped: oneshot::Receiver<()>,
    ) {
        let mut wait = RESTART.0;
        loop {
            let obtained = match server.take() {
                Some(server) => Ok(server),
                None => tokio::select! {
                    _ = &mut stopped => break,
                    obtained = self.obtain() => obtained,
                },
            };
            let began = Instant::now();
            let problem = match obtained {
                Ok(server) => match self.attend(server, &mut stopped).await {
                    Some(problem) => problem,
                    None => return,
                },
                Err(problem) => problem,
            };
            self.complain(&format!("{problem}; trying again"));
            if began.elapsed() > RESTART.1 {
                wait = RESTART.0;
            }
            tokio::select! {
                _ = &mut stopped => break,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(RESTART.1);
        }
        // A server that was stopping, or that could not be adopted, must not be left running.
        if let Err(error) = end(&self.config).await {
            tracing::error!(target: "postgres", "{error}");
        }
    }

    /// Watches a server. Returns the reason when the server ends, or `None` after an ordered stop.
    async fn attend(
        &self,
        mut server: PostgresProcess,
        stopped: &mut oneshot::Receiver<()>,
    ) -> Option<String> {
        let left = server.left().clone();
        self.now.send_modify(|now| now.left = Some(left));
        let ended = {
            let mut settle = pin!(self.settle(server.pid(), server.reload()));
            let mut settled = false;
            loop {
                // Each branch can be polled again: an ended server stays ended, the order stays, and `settle` outlives
                // the loop.
                tokio::select! {
                    _ = &mut *stopped => break None,
                    how = server.ended() => break Some(how),
                    () = &mut settle, if !settled => settled = true,
                }
            }
        };
        let Some(how) = ended else {
            let how = server.stop(STOP_GRACE).await;
            tracing::info!(target: "postgres", "stopped: {how}");
            return None;
        };
        self.now.send_modify(|now| now.left = None);
        Some(self.ended(&how).await)
    }

    /// Returns the message about a server that has ended.
    async fn ended(&self, how: &str) -> String {
        self.last_lines.complete().await;
        format!("the embedded server {how}: {}", self.last_lines)
    }

    /// Reports a problem once, until the problem is solved or another problem takes its place.
    fn complain(&self, problem: &str) {
        let new = self.now.send_if_modified(|now| {
            let new = now.problem.as_deref() != Some(problem);
            if new {
                now.problem = Some(problem.to_owned());
            }
            new
        });
        if new {
            tracing::error!(target: "postgres", "{problem}");
        }
    }

    /// Adopts the server that runs on the data folder, else starts a new server. After the start there is no await, so
    /// that cancelling this call cannot lose the new server.
    async fn obtain(&mut self) -> Result<PostgresProcess, String> {
        let data = self.config.postgres.data_dir.clone();
        let found = PostgresProcess::adopt(&data, self.log.take())
            .map_err(|error| format!("{}: {error}", data.display()))?;
        if let Some(server) = found {
            if !is_elsewhere(&data, &self.sockets) || self.answers().await {
                let log = match server.left().log {
                    Some(_) => "and its log read on",
                    None => "its log lines go nowhere until it is restarted",
                };
                tracing::info!(target: "postgres", pid = server.pid(), "the server an earlier supervisor left is kept, {log}");
                self.read_log(&server)?;
                return Ok(server);
            }
            tracing::info!(target: "postgres", pid = server.pid(), "the server an earlier supervisor left listens elsewhere: it is stopped first");
            super::hear_out(&server);
            server.stop(STOP_GRACE).await;
        }
        let config = self.config.clone();
        let launch = blocking(move || prepare(&config)).await?;
        let began = Instant::now();
        let mut signals = ORPHANS.into_iter().peekable();
        while began.elapsed() < REMAINS.0 {
            let due = signals.next_if(|(after, _)| *after <= began.elapsed());
            let data = data.clone();
            let gone = blocking(move || {
                if let Some((_, signal)) = due {
                    end_owned_children(&data, signal);
                }
                Ok(remains(&data).is_empty())
            });
            if gone.await? {
                break;
            }
            tokio::time::sleep(REMAINS.1).await;
        }
        let server = launch
            .server()
            .map_err(|error| format!("cannot start {}: {error}", launch.program.display()))?;
        self.read_log(&server)?;
        Ok(server)
    }

    fn read_log(&self, server: &PostgresProcess) -> Result<(), String> {
        log::follow(server, self.last_lines.clone())
    }

    /// Waits until the server accepts connections and has its role and database, however long that takes.
    async fn settle(&self, pid: i32, reload: impl Fn() + Clone + Send + 'static) {
        let mut interval = READY_INTERVAL.0;
        let slow = Instant::now() + SLOW;
        loop {
            // No timeout, because a thread that waits for a paused server cannot be cancelled: a second thread would
            // not help.
            let furnished = self.furnish(reload.clone());
            let mut furnished = pin!(furnished);
            let done = tokio::select! {
                done = &mut furnished => done,
                () = tokio::time::sleep_until(slow.max(Instant::now() + SLOW)) => {
                    self.complain("the embedded server does not answer: it is waited for");
                    furnished.await
                }
            };
            match done {
                Ok(()) => break,
                Err(error) if Instant::now() > slow => {
                    self.complain(&format!("the embedded server is not ready: {error}"));
                }
                Err(_) => {}
            }
            tokio::time::sleep(interval).await;
            interval = (interval * 2).min(READY_INTERVAL.1);
        }
        self.now
            .send_if_modified(|now| now.problem.take().is_some());
        tracing::info!(target: "postgres", pid, "ready");
    }

    async fn answers(&self) -> bool {
        let url = self.admin.clone();
        // The timeout is outside, because a paused server accepts the connection but never answers.
        let asked = tokio::time::timeout(ANSWER, blocking(move || connect(&url).map(drop)));
        matches!(asked.await, Ok(Ok(())))
    }

    /// Creates the role and the database if they are missing, and makes the rules for logging in those of the configuration,
    /// which may have changed while the server ran.
    async fn furnish(&self, reload: impl Fn() + Send + 'static) -> Result<(), String> {
        let url = self.admin.clone();
        let (config, sockets) = (self.config.clone(), self.sockets.clone());
        blocking(move || {
            let password = password::read(&config)?;
            let data = &config.postgres.data_dir;
            let user = ownership::server_user(data)?;
            let rules = || {
                if data::write_rules(data, user, password.is_some())? {
                    reload();
                }
                Ok::<(), String>(())
            };
            // systemd may have given the folder to the unit's new user.
            ownership::own(&sockets, user)?;
            ownership::open(&sockets, password.is_some())?;
            let mut client = match connect(&url) {
                Ok(client) => client,
                // The rules of a supervisor with another user do not let this one in.
                Err(_) => {
                    rules()?;
                    connect(&url)?
                }
            };
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
                if let Some(password) = &password {
                    // The password is hexadecimal digits, and the server logs no statement.
                    client.batch_execute(&format!("ALTER ROLE {NAME} PASSWORD '{password}'"))?;
                }
                Ok(())
            };
            furnish(&mut client)
                .map_err(|error| format!("cannot make role and database {NAME}: {error}"))?;
            // Last, because the prober must not be asked for a password that is not set yet.
            rules()
        })
        .await
    }
}

/// Returns true when the server that runs on `data` does not listen in `sockets`.
fn is_elsewhere(data: &Path, sockets: &Path) -> bool {
    let text = std::fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    says_elsewhere(&text, sockets) || (is_ready(&text) && !sockets.join(ownership::SOCKET).exists())
}

/// Reads the relevant lines of a `postmaster.pid`: the fourth is the port, the fifth the folder of the first Unix
/// socket, the eighth the status. A starting server writes them one by one, so a missing line means nothing.
fn says_elsewhere(text: &str, sockets: &Path) -> bool {
    let line = |number: usize| text.lines().nth(number - 1).map_or("", str::trim);
    let other_port = !line(4).is_empty() && line(4) != DEFAULT_PORT.to_string();
    let folder = Path::new(line(5));
    let other_folder = match folder.as_os_str().is_empty() {
        true => is_ready(text),
        false => folder != sockets && !is_same(folder, sockets),
    };
    other_port || other_folder
}

fn is_same(one: &Path, other: &Path) -> bool {
    std::fs::canonicalize(one).is_ok_and(|one| std::fs::canonicalize(other).is_ok_and(|o| o == one))
}

fn is_ready(text: &str) -> bool {
    text.lines().nth(7).map(str::trim) == Some("ready")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_server_that_names_another_address_is_elsewhere() {
        let sockets = Path::new("/run/brokkr/postgres");
        for (text, elsewhere) in [
            (
                "7\n/data\n1\n5432\n/run/brokkr/postgres\n\n1 2\nready   \n",
                false,
            ),
            (
                "7\n/data\n1\n5432\n/run/brokkr/postgres\n\n1 2\nstopping\n",
                false,
            ),
            // The server is starting and has not written all lines yet.
            ("", false),
            ("7\n", false),
            ("7\n/data\n1\n5432\n\n", false),
            ("7\n/data\n1\n5432\n\n\n1 2\nstarting\n", false),
            (
                "7\n/data\n1\n5433\n/run/brokkr/postgres\n\n1 2\nready   \n",
                true,
            ),
            (
                "7\n/data\n1\n5432\n/run/other/postgres\n\n1 2\nstarting\n",
                true,
            ),
            ("7\n/data\n1\n5432\n\nlocalhost\n1 2\nready   \n", true),
        ] {
            assert_eq!(says_elsewhere(text, sockets), elsewhere, "{text:?}");
        }
    }
}
