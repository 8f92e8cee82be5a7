//! What `/readyz` answers, and why.
//!
//! Alone, the broker looks for itself: a checkout, at most every two seconds, and none at all while requests prove the
//! database anyway. Under a supervisor the server's prober looks for all tenants at once and tells its verdict; that is
//! followed, unless this broker's own last checkout failed: then it opens a connection to find out. So a thousand idle
//! tenants hold no connections for the sake of being asked how they are.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::db::{Db, Last};

/// How long a verdict of our own stands.
const FRESH: Duration = Duration::from_secs(2);

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
    /// The supervisor's prober, once it has spoken.
    server: Option<Result<(), String>>,
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
        self.lock().server = Some(verdict);
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
        if let Last::Worked(at) = last
            && now < at + FRESH
        {
            return Some(Ok(()));
        }
        if let Some(verdict) = &state.server
            && !matches!(last, Last::Failed(_))
        {
            return Some(verdict.clone());
        }
        match &state.looked {
            Some((until, verdict)) if now < *until => Some(verdict.clone()),
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
