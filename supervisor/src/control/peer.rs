//! Who is at the other end, as the kernel says.

use super::socket::GROUP;
use super::stall::Patience;
use nix::unistd::{Gid, Uid, User, geteuid, getgrouplist};
use std::ffi::CString;
use std::fmt;
use tokio::net::UnixStream;

/// Who may talk to the supervisor.
#[derive(Debug, Clone)]
pub(super) struct Permitted {
    own: Uid,
    group: Option<Gid>,
}

impl Permitted {
    pub(super) fn new(group: Option<Gid>) -> Self {
        Self {
            own: geteuid(),
            group,
        }
    }
}

/// A peer that may.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    uid: Uid,
    pid: Option<i32>,
    patience: Patience,
}

impl Peer {
    /// The peer of `stream`, or why it may not talk to us. The file's mode says the same; this holds as well where a
    /// descriptor was handed on or the file's mode was changed.
    pub(super) async fn of(stream: &UnixStream, permitted: &Permitted) -> Result<Self, String> {
        let cred = stream.peer_cred().map_err(|error| error.to_string())?;
        let uid = Uid::from_raw(cred.uid());
        let gid = Gid::from_raw(cred.gid());
        let peer = Self {
            uid,
            pid: cred.pid(),
            patience: Patience::default(),
        };
        if uid.is_root() || uid == permitted.own || permitted.group == Some(gid) {
            return Ok(peer);
        }
        if let Some(group) = permitted.group {
            // The user database may be on the network.
            let member = tokio::task::spawn_blocking(move || is_member(uid, gid, group)).await;
            if member.unwrap_or(false) {
                return Ok(peer);
            }
        }
        Err(format!(
            "user {uid} is neither root nor a member of group {GROUP}"
        ))
    }

    pub(super) fn patience(&self) -> Patience {
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
