//! Limits how many requests work on the database at once: the async side of the pool.
//!
//! A *slot* is the right to use one connection. There are as many slots as open connections, and at least one, so a
//! request with a slot finds an idle connection or opens a new connection.
//!
//! Slots are added one at a time, each after a request has waited [`GROW_AFTER`]. For short work, waiting for an open
//! connection is faster than opening another, and fifty backends opened at the first burst would compete for two cores.
//! No slot is added while a connection is being opened, because the waiting requests are waiting for that connection.
//!
//! Nothing here blocks a thread. The queue holds at most the requests in flight, which the broker's HTTP server bounds,
//! and each waits at most `acquire_timeout`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// The time that a request waits before another slot is added, and the least time between two additions.
pub(super) const GROW_AFTER: Duration = Duration::from_millis(10);

/// The slots of a pool, and the count of requests that wait for them.
pub(super) struct ConcurrencyLimit {
    slots: Arc<Semaphore>,
    state: Mutex<State>,
    waiting: AtomicUsize,
    connecting: AtomicUsize,
}

struct State {
    /// Slots that exist, free or taken; at least 1.
    total: u32,
    /// Most slots: the cap on connections or the number that may work at once, whichever is less.
    limit: u32,
    grown: Option<Instant>,
    /// True while the pool drains: no slot is added.
    frozen: bool,
}

/// The right to use one connection, given back on drop.
pub(super) struct WorkPermit {
    permit: Option<OwnedSemaphorePermit>,
    gate: Arc<ConcurrencyLimit>,
}

impl ConcurrencyLimit {
    pub(super) fn new(limit: u32) -> Arc<Self> {
        Arc::new(ConcurrencyLimit {
            slots: Arc::new(Semaphore::new(1)),
            state: Mutex::new(State {
                total: 1,
                limit: limit.max(1),
                grown: None,
                frozen: false,
            }),
            waiting: AtomicUsize::new(0),
            connecting: AtomicUsize::new(0),
        })
    }

    /// Counts a connection as being opened until the returned guard is dropped.
    pub(super) fn connecting(&self) -> WaiterCount<'_> {
        WaiterCount::new(&self.connecting)
    }

    /// Waits until `until` for a slot. Returns `None` when no slot came free in time.
    pub(super) async fn acquire(self: &Arc<Self>, until: Instant) -> Option<WorkPermit> {
        if let Ok(permit) = self.slots.clone().try_acquire_owned() {
            return Some(self.slot(permit));
        }
        let _waiting = WaiterCount::new(&self.waiting);
        // One future for the whole wait, because a new future would lose its place in the queue.
        let acquire = self.slots.clone().acquire_owned();
        tokio::pin!(acquire);
        let mut wake = Instant::now() + GROW_AFTER;
        loop {
            tokio::select! {
                biased;
                // Cancel-safe: the pinned future is polled again, never recreated.
                permit = &mut acquire => return permit.ok().map(|permit| self.slot(permit)),
                () = tokio::time::sleep_until(wake.min(until)) => {}
            }
            let now = Instant::now();
            if now >= until {
                return None;
            }
            wake = now + self.grow(now);
        }
    }

    /// Adds a slot if one is due. Returns the time until the next call.
    fn grow(&self, now: Instant) -> Duration {
        let mut state = self.lock();
        if state.frozen || state.total >= state.limit {
            // No slot can be added until the limit changes, so ask rarely.
            return Duration::from_millis(250);
        }
        if self.connecting.load(Ordering::Relaxed) > 0 {
            return GROW_AFTER;
        }
        if let Some(grown) = state.grown
            && now < grown + GROW_AFTER
        {
            return (grown + GROW_AFTER)
                .duration_since(now)
                .max(Duration::from_millis(1));
        }
        state.grown = Some(now);
        state.total += 1;
        drop(state);
        // The slot goes to the request that has waited longest, which may not be the caller.
        self.slots.add_permits(1);
        GROW_AFTER
    }

    /// Removes unused slots beyond `open` after a connection was closed, so that the next connection is again opened
    /// only after a wait.
    pub(super) fn shrink(&self, open: u32) {
        let mut state = self.lock();
        let least = open.max(1);
        self.forget(&mut state, least);
    }

    /// Changes the largest number of slots. Slots in use beyond it are removed when they come back.
    pub(super) fn set_limit(&self, limit: u32) {
        let mut state = self.lock();
        state.limit = limit.max(1);
        let least = state.limit;
        self.forget(&mut state, least);
    }

    /// Stops adding slots.
    pub(super) fn freeze(&self) {
        self.lock().frozen = true;
    }

    fn forget(&self, state: &mut State, least: u32) {
        let surplus = state.total.saturating_sub(least);
        let forgotten = self.slots.forget_permits(surplus as usize);
        state.total -= forgotten as u32;
    }

    /// Returns the number of slots that exist and the number in use.
    pub(super) fn figures(&self) -> (u32, u32) {
        let state = self.lock();
        let free = self.slots.available_permits() as u32;
        (state.total, state.total.saturating_sub(free))
    }

    /// Returns the number of requests that wait for a slot.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    fn slot(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> WorkPermit {
        WorkPermit {
            permit: Some(permit),
            gate: self.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave these few numbers invalid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for WorkPermit {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else {
            return;
        };
        let mut state = self.gate.lock();
        if state.total > state.limit {
            state.total -= 1;
            permit.forget();
        } else {
            drop(permit);
        }
    }
}

/// A guard that adds one to a counter for as long as it lives, so that a dropped request is not counted.
pub(super) struct WaiterCount<'a>(&'a AtomicUsize);

impl<'a> WaiterCount<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        WaiterCount(count)
    }
}

impl Drop for WaiterCount<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test(start_paused = true)]
    async fn one_after_another_needs_one_slot() {
        let gate = ConcurrencyLimit::new(8);
        for _ in 0..100 {
            drop(gate.acquire(soon()).await.unwrap());
        }
        assert_eq!(gate.figures(), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_gets_one_more_slot_every_ten_milliseconds_up_to_the_limit() {
        let gate = ConcurrencyLimit::new(4);
        let began = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let gate = gate.clone();
            tasks.spawn(async move {
                let slot = gate.acquire(soon()).await.unwrap();
                let at = Instant::now();
                tokio::time::sleep(Duration::from_millis(100)).await;
                drop(slot);
                at
            });
        }
        let mut starts = Vec::new();
        while let Some(start) = tasks.join_next().await {
            starts.push(start.unwrap().duration_since(began).as_millis());
        }
        starts.sort_unstable();
        // Timers have a resolution of one millisecond.
        for (start, expected) in starts.iter().zip([0, 10, 20, 30, 100]) {
            assert!((expected..=expected + 5).contains(start), "{starts:?}");
        }
        assert_eq!(gate.figures(), (4, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_added_while_a_connection_is_being_opened() {
        let gate = ConcurrencyLimit::new(4);
        let first = gate.acquire(soon()).await.unwrap();
        let connecting = gate.connecting();
        let in_a_second = Instant::now() + Duration::from_secs(1);
        assert!(gate.acquire(in_a_second).await.is_none());
        assert_eq!(gate.figures(), (1, 1));
        drop(connecting);
        assert!(gate.acquire(soon()).await.is_some());
        drop(first);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_is_told_so() {
        let gate = ConcurrencyLimit::new(1);
        let held = gate.acquire(soon()).await.unwrap();
        assert!(
            gate.acquire(Instant::now() + Duration::from_millis(50))
                .await
                .is_none()
        );
        assert_eq!(gate.waiting(), 0);
        drop(held);
        assert!(gate.acquire(soon()).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lower_limit_takes_slots_as_they_come_back_and_a_closed_connection_takes_its_own() {
        let gate = ConcurrencyLimit::new(3);
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(gate.acquire(soon()).await.unwrap());
        }
        gate.set_limit(2);
        assert_eq!(gate.figures(), (3, 3));
        held.pop();
        assert_eq!(gate.figures(), (2, 2));
        held.pop();
        gate.shrink(1);
        assert_eq!(gate.figures(), (1, 1));
        held.clear();
        gate.shrink(0);
        assert_eq!(gate.figures(), (1, 0), "one is always there");
    }

    #[tokio::test(start_paused = true)]
    async fn a_frozen_gate_grows_no_more() {
        let gate = ConcurrencyLimit::new(3);
        let held = gate.acquire(soon()).await.unwrap();
        gate.freeze();
        assert!(
            gate.acquire(Instant::now() + Duration::from_secs(1))
                .await
                .is_none()
        );
        drop(held);
        assert!(gate.acquire(soon()).await.is_some());
    }
}
