//! Limits the connections of one tenant to its pool plus two, over a replacement, a crash and a take-over.
//!
//! Connections that an ended instance left on the server (*leftovers*) count until the prober no longer sees them,
//! because the backend of a killed client goes on with its statement. Until they are counted, they may be as many as
//! the instance was allowed. They are counted on the server where that instance ran, because the tenant may have moved.

use super::{Action, Instance, Lifecycle, REPLACEMENT_CONNECTIONS, Revision, Spec, Time, Want};
use std::collections::BTreeSet;
use std::time::Duration;

/// Delay before asking again for a count that is recent enough.
const LOOK: Duration = Duration::from_millis(100);
/// Delays from a count that found leftovers to the next, first short, then long: most end in a moment.
const COUNT_AGAIN: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(1)];
/// Number of counts that are followed by the short delay.
const SOON: u32 = 5;
/// Connections seen for longer are no leftovers: they belong to a command, or to a tenant of the same name under
/// another supervisor of this host.
const WAITED_FOR: Duration = Duration::from_secs(60);

/// Connections that ended instances may have left on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leftovers {
    /// The largest number of leftovers; `None` until they are counted for the first time.
    most: Option<u32>,
    /// A count from before this time says nothing about them.
    since: Time,
    /// Time of the next count.
    count_at: Time,
    /// Time when waiting for them ends; `None` until the first count is asked for.
    until: Option<Time>,
    /// Number of counts that found leftovers.
    counts: u32,
    /// The configurations of the ended instances, which tell on which servers to count.
    of: BTreeSet<Revision>,
}

impl Leftovers {
    /// Returns leftovers of instances of which the last ended at `now`.
    fn since(now: Time, most: Option<u32>, of: BTreeSet<Revision>) -> Self {
        Self {
            most,
            since: now,
            count_at: now,
            until: Some(now + WAITED_FOR),
            counts: 0,
            of,
        }
    }

    /// Returns leftovers of unknown earlier instances, to be counted at once.
    pub(super) fn unknown() -> Self {
        Self {
            most: None,
            since: Time::ZERO,
            count_at: Time::ZERO,
            until: None,
            counts: 0,
            of: BTreeSet::new(),
        }
    }
}

impl Lifecycle {
    /// Adds the connections that `gone` may have left on the server to the leftovers.
    pub(super) fn note_leftovers(&mut self, now: Time, gone: &Instance) {
        if gone.may_hold() == 0 {
            return;
        }
        let before = self.left_over();
        let most = before.map(|before| before.saturating_add(gone.may_hold()));
        let mut of = self
            .lingering
            .take()
            .map(|left| left.of)
            .unwrap_or_default();
        let _ = of.insert(gone.revision);
        self.lingering = Some(Leftovers::since(now, most, of));
    }

    /// Counts the leftovers at once, because an instance has become ready and may get its whole pool.
    pub(super) fn count_now(&mut self, now: Time) {
        if let Some(left) = &mut self.lingering {
            left.count_at = now;
        }
    }

    /// Returns the number of connections an instance of `spec` may start with, beside the tenant's instances and
    /// leftovers. `None` if it must wait until some of these have ended, or been counted.
    pub(super) fn may_start_with(&self, spec: Spec) -> Option<u32> {
        let pool = self.instances().map(|i| i.pool).fold(spec.pool, u32::max);
        let held: u32 = self.instances().map(Instance::may_hold).sum();
        let taken = held.checked_add(self.left_over()?)?;
        let least = REPLACEMENT_CONNECTIONS.min(spec.pool);
        let most = (pool + REPLACEMENT_CONNECTIONS).saturating_sub(taken);
        (most >= least).then(|| most.min(spec.pool))
    }

    /// Returns true when leftovers keep an instance from starting.
    pub(super) fn lacks_room(&self) -> bool {
        matches!(self.want, Want::Run(spec) if self.may_start_with(spec).is_none())
    }

    /// Returns the largest possible number of leftovers; `None` until they are counted.
    fn left_over(&self) -> Option<u32> {
        self.lingering.as_ref().map_or(Some(0), |left| left.most)
    }

    /// Returns true when an ended instance of this configuration may have connections left on its server.
    pub(crate) fn may_have_left(&self, revision: Revision) -> bool {
        let left = self.lingering.as_ref();
        left.is_some_and(|left| left.of.contains(&revision))
    }

    /// Returns the time of the next count. None while the wanted server is down, unless some are elsewhere.
    pub(super) fn count_due(&self) -> Option<Time> {
        let Want::Run(spec) = self.want else {
            return None;
        };
        let left = self.lingering.as_ref()?;
        let elsewhere = left.of.iter().any(|revision| *revision != spec.revision);
        (self.server.is_ok() || elsewhere).then_some(left.count_at)
    }

    pub(super) fn count_leftovers(&mut self, now: Time, actions: &mut Vec<Action>) {
        if self.count_due().is_none_or(|at| at > now) {
            return;
        }
        let given_up = |left: &Leftovers| left.until.is_some_and(|until| until <= now);
        if self.lingering.as_ref().is_some_and(given_up) {
            // Their server cannot be asked, which may be why the tenant has left it.
            self.lingering = None;
            self.share_connections(actions);
            return;
        }
        let mut running: BTreeSet<Revision> = self.instances().map(|i| i.revision).collect();
        if let Want::Run(spec) = self.want {
            let _ = running.insert(spec.revision);
        }
        let Some(left) = &mut self.lingering else {
            return;
        };
        if left.most.is_none() {
            // Leftovers of an earlier supervisor's instances may be on any server of the tenant.
            left.of.extend(running);
        }
        left.count_at = now + LOOK;
        left.until.get_or_insert(now + WAITED_FOR);
        let (since, of) = (left.since, left.of.iter().copied().collect());
        actions.push(Action::CountLeftOver { since, of });
    }

    /// Records that `count` leftovers were seen at `since` or later.
    pub(super) fn counted(&mut self, now: Time, since: Time, count: u32) {
        // An instance that has ended after `since` may have left more.
        let Some(left) = self.lingering.as_mut().filter(|left| left.since <= since) else {
            return;
        };
        let late = left.until.is_some_and(|until| until <= now);
        if count == 0 || late {
            self.lingering = None;
            return;
        }
        left.most = Some(count);
        left.since = now;
        left.count_at = now + COUNT_AGAIN[usize::from(left.counts >= SOON)];
        left.counts += 1;
    }

    /// Returns the reason why the current instance has less than its pool, if leftovers are the reason.
    pub(super) fn held_back(&self) -> Option<String> {
        let current = self.current().filter(|current| current.serves())?;
        // The first count may be from before the server noticed the disconnect.
        let left = self.lingering.as_ref();
        let found = left.is_some_and(|left| left.counts > 1);
        let (most, pool) = (current.connections, current.pool);
        (found && most < pool).then(|| {
            format!("held at {most} of its {pool} connections: what the last one left is still at work on the server")
        })
    }

    /// Splits the pool between the current instance and the tenant's other connections.
    pub(super) fn share_connections(&mut self, actions: &mut Vec<Action>) {
        let draining = self.occupancy.draining().map_or(0, |d| d.held);
        let left = self.left_over();
        let Some(current) = self.occupancy.current_mut() else {
            return;
        };
        if !current.serves() {
            return;
        }
        let Some(left) = left else {
            return;
        };
        let most = (current.pool + REPLACEMENT_CONNECTIONS)
            .saturating_sub(draining.saturating_add(left))
            .clamp(REPLACEMENT_CONNECTIONS.min(current.pool), current.pool);
        if most != current.connections {
            current.connections = most;
            actions.push(Action::SetConnections(current.id, most));
        }
    }

    /// Returns true when the tenant takes a replacement's room in the budget, or may take it: leftovers count too.
    pub(super) fn takes_room(&self) -> bool {
        let left_over = self.lingering.is_some() && matches!(self.want, Want::Run(_));
        self.overlaps() || (left_over && !self.is_stuck())
    }

    /// Returns true when the instances together may hold more than the pool, and one of them is about to end.
    pub(crate) fn overlaps(&self) -> bool {
        self.exceeds_pool() && !self.is_stuck()
    }

    fn exceeds_pool(&self) -> bool {
        let (mut held, mut pool) = (0_u32, 0);
        for instance in self.instances() {
            held = held.saturating_add(instance.may_hold());
            pool = pool.max(instance.pool);
        }
        held > pool
    }

    /// Returns true when an instance cannot be killed. It may keep its room forever, so that room is charged to the
    /// tenant, and other tenants are replaced in what remains.
    fn is_stuck(&self) -> bool {
        self.instances().any(Instance::unkillable)
    }

    /// Returns the tenant's charge for an instance: the pool, plus two connections if an overlap may never end.
    pub(crate) fn charge(&self, instance: &Instance) -> u32 {
        if instance.unkillable() && self.exceeds_pool() {
            instance.pool.saturating_add(REPLACEMENT_CONNECTIONS)
        } else {
            instance.pool
        }
    }
}
