//! The effective configuration of one broker: typed and complete, with every default filled in.

use std::{
    ffi::OsStr,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    ByteSize, DatabaseUrl, Listen, Network, PoolSize, SchemaName, Secret, TlsConfig,
    units::duration_text,
};

/// The whole configuration of a broker. Secrets serialise as `***`; only [`crate::InstanceConfig::to_json`] writes them
/// in the clear.
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
    /// `[webhooks]`; absent from the configuration of a supervisor older than this section.
    #[serde(default)]
    pub webhooks: WebhooksConfig,
    /// `[pak]`
    pub pak: PakConfig,
    /// `[cors]`
    pub cors: CorsConfig,
    /// `[telemetry]`, with `[telemetry.broker]` merged into it
    pub telemetry: TelemetryConfig,
}

/// The tenant's database, and the limits on its use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConfig {
    /// The database, from `url` or from the file that `url_file` names.
    pub url: DatabaseUrl,
    /// The tenant's schema.
    pub schema: SchemaName,
    /// The largest number of connections that the tenant may hold.
    pub pool_size: PoolSize,
    /// The longest wait for a connection before the broker answers a request with 503.
    #[serde(with = "duration_text")]
    pub acquire_timeout: Duration,
    /// The largest number of connections that work at once. Defaults to the smaller of `pool_size` and 8, and never
    /// exceeds `pool_size`.
    pub max_working: u32,
    /// `statement_timeout` of the broker's sessions.
    #[serde(with = "duration_text")]
    pub statement_timeout: Duration,
    /// `idle_in_transaction_session_timeout` of the broker's sessions.
    #[serde(with = "duration_text")]
    pub idle_in_transaction_timeout: Duration,
    /// `work_mem` of the tenant's provisioned role. `None` is not written, so that an older broker can read the JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_mem: Option<ByteSize>,
    /// `temp_file_limit` of the tenant's provisioned role; not written for the same reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temp_file_limit: Option<ByteSize>,
}

/// The HTTP server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    /// The listen address.
    pub listen: Listen,
    /// The longest time for one request, including its wait for a connection.
    #[serde(with = "duration_text")]
    pub request_timeout: Duration,
    /// The certificate and key of a TLS listener; `None` serves plain HTTP. `None` is not written, so that an older
    /// broker can read the JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
}

/// The log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// The least severe level that is logged.
    pub level: LogLevel,
    /// The form of a line when the broker runs alone; under the supervisor the form is always JSON.
    pub format: LogFormat,
}

/// A log level, the most severe first.
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
    /// Returns the word for this level in `tracing` and in the file.
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
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// The limits of the instance's cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsConfig {
    /// `memory.max`, in bytes.
    pub memory_max: Option<ByteSize>,
    /// `cpu.weight`, 1 to 10000.
    pub cpu_weight: Option<u32>,
    /// `pids.max`.
    pub pids_max: Option<u32>,
}

/// The supervision of the tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SupervisionConfig {
    /// True when the tenant must run.
    pub enabled: bool,
    /// The order of admission among new tenants: higher first, then by name.
    pub priority: i64,
}

/// The target state that an agent gets when its request has no `mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetStateMode {
    /// All objects of the target state.
    Full,
    /// Only the objects that the agent has not applied yet.
    Incremental,
}

/// The `[broker]` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerSection {
    /// The folder in which a broker that runs alone keeps its admin PAK, if set; see [`BrokerConfig::state_dir`].
    pub state_dir: Option<PathBuf>,
    /// The target state for requests without `mode`.
    pub target_state_default: TargetStateMode,
    /// The hash of the admin PAK for the first start, 64 lower-case hexadecimal digits; `None` makes a new PAK.
    pub pak_hash: Option<Secret>,
    /// The time for which a principal is cached, in seconds; 0 disables the cache.
    pub auth_cache_ttl_seconds: u64,
    /// The time between two removals of old diagnostics, in seconds.
    pub diagnostic_cleanup_interval_seconds: u64,
    /// The age at which diagnostics are removed, in hours.
    pub diagnostic_max_age_hours: i64,
    /// The key that encrypts the webhooks' secrets, 64 hexadecimal digits; `None` takes the key in the tenant's state
    /// folder.
    pub webhook_encryption_key: Option<Secret>,
    /// The shortest time between two rounds of webhook deliveries, in seconds.
    pub webhook_delivery_interval_seconds: u64,
    /// The largest number of deliveries that one statement claims.
    pub webhook_delivery_batch_size: i64,
    /// The time for which finished deliveries are kept, in days; 0 keeps them for ever.
    pub webhook_cleanup_retention_days: i64,
    /// The time for which audit rows are kept, in days.
    pub audit_log_retention_days: i64,
    /// The time for which agents' events are kept, in days; 0 keeps them for ever.
    pub agent_events_retention_days: i64,
}

/// The allowed targets of webhooks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhooksConfig {
    /// Networks that webhooks may reach although they are loopback, private, link-local or otherwise not public.
    pub allowed_networks: Vec<Network>,
    /// Ports that webhooks may reach; empty allows every port.
    pub allowed_ports: Vec<u16>,
}

/// The form of new PAKs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PakConfig {
    /// The first part, without underscores.
    pub prefix: String,
    /// The beginning of the second part.
    pub short_token_prefix: String,
    /// The number of characters of the second part, including its beginning.
    pub short_token_length: usize,
    /// The number of random bytes of the third part, before base58.
    pub long_token_length: usize,
}

/// The rules for browsers of other origins (CORS).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorsConfig {
    /// The allowed origins; an entry `*` allows every origin.
    pub allowed_origins: Vec<String>,
    /// The allowed methods.
    pub allowed_methods: Vec<String>,
    /// The allowed request headers.
    pub allowed_headers: Vec<String>,
    /// The time for which a browser may cache the answer, in seconds.
    pub max_age_seconds: u64,
}

/// Traces sent by OTLP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetryConfig {
    /// True when traces are sent.
    pub enabled: bool,
    /// The address of the collector.
    pub otlp_endpoint: String,
    /// The service name in the traces.
    pub service_name: String,
    /// The share of requests that are traced, 0 to 1.
    pub sampling_rate: f64,
}

impl BrokerConfig {
    /// Returns the state folder of a broker that runs alone: `[broker] state_dir`, else the first folder of
    /// `$STATE_DIRECTORY`, else `./brokkr-state`.
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

    /// Returns the dotted names of the keys whose values differ in `other`, in the order of the table.
    ///
    /// Only keys with an effect on a broker count. A URL from a file counts as `database.url`.
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
                let place = match *name {
                    "http.tls_cert" => "/http/tls/cert_file".to_owned(),
                    "http.tls_key" => "/http/tls/key_file".to_owned(),
                    name => format!("/{}", name.replace('.', "/")),
                };
                ours.pointer(&place) != theirs.pointer(&place)
            })
            .collect()
    }

    /// Returns the JSON **with the secrets in the clear**: only for a sealed memfd.
    pub fn to_clear_json(&self) -> String {
        crate::instance::clear_json(self).to_string()
    }

    /// Reads the JSON of a configuration, for example from [`BrokerConfig::to_clear_json`]; `None` for any other text.
    pub fn from_json(json: &str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }

    /// Returns a digest of every value that a broker uses, including secrets. `[supervision]` is left out, because only
    /// the supervisor uses that section, and so is the content of TLS files, because a broker takes new content while
    /// it runs.
    pub fn digest(&self) -> Digest {
        let mut json = crate::instance::clear_json(self);
        json["supervision"].take();
        if let Some(pair) = json.pointer_mut("/http/tls/pair") {
            pair.take();
        }
        Digest(Sha256::digest(json.to_string().as_bytes()).into())
    }
}

/// The SHA-256 of an effective configuration, printed as 64 hexadecimal digits.
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
