//! The single task that owns the state of all tenants.
//!
//! Its inputs are the latest files ([`Desired`]), the latest view of the servers ([`ServersView`]), and queues of the
//! instances' reports and the operators' requests. It gives each to the [`Core`], which decides, and carries the
//! resulting effects out: on the [`InstanceManager`], the probers and the state files. After each batch of inputs it
//! publishes one snapshot. It shares no lock and never waits for another task.

pub(crate) mod core;
mod effects;
pub(crate) mod fd_store;
pub(crate) mod handle;
pub(crate) mod handover;
mod requests;
mod snapshot;
mod startup_adoption;
pub(crate) mod state_files;

use crate::budget::{AdmittedTenant, format_admitted};
use crate::config::{Desired, Stamp, SupervisorConfig, TenantConfig};
use crate::embedded::EmbeddedStatus;
use crate::instance::InstanceManager;
use crate::instance::discovery::Discovery;
use crate::instance::events::{EventKind, InstanceEvent};
use crate::instance::leftover_instances::LeftoverInstance;
use crate::lifecycle::{Event, Policy, Time};
use crate::servers::provision::Provisioner;
use crate::servers::{Servers, ServersView};
use crate::status::{Snapshot, TenantStatus};
use crate::sys;
use brokkr_tenant::TenantName;
use core::{Core, CoreSettings, Fact, Remembered, Stale};
use fd_store::FdStoreInputs;
use handle::Request;
use handover::{ExitProgress, ExitRequest, FleetExit, SuccessorCheck};
use nix::time::ClockId;
use requests::PendingRequests;
use state_files::StateFile;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// The largest number of reports before the next judgement, so that many reports cost one judgement per batch.
const BATCH: usize = 256;
/// A judgement that takes longer than `LONG` is followed by a pause of the same length, at most `LONGEST_PAUSE`. This
/// happens only with very many tenants.
const LONG: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Most judgements in one turn; a guard against an endless loop, never reached in normal operation.
const MOST_ROUNDS: usize = 8;
/// The time that a host may stall before an instance is replaced on trial, in multiples of the time to find a hung
/// broker.
const STALL_PATIENCE: u32 = 10;

/// The parts of a fleet; see [`Fleet::new`].
pub(crate) struct FleetParts {
    pub(crate) config: Arc<SupervisorConfig>,
    pub(crate) manager: InstanceManager,
    pub(crate) reports: mpsc::Receiver<InstanceEvent>,
    pub(crate) desired: watch::Receiver<Arc<Desired>>,
    pub(crate) servers: Servers,
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) reloader: Reloader,
    pub(crate) snapshots: watch::Sender<Arc<Snapshot>>,
    pub(crate) admitted: Vec<AdmittedTenant>,
    pub(crate) stopped: BTreeSet<TenantName>,
    /// True when the list of stopped tenants is lost.
    pub(crate) unsure: bool,
    /// The thread that provisions roles, if roles are provisioned.
    pub(crate) provisioner: Option<Provisioner>,
    /// The instances that an earlier supervisor left.
    pub(crate) finds: Discovery,
    /// systemd's descriptor store, if there is one.
    pub(crate) keeping: Option<FdStoreInputs>,
    /// The largest number of descriptors that this process may have.
    pub(crate) open_files: u64,
    pub(crate) notices: Vec<String>,
    /// The state of the embedded server, if there is one.
    pub(crate) embedded: Option<EmbeddedStatus>,
    /// The problem with the runtime folder, if any.
    pub(crate) surroundings: watch::Receiver<Option<String>>,
}

/// A channel to the watcher and the probers that requests a reload; the answer is the number of the scan to wait for.
pub(crate) type Reloader = mpsc::Sender<ReloadWish>;

/// A request to read all files and servers again.
#[derive(Debug)]
pub(crate) struct ReloadWish {
    pub(crate) confirm_removals: bool,
    pub(crate) done: tokio::sync::oneshot::Sender<u64>,
}

pub(crate) struct Fleet {
    config: Arc<SupervisorConfig>,
    core: Core<TenantConfig>,
    manager: InstanceManager,
    reports: mpsc::Receiver<InstanceEvent>,
    desired: watch::Receiver<Arc<Desired>>,
    view: watch::Receiver<Arc<ServersView>>,
    requests: mpsc::Receiver<Request>,
    reloader: Reloader,
    snapshots: watch::Sender<Arc<Snapshot>>,
    servers: Servers,
    provisioner: Option<Provisioner>,
    /// True once the databases of provisioned tenants are to be closed.
    guarded: bool,
    /// Instances of an earlier supervisor that could not be ended, so that their tenants must not start.
    left: Vec<LeftoverInstance>,
    /// The broker's program when last seen on disk.
    broker: Option<Stamp>,
    orders: PendingRequests,
    kept_admitted: StateFile,
    kept_stopped: StateFile,
    notices: Vec<String>,
    embedded: Option<EmbeddedStatus>,
    surroundings: watch::Receiver<Option<String>>,
    /// The time at which the host booted.
    booted: Instant,
    /// systemd's descriptor store.
    store: Option<fd_store::FdStore>,
    asking: SuccessorCheck,
    leaving: Option<ExitProgress>,
    /// The reason why the last successor of this supervisor did not take over.
    refused_successor: Option<String>,
    /// The status of every tenant as last published.
    statuses: BTreeMap<TenantName, Arc<TenantStatus>>,
    /// True when the status of every tenant, a server or a notice may have changed outside the core.
    stale: bool,
}

impl Fleet {
    /// Makes a fleet that knows only the instances of an earlier supervisor.
    pub(crate) fn new(mut parts: FleetParts) -> Self {
        let state_dir = &parts.config.state_dir;
        let left = std::mem::take(&mut parts.finds.left);
        // Time counts from boot, so that events before this supervisor's start have a time too.
        let now = Instant::now();
        let booted = now.checked_sub(sys::since_boot(ClockId::CLOCK_MONOTONIC));
        let mut fleet = Self {
            kept_admitted: StateFile::new(
                state_dir.join("admitted"),
                format_admitted(&parts.admitted),
            ),
            // "unknown" differs from every list, so the file is written anew.
            kept_stopped: StateFile::new(
                state_dir.join("stopped"),
                match parts.unsure {
                    true => "unknown".to_owned(),
                    false => names(&parts.stopped),
                },
            ),
            core: Core::new(
                core_settings(&parts.config, parts.open_files),
                Remembered {
                    admitted: parts.admitted,
                    stopped: parts.stopped,
                    unsure: parts.unsure,
                    first_free: std::mem::take(&mut parts.finds.first_free),
                },
                fastrand::Rng::new(),
            ),
            config: parts.config,
            manager: parts.manager,
            reports: parts.reports,
            desired: parts.desired,
            view: parts.servers.view(),
            servers: parts.servers,
            provisioner: parts.provisioner,
            guarded: false,
            requests: parts.requests,
            reloader: parts.reloader,
            snapshots: parts.snapshots,
            left,
            broker: None,
            orders: PendingRequests::default(),
            notices: parts.notices,
            embedded: parts.embedded,
            surroundings: parts.surroundings,
            booted: booted.unwrap_or(now),
            store: None,
            asking: SuccessorCheck::default(),
            leaving: None,
            refused_successor: None,
            statuses: BTreeMap::new(),
            stale: true,
        };
        let there = std::mem::take(&mut parts.finds.stored);
        let claimed = std::mem::take(&mut parts.finds.claimed);
        fleet.tell_leftovers();
        fleet.adopt(parts.finds);
        if let Some(keeping) = parts.keeping {
            fleet.begin_to_keep(keeping, there, &claimed);
        }
        fleet
    }

    /// Runs until it is told to quit, and every instance has ended or may be left.
    pub(crate) async fn run(mut self, mut quit: mpsc::Receiver<ExitRequest>) -> FleetExit {
        self.desired.mark_changed();
        loop {
            let due = self.next_deadline();
            // Every arm is cancel-safe: watches and queues keep untaken values, and the timer is set anew.
            tokio::select! {
                biased;
                Some(quit) = quit.recv() => self.quit(quit),
                Some(report) = self.reports.recv() => {
                    self.take_report(report);
                    for _ in 1..BATCH {
                        let Ok(report) = self.reports.try_recv() else { break };
                        self.take_report(report);
                    }
                }
                Ok(()) = self.desired.changed() => self.take_files(),
                Ok(()) = self.view.changed() => self.take_view(),
                Some(scan) = self.orders.reload_done() => self.orders.scanned(scan),
                Some(request) = self.requests.recv() => self.take_request(request),
                answer = self.asking.answer() => self.succeed(answer),
                () = changed(&mut self.embedded) => {
                    // The store needs the server's descriptors, and the snapshot its problem.
                    self.keep_soon();
                    self.stale = true;
                }
                // Orders that wait for the store are answered below.
                () = fd_store::released(&mut self.store) => {}
                Ok(()) = self.surroundings.changed() => self.stale = true,
                () = tokio::time::sleep_until(due) => self.tell(Fact::Tick),
            }
            if let Some(at) = self.leave_at() {
                self.settle_leaving(at).await;
                return self.leave().await;
            }
            let began = Instant::now();
            // A flood of reports can starve the arms below it, so time and requests are handled here too.
            if began >= due {
                self.tell(Fact::Tick);
            }
            if let Ok(request) = self.requests.try_recv() {
                self.take_request(request);
            }
            self.settle();
            self.keep();
            let took = began.elapsed();
            if took > LONG {
                // Leaves half of the time to other tasks, and collects their reports for a single judgement.
                tokio::time::sleep(took.min(LONGEST_PAUSE)).await;
            }
            if self.core.has_stopped() {
                self.name_the_unkillable();
                break;
            }
        }
        self.publish(&Stale {
            all: true,
            ..Stale::default()
        });
        self.kept_admitted.finish().await;
        self.kept_stopped.finish().await;
        FleetExit::Drained
    }

    /// Waits until `until` for the processes that are being started.
    async fn settle_leaving(&mut self, until: Instant) {
        while !self.can_leave() {
            // Cancel-safe: a report not taken stays in its queue.
            match tokio::time::timeout_at(until, self.reports.recv()).await {
                Ok(Some(report)) => self.take_last_report(report),
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Logs the processes that cannot be killed. The supervisor quits without them, and their locks inform the next
    /// supervisor.
    fn name_the_unkillable(&self) {
        for (name, entry) in self.core.entries() {
            for instance in entry.life.instances() {
                tracing::error!(tenant = %name, pid = instance.pid, "cannot be killed and is left behind");
            }
        }
    }

    fn now(&self) -> Time {
        self.booted.elapsed()
    }

    fn next_deadline(&self) -> Instant {
        let due = self.core.next_deadline();
        let due = self.booted + due.unwrap_or_else(|| self.now() + Duration::from_secs(3600));
        self.keep_at().map_or(due, |keep| keep.min(due))
    }

    fn begin_stop(&mut self) {
        self.orders.refuse_all();
        self.tell(Fact::Stopping);
    }

    fn take_report(&mut self, report: InstanceEvent) {
        let InstanceEvent { tenant, what } = report;
        if let EventKind::Life(Event::Exited { id, .. } | Event::SpawnFailed { id, .. }) = what {
            self.manager.ended(&tenant, id);
        }
        self.tell(Fact::Report(tenant, what));
    }

    fn take_files(&mut self) {
        let desired = self.desired.borrow_and_update().clone();
        self.tell(Fact::Files {
            tenants: desired.tenants.clone(),
            listed: desired.listed,
        });
        self.heed_broker(&desired);
        self.orders.files_read(desired.scan);
    }

    /// Replaces every instance by overlap after a change of the broker's program, within slots and budget. A tenant
    /// whose new instance does not become ready keeps the old instance.
    fn heed_broker(&mut self, desired: &Desired) {
        let Some(stamp) = &desired.broker else {
            return;
        };
        let before = self.broker.replace(stamp.clone());
        if before.is_some_and(|before| !before.is_same_program(stamp)) {
            tracing::info!(broker = %self.config.broker.display(), "the broker's program has changed: every instance is replaced");
            self.tell(Fact::NewProgram);
        }
    }

    fn take_view(&mut self) {
        let view = self.view.borrow_and_update().clone();
        self.tell(Fact::Servers(view));
    }

    /// Reconciles the tenants with the facts, until nothing changes any more.
    fn settle(&mut self) {
        loop {
            self.note_leftovers();
            for _ in 0..MOST_ROUNDS {
                self.reconcile();
                if !self.core.is_unsettled() {
                    break;
                }
            }
            let mut stale = self.core.take_stale();
            stale.all |= std::mem::take(&mut self.stale);
            if stale.general || stale.all || !stale.tenants.is_empty() {
                self.publish(&stale);
            }
            // Answering may tell the next tenant of a rolling restart. The loop ends because each tenant is told once.
            if !self.answer_orders() {
                break;
            }
        }
    }

    /// Forgets the instances of an earlier supervisor that have ended since.
    fn note_leftovers(&mut self) {
        let before = self.left.len();
        self.left.retain(|left| !left.gone());
        if self.left.len() != before {
            self.tell_leftovers();
        }
    }

    fn tell_leftovers(&mut self) {
        let left = self.left.iter().rev();
        let left = left.map(|left| (left.tenant.clone(), left.to_string()));
        self.tell(Fact::Leftovers(left.collect()));
    }
}

fn names(set: &BTreeSet<TenantName>) -> String {
    set.iter().map(|name| format!("{name}\n")).collect()
}

fn core_settings(config: &SupervisorConfig, open_files: u64) -> CoreSettings {
    CoreSettings {
        policy: Policy {
            start_timeout: config.start.timeout,
            grace: config.stop.grace,
            probe_failures: config.health.failures,
            core: config.debug_core,
        },
        parallelism: config.start.parallelism,
        headroom: config.budget.headroom,
        stall_patience: STALL_PATIENCE * config.health.hung_after(),
        open_files,
    }
}

/// Waits for a change of the embedded server; for ever if there is none.
async fn changed(embedded: &mut Option<EmbeddedStatus>) {
    match embedded {
        Some(remark) => remark.changed().await,
        None => std::future::pending().await,
    }
}
