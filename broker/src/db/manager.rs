//! How the pool opens, tests and throws away one connection.
//!
//! r2d2 opens connections on its helper thread, repeats a failed attempt for ever, and tells the waiting request nothing
//! but that time ran out. So [`Manager::connect`] never fails: a failed attempt is handed to the waiting request as a
//! [`Slotted`] without a connection, which carries the reason and is thrown away at once. And because r2d2 queues one
//! attempt for every request that waited, `connect` makes none when nobody waits any more: after an outage there is one
//! new connection, not fifty.
//!
//! A server that is stopped, or something in between that has lost its other side, accepts a connection and never says a
//! word. No timeout of the driver's ends that, so an attempt runs on a thread of its own and is given up after
//! [`OPEN_TIMEOUT`]; the few that may hang at once are counted ([`shared`]). The connection itself is opened, tried and
//! found closed by `r2d2_postgres` ([`Login`]).

mod login;
mod shared;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

use brokkr_pg::ConnectError;
use brokkr_tenant::{DatabaseUrl, SchemaName};
use postgres::{Client, SimpleQueryMessage, Statement};
use r2d2::ManageConnection;

use super::error::{DbError, describe, spoils_connection};
use login::Login;
pub use shared::Away;
pub(super) use shared::Shared;
use shared::{Counted, Opening, give_up};

/// How long a connection lives at most. Each gets a random lifetime between three quarters of this and all of it, so
/// that connections opened together do not end together.
const MAX_LIFETIME: Duration = Duration::from_secs(30 * 60);

/// Reaching the server and logging in may take so long.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens and judges connections to one tenant's schema.
#[derive(Clone)]
pub(super) struct Manager(Arc<Recipe>);

/// What it takes to open a connection; shared with every connection, which may have to reconnect.
pub(super) struct Recipe {
    pub(super) url: DatabaseUrl,
    pub(super) application_name: String,
    pub(super) login: OnceLock<Login>,
    /// `SET search_path TO "tenant_x", pg_temp`: sent at every checkout, the only text that ever names a path.
    pub(super) set_path: String,
    /// Sent once, when a connection is opened; its one row is the server's process for it, whatever stands in between.
    pub(super) settings: String,
    pub(super) shared: Arc<Shared>,
}

/// What r2d2 keeps: a connection, or why there is none. Boxed, because r2d2 reserves room for the largest pool.
pub(super) struct Slotted(Box<Inner>);

struct Inner {
    state: State,
    recipe: Arc<Recipe>,
}

#[expect(
    clippy::large_enum_variant,
    reason = "nearly every one is live, and it is behind a box already"
)]
enum State {
    Live(Live),
    Failed(Failed),
}

/// An attempt that led to no connection.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    pub(super) at: Instant,
    /// `None`: no attempt was made, because nobody seemed to need it. Says nothing about the server.
    pub(super) reason: Option<String>,
}

/// An open connection.
pub(super) struct Live {
    pub(super) client: Client,
    pub(super) statements: HashMap<&'static str, Statement>,
    /// Must not be used again.
    pub(super) spoiled: bool,
    /// The server has refused a write on it, being read-only.
    read_only: bool,
    /// [`Shared::moves`] when it was opened.
    moves: u64,
    /// Times it has been checked out.
    checkouts: u64,
    expires: Instant,
    // After the client: it is closed before it stops being counted.
    _counted: Counted,
}

/// The statement of every checkout.
pub(super) fn set_path(schema: &SchemaName) -> String {
    // pg_temp last: unlisted it would be searched first, and a temporary table would hide the tenant's.
    format!("SET search_path TO {}, pg_temp", schema.quoted())
}

impl Manager {
    pub(super) fn new(recipe: Recipe) -> Self {
        Manager(Arc::new(recipe))
    }
}

impl Recipe {
    /// Made by the first connection, kept for all: certificates and the like are read once, and only if needed.
    fn login(&self) -> Result<&Login, ConnectError> {
        if let Some(login) = self.login.get() {
            return Ok(login);
        }
        let options = brokkr_pg::Options::new(self.application_name.as_str()).read_write();
        let login = Login::new(&self.url, &options)?;
        Ok(self.login.get_or_init(|| login))
    }

    /// Opens one connection and prepares its session.
    fn open(&self) -> Result<Live, String> {
        let mut counted =
            Counted::new(&self.shared).ok_or("as many connections are open as may be")?;
        let moves = self.shared.moves.load(Ordering::Relaxed);
        // `postgres` builds a runtime per connection and panics when descriptors run out. On r2d2's helper thread that
        // would lose the attempt without telling anybody.
        let opened = catch_unwind(AssertUnwindSafe(|| self.login()?.connect()));
        let mut client = match opened {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => {
                let read_only = error.reason() == brokkr_pg::Reason::ReadOnly;
                self.shared.set_reads_only(read_only);
                return Err(error.to_string());
            }
            Err(_) => return Err("opening a connection panicked".to_owned()),
        };
        let answers =
            brokkr_pg::set_up(&mut client, &self.settings).map_err(|error| describe(&error))?;
        let backend = answers.iter().find_map(|answer| match answer {
            SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
            _ => None,
        });
        counted.is_served_by(backend.ok_or("the server does not say which process serves this")?);
        self.shared.set_reads_only(false);
        let lifetime = MAX_LIFETIME.mul_f64(0.75 + 0.25 * fastrand::f64());
        Ok(Live {
            client,
            statements: HashMap::new(),
            spoiled: false,
            read_only: false,
            moves,
            checkouts: 0,
            expires: Instant::now() + lifetime,
            _counted: counted,
        })
    }
}

/// [`Recipe::open`] within [`OPEN_TIMEOUT`]. An attempt that is given up goes on by itself, and is closed when it comes to
/// something after all.
fn open_in_time(recipe: &Arc<Recipe>) -> Result<Live, String> {
    let shared = &recipe.shared;
    if let Some(reason) = shared.hold_back() {
        return Err(reason);
    }
    let opening = Opening::new(shared);
    let settled = opening.settled.clone();
    let _connecting = shared.gate.connecting();
    let (done, opened) = mpsc::sync_channel(1);
    let attempt = recipe.clone();
    std::thread::Builder::new()
        .name("db-open".to_owned())
        .spawn(move || {
            let result = attempt.open();
            drop(opening);
            // Nobody waits any more: the connection is closed here.
            let _ = done.send(result);
        })
        .map_err(|error| format!("no thread to connect on: {error}"))?;
    let live = opened.recv_timeout(OPEN_TIMEOUT).unwrap_or_else(|_| {
        give_up(shared, &settled);
        Err(format!("no answer within {OPEN_TIMEOUT:?}"))
    })?;
    // Seen with our own eyes; the supervisor may be the one that has gone.
    shared.away.send_if_modified(|away| away.take().is_some());
    Ok(live)
}

impl Slotted {
    /// The connection, if there is one.
    pub(super) fn live(&mut self) -> Result<&mut Live, DbError> {
        match &mut self.0.state {
            State::Live(live) => Ok(live),
            State::Failed(failed) => Err(DbError::unavailable(
                failed
                    .reason
                    .clone()
                    .unwrap_or_else(|| "no connection".to_owned()),
            )),
        }
    }

    /// Why there is no connection, if there is none.
    pub(super) fn failed(&self) -> Option<&Failed> {
        match &self.0.state {
            State::Live(_) => None,
            State::Failed(failed) => Some(failed),
        }
    }

    /// Returns true when it must not be used again.
    pub(super) fn is_spoiled(&self) -> bool {
        match &self.0.state {
            State::Live(live) => live.spoiled,
            State::Failed(_) => true,
        }
    }

    /// Marks it as not to be used again: it is closed when it is dropped.
    pub(super) fn spoil(&mut self) {
        if let State::Live(live) = &mut self.0.state {
            live.spoiled = true;
        }
    }

    /// [`Self::spoil`], if this is its first checkout.
    pub(super) fn close_if_new(&mut self) {
        if let State::Live(live) = &mut self.0.state {
            live.spoiled |= live.checkouts <= 1;
        }
    }

    /// Marks it as one to a server that is read-only.
    pub(super) fn mark_read_only(&mut self) {
        if let State::Live(live) = &mut self.0.state {
            live.read_only = true;
        }
    }

    /// Whether it has been left behind on a server that is read-only, while the pool writes to another; or, where the pool
    /// has found out that it can write again (`writes`), whether it could not.
    pub(super) fn is_left_behind(&self, writes: bool) -> bool {
        match &self.0.state {
            State::Live(live) => {
                live.moves < self.0.recipe.shared.moves.load(Ordering::Relaxed)
                    || (writes && live.read_only)
            }
            State::Failed(_) => false,
        }
    }

    /// Replaces the connection by one to a server that takes writes, if there is one: every other of the pool is left
    /// behind then. Opened beside this one, which goes on being read from where there is none; if there is no room for two,
    /// and others to read from, this one is closed first.
    pub(super) fn move_on(&mut self) -> Result<(), DbError> {
        let shared = self.0.recipe.shared.clone();
        let cap = shared.cap.load(Ordering::Relaxed) as u32;
        if *shared.open.borrow() >= cap && cap > 1 {
            self.reconnect()?;
        } else {
            let mut live = open_in_time(&self.0.recipe).map_err(DbError::unavailable)?;
            live.client.batch_execute(&self.0.recipe.set_path)?;
            self.0.state = State::Live(live);
        }
        let moves = shared.moves.fetch_add(1, Ordering::Relaxed) + 1;
        if let State::Live(live) = &mut self.0.state {
            live.moves = moves;
        }
        Ok(())
    }

    /// Replaces the connection by a fresh one, with its path set. The old one is closed first, so that at no time
    /// more are open than may be.
    pub(super) fn reconnect(&mut self) -> Result<(), DbError> {
        self.0.state = State::Failed(Failed {
            at: Instant::now(),
            reason: Some("reconnecting".to_owned()),
        });
        let recipe = &self.0.recipe;
        let mut live = open_in_time(recipe).map_err(DbError::unavailable)?;
        live.client.batch_execute(&recipe.set_path)?;
        self.0.state = State::Live(live);
        Ok(())
    }
}

/// Returns true when the session may be in any state: lost, or left in a transaction that has failed (class 25).
fn leaves_unknown(error: &postgres::Error) -> bool {
    let in_transaction = error
        .code()
        .is_some_and(|code| code.code().starts_with("25"));
    in_transaction || error.code().is_none() || spoils_connection(error)
}

impl ManageConnection for Manager {
    type Connection = Slotted;
    type Error = DbError;

    /// Never fails: see the module's comment.
    fn connect(&self) -> Result<Slotted, DbError> {
        let shared = &self.0.shared;
        let needed = shared.wanted.load(Ordering::Relaxed) > 0
            && *shared.open.borrow() < shared.gate.figures().0;
        let state = match needed.then(|| open_in_time(&self.0)) {
            Some(Ok(live)) => State::Live(live),
            Some(Err(reason)) => State::Failed(Failed {
                at: Instant::now(),
                reason: Some(reason),
            }),
            None => State::Failed(Failed {
                at: Instant::now(),
                reason: None,
            }),
        };
        Ok(Slotted(Box::new(Inner {
            state,
            recipe: self.0.clone(),
        })))
    }

    /// Sets the path. One round trip is both: the connection lives, and it looks at this tenant's schema only. Only where
    /// the server refuses it, a second one tells whether the connection lives.
    fn is_valid(&self, slotted: &mut Slotted) -> Result<(), DbError> {
        let live = slotted.live()?;
        live.checkouts += 1;
        let Err(error) = live.client.batch_execute(&self.0.set_path) else {
            return Ok(());
        };
        // A server that refuses for want of memory or time refuses a new connection too: the one that lives is kept.
        let login = self.0.login.get();
        let lives = !leaves_unknown(&error)
            && login.is_some_and(|login| login.is_valid(&mut live.client).is_ok());
        live.spoiled |= !lives;
        Err(DbError::unavailable(describe(&error)))
    }

    /// Asked when a connection comes back: whether to throw it away.
    fn has_broken(&self, slotted: &mut Slotted) -> bool {
        let shared = &self.0.shared;
        let State::Live(live) = &mut slotted.0.state else {
            return true;
        };
        live.spoiled
            || self.0.login.get().is_none_or(|login| login.has_broken(&mut live.client))
            || (Instant::now() >= live.expires && !shared.must_do_with_what_is_open())
            || *shared.open.borrow() as usize > shared.cap.load(Ordering::Relaxed)
            // Draining: kept only for somebody who is already waiting for it.
            || (shared.draining.load(Ordering::Relaxed) && shared.gate.waiting() == 0)
    }
}
