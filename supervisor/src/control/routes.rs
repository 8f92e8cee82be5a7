//! Requests and their answers.

use super::peer::Peer;
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

/// Largest body: an order that names a few thousand tenants.
const BODY: usize = 256 << 10;
/// A request's body must be here by then.
const BODY_TIME: Duration = Duration::from_secs(10);

/// The control API.
pub(super) fn control(app: App) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/logs", get(logs::lines))
        .route("/v1/orders", post(orders))
        .route("/v1/reload", post(reload))
        .route("/v1/pak/{name}", get(admin_pak))
        .route("/metrics", get(figures))
        .fallback(nothing)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY))
        .with_state(app)
}

/// `/metrics` and nothing else.
pub(super) fn metrics_only(app: App) -> Router {
    Router::new()
        .route("/metrics", get(figures))
        .fallback(nothing)
        .method_not_allowed_fallback(wrong_method)
        .with_state(app)
}

/// 403 to everything.
pub(super) fn refused(why: String) -> Router {
    let answer = async move || Problem {
        status: StatusCode::FORBIDDEN,
        error: why.clone(),
    };
    Router::new().fallback(answer)
}

/// An error as a client sees it.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    error: String,
}

impl Problem {
    pub(super) fn bad(error: String) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            error,
        }
    }

    pub(super) fn internal(error: String) -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            error,
        }
    }

    pub(super) fn no_tenant(name: &TenantName) -> Self {
        let error = RequestError::UnknownTenant(name.clone()).to_string();
        Self {
            status: StatusCode::NOT_FOUND,
            error,
        }
    }
}

impl From<RequestError> for Problem {
    fn from(error: RequestError) -> Self {
        let status = match error {
            RequestError::UnknownTenant(_) => StatusCode::NOT_FOUND,
            RequestError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self {
            status,
            error: error.to_string(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body {
            error: String,
        }
        (self.status, Json(Body { error: self.error })).into_response()
    }
}

impl App {
    /// A place among the streams.
    pub(super) fn stream(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.streams)
            .try_acquire_owned()
            .map_err(|_| Problem {
                status: StatusCode::SERVICE_UNAVAILABLE,
                error: format!("{} streams are open already", super::STREAMS),
            })
    }
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
) -> Result<Response, Problem> {
    let Query(query) = query.map_err(|error| Problem::bad(error.body_text()))?;
    let watching = match &query.watch {
        None => false,
        Some(value) => logs::flag(value)
            .ok_or_else(|| Problem::bad(format!("watch={value} is not understood")))?,
    };
    let latest = one_tenant(&app.context.fleet.snapshot(), query.tenant.as_ref());
    if let (Some(name), true) = (&query.tenant, latest.tenants.is_empty()) {
        return Err(Problem::no_tenant(name));
    }
    if !watching {
        return Ok(Json(latest).into_response());
    }
    let permit = app.stream()?;
    peer.patience().be_long();
    let body = watch(app.context.fleet.watch(), query.tenant, permit);
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// The snapshot, or the part of it that is about one tenant and its server.
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

/// A snapshot a line: the latest whenever it has changed and the last one has been read.
fn watch(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    name: Option<TenantName>,
    permit: OwnedSemaphorePermit,
) -> Body {
    let (mut feed, body) = stream::channel(permit);
    tokio::spawn(async move {
        let mut last = Bytes::new();
        loop {
            let snapshot = snapshots.borrow_and_update().clone();
            // A snapshot is numbers and text with string keys: it has no way not to become JSON.
            let mut line =
                serde_json::to_vec(&one_tenant(&snapshot, name.as_ref())).unwrap_or_default();
            line.push(b'\n');
            if last != line {
                last = Bytes::from(line);
                if !feed.send(last.clone()).await {
                    break;
                }
            }
            match feed.unless_gone(snapshots.changed()).await {
                Some(Ok(())) => {}
                // The fleet has ended, or nobody watches any more.
                Some(Err(_)) | None => break,
            }
        }
    });
    body
}

/// What `POST /v1/orders` takes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Orders {
    /// For whom.
    pub(crate) selection: Selection,
    /// What.
    pub(crate) order: Order,
    /// A restart goes on after a tenant that could not be restarted.
    #[serde(default)]
    pub(crate) keep_going: bool,
}

async fn orders(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    request: Body,
) -> Result<Response, Problem> {
    let Orders {
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
    // Asked by a task of its own: a client that goes away has not taken its order back.
    let fleet = app.context.fleet.clone();
    let settled =
        tokio::spawn(async move { fleet.order(selection, order, keep_going).await }).await;
    Ok(Json(settled.unwrap_or(Err(RequestError::Stopping))?).into_response())
}

/// What `POST /v1/reload` takes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Reload {
    /// Carry out removals that were held because they were so many.
    pub(crate) confirm_removals: bool,
}

async fn reload(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    request: Body,
) -> Result<Response, Problem> {
    let Reload { confirm_removals } = body(request).await?;
    tracing::info!(confirm_removals, "{peer} asks for a reload");
    let fleet = app.context.fleet.clone();
    let settled = tokio::spawn(async move { fleet.reload(confirm_removals).await }).await;
    Ok(Json(settled.unwrap_or(Err(RequestError::Stopping))?).into_response())
}

/// A body of JSON, however its type is declared.
async fn body<T: DeserializeOwned>(request: Body) -> Result<T, Problem> {
    let reading = tokio::time::timeout(BODY_TIME, axum::body::to_bytes(request, BODY)).await;
    let bytes = reading
        .map_err(|_| Problem::bad("the body took too long".to_owned()))?
        .map_err(|error| Problem::bad(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| Problem::bad(error.to_string()))
}

async fn admin_pak(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let name = TenantName::parse(&name).map_err(|error| Problem::bad(error.to_string()))?;
    tracing::info!(tenant = name.as_str(), "{peer} asks for the admin PAK");
    let state_dir = app.context.state_dir.clone();
    let tenant = name.clone();
    let read = tokio::task::spawn_blocking(move || pak::read(&state_dir, &tenant)).await;
    let read = read.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    let snapshot = app.context.fleet.snapshot();
    let status = snapshot.tenants.iter().find(|t| t.name == name.as_str());
    let known = status.is_some();
    let none = |error| Problem {
        status: StatusCode::NOT_FOUND,
        error,
    };
    match read {
        Ok(None) if !known => Err(Problem::no_tenant(&name)),
        // Its database may be gone, or be another tenant's by now: whoever asks by this name should know.
        _ if !known => {
            let folder = app.context.state_dir.join("tenants").join(name.as_str());
            Err(none(format!(
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
            Err(none(pak::is_elsewhere(&name, &left)))
        }
        Ok(None) => Err(none(format!(
            "{name} has no admin PAK yet: it is written when the tenant first becomes ready; if it is lost, \
             `brokkr-broker rotate admin` with the tenant's file makes a new one"
        ))),
        Err(error) => Err(Problem::internal(format!(
            "the admin PAK of {name} cannot be read: {error}"
        ))),
    }
}

async fn figures(State(app): State<App>) -> Response {
    let text = metrics::render(&app.context.fleet.snapshot(), &app.context.logs);
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        text,
    )
        .into_response()
}

async fn nothing() -> Problem {
    Problem {
        status: StatusCode::NOT_FOUND,
        error: "there is nothing here".to_owned(),
    }
}

async fn wrong_method() -> Problem {
    Problem {
        status: StatusCode::METHOD_NOT_ALLOWED,
        error: "not with this method".to_owned(),
    }
}
