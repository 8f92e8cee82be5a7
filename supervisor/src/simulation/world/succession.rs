//! The supervisor dies, and the next one takes over, as the fleet does.

use super::*;
use crate::lifecycle::{AdoptedInstance, AdoptedStage, Inheritance};

impl World {
    /// Loses the old supervisor's memory: pauses, queues, judgements, stand-ins. Keeps the state of host and disk:
    /// processes, sockets, the admitted and stopped lists, instance numbers.
    pub(crate) fn succeed(&mut self) {
        for server in &mut self.servers {
            server.slots = StartSlots::default();
        }
        self.verdict = Verdict::default();
        for n in 0..self.tenants.len() {
            self.take_over(n);
        }
        for n in 0..self.tenants.len() {
            self.ask_everybody(n);
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

    fn take_over(&mut self, n: usize) {
        let seed = self.rng.u64(..);
        let tenant = &mut self.tenants[n];
        if let Some(old) = tenant.life.take() {
            tenant.first_free = old.next_id().0;
        }
        tenant.told = None;
        // A configuration that differs from the file's is lost unless a process runs it.
        let meant = tenant.accepted.as_ref().map(|(_, file)| file);
        let same = matches!(&tenant.file, Some(Ok(file)) if Some(file) == meant);
        tenant.forgotten = tenant.processes.is_empty() && !same;
        tenant.stands_in = false;
        tenant.pause_until = None;
        tenant.tick_at = None;
        if tenant.processes.is_empty() && tenant.bound.is_empty() {
            tenant.accepted = None;
            return;
        }
        // A process passed on comes with its allowance. If found by its lock, assume the pool.
        let passed_on = self.rng.bool();
        let adopted = tenant
            .processes
            .iter()
            .map(|(id, process)| AdoptedInstance {
                id: *id,
                pid: 1,
                spec: Spec {
                    revision: process.revision,
                    pool: tenant.revisions[&process.revision].pool,
                },
                connections: match passed_on {
                    true => process.most,
                    false => tenant.revisions[&process.revision].pool,
                },
                spawned_at: process.started,
                stage: AdoptedStage::Unsure,
                outdated: process.generation != tenant.generation,
                keeps_address: false,
                deaf: false,
            });
        let inheritance = Inheritance {
            instances: adopted.collect(),
            open: tenant.open(),
            older_open: tenant.bound.len() > 1,
            restarts: 0,
        };
        tenant.life = Some(Lifecycle::new(POLICY, tenant.first_free, seed));
        self.feed(n, Event::Adopted(inheritance));
        let tenant = &mut self.tenants[n];
        let life = tenant.life.as_ref();
        let current = life
            .and_then(Lifecycle::current)
            .filter(|c| !c.ends_as_planned());
        tenant.told = current.map(|current| SimLastFacts {
            want: Want::Run(Spec {
                revision: current.revision,
                pool: current.pool,
            }),
            pending: None,
            server: Err("not asked yet".into()),
            overlap: true,
        });
        tenant.accepted = current.and_then(|current| {
            let file = tenant.revisions.get(&current.revision)?.clone();
            Some((current.revision, file))
        });
    }

    /// Asks each process for its stage; a hung process does not answer.
    fn ask_everybody(&mut self, n: usize) {
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

impl SimTenant {
    /// Returns the configuration of the youngest process whose address is open, or revision 0 if only others are open.
    fn open(&self) -> Option<Revision> {
        let mut processes = self.processes.values().rev();
        let open = processes.find(|p| {
            let file = self.revisions.get(&p.revision);
            file.is_some_and(|file| self.bound.contains(&file.listen))
        });
        match open {
            Some(process) => Some(process.revision),
            None => (!self.bound.is_empty()).then_some(Revision(0)),
        }
    }
}
