//! Deliveries under way, limited in total and per host.
//!
//! A lane is a host ([`Key::lane`](super::crypto::Key::lane)). A host that hangs fills only the few places of its lane.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use uuid::Uuid;

/// The largest number of deliveries at once. Each has a socket and a few buffers.
pub const MOST: usize = 32;

/// The largest number of deliveries at once in one lane.
pub const LANE: i32 = 4;

/// The deliveries under way. Cheap to clone.
#[derive(Clone, Debug)]
pub struct InFlight(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    lanes: Mutex<HashMap<Uuid, i32>>,
    in_flight_count: watch::Sender<usize>,
    landings: AtomicU64,
}

/// A delivery under way, until it is dropped.
#[derive(Debug)]
pub struct InFlightPermit {
    shared: Arc<Shared>,
    lane: Uuid,
}

impl InFlight {
    /// Returns a state without deliveries.
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            lanes: Mutex::default(),
            in_flight_count: watch::Sender::new(0),
            landings: AtomicU64::new(0),
        }))
    }

    /// Returns the number of further deliveries that may begin now.
    pub fn free(&self) -> usize {
        MOST.saturating_sub(*self.0.in_flight_count.borrow())
    }

    /// Returns the lanes in use, and the number of deliveries in each.
    pub fn lanes(&self) -> (Vec<Uuid>, Vec<i32>) {
        self.0.lanes().iter().unzip()
    }

    /// Begins a delivery.
    pub fn begin(&self, lane: Uuid) -> InFlightPermit {
        *self.0.lanes().entry(lane).or_default() += 1;
        self.0
            .in_flight_count
            .send_modify(|in_flight_count| *in_flight_count += 1);
        InFlightPermit {
            shared: self.0.clone(),
            lane,
        }
    }

    /// Waits until no delivery is under way.
    pub async fn landed(&self) {
        // The wait cannot fail, because `self` holds the sender.
        let _ = self
            .0
            .in_flight_count
            .subscribe()
            .wait_for(|in_flight_count| *in_flight_count == 0)
            .await;
    }

    /// Returns the number of deliveries that have ended so far, so that a caller can see that more have.
    pub fn landings(&self) -> u64 {
        self.0.landings.load(Ordering::Relaxed)
    }

    /// Returns the number of deliveries under way.
    pub fn in_flight_count(&self) -> usize {
        *self.0.in_flight_count.borrow()
    }
}

impl Default for InFlight {
    fn default() -> Self {
        Self::new()
    }
}

impl Shared {
    fn lanes(&self) -> MutexGuard<'_, HashMap<Uuid, i32>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InFlightPermit {
    fn drop(&mut self) {
        let mut lanes = self.shared.lanes();
        if let Some(count) = lanes.get_mut(&self.lane) {
            *count -= 1;
            if *count <= 0 {
                lanes.remove(&self.lane);
            }
        }
        drop(lanes);
        self.shared.landings.fetch_add(1, Ordering::Relaxed);
        self.shared
            .in_flight_count
            .send_modify(|in_flight_count| *in_flight_count = in_flight_count.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn flights_are_counted_by_lane_until_they_land() {
        let in_flight = InFlight::new();
        in_flight.landed().await;
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let in_flight_count = vec![in_flight.begin(a), in_flight.begin(a), in_flight.begin(b)];
        assert_eq!(
            (in_flight.in_flight_count(), in_flight.free()),
            (3, MOST - 3)
        );
        let (lanes, counts) = in_flight.lanes();
        let mut found: Vec<_> = lanes.into_iter().zip(counts).collect();
        found.sort_unstable();
        assert_eq!(found, [(a, 2), (b, 1)]);
        let waiting = tokio::spawn({
            let in_flight = in_flight.clone();
            async move { in_flight.landed().await }
        });
        drop(in_flight_count);
        assert!(waiting.await.is_ok());
        assert_eq!((in_flight.lanes().0.len(), in_flight.free()), (0, MOST));
    }
}
