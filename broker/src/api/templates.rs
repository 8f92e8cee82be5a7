//! Templates: access rules, and checks of new versions.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use serde::Deserialize;
use serde_json::json;
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use super::deployment_objects::checksum;
use super::openapi::responses::{Always, BadRequest, Conflict, Forbidden, JsonBody, NotFound};
use super::operation::{plain, with_body};
use super::reply::Reply;
use super::request::ApiRequest;
use super::{audit, validation};
use crate::app::App;
use crate::auth::Principal;
use crate::db::{Conn, Sql};
use crate::domain::outbox::emit;
use crate::error::Error;
use crate::store::templates::{self, NewTemplate, Template};
use crate::template::{self, TemplateError};

#[derive(OpenApi)]
#[openapi(paths(list, create, show, update, remove))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/templates", get(plain(list)).post(with_body(create)))
        .route(
            "/templates/{id}",
            get(plain(show))
                .put(with_body(update))
                .delete(plain(remove)),
        )
}

fn not_for_agents() -> Error {
    Error::forbidden(
        "templates_not_accessible",
        "agents have nothing to do with templates",
    )
}

/// Returns a live template that the caller may read: 404 `template_not_found` comes before 403
/// `template_not_accessible`.
pub(super) fn readable(
    db: &mut impl Sql,
    principal: Principal,
    id: Uuid,
) -> Result<Template, Error> {
    let template = templates::get(db, id)?.ok_or_else(no_template)?;
    let readable = match principal {
        Principal::Admin => true,
        // A template without owner is a system template, which every generator may read.
        Principal::Generator(id) => template.generator_id.is_none_or(|owner| owner == id),
        Principal::Agent(_) => false,
    };
    if readable {
        return Ok(template);
    }
    Err(Error::forbidden(
        "template_not_accessible",
        "this template is not the caller's to see",
    ))
}

/// Returns a live template that the caller may change: 404 `template_not_found` comes before 403 `template_not_owned`.
pub(super) fn owned(db: &mut impl Sql, principal: Principal, id: Uuid) -> Result<Template, Error> {
    let template = templates::get(db, id)?.ok_or_else(no_template)?;
    let owned = match principal {
        Principal::Admin => true,
        Principal::Generator(id) => template.generator_id == Some(id),
        Principal::Agent(_) => false,
    };
    if owned {
        return Ok(template);
    }
    Err(Error::forbidden(
        "template_not_owned",
        "this template is not the caller's to change",
    ))
}

fn no_template() -> Error {
    Error::not_found("template_not_found", "there is no such template")
}

#[utoipa::path(
    get, path = "/templates", operation_id = "list_templates", tag = "templates",
    responses(
        (status = 200, description = "Templates; a generator sees the system's, then its own", body = [Template]),
        Always, Forbidden,
    ),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn list(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    match call.principal {
        Principal::Admin => Reply::ok(&templates::list(db)?),
        Principal::Generator(id) => Reply::ok(&templates::list_for(db, id)?),
        Principal::Agent(_) => Err(not_for_agents()),
    }
}

#[derive(Deserialize, ToSchema)]
struct CreateTemplateRequest {
    name: String,
    description: Option<String>,
    template_content: String,
    /// JSON Schema, as text.
    parameters_schema: String,
}

#[derive(Deserialize, ToSchema)]
struct UpdateTemplateRequest {
    description: Option<String>,
    template_content: String,
    /// JSON Schema, as text.
    parameters_schema: String,
}

#[utoipa::path(
    post, path = "/templates", operation_id = "create_template", tag = "templates",
    request_body = CreateTemplateRequest,
    responses(
        (status = 201, description = "The template; the system's if the admin makes it", body = Template),
        Always, JsonBody, Forbidden, Conflict,
    ),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn create(call: &ApiRequest, _: &mut Conn) -> Result<Reply, Error> {
    let new: CreateTemplateRequest = call.json()?;
    let generator_id = match call.principal {
        Principal::Admin => None,
        Principal::Generator(id) => Some(id),
        Principal::Agent(_) => return Err(not_for_agents()),
    };
    validation::not_blank("`name`", &new.name, "invalid_template")?;
    validation::storable("`name`", &new.name, validation::NAME)?;
    let new = Draft {
        generator_id,
        name: new.name,
        description: new.description,
        content: new.template_content,
        schema: new.parameters_schema,
    };
    new.valid()?;
    let call = call.clone();
    Ok(Reply::later(async move {
        let new = new.checked().await?;
        call.step(move |call, db| Reply::created(&add(call, db, "template.created", &new, None)?))
            .await
    }))
}

/// A template version that is about to be added.
struct Draft {
    generator_id: Option<Uuid>,
    name: String,
    description: Option<String>,
    content: String,
    schema: String,
}

impl Draft {
    /// Runs the cheap checks of every field except the name.
    fn valid(&self) -> Result<(), Error> {
        if let Some(description) = &self.description {
            validation::not_blank("`description`", description, "invalid_template")?;
            validation::no_nul("`description`", description)?;
        }
        for (what, text, most) in [
            ("`template_content`", &self.content, template::CONTENT),
            ("`parameters_schema`", &self.schema, template::SCHEMA),
        ] {
            validation::no_nul(what, text)?;
            if text.len() > most {
                return Err(Error::invalid_value(format!(
                    "{what} may have at most {most} bytes"
                )));
            }
        }
        Ok(())
    }

    /// Checks content and schema in depth, without a connection.
    async fn checked(self) -> Result<Self, Error> {
        template::in_turn(move || template::check(&self.content, &self.schema).map(|()| self))
            .await
            .map_err(refused)
    }
}

/// Makes the error that tells a caller why a template or its rendering was refused.
pub(super) fn refused(refusal: TemplateError) -> Error {
    match refusal {
        TemplateError::Syntax(text) => Error::bad_request("invalid_template_syntax", text),
        TemplateError::Schema(text) => Error::bad_request("invalid_parameters_schema", text),
        TemplateError::Parameters(problems) => Error::bad_request(
            "invalid_parameters",
            "the parameters do not keep the template's schema",
        )
        .detail("validation_errors", problems),
        TemplateError::Rendering(text) => Error::bad_request("template_render_failed", text),
        TemplateError::Busy => Error::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many_templates",
            "too many templates at once; try again shortly",
        )
        .retry_after(1),
    }
}

/// Adds a version, with its audit entry. The previous version must still exist, and the caller must own it.
fn add(
    call: &ApiRequest,
    db: &mut Conn,
    action: &'static str,
    new: &Draft,
    after: Option<Uuid>,
) -> Result<Template, Error> {
    let row = NewTemplate {
        generator_id: new.generator_id,
        name: &new.name,
        description: new.description.as_deref(),
        template_content: &new.content,
        parameters_schema: &new.schema,
        checksum: &checksum(&new.content),
    };
    db.transaction(|tx| {
        if let Some(old) = after {
            owned(tx, call.principal, old)?;
        }
        let template = templates::insert(tx, &row)?.ok_or_else(|| {
            Error::conflict("unique_violation", "others are adding versions faster")
                .detail("constraint", "unique_template_version")
        })?;
        let audit = audit::audit(call.principal, action, "template", template.id)
            .details(json!({ "name": template.name, "version": template.version }));
        emit(tx, &[audit], &[])?;
        call.in_time()?;
        Ok(template)
    })
}

#[utoipa::path(
    get, path = "/templates/{id}", operation_id = "get_template", tag = "templates",
    params(("id" = Uuid, Path)),
    responses((status = 200, description = "The template", body = Template), Always, BadRequest, Forbidden, NotFound),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn show(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    Reply::ok(&readable(db, call.principal, id)?)
}

/// Adds a version with the next number and a new id, under the same name and owner. The previous version is unchanged.
#[utoipa::path(
    put, path = "/templates/{id}", operation_id = "update_template", tag = "templates",
    params(("id" = Uuid, Path)),
    request_body = UpdateTemplateRequest,
    responses(
        (status = 200, description = "The new version, under a new id", body = Template),
        Always, JsonBody, Forbidden, NotFound, Conflict,
    ),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn update(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let new: UpdateTemplateRequest = call.json()?;
    let old = owned(db, call.principal, id)?;
    let new = Draft {
        generator_id: old.generator_id,
        name: old.name,
        description: new.description.or(old.description),
        content: new.template_content,
        schema: new.parameters_schema,
    };
    new.valid()?;
    let call = call.clone();
    Ok(Reply::later(async move {
        let new = new.checked().await?;
        call.step(move |call, db| Reply::ok(&add(call, db, "template.updated", &new, Some(id))?))
            .await
    }))
}

#[utoipa::path(
    delete, path = "/templates/{id}", operation_id = "delete_template", tag = "templates",
    params(("id" = Uuid, Path)),
    responses((status = 204, description = "This version is gone"), Always, BadRequest, Forbidden, NotFound),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn remove(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    owned(db, call.principal, id)?;
    db.transaction(|tx| {
        if !templates::delete(tx, id)? {
            return Err(no_template());
        }
        let audit = audit::audit(call.principal, "template.deleted", "template", id);
        emit(tx, &[audit], &[])?;
        Ok(())
    })?;
    Ok(Reply::no_content())
}
