//! The configuration that the supervisor passes to one instance, as JSON in a sealed memfd.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{BrokerConfig, Secret, TenantName};

/// The version of the JSON that this crate writes and reads.
pub const INSTANCE_CONFIG_VERSION: u32 = 1;

/// The configuration of one instance. Secrets serialise as `***`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceConfig {
    /// The version, [`INSTANCE_CONFIG_VERSION`].
    pub version: u32,
    /// The tenant.
    pub tenant: TenantName,
    /// The instance's number, unique in its runtime folder.
    pub instance: u64,
    /// The tenant's own state folder, absolute.
    pub state_dir: PathBuf,
    /// The number of connections that the instance may hold until the supervisor sets another.
    pub connections: u32,
    /// `[stop] grace`: the time from SIGTERM to SIGKILL.
    pub grace: Duration,
    /// `[debug] core`: true when the instance may leave a core. False is not written, so that an older broker can read
    /// the JSON.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub core: bool,
    /// `[isolation] required`: true when the instance must not run without every layer of its sandbox. False is not
    /// written, for the same reason.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub isolation_required: bool,
    /// The effective configuration.
    pub config: BrokerConfig,
}

/// An error in reading a configuration back.
#[derive(Debug, thiserror::Error)]
pub enum InstanceConfigError {
    /// The text is not the JSON of an instance's configuration. The error holds the place and never the text.
    #[error("the instance's configuration cannot be read (line {line}, column {column})")]
    Json {
        /// Line of the JSON.
        line: usize,
        /// Column of the JSON.
        column: usize,
    },
    /// The configuration has another version.
    #[error(
        "the instance's configuration has version {0}, this broker reads {INSTANCE_CONFIG_VERSION}"
    )]
    Version(u64),
}

impl InstanceConfig {
    /// Returns the JSON **with the secrets in the clear**: only for the sealed memfd.
    pub fn to_json(&self) -> String {
        let mut json = to_value(self);
        json["config"] = clear_json(&self.config);
        json.to_string()
    }

    /// Reads the JSON from [`InstanceConfig::to_json`]. The error holds nothing of the text.
    pub fn from_json(json: &[u8]) -> Result<Self, InstanceConfigError> {
        // serde's own message may quote the value, which may be a secret.
        let place = |error: serde_json::Error| InstanceConfigError::Json {
            line: error.line(),
            column: error.column(),
        };
        let value: Value = serde_json::from_slice(json).map_err(place)?;
        match value.get("version").and_then(Value::as_u64) {
            Some(version) if version != u64::from(INSTANCE_CONFIG_VERSION) => {
                Err(InstanceConfigError::Version(version))
            }
            _ => serde_json::from_value(value).map_err(place),
        }
    }
}

/// Returns the configuration's JSON with the secrets in the clear.
///
/// All other code of this crate serialises secrets as `***`, so a secret that is missing here never reaches the broker,
/// and the round-trip test fails.
pub(crate) fn clear_json(config: &BrokerConfig) -> Value {
    let mut json = to_value(config);
    let clear = |secret: &Option<Secret>| secret.as_ref().map(|secret| secret.expose().to_owned());
    json["database"]["url"] = config.database.url.expose().into();
    json["broker"]["pak_hash"] = clear(&config.broker.pak_hash).into();
    if let Some(tls) = &config.http.tls {
        json["http"]["tls"]["pair"] = tls.pair.to_clear_json();
    }
    json["broker"]["webhook_encryption_key"] = clear(&config.broker.webhook_encryption_key).into();
    json
}

fn to_value<T: Serialize>(value: &T) -> Value {
    #[expect(
        clippy::expect_used,
        reason = "structs with text keys only, paths come from UTF-8 text: nothing in them can fail"
    )]
    serde_json::to_value(value).expect("a configuration is JSON")
}
