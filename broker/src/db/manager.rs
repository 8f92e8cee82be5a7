//! Opens, tests and closes the pool's connections.
//!
//! r2d2 opens connections on its helper thread, repeats a failed attempt for ever, and tells the waiting request only
//! that time ran out. So [`Manager::connect`] never fails: after a failed attempt the waiting request gets a
//! [`PooledConnection`] without a connection, which carries the reason and is dropped at once. r2d2 also queues one attempt for
//! every request that waited, so `connect` makes no attempt when no request waits any more; otherwise an outage would
//! end with fifty new connections.
//!
//! A stopped server, or a proxy that has lost its server, accepts a connection and never answers. No timeout of the
//! driver ends that, so each attempt runs on a thread of its own and is given up after [`OPEN_TIMEOUT`]; at most a few
//! may hang at once ([`shared`]). `r2d2_postgres` logs in, tests the connection and notices that it is closed
//! ([`Login`]).

mod login;
mod shared;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use brokkr_pg::ConnectError;
use brokkr_tenant::{DatabaseUrl, SchemaName, Secret};
use postgres::{Client, SimpleQueryMessage, Statement};
use r2d2::ManageConnection;

use super::error::{DbError, describe, spoils_connection};
use login::Login;
pub(super) use shared::Shared;
use shared::{ConnectAttempt, OpenCount, give_up};

/// The longest lifetime of a connection. Each connection gets a random lifetime between three quarters of this and all
/// of it, so that connections opened together do not end together.
const MAX_LIFETIME: Duration = Duration::from_secs(30 * 60);

/// The longest time to reach the server and log in.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens and judges connections to one tenant's schema.
#[derive(Clone)]
pub(super) struct Manager(Arc<Recipe>);

/// The parameters for opening a connection, shared with every connection because it may have to reconnect.
pub(super) struct Recipe {
    pub(super) credentials: Mutex<Credentials>,
    pub(super) application_name: String,
    /// `SET search_path TO "tenant_x", pg_temp`, sent at every checkout.
    pub(super) set_path: String,
    /// SQL sent once after a connection is opened. Its one row is the pid of the backend, which is right even behind a
    /// proxy.
    pub(super) settings: String,
    pub(super) shared: Arc<Shared>,
}

/// The URL of new connections, which changes with the role's password, and the login made from it.
pub(super) struct Credentials {
    url: DatabaseUrl,
    /// `None` until a connection is opened, so that certificates are read only if needed.
    login: Option<Arc<Login>>,
}

impl Credentials {
    pub(super) fn new(url: DatabaseUrl) -> Self {
        Self { url, login: None }
    }
}

/// The item that r2d2 keeps: a connection, or the reason why there is none. Boxed, because r2d2 reserves memory for the
/// largest number of items.
pub(super) struct PooledConnection(Box<Inner>);

struct Inner {
    state: State,
    recipe: Arc<Recipe>,
}

#[expect(
    clippy::large_enum_variant,
    reason = "nearly every one is live, and it is behind a box already"
)]
enum State {
    Live(OpenConnection),
    Failed(Failed),
}

/// A failed attempt to open a connection.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    pub(super) at: Instant,
    /// `None`: no attempt was made, because no request needed it. Says nothing about the server.
    pub(super) reason: Option<String>,
}

/// An open connection.
pub(super) struct OpenConnection {
    pub(super) client: Client,
    pub(super) statements: HashMap<&'static str, Statement>,
    /// True when the connection must not be used again.
    pub(super) spoiled: bool,
    /// True once the server has refused a write on this connection because it is read-only.
    read_only: bool,
    /// [`Shared::moves`] at the time of opening.
    moves: u64,
    checkouts: u64,
    expires: Instant,
    // Declared after the client, so that the connection is closed before it stops being counted.
    _counted: OpenCount,
}

/// Returns the statement that every checkout runs.
pub(super) fn set_path(schema: &SchemaName) -> String {
    // pg_temp is listed last: unlisted it would be searched first, and a temporary table would hide the tenant's.
    format!("SET search_path TO {}, pg_temp", schema.quoted())
}

impl Manager {
    pub(super) fn new(recipe: Recipe) -> Self {
        Manager(Arc::new(recipe))
    }

    /// Changes the password of new connections. Open connections stay.
    pub(super) fn set_password(&self, password: Secret) {
        let mut credentials = self.0.credentials();
        let user = credentials.url.user().to_owned();
        let url = credentials.url.clone().with_user(user, Some(password));
        *credentials = Credentials::new(url);
    }
}

impl Recipe {
    fn credentials(&self) -> MutexGuard<'_, Credentials> {
        self.credentials
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the login that new connections share. Built on first use, so that certificates are read once.
    fn login(&self) -> Result<Arc<Login>, ConnectError> {
        let url = {
            let credentials = self.credentials();
            if let Some(login) = &credentials.login {
                return Ok(login.clone());
            }
            credentials.url.clone()
        };
        let options = brokkr_pg::Options::new(self.application_name.as_str()).read_write();
        let login = Arc::new(Login::new(&url, &options)?);
        let mut credentials = self.credentials();
        if credentials.url == url {
            credentials.login = Some(login.clone());
        }
        Ok(login)
    }

    /// Opens one connection and prepares its session.
    fn open(&self) -> Result<OpenConnection, String> {
        let mut counted =
            OpenCount::new(&self.shared).ok_or("as many connections are open as may be")?;
        let moves = self.shared.moves.load(Ordering::Relaxed);
        // `postgres` builds a runtime per connection and panics when descriptors run out. Uncaught, the panic would end
        // the attempt without a reason for the waiting request.
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
        Ok(OpenConnection {
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

/// Runs [`Recipe::open`] within [`OPEN_TIMEOUT`]. An attempt that was given up goes on in its thread, and closes its
/// connection if it succeeds later.
fn open_in_time(recipe: &Arc<Recipe>) -> Result<OpenConnection, String> {
    let shared = &recipe.shared;
    if let Some(reason) = shared.hold_back() {
        return Err(reason);
    }
    let opening = ConnectAttempt::new(shared);
    let settled = opening.settled.clone();
    let _connecting = shared.gate.connecting();
    let (done, opened) = mpsc::sync_channel(1);
    let attempt = recipe.clone();
    std::thread::Builder::new()
        .name("db-open".to_owned())
        .spawn(move || {
            let result = attempt.open();
            drop(opening);
            // If the attempt was given up, the connection is dropped and closed here.
            let _ = done.send(result);
        })
        .map_err(|error| format!("no thread to connect on: {error}"))?;
    let live = opened.recv_timeout(OPEN_TIMEOUT).unwrap_or_else(|_| {
        give_up(shared, &settled);
        Err(format!("no answer within {OPEN_TIMEOUT:?}"))
    })?;
    // This connection proves that the server answers. The supervisor may have died before it could say so.
    shared.away.send_if_modified(|away| away.take().is_some());
    Ok(live)
}

impl PooledConnection {
    /// Returns the connection, or the reason why there is none as an error.
    pub(super) fn live(&mut self) -> Result<&mut OpenConnection, DbError> {
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

    /// Returns the failed attempt, if there is no connection.
    pub(super) fn failed(&self) -> Option<&Failed> {
        match &self.0.state {
            State::Live(_) => None,
            State::Failed(failed) => Some(failed),
        }
    }

    /// Returns true when the connection must not be used again.
    pub(super) fn is_spoiled(&self) -> bool {
        match &self.0.state {
            State::Live(live) => live.spoiled,
            State::Failed(_) => true,
        }
    }

    /// Marks the connection as unfit for further use, so that it is closed when dropped.
    pub(super) fn spoil(&mut self) {
        if let State::Live(live) = &mut self.0.state {
            live.spoiled = true;
        }
    }

    /// Calls [`Self::spoil`] if this is the connection's first checkout.
    pub(super) fn close_if_new(&mut self) {
        if let State::Live(live) = &mut self.0.state {
            live.spoiled |= live.checkouts <= 1;
        }
    }

    /// Marks the connection's server as read-only.
    pub(super) fn mark_read_only(&mut self) {
        if let State::Live(live) = &mut self.0.state {
            live.read_only = true;
        }
    }

    /// Returns true when the connection must be replaced: it was opened before the pool moved to another server, or its
    /// server refused a write and the pool can write again (`writes`).
    pub(super) fn is_left_behind(&self, writes: bool) -> bool {
        match &self.0.state {
            State::Live(live) => {
                live.moves < self.0.recipe.shared.moves.load(Ordering::Relaxed)
                    || (writes && live.read_only)
            }
            State::Failed(_) => false,
        }
    }

    /// Replaces the connection by a connection to a server that takes writes. Every other connection of the pool then
    /// counts as left behind.
    ///
    /// The new connection is opened before this connection is closed, so that reads go on if no server takes writes.
    /// Only if the cap leaves no room for both, and other connections can serve reads, this connection is closed first.
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

    /// Replaces the connection by a new connection and sets its path. Closes the old connection first, so that the cap
    /// is never exceeded.
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

/// Returns true when the session's state is unknown: lost, or left in a failed transaction (class 25).
fn leaves_unknown(error: &postgres::Error) -> bool {
    let in_transaction = error
        .code()
        .is_some_and(|code| code.code().starts_with("25"));
    in_transaction || error.code().is_none() || spoils_connection(error)
}

impl ManageConnection for Manager {
    type Connection = PooledConnection;
    type Error = DbError;

    /// Never fails; the module's documentation says why.
    fn connect(&self) -> Result<PooledConnection, DbError> {
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
        Ok(PooledConnection(Box::new(Inner {
            state,
            recipe: self.0.clone(),
        })))
    }

    /// Sets the path. This one round trip proves that the connection works and sees only this tenant's schema. Only if
    /// the server refuses, a second round trip tests the connection.
    fn is_valid(&self, slotted: &mut PooledConnection) -> Result<(), DbError> {
        let live = slotted.live()?;
        live.checkouts += 1;
        let Err(error) = live.client.batch_execute(&self.0.set_path) else {
            return Ok(());
        };
        // A server that lacks memory or time would refuse a new connection too, so a live connection is kept.
        let login = self.0.login();
        let lives = !leaves_unknown(&error)
            && login.is_ok_and(|login| login.is_valid(&mut live.client).is_ok());
        live.spoiled |= !lives;
        Err(DbError::unavailable(describe(&error)))
    }

    /// Returns true when a connection that comes back must be closed.
    fn has_broken(&self, slotted: &mut PooledConnection) -> bool {
        let shared = &self.0.shared;
        let State::Live(live) = &mut slotted.0.state else {
            return true;
        };
        live.spoiled
            || self.0.login().map_or(true, |login| login.has_broken(&mut live.client))
            || (Instant::now() >= live.expires && !shared.must_do_with_what_is_open())
            || *shared.open.borrow() as usize > shared.cap.load(Ordering::Relaxed)
            // While draining, a connection is kept only for a request that already waits.
            || (shared.draining.load(Ordering::Relaxed) && shared.gate.waiting() == 0)
    }
}
