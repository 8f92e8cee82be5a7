//! `run`, the daemon: parse, lock, take over what an earlier supervisor left, serve, wait for a signal, drain or leave.

mod abort_on_panic;
mod capabilities;
mod daemon;
mod last_good_config;
mod retry_later;
mod runtime_dirs;
mod signal_loop;
mod signals;
mod surroundings;

use crate::config::SupervisorConfig;
use crate::fleet::handover::FleetExit;
use crate::handover::inherited::{HandoverSource, InheritedFds};
use crate::instance::cgroup::CgroupTree;
use crate::instance::successor;
use crate::instance::tenant_uids::TenantUids;
use crate::logs::{Hub, Output, OutputFormat};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Time limit for the sink to take the last lines.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Keep-alive time of blocking threads, long enough that they are always reused.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Runs the daemon until SIGTERM or SIGINT.
pub(crate) fn run(path: &Path, mut inherited: InheritedFds) -> ExitCode {
    let (config, problem) = match last_good_config::load(path, &inherited) {
        Ok(loaded) => loaded,
        Err(problems) => return super::complain(&problems, super::EXIT_CONFIGURATION),
    };
    if let Err(problem) = capabilities::keep_only_used() {
        return super::complain(&problem, super::EXIT_PROBLEM);
    }
    let lock = match runtime_dirs::prepare(&config, inherited.lock.take()) {
        Ok(lock) => lock,
        Err(problem) => return super::complain(&problem, super::EXIT_PROBLEM),
    };
    let raised = crate::sys::raise_open_files();
    // The supervisor that executed this program had already raised the limits, so brokers get the limits in its index.
    let given = inherited
        .index
        .as_ref()
        .filter(|_| inherited.handover_source == HandoverSource::Ourselves);
    let open_files = given.and_then(|index| index.open_files).unwrap_or(raised);
    // Block the signals before a second thread starts.
    if let Err(problem) = signals::hold_back() {
        let problem = format!("cannot hold back signals: {problem}");
        return super::complain(&problem, super::EXIT_PROBLEM);
    }
    let hub = match start_log(&config) {
        Ok(hub) => hub,
        Err(problem) => return super::complain(&problem, super::EXIT_PROBLEM),
    };
    let daemon = daemon::Daemon {
        file: path.to_owned(),
        groups: CgroupTree::detect(&config.runtime_dir),
        uids: config
            .own_uids()
            .map(|range| TenantUids::load(&config.state_dir, range)),
        config: Arc::new(config),
        problem,
        hub: hub.clone(),
        open_files,
        ending: signals::ShutdownKind::default(),
        taken: Arc::new(Mutex::new(lock)),
    };
    daemon.groups.tidy();
    let code = match turns(&daemon, inherited) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            tracing::error!("{problem}");
            super::complain(&problem, super::EXIT_PROBLEM)
        }
    };
    daemon.groups.remove();
    hub.flush_and_stop(Instant::now() + LAST_LINES);
    code
}

/// Runs `run --check-state`, for a supervisor that is about to execute this program in its place.
pub(crate) fn check_state(path: &Path) -> ExitCode {
    match could_take_over(path) {
        // The answer counts only if the supervisor can read it.
        Ok(()) => match writeln!(std::io::stdout(), "{}", successor::UNDERSTOOD) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(super::EXIT_PROBLEM),
        },
        Err(problem) => super::complain(&problem, super::EXIT_PROBLEM),
    }
}

/// Checks without any change that this program can take over, because after its execution there is no way back.
fn could_take_over(path: &Path) -> Result<(), String> {
    let inherited = InheritedFds {
        handover_source: HandoverSource::Ourselves,
        index: Some(successor::read_state()?),
        ..InheritedFds::default()
    };
    let config = last_good_config::look(path, &inherited)?;
    daemon::read_stopped(&config)?;
    runtime_dirs::could_serve(&config)
}

/// Returns the last good configuration for the file at `path`, if `state_dir` has a readable copy.
pub(crate) fn last_good(state_dir: &Path, path: &Path) -> Option<SupervisorConfig> {
    last_good_config::last_good(state_dir, path)
}

/// Takes the runtime folder until the returned value is dropped.
pub(crate) fn take_over_folder(
    config: &SupervisorConfig,
) -> Result<runtime_dirs::RuntimeDirLock, String> {
    runtime_dirs::prepare(config, None)
}

/// Returns the folder of the instances' files.
pub(crate) fn instances(config: &SupervisorConfig) -> PathBuf {
    runtime_dirs::instances(config)
}

/// Serves, and serves again when another program should have taken over but could not be executed.
fn turns(daemon: &daemon::Daemon, mut inherited: InheritedFds) -> Result<(), String> {
    loop {
        // One thread runs the loop, because the fleet, the instances' tasks and the control socket take only short
        // turns. Blocking work (spawning, scanning, name resolution) runs on threads of its own.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_keep_alive(FOR_EVER)
            .build()
            .map_err(|error| format!("cannot make the event loop: {error}"))?;
        // Start one blocking thread now: on a host that is out of pids, later blocking work then waits for it instead
        // of panicking.
        runtime.spawn_blocking(|| {});
        let ended = runtime.block_on(daemon.serve(inherited));
        // A thread may hang in a file system or a name server and must not keep the process.
        runtime.shutdown_timeout(LAST_LINES);
        let FleetExit::Left(mut handover_state, Some(successor)) = ended? else {
            return Ok(());
        };
        // Flush the lines already read from the pipes, because the next program cannot read them again.
        daemon.hub.flush(Instant::now() + LAST_LINES);
        // Raise again a stop signal that came meanwhile, for the next program or, if its execution fails, for this
        // program.
        daemon.ending.pass_on();
        let error = {
            let taken = daemon.taken.lock().unwrap_or_else(PoisonError::into_inner);
            successor.execute(&mut handover_state, &taken.file)
        };
        tracing::error!(program = %successor.program().display(), %error, "cannot be executed: this supervisor runs on");
        inherited = InheritedFds::again(*handover_state);
    }
}

fn start_log(config: &SupervisorConfig) -> Result<Hub, String> {
    let format = match config.log_format.as_str() {
        "text" => OutputFormat::Text,
        "json" => OutputFormat::Json,
        "journald" => OutputFormat::Journald,
        _ => OutputFormat::Auto,
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
    abort_on_panic::end_with_them(hub.clone(), LAST_LINES);
    Ok(hub)
}
