//! The daemon as a systemd service: receives signals, and reports readiness, progress and the watchdog.

use super::signals::{ShutdownKind, SignalRequest, Signals};
use crate::fleet::handle::Handle;
use crate::fleet::handover::ExitRequest;
use crate::instance::reaper;
use crate::instance::successor::Successor;
use crate::status::{Snapshot, State};
use crate::systemd::{Notifier, job};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

/// Interval at which systemd is asked for more time while brokers drain.
const EXTEND_EVERY: Duration = Duration::from_secs(1);

/// Turns signals into requests. `config` is the supervisor's own file, which a successor needs too. A stop signal is
/// noted in `ending` before it is acted on.
pub(super) async fn heed(
    mut signals: Signals,
    ending: ShutdownKind,
    notifier: Notifier,
    handle: Handle,
    config: PathBuf,
    quit: mpsc::Sender<ExitRequest>,
) {
    loop {
        match signals.next(&ending).await {
            SignalRequest::End(signal, true) => {
                tokio::spawn(end(signal.as_str(), notifier.clone(), quit.clone()));
            }
            SignalRequest::End(_, false) => {}
            SignalRequest::HangUp => reload(&notifier, &handle),
            SignalRequest::Succeed => {
                let word = match Successor::find(&config) {
                    Ok(successor) => {
                        tracing::info!(program = %successor.program().display(), "SIGUSR2: asking the program on disk whether it can take over");
                        ExitRequest::Succeed(successor)
                    }
                    Err(problem) => ExitRequest::Refuse(problem),
                };
                let _ = quit.try_send(word);
            }
            SignalRequest::Child => {
                reaper::reap();
            }
        }
    }
}

fn reload(notifier: &Notifier, handle: &Handle) {
    tracing::info!("SIGHUP: reading every tenant file again");
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

/// Drains every tenant, or leaves the brokers running when systemd only restarts the supervisor.
async fn end(signal: &str, notifier: Notifier, quit: mpsc::Sender<ExitRequest>) {
    if notifier.is_heard() && job::is_restart().await {
        tracing::info!(
            "{signal}: systemd restarts this unit: every broker is left to the next supervisor"
        );
        notifier.stopping();
        let _ = quit.send(ExitRequest::Leave).await;
        return;
    }
    tracing::info!("{signal}: draining every tenant");
    notifier.stopping();
    let _ = quit.send(ExitRequest::Drain).await;
    loop {
        notifier.extend_timeout(EXTEND_EVERY * 10);
        tokio::time::sleep(EXTEND_EVERY).await;
    }
}

/// Pings systemd's watchdog at its interval after the fleet has answered. A fleet that is stuck does not answer, even
/// if the rest of the process works.
pub(super) async fn answer_watchdog(notifier: Notifier, handle: Handle) {
    let Some(interval) = notifier.watchdog_interval() else {
        return;
    };
    let mut due = tokio::time::interval(interval);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        // After the fleet has ended, the ping continues while the embedded server stops.
        let _ = handle.turned().await;
        notifier.watchdog();
    }
}

/// Tells systemd READY after the first snapshot, and the progress after each change.
pub(super) async fn report(notifier: Notifier, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    let mut said = String::new();
    let mut ready = false;
    while snapshots.changed().await.is_ok() {
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

/// Returns a line such as `ready 212/300, waiting 80, refused 8`.
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::fleet::handle::Request;
    use std::os::unix::net::UnixDatagram;
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn the_watchdog_is_answered_while_the_fleet_turns_and_not_when_it_is_stuck() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        systemd.set_nonblocking(true).unwrap();
        let notifier = Notifier::to(&path, Duration::from_millis(20)).unwrap();
        let (requests, mut fleet) = mpsc::channel(4);
        let (_snapshots, snapshot) = watch::channel(Arc::default());
        let watchdog = tokio::spawn(answer_watchdog(notifier, Handle::new(snapshot, requests)));
        let pings = || {
            let mut buffer = [0; 64];
            std::iter::from_fn(|| systemd.recv(&mut buffer).ok()).count()
        };
        for _ in 0..3 {
            let Some(Request::Turn { reply }) = fleet.recv().await else {
                unreachable!("nothing else is asked")
            };
            assert_eq!(pings(), 0, "nothing is said before the fleet has answered");
            reply.send(()).unwrap();
            while pings() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        // The next request gets no answer: the rest of the process goes on, and no ping is sent.
        let stuck = fleet.recv().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(pings(), 0);
        drop(stuck);
        watchdog.abort();
    }
}
