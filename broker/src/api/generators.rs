//! Operations on generators.

use axum::Router;
use axum::routing::{get, post};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
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
use crate::domain::outbox::emit;
use crate::domain::provisioning::{self, Caller};
use crate::error::Error;
use crate::store::generators::{self, Generator};
use crate::store::stacks;

#[derive(OpenApi)]
#[openapi(paths(list, create, show, update, remove, rotate))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/generators", get(plain(list)).post(with_body(create)))
        .route(
            "/generators/{id}",
            get(plain(show))
                .put(with_body(update))
                .delete(plain(remove)),
        )
        .route("/generators/{id}/rotate-pak", post(plain(rotate)))
}

#[utoipa::path(
    get, path = "/generators", operation_id = "list_generators", tag = "generators",
    responses((status = 200, description = "Generators, oldest first", body = [Generator]), Always, Forbidden),
    security(("admin_pak" = [])),
)]
fn list(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    authorization::admin(call.principal)?;
    Reply::ok(&generators::list(db)?)
}

#[derive(Deserialize, ToSchema)]
struct NewGenerator {
    name: String,
    description: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = CreateGeneratorResponse)]
struct WithPak<'a> {
    generator: Generator,
    pak: &'a str,
}

#[utoipa::path(
    post, path = "/generators", operation_id = "create_generator", tag = "generators",
    request_body = NewGenerator,
    responses(
        (status = 201, description = "The generator and its PAK, which is shown only now", body = WithPak),
        Always, JsonBody, Forbidden, Conflict,
    ),
    security(("admin_pak" = [])),
)]
fn create(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let new: NewGenerator = call.json()?;
    authorization::admin(call.principal)?;
    validation::named(&new.name, new.description.as_deref(), "invalid_generator")?;
    let pak = call.mint()?;
    let by = Caller::Caller(call.principal.into());
    let (name, description) = (new.name.as_str(), new.description.as_deref());
    let generator =
        db.transaction(|tx| provisioning::generator(tx, by, name, description, &pak.hash()))?;
    Reply::created(&WithPak {
        generator,
        pak: pak.expose(),
    })
}

#[utoipa::path(
    get, path = "/generators/{id}", operation_id = "get_generator", tag = "generators",
    params(("id" = Uuid, Path)),
    responses((status = 200, description = "The generator", body = Generator), Always, BadRequest, Forbidden, NotFound),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn show(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::admin_or_generator(call.principal, id, "generator_not_owned")?;
    Reply::ok(&generators::get(db, id)?.ok_or_else(authorization::no_generator)?)
}

/// A whole generator, of which only name, description and `is_active` are used. The other fields are parsed so that a
/// body without them is refused.
#[derive(Deserialize)]
#[allow(dead_code, reason = "required of the caller, not used")]
struct Replacement {
    id: Uuid,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    deleted_at: Option<DateTime<Utc>>,
    name: String,
    description: Option<String>,
    last_active_at: Option<DateTime<Utc>>,
    is_active: bool,
    is_system: bool,
}

#[utoipa::path(
    put, path = "/generators/{id}", operation_id = "update_generator", tag = "generators",
    params(("id" = Uuid, Path)),
    request_body = Generator,
    responses(
        (status = 200, description = "The generator as it is now", body = Generator),
        Always, JsonBody, Forbidden, NotFound, Conflict,
    ),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn update(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let new: Replacement = call.json()?;
    authorization::admin_or_generator(call.principal, id, "generator_not_owned")?;
    let description = new.description.as_deref();
    let invalid = validation::named(&new.name, description, "invalid_generator");
    let generator = db.transaction(|tx| {
        if let Err(error) = invalid {
            // A missing generator is reported before an invalid value.
            generators::get(tx, id)?.ok_or_else(no_row)?;
            return Err(error);
        }
        let generator = generators::update(tx, id, &new.name, description, new.is_active)?
            .ok_or_else(no_row)?;
        let audit = audit::audit(call.principal, "generator.updated", "generator", id)
            .details(json!({ "name": generator.name }));
        emit(tx, &[audit], &[])?;
        Ok(generator)
    })?;
    Reply::ok(&generator)
}

/// Makes the 404 of an update, which has the code `not_found`, unlike the 404 of other operations.
fn no_row() -> Error {
    Error::not_found("not_found", "there is no such generator")
}

/// Deletes the generator and its stacks. Their deletion markers stay live, so that every agent that served them sees
/// them.
#[utoipa::path(
    delete, path = "/generators/{id}", operation_id = "delete_generator", tag = "generators",
    params(("id" = Uuid, Path)),
    responses((status = 204, description = "It is gone"), Always, BadRequest, Forbidden, NotFound),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn remove(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::admin_or_generator(call.principal, id, "generator_not_owned")?;
    let its_stacks = db.transaction(|tx| {
        let generator = generators::get_locked(tx, id)?.ok_or_else(authorization::no_generator)?;
        if generator.is_system {
            return Err(Error::forbidden(
                "cannot_delete_system_generator",
                "the system generator cannot be deleted",
            ));
        }
        let its_stacks = stacks::lock_all_of(tx, id)?;
        if !its_stacks.is_empty() {
            stacks::delete_locked(tx, &its_stacks)?;
        }
        generators::delete(tx, id)?;
        let audit = audit::audit(call.principal, "generator.deleted", "generator", id);
        emit(tx, &[audit], &[])?;
        Ok(its_stacks)
    })?;
    call.app.auth.forget(Principal::Generator(id));
    call.app.live.doubt();
    notifications::stacks_deleted(call, db, &its_stacks);
    Ok(Reply::no_content())
}

#[utoipa::path(
    post, path = "/generators/{id}/rotate-pak", operation_id = "rotate_generator_pak", tag = "generators",
    params(("id" = Uuid, Path)),
    responses(
        (status = 201, description = "The generator and its new PAK, which is shown only now", body = WithPak),
        Always, BadRequest, Forbidden, NotFound,
    ),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn rotate(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::admin_or_generator(call.principal, id, "generator_not_owned")?;
    let pak = call.mint()?;
    let by = Caller::Caller(call.principal.into());
    let generator = db.transaction(|tx| provisioning::rotate_generator(tx, by, id, &pak.hash()))?;
    call.app.auth.forget(Principal::Generator(id));
    call.app.live.doubt();
    Reply::created(&WithPak {
        generator,
        pak: pak.expose(),
    })
}
