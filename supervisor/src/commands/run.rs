//! `run`: the daemon. Parse, lock, end what an earlier one left, serve, wait for a signal, drain.

mod folders;
mod service;

use crate::budget::parse_admitted;
use crate::config::{self, Look, Scanner, Supervisor};
use crate::control;
use crate::embedded::Embedded;
use crate::fleet::handle::Handle;
use crate::fleet::{Fleet, Parts, persist};
use crate::instance::private::ProbeTimes;
use crate::instance::{Edge, Settings, orphans, survivors};
use crate::logs::{Format, Hub, Output};
use crate::servers::Servers;
use crate::status::Snapshot;
use crate::systemd::Notifier;
use crate::watch::Watch;
use brokkr_tenant::{Layer, TenantName};
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Reports of instances between two turns of the fleet; when full, the reporters wait.
const REPORTS: usize = 4096;
/// Operators' requests between two turns of the fleet; when full, the requests wait.
const REQUESTS: usize = 64;
/// What the sink gets to take the last lines.
const LAST_LINES: Duration = Duration::from_secs(2);

/// A thread that has blocked once is there for the next who has to.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Runs the daemon until SIGTERM or SIGINT.
pub(crate) fn run(path: &Path) -> ExitCode {
    let config = match config::load(path) {
        Ok(config) => config,
        Err(problems) => return super::complain(&problems.to_string(), super::EXIT_CONFIGURATION),
    };
    let lock = match folders::prepare(&config) {
        Ok(lock) => lock,
        Err(problem) => return super::complain(&problem, super::EXIT_PROBLEM),
    };
    let open_files = crate::sys::raise_open_files();
    let hub = match start_log(&config) {
        Ok(hub) => hub,
        Err(problem) => return super::complain(&problem, super::EXIT_PROBLEM),
    };
    // One thread turns the loop: the fleet, the instances' tasks and the control socket are all short turns. What
    // blocks (spawning, scanning, name resolution) runs on threads of its own.
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(FOR_EVER)
        .build()
        .map_err(|error| format!("cannot make the event loop: {error}"))
        .and_then(|runtime| {
            // With one such thread there what blocks waits its turn on a host that is out of pids; without any it panics.
            runtime.spawn_blocking(|| {});
            let outcome = runtime.block_on(serve(config, hub.clone(), open_files));
            // A thread may hang in a file system or a name server; it must not keep the process.
            runtime.shutdown_timeout(LAST_LINES);
            outcome
        });
    let code = match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            tracing::error!("{problem}");
            super::complain(&problem, super::EXIT_PROBLEM)
        }
    };
    hub.flush_and_stop(Instant::now() + LAST_LINES);
    drop(lock);
    code
}

fn start_log(config: &Supervisor) -> Result<Hub, String> {
    let format = match config.log_format.as_str() {
        "text" => Format::Text,
        "json" => Format::Json,
        "journald" => Format::Journald,
        _ => Format::Auto,
    };
    let hub = std::io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .and_then(|stdout| Hub::start(Output::choose(format, stdout)))
        .map_err(|error| format!("cannot start the log: {error}"))?;
    let level = tracing_subscriber::filter::LevelFilter::INFO;
    tracing_subscriber::registry()
        .with(level)
        .with(hub.layer())
        .init();
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    Ok(hub)
}

async fn serve(config: Supervisor, hub: Hub, open_files: (u64, u64)) -> Result<(), String> {
    // Signals first: one that comes while the rest starts must not kill what has been started.
    let signals =
        service::Signals::new().map_err(|error| format!("cannot listen for signals: {error}"))?;
    let notifier = Notifier::from_env().map_err(|error| format!("NOTIFY_SOCKET: {error}"))?;
    nix::sys::prctl::set_child_subreaper(true)
        .map_err(|error| format!("cannot become subreaper: {error}"))?;
    for warning in &config.warnings {
        tracing::warn!("{}", warning.headline());
    }
    let config = Arc::new(config);
    let instances = folders::instances(&config);
    let swept = end_survivors(&config, instances.clone()).await?;

    let admitted = read_admitted(&config);
    let stopped = read_stopped(&config)?;
    let (snapshots, snapshot) = watch::channel(Arc::new(Snapshot::default()));
    let (request_sender, requests) = mpsc::channel(REQUESTS);
    let handle = Handle::new(snapshot.clone(), request_sender);
    // What can fail is tried before the embedded server is started, which would be left running.
    let control = control::Control::start(&config, handle.clone(), hub.clone())
        .await
        .map_err(|error| format!("control socket: {error}"))?;
    let embedded = match config.postgres.embedded {
        true => Some(Embedded::start(&config).await?),
        false => None,
    };
    let outcome = async {
        let mut layers = Vec::new();
        if let Some(embedded) = &embedded {
            layers.push(Layer::from_pairs(
                "the embedded server",
                [("database.url", embedded.url().expose().as_str())],
            ));
        }
        layers.push(config.defaults.clone());

        let servers = Servers::start(brokkr_pg::application_prefix().to_owned())
            .map_err(|error| format!("cannot start the probers: {error}"))?;
        let mut scanner = Scanner::new(config.tenants_dir.clone(), config.broker.clone(), layers);
        let first = scanner.scan(Instant::now(), Look::default(), &BTreeSet::new());
        for problem in &first.desired.problems {
            tracing::error!("{problem}");
        }
        let (desired_sender, desired) = watch::channel(Arc::new(first.desired));
        let (reloader, wishes) = mpsc::channel(REQUESTS);
        let watch_task = Watch::new(config.tenants_dir.clone(), scanner, desired_sender, wishes);
        // Their failure is nobody's but the supervisor's: it ends, its brokers live on, and the next one takes them over.
        let mut vital = JoinSet::new();
        vital.spawn(watch_task.run());

        let (report_sender, reports) = mpsc::channel(REPORTS);
        let settings = Settings {
            program: config.broker.clone(),
            folder: instances,
            times: ProbeTimes {
                interval: config.health.interval,
                timeout: config.health.timeout,
            },
            open_files,
        };
        let fleet = Fleet::new(Parts {
            edge: Edge::new(settings, hub.clone(), report_sender),
            reports,
            desired,
            servers: servers.clone(),
            requests,
            reloader,
            snapshots,
            admitted,
            stopped,
            first_free: swept.first_free,
            left: swept.left,
            open_files: crate::sys::open_files(),
            notices: control.notice().map(str::to_owned).into_iter().collect(),
            config: config.clone(),
        });
        let (stop, stopped) = oneshot::channel();
        vital.spawn(service::answer_watchdog(notifier.clone(), handle.clone()));
        vital.spawn(service::report(notifier.clone(), snapshot));
        vital.spawn(service::heed(signals, notifier.clone(), handle, stop));
        tokio::select! {
            () = fleet.run(stopped) => {}
            panic = failed(&mut vital) => return Err(format!("the supervisor failed: {panic}")),
        }

        // The probers last but one: without them nothing knocks at an embedded server on its way out.
        drop((control, servers));
        Ok(())
    }
    .await;
    if let Some(embedded) = embedded {
        embedded.stop().await;
    }
    orphans::reap();
    tracing::info!("stopped");
    outcome
}

/// Waits until one of the tasks has panicked. Cancel-safe: one that has only ended is nothing to be told.
async fn failed(tasks: &mut JoinSet<()>) -> tokio::task::JoinError {
    loop {
        match tasks.join_next().await {
            Some(Ok(())) => {}
            Some(Err(panic)) => return panic,
            None => std::future::pending().await,
        }
    }
}

async fn end_survivors(
    config: &Supervisor,
    folder: std::path::PathBuf,
) -> Result<survivors::Swept, String> {
    let grace = config.stop.grace;
    let shown = folder.display().to_string();
    let swept = tokio::task::spawn_blocking(move || survivors::end_all(&folder, grace))
        .await
        .map_err(|panic| panic.to_string())?
        .map_err(|error| format!("{shown}: {error}"))?;
    if swept.ended > 0 {
        tracing::warn!(
            ended = swept.ended,
            "brokers of an earlier supervisor were still running and have been ended"
        );
    }
    for left in &swept.left {
        tracing::error!("could not be ended: {left}");
    }
    Ok(swept)
}

fn read_admitted(config: &Supervisor) -> Vec<crate::budget::Admission> {
    let path = config.state_dir.join("admitted");
    let text = persist::read(&path).unwrap_or_else(|error| {
        tracing::error!(path = %path.display(), %error, "cannot be read: tenants are admitted by priority and name");
        String::new()
    });
    let (admitted, bad) = parse_admitted(&text);
    for (line, text) in bad {
        tracing::error!(
            "{}:{line}:1: not an admission, left out: {text}",
            path.display()
        );
    }
    admitted
}

/// Who was stopped must stay stopped, so a list that cannot be read stops us.
fn read_stopped(config: &Supervisor) -> Result<BTreeSet<TenantName>, String> {
    let path = config.state_dir.join("stopped");
    let text = persist::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(text
        .lines()
        .filter_map(|line| TenantName::parse(line.trim()).ok())
        .collect())
}
