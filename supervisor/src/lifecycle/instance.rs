//! An instance as its tenant's lifecycle sees it.

use super::{Action, InstanceId, Revision, Spec, Time};
use std::time::Duration;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Phase {
    /// Spawned, or about to be; must be ready by `deadline`.
    Starting { deadline: Time },
    /// Serving, and `/readyz` answers 200.
    Ready,
    /// Serving, but `/readyz` does not answer 200, for this reason.
    Degraded(String),
    /// Told to end; SIGKILL follows at `kill_at`.
    Stopping { kill_at: Time, killed: bool },
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
    /// True once the instance was told to end, so that its exit is no failure.
    pub(crate) planned: bool,
    /// True when nothing may start until the instance has ended (stop-then-start).
    pub(crate) blocks_start: bool,
    /// True when an earlier supervisor started the instance.
    pub(crate) adopted: bool,
    /// True until an adopted instance has told its stage; it may be serving.
    pub(crate) unsure: bool,
    /// True when the instance was asked for its stage and did not answer.
    pub(crate) silent: bool,
    /// True when only this instance has the tenant's socket.
    pub(crate) keeps_address: bool,
    /// True when the private socket is lost: the instance can be neither asked nor probed, and must be replaced.
    pub(crate) deaf: bool,
    /// True when the start takes longer than it may keep a start slot.
    pub(crate) slow: bool,
    /// True when the process still exists long after SIGKILL.
    pub(crate) overdue: bool,
    /// The latest `STATUS=` text.
    pub(crate) says: Option<String>,
    /// Reason why the supervisor ended the instance, shown instead of the exit status.
    pub(crate) verdict: Option<String>,
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
            phase: Phase::Starting { deadline },
            spawned_at: now,
            ready_at: None,
            connections,
            held: connections,
            answers: false,
            missed: 0,
            planned: false,
            blocks_start: false,
            adopted: false,
            unsure: false,
            silent: false,
            keeps_address: false,
            deaf: false,
            slow: false,
            overdue: false,
            says: None,
            verdict: None,
        }
    }

    /// Returns the largest number of connections the instance may have on the server now.
    pub(crate) fn may_hold(&self) -> u32 {
        match self.phase {
            Phase::Stopping { .. } => self.held,
            Phase::Starting { .. } | Phase::Ready | Phase::Degraded(_) => self.connections,
        }
    }

    /// Returns true when the instance accepts connections.
    pub(crate) fn serves(&self) -> bool {
        matches!(self.phase, Phase::Ready | Phase::Degraded(_))
    }

    /// Returns true when the instance may accept connections, so that the stand-in must not take them from it.
    pub(crate) fn may_serve(&self) -> bool {
        let unsure = self.unsure && matches!(self.phase, Phase::Starting { .. });
        (self.serves() || unsure) && !self.silent
    }

    /// Returns true when the instance must answer its probes or be ended. A starting instance need not, unless it is
    /// unsure; nor must an instance that no probe can reach.
    pub(crate) fn must_answer(&self) -> bool {
        let unsure = self.unsure && matches!(self.phase, Phase::Starting { .. });
        (self.serves() || unsure) && !self.deaf
    }

    /// Returns the time to drain: short for an instance that never served, because it has nothing in flight.
    pub(crate) fn grace(&self, full: Duration) -> Duration {
        if self.serves() {
            full
        } else {
            super::SHORT_GRACE.min(full)
        }
    }

    /// Sends SIGTERM now and sets SIGKILL for `kill_at`. Sends nothing to an instance that is stopping already.
    pub(crate) fn terminate(&mut self, kill_at: Time, actions: &mut Vec<Action>) {
        if !matches!(self.phase, Phase::Stopping { .. }) {
            self.held = self.connections;
            self.going(kill_at);
            actions.push(Action::Terminate(self.id));
        }
        self.planned = true;
    }

    /// Marks the instance as stopping, with SIGKILL at `kill_at`.
    pub(super) fn going(&mut self, kill_at: Time) {
        self.phase = Phase::Stopping {
            kill_at,
            killed: false,
        };
        self.planned = true;
    }

    /// Returns true when SIGKILL was sent so long ago that the kernel seems unable to end the process.
    pub(crate) fn unkillable(&self) -> bool {
        self.overdue
    }

    pub(crate) fn extend(&mut self, until: Time) {
        if let Phase::Starting { deadline } = &mut self.phase {
            *deadline = (*deadline).max(until);
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
        match self.phase {
            Phase::Starting { deadline } if self.slow => Some(deadline),
            Phase::Starting { deadline } => Some(deadline.min(self.spawned_at + super::SLOT_FOR)),
            Phase::Stopping {
                kill_at,
                killed: false,
            } => Some(kill_at),
            Phase::Stopping {
                kill_at,
                killed: true,
            } if !self.overdue => Some(kill_at + super::UNKILLABLE_AFTER),
            Phase::Stopping { .. } | Phase::Ready | Phase::Degraded(_) => None,
        }
    }
}
