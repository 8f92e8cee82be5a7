//! Rules that must hold after every event.

use std::collections::BTreeSet;
use std::time::Duration;

use super::world::{File, SETTINGS, World};
use crate::budget::{AdmittedTenant, COMMAND, OWN, REPLACEMENT};
use crate::lifecycle::{Event, InstanceId, Lifecycle, SLOT_FOR, Time};
use crate::status::State;

/// The shortest pause after a failure, except that there is none after the first failure.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause after a failure that is no configuration error.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const CONFIGURATION_PAUSE: Duration = Duration::from_secs(300);

/// Cause of a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// A process ended or could not be started, or an address could not be bound.
    Failure,
    /// A broker reported a configuration error.
    Configuration,
    Else,
}

impl Cause {
    pub(super) fn of(event: &Event) -> Self {
        match event {
            Event::Exited {
                configuration: true,
                ..
            } => Self::Configuration,
            Event::Exited { .. } | Event::SpawnFailed { .. } | Event::BindFailed(..) => {
                Self::Failure
            }
            _ => Self::Else,
        }
    }
}

impl World {
    /// Checks that a pause is within its bounds. Without a cause it may have begun earlier: no lower bound holds.
    pub(super) fn check_pause(&self, n: usize, cause: Cause, next_try: Option<Time>) {
        let Some(at) = next_try else { return };
        let pause = at.saturating_sub(self.now);
        let (shortest, longest) = match cause {
            Cause::Failure => (SHORTEST_PAUSE, LONGEST_PAUSE),
            Cause::Configuration => (SHORTEST_PAUSE, CONFIGURATION_PAUSE),
            Cause::Else => (Duration::ZERO, LONGEST_PAUSE),
        };
        let within = (shortest..=longest).contains(&pause);
        self.rule(within, n, "the pause after its failure is out of bounds");
    }

    /// Checks a tenant after an event, and its server if the event moved anything: a probe alone changes no process.
    pub(super) fn check(&self, n: usize, moved: bool) {
        let tenant = &self.tenants[n];
        self.rule(tenant.processes.len() <= 2, n, "more than two processes");
        let serving = tenant
            .processes
            .values()
            .filter(|p| p.ready && !p.going)
            .count();
        self.rule(serving <= 1, n, "two instances serve, and neither is going");
        if let Some(life) = self.life(n) {
            let view = life.view();
            if view.state == State::Ready {
                self.rule(serving == 1, n, "it is called ready and nothing serves");
                self.rule(
                    !tenant.stands_in,
                    n,
                    "503 is answered in a ready tenant's place",
                );
            }
            for server in 0..self.servers.len() {
                self.check_pool(n, life, server);
            }
        }
        if moved {
            self.check_servers(n);
        }
    }

    /// Checks the server of a tenant's accepted configuration, and those of its processes.
    pub(super) fn check_servers(&self, n: usize) {
        let accepted = self.entry(n).and_then(|entry| entry.accepted.as_ref());
        let accepted = accepted.map(|(_, file)| file.server);
        let processes = self.tenants[n].processes.values().map(|p| p.file.server);
        let servers: BTreeSet<usize> = processes.chain(accepted).collect();
        for server in servers {
            self.check_server(n, server);
        }
    }

    /// Checks that a tenant's instances and leftovers on one server hold no more than pool plus two.
    fn check_pool(&self, n: usize, life: &Lifecycle, server: usize) {
        let tenant = &self.tenants[n];
        let (mut held, mut largest) = (0, 0);
        for (id, process) in tenant
            .processes
            .iter()
            .filter(|(_, p)| p.file.server == server)
        {
            held += process.most;
            let instance = life.instances().find(|i| i.id == *id);
            largest = largest.max(instance.map_or(0, |instance| instance.pool));
        }
        let now = self.now;
        for left in tenant.lingering.iter().filter(|l| l.server == server) {
            if left.until > now {
                held += left.most;
                largest = largest.max(left.pool);
            }
        }
        self.rule(
            held <= largest + REPLACEMENT,
            n,
            "its instances together hold more than pool and two",
        );
    }

    fn check_server(&self, n: usize, index: usize) {
        let processes = self
            .tenants
            .iter()
            .flat_map(|t| t.processes.values())
            .filter(|p| p.file.server == index);
        let (mut held, mut starting) = (0, 0);
        for process in processes {
            held += process.most;
            let young = self.now < process.started + SLOT_FOR;
            starting +=
                usize::from(young && !process.ready && !process.going && !process.overlooked);
        }
        let server = &self.servers[index];
        let may = server
            .capacity()
            .max(server.granted)
            .saturating_sub(OWN + COMMAND);
        if held > may {
            let (id, holders) = (&server.id, self.holders(index));
            let detail = format!("{held} connections on {id}, which has {may} to give: {holders}");
            self.rule(false, n, &detail);
        }
        self.rule(
            starting <= SETTINGS.parallelism,
            n,
            "more starts at once than there are slots",
        );
    }

    /// Returns a text that lists the connections of each process on a server.
    fn holders(&self, server: usize) -> String {
        let mut holders = Vec::new();
        for tenant in &self.tenants {
            let here = tenant
                .processes
                .values()
                .filter(|p| p.file.server == server);
            let held: Vec<String> = here.map(|p| p.most.to_string()).collect();
            if !held.is_empty() {
                holders.push(format!("{} {}", tenant.name, held.join(" + ")));
            }
        }
        holders.join(", ")
    }

    /// Checks that a new process has its socket, and has its schema alone.
    pub(super) fn check_spawn(&self, n: usize, file: &File) {
        let tenant = &self.tenants[n];
        self.rule(tenant.processes.len() < 2, n, "a third process");
        self.rule(
            tenant.bound.contains(&file.listen),
            n,
            "started without its socket",
        );
        for (m, other) in self.tenants.iter().enumerate().filter(|(m, _)| *m != n) {
            let same = other
                .processes
                .values()
                .any(|p| p.file.server == file.server && p.file.schema == file.schema);
            self.rule(!same, n, &format!("started on the schema of running t{m}"));
        }
    }

    /// Checks that a healthy instance is told to end only for a reason of its own.
    pub(super) fn check_terminate(&self, n: usize, id: InstanceId) {
        let tenant = &self.tenants[n];
        let Some(process) = tenant.processes.get(&id) else {
            return;
        };
        let asked =
            self.wanted(n) != Some(process.revision) || tenant.generation != process.generation;
        let server = &self.servers[process.file.server];
        let late = self.now >= process.started + SETTINGS.policy.start_timeout;
        let reason = asked
            || process.hung
            || !process.ready && (late || !server.up || !server.seen || self.superseded(n, id));
        self.rule(
            reason,
            n,
            &format!("healthy {id:?} is told to go for no reason"),
        );
    }

    pub(super) fn check_kill(&self, n: usize, id: InstanceId) {
        let Some(process) = self.tenants[n].processes.get(&id) else {
            return;
        };
        self.rule(
            process.going || process.hung || process.found_hung,
            n,
            &format!("{id:?} is killed unasked"),
        );
    }

    /// Returns true when the tenant has another process, which may make this one unnecessary.
    fn superseded(&self, n: usize, id: InstanceId) -> bool {
        self.tenants[n].processes.keys().any(|other| *other != id)
    }

    /// Checks that no tenant is admitted beyond capacity, and that no admitted tenant loses the place it wants.
    pub(super) fn check_admission(&self, admitted: &[AdmittedTenant]) {
        let decided = self.core.decided();
        let verdict = &decided.verdict;
        let before: BTreeSet<_> = admitted.iter().map(|a| &a.tenant).collect();
        for admission in &verdict.admitted {
            let Some(server) = admission.server.as_ref() else {
                continue;
            };
            if before.contains(&admission.tenant) {
                continue;
            }
            let account = &verdict.servers[server];
            let fits = account
                .capacity
                .is_some_and(|capacity| account.committed <= capacity);
            if !fits {
                let detail = format!(
                    "admitted over budget: {account:?}, headroom {}",
                    SETTINGS.headroom
                );
                self.rule(false, self.number(&admission.tenant), &detail);
            }
        }
        let after: BTreeSet<_> = verdict.admitted.iter().map(|a| &a.tenant).collect();
        for (n, tenant) in self.tenants.iter().enumerate() {
            let wants = matches!(&tenant.file, Some(Ok(file)) if file.enabled)
                && !self.is_stopped(n)
                && !tenant.forgotten;
            // Exempt is a tenant whose old configuration is lost and whose new schema or address another tenant has.
            let conflict = decided.conflicts.contains_key(&tenant.name);
            let wants = wants && !(conflict && self.wanted(n).is_none());
            let had_it = self.life(n).is_some() && before.contains(&tenant.name);
            if wants && had_it && !after.contains(&tenant.name) {
                let decision = verdict.tenants.get(&tenant.name);
                let conflict = decided.conflicts.get(&tenant.name);
                let mut admitted = admitted.iter();
                let had = admitted.find(|a| a.tenant == tenant.name);
                let detail = format!(
                    "it lost its place while it wanted it: {decision:?}, {conflict:?}, it had {had:?}"
                );
                self.rule(false, n, &detail);
            }
        }
    }

    /// Updates the connections allowed on each server. Admissions and overlaps under a larger capacity may stay; once
    /// fewer are held, that number becomes the new limit.
    pub(super) fn note_granted(&mut self) {
        for s in 0..self.servers.len() {
            // A new supervisor has not seen the server yet, so running instances may still be raised to their pools.
            if !self.servers[s].seen {
                continue;
            }
            let verdict = &self.core.decided().verdict;
            let committed = verdict.servers.get(&self.servers[s].id);
            let committed = committed.map(|account| account.committed);
            let overlaps = self.tenants.iter().filter(|t| {
                let here = t.processes.values().filter(|p| p.file.server == s);
                here.count() > 1
            });
            // One replacement is part of `committed`.
            let more = u32::try_from(overlaps.count().saturating_sub(1)).unwrap() * REPLACEMENT;
            let held = self.held_on(s);
            let server = &mut self.servers[s];
            let committed = committed.unwrap_or(server.granted);
            server.granted = server
                .granted
                .min(committed + more)
                .max(committed)
                .max(held);
        }
    }

    /// Returns the connections that all processes of a server may hold, plus the supervisor's own.
    pub(super) fn held_on(&self, server: usize) -> u32 {
        let processes = self.tenants.iter().flat_map(|t| t.processes.values());
        let of_tenants: u32 = processes
            .filter(|p| p.file.server == server)
            .map(|p| p.most)
            .sum();
        of_tenants + OWN + COMMAND
    }
}
