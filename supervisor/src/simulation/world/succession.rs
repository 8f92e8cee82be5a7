//! The supervisor dies, and the next one takes over what it finds, as the fleet does.

use super::*;
use crate::lifecycle::{Adopted, Inheritance, Stage};

impl World {
    /// Everything that was only in the old one's memory is gone: pauses, queues, judgements, who was stood in for. What the
    /// host and the disk keep is there: processes, sockets, the admitted and the stopped, numbers.
    pub(crate) fn succeed(&mut self) {
        for server in &mut self.servers {
            server.slots = Slots::default();
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

    /// A server is asked which one it is.
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
        // What only ran, and just then did not, nobody remembers.
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
        // Passed on it is what it was told; of one found by its lock nobody knows it, and it may be the whole pool.
        let passed_on = self.rng.bool();
        let adopted = tenant.processes.iter().map(|(id, process)| Adopted {
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
            stage: Stage::Unsure,
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
        let current = life.and_then(Lifecycle::current).filter(|c| !c.planned);
        tenant.told = current.map(|current| Told {
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

    /// Each process says how far it is; one that is hung does not.
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
                        (true, _) => Stage::Stopping,
                        (false, true) => Stage::Serving,
                        (false, false) => Stage::Starting,
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

impl Tenant {
    /// The configuration of the youngest process whose address is open; somebody's of old if none is.
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
