//! The processes of the embedded PostgreSQL: `initdb`, the server, and a server that an earlier supervisor left.

use super::fd_recovery;
use super::lock;
use super::reaper::{self, OwnedChild};
use crate::sys;
use nix::sys::signal::Signal;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// The longest wait for a server to end after SIGQUIT, and again after SIGKILL.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// A program of PostgreSQL and how to start it.
#[derive(Debug, Clone)]
pub(crate) struct PostgresCommand {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// User and group to switch to; `None`: the supervisor's own.
    pub(crate) user: Option<(u32, u32)>,
    /// Its working directory, which that user must be allowed to enter.
    pub(crate) folder: PathBuf,
}

impl PostgresCommand {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            // PGDATA, PGPORT and the like would change how the program starts. The supervisor reads the messages, so
            // they must be in English.
            .env_clear()
            .env("LC_MESSAGES", "C")
            .env("PATH", "/usr/bin:/bin")
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C at the terminal must not reach the server, because it is stopped last.
            .process_group(0);
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        sys::heed_signals(&mut command);
        command
    }

    /// Runs the program until it ends. Blocks. The program gets `held` as standard input, which it does not read, so
    /// that `held` stays open as long as it runs.
    pub(crate) fn output(&self, held: OwnedFd) -> io::Result<Output> {
        let mut command = self.command();
        command.stdin(held).stdout(Stdio::piped());
        let child = command.spawn()?;
        // Dropping the command closes this process's copy of `held`.
        drop(command);
        let _registered = reaper::register(pid_of(&child));
        child.wait_with_output()
    }

    /// Starts the program as a server.
    pub(crate) fn server(&self) -> io::Result<PostgresProcess> {
        let mut child = self.command().spawn()?;
        let registered = reaper::register(pid_of(&child));
        let pidfd = match sys::pidfd_open(pid_of(&child)) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                child.kill()?;
                child.wait()?;
                return Err(error);
            }
        };
        let log = child.stderr.take();
        let pidfd = Arc::new(pidfd);
        Ok(PostgresProcess {
            pid: pid_of(&child),
            ended: sys::readable_shared(Arc::clone(&pidfd))?,
            left: PostgresHandover {
                pidfd,
                log: log.map(|log| Arc::new(log.into())),
            },
            child: Some((child, registered)),
        })
    }
}

/// Returns the pid, which fits: the kernel's limit is 2^22.
fn pid_of(child: &Child) -> i32 {
    child.id() as i32
}

/// A running server, started or adopted. Dropping this leaves it running.
#[derive(Debug)]
pub(crate) struct PostgresProcess {
    pid: i32,
    ended: AsyncFd<Arc<OwnedFd>>,
    left: PostgresHandover,
    child: Option<(Child, OwnedChild)>,
}

/// The descriptors that another supervisor needs to take the server over.
#[derive(Debug, Clone)]
pub(crate) struct PostgresHandover {
    /// Readable once the server has ended.
    pub(crate) pidfd: Arc<OwnedFd>,
    /// The read end of its standard error; `None` when it could not be opened.
    pub(crate) log: Option<Arc<OwnedFd>>,
}

/// Returns true when the error shows that there is no such process; other errors show nothing.
fn is_no_process(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(nix::libc::ESRCH | nix::libc::EINVAL)
    )
}

impl PostgresProcess {
    /// Takes over the server that runs on this data folder, if there is one. `postmaster.pid` names the process, and
    /// its working directory proves it, because the pid may belong to another process by now. `log` is the inherited
    /// read end of its standard error; without it the pipe is opened again.
    pub(crate) fn adopt(data: &Path, log: Option<OwnedFd>) -> io::Result<Option<Self>> {
        let text = match std::fs::read_to_string(data.join("postmaster.pid")) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(pid) = postmaster(&text) else {
            return Ok(None);
        };
        // The pidfd is opened first, because the pid cannot pass to another process after that.
        let pidfd = match sys::pidfd_open(pid) {
            Ok(pidfd) => pidfd,
            Err(error) if is_no_process(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let at = std::fs::read_link(format!("/proc/{pid}/cwd")).ok();
        if at.is_none() || at != std::fs::canonicalize(data).ok() {
            return Ok(None);
        }
        let pidfd = Arc::new(pidfd);
        let log = log.or_else(|| fd_recovery::log(pid).ok());
        Ok(Some(Self {
            pid,
            ended: sys::readable_shared(Arc::clone(&pidfd))?,
            left: PostgresHandover {
                pidfd,
                log: log.map(Arc::new),
            },
            child: None,
        }))
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Returns the descriptors to pass to another supervisor.
    pub(crate) fn left(&self) -> &PostgresHandover {
        &self.left
    }

    /// Returns a function that makes the server read its files again.
    pub(crate) fn reload(&self) -> impl Fn() + Clone + Send + 'static + use<> {
        let pidfd = self.left.pidfd.clone();
        move || {
            // An error means that the server has ended, and the next one reads the files anyway.
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), Signal::SIGHUP as i32);
        }
    }

    /// Waits until the server has ended and describes its exit status, which is unknown for an adopted server.
    pub(crate) async fn ended(&mut self) -> String {
        // A pidfd stays readable after its process has ended. An error can only mean that the event loop is ending.
        let _ = self.ended.readable().await;
        let status = self.child.as_mut().and_then(|(child, _)| child.wait().ok());
        status.map_or_else(|| "ended".to_owned(), |status| how(&status))
    }

    /// Stops the server: SIGINT (fast shutdown), SIGQUIT (immediate) after `grace`, then SIGKILL.
    pub(crate) async fn stop(mut self, grace: Duration) -> String {
        for (signal, patience) in [
            (Signal::SIGINT, grace),
            (Signal::SIGQUIT, KILL_PATIENCE),
            (Signal::SIGKILL, KILL_PATIENCE),
        ] {
            // An error means that the server has ended.
            let _ = sys::pidfd_send_signal(self.left.pidfd.as_fd(), signal as i32);
            if let Ok(how) = tokio::time::timeout(patience, self.ended()).await {
                return how;
            }
        }
        "cannot be killed".to_owned()
    }
}

/// Lists the server processes of this data folder, a zombie postmaster included. Backends of a killed postmaster end
/// once they notice its death, and no other server can start until then.
pub(crate) fn remains(data: &Path) -> Vec<i32> {
    let Ok(folder) = std::fs::canonicalize(data) else {
        return Vec::new();
    };
    let named = std::fs::read_to_string(data.join("postmaster.pid"));
    let named = named.ok().and_then(|text| postmaster(&text));
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let of = |what: &str| format!("/proc/{pid}/{what}");
            std::fs::read_to_string(of("comm"))
                .is_ok_and(|name| ["postgres", "initdb"].contains(&name.trim_end()))
                && match std::fs::read_link(of("cwd")) {
                    Ok(at) => at == folder,
                    // The link of a zombie cannot be read.
                    Err(_) => named == Some(*pid),
                }
        })
        .collect()
}

/// Signals backends whose postmaster is dead. A backend may run its statement for any time before it notices that, and
/// no server can start until then. Nothing is lost, because that server must recover from a crash already.
pub(crate) fn end_owned_children(data: &Path, signal: Signal) {
    let is_server = |pid: i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|name| name.trim_end() == "postgres")
    };
    for pid in remains(data) {
        // A backend's command line is its title; a postmaster's is the command it was started with.
        let titled = std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.starts_with(b"postgres: "));
        let parent = lock::parent(pid)
            .ok()
            .and_then(|pid| i32::try_from(pid).ok());
        let owned_child = titled && parent.is_some_and(|parent| !is_server(parent));
        let Ok(pidfd) = sys::pidfd_open(pid) else {
            continue;
        };
        // Checked again after the pidfd was opened, because the pid may have named another process before.
        if owned_child && remains(data).contains(&pid) {
            // An error means that the backend has ended.
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), signal as i32);
        }
    }
}

/// Returns the pid in a `postmaster.pid`.
fn postmaster(text: &str) -> Option<i32> {
    text.lines().next()?.trim().parse().ok()
}

fn how(status: &ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}
