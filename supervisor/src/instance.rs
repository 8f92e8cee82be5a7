//! Carries out what the lifecycle decides: listen, spawn, notify, probe, drain, kill; and reports what happens.
//!
//! This folder alone starts and ends processes. Each instance is one task ([`process`]) that owns the process from
//! spawn to reap; beside it, once the instance is ready, one task talks to its private socket ([`private`]). The
//! [`Edge`] holds the other ends of their channels and the listening sockets, belongs to the fleet, and never waits.

pub(crate) mod launch;
pub(crate) mod listen;
pub(crate) mod lock;
mod notify;
pub(crate) mod orphans;
pub(crate) mod postgres;
pub(crate) mod private;
pub(crate) mod process;
pub(crate) mod report;
mod stand_in;
pub(crate) mod survivors;
#[cfg(test)]
mod tests;
pub(crate) mod threads;

use crate::lifecycle::{Event, InstanceId};
use crate::logs::Hub;
use brokkr_tenant::{InstanceConfig, Listen, TenantName};
use launch::Launch;
use listen::Listeners;
use lock::Files;
use private::{ProbeTimes, Wishes};
use process::{End, Process};
use report::{Report, Reporter};
use stand_in::StandIn;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// An instance is told to end twice at most: SIGTERM or SIGABRT, then SIGKILL.
const ENDS: usize = 4;

/// What instances are made with.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Absolute path of `brokkr-broker`.
    pub(crate) program: PathBuf,
    /// `RUNTIME_DIR/instances`.
    pub(crate) folder: PathBuf,
    /// How they are probed.
    pub(crate) times: ProbeTimes,
    /// Soft and hard limit of open files a broker gets.
    pub(crate) open_files: (u64, u64),
}

/// Every socket and process of every tenant.
pub(crate) struct Edge {
    settings: Settings,
    hub: Hub,
    reports: mpsc::Sender<Report>,
    tenants: BTreeMap<TenantName, Ours>,
}

#[derive(Default)]
struct Ours {
    listeners: Listeners,
    stand_in: Option<StandIn>,
    instances: BTreeMap<InstanceId, Handle>,
}

struct Handle {
    ends: mpsc::Sender<End>,
    wishes: watch::Sender<Wishes>,
}

impl Edge {
    /// An edge with nothing open.
    pub(crate) fn new(settings: Settings, hub: Hub, reports: mpsc::Sender<Report>) -> Self {
        Self {
            settings,
            hub,
            reports,
            tenants: BTreeMap::new(),
        }
    }

    /// Where the instances' log lines go.
    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Binds a tenant's address, if it is not bound.
    ///
    /// # Errors
    /// Why not, for the operator.
    pub(crate) fn listen(&mut self, tenant: &TenantName, listen: &Listen) -> Result<(), String> {
        self.tenants
            .entry(tenant.clone())
            .or_default()
            .listeners
            .open(listen)
    }

    /// Closes a tenant's sockets but that of `keep`.
    pub(crate) fn unlisten(&mut self, tenant: &TenantName, keep: Option<&Listen>) {
        if let Some(ours) = self.tenants.get_mut(tenant) {
            ours.stand_in = None;
            ours.listeners.close_all_but(keep);
        }
    }

    /// Answers 503 on a tenant's socket, or ceases to.
    pub(crate) fn stand_in(&mut self, tenant: &TenantName, listen: Option<&Listen>) {
        let Some(ours) = self.tenants.get_mut(tenant) else {
            return;
        };
        ours.stand_in = listen.and_then(|listen| {
            let socket = ours.listeners.get(listen)?;
            StandIn::start(listen, &socket)
                .inspect_err(
                    |error| tracing::warn!(%tenant, %error, "cannot answer 503 in its place"),
                )
                .ok()
        });
    }

    /// Starts an instance; the answer comes as a report.
    ///
    /// # Errors
    /// When its address is not bound.
    pub(crate) fn spawn(
        &mut self,
        config: InstanceConfig,
        server: Result<(), String>,
    ) -> Result<(), String> {
        let (tenant, id) = (config.tenant.clone(), InstanceId(config.instance));
        let ours = self.tenants.entry(tenant.clone()).or_default();
        let listener = ours
            .listeners
            .get(&config.config.http.listen)
            .ok_or_else(|| format!("{} is not bound", config.config.http.listen))?;
        let (ends, ends_receiver) = mpsc::channel(ENDS);
        let (wishes, wishes_receiver) = watch::channel(Wishes {
            connections: config.connections,
            server,
        });
        ours.instances.insert(id, Handle { ends, wishes });
        let process = Process {
            id,
            reporter: Reporter::new(tenant.clone(), self.reports.clone()),
            hub: self.hub.clone(),
            ends: ends_receiver,
            wishes: wishes_receiver,
            times: self.settings.times,
        };
        let launch = Launch {
            program: self.settings.program.clone(),
            files: Files::new(&self.settings.folder, &tenant, id),
            listener,
            config,
            open_files: self.settings.open_files,
        };
        let files = launch.files.clone();
        self.watch(tenant, id, files, tokio::spawn(process.run(launch)));
        Ok(())
    }

    /// A panic in one tenant's task is that tenant's failure. Its process may still be there, and nobody waits for it any
    /// more.
    fn watch(&self, tenant: TenantName, id: InstanceId, files: Files, task: JoinHandle<()>) {
        let reporter = Reporter::new(tenant, self.reports.clone());
        tokio::spawn(async move {
            if let Err(panic) = task.await {
                survivors::end_one(&files);
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
    pub(crate) fn end(&mut self, tenant: &TenantName, id: InstanceId, end: End) {
        if let Some(instance) = self.instance(tenant, id) {
            // Full only when it was told twice already.
            let _ = instance.ends.try_send(end);
        }
    }

    /// The most connections an instance may hold from now on.
    pub(crate) fn set_connections(&mut self, tenant: &TenantName, id: InstanceId, most: u32) {
        if let Some(instance) = self.instance(tenant, id) {
            instance
                .wishes
                .send_if_modified(|w| std::mem::replace(&mut w.connections, most) != most);
        }
    }

    /// The prober's verdict on the server an instance runs on.
    pub(crate) fn set_server(
        &mut self,
        tenant: &TenantName,
        id: InstanceId,
        server: &Result<(), String>,
    ) {
        if let Some(instance) = self.instance(tenant, id) {
            instance.wishes.send_if_modified(|wishes| {
                let changed = wishes.server != *server;
                wishes.server.clone_from(server);
                changed
            });
        }
    }

    /// Forgets an instance that has ended.
    pub(crate) fn ended(&mut self, tenant: &TenantName, id: InstanceId) {
        if let Some(ours) = self.tenants.get_mut(tenant) {
            ours.instances.remove(&id);
        }
    }

    /// Forgets a tenant, its sockets with it.
    pub(crate) fn forget(&mut self, tenant: &TenantName) {
        self.tenants.remove(tenant);
    }

    fn instance(&mut self, tenant: &TenantName, id: InstanceId) -> Option<&mut Handle> {
        self.tenants.get_mut(tenant)?.instances.get_mut(&id)
    }
}
