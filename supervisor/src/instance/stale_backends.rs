//! Counts a tenant's connections, as a server shows them, that belong to none of its instances.

use super::probe_client::ProbeClient;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// The longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The connections in `GET /pool`. An older broker does not list its backends.
#[derive(Deserialize)]
struct Pool {
    held: u32,
    backends: Option<BTreeSet<i32>>,
}

/// Counts the backends in `shown` that no instance at these private sockets claims. Instances are asked after `shown`
/// was read, so connections opened or closed since make the count too high rather than too low.
pub(super) async fn count(paths: Vec<PathBuf>, mut shown: BTreeSet<i32>) -> u32 {
    let mut nameless = 0;
    for path in paths {
        // An instance that starts, ends or hangs may not answer.
        let answer = ProbeClient::new(path).get("/pool", PATIENCE).await;
        let answer = answer.filter(|(status, _)| status.is_success());
        let pool = answer.and_then(|(_, body)| serde_json::from_str::<Pool>(&body).ok());
        match pool {
            Some(Pool {
                backends: Some(backends),
                ..
            }) => shown.retain(|backend| !backends.contains(backend)),
            Some(Pool { held, .. }) => nameless += held,
            None => {}
        }
    }
    (shown.len() as u32).saturating_sub(nameless)
}
