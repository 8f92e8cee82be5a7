//! A life that began under an earlier supervisor is taken over as it is: nobody is ended or started for it.
//!
//! What is not known for certain is *unsure* until the instance has been asked. An unsure instance is left alone: it may
//! be one that serves, and nobody answers in its place. One that does not answer the question is *silent*: after two
//! seconds it is stood in for, and its probes find out whether it is hung. One that only starts would have said so.

use super::{
    Action, Bind, Instance, InstanceId, Lifecycle, Phase, Revision, Spec, Time, Urgency, Want,
};

/// How far an instance is, as far as somebody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It must be asked.
    Unsure,
    /// Not ready yet.
    Starting,
    /// It accepts connections.
    Serving,
    /// It was told to go.
    Stopping,
}

/// One instance of an earlier supervisor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Adopted {
    /// Its number.
    pub(crate) id: InstanceId,
    /// Its process.
    pub(crate) pid: i32,
    /// What it runs.
    pub(crate) spec: Spec,
    /// The most connections it was told it may hold, as far as somebody knows.
    pub(crate) connections: u32,
    /// When it was spawned.
    pub(crate) spawned_at: Time,
    /// How far it is.
    pub(crate) stage: Stage,
    /// To be replaced by overlap whatever its configuration is.
    pub(crate) outdated: bool,
    /// The tenant's address is open in it alone: nothing can start beside it, so it is drained first.
    pub(crate) keeps_address: bool,
    /// It can be neither asked nor probed.
    pub(crate) deaf: bool,
}

/// All that is left of one tenant.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Inheritance {
    /// Its instances, the oldest first; two at most.
    pub(crate) instances: Vec<Adopted>,
    /// The configuration whose address is open.
    pub(crate) open: Option<Revision>,
    /// An earlier address is open beside it.
    pub(crate) older_open: bool,
    /// Unplanned exits so far.
    pub(crate) restarts: u64,
}

impl Lifecycle {
    pub(super) fn adopt(&mut self, now: Time, inheritance: Inheritance) {
        let Inheritance {
            instances,
            open,
            older_open,
            restarts,
        } = inheritance;
        self.restarts = restarts;
        self.bind = open.map_or(Bind::No, Bind::Yes);
        self.old_address = older_open;
        self.generation = u64::from(instances.iter().any(|adopted| adopted.outdated));
        self.program = self.generation;
        for adopted in instances {
            self.next_id = self.next_id.max(adopted.id.0 + 1);
            let stopping = adopted.stage == Stage::Stopping;
            let mut instance = self.inherit(now, adopted);
            let place = match (stopping, &self.draining, &self.current) {
                (true, None, _) => &mut self.draining,
                (_, _, None) => &mut self.current,
                _ => {
                    // The older one serves, or did until just now; this one is sure of its place when it has been asked.
                    if instance.serves() {
                        instance.phase = self.starting(now);
                        instance.unsure = true;
                    }
                    &mut self.next
                }
            };
            *place = Some(instance);
        }
        if self.current.as_ref().is_some_and(Instance::may_serve) {
            self.record = Urgency::Down;
        }
        if let Some(current) = self.current.as_ref().filter(|current| !current.planned) {
            self.begun = Some(current.revision);
            self.want = Want::Run(Spec {
                revision: current.revision,
                pool: current.pool,
            });
            self.judged = true;
        }
    }

    fn inherit(&self, now: Time, adopted: Adopted) -> Instance {
        let generation = if adopted.outdated { 0 } else { self.generation };
        let Adopted {
            id,
            pid,
            spec,
            connections,
            spawned_at,
            stage,
            keeps_address,
            deaf,
            ..
        } = adopted;
        let deadline = now + self.policy.start_timeout;
        let mut instance = Instance::new(id, spec, generation, connections, spawned_at, deadline);
        instance.pid = Some(pid);
        instance.adopted = true;
        // It served before, or so one must think.
        instance.answers = true;
        instance.keeps_address = keeps_address;
        instance.deaf = deaf;
        match stage {
            Stage::Starting => {}
            Stage::Unsure => instance.unsure = true,
            Stage::Serving => {
                instance.phase = Phase::Ready;
                instance.ready_at = Some(spawned_at);
            }
            Stage::Stopping => {
                instance.ready_at = Some(spawned_at);
                instance.going(now + self.policy.grace);
            }
        }
        instance
    }

    fn starting(&self, now: Time) -> Phase {
        Phase::Starting {
            deadline: now + self.policy.start_timeout,
        }
    }

    /// An adopted instance has said how far it is.
    pub(super) fn learn(
        &mut self,
        now: Time,
        id: InstanceId,
        stage: Stage,
        connections: u32,
        actions: &mut Vec<Action>,
    ) {
        let Some(instance) = self.instance_mut(id) else {
            return;
        };
        instance.unsure = false;
        instance.silent = false;
        instance.connections = connections.min(instance.pool);
        match stage {
            Stage::Unsure | Stage::Starting => {}
            Stage::Serving => self.ready(now, id, actions),
            Stage::Stopping => self.found_stopping(now, id),
        }
    }

    /// An adopted instance was asked how far it is, and does not answer: from now on it counts as one that does not serve.
    pub(super) fn unanswered(&mut self, id: InstanceId) {
        if let Some(instance) = self.instance_mut(id) {
            instance.silent = instance.unsure;
        }
    }

    /// It drains already: told again, it would end at once and lose what is in flight.
    fn found_stopping(&mut self, now: Time, id: InstanceId) {
        let kill_at = now + self.policy.grace;
        let Some(instance) = self.instance_mut(id) else {
            return;
        };
        if matches!(instance.phase, Phase::Stopping { .. }) {
            return;
        }
        instance.going(kill_at);
        if self.draining.is_none()
            && let Some(current) = self.current.take_if(|current| current.id == id)
        {
            self.draining = Some(current);
            self.current = self.next.take();
        }
    }
}
