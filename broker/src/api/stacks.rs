//! Operations on stacks.

use axum::Router;
use axum::routing::get;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::json;
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use super::openapi::responses::{Always, BadRequest, Conflict, Forbidden, JsonBody, NotFound};
use super::operation::{plain, with_body};
use super::reply::Reply;
use super::request::ApiRequest;
use super::{audit, authorization, notifications, validation};
use crate::app::App;
use crate::auth::Principal;
use crate::db::Conn;
use crate::domain::outbox::{SubscriberEvent, emit};
use crate::error::Error;
use crate::store::stacks::{self, Stack};

#[derive(OpenApi)]
#[openapi(paths(list, create, show, update, remove))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/stacks", get(plain(list)).post(with_body(create)))
        .route(
            "/stacks/{id}",
            get(plain(show))
                .put(with_body(update))
                .delete(plain(remove)),
        )
}

#[derive(Deserialize)]
struct Filter {
    pak_id: Option<Uuid>,
}

#[utoipa::path(
    get, path = "/stacks", operation_id = "list_stacks", tag = "stacks",
    params(("pak_id" = Option<Uuid>, Query, nullable, description = "Of this generator; for the admin")),
    responses(
        (status = 200, description = "Stacks, oldest first; a generator sees its own", body = [Stack]),
        Always, BadRequest, Forbidden,
    ),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn list(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let filter: Filter = call.query()?;
    match (call.principal, filter.pak_id) {
        (Principal::Agent(_), _) => Err(Error::forbidden(
            "stacks_list_denied",
            "agents may not list stacks",
        )),
        (Principal::Generator(id), _) | (Principal::Admin, Some(id)) => {
            Reply::ok(&stacks::list_of(db, id)?)
        }
        (Principal::Admin, None) => Reply::ok(&stacks::list(db)?),
    }
}

fn other_generator() -> Error {
    Error::forbidden(
        "stack_generator_mismatch",
        "a stack stays with its own generator",
    )
}

/// Makes the same error as the foreign key does, because a deleted generator counts as missing.
fn unknown_generator() -> Error {
    Error::unprocessable(
        "foreign_key_violation",
        "`generator_id` names a generator that does not exist",
    )
    .detail("constraint", "stacks_generator_id_fkey")
}

#[derive(Deserialize, ToSchema)]
struct NewStack {
    name: String,
    description: Option<String>,
    generator_id: Uuid,
}

#[utoipa::path(
    post, path = "/stacks", operation_id = "create_stack", tag = "stacks",
    request_body = NewStack,
    responses((status = 201, description = "The stack", body = Stack), Always, JsonBody, Forbidden, Conflict),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn create(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let new: NewStack = call.json()?;
    match call.principal {
        Principal::Agent(_) => {
            return Err(Error::forbidden(
                "stack_create_denied",
                "agents may not create stacks",
            ));
        }
        Principal::Generator(id) if id != new.generator_id => return Err(other_generator()),
        _ => {}
    }
    let description = new.description.as_deref();
    validation::named(&new.name, description, "invalid_stack")?;
    let stack = db.transaction(|tx| {
        let stack = stacks::insert(tx, &new.name, description, new.generator_id)?
            .ok_or_else(unknown_generator)?;
        let audit = audit::audit(call.principal, "stack.created", "stack", stack.id)
            .details(json!({ "name": stack.name, "generator_id": stack.generator_id }));
        let event = SubscriberEvent::new(
            "stack.created",
            json!({
                "stack_id": stack.id,
                "name": stack.name,
                "description": stack.description,
                "created_at": stack.created_at,
            }),
        );
        emit(tx, &[audit], &[event])?;
        Ok::<_, Error>(stack)
    })?;
    Reply::created(&stack)
}

#[utoipa::path(
    get, path = "/stacks/{id}", operation_id = "get_stack", tag = "stacks",
    params(("id" = Uuid, Path)),
    responses((status = 200, description = "The stack", body = Stack), Always, BadRequest, Forbidden, NotFound),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn show(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    Reply::ok(&authorization::owned_stack(db, call.principal, id)?)
}

/// A whole stack, of which only name and description are used.
#[derive(Deserialize)]
#[allow(dead_code, reason = "required of the caller, not used")]
struct Replacement {
    id: Uuid,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    deleted_at: Option<DateTime<Utc>>,
    name: String,
    description: Option<String>,
    generator_id: Uuid,
}

#[utoipa::path(
    put, path = "/stacks/{id}", operation_id = "update_stack", tag = "stacks",
    params(("id" = Uuid, Path)),
    request_body = Stack,
    responses(
        (status = 200, description = "The stack as it is now", body = Stack),
        Always, JsonBody, Forbidden, NotFound, Conflict,
    ),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn update(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let new: Replacement = call.json()?;
    let stack = db.transaction(|tx| {
        let current = authorization::owned_stack_locked(tx, call.principal, id)?;
        if new.id != id {
            return Err(Error::bad_request(
                "stack_id_mismatch",
                "`id` in the body is not the stack in the path",
            ));
        }
        if new.generator_id != current.generator_id {
            return Err(other_generator());
        }
        let description = new.description.as_deref();
        validation::named(&new.name, description, "invalid_stack")?;
        let stack =
            stacks::update(tx, id, &new.name, description)?.ok_or_else(authorization::no_stack)?;
        let audit = audit::audit(call.principal, "stack.updated", "stack", id)
            .details(json!({ "name": stack.name }));
        emit(tx, &[audit], &[])?;
        Ok(stack)
    })?;
    Reply::ok(&stack)
}

#[utoipa::path(
    delete, path = "/stacks/{id}", operation_id = "delete_stack", tag = "stacks",
    params(("id" = Uuid, Path)),
    responses((status = 204, description = "It is gone"), Always, BadRequest, Forbidden, NotFound),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn remove(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let stack = db.transaction(|tx| {
        let mut stack = authorization::owned_stack_locked(tx, call.principal, id)?;
        let deleted_at = stacks::delete_locked(tx, &[id])?;
        let audit = audit::audit(call.principal, "stack.deleted", "stack", id);
        let event = SubscriberEvent::new(
            "stack.deleted",
            json!({ "stack_id": id, "deleted_at": deleted_at }),
        );
        emit(tx, &[audit], &[event])?;
        stack.deleted_at = Some(deleted_at);
        Ok::<_, Error>(stack)
    })?;
    notifications::stack_deleted(call, db, &stack);
    Ok(Reply::no_content())
}
