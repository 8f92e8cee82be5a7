//! How an instance is ended, and how it has ended: as our child, or as the child of a supervisor that is no more.
//!
//! An adopted process is nobody's child that we know: its end is seen by its pidfd, its exit status before somebody else
//! reaps it, or after that where the kernel keeps it (6.15 and later), and from then on its number may mean another process.

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

/// What the parent of an adopted process gets to reap it: an exit status of zero is only told after that.
const REAPED_WITHIN: Duration = Duration::from_millis(500);
const STEP: Duration = Duration::from_millis(10);
/// After SIGKILL there is nothing to wait for but the kernel.
const KILLED_WITHIN: Duration = Duration::from_secs(5);

/// How to end an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// SIGTERM to the broker: drain.
    Terminate,
    /// SIGABRT to the broker: leave a core, if it may.
    Abort,
    /// SIGKILL to its whole session.
    Kill,
}

/// Errors mean that the process has ended already, which its pidfd tells too.
pub(super) fn send(end: End, pid: i32, pidfd: &OwnedFd) {
    match end {
        End::Terminate => {
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), Signal::SIGTERM as i32);
        }
        End::Abort => {
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), Signal::SIGABRT as i32);
            // A stopped process takes no signal but this one; what was pending before comes first.
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), Signal::SIGCONT as i32);
        }
        End::Kill => {
            // First the one that is surely meant. Stopped by it or not, the number is taken until it has been reaped.
            if sys::pidfd_send_signal(pidfd.as_fd(), 0).is_ok() {
                let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), Signal::SIGKILL as i32);
        }
    }
}

/// A process that will end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mortal {
    pid: i32,
    start_time: u64,
    child: bool,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// As the kernel says.
    Known(WaitStatus),
    /// It was another supervisor's child, and the kernel does not say.
    Unknown,
}

impl Mortal {
    /// A process we started.
    pub(super) fn child(pid: i32, start_time: u64) -> Self {
        Self {
            pid,
            start_time,
            child: true,
        }
    }

    /// One we found: a child where this process was another supervisor once.
    pub(super) fn found(pid: i32, start_time: u64) -> Self {
        let ours = lock::start_time(pid).is_ok_and(|at| at == start_time)
            && lock::parent(pid).is_ok_and(|parent| parent == u64::from(std::process::id()));
        Self {
            pid,
            start_time,
            child: ours,
        }
    }

    /// Whether we are its parent.
    pub(super) fn is_child(self) -> bool {
        self.child
    }

    /// Ends what it left behind, and says how it ended. To be called when its pidfd has become readable.
    pub(super) async fn wait(self, pidfd: &OwnedFd) -> io::Result<Ended> {
        self.end_session();
        if self.child {
            let status = waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED)?;
            return Ok(Ended::Known(status));
        }
        let mut left = REAPED_WITHIN;
        while left > Duration::ZERO {
            let raw = self
                .zombies_status()
                .or_else(|| sys::pidfd_wait_status(pidfd.as_fd()));
            if let Some(raw) = raw {
                let status = WaitStatus::from_raw(Pid::from_raw(self.pid), raw)?;
                return Ok(Ended::Known(status));
            }
            tokio::time::sleep(STEP).await;
            left = left.saturating_sub(STEP);
        }
        Ok(Ended::Unknown)
    }

    /// Its wait status from `/proc` while nobody has reaped it. Zero is no answer: it is also what those read who may not.
    fn zombies_status(self) -> Option<i32> {
        let ours = lock::start_time(self.pid).is_ok_and(|at| at == self.start_time);
        let status = lock::field(self.pid, 52).ok().filter(|_| ours)?;
        i32::try_from(status).ok().filter(|status| *status != 0)
    }

    /// A session is named after its first process, whose number is free for others once it has been reaped. As long as
    /// it has not, or no other has taken it, the session is the one that is meant.
    pub(super) fn end_session(self) {
        let other = lock::start_time(self.pid).is_ok_and(|at| at != self.start_time);
        if !other {
            let _ = killpg(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }

    /// For a process that can no longer be watched. Blocks.
    pub(super) fn kill_and_wait(self, pidfd: &OwnedFd) -> String {
        send(End::Kill, self.pid, pidfd);
        if self.child {
            return match nix::sys::wait::waitpid(Pid::from_raw(self.pid), None) {
                Ok(status) => Ended::Known(status).to_string(),
                Err(error) => format!("killed: {error}"),
            };
        }
        let timeout = PollTimeout::try_from(KILLED_WITHIN).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        while poll(&mut fds, timeout) == Err(Errno::EINTR) {}
        Ended::Unknown.to_string()
    }
}

impl Ended {
    /// Its exit code, if it exited.
    pub(super) fn code(self) -> Option<u8> {
        match self {
            Self::Known(WaitStatus::Exited(_, code)) => u8::try_from(code & 0xff).ok(),
            Self::Known(_) | Self::Unknown => None,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(WaitStatus::Exited(_, code)) => write!(f, "exit code {code}"),
            Self::Known(WaitStatus::Signaled(_, signal, dumped)) => {
                let core = if *dumped { ", core dumped" } else { "" };
                write!(f, "killed by {signal}{core}")
            }
            Self::Known(other) => write!(f, "{other:?}"),
            Self::Unknown => {
                f.write_str("ended, nobody knows how: an earlier supervisor was its parent")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// A grandchild that ends with 7 when its standard input does, and its pidfd: `sh` reaps it, as init would.
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
    async fn the_end_of_somebody_elses_child_is_seen_and_its_exit_code_where_the_kernel_tells() {
        use std::io::Write;
        let (mut parent, pid, pidfd) = grandchild();
        let mortal = Mortal::found(pid, lock::start_time(pid).unwrap());
        assert!(!mortal.is_child());
        parent.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        let watched = sys::readable_shared(pidfd.try_clone().unwrap().into()).unwrap();
        let _ = watched.readable().await.unwrap();
        let ended = mortal.wait(&pidfd).await.unwrap();
        parent.kill().unwrap();
        parent.wait().unwrap();
        match ended {
            Ended::Known(_) => assert_eq!(ended.to_string(), "exit code 7"),
            // Kernels before 6.15.
            Ended::Unknown => assert!(ended.to_string().contains("nobody knows")),
        }
    }

    #[test]
    fn a_session_of_a_process_that_took_the_number_is_left_alone() {
        let (mut parent, pid, _) = grandchild();
        let start_time = lock::start_time(pid).unwrap();
        Mortal::found(pid, start_time - 1).end_session();
        assert_eq!(lock::start_time(pid).unwrap(), start_time);
        Mortal::found(pid, start_time).end_session();
        parent.kill().unwrap();
        parent.wait().unwrap();
    }
}
