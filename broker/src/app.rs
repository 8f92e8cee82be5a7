//! The state that every request handler receives.

use std::sync::Arc;

use brokkr_tenant::BrokerConfig;

use crate::auth;
use crate::db::Db;
use crate::health::Health;
use crate::hot::Hot;
use crate::jobs::Jobs;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::reload::Reloader;
use crate::webhook::Webhooks;

/// The state behind the router: handles only, so it is cheap to clone.
#[derive(Clone)]
pub struct App {
    /// The tenant's database.
    pub db: Db,
    /// The effective configuration at the start.
    pub config: Arc<BrokerConfig>,
    /// The part of the configuration that can change while the broker runs.
    pub hot: Hot,
    /// Replaces the changeable part of the configuration.
    pub reloader: Reloader,
    /// The cache of recently authenticated callers.
    pub auth: auth::Cache,
    /// Counters and histograms behind `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Readiness, as `/readyz` answers it.
    pub health: Arc<Health>,
    /// The background jobs, which writes wake.
    pub jobs: Jobs,
    /// The open WebSockets.
    pub live: Live,
    /// The HTTP client, key and schedule of webhooks.
    pub webhooks: Webhooks,
}
