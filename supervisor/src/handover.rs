//! What one supervisor leaves to the next, so that no broker dies with it: explicit, versioned, and never needed.
//!
//! The *index* is JSON in a sealed memfd that says which short id is whose: tenant, instance, process, configuration,
//! how far its life is. It stands in systemd's descriptor store beside the descriptors it speaks of, or is passed on by a
//! supervisor that executes its successor. A supervisor that cannot read it (another version, or none) still has the
//! names of the descriptors ([`names`]) and the lock files of the instances, which describe themselves
//! ([`Described`]); that is enough to go on with every process as it is.
//!
//! Within a version keys are added, never renamed, and every added key has a default.

pub(crate) mod inherited;
pub(crate) mod names;

use crate::config::Stamp;
use brokkr_tenant::{BrokerConfig, Digest, Listen, TenantName};
use names::Name;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// The version this supervisor writes and reads.
pub(crate) const VERSION: u32 = 1;
/// Longest index that is read: ten thousand instances, with room.
pub(crate) const LONGEST: u64 = 64 << 20;

/// Everything that is known of what is left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Index {
    /// [`VERSION`].
    pub(crate) version: u32,
    /// Of two, the higher is the later one.
    #[serde(default)]
    pub(crate) serial: u64,
    /// Which supervisor wrote it, for the log.
    #[serde(default)]
    pub(crate) supervisor: String,
    /// Where the last good configuration of the supervisor itself is kept.
    #[serde(default)]
    pub(crate) state_dir: Option<PathBuf>,
    /// Open listening sockets.
    #[serde(default)]
    pub(crate) listeners: Vec<Listener>,
    /// Instances that had a process when this was written.
    #[serde(default)]
    pub(crate) instances: Vec<Record>,
    /// Unplanned exits of tenants that had any.
    #[serde(default)]
    pub(crate) restarts: BTreeMap<TenantName, u64>,
    /// The embedded PostgreSQL, if one runs.
    #[serde(default)]
    pub(crate) embedded: bool,
    /// Limits of open files for brokers, where ours have been raised.
    #[serde(default)]
    pub(crate) open_files: Option<(u64, u64)>,
    /// Every name that systemd has in its store, where this process is one that another has become.
    #[serde(default)]
    pub(crate) stored: Vec<String>,
    /// Numbers of passed descriptors by name, where they are inherited and not systemd's to give.
    #[serde(default)]
    pub(crate) descriptors: BTreeMap<String, i32>,
}

/// One listening socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Listener {
    /// Its short id.
    pub(crate) id: u32,
    /// Whose it is.
    pub(crate) tenant: TenantName,
    /// Its address.
    pub(crate) listen: Listen,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Its short id; `None` while its descriptors are not stored.
    #[serde(default)]
    pub(crate) id: Option<u32>,
    /// Whose it is.
    pub(crate) tenant: TenantName,
    /// Its number.
    pub(crate) instance: u64,
    /// Its process.
    pub(crate) pid: i32,
    /// Field 22 of `/proc/PID/stat`: which process of that number.
    pub(crate) start_time: u64,
    /// Its files in the runtime folder, without extension.
    pub(crate) files: PathBuf,
    /// What it runs, if that is known.
    #[serde(default)]
    pub(crate) what: Option<Described>,
    /// The same whole, secrets in the clear; absent where it is not known.
    #[serde(default)]
    pub(crate) config: Option<Clear>,
    /// How far it was.
    pub(crate) phase: Phase,
    /// The most connections it was told it may hold.
    #[serde(default)]
    pub(crate) connections: u32,
    /// `restart` was ordered, and this is one to be replaced.
    #[serde(default)]
    pub(crate) outdated: bool,
    /// Where reading its log pipe has stopped: the beginning of a line that has not ended.
    #[serde(default)]
    pub(crate) log: Carry,
}

/// What an instance runs, without secrets: it stands in the instance's lock file too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Described {
    /// Of its effective configuration.
    pub(crate) digest: String,
    /// Where it listens.
    pub(crate) listen: Listen,
    /// Its schema.
    pub(crate) schema: String,
    /// Its pool.
    pub(crate) pool: u32,
    /// Which program it was started from.
    #[serde(default)]
    pub(crate) program: Option<Stamp>,
    /// The effective configuration with its secrets masked.
    #[serde(default)]
    pub(crate) config: serde_json::Value,
}

impl Described {
    /// What there is to say of this configuration.
    pub(crate) fn of(config: &BrokerConfig, program: Option<Stamp>) -> Self {
        Self {
            // Nothing in it can fail; if it did, only a convenience would be lost.
            config: serde_json::to_value(config).unwrap_or_default(),
            ..Self::brief(config, config.digest(), program)
        }
    }

    /// The same for where the whole configuration stands beside it.
    pub(crate) fn brief(config: &BrokerConfig, digest: Digest, program: Option<Stamp>) -> Self {
        Self {
            digest: digest.to_string(),
            listen: config.http.listen.clone(),
            schema: config.database.schema.as_str().to_owned(),
            pool: config.database.pool_size.get(),
            program,
            config: serde_json::Value::Null,
        }
    }
}

/// How far an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// Not ready yet.
    Starting,
    /// It accepts connections.
    Serving,
    /// It was told to go.
    Stopping,
    /// Nobody knows.
    #[serde(other)]
    Unknown,
}

/// A configuration with its secrets in the clear.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Clear(pub(crate) Arc<RawValue>);

impl std::fmt::Debug for Clear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl PartialEq for Clear {
    fn eq(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }
}

/// The beginning of a line whose end was not read yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Carry {
    /// Its bytes, as many as are kept of a line.
    #[serde(default)]
    pub(crate) bytes: Vec<u8>,
    /// How many more there were.
    #[serde(default)]
    pub(crate) beyond: usize,
}

/// Why an index is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IndexError {
    /// Written by a supervisor whose hand-over is not ours.
    #[error("it is of version {0}, this supervisor knows {VERSION}")]
    Version(u64),
    /// No index. The place is said, the text never: it holds secrets.
    #[error("it cannot be read (line {line}, column {column})")]
    Json {
        /// Line of the JSON.
        line: usize,
        /// Column of the JSON.
        column: usize,
    },
}

impl Index {
    /// The JSON, **with secrets in the clear**: for a sealed memfd and nothing else.
    pub(crate) fn encode(&self) -> Vec<u8> {
        #[expect(
            clippy::expect_used,
            reason = "structs with text keys only, and paths that came from UTF-8 text"
        )]
        serde_json::to_vec(self).expect("an index is JSON")
    }

    /// Reads what [`Index::encode`] wrote.
    ///
    /// # Errors
    /// When it is something else or of another version.
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

/// What is left: the index and the descriptors it speaks of, by name.
#[derive(Debug)]
pub(crate) struct Estate {
    /// The index.
    pub(crate) index: Index,
    /// The descriptors.
    pub(crate) descriptors: BTreeMap<Name, Arc<OwnedFd>>,
}

#[cfg(test)]
mod tests;
