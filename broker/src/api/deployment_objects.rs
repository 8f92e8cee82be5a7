//! Deployment objects: generators submit them, agents apply them, and they never change.

mod yaml;

use axum::Router;
use axum::http::header;
use axum::routing::get;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use super::openapi::responses::{Always, BadRequest, Body, Forbidden, NotFound};
use super::operation::{plain, with_bundle};
use super::reply::Reply;
use super::request::ApiRequest;
use super::{authorization, notifications, request_body};
use crate::app::App;
use crate::auth::Principal;
use crate::db::{Conn, Tx};
use crate::domain::outbox::{SubscriberEvent, emit};
use crate::error::Error;
use crate::store::objects::{self, Object as DeploymentObject};
use crate::store::stack_matching;
use crate::store::stacks::Stack;

#[derive(OpenApi)]
#[openapi(paths(list, create, show))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route(
            "/stacks/{id}/deployment-objects",
            get(plain(list)).post(with_bundle(create)),
        )
        .route("/deployment-objects/{id}", get(plain(show)))
}

/// Content types of YAML; they match in exactly this spelling.
const YAML_TYPES: [&str; 3] = ["application/yaml", "text/yaml", "application/x-yaml"];

#[utoipa::path(
    get, path = "/stacks/{id}/deployment-objects", operation_id = "list_deployment_objects", tag = "stacks",
    params(("id" = Uuid, Path)),
    responses(
        (status = 200, description = "The stack's objects", body = [DeploymentObject]),
        Always, BadRequest, Forbidden, NotFound,
    ),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn list(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::owned_stack(db, call.principal, id)?;
    Reply::ok(&objects::list(db, id)?)
}

#[derive(Deserialize)]
struct Options {
    #[serde(default)]
    deletion_marker: bool,
}

/// A submitted object: YAML text, with the flag of a deletion marker.
#[derive(Deserialize, ToSchema)]
#[schema(as = CreateDeploymentObjectRequest)]
struct Submission {
    yaml_content: String,
    #[serde(default)]
    is_deletion_marker: bool,
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::bad_request("invalid_deployment_object", message)
}

/// Reads the body as YAML or JSON. Every error is a 400 here, for any content type.
fn submission(call: &ApiRequest, options: &Options) -> Result<Submission, Error> {
    let bytes = call.body()?;
    let kind = call.header(header::CONTENT_TYPE).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    let submission = if YAML_TYPES.contains(&essence) {
        Submission {
            yaml_content: String::from_utf8(bytes.to_vec())
                .map_err(|_| invalid("the body is not UTF-8"))?,
            is_deletion_marker: options.deletion_marker,
        }
    } else {
        serde_json::from_slice(bytes).map_err(|error| {
            invalid(format!(
                "the body is not as expected: {}",
                request_body::wrong_with_json(bytes, &error)
            ))
        })?
    };
    Ok(submission)
}

/// Refuses YAML that an agent could not apply. A large text waits for its turn to be checked.
pub(super) async fn applicable(yaml: String) -> Result<String, Error> {
    if yaml.contains('\0') {
        return Err(invalid("the YAML contains a NUL byte"));
    }
    match yaml::check(yaml).await {
        Ok(checked) => checked.map_err(invalid),
        Err(yaml::YamlBusy) => Err(Error::busy(
            "too many large objects at once; try again shortly",
        )),
    }
}

/// Returns the SHA-256 of a text in lower-case hex, over the bytes as received, because clients compare it with the
/// checksum of their copy.
pub(super) fn checksum(text: &str) -> String {
    Sha256::digest(text.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Adds an object to a live stack and emits its event.
pub(super) fn add(
    tx: &mut Tx<'_>,
    stack: Uuid,
    yaml: &str,
    is_deletion_marker: bool,
) -> Result<DeploymentObject, Error> {
    let object = objects::insert(tx, stack, yaml, &checksum(yaml), is_deletion_marker)?
        .ok_or_else(authorization::no_stack)?;
    let event = SubscriberEvent::new(
        "deployment.created",
        json!({
            "deployment_object_id": object.id,
            "stack_id": object.stack_id,
            "sequence_id": object.sequence_id,
            "created_at": object.created_at,
        }),
    );
    emit(tx, &[], &[event])?;
    Ok(object)
}

/// Notifies the connected agents that serve the stack of its new object. Call it after the commit.
pub(super) fn announce(call: &ApiRequest, db: &mut Conn, stack: &Stack) {
    notifications::stack_changed(call, db, stack);
}

#[utoipa::path(
    post, path = "/stacks/{id}/deployment-objects", operation_id = "create_deployment_object", tag = "stacks",
    params(
        ("id" = Uuid, Path),
        ("deletion_marker" = Option<bool>, Query, nullable, description = "A marker; for a body of YAML"),
    ),
    request_body = Submission,
    responses((status = 201, description = "The object", body = DeploymentObject), Always, Body, Forbidden, NotFound),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn create(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let options: Options = call.query()?;
    authorization::owned_stack(db, call.principal, id)?;
    let Submission {
        yaml_content: yaml,
        is_deletion_marker: marker,
    } = submission(call, &options)?;
    let call = call.clone();
    Ok(Reply::later(async move {
        let yaml = if marker && yaml.trim().is_empty() {
            yaml
        } else {
            applicable(yaml).await?
        };
        call.step(move |call, db| {
            let (object, stack) = db.transaction(|tx| {
                let stack = authorization::owned_stack_locked(tx, call.principal, id)?;
                let object = add(tx, id, &yaml, marker)?;
                call.in_time()?;
                Ok::<_, Error>((object, stack))
            })?;
            announce(call, db, &stack);
            Reply::created(&object)
        })
        .await
    }))
}

#[utoipa::path(
    get, path = "/deployment-objects/{id}", operation_id = "get_deployment_object", tag = "deployment-objects",
    params(("id" = Uuid, Path)),
    responses((status = 200, description = "The object", body = DeploymentObject), Always, BadRequest, Forbidden, NotFound),
    security(("admin_pak" = []), ("agent_pak" = []), ("generator_pak" = [])),
)]
fn show(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let (object, owner) = objects::get(db, id)?.ok_or_else(|| {
        Error::not_found(
            "deployment_object_not_found",
            "there is no such deployment object",
        )
    })?;
    match call.principal {
        Principal::Admin => {}
        Principal::Generator(generator) => {
            if generator != owner {
                return Err(Error::forbidden(
                    "generator_not_associated",
                    "the object's stack belongs to another generator",
                ));
            }
        }
        Principal::Agent(agent) => {
            if !stack_matching::serves(db, agent, object.stack_id)? {
                return Err(Error::forbidden(
                    "agent_not_associated",
                    "the agent does not serve the object's stack",
                ));
            }
        }
    }
    let accept = call.header(header::ACCEPT).unwrap_or_default();
    if YAML_TYPES.iter().any(|kind| accept.contains(kind)) {
        return Ok(Reply::Yaml(object.yaml_content));
    }
    Reply::ok(&object)
}
