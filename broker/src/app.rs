//! What every request handler is given.

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

/// The state behind the router: handles only, cheap to clone.
#[derive(Clone)]
pub struct App {
    /// The tenant's database.
    pub db: Db,
    /// The effective configuration at the start.
    pub config: Arc<BrokerConfig>,
    /// The part of it that can change while the broker runs.
    pub hot: Hot,
    /// Replaces that part.
    pub reloader: Reloader,
    /// Who authenticated lately.
    pub auth: auth::Cache,
    /// Counters and histograms behind `/metrics`.
    pub metrics: Arc<Metrics>,
    /// What `/readyz` answers.
    pub health: Arc<Health>,
    /// Background work, to be woken by writes.
    pub jobs: Jobs,
    /// Who is connected by WebSocket.
    pub live: Live,
    /// What webhooks are delivered with.
    pub webhooks: Webhooks,
}
