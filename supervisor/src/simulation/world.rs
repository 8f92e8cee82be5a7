//! Simulated tenants, servers and time, joined as the fleet joins them.

mod admission;
mod rest;
mod succession;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use brokkr_tenant::{Listen, SchemaName, TenantName};

use super::process::{SimLeftover, SimProcess, Step};
use super::rules::Cause;
use crate::budget::{
    AdmittedTenant, Claim, ConnectionTarget, Contested, Database, Decided, Decision, Facts,
    HeldConnections, OwnershipClaim, Role, SchemaAndAddress, ServerId, TenantClaim, TenantDemand,
    Verdict, decide,
};
use crate::fleet::start_slots::{InheritedStarts, StartLimits, StartSlots};
use crate::lifecycle::{
    Action, Event, HangDetector, InstanceId, Lifecycle, Policy, Revision, SlotKind, Spec, Time,
    Want,
};
use crate::status::State;

/// Short enough that a run has stalls both shorter and longer than this.
const STALL_PATIENCE: Duration = Duration::from_secs(20);

pub(super) const POLICY: Policy = Policy {
    start_timeout: Duration::from_secs(60),
    grace: Duration::from_secs(20),
    probe_failures: 3,
    core: false,
};
/// `[start] parallelism`
pub(super) const PARALLELISM: usize = 4;
/// `[budget] headroom`
pub(super) const HEADROOM: u32 = 3;
const SERVERS: usize = 4;
/// Delay from a fact to the next judgement, so that several facts share one judgement.
const JUDGE_AFTER: Duration = Duration::from_millis(200);
/// `[health] interval`, for all probes of a tenant.
const PROBE_EVERY: Duration = Duration::from_secs(4);
/// Number of past events printed when a rule is broken.
const REMEMBERED: usize = 60;

/// Behaviour of a broker with this configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Habit {
    Good,
    Crashes,
    Misconfigured,
    NeverReady,
}

/// A tenant file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub(super) pool: u32,
    pub(super) server: usize,
    pub(super) schema: usize,
    pub(super) listen: usize,
    pub(super) priority: i32,
    pub(super) enabled: bool,
    pub(super) habit: Habit,
}

/// The latest facts given to a lifecycle.
#[derive(Debug, Clone, PartialEq)]
struct SimLastFacts {
    want: Want,
    pending: Option<String>,
    server: Result<(), String>,
    overlap: bool,
}

pub(super) struct SimTenant {
    pub(super) name: TenantName,
    /// `None` without a file, `Some(Err)` for an unreadable file.
    pub(super) file: Option<Result<File, ()>>,
    pub(super) stopped: bool,
    pub(super) life: Option<Lifecycle>,
    pub(super) first_free: u64,
    pub(super) accepted: Option<(Revision, File)>,
    pub(super) revisions: BTreeMap<Revision, File>,
    last_revision: u64,
    told: Option<SimLastFacts>,
    pub(super) processes: BTreeMap<InstanceId, SimProcess>,
    /// Connections left by killed processes.
    pub(super) lingering: Vec<SimLeftover>,
    /// The configurations whose address is bound.
    pub(super) bound: Vec<usize>,
    /// Number of `restart` and new-program orders so far.
    pub(super) generation: u64,
    /// The first generation of the newest program.
    pub(super) program: u64,
    pub(super) stands_in: bool,
    /// Another program has the tenant's port until this time.
    pub(super) port_taken: Time,
    /// End of the tenant's pause, as of before the latest event.
    pub(super) pause_until: Option<Time>,
    tick_at: Option<Time>,
    /// True when the old configuration is lost: not running at a take-over, and no longer in the file.
    pub(super) forgotten: bool,
    past: VecDeque<String>,
}

pub(super) struct SimServer {
    pub(super) id: ServerId,
    pub(super) up: bool,
    /// True once the present supervisor has identified the server.
    pub(super) seen: bool,
    pub(super) max_connections: u32,
    /// The largest capacity under which the present instances were admitted.
    pub(super) granted: u32,
    slots: StartSlots,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    Judge,
    Grant,
    Fault,
    Seen(usize),
    Probe(usize),
    Tick(usize),
    Process(usize, InstanceId, Step),
}

pub(super) struct World {
    pub(super) rng: fastrand::Rng,
    pub(super) now: Time,
    pub(super) tenants: Vec<SimTenant>,
    pub(super) servers: Vec<SimServer>,
    pub(super) admitted: Vec<AdmittedTenant>,
    pub(super) verdict: Verdict,
    pub(super) faults: bool,
    /// The whole host is stalled until this time.
    pub(super) stalled_until: Time,
    hangs: HangDetector<usize>,
    names: BTreeMap<TenantName, usize>,
    queue: BinaryHeap<Reverse<(Time, u64, Due)>>,
    order: u64,
    /// Environment that replays this run.
    again: String,
    digest: DefaultHasher,
    judge_due: bool,
    grant_due: bool,
    events: u64,
}

impl World {
    pub(super) fn new(seed: u64, tenants: usize, again: String) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let servers = (0..SERVERS)
            .map(|n| SimServer {
                id: ServerId::new(&format!("server-{n}")),
                up: true,
                seen: true,
                // Room for about three quarters of the connections that will be asked for.
                max_connections: u32::try_from(tenants / SERVERS).unwrap() * 8 + rng.u32(10..40),
                granted: 0,
                slots: StartSlots::default(),
            })
            .collect();
        let tenants: Vec<SimTenant> = (0..tenants).map(|n| SimTenant::new(n, &mut rng)).collect();
        let names = tenants.iter().enumerate().map(|(n, t)| (t.name.clone(), n));
        let mut world = Self {
            names: names.collect(),
            rng,
            now: Duration::ZERO,
            tenants,
            servers,
            admitted: Vec::new(),
            verdict: Verdict::default(),
            faults: true,
            stalled_until: Duration::ZERO,
            hangs: HangDetector::new(STALL_PATIENCE),
            queue: BinaryHeap::new(),
            order: 0,
            again,
            digest: DefaultHasher::new(),
            judge_due: false,
            grant_due: false,
            events: 0,
        };
        for n in 0..world.tenants.len() {
            if world.rng.u8(..) < 200 {
                world.write_file(n);
            }
            let first = world.within(PROBE_EVERY);
            world.after(first, Due::Probe(n));
        }
        world.after(Duration::from_secs(5), Due::Fault);
        world.judge_soon();
        world
    }

    /// Returns the number of events, and a digest that tells two runs apart.
    pub(super) fn events(&self) -> (u64, u64) {
        (self.events, self.digest.finish())
    }

    /// Lets simulated time pass.
    pub(super) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(Reverse((at, _, _))) = self.queue.peek()
            && *at <= until
        {
            let Some(Reverse((at, _, due))) = self.queue.pop() else {
                break;
            };
            self.now = self.now.max(at);
            self.meet(due);
        }
        self.now = until;
    }

    pub(super) fn number(&self, tenant: &TenantName) -> usize {
        self.names[tenant]
    }

    fn meet(&mut self, due: Due) {
        match due {
            Due::Judge => {
                self.judge_due = false;
                self.judge();
            }
            Due::Grant => {
                self.grant_due = false;
                self.grant_slots();
            }
            Due::Fault => {
                if self.faults {
                    self.fault();
                    let next = self.within(Duration::from_secs(60) / self.tenants.len() as u32);
                    self.after(next, Due::Fault);
                }
            }
            Due::Seen(s) => self.see(s),
            Due::Probe(n) => {
                self.probe(n);
                self.after(PROBE_EVERY, Due::Probe(n));
            }
            Due::Tick(n) => {
                if self.tenants[n].tick_at == Some(self.now) {
                    self.tenants[n].tick_at = None;
                    self.feed(n, Event::Tick);
                }
            }
            Due::Process(n, id, step) => self.step(n, id, step),
        }
    }

    /// Returns a random time up to twice `mean`.
    pub(super) fn within(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(2.0 * self.rng.f64())
    }

    pub(super) fn after(&mut self, after: Duration, due: Due) {
        self.order += 1;
        self.queue
            .push(Reverse((self.now + after, self.order, due)));
    }

    pub(super) fn judge_soon(&mut self) {
        if !std::mem::replace(&mut self.judge_due, true) {
            self.after(JUDGE_AFTER, Due::Judge);
        }
    }

    fn grant_soon(&mut self) {
        if !std::mem::replace(&mut self.grant_due, true) {
            self.after(Duration::from_millis(1), Due::Grant);
        }
    }

    /// Gives a lifecycle an event, and carries out the actions that follow.
    pub(super) fn feed(&mut self, n: usize, event: Event) {
        let mut queue = vec![event];
        let mut moved = false;
        while let Some(event) = queue.pop() {
            self.events += 1;
            let now = self.now;
            moved |= !matches!(
                event,
                Event::ProbeAnswered { .. } | Event::ProbeMissed { .. } | Event::Tick
            );
            let tenant = &mut self.tenants[n];
            let Some(life) = &mut tenant.life else { return };
            let line = format!("{now:?} {event:?}");
            (n, &line).hash(&mut self.digest);
            tenant.past.push_back(line);
            let cause = Cause::of(&event);
            // Only a changed wanted state or an order ends a pause early.
            tenant.pause_until = match event {
                Event::Wanted { .. }
                | Event::Start
                | Event::Restart
                | Event::NewProgram
                | Event::Reload => None,
                _ => life.view().next_try,
            };
            let before = life.next_try();
            let actions = life.on(now, event);
            let after = life.next_try();
            while tenant.past.len() > REMEMBERED {
                let _ = tenant.past.pop_front();
            }
            moved |= !actions.is_empty();
            if after != before {
                self.check_pause(n, cause, after);
            }
            for action in actions {
                let tenant = &mut self.tenants[n];
                let line = format!("{now:?}     -> {action:?}");
                (n, &line).hash(&mut self.digest);
                tenant.past.push_back(line);
                queue.extend(self.carry_out(n, action));
            }
        }
        self.set_timer(n);
        self.check(n, moved);
    }

    fn set_timer(&mut self, n: usize) {
        let now = self.now;
        let tenant = &mut self.tenants[n];
        let due = tenant.life.as_ref().and_then(Lifecycle::next_deadline);
        let due = due.map(|due| due.max(now));
        if due.is_some() && due != tenant.tick_at {
            tenant.tick_at = due;
            let after = due.unwrap_or(now) - now;
            self.after(after, Due::Tick(n));
        }
    }

    fn carry_out(&mut self, n: usize, action: Action) -> Option<Event> {
        let now = self.now;
        match action {
            Action::Listen(revision) => {
                let listen = self.tenants[n].revisions[&revision].listen;
                let taken = now < self.tenants[n].port_taken
                    || self
                        .tenants
                        .iter()
                        .enumerate()
                        .any(|(m, t)| m != n && t.bound.contains(&listen));
                if taken {
                    return Some(Event::BindFailed(revision, "in use".into()));
                }
                let bound = &mut self.tenants[n].bound;
                if !bound.contains(&listen) {
                    bound.push(listen);
                }
                return Some(Event::Bound(revision));
            }
            Action::Unlisten(keep) => {
                let tenant = &mut self.tenants[n];
                let keep = keep.map(|revision| tenant.revisions[&revision].listen);
                tenant.bound.retain(|listen| Some(*listen) == keep);
            }
            Action::AskSlot(kind) => self.ask_slot(n, kind),
            Action::Started => {
                let name = self.tenants[n].name.clone();
                self.servers.iter_mut().for_each(|s| s.slots.started(&name));
                self.grant_soon();
            }
            Action::ReleaseSlot => {
                let name = self.tenants[n].name.clone();
                self.servers.iter_mut().for_each(|s| s.slots.release(&name));
                self.grant_soon();
            }
            Action::Spawn {
                id,
                revision,
                connections,
            } => self.spawn(n, id, revision, connections),
            Action::Terminate(id) => return self.terminate(n, id),
            Action::Abort(id) | Action::Kill(id) => self.kill(n, id),
            Action::SetConnections(id, most) => self.set_connections(n, id, most),
            Action::CountLeftOver { since, of } => {
                let count = self.left_over(n, &of)?;
                return Some(Event::LeftOver { since, count });
            }
            Action::StandIn(on) => self.tenants[n].stands_in = on,
            Action::Forget => self.judge_soon(),
        }
        None
    }

    fn ask_slot(&mut self, n: usize, kind: SlotKind) {
        let tenant = &self.tenants[n];
        if let (Some((_, file)), Some(life)) = (&tenant.accepted, &tenant.life) {
            let (name, urgency) = (tenant.name.clone(), life.urgency());
            self.servers[file.server].slots.ask(&name, kind, urgency);
        }
        self.grant_soon();
    }

    /// Fails with the tenant's past unless `holds`.
    #[track_caller]
    pub(super) fn rule(&self, holds: bool, n: usize, rule: &str) {
        if holds {
            return;
        }
        let tenant = &self.tenants[n];
        let past: Vec<&str> = tenant.past.iter().map(String::as_str).collect();
        panic!(
            "{}\ntenant {} at {:?}: {rule}\n{}\nfile {:?}\nprocesses {:#?}\n{:#?}",
            self.again,
            tenant.name,
            self.now,
            past.join("\n"),
            tenant.file,
            tenant.processes,
            tenant.life.as_ref().map(Lifecycle::view),
        );
    }
}

impl SimTenant {
    fn new(n: usize, _rng: &mut fastrand::Rng) -> Self {
        Self {
            name: TenantName::parse(&format!("t{n}")).unwrap(),
            file: None,
            stopped: false,
            life: None,
            first_free: 1,
            accepted: None,
            revisions: BTreeMap::new(),
            last_revision: 0,
            told: None,
            processes: BTreeMap::new(),
            lingering: Vec::new(),
            bound: Vec::new(),
            generation: 0,
            program: 0,
            stands_in: false,
            port_taken: Duration::ZERO,
            pause_until: None,
            tick_at: None,
            forgotten: false,
            past: VecDeque::new(),
        }
    }

    /// Returns the configuration the tenant should run, also while no instance runs.
    pub(super) fn meant(&self) -> Option<&File> {
        let told = self.told.as_ref()?;
        let (_, file) = self.accepted.as_ref()?;
        matches!(told.want, Want::Run(_)).then_some(file)
    }

    /// Returns the revision the tenant is wanted to run now.
    pub(super) fn wanted(&self) -> Option<Revision> {
        match self.told.as_ref()?.want {
            Want::Run(spec) => Some(spec.revision),
            _ => None,
        }
    }

    fn accept(&mut self, file: &File) -> Revision {
        if let Some((revision, accepted)) = &self.accepted
            && accepted == file
        {
            return *revision;
        }
        self.last_revision += 1;
        let revision = Revision(self.last_revision);
        self.accepted = Some((revision, file.clone()));
        let _ = self.revisions.insert(revision, file.clone());
        revision
    }
}

impl SimServer {
    fn facts(&self) -> Facts {
        Facts {
            max_connections: self.max_connections,
            superuser_reserved: 3,
            databases: [(
                1,
                Database {
                    name: "brokkr".into(),
                    limit: None,
                },
            )]
            .into(),
            roles: [(
                "brokkr".to_owned(),
                Role {
                    limit: None,
                    superuser: false,
                },
            )]
            .into(),
            ..Facts::default()
        }
    }

    /// Returns the connections that all tenants together may take.
    pub(super) fn capacity(&self) -> u32 {
        self.facts().capacity(HEADROOM)
    }
}
