//! Carries out the lifecycle's decisions (listen, spawn, notify, probe, drain, kill) and reports the results.
//!
//! Only this folder starts and ends processes. Each instance has one task ([`process`]) that owns the process from
//! spawn to reap, and once the instance is ready a second task for its private socket ([`probe_client`]). The [`InstanceManager`]
//! belongs to the fleet, holds the listening sockets and the channels to these tasks, and never waits.

pub(crate) mod cgroup;
pub(crate) mod descriptors;
pub(crate) mod discovery;
pub(crate) mod events;
mod fallback_503;
mod fd_recovery;
pub(crate) mod leftover_instances;
pub(crate) mod listeners;
pub(crate) mod lock;
pub(crate) mod notify;
mod own_role;
pub(crate) mod postgres;
pub(crate) mod probe_client;
pub(crate) mod process;
pub(crate) mod reaper;
pub(crate) mod spawn;
mod stale_backends;
mod state_folder;
mod state_query;
pub(crate) mod successor;
pub(crate) mod tenant_uids;
pub(crate) mod termination;
#[cfg(test)]
mod tests;
pub(crate) mod threads;

use crate::handover::fd_names::Ids;
use crate::lifecycle::{Event, InstanceId, Time};
use crate::logs::Hub;
use crate::servers::provision::{Provisioner, RoleWish};
pub(crate) use brokkr_tenant::instance_protocol::ServerOutage;
use brokkr_tenant::{InstanceConfig, LimitsConfig, Listen, TenantName, TlsPair};
use cgroup::CgroupTree;
use descriptors::{DescriptorCell, Descriptors};
use discovery::FoundListener;
use events::{EventSender, InstanceEvent};
use fallback_503::{Fallback, UnansweredCount};
use listeners::{Listener, Listeners};
use lock::InstanceFiles;
use own_role::{beside, settle_role};
use probe_client::{InstanceSettings, ProbeTimes};
use process::{AdoptedProcess, InstanceTask};
use spawn::SpawnRequest;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use tenant_uids::TenantUids;
use termination::Termination;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// The queue of orders to end: an instance gets at most two, SIGTERM or SIGABRT, then SIGKILL.
const ENDS: usize = 4;

/// The settings for all instances.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Absolute path of `brokkr-broker`.
    pub(crate) program: PathBuf,
    /// `RUNTIME_DIR/instances`.
    pub(crate) folder: PathBuf,
    /// The timing of probes.
    pub(crate) times: ProbeTimes,
    /// The soft and hard limit of open files of a broker.
    pub(crate) open_files: (u64, u64),
    /// The parent of the instances' cgroups.
    pub(crate) groups: CgroupTree,
    /// The thread that provisions roles, if roles are provisioned.
    pub(crate) provisioner: Option<Provisioner>,
    /// The user ids of tenants, where each tenant has its own.
    pub(crate) uids: Option<TenantUids>,
}

/// All sockets and processes of all tenants.
pub(crate) struct InstanceManager {
    settings: Settings,
    hub: Hub,
    reports: mpsc::Sender<InstanceEvent>,
    tenants: BTreeMap<TenantName, ManagedInstance>,
    answering: UnansweredCount,
    /// The ids of descriptors that may be handed over.
    ids: Ids,
    /// Instances that could not be put back into a cgroup.
    outside: BTreeMap<TenantName, InstanceId>,
}

#[derive(Default)]
struct ManagedInstance {
    listeners: Listeners,
    fallback: Option<Fallback>,
    instances: BTreeMap<InstanceId, Handle>,
    counting: Option<JoinHandle<()>>,
}

struct Handle {
    ends: mpsc::Sender<Termination>,
    wishes: watch::Sender<InstanceSettings>,
    files: InstanceFiles,
    slot: DescriptorCell,
    short: u32,
    /// The tenant's role as this start wanted it; `None` for the role of the tenant's URL, and for an adopted instance.
    role: Option<RoleWish>,
}

/// The parts of an instance that may be handed over.
pub(crate) struct InstanceHandover<'e> {
    /// The id of its descriptors.
    pub(crate) short: u32,
    pub(crate) files: &'e InstanceFiles,
    /// Its descriptors; `None` while it is being started.
    pub(crate) descriptors: Option<&'e Descriptors>,
}

impl InstanceManager {
    /// Makes an edge with nothing open.
    pub(crate) fn new(settings: Settings, hub: Hub, reports: mpsc::Sender<InstanceEvent>) -> Self {
        Self {
            settings,
            hub,
            reports,
            tenants: BTreeMap::new(),
            answering: UnansweredCount::new(),
            ids: Ids::default(),
            outside: BTreeMap::new(),
        }
    }

    /// Returns the limits of open files of brokers.
    pub(crate) fn open_files(&self) -> (u64, u64) {
        self.settings.open_files
    }

    /// Returns the parent of the instances' cgroups.
    pub(crate) fn groups(&self) -> &CgroupTree {
        &self.settings.groups
    }

    /// Returns the hub for the instances' log lines.
    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Binds a tenant's address, unless it is bound already. The error text is for the operator.
    pub(crate) fn listen(&mut self, tenant: &TenantName, listen: &Listen) -> Result<(), String> {
        self.tenants
            .entry(tenant.clone())
            .or_default()
            .listeners
            .open(listen, &mut self.ids)
    }

    /// Closes a tenant's sockets except that of `keep`. Returns true when any was open.
    pub(crate) fn unlisten(&mut self, tenant: &TenantName, keep: Option<&Listen>) -> bool {
        let Some(ours) = self.tenants.get_mut(tenant) else {
            return false;
        };
        ours.fallback = None;
        let open = ours.listeners.iter().count();
        ours.listeners.close_all_but(keep, &mut self.ids);
        ours.listeners.iter().count() < open
    }

    /// Starts or stops answering 503 on a tenant's socket, or closing its connections where its clients speak `tls`.
    pub(crate) fn fallback(&mut self, tenant: &TenantName, listen: Option<&Listen>, tls: bool) {
        let Some(ours) = self.tenants.get_mut(tenant) else {
            return;
        };
        ours.fallback = listen.and_then(|listen| {
            if let Err(error) = ours.listeners.renew(listen, &mut self.ids) {
                tracing::warn!(%tenant, %error, "its socket can no longer be reached");
            }
            let socket = ours.listeners.get(listen)?;
            Fallback::start(listen, &socket, tls, &self.answering)
                .inspect_err(
                    |error| tracing::warn!(%tenant, %error, "cannot answer 503 in its place"),
                )
                .ok()
        });
    }

    /// Starts an instance, with the role `own` if the tenant has its own; the result comes as a report.
    ///
    /// # Errors
    /// When the instance's address is not bound, or is a socket path that was removed and cannot be bound anew.
    pub(crate) fn spawn(
        &mut self,
        config: InstanceConfig,
        own: Option<RoleWish>,
    ) -> Result<(), String> {
        let (tenant, id) = (config.tenant.clone(), InstanceId(config.instance));
        let listen = &config.config.http.listen;
        let ours = self.tenants.entry(tenant.clone()).or_default();
        ours.listeners.renew(listen, &mut self.ids)?;
        let listener = ours
            .listeners
            .get(listen)
            .ok_or_else(|| format!("{listen} is not bound"))?;
        let role = own.map(|wish| beside(wish, ours.instances.values()));
        let provisioner = self.settings.provisioner.clone();
        let files = InstanceFiles::new(&self.settings.folder, &tenant, id);
        let launch = SpawnRequest {
            role: provisioner.zip(role.clone()),
            login: None,
            program: self.settings.program.clone(),
            files: files.clone(),
            listener,
            open_files: self.settings.open_files,
            group: self.settings.groups.of(&tenant, id),
            uids: self.settings.uids.clone(),
            config,
        };
        let wishes = InstanceSettings {
            connections: Some(launch.config.connections),
            // An instance is started only while its server is up.
            server: Some(Ok(())),
            password: None,
            tls: launch
                .config
                .config
                .http
                .tls
                .as_ref()
                .map(|tls| tls.pair.clone()),
        };
        let short = self.ids.take();
        let process = self.process(&tenant, id, wishes, files.clone(), short);
        if let Some(handle) = self.instance(&tenant, id) {
            handle.role = role;
        }
        self.watch(tenant, id, files, tokio::spawn(process.run(launch)));
        Ok(())
    }

    /// Adopts an instance of an earlier supervisor.
    pub(crate) fn adopt(
        &mut self,
        tenant: &TenantName,
        id: InstanceId,
        short: Option<u32>,
        descriptors: Descriptors,
        adoption: AdoptedProcess,
    ) {
        let wishes = InstanceSettings {
            // `None` keeps the values that the last supervisor set.
            connections: None,
            server: None,
            password: None,
            tls: None,
        };
        let files = adoption.files.clone();
        let short = self.claim(short);
        let process = self.process(tenant, id, wishes, files.clone(), short);
        // A process that has ended has no cgroup any more, even before it is reaped.
        let lives = !fd_recovery::has_ended(&descriptors.pidfd);
        if lives {
            self.put_back(tenant, id, descriptors.pid, &adoption.limits);
        }
        process.slot.fill(descriptors);
        self.watch(
            tenant.clone(),
            id,
            files,
            tokio::spawn(process.adopt(adoption)),
        );
    }

    fn put_back(&mut self, tenant: &TenantName, id: InstanceId, pid: i32, limits: &LimitsConfig) {
        match self.settings.groups.put_back(tenant, id, pid, limits) {
            Ok(false) => {}
            Ok(true) => {
                tracing::warn!(%tenant, pid, "its broker ran outside its own control group, and is put back into one");
            }
            Err(error) => {
                tracing::error!(%tenant, pid, "its broker runs outside its own control group and cannot be put back: {error}");
                self.outside.insert(tenant.clone(), id);
            }
        }
    }

    /// Returns true when an instance of the tenant is outside the cgroup it should have.
    pub(crate) fn outside(&self, tenant: &TenantName) -> bool {
        self.outside.contains_key(tenant)
    }

    /// Adopts a listening socket.
    pub(crate) fn adopt_listener(&mut self, found: FoundListener) {
        let listener = Listener {
            listen: found.listen,
            socket: Arc::new(found.socket),
            short: self.claim(found.short),
        };
        let ours = self.tenants.entry(found.tenant).or_default();
        ours.listeners.adopt(listener);
    }

    fn claim(&mut self, short: Option<u32>) -> u32 {
        short
            .filter(|short| self.ids.claim(*short))
            .unwrap_or_else(|| self.ids.take())
    }

    fn process(
        &mut self,
        tenant: &TenantName,
        id: InstanceId,
        wishes: InstanceSettings,
        files: InstanceFiles,
        short: u32,
    ) -> InstanceTask {
        let (ends, ends_receiver) = mpsc::channel(ENDS);
        let (wishes, wishes_receiver) = watch::channel(wishes);
        let slot = DescriptorCell::default();
        let handle = Handle {
            ends,
            wishes,
            files,
            slot: slot.clone(),
            short,
            role: None,
        };
        let ours = self.tenants.entry(tenant.clone()).or_default();
        ours.instances.insert(id, handle);
        InstanceTask {
            id,
            reporter: EventSender::new(tenant.clone(), self.reports.clone()),
            hub: self.hub.clone(),
            ends: ends_receiver,
            wishes: wishes_receiver,
            times: self.settings.times,
            slot,
            group: self.settings.groups.of(tenant, id),
        }
    }

    /// Watches an instance's task. A panic fails this tenant only; its process may still run without a task that waits
    /// for it.
    fn watch(
        &self,
        tenant: TenantName,
        id: InstanceId,
        files: InstanceFiles,
        task: JoinHandle<()>,
    ) {
        let reporter = EventSender::new(tenant, self.reports.clone());
        tokio::spawn(async move {
            if let Err(panic) = task.await {
                leftover_instances::end_one(&files);
                let reason = format!("the supervisor failed at it: {panic}");
                reporter
                    .life(Event::Exited {
                        id,
                        reason,
                        configuration: false,
                    })
                    .await;
            }
        });
    }

    /// Tells an instance to end.
    pub(crate) fn end(&mut self, tenant: &TenantName, id: InstanceId, end: Termination) {
        if let Some(instance) = self.instance(tenant, id) {
            // The queue is full only when the instance has been told already.
            let _ = instance.ends.try_send(end);
        }
    }

    /// Sets the largest number of connections that an instance may hold.
    pub(crate) fn set_connections(&mut self, tenant: &TenantName, id: InstanceId, most: u32) {
        if let Some(instance) = self.instance(tenant, id) {
            instance
                .wishes
                .send_if_modified(|w| w.connections.replace(most) != Some(most));
        }
    }

    /// Counts the backends shown by the server that belong to no instance of the tenant. Returns the count at once when
    /// there is no instance to ask; otherwise reports it later. Runs one count at a time.
    pub(crate) fn count_left_over(
        &mut self,
        tenant: &TenantName,
        since: Time,
        shown: BTreeSet<i32>,
    ) -> Option<Event> {
        let ours = self.tenants.get_mut(tenant);
        let Some(ours) = ours.filter(|ours| !ours.instances.is_empty() && !shown.is_empty()) else {
            let count = shown.len() as u32;
            return Some(Event::LeftOver { since, count });
        };
        if ours.counting.as_ref().is_none_or(JoinHandle::is_finished) {
            let paths = ours.instances.values().map(|i| i.files.private());
            let paths: Vec<PathBuf> = paths.collect();
            let reporter = EventSender::new(tenant.clone(), self.reports.clone());
            ours.counting = Some(tokio::spawn(async move {
                let count = stale_backends::count(paths, shown).await;
                reporter.life(Event::LeftOver { since, count }).await;
            }));
        }
        None
    }

    /// Passes on the prober's verdict on the server of an instance.
    pub(crate) fn set_server(
        &mut self,
        tenant: &TenantName,
        id: InstanceId,
        server: &Result<(), ServerOutage>,
    ) {
        if let Some(instance) = self.instance(tenant, id) {
            instance.wishes.send_if_modified(|wishes| {
                let changed = wishes.server.as_ref() != Some(server);
                wishes.server = Some(server.clone());
                changed
            });
        }
    }

    /// Gives an instance the certificate and key for its new handshakes.
    pub(crate) fn set_tls(&mut self, tenant: &TenantName, id: InstanceId, pair: &Arc<TlsPair>) {
        if let Some(instance) = self.instance(tenant, id) {
            instance.wishes.send_if_modified(|wishes| {
                let changed = wishes.tls.as_ref() != Some(pair);
                wishes.tls = Some(pair.clone());
                changed
            });
        }
    }

    /// Forgets an instance that has ended. The role of an instance that stays is told that it is alone.
    pub(crate) fn ended(&mut self, tenant: &TenantName, id: InstanceId) {
        let Some(ours) = self.tenants.get_mut(tenant) else {
            return;
        };
        let Some(handle) = ours.instances.remove(&id) else {
            return;
        };
        self.ids.free(handle.short);
        self.outside
            .retain(|of, outside| of != tenant || *outside != id);
        let mut others = ours.instances.values_mut();
        if let (Some(last), None) = (others.next(), others.next())
            && let Some(wish) = &mut last.role
            && let Some(provisioner) = &self.settings.provisioner
        {
            let told = wish.clone();
            wish.keep_earlier = false;
            wish.pool = wish.own_pool;
            if *wish != told {
                tokio::spawn(settle_role(provisioner.clone(), wish.clone()));
            }
        }
    }

    /// Forgets a tenant and closes its sockets.
    pub(crate) fn forget(&mut self, tenant: &TenantName) {
        if let Some(mut ours) = self.tenants.remove(tenant) {
            ours.listeners.close_all_but(None, &mut self.ids);
        }
    }

    /// Iterates over all open listening sockets with their tenants.
    pub(crate) fn listeners(&self) -> impl Iterator<Item = (&TenantName, &Listener)> {
        self.tenants
            .iter()
            .flat_map(|(tenant, ours)| ours.listeners.iter().map(move |l| (tenant, l)))
    }

    /// Returns the user of an instance, and true when the user belongs to its tenant alone.
    pub(crate) fn user(&self, tenant: &TenantName, id: InstanceId) -> Option<(u32, bool)> {
        let handle = self.tenants.get(tenant)?.instances.get(&id)?;
        let uid = handle.slot.get()?.uid?;
        let uids = self.settings.uids.as_ref();
        Some((uid, uids.is_some_and(|uids| uids.range().contains(uid))))
    }

    /// Returns the parts of an instance that may be handed over.
    pub(crate) fn passed(
        &self,
        tenant: &TenantName,
        id: InstanceId,
    ) -> Option<InstanceHandover<'_>> {
        let handle = self.tenants.get(tenant)?.instances.get(&id)?;
        Some(InstanceHandover {
            short: handle.short,
            files: &handle.files,
            descriptors: handle.slot.get(),
        })
    }

    /// Stops answering 503 for tenants, and waits until every accepted connection has its answer, because no other
    /// process can give it.
    pub(crate) async fn cease_answering(&mut self) {
        for ours in self.tenants.values_mut() {
            ours.fallback = None;
        }
        std::mem::replace(&mut self.answering, UnansweredCount::new())
            .finish()
            .await;
    }

    /// Gives up every socket unchanged, so that another supervisor can use it.
    pub(crate) fn leave(&mut self) {
        for ours in self.tenants.values_mut() {
            ours.listeners.leave();
        }
    }

    fn instance(&mut self, tenant: &TenantName, id: InstanceId) -> Option<&mut Handle> {
        self.tenants.get_mut(tenant)?.instances.get_mut(&id)
    }
}
