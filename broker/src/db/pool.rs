//! The pool: combines the gate, r2d2 and blocking threads.

mod checkout;
mod trial;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use brokkr_tenant::instance_protocol::ServerOutage;
use brokkr_tenant::{DatabaseUrl, SchemaName, Secret};
use scheduled_thread_pool::{OnPoolDropBehavior, ScheduledThreadPool};
use tokio::sync::{oneshot, watch};

use super::concurrency_limit::{ConcurrencyLimit, WorkPermit};
use super::conn::Conn;
use super::error::DbError;
use super::manager::{Credentials, Manager, Recipe, Shared, set_path};
use super::signs::LostSchema;

/// The idle time after which a connection is closed (checked every 30 s).
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest single wait for r2d2. r2d2's pause between its attempts grows to half of it.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// The settings of a pool.
#[derive(Clone, Debug)]
pub struct Options {
    /// The server's URL.
    pub url: DatabaseUrl,
    /// The tenant's schema.
    pub schema: SchemaName,
    /// The name that `pg_stat_activity` shows.
    pub application_name: String,
    /// The largest number of connections that this pool may ever hold.
    pub pool_size: u32,
    /// The largest number of connections until [`Db::set_cap`] changes it.
    pub connections: u32,
    /// The longest time that a request waits for a working connection.
    pub acquire_timeout: Duration,
    /// The largest number of connections that work at once, because more would only queue inside the server.
    pub max_working: u32,
    /// The time after which the server cancels a statement.
    pub statement_timeout: Duration,
    /// The time after which the server ends a session that leaves a transaction open.
    pub idle_in_transaction_timeout: Duration,
    /// The time after which [`Db::run`] returns, waiting included, even if the work still runs.
    pub deadline: Duration,
}

/// A snapshot of the pool's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// The largest number of connections that the pool may hold.
    pub connections: u32,
    /// Connections that the pool holds, including those being opened.
    pub held: u32,
    /// Held connections that are in use.
    pub working: u32,
}

/// A handle to the tenant's database. Cheap to clone.
#[derive(Clone)]
pub struct Db(Arc<Inner>);

struct Inner {
    pool: r2d2::Pool<Manager>,
    manager: Manager,
    shared: Arc<Shared>,
    options: Options,
    last: Mutex<LastCheckout>,
    /// Time and reason of the last refused write; cleared by a successful trial.
    unwritable: Mutex<Option<(Instant, String)>>,
    /// The schema that lacks something the broker's statements name; cleared by a successful trial.
    lost_schema: Mutex<Option<LostSchema>>,
    /// True once a read-only server has refused a write and no search for another server has begun.
    refused: AtomicBool,
    /// True while a search for another server runs, and during the pause after it.
    looking: AtomicBool,
    writes: AtomicU64,
}

/// Result of the latest attempt to get a working connection.
#[derive(Clone, Debug, Default)]
pub enum LastCheckout {
    /// No attempt has been made yet.
    #[default]
    Unknown,
    /// The attempt succeeded at this time.
    Worked(Instant),
    /// The attempt failed at this time, for this reason.
    Failed(Instant, String),
}

impl LastCheckout {
    fn failed(reason: String) -> Self {
        LastCheckout::Failed(Instant::now(), reason)
    }
}

impl Db {
    /// Builds the pool without opening a connection.
    ///
    /// # Errors
    /// [`DbError::Setup`] when r2d2 refuses the settings.
    pub fn new(options: Options) -> Result<Self, DbError> {
        let cap = options.connections.max(1);
        let shared = Arc::new(Shared {
            gate: ConcurrencyLimit::new(working(&options, cap)),
            open: watch::Sender::new(0),
            backends: Mutex::default(),
            cap: AtomicUsize::new(cap as usize),
            wanted: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            away: watch::Sender::new(None),
            opening: AtomicUsize::new(0),
            hanging: AtomicUsize::new(0),
            next_attempt: Mutex::default(),
            reads_only: Mutex::default(),
            moves: AtomicU64::new(0),
        });
        let manager = Manager::new(Recipe {
            credentials: Mutex::new(Credentials::new(options.url.clone())),
            application_name: options.application_name.clone(),
            set_path: set_path(&options.schema),
            settings: session_settings(&options),
            shared: shared.clone(),
        });
        // One thread opens connections and closes idle ones. r2d2's default of three would cost memory in an idle
        // broker.
        let helper = ScheduledThreadPool::builder()
            .num_threads(1)
            .thread_name_pattern("db-pool")
            .on_drop_behavior(OnPoolDropBehavior::DiscardPendingScheduled)
            .build();
        let pool = r2d2::Pool::builder()
            .max_size(options.pool_size.max(cap))
            .min_idle(Some(0))
            .idle_timeout(Some(IDLE_TIMEOUT))
            // Each connection has its own jittered lifetime; r2d2's would end them all together.
            .max_lifetime(None)
            .connection_timeout(CONNECTION_TIMEOUT)
            // `checkout` tests the connection, because it can also report the reason of a failure.
            .test_on_check_out(false)
            .error_handler(Box::new(r2d2::NopErrorHandler))
            .thread_pool(Arc::new(helper))
            .build(manager.clone())
            .map_err(|error| DbError::Setup(error.to_string()))?;
        Ok(Db(Arc::new(Inner {
            pool,
            manager,
            shared,
            options,
            last: Mutex::default(),
            unwritable: Mutex::default(),
            lost_schema: Mutex::default(),
            refused: AtomicBool::new(false),
            looking: AtomicBool::new(false),
            writes: AtomicU64::new(0),
        })))
    }

    /// Runs `work` on one connection, on a blocking thread.
    ///
    /// When the caller stops waiting, work that has begun still runs to its end; other work never begins.
    ///
    /// # Errors
    /// The error of `work`, or, as `E`: [`DbError::Unavailable`] when there was no working connection within
    /// `acquire_timeout`, no result within it while the server counts as away, or no result within the deadline;
    /// [`DbError::Panicked`].
    pub async fn run<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&mut Conn) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let result = self.run_within(self.0.options.acquire_timeout, work).await;
        if self.0.refused.swap(false, Ordering::Relaxed) {
            self.look_around();
        }
        result
    }

    async fn run_within<T, E, F>(&self, acquire_timeout: Duration, work: F) -> Result<T, E>
    where
        F: FnOnce(&mut Conn) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let began = tokio::time::Instant::now();
        let until = began + acquire_timeout;
        let Some(slot) = self.0.shared.gate.acquire(until).await else {
            return Err(DbError::unavailable(format!(
                "no connection came free within {acquire_timeout:?}"
            ))
            .into());
        };
        let (started, has_started) = oneshot::channel();
        let inner = self.0.clone();
        let mut job =
            tokio::task::spawn_blocking(move || inner.job(slot, until.into_std(), started, work));
        match tokio::time::timeout_at(until, has_started).await {
            // A dropped sender means that the checkout failed; the job returns the reason.
            Ok(_) => {}
            Err(_) => {
                let reason = format!("the server did not answer within {acquire_timeout:?}");
                self.0.note(LastCheckout::failed(reason.clone()));
                return Err(DbError::unavailable(reason).into());
            }
        }
        let mut away = self.0.shared.away.subscribe();
        let lost = async {
            // Work on a server that is away never ends, but a slow server is waited for. `wait_for` cannot fail,
            // because `self` keeps the sender alive.
            loop {
                let _ = away.wait_for(Option::is_some).await;
                tokio::time::sleep_until(until).await;
                // The prober may have withdrawn its verdict, or a new connection may have refuted it.
                if away.borrow().is_some() {
                    return;
                }
            }
        };
        // Cancel-safe: the job runs on even when this future is dropped.
        let ended = tokio::select! {
            ended = tokio::time::timeout_at(began + self.0.options.deadline, &mut job) => ended,
            () = lost => {
                let reason = format!("the server went away, and gave no result within {acquire_timeout:?}");
                return Err(DbError::unavailable(reason).into());
            }
        };
        match ended {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(DbError::Panicked.into()),
            Err(_) => {
                let reason = format!(
                    "the server did not finish within {:?}",
                    self.0.options.deadline
                );
                Err(DbError::unavailable(reason).into())
            }
        }
    }

    /// Returns time and reason of the last refused write, while the server answers but takes no writes.
    pub fn unwritable(&self) -> Option<(Instant, String)> {
        self.0.unwritable().clone()
    }

    /// Changes the password of new connections. Open connections stay.
    pub fn set_password(&self, password: Secret) {
        self.0.manager.set_password(password);
    }

    /// Stores the supervisor's verdict: the server is away, with the reason, or it is not. While it is away,
    /// [`Db::run`] waits at most `acquire_timeout` for running work, and few requests try to connect.
    pub fn set_away(&self, away: Option<ServerOutage>) {
        self.0.shared.away.send_replace(away);
    }

    /// Returns true while the supervisor's prober says that the server is away.
    pub fn is_away(&self) -> bool {
        self.0.shared.away.borrow().is_some()
    }

    /// Returns the result of the latest checkout.
    pub fn last(&self) -> LastCheckout {
        self.0
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Returns a counter that grows whenever this process may have changed something in the schema.
    pub fn writes(&self) -> u64 {
        self.0.writes.load(Ordering::Relaxed)
    }

    /// Returns the current state of the pool.
    pub fn figures(&self) -> Figures {
        let shared = &self.0.shared;
        Figures {
            connections: shared.cap.load(Ordering::Relaxed) as u32,
            held: *shared.open.borrow(),
            working: shared.gate.figures().1,
        }
    }

    /// Returns the pids of the backends of the open connections.
    pub fn backends(&self) -> BTreeSet<i32> {
        self.0.shared.backends().clone()
    }

    /// Returns a receiver of the number of connections held.
    pub fn held(&self) -> watch::Receiver<u32> {
        self.0.shared.open.subscribe()
    }

    /// Changes the largest number of connections, up to the larger of `pool_size` and `connections` at construction.
    /// Idle connections beyond it are closed now, busy ones when they come back. Returns the new state.
    pub async fn set_cap(&self, connections: u32) -> Figures {
        let inner = self.0.clone();
        let cap = connections.clamp(1, inner.pool.max_size());
        inner.shared.cap.store(cap as usize, Ordering::Relaxed);
        inner.shared.gate.set_limit(working(&inner.options, cap));
        self.close_idle(cap).await;
        self.figures()
    }

    /// Begins to drain: closes idle connections at once, keeps a returned connection only for a request that waits, and
    /// opens no other connection while one can serve.
    pub async fn drain(&self) {
        self.0.shared.draining.store(true, Ordering::Relaxed);
        self.0.shared.gate.freeze();
        self.close_idle(0).await;
    }

    /// Closes idle connections until at most `keep` are open. Runs on a blocking thread, because closing writes to the
    /// network.
    async fn close_idle(&self, keep: u32) {
        let inner = self.0.clone();
        let closing = tokio::task::spawn_blocking(move || {
            while *inner.shared.open.borrow() > keep {
                let Some(mut slotted) = inner.pool.try_get() else {
                    break;
                };
                slotted.spoil();
            }
        });
        if closing.await.is_err() {
            tracing::warn!("closing idle database connections panicked");
        }
    }
}

impl Inner {
    /// Runs the blocking side of [`Db::run`].
    fn job<T, E, F>(
        &self,
        slot: WorkPermit,
        until: Instant,
        started: oneshot::Sender<()>,
        work: F,
    ) -> Result<T, E>
    where
        F: FnOnce(&mut Conn) -> Result<T, E>,
        E: From<DbError>,
    {
        // Dropped last, so that the connection is back in the pool before its slot is free.
        let _slot = slot;
        let mut conn = Conn::new(self.checkout(until)?);
        if started.send(()).is_err() {
            return Err(DbError::unavailable(
                "the request was given up before a connection came free",
            )
            .into());
        }
        let done = catch_unwind(AssertUnwindSafe(|| work(&mut conn)));
        if conn.wrote() {
            self.writes.fetch_add(1, Ordering::Relaxed);
        }
        let result = match done {
            Ok(result) => result,
            Err(_) => {
                conn.spoil();
                Err(DbError::Panicked.into())
            }
        };
        if let Some((sql, said)) = conn.signs().schema_lost.clone() {
            self.note_lost_schema(sql, &said);
        }
        if let Some(why) = conn.signs().unwritable.clone() {
            if why.read_only {
                conn.mark_read_only();
                self.refused.store(true, Ordering::Relaxed);
                self.shared.set_reads_only(true);
            }
            let mut unwritable = self.unwritable();
            if unwritable.is_none() {
                tracing::warn!(reason = %why.reason, "the database takes no writes");
            }
            *unwritable = Some((Instant::now(), why.reason));
        }
        result
    }

    fn lost_schema(&self) -> MutexGuard<'_, Option<LostSchema>> {
        self.lost_schema
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn unwritable(&self) -> MutexGuard<'_, Option<(Instant, String)>> {
        self.unwritable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, last: LastCheckout) {
        let mut current = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*current, &last) {
            (LastCheckout::Failed(..), LastCheckout::Worked(_)) => {
                tracing::info!("the database answers again")
            }
            (LastCheckout::Worked(_) | LastCheckout::Unknown, LastCheckout::Failed(_, reason)) => {
                tracing::warn!(%reason, "the database does not answer");
            }
            _ => {}
        }
        *current = last;
    }
}

impl Drop for Inner {
    /// Closes idle connections on a thread of its own. The last handle is often dropped on the event loop, where
    /// closing would block, and the client panics rather than block there.
    fn drop(&mut self) {
        let pool = self.pool.clone();
        let close = move || {
            while let Some(mut slotted) = pool.try_get() {
                slotted.spoil();
            }
        };
        if std::thread::Builder::new()
            .name("db-close".to_owned())
            .spawn(close)
            .is_err()
        {
            // No thread can be started, so the pool is leaked: the process is at its limits or ending, and the kernel
            // closes its connections.
            std::mem::forget(self.pool.clone());
        }
    }
}

/// Returns the number of slots for a cap.
fn working(options: &Options, cap: u32) -> u32 {
    options.max_working.min(cap).max(1)
}

/// Returns the settings of every session, all known since PostgreSQL 14: those that correctness depends on, then the
/// tenant's timeouts.
///
/// JIT is off, because compiling a statement takes longer than any statement of the broker runs. A backend notices
/// within a second that its broker was killed, because the next instance waits for that.
fn session_settings(options: &Options) -> String {
    format!(
        "{} \
         SET statement_timeout = {}; \
         SET idle_in_transaction_session_timeout = {}; \
         SET jit = off; \
         SET tcp_user_timeout = 5000; \
         SET client_connection_check_interval = 1000",
        brokkr_pg::SETTINGS,
        options.statement_timeout.as_millis(),
        options.idle_in_transaction_timeout.as_millis()
    )
}
