//! Carries out the core's effects on processes, sockets, probers and files.

use super::Fleet;
use super::core::{Effect, Fact, TenantSettings};
use crate::budget::format_admitted;
use crate::config::{TenantConfig, TenantRole, credentials_file};
use crate::instance::termination::Termination;
use crate::instance::threads;
use crate::lifecycle::{Action, Event, InstanceId, Revision, Time};
use crate::servers::provision::RoleWish;
use brokkr_tenant::{
    ByteSize, DatabaseUrl, INSTANCE_CONFIG_VERSION, InstanceConfig, Listen, PoolSize, SchemaName,
    TenantName, TlsPair,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

impl Fleet {
    /// Gives the core a fact and carries out its effects.
    pub(super) fn tell(&mut self, fact: Fact<TenantConfig>) {
        let effects = self.core.on(self.now(), fact);
        if self.core.has_news() {
            self.keep_soon();
        }
        self.carry_out(effects);
    }

    /// Reconciles the tenants with the facts and carries out the effects.
    pub(super) fn reconcile(&mut self) {
        if self.desired.borrow().listed {
            self.guard_databases();
        }
        let before = self.core.hangs().stalled();
        let effects = self.core.reconcile(self.now());
        match (before, self.core.hangs().stalled()) {
            (None, Some(failing)) => tracing::error!(
                failing,
                "so many tenants fail their probes together that the host is stalled: none is replaced"
            ),
            (Some(_), None) => tracing::warn!("the host is no longer stalled"),
            _ => {}
        }
        if self.core.has_news() || !effects.is_empty() {
            self.keep_soon();
        }
        self.carry_out(effects);
    }

    /// Carries out effects, and those of the events that follow at once.
    pub(super) fn carry_out(&mut self, effects: Vec<Effect<TenantConfig>>) {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            // The supervisor is leaving: an action begun now could not be finished.
            if self.leaving.is_some() && !matches!(effect, Effect::Warn { .. }) {
                continue;
            }
            if let Some((tenant, event)) = self.carry_out_one(effect) {
                let fact = Fact::Outcome(tenant, event);
                effects.extend(self.core.on(self.now(), fact));
            }
        }
    }

    /// Carries out one effect, and returns the event that follows at once, if any.
    fn carry_out_one(&mut self, effect: Effect<TenantConfig>) -> Option<(TenantName, Event)> {
        match effect {
            Effect::Act {
                tenant,
                action,
                config,
            } => {
                let event = self.act(&tenant, action, config)?;
                return Some((tenant, event));
            }
            Effect::SetServer { tenant, id, server } => {
                self.manager.set_server(&tenant, id, &server);
            }
            Effect::SetTls { tenant, id, pair } => {
                self.manager.set_tls(&tenant, id, &pair);
            }
            Effect::DescribeHung {
                tenant,
                id,
                pid,
                missed,
            } => {
                let threads = pid.map(threads::describe).unwrap_or_default();
                let detail =
                    format!("hung: {missed} probes of /healthz unanswered; threads: {threads}");
                if let Some(failing) = self.core.hangs().stalled() {
                    tracing::error!(%tenant, failing, "replaced on trial: the host has been stalled for long");
                }
                tracing::error!(%tenant, pid, %detail, "hung, is killed and started again");
                return Some((tenant, Event::ReplaceHung { id, detail }));
            }
            Effect::Warn { tenant, pid, text } => {
                tracing::warn!(%tenant, broker_pid = pid, "{text}");
            }
            Effect::Probe(urls) => self.servers.want(urls),
            Effect::StoreAdmitted => {
                let admitted = &self.core.remembered().admitted;
                self.kept_admitted.set(format_admitted(admitted));
            }
            Effect::StoreStopped => {
                let stopped = &self.core.remembered().stopped;
                self.kept_stopped.set(super::names(stopped));
            }
            Effect::Forget(tenant) => {
                tracing::info!(%tenant, "removed");
                self.manager.forget(&tenant);
                self.manager.hub().forget(&tenant);
            }
        }
        None
    }

    fn act(
        &mut self,
        name: &TenantName,
        action: Action,
        config: Option<Arc<TenantConfig>>,
    ) -> Option<Event> {
        let listen = config.as_ref().map(|c| c.listen());
        match action {
            Action::Listen(revision) => Some(match self.manager.listen(name, listen?) {
                Ok(()) => Event::Bound(revision),
                Err(reason) => Event::BindFailed(revision, config?.at("http.listen", &reason)),
            }),
            Action::Unlisten(_) => {
                if self.manager.unlisten(name, listen) {
                    let release = self.release();
                    if let Some(entry) = self.core.entries_mut().get_mut(name) {
                        entry.release = release;
                    }
                }
                None
            }
            Action::StandIn(_) => {
                let tls = config
                    .as_ref()
                    .is_some_and(|c| c.broker().http.tls.is_some());
                self.manager.fallback(name, listen, tls);
                None
            }
            Action::Spawn {
                id, connections, ..
            } => {
                let config = config.as_ref()?;
                let instance = self.instance_config(name, id, config, connections);
                let failed = self
                    .manager
                    .spawn(instance, self.role_wish(name, config))
                    .err();
                failed.map(|reason| Event::SpawnFailed { id, reason })
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
            // The core keeps the slots and the entries.
            Action::AskSlot(_) | Action::Started | Action::ReleaseSlot | Action::Forget => None,
        }
    }

    /// Returns the backends of a tenant that the servers of `of` have shown at `since` or later. `None` while a server
    /// is down or was last sampled before `since`.
    fn shown_of(&self, name: &TenantName, since: Time, of: &[Revision]) -> Option<BTreeSet<i32>> {
        let view = self.view.borrow();
        let mut shown = BTreeSet::new();
        for config in self.core.configs_of(name, of)? {
            let place = config.place(&view)?;
            let server = view.servers.get(&place.server).filter(|s| s.up)?;
            let sampled = server.sampled;
            if sampled.saturating_duration_since(self.booted.into_std()) < since {
                self.servers.count_soon();
                return None;
            }
            let ours = match config.has_own_role() {
                true => server.ours_by_role.get(&place.role),
                false => server.ours.get(&(name.clone(), place.database)),
            };
            shown.extend(ours.into_iter().flatten());
        }
        Some(shown)
    }

    /// Returns the roles of tenants' URLs: the roles of tenants that are not provisioned, and the shared role.
    fn unprovisioned_roles(&self) -> BTreeSet<String> {
        let configs = self.core.entries().values().filter_map(|e| e.asked());
        let roles = configs.map(|config| match config.role() {
            TenantRole::Own { earlier, .. } => earlier.clone(),
            TenantRole::OfUrl(_) => config.url().user().to_owned(),
        });
        roles.filter(|role| !role.is_empty()).collect()
    }

    /// Has the databases of provisioned tenants closed to other roles, once after the files have been read, because a
    /// tenant that runs on may not be started for long.
    pub(super) fn guard_databases(&mut self) {
        let Some(provisioner) = self.provisioner.as_ref().filter(|_| !self.guarded) else {
            return;
        };
        self.guarded = true;
        let mut databases = BTreeMap::new();
        for (name, entry) in self.core.entries() {
            if let Some(wish) = entry
                .asked()
                .and_then(|config| self.role_wish(name, config))
            {
                databases.entry(wish.admin.clone()).or_insert(wish);
            }
        }
        let provisioner = provisioner.clone();
        tokio::spawn(async move {
            for wish in databases.into_values() {
                provisioner.guard(wish).await;
            }
        });
    }

    /// Returns the role that the tenant's broker logs in as, if it is provisioned.
    pub(super) fn role_wish(&self, name: &TenantName, config: &TenantConfig) -> Option<RoleWish> {
        let TenantRole::Own { admin, earlier } = config.role() else {
            return None;
        };
        let database = &config.broker().database;
        let kilobytes = |size: ByteSize| format!("{}kB", size.get().div_ceil(1024));
        let mut settings = vec![(
            "statement_timeout",
            format!("{}ms", database.statement_timeout.as_millis()),
        )];
        settings.extend(database.work_mem.map(|size| ("work_mem", kilobytes(size))));
        let file_limit = database.temp_file_limit;
        settings.extend(file_limit.map(|size| ("temp_file_limit", kilobytes(size))));
        Some(RoleWish {
            tenant: name.clone(),
            schema: database.schema.clone(),
            url: database.url.clone(),
            admin: (**admin).clone(),
            earlier: earlier.clone(),
            keep_earlier: false,
            keep: self.unprovisioned_roles(),
            own_pool: database.pool_size.get(),
            pool: database.pool_size.get(),
            settings,
            supervisor: brokkr_pg::application_prefix()
                .trim_end_matches(':')
                .to_owned(),
            credentials: credentials_file(&self.config.state_dir, name.as_str()),
        })
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
            isolation_required: self.config.isolation_required,
            config: config.broker().clone(),
        }
    }
}

impl TenantSettings for TenantConfig {
    fn url(&self) -> &DatabaseUrl {
        &self.broker().database.url
    }

    fn probe_url(&self) -> &DatabaseUrl {
        match self.role() {
            TenantRole::Own { admin, .. } => admin,
            TenantRole::OfUrl(_) => self.url(),
        }
    }

    fn has_own_role(&self) -> bool {
        matches!(self.role(), TenantRole::Own { .. })
    }

    fn schema(&self) -> &SchemaName {
        &self.broker().database.schema
    }

    fn listen(&self) -> &Listen {
        &self.broker().http.listen
    }

    fn pool(&self) -> u32 {
        self.broker().database.pool_size.get()
    }

    fn priority(&self) -> i32 {
        let priority = self.broker().supervision.priority;
        priority.clamp(i32::MIN.into(), i32::MAX.into()) as i32
    }

    fn enabled(&self) -> bool {
        self.broker().supervision.enabled
    }

    fn tls(&self) -> Option<&Arc<TlsPair>> {
        let tls = self.broker().http.tls.as_ref()?;
        tls.pair.is_whole().then_some(&tls.pair)
    }

    fn same_instance(&self, other: &Self) -> bool {
        self.digest == other.digest
    }

    fn with_pool(&self, pool: PoolSize) -> Self {
        Self::with_pool(self, pool)
    }

    fn at(&self, key: &str, problem: &str) -> String {
        Self::at(self, key, problem)
    }
}
