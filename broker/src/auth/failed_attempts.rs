//! Failed authentications by client address, in bounded memory, and what an address may still do after many of them.
//!
//! An address may fail [`LIMIT`] times in a [`WINDOW`]. After that its failures are answered 429, and its PAKs that the
//! cache has never held are looked up one at a time ([`FailedAttempts::turn`]), over all such addresses together. So a
//! flood of wrong PAKs occupies one database connection, and no valid PAK is shut out: a PAK that has been used here
//! before needs no turn, and the others wait among the wrong ones for a few milliseconds each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::client_address::ClientAddress;

/// The failures of one address in a window before more are answered 429. An agent with an old PAK that sends heartbeats
/// stays below.
const LIMIT: u32 = 20;

/// The same for this host, which may stand for many clients behind a proxy.
const LOCAL_LIMIT: u32 = 600;

/// The time over which failures are counted, from the first on.
const WINDOW: Duration = Duration::from_secs(60);

/// The largest number of addresses. Then the older half is forgotten, in favour of those that have failed since.
const CAPACITY: usize = 10_000;

/// The longest wait for a turn.
const PATIENCE: Duration = Duration::from_secs(1);

/// The time between two log lines about addresses over the limit, because an attacker has many addresses.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Handle to the counts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct FailedAttempts(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    counts: Mutex<Counts>,
    turn: Arc<Semaphore>,
}

/// The counts in two maps, as the cache holds its entries.
#[derive(Debug, Default)]
struct Counts {
    young: HashMap<ClientAddress, Window>,
    old: HashMap<ClientAddress, Window>,
    told: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    began: Instant,
    failures: u32,
}

impl Window {
    /// Returns the time until the window is over; `None` once it is.
    fn rest(&self, now: Instant) -> Option<Duration> {
        let rest = WINDOW.checked_sub(now.saturating_duration_since(self.began))?;
        (!rest.is_zero()).then_some(rest)
    }
}

impl Default for FailedAttempts {
    fn default() -> Self {
        Self(Arc::new(Inner {
            counts: Mutex::default(),
            turn: Arc::new(Semaphore::new(1)),
        }))
    }
}

impl FailedAttempts {
    /// Returns the time until the address may fail again, when it has failed too often.
    pub fn limited(&self, client: ClientAddress) -> Option<Duration> {
        self.with(|counts| counts.limited(client, Instant::now()))
    }

    /// Counts a failure. Returns the time until the address may fail again, when it had failed too often before.
    pub fn record(&self, client: ClientAddress) -> Option<Duration> {
        let now = Instant::now();
        let (limited, tell) = self.with(|counts| {
            let limited = counts.record(client, now);
            (limited, limited.is_some() && counts.tell(now))
        });
        if tell {
            tracing::warn!(
                %client,
                "too many failed authentications: further wrong PAKs from there are answered 429"
            );
        }
        limited
    }

    /// Waits for the right to look up an unknown PAK of a limited address; `None` when that takes too long.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        let turn = tokio::time::timeout(PATIENCE, self.0.turn.clone().acquire_owned());
        // The semaphore is never closed.
        turn.await.ok()?.ok()
    }

    fn with<T>(&self, work: impl FnOnce(&mut Counts) -> T) -> T {
        // A poisoned count is consistent, because nothing under this lock can panic half-way.
        work(&mut self.0.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Counts {
    fn limited(&self, client: ClientAddress, now: Instant) -> Option<Duration> {
        let window = self.young.get(&client).or_else(|| self.old.get(&client))?;
        (window.failures >= limit(client))
            .then(|| window.rest(now))
            .flatten()
    }

    fn record(&mut self, client: ClientAddress, now: Instant) -> Option<Duration> {
        let known = self.young.get(&client).or_else(|| self.old.get(&client));
        let mut window = known.filter(|w| w.rest(now).is_some()).copied();
        let window = window.get_or_insert(Window {
            began: now,
            failures: 0,
        });
        let limited = (window.failures >= limit(client))
            .then(|| window.rest(now))
            .flatten();
        window.failures = window.failures.saturating_add(1);
        if self.young.len() >= CAPACITY / 2 && !self.young.contains_key(&client) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(client, *window);
        limited
    }

    /// Returns true when it is time for another log line.
    fn tell(&mut self, now: Instant) -> bool {
        let due = self
            .told
            .is_none_or(|told| now.saturating_duration_since(told) >= TELL_EVERY);
        if due {
            self.told = Some(now);
        }
        due
    }
}

fn limit(client: ClientAddress) -> u32 {
    match client {
        ClientAddress::Local => LOCAL_LIMIT,
        ClientAddress::V4(_) | ClientAddress::V6Network(_) => LIMIT,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn client(n: u32) -> ClientAddress {
        ClientAddress::V4(n.into())
    }

    #[test]
    fn an_address_is_limited_after_so_many_failures_until_its_window_ends_and_others_are_not() {
        let mut counts = Counts::default();
        let began = Instant::now();
        for _ in 0..LIMIT {
            assert_eq!(counts.limited(client(1), began), None);
            assert_eq!(counts.record(client(1), began), None);
        }
        assert_eq!(counts.limited(client(1), began), Some(WINDOW));
        let later = began + Duration::from_secs(10);
        let rest = Some(WINDOW - Duration::from_secs(10));
        assert_eq!(counts.record(client(1), later), rest);
        assert_eq!(counts.limited(client(2), later), None);
        // Failures of a limited address do not lengthen its window.
        let end = began + WINDOW;
        assert_eq!(counts.limited(client(1), end), None);
        assert_eq!(counts.record(client(1), end), None);
        assert_eq!(counts.limited(client(1), end), None);
    }

    #[test]
    fn this_host_may_fail_more_often_because_it_stands_for_many() {
        let mut counts = Counts::default();
        let now = Instant::now();
        for _ in 0..LOCAL_LIMIT {
            assert_eq!(counts.record(ClientAddress::Local, now), None);
        }
        assert!(counts.record(ClientAddress::Local, now).is_some());
    }

    #[test]
    fn any_number_of_addresses_takes_bounded_memory_and_the_newest_stay_limited() {
        let mut counts = Counts::default();
        let now = Instant::now();
        for n in 0..25_000 {
            for _ in 0..LIMIT {
                counts.record(client(n), now);
            }
            assert!(counts.young.len() + counts.old.len() <= CAPACITY);
        }
        assert!(counts.limited(client(24_999), now).is_some());
        assert_eq!(counts.limited(client(0), now), None);
    }

    #[test]
    fn the_log_is_told_once_a_minute() {
        let mut counts = Counts::default();
        let now = Instant::now();
        assert!(counts.tell(now) && !counts.tell(now));
        assert!(counts.tell(now + TELL_EVERY));
    }

    #[tokio::test(start_paused = true)]
    async fn turns_are_taken_one_at_a_time_and_waited_for_a_second() {
        let attempts = FailedAttempts::default();
        let turn = attempts.turn().await.unwrap();
        assert!(attempts.turn().await.is_none());
        let (next, ()) = tokio::join!(attempts.turn(), async { drop(turn) });
        assert!(next.is_some());
    }
}
