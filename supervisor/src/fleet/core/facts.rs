//! Records files, reports and orders.

use super::{Core, Effect, TenantEntry, TenantFile, TenantSettings};
use crate::fleet::handle::Order;
use crate::instance::events::EventKind;
use crate::lifecycle::{Event, Instance, InstanceId, Lifecycle, Time};
use brokkr_tenant::TenantName;
use brokkr_tenant::instance_protocol::Isolation;
use std::collections::BTreeMap;
use std::sync::Arc;

impl<C: TenantSettings> Core<C> {
    pub(super) fn new_entry(&mut self, name: &TenantName) -> TenantEntry<C> {
        let first = self.remembered.first_free.get(name).copied().unwrap_or(1);
        let life = Lifecycle::new(self.settings.policy, first, self.seeds.u64(..));
        TenantEntry::new(life, self.remembered.stopped.contains(name))
    }

    pub(super) fn take_files(
        &mut self,
        now: Time,
        tenants: BTreeMap<TenantName, TenantFile<C>>,
        listed: bool,
        effects: &mut Vec<Effect<C>>,
    ) {
        self.listed = listed;
        let mut reread = Vec::new();
        for (name, file) in &tenants {
            if !self.entries.contains_key(name) {
                let entry = self.new_entry(name);
                self.entries.insert(name.clone(), entry);
            }
            if let Some(entry) = self.entries.get_mut(name) {
                entry.life.set_policy(self.settings.policy);
                let read_anew = match (&entry.file, file) {
                    (Some(Ok(old)), Ok(new)) => !Arc::ptr_eq(old, new),
                    _ => false,
                };
                if read_anew {
                    entry.no_uid = None;
                }
                entry.file = Some(file.clone());
                if read_anew {
                    // A file that this file refers to has changed, so a configuration error may be gone.
                    reread.push(name.clone());
                }
            }
        }
        if listed && std::mem::take(&mut self.remembered.unsure) {
            self.stop_who_does_not_run(effects);
        }
        let stopped = &mut self.remembered.stopped;
        for (name, entry) in &mut self.entries {
            if !tenants.contains_key(name) {
                entry.file = None;
                entry.stopped = false;
                // A tenant that returns under this name is a new tenant.
                stopped.remove(name);
            }
        }
        if listed {
            stopped.retain(|name| tenants.contains_key(name));
        }
        for name in reread {
            self.feed(now, &name, Event::Reload, effects);
        }
        self.changed();
    }

    pub(super) fn take_report(
        &mut self,
        now: Time,
        name: &TenantName,
        report: EventKind,
        effects: &mut Vec<Effect<C>>,
    ) {
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        match report {
            EventKind::Life(event) => {
                if let Event::Exited { id, .. } | Event::SpawnFailed { id, .. } = event {
                    let pid = entry
                        .life
                        .instances()
                        .find(|i| i.id == id)
                        .and_then(|i| i.pid);
                    effects.extend(entry.note_end(&event).map(|text| Effect::Warn {
                        tenant: name.clone(),
                        pid,
                        text,
                    }));
                }
                self.feed(now, name, event, effects);
            }
            EventKind::NoUid(reason) => {
                entry.no_uid = Some(reason);
                self.changed();
            }
            EventKind::Status(id, text) => {
                if entry.life.current().is_some_and(|c| c.id == id) {
                    entry.status = Some(text.clone());
                }
                self.feed(now, name, Event::Says(id, text), effects);
            }
            EventKind::DeletedMaps(id, files) => {
                entry.deleted_maps = Some((id, files));
                self.stale_tenant(name);
            }
            EventKind::Isolation(id, isolation) => {
                self.take_isolation(now, name, id, isolation, effects);
            }
            EventKind::LastWords(id, words) if entry.fallen == Some(id) => {
                entry.last_words = words;
                self.stale_tenant(name);
            }
            EventKind::LastWords(..) => {}
        }
    }

    /// Records an instance's sandbox. An instance that may no longer read a file it needs is replaced, because the
    /// sandbox of its successor is about the file that is there now.
    fn take_isolation(
        &mut self,
        now: Time,
        name: &TenantName,
        id: InstanceId,
        isolation: Isolation,
        effects: &mut Vec<Effect<C>>,
    ) {
        self.stale_tenant(name);
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        let known = entry.isolation.as_ref().filter(|(of, _)| *of == id);
        let stale = known.is_some_and(|(_, known)| !known.unreadable.is_empty());
        let files = isolation.unreadable.join(", ");
        entry.isolation = Some((id, isolation));
        let current = entry.life.current().filter(|current| current.id == id);
        if let Some(current) = current
            && !files.is_empty()
            && !stale
        {
            effects.push(Effect::Warn {
                tenant: name.clone(),
                pid: current.pid,
                text: format!(
                    "its broker is replaced, because its sandbox keeps it from {files}, replaced or removed since it started"
                ),
            });
            self.feed(now, name, Event::Restart, effects);
        }
    }

    pub(super) fn take_order(
        &mut self,
        now: Time,
        name: &TenantName,
        order: Order,
        effects: &mut Vec<Effect<C>>,
    ) {
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        entry.stopped = order == Order::Stop;
        // The operator may have removed a former tenant's folder.
        entry.no_uid = None;
        match order {
            Order::Stop => self.remembered.stopped.insert(name.clone()),
            Order::Start | Order::Restart => self.remembered.stopped.remove(name),
        };
        match order {
            Order::Start => self.feed(now, name, Event::Start, effects),
            Order::Restart => self.feed(now, name, Event::Restart, effects),
            Order::Stop => {}
        }
        self.changed();
    }

    /// Marks every tenant without a serving instance as stopped, because the list of stopped tenants is lost. A tenant
    /// that runs cannot have been stopped by the operator; any other tenant may have been.
    fn stop_who_does_not_run(&mut self, effects: &mut Vec<Effect<C>>) {
        for (name, entry) in &mut self.entries {
            if entry.life.current().is_none_or(Instance::ends_as_planned) {
                entry.stopped = true;
                effects.push(Effect::Warn {
                    tenant: name.clone(),
                    pid: None,
                    text: "may have been stopped, and is kept so".into(),
                });
                self.remembered.stopped.insert(name.clone());
            }
        }
    }
}
