//! The effective configuration of one broker: typed, complete, every default filled in.

use std::{
    ffi::OsStr,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    ByteSize, DatabaseUrl, Listen, Network, PoolSize, SchemaName, Secret, units::duration_text,
};

/// Everything a broker is told. Serialised as it is, its secrets are `***`; [`crate::InstanceConfig::to_json`] is
/// the one place that writes them in the clear.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerConfig {
    /// `[database]`
    pub database: DatabaseConfig,
    /// `[http]`
    pub http: HttpConfig,
    /// `[log]`
    pub log: LogConfig,
    /// `[limits]`
    pub limits: LimitsConfig,
    /// `[supervision]`
    pub supervision: SupervisionConfig,
    /// `[broker]`
    pub broker: BrokerSection,
    /// `[webhooks]`. A supervisor older than the section does not hand it over.
    #[serde(default)]
    pub webhooks: WebhooksConfig,
    /// `[pak]`
    pub pak: PakConfig,
    /// `[cors]`
    pub cors: CorsConfig,
    /// `[telemetry]`, with `[telemetry.broker]` merged into it
    pub telemetry: TelemetryConfig,
}

/// The tenant's database and how hard it may be used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConfig {
    /// The database, from `url` or the file named by `url_file`.
    pub url: DatabaseUrl,
    /// The tenant's schema.
    pub schema: SchemaName,
    /// Most connections the tenant may hold.
    pub pool_size: PoolSize,
    /// Longest wait for a connection before a request is answered 503.
    #[serde(with = "duration_text")]
    pub acquire_timeout: Duration,
    /// Most connections at work at once; absent in the file, the smaller of `pool_size` and 8. Never above `pool_size`.
    pub max_working: u32,
    /// `statement_timeout` of the broker's sessions.
    #[serde(with = "duration_text")]
    pub statement_timeout: Duration,
    /// `idle_in_transaction_session_timeout` of the broker's sessions.
    #[serde(with = "duration_text")]
    pub idle_in_transaction_timeout: Duration,
}

/// Where and how requests are taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    /// The listen address.
    pub listen: Listen,
    /// Longest time a request may take, its wait for a connection included.
    #[serde(with = "duration_text")]
    pub request_timeout: Duration,
}

/// What is logged and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// Least severe level that is logged.
    pub level: LogLevel,
    /// The form of a line when the broker runs alone; under the supervisor it is always JSON.
    pub format: LogFormat,
}

/// A log level, most severe first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the words themselves")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// The word, as `tracing` and the file write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Limits of the instance's control group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsConfig {
    /// `memory.max`, bytes.
    pub memory_max: Option<ByteSize>,
    /// `cpu.weight`, 1 to 10000.
    pub cpu_weight: Option<u32>,
    /// `pids.max`.
    pub pids_max: Option<u32>,
}

/// What the supervisor does with the tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SupervisionConfig {
    /// Whether it is to run at all.
    pub enabled: bool,
    /// Admission order among newcomers: higher first, then by name.
    pub priority: i64,
}

/// What an agent gets that asks for its target state without saying how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetStateMode {
    /// Everything that should be.
    Full,
    /// Only what it has not applied yet.
    Incremental,
}

/// The `[broker]` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerSection {
    /// Where a broker alone keeps its admin PAK, if the file says so; see [`BrokerConfig::state_dir`].
    pub state_dir: Option<PathBuf>,
    /// Target state without `mode`.
    pub target_state_default: TargetStateMode,
    /// Hash of the admin PAK for the first start, 64 lower-case hexadecimal digits; `None`: one is made.
    pub pak_hash: Option<Secret>,
    /// How long a principal is remembered, seconds; 0: not at all.
    pub auth_cache_ttl_seconds: u64,
    /// How often old diagnostics are removed, seconds.
    pub diagnostic_cleanup_interval_seconds: u64,
    /// How old diagnostics may become, hours.
    pub diagnostic_max_age_hours: i64,
    /// Key of the webhooks' secrets, 64 hexadecimal digits; `None`: the tenant's own, in its state folder.
    pub webhook_encryption_key: Option<Secret>,
    /// Least time between two rounds of webhook deliveries, seconds.
    pub webhook_delivery_interval_seconds: u64,
    /// Most deliveries taken by one statement.
    pub webhook_delivery_batch_size: i64,
    /// How long finished deliveries are kept, days; 0: for ever.
    pub webhook_cleanup_retention_days: i64,
    /// How long audit rows are kept, days.
    pub audit_log_retention_days: i64,
    /// How long agents' events are kept, days; 0: for ever.
    pub agent_events_retention_days: i64,
}

/// Where webhooks may go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhooksConfig {
    /// Networks that may be reached although they are loopback, private, link-local or otherwise not public.
    pub allowed_networks: Vec<Network>,
    /// Ports that may be reached; empty: any.
    pub allowed_ports: Vec<u16>,
}

/// How PAKs are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PakConfig {
    /// First part, without underscores.
    pub prefix: String,
    /// Beginning of the second part.
    pub short_token_prefix: String,
    /// Characters of the second part, its beginning included.
    pub short_token_length: usize,
    /// Random bytes of the third part, before base58.
    pub long_token_length: usize,
}

/// What browsers of other origins may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorsConfig {
    /// Allowed origins; an entry `*` is any.
    pub allowed_origins: Vec<String>,
    /// Allowed methods.
    pub allowed_methods: Vec<String>,
    /// Allowed request headers.
    pub allowed_headers: Vec<String>,
    /// How long a browser may remember the answer, seconds.
    pub max_age_seconds: u64,
}

/// Traces by OTLP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Whether traces are sent.
    pub enabled: bool,
    /// Where to.
    pub otlp_endpoint: String,
    /// As whom.
    pub service_name: String,
    /// The share of requests that are traced, 0 to 1.
    pub sampling_rate: f64,
}

impl BrokerConfig {
    /// The state folder of a broker alone: `[broker] state_dir`, else `$STATE_DIRECTORY` (the first, if systemd gives
    /// several), else `./brokkr-state`.
    pub fn state_dir(&self, state_directory: Option<&OsStr>) -> PathBuf {
        if let Some(dir) = &self.broker.state_dir {
            return dir.clone();
        }
        let given = state_directory
            .and_then(OsStr::to_str)
            .and_then(|dirs| dirs.split(':').next());
        match given.filter(|dir| !dir.is_empty()) {
            Some(dir) => PathBuf::from(dir),
            None => Path::new(".").join("brokkr-state"),
        }
    }

    /// The dotted names of the keys with an effect whose values are others in `other`, in the order of the table. A URL from a
    /// file is `database.url`. What only a supervisor uses is left out.
    pub fn differing(&self, other: &Self) -> Vec<&'static str> {
        let (ours, theirs) = (
            crate::instance::clear_json(self),
            crate::instance::clear_json(other),
        );
        crate::settings::KEYS
            .list()
            .iter()
            .filter(|key| key.effect && !key.name.starts_with("supervision."))
            .map(|key| key.name)
            .filter(|name| {
                let place = format!("/{}", name.replace('.', "/"));
                ours.pointer(&place) != theirs.pointer(&place)
            })
            .collect()
    }

    /// A digest of all that a broker makes of the effective configuration, secrets included: it changes when any value
    /// does but those of `[supervision]`, which are the supervisor's alone.
    pub fn digest(&self) -> Digest {
        let mut json = crate::instance::clear_json(self);
        json["supervision"].take();
        Digest(Sha256::digest(json.to_string().as_bytes()).into())
    }
}

/// SHA-256 of an effective configuration, printed as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
