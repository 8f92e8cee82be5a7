//! Reaps what the instances leave behind. The supervisor is the subreaper of the host's tenants: a grandchild whose
//! parent has gone becomes its child, and would stay a zombie if nobody waited for it.
//!
//! Processes the supervisor started itself are reaped by their own tasks, which want their exit status; they are
//! registered here from before they execute anything until they are reaped.

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

static OURS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// A process the supervisor started, until this is dropped.
#[derive(Debug)]
pub(crate) struct Registered(i32);

/// Registers a process as one that somebody waits for.
pub(crate) fn register(pid: i32) -> Registered {
    OURS.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(pid);
    Registered(pid)
}

impl Drop for Registered {
    fn drop(&mut self) {
        OURS.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.0);
    }
}

/// Reaps every child that has ended and that nobody waits for; says how many. To be called on SIGCHLD.
pub(crate) fn reap() -> usize {
    // Held to the end: a child made meanwhile waits to be registered before it executes anything, so it cannot end here.
    let ours = OURS.lock().unwrap_or_else(PoisonError::into_inner);
    let strangers = children().into_iter().filter(|pid| !ours.contains(pid));
    strangers
        .filter(|pid| {
            let status = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG));
            status.is_ok_and(|status| status.pid().is_some())
        })
        .count()
}

/// Children of every thread of this process.
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
