//! Simulated processes, which start, hold connections, drain, hang and end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::world::{Due, File, Habit, World};
use crate::lifecycle::{AdoptedStage, Event, Instance, InstanceId, Revision, Time};

/// The next step of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    Spawned,
    NotSpawned,
    Ready,
    /// Asks for minutes more to become ready.
    Extends,
    Crashes,
    /// Exits. True when the process reports a configuration error.
    Exits(bool),
}

#[derive(Debug, Clone)]
pub(super) struct SimProcess {
    pub(super) revision: Revision,
    pub(super) generation: u64,
    pub(super) file: Arc<File>,
    /// The largest number of connections the process may hold now.
    pub(super) most: u32,
    pub(super) ready: bool,
    pub(super) hung: bool,
    /// True when the last probe found the process hung. It may recover before its turn to be replaced.
    pub(super) found_hung: bool,
    /// True when the process was hung at a take-over, so that its stage is unknown.
    pub(super) overlooked: bool,
    pub(super) going: bool,
    pub(super) killed: bool,
    pub(super) started: Time,
}

/// Connections that outlive their process on the server.
#[derive(Debug, Clone, Copy)]
pub(super) struct SimLeftover {
    pub(super) server: usize,
    pub(super) most: u32,
    /// Pool of the process that had them.
    pub(super) pool: u32,
    pub(super) until: Time,
}

impl World {
    pub(super) fn spawn(
        &mut self,
        n: usize,
        id: InstanceId,
        revision: Revision,
        file: Arc<File>,
        most: u32,
    ) {
        self.check_spawn(n, &file);
        // A configuration that runs in place of the file's recovers too when the faults end.
        let habit = if self.faults { file.habit } else { Habit::Good };
        let tenant = &mut self.tenants[n];
        let process = SimProcess {
            revision,
            generation: tenant.generation,
            file,
            most,
            ready: false,
            hung: false,
            found_hung: false,
            overlooked: false,
            going: false,
            killed: false,
            started: self.now,
        };
        let _ = tenant.processes.insert(id, process);
        if self.faults && self.rng.u8(..) < 3 {
            return self.after(
                Duration::from_millis(1),
                Due::Process(n, id, Step::NotSpawned),
            );
        }
        self.after(Duration::from_millis(1), Due::Process(n, id, Step::Spawned));
        let soon = Duration::from_millis(5) + self.within(Duration::from_millis(150));
        match habit {
            Habit::Good => self.after(soon, Due::Process(n, id, Step::Ready)),
            Habit::Crashes => self.after(soon, Due::Process(n, id, Step::Exits(false))),
            Habit::Misconfigured => self.after(soon, Due::Process(n, id, Step::Exits(true))),
            // The start waits forever, or asks for minutes more.
            Habit::NeverReady if self.rng.bool() => {}
            Habit::NeverReady => self.after(soon, Due::Process(n, id, Step::Extends)),
        }
    }

    pub(super) fn step(&mut self, n: usize, id: InstanceId, step: Step) {
        let Some(process) = self.tenants[n].processes.get_mut(&id) else {
            return;
        };
        match step {
            Step::Spawned => self.feed(n, Event::Spawned { id, pid: 1 }),
            Step::NotSpawned => {
                let _ = self.tenants[n].processes.remove(&id);
                let reason = "no process could be made".to_owned();
                self.feed(n, Event::SpawnFailed { id, reason });
                self.judge_soon();
            }
            Step::Extends => self.feed(n, Event::Extend(id, Duration::from_secs(400))),
            Step::Ready if process.going => {}
            Step::Ready => {
                let server = process.file.server;
                if !self.servers[server].up {
                    // A process waits for its server, as a real broker does.
                    return self.after(Duration::from_secs(1), Due::Process(n, id, step));
                }
                process.ready = true;
                self.feed(n, Event::Ready(id));
            }
            Step::Crashes | Step::Exits(_) => {
                let configuration = step == Step::Exits(true) && !process.going;
                self.end(n, id, configuration);
            }
        }
    }

    fn end(&mut self, n: usize, id: InstanceId, configuration: bool) {
        // A statement goes on for a while after its client was killed.
        let most = [800, 800, 800, 6000][self.rng.usize(..4)];
        let linger = self.within(Duration::from_millis(most));
        // Sometimes the grace ends before the process has closed its connections.
        let cut_short = self.faults && self.rng.u8(..) < 30;
        let Some(process) = self.tenants[n].processes.get_mut(&id) else {
            return;
        };
        let left = process.ready && (!process.going || process.killed || cut_short);
        if process.going && !process.killed && !left {
            // The process has closed its connections before it reports that.
            process.most = 0;
            self.feed(n, Event::Connections(id, 0));
        }
        let tenant = &mut self.tenants[n];
        let Some(process) = tenant.processes.remove(&id) else {
            return;
        };
        if left {
            let until = self.now + linger;
            tenant.lingering.push(SimLeftover {
                server: process.file.server,
                most: process.most,
                pool: process.file.pool,
                until,
            });
        }
        let reason = "exited".to_owned();
        self.feed(
            n,
            Event::Exited {
                id,
                reason,
                configuration,
            },
        );
        self.judge_soon();
    }

    /// Tells a process to end, and returns the process's report.
    pub(super) fn terminate(&mut self, n: usize, id: InstanceId) -> Option<Event> {
        self.check_terminate(n, id);
        let process = self.tenants[n].processes.get_mut(&id)?;
        process.going = true;
        let (hung, held) = (process.hung, process.most.min(1));
        if hung {
            return None;
        }
        process.most = held;
        // Most processes have nothing in flight; some need their whole grace, some more.
        let takes = match self.rng.u8(..) {
            0..200 => Duration::from_millis(5),
            200..250 => self.within(Duration::from_secs(8)),
            _ => Duration::from_secs(25),
        };
        self.feed_later(n, id, takes);
        Some(Event::Connections(id, held))
    }

    fn feed_later(&mut self, n: usize, id: InstanceId, takes: Duration) {
        self.after(takes, Due::Process(n, id, Step::Exits(false)));
    }

    pub(super) fn kill(&mut self, n: usize, id: InstanceId) {
        self.check_kill(n, id);
        if let Some(process) = self.tenants[n].processes.get_mut(&id) {
            process.going = true;
            process.killed = true;
            // The kernel may delay the end of a process.
            let takes = if self.faults && self.rng.u8(..) < 4 {
                Duration::from_secs(30)
            } else {
                Duration::from_millis(2)
            };
            self.feed_later(n, id, takes);
        }
    }

    pub(super) fn set_connections(&mut self, n: usize, id: InstanceId, most: u32) {
        if let Some(process) = self.tenants[n].processes.get_mut(&id)
            && !process.going
        {
            process.most = most;
        }
    }

    /// Returns the number of connections that a tenant's ended processes left on the servers of `of`; `None` while one
    /// of the servers is down.
    pub(super) fn left_over(&mut self, n: usize, of: &[Revision]) -> Option<u32> {
        let configs = self.core.configs_of(&self.tenants[n].name, of)?;
        let servers: BTreeSet<usize> = configs.iter().map(|file| file.server).collect();
        if servers.iter().any(|s| !self.servers[*s].up) {
            return None;
        }
        let now = self.now;
        let tenant = &mut self.tenants[n];
        tenant.lingering.retain(|left| left.until > now);
        let left = tenant.lingering.iter();
        let left = left.filter(|left| servers.contains(&left.server));
        Some(left.map(|left| left.most).sum())
    }

    /// Probes each ready process of a tenant.
    pub(super) fn probe(&mut self, n: usize) {
        let stalled = self.now < self.stalled_until;
        let up: Vec<bool> = self.servers.iter().map(|s| s.up).collect();
        let ready: Vec<_> = self.tenants[n]
            .processes
            .iter()
            .filter(|(_, p)| p.ready && !p.going)
            .map(|(id, p)| (*id, p.hung, up[p.file.server], p.most))
            .collect();
        for (id, hung, up, connections) in ready {
            if let Some(process) = self.tenants[n].processes.get_mut(&id)
                && !stalled
            {
                process.found_hung = hung;
            }
            if hung || stalled {
                // The supervisor is stalled with its host, and knows that it is late.
                for _ in 0..3 {
                    self.feed(
                        n,
                        Event::ProbeMissed {
                            id,
                            on_time: !stalled,
                        },
                    );
                }
                // Hangs need judging only after missed probes.
                self.judge_soon();
            } else {
                let not_ready = (!up).then(|| "database unavailable".to_owned());
                self.feed(n, Event::ProbeAnswered { id, not_ready });
                // The process then also answers the question about its stage from a take-over.
                let life = self.life(n);
                let instance = life.and_then(|life| life.instances().find(|i| i.id == id));
                if instance.is_some_and(Instance::is_unsure) {
                    let stage = AdoptedStage::Serving;
                    self.feed(
                        n,
                        Event::Learned {
                            id,
                            stage,
                            connections,
                        },
                    );
                }
            }
        }
    }
}
