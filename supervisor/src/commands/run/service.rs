//! The daemon as a service: signals in, readiness, progress and the watchdog out.

use crate::fleet::handle::Handle;
use crate::fleet::leave::Quit;
use crate::instance::orphans;
use crate::instance::successor::{self, Successor};
use crate::status::{Snapshot, State};
use crate::systemd::{Notifier, job};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// While draining, systemd is asked for more time so often.
const EXTEND_EVERY: Duration = Duration::from_secs(1);

/// Every signal the daemon heeds.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    succeed: Signal,
    child: Signal,
}

impl Signals {
    /// Takes them over.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn new() -> io::Result<Self> {
        let signals = Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            succeed: signal(SignalKind::user_defined2())?,
            child: signal(SignalKind::child())?,
        };
        successor::unblock_signals();
        Ok(signals)
    }
}

/// Turns signals into requests; `config` is the supervisor's own file, which a successor needs too.
pub(super) async fn heed(
    mut signals: Signals,
    notifier: Notifier,
    handle: Handle,
    config: PathBuf,
    quit: mpsc::Sender<Quit>,
) {
    let mut ending = false;
    loop {
        // Cancel-safe: a signal not taken stays pending in its stream.
        let stop = tokio::select! {
            _ = signals.terminate.recv() => Some("SIGTERM"),
            _ = signals.interrupt.recv() => Some("SIGINT"),
            _ = signals.hang_up.recv() => {
                reload(&notifier, &handle);
                None
            }
            _ = signals.succeed.recv() => {
                match Successor::find(&config) {
                    Ok(successor) => {
                        tracing::info!(program = %successor.program().display(), "SIGUSR2: asking the program on disk whether it can take over");
                        let _ = quit.try_send(Quit::Succeed(successor));
                    }
                    Err(problem) => tracing::error!("SIGUSR2: {problem}; this supervisor runs on"),
                }
                None
            }
            _ = signals.child.recv() => {
                orphans::reap();
                None
            }
        };
        if let Some(signal) = stop
            && !std::mem::replace(&mut ending, true)
        {
            tokio::spawn(end(signal, notifier.clone(), quit.clone()));
        }
    }
}

fn reload(notifier: &Notifier, handle: &Handle) {
    tracing::info!("SIGHUP: reading every file again");
    notifier.reloading();
    let (handle, notifier) = (handle.clone(), notifier.clone());
    tokio::spawn(async move {
        if let Ok(report) = handle.reload(false).await {
            for problem in &report.problems {
                tracing::warn!("{problem}");
            }
            tracing::info!(
                added = report.added.len(),
                changed = report.changed.len(),
                removed = report.removed.len(),
                "reloaded"
            );
        }
        notifier.ready();
    });
}

/// Drains every tenant, unless systemd says that it only wants another supervisor.
async fn end(signal: &str, notifier: Notifier, quit: mpsc::Sender<Quit>) {
    if notifier.is_heard() && job::is_restart().await {
        tracing::info!(
            "{signal}: systemd restarts this unit: every broker is left to the next supervisor"
        );
        notifier.stopping();
        let _ = quit.send(Quit::Leave).await;
        return;
    }
    tracing::info!("{signal}: draining every tenant");
    notifier.stopping();
    let _ = quit.send(Quit::Drain).await;
    loop {
        notifier.extend_timeout(EXTEND_EVERY * 10);
        tokio::time::sleep(EXTEND_EVERY).await;
    }
}

/// Tells systemd of the first judgement, of progress, and that the loop turns.
pub(super) async fn report(notifier: Notifier, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    let turn = notifier
        .watchdog_interval()
        .unwrap_or(Duration::from_secs(86_400));
    let mut watchdog = tokio::time::interval(turn);
    let mut said = String::new();
    let mut ready = false;
    loop {
        // Cancel-safe: a change not seen now is seen by the next `changed`.
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            _ = watchdog.tick() => {
                notifier.watchdog();
                continue;
            }
        }
        let line = summary(&snapshots.borrow_and_update());
        if line != said {
            notifier.status(&line);
            said = line;
        }
        if !std::mem::replace(&mut ready, true) {
            notifier.ready();
        }
    }
}

/// `ready 212/300, waiting 80, refused 8`.
fn summary(snapshot: &Snapshot) -> String {
    let all = snapshot.tenants.len();
    let count = |state| snapshot.tenants.iter().filter(|t| t.state == state).count();
    let mut line = format!("ready {}/{all}", count(State::Ready));
    for state in [
        State::Starting,
        State::Waiting,
        State::Degraded,
        State::Backoff,
        State::Refused,
        State::Stopping,
        State::Stopped,
    ] {
        match count(state) {
            0 => {}
            n => line.push_str(&format!(", {state} {n}")),
        }
    }
    line
}
