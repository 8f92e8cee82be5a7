//! The rate limit of the webhook job's queries.
//!
//! The first event after a pause goes out at once. The next round begins at least `webhook_delivery_interval_seconds`
//! after the start of the previous round, so that one round serves many events of a steady stream. A round that found
//! more work than it could take continues without a pause.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The rounds of one process.
#[derive(Debug, Default)]
pub struct PollPacing(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    began: Option<Instant>,
    goes_on: bool,
}

impl PollPacing {
    /// Begins or continues a round. Returns the time to wait when it is too early.
    pub fn begin(&self, interval: Duration) -> Option<Duration> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut state.goes_on) {
            return None;
        }
        let rest = state
            .began
            .map(|began| interval.saturating_sub(began.elapsed()))
            .filter(|rest| !rest.is_zero());
        if rest.is_none() {
            state.began = Some(Instant::now());
        }
        rest
    }

    /// Notes that the round has more work than it could begin.
    pub fn goes_on(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.goes_on = true;
    }

    /// Returns true when the round has more work.
    pub fn is_going_on(&self) -> bool {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.goes_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_round_is_at_once_and_the_next_an_interval_later_unless_there_is_more() {
        let rounds = PollPacing::default();
        let interval = Duration::from_secs(5);
        assert_eq!(rounds.begin(interval), None);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(rounds.begin(interval), Some(Duration::from_secs(3)));
        rounds.goes_on();
        assert!(rounds.is_going_on());
        assert_eq!(rounds.begin(interval), None);
        assert_eq!(rounds.begin(interval), Some(Duration::from_secs(3)));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(rounds.begin(interval), None);
        assert_eq!(rounds.begin(interval), Some(interval));
    }
}
