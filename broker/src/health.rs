//! What `/readyz` answers, and why.
//!
//! Alone, the broker looks for itself: a checkout, at most every two seconds, and none at all while requests prove the
//! database anyway. Under a supervisor the server's prober looks for all tenants at once and tells its verdict; that is
//! followed, unless this broker's own last checkout failed and did so after the prober said that all is well: then it opens
//! a connection to find out. So a thousand idle tenants hold no connections for the sake of being asked how they are, and
//! a server that returns is not met by a thousand of them that want to see for themselves.
//!
//! A server that answers and takes no writes (its disk is full, it has become read-only) is seen by the write that failed,
//! and is well again when a write on trial succeeds.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::db::{Db, Last};

/// How long a verdict of our own stands.
const FRESH: Duration = Duration::from_secs(2);

/// The supervisor asks every few seconds. After so long without a question it has gone, and what it said last is no longer
/// worth anything.
const GONE: Duration = Duration::from_secs(60);

/// How long a look may take, alone and supervised (where the supervisor's own probe ends after a second).
const LOOK: Duration = Duration::from_millis(750);

/// What is known about being ready.
#[derive(Debug)]
pub struct Health {
    state: Mutex<State>,
    /// One look at a time; the others wait for its verdict.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    started: bool,
    draining: bool,
    /// The supervisor's prober, once it has spoken, and when it did.
    server: Option<(Instant, Result<(), String>)>,
    /// When the supervisor last asked or said something.
    heard: Option<Instant>,
    /// Our own latest look, and until when it stands.
    looked: Option<(Instant, Result<(), String>)>,
}

impl Health {
    /// Nothing is known yet: not started.
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

    /// The start is done: schema, migrations, administrator.
    pub fn started(&self) {
        self.lock().started = true;
    }

    /// Whether the start is done.
    pub fn has_started(&self) -> bool {
        self.lock().started
    }

    /// Draining has begun.
    pub fn draining(&self) {
        self.lock().draining = true;
    }

    /// Whether draining has begun.
    pub fn is_draining(&self) -> bool {
        self.lock().draining
    }

    /// The verdict of the supervisor's prober.
    pub fn server(&self, verdict: Result<(), String>) {
        let mut state = self.lock();
        // What was found out before belongs to another time.
        state.looked = None;
        let now = Instant::now();
        state.heard = Some(now);
        state.server = Some((now, verdict));
    }

    /// The supervisor has asked something.
    pub fn heard(&self) {
        self.lock().heard = Some(Instant::now());
    }

    /// Ready, or why not.
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
        // Supervised: jittered, so that a thousand brokers that lost one server do not all ask it in the same instant.
        let stands = match state.server {
            Some(_) => Duration::from_secs(1).mul_f64(0.5 + 0.5 * fastrand::f64()),
            None => FRESH,
        };
        state.looked = Some((Instant::now() + stands, verdict.clone()));
        drop(state);
        verdict
    }

    /// The verdict, if it can be had without looking.
    fn known(&self, db: &Db) -> Option<Result<(), String>> {
        let now = Instant::now();
        let state = self.lock();
        if !state.started {
            return Some(Err("starting".to_owned()));
        }
        let last = db.last();
        // Our own bad experience, and when it was made.
        let bad = [
            db.unwritable().map(|(at, _)| at),
            match &last {
                Last::Failed(at, _) => Some(*at),
                Last::Worked(_) | Last::Unknown => None,
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
                if let Last::Worked(at) = last
                    && bad.is_none()
                    && !lost_schema
                    && now < at + FRESH
                {
                    return Some(Ok(()));
                }
            }
        }
        // A look that ends well takes both back: they are news since.
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
