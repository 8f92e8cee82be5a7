//! Instantiates a template: template and parameters become a deployment object.
//!
//! Three steps: read the template on a connection, render it without a connection, and store the object on another
//! connection. Stack and template may change in between, so the transaction that adds the object reads them again.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use serde::Deserialize;
use serde_json::Value;
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use super::openapi::responses::{Always, Forbidden, JsonBody, NotFound};
use super::operation::with_body;
use super::reply::Reply;
use super::request::ApiRequest;
use super::templates::{readable, refused};
use super::{authorization, deployment_objects};
use crate::app::App;
use crate::db::Conn;
use crate::error::Error;
use crate::store::labels::{self, Missing};
use crate::store::objects::Object as DeploymentObject;
use crate::store::templates;
use crate::template;

/// Largest body, in bytes; less than for other requests because parsed JSON takes many times the memory of its text.
const MAX_BODY: usize = 2 * 1024 * 1024;

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
fn instantiate(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let stack_id = call.uuid("stack_id")?;
    if call.body()?.len() > MAX_BODY {
        return Err(Error::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "payload_too_large",
            format!("this request body may have at most {MAX_BODY} bytes"),
        ));
    }
    let request: TemplateInstantiationRequest = call.json()?;
    authorization::owned_stack(db, call.principal, stack_id)?;
    let template = readable(db, call.principal, request.template_id)?;
    let missing = labels::missing(db, template.id, stack_id)?;
    if !missing.is_nothing() {
        return Err(mismatch(missing));
    }
    let call = call.clone();
    let content = template.template_content;
    let schema = template.parameters_schema;
    let parameters = request.parameters;
    Ok(Reply::later(async move {
        let (yaml, parameters) = template::in_turn(move || {
            template::validate(&schema, &parameters)?;
            let yaml = template::render(&content, &parameters)?;
            Ok((yaml, parameters.to_string()))
        })
        .await
        .map_err(refused)?;
        let yaml = deployment_objects::applicable(yaml).await?;
        call.step(move |call, db| {
            let (object, stack) = db.transaction(|tx| {
                let stack = authorization::owned_stack_locked(tx, call.principal, stack_id)?;
                let template = readable(tx, call.principal, request.template_id)?;
                let object = deployment_objects::add(tx, stack_id, &yaml, false)?;
                templates::rendered(tx, object.id, &template, &parameters)?;
                call.in_time()?;
                Ok::<_, Error>((object, stack))
            })?;
            deployment_objects::announce(call, db, &stack);
            Reply::created(&object)
        })
        .await
    }))
}

/// Makes the 422 `template_stack_mismatch`, with the missing labels and annotations.
fn mismatch(missing: Missing) -> Error {
    let pairs: Vec<Value> = missing
        .annotations
        .into_iter()
        .map(|(key, value)| Value::from(vec![key, value]))
        .collect();
    Error::unprocessable(
        "template_stack_mismatch",
        "the stack does not have all labels and annotations of the template",
    )
    .detail("missing_labels", missing.labels)
    .detail("missing_annotations", pairs)
}
