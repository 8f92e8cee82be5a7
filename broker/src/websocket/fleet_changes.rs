//! The agents whose fleet record may have changed, until the fleet feed takes them.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use uuid::Uuid;

/// Agents that changed since the last statement.
#[derive(Debug, Default)]
pub(super) struct FleetChanges {
    changed: Mutex<HashSet<Uuid>>,
    pub(super) woken: Notify,
}

impl FleetChanges {
    /// Notes that an agent changed. The caller notes changes only while the fleet has subscribers; the set holds each
    /// agent once.
    pub(super) fn note(&self, agent: Uuid) {
        self.lock().insert(agent);
        self.woken.notify_one();
    }

    /// Wakes the feed because a fleet subscriber came or left.
    pub(super) fn subscribed(&self) {
        self.woken.notify_one();
    }

    /// Takes the agents noted so far.
    pub(super) fn take(&self) -> Vec<Uuid> {
        std::mem::take(&mut *self.lock()).into_iter().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
