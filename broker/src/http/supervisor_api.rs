//! The private socket: the supervisor's probes and orders to this instance.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use brokkr_tenant::TlsPair;
use brokkr_tenant::instance_protocol::{
    InstancePhase, Maps, PoolState, SetPassword, SetPool, SetServer,
};

use super::public::DroppedLines;
use super::{maps, public};
use crate::app::App;
use crate::db::Figures;
use crate::sandbox;

/// Returns the routes of the private socket.
pub(super) fn router(app: App, dropped: DroppedLines) -> Router {
    Router::new()
        .route("/healthz", get(public::healthz))
        .route("/readyz", get(readyz))
        .route(
            "/metrics",
            get(move |State(app): State<App>| async move { public::render(&app, &dropped) }),
        )
        .route("/pool", get(pool).put(set_pool))
        .route("/server", put(set_server))
        .route("/password", put(set_password))
        .route("/tls", put(set_tls))
        .route("/maps", get(deleted_maps))
        .route("/isolation", get(isolation))
        .with_state(app)
}

fn pool_state(app: &App, figures: Figures) -> Json<PoolState> {
    let phase = match (app.health.is_draining(), app.health.has_started()) {
        (true, _) => InstancePhase::Stopping,
        (false, true) => InstancePhase::Serving,
        (false, false) => InstancePhase::Starting,
    };
    Json(PoolState {
        connections: figures.connections,
        held: figures.held,
        working: figures.working,
        backends: Some(app.db.backends()),
        phase,
    })
}

async fn readyz(State(app): State<App>) -> Response {
    app.health.heard();
    match app.health.ready(&app.db).await {
        Ok(()) => "Ready".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason).into_response(),
    }
}

async fn pool(State(app): State<App>) -> Json<PoolState> {
    pool_state(&app, app.db.figures())
}

async fn deleted_maps() -> Response {
    match tokio::task::spawn_blocking(maps::deleted_files).await {
        Ok(Some(deleted)) => Json(Maps { deleted }).into_response(),
        _ => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "/proc/self/maps cannot be read",
        )
            .into_response(),
    }
}

async fn isolation() -> Response {
    match tokio::task::spawn_blocking(sandbox::state).await {
        Ok(Some(state)) => Json(state).into_response(),
        _ => (StatusCode::NOT_FOUND, "this broker is in no sandbox").into_response(),
    }
}

// Bodies are parsed without regard to their content type, because the only client sends JSON.

async fn set_pool(State(app): State<App>, body: Bytes) -> Response {
    let wanted: SetPool = match serde_json::from_slice(&body) {
        Ok(wanted) => wanted,
        Err(error) => return bad_request(&error),
    };
    if wanted.connections == 0 {
        return (StatusCode::BAD_REQUEST, "connections must be at least 1").into_response();
    }
    let figures = app.db.set_cap(wanted.connections).await;
    tracing::info!(
        connections = figures.connections,
        held = figures.held,
        "most connections changed"
    );
    pool_state(&app, figures).into_response()
}

async fn set_server(State(app): State<App>, body: Bytes) -> Response {
    let verdict: SetServer = match serde_json::from_slice(&body) {
        Ok(verdict) => verdict,
        Err(error) => return bad_request(&error),
    };
    let away = verdict.outage();
    app.health
        .server(away.clone().map_or(Ok(()), |away| Err(away.reason)));
    app.db.set_away(away);
    StatusCode::NO_CONTENT.into_response()
}

async fn set_password(State(app): State<App>, body: Bytes) -> Response {
    match serde_json::from_slice::<SetPassword>(&body) {
        Ok(wanted) => {
            app.db.set_password(wanted.into_password());
            tracing::info!("new password for new connections");
            StatusCode::NO_CONTENT.into_response()
        }
        // The error could quote a part of the body.
        Err(_) => (StatusCode::BAD_REQUEST, "not a password").into_response(),
    }
}

async fn set_tls(State(app): State<App>, body: Bytes) -> Response {
    let (tls, pair) = match (&app.tls, serde_json::from_slice::<TlsPair>(&body)) {
        (Some(tls), Ok(pair)) => (tls, pair),
        (None, _) => return (StatusCode::NOT_FOUND, "this broker serves no TLS").into_response(),
        // The error's own text may quote the key.
        (_, Err(_)) => return (StatusCode::BAD_REQUEST, "not a TLS pair").into_response(),
    };
    match tls.replace(&pair) {
        Ok(()) => {
            tracing::info!(sha256 = %pair.fingerprint(), "new handshakes get another TLS certificate");
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => {
            tracing::error!(%error, "the TLS certificate is not replaced");
            (StatusCode::UNPROCESSABLE_ENTITY, error.to_string()).into_response()
        }
    }
}

fn bad_request(error: &serde_json::Error) -> Response {
    (StatusCode::BAD_REQUEST, error.to_string()).into_response()
}
