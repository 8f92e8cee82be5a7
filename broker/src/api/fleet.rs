//! Measured state of the fleet, without verdicts. The live form is a socket ([`super::websockets`]).

use axum::Router;
use axum::routing::get;
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use super::authorization;
use super::openapi::responses::{Always, BadRequest, Forbidden, NotFound};
use super::operation::plain;
use super::reply::Reply;
use super::request::ApiRequest;
use crate::app::App;
use crate::db::Conn;
use crate::error::Error;
use crate::store::events::{self, AgentEvent};
use crate::store::fleet::{self, FleetRecord};

/// Number of newest events in one agent's record.
const RECENT: i64 = 20;

#[derive(OpenApi)]
#[openapi(paths(list, show))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/fleet", get(plain(list)))
        .route("/agents/{id}/fleet-status", get(plain(show)))
}

#[derive(Deserialize)]
struct Filter {
    pak_id: Option<Uuid>,
}

/// Record of an agent with its newest events.
#[derive(Serialize, ToSchema)]
struct AgentFleetStatusResponse {
    record: FleetRecord,
    /// At most 20 events, newest first.
    recent_events: Vec<AgentEvent>,
}

#[utoipa::path(
    get, path = "/fleet", operation_id = "list_fleet", tag = "fleet",
    params(("pak_id" = Option<Uuid>, Query, nullable, description = "Of agents registered with this generator")),
    responses((status = 200, description = "Each live agent's record", body = [FleetRecord]), Always, BadRequest, Forbidden),
    security(("admin_pak" = [])),
)]
fn list(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let filter: Filter = call.query()?;
    authorization::admin(call.principal)?;
    let mut records = match filter.pak_id {
        None => fleet::list(db)?,
        Some(generator) => fleet::of_registered(db, generator)?,
    };
    call.app.live.fill(&mut records);
    Reply::ok(&records)
}

#[utoipa::path(
    get, path = "/agents/{id}/fleet-status", operation_id = "get_agent_fleet_status", tag = "fleet",
    params(("id" = Uuid, Path)),
    responses(
        (status = 200, description = "The agent's record and its newest events", body = AgentFleetStatusResponse),
        Always, BadRequest, Forbidden, NotFound,
    ),
    security(("admin_pak" = [])),
)]
fn show(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::admin(call.principal)?;
    let mut records = fleet::of_agents(db, &[id])?;
    call.app.live.fill(&mut records);
    let record = records
        .into_iter()
        .next()
        .ok_or_else(authorization::no_agent)?;
    Reply::ok(&AgentFleetStatusResponse {
        record,
        recent_events: events::newest_of_agent(db, id, RECENT)?,
    })
}
