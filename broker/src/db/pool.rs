//! The pool itself: gate, r2d2 and blocking threads put together.

mod checkout;
mod trial;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use brokkr_tenant::{DatabaseUrl, SchemaName};
use scheduled_thread_pool::{OnPoolDropBehavior, ScheduledThreadPool};
use tokio::sync::{oneshot, watch};

use super::conn::Conn;
use super::error::DbError;
use super::gate::{Gate, Slot};
use super::manager::{Away, Manager, Recipe, Shared, set_path};
use super::signs::LostSchema;

/// After this long without use a connection is closed (checked every 30 s).
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// What a pool is built from.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the server is.
    pub url: DatabaseUrl,
    /// The tenant's schema.
    pub schema: SchemaName,
    /// As `pg_stat_activity` shows it.
    pub application_name: String,
    /// Most connections this pool may ever hold.
    pub pool_size: u32,
    /// Most it may hold until told otherwise ([`Db::set_cap`]).
    pub connections: u32,
    /// How long a request waits for a working connection.
    pub acquire_timeout: Duration,
    /// Most connections working at once: more only queue up inside the server.
    pub max_working: u32,
    /// The server ends a statement after this long.
    pub statement_timeout: Duration,
    /// The server ends a session that leaves a transaction open for this long.
    pub idle_in_transaction_timeout: Duration,
    /// [`Db::run`] returns after this long, waiting included, whatever the work does.
    pub deadline: Duration,
}

/// The state of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Most connections it may hold.
    pub connections: u32,
    /// Held now, those being opened included.
    pub held: u32,
    /// Of these in use.
    pub working: u32,
}

/// Handle to the tenant's database. Cheap to clone.
#[derive(Clone)]
pub struct Db(Arc<Inner>);

struct Inner {
    pool: r2d2::Pool<Manager>,
    manager: Manager,
    shared: Arc<Shared>,
    options: Options,
    last: Mutex<Last>,
    /// Since when the server takes no writes, and why; until a trial shows that it does again.
    unwritable: Mutex<Option<(Instant, String)>>,
    /// The schema does not hold what the broker's statements name; until a trial shows that it does again.
    lost_schema: Mutex<Option<LostSchema>>,
    /// A read-only server has refused a write, and nobody has looked for another since.
    refused: AtomicBool,
    /// Somebody looks for another, or has just done so.
    looking: AtomicBool,
    writes: AtomicU64,
}

/// How the latest attempt to get a working connection ended.
#[derive(Clone, Debug, Default)]
pub enum Last {
    /// Nobody has tried yet.
    #[default]
    Unknown,
    /// It worked, then.
    Worked(Instant),
    /// It did not, then, and why.
    Failed(Instant, String),
}

impl Last {
    fn failed(reason: String) -> Self {
        Last::Failed(Instant::now(), reason)
    }
}

impl Db {
    /// Builds the pool. Opens nothing: the first request does.
    ///
    /// # Errors
    ///
    /// [`DbError::Setup`] when r2d2 refuses the numbers.
    pub fn new(options: Options) -> Result<Self, DbError> {
        let cap = options.connections.max(1);
        let shared = Arc::new(Shared {
            gate: Gate::new(working(&options, cap)),
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
            url: options.url.clone(),
            application_name: options.application_name.clone(),
            login: OnceLock::new(),
            set_path: set_path(&options.schema),
            settings: session_settings(&options),
            shared: shared.clone(),
        });
        // One thread opens connections and closes idle ones; three, r2d2's default, would be three too many when idle.
        let helper = ScheduledThreadPool::builder()
            .num_threads(1)
            .thread_name_pattern("db-pool")
            .on_drop_behavior(OnPoolDropBehavior::DiscardPendingScheduled)
            .build();
        let pool = r2d2::Pool::builder()
            .max_size(options.pool_size.max(cap))
            .min_idle(Some(0))
            .idle_timeout(Some(IDLE_TIMEOUT))
            // Each connection has its own, jittered; r2d2's would end them all together.
            .max_lifetime(None)
            .connection_timeout(checkout::CONNECTION_TIMEOUT)
            // Done by `checkout`, which can also say why it failed.
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
    /// When the caller stops waiting, work that has begun is finished all the same; work that has not is not begun.
    ///
    /// # Errors
    ///
    /// What `work` returned, or, as `E`: [`DbError::Unavailable`] when there was no working connection within
    /// `acquire_timeout` (no result, once the server is known to be away) or no result within the deadline,
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
            // The sender was dropped: the checkout failed, and the job ends at once with the reason.
            Ok(_) => {}
            Err(_) => {
                let reason = format!("the server did not answer within {acquire_timeout:?}");
                self.0.note(Last::failed(reason.clone()));
                return Err(DbError::unavailable(reason).into());
            }
        }
        let mut away = self.0.shared.away.subscribe();
        let lost = async {
            // What a server that has gone was working on will not come back; one that is only slow is waited for. The
            // sender lives as long as we do, so this ends only by a verdict.
            loop {
                let _ = away.wait_for(Option::is_some).await;
                tokio::time::sleep_until(until).await;
                // The prober may have taken it back meanwhile, or a connection may have shown better.
                if away.borrow().is_some() {
                    return;
                }
            }
        };
        // Cancel-safe: the job goes on by itself whoever waits for it.
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

    /// Since when the server takes no writes though it answers, if that is so.
    pub fn unwritable(&self) -> Option<(Instant, String)> {
        self.0.unwritable().clone()
    }

    /// The supervisor's prober says that the server is away, and why, or that it is not. While it is, work that has begun
    /// is not waited for beyond `acquire_timeout`, and hardly anybody tries to connect.
    pub fn set_away(&self, away: Option<Away>) {
        self.0.shared.away.send_replace(away);
    }

    /// Whether the supervisor's prober says that the server is away.
    pub fn is_away(&self) -> bool {
        self.0.shared.away.borrow().is_some()
    }

    /// How the latest checkout ended.
    pub fn last(&self) -> Last {
        self.0
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Grows whenever this process may have changed something in the schema.
    pub fn writes(&self) -> u64 {
        self.0.writes.load(Ordering::Relaxed)
    }

    /// The state of the pool now.
    pub fn figures(&self) -> Figures {
        let shared = &self.0.shared;
        Figures {
            connections: shared.cap.load(Ordering::Relaxed) as u32,
            held: *shared.open.borrow(),
            working: shared.gate.figures().1,
        }
    }

    /// The server's processes for the connections that are open now.
    pub fn backends(&self) -> BTreeSet<i32> {
        self.0.shared.backends().clone()
    }

    /// Connections held, as it changes.
    pub fn held(&self) -> watch::Receiver<u32> {
        self.0.shared.open.subscribe()
    }

    /// Changes the most connections the pool may hold; never beyond the larger of `pool_size` and `connections` it was
    /// built with. What is idle beyond it is closed now, the rest when it comes back. Returns the new state.
    pub async fn set_cap(&self, connections: u32) -> Figures {
        let inner = self.0.clone();
        let cap = connections.clamp(1, inner.pool.max_size());
        inner.shared.cap.store(cap as usize, Ordering::Relaxed);
        inner.shared.gate.set_limit(working(&inner.options, cap));
        self.close_idle(cap).await;
        self.figures()
    }

    /// From now on: idle connections are closed at once, one that comes back is kept only while somebody waits for it,
    /// and no other is opened while one can serve.
    pub async fn drain(&self) {
        self.0.shared.draining.store(true, Ordering::Relaxed);
        self.0.shared.gate.freeze();
        self.close_idle(0).await;
    }

    /// Closes idle connections until `keep` are left. On a blocking thread: closing says goodbye over the network.
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
    /// The blocking side of [`Db::run`].
    fn job<T, E, F>(
        &self,
        slot: Slot,
        until: Instant,
        started: oneshot::Sender<()>,
        work: F,
    ) -> Result<T, E>
    where
        F: FnOnce(&mut Conn) -> Result<T, E>,
        E: From<DbError>,
    {
        // Dropped last: the connection is back before its slot is.
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

    fn note(&self, last: Last) {
        let mut current = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*current, &last) {
            (Last::Failed(..), Last::Worked(_)) => tracing::info!("the database answers again"),
            (Last::Worked(_) | Last::Unknown, Last::Failed(_, reason)) => {
                tracing::warn!(%reason, "the database does not answer");
            }
            _ => {}
        }
        *current = last;
    }
}

impl Drop for Inner {
    /// The last handle is often dropped on the event loop, where a connection must not be closed: saying goodbye blocks,
    /// and the client panics rather than block there.
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
            // No thread to be had: the process is at its limits or at its end, and the kernel closes what is left.
            std::mem::forget(self.pool.clone());
        }
    }
}

/// Most slots for a cap.
fn working(options: &Options, cap: u32) -> u32 {
    options.max_working.min(cap).max(1)
}

/// What every session of this broker is set to when it is opened (all known since PostgreSQL 14): what correctness rests
/// on, then the tenant's timeouts.
///
/// No JIT: compiling a statement takes longer than any of ours runs. What works for a broker that was killed notices within a
/// second, for whoever comes after it waits for that.
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
