//! The part of the configuration that can change while the broker runs.
//!
//! All other values are read once; a change of them needs a new instance. Users of a value here read it anew each time,
//! and `reload` replaces the values. A new value needs a field of [`Values`], a line of [`Values::of`] and a line of
//! `Values::texts`.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use brokkr_tenant::{BrokerConfig, CorsConfig, LogLevel, TlsConfig};
use serde::Serialize;
use utoipa::ToSchema;

/// Handle to the current values. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RuntimeConfig(Arc<RwLock<Arc<Values>>>);

/// A snapshot of the values.
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    /// `log.level`
    pub log_level: LogLevel,
    /// `http.tls_cert` and `http.tls_key`; a change from or to `None` needs a restart.
    pub tls: Option<TlsConfig>,
    /// `cors.*`
    pub cors: CorsConfig,
    /// `broker.diagnostic_cleanup_interval_seconds`
    pub diagnostic_cleanup_interval: Duration,
    /// `broker.diagnostic_max_age_hours`
    pub diagnostic_max_age: Duration,
    /// `broker.webhook_delivery_interval_seconds`
    pub webhook_delivery_interval: Duration,
    /// `broker.webhook_delivery_batch_size`
    pub webhook_delivery_batch_size: i64,
    /// `broker.webhook_cleanup_retention_days`; zero keeps deliveries for ever.
    pub webhook_retention: Duration,
}

impl Values {
    /// Returns the values of a configuration.
    pub fn of(config: &BrokerConfig) -> Self {
        let broker = &config.broker;
        Values {
            log_level: config.log.level,
            tls: config.http.tls.clone(),
            cors: config.cors.clone(),
            diagnostic_cleanup_interval: Duration::from_secs(
                broker.diagnostic_cleanup_interval_seconds,
            ),
            diagnostic_max_age: hours(broker.diagnostic_max_age_hours),
            webhook_delivery_interval: Duration::from_secs(
                broker.webhook_delivery_interval_seconds,
            ),
            webhook_delivery_batch_size: broker.webhook_delivery_batch_size,
            webhook_retention: days(broker.webhook_cleanup_retention_days),
        }
    }
}

/// A changed value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = ConfigChangeInfo)]
pub struct ConfigChange {
    /// The key, such as `log.level`.
    #[schema(value_type = String)]
    pub key: &'static str,
    /// The value before; a list is separated by commas.
    pub old_value: String,
    /// The value now.
    pub new_value: String,
}

impl Values {
    /// Returns every key here with its value as a text.
    fn texts(&self) -> [(&'static str, String); 12] {
        let hours = |value: Duration| value.as_secs() / 3600;
        let cors = &self.cors;
        let tls = self.tls.as_ref();
        [
            ("log.level", self.log_level.as_str().to_owned()),
            (
                "http.tls_cert",
                // With the fingerprint, because the content changes more often than the name.
                tls.map_or_else(String::new, |tls| {
                    let fingerprint = tls.pair.fingerprint();
                    format!("{} (sha256 {fingerprint})", tls.cert_file.display())
                }),
            ),
            (
                "http.tls_key",
                tls.map_or_else(String::new, |tls| tls.key_file.display().to_string()),
            ),
            (
                "broker.diagnostic_cleanup_interval_seconds",
                self.diagnostic_cleanup_interval.as_secs().to_string(),
            ),
            (
                "broker.diagnostic_max_age_hours",
                hours(self.diagnostic_max_age).to_string(),
            ),
            (
                "broker.webhook_delivery_interval_seconds",
                self.webhook_delivery_interval.as_secs().to_string(),
            ),
            (
                "broker.webhook_delivery_batch_size",
                self.webhook_delivery_batch_size.to_string(),
            ),
            (
                "broker.webhook_cleanup_retention_days",
                (hours(self.webhook_retention) / 24).to_string(),
            ),
            ("cors.allowed_origins", cors.allowed_origins.join(", ")),
            ("cors.allowed_methods", cors.allowed_methods.join(", ")),
            ("cors.allowed_headers", cors.allowed_headers.join(", ")),
            ("cors.max_age_seconds", cors.max_age_seconds.to_string()),
        ]
    }

    /// Returns true when the key's value can change while the broker runs.
    pub fn has(&self, key: &str) -> bool {
        self.texts().iter().any(|(known, _)| *known == key)
    }

    /// Returns the values that differ in `new`.
    pub fn changes(&self, new: &Self) -> Vec<ConfigChange> {
        self.texts()
            .into_iter()
            .zip(new.texts())
            .filter(|((_, old), (_, new))| old != new)
            .map(|((key, old_value), (_, new_value))| ConfigChange {
                key,
                old_value,
                new_value,
            })
            .collect()
    }
}

impl RuntimeConfig {
    /// Returns a handle to the values of this configuration.
    pub fn new(config: &BrokerConfig) -> Self {
        RuntimeConfig(Arc::new(RwLock::new(Arc::new(Values::of(config)))))
    }

    /// Returns the current values.
    pub fn get(&self) -> Arc<Values> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Replaces the values, and returns the previous values.
    pub fn set(&self, values: Values) -> Arc<Values> {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, Arc::new(values))
    }
}

/// Returns a duration of this many days; a negative number is zero.
pub fn days(days: i64) -> Duration {
    hours(days.saturating_mul(24))
}

fn hours(hours: i64) -> Duration {
    Duration::from_secs(u64::try_from(hours).unwrap_or(0).saturating_mul(3600))
}
