//! The lifecycle as seen from outside: its state for `status`, its next deadline, and if it has settled.

use super::*;
use crate::status::State;

/// A tenant's state, for `status`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LifecycleStatus {
    pub(crate) state: State,
    pub(crate) reason: Option<String>,
    pub(crate) pending: Option<String>,
    /// True when the pending change needs the operator: it cannot be made, or its instance has failed.
    pub(crate) amiss: bool,
    pub(crate) restarts: u64,
    /// The instance shown by `status`: the current one or, without it, the draining one.
    pub(crate) instance: Option<Instance>,
    pub(crate) next_try: Option<Time>,
}

impl Lifecycle {
    pub(crate) fn view(&self) -> LifecycleStatus {
        let (state, reason) = self.state();
        LifecycleStatus {
            state,
            reason,
            pending: self.pending(),
            amiss: self.asked_pending.is_some() || self.taken_back().is_some(),
            restarts: self.restarts,
            instance: self.current().or(self.occupancy.draining()).cloned(),
            next_try: (state == State::Backoff).then(|| self.next_try()).flatten(),
        }
    }

    fn state(&self) -> (State, Option<String>) {
        if let Some(current) = self.current() {
            return match &current.phase {
                Phase::Starting(_) => (State::Starting, self.last_failure.clone()),
                Phase::Ready => (State::Ready, None),
                Phase::Degraded(reason) => (State::Degraded, Some(reason.clone())),
                Phase::Stopping(_) => {
                    let waits = matches!(self.want, Want::Run(_)) && self.server.is_err();
                    if waits && current.ends_as_planned() {
                        return self.idle();
                    }
                    let failure = current.failure().map(str::to_owned);
                    (State::Stopping, failure.or(still_there(current)))
                }
            };
        }
        if let Some(draining) = self.occupancy.draining()
            && !matches!(self.want, Want::Refused(_))
        {
            return (State::Stopping, still_there(draining));
        }
        self.idle()
    }

    /// Returns the state while no instance determines it.
    fn idle(&self) -> (State, Option<String>) {
        match &self.want {
            Want::Refused(reason) => (State::Refused, Some(reason.clone())),
            Want::Stopped(reason) => (State::Stopped, Some(reason.clone())),
            Want::Gone => (State::Stopping, Some("its file has gone".into())),
            Want::Run(_) => {
                if let Some(hold) = &self.hold {
                    return (State::Backoff, Some(hold.reason.clone()));
                }
                match (&self.bind, &self.server, &self.slot) {
                    (Bind::Failed { reason, .. }, _, _) => (State::Backoff, Some(reason.clone())),
                    (_, Err(reason), _) => (State::Waiting, Some(reason.clone())),
                    (_, _, SlotState::Asked(_)) => {
                        (State::Waiting, Some("for a start slot".into()))
                    }
                    _ if self.lacks_room() => (
                        State::Waiting,
                        Some("for what the last one left at work on the server".into()),
                    ),
                    _ => (State::Waiting, self.last_failure.clone()),
                }
            }
        }
    }

    fn pending(&self) -> Option<String> {
        if self.asked_pending.is_some() {
            return self.asked_pending.clone();
        }
        if let Some(reason) = self.taken_back() {
            return Some(if !self.outdated() {
                format!("replacement failed, and is not tried again unless ordered: {reason}")
            } else {
                format!("replacement failed: {reason}")
            });
        }
        let (Some(current), Want::Run(_)) = (self.current(), &self.want) else {
            return None;
        };
        if current.must_answer() && current.missed >= self.policy.probe_failures {
            return Some(
                "does not answer its probes: killed and started again when its turn comes".into(),
            );
        }
        if !current.serves() || !self.outdated() {
            return self.held_back();
        }
        if current.keeps_address {
            return Some(
                "its socket could not be taken over: it is drained, then started again".into(),
            );
        }
        Some(match (&self.bind, &self.server) {
            (Bind::Failed { reason, .. }, _) => format!("replacement waits: {reason}"),
            (_, Err(reason)) => format!("replacement waits: {reason}"),
            _ if self.occupancy.next().is_some() => "replacement is starting".into(),
            _ if self.occupancy.draining().is_some() => {
                "replacement waits: the last one still drains".into()
            }
            _ if self.lingering.is_some() => {
                "replacement waits: what the last one left at work on the server".into()
            }
            _ => "replacement waits for a start slot".into(),
        })
    }

    /// Returns the reason why the last replacement of the running instance failed, until one succeeds.
    fn taken_back(&self) -> Option<&str> {
        let (Some(_), Want::Run(_), Some(hold)) = (self.current(), &self.want, &self.replace_hold)
        else {
            return None;
        };
        Some(&hold.reason)
    }

    /// Returns true when an ordered replacement has failed and only a new order would try it again, because the running
    /// instance is what the file asks for.
    pub(crate) fn gave_up(&self) -> bool {
        let hold = self.replace_hold.as_ref();
        hold.is_some_and(|hold| !hold.configuration) && self.current().is_some() && !self.outdated()
    }

    /// Returns the time of the next retry after a failure.
    pub(crate) fn next_try(&self) -> Option<Time> {
        match (&self.hold, &self.bind) {
            (Some(hold), _) => Some(hold.until),
            (None, Bind::Failed { retry_at, .. }) => Some(*retry_at),
            _ => None,
        }
    }

    /// Returns the time when the next `Tick` is due, if no event comes before.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let mut due: Vec<Time> = self.instances().filter_map(Instance::deadline).collect();
        if matches!(self.want, Want::Run(_)) {
            due.extend(self.count_due());
            if let Bind::Failed { retry_at, .. } = self.bind {
                due.push(retry_at);
            }
            if self.current().is_none() {
                due.extend(self.hold.as_ref().map(|h| h.until));
            } else {
                due.extend(
                    self.replace_hold
                        .as_ref()
                        .filter(|_| self.outdated())
                        .map(|h| h.until),
                );
            }
            if !self.standing_in {
                due.extend(self.unserved_since.map(|since| since + STAND_IN_AFTER));
            }
        }
        due.into_iter().min()
    }

    /// Returns true when the current instance is not the wanted one.
    pub(super) fn outdated(&self) -> bool {
        match (self.current(), &self.want) {
            (Some(c), Want::Run(s)) => {
                let right = c.revision == s.revision && c.generation == self.generation;
                !right || c.keeps_address || c.deaf
            }
            _ => false,
        }
    }

    /// Returns `Some(true)` when what is wanted is reached, `Some(false)` when it is not and will not be soon without
    /// help, and `None` while under way.
    pub(crate) fn settled(&self) -> Option<bool> {
        if self.asked_pending.is_some()
            && !self.outdated()
            && matches!(self.occupancy, Occupancy::One(_))
        {
            return Some(false);
        }
        match &self.want {
            Want::Refused(_) if self.instances().next().is_none() => Some(false),
            Want::Stopped(_) | Want::Gone if self.instances().next().is_none() => Some(true),
            Want::Refused(_) | Want::Stopped(_) | Want::Gone => {
                self.instances().all(Instance::unkillable).then_some(false)
            }
            Want::Run(_) => {
                let draining = self.occupancy.draining();
                let Some(current) = self.current() else {
                    let stuck = self.hold.is_some()
                        || self.server.is_err()
                        || matches!(self.bind, Bind::Failed { .. });
                    return (stuck && draining.is_none()).then_some(false);
                };
                if !current.serves() {
                    return None;
                }
                let blocked = self.server.is_err() || matches!(self.bind, Bind::Failed { .. });
                let stuck = draining.is_some_and(Instance::unkillable);
                if self.replace_hold.is_some()
                    || (self.outdated() && self.occupancy.next().is_none() && blocked)
                    || stuck
                {
                    return Some(false);
                }
                (!self.outdated() && draining.is_none()).then_some(current.phase == Phase::Ready)
            }
        }
    }

    /// Returns true when the running instance is ready and as last ordered, even if its file asks for something else.
    pub(crate) fn is_as_ordered(&self) -> bool {
        let ready = self.current().is_some_and(|c| c.phase == Phase::Ready);
        ready && !self.outdated() && self.replace_hold.is_none()
    }

    /// Returns how the tenant answers its probes.
    pub(crate) fn pulse(&self) -> ProbeHealth {
        match self.current() {
            Some(c) if c.failure().is_some() => ProbeHealth::BeingReplaced,
            Some(c) if c.must_answer() && c.missed >= self.policy.probe_failures => {
                if c.answers {
                    ProbeHealth::Hung
                } else {
                    ProbeHealth::Mute
                }
            }
            Some(c) if c.must_answer() && c.missed > 0 => {
                if c.answers {
                    ProbeHealth::Failing
                } else {
                    ProbeHealth::NotYet
                }
            }
            Some(c) if c.must_answer() && c.answers => ProbeHealth::Fine,
            _ => ProbeHealth::Absent,
        }
    }

    /// Returns the urgency of the start that the tenant needs a slot for.
    pub(crate) fn urgency(&self) -> Urgency {
        match self.current() {
            Some(current) if current.serves() => Urgency::Served,
            _ => self.record,
        }
    }

    pub(crate) fn current(&self) -> Option<&Instance> {
        self.occupancy.current()
    }

    /// Returns every instance that has, or may have, a process.
    pub(crate) fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.occupancy.instances()
    }

    /// Returns true when `restart` was ordered after this instance was spawned.
    pub(crate) fn is_superseded(&self, instance: &Instance) -> bool {
        instance.generation != self.generation
    }

    /// Returns the number of unplanned exits.
    pub(crate) fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Returns the next free instance number.
    pub(crate) fn next_id(&self) -> InstanceId {
        InstanceId(self.next_id)
    }
}

fn still_there(instance: &Instance) -> Option<String> {
    let killed = instance.is_killed();
    killed.then(|| "SIGKILL was sent; the kernel has not let the process go yet".into())
}
