//! Takes over the instances and sockets of an earlier supervisor, before any tenant is judged.

use super::tenant_entry::LastFacts;
use super::{Core, Effect, TenantSettings};
use crate::budget::AdmittedTenant;
use crate::lifecycle::{
    AdoptedInstance, Event, Inheritance, REPLACEMENT_CONNECTIONS, Revision, Spec, Time, Want,
};
use brokkr_tenant::{Listen, TenantName};
use std::sync::Arc;

/// Pool assumed for an adopted instance whose configuration is unknown.
const UNKNOWN_POOL: u32 = REPLACEMENT_CONNECTIONS;

/// The instances and sockets that a tenant has from an earlier supervisor.
#[derive(Debug)]
pub(crate) struct FoundTenant<C> {
    /// The instances, oldest first, with their configurations where known. The core sets each `spec`.
    pub(crate) instances: Vec<(Option<Arc<C>>, AdoptedInstance)>,
    /// The addresses of the open sockets.
    pub(crate) sockets: Vec<Listen>,
    pub(crate) restarts: u64,
}

impl<C: TenantSettings> Core<C> {
    /// Enters a tenant that has an instance or a socket. Must run before any tenant is judged.
    pub(crate) fn adopt(
        &mut self,
        now: Time,
        name: &TenantName,
        found: FoundTenant<C>,
    ) -> Vec<Effect<C>> {
        let mut entry = self.new_entry(name);
        let sockets = &found.sockets;
        // A socket that belongs to no known instance is recorded under revision 0, an unknown earlier configuration.
        let mut open = (!sockets.is_empty()).then_some(Revision(0));
        let mut instances = Vec::new();
        for (config, mut instance) in found.instances {
            let revision = entry.know(config.as_ref());
            let pool = config.as_ref().map_or(UNKNOWN_POOL, |c| c.pool());
            instance.spec = Spec { revision, pool };
            if config.is_some_and(|config| sockets.contains(config.listen())) {
                open = Some(revision);
            }
            instances.push(instance);
        }
        let inheritance = Inheritance {
            instances,
            open,
            older_open: sockets.len() > 1,
            restarts: found.restarts,
        };
        self.entries.insert(name.clone(), entry);
        let mut effects = Vec::new();
        self.feed(now, name, Event::Adopted(inheritance), &mut effects);
        self.keep_place(name);
        effects
    }

    /// Admits a tenant whose instance is running, even when the admitted list has lost the tenant.
    fn keep_place(&mut self, name: &TenantName) {
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        let Some(current) = entry.life.current().filter(|c| !c.ends_as_planned()) else {
            entry.accepted = None;
            return;
        };
        let spec = Spec {
            revision: current.revision,
            pool: current.pool,
        };
        entry.told = Some(LastFacts {
            want: Want::Run(spec),
            pending: None,
            server: Err("not asked yet".into()),
            overlap: true,
        });
        let config = entry.revisions.get(&spec.revision);
        entry.accepted = config.map(|config| (spec.revision, config.clone()));
        let admitted = &mut self.remembered.admitted;
        if admitted.iter().all(|admission| admission.tenant != *name)
            && let Some(config) = config
        {
            admitted.push(AdmittedTenant {
                tenant: name.clone(),
                pool: spec.pool,
                server: None,
                schema_and_address: Some(config.schema_and_address(&self.view)),
            });
        }
    }
}
