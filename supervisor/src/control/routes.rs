//! Requests and answers of the control API.

use super::api_error::ApiError;
use super::peer_credentials::Peer;
use super::{App, logs, metrics, pak, stream};
use crate::fleet::handle::{Order, RequestError, Selection};
use crate::status::{self, Snapshot};
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use brokkr_tenant::TenantName;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};

/// Largest body in bytes: an order that names a few thousand tenants.
const BODY: usize = 256 << 10;
/// Time within which a request's body must arrive.
const BODY_TIME: Duration = Duration::from_secs(10);

/// Builds the router of the control API.
pub(super) fn control(app: App) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/logs", get(logs::lines))
        .route("/v1/orders", post(orders))
        .route("/v1/reload", post(reload))
        .route("/v1/pak/{name}", get(admin_pak))
        .route(
            "/v1/tenants/{name}/rotate-credentials",
            post(rotate_credentials),
        )
        .route("/metrics", get(figures))
        .fallback(nothing)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY))
        .with_state(app)
}

pub(super) fn metrics_only(app: App) -> Router {
    Router::new()
        .route("/metrics", get(figures))
        .fallback(nothing)
        .method_not_allowed_fallback(wrong_method)
        .with_state(app)
}

/// Builds a router that answers 403 to every request.
pub(super) fn refused(why: String) -> Router {
    let answer = async move || ApiError::new(StatusCode::FORBIDDEN, why.as_str());
    Router::new().fallback(answer)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StatusQuery {
    tenant: Option<TenantName>,
    watch: Option<String>,
}

async fn status(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    query: Result<Query<StatusQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::bad(error.body_text()))?;
    let watching = match &query.watch {
        None => false,
        Some(value) => logs::flag(value)
            .ok_or_else(|| ApiError::bad(format!("watch={value} is not understood")))?,
    };
    let latest = one_tenant(&app.context.fleet.snapshot(), query.tenant.as_ref());
    if let (Some(name), true) = (&query.tenant, latest.tenants.is_empty()) {
        return Err(ApiError::no_tenant(name));
    }
    if !watching {
        return Ok(Json(latest).into_response());
    }
    let permit = app.stream()?;
    peer.patience().be_long();
    let body = watch(app.context.fleet.watch(), query.tenant, permit);
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// Returns the whole snapshot, or only the part about one tenant and its server.
fn one_tenant(snapshot: &Snapshot, name: Option<&TenantName>) -> Snapshot {
    let Some(name) = name else {
        return snapshot.clone();
    };
    let tenants = snapshot
        .tenants
        .iter()
        .filter(|tenant| tenant.name == name.as_str());
    let tenants: Vec<_> = tenants.cloned().collect();
    let uses = |id: &String| {
        tenants
            .iter()
            .any(|tenant| tenant.server.as_ref() == Some(id))
    };
    let servers = snapshot
        .servers
        .iter()
        .filter(|server| uses(&server.id))
        .cloned()
        .collect();
    Snapshot {
        tenants,
        servers,
        ..snapshot.clone()
    }
}

/// The time after which a watched status is sent again although only its ages have changed.
const AGES: Duration = Duration::from_secs(1);

/// Streams one snapshot per line: the latest, whenever it has changed and the client has read the last, and each second
/// while a tenant has an age.
fn watch(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    name: Option<TenantName>,
    permit: OwnedSemaphorePermit,
) -> Body {
    let (mut feed, body) = stream::channel(permit);
    tokio::spawn(async move {
        let mut last = None;
        loop {
            let snapshot = snapshots.borrow_and_update().clone();
            let shown = Snapshot {
                taken: None,
                ..one_tenant(&snapshot, name.as_ref())
            };
            if last.as_ref() != Some(&shown) {
                // A snapshot always becomes JSON, because it holds only numbers and text with string keys.
                let mut line = serde_json::to_vec(&shown.aged()).unwrap_or_default();
                line.push(b'\n');
                last = Some(shown);
                if !feed.send(Bytes::from(line)).await {
                    break;
                }
            }
            let change = tokio::time::timeout(AGES, snapshots.changed());
            match feed.unless_gone(change).await {
                Some(Ok(Ok(()))) => {}
                // The ages have changed, and nothing else.
                Some(Err(_)) => {
                    last = last.filter(|shown: &Snapshot| !shown.has_ages());
                    continue;
                }
                // The fleet has ended, or the client has gone.
                Some(Ok(Err(_))) | None => break,
            }
        }
    });
    body
}

/// Body of `POST /v1/orders`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OrderRequest {
    /// Tenants that the order is for.
    pub(crate) selection: Selection,
    /// Order to carry out.
    pub(crate) order: Order,
    /// True when a restart goes on after a tenant that could not be restarted.
    #[serde(default)]
    pub(crate) keep_going: bool,
}

async fn orders(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    request: Body,
) -> Result<Response, ApiError> {
    let OrderRequest {
        selection,
        order,
        keep_going,
    } = body(request).await?;
    let verb = match order {
        Order::Start => "start",
        Order::Stop => "stop",
        Order::Restart => "restart",
    };
    match &selection {
        Selection::All => tracing::info!("{peer} asks to {verb} every tenant"),
        Selection::Names(names) => {
            for tenant in names {
                tracing::info!(tenant = tenant.as_str(), "{peer} asks to {verb} it");
            }
        }
    }
    // Send the order from a task of its own, so that it is carried out even if the client goes away.
    let fleet = app.context.fleet.clone();
    let settled =
        tokio::spawn(async move { fleet.order(selection, order, keep_going).await }).await;
    Ok(Json(settled.unwrap_or(Err(RequestError::Stopping))?).into_response())
}

/// Body of `POST /v1/reload`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ReloadRequest {
    /// True to carry out removals that were held because there were too many of them.
    pub(crate) confirm_removals: bool,
}

async fn reload(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    request: Body,
) -> Result<Response, ApiError> {
    let ReloadRequest { confirm_removals } = body(request).await?;
    tracing::info!(confirm_removals, "{peer} asks for a reload");
    let fleet = app.context.fleet.clone();
    let settled = tokio::spawn(async move { fleet.reload(confirm_removals).await }).await;
    Ok(Json(settled.unwrap_or(Err(RequestError::Stopping))?).into_response())
}

/// Parses a JSON body, regardless of its declared content type.
async fn body<T: DeserializeOwned>(request: Body) -> Result<T, ApiError> {
    let reading = tokio::time::timeout(BODY_TIME, axum::body::to_bytes(request, BODY)).await;
    let bytes = reading
        .map_err(|_| ApiError::bad("the body took too long"))?
        .map_err(ApiError::bad)?;
    serde_json::from_slice(&bytes).map_err(ApiError::bad)
}

/// Parses any body, and panics when an accepted order does not read back equal. For fuzzing.
pub(super) fn check_parsing(body: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<OrderRequest>(body) {
        let again = serde_json::to_vec(&request)
            .and_then(|json| serde_json::from_slice::<OrderRequest>(&json));
        let again = again.map(|again| (again.selection, again.order, again.keep_going));
        let request = (request.selection, request.order, request.keep_going);
        assert!(again.is_ok_and(|again| again == request), "another order");
    }
    let _ = serde_json::from_slice::<ReloadRequest>(body);
}

async fn admin_pak(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let name = TenantName::parse(&name).map_err(ApiError::bad)?;
    tracing::info!(tenant = name.as_str(), "{peer} asks for the admin PAK");
    let state_dir = app.context.state_dir.clone();
    let tenant = name.clone();
    let read = tokio::task::spawn_blocking(move || pak::read(&state_dir, &tenant)).await;
    let read = read.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    let snapshot = app.context.fleet.snapshot();
    let status = snapshot.tenants.iter().find(|t| t.name == name.as_str());
    let known = status.is_some();
    match read {
        Ok(None) if !known => Err(ApiError::no_tenant(&name)),
        // The tenant's database may be gone or belong to another tenant by now, so the client is told instead of given
        // the PAK.
        _ if !known => {
            let folder = app.context.state_dir.join("tenants").join(name.as_str());
            Err(ApiError::not_found(format!(
                "there is no tenant {name} any more; what it left is in {}, its last admin PAK in admin.pak there",
                folder.display()
            )))
        }
        Ok(Some(pak)) => {
            Ok(([(CONTENT_TYPE, "text/plain; charset=utf-8")], pak + "\n").into_response())
        }
        Ok(None) if status.is_some_and(|status| status.state == status::State::Ready) => {
            let named = |tenant: &str| snapshot.tenants.iter().any(|t| t.name == tenant);
            let left = pak::left_by_others(&app.context.state_dir, named);
            Err(ApiError::not_found(pak::is_elsewhere(&name, &left)))
        }
        Ok(None) => Err(ApiError::not_found(format!(
            "{name} has no admin PAK yet: it is written when the tenant first becomes ready; if it is lost, \
             `brokkr-broker rotate admin` with the tenant's file makes a new one"
        ))),
        Err(error) => Err(ApiError::internal(format!(
            "the admin PAK of {name} cannot be read: {error}"
        ))),
    }
}

async fn rotate_credentials(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let name = TenantName::parse(&name).map_err(ApiError::bad)?;
    tracing::info!(
        tenant = name.as_str(),
        "{peer} asks for a new password of its role"
    );
    let fleet = app.context.fleet.clone();
    // A task of its own, so that it is finished even if the client goes away.
    let renewed = tokio::spawn(async move { fleet.rotate_credentials(name).await }).await;
    match renewed.unwrap_or(Err(RequestError::Stopping))? {
        Ok(role) => Ok(Json(role).into_response()),
        Err(problem) => Err(ApiError::new(StatusCode::CONFLICT, problem)),
    }
}

async fn figures(State(app): State<App>) -> Result<impl IntoResponse, ApiError> {
    let text = metrics::render(&app.context.fleet.snapshot(), &app.context.logs)
        .map_err(|error| ApiError::internal(format!("the metrics cannot be written: {error}")))?;
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    Ok(([(CONTENT_TYPE, kind)], text))
}

async fn nothing() -> ApiError {
    ApiError::not_found("there is nothing here")
}

async fn wrong_method() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "not with this method")
}
