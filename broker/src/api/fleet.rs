//! The fleet, as measured: no verdicts. Live, it comes over a socket ([`super::sockets`]).

use axum::Router;
use axum::routing::get;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, OpenApi, ToSchema};
use uuid::Uuid;

use super::access;
use super::call::{Call, Reply, plain};
use crate::app::App;
use crate::db::Conn;
use crate::error::{Error, ErrorResponse};
use crate::live;
use crate::store::events::{self, Event};
use crate::store::fleet::{self, Record};

/// Events shown with one agent's record.
const RECENT: i64 = 20;

/// This resource in the OpenAPI document.
#[derive(OpenApi)]
#[openapi(paths(list, show))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/fleet", get(plain(list)))
        .route("/agents/{id}/fleet-status", get(plain(show)))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Filter {
    /// Only agents registered with this generator.
    pak_id: Option<Uuid>,
}

/// An agent's record and its newest events.
#[derive(Serialize, ToSchema)]
struct AgentFleetStatusResponse {
    record: Record,
    /// At most 20, newest first.
    recent_events: Vec<Event>,
}

#[utoipa::path(
    get,
    path = "/fleet",
    operation_id = "list_fleet",
    tag = "fleet",
    params(Filter),
    responses(
        (status = 200, description = "Each live agent's record", body = [Record]),
        (status = 400, description = "A malformed query", body = ErrorResponse),
        (status = 401, description = "No valid PAK", body = ErrorResponse),
        (status = 403, description = "Not the admin", body = ErrorResponse),
        (status = 500, description = "Failed inside the broker", body = ErrorResponse),
        (status = 503, description = "The database cannot be reached", body = ErrorResponse),
    ),
    security(("admin_pak" = [])),
)]
fn list(call: &Call, db: &mut Conn) -> Result<Reply, Error> {
    let filter: Filter = call.query()?;
    access::admin(call.principal)?;
    let mut records = match filter.pak_id {
        None => fleet::list(db)?,
        Some(generator) => fleet::of_registered(db, generator)?,
    };
    live::fill(&call.app.live, &mut records);
    Reply::ok(&records)
}

#[utoipa::path(
    get,
    path = "/agents/{id}/fleet-status",
    operation_id = "get_agent_fleet_status",
    tag = "fleet",
    params(("id" = Uuid, Path, description = "Agent")),
    responses(
        (status = 200, description = "The agent's record and its newest events", body = AgentFleetStatusResponse),
        (status = 400, description = "A malformed id", body = ErrorResponse),
        (status = 401, description = "No valid PAK", body = ErrorResponse),
        (status = 403, description = "Not the admin", body = ErrorResponse),
        (status = 404, description = "No such agent", body = ErrorResponse),
        (status = 500, description = "Failed inside the broker", body = ErrorResponse),
        (status = 503, description = "The database cannot be reached", body = ErrorResponse),
    ),
    security(("admin_pak" = [])),
)]
fn show(call: &Call, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    access::admin(call.principal)?;
    let mut records = fleet::of_agents(db, &[id])?;
    live::fill(&call.app.live, &mut records);
    let record = records.into_iter().next().ok_or_else(access::no_agent)?;
    Reply::ok(&AgentFleetStatusResponse {
        record,
        recent_events: events::newest_of_agent(db, id, RECENT)?,
    })
}
