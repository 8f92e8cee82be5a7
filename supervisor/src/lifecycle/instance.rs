//! One instance as its tenant's life sees it.

use super::{Action, InstanceId, Revision, Spec, Time};
use std::time::Duration;

/// How far an instance is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Phase {
    /// Spawned, or about to be; must be ready by `deadline`.
    Starting { deadline: Time },
    /// Serves, `/readyz` 200.
    Ready,
    /// Serves, `/readyz` is not 200, for this reason.
    Degraded(String),
    /// Told to go; SIGKILL at `kill_at`.
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
    /// The most connections it may hold; what it was told last.
    pub(crate) connections: u32,
    /// What it holds for all we know: until it says otherwise, all it may.
    pub(crate) held: u32,
    /// Some probe of it has been answered.
    pub(crate) answers: bool,
    /// Probes missed in a row.
    pub(crate) missed: u32,
    /// It was told to go; its exit is no failure.
    pub(crate) planned: bool,
    /// Nothing may start before it has gone (stop-then-start).
    pub(crate) blocks_start: bool,
    /// An earlier supervisor started it.
    pub(crate) adopted: bool,
    /// How far it is must be asked first; until then it may be one that serves.
    pub(crate) unsure: bool,
    /// It was asked, and did not answer.
    pub(crate) silent: bool,
    /// The tenant's address is open in it alone.
    pub(crate) keeps_address: bool,
    /// Its private socket cannot be found any more: it can be neither asked nor probed, and is to be replaced.
    pub(crate) deaf: bool,
    /// Its start takes longer than a start slot is for.
    pub(crate) slow: bool,
    /// SIGKILL was sent long ago, and it is still there.
    pub(crate) overdue: bool,
    /// What it said last of itself.
    pub(crate) says: Option<String>,
    /// Why we ended it, which says more than how it exited.
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

    /// The most connections it may have on the server now.
    pub(crate) fn may_hold(&self) -> u32 {
        match self.phase {
            Phase::Stopping { .. } => self.held,
            Phase::Starting { .. } | Phase::Ready | Phase::Degraded(_) => self.connections,
        }
    }

    /// Whether it accepts connections.
    pub(crate) fn serves(&self) -> bool {
        matches!(self.phase, Phase::Ready | Phase::Degraded(_))
    }

    /// Whether it may accept connections for all we know: nobody else is to take them from it.
    pub(crate) fn may_serve(&self) -> bool {
        let unsure = self.unsure && matches!(self.phase, Phase::Starting { .. });
        (self.serves() || unsure) && !self.silent
    }

    /// Whether it is ended when it misses its probes. One that starts is not, but one that has never said that it starts;
    /// and none that no probe can reach.
    pub(crate) fn must_answer(&self) -> bool {
        let unsure = self.unsure && matches!(self.phase, Phase::Starting { .. });
        (self.serves() || unsure) && !self.deaf
    }

    /// Nothing is in flight in an instance that never served.
    pub(crate) fn grace(&self, full: Duration) -> Duration {
        if self.serves() {
            full
        } else {
            super::SHORT_GRACE.min(full)
        }
    }

    /// SIGTERM now, SIGKILL at `kill_at`; does nothing to one that was told already.
    pub(crate) fn terminate(&mut self, kill_at: Time, actions: &mut Vec<Action>) {
        if !matches!(self.phase, Phase::Stopping { .. }) {
            self.held = self.connections;
            self.going(kill_at);
            actions.push(Action::Terminate(self.id));
        }
        self.planned = true;
    }

    /// It goes, by whoever's word; SIGKILL at `kill_at`.
    pub(super) fn going(&mut self, kill_at: Time) {
        self.phase = Phase::Stopping {
            kill_at,
            killed: false,
        };
        self.planned = true;
    }

    /// SIGKILL was sent long enough ago to know that the kernel does not let it go.
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

    /// When something is due to happen to it whatever else happens.
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
