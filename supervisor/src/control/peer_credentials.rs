//! Identity of the process at the other end of a control connection, as the kernel reports it.

use super::ControlAccess;
use super::socket::GROUP;
use super::write_timeout::WriteTimeoutSwitch;
use crate::instance::cgroup::InstanceGroup;
use crate::sys;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Gid, Pid, Uid, User, geteuid, getgrouplist, getsid};
use std::ffi::CString;
use std::fmt;
use std::os::fd::AsFd;
use tokio::net::UnixStream;

/// The user and group that may use the control API, beside root.
#[derive(Debug, Clone)]
pub(super) struct Permitted {
    own: Uid,
    group: Option<Gid>,
    access: ControlAccess,
}

impl Permitted {
    pub(super) fn new(group: Option<Gid>, access: ControlAccess) -> Self {
        Self {
            own: geteuid(),
            group,
            access,
        }
    }

    /// Returns the same permissions for another group.
    pub(super) fn with_group(self, group: Option<Gid>) -> Self {
        Self { group, ..self }
    }

    /// Returns the reason to refuse a process of an instance: the instance itself, a process of its session, or one of
    /// its cgroup, which no process can leave.
    fn refusal(&self, pid: i32) -> Option<String> {
        let of = |tenant: &str| format!("this process belongs to the broker of tenant {tenant}");
        if let Some(group) = self.access.groups.instance_of(pid) {
            return Some(match group {
                InstanceGroup::Ours(tenant) => of(&tenant),
                InstanceGroup::Others => {
                    "this process belongs to a broker of another supervisor".to_owned()
                }
            });
        }
        let pid = Pid::from_raw(pid);
        let session = getsid(Some(pid)).unwrap_or(pid);
        let snapshot = self.access.fleet.watch();
        let snapshot = snapshot.borrow();
        let mut tenants = snapshot.tenants.iter();
        let broker = tenants.find(|tenant| {
            let broker = tenant.pid.map(Pid::from_raw);
            broker == Some(pid) || broker == Some(session)
        })?;
        Some(of(&broker.name))
    }
}

/// A peer that may use the control API.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    uid: Uid,
    pid: Option<i32>,
    /// The program of that process, for the log.
    program: Option<String>,
    patience: WriteTimeoutSwitch,
}

impl Peer {
    /// Returns the peer of `stream`, or the reason for its refusal. The socket file's mode gives the same protection,
    /// but not against a descriptor handed on to another process or a changed mode.
    pub(super) async fn of(stream: &UnixStream, permitted: &Permitted) -> Result<Self, String> {
        let cred = stream.peer_cred().map_err(|error| error.to_string())?;
        let uid = Uid::from_raw(cred.uid());
        let gid = Gid::from_raw(cred.gid());
        // A process of another pid namespace has no id here, and no broker can enter such a namespace.
        let pid = cred.pid().filter(|pid| *pid > 0);
        // A broker has the supervisor's own user, where tenants have none of their own.
        if let Some(refusal) = pid.and_then(|pid| permitted.refusal(pid)) {
            return Err(refusal);
        }
        let program = pid.and_then(program_of);
        // Asked last: while the process runs, no other one has its id, and so all answers above are about it.
        if pid.is_some() && has_ended(stream) {
            return Err(
                "the process that connected has ended, so it is unknown whose it was".to_owned(),
            );
        }
        let peer = Self {
            uid,
            pid,
            program,
            patience: WriteTimeoutSwitch::default(),
        };
        if uid.is_root() || uid == permitted.own || permitted.group == Some(gid) {
            return Ok(peer);
        }
        if let Some(group) = permitted.group {
            // The lookup may block, because the user database may be on the network.
            let member = tokio::task::spawn_blocking(move || is_member(uid, gid, group)).await;
            if member.unwrap_or(false) {
                return Ok(peer);
            }
        }
        Err(format!(
            "user {uid} is neither root nor a member of group {GROUP}"
        ))
    }

    pub(super) fn patience(&self) -> WriteTimeoutSwitch {
        self.patience.clone()
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(program) = &self.program {
            // A program may have any name, and must not look like another line of the log.
            write!(f, "{}, ", program.escape_debug())?;
        }
        write!(f, "user {}", self.uid)?;
        match self.pid {
            Some(pid) => write!(f, ", process {pid}"),
            None => Ok(()),
        }
    }
}

/// Returns the path of a process's program, or its name where the path may not be read.
fn program_of(pid: i32) -> Option<String> {
    let path = std::fs::read_link(format!("/proc/{pid}/exe"));
    let path = path.map(|path| path.display().to_string());
    let name = || std::fs::read_to_string(format!("/proc/{pid}/comm"));
    path.or_else(|_| name().map(|name| name.trim_end().to_owned()))
        .ok()
}

/// Returns true when the process that made the connection is seen to have ended. A kernel before 6.5 does not tell.
fn has_ended(stream: &UnixStream) -> bool {
    let pidfd = match sys::peer_pidfd(stream.as_fd()) {
        Ok(pidfd) => pidfd,
        Err(error) => {
            let reaped = [nix::libc::ESRCH, nix::libc::EINVAL];
            return error
                .raw_os_error()
                .is_some_and(|error| reaped.contains(&error));
        }
    };
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

fn is_member(uid: Uid, primary: Gid, group: Gid) -> bool {
    let Ok(Some(user)) = User::from_uid(uid) else {
        return false;
    };
    let Ok(name) = CString::new(user.name) else {
        return false;
    };
    getgrouplist(&name, primary).is_ok_and(|groups| groups.contains(&group))
}
