//! Computes the delay before a retry: none the first time, then exponential with full jitter.

use std::time::Duration;

const BASE: Duration = Duration::from_millis(250);
const MOST: Duration = Duration::from_secs(30);
const FLOOR: Duration = Duration::from_millis(50);

/// A tenant's failures in a row, with a random source of its own so that a lifecycle can be replayed from a seed.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    failures: u32,
    random: u64,
}

impl Backoff {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            failures: 0,
            random: seed,
        }
    }

    /// Resets the count, so that the next failure counts as the first.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Counts a failure and returns the delay: zero for the first, then from `FLOOR` to an exponential ceiling.
    pub(crate) fn next_delay(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        match self.failures {
            0 | 1 => Duration::ZERO,
            n => self.jittered(n - 2),
        }
    }

    /// As [`Self::next_delay`], but never zero: for failures without a process, where an immediate retry would spin.
    pub(crate) fn delay_at_least_once(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1).max(2);
        self.jittered(self.failures - 2)
    }

    /// Returns a random delay up to the ceiling, so that tenants that failed together do not retry together.
    fn jittered(&mut self, exponent: u32) -> Duration {
        let ceiling = BASE.saturating_mul(1 << exponent.min(16)).min(MOST);
        let part = (self.draw() >> 11) as f64 / (1u64 << 53) as f64;
        ceiling.mul_f64(part).max(FLOOR)
    }

    /// Draws from SplitMix64: eight bytes of state, good enough to spread retries, and the same on every replay.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_retry_is_at_once_and_later_ones_stay_between_floor_and_ceiling() {
        for seed in 0..200 {
            let mut backoff = Backoff::new(seed);
            assert_eq!(backoff.next_delay(), Duration::ZERO);
            for n in 0..40u32 {
                let ceiling = BASE.saturating_mul(1 << n.min(16)).min(MOST);
                let delay = backoff.next_delay();
                assert!(
                    delay >= FLOOR && delay <= ceiling,
                    "{n}: {delay:?} of {ceiling:?}"
                );
            }
            backoff.reset();
            assert_eq!(backoff.next_delay(), Duration::ZERO);
        }
    }
}
