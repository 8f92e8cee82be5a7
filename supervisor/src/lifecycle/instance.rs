//! An instance as its tenant's lifecycle sees it.

use super::{Action, InstanceId, Revision, SHORT_GRACE, SLOT_FOR, Spec, Time, UNKILLABLE_AFTER};
use std::time::Duration;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Phase {
    /// Spawned, or about to be.
    Starting(Starting),
    /// Serving, and `/readyz` answers 200.
    Ready,
    /// Serving, but `/readyz` does not answer 200, for this reason.
    Degraded(String),
    /// Told to end.
    Stopping(Stopping),
}

/// A start under way.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Starting {
    /// The time when the instance must be ready.
    deadline: Time,
    /// The time when the start gives up its start slot; `None` after that.
    slot_until: Option<Time>,
    origin: StartOrigin,
    /// The latest `STATUS=` text.
    says: Option<String>,
}

/// The supervisor that a starting instance comes from, and its answer to the question about its stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartOrigin {
    /// This supervisor spawned the instance.
    Spawned,
    /// The instance was adopted, and reported that it is starting.
    Adopted,
    /// The instance was adopted, and must be asked. It may be serving.
    Unsure,
    /// The instance was adopted, and did not answer when asked.
    Silent,
}

/// The stage of ending an instance by force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KillStage {
    /// SIGKILL is due at this time.
    Due(Time),
    /// SIGKILL was sent at this time.
    Sent(Time),
    /// The process still exists long after SIGKILL, so the kernel seems unable to end it.
    Unkillable,
}

/// The end of an instance under way.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stopping {
    kill: KillStage,
    /// True when the instance is no longer wanted, so that its exit is no failure.
    planned: bool,
    /// The reason why the supervisor ended the instance, shown instead of the exit status.
    failure: Option<String>,
}

impl Phase {
    /// Returns the first phase of an instance.
    pub(super) fn starting(spawned_at: Time, deadline: Time, origin: StartOrigin) -> Self {
        Self::Starting(Starting {
            deadline,
            slot_until: Some(spawned_at + SLOT_FOR),
            origin,
            says: None,
        })
    }

    /// Returns the phase of an instance that has failed.
    fn failed(kill: KillStage, reason: String) -> Self {
        Self::Stopping(Stopping {
            kill,
            planned: false,
            failure: Some(reason),
        })
    }
}

/// One run of the tenant's broker.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Instance {
    pub(crate) id: InstanceId,
    pub(crate) revision: Revision,
    pub(crate) generation: u64,
    pub(crate) pool: u32,
    pub(crate) pid: Option<i32>,
    pub(crate) phase: Phase,
    pub(crate) spawned_at: Time,
    pub(crate) ready_at: Option<Time>,
    /// The largest number of connections that the instance was allowed last.
    pub(crate) connections: u32,
    /// The number of connections the instance holds; until it reports them, all it was allowed.
    pub(crate) held: u32,
    /// True once a probe was answered.
    pub(crate) answers: bool,
    /// Number of probes missed in a row.
    pub(crate) missed: u32,
    /// True when only this instance has the tenant's socket.
    pub(crate) keeps_address: bool,
    /// True when the private socket is lost: the instance can be neither asked nor probed, and must be replaced.
    pub(crate) deaf: bool,
}

impl Instance {
    pub(crate) fn new(
        id: InstanceId,
        spec: Spec,
        generation: u64,
        connections: u32,
        now: Time,
        deadline: Time,
    ) -> Self {
        Self {
            id,
            revision: spec.revision,
            generation,
            pool: spec.pool,
            pid: None,
            phase: Phase::starting(now, deadline, StartOrigin::Spawned),
            spawned_at: now,
            ready_at: None,
            connections,
            held: connections,
            answers: false,
            missed: 0,
            keeps_address: false,
            deaf: false,
        }
    }

    pub(super) fn start(&self) -> Option<&Starting> {
        match &self.phase {
            Phase::Starting(start) => Some(start),
            _ => None,
        }
    }

    fn start_mut(&mut self) -> Option<&mut Starting> {
        match &mut self.phase {
            Phase::Starting(start) => Some(start),
            _ => None,
        }
    }

    pub(super) fn stop(&self) -> Option<&Stopping> {
        match &self.phase {
            Phase::Stopping(stop) => Some(stop),
            _ => None,
        }
    }

    /// Returns the largest number of connections the instance may have on the server now.
    pub(crate) fn may_hold(&self) -> u32 {
        match self.stop() {
            Some(_) => self.held,
            None => self.connections,
        }
    }

    /// Returns true when the instance accepts connections.
    pub(crate) fn serves(&self) -> bool {
        matches!(self.phase, Phase::Ready | Phase::Degraded(_))
    }

    /// Returns the origin of a starting instance.
    pub(super) fn origin(&self) -> Option<StartOrigin> {
        self.start().map(|start| start.origin)
    }

    /// Returns true when an adopted instance has not told its stage yet; it may be serving.
    pub(crate) fn is_unsure(&self) -> bool {
        matches!(
            self.origin(),
            Some(StartOrigin::Unsure | StartOrigin::Silent)
        )
    }

    /// Returns true when the instance may accept connections, so that the stand-in must not take them from it.
    pub(crate) fn may_serve(&self) -> bool {
        self.serves() || self.origin() == Some(StartOrigin::Unsure)
    }

    /// Returns true when the instance must answer its probes or be ended. A starting instance need not, unless it is
    /// unsure; nor must an instance that no probe can reach.
    pub(crate) fn must_answer(&self) -> bool {
        (self.serves() || self.is_unsure()) && !self.deaf
    }

    /// Returns true when the instance is starting, as far as known, and is entitled to a start slot.
    pub(super) fn needs_slot(&self) -> bool {
        let needs =
            |start: &Starting| start.slot_until.is_some() && start.origin != StartOrigin::Silent;
        self.start().is_some_and(needs)
    }

    /// Returns true when the instance was told to end because it is no longer wanted, so that its exit is no failure.
    pub(crate) fn ends_as_planned(&self) -> bool {
        self.stop().is_some_and(|stop| stop.planned)
    }

    /// Returns the reason why the supervisor ended the instance, shown instead of the exit status.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.stop()?.failure.as_deref()
    }

    /// Returns true once SIGKILL was sent.
    pub(super) fn is_killed(&self) -> bool {
        let killed = |stop: &Stopping| !matches!(stop.kill, KillStage::Due(_));
        self.stop().is_some_and(killed)
    }

    /// Returns true when SIGKILL was sent so long ago that the kernel seems unable to end the process.
    pub(crate) fn unkillable(&self) -> bool {
        let unkillable = |stop: &Stopping| stop.kill == KillStage::Unkillable;
        self.stop().is_some_and(unkillable)
    }

    /// Returns the time to drain: short for an instance that never served, because it has nothing in flight.
    pub(crate) fn grace(&self, full: Duration) -> Duration {
        if self.serves() {
            full
        } else {
            SHORT_GRACE.min(full)
        }
    }

    /// Sends SIGTERM now and sets SIGKILL for `kill_at`. Sends nothing to an instance that is stopping already.
    pub(crate) fn terminate(&mut self, kill_at: Time, actions: &mut Vec<Action>) {
        if let Phase::Stopping(stop) = &mut self.phase {
            stop.planned = true;
            return;
        }
        self.held = self.connections;
        self.going(kill_at);
        actions.push(Action::Terminate(self.id));
    }

    /// Marks the instance as stopping, with SIGKILL at `kill_at`.
    pub(super) fn going(&mut self, kill_at: Time) {
        self.phase = Phase::Stopping(Stopping {
            kill: KillStage::Due(kill_at),
            planned: true,
            failure: None,
        });
    }

    /// Ends a hung instance: with SIGABRT if it gets time to write a core, else with SIGKILL.
    pub(super) fn end_hung(
        &mut self,
        now: Time,
        core_within: Option<Duration>,
        reason: String,
        actions: &mut Vec<Action>,
    ) {
        // A hung instance reports no count, so it may hold all of its connections until it ends.
        self.held = self.connections;
        let (kill, action) = match core_within {
            Some(time) => (KillStage::Due(now + time), Action::Abort(self.id)),
            None => (KillStage::Sent(now), Action::Kill(self.id)),
        };
        self.phase = Phase::failed(kill, reason);
        actions.push(action);
    }

    /// Ends an instance that is not ready in time, and kills an instance that does not stop in time.
    pub(super) fn enforce_deadline(
        &mut self,
        now: Time,
        start_timeout: Duration,
        actions: &mut Vec<Action>,
    ) {
        match &mut self.phase {
            Phase::Starting(start) if start.deadline <= now => {
                let says = start.says.as_deref().map(|says| format!(": {says}"));
                let says = says.unwrap_or_default();
                let reason = format!("not ready within {start_timeout:?}{says}");
                self.phase = Phase::failed(KillStage::Due(now + SHORT_GRACE), reason);
                actions.push(Action::Terminate(self.id));
            }
            Phase::Stopping(stop) => match stop.kill {
                KillStage::Due(at) if at <= now => {
                    stop.kill = KillStage::Sent(now);
                    actions.push(Action::Kill(self.id));
                }
                KillStage::Sent(at) if at + UNKILLABLE_AFTER <= now => {
                    stop.kill = KillStage::Unkillable;
                }
                _ => {}
            },
            _ => {}
        }
    }

    /// Gives up the start slot when the start takes too long. Returns true when that happens now.
    pub(super) fn give_up_slot(&mut self, now: Time) -> bool {
        let slot = self.start_mut().map(|start| &mut start.slot_until);
        slot.is_some_and(|slot| slot.take_if(|until| *until <= now).is_some())
    }

    pub(crate) fn extend(&mut self, until: Time) {
        if let Some(start) = self.start_mut() {
            start.deadline = start.deadline.max(until);
        }
    }

    /// Records the instance's description of its state.
    pub(super) fn note_status(&mut self, text: String) {
        if let Some(start) = self.start_mut() {
            start.says = Some(text);
        }
    }

    /// Records the answer of an adopted instance to the question about its stage.
    pub(super) fn note_origin(&mut self, told: StartOrigin) {
        if self.is_unsure()
            && let Some(start) = self.start_mut()
        {
            start.origin = told;
        }
    }

    pub(crate) fn answered(&mut self, not_ready: Option<String>) {
        self.answers = true;
        self.missed = 0;
        if self.serves() {
            self.phase = not_ready.map_or(Phase::Ready, Phase::Degraded);
        }
    }

    /// Returns the time when the instance's phase must be looked at, even if no event comes.
    pub(crate) fn deadline(&self) -> Option<Time> {
        match &self.phase {
            Phase::Starting(start) => {
                let slot = start.slot_until.unwrap_or(start.deadline);
                Some(start.deadline.min(slot))
            }
            Phase::Stopping(stop) => match stop.kill {
                KillStage::Due(at) => Some(at),
                KillStage::Sent(at) => Some(at + UNKILLABLE_AFTER),
                KillStage::Unkillable => None,
            },
            Phase::Ready | Phase::Degraded(_) => None,
        }
    }
}
