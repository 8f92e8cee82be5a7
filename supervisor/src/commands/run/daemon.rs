//! One run of the daemon: starts everything, and serves until the fleet has ended or leaves.

use super::abort_on_panic::vital;
use super::surroundings::Surroundings;
use super::{retry_later, runtime_dirs, signal_loop, signals};
use crate::atomic_file;
use crate::budget::parse_admitted;
use crate::config::{ScanMode, Scanner, SupervisorConfig, TenantConfig};
use crate::control::ControlAccess;
use crate::embedded::Embedded;
use crate::fleet::fd_store::FdStoreInputs;
use crate::fleet::handle::Handle;
use crate::fleet::handover::FleetExit;
use crate::fleet::{Fleet, FleetParts};
use crate::handover::fd_names::MOST_STORED;
use crate::handover::inherited::InheritedFds;
use crate::instance::cgroup::CgroupTree;
use crate::instance::discovery::{self, Discovery};
use crate::instance::probe_client::ProbeTimes;
use crate::instance::tenant_uids::TenantUids;
use crate::instance::{InstanceManager, Settings, reaper};
use crate::logs::Hub;
use crate::servers::provision::Provisioner;
use crate::status::Snapshot;
use crate::systemd::{Notifier, job};
use crate::watch::Watch;
use brokkr_tenant::TenantName;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::{mpsc, watch};

/// Queue length of instances' reports to the fleet; when full, reporters wait.
const REPORTS: usize = 4096;
/// Queue length of operators' requests to the fleet; when full, requests wait.
const REQUESTS: usize = 64;
/// Queue length of requests to end the fleet. The fleet heeds the first valid request; requests beyond the queue are
/// dropped.
const QUITS: usize = 4;

/// Parts of the daemon that stay the same in every run.
pub(super) struct Daemon {
    /// The supervisor's own file.
    pub(super) file: PathBuf,
    /// Configuration from the file, or from its last good copy.
    pub(super) config: Arc<SupervisorConfig>,
    /// Current problem of the file.
    pub(super) problem: Option<String>,
    pub(super) hub: Hub,
    /// Limits of open files for brokers.
    pub(super) open_files: (u64, u64),
    /// The brokers' cgroups.
    pub(super) groups: CgroupTree,
    /// The user ids of tenants, where each tenant has its own.
    pub(super) uids: Option<TenantUids>,
    /// The signal that ends the daemon.
    pub(super) ending: signals::ShutdownKind,
    /// The runtime folder, locked for this process.
    pub(super) taken: Arc<Mutex<runtime_dirs::RuntimeDirLock>>,
}

impl Daemon {
    /// Takes over what an earlier supervisor left, and serves. A failure ends no broker.
    pub(super) async fn serve(&self, inherited: InheritedFds) -> Result<FleetExit, String> {
        // Listen for signals first, because a signal during the start must not kill processes already started.
        let heeded = signals::Signals::new()
            .map_err(|error| format!("cannot listen for signals: {error}"))?;
        let notifier = Notifier::from_env().map_err(|error| format!("NOTIFY_SOCKET: {error}"))?;
        nix::sys::prctl::set_child_subreaper(true)
            .map_err(|error| format!("cannot become subreaper: {error}"))?;
        // Brokers of the same user must not read the tenants' passwords in this process's memory.
        nix::sys::prctl::set_dumpable(false)
            .map_err(|error| format!("cannot protect this process's memory: {error}"))?;
        if let Some(problem) = &self.problem {
            tracing::error!("{problem}");
        }
        for warning in &self.config.warnings {
            tracing::warn!("{}", warning.headline());
        }
        let mut finds = self.find(inherited).await?;
        let (snapshots, snapshot) = watch::channel(Arc::new(Snapshot::default()));
        let (request_sender, requests) = mpsc::channel(REQUESTS);
        let handle = Handle::new(snapshot.clone(), request_sender);
        // Brokers that are held must not lose their supervisor because of another problem.
        let holds = !finds.instances.is_empty();
        let admitted = read_admitted(&self.config);
        let (stopped, unsure) = match read_stopped(&self.config) {
            Ok(stopped) => (stopped, None),
            Err(problem) if holds => (BTreeSet::new(), Some(unsure(&self.config, &problem))),
            Err(problem) => {
                return Err(format!(
                    "{problem}: it is unknown which tenants were stopped; write the names that are to stay so, one a line, or remove the file"
                ));
            }
        };
        // Try first all steps that can fail, because a failure after the start of the embedded server would leave it
        // running. With brokers to supervise, the server's start is not waited for, because it may take long.
        let access = ControlAccess {
            fleet: handle.clone(),
            groups: self.groups.clone(),
        };
        let control = retry_later::reach(&self.config, access, self.hub.clone(), holds).await?;
        let left = std::mem::take(&mut finds.embedded);
        let brokers = !finds.instances.is_empty() || !finds.left.is_empty();
        let mut unseen = None;
        let (embedded, unasked) = match self.config.postgres.embedded {
            true => match Embedded::start(&self.config, left, brokers).await {
                Ok(embedded) => (Some(embedded), None),
                Err(problem) if brokers => {
                    unseen = Some(format!(
                        "the embedded PostgreSQL is not kept: {problem}; mend it in supervisor.toml, then restart"
                    ));
                    (None, None)
                }
                Err(problem) => return Err(problem),
            },
            false if finds.embedded_ran => match Embedded::see_off(&self.config, left) {
                Ok(server) => (None, server),
                Err(problem) => {
                    unseen = Some(format!(
                        "the embedded PostgreSQL that ran is left alone, for it cannot be looked at: {problem}; when its tenants have moved, stop it by hand"
                    ));
                    (None, None)
                }
            },
            false => (None, None),
        };
        if let Some(problem) = &unseen {
            tracing::error!("{problem}");
        }
        let runs = embedded.as_ref().or(unasked.as_ref());
        let fleet = async {
            let servers = retry_later::probe(holds)?;
            let (desired_sender, desired) = watch::channel(Arc::default());
            let (reloader, wishes) = mpsc::channel(REQUESTS);
            let mut scanner = self.scanner(embedded.as_ref(), &finds);
            let first = scanner.scan(Instant::now(), ScanMode::default(), &BTreeSet::new());
            for problem in &first.desired.problems {
                tracing::error!("{}", problem.brief);
            }
            desired_sender.send_replace(Arc::new(first.desired));
            let tenants_dir = self.config.tenants_dir.clone();
            let watch_task = Watch::new(
                tenants_dir,
                scanner,
                desired_sender,
                snapshot.clone(),
                wishes,
            );
            tokio::spawn(vital(watch_task.run()));

            let provisioner = retry_later::provisioner(&self.config, snapshot.clone())?;
            let (report_sender, reports) = mpsc::channel(REPORTS);
            let problem = self.problem.as_deref().map(one_line);
            let notices = [
                control.notice(),
                problem.as_deref(),
                unseen.as_deref(),
                unsure.as_deref(),
            ];
            let (remark, surroundings) = watch::channel(None);
            let fleet = Fleet::new(FleetParts {
                manager: InstanceManager::new(
                    self.settings(provisioner.clone()),
                    self.hub.clone(),
                    report_sender,
                ),
                reports,
                desired,
                servers: servers.clone(),
                requests,
                reloader,
                snapshots,
                admitted,
                stopped,
                unsure: unsure.is_some(),
                provisioner,
                finds,
                open_files: crate::sys::open_files(),
                keeping: keeping(&notifier, runs).await,
                notices: notices.into_iter().flatten().map(str::to_owned).collect(),
                embedded: runs.map(Embedded::remark),
                surroundings,
                config: self.config.clone(),
            });
            let (quit, quits) = mpsc::channel(QUITS);
            let watchdog = signal_loop::answer_watchdog(notifier.clone(), handle.clone());
            tokio::spawn(vital(watchdog));
            tokio::spawn(vital(signal_loop::report(notifier.clone(), snapshot)));
            let looked_after = Surroundings {
                config: self.config.clone(),
                file: self.file.clone(),
                taken: self.taken.clone(),
                remark,
                quit: quit.clone(),
            };
            tokio::spawn(vital(looked_after.look_after()));
            let file = self.file.clone();
            let heed = signal_loop::heed(
                heeded,
                self.ending.clone(),
                notifier.clone(),
                handle,
                file,
                quit,
            );
            tokio::spawn(vital(heed));
            let ended = vital(fleet.run(quits)).await;

            // Drop the probers before the embedded server stops, because they would go on connecting to it.
            drop((control, servers));
            Ok(ended)
        };
        let mut ended: Result<FleetExit, String> = fleet.await;
        match (&mut ended, embedded.or(unasked)) {
            (Ok(FleetExit::Left(handover_state, _)), Some(embedded)) => {
                embedded.leave(handover_state)
            }
            (_, Some(embedded)) => embedded.stop().await,
            (_, None) => {}
        }
        reaper::reap();
        match &ended {
            Ok(FleetExit::Left(..)) => tracing::info!("gone; every broker runs on"),
            _ => tracing::info!("stopped"),
        }
        ended
    }

    /// Finds the brokers that an earlier supervisor left.
    async fn find(&self, inherited: InheritedFds) -> Result<Discovery, String> {
        let (folder, program) = (
            runtime_dirs::instances(&self.config),
            self.config.broker.clone(),
        );
        let shown = folder.display().to_string();
        let uids = self.uids.as_ref().map(TenantUids::range);
        let mut finds = tokio::task::spawn_blocking(move || {
            discovery::find(&folder, inherited, &program, uids)
        })
        .await
        .map_err(|panic| panic.to_string())?
        .map_err(|error| format!("{shown}: {error}"))?;
        let provision = self.config.provision.as_deref();
        for found in finds.instances.values_mut().flatten() {
            let under = |config: Arc<TenantConfig>| {
                Arc::new(Arc::unwrap_or_clone(config).under_provision(provision))
            };
            found.config = found.config.take().map(under);
        }
        for remark in &finds.remarks {
            tracing::warn!("{remark}");
        }
        for left in &finds.left {
            tracing::error!("cannot be taken over: {left}");
        }
        Ok(finds)
    }

    /// Creates a scanner that knows the tenants that run already.
    fn scanner(&self, embedded: Option<&Embedded>, finds: &Discovery) -> Scanner {
        let mut scanner = Scanner::configured(&self.config, embedded.and_then(Embedded::url));
        for (name, found) in &finds.instances {
            if let Some(config) = found.last().and_then(|found| found.config.as_ref()) {
                scanner.know(name, config);
            }
        }
        scanner
    }

    fn settings(&self, provisioner: Option<Provisioner>) -> Settings {
        Settings {
            provisioner,
            program: self.config.broker.clone(),
            folder: runtime_dirs::instances(&self.config),
            times: ProbeTimes {
                interval: self.config.health.interval,
                timeout: self.config.health.timeout,
            },
            open_files: self.open_files,
            groups: self.groups.clone(),
            uids: self.uids.clone(),
        }
    }
}

/// Shortens a problem to one line for a notice: the place and the hint, without the source line.
fn one_line(text: &str) -> String {
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    match lines.find_map(|line| line.strip_prefix("hint: ")) {
        Some(hint) => format!("{first} ({hint})"),
        None => first.to_owned(),
    }
}

/// Returns the parts needed to keep systemd's descriptor store; `None` where systemd has no store for this process.
async fn keeping(notifier: &Notifier, embedded: Option<&Embedded>) -> Option<FdStoreInputs> {
    if !notifier.is_heard() {
        return None;
    }
    let ours =
        std::env::var("SYSTEMD_EXEC_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    let most = match job::store_max().await {
        Ok(most) => most,
        // systemd started this process, so a store may exist; systemd logs each descriptor that it refuses.
        Err(_) if ours => MOST_STORED as u32,
        Err(_) => return None,
    };
    if most == 0 {
        tracing::warn!(
            "systemd keeps no descriptors for this unit (FileDescriptorStoreMax=): after a crash, brokers are taken over by their locks"
        );
    }
    let watched = embedded.map(Embedded::watch);
    Some(FdStoreInputs {
        notifier: notifier.clone(),
        most,
        embedded: Box::new(move || watched.as_ref().map(|left| left()).unwrap_or_default()),
    })
}

fn read_admitted(config: &SupervisorConfig) -> Vec<crate::budget::AdmittedTenant> {
    let path = config.state_dir.join("admitted");
    let text = atomic_file::read(&path).unwrap_or_else(|error| {
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

/// Reads the list of stopped tenants. A list that cannot be read does not count as empty, because stopped tenants must
/// stay stopped.
pub(super) fn read_stopped(config: &SupervisorConfig) -> Result<BTreeSet<TenantName>, String> {
    let path = config.state_dir.join("stopped");
    let text = atomic_file::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(text
        .lines()
        .filter_map(|line| TenantName::parse(line.trim()).ok())
        .collect())
}

/// Returns the notice about an unreadable list of stopped tenants, and keeps a copy of it, because the list is written
/// anew.
fn unsure(config: &SupervisorConfig, problem: &str) -> String {
    let path = config.state_dir.join("stopped");
    let _ = std::fs::copy(&path, config.state_dir.join("stopped.unreadable"));
    let notice = format!(
        "{problem}: it is unknown which tenants were stopped; every tenant that did not run is kept stopped until you start it, and the list is written anew"
    );
    tracing::error!("{notice}");
    notice
}
