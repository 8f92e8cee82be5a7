//! The supervisor dies, and the next one takes over, as the fleet does.

use super::*;
use crate::fleet::core::FoundTenant;
use crate::lifecycle::{AdoptedInstance, AdoptedStage, Spec};

impl World {
    /// Loses the old supervisor's memory: pauses, queues, judgements, stand-ins. Keeps the state of host and disk:
    /// processes, sockets, the admitted and stopped lists, instance numbers.
    pub(crate) fn succeed(&mut self) {
        for n in 0..self.tenants.len() {
            self.forget_memory(n);
        }
        let old = self.core.remembered();
        let mut first_free = old.first_free.clone();
        for (name, entry) in self.core.entries() {
            first_free.insert(name.clone(), entry.life.next_id().0);
        }
        let remembered = Remembered {
            admitted: old.admitted.clone(),
            stopped: old.stopped.clone(),
            unsure: false,
            first_free,
        };
        let seeds = fastrand::Rng::with_seed(self.rng.u64(..));
        self.core = Core::new(SETTINGS, remembered, seeds);
        // The new core counts its judgements from the beginning.
        self.judgements = 0;
        self.unread = true;
        for n in 0..self.tenants.len() {
            self.take_over(n);
        }
        // A tenant whose instance was found keeps its place, even when the list had lost the tenant.
        self.admitted = self.core.remembered().admitted.clone();
        for n in 0..self.tenants.len() {
            self.ask_all_processes(n);
        }
        for s in 0..self.servers.len() {
            self.servers[s].seen = false;
            let soon = self.within(Duration::from_secs(1));
            self.after(soon, Due::Seen(s));
        }
        self.judge_soon();
    }

    /// Identifies a server, or tries again later while the server is down.
    pub(super) fn see(&mut self, s: usize) {
        let server = &mut self.servers[s];
        server.seen = server.up;
        if server.seen {
            self.judge_soon();
        } else {
            self.after(Duration::from_secs(1), Due::Seen(s));
        }
    }

    fn forget_memory(&mut self, n: usize) {
        let accepted = self.entry(n).and_then(|entry| entry.accepted.as_ref());
        let accepted = accepted.map(|(_, file)| file);
        let tenant = &self.tenants[n];
        // A configuration that differs from the file's is lost unless a process runs it.
        let same = matches!(&tenant.file, Some(Ok(file)) if Some(file) == accepted);
        let forgotten = tenant.processes.is_empty() && !same;
        let tenant = &mut self.tenants[n];
        tenant.forgotten = forgotten;
        tenant.stands_in = false;
        tenant.tick_at = None;
    }

    fn take_over(&mut self, n: usize) {
        let tenant = &mut self.tenants[n];
        if tenant.processes.is_empty() && tenant.bound.is_empty() {
            return;
        }
        // A process passed on comes with its allowance. If found by its lock, assume the pool.
        let passed_on = self.rng.bool();
        let adopted = tenant.processes.iter().map(|(id, process)| {
            let instance = AdoptedInstance {
                id: *id,
                pid: 1,
                spec: Spec {
                    revision: Revision(0),
                    pool: 0,
                },
                connections: match passed_on {
                    true => process.most,
                    false => process.file.pool,
                },
                spawned_at: process.started,
                stage: AdoptedStage::Unsure,
                outdated: process.generation != tenant.generation,
                keeps_address: false,
                deaf: false,
            };
            (Some(process.file.clone()), instance)
        });
        let found = FoundTenant {
            instances: adopted.collect(),
            sockets: tenant.bound.clone(),
            restarts: 0,
        };
        let effects = self.core.adopt(self.now, &tenant.name, found);
        let entry = &self.core.entries()[&tenant.name];
        for instance in entry.life.instances() {
            if let Some(process) = tenant.processes.get_mut(&instance.id) {
                process.revision = instance.revision;
            }
        }
        self.carry_out(effects);
    }

    /// Asks each process for its stage; a hung process does not answer.
    fn ask_all_processes(&mut self, n: usize) {
        let processes = self.tenants[n].processes.clone();
        for (id, process) in processes {
            let event = if process.hung {
                if let Some(process) = self.tenants[n].processes.get_mut(&id) {
                    process.overlooked = true;
                }
                Event::Unanswered(id)
            } else {
                Event::Learned {
                    id,
                    stage: match (process.going, process.ready) {
                        (true, _) => AdoptedStage::Stopping,
                        (false, true) => AdoptedStage::Serving,
                        (false, false) => AdoptedStage::Starting,
                    },
                    connections: process.most,
                }
            };
            self.feed(n, event);
            if process.going {
                self.feed(n, Event::Connections(id, process.most));
            }
        }
    }
}
