//! Events that agents report, and the admin's view of them.

use axum::Router;
use axum::routing::get;
use serde::Deserialize;
use utoipa::OpenApi;
use uuid::Uuid;

use super::authorization;
use super::labels::same_agent;
use super::openapi::responses::{Always, BadRequest, Forbidden, JsonBody, NotFound};
use super::operation::{plain, with_body};
use super::reply::Reply;
use super::request::ApiRequest;
use crate::app::App;
use crate::db::Conn;
use crate::domain::agent_events::{self, NewAgentEvent};
use crate::error::Error;
use crate::store::events;

#[derive(OpenApi)]
#[openapi(paths(of_agent, report, list, show))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route(
            "/agents/{id}/events",
            get(plain(of_agent)).post(with_body(report)),
        )
        .route("/agent-events", get(plain(list)))
        .route("/agent-events/{id}", get(plain(show)))
}

#[utoipa::path(
    get, path = "/agents/{id}/events", operation_id = "list_events", tag = "agent-events",
    params(("id" = Uuid, Path)),
    responses(
        (status = 200, description = "The agent's events", body = [events::AgentEvent]),
        Always, BadRequest, Forbidden,
    ),
    security(("admin_pak" = []), ("agent_pak" = [])),
)]
fn of_agent(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::admin_or_agent(call.principal, id)?;
    Reply::ok(&events::of_agent(db, id)?)
}

#[utoipa::path(
    post, path = "/agents/{id}/events", operation_id = "create_event", tag = "agent-events",
    params(("id" = Uuid, Path)),
    request_body = NewAgentEvent,
    responses((status = 201, description = "The event", body = events::AgentEvent), Always, JsonBody, Forbidden),
    security(("admin_pak" = []), ("agent_pak" = [])),
)]
fn report(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let new: NewAgentEvent = call.json()?;
    authorization::admin_or_agent(call.principal, id)?;
    same_agent(id, new.agent_id)?;
    Reply::created(&agent_events::take(db, id, &new)?)
}

#[derive(Deserialize)]
struct Filter {
    pak_id: Option<Uuid>,
}

#[utoipa::path(
    get, path = "/agent-events", operation_id = "list_agent_events", tag = "agent-events",
    params(("pak_id" = Option<Uuid>, Query, nullable, description = "Of agents registered with this generator")),
    responses(
        (status = 200, description = "Every agent's events", body = [events::AgentEvent]),
        Always, BadRequest, Forbidden,
    ),
    security(("admin_pak" = [])),
)]
fn list(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let filter: Filter = call.query()?;
    authorization::admin(call.principal)?;
    match filter.pak_id {
        None => Reply::ok(&events::list(db)?),
        Some(generator) => Reply::ok(&events::of_registered(db, generator)?),
    }
}

#[utoipa::path(
    get, path = "/agent-events/{id}", operation_id = "get_agent_event", tag = "agent-events",
    params(("id" = Uuid, Path)),
    responses((status = 200, description = "The event", body = events::AgentEvent), Always, BadRequest, Forbidden, NotFound),
    security(("admin_pak" = [])),
)]
fn show(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::admin(call.principal)?;
    let event = events::get(db, id)?
        .ok_or_else(|| Error::not_found("agent_event_not_found", "there is no such event"))?;
    Reply::ok(&event)
}
