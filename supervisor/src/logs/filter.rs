//! Selection of log lines by tenant and level.

use super::json_scan::{JsonPairs, JsonValue};
use super::record::LogSource;
use brokkr_tenant::TenantName;
use serde::{Deserialize, Serialize};

/// Severity of a log line.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// Every line.
    Trace,
    /// Details for developers of the program.
    Debug,
    /// Normal events.
    Info,
    /// Events that should not happen.
    Warn,
    /// Failures.
    Error,
}

impl Level {
    /// Returns the level that a line spells as `word`; an unknown word counts as information.
    pub(super) fn parse(word: &str) -> Self {
        match word {
            "ERROR" => Level::Error,
            "WARN" => Level::Warn,
            "DEBUG" => Level::Debug,
            "TRACE" => Level::Trace,
            _ => Level::Info,
        }
    }

    /// Returns the level of a canonical line; a line without a level counts as information.
    pub(super) fn of_line(line: &[u8]) -> Self {
        let text = std::str::from_utf8(line).unwrap_or_default().trim_end();
        if text.is_empty() {
            return Level::Info;
        }
        let mut pairs = JsonPairs::new(text);
        match pairs.find(|(key, _)| *key == "level") {
            Some((_, JsonValue::String(word))) => Self::parse(word),
            _ => Level::Info,
        }
    }

    /// Returns true when this level is `least` or more severe.
    pub(super) fn at_least(self, least: Self) -> bool {
        self >= least
    }

    /// Returns the syslog priority that the journal takes for this level.
    pub(super) fn priority(self) -> u8 {
        match self {
            Level::Error => 3,
            Level::Warn => 4,
            Level::Info => 6,
            Level::Debug | Level::Trace => 7,
        }
    }

    /// Returns the word that the control API takes for this level.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Level::Trace => "trace",
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        }
    }
}

/// Selection of the lines to show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Tenants whose lines are shown; when empty, the lines of all tenants and of the supervisor.
    pub(crate) tenants: Vec<TenantName>,
    /// Tenants whose lines are left out.
    pub(crate) not: Vec<TenantName>,
    /// Lowest level that is shown.
    pub(crate) level: Option<Level>,
}

impl Filter {
    pub(super) fn wants(&self, name: &LogSource) -> bool {
        match name {
            None => self.tenants.is_empty(),
            Some(name) => {
                (self.tenants.is_empty() || self.tenants.contains(name)) && !self.not.contains(name)
            }
        }
    }
}
