//! Publishes the snapshot that `status` shows, and logs each change of state once.

use super::Fleet;
use super::core::{Stale, TenantEntry, TenantSettings};
use crate::config::{TenantConfig, TenantRole, provides_for_none};
use crate::lifecycle::{LifecycleStatus, Time};
use crate::servers::provision::Provisioner;
use crate::status::{ServerStatus, Snapshot, State, TenantStatus};
use brokkr_tenant::TenantName;
use brokkr_tenant::instance_protocol::IsolationLayer;
use std::sync::Arc;

impl Fleet {
    /// Publishes a snapshot in which the stale part is made anew, and logs the changes of the stale tenants.
    pub(super) fn publish(&mut self, stale: &Stale) {
        let names: Vec<TenantName> = match stale.all {
            true => {
                self.statuses.clear();
                self.core.entries().keys().cloned().collect()
            }
            false => stale.tenants.iter().cloned().collect(),
        };
        for name in &names {
            match self.core.entries().get(name) {
                Some(entry) => {
                    let status = Arc::new(self.tenant(name, entry));
                    self.statuses.insert(name.clone(), status);
                }
                None => {
                    self.statuses.remove(name);
                }
            }
        }
        let tenants: Vec<Arc<TenantStatus>> = self.statuses.values().cloned().collect();
        let mut notices = self.notices.clone();
        let desired = self.desired.borrow();
        notices.extend(desired.problems.iter().map(|p| p.brief.clone()));
        drop(desired);
        notices.extend(
            self.embedded
                .as_ref()
                .and_then(|embedded| embedded.problem()),
        );
        notices.extend(self.refused_successor.clone());
        notices.extend(self.unstored());
        notices.extend(self.surroundings.borrow().clone());
        notices.extend(self.manager.groups().problem());
        notices.extend(self.provisioner.iter().flat_map(Provisioner::notices));
        if let Some(provision) = &self.config.provision {
            let configs = self.core.entries().values().filter_map(|e| e.asked());
            notices.extend(provides_for_none(provision, configs.map(|c| c.role())));
        }
        notices.extend(on_deleted_files(&tenants));
        if let Some(failing) = self.core.hangs().stalled() {
            let patience = self.core.hangs().patience().as_secs();
            notices.push(format!(
                "the host is stalled: {failing} tenants fail their probes together; none is replaced for {patience} s, then one at \
                 a time on trial (restart TENANT does not wait)"
            ));
        }
        let snapshot = Snapshot {
            tenants,
            servers: self.servers(),
            notices,
            taken: Some(std::time::Instant::now()),
        };
        for name in &names {
            if let Some(entry) = self.core.entries_mut().get_mut(name) {
                log_change(name, entry);
            }
        }
        self.snapshots.send_replace(Arc::new(snapshot));
    }

    fn tenant(&self, name: &TenantName, entry: &TenantEntry<TenantConfig>) -> TenantStatus {
        let at = |time: Time| (self.booted + time).into_std();
        let view = entry.life.view();
        let LifecycleStatus {
            state,
            reason,
            pending,
            amiss: _,
            restarts,
            instance,
            next_try,
        } = view;
        let running = instance
            .as_ref()
            .and_then(|i| entry.revisions.get(&i.revision));
        let shown = running
            .or(entry.asked())
            .or(entry.accepted.as_ref().map(|(_, c)| c));
        let alive = instance.as_ref().filter(|i| i.pid.is_some());
        let user = alive.and_then(|i| self.manager.user(name, i.id));
        let servers = self.core.view();
        let place = shown.and_then(|c| c.place(servers));
        let mut warnings: Vec<String> = shown.map(|c| c.warnings.clone()).unwrap_or_default();
        let limits = shown.map(|c| &c.broker().limits);
        let unenforced = limits.and_then(|limits| self.manager.groups().unenforced(limits));
        warnings.extend(unenforced.map(|limits| format!("tenant {name}: {limits}")));
        if self.manager.outside(name) {
            warnings.push(format!(
                "tenant {name}: its broker runs outside its own control group: [limits] is not enforced; `brokkr-supervisor restart {name}` puts that right"
            ));
        }
        TenantStatus {
            name: name.to_string(),
            state,
            reason: match state {
                State::Starting => entry.status.clone().or(reason),
                _ => reason,
            },
            pending,
            pid: alive.and_then(|i| i.pid),
            uid: user.map(|(uid, _)| uid),
            own_uid: user.map(|(_, own)| own),
            spawned: alive.map(|i| at(i.spawned_at)),
            uptime_s: None,
            restarts,
            listen: shown.map(|c| c.broker().http.listen.to_string()),
            schema: shown.map(|c| c.broker().database.schema.as_str().to_owned()),
            pool_size: instance
                .as_ref()
                .map(|i| i.pool)
                .or(shown.map(|c| c.broker().database.pool_size.get())),
            starts: entry.life.starts(),
            role: match (shown, &place) {
                (Some(config), Some(place)) if config.has_own_role() => Some(place.role.clone()),
                (Some(config), None) if config.has_own_role() => None,
                (Some(config), _) => Some(config.url().user().to_owned()),
                (None, _) => None,
            },
            role_note: shown.and_then(|config| match config.role() {
                TenantRole::Own { .. } => None,
                TenantRole::OfUrl(None) => {
                    Some("shared: no [provision] in supervisor.toml".to_owned())
                }
                TenantRole::OfUrl(Some(why)) => Some(format!("not provisioned: {why}")),
            }),
            server: place.map(|place| place.server.to_string()),
            next_try: next_try.map(at),
            next_try_s: None,
            last_words: entry.last_words.clone(),
            last_exit: entry.last_exit.clone(),
            deleted_maps: match (&entry.deleted_maps, alive) {
                (Some((id, files)), Some(instance)) if *id == instance.id => Some(files.clone()),
                _ => None,
            },
            isolation: match (&entry.isolation, alive) {
                (Some((id, isolation)), Some(instance)) if *id == instance.id => {
                    let own = user.filter(|(_, own)| *own);
                    let own = own.map(|(uid, _)| user_layer(uid));
                    Some(own.into_iter().chain(isolation.layers.clone()).collect())
                }
                _ => None,
            },
            warnings,
            problem: entry.file_problem().map(|problem| problem.full.clone()),
        }
    }

    fn servers(&self) -> Vec<ServerStatus> {
        let view = self.core.view();
        let verdict = &self.core.decided().verdict;
        let headroom = self.config.budget.headroom;
        let seen = view.servers.iter().map(|(id, server)| {
            let account = verdict.servers.get(id);
            let facts = &server.facts;
            ServerStatus {
                id: id.to_string(),
                max_connections: Some(facts.max_connections),
                reserved: Some(facts.superuser_reserved + facts.reserved),
                headroom: Some(headroom.max(facts.foreign)),
                capacity: Some(facts.capacity(headroom)),
                committed: account.map_or(0, |a| a.committed),
                in_use: server.up.then_some(server.in_use),
                up: server.up,
                reason: server
                    .reason
                    .clone()
                    .or_else(|| server.warnings.first().cloned()),
            }
        });
        let unseen = verdict
            .servers
            .iter()
            .filter(|(id, _)| !view.servers.contains_key(*id));
        let unseen = unseen.map(|(id, account)| ServerStatus {
            id: id.to_string(),
            max_connections: None,
            reserved: None,
            headroom: None,
            capacity: None,
            committed: account.committed,
            in_use: None,
            up: false,
            reason: Some("not seen yet".into()),
        });
        seen.chain(unseen).collect()
    }
}

/// Describes a user of its own as a layer of an instance's isolation. The supervisor knows this layer from the kernel, so
/// no instance reports it.
fn user_layer(uid: u32) -> IsolationLayer {
    IsolationLayer {
        name: "user".to_owned(),
        on: true,
        detail: format!("{uid}, of this tenant alone, without groups"),
    }
}

/// Returns a notice that names brokers executing files that are no longer on disk.
fn on_deleted_files(tenants: &[Arc<TenantStatus>]) -> Option<String> {
    let mut old = tenants.iter().filter_map(|tenant| {
        let files = tenant.deleted_maps.as_ref()?;
        (!files.is_empty()).then_some((&tenant.name, files))
    });
    let (name, files) = old.next()?;
    let others = match old.count() {
        0 => String::new(),
        1 => " and of one other tenant".to_owned(),
        others => format!(" and of {others} other tenants"),
    };
    Some(format!(
        "the broker of tenant {name}{others} still executes files that are no longer on disk ({}): after an upgrade of \
         libraries, `brokkr-supervisor restart --all --keep-going` puts every broker on the new ones",
        files.join(", "),
    ))
}

/// Logs a tenant's state and reason, only if they changed since the last log line.
fn log_change(name: &TenantName, entry: &mut TenantEntry<TenantConfig>) {
    let LifecycleStatus {
        state,
        reason,
        pending,
        amiss,
        instance,
        ..
    } = entry.life.view();
    let said = (state, reason.clone().or(pending));
    if entry.logged.as_ref() == Some(&said) {
        return;
    }
    let broker_pid = instance.and_then(|i| i.pid);
    let why = said.1.as_deref().unwrap_or("");
    match state {
        State::Refused | State::Backoff | State::Degraded => {
            tracing::warn!(tenant = %name, %state, broker_pid, "{state}: {why}")
        }
        _ if amiss && !why.is_empty() => {
            tracing::warn!(tenant = %name, %state, broker_pid, "{state}: {why}")
        }
        _ if why.is_empty() => tracing::info!(tenant = %name, %state, broker_pid, "{state}"),
        _ => tracing::info!(tenant = %name, %state, broker_pid, "{state}: {why}"),
    }
    entry.logged = Some(said);
}
