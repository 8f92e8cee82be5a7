//! The answers to callers without a valid PAK: 401, and 429 after many failures from one address.

use tokio::sync::OwnedSemaphorePermit;

use crate::app::App;
use crate::auth::{self, ClientAddress};
use crate::error::Error;
use crate::websocket::connection_permit::PeerConnection;

/// Returns the address of a connection's client.
pub(super) fn client(connection: Option<&PeerConnection>) -> ClientAddress {
    // Every request of a listener has its connection. Without it the address counts as shared by many clients.
    connection.map_or(ClientAddress::Local, PeerConnection::client)
}

/// Lets a caller pass whose address has not failed often, or whose PAK has been valid here. Other callers wait for a
/// turn, which the look-up of the PAK must hold.
pub(super) async fn wait_for_turn(
    app: &App,
    client: ClientAddress,
    authorization: &[u8],
) -> Result<Option<OwnedSemaphorePermit>, Error> {
    if app.failed_attempts.limited(client).is_none() {
        return Ok(None);
    }
    let turn = match auth::pak_hash(authorization) {
        Some(hash) if app.auth.has_held(&hash) => return Ok(None),
        Some(_) => app.failed_attempts.turn().await,
        None => None,
    };
    turn.map(Some).ok_or_else(|| refuse(app, client))
}

/// Counts a failure, and returns its answer.
pub(super) fn refuse(app: &App, client: ClientAddress) -> Error {
    let limited = app.failed_attempts.record(client);
    app.metrics.authentication_refused(limited.is_some());
    match limited {
        None => Error::unauthorized(),
        // Rounded up, because a client that returns too early is refused again.
        Some(rest) => Error::too_many_failures(rest.as_secs() + 1),
    }
}
