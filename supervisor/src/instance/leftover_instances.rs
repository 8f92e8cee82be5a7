//! Ends the instances that an earlier supervisor left running, or names them when they cannot be ended.

use super::cgroup::CgroupTree;
use super::lock::{self, InstanceFiles, LockHolder, LockState};
use super::termination::{self, ProcessRef, Termination};
use crate::lifecycle::InstanceId;
use crate::sys;
use brokkr_tenant::{LimitsConfig, Listen, TenantName};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The longest wait for a process to end after SIGKILL.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// A running instance of an earlier supervisor.
struct Survivor {
    tenant: TenantName,
    files: InstanceFiles,
    holder: LockHolder,
    pidfd: OwnedFd,
    listen: Option<Listen>,
}

/// An instance of an earlier supervisor that still runs.
#[derive(Debug, Clone)]
pub(crate) struct LeftoverInstance {
    pub(crate) tenant: TenantName,
    lock: PathBuf,
    what: String,
}

impl LeftoverInstance {
    /// Describes the instance of this lock file; `what` is a detail for the operator.
    pub(crate) fn new(tenant: TenantName, lock: PathBuf, what: String) -> Self {
        Self { tenant, lock, what }
    }

    /// Returns true when the instance is known to have ended.
    pub(crate) fn gone(&self) -> bool {
        match lock::look(&self.lock) {
            Ok(LockState::Held(_)) => false,
            // Any other error leaves open whether the instance runs, so its tenant must not start another.
            Err(error) => error.kind() == io::ErrorKind::NotFound,
            Ok(LockState::Stale) => true,
        }
    }
}

impl std::fmt::Display for LeftoverInstance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { tenant, lock, what } = self;
        write!(
            f,
            "tenant {tenant}: an instance of an earlier supervisor is still there ({what}, {}): end it, then `brokkr-supervisor reload`",
            lock.display()
        )
    }
}

/// Result of ending the instances in a folder.
#[derive(Debug, Default)]
pub(crate) struct SweepResult {
    /// Number of instances that ran and have been ended.
    pub(crate) ended: usize,
    /// Instances that could not be ended.
    pub(crate) left: Vec<LeftoverInstance>,
}

/// Ends every instance in `folder`: SIGTERM to all at once, SIGKILL after `grace`. Blocks.
///
/// # Errors
/// When the folder cannot be read.
pub(crate) fn end_all(
    folder: &Path,
    grace: Duration,
    groups: &CgroupTree,
) -> io::Result<SweepResult> {
    let mut swept = SweepResult::default();
    let mut leftovers = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let Some((tenant, id)) = entry.file_name().to_str().and_then(lock::parse_name) else {
            continue;
        };
        let lock = entry.path();
        match find(folder, &tenant, id) {
            Ok(None) => InstanceFiles::new(folder, &tenant, id).remove(),
            Ok(Some(leftover_instance)) => {
                // Ending the instance's cgroup ends its descendants too. An older version may share its cgroup with
                // another supervisor, so the instance must be moved into a cgroup of its own first.
                let pid = leftover_instance.holder.pid;
                let _ = groups.put_back(&tenant, id, pid, &LimitsConfig::default());
                leftovers.push(leftover_instance);
            }
            Err(error) => swept
                .left
                .push(LeftoverInstance::new(tenant, lock, error.to_string())),
        }
    }
    for (how, patience) in [
        (Termination::Terminate, grace),
        (Termination::Kill, KILL_PATIENCE),
    ] {
        for leftover_instance in &leftovers {
            termination::send(how, leftover_instance.holder.pid, &leftover_instance.pidfd);
        }
        let before = leftovers.len();
        wait_for(&mut leftovers, patience);
        swept.ended += before - leftovers.len();
    }
    swept
        .left
        .extend(leftovers.into_iter().map(|leftover_instance| {
            let what = format!("pid {}", leftover_instance.holder.pid);
            LeftoverInstance::new(
                leftover_instance.tenant,
                leftover_instance.files.lock(),
                what,
            )
        }));
    Ok(swept)
}

/// Kills the instance of these files, if it still runs.
pub(crate) fn end_one(files: &InstanceFiles) {
    if let Ok(Some((_, pidfd, _))) = holder_of(&files.lock()) {
        let _ = sys::pidfd_send_signal(pidfd.as_fd(), Signal::SIGKILL as i32);
    }
    files.remove();
}

fn find(folder: &Path, tenant: &TenantName, id: InstanceId) -> io::Result<Option<Survivor>> {
    let files = InstanceFiles::new(folder, tenant, id);
    let found = holder_of(&files.lock())?;
    Ok(found.map(|(holder, pidfd, listen)| Survivor {
        tenant: tenant.clone(),
        files,
        holder,
        pidfd,
        listen,
    }))
}

/// Returns the process that holds a lock, its pidfd, and the address it listens on.
fn holder_of(path: &Path) -> io::Result<Option<(LockHolder, OwnedFd, Option<Listen>)>> {
    let LockState::Held(label) = lock::look(path)? else {
        return Ok(None);
    };
    match named(label.holder)? {
        Some((holder, pidfd)) => Ok(Some((holder, pidfd, label.what.map(|what| what.listen)))),
        None => Err(io::Error::other(UNNAMED)),
    }
}

/// The message for a held lock whose file names no running process.
pub(super) const UNNAMED: &str = "held by a process the file does not name, and `fuser` does";

/// Returns the process that a lock file names, with its pidfd. `None` when it has ended, or the file names no process.
///
/// # Errors
/// When it cannot be determined whether the process runs.
pub(super) fn named(holder: Option<LockHolder>) -> io::Result<Option<(LockHolder, OwnedFd)>> {
    let Some(holder) = holder else {
        return Ok(None);
    };
    let pidfd = match sys::pidfd_open(holder.pid) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(None),
        opened => opened.map_err(|error| cannot_tell(holder.pid, &error))?,
    };
    // Checked after the pidfd was opened, because the pid cannot pass to another process from then on.
    match holder.is_there() {
        Ok(there) => Ok(there.then_some((holder, pidfd))),
        Err(error) => Err(cannot_tell(holder.pid, &error)),
    }
}

/// Returns the error for a process that may still run but cannot be examined.
fn cannot_tell(pid: i32, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("it cannot be told whether by pid {pid}: {error}"),
    )
}

fn wait_for(leftovers: &mut Vec<Survivor>, patience: Duration) {
    let deadline = Instant::now() + patience;
    while !leftovers.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let ended: Vec<bool> = {
            let mut polled: Vec<_> = leftovers
                .iter()
                .map(|s| PollFd::new(s.pidfd.as_fd(), PollFlags::POLLIN))
                .collect();
            match poll(&mut polled, timeout) {
                Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => return,
                Ok(0) if left.is_zero() => return,
                Ok(_) => polled.iter().map(|p| p.any().unwrap_or(false)).collect(),
            }
        };
        let mut ended = ended.into_iter();
        leftovers.retain(|leftover_instance| {
            let gone = ended.next().unwrap_or(false);
            if gone {
                leftover_instance.clear_away();
            }
            !gone
        });
    }
}

impl Survivor {
    /// Removes what the instance left: its session, its files, and its socket's name.
    fn clear_away(&self) {
        ProcessRef::found(self.holder.pid, self.holder.start_time).end_session();
        self.files.remove();
        if let Some(Listen::Unix(path)) = &self.listen {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn that_a_process_cannot_be_asked_for_is_not_taken_for_its_absence() {
        let us = LockHolder::of(std::process::id() as i32).unwrap();
        assert!(named(Some(us.clone())).unwrap().is_some());
        let later = LockHolder {
            start_time: us.start_time + 1,
            ..us.clone()
        };
        assert!(named(Some(later)).unwrap().is_none());
        assert!(named(None).unwrap().is_none());
        // The kernel refuses pid -1 with EINVAL, which says nothing about any process.
        let error = named(Some(LockHolder { pid: -1, ..us })).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("cannot be told") && text.contains("Invalid argument"),
            "{text}"
        );
    }
}
