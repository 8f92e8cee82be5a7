//! The single task that owns the state of all tenants.
//!
//! Its inputs are the latest files ([`Desired`]), the latest view of the servers ([`ServersView`]), and queues of the
//! instances' reports and the operators' requests. After each batch of inputs the fleet judges all tenants
//! ([`admission`], pure), tells each tenant's [`Lifecycle`] about changes, passes the actions to the
//! [`InstanceManager`], and publishes one snapshot. It shares no lock and never waits for another task.

mod admission;
mod effects;
pub(crate) mod fd_store;
pub(crate) mod handle;
pub(crate) mod handover;
mod reconcile;
mod requests;
mod snapshot;
pub(crate) mod start_slots;
mod startup_adoption;
pub(crate) mod state_files;
mod tenant_entry;

use crate::budget::{AdmittedTenant, Verdict, format_admitted};
use crate::config::{Desired, Stamp, SupervisorConfig};
use crate::embedded::EmbeddedStatus;
use crate::instance::InstanceManager;
use crate::instance::discovery::Discovery;
use crate::instance::events::{EventKind, InstanceEvent};
use crate::instance::leftover_instances::LeftoverInstance;
use crate::lifecycle::{Event, HangDetector, Instance, Lifecycle, Policy, Time, Want};
use crate::servers::{Servers, ServersView};
use crate::status::Snapshot;
use crate::sys;
use brokkr_tenant::TenantName;
use fd_store::FdStoreInputs;
use handle::Request;
use handover::{ExitProgress, ExitRequest, FleetExit, SuccessorCheck};
use nix::time::ClockId;
use requests::PendingRequests;
use start_slots::StartSlots;
use state_files::StateFile;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tenant_entry::TenantEntry;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// The largest number of reports before the next judgement, so that many reports cost one judgement per batch.
const BATCH: usize = 256;
/// A judgement that takes longer than `LONG` is followed by a pause of the same length, at most `LONGEST_PAUSE`. This
/// happens only with very many tenants.
const LONG: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
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
    manager: InstanceManager,
    reports: mpsc::Receiver<InstanceEvent>,
    desired: watch::Receiver<Arc<Desired>>,
    view: watch::Receiver<Arc<ServersView>>,
    requests: mpsc::Receiver<Request>,
    reloader: Reloader,
    snapshots: watch::Sender<Arc<Snapshot>>,
    servers: Servers,
    entries: BTreeMap<TenantName, TenantEntry>,
    admitted: Vec<AdmittedTenant>,
    stopped: BTreeSet<TenantName>,
    /// True until the files are read, when the list of stopped tenants is lost.
    unsure: bool,
    first_free: BTreeMap<TenantName, u64>,
    /// Instances of an earlier supervisor that could not be ended, so that their tenants must not start.
    left: Vec<LeftoverInstance>,
    open_files: u64,
    /// The broker's program when last seen on disk.
    broker: Option<Stamp>,
    verdict: Verdict,
    slots: BTreeMap<String, StartSlots>,
    orders: PendingRequests,
    kept_admitted: StateFile,
    kept_stopped: StateFile,
    notices: Vec<String>,
    embedded: Option<EmbeddedStatus>,
    surroundings: watch::Receiver<Option<String>>,
    hangs: HangDetector<TenantName>,
    /// The time at which the host booted.
    booted: Instant,
    stopping: bool,
    /// systemd's descriptor store.
    store: Option<fd_store::FdStore>,
    asking: SuccessorCheck,
    leaving: Option<ExitProgress>,
    /// The reason why the last successor of this supervisor did not take over.
    refused_successor: Option<String>,
    /// True when data for `status` may have changed.
    stale: bool,
    /// True when data for the judgement may have changed.
    unjudged: bool,
}

impl Fleet {
    /// Makes a fleet that knows only the instances of an earlier supervisor.
    pub(crate) fn new(mut parts: FleetParts) -> Self {
        let patience = STALL_PATIENCE * parts.config.health.hung_after();
        let state_dir = &parts.config.state_dir;
        let (left, first_free) = (
            std::mem::take(&mut parts.finds.left),
            std::mem::take(&mut parts.finds.first_free),
        );
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
            config: parts.config,
            manager: parts.manager,
            reports: parts.reports,
            desired: parts.desired,
            view: parts.servers.view(),
            servers: parts.servers,
            requests: parts.requests,
            reloader: parts.reloader,
            snapshots: parts.snapshots,
            entries: BTreeMap::new(),
            admitted: parts.admitted,
            stopped: parts.stopped,
            unsure: parts.unsure,
            first_free,
            left,
            open_files: parts.open_files,
            broker: None,
            verdict: Verdict::default(),
            slots: BTreeMap::new(),
            orders: PendingRequests::default(),
            notices: parts.notices,
            embedded: parts.embedded,
            surroundings: parts.surroundings,
            hangs: HangDetector::new(patience),
            booted: booted.unwrap_or(now),
            stopping: false,
            store: None,
            asking: SuccessorCheck::default(),
            leaving: None,
            refused_successor: None,
            stale: true,
            unjudged: true,
        };
        let there = std::mem::take(&mut parts.finds.stored);
        let claimed = std::mem::take(&mut parts.finds.claimed);
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
                () = tokio::time::sleep_until(due) => self.tick(),
            }
            if let Some(at) = self.leave_at() {
                self.settle_leaving(at).await;
                return self.leave().await;
            }
            let began = Instant::now();
            // A flood of reports can starve the arms below it, so time and requests are handled here too.
            if began >= due {
                self.tick();
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
            if self.stopping
                && self
                    .entries
                    .values()
                    .all(|e| e.life.instances().all(Instance::unkillable))
            {
                self.name_the_unkillable();
                break;
            }
        }
        self.publish();
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
        for (name, entry) in &self.entries {
            for instance in entry.life.instances() {
                tracing::error!(tenant = %name, pid = instance.pid, "cannot be killed and is left behind");
            }
        }
    }

    fn changed(&mut self) {
        self.stale = true;
        self.unjudged = true;
    }

    fn now(&self) -> Time {
        self.booted.elapsed()
    }

    fn next_deadline(&self) -> Instant {
        let due = self
            .entries
            .values()
            .filter_map(|e| e.life.next_deadline())
            .min();
        let due = self.booted + due.unwrap_or_else(|| self.now() + Duration::from_secs(3600));
        self.keep_at().map_or(due, |keep| keep.min(due))
    }

    fn begin_stop(&mut self) {
        self.stopping = true;
        self.orders.refuse_all();
        let now = self.now();
        for name in self.all_names() {
            let want = Want::Stopped("the supervisor is stopping".into());
            self.feed(
                now,
                &name,
                Event::Wanted {
                    want,
                    pending: None,
                },
            );
        }
    }

    fn take_report(&mut self, report: InstanceEvent) {
        let now = self.now();
        let Some(entry) = self.entries.get_mut(&report.tenant) else {
            return;
        };
        match report.what {
            EventKind::Life(event) => {
                if let Event::Exited { id, reason, .. } | Event::SpawnFailed { id, reason } = &event
                {
                    let ended = entry.life.instances().find(|i| i.id == *id);
                    if !ended.is_some_and(Instance::ends_as_planned) {
                        let current = entry.life.current();
                        let who = match current.is_some_and(|c| c.serves() && c.id != *id) {
                            true => "a replacement of its broker, which serves on,",
                            false => "its broker",
                        };
                        let what = match event {
                            Event::SpawnFailed { .. } => "could not be started",
                            _ => "has ended",
                        };
                        let why = why_it_ended(ended.and_then(Instance::failure), reason);
                        let broker_pid = ended.and_then(|i| i.pid);
                        tracing::warn!(tenant = %report.tenant, broker_pid, "{who} {what}: {why}");
                        entry.last_exit = Some(why);
                        entry.fallen = Some(*id);
                    }
                    self.manager.ended(&report.tenant, *id);
                    entry.status = None;
                }
                self.feed(now, &report.tenant, event);
            }
            EventKind::Status(id, text) => {
                if entry.life.current().is_some_and(|c| c.id == id) {
                    entry.status = Some(text.clone());
                    self.changed();
                }
                self.feed(now, &report.tenant, Event::Says(id, text));
            }
            EventKind::DeletedMaps(id, files) => {
                entry.deleted_maps = Some((id, files));
                self.changed();
            }
            EventKind::LastWords(id, words) => {
                if entry.fallen == Some(id) {
                    entry.last_words = words;
                    self.changed();
                }
            }
        }
    }

    fn take_files(&mut self) {
        let desired = self.desired.borrow_and_update().clone();
        let policy = policy(&self.config);
        let mut reread = Vec::new();
        for (name, file) in &desired.tenants {
            if !self.entries.contains_key(name) {
                let first = self.first_free.get(name).copied().unwrap_or(1);
                let life = Lifecycle::new(policy, first, fastrand::u64(..));
                let entry = TenantEntry::new(life, self.stopped.contains(name));
                self.entries.insert(name.clone(), entry);
            }
            if let Some(entry) = self.entries.get_mut(name) {
                entry.life.set_policy(policy);
                let read_anew = match (&entry.file, file) {
                    (Some(Ok(old)), Ok(new)) => !Arc::ptr_eq(old, new),
                    _ => false,
                };
                entry.file = Some(file.clone());
                if read_anew {
                    // A file that this file refers to has changed, so a configuration error may be gone.
                    reread.push(name.clone());
                }
            }
        }
        if desired.listed && std::mem::take(&mut self.unsure) {
            self.stop_who_does_not_run();
        }
        for (name, entry) in &mut self.entries {
            if !desired.tenants.contains_key(name) {
                entry.file = None;
                entry.stopped = false;
                // A tenant that returns under this name is a new tenant.
                self.stopped.remove(name);
            }
        }
        if desired.listed {
            self.stopped
                .retain(|name| desired.tenants.contains_key(name));
        }
        let now = self.now();
        for name in reread {
            self.feed(now, &name, Event::Reload);
        }
        self.heed_broker(&desired);
        self.orders.files_read(desired.scan);
        self.changed();
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
            let now = self.now();
            for name in self.all_names() {
                self.feed(now, &name, Event::NewProgram);
            }
        }
    }

    fn take_view(&mut self) {
        self.view.mark_unchanged();
        self.changed();
    }

    fn tick(&mut self) {
        let now = self.now();
        for name in self.all_names() {
            let due = self.entries.get(&name).and_then(|e| e.life.next_deadline());
            if due.is_some_and(|due| due <= now) {
                self.feed(now, &name, Event::Tick);
            }
        }
    }
    fn all_names(&self) -> Vec<TenantName> {
        self.entries.keys().cloned().collect()
    }
}

fn names(set: &BTreeSet<TenantName>) -> String {
    set.iter().map(|name| format!("{name}\n")).collect()
}

fn policy(config: &SupervisorConfig) -> Policy {
    Policy {
        start_timeout: config.start.timeout,
        grace: config.stop.grace,
        probe_failures: config.health.failures,
        core: config.debug_core,
    }
}

/// Waits for a change of the embedded server; for ever if there is none.
async fn changed(embedded: &mut Option<EmbeddedStatus>) {
    match embedded {
        Some(remark) => remark.changed().await,
        None => std::future::pending().await,
    }
}

/// Describes the end of an instance: first our reason for ending it, then its exit, without repeating the same text.
fn why_it_ended(verdict: Option<&str>, how: &str) -> String {
    let Some(verdict) = verdict else {
        return how.to_owned();
    };
    let (exit, said) = how.split_once(": ").unwrap_or((how, ""));
    let how = if verdict.ends_with(said) { exit } else { how };
    format!("{verdict} ({how})")
}

#[cfg(test)]
mod tests {
    use super::why_it_ended;

    #[test]
    fn what_a_broker_said_is_said_once() {
        let late = "not ready within 4s: waiting for the database: full";
        assert_eq!(why_it_ended(None, "exit code 7: x"), "exit code 7: x");
        assert_eq!(
            why_it_ended(Some(late), "exit code 0: waiting for the database: full"),
            format!("{late} (exit code 0)")
        );
        assert_eq!(
            why_it_ended(Some("hung"), "killed by SIGKILL"),
            "hung (killed by SIGKILL)"
        );
    }
}
