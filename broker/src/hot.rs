//! The part of the configuration that can change while the broker runs.
//!
//! Everything else is read once; a change of it needs a new instance. Whoever uses a value here asks for it each time.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use brokkr_tenant::{BrokerConfig, CorsConfig, LogLevel};

/// Handle to the current values. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Hot(Arc<RwLock<Arc<Values>>>);

/// The values of one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Values {
    /// `log.level`
    pub log_level: LogLevel,
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
    /// `broker.webhook_cleanup_retention_days`; zero keeps for ever.
    pub webhook_retention: Duration,
}

impl Values {
    /// The values of a configuration.
    pub fn of(config: &BrokerConfig) -> Self {
        let broker = &config.broker;
        Values {
            log_level: config.log.level,
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

impl Hot {
    /// Begins with a configuration's values.
    pub fn new(config: &BrokerConfig) -> Self {
        Hot(Arc::new(RwLock::new(Arc::new(Values::of(config)))))
    }

    /// The values now.
    pub fn get(&self) -> Arc<Values> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Replaces them; the values before.
    pub fn set(&self, values: Values) -> Arc<Values> {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, Arc::new(values))
    }
}

/// A duration of that many days; a negative number is zero.
pub fn days(days: i64) -> Duration {
    hours(days.saturating_mul(24))
}

fn hours(hours: i64) -> Duration {
    Duration::from_secs(u64::try_from(hours).unwrap_or(0).saturating_mul(3600))
}
