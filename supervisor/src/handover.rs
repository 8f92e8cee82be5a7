//! The state that a supervisor hands over to the next, so that brokers survive: explicit, versioned, and optional.
//!
//! The *index* is JSON in a sealed memfd. It maps each short id to tenant, instance, process, configuration and phase.
//! systemd's descriptor store holds the index beside its descriptors, or a supervisor passes both on when it executes
//! its successor. A supervisor without a readable index (another version, or none) still has the names of the
//! descriptors ([`fd_names`]) and the instances' lock files ([`ConfigSummary`]), which suffice to keep every process running.
//!
//! Within a version keys are added and never renamed, and every added key has a default.

pub(crate) mod fd_names;
pub(crate) mod inherited;

use crate::config::{ConfigSummary, SecretConfig};
use brokkr_tenant::{Listen, TenantName};
use fd_names::FdName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// The version that this supervisor writes and reads.
pub(crate) const VERSION: u32 = 1;
/// The largest index that is read, in bytes: enough for more than ten thousand instances, TLS files included.
pub(crate) const LONGEST: u64 = 256 << 20;

/// The state that is handed over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct HandoverIndex {
    /// The version, [`VERSION`].
    pub(crate) version: u32,
    /// The serial number; of two indexes the higher is the later.
    #[serde(default)]
    pub(crate) serial: u64,
    /// The supervisor that wrote the index, for the log.
    #[serde(default)]
    pub(crate) supervisor: String,
    /// The folder with the supervisor's last good configuration.
    #[serde(default)]
    pub(crate) state_dir: Option<PathBuf>,
    /// The open listening sockets.
    #[serde(default)]
    pub(crate) listeners: Vec<ListenerRecord>,
    /// The instances that had a process when the index was written.
    #[serde(default)]
    pub(crate) instances: Vec<InstanceRecord>,
    /// The number of unplanned exits per tenant, without zeros.
    #[serde(default)]
    pub(crate) restarts: BTreeMap<TenantName, u64>,
    /// True when an embedded PostgreSQL runs.
    #[serde(default)]
    pub(crate) embedded: bool,
    /// The limits of open files for brokers, where the supervisor has raised its own.
    #[serde(default)]
    pub(crate) open_files: Option<(u64, u64)>,
    /// Every name in systemd's store, where this process was executed by another supervisor.
    #[serde(default)]
    pub(crate) stored: Vec<String>,
    /// The numbers of inherited descriptors by name, where systemd does not pass them.
    #[serde(default)]
    pub(crate) descriptors: BTreeMap<String, i32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ListenerRecord {
    pub(crate) id: u32,
    pub(crate) tenant: TenantName,
    pub(crate) listen: Listen,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct InstanceRecord {
    /// Its short id; `None` while its descriptors are not stored.
    #[serde(default)]
    pub(crate) id: Option<u32>,
    pub(crate) tenant: TenantName,
    pub(crate) instance: u64,
    pub(crate) pid: i32,
    /// Field 22 of `/proc/PID/stat`, which distinguishes processes with the same pid.
    pub(crate) start_time: u64,
    /// The path of its files in the runtime folder, without extension.
    pub(crate) files: PathBuf,
    /// The description of its configuration, if known.
    #[serde(default)]
    pub(crate) what: Option<ConfigSummary>,
    /// The complete configuration with secrets in the clear, if known.
    #[serde(default)]
    pub(crate) config: Option<SecretConfig>,
    /// The phase of its life.
    pub(crate) phase: RecordedPhase,
    /// The largest number of connections that it was allowed to hold.
    #[serde(default)]
    pub(crate) connections: u32,
    /// True when `restart` was ordered and this instance must be replaced.
    #[serde(default)]
    pub(crate) outdated: bool,
    /// The beginning of a line that its log pipe has not ended yet.
    #[serde(default)]
    pub(crate) log: PartialLine,
}

/// The phase of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RecordedPhase {
    /// Not ready yet.
    Starting,
    /// The instance accepts connections.
    Serving,
    /// The instance was told to end.
    Stopping,
    /// Unknown.
    #[serde(other)]
    Unknown,
}

/// The beginning of a line whose end has not been read yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartialLine {
    /// The bytes of the line that are kept.
    #[serde(default)]
    pub(crate) bytes: Vec<u8>,
    /// The number of further bytes that were dropped.
    #[serde(default)]
    pub(crate) beyond: usize,
}

/// The reason why an index cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IndexError {
    /// The index has a version that this supervisor does not know.
    #[error("it is of version {0}, this supervisor knows {VERSION}")]
    Version(u64),
    /// The text is no index. The error holds the place and never the text, because the text holds secrets.
    #[error("it cannot be read (line {line}, column {column})")]
    Json {
        /// Line of the JSON.
        line: usize,
        /// Column of the JSON.
        column: usize,
    },
}

impl HandoverIndex {
    /// Returns the JSON, **with secrets in the clear**: only for a sealed memfd.
    pub(crate) fn encode(&self) -> Vec<u8> {
        #[expect(
            clippy::expect_used,
            reason = "structs with text keys only, and paths that came from UTF-8 text"
        )]
        serde_json::to_vec(self).expect("an index is JSON")
    }

    /// Reads the JSON from [`HandoverIndex::encode`].
    pub(crate) fn decode(json: &[u8]) -> Result<Self, IndexError> {
        #[derive(Deserialize)]
        struct Head {
            version: u64,
        }
        let place = |error: serde_json::Error| IndexError::Json {
            line: error.line(),
            column: error.column(),
        };
        let head: Head = serde_json::from_slice(json).map_err(place)?;
        if head.version != u64::from(VERSION) {
            return Err(IndexError::Version(head.version));
        }
        serde_json::from_slice(json).map_err(place)
    }
}

/// The handed-over state: the index and its descriptors, by name.
#[derive(Debug)]
pub(crate) struct HandoverState {
    pub(crate) index: HandoverIndex,
    pub(crate) descriptors: BTreeMap<FdName, Arc<OwnedFd>>,
}

/// Reads any bytes as an index, and panics when an accepted index does not read back equal. For fuzzing.
pub(crate) fn check_parsing(data: &[u8]) {
    if let Ok(index) = HandoverIndex::decode(data) {
        let again = HandoverIndex::decode(&index.encode());
        assert!(again.is_ok_and(|again| again == index), "another index");
    }
}

#[cfg(test)]
mod tests;
