//! What was seen: answers, excused failures, violations; and the diary of what was done to the host meanwhile.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What must never happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A connection nobody took.
    Refused,
    /// A request without the answer it should have, outside a killed process.
    Failed,
    /// An answer that belongs to another tenant.
    WrongTenant,
    /// A write that was acknowledged and is not there, or is there twice.
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

/// Lines kept of each kind; more of them are counted only.
const MOST_SHOWN: usize = 20;

/// One time line of faults and violations, printed as it grows: what a person reads when the test has failed.
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
    /// Adds one line, with its time.
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

    /// How many there were of a kind.
    pub fn count(&self, kind: Kind) -> usize {
        self.violations
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
            .get(&kind)
            .map_or(0, Vec::len)
    }

    /// The first violations of every kind.
    pub fn violations(&self) -> Vec<String> {
        self.violations
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
            .values()
            .flat_map(|lines| lines.iter().take(MOST_SHOWN).cloned())
            .collect()
    }
}

/// What clients saw, violations aside.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Answers by status.
    pub answers: BTreeMap<u16, u64>,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Writes whose answer never came or was 503: they may be there or not.
    pub unknown: u64,
    /// Requests that ended with the killed process that had them.
    pub killed: u64,
    /// 503 of a broker while its server was away.
    pub unavailable: u64,
    /// 503 of the supervisor in the place of a broker that could not serve.
    pub stood_in: u64,
    /// The slowest answer.
    pub slowest: Duration,
}

impl Tally {
    /// Counts the other's too.
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

    /// Answers of any status.
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
