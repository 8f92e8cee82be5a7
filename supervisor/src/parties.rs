//! What a tenant's configuration means for the judge, as `run` and `check` both see it.

use crate::budget::{Seat, Wanted};
use crate::config::TenantConfig;
use crate::servers::ServersView;

/// What this configuration takes for itself alone.
pub(crate) fn seat(config: &TenantConfig, view: &ServersView) -> Seat {
    let broker = config.broker();
    let url = &broker.database.url;
    let place = view.endpoint(url).place();
    Seat {
        database: place.map(|place| (place.server.clone(), place.database)),
        // It is one word of a line of STATE_DIR/admitted.
        spelled: format!("{:?}:{}/{}", url.host(), url.port(), url.dbname())
            .replace(char::is_whitespace, "%20"),
        schema: broker.database.schema.clone(),
        listen: broker.http.listen.clone(),
    }
}

/// What it wants of the budget.
pub(crate) fn wanted(config: &TenantConfig, view: &ServersView) -> Wanted {
    let database = &config.broker().database;
    Wanted::Pool {
        connections: database.pool_size.get(),
        at: view.endpoint(&database.url).place().cloned(),
    }
}

/// Its priority; beyond what anybody writes it makes no difference.
pub(crate) fn priority(config: &TenantConfig) -> i32 {
    let priority = config.broker().supervision.priority;
    priority.clamp(i32::MIN.into(), i32::MAX.into()) as i32
}
