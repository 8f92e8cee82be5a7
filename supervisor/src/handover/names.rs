//! Short names of descriptors: `17l` listens, `17p` is a log pipe, `17d` tells of a death.
//!
//! systemd gives all names to the next process in one environment string of at most 128 KiB, and one that is longer
//! keeps the process from starting at all and loses the store. So ids are numbers, the smallest free one each, and no
//! more is stored than fits with room to spare.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Most descriptors that are stored; `FileDescriptorStoreMax=` of the unit is no less.
pub(crate) const MOST_STORED: usize = 16_000;
/// Most bytes of names, a colon after each: an environment string holds 128 KiB, its own name included.
pub(crate) const MOST_BYTES: usize = 120 << 10;

/// What a descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// A listening socket.
    Listener,
    /// The end of a log pipe that is read.
    Log,
    /// A pidfd: readable when its process has ended.
    Death,
    /// The socket an instance reports to. Passed on, never stored: it is bound again by its path.
    Notify,
}

/// A descriptor's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Name {
    /// Which group of descriptors.
    pub(crate) id: u32,
    /// Which of them.
    pub(crate) kind: Kind,
}

impl Name {
    /// The name `id` and `kind` make.
    pub(crate) fn new(id: u32, kind: Kind) -> Self {
        Self { id, kind }
    }

    /// Takes a name apart; `None` when it is none of ours.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let last = text.chars().next_back()?;
        let kind = match last {
            'l' => Kind::Listener,
            'p' => Kind::Log,
            'd' => Kind::Death,
            'n' => Kind::Notify,
            _ => return None,
        };
        let digits = &text[..text.len() - 1];
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let id = digits.parse().ok().filter(|_| plain)?;
        Some(Self { id, kind })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.kind {
            Kind::Listener => 'l',
            Kind::Log => 'p',
            Kind::Death => 'd',
            Kind::Notify => 'n',
        };
        write!(f, "{}{letter}", self.id)
    }
}

/// The id of the embedded server's descriptors.
pub(crate) const EMBEDDED: u32 = 0;

/// Gives out ids, the smallest free one first, so that names stay short however often brokers restart.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    taken: BTreeSet<u32>,
}

impl Ids {
    /// A free id, taken from now on.
    pub(crate) fn take(&mut self) -> u32 {
        // Ids are dense, so the first gap is near where counting and numbering part; a linear look is short enough for
        // what happens once for each start of a broker.
        let first_gap = (EMBEDDED + 1..).zip(&self.taken).find(|(n, id)| n != *id);
        let id = first_gap.map_or(EMBEDDED + 1 + self.taken.len() as u32, |(n, _)| n);
        self.taken.insert(id);
        id
    }

    /// Takes this id; false when somebody has it.
    pub(crate) fn claim(&mut self, id: u32) -> bool {
        id != EMBEDDED && self.taken.insert(id)
    }

    /// Gives an id back.
    pub(crate) fn free(&mut self, id: u32) {
        self.taken.remove(&id);
    }
}

/// How many of these groups of descriptors may be stored, in order: each with the names it needs.
///
/// A group is stored whole or not at all. Those stored before come first, so that nobody loses a place he has.
pub(crate) fn fitting<G: Clone + Ord>(groups: &BTreeMap<G, Vec<Name>>, most: usize) -> BTreeSet<G> {
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
