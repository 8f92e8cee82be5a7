//! The task of one instance, from spawn or adoption to its end: it owns the process, its reports and its exit status.

use super::cgroup::Cgroup;
use super::descriptors::{DescriptorCell, Descriptors};
use super::events::{EventKind, EventSender};
use super::lock::InstanceFiles;
use super::notify::{NotifyMessage, NotifyRateLimit, NotifySocket};
use super::probe_client::{InstanceSettings, ProbeTask, ProbeTimes};
use super::reaper::{self, OwnedChild};
use super::spawn::{SpawnError, SpawnRequest};
use super::state_query::{self, InstanceState};
use super::termination::{self, ProcessRef, Termination};
use crate::handover::PartialLine;
use crate::lifecycle::{AdoptedStage, Event, InstanceId};
use crate::logs::Hub;
use crate::sys;
use brokkr_tenant::{LimitsConfig, TlsPair};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Exit code of `EX_CONFIGURATION`: a restart with the same configuration would fail again.
const EXIT_CONFIGURATION: u8 = 78;
/// The longest wait for an adopted instance to say whether it drains, before SIGTERM: a second SIGTERM ends it at once.
const ASKED_FIRST: Duration = Duration::from_secs(2);

/// The task of one instance, before it runs.
pub(crate) struct InstanceTask {
    pub(crate) id: InstanceId,
    pub(crate) reporter: EventSender,
    pub(crate) hub: Hub,
    pub(crate) ends: mpsc::Receiver<Termination>,
    pub(crate) wishes: watch::Receiver<InstanceSettings>,
    pub(crate) times: ProbeTimes,
    /// Holds its descriptors for passing them to another supervisor.
    pub(crate) slot: DescriptorCell,
    /// Its cgroup, where instances have cgroups.
    pub(crate) group: Option<Cgroup>,
}

/// A process that an earlier supervisor started; its descriptors are in the slot.
pub(crate) struct AdoptedProcess {
    pub(crate) files: InstanceFiles,
    /// The incomplete last line of its log.
    pub(crate) partial_line: PartialLine,
    /// The last known stage.
    pub(crate) stage: AdoptedStage,
    /// The largest number of connections it may hold, as last told.
    pub(crate) connections: u32,
    /// The limits of its cgroup.
    pub(crate) limits: LimitsConfig,
}

/// A running process.
struct RunningProcess {
    pid: i32,
    pidfd: Arc<OwnedFd>,
    notify: Arc<OwnedFd>,
    process_ref: ProcessRef,
    files: InstanceFiles,
    /// Must be dropped only after the process has been reaped.
    registered: Option<OwnedChild>,
    told_connections: Option<u32>,
    /// The certificate and key that it was started with.
    told_tls: Option<Arc<TlsPair>>,
    /// The stage of an adopted process.
    adopted: Option<AdoptedStage>,
}

/// Last status and exit status that an instance reported itself.
#[derive(Debug, Default)]
struct ExitReport {
    status: Option<String>,
    exit_status: Option<u8>,
}

impl InstanceTask {
    /// Starts the instance, watches it until it ends, and reports its end.
    pub(crate) async fn run(self, mut launch: SpawnRequest) {
        let files = launch.files.clone();
        let told_connections = Some(launch.config.connections);
        if let Err(reason) = launch.provision().await {
            return self.failed(reason).await;
        }
        let told_tls = launch.config.config.http.tls.as_ref();
        let told_tls = told_tls.map(|tls| tls.pair.clone());
        let launched = match tokio::task::spawn_blocking(move || launch.run()).await {
            Ok(Ok(launched)) => launched,
            Ok(Err(SpawnError::Failed(reason))) => return self.failed(reason).await,
            Ok(Err(SpawnError::NoUid(reason))) => {
                let report = EventKind::NoUid(reason.clone());
                self.reporter.send(report).await;
                return self.failed(reason).await;
            }
            Err(panic) => return self.failed(format!("starting it failed: {panic}")).await,
        };
        let (pid, start_time) = (launched.process.pid, launched.start_time);
        let descriptors = Descriptors {
            pid,
            start_time,
            program: launched.program,
            uid: Some(launched.uid),
            pidfd: Arc::new(launched.process.pidfd),
            log: Some(Arc::new(launched.log)),
            notify: Arc::new(launched.notify),
        };
        self.read_log(&descriptors, PartialLine::default());
        let alive = RunningProcess {
            pid,
            pidfd: Arc::clone(&descriptors.pidfd),
            notify: Arc::clone(&descriptors.notify),
            process_ref: ProcessRef::child(pid, start_time),
            files,
            registered: launched.registered,
            told_connections,
            told_tls,
            adopted: None,
        };
        self.slot.fill(descriptors);
        self.reporter
            .life(Event::Spawned { id: self.id, pid })
            .await;
        self.live(alive).await;
    }

    /// Takes over an instance of an earlier supervisor, watches it until it ends, and reports its end.
    pub(crate) async fn adopt(self, adoption: AdoptedProcess) {
        let slot = self.slot.clone();
        let Some(descriptors) = slot.get() else {
            return self.failed("nothing is known of it".into()).await;
        };
        self.read_log(descriptors, adoption.partial_line);
        let pid = descriptors.pid;
        let process_ref = ProcessRef::found(pid, descriptors.start_time);
        self.live(RunningProcess {
            pid,
            pidfd: Arc::clone(&descriptors.pidfd),
            notify: Arc::clone(&descriptors.notify),
            // The process is a child when the earlier supervisor executed this program in its place.
            registered: process_ref.is_child().then(|| reaper::register(pid)),
            process_ref,
            files: adoption.files,
            told_connections: None,
            told_tls: None,
            adopted: Some(adoption.stage),
        })
        .await;
    }

    fn read_log(&self, descriptors: &Descriptors, partial_line: PartialLine) {
        let Some(log) = &descriptors.log else { return };
        let (tenant, pid) = (self.reporter.tenant().clone(), descriptors.pid);
        if let Err(error) = self.hub.attach(tenant, pid, Arc::clone(log), partial_line) {
            tracing::error!(tenant = %self.reporter.tenant(), pid, %error, "its log pipe cannot be read");
        }
    }

    async fn live(mut self, alive: RunningProcess) {
        let pid = alive.pid;
        let mut exit_report = ExitReport::default();
        let end = match self.see_through(&alive, &mut exit_report).await {
            Ok(end) => end,
            Err(error) => {
                // Kills the process before reporting its exit; otherwise the next instance would run beside it.
                tracing::error!(tenant = %self.reporter.tenant(), pid, %error, "the supervisor lost sight of it: it is killed");
                let (process_ref, pidfd) = (alive.process_ref, Arc::clone(&alive.pidfd));
                let killed =
                    tokio::task::spawn_blocking(move || process_ref.kill_and_wait(&pidfd)).await;
                killed.unwrap_or_else(|panic| panic.to_string())
            }
        };
        drop(alive.registered);
        alive.files.remove();
        let end = self.leave_group(end);
        let configuration = exit_report.exit_status == Some(EXIT_CONFIGURATION);
        let reason = match exit_report
            .status
            .filter(|_| exit_report.exit_status.is_some())
        {
            Some(said) => format!("{end}: {said}"),
            None => end,
        };
        self.reporter
            .life(Event::Exited {
                id: self.id,
                reason,
                configuration,
            })
            .await;
        let words = self.hub.last_words(self.reporter.tenant(), pid).await;
        self.reporter
            .send(EventKind::LastWords(self.id, words))
            .await;
    }

    /// Ends the remaining processes of the cgroup and adds an out-of-memory kill to the reason.
    fn leave_group(&self, end: String) -> String {
        let Some(group) = &self.group else { return end };
        group.end();
        let end = match group.was_out_of_memory() {
            true => format!("{end}: out of memory ([limits] memory_max)"),
            false => end,
        };
        group.remove();
        end
    }

    async fn failed(&self, reason: String) {
        self.reporter
            .life(Event::SpawnFailed {
                id: self.id,
                reason,
            })
            .await;
    }

    async fn see_through(
        &mut self,
        alive: &RunningProcess,
        exit_report: &mut ExitReport,
    ) -> io::Result<String> {
        let pid = alive.pid;
        let pidfd = sys::readable_shared(Arc::clone(&alive.pidfd))?;
        let notify = NotifySocket::new(Arc::clone(&alive.notify))?;
        let mut private: Option<JoinHandle<()>> = None;
        let (answer_to, mut answers) = mpsc::channel(state_query::ANSWERS);
        let asking = alive.adopted.map(|_| {
            let ask = state_query::ask(alive.files.private(), answer_to);
            tokio::spawn(ask)
        });
        // SIGTERM waits until the instance is known not to drain already.
        let mut sure = asking.is_none();
        let mut to_terminate = false;
        let ask_until = Instant::now() + ASKED_FIRST;
        let mut heard = NotifyRateLimit::default();
        loop {
            // Cancel-safe: readiness of a descriptor is a level, a datagram is taken only when it is returned, orders
            // and answers stay in their channels, and the timers are made anew.
            tokio::select! {
                biased;
                Some(end) = self.ends.recv() => match end {
                    Termination::Terminate if !sure => to_terminate = true,
                    end => self.end(end, alive),
                },
                _ = pidfd.readable() => break,
                said = notify.receive(pid), if heard.may_hear() => {
                    heard.one();
                    for said in said? {
                    let ready = said == NotifyMessage::Ready;
                    self.hear(said, exit_report).await;
                    if ready && private.is_none() {
                        private = Some(self.probe(alive, alive.told_connections));
                    }
                    }
                },
                Some(answer) = answers.recv() => {
                    self.learn(answer).await;
                    let told = answer.map(|answer| answer.connections);
                    // An instance without an answer is probed too, because it may be hung; an instance that starts
                    // would say so.
                    let probed = match answer {
                        Some(answer) => answer.stage != AdoptedStage::Starting,
                        None => alive.adopted != Some(AdoptedStage::Starting),
                    };
                    if probed && private.is_none() {
                        private = Some(self.probe(alive, told));
                    }
                    if let Some(answer) = answer {
                        sure = true;
                        to_terminate &= answer.stage != AdoptedStage::Stopping;
                    }
                },
                () = tokio::time::sleep_until(heard.next()), if !heard.may_hear() => {}
                () = tokio::time::sleep_until(ask_until), if !sure => sure = true,
            }
            if sure && std::mem::take(&mut to_terminate) {
                self.end(Termination::Terminate, alive);
            }
        }
        for task in [private, asking].into_iter().flatten() {
            task.abort();
            // The task must not use the files that are removed next.
            let _ = task.await;
        }
        for said in notify.drain(pid) {
            self.hear(said, exit_report).await;
        }
        let status = alive.process_ref.wait(&alive.pidfd).await?;
        if let Some(code) = status.code() {
            exit_report.exit_status.get_or_insert(code);
        }
        Ok(status.to_string())
    }

    /// Ends the instance. SIGKILL goes to the whole cgroup too, which no descendant can leave.
    fn end(&self, end: Termination, alive: &RunningProcess) {
        if end == Termination::Kill
            && let Some(group) = &self.group
        {
            group.end();
        }
        termination::send(end, alive.pid, &alive.pidfd);
    }

    fn probe(&self, alive: &RunningProcess, told_connections: Option<u32>) -> JoinHandle<()> {
        let private = ProbeTask {
            id: self.id,
            path: alive.files.private(),
            times: self.times,
            wishes: self.wishes.clone(),
            told_connections,
            told_server: None,
            told_password: None,
            told_tls: alive.told_tls.clone(),
            reporter: self.reporter.clone(),
        };
        tokio::spawn(private.run())
    }

    async fn learn(&self, answer: Option<InstanceState>) {
        let id = self.id;
        let Some(state) = answer else {
            self.reporter.life(Event::Unanswered(id)).await;
            return;
        };
        let learned = Event::Learned {
            id,
            stage: state.stage,
            connections: state.connections,
        };
        self.reporter.life(learned).await;
        let held = Event::Connections(id, state.held);
        self.reporter.life(held).await;
    }

    async fn hear(&self, said: NotifyMessage, exit_report: &mut ExitReport) {
        let id = self.id;
        match said {
            NotifyMessage::Ready => {
                self.reporter.life(Event::Ready(id)).await;
            }
            NotifyMessage::Extend(more) => {
                self.reporter.life(Event::Extend(id, more)).await;
            }
            NotifyMessage::Connections(held) => {
                self.reporter.life(Event::Connections(id, held)).await;
            }
            NotifyMessage::ExitStatus(status) => exit_report.exit_status = Some(status),
            NotifyMessage::Status(text) => {
                exit_report.status = Some(text.clone());
                self.reporter.send(EventKind::Status(id, text)).await;
            }
        }
    }
}
