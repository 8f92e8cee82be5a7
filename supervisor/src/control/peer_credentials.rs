//! Identity of the process at the other end of a control connection, as the kernel reports it.

use super::socket::GROUP;
use super::write_timeout::WriteTimeoutSwitch;
use crate::fleet::handle::Handle;
use nix::unistd::{Gid, Pid, Uid, User, geteuid, getgrouplist, getsid};
use std::ffi::CString;
use std::fmt;
use tokio::net::UnixStream;

/// The user and group that may use the control API, beside root.
#[derive(Debug, Clone)]
pub(super) struct Permitted {
    own: Uid,
    group: Option<Gid>,
    fleet: Handle,
}

impl Permitted {
    pub(super) fn new(group: Option<Gid>, fleet: Handle) -> Self {
        Self {
            own: geteuid(),
            group,
            fleet,
        }
    }

    /// Returns the same permissions for another group.
    pub(super) fn with_group(self, group: Option<Gid>) -> Self {
        Self { group, ..self }
    }

    /// Returns the tenant whose broker is the process `pid`, or began the session of that process.
    fn tenant_of(&self, pid: i32) -> Option<String> {
        let pid = Pid::from_raw(pid);
        let session = getsid(Some(pid)).unwrap_or(pid);
        let snapshot = self.fleet.watch();
        let snapshot = snapshot.borrow();
        let mut tenants = snapshot.tenants.iter();
        let broker = tenants.find(|tenant| {
            let broker = tenant.pid.map(Pid::from_raw);
            broker == Some(pid) || broker == Some(session)
        })?;
        Some(broker.name.clone())
    }
}

/// A peer that may use the control API.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    uid: Uid,
    pid: Option<i32>,
    patience: WriteTimeoutSwitch,
}

impl Peer {
    /// Returns the peer of `stream`, or the reason for its refusal. The socket file's mode gives the same protection,
    /// but not against a descriptor handed on to another process or a changed mode.
    pub(super) async fn of(stream: &UnixStream, permitted: &Permitted) -> Result<Self, String> {
        let cred = stream.peer_cred().map_err(|error| error.to_string())?;
        let uid = Uid::from_raw(cred.uid());
        let gid = Gid::from_raw(cred.gid());
        // A broker has the supervisor's own user, where tenants have none of their own.
        if let Some(tenant) = cred.pid().and_then(|pid| permitted.tenant_of(pid)) {
            return Err(format!(
                "this process belongs to the broker of tenant {tenant}"
            ));
        }
        let peer = Self {
            uid,
            pid: cred.pid(),
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
        write!(f, "user {}", self.uid)?;
        match self.pid {
            Some(pid) => write!(f, ", process {pid}"),
            None => Ok(()),
        }
    }
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
