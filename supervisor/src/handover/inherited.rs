//! What this process was given when it started: by systemd out of its descriptor store, or by the supervisor that
//! executed it.

use super::names::Name;
use super::{Estate, Index, IndexError, LONGEST};
use crate::{memfd, sys};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd, RawFd};

/// Environment variable of a supervisor that executes its successor: the number of the index's descriptor.
pub(crate) const VARIABLE: &str = "BROKKR_HANDOVER_FD";
/// Names of the index in systemd's store. Two, because the new one is stored before the old one is removed.
pub(crate) const INDEX_NAMES: [&str; 2] = ["ia", "ib"];
/// Name of the lock of the runtime folder, which is never let go while one supervisor becomes the next.
pub(crate) const LOCK: &str = "lock";
/// Where `sd_listen_fds` begins.
const FIRST: RawFd = 3;

/// Who gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Giver {
    /// Nobody: there is nothing.
    #[default]
    Nobody,
    /// systemd, out of its store: what is no longer needed is to be removed there.
    Systemd,
    /// An earlier supervisor in this very process: its brokers are our children.
    Ourselves,
}

/// Descriptors and what they are. Everything in it is closed when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    /// Who gave it.
    pub(crate) giver: Giver,
    /// The index, where there is one that can be read.
    pub(crate) index: Option<Index>,
    /// Why there is none, if somebody should know.
    pub(crate) problem: Option<String>,
    /// What has a name of ours.
    pub(crate) descriptors: BTreeMap<Name, OwnedFd>,
    /// The lock of the runtime folder.
    pub(crate) lock: Option<OwnedFd>,
    /// Every name systemd has in its store.
    pub(crate) stored: Vec<String>,
}

impl Inherited {
    /// Takes it from the environment. To be called once, first thing in `main`, while nobody else can have opened, or
    /// guessed, any of these descriptors.
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

    /// What was about to be handed to another program, taken up again because that could not be executed.
    pub(crate) fn again(estate: Estate) -> Self {
        let copies = estate.descriptors.iter();
        Self {
            giver: Giver::Ourselves,
            stored: estate.index.stored.clone(),
            // One that cannot be copied is taken back from its broker.
            descriptors: copies
                .filter_map(|(name, fd)| Some((*name, fd.try_clone().ok()?)))
                .collect(),
            index: Some(estate.index),
            problem: None,
            lock: None,
        }
    }

    fn ours(number: &str) -> Self {
        let mut inherited = Self {
            giver: Giver::Ourselves,
            ..Self::default()
        };
        match passed(number).and_then(|fd| read(&fd)) {
            Ok(index) => {
                for (name, number) in &index.descriptors {
                    let Ok(fd) = sys::inherit(*number) else {
                        continue;
                    };
                    match Name::parse(name) {
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
            giver: Giver::Systemd,
            ..Self::default()
        };
        let mut problems = Vec::new();
        for (number, name) in (FIRST..FIRST.saturating_add(count)).zip(names.split(':')) {
            let Ok(fd) = sys::inherit(number) else {
                continue;
            };
            inherited.stored.push(name.to_owned());
            if let Some(name) = Name::parse(name) {
                inherited.descriptors.insert(name, fd);
            } else if INDEX_NAMES.contains(&name) {
                match read(&fd) {
                    // Two of them: the old one was about to be removed.
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

/// The index in this file.
///
/// # Errors
/// Why it cannot be read; nothing of its text.
pub(crate) fn read(fd: &OwnedFd) -> Result<Index, String> {
    let json = memfd::read(fd.as_fd(), LONGEST).map_err(|error| error.to_string())?;
    Index::decode(&json).map_err(|error: IndexError| error.to_string())
}
