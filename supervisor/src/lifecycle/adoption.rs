//! Takes over a tenant that began under an earlier supervisor, without ending or starting any instance.
//!
//! An instance in an unknown stage is *unsure* until it has been asked. An unsure instance is left alone, because it
//! may serve: the stand-in does not answer in its place. An instance that does not answer the question is *silent*:
//! after two seconds the stand-in answers for its tenant, and the probes find out if the instance is hung. An instance
//! that is only starting would have answered.

use super::*;

/// The stage an adopted instance has reached, as far as known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AdoptedStage {
    /// Not known: the instance must be asked.
    Unsure,
    /// Not ready yet.
    Starting,
    /// The instance accepts connections.
    Serving,
    /// The instance was told to end.
    Stopping,
}

/// An instance of an earlier supervisor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AdoptedInstance {
    pub(crate) id: InstanceId,
    pub(crate) pid: i32,
    /// Configuration and pool of the instance.
    pub(crate) spec: Spec,
    /// The largest number of connections that the instance was allowed, as far as known.
    pub(crate) connections: u32,
    pub(crate) spawned_at: Time,
    pub(crate) stage: AdoptedStage,
    /// True when the instance must be replaced by overlap regardless of its configuration.
    pub(crate) outdated: bool,
    /// True when only this instance has the tenant's socket. It is drained first: nothing can start beside it.
    pub(crate) keeps_address: bool,
    /// True when the instance can be neither asked nor probed.
    pub(crate) deaf: bool,
}

/// The instances and sockets that an earlier supervisor left of one tenant.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Inheritance {
    /// The tenant's instances, oldest first; two at most.
    pub(crate) instances: Vec<AdoptedInstance>,
    /// The configuration whose address is open.
    pub(crate) open: Option<Revision>,
    /// True when an earlier address is open too.
    pub(crate) older_open: bool,
    /// Number of unplanned exits so far.
    pub(crate) restarts: u64,
}

impl Lifecycle {
    pub(super) fn adopt(&mut self, now: Time, inheritance: Inheritance) {
        let instances = &inheritance.instances;
        self.restarts = inheritance.restarts;
        self.bind = inheritance.open.map_or(Bind::No, Bind::Yes);
        self.old_address = inheritance.older_open;
        self.generation = u64::from(instances.iter().any(|adopted| adopted.outdated));
        self.program = self.generation;
        for adopted in instances {
            self.next_id = self.next_id.max(adopted.id.0 + 1);
            let mut instance = self.inherit(now, adopted);
            self.occupancy = match std::mem::take(&mut self.occupancy) {
                Occupancy::Empty if instance.stop().is_some() => Occupancy::ending(instance, None),
                Occupancy::One(current) if instance.stop().is_some() => Occupancy::Draining {
                    current,
                    old: instance,
                },
                Occupancy::One(old) => {
                    // The older instance serves, or did until now. This one must be asked before it may take its place.
                    if instance.serves() {
                        let deadline = now + self.policy.start_timeout;
                        let spawned_at = instance.spawned_at;
                        instance.phase = Phase::starting(spawned_at, deadline, StartOrigin::Unsure);
                    }
                    Occupancy::Replacing { old, new: instance }
                }
                mut other => {
                    other.add(instance);
                    other
                }
            };
        }
        let current = self.occupancy.current();
        if current.is_some_and(Instance::may_serve) {
            self.record = Urgency::Down;
        }
        if let Some(current) = current.filter(|current| !current.ends_as_planned()) {
            self.begun = Some(current.revision);
            self.want = Want::Run(Spec {
                revision: current.revision,
                pool: current.pool,
            });
            self.judged = true;
        }
    }

    fn inherit(&self, now: Time, adopted: &AdoptedInstance) -> Instance {
        let generation = if adopted.outdated { 0 } else { self.generation };
        let deadline = now + self.policy.start_timeout;
        let (id, spawned_at, connections) = (adopted.id, adopted.spawned_at, adopted.connections);
        let starting = |origin| Phase::starting(spawned_at, deadline, origin);
        let mut instance = Instance {
            pid: Some(adopted.pid),
            // Assume that the instance has served before.
            answers: true,
            keeps_address: adopted.keeps_address,
            deaf: adopted.deaf,
            phase: starting(StartOrigin::Adopted),
            ..Instance::new(
                id,
                adopted.spec,
                generation,
                connections,
                spawned_at,
                deadline,
            )
        };
        match adopted.stage {
            AdoptedStage::Starting => {}
            AdoptedStage::Unsure => instance.phase = starting(StartOrigin::Unsure),
            AdoptedStage::Serving => {
                instance.phase = Phase::Ready;
                instance.ready_at = Some(spawned_at);
            }
            AdoptedStage::Stopping => {
                instance.ready_at = Some(spawned_at);
                instance.going(now + self.policy.grace);
            }
        }
        instance
    }

    /// Records the stage and the connections that an adopted instance has reported.
    pub(super) fn learn(
        &mut self,
        now: Time,
        id: InstanceId,
        stage: AdoptedStage,
        connections: u32,
        actions: &mut Vec<Action>,
    ) {
        let Some(instance) = self.instance_mut(id) else {
            return;
        };
        instance.note_origin(StartOrigin::Adopted);
        instance.connections = connections.min(instance.pool);
        match stage {
            AdoptedStage::Unsure | AdoptedStage::Starting => {}
            AdoptedStage::Serving => self.ready(now, id, actions),
            AdoptedStage::Stopping => self.found_stopping(now, id),
        }
    }

    /// Records that the instance drains already. A second SIGTERM would end it at once and lose requests in flight.
    fn found_stopping(&mut self, now: Time, id: InstanceId) {
        let kill_at = now + self.policy.grace;
        let Some(instance) = self.instance_mut(id).filter(|i| i.stop().is_none()) else {
            return;
        };
        instance.going(kill_at);
        self.occupancy = match std::mem::take(&mut self.occupancy) {
            Occupancy::One(old) => Occupancy::ending(old, None),
            Occupancy::Replacing { old, new } if old.id == id => {
                Occupancy::Draining { current: new, old }
            }
            same => same,
        };
    }
}
