//! Finds the instances that an earlier supervisor left, and everything needed to take them over. Ends no process.
//!
//! A running instance holds its lock file. The rest of its state comes, in this order, from the index, from the names
//! of inherited descriptors, from the lock file, and from the process itself. An instance whose socket cannot be taken
//! back is found too; its tenant must be drained before a new instance can start.

mod socket;

use super::cgroup::limits_of;
use super::descriptors::Descriptors;
use super::fd_recovery::{self, has_ended, pid_of};
use super::leftover_instances::{self, LeftoverInstance};
use super::listeners::is_found;
use super::lock::{self, InstanceFiles, LockHolder, LockLabel, LockState};
use super::notify::NotifySocket;
use super::process::AdoptedProcess;
use super::tenant_uids::uid_of;
use crate::config::{ConfigSummary, SecretConfig, Stamp, TenantConfig, UidRange};
use crate::handover::fd_names::{FdKind, FdName};
use crate::handover::inherited::InheritedFds;
use crate::handover::{HandoverIndex, InstanceRecord, PartialLine, RecordedPhase};
use crate::lifecycle::{AdoptedStage, InstanceId};
use crate::systemd::store::StoredEntries;
use brokkr_tenant::{Listen, TenantName};
use nix::unistd::geteuid;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;

/// The largest number of instances of one tenant.
const MOST_OF_A_TENANT: usize = 2;

/// Everything that an earlier supervisor left.
#[derive(Default)]
pub(crate) struct Discovery {
    /// Instances to take over, by tenant, the oldest first.
    pub(crate) instances: BTreeMap<TenantName, Vec<FoundInstance>>,
    /// Open listening sockets.
    pub(crate) listeners: Vec<FoundListener>,
    /// Instances that run but cannot be taken over; their tenants must not start.
    pub(crate) left: Vec<LeftoverInstance>,
    /// The first free instance number of each tenant that had instances.
    pub(crate) first_free: BTreeMap<TenantName, u64>,
    /// Unplanned exits so far.
    pub(crate) restarts: BTreeMap<TenantName, u64>,
    /// True when the earlier supervisor ran an embedded server.
    pub(crate) embedded_ran: bool,
    /// Descriptors of the embedded server.
    pub(crate) embedded: BTreeMap<FdKind, OwnedFd>,
    /// Contents of systemd's descriptor store.
    pub(crate) stored: StoredEntries,
    /// Names of the inherited descriptors that this supervisor uses.
    pub(crate) claimed: BTreeSet<FdName>,
    /// Messages for the operator.
    pub(crate) remarks: Vec<String>,
}

/// An instance that runs, or that ended while no supervisor ran.
pub(crate) struct FoundInstance {
    pub(crate) id: InstanceId,
    /// The id of its descriptors, if it has an id.
    pub(crate) short: Option<u32>,
    pub(crate) descriptors: Descriptors,
    /// The rest of the state that the take-over needs.
    pub(crate) adoption: AdoptedProcess,
    /// Its configuration, as far as known.
    pub(crate) config: Option<Arc<TenantConfig>>,
    /// True when the instance must be replaced by overlap.
    pub(crate) outdated: bool,
    /// True when its tenant's socket could not be taken back.
    pub(crate) keeps_address: bool,
    /// True when its private socket is gone.
    pub(crate) deaf: bool,
}

/// An open listening socket that an earlier supervisor left.
pub(crate) struct FoundListener {
    pub(crate) tenant: TenantName,
    pub(crate) listen: Listen,
    /// The id of its descriptor, if it has an id.
    pub(crate) short: Option<u32>,
    pub(crate) socket: OwnedFd,
}

/// Searches `folder` and the inherited descriptors for instances. `program` is the program that new instances start
/// from, and `uids` the range of their user ids, if each tenant has its own. Blocks.
///
/// # Errors
/// When the folder cannot be read.
pub(crate) fn find(
    folder: &Path,
    inherited: InheritedFds,
    program: &Path,
    uids: Option<UidRange>,
) -> io::Result<Discovery> {
    let mut search = Search::new(inherited, Stamp::of(program), uids);
    let mut labels = search.read_locks(folder)?;
    for record in search.records() {
        let key = (record.tenant.clone(), InstanceId(record.instance));
        search.by_record(record, labels.remove(&key));
    }
    // The newest first, because clients find only the newest socket of a path that was bound again.
    for ((tenant, id), (files, label)) in labels.into_iter().rev() {
        search.by_label(tenant, id, files, label);
    }
    Ok(search.finish())
}

type Labels = BTreeMap<(TenantName, InstanceId), (InstanceFiles, Box<LockLabel>)>;

struct Search {
    finds: Discovery,
    index: Option<HandoverIndex>,
    descriptors: BTreeMap<FdName, OwnedFd>,
    /// Descriptor ids by the pid that the pidfd of the same id names.
    ids: BTreeMap<i32, u32>,
    program: Option<Stamp>,
    uids: Option<UidRange>,
}

impl Search {
    fn new(inherited: InheritedFds, program: Option<Stamp>, uids: Option<UidRange>) -> Self {
        let InheritedFds {
            index,
            problem,
            mut descriptors,
            stored,
            ..
        } = inherited;
        let mut finds = Discovery {
            stored: StoredEntries {
                names: stored,
                serial: index.as_ref().map_or(0, |index| index.serial),
            },
            embedded_ran: index.as_ref().is_some_and(|index| index.embedded),
            ..Discovery::default()
        };
        if let Some(problem) = problem {
            finds.remarks.push(format!(
                "what the last supervisor left cannot be read ({problem}): its instances are taken over by their locks"
            ));
        }
        for kind in [FdKind::Log, FdKind::Death] {
            let name = FdName::new(crate::handover::fd_names::EMBEDDED, kind);
            if let Some(fd) = descriptors.remove(&name) {
                finds.embedded.insert(kind, fd);
            }
        }
        let ids = descriptors
            .iter()
            .filter(|(name, _)| name.kind == FdKind::Death)
            .filter_map(|(name, fd)| Some((pid_of(fd)?, name.id)))
            .collect();
        Self {
            finds,
            index,
            descriptors,
            ids,
            program,
            uids,
        }
    }

    fn read_locks(&mut self, folder: &Path) -> io::Result<Labels> {
        let mut labels = BTreeMap::new();
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let Some((tenant, id)) = entry.file_name().to_str().and_then(lock::parse_name) else {
                continue;
            };
            let files = InstanceFiles::new(folder, &tenant, id);
            match lock::look(&entry.path()) {
                // The index may still know this instance; its last log lines may be in the inherited pipe.
                Ok(LockState::Stale) => files.remove(),
                Ok(LockState::Held(label)) => {
                    self.number_taken(&tenant, id);
                    labels.insert((tenant, id), (files, label));
                }
                Err(error) => {
                    self.number_taken(&tenant, id);
                    self.finds.left.push(LeftoverInstance::new(
                        tenant,
                        entry.path(),
                        error.to_string(),
                    ));
                }
            }
        }
        Ok(labels)
    }

    fn number_taken(&mut self, tenant: &TenantName, id: InstanceId) {
        let next = self.finds.first_free.entry(tenant.clone()).or_default();
        *next = (*next).max(id.0 + 1);
    }

    fn records(&mut self) -> Vec<InstanceRecord> {
        let Some(index) = &mut self.index else {
            return Vec::new();
        };
        self.finds.restarts = std::mem::take(&mut index.restarts);
        for listener in std::mem::take(&mut index.listeners) {
            let name = FdName::new(listener.id, FdKind::Listener);
            match claim(&mut self.descriptors, &mut self.finds.claimed, name) {
                Some(socket) if fd_recovery::listens_on(&socket, &listener.listen) => {
                    self.finds.listeners.push(FoundListener {
                        tenant: listener.tenant,
                        listen: listener.listen,
                        short: Some(listener.id),
                        socket,
                    });
                }
                _ => {}
            }
        }
        std::mem::take(&mut index.instances)
    }

    /// Takes over an instance that the index knows, also if it has ended: its log pipe may hold unread lines, and its
    /// exit must be reported.
    fn by_record(
        &mut self,
        record: InstanceRecord,
        label: Option<(InstanceFiles, Box<LockLabel>)>,
    ) {
        let id = InstanceId(record.instance);
        self.number_taken(&record.tenant, id);
        let holder = LockHolder {
            pid: record.pid,
            start_time: record.start_time,
            boot_id: lock::boot_id().unwrap_or_default(),
        };
        // The pid may belong to another process by now, an inherited pidfd cannot. But the index may be older than the
        // store, so its id may belong to another instance by now.
        let short = record.id.filter(|short| self.is_of(*short, &holder));
        let left = short.map(|short| FdName::new(short, FdKind::Death));
        let pidfd = match left.and_then(|name| self.claim(name)) {
            Some(pidfd) => pidfd,
            None => match leftover_instances::named(Some(holder.clone())) {
                Ok(Some((_, pidfd))) => pidfd,
                // The process has ended and left no descriptor.
                Ok(None) => return,
                Err(error) => {
                    if let Some((files, _)) = label {
                        let left =
                            LeftoverInstance::new(record.tenant, files.lock(), error.to_string());
                        self.finds.left.push(left);
                    }
                    return;
                }
            },
        };
        let what = label.and_then(|(_, label)| label.what).or(record.what);
        let stage = match record.phase {
            RecordedPhase::Starting => AdoptedStage::Starting,
            RecordedPhase::Serving => AdoptedStage::Serving,
            RecordedPhase::Stopping => AdoptedStage::Stopping,
            RecordedPhase::Unknown => AdoptedStage::Unsure,
        };
        let gone = has_ended(&pidfd);
        let found = Candidate {
            tenant: record.tenant,
            id,
            short,
            holder,
            pidfd,
            files: InstanceFiles::of_stem(record.files),
            what,
            config: record.config,
            stage,
            connections: record.connections,
            outdated: record.outdated,
            partial_line: record.log,
            gone,
        };
        self.take(found);
    }

    fn claim(&mut self, name: FdName) -> Option<OwnedFd> {
        claim(&mut self.descriptors, &mut self.finds.claimed, name)
    }

    /// Returns true when the descriptors of this id belong to that process.
    fn is_of(&self, short: u32, holder: &LockHolder) -> bool {
        match self.descriptors.get(&FdName::new(short, FdKind::Death)) {
            Some(pidfd) => match pid_of(pidfd) {
                Some(pid) => pid == holder.pid,
                None => !holder.lives(),
            },
            None => false,
        }
    }

    /// Takes over an instance that only its lock file names.
    fn by_label(
        &mut self,
        tenant: TenantName,
        id: InstanceId,
        files: InstanceFiles,
        label: Box<LockLabel>,
    ) {
        let LockLabel { holder, what } = *label;
        let (holder, pidfd) = match leftover_instances::named(holder) {
            Ok(Some(named)) => named,
            unnamed => {
                let why = unnamed.err().map_or_else(
                    || leftover_instances::UNNAMED.to_owned(),
                    |error| error.to_string(),
                );
                self.finds
                    .left
                    .push(LeftoverInstance::new(tenant, files.lock(), why));
                return;
            }
        };
        let short = self.ids.get(&holder.pid).copied();
        let left = short.map(|short| FdName::new(short, FdKind::Death));
        let pidfd = left.and_then(|name| self.claim(name)).unwrap_or(pidfd);
        let connections = what.as_ref().map_or(0, |what| what.pool);
        self.take(Candidate {
            tenant,
            id,
            short,
            holder,
            pidfd,
            files,
            what,
            config: None,
            stage: AdoptedStage::Unsure,
            connections,
            outdated: false,
            partial_line: PartialLine::default(),
            gone: false,
        });
    }

    fn take(&mut self, candidate: Candidate) {
        let Candidate {
            tenant,
            id,
            short,
            holder,
            pidfd,
            files,
            what,
            config,
            stage,
            connections,
            mut outdated,
            partial_line,
            gone,
        } = candidate;
        let pid = holder.pid;
        let log = short
            .and_then(|short| self.claim(FdName::new(short, FdKind::Log)))
            .map_or_else(|| fd_recovery::log(pid), Ok);
        let log = match log {
            Ok(log) => Some(Arc::new(log)),
            Err(error) => {
                if !gone {
                    self.remark(
                        &tenant,
                        pid,
                        &format!("its log pipe cannot be taken back ({error}): it is replaced"),
                    );
                    outdated = true;
                }
                None
            }
        };
        let notify = short.and_then(|short| self.claim(FdName::new(short, FdKind::Notify)));
        let uid = uid_of(pid).filter(|_| !gone);
        let other_user = uid.filter(|uid| !self.is_right_user(*uid));
        if let Some(uid) = other_user {
            let text = format!(
                "it runs as user {uid}, which [isolation] uids does not give: it is replaced"
            );
            self.remark(&tenant, pid, &text);
            outdated = true;
        }
        let Some(notify) = notify.or_else(|| bind_notify(&files, uid)) else {
            self.finds.left.push(LeftoverInstance::new(
                tenant,
                files.lock(),
                "no socket to hear it on".into(),
            ));
            return;
        };
        let deaf = !gone && !files.private().exists();
        if deaf {
            self.remark(&tenant, pid, "its private socket has gone: it is replaced");
        }
        // An unreachable instance cannot be asked for its stage. It counts as serving, because it may be serving.
        let stage = match stage {
            AdoptedStage::Unsure if deaf => AdoptedStage::Serving,
            stage => stage,
        };
        let listen = what.as_ref().map(|what| &what.listen);
        if let Some(listen) = listen.filter(|listen| !gone && !is_found(listen)) {
            let text = format!("its socket at {listen} can no longer be reached: it is replaced");
            self.remark(&tenant, pid, &text);
            outdated = true;
        }
        let started_from = what.as_ref().and_then(|what| what.program.clone());
        if let (Some(started_from), Some(on_disk)) = (&started_from, &self.program) {
            outdated |= !started_from.is_same_program(on_disk);
        }
        let keeps_address = !gone && !self.has_listener(&tenant, pid, &pidfd, what.as_ref());
        let config = TenantConfig::found(config.as_ref(), what.as_ref()).map(Arc::new);
        let limits = config.as_ref().map(|c| limits_of(c.broker()));
        let instances = self.finds.instances.entry(tenant.clone()).or_default();
        if instances.len() == MOST_OF_A_TENANT {
            let why = format!("pid {pid}, beside two others");
            self.finds
                .left
                .push(LeftoverInstance::new(tenant, files.lock(), why));
            return;
        }
        instances.push(FoundInstance {
            id,
            short,
            descriptors: Descriptors {
                pid,
                start_time: holder.start_time,
                program: started_from,
                uid,
                pidfd: Arc::new(pidfd),
                log,
                notify: Arc::new(notify),
            },
            adoption: AdoptedProcess {
                files,
                partial_line,
                stage,
                connections,
                limits: limits.unwrap_or_default(),
            },
            config,
            outdated,
            keeps_address,
            deaf,
        });
    }

    /// Returns true when a new instance could run as this user too.
    fn is_right_user(&self, uid: u32) -> bool {
        match self.uids {
            Some(range) => range.contains(uid),
            None => uid == geteuid().as_raw(),
        }
    }

    fn remark(&mut self, tenant: &TenantName, pid: i32, what: &str) {
        self.finds
            .remarks
            .push(format!("tenant {tenant}, pid {pid}: {what}"));
    }

    fn finish(mut self) -> Discovery {
        for instances in self.finds.instances.values_mut() {
            instances.sort_by_key(|found| found.id);
        }
        self.finds
    }
}

struct Candidate {
    tenant: TenantName,
    id: InstanceId,
    short: Option<u32>,
    holder: LockHolder,
    pidfd: OwnedFd,
    files: InstanceFiles,
    what: Option<ConfigSummary>,
    config: Option<SecretConfig>,
    stage: AdoptedStage,
    connections: u32,
    outdated: bool,
    partial_line: PartialLine,
    /// True when the process has ended.
    gone: bool,
}

/// Takes an inherited descriptor and records its name as used.
fn claim(
    left: &mut BTreeMap<FdName, OwnedFd>,
    claimed: &mut BTreeSet<FdName>,
    name: FdName,
) -> Option<OwnedFd> {
    let fd = left.remove(&name)?;
    claimed.insert(name);
    Some(fd)
}

/// Binds the instance's notify socket again at its path, for the user `uid`. Without that folder, returns a socket that
/// receives nothing.
fn bind_notify(files: &InstanceFiles, uid: Option<u32>) -> Option<OwnedFd> {
    let path = files.notify();
    let _ = std::fs::remove_file(&path);
    let owner = uid.filter(|_| geteuid().is_root());
    match NotifySocket::bind(&path, owner) {
        Ok(socket) => Some(socket),
        Err(_) => UnixDatagram::unbound().ok().map(OwnedFd::from),
    }
}

#[cfg(test)]
mod tests;
