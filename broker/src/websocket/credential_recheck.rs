//! Closes sockets whose PAK was revoked by another process: another broker of the tenant, or a command.
//!
//! Three checks find such PAKs. Every authentication reads the schema's epoch of credentials, which rises with every
//! revoked PAK: when it has risen, one statement looks up all open sockets. A heartbeat over a socket compares the
//! PAK's hash in its own statement. A socket confirmed by neither for a minute is looked up together with the others
//! like it. Without open sockets nothing runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::outbound_queue::QueueOwner;
use super::registry::{CloseReason, Peer};
use crate::app::App;
use crate::auth::Principal;
use crate::db::DbError;
use crate::store::credentials;

/// Time between two checks, in memory alone, for a possibly revoked PAK.
const LOOK: Duration = Duration::from_secs(1);
/// Time for which a confirmed PAK needs no look-up; jittered by a fifth either way, so that a thousand brokers do not
/// look together.
const FRESH: Duration = Duration::from_secs(60);

/// Checks for ever.
pub(super) async fn keep(app: App) {
    let live = &app.live.0;
    let mut epoch = None;
    let mut next = Instant::now() + jittered();
    loop {
        if live.registry.is_empty() {
            live.joined.notified().await;
            continue;
        }
        let told = tokio::select! {
            () = sleep(LOOK) => false,
            () = live.doubted.notified() => true,
        };
        let seen = app.auth.epoch();
        let risen = seen.is_some() && seen != epoch;
        if !told && !risen && Instant::now() < next {
            continue;
        }
        let mut peers = live.registry.all();
        peers.retain(|peer| !peer.is_revoked());
        if !told && !risen {
            peers.retain(|peer| peer.confirmed().elapsed() >= FRESH);
        }
        match look_up(&app, &peers).await {
            Ok(()) => epoch = seen.or(epoch),
            Err(error) => {
                tracing::debug!(%error, "the PAKs of open sockets could not be looked up");
            }
        }
        next = Instant::now() + jittered();
    }
}

fn jittered() -> Duration {
    FRESH.mul_f64(0.8 + 0.4 * fastrand::f64())
}

/// Closes the sockets whose PAK is revoked, and confirms the others.
async fn look_up(app: &App, peers: &[Arc<Peer>]) -> Result<(), DbError> {
    if peers.is_empty() {
        return Ok(());
    }
    let hashes = peers.iter().map(|peer| peer.hash.as_str().to_owned());
    let dead = dead(app, hashes.collect()).await?;
    for (index, peer) in peers.iter().enumerate() {
        if dead.binary_search(&index).is_ok() {
            revoked(app, peer);
        } else {
            peer.confirm();
        }
    }
    Ok(())
}

/// Returns true when a socket's PAK is valid now; false also when the look-up fails.
pub(super) async fn is_alive(app: &App, peer: &Peer) -> bool {
    let hash = peer.hash.as_str().to_owned();
    matches!(dead(app, vec![hash]).await, Ok(dead) if dead.is_empty())
}

/// Closes a socket whose PAK is revoked, and removes its agent from the authentication cache.
pub(super) fn revoked(app: &App, peer: &Peer) {
    peer.end(CloseReason::Revoked);
    if let QueueOwner::Agent(id) = peer.whose {
        app.auth.forget(Principal::Agent(id));
        tracing::info!(agent = %id, "a socket was closed: its PAK is no longer valid");
    }
}

/// Returns the indexes of the hashes that no principal holds, in ascending order.
async fn dead(app: &App, hashes: Vec<String>) -> Result<Vec<usize>, DbError> {
    app.db.run(move |db| credentials::unheld(db, &hashes)).await
}
