//! Counts a tenant's connections, as a server shows them, that belong to none of its instances.

use super::probe_client::ProbeClient;
use brokkr_tenant::instance_protocol::PoolState;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// The longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Counts the backends in `shown` that no instance at these private sockets claims. Instances are asked after `shown`
/// was read, so connections opened or closed since make the count too high rather than too low.
pub(super) async fn count(paths: Vec<PathBuf>, mut shown: BTreeSet<i32>) -> u32 {
    let mut nameless = 0;
    for path in paths {
        // An instance that starts, ends or hangs may not answer.
        let pool: Option<PoolState> = ProbeClient::new(path).get_json("/pool", PATIENCE).await;
        let Some(pool) = pool else { continue };
        match pool.backends {
            Some(backends) => shown.retain(|backend| !backends.contains(backend)),
            None => nameless += pool.held,
        }
    }
    (shown.len() as u32).saturating_sub(nameless)
}
