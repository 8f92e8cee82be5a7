//! Who of one tenant may hold how many connections: pool and two, over a replacement, a crash and a take-over.
//!
//! What an instance leaves behind on the server counts until the prober no longer sees it: a backend whose client was
//! killed goes on with its statement.

use super::{Action, Instance, Lifecycle, Phase, REPLACEMENT_CONNECTIONS, Time, Want};
use std::time::Duration;

/// Between two looks for a count that is young enough.
const LOOK: Duration = Duration::from_millis(100);
/// From a count that has found some to the next.
const COUNT_AGAIN: Duration = Duration::from_secs(1);
/// What is seen for longer is not left over: a command, or another supervisor of this host with a tenant of the same name.
const WAITED_FOR: Duration = Duration::from_secs(60);

/// Connections that an instance which has gone may have left on the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leftovers {
    /// A count from before says nothing of them.
    since: Time,
    /// When they are counted next.
    count_at: Time,
    /// They are waited for until then; `None`: from the first count on.
    until: Option<Time>,
    /// Counts that have found some.
    counts: u32,
}

impl Leftovers {
    /// Of an instance that has gone now.
    pub(super) fn since(now: Time) -> Self {
        Self {
            since: now,
            count_at: now,
            until: Some(now + WAITED_FOR),
            counts: 0,
        }
    }

    /// Nobody knows what there was before: to be counted at once.
    pub(super) fn unknown() -> Self {
        Self {
            since: Time::ZERO,
            count_at: Time::ZERO,
            until: None,
            counts: 0,
        }
    }
}

impl Lifecycle {
    /// One that was told to go has gone: whatever it still held when it went may be at work on the server yet.
    pub(super) fn note_leftovers(&mut self, now: Time, gone: &Instance) {
        let killed = matches!(gone.phase, Phase::Stopping { killed: true, .. });
        if killed || gone.held > 0 {
            self.lingering = Some(Leftovers::since(now));
        }
    }

    /// One that was taken over with less than its pool, and shares it with nobody, was given so much because of what
    /// another had left on the server: that may be there still.
    pub(super) fn explain_connections(&mut self, now: Time) {
        if let Some(current) = &self.current
            && self.processes() == 1
            && current.connections < current.pool
        {
            self.lingering.get_or_insert(Leftovers::since(now));
        }
    }

    /// When leftovers are to be counted: while their server can be asked.
    pub(super) fn count_due(&self) -> Option<Time> {
        let counts = self.server.is_ok() && matches!(self.want, Want::Run(_));
        let left = self.lingering.filter(|_| counts)?;
        Some(left.count_at)
    }

    pub(super) fn count_leftovers(&mut self, now: Time, actions: &mut Vec<Action>) {
        if self.count_due().is_some_and(|at| at <= now)
            && let Some(left) = &mut self.lingering
        {
            left.count_at = now + LOOK;
            left.until.get_or_insert(now + WAITED_FOR);
            let since = left.since;
            actions.push(Action::CountBackends { since });
        }
    }

    /// The server sees so many, those of the current instance among them.
    pub(super) fn counted(&mut self, now: Time, count: u32) {
        let late = |left: &Leftovers| left.until.is_some_and(|until| until <= now);
        let own = self.current.as_ref().map_or(0, |c| c.connections);
        if count <= own.max(REPLACEMENT_CONNECTIONS) || self.lingering.as_ref().is_some_and(late) {
            self.lingering = None;
        }
        if let Some(left) = &mut self.lingering {
            left.since = now;
            left.count_at = now + COUNT_AGAIN;
            left.counts += 1;
        }
    }

    /// Why it has less than its pool, where that is because of what the server still shows.
    pub(super) fn held_back(&self) -> Option<String> {
        let current = self.current.as_ref().filter(|current| current.serves())?;
        // The first count may have come before the server noticed.
        let found = self.lingering.is_some_and(|left| left.counts > 1);
        let (most, pool) = (current.connections, current.pool);
        (found && most < pool).then(|| {
            format!("held at {most} of its {pool} connections: what the last one left is still at work on the server")
        })
    }

    /// Splits the pool between the current instance and whatever else of this tenant still holds connections.
    pub(super) fn share_connections(&mut self, actions: &mut Vec<Action>) {
        let draining = self.draining.as_ref().map_or(0, |d| d.held);
        let Some(current) = &mut self.current else {
            return;
        };
        if !current.serves() {
            return;
        }
        // What is left of one that has gone was reckoned with when this one was given what it has.
        let most = if self.lingering.is_some() {
            current.connections
        } else {
            (current.pool + REPLACEMENT_CONNECTIONS)
                .saturating_sub(draining)
                .clamp(REPLACEMENT_CONNECTIONS.min(current.pool), current.pool)
        };
        if most != current.connections {
            current.connections = most;
            actions.push(Action::SetConnections(current.id, most));
        }
    }

    /// Whether it takes the room of a replacement now, or may: what a killed instance left behind counts, too.
    pub(super) fn takes_room(&self) -> bool {
        let left_over = self.lingering.is_some() && matches!(self.want, Want::Run(_));
        self.overlaps() || (left_over && !self.is_stuck())
    }

    /// Whether two instances together may hold more than the pool, and one of them is to let go of it.
    pub(crate) fn overlaps(&self) -> bool {
        self.exceeds_pool() && !self.is_stuck()
    }

    fn exceeds_pool(&self) -> bool {
        let (mut held, mut pool) = (0_u32, 0);
        for instance in self.instances() {
            held = held.saturating_add(match instance.phase {
                Phase::Stopping { .. } => instance.held,
                _ => instance.connections,
            });
            pool = pool.max(instance.pool);
        }
        held > pool
    }

    /// One that cannot be killed may take its room for ever: the tenant is charged for it instead, and others are replaced
    /// within what is left.
    fn is_stuck(&self) -> bool {
        self.instances().any(Instance::unkillable)
    }

    /// What the tenant is charged for one of its instances: the pool, and what an overlap takes if it may never end.
    pub(crate) fn charge(&self, instance: &Instance) -> u32 {
        if instance.unkillable() && self.exceeds_pool() {
            instance.pool.saturating_add(REPLACEMENT_CONNECTIONS)
        } else {
            instance.pool
        }
    }
}
