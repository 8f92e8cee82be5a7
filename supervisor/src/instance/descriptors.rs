//! The descriptors of one instance, shared between its task and the code that passes them to another supervisor.

use crate::config::Stamp;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

/// The descriptors and the identity that another supervisor needs to take an instance over.
#[derive(Debug)]
pub(crate) struct Descriptors {
    pub(crate) pid: i32,
    /// Field 22 of its `/proc/PID/stat`.
    pub(crate) start_time: u64,
    /// The program it was started from, if known.
    pub(crate) program: Option<Stamp>,
    /// Its user; `None` when the kernel did not tell, because it has ended.
    pub(crate) uid: Option<u32>,
    /// Names the process; readable once it has ended.
    pub(crate) pidfd: Arc<OwnedFd>,
    /// The read end of its log pipe; `None` when it could not be taken back.
    pub(crate) log: Option<Arc<OwnedFd>>,
    /// The socket it reports to.
    pub(crate) notify: Arc<OwnedFd>,
}

/// Descriptors of an instance; empty until the process exists.
#[derive(Debug, Clone, Default)]
pub(crate) struct DescriptorCell(Arc<OnceLock<Descriptors>>);

impl DescriptorCell {
    /// Fills the slot.
    pub(crate) fn fill(&self, descriptors: Descriptors) {
        // Only one task fills a slot, once; an error cannot happen.
        let _ = self.0.set(descriptors);
    }

    pub(crate) fn get(&self) -> Option<&Descriptors> {
        self.0.get()
    }
}
