//! Which lines somebody asked for.

use super::flat::{Pairs, Value};
use super::queue::Name;
use brokkr_tenant::TenantName;
use serde::{Deserialize, Serialize};

/// How grave a line is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// Everything.
    Trace,
    /// For those who work on the program.
    Debug,
    /// What happens.
    Info,
    /// What should not happen.
    Warn,
    /// What failed.
    Error,
}

impl Level {
    /// A level as lines spell it; what is not known counts as information.
    pub(super) fn parse(word: &str) -> Self {
        match word {
            "ERROR" => Level::Error,
            "WARN" => Level::Warn,
            "DEBUG" => Level::Debug,
            "TRACE" => Level::Trace,
            _ => Level::Info,
        }
    }

    /// The level of a canonical line.
    pub(super) fn of_line(line: &[u8]) -> Self {
        let text = std::str::from_utf8(line).unwrap_or_default().trim_end();
        if text.is_empty() {
            return Level::Info;
        }
        let mut pairs = Pairs::new(text);
        match pairs.find(|(key, _)| *key == "level") {
            Some((_, Value::String(word))) => Self::parse(word),
            _ => Level::Info,
        }
    }

    /// As grave as `least` or graver.
    pub(super) fn at_least(self, least: Self) -> bool {
        self >= least
    }

    /// Its priority in the words of syslog, as the journal wants it.
    pub(super) fn priority(self) -> u8 {
        match self {
            Level::Error => 3,
            Level::Warn => 4,
            Level::Info => 6,
            Level::Debug | Level::Trace => 7,
        }
    }

    /// The word as the control API takes it.
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

/// Which lines to show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Lines of these tenants; empty: of all, and the supervisor's own.
    pub(crate) tenants: Vec<TenantName>,
    /// No lines of these.
    pub(crate) not: Vec<TenantName>,
    /// Lines as grave as this or graver.
    pub(crate) level: Option<Level>,
}

impl Filter {
    pub(super) fn wants(&self, name: &Name) -> bool {
        match name {
            None => self.tenants.is_empty(),
            Some(name) => {
                (self.tenants.is_empty() || self.tenants.contains(name)) && !self.not.contains(name)
            }
        }
    }
}
