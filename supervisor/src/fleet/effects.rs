//! Carries out the actions of each tenant's lifecycle.

use super::Fleet;
use super::tenant_entry::TenantEntry;
use crate::config::TenantConfig;
use crate::instance::termination::Termination;
use crate::lifecycle::{Action, Event, InstanceId, Revision, Time};
use crate::servers::ServersView;
use brokkr_tenant::{INSTANCE_CONFIG_VERSION, InstanceConfig, TenantName};
use std::collections::BTreeSet;

impl Fleet {
    /// Gives a tenant's lifecycle an event and carries out the actions that follow.
    pub(super) fn feed(&mut self, now: Time, name: &TenantName, event: Event) {
        let mut queue = vec![event];
        while let Some(event) = queue.pop() {
            let Some(entry) = self.entries.get_mut(name) else {
                return;
            };
            let actions = entry.life.on(now, event);
            if self.leaving.is_some() {
                // The supervisor is leaving: an action begun now could not be finished.
                continue;
            }
            for action in actions {
                queue.extend(self.carry_out(name, action));
            }
        }
        self.keep_soon();
        self.changed();
    }

    /// Carries out one action, and returns the event that follows at once, if any.
    fn carry_out(&mut self, name: &TenantName, action: Action) -> Option<Event> {
        let entry = self.entries.get_mut(name)?;
        let config_of = |entry: &TenantEntry, revision| entry.revisions.get(&revision).cloned();
        match action {
            Action::Listen(revision) => {
                let config = config_of(entry, revision)?;
                Some(
                    match self.manager.listen(name, &config.broker().http.listen) {
                        Ok(()) => Event::Bound(revision),
                        Err(reason) => {
                            Event::BindFailed(revision, config.at("http.listen", &reason))
                        }
                    },
                )
            }
            Action::Unlisten(keep) => {
                let keep = keep.and_then(|revision| config_of(entry, revision));
                let keep = keep.as_ref().map(|c| &c.broker().http.listen);
                if self.manager.unlisten(name, keep) {
                    let release = self.release();
                    if let Some(entry) = self.entries.get_mut(name) {
                        entry.release = release;
                    }
                }
                None
            }
            Action::StandIn(on) => {
                let config = entry
                    .accepted
                    .as_ref()
                    .filter(|_| on)
                    .map(|(_, config)| config.clone());
                self.manager
                    .fallback(name, config.as_ref().map(|c| &c.broker().http.listen));
                None
            }
            Action::AskSlot(kind) => {
                let key = slot_key(entry, &self.view.borrow());
                let urgency = entry.life.urgency();
                let slots = self.slots.entry(key).or_default();
                slots.ask(name, kind, urgency);
                None
            }
            Action::Started => {
                self.slots
                    .values_mut()
                    .for_each(|slots| slots.started(name));
                None
            }
            Action::ReleaseSlot => {
                self.slots
                    .values_mut()
                    .for_each(|slots| slots.release(name));
                None
            }
            Action::Spawn {
                id,
                revision,
                connections,
            } => {
                let config = config_of(entry, revision)?;
                let instance = self.instance_config(name, id, &config, connections);
                self.manager
                    .spawn(instance)
                    .err()
                    .map(|reason| Event::SpawnFailed { id, reason })
            }
            Action::Terminate(id) => {
                self.manager.end(name, id, Termination::Terminate);
                None
            }
            Action::Abort(id) => {
                tracing::warn!(tenant = %name, "SIGABRT, for a core");
                self.manager.end(name, id, Termination::Abort);
                None
            }
            Action::Kill(id) => {
                tracing::warn!(tenant = %name, "SIGKILL");
                self.manager.end(name, id, Termination::Kill);
                None
            }
            Action::SetConnections(id, most) => {
                self.manager.set_connections(name, id, most);
                None
            }
            Action::CountLeftOver { since, of } => {
                let shown = self.shown_of(name, since, &of)?;
                self.manager.count_left_over(name, since, shown)
            }
            Action::Forget => {
                entry.forgotten = true;
                None
            }
        }
    }

    /// Returns the backends of a tenant that the servers of `of` have shown at `since` or later. `None` while a server
    /// is down or was last sampled before `since`.
    fn shown_of(&self, name: &TenantName, since: Time, of: &[Revision]) -> Option<BTreeSet<i32>> {
        let entry = self.entries.get(name)?;
        let (_, accepted) = entry.accepted.as_ref()?;
        let view = self.view.borrow();
        let mut shown = BTreeSet::new();
        for revision in of {
            // An instance of an earlier supervisor may run a configuration that is unknown here.
            let config = entry.revisions.get(revision).unwrap_or(accepted);
            let url = &config.broker().database.url;
            let database = view.endpoint(url).place()?.database;
            let (_, server) = view.server(url).filter(|(_, server)| server.up)?;
            let sampled = server.sampled;
            if sampled.saturating_duration_since(self.booted.into_std()) < since {
                self.servers.count_soon();
                return None;
            }
            let ours = server.ours.get(&(name.clone(), database));
            shown.extend(ours.into_iter().flatten());
        }
        Some(shown)
    }

    fn instance_config(
        &self,
        name: &TenantName,
        id: InstanceId,
        config: &TenantConfig,
        connections: u32,
    ) -> InstanceConfig {
        let state_dir = self.config.state_dir.join("tenants").join(name.as_str());
        InstanceConfig {
            version: INSTANCE_CONFIG_VERSION,
            tenant: name.clone(),
            instance: id.0,
            state_dir,
            connections,
            grace: self.config.stop.grace,
            core: self.config.debug_core,
            config: config.broker().clone(),
        }
    }
}

/// Returns the server whose start slots the tenant takes; empty while the server is unknown.
pub(super) fn slot_key(entry: &TenantEntry, view: &ServersView) -> String {
    entry
        .accepted
        .as_ref()
        .and_then(|(_, config)| view.endpoint(&config.broker().database.url).place())
        .map_or_else(String::new, |place| place.server.as_str().to_owned())
}
