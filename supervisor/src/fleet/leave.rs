//! Goes, and leaves every broker as it is: for the program that takes this one's place, or for the next supervisor that
//! systemd starts.

use super::Fleet;
use crate::handover::names::{Kind, Name};
use crate::handover::{self, Carry, Estate, Index, Phase, Record};
use crate::instance::report::{Report, What};
use crate::instance::successor::Successor;
use crate::lifecycle::{self, Event, Instance};
use brokkr_tenant::TenantName;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// A process that is being started gets so long to exist; then it is left to be found by its lock.
const BEING_STARTED: Duration = Duration::from_secs(2);
/// For the reader of logs to say where it stopped.
const RELEASE: Duration = Duration::from_secs(2);

/// How the fleet is told to end.
#[derive(Debug)]
pub(crate) enum Quit {
    /// Drain every tenant.
    Drain,
    /// Leave them to the next supervisor, which systemd starts.
    Leave,
    /// Leave them to this program, if it understands what is left.
    Succeed(Successor),
    /// There is no such program.
    Refuse(String),
}

/// How the fleet has ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Nothing runs any more.
    Drained,
    /// Everything runs on.
    Left(Box<Estate>, Option<Successor>),
}

/// On the way out.
#[derive(Debug)]
pub(super) struct Leaving {
    successor: Option<Successor>,
    until: Instant,
}

/// A successor that is being asked.
#[derive(Debug, Default)]
pub(super) struct Asking(Option<JoinHandle<Result<Successor, String>>>);

impl Asking {
    /// Its answer; never, while nobody is asked. Cancel-safe: what is not taken is asked for again.
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
    /// Whoever leaves does not turn back: the signal that says so is passed on to the program that comes after us.
    pub(super) fn quit(&mut self, quit: Quit) {
        if self.stopping || self.leaving.is_some() {
            return;
        }
        match quit {
            Quit::Refuse(problem) => self.succeed(Err(problem)),
            Quit::Drain => self.begin_stop(),
            Quit::Leave => self.begin_leave(None),
            Quit::Succeed(successor) => {
                if self.asking.0.is_none() {
                    let state = self.estate(&BTreeMap::new()).index.encode();
                    let asked = tokio::task::spawn_blocking(move || successor.understands(&state));
                    self.asking.0 = Some(asked);
                }
            }
        }
    }

    /// The program that is to take our place has been asked.
    pub(super) fn succeed(&mut self, answer: Result<Successor, String>) {
        match answer {
            Ok(successor) if !self.stopping && self.leaving.is_none() => {
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
        self.leaving = Some(Leaving {
            successor,
            until: Instant::now() + BEING_STARTED,
        });
    }

    /// On the way out only what exists is still learnt; everything else is a fact for whoever comes after us.
    pub(super) fn take_last_report(&mut self, report: Report) {
        if matches!(
            report.what,
            What::Life(Event::Spawned { .. } | Event::SpawnFailed { .. })
        ) {
            self.take_report(report);
        }
    }

    /// When to go at the latest; `None` while nobody goes.
    pub(super) fn leave_at(&self) -> Option<Instant> {
        self.leaving.as_ref().map(|leaving| leaving.until)
    }

    /// Whether every process that was being started is there now.
    pub(super) fn can_leave(&self) -> bool {
        let there = |name: &TenantName, instance: &Instance| {
            let passed = self.edge.passed(name, instance.id);
            passed.is_none_or(|passed| passed.descriptors.is_some())
        };
        self.entries
            .iter()
            .all(|(name, entry)| entry.life.instances().all(|i| there(name, i)))
    }

    /// Lets go of everything.
    pub(super) async fn leave(mut self) -> Ended {
        self.edge.cease_answering().await;
        let hub = self.edge.hub().clone();
        let carries = tokio::time::timeout(RELEASE, hub.release()).await;
        let mut estate = self.estate(&carries.unwrap_or_default());
        self.keep_last(&mut estate).await;
        let successor = self.leaving.take().and_then(|leaving| leaving.successor);
        self.edge.leave();
        self.kept_admitted.finish().await;
        self.kept_stopped.finish().await;
        Ended::Left(Box::new(estate), successor)
    }

    /// All that another supervisor needs. `carries`: in what line each log was left, by pid.
    pub(super) fn estate(&self, carries: &BTreeMap<i32, Carry>) -> Estate {
        let mut index = Index {
            version: handover::VERSION,
            serial: 0,
            supervisor: env!("CARGO_PKG_VERSION").to_owned(),
            state_dir: Some(self.config.state_dir.clone()),
            listeners: Vec::new(),
            instances: Vec::new(),
            restarts: BTreeMap::new(),
            embedded: false,
            open_files: Some(self.edge.open_files()),
            stored: Vec::new(),
            descriptors: BTreeMap::new(),
        };
        let mut descriptors = BTreeMap::new();
        for (tenant, listener) in self.edge.listeners() {
            let name = Name::new(listener.short, Kind::Listener);
            descriptors.insert(name, listener.socket.clone());
            index.listeners.push(handover::Listener {
                id: listener.short,
                tenant: tenant.clone(),
                listen: listener.listen.clone(),
            });
        }
        for (tenant, entry) in &self.entries {
            let restarts = entry.life.restarts();
            if restarts > 0 {
                index.restarts.insert(tenant.clone(), restarts);
            }
            for instance in entry.life.instances() {
                let Some(passed) = self.edge.passed(tenant, instance.id) else {
                    continue;
                };
                let Some(ours) = passed.descriptors else {
                    continue;
                };
                descriptors.insert(Name::new(passed.short, Kind::Death), ours.pidfd.clone());
                descriptors.insert(Name::new(passed.short, Kind::Notify), ours.notify.clone());
                if let Some(log) = &ours.log {
                    descriptors.insert(Name::new(passed.short, Kind::Log), log.clone());
                }
                let config = entry.revisions.get(&instance.revision);
                index.instances.push(Record {
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
        Estate { index, descriptors }
    }
}

fn phase(instance: &Instance) -> Phase {
    match instance.phase {
        _ if instance.unsure => Phase::Unknown,
        lifecycle::Phase::Starting { .. } => Phase::Starting,
        lifecycle::Phase::Ready | lifecycle::Phase::Degraded(_) => Phase::Serving,
        lifecycle::Phase::Stopping { .. } => Phase::Stopping,
    }
}
