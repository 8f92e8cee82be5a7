//! What agents report, and the admin's view of it.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use serde::Deserialize;
use serde_json::json;
use utoipa::OpenApi;
use uuid::Uuid;

use super::agent_marks::same_agent;
use super::call::{Call, Reply, plain, with_body};
use super::{access, check};
use crate::app::App;
use crate::db::Conn;
use crate::emit::{Event, emit};
use crate::error::Error;
use crate::store::association;
use crate::store::events::{self, Report};

/// This resource in the OpenAPI document.
#[derive(OpenApi)]
#[openapi()]
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

fn of_agent(call: &Call, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    access::admin_or_agent(call.principal, id)?;
    Reply::ok(&events::of_agent(db, id)?)
}

/// A report as an agent sends it, by REST or over its socket. What else it says (an id, times) is not taken.
#[derive(Debug, Deserialize)]
pub(crate) struct NewEvent {
    pub(crate) agent_id: Uuid,
    deployment_object_id: Uuid,
    event_type: String,
    status: String,
    message: Option<String>,
}

fn report(call: &Call, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let new: NewEvent = call.json()?;
    access::admin_or_agent(call.principal, id)?;
    same_agent(id, new.agent_id)?;
    Reply::created(&take(db, id, &new)?)
}

/// Checks and stores what an agent reports, and announces it if it is news.
pub(crate) fn take(db: &mut Conn, agent: Uuid, new: &NewEvent) -> Result<events::Event, Error> {
    check::storable("`event_type`", &new.event_type, 50)?;
    check::storable("`status`", &new.status, 10)?;
    check::no_nul("`message`", new.message.as_deref().unwrap_or_default())?;
    let subject = events::subject(db, new.deployment_object_id)?.ok_or_else(|| {
        Error::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "foreign_key_violation",
            "there is no such deployment object",
        )
        .detail("constraint", "fk_deployment_object")
    })?;
    if !association::serves(db, agent, subject.stack)? {
        return Err(Error::forbidden(
            "agent_not_associated",
            "the agent does not serve the object's stack",
        ));
    }
    let report = Report {
        agent,
        object: new.deployment_object_id,
        event_type: &new.event_type,
        status: &new.status,
        message: new.message.as_deref(),
    };
    db.transaction(|tx| {
        let (event, is_new) = events::insert(tx, &report)?;
        // A success said again is not news: it was announced when it was said first.
        if is_new {
            let name = if report.is_success() {
                "deployment.applied"
            } else {
                "deployment.failed"
            };
            let announced = Event::new(
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

fn list(call: &Call, db: &mut Conn) -> Result<Reply, Error> {
    let filter: Filter = call.query()?;
    access::admin(call.principal)?;
    match filter.pak_id {
        None => Reply::ok(&events::list(db)?),
        Some(generator) => Reply::ok(&events::of_registered(db, generator)?),
    }
}

fn show(call: &Call, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    access::admin(call.principal)?;
    let event = events::get(db, id)?
        .ok_or_else(|| Error::not_found("agent_event_not_found", "there is no such event"))?;
    Reply::ok(&event)
}
