//! The descriptors of one instance, shared between the task that uses them and whoever passes them on.

use crate::config::Stamp;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

/// What another supervisor needs to take an instance over.
#[derive(Debug)]
pub(crate) struct Descriptors {
    /// Its process.
    pub(crate) pid: i32,
    /// Field 22 of its `/proc/PID/stat`.
    pub(crate) start_time: u64,
    /// The program it was started from, where that is known.
    pub(crate) program: Option<Stamp>,
    /// Names the process, and is readable when it has ended.
    pub(crate) pidfd: Arc<OwnedFd>,
    /// The end of its log pipe that is read; `None` where it could not be taken back.
    pub(crate) log: Option<Arc<OwnedFd>>,
    /// The socket it reports to.
    pub(crate) notify: Arc<OwnedFd>,
}

/// Empty until the process exists.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slot(Arc<OnceLock<Descriptors>>);

impl Slot {
    /// Fills it, once.
    pub(crate) fn fill(&self, descriptors: Descriptors) {
        // One task fills one slot; a second time would mean nothing new.
        let _ = self.0.set(descriptors);
    }

    /// What is in it.
    pub(crate) fn get(&self) -> Option<&Descriptors> {
        self.0.get()
    }
}
