//! Which connections that a server shows under a tenant's name are of none of its instances.

use super::private::Client;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// For one answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// What `GET /pool` says of connections. A broker that does not name its backends is older than the word.
#[derive(Deserialize)]
struct Pool {
    held: u32,
    backends: Option<BTreeSet<i32>>,
}

/// How many of `shown` none of the instances at these private sockets has. The question comes after what was shown, so
/// whatever one of them has opened since, or does not know yet to be open, counts as nobody's: too many rather than too few.
pub(super) async fn count(paths: Vec<PathBuf>, mut shown: BTreeSet<i32>) -> u32 {
    let mut nameless = 0;
    for path in paths {
        // None that is starting yet, ending or hung has to answer.
        let answer = Client::new(path).get("/pool", PATIENCE).await;
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
