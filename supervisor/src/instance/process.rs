//! One instance from spawn to reap: the task that owns its process, its reports and its end.

use super::launch::{Launch, Launched};
use super::lock::Files;
use super::notify::{NotifySocket, Said};
use super::private::{Private, ProbeTimes, Wishes};
use super::report::{Reporter, What};
use crate::lifecycle::{Event, InstanceId};
use crate::logs::Hub;
use crate::sys;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// Exit code of `EX_CONFIG`: trying again unchanged will not help.
const EXIT_CONFIGURATION: u8 = 78;
/// How to end an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// SIGTERM to the broker: drain.
    Terminate,
    /// SIGABRT to the broker: leave a core, if it may.
    Abort,
    /// SIGKILL to its whole session.
    Kill,
}

/// The task of one instance, before it runs.
pub(crate) struct Process {
    pub(crate) id: InstanceId,
    pub(crate) reporter: Reporter,
    pub(crate) hub: Hub,
    pub(crate) ends: mpsc::Receiver<End>,
    pub(crate) wishes: watch::Receiver<Wishes>,
    pub(crate) times: ProbeTimes,
}

/// What an instance said about its own exit.
#[derive(Debug, Default)]
struct Testament {
    status: Option<String>,
    exit_status: Option<u8>,
}

impl Process {
    /// Starts the instance, sees it through, and reports its end.
    pub(crate) async fn run(mut self, launch: Launch) {
        let files = launch.files.clone();
        let told = self.wishes.borrow().connections;
        let launched = match tokio::task::spawn_blocking(move || launch.run()).await {
            Ok(Ok(launched)) => launched,
            Ok(Err(reason)) => return self.failed(reason).await,
            Err(panic) => return self.failed(format!("starting it failed: {panic}")).await,
        };
        let Launched {
            process,
            registered,
            log,
            notify,
        } = launched;
        let pid = process.pid;
        if let Err(error) = self.hub.attach(self.reporter.tenant().clone(), pid, log) {
            tracing::error!(tenant = %self.reporter.tenant(), pid, %error, "its log pipe cannot be read");
        }
        self.reporter
            .life(Event::Spawned { id: self.id, pid })
            .await;
        let mut testament = Testament::default();
        let seen = self
            .see_through(pid, process.pidfd, notify, &files, told, &mut testament)
            .await;
        let end = match seen {
            Ok(end) => end,
            Err(error) => {
                // Reported as ended it must be ended, or the next one would be a second one.
                tracing::error!(tenant = %self.reporter.tenant(), pid, %error, "the supervisor lost sight of it: it is killed");
                let killed = tokio::task::spawn_blocking(move || kill_and_reap(pid)).await;
                killed.unwrap_or_else(|panic| panic.to_string())
            }
        };
        drop(registered);
        files.remove();
        let configuration = testament.exit_status == Some(EXIT_CONFIGURATION);
        let reason = match testament.status.filter(|_| testament.exit_status.is_some()) {
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
        self.reporter.send(What::LastWords(self.id, words)).await;
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
        pid: i32,
        pidfd: OwnedFd,
        notify: std::os::unix::net::UnixDatagram,
        files: &Files,
        told_connections: u32,
        testament: &mut Testament,
    ) -> io::Result<String> {
        let pidfd = sys::readable(pidfd)?;
        let notify = NotifySocket::new(notify)?;
        let mut private = None;
        loop {
            // Cancel-safe: readiness of a descriptor is a level, a datagram is taken only when it is returned, and an
            // order stays in its channel.
            tokio::select! {
                biased;
                Some(end) = self.ends.recv() => send(end, pid, pidfd.get_ref()),
                _ = pidfd.readable() => break,
                said = notify.receive(pid) => for said in said? {
                    let ready = said == Said::Ready;
                    self.hear(said, testament).await;
                    if ready && private.is_none() {
                        private = Some(self.probe(files.private(), told_connections));
                    }
                },
            }
        }
        if let Some(private) = private {
            private.abort();
        }
        for said in notify.drain(pid) {
            self.hear(said, testament).await;
        }
        // The zombie still holds the number of its session: what it left behind can be ended without a race.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        let status = waitid(Id::PIDFd(pidfd.get_ref().as_fd()), WaitPidFlag::WEXITED)?;
        if let WaitStatus::Exited(_, code) = status {
            testament
                .exit_status
                .get_or_insert(u8::try_from(code & 0xff).unwrap_or_default());
        }
        Ok(describe(status))
    }

    fn probe(&self, path: PathBuf, told_connections: u32) -> JoinHandle<()> {
        let private = Private {
            id: self.id,
            path,
            times: self.times,
            wishes: self.wishes.clone(),
            told_connections,
            told_server: None,
            reporter: self.reporter.clone(),
        };
        tokio::spawn(private.run())
    }

    async fn hear(&self, said: Said, testament: &mut Testament) {
        let id = self.id;
        match said {
            Said::Ready => {
                self.reporter.life(Event::Ready(id)).await;
            }
            Said::Extend(more) => {
                self.reporter.life(Event::Extend(id, more)).await;
            }
            Said::Connections(held) => {
                self.reporter.life(Event::Connections(id, held)).await;
            }
            Said::ExitStatus(status) => testament.exit_status = Some(status),
            Said::Status(text) => {
                testament.status = Some(text.clone());
                self.reporter.send(What::Status(id, text)).await;
            }
        }
    }
}

/// Errors mean that the process has ended already, which its pidfd tells too.
fn send(end: End, pid: i32, pidfd: &OwnedFd) {
    match end {
        End::Terminate => {
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), Signal::SIGTERM as i32);
        }
        End::Abort => {
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), Signal::SIGABRT as i32);
            // A stopped process takes no signal but this one; what was pending before comes first.
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), Signal::SIGCONT as i32);
        }
        End::Kill => {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), Signal::SIGKILL as i32);
        }
    }
}

/// For a process that can no longer be watched. It is our child and not reaped, so the number is surely its.
fn kill_and_reap(pid: i32) -> String {
    let pid = Pid::from_raw(pid);
    let _ = killpg(pid, Signal::SIGKILL);
    let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
    match nix::sys::wait::waitpid(pid, None) {
        Ok(status) => describe(status),
        Err(error) => format!("killed: {error}"),
    }
}

fn describe(status: WaitStatus) -> String {
    match status {
        WaitStatus::Exited(_, code) => format!("exit code {code}"),
        WaitStatus::Signaled(_, signal, dumped) => {
            format!(
                "killed by {signal}{}",
                if dumped { ", core dumped" } else { "" }
            )
        }
        other => format!("{other:?}"),
    }
}
