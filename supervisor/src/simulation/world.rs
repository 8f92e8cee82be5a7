//! Simulated tenants, servers and time, joined as the fleet joins them.

mod admission;
mod carry_out;
mod file;
mod rest;
mod succession;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use brokkr_tenant::{DatabaseUrl, Listen, TenantName};

pub(super) use file::{File, Habit};

use super::process::{SimLeftover, SimProcess, Step};
use crate::budget::{AdmittedTenant, ConnectionTarget, Database, Decision, Facts, Role, ServerId};
use crate::fleet::core::{Core, CoreSettings, Effect, Fact, Remembered, TenantEntry, TenantFile};
use crate::lifecycle::{Event, InstanceId, Lifecycle, Policy, Revision, Time};
use crate::servers::{Endpoint, ServerView, ServersView};
use crate::status::State;

pub(super) const SETTINGS: CoreSettings = CoreSettings {
    policy: Policy {
        start_timeout: Duration::from_secs(60),
        grace: Duration::from_secs(20),
        probe_failures: 3,
        core: false,
    },
    parallelism: 4,
    headroom: 3,
    // Short enough that a run has stalls both shorter and longer than this.
    stall_patience: Duration::from_secs(20),
    open_files: u64::MAX,
};
const SERVERS: usize = 4;
/// Mean delay from a fact to the next judgement, so that several facts share one judgement.
const JUDGE_AFTER: Duration = Duration::from_millis(200);
/// `[health] interval`, for all probes of a tenant.
const PROBE_EVERY: Duration = Duration::from_secs(4);
/// Number of past events printed when a rule is broken.
const REMEMBERED: usize = 60;

/// The part of a tenant that is outside the core.
pub(super) struct SimTenant {
    pub(super) name: TenantName,
    pub(super) file: Option<TenantFile<File>>,
    pub(super) processes: BTreeMap<InstanceId, SimProcess>,
    /// Connections left by killed processes.
    pub(super) lingering: Vec<SimLeftover>,
    /// The bound addresses.
    pub(super) bound: Vec<Listen>,
    /// Number of `restart` and new-program orders so far.
    pub(super) generation: u64,
    /// The first generation of the newest program.
    pub(super) program: u64,
    pub(super) stands_in: bool,
    /// Another program has the tenant's port until this time.
    pub(super) port_taken: Time,
    tick_at: Option<Time>,
    /// True when the old configuration is lost: not running at a take-over, and no longer in the file.
    pub(super) forgotten: bool,
    past: VecDeque<String>,
}

pub(super) struct SimServer {
    pub(super) id: ServerId,
    pub(super) url: DatabaseUrl,
    pub(super) up: bool,
    /// True once the present supervisor has identified the server.
    pub(super) seen: bool,
    pub(super) max_connections: u32,
    /// The largest capacity under which the present instances were admitted.
    pub(super) granted: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    Judge,
    Fault,
    Seen(usize),
    Probe(usize),
    Tick(usize),
    Process(usize, InstanceId, Step),
}

pub(super) struct World {
    pub(super) rng: fastrand::Rng,
    pub(super) now: Time,
    pub(super) core: Core<File>,
    pub(super) tenants: Vec<SimTenant>,
    pub(super) servers: Vec<SimServer>,
    pub(super) faults: bool,
    /// The whole host is stalled until this time.
    pub(super) stalled_until: Time,
    began: Instant,
    names: BTreeMap<TenantName, usize>,
    queue: BinaryHeap<Reverse<(Time, u64, Due)>>,
    order: u64,
    /// Environment that replays this run.
    again: String,
    digest: DefaultHasher,
    judge_due: bool,
    /// True when the core has not been given the files as they are now.
    pub(super) unread: bool,
    /// The core's list of admitted tenants at its last judgement, and the number of judgements until then.
    pub(super) admitted: Vec<AdmittedTenant>,
    pub(super) judgements: u64,
    events: u64,
}

impl World {
    pub(super) fn new(seed: u64, tenants: usize, again: String) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let servers = (0..SERVERS)
            .map(|n| SimServer {
                id: ServerId::new(&format!("server-{n}")),
                url: DatabaseUrl::parse(&format!("postgres://brokkr@server-{n}/brokkr")).unwrap(),
                up: true,
                seen: true,
                // Room for about three quarters of the connections that will be asked for.
                max_connections: u32::try_from(tenants / SERVERS).unwrap() * 8 + rng.u32(10..40),
                granted: 0,
            })
            .collect();
        let tenants: Vec<SimTenant> = (0..tenants).map(SimTenant::new).collect();
        let names = tenants.iter().enumerate().map(|(n, t)| (t.name.clone(), n));
        let seeds = fastrand::Rng::with_seed(rng.u64(..));
        let mut world = Self {
            core: Core::new(SETTINGS, Remembered::default(), seeds),
            names: names.collect(),
            rng,
            now: Duration::ZERO,
            tenants,
            servers,
            faults: true,
            stalled_until: Duration::ZERO,
            began: Instant::now(),
            queue: BinaryHeap::new(),
            order: 0,
            again,
            digest: DefaultHasher::new(),
            judge_due: false,
            unread: true,
            admitted: Vec::new(),
            judgements: 0,
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
            let soon = self.within(JUDGE_AFTER);
            self.after(soon, Due::Judge);
        }
    }

    /// Returns the core's state of a tenant; `None` without a file and a process.
    pub(super) fn entry(&self, n: usize) -> Option<&TenantEntry<File>> {
        self.core.entries().get(&self.tenants[n].name)
    }

    pub(super) fn life(&self, n: usize) -> Option<&Lifecycle> {
        self.entry(n).map(|entry| &entry.life)
    }

    /// Returns true when the operator has stopped the tenant.
    pub(super) fn is_stopped(&self, n: usize) -> bool {
        self.entry(n).is_some_and(|entry| entry.stopped)
    }

    /// Returns the revision the tenant is wanted to run now.
    pub(super) fn wanted(&self, n: usize) -> Option<Revision> {
        let entry = self.entry(n).filter(|entry| entry.meant().is_some())?;
        entry.accepted.as_ref().map(|(revision, _)| *revision)
    }

    fn set_timer(&mut self, n: usize) {
        let now = self.now;
        let due = self.life(n).and_then(Lifecycle::next_deadline);
        let due = due.map(|due| due.max(now));
        let tenant = &mut self.tenants[n];
        if due.is_some() && due != tenant.tick_at {
            tenant.tick_at = due;
            let after = due.unwrap_or(now) - now;
            self.after(after, Due::Tick(n));
        }
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
            self.life(n).map(Lifecycle::view),
        );
    }
}

impl SimTenant {
    fn new(n: usize) -> Self {
        Self {
            name: TenantName::parse(&format!("t{n}")).unwrap(),
            file: None,
            processes: BTreeMap::new(),
            lingering: Vec::new(),
            bound: Vec::new(),
            generation: 0,
            program: 0,
            stands_in: false,
            port_taken: Duration::ZERO,
            tick_at: None,
            forgotten: false,
            past: VecDeque::new(),
        }
    }
}

impl SimServer {
    /// Returns the target of connections to this server.
    fn place(&self) -> ConnectionTarget {
        ConnectionTarget {
            server: self.id.clone(),
            database: 1,
            role: "brokkr".into(),
            superuser: false,
        }
    }

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
        self.facts().capacity(SETTINGS.headroom)
    }
}
