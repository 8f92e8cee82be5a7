//! Takes back the listening socket of an instance: from the inherited descriptors, or else out of the process.

use super::super::fd_recovery;
use super::{FoundListener, Search};
use crate::config::ConfigSummary;
use crate::handover::fd_names::FdKind;
use brokkr_tenant::TenantName;
use std::os::fd::{AsFd, OwnedFd};

impl Search {
    /// Makes sure that this supervisor holds the instance's listening socket. Returns false when it cannot.
    pub(super) fn has_listener(
        &mut self,
        tenant: &TenantName,
        pid: i32,
        pidfd: &OwnedFd,
        what: Option<&ConfigSummary>,
    ) -> bool {
        let Some(what) = what else {
            self.remark(tenant, pid, "it does not say where it listens");
            return false;
        };
        let listen = &what.listen;
        if self
            .finds
            .listeners
            .iter()
            .any(|l| l.tenant == *tenant && l.listen == *listen)
        {
            return true;
        }
        // No index says which tenant an inherited socket belongs to, but its address does.
        let left = self
            .descriptors
            .iter()
            .find(|(name, fd)| name.kind == FdKind::Listener && fd_recovery::listens_on(fd, listen))
            .map(|(name, _)| *name);
        let socket = match left.and_then(|name| self.claim(name)) {
            Some(socket) => Ok(socket),
            None => fd_recovery::listener(pidfd.as_fd(), listen),
        };
        match socket {
            Ok(socket) => {
                self.finds.listeners.push(FoundListener {
                    tenant: tenant.clone(),
                    listen: listen.clone(),
                    short: left.map(|name| name.id),
                    socket,
                });
                true
            }
            Err(error) => {
                self.remark(
                    tenant,
                    pid,
                    &format!("its socket cannot be taken back ({error}): it is drained, then started again, and nothing accepts in between"),
                );
                false
            }
        }
    }
}
