//! Takes over the instances and sockets of an earlier supervisor, before any tenant is judged.

use super::Fleet;
use super::core::FoundTenant;
use crate::instance::discovery::{Discovery, FoundInstance, FoundListener};
use crate::lifecycle::{AdoptedInstance, Revision, Spec, Time};
use crate::sys;
use brokkr_tenant::TenantName;
use std::collections::BTreeMap;

impl Fleet {
    /// Enters every tenant that has an instance or a socket. Must run before any tenant is judged.
    pub(super) fn adopt(&mut self, finds: Discovery) {
        let Discovery {
            mut instances,
            listeners,
            restarts,
            ..
        } = finds;
        let mut sockets: BTreeMap<TenantName, Vec<FoundListener>> = BTreeMap::new();
        for listener in listeners {
            sockets
                .entry(listener.tenant.clone())
                .or_default()
                .push(listener);
        }
        for name in sockets.keys() {
            instances.entry(name.clone()).or_default();
        }
        let count: usize = instances.values().map(Vec::len).sum();
        for (name, found) in instances {
            let sockets = sockets.remove(&name).unwrap_or_default();
            let restarts = restarts.get(&name).copied().unwrap_or(0);
            self.adopt_tenant(&name, found, sockets, restarts);
        }
        if count > 0 {
            tracing::info!(
                instances = count,
                "instances of an earlier supervisor are taken over as they are"
            );
        }
    }

    fn adopt_tenant(
        &mut self,
        name: &TenantName,
        found: Vec<FoundInstance>,
        sockets: Vec<FoundListener>,
        restarts: u64,
    ) {
        let now = self.now();
        let instances = found.iter().map(|instance| {
            let config = instance.config.clone();
            (config, as_is(instance, now))
        });
        let tenant = FoundTenant {
            instances: instances.collect(),
            sockets: sockets.iter().map(|socket| socket.listen.clone()).collect(),
            restarts,
        };
        for socket in sockets {
            self.manager.adopt_listener(socket);
        }
        for instance in found {
            let FoundInstance {
                id,
                short,
                descriptors,
                adoption,
                ..
            } = instance;
            self.manager.adopt(name, id, short, descriptors, adoption);
        }
        let effects = self.core.adopt(now, name, tenant);
        self.carry_out(effects);
    }
}

/// Describes an instance as it was found; the core sets its `spec`.
fn as_is(found: &FoundInstance, now: Time) -> AdoptedInstance {
    let descriptors = &found.descriptors;
    AdoptedInstance {
        id: found.id,
        pid: descriptors.pid,
        spec: Spec {
            revision: Revision(0),
            pool: 0,
        },
        connections: found.adoption.connections,
        spawned_at: now.saturating_sub(sys::age(descriptors.start_time)),
        stage: found.adoption.stage,
        outdated: found.outdated,
        keeps_address: found.keeps_address,
        deaf: found.deaf,
    }
}
