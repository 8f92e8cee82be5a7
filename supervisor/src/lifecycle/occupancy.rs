//! The instances that a tenant has at a time, two at most, and the role of each.

use super::{Instance, InstanceId};

/// The instances of a tenant.
#[derive(Debug, Clone, Default)]
pub(super) enum Occupancy {
    /// No instance.
    #[default]
    Empty,
    /// The current instance alone.
    One(Instance),
    /// The current instance, `old`, beside its replacement, which is not ready yet.
    Replacing { old: Instance, new: Instance },
    /// The current instance beside an earlier instance that was told to end. `current` may be in any phase: it is
    /// stopping too if it was adopted so, or if its tenant is stopped during the overlap.
    Draining { current: Instance, old: Instance },
    /// No current instance: `old` was told to end, and so was its replacement `new`, if it has one.
    Ending {
        old: Instance,
        new: Option<Instance>,
        /// True when nothing may start until `old` has ended (stop-then-start).
        blocks_start: bool,
    },
    /// No current instance, and a replacement that was told to end. A start waits for its end.
    GivenUp(Instance),
}

/// The role of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InstanceRole {
    Current,
    Replacement,
    Draining,
}

impl Occupancy {
    /// Returns the state of a tenant whose last current instance was told to end.
    pub(super) fn ending(old: Instance, new: Option<Instance>) -> Self {
        Self::Ending {
            old,
            new,
            blocks_start: false,
        }
    }

    /// Returns the current instance.
    pub(super) fn current(&self) -> Option<&Instance> {
        match self {
            Self::One(current)
            | Self::Replacing { old: current, .. }
            | Self::Draining { current, .. } => Some(current),
            Self::Empty | Self::Ending { .. } | Self::GivenUp(_) => None,
        }
    }

    /// As [`Self::current`], to be changed.
    pub(super) fn current_mut(&mut self) -> Option<&mut Instance> {
        let id = self.current()?.id;
        self.instances_mut().find(|instance| instance.id == id)
    }

    /// Returns the replacement that is to become the current instance.
    pub(super) fn next(&self) -> Option<&Instance> {
        match self {
            Self::Replacing { new, .. } => Some(new),
            _ => None,
        }
    }

    /// Returns the earlier instance that was told to end.
    pub(super) fn draining(&self) -> Option<&Instance> {
        match self {
            Self::Draining { old, .. } | Self::Ending { old, .. } => Some(old),
            _ => None,
        }
    }

    /// Returns every instance: first the current instance or its replacement, last the draining instance.
    pub(super) fn instances(&self) -> impl Iterator<Item = &Instance> {
        let (first, second) = match self {
            Self::Empty => (None, None),
            Self::One(only) | Self::GivenUp(only) => (Some(only), None),
            Self::Replacing { old, new } => (Some(old), Some(new)),
            Self::Draining { current, old } => (Some(current), Some(old)),
            Self::Ending { old, new, .. } => (new.as_ref(), Some(old)),
        };
        first.into_iter().chain(second)
    }

    /// As [`Self::instances`], to be changed.
    pub(super) fn instances_mut(&mut self) -> impl Iterator<Item = &mut Instance> {
        let (first, second) = match self {
            Self::Empty => (None, None),
            Self::One(only) | Self::GivenUp(only) => (Some(only), None),
            Self::Replacing { old, new } => (Some(old), Some(new)),
            Self::Draining { current, old } => (Some(current), Some(old)),
            Self::Ending { old, new, .. } => (new.as_mut(), Some(old)),
        };
        first.into_iter().chain(second)
    }

    /// Returns true when one more instance may start.
    pub(super) fn has_room(&self) -> bool {
        match self {
            Self::Empty | Self::One(_) => true,
            Self::Ending {
                new, blocks_start, ..
            } => new.is_none() && !blocks_start,
            Self::Replacing { .. } | Self::Draining { .. } | Self::GivenUp(_) => false,
        }
    }

    /// Adds a started instance: the replacement of the current instance or, without it, the current instance.
    pub(super) fn add(&mut self, started: Instance) {
        *self = match std::mem::take(self) {
            Self::Empty => Self::One(started),
            Self::One(old) => Self::Replacing { old, new: started },
            Self::Ending { old, new: None, .. } => Self::Draining {
                current: started,
                old,
            },
            full => full,
        };
    }

    /// Removes an instance that has ended. The replacement of an ended current instance takes its role.
    pub(super) fn remove(&mut self, id: InstanceId) -> Option<(InstanceRole, Instance)> {
        let (left, role, ended) = match std::mem::take(self) {
            Self::One(current) if current.id == id => (Self::Empty, InstanceRole::Current, current),
            Self::Replacing { old, new } if old.id == id => {
                (Self::One(new), InstanceRole::Current, old)
            }
            Self::Replacing { old, new } if new.id == id => {
                (Self::One(old), InstanceRole::Replacement, new)
            }
            Self::Draining { current, old } if current.id == id => {
                (Self::ending(old, None), InstanceRole::Current, current)
            }
            Self::Draining { current, old } if old.id == id => {
                (Self::One(current), InstanceRole::Draining, old)
            }
            Self::Ending { old, new: None, .. } if old.id == id => {
                (Self::Empty, InstanceRole::Draining, old)
            }
            Self::Ending {
                old,
                new: Some(new),
                ..
            } if old.id == id => (Self::GivenUp(new), InstanceRole::Draining, old),
            Self::Ending {
                old,
                new: Some(new),
                ..
            } if new.id == id => (Self::ending(old, None), InstanceRole::Replacement, new),
            Self::GivenUp(new) if new.id == id => (Self::Empty, InstanceRole::Replacement, new),
            unknown => {
                *self = unknown;
                return None;
            }
        };
        *self = left;
        Some((role, ended))
    }
}
