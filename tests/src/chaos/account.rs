//! The result of a run: answers, excused failures and violations, with a diary of the faults.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A kind of violation, which must never happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A connection was refused.
    Refused,
    /// A request outside a killed process did not get the answer that it should have.
    Failed,
    /// An answer belongs to another tenant.
    WrongTenant,
    /// An acknowledged write is missing or is there twice.
    Lost,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "refused connection",
            Self::Failed => "failed request",
            Self::WrongTenant => "wrong tenant",
            Self::Lost => "lost write",
        })
    }
}

/// The number of violations of each kind that are kept as text; more are only counted.
const MOST_SHOWN: usize = 20;

/// A timeline of faults and violations, printed as it grows for the reader of a failed test.
#[derive(Debug)]
pub struct Diary {
    began: Instant,
    violations: Mutex<BTreeMap<Kind, Vec<String>>>,
}

impl Default for Diary {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            violations: Mutex::default(),
        }
    }
}

impl Diary {
    /// Adds a line with its time.
    #[allow(
        clippy::print_stdout,
        reason = "what a test says is shown when it fails"
    )]
    pub fn note(&self, text: impl fmt::Display) {
        println!("{:9.3} s  {text}", self.began.elapsed().as_secs_f64());
    }

    /// Adds a violation.
    pub fn violation(&self, kind: Kind, text: impl fmt::Display) {
        let at = self.began.elapsed().as_secs_f64();
        let text = format!("{kind}: {text}");
        let mut all = self
            .violations
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        let of_kind = all.entry(kind).or_default();
        if of_kind.len() < MOST_SHOWN {
            self.note(format!("!! {text}"));
        }
        of_kind.push(format!("{at:9.3} s  {text}"));
    }

    /// Returns the number of violations of a kind.
    pub fn count(&self, kind: Kind) -> usize {
        self.violations
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
            .get(&kind)
            .map_or(0, Vec::len)
    }

    /// Returns the first violations of every kind.
    pub fn violations(&self) -> Vec<String> {
        self.violations
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
            .values()
            .flat_map(|lines| lines.iter().take(MOST_SHOWN).cloned())
            .collect()
    }
}

/// Counts of the clients' results other than violations.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Number of answers by status.
    pub answers: BTreeMap<u16, u64>,
    /// Number of acknowledged writes.
    pub acknowledged: u64,
    /// Number of writes whose answer was lost or was 503: they may have taken effect or not.
    pub unknown: u64,
    /// Number of requests that ended because the process that held them was killed.
    pub killed: u64,
    /// Number of 503 answers by a broker whose server was away.
    pub unavailable: u64,
    /// Number of 503 answers by the supervisor in place of a broker that could not serve.
    pub stood_in: u64,
    /// The duration of the slowest answer.
    pub slowest: Duration,
}

impl Tally {
    /// Adds the counts of `other`.
    pub fn add(&mut self, other: &Self) {
        for (status, count) in &other.answers {
            *self.answers.entry(*status).or_default() += count;
        }
        self.acknowledged += other.acknowledged;
        self.unknown += other.unknown;
        self.killed += other.killed;
        self.unavailable += other.unavailable;
        self.stood_in += other.stood_in;
        self.slowest = self.slowest.max(other.slowest);
    }

    /// Returns the number of answers of any status.
    pub fn answered(&self) -> u64 {
        self.answers.values().sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "answers {:?}, slowest {:.1} s; writes {} acknowledged, {} unknown; excused: {} in a killed process, \
             {} x 503 of a broker whose server was away, {} x 503 of the supervisor",
            self.answers,
            self.slowest.as_secs_f64(),
            self.acknowledged,
            self.unknown,
            self.killed,
            self.unavailable,
            self.stood_in
        )
    }
}
