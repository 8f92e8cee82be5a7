//! Takes over the instances and sockets of an earlier supervisor, before any tenant is judged.

use super::tenant_entry::{LastFacts, TenantEntry};
use super::{Fleet, policy};
use crate::budget::AdmittedTenant;
use crate::instance::discovery::{Discovery, FoundInstance, FoundListener};
use crate::lifecycle::{
    AdoptedInstance, Event, Inheritance, Instance, Lifecycle, Revision, Spec, Time, Want,
};
use crate::{budget_input, sys};
use brokkr_tenant::TenantName;
use std::collections::BTreeMap;

/// Pool assumed for an adopted instance whose configuration is unknown.
const UNKNOWN_POOL: u32 = crate::lifecycle::REPLACEMENT_CONNECTIONS;

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
        let first = self.first_free.get(name).copied().unwrap_or(1);
        let life = Lifecycle::new(policy(&self.config), first, fastrand::u64(..));
        let mut entry = TenantEntry::new(life, self.stopped.contains(name));
        let mut adopted = Vec::new();
        for instance in &found {
            let revision = entry.know(instance.config.as_ref());
            adopted.push(as_is(instance, revision, now));
        }
        let is_open = |instance: &&FoundInstance| {
            let listen = instance.config.as_ref().map(|c| &c.broker().http.listen);
            listen.is_some_and(|listen| sockets.iter().any(|socket| socket.listen == *listen))
        };
        let open = found.iter().zip(&adopted).rev().find(|(f, _)| is_open(f));
        // A socket that belongs to no known instance is recorded under revision 0, an unknown earlier configuration.
        let open = match open {
            Some((_, adopted)) => Some(adopted.spec.revision),
            None => (!sockets.is_empty()).then_some(Revision(0)),
        };
        let inheritance = Inheritance {
            instances: adopted,
            open,
            older_open: sockets.len() > 1,
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
        self.entries.insert(name.clone(), entry);
        self.feed(now, name, Event::Adopted(inheritance));
        self.keep_place(name);
    }

    /// Marks every tenant without a serving instance as stopped, because the list of stopped tenants is lost. A tenant
    /// that runs cannot have been stopped by the operator; any other tenant may have been.
    pub(super) fn stop_who_does_not_run(&mut self) {
        for (name, entry) in &mut self.entries {
            if entry.life.current().is_none_or(Instance::ends_as_planned) {
                tracing::warn!(tenant = %name, "may have been stopped, and is kept so");
                entry.stopped = true;
                self.stopped.insert(name.clone());
            }
        }
    }

    /// Admits a tenant whose instance is running, even when the admitted list has lost the tenant.
    fn keep_place(&mut self, name: &TenantName) {
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        let Some(current) = entry
            .life
            .current()
            .filter(|current| !current.ends_as_planned())
        else {
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
        let config = entry.revisions.get(&spec.revision).cloned();
        entry.accepted = config.clone().map(|config| (spec.revision, config));
        if self
            .admitted
            .iter()
            .all(|admission| admission.tenant != *name)
            && let Some(config) = config
        {
            self.admitted.push(AdmittedTenant {
                tenant: name.clone(),
                pool: spec.pool,
                server: None,
                schema_and_address: Some(budget_input::schema_and_address(
                    &config,
                    &self.view.borrow(),
                )),
            });
        }
    }
}

fn as_is(found: &FoundInstance, revision: Revision, now: Time) -> AdoptedInstance {
    let known = found.config.as_ref();
    let pool = known.map_or(UNKNOWN_POOL, |c| c.broker().database.pool_size.get());
    let descriptors = &found.descriptors;
    AdoptedInstance {
        id: found.id,
        pid: descriptors.pid,
        spec: Spec { revision, pool },
        connections: found.adoption.connections,
        spawned_at: now.saturating_sub(sys::age(descriptors.start_time)),
        stage: found.adoption.stage,
        outdated: found.outdated,
        keeps_address: found.keeps_address,
        deaf: found.deaf,
    }
}
