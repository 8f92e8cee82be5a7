//! Instances an earlier supervisor left running: found by their locks, ended before anything is bound.

use super::lock::{self, Files, Found, Holder};
use crate::lifecycle::InstanceId;
use crate::sys;
use brokkr_tenant::TenantName;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What SIGKILL gets to take effect.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

struct Survivor {
    tenant: TenantName,
    id: InstanceId,
    pid: i32,
    pidfd: OwnedFd,
}

/// An instance of an earlier supervisor that is still there.
#[derive(Debug, Clone)]
pub(crate) struct Left {
    pub(crate) tenant: TenantName,
    lock: PathBuf,
    what: String,
}

impl Left {
    /// One whose lock file is at `lock`; `what` says more.
    pub(crate) fn new(tenant: TenantName, lock: PathBuf, what: String) -> Self {
        Self { tenant, lock, what }
    }

    /// Whether it has gone by now.
    pub(crate) fn gone(&self) -> bool {
        !matches!(lock::look(&self.lock), Ok(Found::Held(_)))
    }
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { tenant, lock, what } = self;
        write!(
            f,
            "tenant {tenant}: an instance of an earlier supervisor is still there ({what}, {}): end it, then `brokkr-supervisor reload`",
            lock.display()
        )
    }
}

/// What the folder held.
#[derive(Debug, Default)]
pub(crate) struct Swept {
    /// How many were running and have been ended.
    pub(crate) ended: usize,
    /// What could not be ended: nothing may be started in its place.
    pub(crate) left: Vec<Left>,
    /// The first instance number that is free, for tenants that had any.
    pub(crate) first_free: BTreeMap<TenantName, u64>,
}

/// Ends every instance found in `folder`: SIGTERM to all at once, SIGKILL to what is left after `grace`. Blocks.
///
/// # Errors
/// When the folder cannot be read.
pub(crate) fn end_all(folder: &Path, grace: Duration) -> io::Result<Swept> {
    let mut swept = Swept::default();
    let mut survivors = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let Some((tenant, id)) = entry.file_name().to_str().and_then(lock::parse_name) else {
            continue;
        };
        match find(&entry.path()) {
            Ok(None) => Files::new(folder, &tenant, id).remove(),
            Ok(Some((pid, pidfd))) => survivors.push(Survivor {
                tenant,
                id,
                pid,
                pidfd,
            }),
            Err(error) => {
                let next = swept.first_free.entry(tenant.clone()).or_default();
                *next = (*next).max(id.0 + 1);
                swept.left.push(Left {
                    tenant,
                    lock: entry.path(),
                    what: error.to_string(),
                });
            }
        }
    }
    for (signal, patience) in [(Signal::SIGTERM, grace), (Signal::SIGKILL, KILL_PATIENCE)] {
        for survivor in &survivors {
            let _ = sys::pidfd_send_signal(survivor.pidfd.as_fd(), signal as i32);
        }
        let before = survivors.len();
        wait_for(&mut survivors, patience, folder);
        swept.ended += before - survivors.len();
    }
    for survivor in survivors {
        let next = swept.first_free.entry(survivor.tenant.clone()).or_default();
        *next = (*next).max(survivor.id.0 + 1);
        swept.left.push(Left {
            lock: Files::new(folder, &survivor.tenant, survivor.id).lock(),
            what: format!("pid {}", survivor.pid),
            tenant: survivor.tenant,
        });
    }
    Ok(swept)
}

/// Kills the instance these files belong to, if it still runs.
pub(crate) fn end_one(files: &Files) {
    if let Ok(Some((_, pidfd))) = find(&files.lock()) {
        let _ = sys::pidfd_send_signal(pidfd.as_fd(), Signal::SIGKILL as i32);
    }
    files.remove();
}

/// The process that holds a lock, as a pidfd that is surely its.
fn find(path: &Path) -> io::Result<Option<(i32, OwnedFd)>> {
    let Found::Held(label) = lock::look(path)? else {
        return Ok(None);
    };
    let unknown = || io::Error::other("held by a process the file does not name");
    let holder: Holder = label.holder.ok_or_else(unknown)?;
    let pidfd = sys::pidfd_open(holder.pid)?;
    // Looked at after the pidfd was opened: now the pid cannot come to mean another process.
    if holder.lives() {
        Ok(Some((holder.pid, pidfd)))
    } else {
        Err(unknown())
    }
}

fn wait_for(survivors: &mut Vec<Survivor>, patience: Duration, folder: &Path) {
    let deadline = Instant::now() + patience;
    while !survivors.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let ended: Vec<bool> = {
            let mut polled: Vec<_> = survivors
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
        survivors.retain(|survivor| {
            let gone = ended.next().unwrap_or(false);
            if gone {
                Files::new(folder, &survivor.tenant, survivor.id).remove();
            }
            !gone
        });
    }
}
