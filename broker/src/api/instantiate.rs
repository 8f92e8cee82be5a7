//! A template and its parameters become a deployment object.
//!
//! Everything is read and rendered first, without a transaction; what was read may have changed meanwhile, and only the
//! stack is looked at again, when the object is added. Object, provenance and event are then one transaction.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use serde::Deserialize;
use serde_json::Value;
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use super::call::{Call, Reply, with_body};
use super::openapi::answers::{Always, Forbidden, JsonBody, NotFound};
use super::templates::{readable, refused};
use super::{access, objects};
use crate::app::App;
use crate::db::Conn;
use crate::error::Error;
use crate::store::objects::Object as DeploymentObject;
use crate::store::template_marks::{self, Missing};
use crate::store::templates;
use crate::template;

/// Largest body: a value of JSON takes many times the memory of its text.
const MAX_BODY: usize = 2 * 1024 * 1024;

/// This resource in the OpenAPI document.
#[derive(OpenApi)]
#[openapi(paths(instantiate))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new().route(
        "/stacks/{stack_id}/deployment-objects/from-template",
        post(with_body(instantiate)),
    )
}

#[derive(Deserialize, ToSchema)]
struct TemplateInstantiationRequest {
    template_id: Uuid,
    parameters: Value,
}

#[utoipa::path(
    post, path = "/stacks/{stack_id}/deployment-objects/from-template", operation_id = "instantiate_template",
    tag = "stacks",
    params(("stack_id" = Uuid, Path)),
    request_body = TemplateInstantiationRequest,
    responses((status = 201, description = "The object", body = DeploymentObject), Always, JsonBody, Forbidden, NotFound),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn instantiate(call: &Call, db: &mut Conn) -> Result<Reply, Error> {
    let stack_id = call.uuid("stack_id")?;
    if call.body()?.len() > MAX_BODY {
        return Err(Error::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "payload_too_large",
            format!("this request body may have at most {MAX_BODY} bytes"),
        ));
    }
    let request: TemplateInstantiationRequest = call.json()?;
    let stack = access::owned_stack(db, call.principal, stack_id)?;
    let template = readable(db, call.principal, request.template_id)?;
    let missing = template_marks::missing(db, template.id, stack_id)?;
    if !missing.is_nothing() {
        return Err(mismatch(missing));
    }
    template::validate(&template.parameters_schema, &request.parameters).map_err(refused)?;
    let yaml =
        template::render(&template.template_content, &request.parameters).map_err(refused)?;
    objects::applicable(&yaml)?;
    let parameters = request.parameters.to_string();
    let object = db.transaction(|tx| {
        let object = objects::add(tx, stack_id, &yaml, false)?;
        templates::rendered(tx, object.id, &template, &parameters)?;
        Ok::<_, Error>(object)
    })?;
    objects::announce(call, db, &stack);
    Reply::created(&object)
}

/// 422 `template_stack_mismatch`, and what is missing.
fn mismatch(missing: Missing) -> Error {
    let pairs: Vec<Value> = missing
        .annotations
        .into_iter()
        .map(|(key, value)| Value::from(vec![key, value]))
        .collect();
    Error::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "template_stack_mismatch",
        "the stack does not have all labels and annotations of the template",
    )
    .detail("missing_labels", missing.labels)
    .detail("missing_annotations", pairs)
}
