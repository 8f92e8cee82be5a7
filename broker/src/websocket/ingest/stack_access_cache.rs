//! Cache of the stacks that an agent serves, so that not every telemetry frame costs a statement.
//!
//! Positive answers are kept longer than negative answers, so that a stack that is newly targeted at the agent is
//! accepted soon.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::db::Db;
use crate::store::stack_matching;

/// Lifetime of a positive answer.
const YES: Duration = Duration::from_secs(30);
/// Lifetime of a negative answer.
const NO: Duration = Duration::from_secs(3);
/// Largest number of answers; a bound is needed because an agent may name any stack id.
const MOST: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct StackAccessCache(HashMap<Uuid, CachedAccess>);

#[derive(Clone, Copy, Debug)]
struct CachedAccess {
    serves: bool,
    at: Instant,
}

impl CachedAccess {
    fn stands(self) -> bool {
        self.at.elapsed() < if self.serves { YES } else { NO }
    }
}

impl StackAccessCache {
    /// Returns true when the agent serves the stack. While the database is unavailable, the last known answer counts.
    pub(super) async fn ask(&mut self, db: &Db, agent: Uuid, stack: Uuid) -> bool {
        let known = self.0.get(&stack).copied();
        if let Some(answer) = known
            && answer.stands()
        {
            return answer.serves;
        }
        match db
            .run(move |db| stack_matching::serves(db, agent, stack))
            .await
        {
            Ok(serves) => {
                self.remember(stack, serves);
                serves
            }
            Err(error) => {
                tracing::debug!(%error, "could not look who serves a stack");
                known.is_some_and(|answer| answer.serves)
            }
        }
    }

    fn remember(&mut self, stack: Uuid, serves: bool) {
        if self.0.len() >= MOST && !self.0.contains_key(&stack) {
            self.0.retain(|_, answer| answer.stands());
            if self.0.len() >= MOST {
                self.0.clear();
            }
        }
        let at = Instant::now();
        self.0.insert(stack, CachedAccess { serves, at });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn answers_grow_old_and_are_never_more_than_a_number() {
        let mut served = StackAccessCache::default();
        let stack = Uuid::new_v4();
        served.remember(stack, true);
        for _ in 0..3 * MOST {
            served.remember(Uuid::new_v4(), false);
            assert!(served.0.len() <= MOST);
        }
        served.remember(stack, true);
        tokio::time::advance(NO).await;
        assert!(served.0[&stack].stands());
        assert!(served.0.values().filter(|a| a.stands()).count() == 1);
        tokio::time::advance(YES).await;
        assert!(!served.0[&stack].stands());
    }
}
