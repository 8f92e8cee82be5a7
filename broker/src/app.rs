//! What every request handler is given.

use std::sync::Arc;

use brokkr_tenant::BrokerConfig;

use crate::auth;
use crate::db::Db;
use crate::health::Health;
use crate::metrics::Metrics;

/// The state behind the router: handles only, cheap to clone.
#[derive(Clone)]
pub struct App {
    /// The tenant's database.
    pub db: Db,
    /// The effective configuration.
    pub config: Arc<BrokerConfig>,
    /// Who authenticated lately.
    pub auth: auth::Cache,
    /// Counters and histograms behind `/metrics`.
    pub metrics: Arc<Metrics>,
    /// What `/readyz` answers.
    pub health: Arc<Health>,
}
