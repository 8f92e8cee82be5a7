//! Who of one tenant may hold how many connections: pool and two, over a replacement, a crash and a take-over.
//!
//! What an instance leaves behind on the server counts until the prober no longer sees it: a backend whose client was
//! killed goes on with its statement. Until it has been counted it may be all that the instance was allowed. It is counted
//! where that instance ran, because a tenant that moves to another server has left it on the old one.

use super::{Action, Instance, Lifecycle, REPLACEMENT_CONNECTIONS, Revision, Spec, Time, Want};
use std::collections::BTreeSet;
use std::time::Duration;

/// Between two looks for a count that is young enough.
const LOOK: Duration = Duration::from_millis(100);
/// From a count that has found some to the next: most are gone in a moment, the others may take long.
const COUNT_AGAIN: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(1)];
/// Counts that are made in a moment.
const SOON: u32 = 5;
/// What is seen for longer is not left over: a command, or another supervisor of this host with a tenant of the same name.
const WAITED_FOR: Duration = Duration::from_secs(60);

/// Connections that an instance which has gone may have left on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leftovers {
    /// No more than this; `None` until they have been counted for the first time.
    most: Option<u32>,
    /// A count from before says nothing of them.
    since: Time,
    /// When they are counted next.
    count_at: Time,
    /// They are waited for until then; `None`: from the first count on.
    until: Option<Time>,
    /// Counts that have found some.
    counts: u32,
    /// The configurations of the instances that have gone: each says on which server it may have left connections.
    of: BTreeSet<Revision>,
}

impl Leftovers {
    /// Of instances that have gone, the last one now.
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

    /// Nobody knows what there was before: to be counted at once.
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
    /// One has gone: whatever it may still have held may be at work on the server yet, beside what others have left.
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

    /// One is ready: what it needed to start is gone, and it may be time for its whole pool.
    pub(super) fn count_now(&mut self, now: Time) {
        if let Some(left) = &mut self.lingering {
            left.count_at = now;
        }
    }

    /// How many connections an instance of `spec` may start with, beside all that this tenant has and has left on the
    /// server; `None`: it has to wait until some of that has gone, or been counted.
    pub(super) fn may_start_with(&self, spec: Spec) -> Option<u32> {
        let pool = self.instances().map(|i| i.pool).fold(spec.pool, u32::max);
        let held: u32 = self.instances().map(Instance::may_hold).sum();
        let taken = held.checked_add(self.left_over()?)?;
        let least = REPLACEMENT_CONNECTIONS.min(spec.pool);
        let most = (pool + REPLACEMENT_CONNECTIONS).saturating_sub(taken);
        (most >= least).then(|| most.min(spec.pool))
    }

    /// Whether nothing can be started because of what is left over.
    pub(super) fn lacks_room(&self) -> bool {
        matches!(self.want, Want::Run(spec) if self.may_start_with(spec).is_none())
    }

    /// The most that may be left over; `None` while nobody has counted.
    fn left_over(&self) -> Option<u32> {
        self.lingering.as_ref().map_or(Some(0), |left| left.most)
    }

    /// Whether connections that an instance of this configuration has left may still be on its server.
    pub(crate) fn may_have_left(&self, revision: Revision) -> bool {
        let left = self.lingering.as_ref();
        left.is_some_and(|left| left.of.contains(&revision))
    }

    /// When leftovers are to be counted: while the wanted server can be asked, or where they are on another one.
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
            // Their server cannot be asked, and the tenant may have left it because of that.
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
            // What an earlier supervisor's instances left may be wherever the tenant is now.
            left.of.extend(running);
        }
        left.count_at = now + LOOK;
        left.until.get_or_insert(now + WAITED_FOR);
        let (since, of) = (left.since, left.of.iter().copied().collect());
        actions.push(Action::CountLeftOver { since, of });
    }

    /// So many are left over, counted at `since` or later.
    pub(super) fn counted(&mut self, now: Time, since: Time, count: u32) {
        // Whoever has gone since then has left more.
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

    /// Why it has less than its pool, where that is because of what the server still shows.
    pub(super) fn held_back(&self) -> Option<String> {
        let current = self.current.as_ref().filter(|current| current.serves())?;
        // The first count may have come before the server noticed.
        let left = self.lingering.as_ref();
        let found = left.is_some_and(|left| left.counts > 1);
        let (most, pool) = (current.connections, current.pool);
        (found && most < pool).then(|| {
            format!("held at {most} of its {pool} connections: what the last one left is still at work on the server")
        })
    }

    /// Splits the pool between the current instance and whatever else of this tenant still holds connections.
    pub(super) fn share_connections(&mut self, actions: &mut Vec<Action>) {
        let draining = self.draining.as_ref().map_or(0, |d| d.held);
        let left = self.left_over();
        let Some(current) = &mut self.current else {
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
            held = held.saturating_add(instance.may_hold());
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
