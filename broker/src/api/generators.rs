//! Generators.

use axum::Router;
use axum::routing::{get, post};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::OpenApi;
use uuid::Uuid;

use super::call::{Call, Reply, plain, with_body};
use super::{access, check, push, record};
use crate::app::App;
use crate::auth::Principal;
use crate::db::Conn;
use crate::emit::emit;
use crate::error::Error;
use crate::store::generators::{self, Generator};
use crate::store::stacks;

/// This resource in the OpenAPI document.
#[derive(OpenApi)]
#[openapi()]
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

fn list(call: &Call, db: &mut Conn) -> Result<Reply, Error> {
    access::admin(call.principal)?;
    Reply::ok(&generators::list(db)?)
}

#[derive(Deserialize)]
struct NewGenerator {
    name: String,
    description: Option<String>,
}

#[derive(Serialize)]
struct WithPak<'a> {
    generator: Generator,
    pak: &'a str,
}

fn valid(name: &str, description: Option<&str>) -> Result<(), Error> {
    check::not_blank("`name`", name, "invalid_generator")?;
    check::storable("`name`", name, check::NAME)?;
    check::no_nul("`description`", description.unwrap_or_default())
}

fn create(call: &Call, db: &mut Conn) -> Result<Reply, Error> {
    let new: NewGenerator = call.json()?;
    access::admin(call.principal)?;
    valid(&new.name, new.description.as_deref())?;
    let pak = call.mint()?;
    let generator = db.transaction(|tx| {
        let generator = generators::insert(
            tx,
            &new.name,
            new.description.as_deref(),
            pak.hash().as_str(),
        )?;
        let by = |action, kind| record::audit(call.principal, action, kind, generator.id);
        let audits = [
            by("generator.created", "generator").details(json!({ "name": generator.name })),
            by("pak.created", "pak")
                .details(json!({ "entity": "generator", "name": generator.name })),
        ];
        emit(tx, &audits, &[])?;
        Ok::<_, Error>(generator)
    })?;
    Reply::created(&WithPak {
        generator,
        pak: pak.expose(),
    })
}

fn show(call: &Call, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    access::admin_or_generator(call.principal, id, "generator_not_owned")?;
    Reply::ok(&generators::get(db, id)?.ok_or_else(access::no_generator)?)
}

/// A whole generator, of which name, description and `is_active` count. The others are read so that a caller who leaves
/// one out is told.
#[derive(Deserialize)]
#[allow(dead_code, reason = "required of the caller, honoured by nobody")]
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

fn update(call: &Call, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let new: Replacement = call.json()?;
    access::admin_or_generator(call.principal, id, "generator_not_owned")?;
    let description = new.description.as_deref();
    let invalid = valid(&new.name, description);
    let generator = db.transaction(|tx| {
        if let Err(error) = invalid {
            // Existence is told before what is wrong with a value.
            generators::get(tx, id)?.ok_or_else(no_row)?;
            return Err(error);
        }
        let generator = generators::update(tx, id, &new.name, description, new.is_active)?
            .ok_or_else(no_row)?;
        let audit = record::audit(call.principal, "generator.updated", "generator", id)
            .details(json!({ "name": generator.name }));
        emit(tx, &[audit], &[])?;
        Ok(generator)
    })?;
    Reply::ok(&generator)
}

/// Here, unlike anywhere else, an unknown generator has the code of a missing row.
fn no_row() -> Error {
    Error::not_found("not_found", "there is no such generator")
}

/// Deletes the generator and its stacks. Their markers stay live, so that every agent that served them hears of it.
fn remove(call: &Call, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    access::admin_or_generator(call.principal, id, "generator_not_owned")?;
    let its_stacks = db.transaction(|tx| {
        let generator = generators::get_locked(tx, id)?.ok_or_else(access::no_generator)?;
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
        let audit = record::audit(call.principal, "generator.deleted", "generator", id);
        emit(tx, &[audit], &[])?;
        Ok(its_stacks)
    })?;
    call.app.auth.forget(Principal::Generator(id));
    call.app.live.doubt();
    push::stacks_deleted(call, db, &its_stacks);
    Ok(Reply::no_content())
}

fn rotate(call: &Call, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    access::admin_or_generator(call.principal, id, "generator_not_owned")?;
    let pak = call.mint()?;
    let generator = db.transaction(|tx| {
        let generator = generators::set_pak_hash(tx, id, pak.hash().as_str())?
            .ok_or_else(access::no_generator)?;
        let audit = record::audit(call.principal, "pak.rotated", "generator", id)
            .details(json!({ "generator_name": generator.name }));
        emit(tx, &[audit], &[])?;
        Ok::<_, Error>(generator)
    })?;
    call.app.auth.forget(Principal::Generator(id));
    call.app.live.doubt();
    Reply::created(&WithPak {
        generator,
        pak: pak.expose(),
    })
}
