//! The forms in which an instance's configuration passes to a later supervisor: without secrets in the lock file, with
//! secrets in the handed-over index.

use super::Stamp;
use brokkr_tenant::{BrokerConfig, Digest, Listen};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::sync::Arc;

/// The description of an instance's configuration without secrets, also stored in the lock file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ConfigSummary {
    /// The digest of its effective configuration.
    pub(crate) digest: String,
    pub(crate) listen: Listen,
    pub(crate) schema: String,
    /// Its pool size.
    pub(crate) pool: u32,
    /// The program it was started from.
    #[serde(default)]
    pub(crate) program: Option<Stamp>,
    /// The effective configuration, with secrets masked.
    #[serde(default)]
    pub(crate) config: serde_json::Value,
}

impl ConfigSummary {
    /// Describes this configuration completely.
    pub(crate) fn of(config: &BrokerConfig, program: Option<Stamp>) -> Self {
        Self {
            // Serialising cannot fail here, and an empty value would lose only a convenience.
            config: serde_json::to_value(config).unwrap_or_default(),
            ..Self::brief(config, config.digest(), program)
        }
    }

    /// Describes an instance that listens on `listen`, for tests.
    #[cfg(test)]
    pub(crate) fn listening(listen: Listen) -> Self {
        Self {
            digest: "ab".repeat(32),
            listen,
            schema: "acme".to_owned(),
            pool: 7,
            program: None,
            config: serde_json::Value::Null,
        }
    }

    /// Describes this configuration without the values, for where the complete configuration is stored beside it.
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

/// A configuration with its secrets in the clear.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct SecretConfig(pub(crate) Arc<RawValue>);

impl std::fmt::Debug for SecretConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl PartialEq for SecretConfig {
    fn eq(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }
}
