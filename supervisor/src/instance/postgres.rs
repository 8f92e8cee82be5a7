//! The processes of the embedded PostgreSQL: its `initdb`, its server, and a server an earlier supervisor left.

use super::lock;
use super::orphans::{self, Registered};
use super::take_back;
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

/// After SIGKILL there is nothing left to wait for but the kernel.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// A program of PostgreSQL's and how to start it.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    /// The program.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
    /// User and group to become; `None`: as we are.
    pub(crate) user: Option<(u32, u32)>,
    /// Its working directory: one that user may enter.
    pub(crate) folder: PathBuf,
}

impl Launch {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            // Nothing of ours: PGDATA, PGPORT and their kin would change what is started. Messages are
            // read by us, so they are in English.
            .env_clear()
            .env("LC_MESSAGES", "C")
            .env("PATH", "/usr/bin:/bin")
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C at our terminal is not meant for it: it is stopped last.
            .process_group(0);
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        sys::heed_signals(&mut command);
        command
    }

    /// Runs it to its end. Blocks. It holds `held` as long as it runs, as its standard input, which it does not read.
    pub(crate) fn output(&self, held: OwnedFd) -> io::Result<Output> {
        let mut command = self.command();
        command.stdin(held).stdout(Stdio::piped());
        let child = command.spawn()?;
        // With the command goes our own copy of what the program holds.
        drop(command);
        let _registered = orphans::register(pid_of(&child));
        child.wait_with_output()
    }

    /// Starts it as a server.
    pub(crate) fn server(&self) -> io::Result<Server> {
        let mut child = self.command().spawn()?;
        let registered = orphans::register(pid_of(&child));
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
        Ok(Server {
            pid: pid_of(&child),
            ended: sys::readable_shared(Arc::clone(&pidfd))?,
            left: Left {
                pidfd,
                log: log.map(|log| Arc::new(log.into())),
            },
            child: Some((child, registered)),
        })
    }
}

/// Process ids are positive and fit: the kernel's limit is 2^22.
fn pid_of(child: &Child) -> i32 {
    child.id() as i32
}

/// A running server, ours or adopted. Dropping it leaves it running.
#[derive(Debug)]
pub(crate) struct Server {
    pid: i32,
    ended: AsyncFd<Arc<OwnedFd>>,
    left: Left,
    child: Option<(Child, Registered)>,
}

/// What another supervisor needs to take the server over.
#[derive(Debug, Clone)]
pub(crate) struct Left {
    /// Readable when it has ended.
    pub(crate) pidfd: Arc<OwnedFd>,
    /// The end of its standard error that is read; `None` where that is out of reach.
    pub(crate) log: Option<Arc<OwnedFd>>,
}

/// There is no such process, or there cannot be one; no other error says so.
fn shows_nobody(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(nix::libc::ESRCH | nix::libc::EINVAL)
    )
}

impl Server {
    /// Takes over the server that runs on this data folder, if there is one: `postmaster.pid` names it, and
    /// its working directory proves it (the number may be somebody else's by now).
    /// `log` is the end of its standard error that is read, where it was left to us; else it is opened anew.
    pub(crate) fn adopt(data: &Path, log: Option<OwnedFd>) -> io::Result<Option<Self>> {
        let text = match std::fs::read_to_string(data.join("postmaster.pid")) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(pid) = postmaster(&text) else {
            return Ok(None);
        };
        // The descriptor first: what is looked at after that is this process and no later one.
        let pidfd = match sys::pidfd_open(pid) {
            Ok(pidfd) => pidfd,
            Err(error) if shows_nobody(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let at = std::fs::read_link(format!("/proc/{pid}/cwd")).ok();
        if at.is_none() || at != std::fs::canonicalize(data).ok() {
            return Ok(None);
        }
        let pidfd = Arc::new(pidfd);
        let log = log.or_else(|| take_back::log(pid).ok());
        Ok(Some(Self {
            pid,
            ended: sys::readable_shared(Arc::clone(&pidfd))?,
            left: Left {
                pidfd,
                log: log.map(Arc::new),
            },
            child: None,
        }))
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// What is to be passed on of it.
    pub(crate) fn left(&self) -> &Left {
        &self.left
    }

    /// Waits until it has ended, and says how, which is not known of an adopted one.
    pub(crate) async fn ended(&mut self) -> String {
        // A pidfd is readable when its process has ended, and stays so. An error can only mean that the
        // event loop is ending.
        let _ = self.ended.readable().await;
        let status = self.child.as_mut().and_then(|(child, _)| child.wait().ok());
        status.map_or_else(|| "ended".to_owned(), |status| how(&status))
    }

    /// Stops it: SIGINT (fast shutdown), after `grace` SIGQUIT (immediate), at last SIGKILL.
    pub(crate) async fn stop(mut self, grace: Duration) -> String {
        for (signal, patience) in [
            (Signal::SIGINT, grace),
            (Signal::SIGQUIT, KILL_PATIENCE),
            (Signal::SIGKILL, KILL_PATIENCE),
        ] {
            // An error means that it has ended, which is what is waited for.
            let _ = sys::pidfd_send_signal(self.left.pidfd.as_fd(), signal as i32);
            if let Ok(how) = tokio::time::timeout(patience, self.ended()).await {
                return how;
            }
        }
        "cannot be killed".to_owned()
    }
}

/// Server processes of this data folder that are there still: those of a postmaster that was killed end by themselves
/// when they notice, and until then no other can start. A postmaster nobody has reaped yet counts.
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
                    // Of a zombie that cannot be read.
                    Err(_) => named == Some(*pid),
                }
        })
        .collect()
}

/// Sends a signal to what is left of a postmaster that is dead: backends whose parent is no server process any more. One
/// that is in the midst of a statement may take any time to notice that, and nobody can start until it has. Nothing is lost
/// with it: its server has to recover from a crash already.
pub(crate) fn end_orphans(data: &Path, signal: Signal) {
    let is_server = |pid: i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|name| name.trim_end() == "postgres")
    };
    for pid in remains(data) {
        // A backend's command line is its title; a postmaster's is how it was started.
        let titled = std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.starts_with(b"postgres: "));
        let parent = lock::parent(pid)
            .ok()
            .and_then(|pid| i32::try_from(pid).ok());
        let orphan = titled && parent.is_some_and(|parent| !is_server(parent));
        let Ok(pidfd) = sys::pidfd_open(pid) else {
            continue;
        };
        // Looked at once more with the process held: its number may have been another's before.
        if orphan && remains(data).contains(&pid) {
            // One that has gone meanwhile needs none.
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), signal as i32);
        }
    }
}

/// The process a `postmaster.pid` names.
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
