//! What the pool and all its connections know together: how many there are, and what is known of the server.
//!
//! While the supervisor's prober says that the server is away, a request makes an attempt to connect only now and then, in
//! case it is the supervisor that has gone; the others are told at once.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::db::gate::Gate;

/// Attempts that were given up and have not come to an end, at once.
const MOST_HANGING: usize = 3;

/// While the server is said to be away, an attempt is made this long after the last, more or less.
const AWAY_PAUSE: Duration = Duration::from_millis(1500);

/// After so long without another sign that the server is read-only, an attempt shows it.
const READ_ONLY_FOR: Duration = Duration::from_secs(5);

/// What the supervisor's prober says of a server that is none for a tenant now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Away {
    /// Why.
    pub reason: String,
    /// It answers, and only takes no writes.
    pub read_only: bool,
}

/// What the pool and its connections know together.
pub(in crate::db) struct Shared {
    pub(in crate::db) gate: Arc<Gate>,
    /// Connections open or being opened; watched while draining.
    pub(in crate::db) open: watch::Sender<u32>,
    /// The server's processes for those that are open.
    pub(in crate::db) backends: Mutex<BTreeSet<i32>>,
    /// Most that may be open.
    pub(in crate::db) cap: AtomicUsize,
    /// Checkouts that wait for a new connection now.
    pub(in crate::db) wanted: AtomicUsize,
    pub(in crate::db) draining: AtomicBool,
    /// Why the server is away, while the supervisor's prober says so.
    pub(in crate::db) away: watch::Sender<Option<Away>>,
    /// Attempts to open a connection under way now.
    pub(in crate::db) opening: AtomicUsize,
    /// Of these the ones that were given up.
    pub(in crate::db) hanging: AtomicUsize,
    /// Before then no attempt is made while the server is away.
    pub(in crate::db) next_attempt: Mutex<Option<Instant>>,
    /// The server answers and is read-only, as far as is known: until then.
    pub(in crate::db) reads_only: Mutex<Option<Instant>>,
    /// How often the pool has moved from a server that had become read-only to another.
    pub(in crate::db) moves: AtomicU64,
}

impl Shared {
    /// The server's processes for the connections that are open.
    pub(in crate::db) fn backends(&self) -> MutexGuard<'_, BTreeSet<i32>> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server is read-only, or shows that it is not.
    pub(in crate::db) fn set_reads_only(&self, reads_only: bool) {
        let until = reads_only.then(|| Instant::now() + READ_ONLY_FOR);
        *self
            .reads_only
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// Whether another connection is not to be had, and those there are can be read from.
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

    /// Why no attempt should be made now, if so.
    pub(super) fn hold_back(&self) -> Option<String> {
        let away = self.away.borrow().clone();
        let opening = self.opening.load(Ordering::Relaxed);
        let Some(Away { reason, .. }) = away else {
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
        // Jittered: tenants that have lost one server together are not to knock together.
        *next = Some(now + AWAY_PAUSE.mul_f64(0.5 + fastrand::f64()));
        None
    }
}

/// One attempt in [`Shared::opening`], and in [`Shared::hanging`] from when it is given up.
pub(super) struct Opening {
    shared: Arc<Shared>,
    /// It has ended, or was given up: whichever came first.
    pub(super) settled: Arc<AtomicBool>,
}

impl Opening {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        shared.opening.fetch_add(1, Ordering::Relaxed);
        Opening {
            shared: shared.clone(),
            settled: Arc::default(),
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.shared.opening.fetch_sub(1, Ordering::Relaxed);
        if self.settled.swap(true, Ordering::Relaxed) {
            self.shared.hanging.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Gives an attempt up, unless it has just ended.
pub(super) fn give_up(shared: &Shared, settled: &AtomicBool) {
    // Counted first: its end may come in between, and takes one away.
    shared.hanging.fetch_add(1, Ordering::Relaxed);
    if settled.swap(true, Ordering::Relaxed) {
        shared.hanging.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One connection in [`Shared::open`], and in [`Shared::backends`] once it is open, for as long as it lives.
pub(super) struct Counted {
    shared: Arc<Shared>,
    backend: Option<i32>,
}

impl Counted {
    /// Counts one more, unless there are as many as there may be.
    pub(super) fn new(shared: &Arc<Shared>) -> Option<Self> {
        let most = shared.cap.load(Ordering::Relaxed) as u32;
        let counted = shared.open.send_if_modified(|open| {
            let room = *open < most;
            *open += u32::from(room);
            room
        });
        counted.then(|| Counted {
            shared: shared.clone(),
            backend: None,
        })
    }

    pub(super) fn is_served_by(&mut self, backend: i32) {
        self.shared.backends().insert(backend);
        self.backend = Some(backend);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(backend) = self.backend {
            self.shared.backends().remove(&backend);
        }
        self.shared.open.send_modify(|open| *open -= 1);
        let open = *self.shared.open.borrow();
        self.shared.gate.shrink(open);
    }
}
