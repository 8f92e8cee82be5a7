//! Events that agents report, and the admin's view of them.

use axum::Router;
use axum::routing::get;
use serde::Deserialize;
use serde_json::json;
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use super::agent_labels::same_agent;
use super::openapi::responses::{Always, BadRequest, Forbidden, JsonBody, NotFound};
use super::operation::{ApiRequest, Reply, plain, with_body};
use super::{authorization, validation};
use crate::app::App;
use crate::db::Conn;
use crate::error::Error;
use crate::outbox::{SubscriberEvent, emit};
use crate::store::events::{self, AgentEventReport};
use crate::store::stack_matching;

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

/// A report of an agent, by REST or over its socket. Other fields that the agent sends (an id, times) are ignored.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = NewAgentEvent)]
pub(crate) struct NewAgentEvent {
    pub(crate) agent_id: Uuid,
    deployment_object_id: Uuid,
    event_type: String,
    status: String,
    message: Option<String>,
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
    Reply::created(&take(db, id, &new)?)
}

/// Checks and stores an agent's report, and emits an event if the report is new.
pub(crate) fn take(
    db: &mut Conn,
    agent: Uuid,
    new: &NewAgentEvent,
) -> Result<events::AgentEvent, Error> {
    validation::storable("`event_type`", &new.event_type, 50)?;
    validation::storable("`status`", &new.status, 10)?;
    validation::no_nul("`message`", new.message.as_deref().unwrap_or_default())?;
    let subject = events::subject(db, new.deployment_object_id)?
        .ok_or_else(|| authorization::no_object_to_report_on("fk_deployment_object"))?;
    if !stack_matching::serves(db, agent, subject.stack)? {
        return Err(authorization::not_associated());
    }
    let report = AgentEventReport {
        agent,
        object: new.deployment_object_id,
        event_type: &new.event_type,
        status: &new.status,
        message: new.message.as_deref(),
    };
    db.transaction(|tx| {
        let (event, is_new) = events::insert(tx, &report)?;
        // A repeated success emits nothing, because its first report did.
        if is_new {
            let name = if report.is_success() {
                "deployment.applied"
            } else {
                "deployment.failed"
            };
            let announced = SubscriberEvent::new(
                name,
                json!({
                    "agent_event_id": event.id,
                    "agent_id": event.agent_id,
                    "deployment_object_id": event.deployment_object_id,
                    "stack_id": subject.live.then_some(subject.stack),
                    "event_type": event.event_type,
                    "status": event.status,
                    "message": event.message,
                    "created_at": event.created_at,
                }),
            );
            emit(tx, &[], &[announced])?;
        }
        Ok(event)
    })
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
