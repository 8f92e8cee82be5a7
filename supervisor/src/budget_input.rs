//! Translates a tenant's configuration into the judge's terms, for `run` and `check`.

use crate::budget::{SchemaAndAddress, TenantDemand};
use crate::config::TenantConfig;
use crate::servers::ServersView;

/// Returns the database, schema and address that this configuration needs exclusively.
pub(crate) fn schema_and_address(config: &TenantConfig, view: &ServersView) -> SchemaAndAddress {
    let broker = config.broker();
    let url = &broker.database.url;
    let place = view.endpoint(url).place();
    SchemaAndAddress {
        database: place.map(|place| (place.server.clone(), place.database)),
        // The text is one word in a line of STATE_DIR/admitted.
        spelled: format!("{:?}:{}/{}", url.host(), url.port(), url.dbname())
            .replace(char::is_whitespace, "%20"),
        schema: broker.database.schema.clone(),
        listen: broker.http.listen.clone(),
    }
}

/// Returns the tenant's wish for the budget.
pub(crate) fn wanted(config: &TenantConfig, view: &ServersView) -> TenantDemand {
    let database = &config.broker().database;
    TenantDemand::Pool {
        connections: database.pool_size.get(),
        at: view.endpoint(&database.url).place().cloned(),
    }
}

/// Returns the tenant's priority, clamped to the range of `i32`.
pub(crate) fn priority(config: &TenantConfig) -> i32 {
    let priority = config.broker().supervision.priority;
    priority.clamp(i32::MIN.into(), i32::MAX.into()) as i32
}
