//! Keeps the server: adopts or starts it, as often as it takes, until told to stop it.

use super::log::{self, LastLines};
use super::{NAME, Now, STOP_GRACE, SUPERUSER, blocking, connect, end, folder, prepare, url_as};
use crate::config::Supervisor;
use crate::instance::postgres::{Server, end_orphans, remains};
use brokkr_tenant::{DEFAULT_PORT, DatabaseUrl};
use nix::sys::signal::Signal;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

/// Between two looks whether it accepts connections, at first and at most.
const READY_INTERVAL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// A server that has not let us in for so long is spoken of. One that recovers from a crash may take longer, and a
/// paused one as long as it likes: it is waited for all the same.
const SLOW: Duration = Duration::from_secs(5);
/// What the first start of all gets.
const FIRST_PATIENCE: Duration = Duration::from_secs(60);
/// Between the end of a server and the next, at first and at most.
const RESTART: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// What the processes of a killed server get to be gone, and how often that is looked at.
const REMAINS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_millis(50));
/// Those that are still there so long after it has ended are told to end, the second time so that they must.
const ORPHANS: [(Duration, Signal); 2] = [
    (Duration::from_secs(1), Signal::SIGQUIT),
    (Duration::from_secs(3), Signal::SIGKILL),
];
/// What a server gets to answer that says it listens elsewhere.
const ANSWER: Duration = Duration::from_secs(5);

/// What it takes to have the server, and to have it again.
pub(super) struct Keeper {
    config: Arc<Supervisor>,
    sockets: PathBuf,
    admin: DatabaseUrl,
    /// The end of its standard error that was left to us, until it is used.
    log: Option<OwnedFd>,
    last_lines: Arc<LastLines>,
    now: watch::Sender<Now>,
}

impl Keeper {
    /// # Errors
    /// When the path of its socket would be too long anywhere.
    pub(super) fn new(
        config: Arc<Supervisor>,
        log: Option<OwnedFd>,
        now: watch::Sender<Now>,
    ) -> Result<Self, String> {
        let sockets = folder::socket_folder(&config.runtime_dir)?;
        Ok(Self {
            admin: url_as(&sockets, SUPERUSER)?.with_dbname("postgres"),
            config,
            sockets,
            log,
            last_lines: Arc::default(),
            now,
        })
    }

    /// The first start of all, waited for. On failure nothing is left running.
    ///
    /// # Errors
    /// What is in the way.
    pub(super) async fn first(&mut self) -> Result<Server, String> {
        let mut server = self.obtain().await?;
        let patience = tokio::time::sleep(FIRST_PATIENCE);
        let problem = tokio::select! {
            () = self.settle(server.pid()) => return Ok(server),
            how = server.ended() => return Err(self.ended(&how).await),
            () = patience => format!("the embedded server is not ready after {} s: {}", FIRST_PATIENCE.as_secs(), self.last_lines),
        };
        server.stop(STOP_GRACE).await;
        Err(problem)
    }

    /// Has the server until told to stop it. `server` is one that runs already.
    pub(super) async fn keep(
        mut self,
        mut server: Option<Server>,
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
        // One that was being stopped, or that could not be taken over, is not left behind.
        if let Err(error) = end(&self.config).await {
            tracing::error!(target: "postgres", "{error}");
        }
    }

    /// Stays with a server until it ends, and says how, or until it is to be stopped.
    async fn attend(
        &self,
        mut server: Server,
        stopped: &mut oneshot::Receiver<()>,
    ) -> Option<String> {
        let left = server.left().clone();
        self.now.send_modify(|now| now.left = Some(left));
        let ended = {
            let mut settle = pin!(self.settle(server.pid()));
            let mut settled = false;
            loop {
                // Every arm is cancel-safe or kept: a server that has ended stays so, and the order stays given.
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

    /// What is said of a server that has ended.
    async fn ended(&self, how: &str) -> String {
        self.last_lines.complete().await;
        format!("the embedded server {how}: {}", self.last_lines)
    }

    /// Says what is wrong, once, until something else is or nothing.
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

    /// The server that runs on the data folder, else a new one. Nothing is awaited after that is started.
    async fn obtain(&mut self) -> Result<Server, String> {
        let data = self.config.postgres.data_dir.clone();
        let found = Server::adopt(&data, self.log.take())
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
                    end_orphans(&data, signal);
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

    fn read_log(&self, server: &Server) -> Result<(), String> {
        log::follow(server, self.last_lines.clone())
    }

    /// Waits until it lets us in and has all it needs, however long that takes.
    async fn settle(&self, pid: i32) {
        let mut interval = READY_INTERVAL.0;
        let slow = Instant::now() + SLOW;
        loop {
            // Not bounded, for a thread that waits for a paused server's answer cannot be called back: one is enough.
            let furnished = self.furnish();
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
        // Bounded from outside: a stopped server accepts and says nothing.
        let asked = tokio::time::timeout(ANSWER, blocking(move || connect(&url).map(drop)));
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

/// Whether the server that runs on `data` says that it does not listen in `sockets`.
fn is_elsewhere(data: &Path, sockets: &Path) -> bool {
    let text = std::fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    says_elsewhere(&text, sockets) || (is_ready(&text) && !sockets.join(folder::SOCKET).exists())
}

/// The lines of a `postmaster.pid` that count here: the fourth is the port, the fifth the folder of its first Unix
/// socket, the eighth how it is. They come one by one while it starts; what is not there yet says nothing.
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
            // It starts, and has not said all yet.
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
