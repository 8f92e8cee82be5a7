//! Reaps orphaned descendants of the instances. The supervisor is a subreaper: a grandchild whose parent has ended
//! becomes its child, and would stay a zombie otherwise.
//!
//! Processes that the supervisor starts itself are reaped by their own tasks, which need the exit status. They are
//! registered here before they execute anything, until they are reaped.

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

static OURS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// A registered process; dropping this removes the registration.
#[derive(Debug)]
pub(crate) struct OwnedChild(i32);

/// Registers a process that its own task reaps.
pub(crate) fn register(pid: i32) -> OwnedChild {
    OURS.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(pid);
    OwnedChild(pid)
}

impl Drop for OwnedChild {
    fn drop(&mut self) {
        OURS.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.0);
    }
}

/// Reaps every ended child that is not registered and returns their number. Must be called on SIGCHLD.
pub(crate) fn reap() -> usize {
    // The lock is held to the end. A new child is registered before it executes anything, so it cannot end meanwhile.
    let ours = OURS.lock().unwrap_or_else(PoisonError::into_inner);
    let strangers = children().into_iter().filter(|pid| !ours.contains(pid));
    strangers
        .filter(|pid| {
            let status = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG));
            status.is_ok_and(|status| status.pid().is_some())
        })
        .count()
}

/// Returns the children of every thread of this process.
fn children() -> Vec<i32> {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    threads
        .flatten()
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|text| {
            text.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect()
}
