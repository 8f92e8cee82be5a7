//! Which faults, in which order: dealt from a shuffled deck, so that every kind comes before any comes twice.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

/// One kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// SIGKILL to a broker.
    BrokerKilled,
    /// SIGSTOP to a broker: it hangs, and the supervisor finds out.
    BrokerHangs,
    /// `restart TENANT`.
    Restart,
    /// `restart --all`.
    RestartAll,
    /// A new broker program on disk.
    NewProgram,
    /// A broken one, and then a good one.
    BrokenProgram,
    /// A tenant's file says something else.
    FileChanged,
    /// A tenant's file is half of what it was, and then whole.
    FileHalfWritten,
    /// A tenant is added, used, and removed.
    Guest,
    /// A tenant beside the others exits at once, over and over.
    CrashLoop,
    /// PostgreSQL is stopped as an operator does, and started.
    ServerStopped,
    /// PostgreSQL is ended at once, recovers, and goes on.
    ServerCrashed,
    /// PostgreSQL stands still, and goes on.
    ServerFrozen,
    /// PostgreSQL ends every session of ours, several times.
    SessionsEnded,
    /// PostgreSQL takes no writes for a while.
    ReadOnly,
    /// Somebody else takes every connection there is.
    SlotsTaken,
    /// The network between the programs and PostgreSQL loses every packet, and then knows none of their connections.
    NetworkDark,
    /// SIGSTOP to the supervisor, and SIGCONT.
    SupervisorHangs,
    /// SIGKILL to the supervisor, and another is started.
    SupervisorKilled,
    /// SIGKILL to the supervisor in the middle of `restart --all`, and another is started.
    RolloutCutShort,
    /// SIGUSR2 to the supervisor: it executes itself anew.
    SupervisorRenewed,
}

/// Every fault that is dealt.
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

/// Faults of one group are not in force at the same time: each undoes only its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// One broker.
    Broker,
    /// What replaces brokers.
    Rollout,
    /// Tenant files.
    Files,
    /// The tenant beside the others.
    Beside,
    /// PostgreSQL, and the way to it.
    Server,
    /// The supervisor.
    Supervisor,
}

impl Fault {
    /// What it may not coincide with.
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

/// One fault of a round, with everything about it that chance decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deal {
    /// The kind.
    pub fault: Fault,
    /// Which tenant it falls on, where it falls on one.
    pub tenant: usize,
    /// How long after the round's beginning.
    pub after: Duration,
    /// How long it lasts, where its end is ours.
    pub lasts: Duration,
    /// For what else has to be decided.
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

/// Faults that are in force together; when they are over, the host must become whole.
pub type Round = Vec<Deal>;

/// Rounds without end.
#[derive(Debug)]
pub struct Plan {
    dice: fastrand::Rng,
    tenants: usize,
    longest: Duration,
    deck: Vec<Fault>,
}

impl Plan {
    /// From a seed, for so many tenants; no fault that is ours to end lasts longer than `longest`.
    pub fn new(seed: u64, tenants: usize, longest: Duration) -> Self {
        Self {
            dice: fastrand::Rng::with_seed(seed),
            tenants,
            longest,
            deck: Vec::new(),
        }
    }

    /// Rounds until every kind of fault has come once.
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
