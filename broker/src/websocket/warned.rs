//! Agents that the log has named recently, so that a warning that every frame could cause comes once an hour.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

/// Shortest time between two warnings of one agent.
const AGAIN: Duration = Duration::from_secs(60 * 60);

/// Moment of each agent's latest warning. Outlives the sockets, so that a new connection causes no new warning.
#[derive(Debug, Default)]
pub(super) struct WarningLimit(Mutex<HashMap<Uuid, Instant>>);

impl WarningLimit {
    /// Returns true when a warning of this agent is due, and notes it as given.
    pub(super) fn is_due(&self, agent: Uuid) -> bool {
        let now = Instant::now();
        let mut named = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if named.get(&agent).is_some_and(|at| now - *at < AGAIN) {
            return false;
        }
        // Only a new agent makes the map grow, so old entries are removed here.
        named.retain(|_, at| now - *at < AGAIN);
        named.insert(agent, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_agent_is_named_once_an_hour_and_then_forgotten() {
        let warned = WarningLimit::default();
        let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
        assert!(warned.is_due(a) && warned.is_due(b));
        tokio::time::advance(AGAIN / 2).await;
        assert!(!warned.is_due(a) && !warned.is_due(b));
        tokio::time::advance(AGAIN / 2).await;
        assert!(warned.is_due(a));
        assert_eq!(
            warned
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .len(),
            1
        );
    }
}
