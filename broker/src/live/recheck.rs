//! PAKs that die elsewhere: another broker of the tenant, or a command, rotates or deletes, and this process is not told.
//!
//! Whoever authenticates here sees the schema's epoch of credentials, which rises with every PAK that dies: when it has,
//! all open sockets are looked up, together, in one statement. A heartbeat over a socket compares the PAK's hash in its own
//! statement. And a socket of which neither has said anything for a minute is looked up with the others like it. While
//! nobody is connected nothing runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::registry::{Ending, Peer};
use crate::app::App;
use crate::auth::Principal;
use crate::db::DbError;
use crate::live::Whose;
use crate::store::credentials;

/// How often it is looked, in memory alone, whether a PAK may have died.
const LOOK: Duration = Duration::from_secs(1);
/// A PAK confirmed this recently is not looked up again without a reason; jittered by a fifth either way, so that a
/// thousand brokers do not look together.
const FRESH: Duration = Duration::from_secs(60);

/// Looks for ever.
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

/// Ends those whose PAK nobody holds.
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

/// Which of these hashes nobody holds, by their position, in order.
async fn dead(app: &App, hashes: Vec<String>) -> Result<Vec<usize>, DbError> {
    app.db.run(move |db| credentials::unheld(db, &hashes)).await
}
