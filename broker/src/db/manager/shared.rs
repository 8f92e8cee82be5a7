//! State that the pool and all its connections share: the number of connections, and the known state of the server.
//!
//! While the supervisor's prober says that the server is away, only a few requests try to connect, in case the
//! supervisor itself has died. All others fail at once.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use brokkr_tenant::instance_protocol::ServerOutage;
use tokio::sync::watch;

use crate::db::concurrency_limit::ConcurrencyLimit;

/// The largest number of attempts that were given up and still hang.
const MOST_HANGING: usize = 3;

/// The average pause between two attempts to connect while the server counts as away; jittered.
const AWAY_PAUSE: Duration = Duration::from_millis(1500);

/// The time for which a sign that the server is read-only holds. After it a new attempt to connect finds out.
const READ_ONLY_FOR: Duration = Duration::from_secs(5);

pub(in crate::db) struct Shared {
    pub(in crate::db) gate: Arc<ConcurrencyLimit>,
    /// Connections open or being opened; watched while draining.
    pub(in crate::db) open: watch::Sender<u32>,
    /// Pids of the backends of the open connections.
    pub(in crate::db) backends: Mutex<BTreeSet<i32>>,
    /// The largest number of open connections.
    pub(in crate::db) cap: AtomicUsize,
    /// Checkouts that wait for a new connection now.
    pub(in crate::db) wanted: AtomicUsize,
    pub(in crate::db) draining: AtomicBool,
    /// The supervisor's verdict, while the server counts as away.
    pub(in crate::db) away: watch::Sender<Option<ServerOutage>>,
    /// Attempts to open a connection that are running now.
    pub(in crate::db) opening: AtomicUsize,
    /// The attempts among `opening` that were given up.
    pub(in crate::db) hanging: AtomicUsize,
    /// Earliest time of the next attempt while the server counts as away.
    pub(in crate::db) next_attempt: Mutex<Option<Instant>>,
    /// End of the time for which the server counts as read-only.
    pub(in crate::db) reads_only: Mutex<Option<Instant>>,
    /// The number of moves of the pool from a server that had become read-only to another server.
    pub(in crate::db) moves: AtomicU64,
}

impl Shared {
    pub(in crate::db) fn backends(&self) -> MutexGuard<'_, BTreeSet<i32>> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the server is read-only, or that it is not.
    pub(in crate::db) fn set_reads_only(&self, reads_only: bool) {
        let until = reads_only.then(|| Instant::now() + READ_ONLY_FOR);
        *self
            .reads_only
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// Returns true when no other connection can be opened, but the open connections can be read from.
    pub(in crate::db) fn must_do_with_what_is_open(&self) -> bool {
        let said_away = self
            .away
            .borrow()
            .as_ref()
            .is_some_and(|away| away.read_only);
        let until = *self
            .reads_only
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        (said_away || until.is_some_and(|until| Instant::now() < until)) && *self.open.borrow() > 0
    }

    /// Returns the reason why no attempt to connect may start now, if there is one.
    pub(super) fn hold_back(&self) -> Option<String> {
        let away = self.away.borrow().clone();
        let opening = self.opening.load(Ordering::Relaxed);
        let Some(ServerOutage { reason, .. }) = away else {
            let hanging = self.hanging.load(Ordering::Relaxed);
            let too_many = hanging >= MOST_HANGING;
            return too_many.then(|| format!("{hanging} attempts to connect have had no answer"));
        };
        let mut next = self
            .next_attempt
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if opening > 0 || next.is_some_and(|at| now < at) {
            return Some(reason);
        }
        // Jittered, so that tenants that lose one server together do not reconnect together.
        *next = Some(now + AWAY_PAUSE.mul_f64(0.5 + fastrand::f64()));
        None
    }
}

/// A guard that counts one attempt in [`Shared::opening`], and in [`Shared::hanging`] once it is given up.
pub(super) struct ConnectAttempt {
    shared: Arc<Shared>,
    /// True once the attempt has ended or was given up, whichever came first.
    pub(super) settled: Arc<AtomicBool>,
}

impl ConnectAttempt {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        shared.opening.fetch_add(1, Ordering::Relaxed);
        ConnectAttempt {
            shared: shared.clone(),
            settled: Arc::default(),
        }
    }
}

impl Drop for ConnectAttempt {
    fn drop(&mut self) {
        self.shared.opening.fetch_sub(1, Ordering::Relaxed);
        if self.settled.swap(true, Ordering::Relaxed) {
            self.shared.hanging.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Gives an attempt up, unless it has just ended.
pub(super) fn give_up(shared: &Shared, settled: &AtomicBool) {
    // Counted before the swap, because the attempt may end in between and subtract one.
    shared.hanging.fetch_add(1, Ordering::Relaxed);
    if settled.swap(true, Ordering::Relaxed) {
        shared.hanging.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A guard that counts one connection in [`Shared::open`], and in [`Shared::backends`] once it is open.
pub(super) struct OpenCount {
    shared: Arc<Shared>,
    backend: Option<i32>,
}

impl OpenCount {
    /// Counts a connection, or returns `None` when the cap is reached.
    pub(super) fn new(shared: &Arc<Shared>) -> Option<Self> {
        let most = shared.cap.load(Ordering::Relaxed) as u32;
        let counted = shared.open.send_if_modified(|open| {
            let room = *open < most;
            *open += u32::from(room);
            room
        });
        counted.then(|| OpenCount {
            shared: shared.clone(),
            backend: None,
        })
    }

    pub(super) fn is_served_by(&mut self, backend: i32) {
        self.shared.backends().insert(backend);
        self.backend = Some(backend);
    }
}

impl Drop for OpenCount {
    fn drop(&mut self) {
        if let Some(backend) = self.backend {
            self.shared.backends().remove(&backend);
        }
        self.shared.open.send_modify(|open| *open -= 1);
        let open = *self.shared.open.borrow();
        self.shared.gate.shrink(open);
    }
}
