//! Takes the descriptors this process was given at its start: by systemd from its descriptor store, or by the
//! supervisor that executed this process.

use super::fd_names::FdName;
use super::{HandoverIndex, HandoverState, IndexError, LONGEST};
use crate::{memfd, sys};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd, RawFd};

/// Environment variable with the number of the index's descriptor, set by a supervisor that executes its successor.
pub(crate) const VARIABLE: &str = "BROKKR_HANDOVER_FD";
/// Names of the index in systemd's store; two, because a new index is stored before the old one is removed.
pub(crate) const INDEX_NAMES: [&str; 2] = ["ia", "ib"];
/// Name of the runtime folder's lock, which stays locked while one supervisor executes the next.
pub(crate) const LOCK: &str = "lock";
/// The first descriptor that `sd_listen_fds` passes.
const FIRST: RawFd = 3;

/// The giver of the descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum HandoverSource {
    /// No descriptors were given.
    #[default]
    Nothing,
    /// systemd, from its store: descriptors no longer needed must be removed there.
    Systemd,
    /// An earlier supervisor in this very process: its brokers are children of this process.
    Ourselves,
}

/// The inherited descriptors and their index. Dropping closes them.
#[derive(Debug, Default)]
pub(crate) struct InheritedFds {
    pub(crate) handover_source: HandoverSource,
    /// The index, if there is a readable one.
    pub(crate) index: Option<HandoverIndex>,
    /// Reason why there is no index, for the operator.
    pub(crate) problem: Option<String>,
    /// Descriptors with a valid [`FdName`].
    pub(crate) descriptors: BTreeMap<FdName, OwnedFd>,
    pub(crate) lock: Option<OwnedFd>,
    /// Every name in systemd's store.
    pub(crate) stored: Vec<String>,
}

impl InheritedFds {
    /// Takes the descriptors that the environment names. Must be called once, first in `main`, before other code can
    /// have opened descriptors of these numbers.
    pub(crate) fn take() -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        if let Some(number) = variable(VARIABLE) {
            return Self::ours(&number);
        }
        let for_us =
            variable("LISTEN_PID").is_some_and(|pid| pid == std::process::id().to_string());
        match (for_us, variable("LISTEN_FDS").and_then(|n| n.parse().ok())) {
            (true, Some(count)) if count > 0 => {
                Self::systemds(count, &variable("LISTEN_FDNAMES").unwrap_or_default())
            }
            _ => Self::default(),
        }
    }

    /// Takes up an estate again whose successor could not be executed.
    pub(crate) fn again(handover_state: HandoverState) -> Self {
        let copies = handover_state.descriptors.iter();
        Self {
            handover_source: HandoverSource::Ourselves,
            stored: handover_state.index.stored.clone(),
            // A descriptor that cannot be copied is taken back from its broker.
            descriptors: copies
                .filter_map(|(name, fd)| Some((*name, fd.try_clone().ok()?)))
                .collect(),
            index: Some(handover_state.index),
            problem: None,
            lock: None,
        }
    }

    fn ours(number: &str) -> Self {
        let mut inherited = Self {
            handover_source: HandoverSource::Ourselves,
            ..Self::default()
        };
        match passed(number).and_then(|fd| read(&fd)) {
            Ok(index) => {
                for (name, number) in &index.descriptors {
                    let Ok(fd) = sys::inherit(*number) else {
                        continue;
                    };
                    match FdName::parse(name) {
                        Some(name) => {
                            inherited.descriptors.insert(name, fd);
                        }
                        None if name == LOCK => inherited.lock = Some(fd),
                        None => {}
                    }
                }
                inherited.stored.clone_from(&index.stored);
                inherited.index = Some(index);
            }
            Err(problem) => inherited.problem = Some(problem),
        }
        inherited
    }

    fn systemds(count: RawFd, names: &str) -> Self {
        let mut inherited = Self {
            handover_source: HandoverSource::Systemd,
            ..Self::default()
        };
        let mut problems = Vec::new();
        for (number, name) in (FIRST..FIRST.saturating_add(count)).zip(names.split(':')) {
            let Ok(fd) = sys::inherit(number) else {
                continue;
            };
            inherited.stored.push(name.to_owned());
            if let Some(name) = FdName::parse(name) {
                inherited.descriptors.insert(name, fd);
            } else if INDEX_NAMES.contains(&name) {
                match read(&fd) {
                    // Of two indexes the older was about to be removed.
                    Ok(index) => {
                        if inherited
                            .index
                            .as_ref()
                            .is_none_or(|other| other.serial < index.serial)
                        {
                            inherited.index = Some(index);
                        }
                    }
                    Err(problem) => problems.push(problem),
                }
            }
        }
        if inherited.index.is_none() && !inherited.descriptors.is_empty() {
            let none = || "there is none".to_owned();
            inherited.problem = Some(problems.pop().unwrap_or_else(none));
        }
        inherited
    }
}

fn passed(number: &str) -> Result<OwnedFd, String> {
    let number: RawFd = number
        .parse()
        .map_err(|_| format!("{VARIABLE} is no number"))?;
    sys::inherit(number).map_err(|error| format!("descriptor {number}: {error}"))
}

/// Reads the index from a memfd. The error repeats nothing of the text, which holds secrets.
pub(crate) fn read(fd: &OwnedFd) -> Result<HandoverIndex, String> {
    let json = memfd::read(fd.as_fd(), LONGEST).map_err(|error| error.to_string())?;
    HandoverIndex::decode(&json).map_err(|error: IndexError| error.to_string())
}
