//! The login role of a tenant beside the tenant's instances: the role is wanted for all of them together.

use super::{Handle, InstanceManager};
use crate::servers::provision::{Provisioner, RoleWish};
use tokio::sync::oneshot;

impl InstanceManager {
    /// Gives the tenant's role a new password: on the server, then in each of its instances. The result goes to `reply`.
    pub(crate) fn renew_password(
        &mut self,
        wish: RoleWish,
        reply: oneshot::Sender<Result<String, String>>,
    ) {
        let Some(provisioner) = self.settings.provisioner.clone() else {
            let _ = reply.send(Err("no roles are provisioned".to_owned()));
            return;
        };
        let ours = self.tenants.entry(wish.tenant.clone()).or_default();
        let wish = beside(wish, ours.instances.values());
        let told: Vec<_> = ours.instances.values().map(|i| i.wishes.clone()).collect();
        tokio::spawn(async move {
            let renewed = provisioner.renew(wish).await;
            if let Ok(login) = &renewed {
                for wishes in told {
                    wishes.send_modify(|wishes| wishes.password = login.password().cloned());
                }
            }
            // An error means that the client has gone.
            let _ = reply.send(renewed.map(|login| login.user().to_owned()));
        });
    }
}

/// Returns the wish for a role beside these instances: an instance that logs in as the earlier role keeps its rights, and
/// the role may hold the connections of the largest pool.
pub(super) fn beside<'i>(
    mut wish: RoleWish,
    instances: impl Iterator<Item = &'i Handle>,
) -> RoleWish {
    for instance in instances {
        match &instance.role {
            Some(other) => wish.pool = wish.pool.max(other.pool),
            None => wish.keep_earlier = true,
        }
        let connections = instance.wishes.borrow().connections;
        wish.pool = wish.pool.max(connections.unwrap_or(0));
    }
    wish
}

/// Brings a role to how it must be for the only instance of its tenant.
pub(super) async fn settle_role(provisioner: Provisioner, wish: RoleWish) {
    let tenant = wish.tenant.clone();
    if let Err(problem) = provisioner.provision(wish).await {
        tracing::warn!(%tenant, "{problem}; its next start tries it again");
    }
}
