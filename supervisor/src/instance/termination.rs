//! Ends an instance and reads its exit status, also if an earlier supervisor started the process.
//!
//! An adopted process may be another parent's child. Its end is then seen by its pidfd. Its exit status can be read
//! from `/proc` until that parent reaps it, and afterwards from the pidfd on Linux 6.15 and later. After that its pid
//! may name another process.

use super::lock;
use crate::sys;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// The longest wait for an adopted process's parent to reap it; an exit status of zero can only be read after that.
const REAPED_WITHIN: Duration = Duration::from_millis(500);
const STEP: Duration = Duration::from_millis(10);
/// The longest wait for a process to end after SIGKILL.
const KILLED_WITHIN: Duration = Duration::from_secs(5);

/// The ways to end an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Termination {
    /// SIGTERM to the broker: drain.
    Terminate,
    /// SIGABRT to the broker: dump core, if permitted.
    Abort,
    /// SIGKILL to the whole session.
    Kill,
}

/// Sends the signal. Errors are ignored, because they mean that the process has ended, which its pidfd shows too.
pub(super) fn send(end: Termination, pid: i32, pidfd: &OwnedFd) {
    match end {
        Termination::Terminate => {
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), Signal::SIGTERM as i32);
        }
        Termination::Abort => {
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), Signal::SIGABRT as i32);
            // A stopped process acts on SIGABRT only once it is continued.
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), Signal::SIGCONT as i32);
        }
        Termination::Kill => {
            // The pidfd proves that the process is not reaped, so its pid still names its session.
            if sys::pidfd_send_signal(pidfd.as_fd(), 0).is_ok() {
                let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), Signal::SIGKILL as i32);
        }
    }
}

/// A process whose end is awaited.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProcessRef {
    pid: i32,
    start_time: u64,
    child: bool,
}

/// Exit status of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExitCause {
    /// The status that the kernel reports.
    Known(WaitStatus),
    /// The process was another parent's child, and the kernel does not report its status.
    Unknown,
}

impl ProcessRef {
    /// Describes a process that this supervisor started.
    pub(super) fn child(pid: i32, start_time: u64) -> Self {
        Self {
            pid,
            start_time,
            child: true,
        }
    }

    /// Describes a process of an earlier supervisor. The process is a child when that supervisor executed this program
    /// in its place.
    pub(super) fn found(pid: i32, start_time: u64) -> Self {
        let ours = lock::start_time(pid).is_ok_and(|at| at == start_time)
            && lock::parent(pid).is_ok_and(|parent| parent == u64::from(std::process::id()));
        Self {
            pid,
            start_time,
            child: ours,
        }
    }

    /// Returns true when this supervisor is the parent of the process.
    pub(super) fn is_child(self) -> bool {
        self.child
    }

    /// Ends the rest of the process's session and returns its status. Must be called once its pidfd is readable.
    pub(super) async fn wait(self, pidfd: &OwnedFd) -> io::Result<ExitCause> {
        self.end_session();
        if self.child {
            let status = waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED)?;
            return Ok(ExitCause::Known(status));
        }
        let mut left = REAPED_WITHIN;
        while left > Duration::ZERO {
            let raw = self
                .zombies_status()
                .or_else(|| sys::pidfd_wait_status(pidfd.as_fd()));
            if let Some(raw) = raw {
                let status = WaitStatus::from_raw(Pid::from_raw(self.pid), raw)?;
                return Ok(ExitCause::Known(status));
            }
            tokio::time::sleep(STEP).await;
            left = left.saturating_sub(STEP);
        }
        Ok(ExitCause::Unknown)
    }

    /// Reads the wait status from `/proc` until the process is reaped. Ignores zero, which `/proc` also shows to
    /// readers without permission.
    fn zombies_status(self) -> Option<i32> {
        let ours = lock::start_time(self.pid).is_ok_and(|at| at == self.start_time);
        let status = lock::field(self.pid, 52).ok().filter(|_| ours)?;
        i32::try_from(status).ok().filter(|status| *status != 0)
    }

    /// Kills the session, unless another process has the pid that names it.
    pub(super) fn end_session(self) {
        let other = lock::start_time(self.pid).is_ok_and(|at| at != self.start_time);
        if !other {
            let _ = killpg(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }

    /// Kills a process that can no longer be watched. Blocks.
    pub(super) fn kill_and_wait(self, pidfd: &OwnedFd) -> String {
        send(Termination::Kill, self.pid, pidfd);
        if self.child {
            return match nix::sys::wait::waitpid(Pid::from_raw(self.pid), None) {
                Ok(status) => ExitCause::Known(status).to_string(),
                Err(error) => format!("killed: {error}"),
            };
        }
        let timeout = PollTimeout::try_from(KILLED_WITHIN).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        while poll(&mut fds, timeout) == Err(Errno::EINTR) {}
        ExitCause::Unknown.to_string()
    }
}

impl ExitCause {
    /// Returns the exit code of a process that exited.
    pub(super) fn code(self) -> Option<u8> {
        match self {
            Self::Known(WaitStatus::Exited(_, code)) => u8::try_from(code & 0xff).ok(),
            Self::Known(_) | Self::Unknown => None,
        }
    }
}

impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(WaitStatus::Exited(_, code)) => write!(f, "exit code {code}"),
            Self::Known(WaitStatus::Signaled(_, signal, dumped)) => {
                let core = if *dumped { ", core dumped" } else { "" };
                write!(f, "killed by {signal}{core}")
            }
            Self::Known(other) => write!(f, "{other:?}"),
            Self::Unknown => f.write_str(
                "ended, its exit status is unknown: an earlier supervisor was its parent",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// Starts a grandchild that exits with 7 after a line on its standard input. Its parent `sh` reaps it.
    fn grandchild() -> (std::process::Child, i32, OwnedFd) {
        use std::io::{BufRead, BufReader};
        let mut parent = std::process::Command::new("sh")
            .args([
                "-c",
                "exec 3<&0; setsid sh -c 'echo $$; read line <&3; exit 7' & wait $!; read forever <&3",
            ])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(parent.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let pid = line.trim().parse().unwrap();
        (parent, pid, sys::pidfd_open(pid).unwrap())
    }

    #[tokio::test]
    async fn the_end_of_another_processs_child_is_seen_with_its_exit_code_where_the_kernel_tells() {
        use std::io::Write;
        let (mut parent, pid, pidfd) = grandchild();
        let process_ref = ProcessRef::found(pid, lock::start_time(pid).unwrap());
        assert!(!process_ref.is_child());
        parent.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        let watched = sys::readable_shared(pidfd.try_clone().unwrap().into()).unwrap();
        let _ = watched.readable().await.unwrap();
        let ended = process_ref.wait(&pidfd).await.unwrap();
        parent.kill().unwrap();
        parent.wait().unwrap();
        match ended {
            ExitCause::Known(_) => assert_eq!(ended.to_string(), "exit code 7"),
            // Kernels before 6.15.
            ExitCause::Unknown => assert!(ended.to_string().contains("is unknown")),
        }
    }

    #[test]
    fn a_session_of_a_process_that_took_the_number_is_left_alone() {
        let (mut parent, pid, _) = grandchild();
        let start_time = lock::start_time(pid).unwrap();
        ProcessRef::found(pid, start_time - 1).end_session();
        assert_eq!(lock::start_time(pid).unwrap(), start_time);
        ProcessRef::found(pid, start_time).end_session();
        parent.kill().unwrap();
        parent.wait().unwrap();
    }
}
