//! Readiness: the answer of `/readyz` and its reason.
//!
//! Without a supervisor, the broker checks a connection out to look, at most every two seconds, and never while
//! requests prove the database anyway. Under a supervisor, the server's prober looks for all tenants at once and tells
//! the broker its verdict. The broker follows that verdict, unless its own last checkout failed after the prober
//! reported success: then the broker opens a connection to look for itself. So a thousand idle tenants hold no
//! connections for their probes, and they do not all connect to a server that returns.
//!
//! A failed write shows a server that answers but takes no writes (disk full, read-only). The broker counts as well
//! again once a trial write succeeds.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::db::{Db, LastCheckout};

/// The time for which the broker's own verdict stands.
const FRESH: Duration = Duration::from_secs(2);

/// Without a request for so long, the supervisor has gone and its last verdict is void. A supervisor asks every few
/// seconds.
const GONE: Duration = Duration::from_secs(60);

/// The longest time of a look, alone and supervised. The supervisor's own probe ends after a second.
const LOOK: Duration = Duration::from_millis(750);

/// The knowledge about readiness.
#[derive(Debug)]
pub struct Health {
    state: Mutex<State>,
    /// The lock held during a look; other callers wait for its verdict.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    started: bool,
    draining: bool,
    /// The latest verdict of the supervisor's prober, and when it arrived.
    server: Option<(Instant, Result<(), String>)>,
    /// Time of the supervisor's latest request.
    heard: Option<Instant>,
    /// The verdict of the broker's own latest look, and until when it stands.
    looked: Option<(Instant, Result<(), String>)>,
}

impl Health {
    /// Returns a state that is not started.
    pub fn new() -> Self {
        Health {
            state: Mutex::new(State {
                started: false,
                draining: false,
                server: None,
                heard: None,
                looked: None,
            }),
            looking: tokio::sync::Mutex::new(()),
        }
    }

    /// Notes that the start is done: schema, migrations, administrator.
    pub fn started(&self) {
        self.lock().started = true;
    }

    /// Returns true when the start is done.
    pub fn has_started(&self) -> bool {
        self.lock().started
    }

    /// Notes that draining has begun.
    pub fn draining(&self) {
        self.lock().draining = true;
    }

    /// Returns true when draining has begun.
    pub fn is_draining(&self) -> bool {
        self.lock().draining
    }

    /// Stores a verdict of the supervisor's prober.
    pub fn server(&self, verdict: Result<(), String>) {
        let mut state = self.lock();
        // Discard the broker's own verdict because it is older.
        state.looked = None;
        let now = Instant::now();
        state.heard = Some(now);
        state.server = Some((now, verdict));
    }

    /// Notes that the supervisor has sent a request.
    pub fn heard(&self) {
        self.lock().heard = Some(Instant::now());
    }

    /// Returns `Ok` when the broker is ready.
    ///
    /// # Errors
    ///
    /// The reason, for people.
    pub async fn ready(&self, db: &Db) -> Result<(), String> {
        if let Some(verdict) = self.known(db) {
            return verdict;
        }
        let _one = self.looking.lock().await;
        if let Some(verdict) = self.known(db) {
            return verdict;
        }
        let verdict = db.probe(LOOK).await.map_err(|error| error.to_string());
        let mut state = self.lock();
        // Supervised: jitter, so that a thousand brokers of a lost server do not ask it in the same instant.
        let stands = match state.server {
            Some(_) => Duration::from_secs(1).mul_f64(0.5 + 0.5 * fastrand::f64()),
            None => FRESH,
        };
        state.looked = Some((Instant::now() + stands, verdict.clone()));
        drop(state);
        verdict
    }

    /// Returns the verdict, if it is known without a look.
    fn known(&self, db: &Db) -> Option<Result<(), String>> {
        let now = Instant::now();
        let state = self.lock();
        if !state.started {
            return Some(Err("starting".to_owned()));
        }
        let last = db.last();
        // Time of the broker's own latest failure.
        let bad = [
            db.unwritable().map(|(at, _)| at),
            match &last {
                LastCheckout::Failed(at, _) => Some(*at),
                LastCheckout::Worked(_) | LastCheckout::Unknown => None,
            },
        ];
        let bad = bad.into_iter().flatten().max();
        let lost_schema = db.has_lost_schema();
        let there = state.heard.is_some_and(|heard| now < heard + GONE);
        match state.server.as_ref().filter(|_| there) {
            Some((_, Err(reason))) => return Some(Err(reason.clone())),
            Some((told, Ok(()))) if !lost_schema && bad.is_none_or(|at| at <= *told) => {
                return Some(Ok(()));
            }
            Some((_, Ok(()))) => {}
            None => {
                if let LastCheckout::Worked(at) = last
                    && bad.is_none()
                    && !lost_schema
                    && now < at + FRESH
                {
                    return Some(Ok(()));
                }
            }
        }
        // A successful look clears both, so they are newer than a stored success.
        let unfit = lost_schema || db.unwritable().is_some();
        match &state.looked {
            Some((until, verdict)) if now < *until && !(unfit && verdict.is_ok()) => {
                Some(verdict.clone())
            }
            _ => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}
