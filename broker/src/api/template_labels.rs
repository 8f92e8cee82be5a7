//! Labels and annotations of templates. A stack must have all of them for the template to be used on it.

use axum::Router;
use axum::routing::{delete, get};
use serde::Deserialize;
use utoipa::{OpenApi, ToSchema};

use super::openapi::responses::{
    Always, BadRequest, Conflict, Forbidden, JsonBody, NotFound, Unstorable,
};
use super::operation::{plain, with_body};
use super::reply::Reply;
use super::request::ApiRequest;
use super::templates::{owned, readable};
use super::validation;
use crate::app::App;
use crate::db::Conn;
use crate::error::Error;
use crate::store::template_labels as marks;

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
            "/templates/{id}/labels",
            get(plain(labels)).post(with_body(add_label)),
        )
        .route(
            "/templates/{id}/labels/{label}",
            delete(plain(remove_label)),
        )
        .route(
            "/templates/{id}/annotations",
            get(plain(annotations)).post(with_body(add_annotation)),
        )
        .route(
            "/templates/{id}/annotations/{key}",
            delete(plain(remove_annotation)),
        )
}

#[utoipa::path(
    get, path = "/templates/{id}/labels", operation_id = "templates_list_labels", tag = "templates",
    params(("id" = Uuid, Path)),
    responses(
        (status = 200, description = "The template's labels", body = [marks::TemplateLabel]),
        Always, BadRequest, Forbidden, NotFound,
    ),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn labels(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    readable(db, call.principal, id)?;
    Reply::ok(&marks::labels(db, id)?)
}

/// Takes a JSON string as the body.
#[utoipa::path(
    post, path = "/templates/{id}/labels", operation_id = "templates_add_label", tag = "templates",
    params(("id" = Uuid, Path)),
    request_body(content = String, content_type = "application/json"),
    responses(
        (status = 201, description = "The label", body = marks::TemplateLabel),
        Always, JsonBody, Forbidden, NotFound, Conflict,
    ),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn add_label(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let label: String = call.json()?;
    owned(db, call.principal, id)?;
    word("a label", &label, "invalid_label")?;
    Reply::created(&marks::add_label(db, id, &label)?)
}

#[utoipa::path(
    delete, path = "/templates/{id}/labels/{label}", operation_id = "templates_remove_label", tag = "templates",
    params(("id" = Uuid, Path), ("label" = String, Path)),
    responses((status = 204, description = "It is gone"), Always, BadRequest, Forbidden, NotFound, Unstorable),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn remove_label(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let (id, label) = (call.id()?, call.path("label")?);
    owned(db, call.principal, id)?;
    validation::no_nul("the label", label)?;
    if marks::remove_label(db, id, label)? {
        return Ok(Reply::no_content());
    }
    Err(Error::not_found(
        "template_label_not_found",
        "the template has no such label",
    ))
}

#[utoipa::path(
    get, path = "/templates/{id}/annotations", operation_id = "templates_list_annotations", tag = "templates",
    params(("id" = Uuid, Path)),
    responses(
        (status = 200, description = "The template's annotations", body = [marks::TemplateAnnotation]),
        Always, BadRequest, Forbidden, NotFound,
    ),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn annotations(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    readable(db, call.principal, id)?;
    Reply::ok(&marks::annotations(db, id)?)
}

#[derive(Deserialize, ToSchema)]
struct AddAnnotationRequest {
    key: String,
    value: String,
}

#[utoipa::path(
    post, path = "/templates/{id}/annotations", operation_id = "templates_add_annotation", tag = "templates",
    params(("id" = Uuid, Path)),
    request_body = AddAnnotationRequest,
    responses(
        (status = 201, description = "The annotation", body = marks::TemplateAnnotation),
        Always, JsonBody, Forbidden, NotFound, Conflict,
    ),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn add_annotation(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let new: AddAnnotationRequest = call.json()?;
    owned(db, call.principal, id)?;
    word("`key`", &new.key, "invalid_annotation")?;
    word("`value`", &new.value, "invalid_annotation")?;
    Reply::created(&marks::add_annotation(db, id, &new.key, &new.value)?)
}

#[utoipa::path(
    delete, path = "/templates/{id}/annotations/{key}", operation_id = "templates_remove_annotation", tag = "templates",
    params(("id" = Uuid, Path), ("key" = String, Path)),
    responses((status = 204, description = "It is gone"), Always, BadRequest, Forbidden, NotFound, Unstorable),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn remove_annotation(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let (id, key) = (call.id()?, call.path("key")?);
    owned(db, call.principal, id)?;
    validation::no_nul("the key", key)?;
    if marks::remove_annotation(db, id, key)? {
        return Ok(Reply::no_content());
    }
    Err(Error::not_found(
        "template_annotation_not_found",
        "the template has no annotation with this key",
    ))
}

/// Refuses a value that is blank, longer than 64 bytes or contains white space, with this code. Unlike a stack's
/// annotation, a template's annotation must not have an empty value.
fn word(what: &str, value: &str, code: &'static str) -> Result<(), Error> {
    validation::not_blank(what, value, code)?;
    if value.contains(char::is_whitespace) {
        return Err(Error::bad_request(
            code,
            format!("{what} must not contain white space"),
        ));
    }
    if value.len() > validation::MARK {
        return Err(Error::bad_request(
            code,
            format!("{what} may have at most {} bytes", validation::MARK),
        ));
    }
    validation::no_nul(what, value)
}
