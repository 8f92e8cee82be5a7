//! Ends the fleet and leaves every broker running: for a new program executed in this process, or for the next
//! supervisor that systemd starts.

use super::Fleet;
use crate::handover::fd_names::{FdKind, FdName};
use crate::handover::{
    self, HandoverIndex, HandoverState, InstanceRecord, PartialLine, RecordedPhase,
};
use crate::instance::events::{EventKind, InstanceEvent};
use crate::instance::successor::Successor;
use crate::lifecycle::{self, Event, Instance};
use brokkr_tenant::TenantName;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Longest wait for a process that is being started. If it appears later, the next supervisor finds it by its lock.
const BEING_STARTED: Duration = Duration::from_secs(2);
/// Longest wait for the log reader to report where it stopped.
const RELEASE: Duration = Duration::from_secs(2);

/// A request that the fleet end.
#[derive(Debug)]
pub(crate) enum ExitRequest {
    /// Drain every tenant.
    Drain,
    /// Leave the brokers to the next supervisor, which systemd starts.
    Leave,
    /// Leave the brokers to this program, if it understands the state.
    Succeed(Successor),
    /// No usable program was found, for this reason.
    Refuse(String),
}

/// Result of the fleet's end.
#[derive(Debug)]
pub(crate) enum FleetExit {
    /// Every broker has ended.
    Drained,
    /// The brokers run on.
    Left(Box<HandoverState>, Option<Successor>),
}

/// State of a fleet that is leaving.
#[derive(Debug)]
pub(super) struct ExitProgress {
    successor: Option<Successor>,
    until: Instant,
}

/// The pending check of a successor's understanding of the state.
#[derive(Debug, Default)]
pub(super) struct SuccessorCheck(Option<JoinHandle<Result<Successor, String>>>);

impl SuccessorCheck {
    /// Returns the successor's answer; never returns while no check is pending. Cancel-safe.
    pub(super) async fn answer(&mut self) -> Result<Successor, String> {
        let Some(asked) = &mut self.0 else {
            return std::future::pending().await;
        };
        let answer = asked.await;
        self.0 = None;
        answer.unwrap_or_else(|panic| Err(panic.to_string()))
    }
}

impl Fleet {
    /// Begins to end the fleet. Ignored if the fleet is already ending.
    pub(super) fn quit(&mut self, quit: ExitRequest) {
        if self.core.is_stopping() || self.leaving.is_some() {
            return;
        }
        match quit {
            ExitRequest::Refuse(problem) => self.succeed(Err(problem)),
            ExitRequest::Drain => self.begin_stop(),
            ExitRequest::Leave => self.begin_leave(None),
            ExitRequest::Succeed(successor) => {
                if self.asking.0.is_none() {
                    let state = self.handover_state(&BTreeMap::new()).index.encode();
                    let asked = tokio::task::spawn_blocking(move || successor.understands(&state));
                    self.asking.0 = Some(asked);
                }
            }
        }
    }

    /// Takes the successor's answer: leaves on success, else reports the problem and runs on.
    pub(super) fn succeed(&mut self, answer: Result<Successor, String>) {
        match answer {
            Ok(successor) if !self.core.is_stopping() && self.leaving.is_none() => {
                tracing::info!(program = %successor.program().display(), "it understands what is handed over, and takes this process over");
                self.begin_leave(Some(successor));
            }
            Ok(_) => {}
            Err(problem) => {
                tracing::error!("SIGUSR2: {problem}; this supervisor runs on");
                self.refused_successor = Some(format!("SIGUSR2 was refused: {problem}"));
                self.stale = true;
            }
        }
    }

    fn begin_leave(&mut self, successor: Option<Successor>) {
        self.orders.refuse_all();
        self.leaving = Some(ExitProgress {
            successor,
            until: Instant::now() + BEING_STARTED,
        });
    }

    /// Takes only reports about processes being started; the next supervisor finds out everything else itself.
    pub(super) fn take_last_report(&mut self, report: InstanceEvent) {
        if matches!(
            report.what,
            EventKind::Life(Event::Spawned { .. } | Event::SpawnFailed { .. })
        ) {
            self.take_report(report);
        }
    }

    /// Returns the latest time to leave; `None` while the fleet is not leaving.
    pub(super) fn leave_at(&self) -> Option<Instant> {
        self.leaving.as_ref().map(|leaving| leaving.until)
    }

    /// Returns true when every process that was being started exists.
    pub(super) fn can_leave(&self) -> bool {
        let there = |name: &TenantName, instance: &Instance| {
            let passed = self.manager.passed(name, instance.id);
            passed.is_none_or(|passed| passed.descriptors.is_some())
        };
        let mut entries = self.core.entries().iter();
        entries.all(|(name, entry)| entry.life.instances().all(|i| there(name, i)))
    }

    /// Ends all parts of the fleet and returns the state for the next supervisor.
    pub(super) async fn leave(mut self) -> FleetExit {
        self.manager.cease_answering().await;
        let hub = self.manager.hub().clone();
        let carries = tokio::time::timeout(RELEASE, hub.release()).await;
        let mut handover_state = self.handover_state(&carries.unwrap_or_default());
        self.keep_last(&mut handover_state).await;
        let successor = self.leaving.take().and_then(|leaving| leaving.successor);
        self.manager.leave();
        self.kept_admitted.finish().await;
        self.kept_stopped.finish().await;
        FleetExit::Left(Box::new(handover_state), successor)
    }

    /// Returns the state that another supervisor needs. `carries` holds the position in each log, by pid.
    pub(super) fn handover_state(&self, carries: &BTreeMap<i32, PartialLine>) -> HandoverState {
        let mut index = HandoverIndex {
            version: handover::VERSION,
            serial: 0,
            supervisor: env!("CARGO_PKG_VERSION").to_owned(),
            state_dir: Some(self.config.state_dir.clone()),
            listeners: Vec::new(),
            instances: Vec::new(),
            restarts: BTreeMap::new(),
            embedded: false,
            open_files: Some(self.manager.open_files()),
            stored: Vec::new(),
            descriptors: BTreeMap::new(),
        };
        let mut descriptors = BTreeMap::new();
        for (tenant, listener) in self.manager.listeners() {
            let name = FdName::new(listener.short, FdKind::Listener);
            descriptors.insert(name, listener.socket.clone());
            index.listeners.push(handover::ListenerRecord {
                id: listener.short,
                tenant: tenant.clone(),
                listen: listener.listen.clone(),
            });
        }
        for (tenant, entry) in self.core.entries() {
            let restarts = entry.life.restarts();
            if restarts > 0 {
                index.restarts.insert(tenant.clone(), restarts);
            }
            for instance in entry.life.instances() {
                let Some(passed) = self.manager.passed(tenant, instance.id) else {
                    continue;
                };
                let Some(ours) = passed.descriptors else {
                    continue;
                };
                descriptors.insert(FdName::new(passed.short, FdKind::Death), ours.pidfd.clone());
                descriptors.insert(
                    FdName::new(passed.short, FdKind::Notify),
                    ours.notify.clone(),
                );
                if let Some(log) = &ours.log {
                    descriptors.insert(FdName::new(passed.short, FdKind::Log), log.clone());
                }
                let config = entry.revisions.get(&instance.revision);
                index.instances.push(InstanceRecord {
                    id: Some(passed.short),
                    tenant: tenant.clone(),
                    instance: instance.id.0,
                    pid: ours.pid,
                    start_time: ours.start_time,
                    files: passed.files.stem().to_owned(),
                    what: config.map(|config| config.described(ours.program.clone())),
                    config: config.and_then(|config| config.clear()),
                    phase: phase(instance),
                    connections: instance.connections,
                    outdated: entry.life.is_superseded(instance),
                    log: carries.get(&ours.pid).cloned().unwrap_or_default(),
                });
            }
        }
        HandoverState { index, descriptors }
    }
}

fn phase(instance: &Instance) -> RecordedPhase {
    match instance.phase {
        _ if instance.is_unsure() => RecordedPhase::Unknown,
        lifecycle::Phase::Starting { .. } => RecordedPhase::Starting,
        lifecycle::Phase::Ready | lifecycle::Phase::Degraded(_) => RecordedPhase::Serving,
        lifecycle::Phase::Stopping { .. } => RecordedPhase::Stopping,
    }
}
