//! Short names of descriptors: `17l` is a listener, `17p` a log pipe, `17d` a pidfd.
//!
//! systemd passes all names to the next process in one environment string of at most 128 KiB; a longer string prevents
//! the start and loses the store. So ids are the smallest free numbers, and room is left in the string.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Most descriptors that are stored; the unit's `FileDescriptorStoreMax=` must be at least this.
pub(crate) const MOST_STORED: usize = 16_000;
/// Most bytes of names, each with a colon; an environment string holds 128 KiB, including its variable's name.
pub(crate) const MOST_BYTES: usize = 120 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum FdKind {
    Listener,
    /// The reading end of a log pipe.
    Log,
    /// A pidfd, readable once its process has ended.
    Death,
    /// The socket an instance reports to. Passed on but never stored, because it can be bound again by its path.
    Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FdName {
    /// Number of a listener, or of an instance and all its descriptors.
    pub(crate) id: u32,
    pub(crate) kind: FdKind,
}

impl FdName {
    pub(crate) fn new(id: u32, kind: FdKind) -> Self {
        Self { id, kind }
    }

    /// Parses a name; `None` for a foreign name.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let last = text.chars().next_back()?;
        let kind = match last {
            'l' => FdKind::Listener,
            'p' => FdKind::Log,
            'd' => FdKind::Death,
            'n' => FdKind::Notify,
            _ => return None,
        };
        let digits = &text[..text.len() - 1];
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let id = digits.parse().ok().filter(|_| plain)?;
        Some(Self { id, kind })
    }
}

impl fmt::Display for FdName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.kind {
            FdKind::Listener => 'l',
            FdKind::Log => 'p',
            FdKind::Death => 'd',
            FdKind::Notify => 'n',
        };
        write!(f, "{}{letter}", self.id)
    }
}

/// The id of the embedded server's descriptors.
pub(crate) const EMBEDDED: u32 = 0;

/// Gives out ids, the smallest free id first, so that names stay short however often brokers restart.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    taken: BTreeSet<u32>,
}

impl Ids {
    /// Takes a free id.
    pub(crate) fn take(&mut self) -> u32 {
        // A linear search is fast enough, because a broker's start takes an id only once.
        let first_gap = (EMBEDDED + 1..).zip(&self.taken).find(|(n, id)| n != *id);
        let id = first_gap.map_or(EMBEDDED + 1 + self.taken.len() as u32, |(n, _)| n);
        self.taken.insert(id);
        id
    }

    /// Takes this id; returns false when the id is taken already.
    pub(crate) fn claim(&mut self, id: u32) -> bool {
        id != EMBEDDED && self.taken.insert(id)
    }

    pub(crate) fn free(&mut self, id: u32) {
        self.taken.remove(&id);
    }
}

/// Returns the groups of descriptors that may be stored, tried in key order.
///
/// A group is stored whole or not at all. Callers sort stored groups first, so that these keep their places.
pub(crate) fn fitting<G: Clone + Ord>(
    groups: &BTreeMap<G, Vec<FdName>>,
    most: usize,
) -> BTreeSet<G> {
    let mut fitting = BTreeSet::new();
    let (mut count, mut bytes) = (0, 0);
    for (group, names) in groups {
        let longer: usize = names.iter().map(|name| name.to_string().len() + 1).sum();
        if count + names.len() <= most && bytes + longer <= MOST_BYTES {
            count += names.len();
            bytes += longer;
            fitting.insert(group.clone());
        }
    }
    fitting
}
