//! The faults and their order: dealt from a shuffled deck, so that every kind comes before any comes twice.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// SIGKILL to a broker.
    BrokerKilled,
    /// SIGSTOP to a broker: it hangs until the supervisor kills it.
    BrokerHangs,
    /// `restart TENANT`.
    Restart,
    /// `restart --all`.
    RestartAll,
    /// A new broker program is installed.
    NewProgram,
    /// A broken broker program is installed, and then a good program.
    BrokenProgram,
    /// A tenant's file changes.
    FileChanged,
    /// A tenant's file is cut in half, and later restored.
    FileHalfWritten,
    /// A tenant is added, used, and removed.
    Guest,
    /// An extra tenant exits at once, over and over.
    CrashLoop,
    /// PostgreSQL is stopped as an operator does, and started.
    ServerStopped,
    /// PostgreSQL is killed, recovers and goes on.
    ServerCrashed,
    /// PostgreSQL is frozen (SIGSTOP), and goes on.
    ServerFrozen,
    /// Every session of brokers and supervisor is terminated, several times.
    SessionsEnded,
    /// PostgreSQL refuses writes for a while.
    ReadOnly,
    /// Another program takes every free connection of PostgreSQL.
    SlotsTaken,
    /// The network to PostgreSQL loses every packet, and then forgets all connections.
    NetworkDark,
    /// SIGSTOP to the supervisor, then SIGCONT.
    SupervisorHangs,
    /// SIGKILL to the supervisor, then another supervisor is started.
    SupervisorKilled,
    /// SIGKILL to the supervisor in the middle of `restart --all`, then another supervisor is started.
    RolloutCutShort,
    /// SIGUSR2 to the supervisor: it executes the program on disk.
    SupervisorRenewed,
}

/// Every kind of fault.
const DECK: &[Fault] = &[
    Fault::BrokerKilled,
    Fault::BrokerHangs,
    Fault::Restart,
    Fault::RestartAll,
    Fault::NewProgram,
    Fault::BrokenProgram,
    Fault::FileChanged,
    Fault::FileHalfWritten,
    Fault::Guest,
    Fault::CrashLoop,
    Fault::ServerStopped,
    Fault::ServerCrashed,
    Fault::ServerFrozen,
    Fault::SessionsEnded,
    Fault::ReadOnly,
    Fault::SlotsTaken,
    Fault::NetworkDark,
    Fault::SupervisorHangs,
    Fault::SupervisorKilled,
    Fault::RolloutCutShort,
    Fault::SupervisorRenewed,
];

/// Faults of one group are never in force together, because each undoes only its own effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Faults of one broker.
    Broker,
    /// Faults that replace brokers.
    Rollout,
    /// Faults of tenant files.
    Files,
    /// Faults of the extra tenant.
    Beside,
    /// Faults of PostgreSQL and of the network to it.
    Server,
    /// Faults of the supervisor.
    Supervisor,
}

impl Fault {
    /// Returns the group of faults with which it may not coincide.
    pub fn group(self) -> Group {
        match self {
            Self::BrokerKilled | Self::BrokerHangs => Group::Broker,
            Self::Restart | Self::RestartAll | Self::NewProgram | Self::BrokenProgram => {
                Group::Rollout
            }
            Self::FileChanged | Self::FileHalfWritten | Self::Guest => Group::Files,
            Self::CrashLoop => Group::Beside,
            Self::ServerStopped
            | Self::ServerCrashed
            | Self::ServerFrozen
            | Self::SessionsEnded
            | Self::ReadOnly
            | Self::SlotsTaken
            | Self::NetworkDark => Group::Server,
            Self::SupervisorHangs
            | Self::SupervisorKilled
            | Self::RolloutCutShort
            | Self::SupervisorRenewed => Group::Supervisor,
        }
    }
}

/// A fault of a round with all its random choices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deal {
    /// The kind of fault.
    pub fault: Fault,
    /// The index of the affected tenant, where the fault affects a tenant.
    pub tenant: usize,
    /// Delay from the beginning of the round.
    pub after: Duration,
    /// Duration of the fault, where the test ends it.
    pub lasts: Duration,
    /// A random number for all further choices.
    pub dice: u64,
}

impl fmt::Display for Deal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} of {} after {:?} for {:?}",
            self.fault, self.tenant, self.after, self.lasts
        )
    }
}

/// Faults that are in force together; after them the host must recover.
pub type Round = Vec<Deal>;

/// An endless sequence of rounds.
#[derive(Debug)]
pub struct Plan {
    dice: fastrand::Rng,
    tenants: usize,
    longest: Duration,
    deck: Vec<Fault>,
}

impl Plan {
    /// Makes a plan from a seed for this number of tenants. No fault that the test ends lasts longer than `longest`.
    pub fn new(seed: u64, tenants: usize, longest: Duration) -> Self {
        Self {
            dice: fastrand::Rng::with_seed(seed),
            tenants,
            longest,
            deck: Vec::new(),
        }
    }

    /// Returns rounds until every kind of fault has come once.
    pub fn once(mut self) -> Vec<Round> {
        let mut rounds = vec![self.deal()];
        while !self.deck.is_empty() {
            rounds.push(self.deal());
        }
        rounds
    }

    fn deal(&mut self) -> Round {
        if self.deck.is_empty() {
            self.deck = DECK.to_vec();
            self.dice.shuffle(&mut self.deck);
        }
        let most = self.dice.usize(1..=3);
        let mut groups = BTreeSet::new();
        let mut round = Vec::new();
        let mut at = 0;
        while round.len() < most && at < self.deck.len() {
            if groups.insert(self.deck[at].group()) {
                let fault = self.deck.remove(at);
                round.push(self.decide(fault));
            } else {
                at += 1;
            }
        }
        round
    }

    fn decide(&mut self, fault: Fault) -> Deal {
        let least = Duration::from_millis(300);
        let span = self.longest.saturating_sub(least);
        Deal {
            fault,
            tenant: self.dice.usize(..self.tenants),
            after: Duration::from_millis(self.dice.u64(..500)),
            lasts: least + span.mul_f64(self.dice.f64()),
            dice: self.dice.u64(..),
        }
    }
}

impl Iterator for Plan {
    type Item = Round;

    fn next(&mut self) -> Option<Round> {
        Some(self.deal())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(3);

    #[test]
    fn the_same_seed_gives_the_same_plan_and_another_another() {
        let plan = |seed| Plan::new(seed, 8, LONGEST).take(50).collect::<Vec<_>>();
        assert_eq!(plan(1), plan(1));
        assert_ne!(plan(1), plan(2));
    }

    #[test]
    fn every_kind_comes_once_before_any_comes_twice_and_no_two_of_a_group_together() {
        for seed in 0..100 {
            let rounds = Plan::new(seed, 8, LONGEST).once();
            let mut seen: Vec<Fault> = Vec::new();
            for round in &rounds {
                assert!(!round.is_empty());
                let groups: BTreeSet<Group> = round.iter().map(|d| d.fault.group()).collect();
                assert_eq!(groups.len(), round.len(), "{round:?}");
                seen.extend(round.iter().map(|d| d.fault));
            }
            seen.sort_unstable();
            let mut deck = DECK.to_vec();
            deck.sort_unstable();
            assert_eq!(seen, deck, "seed {seed}");
        }
    }
}
