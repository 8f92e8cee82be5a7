//! Labels and annotations of stacks.

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
use crate::auth::Principal;
use crate::db::Conn;
use crate::error::Error;
use crate::store::{stack_labels as marks, stack_matching, stacks};

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
            "/stacks/{id}/labels",
            get(plain(labels)).post(with_body(add_label)),
        )
        .route("/stacks/{id}/labels/{label}", delete(plain(remove_label)))
        .route(
            "/stacks/{id}/annotations",
            get(plain(annotations)).post(with_body(add_annotation)),
        )
        .route(
            "/stacks/{id}/annotations/{key}",
            delete(plain(remove_annotation)),
        )
}

/// Requires a caller that may see the stack: the admin (also for unknown stacks), the owner, or an agent that serves
/// it.
fn visible(call: &ApiRequest, db: &mut Conn, id: Uuid) -> Result<(), Error> {
    if call.principal == Principal::Admin {
        return Ok(());
    }
    let stack = stacks::get(db, id)?.ok_or_else(authorization::no_stack)?;
    let allowed = match call.principal {
        Principal::Admin => true,
        Principal::Generator(generator) => generator == stack.generator_id,
        Principal::Agent(agent) => stack_matching::serves(db, agent, id)?,
    };
    if allowed {
        return Ok(());
    }
    Err(Error::forbidden(
        "stack_not_accessible",
        "this stack is not the caller's to see",
    ))
}

#[utoipa::path(
    get, path = "/stacks/{id}/labels", operation_id = "stacks_list_labels", tag = "stacks",
    params(("id" = Uuid, Path)),
    responses(
        (status = 200, description = "The stack's labels", body = [marks::StackLabel]),
        Always, BadRequest, Forbidden, NotFound,
    ),
    security(("admin_pak" = []), ("generator_pak" = []), ("agent_pak" = [])),
)]
fn labels(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    visible(call, db, id)?;
    Reply::ok(&marks::labels(db, id)?)
}

/// Takes a JSON string as the body.
#[utoipa::path(
    post, path = "/stacks/{id}/labels", operation_id = "stacks_add_label", tag = "stacks",
    params(("id" = Uuid, Path)),
    request_body(content = String, content_type = "application/json"),
    responses(
        (status = 201, description = "The label", body = marks::StackLabel),
        Always, JsonBody, Forbidden, NotFound, Conflict,
    ),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn add_label(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let label: String = call.json()?;
    let stack = authorization::owned_stack(db, call.principal, id)?;
    validation::label(&label)?;
    if label.len() > validation::MARK {
        return Err(Error::bad_request(
            "invalid_label",
            "a label may have at most 64 bytes",
        ));
    }
    validation::no_nul("a label", &label)?;
    let added = marks::add_label(db, &stack, &label)?;
    notifications::stack_changed(call, db, &stack);
    Reply::created(&added)
}

#[utoipa::path(
    delete, path = "/stacks/{id}/labels/{label}", operation_id = "stacks_remove_label", tag = "stacks",
    params(("id" = Uuid, Path), ("label" = String, Path)),
    responses((status = 204, description = "It is gone"), Always, BadRequest, Forbidden, NotFound, Unstorable),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn remove_label(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let (id, label) = (call.id()?, call.path("label")?);
    let stack = authorization::owned_stack(db, call.principal, id)?;
    validation::no_nul("the label", label)?;
    // The agents that serve the stack through this label are known only before its removal.
    let served = notifications::who_serves(call, db, id);
    if marks::remove_label(db, id, label)? {
        notifications::tell(call, &served, &stack);
        return Ok(Reply::no_content());
    }
    Err(Error::not_found(
        "stack_label_not_found",
        "the stack has no such label",
    ))
}

#[utoipa::path(
    get, path = "/stacks/{id}/annotations", operation_id = "stacks_list_annotations", tag = "stacks",
    params(("id" = Uuid, Path)),
    responses(
        (status = 200, description = "The stack's annotations", body = [marks::StackAnnotation]),
        Always, BadRequest, Forbidden, NotFound,
    ),
    security(("admin_pak" = []), ("generator_pak" = []), ("agent_pak" = [])),
)]
fn annotations(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    visible(call, db, id)?;
    Reply::ok(&marks::annotations(db, id)?)
}

#[derive(Deserialize, ToSchema)]
#[schema(as = NewStackAnnotation)]
struct NewAnnotation {
    stack_id: Uuid,
    key: String,
    value: String,
}

#[utoipa::path(
    post, path = "/stacks/{id}/annotations", operation_id = "stacks_add_annotation", tag = "stacks",
    params(("id" = Uuid, Path)),
    request_body = NewAnnotation,
    responses(
        (status = 201, description = "The annotation", body = marks::StackAnnotation),
        Always, JsonBody, Forbidden, NotFound, Conflict,
    ),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn add_annotation(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let new: NewAnnotation = call.json()?;
    let stack = authorization::owned_stack(db, call.principal, id)?;
    if new.stack_id != id {
        return Err(Error::bad_request(
            "stack_id_mismatch",
            "`stack_id` in the body is not the stack in the path",
        ));
    }
    validation::annotation(&new.key, &new.value)?;
    let added = marks::add_annotation(db, &stack, &new.key, &new.value)?;
    notifications::stack_changed(call, db, &stack);
    Reply::created(&added)
}

#[utoipa::path(
    delete, path = "/stacks/{id}/annotations/{key}", operation_id = "stacks_remove_annotation", tag = "stacks",
    params(("id" = Uuid, Path), ("key" = String, Path)),
    responses((status = 204, description = "It is gone"), Always, BadRequest, Forbidden, NotFound, Unstorable),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn remove_annotation(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let (id, key) = (call.id()?, call.path("key")?);
    let stack = authorization::owned_stack(db, call.principal, id)?;
    validation::no_nul("the key", key)?;
    let served = notifications::who_serves(call, db, id);
    if marks::remove_annotation(db, id, key)? {
        notifications::tell(call, &served, &stack);
        return Ok(Reply::no_content());
    }
    Err(Error::not_found(
        "stack_annotation_not_found",
        "the stack has no annotation with this key",
    ))
}
