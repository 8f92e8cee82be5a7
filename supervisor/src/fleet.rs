//! The one task that owns every tenant's state.
//!
//! Facts come in: the files ([`Desired`], the latest), the servers ([`ServersView`], the latest), the instances'
//! reports and the operators' requests (queues). After each batch of facts the fleet judges everybody
//! ([`judge()`], pure), tells each tenant's [`Lifecycle`] what changed, hands the actions to the [`Edge`], and
//! publishes one picture. Nobody shares a lock with it, and it never waits for anybody.

mod entry;
pub(crate) mod handle;
mod judge;
mod orders;
pub(crate) mod persist;
mod picture;
mod slots;

use crate::budget::{Admission, Verdict, format_admitted};
use crate::config::{Desired, Supervisor, TenantConfig};
use crate::instance::Edge;
use crate::instance::process::End;
use crate::instance::report::{Report, What};
use crate::lifecycle::{
    Action, Event, Hang, InstanceId, Lifecycle, Policy, Pulse, Spec, Time, Want, stalled_or_hung,
};
use crate::servers::{Servers, ServersView};
use crate::status::Snapshot;
use brokkr_tenant::{INSTANCE_CONFIG_VERSION, InstanceConfig, TenantName};
use entry::{Entry, Told};
use handle::Request;
use judge::{Judgement, Ruling, judge};
use orders::Orders;
use persist::Kept;
use slots::{Limits, Slots};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Facts taken in before the next judgement, so that a storm of reports costs one judgement a batch.
const BATCH: usize = 256;
/// Judgements in one turn; a bound against a mistake here, not a limit anybody should meet.
const MOST_ROUNDS: usize = 8;

/// What the fleet is made of; see [`Fleet::new`].
pub(crate) struct Parts {
    pub(crate) config: Arc<Supervisor>,
    pub(crate) edge: Edge,
    pub(crate) reports: mpsc::Receiver<Report>,
    pub(crate) desired: watch::Receiver<Arc<Desired>>,
    pub(crate) servers: Servers,
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) reloader: Reloader,
    pub(crate) snapshots: watch::Sender<Arc<Snapshot>>,
    pub(crate) admitted: Vec<Admission>,
    pub(crate) stopped: BTreeSet<TenantName>,
    pub(crate) first_free: BTreeMap<TenantName, u64>,
    pub(crate) notices: Vec<String>,
}

/// Asks the watcher and the probers to look again; answers with the number of the scan to wait for.
pub(crate) type Reloader = mpsc::Sender<ReloadWish>;

/// One request to look at everything again.
#[derive(Debug)]
pub(crate) struct ReloadWish {
    pub(crate) confirm_removals: bool,
    pub(crate) done: tokio::sync::oneshot::Sender<u64>,
}

/// The fleet.
pub(crate) struct Fleet {
    config: Arc<Supervisor>,
    edge: Edge,
    reports: mpsc::Receiver<Report>,
    desired: watch::Receiver<Arc<Desired>>,
    view: watch::Receiver<Arc<ServersView>>,
    requests: mpsc::Receiver<Request>,
    reloader: Reloader,
    snapshots: watch::Sender<Arc<Snapshot>>,
    servers: Servers,
    entries: BTreeMap<TenantName, Entry>,
    admitted: Vec<Admission>,
    stopped: BTreeSet<TenantName>,
    first_free: BTreeMap<TenantName, u64>,
    verdict: Verdict,
    slots: BTreeMap<String, Slots>,
    orders: Orders,
    kept_admitted: Kept,
    kept_stopped: Kept,
    notices: Vec<String>,
    stalled: Option<usize>,
    started: Instant,
    stopping: bool,
    /// Something `status` shows may have changed.
    stale: bool,
    /// Something the judgement rests on may have changed.
    unjudged: bool,
}

impl Fleet {
    /// A fleet that has seen nothing yet.
    pub(crate) fn new(parts: Parts) -> Self {
        let state_dir = &parts.config.state_dir;
        Self {
            kept_admitted: Kept::new(state_dir.join("admitted"), format_admitted(&parts.admitted)),
            kept_stopped: Kept::new(state_dir.join("stopped"), names(&parts.stopped)),
            config: parts.config,
            edge: parts.edge,
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
            first_free: parts.first_free,
            verdict: Verdict::default(),
            slots: BTreeMap::new(),
            orders: Orders::default(),
            notices: parts.notices,
            stalled: None,
            started: Instant::now(),
            stopping: false,
            stale: true,
            unjudged: true,
        }
    }

    /// Runs until `stop` fires and every instance has gone.
    pub(crate) async fn run(mut self, mut stop: tokio::sync::oneshot::Receiver<()>) {
        self.desired.mark_changed();
        loop {
            let due = self.next_deadline();
            // Every arm is cancel-safe: watches and queues keep what is not taken, the timer is set anew.
            tokio::select! {
                biased;
                _ = &mut stop, if !self.stopping => self.begin_stop(),
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
                () = tokio::time::sleep_until(due) => self.tick(),
            }
            self.settle();
            if self.stopping
                && self
                    .entries
                    .values()
                    .all(|e| e.life.instances().next().is_none())
            {
                break;
            }
        }
        self.publish();
        self.kept_admitted.finish().await;
        self.kept_stopped.finish().await;
    }

    fn changed(&mut self) {
        self.stale = true;
        self.unjudged = true;
    }

    fn now(&self) -> Time {
        self.started.elapsed()
    }

    fn next_deadline(&self) -> Instant {
        let due = self
            .entries
            .values()
            .filter_map(|e| e.life.next_deadline())
            .min();
        self.started + due.unwrap_or_else(|| self.now() + Duration::from_secs(3600))
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

    fn take_report(&mut self, report: Report) {
        let now = self.now();
        let Some(entry) = self.entries.get_mut(&report.tenant) else {
            return;
        };
        match report.what {
            What::Life(event) => {
                if let Event::Exited { id, reason, .. } | Event::SpawnFailed { id, reason } = &event
                {
                    let planned = entry.life.instances().any(|i| i.id == *id && i.planned);
                    if !planned {
                        tracing::warn!(tenant = %report.tenant, "its broker has ended: {reason}");
                    }
                    self.edge.ended(&report.tenant, *id);
                    entry.status = None;
                }
                self.feed(now, &report.tenant, event);
            }
            What::Status(id, text) => {
                if entry.life.current().is_some_and(|c| c.id == id) {
                    entry.status = Some(text);
                    self.changed();
                }
            }
            What::LastWords(words) => {
                entry.last_words = words;
                self.changed();
            }
        }
    }

    fn take_files(&mut self) {
        let desired = self.desired.borrow_and_update().clone();
        let policy = policy(&self.config);
        for (name, file) in &desired.tenants {
            if !self.entries.contains_key(name) {
                let first = self.first_free.get(name).copied().unwrap_or(1);
                let life = Lifecycle::new(policy, first, fastrand::u64(..));
                let entry = Entry::new(life, self.stopped.contains(name));
                self.entries.insert(name.clone(), entry);
            }
            if let Some(entry) = self.entries.get_mut(name) {
                entry.life.set_policy(policy);
                entry.file = Some(file.clone());
            }
        }
        for (name, entry) in &mut self.entries {
            if !desired.tenants.contains_key(name) {
                entry.file = None;
                // A tenant that comes back under this name is a new one.
                self.stopped.remove(name);
            }
        }
        self.orders.files_read(desired.scan);
        self.changed();
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

    /// Judges everybody and brings every life in step, until nothing changes any more.
    fn settle(&mut self) {
        // Each round follows from the one before: who has gone leaves room for who was refused.
        for _ in 0..MOST_ROUNDS {
            if std::mem::take(&mut self.unjudged) && !self.stopping {
                self.judge_all();
            }
            self.judge_hangs();
            self.grant_slots();
            self.forget_the_gone();
            if !self.unjudged {
                break;
            }
        }
        if self.stale {
            self.publish();
        }
        self.answer_orders();
    }

    fn judge_all(&mut self) {
        let view = self.view.borrow().clone();
        self.want_urls();
        let Judgement { rulings, verdict } = judge(
            &self.entries,
            &self.admitted,
            &view,
            self.config.budget.headroom,
        );
        self.verdict = verdict;
        if self.admitted != self.verdict.admitted {
            self.admitted.clone_from(&self.verdict.admitted);
            self.kept_admitted.set(format_admitted(&self.admitted));
        }
        self.kept_stopped.set(names(&self.stopped));
        let now = self.now();
        for (name, ruling) in rulings {
            let Some(entry) = self.entries.get_mut(&name) else {
                continue;
            };
            let (want, pending) = match ruling {
                Ruling::Run(config, pending) => {
                    let revision = entry.accept(&config);
                    let pool = config.broker().database.pool_size.get();
                    (Want::Run(Spec { revision, pool }), pending)
                }
                Ruling::Refused(reason) => (Want::Refused(reason), None),
                Ruling::Stopped(reason) => (Want::Stopped(reason), None),
                Ruling::Gone => (Want::Gone, None),
            };
            let (server, overlap) = ground(entry, &view, &self.verdict);
            let news = entry.news(Told {
                want,
                pending,
                server,
                overlap,
            });
            entry.forget_old_revisions();
            for event in news {
                if let Event::Server(server) = &event {
                    self.edge.set_server(&name, server);
                }
                self.feed(now, &name, event);
            }
        }
    }

    /// The URLs the probers are to look at: those the files ask for, and those instances still run on.
    fn want_urls(&self) {
        let mut urls = BTreeSet::new();
        for entry in self.entries.values() {
            let configs = entry.asked().into_iter().chain(entry.revisions.values());
            urls.extend(configs.map(|config| config.broker().database.url.clone()));
        }
        self.servers.want(urls);
    }

    fn judge_hangs(&mut self) {
        let pulses: Vec<_> = self
            .entries
            .iter()
            .map(|(n, e)| (n.clone(), e.life.pulse()))
            .collect();
        if pulses.iter().all(|(_, pulse)| *pulse == Pulse::Fine) {
            self.stalled = None;
            return;
        }
        match stalled_or_hung(pulses.into_iter()) {
            Hang::Nothing => {}
            Hang::HostStalled { failing } => {
                if self.stalled.is_none() {
                    tracing::error!(
                        failing,
                        "so many tenants fail their probes together that the host is stalled: none is replaced"
                    );
                }
                self.stalled = Some(failing);
                self.changed();
            }
            Hang::Replace(name) => {
                let Some(current) = self.entries.get(&name).and_then(|e| e.life.current()) else {
                    return;
                };
                let (id, missed) = (current.id, current.missed);
                let threads = current
                    .pid
                    .map(crate::instance::threads::describe)
                    .unwrap_or_default();
                let detail =
                    format!("hung: {missed} probes of /healthz unanswered; threads: {threads}");
                tracing::error!(tenant = %name, pid = current.pid, %detail, "hung, is killed and started again");
                let now = self.now();
                self.feed(now, &name, Event::ReplaceHung { id, detail });
            }
        }
    }

    /// Hands out start slots, server by server, until none is left or nobody asks.
    fn grant_slots(&mut self) {
        let now = self.now();
        let keys: Vec<String> = self.slots.keys().cloned().collect();
        for key in keys {
            let replacements = self
                .verdict
                .servers
                .iter()
                .find(|(id, _)| id.as_str() == key)
                .map_or(1, |(_, account)| account.replacements_at_once as usize);
            let limits = Limits {
                starts: self.config.start.parallelism,
                replacements,
            };
            // A tenant that does not use what it got gives it back at once; the bound ends a quarrel between two.
            for _ in 0..self.entries.len().max(1) {
                let Some(slots) = self.slots.get_mut(&key) else {
                    break;
                };
                let granted = slots.grant(limits);
                if granted.is_empty() {
                    break;
                }
                for name in granted {
                    self.feed(now, &name, Event::SlotGranted);
                }
            }
        }
    }

    fn forget_the_gone(&mut self) {
        let gone: Vec<TenantName> = self
            .entries
            .iter()
            .filter(|(_, e)| e.forgotten && e.file.is_none())
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            tracing::info!(tenant = %name, "removed");
            if let Some(entry) = self.entries.remove(&name) {
                self.first_free.insert(name.clone(), entry.life.next_id().0);
            }
            self.edge.forget(&name);
            self.edge.hub().forget(&name);
            for slots in self.slots.values_mut() {
                slots.release(&name);
            }
            self.changed();
        }
    }

    /// Gives one tenant's life an event and carries out what comes of it.
    fn feed(&mut self, now: Time, name: &TenantName, event: Event) {
        let mut queue = vec![event];
        while let Some(event) = queue.pop() {
            let Some(entry) = self.entries.get_mut(name) else {
                return;
            };
            for action in entry.life.on(now, event) {
                queue.extend(self.carry_out(name, action));
            }
        }
        self.changed();
    }

    /// Carries out one action; what is known of its outcome at once comes back as an event.
    fn carry_out(&mut self, name: &TenantName, action: Action) -> Option<Event> {
        let entry = self.entries.get_mut(name)?;
        let config_of = |entry: &Entry, revision| entry.revisions.get(&revision).cloned();
        match action {
            Action::Listen(revision) => {
                let config = config_of(entry, revision)?;
                Some(match self.edge.listen(name, &config.broker().http.listen) {
                    Ok(()) => Event::Bound(revision),
                    Err(reason) => Event::BindFailed(revision, config.at("http.listen", &reason)),
                })
            }
            Action::Unlisten(keep) => {
                let keep = keep.and_then(|revision| config_of(entry, revision));
                self.edge
                    .unlisten(name, keep.as_ref().map(|c| &c.broker().http.listen));
                None
            }
            Action::StandIn(on) => {
                let config = entry
                    .accepted
                    .as_ref()
                    .filter(|_| on)
                    .map(|(_, config)| config.clone());
                self.edge
                    .stand_in(name, config.as_ref().map(|c| &c.broker().http.listen));
                None
            }
            Action::AskSlot(kind) => {
                let key = slot_key(entry, &self.view.borrow());
                self.slots.entry(key).or_default().ask(name, kind);
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
                let server = entry
                    .told
                    .as_ref()
                    .map_or(Ok(()), |told| told.server.clone());
                let instance = self.instance_config(name, id, &config, connections);
                self.edge
                    .spawn(instance, server)
                    .err()
                    .map(|reason| Event::SpawnFailed { id, reason })
            }
            Action::Terminate(id) => {
                self.edge.end(name, id, End::Terminate);
                None
            }
            Action::Kill(id) => {
                tracing::warn!(tenant = %name, "SIGKILL");
                self.edge.end(name, id, End::Kill);
                None
            }
            Action::SetConnections(id, most) => {
                self.edge.set_connections(name, id, most);
                None
            }
            Action::CountBackends => {
                let (_, config) = entry.accepted.as_ref()?;
                let view = self.view.borrow();
                let (_, server) = view.server(&config.broker().database.url)?;
                let backends = server.ours.get(name).copied().unwrap_or(0);
                server.up.then_some(Event::Backends(backends))
            }
            Action::Forget => {
                entry.forgotten = true;
                None
            }
        }
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
            config: config.broker().clone(),
        }
    }

    fn all_names(&self) -> Vec<TenantName> {
        self.entries.keys().cloned().collect()
    }
}

/// What an entry stands on: whether its server can be reached, and whether it has room for an overlap.
fn ground(entry: &Entry, view: &ServersView, verdict: &Verdict) -> (Result<(), String>, bool) {
    let Some((_, config)) = &entry.accepted else {
        return (Err("not judged yet".into()), true);
    };
    let endpoint = view.endpoint(&config.broker().database.url);
    let server = match endpoint.problem() {
        Some(problem) => Err(problem.to_owned()),
        None => Ok(()),
    };
    let account = endpoint
        .place()
        .and_then(|place| verdict.servers.get(&place.server));
    (server, account.is_none_or(|account| account.overlap))
}

/// Slots are counted per server; a tenant whose server is not known yet has no business asking for one.
fn slot_key(entry: &Entry, view: &ServersView) -> String {
    entry
        .accepted
        .as_ref()
        .and_then(|(_, config)| view.endpoint(&config.broker().database.url).place())
        .map_or_else(String::new, |place| place.server.as_str().to_owned())
}

fn names(set: &BTreeSet<TenantName>) -> String {
    set.iter().map(|name| format!("{name}\n")).collect()
}

fn policy(config: &Supervisor) -> Policy {
    Policy {
        start_timeout: config.start.timeout,
        grace: config.stop.grace,
        probe_failures: config.health.failures,
    }
}
