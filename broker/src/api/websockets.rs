//! WebSocket routes: authorisation and upgrade. An open socket is served by [`crate::websocket`].
//!
//! The checks come in the same order as for other operations: authentication (401), path (400), permission (403); then
//! the upgrade itself (400) and room for the socket (503). The routes are not in the OpenAPI document.

use axum::Router;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Extension, RawPathParams, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use uuid::Uuid;

use super::{audit, authorization, failed_authentication};
use crate::app::App;
use crate::auth::{self, ClientAddress, Principal};
use crate::db::Conn;
use crate::error::Error;
use crate::pak::PakHash;
use crate::store::stacks;
use crate::websocket::connection_permit::{PeerConnection, SocketPermit};
use crate::websocket::outbound_queue::QueueOwner;
use crate::websocket::socket::{self, SocketClient};

/// Largest frame of an agent, in bytes: log lines and events are far smaller, and a health summary fits.
const AGENT_FRAME: usize = 1024 * 1024;
/// Largest frame of a subscriber, in bytes; subscribers' frames are ignored.
const SUBSCRIBER_FRAME: usize = 16 * 1024;
/// Size of a socket's read and write buffers, in bytes; small because both live as long as the socket.
const BUFFER: usize = 8 * 1024;

/// Prefix of the subprotocol that carries a PAK, for clients that cannot set headers. It is never echoed.
const PAK_PROTOCOL: &str = "brokkr.pak.";
/// Subprotocol that is selected when the client offers it.
const PROTOCOL: &str = "brokkr.v1";

/// Returns the subscribers' routes, relative to `/api/v1`.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/stacks/{id}/live", get(stack))
        .route("/fleet/live", get(fleet))
}

/// Returns the agents' route, relative to `/internal`.
pub(super) fn agent_route() -> Router<App> {
    Router::new().route("/ws/agent", get(agent))
}

/// The request's upgrade, or the reason why the request is no upgrade.
type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

async fn agent(
    State(app): State<App>,
    place: Option<Extension<PeerConnection>>,
    headers: HeaderMap,
    uri: Uri,
    upgrade: Upgrade,
) -> Response {
    let credential = authorization(&headers);
    let admitted = admit(
        &app,
        client(place.as_ref()),
        headers,
        uri,
        credential,
        |_, principal| match principal {
            Principal::Agent(id) => Ok(QueueOwner::Agent(id)),
            _ => Err(Error::forbidden(
                "agent_pak_required",
                "this channel is for agents",
            )),
        },
    );
    answer(admitted.await, |guest| {
        open(app, place, guest, upgrade, AGENT_FRAME)
    })
}

async fn stack(
    State(app): State<App>,
    place: Option<Extension<PeerConnection>>,
    params: Result<RawPathParams, RawPathParamsRejection>,
    headers: HeaderMap,
    uri: Uri,
    upgrade: Upgrade,
) -> Response {
    let id = stack_id(params);
    let credential = authorization(&headers).or_else(|| offered_pak(&headers));
    let admitted = admit(
        &app,
        client(place.as_ref()),
        headers,
        uri,
        credential,
        move |db, principal| {
            let id = id?;
            match principal {
                // The admin may also watch a stack that does not exist yet.
                Principal::Admin => Ok(QueueOwner::Stack(id)),
                Principal::Generator(generator)
                    if stacks::get(db, id)?.is_some_and(|s| s.generator_id == generator) =>
                {
                    Ok(QueueOwner::Stack(id))
                }
                _ => Err(Error::forbidden(
                    "stack_not_owned",
                    "this stack is not the caller's to watch",
                )),
            }
        },
    );
    answer(admitted.await, |guest| {
        open(app, place, guest, upgrade.map(select), SUBSCRIBER_FRAME)
    })
}

async fn fleet(
    State(app): State<App>,
    place: Option<Extension<PeerConnection>>,
    headers: HeaderMap,
    uri: Uri,
    upgrade: Upgrade,
) -> Response {
    let credential = authorization(&headers).or_else(|| offered_pak(&headers));
    let admitted = admit(
        &app,
        client(place.as_ref()),
        headers,
        uri,
        credential,
        |_, principal| authorization::admin(principal).map(|()| QueueOwner::Fleet),
    );
    answer(admitted.await, |guest| {
        open(app, place, guest, upgrade.map(select), SUBSCRIBER_FRAME)
    })
}

fn client(place: Option<&Extension<PeerConnection>>) -> ClientAddress {
    failed_authentication::client(place.map(|Extension(place)| place))
}

/// Selects `PROTOCOL` if the client offers it, and no other subprotocol.
fn select(upgrade: WebSocketUpgrade) -> WebSocketUpgrade {
    upgrade.protocols([PROTOCOL])
}

fn authorization(headers: &HeaderMap) -> Option<Vec<u8>> {
    Some(headers.get(header::AUTHORIZATION)?.as_bytes().to_vec())
}

/// Returns the PAK in the first offered subprotocol that carries a PAK.
fn offered_pak(headers: &HeaderMap) -> Option<Vec<u8>> {
    headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(|offered| offered.trim().strip_prefix(PAK_PROTOCOL))
        .map(|pak| pak.as_bytes().to_vec())
}

fn stack_id(params: Result<RawPathParams, RawPathParamsRejection>) -> Result<Uuid, Error> {
    params
        .ok()
        .and_then(|params| {
            let (_, id) = params.iter().find(|(name, _)| *name == "id")?;
            Uuid::parse_str(id).ok()
        })
        .ok_or_else(|| Error::unreadable("`id` in the path is not a UUID"))
}

/// The authenticated caller with the permission or its refusal; the outer error is a failed authentication.
type Admitted = Result<(Principal, Result<SocketClient, Error>), Error>;

/// Opens the socket for a permitted caller; otherwise answers the error.
fn answer(admitted: Admitted, open: impl FnOnce(SocketClient) -> Response) -> Response {
    match admitted {
        Ok((principal, admitted)) => {
            let mut response = admitted.map_or_else(IntoResponse::into_response, open);
            // For the access log.
            response.extensions_mut().insert(principal);
            response
        }
        Err(error) => error.into_response(),
    }
}

/// Authenticates and authorises the caller on one connection.
async fn admit<F>(
    app: &App,
    client: ClientAddress,
    headers: HeaderMap,
    uri: Uri,
    credential: Option<Vec<u8>>,
    authorise: F,
) -> Admitted
where
    F: FnOnce(&mut Conn, Principal) -> Result<QueueOwner, Error> + Send + 'static,
{
    let Some(credential) = credential else {
        return Err(Error::unauthorized());
    };
    let turn = failed_authentication::wait_for_turn(app, client, &credential).await?;
    // Read before the look-up of the PAK: see `socket::serve`.
    let deaths = app.live.deaths();
    let broker = app.clone();
    app.db
        .run(move |db| {
            let found: Option<(PakHash, Principal)> = match auth::pak_hash(&credential) {
                Some(hash) => auth::resolve(&broker.auth, db, &hash)?.map(|who| (hash, who)),
                None => None,
            };
            drop(turn);
            let Some((hash, principal)) = found else {
                audit::refused_pak(db, uri.path(), &headers);
                return Err(failed_authentication::refuse(&broker, client));
            };
            let admitted = authorise(db, principal).map(|whose| SocketClient {
                whose,
                hash,
                deaths,
            });
            Ok((principal, admitted))
        })
        .await
}

/// Upgrades the request, or answers why not.
fn open(
    app: App,
    place: Option<Extension<PeerConnection>>,
    guest: SocketClient,
    upgrade: Upgrade,
    largest: usize,
) -> Response {
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => {
            let message = rejection.body_text();
            return Error::bad_request("websocket_required", message).into_response();
        }
    };
    let seat = match seat(&app, place) {
        Ok(seat) => seat,
        Err(error) => return error.into_response(),
    };
    upgrade
        .read_buffer_size(BUFFER)
        .write_buffer_size(BUFFER)
        .max_frame_size(largest)
        .max_message_size(largest)
        .on_upgrade(move |socket| socket::serve(app, socket, guest, seat))
}

fn seat(app: &App, place: Option<Extension<PeerConnection>>) -> Result<SocketPermit, Error> {
    let refused = |code, message: &'static str| {
        Error::new(StatusCode::SERVICE_UNAVAILABLE, code, message).retry_after(1)
    };
    if app.live.is_draining() {
        return Err(refused("draining", "this instance is about to end"));
    }
    place
        .and_then(|Extension(place)| place.keep())
        .ok_or_else(|| refused("too_many_sockets", "too many WebSockets are open"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn offered(values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(
                header::SEC_WEBSOCKET_PROTOCOL,
                HeaderValue::from_str(value).unwrap(),
            );
        }
        offered_pak(&headers).map(|pak| String::from_utf8(pak).unwrap())
    }

    #[test]
    fn a_pak_is_found_among_the_offered_subprotocols() {
        let pak = Some("b_s_l".to_owned());
        assert_eq!(offered(&["brokkr.v1, brokkr.pak.b_s_l"]), pak);
        assert_eq!(offered(&["brokkr.pak.b_s_l,brokkr.pak.other"]), pak);
        assert_eq!(offered(&["brokkr.v1", "brokkr.pak.b_s_l"]), pak);
        assert_eq!(offered(&["brokkr.v1"]), None);
        assert_eq!(offered(&[]), None);
    }
}
