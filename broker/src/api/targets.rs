//! Targets: explicit assignments of stacks to agents.

use axum::Router;
use axum::routing::{delete, get};
use serde::Deserialize;
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use super::labels::same_agent;
use super::openapi::responses::{Always, BadRequest, Conflict, Forbidden, JsonBody, NotFound};
use super::operation::{plain, with_body};
use super::reply::Reply;
use super::request::ApiRequest;
use super::{authorization, notifications};
use crate::app::App;
use crate::auth::Principal;
use crate::db::{Conn, Sql};
use crate::error::Error;
use crate::store::targets;

#[derive(OpenApi)]
#[openapi(paths(list, add, remove))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route(
            "/agents/{id}/targets",
            get(plain(list)).post(with_body(add)),
        )
        .route("/agents/{id}/targets/{stack_id}", delete(plain(remove)))
}

#[utoipa::path(
    get, path = "/agents/{id}/targets", operation_id = "list_targets", tag = "agent-targets",
    params(("id" = Uuid, Path)),
    responses(
        (status = 200, description = "The agent's targets", body = [targets::Target]),
        Always, BadRequest, Forbidden,
    ),
    security(("admin_pak" = []), ("agent_pak" = [])),
)]
fn list(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::admin_or_agent(call.principal, id)?;
    Reply::ok(&targets::list(db, id)?)
}

/// Requires a live stack, a caller that owns it (or the admin), and an agent registered with its generator. The
/// registration is required of the admin too, and also to remove a target.
fn permitted(db: &mut impl Sql, call: &ApiRequest, agent: Uuid, stack: Uuid) -> Result<(), Error> {
    let standing = targets::standing(db, agent, stack)?.ok_or_else(authorization::no_stack)?;
    match call.principal {
        Principal::Agent(_) => Err(Error::forbidden(
            "target_create_denied",
            "agents do not choose their targets",
        )),
        Principal::Generator(id) if id != standing.generator => Err(Error::forbidden(
            "target_generator_mismatch",
            "the stack belongs to another generator",
        )),
        _ if !standing.registered => Err(Error::forbidden(
            "agent_not_registered",
            "the agent is not registered with the stack's generator",
        )),
        _ => Ok(()),
    }
}

#[derive(Deserialize, ToSchema)]
#[schema(as = NewAgentTarget)]
struct NewTarget {
    agent_id: Uuid,
    stack_id: Uuid,
}

#[utoipa::path(
    post, path = "/agents/{id}/targets", operation_id = "add_target", tag = "agent-targets",
    params(("id" = Uuid, Path)),
    request_body = NewTarget,
    responses(
        (status = 201, description = "The target", body = targets::Target),
        Always, JsonBody, Forbidden, NotFound, Conflict,
    ),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn add(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let new: NewTarget = call.json()?;
    let target = db.transaction(|tx| {
        permitted(tx, call, id, new.stack_id)?;
        same_agent(id, new.agent_id)?;
        Ok::<_, Error>(targets::add(tx, id, new.stack_id)?)
    })?;
    call.app.live.push(id, "target_changed", &target);
    Reply::created(&target)
}

#[utoipa::path(
    delete, path = "/agents/{id}/targets/{stack_id}", operation_id = "remove_target", tag = "agent-targets",
    params(("id" = Uuid, Path), ("stack_id" = Uuid, Path)),
    responses((status = 204, description = "It is gone"), Always, BadRequest, Forbidden, NotFound),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn remove(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let (id, stack) = (call.id()?, call.uuid("stack_id")?);
    permitted(db, call, id, stack)?;
    if targets::remove(db, id, stack)? {
        notifications::target_changed(call, id);
        return Ok(Reply::no_content());
    }
    Err(Error::not_found(
        "agent_target_not_found",
        "the agent has no such target",
    ))
}
