//! The state that every request handler receives.

use std::sync::Arc;

use brokkr_tenant::BrokerConfig;

use crate::auth;
use crate::db::Db;
use crate::health::Health;
use crate::jobs::schedule::Schedule;
use crate::metrics::Metrics;
use crate::reload::Reloader;
use crate::runtime_config::RuntimeConfig;
use crate::tls::Tls;
use crate::webhook::Webhooks;
use crate::websocket::handle::WebSockets;

/// The state behind the router: handles only, so it is cheap to clone.
#[derive(Clone)]
pub struct App {
    /// The tenant's database.
    pub db: Db,
    /// The effective configuration at the start.
    pub config: Arc<BrokerConfig>,
    /// The part of the configuration that can change while the broker runs.
    pub runtime_config: RuntimeConfig,
    /// Replaces the changeable part of the configuration.
    pub reloader: Reloader,
    /// The cache of recently authenticated callers.
    pub auth: auth::Cache,
    /// The failed authentications of each address.
    pub failed_attempts: auth::FailedAttempts,
    /// Counters and histograms behind `/metrics`.
    pub metrics: Arc<Metrics>,
    /// The certificate of the tenant's listener; `None` for plain HTTP.
    pub tls: Option<Tls>,
    /// Readiness, as `/readyz` answers it.
    pub health: Arc<Health>,
    /// The background jobs, which writes wake.
    pub jobs: Schedule,
    /// The open WebSockets.
    pub live: WebSockets,
    /// The HTTP client, key and schedule of webhooks.
    pub webhooks: Webhooks,
}
