//! Notes for the operator about one URL.

use crate::budget::ServerId;

#[derive(Default)]
pub(super) struct ServerNotes {
    pub(super) superuser: Option<String>,
    pub(super) pooler: bool,
    /// The server's name when this URL may not read its identity: the address as it resolves.
    pub(super) address: Option<ServerId>,
    /// True while another URL on this port, not looked at yet, may identify the server. Delays the publication.
    pub(super) unsettled: bool,
}

impl ServerNotes {
    /// Returns the warnings. `known`: the server has been identified, through this URL or another.
    pub(super) fn warnings(&self, server: &ServerId, known: bool) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(role) = &self.superuser {
            warnings.push(format!(
                "role {role} is a superuser: the limits of databases and roles do not bind it, and its \
                 connections eat what is reserved for superusers"
            ));
        }
        if self.pooler {
            warnings.push(
                "a pooler in session mode stands in front: its own limits are not known and not counted"
                    .to_owned(),
            );
        }
        if self.address.is_some() && !known {
            warnings.push(format!(
                "may not be asked which server it is (no EXECUTE on pg_control_system or \
                 pg_postmaster_start_time): its address {server} stands for it, and another address of the \
                 same server may be taken for another server"
            ));
        }
        warnings
    }
}
