//! The command `serve`: one instance, from its sockets to its last answered request.
//!
//! ```text
//! sockets -> private router -> start (retried while the server is away) -> READY -> accept -> signal -> drain -> exit
//! ```
//!
//! Under a supervisor the tenant's socket is shared with the previous instance, so the broker accepts nothing before
//! READY. Alone, the broker answers probes from the first moment, and the API answers 503 until the start is done.
//!
//! The event loop is one thread. A second signal ends the process at once; otherwise the process ends with its last
//! connection. Late in the grace the broker closes idle connections (`IDLE_SHARE`), and near its end it cuts all others
//! (`CUT_SHARE`).

mod access_log;
mod connection_state;
mod connections;
mod cors;
mod listener;
mod maps;
mod public;
mod request_id;
mod sd_notify;
mod signals;
mod supervisor_api;
mod timeout_stream;

use std::sync::Arc;
use std::time::{Duration, Instant};

use brokkr_tenant::BrokerConfig;
use brokkr_tenant::instance_protocol::HELD_CONNECTIONS;
use tokio::sync::{mpsc, watch};

use crate::app::App;
use crate::auth;
use crate::config::Instance;
use crate::db::Db;
use crate::db::start::{Plan, StartError, StartReport, Step, start};
use crate::health::Health;
use crate::jobs;
use crate::jobs::schedule::Schedule;
use crate::metrics::Metrics;
use crate::reload::hangup::Hangups;
use crate::reload::{self, Reloader};
use crate::runtime_config::RuntimeConfig;
use crate::sandbox;
use crate::sys;
use crate::tls::Tls;
use crate::webhook::{self, Webhooks};
use crate::websocket;
use crate::websocket::handle::WebSockets;
use connection_state::Phase;
use connections::Connections;
pub use listener::InheritedSockets;
use listener::Listener;
use public::DroppedLines;
use sd_notify::Notifier;
use signals::Signals;

/// The share of the grace after which idle connections are closed, so that the process ends before the grace is over.
const IDLE_SHARE: f64 = 0.85;

/// The share of the grace after which open connections are cut. The remaining time is for storing received telemetry.
const CUT_SHARE: f64 = 0.95;

/// The time that a broker without a supervisor waits for its server to appear.
const ALONE_TIMEOUT: Duration = Duration::from_secs(60);

/// The request to wait 30 s longer for READY, sent every [`EXTEND_EVERY`] while migrating. Not sent while waiting for
/// another process's lock, because that wait may never end.
const EXTEND: &str = "EXTEND_TIMEOUT_USEC=30000000";
const EXTEND_EVERY: Duration = Duration::from_secs(5);

/// The largest number of connections of the private socket, which only the supervisor uses.
const PRIVATE_CONNECTIONS: u32 = 16;

/// Reason why serving ended without a request to stop.
#[derive(Debug)]
pub struct ServeError {
    /// The exit code of the process.
    pub code: u8,
    /// The reason, for the operator.
    pub reason: String,
}

impl ServeError {
    /// Returns exit code 1 with the failed part and the error.
    pub fn failed(what: &str, error: impl std::fmt::Display) -> Self {
        ServeError {
            code: 1,
            reason: format!("{what}: {error}"),
        }
    }
}

/// Serves until told to stop.
///
/// # Errors
///
/// [`ServeError`] when the broker ends for a reason of its own.
pub fn serve(
    instance: Instance,
    inherited: InheritedSockets,
    dropped: DroppedLines,
) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // One thread per slot of the pool, and a few for the start and for closing connections.
        .max_blocking_threads(instance.config.database.max_working as usize + 4)
        .thread_keep_alive(Duration::from_secs(5))
        .thread_name("db")
        .build()
        .map_err(|error| ServeError::failed("event loop", error))?;
    let result = runtime.block_on(run(instance, inherited, dropped));
    // Do not wait for a thread that hangs in a server without an answer.
    runtime.shutdown_background();
    result
}

async fn run(
    instance: Instance,
    inherited: InheritedSockets,
    dropped: DroppedLines,
) -> Result<(), ServeError> {
    let notifier = Notifier::from_env();
    let result = Box::pin(run_notified(&notifier, instance, inherited, dropped)).await;
    if let Err(exit) = &result {
        notifier.exit(exit.code, &exit.reason).await;
    }
    result
}

async fn run_notified(
    notifier: &Notifier,
    instance: Instance,
    inherited: InheritedSockets,
    dropped: DroppedLines,
) -> Result<(), ServeError> {
    let mut signals = Signals::new().map_err(|error| ServeError::failed("signals", error))?;
    // Under a supervisor the signal has its default effect, because a reload would do nothing.
    let hangups = match instance.supervised {
        true => None,
        false => Some(Hangups::new().map_err(|error| ServeError::failed("signals", error))?),
    };
    let (phase, phases) = watch::channel(Phase::Serving);
    let listener = match inherited.http {
        Some(fd) => Listener::inherited(fd)
            .map_err(|error| ServeError::failed("inherited socket", error))?,
        None => Listener::bind(&instance.config.http.listen)
            .await
            .map_err(|error| {
                ServeError::failed(
                    &format!("http.listen {}", instance.config.http.listen),
                    error,
                )
            })?,
    };
    let app = app(&instance)?;
    let public = Connections::new(
        public::router(app.clone(), dropped.clone()),
        app.metrics.clone(),
        phases.clone(),
        most_connections(&instance),
    )
    .with_tls(app.tls.clone());

    if let Some(fd) = inherited.private {
        let listener =
            Listener::inherited(fd).map_err(|error| ServeError::failed("private socket", error))?;
        let listener = listener.for_own_user();
        // The private socket has its own phase, which never changes, because it answers probes and orders until the
        // end.
        let (forever, phases) = watch::channel(Phase::Serving);
        let connections = Connections::new(
            supervisor_api::router(app.clone(), dropped),
            app.metrics.clone(),
            phases,
            PRIVATE_CONNECTIONS,
        );
        tokio::spawn(async move {
            let _forever = forever;
            connections.accept(listener).await;
        });
    }

    let address = listener.address();
    let mut listener = Some(listener);
    let mut accepting = None;
    if !instance.supervised {
        accepting = listener
            .take()
            .map(|listener| tokio::spawn(public.clone().accept(listener)));
    }
    tokio::select! {
        started = until_started(notifier, &instance) => started?,
        () = signals.next() => {
            tracing::info!("told to stop while starting");
            return Ok(());
        }
    };
    app.health.started();
    if let Some(listener) = listener.take() {
        accepting = Some(tokio::spawn(public.clone().accept(listener)));
    }
    jobs::runner::spawn(&app);
    websocket::spawn(&app);
    reload::watch::watch(&app.reloader, &app.health, hangups);
    tokio::spawn(trim_when_idle(app.db.clone()));
    tracing::info!(%address, schema = %instance.config.database.schema, "ready");
    notifier.send(&["READY=1", "STATUS=ready"]).await;

    signals.next().await;
    drain(notifier, &app, &public, &phase, accepting, instance.grace).await;
    Ok(())
}

fn app(instance: &Instance) -> Result<App, ServeError> {
    let db =
        Db::new(instance.db_options()).map_err(|error| ServeError::failed("database", error))?;
    let config = Arc::new(instance.config.clone());
    let metrics = Metrics::new().map_err(|error| ServeError::failed("metrics", error))?;
    let metrics = Arc::new(metrics);
    let runtime_config = RuntimeConfig::new(&config);
    let jobs = Schedule::new();
    let tls = tls(&config)?;
    Ok(App {
        db,
        auth: auth::Cache::new(Duration::from_secs(config.broker.auth_cache_ttl_seconds)),
        failed_attempts: auth::FailedAttempts::default(),
        reloader: Reloader::new(
            instance,
            config.clone(),
            runtime_config.clone(),
            tls.clone(),
            jobs.clone(),
        ),
        tls,
        runtime_config,
        config,
        live: WebSockets::new(metrics.sockets.clone()),
        metrics,
        health: Arc::new(Health::new()),
        jobs,
        webhooks: Webhooks::new(&instance.config, instance.webhook_key()),
    })
}

/// Returns the certificate of the tenant's listener, if it serves TLS.
fn tls(config: &BrokerConfig) -> Result<Option<Tls>, ServeError> {
    let Some(tls) = &config.http.tls else {
        return Ok(None);
    };
    Tls::new(&tls.pair).map(Some).map_err(|error| {
        let (key, file) = if error.is_of_key() {
            ("http.tls_key", &tls.key_file)
        } else {
            ("http.tls_cert", &tls.cert_file)
        };
        ServeError {
            code: 78,
            reason: format!("`{key}`: {}: {error}", file.display()),
        }
    })
}

/// Returns the number of client connections that the descriptors allow, less those for the pool (four per database
/// connection), webhooks and the process itself.
fn most_connections(instance: &Instance) -> u32 {
    use nix::sys::resource::{Resource, getrlimit};
    let descriptors =
        getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft.min(20_000)) as u32;
    let ours = 64 + webhook::MOST_REQUESTS + 4 * instance.config.database.pool_size.get();
    descriptors.saturating_sub(ours).clamp(64, 10_000)
}

/// Starts, and tries again while the server is away; without a supervisor for a minute.
async fn until_started(
    notifier: &Notifier,
    instance: &Instance,
) -> Result<StartReport, ServeError> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(50);
    let mut told = String::new();
    let mut held_up = false;
    loop {
        let reason = match attempt(notifier, instance.plan(), &mut held_up).await {
            Ok(outcome) => return Ok(outcome),
            Err(StartError::Configuration(reason)) => return Err(ServeError { code: 78, reason }),
            Err(StartError::Failed(reason)) => return Err(ServeError { code: 1, reason }),
            Err(StartError::Away(reason)) => reason,
        };
        if !instance.supervised && began.elapsed() > ALONE_TIMEOUT {
            return Err(ServeError { code: 69, reason });
        }
        if reason != told {
            tracing::warn!(%reason, "waiting for the database");
            notifier
                .status(&format!("waiting for the database: {reason}"))
                .await;
            told = reason;
        }
        // Use jitter with a floor, so that brokers of one lost server do not all return together.
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// Starts once on a blocking thread, and tells the supervisor while the start takes long.
///
/// `held_up` is true once a migration has waited for another transaction's lock. From then on, a migration counts as
/// working only after it has lasted longer than its wait for a lock.
async fn attempt(
    notifier: &Notifier,
    plan: Plan,
    held_up: &mut bool,
) -> Result<StartReport, StartError> {
    // Four steps are enough, because a full queue only loses repeated steps.
    let (steps, mut stepped) = mpsc::channel(4);
    let mut job = tokio::task::spawn_blocking(move || {
        if let Some(folder) = sandbox::unwritable_folder() {
            return Err(StartError::Failed(format!(
                "the content of {} has changed since this process began, and its sandbox keeps it from writing there: the next process can",
                folder.display()
            )));
        }
        start(&plan, &|step| {
            let _ = steps.try_send(step);
        })
    });
    let mut extend = tokio::time::interval(EXTEND_EVERY);
    let mut current = None;
    loop {
        // Every arm is cancel-safe: a join handle and a channel keep untaken values.
        tokio::select! {
            biased;
            joined = &mut job => {
                return joined.unwrap_or_else(|_| Err(StartError::Failed("the start panicked".to_owned())));
            }
            Some(step) = stepped.recv() => {
                *held_up |= step == Step::MigratingAgain;
                extend.reset();
                if current == Some(step) {
                    continue;
                }
                current = Some(step);
                let status = match step {
                    Step::WaitingForLock => "STATUS=waiting for another start on the same schema",
                    Step::Migrating => "STATUS=migrating",
                    Step::MigratingAgain => "STATUS=migrating; waiting for a lock that a transaction holds",
                };
                if step == Step::Migrating && !*held_up {
                    notifier.send(&[EXTEND, status]).await;
                } else {
                    notifier.send(&[status]).await;
                }
            }
            _ = extend.tick() => if matches!(current, Some(Step::Migrating | Step::MigratingAgain)) {
                notifier.send(&[EXTEND]).await;
            },
        }
    }
}

/// Returns memory to the system after the start and whenever the last database connection has closed, because then the
/// broker is idle.
async fn trim_when_idle(db: Db) {
    let mut held = db.held();
    loop {
        if held.wait_for(|held| *held == 0).await.is_err() {
            return;
        }
        // The panic hook has logged a panic.
        let _ = tokio::task::spawn_blocking(sys::trim_memory).await;
        if held.wait_for(|held| *held > 0).await.is_err() {
            return;
        }
    }
}

/// The interval between two looks at the connections still held at the end of a drain.
const STILL_HELD: Duration = Duration::from_millis(20);

async fn drain(
    notifier: &Notifier,
    app: &App,
    public: &Connections,
    phase: &watch::Sender<Phase>,
    accepting: Option<tokio::task::JoinHandle<()>>,
    grace: Duration,
) {
    app.health.draining();
    phase.send_replace(Phase::Draining);
    app.live.drain(grace);
    notifier.send(&["STOPPING=1", "STATUS=draining"]).await;
    let began = tokio::time::Instant::now();
    let share = began + grace.mul_f64(IDLE_SHARE);
    let cut = began + grace.mul_f64(CUT_SHARE);
    let ended = async {
        if let Some(accepting) = accepting {
            // The task ends with the phase; the panic hook has logged a panic.
            let _ = accepting.await;
        }
        tracing::info!(connections = public.open(), "draining");
        app.db.drain().await;
        let ended = public.ended();
        tokio::pin!(ended);
        if tokio::time::timeout_at(share, &mut ended).await.is_err() {
            tracing::info!(connections = public.open(), "closing what is idle");
            phase.send_replace(Phase::Closing);
            if tokio::time::timeout_at(cut, &mut ended).await.is_err() {
                tracing::warn!(
                    connections = public.open(),
                    "the grace is over: cutting connections"
                );
            }
        }
        app.live.stored().await;
        // No new deliveries begin. A delivery cut off here is sent again after its claim ends.
        let in_flight = app.webhooks.in_flight();
        if tokio::time::timeout_at(share, in_flight.landed())
            .await
            .is_err()
        {
            tracing::info!(
                deliveries = in_flight.in_flight_count(),
                "leaving webhook deliveries to others"
            );
        }
        // Work of clients that have gone still holds connections, and the next instance gets the connections released
        // here.
        let mut held = app.db.held();
        while *held.borrow_and_update() > 0 && !app.db.is_away() {
            // Close connections that became idle because their request had ended.
            app.db.drain().await;
            let _ = tokio::time::timeout(STILL_HELD, held.changed()).await;
        }
    };
    tokio::select! {
        () = ended => {}
        () = tell_connections(notifier, app) => {}
        () = tokio::time::sleep_until(began + grace) => tracing::warn!(
            connections = public.open(),
            "the grace is over: ending at once"
        ),
    }
    let held = *app.db.held().borrow();
    notifier
        .send(&[&format!("{HELD_CONNECTIONS}={held}")])
        .await;
    tracing::info!("drained");
}

/// Tells the supervisor the number of database connections held, whenever that number changes. Never ends.
async fn tell_connections(notifier: &Notifier, app: &App) {
    let mut held = app.db.held();
    loop {
        let now = *held.borrow_and_update();
        notifier.send(&[&format!("{HELD_CONNECTIONS}={now}")]).await;
        if held.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
