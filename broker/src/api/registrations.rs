//! Registrations: an agent consents to serve a generator, and may withdraw the consent.

use axum::Router;
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::json;
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use super::openapi::responses::{Always, BadRequest, Conflict, Forbidden, JsonBody, NotFound};
use super::operation::{plain, with_body};
use super::reply::Reply;
use super::request::ApiRequest;
use super::{audit, authorization, notifications};
use crate::app::App;
use crate::auth::Principal;
use crate::db::{Conn, Sql};
use crate::domain::outbox::emit;
use crate::error::Error;
use crate::store::registrations::{self, Registration};
use crate::store::{agents, generators};

#[derive(OpenApi)]
#[openapi(paths(of_agent, with_generator, register, deregister))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/agents/{id}/registrations", get(plain(of_agent)))
        .route(
            "/generators/{id}/register",
            post(with_body(register)).delete(with_body(deregister)),
        )
        .route(
            "/generators/{id}/registered-agents",
            get(plain(with_generator)),
        )
}

#[utoipa::path(
    get, path = "/agents/{id}/registrations", operation_id = "list_agent_registrations", tag = "agents",
    params(("id" = Uuid, Path)),
    responses(
        (status = 200, description = "Where the agent is registered", body = [Registration]),
        Always, BadRequest, Forbidden, NotFound,
    ),
    security(("admin_pak" = []), ("agent_pak" = [])),
)]
fn of_agent(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::admin_or_agent(call.principal, id)?;
    agents::get(db, id)?.ok_or_else(authorization::no_agent)?;
    Reply::ok(&registrations::of_agent(db, id)?)
}

#[utoipa::path(
    get, path = "/generators/{id}/registered-agents", operation_id = "list_generator_registered_agents", tag = "generators",
    params(("id" = Uuid, Path)),
    responses(
        (status = 200, description = "Who is registered with the generator", body = [Registration]),
        Always, BadRequest, Forbidden, NotFound,
    ),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn with_generator(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::admin_or_generator(call.principal, id, "not_authorized")?;
    let generator = generators::get(db, id)?.ok_or_else(authorization::no_generator)?;
    authorization::tenant_only(call.principal, &generator)?;
    Reply::ok(&registrations::with_generator(db, id)?)
}

#[derive(Deserialize, ToSchema)]
#[schema(as = AgentRegistrationBody)]
struct Whom {
    agent_id: Option<Uuid>,
}

/// Returns the agent of the request: the calling agent, or the agent that the admin names. A missing generator is
/// reported before a missing `agent_id`.
fn subject(
    call: &ApiRequest,
    db: &mut impl Sql,
    generator: Uuid,
    whom: &Whom,
) -> Result<Uuid, Error> {
    if matches!(call.principal, Principal::Generator(_)) {
        return Err(Error::forbidden(
            "forbidden",
            "generators do not register agents",
        ));
    }
    generators::get(db, generator)?.ok_or_else(authorization::no_generator)?;
    match call.principal {
        Principal::Agent(id) => Ok(id),
        _ => whom.agent_id.ok_or_else(|| {
            Error::bad_request("missing_agent_id", "`agent_id` is required of the admin")
        }),
    }
}

#[utoipa::path(
    post, path = "/generators/{id}/register", operation_id = "register_agent", tag = "generators",
    params(("id" = Uuid, Path)),
    request_body = Whom,
    responses(
        (status = 201, description = "The registration", body = Registration),
        Always, JsonBody, Forbidden, NotFound, Conflict,
    ),
    security(("admin_pak" = []), ("agent_pak" = [])),
)]
fn register(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let generator = call.id()?;
    let whom: Whom = call.json()?;
    let agent = subject(call, db, generator, &whom)?;
    let registration = db.transaction(|tx| {
        let registration = registrations::add(tx, agent, generator)?.ok_or_else(|| {
            Error::conflict(
                "already_registered",
                "the agent is registered with this generator already",
            )
        })?;
        let audit = audit::audit(call.principal, "agent.registered", "agent", agent)
            .details(json!({ "generator_id": generator }));
        emit(tx, &[audit], &[])?;
        Ok::<_, Error>(registration)
    })?;
    Reply::created(&registration)
}

/// Answers 204 even when the agent was not registered; only a real removal is recorded.
#[utoipa::path(
    delete, path = "/generators/{id}/register", operation_id = "deregister_agent", tag = "generators",
    params(("id" = Uuid, Path)),
    request_body = Whom,
    responses((status = 204, description = "It is gone"), Always, JsonBody, Forbidden, NotFound),
    security(("admin_pak" = []), ("agent_pak" = [])),
)]
fn deregister(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let generator = call.id()?;
    let whom: Whom = call.json()?;
    let agent = subject(call, db, generator, &whom)?;
    db.transaction(|tx| {
        if registrations::remove(tx, agent, generator)? {
            let audit = audit::audit(call.principal, "agent.deregistered", "agent", agent)
                .details(json!({ "generator_id": generator }));
            emit(tx, &[audit], &[])?;
        }
        Ok::<_, Error>(())
    })?;
    notifications::target_changed(call, agent);
    Ok(Reply::no_content())
}
