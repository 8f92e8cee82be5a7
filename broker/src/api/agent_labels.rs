//! Labels and annotations of agents.

use axum::Router;
use axum::routing::{delete, get};
use serde::Deserialize;
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use super::openapi::responses::{
    Always, BadRequest, Conflict, Forbidden, JsonBody, NotFound, Unstorable,
};
use super::operation::{plain, with_body};
use super::reply::Reply;
use super::request::ApiRequest;
use super::{authorization, notifications, validation};
use crate::app::App;
use crate::db::Conn;
use crate::error::Error;
use crate::store::agent_labels as marks;

#[derive(OpenApi)]
#[openapi(paths(
    labels,
    add_label,
    remove_label,
    annotations,
    add_annotation,
    remove_annotation
))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route(
            "/agents/{id}/labels",
            get(plain(labels)).post(with_body(add_label)),
        )
        .route("/agents/{id}/labels/{label}", delete(plain(remove_label)))
        .route(
            "/agents/{id}/annotations",
            get(plain(annotations)).post(with_body(add_annotation)),
        )
        .route(
            "/agents/{id}/annotations/{key}",
            delete(plain(remove_annotation)),
        )
}

/// Refuses with 400 `agent_id_mismatch` when body and path name different agents.
pub(super) fn same_agent(path: Uuid, body: Uuid) -> Result<(), Error> {
    if path == body {
        return Ok(());
    }
    Err(Error::bad_request(
        "agent_id_mismatch",
        "`agent_id` in the body is not the agent in the path",
    ))
}

#[utoipa::path(
    get, path = "/agents/{id}/labels", operation_id = "agents_list_labels", tag = "agent-labels",
    params(("id" = Uuid, Path)),
    responses((status = 200, description = "The agent's labels", body = [marks::AgentLabel]), Always, BadRequest, Forbidden),
    security(("admin_pak" = []), ("agent_pak" = [])),
)]
fn labels(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::admin_or_agent(call.principal, id)?;
    Reply::ok(&marks::labels(db, id)?)
}

#[derive(Deserialize, ToSchema)]
#[schema(as = NewAgentLabel)]
struct NewLabel {
    agent_id: Uuid,
    label: String,
}

#[utoipa::path(
    post, path = "/agents/{id}/labels", operation_id = "agents_add_label", tag = "agent-labels",
    params(("id" = Uuid, Path)),
    request_body = NewLabel,
    responses((status = 201, description = "The label", body = marks::AgentLabel), Always, JsonBody, Forbidden, Conflict),
    security(("admin_pak" = [])),
)]
fn add_label(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let new: NewLabel = call.json()?;
    authorization::admin(call.principal)?;
    same_agent(id, new.agent_id)?;
    validation::label(&new.label)?;
    validation::storable("a label", &new.label, validation::MARK)?;
    let added = marks::add_label(db, id, &new.label)?;
    notifications::target_changed(call, id);
    Reply::created(&added)
}

#[utoipa::path(
    delete, path = "/agents/{id}/labels/{label}", operation_id = "agents_remove_label", tag = "agent-labels",
    params(("id" = Uuid, Path), ("label" = String, Path)),
    responses((status = 204, description = "It is gone"), Always, BadRequest, Forbidden, NotFound, Unstorable),
    security(("admin_pak" = [])),
)]
fn remove_label(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let (id, label) = (call.id()?, call.path("label")?);
    authorization::admin(call.principal)?;
    validation::no_nul("the label", label)?;
    if marks::remove_label(db, id, label)? {
        notifications::target_changed(call, id);
        return Ok(Reply::no_content());
    }
    Err(Error::not_found(
        "agent_label_not_found",
        "the agent has no such label",
    ))
}

#[utoipa::path(
    get, path = "/agents/{id}/annotations", operation_id = "agents_list_annotations", tag = "agent-annotations",
    params(("id" = Uuid, Path)),
    responses(
        (status = 200, description = "The agent's annotations", body = [marks::AgentAnnotation]),
        Always, BadRequest, Forbidden,
    ),
    security(("admin_pak" = []), ("agent_pak" = [])),
)]
fn annotations(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::admin_or_agent(call.principal, id)?;
    Reply::ok(&marks::annotations(db, id)?)
}

#[derive(Deserialize, ToSchema)]
#[schema(as = NewAgentAnnotation)]
struct NewAnnotation {
    agent_id: Uuid,
    key: String,
    value: String,
}

#[utoipa::path(
    post, path = "/agents/{id}/annotations", operation_id = "agents_add_annotation", tag = "agent-annotations",
    params(("id" = Uuid, Path)),
    request_body = NewAnnotation,
    responses(
        (status = 201, description = "The annotation", body = marks::AgentAnnotation),
        Always, JsonBody, Forbidden, Conflict,
    ),
    security(("admin_pak" = [])),
)]
fn add_annotation(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let new: NewAnnotation = call.json()?;
    authorization::admin(call.principal)?;
    same_agent(id, new.agent_id)?;
    validation::annotation(&new.key, &new.value)?;
    let added = marks::add_annotation(db, id, &new.key, &new.value)?;
    notifications::target_changed(call, id);
    Reply::created(&added)
}

#[utoipa::path(
    delete, path = "/agents/{id}/annotations/{key}", operation_id = "agents_remove_annotation", tag = "agent-annotations",
    params(("id" = Uuid, Path), ("key" = String, Path)),
    responses((status = 204, description = "It is gone"), Always, BadRequest, Forbidden, NotFound, Unstorable),
    security(("admin_pak" = [])),
)]
fn remove_annotation(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let (id, key) = (call.id()?, call.path("key")?);
    authorization::admin(call.principal)?;
    validation::no_nul("the key", key)?;
    if marks::remove_annotation(db, id, key)? {
        notifications::target_changed(call, id);
        return Ok(Reply::no_content());
    }
    Err(Error::not_found(
        "agent_annotation_not_found",
        "the agent has no annotation with this key",
    ))
}
