//! PAKs that die elsewhere: another broker of the tenant, or a command, rotates or deletes, and this process is not told.
//!
//! A heartbeat over a socket compares the PAK's hash in its own statement. All other sockets are looked up together, in one
//! statement a minute for any number of them; none while nobody is connected.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::registry::{Ending, Peer};
use crate::app::App;
use crate::auth::Principal;
use crate::live::Whose;
use crate::store::credentials;

/// Between two looks; jittered by a fifth either way, so that a thousand brokers do not look together.
const EVERY: Duration = Duration::from_secs(60);
/// A PAK confirmed this recently is not looked up again.
const FRESH: Duration = Duration::from_secs(45);

/// Looks for ever.
pub(super) async fn keep(app: App) {
    loop {
        let mut peers = tokio::select! {
            () = sleep(EVERY.mul_f64(0.8 + 0.4 * fastrand::f64())) => {
                let now = Instant::now();
                let mut peers = app.live.0.registry.all();
                peers.retain(|peer| now.duration_since(peer.confirmed()) >= FRESH);
                peers
            }
            () = app.live.0.doubted.notified() => app.live.0.registry.all(),
        };
        peers.retain(|peer| !peer.is_revoked());
        if peers.is_empty() {
            continue;
        }
        let hashes = peers
            .iter()
            .map(|peer| peer.hash.as_str().to_owned())
            .collect();
        match dead(&app, hashes).await {
            Ok(dead) => {
                for (index, peer) in peers.iter().enumerate() {
                    if dead.contains(&index) {
                        revoked(&app, peer);
                    } else {
                        peer.confirm();
                    }
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the PAKs of open sockets could not be looked up")
            }
        }
    }
}

/// Whether a socket's PAK is alive now. What cannot be looked up is not.
pub(super) async fn is_alive(app: &App, peer: &Peer) -> bool {
    let hash = peer.hash.as_str().to_owned();
    matches!(dead(app, vec![hash]).await, Ok(dead) if dead.is_empty())
}

/// Ends a socket whose PAK was found dead, and forgets who it was of.
pub(super) fn revoked(app: &App, peer: &Peer) {
    peer.end(Ending::Revoked);
    if let Whose::Agent(id) = peer.whose {
        app.auth.forget(Principal::Agent(id));
        tracing::info!(agent = %id, "a socket was closed: its PAK is no longer valid");
    }
}

/// Which of these hashes nobody holds.
async fn dead(app: &App, hashes: Vec<String>) -> Result<Vec<usize>, crate::db::DbError> {
    app.db.run(move |db| credentials::unheld(db, &hashes)).await
}
